"""FastV - An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for
Large Vision-Language Models (Chen, Zhao, Liu, Bai, Lin, Zhou, Chang, ECCV 2024, arXiv 2403.06764).
The baseline of every method that prunes inside the decoder.

The idea: from the third layer on a decoder hardly looks at the picture. So let K layers run, ask
how much attention the prompt's last token paid to each visual token, keep the best, drop the rest,
once and for good.

    s_i = mean over heads of a_K[last, i]           score    a_K: attention of layer K (1-based),
                                                             the last one that has run
    the best T stay, in order, at their places      stages   one cut after layer K; RoPE positions
                                                             are kept

Which attention: the K-th layer's, as the official code has it (0-based index K - 1: what has been
computed already; K = 2 means layers 1 and 2 run on everything). layer="next" asks the layer to come
instead, whose queries and keys have to be computed for it. The paper's R is what is dropped,
keep = 1 - R. Only the last token's row is looked at: what another word asks about is not seen.
"""

import torch
from torch import Tensor

from ..nn.checks import check_axes, check_index, check_int
from ..tokens import Plan, Stage, resolve_keep, take
from ..tokens.precision import widen
from .method import Method

AFTER = 2
"""The paper's K."""
BUDGETS = ("final", "mean")
LAYERS = ("last", "next")


def score(attention: Tensor, last: Tensor) -> Tensor:
    """s = mean over heads of the last token's row -> (B, S), float32 at least.

    attention (B, heads, R, S): weights of R rows; last (B,) long: which of them is it.
    """
    check_axes(attention, "attention", "(B, heads, R, S)")
    check_index(last, "last", "(B,)", (attention.shape[0],), attention.shape[2])
    row = take(attention.transpose(1, 2), last[:, None])[:, 0]      # b heads s
    return widen(row).mean(dim=1)


def stages(
    num_layers: int,
    keep: int | float,
    num_visual: int,
    after: int = AFTER,
    layer: str = "last",
    budget: str = "final",
) -> list[Stage]:
    """One cut after layer `after`.

    Args:
        num_layers: L, of the decoder.
        keep: an int or a fraction of num_visual.
        num_visual: N, visual tokens at the start.
        after: the paper's K.
        layer: "last", the attention of layer K as in the release, or "next", of layer K + 1.
        budget: "final": keep is what the cut leaves (the paper's 1 - R). "mean": keep is the mean
            over all layers, the first K of which see all: T = (L keep - K N) / (L - K), rounded
            down.

    ValueError: keep out of range or, as a mean, below what is left when one token stays; K outside
    1 ... L - 1 (0 is fine with "next"); a prompt without text behind the image (when the cut is
    made).
    """
    if layer not in LAYERS or budget not in BUDGETS:
        raise ValueError(
            f"layer={layer!r}, budget={budget!r}: need one of {LAYERS}, and one of {BUDGETS}"
        )
    num_layers = check_int(num_layers, "num_layers", 1)
    num_visual, after = check_int(num_visual, "num_visual", 0), check_int(after, "after")
    first = int(layer == "last")                                    # a layer must have run
    if not first <= after < num_layers:
        raise ValueError(
            f"after={after} but it must lie in {first} ... {num_layers - 1}: a layer whose "
            f"attention is read (layer={layer!r}), and a later one to save"
        )
    left = resolve_keep(keep, num_visual)
    if budget == "mean":
        left = (num_layers * left - after * num_visual) // (num_layers - after)
        if left < 1:
            least = (after * num_visual + num_layers - after) / num_layers
            raise ValueError(
                f"keep={keep} as the mean over {num_layers} layers: a cut after layer {after} "
                f"leaves at least {least:.1f} of {num_visual}"
            )

    def plan(state, keep) -> Plan:
        count = state.alive.shape[1]
        if resolve_keep(keep, count, least=0) == count:             # all of them: nothing to read
            return state.top(state.hidden.new_zeros(state.alive.shape), count)
        rows = slice(state.visual.stop, None)
        attention = state.attention(rows, layer)
        return state.top(score(attention, _last(state.asking[:, rows]))[:, state.visual], keep)

    return [Stage(after, left, plan)]


def _last(asking: Tensor) -> Tensor:
    """(B,): the last row that is no padding, of asking (B, R) bool."""
    if asking.shape[1] == 0:
        raise ValueError(
            "FastV reads the attention of the prompt's last token: there is no text behind the "
            "image"
        )
    place = torch.arange(asking.shape[1], device=asking.device)
    return torch.where(asking, place, 0).amax(dim=1)


METHOD = Method(
    "fastv", "FastV (last word's attention)", stages=stages, asks=True, positions="keep"
)
