"""Train Split Matching on synthetic dense features: data/checkpoints/split_matching_scenes.

    OMP_NUM_THREADS=1 python train/split_matching.py [--seed 0] [--steps 1000] [--out FOLDER]

Scenes of three regions on a 12 x 12 grid (vtlib/segmentation/zero_shot.py): features of 24 channels
near the class's text vector with noise, six seen classes and two unseen ones, whose regions have no
labels and whose names are used in the test only. Pseudo masks are made once a scene. Twelve
queries, eight seen and four candidates, AdamW and one cosine.

The same scenes then train the rivals, of which the header keeps the scores: one matching for all
queries, other shares of candidates, unmatched candidates taught "no object", random vectors in
place of region embeddings. Scores are the seen, unseen and harmonic mIoU of new scenes; of pseudo
masks, the best IoU with each unseen region.
"""

import torch
from common import begin, command, cosine, fit, options, rounded, ship, stored

from vtlib.segmentation.measures import MeanIoU
from vtlib.segmentation.split_matching import SplitMatching, split_loss
from vtlib.segmentation.split_matching_masks import Regions, pseudo_masks, region_means
from vtlib.segmentation.zero_shot import UNANNOTATED, annotate, feature_scenes, seen_targets
from vtlib.tokens.cosine import unit

DIM, SEEN, UNSEEN = 24, tuple(range(6)), (6, 7)
CLASSES = len(SEEN) + len(UNSEEN)
CONFIG = dict(
    in_dim=DIM,
    text_dim=DIM,
    embed_dim=64,
    num_heads=4,
    hidden_dim=128,
    num_layers=2,
    num_seen=8,
    num_candidates=4,
)
WINDOWS, CLUSTERS, NOISE = (3, 4, 6), 6, 0.8
STEPS, BATCH, SCENES, PEAK = 1000, 6, 2100, 1e-3


def generator(seed):
    return torch.Generator().manual_seed(seed)


def names(seed=0):
    """(K, D) unit vectors of all classes."""
    return unit(torch.randn(CLASSES, DIM, generator=generator(seed)))


def prepare(scenes, windows=WINDOWS):
    """What the training may know of scenes: annotated masks, pseudo masks and their embeddings."""
    annotation = annotate(scenes.labels, SEEN, CLASSES)
    masks = pseudo_masks(scenes.features, annotation == UNANNOTATED, windows, CLUSTERS)
    means = region_means(scenes.features, masks)
    regions = [Regions(e, m) for e, m in zip(means, masks, strict=True)]
    return seen_targets(annotation, len(SEEN)), regions


def shuffled(regions, seed):
    """Random unit vectors in place of region embeddings."""
    draw = generator(seed)
    return [Regions(unit(torch.randn(e.shape, generator=draw)), m) for e, m in regions]


def train(args, scenes, known, config, background=False):
    torch.manual_seed(args.seed)
    model, text = SplitMatching(**config), scenes.text[list(SEEN)]
    targets, regions = known
    order = generator(args.seed)

    def batch(step):
        return torch.randint(len(targets), (args.batch,), generator=order).tolist()

    def loss(chosen):
        own, others = [targets[i] for i in chosen], [regions[i] for i in chosen]
        predictions = model(scenes.features[chosen])
        value = split_loss(model, predictions, own, others, text, background=background)
        return value.total, {"loss": value.total.item(), "cosine": value.cosine.item()}

    optimizer = torch.optim.AdamW(model.parameters(), PEAK, weight_decay=0.01)
    rate = cosine(PEAK, args.steps, min(30, args.steps))
    fitted = fit(batch, loss, optimizer, args.steps, rate, autocast=False, every=args.every)
    return model, fitted


@torch.no_grad()
def score(model, scenes, background=False):
    """Seen, unseen and harmonic mIoU."""
    model.eval()
    found = model(scenes.features)[-1]
    maps = model.scores(found, scenes.text, background=background).argmax(1)
    measure = MeanIoU(CLASSES)
    measure.update(maps, scenes.labels)
    return rounded(measure.harmonic(SEEN, UNSEEN)._asdict(), 4)


def best_iou(scenes, windows):
    """Mean over unseen regions of the best IoU that a pseudo mask has with it."""
    _, regions = prepare(scenes, windows)
    found = []
    for labels, (_, masks) in zip(scenes.labels, regions, strict=True):
        for name in UNSEEN:
            true = labels == name
            if true.sum() > 1:
                both, either = ((masks & true).sum((1, 2)), (masks | true).sum((1, 2)))
                found.append((both / either).max())
    return round(torch.stack(found).mean().item(), 4)


def ways(known):
    """Rivals of the shipped model: name -> configuration, what is known, and background."""
    targets, regions = known
    total = CONFIG["num_seen"] + CONFIG["num_candidates"]
    table = {"one matching": (dict(CONFIG, num_seen=total, num_candidates=0), known, False)}
    for count in (2, 6, 8):
        config = dict(CONFIG, num_seen=total - count, num_candidates=count)
        table[f"{count} candidates of {total}"] = config, known, False
    table["unmatched are no object"] = CONFIG, known, True
    table["random embeddings"] = CONFIG, (targets, shuffled(regions, 1)), False
    return table


def main(argv=None):
    parser = options(__doc__, STEPS, batch=BATCH, count=SCENES, shown=500)
    args = begin(parser, argv, count=24, shown=24)
    text = names()
    scenes = feature_scenes(args.count, generator(args.seed), text, noise=NOISE)
    test = feature_scenes(args.shown, generator(10**6), text, noise=NOISE)
    known = prepare(scenes)
    rivals = {}
    for name, (config, given, background) in ways(known).items():
        model, _ = train(args, scenes, given, config, background)
        rivals[name] = score(model, test, background)
        print(f"{name}: {rivals[name]}", flush=True)
    model, fitted = train(args, scenes, known, CONFIG)
    stored(model)
    masks = {" ".join(map(str, s)): best_iou(test, s) for s in (*[(w,) for w in WINDOWS], WINDOWS)}
    ship(
        args.out,
        "split_matching_scenes",
        model,
        lambda: {"split": score(model, test), **rivals, "best IoU of pseudo masks": masks},
        config=CONFIG,
        shared=dict(text=rounded(text.tolist(), 6), seen=SEEN, unseen=UNSEEN, noise=NOISE),
        command=command(__file__, seed=args.seed, steps=args.steps),
        seed=args.seed,
        steps=args.steps,
        minutes=round(fitted.minutes, 1),
    )


if __name__ == "__main__":
    main()
