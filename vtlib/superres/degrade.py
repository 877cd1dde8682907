"""How benchmarks make small pictures of large ones: BI (bicubic) and BD (blur, then every fourth pixel).

Super-resolution inverts one particular way of shrinking, and a network that learned another loses whole decibels. So both are defined to
the last digit here:

    BI  MATLAB's imresize(x, 1/4, "bicubic"): Keys' cubic with a = -0.5 stretched four times (antialiasing), 16 taps, weights summing to 1,
        borders mirrored with the edge pixel repeated.
    BD  MATLAB as in the scripts of BasicVSR and TTVSR: a Gaussian of sigma 1.6 on 12 x 12 pixels, borders replicated, read at the middle
        of each 4 x 4 block. DUF's variant has 13 x 13 taps, borders mirrored without repeating the edge, and reads at each block's first
        pixel: its result lies 1.5 pixels further to the top left.

Two traps: `F.interpolate(mode="bicubic")` uses a = -0.75 unless antialias=True (then -0.5), and none of it mirrors at the border. MATLAB
rounds to 8 bits after each axis when it is given 8 bits; here everything stays floating point, and nothing is clamped to [0, 1].
"""

import contextlib
import math

import torch

from ..nn import check_float, mirrored

BLURS = ("centred", "duf")


def keys_cubic(x):
    """Keys' cubic kernel with a = -0.5: 1.5|x|^3 - 2.5|x|^2 + 1 up to 1, -0.5|x|^3 + 2.5|x|^2 - 4|x| + 2 up to 2, then 0."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def bicubic_taps(length, scale, device=None):
    """What MATLAB's imresize reads along one axis: indices (out, taps) long, weights (out, taps) float64 that sum to 1.

    Output o has its centre at u = (o + 1/2) / scale - 1/2 and reads pixel i with weight k(u - i); shrinking uses scale k(scale (u - i)).
    Indices are mirrored at the borders, the edge pixel twice: ... 1 0 | 0 1 2 ...
    """
    shrink = min(scale, 1.0)
    reach = 2 / shrink
    u = (torch.arange(round(length * scale), device=device, dtype=torch.float64) + 0.5) / scale - 0.5
    index = (u - reach).floor()[:, None] + torch.arange(math.ceil(2 * reach) + 1, device=device)      # out taps
    weights = keys_cubic((u[:, None] - index) * shrink)
    return mirrored(index.long(), length), weights / weights.sum(-1, keepdim=True)


def bicubic(images, scale):
    """Bicubic resizing exactly as MATLAB's imresize: the benchmarks' degradation BI, and the baseline that a method has to beat.

    images (*, H, W) float; scale: a whole number (enlarges) or one over a whole number (shrinks, with antialiasing) -> (*, H scale, W scale)
    in the same dtype, computed in float32 at least. Values may leave [0, 1] at edges. Raises ValueError for another scale, for sides
    that shrinking does not divide, and for integer images.
    """
    factor = round(scale) if scale >= 1 else round(1 / max(scale, 1e-9))
    if factor < 1 or not math.isclose(scale, factor if scale >= 1 else 1 / factor, rel_tol=1e-9):
        raise ValueError(f"scale={scale}: needs a whole number, or one over a whole number")
    _check(images, 1 if scale >= 1 else factor)
    return _resample(images, *(bicubic_taps(side, scale, images.device) for side in images.shape[-2:]))


def blur_taps(length, scale, sigma, where="centred", device=None):
    """What `blur_down` reads along one axis: indices (out, taps) long, weights (out, taps) float64 that sum to 1: a sampled Gaussian around the
    middle of each block of `scale` pixels ("centred") or around its first pixel ("duf")."""
    if where == "duf":
        reach = int(4 * sigma + 0.5)                                             # scipy's gaussian_filter cuts at 4 sigma
        begin, size = -reach, 2 * reach + 1
    else:
        size = math.ceil(3 * sigma) * 2 + (1 if scale % 2 else 2)                # MATLAB's script: odd windows for odd scales
        begin = (scale - size) // 2
    at = torch.arange(size, device=device)
    weights = torch.exp(-0.5 * ((at - (size - 1) / 2).double() / sigma) ** 2)
    index = torch.arange(0, length, scale, device=device)[:, None] + begin + at                    # out taps
    index = (length - 1 - (length - 1 - index.abs()).abs()) if where == "duf" else index.clamp(0, length - 1)
    return index, (weights / weights.sum()).expand(index.shape)


def blur_down(images, scale=4, sigma=1.6, where="centred"):
    """Gaussian blur, then every `scale`-th pixel: the benchmarks' degradation BD.

    images (*, H, W) float, H and W multiples of scale -> (*, H / scale, W / scale). sigma in pixels of `images`.
    where="centred": read at the middle of each block (BasicVSR's and TTVSR's MATLAB script: 12 taps for scale 4, sigma 1.6; borders replicated).
    where="duf": read at each block's first pixel (DUF, EDVR, BasicSR: 13 taps, borders mirrored without the edge).
    Raises ValueError for sides that are no multiple of scale (duf: or no longer than the mirrored border), a sigma that is not
    positive, or another `where`.
    """
    if where not in BLURS:
        raise ValueError(f"where={where!r}: needs one of {', '.join(BLURS)}")
    if int(scale) != scale or scale < 1:
        raise ValueError(f"scale={scale}: needs a whole number, so many pixels become one")
    if not sigma > 0:
        raise ValueError(f"sigma={sigma}: needs a positive number of pixels")
    scale, reach = int(scale), int(4 * sigma + 0.5)
    _check(images, scale)
    if where == "duf" and reach >= min(images.shape[-2:]):
        raise ValueError(f"images are {images.shape[-2]} x {images.shape[-1]}: mirroring {reach} pixels needs more than {reach} on each side")
    return _resample(images, *(blur_taps(side, scale, sigma, where, images.device) for side in images.shape[-2:]))


def _resample(images, rows, columns):
    """images (*, H, W) read along both axes with (indices, weights), as two matrix products: (*, out H, out W)."""
    exact = torch.promote_types(images.dtype, torch.float32)
    along = [weights.new_zeros(len(index), side).scatter_add(1, index, weights).to(exact)          # out side
             for side, (index, weights) in zip(images.shape[-2:], (rows, columns))]
    kind = images.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext():
        return (along[0] @ images.to(exact) @ along[1].T).to(images.dtype)


def _check(images, multiple):
    check_float(images, "images")
    if images.dim() < 2 or 0 in images.shape:
        raise ValueError(f"images have shape {tuple(images.shape)}: needs (*, H, W) with at least one pixel")
    h, w = images.shape[-2:]
    if h % multiple or w % multiple:
        fit = f"{h // multiple * multiple} x {w // multiple * multiple}"
        raise ValueError(f"images are {h} x {w}, not a multiple of {multiple}; cut them to {fit}")
