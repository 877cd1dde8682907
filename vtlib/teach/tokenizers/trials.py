"""What the experiments on vector quantisation need beside their idea."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from vtlib import checkpoints
from vtlib.teach.figures import figure
from vtlib.teach.pictures import grid, seeds
from vtlib.tokenizers.pretrained import STEM


def shuffled(count: int, seed: int) -> Tensor:
    """0 ... count - 1 in an order that the seed decides."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def convolutions(dim: int, width: int = 32) -> tuple[nn.Module, nn.Module]:
    """(encoder (3, H, W) -> (dim, H / 8, W / 8), decoder back): three convolutions each.

    Args:
        dim: channels in the middle.
        width: channels of the other layers.
    """
    down = nn.Sequential(
        nn.Conv2d(3, width, 4, stride=4), nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
        nn.Conv2d(width, dim, 2, stride=2),
    )
    up = nn.Sequential(
        nn.Conv2d(dim, width, 3, padding=1), nn.GELU(),
        nn.ConvTranspose2d(width, width, 2, stride=2), nn.GELU(),
        nn.ConvTranspose2d(width, 3, 4, stride=4),
    )
    return down, up


def health_figure(health: Mapping[str, Sequence[Sequence[float]]], titles: Sequence[str]) -> Figure:
    """Perplexity and PSNR of trainings, a dot a seed.

    Args:
        health: {name: for each seed (usage, perplexity, PSNR)}, in the order of drawing.
        titles: of the two panels.
    """
    fig, axes = figure(2, size=(10.2, 3.3), layout="constrained")
    names = [textwrap.fill(name.replace("+ ", "+"), 9) for name in health]
    for ax, place, what in ((axes[0], 1, "perplexity, of 64 codes"), (axes[1], 2, "PSNR (dB)")):
        seeds(ax, names, {what: [[run[place] for run in runs] for runs in health.values()]})
        ax.set(title=titles[place - 1], ylabel=what)
        ax.tick_params(axis="x", labelsize=7.5)
    axes[0].set_ylim(0, 64)
    return fig


def factors(
    seed: int, meanings: int = 8, textures: int = 16, count: int = 6000, noise: float = 0.35
) -> tuple[list[Tensor], list[Tensor]]:
    """Vectors of two independent factors: halves [(N, 32), (N, 8)] and labels [(N,), (N,)].

    Args:
        seed: of all that is drawn.
        meanings: kinds of the first factor.
        textures: kinds of the second.
        count: N.
        noise: deviation, of each number.
    """
    generator = torch.Generator().manual_seed(seed)
    halves, labels = [], []
    for kinds, dim in ((meanings, 32), (textures, 8)):
        label = torch.randint(kinds, (count,), generator=generator)
        centre = torch.randn(kinds, dim, generator=generator)[label]
        halves.append(centre + noise * torch.randn(count, dim, generator=generator))
        labels.append(label)
    return halves, labels


def occurrences(found: Tensor, size: int) -> Tensor:
    """Indices (B, n) -> the square root of how often each occurs in a picture, (B, size)."""
    counts = torch.zeros(len(found), size)
    return counts.scatter_add(1, found, torch.ones(found.shape)).sqrt()


def probe_indices(
    found: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], size: int, ridge: float = 0.5
) -> float:
    """Accuracy of a linear probe that sees how often each index occurs in a picture: ridge
    regression on the first pictures, judged on the second.

    Args:
        found: indices (B, n) of both.
        labels: classes (B,) of both.
        size: K.
        ridge: its weight, over the number of pictures.
    """
    x, new_x = (occurrences(indices, size) for indices in found)
    centre, scale = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    x, new_x = (x - centre) / scale, (new_x - centre) / scale
    classes = int(labels[0].max()) + 1
    wanted = F.one_hot(labels[0], classes).float() - 1 / classes
    gram = x.T @ x + ridge * len(x) * torch.eye(size)
    weights = torch.linalg.solve(gram, x.T @ wanted)
    return ((new_x @ weights).argmax(dim=1) == labels[1]).float().mean().item()


def explained(found: Tensor, x: Tensor, size: int) -> float:
    """Share of the variance of x (N, D) that the means by index explain.

    Args:
        found: indices (N,).
        x: what they stand for.
        size: K.
    """
    count = torch.bincount(found, minlength=size).clamp(min=1)[:, None]
    mean = torch.zeros(size, x.shape[1]).index_add(0, found, x) / count
    rest = (x - mean[found]).square().sum()
    return 1 - (rest / (x - x.mean(dim=0)).square().sum()).item()


def report(name: str) -> list[str]:
    """A row of a table on a shipped tokenizer: name, bits, PSNR of scenes, codes used, probe."""
    score = checkpoints.info(STEM + name)["score"]
    usage = score.get("usage")
    shares = usage if isinstance(usage, list) else [usage] if usage is not None else []
    used = " / ".join(f"{share:.0%}" for share in shares) or "-"
    bits = f"{score.get('bits', math.inf):.0f}"
    return [name, bits, f"{score['scenes']['psnr']:.1f}", used, f"{score['probe']:.2f}"]


@torch.no_grad()
def by_scales(tokenizer: nn.Module, images: Tensor, title: str) -> Figure:
    """What a tokenizer of scales paints from the first one, the first two, and so on.

    Args:
        tokenizer: as `vtlib.tokenizers.TokenFlow`.
        images: (B, 3, H, W).
        title: the message.
    """
    quantizer, maps = tokenizer.quantizer, tokenizer.features(images)
    rows, titles, places = [], [], 0
    for n, (height, width) in enumerate(quantizer.scales, start=1):
        places += height * width
        rows.append(tokenizer.decode(quantizer(maps, num_levels=n).codes))
        word = "token" if places == 1 else "tokens"
        titles += [f"{places} {word}"] + [""] * (len(images) - 1)
    titles += ["the scenes"] + [""] * (len(images) - 1)
    pictures = torch.cat([*rows, images]).clamp(0, 1)
    return grid(pictures, titles, cols=len(images), title=title, size=1.1)
