"""What TinyVLM is trained on and examined with: its world, its questions, and measures of a
selection that need no answer.

The world: 30 pictograms by two artists on photographs, some scenes with a sign. Held out from
training are the test backgrounds and, of every fifth pictogram, the drawing by Twemoji. The exam
shows all 60 drawings, so one of ten objects in it is drawn as no training scene drew it.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..data import EmojiWorld, Scenes, categories
from ..data.text import WORDS
from ..nn import check_finite, check_float, check_int, check_number, check_tokens
from ..nn.checks import check_list, describe
from ..tokens import Plan, take
from ..tokens.checks import check_grid, check_mask
from ..tokens.plan import check_plan
from ..tokens.precision import full_precision, widen
from .tinyvlm import END, PAD, START, words

SIZE, PATCH = 128, 8
PICTOGRAMS = (
    "octopus", "butterfly", "penguin", "crab", "turtle", "sunflower", "cactus", "snail", "banana",
    "strawberry", "watermelon", "carrot", "pineapple", "doughnut", "slice of pizza", "automobile",
    "rocket", "umbrella", "sailboat", "helicopter", "bicycle", "balloon", "trophy", "soccer ball",
    "wrapped present", "guitar", "key", "pencil", "sunglasses", "bell",
)
HELD_OUT = tuple(range(2, len(PICTOGRAMS), 5))
SCALE, OBJECTS = (0.14, 0.45), (1, 5)
SCALES = {
    "tiny": (0.09, 0.13),
    "small": (0.14, 0.24),
    "middle": (0.24, 0.34),
    "large": (0.34, 0.45),
    "huge": (0.47, 0.65),
}
"""Sizes of objects, as fractions of the side, for exams by scale: training shows small, middle and
large ones (SCALE); tiny and huge are held out."""
KINDS = (
    "presence", "count", "count_category", "side", "height", "relation", "category", "sign",
)
SHELL = (
    "is there a an ? the on left or right at top bottom what is to of above how many times does "
    "appear objects are category which largest object belong say sign"
)
"""The words that questions are made of, names left out."""
TEXTS = (SHELL, "yes no", " ".join(map(str, range(10))), *PICTOGRAMS, *categories(), *WORDS)
VOCABULARY = tuple(dict.fromkeys(word for text in TEXTS for word in words(text)))


def world(split: str, size: int = SIZE) -> EmojiWorld:
    """The pictograms and drawings of one side, "train" or "test".

    Train has only Noto's drawings of the held-out ones, test has all drawings.
    """
    held_out = HELD_OUT if split == "train" else ()
    artists = ["noto" if k in held_out else "both" for k in range(len(PICTOGRAMS))]
    return EmojiWorld(size, split, artist=artists, pictograms=list(PICTOGRAMS))


def scenes(batch: int, seed: int, split: str = "test", size: int = SIZE, **options) -> Scenes:
    """Scenes as TinyVLM knows them: 1 to 5 objects, 14 to 45 % of the side, repeats, a sign in
    three of ten.

    Args:
        batch: how many.
        seed: of the drawing.
        split: "train" or "test".
        size: side in pixels.
        options: see `EmojiWorld.scenes`.
    """
    usual = dict(objects=OBJECTS, scale=SCALE, repeat=0.4, signs=0.3)
    return world(split, size).scenes(batch, seed, **{**usual, **options})


def pack(ids: dict[str, int], asked: Sequence[list]) -> tuple[Tensor, Tensor, Tensor]:
    """Questions with their answers as tensors of the CPU.

    ids: {word: number}; asked: for each picture a list of `Question`.

    Returns ids (B, Q, L), padded with 0; target (B, Q, L): the next word where it belongs to the
    answer or is <end>, else -100; kind (B, Q): index into KINDS, -1 where there is no question.
    """
    def number(text):
        return [ids[word] for word in text]

    rows = [
        [(number(words(q.text)), number([*words(q.answer), END]), KINDS.index(q.kind)) for q in row]
        for row in asked
    ]
    many = max(map(len, rows))
    length = max(len(text) + len(answer) for row in rows for text, answer, _ in row)
    shape = len(rows), many, length
    out = torch.zeros(shape, dtype=torch.long, device="cpu")
    target = torch.full(shape, -100, device="cpu")
    kind = torch.full((len(rows), many), -1, device="cpu")
    for b, row in enumerate(rows):
        for q, (text, answer, k) in enumerate(row):
            whole = torch.tensor(text + answer, device="cpu")
            out[b, q, : len(whole)] = whole
            target[b, q, len(text) - 1 : len(whole) - 1] = whole[len(text) :]
            kind[b, q] = k
    return out, target, kind


@dataclass
class Exam:
    """Held-out scenes with questions, ready to be answered many times.

    scenes; asked: a list of `Question` for each; ids, target (B, Q, L) and kind (B, Q): see `pack`.
    patch: side in pixels of the patches that the encoder sees.
    """

    scenes: Scenes
    asked: list
    ids: Tensor
    target: Tensor
    kind: Tensor
    patch: int = PATCH

    def __post_init__(self) -> None:
        self.patch = check_int(self.patch, "patch", 1)

    @property
    def images(self) -> Tensor:
        return self.scenes.images

    def right(self, model, tokens, positions=None, num_visual=None) -> Tensor:
        """(B, Q) bool: which questions the model answers word for word, all in one pass.

        Args:
            model: a `TinyVLM`.
            tokens: (B, T, D), the visual tokens.
            positions: see `TinyVLM.packed`.
            num_visual: see `TinyVLM.packed`.

        ValueError for tokens that are not finite: those are no wrong answers.
        """
        check_finite(tokens, "tokens")
        logits = model.packed(tokens, self.ids.to(tokens.device), positions, num_visual)
        return self.grade(logits)

    def grade(self, logits) -> Tensor:
        """(B, Q) bool from logits (B, Q, L, vocabulary): every word of the answer is the most
        probable one. False where there is no question."""
        check_float(logits, "logits")
        if logits.dim() != 4 or logits.shape[:3] != self.target.shape:
            raise ValueError(
                f"logits has shape {tuple(logits.shape)} but needs (B, Q, L, vocabulary) with "
                f"(B, Q, L) = {tuple(self.target.shape)}"
            )
        target, kind = self.target.to(logits.device), self.kind.to(logits.device)
        said = (logits.argmax(-1) == target) | (target < 0)
        return said.all(-1) & (kind >= 0)

    def table(self, right) -> dict[str, float]:
        """Share of right answers of each kind that was asked, and "all"."""
        check_mask(right, "right", self.kind.shape, "(B, Q)")
        kind = self.kind.to(right.device)
        rows = {}
        for k, name in enumerate(KINDS):
            if (kind == k).any():
                rows[name] = right[kind == k].float().mean().item()
        return {**rows, "all": right[kind >= 0].float().mean().item()}

    @functools.cached_property
    def cover(self) -> Tensor:
        """(B, K, N) bool: `object_patches` of the scenes."""
        return object_patches(self.scenes, self.patch)

    @functools.cached_property
    def on_objects(self) -> Tensor:
        """(B, Q) bool: the questions that rest on objects which are there."""
        out = torch.zeros(self.kind.shape, dtype=torch.bool, device=self.cover.device)
        for b, row in enumerate(self.asked):
            for q, question in enumerate(row):
                out[b, q] = bool(question.objects)
        return out

    @functools.cached_property
    def asked_patches(self) -> Tensor:
        """(B, Q, N) bool: the patches that show what each question is about; none where it rests on
        no object, such as one about a thing that is not there."""
        out = self.cover.new_zeros(*self.kind.shape, self.cover.shape[2])
        for b, q in self.on_objects.nonzero().tolist():
            out[b, q] = self.cover[b, list(self.asked[b][q].objects)].any(0)
        return out

    def queried(self) -> tuple[Tensor, Tensor]:
        """(mask (Q', N) bool, picture (Q',) long) of the questions that rest on objects: the
        patches that show what is asked about."""
        if not self.on_objects.any():
            raise ValueError("asked has no question that rests on objects: nothing is to be found")
        return self.asked_patches[self.on_objects], self.on_objects.nonzero()[:, 0]


def exam(
    batch: int,
    seed: int = 1_000_000,
    n: int = 8,
    kinds: Iterable[str] = KINDS,
    device=None,
    patch: int = PATCH,
    **options,
) -> Exam:
    """`batch` held-out scenes with questions, which are EmojiWorld's own mixture.

    Args:
        batch: how many scenes.
        seed: of scenes and questions.
        n: up to how many questions each scene gets.
        kinds: of KINDS, which questions may be asked.
        device: of the scenes.
        patch: side in pixels of the encoder's patches: DINOv2 sees size=224 in patches of 14, and
            then as many as TinyVLM's own encoder, 16 x 16.
        options: see `scenes`.
    """
    kinds = check_list(kinds, "kinds", f"a list of {KINDS}")
    made = scenes(batch, seed, device=device, **options)
    asked = made.questions(n, seed, kinds)
    return Exam(made, asked, *pack(_IDS, asked), patch)


def by_scale(
    batch: int, seed: int = 3_000_000, n: int = 8, device=None
) -> dict[str, Exam]:
    """{name: exam} for each of SCALES: the same pictograms on the same held-out backgrounds, drawn
    at five sizes; 1 to 3 objects, no signs.

    Places follow the sizes, and questions follow what is seen, so the exams ask nearly but not
    exactly the same: each has a blind score of its own.

    Args:
        batch: how many scenes each.
        seed: of scenes and questions.
        n: up to how many questions each scene gets.
        device: of the scenes.
    """
    kinds = tuple(kind for kind in KINDS if kind != "sign")
    usual = dict(objects=(1, 3), signs=0.0)
    return {
        name: exam(batch, seed, n, kinds, device, scale=scale, **usual)
        for name, scale in SCALES.items()
    }


_IDS = {word: i for i, word in enumerate((PAD, START, END, *VOCABULARY))}


# ----------------------------------------------------------------------- measures of a selection
def _check_kind(value: object, name: str, kind: type) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {describe(value)} but needs to be {kind.__name__}")


def object_patches(scene: Scenes, patch: int = PATCH, share: float = 0.3) -> Tensor:
    """(B, K, N) bool: which patches an object covers, from the exact masks.

    Args:
        scene: with masks (B, K, H, W).
        patch: side of a patch in pixels.
        share: of a patch that must be covered; an object's best patch always counts if it is seen.
    """
    _check_kind(scene, "scene", Scenes)
    patch, share = check_int(patch, "patch", 1), check_number(share, "share", 0, 1)
    cover = rearrange(F.avg_pool2d(scene.masks.float(), patch), "b k h w -> b k (h w)")
    best = cover == cover.amax(-1, keepdim=True)
    return (cover >= share) | (best & (cover > 0))


def oracle_mask(exam: Exam, patch: int | None = None) -> Tensor:
    """(B, N) bool: patches of any object and of the sign: all that a question can rest on.

    patch: side of a patch in pixels; None: the exam's.
    """
    _check_kind(exam, "exam", Exam)
    return covered(exam.scenes, exam.patch if patch is None else patch) >= 0.3


def covered(scene: Scenes, patch: int = PATCH) -> Tensor:
    """(B, N): the share of each patch that objects and the sign cover, from the exact masks.

    Args:
        scene: with masks (B, K, H, W).
        patch: side of a patch in pixels.
    """
    _check_kind(scene, "scene", Scenes)
    patch = check_int(patch, "patch", 1)
    masks = scene.masks.any(1)
    if scene.sign is not None:
        masks = masks | scene.sign
    return rearrange(F.avg_pool2d(masks[:, None].float(), patch), "b 1 h w -> b (h w)")


def measures(
    plan: Plan, tokens: Tensor, exam: Exam, grid: tuple[int, int]
) -> dict[str, float]:
    """How a selection looks before anything is answered.

    recall: share of the queried object's patches that were kept, mean over questions.
    objects hit: share of seen objects with a kept patch.
    redundancy: mean cosine of two kept tokens.
    smallest distance: smallest 1 - cosine between two of them, mean over pictures.
    mean row: mean row of kept patches, 0 (top) ... h - 1; (h - 1) / 2 is unbiased.

    Args:
        plan: over N patches, or over prefix and patches; the prefix does not count. Of merged slots
            the seeds count, as they are before anything is merged into them; empty slots don't.
        tokens: (B, N, D), the visual tokens that similarities are measured on.
        exam: whose scenes they are of.
        grid: (h, w), N = h w.

    A picture that keeps fewer than two patches has neither redundancy nor smallest distance, and
    does not count in them; where none keeps two they are 0 and 2. ValueError for a plan, tokens or
    a grid that do not fit each other or the exam, and for tokens that are not finite.
    """
    check_plan(plan, "plan")
    _check_kind(exam, "exam", Exam)
    check_tokens(tokens)
    check_finite(tokens, "tokens")
    grid = check_grid(grid, tokens.shape[1])
    kept = plan.kept()[:, plan.num_prefix :]                                     # b n
    if kept.shape != tokens.shape[:2]:
        raise ValueError(
            f"plan is for (B, N) = {tuple(kept.shape)} patches but tokens has shape "
            f"{tuple(tokens.shape)}"
        )
    recall, hit, row = _coverage(kept, exam, grid)
    redundancy, smallest = _diversity(tokens, kept)
    return {
        "recall": recall.item(),
        "objects hit": hit.item(),
        "redundancy": redundancy.item(),
        "smallest distance": smallest.item(),
        "mean row": row.item(),
    }


def _coverage(kept: Tensor, exam: Exam, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """recall, objects hit and mean row of kept patches (B, N) bool, each 0-dim."""
    cover = exam.cover.to(kept.device)
    if (len(cover), cover.shape[2]) != tuple(kept.shape):
        raise ValueError(
            f"exam has {len(cover)} pictures of {cover.shape[2]} patches but the plan is for "
            f"{len(kept)} of {kept.shape[1]}"
        )
    mask, picture = (t.to(kept.device) for t in exam.queried())
    seen = cover.any(-1)
    hit = (cover & kept[:, None]).any(-1) & seen
    rows = torch.arange(kept.shape[1], device=kept.device) // grid[1]
    recall = ((mask & kept[picture]).sum(-1).float() / mask.sum(-1)).mean()
    row = ((kept * rows).sum(-1).float() / kept.sum(-1).clamp(min=1)).mean()
    return recall, hit.sum().double() / seen.sum(), row


def _diversity(tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """redundancy and smallest distance of the tokens (B, N, D) at kept (B, N) bool, each 0-dim."""
    count = kept.sum(1)
    most = max(1, int(count.max()))
    index = kept.int().argsort(dim=1, descending=True, stable=True)[:, :most]   # b k, kept first
    unit = F.normalize(widen(take(tokens, index)), dim=-1)
    with full_precision(unit.device):
        cosine = unit @ unit.mT
    real = torch.arange(most, device=kept.device) < count[:, None]
    itself = torch.eye(most, dtype=torch.bool, device=kept.device)
    no_pair = itself | ~(real[:, :, None] & real[:, None])                      # b k k
    pairs = (count * (count - 1)).clamp(min=1)
    redundancy = cosine.masked_fill(no_pair, 0).sum((1, 2)) / pairs
    smallest = 1 - cosine.masked_fill(no_pair, -1).amax((1, 2))
    several = count > 1
    if several.any():
        redundancy, smallest = redundancy[several], smallest[several]
    return redundancy.mean(), smallest.mean()
