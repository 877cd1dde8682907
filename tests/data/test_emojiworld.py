"""EmojiWorld.classify and the world itself."""

import pytest
import torch

from tests.data import reference
from vtlib import data
from vtlib.data import backgrounds, pictograms

EASY = list(data.EASY)


@pytest.mark.parametrize("size", [32, (33, 47), (64, 40), 96, 224])
@pytest.mark.parametrize("background", ["photo", "plain", "noise"])
def test_shapes_and_ranges(size, background):
    world = data.EmojiWorld(size, pictograms=EASY)
    images, labels = world.classify(3, seed=1, background=background, clutter=2)
    height, width = (size, size) if isinstance(size, int) else size
    assert images.shape == (3, 3, height, width) and images.dtype == torch.float32
    assert images.is_contiguous()
    assert 0 <= images.min() and images.max() <= 1 and images.isfinite().all()
    assert labels.shape == (3,) and labels.dtype == torch.long
    assert labels.min() >= 0 and labels.max() < 12


def test_batch_of_one():
    world = data.EmojiWorld(48, artist="both")
    images, labels = world.classify(1, 0)
    assert images.shape == (1, 3, 48, 48) and labels.shape == (1,)


@pytest.mark.parametrize("level", pictograms.LEVELS)
def test_names_are_the_callers_own(level):
    world = data.EmojiWorld(48, pictograms=EASY)
    count = len(world.names(level))
    world.names(level).append("mine")
    assert len(world) == 12 and len(world.names(level)) == count


def test_what_a_world_makes_has_its_own_lists():
    world = data.EmojiWorld(48, pictograms=EASY)
    photos = list(world.photos)
    scenes, video = world.scenes(1, 0), world.video(1, 2, 0)
    for made in (scenes, video, world.retrieval(1, 0), world.mosaic(70, 90, 0, cell=32)):
        assert made.classes == world.names()
        made.classes.append("mine")
    for made in (scenes, video):
        assert made.photos == photos
        made.photos.clear()
    assert len(world) == 12 and world.photos == photos


def everything(world):
    images, labels = world.classify(4, 7, clutter=1)
    scenes = world.scenes(4, 7, signs=0.5)
    video = world.video(2, 3, 7)
    retrieval = world.retrieval(2, 7)
    hidden = world.camouflage(3, 7)
    mosaic = world.mosaic(70, 90, 7, cell=32)
    land = world.biomes(70, 90, 7, cell=20, spacing=32)
    text = world.text(3, 7, height=(8, 12))
    tensors = [images, labels, scenes.images, scenes.instance, video.frames, video.flow]
    tensors += [retrieval.images, hidden.images]
    tensors += [land.image, land.labels, land.centre]
    return [*tensors, mosaic.image, mosaic.instance, text.images, text.boxes], [
        scenes.questions(3, 7),
        scenes.captions(),
        text.words,
    ]


def test_same_seed_same_bits():
    make = lambda: data.EmojiWorld((64, 72), artist="both")  # noqa: E731
    torch.manual_seed(0)
    tensors, words = everything(make())
    torch.manual_seed(1)
    torch.rand(3)
    again, same_words = everything(make())
    assert all(torch.equal(a, b) for a, b in zip(tensors, again, strict=True))
    assert words == same_words
    before = torch.get_rng_state()
    everything(make())
    assert torch.equal(before, torch.get_rng_state())  # global randomness is not touched


def test_other_seed_other_pictures():
    world = data.EmojiWorld(48)
    assert not torch.equal(world.classify(4, 0)[0], world.classify(4, 1)[0])


def test_device_argument():
    world = data.EmojiWorld(48)
    assert torch.equal(world.classify(4, 0)[0], world.classify(4, 0, device="cpu")[0])
    assert torch.equal(world.classify(4, 0)[1], world.classify(4, 0, device=torch.device("cpu"))[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same():
    world = data.EmojiWorld(48, artist="both")
    here, there = world.scenes(8, 0), world.scenes(8, 0, device="cuda")
    assert there.images.is_cuda and torch.equal(here.pictogram, there.pictogram.cpu())
    torch.testing.assert_close(here.images, there.images.cpu(), atol=1e-4, rtol=0)


def test_labels_are_what_is_drawn():
    """Each picture, drawn again by the slow reference from its description, is the picture.

    Its label is the object's class.
    """
    world = data.EmojiWorld(48, artist="both", pictograms=40)
    ground = torch.full((3, 48, 48), 0.5)
    for level in pictograms.LEVELS:
        images, labels = world.classify(6, 3, level=level, background=ground)
        scenes = world._classify(6, 3, level, (0.4, 0.9), 20, ground, 0, None)
        names = world.names(level)
        for b in range(6):
            image = reference.scene(scenes, b, ground.permute(1, 2, 0).numpy())[0]
            assert abs(image - images[b].permute(1, 2, 0).numpy()).max() < 0.012
            row = pictograms.table()[int(world.table[scenes.pictogram[b, 0]])]
            assert names[labels[b]] == row["name" if level == "pictogram" else level]


def test_an_upright_object_of_64_pixels_is_the_drawing_itself():
    world = data.EmojiWorld(128, pictograms=["sunflower"])
    ground = torch.zeros(3, 128, 128)
    scenes = world._classify(1, 0, "pictogram", (0.5, 0.5), 0, ground, 0, None)
    x, y = scenes.centre[0, 0].tolist()
    # the same object at a whole-pixel centre
    valid, zero = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    centre = torch.tensor([[[round(x), round(y)]]]).float()
    drawn = (valid, zero.long(), zero + 64, zero, centre)
    exact = world._render(*drawn, ground, torch.Generator("cpu"), None)
    top, left = round(y) - 32, round(x) - 32
    rgba = data.assets.drawings("noto")[data.pictogram("sunflower")].float() / 255
    expected = (rgba[..., :3] * rgba[..., 3:]).permute(2, 0, 1)
    got = exact.images[0, :, top : top + 64, left : left + 64]
    assert (got - expected).abs().max() < 2.5 / 255
    inside = exact.instance[0, top : top + 64, left : left + 64] == 1
    assert torch.equal(inside, rgba[..., 3] >= 0.5)


def test_objects_stay_in_the_picture():
    world = data.EmojiWorld((50, 90))
    scenes = world.scenes(50, 0, scale=(0.2, 0.6), rotation=180)
    reach = scenes.scale * 50 / 2
    for axis, side in ((0, 90), (1, 50)):
        centre = scenes.centre[..., axis]
        assert (centre - reach)[scenes.valid].min() > -1e-3
        assert (centre + reach)[scenes.valid].max() < side + 1e-3


@pytest.mark.parametrize("level, count", [("pictogram", 12), ("category", 9), ("subcategory", 99)])
def test_classes_are_balanced(level, count):
    world = data.EmojiWorld(16, "all", pictograms=EASY if level == "pictogram" else None)
    made = [world.classify(500, seed, level=level, background="plain") for seed in range(4)]
    labels = torch.cat([labels for _, labels in made])
    seen = labels.bincount(minlength=count)
    assert len(seen) == count == len(world.names(level))
    expected = 2000 / count
    assert (seen > 0).all() and ((seen - expected).abs() < 5 * expected**0.5).all()


def test_splits_share_neither_pictogram_nor_photograph():
    train, test, both = (data.EmojiWorld(32, s) for s in ("train", "test", "all"))
    assert not set(train.classes) & set(test.classes)
    assert set(train.classes) | set(test.classes) == set(both.classes)
    twins = pictograms.twins()
    assert not set(twins[train.table].tolist()) & set(twins[test.table].tolist())
    assert not set(train.photos) & set(test.photos)
    a, b = train.scenes(40, 0), test.scenes(40, 0)
    assert a.photos == train.photos and 0 <= a.photo.min() and a.photo.max() < len(a.photos)
    assert not {a.photos[i] for i in a.photo.tolist()} & {b.photos[i] for i in b.photo.tolist()}


def test_backgrounds_come_from_the_photograph_they_name():
    size, names = (24, 24), backgrounds.names("test")
    generator = torch.Generator("cpu").manual_seed(0)
    crop, which = backgrounds.crops("test", size, 12, generator, torch.device("cpu"))
    for b in range(12):
        found = False
        for zoom in backgrounds.ZOOMS:
            view = torch.tensor(backgrounds.view(names[which[b]], size, zoom))
            for photo in (view, view.flip(-1)):
                windows = photo.float().unfold(1, 24, 1).unfold(2, 24, 1)  # 3 y x h w
                found |= bool((windows == crop[b][:, None, None]).all(-1).all(-1).all(0).any())
        assert found


def test_closed_set_is_the_same_in_every_split():
    worlds = [data.EmojiWorld(32, s, pictograms=EASY) for s in ("train", "test", "all")]
    assert all(w.classes == EASY for w in worlds)
    assert not torch.equal(worlds[0].classify(4, 0)[0], worlds[1].classify(4, 0)[0])
    assert torch.equal(worlds[0].classify(4, 0)[1], worlds[1].classify(4, 0)[1])


def test_a_number_of_pictograms():
    train, test = (data.EmojiWorld(32, split, pictograms=50) for split in ("train", "test"))
    assert len(train) == len(test) == 50 and not set(train.classes) & set(test.classes)
    assert data.EmojiWorld(32, "train", pictograms=50).classes == train.classes


def test_artists():
    artists = ("noto", "twemoji", "both")
    worlds = {a: data.EmojiWorld(48, artist=a, pictograms=EASY) for a in artists}
    ground = torch.ones(3, 48, 48) / 2
    noto, twemoji = (worlds[a].classify(8, 0, background=ground)[0] for a in ("noto", "twemoji"))
    both = worlds["both"].scenes(64, 0)
    assert not torch.equal(noto, twemoji)
    share = both.artist[both.valid].float().mean()
    assert 0.35 < share < 0.65 and both.artists == ("noto", "twemoji")
    assert worlds["twemoji"].scenes(4, 0).artists == ("twemoji",)


def test_clutter_is_of_other_classes_and_smaller():
    world = data.EmojiWorld(64, "all")
    for level in pictograms.LEVELS:
        scenes = world._classify(64, 0, level, (0.4, 0.9), 20, "plain", 3, None)
        ids = scenes.ids(level)
        assert (ids[:, :3] != ids[:, 3:]).all()
        assert (scenes.scale[:, :3] < scenes.scale[:, 3:]).all()
        _, labels = world.classify(64, 0, level=level, background="plain", clutter=3)
        assert torch.equal(labels, ids[:, -1])
    pair = data.EmojiWorld(64, pictograms=["red apple", "guitar"])
    scenes = pair._classify(64, 0, "pictogram", (0.5, 0.5), 20, "plain", 2, None)
    assert (scenes.pictogram[:, :2] == 1 - scenes.pictogram[:, 2:]).all()


def test_given_backgrounds():
    world = data.EmojiWorld(40, pictograms=EASY)
    one = torch.rand(3, 40, 40)
    many = torch.rand(5, 3, 40, 40)
    scenes = world.scenes(5, 0, background=many)
    free = world.scenes(5, 0, background=one, scale=0.05, objects=1)
    far = (free.instance == 0) & torch.tensor(True)
    untouched = torch.where(far[:, None], free.images - one, 0).abs().flatten(1)
    assert (untouched > 1e-5).float().mean() < 0.05 and (scenes.photo == -1).all()
    assert torch.equal(many, many.clone())


WRONG = [
    (dict(size=0), "size=0"),
    (dict(size=(3, 4, 5)), "size="),
    (dict(size=12.5), "size=12.5"),
    (dict(split="val"), "split='val'.*train, test, all"),
    (dict(artist="apple"), "artist='apple'"),
    (dict(pictograms=["red aple"]), "close: .*red apple"),
    (dict(pictograms=[]), "pictograms="),
    (dict(pictograms="guitar"), "needs None, an int or a list"),
    (dict(pictograms=["guitar", "guitar"]), "twice"),
    (dict(pictograms=5000), "pictograms=5000.*has"),
    (dict(pictograms=0), "pictograms=0"),
]


@pytest.mark.parametrize("arguments, message", WRONG)
def test_a_wrong_world(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.EmojiWorld(**arguments)


CALLS = [
    ("classify", dict(batch=0, seed=0), "batch=0"),
    ("classify", dict(batch=2.0, seed=0), "batch=2.0"),
    ("classify", dict(batch=1, seed=0, level="kind"), "level='kind'"),
    ("classify", dict(batch=1, seed=0, scale=(0.9, 0.4)), "scale="),
    ("classify", dict(batch=1, seed=0, scale=2), "scale=2"),
    ("classify", dict(batch=1, seed=0, background="sea"), "background='sea'"),
    (
        "classify",
        dict(batch=1, seed=0, background=torch.zeros(3, 5, 5)),
        r"background has shape \(3, 5, 5\): needs \(3, 40, 40\)",
    ),
    ("classify", dict(batch=1, seed=0, background=torch.zeros(2, 3, 40, 40)), "background holds 2"),
    (
        "classify",
        dict(batch=1, seed=0, background=torch.full((3, 40, 40), 255.0)),
        r"floats in \[0, 1\]",
    ),
    ("classify", dict(batch=1, seed=0, clutter=-1), "clutter=-1"),
    ("scenes", dict(batch=0, seed=0), "batch=0"),
    ("scenes", dict(batch=1, seed=0, objects=0), "objects=0"),
    ("scenes", dict(batch=1, seed=0, objects=(3, 2)), "objects="),
    ("scenes", dict(batch=1, seed=0, occlusion="much"), "occlusion='much'"),
    ("scenes", dict(batch=1, seed=0, repeat=2), "repeat=2"),
    ("video", dict(batch=0, frames=2, seed=0), "batch=0"),
    ("video", dict(batch=1, frames=0, seed=0), "frames=0"),
    ("retrieval", dict(identities=0, seed=0), "identities=0"),
    ("retrieval", dict(identities=50, seed=0), "identities=50: this world has 12"),
    ("camouflage", dict(batch=1, seed=0, background="plain"), "background='plain'"),
    ("camouflage", dict(batch=1, seed=0, blend=2), "blend=2"),
    ("mosaic", dict(height=0, width=5, seed=0), "height=0"),
    ("mosaic", dict(height=5, width=5, seed=0, cell=4), "cell=4"),
    ("biomes", dict(height=0, width=5, seed=0), "height=0"),
    ("biomes", dict(height=5, width=5, seed=0, cell=4), "cell=4"),
    ("biomes", dict(height=5, width=5, seed=0, spacing=8), "spacing=8"),
    ("text", dict(batch=1, seed=0, words=["INCOMPREHENSIBLE"], height=20), "INCOMPREHENSIBLE"),
    ("text", dict(batch=1, seed=0, words=["\u4e16"]), "ASCII"),
    ("text", dict(batch=1, seed=0, words=[]), "words"),
]


@pytest.mark.parametrize("method, arguments, message", CALLS)
def test_a_wrong_call(method, arguments, message):
    world = data.EmojiWorld(40, pictograms=EASY)
    with pytest.raises(ValueError, match=message):
        getattr(world, method)(**arguments)


def test_repr_says_what_it_is():
    assert "96 x 96" in repr(data.EmojiWorld())
    assert "12 pictograms" in repr(data.EmojiWorld(pictograms=EASY))
