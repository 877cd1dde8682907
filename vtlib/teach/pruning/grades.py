"""Methods graded on one exam: answered once, compared often."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtlib.nn.checks import check_ints
from vtlib.pruning.bench import grade, reduce
from vtlib.pruning.registry import find
from vtlib.tokens import Plan, VisionOutputs
from vtlib.vlm.exam import Exam, measures
from vtlib.vlm.tinyvlm import TinyVLM

TIE = "a tie"
ERRORS = 2
"""So many standard errors a lead needs: by chance one in twenty is as large."""


@dataclass(frozen=True)
class Lead:
    """By how many points of right answers one method leads another, on the same questions.

    Args:
        points: the difference of their percentages.
        noise: two standard errors of it; pictures count as independent, questions of one do not.
    """

    points: float
    noise: float

    @property
    def verdict(self) -> bool | str:
        """True, False, or "a tie" within the noise: for `teach.claims`."""
        return TIE if abs(self.points) <= self.noise else self.points > 0

    def __str__(self) -> str:
        return f"{self.points:+.1f} ± {self.noise:.1f} points"


def lead(first: Tensor, second: Tensor, asked: Tensor) -> Lead:
    """How far `first` leads `second`. ValueError for fewer than two pictures.

    Args:
        first: (B, Q) bool, the questions that one method answers right.
        second: the same of the other.
        asked: (B, Q) bool, where there is a question.
    """
    if len(asked) < 2:
        raise ValueError(f"asked has {len(asked)} pictures: noise needs two at least")
    ahead = ((first.double() - second.double()) * asked).sum(dim=1)
    count = asked.sum(dim=1).double()
    mean = ahead.sum() / count.sum()
    rest = (ahead - mean * count).square().sum() * len(asked) / (len(asked) - 1)
    noise = ERRORS * rest.sqrt() / count.sum()
    return Lead(100 * mean.item(), 100 * noise.item())


def over_pictures(values: Tensor) -> Lead:
    """The mean of one number a picture (B,), and its noise: in the numbers' unit, not in points.

    With a difference of two measures it says whether the one is larger. ValueError for fewer than
    two pictures.
    """
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"values has shape {tuple(values.shape)}: needs (B,), B >= 2")
    values = values.double()
    noise = ERRORS * values.std().item() / len(values) ** 0.5
    return Lead(values.mean().item(), noise)


def between(first: Tensor, second: Tensor) -> Lead:
    """How far the mean over one group of pictures (B,) lies above that over another group (C,), and
    its noise: in the numbers' unit, not in points. ValueError for a group of fewer than two.
    """
    one, other = over_pictures(first), over_pictures(second)
    return Lead(one.points - other.points, (one.noise**2 + other.noise**2) ** 0.5)


def beyond(rows: Mapping[str, Mapping], difference) -> str:
    """The names of the rows whose difference lies above 0 beyond the noise, or "none".

    Args:
        rows: {name: `favourites`}.
        difference: function of a row -> (B,), a number a picture.
    """
    leads = {name: over_pictures(difference(row)) for name, row in rows.items()}
    return ", ".join(name for name, lead in leads.items() if lead.verdict is True) or "none"


class Grades:
    """What TinyVLM answers right when methods leave it few tokens.

        grades = Grades(model, vision, exam)
        grades.add(["random", "fastervlm"], keeps=(8, 28))
        grades.percent("FasterVLM", 28), grades.lead("FasterVLM", "Random", 28).verdict

    Each method is asked once a budget. Two scores frame all others: `whole`, with all tokens, and
    `blind`, with another picture's tokens.

    Args:
        model: TinyVLM.
        vision: `bench.encode(model, exam.images, methods)`.
        exam: pictures and questions.
    """

    def __init__(self, model: TinyVLM, vision: VisionOutputs, exam: Exam):
        self.model, self.vision, self.exam = model, vision, exam
        self.num_tokens = vision.features.shape[1]
        self.asked = (exam.kind >= 0).to(vision.features.device)
        self.methods: dict = {}
        self.right: dict[str, dict[int, Tensor]] = {}

    @cached_property
    @torch.no_grad()
    def right_whole(self) -> Tensor:
        """(B, Q) bool, with all tokens; asked when first needed."""
        return self.exam.right(self.model, self.vision.tokens)

    @cached_property
    @torch.no_grad()
    def right_blind(self) -> Tensor:
        """(B, Q) bool, with another picture's tokens; asked when first needed."""
        return self.exam.right(self.model, self.vision.tokens.roll(1, dims=0))

    def _share(self, right: Tensor) -> float:
        return 100 * right[self.asked].double().mean().item()

    @property
    def whole(self) -> float:
        """% right with all tokens."""
        return self._share(self.right_whole)

    @property
    def blind(self) -> float:
        """% right with the tokens of another picture: what the questions alone give away."""
        return self._share(self.right_blind)

    @property
    def num_questions(self) -> int:
        return int(self.asked.sum())

    def add(
        self, methods: Mapping | Iterable, keeps: Sequence[int], positions: str | None = None
    ) -> "Grades":
        """Grade methods at budgets; what was graded before is not asked again.

        Args:
            methods: what `registry.find` knows (a name, a `Method`, a function of vision and keep),
                in a list, or in a dict by the title to use.
            keeps: numbers of tokens.
            positions: see `bench.grade`.
        """
        if not isinstance(methods, Mapping):
            methods = {find(method).title: method for method in methods}
        for title, method in methods.items():
            self.methods[title] = find(method)
            known = self.right.setdefault(title, {})
            for keep in check_ints(keeps, "keeps", 1):
                if keep not in known:
                    known[keep] = self._graded(self.methods[title], keep, positions)
        return self

    def _graded(self, method, keep: int, positions: str | None) -> Tensor:
        how = {"generator": self._generator(), "positions": positions}
        right = grade(self.model, self.vision, self.exam, method, keep, **how)
        return right.to(self.asked.device)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def _known(self, name: str, keep: int) -> Tensor:
        if keep not in self.right.get(name, {}):
            there = {title: sorted(known) for title, known in self.right.items()}
            raise ValueError(f"name={name!r}, keep={keep}: not graded; there is {there}")
        return self.right[name][keep]

    def percent(self, name: str, keep: int) -> float:
        """% right."""
        return self._share(self._known(name, keep))

    def by_kind(self, name: str, keep: int) -> dict[str, float]:
        """% right for each kind of question, and "all"."""
        shares = self.exam.table(self._known(name, keep))
        return {kind: 100 * share for kind, share in shares.items()}

    def ranked(self, keep: int, names: Sequence[str] | None = None) -> dict[str, float]:
        """{name: % right}, the best first. names: of these only."""
        names = [n for n in self.right if keep in self.right[n]] if names is None else names
        scores = {name: self.percent(name, keep) for name in names}
        return dict(sorted(scores.items(), key=lambda pair: -pair[1]))

    def tied(self, keep: int, names: Sequence[str] | None = None) -> list[str]:
        """The best method and those that it leads by no more than the noise, the best first.

        names: of these only.
        """
        ranked = list(self.ranked(keep, names))
        near = [n for n in ranked[1:] if self.lead(ranked[0], n, keep).verdict is not True]
        return [*ranked[:1], *near]

    def lead(self, first: str, second: str, keep: int) -> Lead:
        """How far one method leads another."""
        return lead(self._known(first, keep), self._known(second, keep), self.asked)

    def verdict(self, first: str, second: str, keeps: Sequence[int]) -> bool | str:
        """Whether one method leads another, over several budgets: True at each, False at none and
        behind at one at least, "a tie" where nothing is beyond the noise; else where it does."""
        said = {keep: self.lead(first, second, keep).verdict for keep in keeps}
        leads = [str(keep) for keep, verdict in said.items() if verdict is True]
        trails = [str(keep) for keep, verdict in said.items() if verdict is False]
        if len(leads) == len(said):
            return True
        if not leads:
            return False if trails else TIE
        words = f"only with {' and '.join(leads)} tokens"
        return words + (f", behind with {' and '.join(trails)}" if trails else "")

    def cost(self, name: str, keep: int) -> Lead:
        """How far all tokens lead what the method leaves: what pruning costs."""
        return lead(self.right_whole, self._known(name, keep), self.asked)

    def plan(self, name: str, keep: int) -> Plan:
        """The choice of a method that does not ask, for all pictures."""
        method, generator = self.methods[name], self._generator()
        return reduce(self.model, self.vision, method, keep, generator=generator).plan

    def touched(self, name: str, keep: int) -> tuple[Tensor, Tensor]:
        """For each question (B, Q) bool: whether it rests on objects, and whether of such a patch
        one at least stays."""
        kept, device = self.plan(name, keep).kept(), self.asked.device
        stays = (self.exam.asked_patches.to(device) & kept.to(device)[:, None]).any(dim=2)
        return self.exam.on_objects.to(device), stays

    def objects_kept(self, name: str, keep: int) -> Tensor:
        """(B,): for each picture the share of its objects' patches that stay; NaN without one."""
        kept, objects = self.plan(name, keep).kept(), self.exam.cover.any(dim=1)
        stay = objects & kept.to(objects.device)
        return stay.sum(dim=1).double() / objects.sum(dim=1)

    def measures(self, name: str, keep: int) -> dict[str, float]:
        """The choice before anything is answered: see `exam.measures`."""
        plan = self.plan(name, keep)
        return measures(plan, self.vision.tokens, self.exam, self.vision.grid)
