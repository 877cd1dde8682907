"""Train the plain ViT that the notebooks share, and write data/checkpoints/vit_emoji.safetensors.

    OMP_NUM_THREADS=1 python data/train_vit.py [--seed 0] [--small 900] [--large 250] [--out FILE]

48 pictograms by both artists, on the train backgrounds, on noise and on plain colours. First at 48 px (36 tokens: cheap steps, the drawings
as many pixels large as at 96 px), then at 96 px (144 tokens) with the position table resized. AdamW, one cosine over both phases.
Prints the accuracy on held-out backgrounds and stores it in the header of the file, with the model's configuration and its classes.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from vtlib.data import EASY, EmojiWorld
from vtlib.nn import resize_pos_embed
from vtlib.vit import ViT

CLASSES = [*EASY, "penguin", "frog face", "crab", "honeybee", "panda face", "tropical fish", "turtle", "owl", "snail", "lion face", "banana",
           "strawberry", "watermelon", "carrot", "broccoli", "pineapple", "cookie", "lollipop", "french fries", "birthday cake", "bus",
           "airplane", "sailboat", "bicycle", "helicopter", "fire engine", "balloon", "wrapped present", "trophy", "snowman",
           "christmas tree", "tulip", "pencil", "sunglasses", "key", "jack-o-lantern"]
CONFIG = dict(img_size=96, patch_size=8, num_classes=len(CLASSES), embed_dim=128, num_layers=6, num_heads=4)
SMALL, LARGE = (48, (0.45, 1.0), 64), (96, (0.3, 0.9), 32)  # pixels, scale of the drawing, batch
BACKGROUNDS = ("photo", "noise", "photo", "plain")
MEAN, STD = 0.5, 0.25
BINS = {"0.3-0.5": (0.3, 0.5), "0.5-0.7": (0.5, 0.7), "0.7-0.9": (0.7, 0.9)}


def resized(model, config):
    """The same weights in a ViT for another picture size."""
    other = ViT(**config)
    state = model.state_dict()
    state["pos_embed"] = resize_pos_embed(state["pos_embed"], model.grid, other.grid)
    other.load_state_dict(state)
    return other


def train(model, size, scale, batch, steps, done, total, peak, seed, warmup=40):
    """`steps` steps of AdamW; the learning rate follows one cosine over all phases."""
    world = EmojiWorld(size, "train", artist="both", pictograms=CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), peak, weight_decay=0.05, betas=(0.9, 0.98))
    model.train()
    start, losses = time.perf_counter(), []
    for step in range(done, done + steps):
        images, labels = world.classify(batch, seed=seed * 10**6 + step, scale=scale, background=BACKGROUNDS[step % len(BACKGROUNDS)])
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step - done + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model((images - MEAN) / STD), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"{size} px, step {step + 1}/{total}: loss {sum(losses[-100:]) / len(losses[-100:]):.3f}, "
                  f"{time.perf_counter() - start:.0f} s", flush=True)


def fold_normalisation(model):
    """(x - mean) / std before a linear embedding is another linear embedding: the shipped model takes images in [0, 1]."""
    proj = model.patch_embed.proj
    with torch.no_grad():
        proj.bias -= proj.weight.sum(dim=(1, 2, 3)) * MEAN / STD
        proj.weight /= STD


@torch.no_grad()
def score(model, pictures=480):
    """Accuracy on held-out backgrounds: {artist: {scale: accuracy}}."""
    model.eval()
    size, table = CONFIG["img_size"], {}
    for artist in ("noto", "twemoji"):
        world = EmojiWorld(size, "test", artist=artist, pictograms=CLASSES)
        table[artist] = {}
        for name, scale in BINS.items():
            hits = 0
            for chunk in range(pictures // 96):
                images, labels = world.classify(96, seed=990_000 + chunk, scale=scale)
                hits += (model(images).argmax(1) == labels).sum().item()
            table[artist][name] = round(hits / (pictures // 96 * 96), 3)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", type=int, default=900, help="steps at 48 px")
    parser.add_argument("--large", type=int, default=250, help="steps at 96 px")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--out", default=str(Path(__file__).parent / "checkpoints" / "vit_emoji.safetensors"))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    total = args.small + args.large
    model = ViT(**{**CONFIG, "img_size": SMALL[0]})
    train(model, *SMALL, args.small, 0, total, args.peak, args.seed)
    model = resized(model, CONFIG)
    train(model, *LARGE, args.large, args.small, total, args.peak, args.seed)
    fold_normalisation(model)
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in state.items()})
    table = score(model)
    for artist, row in table.items():
        print(f"{artist}: " + ", ".join(f"scale {scale}: {value:.3f}" for scale, value in row.items()))
    command = f"python data/train_vit.py --seed {args.seed} --small {args.small} --large {args.large} --peak {args.peak}"
    header = {"config": json.dumps(CONFIG), "classes": json.dumps(CLASSES), "accuracy": json.dumps(table), "command": command}
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out, metadata=header)
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
