"""What the training scripts share: `options` and `begin` read the command line, `fit` is the loop,
`ship` writes the checkpoint.

A script keeps what is its own: the configuration, the batches, the loss and the score. It runs on
one thread of a CPU.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from vtlib import checkpoints

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ROOT / "data" / "checkpoints"
SMOKE = 50
"""With fewer --steps a run is a smoke run: it shows that the script works, and trains nothing."""


class Fitted(NamedTuple):
    """rows: each step's {"loss": value}, or what the loss told; minutes of processor time."""

    rows: list[dict[str, float]]
    minutes: float


def options(text: str, steps: int | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser that every script begins with: --seed, --steps, --out, --every.

    The attribute `scored` holds what the script's `score` is called with: nothing in a full run.

    Args:
        text: the script's docstring, shown by --help.
        steps: how many steps the shipped weights took; None when the script says it differently.
        defaults: other defaults of these options (`every=250`), and attributes without an option.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help="folder of the checkpoint")
    parser.add_argument("--every", type=int, default=100, help="steps between two lines")
    parser.set_defaults(**{"scored": {}, **defaults})
    return parser


def begin(
    parser: argparse.ArgumentParser, argv: list[str] | None = None, **smoke: Any
) -> argparse.Namespace:
    """The parsed command line. One thread from here on: more are in each other's way here.

    Args:
        parser: of `options`.
        argv: the words; None: those that the script was called with.
        smoke: defaults that take the place of the parser's in a smoke run, such as a small batch,
            and under `scored` few pictures to score.
    """
    args = parser.parse_args(argv)
    unknown = smoke.keys() - vars(args).keys()
    if unknown:
        known = ", ".join(vars(args))
        raise ValueError(f"smoke has {sorted(unknown)}, but the parser knows only {known}")
    if args.steps is not None and args.steps < SMOKE:
        parser.set_defaults(**smoke)
        args = parser.parse_args(argv)
        if args.out == CHECKPOINTS:
            parser.error(f"--steps {args.steps} is a smoke run: --out needs a folder of its own")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def command(script: str, *words: str, **given: Any) -> str:
    """The command of a training as its header states it: command("vit.py", seed=0)."""
    parts = [f"--{name} {value}" for name, value in given.items()]
    return " ".join([f"OMP_NUM_THREADS=1 python train/{Path(script).name}", *words, *parts])


def cosine(
    peak: float, total: int, warmup: int = 60, floor: float = 0.02, first: int = 0
) -> Callable[[int], float]:
    """step -> learning rate: a straight rise under one cosine.

    Args:
        peak: the cosine's highest rate.
        total: the steps of the cosine, over all phases.
        warmup: steps of the rise.
        floor: the share of `peak` that the cosine ends at.
        first: the step at which this phase's rise begins.
    """

    def rate(step: int) -> float:
        rise = min(1.0, (step - first + 1) / warmup)
        return peak * rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / total)))

    return rate


def decayed(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices and kernels decay, biases, norms and single numbers don't.

    Args:
        parameters: those that are trained.
        weight_decay: of the first group.
    """
    every = list(parameters)
    return [
        dict(params=[p for p in every if p.dim() > 1], weight_decay=weight_decay),
        dict(params=[p for p in every if p.dim() <= 1], weight_decay=0.0),
    ]


def same_captions(captions: list[str]) -> Tensor:
    """(B, B) bool: pictures with equal captions are right answers for each other."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[caption] for caption in captions])
    return ids[:, None] == ids


def fit(
    batch: Callable[[int], Any],
    loss: Callable[[Any], Tensor | tuple[Tensor, dict[str, float]]],
    optimizer: torch.optim.Optimizer,
    steps: int | range,
    rate: Callable[[int], float] | LRScheduler,
    *,
    clip: float | None = 1.0,
    parts: list[list[nn.Parameter]] | None = None,
    autocast: bool = True,
    every: int = 100,
    then: Callable[[int], str | None] | None = None,
) -> Fitted:
    """The loop: rate, batch, loss, gradient, clipping, step, and a line every so often.

    Args:
        batch: step -> what `loss` takes.
        loss: batch -> the loss, or the loss and numbers to print; runs in bfloat16 autocast.
        optimizer: a group of parameters with a "scale" gets that many times the rate.
        steps: how many, or the numbers of a later phase's steps.
        rate: step -> learning rate, or a scheduler of torch for this optimizer.
        clip: the largest norm of a gradient; None leaves it.
        parts: lists of parameters, each clipped on its own; default all that the optimizer has.
        autocast: False computes everything in float32.
        every: steps between two lines.
        then: called with the number of steps done whenever a line is due; its text ends the line.
    """
    start = time.process_time()
    numbers = range(steps) if isinstance(steps, int) else steps
    groups = optimizer.param_groups
    parts = parts or [[p for group in groups for p in group["params"]]]
    rows: list[dict[str, float]] = []
    for step in numbers:
        if not isinstance(rate, LRScheduler):
            for group in groups:
                group["lr"] = rate(step) * group.get("scale", 1.0)
        inputs = batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = loss(inputs)
        value, row = out if isinstance(out, tuple) else (out, {"loss": out.item()})
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        for part in parts if clip is not None else []:
            nn.utils.clip_grad_norm_(part, clip)
        optimizer.step()
        if isinstance(rate, LRScheduler):
            rate.step()
        rows.append(row)
        done = step + 1
        if done % every == 0 or done == numbers.stop:
            told = then(done) if then else None
            seconds = time.process_time() - start
            line = f"step {done}/{numbers.stop}: {average(rows[-every:])}, {seconds:.0f} s"
            print(f"{line}; {told}" if told else line, flush=True)
    return Fitted(rows, (time.process_time() - start) / 60)


def average(rows: list[dict[str, float]]) -> str:
    """The rows' means by name, "loss 0.123, ..."; NaN is a number that a step doesn't have."""
    means = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in rows[-1]}
    return ", ".join(f"{name} {sum(m) / len(m):.4f}" for name, m in means.items() if m)


def rounded(value: Any, digits: int = 3) -> Any:
    """Floats in dicts and lists, rounded."""
    if isinstance(value, dict):
        return {name: rounded(inner, digits) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner, digits) for inner in value]
    return round(value, digits) if isinstance(value, float) else value


def stored(model: nn.Module) -> dict[str, Tensor]:
    """The weights in half precision, where they are floating; `model` then holds just these."""
    state = model.state_dict()
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    model.eval()
    return state


def ship(
    folder: Path,
    stem: str,
    model: nn.Module,
    score: Callable[[], Any],
    *,
    config: dict[str, Any],
    command: str,
    seed: int,
    keep: bool = True,
    shared: dict[str, Any] | None = None,
    **known: Any,
) -> dict[str, Any]:
    """Round `model` to half precision, score what is then stored, and write it; returns the header.

    Seed 0 becomes folder/stem.safetensors with the header of `vtlib.checkpoints`. Another seed's
    weights are not kept: what is known of it becomes a row of folder/stem_seeds.json, beside a row
    of seed 0 (`vtlib.checkpoints.seeds`).

    Args:
        folder: where to write.
        stem: the checkpoint's name.
        model: holds the stored weights afterwards, in eval mode.
        score: called once the model holds what is stored.
        config: what builds the model again.
        command: the training's command.
        seed: the training's seed.
        keep: False: not even seed 0's weights are kept, its row is.
        shared: further keys of the header that don't depend on the seed.
        known: further keys of header and row, such as steps and minutes.
    """
    state = stored(model)
    row = dict(command=command, seed=seed, score=score(), **known)
    header = dict(config=config, **(shared or {}), **row)
    weights, table = folder / f"{stem}.safetensors", folder / f"{stem}_seeds.json"
    shipped = keep and seed == 0
    if shipped:
        metadata = {key: json.dumps(value) for key, value in header.items()}
        save_file(state, weights, metadata)
    if not shipped or table.exists():
        note(table, weights, row)
    print(f"{stem}, seed {seed}: {json.dumps(row['score'])}", flush=True)
    return header


def note(path: Path, weights: Path, row: dict[str, Any]) -> None:
    """Put `row` into the table of all seeds.

    A table without seed 0 gets that from the header of its weights, where they are there.

    Args:
        path: the table, a .json.
        weights: seed 0's checkpoint.
        row: what is known of a training; its "seed" says of which.
    """
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "0" not in table and weights.exists():
        header = checkpoints.info(weights)
        table["0"] = {key: header[key] for key in row if key in header}
    table[str(row["seed"])] = row
    table = {seed: table[seed] for seed in sorted(table, key=int)}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
