"""Grades as pictures and tables: who answers best, what more tokens bring, what was chosen."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.teach.figures import PALETTE, STYLE, figure, show
from vtlib.teach.plots import curves
from vtlib.teach.pruning.grades import Grades, over_pictures
from vtlib.teach.tables import table

BLUE, RED, GREEN, PINK, YELLOW, SKY, BLACK = PALETTE[:7]
GREYS = ["#666666", "#888888", "#999999", "#BBBBBB"]
SIMPLE = ("Random", "Uniform grid", "Average pooling", "ToMe-style merging")
"""Rules that every method has to beat."""
LOOKS = {
    "Random": {"color": GREYS[2], "marker": "o"},
    "Uniform grid": {"color": GREYS[0], "marker": "s"},
    "Average pooling": {"color": GREYS[1], "marker": "^"},
    "ToMe-style merging": {"color": GREYS[3], "marker": "D"},
    "Oracle": {"color": GREEN, "marker": "*"},
    "FastV": {"color": BLACK, "marker": "v"},
    "FasterVLM": {"color": BLUE, "marker": "o"},
    "DivPrune": {"color": RED, "marker": "D"},
    "HiPrune": {"color": SKY, "marker": "s"},
    "VisionDrop": {"color": PINK, "marker": "^"},
    "HoloV": {"color": YELLOW, "marker": "P"},
    "ZOO-Prune": {"color": BLACK, "marker": "X"},
    "TransPrune": {"color": SKY, "marker": "v"},
    "AIM": {"color": PINK, "marker": "P"},
    "CrossGET": {"color": YELLOW, "marker": "^"},
    "Recoverable Compression": {"color": BLUE, "marker": "X"},
}
"""Each method looks alike in all notebooks."""
MEASURES = ("recall", "objects hit", "redundancy", "smallest distance")


def _colour(name: str, highlight: Sequence[str]) -> str:
    if name in highlight:
        return RED
    if name in SIMPLE or name.startswith("Random"):
        return GREYS[2]
    return GREEN if name == "Oracle" else BLUE


@matplotlib.rc_context(STYLE)
def ranking(
    grades: Grades,
    keep: int,
    title: str,
    names: Sequence[str] | None = None,
    highlight: Sequence[str] = (),
    against: str | None = None,
) -> Figure:
    """A bar a method, the best on top: correct answers, from the blind score on.

    Bars start where the model stands that sees another picture, since that much comes from the
    questions alone; the line on the right is all tokens. Simple rules are grey, the oracle is
    green.

    Args:
        grades: with the methods.
        keep: the budget.
        title: the message, in a sentence.
        names: of the methods; default: all that were graded at this budget.
        highlight: the methods at hand, in red.
        against: a method that the others are compared with: each gets a whisker, ± the noise of
            its lead over this one, and where it misses the line the lead counts.
    """
    scores = grades.ranked(keep, names)
    far = [grades.whole]                                     # what has to fit on the right
    fig, ax = figure(size=(6.4, 0.95 + 0.27 * len(scores)), layout="constrained")
    for place, (name, score) in enumerate(scores.items()):
        rise, colour = score - grades.blind, _colour(name, highlight)
        noise = 0.0 if against in (None, name) else grades.lead(name, against, keep).noise
        ax.barh(place, rise, 0.72, left=grades.blind, color=colour)
        if noise:
            ax.errorbar(score, place, xerr=noise, color="black", linewidth=1, capsize=2)
        end = max(score, grades.blind) + noise + 0.4
        far.append(end)
        look = {"va": "center", "fontsize": 8}
        if against is None:
            ax.text(end, place, f"{score:.0f}", **look)
        else:                        # in a column: behind a whisker it would stand at its end
            ax.text(1.01, place, f"{score:.0f}", transform=ax.get_yaxis_transform(), **look)
    lines = [(grades.blind, f" blind: {grades.blind:.0f}", "left"),
             (grades.whole, f"all {grades.num_tokens} tokens: {grades.whole:.0f} ", "right")]
    for at, text, side in lines:
        ax.axvline(at, color="black", linewidth=1, linestyle=":")
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}   # no line runs through it
        ax.text(at, -0.62, text, fontsize=8, ha=side, va="bottom", bbox=behind)
    low = min([grades.blind, *scores.values()])
    ax.set_yticks(range(len(scores)), list(scores))
    ax.set(xlim=(low - 4, max(far) + 4))
    ax.set(ylim=(len(scores) - 0.45, -1.5), title=title)
    below = f"correct answers with {keep} of {grades.num_tokens} tokens (%)"
    if against is not None:
        below_names = [-0.5, len(scores) - 0.45]             # not through the words on top
        look = {"color": GREYS[0], "linewidth": 1, "linestyle": "--"}
        ax.plot([scores[against]] * 2, below_names, **look)
        below += f"\nwhiskers: ± of the lead over {against} (dashed)"
    ax.set_xlabel(below)
    return fig


def show_ranking(grades: Grades, keep: int, title: str, **options) -> None:
    """Publish `ranking`, with its numbers in words. options: as there."""
    scores = grades.ranked(keep, options.get("names"))
    said = ", ".join(f"{name} {score:.0f}" for name, score in scores.items())
    show(
        ranking(grades, keep, title, **options),
        alt=f"Bars of correct answers in percent with {keep} of {grades.num_tokens} tokens: {said};"
            f" all tokens {grades.whole:.0f}, blind {grades.blind:.0f}.",
    )  # fmt: skip


@matplotlib.rc_context(STYLE)
def pairs(scores: Mapping[str, Mapping[str, float]], title: str, label: str) -> Figure:
    """A line a method, a mark on it for each model: how the same choices do with several readers.

    The method that does best with the last model is on top; simple rules have grey names.
    ValueError for models with other methods.

    Args:
        scores: {model: {method: score}}, two models at least.
        title: the message, in a sentence.
        label: of the scores, with their unit.
    """
    models = list(scores)
    last = scores[models[-1]]
    names = sorted(last, key=last.get)
    for model in models:
        if set(scores[model]) != set(names):
            raise ValueError(f"scores[{model!r}] has other methods than scores[{models[-1]!r}]")
    fig, ax = figure(size=(6.4, 1.0 + 0.24 * len(names)), layout="constrained")
    for place, name in enumerate(names):
        ends = [scores[model][name] for model in models]
        ax.plot([min(ends), max(ends)], [place, place], color=GREYS[3], linewidth=2, zorder=1)
    for model, colour, marker in zip(models, (BLUE, RED, GREEN), ("o", "D", "s"), strict=False):
        across = [scores[model][name] for name in names]
        ax.scatter(across, range(len(names)), color=colour, marker=marker, label=model, zorder=2)
    ax.set_yticks(range(len(names)), names)
    for tick, name in zip(ax.get_yticklabels(), names, strict=True):
        tick.set_color(GREYS[0] if name in SIMPLE else "black")
    ax.set(title=title, xlabel=label, ylim=(-0.6, len(names) - 0.4))
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def show_pairs(scores: Mapping[str, Mapping[str, float]], title: str, label: str) -> None:
    """Publish `pairs`, with its numbers in words. Arguments: as there."""
    said = []
    for model, row in scores.items():
        ranked = sorted(row.items(), key=lambda pair: -pair[1])
        said.append(f"{model}: " + ", ".join(f"{name} {score:.1f}" for name, score in ranked))
    show(pairs(scores, title, label), alt=f"Dots of {label}, a line a method. {'; '.join(said)}.")


def show_over_keep(
    grades: Grades,
    title: str,
    names: Sequence[str] | None = None,
    band: tuple[str, str] | None = None,
    **options,
) -> None:
    """Publish correct answers against the budget: a curve a method, lines for all and for blind.

    ValueError for methods that were not graded at the same budgets.

    Args:
        grades: with the methods.
        title: the message, in a sentence.
        names: of the methods; default: all.
        band: (first, second): a band around the second curve, ± the noise of the first one's lead;
            inside it the two tie.
        options: as for `teach.curves`.
    """
    names = list(grades.right) if names is None else list(names)
    keeps = sorted(grades.right[names[0]]) if names and names[0] in grades.right else []
    series = {name: [grades.percent(name, keep) for keep in keeps] for name in names}
    level = {f"all {grades.num_tokens} tokens": grades.whole, "blind": grades.blind}
    labels = (f"tokens kept (of {grades.num_tokens})", "correct answers (%)")
    look = {"log": "x", "level": level, "legend": "outside", "looks": LOOKS} | options
    fig = curves(keeps, series, title, labels, **look)
    fig.set_size_inches(6.6, 3.2)
    if band is not None:
        _draw_band(fig.axes[0], grades, keeps, band)
    said = [f"{name} " + ", ".join(f"{y:.0f}" for y in ys) for name, ys in series.items()]
    counts = ", ".join(map(str, keeps))
    show(fig, alt=f"Correct answers in percent with {counts} tokens. {'; '.join(said)}. All tokens"
                  f" {grades.whole:.0f}, blind {grades.blind:.0f}.")  # fmt: skip


def _draw_band(ax, grades: Grades, keeps: Sequence[int], band: tuple[str, str]) -> None:
    """A grey band around the second method's curve, ± the noise of the first one's lead: no
    curve's own error.

    Args:
        ax: matplotlib Axes with the curves.
        grades: with the methods.
        keeps: the budgets.
        band: (first, second).
    """
    first, second = band
    middle = [grades.percent(second, keep) for keep in keeps]
    noise = [grades.lead(first, second, keep).noise for keep in keeps]
    low = [m - n for m, n in zip(middle, noise, strict=True)]
    high = [m + n for m, n in zip(middle, noise, strict=True)]
    look = {"color": GREYS[1], "alpha": 0.3, "linewidth": 0}
    ax.fill_between(keeps, low, high, label=f"{first} ties", **look)
    with matplotlib.rc_context(STYLE):
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_xlabel(f"{ax.get_xlabel()}\nband: ± of {first}'s lead over {second}; inside it they tie")


def show_favourites(rows: Mapping[str, Mapping[str, Tensor]], caption: str | None = None) -> None:
    """Publish where the favourites of several scores lie, as a table.

    Args:
        rows: {name: `favourites`}.
        caption: a line above it.
    """
    cells = []
    for name, row in rows.items():
        below = over_pictures(row["rows below"])
        shift = f"{below.points:+z.1f} ± {below.noise:.1f}"
        cells.append([name, shift, f"{row['top fifth'].mean():.0%}", f"{row['recall'].mean():.2f}"])
    table(["favourites of", "rows below", "top fifth", "recall"], cells, caption=caption)


def show_measures(
    rows: Mapping[str, Mapping[str, float]],
    caption: str | None = None,
    columns: Sequence[str] = MEASURES,
) -> None:
    """Publish the measures of choices as a table, by default of five columns.

    Args:
        rows: {name: `exam.measures`}, such as {name: grades.measures(name, 28)}.
        caption: a line above it.
        columns: of MEASURES.
    """
    cells = [[name, *[f"{row[key]:.2f}" for key in columns]] for name, row in rows.items()]
    table(["kept tokens", *columns], cells, caption=caption)
