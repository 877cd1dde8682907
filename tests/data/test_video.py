"""Videos: flow and occlusion against loops and against the pictures themselves, trajectories
against masks."""

import math

import pytest
import torch
import torch.nn.functional as F

from vtlib import data


@pytest.fixture(scope="module")
def video():
    world = data.EmojiWorld((60, 80), artist="both")
    return world.video(3, 6, 2, objects=(1, 3), speed=0.05, spin=6, pan=0.03, zoom=0.03)


def test_shapes(video):
    assert video.frames.shape == (3, 6, 3, 60, 80) and video.frames.dtype == torch.float32
    assert 0 <= video.frames.min() and video.frames.max() <= 1
    assert video.flow.shape == (3, 5, 2, 60, 80)
    assert video.occluded.shape == (3, 5, 60, 80) and video.occluded.dtype == torch.bool
    assert video.trajectory.shape == (3, 6, 3, 2) and video.instance.shape == (3, 6, 60, 80)
    assert video.visible.shape == video.visibility.shape == video.side.shape == (3, 6, 3)


def test_one_frame():
    video = data.EmojiWorld(32).video(1, 1, 0)
    assert video.frames.shape == (1, 1, 3, 32, 32) and video.flow.shape == (1, 0, 2, 32, 32)


def test_flow_by_hand(video):
    """Pixel by pixel, from trajectories, sides, angles and the camera."""
    for b, t in ((0, 0), (1, 3), (2, 4)):
        zoom, zoom2 = float(video.camera[b, t, 0]), float(video.camera[b, t + 1, 0])
        eye, eye2 = video.camera[b, t, 1:].tolist(), video.camera[b, t + 1, 1:].tolist()
        for row in range(0, 60, 7):
            for column in range(0, 80, 9):
                x, y = column + 0.5, row + 0.5
                k = int(video.instance[b, t, row, column]) - 1
                if k < 0:  # through the camera onto the photograph and back through the next camera
                    world = (x - 40) / zoom + eye[0], (y - 30) / zoom + eye[1]
                    goal = (world[0] - eye2[0]) * zoom2 + 40, (world[1] - eye2[1]) * zoom2 + 30
                else:
                    (cx, cy), (cx2, cy2) = video.trajectory[b, t : t + 2, k].tolist()
                    growth = float(video.side[b, t + 1, k] / video.side[b, t, k])
                    radius = math.hypot(x - cx, y - cy) * growth
                    bearing = math.atan2(-(y - cy), x - cx)  # counter-clockwise on the screen
                    bearing += math.radians(float(video.angle[b, t + 1, k] - video.angle[b, t, k]))
                    goal = cx2 + radius * math.cos(bearing), cy2 - radius * math.sin(bearing)
                flow = video.flow[b, t, :, row, column].tolist()
                assert flow == pytest.approx([goal[0] - x, goal[1] - y], abs=2e-3)
                if min(abs(g - round(g)) for g in goal) > 5e-3:
                    inside = 0 <= goal[0] < 80 and 0 <= goal[1] < 60
                    column2, row2 = (int(g) for g in goal)
                    gone = not inside or int(video.instance[b, t + 1, row2, column2]) != k + 1
                    assert bool(video.occluded[b, t, row, column]) == gone


def test_the_flow_moves_the_pictures(video):
    """The next frame, read where the flow points, is this frame, wherever nothing gets hidden."""
    now, then = video.frames[:, :-1].flatten(0, 1), video.frames[:, 1:].flatten(0, 1)
    flow, seen = video.flow.flatten(0, 1), ~video.occluded.flatten(0, 1)
    y, x = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    grid = torch.stack([(x + flow[:, 0]) / 40 - 1, (y + flow[:, 1]) / 30 - 1], -1)
    warped = F.grid_sample(then, grid, align_corners=False, padding_mode="border")
    there = (video.instance[:, :-1].flatten(0, 1)[:, None] > 0).float()
    inner = F.max_pool2d(there, 3, 1, 1) == -F.max_pool2d(-there, 3, 1, 1)       # no edge near
    use = seen[:, None] & inner
    error = (warped - now).abs().mean(1, keepdim=True)[use].mean()
    still = (then - now).abs().mean(1, keepdim=True)[use].mean()
    print(f"mean error with flow {error:.4f}, without {still:.4f}")
    assert error < 0.45 * still and use.float().mean() > 0.7


def test_trajectories_follow_the_objects():
    world = data.EmojiWorld(80, pictograms=["soccer ball"])  # round: its pixels' mean is its middle
    video = world.video(4, 8, 0, objects=1, scale=0.3, speed=0.04)
    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    centre, half = video.trajectory[..., 0, :], video.side / 2
    whole = (centre - half > 0).all(-1) & (centre + half < 80).all(-1)
    assert whole.float().mean() > 0.5
    for b, t in whole.nonzero().tolist():
        mask = video.instance[b, t] == 1
        assert abs(float(x[mask].mean()) - float(video.trajectory[b, t, 0, 0])) < 1
        assert abs(float(y[mask].mean()) - float(video.trajectory[b, t, 0, 1])) < 1
    step = (video.trajectory[:, 1:] - video.trajectory[:, :-1]).norm(dim=-1)
    assert (step > 0.05).float().mean() > 0.9 and step.max() < 8


def test_visibility(video):
    for b, t, k in ((0, 0, 0), (1, 2, 1), (2, 5, 0)):
        pixels = int((video.instance[b, t] == k + 1).sum())
        assert bool(video.visible[b, t, k]) == (pixels > 0)
        share = pixels / max(1, int(video.area[b, t, k]))
        assert float(video.visibility[b, t, k]) == pytest.approx(share)
    assert (video.pictogram[~video.valid] == -1).all()
    assert (video.trajectory.transpose(1, 2)[~video.valid] == 0).all()


def test_a_still_camera_and_still_objects():
    video = data.EmojiWorld(40).video(2, 4, 0, speed=0, spin=0, pan=0, zoom=0, scale=0.3)
    ground = video.instance[:, :-1] == 0
    assert (video.flow.abs().amax(2)[ground] < 1e-4).all()
    assert (video.camera[..., 0] == 1).all()
