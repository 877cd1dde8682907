"""A hierarchical backbone for dense prediction: the Swin Transformer (Liu et al., ICCV 2021, arXiv
2103.14030), shared by the papers of this folder.

Attention runs inside windows of M x M tokens; every second block shifts the windows by M/2, so that
neighbours meet; between stages 2 x 2 tokens become one of twice the channels. A picture gives maps
at 1/4, 1/8, 1/16 and 1/32 with C, 2C, 4C and 8C channels.

State-dict names are the official ones (microsoft/Swin-Transformer and its segmentation variant):
official checkpoints load after `convert_official`. As there, a map that is no multiple of the
window is padded with zeros after the norm, and those take part. Different: windows are not shifted
along a side that fits into one window (with torchvision), and tokens that the shift brought
together are kept apart exactly (there: -100 on the logits).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import (
    DropPath,
    Mlp,
    PatchEmbed,
    attend,
    check_heads,
    check_int,
    check_ints,
    check_number,
    pad_to_multiple,
    relative_index,
    unwrap,
    window_merge,
    window_partition,
)
from ..nn.checks import check_axes, check_channels

MAP = "(B, h, w, C)"


class WindowAttention(nn.Module):
    """Self-attention inside windows with a learned bias for each offset and head.

    Args:
        dim: C.
        num_heads: must divide C.
        window_size: M.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int = 7) -> None:
        super().__init__()
        dim = check_heads(dim, num_heads) * int(num_heads)
        self.num_heads = int(num_heads)
        self.window_size = check_int(window_size, "window_size", 1)
        table = torch.empty((2 * self.window_size - 1) ** 2, self.num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """x: (B, windows, M*M, C) -> the same; allowed: (windows, M*M, M*M), True = attend."""
        check_axes(x, "x", "(B, windows, M*M, C)")
        check_channels(x, self.qkv.in_features)
        batch, windows = x.shape[:2]
        split = "b g n (three h p) -> three (b g) h n p"
        q, k, v = rearrange(self.qkv(x), split, three=3, h=self.num_heads)
        table = self.relative_position_bias_table
        bias = table[relative_index(self.window_size, table.device)]             # q k h
        bias = rearrange(bias, "q k h -> 1 h q k")
        if allowed is not None:
            bias = bias.masked_fill(~allowed[:, None], float("-inf"))            # g h q k
            bias = bias[None].expand(batch, -1, -1, -1, -1).flatten(0, 1)        # (b g) h q k
        out = attend(q, k, v, bias)
        return self.proj(rearrange(out, "(b g) h n p -> b g n (h p)", g=windows))


def shift_mask(
    grid: tuple[int, int], window_size: int, shift: tuple[int, int],
    device: torch.device | str | None = None,
) -> Tensor:
    """(windows, M*M, M*M) bool: which tokens of a rolled map were neighbours before it was rolled.

    Args:
        grid: (h, w), multiples of M.
        window_size: M.
        shift: rows and columns that the map was rolled by, 0 ... M - 1.
        device: where the mask is made.
    """
    window_size = check_int(window_size, "window_size", 1)
    region = []
    grid, shift = check_ints(grid, "grid", 1, length=2), check_ints(shift, "shift", 0, length=2)
    for side, by in zip(grid, shift, strict=True):
        at = torch.arange(side, device=device)
        region.append((at >= side - window_size).long() + (at >= side - by).long())
    part = 3 * region[0][:, None] + region[1]                                    # h w
    part = window_partition(part[None, :, :, None], window_size)[0, :, :, 0]     # windows n
    return part[:, :, None] == part[:, None, :]


class SwinBlock(nn.Module):
    """x = x + W-MSA(LN(x)); x = x + MLP(LN(x)) on a map (B, h, w, C).

    Args:
        dim: C.
        num_heads: must divide C.
        window_size: M.
        shift: tokens that the windows are shifted by.
        mlp_ratio: hidden width of the MLP / C.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift: int = 0,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        dim = check_int(dim, "dim", 1)
        self.shift = check_int(shift, "shift", 0, check_int(window_size, "window_size", 1) - 1)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * check_number(mlp_ratio, "mlp_ratio", 0, 1e4)))
        self.drop_path = DropPath(drop_path)

    def attend_in_windows(self, x: Tensor) -> Tensor:
        """Pad, roll, cut into windows, attend, and back: (B, h, w, C) -> the same."""
        height, width = x.shape[1:3]
        size = self.attn.window_size
        x, _ = pad_to_multiple(x, size)
        padded = (x.shape[1], x.shape[2])
        shift = (self.shift * (padded[0] > size), self.shift * (padded[1] > size))
        allowed = None
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
            allowed = shift_mask(padded, size, shift, x.device)
        y = self.attn(window_partition(x, size), allowed)
        y = window_merge(y, size, *padded)
        if any(shift):
            y = y.roll(shift, (1, 2))
        return y[:, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        check_axes(x, "x", MAP)
        check_channels(x, self.norm1.normalized_shape[0])
        x = x + self.drop_path(self.attend_in_windows(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """(B, h, w, C) -> (B, ceil(h/2), ceil(w/2), 2C): squares of 2 x 2 tokens, LN, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        dim = check_int(dim, "dim", 1)
        self.dim = dim
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check_axes(x, "x", MAP)
        check_channels(x, self.dim)
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = rearrange(x, "b (h p) (w q) c -> b h w (q p c)", p=2, q=2)
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """Blocks in turn without and with shifted windows, (B, h, w, C) -> the same.

    `downsample` (None in the last stage) leads to the next stage and is called by the owner, who
    may put something in between.

    Args:
        dim: C.
        num_heads: must divide C.
        window_size: M.
        drop_path: rates of stochastic depth, one for each block.
        mlp_ratio: hidden width of the MLPs / C.
        last: whether no stage follows.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        drop_path: Sequence[float],
        mlp_ratio: float = 4.0,
        last: bool = False,
    ) -> None:
        super().__init__()
        half = check_int(window_size, "window_size", 1) // 2
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window_size, half * (i % 2), mlp_ratio, rate)
            for i, rate in enumerate(drop_path)
        )
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbedding(PatchEmbed):
    """Patches of 4 x 4 pixels with a LayerNorm: images (B, 3, H, W) -> map (B, H/4, W/4, C)."""

    def __init__(self, patch_size: int = 4, in_chans: int = 3, embed_dim: int = 96) -> None:
        """Args:
        patch_size: P.
        in_chans: channels of the images.
        embed_dim: C.
        """
        super().__init__(patch_size, in_chans, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(super().forward(images))
        return rearrange(x, "b (h w) c -> b h w c", h=images.shape[2] // self.patch_size)


class Swin(nn.Module):
    """Images (B, in_chans, H, W) -> maps (B, C 2^s, H/4/2^s, W/4/2^s), one a stage, normed.

    H and W must be multiples of the patch; later maps are rounded up. The default is Swin-T.

    Args:
        embed_dim: C of the first stage.
        depths: blocks of each stage.
        num_heads: of each stage.
        window_size: M.
        mlp_ratio: hidden width of the MLPs / C.
        drop_path: largest rate of stochastic depth, reached linearly by the last block.
        patch_size: P.
        in_chans: channels of the images.
        outputs: stages whose maps are returned, the others have no norm; None: all.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        patch_size: int = 4,
        in_chans: int = 3,
        outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        embed_dim, depths = check_int(embed_dim, "embed_dim", 1), check_ints(depths, "depths", 1)
        num_heads = check_ints(num_heads, "num_heads", 1, length=len(depths))
        outputs = range(len(depths)) if outputs is None else outputs
        self.outputs = check_ints(outputs, "outputs", 0)
        if not depths or any(s >= len(depths) for s in self.outputs):
            raise ValueError(f"outputs={self.outputs} but there are {len(depths)} stages (depths)")
        self.patch_embed = PatchEmbedding(patch_size, in_chans, embed_dim)
        self.dims = tuple(embed_dim * 2**s for s in range(len(depths)))
        total = max(sum(depths) - 1, 1)
        highest = check_number(drop_path, "drop_path", 0)
        rates = [highest * i / total for i in range(sum(depths))]
        self.layers = nn.ModuleList()
        for s, dim in enumerate(self.dims):
            own = rates[sum(depths[:s]):sum(depths[:s + 1])]
            last = s == len(depths) - 1
            self.layers.append(SwinStage(dim, num_heads[s], window_size, own, mlp_ratio, last))
        for s in self.outputs:
            self.add_module(f"norm{s}", nn.LayerNorm(self.dims[s]))

    def normed(self, x: Tensor, stage: int) -> Tensor:
        """The map of a stage as it is returned: (B, h, w, C) -> LN -> (B, C, h, w)."""
        return rearrange(self.get_submodule(f"norm{stage}")(x), "b h w c -> b c h w")

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.patch_embed(images), []
        for s, stage in enumerate(self.layers):
            x = stage(x)
            if s in self.outputs:
                maps.append(self.normed(x, s))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps


def convert_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an official checkpoint under the names of `Swin`.

    Index tables and masks are made on the fly here, and the classifier goes. A classification
    checkpoint has one norm, after the last stage: it becomes that of the last output; those of the
    others are missing (`load_weights(model, state, strict=False)`). ValueError for what holds no
    tensors.
    """
    state = {name.removeprefix("backbone."): t for name, t in unwrap(state).items()}
    stages = [int(name.split(".")[1]) for name in state if name.startswith("layers.")]
    made = ("relative_position_index", "attn_mask")
    kept = {}
    for name, tensor in state.items():
        if name.endswith(made) or name.startswith("head."):
            continue
        if name.startswith("norm.") and stages:
            name = name.replace("norm.", f"norm{max(stages)}.")
        kept[name] = tensor
    return kept
