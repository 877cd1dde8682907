"""Golden cases of vector quantisation: GigaTok's quantiser, of vectors of length 1; the scales of
TokenFlow, whose vectors have two halves of length 1."""

import torch
import torch.nn.functional as F
from einops import rearrange

from .adapters import adapter

FUNCTION = "VectorQuantizer.forward (train mode), compute_entropy_loss"


def quantiser(case, **options):
    from vtlib.quantize import VectorQuantizer

    c = case.config
    gradient = "rotation" if c["rotation_trick"] else "straight_through"
    net = VectorQuantizer(
        c["dim"], c["codebook_size"], learn="gradient", lookup="cosine", gradient=gradient,
        entropy_temperature=c["entropy_temperature"], **options,
    )
    net.codebook.copy_(case.tensors["codebook"])
    return net


@adapter("gigatok", FUNCTION, inputs=("z", "codebook", "upstream_grad", "distances"))
def gigatok(case):
    from vtlib.quantize.vq import entropy_loss

    c, tensors = case.config, case.tensors
    ratio, beta = c["entropy_loss_ratio"], c["beta"]
    net = quantiser(case, commitment_weight=beta, entropy_weight=ratio)
    plain = quantiser(case, commitment_weight=0)
    with torch.enable_grad():
        z = tensors["z"].clone().requires_grad_()
        x = rearrange(z, "b d h l -> b h l d")
        out, codebook_term = net(x), plain(x).loss
        z_q = rearrange(out.codes, "b h l d -> b d h l")
        (through,) = torch.autograd.grad(z_q, z, tensors["upstream_grad"], retain_graph=True)
        of_loss, of_codebook = torch.autograd.grad(out.loss, (z, net.codebook))
    entropy = entropy_loss(net.rows(x), net.table(), None, c["entropy_temperature"])
    return {
        "z_q": z_q, "indices": out.indices.flatten(), "vq_loss": codebook_term,
        "commit_loss": out.loss - codebook_term - ratio * entropy, "entropy_loss": ratio * entropy,
        "entropy_unweighted": entropy, "grad_z_from_zq": through, "grad_z_from_losses": of_loss,
        "grad_codebook_from_losses": of_codebook,
    }


@adapter(
    "tokenflow", "TokenFlow.encode (eval), TokenFlow.decode_code up to the input of decode",
    inputs=(
        "encode_task_layer.0.weight", "encode_task_layer.0.bias", "encode_task_layer.2.weight",
        "encode_task_layer.2.bias", "quantize.embedding_vqkd.weight",
        "quantize.embedding_vqgan.weight", "quant_conv.weight", "quant_conv.bias",
        "semantic_tokens", "pixel_map",
    ),
)
def tokenflow_scales(case):
    from vtlib.quantize import MultiScaleQuantizer, VectorQuantizer
    from vtlib.tokens.cosine import unit

    c, t = case.config, case.tensors
    parts = [c["d_sem"], c["d_pix"]]

    class Halves(VectorQuantizer):
        def normalised(self, vectors):
            return torch.cat([unit(part) for part in vectors.split(parts, dim=-1)], dim=-1)

    class Scales(MultiScaleQuantizer):
        quantizer = Halves

    net = Scales(sum(parts), c["K"], c["scales"], learn="gradient").eval()
    books = [t[f"quantize.embedding_{name}.weight"] for name in ("vqkd", "vqgan")]
    net.first.codebook.copy_(torch.cat(books, dim=1))
    weights = [t[f"encode_task_layer.{i}.{name}"] for i in (0, 2) for name in ("weight", "bias")]
    hidden = F.linear(t["semantic_tokens"], *weights[:2]).tanh()
    semantic = rearrange(F.linear(hidden, *weights[2:]), "b (h w) d -> b d h w", h=c["scales"][-1])
    pixels = F.conv2d(t["pixel_map"], t["quant_conv.weight"], t["quant_conv.bias"])
    h = torch.cat([semantic, pixels], dim=1)
    out = net(rearrange(h, "b d h w -> b h w d"))
    first = out.indices[:, :sum(side * side for side in c["scales"][:3])]
    sums = [rearrange(net.decode(i), "b h w d -> b d h w") for i in (out.indices, first)]
    return {
        "h": h, "final_quant": rearrange(out.codes, "b h w d -> b d h w"), "indices": out.indices,
        "decode_code_sum": sums[0], "decode_code_first3": sums[1],
    }
