"""Where a token is: fixed sin-cos tables, resizable learned tables, rotary embeddings in one and
two dimensions, and positions behind a border."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .checks import check_float, check_int, check_ints, check_number, describe

Grid = tuple[int, int]
Device = torch.device | str | None


def _steps(count: int, device: Device) -> Tensor:
    return torch.arange(count, device=device, dtype=torch.float32)


def _sincos(rows: Tensor, cols: Tensor, freq: Tensor) -> Tensor:
    """(h*w, 4 F): sines and cosines of the row's position times freq (F,), then of the column's."""
    row, col = rows[:, None] * freq, cols[:, None] * freq                           # h f, w f
    row = torch.cat([row.sin(), row.cos()], dim=-1)[:, None].expand(-1, len(cols), -1)
    col = torch.cat([col.sin(), col.cos()], dim=-1)[None].expand(len(rows), -1, -1)
    return rearrange(torch.cat([row, col], dim=-1), "h w d -> (h w) d")


def _quarter(channels: int, name: str) -> int:
    channels = check_int(channels, name, 4)
    if channels % 4:
        raise ValueError(
            f"{name}={channels} must be a multiple of 4: sine and cosine for row and column"
        )
    return channels // 4


def _positive(value: float, name: str) -> float:
    number = check_number(value, name)
    if number <= 0:
        raise ValueError(f"{name}={number}: needs a positive number")
    return number


def sincos_2d(
    grid: Grid, embed_dim: int, temperature: float = 10000.0, device: Device = None
) -> Tensor:
    """Fixed 2-D sin-cos table (h*w, D): D/2 channels for the row, D/2 for the column.

    Each half holds the sines, then the cosines, of
    angle(p, i) = p / temperature^(i / (D/4)), i = 0 ... D/4 - 1
    (Vaswani et al. 2017 sec. 3.5, applied to each axis).

    Args:
        grid: (h, w).
        embed_dim: D. ValueError unless it is a multiple of 4.
        temperature: of the slowest wave.
        device: where the table is made.
    """
    quarter, (h, w) = _quarter(embed_dim, "embed_dim"), check_ints(grid, "grid", 1, length=2)
    temperature = _positive(temperature, "temperature")
    freq = temperature ** (-_steps(quarter, device) / quarter)
    return _sincos(_steps(h, device), _steps(w, device), freq)


def places_2d(
    grid: Grid, channels: int, base: float = math.pi / 2, device: Device = None
) -> Tensor:
    """Absolute places (h*w, channels): half of the channels for the row, half for the column.

    Entries are sin and cos of base * 2^k * t, k = 0 ... channels/4 - 1, with t in (0, 1) the middle
    of the patch along that side: the same place in the picture gets the same numbers at every
    resolution, which `sincos_2d` does not do.

    Args:
        grid: (h, w).
        channels: ValueError unless they are a multiple of 4.
        base: the slowest wave's angle across the picture.
        device: where the table is made.
    """
    sides, base = check_ints(grid, "grid", 1, length=2), check_number(base, "base")
    freq = base * 2.0 ** _steps(_quarter(channels, "channels"), device)
    rows, cols = ((_steps(side, device) + 0.5) / side for side in sides)
    return _sincos(rows, cols, freq)


def mirrored(index: Tensor, length: int) -> Tensor:
    """Integer positions folded into 0 ... length - 1 by mirrors at both ends, edges twice.

        ... 1 0 | 0 1 2 | 2 1 0 | 0 1 ...                     for length 3
    """
    if not isinstance(index, Tensor) or index.is_floating_point():
        raise ValueError(f"index is {describe(index)} but needs to be a tensor of integers")
    length = check_int(length, "length", 1)
    index = index % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def resize_pos_embed(
    pos_embed: Tensor, old_grid: Grid, new_grid: Grid, num_prefix: int = 1
) -> Tensor:
    """Bicubic resize of a learned table (1, prefix + h*w, D) to another grid.

    Args:
        pos_embed: the table.
        old_grid: (h, w) that it was made for.
        new_grid: (h, w) that is wanted.
        num_prefix: the first rows ([CLS]), which stay as they are.
    """
    check_float(pos_embed, "pos_embed")
    old = check_ints(old_grid, "old_grid", 1, length=2)
    new = check_ints(new_grid, "new_grid", 1, length=2)
    num_prefix = check_int(num_prefix, "num_prefix", 0)
    if old == new:
        return pos_embed
    rows = num_prefix + old[0] * old[1]
    if pos_embed.dim() != 3 or pos_embed.shape[1] != rows:
        raise ValueError(
            f"pos_embed has shape {tuple(pos_embed.shape)} but old_grid={old} "
            f"with {num_prefix} prefix tokens needs (1, {rows}, D)"
        )
    prefix, table = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    table = rearrange(table, "b (h w) d -> b d h w", h=old[0]).float()
    table = F.interpolate(table, size=new, mode="bicubic", align_corners=False)
    table = rearrange(table.to(pos_embed.dtype), "b d h w -> b (h w) d")
    return torch.cat([prefix, table], dim=1)


def rope_1d(
    num_tokens: int, dim: int, base: float = 10000.0, device: Device = None
) -> tuple[Tensor, Tensor]:
    """Rotary tables (cos, sin), each (N, dim): channel i and i + dim/2 form a pair (rotate-half).

    angle(t, i) = t * base^(-2i/dim) (Su et al. 2021).

    Args:
        num_tokens: N.
        dim: even; may be smaller than the head: `apply_rope` rotates the first dim channels.
        base: of the slowest turn.
        device: where the tables are made.
    """
    num_tokens = check_int(num_tokens, "num_tokens", 0)
    return rope_at(torch.arange(num_tokens, device=device), dim, base)


def rope_at(positions: Tensor, dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """The tables of `rope_1d`, each (..., dim), for tokens at any integer positions (...).

    Args:
        positions: they need not be 0, 1, 2, ...
        dim: even.
        base: of the slowest turn.
    """
    if not isinstance(positions, Tensor):
        raise ValueError(f"positions is {describe(positions)} but needs to be a tensor")
    dim, base = check_int(dim, "dim", 0), _positive(base, "base")
    if dim % 2:
        raise ValueError(f"dim={dim} must be even: rotary embeddings turn pairs of channels")
    pairs = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32)
    angle = positions[..., None].float() * base ** (-pairs / dim)                   # ... dim/2
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rope_2d(
    grid: Grid, head_dim: int, base: float = 100.0, num_prefix: int = 0, device: Device = None
) -> tuple[Tensor, Tensor]:
    """Rotary tables (cos, sin), each (prefix + h*w, P), for tokens on a grid.

    Half of the pairs turn with the row, half with the column. Prefix tokens ([CLS]) get angle 0, so
    they are not rotated.

    Args:
        grid: (h, w).
        head_dim: P. ValueError unless it is a multiple of 4.
        base: of the slowest turn.
        num_prefix: tokens before the grid's.
        device: where the tables are made.
    """
    head_dim, base = check_int(head_dim, "head_dim", 4), _positive(base, "base")
    if head_dim % 4:
        raise ValueError(
            f"head_dim={head_dim} must be a multiple of 4: pairs of channels for row and column"
        )
    height, width = check_ints(grid, "grid", 1, length=2)
    num_prefix = check_int(num_prefix, "num_prefix", 0)
    pairs = torch.arange(0, head_dim, 4, device=device, dtype=torch.float32)
    freq = base ** (-pairs / head_dim)
    rows = (_steps(height, device)[:, None] * freq)[:, None].expand(height, width, -1)
    cols = (_steps(width, device)[:, None] * freq)[None].expand(height, width, -1)
    angle = rearrange(torch.cat([rows, cols, rows, cols], dim=-1), "h w p -> (h w) p")
    angle = F.pad(angle, (0, 0, num_prefix, 0))
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first cos.shape[-1] channels of x by the tables' angles; the others pass through.

    rotate(x) = x * cos + rotate_half(x) * sin, rotate_half([a, b]) = [-b, a].

    Args:
        x: (..., N, P).
        cos: (N, dim), dim <= P.
        sin: (N, dim).
    """
    for tensor, name in ((x, "x"), (cos, "cos"), (sin, "sin")):
        check_float(tensor, name)
    fits = cos.shape == sin.shape and min(x.dim(), cos.dim()) >= 2
    if not fits or cos.shape[-1] > x.shape[-1] or cos.shape[-2] != x.shape[-2]:
        raise ValueError(
            f"rotary tables {tuple(cos.shape)}, {tuple(sin.shape)} do not fit x {tuple(x.shape)}: "
            f"both (N, dim) with dim <= P are needed for x (..., N, P)"
        )
    dim = cos.shape[-1]
    turn, rest = x[..., :dim], x[..., dim:]
    a, b = turn.chunk(2, dim=-1)
    turn = turn * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)
    return torch.cat([turn, rest], dim=-1)
