"""VWFormer by numbers: which pixels a context shows, and what it costs to read it.

For drawings and tables; the method itself is in `vwformer`.
"""

import torch
from torch import Tensor

from ..nn.checks import check_int, check_ints, check_multiple
from .vwformer import PADDINGS, choice, pad_axis

WAYS = ("window", "naive", "vwa", "post")


def context_positions(
    size: int,
    ratio: int,
    num_windows: int = 8,
    padding: str = "copy_shift",
    device: torch.device | None = None,
) -> Tensor:
    """Which rows (or columns) of the map the contexts show: (num_windows, R P) long, -1 for zeros.

    Cell (v, u) of the context of window (i, j) is the pixel (positions[i, v], positions[j, u]).

    Args:
        size: h or w, divisible by num_windows.
        ratio: R, at most num_windows.
        num_windows: on that side of the map.
        padding: as for `copy_shift_padding`.
        device: where the table is made.
    """
    size, num_windows = check_int(size, "size", 1), check_int(num_windows, "num_windows", 1)
    check_multiple((size, size), num_windows, "size")
    ratio = check_int(ratio, "ratio", 1, num_windows)
    line = torch.arange(1, size + 1, device=device)
    line = pad_axis(line, 0, ratio, num_windows, choice(padding, "padding", PADDINGS))
    window = size // num_windows
    return line.unfold(0, ratio * window, window)[:num_windows] - 1


def multiply_adds(
    channels: int, size: tuple[int, int], ratio: int, num_windows: int = 8, way: str = "vwa"
) -> int:
    """Multiply-adds of one scale on one map, of projections and attention; norms count nothing.

        "window"  4 hw C^2 + 2 P^2 hw C                       local attention, R plays no part
        "naive"   2 hw C^2 + 2 R^2 hw C^2 + 2 R^2 P^2 hw C    all RP x RP pixels as keys and values
        "vwa"     "window" + hw C^2                           shrink, unfold, fold
        "post"    "window" + R^2 hw C^2                       unfold, shrink, fold

    Args:
        channels: C.
        size: (h, w), divisible by num_windows.
        ratio: R, at most num_windows.
        num_windows: on each side of the map.
        way: one of the four.
    """
    channels = check_int(channels, "channels", 1)
    num_windows = check_int(num_windows, "num_windows", 1)
    height, width = check_ints(size, "size", 1, length=2)
    check_multiple((height, width), num_windows, "size")
    ratio, way = check_int(ratio, "ratio", 1, num_windows), choice(way, "way", WAYS)
    pixels, in_window = height * width, height * width // num_windows**2
    product = pixels * channels**2
    attention = 2 * in_window * pixels * channels
    if way == "naive":
        return 2 * product + ratio**2 * (2 * product + attention)
    extra = {"window": 0, "vwa": 1, "post": ratio**2}[way]
    return (4 + extra) * product + attention
