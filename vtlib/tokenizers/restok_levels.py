"""ResTok's hierarchy as plain functions: which levels there are, how maps become levels, how a
level is merged, who sees whom, how many codes are kept.

Zhang et al., 2026, arXiv 2601.03955; the map from equations to functions is in
`vtlib.tokenizers.restok`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..nn.checks import (
    check_flag,
    check_images,
    check_index,
    check_int,
    check_ints,
    check_number,
    check_tokens,
)

MERGE = ("average", "nearest")
Grid = tuple[int, int]


# ------------------------------------------------------------------------------------------- levels
def level_sizes(num_latents: int) -> tuple[int, ...]:
    """Tokens of each latent level: (1, 1, 2, 4, ..., N / 2), whose sums are 1, 2, 4, ..., N.

    ValueError unless N is a power of two, 2 at least.
    """
    number = check_int(num_latents, "num_latents", 2)
    if number & (number - 1):
        raise ValueError(f"num_latents={number} must be a power of two: each level doubles it")
    return (1, *(2**k for k in range(number.bit_length() - 1)))


def level_grids(num_latents: int) -> tuple[Grid, ...]:
    """(h, w) of each latent level: 1 x 1, 1 x 1, 1 x 2, 2 x 2, 2 x 4, ...: columns double first."""
    grids = []
    for size in level_sizes(num_latents):
        doublings = size.bit_length() - 1
        rows = 2 ** (doublings // 2)
        grids.append((rows, size // rows))
    return tuple(grids)


def pool_levels(maps: Tensor, grids: Sequence[Grid], residual: bool = True) -> Tensor:
    """A pyramid of pooled maps as tokens: (B, C, H, W) -> (B, N, C), levels one after another.

    With `residual` each level pools what the levels before it left over: where the grids divide the
    map's, the second 1 x 1 level is 0 and each level has mean 0 inside its parent's cells.

    Args:
        maps: the map.
        grids: (h, w) of each level, none larger than the map.
        residual: False pools the map itself for every level.
    """
    check_images(maps, None, "maps")
    residual = check_flag(residual, "residual")
    size, rest, levels = (maps.shape[-2], maps.shape[-1]), maps, []
    for grid in grids:
        h, w = check_ints(grid, "grid", 1, length=2)
        if h > size[0] or w > size[1]:
            raise ValueError(f"a level's grid {(h, w)} is larger than the map's, {size}")
        level = F.adaptive_avg_pool2d(rest, (h, w))                                  # b c h w
        levels.append(rearrange(level, "b c h w -> b (h w) c"))
        if residual:
            rest = rest - F.interpolate(level, size=size, mode="nearest")
    return torch.cat(levels, dim=1)


def sum_levels(
    tokens: Tensor, grids: Sequence[Grid], size: Grid, residual: bool = True
) -> Tensor:
    """The map that the levels stand for: (B, N, C) -> (B, C, H, W).

    Args:
        tokens: of `pool_levels`, or those of its first levels.
        grids: (h, w) of each level.
        size: (H, W).
        residual: as it was there: the levels' sum, or their mean.
    """
    check_tokens(tokens, name="tokens")
    sizes = [h * w for h, w in grids]
    if not sizes or sum(sizes) != tokens.shape[1]:
        raise ValueError(f"tokens has {tokens.shape[1]} tokens, the grids {list(grids)} others")
    maps = []
    for level, (h, w) in zip(tokens.split(sizes, dim=1), grids, strict=True):
        level = rearrange(level, "b (h w) c -> b c h w", h=h, w=w)
        maps.append(F.interpolate(level, size=tuple(size), mode="nearest"))
    total = torch.stack(maps).sum(dim=0)
    return total if residual else total / len(maps)


def merge_pairs(
    tokens: Tensor, merge: str = "average", residual: bool = True
) -> tuple[Tensor, Tensor]:
    """A level and the next coarser one: (B, n, D) -> merged (B, n/2, D), what is left (B, n, D).

    merged, each token twice, + what is left = tokens. On a row-major grid of even width the pairs
    are neighbours in a row.

    Args:
        tokens: of the coarsest level so far.
        merge: "average", the mean of each pair, or "nearest", the first of it.
        residual: False leaves the tokens as they are.
    """
    check_tokens(tokens, name="tokens")
    if merge not in MERGE:
        raise ValueError(f"merge={merge!r}: needs one of {', '.join(MERGE)}")
    if tokens.shape[1] % 2:
        raise ValueError(f"tokens has {tokens.shape[1]} tokens: pairs need an even number")
    pairs = rearrange(tokens, "b (n two) d -> b n two d", two=2)
    merged = pairs.mean(dim=2) if merge == "average" else pairs[:, :, 0]
    if not residual:
        return merged, tokens
    rest = pairs - merged[:, :, None]
    return merged, rearrange(rest, "b n two d -> b (n two) d")


# ------------------------------------------------------------------------------------ who sees whom
def block_causal_mask(sizes: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """(L, L) bool, True where query and key may meet: a token sees its own block and all before.

    Args:
        sizes: tokens of each block, in order.
        device: where the mask is made.
    """
    sizes = check_ints(sizes, "sizes", 1)
    levels = [level for level, size in enumerate(sizes) for _ in range(size)]
    level = torch.tensor(levels, device=device)
    return level[:, None] >= level[None]                                                # q k


# ----------------------------------------------------------------------------------- nested dropout
def nested_lengths(num_latents: int, least: int = 4) -> tuple[int, ...]:
    """How many codes may be kept: the ends of levels from `least` on, least, 2 least, ..., N."""
    ends = [2**k for k in range(len(level_sizes(num_latents)))]
    least = check_int(least, "least", 1, num_latents)
    return tuple(end for end in ends if end >= least)


def nested_probabilities(num_latents: int, least: int = 4, drop: float = 0.2) -> Tensor:
    """The probability of each of `nested_lengths`, float64: 1 - drop for all codes, the rest shared
    in proportion to the length.

    Args:
        num_latents: N.
        least: the shortest prefix.
        drop: of fewer than all.
    """
    lengths = nested_lengths(num_latents, least)
    drop = check_number(drop, "drop", 0, 1)
    shares = [drop * length / max(sum(lengths[:-1]), 1) for length in lengths[:-1]]
    whole = 1 - drop if shares else 1.0
    return torch.tensor([*shares, whole], dtype=torch.float64, device="cpu")


def hide(codes: Tensor, keep: int | Tensor | None, token: Tensor) -> Tensor:
    """Codes (B, N, C) with all but the first `keep` replaced by `token` (1, 1, C).

    Args:
        codes: the codes.
        keep: how many stay: an int, or (B,) long; None: all.
        token: what takes the others' place.
    """
    if keep is None:
        return codes
    num = codes.shape[1]
    if isinstance(keep, Tensor) and keep.dim():
        check_index(keep, "keep", "(B,)", (codes.shape[0],), stop=num + 1)
        kept = torch.arange(num, device=codes.device) < keep[:, None]                    # b n
    else:
        kept = torch.arange(num, device=codes.device)[None] < check_int(keep, "keep", 0, num)
    return torch.where(kept[..., None], codes, token.to(codes.dtype))
