"""Segmentation: varying windows against plain windows, as the context grows."""

from functools import partial

import torch
import torch.nn.functional as F

from vtlib.segmentation import VWA, VWHead, merge_windows, multiply_adds, query_windows
from vtlib.segmentation.vwformer import embed_densely

from .before import peak_bytes, ratio

CASES = (                                        # channels, map, heads
    (64, (128, 128), 1),
    (64, (256, 256), 1),
    (256, (64, 64), 8),
    (512, (64, 64), 8),
    (128, (128, 256), 1),                        # Cityscapes, a picture of 1024 x 2048 at 1/8
    (256, (128, 256), 8),
)


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


def bound(channels, size, r):
    """Multiply-adds of one scale over those of plain windows, 1 + C^2 / (4 C^2 + 2 P^2 C): the
    matrix of C x C that DOPE puts at each pixel. Small windows have little else to do."""
    return multiply_adds(channels, size, r) / multiply_adds(channels, size, 1, way="window")


@torch.no_grad()
def windows(cases=CASES, ratios=(2, 8), repeats=7):
    """One scale over plain window attention (R = 1, no DOPE, no places) on the same map:
    multiply-adds, processor time (medians, by turns), peak memory.

    For R = 8: time at most 1.15 where windows are large (Cityscapes' map), and elsewhere about the
    multiply-adds' ratio; memory at most 1.2.
    """
    for channels, size, heads in cases:
        x = torch.randn(1, channels, *size)
        base = partial(plain(channels, heads), x)
        least, name = peak_bytes(base), f"{channels} x {size[0]} x {size[1]}"
        for r in ratios:
            run = partial(one_scale(channels, heads, r), x)
            time, counted = ratio(run, base, repeats), bound(channels, size, r)
            yield (name, r, f"{counted:.2f}", f"{time:.2f}", f"{time / counted:.2f}",
                   f"{peak_bytes(run) / least:.2f}")


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
        ("map", "R", "multiply-adds", "time", "time / multiply-adds", "peak memory"),
        windows(),
    )
    yield (
        "VWFormer, DOPE as a matrix and a sum over its convolution",
        ("map", "R", "time", "difference"),
        embedding(),
    )
