"""Train the dual encoder of CrossGET on EmojiWorld: data/checkpoints/crossget_clip.safetensors.

    OMP_NUM_THREADS=1 python train/crossget.py [--seed 0] [--steps 2000] [--out FOLDER]

Pictures of 64 px with three pictograms; captions name those of one list and never those of another
(vtlib/pruning/pretrained.py). Every step draws how many tokens each layer merges, and whether the
cross token has a say in it, so that no setting is at home in the test. AdamW, warm-up, one cosine,
bfloat16 autocast. Stored, on held-out backgrounds: the recall for several r with guidance, without
it and with its opposite, which parts of the picture are merged away, and both losses. Another
seed's numbers go to crossget_clip_seeds.json (`vtlib.checkpoints.seeds`).
"""

import random

import torch
from common import (
    begin,
    command,
    cosine,
    decayed,
    fit,
    options,
    rounded,
    same_captions,
    ship,
    stored,
)

from vtlib.nn import patchify
from vtlib.pruning import pretrained
from vtlib.pruning.crossget_encoder import CrossGETCLIP

CONTEXT = 19
CONFIG = dict(
    img_size=pretrained.SIZE,
    patch_size=8,
    vision_dim=128,
    vision_heads=4,
    context=CONTEXT,
    text_dim=96,
    text_heads=3,
    num_layers=4,
    embed_dim=64,
    r_image=8,
    r_text=1,
)
STEPS, BATCH, PEAK, WARMUP, WEIGHT = 2000, 64, 1.5e-3, 100, 0.5
RATES, GUIDANCE = (0, 4, 8, 12), (0.0, 1.0)
WAYS = {
    "guided": (1.0, "complete"),
    "unguided": (0.0, "complete"),
    "inverted": (-1.0, "complete"),
    "bipartite": (1.0, "bipartite"),
}
MEAN, STD = 0.5, 0.25


def train(args, words, config):
    torch.manual_seed(args.seed)
    model = CrossGETCLIP(**config)
    world, rng = pretrained.world("train"), random.Random(args.seed)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(decayed(weights, 0.05), PEAK, betas=(0.9, 0.98))
    model.train()

    def batch(step):
        return pretrained.pictures(world, args.batch, args.seed * 10**6 + step)

    def loss(part):
        r, guidance = rng.choice(RATES), rng.choice(GUIDANCE)
        images = (part.images - MEAN) / STD
        losses = model.losses(
            images, words(part.captions), same_captions(part.captions), r=r, guidance=guidance
        )
        value = (1 - WEIGHT) * losses["ita"] + WEIGHT * losses["kd"]
        return value, {name: losses[name].item() for name in ("ita", "kd")}

    rate = cosine(PEAK, args.steps, WARMUP, floor=0.0)
    fitted = fit(batch, loss, optimizer, args.steps, rate, parts=[weights], every=args.every)
    fold_normalisation(model)
    return model, fitted


@torch.no_grad()
def fold_normalisation(model):
    """(x - mean) / std before an embedding without bias: another embedding and a constant.

    The constant goes into the positions.
    """
    conv = model.visual.conv1
    model.visual.positional_embedding[1:] -= conv.weight.sum(dim=(1, 2, 3)) * MEAN / STD
    conv.weight /= STD


def fate(plans, num_tokens):
    """(B, t) bool: tokens that some layer merged into another one."""
    total = None
    for plan in plans:
        if plan is not None:
            total = plan if total is None else total.then(plan)
    if total is None:
        return torch.zeros(1, num_tokens, dtype=torch.bool)
    return ~total.kept()


def recall(model, words, part, image):
    """Right answers, picture to text and back."""
    logits = model.logits(image.feature, model.encode_text(words(part.captions)).feature)
    right = same_captions(part.captions)
    return torch.stack([right.gather(1, logits.argmax(axis)[:, None]).sum() for axis in (1, 0)])


def merged_patches(part, image):
    """(3, 2): merged and all patches of named objects, other objects, the background.

    A patch is an object's when more than half of it is.
    """
    gone = fate(image.plans, 66)[:, 1:-1].expand(len(part.images), -1)
    masks = (part.spoken, part.silent)
    spoken, silent = (patchify(mask[:, None].float(), 8).mean(-1) for mask in masks)
    places = (spoken > 0.5, silent > 0.5, (spoken + silent) == 0)
    return torch.stack([torch.stack([(gone & place).sum(), place.sum()]) for place in places])


@torch.no_grad()
def score(model, words, pictures=1024, pool=256):
    """What `vtlib.pruning.pretrained.crossget_clip` describes.

    Args:
        model: in eval mode.
        words: of its captions.
        pictures: how many are shown.
        pool: how many of them are told apart.
    """
    world, table = pretrained.world("test"), {}
    parts = [pretrained.pictures(world, pool, 990_000 + i) for i in range(pictures // pool)]
    settings = [("r=0", 0, *WAYS["guided"])]
    settings += [(f"r={r} {way}", r, *WAYS[way]) for r in (8, 16, 24, 32) for way in WAYS]
    for name, r, guidance, method in settings:
        hits, merged = torch.zeros(2), torch.zeros(3, 2)
        for part in parts:
            image = model.encode_image(part.images, r, guidance, method)
            hits += recall(model, words, part, image) / pictures
            merged += merged_patches(part, image)
        numbers = hits.tolist() + (merged[:, 0] / merged[:, 1]).tolist()
        names = ("i2t", "t2i", "spoken", "silent", "background")
        table[name] = rounded(dict(zip(names, numbers, strict=True)), 4)
    return table


@torch.no_grad()
def held_out_losses(model, words, batch=BATCH, batches=16):
    """Both losses on held-out backgrounds, means over batches of pictures; r = 8, guided.

    Args:
        model: in eval mode.
        words: of its captions.
        batch: pictures of a batch.
        batches: how many.
    """
    world, found = pretrained.world("test"), []
    for i in range(batches):
        part = pretrained.pictures(world, batch, 980_000 + i)
        losses = model.losses(part.images, words(part.captions), same_captions(part.captions), r=8)
        found.append([losses["ita"], losses["kd"]])
    means = torch.tensor(found).mean(0).tolist()
    return rounded(dict(zip(("ita", "kd"), means, strict=True)), 4)


def main(argv=None):
    few = dict(pictures=64, pool=64)
    args = begin(options(__doc__, STEPS, batch=BATCH), argv, batch=8, scored=few)
    words = pretrained.Words(pretrained.vocabulary(), CONTEXT)
    config = dict(CONFIG, vocab=len(words))
    model, fitted = train(args, words, config)
    stored(model)
    ship(
        args.out,
        "crossget_clip",
        model,
        lambda: score(model, words, **args.scored),
        config=config,
        shared=dict(words=words.words, spoken=pretrained.SPOKEN, silent=pretrained.SILENT),
        command=command(__file__, seed=args.seed, steps=args.steps),
        seed=args.seed,
        steps=args.steps,
        losses=held_out_losses(model, words, args.batch),
        minutes=round(fitted.minutes, 1),
    )


if __name__ == "__main__":
    main()
