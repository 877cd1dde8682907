"""What notebook 04 draws and measures beside its lesson."""

import pytest
import torch
from matplotlib.figure import Figure

from vtlib.teach.figures import figure, png
from vtlib.teach.tokenizers import judging
from vtlib.tokenizers import measures, tokbench

PAIRS = [("speed", "sped", 1), ("MARKET", "HARKET", 1), ("EXIT", "", 4), ("", "ab", 2),
         ("ZOO", "ZOO", 0), ("STUDIO", "STW0IO", 2)]  # fmt: skip


@pytest.mark.parametrize("written,read,edits", PAIRS)
def test_wrong_letters_are_as_many_as_edits(written, read, edits):
    told = judging.letters(written, read)
    assert sum(not right for _, right in told) == edits == tokbench.edit_distance(written, read)
    assert "".join(letter for letter, _ in told).replace(judging.MISSING, "") == read


def test_tiles_go_back_to_their_places():
    images = torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    assert torch.equal(judging.tiled(lambda x: x)(images), images)
    flipped = judging.tiled(lambda x: x.flip(-1))(images)
    assert torch.equal(flipped[..., :64], images[..., :64].flip(-1))


def test_a_ruin_has_the_decibels_asked_for():
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ruined = judging.at_decibels(lambda x, s: x + s * (0.5 - x), images, 30.0, most=1)
    assert measures.psnr(ruined, images).item() == pytest.approx(30, abs=0.01)
    assert judging.blurred(torch.full((1, 3, 16, 16), 0.3), 2.0).allclose(torch.tensor(0.3))


def test_jpeg_needs_one_of_quality_and_budget():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    codec = judging.JPEG(2, budget=6000)
    assert codec(images).shape == images.shape and 0 < codec.bits <= 6000
    for wrong in ({}, {"quality": 5, "budget": 10}):
        with pytest.raises(ValueError, match="needs one of the two"):
            judging.JPEG(**wrong)
    whole, waves = judging.file_bits(images[:1], 10)
    assert 0 < waves < whole


def test_figures_and_the_grid():
    grid = judging.word_grid(("ZOO", "HOTEL"), (11, 14))
    assert grid.words == ["ZOO", "HOTEL"] * 2 and len(grid.images) == 4
    plates = tokbench.crops(grid.images, grid.boxes, grid.picture)
    fig = judging.readings(plates, grid.words, ["ZO0", "", "ZOO", "HOTEL"], ["a", "b", "c", "d"])
    assert isinstance(fig, Figure) and png(fig)
    table = {"x": {"PSNR": 20.0, "T-NED": 0.5}, "y": {"PSNR": 25.0, "T-NED": 0.2}}
    fig = judging.ranking(table, {"PSNR": "higher", "T-NED": "higher"}, "a title")
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["y", "x"]


def test_what_has_no_bits_is_a_line_of_its_own():
    ax = figure()[1]
    lines, marks = {"JPEG": ((0.1, 0.4), (20.0, 25.0))}, {"vq": (0.14, 23.0)}
    levels = {"kl": 25.4, "hieratok": 25.6}
    judging.rates(ax, lines, marks, levels, title="a title", labels=("bits", "dB"))
    first, second = (line for line in ax.lines if line.get_label() in ("kl", "hieratok"))
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_color() != second.get_color()


def test_the_panel_follows_its_controls():
    grid = judging.word_grid(("ZOO", "HOTEL"), (11, 14))
    plates = tokbench.crops(grid.images, grid.boxes, grid.picture)
    said = {"original": grid.words, "same": ["ZO0", "HOTEL", "ZOO", ""]}
    play = judging.reading_panel(
        ("ZOO", "HOTEL"), (11, 14), {"original": plates, "same": plates}, {"one": said},
        {"original": 99.0, "same": 20.0}, {"word": "ZOO", "height": 11, "codec": "same"},
        alt="Two plates, what was read, and the scores at two heights.",
    )  # fmt: skip
    first = play.frame
    play.set(word="HOTEL", height=14)
    assert play.frame != first and "reader" not in play.controls
