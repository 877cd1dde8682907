"""Train heads for camouflaged instance segmentation: data/checkpoints/camouflage.safetensors.

    OMP_NUM_THREADS=1 python train/camouflage.py full [--seed 0] [--steps 300] [--out FOLDER]

Pictures of vtlib/data/textures.py, 64 px: objects differ from the ground in the direction and
fineness of their texture, and in amplitude by a factor of 1 ... 2. The features are frozen; the
head (`vtlib.segmentation.CamouflageSegmenter`) learns masks and classes of six textures from
labelled pictures. Two textures are left out and named only in the test's class list.

full: the denoising U-Net `diffusion_camouflage` and the texts. Its prompt is the whole class list
in half of the pictures, in the others the objects' names with some of absent ones.
Rivals, equal in all else: zero (all texts are zeros), no_cin, no_mean (the mean over classes
stays), plain_cin (CIN without standardisation), pixels, vit (the course's ViT), dino (a real
DINOv2, where data/real has it). Weights of full and vit are shipped, the others are scores.

Stored, on held-out silhouettes: for each contrast the IoU of "some object" and AP50 of instances,
without classes, with the whole class list as prompt; with other prompts; and how often the query
that fits an object best names it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from common import begin, command, cosine, decayed, fit, options, rounded, ship
from torch.optim import AdamW

from vtlib import checkpoints, hub
from vtlib.data.textures import HELD_OUT, SEEN, TextureWorld, prompt, vectors
from vtlib.generation.diffusion import Denoiser
from vtlib.segmentation import AveragePrecision, CamouflageSegmenter, camouflage_loss, foreground
from vtlib.segmentation.camouflage_inputs import denoiser_maps, dino_maps, pixel_maps, vit_maps
from vtlib.segmentation.oneformer_tasks import Targets, instances
from vtlib.vit import vit_emoji

SIZE, STRIDE, BATCH, STEPS, PEAK, WARMUP = 64, 2, 16, 300, 1e-3, 40
HEAD = dict(
    text_dim=32, embed_dim=64, num_queries=8, num_layers=3, num_heads=4, hidden_dim=128, groups=8
)
VARIANTS = {
    "full": {}, "zero": {}, "no_cin": dict(cin=False), "no_mean": dict(remove_mean=False),
    "plain_cin": dict(normalise=False), "pixels": {}, "vit": {}, "dino": {},
}
SHIPPED = ("full", "vit")
CONTRASTS, TRAINED = (1.0, 1.15, 1.3, 1.5, 2.0), (1.0, 2.0)
LEVEL = 0
EVERY = tuple(range(8))


class Source:
    """Frozen features: source(images, text) -> (maps, last)."""

    def __init__(self, variant, denoiser=None):
        self.kind = variant if variant in ("pixels", "vit", "dino") else "diffusion"
        self.net = None
        if self.kind == "diffusion":
            self.net = checkpoints.load(denoiser or "diffusion_camouflage", Denoiser)
        elif self.kind == "vit":
            self.net = vit_emoji()[0]
        elif self.kind == "dino":
            self.net = hub.real("dinov2")
        if self.net is not None:
            self.net.requires_grad_(False)

    def __call__(self, images, text):
        if self.kind == "pixels":
            return pixel_maps(images)
        if self.kind == "vit":
            return vit_maps(self.net, images)
        if self.kind == "dino":
            return dino_maps(self.net, images)
        return denoiser_maps(self.net, images, text, LEVEL)

    def channels(self):
        maps, last = self(torch.zeros(1, 3, SIZE, SIZE), None)
        return dict(channels=[x.shape[1] for x in maps], last_channels=last.shape[1])


def mixed(scenes, generator):
    """Prompts of training: half name all of SEEN, half the objects and some absent textures."""
    seen = torch.tensor(SEEN)
    shown = torch.cat([scenes.ground[:, None], scenes.label], 1)
    absent = (seen != shown[..., None]).all(1)                                       # b seen
    objects = (seen == scenes.label[..., None]).any(1)
    draw = torch.rand(absent.shape, generator=generator)
    whole = torch.rand(len(scenes), 1, generator=generator) < 0.5
    return prompt(torch.where(objects | (absent & (draw < 0.4)) | whole, seen, -1))


def whole(scenes, classes):
    return prompt(torch.tensor(classes).expand(len(scenes), -1))


def targets(scenes, classes):
    """Masks at the head's stride, classes as places in `classes`."""
    place = torch.full((8,), -1)
    place[list(classes)] = torch.arange(len(classes))
    small = F.avg_pool2d(scenes.masks.float(), STRIDE)
    return [
        Targets(place[label[valid]], masks[valid], torch.empty(0, dtype=torch.long))
        for label, valid, masks in zip(scenes.label, scenes.valid, small, strict=True)
    ]


def train(args, source):
    torch.manual_seed(args.seed)
    config = {**source.channels(), **HEAD, **VARIANTS[args.variant]}
    model, world = CamouflageSegmenter(**config), TextureWorld(SIZE, "train")
    generator = torch.Generator().manual_seed(args.seed)
    names = vectors()[list(SEEN)] * (args.variant != "zero")

    def batch(step):
        scenes = world.scenes(args.batch, 10**7 + args.seed * 10**5 + step, contrast=TRAINED)
        text = None if args.variant == "zero" else mixed(scenes, generator)
        return source(scenes.images, text), targets(scenes, SEEN)

    def loss(inputs):
        (maps, last), wanted = inputs
        out = model(maps, last, names, size=(SIZE // STRIDE, SIZE // STRIDE))
        parts = camouflage_loss(out, wanted, alpha=5.0, weights=(2.0, 5.0))
        row = {name: getattr(parts, name).item() for name in ("total", "classes", "bce", "dice")}
        return parts.total, row

    rate = cosine(PEAK, args.steps, min(WARMUP, args.steps))
    optimizer = AdamW(decayed(model.parameters(), 0.05), PEAK)
    fitted = fit(batch, loss, optimizer, args.steps, rate, every=args.every)
    return model, config, fitted


@torch.no_grad()
def predict(model, source, scenes, names, text):
    """(batches' outputs, masks logits at full size) in portions."""
    out = []
    for start in range(0, len(scenes), 32):
        rows = slice(start, start + 32)
        maps, last = source(scenes.images[rows], None if text is None else text[rows])
        out.append(model(maps, last, names, size=(SIZE // STRIDE, SIZE // STRIDE)))
    return out


@torch.no_grad()
def measure(model, source, scenes, names, text):
    """IoU of "some object", AP50, and of each object the query that fits it best.

    Args:
        model: the head.
        source: of features.
        scenes: the pictures.
        names: the head's class list (K, 32).
        text: the prompt of the features, or None.
    """
    both = either = 0
    measured = AveragePrecision(1)
    fits, said = [], []
    start = 0
    for out in predict(model, source, scenes, names, text):
        rows = slice(start, start + len(out.last.mask_logits))
        start = rows.stop
        truth, valid = scenes.masks[rows], scenes.valid[rows]
        found = foreground(out, (SIZE, SIZE)) > 0.5
        there = scenes.instance[rows] > 0
        both, either = both + (found & there).sum(), either + (found | there).sum()
        logits = F.interpolate(
            out.last.mask_logits, size=(SIZE, SIZE), mode="bilinear", align_corners=False
        )
        null = out.last.class_logits.softmax(-1)[..., -1]
        objectness = torch.stack([(1 - null).clamp(1e-6, 1 - 1e-6).logit(), torch.zeros_like(null)],
                                 -1)
        best = instances(objectness, logits, {0}, num_best=logits.shape[1])
        flat, true = (logits > 0).flatten(2).float(), truth.flatten(2).float()
        joint = flat @ true.mT                                                       # b n k
        iou = joint / (flat.sum(2)[..., None] + true.sum(2)[:, None] - joint).clamp(min=1)
        fit_of, query = iou.max(1)                                                   # b k
        classes = out.last.class_logits[..., :-1]
        chosen = classes.gather(1, query[..., None].expand(-1, -1, classes.shape[2]))
        fits.append(fit_of[valid])
        said.append(chosen[valid])
        for b in range(len(truth)):
            measured.update(best.masks[b], best.scores[b], best.classes[b], truth[b][valid[b]],
                            torch.zeros(int(valid[b].sum()), dtype=torch.long))
    result = {"iou": (both / either.clamp(min=1)).item(), "ap50": measured.mean().ap50,
              "best query's iou": torch.cat(fits).mean().item()}
    return result, torch.cat(said), scenes.label[scenes.valid]


def score(model, source, variant, pictures=192):
    """What the docstring says."""
    model.eval()
    on = float(variant != "zero")
    world = TextureWorld(SIZE, "test")

    def text_of(scenes, how):
        if variant == "zero" or how == "empty":
            return None
        if how == "objects":
            return scenes.text()
        return whole(scenes, SEEN if how == "seen" else EVERY)

    table, prompts = {}, {}
    for i, contrast in enumerate(CONTRASTS):
        scenes = world.scenes(pictures, 20 + i, contrast=contrast)
        names = vectors()[list(SEEN)] * on
        result, said, label = measure(model, source, scenes, names, text_of(scenes, "seen"))
        table[str(contrast)] = result
        if i == 0:
            said_first = torch.tensor(SEEN)[said.argmax(1)] == label
            for how in ("objects", "empty"):
                prompts[how] = measure(model, source, scenes, names, text_of(scenes, how))[0]
    held = world.scenes(pictures, 40, classes=HELD_OUT, grounds=SEEN, contrast=1.0)
    names = vectors() * on
    result, said, label = measure(model, source, held, names, text_of(held, "every"))
    pair = torch.tensor(HELD_OUT)[said[:, list(HELD_OUT)].argmax(1)]
    found = {
        "held out, of 2": (pair == label).float().mean().item(),
        "held out, of 8": (said.argmax(1) == label).float().mean().item(),
        "seen, of 6": said_first.float().mean().item(),
    }
    return rounded({"contrast": table, "prompt": prompts, "class": found, "held out": result})


def main(argv=None):
    parser = options(__doc__, STEPS, batch=BATCH)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--denoiser", type=Path, help="its checkpoint; default the shipped one")
    args = begin(parser, argv, batch=2, scored=dict(pictures=4))
    source = Source(args.variant, args.denoiser)
    model, config, fitted = train(args, source)
    stem = "camouflage" if args.variant == "full" else f"camouflage_{args.variant}"
    ship(
        args.out, stem, model, lambda: score(model, source, args.variant, **args.scored),
        config=config, command=command(__file__, args.variant, seed=args.seed, steps=args.steps),
        seed=args.seed, keep=args.variant in SHIPPED, steps=args.steps,
        minutes=round(fitted.minutes, 1),
    )


if __name__ == "__main__":
    main()
