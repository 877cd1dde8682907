"""FasterVLM - [CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM
Inference Faster (Zhang, Cheng, Lu, Zhuo, Wang, Cao, Guo, She, Zhang, 2024, arXiv 2412.01818 v1;
version 2 of the same number is another method, VisPruner).

The idea: inside the language model the text's attention to visual tokens is shifted (rotary
positions pull it to the late, lower rows) and dispersed, so it is a poor judge at high ratios. The
[CLS] query of the vision encoder is concentrated and free of both. So keep the patches that [CLS]
looks at, before the language model sees anything: prefill, cache and decoding all get shorter.

    a = softmax(q_cls K^T / sqrt(P))     cls_row   one row, of the layer the features come from; no
                                                   N x N map is formed
    s_n = mean over heads of a_n         score     key 0, [CLS] itself, is cut away and the row is
                                                   NOT renormalised
    top T, in raster order               select
    the three together                   prune, prune_views (a base view and crops: T tokens from
                                                   EVERY view)
    analysis of the two faults           concentration, rope_bias

Hidden states and attention must come from the same layer: LLaVA's hidden_states[-2] and
attentions[-2] do, as there is one more of the former. An untrained [CLS] (an encoder whose loss
never touched it) gives noise.

Different from the release: the plan applies to the projector's input (same result as masking after
it, and cheaper); ties go to the lower index (there: whatever topk returns); too large a `keep` is
an error here; no special case for prompts without an image. Positions are re-numbered by whoever
feeds the language model.
"""

import torch
from torch import Tensor

from ..nn import apply_rope, rope_1d
from ..nn.checks import (
    autocasts,
    check_axes,
    check_flag,
    check_generator,
    check_int,
    check_number,
    readable,
)
from ..tokens import Plan
from ..tokens.checks import check_grid, check_scores
from ..tokens.plan import keep_best
from ..tokens.precision import widen
from ..tokens.views import join_views
from ..tokens.vision import VisionOutputs, check_vision
from .method import Method

PAPER = "fastervlm"


def cls_row(q: Tensor, k: Tensor, num_prefix: int = 1, scale: float | None = None) -> Tensor:
    """Attention of [CLS] over the patches, softmax(q_0 K^T scale) over all keys, without the other
    rows: H N P multiply-adds, not H N^2 P.

    Args:
        q: (B, heads, prefix + N, P); query 0 is [CLS]. That query alone will do.
        k: (B, heads, prefix + N, P).
        num_prefix: keys in front of the patches, [CLS] and registers.
        scale: None is P^-0.5.

    Returns (B, heads, N), whose rows sum to 1 minus what [CLS] gives to the prefix tokens.
    ValueError when there is no prefix (then there is no [CLS]) and for what is no floating tensor.
    """
    check_axes(q, "q", "(B, heads, prefix + N, P)")
    check_axes(k, "k", "(B, heads, prefix + N, P)")
    alike = q.dtype == k.dtype or autocasts(q.device)
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3] or not alike:
        raise ValueError(
            f"q is {q.dtype} {tuple(q.shape)} and k {k.dtype} {tuple(k.shape)}: they must agree in "
            f"B, heads, P and dtype"
        )
    num_prefix = check_int(num_prefix, "num_prefix", most=k.shape[-2])
    if num_prefix < 1:
        raise ValueError(
            f"num_prefix={num_prefix} but the row of [CLS] needs a [CLS] token before the patches"
        )
    if scale is None:
        scale = q.shape[-1] ** -0.5
    scale = check_number(scale, "scale")
    logits = (q[:, :, :1] * scale) @ k.transpose(-2, -1)            # b heads 1 prefix+n
    return logits.softmax(dim=-1)[:, :, 0, num_prefix:]


def score(row: Tensor) -> Tensor:
    """Importance of each patch: mean over heads of the [CLS] row, (B, heads, N) -> (B, N), float32
    at least.

    The softmax was taken inside attention.
    """
    check_axes(row, "row", "(B, heads, N)")
    return widen(row).mean(dim=1)


def select(scores: Tensor, keep: int | float) -> Plan:
    """The `keep` patches with the highest scores (B, N), in raster order.

    Ties go to the lower index, so the choices are nested in `keep`. ValueError: keep out of range,
    scores that are not floating (B, N) or not finite.
    """
    return keep_best(scores, keep)


def prune(vision: VisionOutputs, keep: int | float) -> Plan:
    """Keep the patches [CLS] attends to most (section 3 of the paper).

    Plan over `vision.features`; needs `vision.cls_row`.
    """
    check_vision(vision)
    if vision.cls_row is None:
        raise ValueError(
            "vision.cls_row is None: FasterVLM needs an encoder with a trained [CLS], and its row "
            "asked for (`reads`)"
        )
    check_axes(vision.cls_row, "vision.cls_row", "(B, heads, N)")
    return select(score(vision.cls_row), keep)


def prune_views(vision: VisionOutputs, keep: int | float, crops: tuple[int, int]) -> Plan:
    """High resolution: every view, the base image and the R x C crops, keeps `keep` of its own
    patches; then the crops are put together into one big raster (`vtlib.tokens.views.view_order`).

    Args:
        vision: B (1 + R C) views: base view first, then crops row by row, image after image.
        keep: patches of each view; 5 views that keep 29 leave 145 tokens.
        crops: (R, C).

    Returns a plan for B images of (1 + R C) N tokens, to be applied to
    `rearrange(vision.features, "(b v) n d -> b (v n) d", v=1 + R * C)`.
    """
    crops = check_grid(crops, name="crops")
    return join_views(prune(vision, keep), crops, vision.grid)


# ---------------------------------------------------------------- attention as a judge: analysis
def concentration(scores: Tensor) -> Tensor:
    """Share of all attention that the t highest-scoring tokens hold, t = 1 ... N.

    (B, N) -> (B, N), rising to 1, float32 at least. The diagonal, t / N, is attention spread evenly
    ("dispersed"); the higher above it, the safer it is to drop the tail. ValueError for a row
    without attention: there is nothing to share.
    """
    check_scores(scores)
    ordered = widen(scores).sort(dim=1, descending=True).values
    total = ordered.sum(dim=1, keepdim=True)
    if readable(total) and not (total > 0).all():
        image = int((total[:, 0] <= 0).nonzero()[0])
        raise ValueError(
            f"scores[{image}] sums to {total[image].item()}: shares of attention need a sum above 0"
        )
    return ordered.cumsum(dim=1) / total


def rope_bias(
    num_visual: int,
    head_dim: int = 128,
    agreement: float = 1.0,
    samples: int = 256,
    same_position: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Where a text query looks when all visual tokens say the same to it, so that only rotary
    positions decide: the query stands right behind the visual tokens.

    Our own small model of the paper's attention shift, not a formula from it. Queries and keys are
    agreement * c + noise, c one normal direction a sample and noise normal for each.

    Args:
        num_visual: N.
        head_dim: P, even.
        agreement: 0 is independent noise, and then there is no bias whatever the positions.
        samples: how many draws the mean is taken over.
        same_position: all visual tokens share one place, the paper's control experiment.
        generator: of the draws; they are made on its device.
        device: of the result; None is torch's default.

    Returns (N,): the mean attention weight of each place, summing to 1; 1 / N is no bias.
    """
    num_visual = check_int(num_visual, "num_visual", least=1)
    samples = check_int(samples, "samples", least=1)
    head_dim = check_int(head_dim, "head_dim", least=2)
    agreement = check_number(agreement, "agreement")
    check_generator(generator, optional=True)
    cos, sin = rope_1d(num_visual + 1, head_dim, device=device)
    if check_flag(same_position, "same_position"):
        place = torch.zeros(num_visual + 1, dtype=torch.long, device=cos.device)
        place[-1] = num_visual
        cos, sin = cos[place], sin[place]
    drawn_on = cos.device if generator is None else generator.device
    shape = (samples, num_visual + 2, head_dim)
    draw = torch.randn(shape, generator=generator, device=drawn_on, dtype=cos.dtype).to(cos.device)
    x = agreement * draw[:, :1] + draw[:, 1:]                       # s n+1 p
    x = apply_rope(x[:, None], cos, sin)[:, 0]                      # s n+1 p
    visual, query = x[:, :-1], x[:, -1:]
    logits = (visual @ query.transpose(1, 2))[..., 0] * head_dim**-0.5
    return logits.softmax(dim=1).mean(dim=0)


METHOD = Method("fastervlm", "FasterVLM", paper=PAPER, prune=prune, reads=("cls_row",))
