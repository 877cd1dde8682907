"""ZOO-Prune - Training-Free Token Pruning via Zeroth-Order Gradient Estimation in Vision-Language Models (Kim, Zhang, Liu, Jung,
Lee, Hong, CVPR 2026, arXiv 2509.24837).

The idea: a token matters if the output moves when the token is nudged; attention does not measure that, and back-propagation
through a language model is dear. So nudge where it is cheap, at the projector's input: m random directions, a step forwards and a
step backwards, no gradient. Tokens are then chosen one at a time by sensitivity x distance to what is already chosen.

    S_i = 1/m sum_j |M(x_i + h u_j) - M(x_i - h u_j)| / (2h)      sensitivity      (S(i), prop. 3.1; |u_j| = 1; -> E|J(x_i) u|)
    S_i without sampling: sqrt(E|Ju|^2) = |J|_F / sqrt(d_v)       jacobian_norm    (ours, to compare with; one Jacobian a token)
    M with truncated SVDs of its matrices                         low_rank         (LLaVA-NeXT file: rank 128)
    w = (S - min) / (max - min + 1e-8)                            importance
    argmax of w_i min over chosen j of (1 - cos(z_i, z_j))        sads, select     (SADS; the first is argmax w)
    the same inside each view, and all newline tokens             select_views, anyres_layout

Sensitivity is measured before the projector, diversity after it. A linear projector has the same J everywhere: S is then the same
for all tokens up to rounding, and min-max normalisation blows the rounding up to weights between 0 and 1.
Different from the official code (AIM-SKKU/ZOO-Prune): the directions come from a `generator` or are given (there: no seed);
everything is computed in float32 or wider (there the perturbed inputs are cast to float16, where a step of h/sqrt(d_v) a
coordinate is near the resolution and the result is partly rounding noise); a running minimum instead of a scan over all chosen
tokens.
"""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, vmap

from ..nn import check_tokens
from ..tokens import Plan, resolve_keep, take
from ..tokens.greedy import greedy_maxmin
from ..tokens.precision import full_precision, widen
from .method import Method

PAPER = "zooprune"


# ------------------------------------------------------------------------------------------------ score
def _in_dtype(project, dtype):
    """The projector with its parameters in dtype, whatever they are stored in; other callables as they are."""
    if not isinstance(project, nn.Module):
        return project
    parts = (*project.named_parameters(), *project.named_buffers())
    state = {name: p.to(dtype) if p.is_floating_point() else p for name, p in parts}
    return lambda x: functional_call(project, state, x)


@torch.no_grad()
def sensitivity(features: Tensor, project, num_directions: int = 64, step: float = 0.01, directions: Tensor | None = None,
                generator: torch.Generator | None = None, chunk: int = 8) -> Tensor:
    """S_i = 1/m sum_j |M(x_i + h u_j) - M(x_i - h u_j)|_2 / (2h): mean length of the projector's answer to nudges.

    features (B, N, d_v): the projector's input, unnormalised. project: (..., d_v) -> (..., D), M. num_directions m; step h,
    absolute, in the units of the features. One set of directions serves all tokens and all images or views: given ones (m, d_v),
    of any length, or Gaussian ones from `generator`; each is divided by its norm. chunk: directions computed together:
    2 m B N projector rows are computed, 2 chunk B N are in memory. -> (B, N), float32 or wider, whatever the precision around it.
    No gradient. ValueError: counts below 1, step <= 0, shapes that do not fit.
    """
    check_tokens(features, name="features")
    for name, value in (("num_directions", num_directions), ("chunk", chunk)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be an int >= 1")
    if not step > 0:
        raise ValueError(f"step={step} must be positive")
    x = widen(features)
    if directions is None:
        directions = torch.randn(num_directions, x.shape[2], generator=generator, device=x.device, dtype=x.dtype)
    elif directions.dim() != 2 or directions.shape[1] != x.shape[2] or not len(directions):
        raise ValueError(f"directions has shape {tuple(directions.shape)} but needs (m, {x.shape[2]}) with m >= 1")
    unit = directions.to(x)
    unit = unit / (unit.norm(dim=1, keepdim=True) + 1e-12)                                      # m d
    total = x.new_zeros(x.shape[:2])
    with full_precision(x.device):
        project = _in_dtype(project, x.dtype)
        for u in unit.split(chunk):
            move = project(x[:, :, None] + step * u) - project(x[:, :, None] - step * u)        # b n chunk d_l
            total = total + (move.norm(dim=-1) / (2 * step)).sum(dim=2)
    return total / len(unit)


@torch.no_grad()
def jacobian_norm(features: Tensor, project) -> Tensor:
    """|J(x_i)|_F / sqrt(d_v), J = dM/dx: the root mean square of |J u| over all unit u. features (B, N, d_v) -> (B, N).

    Exact, and never below the mean of |J u|, which `sensitivity` estimates.
    """
    check_tokens(features, name="features")
    x = widen(features)
    with full_precision(x.device):
        jacobian = vmap(jacfwd(_in_dtype(project, x.dtype)), chunk_size=64)(x.flatten(0, 1))    # (b n) d_l d_v
    return (jacobian.flatten(1).norm(dim=1) / x.shape[2] ** 0.5).unflatten(0, x.shape[:2])


def low_rank(project: nn.Module, rank: int | tuple[int, ...] = 128) -> nn.Module:
    """A copy of the projector with every Linear W = U S V^T replaced by two: V_k^T without bias, then U_k S_k with W's bias.

    rank: k for all, or one for each Linear in order. Meant for `sensitivity` only. ValueError for ranks above min(in, out).
    """
    if not isinstance(project, nn.Module):
        raise ValueError(f"project is a {type(project).__name__} but a truncated SVD needs an nn.Module with Linear layers")
    names = [name for name, module in project.named_modules() if isinstance(module, nn.Linear)]
    ranks = (rank,) * len(names) if isinstance(rank, int) else tuple(rank)
    if not names or len(ranks) != len(names):
        raise ValueError(f"rank={rank!r} must be an int, or one for each of the projector's {len(names)} Linear layers")
    out = copy.deepcopy(project)
    for name, k in zip(names, ranks):
        linear = out.get_submodule(name)
        if not 1 <= k <= min(linear.weight.shape):
            raise ValueError(f"rank={k} does not lie in 1 ... {min(linear.weight.shape)}, the full rank of layer {name!r}")
        with torch.no_grad():
            u, s, v = torch.linalg.svd(widen(linear.weight), full_matrices=False)
            like = dict(device=linear.weight.device, dtype=linear.weight.dtype)
            first = nn.Linear(linear.in_features, k, bias=False, **like)
            second = nn.Linear(k, linear.out_features, bias=linear.bias is not None, **like)
            first.weight.copy_(v[:k])
            second.weight.copy_(u[:, :k] * s[:k])
            if linear.bias is not None:
                second.bias.copy_(linear.bias)
        if not name:
            return nn.Sequential(first, second)
        parent, _, child = name.rpartition(".")
        setattr(out.get_submodule(parent), child, nn.Sequential(first, second))
    return out


# ------------------------------------------------------------------------------------------------ select
def importance(sensitivity: Tensor) -> Tensor:
    """w = (S - min) / (max - min + 1e-8) over the last axis; 1 everywhere when all are equal. The least sensitive: 0."""
    low, high = sensitivity.amin(dim=-1, keepdim=True), sensitivity.amax(dim=-1, keepdim=True)
    return torch.where(high > low, (sensitivity - low) / (high - low + 1e-8), 1)


def _check(sensitivity, tokens):
    check_tokens(tokens)
    if sensitivity.shape != tokens.shape[:2]:
        raise ValueError(f"sensitivity has shape {tuple(sensitivity.shape)} but the tokens need {tuple(tokens.shape[:2])}")


def _count(keep, num_tokens):
    """K = int(ratio N) for a float, at least 1: the release's rule."""
    count = resolve_keep(keep, num_tokens)
    return max(1, int(keep * num_tokens)) if isinstance(keep, float) else count


def sads(sensitivity: Tensor, tokens: Tensor, keep: int | float) -> tuple[Tensor, Tensor]:
    """Sensitivity-aware diverse selection: argmax w, then again and again argmax of w_i min over chosen j of (1 - cos(z_i, z_j)).

    sensitivity (B, N), tokens (B, N, D) projected -> index (B, T) in order of choice, gains (B, T) (w for the first).
    """
    _check(sensitivity, tokens)
    return greedy_maxmin(tokens, _count(keep, tokens.shape[1]), importance(widen(sensitivity)), first="weight")


def select(sensitivity: Tensor, tokens: Tensor, keep: int | float) -> Plan:
    """`sads` as a plan, in raster order. A float keep is rounded down, int(keep N)."""
    index, _ = sads(sensitivity, tokens, keep)
    return Plan(index.sort(dim=1).values, tokens.shape[1])


def anyres_layout(grid: tuple[int, int], tiles: tuple[int, int], device=None) -> tuple[Tensor, Tensor]:
    """Where LLaVA-NeXT puts a base view and R x S tiles, each of `grid` (h, w) tokens, in one sequence.

    The base view in raster order, then the mosaic of the tiles row by row, a newline token at the end of each of its R h rows.
    -> views (1 + R S, h w) long, newlines (R h,) long: token indices.
    """
    (h, w), (r, s) = grid, tiles
    base = torch.arange(h * w, device=device)
    mosaic = h * w + torch.arange(r * h * (s * w + 1), device=device).view(r * h, s * w + 1)
    tiled = mosaic[:, :-1].reshape(r, h, s, w).transpose(1, 2).reshape(r * s, h * w)
    return torch.cat([base[None], tiled]), mosaic[:, -1]


def sads_views(sensitivity: Tensor, tokens: Tensor, views: Tensor, keep: int | float) -> tuple[Tensor, Tensor]:
    """`sads` inside each view, with equal budgets and each view's own normalisation -> index, gains (B, V, k) in order of choice.

    sensitivity (B, N), tokens (B, N, D); views (V, M) long: the tokens of each view, -1 fills shorter ones. keep: tokens of all
    views together (or fraction); k = int(keep / V), so a remainder is lost, as in the release. Other tokens' sensitivity may be
    anything (-inf at newlines).
    """
    _check(sensitivity, tokens)
    if views.dim() != 2 or not views.numel():
        raise ValueError(f"views has shape {tuple(views.shape)} but needs (V, M): the tokens of each view")
    valid, num_views = views >= 0, len(views)
    total = views.numel() if views.device.type == "meta" else int(valid.sum())
    k = _count(keep, total) // num_views
    smallest = views.shape[1] if views.device.type == "meta" else int(valid.sum(dim=1).amin())
    if not 1 <= k <= smallest:
        raise ValueError(f"keep={keep!r} is {k} for each of {num_views} views; it must lie in 1 ... {smallest}")
    flat = views.clamp(min=0)
    s, z = widen(sensitivity)[:, flat], tokens[:, flat]                                         # b v m, b v m d
    s = torch.where(valid, s, s.masked_fill(~valid, torch.inf).amin(dim=-1, keepdim=True))
    weight = importance(s).masked_fill(~valid, -1)       # filling: distance 1 as a zero vector, score -1: behind every real token
    z = z.masked_fill(~valid[..., None], 0)
    order, gains = greedy_maxmin(z.flatten(0, 1), k, weight.flatten(0, 1), first="weight")      # (b v) k
    order, gains = order.unflatten(0, s.shape[:2]), gains.unflatten(0, s.shape[:2])
    return views.expand(len(tokens), -1, -1).gather(2, order), gains


def select_views(sensitivity: Tensor, tokens: Tensor, views: Tensor, keep: int | float, newlines: Tensor | None = None) -> Plan:
    """`sads_views` as a plan, ascending; `newlines` (L,) are kept in addition. role: the view, or newline.

    V int(keep / V) + L slots: the real count exceeds the nominal one, as in the release.
    """
    index, _ = sads_views(sensitivity, tokens, views, keep)
    batch, num_views, k = index.shape
    role = torch.arange(num_views, device=index.device).repeat_interleave(k).expand(batch, -1)
    index = index.flatten(1)
    if newlines is not None:
        index = torch.cat([index, newlines.expand(batch, -1)], dim=1)
        role = torch.cat([role, torch.full_like(index[:, role.shape[1]:], num_views)], dim=1)
    index, order = index.sort(dim=1)
    names = tuple(f"view {v}" for v in range(num_views)) + (("newline",) if newlines is not None else ())
    return Plan(index, tokens.shape[1], role=take(role, order), roles=names)


def prune(vision, keep: int | float, num_directions: int = 64, step: float = 0.01, directions: Tensor | None = None,
          generator: torch.Generator | None = None, rank: int | tuple[int, ...] | None = None, chunk: int = 8) -> Plan:
    """The plan for `vision.tokens` of a `VisionOutputs`: `sensitivity` of its features, then `select`.

    rank: measure on the `low_rank` projector. A batch of views is pruned view by view with one set of directions and the same
    number of tokens each. Without a generator the plan varies a little from run to run. ValueError for keep out of range and what
    `sensitivity` and `low_rank` refuse.
    """
    count = _count(keep, vision.features.shape[1])
    project = vision.project if rank is None else low_rank(vision.project, rank)
    s = sensitivity(vision.features, project, num_directions, step, directions, generator, chunk)
    return select(s, vision.tokens, count)


METHOD = Method("zooprune", "ZOO-Prune", paper=PAPER, prune=prune, space="tokens")
