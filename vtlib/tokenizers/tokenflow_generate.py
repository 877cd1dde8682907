"""TokenFlow's next-scale generation: what a language model reads, guidance, and the resampling
inside a scale.

Qu et al. 2025, arXiv 2412.03069, section 3.4; where the paper is silent, from the official code. A
model predicts all places of a scale at once, from text and the scales before it. One pass per
scale gives neighbours that were drawn without knowing each other, and they clash. So from the
second scale on, the sample is fed back *at the same scale* and drawn again, each time from fewer
candidates: top-k 1200, then 100, then the best alone.

    what a place reads of scales 0 ... l - 1         scale_input
        F <- up(F + q_l) to the next size, one scale after another
    the same once the scale is drawn: F + q_l        scale_input(refine=True)
    (1 + t) cond - t uncond, t = cfg l / (L - 1)     `guide`, `guidance_ramp` of generation.sampling
    top-k, top-p, one draw a place                   `sample` of generation.sampling
    1 + 3 (L - 1) passes: 25 for 9 scales            num_passes
    the loop                                         sample_scales

Here F grows from scale to scale, while the tokenizer's sum takes each scale to the last size at
once: as in the official code, both are bicubic and not the same.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..generation.sampling import guidance_ramp, guide, sample
from ..nn.checks import (
    check_callable,
    check_flag,
    check_float,
    check_generator,
    check_int,
    check_list,
    check_number,
)
from ..quantize.residual import MultiScaleQuantizer, check_scales, from_scale

STEPS = ((1200, 0.8), (100, 0.8), (1, 0.0))
"""(top-k, top-p) of each pass over a scale; 0 switches a filter off."""


# ------------------------------------------------------------------------------- what is read
def scale_input(
    quantizer: MultiScaleQuantizer, indices: Tensor, refine: bool = False
) -> Tensor:
    """Codes of all scales so far -> (B, n, C), what the n places of a scale read.

    Args:
        quantizer: of the tokenizer.
        indices: (B, t) long, of the first scales, each complete.
        refine: for the last of those scales again, with its own codes; else for the next scale.

    ValueError where no scale comes next.
    """
    if not isinstance(quantizer, MultiScaleQuantizer):
        raise ValueError(f"quantizer is a {type(quantizer).__name__}: needs a MultiScaleQuantizer")
    refine = check_flag(refine, "refine")
    total, parts = None, quantizer.parts(indices)
    if len(parts) == quantizer.num_levels and not refine:
        raise ValueError(f"indices has all {len(parts)} scales: no scale comes next")
    for level, part in parts:
        codes = quantizer.level(level).decode(part)
        total = codes if total is None else from_scale(total, quantizer.scales[level]) + codes
    if not refine:
        total = from_scale(total, quantizer.scales[len(parts)])
    return total.flatten(1, 2)


# ---------------------------------------------------------------------------------- the loop
def num_passes(num_levels: int, num_steps: int = len(STEPS)) -> int:
    """Passes of the model for an image: one over the first scale, num_steps over each other."""
    num_levels = check_int(num_levels, "num_levels", 1)
    return 1 + check_int(num_steps, "num_steps", 1) * (num_levels - 1)


@torch.no_grad()
def sample_scales(
    logits: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]],
    scales: Sequence[int | Sequence[int]],
    batch: int = 1,
    steps: Iterable[Sequence[float]] = STEPS,
    cfg: float = 7.5,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Draw an image's indices scale by scale -> (B, sum of h_l w_l) long.

    Args:
        logits: (indices, level, refine) -> two tensors (B, h_l w_l, K), with the text and without.
            Without refine, indices (B, t) are those of the scales before `level`; with refine they
            end with this scale's own sample, which is to be drawn again. See `scale_input`.
        scales: as of the tokenizer.
        batch: B.
        steps: (top_k, top_p) of each pass over a scale, 0: no filter; the first scale takes the
            first pass alone. No top_k may exceed K.
        cfg: guidance at the last scale; it grows to that from 0 at the first.
        generator: for the draws.
        device: where the indices are; the model's. None: torch's default.
    """
    check_callable(logits, "logits")
    check_generator(generator, optional=True)
    scales, steps = check_scales(scales), _check_steps(steps)
    batch, cfg = check_int(batch, "batch", 1), check_number(cfg, "cfg")
    indices = torch.zeros(batch, 0, dtype=torch.long, device=device)
    for level in range(len(scales)):
        before, weight = indices, cfg * guidance_ramp(level, len(scales))
        for step, (top_k, top_p) in enumerate(steps if level else steps[:1]):
            with_text, without = logits(indices, level, step > 0)
            _check_logits(with_text, (batch, scales[level][0] * scales[level][1]), level)
            scores = guide(with_text, without, weight, "weight")
            drawn = sample(scores, top_k=top_k, top_p=top_p, generator=generator)
            indices = torch.cat([before, drawn], dim=1)
    return indices


def _check_logits(logits: Tensor, wanted: tuple[int, int], level: int) -> None:
    check_float(logits, f"logits at scale {level}")
    if logits.dim() != 3 or tuple(logits.shape[:2]) != wanted:
        shape = tuple(logits.shape)
        raise ValueError(f"logits at scale {level} has shape {shape}: needs (*{wanted}, K)")


def _check_steps(steps: Iterable[Sequence[float]]) -> list[tuple[int, float]]:
    checked = []
    for i, step in enumerate(check_list(steps, "steps", "pairs (top_k, top_p)")):
        pair = check_list(step, f"steps[{i}]", "a pair (top_k, top_p)")
        if len(pair) != 2:
            raise ValueError(f"steps[{i}]={step!r}: needs a pair (top_k, top_p)")
        top_k = check_int(pair[0], f"steps[{i}] top_k", 0)
        checked.append((top_k, check_number(pair[1], f"steps[{i}] top_p", 0, 1)))
    if not checked:
        raise ValueError("steps is empty: needs one pass a scale at least")
    return checked
