"""Windows of adjacent tokens, and relative positions inside a window."""

import torch
import torch.nn.functional as F
from einops import rearrange

from .checks import check_multiple


def pad_to_multiple(x, multiple):
    """Pad a token map (B, H, W, C) with zeros at the bottom and right until H and W are multiples of `multiple`.

    Returns (padded map, (pad_bottom, pad_right)). Unchanged (the same tensor) when nothing is missing.
    """
    down, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return (F.pad(x, (0, 0, 0, right, 0, down)) if down or right else x), (down, right)


def window_partition(x, size):
    """(B, H, W, C) -> (B, windows, size*size, C): squares of size x size adjacent tokens, row-major."""
    check_multiple(x.shape[1:3], size, "token map")
    return rearrange(x, "b (h g) (w f) c -> b (h w) (g f) c", g=size, f=size)


def window_merge(groups, size, height, width):
    """The inverse of `window_partition`: (B, windows, size*size, C) -> (B, height, width, C)."""
    return rearrange(groups, "b (h w) (g f) c -> b (h g) (w f) c", h=height // size, w=width // size, g=size, f=size)


def relative_offsets(size, device=None):
    """All offsets (dy, dx) between two tokens of a size x size window: ((2 size - 1)^2, 2) float, dy outer, from 1 - size to size - 1."""
    step = torch.arange(1 - size, size, device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(step, step, indexing="ij"), dim=-1).reshape(-1, 2)


def relative_index(size, device=None):
    """(size^2, size^2) long: row of `relative_offsets` that holds position(query i) - position(key j)."""
    at = torch.arange(size, device=device)
    yx = torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1).reshape(-1, 2)              # n 2
    dy, dx = (yx[:, None] - yx[None] + size - 1).unbind(-1)                                     # query, key
    return dy * (2 * size - 1) + dx
