"""Scenes against a slow reference: pictures, masks, boxes, areas, depth, semantic and panoptic
labels, signs, speed."""

import statistics
import time

import numpy as np
import pytest
import torch

from tests.data import reference
from vtlib import data
from vtlib.data import pictograms

WORLDS = [
    (dict(size=(56, 72), artist="both"), dict(objects=(1, 4))),
    (
        dict(size=48, artist="noto", split="test"),
        dict(objects=6, scale=(0.1, 0.7), rotation=180, occlusion="any"),
    ),
    (
        dict(size=(61, 45), artist="twemoji", split="all"),
        dict(objects=(2, 3), scale=(0.6, 1.0), repeat=1.0),
    ),
]


@pytest.fixture(scope="module", params=WORLDS, ids=("default", "crowded", "large"))
def drawn(request):
    world, call = request.param
    world = data.EmojiWorld(**world)
    ground = torch.rand(3, *world.size, generator=torch.Generator().manual_seed(1))
    scenes = world.scenes(6, 5, background=ground, **call)
    return scenes, [reference.scene(scenes, b, ground.permute(1, 2, 0).numpy()) for b in range(6)]


def test_pictures(drawn):
    scenes, slow = drawn
    for b, (image, *_) in enumerate(slow):
        found = scenes.images[b].permute(1, 2, 0).numpy()
        assert np.abs(image - found).max() < 0.012                # the atlas is rounded to 8 bits


def test_instance_masks(drawn):
    scenes, slow = drawn
    for b, (_, owner, doubt, _) in enumerate(slow):
        wrong = (owner != scenes.instance[b].numpy()) & ~doubt
        assert not wrong.any() and doubt.mean() < 0.02


def test_areas_and_visibility(drawn):
    scenes, slow = drawn
    for b, (_, _, doubt, areas) in enumerate(slow):
        slack = int(doubt.sum())
        for k, area in enumerate(areas):
            assert abs(area - int(scenes.area[b, k])) <= slack
            seen = int((scenes.instance[b] == k + 1).sum())
            share = seen / max(1, int(scenes.area[b, k]))
            assert float(scenes.visible[b, k]) == pytest.approx(share)


def test_boxes(drawn):
    scenes, _ = drawn
    for b in range(len(scenes)):
        for k in range(scenes.valid.shape[1]):
            rows, columns = np.nonzero(scenes.instance[b].numpy() == k + 1)
            box = [0, 0, 0, 0]
            if len(rows):
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert scenes.boxes[b, k].tolist() == box
            assert torch.equal(scenes.masks[b, k], scenes.instance[b] == k + 1)


def test_labels(drawn):
    scenes, _ = drawn
    rows = pictograms.table()
    for b in range(len(scenes)):
        for k in range(scenes.valid.shape[1]):
            where = scenes.instance[b] == k + 1
            if not scenes.valid[b, k]:
                assert not where.any()
                for field in (scenes.pictogram, scenes.category, scenes.depth):
                    assert field[b, k] == -1
                for field in (scenes.area, scenes.scale, scenes.centre):
                    assert (field[b, k] == 0).all()
                continue
            row = rows[int(scenes.table[scenes.pictogram[b, k]])]
            assert scenes.classes[scenes.pictogram[b, k]] == row["name"]
            assert data.categories()[scenes.category[b, k]] == row["category"]
            assert data.subcategories()[scenes.subcategory[b, k]] == row["subcategory"]
            for level in pictograms.LEVELS:
                number = int(scenes.ids(level)[b, k]) + 1
                assert (scenes.semantic(level)[b][where] == number).all()
                assert (scenes.panoptic(level)[b][where] == 1000 * number + k + 1).all()
        ground = scenes.instance[b] == 0
        assert (scenes.semantic()[b][ground] == 0).all()
        assert (scenes.panoptic()[b][ground] == 0).all()
        count = int(scenes.valid[b].sum())
        assert scenes.depth[b, :count].tolist() == list(range(count))[::-1]
        assert scenes.valid[b, :count].all()


def test_nearer_objects_hide_farther_ones():
    world = data.EmojiWorld(64, pictograms=["sunflower", "guitar"])
    scenes = world.scenes(20, 0, objects=2, scale=0.9, occlusion="any")
    assert (scenes.visible[:, 1] == 1).all() and (scenes.visible[:, 0] < 1).any()


def test_count_scale_and_repeats():
    world = data.EmojiWorld(64)
    scenes = world.scenes(300, 0, objects=(2, 5), scale=(0.2, 0.4), rotation=15)
    count = scenes.valid.sum(1)
    assert count.bincount(minlength=6)[2:].min() > 40 and count.min() == 2 and count.max() == 5
    scale, angle = scenes.scale[scenes.valid], scenes.angle[scenes.valid]
    assert scale.min() >= 0.2 - 1e-6 and scale.max() <= 0.4 + 1e-6 and angle.abs().max() <= 15
    same = lambda s: (s.pictogram[:, 0] == s.pictogram[:, 1]).float().mean()  # noqa: E731
    assert same(world.scenes(200, 0, objects=2, repeat=0)) < 0.05
    assert same(world.scenes(200, 0, objects=2, repeat=1)) == 1


def test_occlusion_is_what_was_asked_for():
    world = data.EmojiWorld(64)
    made = [world.scenes(200, 0, objects=4, occlusion=o) for o in ("any", "some", "none")]
    hidden = [1 - s.visible[s.valid].mean() for s in made]
    assert hidden[0] > 1.5 * hidden[1] > 0 and hidden[1] > hidden[2] and hidden[2] < 0.02


def test_level_balances_categories():
    world = data.EmojiWorld(16, "all")
    scenes = world.scenes(1500, 0, objects=1, level="category", background="plain")
    counts = scenes.category[:, 0].bincount(minlength=9)
    assert counts.min() > 110 and counts.max() < 230


def test_unknown_level():
    scenes = data.EmojiWorld(32).scenes(1, 0)
    with pytest.raises(ValueError, match="level='kind': needs one of pictogram"):
        scenes.semantic("kind")


def test_signs():
    world = data.EmojiWorld((80, 96), artist="both")
    scenes = world.scenes(60, 0, signs=0.5)
    bare = world.scenes(60, 0)
    having = torch.tensor([w is not None for w in scenes.words])
    assert 0.3 < having.float().mean() < 0.7
    for b in range(60):
        rows, columns = np.nonzero(scenes.sign[b].numpy())
        assert bool(len(rows)) == bool(having[b])
        if len(rows):  # a filled rectangle, dark on light, and the objects' masks end there
            box = scenes.sign[b, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all()
            grey = scenes.images[b].mean(0)[scenes.sign[b]]
            assert grey.max() > 0.95 and grey.min() < 0.4
            assert (scenes.instance[b][scenes.sign[b]] == 0).all()
            width = columns.max() + 1 - columns.min()
            assert width / 12 > 0.45 * len(scenes.words[b])
        free = ~scenes.sign[b]
        assert torch.equal(scenes.images[b][:, free], bare.images[b][:, free])
        assert torch.equal(scenes.instance[b][free], bare.instance[b][free])
    assert bare.sign is None and bare.words == []
    with pytest.raises(ValueError, match="too small for a sign"):
        data.EmojiWorld(20).scenes(1, 0, signs=1.0)


def test_speed():
    """64 scenes of 96 pixels in well under 100 ms on one core.

    The bound leaves room for slow and busy machines.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        world = data.EmojiWorld(96)
        world.scenes(64, 0)
        seconds, yard = [], []
        a, b = torch.rand(512, 512), torch.rand(512, 512)
        for seed in range(9):
            start = time.process_time()
            world.scenes(64, seed)
            seconds.append(time.process_time() - start)
            start = time.process_time()
            for _ in range(20):
                a @ b
            yard.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    median, unit = statistics.median(seconds) * 1e3, statistics.median(yard) * 1e3
    share = f"{median / unit:.1f} times 20 products of 512 x 512 matrices"
    print(f"64 scenes of 96 px: {median:.0f} ms on one core ({share})")
    assert median < 250
