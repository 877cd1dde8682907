"""diffusion_camouflage: a small denoiser conditioned on text, trained on textured camouflage.

    python train/diffusion.py                about 12 minutes on one core
    python train/diffusion.py --steps 3 --out FOLDER

Pictures of `vtlib.data.textures` with the six SEEN textures, silhouettes of the train split. Half
of the steps see complete camouflage up to half as much amplitude on objects, the other half also
objects of another colour. No mask and no label is used: the prompt is the list of the objects'
textures (a quarter of the prompts name up to two that are not there, too; one in eight is empty),
the loss is the noise's.

Score, on silhouettes of the test split: the denoising loss at several t with the right, an empty
and a wrong prompt, the same noise for all; and what a linear probe (ridge regression on each
pixel's features at stride 2) reads: IoU of "object", accuracy of the pixel's texture, with the
right prompt, all names, none, from a net that was not trained, and from raw pixels (7 x 7).
"""

import copy

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, options, rounded, ship
from torch import Tensor
from torch.optim import AdamW

from vtlib.data.textures import SEEN, TEXT_DIM, TextureScenes, TextureWorld, prompt
from vtlib.generation.diffusion import Denoiser, Features, diffusion_loss

CONFIG = dict(text_dim=TEXT_DIM, widths=[40, 64, 80, 96], scale=3.0)
SIZE, BATCH, RATE = 64, 16, 1.5e-3
LEVELS = (0, 50, 200, 400, 600, 800, 950)
EVERY_NAME = tuple(range(8))


def wrong(scenes: TextureScenes) -> Tensor:
    """(B, K) classes: for each object one of SEEN that the picture does not show."""
    shown = torch.cat([scenes.ground[:, None], scenes.label], 1)
    seen = torch.tensor(SEEN)
    absent = (seen != shown[..., None]).all(1)                                             # b seen
    pick = seen[absent.float().argmax(1)]
    return torch.where(scenes.valid, pick[:, None], -1)


def distracted(scenes: TextureScenes, generator: torch.Generator) -> Tensor:
    """Text of the objects' names; a quarter of the prompts have two places for other names."""
    seen = torch.tensor(SEEN)
    extra = seen[torch.randint(len(SEEN), (len(scenes), 2), generator=generator)]
    chosen = torch.rand(len(scenes), 1, generator=generator) < 0.25
    return prompt(torch.cat([scenes.label, torch.where(chosen, extra, -1)], 1))


def losses(model: Denoiser, scenes: TextureScenes) -> dict[str, dict[str, float]]:
    """t -> loss with the right, the empty and the wrong prompt; same noise."""
    texts = {"right": scenes.text(), "empty": None, "wrong": prompt(wrong(scenes))}
    table = {}
    for level in LEVELS:
        row = {}
        for name, text in texts.items():
            generator = torch.Generator().manual_seed(level)
            t = torch.full((len(scenes),), level)
            with torch.no_grad():
                loss = diffusion_loss(model, scenes.images, text, generator, 0.0, t)
            row[name] = loss.mean().item()
        table[str(level)] = row
    return table


def stacked(maps: Features) -> Tensor:
    """(B, h, w, all channels): each map brought to the decoder's size."""
    size = maps.decoder.shape[-2:]
    parts = [*maps.encoder, maps.decoder]
    parts = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in parts]
    return torch.cat(parts, 1).movedim(1, -1)


def raw(images: Tensor) -> Tensor:
    """(B, h, w, 147): each second pixel's 7 x 7 neighbourhood."""
    around = F.unfold(images, 7, padding=3, stride=2)
    return around.unflatten(2, (images.shape[-2] // 2, -1)).movedim(1, -1)


def read(
    train: Tensor, train_surface: Tensor, train_on: Tensor, test: Tensor, test_surface: Tensor,
    test_on: Tensor,
) -> dict[str, float]:
    """Ridge regression on pixels; IoU of objects (threshold of the training pictures), accuracy of
    the texture.

    Args:
        train: (B, h, w, C) features.
        train_surface: (B, h, w) long, each pixel's texture.
        train_on: (B, h, w) bool, pixels of objects.
        test: as `train`.
        test_surface: as `train_surface`.
        test_on: as `train_on`.
    """
    x = train.flatten(0, 2)
    mean, std = x.mean(0), x.std(0) + 1e-5
    x, y = (x - mean) / std, (test.flatten(0, 2) - mean) / std
    x, y = F.pad(x, (0, 1), value=1.0).double(), F.pad(y, (0, 1), value=1.0).double()
    on = train_on.flatten().double()
    goal = torch.cat([F.one_hot(train_surface.flatten(), 8).double(), on[:, None]], 1)
    gram = x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, x.T @ goal)
    fitted, got = x @ weight, y @ weight

    def iou(score: Tensor, truth: Tensor, level: float) -> float:
        guess = score > level
        return ((guess & truth).sum() / (guess | truth).sum().clamp(min=1)).item()

    truth = on > 0
    grid = torch.linspace(0.05, 0.8, 31).tolist()
    level = max(grid, key=lambda g: iou(fitted[:, 8], truth, g))
    right = (got[:, :8].argmax(1) == test_surface.flatten()).double().mean().item()
    return {"iou": iou(got[:, 8], test_on.flatten(), level), "texture": right}


def probes(
    model: Denoiser, train: TextureScenes, test: TextureScenes, levels: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """Name of the features -> {"iou", "texture"} of `read`.

    Args:
        model: the net.
        train: pictures that the probes are fitted on.
        test: pictures that they are scored on.
        levels: values of t.
    """
    torch.manual_seed(0)
    untrained = Denoiser(**CONFIG).eval()
    for m in untrained.modules():             # zeros at the blocks' ends would hide what they do
        if hasattr(m, "conv2"):
            m.conv2.reset_parameters()
    names = torch.tensor(EVERY_NAME).expand(max(len(train), len(test)), -1)

    def side(scenes: TextureScenes, kind: str, level: int) -> Tensor:
        if kind == "pixels":
            return raw(scenes.images)
        text = {"right": scenes.text(), "all": prompt(names[: len(scenes)]),
                "wrong": prompt(wrong(scenes))}.get(kind)
        net = untrained if kind == "untrained" else model
        with torch.no_grad():
            return stacked(net.features(scenes.images, text, level))

    out = {}
    for kind, level in [("pixels", 0), ("untrained", 0)] + [
        (kind, level) for level in levels for kind in ("right", "all", "empty", "wrong")
    ]:
        sets = []
        for scenes in (train, test):
            sets += [side(scenes, kind, level), scenes.surface[:, ::2, ::2],
                     scenes.instance[:, ::2, ::2] > 0]
        name = kind if kind in ("pixels", "untrained") else f"{kind}, t={level}"
        out[name] = read(*sets)
    return out


def score(model: Denoiser, pictures: int = 256, levels: tuple[int, ...] = (0, 100)) -> dict:
    model = model.eval()
    test = TextureWorld(SIZE, "test")
    held = test.scenes(pictures, 5)
    train = TextureWorld(SIZE, "train").scenes(pictures, 2_000_000)
    return rounded({"loss": losses(model, held), "probe": probes(model, train, held, levels)}, 4)


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, 2000)
    args = begin(parser, argv, scored=dict(pictures=8, levels=(0,)))
    torch.manual_seed(args.seed)
    model = Denoiser(**CONFIG).to(memory_format=torch.channels_last)
    world, generator = TextureWorld(SIZE, "train"), torch.Generator().manual_seed(args.seed)
    average = copy.deepcopy(model)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        ordinary = dict(contrast=(1, 2), colour=(0, 0.3)) if step % 2 else dict(contrast=(1, 1.5))
        scenes = world.scenes(BATCH, args.seed * 100_000 + step, **ordinary)
        return scenes.images, distracted(scenes, generator)

    def loss(inputs: tuple[Tensor, Tensor]) -> Tensor:
        images, text = inputs
        with torch.no_grad():                                  # of the weights before this step
            for kept, now in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(now, 0.02)
        images = images.to(memory_format=torch.channels_last)
        return diffusion_loss(model, images, text, generator, drop=0.125).mean()

    optimizer = AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    rate = cosine(RATE, args.steps, warmup=min(100, args.steps))
    fitted = fit(batch, loss, optimizer, args.steps, rate, autocast=False, every=args.every)
    ship(
        args.out, "diffusion_camouflage", average, lambda: score(average, **args.scored),
        config=CONFIG, command=command(__file__, steps=args.steps, seed=args.seed),
        seed=args.seed, steps=args.steps, minutes=round(fitted.minutes, 1),
    )


if __name__ == "__main__":
    main()
