"""A prompt on its way through the decoder: the sequence, its positions, masks and caches, cut where
stages say."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..nn.checks import check_int, check_list, describe, readable
from ..tokens import Plan, Stage, keep_all, take
from ..tokens.checks import check_mask
from ..tokens.plan import check_plan
from .state import Cache, State, Transition, causal

if TYPE_CHECKING:
    from .decoder import Decoder

POSITIONS, MODES = ("renumber", "keep"), ("drop", "mask")


@dataclass
class Run:
    """What `Decoder.prefill` carries from layer to layer: the sequence x (B, S, D) as it is now,
    and what belongs to it.

    entered: what the last layer was given. where (B, S): positions. valid, running, visual, plan,
    seen (there: transitions), num_visual: as in `State`. padded: whether valid was given. shift: as
    in `Cache`. rope, mask: the next layer's tables and mask (None: causal).
    """

    decoder: "Decoder"
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
        decoder: "Decoder",
        x: Tensor,
        visual: slice,
        valid: Tensor | None,
        positions: str,
        mode: str,
    ) -> "Run":
        """Before the first layer.

        Args:
            decoder: whose layers will run.
            x: see `Decoder.prefill`, as all that follow.
            visual: a slice, empty without an image.
            valid: None: there is no padding.
            positions: "renumber" or "keep".
            mode: "drop" or "mask".
        """
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
        check_plan(plan, f"what the stage after layer {after} made")
        if plan.num_tokens != self.alive:
            raise ValueError(
                f"the stage after layer {after} made a plan for {plan.num_tokens} tokens; "
                f"{self.alive} are there"
            )
        check_slots(plan, after)
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
        rows, batch = len(plan.index), len(self.valid)
        if rows != batch:
            raise ValueError(f"x has {batch} images but this plan is for {rows}")
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


def check_stages(
    stages: Iterable[Stage], visual: slice | None, num_layers: int
) -> list[Stage]:
    """The stages by depth; raise unless there are visual tokens to cut, and layers before and after
    each cut.

    Args:
        stages: the cuts.
        visual: where the image's tokens are; None: nowhere.
        num_layers: of the decoder.
    """
    stages = check_list(stages, "stages", "a list of Stages")
    if strange := [stage for stage in stages if not isinstance(stage, Stage)]:
        raise ValueError(f"stages has {strange[0]!r}: needs Stages")
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
    return sorted(stages, key=lambda stage: stage.after)


def check_positions(positions: Tensor, x: Tensor) -> None:
    """Raise unless `positions` are integers (B or 1, S), for x (B, S, D)."""
    batch, size = x.shape[:2]
    fits = isinstance(positions, Tensor) and tuple(positions.shape) in ((batch, size), (1, size))
    if not fits or positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"positions is {describe(positions)} but x needs integers (B or 1, S) = "
            f"({batch} or 1, {size})"
        )


def check_slots(plan: Plan, after: int) -> None:
    """Raise where a stage's plan has an empty slot: a cut leaves each row equally many tokens, and
    a slot without one would be attended to as a token of zeros.

    Args:
        plan: what the stage made.
        after: how many layers have run.

    Reads values, so a GPU is waited for once a cut.
    """
    if not readable(plan.index):
        return
    empty = plan.index < 0
    if empty.any():
        row, slot = empty.nonzero()[0].tolist()
        raise ValueError(
            f"the stage after layer {after} made a plan with an empty slot, index[{row}, {slot}] = "
            "-1: a cut inside the decoder needs a token in every slot, equally many in each row"
        )


def check_visual(visual: slice | None, size: int) -> slice:
    """`visual` with Python's ints as ends; raise unless it lies in a sequence of `size` tokens.

    None: there is no image, an empty slice.
    """
    if visual is None:
        return slice(0, 0)
    if not isinstance(visual, slice):
        kind = type(visual).__name__
        raise ValueError(f"visual={visual!r} ({kind}): needs slice(start, stop), or None")
    start = check_int(visual.start, "visual.start", 0, size)
    stop = check_int(visual.stop, "visual.stop", start, size)
    if visual.step not in (None, 1):
        raise ValueError(f"visual.step={visual.step!r}: needs None or 1")
    return slice(start, stop)


def check_valid(valid: Tensor | None, x: Tensor) -> None:
    """Raise unless `valid` is None or a boolean tensor (B, S), for x (B, S, D)."""
    if valid is None:
        return
    check_mask(valid, "valid", x.shape[:2], "(B, S)")


def places(valid: Tensor, padded: bool) -> Tensor:
    """(B, S) long: positions from 0; with padding those of the valid tokens (`count`)."""
    if padded:
        return count(valid)
    batch, size = valid.shape
    return torch.arange(size, device=valid.device).expand(batch, -1)


def count(valid):
    """(B, S) bool -> (B, S) long: positions 0, 1, ... of the valid tokens; padding takes the one
    before it (0 in front)."""
    return (valid.long().cumsum(dim=1) - 1).clamp(min=0)


def splice(t, visual, change):
    """t with change(t[:, visual]) in the place of t[:, visual].

    Args:
        t: (B, S, ...).
        visual: a slice of S.
        change: a function of (B, n, ...).
    """
    return torch.cat([t[:, : visual.start], change(t[:, visual]), t[:, visual.stop :]], dim=1)
