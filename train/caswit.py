"""Train the small CASWiT that the notebooks use, and what it is compared with.

    OMP_NUM_THREADS=1 python train/caswit.py stages [--seed 0] [--steps 1200] [--out FOLDER]
    OMP_NUM_THREADS=1 python train/caswit.py pretraining [--seed 0] [--steps 300]

Pictures: `EmojiWorld.biomes`, 1024 x 1024 pixels: white silhouettes, half of them outlines of four
pixels, each pixel of which belongs to the biome of the nearest marker (about 0.6 markers a crop, 10
a window). Crops of 64 pixels; the context covers four times their side, 256 pixels, and has 64 x 64
pixels (the paper's factor is 2; at 4 a crop says less and outlines are lost in the context). Three
stages; crops and contexts are the same for all, in the same order:

    stages      caswit_emoji: fusion after each stage, auxiliary loss 0.4 on the context branch
    late        fusion after the last stage only
    noaux       as stages, without the auxiliary loss
    crop        the crop's encoder alone (no score of it is shipped)
    pretraining     masked reconstruction (SimMIM's loss) with the right context, with the context
                of another crop, and with the crop's copy in the context left visible; then a linear
                classifier on the frozen maps

The weights of "stages" are kept, of the others the scores. Scores on pictograms and backgrounds
that were not seen, 676 crops of four pictures; biome: how often a silhouette's pixel is given to
the right one of the two biomes; borders: the same where another biome begins within 8 pixels;
boundary IoU: within one pixel of outlines (`boundary_iou`).
"""

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, options, rounded, ship
from torch import nn

from vtlib.data import EmojiWorld
from vtlib.segmentation import (
    CASWiT,
    MaskedPretraining,
    MeanIoU,
    boundary_iou,
    caswit_loss,
    cut,
    cut_labels,
)
from vtlib.segmentation.heads import resize

CROP, FACTOR, SIDE = 64, 4, 1024
WINDOW = CROP * FACTOR
CONFIG = dict(
    num_classes=3, embed_dim=24, depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=4,
    mlp_ratio=2.0, drop_path=0.0, factor=FACTOR, code_scale=3.0, fuse_at=[0, 1, 2], decoder="mlp",
    channels=48,
)
KINDS = {
    "stages": ("caswit_emoji", CONFIG, 0.4),
    "late": ("caswit_emoji_late", {**CONFIG, "fuse_at": [2]}, 0.4),
    "noaux": ("caswit_emoji_noaux", CONFIG, 0.0),
    "crop": ("caswit_emoji_crop", CONFIG, 0.0),
}
WAYS = ("own", "another crop's", "own, centre visible")
UNIT = 16
STEPS, BATCH, PEAK = 1200, 16, 2e-3


# ------------------------------------------------------------------------------------------ data
def pictures(count, seed, split="train", side=SIDE):
    """Large pictures as bytes (N, 3, side, side); labels and biomes (N, side, side)."""
    world = EmojiWorld(32, split, "both")
    made = [world.biomes(side, side, seed + i) for i in range(count)]
    images = torch.stack([(b.image * 255).round().to(torch.uint8) for b in made])
    maps = [torch.stack([getattr(b, n).to(torch.uint8) for b in made]) for n in MAPS]
    return images, *maps


MAPS = ("labels", "territory")


def windows(pool, which, rows, cols):
    """Crops and contexts in [0, 1], and labels of both, around windows of a pool.

    Args:
        pool: images and labels of `pictures`.
        which: picture of each window.
        rows: first row of each.
        cols: first column.
    """
    at = [slice(y, y + WINDOW) for y in rows], [slice(x, x + WINDOW) for x in cols]
    cells = list(zip(which, *at, strict=True))
    images = torch.stack([pool[0][i, :, y, x] for i, y, x in cells]).float() / 255
    labels = torch.stack([pool[1][i, y, x] for i, y, x in cells]).long()
    where = ((WINDOW - CROP) // 2,) * 2, (CROP, CROP), FACTOR
    return *cut(images, *where), *cut_labels(labels, *where)


def turned(tensors, seed):
    """All turned and mirrored alike, in one of eight ways."""
    out = [t.transpose(-2, -1) for t in tensors] if seed % 2 else tensors
    axes = [axis for axis, bit in ((-1, 2), (-2, 4)) if seed & bit]
    return [t.flip(axes).contiguous() for t in out]


def random_windows(pool, batch, seed):
    """`windows` anywhere in a pool; the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    room = pool[0].shape[-1] - WINDOW + 1
    which = torch.randint(len(pool[0]), (batch,), generator=generator).tolist()
    rows, cols = torch.randint(room, (2, batch), generator=generator).tolist()
    return windows(pool, which, rows, cols)


def all_windows(pool):
    """Starts of windows whose crops lie side by side."""
    places = range(0, pool[0].shape[-1] - WINDOW + 1, CROP)
    return [(i, y, x) for i in range(len(pool[0])) for y in places for x in places]


# ---------------------------------------------------------------------------------------- scores
def near_border(territory, reach=8):
    """Pixels with another biome at most `reach` pixels away: (B, H, W) long -> bool."""
    x = territory[:, None].float()
    high, low = F.max_pool2d(x, 2 * reach + 1, 1, reach), F.max_pool2d(-x, 2 * reach + 1, 1, reach)
    return (high + low)[:, 0] > 0


def measure(logits, labels, territory):
    """What the header has of scores (B, 3, h, w)."""
    guess, iou = logits.argmax(1), MeanIoU(3)
    iou.update(guess, labels)
    thing, edge = labels > 0, near_border(territory)
    right = logits[:, 1:].argmax(1) + 1 == labels
    return {
        "mIoU": iou.mean(),
        "boundary IoU": boundary_iou(guess, labels, 3, 1)[1:].mean().item(),
        "biome": right[thing].float().mean().item(),
        "borders": right[thing & edge].float().mean().item(),
    }


@torch.no_grad()
def score(net, kind="stages", count=4, side=SIDE, crops=52):
    """Measures of held-out crops with their own context, another picture's, and none.

    Args:
        net: in eval mode.
        kind: of `KINDS`.
        count: pictures.
        side: theirs.
        crops: so many at once.
    """
    pool = pictures(count, 990_000, "test", side)
    own, other, alone, lr, labels, territory = ([] for _ in range(6))
    places, inner = all_windows(pool), slice((WINDOW - CROP) // 2, (WINDOW + CROP) // 2)
    elsewhere = places[len(places) // 2:] + places[:len(places) // 2]
    for start in range(0, len(places), crops):
        part = places[start:start + crops]
        crop, context, truth, _ = windows(pool, *zip(*part, strict=True))
        _, wrong, *_ = windows(pool, *zip(*elsewhere[start:start + crops], strict=True))
        labels.append(truth)
        territory.append(torch.stack([
            pool[2][i, y:y + WINDOW, x:x + WINDOW][inner, inner] for i, y, x in part
        ]).long())
        alone.append(net(crop).logits)
        if kind == "crop":
            continue
        out = net(crop, context)
        own.append(out.logits)
        other.append(net(crop, wrong).logits)
        first = (CROP - CROP // FACTOR) // 2
        end = first + CROP // FACTOR
        small = out.context_logits[..., first:end, first:end]
        lr.append(F.interpolate(small, size=(CROP, CROP), mode="bilinear"))
    truth = torch.cat(labels), torch.cat(territory)
    table = {"own context": own, "another picture's context": other, "no context": alone}
    if kind == "crop":
        return rounded(measure(torch.cat(alone), *truth), 3)
    if KINDS[kind][2]:
        table["context branch alone"] = lr
    return {name: rounded(measure(torch.cat(t), *truth), 3) for name, t in table.items()}


# -------------------------------------------------------------------------------------- training
def train(args, kind):
    _, config, weight = KINDS[kind]
    torch.manual_seed(args.seed)
    net = CASWiT(**config)
    pool = pictures(args.pool, 1000 * args.seed, side=args.side)
    optimizer = torch.optim.AdamW(net.parameters(), PEAK, weight_decay=0.01)

    def batch(step):
        return turned(random_windows(pool, args.batch, args.seed * 10**6 + step), step)

    def loss(inputs):
        crop, context, labels, around = inputs
        out = net(crop, None if kind == "crop" else context)
        value = caswit_loss(out, labels, around if weight else None, weight)
        with torch.no_grad():
            thing = labels > 0
            right = (out.logits[:, 1:].argmax(1) + 1 == labels)[thing].float().mean()
        return value, {"loss": value.item(), "biome": right.item()}

    rate = cosine(PEAK, args.steps, warmup=60)
    return net, fit(batch, loss, optimizer, args.steps, rate, autocast=False, every=args.every)


# ----------------------------------------------------------------------------------- pretraining
def rolled(context, way):
    """The context that crops are given: their own, or that of another crop of the batch."""
    return context.roll(1, 0) if way == "another crop's" else context


def pretrain(args):
    """All ways at once: one optimizer, for the gradient of a sum is each model's own."""
    models = nn.ModuleDict()
    for way in WAYS:
        torch.manual_seed(args.seed)
        hide = way != "own, centre visible"
        models[way] = MaskedPretraining(CASWiT(**CONFIG), mask_unit=UNIT, mask_centre=hide)
    generator = torch.Generator().manual_seed(args.seed)
    pool = pictures(args.pool, 1000 * args.seed, side=args.side)
    optimizer = torch.optim.AdamW(models.parameters(), PEAK / 2, weight_decay=0.01)

    def batch(step):
        return turned(random_windows(pool, args.batch, args.seed * 10**6 + step)[:2], step)

    def loss(inputs):
        crop, context = inputs
        hidden = models["own"].draw(crop, generator)
        values = {way: m(crop, rolled(context, way), hidden).loss for way, m in models.items()}
        return sum(values.values()), {way: value.item() for way, value in values.items()}

    rate, parts = cosine(PEAK / 2, args.steps, 40), [[*m.parameters()] for m in models.values()]
    fitted = fit(
        batch, loss, optimizer, args.steps, rate, parts=parts, autocast=False, every=args.every
    )
    return models, fitted


def pixels(net, crop, context, pick):
    """Features of some pixels: the fused maps of all stages, resized, (B, P, 168).

    Args:
        net: a CASWiT.
        crop: (B, 3, 64, 64), nothing hidden.
        context: of the crops.
        pick: (B, P) long, which pixels.
    """
    h, around = net.embed(crop, net.hr, "crop"), net.embed(context, net.lr, "context")
    maps = [resize(m, (CROP, CROP)) for m in net.encode(h, around).features]
    features = torch.cat(maps, 1).flatten(2)
    return features.gather(2, pick[:, None].expand(-1, features.shape[1], -1)).mT


@torch.no_grad()
def probe(net, pool, held_out, count=256, per_crop=128):
    """Measures of a linear classifier on frozen maps: pixels that are ground, and biomes.

    Args:
        net: a CASWiT.
        pool: of `pictures`, to fit on.
        held_out: to measure on.
        count: crops of each.
        per_crop: pixels of a crop.
    """
    sets = []
    for seed, part in ((5, pool), (6, held_out)):
        crop, context, labels, _ = random_windows(part, count, seed)
        generator = torch.Generator().manual_seed(seed)
        pick = torch.rand(count, CROP * CROP, generator=generator).topk(per_crop).indices
        features = torch.cat([
            pixels(net, *t) for t in zip(*(t.split(32) for t in (crop, context, pick)), strict=True)
        ])
        sets.append((features.flatten(0, 1), labels.flatten(1).gather(1, pick).flatten()))
    (inputs, labels), (unseen, truth) = sets
    logits = F.linear(unseen, *linear_probe(inputs, labels))
    guess, thing, iou = logits.argmax(1), truth > 0, MeanIoU(3)
    iou.update(guess, truth)
    right = logits[:, 1:].argmax(1) + 1 == truth
    return {"probe mIoU": iou.mean(), "probe biome": right[thing].float().mean().item()}


@torch.enable_grad()
def linear_probe(inputs, labels):
    """Weight and bias of a linear classifier, from zeros by L-BFGS."""
    weight = torch.zeros(3, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60)

    def closure():
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(inputs, weight, bias), labels)
        value = value + 1e-4 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weight.detach(), bias.detach()


@torch.no_grad()
def score_pretraining(models, seed, count=4, side=SIDE, crops=256):
    """L1 of hidden pixels with the context that was trained with, and the probe.

    Args:
        models: of `pretrain`, in eval mode.
        seed: of the training.
        count: held-out pictures, and as many to fit the probe on.
        side: theirs.
        crops: of each.
    """
    pool, held_out = pictures(count, 970_000, side=side), pictures(count, 990_000, "test", side)
    crop, context, *_ = random_windows(held_out, crops, 7)
    hidden = models["own"].draw(crop, torch.Generator().manual_seed(7))
    table = {}
    for way, model in models.items():
        error = {
            f"L1, {told}": model(crop, rolled(context, told), hidden).loss.item()
            for told in ("own", "another crop's")
        }
        table[way] = {**error, **probe(model.net, pool, held_out, crops)}
    torch.manual_seed(seed)
    table["untrained"] = probe(CASWiT(**CONFIG).eval(), pool, held_out, crops)
    return rounded(table, 3)


def curve(rows, every=100):
    """What each step told, in means over 100 steps."""
    parts = [rows[i:i + every] for i in range(0, len(rows), every)]
    names = [name for name in rows[0] if name != "loss"]
    return rounded({n: [sum(r[n] for r in p) / len(p) for p in parts] for n in names}, 3)


def main(argv=None):
    parser = options(__doc__, STEPS, batch=BATCH, pool=24, side=SIDE)
    parser.add_argument("kind", choices=[*KINDS, "pretraining"])
    few = dict(count=1, side=320, crops=8)
    args = begin(parser, argv, batch=2, pool=1, side=320, scored=few)
    if args.kind == "pretraining":
        name, config = "caswit_emoji_pretraining", CONFIG
        net, fitted = pretrain(args)
    else:
        name, config, _ = KINDS[args.kind]
        net, fitted = train(args, args.kind)

    def scores():
        if args.kind == "pretraining":
            return score_pretraining(net, args.seed, **args.scored)
        return score(net, args.kind, **args.scored)

    ship(
        args.out,
        name,
        net,
        scores,
        config=config,
        command=command(__file__, args.kind, seed=args.seed, steps=args.steps),
        seed=args.seed,
        keep=args.kind == "stages",
        steps=args.steps,
        minutes=round(fitted.minutes, 1),
        curve=curve(fitted.rows),
    )


if __name__ == "__main__":
    main()
