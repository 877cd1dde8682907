"""The real reader: what onnxruntime computes of the package's own file, and what it reads."""

import functools
import math

import pytest
import torch

from vtlib import data, hub
from vtlib.data import EmojiWorld
from vtlib.hub.recogniser import Recogniser, prepare
from vtlib.tokenizers.tokbench import crops


@functools.cache
def net():
    told = hub.real_missing("ppocr")
    if told:
        pytest.skip(told)
    return hub.real("ppocr")


def test_missing_weights_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("VTLIB_REAL", str(tmp_path))
    with pytest.raises(FileNotFoundError) as raised:
        hub.ocr()
    assert str(raised.value) == hub.real_missing("ppocr") and "make real" in str(raised.value)
    assert "\n" not in str(raised.value)


# onnxruntime 1.32 on two lines: places and probabilities of the first tokens, both attentions from
# the sixth token to itself by head, and every thirteenth token's channel 7.
LINES = {
    ("Tokenizer", 12): dict(
        best=[0, 1381, 0, 0, 4245, 0, 0, 4849, 0, 0, 3332, 0],
        probability=[0.9980, 0.9965, 0.9997, 0.9998, 0.9986, 0.9991, 0.9998, 0.9949],
        first=[0.0035, 0.0098, 0.0568, 0.0189, 0.0201, 0.0570, 0.0047, 0.0432],
        second=[0.0215, 0.0470, 0.0285, 0.0000, 0.0405, 0.0192, 0.0191, 0.0209],
        tokens=[0.2956, -0.0344, 0.0755, -0.2732],
    ),
    ("patches & words: 7 of 12", 16): dict(
        best=[0, 4545, 0, 0, 4544, 0, 0, 3333, 0, 0, 4902, 0],
        probability=[0.9998, 0.9980, 0.9998, 0.9998, 0.9981, 0.9997, 0.9987, 0.9995],
        first=[0.0068, 0.0109, 0.0340, 0.0053, 0.0054, 0.0447, 0.0281, 0.0084],
        second=[0.0362, 0.0292, 0.0077, 0.0000, 0.0104, 0.0182, 0.0132, 0.0133],
        tokens=[-0.2730, -0.2664, 1.9894, 0.1136, -0.1915, 0.2973],
    ),
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0].split()[0])
@torch.no_grad()
def test_it_computes_what_onnxruntime_does(line):
    text, height = line
    model, want = net(), LINES[line]
    pixels = prepare(data.text_image(text, height=height)[0])[None]
    seen = model.look(pixels)
    assert seen.probabilities.shape == (1, pixels.shape[3] // 8, 6625)
    assert seen.probabilities[0, :12].argmax(-1).tolist() == want["best"]
    found = {
        "probability": seen.probabilities[0, :8].amax(-1),
        "first": seen.attention[0][0, :, 5, 5],
        "second": seen.attention[1][0, :, 5, 5],
        "tokens": seen.tokens[0, ::13, 7],
    }
    for name, value in found.items():
        torch.testing.assert_close(value, torch.tensor(want[name]), atol=3e-4, rtol=0)
    assert torch.equal(model(pixels), seen.probabilities)


def test_its_size_and_alphabet():
    model = net()
    assert sum(p.numel() for p in model.parameters()) == 2_690_352
    assert len(model.alphabet) == 6625 and model.alphabet[0] == "" and model.alphabet[-1] == " "
    assert {*"ABCXYZabcxyz0189&日"} <= set(model.alphabet)


def test_it_reads():
    texts = ["Visual tokens 42", "Tokenizer", "STATION"]
    read = hub.ocr() if net() else None
    cut = [data.text_image(text, height=h)[0] for text, h in zip(texts, (24, 12, 40), strict=True)]
    assert read(cut) == texts
    assert read(cut[::-1]) == texts[::-1] and read(cut[1:2]) == texts[1:2] and read([]) == []
    assert read([torch.full((3, 20, 60), 0.5)]) == [""]


def test_it_reads_signs_that_the_course_draws():
    pictures = EmojiWorld(128, "test").text(8, 0, height=(10, 16))
    cut = crops(pictures.images, pictures.boxes, torch.arange(8))
    said = net().read(cut)
    assert sum(a == b for a, b in zip(said, pictures.words, strict=True)) == 8


def test_colours_and_margins_matter():
    """Blue first, in [-1, 1], grey behind the end: with black there the text goes on, wrongly."""
    crop = data.text_image("Tokens", height=20, colour=(0.8, 0.1, 0.1))[0]
    line = prepare(crop)[None]
    with torch.no_grad():
        right, other = net()(line), net()(line.flip(1))
    assert net().decode(right) == ["Tokens"] and not torch.allclose(right, other, atol=1e-4)


# -------------------------------------------------------------------- what needs no weights
def tiny():
    """A recogniser of three characters that says what it is given."""
    graph = {"inputs": ["x"], "outputs": ["y"], "nodes": [["Relu", ["x"], "y", {}]],
             "integers": {}, "weights": {}}  # fmt: skip
    return Recogniser({"graph": graph, "alphabet": ["a", "b", "c"]})


@pytest.mark.parametrize("places, word", [
    ([0, 0, 0], ""), ([1, 1, 0, 1, 2, 2], "aab"), ([3, 4, 3], "c c"), ([2], "b"),
])  # fmt: skip
def test_ctc_decoding(places, word):
    probabilities = torch.nn.functional.one_hot(torch.tensor([places]), 5).float()
    assert tiny().decode(probabilities) == [word]


def test_a_crop_becomes_a_line():
    line = prepare(torch.ones(3, 24, 50))
    assert line.shape == (3, 48, 320) and (line[:, :, :100] == 1).all()
    assert (line[:, :, 100:] == 0.5).all()
    assert prepare(torch.ones(3, 10, 80)).shape == (3, 48, 384)                # 48 * 8 exactly
    assert prepare(torch.ones(3, 10, 81)).shape == (3, 48, 32 * math.ceil(389 / 32))
    assert tiny()(line[None]).shape == (1, 3, 48, 320)
    assert tiny()(line[None]).max() == 1                                        # of -1 ... 1


@pytest.mark.parametrize("call, told", [
    (lambda: prepare(torch.zeros(3, 4)), r"crop has shape \(3, 4\)"),
    (lambda: prepare(torch.zeros(1, 4, 4)), r"needs \(3, h, w\)"),
    (lambda: prepare(torch.zeros(3, 4, 4, dtype=torch.uint8)), "crop is torch.uint8"),
    (lambda: tiny()(torch.zeros(1, 3, 32, 320)), "lines are 32 pixels high: needs 48"),
    (lambda: tiny()(torch.zeros(3, 48, 320)), "lines has shape"),
])  # fmt: skip
def test_bad_input(call, told):
    with pytest.raises(ValueError, match=told):
        call()
