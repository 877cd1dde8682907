"""The pruning bench: a widget over all methods, budgets and questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import ipywidgets
import torch
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.pruning import baselines, recoverable, zooprune
from vtlib.pruning.bench import Reduced, encode
from vtlib.pruning.registry import METHODS, find
from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pruning.dual import by_role
from vtlib.teach.pruning.plans import draw
from vtlib.teach.pruning.trials import Trial, trial
from vtlib.teach.widgets import Panel, panel
from vtlib.vlm.exam import oracle_mask
from vtlib.vlm.tinyvlm import words

KEEPS = (4, 8, 14, 28, 57, 85, 128, 256)
GREEN = PALETTE[2]
OWN = "TinyVLM"
"""The bench's name for its first model."""

# -------------------------------------------------------------------------------------- the figure


def _size(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.2f} G"
    return f"{count / 1e6:.0f} M" if count >= 1e7 else f"{count / 1e6:.1f} M"


def _draw_rivals(ax, first: Tensor, right: str, vocabulary: Sequence[str]) -> None:
    """The three likeliest first words; that of the right answer is blue."""
    p, best = first.topk(3)
    names = [vocabulary[i] for i in best.tolist()]
    colours = [PALETTE[0] if name == right.split()[0] else PALETTE[4] for name in names]
    ax.barh([2, 1, 0], p.tolist(), color=colours, height=0.6)
    ax.set_yticks([2, 1, 0], names)
    ax.set(xlim=(0, 1), xticks=[0, 0.5, 1], title="first word (blue: correct)")
    ax.set_xlabel("probability")


def _draw_bill(ax, plain: Trial, pruned: Trial) -> None:
    """Tokens, FLOPs, cache and time as shares of nothing pruned."""

    def costs(trial: Trial) -> dict[str, tuple[float, str]]:
        tokens = sum(trial.lengths) / len(trial.lengths)
        cache = trial.cache / 1e3
        time = 1000 * (trial.choosing + trial.reading)
        return {
            "tokens a layer": (tokens, f"{tokens:.0f}"),
            "FLOPs": (trial.flops, _size(trial.flops)),
            "cache, kB": (cache, f"{cache:.0f}"),
            "time, ms": (time, f"{time:.1f}"),
        }

    now, before = costs(pruned), costs(plain)
    rows = range(3, -1, -1)
    shares = [now[name][0] / before[name][0] for name in now]
    ax.barh(rows, shares, color=GREEN, height=0.6)
    for row, name, share in zip(rows, now, shares, strict=True):
        text = f"{now[name][1]} of {before[name][1]}"
        ax.text(share + 0.02, row, text, va="center", fontsize=8)
    ax.set_yticks(rows, list(now))
    visual = " to ".join(str(count) for count in dict.fromkeys(pruned.visual))
    end = max(1.75, max(shares) + 0.75)  # room for the numbers behind the longest bar
    ax.set(xlim=(0, end), xticks=[0, 0.5, 1], title=f"{visual} visual tokens: the bill")
    ax.set_xlabel("share of the unpruned run")


def sheet(
    picture: Tensor,
    grid: tuple[int, int],
    question: str,
    right: str,
    plain: Trial,
    pruned: Trial,
    title: str,
    vocabulary: Sequence[str],
    oracle: tuple[str, float] | None = None,
):
    """The bench's figure: the plan on the picture, the answer with its rivals, and the bill.

    Args:
        picture: (3, H, W) in [0, 1].
        grid: (h, w), of its patches.
        question: what was asked.
        right: the right answer.
        plain: the run with nothing pruned.
        pruned: the run that is shown.
        title: above the picture.
        vocabulary: the model's words.
        oracle: answer and its probability of the rule that knows the masks, at the same budget.
    """
    fig, axes = figure(3, size=(8.8, 3.6), width_ratios=(1.15, 0.75, 1.05))
    fig.subplots_adjust(0.01, 0.14, 0.985, 0.8, wspace=0.5)
    has_roles = pruned.plan.role is not None and pruned.plan.roles == recoverable.ROLES
    plan = by_role(pruned.plan) if has_roles else pruned.plan  # its frames would say nothing else
    draw(axes[0], picture, plan, grid, title=title)
    _draw_rivals(axes[1], pruned.first, right, vocabulary)
    _draw_bill(axes[2], plain, pruned)
    verdict = "correct" if pruned.answer == right else f"wrong: {right}"
    line = f"{question}  {_said(pruned.answer, pruned.probability)}, {verdict}"
    fig.text(0.01, 0.985, line, fontsize=10, va="top", ha="left", weight="bold")
    if oracle is not None:
        line = f"The oracle, which keeps patches of objects and signs first, says {_said(*oracle)}"
        fig.text(0.01, 0.92, line, fontsize=9, va="top", ha="left")
    return fig


def _said(answer: str, probability: float) -> str:
    return f"“{answer}” ({probability:.2f})"


# ---------------------------------------------------------------------------------------- the runs


def _two(asked: Sequence, right: Sequence[bool]) -> list:
    """Two questions of different kinds: answered right when nothing is pruned, and resting on
    objects, if there are such."""
    pairs = zip(asked, right, strict=True)
    ranked = sorted(pairs, key=lambda pair: (not pair[1], not pair[0].objects))
    order = [question for question, _ in ranked]
    return order[:1] + [q for q in order if q.kind != order[0].kind][:1]


class _Runs:
    """Every setting's run of one model on the offered pictures, made when first needed and kept.

    Args:
        model: TinyVLM.
        exam: `vtlib.vlm.exam.Exam`.
        methods: {name: Method}.
        chosen: which pictures of the exam are offered.
        asked: [(place among the chosen, Question)], the offered questions; None: two a picture.
    """

    def __init__(self, model, exam, methods: dict, chosen: list[int], asked: list | None = None):
        self.model, self.exam, self.methods, self.chosen = model, exam, methods, chosen
        self.device = next(model.parameters()).device
        with torch.no_grad():
            self.vision = encode(model, exam.images[chosen].to(self.device), methods.values())
        self.num_tokens = self.vision.features.shape[1]
        self.marked = oracle_mask(exam)[chosen].to(self.device)
        self.asked = self._two_each() if asked is None else asked
        self._results: dict[tuple, Trial] = {}
        self._oracles: dict[tuple[int, int], tuple[str, float]] = {}
        self._sensitivities: dict[int, Tensor] = {}
        self._rows: dict[int, object] = {}

    @torch.no_grad()
    def _two_each(self) -> list[tuple]:
        """[(place among the chosen, Question)]."""
        exam, chosen = self.exam, self.chosen
        ids, target, kind = exam.ids[chosen], exam.target[chosen], exam.kind[chosen]
        part = replace(exam, ids=ids, target=target, kind=kind)
        right = part.right(self.model, self.vision.tokens).tolist()
        asked = []
        for place, picture in enumerate(chosen):
            questions = exam.asked[picture]
            asked += [(place, q) for q in _two(questions, right[place][: len(questions)])]
        return asked

    def row(self, place: int):
        """What the encoder made of one of the chosen pictures."""
        if place not in self._rows:
            index = torch.tensor([place], device=self.device)
            self._rows[place] = self.vision.rows(index)
        return self._rows[place]

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)

    def _sensitivity(self, place: int) -> Tensor:
        if place not in self._sensitivities:
            features, generator = self.row(place).features, self._generator()
            found = zooprune.sensitivity(features, self.model.projector, generator=generator)
            self._sensitivities[place] = found
        return self._sensitivities[place]

    def _zooprune(self, place: int, keep: int) -> Callable[[], Reduced]:
        """ZOO-Prune's choice, its sensitivity estimated before."""
        sensitivity, row = self._sensitivity(place), self.row(place)

        def choose() -> Reduced:
            plan = zooprune.select(sensitivity, row.tokens, keep)
            tokens = self.model.reduce(row, plan, "tokens")
            return Reduced(tokens, plan, "tokens", [], "renumber")

        return choose

    def result(self, name: str, keep: int, number: int) -> Trial:
        """The run of one method and budget on question `number`."""
        setting = (name, keep, number)
        if setting not in self._results:
            place, question = self.asked[number]
            prunes = keep < self.num_tokens
            choose = self._zooprune(place, keep) if name == "zooprune" and prunes else None
            self._results[setting] = trial(
                self.model,
                self.row(place),
                self.methods.get(name, name),
                keep,
                question.text,
                self._generator(),
                repeat=3,
                choose=choose,
            )
        return self._results[setting]

    def plain(self, number: int) -> Trial:
        """The run with nothing pruned."""
        return self.result("random", self.num_tokens, number)

    @torch.no_grad()
    def oracle(self, keep: int, number: int) -> tuple[str, float]:
        """Answer and probability on the patches that show an object or the sign, and on others
        where these are too few."""
        if (keep, number) not in self._oracles:
            place, question = self.asked[number]
            row = self.row(place)
            plan = baselines.oracle(self.marked[place : place + 1], row, keep)
            said = self.model.answer(self.model.reduce(row, plan), [question.text])
            self._oracles[keep, number] = (said.texts[0], said.probability.item())
        return self._oracles[keep, number]

    def draw(self, method: str, keep: int, question: int):
        """The figure of one setting; the argument `question` is its number."""
        place, asked = self.asked[question]
        return sheet(
            self.exam.images[self.chosen[place]].cpu(),
            self.vision.grid,
            asked.text,
            " ".join(words(asked.answer)),
            self.plain(question),
            self.result(method, keep, question),
            f"{self.methods[method].title}: keep {keep} of {self.num_tokens}",
            self.model.vocabulary,
            self.oracle(keep, question),
        )


# --------------------------------------------------------------------------------------- the widget


def _which(pictures: int | Sequence[int], count: int) -> list[int]:
    """Numbers of the offered pictures."""
    if isinstance(pictures, int) or getattr(pictures, "ndim", 1) == 0:
        return list(range(count))[: check_int(pictures, "pictures", 1)]
    return [check_int(picture, "pictures", 0, count - 1) for picture in pictures]


def bench(
    model,
    exam,
    methods: Sequence | None = None,
    keeps: Sequence[int] = KEEPS,
    method: str | None = None,
    keep: int = 28,
    pictures: int | Sequence[int] = 6,
    alt: str | None = None,
    others: Mapping[str, tuple] | None = None,
) -> Panel:
    """The pruning bench: method, budget, question and model -> the plan on the picture, the answer
    beside the oracle's, and the bill.

    The unpruned run of each question and what the methods read of each picture are computed at
    once; every setting's result when first needed, and kept, with its time, the least of three
    runs. ZOO-Prune's sensitivity is estimated once a picture, with 64 directions: its choosing time
    leaves that out. ValueError for unknown methods, pictures without questions, a keep that is not
    among keeps, or another model's exam that asks something else.

    Args:
        model: TinyVLM.
        exam: a `vtlib.vlm.exam.Exam`.
        methods: names, or anything `registry.find` knows, one of your own too; default: all there
            are.
        keeps: budgets, in visual tokens.
        method: the name of the first; default: DivPrune, or the first there is.
        keep: the first budget.
        pictures: which pictures of the exam, the first so many or these; of each two questions, if
            possible such that the unpruned model answers right.
        alt: what the first frame shows.
        others: {title: (model, exam)} of further models to choose from, with the same scenes and
            questions at the size they see, such as {"TinyVLM-DINO": (dino, large)}.
    """
    entries = {entry.name: entry for entry in map(find, METHODS if methods is None else methods)}
    keeps = tuple(check_int(k, "keeps", 1) for k in keeps)
    keep = check_int(keep, "keep", 1)
    if keep not in keeps:
        raise ValueError(f"keep={keep} is not among keeps={keeps}")
    if method is None:
        method = "divprune" if "divprune" in entries else next(iter(entries))
    if method not in entries:
        raise ValueError(f"method={method!r} is not among methods: {', '.join(entries)}")
    chosen = _which(pictures, len(exam.asked))
    runs = {OWN: _Runs(model, exam, entries, chosen)}
    asked = runs[OWN].asked
    if not asked:
        raise ValueError(f"pictures={pictures}: the exam asks nothing about them")
    for title, (other, their_exam) in (others or {}).items():
        _check_same_questions(title, exam, their_exam, chosen)
        runs[title] = _Runs(other, their_exam, entries, chosen, asked)
    for run in runs.values():
        for number in range(len(asked)):
            run.plain(number)  # so that a redraw has one run to make
    alt = alt or (
        f"The pruning bench at its first setting: {entries[method].title} keeps {keep} of"
        f" {runs[OWN].num_tokens} patches of a scene; the answer with its probability, the"
        " oracle's, and tokens, FLOPs, cache and time as shares of the unpruned run."
    )

    def draw_setting(method: str, keep: int, question: int, model: str = OWN):
        return runs[model].draw(method, keep, question)

    controls = _controls(runs[OWN], method, keeps, keep)
    if others:
        controls["model"] = ipywidgets.ToggleButtons(options=list(runs), description="model")
    return panel(draw_setting, alt=alt, **controls)


def _check_same_questions(title: str, exam, theirs, chosen: list[int]) -> None:
    def questions(exam) -> list:
        return [[(q.text, q.answer) for q in exam.asked[k]] for k in chosen if k < len(exam.asked)]

    if questions(exam) != questions(theirs):
        raise ValueError(
            f"others[{title!r}]: its exam asks other questions about pictures {chosen}; both need"
            " the same scenes, such as exam(120) and exam(120, size=224, patch=14)"
        )


def _controls(runs: _Runs, method: str, keeps: tuple[int, ...], keep: int) -> dict:
    names = [(entry.title, name) for name, entry in runs.methods.items()]
    asked = [(f"{k + 1}: {q.text}", number) for number, (k, q) in enumerate(runs.asked)]
    return {
        "method": ipywidgets.Dropdown(options=names, value=method, description="method"),
        "keep": ipywidgets.SelectionSlider(options=list(keeps), value=keep, description="keep"),
        "question": ipywidgets.Dropdown(
            options=asked, value=0, description="picture and question"
        ),
    }
