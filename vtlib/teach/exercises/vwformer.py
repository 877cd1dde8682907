"""Exercise on VWFormer: a row of a map, widened by copies of itself."""

import torch

from vtlib.segmentation.vwformer import pad_axis
from vtlib.teach.exercises import check, expect


def copy_shift(row, ratio, window):
    """row (..., w), R, P -> (..., w + (R - 1) P): strips of the row itself on both sides."""
    return pad_axis(row, row.dim() - 1, ratio, row.shape[-1] // window, "copy_shift")


def _slipped(row, ratio, window, how):
    """`copy_shift` with one thing done differently."""
    width, strip = row.shape[-1], (ratio - 1) * window // 2
    inner, outer = (ratio + 1) * window // 2, ratio * window
    left, right = row[..., inner:outer], row[..., width - outer : width - inner]
    sides = {
        "zeros": (torch.zeros_like(left), torch.zeros_like(right)),
        "edge": (row[..., :strip], row[..., width - strip :]),
        "mirror": (row[..., :strip].flip(-1), row[..., width - strip :].flip(-1)),
        "wrap": (row[..., width - strip :], row[..., :strip]),
        "swapped": (right, left),
        "outside": (row[..., outer : outer + strip], left),
        "flipped": (left.flip(-1), right.flip(-1)),
    }
    before, after = sides[how]
    return torch.cat([before, row, after], dim=-1)


def _causes(row, ratio, window):
    return {
        "the strips are zeros; they are copies of the row": _slipped(row, ratio, window, "zeros"),
        "the strips are the nearest pixels, which the border window sees already; it would see "
        "them twice": _slipped(row, ratio, window, "edge"),
        "the strips are mirrored; they keep their order": _slipped(row, ratio, window, "mirror"),
        "the strips come from the other end of the row; each is taken from its own side":
            _slipped(row, ratio, window, "wrap"),
        "left and right are swapped": _slipped(row, ratio, window, "swapped"),
        "the strips are in reverse order; they keep their order":
            _slipped(row, ratio, window, "flipped"),
        "the row came back as it was: nothing stands on its sides": row,
    }


@check("vwformer.copy_shift", reference=copy_shift)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for ratio, window, shape in ((2, 2, (12,)), (4, 2, (3, 10)), (3, 4, (2, 2, 16))):
        row = torch.rand(shape, generator=generator)
        got, want = fn(row, ratio, window), copy_shift(row, ratio, window)
        what = f"the row for R = {ratio}, P = {window}"
        expect(got, want, what=what, mistakes=_causes(row, ratio, window))
