"""Train the small TTVSR (x4, bicubic degradation), and the same net without trajectories.

    OMP_NUM_THREADS=1 python train/ttvsr.py ttvsr --flow true --steps 2000
    OMP_NUM_THREADS=1 python train/ttvsr.py ttvsr --flow net --steps 1200 --peak 8e-4

1. with the generators' flow, a little disturbed; 2. with the flow net's, which learns along and
goes into data/checkpoints/ttvsr_small. The same with `recurrent` (equal parameters, steps, data:
recurrent_small), with `fractional` (location maps kept fractional: ttvsr_small_fractional), and
with --seed 1 (scores only: *_seeds.json).

Step 1 sees photographs of the train split under a moving camera and EmojiWorld's train videos; step
2 also sharper photographs under slower motion, the first 24 frames of the real clip, and the first
shot of the same video at its own resolution. Held out: the second shot (other towers), the clip's
last 20 frames (the same towers, later), and the test photographs. The flow net starts as the
shipped `spynet_emoji` and learns at a quarter of the rate, from the pictures and, where it is
known, from the true flow. bfloat16 autocast, weights in float32.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, options, ship
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vtlib import checkpoints, data
from vtlib.data import footage
from vtlib.superres import bicubic, pretrained, psnr
from vtlib.superres.ttvsr import TTVSR

SHAPE = dict(mid_channels=32, num_blocks=6, feat_blocks=3, head_channels=16)
# what each net has beside SHAPE
KINDS = {
    "ttvsr": {"trajectories": True},
    "recurrent": {"trajectories": False},
    "fractional": {"trajectories": True, "location": "fractional"},
}
NAMES = {
    "ttvsr": "ttvsr_small",
    "recurrent": "recurrent_small",
    "fractional": "ttvsr_small_fractional",
}
SIZE, FRAMES, BATCH = 96, 7, 3


# ------------------------------------------------------------------------------------------- clips
def turn(clip, generator):
    """The same clips upside down or on their side, colours swapped, darker or brighter."""
    frames, flows = clip.frames, [clip.backward, clip.forward]
    up, side, late = (torch.rand(3, generator=generator) < 0.5).tolist()
    if up:
        frames = frames.flip(-2)
        flows = [f.flip(-2) * torch.tensor([1.0, -1.0]).view(2, 1, 1) for f in flows]
    if side:
        frames = frames.transpose(-1, -2)
        flows = [f.transpose(-1, -2).flip(2) for f in flows]
    if late:  # time run backwards
        frames = frames.flip(1)
        flows = [f.flip(1) for f in flows[::-1]]
    frames = frames[:, :, torch.randperm(3, generator=generator)]
    gamma = torch.empty(len(frames), 1, 1, 1, 1).uniform_(0.7, 1.4, generator=generator)
    return footage.Footage((frames**gamma).contiguous(), *flows, clip.names)


def training_clips(seed, batch, frames, size):
    """Three in four batches photographs, one EmojiWorld."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(1, generator=generator).item()
    if kind < 0.25:
        world = data.EmojiWorld(size, "train", artist="both")
        clip = footage.pictograms(
            world, batch, frames, seed, scale=(0.25, 0.6), speed=0.05, pan=0.03
        )
    elif kind < 0.6:
        clip = footage.panned(
            batch, frames, size, seed, "train", speed=(0.0, 8.0), shrink=(1.0, 1.8)
        )
    else:
        motion = dict(speed=(0.0, 5.0), zoom=0.015, turn=0.7)
        clip = footage.panned(batch, frames, size, seed, "train", **motion, shrink=(1.0, 1.5))
    return turn(clip, generator)


def cut(real, batch, frames, size, generator):
    """Pieces of a real video; their flows are zeros, for nobody knows them.

    Args:
        real: the frames (T, 3, H, W).
        batch: how many pieces.
        frames: of each piece.
        size: of each piece, high and wide.
        generator: decides.
    """
    pieces = []
    for _ in range(batch):
        room = len(real) - frames, real.shape[-2] - size, real.shape[-1] - size
        t, top, left = (int(torch.randint(n + 1, (1,), generator=generator)) for n in room)
        pieces.append(real[t : t + frames, :, top : top + size, left : left + size])
    none = torch.zeros(batch, frames - 1, 2, size, size)
    return footage.Footage(torch.stack(pieces), none, none, ["video"] * batch)


def later_clips(seed, batch, frames, size):
    """Step 2: (clips, whether their flow is known).

    A third of the batches come from real video, one in four of these from the small clip.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(1, generator=generator).item()
    if kind < 0.33:
        if kind < 0.08:
            real = footage.clip_frames("train", multiple=4)
        else:
            real = footage.shot_frames("train")
        return turn(cut(real, batch, frames, size, generator), generator), False
    if kind < 0.63:
        clip = footage.panned(
            batch, frames, size, seed, "train", speed=(0.0, 2.0), shrink=(1.5, 2.9)
        )
        return turn(clip, generator), True
    return training_clips(seed, batch, frames, size), True


def disturbed(flows, seed):
    """Flows (B, T-1, 2, h, w) with smooth errors of up to a third of a pixel.

    Different for each clip: no flow net is exact.
    """
    generator = torch.Generator().manual_seed(seed)
    out = []
    for flow in flows:
        b, t, _, h, w = flow.shape
        error = torch.randn(b * t, 2, 4, 4, generator=generator)
        error = F.interpolate(error, size=(h, w), mode="bicubic", align_corners=False)
        size = torch.empty(b, 1, 1, 1, 1).uniform_(0, 0.3, generator=generator)
        out.append(flow + error.unflatten(0, (b, t)) * size)
    return tuple(out)


# ------------------------------------------------------------------------------------------ scores
def held_out(panned=12, frames=None):
    """name -> (frames (B, T, 3, H, W), true flows of the reduced clips or None).

    Args:
        panned: how many photographs.
        frames: of the two real videos; None: all.
    """
    pans = footage.panned(panned, 13, (96, 128), 77, "test", speed=(0.5, 5.0), shrink=(1.0, 1.3))
    return {
        "video": (footage.shot_frames("test")[None, :frames], None),
        "small clip": (footage.clip_frames("test")[None, :frames], None),
        "photographs": (pans.frames, pans.flows(4)),
    }


def enlarged(model, small, flows):
    """One clip at a time. Without a flow net: the true flow, and none on the video."""
    out = []
    for i, clip in enumerate(small):
        if model.spynet is not None:
            given = None
        elif flows is not None:
            given = tuple(flow[i : i + 1] for flow in flows)
        else:
            given = (clip.new_zeros(1, len(clip) - 1, 2, *clip.shape[2:]),) * 2
        out.append(model(clip[None], given))
    return torch.cat(out)


@torch.no_grad()
def score(model, **few):
    """Decibels on luma, mean over frames, of bicubic enlargement and of the model.

    few: see `held_out`.
    """
    table = {}
    for name, (frames, flows) in held_out(**few).items():
        small = bicubic(frames, 1 / 4)
        found = {"bicubic": bicubic(small, 4), "model": enlarged(model, small, flows)}
        table[name] = {
            how: round(psnr(got.clamp(0, 1), frames, crop=4).mean().item(), 2)
            for how, got in found.items()
        }
    return table


# ---------------------------------------------------------------------------------------- training
def charbonnier(got, want):
    return ((got - want).square() + 1e-6).sqrt().mean()


def told(args):
    """The command of this step."""
    return command(
        __file__, args.kind, flow=args.flow, steps=args.steps, peak=args.peak, seed=args.seed
    )


def work_file(args, flow):
    """What a step leaves for the next one."""
    return args.work / f"{NAMES[args.kind]}_{flow}.safetensors"


def save(model, args):
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, work_file(args, args.flow), {"command": told(args)})


def start(args):
    """The net before the first step of --flow true, or as that left it and with the flow net."""
    torch.manual_seed(args.seed)
    net = args.flow == "net"
    model = TTVSR(
        **SHAPE, **KINDS[args.kind], spynet=pretrained.spynet_emoji() if net else None
    )
    if net:
        model.load_state_dict(load_file(work_file(args, "true")), strict=False)
    return model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU


def batches(args):
    """step -> its seed, the clips, whether their flow is known, the clips made smaller."""
    net = args.flow == "net"

    def batch(step):
        seed = args.seed * 10**6 + step + (500_000 if net else 0)
        if net:
            clip, known = later_clips(seed, *args.clips)
        else:
            clip, known = training_clips(seed, *args.clips), True
        return seed, clip, known, bicubic(clip.frames, 1 / 4)

    return batch


def loss(model, inputs, net):
    """The loss of a batch and its numbers. With the flow net its error counts too, where known."""
    seed, clip, known, small = inputs
    truth = clip.flows(4)
    flows = tuple(f.float() for f in model.flows(small)) if net else disturbed(truth, seed)
    value = charbonnier(model(small, flows).float(), clip.frames)
    row = {"loss": value.item(), "flow off by": float("nan")}
    if net and known:
        pairs = zip(flows, truth, strict=True)
        error = sum((got - want).norm(dim=2).mean() for got, want in pairs) / 2
        row["flow off by"] = error.item()
        value = value + 0.05 * error
    return value, row


def train(args):
    model, net = start(args), args.flow == "net"
    flow_weights = list(model.spynet.parameters()) if net else []
    weights = [p for name, p in model.named_parameters() if not name.startswith("spynet.")]
    groups = [{"params": weights}, {"params": flow_weights, "scale": 0.25}]
    optimizer = torch.optim.Adam(groups, args.peak, betas=(0.9, 0.99))

    def then(done):
        if done % (8 * args.every) and done != args.steps:
            return None
        save(model, args)
        return str(score(model, **args.scored))

    fitted = fit(
        batches(args),
        lambda inputs: loss(model, inputs, net),
        optimizer,
        args.steps,
        cosine(args.peak, args.steps, warmup=50),
        clip=0.5,
        parts=[weights, flow_weights] if net else [weights],
        every=args.every,
        then=then,
    )
    return model, fitted


def main(argv=None):
    parser = options(__doc__, 1600, clips=(BATCH, FRAMES, SIZE))
    parser.add_argument("kind", choices=list(NAMES))
    parser.add_argument("--flow", choices=["true", "net"], default="true")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--work", type=Path, help="default: build/ttvsr_seed<seed>")
    args = begin(parser, argv, clips=(1, 3, 48), scored=dict(panned=1, frames=3))
    args.work = args.work or Path(f"build/ttvsr_seed{args.seed}")
    args.work.mkdir(parents=True, exist_ok=True)
    model, fitted = train(args)
    if args.flow == "true":
        return
    config = dict(SHAPE, **KINDS[args.kind], spynet=checkpoints.info("spynet_emoji")["config"])
    with safe_open(work_file(args, "true"), framework="pt") as file:
        first = file.metadata()["command"]
    ship(
        args.out,
        NAMES[args.kind],
        model,
        lambda: score(model, **args.scored),
        config=config,
        command=f"{first}; {told(args)}",
        seed=args.seed,
        steps=args.steps,
        minutes=round(fitted.minutes, 1),
    )


if __name__ == "__main__":
    main()
