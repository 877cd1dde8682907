"""The Q-Former of GigaTok (Xiong et al., ICCV 2025, arXiv 2504.08736): from a map to tokens in one
dimension and back, with layers of DETR's decoder.

Queries of the encoder begin as means of the map over ever finer blocks (`pool_queries`), those of
the decoder all as the first embedded token. See gigatok.py.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import (
    attend,
    check_flag,
    check_heads,
    check_images,
    check_int,
    check_number,
    check_tokens,
    sincos_2d,
    start_alike,
)
from ..nn.checks import check_axes, check_dtype
from ..tokens.checks import check_grid, check_mask

Size = str | Sequence[int]

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (256, 4, 4),
    "small": (512, 6, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "xl": (1280, 36, 20),
    "xxl": (1536, 48, 24),
}
"""(width, layers, heads) of a Q-Former."""


# ------------------------------------------------------------------------------ the first queries
def block_counts(num_queries: int, columns_first: bool = True) -> list[tuple[int, int]]:
    """(rows, columns) of blocks at each level: 2^n queries are n + 1 levels of 1, 1, 2, 4, ...

    Level i >= 1 has 2^floor((i-1)/2) rows and 2^ceil((i-1)/2) columns; columns double first, or
    rows where columns_first is False. ValueError unless num_queries is a power of two.
    """
    num_queries = check_int(num_queries, "num_queries", 1)
    doublings = num_queries.bit_length() - 1
    if 2**doublings != num_queries:
        raise ValueError(f"num_queries={num_queries} must be a power of two: 1 + 1 + 2 + 4 + ...")
    counts = [(1, 1)]
    for level in range(doublings):
        few, many = 2 ** (level // 2), 2 ** ((level + 1) // 2)
        counts.append((few, many) if check_flag(columns_first, "columns_first") else (many, few))
    return counts


def check_blocks(grid: Sequence[int], num_queries: int, columns_first: bool = True) -> None:
    """Raise unless the blocks of each level divide the grid.

    Args:
        grid: (h, w).
        num_queries: a power of two.
        columns_first: see `block_counts`.
    """
    height, width = check_grid(grid)
    rows, columns = block_counts(num_queries, columns_first)[-1]
    if height % rows or width % columns:
        raise ValueError(
            f"num_queries={num_queries} need {rows} x {columns} equal blocks at the finest level, "
            f"but the grid is {height} x {width}"
        )


def pool_queries(features: Tensor, num_queries: int, columns_first: bool = True) -> Tensor:
    """Means of a map over ever finer blocks, coarse to fine, row by row in a level. The first two
    are both the mean of all.

    Args:
        features: (B, C, h, w).
        num_queries: N, a power of two.
        columns_first: see `block_counts`.

    Returns (B, N, C). ValueError when a level's blocks do not divide the map.
    """
    check_images(features, None, "features")
    height, width = features.shape[2:]
    check_blocks((height, width), num_queries, columns_first)
    levels = []
    for rows, columns in block_counts(num_queries, columns_first):
        means = F.avg_pool2d(features, (height // rows, width // columns))
        levels.append(rearrange(means, "b c h w -> b (h w) c"))
    return torch.cat(levels, dim=1)                                              # b n c


def query_regions(num_queries: int, grid: Sequence[int]) -> Tensor:
    """Which places of the grid each query begins as the mean of: (N, h, w) bool."""
    height, width = check_grid(grid)
    check_blocks((height, width), num_queries)
    places = torch.eye(height * width).reshape(1, height * width, height, width)
    return pool_queries(places, num_queries)[0].reshape(-1, height, width) > 0


# ----------------------------------------------------------------------------------- the Q-Former
class DetrAttention(nn.Module):
    """Attention with queries, keys and values from three places; state-dict names and first
    values of torch's own (`in_proj_weight`, `out_proj`).

    Args:
        width: D.
        num_heads: must divide D.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        width, head_dim = check_int(width, "width", 1), check_heads(width, num_heads)
        self.num_heads = width // head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """-> (B, Q, D).

        Args:
            queries: (B, Q, D).
            keys: (B, N, D).
            values: (B, N, D).
            mask: (B, N) bool, True for the keys that are seen; None: all.
        """
        width = self.out_proj.in_features
        for x, name in ((queries, "queries"), (keys, "keys"), (values, "values")):
            check_tokens(x, width, name)
        if keys.shape[:2] != values.shape[:2] or queries.shape[0] != keys.shape[0]:
            shapes = [tuple(x.shape[:2]) for x in (queries, keys, values)]
            raise ValueError(f"queries, keys, values (B, N) are {shapes}: they do not fit")
        if mask is not None:
            check_mask(mask, "mask", keys.shape[:2], "(B, N)")
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        heads = []
        for x, weight, bias in zip((queries, keys, values), weights, biases, strict=True):
            x = F.linear(x, weight, bias)
            heads.append(rearrange(x, "b n (h p) -> b h n p", h=self.num_heads))
        seen = None if mask is None else mask[:, None, None]                     # b 1 1 n
        out = attend(*heads, seen)
        return self.out_proj(rearrange(out, "b h n p -> b n (h p)"))


class QFormerLayer(nn.Module):
    """A pre-norm layer of DETR's decoder: queries attend to each other, then to the memory.
    Positions are added to queries and keys here, in every layer; the memory is read as it is.

    Args:
        width: D.
        num_heads: must divide D.
        mlp_ratio: hidden width / D.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        width = check_int(width, "width", 1)
        hidden = int(width * check_number(mlp_ratio, "mlp_ratio", 1, 1e4))
        self.self_attn = DetrAttention(width, num_heads)
        self.multihead_attn = DetrAttention(width, num_heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        queries: Tensor,
        memory: Tensor,
        query_pos: Tensor,
        memory_pos: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """-> (B, Q, D).

        Args:
            queries: (B, Q, D).
            memory: (B, N, D).
            query_pos: (Q, D).
            memory_pos: (N, D).
            mask: (B, N) bool, True for the memory that is seen; None: all.
        """
        width = self.linear1.in_features
        for x, positions, name in ((queries, query_pos, "query"), (memory, memory_pos, "memory")):
            check_tokens(x, width, name)
            check_axes(positions, f"{name}_pos", "(N, D)")
            if positions.shape != x.shape[1:]:
                got, needs = tuple(positions.shape), tuple(x.shape[1:])
                raise ValueError(f"{name}_pos has shape {got} but needs {needs}")
        x = self.norm1(queries)
        queries = queries + self.self_attn(x + query_pos, x + query_pos, x)
        x = self.norm2(queries)
        queries = queries + self.multihead_attn(x + query_pos, memory + memory_pos, memory, mask)
        x = self.norm3(queries)
        return queries + self.linear2(F.gelu(self.linear1(x)))


def read_size(size: Size, name: str) -> tuple[int, int, int]:
    """(width, layers, heads) of a name in SIZES, or of three numbers. ValueError for others."""
    if isinstance(size, str) and size in SIZES:
        return SIZES[size]
    if isinstance(size, (tuple, list)) and len(size) == 3:
        width, layers, heads = (check_int(number, name, 1) for number in size)
        check_heads(width, heads)
        return width, layers, heads
    raise ValueError(f"{name}={size!r}: needs one of {', '.join(SIZES)}, or (width, layers, heads)")


class QFormer(nn.Module):
    """What encoder and decoder share: layers, and a table of positions for the grid's places
    (`positional_embedding`) and one for the tokens, N(0, 1 / width) at first.

    Args:
        size: a name in SIZES, or (width, layers, heads).
        channels: of the maps and tokens outside.
        num_tokens: N.
        grid: (h, w).
    """

    def __init__(
        self, size: Size, channels: int, num_tokens: int, grid: Sequence[int]
    ) -> None:
        super().__init__()
        width, num_layers, num_heads = read_size(size, "size")
        self.channels = check_int(channels, "channels", 1)
        self.num_tokens = check_int(num_tokens, "num_tokens", 1)
        self.grid, self.width = check_grid(grid), width
        scale = width**-0.5
        places = math.prod(self.grid)
        self.positional_embedding = nn.Parameter(scale * torch.randn(places, 1, width))
        self.latent_token_positional_embedding = nn.Parameter(
            scale * torch.randn(self.num_tokens, 1, width)
        )
        self.transformer = nn.ModuleList(
            QFormerLayer(width, num_heads) for _ in range(num_layers)
        )
        self.ln_pre, self.ln_post = nn.LayerNorm(self.channels), nn.LayerNorm(width)

    @torch.no_grad()
    def start_at_places(self) -> None:
        """Positions that know the grid before training: waves over it, and for each token the mean
        of them over the region that its query begins as the mean of (`pool_queries`), and noise.
        Keys begin with the weights of queries.

        ValueError unless the width is a multiple of 4, and blocks of N tokens divide the grid.
        """
        places = self.positional_embedding                                       # hw 1 d
        waves = sincos_2d(self.grid, self.width, temperature=10.0, device=places.device)
        spread = waves.std(dim=0, correction=0).mean().clamp_min(1e-6)
        places[:, 0] = 1.5 * (waves - waves.mean(dim=0)) / spread
        tokens = self.latent_token_positional_embedding
        tokens[:, 0] = self.region_positions() + torch.randn_like(tokens[:, 0])
        for layer in self.transformer:
            start_alike(layer.self_attn.in_proj_weight)
            start_alike(layer.multihead_attn.in_proj_weight)

    def region_positions(self) -> Tensor:
        """(N, width), the mean of the places of each token's region."""
        h, w = self.grid
        places = rearrange(self.positional_embedding, "(h w) 1 d -> 1 d h w", h=h, w=w)
        return pool_queries(places, self.num_tokens)[0]

    def token_positions(self) -> Tensor:
        """(N, width), a vector for each token."""
        return self.latent_token_positional_embedding[:, 0]

    def grid_positions(self) -> Tensor:
        """(h w, width), a vector for each place of the grid."""
        return self.positional_embedding[:, 0]


class QFormerEncoder(QFormer):
    """A map (B, C, h, w) -> N tokens (B, N, C).

    Args:
        size: a name in SIZES, or (width, layers, heads).
        channels: C.
        num_tokens: N, a power of two.
        grid: (h, w), which the finest blocks of N queries must divide.
    """

    def __init__(
        self, size: Size, channels: int, num_tokens: int, grid: Sequence[int]
    ) -> None:
        super().__init__(size, channels, num_tokens, grid)
        check_blocks(self.grid, self.num_tokens)
        self.encoder_embed = nn.Linear(self.channels, self.width)
        self.global_proj = nn.Linear(self.width, self.width)
        self.conv_out = nn.Conv2d(self.width, self.channels, 1)

    def queries(self, memory: Tensor) -> Tensor:
        """memory (B, h w, width) -> (B, N, width): what the queries begin as."""
        features = rearrange(memory, "b (h w) d -> b d h w", h=self.grid[0])
        return self.global_proj(pool_queries(features, self.num_tokens))

    def forward(self, features: Tensor) -> Tensor:
        check_images(features, self.channels, "features")
        grid = tuple(features.shape[2:])
        if grid != self.grid:
            raise ValueError(f"features are {grid} but this layer's grid is {self.grid}")
        memory = rearrange(features, "b c h w -> b (h w) c")
        memory = self.encoder_embed(self.ln_pre(memory))                         # b hw d
        queries = self.queries(memory)                                           # b n d
        positions, places = self.token_positions(), self.grid_positions()
        for layer in self.transformer:
            queries = layer(queries, memory, positions, places)
        return pointwise(self.conv_out, self.ln_post(queries))                   # b n c


class QFormerDecoder(QFormer):
    """Tokens (B, L, C), L <= N -> a map (B, C, h, w), and features of one layer (B, h w, width).

    Args:
        size: a name in SIZES, or (width, layers, heads).
        channels: C.
        num_tokens: N.
        grid: (h, w).
        align_layer: l, whose output is returned, counted from 1.
        teacher_dim: channels that `distill_mlp` makes of those features; None: no MLP.
    """

    def __init__(
        self,
        size: Size,
        channels: int,
        num_tokens: int,
        grid: Sequence[int],
        align_layer: int = 3,
        teacher_dim: int | None = 768,
    ) -> None:
        super().__init__(size, channels, num_tokens, grid)
        self.align_layer = check_int(align_layer, "align_layer", 1, len(self.transformer))
        self.teacher_dim = teacher_dim
        self.decoder_embed = nn.Linear(self.channels, self.width)
        self.conv_out = nn.Conv2d(self.width, self.channels, 3, padding=1)
        if teacher_dim is not None:
            self.teacher_dim = check_int(teacher_dim, "teacher_dim", 1)
            hidden = 4 * self.width
            self.distill_mlp = nn.Sequential(
                nn.Linear(self.width, hidden), nn.SiLU(),
                nn.Linear(hidden, hidden), nn.SiLU(),
                nn.Linear(hidden, self.teacher_dim),
            )

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """mask (B, L) bool: True for the tokens that are seen; None: all."""
        check_tokens(tokens, self.channels)
        check_dtype(tokens, self.ln_pre.weight, "tokens")
        positions = self.token_positions()
        length = tokens.shape[1]
        if length > positions.shape[0]:
            raise ValueError(f"tokens has {length} of them but there are {positions.shape[0]}")
        positions, places = positions[:length], self.grid_positions()
        memory = self.decoder_embed(self.ln_pre(tokens))                         # b l d
        queries = memory[:, :1].expand(-1, places.shape[0], -1)                  # b hw d
        features = queries
        for number, layer in enumerate(self.transformer, 1):
            queries = layer(queries, memory, places, positions, mask)
            if number == self.align_layer:
                features = queries
        out = rearrange(self.ln_post(queries), "b (h w) d -> b d h w", h=self.grid[0])
        return self.conv_out(out), features

    def project(self, features: Tensor) -> Tensor:
        """Features (B, n, width) -> (B, n, teacher_dim), what is compared with a teacher's; as they
        are where there is no MLP."""
        check_tokens(features, self.width, "features")
        return features if self.teacher_dim is None else self.distill_mlp(features)


def pointwise(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A convolution of 1 x 1 on tokens (..., C)."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)
