"""AIM - Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning (Zhong, Liu, Li, Wang,
ICCV 2025, arXiv 2412.03248).

The idea: visual tokens are redundant before the language model and useless in its late layers. So
similar tokens are merged before it, halving their number again and again, frame by frame; and
inside it they are dropped layer by layer, least important first, until none is left. Importance is
a page rank on the attention graph of all tokens, text included. Two knobs, no training: one model
serves any budget.

    a = x_0, x_2, ...;  b = x_1, x_3, ...              match         even tokens look for their most
                                                                     similar odd one
    b_j <- mean of b_j and the r best a that chose it  merge_step    the rest of a, by falling
                                                                     cosine, then b
    r = N/2, N/4, ... of the original N                halvings      50 %, 25 %, ... are left
    s_0 = 1/S;  s <- s softmax(logits / tau), 5 times  page_rank     root mean square over heads
    1, then 1 - (l - l1)/(l2 - l1), then 0             rate          tokens left after layer l
                                                                     (1-based)
    both knobs from one number                         split_budget

Merging is not ToMe: tokens are compared themselves (no keys), raster order is lost on the way, and
sizes are not tracked, so that in the next step a merged token weighs as much as a single one.

Different from the official code (LaVi-Lab/AIM): the release masks dropped tokens and lets them run
on as queries whose rows send mass in the page rank
(`Decoder.prefill(..., positions="keep", mode="mask")` gives its numbers); mode="drop" removes them
and is what the paper counts. Temperature and root mean square are the code's, the paper gives the
iteration. A batch of prompts: the release takes the text's length from the first one. r = 0 leaves
the tokens as they are (the release returns nothing). Ties go to the lower index. Either way a page
rank needs all logits of a layer once more, which counts of FLOPs leave out.
"""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..nn.checks import (
    at_hand,
    check_axes,
    check_finite,
    check_int,
    check_ints,
    check_number,
    check_numbers,
    check_tokens,
)
from ..tokens import Plan, Stage, VisionOutputs, keep_all, resolve_keep
from ..tokens.checks import check_mask, is_fraction
from ..tokens.cosine import unit
from ..tokens.groups import groups
from ..tokens.merge import chained
from ..tokens.precision import full_precision, widen
from ..tokens.vision import check_vision
from .method import Method

if TYPE_CHECKING:
    from ..vlm.decoder import State

PAPER = "aim"
SCHEDULES = {"video": (14, 22, 28), "image": (13, 21, 32)}
"""l1, l2, number of layers: LLaVA-OneVision-7B, LLaVA-1.5-7B."""
ROLES = ("single", "merged")


# ---------------------------------------------------------------- (a) merging before the LLM
def match(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Score: each even token's most similar odd token.

    tokens (B, N, D) -> cosine (B, A), target (B, A) long, A = ceil(N / 2); target j is token
    2j + 1. A zero token is similar to nothing (0). ValueError for tokens that are not floating or
    not finite, and for one alone.
    """
    check_tokens(tokens)
    if tokens.shape[1] < 2:
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)} but needs (B, N, D) with N >= 2: an even and "
            f"an odd token"
        )
    check_finite(tokens, "tokens")
    with torch.no_grad(), full_precision(tokens.device):
        x = unit(tokens)
        even, odd = x[:, 0::2], x[:, 1::2]
        several = groups(len(x), x.shape[1] ** 2 // 2, x.device)
        best = [(even[part] @ odd[part].transpose(1, 2)).max(dim=-1) for part in several]
    similarity, target = zip(*best, strict=True)
    return torch.cat(similarity), torch.cat(target)


def merge_step(tokens: Tensor, r: int) -> Plan:
    """Select: the min(r, N // 2) even tokens with the best match go into it.

    tokens (B, N, D) -> Plan with N - r slots: the other even tokens by FALLING similarity, then all
    odd tokens in order. A merged slot is the unweighted mean of an odd token and all that chose it.
    r=0: nothing changes. Entries come in the order of the tokens: token n enters slot[:, n], and no
    other. ValueError when r is negative.
    """
    check_tokens(tokens)
    r = check_int(r, "r", least=0)
    batch, size, _ = tokens.shape
    device = tokens.device
    num_odd = size // 2
    r = min(r, num_odd)
    if r == 0:
        return keep_all(batch, size, device)
    similarity, target = match(tokens)                              # b a
    order = similarity.argsort(dim=1, descending=True, stable=True)
    merged, rest = order[:, :r], order[:, r:]                       # b r, b a-r
    num_rest = rest.shape[1]
    odd = torch.arange(1, size, 2, device=device).expand(batch, -1)
    index = torch.cat([2 * rest, odd], dim=1)                       # b t: rest of a, then b

    number = torch.arange(num_rest + num_odd, device=device).expand(batch, -1)
    into = num_rest + target.gather(1, merged)                      # b r: slots that take one in
    entering = torch.cat([index, 2 * merged], dim=1)                # b n: every token once
    slot = torch.zeros_like(entering).scatter(1, entering, torch.cat([number, into], dim=1))
    count = torch.zeros_like(index).scatter_add(1, slot, torch.ones_like(slot))
    origin = torch.arange(size, device=device).expand(batch, -1)
    weight = 1 / count.gather(1, slot).to(torch.float32)
    return Plan(index, size, origin, slot, weight, (count > 1).long(), ROLES)


def merge(tokens: Tensor, steps: Sequence[int]) -> Plan:
    """Several steps, r tokens in each (`halvings`): every step matches what the one before left, in
    its order.

    tokens (B, N, D) -> Plan from N tokens to the last slots. Each token stays in one slot, with the
    product of its steps' weights: those of a slot sum to 1 but are not equal.
    """
    check_tokens(tokens)
    plan = keep_all(*tokens.shape[:2], tokens.device)
    for r in check_ints(steps, "steps", 0):
        step = merge_step(tokens, r)
        if not step.merges:
            continue
        tokens = step.apply(tokens)
        if plan.merges:
            before = plan.role.gather(1, step.index)                # a merged slot stays one
            plan = chained(plan, step, torch.maximum(step.role, before))
        else:
            plan = step
    return plan


def halvings(num_tokens: int, steps: int = 2) -> list[int]:
    """The paper's r: N // 2, N // 4, ... of the original N.

    196 -> 98 -> 49 (two steps, the default); 49 -> 25 -> 13.
    """
    num_tokens, steps = check_int(num_tokens, "num_tokens", 1), check_int(steps, "steps", 0)
    return [num_tokens // 2**i for i in range(1, steps + 1)]


def merge_counts(keep: int | float, num_tokens: int) -> list[int]:
    """The r of each step that leads to `keep`.

    0.5, 0.25, ...: the paper's `halvings`, which round what is left up. Anything else
    (`resolve_keep`): as many steps as it takes, each halving what there is, the last one less.
    """
    left = resolve_keep(keep, num_tokens)
    if is_fraction(keep):
        mantissa, exponent = math.frexp(keep)                       # keep = mantissa 2^exponent
        if mantissa == 0.5 and exponent < 1:
            return halvings(num_tokens, 1 - exponent)
    steps, alive = [], num_tokens
    while alive > left:
        steps.append(min(alive // 2, alive - left))
        alive -= steps[-1]
    return steps


def prune(vision: VisionOutputs, keep: int | float) -> Plan:
    """Plan over `vision.tokens` (one image or frame a row, never across): merged down to `keep`
    tokens (`merge_counts`). keep = all: unchanged."""
    check_vision(vision)
    return merge(vision.tokens, merge_counts(keep, vision.tokens.shape[1]))


# ---------------------------------------------------------------- (b) pruning in the LLM
def page_rank(
    logits: Tensor,
    tau: float = 0.1,
    iterations: int = 5,
    damping: float = 0.0,
    running: Tensor | None = None,
) -> Tensor:
    """Score: s <- (1 - damping) s M + damping / S, from 1/S, with M = softmax(logits / tau) over
    keys; heads: root mean square.

    Mass flows from queries to the keys they attend to; each head's s sums to 1. With a causal graph
    and no damping all mass ends on the first token: a low tau and few iterations keep the score
    usable.

    Args:
        logits: (B, heads, S, S): q k^T / sqrt(P), -inf where a query must not look.
        tau: temperature.
        iterations: steps.
        damping: in 0 ... 1.
        running: (B, S) bool: padding is False, sends nothing, and S counts the others.

    Returns (B, S), float32 at least. ValueError for a rank that is not finite: logits that are not,
    or a query that sees nothing and is no padding.
    """
    check_axes(logits, "logits", "(B, heads, S, S)")
    if logits.shape[2] != logits.shape[3]:
        raise ValueError(f"logits has shape {tuple(logits.shape)} but needs (B, heads, S, S)")
    if running is not None:
        check_mask(running, "running", (len(logits), logits.shape[3]), "(B, S)")
    tau, iterations, damping = _check_rank(tau, iterations, damping)
    with full_precision(logits.device):
        flow = (widen(logits) / tau).softmax(dim=-1)                # b h q k
        if running is not None and not (at_hand(running) and running.all()):
            flow = flow.masked_fill(~running[:, None, :, None], 0)  # padding may see nothing: NaN
        if running is None:
            start = flow.new_ones(flow.shape[0], 1, 1, flow.shape[-1])
        else:
            start = running[:, None, None].to(flow.dtype)
        start = start / start.sum(dim=-1, keepdim=True)             # b 1 1 s
        s = start.expand(-1, flow.shape[1], -1, -1)
        for _ in range(iterations):                                 # padding holds nothing
            s = (1 - damping) * (s @ flow) + damping * start        # so its rows send nothing
        rank = s[:, :, 0].square().mean(dim=1).sqrt()
    check_finite(rank, "page rank")
    return rank


def _check_rank(tau: float, iterations: int, damping: float) -> tuple[float, int, float]:
    """The constants of `page_rank`. ValueError for what they cannot be."""
    tau = check_number(tau, "tau", above=0)
    return tau, check_int(iterations, "iterations", 0), check_number(damping, "damping", 0, 1)


def rate(layer: int, l1: float, l2: float) -> float:
    """Fraction of the visual tokens that is left after a layer, linear from l1 to l2.

    Args:
        layer: counted from 1.
        l1: up to this layer all of them are left.
        l2: from this layer on none is left; above l1.
    """
    l1, l2 = _check_ramp(l1, l2)
    return _rate(check_number(layer, "layer"), l1, l2)


def _rate(layer: float, l1: float, l2: float) -> float:
    return min(1.0, max(0.0, (l2 - layer) / (l2 - l1)))


def _check_ramp(l1: float, l2: float) -> tuple[float, float]:
    l1, l2 = check_number(l1, "l1"), check_number(l2, "l2")
    if not l1 < l2:
        raise ValueError(f"l1={l1}, l2={l2}: needs l1 < l2")
    return l1, l2


def scaled(num_layers: int, schedule: str = "video") -> tuple[float, float]:
    """The paper's (l1, l2) at the same relative depth: (14, 22) with 28 layers, (3, 4.7) with 6."""
    if schedule not in tuple(SCHEDULES):
        raise ValueError(f"schedule={schedule!r} must be one of {tuple(SCHEDULES)}")
    num_layers = check_int(num_layers, "num_layers")
    if num_layers < 2:
        raise ValueError(
            f"num_layers={num_layers}: a cut needs a layer before it and one after it"
        )
    l1, l2, depth = SCHEDULES[schedule]
    return l1 * num_layers / depth, l2 * num_layers / depth


def mean_rate(num_layers: int, l1: float, l2: float) -> float:
    """Mean over layers of the fraction that each sees: the first all, layer i + 1 what is left
    after layer i.

    Args:
        num_layers: of the language model.
        l1: as in `rate`.
        l2: as in `rate`.
    """
    num_layers = check_int(num_layers, "num_layers", 1)
    return _mean_rate(num_layers, *_check_ramp(l1, l2))


def _mean_rate(num_layers: int, l1: float, l2: float) -> float:
    return (1 + sum(_rate(i, l1, l2) for i in range(1, num_layers))) / num_layers


def ramp_for(num_layers: int, mean: float, width: float) -> tuple[float, float]:
    """(l1, l2) for which the fractions that the layers see (1 in the first) have this mean.

    Found by bisection.

    Args:
        num_layers: of the language model.
        mean: the wanted mean fraction, 1 / num_layers (the first layer alone) to 1.
        width: l2 - l1, in layers.
    """
    num_layers = check_int(num_layers, "num_layers", 1)
    mean = check_number(mean, "mean", 1 / num_layers, 1)
    width = check_number(width, "width", above=0)
    low, high = 1.0 - width, float(num_layers)
    for _ in range(60):
        l1 = (low + high) / 2
        if _mean_rate(num_layers, l1, l1 + width) < mean:
            low = l1
        else:
            high = l1
    return high, high + width


def plan_cut(state: "State", keep: int, tau: float, iterations: int, damping: float) -> Plan:
    """One cut: the visual tokens with the highest `page_rank` in the layer that has just run.

    Args:
        state: `vtlib.vlm.decoder.State`.
        keep: visual tokens that stay; may be 0.
        tau: see `page_rank`.
        iterations: see `page_rank`.
        damping: see `page_rank`.
    """
    if keep == 0:
        return state.top(state.hidden.new_zeros(state.alive.shape), 0)
    rank = page_rank(state.logits(layer="last"), tau, iterations, damping, state.running)
    return state.top(rank[:, state.visual], keep)


def stages(
    num_layers: int,
    keep: int | float | None,
    num_visual: int,
    schedule: str = "video",
    l1: float | None = None,
    l2: float | None = None,
    rates: Sequence[float] | None = None,
    tau: float = 0.1,
    iterations: int = 5,
    damping: float = 0.0,
) -> list[Stage]:
    """The cuts for `Decoder.prefill(..., stages(...), positions="keep")`, mode="mask" for the
    release's numbers: int(num_visual rate) are left after each layer, none in the end.

    Args:
        num_layers: of the decoder.
        keep: None: the paper's (l1, l2) at the same relative depth, (14, 22) with 28 layers. An int
            or a fraction of num_visual: the MEAN number of visual tokens over the layers; the ramp
            is as steep as the schedule's and moves to where it gives this mean (counts are rounded
            down, so it comes out up to 1 lower). The first layer always sees all, so at least
            num_visual / num_layers.
        num_visual: visual tokens that the decoder gets, after merging.
        schedule: of SCHEDULES.
        l1: in place of the schedule's: the last layer (1-based, may be a fraction) that leaves all.
        l2: the first layer that leaves none; l2 > num_layers - 1 leaves visual tokens to the last
            layer.
        rates: in place of both: the fraction left after each layer (num_layers numbers, the
            release's list).
        tau: see `page_rank`.
        iterations: see `page_rank`.
        damping: see `page_rank`.

    ValueError: keep out of range, an unknown schedule, l1 without l2 or not below it, more than one
    of keep, l1 and l2, rates; a tau, iterations or damping that a page rank cannot have.
    """
    default_l1, default_l2 = scaled(num_layers, schedule)
    num_visual = check_int(num_visual, "num_visual", 0)
    tau, iterations, damping = _check_rank(tau, iterations, damping)
    given = sum(x is not None for x in (keep, l1, rates))
    if (l1 is None) != (l2 is None) or given > 1:
        raise ValueError(
            f"keep={keep}, l1={l1}, l2={l2}, rates={rates}: needs one of keep, l1 with l2, and "
            f"rates, or none"
        )
    if l1 is None:
        l1, l2 = default_l1, default_l2
    l1, l2 = _check_ramp(l1, l2)
    if keep is not None:
        l1, l2 = _ramp_for_mean(num_layers, keep, num_visual, l2 - l1)
    if rates is None:
        rates = [_rate(layer, l1, l2) for layer in range(1, num_layers + 1)]
    else:
        rates = _check_rates(rates, num_layers)
    plan = functools.partial(plan_cut, tau=tau, iterations=iterations, damping=damping)
    cuts, alive = [], num_visual
    for layer in range(1, num_layers):
        left = int(num_visual * rates[layer - 1] + 1e-9)
        if left < alive:
            cuts.append(Stage(layer, left, plan))
            alive = left
    return cuts


def _check_rates(rates: Sequence[float], num_layers: int) -> tuple[float, ...]:
    rates = check_numbers(rates, "rates")
    falls = list(rates) == sorted(rates, reverse=True)
    if len(rates) != num_layers or not falls or not 0 <= rates[-1] <= rates[0] <= 1:
        raise ValueError(
            f"rates={rates} must have one entry in 0 ... 1 for each of the {num_layers} layers, "
            f"and not rise"
        )
    return rates


def _ramp_for_mean(
    num_layers: int, keep: int | float, num_visual: int, width: float
) -> tuple[float, float]:
    mean = resolve_keep(keep, num_visual)
    if mean * num_layers < num_visual:
        raise ValueError(
            f"keep={keep} as the mean over {num_layers} layers: the first layer sees all "
            f"{num_visual} tokens, so it is at least {num_visual / num_layers:.1f}; merge first "
            f"(`split_budget`)"
        )
    return ramp_for(num_layers, mean / num_visual, width)


def split_budget(
    num_layers: int, keep: int | float, num_visual: int, schedule: str = "video"
) -> tuple[int, list[Stage]]:
    """Both knobs turned by one number: (tokens to merge down to, stages), so that the layers see
    `keep` visual tokens on average.

    The paper's way: the schedule stays as it is, merging carries the budget. A keep that is more
    than the schedule's own mean needs no merging; then the ramp moves back (`stages`). Counts are
    rounded down: the mean comes out up to 2 lower.

        count, cuts = split_budget(num_layers, keep, num_visual)
        tokens = prune(vision, count).apply(vision.tokens)
        # then Decoder.prefill(..., cuts, positions="keep")

    Args:
        num_layers: of the decoder.
        keep: an int or a fraction of num_visual.
        num_visual: before merging.
        schedule: of SCHEDULES.

    ValueError: keep out of range.
    """
    mean = resolve_keep(keep, num_visual)
    l1, l2 = scaled(num_layers, schedule)
    merged = max(1, int(mean / mean_rate(num_layers, l1, l2) + 1e-9))
    if merged >= num_visual:
        return num_visual, stages(num_layers, mean, num_visual, schedule)
    return merged, stages(num_layers, None, merged, schedule)


def _ramp(num_layers: int, keep: int, num_visual: int) -> list[Stage]:
    """The paper's ramp, which ends at none; `keep` is what merging leaves."""
    return stages(num_layers, None, num_visual)


METHOD = Method(
    "aim",
    "AIM",
    paper=PAPER,
    prune=prune,
    stages=_ramp,
    space="tokens",
    asks=True,
    positions="keep",
)
MERGING = Method("aim_merge", "AIM, merging alone", paper=PAPER, prune=prune, space="tokens")
