"""Exercises on OneFormer: targets of three tasks, where a query may look, the contrast of sets."""

import torch
import torch.nn.functional as F

from vtlib.segmentation.oneformer import allowed, contrastive_loss
from vtlib.teach.exercises import check, expect

# --------------------------------------------------------------------------- targets of three tasks
SCENE = (
    "0 0 0 0 0 0|0 3001 3001 0 3003 0|0 3001 3002 3002 3003 0|"
    "1000 1000 3002 3002 4004 4004|1000 1000 1000 1000 4004 4004"
)
OTHER = "2000 2000 2000 5001|2000 3002 3002 5001|0 3002 0 5003|0 0 0 5003"


def _map(text):
    return torch.tensor([[int(code) for code in row.split()] for row in text.split("|")])


def task_masks(codes, task, things):
    """codes (H, W) = 1000 class + number -> classes (T,) and masks (T, H, W) bool, by ascending
    code."""
    return _task_masks(codes, task, things)


def _task_masks(codes, task, things, united=("semantic",), dropped=("instance",), stuff=False,
                semantic_drops=False, overwrite=False):
    """`task_masks` with one thing done differently."""
    masks = {}
    for code in codes.unique().tolist():
        number = code // 1000
        if (task in dropped or (semantic_drops and task == "semantic")) and (
            (number in things) == stuff
        ):
            continue
        key = (number, 0) if task in united else (number, code)
        mask = codes == code
        masks[key] = masks[key] | mask if key in masks and not overwrite else mask
    numbers = [number for number, _ in masks]
    classes = torch.tensor(numbers, dtype=torch.long, device=codes.device)
    empty = torch.zeros(0, *codes.shape, dtype=torch.bool, device=codes.device)
    return classes, torch.stack(list(masks.values())) if masks else empty


def _mask_causes(codes, task, things, part):
    def variant(**changed):
        return _task_masks(codes, task, things, **changed)[part]

    causes = {
        "copies of a class stay apart; semantic has one mask for each class": variant(united=()),
        "copies of a class are united; only semantic does that":
            variant(united=("semantic", "instance", "panoptic")),
        "stuff is there; instance asks for things alone": variant(dropped=()),
        "the stuff was kept and the things dropped; it is the other way round":
            variant(stuff=True),
        "semantic lost the stuff; it has all classes": variant(semantic_drops=True),
        "panoptic lost the stuff; it has all segments":
            variant(dropped=("instance", "panoptic")),
        "a later copy overwrites the earlier one; unite their masks with |":
            variant(overwrite=True),
    }
    if part == 0:
        causes["these are the codes; the class is code // 1000"] = codes.unique()
        causes["these are the numbers; the class is code // 1000"] = codes.unique() % 1000
    return causes


@check("oneformer.task_masks", reference=task_masks)
def _(fn):
    for text, things in ((SCENE, {3, 4}), (OTHER, {3, 5}), (OTHER, {5})):
        codes = _map(text)
        for task in ("semantic", "instance", "panoptic"):
            got, want = fn(codes, task, things), task_masks(codes, task, things)
            expect(len(got), 2, what="the number of things returned: classes and masks")
            for part, name in enumerate(("classes", "masks")):
                causes = _mask_causes(codes, task, things, part)
                what = f"the {name} for {task!r}"
                expect(got[part], want[part], what=what, mistakes=causes)


# --------------------------------------------------------------------------- where a query may look


def may_look(mask_logits, size):
    """mask_logits (B, N, H, W), size (h, w) -> (B, N, h w) bool, True = may look there."""
    inside = allowed(mask_logits, size).flatten(2)
    return inside | ~inside.any(dim=2, keepdim=True)


def _look(mask_logits, size, mode="bilinear", reset=True, flip=False, axis=2, before=False,
          above=0.5):
    """`may_look` with one thing done differently."""
    x = mask_logits.sigmoid() if before else mask_logits
    options = {"align_corners": False} if mode == "bilinear" else {}
    x = F.interpolate(x, size=size, mode=mode, **options)
    inside = ((x if before else x.sigmoid()) >= above).flatten(2)
    if flip:
        inside = ~inside
    return inside | ~inside.any(dim=axis, keepdim=True) if reset else inside


def _look_causes(mask_logits, size):
    inside = _look(mask_logits, size, reset=False)
    return {
        "the reset is missing: a query whose mask is nowhere may look everywhere": inside,
        "True and False are swapped: True is where the mask is":
            _look(mask_logits, size, flip=True),
        "the reset is taken over the queries; each query has its own, over the places":
            _look(mask_logits, size, axis=1),
        "one empty query opens all of them; the reset is each query's own (dim=2, keepdim=True)":
            inside | ~inside.any(dim=2).all(),
        "the mask was shrunk by nearest neighbour; here it is bilinear":
            _look(mask_logits, size, mode="nearest"),
        "the mask was shrunk by area means; here it is bilinear":
            _look(mask_logits, size, mode="area"),
        "sigmoid came before the resizing; resize the logits":
            _look(mask_logits, size, before=True),
        "the logits were compared with 0.5; their sigmoid is (the logits with 0)":
            _look(mask_logits, size, above=torch.tensor(0.5).sigmoid().item()),
        "the places are still rows and columns; flatten(2) puts them on one axis":
            may_look(mask_logits, size).unflatten(2, size),
    }


@check("oneformer.may_look", reference=may_look)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for shape, size in (((2, 5, 8, 12), (4, 6)), ((1, 3, 9, 6), (3, 2))):
        logits = 2 * torch.randn(shape, generator=generator) + 0.4
        logits[:, 0] = -3.0 - logits[:, 0].abs()                       # this one is nowhere
        logits[..., : shape[2] // 2, : shape[3] // 2] -= 6.0           # and here there is none
        got, want = fn(logits, size), may_look(logits, size)
        what = f"where the queries may look on a map of {size[0]} x {size[1]}"
        expect(got, want, what=what, mistakes=_look_causes(logits, size))


# ----------------------------------------------------------------------------- the contrast of sets


def contrast(queries, texts, scale):
    """queries, texts (B, N, D), scale a number -> the loss, a scalar."""
    return contrastive_loss(queries, texts, queries.new_tensor(float(scale)).log())


def _contrast(queries, texts, scale, each=False, normed=True, rows=1.0, columns=1.0, pooled=False):
    """`contrast` with one thing done differently."""
    def flat(x):
        if each:
            return F.normalize(x, dim=2).flatten(1)
        x = x.mean(dim=1) if pooled else x.flatten(1)
        return F.normalize(x, dim=1) if normed else x

    logits = scale * flat(queries) @ flat(texts).T
    own = torch.arange(len(logits))
    return rows * F.cross_entropy(logits, own) + columns * F.cross_entropy(logits.T, own)


def _contrast_causes(queries, texts, scale):
    def variant(**changed):
        return _contrast(queries, texts, scale, **changed)

    return {
        "only the rows: each picture looks for its list, but no list for its picture":
            variant(columns=0.0),
        "only the columns: each list looks for its picture, but no picture for its list":
            variant(rows=0.0),
        "the mean of both directions; here it is their sum": variant(rows=0.5, columns=0.5),
        "each query was normalised; it is the picture's whole set, one vector of N x D numbers":
            variant(each=True),
        "nothing is normalised: a long vector would win": variant(normed=False),
        "the queries were averaged; here they are put end to end, flatten(1)":
            variant(pooled=True),
        "the scale is missing, or was divided by": _contrast(queries, texts, 1.0),
        "the cosines were divided by the scale; here they are multiplied":
            _contrast(queries, texts, 1 / scale),
    }


@check("oneformer.contrast", reference=contrast)
def _(fn):
    generator = torch.Generator().manual_seed(2)
    for batch, scale in ((4, 14.0), (3, 5.0)):
        queries = torch.randn(batch, 5, 6, generator=generator)
        lengths = torch.rand(batch, 5, 1, generator=generator) * 3 + 0.2
        texts = queries * lengths + 0.8 * torch.randn(batch, 5, 6, generator=generator)
        got, want = fn(queries, texts, scale), contrast(queries, texts, scale)
        causes = _contrast_causes(queries, texts, scale)
        expect(got, want, what=f"the loss of {batch} pictures", mistakes=causes)
    one = torch.ones(1, 2, 3)
    expect(fn(one, one, 14.0), torch.tensor(0.0), what="the loss of a single picture")
