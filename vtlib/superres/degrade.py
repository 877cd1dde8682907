"""How benchmarks make small pictures of large ones: BI (bicubic) and BD (blur, then every fourth
pixel).

Super-resolution inverts one particular way of shrinking, and a network that learned another loses
whole decibels. So both are defined to the last digit here:

    BI  MATLAB's imresize(x, 1/4, "bicubic"): Keys' cubic with a = -0.5 stretched four times
        (antialiasing), 16 taps, weights summing to 1, borders mirrored with the edge pixel
        repeated.
    BD  MATLAB as in the scripts of BasicVSR and TTVSR: a Gaussian of sigma 1.6 on 12 x 12 pixels,
        borders replicated, read at the middle of each 4 x 4 block. DUF's variant has 13 x 13 taps,
        borders mirrored without repeating the edge, and reads at each block's first pixel: its
        result lies 1.5 pixels further to the top left.

Two traps: `F.interpolate(mode="bicubic")` uses a = -0.75 unless antialias=True (then -0.5), and
none of it mirrors at the border. MATLAB rounds to 8 bits after each axis when it is given 8 bits;
here everything stays floating point, and nothing is clamped to [0, 1]. A picture that holds one NaN
or infinity comes out as NaN all over.
"""

import math

import torch
from torch import Tensor

from ..nn import check_float, check_int, check_number, mirrored
from ..tokens.precision import full_precision

BLURS = ("centred", "duf")
LARGEST = 1e4                                        # enlargement: more is a slip of the pen
WIDEST = 1e4                                         # sigma in pixels: it is written down in taps
Taps = tuple[Tensor, Tensor]


def keys_cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5.

    1.5 |x|^3 - 2.5 |x|^2 + 1 up to 1, -0.5 |x|^3 + 2.5 |x|^2 - 4 |x| + 2 up to 2, then 0.
    """
    check_float(x, "x")
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def bicubic_taps(length: int, scale: float, device: torch.device | None = None) -> Taps:
    """What MATLAB's imresize reads along one axis: indices (out, taps) long, weights float64.

    Output o has its centre at u = (o + 1/2) / scale - 1/2 and reads pixel i with weight k(u - i);
    shrinking uses scale k(scale (u - i)). Weights sum to 1. Indices are mirrored at the borders,
    the edge pixel twice: ... 1 0 | 0 1 2 ...

    Args:
        length: pixels along the axis.
        scale: how many times as many come out.
        device: where the taps are made.
    """
    length, scale = check_int(length, "length", 1), check_number(scale, "scale", most=LARGEST)
    if scale <= 0 or round(length * scale) < 1:
        raise ValueError(f"scale={scale}: needs one that leaves something of length={length}")
    shrink = min(scale, 1.0)
    reach = 2 / shrink
    out = torch.arange(round(length * scale), device=device, dtype=torch.float64)
    u = (out + 0.5) / scale - 0.5
    taps = torch.arange(math.ceil(2 * reach) + 1, device=device)
    index = (u - reach).floor()[:, None] + taps                                          # out taps
    weights = keys_cubic((u[:, None] - index) * shrink)
    return mirrored(index.long(), length), weights / weights.sum(-1, keepdim=True)


def bicubic(images: Tensor, scale: float) -> Tensor:
    """Bicubic resizing exactly as MATLAB's imresize: the benchmarks' degradation BI, and the
    baseline that a method has to beat.

    images (*, H, W) float; scale: a whole number (enlarges) or one over a whole number (shrinks,
    with antialiasing) -> (*, H scale, W scale) in the same dtype, computed in float32 at least.
    Values may leave [0, 1] at edges. ValueError for another scale, for sides that shrinking does
    not divide, and for integer images.
    """
    enlarge, factor = _whole_scale(scale)
    _check(images, 1 if enlarge else factor)
    exact = factor if enlarge else 1 / factor
    return _resample(images, *(bicubic_taps(n, exact, images.device) for n in images.shape[-2:]))


def _whole_scale(scale: float) -> tuple[bool, int]:
    """Whether it enlarges, and how many times. Single precision's 1/3 counts as a third."""
    number = check_number(scale, "scale", most=LARGEST)
    enlarge = number >= 1
    times = 1 / number if 0 < number < 1 else number
    if times <= 0 or not math.isclose(times, round(times), rel_tol=1e-6):
        raise ValueError(f"scale={scale}: needs a whole number, or one over a whole number")
    return enlarge, round(times)


def blur_taps(
    length: int, scale: int, sigma: float, where: str = "centred",
    device: torch.device | None = None,
) -> Taps:
    """What `blur_down` reads along one axis: indices (out, taps) long, weights float64.

    A sampled Gaussian around the middle of each block ("centred") or around its first pixel
    ("duf"). Weights sum to 1.

    Args:
        length: pixels along the axis.
        scale: pixels of a block.
        sigma: of the Gaussian, in pixels.
        where: "centred" or "duf".
        device: where the taps are made.
    """
    length, scale = check_int(length, "length", 1), check_int(scale, "scale", 1)
    sigma, where = _check_blur(sigma, where)
    if where == "duf":
        reach = int(4 * sigma + 0.5)                    # scipy's gaussian_filter cuts at 4 sigma
        begin, size = -reach, 2 * reach + 1
    else:                                       # MATLAB's script: odd windows for odd scales
        size = math.ceil(3 * sigma) * 2 + (1 if scale % 2 else 2)
        begin = (scale - size) // 2
    at = torch.arange(size, device=device)
    far = (at - (size - 1) / 2).double().abs() / sigma
    near = far.min()                    # its weight is 1, so that not all of them underflow to 0
    weights = torch.exp(-0.5 * (far - near) * (far + near))
    index = torch.arange(0, length, scale, device=device)[:, None] + begin + at          # out taps
    if where == "duf":
        index = length - 1 - (length - 1 - index.abs()).abs()        # mirrored without the edge
    else:
        index = index.clamp(0, length - 1)
    return index, (weights / weights.sum()).expand(index.shape)


def blur_down(
    images: Tensor, scale: int = 4, sigma: float = 1.6, where: str = "centred"
) -> Tensor:
    """Gaussian blur, then every `scale`-th pixel: the benchmarks' degradation BD.

    Args:
        images: (*, H, W) float, H and W multiples of scale.
        scale: so many pixels along each axis become one.
        sigma: in pixels of `images`.
        where: "centred" reads at the middle of each block (BasicVSR's and TTVSR's MATLAB script: 12
            taps for scale 4, sigma 1.6; borders replicated). "duf" reads at each block's first
            pixel (DUF, EDVR, BasicSR: 13 taps, borders mirrored without the edge).

    Returns (*, H / scale, W / scale). ValueError for sides that are no multiple of scale (duf: or
    no longer than the mirrored border), a sigma that is not positive, or another `where`.
    """
    scale = check_int(scale, "scale", 1)
    sigma, where = _check_blur(sigma, where)
    _check(images, scale)
    size = h, w = images.shape[-2:]
    reach = int(4 * sigma + 0.5)
    if where == "duf" and reach >= min(size):
        raise ValueError(
            f"images are {h} x {w}: mirroring {reach} pixels needs more than {reach} on each side"
        )
    taps = [blur_taps(side, scale, sigma, where, images.device) for side in size]
    return _resample(images, *taps)


def _check_blur(sigma: float, where: str) -> tuple[float, str]:
    if where not in BLURS:
        raise ValueError(f"where={where!r}: needs one of {', '.join(BLURS)}")
    sigma = check_number(sigma, "sigma", most=WIDEST)
    if sigma <= 0:
        raise ValueError(f"sigma={sigma}: needs a positive number of pixels")
    return sigma, where


def _resample(images: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """images (*, H, W) read along both axes with (indices, weights): (*, out H, out W).

    Two matrix products.
    """
    exact = torch.promote_types(images.dtype, torch.float32)
    along = []
    for side, (index, weights) in zip(images.shape[-2:], (rows, columns), strict=True):
        matrix = weights.new_zeros(len(index), side).scatter_add(1, index, weights)      # out side
        along.append(matrix.to(exact))
    with full_precision(images.device):
        return (along[0] @ images.to(exact) @ along[1].T).to(images.dtype)


def _check(images: Tensor, multiple: int) -> None:
    check_float(images, "images")
    if images.dim() < 2 or 0 in images.shape:
        raise ValueError(
            f"images have shape {tuple(images.shape)}: needs (*, H, W) with at least one pixel"
        )
    h, w = images.shape[-2:]
    if h % multiple or w % multiple:
        fit = f"{h // multiple * multiple} x {w // multiple * multiple}"
        raise ValueError(f"images are {h} x {w}, not a multiple of {multiple}; cut them to {fit}")
