"""What the segmentation bench compares computes the same thing, and memory is what it should be."""

import torch

from .segmentation import embedding, one_scale, plain, windows


@torch.no_grad()
def test_a_wide_context_needs_the_memory_of_a_narrow_one():
    rows = list(windows(((64, 64, 1),), (2, 8), repeats=1))
    assert [row[1] for row in rows] == [2, 8]
    assert all(float(row[2]) < 1.25 and float(row[5]) <= 1.2 for row in rows)


@torch.no_grad()
def test_a_matrix_and_a_sum_are_the_convolution():
    assert all(float(row[3]) < 1e-4 for row in embedding(((64, 32, 4), (64, 32, 8)), repeats=1))


@torch.no_grad()
def test_what_is_compared_has_one_size():
    x = torch.randn(1, 64, 16, 16)
    assert plain(64, 2)(x).shape == one_scale(64, 2, 8)(x).shape == x.shape
