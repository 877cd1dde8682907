"""Backward warping: every pixel of the result says where in the picture it wants to be read from.

    out(p) = x(p + flow(p))

That is the opposite of "pixels move by the flow". So to bring frame t-1 onto frame t one needs the
flow *from t to t-1*: where is what I see here, over there? The flow t-1 -> t would be right only
where motion is the same everywhere, with its sign turned.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .checks import check_float

MODES, PADDINGS = ("bilinear", "nearest"), ("border", "zeros")


def warp(x: Tensor, flow: Tensor, mode: str = "bilinear", padding: str = "border") -> Tensor:
    """x sampled at pixel + flow: (B, C, h, w) in x's dtype.

    Args:
        x: (B, C, h, w).
        flow: (B, 2, h, w) in pixels, channel 0 to the right (x), channel 1 down (y).
        mode: "bilinear" or "nearest" (x's values unchanged; exact halves go to the even neighbour,
            `grid_sample`'s rule, whose own rounding errors may break such ties otherwise). NaN
            reads column or row 0 in "nearest".
        padding: outside of x, "border" repeats its edge and "zeros" is 0 (bilinear: fading over
            one pixel).

    Pixel centres are integers and corners are pixel centres, `grid_sample`'s align_corners=True;
    pictures one pixel wide work too. Positions are computed in float32 at least, as bfloat16 cannot
    tell pixel 256 from 257. Raises ValueError for shapes that do not fit, for unknown modes and
    paddings, for flow that is no floating tensor, and in "bilinear" for x that is none.
    """
    _check(x, flow, mode, padding)
    height, width = x.shape[2:]
    exact = torch.promote_types(flow.dtype, torch.float32)
    if x.is_floating_point():
        exact = torch.promote_types(exact, x.dtype)
    col = torch.arange(width, device=flow.device, dtype=exact) + flow[:, 0]           # b h w
    row = torch.arange(height, device=flow.device, dtype=exact)[:, None] + flow[:, 1]  # b h w
    if mode == "nearest":
        return _nearest(x, row, col, padding)
    # Pixel p is at (2 p + 1) / size - 1 of align_corners=False: the same place as
    # (2 p) / (size - 1) - 1 of True, and defined for size 1.
    grid = torch.stack([(2 * col + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)  # b h w 2
    out = F.grid_sample(x.to(exact), grid, mode=mode, padding_mode=padding, align_corners=False)
    return out.to(x.dtype)


def _check(x: Tensor, flow: Tensor, mode: str, padding: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: needs one of {', '.join(MODES)}")
    if padding not in PADDINGS:
        raise ValueError(f"padding={padding!r}: needs one of {', '.join(PADDINGS)}")
    check_float(flow, "flow")
    if mode == "bilinear" or not isinstance(x, Tensor):           # "nearest" may read labels
        check_float(x, "x")
    fits = x.dim() == 4 and flow.shape == (x.shape[0], 2, *x.shape[2:])
    if not fits:
        raise ValueError(
            f"flow has shape {tuple(flow.shape)} and x {tuple(x.shape)}: "
            f"needs flow (B, 2, h, w) for x (B, C, h, w)"
        )


def _nearest(x: Tensor, row: Tensor, col: Tensor, padding: str) -> Tensor:
    """x (B, C, h, w) read at the pixels nearest to (row, col), both (B, h, w)."""
    height, width = x.shape[2:]
    row, col = row.round().nan_to_num(), col.round().nan_to_num()   # NaN must be no wild index
    index = row.clamp(0, height - 1).long() * width + col.clamp(0, width - 1).long()
    index = rearrange(index, "b h w -> b 1 (h w)").expand(-1, x.shape[1], -1)
    out = rearrange(x, "b c h w -> b c (h w)").gather(2, index)
    out = rearrange(out, "b c (h w) -> b c h w", h=height)
    if padding == "zeros":
        inside = (col >= 0) & (col <= width - 1) & (row >= 0) & (row <= height - 1)
        out = out * inside[:, None]
    return out
