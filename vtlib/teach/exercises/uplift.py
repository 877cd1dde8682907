"""Exercises on UPLiFT: shifted copies, the Local Attender, the pairs that the multi-depth loss compares."""

import torch
import torch.nn.functional as F

from vtlib.superres import uplift
from vtlib.teach.exercises import check, expect, untouched

# -------------------------------------------------------------------------------------------------------------- shifted copies


def shifted(value, offsets):
    """value (B, C, h, w) -> (B, C, n, h, w): [:, :, k, y, x] = value[:, :, y + dy_k, x + dx_k], edges replicated."""
    return uplift.shifted(value, offsets)


def _copies(value, offsets, sign=1, swap=False, pad="replicate", dim=2):
    h, w = value.shape[-2:]
    padded = F.pad(value, (2, 2, 2, 2), mode=pad)
    moves = [(sign * (dx if swap else dy), sign * (dy if swap else dx)) for dy, dx in offsets]
    return torch.stack([padded[..., 2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w] for dy, dx in moves], dim=dim)


@check("uplift.shifted", reference=shifted)
def _(fn):
    value, offsets = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)), uplift.OFFSETS[17]
    with untouched(value):
        got = fn(value, offsets)
    expect(got, shifted(value, offsets), what="the shifted copies", mistakes={
        "the copies move the wrong way: copy k holds at (y, x) what stands at (y + dy, x + dx), so the cut starts at 2 + dy": lambda: _copies(value, offsets, -1),
        "dy and dx are swapped: rows are the axis before the last": lambda: _copies(value, offsets, swap=True),
        "the copies wrap around; torch.roll does that. At the edge the last value is repeated": lambda: torch.stack(
            [value.roll((-dy, -dx), (-2, -1)) for dy, dx in offsets], dim=2),
        "torch.roll wraps around, and with this sign it also moves the wrong way": lambda: torch.stack([value.roll((dy, dx), (-2, -1)) for dy, dx in offsets], dim=2),
        "zeros come in at the edge: cut from `padded`, whose edge repeats the last value": lambda: _copies(value, offsets, pad="constant"),
        "the padding mirrors; here the last value is repeated (replicate)": lambda: _copies(value, offsets, pad="reflect"),
        "the copies came out in front; stack them on axis 2, after the channels": lambda: _copies(value, offsets, dim=0),
        "the copies stand before the channels; stack them on axis 2": lambda: _copies(value, offsets, dim=1),
    })


# ---------------------------------------------------------------------------------------------------------- the Local Attender


def local_attender(guide, value, weight, bias, offsets):
    """guide (B, C_g, 2h, 2w), value (B, C, h, w), weight (n, C_g), bias (n,) -> (B, C, 2h, 2w)."""
    logits = torch.einsum("bchw,nc->bnhw", guide, weight) + bias[:, None, None] + guide[:, : len(offsets)]
    return uplift.pool(logits.softmax(dim=1), value, offsets)


def _attend(guide, value, weight, bias, offsets, residual=True, softmax=1, copies=None, biased=True, extra=0):
    logits = torch.einsum("bchw,nc->bnhw", guide, weight)
    logits = logits + bias[:, None, None] if biased else logits
    logits = logits + guide[:, : len(offsets)] if residual else logits
    logits = logits + extra
    attn = logits if softmax is None else logits.softmax(dim=softmax)
    if copies is None:
        copies = uplift.shifted(value, offsets).repeat_interleave(2, -2).repeat_interleave(2, -1)
    return (attn[:, None] * copies).sum(dim=2)


@check("uplift.local_attender", reference=local_attender)
def _(fn):
    generator, offsets = torch.Generator().manual_seed(1), uplift.OFFSETS[9]
    guide, value = torch.randn(2, 12, 6, 10, generator=generator), torch.randn(2, 4, 3, 5, generator=generator)
    weight, bias = torch.randn(9, 12, generator=generator) * 0.3, torch.randn(9, generator=generator)
    args = (guide, value, weight, bias, offsets)
    with untouched(guide, value, weight, bias):
        got = fn(*args)
    fine = F.interpolate(value, scale_factor=2, mode="nearest")
    smooth = F.interpolate(value, scale_factor=2, mode="bilinear", align_corners=False)
    near = uplift.shifted(value, offsets)
    expect(got, local_attender(*args), what="the attended features", mistakes={
        "softmax over the columns of the picture; the n neighbours of one position compete, axis 1": lambda: _attend(*args, softmax=-1),
        "softmax over the rows of the picture; the n neighbours of one position compete, axis 1": lambda: _attend(*args, softmax=-2),
        "softmax over the batch; the n neighbours of one position compete, axis 1": lambda: _attend(*args, softmax=0),
        "there is no softmax: the weights must be positive and sum to 1": lambda: _attend(*args, softmax=None),
        "the guide's own first n channels are missing in the logits": lambda: _attend(*args, residual=False),
        "the LAST n channels of the guide joined the logits; it is the first n": lambda: _attend(
            *args[:4], offsets, residual=False, extra=guide[:, -len(offsets) :]),
        "the copies were enlarged bilinearly; each output reads the coarse entry (y // 2, x // 2) as it is: repeat_interleave": lambda: _attend(
            *args, copies=F.interpolate(near.flatten(1, 2), scale_factor=2, mode="bilinear", align_corners=False).unflatten(1, near.shape[1:3])),
        "the bias is missing in the logits": lambda: _attend(*args, biased=False),
        "the neighbours are those of the FINE grid: shift the coarse map first, then enlarge the copies (y // 2 + dy)": lambda: _attend(*args, copies=uplift.shifted(fine, offsets)),
        "the value was enlarged bilinearly: the neighbours of (y, x) are the coarse features around (y // 2, x // 2), as they are": lambda: _attend(
            *args, copies=uplift.shifted(smooth, offsets)),
        "the copies are tiled (y % h); repeat each ENTRY twice along both axes (y // 2): repeat_interleave": lambda: _attend(*args, copies=near.repeat(1, 1, 1, 2, 2)),
        "the mean over neighbours, not the weighted sum": lambda: _attend(*args) / len(offsets),
    })
    flat = torch.zeros(1, 12, 4, 4)
    expect(fn(flat, torch.full((1, 2, 2, 2), 3.0), weight, bias, offsets), torch.full((1, 2, 4, 4), 3.0), what="equal features stay as they are: the output")


# --------------------------------------------------------------------------------------------------------------- the loss's pairs


def loss_pairs(depth):
    """[(start, iterations, target)]: how often the copies for input and target were halved."""
    return [(level + 1, step, level + 1 - step) for level in range(depth) for step in range(1, level + 2)]


@check("uplift.loss_pairs", reference=loss_pairs)
def _(fn):
    def pairs(depth, start=1, steps=lambda level: range(1, level + 2), target=None):
        return sorted((level + start, t, (level + start - t) if target is None else target) for level in range(depth) for t in steps(level))

    mistakes = {
        "every level ends at full size with its LAST step; the steps on the way are compared as well": pairs(3, steps=lambda level: [level + 1]),
        "one step a level: level i runs i + 1 iterations, and each is compared": pairs(3, steps=lambda level: [1]),
        "level 0 starts from the full size, where there is nothing larger to compare with; level i starts at i + 1 halvings": pairs(3, start=0, steps=lambda level: range(1, level + 1)),
        "level i starts at i + 1 halvings; the first level would have to reach sizes above the original": pairs(3, start=0),
        "the third number is the iteration again; it says how often the target was halved: start - iterations": sorted(
            (level + 1, t, t) for level in range(3) for t in range(1, level + 2)),
        "every output is compared with the full size; each iteration doubles once, so the target is start - iterations": pairs(3, target=0),
        "iterations are counted from 0; an input is not compared with itself": pairs(3, steps=lambda level: range(level + 1)),
        "every level runs all D iterations; from i + 1 halvings only i + 1 doublings have a target": pairs(3, steps=lambda level: range(1, 4)),
        "one depth too few": pairs(2),
        "the deepest level alone; the shallower ones train too": pairs(3)[-3:],
    }
    got = fn(3)
    got = sorted(map(tuple, got)) if isinstance(got, (list, tuple, set)) and all(isinstance(g, (list, tuple)) for g in got) else got
    expect(got, sorted(loss_pairs(3)), what="the pairs at depth 3", mistakes=mistakes)
    expect(len(fn(5)), 15, what="the number of terms at depth 5, D(D+1)/2")
