"""Train the small optical flow of the super-resolution notebook: data/checkpoints/spynet_emoji.

    OMP_NUM_THREADS=1 python train/spynet.py                                     # 1. 10 minutes
    OMP_NUM_THREADS=1 python train/spynet.py --refine --steps 2200 --peak 6e-4   # 2. from there, 8

Half of each batch are EmojiWorld videos (several motions, occlusions), half photographs under a
moving camera; the true flow of both is exact. Pictures of 48, 64 and 96 pixels, motions up to about
8 pixels, most of them small, as between frames of low resolution. bfloat16 autocast, the weights in
float32. The loss is the end-point error of every level; what is hidden in the other frame counts a
fifth.

From a random start nothing is learned for thousands of steps (the error stays at that of "no
motion"), so a level starts as block matching (`start_as_block_matching`). For the first part one
set of weights serves all levels, each given the true flow of the level below with an error added;
then every level goes its own way and gets what the one below really found. Refining measures errors
relative to each picture's motion and shows slower motion, too: what aligns frames of low resolution
are hundredths of a pixel.

Held out: the test backgrounds and the test pictograms of EmojiWorld, the test photographs, the last
20 frames of the clip.
"""

import math

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, options, rounded, ship
from safetensors.torch import load_file

from vtlib import checkpoints
from vtlib.data import EmojiWorld, footage
from vtlib.nn import warp
from vtlib.superres.degrade import bicubic
from vtlib.superres.spynet import SPyNet

CONFIG = dict(levels=4, channels=(32, 32, 16, 16), kernel_size=5)
STEPS, PEAK = 3600, 1.5e-3
SIZES, LARGEST = (48, 64, 64, 96), 8.0  # pixels
SPEEDS = {
    "under 1 px": (0.0, 1.0),
    "1 to 4 px": (1.0, 4.0),
    "4 to 8 px": (4.0, 8.0),
    "under 0.2 px": (0.0, 0.2),
}


# ------------------------------------------------------------------------------- pairs of pictures
def emoji_pairs(world, batch, seed, speed, pan, zoom=0.02, spin=4.0):
    """(reference, supporting, flow, visible) of B videos of two frames, half run backwards.

    Args:
        world: the EmojiWorld.
        batch: B.
        seed: of the videos.
        speed: of pictograms, in pixels a frame.
        pan: of the camera, in pixels a frame.
        zoom: of the camera, a frame.
        spin: of pictograms, in degrees a frame.
    """
    side, half = min(world.size), batch // 2
    video = world.video(
        batch,
        2,
        seed,
        objects=(1, 4),
        scale=(0.15, 0.6),
        speed=speed / side,
        pan=pan / side,
        zoom=zoom,
        spin=spin,
    )
    first, second = video.frames.unbind(1)
    flow, back = video.flow[:, 0], footage.reverse_flow(video)[:, 0]
    # seen backwards, "hidden" is what comes into view: where the flow there and back does not close
    closes = (warp(flow, back) + back).norm(dim=1) < 0.5
    shown = ~video.occluded[:, 0]
    return (
        torch.cat([first[:half], second[half:]]),
        torch.cat([second[:half], first[half:]]),
        torch.cat([flow[:half], back[half:]]),
        torch.cat([shown[:half], closes[half:]]),
    )


def panned_pairs(size, batch, seed, speed, split, shrink, zoom=0.02, turn=2.0):
    """The same of photographs under a moving camera. What leaves the frame is not visible.

    Args:
        size: pixels, high and wide.
        batch: B.
        seed: of the clips.
        speed: (slowest, fastest) in pixels a frame.
        split: of the photographs.
        shrink: how many times smaller than the photograph.
        zoom: of the camera, a frame.
        turn: of the camera, in degrees a frame.
    """
    clips = footage.panned(
        batch, 2, size, seed, split, speed=speed, zoom=zoom, turn=turn, shrink=shrink
    )
    flow = clips.backward[:, 0]  # from frame 0 to frame 1
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    x, y = x + flow[:, 0], y + flow[:, 1]
    inside = (x.clamp(0, size - 1) == x) & (y.clamp(0, size - 1) == y)
    return clips.frames[:, 0], clips.frames[:, 1], flow, inside


def light(first, second, generator):
    """The same change of light and colour in both pictures, other grain in each."""

    def draw(low, high, *shape):
        empty = torch.empty(len(first), *(shape or (1, 1, 1)))
        return empty.uniform_(low, high, generator=generator)

    order = torch.rand(len(first), 3, generator=generator).argsort(1)[..., None, None]
    gain, shift, gamma = draw(0.6, 1.3, 3, 1, 1), draw(-0.15, 0.15), draw(0.7, 1.5)
    grain = draw(-0.02, 0.02).clamp(min=0)
    out = []
    for image in (first, second):
        image = image.gather(1, order.expand_as(image))
        image = ((image - 0.5) * gain + 0.5 + shift).clamp(0, 1) ** gamma
        noise = torch.randn(image.shape, generator=generator)
        out.append((image + noise * grain).clamp(0, 1))
    return out


def training_pairs(worlds, seed, batch, slowest=0.1, sizes=SIZES):
    """(first, second, flow, visible): pictograms and photographs of one size, in other light.

    Args:
        worlds: {size: EmojiWorld}.
        seed: decides.
        batch: pairs of 64 px; of another size as many as cost the same.
        slowest: motion, in pixels.
        sizes: one of them is drawn.
    """
    generator = torch.Generator().manual_seed(seed)

    def pixels():
        """How fast: from the slowest to the fastest, each factor of two equally often."""
        power = torch.empty(()).uniform_(math.log(slowest, LARGEST), 1.0, generator=generator)
        return LARGEST ** power.item()

    size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
    batch = max(2, int(batch * (64 / size) ** 2))
    shrink = (1.0, 1.5, 2.0, 2.8)[int(torch.randint(4, (), generator=generator))]
    shrink = min(shrink, 190 / size)  # a turned frame has to fit
    top = pixels()
    speed, pan = 1.5 * pixels(), pixels()
    calm = min(1, top)
    emoji = emoji_pairs(worlds[size], batch // 2, seed, speed=speed, pan=pan)
    photos = panned_pairs(
        size,
        batch - batch // 2,
        seed,
        (0.0, top),
        "train",
        shrink,
        zoom=0.02 * calm,
        turn=2 * calm,
    )
    first, second, flow, visible = (torch.cat(pair) for pair in zip(emoji, photos, strict=True))
    first, second = light(first, second, generator)
    if torch.rand((), generator=generator) < 0.5:  # upside down
        first, second, visible = (t.flip(-2) for t in (first, second, visible))
        flow = flow.flip(-2) * torch.tensor([1.0, -1.0]).view(2, 1, 1)
    return first, second, flow, visible


# ---------------------------------------------------------------------------------------- training
def flow_loss(flows, target, visible, relative=False):
    """Mean end-point error of each level in the pixels of that level, the finest counting twice.

    Args:
        flows: of each level, coarse to fine.
        target: the true flow.
        visible: what the other frame shows; hidden pixels count a fifth.
        relative: divide by a quarter of a pixel more than the picture's mean motion.
    """
    weight, total = visible.float() * 0.8 + 0.2, 0.0
    if relative:
        weight = weight / (0.25 + target.norm(dim=1).mean((1, 2), keepdim=True))
    for k, flow in enumerate(reversed(flows)):
        want = F.avg_pool2d(target, 2**k) / 2**k
        error = ((flow.float() - want).square().sum(1) + 1e-6).sqrt()
        share = F.avg_pool2d(weight[:, None], 2**k)[:, 0]
        total = total + (2.0 if k == 0 else 1.0) * (error * share).mean()
    return total


@torch.no_grad()
def start_as_block_matching(module):
    """First convolution: grey differences to the supporting picture moved by 3 x 3 whole pixels.

    Both signs, so that ReLU leaves their absolute values. Second: their sums over a window. What is
    left to learn is where the smallest sum is. The other channels stay random.
    """
    first, second = module.basic_module[0].conv, module.basic_module[1].conv
    middle = first.kernel_size[0] // 2
    second.weight[:9] = 0
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for n, (dy, dx) in enumerate(shifts):
        for sign, row in ((1, 2 * n), (-1, 2 * n + 1)):
            first.weight[row] = 0
            first.bias[row] = 0
            first.weight[row, 3:6, middle + dy, middle + dx] += sign / 3
            first.weight[row, :3, middle, middle] -= sign / 3
        second.weight[n, 2 * n : 2 * n + 2] = 4 / second.kernel_size[0] ** 2
        second.bias[n] = 0


def given_the_level_below(net, first, second, target, generator):
    """Every level by the first module, on the true flow of the level below, about a pixel off."""
    flows = []
    for k in reversed(range(len(net.basic_module))):
        ref, supp = (F.avg_pool2d((t - net.mean) / net.std, 2**k) for t in (first, second))
        flow = torch.zeros_like(ref[:, :2])
        if flows:
            below = F.avg_pool2d(target, 2 ** (k + 1)) / 2 ** (k + 1)
            size = below.shape[2:]
            coarse = [-(-side // 4) for side in size]
            wrong = 0.3 * torch.randn(len(first), 2, *coarse, generator=generator)
            below = below + F.interpolate(wrong, size=size, mode="bilinear")
            flow = 2 * F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=True)
        inputs = torch.cat([ref, warp(supp, flow), flow], dim=1)
        flows.append(flow + net.basic_module[0](inputs))
    return flows


def start(args):
    """The net before the first step."""
    torch.manual_seed(args.seed)
    net = SPyNet(**CONFIG)
    start_as_block_matching(net.basic_module[0])
    if args.refine:
        stored = load_file(args.out / "spynet_emoji.safetensors")
        net.load_state_dict({key: value.float() for key, value in stored.items()})
    return net


def train(args):
    net = start(args)
    worlds = {size: EmojiWorld(size, "train", artist="both") for size in set(args.sizes)}
    optimizer = torch.optim.AdamW(net.parameters(), args.peak, weight_decay=1e-4, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(args.seed)
    together = 0 if args.refine else int(args.steps * args.shared)
    first_seed = (args.seed + 500 * args.refine) * 10**6
    slowest = 0.02 if args.refine else 0.1

    def batch(step):
        if step == together and not args.refine:
            for module in net.basic_module[1:]:
                module.load_state_dict(net.basic_module[0].state_dict())
        return step, training_pairs(worlds, first_seed + step, args.batch, slowest, args.sizes)

    def loss(inputs):
        step, (first, second, flow, visible) = inputs
        if step < together:
            flows = given_the_level_below(net, first, second, flow, generator)
        else:
            flows = net.levels_of(first, second)
        return flow_loss(flows, flow, visible, args.refine)

    def then(done):
        if done <= together:
            return None
        found = errors(net, pairs=32, baselines=False)
        return ", ".join(f"{name} {row['net']:.3f}" for name, row in found.items())

    rate = cosine(args.peak, args.steps, warmup=50, floor=0.01)
    return net, fit(batch, loss, optimizer, args.steps, rate, every=args.every, then=then)


# ------------------------------------------------------------------------------------------ scores
def held_out(pairs, size=64):
    """{name: (reference, supporting, flow, visible)}: EmojiWorld and photographs, four speeds."""
    world = EmojiWorld(size, "test", artist="both")
    sets = {}
    for k, (name, (low, high)) in enumerate(SPEEDS.items()):
        seed = 990_000 + k
        sets[f"emoji {name}"] = emoji_pairs(
            world, pairs, seed, speed=high, pan=(low + high) / 2, zoom=0.01, spin=2.0
        )
        sets[f"photo {name}"] = panned_pairs(
            size, pairs, seed, (low, high), "test", shrink=2.0, zoom=0.01, turn=1.0
        )
    return sets


def end_point_error(flow, want, visible):
    """Mean length of the error over visible pixels, in pixels."""
    return (flow - want).norm(dim=1)[visible].mean().item()


def classical(method, reference, supporting):
    """scikit-image's optical flow of a batch, on grey pictures, as (B, 2, h, w)."""
    grey = [t.mean(1).double().numpy() for t in (reference, supporting)]
    flows = [method(a, b)[::-1].copy() for a, b in zip(*grey, strict=True)]
    return torch.stack([torch.from_numpy(flow).float() for flow in flows])


def baselines_of(net, reference, supporting, flow, visible):
    """End-point errors of the net and of two classical methods on the same few pairs."""
    from skimage.registration import optical_flow_ilk, optical_flow_tvl1

    found = {
        "net": net(reference, supporting),
        "Lucas-Kanade": classical(optical_flow_ilk, reference, supporting),
        "TV-L1": classical(optical_flow_tvl1, reference, supporting),
    }
    errors = {name: end_point_error(got, flow, visible) for name, got in found.items()}
    return {f"{name}, {len(flow)} pairs": error for name, error in errors.items()}


@torch.no_grad()
def errors(net, pairs=128, baselines=True):
    """End-point errors in pixels on what was held out.

    The net's, no motion's and, on the first 16 pairs, two classical methods'.
    """
    rows = {}
    for name, pair in held_out(pairs).items():
        reference, supporting, flow, visible = pair
        rows[name] = {
            "net": end_point_error(net(reference, supporting), flow, visible),
            "no motion": end_point_error(0 * flow, flow, visible),
        }
        if baselines:
            rows[name] |= baselines_of(net, *(part[:16] for part in pair))
    return rounded(rows)


@torch.no_grad()
def clip_quality(net, frames=None, scales=(1, 4)):
    """PSNR of the next frame warped onto this one, the real clip's last 20 frames.

    Without motion, with the net's flow, with TV-L1's.

    Args:
        net: the flow net.
        frames: how many of the 20; None: all.
        scales: how many times smaller the frames are made.
    """
    from skimage.registration import optical_flow_tvl1

    rows = {}
    for scale in scales:
        clip = footage.clip_frames("test")[:frames]
        clip = clip if scale == 1 else bicubic(clip, 1 / scale)
        here, there = clip[:-1], clip[1:]
        flows = {
            "no motion": torch.zeros_like(here[:, :2]),
            "net": net(here, there),
            "TV-L1": classical(optical_flow_tvl1, here, there),
        }
        row = {}
        for name, flow in flows.items():
            error = (warp(there, flow) - here)[..., 2:-2, 2:-2].square().flatten(1).mean(1)
            row[name] = round((-10 * error.log10()).mean().item(), 2)
        rows[f"clip / {scale}"] = row
    return rows


def score(net, pairs=128, frames=None):
    """`errors` and `clip_quality` in one table."""
    return {**errors(net, pairs), **clip_quality(net, frames)}


def main(argv=None):
    parser = options(__doc__, STEPS, every=250, sizes=SIZES)
    parser.add_argument("--batch", type=int, default=12, help="pairs of 64 px a step")
    parser.add_argument(
        "--shared", type=float, default=0.4, help="share of the steps with one set of weights"
    )
    parser.add_argument("--peak", type=float, default=PEAK, help="highest learning rate")
    parser.add_argument("--refine", action="store_true", help="go on from the file in --out")
    args = begin(parser, argv, batch=1, sizes=(48,), scored=dict(pairs=4, frames=3))
    before = checkpoints.info(args.out / "spynet_emoji.safetensors") if args.refine else {}
    net, fitted = train(args)
    told = command(
        __file__, *["--refine"] * args.refine, steps=args.steps, peak=args.peak, seed=args.seed
    )
    ship(
        args.out,
        "spynet_emoji",
        net,
        lambda: score(net, **args.scored),
        config=CONFIG,
        command="; ".join([*filter(None, [before.get("command")]), told]),
        seed=args.seed,
        steps=args.steps + before.get("steps", 0),
        minutes=round(fitted.minutes + before.get("minutes", 0), 1),
    )


if __name__ == "__main__":
    main()
