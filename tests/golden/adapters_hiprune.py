"""HiPrune's golden cases: the release's flat neighbours (wrap), both its paths."""

import torch

from .adapters import adapter


def mask(index, num_tokens):
    return torch.zeros(len(index), num_tokens, dtype=torch.bool).scatter(1, index, True)


@adapter("hiprune", "LlavaMetaForCausalLM.encode_images", inputs=("q", "k", "image_features"))
def llava(case):
    from vtlib.pruning.hiprune import attention_layers, prune, score
    from vtlib.tokens import VisionOutputs

    c, t = case.config, case.tensors
    layers = c["layers"]
    deep_layer = layers + 1 + c["mm_vision_select_layer"]
    wanted = attention_layers(layers, c["HIPRUNE_OBJECT_LAYER"], deep_layer)
    q, scale = t["q"], t["q"].shape[-1] ** -0.5
    attention = {i: (q[i] @ t["k"][i].transpose(-2, -1) * scale).softmax(-1) for i in wanted}
    features = t["image_features"]
    # [CLS] itself is not in the case, nor read
    with_cls = torch.cat([features[:, :1], features], dim=1)
    vision = VisionOutputs(with_cls, tuple(c["grid"]), torch.nn.Identity(), attention=attention)
    options = {"object_layer": wanted[0] + 1, "deep_layer": wanted[1] + 1}
    middle, deep = score(vision, **options)
    keep = int(c["HIPRUNE_RETENTION"] / c["views"])
    plan = prune(vision, keep, alpha=c["HIPRUNE_ALPHA"], wrap=True, **options)
    role = torch.full_like(middle, -1).long().scatter(1, plan.index, plan.role)
    return {
        "middle_score": middle,
        "deep_score": deep,
        "anchor_mask": role == 0,
        "anchor_or_buffer_mask": (role == 0) | (role == 1),
        "register_mask": role == 2,
        "keep_mask": plan.kept(),
    }


@adapter(
    "hiprune",
    "Qwen2_5_VLForConditionalGeneration.forward, the HiPrune block",
    inputs=("attention_received", "input_ids", "position_ids", "inputs_embeds_in"),
)
def qwen(case):
    from vtlib.pruning.hiprune import attention_layers, select

    c, t = case.config, case.tensors
    received = t["attention_received"]
    middle, deep = attention_layers(len(received), c["HIPRUNE_OBJECT_LAYER"], len(received))
    plan = select(
        received[middle][None],
        received[deep][None],
        float(c["HIPRUNE_QWEN_RETENTION"]),
        tuple(c["grid"]),
        alpha=c["HIPRUNE_ALPHA"],
        wrap=True,
        exact=False,
    )
    keep = plan.kept()[0]
    sequence = torch.ones_like(t["input_ids"][0], dtype=torch.bool)
    sequence[t["input_ids"][0] == c["image_token_id"]] = keep
    return {
        "keep_mask": keep,
        "sequence_keep_mask": sequence,
        "position_ids_out": t["position_ids"][:, :, sequence],
        "inputs_embeds_out": t["inputs_embeds_in"][:, sequence],
    }
