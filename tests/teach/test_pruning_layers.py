"""Pictures and widgets of HiPrune and VisionDrop: what they draw is what the methods choose."""

import pytest
import torch

from tests.vlm.tiny import make_tinyvlm
from vtlib.pruning import hiprune
from vtlib.pruning.bench import encode, reduce
from vtlib.teach import pruning
from vtlib.vlm import exam

GRID = (4, 5)


def shown(fig, k):
    return torch.as_tensor(fig.axes[k].images[0].get_array()).permute(2, 0, 1)


def title(ax):
    return ax.get_title() + ax.get_title(loc="left")


@pytest.fixture(scope="module")
def votes():
    """(layers=3, pictures=2, patches=20)"""
    return torch.rand(3, 2, 20, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------ layers
def test_numbers_of_layers_are_told(capsys):
    pruning.show_by_layer({"a": [0.1, 0.25], "b": [2, 3]}, "Both rise", "IoU", ylim=(0, 4))
    assert "IoU by encoder layer, 1 to 2. a 0.1, 0.25; b 2, 3." in capsys.readouterr().out


def test_the_most_voted_patches_are_white(votes, monkeypatch):
    drawn = []
    monkeypatch.setattr(pruning.layers, "show", lambda fig, alt: drawn.append((fig, alt)))
    pruning.show_votes(torch.rand(3, 32, 40), votes[:, 0], GRID, "Who is looked at")
    fig, alt = drawn[0]
    assert [title(ax) for ax in fig.axes[:4]] == ["the picture", "layer 1", "layer 2", "layer 3"]
    assert "3 layers" in alt
    for ax, row in zip(fig.axes[1:], votes[:, 0], strict=False):
        heat = torch.as_tensor(ax.images[-1].get_array())[4::8, 4::8].flatten()    # a patch each
        assert len(heat) == 20 and heat.argmax() == row.argmax() and heat.max() >= 1


# ------------------------------------------------------------------------------- neighbours, roles
def test_neighbours_are_told(capsys):
    mask = hiprune.neighbourhood(torch.tensor([[4]]), GRID)[0]
    pruning.show_neighbours({"corner": (4, mask), "again": (4, mask)}, GRID)
    said = capsys.readouterr().out
    assert "4 by 5" in said and said.count("patch 4 with 3, 9") == 2


def test_roles_are_counted(votes, capsys):
    plan = hiprune.select(votes[0], votes[1], 12, GRID, alpha=0.5)
    plans = {"the picture": None, "half": plan}
    pruning.show_roles(torch.rand(3, 32, 40), plans, GRID, row=1)
    counts = plan.role[1].bincount(minlength=3).tolist()
    said = f"half: anchor {counts[0]}, buffer {counts[1]}, register {counts[2]}."
    assert counts[0] == 1 and said in capsys.readouterr().out


def test_the_panel_of_roles_draws_hiprunes_choice(votes):
    images = torch.rand(2, 3, 32, 40)
    objects = votes[0] > 0.8
    panel = pruning.role_panel(images, votes, objects, GRID, object_layer=2, deep_layer=3)
    fig = panel.draw(picture=1, keep=10, alpha=1.0, layer=1)
    plan = hiprune.select(votes[0, 1:], votes[2, 1:], 10, GRID, 1.0)
    assert torch.allclose(shown(fig, 0), images[1])
    assert torch.allclose(shown(fig, 1), pruning.paint(images[1], plan, GRID))
    overlap = hiprune.object_iou(votes[0, 1:], objects[1:]).item()
    assert "2 anchors in 10" in title(fig.axes[1])
    assert f"layer 1: IoU of its best tenth {overlap:.2f}" == title(fig.axes[2])
    assert panel.controls["layer"].value == 2 and panel.controls["layer"].max == 3
    before = panel.frame
    panel.set(keep=8, layer=1)
    assert panel.frame != before


# ------------------------------------------------------------------------------------- the pyramid
def test_the_pyramid_shows_what_each_stage_leaves():
    model = make_tinyvlm(num_layers=4)
    images = exam.scenes(2, 0, size=64).images
    texts = ["is there a crab?", "is there a key?"]
    with torch.no_grad():
        vision = encode(model, images, ["visiondrop"])
    asked = torch.zeros(2, 64, dtype=torch.bool)
    asked[1, 9:11] = True
    panel = pruning.pyramid_panel(
        model, vision, images, texts, ["yes", "no"], patches=asked, average=10
    )
    fig = panel.draw(picture=1, average=8, positions="renumber")

    done = reduce(model, vision.rows(torch.tensor([1])), "visiondrop", 8)
    said = model.answer(done.tokens, texts[1:], done.stages)
    plans = [done.plan]
    for cut in said.prefill.plans:
        plans.append(plans[-1].then(cut))
    assert 1 + len(plans) == len(fig.axes) == 5 and len(plans[-1]) < len(plans[0])
    assert torch.allclose(shown(fig, 0), images[1])
    for k, plan in enumerate(plans, 1):
        want = pruning.paint(images[1], plan, (8, 8), colour="slots")
        assert torch.allclose(shown(fig, k), want)
        assert title(fig.axes[k]).endswith(f": {len(plan)}")
        assert len(fig.axes[k].collections[0].get_segments()) == 6     # around two patches
    assert texts[1] in fig.texts[0].get_text() and "correct: “no”" in fig.texts[0].get_text()
    before = panel.frame
    panel.set(average=20, positions="keep")
    assert panel.frame != before
