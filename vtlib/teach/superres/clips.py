"""Clips for experiments, and what is known about them beside their flow."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlib.data import footage, photographs
from vtlib.data.footage import Footage
from vtlib.nn import warp
from vtlib.nn.checks import check_int, check_ints, check_odd
from vtlib.superres import psnr, ttvsr


def straight_pans(seed: int, count: int = 4, frames: int = 13, device=None, **motion) -> Footage:
    """Up to `count` clips of 96 x 96 pixels of the test photographs whose camera keeps its course.

    A camera turns back at the border of its photograph; such clips are left out, so that every
    frame moves by what was asked for.

    Args:
        seed: of the choice.
        count: clips at most.
        frames: of each clip.
        device: where they are; None: the CPU.
        motion: of the camera, as for `footage.panned`: velocity, or turn and speed.
    """
    count = check_int(count, "count", 1)
    names = footage.split_names("test")
    clips = footage.panned(
        2 * count, frames, 96, seed, names=names, shrink=1.0, device=device, **motion
    )
    steady = (clips.forward - clips.forward[:, :1]).abs().flatten(1).amax(1) < 0.01
    kept = steady.nonzero().flatten().tolist()[:count]
    return replace(
        clips, frames=clips.frames[kept], backward=clips.backward[kept],
        forward=clips.forward[kept], names=[clips.names[row] for row in kept],
    )


def moved_photographs(
    names: Sequence[str], shift: tuple[int, int], side: int = 192, device=None
) -> tuple[Tensor, Tensor, Tensor]:
    """Squares of photographs, the same moved by whole pixels, and the flow from the first to them.

    Two (B, 3, side, side) and (2, 1, 1). What comes in at the border is the photograph's own.

    Args:
        names: of photographs.
        shift: (x, y) in pixels, at most 60 each.
        side: of the squares.
        device: where they are; None: the CPU.
    """
    dx, dy = check_ints(shift, "shift", length=2)
    if max(abs(dx), abs(dy)) > 60:
        raise ValueError(f"shift={shift}: the photographs reach 60 pixels beyond, needs less")
    photos = photographs(names=list(names), device=device).values()
    here = [photo[:, 60 : 60 + side, 80 : 80 + side] for photo in photos]
    there = [photo[:, 60 - dy : 60 - dy + side, 80 - dx : 80 - dx + side] for photo in photos]
    flow = torch.tensor([dx, dy], device=here[0].device, dtype=torch.float32)
    return torch.stack(here), torch.stack(there), flow.view(2, 1, 1)


def content_place(video, t: int, token: tuple[int, int], end: int, slot: int = 0) -> Tensor:
    """Where at time t the content lies that a token shows in frame `end`: (x, y) in tokens.

    Known from the generator: the object's own motion, hidden or not.

    Args:
        video: of `EmojiWorld.video`, its first clip.
        t: the frame asked for.
        token: (x, y) in frame `end`, tokens of 4 x 4 pixels.
        end: the frame where the token is.
        slot: the object that it belongs to.
    """
    centre, side = video.trajectory[0, :, slot], video.side[0, :, slot]
    middle = torch.tensor(token, device=centre.device, dtype=centre.dtype) * 4 + 2
    offset = (middle - centre[end]) * side[t] / side[end]
    return (centre[t] + offset - 2) / 4


def texture(x: Tensor, size: int = 5) -> Tensor:
    """Pictures (B, C, h, w) less their local mean, over size x size pixels."""
    size = check_odd(size, "size")
    return x - F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)


def addresses(flows: Tensor, how: str, keys: Sequence[int]) -> Tensor:
    """Where each token of the last frame was in the key frames: (B, k, 2, h, w), in tokens.

    Args:
        flows: (B, T-1, 2, H, W) in pixels, from each frame to the frame before.
        how: "nearest" or "fractional" maps, or "same place": maps that never move.
        keys: the k key frames; the first is 0.
    """
    height, width = flows.shape[-2] // 4, flows.shape[-1] // 4
    home = ttvsr.identity_grid(len(flows), height, width, flows.device)
    location = home
    for t in range(1, flows.shape[1] + 1):
        if how != "same place":
            location = ttvsr.carry(location, ttvsr.token_flow(flows[:, t - 1]), how)
        if t in keys:
            location = torch.cat([location, home], dim=1)
    return location.unflatten(1, (-1, 2))


def best_match(
    clips: Footage, ways: Sequence[str], keys: Sequence[int]
) -> dict[str, float]:
    """{way: the cosine of the tokens of the last frame with the best of what they look at, mean}.

    Tokens are those of `texture`.

    Args:
        clips: B clips.
        ways: of "same place", "nearest", "fractional": one place in each key frame, see
            `addresses`; "anywhere": all tokens of all key frames.
        keys: the key frames; the first is 0.
    """
    last = clips.frames.shape[1] - 1
    seen = [clips.frames[:, t] for t in (last, *keys)]
    query, *stored = [F.normalize(ttvsr.tokenize(texture(x)), dim=1) for x in seen]     # b d h w
    stored = torch.stack(stored, dim=2)                                                  # b d k h w
    best = {}
    for how in ways:
        if how == "anywhere":
            cosines = torch.einsum("bdn,bdm->bnm", query.flatten(2), stored.flatten(2))
            best[how] = cosines.amax(-1).mean().item()
        else:
            found = ttvsr.gather_tokens(stored, addresses(clips.forward, how, keys))
            best[how] = (query[:, :, None] * found).sum(1).amax(1).mean().item()
    return best


def best_matches(
    motions: Sequence[dict], ways: Sequence[str], keys: Sequence[int], device=None
) -> dict[str, list[float]]:
    """{way: for each motion `best_match`, mean of two sets of clips}; all ways see the same clips.

    Args:
        motions: of the camera, see `straight_pans`.
        ways: see `best_match`.
        keys: the key frames.
        device: where the clips are; None: the CPU.
    """
    found = {how: [] for how in ways}
    for motion in motions:
        sets = [straight_pans(seed, device=device, **motion) for seed in (0, 1)]
        both = [best_match(clips, ways, keys) for clips in sets]
        for how, values in found.items():
            values.append((both[0][how] + both[1][how]) / 2)
    return found


def agreements(frames: Tensor, apart: Sequence[int]) -> list[float]:
    """`agreement` of frames (T, 3, H, W) that are so far apart in time, mean of two pairs."""
    found = []
    for distance in apart:
        pair = [agreement(frames[t], frames[t + distance]) for t in (0, 4)]
        found.append(sum(pair) / 2)
    return found


def agreement(frame: Tensor, other: Tensor) -> float:
    """PSNR of two frames (3, H, W) after the best single shift, up to 3 pixels in half pixels."""
    steps = torch.arange(-3, 3.1, 0.5, device=frame.device)
    shifts = torch.cartesian_prod(steps, steps)[:, :, None, None]                        # 169 2 1 1
    shifts = shifts.expand(-1, -1, *frame.shape[-2:])
    moved = warp(other.expand(len(shifts), -1, -1, -1), shifts)
    return psnr(moved, frame.expand(len(shifts), -1, -1, -1), crop=8).max().item()
