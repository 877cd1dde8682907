"""Merging: tokens that are not kept go into a few that are, each into the one whose key is most like its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .plan import Plan
from .precision import full_precision, widen
from .select import take


def strided(num_tokens: int, count: int, device=None) -> Tensor:
    """(min(count, num_tokens),) long: places 0, step, 2 step, ... with step = max(1, num_tokens // count), cut after `count`."""
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    return torch.arange(0, num_tokens, max(1, num_tokens // count), device=device)[:count]


def merge_to_targets(keys: Tensor, kept: Tensor, num_targets: int, num_prefix: int = 0) -> Plan:
    """The plan [kept tokens | num_targets contextual tokens] in which every token has its place.

        out_j = x_target(j) + mean of x over the followers of target j     (a sum, about twice as long; without followers x)

    keys (B, N, P): what "alike" is measured on. kept (B, d) long: tokens that stay as they are, in output order. The R = N - d
    others are taken in order: every (R // num_targets)-th is a target (`strided`), each of the rest follows the target with the
    largest cosine of keys, ties to the first. Slots d ... d + num_targets - 1 are the targets' in order. num_targets = 0: the
    others are dropped. role 0 "dominant", 1 "contextual". ValueError when there are fewer others than targets, and for shapes
    that do not fit.
    """
    if keys.dim() != 3 or kept.dim() != 2 or len(kept) != len(keys):
        raise ValueError(f"keys {tuple(keys.shape)} and kept {tuple(kept.shape)} need the shapes (B, N, P) and (B, d)")
    batch, num_tokens, _ = keys.shape
    num_kept, device = kept.shape[1], keys.device
    others = num_tokens - num_kept
    if not 0 <= num_targets <= others:
        raise ValueError(f"num_targets={num_targets} but {num_kept} of {num_tokens} tokens are kept: needs 0 ... {others}")
    role = torch.arange(num_kept + num_targets, device=device).expand(batch, -1) >= num_kept
    roles = ("dominant", "contextual")
    if num_targets == 0:
        return Plan(kept, num_tokens, role=role.long(), roles=roles, num_prefix=num_prefix)

    is_kept = torch.zeros(batch, num_tokens, dtype=torch.bool, device=device).scatter(1, kept, True)
    rest = is_kept.int().argsort(dim=1, stable=True)[:, :others]                                # b r, ascending
    place = strided(others, num_targets, device)
    is_target = torch.zeros(others, dtype=torch.int, device=device).scatter(0, place, 1)
    targets, followers = rest[:, place], rest[:, is_target.argsort(stable=True)[: others - num_targets]]            # b c, b f

    unit = F.normalize(widen(keys), dim=-1)
    with full_precision(device):
        cosine = take(unit, followers) @ take(unit, targets).transpose(1, 2)                    # b f c
    nearest = cosine.argmax(dim=2)                                                              # b f
    one = torch.ones_like(nearest, dtype=unit.dtype)
    count = one.new_zeros(batch, num_targets).scatter_add(1, nearest, one)
    index = torch.cat([kept, targets], dim=1)
    slot = torch.cat([torch.arange(index.shape[1], device=device).expand(batch, -1), num_kept + nearest], dim=1)
    weight = torch.cat([torch.ones_like(index, dtype=unit.dtype), 1 / take(count, nearest)], dim=1)
    return Plan(index, num_tokens, torch.cat([index, followers], dim=1), slot, weight, role.long(), roles, num_prefix)
