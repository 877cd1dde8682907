"""Recoverable Compression - A Multimodal Vision Token Recovery Mechanism Guided by Text Information (Chen, Xu, Zhang, Liu, Liu,
Liu, AAAI 2025, arXiv 2409.01179).

The idea: what is visually dull may be just what the question asks for. So after a visual filter, tokens whose embedding is
close to the question are recovered; the rest is gathered around a few centres instead of being dropped. How many tokens that
makes is not a setting: each time, as many of the highest scores are kept as the scores have local outliers.

    a = softmax(q_CLS k^T / sqrt(C)) without the [CLS] key, s_j = cos(t, v_j) / sqrt(D)    visual_score, text_score
    outlier: mean lrd of the n nearest scores > 1.5 lrd; share = outliers / scores         local_outliers (dynamic scale filter)
    visual: the n_v = N share largest a; text: of the others the (N - n_v) share largest s filters
    centres: of the R tokens left the n_c = R share largest a                              filters
    F_i + sum over the 32 best j of a_j F_j, best by cos(k_i, k_j) + 50 s_j                select (secondary recovery)
    extra token = sum of a_j F_j over tokens that are neither kept nor centre              select
    [kept, ascending; centres by falling a; extra]                                         select -> `Plan`

Sums are not normalised, and a token may go to several centres and to the extra token. Without a centre there is no extra token
either. The constants 20, 20, 10 neighbours, 32 and 50 are from the official code (banjiuyufen/Recoverable-Compression), which
handles one image at a time and differs in three places that a flag copies each: released_center_count takes int(C share)
centres, C being the width of the features (the intent, R, is inferred); released_key_index reads the key of the p-th token left
at place p of ALL keys; released_float_count counts with int(n * (outliers / n)) in float64, which loses one where the product
falls just short (29 outliers of 100 keep 28). Ties go to the lower index (there: to topk). `keep` is this package's extension:
the paper has no budget.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import Plan, keep_all, resolve_keep, take
from ..tokens.precision import full_precision, widen
from .method import Method

PAPER = "recoverable-compression"
ROLES = ("vision", "text", "centre", "extra", "empty")
THRESHOLD, GUARD = 1.5, 1e-10


# ---------------------------------------------------------------- score
def visual_score(query: Tensor, key: Tensor, num_prefix: int = 1) -> Tensor:
    """a (B, N): attention of [CLS] as ONE head of width C. query, key (B, prefix + N, C): q_proj and k_proj of the encoder's
    LAST layer.

    The softmax runs over all keys, the prefix included: sum(a) = 1 - what [CLS] and registers get.
    """
    with full_precision(query.device):
        logits = (widen(query)[:, :1] @ widen(key).mT)[:, 0] * key.shape[-1] ** -0.5            # b prefix+n
    return logits.softmax(dim=-1)[:, num_prefix:]


def text_score(text: Tensor, patches: Tensor) -> Tensor:
    """s (B, N) = cos(t, v_j) / sqrt(D), at most 1 / sqrt(D). text (B, D): the question; patches (B, N, D), same space."""
    text, patches = F.normalize(widen(text), dim=-1), F.normalize(widen(patches), dim=-1)
    return (text[:, None] * patches).sum(-1) * patches.shape[-1] ** -0.5


# ---------------------------------------------------------------- dynamic scale filter
def local_outlier_factor(scores: Tensor, n_neighbors: int = 20, mask: Tensor | None = None) -> Tensor:
    """Local outlier factor of each score among the scores of its row: about 1 inside a crowd, large where it is lonelier than
    its neighbours.

    scores (B, N), mask (B, N) bool: which take part (the others get 1) -> (B, N). With d_k(j) the distance of j to its k-th
    neighbour: lrd_i = 1 / (mean over i's neighbours j of max(d_k(j), |x_i - x_j|) + 1e-10), LOF_i = mean lrd_j / lrd_i (Breunig
    et al. 2000; the guard is scikit-learn's, whose negative_outlier_factor_ is -LOF). n_neighbors is cut to the number of other
    scores. On a line the k nearest neighbours are among the k next ones to either side, so this costs O(N log N + N k) and not
    O(N^2).
    """
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors={n_neighbors} must be at least 1")
    x = widen(scores)
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    k, n = min(n_neighbors, max(x.shape[1] - 1, 1)), x.shape[1]
    x, order = x.masked_fill(~mask, float("inf")).sort(dim=1, stable=True)                      # those left out are last
    there = x.isfinite()
    offset = torch.cat([torch.arange(-k, 0, device=x.device), torch.arange(1, k + 1, device=x.device)])
    place = torch.arange(n, device=x.device)[:, None] + offset                                  # n 2k
    inside = (place >= 0) & (place < n)
    place = place.clamp(0, n - 1)
    near = there[:, place] & inside & there[:, :, None]                                         # b n 2k
    distance = torch.where(near, (x[:, place] - x[:, :, None]).abs(), float("inf"))
    distance, nearest = distance.sort(dim=-1, stable=True)
    distance, near = distance[..., :k], distance[..., :k].isfinite()                            # b n k
    who = place.expand_as(nearest).gather(-1, nearest)[..., :k]
    count = near.sum(-1).clamp(min=1)
    reach = distance.masked_fill(~near, 0).amax(-1)                                             # b n: d_k

    def mean(values):
        return values.masked_fill(~near, 0).sum(-1) / count
    density = 1 / (mean(torch.maximum(take(reach, who.flatten(1)).view_as(who), distance)) + GUARD)
    factor = mean(take(density, who.flatten(1)).view_as(who)) / density
    factor = torch.where(there & near.any(-1), factor, 1.0)
    return torch.empty_like(factor).scatter(1, order, factor)


def local_outliers(scores: Tensor, n_neighbors: int = 20, mask: Tensor | None = None) -> Tensor:
    """(B, N) bool: scores with a local outlier factor above 1.5, low ones as well as high ones."""
    return local_outlier_factor(scores, n_neighbors, mask) > THRESHOLD


def _rank(scores, among):
    """(B, N) long: 0 for the largest score in `among`, ties to the lower index; whatever is not among them comes after."""
    return torch.where(among, scores, float("-inf")).argsort(dim=1, descending=True, stable=True).argsort(dim=1)


# ---------------------------------------------------------------- select
class Filters(NamedTuple):
    """vision, text, centre (B, N) bool, disjoint; rank (B, N): place of a centre among the centres, by falling a;
    outliers (B, 3): local outliers among the visual scores, the masked text scores, and the visual scores of what is left."""

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
        return torch.stack([part.sum(1) for part in self[:3]], dim=1)


def filters(visual: Tensor, text: Tensor, n_neighbors=(20, 20, 10), counts: Tensor | None = None, width: int | None = None,
            float_count: bool = False) -> Filters:
    """The three filters in a row: visual a (B, N), text s (B, N) -> `Filters`.

    counts (B, 3) long: take so many instead of what the outliers say. width: count centres as if there were so many tokens left
    (the released feature width). float_count: count in float64 as released. Before the second filter the kept tokens' s is set
    to the smallest s.
    """
    num_tokens = visual.shape[1]

    def counted(place, outliers, among, of):
        total = among.sum(1)
        found = (outliers & among).sum(1)
        if counts is not None:
            return counts[:, place], found
        share = (found.double() / total.clamp(min=1) * of).long() if float_count else of * found // total.clamp(min=1)
        return torch.minimum(share, total), found
    everyone = torch.ones_like(visual, dtype=torch.bool)
    n_v, first = counted(0, local_outliers(visual, n_neighbors[0]), everyone, everyone.sum(1))
    vision = _rank(visual, everyone) < n_v[:, None]
    masked = torch.where(vision, text.amin(1, keepdim=True), text)
    n_t, second = counted(1, local_outliers(masked, n_neighbors[1]), everyone, num_tokens - n_v)
    recovered = (_rank(masked, ~vision) < n_t[:, None]) & ~vision
    left = ~(vision | recovered)
    of = left.sum(1) if width is None else torch.full_like(n_v, width)
    n_c, third = counted(2, local_outliers(visual, n_neighbors[2], left), left, of)
    rank = _rank(visual, left)
    return Filters(vision, recovered, (rank < n_c[:, None]) & left, rank, torch.stack([first, second, third], dim=1))


def quotas(counts: Tensor, keep: int) -> Tensor:
    """Ours: the counts n_v, n_t, n_c (B, 3) scaled so that the plan has exactly `keep` slots -> (B, 3) long.

    Largest remainders of (keep - 1) n / sum(n), one slot being the extra token's; when no centre comes out of it, there is no
    extra token, and the slot goes to vision. All of it goes to vision when nothing was an outlier.
    """
    plain = torch.tensor([1, 0, 0], device=counts.device)
    counts = torch.where(counts.sum(1, keepdim=True) > 0, counts, plain)
    total = counts.sum(1, keepdim=True)
    share, rest = (keep - 1) * counts // total, (keep - 1) * counts % total
    order = rest.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    share = share + (order < keep - 1 - share.sum(1, keepdim=True))
    return share + plain * (share[:, 2:] == 0)


def select(visual: Tensor, text: Tensor, keys: Tensor, keep: int | float | None = None, *, n_neighbors=(20, 20, 10),
           num_gathered: int = 32, text_weight: float = 50.0, released_center_count: int | bool = False,
           released_key_index: bool = False, released_float_count: bool = False) -> Plan:
    """The whole method as a `Plan` over N tokens. visual a, text s (B, N) of `visual_score`, `text_score`; keys (B, N, C)
    without prefix.

    keep None, the paper: each image gets as many slots as it needs; rows with fewer than the largest end in empty slots (index
    -1, role "empty"), `num_real` counts the others. The number of slots depends on the data, so this waits for the device once
    and cannot run on `meta`. keep an int or a float: exactly so many slots, split by `quotas`; keep = N changes nothing. Roles:
    ROLES. The extra token's index is the heaviest token in it. num_gathered: neighbours that a centre takes in, fewer where
    fewer are left. released_center_count: the feature width C. ValueError for shapes that do not fit, or a `keep` that is none.
    """
    batch, num_tokens = visual.shape
    if text.shape != visual.shape or keys.shape[:2] != visual.shape:
        raise ValueError(f"visual {tuple(visual.shape)}, text {tuple(text.shape)} and keys {tuple(keys.shape)} must agree in "
                         "(B, N); keys come without [CLS]")
    total = None if keep is None else resolve_keep(keep, num_tokens)
    if total == num_tokens:
        every = keep_all(batch, num_tokens, visual.device)
        return Plan(every.index, num_tokens, role=torch.zeros_like(every.index), roles=ROLES)
    width = keys.shape[-1] if released_center_count is True else released_center_count or None
    found = filters(visual, text, n_neighbors, None, width, released_float_count)
    if total is not None:
        found = filters(visual, text, n_neighbors, quotas(found.counts, total))
    kept, counts = found.kept, found.counts
    n_kept, n_c = kept.sum(1, keepdim=True), counts[:, 2:]
    if total is None:
        total, centres = torch.stack([(n_kept + n_c + (n_c > 0)).amax(), n_c.amax()]).tolist()
    else:
        centres = total - 1

    place = torch.arange(num_tokens, device=visual.device)
    turn = torch.where(kept, place, torch.where(found.centre, num_tokens + found.rank, 2 * num_tokens))
    order = turn.argsort(dim=1, stable=True)                                                    # kept, centres, the others
    slots = torch.arange(total, device=visual.device).expand(batch, -1)
    rest = ~kept & ~found.centre
    extra = (slots == n_kept + n_c) & (n_c > 0)                                                 # b t
    heaviest = torch.where(rest, visual, -1.0).argmax(dim=1, keepdim=True)
    own = slots < n_kept + n_c
    index = torch.where(own, F.pad(order, (0, 1))[:, :total], torch.where(extra, heaviest, -1))
    role = torch.where(take(found.text, index.clamp(min=0)), 1, 0)
    role = torch.where(slots < n_kept, role, torch.where(own, 2, torch.where(extra, 3, 4)))

    # secondary recovery: per centre the best others among what is left
    left = ~kept
    if released_key_index:
        keys = take(keys, (left.long().cumsum(1) - 1).clamp(min=0))
    middle = order.gather(1, (n_kept + torch.arange(centres, device=visual.device)).clamp(max=num_tokens - 1))      # b c
    real = torch.arange(centres, device=visual.device) < n_c
    with full_precision(keys.device):
        unit = F.normalize(widen(keys), dim=-1)
        affinity = take(unit, middle) @ unit.mT + text_weight * text[:, None]                   # b c n
    affinity = affinity.masked_fill(~left[:, None] | (place == middle[:, :, None]), float("-inf"))
    best, who = (part[..., :num_gathered] for part in affinity.sort(dim=-1, descending=True, stable=True))
    gathered = take(visual, who.flatten(1)).view_as(who) * (best.isfinite() & real[:, :, None])                 # b c 32, weights
    home = (n_kept + torch.arange(centres, device=visual.device))[:, :, None].expand_as(who)

    origin = torch.cat([index.clamp(min=0), who.flatten(1), place.expand(batch, -1)], dim=1)
    slot = torch.cat([slots, home.flatten(1), (n_kept + n_c).expand(-1, num_tokens)], dim=1).clamp(max=max(total - 1, 0))
    weight = torch.cat([own.to(visual.dtype), gathered.flatten(1), visual * (rest & (n_c > 0))], dim=1)
    if total == 0:                                                                              # nothing stands out in any image
        origin, slot, weight = origin[:, :0], slot[:, :0], weight[:, :0]
    return Plan(index, num_tokens, origin, slot, weight, role, ROLES)


def num_real(plan: Plan) -> Tensor:
    """(B,) long: slots that hold something; the others come last and are empty."""
    return (plan.index >= 0).sum(1)


def prune(vision, keep=None, *, query: Tensor, key: Tensor, patches: Tensor, text: Tensor, **options) -> Plan:
    """Recoverable Compression as a `Plan` over vision.features (the layer that the projector reads, LLaVA: the last but one).

    query, key (B, prefix + N, C): q_proj and k_proj of the LAST layer, heads side by side. patches (B, N, D): patches of the
    last hidden state in the joint space of image and text (CLIP's visual projection, without post-norm). text (B, D): the
    question there (the release takes the text tower's last, padded position). keep, options: as in `select`; keep=None is the
    paper's adaptive number. ValueError for shapes that do not fit.
    """
    batch, num_tokens = vision.features.shape[:2]
    behind = (batch, vision.num_prefix + num_tokens)
    if vision.num_prefix < 1:
        raise ValueError("vision.num_prefix=0: the visual score is the attention of [CLS], and this encoder has none")
    for name, tensor, want in (("query", query, behind), ("key", key, behind), ("patches", patches, (batch, num_tokens))):
        if tensor.dim() != 3 or tensor.shape[:2] != want:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} but needs ({want[0]}, {want[1]}, channels)")
    if text.shape != (batch, patches.shape[-1]):
        raise ValueError(f"text has shape {tuple(text.shape)} but needs ({batch}, {patches.shape[-1]}): one vector an image, "
                         "in the patches' space")
    if options.get("released_center_count") is True:
        options["released_center_count"] = vision.features.shape[-1]
    visual = visual_score(query, key, vision.num_prefix)
    return select(visual, text_score(text, patches), key[:, vision.num_prefix :], keep, **options)


METHOD = Method("recoverable", "Recoverable Compression", paper=PAPER, prune=prune)
