"""Exercises on ETT: the choice of a code that lets the gradient through."""

import torch

from vtlib.teach.exercises import Wrong, check, expect


def soft_choice(z, codebook):
    """z (N, D), codebook (K, D) -> codes (N, D), whose gradient reaches every code."""
    p = (z @ codebook.T).softmax(dim=1)
    hard = torch.nn.functional.one_hot(p.argmax(dim=1), len(codebook)).to(p.dtype)
    return (hard + p - p.detach()) @ codebook


def _straight(z, codebook):
    index = (z @ codebook.T).argmax(dim=1)
    return z + (codebook[index] - z).detach()


def _looked_up(z, codebook):
    return codebook[(z @ codebook.T).argmax(dim=1)]


def _no_softmax(z, codebook):
    s = z @ codebook.T
    hard = torch.nn.functional.one_hot(s.argmax(dim=1), len(codebook)).to(s.dtype)
    return (hard + s - s.detach()) @ codebook


def _soft(z, codebook):
    return (z @ codebook.T).softmax(dim=1) @ codebook


def _undetached(z, codebook):
    p = (z @ codebook.T).softmax(dim=1)
    hard = torch.nn.functional.one_hot(p.argmax(dim=1), len(codebook)).to(p.dtype)
    return (hard + p) @ codebook


def _cancelled(z, codebook):
    p = (z @ codebook.T).softmax(dim=1)
    hard = torch.nn.functional.one_hot(p.argmax(dim=1), len(codebook)).to(p.dtype)
    return (hard + (p - p).detach()) @ codebook


def _by_distance(z, codebook):
    p = (-torch.cdist(z, codebook)).softmax(dim=1)
    hard = torch.nn.functional.one_hot(p.argmax(dim=1), len(codebook)).to(p.dtype)
    return (hard + p - p.detach()) @ codebook


def _over_rows(z, codebook):
    p = (z @ codebook.T).softmax(dim=0)
    hard = torch.nn.functional.one_hot(p.argmax(dim=1), len(codebook)).to(p.dtype)
    return (hard + p - p.detach()) @ codebook


VALUES = {
    "this is the soft mixture p @ codebook; forwards exactly ONE code is chosen": _soft,
    "p is added and never taken away: hard + p - p.detach()": _undetached,
    "softmax over the positions; the K codes compete, axis 1": _over_rows,
    "the code is chosen by distance; IBQ scores by plain products z . e": _by_distance,
}
GRADIENTS = {
    "a straight-through estimate: the codebook gets no gradient at all": _straight,
    "a plain look-up: z gets no gradient, and the codebook only at the chosen rows": _looked_up,
    "p takes no part in the gradient: add p and take p.detach() away": _cancelled,
    "the softmax is missing in the gradient's path": _no_softmax,
    "softmax over the positions; the K codes compete, axis 1": _over_rows,
}


def _gradients(fn, z, codebook, weight):
    """Of sum(weight * codes), for z and for the codebook; zeros where there is none."""
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in (z, codebook)]
        out = fn(*leaves)
        if not isinstance(out, torch.Tensor) or not out.requires_grad:
            raise Wrong("the codes have no gradient: something detaches all of them")
        found = torch.autograd.grad((weight * out).sum(), leaves, allow_unused=True)
    pairs = zip(found, leaves, strict=True)
    return tuple(torch.zeros_like(leaf) if got is None else got for got, leaf in pairs)


@check("ett.soft_choice", reference=soft_choice)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for count, size in ((6, 5), (9, 4)):
        z = torch.randn(count, 3, generator=generator)
        codebook = torch.randn(size, 3, generator=generator)
        causes = {text: slip(z, codebook) for text, slip in VALUES.items()}
        expect(fn(z, codebook), soft_choice(z, codebook), "the codes", causes)
        weight = torch.randn(count, 3, generator=generator)
        want = _gradients(soft_choice, z, codebook, weight)
        causes = {t: _gradients(slip, z, codebook, weight) for t, slip in GRADIENTS.items()}
        expect(_gradients(fn, z, codebook, weight), want, "the gradients of z and codebook", causes)
