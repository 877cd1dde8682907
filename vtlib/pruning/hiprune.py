"""HiPrune - Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models
(Liu, Du, Zhu, Lian, Li, Chen, 2025, arXiv 2508.00553).

The idea: attention inside a ViT has a hierarchy. Shallow layers are noisy, middle layers look at
the objects, deep layers look at a spread of register-like patches that hold global information. So
keep anchors (attended in a middle layer), buffers (their four neighbours, against noise and for
continuity) and registers (attended in the deep layer), which fill the budget. No [CLS], no text, no
training.

    a_l = mean over heads and over ALL queries of A_l         received
                                                  ([CLS] queries too; its key is then cut away)
    Qwen: sum over queries, mean over 2 x 2 merged patches    received_merged
    anchors: top round(T alpha / 5) of a_object               num_anchors, select
    buffers: i-1, i+1, i-W, i+W                               neighbourhood
    registers: top of a_deep among the others, to T exactly   select
    which layer is the object layer?                          object_iou, spread, layer_analysis

Object layers count from 1, as in the paper: layer 9 of CLIP is attentions[8] (`attention_layers`).
With alpha = 0.1 each anchor may cost five tokens, so over 90 % of what is kept are registers, and
below T = 26 there is no anchor at all.

Different from the release:
- W and N come from the grid (there: 24 and 576);
- neighbours stay inside the grid (wrap=True: its flat index, where the last patch of a row
  neighbours the first of the next);
- chosen patches cannot win a second place (exact=False: its "score minus 1", which fails for Qwen's
  sums, that exceed 1, and leaves slots empty);
- when five-token crosses do not fit the budget, buffers with the highest object score go first
  (there: an error).
HiPrune++ of a later version is not here.
"""

import torch
from torch import Tensor

from ..nn.checks import at_hand, check_axes, check_flag, check_index, check_int, check_number
from ..tokens import Plan, resolve_keep, top_tokens
from ..tokens.checks import check_grid, check_mask, check_scores
from ..tokens.precision import widen
from ..tokens.views import join_views
from ..tokens.vision import VisionOutputs, check_vision
from .method import Method

PAPER = "hiprune"
OBJECT_LAYER = 9  # of the 24 layers of CLIP ViT-L, counted from 1; Qwen2.5-VL: 16 of 32
ROLES = ("anchor", "buffer", "register")


def attention_layers(
    num_layers: int, object_layer: int = OBJECT_LAYER, deep_layer: int | None = None
) -> tuple[int, int]:
    """The keys of `VisionOutputs.attention` that HiPrune reads, (object, deep), counted from 0.

    Args:
        num_layers: of the encoder.
        object_layer: counted from 1.
        deep_layer: counted from 1. None is num_layers - 1, the layer of LLaVA's features; Qwen
            takes num_layers.
    """
    num_layers = check_int(num_layers, "num_layers", least=1)
    if deep_layer is None:
        deep_layer = num_layers - 1
    layers = []
    for name, given in (("object_layer", object_layer), ("deep_layer", deep_layer)):
        layer = check_int(given, name)
        if not 1 <= layer <= num_layers:
            raise ValueError(
                f"{name}={layer} counts from 1 and must lie in 1 ... {num_layers}, the layers of "
                f"the encoder"
            )
        layers.append(layer - 1)
    return layers[0], layers[1]


# ---------------------------------------------------------------- score
def received(attention: Tensor, num_prefix: int = 1) -> Tensor:
    """Attention that each patch receives: mean over heads and over all queries, prefix queries
    included. (B, heads, S, S) -> (B, S - prefix), float32 at least."""
    check_axes(attention, "attention", "(B, heads, S, S)")
    if attention.shape[2] != attention.shape[3]:
        raise ValueError(
            f"attention has shape {tuple(attention.shape)} but needs (B, heads, S, S)"
        )
    num_prefix = check_int(num_prefix, "num_prefix", 0, attention.shape[3])
    return widen(attention).mean(dim=(1, 2))[:, num_prefix:]


def received_merged(attention: Tensor, order: Tensor | None = None, merge: int = 4) -> Tensor:
    """Qwen2.5-VL: mean over heads, SUM over queries, mean over the patches that become one token,
    then the window permutation undone.

    Args:
        attention: (B, heads, S, S).
        order: (S / merge,) long: token order[i] of the picture stands at place i inside the encoder
            (Qwen's window_index); None: as it is.
        merge: consecutive patches that become one token.

    Returns (B, S / merge), float32 at least. ValueError for shapes that do not fit, and, on the CPU
    in eager mode, for an order that is no permutation.
    """
    check_axes(attention, "attention", "(B, heads, S, S)")
    merge = check_int(merge, "merge", 1)
    if attention.shape[3] % merge:
        raise ValueError(
            f"attention has shape {tuple(attention.shape)} but needs (B, heads, S, S), "
            f"merge={merge} dividing S"
        )
    by_patch = widen(attention).mean(dim=1).sum(dim=1)              # b s
    by_token = by_patch.unflatten(1, (-1, merge)).mean(dim=2)       # b n
    if order is None:
        return by_token
    _check_order(order, by_token.shape[1])
    return torch.empty_like(by_token).index_copy(1, order, by_token)


def _check_order(order: Tensor, num_tokens: int) -> None:
    check_index(order, "order", "(S / merge,)", (num_tokens,), num_tokens)
    if not at_hand(order):
        return
    missing = set(range(num_tokens)) - set(order.tolist())
    if missing:
        raise ValueError(
            f"order lacks place {min(missing)}: needs each of 0 ... {num_tokens - 1} once"
        )


def score(
    vision: VisionOutputs, object_layer: int = OBJECT_LAYER, deep_layer: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attention received in the object layer and in the deep layer, two (B, N).

    Args:
        vision: with the maps of both layers in `vision.attention`.
        object_layer: counted from 1.
        deep_layer: counted from 1; None is the deepest there.
    """
    check_vision(vision)
    if not vision.attention:
        raise ValueError(
            "vision.attention is empty: HiPrune needs the weights of two layers (attention_layers)"
        )
    if deep_layer is None:
        deep_layer = max(vision.attention) + 1
    object_layer = check_int(object_layer, "object_layer")
    deep_layer = check_int(deep_layer, "deep_layer")
    for name, layer in (("object_layer", object_layer), ("deep_layer", deep_layer)):
        if layer - 1 not in vision.attention:
            there = sorted(i + 1 for i in vision.attention)
            raise ValueError(
                f"{name}={layer} (counted from 1) but vision.attention holds the layers {there}"
            )
    object_score = received(vision.attention[object_layer - 1], vision.num_prefix)
    deep_score = received(vision.attention[deep_layer - 1], vision.num_prefix)
    return object_score, deep_score


# ---------------------------------------------------------------- select
def num_anchors(keep: int, alpha: float) -> int:
    """round(keep alpha / 5), Python's rounding.

    alpha is the share of anchors and buffers, in [0, 1], and each anchor may bring four buffers.
    """
    keep = check_int(keep, "keep", 0)
    return round(keep * check_number(alpha, "alpha", 0, 1) / 5)


def neighbourhood(index: Tensor, grid: tuple[int, int], wrap: bool = False) -> Tensor:
    """The patches `index` and their left, right, upper and lower neighbours, as a mask.

    Args:
        index: (B, A) long.
        grid: (h, w).
        wrap: the release's flat index, i - 1, i + 1, i - w, i + w, limited to 0 ... N - 1: rows are
            joined end to start, and the first and the last patch are neighbours of their whole row.

    Returns (B, h w) bool. ValueError for an index or a grid that is none.
    """
    h, w = check_grid(grid)
    check_index(index, "index", "(B, A)", stop=h * w)
    row, col = index // w, index % w
    if check_flag(wrap, "wrap"):
        around = [(index + step).clamp(0, h * w - 1) for step in (-1, 1, -w, w)]
    else:
        inside = ((-1, col > 0), (1, col < w - 1), (-w, row > 0), (w, row < h - 1))
        around = [torch.where(there, index + step, index) for step, there in inside]
    mask = torch.zeros(index.shape[0], h * w, dtype=torch.bool, device=index.device)
    return mask.scatter(1, torch.cat([index, *around], dim=1), True)


def _highest(scores: Tensor, count: int) -> Tensor:
    """(B, N) bool: the `count` highest scores of each row, ties to the lower index."""
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)


def select(
    object_score: Tensor,
    deep_score: Tensor,
    keep: int | float,
    grid: tuple[int, int],
    alpha: float = 0.1,
    wrap: bool = False,
    exact: bool = True,
) -> Plan:
    """Anchors, then buffers, then registers, `keep` patches in all, in raster order.

    Args:
        object_score: (B, N), attention received in the object layer.
        deep_score: (B, N), attention received in the deep layer.
        keep: T, an int, or a fraction, which is rounded (Qwen's rule).
        grid: (h, w) with h w = N.
        alpha: share of anchors and buffers; 0: the top of the deep score.
        wrap: neighbours by the release's flat index, see the module.
        exact: False: the release's "score minus 1"; the plan may then have empty slots (-1, at the
            end).

    `Plan.role` says which is which. Ties go to the lower index. ValueError: keep or alpha out of
    range, scores that are not floating or not finite, shapes that do not fit.
    """
    check_scores(object_score, "object_score")
    check_scores(deep_score, "deep_score", tuple(object_score.shape))
    batch, num_tokens = object_score.shape
    grid = check_grid(grid, num_tokens)
    keep = resolve_keep(keep, num_tokens)

    count = num_anchors(keep, alpha)
    anchors = object_score.argsort(dim=1, descending=True, stable=True)[:, :count]
    is_anchor = torch.zeros_like(object_score, dtype=torch.bool).scatter(1, anchors, True)
    exact = check_flag(exact, "exact")
    chosen = neighbourhood(anchors, grid, wrap)                     # b n, at most 5 count
    if 5 * count > keep:                                            # crosses may not fit
        order = object_score.masked_fill(~chosen, -torch.inf)
        order = order.masked_fill(is_anchor, torch.inf)             # anchors go first
        chosen = chosen & _highest(order, keep)

    kept = chosen | _registers(deep_score, chosen, keep, exact)
    place = torch.arange(num_tokens, device=kept.device)
    index = torch.where(kept, place, num_tokens).sort(dim=1).values[:, :keep]
    index = index.masked_fill(index == num_tokens, -1)              # raster order, empty slots last
    role = torch.where(chosen, 1, 2).masked_fill(is_anchor, 0)
    return Plan(index, num_tokens, role=role.gather(1, index.clamp(min=0)), roles=ROLES)


def _registers(deep_score: Tensor, chosen: Tensor, keep: int, exact: bool) -> Tensor:
    """(B, N) bool: the patches with the highest deep score that bring `chosen` to `keep`."""
    if exact:
        left = deep_score.masked_fill(chosen, -torch.inf)
    else:
        left = deep_score - chosen.to(deep_score.dtype)
    best = left.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(best.shape[1], device=best.device).expand_as(best)
    rank = torch.empty_like(best).scatter(1, best, place)           # 0 for the highest
    return rank < keep - chosen.sum(dim=1, keepdim=True)


def prune(
    vision: VisionOutputs,
    keep: int | float,
    object_layer: int = OBJECT_LAYER,
    deep_layer: int | None = None,
    alpha: float = 0.1,
    wrap: bool = False,
) -> Plan:
    """Keep anchors, buffers and registers: `score`, then `select`.

    Plan over `vision.features`; needs `vision.attention` of both layers.

    Args:
        vision: what the encoder made.
        keep: T, an int or a fraction.
        object_layer: counted from 1.
        deep_layer: counted from 1; None is the deepest there.
        alpha: share of anchors and buffers.
        wrap: neighbours by the release's flat index.
    """
    object_score, deep_score = score(vision, object_layer, deep_layer)
    return select(object_score, deep_score, keep, vision.grid, alpha, wrap)


def prune_views(
    vision: VisionOutputs,
    total: int,
    crops: tuple[int, int],
    object_layer: int = OBJECT_LAYER,
    deep_layer: int | None = None,
    alpha: float = 0.1,
    wrap: bool = False,
) -> Plan:
    """High resolution: the budget of an image is shared equally by its 1 + R C views, and the crops
    are put together into one big raster. Plan as `join_views`.

    Args:
        vision: B (1 + R C) views: base view first, then crops row by row, image after image.
        total: tokens of one image, 640 / 320 / 160 in the paper: int(total / views) in each view.
        crops: (R, C).
        object_layer: counted from 1.
        deep_layer: counted from 1; None is the deepest there.
        alpha: share of anchors and buffers.
        wrap: neighbours by the release's flat index.
    """
    crops = check_grid(crops, name="crops")
    views = 1 + crops[0] * crops[1]
    total = check_int(total, "total")
    if total < views:
        raise ValueError(f"total={total} tokens for {views} views: each view needs at least one")
    plan = prune(vision, total // views, object_layer, deep_layer, alpha, wrap)
    return join_views(plan, crops, vision.grid)


# ---------------------------------------------------------------- which layer looks at objects
def object_iou(scores: Tensor, mask: Tensor, top: int | float = 0.1) -> Tensor:
    """Overlap of the most attended patches with the objects, intersection over union.

    Args:
        scores: (B, N).
        mask: (B, N) bool: patches with an object.
        top: how many patches count as attended, an int or a fraction (the paper: 10 %).

    Returns (B,), float32.
    """
    check_scores(scores)
    check_mask(mask, "mask", scores.shape)
    attended = torch.zeros_like(mask).scatter(1, top_tokens(scores, top), True)
    both, either = (attended & mask).sum(dim=1), (attended | mask).sum(dim=1)
    return both.float() / either.float()


def spread(scores: Tensor, grid: tuple[int, int], top: int | float = 0.1) -> Tensor:
    """Mean distance on the grid, in patches, of all pairs among the most attended patches.

    Small: one object; large: all over.

    Args:
        scores: (B, N).
        grid: (h, w).
        top: how many patches count as attended, an int or a fraction; two at least.

    Returns (B,).
    """
    check_scores(scores)
    width = check_grid(grid, scores.shape[1])[1]
    index = top_tokens(scores, top)
    count = index.shape[1]
    if count < 2:
        raise ValueError(
            f"top={top} of {scores.shape[1]} patches is one patch, and a distance needs two"
        )
    place = torch.stack([index // width, index % width], dim=-1).to(torch.float32)  # b t 2
    offset = place[:, :, None] - place[:, None]                     # b t t 2
    distance = offset.square().sum(dim=-1).sqrt()
    return distance.sum(dim=(1, 2)) / (count * (count - 1))


def layer_analysis(
    vision: VisionOutputs, mask: Tensor, top: int | float = 0.1
) -> tuple[list[int], Tensor, Tensor]:
    """For each layer in `vision.attention`, the mean over images of `object_iou` and of `spread` of
    the received attention. The object layer is the IoU's peak.

    Args:
        vision: with the maps of the layers to compare.
        mask: (B, N) bool: patches with an object.
        top: how many patches count as attended, an int or a fraction.

    Returns (layers counted from 1, IoU (L,), spread (L,)).
    """
    check_vision(vision)
    layers = sorted(vision.attention)
    if not layers:
        raise ValueError(
            "vision.attention is empty: ask the encoder for the weights of the layers to compare"
        )
    scores = [received(vision.attention[layer], vision.num_prefix) for layer in layers]
    overlap = torch.stack([object_iou(s, mask, top).mean() for s in scores])
    distance = torch.stack([spread(s, vision.grid, top).mean() for s in scores])
    return [layer + 1 for layer in layers], overlap, distance


METHOD = Method(
    "hiprune",
    "HiPrune",
    paper=PAPER,
    prune=prune,
    reads=("attention",),
    layers=attention_layers,
)
