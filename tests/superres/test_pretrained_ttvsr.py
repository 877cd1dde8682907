"""The shipped video nets: they load, say how they were made, beat bicubic on real frames they never
saw, and differ in trajectories alone."""

import pytest
import torch
import torch.nn.functional as F

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


def test_pixels_about_to_be_hidden_gain_less():
    """Where the next frame hides a thing, or 2 pixels from it, it has less to tell."""
    net, world = pretrained.ttvsr_small(), data.EmojiWorld(96, "test", artist="both")
    video = world.video(6, 7, 21, objects=(2, 3), scale=(0.3, 0.55), speed=0.06, pan=0.02, spin=2)
    hidden = video.occluded[:, 1:].flatten(0, 1).float()[:, None]
    hidden = F.max_pool2d(hidden, 5, stride=1, padding=2)[:, 0] > 0
    small = bicubic(video.frames, 1 / 4)

    def error(pictures):
        """Of frames 1 to 5, in hidden pixels and in the others."""
        off = (pictures.clamp(0, 1) - video.frames).square().mean(2)[:, 1:6].flatten(0, 1)
        return torch.stack([off[hidden].mean(), off[~hidden].mean()])

    with torch.no_grad():
        single = net(small.flatten(0, 1)[:, None])[:, 0].unflatten(0, small.shape[:2])
        added = 10 * (error(single) / error(net(small))).log10()
    assert added[0] + 0.1 < added[1], added


def test_slow_and_fast_motion_cost_part_of_the_gain():
    net, gain = pretrained.ttvsr_small(), {}
    for speed in (0.5, 2, 16):
        frames = footage.panned(
            4, 7, (96, 128), 9, "test", speed=(speed, speed), shrink=1.0
        ).frames
        small = bicubic(frames, 1 / 4)
        with torch.no_grad():
            pictures = [net(small).clamp(0, 1), bicubic(small, 4).clamp(0, 1)]
        scores = [psnr(picture, frames, crop=4).mean() for picture in pictures]
        gain[speed] = scores[0] - scores[1]
    assert gain[2] > max(gain[0.5], gain[16]) + 0.1, gain


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
