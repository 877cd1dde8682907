"""Pictures and widgets of the notebook on GigaTok and ReToK."""

import pytest
import torch

from vtlib.teach import tokenizers
from vtlib.teach.tokenizers.one_dimension import LOOKS, prefix
from vtlib.tokenizers import small
from vtlib.tokenizers.gigatok_qformer import query_regions
from vtlib.tokenizers.pretrained import pretrained

ALT = "a picture that is long enough to be described"


def pictures():
    return dict(zip("ab", torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
                    strict=True))


@pytest.fixture(scope="module")
def rows():
    return {"ReToK": pretrained("retok"), "GigaTok": pretrained("gigatok")}


def frames(panel, *moves):
    """How many different pictures there are after these moves and before."""
    found = {panel.frame}
    for move in moves:
        panel.set(**move)
        found.add(panel.frame)
    return len(found)


def test_a_region_is_blue_and_the_rest_grey():
    shown = tokenizers.region_pictures(query_regions(8, (4, 4)), side=2)
    assert shown.shape == (8, 3, 8, 8)
    assert (shown[0, 0] == 0).all()                             # all of it
    assert (shown[2, 0] == 0).float().mean() == 0.5             # the left half
    assert (shown[2, 0, :, :4] == 0).all()


def test_a_token_of_a_grid_has_its_own_place(rows):
    net = small("cnn", "vq", dim=4)
    grid = tokenizers.regions_of(net, (8, 8))
    assert grid.shape == (64, 8, 8) and (grid.flatten(1).sum(dim=1) == 1).all()
    assert tokenizers.regions_of(rows["GigaTok"], (64,)).flatten(1).sum(dim=1)[:3].tolist() == [
        64, 64, 32
    ]


@torch.no_grad()
def test_a_prefix_is_what_the_tokenizer_paints_of_it(rows):
    net = rows["ReToK"]
    codes = net.encode(torch.stack(list(pictures().values()))).codes
    torch.testing.assert_close(prefix(net, codes, 5), net.decode(codes, 5).clamp(0, 1))


def test_each_control_of_tokens_kept_changes_the_picture(rows):
    panel = tokenizers.prefix_panel(rows, pictures(), alt=ALT)
    assert frames(panel, {"kept": 64}, {"picture": "b"}) == 3


def test_each_control_of_the_swap_changes_the_picture(rows):
    panel = tokenizers.swap_panel(rows, {**pictures(), "c": torch.zeros(3, 64, 64)}, alt=ALT)
    moves = {"token": 40}, {"tokenizer": "GigaTok"}, {"source": "c"}, {"target": "a"}
    assert frames(panel, *moves) == 5


def test_looks_differ():
    assert len({look["marker"] for look in LOOKS.values()}) == 4    # both grids look alike
