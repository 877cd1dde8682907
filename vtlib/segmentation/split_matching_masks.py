"""Pseudo masks of Split Matching: what may be in the regions that nobody annotated.

    G_s = means of the s x s windows, step s / 2                window_seeds
    K seeds far from each other                                 farthest_seeds
    k-means from there, cosine, centres of empty clusters stay  kmeans
    one mask a cluster, for each s in S, without what is
      annotated and without small ones                          partition, pseudo_masks
    region embeddings e_j: (a) the class token attending to
      the region only, (c) means of features                    region_tokens, region_means

The window sizes S, K, the iterations, cosine, the selection of seeds and the smallest area are
defaults chosen here: the public text gives the seeds alone (and prints their last place as
(H - s) / 2; H - s is meant, presumably). The encoder is frozen, so all of this is computed once a
picture, before the training.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import nn
from ..nn.checks import (
    check_axes,
    check_finite,
    check_int,
    check_ints,
    check_list,
    check_number,
    check_tokens,
    describe,
)
from ..tokens.cosine import unit


class Regions(NamedTuple):
    """Pseudo targets of a picture.

    Args:
        embeddings: (T, D) unit vectors e_j.
        masks: (T, h, w) bool, outside of all annotations.
    """

    embeddings: Tensor
    masks: Tensor


def window_starts(length: int, window: int) -> list[int]:
    """0, s/2, s, ... up to length - s, rounded down: floor((length - s) / (s / 2)) + 1 places."""
    return [k * window // 2 for k in range(2 * (length - window) // window + 1)]


def window_seeds(features: Tensor, window: int) -> Tensor:
    """Mean feature of every window: (B, h, w, D) -> (B, windows, D), row by row.

    Args:
        features: dense features.
        window: s, at most h and w.
    """
    check_axes(features, "features", "(B, h, w, D)")
    _, height, width, _ = features.shape
    window = check_int(window, "window", 1, min(height, width))
    means = F.avg_pool2d(rearrange(features, "b h w d -> b d h w"), window, stride=1)
    rows, cols = window_starts(height, window), window_starts(width, window)
    return rearrange(means[:, :, rows][:, :, :, cols], "b d i j -> b (i j) d")


def farthest_seeds(seeds: Tensor, count: int) -> Tensor:
    """Farthest-point selection: (B, S, D) -> (B, min(count, S), D), unit vectors.

    The first is the seed most like the mean of all; each next one is the seed whose largest cosine
    to those already taken is the smallest.
    """
    check_tokens(seeds, name="seeds")
    count = min(check_int(count, "count", 1), seeds.shape[1])
    seeds = unit(seeds)
    every = torch.arange(len(seeds), device=seeds.device)
    middle = unit(seeds.mean(dim=1, keepdim=True))                                   # b 1 d
    chosen = [(seeds @ middle.mT)[..., 0].argmax(dim=1)]                             # b
    nearest = torch.full(seeds.shape[:2], -torch.inf, device=seeds.device, dtype=seeds.dtype)
    for _ in range(count - 1):
        cosine = (seeds @ seeds[every, chosen[-1], :, None])[..., 0]                 # b s
        nearest = torch.maximum(nearest, cosine).scatter(1, chosen[-1][:, None], torch.inf)
        chosen.append(nearest.argmin(dim=1))
    return seeds[every[:, None], torch.stack(chosen, dim=1)]


def kmeans(features: Tensor, seeds: Tensor, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Clusters of unit vectors by cosine. A centre is the unit mean of its members, and stays where
    it is without any.

    Args:
        features: (B, N, D).
        seeds: (B, K, D), the first centres.
        iterations: how often centres move.

    Returns the cluster of each vector (B, N) int64 and the centres (B, K, D).
    """
    check_tokens(features, name="features")
    check_tokens(seeds, features.shape[-1], name="seeds")
    x, centres = unit(features), unit(seeds)
    for _ in range(check_int(iterations, "iterations", 0)):
        member = F.one_hot((x @ centres.mT).argmax(-1), centres.shape[1]).to(x.dtype)  # b n k
        moved = unit(member.mT @ x)
        centres = torch.where(member.sum(dim=1)[..., None] > 0, moved, centres)
    return (x @ centres.mT).argmax(-1), centres


def partition(features: Tensor, window: int, clusters: int = 6, iterations: int = 10) -> Tensor:
    """Cluster of every place, from the seeds of one window size: (B, h, w, D) -> (B, h, w) int64.

    Args:
        features: dense features.
        window: s.
        clusters: K at most.
        iterations: of k-means.
    """
    seeds = farthest_seeds(window_seeds(features, window), clusters)
    labels, _ = kmeans(features.flatten(1, 2), seeds, iterations)
    return labels.reshape(features.shape[:3])


@torch.no_grad()
def pseudo_masks(
    features: Tensor,
    free: Tensor,
    windows: Sequence[int] | None = None,
    clusters: int = 6,
    min_area: float = 0.01,
    iterations: int = 10,
) -> list[Tensor]:
    """Masks (T, h, w) bool of each picture, from all window sizes; none overlaps an annotation.

    Args:
        features: dense features (B, h, w, D).
        free: un-annotated places, (B, h, w) bool.
        windows: the set S; None: a half, a third and a quarter of the shorter side.
        clusters: at most so many of each window size.
        min_area: smaller masks, as a share of the map, are dropped; empty ones always are.
        iterations: of k-means.
    """
    check_axes(features, "features", "(B, h, w, D)")
    check_finite(features, "features")
    size = features.shape[:3]
    if not isinstance(free, Tensor) or free.dtype != torch.bool or free.shape != size:
        raise ValueError(f"free is {describe(free)} but needs to be torch.bool {tuple(size)}")
    side = min(size[1:])
    if windows is None:
        windows = sorted({max(side // part, 1) for part in (2, 3, 4)})
    windows = check_ints(windows, "windows", 1)
    if not windows:
        raise ValueError("windows=(): needs one window size at least")
    clusters, least = check_int(clusters, "clusters", 1), check_number(min_area, "min_area", 0, 1)
    every = torch.arange(clusters, device=features.device)[:, None, None]
    scales = [partition(features, window, clusters, iterations) for window in windows]
    masks = torch.cat([labels[:, None] == every for labels in scales], dim=1)        # b t h w
    masks = masks & free[:, None]
    area = masks.sum(dim=(2, 3))
    kept = (area > 0) & (area >= least * size[1] * size[2])
    return [each[here] for each, here in zip(masks, kept, strict=True)]


@torch.no_grad()
def region_means(features: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
    """Way (c), the fallback of a toy: the mean of the dense features in each mask, unit (T, D).

    Args:
        features: (B, h, w, D).
        masks: of each picture (T, h, w) bool, none empty.
    """
    check_axes(features, "features", "(B, h, w, D)")
    found = _check_masks(masks, features.shape[0], tuple(features.shape[1:3]))
    pairs = zip(features, found, strict=True)
    return [unit(m.flatten(1).to(x.dtype) @ x.flatten(0, 1)) for x, m in pairs]


@torch.no_grad()
def region_tokens(
    tokens: Tensor,
    masks: Sequence[Tensor],
    blocks: Sequence[Callable[..., Tensor]],
    head: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Way (a): the class token, in the last blocks, attends only to the places of a region.

    See `nn.region_tokens`. With all places in a region it is the class token.

    Args:
        tokens: (B, 1 + N, D), the class token first, before the last blocks.
        masks: of each picture (T, h, w) bool with h w = N, none empty.
        blocks: each called as block(x, mask), mask (B, 1, M, M) bool, True = attend: `nn.Block`.
        head: the encoder's norm and projection, (B, T, D) -> (B, T, d).

    Returns unit vectors (T, d) of each picture.
    """
    check_tokens(tokens, name="tokens")
    batch, length = tokens.shape[:2]
    found = _check_masks(masks, batch, None)
    for b, m in enumerate(found):
        if m.shape[1] * m.shape[2] != length - 1:
            raise ValueError(f"masks[{b}] is {describe(m)} but there are {length - 1} places")
    counts = [len(m) for m in found]
    rows = pad_sequence([m.flatten(1) for m in found], batch_first=True)         # b t n
    out = unit(head(nn.region_tokens(tokens, rows, blocks)))
    return [each[:count] for each, count in zip(out, counts, strict=True)]


def _check_masks(
    masks: Sequence[Tensor], batch: int, size: tuple[int, ...] | None
) -> list[Tensor]:
    found = check_list(masks, "masks", "a list of tensors (T, h, w), one a picture")
    if len(found) != batch:
        raise ValueError(f"masks has {len(found)} entries but there are {batch} pictures")
    for b, m in enumerate(found):
        good = isinstance(m, Tensor) and m.dtype == torch.bool and m.dim() == 3
        if not good or (size is not None and tuple(m.shape[1:]) != size):
            needs = f"(T, {', '.join(map(str, size))})" if size else "(T, h, w)"
            raise ValueError(f"masks[{b}] is {describe(m)} but needs to be torch.bool {needs}")
        if not bool(m.flatten(1).any(dim=1).all()):
            raise ValueError(f"masks[{b}] has an empty mask: a region needs one place at least")
    return found
