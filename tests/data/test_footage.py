"""Footage: the flow is the one that moves the pictures, splits are apart, motion is what was asked
for, seeds decide."""

import pytest
import torch
import torch.nn.functional as F

from vtlib import data
from vtlib.data import footage


def warp(frames, flow):
    """frames (N, C, H, W) read at pixel + flow (N, 2, H, W), and where that is inside."""
    height, width = frames.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    goal = torch.stack([x, y], -1) + flow.movedim(1, -1)
    span = torch.tensor([width, height])
    inside = ((goal > 2) & (goal < span - 2)).all(-1)
    return F.grid_sample(frames, goal / span * 2 - 1, mode="bicubic", align_corners=False), inside


def both_ways(clip):
    """(reference frames, other frames, flow) of both directions, flat."""
    early, late = clip.frames[:, :-1].flatten(0, 1), clip.frames[:, 1:].flatten(0, 1)
    return [(early, late, clip.backward.flatten(0, 1)), (late, early, clip.forward.flatten(0, 1))]


MOTIONS = (
    dict(speed=(0.3, 5)),
    dict(zoom=0.02, speed=(0.5, 2)),
    dict(turn=3.0, speed=(0, 1)),
    dict(zoom=0.02, turn=2.0, shrink=1.2),
    dict(velocity=(1.5, -0.75)),
)


@pytest.mark.parametrize("options", MOTIONS)
def test_the_flow_moves_the_pictures(options):
    clip = footage.panned(3, 4, (48, 64), 1, **options)
    for here, there, flow in both_ways(clip):
        moved, inside = warp(there, flow)
        error = (moved - here).abs().mean(1)[inside].mean()
        still = (there - here).abs().mean(1)[inside].mean()
        assert error < 0.02 and error < 0.5 * still, f"{error:.4f}, without moving {still:.4f}"


def test_flow_and_its_return_cancel():
    clip = footage.panned(2, 3, 40, 5, zoom=0.03, turn=4.0)
    back, inside = warp(clip.forward.flatten(0, 1), clip.backward.flatten(0, 1))
    both = (back + clip.backward.flatten(0, 1)).movedim(1, -1)[inside]
    torch.testing.assert_close(both, torch.zeros_like(both), atol=5e-3, rtol=0)


def test_whole_pixels_are_copied():
    clip = footage.panned(2, 5, (32, 40), 3, velocity=(2.0, 1.0), shrink=1.0)
    assert clip.backward.abs().amax((0, 1, 3, 4)).tolist() == [2.0, 1.0]
    for b in range(2):
        for t in range(4):
            dx, dy = clip.backward[b, t, :, 0, 0].round().int().tolist()
            rows, columns = (slice(max(0, -d), n - max(0, d)) for d, n in ((dy, 32), (dx, 40)))
            here = clip.frames[b, t, :, rows, columns]
            rows, columns = (slice(max(0, d), n - max(0, -d)) for d, n in ((dy, 32), (dx, 40)))
            there = clip.frames[b, t + 1, :, rows, columns]
            torch.testing.assert_close(here, there, atol=1e-4, rtol=0)


def test_velocity_is_the_camera_and_the_picture_moves_the_other_way():
    options = dict(velocity=(0.75, 0.25), names=["coffee"], shrink=1.0)
    flow = footage.panned(1, 2, 32, 0, **options).backward[0, 0]
    torch.testing.assert_close(flow.abs().mean((1, 2)), torch.tensor([0.75, 0.25]))
    assert flow.std((1, 2)).max() < 1e-5


def test_flows_of_the_reduced_clip():
    clip = footage.panned(1, 2, 32, 0, velocity=(3.0, 1.0))
    back, ahead = clip.flows(4)
    assert back.shape == ahead.shape == (1, 1, 2, 8, 8)
    torch.testing.assert_close(back[0, 0, :, 4, 4], clip.backward[0, 0, :, 16, 16] / 4)
    with pytest.raises(ValueError, match="scale=5 does not divide"):
        clip.flows(5)


def test_paths_turn_back_at_the_border():
    clip = footage.panned(2, 60, (32, 32), 7, speed=(8, 9), shrink=2.0)
    step = clip.backward[..., 0, 0].abs()
    assert step.max() < 9.01 and clip.backward[..., 0, 0].sign().diff(dim=1).abs().max() == 2


def test_splits_are_apart():
    train, test = footage.split_names("train"), footage.split_names("test")
    assert not set(train) & set(test) and set(train) | set(test) == set(footage.split_names("all"))
    # EmojiWorld's test pictures show what training never showed
    assert set(data.backgrounds.names("test")) == set(test)
    assert set(footage.panned(12, 1, 16, 0, split="test").names) <= set(test)
    whole, one, two = (footage.clip_frames(s) for s in ("all", "train", "test"))
    assert torch.equal(whole[:24], one) and torch.equal(whole[28:], two)


def test_clip_sizes():
    frames = footage.clip_frames()
    assert frames.shape == (48, 3, 96, 192)
    assert torch.equal(frames, data.clip()[0][:, :, 6:102])
    assert footage.clip_frames("test", multiple=4).shape == (20, 3, 108, 192)


def test_shots_by_split():
    first, second, _ = data.shots()
    assert torch.equal(footage.shot_frames("train"), first)
    assert torch.equal(footage.shot_frames(), second)


def test_seed_decides():
    a, b, c = (footage.panned(2, 3, 24, seed, zoom=0.01) for seed in (4, 4, 5))
    assert torch.equal(a.frames, b.frames) and torch.equal(a.backward, b.backward)
    assert a.names == b.names
    assert not torch.equal(a.frames, c.frames)


def test_one_frame():
    clip = footage.panned(1, 1, 24, 0)
    assert clip.frames.shape == (1, 1, 3, 24, 24)
    assert clip.backward.shape == clip.forward.shape == (1, 0, 2, 24, 24)
    assert clip.flows(4)[0].shape == (1, 0, 2, 6, 6)


def test_what_is_no_world_is_named():
    with pytest.raises(ValueError, match="world is a int but needs to be an EmojiWorld"):
        footage.pictograms(3, 2, 4, 3)
    with pytest.raises(ValueError, match="video is a NoneType but needs to be a Video"):
        footage.reverse_flow(None)


def test_pictograms_with_flow_both_ways():
    world = data.EmojiWorld((48, 64))
    options = dict(objects=2, speed=0.04, spin=5, pan=0.03, zoom=0.02)
    clip, video = footage.pictograms(world, 2, 4, 3, **options), world.video(2, 4, 3, **options)
    assert torch.equal(clip.frames, video.frames) and torch.equal(clip.backward, video.flow)
    same = video.instance  # where the surface seen is seen in both frames, the flows cancel
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for b in range(2):
        for t in range(3):
            goal = (torch.stack([x, y], -1) + clip.forward[b, t].movedim(0, -1)).floor().long()
            inside = ((goal >= 0) & (goal < torch.tensor([64, 48]))).all(-1)
            cx, cy = goal[..., 0].clamp(0, 63), goal[..., 1].clamp(0, 47)
            seen = inside & (same[b, t, cy, cx] == same[b, t + 1])
            cancel = clip.forward[b, t] + clip.backward[b, t][:, cy, cx]
            assert seen.float().mean() > 0.7
            assert cancel.abs().amax(0)[seen].max() < 0.3         # read at the nearest pixel
    moved, inside = warp(video.frames[0, :1], clip.forward[0, :1])
    first, second = video.frames[0, :1], video.frames[0, 1:2]
    still = (first - second).abs().mean()
    assert (moved - second).abs().mean(1)[inside].mean() < 0.6 * still


@pytest.mark.parametrize("call, message", [
    (lambda: footage.panned(1, 2, 32, 0, split="val"), "split='val'"),
    (lambda: footage.panned(0, 2, 32, 0), "batch=0"),
    (lambda: footage.panned(1, 0, 32, 0), "frames=0"),
    (lambda: footage.panned(1, 2, 600, 0), "does not fit into"),
    (lambda: footage.panned(1, 2, 0, 0), "size=0"),
    (lambda: footage.clip_frames("val"), "split='val'"),
    (lambda: footage.shot_frames("all"), "split='all'"),
    (lambda: footage.clip_frames(multiple=500), "multiple=500"),
])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
