"""Recoverable Compression - A Multimodal Vision Token Recovery Mechanism Guided by Text Information
(Chen, Xu, Zhang, Liu, Liu, Liu, AAAI 2025, arXiv 2409.01179).

The idea: what is visually dull may be just what the question asks for. So after a visual filter,
tokens whose embedding is close to the question are recovered; the rest is gathered around a few
centres instead of being dropped. How many tokens that makes is not a setting: each time, as many of
the highest scores are kept as the scores have local outliers.

    a = softmax(q_CLS k^T / sqrt(C)) without the [CLS] key      visual_score
    s_j = cos(t, v_j) / sqrt(D)                                 text_score
    outlier: mean lrd of the n nearest scores > 1.5 lrd;        local_outliers
        share = outliers / scores                               (dynamic scale filter)
    visual: the n_v = N share largest a                         filters
    text: of the others the (N - n_v) share largest s           filters
    centres: of the R tokens left the n_c = R share largest a   filters
    F_i + sum over the 32 best j of a_j F_j,                    select, `_gather`
        best by cos(k_i, k_j) + 50 s_j                          (secondary recovery)
    extra token = sum of a_j F_j over tokens that are           select
        neither kept nor centre
    [kept, ascending; centres by falling a; extra]              select -> `Plan`

Sums are not normalised, and a token may go to several centres and to the extra token. Without a
centre there is no extra token either.

The constants 20, 20, 10 neighbours, 32 and 50 are from the official code
(banjiuyufen/Recoverable-Compression), which handles one image at a time and differs in three places
that a flag copies each:
- released_center_count takes int(C share) centres, C being the width of the features (the intent,
  R, is inferred);
- released_key_index reads the key of the p-th token left at place p of ALL keys;
- released_float_count counts with int(n * (outliers / n)) in float64, which loses one where the
  product falls just short (29 outliers of 100 keep 28).
Ties go to the lower index (there: to topk). `keep` is this package's extension: the paper has no
budget.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import (
    as_flag,
    at_hand,
    check_finite,
    check_flag,
    check_float,
    check_index,
    check_int,
    check_ints,
    check_number,
    check_tokens,
    describe,
)
from ..tokens import Plan, VisionOutputs, keep_all, resolve_keep, take
from ..tokens.checks import check_mask, check_scores
from ..tokens.cosine import unit
from ..tokens.precision import full_precision, widen
from ..tokens.vision import check_vision
from .method import Method

PAPER = "recoverable-compression"
ROLES = ("vision", "text", "centre", "extra", "empty")
VISION, TEXT, CENTRE, EXTRA, EMPTY = range(len(ROLES))
THRESHOLD = 1.5
GUARD = 1e-10


# ---------------------------------------------------------------- score
def visual_score(query: Tensor, key: Tensor, num_prefix: int = 1) -> Tensor:
    """a (B, N): attention of [CLS] as ONE head of width C.

    The softmax runs over all keys, the prefix included: sum(a) = 1 - what [CLS] and registers get.

    Args:
        query: (B, prefix + N, C), q_proj of the encoder's LAST layer.
        key: (B, prefix + N, C), k_proj of the same layer.
        num_prefix: tokens in front of the patches.
    """
    check_tokens(query, name="query")
    check_tokens(key, name="key")
    query, key = widen(query), widen(key)
    if (len(query), query.shape[2], query.dtype) != (len(key), key.shape[2], key.dtype):
        raise ValueError(
            f"query is {describe(query)} and key {describe(key)}: they must agree in B, C and dtype"
        )
    num_prefix = check_int(num_prefix, "num_prefix", 0, key.shape[1])
    with full_precision(query.device):
        cls = query[:, :1]                                          # b 1 c
        logits = (cls @ key.mT)[:, 0] * key.shape[-1] ** -0.5    # b prefix+n
    return logits.softmax(dim=-1)[:, num_prefix:]


def text_score(text: Tensor, patches: Tensor) -> Tensor:
    """s (B, N) = cos(t, v_j) / sqrt(D), at most 1 / sqrt(D).

    text (B, D): the question; patches (B, N, D), same space.
    """
    check_float(text, "text")
    check_tokens(patches, name="patches")
    batch, dim = len(patches), patches.shape[2]
    if text.dim() != 2 or text.shape[1] != dim or len(text) not in (1, batch):
        raise ValueError(
            f"text has shape {tuple(text.shape)} but needs (B, D) = {(batch, dim)}, or one for all"
        )
    cosine = (unit(text)[:, None] * unit(patches)).sum(dim=-1)
    return cosine * patches.shape[-1] ** -0.5


# ---------------------------------------------------------------- dynamic scale filter
def local_outlier_factor(
    scores: Tensor, n_neighbors: int = 20, mask: Tensor | None = None
) -> Tensor:
    """Local outlier factor of each score among the scores of its row: about 1 inside a crowd, large
    where it is lonelier than its neighbours.

    With d_k(j) the distance of j to its k-th neighbour:
        lrd_i = 1 / (mean over i's neighbours j of max(d_k(j), |x_i - x_j|) + 1e-10)
        LOF_i = mean lrd_j / lrd_i
    (Breunig et al. 2000; the guard is scikit-learn's, whose negative_outlier_factor_ is -LOF). On a
    line the k nearest neighbours are among the k next ones to either side, so this costs
    O(N log N + N k) and not O(N^2).

    Args:
        scores: (B, N).
        n_neighbors: k, cut to the number of other scores.
        mask: (B, N) bool: which take part; the others get 1. None: all.

    Returns (B, N).
    """
    n_neighbors = check_int(n_neighbors, "n_neighbors", least=1)
    check_scores(scores)
    x = widen(scores)
    if mask is None:
        mask = torch.ones_like(x, dtype=torch.bool)
    check_mask(mask, "mask", x.shape)
    x, order = x.masked_fill(~mask, torch.inf).sort(dim=1, stable=True)  # left out: last
    taking_part = x.isfinite()
    distance, nearest, near = _neighbours(x, taking_part, n_neighbors)      # b n k
    count = near.sum(dim=-1).clamp(min=1)
    reach = distance.masked_fill(~near, 0).amax(dim=-1)             # b n: d_k

    def of_nearest(values: Tensor) -> Tensor:
        return take(values, nearest.flatten(1)).view_as(nearest)

    def mean(values: Tensor) -> Tensor:
        return values.masked_fill(~near, 0).sum(dim=-1) / count

    density = 1 / (mean(torch.maximum(of_nearest(reach), distance)) + GUARD)    # lrd
    factor = mean(of_nearest(density)) / density
    factor = torch.where(taking_part & near.any(dim=-1), factor, 1.0)
    return torch.empty_like(factor).scatter(1, order, factor)


def _neighbours(x: Tensor, taking_part: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k nearest neighbours on a line.

    x (B, N) ascending, taking_part (B, N) bool -> distance, index and whether there is such a
    neighbour, each (B, N, min(k, N - 1)).
    """
    n = x.shape[1]
    k = min(k, max(n - 1, 1))
    before = torch.arange(-k, 0, device=x.device)
    after = torch.arange(1, k + 1, device=x.device)
    place = torch.arange(n, device=x.device)[:, None] + torch.cat([before, after])  # n 2k
    inside = (place >= 0) & (place < n)
    place = place.clamp(0, n - 1)
    near = taking_part[:, place] & inside & taking_part[:, :, None]     # b n 2k
    distance = (x[:, place] - x[:, :, None]).abs()
    distance, order = torch.where(near, distance, torch.inf).sort(dim=-1, stable=True)
    distance = distance[..., :k]
    index = place.expand_as(order).gather(-1, order)[..., :k]
    return distance, index, distance.isfinite()


def local_outliers(scores: Tensor, n_neighbors: int = 20, mask: Tensor | None = None) -> Tensor:
    """(B, N) bool: scores with a local outlier factor above 1.5, low ones as well as high ones.

    Args:
        scores: as in `local_outlier_factor`.
        n_neighbors: as in `local_outlier_factor`.
        mask: as in `local_outlier_factor`; what it leaves out is no outlier.
    """
    return local_outlier_factor(scores, n_neighbors, mask) > THRESHOLD


def _rank(scores: Tensor, among: Tensor) -> Tensor:
    """(B, N) long: 0 for the largest score in `among`, ties to the lower index; whatever is not
    among them comes after."""
    scores = torch.where(among, scores, -torch.inf)
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


# ---------------------------------------------------------------- select
class Filters(NamedTuple):
    """What the three filters say of each token.

    vision, text, centre (B, N) bool, disjoint; rank (B, N): place of a centre among the centres, by
    falling a; outliers (B, 3): local outliers among the visual scores, the masked text scores, and
    the visual scores of what is left.
    """

    vision: Tensor
    text: Tensor
    centre: Tensor
    rank: Tensor
    outliers: Tensor

    @property
    def kept(self) -> Tensor:
        """(B, N) bool: tokens that go on as they are."""
        return self.vision | self.text

    @property
    def counts(self) -> Tensor:
        """(B, 3) long: n_v, n_t, n_c."""
        parts = (self.vision, self.text, self.centre)
        return torch.stack([part.sum(dim=1) for part in parts], dim=1)


def filters(
    visual: Tensor,
    text: Tensor,
    n_neighbors: tuple[int, int, int] = (20, 20, 10),
    counts: Tensor | None = None,
    width: int | None = None,
    float_count: bool = False,
) -> Filters:
    """The three filters in a row. Before the second, the kept tokens' s is set to the smallest s.

    Args:
        visual: a, (B, N).
        text: s, (B, N).
        n_neighbors: of each filter's outliers.
        counts: (B, 3) long: take so many instead of what the outliers say.
        width: count centres as if there were so many tokens left (the released feature width).
        float_count: count in float64 as released.
    """
    check_scores(visual, "visual")
    check_scores(text, "text", tuple(visual.shape))
    n_neighbors = check_ints(n_neighbors, "n_neighbors", 1, 3)
    width = None if width is None else check_int(width, "width", 0)
    float_count = check_flag(float_count, "float_count")
    if counts is not None:
        _check_counts(counts, len(visual))
    everyone = torch.ones_like(visual, dtype=torch.bool)
    of_vision, of_text, of_centre = (None, None, None) if counts is None else counts.unbind(dim=1)

    outlier = local_outliers(visual, n_neighbors[0])
    n_v, first = _count(outlier, everyone, everyone.sum(dim=1), of_vision, float_count)
    vision = _rank(visual, everyone) < n_v[:, None]

    masked = torch.where(vision, text.amin(dim=1, keepdim=True), text)
    outlier = local_outliers(masked, n_neighbors[1])
    n_t, second = _count(outlier, everyone, visual.shape[1] - n_v, of_text, float_count)
    recovered = (_rank(masked, ~vision) < n_t[:, None]) & ~vision

    left = ~(vision | recovered)
    total = left.sum(dim=1) if width is None else torch.full_like(n_v, width)
    outlier = local_outliers(visual, n_neighbors[2], left)
    n_c, third = _count(outlier, left, total, of_centre, float_count)
    rank = _rank(visual, left)
    centre = (rank < n_c[:, None]) & left
    return Filters(vision, recovered, centre, rank, torch.stack([first, second, third], dim=1))


def _count(
    outlier: Tensor, among: Tensor, total: Tensor, given: Tensor | None, float_count: bool
) -> tuple[Tensor, Tensor]:
    """How many tokens a filter takes, total x (outliers / scores) or the given number, and the
    number of outliers: each (B,).

    Args:
        outlier: (B, N) bool.
        among: (B, N) bool: the scores that were compared.
        total: (B,) long: tokens that the share is taken of.
        given: (B,) long, or None.
        float_count: the share is a float64, as released.
    """
    scores = among.sum(dim=1)
    found = (outlier & among).sum(dim=1)
    if given is not None:
        return given, found
    if float_count:
        share = (found.double() / scores.clamp(min=1) * total).long()
    else:
        share = total * found // scores.clamp(min=1)
    return torch.minimum(share, scores), found


def quotas(counts: Tensor, keep: int) -> Tensor:
    """Ours: the counts n_v, n_t, n_c (B, 3) scaled so that the plan has exactly `keep` slots
    -> (B, 3) long.

    Largest remainders of (keep - 1) n / sum(n), one slot being the extra token's; when no centre
    comes out of it, there is no extra token, and the slot goes to vision. All of it goes to vision
    when nothing was an outlier.
    """
    keep = check_int(keep, "keep", 1)
    _check_counts(counts)
    to_vision = torch.tensor([1, 0, 0], device=counts.device)
    counts = torch.where(counts.sum(dim=1, keepdim=True) > 0, counts, to_vision)
    total = counts.sum(dim=1, keepdim=True)
    share = (keep - 1) * counts // total
    remainder = (keep - 1) * counts % total
    order = remainder.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    share = share + (order < keep - 1 - share.sum(dim=1, keepdim=True))
    return share + to_vision * (share[:, 2:] == 0)


def _check_counts(counts: Tensor, batch: int | None = None) -> None:
    """Raise unless `counts` is long (B, 3), nothing < 0 on the CPU; batch None: any B."""
    check_index(counts, "counts", "(B, 3)", (batch, 3))
    if at_hand(counts) and (counts < 0).any():
        raise ValueError(f"counts={counts.tolist()}: needs numbers of at least 0")


def select(
    visual: Tensor,
    text: Tensor,
    keys: Tensor,
    keep: int | float | None = None,
    *,
    n_neighbors: tuple[int, int, int] = (20, 20, 10),
    num_gathered: int = 32,
    text_weight: float = 50.0,
    released_center_count: int | bool = False,
    released_key_index: bool = False,
    released_float_count: bool = False,
) -> Plan:
    """The whole method as a `Plan` over N tokens; roles: ROLES. The extra token's index is the
    heaviest token in it.

    Args:
        visual: a, (B, N), of `visual_score`.
        text: s, (B, N), of `text_score`.
        keys: (B, N, C), without prefix.
        keep: None, the paper: each image gets as many slots as it needs; rows with fewer than the
            largest end in empty slots (index -1, role "empty"), `num_real` counts the others. The
            number of slots depends on the data, so this waits for the device once and cannot run on
            `meta`. An int or a float: exactly so many slots, split by `quotas`; keep = N changes
            nothing.
        n_neighbors: of each filter's outliers.
        num_gathered: neighbours that a centre takes in, fewer where fewer are left.
        text_weight: of s against the cosine of keys.
        released_center_count: the feature width; True is C.
        released_key_index: see the module.
        released_float_count: see the module.

    ValueError for shapes that do not fit, a `keep` that is none, values that are not floating or
    not finite.
    """
    _check_select(visual, text, keys)
    n_neighbors = check_ints(n_neighbors, "n_neighbors", 1, 3)
    num_gathered = check_int(num_gathered, "num_gathered", 0)
    text_weight = check_number(text_weight, "text_weight")
    released_key_index = check_flag(released_key_index, "released_key_index")
    batch, num_tokens = visual.shape
    total = None if keep is None else resolve_keep(keep, num_tokens)
    if total == num_tokens:
        every = keep_all(batch, num_tokens, visual.device)
        return Plan(every.index, num_tokens, role=torch.zeros_like(every.index), roles=ROLES)
    width = _width(released_center_count, keys.shape[-1])
    found = filters(visual, text, n_neighbors, None, width, released_float_count)
    if total is not None:
        found = filters(visual, text, n_neighbors, quotas(found.counts, total))
    slots = _slots(found, visual, total)

    num_centres = slots.num_centres
    keys = _released_keys(keys, found.kept) if released_key_index else keys
    neighbour, gathered = _gather(found, slots, visual, text, keys, num_gathered, text_weight)
    centre_slot = slots.first_centre + torch.arange(num_centres, device=visual.device)  # b c
    centre_slot = centre_slot[:, :, None].expand_as(neighbour)                      # b c g
    rest = ~found.kept & ~found.centre & slots.has_extra
    place = torch.arange(num_tokens, device=visual.device).expand(batch, -1)
    extra_slot = slots.extra.expand(-1, num_tokens)

    # every slot's own token, what centres gather, what goes into the extra token
    origin = torch.cat([slots.index.clamp(min=0), neighbour.flatten(1), place], dim=1)
    slot = torch.cat([slots.number, centre_slot.flatten(1), extra_slot], dim=1)
    own = slots.has_own.to(visual.dtype)
    weight = torch.cat([own, gathered.flatten(1), visual * rest], dim=1)
    size = slots.index.shape[1]
    if size == 0:                                                   # nothing stands out anywhere
        origin, slot, weight = origin[:, :0], slot[:, :0], weight[:, :0]
    slot = slot.clamp(max=max(size - 1, 0))
    return Plan(slots.index, num_tokens, origin, slot, weight, slots.role, ROLES)


def _width(released: int | bool, channels: int) -> int | None:
    """The feature width that centres are counted by; None: they are counted by what is left."""
    flag = as_flag(released)
    if flag is not None:
        return channels if flag else None
    return check_int(released, "released_center_count", 0) or None


def _check_select(visual: Tensor, text: Tensor, keys: Tensor) -> None:
    check_scores(visual, "visual")
    check_scores(text, "text", tuple(visual.shape))
    check_tokens(keys, name="keys")
    check_finite(keys, "keys")
    if keys.shape[:2] != visual.shape:
        raise ValueError(
            f"keys has shape {tuple(keys.shape)} and visual {tuple(visual.shape)}: they must agree "
            f"in (B, N); keys come without [CLS]"
        )


class _Slots(NamedTuple):
    """The plan's slots [kept, ascending; centres by falling a; extra; empty], still without what is
    gathered into them.

    index, role (B, T) long, as in the plan; number (B, T) long: 0, 1, ...; has_own (B, T) bool: the
    slot starts with its own token. order (B, N) long: kept tokens, centres, the others.
    first_centre, extra (B, 1) long: the slots where the centres start and the extra token is;
    has_extra (B, 1) bool. num_centres: of the image that has most.
    """

    index: Tensor
    role: Tensor
    number: Tensor
    has_own: Tensor
    order: Tensor
    first_centre: Tensor
    extra: Tensor
    has_extra: Tensor
    num_centres: int


def _slots(found: Filters, visual: Tensor, total: int | None) -> _Slots:
    batch, num_tokens = visual.shape
    n_kept = found.kept.sum(dim=1, keepdim=True)
    n_c = found.counts[:, 2:]
    has_extra = n_c > 0
    extra_slot = n_kept + n_c                                       # b 1
    if total is None:                                               # the one wait for the device
        sizes = torch.stack([(extra_slot + has_extra).amax(), n_c.amax()])
        total, num_centres = sizes.tolist()
    else:
        num_centres = total - 1

    place = torch.arange(num_tokens, device=visual.device)
    turn = torch.full_like(found.rank, 2 * num_tokens)
    turn = torch.where(found.centre, num_tokens + found.rank, turn)
    turn = torch.where(found.kept, place, turn)
    order = turn.argsort(dim=1, stable=True)                        # kept, centres, the others

    number = torch.arange(total, device=visual.device).expand(batch, -1)
    has_own = number < extra_slot
    is_extra = (number == extra_slot) & has_extra
    rest = ~found.kept & ~found.centre
    heaviest = torch.where(rest, visual, -1.0).argmax(dim=1, keepdim=True)
    index = torch.where(is_extra, heaviest, -1)
    index = torch.where(has_own, F.pad(order, (0, 1))[:, :total], index)

    role = torch.where(is_extra, EXTRA, EMPTY)
    role = torch.where(has_own, CENTRE, role)
    kept_role = torch.where(take(found.text, index.clamp(min=0)), TEXT, VISION)
    role = torch.where(number < n_kept, kept_role, role)
    return _Slots(
        index, role, number, has_own, order, n_kept, extra_slot, has_extra, num_centres
    )


def _released_keys(keys: Tensor, kept: Tensor) -> Tensor:
    """The release's keys: the p-th token left has the key at place p of all."""
    place = (~kept).long().cumsum(dim=1) - 1
    return take(keys, place.clamp(min=0))


def _gather(
    found: Filters,
    slots: _Slots,
    visual: Tensor,
    text: Tensor,
    keys: Tensor,
    num_gathered: int,
    text_weight: float,
) -> tuple[Tensor, Tensor]:
    """Secondary recovery: for each centre the best others j among what is left, by
    cos(k_i, k_j) + text_weight s_j.

    Returns their indices and weights a_j (0 where there is none), each (B, centres, num_gathered).
    """
    num_tokens = visual.shape[1]
    number = torch.arange(slots.num_centres, device=visual.device)
    real = number < found.counts[:, 2:]                             # b c
    centre = slots.order.gather(1, (slots.first_centre + number).clamp(max=num_tokens - 1))
    with full_precision(keys.device):
        x = unit(keys)
        affinity = take(x, centre) @ x.mT + text_weight * text[:, None]     # b c n
    itself = torch.arange(num_tokens, device=visual.device) == centre[:, :, None]
    affinity = affinity.masked_fill(found.kept[:, None] | itself, -torch.inf)
    best, neighbour = affinity.sort(dim=-1, descending=True, stable=True)
    best, neighbour = best[..., :num_gathered], neighbour[..., :num_gathered]
    there = best.isfinite() & real[:, :, None]
    weight = take(visual, neighbour.flatten(1)).view_as(neighbour)
    return neighbour, weight * there


def num_real(plan: Plan) -> Tensor:
    """(B,) long: slots that hold something; the others come last and are empty."""
    return (plan.index >= 0).sum(dim=1)


def prune(
    vision: VisionOutputs,
    keep: int | float | None = None,
    *,
    query: Tensor,
    key: Tensor,
    patches: Tensor,
    text: Tensor,
    **options: Any,
) -> Plan:
    """Recoverable Compression as a `Plan` over vision.features (the layer that the projector reads,
    LLaVA: the last but one).

    Args:
        vision: what the encoder made.
        keep: None is the paper's adaptive number, see `select`.
        query: (B, prefix + N, C), q_proj of the LAST layer, heads side by side.
        key: (B, prefix + N, C), k_proj of the same layer.
        patches: (B, N, D), patches of the last hidden state in the joint space of image and text
            (CLIP's visual projection, without post-norm).
        text: (B, D): the question there (the release takes the text tower's last, padded position).
        options: of `select`.

    ValueError for shapes that do not fit.
    """
    check_vision(vision)
    batch, num_tokens = vision.features.shape[:2]
    if vision.num_prefix < 1:
        raise ValueError(
            "vision.num_prefix=0: the visual score is the attention of [CLS], and this encoder has "
            "none"
        )
    sizes = {"query": vision.num_prefix + num_tokens, "key": vision.num_prefix + num_tokens}
    sizes["patches"] = num_tokens
    for name, tensor in (("query", query), ("key", key), ("patches", patches)):
        check_float(tensor, name)
        if tensor.dim() != 3 or tensor.shape[:2] != (batch, sizes[name]):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} but needs ({batch}, {sizes[name]}, "
                f"channels)"
            )
    check_float(text, "text")
    if text.shape != (batch, patches.shape[-1]):
        raise ValueError(
            f"text has shape {tuple(text.shape)} but needs ({batch}, {patches.shape[-1]}): one "
            f"vector an image, in the patches' space"
        )
    if as_flag(options.get("released_center_count")):
        options["released_center_count"] = vision.features.shape[-1]
    visual = visual_score(query, key, vision.num_prefix)
    by_text = text_score(text, patches)
    return select(visual, by_text, key[:, vision.num_prefix :], keep, **options)


METHOD = Method("recoverable", "Recoverable Compression", paper=PAPER, prune=prune)
