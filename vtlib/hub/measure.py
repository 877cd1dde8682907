"""What pruning does to a model of yours: tokens, time, memory and answers, method by method.

    python -m vtlib.hub.measure llava-hf/llava-1.5-7b-hf --methods divprune fastv --keep 64 0.25

MODEL is a folder or a name on the hub. It answers questions about a folder of pictures (--pictures,
--questions FILE.jsonl; without them three questions about each of the package's own photographs),
first unpruned, then with each method at each keep. A table is printed, --json OUT keeps it. In a
notebook:

    rows = measure(model, inputs, ["divprune", "fastv"], [64, 0.25])
    print(table(rows))

`inputs` are what the model's processor gives: one prompt, or a list of them. A row holds means over
all prompts:

    visual     visual tokens of a prompt that the decoder's last layer sees
    prompt     tokens of a prompt, mean over the layers: what goes in the middle counts in part
    first ms   from the pixels to the first token: vision tower, method and prefill (median of the
               repeats; they are interleaved over all methods, so that a busy minute meets all)
    ms/token   each further token of the answer (median)
    cache      bytes of the keys and values that the layers hold behind the prompt
    peak       the most that the GPUs had allocated, weights included; None without one
    tokens     share of the answer's greedy tokens that are the unpruned model's, place by place
    answers    share of answers that are equal in all tokens

One different token shifts all behind it, so `tokens` is a harsh judge of long answers. Whatever
cannot be run, say a method that reads [CLS] where the encoder has none, is a row with its reason.
Options of `vtlib.hub.prune` go to every run (--option NAME=VALUE). Of a method with two parts it
runs the part before the decoder; for both give `measure` a `prune` of your own.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn.checks import check_callable, check_int, check_list
from ..pruning.registry import METHODS, find
from .pruning import prune as hub_prune
from .pruning import unwrapped
from .questions import load, pictures, prompt, questions


# --------------------------------------------------------------------------------------- the result
@dataclass(frozen=True)
class Row:
    """One method at one keep, as the module says; times in ms, memory in bytes.

    keep None: the unpruned model. reason: why there are no numbers. decode_ms is None where all
    answers are one token long.
    """

    method: str
    keep: int | float | None
    visual_tokens: float | None = None
    prompt_tokens: float | None = None
    first_ms: float | None = None
    decode_ms: float | None = None
    cache_bytes: float | None = None
    peak_bytes: int | None = None
    equal_tokens: float | None = None
    equal_answers: float | None = None
    reason: str | None = None


COLUMNS = (
    ("visual", "visual_tokens", "{:.0f}", 1),
    ("prompt", "prompt_tokens", "{:.0f}", 1),
    ("first ms", "first_ms", "{:.1f}", 1),
    ("ms/token", "decode_ms", "{:.1f}", 1),
    ("cache MB", "cache_bytes", "{:.2f}", 1e-6),
    ("peak MB", "peak_bytes", "{:.0f}", 1e-6),
    ("tokens %", "equal_tokens", "{:.0f}", 100),
    ("answers %", "equal_answers", "{:.0f}", 100),
)
"""(title, field of `Row`, format, factor) of the table."""


def table(rows: Sequence[Row]) -> str:
    """The rows as an aligned table; a column without any number is left out."""
    rows = check_list(rows, "rows", "what `measure` returns")
    shown = [c for c in COLUMNS if any(getattr(row, c[1]) is not None for row in rows)]
    cells = [["method", "keep", *(title for title, *_ in shown)]]
    for row in rows:
        numbers = [] if row.reason else [_cell(getattr(row, c[1]), *c[2:]) for c in shown]
        cells.append([row.method, "all" if row.keep is None else str(row.keep), *numbers])
    columns = range(2 + len(shown))
    widths = [max(len(line[i]) for line in cells if i < len(line)) for i in columns]
    lines = []
    for line, row in zip(cells, [None, *rows], strict=True):
        first, *rest = [cell.rjust(width) for cell, width in zip(line, widths, strict=False)]
        told = [row.reason] if row is not None and row.reason else []
        lines.append("  ".join([line[0].ljust(len(first)), *rest, *told]))
    return "\n".join(lines)


def _cell(value: float | None, form: str, factor: float) -> str:
    return "-" if value is None else form.format(value * factor)


# ---------------------------------------------------------------------------------------- measuring
class Clock:
    """A logits processor that changes nothing and notes when each token's logits are there."""

    def __init__(self, model: Any):
        self.on_gpu = any(p.device.type == "cuda" for p in model.parameters())
        self.stamps = [self.now()]

    def now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.stamps.append(self.now())
        return scores

    @property
    def milliseconds(self) -> list[float]:
        """To the first token, and from each to the next."""
        pairs = zip(self.stamps, self.stamps[1:], strict=False)
        return [1000 * (end - start) for start, end in pairs]


def greedy(model: Any, prompt: Mapping[str, Any], new_tokens: int) -> tuple[Any, list[float]]:
    """(what `generate` returns, milliseconds of each token) of greedy decoding.

    Args:
        model: of transformers, pruned or not.
        prompt: what its processor gives.
        new_tokens: at most so many.
    """
    from transformers import LogitsProcessorList

    clock = Clock(model)
    out = model.generate(
        **prompt,
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([clock]),
    )
    return out, clock.milliseconds


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values of all layers of a transformers cache."""
    parts = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))


@dataclass
class Trial:
    """One method at one keep: what its runs have shown so far.

    times: for each prompt, the milliseconds of each repeat's tokens. answers: for each prompt, the
    tokens of each of its rows.
    """

    name: str
    method: Any
    keep: int | float | None
    reason: str | None = None
    visual: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    times: list[list[list[float]]] = field(default_factory=list)
    answers: list[list[list[int]]] = field(default_factory=list)
    peak: int | None = None


@dataclass(frozen=True)
class Bench:
    """A model and its prompts.

    Args:
        model: of transformers.
        prompts: what its processor gives, a list.
        new_tokens: of an answer, at most.
        prune: `vtlib.hub.prune` or a function like it.
        options: of it.
    """

    model: Any
    prompts: list[Mapping[str, Any]]
    new_tokens: int
    prune: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def opened(self, trial: Trial) -> Any:
        if trial.keep is None:
            return contextlib.nullcontext()
        return self.prune(self.model, trial.method, trial.keep, **self.options)

    def begin(self, trial: Trial) -> None:
        """What does not depend on the clock, which warms up, too."""
        with self.opened(trial) as pruned:
            for prompt in self.prompts:
                out, _ = greedy(self.model, prompt, 1)
                visual, length = self.count(prompt, pruned)
                trial.visual.append(visual)
                trial.lengths.append(length)
                trial.held.append(cache_bytes(out.past_key_values))
                trial.times.append([])
        trial.answers = [[] for _ in self.prompts]

    def count(self, prompt: Mapping[str, Any], pruned: Any) -> tuple[float, float]:
        """(visual tokens in the last layer, a row; tokens, mean over the layers)."""
        ids, config = prompt["input_ids"], unwrapped(self.model).config
        names = ("image_token_id", "video_token_id")
        codes = [getattr(config, name, None) for name in names]
        visual = torch.isin(ids, torch.tensor([c for c in codes if c is not None]).to(ids))
        if pruned is None:
            return float(visual.sum()) / len(ids), float(ids.shape[1])
        columns, valid = pruned.columns.to(ids.device), pruned.valid.to(ids.device)
        left = visual.gather(1, columns.clamp(min=0)) & valid
        return float(left.sum()) / len(ids), statistics.fmean(pruned.lengths)

    def turn(self, trial: Trial) -> None:
        """Every prompt once, timed."""
        devices = {p.device for p in self.model.parameters() if p.device.type == "cuda"}
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        with self.opened(trial):
            for i, prompt in enumerate(self.prompts):
                out, spent = greedy(self.model, prompt, self.new_tokens)
                trial.times[i].append(spent)
                trial.answers[i] = self.answer(out.sequences[:, prompt["input_ids"].shape[1] :])
        if devices:
            peak = sum(torch.cuda.max_memory_allocated(device) for device in devices)
            trial.peak = max(peak, trial.peak or 0)

    def answer(self, tokens: Tensor) -> list[list[int]]:
        """The tokens of each row, up to the first that ends an answer; padding is behind it."""
        ends = getattr(unwrapped(self.model).generation_config, "eos_token_id", None)
        ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
        rows = []
        for row in tokens.tolist():
            stop = next((i for i, token in enumerate(row) if token in ends), len(row))
            rows.append(row[: stop + 1])
        return rows

    def run(self, trial: Trial, part: Callable[[Trial], None]) -> None:
        """A part of a trial; what goes wrong in one of a pruned model becomes its reason."""
        try:
            part(trial)
        except Exception as error:
            if trial.keep is None:
                raise
            trial.reason = " ".join(f"{type(error).__name__}: {error}".split())


def agreement(ours: list[list[list[int]]], theirs: list[list[list[int]]]) -> tuple[float, float]:
    """(share of equal tokens, share of equal answers), means over all rows of all prompts.

    Of two answers of different length what only one has is different.
    """
    pairs = [
        pair
        for mine, other in zip(ours, theirs, strict=True)
        for pair in zip(mine, other, strict=True)
    ]
    shares = [
        sum(a == b for a, b in zip(mine, other, strict=False)) / max(len(mine), len(other))
        for mine, other in pairs
    ]
    return statistics.fmean(shares), statistics.fmean(mine == other for mine, other in pairs)


def summary(trial: Trial, unpruned: Trial) -> Row:
    """What a trial showed, as a row."""
    if trial.reason:
        return Row(trial.name, trial.keep, reason=trial.reason)
    first = [statistics.median(run[0] for run in runs) for runs in trial.times]
    steps = [[ms for run in runs for ms in run[1:]] for runs in trial.times]
    later = [statistics.median(times) for times in steps if times]
    tokens, answers = agreement(trial.answers, unpruned.answers)
    return Row(
        method=trial.name,
        keep=trial.keep,
        visual_tokens=statistics.fmean(trial.visual),
        prompt_tokens=statistics.fmean(trial.lengths),
        first_ms=statistics.fmean(first),
        decode_ms=statistics.fmean(later) if later else None,
        cache_bytes=statistics.fmean(trial.held),
        peak_bytes=trial.peak,
        equal_tokens=tokens,
        equal_answers=answers,
    )


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def measure(
    model: Any,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    methods: Sequence[Any],
    keeps: Sequence[int | float],
    *,
    new_tokens: int = 16,
    repeats: int = 3,
    prune: Callable[..., Any] = hub_prune,
    progress: Callable[[str], Any] | None = None,
    **options: Any,
) -> list[Row]:
    """The unpruned model, then each method at each keep, on all prompts: a list of `Row`.

    Args:
        model: an image-text-to-text model of transformers, also inside PEFT.
        inputs: what its processor gives, on the model's device: one prompt or a list of them.
        methods: as `vtlib.hub.prune` takes them.
        keeps: likewise.
        new_tokens: k, of an answer at most.
        repeats: timed runs of each combination.
        prune: (model, method, keep, **options) -> context, in place of `vtlib.hub.prune`.
        progress: called with a line of text before each round of a combination.
        options: of `prune`, such as positions="keep".

    ValueError for inputs that are no prompts, for an unknown method and for counts below 1; what
    the unpruned model raises. A pruned run that fails is a row with `reason`.
    """
    prompts = [inputs] if isinstance(inputs, Mapping) else check_list(inputs, "inputs", "prompts")
    if not prompts or any("input_ids" not in prompt for prompt in prompts):
        raise ValueError("inputs: needs what a processor gives, a dict with input_ids, or several")
    new_tokens = check_int(new_tokens, "new_tokens", 1)
    repeats = check_int(repeats, "repeats", 1)
    check_callable(prune, "prune", "a function (model, method, keep) -> context")
    known = [find(method) for method in check_list(methods, "methods", "a list of methods")]
    keeps = check_list(keeps, "keeps", "a list of budgets")
    bench = Bench(model, prompts, new_tokens, prune, options)
    trials = [Trial("unpruned", None, None)]
    trials += [Trial(method.name, method, keep) for method in known for keep in keeps]
    tell = progress or (lambda line: None)
    with _evaluating(unwrapped(model)):
        for turn in range(repeats + 1):
            # there and back, so that what drifts meets all alike
            for trial in reversed(trials) if turn % 2 else trials:
                if trial.reason is None:
                    tell(f"round {turn} of {repeats}: {trial.name} {trial.keep or ''}")
                    bench.run(trial, bench.turn if turn else bench.begin)
    return [summary(trial, trials[0]) for trial in trials]


# ------------------------------------------------------------------------------- the command line
def budget(text: str) -> int | float:
    """"64" is 64 tokens, "0.25" a quarter of them."""
    return float(text) if "." in text else int(text)


def option(text: str) -> tuple[str, Any]:
    """"positions=keep" or "alpha=0.5": a name, and a value in JSON's spelling, or a word."""
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise ValueError("needs NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def parser() -> argparse.ArgumentParser:
    """The switches of the command."""
    made = argparse.ArgumentParser(prog="python -m vtlib.hub.measure", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("model", help="a folder, or a name on the hub")
    made.add_argument("--methods", nargs="+", default=["divprune", "fastv"], metavar="METHOD",
                      help=f"of {', '.join(sorted(METHODS))}, or all")
    made.add_argument("--keep", nargs="+", type=budget, default=[64], metavar="KEEP",
                      help="visual tokens of a picture: 64, or a fraction: 0.25")
    made.add_argument("--option", nargs="+", type=option, default=[], metavar="NAME=VALUE",
                      help="for vtlib.hub.prune, such as positions=keep")
    made.add_argument("--pictures", type=Path, help="a folder (default: photographs from here)")
    made.add_argument("--questions", type=Path, help='a file, {"question": ..., "picture": ...} '
                      "a line; without picture it is asked of all")
    made.add_argument("--limit", type=int, help="take the first questions alone")
    made.add_argument("--json", type=Path, help="write the rows there, too")
    made.add_argument("--device", help="default: the GPU if there is one")
    made.add_argument("--device-map", help='as transformers takes it, such as "auto"')
    made.add_argument("--dtype", default="auto",
                      choices=["auto", "float32", "bfloat16", "float16"])
    made.add_argument("--tokens", type=int, default=16, help="of an answer, at most")
    made.add_argument("--repeats", type=int, default=3, help="timed runs of each combination")
    return made


def run(given: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """(rows, what they are about) of the switches."""
    import transformers

    from .. import __version__

    methods = sorted(METHODS) if given.methods == ["all"] else given.methods
    methods = [find(method) for method in methods]              # told before anything is loaded
    shown = pictures(given.pictures)
    pairs = questions(given.questions, list(shown))[: given.limit]
    model, processor = load(given.model, given.device, given.dtype, given.device_map)
    inputs = [prompt(processor, shown[name], question) for name, question in pairs]
    inputs = [made.to(model.device, dtype=model.dtype) for made in inputs]
    rows = measure(model, inputs, methods, given.keep, new_tokens=given.tokens,
                   repeats=given.repeats, progress=lambda line: print(line, file=sys.stderr),
                   **dict(given.option))
    gpu = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None
    about = {
        "model": given.model,
        "type": model.config.model_type,
        "device": gpu or str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": len(inputs),
        "new_tokens": given.tokens,
        "repeats": given.repeats,
        **({"options": dict(given.option)} if given.option else {}),
        "vtlib": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return rows, about


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; argparse's exit code 2 for what it cannot use."""
    switches = parser()
    given = switches.parse_args(arguments)
    try:
        rows, about = run(given)
    except ValueError as error:
        switches.error(str(error))
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(rows))
    if given.json is not None:
        kept = {**about, "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
