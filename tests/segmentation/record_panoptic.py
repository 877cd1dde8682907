"""Record panoptic.json: what COCO's own code says of maps made by hand and at random.

It needs panopticapi-lite 0.2.0 with a numpy before 2, in an environment of its own:

    python -m venv coco
    coco/bin/pip install "numpy<2" panopticapi-lite==0.2.0
    coco/bin/python tests/segmentation/record_panoptic.py

Numbers of segments are written as digits and letters, a string a row: "0" is void, "a" the tenth.
"""

import contextlib
import io
import json
import pathlib
import tempfile

import numpy as np
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
# classes: 0 stuff, 1 and 2 things, 3 stuff
THINGS = [1, 2]
SCENE = ["00000000", "11112211", "11112211", "11111111", "13311441", "13311441", "13311441"]
SCENE_CLASSES = [0, 1, 1, 2]                     # ground, two of one kind, one of another


def picture(pred, pred_classes, truth=SCENE, truth_classes=SCENE_CLASSES):
    return dict(pred=pred, pred_classes=pred_classes, truth=truth, truth_classes=truth_classes)


def only(rows, kept):
    """The map with other segments unlabelled and the kept ones numbered anew."""
    number = {DIGITS[k]: DIGITS[i + 1] for i, k in enumerate(kept)}
    return ["".join(number.get(c, "0") for c in row) for row in rows]


def by_hand():
    one_pixel = [row.replace("1", "0") for row in only(SCENE, [1])]
    one_pixel[1] = "1" + one_pixel[1][1:]
    merged = [row.replace("3", "2").replace("4", "3") for row in SCENE]
    quarter = list(SCENE)
    quarter[1] = "11112011"                                  # one of the four pixels of segment 2
    half, wide, thin = ["1100", "1100"], ["1111", "1111"], ["1110", "1110"]
    return {
        "perfect": [picture(SCENE, SCENE_CLASSES)],
        "no object of three": [picture(only(SCENE, [1]), [0])],
        "one pixel labelled": [picture(one_pixel, [0])],
        "a quarter of an object unlabelled": [picture(quarter, SCENE_CLASSES)],
        "nothing labelled": [picture(["0" * 8] * 7, [])],
        "two kinds exchanged": [picture(SCENE, [0, 1, 2, 1])],
        "two objects merged": [picture(merged, [0, 1, 2])],
        "stuff of a kind that is not there": [picture(SCENE, [3, 1, 1, 2])],
        "half void is a false positive": [picture(wide, [1], half, [2])],
        "more than half void is none": [picture(wide, [1], ["1000", "1000"], [2])],
        "void does not count in the union": [picture(wide, [1], thin, [1])],
        "IoU of one half is no match": [picture(half, [1], wide, [1])],
        "IoU above one half is one": [picture(["1110", "1100"], [1], wide, [1])],
        "no truth but void": [picture(wide, [1], ["0000", "0000"], [])],
        "two pictures": [picture(SCENE, SCENE_CLASSES), picture(only(SCENE, [1, 2]), [0, 1])],
    }


def regions(rng, count, size=(10, 14)):
    """Nearest of random centres: ids 1 ... count."""
    y, x = np.mgrid[: size[0], : size[1]]
    centres = rng.uniform(0, size, (count, 2))
    apart = (y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2
    return apart.argmin(-1) + 1


def numbered(ids, classes):
    """Without the numbers that no pixel has, as rows and classes."""
    kept = [int(i) for i in np.unique(ids) if i]
    number = {0: 0} | {k: i + 1 for i, k in enumerate(kept)}
    rows = ["".join(DIGITS[number[int(i)]] for i in row) for row in ids]
    return rows, [int(classes[k - 1]) for k in kept]


def at_random(rng):
    """The prediction: the truth, cut by other regions, with classes changed, parts unlabelled."""
    truth, classes = regions(rng, 7), rng.integers(0, 4, 7)
    pred, pred_classes = truth.copy(), classes.copy()
    other = regions(rng, 9)
    for cut in rng.choice(9, rng.integers(0, 5), replace=False) + 1:
        pred[other == cut] = rng.choice([0, *range(1, 8)])
    split = (other % 2 == 0) & (pred == rng.integers(1, 8))
    pred[split] = 8
    pred_classes = np.append(pred_classes, rng.integers(0, 4))
    changed = rng.random(8) < 0.15
    pred_classes[changed] = rng.integers(0, 4, changed.sum())
    void = regions(rng, 6)
    truth = np.where(void <= rng.integers(0, 3), 0, truth)
    return picture(*numbered(pred, pred_classes), *numbered(truth, classes))


def coco(pictures):
    """All, Things, Stuff as [pq, sq, rq, n] and a row a class; null where COCO divides by 0."""
    categories = {c: dict(id=c, isthing=int(c in THINGS)) for c in range(4)}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        pairs = []
        for k, entry in enumerate(pictures):
            pair = []
            for name in ("truth", "pred"):
                ids = np.array([[DIGITS.index(c) for c in row] for row in entry[name]])
                file = f"{name}{k}.png"
                Image.fromarray(id2rgb(ids)).save(pathlib.Path(folder) / file)
                segments = [
                    dict(id=i + 1, category_id=c, iscrowd=0, area=int((ids == i + 1).sum()))
                    for i, c in enumerate(entry[f"{name}_classes"])
                ]
                pair.append(dict(image_id=k, file_name=file, segments_info=segments))
            pairs.append(tuple(pair))
        counted = pq_compute_single_core(0, pairs, folder, folder, categories)
    want = {}
    for name, things in (("all", None), ("things", True), ("stuff", False)):
        try:
            mean, each = counted.pq_average(categories, things)
            want[name] = [mean["pq"], mean["sq"], mean["rq"], mean["n"]]
        except ZeroDivisionError:
            want[name] = None
        if name == "all" and want[name]:
            want["per_class"] = [[each[c][q] for q in ("pq", "sq", "rq")] for c in range(4)]
    return want


def main():
    rng = np.random.default_rng(14)
    sets = by_hand()
    sets |= {f"random {k}": [at_random(rng) for _ in range(4)] for k in range(8)}
    cases = [
        dict(name=name, pictures=pictures, want=coco(pictures)) for name, pictures in sets.items()
    ]
    for case in cases:
        print(case["name"], case["want"]["all"])
    file = pathlib.Path(__file__).with_name("panoptic.json")
    lines = ",\n".join(json.dumps(case) for case in cases)
    file.write_text(f'{{"num_classes": 4, "things": {THINGS}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
