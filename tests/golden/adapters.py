"""One adapter per (slug, function) of the golden cases.

It builds vtlib's model from the case's config and weights and returns named outputs. An adapter may
return more than a case holds; the runner compares what the case holds. Here are those of the
multi-scale papers; others have files of their own, `adapters_<module>.py` in this folder, which
`find` imports.
"""

import functools
import importlib
import pathlib

import torch
import torch.nn.functional as F
from einops import rearrange

ADAPTERS, INPUTS = {}, {}


def adapter(slug, function, inputs=()):
    """Register a function Case -> {tensor name: value}.

    Args:
        slug: of the paper.
        function: of the official code, as the case names it.
        inputs: tensors of the case that are not results.
    """

    def register(fn):
        ADAPTERS[slug, function] = fn
        INPUTS[slug, function] = tuple(inputs)
        return fn

    return register


@functools.cache
def _import_families():
    for file in sorted(pathlib.Path(__file__).parent.glob("adapters_*.py")):
        importlib.import_module(f"{__package__}.{file.stem}")


def find(slug, function):
    _import_families()
    return ADAPTERS.get((slug, function))


def record(module, into, name, pick=lambda args, out: out):
    """Put a module's output into a dict whenever it runs."""
    module.register_forward_hook(lambda _, args, out: into.__setitem__(name, pick(args, out)))


# ---------------------------------------------------------------- crossvit
@adapter("crossvit", "VisionTransformer.forward (CrossViT)", inputs=("image",))
def crossvit(case):
    from vtlib.multiscale.crossvit import CrossViT

    c = case.config
    size = c["img_size"] if isinstance(c["img_size"], list) else [c["img_size"]] * 2
    model = CrossViT(
        size,
        c["patch_size"],
        c.get("in_chans", 3),
        c["num_classes"],
        c["embed_dim"],
        c["depth"],
        c["num_heads"],
        c["mlp_ratio"],
        c.get("qkv_bias", True),
        multi_conv=c.get("multi_conv", False),
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = c.get("norm_layer_eps", 1e-6)
    model.load_state_dict(case.weights())
    out = {}
    for k, encoder in enumerate(model.blocks):
        for i in (0, 1):
            name = f"multiscale_{k}_branch{i}_out"
            record(encoder, out, name, lambda args, result, i=i: result[i])
    for k, encoder in enumerate(model.blocks):
        for i in (0, 1):
            name = f"fusion{i}" if k == 0 else f"multiscale_{k}_fusion{i}"
            record(encoder.fusion[i], out, f"{name}_in", lambda args, result: args[0])
            record(encoder.fusion[i], out, f"{name}_out")
    out["logits"] = model(case.tensors["image"])
    for i, tokens in enumerate(model.tokens(case.tensors["image"])):
        out[f"cls_feature_branch{i}"] = tokens[:, 0]
    return out


# ---------------------------------------------------------------- crossformer
def per_block_groups(case):
    """Group sizes as the case says.

    The released schedules other than "constant" are listed block by block in `more.blocks`.
    """
    c = case.config
    if c.get("group_type", "constant") == "constant":
        return c["group_size"]
    sizes = [[] for _ in c["depths"]]
    for block in case.info["more"]["blocks"]:
        sizes[block["stage"]].append(block["group_size"])
    return sizes


def grouping(size, interval):
    """How CrossFormer cuts a map into groups: adjacent tokens (SDA), or every interval-th (LDA)."""
    from vtlib.multiscale.crossformer import group_lda, group_sda

    if interval is None:
        return lambda t: group_sda(t, size)
    return lambda t: group_lda(t, size, interval)


@adapter("crossformer", "CrossFormer.forward", inputs=("image",))
def crossformer(case):
    from vtlib.hub import convert_crossformer
    from vtlib.multiscale.crossformer import CrossFormer, padding_mask

    c = case.config
    model = CrossFormer(
        c["patch_size"],
        c.get("in_chans", 3),
        c["num_classes"],
        c["embed_dim"],
        c["depths"],
        c["num_heads"],
        per_block_groups(case),
        c["crs_interval"],
        c["merge_size"],
        c["mlp_ratio"],
        cooling=c.get("use_acl", False),
    ).eval()
    model.load_state_dict(convert_crossformer(case.weights()))
    out = {}

    def keep(block, args, result, name):
        grid = args[1]
        size, interval = block.plan(*grid)
        step = size * (interval or 1)
        mask = padding_mask(*grid, (-grid[0] % step, -grid[1] % step), grouping(size, interval))
        out[f"{name}_out"] = result
        out[name.replace("stage", "dpb_stage")] = block.attn.pos.table(size)
        if mask is not None:
            out[name.replace("stage", "mask_stage")] = mask[:, 0]

    record(model.patch_embed, out, "cel_embed_out")
    for s, stage in enumerate(model.layers):
        record(stage, out, f"stage{s}_out", lambda args, result: result[0])
        if stage.downsample is not None:
            record(stage.downsample, out, f"stage{s}_merge_in", lambda args, result: args[0])
        for j, block in enumerate(stage.blocks):
            block.register_forward_hook(functools.partial(keep, name=f"stage{s}_block{j}"))
    out["logits"] = model(case.tensors["image"])
    out["pooled_feature"] = model.tokens(case.tensors["image"]).mean(dim=1)
    return out


@adapter("crossformer", "CrossFormerBlock.forward", inputs=("x",))
def crossformer_block(case):
    from vtlib.multiscale.crossformer import CrossFormerBlock, padding_mask
    from vtlib.nn import pad_to_multiple

    c = case.config
    weights = case.weights()
    block = CrossFormerBlock(
        c["dim"],
        c["num_heads"],
        c["group_size"],
        c["interval"],
        c["kind"].lower(),
        c["mlp_ratio"],
        cooling="ex_conv.weight" in weights,
    ).eval()
    block.load_state_dict(weights)
    h, w = c["input_resolution"]
    size, interval = block.plan(h, w)
    group = grouping(size, interval)
    out = {}
    record(block.attn, out, "grouped_in", lambda args, result: args[0].flatten(0, 1))
    record(block.attn, out, "grouped_out", lambda args, result: result.flatten(0, 1))
    out["y"] = block(case.tensors["x"], (h, w))
    number = torch.arange(1, h * w + 1).reshape(1, h, w, 1)
    padded, pad = pad_to_multiple(number, size * (interval or 1))
    out["group_member_index"] = group(padded)[0, :, :, 0] - 1                # padding: 0 - 1 = -1
    mask = padding_mask(h, w, pad, group)
    if mask is not None:
        out["mask"] = mask[:, 0].expand(-1, size * size, -1)
    out["dpb"] = block.attn.pos.table(size)
    return out


# ---------------------------------------------------------------- tokenformer
@adapter(
    "tokenformer",
    "Pattention.forward / Pattention.nonlinear_norm_func",
    inputs=("x", "mask", "router_index", "grow_new_values"),
)
def pattention(case):
    from vtlib.multiscale.tokenformer import NORMS, Pattention

    c, t = case.config, case.tensors
    asked = str(c.get("norm_activation_type", ""))
    default = next((kind for kind in NORMS if asked.startswith(kind)), NORMS[0])

    def build(kind):
        sizes = c["input_channels"], c["output_channels"], c["param_token_num"]
        layer = Pattention(*sizes, kind, scale=c.get("scale") or 1.0)
        layer.load_state_dict(case.weights())
        return layer

    out, layer = {}, build(default)
    for kind in NORMS:
        out[f"out_{kind}"] = build(kind)(t["x"])
        out[f"weights_{kind}"] = build(kind).weights(t["x"])
    if "mask" in t:
        out["out_masked"] = layer(t["x"], mask=t["mask"])
    if "router_index" in t:
        out["out_routed"] = layer(t["x"], index=t["router_index"])
    if "grow_new_values" in t:
        out |= grown_outputs(lambda: build(default), t["x"], t["grow_new_values"])
    return out


def grown_outputs(build, x, new_values):
    """What a layer says after growth, with tau computed anew and with tau as it was."""
    before, out = build()(x), {}
    for name, keep_tau in (("recomputed", False), ("fixed", True)):
        grown = build().grow(len(new_values), keep_tau=keep_tau)
        grown.value_param_tokens[-len(new_values) :] = new_values
        out[f"out_grown_tau_{name}"] = grown(x)
    change = (out["out_grown_tau_recomputed"] - before).abs().max()
    out["max_change_after_growth_tau_recomputed"] = change
    if not torch.allclose(out["out_grown_tau_fixed"], before, atol=1e-6):
        raise ValueError("growing with zero keys and a fixed tau changed the output")
    return out


@adapter("tokenformer", "ParallelTokenformerLayer.forward (stack)", inputs=("hidden_in",))
def tokenformer_stack(case):
    from vtlib.nn import rope_1d

    c = case.config
    rotary = c.get("rotary_pct", 1.0) if c.get("pos_emb") == "rotary" else 0.0
    x, out = rearrange(case.tensors["hidden_in"], "t b d -> b t d"), {}

    def flip(tensor):
        return rearrange(tensor, "b t d -> t b d")

    for i in range(c["layers"]):
        block = tokenformer_block(c, rotary, case.weights(f"w.layer{i}."))
        attention = block.attention
        parts = {
            "query": attention.query,
            "key": attention.key,
            "value": attention.value,
            "proj": attention.proj,
            "ffn": block.mlp,
        }
        for name, part in parts.items():
            record(part, out, f"layer{i}_{name}_in", lambda args, result: flip(args[0]))
            record(part, out, f"layer{i}_{name}_out", lambda args, result: flip(result))
        x = block(x)
        out[f"hidden_after_layer{i}"] = flip(x)
    out["hidden_out"] = flip(x)
    if rotary:
        turned = int(c["hidden_size"] // c["num_attention_heads"] * rotary)
        cos, sin = rope_1d(x.shape[1], turned, c.get("rotary_emb_base", 10000))
        out["rotary_cos"], out["rotary_sin"] = cos, sin
    out["hidden_final_norm"] = flip(F.layer_norm(x, x.shape[-1:], eps=1e-5))
    return out


def tokenformer_block(c, rotary, weights):
    from vtlib.multiscale.tokenformer import TokenFormerBlock

    block = TokenFormerBlock(
        c["hidden_size"],
        c["num_attention_heads"],
        c["qkv_slot_num"],
        c["proj_slot_num"],
        c["ffn_slot_num"],
        rotary,
        causal=True,
        eps=c.get("layernorm_epsilon", 1e-5),
        kind=c["norm_activation_type"],
    )
    block.load_state_dict(weights)
    return block
