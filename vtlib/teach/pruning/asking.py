"""Choices that may differ from question to question: what stays of what was asked about, and what a
stranger's words do in their place."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vtlib.data.questions import things
from vtlib.pruning.bench import NAMELESS, Reduced, reduce
from vtlib.teach.pruning.grades import Grades
from vtlib.vlm.exam import Exam
from vtlib.vlm.tinyvlm import words

ROWS = 128
"""Questions that are handled at once."""


# ------------------------------------------------------------------------------------- other words
def _naming(text: str) -> set[str]:
    """The words of a text that name something."""
    return set(words(text)) - NAMELESS


def _next_stranger(texts: Sequence[str], first: int, known: set[str]) -> str:
    """The first text from `first` on, in a circle, that names something, but nothing known."""
    for i in range(len(texts)):
        text = texts[(first + i) % len(texts)]
        naming = _naming(text)
        if naming and not naming & known:
            return text
    raise ValueError(f"texts has none that names nothing of {', '.join(sorted(known))}")


def strange_captions(captions: Sequence[str]) -> list[str]:
    """For each picture the caption of another one that shares no name with its own: the next one
    in a circle. ValueError where there is none."""
    places = set(words("in the middle and"))
    known = [_naming(caption) - places for caption in captions]
    return [_next_stranger(captions, i + 1, known[i]) for i in range(len(captions))]


def strange_questions(exam: Exam) -> list[list[str]]:
    """For each question one about another scene that names nothing of this scene, neither an object
    nor its category: the next one in a circle. ValueError where there is none."""
    names = [[f"{t.name} {t.category}" for t in row] for row in things(exam.scenes)]
    shown = [_naming(" ".join(row)) for row in names]
    texts = [question.text for row in exam.asked for question in row]
    out, place = [], 0
    for known, row in zip(shown, exam.asked, strict=True):
        place += len(row)  # the first question of the next scene
        out.append([_next_stranger(texts, place + q, known) for q in range(len(row))])
    return out


# ------------------------------------------------------------------------------------ what they do
def _choices(
    grades: Grades, name: str, keep: int, heard: Sequence[Sequence[str]] | None
) -> Iterator[tuple[Tensor, Tensor, Reduced]]:
    """What the method hands over for each question: pictures (R,), places (R,), choices.

    heard: texts that it hears in place of the questions; None: the questions.
    """
    exam, method = grades.exam, grades.methods[name]
    if heard is None:
        heard = [[question.text for question in row] for row in exam.asked]
    generator = torch.Generator().manual_seed(0)
    picture, place = (exam.kind >= 0).cpu().nonzero(as_tuple=True)
    for b, q in zip(picture.split(ROWS), place.split(ROWS), strict=True):
        texts = [heard[i][j] for i, j in zip(b.tolist(), q.tolist(), strict=True)]
        some = grades.vision.rows(b.to(grades.vision.features.device))
        yield b, q, reduce(grades.model, some, method, keep, texts, generator)


@torch.no_grad()
def kept_for_questions(
    grades: Grades, name: str, keep: int, heard: Sequence[Sequence[str]] | None = None
) -> Tensor:
    """(B, Q, N) bool: for each question the patches that stay when the method hears it; of merged
    slots the patches that they grew from.

    Args:
        grades: knows the method, which chooses before the decoder.
        name: the method's title there.
        keep: the budget.
        heard: texts that the method hears in place of the questions, such as `strange_questions`.
    """
    if not grades.methods[name].asks:  # one choice for all questions of a picture
        once = grades.plan(name, keep).kept().to(grades.asked.device)
        return once[:, None] & grades.asked[..., None]
    kept = torch.zeros(*grades.exam.kind.shape, grades.num_tokens, dtype=torch.bool)
    for b, q, done in _choices(grades, name, keep, heard):
        kept[b, q] = done.plan.kept().cpu()
    return kept.to(grades.asked.device)


def recall_for_questions(
    grades: Grades, name: str, keep: int, heard: Sequence[Sequence[str]] | None = None
) -> float:
    """`recall_of` what stays. Arguments as in `kept_for_questions`."""
    return recall_of(grades.exam, kept_for_questions(grades, name, keep, heard))


def recall_of(exam: Exam, kept: Tensor) -> float:
    """Share of what is asked about that is in kept (B, Q, N) bool, mean over the questions about
    objects that are there."""
    goal = exam.asked_patches.to(kept.device)
    there = goal.any(dim=-1)
    return ((kept & goal).sum(dim=-1)[there] / goal.sum(dim=-1)[there]).mean().item()


@torch.no_grad()
def right_when_hearing(
    grades: Grades, name: str, keep: int, heard: Sequence[Sequence[str]]
) -> Tensor:
    """(B, Q) bool: which questions are answered right when the method has chosen for other texts
    than those that the decoder is asked. Arguments as in `kept_for_questions`."""
    exam = grades.exam
    right = torch.zeros(exam.kind.shape, dtype=torch.bool)
    for b, q, done in _choices(grades, name, keep, heard):
        asked = [exam.asked[i][j] for i, j in zip(b.tolist(), q.tolist(), strict=True)]
        texts = [question.text for question in asked]
        said = grades.model.answer(done.tokens, texts, done.stages, done.positions).texts
        wanted = [" ".join(words(question.answer)) for question in asked]
        right[b, q] = torch.tensor([s == w for s, w in zip(said, wanted, strict=True)])
    return right.to(grades.asked.device)
