"""TokenBridge: the quantisation of a trained VAE's latents, dimension by dimension."""

from einops import rearrange

from .adapters import adapter

PTQ = (
    "post_training_quantize; "
    "TokenBridge._init_gaussian_quantization, TokenBridge.quantize (both agree)"
)


@adapter("tokenbridge", PTQ, inputs=("x", "grid"))
def post_training_quantize(case):
    from vtlib.quantize.dimwise import DimensionWise, gaussian_bins

    c, t = case.config, case.tensors
    limits, r = (c["alpha_min"], c["alpha_max"]), c["r"]
    edges, means = gaussian_bins(c["levels"], r)

    def run(x):
        """x (..., C) -> (indices, values), both (..., C)."""
        net = DimensionWise(x.shape[-1], c["levels"], limits, r).to(x.dtype)
        if 2**net.bits != c["levels"] ** x.shape[-1]:
            raise ValueError(f"{net.bits} bits for {x.shape[-1]} channels")
        out = net(x)
        return out.indices, out.codes

    indices, values = run(rearrange(t["x"], "b c h w -> b h w c"))
    grid_indices, grid_values = run(t["grid"][:, None])
    return {
        "boundaries": edges,
        "reconstruction_values": means,
        "indices": rearrange(indices, "b h w c -> b c h w"),
        "dequant": rearrange(values, "b h w c -> b c h w"),
        "grid_indices": grid_indices[:, 0],
        "grid_dequant": grid_values[:, 0],
    }


MODEL = (
    "TokenBridge.forward parts (quantize, forward_mae_encoder, forward_mae_decoder, "
    "forward_channel_ar), _sample_channel_ar, sample_tokens"
)
GIVEN = ("classes", "latents", "mask", "orders", "ctx")


def official_net(case):
    from vtlib.tokenizers.tokenbridge_generator import MaskedGenerator, convert_official

    c, t = case.config, case.tensors
    side = round(c["img_size"] / 16)
    net = MaskedGenerator(
        (side, side), c["vae_channels"], t["class_emb.weight"].shape[0], c["quant_levels"],
        embed_dim=c["encoder_width"], num_layers=1, num_heads=c["heads"],
        decoder_dim=c["decoder_width"], num_buffer=c["buffer_size"], head_dim=c["channel_width"],
        head_layers=c["channel_depth"], head_heads=c["heads"], order=c["channel_order"],
    ).eval()
    net.load_state_dict(convert_official({name: t[name] for name in official_names(t)}))
    return net


def official_names(tensors):
    """Weights and buffers of the release: all that is neither given nor a result."""
    results = (
        *GIVEN, "channel_order_index", "dec_out", "enc_out", "greedy_reordered", "indices",
        "inverse_channel_order", "logits", "loss", "sampled_latents", "sampled_latents_cfg2",
        "targets_reordered", "values",
    )
    return [name for name in tensors if name not in results]


@adapter("tokenbridge", MODEL, inputs=GIVEN)
def training_and_sampling(case):
    import torch
    import torch.nn.functional as F

    from vtlib.quantize.dimwise import gaussian_bins
    from vtlib.tokenizers.tokenbridge import inverse_order
    from vtlib.tokens import take

    c, t = case.config, case.tensors
    net, order = official_net(case), torch.tensor(c["channel_order"])
    edges, means = gaussian_bins(c["quant_levels"])
    indices = net.quantizer(rearrange(t["latents"], "b c h w -> b (h w) c")).indices
    values, labels = net.quantizer.decode(indices), t["classes"]
    visible = t["mask"].argsort(dim=1, stable=True)[:, :int((1 - t["mask"][0]).sum())]
    encoded = net.encode(values, visible, net.embed(labels, len(labels)))
    logits = net(indices, visible, labels)
    truth = take(indices, net.masked(visible))
    options = dict(steps=c["num_iter"], temperature=c["temperature"], released=True)
    greedy, _ = net.head.sample(t["ctx"], 0, released=True)
    samples = [net.sample(labels, order=t["orders"], guidance=w, **options) for w in (1, 2)]
    sampled = [rearrange(net.quantizer.decode(i), "b h w c -> b c h w") for i in samples]
    weights = {name.removeprefix("head."): value for name, value in net.state_dict().items()}
    return {
        **weights, "boundaries": edges, "reconstruction_values": means,
        "channel_mask": torch.full((c["vae_channels"],) * 2, float("-inf")).triu(1),
        "channel_order_index": net.head.order, "inverse_channel_order": inverse_order(order),
        "indices": indices, "values": values, "targets_reordered": indices[..., order],
        "enc_out": encoded, "dec_out": net.decode(encoded, visible),
        "logits": logits.flatten(0, 1)[:, order],
        "loss": F.cross_entropy(logits.flatten(0, 2), truth.flatten()),
        "greedy_reordered": greedy[:, order],
        "sampled_latents": sampled[0], "sampled_latents_cfg2": sampled[1],
    }
