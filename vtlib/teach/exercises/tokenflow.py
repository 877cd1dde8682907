"""Exercises of notebook 02: a round of k-means, the straight-through gradient, the two terms of the
loss, TokenFlow's shared index."""

import torch
import torch.nn.functional as F

from vtlib.quantize import nearest
from vtlib.teach.exercises import Wrong, check, expect

# ---------------------------------------------------------------------- round of k-means


def lloyd_step(x, codes):
    """x (N, D), codes (K, D) -> indices (N,) of the nearest codes, and the codes moved to the means
    of what fell to them; a code with nothing stays."""
    indices = nearest(x, codes)
    return indices, _means(x, codes, indices)


def _means(x, codes, indices, empty="stays", divide=True):
    """The codes' new places, or with one thing done differently."""
    count = torch.bincount(indices, minlength=len(codes))[:, None].to(x.dtype)
    total = torch.zeros_like(codes).index_add(0, indices, x)
    if not divide:
        return torch.where(count > 0, total, codes)
    if empty == "nan":
        return total / count
    moved = total / count.clamp(min=1)
    return moved if empty == "origin" else torch.where(count > 0, moved, codes)


def _lloyd_causes(x, codes):
    near = nearest(x, codes)
    far = torch.cdist(x, codes).argmax(dim=1)
    moved = _means(x, codes, near)
    return {
        "a code that nothing fell to became NaN, 0 / 0: it keeps its place":
            (near, _means(x, codes, near, empty="nan")),
        "a code that nothing fell to went to the origin: it keeps its place":
            (near, _means(x, codes, near, empty="origin")),
        "the codes became sums: divide by how many points fell to each":
            (near, _means(x, codes, near, divide=False)),
        "the indices are those of the farthest codes: argmin": (far, _means(x, codes, far)),
        "the indices were searched again after the codes had moved; this step returns the choice"
        " that the means were taken of": (nearest(x, moved), moved),
        "the codes did not move: each becomes the mean of its points": (near, codes),
    }


@check("tokenflow.lloyd_step", reference=lloyd_step)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for number, size, dim in ((40, 5, 2), (30, 4, 3)):
        x = torch.randn(number, dim, generator=generator)
        codes = torch.randn(size, dim, generator=generator)
        codes[1] = 50.0                                         # nothing is near it
        got, want = fn(x, codes), lloyd_step(x, codes)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong("the result: needs a pair (indices, new codes)")
        expect(tuple(got), want, what="(indices, new codes)", mistakes=_lloyd_causes(x, codes))


# ---------------------------------------------------------------------- straight through


def straight_through(codes, x):
    """codes and x (..., D) -> the values of codes, with the gradient of x."""
    return x + (codes - x).detach()


@torch.enable_grad()
def _passed(fn, codes, x, towards):
    """(values, gradient of codes, gradient of x) behind fn, zeros where there is none."""
    leaves = [t.clone().requires_grad_() for t in (codes, x)]
    out = fn(*(1 * leaf for leaf in leaves))                 # an answer may write into no leaf
    if not isinstance(out, torch.Tensor):
        raise Wrong(f"the result: found {type(out).__name__}, needs a tensor")
    expect(out.detach(), codes.detach(), what="the values", mistakes={
        "the values are those of x: the output is the code, only its gradient is x's": x.detach(),
    })
    if not out.requires_grad:
        raise Wrong("no gradient reaches x: everything is detached, and the encoder learns nothing")
    (out * towards).sum().backward()
    return [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]


@check("tokenflow.straight_through", reference=straight_through)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for shape in ((4, 3), (2, 5)):
        codes, x, towards = torch.randn(3, *shape, generator=generator)
        of_codes, of_x = _passed(fn, codes, x, towards)
        zero = torch.zeros_like(towards)
        expect(of_x, towards, what="the gradient of x", mistakes={
            "none of it reaches x: x - x cancels, gradient and all; detach the difference,"
            " (codes - x).detach()": zero,
            "x gets it with the wrong sign": -towards,
            "x gets it twice": 2 * towards,
        })
        expect(of_codes, zero, what="the gradient of the codes", mistakes={
            "codes get it as well: detach them here, the loss has a term of its own for them":
                towards,
        })


# ---------------------------------------------------------------------- the loss's terms


def vq_loss(x, codes, beta):
    """x, codes (N, D) -> mean (sg(x) - codes)^2 + beta mean (x - sg(codes))^2."""
    return F.mse_loss(codes, x.detach()) + beta * F.mse_loss(x, codes.detach())


def _loss_causes(x, codes, beta):
    """(gradient of x, gradient of codes) of what is written most naturally by mistake."""
    full = 2 * (x - codes) / x.numel()
    return {
        "the detaches are swapped: beta weighs the term that moves x, the commitment":
            (full, -beta * full),
        "nothing is detached: each term moves both": ((1 + beta) * full, -(1 + beta) * full),
        "beta weighs both terms; it belongs to the commitment alone": (beta * full, -beta * full),
        "beta is missing in the commitment": (full, -full),
        "no gradient reaches the codes: their term is missing, or detached":
            (beta * full, torch.zeros_like(full)),
        "no gradient reaches x: the commitment is missing, or detached":
            (torch.zeros_like(full), -full),
    }


@torch.enable_grad()
def _loss_gradients(fn, x, codes, beta):
    leaves = [t.clone().requires_grad_() for t in (x, codes)]
    loss = fn(*(1 * leaf for leaf in leaves), beta)
    if not isinstance(loss, torch.Tensor):
        raise Wrong(f"the loss: found {type(loss).__name__}, needs a tensor")
    if loss.requires_grad:
        loss.backward()
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]
    return loss.detach(), tuple(grads)


@check("tokenflow.vq_loss", reference=vq_loss)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for shape, beta in (((6, 3), 0.25), ((4, 2), 0.7)):
        x, codes = torch.randn(2, *shape, generator=generator)
        loss, got = _loss_gradients(fn, x, codes, beta)
        _, want = _loss_gradients(vq_loss, x, codes, beta)
        causes = _loss_causes(x, codes, beta)
        expect(got, want, what="the gradients of (x, codes)", mistakes=causes | {
            "a sum over all numbers; the mean is wanted":
                tuple(x.numel() * part for part in want),
        })
        expect(loss, vq_loss(x, codes, beta), what="the loss")


# ------------------------------------------------------------------------------- TokenFlow's choice


def shared_index(x, codes, cut, weight):
    """x (N, D), codes (K, D) -> (N,): argmin of d_sem + weight d_pix, halves of length 1."""
    return _shared(x, codes, cut, weight)


def _shared(x, codes, cut, weight, scale=True, squared=True, swap=False, joint=False):
    """`shared_index`, or with one thing done differently."""
    if joint:
        x, codes = F.normalize(x, dim=1), F.normalize(codes, dim=1)
    distances = []
    for part in (slice(None, cut), slice(cut, None)):
        a, b = x[:, part], codes[:, part]
        if scale and not joint:
            a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        distance = torch.cdist(a, b)
        distances.append(distance.square() if squared else distance)
    semantic, pixel = distances[::-1] if swap else distances
    return (semantic + weight * pixel).argmin(dim=1)


def _shared_causes(x, codes, cut, weight):
    def variant(**changed):
        return lambda: _shared(x, codes, cut, weight, **changed)

    return {
        "the halves were not scaled to length 1, in x and in the codes": variant(scale=False),
        "the whole vector was scaled to length 1; each half is, by itself": variant(joint=True),
        "distances were summed without the square": variant(squared=False),
        "weight multiplies the semantic distance; it belongs to the pixel half":
            variant(swap=True),
        "the choice was made by meaning alone":
            lambda: _shared(x, codes, cut, 0.0),
        "weight is missing: this is the plain sum": lambda: _shared(x, codes, cut, 1.0),
        "the farthest code was taken: argmin":
            lambda: _farthest(x, codes, cut, weight),
    }


def _farthest(x, codes, cut, weight):
    parts = [(F.normalize(x[:, p], dim=1), F.normalize(codes[:, p], dim=1))
             for p in (slice(None, cut), slice(cut, None))]
    semantic, pixel = (torch.cdist(a, b).square() for a, b in parts)
    return (semantic + weight * pixel).argmax(dim=1)


@check("tokenflow.shared_index", reference=shared_index)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for number, size, dim, cut, weight in ((60, 24, 6, 4, 0.5), (50, 30, 7, 3, 2.0)):
        x = torch.randn(number, dim, generator=generator)
        x = x * torch.rand(number, 1, generator=generator).add(0.3)
        codes = 2 * torch.randn(size, dim, generator=generator)
        codes[:, cut:] *= torch.rand(size, 1, generator=generator).add(0.2)
        got, causes = fn(x, codes, cut, weight), _shared_causes(x, codes, cut, weight)
        expect(got, shared_index(x, codes, cut, weight), what="the indices", mistakes=causes)
