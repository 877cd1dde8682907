"""GigaTok: the first queries, the Q-Formers, the CNN decoder's norm (its quantiser is in
adapters_quantize.py). ReToK: Q-Formers with redundant tokens."""

import torch
from einops import rearrange

from .adapters import adapter


@adapter("gigatok", "sample_multi_level_1d_tokens; depth_to_space", inputs=("x", "d2s_in"))
def query_init_pooling(case):
    from vtlib.nn.cnn import Upsample
    from vtlib.tokenizers.gigatok_qformer import pool_queries

    count, deep = 2 ** case.config["n_level"], case.tensors["d2s_in"]
    up = Upsample(deep.shape[1] // 4, "depth_to_space")
    up.conv = torch.nn.Identity()
    return {
        "tokens_row": pool_queries(case.tensors["x"], count),
        "tokens_col": pool_queries(case.tensors["x"], count, columns_first=False),
        "d2s_out": up(deep),
    }


@adapter(
    "gigatok", "AdaptiveGroupNorm.forward, D2SUpsampler.forward",
    inputs=(
        "gn.gamma.weight", "gn.gamma.bias", "gn.beta.weight", "gn.beta.bias", "up.conv1.weight",
        "up.conv1.bias", "h", "style", "up_in",
    ),
)
def adaptive_gn_d2s(case):
    from vtlib.nn.cnn import Upsample
    from vtlib.tokenizers.gigatok_cnn import AdaptiveGroupNorm

    c, t = case.config, case.tensors
    norm = AdaptiveGroupNorm(c["z_channels"], t["h"].shape[1], c["groups"], c["eps"])
    norm.load_state_dict(case.weights("gn."))
    up = Upsample(t["up_in"].shape[1], "depth_to_space")
    up.conv.load_state_dict(case.weights("up.conv1."))
    return {"gn_out": norm(t["h"], t["style"]), "up_out": up(t["up_in"])}


def sizes(config):
    """Of a Q-Former's width, layers and heads, and of what it reads and writes."""
    size = config["width"], config["layers"], config["heads"]
    tokens = config.get("num_latent_tokens") or config["N"]
    return size, config["token_size"], tokens, (config["grid"], config["grid"])


def names(prefix, *parts):
    """Official names of a Q-Former's weights, which a case holds under a prefix of its own."""
    layer = [
        f"{attention}.{name}"
        for attention in ("self_attn", "multihead_attn")
        for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    ]
    ends = [f"{name}.{end}" for name in parts for end in ("weight", "bias")]
    inner = ["linear1", "linear2", "norm1", "norm2", "norm3"]
    layer += [f"{name}.{end}" for name in inner for end in ("weight", "bias")]
    tables = ["positional_embedding", "latent_token_positional_embedding"]
    tables.append("latent_token_positional_embedding_comp")
    layers = [f"transformer.{i}.{name}" for i in range(2) for name in layer]
    return tuple(f"{prefix}{name}" for name in [*tables, *ends, *layers])


WEIGHTS = (
    *names("enc.", "encoder_embed", "global_proj", "ln_pre", "ln_post", "conv_out"),
    *names(
        "dec.", "decoder_embed", "ln_pre", "ln_post", "conv_out",
        "distill_mlp.0", "distill_mlp.2", "distill_mlp.4",
    ),
)


def to_map(tokens):
    return rearrange(tokens, "b n c -> b c 1 n")


@adapter(
    "gigatok",
    "ViTEncoder.forward, ViTDecoder.forward, semantic regularisation block of VQLoss.forward",
    inputs=("cnn_features", "dec_in", "dino_feat", *WEIGHTS),
)
def qformer_codec(case):
    from vtlib.tokenizers.gigatok import semantic_loss
    from vtlib.tokenizers.gigatok_qformer import QFormerDecoder, QFormerEncoder

    c, t = case.config, case.tensors
    encoder = QFormerEncoder(*sizes(c))
    encoder.load_state_dict(case.weights("enc."))
    decoder = QFormerDecoder(*sizes(c), c["alignment_layer"], c["out_inner_dim"])
    decoder.load_state_dict(case.weights("dec."))
    spatial, inner = decoder(rearrange(t["dec_in"], "b c 1 n -> b n c"))
    projected = decoder.project(inner)
    return {
        "enc_out": to_map(encoder(t["cnn_features"])),
        "dec_out": spatial,
        "dec_inner_feat_raw": inner,
        "dec_inner_feat_mlp": projected,
        "proj_loss": semantic_loss(projected, t["dino_feat"]).mean(),
    }


@adapter(
    "retok-flexible", "ViTEncoder.forward, ViTDecoder.forward",
    inputs=("cnn_features", "dec_in", *WEIGHTS),
)
def padded_codec(case):
    from vtlib.tokenizers.retok import PaddedDecoder, PaddedEncoder, prefix_mask

    c, t = case.config, case.tensors
    encoder = PaddedEncoder(*sizes(c))
    decoder = PaddedDecoder(*sizes(c), align_layer=1, teacher_dim=None)
    for part, prefix in ((encoder, "enc."), (decoder, "dec.")):
        part.pad(c["N"] - c["M"], c["M"])
        part.load_state_dict(case.weights(prefix))
    codes = rearrange(t["dec_in"], "b c 1 n -> b n c")
    out = {"enc_out": to_map(encoder(t["cnn_features"]))}
    out["dec_out_default"] = decoder(codes[:, :c["N"]])[0]
    for name in t:
        kind, _, count = name.rpartition("_")
        if kind == "dec_out" and count.isdigit():
            out[name] = decoder(codes[:, :int(count)])[0]
        if kind == "dec_out_padding_mask":
            kept = codes[:, :c["N"]]
            mask = prefix_mask(torch.tensor([int(count)]).expand(len(kept)), c["N"])
            out[name] = decoder(kept, mask)[0]
    return out
