"""Train the small models of notebook 01 on EmojiWorld with objects of mixed sizes.

    python data/train_multiscale.py crossvit --seed 0        NAME: one of vtlib.multiscale.pretrained.MODELS, or "everything"

All models see the same fresh pictures, have the same optimizer and cost about the same number of FLOPs per image (plain ViT: 15
million; fusion by all-attention: 23). Runs on one thread of a CPU, one to two minutes each. Writes the weights in half
precision to data/checkpoints/mixed_NAME.safetensors, with the scores in the header.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vtlib import data
from vtlib.multiscale import pretrained

SCALES = {"small": (0.15, 0.3), "medium": (0.3, 0.55), "large": (0.55, 0.9)}
STEPS, BATCH, RATE = 800, 32, 2e-3


def accuracy(model, images_per_scale=1000):
    """Share of right answers per object size, on backgrounds that training never shows."""
    world, scores = data.EmojiWorld(pretrained.SIZE, "test", pictograms=list(pretrained.CLASSES)), {}
    for name, scale in SCALES.items():
        right = 0
        for part in range(images_per_scale // 250):
            images, labels = world.classify(250, seed=10**9 + part, scale=scale, clutter=1)
            with torch.no_grad():
                right += (model(images).argmax(1) == labels).sum().item()
        scores[name] = right / (images_per_scale // 250 * 250)
    return scores


def branches(model):
    """Share of right answers of CrossViT's two heads alone, fine and coarse, on large objects."""
    world = data.EmojiWorld(pretrained.SIZE, "test", pictograms=list(pretrained.CLASSES))
    images, labels = world.classify(250, seed=10**9, scale=SCALES["large"], clutter=1)
    with torch.no_grad():
        return [(z.argmax(1) == labels).float().mean().item() for z in model.model.branch_logits(model.scale(images))]


def train(name, seed, steps=STEPS):
    """One model's weights in half precision, and what is known of it; minutes are those of the processor."""
    start = time.process_time()
    kind, arguments = pretrained.config(name)
    torch.manual_seed(seed)
    model = pretrained.build(kind, arguments)
    world = data.EmojiWorld(pretrained.SIZE, "train", pictograms=list(pretrained.CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        images, labels = world.classify(BATCH, seed=10**6 * seed + step, scale=(0.15, 0.9), clutter=1)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    half = {key: value.half() for key, value in model.model.state_dict().items()}
    model.model.load_state_dict({key: value.float() for key, value in half.items()})  # the score is that of what is stored
    scores = accuracy(model)
    minutes = round((time.process_time() - start) / 60, 1)
    command = f"python data/train_multiscale.py {name} --seed {seed}" + (f" --steps {steps}" if steps != STEPS else "")
    row = dict(name=name, seed=seed, steps=steps, batch=BATCH, accuracy=scores, minutes=minutes, command=command)
    return half, row | (dict(branches=branches(model)) if kind == "CrossViT" else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*pretrained.MODELS, "everything"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # more would only get in each other's way at this size
    folder = data.root() / "checkpoints"
    folder.mkdir(exist_ok=True)
    for name in pretrained.MODELS if args.name == "everything" else [args.name]:
        weights, row = train(name, args.seed, args.steps)
        header = {key: json.dumps(value) for key, value in row.items()}
        save_file(weights, folder / f"{pretrained.stem(name, args.seed)}.safetensors", metadata=header)
        shown = ", ".join(f"{size} {100 * score:.1f} %" for size, score in row["accuracy"].items())
        stem = pretrained.stem(name, args.seed)
        print(f"| `{stem}` | `{row['command']}` | {args.seed} | {row['minutes']} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
