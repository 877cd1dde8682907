"""Captions of EmojiWorld as ids: what a small language model of this family writes about images.

    scenes = captioned(32, seed=0)                         64 px, one of twelve pictograms
    ids, valid = encode(captions(scenes))                  <start> a rocket at the top left <end>
    KIND[ids]                                              0 the rest, 1 which, 2 where
"""

import torch
from torch import Tensor

from ..data import EASY, EmojiWorld, Scenes
from ..data.questions import captions
from ..nn.checks import check_index, check_list
from ..vlm.tinyvlm import END, PAD, START, words

__all__ = [
    "END_ID", "KIND", "KINDS", "START_ID", "VOCABULARY", "captioned", "captions", "decode",
    "encode",
]

SHELL = "a an the and nothing that can be seen"
WHERE = "at on in top bottom left right middle"
VOCABULARY = tuple(
    dict.fromkeys((PAD, START, END, *words(SHELL), *words(WHERE), *words(" ".join(EASY))))
)
IDS = {word: i for i, word in enumerate(VOCABULARY)}
START_ID, END_ID = IDS[START], IDS[END]
KINDS = ("rest", "which", "where")
_PLACES, _REST = set(words(WHERE)), {PAD, START, END, *words(SHELL)}
KIND = torch.tensor(
    [0 if word in _REST else 2 if word in _PLACES else 1 for word in VOCABULARY], device="cpu"
)
"""(V,) long: whether a word is of a name (1), of a place (2), or neither (0)."""


def captioned(batch: int, seed: int, size: int = 64) -> Scenes:
    """Scenes that a language model of 0.2 M parameters learns to describe in minutes: one pictogram
    of `vtlib.data.EASY`, 35 to 50 % of the side, on one colour.

    Two pictograms on photographs are too hard for it: 400 steps taught it grammar, and to say of
    the image no more than of another one.

    Args:
        batch: how many.
        seed: of the drawing.
        size: side in pixels.
    """
    world = EmojiWorld(size, "train", pictograms=list(EASY))
    return world.scenes(batch, seed, objects=1, scale=(0.35, 0.5), background="plain")


def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Texts -> ids (B, L), from <start> to <end> and padded at the end; valid (B, L) bool.

    ValueError for no text, and for a word that is not in VOCABULARY.
    """
    rows = []
    for text in check_list(texts, "texts", "a list of texts"):
        row = [START, *words(text), END]
        strange = [word for word in row if word not in IDS]
        if strange:
            raise ValueError(f"texts has {strange[0]!r} in {text!r}: it is not in VOCABULARY")
        rows.append([IDS[word] for word in row])
    if not rows:
        raise ValueError("texts is empty: needs one text at least")
    longest = max(map(len, rows))
    ids = [row + [IDS[PAD]] * (longest - len(row)) for row in rows]
    valid = [[k < len(row) for k in range(longest)] for row in rows]
    return torch.tensor(ids, device="cpu"), torch.tensor(valid, device="cpu")


def decode(ids: Tensor) -> list[str]:
    """ids (B, L) long -> texts: the words up to <end>, joined by blanks."""
    check_index(ids, "ids", "(B, L)", stop=len(VOCABULARY))
    texts = []
    for row in ids.tolist():
        row = row[: row.index(END_ID)] if END_ID in row else row
        texts.append(" ".join(VOCABULARY[i] for i in row if VOCABULARY[i] not in (PAD, START)))
    return texts
