"""JPEG at a number of bits."""

import io

import pytest
import torch
from PIL import Image

from vtlib import data
from vtlib.teach.jpeg import BEST, WORST, jpeg, jpeg_at


def photos():
    return torch.stack(list(data.photographs(64, ["astronaut", "cat", "coffee"]).values()))


def error(got, want):
    return (got - want).square().mean((1, 2, 3))


def test_more_quality_is_more_bits_and_less_error():
    coarse, few = jpeg(photos(), 10)
    fine, many = jpeg(photos(), 90)
    assert coarse.shape == photos().shape and coarse.min() >= 0 and coarse.max() <= 1
    assert (few < many).all() and (error(coarse, photos()) > error(fine, photos())).all()


def test_bits_are_those_of_the_file_without_its_header():
    """A file with one colour is header alone, but for a few bytes."""
    grey = torch.full((1, 3, 64, 64), 0.5)
    _, bits = jpeg(grey, 50)
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (128,) * 3).save(file, "JPEG", quality=50)
    assert 0 < bits.item() < 800 < 8 * len(file.getvalue()) - 4000


def test_at_a_budget_it_takes_the_best_quality_that_fits():
    made, bits, quality = jpeg_at(photos(), 6000)
    assert (bits <= 6000).all() and (bits > 4500).all()
    for i, q in enumerate(quality.tolist()):
        same, used = jpeg(photos()[i : i + 1], q)
        assert torch.equal(same[0], made[i]) and used[0] == bits[i]
        assert jpeg(photos()[i : i + 1], q + 1)[1][0] > 6000


def test_budgets_that_no_quality_meets():
    _, bits, quality = jpeg_at(photos(), 10)
    assert quality.tolist() == [WORST] * 3 and (bits > 10).all()
    _, _, quality = jpeg_at(photos(), 1e9)
    assert quality.tolist() == [BEST] * 3


def test_double_precision_stays():
    made, _ = jpeg(photos().double(), 50)
    assert made.dtype == torch.float64


@pytest.mark.parametrize("call, told", [
    (lambda: jpeg(photos(), 0), "quality=0"),
    (lambda: jpeg(photos(), 96), "quality=96"),
    (lambda: jpeg(photos()[0], 50), "images has shape"),
    (lambda: jpeg_at(photos(), 0), "bits=0"),
])  # fmt: skip
def test_bad_input(call, told):
    with pytest.raises(ValueError, match=told):
        call()
