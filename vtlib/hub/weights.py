"""Real pretrained weights as torch modules, from the files that `make real` writes.

    encoder = hub.real("dinov2")                    # transformers' Dinov2Model, in eval mode
    words = hub.real_tokenizer("smollm2")           # the tokenizer of a language model
    hub.real_missing("dinov2")                      # "" or one line that says what to do

The files lie in `real/` of the folder of the assets (`data/real` in a clone), or in the folder that
the environment variable VTLIB_REAL names. `fetch` makes them, `packages` says where they come from.
"""

import contextlib
import importlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoints
from ..nn import check_device, load_weights
from .convert import GRAPH, VERSION
from .packages import MODELS

FILE = "model.safetensors"


def real_folder() -> Path:
    """Where the converted weights lie: VTLIB_REAL, or `real` in the folder of the assets."""
    return Path(os.environ.get("VTLIB_REAL") or checkpoints.root() / "real")


def real_missing(name: str) -> str:
    """"" when `real(name)` can load, else one line that says what is missing and what makes it.

    ValueError for a name that is not among the real models.
    """
    return _missing(name)[0]


def real(name: str, device: torch.device | str | None = None) -> Any:
    """A real pretrained model, in eval mode and single precision.

    Args:
        name: one of `vtlib.hub.packages.MODELS`, which says what each is.
        device: where it goes; None: the CPU.

    transformers' models come with eager attention, so that `output_attentions=True` gives maps.
    No global random number is drawn. ValueError for an unknown name; FileNotFoundError (weights) or
    ImportError (transformers) in one line when something is missing.
    """
    told, error = _missing(name)
    if told:
        raise error(told)
    device, folder = check_device(device), real_folder() / name
    with checkpoints.plain_torch():
        build = _from_transformers if _needs_transformers(name) else _from_vtlib
        return build(folder).eval().to(device)


def real_tokenizer(name: str) -> Any:
    """The tokenizer of a real language model ("smollm2", "minilm"), transformers' fast kind.

    ValueError for a model without one; else the errors of `real`.
    """
    told, error = _missing(name)
    if told:
        raise error(told)
    folder = real_folder() / name
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"name={name!r} has no tokenizer: it takes no text")
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _missing(name: str) -> tuple[str, type[Exception]]:
    """What is missing ("" for nothing), and the error to tell it with."""
    if name not in MODELS:
        raise ValueError(f"name={name!r}: no such real model; there is {', '.join(MODELS)}")
    path = real_folder() / name / FILE
    make = f"run `make real` or `python -m vtlib.hub.fetch {name}`"
    if not path.is_file():
        return f"hub.real({name!r}) needs {path}, which is not there: {make}", FileNotFoundError
    if header(path).get("converter") != str(VERSION):
        return f"{path} was written by another version of vtlib: {make}", FileNotFoundError
    if _needs_transformers(name) and importlib.util.find_spec("transformers") is None:
        return f"hub.real({name!r}) needs transformers: pip install 'vtlib[hub]'", ImportError
    return "", FileNotFoundError


def _needs_transformers(name: str) -> bool:
    return MODELS[name].loads.startswith("transformers.")


def header(path: Path) -> dict[str, str]:
    """The metadata of a converted file: package, sha256 of its archive, version of the converter.

    ValueError when it is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}): delete it") from None


def _from_transformers(folder: Path) -> nn.Module:
    """The class that MODELS names, loaded strictly: every weight has its place and none is left.

    transformers itself only warns of weights that are missing, and draws them at random.
    """
    import transformers

    kind = getattr(transformers, MODELS[folder.name].loads.removeprefix("transformers."))
    with _quiet():
        model, found = kind.from_pretrained(
            folder,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    wrong = {what: sorted(keys)[:3] for what, keys in found.items() if keys}
    if wrong:
        raise ValueError(f"{folder / FILE} does not fit {kind.__name__}: {wrong}")
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers meanwhile."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _from_vtlib(folder: Path) -> nn.Module:
    """vtlib's class that MODELS names, with its weights, strictly; made of its graph if it has
    one."""
    home, _, kind = MODELS[folder.name].loads.rpartition(".")
    build, graph = getattr(importlib.import_module(home), kind), folder / GRAPH
    with_graph = [json.loads(graph.read_text(encoding="utf-8"))] if graph.is_file() else []
    model = build(*with_graph)
    load_weights(model, _state(folder), name=str(folder / FILE))
    return model


def _state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / FILE)
