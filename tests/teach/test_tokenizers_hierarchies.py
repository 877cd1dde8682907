"""Numbers in cells, masks and the four widgets of notebook 03b."""

import pytest
import torch

from vtlib.teach import tokenizers
from vtlib.tokenizers import HAR, HieraTok, ResTok

ALT = "A picture that a test draws."
SMALL = dict(image_size=16, channels=8, multipliers=(1, 1), num_res_blocks=1, groups=4,
             patch_size=4, map_channels=8, embed_dim=16, num_layers=2, num_heads=2,
             num_latents=4, stages=1, codebook_size=16, teacher_dim=None)


@pytest.fixture
def restok():
    torch.manual_seed(0)
    return ResTok(**SMALL | dict(image_size=32)).eval().requires_grad_(False)


@pytest.fixture
def hieratok():
    torch.manual_seed(0)
    net = HieraTok([1, 2, 4], patch_size=4, latent_dim=3, embed_dim=16, encoder_layers=1,
                   decoder_layers=2, num_heads=2)
    return net.eval().requires_grad_(False)


def pictures(count, side):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def changes(panel, **moves):
    """Whether each move alone changes the frame."""
    start, before, seen = panel.values, panel.frame, []
    for name, value in moves.items():
        panel.set(**{name: value})
        seen.append(panel.frame != before)
        panel.set(**start)
    return all(seen)


def test_numbers_stand_in_their_cells():
    fig = tokenizers.number_maps({"a": torch.tensor([[1.0, -0.0], [0.25, 3]])}, "One map")
    axes = [fig.axes[0]]
    assert [text.get_text() for text in axes[0].texts] == ["1", "0", "0.25", "3"]


def test_a_mask_is_drawn_with_its_blocks():
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    fig = tokenizers.mask_figure({"all": (mask, ["first", "second"], [2, 4])})
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["first", "second"]


def test_pictures_of_several_sizes_become_one():
    levels = [pictures(1, side)[0] for side in (2, 4, 8)]
    joined = tokenizers.side_by_side(levels, 8)
    assert joined.shape == (3, 3, 8, 8) and torch.equal(joined[2], levels[2])
    assert torch.equal(joined[0, :, :4, :4], levels[0][:, :1, :1].expand(3, 4, 4))


def test_each_control_of_the_prefixes_changes_the_picture(restok):
    named = dict(zip("ab", pictures(2, 32), strict=True))
    panel = tokenizers.kept_panel(restok, named, ALT, kept=2)
    assert changes(panel, picture="b", kept=1, rest="another picture's")


def test_each_control_of_the_orders_changes_the_picture(restok):
    tokens = dict(zip("ab", torch.tensor([[1, 5, 9, 3], [2, 8, 4, 0]]), strict=True))
    har = HAR(16, 4, 2, embed_dim=16, num_layers=1, num_heads=2, ar_tokens=2, multiple=8)
    panel = tokenizers.order_panel(har, restok, tokens, ALT, passes=1)
    assert changes(panel, pictogram="b", passes=3)


def test_each_control_of_the_scales_changes_the_picture(hieratok):
    named = dict(zip("ab", pictures(2, 16), strict=True))
    panel = tokenizers.scale_panel(hieratok, named, ALT, scale=2)
    assert changes(panel, picture="b", scale=4, channel=1)


def test_each_control_of_the_mask_changes_the_picture(hieratok):
    panel = tokenizers.sight_panel(hieratok, pictures(1, 16)[0], ALT, scale=2, column=1)
    assert changes(panel, scale=4, row=0, column=0, mask="full", show="how much")
