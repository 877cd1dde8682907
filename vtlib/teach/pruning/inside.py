"""Scores of visual tokens inside the decoder, read while it reads everything."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.pruning import fastv
from vtlib.pruning.fastervlm import concentration
from vtlib.pruning.method import Method
from vtlib.tokens import Stage, keep_all, resolve_keep
from vtlib.tokens.checks import check_grid
from vtlib.vlm.exam import Exam
from vtlib.vlm.state import State
from vtlib.vlm.tinyvlm import TinyVLM


@torch.no_grad()
def look_inside(
    model: TinyVLM,
    tokens: Tensor,
    questions: Sequence[str],
    scores: Mapping[str, tuple[int, Callable]],
) -> dict[str, Tensor]:
    """{name: (B, N)}: scores of the visual tokens, all from one run in which nothing is cut.

    Args:
        model: TinyVLM.
        tokens: (B, N, D), each picture's visual tokens.
        questions: B texts.
        scores: {name: (how many layers have run, function of the decoder's state -> (B, N))}, such
            as `last_word`.
    """
    seen: dict[str, Tensor] = {}

    def look(state, keep, name, score):
        seen[name] = score(state)
        return state.top(seen[name], keep)                   # keep = N: all of them

    count = tokens.shape[1]
    stages = [
        Stage(after, count, partial(look, name=name, score=score))
        for name, (after, score) in sorted(scores.items(), key=lambda pair: pair[1][0])
    ]
    model.prefill(tokens, questions, stages, positions="keep")
    return {name: seen[name] for name in scores}


@torch.no_grad()
def states_by_layer(
    model: TinyVLM, tokens: Tensor, questions: Sequence[str]
) -> dict[int, State]:
    """{layers that have run: the decoder's state}, up to the last layer but one, all from one run
    in which nothing is cut. Each state knows the transitions of the layers that have run.

    Args:
        model: TinyVLM.
        tokens: (B, N, D), each picture's visual tokens.
        questions: B texts.
    """
    states: dict[int, State] = {}

    def note(state, keep):
        states[state.after] = state
        return keep_all(*state.alive.shape, state.alive.device)

    stages = [
        Stage(after, tokens.shape[1], note, tuple(range(1, after + 1)))
        for after in range(1, len(model.decoder.layers))
    ]
    model.prefill(tokens, questions, stages, positions="keep")
    return states


def last_word(state) -> Tensor:
    """(B, N): the attention that the last word of the question pays to each visual token, in the
    layer that has just run, mean over heads: FastV's score."""
    behind = slice(state.visual.stop, None)
    last = state.asking[:, behind].sum(dim=1) - 1             # padding stands behind
    return fastv.score(state.attention(behind, "last"), last)[:, state.visual]


def late_chance(after: int = 2) -> Method:
    """A control for methods that cut inside the decoder: tokens kept at random once `after` layers
    have read them all. What it answers right is owed to the place of the cut, not to the choice."""
    after = check_int(after, "after", 1)

    def by_chance(state, keep):
        generator = torch.Generator().manual_seed(0)
        shape = len(state.asking), state.visual.stop - state.visual.start
        return state.top(torch.rand(shape, generator=generator).to(state.asking.device), keep)

    def stages(num_layers, keep, num_visual) -> list[Stage]:
        return [Stage(after, resolve_keep(keep, num_visual), by_chance)]

    title = f"Chance after layer {after}"
    return Method("late_chance", title, stages=stages, asks=True, positions="keep")


def favourites(
    score: Tensor, patches: Tensor, grid: tuple[int, int], keep: int = 28
) -> dict[str, Tensor]:
    """How the `keep` patches of the highest score lie to an object, for each picture (B,).

    rows below: their mean row minus the object's, rows counted from the top. recall: the share of
    the object's patches among them. top fifth: the share of all score that the best 20 % hold.

    Args:
        score: (B, N).
        patches: (B, N) bool, the object's.
        grid: (h, w), N = h w.
        keep: how many are favourites.
    """
    h, w = check_grid(grid, score.shape[1])
    best = score.topk(keep, dim=1).indices
    kept = torch.zeros_like(patches).scatter(1, best, True)
    row = torch.arange(h * w, device=score.device) // w
    size = patches.sum(dim=1)
    return {
        "rows below": (best // w).float().mean(dim=1) - (patches * row).sum(dim=1) / size,
        "recall": (kept & patches).sum(dim=1) / size,
        "top fifth": concentration(score)[:, max(0, round(h * w / 5) - 1)],
    }


def asked_objects(
    exam: Exam, right: Tensor | None = None
) -> tuple[Tensor, list[str], Tensor]:
    """One question about objects for each picture that has one: (pictures (B',) long, questions,
    patches (B', N) bool that show what is asked about).

    Args:
        exam: pictures and questions.
        right: (B, Q) bool, of these questions only, such as those answered right with all tokens.
    """
    pictures, texts, patches = [], [], []
    for b, row in enumerate(exam.asked):
        fits = [q for q in range(len(row)) if row[q].objects and (right is None or right[b, q])]
        if fits:
            pictures.append(b)
            texts.append(row[fits[0]].text)
            patches.append(exam.asked_patches[b, fits[0]])
    if not pictures:
        raise ValueError("exam has no such question about objects")
    return torch.tensor(pictures, device=exam.cover.device), texts, torch.stack(patches)
