"""The task of the far cue: maps that hold what they say, and what a scale can see of them."""

import pytest
import torch

from tests.wrong import raw_errors
from vtlib.segmentation import ScaleNet, VWHead, far_cues
from vtlib.segmentation.far_cue import at_place


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_maps_hold_one_object_and_one_cue():
    cues = far_cues(200, seeded(), size=8)
    assert cues.maps.shape == (200, 6, 8, 8)
    assert (cues.maps[:, :4].sum((1, 2, 3)) == 1).all()
    rows = torch.arange(200)
    y, x = cues.place.T
    assert (cues.maps[rows, 5, y, x] == 1).all() and (cues.maps[:, 5].sum((1, 2)) == 1).all()
    at = cues.maps[:, 4].flatten(1).argmax(1)
    assert (cues.maps.flatten(2)[rows, cues.colour, at] == 1).all()
    distance = torch.maximum((at // 8 - y).abs(), (at % 8 - x).abs())
    assert torch.equal(distance, cues.distance)


def test_near_cues_are_likelier():
    counts = far_cues(7000, seeded(1), size=8).distance.bincount()
    assert counts[0] == 0 and len(counts) == 8
    want = 7000 / torch.arange(1, 8) / (1 / torch.arange(1, 8)).sum()
    assert ((counts[1:] - want).abs() < 4 * want.sqrt()).all()
    assert torch.equal(far_cues(5, seeded(2)).maps, far_cues(5, seeded(2)).maps)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_it_is_one_scale_of_the_decoder(ratio):
    torch.manual_seed(0)
    net = ScaleNet(ratio=ratio).eval()
    head = VWHead((4, 64, 4, 4), 4, 64, 1, ratios=(ratio,)).eval()
    head.ds[0], head.attn[0] = net.ds, net.attn
    maps = far_cues(2, seeded()).maps
    with torch.no_grad():
        x = net.stem(maps)
        torch.testing.assert_close(net(maps), net.conv_seg(head.scale(x, 0)))
        scores, attn = net(maps, return_attn=True)
    assert scores.shape == (2, 4, 16, 16) and attn.shape == (128, 1, 4, 4)


@pytest.mark.parametrize("ratio, sees", [(1, 1), (2, 3), (4, 8), (8, 15)])
def test_no_farther_than_its_context(ratio, sees):
    """A cue farther away than `sees` leaves the object's scores as they are; for R = 8 none is."""
    torch.manual_seed(0)
    net, cues = ScaleNet(ratio=ratio, padding="zeros").eval(), far_cues(64, seeded())
    blind = cues.maps.clone()
    blind[:, :5] = 0
    with torch.no_grad():
        change = at_place(net(cues.maps) - net(blind), cues.place).abs().sum(1)
    assert (change[cues.distance > sees] == 0).all()
    assert ratio == 1 or (change[cues.distance <= 2] > 0).any()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="R\\^2"):
        ScaleNet(ratio=8, channels=32)
    with pytest.raises(ValueError, match="padding"):
        ScaleNet(padding="reflect")
    with pytest.raises(ValueError, match="place"):
        at_place(torch.rand(2, 4, 3, 3), torch.zeros(2, 2))
    assert not raw_errors(ScaleNet, dict(in_channels=6, num_classes=4, ratio=2, channels=16,
                                         num_windows=4))
    assert not raw_errors(far_cues, dict(batch=2, generator=seeded(), size=8, num_colours=3))
