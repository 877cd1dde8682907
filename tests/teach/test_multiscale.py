"""Pictures and panels of the multi-scale notebooks: they show the numbers that came in."""

import math

import pytest
import torch
from torch import nn

from vtlib import data, teach
from vtlib.multiscale import crossvit, pretrained
from vtlib.teach import figures, multiscale


@pytest.fixture
def told(monkeypatch):
    """The plain text of all that is published."""
    found = []

    def publish(bundle, **kw):
        found.append(bundle["text/plain"])

    monkeypatch.setattr(figures, "publish", publish)
    return found


def titles(fig):
    """Of each panel, wherever the style in force has put it."""
    return [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes]


# ---------------------------------------------------------------------------------------- patches
def test_unequal_scene_has_a_tiny_and_a_huge_object():
    image, masks = multiscale.unequal_scene()
    again, _ = multiscale.unequal_scene()
    assert image.shape == (3, 96, 96) and torch.equal(image, again)
    tiny, huge = masks.values()
    assert set(masks) <= set(data.EASY) and 0 < tiny.sum() < huge.sum() / 20
    assert set(tiny.unique().tolist()) == {0.0, 1.0}


def test_cuts_shares_and_spread_tell_what_they_show(told):
    photo = torch.zeros(3, 16, 16)
    photo[:, :, 8::2] = 1                                    # a flat half, and one of stripes
    multiscale.show_cuts(photo, (8, 4))
    multiscale.show_shares((4, 8), {"apple": [1.0, torch.tensor(0.25)]}, "One number a side")
    multiscale.show_spread(photo, (8, 4))
    assert told[0].endswith("into 4 patches and into 16 patches.")
    assert "apple: from 1.00 at P = 4 to 0.25 at P = 8" in told[1]
    assert "P = 8: 50% flat, 50% busy; P = 4: 50% flat, 50% busy" in told[2]
    with pytest.raises(ValueError, match="patches"):
        multiscale.show_cuts(photo, (0,))


# --------------------------------------------------------------------------------------- branches
def test_grids_and_answers_tell_what_they_show(told):
    multiscale.show_grids(torch.rand(3, 48, 48), sizes=(48, 32), patches=(12, 16))
    assert "4 x 4 small patches and into 2 x 2 large ones" in told[0]
    run = {"S, pattern": 1.0, "L, pattern": 0.4, "S, shape": 0.7, "L, shape": 0.7}
    multiscale.show_answers({"none": [run, run | {"L, pattern": 0.3}]}, chance=1 / 3)
    assert "none 0.40 and 0.30" in told[1]
    with pytest.raises(ValueError, match="sizes"):
        multiscale.show_grids(torch.rand(3, 48, 48), sizes=(48,), patches=(12, 16))


def test_visits_show_the_chosen_weights():
    attention = []
    for encoder in (1, 2):
        to_l, to_s = torch.zeros(2, 3, 1, 17), torch.zeros(2, 3, 1, 65)
        to_l[..., 0], to_s[..., 0] = 0.1 * encoder, 0.3 * encoder
        attention.append([to_l, to_s])
    pictures = {"one": torch.rand(3, 48, 48), "two": torch.rand(3, 48, 48)}
    panel = multiscale.visit_panel(pictures, attention)
    fig = panel.draw(picture=1, branch=1, encoder=2, head=3)
    assert titles(fig)[1] == "L's [CLS] reads S (60% on itself)"
    assert "(10% on itself)" in titles(panel.draw(picture=0, branch=0, encoder=1, head=1))[1]
    panel.set(picture=1, encoder=2)


def test_cost_panel_compares_the_first_with_the_last():
    costs = {"square": lambda n, m: 1e6 * (n + m) ** 2, "line": lambda n, m: 1e6 * (n + m)}
    fig = multiscale.fusion_cost_panel(costs).draw(size=240)
    assert titles(fig) == ["400 + 225 patches: square costs 625 x"]


# ----------------------------------------------------------------------------------------- groups
def test_kernel_panel_shows_channels_and_work():
    panel = multiscale.kernel_panel(
        torch.rand(3, 128, 128), lambda kernels: [6] * len(kernels),
        lambda kernels, dims: [float(k) for k in kernels],
    )
    shown = titles(panel.draw(kernels=(4, 12), row=31, col=0))
    assert shown[0] == "16 MFLOPs for all 32 x 32 tokens"
    assert shown[1:3] == ["4 x 4 pixels\n6 channels\n25% of FLOPs",
                          "12 x 12 pixels\n6 channels\n75% of FLOPs"]


def test_groups_and_padding_tell_what_they_show(told):
    place = torch.arange(4)
    near, far = place // 2, place % 2
    regions = torch.arange(8) // 4 * 4 + torch.arange(8) % 2
    maps = [rows[:, None] * 10 + rows for rows in (near, far, regions)]
    multiscale.show_groups(*maps, side=4)
    assert "the first holds 0, 1, 4, 5." in told[0] and "the first holds 0, 2, 8, 10." in told[0]
    multiscale.show_padding(3, 4, {"no mask": torch.full((4,), 0.25)})
    assert "no mask: 0.25, 0.25, 0.25, 0.25" in told[1]


def group_of(size, group_size, interval=1):
    place = torch.arange(size)
    region = group_size * interval
    return place // region * region + place % interval


def test_group_panel_counts_group_and_reach():
    panel = multiscale.group_panel(group_of, lambda size, *_: torch.ones(size, size) > 0)
    fig = panel.draw(size=5, group=2, interval=2, row=4, col=9, blocks=2)
    # the last of five places: alone in its SDA group, in its LDA group as well
    assert titles(fig) == ["SDA: a group of 1", "LDA: a group of 1", "after 2 blocks: 25 of 25"]
    assert fig.axes[0].images[0].get_array().shape[:2] == (6, 6)             # padded
    assert fig.axes[1].images[0].get_array().shape[:2] == (8, 8)
    assert [ax.get_xlim() for ax in fig.axes] == [(-0.6, 7.6)] * 3           # a token has one size
    panel.set(size=8, group=4)


@pytest.mark.parametrize("group_size", [2, 3, 7])
def test_three_blocks_reach_a_map_of_side_g_i_while_i_is_less_than_2_g(group_size):
    """What the notebook says of SDA, LDA, SDA, along an axis."""
    for interval in range(1, 2 * group_size + 3):
        size = group_size * interval
        near, far = group_of(size, group_size), group_of(size, group_size, interval)
        near, far = ((place[:, None] == place).float() for place in (near, far))
        assert bool((near @ far @ near > 0).all()) == (interval < 2 * group_size)


def test_bias_panel_shows_errors():
    def tables(group):
        flat = torch.zeros(2 * group - 1, 2 * group - 1, 3)
        return {"wanted": flat, "DPB": flat + 0.5, "stretched": flat + 2}

    shown = titles(multiscale.bias_panel(tables, trained=2).draw(group=3, head=1))
    assert shown == ["wanted, bright: large", "DPB, error 0.250", "stretched, error 4.000"]


# ------------------------------------------------------------------------------------------ pairs
def test_growth_panel_counts_old_and_new_pairs():
    def regrow(m, keys, tau):
        old = torch.tensor([-1.1, 0.1, 2.1, 9.0]).expand(10, 4)          # the last beyond the edge
        new = torch.full((10, m), 0.1 if keys == "zero" else -2.1)
        return torch.cat([old, new], dim=1), 0.25 * m, 1 + m

    panel = multiscale.growth_panel(regrow)
    first = panel.frame
    fig = panel.draw(m=100, keys="zero", tau="keep")
    assert titles(fig) == ["Output moves by 25.00, loss 1.000 to 101.000 nats"]
    before, old, new, weights = (bars.get_data().values for bars in fig.axes[0].patches)
    assert sorted(before)[-5:] == [-2, 0, 0, 0, 0]           # log10 of one pair a token, four times
    assert before[-1] == 0 and (old == before).all()
    assert new[20] == new.max() == 2                         # a hundred, in the bin right of 0
    assert weights[20] == pytest.approx(math.log10(101)) and weights[19] == 0
    panel.set(m=8, keys="random")
    assert panel.frame != first
    panel.set(m=32, keys="zero")
    assert panel.frame == first


def test_pair_panel_sorts_pairs_and_shows_the_chosen_one():
    weights = torch.zeros(2, 1 + 4, 3)
    weights[:, 0] = 9                                        # [CLS] is not drawn
    weights[1, 1:, 2] = torch.tensor([0.0, 1, 2, 3])         # differs most: pair 0 of the panel
    weights[1, 1:, 1] = torch.tensor([0.0, 0, 0, 1])
    pictures = {"one": torch.rand(3, 8, 8), "two": torch.rand(3, 8, 8)}
    panel = multiscale.pair_panel(pictures, [torch.zeros_like(weights), weights])
    fig = panel.draw(picture=1, layer=2, pair=0)
    assert titles(fig)[:2] == ["2 x 2 patches", "Layer 2, pair 0: 0.0 to 3.0"]
    assert fig.axes[1].images[0].get_array().tolist() == [[0, 1], [2, 3]]
    assert titles(panel.draw(picture=1, layer=2, pair=1))[1].endswith("0.0 to 1.0")
    panel.set(picture=1, layer=2, pair=2)


# ----------------------------------------------------------------------------------------- models
def test_scores_tell_each_seed(told):
    runs = [{"small": 10, "large": 50}, {"small": 20, "large": 60}]
    multiscale.show_by_size({"ViT": runs}, "Two seeds of one model", chance=25)
    multiscale.show_fusions({"none": [40.0, 45.5]})
    assert told[0].endswith("one number a seed: ViT 10/20, 50/60. Guessing gets 25.")
    assert "none 40.0 and 45.5" in told[1]


def test_guess_panel_shows_three_names_a_model():
    torch.manual_seed(0)
    world = data.EmojiWorld(48, "test", pictograms=list(data.EASY))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 12))
    fig = multiscale.guess_panel({"a": model, "b": model}, world).draw(size=0.5, scene=3)
    _, label = world.classify(1, seed=3, scale=(0.5, 0.5), clutter=1)
    assert titles(fig)[0] == f"{world.classes[label[0]]}, 24 pixels"
    said = [text.get_text() for text in fig.axes[0].texts]
    probabilities = model(world.classify(1, seed=3, scale=(0.5, 0.5), clutter=1)[0]).softmax(dim=1)
    highest, best = probabilities[0].max(dim=0)
    assert said.count(f"{world.classes[best]} {highest:.2f}") == 2 and len(said) == 2 * 4 + 1
    assert [len(bars.get_segments()) for bars in fig.axes[0].collections] == [3, 3]


def test_models_that_are_lost_are_sure_all_the_same(told):
    """What the notebook says of objects smaller than a patch, and of the background's share."""
    world = data.EmojiWorld(48, "test", pictograms=list(data.EASY))
    models = {name: pretrained.emoji(name) for name in ("vit", "crossvit", "crossformer")}
    counts = multiscale.lost_and_sure(models, world, 0.15)
    assert counts[:, 0].max() <= 3 and counts[:, 1].min() > 31 / 2
    assert "31 pictures with an object of 7 pixels" in told[0]
    before_one_flower = [world.classify(1, seed=k, scale=(0.2, 0.2), clutter=1)[0]
                         for k in (0, 13, 14)]
    pizza = world.classes.index("slice of pizza")
    for model in models.values():
        assert (model(torch.cat(before_one_flower)).argmax(dim=1) == pizza).all()


# ----------------------------------------------------------------------------------------- trials
def test_race_trains_each_rival_from_each_seed(told):
    def loss(model, step, generator):
        x = torch.randn(8, 2, generator=generator)
        value = (model(x)[:, 0] - x.sum(dim=1)).square().mean()
        return value, 10 * value

    settings = dict(steps=30, rate=0.1, title="A line", ylabel="error", alt="The error falls fast.")
    makers = {"line": lambda: nn.Linear(2, 1), "same": lambda: nn.Linear(2, 1)}
    models, losses = multiscale.race(makers, loss, seeds=(0, 3), **settings)
    assert losses["line"] == losses["same"] and len(losses["line"][1]) == 30
    assert losses["line"][0] != losses["line"][1]
    torch.manual_seed(3)
    first = loss(nn.Linear(2, 1), 0, torch.Generator().manual_seed(3))[1].item()
    assert losses["line"][1][0] == first                    # the second of the pair is shown
    assert sum(losses["line"][0][-5:]) < 0.1 * sum(losses["line"][0][:5])
    assert len(models["line"]) == 2 and not models["line"][0].training


def test_share_right_is_told_and_returned(told):
    identity = nn.Identity()
    logits, answers = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert multiscale.share_right({"all": [identity]}, (logits,), answers) == {"all": [0.75]}
    assert "0.75" in told[0]


def test_stored_scores_and_starts():
    first, second = multiscale.stored_scores("crossvit")
    assert set(first) == {"small", "medium", "large"} and first != second
    assert 70 < first["large"] < 100
    makers = multiscale.two_starts({"exchange": "crossvit"})
    assert list(makers) == ["exchange, official", "exchange, larger"]
    spread = [make().model.blocks[0].projs[0][2].weight.std() for make in makers.values()]
    assert spread[0] < 0.03 < 0.1 < spread[1]


@pytest.mark.parametrize("n_small, n_large, widths", [(16, 4, (8, 16)), (9, 9, (12, 24))])
def test_fusions_are_counted_as_torch_counts_them(n_small, n_large, widths):
    plan = dict(dims=widths, depth=(0, 0), num_heads=(2, 2), mlp_ratio=(4, 4), qkv_bias=True,
                drop_path=[0.0])
    counts = {"all": multiscale.all_attention_flops, "cross": multiscale.exchange_flops}
    for kind, count in counts.items():
        with torch.device("meta"):
            fusion = crossvit.MultiScaleEncoder(**plan, fusion=kind).eval()
            tokens = [torch.empty(1, 1 + n, d)
                      for n, d in zip((n_small, n_large), widths, strict=True)]
        assert teach.flops(fusion, tokens) == count(n_small, n_large, widths)


def test_bias_tables_hold_what_is_wanted(told):
    def offsets(group):
        step = torch.arange(1 - group, group)
        return torch.cartesian_prod(step, step)

    wanted = multiscale.three_biases(offsets(2).float())
    assert wanted[4].tolist() == [1.0, 0.0, 0.0] and wanted[1, 1] < 0 < wanted[7, 1]

    class Exact(nn.Module):
        def forward(self, at):
            return multiscale.three_biases(at)

    tables = multiscale.bias_tables(Exact(), offsets, trained=2)
    at = tables(3)
    assert at["wanted"].shape == (5, 5, 3) and at["wanted"][2, 4, 2] == -2 / 6
    assert torch.equal(tables(2)["stretched"], tables(2)["wanted"])
    errors = multiscale.bias_errors(tables, (2, 3))
    assert errors[2] == (0, 0) and errors[3][0] == 0 < errors[3][1]
    spread = tables(3)["wanted"].flatten(0, 1).var(dim=0, correction=0).mean()
    assert f"{spread:.3f}" in told[-1]                      # the yardstick: each head's mean
    torch.manual_seed(0)
    assert multiscale.fit_bias(nn.Linear(2, 3), offsets(2)) < 0.1


def test_bill_counts_as_the_meters_do():
    model, images = nn.Conv2d(3, 5, 2, stride=2), torch.rand(2, 3, 4, 4)
    work, milliseconds, parameters, kept = multiscale.bill(model, images)
    assert work == teach.flops(model, images[:1]) / 1e6 and milliseconds > 0 and kept > 0
    assert parameters == (3 * 4 * 5 + 5) / 1e6
    assert kept == multiscale.bill(model, images[:1].clone())[-1]         # of one image, not of all


def test_no_model_of_another_name():
    with pytest.raises(ValueError, match="name='vgg'"):
        multiscale.stored_scores("vgg")
    with pytest.raises(ValueError, match="name='vgg'"):
        multiscale.two_starts({"none": "vgg"})
    assert set(pretrained.SHIPPED) < set(pretrained.MODELS)
