"""What a plan does to the patches of a picture, as a picture."""

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_int, check_ints
from vtlib.teach.figures import PALETTE
from vtlib.teach.pictures import image, picture_row, pixels_of
from vtlib.tokens import Plan
from vtlib.tokens.checks import check_mask

COLOURS = ("auto", "kept", "slots", "roles")
PATCH = 16  # pixels of a painted patch at least, so that a frame of one or two pixels is fine
GREYED = 0.55, 0.33  # contrast and darkest grey of a dropped patch: dark enough to be recognised
SLOT_ORDER = (4, 2, 3, 1, 7, 5)  # neighbours look different; no black, no blue, sky blue last


def _palette(order: Sequence[int]) -> Tensor:
    """(len(order), 3)"""
    colours = [to_rgb(PALETTE[k % len(PALETTE)]) for k in order]
    return torch.tensor(colours, dtype=torch.float32, device="cpu")


def _colour(plan: Plan, colour: str) -> str:
    if colour not in COLOURS:
        raise ValueError(f"colour={colour!r}: needs one of {', '.join(COLOURS)}")
    if colour == "roles" and plan.role is None:
        raise ValueError("colour='roles': this plan has no roles")
    if colour != "auto":
        return colour
    if plan.merges:
        return "slots"
    return "roles" if plan.role is not None and len(plan.roles) <= 4 else "kept"


def _check_grid(plan: Plan, grid: tuple[int, int]) -> tuple[int, int]:
    h, w = check_ints(grid, "grid", 1, length=2)
    patches = plan.num_tokens - plan.num_prefix
    if patches != h * w:
        raise ValueError(f"the plan is for {patches} patches but the grid {h} x {w} has {h * w}")
    return h, w


def _patches(picture: Tensor, h: int, w: int) -> Tensor:
    """(n, 3, p, q): the patches of the picture, enlarged to at least 16 pixels a patch."""
    pixels = pixels_of(picture, "picture")
    factor = max(1, -(-PATCH * h // pixels.shape[1]))
    pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    p, q = pixels.shape[1] // h, pixels.shape[2] // w
    pixels = pixels[:, : p * h, : q * w]
    return rearrange(pixels, "c (h p) (w q) -> (h w) c p q", h=h, w=w)


def _slots(source: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each patch shares its slot with another (n,), and the slot's colour (n, 3)."""
    slot = source.clamp(min=0)
    members = source[source >= 0].bincount(minlength=int(slot.max()) + 1)
    shared = (source >= 0) & (members[slot] > 1)
    colours = _palette(SLOT_ORDER)
    return shared, colours[slot % len(colours)]


def _role_colours(plan: Plan, row: int) -> Tensor:
    """(n, 3): the colour of each patch's role."""
    index, of_slot = plan.index[row].cpu(), plan.role[row].cpu()
    role = torch.zeros(plan.num_tokens, dtype=torch.long, device="cpu")
    role[index[index >= 0]] = of_slot[index >= 0]
    return _palette(range(int(role.max()) + 1))[role[plan.num_prefix :]]


def _edge(height: int, width: int) -> Tensor:
    """(height, width) bool: the outer two rows and columns."""
    edge = torch.zeros(height, width, dtype=torch.bool, device="cpu")
    edge[:2] = True
    edge[-2:] = True
    edge[:, :2] = True
    edge[:, -2:] = True
    return edge


def paint(
    picture: Tensor,
    plan: Plan,
    grid: tuple[int, int],
    row: int = 0,
    colour: str = "auto",
    order: Sequence[int] | None = None,
) -> Tensor:
    """A picture with what `plan` does to its patches: (3, H', W') in [0, 1], at least 16 a patch.

    Kept patches are in colour, in a frame; dropped ones in light greys. Patches that went into a
    slot together carry the slot's colour, brighter where the slot sits. ValueError when plan and
    grid do not fit, for an unknown colour and for "roles" of a plan without.

    Args:
        picture: (3, H, W) in [0, 1], or uint8.
        plan: for the patches of that grid, prefix tokens in front.
        grid: (h, w).
        row: which picture of the plan's batch.
        colour: "kept" (blue frames), "slots", "roles" (frame by role), or "auto".
        order: frame these patches only (a subset of steps); default all kept.
    """
    if not isinstance(plan, Plan):
        raise ValueError(f"plan is a {type(plan).__name__}: needs a vtlib.tokens.Plan")
    colour = _colour(plan, colour)
    h, w = _check_grid(plan, grid)
    row = check_int(row, "row", 0, len(plan.index) - 1)
    pixels = _patches(picture, h, w)                                                     # n 3 p q
    source, kept = (t[row, plan.num_prefix :].cpu() for t in (plan.source(), plan.kept()))     # n
    if order is not None:
        shown = [check_int(patch, "order", 0, h * w - 1) for patch in check_ints(order, "order")]
        shown = torch.tensor(shown, dtype=torch.long, device="cpu")
        kept = torch.zeros_like(kept).scatter(0, shown, True)
        source = torch.where(kept, source, -1)
    grey = pixels.mean(dim=1, keepdim=True).expand_as(pixels)
    pale = GREYED[0] * grey + GREYED[1]
    out = torch.where((source >= 0)[:, None, None, None], pixels, pale)
    frame = _palette([0]).expand(h * w, 3)
    if colour == "roles":
        frame = _role_colours(plan, row)
    elif colour == "slots":
        shared, tint = _slots(source)
        mixed = 0.45 * grey + 0.55 * tint[:, :, None, None]  # the picture's colours would mix in
        out = torch.where((shared & ~kept)[:, None, None, None], mixed, out)
        frame = torch.where(shared[:, None], tint, frame)
    framed = kept[:, None, None, None] & _edge(*pixels.shape[2:])
    out = torch.where(framed, frame[:, :, None, None], out)
    return rearrange(out, "(h w) c p q -> c (h p) (w q)", h=h, w=w)


def draw(
    ax,
    picture: Tensor,
    plan: Plan,
    grid: tuple[int, int],
    row: int = 0,
    colour: str = "auto",
    title: str | None = None,
    order: Sequence[int] | None = None,
):
    """`paint` on `ax`, with the roles' names under it where they colour the frames.

    Returns matplotlib's AxesImage. Errors as `paint`.

    Args:
        ax: matplotlib Axes.
        picture: (3, H, W) in [0, 1], or uint8.
        plan: for the patches of that grid, prefix tokens in front.
        grid: (h, w).
        row: which picture of the plan's batch.
        colour: "kept" (blue frames), "slots", "roles" (frame by role), or "auto".
        title: a line above it.
        order: frame these patches only (a subset of steps); default all kept.
    """
    drawn = image(ax, paint(picture, plan, grid, row, colour, order), title)
    if _colour(plan, colour) == "roles":
        role = plan.role[row][plan.index[row] >= 0]
        count = role.bincount(minlength=len(plan.roles)).tolist()
        legend(ax, [f"{name}: {count[k]}" for k, name in enumerate(plan.roles)])
    return drawn


def legend(ax, names: Sequence[str]) -> None:
    """Names in the palette's colours in one line under the picture on `ax`."""
    look = {"fontsize": 7.5, "ha": "center", "va": "top", "transform": ax.transAxes}
    for k, name in enumerate(names):
        ax.text((k + 0.5) / len(names), -0.02, name, color=PALETTE[k], **look)


def outline(ax, patches: Tensor, grid: tuple[int, int], color: str = PALETTE[1]) -> None:
    """A line around some patches of the picture that fills `ax`, such as those of an object.

    ValueError for patches that do not fit the grid.

    Args:
        ax: matplotlib Axes with the picture.
        patches: (N,) bool, N = h w.
        grid: (h, w).
        color: of the line.
    """
    h, w = check_ints(grid, "grid", 1, length=2)
    check_mask(patches, "patches", (h * w,))
    height, width = ax.images[0].get_array().shape[:2]
    inside = torch.zeros(h + 2, w + 2, dtype=torch.bool, device="cpu")
    inside[1:-1, 1:-1] = patches.cpu().view(h, w)
    lines = []
    for row, col in (inside[1:, 1:-1] != inside[:-1, 1:-1]).nonzero().tolist():
        lines.append([(col, row), (col + 1, row)])
    for row, col in (inside[1:-1, 1:] != inside[1:-1, :-1]).nonzero().tolist():
        lines.append([(col, row), (col, row + 1)])
    scale = torch.tensor([width / w, height / h], device="cpu")
    ends = torch.tensor(lines, device="cpu").view(-1, 2, 2) * scale - 0.5
    look = {"colors": color, "linewidths": 2, "capstyle": "projecting"}
    ax.add_collection(LineCollection(ends.tolist(), **look), autolim=False)


def plan_row(
    picture: Tensor,
    plans: Mapping[str, Plan | None],
    grid: tuple[int, int],
    row: int = 0,
    colour: str = "auto",
    around: Tensor | None = None,
    **options,
) -> Figure:
    """One picture as several plans leave it, side by side -> Figure, for `teach.show`.

    Args:
        picture: (3, H, W) in [0, 1], or uint8.
        plans: {title: plan}; None in place of a plan is the picture itself.
        grid: (h, w), of its patches.
        row: which picture of the plans' batch.
        colour: see `paint`.
        around: (N,) bool, patches with an `outline` in each picture.
        options: as for `teach.picture_row`: cols, size, title.
    """
    shown = []
    for plan in plans.values():
        shown.append(picture if plan is None else paint(picture, plan, grid, row, colour))
    fig = picture_row(shown, list(plans), **options)
    for ax in fig.axes if around is not None else ():
        outline(ax, around, grid)
    return fig


def reach(plan: Plan, grid: tuple[int, int]) -> Tensor:
    """(B,): how far a patch is from the nearest kept one, in patches, mean over all patches.

    Small where every corner of the picture is served. Of merged slots the seeds count, empty slots
    don't. ValueError for a picture that keeps nothing.

    Args:
        plan: for the patches of that grid, prefix tokens in front.
        grid: (h, w).
    """
    h, w = _check_grid(plan, grid)
    kept = plan.kept()[:, plan.num_prefix :]                                             # b n
    if not kept.any(dim=1).all():
        raise ValueError("plan has a picture that keeps no patch")
    place = torch.cartesian_prod(torch.arange(h), torch.arange(w)).to(kept.device, torch.float32)
    apart = torch.cdist(place, place)                                                    # n n
    nearest = apart.masked_fill(~kept[:, None], torch.inf).amin(dim=2)                   # b n
    return nearest.mean(dim=1)


def with_noise(
    images: Tensor, count: int, grid: tuple[int, int], seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Pictures with `count` patches of noise in each, at places drawn by chance: (the pictures,
    where the noise is (B, N) bool).

    Args:
        images: (B, 3, H, W) in [0, 1].
        count: patches of noise in each picture.
        grid: (h, w), whose patches fill the picture.
        seed: of the places and of the noise.
    """
    h, w = check_ints(grid, "grid", 1, length=2)
    count = check_int(count, "count", 0, h * w)
    p, q = images.shape[2] // h, images.shape[3] // w
    if (p * h, q * w) != tuple(images.shape[2:]):
        raise ValueError(f"grid={(h, w)} does not fit pictures of {tuple(images.shape[2:])} pixels")
    generator = torch.Generator().manual_seed(seed)
    spots = torch.rand(len(images), h * w, generator=generator).argsort(dim=1)[:, :count]
    is_noise = torch.zeros(len(images), h * w).scatter(1, spots, 1).bool()
    noise = torch.rand(images.shape, generator=generator).to(images)
    painted = is_noise.view(-1, 1, h, w).repeat_interleave(p, 2).repeat_interleave(q, 3)
    return torch.where(painted.to(images.device), noise, images), is_noise.to(images.device)
