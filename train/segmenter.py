"""Train the plain ViT for segmentation that Expedit is put into: segmenter_emoji.safetensors.

    OMP_NUM_THREADS=1 python train/segmenter.py [--seed 0] [--steps 500] [--out FOLDER]

It begins as the shipped classifier (vit_emoji: patch 8, D = 128, 6 blocks): patch embedding and the
first four blocks stay as they are, the last two, the norm and a linear head for every token are
trained, and these alone are stored. Pictures of 128 px (256 tokens), twelve pictograms
(`vtlib.data.EASY`) on the train backgrounds. AdamW, warm-up, one cosine.

Scored on held-out backgrounds: mIoU of all pixels and near borders, with all tokens, and with an
hourglass behind each block, which no weight was trained for. Its tau is chosen on scenes with train
backgrounds. Another seed's scores go to segmenter_emoji_seeds.json.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, options, rounded, ship, stored

from vtlib.hub import Dropping, Merging, hourglass
from vtlib.segmentation import Expedit, MeanIoU, Pooling, pixel_cross_entropy
from vtlib.segmentation.linear_segmenter import (
    linear_scenes,
    linear_start,
    linear_world,
    tuned_part,
)

CONFIG = dict(
    img_size=128, patch_size=8, num_classes=13, embed_dim=128, num_layers=6, num_heads=4
)
FROZEN, STEPS, BATCH, PEAK = 4, 500, 8, 8e-4
K, SHARPNESS = 10, (1, 3, 10, 30)
"""Centres that a token is rebuilt from; tau is one of these over the mean squared distance of
tokens side by side."""


def train(args):
    torch.manual_seed(args.seed)
    model = linear_start(**CONFIG)
    part = tuned_part(model, FROZEN)
    model.requires_grad_(False)
    part.requires_grad_(True)
    world = linear_world("train")
    optimizer = torch.optim.AdamW(
        part.parameters(), args.peak, weight_decay=0.05, betas=(0.9, 0.98)
    )
    model.train()

    def batch(step):
        return linear_scenes(world, args.batch, args.seed * 10**6 + step)

    def loss(inputs):
        return pixel_cross_entropy(model(inputs[0]), inputs[1])

    rate = cosine(args.peak, args.steps, warmup=40, floor=0.0)
    fitted = fit(batch, loss, optimizer, args.steps, rate, autocast=False, every=args.every)
    return model, fitted.minutes


@torch.no_grad()
def choose_tau(model, pictures=32):
    """{blocks before the hourglass: the tau of `SHARPNESS` with the best mIoU}.

    Args:
        model: in eval mode.
        pictures: scenes with train backgrounds.
    """
    part = linear_scenes(linear_world("train"), pictures, 980_000)
    x, best = model.embed(part[0])[0], {}
    for after, block in enumerate(model.blocks[:-1], start=1):
        x = block(x)
        tokens = x[:, 1:].unflatten(1, model.grid)
        apart = (tokens[:, :, 1:] - tokens[:, :, :-1]).square().sum(-1).mean().item()
        found = {}
        for sharp in SHARPNESS:
            tau = float(f"{sharp / apart:.2g}")
            with hourglass(model, Expedit((8, 8), tau=tau, k=K, normalise="sum"), after):
                found[tau] = quality(model, [part])["all"]
        best[after] = max(found, key=found.get)
        print(f"behind block {after}: {found}", flush=True)
    return best


def ways(after, tau):
    """{name: reduction} for an hourglass behind so many blocks: every rival at two sizes."""
    found = {}
    for side in (8, 10):
        expedit = Expedit((side, side), tau=tau, k=K, normalise="sum")
        found |= {
            f"expedit {side}": expedit,
            f"pooling {side}": Pooling((side, side)),
            f"dropping {side}": Dropping(side * side),
            f"merging {side}": Merging(side * side),
        }
        if after == 3:                                     # what the rounds of the clustering give
            for rounds in (0, 1):
                found[f"expedit {side}, {rounds} rounds"] = replace(expedit, iterations=rounds)
    return found


@torch.no_grad()
def quality(model, parts):
    """{"all", "border"}: mIoU of all pixels, and of those within 4 pixels of an edge of the truth.

    Args:
        model: images -> logits.
        parts: (images, classes) of several batches.
    """
    everywhere, border = MeanIoU(CONFIG["num_classes"]), MeanIoU(CONFIG["num_classes"])
    for images, truth in parts:
        found, plane = model(images).argmax(1), truth[:, None].float()
        highest = F.max_pool2d(plane, 9, stride=1, padding=4)
        lowest = -F.max_pool2d(-plane, 9, stride=1, padding=4)
        everywhere.update(found, truth)
        border.update(found, truth.masked_fill((highest == lowest)[:, 0], 255))
    return rounded({"all": everywhere.mean(), "border": border.mean()}, 4)


def score(model, taus, batches=3, pictures=32):
    """mIoU on held-out backgrounds: as trained, and {"alpha": {way: mIoU}} with an hourglass.

    Args:
        model: in eval mode.
        taus: of `choose_tau`.
        batches: how many.
        pictures: of a batch.
    """
    world = linear_world("test")
    seeds = range(990_000, 990_000 + batches)
    parts = [linear_scenes(world, pictures, seed) for seed in seeds]
    table = {"all tokens": quality(model, parts)}
    for after, tau in taus.items():
        table[str(after)] = {}
        for name, reduction in ways(after, tau).items():
            with hourglass(model, reduction, after):
                table[str(after)][name] = quality(model, parts)
    return table


def main(argv=None):
    few = dict(batches=1, pictures=8)
    args = begin(
        options(__doc__, STEPS, batch=BATCH, peak=PEAK, chosen=32), argv, batch=2, chosen=4,
        scored=few,
    )
    model, minutes = train(args)
    stored(model)
    taus = choose_tau(model, args.chosen)
    ship(
        args.out,
        "segmenter_emoji",
        tuned_part(model, FROZEN),
        lambda: score(model, taus, **args.scored),
        config=CONFIG,
        shared=dict(frozen=FROZEN, k=K),
        tau=taus,
        command=command(__file__, seed=args.seed, steps=args.steps),
        seed=args.seed,
        steps=args.steps,
        minutes=round(minutes, 1),
    )


if __name__ == "__main__":
    main()
