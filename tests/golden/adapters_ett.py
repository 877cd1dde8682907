"""ETT: the quantiser of IBQ, the tokenizer that it tunes."""

import torch
from einops import rearrange

from .adapters import adapter

FUNCTION = "IndexPropagationQuantize.forward, compute_entropy_loss, get_codebook_entry"


@adapter("ett", FUNCTION, inputs=("z", "codebook", "upstream_grad"))
def ibq_quantizer(case):
    from vtlib.quantize import IBQ

    c, t = case.config, case.tensors
    net = IBQ(
        c["dim"],
        c["K"],
        codebook_weight=c["beta"],
        entropy_weight=c["entropy_loss_weight_in_grad"],
        entropy_temperature=c["entropy_temperature"],
    )
    net.codebook.copy_(t["codebook"])
    with torch.enable_grad():
        z = t["z"].clone().requires_grad_()
        x = rearrange(z, "b d h w -> b h w d")
        out, terms = net(x), net.terms(x)
        z_q = rearrange(out.codes, "b h w d -> b d h w")
        both = (z, net.codebook)
        through = torch.autograd.grad(z_q, both, t["upstream_grad"], retain_graph=True)
        of_losses = torch.autograd.grad(out.loss, both)
    return {
        "z_q": z_q,
        "indices": out.indices.flatten(),
        "quant_loss": terms.soft + terms.commitment + net.codebook_weight * terms.codebook,
        "sample_entropy": terms.sample_entropy,
        "avg_entropy": terms.codebook_entropy,
        "entropy_loss": terms.sample_entropy - terms.codebook_entropy,
        "grad_z_from_zq": through[0],
        "grad_codebook_from_zq": through[1],
        "grad_z_from_losses": of_losses[0],
        "grad_codebook_from_losses": of_losses[1],
        "entry": rearrange(net.decode(out.indices), "b h w d -> b d h w"),
    }
