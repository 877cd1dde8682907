"""Textured camouflage: exactly alike in mean and variance, unlike in direction and fineness."""

import dataclasses
import math

import pytest
import torch

from vtlib.data import TextureWorld
from vtlib.data.textures import (
    ANGLES,
    HELD_OUT,
    NAMES,
    SEEN,
    TEXT_DIM,
    WAVELENGTHS,
    prompt,
    texture,
    vectors,
)


@pytest.fixture(scope="module")
def world():
    return TextureWorld(48)


@pytest.fixture(scope="module")
def scenes(world):
    return world.scenes(16, seed=0)


def regions(scenes):
    """(picture, pixels (3, N) of each region that is seen), in float64."""
    for image, instance in zip(scenes.images, scenes.instance, strict=True):
        yield [image[:, instance == k].double() for k in instance.unique()]


def test_mean_and_variance_give_nothing_away(scenes):
    for parts in regions(scenes):
        assert len(parts) > 1
        for part in parts[1:]:
            torch.testing.assert_close(part.mean(1), parts[0].mean(1), atol=1e-5, rtol=0)
            spread = [p.std(1, unbiased=False) for p in (part, parts[0])]
            torch.testing.assert_close(*spread, atol=1e-5, rtol=0)


def test_contrast_is_the_ratio_of_amplitudes_and_colour_the_distance_of_means(world):
    loud = world.scenes(8, seed=1, contrast=1.5)
    for parts in regions(loud):
        ratio = parts[1].std(1, unbiased=False) / parts[0].std(1, unbiased=False)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 1.5), atol=0.02, rtol=0)  # clipped
    coloured = world.scenes(8, seed=1, colour=0.1)
    for parts in regions(coloured):
        assert (parts[1].mean(1) - parts[0].mean(1)).norm().item() == pytest.approx(0.1, abs=1e-3)


def test_a_texture_has_its_direction_and_wavelength():
    """The power's centre of a large field, back in degrees and pixels."""
    generator = torch.Generator().manual_seed(0)
    fields = texture(torch.arange(8), (256, 256), generator).double()
    power = torch.fft.fft2(fields).abs().square()
    rows = torch.fft.fftfreq(256, dtype=torch.float64)[:, None].expand(256, 256)
    columns = rows.T
    for name, p in zip(NAMES, power, strict=True):
        size, angle = name.split()
        twice = 2 * torch.atan2(-rows, columns)
        across = torch.atan2((p * twice.sin()).sum(), (p * twice.cos()).sum()) / 2
        off = (math.degrees(across) - 90 - ANGLES[angle] + 90) % 180 - 90
        assert abs(off) < 5, name
        radius = ((p * (rows.square() + columns.square()).sqrt()).sum() / p.sum()).item()
        assert radius * WAVELENGTHS[size] == pytest.approx(1, abs=0.15), name


def test_objects_have_other_textures_than_the_ground_and_masks_are_exact(scenes):
    seen = scenes.valid
    assert (scenes.label[seen] != scenes.ground[:, None].expand_as(seen)[seen]).all()
    assert (scenes.label[~seen] == -1).all()
    assert torch.equal(scenes.masks.flatten(2).any(-1), seen)
    assert set(scenes.label[seen].tolist()) <= set(SEEN)
    assert torch.equal(scenes.semantic > 0, scenes.instance > 0)
    behind = scenes.instance == 0
    ground = scenes.ground[:, None, None].expand_as(scenes.instance)
    assert torch.equal(scenes.surface[behind], ground[behind])


def test_same_and_classes(world):
    never = world.scenes(32, 3, objects=3, same="never")
    for row, valid in zip(never.label.tolist(), never.valid.tolist(), strict=True):
        shown = [c for c, v in zip(row, valid, strict=True) if v]
        assert len(shown) == len(set(shown))
    both = world.scenes(32, 3, objects=2, same="all")
    assert all(len(set(row) - {-1}) == 1 for row in both.label.tolist())
    new = world.scenes(8, 3, classes=HELD_OUT, grounds=SEEN)
    assert set(new.label[new.valid].tolist()) <= set(HELD_OUT)
    by_name = world.scenes(8, 3, classes=[NAMES[i] for i in HELD_OUT], grounds=list(SEEN))
    assert torch.equal(by_name.images, new.images)


def test_the_seed_decides(world, scenes):
    torch.manual_seed(5)
    again = world.scenes(16, seed=0)
    for field in dataclasses.fields(scenes):
        assert torch.equal(getattr(again, field.name), getattr(scenes, field.name)), field.name
    assert not torch.equal(world.scenes(16, seed=1).images, scenes.images)
    state = torch.get_rng_state()
    world.scenes(2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_sizes_need_not_be_square():
    scenes = TextureWorld((33, 50), "test").scenes(2, 0)
    assert scenes.images.shape == (2, 3, 33, 50) and scenes.instance.shape == (2, 33, 50)


def test_vectors_are_frozen_and_know_what_is_alike():
    v = vectors()
    v.zero_()
    v = vectors()
    torch.testing.assert_close(v.norm(dim=1), torch.ones(8))
    like = (v @ v.T).tolist()
    a, b = NAMES.index("coarse level"), NAMES.index("coarse rising")
    c, d = NAMES.index("fine upright"), NAMES.index("coarse upright")
    assert like[a][b] > 0.4 and abs(like[a][d]) < 0.05 and like[a][c] < -0.9


def test_the_text_names_objects_and_nothing_else(scenes):
    text = scenes.text()
    assert text.shape == (16, 2, TEXT_DIM)
    assert torch.equal((text != 0).any(-1), scenes.valid)
    assert torch.equal(text[scenes.valid], vectors()[scenes.label[scenes.valid]])
    more = scenes.text(extra=["fine level"])
    assert more.shape[1] == 3 and torch.equal(more[3, 2], vectors()[NAMES.index("fine level")])
    for row, caption in zip(scenes.label.tolist(), scenes.captions(), strict=True):
        assert set(caption.split(", ")) == {NAMES[i] for i in row if i >= 0}


@pytest.mark.parametrize(("given", "name"), [
    (dict(contrast=9), "contrast"),
    (dict(colour=-1), "colour"),
    (dict(classes=[9]), "classes"),
    (dict(classes=()), "classes"),
    (dict(classes=["plaid"]), "classes"),
    (dict(classes=[1]), "grounds"),
    (dict(same="sometimes"), "same"),
    (dict(objects=0), "objects"),
    (dict(device="meta"), "device"),
])
def test_bad_input_is_named(world, given, name):
    with pytest.raises(ValueError, match=name):
        world.scenes(2, 0, **given)
    with pytest.raises(ValueError, match="size"):
        TextureWorld(8)
    with pytest.raises(ValueError, match="label"):
        prompt(torch.tensor([8]))
