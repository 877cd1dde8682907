"""Train the small optical flow of the super-resolution notebook and write data/checkpoints/spynet_emoji.safetensors.

    OMP_NUM_THREADS=1 python data/train_spynet.py                                  # 1. about 10 minutes on one core
    OMP_NUM_THREADS=1 python data/train_spynet.py --refine --steps 2200 --peak 6e-4       # 2. goes on from there, about 8 minutes

Half of each batch are EmojiWorld videos (several motions, occlusions), half photographs under a moving camera; the true flow of both is exact.
Pictures of 48, 64 and 96 pixels, motions up to about 8 pixels, most of them small, as between frames of low resolution. bfloat16 autocast, the
weights in float32. The loss is the end-point error of every level; what is hidden in the other frame counts a fifth.

From a random start nothing is learned for thousands of steps (the error stays at that of "no motion"), so a level starts as block matching
(`start_as_block_matching`). For the first part one set of weights serves all levels, each given the true flow of the level below with an error
added; then every level goes its own way and gets what the one below really found. Refining measures errors relative to each picture's motion and
shows slower motion, too: what aligns frames of low resolution are hundredths of a pixel.

Held out: the test backgrounds and the test pictograms of EmojiWorld, the test photographs, the last 20 frames of the clip.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from training import schedule

from vtlib.data import EmojiWorld, footage
from vtlib.superres.degrade import bicubic
from vtlib.superres.spynet import SPyNet
from vtlib.superres.warp import warp

CONFIG = dict(levels=4, channels=(32, 32, 16, 16), kernel_size=5)
SIZES, LARGEST = (48, 64, 64, 96), 8.0                                           # pixels
SPEEDS = {"under 1 px": (0.0, 1.0), "1 to 4 px": (1.0, 4.0), "4 to 8 px": (4.0, 8.0), "under 0.2 px": (0.0, 0.2)}


# ------------------------------------------------------------------------------------------------------------------ pairs of pictures
def emoji_pairs(world, batch, seed, speed, pan, zoom=0.02, spin=4.0):
    """(reference, supporting, flow, visible) of B videos of two frames, half of them run backwards. speed, pan in pixels a frame."""
    side = min(world.size)
    video = world.video(batch, 2, seed, objects=(1, 4), scale=(0.15, 0.6), speed=speed / side, pan=pan / side, zoom=zoom, spin=spin)
    first, second = video.frames.unbind(1)
    half = batch // 2
    back = footage.reverse_flow(video)[:, 0]
    # seen backwards, "hidden" is what comes into view: where the flow there and back does not close
    closes = (warp(video.flow[:, 0], back) + back).norm(dim=1) < 0.5
    return (torch.cat([first[:half], second[half:]]), torch.cat([second[:half], first[half:]]),
            torch.cat([video.flow[:half, 0], back[half:]]), torch.cat([~video.occluded[:half, 0], closes[half:]]))


def panned_pairs(size, batch, seed, speed, split, shrink, zoom=0.02, turn=2.0):
    """The same of photographs under a moving camera. What leaves the frame is not visible."""
    clips = footage.panned(batch, 2, size, seed, split, speed=speed, zoom=zoom, turn=turn, shrink=shrink)
    flow = clips.backward[:, 0]                                                  # from frame 0 to frame 1
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = ((x + flow[:, 0]).clamp(0, size - 1) == x + flow[:, 0]) & ((y + flow[:, 1]).clamp(0, size - 1) == y + flow[:, 1])
    return clips.frames[:, 0], clips.frames[:, 1], flow, inside


def light(first, second, generator):
    """The same change of light and colour in both pictures, other grain in each."""
    def draw(low, high, *shape):
        return torch.empty(len(first), *(shape or (1, 1, 1))).uniform_(low, high, generator=generator)

    order = torch.rand(len(first), 3, generator=generator).argsort(1)[..., None, None]
    gain, shift, gamma = draw(0.6, 1.3, 3, 1, 1), draw(-0.15, 0.15), draw(0.7, 1.5)
    grain = draw(-0.02, 0.02).clamp(min=0)
    out = []
    for image in (first, second):
        image = image.gather(1, order.expand_as(image))
        image = ((image - 0.5) * gain + 0.5 + shift).clamp(0, 1) ** gamma
        out.append((image + torch.randn(image.shape, generator=generator) * grain).clamp(0, 1))
    return out


def training_pairs(worlds, step, seed, batch, slowest=0.1):
    generator = torch.Generator().manual_seed(seed * 10**6 + step)

    def pixels():
        """How fast: from the slowest to the fastest, each factor of two equally often."""
        return LARGEST ** torch.empty(()).uniform_(math.log(slowest, LARGEST), 1.0, generator=generator).item()

    size = SIZES[int(torch.randint(len(SIZES), (), generator=generator))]
    batch = max(2, int(batch * (64 / size) ** 2))
    here = seed * 10**6 + step
    shrink = min((1.0, 1.5, 2.0, 2.8)[int(torch.randint(4, (), generator=generator))], 190 / size)     # a turned frame has to fit
    top = pixels()
    parts = [emoji_pairs(worlds[size], batch // 2, here, speed=1.5 * pixels(), pan=pixels()),
             panned_pairs(size, batch - batch // 2, here, (0.0, top), "train", shrink, zoom=0.02 * min(1, top), turn=2 * min(1, top))]
    first, second, flow, visible = (torch.cat(t) for t in zip(*parts))
    first, second = light(first, second, generator)
    if torch.rand((), generator=generator) < 0.5:                                # upside down
        first, second, visible = (t.flip(-2) for t in (first, second, visible))
        flow = flow.flip(-2) * torch.tensor([1.0, -1.0]).view(2, 1, 1)
    return first, second, flow, visible


# ------------------------------------------------------------------------------------------------------------------------- training
def flow_loss(flows, target, visible, relative=False):
    """Mean end-point error of each level in the pixels of that level, the finest counting twice; hidden pixels a fifth. relative: divided by
    a quarter of a pixel more than the picture's mean motion."""
    weight, total = visible.float() * 0.8 + 0.2, 0.0
    if relative:
        weight = weight / (0.25 + target.norm(dim=1).mean((1, 2), keepdim=True))
    for k, flow in enumerate(reversed(flows)):
        want = F.avg_pool2d(target, 2**k) / 2**k
        error = ((flow.float() - want).square().sum(1) + 1e-6).sqrt()
        total = total + (2.0 if k == 0 else 1.0) * (error * F.avg_pool2d(weight[:, None], 2**k)[:, 0]).mean()
    return total


@torch.no_grad()
def start_as_block_matching(module):
    """First convolution: grey differences to the supporting picture moved by each of 3 x 3 whole pixels, both signs, so that ReLU leaves their
    absolute values. Second: their sums over a window. What is left to learn is where the smallest sum is. The other channels stay random."""
    first, second = module.basic_module[0].conv, module.basic_module[1].conv
    middle = first.kernel_size[0] // 2
    second.weight[:9] = 0
    for n, (dy, dx) in enumerate((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)):
        for sign, row in ((1, 2 * n), (-1, 2 * n + 1)):
            first.weight[row], first.bias[row] = 0, 0
            first.weight[row, 3:6, middle + dy, middle + dx] += sign / 3
            first.weight[row, :3, middle, middle] -= sign / 3
        second.weight[n, 2 * n:2 * n + 2], second.bias[n] = 4 / second.kernel_size[0] ** 2, 0


def given_the_level_below(net, first, second, target, generator):
    """Every level by the first module, on the true flow of the level below, moved by up to about a pixel."""
    flows = []
    for k in reversed(range(len(net.basic_module))):
        ref, supp = (F.avg_pool2d((t - net.mean) / net.std, 2**k) for t in (first, second))
        flow = torch.zeros_like(ref[:, :2])
        if flows:
            below = F.avg_pool2d(target, 2 ** (k + 1)) / 2 ** (k + 1)
            coarse = [-(-side // 4) for side in below.shape[2:]]
            wrong = F.interpolate(0.3 * torch.randn(len(first), 2, *coarse, generator=generator), size=below.shape[2:], mode="bilinear")
            flow = 2 * F.interpolate(below + wrong, scale_factor=2, mode="bilinear", align_corners=True)
        flows.append(flow + net.basic_module[0](torch.cat([ref, warp(supp, flow), flow], dim=1)))
    return flows


def train(args):
    torch.manual_seed(args.seed)
    net = SPyNet(**CONFIG)
    start_as_block_matching(net.basic_module[0])
    if args.refine:
        net.load_state_dict({key: value.float() for key, value in load_file(args.out).items()})
    worlds = {size: EmojiWorld(size, "train", artist="both") for size in set(SIZES)}
    optimizer = torch.optim.AdamW(net.parameters(), args.peak, weight_decay=1e-4, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(args.seed)
    start, losses, together = time.perf_counter(), [], 0 if args.refine else int(args.steps * args.shared)
    for step in range(args.steps):
        if step == together and not args.refine:
            for module in net.basic_module[1:]:
                module.load_state_dict(net.basic_module[0].state_dict())
        schedule(optimizer, args.peak, step, args.steps, warmup=50, floor=0.01)
        first, second, flow, visible = training_pairs(worlds, step, args.seed + 500 * args.refine, args.batch, 0.02 if args.refine else 0.1)
        with torch.autocast("cpu", torch.bfloat16):
            flows = given_the_level_below(net, first, second, flow, generator) if step < together else net.levels_of(first, second)
        loss = flow_loss(flows, flow, visible, args.refine)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 250 == 0:
            row = score(net, pairs=32, baselines=False) if step >= together else {}
            print(f"step {step + 1}/{args.steps}: loss {sum(losses[-250:]) / 250:.3f}, {time.perf_counter() - start:.0f} s, "
                  + ", ".join(f"{k} {v['net']:.3f}" for k, v in row.items()), flush=True)
    return net.eval(), (time.perf_counter() - start) / 60


# -------------------------------------------------------------------------------------------------------------------------- scores
def held_out(pairs, size=64):
    """{name: (reference, supporting, flow, visible)}: EmojiWorld and photographs, four ranges of speed."""
    world = EmojiWorld(size, "test", artist="both")
    sets = {}
    for k, (name, (low, high)) in enumerate(SPEEDS.items()):
        sets[f"emoji {name}"] = emoji_pairs(world, pairs, 990_000 + k, speed=high, pan=(low + high) / 2, zoom=0.01, spin=2.0)
        sets[f"photo {name}"] = panned_pairs(size, pairs, 990_000 + k, (low, high), "test", shrink=2.0, zoom=0.01, turn=1.0)
    return sets


def end_point_error(flow, want, visible):
    """Mean length of the error over visible pixels, in pixels."""
    return (flow - want).norm(dim=1)[visible].mean().item()


def classical(method, reference, supporting):
    """scikit-image's optical flow of a batch, on grey pictures, as (B, 2, h, w)."""
    grey = [t.mean(1).double().numpy() for t in (reference, supporting)]
    return torch.stack([torch.from_numpy(method(a, b)[::-1].copy()).float() for a, b in zip(*grey)])


@torch.no_grad()
def score(net, pairs=128, baselines=True):
    """End-point errors in pixels on what was held out: the net's, no motion's and, on the first 16 pairs, two classical methods'."""
    rows = {}
    for name, (reference, supporting, flow, visible) in held_out(pairs).items():
        rows[name] = {"net": end_point_error(net(reference, supporting), flow, visible), "no motion": end_point_error(0 * flow, flow, visible)}
        if baselines:
            from skimage.registration import optical_flow_ilk, optical_flow_tvl1

            few = slice(0, 16)
            rows[name]["net, 16 pairs"] = end_point_error(net(reference[few], supporting[few]), flow[few], visible[few])
            for label, method in (("Lucas-Kanade, 16 pairs", optical_flow_ilk), ("TV-L1, 16 pairs", optical_flow_tvl1)):
                rows[name][label] = end_point_error(classical(method, reference[few], supporting[few]), flow[few], visible[few])
    return {name: {key: round(value, 3) for key, value in row.items()} for name, row in rows.items()}


@torch.no_grad()
def score_clip(net, scales=(1, 4)):
    """PSNR of the next frame warped onto this one, real clip's last 20 frames: without motion, with the net's flow, with TV-L1's."""
    from skimage.registration import optical_flow_tvl1

    rows = {}
    for scale in scales:
        frames = footage.clip_frames("test")
        frames = frames if scale == 1 else bicubic(frames, 1 / scale)
        here, there = frames[:-1], frames[1:]
        flows = {"no motion": torch.zeros_like(here[:, :2]), "net": net(here, there), "TV-L1": classical(optical_flow_tvl1, here, there)}
        inner = (..., slice(2, -2), slice(2, -2))
        rows[f"clip / {scale}"] = {name: round((-10 * (warp(there, flow) - here)[inner].square().flatten(1).mean(1).log10()).mean().item(), 2)
                                   for name, flow in flows.items()}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=12, help="pairs of 64 px a step; more of smaller ones, fewer of larger ones")
    parser.add_argument("--shared", type=float, default=0.4, help="share of the steps with one set of weights for all levels")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--refine", action="store_true", help="go on from --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoints" / "spynet_emoji.safetensors")
    args = parser.parse_args()
    command = f"python data/train_spynet.py{' --refine' * args.refine} --steps {args.steps} --peak {args.peak} --seed {args.seed}"
    before = {}
    if args.refine:
        with safe_open(args.out, framework="pt") as file:
            before = {key: json.loads(value) for key, value in file.metadata().items()}
    net, minutes = train(args)
    stored = {key: value.half().contiguous() for key, value in net.state_dict().items()}
    net.load_state_dict({key: value.float() for key, value in stored.items()})
    rows = {**score(net), **score_clip(net)}
    for name, row in rows.items():
        print(name, row)
    header = {"config": CONFIG, "command": "; ".join([*filter(None, [before.get("command")]), command]), "seed": args.seed,
              "steps": args.steps + before.get("steps", 0), "minutes": round(minutes + before.get("minutes", 0), 1), "scores": rows}
    save_file(stored, args.out, {key: json.dumps(value) for key, value in header.items()})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
