"""A Llama-shaped decoder that can lose visual tokens on the way: sequence, positions, masks, caches
shrink, and decoding goes on.

    hidden state   x = x + o(attention(rope(q(n(x))), rope(k(n(x))), v(n(x))))
                   x = x + down(silu(gate(n'(x))) * up(n'(x)))
    n = RMSNorm    (Touvron et al. 2023, arXiv 2302.13971)

with grouped keys and values and biases on q, k, v as in Qwen2.

State-dict names are those of Llama and Qwen2 in transformers (`layers.0.self_attn.q_proj.weight`,
...), so official weights load as they are. What a cut inside the decoder may look at is a `State`;
when to cut is a list of `vtlib.tokens.Stage`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..nn import check_dtype, check_heads, check_int, check_number, check_tokens, rope_at
from ..nn.checks import describe
from ..tokens import Stage
from .layers import Layer, RMSNorm, rotate, transition
from .prefill import (
    MODES,
    POSITIONS,
    Run,
    check_positions,
    check_stages,
    check_valid,
    check_visual,
    check_ways,
    count,
    splice,
)
from .state import Cache, Prefill, State, Transition, causal

__all__ = [
    "MODES", "POSITIONS", "Cache", "Decoder", "Layer", "Prefill", "RMSNorm", "State", "Transition",
    "causal", "count", "rotate", "splice", "transition",
]


class Decoder(nn.Module):
    """Layers and last norm; embeddings and the output matrix belong to the model around it.

    Args:
        embed_dim: D.
        num_layers: how many layers.
        num_heads: query heads.
        num_kv_heads: heads of keys and values; None: num_heads.
        hidden_dim: of the gated MLP.
        qkv_bias: whether q, k, v have biases.
        rope_base: of the rotary angles, above 0.
        eps: of the norms, above 0.
    """

    def __init__(
        self,
        embed_dim=128,
        num_layers=6,
        num_heads=4,
        num_kv_heads=None,
        hidden_dim=256,
        qkv_bias=False,
        rope_base=10000.0,
        eps=1e-5,
    ):
        super().__init__()
        head_dim = check_heads(embed_dim, num_heads)
        embed_dim, num_heads = int(embed_dim), int(num_heads)
        num_layers = check_int(num_layers, "num_layers", 1)
        hidden_dim = check_int(hidden_dim, "hidden_dim", 1)
        if num_kv_heads is None:
            num_kv_heads = num_heads
        num_kv_heads = check_int(num_kv_heads, "num_kv_heads", 1)
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads={num_heads} must be a multiple of num_kv_heads={num_kv_heads}"
            )
        if head_dim % 2:
            raise ValueError(
                f"embed_dim={embed_dim} with num_heads={num_heads} gives {head_dim} channels a "
                f"head; rotary positions need an even number"
            )
        self.embed_dim, self.head_dim = embed_dim, head_dim
        self.rope_base = check_number(rope_base, "rope_base", above=0)
        self.layers = nn.ModuleList(
            Layer(embed_dim, num_heads, num_kv_heads, hidden_dim, qkv_bias, eps)
            for _ in range(num_layers)
        )
        self.norm = RMSNorm(embed_dim, eps)

    def rope(self, positions):
        """Tables (cos, sin), each (B, S, P), for integer positions (B, S):
        angle = position * base^(-2i/P)."""
        return rope_at(positions, self.head_dim, self.rope_base)

    def forward(self, x, positions=None, mask=None):
        """x (B, S, D) -> (B, S, D) after the last norm.

        Args:
            x: the embedded sequence.
            positions: (B or 1, S); None: 0 ... S - 1.
            mask: as in `Layer.forward`; None: causal.

        ValueError for an x of another dtype than the weights and for positions that do not fit it.
        """
        self._check(x)
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        check_positions(positions, x)
        rope = self.rope(positions)
        for layer in self.layers:
            x, _, _ = layer(x, rope, mask)
        return self.norm(x)

    def _check(self, x: Tensor) -> None:
        check_tokens(x, self.embed_dim, "x")
        check_dtype(x, self.layers[0].self_attn.q_proj.weight, "x")

    def prefill(
        self,
        x: Tensor,
        visual: slice | None = None,
        stages: Iterable[Stage] = (),
        valid: Tensor | None = None,
        positions: str = "renumber",
        mode: str = "drop",
    ) -> Prefill:
        """Run the prompt, cutting visual tokens where `stages` say.

        Args:
            x: (B, S, D), text | image | text.
            visual: slice(start, stop) of S that the image's tokens fill.
            stages: the cuts, in any order.
            valid: (B, S) bool, False = padding, which may be anywhere: nobody attends to it and
                positions do not count it.
            positions: "renumber" counts 0 ... len - 1 again after every cut; "keep" lets survivors
                keep the numbers they had.
            mode: "drop" removes tokens, so later layers are shorter; "mask" only hides them from
                the queries of later layers, from themselves too, and saves nothing: hidden tokens
                run on as queries, at full length. Both give survivors the same numbers when the
                plans choose the same tokens. "mask" needs positions="keep" and plans that do not
                merge.

        ValueError: a stage outside 0 ... layers - 1, or one that watches a layer after its cut; a
        plan for another number of tokens or with an empty slot; `visual` or `valid` that
        do not fit x; an x of another dtype than the weights; an unknown mode or positions.
        """
        self._check(x)
        check_ways(positions, mode)
        stages = check_stages(stages, visual, len(self.layers))
        visual = check_visual(visual, x.shape[1])
        check_valid(valid, x)

        run = Run.start(self, x, visual, valid, positions, mode)
        watched = {n for s in stages for n in s.watch}
        for i in range(len(self.layers)):
            for stage in stages:
                if stage.after == i:
                    run.cut(stage, i)
            run.layer(i, watch=i + 1 in watched)
        return Prefill(
            self.norm(run.x), run.valid, run.visual, run.cache, run.plan, run.states, run.plans
        )

    def step(self, x, cache: Cache):
        """One more token a sample: x (B, 1, D) -> (B, 1, D) after the last norm. `cache` grows in
        place by one entry a layer. ValueError unless x has one token for each of the cache's
        samples and the cache an entry for each layer."""
        self._check(x)
        if not isinstance(cache, Cache):
            raise ValueError(f"cache is {describe(cache)} but needs to be a Cache, of `prefill`")
        if x.shape[:2] != (len(cache.next), 1) or len(cache.keys) != len(self.layers):
            samples = len(cache.next)
            raise ValueError(
                f"x has shape {tuple(x.shape)}, the cache {samples} samples and "
                f"{len(cache.keys)} layers: "
                f"needs ({samples}, 1, {self.embed_dim}) and {len(self.layers)} layers"
            )
        tables = {shift: self.rope(cache.next[:, None] - shift) for shift in set(cache.shift)}
        one = torch.ones(x.shape[0], 1, dtype=torch.bool, device=x.device)
        for i, layer in enumerate(self.layers):
            cache.valid[i] = torch.cat([cache.valid[i], one], dim=1)
            mask = cache.valid[i][:, None, None, :]
            past = (cache.keys[i], cache.values[i])
            x, past, _ = layer(x, tables[cache.shift[i]], mask, past)
            cache.keys[i], cache.values[i] = past
        cache.next = cache.next + 1
        return self.norm(x)
