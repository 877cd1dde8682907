"""A small OneFormer and the scenes it is trained on: five pictograms on three kinds of stuff."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..data import EmojiWorld
from ..data.scenes import PANOPTIC
from ..data.stuff import STUFF, StuffScenes, stuff_scenes
from .oneformer import OneFormer, Prediction, Predictor
from .oneformer_nets import ConvPyramid
from .oneformer_tasks import (
    Targets,
    instances,
    panoptic_segments,
    semantic_scores,
    task_targets,
)
from .oneformer_text import (
    TASKS,
    TextEncoder,
    TextMapper,
    WordTokenizer,
    check_task,
    text_list,
)

SIZE, STRIDE = 96, 4
PICTOGRAMS = ("red apple", "automobile", "sunflower", "octopus", "cactus")
NAMES = (*STUFF, *PICTOGRAMS)
THINGS = frozenset(range(len(STUFF), len(NAMES)))
LENGTH = 8


def world(split: str) -> EmojiWorld:
    """The world of "train" or "test": the same pictograms, other photographs behind them."""
    return EmojiWorld(SIZE, split, pictograms=list(PICTOGRAMS))


def pictures(of: EmojiWorld, batch: int, seed: int) -> StuffScenes:
    """One to four objects, nearly half of them copies of another one, on two kinds of stuff.

    Args:
        of: the world.
        batch: how many.
        seed: decides.
    """
    return stuff_scenes(of, batch, seed, objects=(1, 4), scale=(0.2, 0.45), repeat=0.45)


def words() -> WordTokenizer:
    """Numbers of all words that texts about these scenes are made of."""
    every = [text for task in TASKS for text in text_list(task, range(len(NAMES)), NAMES, 9)]
    return WordTokenizer(every, LENGTH)


def small(
    num_queries: int = 16,
    num_context: int = 4,
    embed_dim: int = 64,
    num_heads: int = 4,
    hidden_dim: int = 128,
    num_layers: int = 3,
    query_layers: int = 2,
    channels: Sequence[int] = (16, 32, 64, 64, 64),
    text_layers: int = 1,
) -> OneFormer:
    """The model for these scenes, with random weights.

    Args:
        num_queries: as in `Predictor`.
        num_context: as in `TextMapper`.
        embed_dim: D of everything.
        num_heads: of all attention.
        hidden_dim: of feed-forward nets.
        num_layers: of the masked decoder.
        query_layers: of the transformer that forms the queries.
        channels: of `ConvPyramid`.
        text_layers: of the text encoder.
    """
    encoder = TextEncoder(words().vocab_size, LENGTH, embed_dim, text_layers, num_heads)
    predictor = Predictor(
        len(NAMES), num_queries, embed_dim, num_heads, hidden_dim, num_layers, query_layers, 0.0
    )
    pixels = ConvPyramid(embed_dim, channels)
    return OneFormer(pixels, predictor, TextMapper(encoder, num_context), LENGTH)


def targets(codes: Tensor, tasks: Sequence[str], stride: int = 1) -> list[Targets]:
    """What each picture should become under its task.

    Args:
        codes: (B, H, W), of `StuffScenes`.
        tasks: one a picture.
        stride: above 1 masks are means over squares of so many pixels a side, in [0, 1].
    """
    found = []
    for picture, task in zip(codes, tasks, strict=True):
        segments = [(code, code // PANOPTIC, False) for code in picture.unique().tolist()]
        target = task_targets(picture, segments, task, THINGS)
        if stride > 1:
            target = target._replace(masks=F.avg_pool2d(target.masks.float(), stride))
        found.append(target)
    return found


def answer(prediction: Prediction, task: str, size: tuple[int, int], **options: Any) -> Any:
    """`OneFormer.segment` of a prediction that is there already, whatever sentence was said.

    Args:
        prediction: of a model of these scenes.
        task: how it is read.
        size: (H, W) of the pictures.
        options: of `panoptic_segments` or `instances`.
    """
    classes, masks = prediction
    masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    if check_task(task) == "semantic":
        return semantic_scores(classes, masks)
    read = panoptic_segments if task == "panoptic" else instances
    return read(classes, masks, THINGS, **options)
