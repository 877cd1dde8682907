"""VisionDrop - Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment (Xu, Wang,
Luo, Du, AAAI 2026, arXiv 2506.22283).

The idea: pruners inside a language model let the question choose, but there the text looks at the
visual tokens nearest to it (causal order), from deep, entangled representations, without a sense of
the grid. VisionDrop ranks visual tokens by what visual tokens attend to, in the encoder and again
at several depths of the language model. At each stage the best stay as "dominant" tokens and the
others are folded into a few "contextual" ones.

    stage 0, encoder:  score_n = [CLS] row over the patches,      score, prune
                       summed over heads
    stages 1-3, LLM:   score_n = mean over visual rows and        visual_score, stages
                       heads of softmax(q k^T / sqrt(P)), with
                       q, k of the next layer; softmax over the
                       whole causal row, then visual columns only
    dominant = top d by score
    contextual_j = target_j + mean of its followers               reduce, tokens.merge
    tokens per stage                                              schedule

[CLS] counts as a dominant token: its hidden state goes through the projector and becomes a visual
token. Contextual tokens stand behind the dominant ones, and the next stage's strided targets run
over that order. "32 tokens" is the mean of 48, 35, 26, 19.

How it differs from the official code (Ruixxxx/VisionDrop, on VisionZip and PyramidDrop): both
stages share one merge; contextual=0 skips it (there: division by zero) and grouped keys are
repeated (there: not needed). Not in the release: the score of encoders without [CLS] (paper text),
budgets other than that of 32 tokens (`schedule` continues its geometric rule: inferred), and
`normalise` (`visual_score`), which is no part of the paper: under the causal mask more rows see
early tokens, and early rows share their attention among fewer keys, so the score favours the top of
the picture.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import check_axes, check_finite, check_int, check_ints, check_number, check_tokens
from ..tokens import Plan, Stage, VisionOutputs, keep_all, resolve_keep, top_tokens
from ..tokens.checks import check_scores
from ..tokens.merge import merge_to_targets
from ..tokens.precision import widen
from ..tokens.vision import check_vision
from .method import Method

if TYPE_CHECKING:
    from ..vlm.decoder import State

PAPER = "visiondrop"
NORMALISE = ("none", "column", "chance")


# ---------------------------------------------------------------- budgets
def default_contextual(keep: int) -> int:
    """c of d + c = keep: an eighth, rounded up (6, 5, 4, 3 of the release's 48, 35, 26, 19), but
    never all."""
    keep = check_int(keep, "keep", 0)
    eighth = -(-keep // 8)
    return max(0, min(eighth, keep - 1))


def schedule(average: int | float, num_stages: int = 4) -> list[tuple[int, int]]:
    """(dominant, contextual) of each stage, the encoder's first, for about `average` tokens in the
    mean over layers.

    The release's [(42, 6), (30, 5), (22, 4), (16, 3)] for 32 follows 1.5 average 0.73^s; other
    budgets by that rule are inferred, and up to rounding 0.5 % below `average`. ValueError unless
    average >= 1 and num_stages >= 1.
    """
    average = check_number(average, "average", 1)
    num_stages = check_int(num_stages, "num_stages", 1)
    totals = [max(1, round(1.5 * average * 0.73**s)) for s in range(num_stages)]
    contextual = [default_contextual(total) for total in totals]
    return [(total - c, c) for total, c in zip(totals, contextual, strict=True)]


def reduce(
    score: Tensor,
    keys: Tensor,
    keep: int,
    contextual: int | None = None,
    num_prefix: int = 0,
) -> Plan:
    """The step that all stages share: d = keep - contextual dominant tokens in raster order, then
    the contextual ones.

    Args:
        score: (B, N - num_prefix).
        keys: (B, N, P), what "alike" is measured on.
        keep: d + c, an int in 1 ... N; N changes nothing.
        contextual: c; None = `default_contextual`; 0 = drop the others.
        num_prefix: so many first tokens are always dominant, and count.

    ValueError for a keep out of range, a contextual that leaves no dominant token, shapes that do
    not fit, a score or keys that are not floating or not finite.
    """
    check_tokens(keys, name="keys")
    check_finite(keys, "keys")
    batch, num_tokens, _ = keys.shape
    num_prefix = check_int(num_prefix, "num_prefix", 0, num_tokens - 1)
    check_scores(score, "score", (batch, num_tokens - num_prefix))
    keep = resolve_keep(keep, num_tokens)
    least = max(1, num_prefix)
    if keep < least:
        raise ValueError(f"keep={keep} but the {num_prefix} prefix tokens alone count {num_prefix}")
    if contextual is None:
        contextual = min(default_contextual(keep), keep - least)
    contextual = check_int(contextual, "contextual")
    if not 0 <= contextual <= keep - least:
        raise ValueError(
            f"contextual={contextual} but keep={keep}: it must be an int in 0 ... {keep - least}"
        )
    if keep == num_tokens:
        return keep_all(batch, num_tokens, keys.device, num_prefix)
    score = F.pad(score, (num_prefix, 0), value=torch.inf)          # the prefix goes first
    dominant = top_tokens(score, keep - contextual)
    return merge_to_targets(keys, dominant, contextual, num_prefix)


# ---------------------------------------------------------------- stage 0: the encoder
def score(vision: VisionOutputs, layer: int | None = None) -> Tensor:
    """(B, N), float32 at least: attention of [CLS] to each patch, summed over heads.

    Without [CLS] (num_prefix = 0, paper text): attention received, summed over heads, mean over
    queries, in vision.attention[layer]; layer may be left out when only one was asked for.
    """
    check_vision(vision)
    if vision.num_prefix or vision.cls_row is not None:
        if vision.cls_row is None:
            raise ValueError(
                "vision.cls_row is None but VisionDrop ranks by it: ask the encoder for "
                "need={'cls_row', 'keys'}"
            )
        check_axes(vision.cls_row, "vision.cls_row", "(B, heads, N)")
        return widen(vision.cls_row).sum(dim=1)                     # b n
    layers = sorted(vision.attention)
    if layer is None and len(layers) == 1:
        layer = layers[0]
    if layer not in vision.attention:
        raise ValueError(
            f"layer={layer} but vision.attention has the layers {layers}: without [CLS] one is "
            f"needed"
        )
    check_axes(vision.attention[layer], "vision.attention[layer]", "(B, heads, S, S)")
    return widen(vision.attention[layer]).sum(dim=1).mean(dim=1)    # b h q n -> b n


def prune(
    vision: VisionOutputs,
    keep: int | float,
    contextual: int | None = None,
    layer: int | None = None,
) -> Plan:
    """Stage 0: the plan for `vision.selected`, [CLS] included: it is in the plan, and it counts in
    `keep`.

    Args:
        vision: what the encoder made, with `keys` and `cls_row`.
        keep: d + c tokens, or a fraction of all prefix + N.
        contextual: c, see `reduce`.
        layer: see `score`.
    """
    check_vision(vision)
    if vision.keys is None:
        raise ValueError(
            "vision.keys is None but VisionDrop merges by keys: ask the encoder for "
            "need={'cls_row', 'keys'}"
        )
    check_tokens(vision.keys, name="vision.keys")
    keep = resolve_keep(keep, vision.selected.shape[1])
    return reduce(score(vision, layer), vision.keys, keep, contextual, vision.num_prefix)


# ---------------------------------------------------------------- stages 1-3: the language model
def visual_score(
    state: "State", normalise: str = "none", qk: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """(B, n): attention each visual token receives from visual tokens in the layer to come, mean
    over heads and over visual rows.

    The softmax runs over the whole causal row, text before the image included, and is not
    re-normalised. Column j is seen by the rows i >= j only, and row i shares its attention among
    p + i + 1 keys (p text tokens before the image). So by `normalise`:
    - "none", the paper's: the sum over rows / n. Identical tokens get 1/n sum_{i>=j} 1/(p+i+1),
      falling steeply in j.
    - "column": the sum / (n - j), the rows that see j. From mean_i 1/(p+i+1) at j = 0 to 1/(p+n):
      less steep, the same order.
    - "chance": "column" of (p+i+1) x attention, which is 1 where a row has no preference. Identical
      tokens all get 1.

    Args:
        state: `vtlib.vlm.decoder.State`; rows of tokens that are only hidden (mode "mask") do not
            vote.
        normalise: one of NORMALISE.
        qk: `state.qk()`, if known.
    """
    if normalise not in NORMALISE:
        raise ValueError(f"normalise={normalise!r} must be one of {NORMALISE}")
    attention = state.attention(rows=state.visual, qk=qk)           # b heads rows s
    attention = attention[..., state.visual].mean(dim=1)            # b rows columns
    if normalise == "chance":
        keys_seen = state.valid.cumsum(dim=1)[:, state.visual, None]
        attention = attention * keys_seen
    votes = state.alive.to(attention.dtype)                         # b rows
    received = (votes[..., None] * attention).sum(dim=1)            # b columns
    if normalise == "none":
        voters = votes.sum(dim=1, keepdim=True)
    else:
        voters = votes.flip(1).cumsum(dim=1).flip(1)                # rows i >= j
    return received / voters.clamp(min=1)


def plan_stage(
    state: "State", keep: int, contextual: int | None = None, normalise: str = "none"
) -> Plan:
    """One cut: `visual_score`, then `reduce` with the next layer's rotated keys, mean over heads,
    as metric.

    Args:
        state: `vtlib.vlm.decoder.State`.
        keep: d + c of the visual tokens; may be 0.
        contextual: c; None = `default_contextual`.
        normalise: see `visual_score`.
    """
    qk = state.qk()
    received = visual_score(state, normalise, qk)
    if contextual is None:
        contextual = default_contextual(keep)
    if keep == 0 or contextual == 0:
        return state.top(received, keep)
    keys = qk[1][:, :, state.visual].mean(dim=1)                    # b n p
    return reduce(received, keys, keep, contextual)


def stages(
    budgets: Sequence[int | float | tuple[int, int]],
    num_layers: int,
    after: Sequence[int] | None = None,
    contextual: int | None = None,
    normalise: str = "none",
) -> list[Stage]:
    """Stages 1, 2, ... for `Decoder.prefill(..., stages=...)`; the release's positions are
    positions="renumber".

    Args:
        budgets: tokens left after each cut, as pairs (dominant, contextual), or totals (int, or
            fraction of the visual tokens the decoder was given) that `contextual` splits.
        num_layers: of the decoder.
        after: how many layers have run at each cut; None: equal groups, 8, 16, 24 of 32.
        contextual: c of totals; None = `default_contextual`.
        normalise: see `visual_score`.

    ValueError for cuts that are not in rising order or have no layer behind them (the scores are
    those of the next layer).
    """
    num_layers = check_int(num_layers, "num_layers", 1)
    if contextual is not None:
        contextual = check_int(contextual, "contextual", 0)
    if not isinstance(budgets, Sequence) or isinstance(budgets, str):
        raise ValueError(f"budgets={budgets!r}: needs a sequence of counts, or of pairs")
    if after is None:
        after = [num_layers * (s + 1) // (len(budgets) + 1) for s in range(len(budgets))]
    after = check_ints(after, "after")
    if len(after) != len(budgets):
        raise ValueError(
            f"after={list(after)} has {len(after)} entries but there are {len(budgets)} budgets"
        )
    rises = list(after) == sorted(set(after))
    if not rises or any(not 0 <= a < num_layers for a in after):
        raise ValueError(
            f"after={list(after)} must rise and stay in 0 ... {num_layers - 1}: a cut needs a next "
            f"layer"
        )
    if normalise not in NORMALISE:
        raise ValueError(f"normalise={normalise!r} must be one of {NORMALISE}")
    return [
        _stage(layer, budget, contextual, normalise)
        for layer, budget in zip(after, budgets, strict=True)
    ]


def _stage(
    after: int, budget: int | float | tuple[int, int], contextual: int | None, normalise: str
) -> Stage:
    if isinstance(budget, tuple):
        dominant, contextual = check_ints(budget, "budgets: a pair", length=2)
        if dominant < 1 or contextual < 0:
            raise ValueError(
                f"budgets has ({dominant}, {contextual}): at least one dominant token and no "
                f"negative number of contextual ones"
            )
        budget = dominant + contextual
    plan = functools.partial(plan_stage, contextual=contextual, normalise=normalise)
    return Stage(after, budget, plan)


def _keep_before(keep: int, num_tokens: int) -> int:
    """Tokens that stage 0 leaves when `keep` is the mean of all four stages."""
    return min(sum(schedule(keep)[0]), num_tokens)


def _later_stages(num_layers: int, keep: int, num_visual: int) -> list[Stage]:
    """Stages 1-3 of the same schedule."""
    keep = check_int(keep, "keep", least=1)
    totals = [min(sum(budget), num_visual) for budget in schedule(keep)[1:]]
    return stages(totals, num_layers)


METHOD = Method(
    "visiondrop",
    "VisionDrop",
    paper=PAPER,
    prune=prune,
    stages=_later_stages,
    keep_before=_keep_before,
    reads=("cls_row", "keys"),
    reads_without_cls=("attention", "keys"),
    space="selected",
)
