"""One high-resolution image as several views: the whole image small, and a grid of crops. Pruned
view by view, read as one sequence."""

import torch
from einops import rearrange
from torch import Tensor

from .checks import check_grid
from .plan import Plan, check_plan
from .select import take


def view_order(
    crops: tuple[int, int], grid: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """The sequence LLaVA makes of 1 + R C views with h w patches each, base view first ("spatial"
    merge type, no newline tokens): the base view in raster order, then the crops as one big
    picture, (R h) rows of (C w) patches.

    Args:
        crops: (R, C), crops row by row.
        grid: (h, w), patches of a view.
        device: of the result.

    Returns ((1 + R C) h w,) long: at each place, the number of the token in view order (token i of
    view v is v h w + i).
    """
    rows, cols = check_grid(crops, name="crops")
    h, w = check_grid(grid)
    number = torch.arange((1 + rows * cols) * h * w, device=device)
    big = rearrange(number[h * w :], "(R C h w) -> (R h C w)", R=rows, C=cols, h=h)
    return torch.cat([number[: h * w], big])


def join_views(plan: Plan, crops: tuple[int, int], grid: tuple[int, int]) -> Plan:
    """A plan made view by view, as one plan for the whole image, slots in `view_order`'s order.

    Args:
        plan: for B V views of N = h w tokens, V = 1 + R C, the views of an image one after the
            other; it must only keep and drop.
        crops: (R, C).
        grid: (h, w).

    Returns a plan for B images of V N tokens, "(b v) n d -> b (v n) d", with V T slots. ValueError
    when the views do not fit.
    """
    check_plan(plan, "plan")
    rows, cols = check_grid(crops, name="crops")
    h, w = check_grid(grid)
    views = 1 + rows * cols
    if plan.merges or plan.num_prefix:
        raise ValueError("plan: views are joined for plans of patches that only keep and drop")
    if plan.num_tokens != h * w or len(plan.index) % views:
        raise ValueError(
            f"plan is for {len(plan.index)} views of {plan.num_tokens} tokens but "
            f"crops={(rows, cols)} and grid={(h, w)} need a multiple of {views} views of "
            f"{h * w}"
        )
    order = view_order(crops, grid, plan.index.device)
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    first = torch.arange(views, device=order.device)[:, None] * plan.num_tokens      # v 1
    number = rearrange(plan.index, "(b v) t -> b v t", v=views) + first
    number = rearrange(number, "b v t -> b (v t)")
    by_place = place[number].sort(dim=1)
    role = plan.role
    if role is not None:
        role = take(rearrange(role, "(b v) t -> b (v t)", v=views), by_place.indices)
    return Plan(order[by_place.values], views * plan.num_tokens, role=role, roles=plan.roles)
