"""TokenBridge's head: the indices of one position, channel by channel.

Part of `tokenbridge` (arXiv 2503.16430, section 3.3). B^C tokens are too many for one softmax, so
the C channels are predicted one after another, each by a softmax over B levels:

    p(q | z) = prod_i p(q_o(i) | q_o(<i), z)               DimensionHead
    x = [a, E_0(q_o(0)), ..., E_C-2(q_o(C-2))] + position  a = Linear(z), one table E_i a channel
    condition of position i: a + t_i, by AdaLN             HeadBlock, FinalLayer; t_i is learned
    logits_i = Linear_i(x_i)                               one a channel

z: the context of the position, from `tokenbridge_generator`; o: the order of channels.

Different from the release: in training x_0 is a, and in the released sampler a + t_0; here it is a
in both, unless `released=True`. The head keeps keys and values while it samples, which changes no
number. The parallel head, the paper's baseline, is given in words only: its shape is inferred.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..generation import sampling
from ..nn import attend
from ..nn.blocks import Mlp
from ..nn.checks import (
    check_axes,
    check_dtype,
    check_flag,
    check_heads,
    check_index,
    check_int,
    check_ints,
    check_number,
)
from ..tokens.precision import widen
from .tokenbridge import FREQUENCY_ORDER, inverse_order


class Attention(nn.Module):
    """Self-attention with dropout, and with keys and values that are kept while sampling.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        qk_norm: a LayerNorm on each head's queries and keys.
        dropout: of the weights and of the result, in training.
        causal: a token sees those before it only.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qk_norm: bool = False,
        dropout: float = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        head_dim = check_heads(embed_dim, num_heads)
        self.num_heads, self.causal = int(num_heads), check_flag(causal, "causal")
        self.dropout = check_number(dropout, "dropout", 0, 1)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        norm = check_flag(qk_norm, "qk_norm")
        self.q_norm = nn.LayerNorm(head_dim, eps=1e-6) if norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=1e-6) if norm else nn.Identity()
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, past: list[Tensor] | None = None) -> Tensor:
        """x (B, N, D) -> (B, N, D). past: keys and values of the tokens before, [] at the start;
        those of x are added to it."""
        q, k, v = rearrange(
            self.qkv(x), "b n (three h p) -> three b h n p", three=3, h=self.num_heads
        )
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if past:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        if past is not None:
            past[:] = k, v
        mask = None
        if self.causal and q.shape[2] > 1:
            shape = q.shape[2], k.shape[2]
            mask = torch.ones(shape, dtype=torch.bool, device=x.device).tril(shape[1] - shape[0])
        if self.training and self.dropout:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout)
        else:
            out = attend(q, k, v, mask)
        out = self.proj(rearrange(out, "b h n p -> b n (h p)"))
        return F.dropout(out, self.dropout, self.training)


class DropoutMlp(Mlp):
    """fc2(GELU(fc1(x))), with dropout after each.

    Args:
        embed_dim: D.
        hidden_dim: in between.
        dropout: in training.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__(embed_dim, hidden_dim)
        self.drop = nn.Dropout(check_number(dropout, "dropout", 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class HeadBlock(nn.Module):
    """A causal block, each of its positions with a condition of its own:

        x = x + gate attention(LN(x) (1 + scale) + shift),  and the same with the MLP

    where Linear(SiLU(condition)) gives shift, scale, gate of the attention, then of the MLP. That
    layer begins with zeros, and with it the block as the identity.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        mlp_ratio: hidden width of the MLP / D.
        dropout: in training.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden = int(embed_dim * check_number(mlp_ratio, "mlp_ratio", 0, 1e4))
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads, True, dropout, causal=True)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = DropoutMlp(embed_dim, hidden, dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 6 * embed_dim))

    def forward(
        self, x: Tensor, condition: Tensor, past: list[Tensor] | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D).

        Args:
            x: tokens.
            condition: (B, N, D).
            past: see `Attention.forward`.
        """
        modulation = self.adaLN_modulation(condition).chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, past)
        return x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)


class FinalLayer(nn.Module):
    """LN(x) (1 + scale) + shift, where Linear(SiLU(condition)) gives scale before shift: the other
    way round than in the blocks."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(embed_dim, eps=1e-6, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 2 * embed_dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.norm_final(x) * (1 + scale) + shift


class DimensionHead(nn.Module):
    """Contexts (M, D) -> the indices of C channels, one after another.

    Indices and logits are in the channels' own order everywhere; `order` is the head's affair. The
    defaults are those of TokenBridge-L (80.8 M parameters).

    Args:
        context_dim: D.
        dim: C.
        levels: B.
        embed_dim: width of the blocks.
        num_layers: how many.
        num_heads: of each.
        mlp_ratio: of each.
        order: o, the channels as they are predicted.
        parallel: the paper's baseline: no channel sees another's index, all are predicted at once.
            The same blocks, with the context in place of the embeddings.
        dropout: in training.
    """

    order: Tensor
    inverse: Tensor

    def __init__(
        self,
        context_dim: int = 1024,
        dim: int = 16,
        levels: int = 64,
        embed_dim: int = 1024,
        num_layers: int = 4,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        order: Sequence[int] | Tensor = FREQUENCY_ORDER,
        parallel: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim, self.levels = check_int(dim, "dim", 1), check_int(levels, "levels", 2)
        self.parallel = check_flag(parallel, "parallel")
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        inverse = inverse_order(order)
        if len(inverse) != self.dim:
            raise ValueError(f"order has {len(inverse)} channels but dim={self.dim}")
        self.register_buffer("order", torch.tensor(check_ints(order, "order")), persistent=False)
        self.register_buffer("inverse", torch.tensor(inverse), persistent=False)

        self.condition_proj = nn.Linear(check_int(context_dim, "context_dim", 1), embed_dim)
        self.channel_embed = nn.Parameter(0.02 * torch.randn(1, self.dim, embed_dim))
        self.timesteps_embeddings = nn.Parameter(0.02 * torch.randn(1, self.dim, embed_dim))
        self.token_embeddings = nn.ModuleList(
            nn.Embedding(self.levels, embed_dim) for _ in range(0 if parallel else self.dim - 1)
        )
        self.channel_blocks = nn.ModuleList(
            HeadBlock(embed_dim, num_heads, mlp_ratio, dropout)
            for _ in range(check_int(num_layers, "num_layers", 1))
        )
        self.channel_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.channel_final = FinalLayer(embed_dim)
        self.channel_heads = nn.ModuleList(
            nn.Linear(embed_dim, self.levels) for _ in range(self.dim)
        )
        self.apply(xavier)
        for layer in (*self.channel_blocks, self.channel_final):
            nn.init.zeros_(layer.adaLN_modulation[1].weight)

    def forward(self, context: Tensor, indices: Tensor | None = None) -> Tensor:
        """Logits (M, C, B), each channel's given the true indices of those before it in `order`.

        Args:
            context: (M, D).
            indices: (M, C) long; the last channel's is not read, and a parallel head needs none.
        """
        condition = self._condition(context)                                     # m e
        first = condition[:, None]
        if self.parallel:
            x = first.expand(-1, self.dim, -1)
        else:
            self._check_indices(indices, context)
            before = indices[:, self.order].unbind(1)[:-1]
            seen = [
                table(i) for table, i in zip(self.token_embeddings, before, strict=True)
            ]
            x = torch.cat([first, *[s[:, None].to(first.dtype) for s in seen]], dim=1)   # m c e
        x, steps = x + self.channel_embed, first + self.timesteps_embeddings
        for block in self.channel_blocks:
            x = block(x, steps)
        x = self.channel_final(self.channel_norm(x), steps)
        logits = [head(x[:, i]) for i, head in enumerate(self.channel_heads)]
        return torch.stack(logits, dim=1)[:, self.inverse]                       # m c b

    @torch.no_grad()
    def sample(
        self,
        context: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        released: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Indices (M, C) long and their log-probability (M,) at temperature 1, summed over
        channels.

        Args:
            context: (M, D).
            temperature: that logits are divided by; 0 takes the largest.
            generator: decides; None: torch's own numbers.
            released: the first element is a + t_0, as in the released sampler, not as in training.
        """
        condition = self._condition(context)[:, None]                            # m 1 e
        steps = condition + self.timesteps_embeddings                            # m c e
        token = steps[:, :1] if check_flag(released, "released") else condition
        past: list[list[Tensor]] = [[] for _ in self.channel_blocks]
        chosen, total = [], context.new_zeros(len(context), dtype=torch.float32)
        for i, head in enumerate(self.channel_heads):
            x, step = token + self.channel_embed[:, i:i + 1], steps[:, i:i + 1]
            for block, kept in zip(self.channel_blocks, past, strict=True):
                x = block(x, step, kept)
            logits = head(self.channel_final(self.channel_norm(x), step)[:, 0])  # m b
            index = sampling.sample(logits, temperature, generator=generator)
            chosen.append(index)
            total = total + widen(logits).log_softmax(dim=1).gather(1, index[:, None])[:, 0]
            if not self.parallel and i < self.dim - 1:
                token = self.token_embeddings[i](index)[:, None]
        return torch.stack(chosen, dim=1)[:, self.inverse], total

    def _condition(self, context: Tensor) -> Tensor:
        check_axes(context, "context", "(M, D)")
        wanted = self.condition_proj.in_features
        if context.shape[1] != wanted:
            raise ValueError(f"context has shape {tuple(context.shape)} but needs (M, {wanted})")
        check_dtype(context, self.condition_proj.weight, "context")
        return self.condition_proj(context)

    def _check_indices(self, indices: Tensor | None, context: Tensor) -> None:
        sizes = context.shape[0], self.dim
        check_index(indices, "indices", "(M, C)", sizes, stop=self.levels)


def xavier(module: nn.Module) -> None:
    """How the release starts its linear layers: Xavier, without a bias."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
