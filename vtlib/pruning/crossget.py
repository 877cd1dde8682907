"""CrossGET - Cross-Guided Ensemble of Tokens for Accelerating Vision-Language Transformers (Shi, Tao, Rao, Yang, Yuan, Wang,
ICML 2024, arXiv 2305.17455).

The idea: in every layer, between attention and MLP, merge r tokens into others; any token may merge into any other one ("complete
graph"), and still all pairs are found at once. One learned cross token per layer, pulled towards the other modality's cross token
by a loss, says which tokens matter: they are merged later, and with more weight. A merged token remembers its size, and attention
counts it so many times.

    S = cos(K, K); M_ij = 0 if rank(j) > rank(i) else -inf, rank by falling max_j S_ij             match
    sources: the r smallest I_i - max_j (S + M)_ij; targets: argmax over the non-sources of S      match
    CLIP: I_i = cos(k_i, q_cross)                                                                  importance_cosine
    LLaVA: I_i = mean_q A_qi + A_cross,i                                                           importance_attention
    w = softmax([I_s, I_d]); X = x s; X_d += 2 w_s X_s + (2 w_d - 1) X_d; x = X / s                ensemble -> `Plan`

`crossget_encoder` does this in every layer of a dual encoder that has learned its cross tokens. The image's cross token never
reads a caption: it has learned what captions ask for in general (`METHOD.asks` is False). Untrained, its vectors 0, it is a second
[CLS], which is what `prune` uses on any encoder. Different from the official code (sdc17/CrossGET): mutual nearest neighbours
tie in the first sort as a rule, so S is made exactly symmetric and sorts are stable, lower index first (there: left to the
sort); matching and sizes stay in float32 under autocast; method="bipartite" is the baseline of the paper's comparison, ToMe's
alternating sets.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn import check_finite, check_tokens
from ..tokens import Plan, check_scores, keep_all, resolve_keep, take
from ..tokens.precision import full_precision, widen
from .method import Method

PAPER = "crossget"
METHODS = ("complete", "bipartite")


# ---------------------------------------------------------------- score
def importance_cosine(key: Tensor, query: Tensor) -> Tensor:
    """I_i = cos(k_i, q): keys (B, t, d), heads side by side, and the query (B, d) of the cross token or [EOT] -> (B, t)."""
    return (F.normalize(widen(key), dim=-1) * F.normalize(widen(query), dim=-1)[:, None]).sum(-1)


def importance_attention(attn: Tensor) -> Tensor:
    """I_i = mean of A_qi over all queries but the last, plus A_last,i: attn (B, t, t) [query, key], mean over heads -> (B, t)."""
    return attn[:, :-1].mean(dim=1) + attn[:, -1]


# ---------------------------------------------------------------- select
class Pairs(NamedTuple):
    """source, target (B, r) long: token source[e] goes into target[e]. weight (B, r, 2): softmax([I_source, I_target])."""

    source: Tensor
    target: Tensor
    weight: Tensor


def merges(r: int, num_tokens: int, num_protected: int) -> int:
    """How many tokens can go at once: min(r, (t - |P|) // 2), at least 0."""
    return max(0, min(r, (num_tokens - num_protected) // 2))


def schedule(r: int, num_tokens: int, num_layers: int, num_protected: int = 2) -> list[int]:
    """Tokens there are before the first and after each layer, num_layers + 1 numbers; [CLS] and cross token are among them."""
    counts = [num_tokens]
    for _ in range(num_layers):
        counts.append(counts[-1] - merges(r, counts[-1], num_protected))
    return counts


def rate(keep: int, num_tokens: int, num_layers: int, num_protected: int = 2) -> int:
    """The smallest r that leaves at most `keep` of the num_tokens tokens after all layers. ValueError when no r does."""
    for r in range(num_tokens + 1):
        if schedule(r, num_tokens, num_layers, num_protected)[-1] <= keep:
            return r
    least = schedule(num_tokens, num_tokens, num_layers, num_protected)[-1]
    raise ValueError(f"keep={keep} but {num_layers} layers that merge at most half leave {least} of {num_tokens} tokens")


@torch.no_grad()
def match(key, importance, r, num_prefix=1, num_suffix=1, eot=None, method="complete") -> Pairs:
    """Who merges into whom. No gradient. key (B, t, d), importance (B, t) -> `Pairs`, sources in order of their score.

    Protected tokens, neither source nor target: the first num_prefix, the last num_suffix, and position eot (B,), one more per
    image. method "complete": a token looks at all tokens of later rank, so of a mutual pair one gives and the other receives;
    its target is the most similar token that is no source. "bipartite": of the unprotected tokens the 1st, 3rd, ... give and
    the 2nd, 4th, ... receive. r is cut to (t - protected) // 2. ValueError for an unknown method, a negative r, an importance
    of another shape.
    """
    batch, t, _ = key.shape
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {METHODS}")
    if isinstance(r, bool) or not isinstance(r, int) or r < 0:
        raise ValueError(f"r={r!r} must be an int >= 0, the number of tokens to merge away")
    if importance.shape != (batch, t):
        raise ValueError(f"importance has shape {tuple(importance.shape)} but key {tuple(key.shape)} needs ({batch}, {t})")
    r = merges(r, t, num_prefix + num_suffix + (eot is not None))
    place = torch.arange(t, device=key.device)
    free = ((place >= num_prefix) & (place < t - num_suffix)).expand(batch, t)
    if eot is not None:
        free = free & (place != eot[:, None])
    importance = widen(importance)
    with full_precision(key.device):                                                            # autocast would make ties
        unit = F.normalize(widen(key), dim=-1)
        half = (unit @ unit.mT).triu(1)
        similarity = half + half.mT                                                             # b i j, symmetric to the last bit
        edge = free[:, :, None] & free[:, None] & (place[:, None] != place)
        similarity = similarity.masked_fill(~edge, -math.inf)
    if method == "complete":
        rank = similarity.amax(-1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        allowed = rank[:, None] > rank[:, :, None]                                              # b i j: j ranks later than i
    else:
        second = (free.cumsum(1) % 2 == 0) & free
        allowed = (free & ~second)[:, :, None] & second[:, None]
    redundancy = similarity.masked_fill(~allowed, -math.inf).amax(-1)                           # b i
    source = (importance - redundancy).argsort(dim=1, stable=True)[:, :r]                       # b r
    receives = torch.ones_like(free).scatter(1, source, False) if method == "complete" else second
    target = take(similarity, source).masked_fill(~receives[:, None], -math.inf).argmax(-1)     # the similarity without the mask
    return Pairs(source, target, torch.stack([take(importance, source), take(importance, target)], dim=-1).softmax(-1))


def ensemble(pairs: Pairs, size: Tensor, guided: bool = True) -> tuple[Plan, Tensor]:
    """The merge as a `Plan` over all t tokens, survivors in their old order, and the sizes of its slots: size (B, t) -> (B, t-r).

    With X = x size:  X_d + sum over pairs of 2 w_s X_s + (2 w_d - 1) X_d, divided by the new size (plain sum of the sizes).
    The weights of a slot sum to 1 only where importances are equal; then, and with guided=False, it is the size-weighted mean.
    """
    source, target, weight = pairs
    batch, t = size.shape
    gone = torch.zeros(batch, t, dtype=torch.bool, device=size.device).scatter(1, source, True)
    kept = gone.long().argsort(dim=1, stable=True)[:, : t - source.shape[1]]
    into = take((~gone).long().cumsum(1) - 1, target)                                           # b r: the target's slot
    new = take(size, kept).scatter_add(1, into, take(size, source))
    double = 2 * weight.to(size.dtype) if guided else torch.ones_like(weight, dtype=size.dtype)
    origin = torch.cat([kept, source, target], dim=1)
    slot = torch.cat([torch.arange(kept.shape[1], device=size.device).expand(batch, -1), into, into], dim=1)
    share = torch.cat([torch.ones_like(new), double[..., 0], double[..., 1] - 1], dim=1)
    return Plan(kept, t, origin, slot, share * take(size, origin) / take(new, slot)), new


def prune(vision, keep, *, importance=None, layer=None, guided=True, method="complete") -> Plan:
    """CrossGET without training, once behind any encoder: a `Plan` over vision.features with exactly `keep` slots, each token
    in one.

    A cross token that nobody trained is a copy of [CLS], so I is the [CLS] row, mean over heads, plus the mean attention
    received in vision.attention[layer] when a layer is named (LLaVA's importance, but for the key that the copy would add). Or
    give your own importance (B, N), of a question for instance. One round merges at most half of the tokens; further rounds
    merge what the last one left, its keys and importances merged in the same way (ours: the paper merges a few tokens in each
    layer of the encoder). ValueError without keys or [CLS] row.
    """
    batch, num_tokens = vision.features.shape[:2]
    keep = resolve_keep(keep, num_tokens)
    if vision.keys is None:
        raise ValueError("vision.keys is None: CrossGET matches keys, ask the encoder for need=('keys', 'cls_row')")
    if importance is None:
        if vision.cls_row is None:
            raise ValueError("vision.cls_row is None: give `importance` (B, N), or ask an encoder with [CLS] for it")
        importance = vision.cls_row.mean(dim=1)
        if layer is not None:
            if layer not in vision.attention:
                raise ValueError(f"layer={layer} but vision.attention holds {sorted(vision.attention)}")
            received = vision.attention[layer].mean(dim=(1, 2))                                 # b prefix+n
            importance = importance + received[:, vision.num_prefix :]
    if keep == num_tokens:
        return keep_all(batch, num_tokens, vision.features.device)
    check_tokens(vision.keys, name="vision.keys")
    check_finite(vision.keys, "vision.keys")
    check_scores(importance, "importance", (batch, num_tokens))
    key, importance = widen(vision.keys[:, vision.num_prefix :]), widen(importance)
    plan, size = None, key.new_ones(batch, num_tokens)
    while size.shape[1] > keep:
        pairs = match(key, importance, size.shape[1] - keep, 0, 0, method=method)
        step, size = ensemble(pairs, size, guided)
        if size.shape[1] > keep:                                                                # read by a further round
            key, importance = step.apply(key), step.apply(importance)
        plan = step if plan is None else plan.then(step)
    return plan


METHOD = Method("crossget", "CrossGET (untrained)", paper=PAPER, prune=prune, reads=("keys", "cls_row"))
