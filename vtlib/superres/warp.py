"""Backward warping: every pixel of the result says where in the picture it wants to be read from.

    out(p) = x(p + flow(p))

That is the opposite of "pixels move by the flow". So to bring frame t-1 onto frame t one needs the flow *from t to t-1*: where is what I
see here, over there? The flow t-1 -> t would be right only where motion is the same everywhere, with its sign turned.
"""

import torch
import torch.nn.functional as F
from einops import rearrange

MODES, PADDINGS = ("bilinear", "nearest"), ("border", "zeros")


def warp(x, flow, mode="bilinear", padding="border"):
    """x sampled at pixel + flow.

    x (B, C, h, w); flow (B, 2, h, w) in pixels, channel 0 to the right (x), channel 1 down (y) -> (B, C, h, w) in x's dtype.
    mode: "bilinear" or "nearest" (x's values unchanged; exact halves go to the even neighbour, `grid_sample`'s rule, whose own
    rounding errors may break such ties otherwise). NaN reads column or row 0 in "nearest".
    padding: outside of x, "border" repeats its edge and "zeros" is 0 (bilinear: fading over one pixel).
    Pixel centres are integers and corners are pixel centres, `grid_sample`'s align_corners=True; pictures one pixel wide work too.
    Positions are computed in float32 at least, as bfloat16 cannot tell pixel 256 from 257.
    Raises ValueError for shapes that do not fit and for unknown modes and paddings.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: needs one of {', '.join(MODES)}")
    if padding not in PADDINGS:
        raise ValueError(f"padding={padding!r}: needs one of {', '.join(PADDINGS)}")
    if x.dim() != 4 or flow.dim() != 4 or flow.shape[1] != 2 or x.shape[0] != flow.shape[0] or x.shape[2:] != flow.shape[2:]:
        raise ValueError(f"flow has shape {tuple(flow.shape)} and x {tuple(x.shape)}: needs flow (B, 2, h, w) for x (B, C, h, w)")
    h, w = x.shape[2:]
    exact = torch.promote_types(torch.promote_types(flow.dtype, x.dtype) if x.is_floating_point() else flow.dtype, torch.float32)
    column = torch.arange(w, device=flow.device, dtype=exact) + flow[:, 0]                       # b h w
    row = torch.arange(h, device=flow.device, dtype=exact)[:, None] + flow[:, 1]                 # b h w
    if mode == "nearest":
        column, row = column.round().nan_to_num(), row.round().nan_to_num()     # unknown motion must not become a wild index
        index = row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long()
        index = rearrange(index, "b h w -> b 1 (h w)").expand(-1, x.shape[1], -1)
        out = rearrange(rearrange(x, "b c h w -> b c (h w)").gather(2, index), "b c (h w) -> b c h w", h=h)
        if padding == "zeros":
            inside = (column >= 0) & (column <= w - 1) & (row >= 0) & (row <= h - 1)
            out = out * inside[:, None]
        return out
    # pixel p is at (2 p + 1) / size - 1 of align_corners=False: the same place as (2 p) / (size - 1) - 1 of True, and defined for size 1
    grid = torch.stack([(2 * column + 1) / w - 1, (2 * row + 1) / h - 1], dim=-1)                # b h w 2
    return F.grid_sample(x.to(exact), grid, mode=mode, padding_mode=padding, align_corners=False).to(x.dtype)
