"""The shipped video nets: they load, say how they were made, beat bicubic on real frames they never
saw, and differ in trajectories alone."""

import pytest
import torch

from vtlib import checkpoints, data
from vtlib.data import footage
from vtlib.superres import bicubic, pretrained, psnr

NAMES = ("ttvsr_small", "recurrent_small")
FLOORS = {"video": 0.8, "photographs": 1.0, "small clip": 0.0}  # dB over bicubic


def held_out(name):
    if name == "video":
        return footage.shot_frames("test")[None, :12]
    if name == "small clip":
        return footage.clip_frames("test")[None, :10]
    return footage.panned(4, 9, (96, 128), 78, "test", speed=(0.5, 5.0), shrink=(1.0, 1.3)).frames


@pytest.fixture(scope="module", params=NAMES)
def named(request):
    return request.param, getattr(pretrained, request.param)()


@pytest.mark.parametrize("what", FLOORS)
def test_beats_bicubic_on_real_frames(named, what):
    frames = held_out(what)
    small = bicubic(frames, 1 / 4)
    with torch.no_grad():
        got, plain = named[1](small).clamp(0, 1), bicubic(small, 4).clamp(0, 1)
        gain = psnr(got, frames, crop=4) - psnr(plain, frames, crop=4)
    assert gain.mean() > FLOORS[what], gain.mean()


def test_flow_helps(named):
    """With the flow turned around, the same net does worse: it does use its neighbours."""
    frames = held_out("photographs")
    small = bicubic(frames, 1 / 4)
    with torch.no_grad():
        back, ahead = named[1].flows(small)
        outs = [named[1](small, f).clamp(0, 1) for f in ((back, ahead), (-back, -ahead))]
        right, wrong = (psnr(out, frames, crop=4).mean() for out in outs)
    assert right > wrong + 0.1


def test_odd_sizes_and_one_frame(named):
    with torch.no_grad():
        assert named[1](torch.rand(1, 1, 3, 12, 20)).shape == (1, 1, 3, 48, 80)


def test_how_they_were_made():
    a, b = rows = [checkpoints.info(name) for name in NAMES]
    assert {**a["config"], "trajectories": None} == {**b["config"], "trajectories": None}
    assert a["config"]["trajectories"] and not b["config"]["trajectories"]
    assert a["steps"] == b["steps"] and a["seed"] == b["seed"] == 0
    for name, row in zip(NAMES, rows, strict=True):
        assert "train/ttvsr.py" in row["command"]
        assert data.checkpoint(name).stat().st_size < 4e6
        for training in checkpoints.seeds(name).values():
            for what, floor in FLOORS.items():
                score = training["score"][what]
                assert score["model"] > score["bicubic"] + floor
    nets = [getattr(pretrained, name)() for name in NAMES]
    count = [sum(p.numel() for p in net.parameters()) for net in nets]
    assert count[0] == count[1]


def test_another_location():
    with pytest.raises(ValueError, match="location='bilinear' must be 'nearest' or"):
        pretrained.ttvsr_small(location="bilinear")


def test_fractional_maps_of_the_net_trained_with_them():
    net = pretrained.ttvsr_small(location="fractional")
    assert net.location == "fractional"
    assert checkpoints.info("ttvsr_small_fractional")["score"]["video"]["model"] > 23.3
