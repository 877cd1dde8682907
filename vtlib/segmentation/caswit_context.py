"""CASWiT's pictures: a crop at full resolution and the shrunk window around it, where one lies in
the other, and a large picture crop by crop. The paper is in `caswit.py`.

Only the crop's size (512) and the factor (2) are given; that the window covers factor times the
crop, its reflection at the image's border and the average of overlapping crops are inferred.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn import check_images, check_int, check_ints
from ..nn.checks import check_callable, check_index

Pair = Sequence[int]


def _window(corner: Pair, size: Pair, factor: int, image: Pair, device: Any) -> tuple[Any, Any]:
    """(slices of the crop, places of the window around it), each for rows and columns."""
    corner = check_ints(corner, "corner", 0, length=2)
    size, factor = check_ints(size, "crop_size", 1, length=2), check_int(factor, "factor", 1)
    crop, places = [], []
    for start, side, length in zip(corner, size, image, strict=True):
        if start + side > length:
            raise ValueError(
                f"corner={corner} and crop_size={size}: outside of an image {tuple(image)}"
            )
        if (factor - 1) * side % 2:
            raise ValueError(f"crop_size={size} and factor={factor}: the margin needs whole pixels")
        margin, period = (factor - 1) * side // 2, max(2 * length - 2, 1)
        at = torch.arange(start - margin, start + side + margin, device=device).abs() % period
        places.append(torch.minimum(at, period - at) if length > 1 else 0 * at)
        crop.append(slice(start, start + side))
    return crop, places


def cut(images: Tensor, corner: Pair, crop_size: Pair, factor: int = 2) -> Any:
    """A crop and its context: (B, C, H, W) -> (B, C, h, w) twice.

    The context is the window of factor times the crop's sides with the same centre, averaged over
    squares of factor x factor pixels; beyond the image's border it is reflected (edges once).

    Args:
        images: large pictures.
        corner: row and column of the crop's first pixel.
        crop_size: (h, w).
        factor: how many times the context is shrunk.

    ValueError for a crop that is not inside, and for half pixels of margin.
    """
    check_images(images, None)
    (rows, cols), (y, x) = _window(corner, crop_size, factor, images.shape[-2:], images.device)
    window = images[..., y, :][..., x]
    return images[..., rows, cols], F.avg_pool2d(window, factor)


def cut_labels(labels: Tensor, corner: Pair, crop_size: Pair, factor: int = 2) -> Any:
    """The same for labels (B, H, W) long, which are not averaged: one pixel of each square stays.

    Args:
        labels: of large pictures.
        corner: row and column of the crop's first pixel.
        crop_size: (h, w).
        factor: how many times the context is shrunk.
    """
    check_index(labels, "labels", "(B, H, W)")
    (rows, cols), (y, x) = _window(corner, crop_size, factor, labels.shape[-2:], labels.device)
    y, x = (at[factor // 2::factor] for at in (y, x))
    return labels[..., rows, cols], labels[..., y, :][..., x]


def footprint(crop_size: Pair, context_size: Pair, factor: int) -> tuple[Any, Any]:
    """Where the crop lies in its context: (first, end) of its rows and of its columns, in pixels of
    the context.

    Args:
        crop_size: pixels of the crop.
        context_size: pixels of the shrunk window around its centre.
        factor: how many times the window is shrunk.

    For 512 and 512, factor 2: (128, 384) twice. ValueError for a context that does not hold it.
    """
    crop_size, factor = check_ints(crop_size, "crop_size", 1, 2), check_int(factor, "factor", 1)
    context_size = check_ints(context_size, "context_size", 1, 2)
    if any(own > factor * around for own, around in zip(crop_size, context_size, strict=True)):
        raise ValueError(
            f"context_size={context_size} shrunk by factor={factor} does not hold a crop "
            f"of crop_size={crop_size}"
        )
    pairs = []
    for own, around in zip(crop_size, context_size, strict=True):
        first = (around - own / factor) / 2
        pairs.append((first, first + own / factor))
    return pairs[0], pairs[1]


def scene_code(rows: Tensor, cols: Tensor, channels: int) -> Tensor:
    """Sine code of places in the scene: (h*w, channels), half for the row, half for the column.

    The waves are those of `vtlib.nn.sincos_2d`; places need not be whole.

    Args:
        rows: (h,), in pixels of the context.
        cols: (w,).
        channels: ValueError unless they are a multiple of 4.
    """
    channels = check_int(channels, "channels", 4)
    if channels % 4:
        raise ValueError(f"channels={channels} of a head must be a multiple of 4: sines by axis")
    quarter = channels // 4
    step = torch.arange(quarter, device=rows.device, dtype=torch.float32)
    freq = 10000.0 ** (-step / quarter)
    row, col = rows[:, None] * freq, cols[:, None] * freq                        # h f, w f
    row = torch.cat([row.sin(), row.cos()], dim=-1)[:, None].expand(-1, len(cols), -1)
    col = torch.cat([col.sin(), col.cos()], dim=-1)[None].expand(len(rows), -1, -1)
    return torch.cat([row, col], dim=-1).flatten(0, 1)


def centres(count: int, pitch: float, first: float, device: torch.device) -> Tensor:
    """Middles of tokens in a line: (count,).

    Args:
        count: how many there are.
        pitch: their side, in pixels of the context.
        first: where the first one begins.
        device: where they are made.
    """
    return first + pitch * (torch.arange(count, device=device, dtype=torch.float32) + 0.5)


def pool_keys(x: Tensor, most: int) -> Tensor:
    """Averages so that at most `most` tokens are left along a side: (B, C, h, w) -> smaller."""
    check_images(x, None, "x")
    most = check_int(most, "most", 1)
    kernel = [-(-side // most) for side in x.shape[-2:]]
    if kernel == [1, 1]:
        return x
    return F.avg_pool2d(x, kernel, ceil_mode=True, count_include_pad=False)


def _starts(length: int, side: int, stride: int) -> list[int]:
    """Where crops begin along a side: every stride, and one at the end."""
    return [*range(0, length - side, stride), length - side]


def slide(
    net: Callable[..., Any],
    images: Tensor,
    crop_size: Pair = (512, 512),
    factor: int = 2,
    stride: int | None = None,
) -> Tensor:
    """Scores of a large picture, (B, 3, H, W) -> (B, K, H, W), crop by crop.

    Each crop sees its own context. Where crops overlap (a stride below the crop's side, and the
    last crops, which end at the border) the scores are averaged.

    Args:
        net: a `CASWiT`, in eval mode, or what takes (crop, context) and returns `.logits`.
        images: sides of at least the crop's.
        crop_size: (h, w).
        factor: how many times the context is shrunk; the net's.
        stride: pixels from crop to crop; None: the crop's sides, no overlap.
    """
    check_callable(net, "net", "a CASWiT")
    check_images(images)
    size, length = check_ints(crop_size, "crop_size", 1, 2), images.shape[-2:]
    if size[0] > length[0] or size[1] > length[1]:
        raise ValueError(f"images are {tuple(length)} pixels, smaller than crop_size={size}")
    strides = size if stride is None else (check_int(stride, "stride", 1),) * 2
    if strides[0] > size[0] or strides[1] > size[1]:
        raise ValueError(f"stride={stride} leaves gaps between crops of crop_size={size}")
    total, count = None, images.new_zeros(length)
    for top in _starts(length[0], size[0], strides[0]):
        for left in _starts(length[1], size[1], strides[1]):
            logits = net(*cut(images, (top, left), size, factor)).logits
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *length)
            total[..., top:top + size[0], left:left + size[1]] += logits
            count[top:top + size[0], left:left + size[1]] += 1
    return total / count
