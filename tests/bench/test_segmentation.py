"""What the segmentation bench compares computes the same thing, and memory is what it should be."""

import torch

from .segmentation import bound, embedding, one_scale, plain, windows


@torch.no_grad()
def test_a_wide_context_needs_the_memory_of_a_narrow_one():
    rows = list(windows(((64, (64, 64), 1),), (2, 8), repeats=1))
    assert [row[1] for row in rows] == [2, 8]
    assert all(float(row[2]) < 1.25 and float(row[5]) <= 1.2 for row in rows)


@torch.no_grad()
def test_on_the_map_of_cityscapes_a_wide_context_takes_the_time_of_a_narrow_one():
    for _ in range(3):                                   # what else runs disturbs single tries
        ((*_, counted, time, _, memory),) = windows(((128, (128, 256), 1),), (8,), repeats=3)
        assert float(counted) < 1.1 and float(memory) <= 1.2
        if float(time) <= 1.15:
            return
    raise AssertionError(f"R = 8 takes {time} times the time of plain windows: at most 1.15")


@torch.no_grad()
def test_the_count_says_where_a_wide_context_is_cheap():
    assert abs(bound(256, (64, 64), 8) - (1 + 256 / (4 * 256 + 2 * 64))) < 1e-9
    assert bound(256, (64, 64), 8) > 1.2 > 1.13 > bound(256, (128, 256), 8)


@torch.no_grad()
def test_a_matrix_and_a_sum_are_the_convolution():
    assert all(float(row[3]) < 1e-4 for row in embedding(((64, 32, 4), (64, 32, 8)), repeats=1))


@torch.no_grad()
def test_what_is_compared_has_one_size():
    x = torch.randn(1, 64, 16, 16)
    assert plain(64, 2)(x).shape == one_scale(64, 2, 8)(x).shape == x.shape
