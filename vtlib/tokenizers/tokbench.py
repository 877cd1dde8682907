"""TokBench - Evaluating Your Visual Tokenizer before Visual Generation (Wu et al., 2025, arXiv
2505.18142).

The idea: PSNR and rFID are means over pixels and pictures, so they hide what people see first, a
word that can't be read and a face that is another person's. TokBench reconstructs pictures whose
words and faces are known, lets a fixed recogniser read the words and a fixed net compare the faces,
and reports both **by relative size**: a tokenizer fails on the small ones long before PSNR tells.

    keep the words that are read exactly on the originals               refine
    (longest side of the box / letters) / longest side of the picture   word_sizes
    longest side of the box / longest side of the picture               face_sizes
    T-ACC = [read = written]                                            matches
    T-NED = 1 - edits / max(letters written, letters read)              similarities
    F-Sim = cosine of the embeddings of both aligned faces              align, face_similarity
    mean over the instances of a bin [lo, hi), mean over the bins       binned, TEXT_BINS, FACE_BINS
    all of it for a codec, images -> images, or for a tokenizer         score_text, score_faces

Boxes and key points are those of the original for both pictures: nothing is detected again, so a
detector that misses a ruined word can't make the score better. A reader is a function from a list
of crops (3, h, w) to a list of strings (`reader.TemplateReader`, `vtlib.hub.ocr`), an embedding one
from faces (N, 3, size, size) to (N, D). Frames of a video are pictures: flatten them (the release
does; nothing more of its video part is known here).

Flagged: an empty bin is NaN and left out of the mean over the bins (the release makes that NaN
too). A size of 1 or more, or below the first edge, is in no bin but enters the pooled mean. The
longest side as numerator of a word's size, and a face's size as a whole, are inferred; the release
stores the finished numbers. Its early version has other bins for faces: [.1, .2, .3, 1] at 256,
[.05, .1, .2, 1] at 512, [.02, .05, .1, 1] at 1024.

Different from the release: letters lose their accents by Unicode's own tables in place of the
package anyascii, which also spells other scripts in ASCII; and an edit distance of folded words is
divided by their own lengths (there: of the words as they were).
"""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import (
    at_hand,
    check_callable,
    check_float,
    check_images,
    check_index,
    check_int,
    check_list,
    check_numbers,
)
from ..tokens.precision import widen

PAPER = "tokbench"

TEXT_BINS = {"256": (0.02, 0.03, 0.04, 1), "512": (0.01, 0.02, 0.03, 1),
             "1024": (0.005, 0.01, 0.02, 1)}  # fmt: skip
"""Edges of small, medium and large words, by the side that pictures are reconstructed at."""
FACE_BINS = {"256": (0, 0.1, 0.2, 1), "512": (0, 0.05, 0.2, 1), "1024": (0, 0.05, 0.1, 1)}
"""Edges of small, medium and large faces, likewise."""
ARCFACE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655),
           (70.7299, 92.2041))  # fmt: skip
"""Where the eyes, the nose and the corners of the mouth (x, y) come to lie in 112 x 112 pixels."""
ARCFACE_SIDE = 112

Codec = Callable[[Tensor], Any]
Reader = Callable[[list[Tensor]], list[str]]
Embedding = Callable[[Tensor], Tensor]


# ------------------------------------------------------------------------------- what is looked at
@dataclass
class Words:
    """Pictures with words whose places are known.

    Args:
        images: (B, 3, H, W) in [0, 1], all of one size: a `setting`.
        words: N strings, none empty.
        boxes: (N, 4) x0, y0, x1, y1 in pixels.
        picture: (N,) long: in which picture each word is; None: one word a picture, in order.
    """

    images: Tensor
    words: list[str]
    boxes: Tensor
    picture: Tensor | None = None

    def __post_init__(self) -> None:
        self.words = check_strings(self.words, "words")
        if not all(self.words):
            raise ValueError(f"words[{self.words.index('')}] is empty: needs a letter at least")
        self.picture = _checked(self.images, self.boxes, self.picture, len(self.words))

    def __len__(self) -> int:
        return len(self.words)


@dataclass
class Faces:
    """Pictures with faces whose places are known.

    Args:
        images: (B, 3, H, W) in [0, 1], all of one size.
        boxes: (N, 4) x0, y0, x1, y1 in pixels.
        points: (N, 5, 2) x, y of eyes, nose and corners of the mouth, left first. The middle of the
            first pixel is (0.5, 0.5), as in `vtlib.data`; in OpenCV's numbers it is (0, 0).
        picture: (N,) long: in which picture each face is; None: one face a picture, in order.
    """

    images: Tensor
    boxes: Tensor
    points: Tensor
    picture: Tensor | None = None

    def __post_init__(self) -> None:
        self.picture = _checked(self.images, self.boxes, self.picture, len(self.boxes))
        check_points(self.points)
        if len(self.points) != len(self.boxes):
            raise ValueError(f"{len(self.points)} faces have points but {len(self.boxes)} a box")

    def __len__(self) -> int:
        return len(self.boxes)


def _checked(images: Tensor, boxes: Tensor, picture: Tensor | None, count: int) -> Tensor:
    """`picture`, made where it is None, once everything fits together."""
    check_images(images)
    if not isinstance(boxes, Tensor) or boxes.shape != (count, 4) or boxes.dtype is torch.bool:
        shape = tuple(getattr(boxes, "shape", ()))
        raise ValueError(f"boxes has shape {shape}: needs a tensor ({count}, 4)")
    sides = boxes[:, 2:] - boxes[:, :2]
    if at_hand(boxes) and not bool((sides > 0).all()):
        worst = int((sides > 0).all(dim=1).int().argmin())
        raise ValueError(f"boxes[{worst}]={boxes[worst].tolist()}: needs x0 < x1 and y0 < y1")
    if picture is None:
        if len(images) != count:
            raise ValueError(f"picture=None needs one each, but there are {len(images)} pictures "
                             f"and {count} boxes")  # fmt: skip
        return torch.arange(count, device=images.device)
    check_index(picture, "picture", "(N,)", (count,), stop=len(images))
    return picture


def crops(images: Tensor, boxes: Tensor, picture: Tensor) -> list[Tensor]:
    """What the boxes hold, N tensors (3, h, w), rounded outwards to whole pixels.

    Args:
        images: (B, 3, H, W).
        boxes: (N, 4).
        picture: (N,) long.

    ValueError for a box with no pixel of its picture.
    """
    height, width = images.shape[-2:]
    low, high = boxes[:, :2].double().floor().long(), boxes[:, 2:].double().ceil().long()
    cut = []
    for k, (x0, y0, x1, y1) in zip(picture.tolist(), torch.cat([low, high], 1).tolist(),
                                   strict=True):  # fmt: skip
        piece = images[k, :, max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
        if 0 in piece.shape:
            raise ValueError(f"boxes has {[x0, y0, x1, y1]}, outside of {height} x {width} pixels")
        cut.append(piece)
    return cut


# ------------------------------------------------------------------------------------ relative size
def word_sizes(words: Words) -> Tensor:
    """(N,) float64: longest side of the box a letter, as a fraction of the picture's longest."""
    letters = [len(word) for word in words.words]
    letters = torch.tensor(letters, dtype=torch.float64, device=words.boxes.device)
    return _longest(words.boxes) / letters / max(words.images.shape[-2:])


def face_sizes(faces: Faces) -> Tensor:
    """(N,) float64: longest side of the box as a fraction of the picture's longest."""
    return _longest(faces.boxes) / max(faces.images.shape[-2:])


def _longest(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:].double() - boxes[:, :2].double()).amax(dim=1)


class Binned(NamedTuple):
    """Scores by size: mean and number of each bin, the mean over the bins, that over instances."""

    bins: Tensor  # (K,) float64, NaN where nothing is
    counts: Tensor  # (K,) long
    mean: float
    pooled: float


def binned(values: Tensor, sizes: Tensor, edges: Sequence[float]) -> Binned:
    """Means by size. Each bin counts the same in `mean`, however few instances it has.

    Args:
        values: (N,) scores.
        sizes: (N,) relative sizes.
        edges: K + 1, ascending; bin k is [edges[k], edges[k + 1]).
    """
    edges = check_edges(edges)
    for name, x in (("values", values), ("sizes", sizes)):
        if not isinstance(x, Tensor) or x.dim() != 1 or len(x) != len(values):
            raise ValueError(f"{name} needs to be a tensor (N,), values and sizes of one length")
    values = values.double()
    sizes = sizes if sizes.is_floating_point() else sizes.double()
    # an edge rounded as the sizes are: 0.02 in float32 is below 0.02, and belongs to its bin
    low, high = torch.tensor([edges[:-1], edges[1:]], dtype=sizes.dtype, device=sizes.device)
    inside = (sizes[:, None] >= low) & (sizes[:, None] < high)                        # n k
    counts = inside.sum(dim=0)
    means = (values[:, None] * inside).sum(dim=0) / counts                            # 0 / 0 = NaN
    return Binned(means, counts, float(means.nanmean()), float(values.mean()))


def check_edges(edges: Any) -> tuple[float, ...]:
    """Edges of bins as floats. ValueError unless there are two at least, and they rise."""
    edges = check_numbers(edges, "edges", 0)
    if len(edges) < 2 or any(a >= b for a, b in zip(edges[:-1], edges[1:], strict=True)):
        raise ValueError(f"edges={edges}: needs two numbers at least, each above the one before")
    return edges


def _edges(setting: Any, bins: dict[str, tuple[float, ...]]) -> tuple[float, ...]:
    """The edges of a setting's name, or those that were given themselves."""
    if isinstance(setting, (str, int)) and not isinstance(setting, bool):
        if str(setting) not in bins:
            raise ValueError(f"setting={setting!r}: needs one of {', '.join(bins)}, or edges")
        return check_edges(bins[str(setting)])
    return check_edges(setting)


# --------------------------------------------------------------------------------- words, compared
ALONE = str.maketrans({
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l",
    "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "TH", "ı": "i", "€": "EUR",
    "£": "GBP", "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...",
})  # fmt: skip
"""Characters that Unicode doesn't take apart."""


def fold(text: str) -> str:
    """A word in ASCII: letters without their accents. What has no such form stays as it is."""
    parts = unicodedata.normalize("NFKD", text.translate(ALONE))
    return "".join(c for c in parts if not unicodedata.combining(c))


def edit_distance(a: str, b: str) -> int:
    """Fewest letters to insert, delete or replace until a is b (Levenshtein)."""
    if not isinstance(a, str) or not isinstance(b, str):
        raise ValueError(f"a={a!r} and b={b!r}: both need to be strings")
    above = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            replaced = above[j - 1] + (letter != other)
            row.append(min(above[j] + 1, row[j - 1] + 1, replaced))
        above = row
    return above[-1]


def edit_similarity(a: str, b: str) -> float:
    """1 - edits / length of the longer one: 1 for equal words, 0 where no letter fits."""
    return 1 - edit_distance(a, b) / max(len(a), len(b), 1)


class Matches(NamedTuple):
    """Whether a word was read exactly: as it is, whatever the case, the accents, or both."""

    raw: bool
    caseless: bool
    folded: bool
    caseless_folded: bool


def matches(written: str, read: str) -> Matches:
    """T-ACC of one word is `raw`; the others tell why a word counts as lost."""
    plain = fold(written), fold(read)
    return Matches(
        written == read, written.lower() == read.lower(), plain[0] == plain[1],
        plain[0].lower() == plain[1].lower(),
    )  # fmt: skip


class Similarities(NamedTuple):
    """How much of a word was read, in [0, 1]."""

    raw: float
    caseless: float
    caseless_folded: float


def similarities(written: str, read: str) -> Similarities:
    """T-NED of one word is `raw`. Each is at least what `matches` says of the same two words."""
    plain = fold(written).lower(), fold(read).lower()
    return Similarities(
        edit_similarity(written, read), edit_similarity(written.lower(), read.lower()),
        edit_similarity(*plain),
    )  # fmt: skip


def check_strings(values: Any, name: str, count: int | None = None) -> list[str]:
    """A list of strings. ValueError otherwise.

    Args:
        values: what was given.
        name: what the message calls it.
        count: how many there must be; None: any number.
    """
    values = check_list(values, name, "a list of strings")
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong or (count is not None and len(values) != count):
        got = f"{wrong[0]!r}" if wrong else f"{len(values)} strings"
        needs = "strings alone" if count is None else f"{count} strings"
        raise ValueError(f"{name} has {got}: needs {needs}")
    return values


def read_words(images: Tensor, words: Words, reader: Reader) -> list[str]:
    """What the reader reads in `images`, at the places of the original words.

    Args:
        images: (B, 3, H, W), the originals or a reconstruction of them.
        words: whose boxes are cut out.
        reader: list of crops -> list of strings.
    """
    check_callable(reader, "reader", "a function from crops to strings")
    read = reader(crops(images, words.boxes, words.picture))
    return check_strings(read, "what the reader gave", len(words))


def refine(words: Words, reader: Reader) -> Words:
    """Those words alone that the reader reads exactly on the originals.

    What it can't read there says nothing about a tokenizer. ValueError when it reads none.
    """
    read = read_words(words.images, words, reader)
    kept = [i for i, (a, b) in enumerate(zip(words.words, read, strict=True)) if a == b]
    if not kept:
        raise ValueError(f"of {len(words)} words the reader reads none on the originals")
    at = torch.tensor(kept, device=words.boxes.device)
    picture = words.picture[at.to(words.picture.device)]
    return replace(
        words, words=[words.words[i] for i in kept], boxes=words.boxes[at], picture=picture
    )


# --------------------------------------------------------------------------------- faces, compared
def template(size: int = ARCFACE_SIDE) -> Tensor:
    """(5, 2) float64: where the key points belong in a face of `size` x `size` pixels."""
    size = check_int(size, "size", 1)
    return (torch.tensor(ARCFACE, dtype=torch.float64, device="cpu") + 0.5) * (size / ARCFACE_SIDE)


def check_points(points: Any) -> None:
    """ValueError unless the key points are floats (N, 5, 2) that don't all coincide."""
    check_float(points, "points")
    if points.dim() != 3 or points.shape[1:] != (5, 2):
        raise ValueError(f"points has shape {tuple(points.shape)}: needs (N, 5, 2)")
    if at_hand(points) and len(points):
        spread = (points - points.mean(1, keepdim=True)).abs().amax((1, 2))
        if not bool((spread > 0).all()):                                             # NaN too
            raise ValueError(f"points[{int((spread > 0).int().argmin())}] are all one place")


def similarity_transform(points: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Turn, scale and shift that bring points nearest to `target`, in the least squares' sense.

    A point x + iy is a complex number, and q = a p + b with complex a, b is all of it:
    a = sum conj(p - p_mean) (q - q_mean) / sum |p - p_mean|^2; mirrored it is never.

    points (N, 5, 2) and target (5, 2) -> a (N,), b (N,), complex.
    """
    p = torch.view_as_complex(points.double().contiguous())                          # n 5
    q = torch.view_as_complex(target.to(points.device, torch.float64).contiguous())  # 5
    centred = p - p.mean(1, keepdim=True)
    a = (centred.conj() * (q - q.mean())).sum(1) / centred.abs().square().sum(1)
    return a, q.mean() - a * p.mean(1)


def align(images: Tensor, points: Tensor, size: int = ARCFACE_SIDE) -> Tensor:
    """Faces upright and of one size: (N, 3, H, W) -> (N, 3, size, size), black outside.

    Args:
        images: one picture a face.
        points: (N, 5, 2), see `Faces`: those of the *original*, for both pictures.
        size: side of a face.
    """
    check_images(images)
    check_points(points)
    if len(points) != len(images):
        raise ValueError(f"points has {len(points)} faces but there are {len(images)} images")
    a, b = similarity_transform(points, template(size))
    middles = torch.arange(size, device=images.device, dtype=torch.float64) + 0.5
    there = torch.complex(middles[None, :].expand(size, -1), middles[:, None].expand(-1, size))
    here = (there - b.to(there.device)[:, None, None]) / a.to(there.device)[:, None, None]
    height, width = images.shape[-2:]
    grid = torch.stack([here.real / width, here.imag / height], dim=-1) * 2 - 1      # n size size 2
    images = widen(images)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def face_similarity(
    originals: Tensor, images: Tensor, faces: Faces, embed: Embedding, size: int = ARCFACE_SIDE
) -> Tensor:
    """F-Sim of each face: (N,) float64, in [-1, 1], 1 for the same face.

    Args:
        originals: (B, 3, H, W).
        images: a reconstruction of them.
        faces: whose key points align the face in both.
        embed: aligned faces (N, 3, size, size) -> vectors (N, D).
        size: side of an aligned face.
    """
    check_callable(embed, "embed", "a function from faces to vectors")
    vectors = [embed(align(x[faces.picture], faces.points, size)) for x in (originals, images)]
    for x in vectors:
        if not isinstance(x, Tensor) or x.dim() != 2 or len(x) != len(faces):
            raise ValueError(f"embed gave {tuple(getattr(x, 'shape', ()))}: needs (N, D)")
    a, b = (x.double() for x in vectors)
    return F.cosine_similarity(a, b, dim=1).clamp(-1, 1)


# -------------------------------------------------------------------------------- a codec is judged
@torch.no_grad()
def reconstruct(codec: Codec, images: Tensor, batch_size: int = 32) -> Tensor:
    """What a codec makes of pictures, some at a time, clamped to [0, 1] as a file would be.

    Args:
        codec: images (B, 3, H, W) -> images of the same shape, or something with such `images`, as
            a `base.Tokenizer` gives it.
        images: all of them.
        batch_size: how many at a time.
    """
    check_callable(codec, "codec", "a function from images to images")
    parts = images.split(check_int(batch_size, "batch_size", 1))
    made = [getattr(out, "images", out) for out in map(codec, parts)]
    for x in made:
        check_images(x, name="what the codec gave")
    made = torch.cat(made).clamp(0, 1)
    if made.shape != images.shape:
        raise ValueError(f"codec made {tuple(made.shape)} of {tuple(images.shape)}: needs the same")
    return made


class TextScore(NamedTuple):
    """T-ACC and T-NED by size, and of each word what was read and its relative size."""

    accuracy: Binned
    similarity: Binned
    read: list[str]
    sizes: Tensor


def score_text(codec: Codec, words: Words, reader: Reader, setting: Any = "256") -> TextScore:
    """T-ACC and T-NED of a codec. Call `refine` on the words once before.

    Args:
        codec: images -> images.
        words: with their pictures.
        reader: list of crops -> list of strings.
        setting: "256", "512" or "1024" for the paper's bins, or edges of one's own.
    """
    edges = _edges(setting, TEXT_BINS)
    read = read_words(reconstruct(codec, words.images), words, reader)
    sizes = word_sizes(words)
    pairs = list(zip(words.words, read, strict=True))
    exact = torch.tensor([matches(*pair).raw for pair in pairs], device=sizes.device)
    near = [edit_similarity(*pair) for pair in pairs]
    near = torch.tensor(near, dtype=torch.float64, device=sizes.device)
    return TextScore(binned(exact, sizes, edges), binned(near, sizes, edges), read, sizes)


class FaceScore(NamedTuple):
    """F-Sim by size, and of each face its cosine and relative size."""

    similarity: Binned
    cosines: Tensor
    sizes: Tensor


def score_faces(
    codec: Codec, faces: Faces, embed: Embedding, setting: Any = "256", size: int = ARCFACE_SIDE
) -> FaceScore:
    """F-Sim of a codec.

    Args:
        codec: images -> images.
        faces: with their pictures.
        embed: aligned faces -> vectors.
        setting: "256", "512" or "1024" for the paper's bins, or edges of one's own.
        size: side of an aligned face.
    """
    edges = _edges(setting, FACE_BINS)
    with torch.no_grad():
        made = reconstruct(codec, faces.images)
        cosines = face_similarity(faces.images, made, faces, embed, size)
    sizes = face_sizes(faces).to(cosines.device)
    return FaceScore(binned(cosines, sizes, edges), cosines, sizes)


def percent(score: Binned) -> str:
    """One line, as the release prints it: each bin, their mean, and the pooled mean."""
    shown = [f"{100 * x:.2f}" if math.isfinite(x) else "-" for x in score.bins.tolist()]
    return f"{' | '.join(shown)} || {100 * score.mean:.2f} (pooled {100 * score.pooled:.2f})"
