"""Expedit on Segment Anything: SAM's image encoder with an hourglass in it.

SAM's encoder (Kirillov et al., ICCV 2023, arXiv 2304.02643) is a ViT without class token on a map:
most blocks attend inside windows of 14 x 14, four of them over the whole map, all with decomposed
relative positions (Li et al., MViTv2). Before block `after` every window is clustered to
sqrt(num_clusters) a side and the windows are put together; windowed blocks then use the smaller
window, global blocks see the whole clustered map, and tables of relative positions are interpolated
to the new sides. Behind the last block every window is rebuilt for itself, before the neck.

    pad to windows, cluster_windows      SAMEncoder.forward, before block `after`
    rel(q, k) = q . (R_h[dy] + R_w[dx])  relative_bias
    crop to the map, neck                SAMEncoder.forward

State-dict names are SAM's; the hourglass adds none. Different from the release: pictures of another
size are accepted, the learned positions are resized (bicubic); `num_clusters=None` is plain SAM.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import (
    ChannelNorm,
    attend,
    check_dtype,
    check_flag,
    check_heads,
    check_images,
    check_int,
    check_ints,
    check_number,
    pad_to_multiple,
    resize_pos_embed,
    window_merge,
    window_partition,
)
from ..nn.checks import check_float, check_list
from .expedit import Expedit
from .expedit_windows import cluster_windows

Grid = tuple[int, int]


def relative_rows(table: Tensor, side: int) -> Tensor:
    """One row of a table for each pair of places along a side: (side, side, P), query first.

    table: (2 s - 1, P), row d + s - 1 for the distance d = query - key; interpolated linearly where
    s is another side.
    """
    check_float(table, "table")
    side = check_int(side, "side", 1)
    if len(table) != 2 * side - 1:
        rows = rearrange(table, "l p -> 1 p l")
        table = F.interpolate(rows, size=2 * side - 1, mode="linear", align_corners=False)
        table = rearrange(table, "1 p l -> l p")
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place + side - 1]


def relative_bias(q: Tensor, grid: Grid, table_h: Tensor, table_w: Tensor) -> Tensor:
    """q . R_h[row - row'] + q . R_w[col - col'], for logits: (B, heads, h w, h w).

    Args:
        q: (B, heads, h w, P), not scaled.
        grid: (h, w).
        table_h: (2 s - 1, P), see `relative_rows`.
        table_w: the same for columns.
    """
    height, width = grid
    q = rearrange(q, "b p (h w) c -> b p h w c", h=height)
    rows = torch.einsum("bphwc,hkc->bphwk", q, relative_rows(table_h, height).to(q.dtype))
    cols = torch.einsum("bphwc,wkc->bphwk", q, relative_rows(table_w, width).to(q.dtype))
    bias = rows[..., :, None] + cols[..., None, :]                          # b p h w k l
    return rearrange(bias, "b p h w k l -> b p (h w) (k l)")


class SAMAttention(nn.Module):
    """Attention on a map with decomposed relative positions.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        table: (h, w), the sides that the tables are made for.
    """

    def __init__(self, embed_dim: int, num_heads: int, table: Grid) -> None:
        super().__init__()
        head_dim = check_heads(embed_dim, num_heads)
        self.num_heads = int(num_heads)
        height, width = check_ints(table, "table", 1, length=2)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * height - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * width - 1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> the same."""
        grid = x.shape[1], x.shape[2]
        q, k, v = rearrange(
            self.qkv(x), "b h w (three p c) -> three b p (h w) c", three=3, p=self.num_heads
        )
        out = attend(q, k, v, relative_bias(q, grid, self.rel_pos_h, self.rel_pos_w))
        return self.proj(rearrange(out, "b p (h w) c -> b h w (p c)", h=grid[0]))


class SAMMlp(nn.Module):
    """lin2(GELU(lin1(x)))."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embed_dim, check_int(hidden_dim, "hidden_dim", 1))
        self.lin2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class SAMBlock(nn.Module):
    """Pre-norm block on a map; `window` is given with each call, for it changes on the way.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        mlp_ratio: hidden width of the MLP / D.
        table: (h, w), the sides that the tables of relative positions are made for.
        eps: of the LayerNorms.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float, table: Grid, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=eps)
        self.attn = SAMAttention(embed_dim, num_heads, table)
        self.norm2 = nn.LayerNorm(embed_dim, eps=eps)
        self.mlp = SAMMlp(embed_dim, int(embed_dim * mlp_ratio))

    def forward(self, x: Tensor, window: int = 0) -> Tensor:
        """x (B, h, w, D) -> the same; window=0: attention over the whole map."""
        y = self.norm1(x)
        y = self.attn(y) if window == 0 else self._inside(y, window)
        x = x + y
        return x + self.mlp(self.norm2(x))

    def _inside(self, x: Tensor, window: int) -> Tensor:
        """Attention inside of windows; zeros that fill the last ones up take part."""
        batch, height, width = x.shape[:3]
        x, _ = pad_to_multiple(x, window)
        rows, cols = x.shape[1:3]
        groups = window_partition(x, window)                                # b n gg d
        groups = rearrange(groups, "b n (g f) d -> (b n) g f d", g=window)
        groups = rearrange(self.attn(groups), "(b n) g f d -> b n (g f) d", b=batch)
        return window_merge(groups, window, rows, cols)[:, :height, :width]


class SAMEncoder(nn.Module):
    """SAM's image encoder: (B, 3, H, W), normalised, -> (B, out_chans, H/P, W/P). The defaults are
    ViT-B, plain, with 89,670,912 parameters.

    ValueError for arguments that do not fit each other, and for images that P does not divide.

    Args:
        img_size: side of the pictures that positions and tables are made for.
        patch_size: P.
        embed_dim: D.
        num_layers: how many blocks.
        num_heads: must divide D.
        mlp_ratio: hidden width of the MLPs / D.
        out_chans: of the neck.
        window_size: of the windowed blocks.
        global_blocks: the blocks (0-based) that attend over the whole map.
        num_clusters: centres a window, a square number (121, 100, 81 of 196); None: no hourglass.
        after: blocks on all tokens; the clustering is before block number `after`.
        cluster_window: side of the square of centres that a token may use.
        tau: inverse temperature of both layers.
        iterations: of the clustering.
        k: centres that a token is rebuilt from.
        normalise: "l2" (release) or "sum": the neck's norm makes them the same, eps aside.
        eps: of the blocks' LayerNorms.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        window_size: int = 14,
        global_blocks: tuple[int, ...] = (2, 5, 8, 11),
        num_clusters: int | None = None,
        after: int = 6,
        cluster_window: int = 5,
        tau: float = 0.1,
        iterations: int = 5,
        k: int = 20,
        normalise: str = "l2",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        num_layers = check_int(num_layers, "num_layers", 1)
        out_chans = check_int(out_chans, "out_chans", 1)
        mlp_ratio, eps = check_number(mlp_ratio, "mlp_ratio", 0, 1e4), check_number(eps, "eps", 0)
        self.window_size = check_int(window_size, "window_size", 1)
        self.global_blocks = _blocks(global_blocks, num_layers)
        self.patch_embed = _PatchMap(patch_size, embed_dim)
        side = check_int(img_size, "img_size", 1)
        self.grid = self.patch_embed.grid(side, side)
        self.after = check_int(after, "after", 0, num_layers - 1 if num_clusters else None)
        self.hourglass: Expedit | None = None
        if num_clusters is not None:
            centres = _square(num_clusters, self.window_size)
            self.hourglass = Expedit(
                (centres, centres), cluster_window, tau, iterations, k, normalise
            )
        self.pos_embed = nn.Parameter(torch.zeros(1, *self.grid, embed_dim))
        window = (self.window_size, self.window_size)
        self.blocks = nn.ModuleList(
            SAMBlock(
                embed_dim, num_heads, mlp_ratio,
                self.grid if i in self.global_blocks else window, eps,
            )
            for i in range(num_layers)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, 1, bias=False),
            ChannelNorm(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            ChannelNorm(out_chans),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """Patches with positions: (B, 3, H, W) -> (B, H/P, W/P, D)."""
        x = self.patch_embed(images)                                        # b h w d
        table = rearrange(self.pos_embed, "1 h w d -> 1 (h w) d")
        table = resize_pos_embed(table, self.grid, (x.shape[1], x.shape[2]), num_prefix=0)
        return x + rearrange(table, "1 (h w) d -> 1 h w d", h=x.shape[1])

    def forward(self, images: Tensor, return_steps: bool = False) -> Any:
        """The neck's map; with return_steps=True also a dict of the maps `before` (entering the
        clustering), `clustered`, `refined` and `reconstructed` (B, h, w, D)."""
        return_steps = check_flag(return_steps, "return_steps")
        x = self.embed(images)
        height, width = x.shape[1:3]
        window, restore, steps = self.window_size, None, {}
        for i, block in enumerate(self.blocks):
            if self.hourglass is not None and i == self.after:
                steps["before"] = x
                x, _ = pad_to_multiple(x, window)
                x, restore = cluster_windows(x, window, self.hourglass)
                window = self.hourglass.grid[0]
                steps["clustered"] = x
            x = block(x, 0 if i in self.global_blocks else window)
        if restore is not None:
            steps["refined"] = x
            x = restore(x)[:, :height, :width]
            steps["reconstructed"] = x
        out = self.neck(rearrange(x, "b h w d -> b d h w"))
        return (out, steps) if return_steps else out


class _PatchMap(nn.Module):
    """Patches as a map (B, h, w, D); state-dict name `proj`."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.proj = nn.Conv2d(3, embed_dim, self.patch_size, stride=self.patch_size)

    def grid(self, height: int, width: int) -> Grid:
        """(h, w) for a picture of this size."""
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image size {(height, width)} is not a multiple of patch_size={self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        check_dtype(images, self.proj.weight, "images")
        self.grid(images.shape[2], images.shape[3])
        return rearrange(self.proj(images), "b d h w -> b h w d")


def _blocks(global_blocks: Any, num_layers: int) -> tuple[int, ...]:
    numbers = check_list(global_blocks, "global_blocks", "numbers of blocks")
    return tuple(check_int(n, "global_blocks", 0, num_layers - 1) for n in numbers)


def _square(num_clusters: Any, window_size: int) -> int:
    """The side of a square of centres. ValueError when it is none, or wider than the window."""
    count = check_int(num_clusters, "num_clusters", 1, window_size**2)
    side = round(count**0.5)
    if side**2 != count:
        raise ValueError(f"num_clusters={count} is no square number: windows are square")
    return side


def sam_vit_l(**kwargs: Any) -> SAMEncoder:
    """SAM ViT-L: 308,278,272 parameters. Any argument of `SAMEncoder` can be given."""
    sizes = dict(embed_dim=1024, num_layers=24, num_heads=16, global_blocks=(5, 11, 17, 23))
    return SAMEncoder(**{**sizes, **kwargs})


def sam_vit_h(**kwargs: Any) -> SAMEncoder:
    """SAM ViT-H: 637,026,048 parameters. Any argument of `SAMEncoder` can be given."""
    sizes = dict(embed_dim=1280, num_layers=32, num_heads=16, global_blocks=(7, 15, 23, 31))
    return SAMEncoder(**{**sizes, **kwargs})
