"""A prompt inside transformers' decoder: where its images' tokens stand, and what a cut does to
states, masks and caches.

A `Run` is one prompt (a batch of them). Layers that see the same tokens share a `Level`. `Run.cut`
shows each image to a `vtlib.tokens.Stage` as a `State` and takes out what its plan leaves over;
`Run.adapt` gives a layer the rotary tables and the mask of its level, in prefill and in decoding.
What changes from one forward to the next is a `Turn`, of which each thread has its own.

An example: the prompts w i i i i w and v i i i i v, a batch of 2 and one `Run`. Their two images
have equally many tokens, so they are one group, an `Images` with row = [0, 1]. A stage after layer
2 keeps the second and fourth token of the first image, the first and third of the second:

                              row 0                row 1
    levels[0].columns         0 1 2 3 4 5          0 1 2 3 4 5
    group.places              1 2 3 4              1 2 3 4           before the cut
    plan.index                1 3                  0 2               of the image's tokens
    slots                     1 2                  1 2               the places that stay ...
    rest                      3 4                  3 4               ... and those that go
    levels[1].index           0 1 2 5              0 1 2 5           slots and words in levels[0]
    levels[1].columns         0 2 4 5              0 1 3 5           whose tokens these are
    levels[1].positions       0 1 2 3              0 1 2 3           renumber=True
                              0 2 4 5              0 1 3 5           renumber=False
    group.places              1 2                  1 2               behind the cut

With 5 layers level_of = [0, 0, 1, 1, 1]: the first two hold 6 tokens in their caches, the others 4.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import Plan, Stage, VisionOutputs, take
from ..vlm.decoder import State, Transition, rotate, transition
from ..vlm.prefill import check_slots
from .hooks import Own


def take_positions(positions: Tensor, index: Tensor) -> Tensor:
    """positions (..., B, S), index (B, L) -> (..., B, L)."""
    return positions.gather(-1, index.expand(*positions.shape[:-1], index.shape[1]))


# ---------------------------------------------------------------------- what a stage may look at
class Block:
    """A decoder layer of transformers as `State` wants it."""

    def __init__(self, layer: nn.Module):
        self.layer, self.self_attn = layer, self

    def qk(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys (B, heads or kv heads, S, P) of the layer for its input x."""
        attn, y = self.layer.self_attn, self.layer.input_layernorm(x)
        q, k = (proj(y).unflatten(-1, (-1, attn.head_dim)) for proj in (attn.q_proj, attn.k_proj))
        if hasattr(attn, "q_norm"):
            q, k = attn.q_norm(q), attn.k_norm(k)
        return rotate(q.transpose(1, 2), *rope), rotate(k.transpose(1, 2), *rope)

    def repeat(self, x: Tensor) -> Tensor:
        groups = self.layer.self_attn.num_key_value_groups
        return x if groups == 1 else x.repeat_interleave(groups, dim=1)


@dataclass
class HubState(State):
    """`State`, one image a row: M images of B prompts, each seen as text | n visual tokens | text,
    with padding (not valid) where prompts are shorter.

    positions (M, S), or (3 or 4, M, S) where they have parts. text (M, S) bool: words; `asking`
    leaves out other images' tokens.
    """

    text: Tensor | None = None

    @property
    def asking(self) -> Tensor:
        return super().asking & self.text


# --------------------------------------------------------------- what runs, and what is left of it
@dataclass
class Images:
    """M images with equally many tokens.

    number: which of all images these are; row (M,): the prompt each is in; places (M, n): where
    its tokens stand now (-1: an empty slot; there is none where stages follow).
    vision, plan: what was read of them, and what was kept of it before the decoder.
    stages, num_visual: the cuts to come, and how many tokens an image entered with.
    cuts: a plan for each cut so far; since: all of these together.
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
    """Layers that see the same tokens.

    index (B, S): which of those that entered the decoder; columns (B, S): the column of input_ids
    each comes from (a merged one: its seed's); positions (..., B, S); valid (B, S) bool.
    shift: by how much the positions of later tokens are lower than in the first layer.
    """

    index: Tensor
    columns: Tensor
    positions: Tensor
    valid: Tensor
    shift: int

    @property
    def size(self) -> int:
        return self.index.shape[1]

    def without(self, draft: int) -> "Level":
        """All but the last tokens."""
        parts = (self.index, self.columns, self.positions, self.valid)
        return Level(*(t[..., :-draft] for t in parts), self.shift)


@dataclass
class Turn:
    """One forward of a run: its prompt (prefilling), or new tokens behind it.

    draft: tokens at the prompt's end that are guesses, or the answer so far: no cut looks at them.
    positions: of the new tokens in the first layer.
    entered: what the layer before was given, if a stage comes now.
    memo: tables and mask of each level. watched {layer: {module: output}}: for transitions.
    """

    prefilling: bool
    positions: Tensor
    draft: int = 0
    entered: Tensor | None = None
    memo: dict[int, tuple] = field(default_factory=dict)
    watched: dict[int, dict[str, Tensor]] = field(default_factory=dict)


class CurrentTurn(Own):
    """turn: the forward of a run that this thread is in; None between forwards."""

    turn: Turn | None = None


@dataclass
class Run:
    """One prompt; after its prefill nothing here changes but `turn`.

    full: length of the prompt before pruning. dropped (B,): tokens that went before the decoder.
    levels, and for each layer which one it is on. renumber: count positions anew after cuts.
    padded: whether there is padding in what entered. delta: see `encoders.Qwen.positions`.
    """

    full: int
    dropped: Tensor
    images: list[Images]
    levels: list[Level]
    level_of: list[int]
    renumber: bool
    language: nn.Module
    padded: bool
    delta: Tensor | None = None
    own: CurrentTurn = field(default_factory=CurrentTurn)

    def __deepcopy__(self, memo: dict) -> "Run":
        return self  # of copied caches

    @property
    def turn(self) -> Turn | None:
        """The forward that this thread is in; None between forwards."""
        return self.own.turn

    @turn.setter
    def turn(self, turn: Turn | None) -> None:
        self.own.turn = turn

    @property
    def layers(self) -> list[Block]:
        return [Block(layer) for layer in self.language.layers]

    def held(self, layer: int) -> int:
        """How many tokens of the prompt a layer's cache holds."""
        return self.levels[self.level_of[layer]].size

    def forget(self, draft: int) -> None:
        """Let the prompt's last tokens be new ones behind it: some may be taken back."""
        if draft:
            self.full -= draft
            self.levels = [level.without(draft) for level in self.levels]

    def tables(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables for positions (B, S) or three-part ones."""
        parts = positions[-3:] if positions.dim() == 3 else positions
        return self.language.rotary_emb(hidden, parts)

    # ---------------------------------------------------------------------------------------- a cut
    def views(self, group: Images) -> tuple[Tensor, Tensor, slice]:
        """(place (M, S'), inside (M, S'), visual): each image's prompt moved so that all images
        start at the same place, and no draft behind it."""
        size = self.levels[-1].size - self.turn.draft
        start, count = group.places[:, 0], group.places.shape[1]
        before, behind = torch.stack([start, size - start - count]).amax(dim=1).tolist()
        place = torch.arange(-before, count + behind, device=start.device) + start[:, None]
        inside = (place >= 0) & (place < size)
        return place.clamp(0, size - 1), inside, slice(before, before + count)

    def state(self, group: Images, number: int, hidden: Tensor) -> HubState:
        """What a stage sees.

        Args:
            group: the images that it cuts.
            number: how many layers have run.
            hidden: (B, S, D) behind them.
        """
        level, entered = self.levels[-1], self.turn.entered
        place, inside, visual = self.views(group)
        words = torch.ones_like(level.valid)
        for other in self.images:
            words[other.row[:, None], other.places] = False

        def view(t: Tensor) -> Tensor:
            return take(t[group.row], place)

        valid = view(level.valid) & inside
        decoder = SimpleNamespace(layers=self.layers, rope=lambda p: self.tables(hidden, p))
        return HubState(
            decoder=decoder,
            after=number,
            hidden=view(hidden),
            entered=None if entered is None else view(entered),
            positions=take_positions(level.positions[..., group.row, :], place),
            valid=valid,
            visual=visual,
            num_visual=group.num_visual,
            plan=group.since,
            transitions=dict(group.transitions),
            running=valid,
            text=view(words) & inside,
        )

    def cut(self, number: int, hidden: Tensor) -> Tensor:
        """Carry out the stages after `number` layers: hidden (B, S, D) -> (B, S', D)."""
        due = [[s for s in group.stages if s.after == number] for group in self.images]
        for nth in range(max(map(len, due), default=0)):
            pairs = [
                (group, stages[nth])
                for group, stages in zip(self.images, due, strict=True)
                if nth < len(stages) and group.places.shape[1]
            ]
            hidden = self._cut(number, hidden, pairs)
        self.level_of[number] = len(self.levels) - 1
        follows = any(s.after == number + 1 for group in self.images for s in group.stages)
        self.turn.entered = hidden if follows else None
        return hidden

    def _cut(self, number: int, hidden: Tensor, pairs: list[tuple[Images, Stage]]) -> Tensor:
        """One stage of each image of `pairs`: hidden (B, S, D) -> (B, S', D).

        In two steps. First what a plan leaves, also merged tokens, is written over the first of its
        image's places (slots), in sequences of the old length. Then `_shorten` closes the gap: the
        rest of those places goes, in all rows and for all images at once.
        """
        level, x, entered = self.levels[-1], hidden, self.turn.entered
        stay, columns = torch.ones_like(level.valid), level.columns.clone()
        moved = level.positions.clone()
        for group, stage in pairs:
            row = group.row[:, None]
            plan = self._plan(group, stage, number, hidden)
            slots, rest = group.places[:, : len(plan)], group.places[:, len(plan) :]
            if len(plan):
                x = x.index_put((row, slots), plan.apply(hidden[row, group.places]))
                if entered is not None:
                    before = self.turn.entered[row, group.places]
                    entered = entered.index_put((row, slots), plan.apply(before))
            seed = take(group.places, plan.index)
            moved[..., row, slots] = level.positions[..., row, seed]
            columns[row, slots] = level.columns[row, seed]
            stay[row, rest] = False
            group.places = slots
        index = self._shorten(number, stay, moved, columns)
        self.turn.entered = None if entered is None else take(entered, index)
        return take(x, index)

    def _plan(self, group: Images, stage: Stage, number: int, hidden: Tensor) -> Plan:
        """What a stage keeps of a group's images, noted in the group."""
        count = group.places.shape[1]
        plan = stage.plan(self.state(group, number, hidden), stage.count(group.num_visual))
        if plan.num_tokens != count or len(plan) > count:
            raise ValueError(
                f"the stage after layer {number} made a plan from {plan.num_tokens} to "
                f"{len(plan)} tokens; {count} are there"
            )
        check_slots(plan, number)
        group.since = group.since.then(plan)
        group.cuts.append(plan)
        group.transitions = {
            layer: Transition(t.attention, t.mlp, t.valid, t.visual, take(t.now, plan.index))
            for layer, t in group.transitions.items()
        }
        return plan

    def _shorten(self, number: int, stay: Tensor, moved: Tensor, columns: Tensor) -> Tensor:
        """The level behind a cut; -> index (B, S') of the places that `stay` (B, S)."""
        level, left = self.levels[-1], stay.sum(dim=1)
        if (left != left[0]).any():
            raise ValueError(
                f"the cut after layer {number} leaves {left.tolist()} tokens in the prompts of a "
                "batch: they need equally many images"
            )
        index = stay.nonzero()[:, 1].view(len(stay), -1)  # b s'
        place = stay.long().cumsum(dim=1) - 1
        for group in self.images:
            group.places = place[group.row[:, None], group.places]
        shift = level.shift
        if self.renumber:
            moved = level.positions - (~stay).long().cumsum(dim=1)
            shift = shift + stay.shape[1] - index.shape[1]
        parts = take(level.index, index), take(columns, index), take_positions(moved, index)
        self.levels.append(Level(*parts, take(level.valid, index), shift))
        return index

    # -------------------------------------------------------------------------------------- a layer
    def adapt(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a layer with the rotary tables and the mask of its level.

        Args:
            number: the layer, 0-based.
            hidden: (B, S, D) what enters it.
            kwargs: its arguments as for the first layer.
        """
        # flash attention would take positions with gaps for several sequences in one; nothing else
        # looks at them there
        kwargs = {**kwargs, "position_ids": None}
        which, turn = self.level_of[number], self.turn
        if which == 0:
            return kwargs
        if which not in turn.memo:
            level = self.levels[which]
            positions = level.positions if turn.prefilling else turn.positions - level.shift
            mask = self.mask(level.index, kwargs.get("attention_mask"))
            turn.memo[which] = self.tables(hidden, positions), mask
        tables, mask = turn.memo[which]
        return {**kwargs, "position_embeddings": tables, "attention_mask": mask}

    def mask(self, index: Tensor, mask: Any) -> Tensor | None:
        """Rows (in prefill) and columns of the first layer's mask that belong to index (B, S).
        mask: None, (B, 1, queries, keys) or (B, keys)."""
        if mask is None:
            return None
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"attention masks of type {type(mask).__name__} cannot be cut: use sdpa, eager or "
                "flash attention"
            )
        batch, entered = index.shape[0], self.levels[0].size
        new = torch.arange(entered, mask.shape[-1], device=index.device).expand(batch, -1)
        keys = torch.cat([index, new], dim=1)
        if mask.dim() == 2:
            return take(mask, keys)
        mask = mask.expand(batch, -1, -1, -1)
        if self.turn.prefilling:
            rows = index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
            mask = mask.gather(2, rows)
        return mask.gather(3, keys[:, None, None].expand(-1, *mask.shape[1:3], -1))

    # ------------------------------------------------------------------------------------- watching
    def watch(self, number: int, module: str, output: Tensor) -> None:
        """Keep what a module of a layer made; with the last one, the layer's transitions.

        Args:
            number: the layer, 1-based.
            module: "norm1", "attention", "norm2" or "mlp".
            output: (B, S, D).
        """
        groups = [
            group
            for group in self.images
            if group.places.shape[1] and any(number in stage.watch for stage in group.stages)
        ]
        if not groups:
            return
        seen = self.turn.watched.setdefault(number, {})
        seen[module] = output
        if module != "mlp":
            return
        attention = transition(seen["norm1"], seen["attention"])
        mlp = transition(seen["norm2"], seen["mlp"])
        del self.turn.watched[number]
        for group in groups:
            place, inside, visual = self.views(group)
            changes = [
                tuple(take(t[group.row], place) for t in change) for change in (attention, mlp)
            ]
            valid = take(self.levels[-1].valid[group.row], place) & inside
            now = torch.arange(group.places.shape[1], device=place.device).expand(len(place), -1)
            group.transitions[number] = Transition(*changes, valid, visual, now)
