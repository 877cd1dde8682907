"""The probe tasks: deterministic, balanced, and hidden where they claim to be hidden."""

import pytest
import torch

from vtlib.multiscale import probes

from ..settings import SETTINGS


def seeded(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def test_stripes_are_seeded_and_cover_all_cases():
    images, shape, pattern = probes.stripes(300, seeded())
    again = probes.stripes(300, seeded())
    assert images.shape == (300, 1, 32, 32)
    assert torch.equal(images, again[0]) and torch.equal(pattern, again[2])
    assert len(set(zip(shape.tolist(), pattern.tolist(), strict=True))) == 9
    assert -0.4 < images.min() and images.max() < 1.4


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
@pytest.mark.parametrize("task", [probes.stripes, probes.corners])
def test_torchs_settings_change_no_task(task, setting):
    want = task(5, seeded(3))
    with setting():
        got = task(5, seeded(3))
    for now, before in zip(got, want, strict=True):
        assert now.dtype == before.dtype and torch.equal(now, before)


def test_blur_hides_the_pattern_and_keeps_the_shape():
    images, shape, pattern = probes.stripes(600, seeded(1))
    blurred = probes.blur(images)
    assert blurred.shape == images.shape
    first = images[..., :4, :4].mean(dim=(-2, -1), keepdim=True)
    assert torch.allclose(blurred[..., :4, :4], first.expand(-1, -1, 4, 4))

    def gap(x, label):
        """Largest distance of two class means, in units of the mean distance of two pictures."""
        means = torch.stack([x[label == k].mean(dim=0) for k in range(3)])
        usual = (x - x.roll(1, 0)).flatten(1).norm(dim=1).mean()
        return max((a - b).norm() for a in means for b in means) / usual

    assert gap(images, pattern) > 3 * gap(blurred, pattern)
    assert gap(blurred, shape) > 2 * gap(blurred, pattern)


def test_reader_reaches_the_other_corner_only_through_both_kinds():
    tokens, first, _ = probes.corners(8, seeded())
    opposite = torch.arange(8), 80 - first
    changed = tokens.clone()
    changed[opposite] = tokens[opposite].roll(1, dims=-1)                        # another colour
    for kinds in (("sda", "sda"), ("lda", "lda"), ("sda", "lda")):
        reaches = kinds == ("sda", "lda")
        reader = probes.Reader(kinds, 3).eval()
        with torch.no_grad():
            moved = (reader(tokens, first) - reader(changed, first)).abs().max() > 0
        assert moved == reaches, kinds
    assert not probes.Reader(("sda",), 3).blocks[0].mlp.fc1.bias.any()
    assert probes.Reader(("sda",), 3, zero_bias=False).blocks[0].mlp.fc1.bias.any()


def test_corners_hold_the_answer_opposite():
    tokens, first, colour = probes.corners(200, seeded(), side=5, colours=3)
    assert tokens.shape == (200, 25, 3)
    assert torch.equal(tokens.sum(dim=(1, 2)), torch.full((200,), 2.0))
    assert set(first.tolist()) == {0, 4, 20, 24}
    assert torch.equal(tokens[torch.arange(200), 24 - first].argmax(dim=-1), colour)
    assert set(colour.tolist()) == {0, 1, 2}
    assert torch.equal(tokens, probes.corners(200, seeded(), side=5, colours=3)[0])


@pytest.mark.parametrize("task", [probes.stripes, probes.corners])
def test_tasks_draw_from_a_generator_alone(task):
    for wrong in (None, 0):                              # None would be the global random numbers
        with pytest.raises(ValueError, match="generator is a .*: needs a torch.Generator"):
            task(2, wrong)
    with pytest.raises(ValueError, match="^device='gpu'"):
        task(2, seeded(), device="gpu")


def test_two_branches_take_the_stripes():
    images, _, _ = probes.stripes(2, seeded())
    torch.manual_seed(0)
    model = probes.two_branches("cross")
    assert model(images).shape == (2, 9)
    assert [embed.num_patches for embed in model.patch_embed] == [64, 16]
    assert len(model.blocks) == 2 and model.blocks[0].kind == "cross"
    larger = model.blocks[0].projs[0][2].weight.std()
    assert larger > 3 * probes.two_branches("cross", False).blocks[0].projs[0][2].weight.std()
