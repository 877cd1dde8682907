"""Camouflaged instance segmentation: blocks of its relatives, OSFormer, CLIP Surgery and ODISE. The
paper's own code is not public."""

import torch

from .adapters import adapter

SLUG = "camouflaged-instance-segmentation"


@adapter(SLUG, "DCIN.forward", inputs=("mask_features", "instance_embeddings"))
def dcin(case):
    from vtlib.segmentation.camouflage import CIN

    c, out = case.config, {}
    for name, normalise in (("out", True), ("out_no_norm", False)):
        cin = CIN(c["channels"], normalise=normalise, eps=c["eps"])
        cin.load_state_dict(case.weights())
        t = case.tensors
        out[name] = cin(t["mask_features"], t["instance_embeddings"][None])
    return out


@adapter(SLUG, "clip_feature_surgery", inputs=("visual", "text"))
def surgery(case):
    from vtlib.segmentation.camouflage import aggregate

    visual = case.tensors["visual"]
    found = aggregate(visual, case.tensors["text"], visual[:, :1])
    return {"class_weight": found.weights, "out": found.scores}


@adapter(
    SLUG, "MaskPooling, PooledMaskEmbed.forward, CategoryODISE.cal_pred_logits",
    inputs=("decoder_output", "mask_features", "mask_logits", "text_embed", "null_embed"),
)
def open_vocabulary(case):
    from vtlib.segmentation.camouflage_vocabulary import MaskEmbedding, OpenVocabulary, pool_masks

    c, t, weights = case.config, case.tensors, case.weights()
    scale = weights.pop("logit_scale")
    embedding = MaskEmbedding(c["hidden_dim"], c["projection_dim"])
    embedding.load_state_dict(weights)
    vocabulary = OpenVocabulary(c["projection_dim"])
    vocabulary.load_state_dict({"logit_scale": scale, "null_embed": t["null_embed"]})
    features, masks = t["mask_features"], t["mask_logits"]
    z = embedding(t["decoder_output"], features, masks)
    return {
        "pooled": pool_masks(features, masks),
        "mask_embed": z,
        "logit_scale": torch.stack([vocabulary.scale()]),
        "class_logits": vocabulary(z, t["text_embed"], [len(names) for names in c["labels"]]),
    }
