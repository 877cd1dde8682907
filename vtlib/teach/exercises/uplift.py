"""Exercises on UPLiFT: shifted copies, the Local Attender, the pairs of the multi-depth loss."""

import torch
import torch.nn.functional as F

from vtlib.superres import uplift
from vtlib.teach.exercises import check, expect

# ---------------------------------------------------------------------------------- shifted copies


def shifted(value, offsets):
    """value (B, C, h, w) -> (B, C, n, h, w), edges replicated.

    [:, :, k, y, x] = value[:, :, y + dy_k, x + dx_k].
    """
    return uplift.shifted(value, offsets)


def _copies(value, offsets, sign=1, swap=False, pad="replicate", dim=2):
    """`shifted` with one thing done differently."""
    h, w = value.shape[-2:]
    padded = F.pad(value, (2, 2, 2, 2), mode=pad)
    moves = [(dx, dy) if swap else (dy, dx) for dy, dx in offsets]
    starts = [(2 + sign * dy, 2 + sign * dx) for dy, dx in moves]
    return torch.stack([padded[..., y : y + h, x : x + w] for y, x in starts], dim=dim)


def _rolled(value, offsets, sign):
    moves = [(sign * dy, sign * dx) for dy, dx in offsets]
    return torch.stack([value.roll(move, (-2, -1)) for move in moves], dim=2)


def _shift_causes(value, offsets):
    return {
        "the copies move the wrong way: copy k holds at (y, x) what stands at (y + dy, x + dx), so"
        " the cut starts at 2 + dy": _copies(value, offsets, sign=-1),
        "dy and dx are swapped: rows are the axis before the last":
            _copies(value, offsets, swap=True),
        "the copies wrap around; torch.roll does that. At the edge the last value is repeated":
            _rolled(value, offsets, -1),
        "torch.roll wraps around, and with this sign it also moves the wrong way":
            _rolled(value, offsets, 1),
        "zeros come in at the edge: cut from `padded`, whose edge repeats the last value":
            _copies(value, offsets, pad="constant"),
        "the padding mirrors; here the last value is repeated (replicate)":
            _copies(value, offsets, pad="reflect"),
        "the copies came out in front; stack them on axis 2, after the channels":
            _copies(value, offsets, dim=0),
        "the copies stand before the channels; stack them on axis 2":
            _copies(value, offsets, dim=1),
    }


@check("uplift.shifted", reference=shifted)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for shape, count in (((2, 3, 4, 5), 17), ((1, 2, 6, 4), 9)):
        value, offsets = torch.randn(shape, generator=generator), uplift.OFFSETS[count]
        got, causes = fn(value, offsets), _shift_causes(value, offsets)
        what = f"the {count} shifted copies"
        expect(got, shifted(value, offsets), what=what, mistakes=causes)


# ------------------------------------------------------------------------------- the Local Attender


def local_attender(guide, value, weight, bias, offsets):
    """guide (B, C_g, 2h, 2w), value (B, C, h, w), weight (n, C_g), bias (n,) -> (B, C, 2h, 2w)."""
    logits = torch.einsum("bchw,nc->bnhw", guide, weight) + bias[:, None, None]
    logits = logits + guide[:, : len(offsets)]
    return uplift.pool(logits.softmax(dim=1), value, offsets)


def _enlarged(near):
    return near.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def _attend(guide, value, weight, bias, offsets, own="first", softmax=1, copies=None, biased=True):
    """`local_attender` with one thing done differently."""
    n = len(offsets)
    logits = torch.einsum("bchw,nc->bnhw", guide, weight)
    if biased:
        logits = logits + bias[:, None, None]
    if own != "none":
        logits = logits + (guide[:, :n] if own == "first" else guide[:, -n:])
    attn = logits if softmax is None else logits.softmax(dim=softmax)
    if copies is None:
        copies = _enlarged(uplift.shifted(value, offsets))
    return (attn[:, None] * copies).sum(dim=2)


def _smooth(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _attend_causes(guide, value, weight, bias, offsets):
    near = uplift.shifted(value, offsets)
    smooth = _smooth(near.flatten(1, 2)).unflatten(1, near.shape[1:3])

    def variant(**changed):
        return lambda: _attend(guide, value, weight, bias, offsets, **changed)

    neighbours = "; the n neighbours of one position compete, axis 1"
    return {
        f"softmax over the columns of the picture{neighbours}": variant(softmax=-1),
        f"softmax over the rows of the picture{neighbours}": variant(softmax=-2),
        f"softmax over the batch{neighbours}": variant(softmax=0),
        "there is no softmax: the weights must be positive and sum to 1": variant(softmax=None),
        "the guide's own first n channels are missing in the logits": variant(own="none"),
        "the LAST n channels of the guide joined the logits; it is the first n":
            variant(own="last"),
        "the copies were enlarged bilinearly; each output reads the coarse entry (y // 2, x // 2)"
        " as it is: repeat_interleave": variant(copies=smooth),
        "the bias is missing in the logits": variant(biased=False),
        "the neighbours are those of the FINE grid: shift the coarse map first, then enlarge the"
        " copies (y // 2 + dy)": variant(copies=uplift.shifted(_enlarged(value), offsets)),
        "the value was enlarged bilinearly: the neighbours of (y, x) are the coarse features"
        " around (y // 2, x // 2), as they are":
            variant(copies=uplift.shifted(_smooth(value), offsets)),
        "the copies are tiled (y % h); repeat each ENTRY twice along both axes (y // 2):"
        " repeat_interleave": variant(copies=near.repeat(1, 1, 1, 2, 2)),
        "the mean over neighbours, not the weighted sum":
            lambda: variant()() / len(offsets),
    }


@check("uplift.local_attender", reference=local_attender)
def _(fn):
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    for count, channels, h, w in ((9, 12, 3, 5), (17, 20, 4, 3)):
        guide, value = random(2, channels, 2 * h, 2 * w), random(2, 4, h, w)
        args = (guide, value, random(count, channels) * 0.3, random(count), uplift.OFFSETS[count])
        what = f"the features attended among {count} neighbours"
        expect(fn(*args), local_attender(*args), what=what, mistakes=_attend_causes(*args))
    flat, even = torch.zeros(1, channels, 4, 4), torch.full((1, 2, 2, 2), 3.0)
    got, want = fn(flat, even, *args[2:]), torch.full((1, 2, 4, 4), 3.0)
    expect(got, want, what="equal features stay as they are: the output")


# -------------------------------------------------------------------------------- the loss's pairs


def loss_pairs(depth):
    """[(start, iterations, target)]: how often the copies for input and target were halved."""
    return [
        (level + 1, step, level + 1 - step)
        for level in range(depth)
        for step in range(1, level + 2)
    ]


def _pairs(steps, start=1, target=None):
    """The pairs at depth 3, sorted, with other steps of each level, another start or target."""
    pairs = [(level + start, step) for level in range(3) for step in steps(level)]
    return sorted((n, step, n - step if target is None else target) for n, step in pairs)


def _pair_causes():
    def right(level):
        return range(1, level + 2)

    pairs = sorted(loss_pairs(3))
    return {
        "every level ends at full size with its LAST step; the steps on the way are compared as"
        " well": _pairs(lambda level: [level + 1]),
        "one step a level: level i runs i + 1 iterations, and each is compared":
            _pairs(lambda level: [1]),
        "level 0 starts from the full size, where there is nothing larger to compare with; level i"
        " starts at i + 1 halvings": _pairs(lambda level: range(1, level + 1), start=0),
        "level i starts at i + 1 halvings; the first level would have to reach sizes above the"
        " original": _pairs(right, start=0),
        "the third number is the iteration again; it says how often the target was halved: start -"
        " iterations": sorted((start, step, step) for start, step, _ in pairs),
        "every output is compared with the full size; each iteration doubles once, so the target"
        " is start - iterations": _pairs(right, target=0),
        "iterations are counted from 0; an input is not compared with itself":
            _pairs(lambda level: range(level + 1)),
        "every level runs all D iterations; from i + 1 halvings only i + 1 doublings have a"
        " target": _pairs(lambda level: range(1, 4)),
        "one depth too few": loss_pairs(2),
        "the deepest level alone; the shallower ones train too": pairs[-3:],
    }


def _sorted(pairs):
    """The pairs as a sorted list of tuples, where the answer is one of pairs."""
    listed = isinstance(pairs, (list, tuple, set))
    if listed and all(isinstance(pair, (list, tuple)) for pair in pairs):
        return sorted(map(tuple, pairs))
    return pairs


@check("uplift.loss_pairs", reference=loss_pairs)
def _(fn):
    got, want = _sorted(fn(3)), sorted(loss_pairs(3))
    expect(got, want, what="the pairs at depth 3", mistakes=_pair_causes())
    expect(len(fn(5)), 15, what="the number of terms at depth 5, D(D+1)/2")
