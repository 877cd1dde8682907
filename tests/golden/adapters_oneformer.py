"""OneFormer: labels of three tasks and their texts, task token and text queries, the predictor, the
contrast, the three answers."""

import torch

from .adapters import adapter, record


def parts(case, before, prefix, strip):
    """The case's weights below `before`, under our names: `prefix` makes them whole names of
    transformers, `strip` takes the part."""
    from vtlib.segmentation.oneformer_weights import convert_transformers

    given = case.weights(before)
    state = convert_transformers({prefix + key: value for key, value in given.items()})
    return {key.removeprefix(strip): value for key, value in state.items()}


@adapter("oneformer", "OneFormerLoss.loss_contrastive", inputs=("queries", "texts", "temperatures"))
def contrast(case):
    from vtlib.segmentation.oneformer import contrastive_loss

    q, t = case.tensors["queries"], case.tensors["texts"]
    scales = (1 / case.tensors["temperatures"]).log()
    return {"loss": torch.stack([contrastive_loss(q, t, scale) for scale in scales])}


@adapter(
    "oneformer", "_get_semantic_dict, _get_instance_dict, _get_panoptic_dict",
    inputs=("panoptic", "segments"),
)
def targets(case):
    from vtlib.segmentation.oneformer_tasks import task_targets
    from vtlib.segmentation.oneformer_text import TASKS, text_list

    c, out = case.config, {}
    rows = case.tensors["segments"].tolist()
    for task in TASKS:
        got = task_targets(case.tensors["panoptic"], rows, task, c["thing_ids"])
        for name, value in got._asdict().items():
            out[f"{task}.{name}"] = value
        texts = text_list(task, got.classes, c["class_names"], c["num_text_entries"])
        if texts != c["expected_texts"][task]:
            raise ValueError(f"{task}: {texts}")
    return out


@adapter(
    "oneformer", "OneFormerTextMapper.forward, OneFormerTaskModel.forward",
    inputs=("text_ids", "task_ids"),
)
def text_and_task(case):
    from vtlib.segmentation.oneformer_nets import MLP
    from vtlib.segmentation.oneformer_text import TextEncoder, TextMapper

    c, t = case.config, case.tensors
    sizes = (c["vocab"], c["context_length"], c["width"], c["layers"], c["heads"])
    # the case's numbers are transformers', whose encoder builds a causal mask and never uses it
    text = TextMapper(TextEncoder(*sizes, causal=False), c["n_ctx"])
    text.load_state_dict(parts(case, "w.text.", "model.text_mapper.", "text."))
    mlp = MLP(c["context_length"], c["hidden_dim"], c["hidden_dim"], 2)
    mlp.load_state_dict(parts(case, "w.task.", "model.task_encoder.", "task_mlp."))
    return {
        "text_queries": text(t["text_ids"].long()), "task_token": mlp(t["task_ids"].float()),
    }


@adapter(
    "oneformer", "OneFormerTransformerModule.forward",
    inputs=("level0", "level1", "level2", "mask_features", "task_token"),
)
def predictor(case):
    from vtlib.segmentation.oneformer import Predictor, allowed
    from vtlib.segmentation.oneformer_nets import sine_positions

    c, t, out = case.config, case.tensors, {}
    sizes = (c["hidden_dim"], c["heads"], c["dim_feedforward"], c["decoder_layers_run"])
    model = Predictor(c["num_labels"], c["num_queries"], *sizes, c["query_dec_layers"]).eval()
    model.load_state_dict(parts(case, "w.", "model.transformer_module.", "predictor."))
    record(model.class_transformer, out, "query_transformer_out")
    features = t["mask_features"]
    got = model([t["level0"], t["level1"], t["level2"]], features, t["task_token"])
    out |= {"object_queries": got.queries, "contrastive_logits": got.formed}
    for i, prediction in enumerate(got.earlier):
        out |= {f"aux{i}.{name}": value for name, value in prediction._asdict().items()}
    out |= got.last._asdict()
    out["attn_mask0"] = ~allowed(got.earlier[0].mask_logits, t["level0"].shape[-2:])
    grid = features.shape[-2:]
    sine = sine_positions(tuple(grid), c["hidden_dim"]).T.unflatten(1, grid)
    out["pos_mask_features"] = sine.expand_as(features)
    return out


@adapter(
    "oneformer", "OneFormer.semantic_inference, panoptic_inference, instance_inference",
    inputs=("class_logits", "mask_logits"),
)
def answers(case):
    from vtlib.segmentation.oneformer_tasks import instances, panoptic_segments, semantic_scores

    c, things = case.config, case.config["thing_classes"]
    logits = [case.tensors[name][None] for name in ("class_logits", "mask_logits")]
    limits = c["object_mask_threshold"], c["overlap_threshold"]
    panoptic = panoptic_segments(*logits, things, *limits)
    found = instances(*logits, things, c["topk"])
    kept = found.things[0]
    return {
        "semantic": semantic_scores(*logits)[0],
        "panoptic": panoptic.ids[0],
        "panoptic_info": torch.tensor(panoptic.rows(0)),
        "instance_scores": found.scores[0][kept],
        "instance_classes": found.classes[0][kept],
        "instance_masks": found.masks[0][kept],
    }
