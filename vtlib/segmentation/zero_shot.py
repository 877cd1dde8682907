"""Inductive zero-shot segmentation: who knows what, and a small world of dense features to try it
in.

    training    pixels of SEEN classes have labels, all others none     annotate
                masks of the seen classes of each picture               seen_targets
    test        names of seen AND unseen classes; seen, unseen and harmonic IoU
                                                                        measures.MeanIoU.harmonic

Unseen classes may stand in the pictures of the training, without labels and without names. Their
pixels and those of no class look the same there: both are un-annotated.

`feature_scenes` draws what a frozen image-text encoder would give: a map of vectors near the text
vector of each pixel's class, with noise. How much noise decides everything.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn.checks import (
    check_axes,
    check_generator,
    check_index,
    check_int,
    check_number,
)
from ..tokens.cosine import unit
from .measures import check_classes

UNANNOTATED = 255


class SeenTargets(NamedTuple):
    """Annotated masks of a picture, one a class that is there.

    Args:
        labels: (T,) int64, places in the list of seen classes.
        masks: (T, H, W) bool.
    """

    labels: Tensor
    masks: Tensor


class FeatureScenes(NamedTuple):
    """Scenes as a frozen encoder would show them.

    Args:
        features: (B, h, w, D).
        labels: (B, h, w) int64, the class of each pixel, unseen ones too.
        text: (K, D) unit vectors, of all classes.
    """

    features: Tensor
    labels: Tensor
    text: Tensor


def annotate(
    labels: Tensor, seen: Sequence[int], num_classes: int, ignore: int = UNANNOTATED
) -> Tensor:
    """What the training may know of a label map (B, H, W): 0 ... S - 1, the place of the class in
    `seen`; 255 where the class is unseen or there is none.

    Args:
        labels: (B, H, W) int64, 0 ... num_classes - 1 or `ignore`.
        seen: the S classes with labels, one at least.
        num_classes: of seen and unseen classes.
        ignore: of pixels that nobody labels, 0 for a background say, if that is no class.
    """
    check_index(labels, "labels", "(B, H, W)")
    num_classes = check_int(num_classes, "num_classes", 1)
    found, ignore = check_classes(seen, num_classes, "seen"), check_int(ignore, "ignore")
    nobody = labels == ignore
    check_index(labels.masked_fill(nobody, 0), "labels", stop=num_classes)
    table = torch.full((num_classes,), UNANNOTATED, device=labels.device)
    table[found] = torch.arange(len(found), device=labels.device)
    return table[labels.masked_fill(nobody, 0)].masked_fill(nobody, UNANNOTATED)


def seen_targets(annotation: Tensor, num_classes: int) -> list[SeenTargets]:
    """One mask for each seen class that a picture's annotation has; none may be there.

    A seen class never extends beyond its annotation, so the un-annotated pixels are outside of
    every mask.

    Args:
        annotation: (B, H, W) int64, 0 ... num_classes - 1 or 255.
        num_classes: S, of seen classes.
    """
    check_index(annotation, "annotation", "(B, H, W)")
    num_classes = check_int(num_classes, "num_classes", 1)
    free = annotation == UNANNOTATED
    check_index(annotation.masked_fill(free, 0), "annotation", stop=num_classes)
    classes = torch.arange(num_classes, device=annotation.device)
    masks = annotation[:, None] == classes[:, None, None]                            # b s h w
    there = masks.any(dim=(2, 3))                                                    # b s
    pairs = zip(masks, there, strict=True)
    return [SeenTargets(here.nonzero()[:, 0], each[here]) for each, here in pairs]


def feature_scenes(
    batch: int,
    generator: torch.Generator,
    text: Tensor,
    size: int = 12,
    regions: int = 3,
    noise: float = 0.8,
) -> FeatureScenes:
    """Scenes of a few regions, each of another class: a pixel belongs to the nearest of as many
    random points, and its feature is its class's text vector plus noise.

        feature = text[class] + noise z / sqrt(D)            z ~ N(0, 1): its length is about noise

    Args:
        batch: B.
        generator: draws points, classes and noise, on the device of `text`.
        text: (K, D) vectors of all classes, made unit.
        size: pixels of a side.
        regions: of a scene, at most K.
        noise: its length beside the class's 1.
    """
    batch, size = check_int(batch, "batch", 1), check_int(size, "size", 1)
    check_axes(text, "text", "(K, D)")
    check_generator(generator)
    regions = check_int(regions, "regions", 1, len(text))
    noise = check_number(noise, "noise", 0)
    device, text = text.device, unit(text)
    draw = dict(generator=generator, device=device)
    order = torch.rand(batch, len(text), **draw).argsort(dim=1)[:, :regions]         # b r
    points = torch.rand(batch, regions, 2, **draw) * size
    line = torch.arange(size, device=device) + 0.5
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1)          # h w 2
    nearest = torch.cdist(places.reshape(1, -1, 2), points).argmin(dim=-1)           # b hw
    labels = order.gather(1, nearest).reshape(batch, size, size)
    clean = text[labels]                                                             # b h w d
    z = torch.randn(clean.shape, dtype=clean.dtype, **draw)
    return FeatureScenes(clean + noise * z / text.shape[1] ** 0.5, labels, text)
