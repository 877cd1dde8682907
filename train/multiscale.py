"""Train the small models of notebook 01 on EmojiWorld with objects of mixed sizes.

    python train/multiscale.py crossvit --seed 0
    NAME: one of vtlib.multiscale.pretrained.MODELS, or "everything"

All models see the same fresh pictures, have the same optimizer and cost about the same number of
FLOPs per image (plain ViT: 15 million; fusion by all-attention: 23). One to two minutes each.
Writes data/checkpoints/mixed_NAME.safetensors; of the other fusions only mixed_NAME_seeds.json.
"""

import torch
import torch.nn.functional as F
from common import begin, command, fit, options, ship, stored

from vtlib import data
from vtlib.multiscale import pretrained

SCALES = {"small": (0.15, 0.3), "medium": (0.3, 0.55), "large": (0.55, 0.9)}
STEPS, BATCH, RATE = 800, 32, 2e-3


def world(split):
    return data.EmojiWorld(pretrained.SIZE, split, pictograms=list(pretrained.CLASSES))


def accuracy(model, images_per_scale=1000):
    """Share of right answers per object size, on backgrounds that training never shows."""
    held_out, scores = world("test"), {}
    parts = images_per_scale // 250
    for name, scale in SCALES.items():
        right = 0
        for part in range(parts):
            images, labels = held_out.classify(250, seed=10**9 + part, scale=scale, clutter=1)
            with torch.no_grad():
                right += (model(images).argmax(1) == labels).sum().item()
        scores[name] = right / (parts * 250)
    return scores


@torch.no_grad()
def branches(model):
    """Share of right answers of CrossViT's two heads alone, fine and coarse, on large objects."""
    images, labels = world("test").classify(250, seed=10**9, scale=SCALES["large"], clutter=1)
    logits = model.model.branch_logits(model.scale(images))
    return [(z.argmax(1) == labels).float().mean().item() for z in logits]


def train(name, args):
    kind, arguments = pretrained.config(name)
    torch.manual_seed(args.seed)
    model = pretrained.build(kind, arguments)
    source = world("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=args.steps, pct_start=0.1
    )

    def batch(step):
        seed = 10**6 * args.seed + step
        return source.classify(BATCH, seed=seed, scale=(0.15, 0.9), clutter=1)

    def loss(inputs):
        images, labels = inputs
        return F.cross_entropy(model(images), labels)

    return model, fit(
        batch, loss, optimizer, args.steps, rate, clip=None, autocast=False, every=args.every
    )


def main(argv=None):
    parser = options(__doc__, STEPS)
    parser.add_argument("name", choices=[*pretrained.MODELS, "everything"])
    args = begin(parser, argv)
    for name in pretrained.MODELS if args.name == "everything" else [args.name]:
        model, fitted = train(name, args)
        kind, arguments = pretrained.config(name)
        stored(model.model)
        model.eval()
        known = dict(branches=branches(model)) if kind == "CrossViT" else {}
        ship(
            args.out,
            pretrained.stem(name),
            model.model,
            lambda model=model: accuracy(model),
            config=arguments,
            command=command(__file__, name, seed=args.seed, steps=args.steps),
            seed=args.seed,
            keep=name in pretrained.SHIPPED,
            shared=dict(name=name, kind=kind, batch=BATCH),
            steps=args.steps,
            minutes=round(fitted.minutes, 1),
            **known,
        )


if __name__ == "__main__":
    main()
