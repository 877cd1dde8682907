"""CrossGET: the matching with its merge, and the whole dual encoder."""

import torch

from .adapters import adapter


@adapter(
    "crossget",
    "TokenReduction.match + forward",
    inputs=("x", "query", "key", "token_size", "token_id"),
)
def reduction(case):
    from vtlib.pruning.crossget import ensemble, importance_attention, importance_cosine, match
    from vtlib.tokens import take

    c, t = case.config, case.tensors
    eot = t["token_id"].argmax(dim=-1) if "token_id" in t else None
    if c["variant"] == "llava":
        importance = importance_attention(t["query"].mT)
    else:
        query = t["query"][:, -1] if eot is None else take(t["query"], eot[:, None])[:, 0]
        importance = importance_cosine(t["key"], query)
    ends = int(c["class_token"])                # without: LLaVA's protects the first token still
    pairs = match(t["key"], importance, c["r"], 1 if c["variant"] == "llava" else ends, ends, eot)
    size = t["token_size"][..., 0]
    plan, new = ensemble(pairs, size)
    out = dict(
        importance=importance[..., None],
        src=pairs.source,
        dst=pairs.target,
        weight=pairs.weight,
        kept=plan.index,
        out=plan.apply(t["x"]),
        token_size_out=new[..., None],
    )
    if eot is not None:
        out["token_id_out"] = ensemble(pairs, size, guided=False)[0].apply(t["token_id"])
        moved = eot - (pairs.source < eot[:, None]).sum(1)
        if not torch.equal(out["token_id_out"].argmax(-1), moved):
            raise ValueError("[EOT] is not where its index says")
    return out


@adapter("crossget", "CLIP.forward / encode_image / encode_text", inputs=("image", "text"))
def clip(case):
    from vtlib.pruning.crossget_encoder import CrossGETCLIP

    c, t = case.config, case.tensors
    model = CrossGETCLIP(
        c["image_resolution"],
        c["patch"],
        c["vision_width"],
        c["vision_heads"],
        c["vocab"],
        c["context_length"],
        c["text_width"],
        c["text_heads"],
        c["layers"],
        c["embed_dim"],
        c["rv"],
        c["rl"],
    )
    model.load_state_dict(case.weights())
    image, text = model.encode_image(t["image"]), model.encode_text(t["text"])
    losses = model.losses(t["image"], t["text"])
    return dict(
        image_feature=image.feature,
        text_feature=text.feature,
        image_cross=image.cross.flatten(0, 1),
        text_cross=text.cross.flatten(0, 1),
        loss_ita=losses["ita"],
        loss_kd=losses["kd"],
    )
