"""What an encoder hands over: a grid that fits its patches, wherever it is made."""

import dataclasses

import numpy as np
import pytest
import torch

from vtlib.tokens import VisionOutputs
from vtlib.tokens.vision import check_vision

FITS = dict(
    selected=torch.rand(2, 13, 5), grid=(3, 4), project=torch.nn.Identity(), num_prefix=1
)


@pytest.mark.parametrize("change, words", [
    (dict(grid=(3, 5)), r"grid=\(3, 5\) has 15 places but there are 12 tokens"),
    (dict(num_prefix=0), r"grid=\(3, 4\) has 12 places but there are 13 tokens"),
    (dict(grid=(-3, -4)), r"grid\[0\]=-3: needs an integer of at least 1"),
    (dict(grid=12), "grid=12: needs a sequence of 2 integers"),
    (dict(grid=(3.0, 4)), r"grid\[0\]=3.0"),
    (dict(grid=None), "grid=None"),
    (dict(num_prefix=-1), "num_prefix=-1: needs an integer from 0 to 12"),
    (dict(num_prefix=13), "num_prefix=13: needs an integer from 0 to 12"),
    (dict(num_prefix=1.0), "num_prefix=1.0"),
    (dict(selected=torch.rand(13, 5)), "selected has shape .* 3 axes"),
    (dict(selected=torch.rand(0, 13, 5)), "selected is empty"),
    (dict(selected=[[1.0]]), "selected is a list"),
])
def test_what_does_not_fit(change, words):
    with pytest.raises(ValueError, match=words):
        VisionOutputs(**{**FITS, **change})
    if {"selected", "project"}.isdisjoint(change):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(VisionOutputs(**FITS), **change)


@pytest.mark.parametrize("grid", [[3, 4], torch.Size([3, 4]), np.array([3, 4])])
def test_a_grid_of_any_kind_becomes_a_pair(grid):
    assert VisionOutputs(**{**FITS, "grid": grid}).grid == (3, 4)


def test_only_shapes_are_looked_at():
    far = VisionOutputs(**{**FITS, "selected": torch.empty(2, 13, 5, device="meta")})
    assert far.features.shape == (2, 12, 5)

    def features(x):
        return VisionOutputs(x, (3, 4), torch.nn.Identity()).features

    run = torch.compile(features, backend="eager", fullgraph=True)
    assert torch.equal(run(FITS["selected"]), FITS["selected"][:, 1:])


def test_rows():
    vision = VisionOutputs(**FITS)
    assert torch.equal(vision.rows(torch.tensor([1, 1])).selected, vision.selected[[1, 1]])
    for index, words in (
        ([1], "index is a list"), (torch.tensor([1.0]), "index is torch.float32"),
        (torch.tensor([[1]]), "index is torch.int64 .1, 1."),
        (torch.tensor([0, 2]), r"index\[1\]=2 is no place"),
    ):
        with pytest.raises(ValueError, match=words):
            vision.rows(index)


@pytest.mark.parametrize("images", [None, torch.rand(1, 3, 4, 4), [1], "vision"])
def test_what_is_no_vision(images):
    check_vision(VisionOutputs(**FITS))
    with pytest.raises(ValueError, match="vision is .* needs to be VisionOutputs"):
        check_vision(images)
