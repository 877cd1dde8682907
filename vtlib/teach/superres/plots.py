"""Curves and dots of the super-resolution experiments."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pictures import grid, image
from vtlib.teach.plots import MARKS, curves
from vtlib.teach.superres.trials import Trials


def more_frames(
    counts: Sequence[int], scores: Mapping[str, Sequence[float]], level: float,
    found: Mapping[str, Tensor],
) -> Figure:
    """PSNR against the number of frames for two kinds of motion, and a crop of what most frames
    give.

    Args:
        counts: of frames.
        scores: {motion: PSNR in dB}.
        level: PSNR of one frame, enlarged.
        found: {motion: picture (3, H, W)}, of the most frames.
    """
    fig, axes = figure(1 + len(found), size=(9.4, 2.7), width_ratios=(1.3, *[1] * len(found)))
    curves(counts, scores, "What more frames add", ("frames", "PSNR on Y (dB)"), log="x",
           level={"one, enlarged": level}, ax=axes[0])
    for ax, (motion, picture) in zip(axes[1:], found.items(), strict=True):
        title = f"{counts[-1]} frames, {motion}: {scores[motion][-1]:.1f} dB"
        image(ax, picture[:, 20:76, 30:100], title)
    return fig


def contributions(
    trials: Trials, pieces: Mapping[str, Sequence[tuple[str, str]]], title: str
) -> Figure:
    """What each piece adds on each test: a group of dots a test, one dot a training.

    Trainings after the first are hollow, and stand a little to the right.

    Args:
        trials: with both methods of each pair.
        pieces: {piece: [(the method with it, the method without), ...]}, one pair a training.
        title: the message of the figure.
    """
    fig, ax = figure(size=(7.2, 2.9))
    for k, (piece, pairs) in enumerate(pieces.items()):
        for row, pair in enumerate(pairs):
            values = trials.added(*pair)
            shift = 0.2 * (k - (len(pieces) - 1) / 2) + 0.09 * row
            at = [place + shift for place in range(len(values))]
            look = {"color": PALETTE[k], "markersize": 7, "label": piece if row == 0 else None}
            ax.plot(at, values, MARKS[k], markerfacecolor="white" if row else PALETTE[k], **look)
    ax.axhline(0, color="black", linewidth=0.8)
    names = [test.replace(", ", "\n") for test in trials.tests]
    ax.set_xticks(range(len(names)), labels=names)
    ax.set(title=title, ylabel="adds, in dB", xlim=(-0.5, len(trials.tests) - 0.5))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    fig.subplots_adjust(right=0.7)
    return fig


def crops(
    trials: Trials, methods: Sequence[str], places: Sequence[tuple], size: tuple[int, int]
) -> Figure:
    """The truth and what methods make of it, in pieces: one row a place.

    Args:
        trials: with these methods.
        methods: their names.
        places: (test, clip, frame, (top, left)) of each piece.
        size: (height, width) of the pieces.
    """
    cut, titles, (height, width) = [], [], size
    for test, row, t, (top, left) in places:
        made = [trials.tests[test], *(trials.pictures[name, test] for name in methods)]
        cut += [one[row, t, :, top : top + height, left : left + width] for one in made]
        titles += ["the truth", *(name.removeprefix("TTVSR, ") for name in methods)]
    return grid(cut, titles, cols=1 + len(methods), size=1.8)


def match_by_motion(speeds: tuple, turns: tuple) -> Figure:
    """The best match of tokens against speed, and against how fast a camera turns.

    speeds: (pixels a frame, {way: cosines}), see `best_matches`; turns: (degrees a frame, {way:
    cosines}). A grey line marks half a token a frame; the first way's line is broad, since another
    may cover it.
    """
    fig, axes = figure(2, size=(7.8, 2.8), sharey=True)
    curves(*speeds, "Nearest maps follow whole tokens only", ax=axes[0], ylim=(0, 1),
           labels=("pixels a frame (a token is 4)", "cosine of the best match"),
           at={"": 2})
    axes[0].get_legend().remove()
    curves(*turns, "Turning: slow motion everywhere", ("degrees a frame (at most)", ""), ax=axes[1])
    for ax in axes:
        ax.lines[0].set(linewidth=5, markersize=8, alpha=0.6)
    axes[1].legend()
    return fig


def agreement_figure(
    apart: Sequence[int], agrees: Mapping[str, Sequence[float]], trials: Trials
) -> Figure:
    """How well frames agree against their distance in time; dotted: bicubic enlargement.

    Args:
        apart: frames between the two.
        agrees: {test: dB}.
        trials: with the method "bicubic" on these tests.
    """
    fig = curves(apart, agrees, "Frames far apart no longer agree",
                 ("frames apart", "PSNR after the best shift (dB)"))
    ax = fig.axes[0]
    for k, test in enumerate(agrees):
        look = {"color": PALETTE[k], "linestyle": ":", "label": f"{test}: bicubic"}
        ax.axhline(trials.decibels["bicubic", test], linewidth=1.5, **look)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig
