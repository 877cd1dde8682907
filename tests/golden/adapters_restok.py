"""Golden cases of ResTok: its parts, encoder, decoder, and the generator."""

import torch
from einops import rearrange

from .adapters import adapter


@adapter(
    "restok", "sample_multi_level_1d_tokens, multi_level_1d_features_to_2d_maps_avg", inputs=("x",)
)
def pyramid(case):
    from vtlib.tokenizers.restok_levels import pool_levels, sum_levels

    grids, x = [tuple(grid) for grid in case.config["level_grids"]], case.tensors["x"]
    out = {}
    for name, residual in (("residual", True), ("plain", False)):
        tokens = pool_levels(x, grids, residual)
        out[f"tokens_{name}"] = tokens
        out[f"map_from_{name}"] = sum_levels(tokens, grids, x.shape[-2:], residual)
    return out


@adapter(
    "restok",
    "build_hierarchical_causal_mask, EmbedNDHybridMulti2DMaker, EmbedNDHybrid2DMaker, apply_rope",
    inputs=("q", "k"),
)
def mask_and_rope(case):
    from vtlib.tokenizers.restok_levels import block_causal_mask
    from vtlib.tokenizers.restok_nets import grid_positions, rope_tables, rotate_pairs

    c, t = case.config, case.tensors
    grids = [tuple(grid) for grid in c["image_grids_coarse_to_fine"]]
    head_dim = sum(c["axes_dim"])

    def matrices(cos, sin):
        rows = torch.stack([cos, -sin, sin, cos], dim=-1)
        return rearrange(rows, "l p (i j) -> 1 1 l p i j", i=2)

    encoder = rope_tables(grid_positions(grids, c["latent_length"]), head_dim, c["theta"])
    positions = grid_positions([c["decoder_grid"]], c["latent_length"], latents_first=True)
    return {
        "allowed": block_causal_mask(c["mask_blocks"])[None, None],
        "rope_encoder": matrices(*encoder),
        "rope_decoder": matrices(*rope_tables(positions, head_dim, c["theta"])),
        "q_rot": rotate_pairs(t["q"], *encoder),
        "k_rot": rotate_pairs(t["k"], *encoder),
    }


@adapter("restok", "ResTokTransformerBlock.forward", inputs=("x",))
def block(case):
    from vtlib.tokenizers.restok_nets import ResTokBlock

    c, x = case.config, case.tensors["x"]
    net = ResTokBlock(c["width"], c["heads"], "nearest", c["residual_image_tokens"]).eval()
    net.load_state_dict({name: case.tensors[name] for name in net.state_dict()})
    return {"out": net(x, merged=c["num_image_tokens"]), "out_no_merge": net(x)} | net.state_dict()


@adapter("restok", "ResTokEncoder.forward", inputs=("cnn_features",))
def encoder(case):
    from vtlib.tokenizers.restok_nets import ResTokEncoder

    c, x = case.config, case.tensors["cnn_features"]
    weights, out = case.weights("enc."), {}
    for name, legacy in (("latents_legacy", True), ("latents_non_legacy", False)):
        net = ResTokEncoder(
            x.shape[1], c["width"], c["layers"], c["heads"], c["num_latent_tokens"],
            c["token_size"], c["hierarchy_stages"], "nearest", c["residual_image_tokens"],
            c["residual_latent_tokens"], legacy,
        ).eval()
        net.load_state_dict(weights)
        found = net(x)
        out[name] = rearrange(found.latents, "b l c -> b c 1 l")
    levels = {f"image_tokens_{i}": level for i, level in enumerate(found.levels)}
    return out | levels | {f"enc.{name}": value for name, value in weights.items()}


@adapter("restok", "ResTokDecoder.forward", inputs=("z", "keep"))
def decoder(case):
    from vtlib.tokenizers.restok_levels import nested_lengths, nested_probabilities
    from vtlib.tokenizers.restok_nets import ResTokDecoder

    c, t = case.config, case.tensors
    weights = case.weights("dec.")
    features = c["decoder_feature_supervision"]
    net = ResTokDecoder(
        weights["ffn.weight"].shape[0], c["width"], c["layers"], c["heads"],
        c["num_latent_tokens"], c["token_size"], features,
    ).eval()
    net.load_state_dict(weights)
    codes, grid = rearrange(t["z"], "b c 1 l -> b l c"), (c["grid"], c["grid"])
    out, seen = net(codes, grid, t["keep"], features)
    drop = 1 / int(1 / c["drop_prob"])                  # the release rounds 1 / drop to an integer
    lengths = nested_lengths(c["num_latent_tokens"], c["num_min_tokens"])
    found = {
        "out_per_sample": out, "out_full": net(codes, grid)[0],
        "out_first4": net(codes, grid, 4)[0], "nested_lengths": torch.tensor(lengths),
        "nested_probs": nested_probabilities(c["num_latent_tokens"], c["num_min_tokens"], drop),
    }
    if features:
        found["vf_feat_per_sample"] = rearrange(seen, "b (h w) d -> b d h w", h=c["grid"])
    return found | {f"dec.{name}": value for name, value in weights.items()}


@adapter(
    "restok",
    "Transformer.forward (training layout), generate_har (greedy: sample_logits=False)",
    inputs=("tokens", "classes"),
)
def generator(case):
    from vtlib.tokenizers.restok_har import HAR
    from vtlib.tokenizers.restok_levels import block_causal_mask

    c, t = case.config, case.tensors
    net = HAR(
        c["vocab"], c["block_size"], c["num_classes"], c["dim"], c["layers"], c["heads"],
        c["ar_token_num"], multiple=16, base=c["rope_base"], eps=c["norm_eps"],
    ).eval()
    weights = {name: t[name] for name in net.state_dict()}
    net.load_state_dict(weights)
    guided = net.generate(t["classes"], c["cfg_scale_for_greedy_cfg"], temperature=0)
    return weights | {
        "logits": net(t["tokens"], t["classes"]), "loss": net.loss(t["tokens"], t["classes"]),
        "allowed": block_causal_mask([stop - first for first, stop in net.groups]),
        "greedy": net.generate(t["classes"], temperature=0), "greedy_cfg": guided,
    }
