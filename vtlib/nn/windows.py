"""Windows of adjacent tokens, and relative positions inside a window."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .checks import check_int, check_map, check_multiple

Device = torch.device | str | None


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad a token map (B, H, W, C) with zeros until H and W are multiples of `multiple`.

    Returns (padded map, (pad_bottom, pad_right)). Unchanged (the same tensor) when nothing is
    missing.
    """
    check_map(x)
    multiple = check_int(multiple, "multiple", 1)
    down, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if down or right:
        x = F.pad(x, (0, 0, 0, right, 0, down))
    return x, (down, right)


def window_partition(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, size*size, C): squares of adjacent tokens, row-major."""
    check_map(x)
    check_multiple(x.shape[1:3], size, "token map")
    return rearrange(x, "b (h g) (w f) c -> b (h w) (g f) c", g=size, f=size)


def window_merge(groups: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `window_partition`: (B, height, width, C).

    Args:
        groups: (B, windows, size*size, C).
        size: side of a window.
        height: of the map.
        width: of the map.
    """
    size = check_int(size, "size", 1)
    height, width = check_int(height, "height", 1), check_int(width, "width", 1)
    check_map(groups, "groups")
    need = height // size * (width // size), size * size
    if height % size or width % size or groups.shape[1:3] != need:
        raise ValueError(
            f"groups {tuple(groups.shape)} do not fill a map of {height} x {width} with windows "
            f"of size={size}: needs (B, windows, {size * size}, C)"
        )
    sides = dict(h=height // size, w=width // size, g=size, f=size)
    return rearrange(groups, "b (h w) (g f) c -> b (h g) (w f) c", **sides)


def relative_offsets(size: int, device: Device = None) -> Tensor:
    """All offsets (dy, dx) between two tokens of a window: ((2 size - 1)^2, 2) float.

    dy is outer; both run from 1 - size to size - 1.
    """
    size = check_int(size, "size", 1)
    step = torch.arange(1 - size, size, device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(step, step, indexing="ij"), dim=-1).reshape(-1, 2)


def relative_index(size: int, device: Device = None) -> Tensor:
    """(size^2, size^2) long: row of `relative_offsets` that holds position(i) - position(j).

    i is the query, j the key.
    """
    size = check_int(size, "size", 1)
    at = torch.arange(size, device=device)
    yx = torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1).reshape(-1, 2)         # n 2
    dy, dx = (yx[:, None] - yx[None] + size - 1).unbind(-1)                          # query, key
    return dy * (2 * size - 1) + dx
