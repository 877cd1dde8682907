"""Scenes on two kinds of stuff: the truth is exact, and the same for the same seed."""

import pytest
import torch

from vtlib.data import STUFF, EmojiWorld, stuff_scenes
from vtlib.data.stuff import parted

PICTOGRAMS = ["cactus", "octopus"]


@pytest.fixture(scope="module")
def world():
    return EmojiWorld(48, "test", pictograms=PICTOGRAMS)


def test_every_pixel_has_its_segment(world):
    parts = stuff_scenes(world, 6, seed=3, objects=(1, 3))
    codes, scenes = parts.codes(), parts.scenes
    assert parts.names == [*STUFF, *PICTOGRAMS] and parts.things == {3, 4}
    assert codes.shape == (6, 48, 48) and codes.min() >= 0
    free = scenes.instance == 0
    assert torch.equal(codes[free], parts.stuff[free] * 1000)
    for i in range(6):
        of_picture, rows = parts.segments(i)
        assert sum(int((of_picture == code).sum()) for code, _, _ in rows) == 48 * 48
        assert len(parts.stuff[i].unique()) == 2
        for code, number, crowd in rows:
            slot = code % 1000 - 1
            want = number if slot < 0 else 3 + int(scenes.pictogram[i, slot])
            assert number == want and not crowd


def test_each_kind_of_stuff_looks_like_itself(world):
    """Paper is one colour; where it is free of objects nothing varies."""
    parts = stuff_scenes(world, 8, seed=0, objects=1)
    seen = 0
    for image, stuff, instance in zip(
        parts.scenes.images, parts.stuff, parts.scenes.instance, strict=True
    ):
        paper = (stuff == STUFF.index("paper")) & (instance == 0)
        # a drawing's soft border reaches a pixel beyond its mask
        colours = image[:, paper].T.mul(255).round().unique(dim=0, return_counts=True)[1]
        if paper.any():
            seen += 1
            assert colours.max() > 0.8 * paper.sum()
    assert seen > 2


def test_same_seed_same_scenes(world):
    first, again, other = (stuff_scenes(world, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.scenes.images, again.scenes.images)
    assert torch.equal(first.codes(), again.codes())
    assert not torch.equal(first.codes(), other.codes())


def test_both_sides_of_the_curve_are_large():
    sides = parted((40, 64), 200, torch.Generator().manual_seed(0))
    share = sides.float().mean((1, 2))
    assert sides.shape == (200, 40, 64) and 0.15 < share.min() and share.max() < 0.85


def test_bad_input(world):
    with pytest.raises(ValueError, match="batch"):
        stuff_scenes(world, 0, seed=0)
    with pytest.raises(ValueError, match="seed"):
        stuff_scenes(world, 1, seed=0.5)
