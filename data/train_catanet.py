"""Train the small CATANet that the notebooks use, and the same net without token aggregation: data/checkpoints/catanet_small*.safetensors.

    OMP_NUM_THREADS=1 python data/train_catanet.py            # with token aggregation, data/checkpoints/catanet_small.safetensors
    OMP_NUM_THREADS=1 python data/train_catanet.py --local    # aggregate=False,         data/checkpoints/catanet_small_local.safetensors
    ... --seed 1                                              # data/checkpoints/catanet_small[_local]_seed1.safetensors
    python data/train_catanet.py [--local] --score            # measures the stored file again

x2, degradation BI. Pictures: crops of the photographs that are no test background, at several sizes, turned and flipped, one in eight an EmojiWorld
scene of the train split. L1 loss, Adam (0.9, 0.99) as the paper, cosine to 2 % of the peak. bfloat16 autocast, weights in float32.
Scores: test photographs, 6 crops each, PSNR and SSIM on Y with a border of 2 left out, as the paper measures; the checkpoint in half precision.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from training import schedule

from vtlib.data import EmojiWorld, assets
from vtlib.data.footage import split_names
from vtlib.superres import bicubic, psnr, ssim
from vtlib.superres.catanet import CATANet

CONFIG = dict(upscale=2, embed_dim=32, num_layers=4, qk_dim=24, mlp_dim=64, num_heads=2, patch_sizes=[8, 12], num_centres=[16, 32],
              group_sizes=[64, 32], n_iter=3, ema_decay=0.99)
CROP = 64  # of the large picture


def photographs(split):
    """Photographs of one split as they are stored, and smaller: list of (3, h, w)."""
    out = []
    for photo in assets.photographs(names=split_names(split)).values():
        for shrink in (1.0, 1.5):
            size = [round(s / shrink) for s in photo.shape[-2:]]
            if min(size) >= 2 * CROP:
                out.append(photo if shrink == 1 else F.interpolate(photo[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1))
    return out


def crops(pictures, batch, seed):
    """(batch, 3, CROP, CROP): cut anywhere, flipped and transposed at random; one in eight a scene of pictograms."""
    generator = torch.Generator().manual_seed(seed)
    out = EmojiWorld(CROP, "train", artist="both").scenes(max(1, batch // 8), seed, objects=(1, 5)).images.unbind()
    rows = list(out)
    while len(rows) < batch:
        picture = pictures[torch.randint(len(pictures), (), generator=generator)]
        y, x = (int(torch.randint(s - CROP + 1, (), generator=generator)) for s in picture.shape[-2:])
        crop = picture[:, y : y + CROP, x : x + CROP]
        flips = torch.rand(3, generator=generator) < 0.5
        crop = crop.flip(-1) if flips[0] else crop
        crop = crop.flip(-2) if flips[1] else crop
        rows.append(crop.transpose(-1, -2) if flips[2] else crop)
    return torch.stack(rows)


def held_out(size=192, each=6):
    """{photograph: (each, 3, size, size)}: crops of the test photographs at fixed places, the sharpest size there is."""
    generator, out = torch.Generator().manual_seed(990_000), {}
    for name, photo in assets.photographs(names=split_names("test")).items():
        places = [[int(torch.randint(s - size + 1, (), generator=generator)) for s in photo.shape[-2:]] for _ in range(each)]
        out[name] = torch.stack([photo[:, y : y + size, x : x + size] for y, x in places])
    return out


@torch.no_grad()
def score(model):
    """{photograph or "all": {"bicubic": (PSNR, SSIM), "model": (PSNR, SSIM)}}, means over crops."""
    table = {}
    for name, images in held_out().items():
        small = bicubic(images, 1 / 2)
        table[name] = {how: [round(f(got.clamp(0, 1), images, crop=2).mean().item(), digits) for f, digits in ((psnr, 2), (ssim, 4))]
                       for how, got in (("bicubic", bicubic(small, 2)), ("model", model(small)))}
    table["all"] = {how: [round(sum(row[how][i] for row in table.values()) / len(table), digits) for i, digits in ((0, 2), (1, 4))]
                    for how in ("bicubic", "model")}
    return table


def train(args):
    torch.manual_seed(args.seed)
    model, pictures, start = CATANet(**CONFIG, aggregate=not args.local), photographs("train"), time.perf_counter()
    optimizer = torch.optim.Adam(model.parameters(), args.peak, betas=(0.9, 0.99))
    losses = []
    for step in range(args.steps):
        schedule(optimizer, args.peak, step, args.steps, warmup=50)
        large = crops(pictures, args.batch, args.seed * 10**6 + step)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(bicubic(large, 1 / 2))
        loss = F.l1_loss(out.float(), large)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % args.every == 0:
            model.eval()
            table = score(model)["all"] if (step + 1) % (4 * args.every) == 0 else ""
            model.train()
            print(f"step {step + 1}: L1 {sum(losses[-args.every:]) / args.every:.5f} {table}, {time.perf_counter() - start:.0f} s", flush=True)
    return model, (time.perf_counter() - start) / 60


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", action="store_true", help="without token aggregation")
    parser.add_argument("--score", action="store_true", help="train nothing, measure the stored file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoints")
    args = parser.parse_args()
    config = {**CONFIG, "aggregate": not args.local}
    path = args.out / f"catanet_small{'_local' if args.local else ''}{f'_seed{args.seed}' if args.seed else ''}.safetensors"
    model, minutes = (CATANet(**config), None) if args.score else train(args)
    state = load_file(path) if args.score else model.state_dict()
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    table = score(model.eval())
    for name, row in table.items():
        print(name, row)
    if not args.score:
        header = {"config": config, "scores": table, "seed": args.seed, "steps": args.steps, "minutes": round(minutes, 1),
                  "command": f"OMP_NUM_THREADS=1 python data/train_catanet.py{' --local' if args.local else ''} --seed {args.seed} --steps {args.steps}"}
        save_file({k: v.contiguous() for k, v in state.items()}, path, {k: json.dumps(v) for k, v in header.items()})
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
