"""CrossGET - Cross-Guided Ensemble of Tokens for Accelerating Vision-Language Transformers (Shi,
Tao, Rao, Yang, Yuan, Wang, ICML 2024, arXiv 2305.17455).

The idea: in every layer, between attention and MLP, merge r tokens into others; any token may merge
into any other one ("complete graph"), and still all pairs are found at once. One learned cross
token per layer, pulled towards the other modality's cross token by a loss, says which tokens
matter: they are merged later, and with more weight. A merged token remembers its size, and
attention counts it so many times.

    S = cos(K, K); M_ij = 0 if rank(j) > rank(i) else -inf,
        rank by falling max_j S_ij                                  match
    sources: the r smallest I_i - max_j (S + M)_ij;
    targets: argmax over the non-sources of S                       match
    CLIP: I_i = cos(k_i, q_cross)                                   importance_cosine
    LLaVA: I_i = mean_q A_qi + A_cross,i                            importance_attention
    w = softmax([I_s, I_d]); X = x s;
    X_d += 2 w_s X_s + (2 w_d - 1) X_d; x = X / s                   ensemble -> `Plan`

`crossget_encoder` does this in every layer of a dual encoder that has learned its cross tokens. The
image's cross token never reads a caption: it has learned what captions ask for in general
(`METHOD.asks` is False). Untrained, its vectors 0, it is a second [CLS], which is what `prune` uses
on any encoder.

Different from the official code (sdc17/CrossGET): mutual nearest neighbours tie in the first sort
as a rule, so S is exactly symmetric and sorts are stable, lower index first (there: left to the
sort); matching and sizes stay in float32 under autocast; method="bipartite" is the baseline of the
paper's comparison, ToMe's alternating sets.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn.checks import (
    at_hand,
    check_axes,
    check_finite,
    check_flag,
    check_float,
    check_index,
    check_int,
    check_range,
    check_tokens,
    describe,
)
from ..tokens import Plan, VisionOutputs, check_scores, keep_all, resolve_keep, take
from ..tokens.cosine import check_cosines, cosines, unit, within_range
from ..tokens.groups import groups
from ..tokens.merge import chained
from ..tokens.precision import full_precision, widen
from ..tokens.vision import check_vision
from .method import Method

PAPER = "crossget"
METHODS = ("complete", "bipartite")
BAND = 1 << 17
"""Similarities of an image that are limited at a time."""


# ------------------------------------------------------------------------------------------- score
def importance_cosine(key: Tensor, query: Tensor) -> Tensor:
    """I_i = cos(k_i, q): keys (B, t, d), heads side by side, and the query (B, d) of the cross
    token or [EOT] -> (B, t)."""
    check_tokens(key, name="key")
    check_float(query, "query")
    if query.shape != (key.shape[0], key.shape[2]):
        raise ValueError(
            f"query has shape {tuple(query.shape)} but needs (B, d) = "
            f"{(key.shape[0], key.shape[2])}, as the keys have"
        )
    key, query = widen(key), widen(query)
    if query.dtype != key.dtype:
        raise ValueError(f"query is {query.dtype} but key is {key.dtype}: they need one dtype")
    norm = torch.linalg.vector_norm(key, dim=-1)                    # b t
    if not (at_hand(norm) and norm.detach().amax() < 1e12):         # else no entry is beyond that
        key = within_range(key)
        norm = torch.linalg.vector_norm(key, dim=-1)
    with full_precision(key.device):
        dot = (unit(query)[:, None] @ key.mT)[:, 0]                 # key is read once, not copied
    return dot / norm.clamp_min(1e-12)


def importance_attention(attn: Tensor) -> Tensor:
    """I_i = mean of A_qi over all queries but the last, plus A_last,i.

    attn (B, t, t) [query, key], t >= 2, mean over heads -> (B, t), float32 at least.
    """
    check_axes(attn, "attn", "(B, t, t)")
    if attn.shape[1] != attn.shape[2] or attn.shape[1] < 2:
        raise ValueError(f"attn has shape {tuple(attn.shape)} but needs (B, t, t) with t >= 2")
    attn = widen(attn)
    return attn[:, :-1].mean(dim=1) + attn[:, -1]


# ------------------------------------------------------------------------------------------ select
class Pairs(NamedTuple):
    """source, target (B, r) long: token source[e] goes into target[e].
    weight (B, r, 2): softmax([I_source, I_target])."""

    source: Tensor
    target: Tensor
    weight: Tensor


def merges(r: int, num_tokens: int, num_protected: int) -> int:
    """How many tokens can go at once: min(r, (t - |P|) // 2), at least 0.

    Args:
        r: tokens to merge away.
        num_tokens: t.
        num_protected: |P|.
    """
    r, num_tokens = check_int(r, "r", 0), check_int(num_tokens, "num_tokens", 0)
    num_protected = check_int(num_protected, "num_protected", 0)
    return max(0, min(r, (num_tokens - num_protected) // 2))


def schedule(r: int, num_tokens: int, num_layers: int, num_protected: int = 2) -> list[int]:
    """Tokens there are before the first and after each layer, num_layers + 1 numbers.

    Args:
        r: tokens to merge away in each layer.
        num_tokens: at the start.
        num_layers: of the encoder.
        num_protected: [CLS] and cross token, which are among the tokens.
    """
    r, num_tokens = check_int(r, "r", 0), check_int(num_tokens, "num_tokens", 0)
    num_layers = check_int(num_layers, "num_layers", 0)
    num_protected = check_int(num_protected, "num_protected", 0)
    counts = [num_tokens]
    for _ in range(num_layers):
        counts.append(counts[-1] - merges(r, counts[-1], num_protected))
    return counts


def rate(keep: int, num_tokens: int, num_layers: int, num_protected: int = 2) -> int:
    """The smallest r that leaves at most `keep` of the tokens after all layers.

    Args:
        keep: tokens that may be left.
        num_tokens: as in `schedule`.
        num_layers: as in `schedule`.
        num_protected: as in `schedule`.

    ValueError when no r does.
    """
    keep, num_tokens = check_int(keep, "keep", 0), check_int(num_tokens, "num_tokens", 0)
    for r in range(num_tokens + 1):
        if schedule(r, num_tokens, num_layers, num_protected)[-1] <= keep:
            return r
    least = schedule(num_tokens, num_tokens, num_layers, num_protected)[-1]
    raise ValueError(
        f"keep={keep} but {num_layers} layers that merge at most half leave {least} of "
        f"{num_tokens} tokens"
    )


@torch.no_grad()
def match(
    key: Tensor,
    importance: Tensor,
    r: int,
    num_prefix: int = 1,
    num_suffix: int = 1,
    eot: Tensor | None = None,
    method: str = "complete",
) -> Pairs:
    """Who merges into whom. No gradient.

    Protected tokens, neither source nor target: the first num_prefix, the last num_suffix, and eot.
    On a CPU it holds the t x t matrices of a few images (`groups`), and one image's unit keys.

    Args:
        key: (B, t, d).
        importance: (B, t).
        r: tokens to merge away; cut to (t - protected) // 2.
        num_prefix: protected at the front.
        num_suffix: protected at the end.
        eot: (B,) long, one more protected place in each image.
        method: "complete": a token looks at all tokens of later rank, so of a mutual pair one gives
            and the other receives; its target is the most similar token that is no source.
            "bipartite": of the unprotected tokens the 1st, 3rd, ... give and the 2nd, 4th, ...
            receive.

    Returns `Pairs`, sources in order of their score. ValueError for an unknown method, an r that is
    no integer >= 0, keys or importances that are not floating, not finite or of another shape, and
    an eot that is no place.
    """
    check_tokens(key, name="key")
    batch, t, _ = key.shape
    check_scores(importance, "importance", (batch, t))
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {METHODS}")
    r = check_int(r, "r", least=0)
    num_prefix = check_int(num_prefix, "num_prefix", 0, t)
    num_suffix = check_int(num_suffix, "num_suffix", 0, t)
    _check_eot(eot, batch, t)
    r = merges(r, t, num_prefix + num_suffix + (eot is not None))
    importance = widen(importance)
    protected = num_prefix, num_suffix
    several = groups(batch, 2 * t * t, key.device)
    parts = [_match(key, part, importance, r, protected, eot, method) for part in several]
    return Pairs(*map(torch.cat, zip(*parts, strict=True)))


def _match(
    key: Tensor,
    part: slice,
    importance: Tensor,
    r: int,
    protected: tuple[int, int],
    eot: Tensor | None,
    method: str,
) -> Pairs:
    """`match` of some images together.

    Args:
        key: as in `match`, of all images.
        part: which of them.
        importance: (B, t), float32 at least, of all images.
        r: tokens to merge away, as many as can be.
        protected: num_prefix and num_suffix.
        eot: as in `match`, of all images.
        method: as in `match`.
    """
    eot = None if eot is None else eot[part]
    importance = importance[part]
    batch, t = importance.shape
    similarity = _similarity(key, part, *protected, eot)            # b i j
    if method == "complete":
        order = similarity.amax(dim=2).argsort(dim=1, descending=True, stable=True)
        place = torch.arange(t, dtype=similarity.dtype, device=key.device).expand(batch, -1)
        rank = torch.empty_like(place).scatter_(1, order, place)    # the inverse of order
        redundancy = _most_similar_later(similarity, rank)          # b i
    else:
        receives = _every_second(batch, t, *protected, eot, key.device)
        redundancy = similarity.masked_fill(~receives[:, None], -math.inf).amax(dim=2)
        redundancy = redundancy.masked_fill(receives, -math.inf)
    source = (importance - redundancy).argsort(dim=1, stable=True)[:, :r]
    candidates = take(similarity, source)                           # b r j
    if method == "complete":
        gives = torch.zeros_like(redundancy).scatter_(1, source, -math.inf)
        candidates += gives[:, None]
    else:
        candidates.masked_fill_(~receives[:, None], -math.inf)
    target = candidates.argmax(dim=2)                               # b r
    both = torch.stack([take(importance, source), take(importance, target)], dim=-1)
    return Pairs(source, target, both.softmax(dim=-1))


def _check_eot(eot: Tensor | None, batch: int, t: int) -> None:
    """ValueError unless eot is None or one place of t an image, (batch,) long."""
    if eot is None:
        return
    check_index(eot, "eot", "(B,)", (batch,))
    check_range(eot, "eot", 0, t)


def _similarity(
    key: Tensor, part: slice, num_prefix: int, num_suffix: int, eot: Tensor | None
) -> Tensor:
    """(b, t, t): cosines of keys, -inf of a token to itself and where one of both is protected.

    Args:
        key: (B, t, d), of all images.
        part: which of them.
        num_prefix: as in `match`.
        num_suffix: as in `match`.
        eot: as in `match`, checked, of these images.

    ValueError for keys that are not finite.
    """
    t = key.shape[1]
    with full_precision(key.device):                                # autocast would make ties
        similarity = cosines(key[part])                             # b i j
    check_cosines(similarity, key, "key")
    similarity.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    for ends in (slice(num_prefix), slice(t - num_suffix, t)):
        similarity[:, ends] = -math.inf
        similarity[:, :, ends] = -math.inf
    if eot is not None:
        own = torch.arange(t, device=eot.device) == eot[:, None]    # b t
        similarity.masked_fill_(own[:, :, None], -math.inf).masked_fill_(own[:, None], -math.inf)
    return similarity


def _every_second(
    batch: int, t: int, num_prefix: int, num_suffix: int, eot: Tensor | None, device: torch.device
) -> Tensor:
    """(B, t) bool: of the unprotected tokens the 2nd, 4th, ..., which receive."""
    place = torch.arange(t, device=device)
    free = ((place >= num_prefix) & (place < t - num_suffix)).expand(batch, t)
    if eot is not None:
        free = free & (place != eot[:, None])
    return (free.cumsum(1) % 2 == 0) & free


def _most_similar_later(similarity: Tensor, rank: Tensor) -> Tensor:
    """(B, t): max of similarity[i, j] over the j that rank later than i; -inf where there is none.

    In bands of rows, so that the limits stay small: +inf where j ranks later than i, else -inf. A
    minimum with them is what `torch.where` gives, in a third of its time on a CPU.
    """
    height = max(1, BAND // similarity.shape[2])
    parts = []
    for rows, own in zip(similarity.split(height, dim=1), rank.split(height, dim=1), strict=True):
        limit = (rank[:, None] - (own + 0.5)[:, :, None]).mul_(math.inf)
        torch.minimum(rows, limit, out=limit)
        parts.append(limit.amax(dim=2))
    return torch.cat(parts, dim=1)


# ------------------------------------------------------------------------------------------- apply
def _check_pairs(pairs: Pairs, size: Tensor) -> Pairs:
    check_axes(size, "size", "(B, t)")
    if not isinstance(pairs, Pairs):
        raise ValueError(f"pairs is {describe(pairs)} but needs to be Pairs, of `match`")
    batch, t = size.shape
    check_index(pairs.source, "pairs.source", "(B, r)", (batch, None), t)
    check_index(pairs.target, "pairs.target", "(B, r)", pairs.source.shape, t)
    if pairs.source.shape[1] > t:
        raise ValueError(f"pairs has {pairs.source.shape[1]} sources but size has {t} tokens")
    return pairs


def ensemble(pairs: Pairs, size: Tensor, guided: bool = True) -> tuple[Plan, Tensor]:
    """The merge as a `Plan` over all t tokens, survivors in their old order, and its slots' sizes.

    With X = x size:  X_d + sum over pairs of 2 w_s X_s + (2 w_d - 1) X_d, divided by the new size
    (plain sum of the sizes). The weights of a slot sum to 1 only where importances are equal; then,
    and with guided=False, it is the size-weighted mean.

    Args:
        pairs: what goes into what.
        size: (B, t), how many tokens each stands for.
        guided: False: every weight is 1.

    Returns the plan and the sizes (B, t - r).
    """
    source, target, weight = _check_pairs(pairs, size)
    batch, t = size.shape
    device = size.device
    gone = torch.zeros(batch, t, dtype=torch.bool, device=device).scatter(1, source, True)
    kept = gone.long().argsort(dim=1, stable=True)[:, : t - source.shape[1]]
    into = take((~gone).long().cumsum(1) - 1, target)               # b r: the target's slot
    new = take(size, kept).scatter_add(1, into, take(size, source))
    double = torch.ones_like(weight, dtype=size.dtype)
    if check_flag(guided, "guided"):
        double = 2 * weight.to(size.dtype)
    own = torch.arange(kept.shape[1], device=device).expand(batch, -1)
    origin = torch.arange(t, device=device).expand(batch, -1)       # an entry a token
    slot = torch.zeros_like(origin).scatter(1, kept, own).scatter(1, source, into)
    share = torch.ones_like(size).scatter(1, source, double[..., 0])
    share = share.scatter_add(1, target, double[..., 1] - 1) * size / take(new, slot)
    return Plan(kept, t, origin, slot, share), new


def prune(
    vision: VisionOutputs,
    keep: int | float,
    *,
    importance: Tensor | None = None,
    layer: int | None = None,
    guided: bool = True,
    method: str = "complete",
) -> Plan:
    """CrossGET without training, once behind any encoder: a `Plan` over vision.features with
    exactly `keep` slots, each token in one.

    A cross token that nobody trained is a copy of [CLS], so I is the [CLS] row, mean over heads.
    One round merges at most half of the tokens; further rounds merge what the last one left, its
    keys and importances merged in the same way (ours: the paper merges a few tokens in each layer
    of the encoder).

    Args:
        vision: needs keys, and the [CLS] row unless importance is given.
        keep: an int or a fraction of N.
        importance: (B, N), of a question for instance; None: as above.
        layer: adds the mean attention received in vision.attention[layer] (LLaVA's importance, but
            for the key that the copy of [CLS] would add).
        guided: as in `ensemble`.
        method: as in `match`.

    ValueError without keys, [CLS] row or that layer, and for what is not finite.
    """
    check_vision(vision)
    batch, num_tokens = vision.features.shape[:2]
    keep = resolve_keep(keep, num_tokens)
    if vision.keys is None:
        raise ValueError(
            "vision.keys is None: CrossGET matches keys, ask the encoder for "
            "need=('keys', 'cls_row')"
        )
    check_tokens(vision.keys, name="vision.keys")
    check_finite(vision.keys, "vision.keys")
    if importance is None:
        importance = _looked_at(vision, layer)
    if keep == num_tokens:
        return keep_all(batch, num_tokens, vision.features.device)
    check_scores(importance, "importance", (batch, num_tokens))
    key, importance = widen(vision.keys[:, vision.num_prefix :]), widen(importance)
    key = within_range(key)                                         # merged keys stay finite
    plan, size = None, key.new_ones(batch, num_tokens)
    while size.shape[1] > keep:
        pairs = match(key, importance, size.shape[1] - keep, 0, 0, method=method)
        step, size = ensemble(pairs, size, guided)
        if size.shape[1] > keep:                                    # read by a further round
            key, importance = step.apply(key), step.apply(importance)
        plan = step if plan is None else chained(plan, step)
    return plan


def _looked_at(vision: VisionOutputs, layer: int | None) -> Tensor:
    """(B, N): the [CLS] row, mean over heads, and the attention received in a layer if one is
    named."""
    if vision.cls_row is None:
        raise ValueError(
            "vision.cls_row is None: give `importance` (B, N), or ask an encoder with [CLS] for it"
        )
    check_axes(vision.cls_row, "vision.cls_row", "(B, heads, N)")
    importance = widen(vision.cls_row).mean(dim=1)
    if layer is None:
        return importance
    layer = check_int(layer, "layer")
    if layer not in vision.attention:
        raise ValueError(f"layer={layer} but vision.attention holds {sorted(vision.attention)}")
    check_axes(vision.attention[layer], "vision.attention[layer]", "(B, heads, S, S)")
    received = widen(vision.attention[layer]).mean(dim=(1, 2))      # b prefix+n
    return importance + received[:, vision.num_prefix :]


METHOD = Method(
    "crossget", "CrossGET (untrained)", paper=PAPER, prune=prune, reads=("keys", "cls_row")
)
