"""Where a token is: fixed sin-cos tables, resizable learned tables, rotary embeddings in one and two dimensions."""

import torch
import torch.nn.functional as F
from einops import rearrange


def sincos_2d(grid, embed_dim, temperature=10000.0, device=None):
    """Fixed 2-D sin-cos table (h*w, D): D/2 channels for the row, D/2 for the column, each half sines then cosines.

    angle(p, i) = p / temperature^(i / (D/4)), i = 0 ... D/4 - 1 (Vaswani et al. 2017 sec. 3.5, applied to each axis).
    grid: (h, w). Raises ValueError unless D is a multiple of 4.
    """
    if embed_dim % 4:
        raise ValueError(f"embed_dim={embed_dim} must be a multiple of 4: sine and cosine for row and column")
    h, w = grid
    freq = temperature ** (-torch.arange(embed_dim // 4, device=device, dtype=torch.float32) / (embed_dim // 4))
    rows = torch.arange(h, device=device, dtype=torch.float32)[:, None] * freq                  # h d
    cols = torch.arange(w, device=device, dtype=torch.float32)[:, None] * freq                  # w d
    rows = torch.cat([rows.sin(), rows.cos()], dim=-1)[:, None].expand(h, w, -1)
    cols = torch.cat([cols.sin(), cols.cos()], dim=-1)[None].expand(h, w, -1)
    return rearrange(torch.cat([rows, cols], dim=-1), "h w d -> (h w) d")


def resize_pos_embed(pos_embed, old_grid, new_grid, num_prefix=1):
    """Bicubic resize of a learned table (1, prefix + h*w, D) to another grid; the first num_prefix rows (CLS) stay as they are."""
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    n = old_grid[0] * old_grid[1]
    if pos_embed.shape[1] != num_prefix + n:
        raise ValueError(f"pos_embed has {pos_embed.shape[1]} rows but old_grid={tuple(old_grid)} with {num_prefix} prefix tokens needs {num_prefix + n}")
    prefix, table = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    table = rearrange(table, "b (h w) d -> b d h w", h=old_grid[0])
    table = F.interpolate(table.float(), size=tuple(new_grid), mode="bicubic", align_corners=False).to(pos_embed.dtype)
    return torch.cat([prefix, rearrange(table, "b d h w -> b (h w) d")], dim=1)


def rope_1d(num_tokens, dim, base=10000.0, device=None):
    """Rotary tables (cos, sin), each (N, dim), in the rotate-half layout: channel i and i + dim/2 form a pair.

    angle(t, i) = t * base^(-2i/dim) (Su et al. 2021). dim may be smaller than the head: `apply_rope` rotates the first dim channels.
    """
    if dim % 2:
        raise ValueError(f"dim={dim} must be even: rotary embeddings turn pairs of channels")
    return rope_at(torch.arange(num_tokens, device=device), dim, base)


def rope_at(positions, dim, base=10000.0):
    """The tables of `rope_1d`, each (..., dim), for tokens at any integer positions (...), which need not be 0, 1, 2, ..."""
    freq = base ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angle = positions[..., None].float() * freq                                                 # ... dim/2
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rope_2d(grid, head_dim, base=100.0, num_prefix=0, device=None):
    """Rotary tables (cos, sin), each (prefix + h*w, P), for tokens on a grid: half of the pairs turn with the row, half with the column.

    Prefix tokens (CLS) get angle 0, so they are not rotated. Raises ValueError unless head_dim is a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim={head_dim} must be a multiple of 4: pairs of channels for row and column")
    h, w = grid
    freq = base ** (-torch.arange(0, head_dim, 4, device=device, dtype=torch.float32) / head_dim)
    rows = (torch.arange(h, device=device, dtype=torch.float32)[:, None] * freq)[:, None].expand(h, w, -1)
    cols = (torch.arange(w, device=device, dtype=torch.float32)[:, None] * freq)[None].expand(h, w, -1)
    angle = rearrange(torch.cat([rows, cols, rows, cols], dim=-1), "h w p -> (h w) p")
    angle = F.pad(angle, (0, 0, num_prefix, 0))
    return angle.cos(), angle.sin()


def apply_rope(x, cos, sin):
    """Rotate the first cos.shape[-1] channels of x (..., N, P) by the tables' angles; the other channels pass through.

    rotate(x) = x * cos + rotate_half(x) * sin, rotate_half([a, b]) = [-b, a].
    """
    dim = cos.shape[-1]
    if dim > x.shape[-1] or cos.shape[-2] != x.shape[-2]:
        raise ValueError(f"rotary tables {tuple(cos.shape)} do not fit x {tuple(x.shape)}: (N, dim) with dim <= {x.shape[-1]} is needed")
    turn, rest = x[..., :dim], x[..., dim:]
    a, b = turn.chunk(2, dim=-1)
    turn = turn * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)
    return torch.cat([turn, rest], dim=-1)
