"""Train OneFormer on scenes with things and stuff: data/checkpoints/oneformer_emoji.safetensors.

    OMP_NUM_THREADS=1 python train/oneformer.py [--seed 0] [--rival NAME] [--steps 1200]

Pictures of 96 px: one to four pictograms of five kinds on two kinds of stuff, which a curve parts
(vtlib/segmentation/oneformer_small.py). 3,072 pictures, mirrored at random, whose task is drawn
anew at each sight; targets come from the panoptic truth, and every prediction is matched anew.
AdamW, warm-up, one cosine. Stored, on held-out backgrounds: PQ, mIoU and AP50, and what is said
under each task's sentence.

Rivals, of the same budget, whose weights are not kept:
    single          three models, one a task, each with a third of the steps
    nocontrast      the weight of the contrast is 0
    notoken         every picture is told "panoptic", whatever its task
"""

import random
import time

import torch
from common import begin, command, cosine, decayed, fit, options, rounded, ship

from vtlib.segmentation import AveragePrecision, MeanIoU, PanopticQuality, joint_loss, text_list
from vtlib.segmentation import oneformer_small as small
from vtlib.segmentation.measures import segments
from vtlib.segmentation.oneformer_text import TASKS, draw_task

CONFIG = dict(
    num_queries=16,
    num_context=4,
    embed_dim=64,
    num_heads=4,
    hidden_dim=128,
    num_layers=3,
    query_layers=2,
    channels=(16, 32, 64, 64, 64),
    text_layers=1,
)
STEPS, BATCH, POOL, PEAK, WARMUP, CONTRAST = 1200, 16, 192, 1e-3, 60, 0.5
RIVALS = ("single", "nocontrast", "notoken")


class Pool:
    """Batches of scenes that are made once.

    Args:
        size: how many batches.
        batch: pictures of each.
        seed: decides.
    """

    def __init__(self, size, batch, seed):
        world = small.world("train")
        self.batches = []
        for i in range(size):
            scenes = small.pictures(world, batch, seed * 10**6 + i)
            images = scenes.scenes.images.mul(255).round().to(torch.uint8)
            self.batches.append((images, scenes.codes()))

    def __call__(self, step, rng):
        """Images in [0, 1] and codes; all pictures of a batch mirrored, or none."""
        images, codes = self.batches[step % len(self.batches)]
        images = images.float() / 255
        return (images.flip(-1), codes.flip(-1)) if rng.random() < 0.5 else (images, codes)


def train(args, steps, task=None, rival=None):
    """A model, and what `fit` says.

    Args:
        args: of the command line.
        steps: how many.
        task: the only one; None: drawn for each picture.
        rival: one of `RIVALS`, or None.
    """
    torch.manual_seed(args.seed)
    model = small.small(**CONFIG).train()
    pool, rng = Pool(args.pool, args.batch, args.seed), random.Random(args.seed)
    generator, words = torch.Generator().manual_seed(args.seed), small.words()
    count = CONFIG["num_queries"] - CONFIG["num_context"]
    weights = (2.0, 5.0, 5.0, 0.0 if rival == "nocontrast" else CONTRAST)
    optimizer = torch.optim.AdamW(decayed(model.parameters(), 0.05), PEAK, betas=(0.9, 0.98))

    def batch(step):
        images, codes = pool(step, rng)
        tasks = [task or draw_task(generator) for _ in images]
        targets = small.targets(codes, tasks, small.STRIDE)
        pairs = zip(tasks, targets, strict=True)
        texts = [words(text_list(name, t.classes, small.NAMES, count)) for name, t in pairs]
        said = ["panoptic"] * len(tasks) if rival == "notoken" else tasks
        return images, said, targets, torch.stack(texts)

    def loss(part):
        images, said, targets, texts = part
        out = model(images, said, texts)
        contrast = model.contrast(out)
        found = joint_loss([*out.earlier, out.last], targets, contrast, None, None, weights)
        return found.total, {name: float(value.detach()) for name, value in found._asdict().items()}

    rate = cosine(PEAK, steps, WARMUP)
    fitted = fit(
        batch, loss, optimizer, steps, rate, parts=[list(model.parameters())],
        autocast=False, every=args.every
    )
    return model, fitted


def count_segments(answer, total):
    """Adds a batch's segments of stuff and of things to `total`."""
    for i in range(len(answer.ids)):
        rows = answer.rows(i)
        total["stuff"] += sum(not thing for _, _, thing in rows)
        total["things"] += sum(thing for _, _, thing in rows)


@torch.no_grad()
def score(models, said=None, pictures=256, batch=32):
    """PQ, mIoU and AP50 on held-out backgrounds, each under its own task's sentence, and what the
    panoptic reading shows under each sentence: segments of stuff and of things a picture, and PQ.

    Args:
        models: of each task, in eval mode.
        said: the sentence for all tasks; None: each its own.
        pictures: how many.
        batch: so many at once.
    """
    world, classes = small.world("test"), len(small.NAMES)
    miou, ap = MeanIoU(classes), AveragePrecision(classes)
    pq = {task: PanopticQuality(classes) for task in TASKS}
    found = {task: dict.fromkeys(("stuff", "things"), 0) for task in TASKS}
    for part in range(pictures // batch):
        scenes = small.pictures(world, batch, 990_000 + part)
        images, codes = scenes.scenes.images, scenes.codes()
        size = images.shape[-2:]
        last = {task: models[task](images, said or task).last for task in TASKS}
        miou.update(small.answer(last["semantic"], "semantic", size).argmax(1), codes // 1000)
        best = small.answer(last["instance"], "instance", size, num_best=24)
        for i, wanted in enumerate(small.targets(codes, ["instance"] * batch)):
            kept = best.things[i] & best.masks[i].flatten(1).any(1)
            one = (best.masks[i][kept], best.scores[i][kept], best.classes[i][kept])
            ap.update(*one, wanted.masks, wanted.classes)
        for task in TASKS:
            answer = small.answer(last[task], "panoptic", size)
            count_segments(answer, found[task])
            for i in range(batch):
                rows = torch.tensor([c for _, c, _ in answer.rows(i)], dtype=torch.long)
                pq[task].update(answer.ids[i], rows, *segments(codes[i]))
    each = {task: {name: n / pictures for name, n in found[task].items()} for task in TASKS}
    for task in TASKS:
        each[task]["PQ"] = pq[task].mean().pq
    best, things = pq["panoptic"], sorted(small.THINGS)
    numbers = dict(
        PQ=best.mean().pq,
        PQ_things=best.mean(things).pq,
        PQ_stuff=best.mean(range(things[0])).pq,
        mIoU=miou.mean(),
        AP50=ap.mean().ap50,
        AP=ap.mean().ap,
    )
    return rounded(dict(numbers, sentence=each), 4)


def main(argv=None):
    parser = options(__doc__, STEPS, batch=BATCH, pool=POOL)
    parser.add_argument("--rival", choices=RIVALS)
    args = begin(parser, argv, batch=4, pool=2, scored=dict(pictures=8, batch=8))
    start = time.process_time()
    if args.rival == "single":
        models = {task: train(args, args.steps // 3, task)[0].eval() for task in TASKS}
        model = models["panoptic"]
    else:
        model, _ = train(args, args.steps, rival=args.rival)
        models = dict.fromkeys(TASKS, model)
    minutes = round((time.process_time() - start) / 60, 1)
    said = "panoptic" if args.rival == "notoken" else None
    given = dict(rival=args.rival) if args.rival else {}
    ship(
        args.out,
        f"oneformer_emoji_{args.rival}" if args.rival else "oneformer_emoji",
        model,
        lambda: score(models, said, **args.scored),
        config=CONFIG,
        command=command(__file__, seed=args.seed, **given, steps=args.steps),
        seed=args.seed,
        keep=not args.rival,
        steps=args.steps,
        minutes=minutes,
    )


if __name__ == "__main__":
    main()
