"""The linear segmenter that an hourglass is put into, and the part of it that is trained."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.hub import hourglass
from vtlib.segmentation import Expedit, LinearSegmenter
from vtlib.segmentation.linear_segmenter import tuned_part

SIZES = dict(
    img_size=32, patch_size=8, num_classes=5, embed_dim=16, num_layers=3, num_heads=2
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LinearSegmenter(**SIZES).eval()


def test_logits_are_those_of_each_patch_resized(model):
    images = torch.rand(2, 3, 32, 48)
    tokens = model.tokens(images)[:, 1:]
    assert tokens.shape[1] == 24
    scores = tokens @ model.head.weight.T + model.head.bias
    low = torch.stack([scores[:, 6 * row : 6 * row + 6] for row in range(4)], 1)    # b 4 6 k
    want = F.interpolate(low.permute(0, 3, 1, 2), (32, 48), mode="bilinear")
    assert torch.allclose(model(images), want, atol=1e-6)


def test_an_hourglass_goes_in_without_a_weight_of_its_own(model):
    images = torch.rand(2, 3, 32, 32)
    want = model(images)
    with hourglass(model, Expedit((2, 2), window=3, tau=1.0, k=2, normalise="sum"), after=1):
        got = model(images)
    assert got.shape == want.shape and not torch.equal(got, want)
    assert torch.equal(model(images), want)


def test_the_tuned_part_shares_its_modules_and_names(model):
    part = tuned_part(model, 2)
    state = model.state_dict()
    names = {n for n in state if n.startswith(("blocks.2.", "norm.", "head."))}
    assert set(part.state_dict()) == names
    torch.nn.init.ones_(part["head"].weight)
    assert bool((model.head.weight == 1).all())
    for first in (-1, 4):
        with pytest.raises(ValueError, match="first"):
            tuned_part(model, first)
