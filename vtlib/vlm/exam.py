"""What TinyVLM is trained on and examined with: its world, its questions, and measures of a selection that need no answer.

The world: 30 pictograms by two artists on photographs, some scenes with a sign. Held out from training are the test backgrounds and, of every
fifth pictogram, the drawing by Twemoji. The exam shows all 60 drawings, so one of ten objects in it is drawn as no training scene drew it.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..data import EmojiWorld, Scenes, categories
from ..data.text import WORDS
from ..tokens import Plan
from .tinyvlm import END, PAD, START, words

SIZE = 128
PICTOGRAMS = ("octopus", "butterfly", "penguin", "crab", "turtle", "sunflower", "cactus", "snail", "banana", "strawberry", "watermelon", "carrot",
              "pineapple", "doughnut", "slice of pizza", "automobile", "rocket", "umbrella", "sailboat", "helicopter", "bicycle", "balloon", "trophy",
              "soccer ball", "wrapped present", "guitar", "key", "pencil", "sunglasses", "bell")
HELD_OUT = tuple(range(2, len(PICTOGRAMS), 5))
SCALE, OBJECTS = (0.14, 0.45), (1, 5)
SCALES = {"tiny": (0.09, 0.13), "small": (0.14, 0.24), "middle": (0.24, 0.34), "large": (0.34, 0.45), "huge": (0.47, 0.65)}
"""Sizes of objects, as fractions of the side, for exams by scale: training shows small, middle and large ones (SCALE); tiny and huge are held out."""
KINDS = ("presence", "count", "count_category", "side", "height", "relation", "category", "sign")
SHELL = ("is there a an ? the on left or right at top bottom what is to of above how many times does appear objects are category "
         "which largest object belong say sign")
"""The words that questions are made of, names left out."""
TEXTS = (SHELL, "yes no", " ".join(map(str, range(10))), *PICTOGRAMS, *categories(), *WORDS)
VOCABULARY = tuple(dict.fromkeys(word for text in TEXTS for word in words(text)))


def world(split: str, size: int = SIZE) -> EmojiWorld:
    """The pictograms and drawings of one side, "train" or "test". Train has only Noto's drawings of the held-out ones, test has all drawings."""
    artists = ["noto" if split == "train" and k in HELD_OUT else "both" for k in range(len(PICTOGRAMS))]
    return EmojiWorld(size, split, artist=artists, pictograms=list(PICTOGRAMS))


def scenes(batch: int, seed: int, split: str = "test", size: int = SIZE, **options) -> Scenes:
    """Scenes as TinyVLM knows them: 1 to 5 objects, 14 to 45 % of the side, repeats, a sign in three of ten. options: see `EmojiWorld.scenes`."""
    return world(split, size).scenes(batch, seed, **{**dict(objects=OBJECTS, scale=SCALE, repeat=0.4, signs=0.3), **options})


def pack(ids, asked) -> tuple[Tensor, Tensor, Tensor]:
    """Questions with their answers as tensors. ids: {word: number}; asked: for each picture a list of `Question`.

    Returns ids (B, Q, L), padded with 0; target (B, Q, L): the next word where it belongs to the answer or is <end>, else -100; kind (B, Q):
    index into KINDS, -1 where there is no question.
    """
    rows = [[(words(q.text), [*words(q.answer), END], KINDS.index(q.kind)) for q in row] for row in asked]
    many, length = max(map(len, rows)), max(len(t) + len(a) for row in rows for t, a, _ in row)
    out, target = torch.zeros(len(rows), many, length, dtype=torch.long), torch.full((len(rows), many, length), -100)
    kind = torch.full((len(rows), many), -1)
    for b, row in enumerate(rows):
        for q, (text, answer, k) in enumerate(row):
            whole = torch.tensor([ids[w] for w in [*text, *answer]])
            out[b, q, : len(whole)] = whole
            target[b, q, len(text) - 1 : len(whole) - 1] = whole[len(text):]
            kind[b, q] = k
    return out, target, kind


@dataclass
class Exam:
    """Held-out scenes with questions, ready to be answered many times.

    scenes; asked: a list of `Question` for each; ids, target (B, Q, L) and kind (B, Q): see `pack`.
    """

    scenes: Scenes
    asked: list
    ids: Tensor
    target: Tensor
    kind: Tensor

    @property
    def images(self) -> Tensor:
        return self.scenes.images

    def right(self, model, tokens, positions=None, num_visual=None) -> Tensor:
        """(B, Q) bool: which questions the model answers word for word, all in one pass.

        tokens (B, T, D) are the visual tokens; positions, num_visual: see `TinyVLM.packed`.
        """
        logits = model.packed(tokens, self.ids.to(tokens.device), positions, num_visual)
        return self.grade(logits)

    def grade(self, logits) -> Tensor:
        """(B, Q) bool from logits (B, Q, L, vocabulary): every word of the answer is the most probable one. False where there is no question."""
        target = self.target.to(logits.device)
        return ((logits.argmax(-1) == target) | (target < 0)).all(-1) & (self.kind.to(logits.device) >= 0)

    def table(self, right) -> dict[str, float]:
        """Share of right answers of each kind that was asked, and "all"."""
        kind = self.kind.to(right.device)
        rows = {name: right[kind == k].float().mean().item() for k, name in enumerate(KINDS) if (kind == k).any()}
        return {**rows, "all": right[kind >= 0].float().mean().item()}

    @functools.cached_property
    def cover(self) -> Tensor:
        """(B, K, N) bool: `object_patches` of the scenes."""
        return object_patches(self.scenes)

    def queried(self) -> tuple[Tensor, Tensor]:
        """(mask (Q', N) bool, picture (Q',) long): the patches that show what a question rests on, for the questions that rest on objects."""
        rows = [(b, self.cover[b, list(q.objects)].any(0)) for b, row in enumerate(self.asked) for q in row if q.objects]
        return torch.stack([mask for _, mask in rows]), torch.tensor([b for b, _ in rows])


def exam(batch: int, seed: int = 1_000_000, n: int = 8, kinds=KINDS, device=None, **options) -> Exam:
    """`batch` held-out scenes with up to n questions each. options: see `scenes`. The questions are EmojiWorld's own mixture of `kinds`."""
    made = scenes(batch, seed, device=device, **options)
    asked = made.questions(n, seed, list(kinds))
    return Exam(made, asked, *pack(_IDS, asked))


def by_scale(batch: int, seed: int = 3_000_000, n: int = 8, device=None) -> dict[str, Exam]:
    """{name: exam} for each of SCALES: the same pictograms on the same held-out backgrounds, drawn at five sizes; 1 to 3 objects, no signs.

    Places follow the sizes, and questions follow what is seen, so the exams ask nearly but not exactly the same: each has a blind score of its own.
    """
    kinds = tuple(kind for kind in KINDS if kind != "sign")
    return {name: exam(batch, seed, n, kinds, device, objects=(1, 3), signs=0.0, scale=scale) for name, scale in SCALES.items()}


_IDS = {word: i for i, word in enumerate((PAD, START, END, *VOCABULARY))}


# ------------------------------------------------------------------------------------------------- measures of a selection
def object_patches(scene: Scenes, patch: int = 8, share: float = 0.3) -> Tensor:
    """(B, K, N) bool: the patches of which an object covers at least `share`, from the exact masks; its best patch always counts if it is seen."""
    cover = rearrange(F.avg_pool2d(scene.masks.float(), patch), "b k h w -> b k (h w)")
    best = cover == cover.amax(-1, keepdim=True)
    return (cover >= share) | (best & (cover > 0))


def oracle_mask(exam: Exam, patch: int = 8) -> Tensor:
    """(B, N) bool: patches of any object and of the sign: all that a question can rest on."""
    sign = exam.scenes.sign
    masks = exam.scenes.masks.any(1) if sign is None else exam.scenes.masks.any(1) | sign
    return rearrange(F.avg_pool2d(masks[:, None].float(), patch), "b 1 h w -> b (h w)") >= 0.3


def measures(plan: Plan, tokens: Tensor, exam: Exam, grid: tuple[int, int]) -> dict[str, float]:
    """How a selection looks before anything is answered (a plan over N patches; visual tokens (B, N, D) for the similarities).

    recall: share of the queried object's patches that were kept, mean over questions. objects hit: share of seen objects with a kept patch.
    A plan over prefix and patches must keep the prefix in its first slots (VisionDrop); of its merged slots the seeds count.
    redundancy: mean cosine of two kept tokens. smallest distance: smallest 1 - cosine between two of them, mean over pictures.
    mean row: mean row of kept patches, 0 (top) ... h - 1; (h - 1) / 2 is unbiased.
    """
    kept = plan.kept()[:, plan.num_prefix :]                                                        # b n
    mask, picture = exam.queried()
    mask, picture = mask.to(kept.device), picture.to(kept.device)
    cover = exam.cover.to(kept.device)
    seen = cover.any(-1)
    if plan.num_prefix:  # [CLS] and its like lead, and are no patches: the others' seeds are compared
        plan = Plan(plan.index[:, plan.num_prefix :] - plan.num_prefix, tokens.shape[1])
    unit = F.normalize(plan.apply(tokens), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    itself = torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
    rows = torch.arange(kept.shape[1], device=kept.device) // grid[1]
    pairs = max(1, cosine.shape[1] * (cosine.shape[1] - 1))
    return {
        "recall": ((mask & kept[picture]).sum(-1) / mask.sum(-1)).mean().item(),
        "objects hit": ((cover & kept[:, None]).any(-1) & seen).sum().item() / seen.sum().item(),
        "redundancy": (cosine.masked_fill(itself, 0).sum((1, 2)) / pairs).mean().item(),
        "smallest distance": (1 - cosine.masked_fill(itself, -1).amax((1, 2))).mean().item(),
        "mean row": ((kept * rows).sum(-1) / kept.sum(-1).clamp(min=1)).mean().item(),
    }
