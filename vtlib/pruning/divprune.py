"""DivPrune - Diversity-based Visual Token Pruning for Large Multimodal Models (Alvar, Singh,
Akbari, Zhang, CVPR 2025, arXiv 2503.02175).

The idea: pruning by importance keeps many near-copies of the same salient patch. DivPrune asks for
T tokens whose smallest pairwise distance is as large as possible (the Max-Min Diversity Problem),
so that every cluster of the token cloud keeps a representative. It reads no attention, no text, and
needs no calibration.

    d(a, b) = 1 - cos(a, b)                          distances              (eq. 3)
    S = argmax over |S| = T of min d(a, b) in S      select, prune: greedy  (eq. 4, algorithm 1)
        first the most isolated token,
        then the one farthest from its nearest chosen token: vtlib.tokens.greedy.greedy_maxmin
    the true optimum, for few tokens                 optimum
    what is gained and what is not                   smallest_distance, coverage
    4 n d^2 + 2 n^2 d + 2 n d m                      vtlib.tokens.cost.decoder_flops
                                                     (eq. 5, with the sign of the code)

The tokens are the projector's outputs, in the language model's width. With several views all
tokens, newline tokens included, are one pool: concatenate them and call `select`. Video is one pool
of all frames too.

The text calls the solution exact; algorithm 1 and the code are greedy farthest-first insertion. Its
guarantee is half the optimum in a metric; cosine distance is half a squared chord, so a quarter of
the optimum here.

Different from the release:
- the nearest chosen distance is kept as one running vector (N T reads in place of N T^2), and
  images are computed in groups;
- chosen tokens are masked, so copies are never picked twice;
- a zero token has distance 1 to all (there: NaN), and a token that is not finite is an error.
"""

import math

import torch
from torch import Tensor

from ..nn.checks import check_finite, check_index, check_int, check_tokens
from ..tokens import Plan, resolve_keep, take
from ..tokens.cosine import unit
from ..tokens.greedy import greedy_maxmin
from ..tokens.precision import full_precision
from ..tokens.vision import VisionOutputs, check_vision
from .method import Method

PAPER = "divprune"


def distances(tokens: Tensor) -> Tensor:
    """Cosine distance of all pairs, 1 - cos, in [0, 2]: (B, N, D) -> (B, N, N).

    A zero token has distance 1 to all, itself included. ValueError for tokens that are not floating
    (B, N, D) or not finite.
    """
    check_tokens(tokens)
    check_finite(tokens, "tokens")
    with full_precision(tokens.device):
        x = unit(tokens)
        return 1 - x @ x.transpose(1, 2)


def score(tokens: Tensor) -> Tensor:
    """How isolated each token is: the distance to its nearest other token, (B, N, D) -> (B, N).

    It decides the first token alone; later scores depend on what was chosen before (the gains of
    `greedy_maxmin`).
    """
    distance = distances(tokens)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return distance.amin(dim=2)


def select(tokens: Tensor, keep: int | float) -> Plan:
    """Greedy max-min selection (algorithm 1) from one pool of tokens (B, M, D), in raster order.

    A fraction r is round(r M), Python's rounding, as in the release (0.098 of 576 is 56). The
    choice for `keep` contains the choice for any smaller one. ValueError as `greedy_maxmin`.
    """
    index, _ = greedy_maxmin(tokens, keep)
    return Plan(index.sort(dim=1).values, tokens.shape[1])


def prune(vision: VisionOutputs, keep: int | float) -> Plan:
    """Keep the most diverse projected tokens. Plan over `vision.tokens`."""
    check_vision(vision)
    return select(vision.tokens, keep)


# ---------------------------------------------------------------- how good is it
def smallest_distance(tokens: Tensor) -> Tensor:
    """What max-min diversity maximises: the smallest distance of two tokens of the set.

    tokens (B, T, D), T >= 2 -> (B,).
    """
    check_tokens(tokens)
    if tokens.shape[1] < 2:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)} but a pair needs T >= 2")
    return score(tokens).amin(dim=1)


def coverage(tokens: Tensor, index: Tensor) -> Tensor:
    """Distance of every token to its nearest kept one, 0 for the kept.

    tokens (B, N, D), index (B, T) -> (B, N). Greedy max-min is good at the largest of them; for the
    mean, a random choice that follows the density can be better. ValueError for an index of
    another dtype or batch, without a token, or, on the CPU, with a place that does not exist.
    """
    check_tokens(tokens)
    check_finite(tokens, "tokens")
    check_index(index, "index", "(B, T)", (tokens.shape[0], None))
    if index.shape[1] < 1:
        raise ValueError(f"index has shape {tuple(index.shape)}: needs a kept token at least")
    with full_precision(tokens.device):
        x = unit(tokens)
        similarity = x @ take(x, index).transpose(1, 2)             # b n t
    return (1 - similarity.amax(dim=2)).scatter(1, index, 0.0)


def optimum(tokens: Tensor, keep: int, limit: int = 200_000) -> tuple[Tensor, Tensor]:
    """The true solution of the Max-Min Diversity Problem by trying all subsets.

    Args:
        tokens: (B, N, D).
        keep: T, at least 2.
        limit: the number of subsets grows as N over T; ValueError beyond so many.

    Returns index (B, T) ascending and the smallest distance (B,).
    """
    check_tokens(tokens)
    limit = check_int(limit, "limit", 0)
    num_tokens = tokens.shape[1]
    keep = resolve_keep(keep, num_tokens)
    if keep < 2:
        raise ValueError(f"keep={keep} but a smallest distance needs two tokens")
    num_subsets = math.comb(num_tokens, keep)
    if num_subsets > limit:
        raise ValueError(
            f"{keep} of {num_tokens} tokens are {num_subsets} subsets, more than limit={limit}"
        )
    place = torch.arange(num_tokens, device=tokens.device)
    subsets = torch.combinations(place, keep)                       # s t
    distance = distances(tokens)
    worst = distance.new_full((len(tokens), num_subsets), torch.inf)
    for i in range(keep):
        for j in range(i):
            worst = torch.minimum(worst, distance[:, subsets[:, i], subsets[:, j]])     # b s
    value, best = worst.max(dim=1)
    return subsets[best], value


METHOD = Method("divprune", "DivPrune", paper=PAPER, prune=prune, space="tokens")
