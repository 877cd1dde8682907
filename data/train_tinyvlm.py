"""Train TinyVLM, the small vision-language model that pruning is tried on, and write data/checkpoints/tinyvlm.safetensors.

    OMP_NUM_THREADS=1 python data/train_tinyvlm.py see        # 1. the encoder, from exact masks      -> WORK/see.safetensors
    OMP_NUM_THREADS=1 python data/train_tinyvlm.py read       # 2. projector and decoder, encoder frozen -> WORK/read.safetensors
    OMP_NUM_THREADS=1 python data/train_tinyvlm.py all        # 3. everything at a low rate, scores, the checkpoint

Each step starts from what the one before wrote (WORK: --work, default /tmp/tinyvlm) and takes --steps, --seed. All in bfloat16 autocast,
the weights in float32.

Held out from training: the test backgrounds; and of every fifth pictogram the drawing by Twemoji. On the test side these pictograms appear in
just that drawing.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn

from vtlib.data import EmojiWorld
from vtlib.data.text import WORDS
from vtlib.vlm.encoder import Encoder

PICTOGRAMS = ["octopus", "butterfly", "penguin", "crab", "turtle", "sunflower", "cactus", "snail", "banana", "strawberry", "watermelon", "carrot",
              "pineapple", "doughnut", "slice of pizza", "automobile", "rocket", "umbrella", "sailboat", "helicopter", "bicycle", "balloon", "trophy",
              "soccer ball", "wrapped present", "guitar", "key", "pencil", "sunglasses", "bell"]
HELD_OUT = [k for k in range(len(PICTOGRAMS)) if k % 5 == 2]
SMALL, LARGE = 64, 128
SCALE = {SMALL: (0.28, 0.85), LARGE: (0.14, 0.45)}
OBJECTS = {SMALL: (1, 3), LARGE: (1, 5)}


def world(size, split):
    """Train: of the held-out pictograms only Noto's drawings. Test: of those only Twemoji's, on unseen backgrounds."""
    other = "noto" if split == "train" else "twemoji"
    return EmojiWorld(size, split, artist=[other if k in HELD_OUT else "both" for k in range(len(PICTOGRAMS))], pictograms=PICTOGRAMS)


def scenes(place, batch, seed, **options):
    size = place.size[0]
    return place.scenes(batch, seed, **{**dict(objects=OBJECTS[size], scale=SCALE[size], repeat=0.4, signs=0.3), **options})


# ---------------------------------------------------------------------------------------------------------------- 1. see
def patch_labels(scene, patch=8):
    """What each patch shows, from the exact masks.

    label (B, N) long: 0 background, 1 + pictogram, then 1 + pictograms + word on a sign; -1 where less than half is clear.
    place (B, N, 3): from the patch's middle to the middle of its object's box (x, y) in units of the picture, and the object's scale.
    """
    sign = scene.sign if scene.sign is not None else torch.zeros_like(scene.instance, dtype=torch.bool)
    cover = torch.cat([(~scene.masks.any(1) & ~sign)[:, None], scene.masks, sign[:, None]], 1).float()
    cover = rearrange(F.avg_pool2d(cover, patch), "b k h w -> b (h w) k")
    cover[..., 0] *= 0.4                                                         # an object wins from about 30 % of the patch
    most = cover.argmax(-1)                                                      # b n
    word = torch.tensor([WORDS.index(w) if w else 0 for w in scene.words or [None] * len(scene)])
    names = torch.cat([torch.zeros(len(scene), 1, dtype=torch.long), scene.pictogram + 1, (1 + len(scene.classes) + word)[:, None]], 1)
    label = names.gather(1, most)
    x0, y0, x1, y1 = (scene.boxes / scene.size[0]).unbind(-1)
    h, w = scene.size[0] // patch, scene.size[1] // patch
    at = torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij"), -1).reshape(-1, 2)
    spot = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, scene.scale], -1)          # b k 3
    slot = (most - 1).clamp(0, spot.shape[1] - 1)
    target = spot.gather(1, slot[..., None].expand(-1, -1, 3)).clone()
    target[..., 0] -= at[:, 1]
    target[..., 1] -= at[:, 0]
    thing = (most > 0) & (most <= spot.shape[1])
    middle = target[..., :2].abs().amax(-1) * h < 0.5                           # the patch that holds its object's middle
    return label, target, thing, middle & thing


def presence(scene):
    """(B, pictograms + words) float: what the picture holds."""
    there = torch.zeros(len(scene), 1 + len(scene.classes) + len(WORDS))
    label, *_ = patch_labels(scene)
    return there.scatter(1, label, 1.0)[:, 1:]


class Heads(nn.Module):
    """What the encoder is trained through: patch classes, place and middle; what [CLS] saw."""

    def __init__(self, dim):
        super().__init__()
        self.patch = nn.Linear(dim, 1 + len(PICTOGRAMS) + len(WORDS))
        self.place = nn.Linear(dim, 4)
        self.cls = nn.Linear(dim, len(PICTOGRAMS) + len(WORDS))
        self.cls_selected = nn.Linear(dim, len(PICTOGRAMS) + len(WORDS))
        self.norm = nn.LayerNorm(dim)


def see_loss(encoder, heads, scene):
    label, target, thing, middle = patch_labels(scene)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(scene.images)
        selected = heads.norm(out["selected"])
        patches = selected[:, encoder.num_prefix:]
        logits, place = heads.patch(patches).float(), heads.place(patches).float()
        cls = heads.cls(encoder.norm(out["last"][:, 0])).float(), heads.cls_selected(selected[:, 0]).float()
    weight = torch.ones(logits.shape[-1])
    weight[0] = 0.25
    there = presence(scene)
    parts = {
        "patch": F.cross_entropy(logits.flatten(0, 1), label.flatten(), weight),
        "place": (F.smooth_l1_loss(place[..., :3], target, reduction="none", beta=0.05).sum(-1) * thing).sum() / thing.sum().clamp(min=1),
        "middle": F.binary_cross_entropy_with_logits(place[..., 3], middle.float(), pos_weight=torch.tensor(8.0)),
        "cls": sum(F.binary_cross_entropy_with_logits(c, there, pos_weight=torch.tensor(4.0)) for c in cls),
    }
    loss = parts["patch"] + 4 * parts["place"] + parts["middle"] + 2 * parts["cls"]
    right = (logits.argmax(-1) == label)
    return loss, {**{k: v.item() for k, v in parts.items()}, "object patches right": right[thing].float().mean().item(),
                  "sign patches right": right[label > len(PICTOGRAMS)].float().mean().item()}


def schedule(optimizer, peak, step, total, warmup=60):
    for group in optimizer.param_groups:
        group["lr"] = peak * group.get("scale", 1.0) * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))


def report(step, total, rows, start):
    keys = rows[-1]
    print(f"step {step}/{total}: " + ", ".join(f"{k} {sum(r[k] for r in rows if r[k] == r[k]) / max(1, sum(r[k] == r[k] for r in rows)):.3f}" for k in keys)
          + f", {time.perf_counter() - start:.0f} s", flush=True)


def see(args):
    torch.manual_seed(args.seed)
    encoder, start = Encoder(), time.perf_counter()
    heads = Heads(encoder.norm.weight.shape[0])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], args.peak or 2e-3, weight_decay=0.02, betas=(0.9, 0.98))
    small, total, rows = int(args.steps * 0.7), args.steps, []
    for step in range(total):
        size, batch = (SMALL, 64) if step < small else (LARGE, 32)
        schedule(optimizer, args.peak or 2e-3, step, total)
        loss, row = see_loss(encoder, heads, scenes(world(size, "train"), batch, args.seed * 10**6 + step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        rows.append(row)
        if (step + 1) % 100 == 0:
            report(step + 1, total, rows[-100:], start)
        if (step + 1) % 500 == 0 or step + 1 == total:
            save_file({**{f"encoder.{k}": v for k, v in encoder.state_dict().items()}, **{f"heads.{k}": v for k, v in heads.state_dict().items()}},
                      args.work / "see.safetensors")
    with torch.no_grad():
        rows = [see_loss(encoder, heads, scenes(world(LARGE, "test"), 64, 990_000 + k))[1] for k in range(4)]
    report(total, total, rows, start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["see", "read", "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--peak", type=float, default=None)
    parser.add_argument("--work", type=Path, default=Path("/tmp/tinyvlm"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"see": see}[args.step](args)


if __name__ == "__main__":
    main()
