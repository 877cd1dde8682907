"""Merging: tokens that are not kept go into a few that are, each into the one whose key is most
like its own."""

import torch
from torch import Tensor

from ..nn.checks import check_finite, check_float, check_index, check_int
from .cosine import unit
from .plan import Plan
from .precision import full_precision
from .select import check_once, take


def strided(num_tokens: int, count: int, device: torch.device | None = None) -> Tensor:
    """Places 0, step, 2 step, ... below num_tokens, at most `count` of them, with
    step = max(1, num_tokens // count): (min(count, num_tokens),) long.

    Args:
        num_tokens: how many places there are.
        count: how many are wanted, 1 at least.
        device: of the result.
    """
    num_tokens = check_int(num_tokens, "num_tokens", 0)
    count = check_int(count, "count", 1)
    return torch.arange(0, num_tokens, max(1, num_tokens // count), device=device)[:count]


def merge_to_targets(keys: Tensor, kept: Tensor, num_targets: int, num_prefix: int = 0) -> Plan:
    """The plan [kept tokens | num_targets contextual tokens] in which every token has its place.

        out_j = x_target(j) + mean of x over the followers of target j

    A sum, about twice as long as its parts; a target without followers stays as it is. The
    R = N - d others are taken in order: every (R // num_targets)-th is a target (`strided`), each
    of the rest follows the target with the largest cosine of keys, ties to the first. Slots
    d ... d + num_targets - 1 are the targets' in order. role 0 "dominant", 1 "contextual".

    Args:
        keys: (B, N, P), what "alike" is measured on.
        kept: (B, d) long, tokens that stay as they are, in output order.
        num_targets: how many of the others are targets; 0: the others are dropped.
        num_prefix: of the plan.

    ValueError when there are fewer others than targets, for keys that are not floating or not
    finite, for shapes that do not fit, and, where `Plan` looks at values too, for `kept` that
    repeats a token or names none.
    """
    num_targets = _check_merge(keys, kept, num_targets)
    batch, num_tokens, _ = keys.shape
    num_kept, device = kept.shape[1], keys.device
    others = num_tokens - num_kept
    role = torch.arange(num_kept + num_targets, device=device).expand(batch, -1) >= num_kept
    roles = ("dominant", "contextual")
    if num_targets == 0:
        return Plan(kept, num_tokens, role=role.long(), roles=roles, num_prefix=num_prefix)

    is_kept = torch.zeros(batch, num_tokens, dtype=torch.bool, device=device).scatter(1, kept, True)
    rest = is_kept.int().argsort(dim=1, stable=True)[:, :others]                     # b r, rising
    target_idx = strided(others, num_targets, device)
    is_target = torch.zeros(others, dtype=torch.int, device=device).scatter(0, target_idx, 1)
    follower_idx = is_target.argsort(stable=True)[: others - num_targets]
    targets, followers = rest[:, target_idx], rest[:, follower_idx]                 # b c, b f

    x = unit(keys)
    with full_precision(device):
        cosine = take(x, followers) @ take(x, targets).transpose(1, 2)              # b f c
    nearest = cosine.argmax(dim=2)                                                  # b f
    one = torch.ones_like(nearest, dtype=x.dtype)
    count = one.new_zeros(batch, num_targets).scatter_add(1, nearest, one)
    index = torch.cat([kept, targets], dim=1)
    own = torch.arange(index.shape[1], device=device).expand(batch, -1)
    origin = torch.cat([index, followers], dim=1)
    slot = torch.cat([own, num_kept + nearest], dim=1)
    weight = torch.cat([torch.ones_like(index, dtype=x.dtype), 1 / take(count, nearest)], dim=1)
    return Plan(index, num_tokens, origin, slot, weight, role.long(), roles, num_prefix)


def chained(first: Plan, second: Plan, role: Tensor | None = None) -> Plan:
    """`first.then(second)` for two merging plans in which token n is entry n, and no other: no
    table of all slots and tokens is made.

    Args:
        first: origin is 0 ... N - 1 for each image.
        second: the same, for the slots of the first.
        role: (B, T) of the result; roles are named as the second's.

    ValueError for a plan that does not merge.
    """
    origin, slot, weight = _entries(first, "first")
    _, next_slot, next_weight = _entries(second, "second")
    index = first.index.gather(1, second.index)
    weight = weight * next_weight.gather(1, slot)
    slot = next_slot.gather(1, slot)
    return Plan(index, first.num_tokens, origin, slot, weight, role, second.roles)


def _entries(plan: Plan, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """origin, slot and weight."""
    if plan.origin is None or plan.slot is None or plan.weight is None:
        raise ValueError(f"{name} only keeps and drops: needs a plan that merges")
    return plan.origin, plan.slot, plan.weight


def _check_merge(keys: Tensor, kept: Tensor, num_targets: int) -> int:
    """num_targets as an int. ValueError as `merge_to_targets` says."""
    check_float(keys, "keys")
    check_finite(keys, "keys")
    if keys.dim() != 3:
        raise ValueError(f"keys has shape {tuple(keys.shape)} but needs (B, N, P)")
    check_index(kept, "kept", "(B, d)", (keys.shape[0], None))
    num_tokens, num_kept = keys.shape[1], kept.shape[1]
    check_once(kept, "kept", num_tokens)
    num_targets = check_int(num_targets, "num_targets")
    others = num_tokens - num_kept
    if not 0 <= num_targets <= others:
        raise ValueError(
            f"num_targets={num_targets} but {num_kept} of {num_tokens} tokens are kept: "
            f"needs 0 ... {others}"
        )
    return num_targets
