"""Read a golden case, run its adapter, compare every tensor the adapter returns."""

import json
import pathlib
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from ..settings import default_dtype
from . import adapters


@dataclass
class Case:
    """One golden case.

    Args:
        path: the json.
        info: what it says, `config` and the rest.
        tensors: those of the safetensors file beside it.
    """

    path: pathlib.Path
    info: dict
    tensors: dict

    @property
    def config(self):
        return self.info["config"]

    def weights(self, prefix="w."):
        """The weights below a prefix, under their official names."""
        named = {key: value for key, value in self.tensors.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): value for key, value in named.items()}


@dataclass
class Result:
    name: str
    function: str
    status: str           # "ok", "FAILED", "no adapter"
    detail: str

    def __str__(self):
        return f"{self.status:10} {self.name:45} {self.function:50} {self.detail}"


def find_cases(folder):
    """The json files below `folder` that have a safetensors file beside them, sorted."""
    found = sorted(pathlib.Path(folder).rglob("*.json"))
    return [path for path in found if path.with_suffix(".safetensors").exists()]


def load_case(path):
    return Case(path, json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))


def error_ratio(got, want, atol, rtol):
    """(largest |got - want| / (atol + rtol |want|), 1 being the limit; largest |got - want|).

    Integers and masks must be equal: 0 or inf.
    """
    got = torch.as_tensor(got).detach()
    if got.shape != want.shape:
        return float("inf"), float("inf")
    if not want.is_floating_point():
        same = torch.equal(got.to(want.dtype), want)
        return (0.0, 0.0) if same else (float("inf"), float("inf"))
    if want.numel() == 0:
        return 0.0, 0.0
    error = (got.double() - want.double()).abs()
    error = error.masked_fill(got.double() == want.double(), 0)                      # inf == inf
    ratio = (error / (atol + rtol * want.double().abs())).nan_to_num(nan=float("inf"))
    return ratio.max().item(), error.nan_to_num(nan=float("inf")).max().item()


def precision_of(case):
    """The default dtype is double for a case in doubles: adapters build their models in it."""
    dtypes = {t.dtype for t in case.tensors.values() if t.is_floating_point()}
    return default_dtype() if dtypes == {torch.float64} else nullcontext()


def run_case(path):
    """Run one case. Never raises for a wrong number; an error in the adapter is a failed case."""
    case = load_case(path)
    slug, function = case.info["slug"], case.info["function"]
    name = f"{slug}/{case.info.get('case', path.stem)}"
    adapter = adapters.find(slug, function)
    if adapter is None:
        missing = f"write one for ({slug!r}, {function!r}) in tests/golden/adapters_<module>.py"
        return Result(name, function, "no adapter", missing)
    try:
        with precision_of(case), torch.no_grad():
            outputs = adapter(case)
    except Exception as error:                       # noqa: BLE001 - reported as the case's failure
        return Result(name, function, "FAILED", f"{type(error).__name__}: {error}")
    compared = {key: value for key, value in outputs.items() if key in case.tensors}
    if not compared:
        nothing = "the adapter returned nothing that the case holds"
        return Result(name, function, "FAILED", nothing)
    ratio, detail = judge(case, compared)
    return Result(name, function, "ok" if ratio <= 1 else "FAILED", detail)


def judge(case, compared):
    """(worst share of the tolerance, a line about it). compared: {name of a tensor: value}."""
    tolerance = case.info["tolerance"]
    limits = tolerance.get("atol", 0), tolerance.get("rtol", 0)
    errors = {key: error_ratio(got, case.tensors[key], *limits) for key, got in compared.items()}
    worst = max(errors, key=lambda key: errors[key][0])
    ratio, absolute = errors[worst]
    share = f"{absolute:.1e} = {ratio:.3f} of tolerance ({worst})"
    detail = f"{len(compared)} tensors, largest error {share}"
    inputs = adapters.INPUTS[case.info["slug"], case.info["function"]]
    seen = {*compared, *inputs}
    ignored = [key for key in case.tensors if key not in seen and not key.startswith("w.")]
    if ignored:
        detail += f"; not compared: {', '.join(ignored)}"
    return ratio, detail
