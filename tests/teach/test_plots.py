"""Curves, bars, trade-offs: what is drawn where, and what is refused."""

import matplotlib.colors
import numpy as np
import pytest
import torch

from tests.settings import default_dtype, meta_device
from vtlib import teach

LABELS = ("tokens", "accuracy")


def names_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ticks_of(ax):
    return [text.get_text() for text in ax.get_xticklabels()]


def test_curves_draw_means_runs_and_what_to_compare_with():
    series = {"one": torch.tensor([1.0, 2, 3]), "seeds": [[1, 2, 3], [3, 4, 7]]}
    fig = teach.curves([1, 10, 100], series, "It rises", LABELS, log="x", level={"chance": 0.5},
                       at={"a patch": 16}, ylim=(0, None))  # fmt: skip
    (ax,) = fig.axes
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert list(drawn["one"]) == [1, 2, 3] and list(drawn["seeds"]) == [2, 3, 5]
    dots = [list(line.get_ydata()) for line in ax.lines if line.get_linestyle() == "None"]
    assert dots == [[1, 2, 3], [3, 4, 7]]
    assert list(drawn["chance"]) == [0.5, 0.5] and names_of(ax) == ["one", "seeds", "chance"]
    assert ax.texts[0].get_text() == "a patch" and ax.texts[0].get_position()[0] == 16
    assert ax.get_xscale() == "log" and ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0
    assert ticks_of(ax) == ["1", "10", "100"]
    assert (ax.get_title("left"), ax.get_xlabel(), ax.get_ylabel()) == ("It rises", *LABELS)
    lines = [line for line in ax.lines if line.get_label() in series]
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == 2
    teach.png(fig)


def test_curves_over_words_crowded_points_and_many_points():
    (ax,) = teach.curves(["a", "b"], {"x": np.array([1, 2])}, "t", LABELS).axes
    assert ticks_of(ax) == ["a", "b"] and ax.get_legend() is None
    (ax,) = teach.curves([1, 2, 1000], {"x": [1, 2, 3]}, "t", LABELS).axes
    assert "2" not in ticks_of(ax)
    x = torch.arange(50)
    (ax,) = teach.curves(x, {"x": x, "y": x.half()}, "t", LABELS, legend="outside").axes
    styles = [(line.get_marker(), line.get_linestyle()) for line in ax.lines]
    assert styles == [("None", "-"), ("None", "--")]


def test_bars_show_each_value_and_each_run():
    series = {"ours": [0.25, torch.tensor([0.5, 0.7])], "theirs": [1, 2]}
    (ax,) = teach.bars(["a", "b"], series, "t", LABELS, level={"chance": 0.1}).axes
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.25, 0.6, 1, 2])
    assert [text.get_text() for text in ax.texts] == ["0.25", "0.6", "1", "2"]
    assert ax.texts[1].xy[1] == pytest.approx(0.7)
    dots = [list(line.get_ydata()) for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 1 and dots[0] == pytest.approx([0.5, 0.7])
    assert set(names_of(ax)) == {"ours", "theirs", "chance"} and ticks_of(ax) == ["a", "b"]
    middle = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert middle == pytest.approx([-0.2, 0.8, 0.2, 1.2])


def test_bars_of_one_series_need_no_legend_and_may_stand_out():
    (ax,) = teach.bars(["a", "b"], {"share": [1, 2]}, "t", LABELS, highlight=["b"]).axes
    assert ax.get_legend() is None
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours == [teach.PALETTE[0].lower(), teach.PALETTE[1].lower()]


def test_bars_write_their_values_as_asked():
    series = {"x": [[-0.004, -0.006], 0.25]}
    (ax,) = teach.bars(["a", "b"], series, "t", LABELS, written="+.3f").axes
    assert [text.get_text() for text in ax.texts] == ["-0.005", "+0.250"]
    assert [text.get_va() for text in ax.texts] == ["top", "bottom"]


def test_trade_off_puts_each_method_at_its_cost():
    points = {"ours": (2.0, [30, 31]), "bicubic": (torch.tensor(0.1), 29)}
    fig = teach.trade_off(points, "t", LABELS)
    (ax,) = fig.axes
    ours, bicubic = (line.get_xydata().T.tolist() for line in ax.lines)
    assert ours == [[2, 2], [30, 31]]
    assert bicubic == [pytest.approx([0.1]), [29]]
    assert names_of(ax) == ["ours", "bicubic"] and ax.get_xscale() == "log"
    fig.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1 - 1
    assert ax.get_legend().get_window_extent().x1 <= fig.bbox.x1


def test_a_method_may_look_the_same_in_each_plot():
    looks = {"ours": {"color": "#009E73", "marker": "^"}}
    (curves,) = teach.curves([1, 2], {"a": [1, 2], "ours": [[1, 2], [3, 4]]}, "t", LABELS,
                             looks=looks).axes  # fmt: skip
    mean = next(line for line in curves.lines if line.get_label() == "ours")
    assert (mean.get_color(), mean.get_marker()) == ("#009E73", "^")
    assert mean.get_markevery() == [], "the marks are the runs'"
    assert curves.get_legend().legend_handles[1].get_marker() == "^"
    (bars,) = teach.bars(["a"], {"x": [1], "ours": [2]}, "t", LABELS, looks=looks).axes
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars.patches]
    assert colours == [teach.PALETTE[0].lower(), "#009e73"]
    (costs,) = teach.trade_off({"ours": (1, [2, 3])}, "t", LABELS, looks=looks).axes
    assert (costs.lines[0].get_color(), costs.lines[0].get_marker()) == ("#009E73", "^")


def test_numbers_keep_their_digits_under_other_defaults():
    with default_dtype(torch.float16), meta_device():
        fig = teach.curves([1, 2], {"x": [0.1234567, 2]}, "t", LABELS)
        bars = teach.bars(["a"], {"x": [0.1234567]}, "t", LABELS)
    assert fig.axes[0].lines[0].get_ydata()[0] == 0.1234567
    assert bars.axes[0].patches[0].get_height() == 0.1234567


def test_plots_draw_on_an_axes_of_a_figure():
    fig, axes = teach.figure(3)
    assert teach.curves([1, 2], {"x": [1, 2]}, "t", LABELS, ax=axes[0]) is fig
    assert teach.bars(["a"], {"x": [1]}, "t", LABELS, ax=axes[1]) is fig
    assert teach.trade_off({"a": (1, 2)}, "t", LABELS, ax=axes[2]) is fig
    assert len(axes[0].lines) == len(axes[1].patches) == len(axes[2].lines) == 1


@pytest.mark.parametrize(
    "draw,said",
    [
        (lambda: teach.curves([1, 2], {"a": [1, 2, 3]}, "t", LABELS), r"series\['a'\]: got shape"),
        (lambda: teach.curves([1, 2], {}, "t", LABELS), "series is a dict: needs a dict by name"),
        (lambda: teach.curves([1, 2], [1, 2], "t", LABELS), "series is a list"),
        (lambda: teach.curves(3, {"a": [1]}, "t", LABELS), "x=3: needs a list"),
        (lambda: teach.curves([1], {"a": [1]}, "t", "xy"), "labels='xy'"),
        (lambda: teach.curves([1], {"a": [1]}, "t", LABELS, log="z"), "log='z'"),
        (lambda: teach.curves([1], {"a": [1]}, "t", LABELS, ax=3), "ax is a int"),
        (lambda: teach.curves([1], {"a": [1]}, "t", LABELS, looks=["o"]), "looks is a list"),
        (lambda: teach.bars(["a"], {"x": [1, 2]}, "t", LABELS), "has 2 values but there are 1"),
        (lambda: teach.bars(["a"], {"x": [1]}, "t", LABELS, highlight=["b"]), "highlight: 'b'"),
        (lambda: teach.curves([1], {"a": ["b"]}, "t", LABELS), r"series\['a'\] is a str"),
        (lambda: teach.bars(["a"], {"x": [[]]}, "t", LABELS), "a group without a value"),
        (lambda: teach.trade_off({"a": 1}, "t", LABELS), r"points\['a'\]=1: needs \(cost"),
    ],
)
def test_what_cannot_be_plotted_is_named(draw, said):
    with pytest.raises(ValueError, match=said):
        draw()
