"""What the notebooks run beside the lesson: trainings of rivals, a bias to fit, bills."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtlib import checkpoints
from vtlib.multiscale import pretrained
from vtlib.nn.checks import check_int, check_ints
from vtlib.teach.live import LiveCurve, train
from vtlib.teach.meter import activation_bytes, flops, processor_seconds
from vtlib.teach.tables import table


def race(
    makers: Mapping[str, Callable[[], nn.Module]],
    loss: Callable,
    steps: int,
    rate: float,
    title: str,
    ylabel: str,
    alt: str,
    seeds: Sequence[int] = (0, 1),
    decay: float = 0.01,
    every: int = 5,
    device=None,
) -> tuple[dict[str, list[nn.Module]], dict[str, list[list[float]]]]:
    """Train rivals one after the other under one live curve: ({name: models}, {name: losses}).

    The curve shows the mean over a rival's seeds, and over `every` steps.

    Args:
        makers: {name: makes an untrained model, after torch's seed was set}.
        loss: called with model, step and a generator of the seed; returns what is minimised, or a
            pair: that, and what the curve shows instead.
        steps: of each training.
        rate: the highest learning rate.
        title: of the curve.
        ylabel: what the curve shows.
        alt: what there is to see.
        seeds: one training each.
        decay: weight decay.
        every: steps from one point of the curve to the next.
        device: of the models.
    """
    every, models, losses = check_int(every, "every", 1), {}, {}
    with LiveCurve(steps, title, ylabel, alt=alt) as live:
        for name, make in makers.items():
            models[name], losses[name] = [], []
            for seed in seeds:
                torch.manual_seed(seed)
                models[name].append(make().to(device))
                generator = torch.Generator().manual_seed(seed)
                run = _losses(models[name][-1], loss, steps, rate, decay, generator)
                losses[name].append(run)
            mean = torch.tensor(losses[name], dtype=torch.float64).mean(dim=0)
            for step in range(every, steps + 1, every):
                live.update(step, **{name: mean[step - every:step].mean()})
    return models, losses


def _losses(model, loss, steps, rate, decay, generator) -> list[float]:
    """What the curve shows of one training."""
    shown = []

    def one(step):
        value = loss(model, step, generator)
        value, seen = value if isinstance(value, tuple) else (value, value)
        shown.append(seen.item())
        return value

    train(model, one, steps=steps, rate=rate, decay=decay)
    return shown


@torch.no_grad()
def share_right(
    models: Mapping[str, Sequence[nn.Module]], inputs: Sequence[Tensor], answers: Tensor
) -> dict[str, list[float]]:
    """How often each model's largest logit is the answer, as a table and as {name: one a seed}.

    Args:
        models: {name: one model a seed}, each inputs -> logits (B, classes).
        inputs: what a model is called with.
        answers: (B,).
    """
    shares = {}
    for name, seeds in models.items():
        hits = [model(*inputs).argmax(dim=-1) == answers for model in seeds]
        shares[name] = [hit.float().mean().item() for hit in hits]
    count = len(next(iter(shares.values())))
    header = ["model", *[f"right, seed {seed}" for seed in range(count)]]
    table(header, [[name, *[f"{s:.2f}" for s in runs]] for name, runs in shares.items()])
    return shares


def stored_scores(name: str, seeds: int = 2) -> list[dict[str, float]]:
    """For each seed {size of the object: percent right} of a model of `pretrained.MODELS`.

    As the training script measured it, on 1,000 pictures a size.
    """
    runs = checkpoints.seeds(pretrained.stem(name))
    scores = [runs[seed]["score"] for seed in range(check_int(seeds, "seeds", 1))]
    return [{size: 100 * share for size, share in score.items()} for score in scores]


def two_starts(names: Mapping[str, str]) -> dict[str, Callable[[], nn.Module]]:
    """Makers of models of `pretrained.MODELS`, from the official start of f and g and a larger one.

    names: {fusion: name}; returns {"fusion, official": ..., "fusion, larger": ...}.
    """
    makers = {}
    for fusion, name in names.items():
        kind, plan = pretrained.config(name)
        for start, larger in (("official", False), ("larger", True)):
            changed = plan | {"fan_in_projs": larger}
            makers[f"{fusion}, {start}"] = partial(pretrained.build, kind, changed)
    return makers


def all_attention_flops(n_small: int, n_large: int, widths: Sequence[int] = (96, 192)) -> int:
    """FLOPs of all-attention fusion: all tokens go to the large width, attend to all, and go home.

    Args:
        n_small: patches of the small-patch branch.
        n_large: patches of the large-patch branch.
        widths: of both branches.
    """
    small, large = check_ints(widths, "widths", 1, length=2)
    there_and_home = 2 * 2 * ((1 + n_small) * small + (1 + n_large) * large) * large
    tokens = 2 + n_small + n_large
    query_key_value_and_proj = 4 * 2 * large**2 * tokens
    scores_and_sum = 2 * 2 * large * tokens**2                                     # the square
    return there_and_home + query_key_value_and_proj + scores_and_sum


def exchange_flops(n_small: int, n_large: int, widths: Sequence[int] = (96, 192)) -> int:
    """FLOPs of CrossViT's exchange: each [CLS] visits the patches of the other branch.

    Args:
        n_small: patches of the small-patch branch.
        n_large: patches of the large-patch branch.
        widths: of both branches.
    """
    small, large = check_ints(widths, "widths", 1, length=2)
    return _visit_flops(n_large, small, large) + _visit_flops(n_small, large, small)


def _visit_flops(n_other: int, own: int, other: int) -> int:
    """One direction: a [CLS] of width `own` visits n_other patches of width `other`."""
    there_and_home = 2 * (2 * own * other)                                         # f and g
    query_and_proj = 2 * (2 * other**2)                                            # one token
    keys_and_values = 2 * (2 * other**2) * (1 + n_other)                           # all tokens
    scores_and_sum = 2 * (2 * other) * (1 + n_other)                               # one row
    return there_and_home + query_and_proj + keys_and_values + scores_and_sum


def three_biases(offsets: Tensor) -> Tensor:
    """Three invented heads of a position bias: offsets (rows, 2) -> (rows, 3).

    The first fades with the distance, exp(-r / 3); the second tells up from down, tanh(dy / 2);
    the third is a cone, -(|dy| + |dx|) / 6.
    """
    dy, dx = offsets.unbind(dim=-1)
    fades = (-(dy**2 + dx**2).sqrt() / 3).exp()
    cone = -(dy.abs() + dx.abs()) / 6
    return torch.stack([fades, (dy / 2).tanh(), cone], dim=-1)


def bias_tables(dpb: nn.Module, offsets: Callable[[int], Tensor], trained: int = 7) -> Callable:
    """A function G -> {"wanted", "DPB", "stretched": (2G - 1, 2G - 1, heads)}.

    Args:
        dpb: offsets (rows, 2) -> biases (rows, 3), fitted to `three_biases`.
        offsets: G -> ((2G - 1)^2, 2), dy outer.
        trained: the G whose exact table is stretched, bicubically.
    """

    def tables(group: int) -> dict[str, Tensor]:
        side = 2 * group - 1
        at = offsets(group).float()
        flat = {"wanted": three_biases(at), "DPB": dpb(at).detach()}
        found = {name: rearrange(t, "(y x) h -> y x h", y=side) for name, t in flat.items()}
        old = three_biases(offsets(trained).float())
        old = rearrange(old, "(y x) h -> 1 h y x", y=2 * trained - 1)
        stretched = F.interpolate(old, size=(side, side), mode="bicubic")
        return found | {"stretched": rearrange(stretched, "1 h y x -> y x h")}

    return tables


def fit_bias(dpb: nn.Module, offsets: Tensor) -> float:
    """Fit a bias MLP to `three_biases` in 300 steps; returns its squared error.

    dpb: offsets (rows, 2) -> (rows, 3).
    """
    at, wanted = offsets.float(), three_biases(offsets.float())

    def loss(step):
        return F.mse_loss(dpb(at), wanted)

    return train(dpb, loss, steps=300, rate=0.02, decay=0)[-1]


def bias_errors(tables: Callable, groups: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Squared errors of `bias_tables` at group sizes, as a table and as {G: (DPB, stretched)}.

    The table has a yardstick, too: the error of each head's mean, everywhere.
    """
    errors, rows = {}, []
    for group in check_ints(groups, "groups", 1):
        wanted, *rivals = tables(group).values()
        errors[group] = tuple(F.mse_loss(rival, wanted).item() for rival in rivals)
        spread = wanted.var(dim=(0, 1), correction=0).mean().item()
        rows.append([group, *[f"{error:.3f}" for error in (*errors[group], spread)]])
    header = ["G", "DPB", "stretched table", "each head's mean"]
    table(header, rows, caption="Squared error, mean of all heads")
    return errors


@torch.no_grad()
def bill(model: nn.Module, images: Tensor) -> tuple[float, float, float, float]:
    """What a model costs: (MFLOPs an image, ms for all images, million parameters, MB kept).

    The time is the processor's, the least of 15. The last is what training keeps for backward, an
    image. images: (B, 3, H, W).
    """
    work, seconds = flops(model, images[:1]), processor_seconds(model, images, repeat=15)
    kept = activation_bytes(model, images[:1].clone())          # a view would keep them all
    parameters = sum(p.numel() for p in model.parameters())
    return work / 1e6, 1000 * seconds, parameters / 1e6, kept / 1e6
