"""Segmentation: varying windows against plain windows, as the context grows."""

from functools import partial

import torch
import torch.nn.functional as F

from vtlib.segmentation import VWA, VWHead, merge_windows, multiply_adds, query_windows
from vtlib.segmentation.vwformer import embed_densely

from .before import peak_bytes, ratio

CASES = ((64, 128, 1), (64, 256, 1), (256, 64, 8), (512, 64, 8))


def plain(channels, heads):
    """Local window attention, queries and context the same windows."""
    attention = VWA(channels, heads).eval()

    def run(x):
        windows = query_windows(x)
        return merge_windows(attention(windows, windows))

    return run


def one_scale(channels, heads, r):
    head = VWHead((8, channels, 8, 8), 3, channels, heads, short_cut=False, ratios=(r,)).eval()
    return lambda x: head.scale(x, 0)


@torch.no_grad()
def windows(cases=CASES, ratios=(1, 2, 8), repeats=5):
    """Time, multiply-adds and peak memory of one scale over those of plain window attention at
    R = 1, and its time over that of the same layers at R = 1 (they have DOPE's 1 x 1 layer)."""
    for channels, side, heads in cases:
        x = torch.randn(1, channels, side, side)
        base, same = partial(plain(channels, heads), x), partial(one_scale(channels, heads, 1), x)
        least, narrow = peak_bytes(base), multiply_adds(channels, (side, side), 1, way="window")
        for r in ratios:
            run = partial(one_scale(channels, heads, r), x)
            yield (
                f"{channels} x {side} x {side}", r,
                f"{multiply_adds(channels, (side, side), r) / narrow:.2f}",
                f"{ratio(run, base, repeats):.2f}", f"{ratio(run, same, repeats):.2f}",
                f"{peak_bytes(run) / least:.2f}",
            )


def convolved(x, layer, r):
    """DOPE as it is written down."""
    return layer(F.pad(x, (r // 2 - 1, r // 2, r // 2 - 1, r // 2)))


@torch.no_grad()
def embedding(cases=((64, 128, 8), (256, 64, 4), (256, 64, 8), (512, 64, 8)), repeats=5):
    """DOPE as a matrix at every pixel and a sum, over the convolution that it is."""
    for channels, side, r in cases:
        head = VWHead((8, channels, 8, 8), 3, channels, 1, ratios=(r,)).eval()
        x, layer = torch.randn(1, channels, side, side), head.ds[0]
        run, old = partial(embed_densely, x, layer, r), partial(convolved, x, layer, r)
        apart, time = (run() - old()).abs().max(), ratio(run, old, repeats)
        yield f"{channels} x {side} x {side}", r, f"{time:.2f}", f"{apart:.0e}"


def tables():
    yield (
        "VWFormer, one scale over plain window attention",
        ("map", "R", "multiply-adds", "time", "time over R = 1 with DOPE", "peak memory"),
        windows(),
    )
    yield (
        "VWFormer, DOPE as a matrix and a sum over its convolution",
        ("map", "R", "time", "difference"),
        embedding(),
    )
