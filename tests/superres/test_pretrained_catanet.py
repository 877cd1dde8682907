"""The shipped image nets: they load, say how they were made, beat bicubic on photographs they never
saw, and differ in the aggregation alone."""

import pytest
import torch

from vtlib import checkpoints, data
from vtlib.data import photographs
from vtlib.data.footage import split_names
from vtlib.superres import bicubic, pretrained, psnr

VARIANTS = {None: "catanet_small", "local": "catanet_small_local"}


@pytest.fixture(scope="module")
def held_out():
    """Middle of each test photograph, 128 x 128."""
    middle = []
    for photo in photographs(names=split_names("test")).values():
        y, x = (side // 2 - 64 for side in photo.shape[-2:])
        middle.append(photo[:, y : y + 128, x : x + 128])
    return torch.stack(middle)


@pytest.mark.parametrize("variant", VARIANTS)
def test_beats_bicubic_on_real_photographs(variant, held_out):
    small = bicubic(held_out, 1 / 2)
    with torch.no_grad():
        model = pretrained.catanet_small(variant)
        got = psnr(model(small).clamp(0, 1), held_out, crop=2)
    gain = got - psnr(bicubic(small, 2).clamp(0, 1), held_out, crop=2)
    assert gain.mean() > 0.5 and gain.min() > 0, gain


def test_grouping_matters(held_out):
    """With other centres the same net does worse: it uses its groups."""
    model, small = pretrained.catanet_small(), bicubic(held_out, 1 / 2)
    with torch.no_grad():
        before = psnr(model(small).clamp(0, 1), held_out, crop=2).mean()
        for block in model.blocks:
            block[0].means.copy_(block[0].means.flip(1))
        after = psnr(model(small).clamp(0, 1), held_out, crop=2).mean()
    assert before > after + 0.02, (before, after)


def test_how_they_were_made():
    rows = {variant: checkpoints.info(name) for variant, name in VARIANTS.items()}
    a, b = rows.values()
    assert {**a["config"], "aggregate": None} == {**b["config"], "aggregate": None}
    assert (a["steps"], a["seed"]) == (b["steps"], b["seed"])
    assert a["config"]["aggregate"] and not b["config"]["aggregate"]
    for variant, row in rows.items():
        assert row["score"]["all"]["model"][0] > row["score"]["all"]["bicubic"][0] + 0.5
        assert "train/catanet.py" in row["command"]
        assert data.checkpoint(VARIANTS[variant]).stat().st_size < 1.5e6


def test_another_variant():
    with pytest.raises(ValueError, match="'global'"):
        pretrained.catanet_small("global")
