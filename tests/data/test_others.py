"""Retrieval, camouflage, mosaics and text."""

import pytest
import torch
import torch.nn.functional as F

from vtlib import data
from vtlib.data import pictograms, text


def test_retrieval():
    world = data.EmojiWorld(48, "test")
    found = world.retrieval(5, 0, scales=(0.3, 0.6, 0.9))
    assert found.images.shape == (30, 3, 48, 48)
    for i in range(5):
        of = found.identity == i
        pairs = sorted(zip(found.camera[of].tolist(), found.scale[of].tolist(), strict=True))
        assert pairs == [(c, pytest.approx(s)) for c in (0, 1) for s in (0.3, 0.6, 0.9)]
    twins = pictograms.twins()[world.table[found.pictogram]]
    assert len(set(twins.tolist())) == 5
    assert found.query.sum() == 15 and found.classes == world.classes


def test_retrieval_draws_both_artists_in_any_world():
    ground = torch.ones(3, 64, 64) / 2
    found = data.EmojiWorld(64, artist="twemoji", pictograms=["red apple"]).retrieval(
        1, 0, scales=(0.8,), rotation=0, background=ground
    )
    noto, twemoji = found.images
    for picture, artist in ((noto, "noto"), (twemoji, "twemoji")):
        world = data.EmojiWorld(64, artist=artist, pictograms=["red apple"])
        images, _ = world.classify(1, 3, scale=0.8, rotation=0, background=ground)
        assert (picture.mean((1, 2)) - images[0].mean((1, 2))).abs().max() < 0.01


def test_camouflage_shows_only_the_photograph():
    world = data.EmojiWorld(96)
    hidden = world.camouflage(24, 0, blend=1.0)
    plain = world.scenes(24, 0, objects=1, scale=(0.35, 0.7))
    assert (hidden.instance > 0).flatten(1).any(1).all() and hidden.valid.all()
    assert (hidden.area[:, 0] == (hidden.instance == 1).flatten(1).sum(1)).all()

    def contrast(scenes):  # of the average colour inside and just outside the silhouette
        inside = (scenes.instance == 1).float()[:, None]
        ring = F.max_pool2d(inside, 15, 1, 7) - inside
        mean = lambda m: (scenes.images * m).sum((2, 3)) / m.sum((2, 3)).clamp(min=1)  # noqa: E731
        return (mean(inside) - mean(ring)).abs().mean()

    assert contrast(hidden) < 0.35 * contrast(plain)
    loud = world.camouflage(24, 0, blend=0.0)
    assert contrast(loud) > contrast(hidden) and torch.equal(loud.instance, hidden.instance)


def test_camouflage_outside_is_the_photograph():
    world = data.EmojiWorld(64)
    one, two = world.camouflage(6, 0, blend=0.0), world.camouflage(6, 0, blend=1.0)
    away = -F.max_pool2d(-(one.instance == 0).float()[:, None], 5, 1, 2) == 1
    assert torch.equal(one.images * away, two.images * away)
    several = world.camouflage(6, 0, objects=(2, 3), background="noise")
    assert several.instance.max() >= 2 and (several.photo == -1).all()


@pytest.mark.parametrize("height, width, cell", [(130, 201, 24), (64, 500, 32)])
def test_mosaic(height, width, cell):
    world = data.EmojiWorld(32, artist="both")
    mosaic = world.mosaic(height, width, 3, cell=cell)
    count = len(mosaic.pictogram)
    assert mosaic.image.shape == (3, height, width) and mosaic.instance.shape == (height, width)
    assert 0 <= mosaic.image.min() and mosaic.image.max() <= 1 and count > 5
    assert mosaic.instance.unique().tolist() in (list(range(count + 1)), list(range(1, count + 1)))
    for i in range(count):
        rows, columns = (mosaic.instance == i + 1).nonzero(as_tuple=True)
        box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        assert mosaic.boxes[i].tolist() == box
        x, y = mosaic.centre[i].tolist()
        reach = float(mosaic.side[i]) * 0.71 + 1
        assert x - reach <= box[0] and box[2] <= x + reach
        assert y - reach <= box[1] and box[3] <= y + reach
        row = pictograms.table()[int(world.table[mosaic.pictogram[i]])]
        assert data.categories()[mosaic.category[i]] == row["category"]
    assert mosaic.side.max() > 3 * mosaic.side.min()


def test_an_empty_mosaic():
    mosaic = data.EmojiWorld(32).mosaic(20, 20, 0, cell=16, fill=0.001)
    assert mosaic.image.shape == (3, 20, 20) and len(mosaic.boxes) == len(mosaic.pictogram)


@pytest.mark.parametrize("height, width, spacing", [(333, 250, 64), (161, 81, 80), (90, 70, 50)])
def test_biomes_are_those_of_the_nearest_marker(height, width, spacing):
    made = data.EmojiWorld(32, artist="both").biomes(height, width, 3, spacing=spacing)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    every = (x - made.centre[:, 0, None, None]).square() + (
        y - made.centre[:, 1, None, None]).square()
    assert torch.equal(made.territory, made.biome[every.argmin(0)])
    assert len(made.centre) == -(-height // spacing) * -(-width // spacing)
    assert (made.centre >= 0).all() and (made.centre < torch.tensor([width, height])).all()
    thing = made.labels > 0
    assert torch.equal(made.labels[thing], 1 + made.territory[thing]) and thing.any()
    assert (made.image[:, thing] > 0.95).float().mean() > 0.8            # some under soft edges
    assert not (made.thin & ~thing).any()
    assert made.names == ("land", "sea") and made.classes == ["ground", "land", "sea"]


def test_a_crop_of_biomes_does_not_tell_them():
    """Where no marker is near, the picture is the same for either biome; half are outlines."""
    world = data.EmojiWorld(32)
    made = world.biomes(600, 600, 0)
    share = made.thin.float().mean() / (made.labels > 0).float().mean()
    assert 0.25 < share < 0.6 and 0.1 < (made.labels > 0).float().mean() < 0.35
    low = -F.max_pool2d(-made.thin[None].float(), 9, 1, 4)         # nothing is 9 pixels thick
    assert low.sum() == 0
    counts = made.biome.bincount(minlength=2)
    assert counts.min() > 0.25 * counts.sum()


def test_text_pictures():
    world = data.EmojiWorld((60, 90))
    made = world.text(12, 0, height=(10, 20))
    assert made.images.shape == (12, 3, 60, 90)
    assert len(made.words) == 12 and set(made.words) <= set(text.WORDS)
    for b, word in enumerate(made.words):
        x0, y0, x1, y1 = made.boxes[b].tolist()
        assert 0 <= x0 < x1 <= 90 and 0 <= y0 < y1 <= 60
        plate = made.images[b, :, y0:y1, x0:x1].mean(0)
        assert plate.max() > 0.95 and plate.min() < 0.45
        assert (plate[0] > 0.6).all() and plate[:, 0].min() > 0.6  # letters keep off the border
        # the same word rendered as a line of the same height has about the same ink
        tall = round(float(made.height[b]))
        line = data.text_image(word, height=tall, bold=True)
        ink, expected = (0.97 - plate).sum() / 0.9, (1 - line[0].mean(0)).sum()
        assert float(ink) == pytest.approx(float(expected), rel=0.25)


def test_text_image():
    one = data.text_image("Hello", height=20)
    assert one.shape[:3] == (1, 3, 20) and one.dtype == torch.float32
    assert 0 <= one.min() and one.max() <= 1
    two = data.text_image(["Hello", "a\nb"], height=20)
    assert two.shape[2] == 40 and torch.allclose(two[0, :, :20], one[0], atol=1e-2)
    page = data.text_image("Hi", size=(50, 80), height=16, colour=(1, 0, 0), background=(0, 0, 1))
    assert page.shape == (1, 3, 50, 80) and page[0, 1].max() == 0
    assert page[0, 2, 0, 0] == 1 and page[0, 0].max() > 0.7
    assert data.text_image("x", bold=True).mean() < data.text_image("x").mean()
    assert (data.text_image(" ") == 1).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(words=[]), "words is empty"),
        (dict(words="\u4e16\u754c"), "ASCII and Latin-1"),
        (dict(words="long enough", size=20), "size=20: the text at height=24 needs at least"),
        (dict(words="a", height=2), "height=2"),
        (dict(words="a", colour=300), "colour=300"),
        (dict(words="a", bold="no"), "bold='no' .* needs True or False"),
    ],
)
def test_text_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.text_image(**arguments)


def test_letters_differ():
    letters = [chr(c) for c in range(33, 127)]
    pictures = data.text_image(letters, height=24)[:, 0].flatten(1)
    apart = torch.cdist(pictures, pictures) + 99 * torch.eye(len(letters))
    assert apart.min() > 1
