"""Golden cases of vector quantisation: GigaTok's quantiser, of vectors of length 1."""

import torch
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
