"""The course's reader: it reads what it knows, and nothing but the crop."""

import pytest
import torch

from tests.settings import SETTINGS
from vtlib.data import EmojiWorld, text_image
from vtlib.tokenizers.reader import LETTERS, PLAIN, TemplateReader
from vtlib.tokenizers.tokbench import crops


def plates(height, batch=40, seed=0, words=None):
    pictures = EmojiWorld(160, "test").text(batch, seed, words=words, height=height)
    place = torch.arange(batch)
    return crops(pictures.images, pictures.boxes, place), pictures.words


@pytest.mark.parametrize("height", [12, (16, 24)])
def test_large_words_are_read(height):
    cut, words = plates(height)
    assert TemplateReader()(cut) == words


def test_small_words_are_misread_more_often():
    share = []
    for height in (6, 8, 12):
        cut, words = plates(height, 60)
        share.append(sum(a == b for a, b in zip(TemplateReader()(cut), words, strict=True)) / 60)
    assert share[0] < 0.5 < share[1] <= share[2] == 1


def test_case_and_digits_are_told_apart():
    words = ["token", "Token", "TOKEN", "2026", "Notice"]
    cut, said = plates(20, 20, 1, words)
    assert set(said) == set(words) and TemplateReader()(cut) == said


def test_it_finds_how_many_letters_there_are():
    words = ["A", "EXIT", "STATION", "TOKENIZER42"]
    cut, said = plates(16, 20, 2, words)
    reader = TemplateReader()
    for crop, word in zip(cut, said, strict=True):
        assert len(word) in reader.counts(crop)
    assert reader(cut) == said


def test_plain_text_without_a_plate():
    read = TemplateReader(LETTERS + "!?&", bold=False, tall=1, margin=0)
    image = text_image(["What", "is", "it?", "R&D!"], height=30)
    widths = [4, 2, 3, 4]
    cut = [picture[:, :, : round(n * 30 * 29 / 57)] for picture, n in
           zip(image, widths, strict=True)]  # fmt: skip
    assert read(cut) == ["What", "is", "it?", "R&D!"]


def test_contrast_and_brightness_do_not_matter():
    cut, words = plates(18)
    assert TemplateReader()([0.3 * crop + 0.4 for crop in cut]) == words
    assert TemplateReader()([crop.double() for crop in cut]) == words


def test_a_crop_of_any_size_is_read_as_something():
    read = TemplateReader(PLAIN)
    for size in ((1, 1), (1, 50), (50, 1), (7, 3)):
        (word,) = read([torch.rand(3, *size, generator=torch.Generator().manual_seed(0))])
        assert word and set(word) <= set(PLAIN)
    assert read([torch.zeros(3, 10, 20)])[0] and read([]) == []


@pytest.mark.parametrize("given, told", [
    (dict(alphabet=""), "alphabet=''"),
    (dict(alphabet="  "), "needs a string of characters"),
    (dict(alphabet=3), "alphabet=3"),
    (dict(alphabet="日"), "only ASCII and Latin-1"),
    (dict(bold="no"), "bold"),
    (dict(tall=0.5), "tall"),
    (dict(margin=-1), "margin"),
])  # fmt: skip
def test_settings_that_do_not_fit(given, told):
    with pytest.raises(ValueError, match=told):
        TemplateReader(**given)


@pytest.mark.parametrize("crop, told", [
    (torch.zeros(3, 4), r"crops\[0\] has shape \(3, 4\)"),
    (torch.zeros(1, 4, 4), r"needs \(3, h, w\)"),
    (torch.zeros(3, 0, 4), r"needs \(3, h, w\)"),
    (torch.zeros(3, 4, 4, dtype=torch.uint8), "float"),
    ("word", "float"),
])
def test_crops_that_do_not_fit(crop, told):
    with pytest.raises(ValueError, match=told):
        TemplateReader()([crop])
    with pytest.raises(ValueError, match="a list of crops"):
        TemplateReader()("word")


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_torch_change_nothing(setting):
    cut, words = plates(14, 4)
    with setting():
        assert TemplateReader()(cut) == words
