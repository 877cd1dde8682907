"""Colours, best averages, masks and the microscope of the notebook on feature upsampling."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from vtlib.superres import uplift
from vtlib.teach import figure
from vtlib.teach.superres import features


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------ colours
def test_like_features_have_like_colours_in_maps_of_any_size():
    small = random(16, 4, 5)
    large = F.interpolate(small[None], scale_factor=3, mode="nearest")[0]
    painted, enlarged = features.colours(small, large)
    assert painted.shape == (3, 4, 5) and enlarged.shape == (3, 12, 15)
    assert 0 <= painted.min() and painted.max() <= 1 and painted.std() > 0.1
    torch.testing.assert_close(enlarged[:, 1::3, 1::3], painted)


class MeanOfPatches(torch.nn.Module):
    """As transformers' models are called: a mean a patch, behind one [CLS]."""

    config = SimpleNamespace(patch_size=14)

    def forward(self, x):
        tokens = F.avg_pool2d(x, 14).flatten(2).mT
        return SimpleNamespace(last_hidden_state=torch.cat([tokens[:, :1] + 9, tokens], dim=1))


def test_maps_of_a_backbone_have_a_feature_a_patch_of_normalised_pictures():
    maps = features.maps_of(MeanOfPatches())
    images = torch.full((2, 3, 28, 42), 0.5)
    images[:, :, 14:, 28:] = 1.0                          # the last patch
    found = maps(images)
    assert found.shape == (2, 3, 2, 3)
    wanted = torch.tensor([(0.5 - 0.485) / 0.229, (1 - 0.485) / 0.229])
    torch.testing.assert_close(found[0, 0, 0, 0], wanted[0])
    torch.testing.assert_close(found[1, 0, 1, 2], wanted[1])
    with pytest.raises(ValueError, match="images .* is not a multiple of 14"):
        maps(images[..., :40])


def test_colours_follow_the_largest_direction():
    x = 0.01 * random(8, 6, 6)
    x[3, :, 3:] += 5
    red = features.colours(x)[0][0]
    assert (red[:, :3] - red[:, 3:]).abs().min() > 0.5


def test_classes_are_painted_one_colour_each():
    picture = features.paint(torch.arange(13).reshape(1, 13))
    assert picture.shape == (3, 1, 13) and len(picture.unique(dim=2)[0, 0]) == 13
    torch.testing.assert_close(picture[:, 0, 0], torch.full((3,), 0xEE / 255))


# ------------------------------------------------------------------------------------ best averages
def test_the_best_average_is_the_nearest_point_of_the_hull():
    near = torch.tensor([[[0.0, 0], [2, 0], [0, 2]]])
    want = torch.tensor([[[0.5, 0.5], [3, 0], [-1, -1], [2, 2]]])
    nearest = torch.tensor([[[0.5, 0.5], [2, 0], [0, 0], [1, 1]]])
    got = features.best_average(near, want, steps=200)
    torch.testing.assert_close(got, nearest, atol=0.03, rtol=0)


def test_the_best_of_17_neighbours_finds_what_weights_made():
    coarse = random(1, 32, 4, 3)
    attn = (3 * random(1, 17, 8, 6, seed=1)).softmax(1)
    want = uplift.pool(attn, coarse, uplift.OFFSETS[17])
    got = features.best_of_17(coarse, want)
    assert (got - want).square().mean() < 0.02 * want.var()
    everything = features.best_of_all(coarse, want)
    assert everything.shape == want.shape
    assert (everything - want).square().mean() < 0.02 * want.var()
    shuffled = features.best_of_17(coarse.flip(-1), want)          # other cells, other neighbours
    assert (shuffled - want).square().mean() > (got - want).square().mean()


# ------------------------------------------------------------------------------------------- masks
def test_a_probe_finds_classes_that_a_line_tells_apart():
    x = random(300, 4)
    answers = (x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()
    weight, bias = features.fit_probe(x, answers, 4)
    assert weight.shape == (4, 4) and bias.shape == (4,) and not weight.requires_grad
    assert (F.linear(x, weight, bias).argmax(1) == answers).float().mean() > 0.95


def test_mean_iou_by_hand():
    want = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 0, 1]]])
    got = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]]])
    counts = features.overlaps(got, want, 2)
    assert counts.tolist() == [[[1, 2], [3, 0]], [[2, 3], [4, 1]]]
    assert features.mean_iou(counts) == pytest.approx((4 / 6 + 2 / 4) / 2)


def test_the_range_of_a_lead_holds_no_surprise_for_equal_methods():
    want = torch.randint(3, (12, 6, 6), generator=torch.Generator().manual_seed(0))
    got = want.roll(1, -1)
    better = features.overlaps(want, want, 3)
    worse = features.overlaps(got, want, 3)
    assert features.iou_range(worse, worse, draws=20) == (0, 0)
    low, high = features.iou_range(better, worse, draws=50)
    assert -0.2 < low < 0 < high < 0.2


def test_border_and_speckles():
    labels = torch.zeros(1, 7, 9, dtype=torch.long)
    labels[:, :, 5:] = 1
    assert features.near_border(labels)[0, 0].tolist() == [False] * 3 + [True] * 4 + [False] * 2
    assert features.speckles(labels) == 0
    labels[0, 3, 2] = labels[0, 1, 7] = 4
    assert features.speckles(labels) == 2


# -------------------------------------------------------------------------------------- microscope
def test_the_microscope_shows_where_the_weights_lie():
    attn = torch.zeros(1, 17, 8, 8)
    attn[:, uplift.OFFSETS[17].index((0, 1))] = 0.75
    attn[:, uplift.OFFSETS[17].index((-2, 0))] = 0.25
    heat, held = features.weight_map(attn, 17, (4, 2))
    assert held == 1 and heat[2, 2] == 0.75 and heat[0, 1] == 0.25
    heat, held = features.weight_map(attn, 5, (4, 2))
    assert held == 0.75 and heat.isfinite().sum() == 5
    heat, _ = features.weight_map(attn, 17, (7, 7))                      # both meet the edge
    assert heat[3, 3] == 0.75 and heat[1, 3] == 0.25
    assert len(features.subset(13)) == 13 and features.subset(17) == list(range(17))


def test_weights_are_written_into_their_cells():
    fig, ax = figure()
    heat = torch.full((3, 3), float("nan"))
    heat[0, 1], heat[2, 2] = 0.75, 0.249
    features.write_weights(ax, heat, 8)
    assert {text.get_text(): text.get_position() for text in ax.texts} == {
        "75": (11.5, 3.5), "25": (19.5, 19.5),
    }
    squares = [path.get_extents().bounds for path in ax.collections[0].get_paths()]
    assert squares == [(7.5, -0.5, 8, 8), (15.5, 15.5, 8, 8)]


@pytest.mark.parametrize(
    "cell,cells,want", [(5, 12, (2, 9)), (0, 12, (0, 7)), (11, 12, (5, 12)), (1, 4, (0, 4))]
)
def test_cells_around_one_stay_in_the_grid(cell, cells, want):
    assert features.around(cell, cells) == want


def test_no_two_methods_look_alike():
    for part in ("color", "marker"):
        assert len({look[part] for look in features.LOOKS.values()}) == len(features.LOOKS)


def test_the_microscope_at_the_ends_of_its_sliders():
    images = list(torch.rand(2, 3, 32, 32))
    attns = [[torch.full((1, 17, s, s), 1 / 17) for s in (8, 16)] for _ in images]
    tints = [{"UPLiFT": [torch.rand(3, 8, 8), torch.rand(3, 16, 16)]} for _ in images]
    panel = features.microscope(images, attns, tints, start={"row": 8, "column": 4})
    panel.set(picture=1, iteration=2, row=28, column=0, neighbours=5)
    panel.set(picture=0, iteration=1, row=0, column=28, neighbours=17)
