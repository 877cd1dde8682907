"""Train the visual tokenizers that the notebooks compare: the same pictures, budget and seed.

    OMP_NUM_THREADS=1 python train/visual_tokenizers.py vq [--seed 0] [--steps 2000] [--out FOLDER]
    python train/visual_tokenizers.py table            # the scores of all that is there, one table
    python train/visual_tokenizers.py score            # measures all that is there again

`--help` lists the recipes. Each writes data/checkpoints/tokenizer_<name>.safetensors. A batch has
32 pictures of 64 px: 14 scenes of EmojiWorld, 14 crops of photographs, 4 words on plates. AdamW,
one cosine. The loss is the tokenizer's own: squared error of the pixels, and what its paper adds,
LPIPS and discriminators apart. Where a teacher is needed it is the course's ViT.

Scores are of held-out pictograms, photographs and words: PSNR and SSIM of each kind, bits of a
picture, the share of codes in use, and a linear probe: which of twelve pictograms it is, read off
the codes by ridge regression. Where tokens stand in one dimension also the PSNR of scenes painted
from the first k.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from common import begin, command, cosine, fit, options, rounded, ship
from safetensors.torch import load_file, save_file

from vtlib import checkpoints, tokenizers
from vtlib.data import EASY, EmojiWorld, backgrounds
from vtlib.quantize.contract import perplexity
from vtlib.quantize.kl import Sampled
from vtlib.superres.quality import psnr, ssim

SIZE, KINDS = 64, {"scenes": 14, "photographs": 14, "words": 4}
STEPS, PEAK, POOL = 2000, 2e-3, 4096
STEM = "tokenizer_"
PREFIX = (tokenizers.GigaTok, tokenizers.ResTok)
"""Tokens in one dimension: their first k are a picture, if a poor one."""
RIDGE = 0.5
"""Of the probe, over the number of pictures; codes have deviation 1."""


@dataclass(frozen=True)
class Recipe:
    """How a tokenizer is built.

    Args:
        build: a name in `vtlib.tokenizers`.
        config: its arguments.
        teacher: None, or "features", or "summary": features and that of the whole picture.
        start: called with model, teacher and batches before the first step.
        slow: a part of the model that learns at a tenth of the rate.
        keep: whether its weights are shipped, or its scores only.
    """

    build: str
    config: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    start: Callable[..., None] | None = None
    slow: str | None = None
    keep: bool = True


def start_tower(model, teacher, batches):
    """TokenFlow's semantic encoder begins as the first layers of the teacher."""
    model.encoder_vqkd.start_from(teacher.vit)


@torch.no_grad()
def set_histogram(model, teacher, batches):
    """GloTok's statistics: k-means centres of the teacher's features of 1,280 pictures."""
    features = torch.cat([teacher(batches(step)) for step in range(40)])
    model.set_teacher(tokenizers.teacher_centres(features, model.quantizer.semantic.codebook_size))


VQ = dict(codebook_size=512, kmeans_init=True, revive_after=40.0)
CNN = dict(patch_size=4, multipliers=(1, 2), num_res_blocks=1, num_mid_blocks=1, groups=8)
SMALL, MEDIUM = CNN | dict(channels=16), CNN | dict(channels=24)
TEACHER = 128
QFORMER = dict(
    img_size=SIZE,
    num_tokens=64,
    codebook_size=512,
    weight_std=None,
    from_places=True,
    encoder_size=(40, 1, 4),
    decoder_size=(40, 2, 4),
    map_channels=32,
    align_layer=1,
    teacher_dim=TEACHER,
    entropy_weight=0.005,
    gradient="straight_through",
    cnn=SMALL,
)
RETOK = QFORMER | dict(min_tokens=4)
RESTOK = dict(
    image_size=SIZE,
    channels=24,
    multipliers=(1, 1),
    num_res_blocks=1,
    groups=8,
    patch_size=4,
    map_channels=32,
    embed_dim=64,
    num_layers=3,
    decoder_layers=2,
    num_heads=2,
    num_latents=64,
    stages=3,
    codebook_size=512,
    teacher_dim=TEACHER,
    align_weight=0.1,
    revive_after=40.0,
    from_places=True,
)
HIERATOK = dict(
    scales=[1, 2, 4, 8],
    patch_size=8,
    latent_dim=8,
    embed_dim=48,
    encoder_layers=4,
    decoder_layers=4,
    num_heads=4,
    coarse_weight=0.1,
)
GLOTOK = dict(
    codebook_size=(128, 384),
    latent_dim=32,
    residual_dim=32,
    attention=False,
    quantizer=dict(kmeans_init=True, revive_after=40.0),
    **SMALL,
)
TOKENFLOW = dict(
    scales=(1, 2, 4, 8),
    codebook_size=512,
    semantic_dim=16,
    pixel_dim=8,
    patch_size=8,
    embed_dim=TEACHER,
    num_layers=2,
    num_heads=4,
    teacher_dim=TEACHER,
    decoder_dim=48,
    decoder_layers=1,
    decoder_heads=4,
    z_channels=32,
    cnn=SMALL,
    learn="ema",
    revive_after=40.0,
)
RECIPES = {
    "vq": Recipe("small", dict(net="cnn", bottleneck="vq", dim=8, **VQ)),
    "vq_vit": Recipe("small", dict(net="vit", bottleneck="vq", dim=8, **VQ), keep=False),
    "kl": Recipe("small", dict(net="cnn", bottleneck="kl", dim=8, weight=1e-6)),
    "tokenflow": Recipe("TokenFlow", TOKENFLOW, "features", start_tower, "encoder_vqkd"),
    "glotok": Recipe("GloTok", GLOTOK, "features", set_histogram),
    "glotok_dual": Recipe(
        "GloTok", GLOTOK | dict(histogram_weight=0.0, residual_dim=0), "features", set_histogram,
        keep=False,
    ),
    "gigatok": Recipe("GigaTok", QFORMER, "features"),
    "gigatok_plain": Recipe(
        "GigaTok", QFORMER | dict(semantic_weight=0.0), "features", keep=False
    ),
    "retok": Recipe("ReToK", RETOK | dict(num_redundant=60), "features"),
    "retok_plain": Recipe("ReToK", RETOK | dict(num_redundant=0), "features", keep=False),
    "restok": Recipe("ResTok", RESTOK, "summary"),
    "hieratok": Recipe("HieraTok", HIERATOK),
    "hieratok_full": Recipe("HieraTok", HIERATOK | dict(mask="full"), keep=False),
    "hieratok_single": Recipe("HieraTok", HIERATOK | dict(scales=[8]), keep=False),
}


# ------------------------------------------------------------------------------------- pictures
class Pictures:
    """Pictures (n, 3, 64, 64) of each kind, of a split; a seed decides."""

    def __init__(self, split):
        self.split, self.world = split, EmojiWorld(SIZE, split, artist="both")

    def scenes(self, n, seed):
        return self.world.scenes(n, seed, scale=(0.2, 0.7)).images

    def photographs(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        out = backgrounds.crops(self.split, (SIZE, SIZE), n, generator, torch.device("cpu"))
        return out[0] / 255

    def words(self, n, seed):
        return self.world.text(n, seed, height=(8, 20)).images


class Batches(Pictures):
    """Batches of all kinds. Scenes cost more than a step of training: they are drawn once, so many
    that each is seen about ten times, mirrored half of the time."""

    def __init__(self, seed, counts, pool):
        super().__init__("train")
        self.seed, self.counts = seed * 10**6, counts
        chunks = [self.scenes(64, self.seed + n) for n in range(0, pool, 64)]
        self.pool = torch.cat([chunk.mul(255).round().byte() for chunk in chunks])

    def pooled(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self.pool), (n,), generator=generator)
        mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
        images = self.pool[which].float() / 255
        return torch.where(mirrored, images.flip(-1), images)

    def __call__(self, step):
        draw = {"scenes": self.pooled, "photographs": self.photographs, "words": self.words}
        seed = self.seed + step
        return torch.cat([draw[kind](n, seed) for kind, n in self.counts.items()])


# ---------------------------------------------------------------------------------------- score
@torch.no_grad()
def score(model, pictures=128):
    """{kind: {"psnr", "ssim"}, "bits", "usage", "perplexity", "probe"} on held-out pictures."""
    held_out, table, indices = Pictures("test"), {}, []
    for kind in KINDS:
        images = getattr(held_out, kind)(pictures, 990_000)
        parts = [model(chunk) for chunk in images.split(32)]
        rebuilt = torch.cat([part.images for part in parts]).clamp(0, 1)
        rebuilt = rebuilt.mul(255).round().div(255)
        table[kind] = {
            "psnr": psnr(rebuilt, images, y=False).mean().item(),
            "ssim": ssim(rebuilt, images, y=False).mean().item(),
        }
        if not isinstance(parts[0].quantized, Sampled):
            indices += [part.quantized.indices for part in parts]
    if indices:
        table |= used(model, torch.cat(indices), model.bits(parts[0].quantized))
    table["probe"] = probe(model, 8 * pictures, 4 * pictures)
    if isinstance(model, PREFIX):
        table["by tokens"] = by_tokens(model, held_out.scenes(pictures, 990_000))
    return table


def by_tokens(model, images):
    """{k: PSNR} of scenes painted from the first k tokens, k = 1, 2, 4, ..., all."""
    table = {}
    codes = torch.cat([model.encode(chunk).codes for chunk in images.split(32)])
    total = codes.shape[1]
    for kept in (2**i for i in range(total.bit_length())):
        parts = codes.split(32)
        if isinstance(model, tokenizers.ResTok):
            rebuilt = [model.decode(part, keep=kept) for part in parts]
        else:
            rebuilt = [model.decode(part[:, :kept]) for part in parts]
        table[str(kept)] = psnr(torch.cat(rebuilt).clamp(0, 1), images, y=False).mean().item()
    return table


def used(model, indices, bits):
    """Of the codes; of each codebook, where there are several."""
    size = model.quantizer.codebook_size
    sizes = size if isinstance(size, (list, tuple)) else [size]
    books = indices.unbind(-1) if len(sizes) > 1 else [indices]
    rows = list(zip(books, sizes, strict=True))
    usage = [len(book.unique()) / each for book, each in rows]
    spread = [perplexity(book, each).item() for book, each in rows]
    several = len(rows) > 1
    return {
        "bits": bits,
        "usage": usage if several else usage[0],
        "perplexity": spread if several else spread[0],
    }


def probe(model, train, test):
    """Accuracy of ridge regression from all codes of a picture to which of twelve pictograms it
    shows (chance 0.083), on photographs that it was not fitted on."""
    sides = []
    for split, count, seed in (("train", train, 980_000), ("test", test, 990_001)):
        world = EmojiWorld(SIZE, split, artist="both", pictograms=list(EASY))
        images, labels = world.classify(count, seed, scale=(0.5, 0.95))
        codes = [model.encode(chunk).codes.flatten(1) for chunk in images.split(32)]
        sides.append((torch.cat(codes).double(), labels))
    (x, y), (held, truth) = sides
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    x, held = (x - mean) / scale, (held - mean) / scale
    wanted = torch.nn.functional.one_hot(y, len(EASY)).double() - 1 / len(EASY)
    ridge = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(ridge, x.T @ wanted)
    return ((held @ weights).argmax(dim=1) == truth).double().mean().item()


# ------------------------------------------------------------------------------------- training
def train(args):
    recipe = RECIPES[args.name]
    torch.manual_seed(args.seed)
    model = getattr(tokenizers, recipe.build)(**recipe.config).train()
    teacher = tokenizers.course_teacher() if recipe.teacher else None
    batches = Batches(args.seed, args.counts, args.pool)
    if recipe.start is not None:
        recipe.start(model, teacher, batches)
    optimizer = torch.optim.AdamW(groups(model, recipe), weight_decay=0.01, betas=(0.9, 0.95))

    def batch(step):
        images = batches(step)
        if teacher is None:
            return images, {}
        if recipe.teacher == "features":
            return images, {"teacher": teacher(images)}
        features, summary = teacher(images, summary=True)
        return images, {"teacher": features, "summary": summary}

    def loss(inputs):
        images, known = inputs
        value, parts = model.loss(images, **known)
        return value, {name: part.item() for name, part in parts.items()}

    rate = cosine(args.peak, args.steps, warmup=100, floor=0.02)
    fitted = fit(batch, loss, optimizer, args.steps, rate, autocast=False, every=args.every)
    return model.eval(), fitted


def groups(model, recipe):
    """Of parameters that are trained: all, and those that learn slowly."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    slow = [p for name, p in named if recipe.slow and name.startswith(recipe.slow)]
    fast = [p for name, p in named if not (recipe.slow and name.startswith(recipe.slow))]
    return [{"params": fast}, {"params": slow, "scale": 0.1}] if slow else [{"params": fast}]


def main(argv=None):
    parser = options(__doc__, STEPS, counts=KINDS, pool=POOL, every=200)
    parser.add_argument("name", choices=[*RECIPES, "table", "score"], help="a recipe")
    parser.add_argument("--peak", type=float, default=PEAK, help="highest learning rate")
    small = {kind: 2 for kind in KINDS}
    args = begin(parser, argv, counts=small, pool=64, scored=dict(pictures=8))
    if args.name == "table":
        print(table(args.out))
        return
    if args.name == "score":
        score_again(args.out)
        return
    model, fitted = train(args)
    recipe = RECIPES[args.name]
    told = dict(seed=args.seed, steps=args.steps, peak=args.peak)
    ship(
        args.out,
        STEM + args.name,
        model,
        lambda: rounded(score(model, **args.scored), 4),
        config=recipe.config,
        build=recipe.build,
        command=command(__file__, args.name, **told),
        seed=args.seed,
        keep=recipe.keep,
        steps=args.steps,
        minutes=round(fitted.minutes, 1),
    )


def score_again(folder):
    """Put today's scores into the headers of what is there."""
    for name in RECIPES:
        path = folder / f"{STEM}{name}.safetensors"
        if not path.is_file():
            continue
        header = checkpoints.info(path)
        model = checkpoints.load(path, getattr(tokenizers, header["build"]))
        header["score"] = rounded(score(model), 4)
        metadata = {key: json.dumps(value) for key, value in header.items()}
        save_file(load_file(path), path, metadata)
        print(name, json.dumps(header["score"]), flush=True)


def table(folder):
    """All scores as one table in Markdown; kB is of the file, - where scores alone are kept."""
    head = ["tokenizer", "kB", "bits", *KINDS, "codes used", "probe"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in RECIPES:
        path, scores = folder / f"{STEM}{name}.safetensors", folder / f"{STEM}{name}_seeds.json"
        if path.is_file():
            lines.append(line(name, checkpoints.info(path)["score"], path.stat().st_size))
        elif scores.is_file():
            lines.append(line(name, json.loads(scores.read_text())["0"]["score"], None))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def line(name, score, size):
    usage = score.get("usage", [])
    shares = usage if isinstance(usage, list) else [usage]
    return [
        f"`{STEM}{name}`",
        f"{size / 1000:.0f}" if size else "-",
        f"{score['bits']:.0f}" if "bits" in score else "real",
        *(f"{score[kind]['psnr']:.2f}" for kind in KINDS),
        " / ".join(f"{share:.0%}" for share in shares) or "-",
        f"{score['probe']:.2f}",
    ]


if __name__ == "__main__":
    main()
