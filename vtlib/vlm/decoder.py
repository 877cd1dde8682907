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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import apply_rope, attend, check_heads, check_tokens, rope_at
from ..tokens import Plan, Stage, keep_all, take, top_tokens
from ..tokens.precision import full_precision, widen

POSITIONS, MODES = ("renumber", "keep"), ("drop", "mask")


# ------------------------------------------------------------------------------------------- layers
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32 at least."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        y = widen(x)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


class SelfAttention(nn.Module):
    def __init__(self, embed_dim, num_heads, num_kv_heads, qkv_bias):
        super().__init__()
        self.head_dim = check_heads(embed_dim, num_heads)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.q_proj = nn.Linear(embed_dim, num_heads * self.head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * self.head_dim, embed_dim, bias=False)

    def repeat(self, x):
        """(B, kv heads, N, P) -> (B, heads, N, P): a key and value head serves several queries'."""
        if self.num_heads == self.num_kv_heads:
            return x
        return x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)


class Mlp(nn.Module):
    def __init__(self, embed_dim, hidden_dim):
        super().__init__()
        self.gate_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, embed_dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, embed_dim, num_heads, num_kv_heads, hidden_dim, qkv_bias, eps):
        super().__init__()
        self.input_layernorm = RMSNorm(embed_dim, eps)
        self.self_attn = SelfAttention(embed_dim, num_heads, num_kv_heads, qkv_bias)
        self.post_attention_layernorm = RMSNorm(embed_dim, eps)
        self.mlp = Mlp(embed_dim, hidden_dim)

    def qk(self, x, rope):
        """Rotated queries (B, heads, S, P) and keys (B, kv heads, S, P) of this layer for its
        input x."""
        y = self.input_layernorm(x)
        split = dict(p=self.self_attn.head_dim)
        q = rearrange(self.self_attn.q_proj(y), "b s (h p) -> b h s p", **split)
        k = rearrange(self.self_attn.k_proj(y), "b s (h p) -> b h s p", **split)
        return rotate(q, *rope), rotate(k, *rope)

    def forward(self, x, rope, mask=None, past=None, watch=False, attention=None):
        """x (B, S, D) -> (x, (k, v), transition).

        Args:
            rope: tables (B or 1, S, P).
            mask: boolean, True = attend, broadcastable to (B, heads, S, keys); None is causal.
            past: (k, v) of earlier tokens.
            watch: whether the transition is wanted.
            attention: a function (q, k, v) -> (B, heads, S, P) to use instead of the masked one.

        (k, v): rotated keys and values of past and new tokens, (B, kv heads, keys, P).
        transition: None, or with watch {"attention": (magnitude, direction), "mlp": ...}, each
        (B, S): |out| / |in| and cos(in, out) of the module between its norm and the sum.
        """
        y = self.input_layernorm(x)
        attn = self.self_attn
        projections = attn.q_proj, attn.k_proj, attn.v_proj
        q, k, v = (
            rearrange(proj(y), "b s (h p) -> b h s p", p=attn.head_dim) for proj in projections
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        if attention is not None:
            out = attention(q, attn.repeat(k), attn.repeat(v))
        elif mask is None:
            out = F.scaled_dot_product_attention(
                q, attn.repeat(k), attn.repeat(v), is_causal=q.shape[2] > 1
            )
        else:
            out = attend(q, attn.repeat(k), attn.repeat(v), mask)
        out = attn.o_proj(rearrange(out, "b h s p -> b s (h p)"))
        x = x + out
        z = self.post_attention_layernorm(x)
        change = self.mlp(z)
        seen = {"attention": transition(y, out), "mlp": transition(z, change)} if watch else None
        return x + change, (k, v), seen


def transition(before, after):
    """How a module changes tokens (B, S, D): magnitude |after| / |before| and direction
    cos(before, after), each (B, S)."""
    before, after = widen(before), widen(after)
    magnitude = after.norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)
    return magnitude, F.cosine_similarity(before, after, dim=-1)


def rotate(x, cos, sin):
    """Rotary embedding in the rotate-half layout: x (B, heads, S, P), tables (B or 1, S, P)."""
    return apply_rope(x, cos[:, None], sin[:, None])


# --------------------------------------------------------------------------- what a cut may look at
@dataclass
class Transition:
    """What a watched layer did to every token that was there, S_l of them: attention and mlp as
    (magnitude, direction), (B, S_l).

    valid (B, S_l): no padding. visual: where the image's tokens were.
    now (B, n): for each visual token that is alive now its place among them.
    """

    attention: tuple[Tensor, Tensor]
    mlp: tuple[Tensor, Tensor]
    valid: Tensor
    visual: slice
    now: Tensor


@dataclass
class State:
    """The running decoder at a cut: `after` layers have run on text | n visual tokens | text.

    hidden (B, S, D): the residual stream.
    entered: what the last layer was given (None before the first layer), same shape.
    positions (B, S).
    valid (B, S) bool: what later layers may attend to; False for padding, and in mode "mask" for
        tokens dropped earlier.
    visual: slice of the sequence.
    num_visual: how many visual tokens there were at the start.
    plan: what happened to them so far.
    transitions {layer: Transition}, 1-based, of the layers that stages watch.
    running (B, S) bool: all but padding; the tokens that mode "mask" has hidden still run, as
        queries whose output nobody reads.
    """

    decoder: "Decoder"
    after: int
    hidden: Tensor
    entered: Tensor | None
    positions: Tensor
    valid: Tensor
    visual: slice
    num_visual: int
    plan: Plan
    transitions: dict[int, Transition] = field(default_factory=dict)
    running: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """(B, n, D): the visual tokens' residual stream."""
        return self.hidden[:, self.visual]

    @property
    def alive(self) -> Tensor:
        """(B, n) bool: visual tokens that can still be kept (all of them unless mode is "mask")."""
        return self.valid[:, self.visual]

    @property
    def asking(self) -> Tensor:
        """(B, S) bool: the text behind the image, padding excluded."""
        behind = torch.arange(self.hidden.shape[1], device=self.hidden.device) >= self.visual.stop
        return self.valid & behind

    def qk(self, layer="next") -> tuple[Tensor, Tensor]:
        """Rotated q and k (B, heads, S, P), keys repeated for grouped heads: of the layer to come
        ("next", from the residual stream as it is) or of the one that has just run ("last").
        ValueError when there is no such layer."""
        number = self.after if layer == "next" else self.after - 1
        if not 0 <= number < len(self.decoder.layers):
            raise ValueError(
                f"after={self.after}: there is no {layer} layer in a decoder with "
                f"{len(self.decoder.layers)}"
            )
        block = self.decoder.layers[number]
        x = self.hidden if layer == "next" else self.entered
        q, k = block.qk(x, self.decoder.rope(self.positions))
        return q, block.self_attn.repeat(k)

    def logits(self, rows=slice(None), layer="next", qk=None) -> Tensor:
        """Causal attention logits q k^T / sqrt(P) of the rows (a slice), in float32 at least:
        (B, heads, rows, S).

        -inf where a key is later or not valid. Rows of padding and of tokens that mode "mask" has
        hidden are there too, with what they see. qk: what `qk(layer)` gave, for those who have it.
        """
        q, k = self.qk(layer) if qk is None else qk
        with full_precision(q.device):
            logits = (widen(q[:, :, rows]) * q.shape[-1] ** -0.5) @ widen(k).transpose(-2, -1)
        return logits.masked_fill(~causal(self.valid, rows), float("-inf"))

    def attention(self, rows=slice(None), layer="next", qk=None) -> Tensor:
        """Softmax of `logits` over all keys: (B, heads, rows, S)."""
        return self.logits(rows, layer, qk).softmax(dim=-1)

    def top(self, score, keep) -> Plan:
        """The plan that keeps the `keep` best of score (B, n), in their order; dropped tokens are
        never chosen. keep may be 0."""
        score = score.masked_fill(~self.alive, float("-inf"))
        if keep:
            index = top_tokens(score, keep)
        else:
            index = torch.zeros(score.shape[0], 0, dtype=torch.long, device=score.device)
        return Plan(index, score.shape[1])


# ---------------------------------------------------------------------------------------- the cache
@dataclass
class Cache:
    """Keys and values of each layer, (B, kv heads, n_l, P) with its own n_l, and what decoding
    needs to go on.

    valid: per layer (B, n_l) bool.
    shift: per layer, by how much positions are lower than in layer 0 (0 when they are kept).
    next (B,): position of the next token in layer 0.
    """

    keys: list[Tensor]
    values: list[Tensor]
    valid: list[Tensor]
    shift: list[int]
    next: Tensor

    @property
    def lengths(self) -> list[int]:
        """n_l of each layer."""
        return [k.shape[2] for k in self.keys]

    @property
    def bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))


@dataclass
class Prefill:
    """hidden (B, S', D) after the last norm; valid (B, S'); visual: slice of S'; cache.

    plan: from the first visual tokens to the last ones.
    states: one `State` a stage, as its plan saw it.
    plans: one `Plan` a stage, over the tokens that were alive (all, in mode "mask").
    """

    hidden: Tensor
    valid: Tensor
    visual: slice
    cache: Cache
    plan: Plan
    states: list[State]
    plans: list[Plan]


# -------------------------------------------------------------------------------------- the decoder
class Decoder(nn.Module):
    """Layers and last norm; embeddings and the output matrix belong to the model around it.

    Args:
        embed_dim: D.
        num_layers: how many layers.
        num_heads: query heads.
        num_kv_heads: heads of keys and values; None: num_heads.
        hidden_dim: of the gated MLP.
        qkv_bias: whether q, k, v have biases.
        rope_base: of the rotary angles.
        eps: of the norms.
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
        num_kv_heads = num_kv_heads or num_heads
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads={num_heads} must be a multiple of num_kv_heads={num_kv_heads}"
            )
        head_dim = check_heads(embed_dim, num_heads)
        if head_dim % 2:
            raise ValueError(
                f"embed_dim={embed_dim} with num_heads={num_heads} gives {head_dim} channels a "
                f"head; rotary positions need an even number"
            )
        self.embed_dim, self.head_dim, self.rope_base = embed_dim, head_dim, rope_base
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
        """x (B, S, D) -> (B, S, D) after the last norm. positions (B or 1, S), default 0 ... S - 1;
        mask as in `Layer.forward`, default causal."""
        check_tokens(x, self.embed_dim, "x")
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        rope = self.rope(positions)
        for layer in self.layers:
            x, _, _ = layer(x, rope, mask)
        return self.norm(x)

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
            visual: slice of S that the image's tokens fill.
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
        plan for another number of tokens; `visual` or `valid` that do not fit x; an unknown mode
        or positions.
        """
        check_tokens(x, self.embed_dim, "x")
        stages = sorted(stages, key=lambda s: s.after)
        check_ways(positions, mode)
        check_stages(stages, visual, len(self.layers))
        visual = visual or slice(0, 0)
        check_prompt(x, visual, valid)

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
        check_tokens(x, self.embed_dim, "x")
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


# ----------------------------------------------------------------------------- a prefill on its way
@dataclass
class Run:
    """What `Decoder.prefill` carries from layer to layer: the sequence x (B, S, D) as it is now,
    and what belongs to it.

    entered: what the last layer was given. where (B, S): positions. valid, running, visual, plan,
    seen (there: transitions), num_visual: as in `State`. padded: whether valid was given. shift: as
    in `Cache`. rope, mask: the next layer's tables and mask (None: causal).
    """

    decoder: Decoder
    x: Tensor
    where: Tensor
    valid: Tensor
    visual: slice
    padded: bool
    positions: str
    mode: str
    num_visual: int
    plan: Plan
    cache: Cache
    running: Tensor
    rope: tuple[Tensor, Tensor]
    mask: Tensor | None
    entered: Tensor | None = None
    shift: int = 0
    seen: dict[int, Transition] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        decoder: Decoder,
        x: Tensor,
        visual: slice,
        valid: Tensor | None,
        positions: str,
        mode: str,
    ) -> "Run":
        """Before the first layer; arguments as in `Decoder.prefill`."""
        batch, size, _ = x.shape
        padded = valid is not None
        if valid is None:
            valid = torch.ones(batch, size, dtype=torch.bool, device=x.device)
        where = places(valid, padded)
        num_visual = visual.stop - visual.start
        return cls(
            decoder,
            x,
            where,
            valid,
            visual,
            padded,
            positions,
            mode,
            num_visual,
            plan=keep_all(batch, num_visual, x.device),
            cache=Cache([], [], [], [], valid.sum(1)),
            running=valid,
            rope=decoder.rope(where),
            mask=causal(valid) if padded else None,
        )

    @property
    def alive(self) -> int:
        """How many visual tokens are in the sequence now."""
        return self.visual.stop - self.visual.start

    def cut(self, stage: Stage, after: int) -> None:
        """Let the stage choose among the visual tokens that are there; drop or hide the rest."""
        state = State(
            self.decoder,
            after,
            self.x,
            self.entered,
            self.where,
            self.valid,
            self.visual,
            self.num_visual,
            self.plan,
            dict(self.seen),
            self.running,
        )
        plan = stage.plan(state, stage.count(self.num_visual))
        if plan.num_tokens != self.alive:
            raise ValueError(
                f"the stage after layer {after} made a plan for {plan.num_tokens} tokens; "
                f"{self.alive} are there"
            )
        self.states.append(state)
        self.plans.append(plan)
        if self.mode == "mask":
            self.hide(plan)
        else:
            self.drop(plan)

    def hide(self, plan: Plan) -> None:
        """Mode "mask": tokens that are not kept stay, and nobody attends to them any more."""
        if plan.merges:
            raise ValueError('mode="mask" hides tokens; a plan that merges needs mode="drop"')
        if len(plan) == self.num_visual:                    # nothing is hidden, the fast path stays
            return
        kept = plan.kept()
        self.valid = splice(self.valid, self.visual, lambda t: t & kept)
        self.mask = causal(self.valid)
        self.plan = Plan(plan.index, self.num_visual)

    def drop(self, plan: Plan) -> None:
        """Mode "drop": the sequence and all that belongs to it get shorter."""
        self.x = splice(self.x, self.visual, plan.apply)
        if self.entered is not None:
            self.entered = splice(self.entered, self.visual, plan.apply)
        self.where = splice(self.where, self.visual, lambda t: take(t, plan.index))
        self.valid = splice(self.valid, self.visual, lambda t: take(t, plan.index))
        self.running = self.valid
        if self.positions == "renumber":
            self.shift += self.alive - len(plan)
            self.where = places(self.valid, self.padded)
        self.plan = self.plan.then(plan)
        self.visual = slice(self.visual.start, self.visual.start + len(plan))
        self.seen = {
            n: replace(change, now=take(change.now, plan.index)) for n, change in self.seen.items()
        }
        self.rope = self.decoder.rope(self.where)
        self.mask = causal(self.valid) if self.padded else None

    def layer(self, number: int, watch: bool) -> None:
        """Run layer `number` (from 0), remember its keys and values and, if asked, its changes."""
        self.entered = self.x
        layer = self.decoder.layers[number]
        self.x, (k, v), change = layer(self.x, self.rope, self.mask, watch=watch)
        if change:
            now = torch.arange(self.alive, device=k.device).expand(k.shape[0], -1)
            self.seen[number + 1] = Transition(
                change["attention"], change["mlp"], self.valid, self.visual, now
            )
        self.cache.keys.append(k)
        self.cache.values.append(v)
        self.cache.valid.append(self.valid)
        self.cache.shift.append(self.shift)


def check_ways(positions: str, mode: str) -> None:
    """Raise unless both are known and go together."""
    if positions not in POSITIONS or mode not in MODES:
        raise ValueError(
            f"positions={positions!r}, mode={mode!r}: need one of {POSITIONS} and one of {MODES}"
        )
    if mode == "mask" and positions != "keep":
        raise ValueError('mode="mask" leaves tokens where they are: it needs positions="keep"')


def check_stages(stages: Sequence[Stage], visual: slice | None, num_layers: int) -> None:
    """Raise unless there are visual tokens to cut, and layers before and after each cut."""
    if stages and visual is None:
        raise ValueError(
            "stages cut visual tokens: visual=slice(start, stop) must say where they are"
        )
    for stage in stages:
        if not 0 <= stage.after < num_layers:
            raise ValueError(
                f"a stage after layer {stage.after} is outside 0 ... {num_layers - 1}: "
                f"a later layer must use what it leaves"
            )
        for watched in stage.watch:
            if not 1 <= watched <= stage.after:
                raise ValueError(
                    f"the stage after layer {stage.after} watches layer {watched}: "
                    f"layers 1 ... {stage.after} have run by then"
                )


def check_prompt(x: Tensor, visual: slice, valid: Tensor | None) -> None:
    """Raise unless visual lies in x (B, S, D) and valid, if given, is a boolean (B, S)."""
    size = x.shape[1]
    whole = isinstance(visual.start, int) and isinstance(visual.stop, int)
    if not (whole and 0 <= visual.start <= visual.stop <= size):
        raise ValueError(
            f"visual={visual} does not lie in a sequence of {size} tokens: "
            f"needs 0 <= start <= stop <= {size}"
        )
    if valid is not None and (valid.shape != x.shape[:2] or valid.dtype != torch.bool):
        raise ValueError(
            f"valid is {valid.dtype} of shape {tuple(valid.shape)} but x needs a boolean (B, S) = "
            f"{tuple(x.shape[:2])}"
        )


def places(valid: Tensor, padded: bool) -> Tensor:
    """(B, S) long: positions from 0; with padding those of the valid tokens (`count`)."""
    if padded:
        return count(valid)
    batch, size = valid.shape
    return torch.arange(size, device=valid.device).expand(batch, -1)


def causal(valid, rows=slice(None)):
    """(B, 1, rows, S) bool, True = attend: earlier or same place, and a valid key. A row without
    any such key sees itself."""
    order = torch.arange(valid.shape[1], device=valid.device)
    alone = (valid.long().cumsum(dim=1) == 0)[:, None, rows, None]      # b 1 rows 1
    row = order[rows, None]
    return ((row >= order) & valid[:, None, None, :]) | (alone & (row == order))


def count(valid):
    """(B, S) bool -> (B, S) long: positions 0, 1, ... of the valid tokens; padding takes the one
    before it (0 in front)."""
    return (valid.long().cumsum(dim=1) - 1).clamp(min=0)


def splice(t, visual, change):
    """t (B, S, ...) with change(t[:, visual]) in the place of t[:, visual]."""
    return torch.cat([t[:, : visual.start], change(t[:, visual]), t[:, visual.stop :]], dim=1)
