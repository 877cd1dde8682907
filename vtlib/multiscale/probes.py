"""Small tasks that a model solves only with what a multi-scale method adds: news from the other branch, and reach.

    images, shape, pattern = stripes(64, generator)      CrossViT: pictures whose pattern `blur` hides from one branch
    tokens, first, colour = corners(64, generator)       CrossFormer: the answer stands in the opposite corner of the map
"""

import torch
import torch.nn.functional as F
from torch import nn

from .crossformer import CrossFormerBlock


def stripes(batch, generator, device=None):
    """A disc, square or triangle filled with horizontal, vertical or diagonal stripes, drawn anew at each call.

    generator: a torch.Generator of the CPU. Returns images (B, 1, 32, 32) of about [0, 1] with noise, shape (B,) and pattern (B,),
    both 0, 1 or 2.
    """
    shape, pattern = torch.randint(3, (2, batch), generator=generator)
    y, x = torch.arange(32.0)[:, None], torch.arange(32.0)[None, :]
    cy, cx = 13 + 6 * torch.rand(2, batch, 1, 1, generator=generator)
    r = 9 + 3 * torch.rand(batch, 1, 1, generator=generator)
    dy, dx = y - cy, x - cx                                                            # b h w
    disc, square = dy**2 + dx**2 < r**2, torch.maximum(dy.abs(), dx.abs()) < 0.8 * r
    inside = torch.stack([disc, square, (dy < 0.8 * r) & (dy > 2 * dx.abs() - r)])     # 3 b h w
    waves = torch.stack([(t % 4 < 2).float() for t in (y + 0 * x, 0 * y + x, y + x)])
    images = inside[shape, torch.arange(batch)] * (0.2 + 0.6 * waves[pattern])
    images = images + 0.05 * torch.randn(batch, 32, 32, generator=generator)
    return images[:, None].to(device), shape.to(device), pattern.to(device)


def blur(images, side=4):
    """Each square of `side` pixels becomes its mean, at the old size: stripes of that period are gone, shapes remain."""
    return F.interpolate(F.avg_pool2d(images, side), scale_factor=side, mode="nearest")


def corners(batch, generator, side=9, colours=4, device=None):
    """Empty maps with a coloured marker in two opposite corners; what is asked at one is the colour of the other.

    Returns tokens (B, side * side, colours), one-hot and zero where nothing stands, first (B,): the index of the token that is
    asked, and colour (B,): the answer. generator: a torch.Generator of the CPU.
    """
    last = side * side - 1
    first = torch.tensor([0, side - 1, last - side + 1, last])[torch.randint(4, (batch,), generator=generator)]
    colour = torch.randint(colours, (batch, 2), generator=generator)
    tokens, i = torch.zeros(batch, last + 1, colours), torch.arange(batch)
    tokens[i, first, colour[:, 0]], tokens[i, last - first, colour[:, 1]] = 1, 1
    return tokens.to(device), first.to(device), colour[:, 1].to(device)


class Reader(nn.Module):
    """Two or more CrossFormer blocks that solve `corners`: tokens (B, side * side, colours), first (B,) -> logits (B, colours).

    kinds: "sda" or "lda" for each block. zero_bias: all biases but those of the position bias start at 0, so that an empty token
    starts as exactly 0 and sends nothing; with PyTorch's start the task is much harder to learn.
    """

    def __init__(self, kinds, group_size, interval=3, side=9, colours=4, dim=32, zero_bias=True):
        super().__init__()
        self.side = side
        self.embed = nn.Linear(colours, dim, bias=False)
        self.blocks = nn.ModuleList(CrossFormerBlock(dim, 2, group_size, interval, kind, mlp_ratio=2) for kind in kinds)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, colours))
        for name, p in self.blocks.named_parameters():
            if zero_bias and name.endswith("bias") and "pos" not in name:
                nn.init.zeros_(p)

    def forward(self, tokens, first):
        x = self.embed(tokens)                                                         # b n d
        for block in self.blocks:
            x = block(x, (self.side, self.side))
        return self.head(x[torch.arange(len(x), device=x.device), first])              # b colours
