"""The selection as a value: which tokens stay, which went into which, and with what weight."""

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from .select import resolve_keep, take


@dataclass(frozen=True)
class Plan:
    """What a reduction of N tokens to T slots does, before it is done.

    index (B, T) long: the token each slot sits at, in output order (for a merged slot the token it grew from); -1 is an empty slot, which
        becomes a row of zeros.
    num_tokens: N, the number of tokens the plan is for; with num_prefix > 0 the first of them are no patches ([CLS], registers).
    origin, slot (B, E) long, weight (B, E) float: None when tokens are only kept or dropped. Otherwise token origin[e] enters slot[e]
        with weight[e]:  out_s = sum over e with slot[e] = s of weight[e] x[origin[e]].  A token may enter several slots.
    role (B, T) long: optional, which part of a method chose the slot; `roles` names the numbers.
    """

    index: Tensor
    num_tokens: int
    origin: Tensor | None = None
    slot: Tensor | None = None
    weight: Tensor | None = None
    role: Tensor | None = None
    roles: tuple[str, ...] = ()
    num_prefix: int = 0

    def __len__(self) -> int:
        """T, the number of slots."""
        return self.index.shape[1]

    @property
    def merges(self) -> bool:
        """Whether slots are sums of tokens rather than tokens."""
        return self.slot is not None

    def apply(self, x: Tensor) -> Tensor:
        """x (B, N, ...) -> (B, T, ...). Kept tokens are bit-identical copies. ValueError when x has another number of tokens."""
        if x.shape[1] != self.num_tokens:
            raise ValueError(f"x has {x.shape[1]} tokens but this plan is for {self.num_tokens}")
        if self.merges and self.slot.shape[1] > 4 * self.num_tokens:
            return (self.matrix().to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])
        if self.merges:
            ones = [1] * (x.dim() - 2)
            parts = take(x, self.origin) * self.weight.reshape(*self.weight.shape, *ones).to(x.dtype)               # b e d
            slot = self.slot.reshape(*self.slot.shape, *ones).expand_as(parts)
            return x.new_zeros(x.shape[0], len(self), *x.shape[2:]).scatter_add(1, slot, parts)
        out = take(x, self.index.clamp(min=0))
        empty = (self.index < 0).reshape(*self.index.shape, *[1] * (x.dim() - 2))
        return out.masked_fill(empty, 0)

    def source(self) -> Tensor:
        """(B, N) long: the slot that carries each token, -1 where it was dropped. A token in several slots is shown in the first it entered."""
        batch, slots = self.index.shape
        origin, slot = (self.origin, self.slot) if self.merges else (self.index, torch.arange(slots, device=self.index.device).expand(batch, -1))
        here = origin >= 0
        if self.merges:
            here = here & (self.weight != 0)
        far = torch.full((batch, self.num_tokens + 1), slots, dtype=torch.long, device=self.index.device)
        first = far.scatter_reduce(1, torch.where(here, origin, self.num_tokens), slot, "amin")[:, :-1]
        return first.masked_fill(first == slots, -1)

    def kept(self) -> Tensor:
        """(B, N) bool: the tokens that slots sit at."""
        table = torch.zeros(self.index.shape[0], self.num_tokens + 1, dtype=torch.bool, device=self.index.device)
        return table.scatter(1, torch.where(self.index < 0, self.num_tokens, self.index), True)[:, :-1]

    def then(self, other: "Plan") -> "Plan":
        """This plan, and after it `other`, a plan for this one's slots. Roles are the later one's."""
        if other.num_tokens != len(self):
            raise ValueError(f"the second plan is for {other.num_tokens} tokens but the first leaves {len(self)}")
        index = take(self.index, other.index.clamp(min=0)).masked_fill(other.index < 0, -1)
        if not self.merges and not other.merges:
            return Plan(index, self.num_tokens, role=other.role, roles=other.roles, num_prefix=self.num_prefix)
        first, second = self.matrix(), other.matrix()
        kind = torch.promote_types(first.dtype, second.dtype)
        both = second.to(kind) @ first.to(kind)                                  # b t2 n: through the slots between
        batch, slots, tokens = both.shape
        slot = torch.arange(slots, device=both.device).repeat_interleave(tokens).expand(batch, -1)
        origin = torch.arange(tokens, device=both.device).repeat(slots).expand(batch, -1)
        return Plan(index, self.num_tokens, origin, slot, both.flatten(1), other.role, other.roles, self.num_prefix)

    def matrix(self) -> Tensor:
        """(B, T, N) float: the plan as a matrix, `apply(x) = matrix() @ x`."""
        batch, slots = self.index.shape
        if self.merges:
            origin, slot, weight = self.origin, self.slot, self.weight
        else:
            slot = torch.arange(slots, device=self.index.device).expand(batch, -1)
            origin, weight = self.index.clamp(min=0), (self.index >= 0).float()
        flat = weight.new_zeros(batch, slots * self.num_tokens).scatter_add(1, slot * self.num_tokens + origin, weight)
        return flat.unflatten(1, (slots, self.num_tokens))


def keep_all(batch: int, num_tokens: int, device=None, num_prefix: int = 0) -> Plan:
    """The plan that changes nothing."""
    return Plan(torch.arange(num_tokens, device=device).expand(batch, -1), num_tokens, num_prefix=num_prefix)


@dataclass(frozen=True)
class Stage:
    """One cut inside a running decoder.

    after: prune when so many layers have run (0: before the first).  keep: visual tokens that are left afterwards, an int, or a float:
    fraction of the number there was before the first cut.  plan(state, keep) -> Plan over the visual tokens that are alive; `state` is
    what `vtlib.vlm.decoder.State` describes.  watch: layers (1-based) whose transitions the plan reads.
    """

    after: int
    keep: int | float
    plan: Callable[..., Plan]
    watch: tuple[int, ...] = ()

    def count(self, num_visual: int) -> int:
        """`keep` as a number of tokens, of num_visual at the start. 0 is allowed here: late layers can do without any."""
        return 0 if self.keep == 0 else resolve_keep(self.keep, num_visual)
