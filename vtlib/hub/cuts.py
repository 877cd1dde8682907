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

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import Plan, Stage, VisionOutputs, take
from ..vlm.decoder import State, Transition, causal, transition
from ..vlm.prefill import check_slots
from .hooks import Own
from .probe import along, attention_of, probe, queries_and_keys, tree

CARRIED = ("attention_mask", "past_key_values", "position_ids")
"""Arguments of a layer that do not go along with its tokens, or in a way of their own."""


def take_positions(positions: Tensor, index: Tensor) -> Tensor:
    """positions (..., B, S), index (B, L) -> (..., B, L)."""
    return positions.gather(-1, index.expand(*positions.shape[:-1], index.shape[1]))


# ---------------------------------------------------------------------- what a stage may look at
@dataclass
class HubState(State):
    """`State`, one image a row: M images of B prompts, each seen as text | n visual tokens | text,
    with padding (not valid) where prompts are shorter.

    positions (M, S), or (3 or 4, M, S) where they have parts. text (M, S) bool: words; `asking`
    leaves out other images' tokens. place (M, S): where each token stands in its prompt; words
    between an image's tokens are shown before them, and masks go by their places. read: a function
    (layer) -> (q, k) of `qk`.
    """

    text: Tensor | None = None
    place: Tensor | None = None
    read: Callable[[int], tuple[Tensor, Tensor]] | None = None

    @property
    def asking(self) -> Tensor:
        return super().asking & self.text

    def layer_qk(self, number: int) -> tuple[Tensor, Tensor]:
        return self.read(number)

    def causal(self, rows: slice = slice(None)) -> Tensor:
        """(M, 1, rows, S) bool: earlier or same place in the prompt, and a valid key."""
        here = self.place[:, rows, None] >= self.place[:, None, :]
        seen = here & self.valid[:, None, :]
        order = torch.arange(self.place.shape[1], device=self.place.device)
        same = order[rows, None] == order
        return (seen | (~seen.any(dim=2, keepdim=True) & same))[:, None]


# ----------------------------------------------------------------------------- places and masks
def slots_of(places: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """(slots, seed), each (M, T): where a plan's tokens go, and the places of those they were.

    They stay where they were; where a plan has another order, or one place for two, they go to the
    image's first places.

    Args:
        places: (M, n) of the image's tokens, ascending.
        index: (M, T) of the plan.
    """
    seed = take(places, index)
    stays = index.shape[1] < 2 or bool((index.diff(dim=1) > 0).all())
    return (seed if stays else places[:, : index.shape[1]]), seed


def _keeps_all(plan: Plan) -> bool:
    """Whether a plan leaves every token where it was."""
    if len(plan) != plan.num_tokens or plan.merges:
        return False
    order = torch.arange(len(plan), device=plan.index.device)
    return bool((plan.index == order).all())


def closed(stay: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, bool]:
    """(index (B, S'), valid (B, S'), ragged) of prompts without what does not stay.

    Rows that become shorter than others are filled with padding, first their own, then tokens that
    were dropped.

    Args:
        stay: (B, S) bool.
        valid: (B, S) bool, False for padding.
    """
    left = stay.sum(dim=1)
    if not bool((left != left[0]).any()):
        index = stay.nonzero()[:, 1].view(len(stay), -1)  # b s'
        return index, take(valid, index), False
    real = stay & valid
    length = int(real.sum(dim=1).amax())
    rank = torch.where(real, 2, stay.long())
    best = rank.argsort(dim=1, stable=True)[:, stay.shape[1] - length :]
    index = best.sort(dim=1).values  # b s'
    return index, take(real, index), True


def cut_mask(mask: Tensor, index: Tensor, entered: int, rows: bool) -> Tensor:
    """Columns of a mask, and rows, that belong to some of the tokens it was made for.

    Args:
        mask: (B or 1, 1, queries, keys), or (B, keys).
        index: (B, S) of 0 ... entered - 1: those tokens; keys behind `entered` all stay.
        entered: how many tokens the mask was made for, without new ones.
        rows: whether its rows are those tokens, too.
    """
    batch = index.shape[0]
    new = torch.arange(entered, mask.shape[-1], device=index.device).expand(batch, -1)
    keys = torch.cat([index, new], dim=1)
    if mask.dim() == 2:
        return take(mask, keys)
    mask = mask.expand(batch, -1, -1, -1)
    if rows:
        at = index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        mask = mask.gather(2, at)
    return mask.gather(3, keys[:, None, None].expand(-1, *mask.shape[1:3], -1))


def hide(mask: Tensor | None, valid: Tensor, language: nn.Module, hidden: Tensor) -> Tensor:
    """A mask that also hides padding.

    Args:
        mask: (B, 1, queries, keys), bool or added to logits; (B, keys); or None: causal.
        valid: (B, keys) bool.
        language: the decoder.
        hidden: (B, queries, D) what enters the layer.
    """
    kind = str(getattr(language.config, "_attn_implementation", None) or "sdpa")
    if "flash" in kind or (mask is not None and mask.dim() == 2):
        return valid if mask is None else mask * valid.to(mask.dtype)
    queries, keys = hidden.shape[1], valid.shape[1]
    allowed = causal(valid, slice(keys - queries, None))
    if mask is None:
        least = torch.finfo(hidden.dtype).min
        return allowed if kind != "eager" else hidden.new_zeros(()).where(allowed, least)
    known = valid[:, None, None]
    alone = allowed & ~known  # rows that see nothing see themselves
    if mask.dtype == torch.bool:
        return mask & known | alone
    return mask.masked_fill(~(known | alone), torch.finfo(mask.dtype).min)


def _rows(place: Tensor, x: Tensor) -> Tensor:
    """place (M, L) as an index along axis 2 of x (M, heads, S, P)."""
    return place[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])


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

    index (B, S): the places, of those that entered the decoder; seed (B, S): of those, which token
    stands there (a merged one: its seed); columns (B, S): its column of input_ids; positions
    (..., B, S); valid (B, S) bool.
    shift (B,): by how much the positions of later tokens are lower than in the first layer.
    ragged: whether cuts left some rows shorter than others, so that there is padding that the
    decoder's own mask does not know.
    """

    index: Tensor
    seed: Tensor
    columns: Tensor
    positions: Tensor
    valid: Tensor
    shift: Tensor
    ragged: bool = False

    @property
    def size(self) -> int:
        return self.index.shape[1]

    def without(self, draft: int) -> "Level":
        """All but the last tokens."""
        parts = (self.index, self.seed, self.columns, self.positions, self.valid)
        return Level(*(t[..., :-draft] for t in parts), self.shift, self.ragged)


@dataclass
class Turn:
    """One forward of a run: its prompt (prefilling), or new tokens behind it.

    draft: tokens at the prompt's end that are guesses, or the answer so far: no cut looks at them.
    inside: whether the decoder runs; before that the multimodal model reckons with whole prompts.
    positions: of the new tokens in the first layer. new: how many there are since the prompt.
    entered: what the layer before was given, if a stage comes now.
    given {layer: arguments}: as the decoder hands them to its layers, of those run so far.
    memo: ((level, kind), what it was made of, a mask or tables).
    watched {layer: {module: output}}: for transitions. probing: whether a layer runs for its
    queries and keys alone.
    """

    prefilling: bool
    positions: Tensor | None = None
    new: int = 0
    draft: int = 0
    inside: bool = False
    entered: Tensor | None = None
    given: dict[int, dict[str, Any]] = field(default_factory=dict)
    memo: list[tuple[tuple[int, str], Any, Any]] = field(default_factory=list)
    probing: bool = False
    watched: dict[int, dict[str, Tensor]] = field(default_factory=dict)


    def remember(self, level: int, kind: str, source: Any, make: Callable[[], Any]) -> Any:
        """`make()`, once for each level, kind and object it is made of.

        Args:
            level: its number.
            kind: "tables", "mask", or the name of another argument.
            source: the object.
            make: a function without arguments.
        """
        for key, known, made in self.memo:
            if key == (level, kind) and known is source:
                return made
        made = make()
        self.memo.append(((level, kind), source, made))
        return made


class CurrentTurn(Own):
    """turn: the forward of a run that this thread is in; None between forwards."""

    turn: Turn | None = None


@dataclass
class Run:
    """One prompt; after its prefill nothing here changes but `turn`.

    full: length of the prompt before pruning. dropped (B,): tokens that went before the decoder.
    index (B, S'): the places of the whole prompt that entered the decoder. levels, and for each
    layer which one it is on. renumber: count positions anew after cuts. padded: whether there is
    padding in what entered; masked: whether the multimodal model makes the decoder's masks.
    delta: see `Family.delta`.
    """

    full: int
    dropped: Tensor
    index: Tensor
    images: list[Images]
    levels: list[Level]
    level_of: list[int]
    renumber: bool
    language: nn.Module
    padded: bool
    masked: bool = False
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

    def held(self, layer: int) -> int:
        """How many tokens of the prompt a layer's cache holds."""
        return self.levels[self.level_of[layer]].size

    def gone(self, layer: int) -> int:
        """How many tokens of the prompt a layer's cache lacks."""
        return self.full - self.held(layer)

    def forget(self, draft: int) -> None:
        """Let the prompt's last tokens be new ones behind it: some may be taken back."""
        if draft:
            self.full -= draft
            self.index = self.index[:, :-draft]
            self.levels = [level.without(draft) for level in self.levels]

    def tables(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables for positions (B, S) or three-part ones."""
        parts = positions[-3:] if positions.dim() == 3 else positions
        return self.language.rotary_emb(hidden, parts)

    # ---------------------------------------------------------------------------------------- a cut
    def views(self, group: Images) -> tuple[Tensor, Tensor, slice]:
        """(place (M, S'), inside (M, S'), visual): each image's prompt moved so that all images
        start at the same place, and no draft behind it. Words between the tokens of an image (the
        ends of its rows) come before them."""
        size = self.levels[-1].size - self.turn.draft
        count, last = group.places.shape[1], group.places.amax(dim=1, keepdim=True)
        kind = (torch.arange(size, device=last.device) > last).long() * 2  # m size
        kind = kind.scatter(1, group.places, 1)
        order, start = kind.argsort(dim=1, stable=True), (kind == 0).sum(dim=1)
        before, behind = torch.stack([start, size - start - count]).amax(dim=1).tolist()
        at = torch.arange(before + count + behind, device=last.device) - (before - start)[:, None]
        inside = (at >= 0) & (at < size)
        return order.gather(1, at.clamp(0, size - 1)), inside, slice(before, before + count)

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

        whole = torch.arange(level.size, device=place.device).expand(len(level.valid), -1)
        rows = torch.arange(len(whole), device=place.device)
        same = torch.equal(place, whole) and torch.equal(group.row, rows)

        def view(t: Tensor) -> Tensor:
            return t if same else take(t[group.row], place)

        turn, which = self.turn, len(self.levels) - 1

        def read(layer: int) -> tuple[Tensor, Tensor]:
            x = hidden if layer == number else entered
            q, k = self.queries_and_keys(turn, layer, which, x)
            if not same:
                q, k = (t[group.row].gather(2, _rows(place, t)) for t in (q, k))
            groups = q.shape[1] // k.shape[1]
            return q, k if groups == 1 else k.repeat_interleave(groups, dim=1)

        valid = view(level.valid) & inside
        return HubState(
            decoder=self.language,
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
            place=place,
            read=read,
        )

    def queries_and_keys(
        self, turn: Turn, number: int, which: int, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rotated queries (B, heads, S, P) and keys (B, kv heads, S, P) of a layer.

        Args:
            turn: the prompt's.
            number: the layer, 0-based.
            which: the level of its tokens.
            hidden: (B, S, D), its input.
        """
        given = self.arguments(turn, number, which, hidden)
        turn.probing = True
        try:
            return queries_and_keys(probe(self.language.layers[number]), hidden, given)
        finally:
            turn.probing = False

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

        In two steps. First what a plan leaves, also merged tokens, is written over some of its
        image's places (slots), in sequences of the old length. Then `_shorten` closes the gap: the
        rest of those places goes, in all rows and for all images at once.
        """
        level, x, entered = self.levels[-1], hidden, self.turn.entered
        stay, where = torch.ones_like(level.valid), self._places(level)
        was = where.clone()
        for group, stage in pairs:
            row = group.row[:, None]
            plan = self._plan(group, stage, number, hidden)
            if _keeps_all(plan):
                continue
            slots, seed = slots_of(group.places, plan.index)
            if len(plan):
                x = x.index_put((row, slots), plan.apply(hidden[row, group.places]))
                if entered is not None:
                    before = self.turn.entered[row, group.places]
                    entered = entered.index_put((row, slots), plan.apply(before))
            where[row, slots] = was[row, seed]
            stay[row, group.places] = False
            stay[row, slots] = True
            group.places = slots
        if x is hidden and bool(stay.all()):
            return x
        index = self._shorten(stay, where)
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

    @staticmethod
    def _places(level: Level) -> Tensor:
        """(B, S): 0 ... S - 1 in each row."""
        return torch.arange(level.size, device=level.index.device).repeat(len(level.index), 1)

    def _shorten(self, stay: Tensor, where: Tensor) -> Tensor:
        """The level behind a cut; -> index (B, S') of the places that `stay`.

        Args:
            stay: (B, S) bool.
            where: (B, S), which token stands at each place now.
        """
        level = self.levels[-1]
        index, valid, ragged = closed(stay, level.valid)
        new = torch.arange(index.shape[1], device=index.device).expand_as(index)
        place = torch.zeros_like(where).scatter(1, index, new)
        for group in self.images:
            group.places = place[group.row[:, None], group.places]
        gone, shift = (~stay).long().cumsum(dim=1), level.shift
        token = take(where, index)
        positions = take_positions(level.positions, token)
        if self.renumber:
            positions, shift = take_positions(level.positions - gone, index), shift + gone[:, -1]
        parts = take(level.index, index), take(level.seed, token), take(level.columns, token)
        self.levels.append(Level(*parts, positions, valid, shift, level.ragged or ragged))
        return index

    # -------------------------------------------------------------------------------------- a layer
    def arguments(self, turn: Turn, number: int, which: int, hidden: Tensor) -> dict[str, Any]:
        """What a layer is given in the prompt, for the tokens of a level: tables and all else but
        the mask.

        Args:
            turn: the prompt's.
            number: the layer, 0-based.
            which: the level.
            hidden: states of the level, whose dtype and device the tables have.
        """
        given = turn.given[number]
        if which == 0:
            return given
        level, size = self.levels[which], self.levels[0].size

        def cut(name: str, value: Any) -> Any:
            def make() -> Any:
                return tree(value, lambda t: along(t, level.seed, size))

            return value if name in CARRIED else turn.remember(which, name, value, make)

        given = {name: cut(name, value) for name, value in given.items()}
        return {**given, **self._new_tables(turn, given, which, hidden, level.positions)}

    def _new_tables(
        self, turn: Turn, given: dict, which: int, hidden: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        """Rotary tables of a level whose tokens are counted anew.

        Args:
            turn: the prompt's, or of new tokens.
            given: a layer's arguments.
            which: the level.
            hidden: see `arguments`.
            positions: (..., B, S) of the tokens.
        """
        if not self.renumber or "position_embeddings" not in given:
            return {}
        made = turn.remember(which, "tables", None, lambda: self.tables(hidden, positions))
        return {"position_embeddings": made}

    def adapt(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a layer with the rotary tables and the mask of its level.

        Args:
            number: the layer, 0-based.
            hidden: (B, S, D) what enters it.
            kwargs: its arguments as for the first layer.
        """
        which, turn = self.level_of[number], self.turn
        if which:
            level, mask = self.levels[which], kwargs.get("attention_mask")
            if turn.prefilling:
                kwargs = self.arguments(turn, number, which, hidden)
            else:
                positions = turn.positions - level.shift[:, None]
                kwargs = {**kwargs, **self._new_tables(turn, kwargs, which, hidden, positions)}
            linear = attention_of(self.language.layers[number]) is None
            kind = "linear mask" if linear else "mask"
            made = turn.remember(which, kind, mask, lambda: self.mask(level, mask, hidden, linear))
            kwargs = {**kwargs, "attention_mask": made}
        # flash attention would take positions with gaps for several sequences in one; nothing else
        # looks at them there
        return {**kwargs, "position_ids": None} if "position_ids" in kwargs else kwargs

    def mask(self, level: Level, mask: Any, hidden: Tensor, linear: bool) -> Any:
        """The first layer's mask for the tokens of a level.

        Args:
            level: which.
            mask: None, (B or 1, 1, queries, keys) or (B, keys).
            hidden: (B, queries, D) what enters the layer.
            linear: whether the layer has no softmax attention: it wants (B, S), in the prompt.
        """
        if mask is not None and not isinstance(mask, Tensor):
            raise ValueError(
                f"attention masks of type {type(mask).__name__} cannot be cut: use sdpa, eager or "
                "flash attention"
            )
        if mask is not None:
            mask = cut_mask(mask, level.index, self.levels[0].size, self.turn.prefilling)
        if not level.ragged:
            return mask
        if linear and mask is None:
            return level.valid.long() if self.turn.prefilling else None
        ones = level.valid.new_ones(len(level.valid), self.turn.new)
        return hide(mask, torch.cat([level.valid, ones], dim=1), self.language, hidden)

    # ------------------------------------------------------------------------------------- watching
    def watch(self, number: int, module: str, output: Tensor) -> None:
        """Keep what a module of a layer made; with the last one, the layer's transitions.

        Args:
            number: the layer, 1-based.
            module: its name, of `WATCHED`.
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
        attention = transition(seen["input_layernorm"], seen["self_attn"])
        mlp = transition(seen["post_attention_layernorm"], seen["mlp"])
        del self.turn.watched[number]
        for group in groups:
            place, inside, visual = self.views(group)
            changes = [
                tuple(take(t[group.row], place) for t in change) for change in (attention, mlp)
            ]
            valid = take(self.levels[-1].valid[group.row], place) & inside
            now = torch.arange(group.places.shape[1], device=place.device).expand(len(place), -1)
            group.transitions[number] = Transition(*changes, valid, visual, now)
