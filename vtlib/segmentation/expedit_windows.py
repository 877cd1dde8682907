"""Expedit inside of windows: every window of Swin or SAM is clustered for itself, and the blocks
behind run on smaller windows.

Swin (Mask2Former's, Swin-L): inside the long third stage 12 x 12 tokens a window become 8 x 8; its
later blocks use window 8, shift 4, and tables of relative positions resized bilinearly; the map is
rebuilt before the stage's patch merging (window 5, tau 0.01, k 10). SAM: `expedit_sam`.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..nn import window_merge, window_partition
from ..nn.checks import check_float, check_int
from .expedit import Expedit, Restore


def cluster_windows(features: Tensor, size: int, layers: Expedit) -> tuple[Tensor, Restore]:
    """Cluster every window for itself, and put the windows of centres together again.

    (B, H, W, C) -> map (B, H/size h, W/size h, C), and the function that takes such a map
    (B, ..., C') back to (B, H, W, C').

    Args:
        features: sides multiples of size.
        size: of a window, 12 in Swin-L, 14 in SAM.
        layers: with a square grid h x h of centres a window.
    """
    side, cols = layers.grid
    if side != cols:
        raise ValueError(f"layers has grid={layers.grid}: windows need a square one")
    batch, height, width = features.shape[:3]
    groups = window_partition(features, size)                               # b n gg c
    tokens, restore_windows = layers.reduce(
        rearrange(groups, "b n (g f) c -> (b n) g f c", g=size)
    )
    rows, cols = height // size * side, width // size * side
    small = window_merge(tokens.unflatten(0, (batch, -1)), side, rows, cols)

    def restore(refined: Tensor) -> Tensor:
        tokens = restore_windows(window_partition(refined, side).flatten(0, 1))
        return window_merge(tokens.unflatten(0, (batch, -1)), size, height, width)

    return small, restore


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """Swin's relative-position table for a smaller window, bilinear.

    ((2 w - 1)^2, heads) -> ((2 window - 1)^2, heads); rows in the order of
    `vtlib.nn.relative_offsets`.
    """
    check_float(table, "table")
    side = 2 * check_int(window, "window", 1) - 1
    old = round(table.shape[0] ** 0.5)
    if table.dim() != 2 or old**2 != table.shape[0] or old % 2 == 0:
        raise ValueError(f"table has shape {tuple(table.shape)} but needs ((2 w - 1)^2, heads)")
    if old == side:
        return table
    plane = rearrange(table, "(h w) p -> 1 p h w", h=old)
    plane = F.interpolate(plane, size=(side, side), mode="bilinear", align_corners=False)
    return rearrange(plane, "1 p h w -> (h w) p")
