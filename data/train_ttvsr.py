"""Train data/checkpoints/ttvsr_small.safetensors, a small TTVSR (x4, bicubic degradation), and recurrent_small.safetensors, the same net
without trajectories: equal parameters, equal steps, equal data.

    OMP_NUM_THREADS=1 python data/train_ttvsr.py ttvsr --flow true --steps 2000             # 1. with the generators' flow, a little disturbed
    OMP_NUM_THREADS=1 python data/train_ttvsr.py ttvsr --flow net --steps 1200 --peak 8e-4  # 2. with the flow net's, which learns along

and the same with `recurrent`, with `fractional` (TTVSR whose location maps are kept fractional), and with --seed 1. Step 1 sees photographs of the train split under a moving camera and EmojiWorld's train videos;
step 2 also sharper photographs under slower motion, the first 24 frames of the real clip, and the first shot of the same video at its own
resolution. Held out: the second shot (other towers), the clip's last 20 frames (the same towers, later), and the test photographs. The flow net starts as the shipped `spynet_emoji` and learns at a quarter of the rate, from the pictures and, where it is
known, from the true flow; it goes into the checkpoint, which step 2 writes. bfloat16 autocast, weights in float32; scores are measured on what is stored (half precision).
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training import schedule

from vtlib import data
from vtlib.data import footage
from vtlib.superres import bicubic, pretrained, psnr
from vtlib.superres.spynet import SPyNet
from vtlib.superres.ttvsr import TTVSR

SHAPE = dict(mid_channels=32, num_blocks=6, feat_blocks=3, head_channels=16)
# what each net has beside SHAPE
KINDS = {"ttvsr": {"trajectories": True}, "recurrent": {"trajectories": False}, "fractional": {"trajectories": True, "location": "fractional"}}
NAMES = {"ttvsr": "ttvsr_small", "recurrent": "recurrent_small", "fractional": "ttvsr_small_fractional"}
SIZE, FRAMES, BATCH = 96, 7, 3


def turn(clip, generator):
    """The same clips upside down or on their side, colours swapped, darker or brighter; flows follow."""
    frames, flows = clip.frames, [clip.backward, clip.forward]
    up, side, late = (torch.rand(3, generator=generator) < 0.5).tolist()
    if up:
        frames, flows = frames.flip(-2), [f.flip(-2) * torch.tensor([1.0, -1.0]).view(2, 1, 1) for f in flows]
    if side:
        frames, flows = frames.transpose(-1, -2), [f.transpose(-1, -2).flip(2) for f in flows]
    if late:                                                                     # time run backwards
        frames, flows = frames.flip(1), [f.flip(1) for f in flows[::-1]]
    frames = frames[:, :, torch.randperm(3, generator=generator)]
    frames = frames ** torch.empty(len(frames), 1, 1, 1, 1).uniform_(0.7, 1.4, generator=generator)
    return footage.Footage(frames.contiguous(), *flows, clip.names)


def training_clips(seed, batch, frames):
    """Three in four batches photographs, one EmojiWorld."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(1, generator=generator).item()
    if kind < 0.25:
        clip = footage.pictograms(data.EmojiWorld(SIZE, "train", artist="both"), batch, frames, seed, scale=(0.25, 0.6), speed=0.05, pan=0.03)
    elif kind < 0.6:
        clip = footage.panned(batch, frames, SIZE, seed, "train", speed=(0.0, 8.0), shrink=(1.0, 1.8))
    else:
        clip = footage.panned(batch, frames, SIZE, seed, "train", speed=(0.0, 5.0), zoom=0.015, turn=0.7, shrink=(1.0, 1.5))
    return turn(clip, generator)


def later_clips(seed, batch, frames):
    """Step 2: a third of the batches from real video, one in four of these from the small clip; nobody knows its flow."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(1, generator=generator).item()
    if kind < 0.33:
        real = footage.clip_frames("train", multiple=4) if kind < 0.08 else footage.shot_frames("train")
        cut = []
        for _ in range(batch):
            room = len(real) - frames, real.shape[-2] - SIZE, real.shape[-1] - SIZE
            t, top, left = (int(torch.randint(n + 1, (1,), generator=generator)) for n in room)
            cut.append(real[t : t + frames, :, top : top + SIZE, left : left + SIZE])
        none = torch.zeros(batch, frames - 1, 2, SIZE, SIZE)
        return turn(footage.Footage(torch.stack(cut), none, none, ["video"] * batch), generator), False
    if kind < 0.63:
        return turn(footage.panned(batch, frames, SIZE, seed, "train", speed=(0.0, 2.0), shrink=(1.5, 2.9)), generator), True
    return training_clips(seed, batch, frames), True


def disturbed(flows, seed):
    """Flows (B, T-1, 2, h, w) with smooth errors of up to a third of a pixel, different for each clip: no flow net is exact."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for flow in flows:
        b, t, _, h, w = flow.shape
        error = torch.randn(b * t, 2, 4, 4, generator=generator)
        error = torch.nn.functional.interpolate(error, size=(h, w), mode="bicubic", align_corners=False).unflatten(0, (b, t))
        out.append(flow + error * torch.empty(b, 1, 1, 1, 1).uniform_(0, 0.3, generator=generator))
    return tuple(out)


def held_out():
    """name -> (frames (B, T, 3, H, W), true flows of the reduced clips or None)."""
    pans = footage.panned(12, 13, (96, 128), 77, "test", speed=(0.5, 5.0), shrink=(1.0, 1.3))
    return {"video": (footage.shot_frames("test")[None], None), "small clip": (footage.clip_frames("test")[None], None), "photographs": (pans.frames, pans.flows(4))}


@torch.no_grad()
def score(model):
    """Decibels on luma, mean over frames, of bicubic enlargement and of the model. Without a flow net: true flow, and none on the video."""
    table = {}
    for name, (frames, flows) in held_out().items():
        small = bicubic(frames, 1 / 4)
        if model.spynet is not None:
            flows = None
        elif flows is None:
            flows = (small.new_zeros(small.shape[0], small.shape[1] - 1, 2, *small.shape[3:]),) * 2
        out = torch.cat([model(s[None], tuple(f[i:i + 1] for f in flows) if flows else None) for i, s in enumerate(small)])
        plain = bicubic(small, 4)
        table[name] = {k: round(psnr(x.clamp(0, 1), frames, crop=4).mean().item(), 2) for k, x in (("bicubic", plain), ("model", out))}
    return table


def charbonnier(got, want):
    return ((got - want).square() + 1e-6).sqrt().mean()


def train(args, model):
    torch.manual_seed(args.seed)
    model = model.to(memory_format=torch.channels_last)                          # a quarter faster on a CPU
    net = args.flow == "net"
    flow_weights = list(model.spynet.parameters()) if net else []
    weights = [p for name, p in model.named_parameters() if not name.startswith("spynet.")]
    optimizer = torch.optim.Adam([{"params": weights}, {"params": flow_weights, "scale": 0.25}], args.peak, betas=(0.9, 0.99))
    start, running, astray = time.perf_counter(), None, 0.5
    for step in range(args.steps):
        seed = args.seed * 10**6 + step + (500_000 if net else 0)
        clip, known = later_clips(seed, BATCH, FRAMES) if net else (training_clips(seed, BATCH, FRAMES), True)
        small, truth = bicubic(clip.frames, 1 / 4), clip.flows(4)
        schedule(optimizer, args.peak, step, args.steps, warmup=50)
        with torch.autocast("cpu", torch.bfloat16):
            flows = tuple(f.float() for f in model.flows(small)) if net else disturbed(truth, seed)
            loss = charbonnier(model(small, flows).float(), clip.frames)
        total = loss
        if net and known:
            error = sum((a - b).norm(dim=2).mean() for a, b in zip(flows, truth)) / 2
            total, astray = loss + 0.05 * error, 0.98 * astray + 0.02 * error.item()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        for part in (weights, flow_weights):
            nn.utils.clip_grad_norm_(part, 0.5)
        optimizer.step()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            print(f"step {step + 1}: loss {running:.4f}, flow off by {astray:.2f}, {time.perf_counter() - start:.0f} s", end=" ", flush=True)
            if (step + 1) % (8 * args.every) == 0 or step + 1 == args.steps:
                print(score(model), end=" ")
                save(model, args)
            print(flush=True)
    return (time.perf_counter() - start) / 60


def save(model, args):
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, args.work / f"{NAMES[args.kind]}_{args.flow}.safetensors")


def ship(args, minutes):
    """The checkpoint: half precision, scores measured on what is stored."""
    state = {k: v.half().contiguous() for k, v in load_file(args.work / f"{NAMES[args.kind]}_net.safetensors").items()}
    config = dict(SHAPE, **KINDS[args.kind], spynet=pretrained.scores("spynet_emoji")["config"])
    model = TTVSR(**{**config, "spynet": SPyNet(**config["spynet"])}).eval()
    model.load_state_dict({k: v.float() for k, v in state.items()})
    command = f"data/train_ttvsr.py {args.kind} --seed {args.seed}, --flow true, then --flow net --steps {args.steps} --peak {args.peak}"
    header = {"config": config, "scores": score(model), "command": command, "seed": args.seed, "steps": args.steps, "minutes": round(minutes, 1)}
    name = NAMES[args.kind] + (f"_seed{args.seed}" if args.seed else "")
    out = Path(__file__).parent / "checkpoints" / f"{name}.safetensors"
    save_file(state, out, {k: json.dumps(v) for k, v in header.items()})
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {header}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(NAMES))
    parser.add_argument("--flow", choices=["true", "net"], default="true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--peak", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--every", type=int, default=100, help="steps between lines; scores and a file at every eighth")
    parser.add_argument("--work", type=Path, default=None, help="default: build/ttvsr_seed<seed>")
    args = parser.parse_args()
    args.work = args.work or Path(f"build/ttvsr_seed{args.seed}")
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    net = args.flow == "net"
    model = TTVSR(**SHAPE, **KINDS[args.kind], spynet=pretrained.spynet_emoji() if net else None)
    if net:
        model.load_state_dict(load_file(args.work / f"{NAMES[args.kind]}_true.safetensors"), strict=False)
    minutes = train(args, model)
    if net:
        ship(args, minutes)


if __name__ == "__main__":
    main()
