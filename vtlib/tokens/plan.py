"""The selection as a value: which tokens stay, which went into which, and with what weight."""

from dataclasses import dataclass, field
from typing import Any, Callable

import torch
from torch import Tensor

from ..nn.checks import (
    at_hand,
    check_callable,
    check_finite,
    check_float,
    check_index,
    check_int,
    check_ints,
    check_range,
    describe,
    readable,
)
from .checks import check_scores
from .precision import full_precision, widen
from .select import add_rows, as_rows, best, check_keep, repeated, resolve_keep, row_numbers, take


@dataclass(frozen=True)
class Plan:
    """What a reduction of N tokens to T slots does, before it is done.

    Args:
        index: (B, T) long, the token each slot sits at, in output order (for a merged slot the
            token it grew from); -1 is an empty slot, which becomes a row of zeros.
        num_tokens: N, the number of tokens the plan is for.
        origin: (B, E) long, or None when tokens are only kept or dropped. Token origin[e] enters
            slot[e] with weight[e]: out_s = sum over e with slot[e] = s of weight[e] x[origin[e]].
            A token may enter several slots.
        slot: (B, E) long, with origin.
        weight: (B, E) floating, with origin.
        role: (B, T) long, optional: which part of a method chose the slot.
        roles: names of the numbers in `role`.
        num_prefix: the first so many tokens are no patches ([CLS], registers).

    A wrong plan is a ValueError that names the argument: another dtype or shape, and, on the CPU
    in eager mode, a place that does not exist, a token kept twice, a weight that is not finite.
    Elsewhere a look at the values would wait for the device, or there are none yet: `check` looks
    for those who want to know, and a place that does not exist trips the device's own assertion.
    """

    index: Tensor
    num_tokens: int
    origin: Tensor | None = None
    slot: Tensor | None = None
    weight: Tensor | None = None
    role: Tensor | None = None
    roles: tuple[str, ...] = ()
    num_prefix: int = 0
    _full: bool = field(default=False, init=False, repr=False, compare=False)   # no slot is empty

    def __post_init__(self) -> None:
        num_tokens = check_int(self.num_tokens, "num_tokens", 0)
        num_prefix = check_int(self.num_prefix, "num_prefix", 0, num_tokens)
        object.__setattr__(self, "num_tokens", num_tokens)
        object.__setattr__(self, "num_prefix", num_prefix)
        check_index(self.index, "index", "(B, T)")
        entries = {"origin": self.origin, "slot": self.slot, "weight": self.weight}
        if len({entry is None for entry in entries.values()}) > 1:
            missing = [name for name, entry in entries.items() if entry is None]
            raise ValueError(f"{missing[0]} is None: a plan that merges needs {', '.join(entries)}")
        if self.origin is not None and self.slot is not None and self.weight is not None:
            check_entries(self.origin, self.slot, self.weight, self.index.shape[0])
        if self.role is not None:
            check_index(self.role, "role", "(B, T)", self.index.shape)
        if at_hand(self.index):
            self.check()

    def check(self) -> None:
        """ValueError for values that are wrong: places outside 0 ... N - 1 (index: -1 too), a token
        kept twice by a plan that only keeps and drops, weights that are not finite. Reads values,
        so a GPU is waited for; passes while compiling, exporting and on the meta device."""
        full = check_range(self.index, "index", -1, self.num_tokens)
        object.__setattr__(self, "_full", full)
        if self.origin is not None and self.slot is not None and self.weight is not None:
            check_range(self.origin, "origin", 0, self.num_tokens)
            check_range(self.slot, "slot", 0, len(self))
            check_finite(self.weight, "weight")
        elif readable(self.index) and (twice := repeated(self.index)):
            image, token = twice
            raise ValueError(
                f"index holds token {token} of image {image} twice: "
                f"a plan that keeps and drops needs each token at most once"
            )

    def __len__(self) -> int:
        """T, the number of slots."""
        return self.index.shape[1]

    @property
    def merges(self) -> bool:
        """Whether slots are sums of tokens rather than tokens."""
        return self.slot is not None

    def apply(self, x: Tensor) -> Tensor:
        """x (B, N, ...) -> (B, T, ...). Kept tokens are bit-identical copies.

        Sums of a merging plan are taken in float32 at least and come in the dtype of x. ValueError:
        x for another number of images or tokens, an integer x for a plan that merges.
        """
        if not isinstance(x, Tensor) or x.dim() < 2:
            raise ValueError(f"x is {describe(x)} but needs to be a tensor (B, N, ...)")
        if x.shape[1] != self.num_tokens:
            raise ValueError(f"x has {x.shape[1]} tokens but this plan is for {self.num_tokens}")
        batch = self.index.shape[0]
        if x.shape[0] != batch:
            raise ValueError(f"x has {x.shape[0]} images but this plan is for {batch}")
        if self.origin is not None and self.slot is not None and self.weight is not None:
            return self._merge(x, self.origin, self.slot, self.weight)
        if self._full:
            return take(x, self.index)
        empty = (self.index < 0).reshape(*self.index.shape, *[1] * (x.dim() - 2))
        return take(x, self.index.clamp(min=0)).masked_fill_(empty, 0)

    def _merge(self, x: Tensor, origin: Tensor, slot: Tensor, weight: Tensor) -> Tensor:
        """The weighted sums: rows are read once, slot by slot, and added where they belong."""
        check_float(x, "x")
        batch, slots = self.index.shape
        wide = widen(x)                         # weights of half precision would be rounded as well
        if 0 in slot.shape or 0 in x.shape or slot.shape[1] > 4 * self.num_tokens:
            wide = wide.reshape(*x.shape[:2], -1)
            with full_precision(x.device):
                out = self.matrix().to(wide.dtype) @ wide
            return out.to(x.dtype).reshape(batch, slots, *x.shape[2:])
        tokens = wide[..., None] if x.dim() == 2 else wide.flatten(2)
        table = as_rows(tokens)
        if table is None:
            table = tokens.flatten(0, 1), self.num_tokens
        rows, step = table

        numbers = row_numbers(origin, self.num_tokens, step, rows).view_as(origin)
        real = (slot >= 0) & (slot < slots)
        numbers = torch.where(real, numbers, rows.shape[0])         # a row that does not exist
        out = add_rows(rows, numbers, slot, slots, weight)
        return out.to(x.dtype).reshape(batch, slots, *x.shape[2:])

    def source(self) -> Tensor:
        """(B, N) long: the slot that carries each token, -1 where it was dropped. A token that
        entered several slots is shown in the first."""
        batch, slots = self.index.shape
        device = self.index.device
        if self.origin is not None and self.slot is not None and self.weight is not None:
            origin, slot, enters = self.origin, self.slot, self.weight != 0
        else:
            origin, enters = self.index, self.index >= 0
            slot = torch.arange(slots, device=device).expand(batch, -1)
        nowhere = torch.full((batch, self.num_tokens + 1), slots, dtype=torch.long, device=device)
        origin = torch.where(enters, origin, self.num_tokens)
        first = nowhere.scatter_reduce(1, origin, slot, "amin")[:, :-1]
        return first.masked_fill(first == slots, -1)

    def kept(self) -> Tensor:
        """(B, N) bool: the tokens that slots sit at."""
        shape = (self.index.shape[0], self.num_tokens + 1)
        table = torch.zeros(shape, dtype=torch.bool, device=self.index.device)
        index = torch.where(self.index < 0, self.num_tokens, self.index)
        return table.scatter(1, index, True)[:, :-1]

    def then(self, other: "Plan") -> "Plan":
        """This plan, and after it `other`, a plan for this one's slots; its roles stay."""
        check_plan(other, "other")
        if other.num_tokens != len(self):
            raise ValueError(
                f"the second plan is for {other.num_tokens} tokens but the first leaves {len(self)}"
            )
        index = take(self.index, other.index.clamp(min=0)).masked_fill(other.index < 0, -1)
        role, roles, prefix = other.role, other.roles, self.num_prefix
        if not self.merges and not other.merges:
            return Plan(index, self.num_tokens, role=role, roles=roles, num_prefix=prefix)
        first, second = self.matrix(), other.matrix()
        dtype = torch.promote_types(first.dtype, second.dtype)
        with full_precision(first.device):
            both = second.to(dtype) @ first.to(dtype)               # b t2 n: through slots between
        batch, slots, tokens = both.shape
        slot = torch.arange(slots, device=both.device).repeat_interleave(tokens).expand(batch, -1)
        origin = torch.arange(tokens, device=both.device).repeat(slots).expand(batch, -1)
        return Plan(index, self.num_tokens, origin, slot, both.flatten(1), role, roles, prefix)

    def matrix(self) -> Tensor:
        """(B, T, N), float32 at least: the plan as a matrix, `apply(x) = matrix() @ x`."""
        batch, slots = self.index.shape
        if self.origin is not None and self.slot is not None and self.weight is not None:
            origin, slot, weight = self.origin, self.slot, widen(self.weight)
        else:
            slot = torch.arange(slots, device=self.index.device).expand(batch, -1)
            origin, weight = self.index.clamp(min=0), (self.index >= 0).float()
        flat = weight.new_zeros(batch, slots * self.num_tokens)
        flat = flat.scatter_add(1, slot * self.num_tokens + origin, weight)
        return flat.unflatten(1, (slots, self.num_tokens))


def check_plan(plan: Any, name: str) -> None:
    """Raise unless `plan` is a `Plan`."""
    if not isinstance(plan, Plan):
        raise ValueError(f"{name} is {describe(plan)} but needs to be a Plan")


def keep_best(score: Tensor, keep: int | float, name: str = "scores") -> Plan:
    """The plan that keeps the `keep` tokens with the highest scores, in raster order.

    Ties go to the lower index, so the choices are nested in `keep`.

    Args:
        score: (B, N), floating and finite.
        keep: an int or a fraction (`resolve_keep`).
        name: what messages call the score.

    ValueError: keep out of range, scores that are not floating (B, N) or not finite.
    """
    check_scores(score, name)
    num_tokens = score.shape[1]
    index = best(score, resolve_keep(keep, num_tokens))
    plan = object.__new__(Plan)         # places that were just made need no second look
    vars(plan).update(index=index, num_tokens=num_tokens, _full=True)       # the rest: defaults
    return plan


def check_entries(origin: Tensor, slot: Tensor, weight: Tensor, batch: int) -> None:
    """Raise unless origin and slot are long, weight floating, all three of one shape (B, E).

    Args:
        origin: of each entry, the token that it comes from.
        slot: of each entry, the slot that it adds to.
        weight: of each entry, how much of that token.
        batch: B.
    """
    check_index(origin, "origin", "(B, E)", (batch, None))
    check_index(slot, "slot", "(B, E)", origin.shape)
    check_float(weight, "weight")
    if weight.shape != origin.shape:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} but origin has {tuple(origin.shape)}: "
            f"one number an entry"
        )


def keep_all(
    batch: int, num_tokens: int, device: torch.device | None = None, num_prefix: int = 0
) -> Plan:
    """The plan that changes nothing.

    Args:
        batch: B, how many images.
        num_tokens: N.
        device: of the plan's tensors.
        num_prefix: how many of the N are no patches.
    """
    batch, num_tokens = check_int(batch, "batch", 0), check_int(num_tokens, "num_tokens", 0)
    index = torch.arange(num_tokens, device=device).expand(batch, -1)
    return Plan(index, num_tokens, num_prefix=num_prefix)


@dataclass(frozen=True)
class Stage:
    """One cut inside a running decoder.

    Args:
        after: prune when so many layers have run (0: before the first).
        keep: visual tokens that are left afterwards: an int, or a float, the fraction of the number
            there was before the first cut.
        plan: plan(state, keep) -> Plan over the visual tokens that are alive, without empty slots;
            `state` is what `vtlib.vlm.decoder.State` describes.
        watch: layers (1-based) whose transitions the plan reads.

    ValueError where `after` or an entry of `watch` is no integer, and for a `keep` that is none
    whatever the number of tokens.
    """

    after: int
    keep: int | float
    plan: Callable[..., Plan]
    watch: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "after", check_int(self.after, "after"))
        check_keep(self.keep, least=0)
        check_callable(self.plan, "plan", "a function (state, keep) -> Plan")
        object.__setattr__(self, "watch", check_ints(self.watch, "watch"))

    def count(self, num_visual: int) -> int:
        """`keep` as a number of tokens, of num_visual at the start. 0 is allowed here: late layers
        can do without any."""
        return resolve_keep(self.keep, num_visual, least=0)
