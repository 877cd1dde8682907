"""Read a golden case, run its adapter, compare every tensor the adapter returns."""

import json
import pathlib
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from . import adapters


@dataclass
class Case:
    """One golden case: `config` and the rest of the json as `info`, the tensors of the safetensors file as `tensors`."""
    path: pathlib.Path
    info: dict
    tensors: dict

    @property
    def config(self):
        return self.info["config"]

    def weights(self, prefix="w."):
        """The weights below a prefix, under their official names."""
        return {key[len(prefix):]: value for key, value in self.tensors.items() if key.startswith(prefix)}


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
    return [p for p in sorted(pathlib.Path(folder).rglob("*.json")) if p.with_suffix(".safetensors").exists()]


def load_case(path):
    return Case(path, json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))


def error_ratio(got, want, atol, rtol):
    """Largest |got - want| / (atol + rtol |want|), 1 being the limit; integers and masks must be equal (0 or inf). Also the largest |got - want|."""
    got = torch.as_tensor(got).detach()
    if got.shape != want.shape:
        return float("inf"), float("inf")
    if not want.is_floating_point():
        same = torch.equal(got.to(want.dtype), want)
        return (0.0, 0.0) if same else (float("inf"), float("inf"))
    if want.numel() == 0:
        return 0.0, 0.0
    error = (got.double() - want.double()).abs()
    error = torch.where(got.double() == want.double(), torch.zeros_like(error), error)           # inf == inf
    ratio = (error / (atol + rtol * want.double().abs())).nan_to_num(nan=float("inf"))
    return ratio.max().item(), error.nan_to_num(nan=float("inf")).max().item()


def run_case(path):
    """Run one case; never raises for a wrong number, an exception in the adapter is a failed case."""
    case = load_case(path)
    slug, function = case.info["slug"], case.info["function"]
    name = f"{slug}/{case.info.get('case', path.stem)}"
    adapter = adapters.find(slug, function)
    if adapter is None:
        return Result(name, function, "no adapter", f"write one for ({slug!r}, {function!r}) in tests/golden/adapters.py")
    usual = torch.get_default_dtype()
    if {t.dtype for t in case.tensors.values() if t.is_floating_point()} == {torch.float64}:
        torch.set_default_dtype(torch.float64)                                   # adapters build their models in the case's precision
    try:
        with torch.no_grad():
            outputs = adapter(case)
    except Exception as error:                                                   # noqa: BLE001 - reported as the case's failure
        return Result(name, function, "FAILED", f"{type(error).__name__}: {error}")
    finally:
        torch.set_default_dtype(usual)
    compared = {key: value for key, value in outputs.items() if key in case.tensors}
    if not compared:
        return Result(name, function, "FAILED", "the adapter returned nothing that the case holds")
    tolerance = case.info["tolerance"]
    errors = {key: error_ratio(value, case.tensors[key], tolerance.get("atol", 0), tolerance.get("rtol", 0)) for key, value in compared.items()}
    worst = max(errors, key=lambda key: errors[key][0])
    ratio, absolute = errors[worst]
    ignored = [k for k in case.tensors if k not in compared and not k.startswith("w.") and k not in adapters.INPUTS.get((slug, function), ())]
    detail = f"{len(compared)} tensors, largest error {absolute:.1e} = {ratio:.3f} of tolerance ({worst})"
    detail += f"; not compared: {', '.join(ignored)}" if ignored else ""
    return Result(name, function, "ok" if ratio <= 1 else "FAILED", detail)
