"""TransPrune - Token Transition Pruning for Efficient Large Vision-Language Model (Li, Duan, Zhang,
Ma, Xie, Carneiro, Yaqub, Wang, CVPR 2026, arXiv 2507.20630).

The idea: attention scores favour places, similarity ignores the task; watch instead what the
decoder does to each token. In the middle layers the tokens whose length and direction its modules
change most are the ones that mean something. This Token Transition Variation (TTV) is summed over
layers, the attention of the instruction (IGA) is added, and the visual tokens are cut three times.

    m = |F(x)| / |x|,  d = cos(x, F(x))                  transition  (eq. 1; x after the norm, F(x)
                                                                     before the residual sum)
    TTV = m softmax(1 - d)                               ttv         (eq. 2)
    TTV_l = TTV(attention of l) + TTV(feed-forward of l) layer_ttv   (eq. 3)
    TTV_p = sum over l in A, l <= p, of TTV_l            plan_cut    (eq. 4; dropped tokens take
                                                                     their history with them)
    IGA = mean over heads, instruction tokens of         iga         (eq. 5; of layer p + 1, not
          attention                                                  accumulated)
    alpha TTV_p / sum + (1 - alpha) IGA / sum            score       (eq. 6, alpha = 0.5)
    keep int(ratio N) tokens after layers 7, 9, 12 of 32 stages

Paper and official code (liaolea/TransPrune) differ; both are here, and which one made the tables is
not known:
- direction: the release takes 1 - d ("release", the default: a token that is turned round counts
  most), the paper 1 - |d| ("abs": an orthogonal one).
- support: the release's softmax runs over the whole sequence ("sequence"), the paper's over the
  image ("image"). Within a module this is one factor for all tokens; but it weighs modules and
  layers against each other, and as the question is in the sequence, only with "image" is TTV
  exactly blind to the question.

The release takes one prompt at a time, without grouped keys; here a batch shares counts, and
padding stays out of every sum. Its score is twice eq. 6. Only module inputs and outputs and a few
rows of attention are needed, so fast attention kernels stay. Ratios: the scripts' list is "High" by
its FLOPs (1.557 T of 3.817 T); "Low" is inferred from its FLOPs (1.19 T), the paper's main text
does not give it.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import (
    check_axes,
    check_finite,
    check_float,
    check_int,
    check_ints,
    check_number,
    check_numbers,
)
from ..tokens import Plan, Stage, resolve_keep, take
from ..tokens.checks import check_mask, is_fraction
from ..tokens.precision import widen
from .method import Method

if TYPE_CHECKING:
    from ..vlm.decoder import State, Transition

PAPER = "transprune"
HIGH = (0.875, 0.625, 0.125)    # of the visual tokens, after each cut: 40.8 % of the FLOPs
LOW = (0.75, 0.5, 0.0)          # 31.2 %; inferred
PAPER_DEPTH = 32
PRUNING_LAYERS = (7, 9, 12)     # 1-based
ACCUMULATING_LAYERS = (7, 8, 9, 10, 11, 12)
DIRECTIONS = ("release", "abs")
SUPPORTS = ("sequence", "image")
BUDGETS = ("final", "mean")
EPS = 1e-8


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {choices}")


def _check_alike(first: Tensor, second: Tensor, names: tuple[str, str]) -> None:
    """Raise unless both are floating and have one shape."""
    for name, tensor in zip(names, (first, second), strict=True):
        check_float(tensor, name)
    if first.shape != second.shape:
        raise ValueError(
            f"{names[0]} has shape {tuple(first.shape)} and {names[1]} {tuple(second.shape)}: they "
            f"need one shape"
        )


# ---------------------------------------------------------------- score
def transition(token_in: Tensor, token_out: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1: magnitude |out| / |in| and direction cos(in, out), each (B, S).

    token_in (B, S, D): a module's input, after the norm; token_out: its output, before the residual
    sum. The decoder records the same of the layers that a `Stage` watches.
    """
    _check_alike(token_in, token_out, ("token_in", "token_out"))
    token_in, token_out = widen(token_in), widen(token_out)
    magnitude = token_out.norm(dim=-1) / token_in.norm(dim=-1).clamp(min=1e-12)
    return magnitude, F.cosine_similarity(token_in, token_out, dim=-1)


def ttv(
    magnitude: Tensor, cosine: Tensor, valid: Tensor | None = None, direction: str = "release"
) -> Tensor:
    """Eq. 2: m_i exp(u_i) / sum over j of exp(u_j), with u = 1 - d ("release") or 1 - |d| ("abs",
    the paper).

    The softmax touches the direction only: the magnitude comes after it.

    Args:
        magnitude: m, (B, S).
        cosine: d, (B, S).
        valid: (B, S) bool, the support of the softmax; None is all.
        direction: "release" or "abs".

    Returns (B, S), 0 outside the support; sums to at most max m.
    """
    _check_choice("direction", direction, DIRECTIONS)
    _check_alike(magnitude, cosine, ("magnitude", "cosine"))
    if valid is not None:
        check_mask(valid, "valid", cosine.shape, "(B, S)")
    if direction == "abs":
        cosine = cosine.abs()
    turn = 1 - cosine
    if valid is not None:
        turn = turn.masked_fill(~valid, -torch.inf)
    return magnitude * turn.softmax(dim=-1)


def layer_ttv(
    transitions: "Sequence[Transition]", direction: str = "release", support: str = "sequence"
) -> Tensor:
    """Eq. 3 for several layers: TTV of the attention plus TTV of the feed-forward module, of the
    visual tokens that are alive.

    Args:
        transitions: one record a layer (`vtlib.vlm.decoder.Transition`), made when that layer ran,
            on the tokens there were then.
        direction: see `ttv`.
        support: of the softmax, "sequence" or "image".

    Returns (B, layers, n). Their sum over layers is the accumulated TTV_p of eq. 4.
    """
    _check_choice("support", support, SUPPORTS)
    rows = []
    for change in transitions:
        valid = change.valid
        if support == "image":
            place = torch.arange(valid.shape[1], device=valid.device)
            valid = valid & (place >= change.visual.start) & (place < change.visual.stop)
        attention = ttv(*change.attention, valid, direction)
        feed_forward = ttv(*change.mlp, valid, direction)
        both = attention + feed_forward                             # b s_l
        rows.append(take(both[:, change.visual], change.now))       # b n
    return torch.stack(rows, dim=1)


def iga(attention: Tensor, visual: slice, asking: Tensor) -> Tensor:
    """Eq. 5: how much the instruction attends to each visual token: mean over heads and instruction
    tokens.

    Args:
        attention: (B, heads, R, S), weights of the R tokens behind the image, over the whole
            sequence.
        visual: the image's columns.
        asking: (B, R) bool, no padding.

    Returns (B, n), float32 at least.
    """
    check_axes(attention, "attention", "(B, heads, R, S)")
    check_mask(asking, "asking", (attention.shape[0], attention.shape[2]), "(B, R)")
    if not isinstance(visual, slice):
        raise ValueError(f"visual={visual!r}: needs slice(start, stop), the image's columns")
    rows = widen(attention).mean(dim=1)[:, :, visual]               # b r n
    asking = asking[:, :, None].to(rows.dtype)
    return (rows * asking).sum(dim=1) / asking.sum(dim=1).clamp(min=1)


def score(ttv: Tensor, iga: Tensor, alive: Tensor | None = None, alpha: float = 0.5) -> Tensor:
    """Eq. 6: alpha TTV / (sum TTV + 1e-8) + (1 - alpha) IGA / (sum IGA + 1e-8).

    The release adds both without alpha: twice alpha = 0.5.

    Args:
        ttv: (B, n).
        iga: (B, n).
        alive: (B, n) bool: the sums run over these tokens, the others get 0; None is all.
        alpha: in 0 ... 1: 1 is TTV alone, 0 is IGA alone.

    Returns (B, n), float32 at least. ValueError for values that are not floating or, of tokens
    alive, not finite, for shapes that do not agree, and for an alpha out of range.
    """
    _check_alike(ttv, iga, ("ttv", "iga"))
    alpha = check_number(alpha, "alpha", 0, 1)
    ttv, iga = widen(ttv), widen(iga)
    if alive is not None:
        check_mask(alive, "alive", ttv.shape, "(B, n)")
        ttv = ttv.masked_fill(~alive, 0)
        iga = iga.masked_fill(~alive, 0)
    check_finite(ttv, "ttv")
    check_finite(iga, "iga")
    share_ttv = ttv / (ttv.sum(dim=1, keepdim=True) + EPS)
    share_iga = iga / (iga.sum(dim=1, keepdim=True) + EPS)
    return alpha * share_ttv + (1 - alpha) * share_iga


# ---------------------------------------------------------------- schedule
def scaled_layers(num_layers: int) -> tuple[int, ...]:
    """The paper's cuts, after layers 7, 9, 12 of 32, at the same relative depth: rounded, at least
    1, one after another. ValueError below 4."""
    cuts = len(PRUNING_LAYERS)
    num_layers = check_int(num_layers, "num_layers")
    if num_layers < cuts + 1:
        raise ValueError(
            f"num_layers={num_layers} but three cuts, each with a layer before and after it, need "
            f"at least 4"
        )
    layers, last = [], 0
    for i, layer in enumerate(PRUNING_LAYERS):
        latest = num_layers - cuts + i
        wanted = round(layer * num_layers / PAPER_DEPTH)
        last = min(latest, max(wanted, last + 1))
        layers.append(last)
    return tuple(layers)


def counts(
    num_layers: int,
    keep: int | float,
    num_visual: int,
    layers: tuple[int, ...],
    budget: str = "final",
) -> list[int]:
    """Visual tokens after each cut.

    The cuts share the loss as in "High", whose three cuts bring it to 1, 3 and 7 eighths: with D
    tokens lost in the end, int(N - D/7), int(N - 3D/7), int(N - D) are left. (More or fewer cuts:
    equal steps.) 0.125 of 576, final: 504, 360, 72.

    Args:
        num_layers: of the decoder.
        keep: an int, or a fraction of num_visual (rounded down, as in the release).
        num_visual: N.
        layers: the cuts come after these, 1-based.
        budget: "final": keep is what the last cut leaves, 0 included; "mean": the mean over all
            layers, the first of which see all.

    ValueError: keep out of range, or a mean that is below what is left when the last cut drops
    everything.
    """
    _check_choice("budget", budget, BUDGETS)
    num_layers = check_int(num_layers, "num_layers", 1)
    layers = check_ints(layers, "layers")
    whole = resolve_keep(keep, num_visual, least=0)
    if whole and is_fraction(keep):
        whole = max(1, int(keep * num_visual))
    steps = len(layers)
    if steps == 3:
        shares = [Fraction(n, 7) for n in (1, 3, 7)]
    else:
        shares = [Fraction(i + 1, steps) for i in range(steps)]
    lost = Fraction(num_visual - whole)
    if budget == "mean":
        ends = (*layers[1:], num_layers)
        spans = [end - start for start, end in zip(layers, ends, strict=True)]
        weight = sum(share * span for share, span in zip(shares, spans, strict=True))
        lost = lost * num_layers / weight
        if lost > num_visual:
            least = float(num_visual - num_visual * weight / num_layers)
            raise ValueError(
                f"keep={keep} as the mean over {num_layers} layers: cuts after layers {layers} "
                f"leave at least {least:.1f} of {num_visual}"
            )
    return [math.floor(num_visual - lost * share) for share in shares]


def plan_cut(
    state: "State",
    keep: int,
    accumulate: tuple[int, ...],
    direction: str,
    support: str,
    alpha: float,
) -> Plan:
    """One cut: TTV summed over the layers that have run (eq. 4), IGA of the layer to come, and the
    best `keep` by their sum.

    Args:
        state: `vtlib.vlm.decoder.State`.
        keep: visual tokens that stay.
        accumulate: TTV is summed over these layers, 1-based, as far as they have run.
        direction: see `ttv`.
        support: see `layer_ttv`.
        alpha: see `score`.
    """
    behind = slice(state.visual.stop, None)
    asking = state.asking[:, behind]                                # b r
    if asking.shape[1] == 0:
        raise ValueError("TransPrune asks the instruction: there is no text behind the image")
    changes = [state.transitions[layer] for layer in accumulate if layer <= state.after]
    total = layer_ttv(changes, direction, support).sum(dim=1)       # b n
    attention = state.attention(behind, "next")                     # b heads r s
    instruction = iga(attention, state.visual, asking)              # b n
    return state.top(score(total, instruction, state.alive, alpha), keep)


def stages(
    num_layers: int,
    keep: int | float | None,
    num_visual: int,
    ratios: tuple[float, ...] | None = None,
    layers: tuple[int, ...] | None = None,
    accumulate: tuple[int, ...] | None = None,
    budget: str = "final",
    direction: str = "release",
    support: str = "sequence",
    alpha: float = 0.5,
) -> list[Stage]:
    """The cuts for `Decoder.prefill(..., stages(...), positions="renumber")`.

    Args:
        num_layers: of the decoder.
        keep: an int or a fraction of num_visual: with budget="final" the FINAL count, what the last
            cut leaves; with budget="mean" the MEAN over all layers (`counts`). None: `ratios` say.
        num_visual: visual tokens that the decoder gets.
        ratios: in place of keep, one a cut, of num_visual: HIGH, LOW.
        layers: the cuts come after these (1-based); None: `scaled_layers`.
        accumulate: TTV is summed over these layers, as far as they have run; None: all from the
            first cut to the last (7 ... 12).
        budget: "final" or "mean".
        direction: see the module.
        support: see the module.
        alpha: see `score`.

    ValueError: keep and ratios both or neither; layers that are out of order, or a last layer,
    behind which there is no attention to ask; a first cut before any of `accumulate`; an alpha out
    of range; a prompt without text behind the image (when the cut is made).
    """
    _check_choice("direction", direction, DIRECTIONS)
    _check_choice("support", support, SUPPORTS)
    alpha = check_number(alpha, "alpha", 0, 1)
    num_layers = check_int(num_layers, "num_layers", 1)
    num_visual = check_int(num_visual, "num_visual", 0)
    layers = scaled_layers(num_layers) if layers is None else check_ints(layers, "layers")
    _check_layers(layers, num_layers)
    if accumulate is None:
        accumulate = range(layers[0], layers[-1] + 1)
    accumulate = check_ints(accumulate, "accumulate")
    if not accumulate or not 1 <= min(accumulate) <= layers[0]:
        raise ValueError(
            f"accumulate={accumulate}: at least one of these layers must have run at the first "
            f"cut, after layer {layers[0]}"
        )
    if (keep is None) == (ratios is None):
        raise ValueError(f"keep={keep}, ratios={ratios}: needs one of the two")
    if ratios is None:
        left = counts(num_layers, keep, num_visual, layers, budget)
    else:
        ratios = _check_ratios(ratios, layers)
        left = [int(r * num_visual) for r in ratios]                # of the original number
    plan = functools.partial(
        plan_cut, accumulate=accumulate, direction=direction, support=support, alpha=alpha
    )
    cuts = []
    for after, count in zip(layers, left, strict=True):
        watch = tuple(layer for layer in accumulate if layer <= after)
        cuts.append(Stage(after, count, plan, watch))
    return cuts


def _check_layers(layers: tuple[int, ...], num_layers: int) -> None:
    rise = list(layers) == sorted(set(layers))
    if not layers or not rise or not 1 <= layers[0] <= layers[-1] < num_layers:
        raise ValueError(
            f"layers={layers} must rise and lie in 1 ... {num_layers - 1}: the layer after a cut "
            f"is asked for its attention"
        )


def _check_ratios(ratios: tuple[float, ...], layers: tuple[int, ...]) -> tuple[float, ...]:
    ratios = check_numbers(ratios, "ratios")
    fall = list(ratios) == sorted(ratios, reverse=True)
    if len(ratios) != len(layers) or not fall or not all(0 <= r <= 1 for r in ratios):
        raise ValueError(
            f"ratios={ratios} must have one entry in 0 ... 1 for each cut, after layers {layers}, "
            f"and not rise"
        )
    return ratios


METHOD = Method(
    "transprune", "TransPrune", paper=PAPER, stages=stages, asks=True, positions="renumber"
)
