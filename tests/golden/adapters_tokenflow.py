"""TokenFlow: its quantiser of two halves, its scales, and the loss of its semantic half."""

import torch
from einops import rearrange

from .adapters import adapter

BOOKS = ("quantize.embedding_vqkd.weight", "quantize.embedding_vqgan.weight")
TASK = tuple(f"encode_task_layer.{i}.{name}" for i in (0, 2) for name in ("weight", "bias"))
CONV = ("quant_conv.weight", "quant_conv.bias")


def maps(x):
    return rearrange(x, "b h w d -> b d h w")


@adapter(
    "tokenflow",
    "VectorQuantizer.forward (train mode), get_codebook_entry; dist_* and *_only_indices recomputed"
    " from the same tensors",
    inputs=("z", "codebook_sem", "codebook_pix"),
)
def shared_mapping(case):
    from vtlib.tokenizers.tokenflow import SharedMapping

    c, t = case.config, case.tensors
    books = torch.cat([t["codebook_sem"], t["codebook_pix"]], dim=1)
    dim = c["d_sem"] + c["d_pix"]

    def quantiser(**options):
        net = SharedMapping(dim, c["K"], c["d_sem"], **{"pixel_weight": c["w_dis"], **options})
        net.codebook.copy_(books)
        return net

    options = dict(commitment_weight=c["beta"], entropy_weight=c["entropy_loss_ratio"])
    net, plain = quantiser(**options), quantiser(commitment_weight=0)
    with torch.enable_grad():
        z = t["z"].clone().requires_grad_()
        x = rearrange(z, "b d h w -> b h w d")
        out, codebook_term = net(x), plain(x).loss
        of_z, of_codebook = torch.autograd.grad(out.loss, (z, net.codebook))
    of_semantic, of_pixel = net.halves(of_codebook)
    semantic, pixel = (d.flatten(0, 2) for d in net.distances(x))
    only_pixel = quantiser(pixel_weight=1e8)(x).indices
    return {
        "z_q": maps(out.codes), "indices": out.indices.flatten(), "vq_loss": codebook_term,
        "commit_loss": out.loss - codebook_term, "entropy_loss": 0.0, "dist_sem": semantic,
        "dist_pix": pixel, "sem_only_indices": quantiser(pixel_weight=0)(x).indices.flatten(),
        "pix_only_indices": only_pixel.flatten(), "entry": net.decode(out.indices.flatten()),
        "grad_z": of_z, "grad_codebook_sem": of_semantic, "grad_codebook_pix": of_pixel,
    }


@adapter(
    "tokenflow", "TokenFlow.encode (eval), TokenFlow.decode_code up to the input of decode",
    inputs=(*TASK, *BOOKS, *CONV, "semantic_tokens", "pixel_map"),
)
def scales(case):
    """The whole model, with stand-ins for what the two encoders give."""
    from vtlib.nn import load_weights
    from vtlib.tokenizers.tokenflow import TokenFlow, convert_official

    c, t = case.config, case.tensors
    width, z_channels = t["semantic_tokens"].shape[-1], t["pixel_map"].shape[1]
    cnn = dict(channels=4, multipliers=(1, 1), num_res_blocks=1, groups=2)
    model = TokenFlow(
        c["scales"], c["K"], c["d_sem"], c["d_pix"], patch_size=2, embed_dim=width, num_layers=1,
        num_heads=1, teacher_dim=3, decoder_layers=1, decoder_heads=1, z_channels=z_channels,
        cnn=cnn,
    ).eval()
    state = convert_official({name: t[name] for name in (*TASK, *BOOKS, *CONV)})
    load_weights(model, model.state_dict() | state)
    model.encoder_vqkd.forward = lambda images: t["semantic_tokens"]
    model.encoder.forward = lambda images: t["pixel_map"]
    side = 2 * c["scales"][-1]
    images = torch.rand(len(t["pixel_map"]), 3, side, side)
    out = model.encode(images)
    first = out.indices[:, :sum(side * side for side in c["scales"][:3])]
    return {
        "h": maps(model.features(images)), "final_quant": maps(out.codes), "indices": out.indices,
        "decode_code_sum": maps(model.quantizer.decode(out.indices)),
        "decode_code_first3": maps(model.quantizer.decode(first)),
    }


@adapter(
    "tokenflow", "sample_with_top_k_top_p_ (filter part), VQLoss.calculate_clip_rec_loss",
    inputs=("logits", "rec", "target"),
)
def filters_and_loss(case):
    from vtlib.generation.sampling import filter_logits
    from vtlib.tokenizers.tokenflow import semantic_loss

    t, out = case.tensors, {}
    for asked in case.config["cases"]:
        kept = filter_logits(t["logits"], asked["top_k"], asked["top_p"]).isfinite()
        out[f"kept_k{asked['top_k']}_p{asked['top_p']}"] = kept
    return out | {"semantic_loss": semantic_loss(t["rec"], t["target"])}
