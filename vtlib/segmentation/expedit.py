"""Expedit - Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning
(Liang, Yuan, Ding, Luo, Lin, Jia, Zhang, Zhang, Hu, NeurIPS 2022, arXiv 2210.01035).

The idea: behind the first alpha layers of a large encoder, neighbouring tokens say nearly the same.
Cluster the H x W tokens into a small grid of h x w, run the other layers on those, and rebuild the
dense map from how each token resembled the clusters when they were made. Neither step has a
parameter, so a trained model is made cheaper as it is.

    S = adaptive average pooling of Z               initial centres       cluster, iterations=0
    |row - row'|, |col - col'| <= window // 2       window_mask, fixed by the initial cells
    A = softmax over centres of -tau |z_p - s_q|^2  soft_assignment
    S_q = sum_p A_qp z_p / sum_p A_qp               soft_kmeans, `iterations` times
    w_pq = exp(-tau |z_p - s_q|^2), k largest       reconstruction_weights
    out_p = sum_q w_pq s'_q                         reconstruct
    c(n) = 12 n C^2 + 2 n^2 C a layer               encoder_cost, clustering_cost

tau multiplies, so it is an inverse temperature. Reconstruction looks at the tokens right before the
clustering and at the centres right after it, and mixes the refined centres s', which may have other
channels; it has no window, so far-apart places that look alike exchange features.

What the weights are divided by: the four released repositories take the L2 norm of a token's k
weights ("l2", the default here, for parity), not their sum ("sum", a convex combination). With k
equal weights "l2" makes a feature sqrt(k) too long. A LayerNorm right behind forgets the factor
(Segmenter's last norm, SAM's neck), so released scores do not tell them apart; read without a norm,
take "sum". The paper's own equation is remembered as the sum (not verified).

Here are both layers on maps (`Expedit`, average pooling as its rival: `Pooling`), in
`expedit_windows` inside of windows, in `expedit_sam` SAM's encoder; `vtlib.hub.hourglass` puts them
into a running ViT. Of Swin there is what changes in it, and no host.

Different from the release:
- as many centres as tokens is the identity, bit for bit (there, tokens of a window still mix);
- the smallest distance is taken off before exp: the same weights, but they never all underflow,
  which gave 0 ("l2") or NaN ("sum");
- centres outside the window are excluded, not given a distance of 1e16: with tau = 0 too;
- distances are computed in float32 at least, and no negative ones are left (SAM's release).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..nn.checks import (
    check_axes,
    check_int,
    check_ints,
    check_number,
    check_odd,
    check_tokens,
)
from ..tokens.cost import decoder_flops
from ..tokens.precision import full_precision, widen

PAPER = "expedit"
NORMALISE = ("l2", "sum")
Grid = tuple[int, int]
Restore = Callable[[Tensor], Tensor]
"""Refined tokens (B, M, C') -> (B, N, C'), one for each token of the full map."""


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_p - y_q|^2 of all pairs, at least 0: (B, P, C), (B, Q, C) -> (B, P, Q), float32 or
    wider."""
    x, y = widen(x), widen(y)
    with full_precision(x.device):
        product = x @ y.transpose(1, 2)                                     # b p q
    return ((x * x).sum(2)[:, :, None] + (y * y).sum(2)[:, None] - 2 * product).clamp_min(0)


# -------------------------------------------------------------------------------------- clustering
def initial_cells(size: Grid, grid: Grid, device: torch.device | None = None) -> Tensor:
    """The centre that each token of an H x W map begins with, nearest-neighbour: (H W,) long.

    Args:
        size: (H, W).
        grid: (h, w).
        device: of the result.
    """
    height, width = check_ints(size, "size", 1, length=2)
    rows, cols = check_ints(grid, "grid", 1, length=2)
    row = _nearest(height, rows, device)[:, None]
    return (row * cols + _nearest(width, cols, device)).flatten()


def _nearest(length: int, cells: int, device: torch.device | None) -> Tensor:
    """torch's own rule for the nearest of `cells` numbers, at `length` places: (length,) long."""
    number = torch.arange(cells, device=device, dtype=torch.float32)
    return F.interpolate(number[None, None], size=length, mode="nearest")[0, 0].long()


def window_mask(
    size: Grid, grid: Grid, window: int, device: torch.device | None = None
) -> Tensor:
    """Which tokens may use which centres: (H W, h w), True where the row and the column of the
    centre lie within window // 2 of the token's initial cell.

    Args:
        size: (H, W).
        grid: (h, w).
        window: side, an odd number of centres.
        device: of the result.
    """
    radius = check_odd(window, "window") // 2
    cell = initial_cells(size, grid, device)[:, None]                       # n 1
    cols = check_int(grid[1], "grid[1]", 1)
    centre = torch.arange(check_int(grid[0], "grid[0]", 1) * cols, device=device)     # m
    rows_apart = (cell // cols - centre // cols).abs()
    cols_apart = (cell % cols - centre % cols).abs()
    return (rows_apart <= radius) & (cols_apart <= radius)                  # n m


def soft_assignment(tokens: Tensor, centres: Tensor, allowed: Tensor, tau: float) -> Tensor:
    """softmax over the allowed centres of -tau |z_p - s_q|^2: (B, N, M), rows sum to 1.

    Args:
        tokens: (B, N, C).
        centres: (B, M, C).
        allowed: (N, M) boolean, of `window_mask`.
        tau: inverse temperature; 0: uniform over the window.
    """
    tau = check_number(tau, "tau", 0)
    logits = -tau * squared_distances(tokens, centres)
    return logits.masked_fill(~allowed, float("-inf")).softmax(dim=2)


def soft_kmeans(
    features: Tensor, grid: Grid, window: int = 5, tau: float = 0.02, iterations: int = 5
) -> Tensor:
    """Windowed soft k-means from a pooled grid, as released: (B, H, W, C) -> (B, h w, C).

    Gradients flow through the means, not through the assignment.

    Args:
        features: the token map, no class token in it.
        grid: (h, w) of the centres.
        window: side of the square of centres that a token may use.
        tau: inverse temperature.
        iterations: 0: average pooling.
    """
    size, grid = _check_map_and_grid(features, grid)
    iterations = check_int(iterations, "iterations", 0)
    allowed = window_mask(size, grid, window, features.device)
    check_number(tau, "tau", 0)
    x = widen(features)
    centres = F.adaptive_avg_pool2d(rearrange(x, "b h w c -> b c h w"), grid)
    centres, tokens = rearrange(centres, "b c h w -> b (h w) c"), x.flatten(1, 2)
    for _ in range(iterations):
        share = soft_assignment(tokens, centres, allowed, tau).detach()     # b n m
        with full_precision(x.device):
            total = share.transpose(1, 2) @ tokens                          # b m c
        centres = total / share.sum(1)[..., None].clamp_min(1e-16)
    return centres.to(features.dtype)


def cluster(
    features: Tensor, grid: Grid, window: int = 5, tau: float = 0.02, iterations: int = 5
) -> Tensor:
    """Token clustering layer: `soft_kmeans`, and with as many centres as tokens the tokens
    themselves. (B, H, W, C) -> (B, h w, C) in grid order.

    Args:
        features: the token map, no class token in it.
        grid: (h, w), at most (H, W).
        window: side of the square of centres that a token may use.
        tau: inverse temperature.
        iterations: 0: average pooling.
    """
    size, grid = _check_map_and_grid(features, grid)
    if grid == size:
        check_odd(window, "window")
        check_number(tau, "tau", 0)
        check_int(iterations, "iterations", 0)
        return features.flatten(1, 2)
    return soft_kmeans(features, grid, window, tau, iterations)


def nearest_centres(tokens: Tensor, centres: Tensor) -> Tensor:
    """The hard labels: for each token the nearest of all centres, without window, (B, N) long.

    Only the un-pooling that the paper compares with reads them. tokens (B, N, C), centres
    (B, M, C).
    """
    _check_pair(tokens, centres, "tokens", "centres")
    return squared_distances(tokens, centres).argmin(dim=2)


# ---------------------------------------------------------------------------------- reconstruction
def reconstruction_weights(
    before: Tensor, centres: Tensor, k: int = 20, tau: float = 0.02, normalise: str = "l2"
) -> Tensor:
    """w_pq over the k nearest centres of each token, 0 elsewhere: (B, N, M), float32 or wider.

    Args:
        before: (B, N, C), tokens right before the clustering.
        centres: (B, M, C), right after it.
        k: centres a token, at most M; more where they tie with the k-th.
        tau: inverse temperature.
        normalise: "l2": squares sum to 1 (the release). "sum": weights sum to 1.
    """
    _check_pair(before, centres, "before", "centres")
    k = check_int(k, "k", 1, centres.shape[1])
    tau = check_number(tau, "tau", 0)
    if normalise not in NORMALISE:
        raise ValueError(f"normalise={normalise!r} must be one of {NORMALISE}")
    distance = squared_distances(before, centres)
    smallest = distance.topk(k, dim=2, largest=False).values                # b n k, rising
    weight = torch.exp(-tau * (distance - smallest[..., :1]))
    weight = weight.masked_fill(distance > smallest[..., -1:], 0)
    if normalise == "l2":
        return weight / torch.linalg.vector_norm(weight, dim=2, keepdim=True)
    return weight / weight.sum(2, keepdim=True)


def reconstruct(
    refined: Tensor,
    before: Tensor,
    centres: Tensor,
    k: int = 20,
    tau: float = 0.02,
    normalise: str = "l2",
) -> Tensor:
    """Token reconstruction layer: (B, M, C') -> (B, N, C').

    Args:
        refined: the centres after the other layers; C' may differ from C.
        before: (B, N, C), tokens right before the clustering.
        centres: (B, M, C), right after it.
        k: centres a token, at most M.
        tau: inverse temperature.
        normalise: "l2" or "sum", see `reconstruction_weights`.
    """
    check_tokens(refined, name="refined")
    weight = reconstruction_weights(before, centres, k, tau, normalise)
    if refined.shape[:2] != centres.shape[:2]:
        raise ValueError(
            f"refined has shape {tuple(refined.shape)} but there are (B, M) = "
            f"{tuple(centres.shape[:2])} centres"
        )
    with full_precision(refined.device):
        return (weight @ refined.to(weight.dtype)).to(refined.dtype)


# ------------------------------------------------------------------- both, as one piece for a model
@dataclass(frozen=True)
class Expedit:
    """Both layers with their settings; the defaults are Segmenter's (ViT-L/16, ADE20K, 640 px).

    Args:
        grid: (h, w) of the centres.
        window: side of the square of centres that a token may use.
        tau: inverse temperature of both layers.
        iterations: of the clustering.
        k: centres that a token is rebuilt from.
        normalise: "l2" (release) or "sum", see `reconstruction_weights`.
    """

    grid: Grid = (28, 28)
    window: int = 5
    tau: float = 0.02
    iterations: int = 5
    k: int = 20
    normalise: str = "l2"

    def __post_init__(self) -> None:
        rows, cols = check_ints(self.grid, "grid", 1, length=2)
        object.__setattr__(self, "grid", (rows, cols))
        check_odd(self.window, "window")
        check_number(self.tau, "tau", 0)
        check_int(self.iterations, "iterations", 0)
        check_int(self.k, "k", 1, rows * cols)
        if self.normalise not in NORMALISE:
            raise ValueError(f"normalise={self.normalise!r} must be one of {NORMALISE}")

    def reduce(self, features: Tensor) -> tuple[Tensor, Restore]:
        """(B, H, W, C) -> tokens (B, h w, C), and the function that rebuilds all of the map from
        what the tokens have become."""
        size, grid = _check_map_and_grid(features, self.grid)
        centres = cluster(features, grid, self.window, self.tau, self.iterations)
        if grid == size:
            return centres, _same
        before = features.flatten(1, 2)

        def restore(refined: Tensor) -> Tensor:
            return reconstruct(refined, before, centres, self.k, self.tau, self.normalise)

        return centres, restore


@dataclass(frozen=True)
class Pooling:
    """The rival without content: average pooling to `grid`, bilinear interpolation back."""

    grid: Grid = (28, 28)

    def __post_init__(self) -> None:
        rows, cols = check_ints(self.grid, "grid", 1, length=2)
        object.__setattr__(self, "grid", (rows, cols))

    def reduce(self, features: Tensor) -> tuple[Tensor, Restore]:
        """As `Expedit.reduce`."""
        size, grid = _check_map_and_grid(features, self.grid)
        if grid == size:
            return features.flatten(1, 2), _same
        pooled = F.adaptive_avg_pool2d(rearrange(features, "b h w c -> b c h w"), grid)

        def restore(refined: Tensor) -> Tensor:
            low = rearrange(refined, "b (h w) c -> b c h w", h=grid[0])
            high = F.interpolate(low, size=size, mode="bilinear", align_corners=False)
            return rearrange(high, "b c h w -> b (h w) c")

        return rearrange(pooled, "b c h w -> b (h w) c"), restore


def _same(refined: Tensor) -> Tensor:
    return refined


# -------------------------------------------------------------------------------------------- cost
def encoder_cost(
    num_layers: int, dim: int, num_tokens: int, after: int = 0, num_centres: int | None = None
) -> int:
    """Multiply-adds of an encoder, sum over layers of 12 n C^2 + 2 n^2 C.

    Args:
        num_layers: L.
        dim: C.
        num_tokens: N, in the first `after` layers.
        after: alpha, layers on all tokens.
        num_centres: M, in the other layers; None: N.
    """
    num_layers = check_int(num_layers, "num_layers", 1)
    after = check_int(after, "after", 0, num_layers)
    num_centres = num_tokens if num_centres is None else num_centres
    counts = [num_tokens] * after + [num_centres] * (num_layers - after)
    return decoder_flops(counts, dim, 4 * check_int(dim, "dim", 1))


def clustering_cost(
    num_tokens: int, num_centres: int, dim: int, iterations: int = 5
) -> int:
    """Multiply-adds of the clustering, 2 iterations N M C: the distances, and the means. It pays
    with many tokens and early layers only.

    Args:
        num_tokens: N.
        num_centres: M.
        dim: C.
        iterations: of the clustering.
    """
    num_tokens = check_int(num_tokens, "num_tokens", 1)
    num_centres = check_int(num_centres, "num_centres", 1)
    dim, iterations = check_int(dim, "dim", 1), check_int(iterations, "iterations", 0)
    return 2 * iterations * num_tokens * num_centres * dim


# ------------------------------------------------------------------------------------------ checks
def _check_map_and_grid(features: Tensor, grid: Grid) -> tuple[Grid, Grid]:
    """(H, W) and (h, w). ValueError for what is no map, and for a grid that is finer than it."""
    check_axes(features, "features", "(B, H, W, C)")
    rows, cols = check_ints(grid, "grid", 1, length=2)
    height, width = features.shape[1:3]
    if rows > height or cols > width:
        raise ValueError(f"grid={(rows, cols)} but the map has {height} x {width} tokens")
    return (height, width), (rows, cols)


def _check_pair(x: Tensor, y: Tensor, x_name: str, y_name: str) -> None:
    check_tokens(x, name=x_name)
    check_tokens(y, name=y_name)
    if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        raise ValueError(
            f"{x_name} {tuple(x.shape)} and {y_name} {tuple(y.shape)} need the same B and C"
        )
