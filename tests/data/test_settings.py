"""Torch's global settings change nothing; integers are integers; bad arguments are named."""


import numpy as np
import pytest
import torch

from tests.settings import default_dtype, deterministic, meta_device
from vtlib import data
from vtlib.data import _arguments, assets, backgrounds, footage, pictograms, render

from .checksums import flat, row

SMALL = (36, 40)


def everything():
    """A little of all that there is."""
    world = data.EmojiWorld(SMALL, artist="both")
    easy = data.EmojiWorld(32, pictograms=list(data.EASY))
    ground = torch.full((3, 32, 32), 0.5, dtype=torch.float32, device="cpu")
    scenes = world.scenes(2, 1, objects=3, level="category")
    video = world.video(1, 3, 1)
    clip = footage.panned(2, 2, 24, 1, zoom=0.01, turn=1.0)
    yield easy.classify(2, 1, "subcategory", clutter=1, background=ground)
    yield easy.scenes(2, 1, background="noise", objects=1), easy.scenes(1, 1, background="plain")
    yield scenes, scenes.boxes, scenes.visible, scenes.semantic(), scenes.panoptic("pictogram")
    yield scenes.captions(), [str(q) for q in scenes.questions(3, 1)]
    yield data.EmojiWorld((64, 72)).scenes(3, 1, signs=1.0)
    yield video, video.masks, video.visibility
    yield world.retrieval(2, 1), world.camouflage(2, 1), world.mosaic(60, 70, 1, cell=16)
    yield world.biomes(60, 70, 1, cell=16, spacing=32)
    yield data.EmojiWorld((40, 64)).text(2, 1), data.text_image("a\nb", (60, 30), 16)
    yield clip, clip.flows(2), footage.panned(1, 2, 24, 1, shrink=1.1, velocity=(0.3, 0.7))
    yield footage.pictograms(world, 1, 3, 1)
    yield data.photographs(24, ["cat"]), data.photographs(names=["coffee"])
    yield data.digits(), data.clip()[0][:2], data.shots()[1][:1], assets.drawings("noto")[7]
    yield footage.clip_frames("test")[:1], footage.shot_frames()[:1], world.level_ids("category")
    yield data.pictograms.twins(), data.pictograms.level_ids("pictogram")


def sums():
    """What `everything` makes, all caches empty before."""
    for kept in (render.ATLASES, backgrounds.VIEWS, footage.SOURCES):
        kept.clear()
    for kept in (assets._photo, assets._unpacked, data.text._font):
        kept.cache_clear()
    leaves = [leaf for value in everything() for leaf in flat(value)]
    return [
        (leaf.device.type, leaf.dtype, row(leaf)) if isinstance(leaf, torch.Tensor) else leaf
        for leaf in leaves
    ]


@pytest.fixture(scope="module")
def usual():
    return sums()


SETTINGS = (meta_device, default_dtype, deterministic, torch.no_grad, torch.inference_mode)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_settings_change_nothing(setting, usual):
    with setting():
        found = sums()
    assert found == usual


def test_what_was_made_in_inference_mode_can_be_trained_on_later():
    assets._photo.cache_clear()
    with torch.inference_mode():
        data.photographs(16, ["cat"])
        world = data.EmojiWorld(16)
        world.classify(1, 0)
    images = data.photographs(names=["cat"])["cat"]
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (images * weight + world.classify(1, 0)[0].mean()).sum().backward()
    assert torch.isfinite(weight.grad).all()


# every integer argument, of NumPy and torch
SEVEN = (np.int64(7), np.uint8(7), torch.tensor(7), np.array(7))


@pytest.mark.parametrize("seven", SEVEN, ids=lambda value: f"{type(value).__name__}")
def test_integers_of_numpy_and_torch(seven):
    def images(k):
        world = data.EmojiWorld((k * 6, k * 8), pictograms=k)
        scenes = world.scenes(k, k, objects=k, background="plain")
        yield world.classify(k, k, clutter=k, background="plain")
        yield scenes, [str(q) for q in scenes.questions(k, k)]
        yield world.video(k, k, k, objects=(1, k)), world.retrieval(k, k, background="plain")
        yield world.camouflage(k, k, objects=k, background="noise"), world.text(k, k)
        yield world.biomes(k * 5, k * 6, k, cell=k + 13, spacing=k + 30)
        yield world.mosaic(k, k, k, cell=k + 13), data.text_image("a", (k * 4, k * 4), k)
        yield footage.panned(k, k, k, k, names=["fig"]), data.photographs(k, ["fig"])
        yield footage.clip_frames(multiple=k)[:1], footage.pictograms(world, k, k, k)
        yield data.EmojiWorld(16, pictograms=[k]).classes

    def rows(k):
        leaves = [leaf for value in images(k) for leaf in flat(value)]
        return [row(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    assert rows(seven) == rows(7)


WORLD = data.EmojiWorld(40, pictograms=list(data.EASY))
NUMBERS = ("a", float("nan"), None, [1, 2, 3], -1)
BATCHED = {
    "classify": (WORLD.classify, dict(batch=1, seed=0)),
    "scenes": (WORLD.scenes, dict(batch=1, seed=0)),
    "video": (WORLD.video, dict(batch=1, frames=2, seed=0)),
    "retrieval": (WORLD.retrieval, dict(identities=1, seed=0)),
    "camouflage": (WORLD.camouflage, dict(batch=1, seed=0)),
    "mosaic": (WORLD.mosaic, dict(height=20, width=20, seed=0, cell=16)),
    "biomes": (WORLD.biomes, dict(height=20, width=20, seed=0, cell=16, spacing=32)),
    "text": (WORLD.text, dict(batch=1, seed=0)),
    "panned": (footage.panned, dict(batch=1, frames=2, size=16, seed=0)),
    "pictograms": (footage.pictograms, dict(world=WORLD, batch=1, frames=2, seed=0)),
}
COUNTS = ("batch", "frames", "identities", "height", "width", "cell", "spacing", "size")
REALS = {
    "classify": ("scale", "rotation", "clutter"),
    "scenes": ("objects", "scale", "rotation", "repeat", "signs"),
    "video": ("objects", "scale", "speed", "spin", "pan", "zoom"),
    "retrieval": ("scales", "rotation"),
    "camouflage": ("objects", "scale", "rotation", "blend"),
    "mosaic": ("fill",),
    "text": ("height",),
    "panned": ("speed", "zoom", "turn", "shrink"),
}


@pytest.mark.parametrize("call", BATCHED)
def test_seeds_and_counts_that_are_none(call):
    fn, arguments = BATCHED[call]
    for seed in ("a", 1.5, float("nan"), None, 2**64, True, [0], torch.tensor(0.5)):
        with pytest.raises(ValueError, match="^seed="):
            fn(**{**arguments, "seed": seed})
    for name in set(arguments) & set(COUNTS):
        for count in (0, -3, 1.5, "a", float("nan"), None, True, torch.tensor(2.0)):
            with pytest.raises(ValueError, match=f"^{name}="):
                fn(**{**arguments, name: count})


@pytest.mark.parametrize("call", REALS)
def test_numbers_that_are_none(call):
    fn, arguments = BATCHED[call]
    for name in REALS[call]:
        for value in NUMBERS:
            with pytest.raises(ValueError, match=f"^{name}="):
                fn(**{**arguments, name: value})


OTHER = [
    (lambda: WORLD.classify(1, 0, background=torch.zeros(3, 40, 40, dtype=torch.uint8)),
     "background is torch.uint8.*/ 255"),
    (lambda: WORLD.classify(1, 0, background=np.zeros((3, 40, 40), np.float32)),
     "background is a numpy.ndarray"),
    (lambda: WORLD.classify(1, 0, background=torch.full((3, 40, 40), float("nan"))),
     "background .* non-finite"),
    (lambda: WORLD.classify(1, 0, background=None), "background=None"),
    (lambda: assets.cover(torch.zeros(3, 8, 8, dtype=torch.uint8), 4, 4), "image is torch.uint8"),
    (lambda: assets.cover(np.zeros((3, 8, 8)), 4, 4), "image is a numpy.ndarray"),
    (lambda: WORLD.classify(1, 0, level=3), "level=3"),
    (lambda: WORLD.classify(1, 0, device="gpu"), "device='gpu'"),
    (lambda: data.photographs(device=1.5), "device=1.5"),
    (lambda: data.photographs(names="cat"), "names='cat'"),
    (lambda: data.photographs(float("nan")), "size=nan"),
    (lambda: data.EmojiWorld(size="big"), "size='big'"),
    (lambda: data.EmojiWorld(size=(32, 1.5)), "size="),
    (lambda: data.EmojiWorld(size=True), "size=True"),
    (lambda: data.EmojiWorld(pictograms=2.5), "pictograms=2.5"),
    (lambda: data.EmojiWorld(pictograms=[5000]), "pictograms=5000"),
    (lambda: data.EmojiWorld(artist=3), "artist=3"),
    (lambda: data.EmojiWorld(split=None), "split=None"),
    (lambda: WORLD.text(1, 0, words="STOP"), "words='STOP'"),
    (lambda: WORLD.text(1, 0, words=["a\nb"]), "words has a newline"),
    (lambda: WORLD.text(1, 0, words=[3]), "words has 3"),
    (lambda: data.text_image(["a", 3]), "words has 3"),
    (lambda: data.text_image("a", height=12.0), "height=12.0"),
    (lambda: data.text_image("a", colour=float("nan")), "colour=nan"),
    (lambda: data.text_image("a", background="white"), "background='white'"),
    (lambda: WORLD.scenes(1, 0).questions(1.5, 0), "n=1.5"),
    (lambda: WORLD.scenes(1, 0).questions(1, "a"), "seed='a'"),
    (lambda: WORLD.scenes(1, 0).questions(1, 0, kinds=[]), "kinds is empty"),
    (lambda: WORLD.retrieval(1, 0, scales=()), "scales is empty"),
    (lambda: footage.panned(1, 2, 16, 0, names=["lena"]), "names has 'lena'"),
    (lambda: footage.panned(1, 2, 16, 0, names=[]), "names is empty"),
    (lambda: footage.panned(1, 2, 16, 0, velocity=(1.0,)), "velocity="),
    (lambda: footage.panned(1, 2, 16, 0, velocity=(float("nan"), 0)), "velocity=nan"),
    (lambda: footage.panned(1, 2, 16, 0).flows(1.5), "scale=1.5"),
    (lambda: footage.clip_frames(multiple=1.5), "multiple=1.5"),
    (lambda: WORLD.classify(1, 0, rotation=1e300), "rotation=1e"),
    (lambda: WORLD.scenes(1, 0, rotation=10**400), "rotation=1000"),
    (lambda: WORLD.scenes(1, 0, repeat=True), "repeat=True"),
    (lambda: footage.panned(1, 2, 16, 0, speed=np.array([[1.0, 2.0]])), "speed="),
    (lambda: WORLD.retrieval(1, 0, scales=np.array(0.5)), "scales="),
    (lambda: assets.photo("zz"), "name='zz': needs one of "),
    (lambda: assets.photo(["cat"]), r"name=\['cat'\]"),
    (lambda: data.photographs(names=[["cat"]]), r"names has \['cat'\]"),
    (lambda: assets.drawing("noto", 1911), "index=1911"),
    (lambda: assets.drawing("noto", "a"), "index='a'"),
    (lambda: assets.drawing(["noto"], 3), r"artist=\['noto'\]"),
    (lambda: WORLD.draw((2,), "category", 0), "generator is a int"),
    (lambda: assets.cover(torch.zeros(8, 8), 4, 4), r"image has shape \(8, 8\)"),
    (lambda: backgrounds.names("val"), "split='val'"),
]


@pytest.mark.parametrize("call, message", OTHER, ids=[message for _, message in OTHER])
def test_what_else_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.parametrize("call", BATCHED)
@pytest.mark.parametrize("device", ["meta", "gpu", "cuda:99", 1.5])
def test_devices_that_hold_no_values(call, device):
    fn, arguments = BATCHED[call]
    with pytest.raises(ValueError, match="^device="):
        fn(**arguments, device=device)


def test_numbers_of_numpy_and_torch():
    for half in (np.float32(0.5), np.array(0.5), torch.tensor(0.5)):
        assert _arguments.bounds(half, "x", 0, 1) == (0.5, 0.5)
        assert _arguments.bounds((0.25, half), "x", 0, 1) == (0.25, 0.5)


def test_what_is_kept_cannot_be_changed_by_who_asked():
    for table in (pictograms.table(), assets.photo_table()):
        with pytest.raises(TypeError):
            table[0] = {}
        with pytest.raises(TypeError):
            table[0]["name"] = "mine"
    want = assets.photo("cat").clone()
    assets.photo("cat").zero_()
    assert torch.equal(assets.photo("cat"), want)
    world, before = data.EmojiWorld(16, pictograms=3), data.EmojiWorld(16, pictograms=3).table
    world.scenes(1, 0).table.zero_()
    assert torch.equal(world.table, before)
