"""Train VWFormer's decoder and its rivals: data/checkpoints/vwformer_emoji.safetensors.

    OMP_NUM_THREADS=1 python train/vwformer.py vw [--seed 0] [--steps 700] [--out FOLDER]
    OMP_NUM_THREADS=1 python train/vwformer.py {zeros,fpn,aspp,mlp}
    OMP_NUM_THREADS=1 python train/vwformer.py cues --seed {0,1,2}

Pictures of EmojiWorld, 64 px, a class for every pixel: nine categories and the background
(vtlib/segmentation/segmenter.py). Backbone, pictures and recipe are the same for all, the decoders
have about 120,000 parameters each: VWFormer's, the same with zero padding, a feature pyramid,
dilated convolutions, a pixel-wise MLP. AdamW, warm-up, one cosine. Stored, on held-out backgrounds:
mIoU, pixels at the border, objects large and small, and how far decoders see. Weights are kept of
the first alone; the rest is rows of vwformer_emoji_{zeros,fpn,aspp,mlp}_seeds.json.

`cues` trains one scale of VWFormer for R = 1, 2, 4, 8, each with copy-shift padding and with zeros,
on the task of vtlib/segmentation/far_cue.py, a net in half a minute: rows of
vwformer_far_cue_seeds.json hold accuracy over distance, at the border, and the attention that goes
to zeros.
"""

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, options, rounded, ship

from vtlib.segmentation import MeanIoU, effective_receptive_field, reach
from vtlib.segmentation.far_cue import ScaleNet, at_place, far_cues
from vtlib.segmentation.segmenter import Segmenter, scenes, world
from vtlib.segmentation.vwformer import context_windows, fold

VW = dict(decoder="vw", channels=64, num_heads=2, low_channels=16)
MODELS = {
    "vw": VW,
    "zeros": dict(VW, padding="zeros"),
    "fpn": dict(decoder="fpn", channels=36),
    "aspp": dict(decoder="aspp", channels=48, low_channels=16, dilations=(1, 3, 5)),
    "mlp": dict(decoder="mlp", channels=144),
}
STEPS, BATCH, PEAK, WARMUP = 700, 16, 2e-3, 40
HELD_OUT, BORDER, LARGE, SMALL = 10**8, 8, 0.5, 0.35
CUE_STEPS, CUE_BATCH, CUE_PEAK, RATIOS = 300, 32, 3e-3, (1, 2, 4, 8)
DISTANCES = ((1, 1), (2, 3), (4, 5), (6, 8), (9, 15))


def optimizer_of(model, peak):
    groups = [
        dict(params=[p for p in model.parameters() if p.dim() > 1], weight_decay=0.02),
        dict(params=[p for p in model.parameters() if p.dim() <= 1], weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, peak)


def train(args, config):
    torch.manual_seed(args.seed)
    model, seen = Segmenter(**config), world("train")

    def batch(step):
        return scenes(seen, args.batch, args.seed * 10**6 + step)

    def loss(part):
        images, labels = part
        return F.cross_entropy(model(images), labels)

    rate = cosine(PEAK, args.steps, WARMUP)
    optimizer = optimizer_of(model, PEAK)
    fitted = fit(batch, loss, optimizer, args.steps, rate, autocast=False, every=args.every)
    return model, fitted


@torch.no_grad()
def score(model, pictures=512, batch=32):
    """On held-out backgrounds.

    Args:
        model: in eval mode.
        pictures: how many are shown.
        batch: of them at a time.
    """
    held, iou, border, inner = world("test"), MeanIoU(10), MeanIoU(10), MeanIoU(10)
    ring = torch.ones(64, 64, dtype=torch.bool)
    ring[BORDER:-BORDER, BORDER:-BORDER] = False
    hits = torch.zeros(2, 2)
    for i in range(pictures // batch):
        images, labels = scenes(held, batch, HELD_OUT + i)
        found = model(images).argmax(1)
        iou.update(found, labels)
        border.update(found[:, ring], labels[:, ring])
        inner.update(found[:, ~ring], labels[:, ~ring])
        right, objects = found == labels, labels > 0
        for row, part in enumerate((ring, ~ring)):
            mask = objects & part
            hits[row] += torch.tensor([(right & mask).sum(), mask.sum()])
    accuracy = (hits[:, 0] / hits[:, 1]).tolist()
    return rounded({
        "mIoU": iou.mean(),
        "IoU": iou.per_class().tolist(),
        "mIoU border": border.mean(),
        "mIoU inner": inner.mean(),
        "objects border": accuracy[0],
        "objects inner": accuracy[1],
        **sight(model, scenes(held, 16, HELD_OUT - 1)[0]),
    })


def sight(model, images):
    """How far the decoder sees around the middle of the second map, 16 x 16: the mean of |gradient|
    in rings of distance 0 ... 8, and the distance that holds half of it."""
    maps = [x.detach() for x in model.features(images)]
    field = effective_receptive_field(model.decoder, maps, (16, 16))[1]
    line = (torch.arange(16) - 8).abs()
    apart = torch.maximum(line[:, None], line[None])
    rings = torch.zeros(9).index_add(0, apart.flatten(), field.flatten())
    return {"rings": rings.tolist(), "reach 50": reach(field, share=0.5), "reach 95": reach(field)}


# ------------------------------------------------------------------------------------ the far cue
def train_cues(args, ratio, padding):
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    net = ScaleNet(ratio=ratio, padding=padding)

    def loss(cues):
        return F.cross_entropy(at_place(net(cues.maps), cues.place), cues.colour)

    def batch(step):
        return far_cues(args.batch, generator)

    rate, optimizer = cosine(CUE_PEAK, args.steps, WARMUP), optimizer_of(net, CUE_PEAK)
    fitted = fit(batch, loss, optimizer, args.steps, rate, autocast=False, every=args.every)
    return net.eval(), fitted.minutes


@torch.no_grad()
def score_cues(net, maps=4096):
    """Accuracy over distance, in border windows and inside; the share of the attention of border
    windows that goes to zeros, and the share of their context that is zeros."""
    cues = far_cues(maps, torch.Generator().manual_seed(HELD_OUT))
    right, padded = [], []
    empty = fold(context_windows(torch.ones(1, 1, 16, 16), net.ratio, padding=net.padding),
                 net.ratio)                                                    # 64 R^2 P P
    empty = 1 - empty.mean(1).flatten(1)                                       # share of zeros
    edge = torch.ones(8, 8, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    for part in torch.arange(maps).split(256):
        scores, attn = net(cues.maps[part], return_attn=True)
        right.append(at_place(scores, cues.place[part]).argmax(1) == cues.colour[part])
        mass = (attn.mean((1, 2)).unflatten(0, (-1, 64)) * empty).sum(-1)      # b 64
        padded.append(mass[:, edge.flatten()].mean(1))
    right, padded = torch.cat(right).float(), torch.cat(padded)
    at_edge = ((cues.place < 2) | (cues.place >= 14)).any(1)
    rows = [(cues.distance >= low) & (cues.distance <= high) for low, high in DISTANCES]
    return {
        "distance": [right[row].mean().item() for row in rows],
        "border": right[at_edge].mean().item(),
        "inner": right[~at_edge].mean().item(),
        "zeros": empty[edge.flatten()].mean().item(),
        "mass on zeros": padded.mean().item(),
    }


def far_cue(args):
    table, minutes = {}, 0.0
    for ratio in RATIOS:
        for padding in ("copy_shift", "zeros") if ratio > 1 else ("copy_shift",):
            net, spent = train_cues(args, ratio, padding)
            table[f"R={ratio} {padding}"] = score_cues(net, **args.scored)
            minutes += spent
            print(f"R={ratio} {padding}: {rounded(table[f'R={ratio} {padding}'])}", flush=True)
    return net, rounded(table), minutes


def main(argv=None):
    parser = options(__doc__, None)
    parser.add_argument("what", choices=(*MODELS, "cues"))
    parser.add_argument("--batch", type=int, help=f"default {BATCH}, of cues {CUE_BATCH}")
    args = begin(parser, argv)
    cues = args.what == "cues"
    args.batch = args.batch or (CUE_BATCH if cues else BATCH)
    smoke = args.steps is not None and args.steps < 50
    args.steps = args.steps or (CUE_STEPS if cues else STEPS)
    given = dict(
        command=command(__file__, args.what, seed=args.seed, steps=args.steps),
        seed=args.seed,
        steps=args.steps,
    )
    if cues:
        args.scored = dict(maps=256) if smoke else {}
        net, table, minutes = far_cue(args)
        stem, config = "vwformer_far_cue", {}
        ship(args.out, stem, net, lambda: table, config=config, keep=False,
             minutes=round(minutes, 1), **given)
        return
    config = MODELS[args.what]
    model, fitted = train(args, config)
    stem = "vwformer_emoji" if args.what == "vw" else f"vwformer_emoji_{args.what}"
    few = dict(pictures=32) if smoke else {}
    ship(
        args.out,
        stem,
        model,
        lambda: score(model, **few),
        config=config,
        shared=dict(classes=["background", *world().names("category")]),
        keep=args.what == "vw",
        minutes=round(fitted.minutes, 1),
        parameters=sum(p.numel() for p in model.decoder.parameters()),
        **given,
    )


if __name__ == "__main__":
    main()
