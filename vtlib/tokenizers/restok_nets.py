"""ResTok's transformers: the encoder, which merges image tokens on its way, and the decoder.

Zhang et al., 2026, arXiv 2601.03955. State-dict names are the release's. Rotary positions turn
neighbouring channels (Su et al., 2021, arXiv 2104.09864), half of the pairs with the row, half with
the column; each grid's numbers begin at the number of tokens before it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..nn import Mlp, attend, rope_at, start_alike
from ..nn.checks import (
    check_flag,
    check_heads,
    check_images,
    check_int,
    check_ints,
    check_tokens,
)
from .restok_levels import (
    MERGE,
    Grid,
    block_causal_mask,
    hide,
    level_grids,
    level_sizes,
    merge_pairs,
    pool_levels,
)

Rope = tuple[Tensor, Tensor]


# ---------------------------------------------------------------------------------------- positions
def grid_positions(
    grids: Sequence[Grid],
    num_latents: int = 0,
    latents_first: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """(row, column) of each token, (L, 2): a grid's begin at the number of tokens before it.

    Args:
        grids: (h, w) of each grid, in order.
        num_latents: tokens without a grid; both their numbers count on from the tokens before.
        latents_first: whether those come before the grids, or after.
        device: where the table is made.
    """
    latents = torch.arange(num_latents, device=device)[:, None].expand(-1, 2)            # n 2
    start, parts = (num_latents, [latents]) if latents_first else (0, [])
    for h, w in grids:
        rows = torch.arange(start, start + h, device=device)[:, None].expand(-1, w)
        columns = torch.arange(start, start + w, device=device)[None].expand(h, -1)
        parts.append(torch.stack([rows, columns], dim=-1).flatten(0, 1))                 # hw 2
        start += h * w
    return torch.cat(parts if latents_first else [*parts, latents + start])


def place_positions(
    grids: Sequence[Grid],
    num_latents: int = 0,
    latents_first: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """(row, column) of each token, (L, 2), in cells of the finest grid: the middle of the region
    that a token stands for, a latent's of those in `level_grids`.

    Args:
        grids: (h, w) of each grid of image tokens, in order.
        num_latents: N, a power of two; 0: there are none.
        latents_first: whether those come before the grids, or after.
        device: where the table is made.
    """
    height, width = max(h for h, _ in grids), max(w for _, w in grids)
    latents = level_grids(num_latents) if num_latents else ()
    order = [*latents, *grids] if latents_first else [*grids, *latents]
    parts = []
    for h, w in order:
        rows = (torch.arange(h, device=device) + 0.5) * height / h
        columns = (torch.arange(w, device=device) + 0.5) * width / w
        parts.append(torch.cartesian_prod(rows, columns))                                # hw 2
    return torch.cat(parts)


def rope_tables(positions: Tensor, head_dim: int, base: float = 10000.0) -> Rope:
    """(cos, sin) of the angles by which pairs of channels turn, each (L, P/2).

    Half of the pairs turn with the row, half with the column: angle = t base^(-4i/P).

    Args:
        positions: (L, 2), or (L, 1), where all pairs turn with the one number.
        head_dim: P.
        base: of the slowest turn.
    """
    axes = positions.shape[-1]
    if head_dim % (2 * axes):
        raise ValueError(f"head_dim={head_dim} must be a multiple of {2 * axes}: pairs turn")
    share = head_dim // axes
    tables = rope_at(positions, share, base)                                       # l axis share
    cos, sin = (table[..., : share // 2].flatten(1) for table in tables)       # twice there
    return cos, sin


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., L, P) with channels 2i and 2i + 1 turned by angle i. Flux' and Llama's pairs are
    neighbours; those of `vtlib.nn.apply_rope` are half a head apart.

    Args:
        x: queries or keys.
        cos: (L, P/2), of `rope_tables`.
        sin: (L, P/2).
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


# ------------------------------------------------------------------------------------------- blocks
class Attention(nn.Module):
    """Self-attention with LayerNorm of each head's queries and keys; keys have no bias.

    Args:
        embed_dim: D.
        num_heads: must divide D, into heads whose channels are a multiple of 4.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = check_heads(embed_dim, num_heads)
        self.num_heads = int(num_heads)
        if self.head_dim % 4:
            raise ValueError(f"{self.head_dim} channels a head: rows and columns need pairs")
        embed_dim = self.head_dim * self.num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dim))
        self.v_bias = nn.Parameter(torch.zeros(embed_dim))
        self.q_norm = nn.LayerNorm(self.head_dim)
        self.k_norm = nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    @torch.no_grad()
    def start_near(self) -> None:
        """Keys begin with the weights of queries, and both with a constant in one channel of each
        pair, which rotary positions turn into a preference for what is near."""
        start_alike(self.qkv.weight)
        for norm in (self.q_norm, self.k_norm):
            norm.bias[0::2] = 2.0

    def forward(self, x: Tensor, mask: Tensor | None = None, rope: Rope | None = None) -> Tensor:
        """x (B, L, D) -> (B, L, D).

        Args:
            x: tokens.
            mask: (L, L) bool, True = attend; None: all.
            rope: of `rope_tables`.
        """
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = self.qkv(x)
        qkv = qkv + bias.to(qkv.dtype)
        q, k, v = rearrange(qkv, "b l (three h p) -> three b h l p", three=3, h=self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate_pairs(q, *rope), rotate_pairs(k, *rope)
        out = attend(q.to(v.dtype), k.to(v.dtype), v, mask)
        return self.proj(rearrange(out, "b h l p -> b l (h p)"))


class ResTokBlock(nn.Module):
    """x + g1 Attention(LN(x)), the coarsest level merged there, then x + g2 MLP(LN(x)).

    Args:
        embed_dim: D.
        num_heads: must divide D.
        merge: see `merge_pairs`.
        residual: see `merge_pairs`.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, merge: str = "average", residual: bool = True
    ) -> None:
        super().__init__()
        if merge not in MERGE:
            raise ValueError(f"merge={merge!r}: needs one of {', '.join(MERGE)}")
        self.merge, self.residual = merge, check_flag(residual, "residual")
        self.attn = Attention(embed_dim, num_heads)
        self.mlp = Mlp(embed_dim, 4 * embed_dim)
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.gamma_1 = nn.Parameter(torch.ones(embed_dim))
        self.gamma_2 = nn.Parameter(torch.ones(embed_dim))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rope: Rope | None = None,
        merged: int = 0,
    ) -> Tensor:
        """x (B, L, D) -> (B, L + merged / 2, D), the merged tokens first.

        Args:
            x: tokens, the coarsest level first.
            mask: (L, L) bool.
            rope: of `rope_tables`.
            merged: so many tokens at the front are merged; 0: none.
        """
        check_tokens(x, len(self.gamma_1), "x")
        x = x + self.gamma_1 * self.attn(self.norm1(x), mask, rope)
        if merged:
            coarse, rest = merge_pairs(x[:, :merged], self.merge, self.residual)
            x = torch.cat([coarse, rest, x[:, merged:]], dim=1)
        return x + self.gamma_2 * self.mlp(self.norm2(x))


def _embeddings(count: int, embed_dim: int) -> nn.ParameterList:
    return nn.ParameterList(torch.randn(1, embed_dim) * embed_dim**-0.5 for _ in range(count))


def _begin(module: nn.Module) -> None:
    """0.02 at 1024 inputs, as in the release; narrow nets begin no nearer to 0 than wide ones."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 * (1024 / module.in_features) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Placed(nn.Module):
    """What encoder and decoder share: where tokens are, for rotary positions."""

    head_dim: int
    from_places = False

    def start_at_places(self) -> None:
        """Tokens get positions of the regions they stand for, in cells of the finest grid, in place
        of the release's running numbers; attention begins with a preference for what is near."""
        self.from_places = True
        for module in self.modules():
            if isinstance(module, Attention):
                module.start_near()

    def rope(
        self, grids: Sequence[Grid], num: int, latents_first: bool, device: torch.device
    ) -> Rope:
        """The rotary tables; the slowest wave is as long as a grid of a few cells needs.

        Args:
            grids: (h, w) of each grid of image tokens, in order.
            num: latents.
            latents_first: whether those come before the grids, or after.
            device: where the tables are made.
        """
        if self.from_places:
            return rope_tables(
                place_positions(grids, num, latents_first, device), self.head_dim, base=20.0
            )
        return rope_tables(grid_positions(grids, num, latents_first, device), self.head_dim)


class Encoded(NamedTuple):
    """latents (B, N, code_dim), before quantisation; levels: the image tokens (B, n, D) of each
    level, the coarsest first."""

    latents: Tensor
    levels: tuple[Tensor, ...]


class ResTokEncoder(Placed):
    """A map (B, C, h, w) -> `Encoded`.

    Args:
        in_channels: C, of the network of pixels.
        embed_dim: D.
        num_layers: blocks, no fewer than stages.
        num_heads: must divide D.
        num_latents: N, a power of two.
        code_dim: channels of a latent for the quantiser.
        stages: S, levels of image tokens; the width of a map must be a multiple of 2^(S-1).
        merge: see `merge_pairs`.
        residual_image: whether finer image levels keep the residual only.
        residual_latents: see `pool_levels`.
        legacy: see the file's docstring.
    """

    def __init__(
        self,
        in_channels: int = 256,
        embed_dim: int = 1024,
        num_layers: int = 24,
        num_heads: int = 16,
        num_latents: int = 128,
        code_dim: int = 8,
        stages: int = 4,
        merge: str = "average",
        residual_image: bool = True,
        residual_latents: bool = True,
        legacy: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = check_heads(embed_dim, num_heads)
        embed_dim = self.head_dim * int(num_heads)
        self.sizes, self.grids = level_sizes(num_latents), level_grids(num_latents)
        self.stages = check_int(stages, "stages", 1)
        num_layers = check_int(num_layers, "num_layers", 1)
        if num_layers < self.stages:
            raise ValueError(f"num_layers={num_layers}: needs stages={self.stages} at least")
        self.residual_latents = check_flag(residual_latents, "residual_latents")
        self.legacy = check_flag(legacy, "legacy")
        self.merge_layers = [i * num_layers // self.stages - 1 for i in range(1, self.stages)]
        code_dim = check_int(code_dim, "code_dim", 1)
        self.patch_embed = nn.Conv2d(check_int(in_channels, "in_channels", 1), embed_dim, 1)
        self.level_embedding = _embeddings(self.stages, embed_dim)
        self.latent_token_level_embedding = _embeddings(len(self.sizes), embed_dim)
        self.ln_pre, self.ln_post = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.blocks = nn.ModuleList(
            ResTokBlock(embed_dim, num_heads, merge, residual_image) for _ in range(num_layers)
        )
        self.conv_out = nn.ModuleList(nn.Conv2d(embed_dim, code_dim, 1) for _ in self.sizes)
        self.apply(_begin)

    def forward(self, maps: Tensor) -> Encoded:
        """maps (B, C, h, w) -> `Encoded`."""
        check_images(maps, self.patch_embed.in_channels, "maps")
        h, w = maps.shape[-2:]
        if w % 2 ** (self.stages - 1):
            raise ValueError(f"maps is {w} wide: {self.stages} stages halve it evenly")
        x = self.patch_embed(maps)                                                      # b d h w
        latents = self.latents(x)
        x = rearrange(x, "b d h w -> b (h w) d") + self.level_embedding[0]
        x = self.ln_pre(torch.cat([x, latents], dim=1))
        grids = [(h, w)]
        mask, rope = self.context(grids, x.device)
        for i, block in enumerate(self.blocks):
            if i not in self.merge_layers:
                x = block(x, mask, rope)
                continue
            rows, columns = grids[0]
            x = block(x, mask, rope, merged=rows * columns)
            grids.insert(0, (rows, columns // 2))
            new = rows * columns // 2
            embedding = self.level_embedding[len(grids) - 1]
            x = torch.cat([x[:, :new] + embedding, x[:, new:]], dim=1)
            mask, rope = self.context(grids, x.device)
        levels = x.split([*(rows * columns for rows, columns in grids), sum(self.sizes)], dim=1)
        return Encoded(self.heads(levels[-1]), levels[:-1])

    @torch.no_grad()
    def start_at_places(self) -> None:
        """As of `Placed`; level embeddings begin at a twentieth, or they would drown the small
        residuals of fine levels in a narrow net: the finest level's tokens were all alike then."""
        super().start_at_places()
        for embedding in (*self.level_embedding, *self.latent_token_level_embedding):
            embedding.mul_(0.05)

    def latents(self, maps: Tensor) -> Tensor:
        """What the latents begin as: maps (B, D, h, w) -> (B, N, D), level embeddings added."""
        levels = pool_levels(maps, self.grids, self.residual_latents).split(self.sizes, dim=1)
        pairs = zip(levels, self.latent_token_level_embedding, strict=True)
        return torch.cat([level + embedding for level, embedding in pairs], dim=1)

    def context(self, grids: Sequence[Grid], device: torch.device) -> tuple[Tensor, Rope]:
        """The mask and the rotary tables of a sequence with these grids of image tokens."""
        sizes = [h * w for h, w in grids]
        rope = self.rope(grids, sum(self.sizes), latents_first=False, device=device)
        return block_causal_mask([*sizes, *self.sizes], device), rope

    def heads(self, latents: Tensor) -> Tensor:
        """Last layer's latents (B, N, D) -> (B, N, code_dim), each level by its own head."""
        x = self.ln_post(latents)
        x = x.reshape(x.shape[0], x.shape[2], x.shape[1]) if self.legacy else x.mT       # b d n
        levels = x[..., None].split(self.sizes, dim=2)                                   # b d n 1
        codes = [head(level) for head, level in zip(self.conv_out, levels, strict=True)]
        return rearrange(torch.cat(codes, dim=2), "b c n 1 -> b n c")


class ResTokDecoder(Placed):
    """Codes (B, N, code_dim) -> a map (B, out_channels, h, w), and features where asked for.

    Args:
        out_channels: of the map, for the network of pixels.
        embed_dim: D.
        num_layers: blocks.
        num_heads: must divide D.
        num_latents: N, a power of two.
        code_dim: channels of a code.
        features: whether there is a second query, whose tokens stand for a teacher's.
    """

    def __init__(
        self,
        out_channels: int = 256,
        embed_dim: int = 1024,
        num_layers: int = 24,
        num_heads: int = 16,
        num_latents: int = 128,
        code_dim: int = 8,
        features: bool = True,
    ) -> None:
        super().__init__()
        self.head_dim = check_heads(embed_dim, num_heads)
        embed_dim = self.head_dim * int(num_heads)
        self.sizes = level_sizes(num_latents)
        code_dim = check_int(code_dim, "code_dim", 1)
        scale = embed_dim**-0.5
        self.latent_mask_token = nn.Parameter(scale * torch.randn(1, 1, code_dim))
        self.mask_token = nn.Parameter(scale * torch.randn(1, 1, embed_dim))
        self.feat_mask_token: nn.Parameter | None = None
        if check_flag(features, "features"):
            self.feat_mask_token = nn.Parameter(scale * torch.randn(1, 1, embed_dim))
        self.decoder_embed = nn.ModuleList(nn.Linear(code_dim, embed_dim) for _ in self.sizes)
        self.latent_token_level_embedding = _embeddings(len(self.sizes), embed_dim)
        self.ln_pre, self.ln_post = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.blocks = nn.ModuleList(
            ResTokBlock(embed_dim, num_heads) for _ in range(check_int(num_layers, "num_layers", 1))
        )
        self.ffn = nn.Conv2d(embed_dim, check_int(out_channels, "out_channels", 1), 1)
        self.apply(_begin)

    def forward(
        self, codes: Tensor, grid: Grid, keep: int | Tensor | None = None, features: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Codes (B, N, code_dim) -> (map (B, out_channels, h, w), features (B, h w, D) or None).

        Args:
            codes: of the quantiser.
            grid: (h, w) of the map.
            keep: so many codes count, for all samples or (B,) long for each; the others are
                replaced by the learned mask token; None: all.
            features: run the second pass, with the query for features, in the same batch.
        """
        check_tokens(codes, self.latent_mask_token.shape[-1], "codes")
        h, w = check_ints(grid, "grid", 1, length=2)
        queries = [self.mask_token]
        if features and self.feat_mask_token is None:
            raise ValueError("features=True, but this decoder was built without features")
        if features and self.feat_mask_token is not None:
            queries.append(self.feat_mask_token)
        latents = self.latents(hide(codes, keep, self.latent_mask_token))
        batch, num = codes.shape[:2]
        passes = [torch.cat([latents, q.expand(batch, h * w, -1)], dim=1) for q in queries]
        x = self.ln_pre(torch.cat(passes))
        rope = self.rope([(h, w)], num, latents_first=True, device=x.device)
        for block in self.blocks:
            x = block(x, rope=rope)
        x = x[:, num:]                                                     # b or 2b, hw, d
        out = rearrange(self.ln_post(x[:batch]), "b (h w) d -> b d h w", h=h)
        return self.ffn(out), x[batch:] if features else None

    def latents(self, codes: Tensor) -> Tensor:
        """Codes (B, N, code_dim) -> (B, N, D), each level by its own layer and embedding."""
        if codes.shape[1] != sum(self.sizes):
            raise ValueError(f"codes has {codes.shape[1]} tokens, needs {sum(self.sizes)}")
        parts = zip(
            codes.split(self.sizes, dim=1), self.decoder_embed, self.latent_token_level_embedding,
            strict=True,
        )
        return torch.cat([embed(level) + embedding for level, embed, embedding in parts], dim=1)
