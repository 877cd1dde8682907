"""Figures, tables, colours."""

import base64
import html
import io
import re
import time

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from vtlib import teach
from vtlib.teach import figures

ALT = 'A line that rises from one to two & a <b>bold</b> "quote".'


@pytest.fixture
def published(monkeypatch):
    bundles = []
    monkeypatch.setattr(figures, "publish", lambda bundle, *a, **k: bundles.append(bundle))
    return bundles


def line():
    fig, ax = teach.figure()
    ax.plot([1, 2])
    return fig


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


# ----------------------------------------------------------------------------------------------------------------- figures


def test_show_is_one_html_image_with_alt_and_the_sentence(published):
    teach.show(line(), alt=ALT)
    (bundle,) = published
    assert set(bundle) == {"text/html", "text/plain"} and bundle["text/plain"] == ALT
    match = re.fullmatch(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)"[^>]*>\n<p>([^<]*)</p>', bundle["text/html"])
    assert html.unescape(match[1]) == html.unescape(match[3]) == ALT
    assert pixels(base64.b64decode(match[2])).shape == (280, 320, 3)


@pytest.mark.parametrize("alt", ["", "too short", " " * 40, None, 3])
def test_alt_is_required(alt, published):
    with pytest.raises(ValueError, match="alt="):
        teach.show(line(), alt=alt)
    with pytest.raises(TypeError):
        teach.show(line())
    assert not published


def test_outside_a_notebook_the_sentence_is_printed(capsys):
    teach.show(line(), alt=ALT)
    assert capsys.readouterr().out == ALT + "\n"


def test_png_closes_the_figure_of_pyplot(published):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([1, 2])
    assert pixels(teach.png(fig, dpi=50)).shape == (50, 100, 3)
    assert not plt.get_fignums()


def test_png_is_bounded():
    for dpi in (0, 111, 300):
        with pytest.raises(ValueError, match=f"dpi={dpi}"):
            teach.png(line(), dpi=dpi)
    with pytest.raises(TypeError, match="needs a matplotlib Figure"):
        teach.png("picture")


def test_figure_gives_axes_like_subplots():
    fig, ax = teach.figure()
    assert isinstance(fig, Figure) and not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible()
    assert ax.get_title(loc="left") == ""
    assert teach.figure(3)[1].shape == (3,)
    fig, axes = teach.figure(2, 2, size=(4, 3), sharey=True)
    assert axes.shape == (2, 2) and tuple(fig.get_size_inches()) == (4, 3)
    teach.png(teach.figure(2, layout="constrained")[0])
    teach.png(teach.figure(3, 2, size=(1.5, 1))[0])  # tiny panels keep valid margins
    with pytest.raises(ValueError, match="ncols=0"):
        teach.figure(0)


def test_labels_of_the_standard_figure_are_inside():
    fig, axes = teach.figure(2)
    for ax in axes:
        ax.plot([0, 100], [0.001, 0.999])
        ax.set(xlabel="tokens kept", ylabel="accuracy")
        ax.set_title("Half the tokens are enough", loc="left")
    teach.png(fig)
    width, height = fig.canvas.get_width_height()
    for ax in axes:
        box = ax.get_tightbbox(fig.canvas.get_renderer())
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    left, right = (ax.get_tightbbox(fig.canvas.get_renderer()) for ax in axes)
    assert left.x1 < right.x0


def test_picture_panels_fill_the_figure():
    fig, axes = teach.figure(3, 2, layout="pictures")
    for ax in axes.flat:
        teach.image(ax, torch.rand(3, 8, 8), "A title")
    teach.png(fig)
    width, height = fig.canvas.get_width_height()
    places = [ax.get_tightbbox(fig.canvas.get_renderer()) for ax in axes.flat]
    assert all(p.x0 >= 0 and p.y0 >= 0 and p.x1 <= width and p.y1 <= height for p in places)
    assert sum(p.width * p.height for p in places) > 0.9 * width * height
    assert places[0].x1 < places[1].x0 and places[3].y1 < places[0].y0  # a title does not touch the picture above it


def test_two_panels_draw_fast():
    figures.use_style()
    photo, heat = torch.rand(3, 96, 96), torch.rand(12, 12)

    def draw():
        fig, axes = teach.figure(2, size=(6.4, 2.8))
        teach.overlay(axes[0], photo, heat, title="Where it looks")
        teach.lines(axes[0], 8)
        axes[1].plot(range(50))
        axes[1].set(title="Accuracy", xlabel="keep", ylabel="accuracy")
        return teach.png(fig, level=1)

    draw()
    for _ in range(15):  # the best of a few: other programs may be busy on the machine
        start = time.process_time()
        draw()
        best = time.process_time() - start
        if best < 0.150:
            return
    raise AssertionError(f"two panels take {1000 * best:.0f} ms")


# ---------------------------------------------------------------------------------------------------------------- pictures


def test_grid_puts_each_picture_in_its_place():
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 20, 30)
    data = pixels(teach.png(teach.grid(colours, titles=["red", "green", "blue\n2"], cols=2, title="Three colours"), dpi=100))
    found = [tuple(np.argwhere((data == np.array(c)).all(-1)).mean(0)) for c in ([255, 0, 0], [0, 255, 0], [0, 0, 255])]
    (ry, rx), (gy, gx), (by, bx) = found
    assert abs(ry - gy) < 2 and rx < gx and abs(rx - bx) < 2 and ry < by
    assert len(teach.grid(colours).axes) == 1


def test_grid_takes_what_there_is():
    teach.png(teach.grid(torch.rand(1, 1, 8, 8)))
    teach.png(teach.grid((torch.rand(2, 3, 8, 8) * 255).to(torch.uint8), cols=5))
    teach.png(teach.grid(torch.full((2, 3, 8, 8), float("nan"))))
    teach.png(teach.grid([torch.rand(3, 8, 8), torch.rand(3, 8, 8)]))
    for wrong, said in [
        (torch.rand(2, 4, 8, 8), "needs"),
        ([], "got none"),
        ([torch.rand(3, 8, 8), torch.rand(3, 9, 8)], "one height"),
    ]:
        with pytest.raises(ValueError, match=said):
            teach.grid(wrong)
    with pytest.raises(ValueError, match="titles: got 1 for 2"):
        teach.grid(torch.rand(2, 3, 8, 8), titles=["a"])


def test_overlay_resizes_for_real():
    image, heat = torch.zeros(3, 12, 8), torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    fig, ax = teach.figure()
    drawn = teach.overlay(ax, image, heat, mode="nearest")
    array = np.asarray(drawn.get_array())
    assert array.shape == (12, 8) and np.array_equal(array, np.kron(heat.numpy(), np.ones((4, 4))))
    smooth = np.asarray(teach.overlay(ax, image, heat).get_array())
    assert smooth.shape == (12, 8) and (np.diff(smooth, axis=0) >= 0).all() and len(np.unique(smooth)) > 20
    assert drawn.get_clim() == (0, 5)
    assert teach.overlay(ax, image, heat, vmin=-1, vmax=9).get_clim() == (-1, 9)
    teach.png(fig)


def test_overlay_with_nan_and_constants():
    fig, ax = teach.figure()
    heat = torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])
    drawn = teach.overlay(ax, torch.zeros(3, 8, 8), heat)
    alpha = np.asarray(drawn.get_alpha())
    assert (alpha[:4, :4] == 0).all() and (alpha[4:] > 0).all() and np.isfinite(np.asarray(drawn.get_array())).all()
    teach.overlay(ax, torch.zeros(3, 8, 8), torch.full((2, 2), float("nan")))
    teach.overlay(ax, torch.zeros(3, 8, 8), torch.ones(2, 2))
    teach.png(fig)
    with pytest.raises(ValueError, match=r"heat: got shape \(4,\)"):
        teach.overlay(ax, torch.zeros(3, 8, 8), torch.rand(4))
    with pytest.raises(ValueError, match="mode='cubic'"):
        teach.overlay(ax, torch.zeros(3, 8, 8), heat, mode="cubic")


def test_box_outlines_a_square():
    _, ax = teach.figure()
    teach.box(ax, (3, 5), 4)
    (line,) = ax.lines
    assert set(zip(line.get_ydata(), line.get_xdata())) == {(y, x) for y in (1, 5) for x in (3, 7)}


def test_tiles_colour_by_key():
    _, ax = teach.figure()
    drawn = teach.tiles(ax, torch.tensor([[0, 1, -1], [0, 6, -2]]), "Groups", numbers=True).get_array()
    assert np.allclose(drawn[0, 0], drawn[1, 0]) and not np.allclose(drawn[0, 0], drawn[0, 1])
    assert np.allclose(drawn[0, 2], 0.75) and np.allclose(drawn[1, 2], 0) and np.allclose(drawn[1, 1], 1)
    assert [t.get_text() for t in ax.texts] == ["0", "1", "2", "3", "4"]  # padding has no number
    assert [t.get_position() for t in ax.texts][-1] == (2, 1)
    assert np.allclose(teach.tiles(ax, torch.tensor([[7, 0]])).get_array()[0, 0], drawn[0, 0])  # colours come again
    for bad in (torch.zeros(2, 2), torch.zeros(3, dtype=torch.long), torch.tensor([[-4]])):
        with pytest.raises(ValueError, match="keys"):
            teach.tiles(ax, bad)


def test_seeds_gives_each_run_a_dot():
    _, ax = teach.figure()
    teach.seeds(ax, ["a", "b"], {"one": [[1, 2], [3]], "two": [[4], [5, 6]]})
    first, second = ax.lines
    assert list(first.get_ydata()) == [1, 2, 3] and list(second.get_ydata()) == [4, 5, 6]
    assert list(first.get_xdata()) == pytest.approx([-0.1, -0.1, 0.9]) and first.get_marker() != second.get_marker()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"] and first.get_label() == "one"
    with pytest.raises(ValueError, match="series.'two'. has values for 1 groups but there are 2"):
        teach.seeds(ax, ["a", "b"], {"two": [[1]]})


def test_lines_lie_between_patches():
    fig, ax = teach.figure()
    with pytest.raises(ValueError, match="holds no image"):
        teach.lines(ax, 4)
    teach.image(ax, torch.rand(3, 12, 8), title="an image")
    teach.lines(ax, 4)
    segments = ax.collections[0].get_segments()
    assert sorted(s[0][0] for s in segments if s[0][0] == s[1][0]) == [3.5]
    assert sorted(s[0][1] for s in segments if s[0][1] == s[1][1]) == [3.5, 7.5]
    teach.lines(ax, (6, 2))
    assert len(ax.collections[1].get_segments()) == 1 + 3
    assert ax.get_xlim() == (-0.5, 7.5)
    teach.png(fig)


# ------------------------------------------------------------------------------------------------------------------ tables


def test_table_has_scopes_and_a_plain_twin(published):
    teach.table(
        ["method", "accuracy", "ok"], [["a < b", 0.123456, True], ["c", torch.tensor(2.0), None]], caption="Which is better"
    )
    (bundle,) = published
    text = bundle["text/html"]
    assert text.count('scope="col"') == 3 and text.count('scope="row"') == 2
    assert "a &lt; b" in text and "<caption>Which is better</caption>" in text and ">0.1235<" in text and ">yes<" in text
    assert bundle["text/plain"].splitlines() == [
        "Which is better",
        "method  accuracy  ok",
        "------  --------  ---",
        "a < b     0.1235  yes",
        "c              2",
    ]
    with pytest.raises(ValueError, match=r"rows\[1\] has 1 cells"):
        teach.table(["a", "b"], [[1, 2], [3]])
    teach.table(["nothing"], [])


def test_claims(published):
    teach.claims([("cross-attention beats none", "+1.4", 0.021, True, "small data")])
    assert "same direction?" in published[0]["text/html"] and "yes" in published[0]["text/plain"]
    with pytest.raises(ValueError, match=r"rows\[0\] has 2 cells, needs 5"):
        teach.claims([("a", "b")])


# ----------------------------------------------------------------------------------------------------------------- colours

VISION = {  # Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
    "usual": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
}


def lab(rgb: np.ndarray, vision: str) -> np.ndarray:
    """(n, 3) sRGB in [0, 1] as seen -> CIE L*a*b* (D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (linear @ VISION[vision].T).clip(0, 1)
    xyz = (
        linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T / [0.9505, 1.0, 1.089]
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_lines_differ_for_everyone(vision):
    colours = lab(np.array([matplotlib.colors.to_rgb(c) for c in teach.PALETTE]), vision)
    assert len(colours) == 8
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e9 * np.eye(8)
    assert distance.min() > 10, distance.round(1)  # 2.3 is a just noticeable difference


@pytest.mark.parametrize("vision", VISION)
def test_colour_maps_read_in_one_direction(vision):
    lightness = lab(matplotlib.colormaps[teach.CMAP](np.linspace(0, 1, 64))[:, :3], vision)[:, 0]
    assert (np.diff(lightness) > 0).all()
    both = lab(matplotlib.colormaps[teach.CMAP_DIV](np.linspace(0, 1, 65))[:, :3], vision)
    assert (np.diff(both[:33, 0]) > -0.3).all() and (np.diff(both[32:, 0]) < 0.3).all() and both[32, 0] > 90
    assert np.linalg.norm(both[8] - both[-9]) > 40  # the two sides are told apart
