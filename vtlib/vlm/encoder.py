"""The vision side of TinyVLM: a ViT with a convolutional stem, [CLS], optional registers, and every
signal that a pruner may ask for."""

import itertools

import torch
from einops import rearrange
from torch import nn

from ..nn import (
    Block,
    apply_rope,
    check_dtype,
    check_heads,
    check_images,
    check_int,
    check_multiple,
    places_2d,
    rope_2d,
)

SIGNALS = {"cls_row", "keys"}


class Encoder(nn.Module):
    """images (B, 3, H, W) -> hidden states of prefix + N tokens, the prefix [CLS] and registers.

    N = (H/8)(W/8): three convolutions of stride 2 make 8 x 8 patches; the last place_dim channels
    of a patch start as its absolute place (`places_2d`), own channels that later layers can read at
    no loss; queries and keys turn with 2-D rotary positions. Layers are those of the plain ViT.

    Args:
        embed_dim: D.
        num_layers: L.
        num_heads: must divide D.
        mlp_ratio: hidden width of the MLPs / D.
        num_registers: how many follow [CLS].
        place_dim: a multiple of 4 below D.
    """

    patch_size = 8

    def __init__(
        self,
        embed_dim=128,
        num_layers=5,
        num_heads=4,
        mlp_ratio=3.0,
        num_registers=0,
        place_dim=16,
    ):
        super().__init__()
        self.head_dim = check_heads(embed_dim, num_heads)
        embed_dim = check_int(embed_dim, "embed_dim", 4)
        num_layers = check_int(num_layers, "num_layers", 1)
        self.place_dim = check_int(place_dim, "place_dim")
        if not 0 < self.place_dim < embed_dim:
            raise ValueError(
                f"place_dim={place_dim} must lie between 0 and embed_dim={embed_dim}"
            )
        self.num_prefix = 1 + check_int(num_registers, "num_registers", 0)
        self.embed_dim, self.num_layers = embed_dim, num_layers
        self.stem = _stem(3, embed_dim // 4, embed_dim // 2, embed_dim - self.place_dim)
        self.prefix = nn.Parameter(torch.randn(1, self.num_prefix, embed_dim) * 0.02)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

    def grid(self, height, width):
        """(h, w): patches per side. ValueError for sizes that are no multiple of 8."""
        check_multiple((height, width), self.patch_size)
        return height // self.patch_size, width // self.patch_size

    def embed(self, images):
        """images -> (tokens (B, prefix + N, D), rotary tables, grid)."""
        check_images(images)
        check_dtype(images, self.stem[0].weight, "images")
        grid = self.grid(*images.shape[-2:])
        x = rearrange(self.stem(images * 4 - 2), "b d h w -> b (h w) d")
        place = places_2d(grid, self.place_dim, device=x.device).to(x.dtype)
        x = torch.cat([x, place.expand(x.shape[0], -1, -1)], dim=-1)             # b n d
        prefix = self.prefix.expand(x.shape[0], -1, -1).to(x.dtype)
        x = torch.cat([prefix, x], dim=1)                                        # b prefix+n d
        rope = rope_2d(grid, self.head_dim, num_prefix=self.num_prefix, device=x.device)
        return x, rope, grid

    def queries_and_keys(self, layer, x):
        """q and k, not rotated, of block number `layer` for its input `x`.

        Each (B, heads, prefix + N, head_dim).
        """
        block = self.blocks[layer]
        qkv = block.attn.qkv(block.norm1(x))
        heads = block.attn.num_heads
        q, k, _ = rearrange(qkv, "b n (three h p) -> three b h n p", three=3, h=heads)
        return q, k

    def signals(self, layer, x, rope, need):
        """What pruners read of one block: a dict of what `need` asks for, see `forward`.

        Args:
            layer: number of the block.
            x: its input.
            rope: tables to rotate with.
            need: of "cls_row" and "keys".
        """
        out, (q, k) = {}, self.queries_and_keys(layer, x)
        if "keys" in need:
            out["keys"] = k.mean(dim=1)                                          # b prefix+n p
        if "cls_row" in need:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
            row = (q[:, :, :1] * self.head_dim**-0.5) @ k.transpose(-2, -1)      # b h 1 prefix+n
            out["cls_row"] = row.softmax(dim=-1)[:, :, 0, self.num_prefix :]
        return out

    def forward(self, images, select=-2, need=(), attention=(), hidden=()):
        """Returns a dict: `selected` and `last` (B, prefix + N, D), `grid`, and what was asked for.

        Nothing that is not asked for is computed or kept.

        Args:
            images: (B, 3, H, W) in [0, 1], sides multiples of 8.
            select: index into the L + 1 hidden states, as in transformers: -2 is the output of the
                last layer but one. The layer that made it is the selected layer.
            need: of "cls_row" (B, heads, N) and "keys" (B, prefix + N, head_dim), both of the
                selected layer.
            attention: layers (0-based, negative from the end) whose full weights are wanted.
            hidden: which hidden states are wanted (0: the embeddings).
        """
        select, need, attention, hidden = wanted(
            select, need, attention, hidden, self.num_layers
        )
        x, rope, grid = self.embed(images)
        out = {"grid": grid, "attention": {}, "hidden": {0: x} if 0 in hidden else {}}
        for i, block in enumerate(self.blocks):
            if need and i + 1 == select:
                out |= self.signals(i, x, rope, need)
            x = block(x, rope=rope, return_attn=i in attention)
            if i in attention:
                x, out["attention"][i] = x
            if i + 1 in hidden:
                out["hidden"][i + 1] = x
            if i + 1 == select:
                out["selected"] = x
        out["last"] = x
        return out


def wanted(select, need, attention, hidden, num_layers):
    """What a forward is asked for, checked: select in 1 ... num_layers, and three sets.

    Args:
        select: see `Encoder.forward`.
        need: see `Encoder.forward`.
        attention: see `Encoder.forward`.
        hidden: see `Encoder.forward`.
        num_layers: L.
    """
    select = check_int(select, "select", -1 - num_layers, num_layers) % (num_layers + 1)
    need, attention = _signals(need), _numbers(attention, "attention", num_layers)
    hidden = _numbers(hidden, "hidden", num_layers + 1)
    if select < 1:
        raise ValueError("select=0: the embeddings have no attention")
    return select, need, attention, hidden


def _signals(need):
    """`need` as a set of SIGNALS."""
    if not isinstance(need, (tuple, list, set, frozenset)):
        raise ValueError(f"need={need!r}: needs a set of {sorted(SIGNALS)}")
    if unknown := [name for name in need if not isinstance(name, str) or name not in SIGNALS]:
        raise ValueError(f"need={unknown}: there is cls_row and keys")
    return set(need)


def _numbers(values, name, count):
    """Places from the front or, negative, from the end -> a set of 0 ... count - 1."""
    try:
        values = list(values)
    except TypeError:
        raise ValueError(f"{name}={values!r}: needs a sequence of integers") from None
    return {check_int(value, name, -count, count - 1) % count for value in values}


def _stem(*widths):
    """Convolutions of stride 2 from width to width, norm and GELU between them."""
    layers = []
    for before, after in itertools.pairwise(widths):
        conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
        layers += [conv, nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])
