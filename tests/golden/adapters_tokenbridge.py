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
