"""ViT - An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929); sizes of
DeiT (Touvron et al., ICML 2021, arXiv 2012.12877).

The idea: cut the image into P x P patches, embed each linearly as one token, prepend a learned
[CLS] token, add positions, run ordinary pre-norm transformer blocks, and classify from [CLS].

    z_0 = [cls; x_1 E; ...; x_N E] + E_pos        ViT.embed         (paper eq. 1)
    z'  = z + MSA(LN(z));  z = z' + MLP(LN(z'))   vtlib.nn.Block    (eq. 2, 3)
    y   = head(LN(z_L)[cls])                      ViT.forward       (eq. 4)

State-dict names are timm's, so DeiT and ViT checkpoints of the same size load as they are.
Different from the official code: positions can also be "sincos", "rope" or "none"; inputs of
another size are accepted and the learned table is resized (bicubic).
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn.blocks import Block
from ..nn.checks import check_flag, check_heads, check_int, check_ints, check_number
from ..nn.patches import PatchEmbed
from ..nn.positions import resize_pos_embed, rope_2d, sincos_2d

POSITIONS = ("learned", "sincos", "rope", "none")


class ViT(nn.Module):
    """Plain Vision Transformer for images (B, in_chans, H, W) -> logits (B, num_classes).

    ValueError for arguments that do not fit each other, and for images that P does not divide.

    Args:
        img_size: side or (H, W), the size the learned positions are made for.
        patch_size: P.
        in_chans: channels of the images.
        num_classes: 0: no head, features of [CLS] come out.
        embed_dim: D.
        num_layers: how many blocks.
        num_heads: must divide D.
        mlp_ratio: hidden width of the MLPs / D.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        drop_path: rate of stochastic depth in the last block, linear from 0.
        pos: "learned" | "sincos" | "rope" (2-D rotary on queries and keys) | "none".
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        num_layers: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        pos: str = "learned",
    ) -> None:
        super().__init__()
        if pos not in POSITIONS:
            raise ValueError(f"pos={pos!r} must be one of {POSITIONS}")
        qkv_bias = check_flag(qkv_bias, "qkv_bias")
        self.head_dim = check_heads(embed_dim, num_heads)
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        num_layers = check_int(num_layers, "num_layers", 0)
        num_classes = check_int(num_classes, "num_classes", 0)
        self.pos = pos
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.grid = self.patch_embed.grid(*_sides(img_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if pos == "learned":
            num_patches = self.grid[0] * self.grid[1]
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        drop_path = check_number(drop_path, "drop_path", 0, 1)
        rates = torch.linspace(0, drop_path, num_layers, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(_init)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """images -> (tokens (B, 1 + N, D) with positions, rotary tables or None)."""
        x = self.patch_embed(images)                                             # b n d
        grid = self.patch_embed.grid(*images.shape[-2:])
        cls = self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype)
        x = torch.cat([cls, x], dim=1)                                           # b 1+n d
        if self.pos == "learned":
            x = x + resize_pos_embed(self.pos_embed, self.grid, grid)
        elif self.pos == "sincos":
            table = sincos_2d(grid, x.shape[-1], device=x.device).to(x.dtype)
            x = torch.cat([x[:, :1], x[:, 1:] + table], dim=1)
        if self.pos != "rope":
            return x, None
        return x, rope_2d(grid, self.head_dim, num_prefix=1, device=x.device)

    def tokens(self, images: Tensor, return_attn: bool = False) -> Any:
        """All tokens after the last LayerNorm: (B, 1 + N, D), [CLS] first.

        With return_attn=True also the weights of each block, a list of (B, heads, 1 + N, 1 + N).
        """
        return_attn = check_flag(return_attn, "return_attn")
        x, rope = self.embed(images)
        attns = []
        for block in self.blocks:
            x = block(x, rope=rope, return_attn=return_attn)
            if return_attn:
                x, attn = x
                attns.append(attn)
        x = self.norm(x)
        return (x, attns) if return_attn else x

    def feature_map(self, images: Tensor, blocks: int) -> Tensor:
        """Patch tokens after the first `blocks` blocks as a map (B, D, H/P, W/P).

        Each is normalised to mean 0 and deviation 1. A classifier reads [CLS] alone, so nothing
        ever asked its *last* patch tokens to mean anything; those a little earlier carry more.
        ValueError when there are fewer blocks.
        """
        if not 1 <= check_int(blocks, "blocks") <= len(self.blocks):
            raise ValueError(f"blocks={blocks} but the ViT has {len(self.blocks)}")
        x, rope = self.embed(images)
        for block in self.blocks[:blocks]:
            x = block(x, rope=rope)
        height, width = self.patch_embed.grid(*images.shape[-2:])
        x = F.layer_norm(x[:, 1:], x.shape[-1:])
        return rearrange(x, "b (h w) d -> b d h w", h=height, w=width)

    def forward(self, images: Tensor, return_attn: bool = False) -> Any:
        """Logits (B, num_classes); with return_attn=True also the weights of each block."""
        x = self.tokens(images, return_attn)
        x, attns = x if return_attn else (x, None)
        logits = self.head(x[:, 0])
        return (logits, attns) if return_attn else logits


def _sides(img_size: Any) -> tuple[int, int]:
    """(H, W) of an image, given as a side or as a pair."""
    shape = getattr(img_size, "shape", None)                  # a NumPy or torch integer has ()
    if isinstance(img_size, (list, tuple)) or (shape is not None and len(shape)):
        height, width = check_ints(img_size, "img_size", 1, length=2)
        return height, width
    side = check_int(img_size, "img_size", 1)
    return side, side


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def tiny(**kwargs: Any) -> ViT:
    """A ViT for a laptop: 64 px, patch 8, D = 96, 4 layers, 3 heads (0.5 M parameters).

    Any argument of `ViT` can be given.
    """
    sizes = dict(img_size=64, patch_size=8, embed_dim=96, num_layers=4, num_heads=3)
    return ViT(**{**sizes, "num_classes": 10, **kwargs})


def deit_tiny(**kwargs: Any) -> ViT:
    """DeiT-Ti / ViT-Ti: D = 192, 12 layers, 3 heads, 5,717,416 parameters."""
    return ViT(**{**dict(embed_dim=192, num_layers=12, num_heads=3), **kwargs})


def deit_small(**kwargs: Any) -> ViT:
    """DeiT-S / ViT-S: D = 384, 12 layers, 6 heads, 22,050,664 parameters."""
    return ViT(**{**dict(embed_dim=384, num_layers=12, num_heads=6), **kwargs})


def vit_base(**kwargs: Any) -> ViT:
    """ViT-B / DeiT-B: D = 768, 12 layers, 12 heads, 86,567,656 parameters."""
    return ViT(**{**dict(embed_dim=768, num_layers=12, num_heads=12), **kwargs})
