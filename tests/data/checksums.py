"""Checksums of what the generators make: `python -m tests.data.checksums` records those of the
commit that all later code is compared with.

A tensor is recorded as a CRC of its bits, which another version of torch or another kind of
processor may change, and as two sums, which these change by a rounding.
"""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("checksums.json")
OPTIONS = dict(objects=2, speed=0.04, spin=5, pan=0.03, zoom=0.02)


def classify(data):
    easy = data.EmojiWorld(48, pictograms=list(data.EASY))
    yield easy.classify(6, 1, clutter=2)
    both = data.EmojiWorld((33, 47), "test", "both")
    yield both.classify(5, 2, "category", background="noise")
    some = data.EmojiWorld(32, "all", "twemoji", 40)
    yield some.classify(9, 3, "subcategory", background="plain")


def scenes(data):
    for size, split, artist, options in (
        ((56, 72), "train", "both", dict(signs=0.5)),
        (96, "train", "noto", dict(batch=9, level="category")),
        (64, "test", "twemoji", dict(objects=(1, 6), rotation=180, occlusion="any", repeat=0.6)),
        (224, "all", "noto", dict(batch=1, occlusion="none", scale=(0.3, 0.9))),
    ):
        made = data.EmojiWorld(size, split, artist).scenes(**{"batch": 5, "seed": 4, **options})
        yield made, made.masks, made.boxes, made.visible
        yield made.semantic("subcategory"), made.panoptic()


def questions(data):
    made = data.EmojiWorld(80, artist="both").scenes(12, 3, objects=(1, 5), signs=0.3, repeat=0.4)
    yield made.captions(), [[str(q) for q in asked] for asked in made.questions(6, 1)]
    yield [[str(q) for q in asked] for asked in made.questions(2, 5, kinds=["count", "relation"])]


def video(data):
    made = data.EmojiWorld((48, 60), artist="both").video(2, 4, 2, **OPTIONS)
    yield made, made.masks, made.visible, made.visibility
    yield data.EmojiWorld(40).video(1, 1, 0)


def mosaic(data):
    yield data.EmojiWorld(32, artist="both").mosaic(130, 201, 3, cell=24)


def camouflage(data):
    yield data.EmojiWorld(64).camouflage(4, 0)
    yield data.EmojiWorld((40, 50), "test").camouflage(4, 1, objects=(2, 3), background="noise")


def retrieval(data):
    yield data.EmojiWorld(48, "test").retrieval(4, 0)


def text(data):
    yield data.EmojiWorld((60, 90)).text(8, 0, height=(10, 20))
    yield data.text_image(["Hello", "a\nb"], height=20), data.text_image("Hi", (50, 80), 16)


def panned(data):
    made = data.footage.panned(2, 3, (40, 48), 1, speed=(0.3, 5))
    yield made, made.flows(4)
    yield data.footage.panned(1, 3, 32, 5, "test", zoom=0.02, turn=2.0, shrink=1.2)
    yield data.footage.panned(1, 2, 32, 3, velocity=(2.0, 1.0), shrink=1.0, names=["coffee"])
    yield data.footage.pictograms(data.EmojiWorld((36, 44)), 2, 3, 3, **OPTIONS)


def assets(data):
    yield data.photographs(names=["temple"]), data.photographs((50, 81), ["coffee", "fig"])
    yield data.assets.drawings("noto")[::197], data.assets.drawings("twemoji")[5::197]
    yield data.digits(), data.clip()[0][::24], [shot[::15] for shot in data.shots()[:2]]


KINDS = (classify, scenes, questions, video, mosaic, camouflage, retrieval, text, panned, assets)


def flat(value):
    """Tensors and words inside, in order; properties are not looked at."""
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def row(tensor) -> list:
    """CRC, sum, and the sum weighted by cos(place): NumPy's, on one thread."""
    numbers = tensor.contiguous().numpy().ravel()
    order = np.cos(np.arange(min(numbers.size, 997)))
    weight = np.resize(order, numbers.size)
    exact = numbers.astype(np.float64)
    sums = [float(f"{value:.9g}") for value in (exact.sum(), (exact * weight).sum())]
    return [zlib.crc32(numbers.tobytes()), *sums]


def of(kind, data) -> list[list]:
    """Of everything that one kind makes: a row for each tensor, a CRC for all words together."""
    rows = []
    for value in kind(data):
        leaves = flat(value)
        words = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        rows += [row(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        rows.append([zlib.crc32(str(words).encode())])
    return rows


def processor() -> str:
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def record():
    """Write `checksums.json` from the first commit's code."""
    from tests.bench.before import FIRST, before

    old = before()
    old.module("data.footage")
    data = old.module("data")
    made = {kind.__name__: of(kind, data) for kind in KINDS}
    lines = [f'"commit": "{FIRST}"', f'"processor": "{processor()}"']
    for name, rows in made.items():
        lines.append(f'"{name}": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n]")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
