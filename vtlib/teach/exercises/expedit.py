"""Exercises on Expedit: one step of the clustering, the weights of the reconstruction."""

import torch

from vtlib.segmentation import expedit
from vtlib.teach.exercises import check, expect

# ------------------------------------------------------------------------------------ one step


def kmeans_step(tokens, centres, allowed, tau):
    """tokens (N, C), centres (M, C), allowed (N, M) bool -> the centres (M, C) one step later."""
    return _step(tokens, centres, allowed, tau)


def _distances(x, y):
    return (x[:, None] - y).square().sum(dim=2)


def _step(
    tokens, centres, allowed, tau, sign=-1, dim=1, mask="before", divide=True, squared=True,
    hard=False,
):
    """`kmeans_step` with one thing done differently."""
    distance = _distances(tokens, centres)
    logits = sign * tau * (distance if squared else distance.sqrt())
    if mask == "before":
        logits = logits.masked_fill(~allowed, float("-inf"))
    elif mask == "inverted":
        logits = logits.masked_fill(allowed, float("-inf"))
    elif mask == "zero":
        logits = logits * allowed
    share = logits.softmax(dim=dim)
    if hard:
        share = torch.nn.functional.one_hot(share.argmax(1), len(centres)).to(tokens.dtype)
    if mask == "after":
        share = share * allowed
    total = share.T @ tokens
    return total / share.sum(0)[:, None] if divide else total


def _step_causes(tokens, centres, allowed, tau):
    def variant(**changed):
        return lambda: _step(tokens, centres, allowed, tau, **changed)

    return {
        "the centres came out as they went in": centres,
        "the minus sign is missing: the NEAREST centre gets the largest share": variant(sign=1),
        "the softmax runs over the tokens; each token shares itself out over the centres, axis 1":
            variant(dim=0),
        "the window is ignored: where `allowed` is False the share must be 0":
            variant(mask="none"),
        "the window is the wrong way round: masked_fill fills where its mask is True, so give it"
        " ~allowed": variant(mask="inverted"),
        "the window came after the softmax: then a token's shares no longer sum to 1":
            variant(mask="after"),
        "forbidden logits are 0, and exp(0) = 1 is a large share; they must be -inf":
            variant(mask="zero"),
        "the sums are not divided by the centre's total share: a mean is wanted":
            variant(divide=False),
        "the distances are not squared": variant(squared=False),
        "each token went to one centre alone; shares are soft": variant(hard=True),
        "tau divides the distances; here it multiplies":
            lambda: _step(tokens, centres, allowed, 1 / tau),
    }


@check("expedit.kmeans_step", reference=kmeans_step)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for size, grid, tau in (((4, 6), (2, 3), 0.7), ((5, 5), (4, 5), 0.3)):
        tokens = torch.randn(size[0] * size[1], 3, generator=generator)
        centres = torch.randn(grid[0] * grid[1], 3, generator=generator)
        allowed = expedit.window_mask(size, grid, 3)
        given = tokens, centres, allowed, tau
        expect(
            fn(*given), _step(*given), what="the centres after one step",
            mistakes=_step_causes(*given),
        )


# ---------------------------------------------------------------------------------- reconstruction


def rebuild_weights(before, centres, k, tau):
    """before (N, C), centres (M, C) -> (N, M), rows sum to 1, 0 but for the k nearest centres."""
    return _weights(before, centres, k, tau)


def _weights(before, centres, k, tau, norm=1, largest=False, sign=-1, late=False, dim=1):
    """`rebuild_weights` with one thing done differently."""
    distance = _distances(before, centres)
    found = distance.topk(k, dim=dim, largest=largest).indices
    kept = torch.zeros_like(distance).scatter(dim, found, 1.0)
    weight = (sign * tau * distance).exp()
    if late:
        return weight / weight.sum(1, keepdim=True) * kept
    weight = weight * kept
    if norm is None:
        return weight
    if norm == 2:
        return weight / weight.square().sum(1, keepdim=True).sqrt()
    return weight / weight.sum(dim, keepdim=True)


def _weight_causes(before, centres, k, tau):
    def variant(**changed):
        return lambda: _weights(before, centres, k, tau, **changed)

    return {
        "the weights are divided by their L2 norm, as in the released code; here they sum to 1":
            variant(norm=2),
        "the weights are not divided by their sum": variant(norm=None),
        "the k FARTHEST centres were kept: topk wants the largest weights, or the smallest"
        " distances": variant(largest=True),
        "the minus sign is missing: near centres weigh more": variant(sign=1),
        "first cut to k, then divide: after the cut the row must sum to 1 again":
            variant(late=True),
        "all centres were kept; only the k nearest of each token count":
            lambda: _weights(before, centres, len(centres), tau),
        "the k nearest TOKENS of each centre were kept; wanted are the k nearest centres of each"
        " token, axis 1": variant(dim=0),
        "tau divides the distances; here it multiplies":
            lambda: _weights(before, centres, k, 1 / tau),
    }


@check("expedit.rebuild_weights", reference=rebuild_weights)
def _(fn):
    generator = torch.Generator().manual_seed(1)
    for n, m, k, tau in ((10, 6, 3, 0.6), (8, 5, 2, 0.25)):
        before = torch.randn(n, 4, generator=generator)
        centres = torch.randn(m, 4, generator=generator)
        given = before, centres, k, tau
        expect(
            fn(*given), _weights(*given), what=f"the weights of the {k} nearest centres",
            mistakes=_weight_causes(*given),
        )
