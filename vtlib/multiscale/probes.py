"""Small tasks that a model solves only with what a multi-scale method adds: news from the other
branch, and reach.

    images, shape, pattern = stripes(64, generator)      CrossViT: pictures whose pattern `blur`
                                                         hides from one branch
    model = two_branches("cross")                        a small CrossViT for them
    tokens, first, colour = corners(64, generator)       CrossFormer: the answer stands in the
                                                         opposite corner of the map
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..data._random import below, unit
from ..nn import (
    check_device,
    check_dtype,
    check_images,
    check_int,
    check_multiple,
    check_tokens,
)
from ..nn.checks import check_flag, check_index, check_list
from .crossformer import CrossFormerBlock
from .crossvit import CrossViT


def stripes(batch, generator, device=None):
    """A disc, square or triangle filled with horizontal, vertical or diagonal stripes.

    Drawn anew at each call.

    Args:
        batch: B.
        generator: a torch.Generator of the CPU.
        device: where the result goes; None: the CPU.

    Returns images (B, 1, 32, 32) of about [0, 1] with noise, shape (B,) and pattern (B,), both 0, 1
    or 2.
    """
    batch, device = check_int(batch, "batch", 1), check_device(device)
    shape, pattern = below(3, (2, batch), generator)
    x = torch.arange(32, device="cpu", dtype=torch.float32)
    y = x[:, None]
    cy, cx = 13 + 6 * unit((2, batch, 1, 1), generator)
    r = 9 + 3 * unit((batch, 1, 1), generator)
    dy, dx = y - cy, x - cx                                                            # b h w
    disc = dy**2 + dx**2 < r**2
    square = torch.maximum(dy.abs(), dx.abs()) < 0.8 * r
    triangle = (dy < 0.8 * r) & (dy > 2 * dx.abs() - r)
    inside = torch.stack([disc, square, triangle])                                     # 3 b h w
    waves = torch.stack([(t % 4 < 2).float() for t in (y + 0 * x, 0 * y + x, y + x)])
    mine = inside[shape, torch.arange(batch, device="cpu")]
    images = mine * (0.2 + 0.6 * waves[pattern])
    noise = torch.randn(batch, 32, 32, generator=generator, device="cpu", dtype=torch.float32)
    images = images + 0.05 * noise
    return tuple(t.to(device) for t in (images[:, None], shape, pattern))


def blur(images, side=4):
    """Each square of `side` pixels becomes its mean, at the old size.

    Stripes of that period are gone, shapes remain.
    """
    check_images(images, None)
    check_multiple(images.shape[-2:], check_int(side, "side", 1))
    return F.interpolate(F.avg_pool2d(images, side), scale_factor=side, mode="nearest")


def two_branches(fusion, fan_in_projs=True):
    """A CrossViT for `stripes`, images (B, 1, 32, 32) -> logits (B, 9), 3 * shape + pattern.

    Patches of 4 and 8 pixels, 24 and 32 channels, two encoders with one block a branch. fusion,
    fan_in_projs: as `CrossViT` takes them.
    """
    return CrossViT(
        img_size=(32, 32),
        patch_size=(4, 8),
        in_chans=1,
        num_classes=9,
        embed_dim=(24, 32),
        depth=((1, 1), (1, 1)),
        num_heads=(2, 2),
        mlp_ratio=(2, 2),
        fusion=fusion,
        fan_in_projs=fan_in_projs,
    )


def corners(batch, generator, side=9, colours=4, device=None):
    """Empty maps with a coloured marker in two opposite corners.

    What is asked at one is the colour of the other.

    Args:
        batch: B.
        generator: a torch.Generator of the CPU.
        side: of the map.
        colours: how many there are.
        device: where the result goes; None: the CPU.

    Returns tokens (B, side * side, colours), one-hot and zero where nothing stands, first (B,): the
    index of the token that is asked, and colour (B,): the answer.
    """
    batch, side = check_int(batch, "batch", 1), check_int(side, "side", 2)
    colours, device = check_int(colours, "colours", 1), check_device(device)
    last = side * side - 1
    places = torch.tensor([0, side - 1, last - side + 1, last], device="cpu")
    first = places[below(4, (batch,), generator)]
    colour = below(colours, (batch, 2), generator)
    tokens = torch.zeros(batch, last + 1, colours, device="cpu", dtype=torch.float32)
    i = torch.arange(batch, device="cpu")
    tokens[i, first, colour[:, 0]] = 1
    tokens[i, last - first, colour[:, 1]] = 1
    return tuple(t.to(device) for t in (tokens, first, colour[:, 1]))


class Reader(nn.Module):
    """Two or more CrossFormer blocks that solve `corners`.

    tokens (B, side * side, colours), first (B,) -> logits (B, colours).

    Args:
        kinds: "sda" or "lda" for each block.
        group_size: G.
        interval: of the blocks of kind "lda".
        side: of the map.
        colours: how many there are.
        dim: channels inside.
        zero_bias: all biases but those of the position bias start at 0, so that an empty token
            starts as exactly 0 and sends nothing; with PyTorch's start the task is much harder to
            learn.
    """

    def __init__(
        self, kinds, group_size, interval=3, side=9, colours=4, dim=32, zero_bias=True
    ):
        super().__init__()
        self.side = check_int(side, "side", 2)
        colours, dim = check_int(colours, "colours", 1), check_int(dim, "dim", 1)
        zero_bias = check_flag(zero_bias, "zero_bias")
        kinds = check_list(kinds, "kinds", "a list of 'sda' and 'lda'")
        self.embed = nn.Linear(colours, dim, bias=False)
        self.blocks = nn.ModuleList(
            CrossFormerBlock(dim, 2, group_size, interval, kind, mlp_ratio=2) for kind in kinds
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, colours))
        for name, p in self.blocks.named_parameters():
            if zero_bias and name.endswith("bias") and "pos" not in name:
                nn.init.zeros_(p)

    def forward(self, tokens, first):
        check_tokens(tokens, self.embed.in_features)
        check_dtype(tokens, self.embed.weight, "tokens")
        check_index(first, "first", "(B,)", (tokens.shape[0],), tokens.shape[1])
        x = self.embed(tokens)                                                         # b n d
        for block in self.blocks:
            x = block(x, (self.side, self.side))
        return self.head(x[torch.arange(len(x), device=x.device), first])              # b colours
