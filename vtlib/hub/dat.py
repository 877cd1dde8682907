"""DAT - Dual Aggregation Transformer for Image Super-Resolution (Chen, Zhang, Gu, Kong, Yang, Yu,
ICCV 2023, arXiv 2308.03364), in its light size, so that its trained weights can run.

Two kinds of token take turns. In even blocks a pixel is a token, and attends inside a window; half
of the channels has flat windows, the other half upright ones, and every second of these blocks
moves them by half a window. In odd blocks a channel is a token: its pixels, at length one, are what
queries and keys compare. Beside each attention stands a depthwise convolution of the values, and
each of the two gates the other:

    x + proj(attention * s(a) + convolution * s(b))         s: sigmoid
    pixels attend       a: one number a channel, from the convolution; b: a pixel, from attention
    channels attend     a: one number a pixel, from the convolution; b: a channel, from attention

State-dict names are the official ones (zhengchen1999/DAT). Left out: the larger sizes (several
groups, other heads), dropout, tables and masks as buffers. The light size has a peculiarity, kept
as it is: its position bias is made by an MLP of width 1, and a LayerNorm of one number forgets it.
So every offset gets the same bias, and the softmax takes no notice.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import attend, check_dtype, check_heads, check_images, check_int, check_ints
from ..nn.windows import pad_to_multiple

MEAN = (0.4488, 0.4371, 0.4040)
"""Of the pictures it was trained on (DIV2K), red, green, blue."""
APART = -100.0
"""Added to the logits of tokens that only the shift made neighbours."""


def _first(x: Tensor) -> Tensor:
    """A token map (B, H, W, C) as a feature map (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def _last(x: Tensor) -> Tensor:
    """A feature map (B, C, H, W) as a token map (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


# ------------------------------------------------------------------------------- what both have
class Interaction(nn.Module):
    """Attention and convolution side by side, each gating the other: the paper's AIM.

    Args:
        dim: C.
        num_heads: must divide C.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        dim = check_heads(dim, num_heads) * int(num_heads)
        self.num_heads, inner = int(num_heads), (dim // 8, dim // 16)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.dwconv = nn.Sequential(depthwise, nn.BatchNorm2d(dim), nn.GELU())
        self.channel_interaction = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dim, inner[0], 1),
            nn.BatchNorm2d(inner[0]),
            nn.GELU(),
            nn.Conv2d(inner[0], dim, 1),
        )
        self.spatial_interaction = nn.Sequential(
            nn.Conv2d(dim, inner[1], 1),
            nn.BatchNorm2d(inner[1]),
            nn.GELU(),
            nn.Conv2d(inner[1], 1, 1),
        )

    def attention(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values (B, H, W, 3C) -> (B, H, W, C)."""
        raise NotImplementedError

    def gates(self, attended: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """What multiplies attention and convolution, (B, C, H, W) both, before the sigmoid."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)                                                        # b h w 3c
        attended = _first(self.attention(qkv))
        near = self.dwconv(_first(qkv.chunk(3, dim=-1)[2]))                      # b c h w
        for_attended, for_near = self.gates(attended, near)
        mixed = attended * for_attended.sigmoid() + near * for_near.sigmoid()
        return self.proj(_last(mixed))


# --------------------------------------------------------------------------- pixels as tokens
class DynamicPosBias(nn.Module):
    """An MLP from an offset (dy, dx) inside a window to one bias a head, as CrossFormer has it.

    Args:
        width: of its layers.
        num_heads: biases that come out.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.pos_proj = nn.Linear(2, width)
        for k, out in enumerate((width, width, num_heads), start=1):
            layer = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out))
            self.add_module(f"pos{k}", layer)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """(heads, N, N), queries first, for windows of N = rows * columns tokens."""
        like = self.pos_proj.weight
        rows, columns = (torch.arange(side, device=like.device) for side in size)
        yx = torch.cartesian_prod(rows, columns)                                 # n 2
        offsets = yx[:, None] - yx[None]                                         # n n 2
        # each offset once through the MLP: from 1 - side to side - 1, dy outer
        steps = (torch.arange(1 - side, side, device=like.device) for side in size)
        table = self.pos_proj(torch.cartesian_prod(*steps).to(like.dtype))
        table = self.pos3(self.pos2(self.pos1(table)))
        place = (offsets[..., 0] + size[0] - 1) * (2 * size[1] - 1) + offsets[..., 1] + size[1] - 1
        return rearrange(table[place], "q k h -> h q k")


class WindowAttention(nn.Module):
    """Attention inside windows of one shape, for half of the channels. Official name: attns.

    Args:
        dim: its channels.
        num_heads: must divide them.
        size: rows and columns of a window.
        shift: how far the windows are moved, rows and columns.
    """

    def __init__(self, dim: int, num_heads: int, size: tuple[int, int], shift: tuple[int, int]):
        super().__init__()
        self.num_heads, self.size, self.shift = num_heads, size, shift
        self.pos = DynamicPosBias(dim // 4 // 4, num_heads)

    def windows(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, windows, heads, N, P)."""
        cut = "b (h r) (w c) (n p) -> b (h w) n (r c) p"
        return rearrange(x, cut, r=self.size[0], c=self.size[1], n=self.num_heads)

    def regions(self, height: int, width: int, device: torch.device) -> Tensor:
        """(windows, 1, N, N): 0, and `APART` where the shift has joined two ends of the picture.

        Args:
            height: of the map, in tokens.
            width: of the map.
            device: where the result is.
        """
        ids = []
        for length, side, shift in zip((height, width), self.size, self.shift, strict=True):
            place = torch.arange(length, device=device)
            ids.append((place >= length - side).long() + (place >= length - shift))
        region = 3 * ids[0][:, None] + ids[1]                                    # h w
        cut = "(h r) (w c) -> (h w) (r c)"
        region = rearrange(region, cut, r=self.size[0], c=self.size[1])
        return APART * (region[:, None, :, None] != region[:, None, None])

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, W, C) -> the same; the windows fill the map.

        Args:
            q: queries.
            k: keys.
            v: values.
        """
        height, width = q.shape[1:3]
        down, right = self.shift
        bias = self.pos(self.size)                                               # heads n n
        if down:
            q, k, v = (t.roll((-down, -right), (1, 2)) for t in (q, k, v))
            bias = bias + self.regions(height, width, q.device)
        out = attend(*(self.windows(t) for t in (q, k, v)), bias=bias)
        join = "b (h w) n (r c) p -> b (h r) (w c) (n p)"
        out = rearrange(out, join, h=height // self.size[0], r=self.size[0])
        return out.roll((down, right), (1, 2)) if down else out


class SpatialAttention(Interaction):
    """Pixels attend in windows: flat ones for the first half of the channels, upright ones for the
    second. The map is filled up with zeros, as queries, keys and values, to whole windows.

    Args:
        dim: C, even.
        num_heads: of both halves together, even.
        window: rows and columns of the flat windows.
        shifted: whether the windows are moved by half their size.
    """

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int], shifted: bool):
        super().__init__(dim, num_heads)
        self.whole = max(window)
        sizes = (window, window[::-1])
        self.attns = nn.ModuleList(
            WindowAttention(
                dim // 2, num_heads // 2, size, (size[0] // 2, size[1] // 2) if shifted else (0, 0)
            )
            for size in sizes
        )

    def attention(self, qkv: Tensor) -> Tensor:
        height, width = qkv.shape[1:3]
        qkv, _ = pad_to_multiple(qkv, self.whole)
        halves = [t.chunk(2, dim=-1) for t in qkv.chunk(3, dim=-1)]              # q, k, v
        parts = zip(self.attns, *halves, strict=True)
        out = torch.cat([attn(q, k, v) for attn, q, k, v in parts], dim=-1)
        return out[:, :height, :width]

    def gates(self, attended: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        return self.channel_interaction(near), self.spatial_interaction(attended)


# ------------------------------------------------------------------------- channels as tokens
class ChannelAttention(Interaction):
    """Channels attend to those of their head: softmax(t cos(q, k)) v, a temperature t a head."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim, num_heads)
        self.temperature = nn.Parameter(torch.ones(self.num_heads, 1, 1))

    def attention(self, qkv: Tensor) -> Tensor:
        split = "b h w (three n p) -> three b n p (h w)"
        q, k, v = rearrange(qkv, split, three=3, n=self.num_heads)               # channels: tokens
        q, k = F.normalize(q, dim=-1) * self.temperature, F.normalize(k, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return rearrange(out, "b n p (h w) -> b h w (n p)", h=qkv.shape[1])

    def gates(self, attended: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        return self.spatial_interaction(near), self.channel_interaction(attended)


# -------------------------------------------------------------------------------- the network
class SpatialGate(nn.Module):
    """(B, H, W, 2C) -> (B, H, W, C): half of it, times the other half, normed and convolved."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = x.chunk(2, dim=-1)
        return kept * _last(self.conv(_first(self.norm(gate))))


class GatedMlp(nn.Module):
    """The feed-forward net (SGFN): fc2(gate(gelu(fc1(x))))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden // 2, dim)
        self.sg = SpatialGate(hidden // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.sg(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """x + attn(LN(x)), then x + ffn(LN(x)), on token maps (B, H, W, C).

    Args:
        dim: C.
        attn: an `Interaction`.
        hidden: channels inside the feed-forward net.
    """

    def __init__(self, dim: int, attn: nn.Module, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.ffn = attn, GatedMlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


def _three_convs(dim: int) -> nn.Sequential:
    """Three convolutions through a quarter of the channels, with leaky ReLUs between them."""
    narrow, bend = dim // 4, nn.LeakyReLU(0.2)
    first, last = nn.Conv2d(dim, narrow, 3, padding=1), nn.Conv2d(narrow, dim, 3, padding=1)
    return nn.Sequential(first, bend, nn.Conv2d(narrow, narrow, 1), bend, last)


class Group(nn.Module):
    """The blocks in a row, three convolutions, and x is added. In even blocks pixels attend.

    Args:
        dim: C.
        depth: number of blocks.
        num_heads: of each block.
        window: rows and columns of the flat windows.
        hidden: channels inside the feed-forward nets.
    """

    def __init__(
        self, dim: int, depth: int, num_heads: int, window: tuple[int, int], hidden: int
    ):
        super().__init__()
        self.blocks = nn.ModuleList()
        for k in range(depth):
            attn: Interaction
            if k % 2 == 0:
                attn = SpatialAttention(dim, num_heads, window, shifted=k % 4 == 2)
            else:
                attn = ChannelAttention(dim, num_heads)
            self.blocks.append(Block(dim, attn, hidden))
        self.conv = _three_convs(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(y)
        return x + _last(self.conv(_first(y)))


class DATLight(nn.Module):
    """Pictures (B, 3, h, w) in [0, 1], any size -> (B, 3, s h, s w), unclamped.

    The defaults are the official light size (553,290 parameters at x2; x3 561,405; x4 572,766).

    Args:
        scale: s, one of 2, 3, 4.
        embed_dim: C, at least 32: the position bias works in C / 32 channels.
        depth: blocks.
        num_heads: even, must divide C.
        window: rows and columns of the flat windows; the upright ones are turned.
        hidden: channels inside the feed-forward nets, even.
    """

    def __init__(
        self,
        scale: int,
        embed_dim: int = 60,
        depth: int = 18,
        num_heads: int = 6,
        window: tuple[int, int] = (8, 32),
        hidden: int = 120,
    ):
        super().__init__()
        scale, depth = check_int(scale, "scale", 2, 4), check_int(depth, "depth", 1)
        embed_dim, hidden = check_int(embed_dim, "embed_dim", 32), check_int(hidden, "hidden", 2)
        rows, columns = check_ints(window, "window", 2, length=2)
        check_heads(embed_dim, num_heads)
        if num_heads % 2 or hidden % 2:
            raise ValueError(
                f"num_heads={num_heads}, hidden={hidden}: needs even numbers, as half of the heads "
                f"has flat windows, and half of the hidden channels gates the other"
            )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, embed_dim, 3, padding=1)
        # the official net's first entry here turns maps into rows of tokens
        self.before_RG = nn.Sequential(nn.Identity(), nn.LayerNorm(embed_dim))
        group = Group(embed_dim, depth, num_heads, (rows, columns), hidden)
        self.layers = nn.ModuleList([group])
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = _three_convs(embed_dim)
        self.upsample = nn.Sequential(
            nn.Conv2d(embed_dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        check_dtype(images, self.conv_first.weight, "images")
        first = self.conv_first(images - self.mean)                              # b c h w
        x = self.before_RG(_last(first))
        for group in self.layers:
            x = group(x)
        x = self.conv_after_body(_first(self.norm(x)))
        return self.upsample(x + first) + self.mean


def dat_light_x2() -> DATLight:
    return DATLight(2)


def dat_light_x3() -> DATLight:
    return DATLight(3)


def dat_light_x4() -> DATLight:
    return DATLight(4)
