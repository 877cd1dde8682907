"""ZOO-Prune - Training-Free Token Pruning via Zeroth-Order Gradient Estimation in Vision-Language
Models (Kim, Zhang, Liu, Jung, Lee, Hong, CVPR 2026, arXiv 2509.24837).

The idea: a token matters if the output moves when the token is nudged; attention does not measure
that, and back-propagation through a language model is dear. So nudge where it is cheap, at the
projector's input: m random directions, a step forwards and a step backwards, no gradient. Tokens
are then chosen one at a time by sensitivity x distance to what is already chosen.

    S_i = 1/m sum_j |M(x_i + h u_j) - M(x_i - h u_j)| / (2h)    sensitivity
                                            (S(i), prop. 3.1; |u_j| = 1; -> E|J(x_i) u|)
    sqrt(E|Ju|^2) = |J|_F / sqrt(d_v), without sampling         jacobian_norm
                                            (ours, to compare with; one Jacobian a token)
    M with truncated SVDs of its matrices                       low_rank
                                            (LLaVA-NeXT file: rank 128)
    w = (S - min) / (max - min + 1e-8)                          importance
    argmax of w_i min over chosen j of (1 - cos(z_i, z_j))      sads, select
                                            (SADS; the first is argmax w)
    the same inside each view, and all newline tokens           select_views, anyres_layout

Sensitivity is measured before the projector, diversity after it. A linear projector has the same J
everywhere: S is then the same for all tokens up to rounding, and min-max normalisation blows the
rounding up to weights between 0 and 1.

Different from the official code (AIM-SKKU/ZOO-Prune): the directions come from a `generator` or are
given (there: no seed); everything is computed in float32 or wider (there the perturbed inputs are
cast to float16, where a step of h/sqrt(d_v) a coordinate is near the resolution and the result is
partly rounding noise); a running minimum instead of a scan over all chosen tokens.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev, vmap

from ..nn.checks import (
    check_callable,
    check_finite,
    check_float,
    check_generator,
    check_index,
    check_int,
    check_ints,
    check_number,
    check_tokens,
)
from ..tokens import Plan, VisionOutputs, resolve_keep, take
from ..tokens.checks import check_grid, check_scores, is_fraction
from ..tokens.greedy import greedy_maxmin
from ..tokens.precision import full_precision, widen
from ..tokens.vision import check_vision
from .method import Method

PAPER = "zooprune"
Projector = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------- score
def _in_dtype(project: Projector, dtype: torch.dtype) -> Projector:
    """The projector with its parameters in dtype, whatever they are stored in; other callables as
    they are."""
    if not isinstance(project, nn.Module):
        return project
    parts = (*project.named_parameters(), *project.named_buffers())
    state = {name: p.to(dtype) if p.is_floating_point() else p for name, p in parts}
    return lambda x: functional_call(project, state, x)


def _directions(
    x: Tensor, num_directions: int, given: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """(m, d_v) of length 1, on the device of x (B, N, d_v) and in its dtype: given or Gaussian."""
    dim = x.shape[2]
    check_generator(generator, optional=True)
    if given is None:
        drawn_on = x.device if generator is None else generator.device
        shape = (num_directions, dim)
        given = torch.randn(shape, generator=generator, device=drawn_on, dtype=x.dtype)
    else:
        check_float(given, "directions")
        check_finite(given, "directions")
        if given.dim() != 2 or given.shape[1] != dim or not len(given):
            raise ValueError(
                f"directions has shape {tuple(given.shape)} but needs (m, {dim}) with m >= 1"
            )
    given = given.to(x)
    return given / (given.norm(dim=1, keepdim=True) + 1e-12)


@torch.no_grad()
def sensitivity(
    features: Tensor,
    project: Projector,
    num_directions: int = 64,
    step: float = 0.01,
    directions: Tensor | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 8,
) -> Tensor:
    """S_i = 1/m sum_j |M(x_i + h u_j) - M(x_i - h u_j)|_2 / (2h): mean length of the projector's
    answer to nudges.

    One set of directions serves all tokens and all images or views. 2 m B N projector rows are
    computed, 2 chunk B N are in memory. No gradient.

    Args:
        features: (B, N, d_v): the projector's input, unnormalised.
        project: M, (..., d_v) -> (..., D).
        num_directions: m, where none are given.
        step: h, absolute, in the units of the features.
        directions: (m, d_v), of any length: each is divided by its norm. None: Gaussian ones.
        generator: of the Gaussian ones.
        chunk: directions computed together.

    Returns (B, N), float32 or wider, whatever the precision around it. ValueError: counts below 1,
    step <= 0, shapes that do not fit, features that are not floating or not finite.
    """
    check_tokens(features, name="features")
    check_finite(features, "features")
    num_directions = check_int(num_directions, "num_directions", least=1)
    chunk = check_int(chunk, "chunk", least=1)
    step = check_number(step, "step", above=0)
    check_callable(project, "project", "a function of (..., d_v)")
    x = widen(features)
    unit = _directions(x, num_directions, directions, generator)    # m d
    total = x.new_zeros(x.shape[:2])
    with full_precision(x.device):
        project = _in_dtype(project, x.dtype)
        for u in unit.split(chunk):
            forwards = project(x[:, :, None] + step * u)
            backwards = project(x[:, :, None] - step * u)
            length = (forwards - backwards).norm(dim=-1)            # b n chunk
            total = total + (length / (2 * step)).sum(dim=2)
    return total / len(unit)


@torch.no_grad()
def jacobian_norm(features: Tensor, project: Projector) -> Tensor:
    """|J(x_i)|_F / sqrt(d_v), J = dM/dx: the root mean square of |J u| over all unit u.

    features (B, N, d_v) -> (B, N). Exact, and never below the mean of |J u|, which `sensitivity`
    estimates.
    """
    check_tokens(features, name="features")
    check_finite(features, "features")
    check_callable(project, "project", "a function of (..., d_v)")
    x = widen(features)
    with full_precision(x.device):
        project = _in_dtype(project, x.dtype)
        narrows = project(x[:1, :1]).shape[-1] < x.shape[2]         # the fewer, the cheaper
        slopes = jacrev(project) if narrows else jacfwd(project)
        jacobian = vmap(slopes, chunk_size=64)(x.flatten(0, 1))
    norm = jacobian.flatten(1).norm(dim=1)                          # of (b n) d_l d_v
    return (norm / x.shape[2] ** 0.5).unflatten(0, x.shape[:2])


def low_rank(project: nn.Module, rank: int | tuple[int, ...] = 128) -> nn.Module:
    """A copy of the projector with every Linear W = U S V^T replaced by two: V_k^T without bias,
    then U_k S_k with W's bias.

    rank: k for all, or one for each Linear in order. Meant for `sensitivity` only. ValueError for
    ranks above min(in, out).
    """
    if not isinstance(project, nn.Module):
        raise ValueError(
            f"project is a {type(project).__name__} but a truncated SVD needs an nn.Module with "
            f"Linear layers"
        )
    modules = project.named_modules()
    names = [name for name, module in modules if isinstance(module, nn.Linear)]
    if isinstance(rank, Sequence):
        ranks = check_ints(rank, "rank")
    else:
        ranks = (check_int(rank, "rank"),) * len(names)
    if not names or len(ranks) != len(names):
        raise ValueError(
            f"rank={rank!r} must be an int, or one for each of the projector's {len(names)} Linear "
            f"layers"
        )
    out = copy.deepcopy(project)
    for name, k in zip(names, ranks, strict=True):
        linear = out.get_submodule(name)
        full = min(linear.weight.shape)
        if not 1 <= k <= full:
            raise ValueError(
                f"rank={k} does not lie in 1 ... {full}, the full rank of layer {name!r}"
            )
        factors = _factors(linear, k)
        if not name:                                                # the projector is one Linear
            return factors
        parent, _, child = name.rpartition(".")
        setattr(out.get_submodule(parent), child, factors)
    return out


@torch.no_grad()
def _factors(linear: nn.Linear, k: int) -> nn.Sequential:
    """The two layers of rank k in place of one."""
    weight, bias = linear.weight, linear.bias
    u, s, v = torch.linalg.svd(widen(weight), full_matrices=False)
    like = {"device": weight.device, "dtype": weight.dtype}
    first = nn.Linear(linear.in_features, k, bias=False, **like)
    second = nn.Linear(k, linear.out_features, bias=bias is not None, **like)
    first.weight.copy_(v[:k])
    second.weight.copy_(u[:, :k] * s[:k])
    if bias is not None:
        second.bias.copy_(bias)
    return nn.Sequential(first, second)


# ---------------------------------------------------------------- select
def importance(sensitivity: Tensor) -> Tensor:
    """w = (S - min) / (max - min + 1e-8) over the last axis; 1 everywhere when all are equal. The
    least sensitive: 0. float32 at least."""
    check_float(sensitivity, "sensitivity")
    if not sensitivity.dim() or 0 in sensitivity.shape:
        raise ValueError(f"sensitivity has shape {tuple(sensitivity.shape)} but needs (..., N)")
    check_finite(sensitivity, "sensitivity")
    sensitivity = widen(sensitivity)
    low = sensitivity.amin(dim=-1, keepdim=True)
    high = sensitivity.amax(dim=-1, keepdim=True)
    return torch.where(high > low, (sensitivity - low) / (high - low + 1e-8), 1)


def _count(keep: int | float, num_tokens: int) -> int:
    """K = int(ratio N) for a float, at least 1: the release's rule."""
    count = resolve_keep(keep, num_tokens)
    return max(1, int(keep * num_tokens)) if is_fraction(keep) else count


def sads(sensitivity: Tensor, tokens: Tensor, keep: int | float) -> tuple[Tensor, Tensor]:
    """Sensitivity-aware diverse selection: argmax w, then again and again argmax of
    w_i min over chosen j of (1 - cos(z_i, z_j)).

    Args:
        sensitivity: (B, N).
        tokens: (B, N, D), projected: z.
        keep: T, an int, or a fraction, which is rounded down.

    Returns index (B, T) in order of choice, gains (B, T) (w for the first). ValueError: keep out of
    range, shapes that do not fit, values that are not floating or not finite.
    """
    check_tokens(tokens)
    check_scores(sensitivity, "sensitivity", tuple(tokens.shape[:2]))
    count = _count(keep, tokens.shape[1])
    return greedy_maxmin(tokens, count, importance(widen(sensitivity)), first="weight")


def select(sensitivity: Tensor, tokens: Tensor, keep: int | float) -> Plan:
    """`sads` as a plan, in raster order.

    Args:
        sensitivity: as in `sads`.
        tokens: as in `sads`.
        keep: as in `sads`; a fraction is rounded down, int(keep N).
    """
    index, _ = sads(sensitivity, tokens, keep)
    return Plan(index.sort(dim=1).values, tokens.shape[1])


def anyres_layout(
    grid: tuple[int, int], tiles: tuple[int, int], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Where LLaVA-NeXT puts a base view and R x S tiles, each of h x w tokens, in one sequence.

    The base view in raster order, then the mosaic of the tiles row by row, a newline token at the
    end of each of its R h rows.

    Args:
        grid: (h, w).
        tiles: (R, S).
        device: of the result.

    Returns views (1 + R S, h w) long, newlines (R h,) long: token indices.
    """
    h, w = check_grid(grid)
    r, s = check_grid(tiles, name="tiles")
    base = torch.arange(h * w, device=device)
    mosaic = h * w + torch.arange(r * h * (s * w + 1), device=device).view(r * h, s * w + 1)
    tiled = mosaic[:, :-1].reshape(r, h, s, w).transpose(1, 2).reshape(r * s, h * w)
    return torch.cat([base[None], tiled]), mosaic[:, -1]


def sads_views(
    sensitivity: Tensor, tokens: Tensor, views: Tensor, keep: int | float
) -> tuple[Tensor, Tensor]:
    """`sads` inside each view, with equal budgets and each view's own normalisation.

    Args:
        sensitivity: (B, N). That of tokens outside the views may be anything (-inf at newlines).
        tokens: (B, N, D), projected.
        views: (V, M) long: the tokens of each view, -1 fills shorter ones.
        keep: tokens of all views together (or fraction): k = int(keep / V) in each view, so a
            remainder is lost, as in the release.

    Returns index, gains (B, V, k) in order of choice.
    """
    check_tokens(tokens)
    check_float(sensitivity, "sensitivity")
    if sensitivity.shape != tokens.shape[:2]:
        raise ValueError(
            f"sensitivity has shape {tuple(sensitivity.shape)} but the tokens need "
            f"{tuple(tokens.shape[:2])}"
        )
    check_index(views, "views", "(V, M)", stop=tokens.shape[1], least=-1)
    k = _count_each(views, keep)
    valid = views >= 0
    flat = views.clamp(min=0)
    s = widen(sensitivity)[:, flat]                                 # b v m
    lowest = s.masked_fill(~valid, torch.inf).amin(dim=-1, keepdim=True)
    s = torch.where(valid, s, lowest)
    check_finite(s, "sensitivity")
    # filling has distance 1 as a zero vector, and weight -1: it comes behind every real token
    weight = importance(s).masked_fill(~valid, -1)
    z = tokens[:, flat].masked_fill(~valid[..., None], 0)           # b v m d
    order, gains = greedy_maxmin(z.flatten(0, 1), k, weight.flatten(0, 1), first="weight")
    order, gains = order.unflatten(0, s.shape[:2]), gains.unflatten(0, s.shape[:2])     # b v k
    return views.expand(len(tokens), -1, -1).gather(2, order), gains


def _count_each(views: Tensor, keep: int | float) -> int:
    """k, the tokens that each view keeps, checked against the shortest view."""
    if not views.numel():
        raise ValueError(f"views is empty: shape {tuple(views.shape)}")
    total, shortest = views.numel(), views.shape[1]
    if views.device.type != "meta":
        sizes = (views >= 0).sum(dim=1)
        total, shortest = int(sizes.sum()), int(sizes.amin())
    k = _count(keep, total) // len(views)
    if not 1 <= k <= shortest:
        raise ValueError(
            f"keep={keep!r} is {k} for each of {len(views)} views; it must lie in 1 ... {shortest}"
        )
    return k


def select_views(
    sensitivity: Tensor,
    tokens: Tensor,
    views: Tensor,
    keep: int | float,
    newlines: Tensor | None = None,
) -> Plan:
    """`sads_views` as a plan, ascending; newline tokens are kept in addition.

    V int(keep / V) + L slots: the real count exceeds the nominal one, as in the release.

    Args:
        sensitivity: (B, N).
        tokens: (B, N, D), projected.
        views: (V, M) long, see `sads_views`.
        keep: tokens of all views together, or a fraction.
        newlines: (L,) long.

    `Plan.role` is the view, or newline.
    """
    index, _ = sads_views(sensitivity, tokens, views, keep)
    batch, num_views, k = index.shape
    view = torch.arange(num_views, device=index.device)
    role = view.repeat_interleave(k).expand(batch, -1)
    names = tuple(f"view {v}" for v in range(num_views))
    index = index.flatten(1)
    if newlines is not None:
        check_index(newlines, "newlines", "(L,)", stop=tokens.shape[1])
        newlines = newlines.expand(batch, -1)
        index = torch.cat([index, newlines], dim=1)
        role = torch.cat([role, torch.full_like(newlines, num_views)], dim=1)
        names = (*names, "newline")
    index, order = index.sort(dim=1)
    return Plan(index, tokens.shape[1], role=take(role, order), roles=names)


def prune(
    vision: VisionOutputs,
    keep: int | float,
    num_directions: int = 64,
    step: float = 0.01,
    directions: Tensor | None = None,
    generator: torch.Generator | None = None,
    rank: int | tuple[int, ...] | None = None,
    chunk: int = 8,
) -> Plan:
    """The plan for `vision.tokens`: `sensitivity` of its features, then `select`.

    A batch of views is pruned view by view with one set of directions and the same number of tokens
    each. Without a generator the plan varies a little from run to run.

    Args:
        vision: what the encoder made, with its projector.
        keep: T, an int, or a fraction, which is rounded down.
        num_directions: m, see `sensitivity`.
        step: h.
        directions: (m, d_v) in place of Gaussian ones.
        generator: of the Gaussian ones.
        rank: measure on the `low_rank` projector.
        chunk: directions computed together.

    ValueError for keep out of range and what `sensitivity` and `low_rank` refuse.
    """
    check_vision(vision)
    count = _count(keep, vision.features.shape[1])
    project = vision.project if rank is None else low_rank(vision.project, rank)
    s = sensitivity(vision.features, project, num_directions, step, directions, generator, chunk)
    return select(s, vision.tokens, count)


METHOD = Method("zooprune", "ZOO-Prune", paper=PAPER, prune=prune, space="tokens")
