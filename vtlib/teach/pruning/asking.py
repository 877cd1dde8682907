"""Choices that may differ from question to question: what stays of what was asked about."""

import torch
from torch import Tensor

from vtlib.pruning.bench import reduce
from vtlib.teach.pruning.grades import Grades

ROWS = 128
"""Questions that are handled at once."""


@torch.no_grad()
def kept_for_questions(grades: Grades, name: str, keep: int) -> Tensor:
    """(B, Q, N) bool: for each question the patches that stay when the method hears it; of merged
    slots the patches that they grew from.

    Args:
        grades: knows the method, which chooses before the decoder.
        name: the method's title there.
        keep: the budget.
    """
    exam, method = grades.exam, grades.methods[name]
    kept = torch.zeros(*exam.kind.shape, grades.num_tokens, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    picture, place = (exam.kind >= 0).cpu().nonzero(as_tuple=True)
    for b, q in zip(picture.split(ROWS), place.split(ROWS), strict=True):
        texts = [exam.asked[i][j].text for i, j in zip(b.tolist(), q.tolist(), strict=True)]
        some = grades.vision.rows(b.to(grades.vision.features.device))
        plan = reduce(grades.model, some, method, keep, texts, generator).plan
        kept[b, q] = plan.kept().cpu()
    return kept.to(grades.asked.device)


def recall_for_questions(grades: Grades, name: str, keep: int) -> float:
    """Share of what is asked about that stays, mean over the questions about objects that are
    there. Arguments as in `kept_for_questions`."""
    goal = grades.exam.asked_patches.to(grades.asked.device)
    kept = kept_for_questions(grades, name, keep) & goal
    there = goal.any(dim=-1)
    return (kept.sum(dim=-1)[there] / goal.sum(dim=-1)[there]).mean().item()
