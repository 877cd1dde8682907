"""Train the small UPLiFT that the notebooks use, and what it is compared with.

    OMP_NUM_THREADS=1 python train/uplift.py [--seed 0] [--steps 600] [--out FOLDER]
    OMP_NUM_THREADS=1 python train/uplift.py --score     # measures the stored files again

Features: the shipped ViT (vit_emoji, patch 8, D = 128) after four of its six blocks,
`ViT.feature_map`. Pictures: EmojiWorld scenes of 192 px, train pictograms and backgrounds; depth 3
as the paper's DINOv2 model: grids of 24 x 24 are the largest target, 3 x 3 the smallest input. Four
models see the same pictures in the same order; Adam, cosine, at most 2e-3 (official: 1e-3, for far
more steps):

    uplift_emoji            UPLiFT, n = 17, all 6 terms of the loss
    uplift_emoji_onestep    the same model, but every level trains its first step only (3 terms)
    uplift_emoji_free       the same without an attender: the decoder writes features itself
    uplift_emoji_cross      `CrossAttentionUpsampler`, one jump by 2, 4 or 8, 6 terms

Scores on held-out backgrounds and pictograms: normalised error after 1, 2, 3 doublings of 3 x 3
grids (24 px) to the features of 48, 96 and 192 px; and mIoU at 96 px of a linear probe on dense
features (12 pictograms and background).
"""

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, options, ship

from vtlib.data import EASY, EmojiWorld
from vtlib.superres import pretrained
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.uplift import UPLiFT, loss_terms, pyramid
from vtlib.vit import vit_emoji

SIZE, DEPTH, BLOCKS, STEPS = 192, 3, 4, 600
SMALL = dict(in_channels=128, patch_size=8, encoder=[8, 16, 32, 48, 48], decoder=[48, 48])
CROSS = dict(in_channels=128, encoder=[8, 16, 32, 48], dim=48)
MODELS = {
    "uplift_emoji": (UPLiFT, SMALL),
    "uplift_emoji_onestep": (UPLiFT, SMALL),
    "uplift_emoji_free": (UPLiFT, {**SMALL, "num_neighbours": None}),
    "uplift_emoji_cross": (CrossAttentionUpsampler, CROSS),
}
BACKGROUNDS = ("photo", "photo", "noise", "photo", "plain")
NUM_CLASSES = 1 + len(EASY)


def scenes(batch, seed, split="train", size=SIZE):
    """Pictures only; drawings of 30 to 90 px at 192 px, as those that the ViT was trained on."""
    background = "photo" if split == "test" else BACKGROUNDS[seed % len(BACKGROUNDS)]
    world = EmojiWorld(size, split, artist="both")
    return world.scenes(
        batch, seed, objects=(1, 5), scale=(0.15, 0.48), background=background
    ).images


def cross_terms(model, backbone, images, depth):
    """The same targets as `loss_terms`, each reached in one jump."""
    copies = pyramid(images, depth)
    features = [backbone(copy) for copy in copies]
    terms = {}
    for level in range(depth):
        for step in range(level + 1):
            want = features[level - step]
            got = model(copies[level + 1], features[level + 1], want.shape[-2:])
            terms[level, step] = F.mse_loss(got.float(), want.float())
    return terms


def terms(name, model, backbone, images):
    if name.endswith("cross"):
        return cross_terms(model, backbone, images, DEPTH)
    return loss_terms(model, backbone, images, DEPTH, multi_step=not name.endswith("onestep"))


def once(vit):
    """A backbone that computes the features of each size of one batch once, for all models."""
    kept = {}

    def backbone(copy):
        if copy.shape not in kept:
            with torch.no_grad():
                kept[copy.shape] = vit.feature_map(copy, BLOCKS).float()
        return kept[copy.shape]

    return backbone


def train(args, vit):
    """All models at once: one optimizer, for the gradient of a sum is each model's own."""
    torch.manual_seed(args.seed)
    models = {name: MODELS[name][0](**MODELS[name][1]) for name in MODELS if name in args.only}
    weights = [p for model in models.values() for p in model.parameters()]
    optimizer = torch.optim.Adam(weights, args.peak)

    def batch(step):
        return scenes(args.batch, args.seed * 10**6 + step, size=args.size)

    def loss(images):
        backbone, total, row = once(vit), 0.0, {}
        for name, model in models.items():
            parts = terms(name, model, backbone, images)
            value = sum(parts.values())
            row[name.removeprefix("uplift_emoji") or "uplift"] = value.item() / len(parts)
            total = total + value
        return total, row

    rate = cosine(args.peak, args.steps, warmup=20)
    return models, fit(batch, loss, optimizer, args.steps, rate, clip=None, every=args.every)


# ------------------------------------------------------------------------------------------ scores
def error(got, want):
    """Mean squared error over the variance of the truth around each channel's mean."""
    spread = want - want.mean((0, 2, 3), keepdim=True)
    return ((got - want).square().mean() / spread.square().mean()).item()


def enlarge(features, how, **size):
    """Plain interpolation; bilinear looks at centres of pixels."""
    corners = {} if how == "nearest" else {"align_corners": False}
    return F.interpolate(features, mode=how, **size, **corners)


@torch.no_grad()
def drift(model, vit, pictures=32, start=24):
    """Normalised errors after 1, 2, 3 doublings from the features of copies of `start` px.

    "nearest" and "bilinear" may stand in place of a model.
    """
    copies = pyramid(scenes(pictures, 990_000, "test", 8 * start), 3)
    truth = [vit.feature_map(copy, BLOCKS) for copy in copies]
    if isinstance(model, str):
        outs = [enlarge(truth[3], model, scale_factor=2**t) for t in (1, 2, 3)]
    elif isinstance(model, CrossAttentionUpsampler):
        outs = [model(copies[3], truth[3], truth[3 - t].shape[-2:]) for t in (1, 2, 3)]
    else:
        outs = model(copies[3], truth[3], iterations=3, return_steps=True)
    return [round(error(out, truth[2 - t]), 3) for t, out in enumerate(outs)]


def dense(model, vit, images):
    """(B, 128, H, W)."""
    features = vit.feature_map(images, BLOCKS)
    if isinstance(model, str):
        return enlarge(features, model, size=images.shape[-2:])
    return model(images, features)


def probe_scenes(batch, seed, split):
    world = EmojiWorld(96, split, artist="both", pictograms=list(EASY))
    return world.scenes(batch, seed, objects=(1, 3), scale=(0.3, 0.6))


def linear_probe(inputs, labels):
    """Weight and bias of a linear classifier, from zeros by L-BFGS."""
    weight = torch.zeros(NUM_CLASSES, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(NUM_CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60)

    def closure():
        optimizer.zero_grad()
        logits = F.linear(inputs, weight, bias)
        value = F.cross_entropy(logits, labels) + 1e-4 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weight.detach(), bias.detach()


@torch.no_grad()
def probe_pixels(model, vit, pictures, per_picture, seed):
    """Dense features and labels of `per_picture` pixels of each picture."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = [], []
    part = min(32, pictures)
    for k in range(pictures // part):
        scene = probe_scenes(part, 500_000 + k, "train")
        pick = torch.rand(part, 96 * 96, generator=generator).topk(per_picture).indices
        features = dense(model, vit, scene.images).flatten(2)
        features = features.gather(2, pick[:, None].expand(-1, features.shape[1], -1))
        inputs.append(features.mT.flatten(0, 1))
        labels.append(scene.semantic("pictogram").flatten(1).gather(1, pick).flatten())
    return torch.cat(inputs), torch.cat(labels)


def probe(model, vit, pictures=192, held_out=64, per_picture=256, seed=0):
    """mIoU at 96 px of a linear probe (13 classes) trained on dense features.

    Args:
        model: an upsampler, or "nearest" or "bilinear".
        vit: the backbone.
        pictures: that the probe is trained on.
        held_out: pictures that it is measured on.
        per_picture: pixels of each training picture.
        seed: of the choice of pixels.
    """
    weight, bias = linear_probe(*probe_pixels(model, vit, pictures, per_picture, seed))
    both, either = torch.zeros(NUM_CLASSES), torch.zeros(NUM_CLASSES)
    with torch.no_grad():
        part = min(32, held_out)
        for k in range(held_out // part):
            scene = probe_scenes(part, 990_100 + k, "test")
            logits = torch.einsum("bchw,kc->bkhw", dense(model, vit, scene.images), weight)
            got = logits.add(bias[:, None, None]).argmax(1)
            want = scene.semantic("pictogram")
            for c in range(NUM_CLASSES):
                both[c] += ((got == c) & (want == c)).sum()
                either[c] += ((got == c) | (want == c)).sum()
    return round((both / either).nanmean().item(), 3)  # few pictures may not show all classes


def score(model, vit, drifting=32, pictures=192, held_out=64):
    """What the header says.

    Args:
        model: an upsampler, or "nearest" or "bilinear".
        vit: the backbone.
        drifting: pictures that the errors are measured on.
        pictures: that the probe is trained on.
        held_out: pictures that the probe is measured on.
    """
    return {
        "error after 1, 2, 3 doublings": drift(model, vit, drifting),
        "mIoU of a linear probe": probe(model, vit, pictures, held_out),
    }


def main(argv=None):
    parser = options(__doc__, STEPS, every=50, size=SIZE)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--score", action="store_true", help="measure the stored files again")
    few = dict(drifting=4, pictures=8, held_out=8)
    args = begin(parser, argv, batch=2, size=64, scored=few)
    vit, _ = vit_emoji()
    if args.score:
        for name in ("nearest", "bilinear"):
            print(name, score(name, vit, **args.scored), flush=True)
        for name in args.only:
            variant = name.removeprefix("uplift_emoji").strip("_") or None
            stored = pretrained.uplift_emoji(variant)
            print(name, score(stored, vit, **args.scored), flush=True)
        return
    models, fitted = train(args, vit)
    for name, model in models.items():
        ship(
            args.out,
            name,
            model,
            lambda model=model: score(model, vit, **args.scored),
            config=MODELS[name][1],
            command=command(__file__, seed=args.seed, steps=args.steps),
            seed=args.seed,
            steps=args.steps,
            minutes=round(fitted.minutes, 1),
        )


if __name__ == "__main__":
    main()
