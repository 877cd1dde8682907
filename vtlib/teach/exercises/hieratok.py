"""Exercise on HieraTok: the scale-causal mask."""

import torch

from vtlib.teach.exercises import check, expect


def scale_mask(sides):
    """sides [s_1, s_2, ...], coarse to fine -> (T, T) bool, T the sum of s_k^2: True where the
    token of the row may look at the token of the column."""
    return _mask(sides)


def _mask(sides, rule="coarser", count="squares"):
    """`scale_mask`, or with one thing done differently."""
    counts = [side if count == "sides" else side**2 for side in sides]
    scale = torch.repeat_interleave(torch.arange(len(sides)), torch.tensor(counts))
    row, column = scale[:, None], scale[None]
    if rule == "tokens":
        return torch.ones(len(scale), len(scale), dtype=torch.bool).tril()
    return {
        "coarser": row >= column,
        "turned": row <= column,
        "strict": row > column,
        "own": row == column,
        "hidden": row < column,
    }[rule]


def _mask_causes(sides):
    def other(**change):
        return lambda: _mask(sides, **change)

    return {
        "rows and columns are swapped: here coarse tokens look at fine ones": other(rule="turned"),
        "a token does not see its own scale: >= in place of >": other(rule="strict"),
        "a token sees its own scale only: the coarser ones as well": other(rule="own"),
        "this is True where a token may NOT look": other(rule="hidden"),
        "this is causal token by token: inside a scale every token sees all": other(rule="tokens"),
        "a scale of side s has s * s tokens": other(count="sides"),
    }


@check("hieratok.scale_mask", reference=scale_mask)
def _(fn):
    for sides in ([1, 2], [1, 2, 4], [2, 3]):
        what = f"the mask of the scales {sides}"
        expect(fn(list(sides)), scale_mask(sides), what=what, mistakes=_mask_causes(sides))
