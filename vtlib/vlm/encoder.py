"""The vision side of TinyVLM: a ViT with a convolutional stem, [CLS], optional registers, and every signal that a pruner may ask for."""

import torch
from einops import rearrange
from torch import nn

from ..nn import Block, apply_rope, check_heads, check_images, check_multiple, places_2d, rope_2d


class Encoder(nn.Module):
    """images (B, 3, H, W) -> hidden states of prefix + N tokens, N = (H/8)(W/8), the prefix being [CLS] and registers.

    Three convolutions of stride 2 make 8 x 8 patches; the last place_dim channels of a patch start as its absolute place (`places_2d`), own
    channels that later layers can read at no loss; queries and keys turn with 2-D rotary positions. Layers are those of the plain ViT.
    Args: embed_dim D, num_layers L, num_heads, mlp_ratio, num_registers, place_dim (multiple of 4, < D).
    """

    patch_size = 8

    def __init__(self, embed_dim=128, num_layers=5, num_heads=4, mlp_ratio=3.0, num_registers=0, place_dim=16):
        super().__init__()
        self.head_dim = check_heads(embed_dim, num_heads)
        if not 0 < place_dim < embed_dim:
            raise ValueError(f"place_dim={place_dim} must lie between 0 and embed_dim={embed_dim}")
        if num_registers < 0:
            raise ValueError(f"num_registers={num_registers} must not be negative")
        self.num_prefix, self.place_dim = 1 + num_registers, place_dim
        widths = (3, embed_dim // 4, embed_dim // 2, embed_dim - place_dim)
        self.stem = nn.Sequential(*[layer for a, b in zip(widths, widths[1:])
                                    for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(1, b), nn.GELU())][:-1])
        self.prefix = nn.Parameter(torch.randn(1, self.num_prefix, embed_dim) * 0.02)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

    def grid(self, height, width):
        """(h, w): patches per side. ValueError for sizes that are no multiple of 8."""
        check_multiple((height, width), self.patch_size)
        return height // self.patch_size, width // self.patch_size

    def embed(self, images):
        """images -> (tokens (B, prefix + N, D), rotary tables, grid)."""
        check_images(images)
        grid = self.grid(*images.shape[-2:])
        x = rearrange(self.stem(images * 4 - 2), "b d h w -> b (h w) d")
        place = places_2d(grid, self.place_dim, device=x.device).to(x.dtype).expand(x.shape[0], -1, -1)
        x = torch.cat([x, place], dim=-1)                                                           # b n d
        x = torch.cat([self.prefix.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)               # b prefix+n d
        return x, rope_2d(grid, self.head_dim, num_prefix=self.num_prefix, device=x.device), grid

    def queries_and_keys(self, layer, x, rope=None):
        """q, k (B, heads, prefix + N, head_dim) of block `layer` for its input x; rotated when rope is given."""
        attn = self.blocks[layer].attn
        q, k, _ = rearrange(attn.qkv(self.blocks[layer].norm1(x)), "b n (three h p) -> three b h n p", three=3, h=attn.num_heads)
        return (q, k) if rope is None else (apply_rope(q, *rope), apply_rope(k, *rope))

    def forward(self, images, select=-2, need=(), attention=(), hidden=()):
        """Returns a dict: `selected` and `last` (B, prefix + N, D), `grid`, and what was asked for.

        select: index into the L + 1 hidden states, as in transformers: -2 is the output of the last layer but one. The layer that made it is
        the selected layer. need: of "cls_row" (B, heads, N) and "keys" (B, prefix + N, head_dim), both of the selected layer.
        attention: layers (0-based, negative from the end) whose full weights are wanted; hidden: hidden states (0: the embeddings).
        Nothing that is not asked for is computed or kept.
        """
        layers = len(self.blocks)
        select = select % (layers + 1)
        unknown = set(need) - {"cls_row", "keys"}
        if unknown or select < 1:
            raise ValueError(f"need={sorted(unknown)}: there is cls_row and keys" if unknown else "select=0: the embeddings have no attention")
        attention, hidden = {a % layers for a in attention}, {h % (layers + 1) for h in hidden}
        x, rope, grid = self.embed(images)
        out = {"grid": grid, "attention": {}, "hidden": {0: x} if 0 in hidden else {}}
        for i, block in enumerate(self.blocks):
            if need and i + 1 == select:
                if "keys" in need:
                    out["keys"] = self.queries_and_keys(i, x)[1].mean(dim=1)                        # b prefix+n p
                if "cls_row" in need:
                    q, k = self.queries_and_keys(i, x, rope)
                    row = (q[:, :, :1] * self.head_dim**-0.5) @ k.transpose(-2, -1)                 # b h 1 prefix+n
                    out["cls_row"] = row.softmax(dim=-1)[:, :, 0, self.num_prefix :]
            x = block(x, rope=rope, return_attn=i in attention)
            if i in attention:
                x, out["attention"][i] = x
            if i + 1 in hidden:
                out["hidden"][i + 1] = x
            if i + 1 == select:
                out["selected"] = x
        out["last"] = x
        return out
