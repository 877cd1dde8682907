"""HAR, the hierarchical autoregressive generator of ResTok (Zhang et al., 2026, arXiv 2601.03955),
on the codes of `vtlib.tokenizers.restok`: LlamaGen's transformer (Sun et al., 2024, arXiv
2406.06525), whose later passes predict a level each.

With a = 4 tokens one by one and N tokens in all there are a + log2(N / a) passes, 9 for N = 128.
Position p predicts token p:

    inputs      [class, t_0, ..., t_a-2]                      tokens 0 ... a - 1, strictly causal
                [t_a-1, s_0, ..., s_a-2]                      tokens a ... 2a - 1
                [t_n/2, ..., t_n-1, s_n/2-1, ..., s_n-2]      tokens n ... 2n - 1, n = 2a, 4a, ...
    where s_j are learned special tokens                      HAR.inputs
    inside a level all see all, and all levels before         block_causal_mask over HAR.groups
    mean over positions of -log p(t_p | class, levels before) HAR.loss
    logits <- without + w (with - without), w by step         guidance_scales, HAR.generate

The method allows a cache of keys and values, and `generate` uses one: a position's input never
changes later, and nothing sees what comes after it, so no position is computed twice. Tokens of one
level are drawn independently given the levels before; `a = N` is the plain token-by-token
generator, the rival of the paper's table.

Different from the release: where guidance is off the scale is 1, there 1.0001; `released=True` of
`guidance_scales` gives the quirk of its bookkeeping. The table of special tokens has N - 1 rows as
there, of which the last N / 2 are never read (N = 128: s_63 ... s_126).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..generation.sampling import guide, sample
from ..nn import attend
from ..nn.checks import check_flag, check_heads, check_index, check_int, check_number
from .restok_levels import block_causal_mask
from .restok_nets import Rope, rope_tables, rotate_pairs

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values (B, heads, S, P) of each layer."""


def guidance_scales(
    groups: Sequence[tuple[int, int]], scale: float, start: float = 0.0, released: bool = False
) -> list[float]:
    """The scale of each pass: `scale` from the share `start` of the sequence on, 1 before.

    A pass counts from its first token: p / (N - 1) >= start. With start = 0.25 and N = 128 the last
    two levels are guided, 32 and 64 tokens.

    Args:
        groups: (first, stop) of the tokens of each pass, `HAR.groups`.
        scale: 1 is without guidance.
        start: 0 guides all passes.
        released: as the release counts: single tokens from the third on take p / (a - 1) for their
            share, so that they are guided, too.
    """
    scale, start = check_number(scale, "scale", 0), check_number(start, "start", 0, 1)
    last = max(groups[-1][1] - 1, 1)
    singles = sum(stop - first == 1 for first, stop in groups)
    scales = []
    for first, stop in groups:
        share = first / last
        if check_flag(released, "released") and stop - first == 1 and first >= 2:
            share = first / (singles - 1)
        scales.append(scale if share >= start else 1.0)
    return scales


# ------------------------------------------------------------------------------------ transformer
class Attention(nn.Module):
    """Self-attention with rotary positions; reads on from a cache where there is one.

    Args:
        embed_dim: D.
        num_heads: must divide D, into heads of an even number of channels.
        dropout: of what comes out.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = check_heads(embed_dim, num_heads)
        self.num_heads = int(num_heads)
        self.wqkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.wo = nn.Linear(embed_dim, embed_dim, bias=False)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, n, D) -> ((B, n, D), keys and values of all positions so far).

        Args:
            x: tokens.
            rope: of their positions.
            mask: (n, n) bool; None: all see all, the past included.
            past: keys and values of earlier positions.
        """
        qkv = rearrange(
            self.wqkv(x), "b n (three h p) -> three b h n p", three=3, h=self.num_heads
        )
        q, k, v = rotate_pairs(qkv[0], *rope), rotate_pairs(qkv[1], *rope), qkv[2]
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        out = rearrange(attend(q, k, v, mask), "b h n p -> b n (h p)")
        return self.resid_dropout(self.wo(out)), (k, v)


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x).

    Args:
        embed_dim: D.
        multiple: the hidden width is 8/3 D, rounded up to a multiple of it.
        dropout: of what comes out.
    """

    def __init__(self, embed_dim: int, multiple: int, dropout: float) -> None:
        super().__init__()
        multiple = check_int(multiple, "multiple", 1)
        hidden = math.ceil(8 * embed_dim // 3 / multiple) * multiple
        self.w1 = nn.Linear(embed_dim, hidden, bias=False)
        self.w3 = nn.Linear(embed_dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, embed_dim, bias=False)
        self.ffn_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Args:
        embed_dim: D.
        num_heads: must divide D.
        multiple: see `FeedForward`.
        dropout: of both branches.
        eps: of the norms.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, multiple: int, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.attention = Attention(embed_dim, num_heads, dropout)
        self.feed_forward = FeedForward(embed_dim, multiple, dropout)
        self.attention_norm = nn.RMSNorm(embed_dim, eps=eps)
        self.ffn_norm = nn.RMSNorm(embed_dim, eps=eps)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, n, D) -> ((B, n, D), keys and values of all positions so far).

        Args:
            x: tokens.
            rope: of their positions.
            mask: see `Attention.forward`.
            past: keys and values of earlier positions.
        """
        y, past = self.attention(self.attention_norm(x), rope, mask, past)
        x = x + y
        return x + self.feed_forward(self.ffn_norm(x)), past


class ClassEmbedding(nn.Module):
    """Classes (B,) -> (B, D); the last row of the table stands for no class.

    Args:
        num_classes: C.
        embed_dim: D.
    """

    def __init__(self, num_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, embed_dim)

    def forward(self, classes: Tensor) -> Tensor:
        return self.embedding_table(classes)


class SpecialTokens(nn.Module):
    """The learned inputs of positions whose place no earlier token takes.

    Args:
        count: how many.
        embed_dim: D.
    """

    def __init__(self, count: int, embed_dim: int) -> None:
        super().__init__()
        self.special_embeddings = nn.Embedding(count, embed_dim)


class HAR(nn.Module):
    """tokens (B, N), classes (B,) -> logits (B, N, V), teacher-forced; `generate` draws tokens.

    Args:
        vocab_size: V, the tokenizer's codebook.
        num_tokens: N, a power of two times `ar_tokens`.
        num_classes: C.
        embed_dim: D.
        num_layers: how many layers.
        num_heads: must divide D.
        ar_tokens: a, tokens predicted one by one; N: all of them, token by token.
        multiple: the feed-forward width is rounded up to a multiple of it.
        class_drop: how often training leaves the class out, for guidance.
        dropout: of the inputs and of the branches.
        base: of the rotary angles.
        eps: of the norms.

    Defaults are the paper's LlamaGen-L. The output layer begins at 0.
    """

    def __init__(
        self,
        vocab_size: int = 8192,
        num_tokens: int = 128,
        num_classes: int = 1000,
        embed_dim: int = 1024,
        num_layers: int = 24,
        num_heads: int = 16,
        ar_tokens: int = 4,
        multiple: int = 256,
        class_drop: float = 0.1,
        dropout: float = 0.1,
        base: float = 10000.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.head_dim = check_heads(embed_dim, num_heads)
        embed_dim = self.head_dim * int(num_heads)
        self.vocab_size = check_int(vocab_size, "vocab_size", 1)
        self.num_tokens = check_int(num_tokens, "num_tokens", 1)
        self.num_classes = check_int(num_classes, "num_classes", 1)
        self.ar_tokens = check_int(ar_tokens, "ar_tokens", 1, self.num_tokens)
        levels, rest = divmod(self.num_tokens, self.ar_tokens)
        if rest or levels & (levels - 1):
            raise ValueError(
                f"num_tokens={num_tokens} must be ar_tokens={ar_tokens} times a power of two"
            )
        self.class_drop = check_number(class_drop, "class_drop", 0, 1)
        self.base = check_number(base, "base", above=0)
        dropout = check_number(dropout, "dropout", 0, 1)
        num_layers, eps = check_int(num_layers, "num_layers", 1), check_number(eps, "eps", 0)
        self.cls_embedding = ClassEmbedding(self.num_classes, embed_dim)
        self.tok_embeddings = nn.Embedding(self.vocab_size, embed_dim)
        self.tok_dropout = nn.Dropout(dropout)
        self.spe_tok_embeddings: Any = None
        if self.ar_tokens < self.num_tokens:
            self.spe_tok_embeddings = SpecialTokens(self.num_tokens - 1, embed_dim)
        self.layers = nn.ModuleList(
            Layer(embed_dim, num_heads, multiple, dropout, eps) for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(embed_dim, eps=eps)
        self.output = nn.Linear(embed_dim, self.vocab_size, bias=False)
        self.apply(_begin)
        nn.init.zeros_(self.output.weight)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(first, stop) of the tokens that each pass predicts: single ones, then levels."""
        groups = [(p, p + 1) for p in range(self.ar_tokens)]
        first = self.ar_tokens
        while first < self.num_tokens:
            groups.append((first, 2 * first))
            first *= 2
        return groups

    def inputs(self, first: int, stop: int, tokens: Tensor, classes: Tensor) -> Tensor:
        """What the positions first ... stop - 1 of one pass, or of all single tokens, are fed:
        (B, stop - first, D).

        Args:
            first: of the tokens to be predicted.
            stop: one more than their last.
            tokens: (B, first or more) long, those before.
            classes: (B,) long; C is no class.
        """
        if first < self.ar_tokens:
            words = self.tok_embeddings(tokens[:, max(first - 1, 0) : stop - 1])
            if first > 0:
                return words
            return torch.cat([self.cls_embedding(classes)[:, None], words], dim=1)
        begin, special = first // 2, first // 2 - 1
        if first == self.ar_tokens:
            begin, special = first - 1, 0
        words = self.tok_embeddings(tokens[:, begin:first])
        table = self.spe_tok_embeddings.special_embeddings.weight
        places = table[special : special + begin].expand(tokens.shape[0], -1, -1)
        return torch.cat([words, places], dim=1)                                        # b n d

    def forward(
        self, tokens: Tensor, classes: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """tokens (B, N) long, classes (B,) long -> logits (B, N, V): those at p are for token p.

        Args:
            tokens: the truth; no position sees its own level's.
            classes: 0 ... C - 1, or C for no class.
            generator: for the classes that training leaves out.
        """
        self._check(classes)
        shape = (classes.shape[0], self.num_tokens)
        check_index(tokens, "tokens", "(B, N)", shape, stop=self.vocab_size)
        if self.training and self.class_drop:
            chance = torch.rand(classes.shape, generator=generator, device=classes.device)
            classes = torch.where(chance < self.class_drop, self.num_classes, classes)
        singles = [(0, self.ar_tokens), *self.groups[self.ar_tokens :]]
        x = torch.cat([self.inputs(*group, tokens, classes) for group in singles], dim=1)
        x = self.tok_dropout(x)                                                         # b n d
        mask = block_causal_mask([stop - first for first, stop in self.groups], x.device)
        rope = self.rope(x.device)
        for layer in self.layers:
            x, _ = layer(x, rope, mask)
        return self.output(self.norm(x))

    def _check(self, classes: Tensor) -> None:
        check_index(classes, "classes", "(B,)", stop=self.num_classes + 1)
        if not classes.shape[0]:
            raise ValueError("classes is empty: at least one is needed")

    def rope(self, device: torch.device) -> Rope:
        """(cos, sin) of all N positions."""
        positions = torch.arange(self.num_tokens, device=device)[:, None]
        return rope_tables(positions, self.head_dim, self.base)

    def surprisal(
        self, tokens: Tensor, classes: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """-log p of each token given the class and what its pass may see, (B, N) in nats.

        Args:
            tokens: (B, N) long.
            classes: (B,) long.
            generator: see `forward`.
        """
        logits = self(tokens, classes, generator)
        return F.cross_entropy(logits.float().mT, tokens, reduction="none")

    def loss(
        self, tokens: Tensor, classes: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean of `surprisal`, 0-dim.

        Args:
            tokens: (B, N) long.
            classes: (B,) long.
            generator: see `forward`.
        """
        return self.surprisal(tokens, classes, generator).mean()

    @torch.no_grad()
    def generate(
        self,
        classes: Tensor,
        guidance: float = 1.0,
        start: float = 0.0,
        temperature: float = 1.0,
        top_p: float = 0.0,
        generator: torch.Generator | None = None,
        released: bool = False,
    ) -> Tensor:
        """Tokens (B, N) long for classes (B,), in a + log2(N / a) passes. In eval mode, please.

        The paper's run: guidance 3.75 from start 0.25 on, top_p 0.95, temperature 1.

        Args:
            classes: 0 ... C - 1, or C for no class.
            guidance: w, of what the class adds to the logits; 1 adds nothing.
            start: the share of the sequence from which it acts, see `guidance_scales`.
            temperature: 0 takes the likeliest tokens, see `vtlib.generation.sample`.
            top_p: see there; 0: all tokens.
            generator: for the random numbers.
            released: see `guidance_scales`.
        """
        self._check(classes)
        scales = guidance_scales(self.groups, guidance, start, released)
        twice = 2 if any(scale != 1 for scale in scales) else 1
        asked = classes
        if twice == 2:
            asked = torch.cat([classes, torch.full_like(classes, self.num_classes)])
        tokens = classes.new_zeros(classes.shape[0], 0)                                 # b 0
        cache: Cache = []
        for (first, stop), scale in zip(self.groups, scales, strict=True):
            logits, cache = self.advance(first, stop, tokens.repeat(twice, 1), asked, cache)
            if twice == 2:
                given, without = logits.chunk(2)                                        # b n v
                logits = guide(given, without, scale)
            new = sample(logits, temperature, top_p=top_p, generator=generator)
            tokens = torch.cat([tokens, new], dim=1)
        return tokens

    def advance(
        self, first: int, stop: int, tokens: Tensor, classes: Tensor, cache: Cache
    ) -> tuple[Tensor, Cache]:
        """One pass: (logits (B, stop - first, V), the cache with these positions).

        Args:
            first: one of `groups`.
            stop: its other end.
            tokens: (B, first) long.
            classes: (B,) long.
            cache: of the passes before; [] at first.
        """
        x = self.tok_dropout(self.inputs(first, stop, tokens, classes))
        cos, sin = self.rope(x.device)
        rope, grown = (cos[first:stop], sin[first:stop]), []
        for i, layer in enumerate(self.layers):
            x, past = layer(x, rope, None, cache[i] if cache else None)
            grown.append(past)
        return self.output(self.norm(x)), grown


def _begin(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
