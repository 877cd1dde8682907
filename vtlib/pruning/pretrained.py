"""A small CrossGET dual encoder on EmojiWorld whose captions speak of some pictograms and never of
others.

    model, words = crossget_clip()
    seen = pictures(world(split="test"), 64, seed=1)
    similarity = model(seen.images, words(seen.captions))          (64, 64), rows are pictures

Every picture has three pictograms; the caption names those of SPOKEN and their places, and passes
over those of SILENT. So it is known what the text asks for, and what it does not.
`train/crossget.py` made the checkpoint. It is also the one joint space of pictures and text there
is here, so it can play the CLIP that Recoverable Compression asks (`signals`).
"""

import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .. import checkpoints, data
from ..data.questions import article, things, where
from ..tokens.vision import VisionOutputs
from ..vlm.pretrained import SILENT
from .crossget_encoder import CrossGETCLIP

SPOKEN = data.EASY
SIZE, OBJECTS, SCALE = 64, 3, (0.28, 0.45)
PLACES = "at the top left right bottom on in middle and a an"


class Words:
    """A tokenizer with one id a word: 0 is padding, 1 opens, the largest id is [EOT]. Called with
    captions it gives ids (B, context) long.

    ValueError for a word it does not know and for a caption that is too long.
    """

    def __init__(self, words, context: int):
        self.words, self.context = list(words), context
        self.ids = {word: i + 2 for i, word in enumerate(self.words)}
        self.eot = len(self.words) + 2

    def __len__(self) -> int:
        return self.eot + 1

    def __call__(self, captions, device=None) -> Tensor:
        rows = []
        for caption in captions:
            words = caption.lower().replace(",", " ").replace(".", " ").split()
            unknown = [word for word in words if word not in self.ids]
            if unknown or len(words) > self.context - 2:
                wrong = f"{len(words)} words, but there is room for {self.context - 2}"
                if unknown:
                    wrong = f"unknown words {unknown}"
                raise ValueError(f"caption {caption!r}: {wrong}")
            ids = [1, *(self.ids[word] for word in words), self.eot]
            rows.append(ids + [0] * (self.context - len(ids)))
        return torch.tensor(rows, device=device)


def vocabulary() -> list[str]:
    """The words of all captions, sorted."""
    names = {word for name in SPOKEN for word in name.lower().split()}
    return sorted(set(PLACES.split()) | names)


def world(split: str = "train") -> data.EmojiWorld:
    """The pictograms of both lists by one artist; splits differ in their backgrounds."""
    return data.EmojiWorld(SIZE, split, pictograms=[*SPOKEN, *SILENT])


class Pictures(NamedTuple):
    """images (B, 3, S, S), captions, and where the caption's pictograms and the others are: spoken,
    silent (B, S, S) bool."""

    images: Tensor
    captions: list[str]
    spoken: Tensor
    silent: Tensor


def pictures(source: data.EmojiWorld, batch: int, seed: int) -> Pictures:
    """Pictures that show at least one pictogram of either list, with captions of the spoken ones,
    from left to right.

    Args:
        source: `world(...)`.
        batch: how many.
        seed: of the draw.
    """
    found, part = [], 0
    while sum(len(p.captions) for p in found) < batch:
        found.append(_some(source, batch + batch // 2, seed * 1000 + part))
        part += 1
    images, spoken, silent = (
        torch.cat([getattr(p, name) for p in found])[:batch]
        for name in ("images", "spoken", "silent")
    )
    captions = [caption for p in found for caption in p.captions]
    return Pictures(images, captions[:batch], spoken, silent)


def _some(source, batch, seed):
    scenes = source.scenes(
        batch, seed, objects=OBJECTS, scale=SCALE, rotation=20, repeat=0, occlusion="none"
    )
    seen = [
        sorted((t for t in scene if t.seen), key=lambda t: (t.x, t.y)) for scene in things(scenes)
    ]
    spoken = [[t for t in scene if t.name in SPOKEN] for scene in seen]
    both = [0 < len(named) < len(scene) for named, scene in zip(spoken, seen, strict=True)]
    captions = [_caption(named) for named, ok in zip(spoken, both, strict=True) if ok]
    talked = torch.zeros(batch, scenes.valid.shape[1] + 1, dtype=torch.bool)
    for picture, named in zip(talked, spoken, strict=True):
        picture[[t.slot + 1 for t in named]] = True                 # slot + 1, as in `instance`
    mask = talked.gather(1, scenes.instance.flatten(1)).view_as(scenes.instance)
    silent = (scenes.instance > 0) & ~mask
    good = torch.tensor(both)
    return Pictures(scenes.images[good], captions, mask[good], silent[good])


def _caption(named) -> str:
    text = " and ".join(f"{article(t.name)} {where(t)}" for t in named)
    return text[0].upper() + text[1:] + "."


PATCHES = ("value", "hidden")


def signals(
    model: CrossGETCLIP, images: Tensor, text: Tensor, patches: str = "value"
) -> tuple[VisionOutputs, dict[str, Tensor]]:
    """What `recoverable.prune(vision, **signals)` and `crossget.prune(vision, ...)` ask for, from
    the towers without any merging. The cross token is left out.

    Args:
        model: the dual encoder.
        images: (B, 3, S, S).
        text: (B, L) ids.
        patches: how patches come into the joint space. "hidden" is the paper's: the last layer's
            states, projected. But only [CLS] was ever trained to meet the text, and there the
            patches of a named object come out LESS similar to its caption than the background.
            "value" projects what a patch has to say in the last layer before attention mixes it,
            out_proj(v) (MaskCLIP, Zhou et al. 2022, arXiv 2112.01071), which points the right way.

    Returns vision: the state before the last layer, keys and [CLS] row of the layer that made it;
    and a dict: query and key of the last layer, text (B, E), patches (B, N, E). ValueError for
    other `patches`.
    """
    if patches not in PATCHES:
        raise ValueError(f"patches={patches!r} must be one of {PATCHES}")
    tower = model.visual.transformer
    before, last = tower.resblocks[-2], tower.resblocks[-1]
    seen = _record(model, images, {"before": before.attn, "attn": last.attn, "last": last})

    _, query, key = (part[:, :-1] for part in seen["before"][1])
    heads = before.attn.num_heads
    query, key = (rearrange(part, "b n (h p) -> b h n p", h=heads) for part in (query, key))
    logits = query[:, :, :1] @ key.mT * key.shape[-1] ** -0.5
    row = logits.softmax(-1)[:, :, 0, 1:]                           # b h n
    side = model.visual.img_size // model.visual.conv1.stride[0]
    entering = seen["last"][0][0][:, :-1]
    vision = VisionOutputs(entering, (side, side), lambda x: x, 1, row, key.mean(1))
    if patches == "value":
        attn = last.attn
        inside = F.linear(last.ln_1(vision.features), attn.in_proj_weight, attn.in_proj_bias)
        joint = model.visual.ln_post(attn.out_proj(inside.chunk(3, dim=-1)[2]))
    else:
        joint = seen["last"][1][0][:, 1:-1]
    asked = {
        "query": seen["attn"][1][1][:, :-1],
        "key": seen["attn"][1][2][:, :-1],
        "patches": joint @ model.visual.proj,
        "text": model.encode_text(text, r=0).feature,
    }
    return vision, asked


def _record(model, images, parts):
    """{name: (arguments, output)} of modules while the images are encoded without merging."""
    seen = {}

    def note(name):
        return lambda _, args, out: seen.__setitem__(name, (args, out))

    hooks = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    try:
        model.encode_image(images, r=0)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def crossget_clip(
    device: torch.device | str | None = None, name: str | os.PathLike = "crossget_clip"
) -> tuple[CrossGETCLIP, Words]:
    """The trained model in eval mode and its tokenizer. It takes images (B, 3, 64, 64) in [0, 1].

    name: the shipped checkpoint or the path of another one of the same script, see
    `checkpoints.load`. `checkpoints.info(name)["score"]` says what is known of it: {"r=8 guided":
    {"i2t", "t2i": recall at 1 of 256 pictures on held-out backgrounds, "spoken", "silent",
    "background": share of such patches that some layer merged into another token}, ...}.
    "unguided": I = 0; "inverted": -I; "bipartite": I, ToMe's sets. `checkpoints.seeds(name)` has
    the same of three seeds, and "losses", {"ita", "kd"}: on held-out backgrounds, batches of 64,
    r = 8 with guidance.
    """
    known = checkpoints.info(name)
    words = Words(known["words"], known["config"]["context"])
    return checkpoints.load(name, CrossGETCLIP, device), words
