"""A prompt inside transformers' decoder: where its images' tokens stand, and what a cut does to states, masks and caches.

A `Run` is one prompt (a batch of them). Layers that see the same tokens share a `Level`. `Run.cut` shows each image to a
`vtlib.tokens.Stage` as a `State` and takes out what its plan leaves over; `Run.adapt` gives a layer the rotary tables and the
mask of its level, in prefill and in decoding.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

from ..tokens import Plan, Stage, take
from ..tokens.vision import VisionOutputs
from ..vlm.decoder import State, Transition, rotate, transition


def take_positions(positions, index):
    """positions (..., B, S), index (B, L) -> (..., B, L)."""
    return positions.gather(-1, index.expand(*positions.shape[:-1], index.shape[1]))


# ----------------------------------------------------------------------------------------------------- what a stage may look at
class Block:
    """A decoder layer of transformers as `State` wants it."""

    def __init__(self, layer):
        self.layer, self.self_attn = layer, self

    def qk(self, x, rope):
        """Rotated queries and keys (B, heads or kv heads, S, P) of the layer for its input x."""
        attn, y = self.layer.self_attn, self.layer.input_layernorm(x)
        q, k = (proj(y).unflatten(-1, (-1, attn.head_dim)) for proj in (attn.q_proj, attn.k_proj))
        if hasattr(attn, "q_norm"):
            q, k = attn.q_norm(q), attn.k_norm(k)
        return rotate(q.transpose(1, 2), *rope), rotate(k.transpose(1, 2), *rope)

    def repeat(self, x):
        groups = self.layer.self_attn.num_key_value_groups
        return x if groups == 1 else x.repeat_interleave(groups, dim=1)


@dataclass
class HubState(State):
    """`State`, one image a row: M images of B prompts, each seen as text | n visual tokens | text, with padding (not valid)
    where prompts are shorter.

    positions (M, S), or (3 or 4, M, S) where they have parts. text (M, S) bool: words; `asking` leaves out other images' tokens.
    """

    text: Tensor | None = None

    @property
    def asking(self) -> Tensor:
        return super().asking & self.text


# -------------------------------------------------------------------------------------------- what runs, and what is left of it
@dataclass
class Images:
    """M images with equally many tokens. number: which of all images these are; row (M,): the prompt each is in; places (M, n):
    where its tokens stand now (-1: an empty slot).

    vision, plan: what was read of them, and what was kept of it before the decoder. stages, num_visual: the cuts to come, and
    how many tokens an image entered with. cuts: a plan for each cut so far; since: all of these together.
    """

    number: list[int]
    row: Tensor
    places: Tensor
    vision: VisionOutputs
    plan: Plan
    stages: list[Stage]
    num_visual: int
    since: Plan
    cuts: list[Plan] = field(default_factory=list)
    transitions: dict[int, Transition] = field(default_factory=dict)

    @property
    def total(self) -> Plan:
        """From the encoder's tokens to the last layer's."""
        return self.plan.then(self.since)


@dataclass
class Level:
    """Layers that see the same tokens. index (B, S): which of those that entered the decoder; columns (B, S): the column of
    input_ids each comes from (a merged one: its seed's); positions (..., B, S); valid (B, S) bool.

    shift: by how much the positions of later tokens are lower than in the first layer.
    """

    index: Tensor
    columns: Tensor
    positions: Tensor
    valid: Tensor
    shift: int


@dataclass
class Run:
    """full: length of the prompt before pruning. dropped (B,): tokens that went before the decoder. levels, and for each layer
    which one it is on. renumber: count positions anew after cuts. padded: whether there is padding in what entered.
    """

    full: int
    dropped: Tensor
    images: list[Images]
    levels: list[Level]
    level_of: list[int]
    renumber: bool
    rotary: object
    layers: list
    padded: bool
    prefilling: bool = True
    now: Tensor | None = None  # while decoding: positions of the new tokens in the first layer
    entered: Tensor | None = None  # what the layer before was given, if a stage comes now
    memo: dict = field(default_factory=dict)  # of this forward: tables and mask of each level

    def __deepcopy__(self, memo):
        return self  # of copied caches: nothing here changes after the prefill but `now` and `memo`, which every forward sets

    def tables(self, hidden, positions):
        """Rotary tables for positions (B, S) or three-part ones."""
        return self.rotary(hidden, positions[-3:] if positions.dim() == 3 else positions)

    # ---------------------------------------------------------------------------------------------------------------- a cut
    def views(self, group: Images, size: int):
        """(place (M, S'), inside (M, S'), visual): each image's prompt moved so that all images start at the same place."""
        start, count = group.places[:, 0], group.places.shape[1]
        before, behind = torch.stack([start, size - start - count]).amax(dim=1).tolist()
        place = torch.arange(-before, count + behind, device=start.device) + start[:, None]
        inside = (place >= 0) & (place < size)
        return place.clamp(0, size - 1), inside, slice(before, before + count)

    def state(self, group: Images, number: int, hidden) -> HubState:
        level = self.levels[-1]
        place, inside, visual = self.views(group, hidden.shape[1])
        words = torch.ones_like(level.valid)
        for other in self.images:
            words[other.row[:, None], other.places] = False
        valid, text = (take(t[group.row], place) & inside for t in (level.valid, words))
        x, entered = (None if t is None else take(t[group.row], place) for t in (hidden, self.entered))
        decoder = SimpleNamespace(layers=self.layers, rope=lambda positions: self.tables(hidden, positions))
        return HubState(
            decoder,
            number,
            x,
            entered,
            take_positions(level.positions[..., group.row, :], place),
            valid,
            visual,
            group.num_visual,
            group.since,
            dict(group.transitions),
            valid,
            text,
        )

    def cut(self, number: int, hidden):
        """Carry out the stages after `number` layers: hidden (B, S, D) -> (B, S', D)."""
        due = [[stage for stage in group.stages if stage.after == number] for group in self.images]
        for turn in range(max(map(len, due), default=0)):
            hidden = self._cut(
                number, hidden, [(g, s[turn]) for g, s in zip(self.images, due) if turn < len(s) and g.places.shape[1]]
            )
        self.level_of[number] = len(self.levels) - 1
        follows = any(stage.after == number + 1 for group in self.images for stage in group.stages)
        self.entered = hidden if follows else None
        return hidden

    def _cut(self, number, hidden, pairs):
        level, x, entered = self.levels[-1], hidden, self.entered
        stay, moved, columns = torch.ones_like(level.valid), level.positions.clone(), level.columns.clone()
        for group, stage in pairs:
            row, count = group.row[:, None], group.places.shape[1]
            plan = stage.plan(self.state(group, number, hidden), stage.count(group.num_visual))
            if plan.num_tokens != count or len(plan) > count:
                raise ValueError(
                    f"the stage after layer {number} made a plan from {plan.num_tokens} to {len(plan)} tokens; {count} are there"
                )
            slots, rest = group.places[:, : len(plan)], group.places[:, len(plan) :]
            if len(plan):
                x = x.index_put((row, slots), plan.apply(hidden[row, group.places]))
                if entered is not None:
                    entered = entered.index_put((row, slots), plan.apply(self.entered[row, group.places]))
            seats = plan.index.clamp(min=0)
            seed = take(group.places, seats)
            moved[..., row, slots], columns[row, slots] = level.positions[..., row, seed], level.columns[row, seed]
            stay[row, rest] = False
            group.places, group.since = slots, group.since.then(plan)
            group.cuts.append(plan)
            group.transitions = {
                n: Transition(t.attention, t.mlp, t.valid, t.visual, take(t.now, seats)) for n, t in group.transitions.items()
            }
        left = stay.sum(dim=1)
        if (left != left[0]).any():
            raise ValueError(
                f"the cut after layer {number} leaves {left.tolist()} tokens in the prompts of a batch: "
                "they need equally many images"
            )
        index = stay.nonzero()[:, 1].view(len(stay), -1)  # b s'
        place = stay.long().cumsum(dim=1) - 1
        for group in self.images:
            group.places = place[group.row[:, None], group.places]
        shift = level.shift
        if self.renumber:
            moved, shift = level.positions - (~stay).long().cumsum(dim=1), shift + stay.shape[1] - index.shape[1]
        self.levels.append(
            Level(take(level.index, index), take(columns, index), take_positions(moved, index), take(level.valid, index), shift)
        )
        self.entered = None if entered is None else take(entered, index)
        return take(x, index)

    # ------------------------------------------------------------------------------------------------------------- a layer
    def adapt(self, number: int, hidden, kwargs) -> dict:
        """Arguments of layer `number` with the rotary tables and the mask of its level."""
        # flash attention would take positions with gaps for several sequences in one; nothing else looks at them there
        kwargs = {**kwargs, "position_ids": None}
        which = self.level_of[number]
        if which == 0:
            return kwargs
        if which not in self.memo:
            level = self.levels[which]
            positions = level.positions if self.prefilling else self.now - level.shift
            self.memo[which] = (self.tables(hidden, positions), self.mask(level.index, kwargs.get("attention_mask")))
        tables, mask = self.memo[which]
        return {**kwargs, "position_embeddings": tables, "attention_mask": mask}

    def mask(self, index, mask):
        """Rows (in prefill) and columns of the first layer's mask that belong to index (B, S). mask: None, (B, 1, queries,
        keys) or (B, keys)."""
        if mask is None:
            return None
        if not isinstance(mask, Tensor):
            raise ValueError(f"attention masks of type {type(mask).__name__} cannot be cut: use sdpa, eager or flash attention")
        batch, entered = index.shape[0], self.levels[0].index.shape[1]
        new = torch.arange(entered, mask.shape[-1], device=index.device).expand(batch, -1)
        keys = torch.cat([index, new], dim=1)
        if mask.dim() == 2:
            return take(mask, keys)
        mask = mask.expand(batch, -1, -1, -1)
        if self.prefilling:
            mask = mask.gather(2, index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        return mask.gather(3, keys[:, None, None].expand(-1, *mask.shape[1:3], -1))

    # ------------------------------------------------------------------------------------------------------------- watching
    def watch(self, number: int, attention, mlp):
        """Keep what layer `number` (1-based) did: (before, after) of its two modules, each (B, S, D)."""
        size = self.levels[-1].valid.shape[1]
        changes = [transition(*attention), transition(*mlp)]
        for group in self.images:
            if not group.places.shape[1] or not any(number in stage.watch for stage in group.stages):
                continue
            place, inside, visual = self.views(group, size)

            def view(t):
                return take(t[group.row], place)

            (a, b), (c, d) = ((view(m), view(direction)) for m, direction in changes)
            now = torch.arange(group.places.shape[1], device=place.device).expand(len(place), -1)
            group.transitions[number] = Transition((a, b), (c, d), view(self.levels[-1].valid) & inside, visual, now)
