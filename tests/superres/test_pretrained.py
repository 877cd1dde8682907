"""The shipped models of super-resolution: they load, say how they were made, and do on unseen data
what they are for."""

import pytest
import torch

from vtlib import checkpoints, data
from vtlib.data import footage
from vtlib.superres import bicubic, pretrained, psnr, warp

# motion in pixels: largest end-point error (none found: the motion)
FLOW = {0.1: 0.07, 0.5: 0.15, 3.0: 0.5}


@pytest.fixture(scope="module")
def flow_net():
    return pretrained.spynet_emoji()


@torch.no_grad()
@pytest.mark.parametrize("speed", FLOW)
def test_flow_of_unseen_photographs(flow_net, speed):
    """The mean over directions, away from what leaves the frame."""
    errors = []
    for k, (x, y) in enumerate(((1, 0), (0, 1), (-0.7, 0.7))):
        velocity = (x * speed, y * speed)
        clip = footage.panned(8, 2, 64, seed=k, split="test", velocity=velocity, shrink=2.0)
        flow = flow_net(*clip.frames.unbind(1))
        errors.append((flow - clip.backward[:, 0]).norm(dim=1)[:, 4:-4, 4:-4].mean())
    assert torch.stack(errors).mean() < FLOW[speed]


@torch.no_grad()
def test_flow_of_unseen_pictograms_explains_the_picture(flow_net):
    video = data.EmojiWorld(64, "test", artist="both").video(16, 2, seed=5, speed=0.06, pan=0.03)
    first, second = video.frames.unbind(1)
    seen = ~video.occluded[:, 0]
    flow = flow_net(first, second)
    error, motion = ((f - video.flow[:, 0]).norm(dim=1)[seen].mean() for f in (flow, 0 * flow))
    assert error < 0.3 * motion
    warped, still = (psnr(t, first, crop=4, y=False).mean() for t in (warp(second, flow), second))
    assert warped > still + 6
    back = flow_net(second, first)                     # the other way round it points the other way
    assert (warp(back, flow) + flow).norm(dim=1)[seen].mean() < 0.3 * motion


@torch.no_grad()
def test_no_motion_is_found_in_a_still(flow_net):
    still = torch.stack(list(data.photographs(64, names=["temple", "peaks"]).values()))
    assert flow_net(still, still).norm(dim=1).mean() < 0.06


@torch.no_grad()
def test_slow_motion_of_the_real_clip_adds_up(flow_net):
    """The real clip reduced four times moves a fourteenth of a pixel a frame.

    Sixteen frames on, warping brings back what standing still loses.
    """
    small = bicubic(footage.clip_frames("test"), 1 / 4)
    here, there = small[:-16], small[16:]
    pair = warp(there, flow_net(here, there)), there
    warped, still = (psnr(t, here, crop=2, y=False).mean() for t in pair)
    assert warped > still + 4


def test_checkpoint_is_small_and_tells_how_it_was_made():
    how = checkpoints.info("spynet_emoji")
    assert data.checkpoint("spynet_emoji").stat().st_size < 1e6
    assert how["command"].startswith("python train/spynet.py")
    assert how["minutes"] > 0 and how["steps"] > 0
    for name, row in how["score"].items():
        if "px" in name:
            assert row["net"] < 0.7 * row["no motion"], name
    with pytest.raises(ValueError, match="no such checkpoint"):
        checkpoints.info("spynet")


def test_loading_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    pretrained.spynet_emoji()
    assert torch.equal(torch.rand(1), want)
