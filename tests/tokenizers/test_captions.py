"""Captions as ids, and which words say which thing and where."""

import pytest
import torch

from vtlib.data import EASY
from vtlib.tokenizers.captions import (
    KIND,
    KINDS,
    VOCABULARY,
    captioned,
    captions,
    decode,
    encode,
)
from vtlib.vlm.tinyvlm import words


def test_there_and_back():
    texts = captions(captioned(16, 0)) + ["Nothing that can be seen.", "A sunflower."]
    ids, valid = encode(texts)
    assert decode(ids[:, 1:]) == [" ".join(words(text)) for text in texts]
    assert decode(ids) == decode(ids[:, 1:])
    assert (valid.sum(1) == torch.tensor([len(words(text)) + 2 for text in texts])).all()
    assert not ids[~valid].any() and ids[:, 0].eq(1).all()


def test_kinds_of_words():
    text = "a red apple at the top left and an automobile in the middle"
    ids, _ = encode([text])
    said = [KINDS[k] for k in KIND[ids[0, 1:-1]].tolist()]
    which = {word for word, kind in zip(text.split(), said, strict=True) if kind == "which"}
    where = {word for word, kind in zip(text.split(), said, strict=True) if kind == "where"}
    assert which == {"red", "apple", "automobile"}
    assert where == {"at", "top", "left", "in", "middle"}
    assert len(KIND) == len(VOCABULARY) == len(set(VOCABULARY)) < 50
    names = {word for name in EASY for word in words(name)}
    assert names <= set(VOCABULARY) and "of" in names


def test_scenes_are_the_same_for_a_seed():
    one, two, other = captioned(4, 3), captioned(4, 3), captioned(4, 4)
    assert one.images.shape == (4, 3, 64, 64) and torch.equal(one.images, two.images)
    assert not torch.equal(one.images, other.images)
    texts = captions(captioned(64, 5))
    assert not any(" and " in text for text in texts) and len(set(texts)) > 30


@pytest.mark.parametrize("texts, said", [
    ([], "texts is empty"), ("a dog", "texts='a dog'"), (["a zebra"], "'zebra' in 'a zebra'"),
])
def test_bad_input(texts, said):
    with pytest.raises(ValueError, match=said):
        encode(texts)
