"""VisionDrop: the encoder stage behind a small CLIP tower, written out here, and the stages inside
a small Llama."""

import torch
import torch.nn.functional as F
from einops import rearrange

from .adapters import adapter

TOWER, LAYERS = "vision_tower.vision_model.", range(48)
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
PARTS = ("weight", "bias")
EMBEDDINGS = ("class_embedding", "patch_embedding.weight", "position_embedding.weight")
CLIP_LAYER = (*QKV, "self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
CLIP = (
    *(f"{TOWER}embeddings.{name}" for name in EMBEDDINGS),
    *(f"{TOWER}{norm}.{part}" for norm in ("pre_layrnorm", "post_layernorm") for part in PARTS),
    *(
        f"{TOWER}encoder.layers.{i}.{name}.{part}"
        for i in LAYERS
        for part in PARTS
        for name in CLIP_LAYER
    ),
)
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LLAMA_LAYER = (*QKV, "self_attn.o_proj", *MLP, "input_layernorm", "post_attention_layernorm")
LLAMA = (
    "model.norm.weight",
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{name}.weight" for i in LAYERS for name in LLAMA_LAYER),
)


def clip_tower(weights, pixels, heads, layers):
    """CLIP's vision tower up to the last layer but one: hidden state, that layer's weights and its
    keys (after bias, before any scaling)."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def split(x):
        return rearrange(x, "b n (h p) -> b h n p", h=heads)

    kernel = weights["embeddings.patch_embedding.weight"]
    x = rearrange(F.conv2d(pixels, kernel, stride=kernel.shape[-1]), "b d h w -> b (h w) d")
    x = torch.cat([weights["embeddings.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = x + weights["embeddings.position_embedding.weight"]
    x = norm(x, "pre_layrnorm")
    for i in range(layers - 1):
        at = f"encoder.layers.{i}."
        y = norm(x, at + "layer_norm1")
        q, k, v = (split(linear(y, f"{at}self_attn.{n}_proj")) for n in "qkv")
        attention = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(dim=-1)
        x = x + linear(rearrange(attention @ v, "b h n p -> b n (h p)"), at + "self_attn.out_proj")
        y = linear(norm(x, at + "layer_norm2"), at + "mlp.fc1")
        x = x + linear(y * torch.sigmoid(1.702 * y), at + "mlp.fc2")
    return x, attention, k


@adapter(
    "visiondrop",
    "CLIPVisionTower_VisionZip.forward with CLIPAttention_forward / CLIP_EncoderLayer_forward",
    inputs=("pixel_values", *CLIP),
)
def encoder_stage(case):
    from vtlib.pruning.visiondrop import prune, score
    from vtlib.tokens import VisionOutputs

    c, clip = case.config, case.config["clip"]
    if clip["hidden_act"] != "quick_gelu":
        raise ValueError(f"hidden_act={clip['hidden_act']}")
    hidden, attention, keys = clip_tower(
        case.weights(TOWER),
        case.tensors["pixel_values"],
        clip["num_attention_heads"],
        clip["num_hidden_layers"],
    )
    side = clip["image_size"] // clip["patch_size"]
    vision = VisionOutputs(
        hidden,
        (side, side),
        torch.nn.Identity(),
        cls_row=attention[:, :, 0, 1:],
        keys=keys.mean(dim=1),
    )
    s, d = score(vision), c["dominant"]
    plan = prune(vision, d + c["contextual"], c["contextual"])
    # the release's list; the plan has raster order
    falling = 1 + s.argsort(dim=1, descending=True, stable=True)[:, : d - 1]
    falling = torch.cat([torch.zeros_like(falling[:, :1]), falling], dim=1)
    if not torch.equal(falling.sort(dim=1).values, plan.index[:, :d]):
        raise ValueError("the plan's dominant tokens are not the top of the score")
    return dict(
        hidden_states=hidden,
        attention=attention,
        metric=vision.keys,
        score=s,
        dominant_indices=falling,
        tokens_out=plan.apply(hidden),
    )


@adapter(
    "visiondrop",
    "LlamaModel.visiondrop_forward, visiondrop_rank_drop",
    inputs=("inputs_embeds", *LLAMA),
)
def llm_stages(case):
    from vtlib.pruning.visiondrop import stages, visual_score
    from vtlib.vlm.decoder import Decoder, splice

    c = case.config
    model = Decoder(
        c["hidden_size"],
        c["num_hidden_layers"],
        c["num_attention_heads"],
        c["num_key_value_heads"],
        c["intermediate_size"],
        rope_base=c["rope_theta"],
        eps=c["rms_norm_eps"],
    )
    weights = case.weights("model.")
    weights.pop("embed_tokens.weight", None)
    model.load_state_dict(weights)
    start, budgets = c["system_tokens"], [tuple(pair) for pair in c["image_token_list"]]
    visual = slice(start, start + c["visual_tokens_in"])
    cuts = stages(budgets, len(model.layers), c["layer_list"])
    run = model.prefill(case.tensors["inputs_embeds"], visual, cuts)
    out = dict(last_hidden_state=run.hidden)
    for i, (state, plan, (d, _)) in enumerate(zip(run.states, run.plans, budgets, strict=True)):
        out |= {
            f"stage{i}.hidden_in": state.hidden,
            f"stage{i}.importance": visual_score(state),
            f"stage{i}.dominant_indices": plan.index[:, :d],
            f"stage{i}.hidden_out": splice(state.hidden, state.visual, plan.apply),
        }
    return out
