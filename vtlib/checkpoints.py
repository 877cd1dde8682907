"""The trained weights that the repository ships: one loader, one header, for all of them.

    model = checkpoints.load("spynet_emoji", SPyNet)        how = checkpoints.info("spynet_emoji")
    second = checkpoints.seeds("catanet_small")[1]["score"]

Each is a file `checkpoints/<name>.safetensors` in the folder of the assets. Its metadata is the
header: "config" (the arguments of the class), "command" and "seed" (how it was trained), "score"
(on data it had not seen), and whatever else is worth knowing, each value a JSON string. Weights are
stored in half precision where that costs nothing and come out in single precision. Of a training
repeated with other seeds only the first one's weights are shipped; `<name>_seeds.json` beside them
says what is known of all.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .nn.checks import check_callable, check_device

HEADER = ("config", "command", "seed", "score")
_SEEDS = "_seeds.json"


def root() -> pathlib.Path:
    """Folder of the assets: `vtlib/assets` in an installed wheel, `data` in a clone."""
    package = pathlib.Path(__file__).resolve().parent
    for folder in (package / "assets", package.parent / "data"):
        if (folder / "emoji.npz").exists():
            return folder
    raise FileNotFoundError(
        f"vtlib's assets are neither in {package / 'assets'} nor in {package.parent / 'data'}: "
        f"run `make data`"
    )


def names() -> list[str]:
    """The names of all shipped checkpoints, sorted."""
    return sorted(file.stem for file in (root() / "checkpoints").glob("*.safetensors"))


def path(name: str | os.PathLike) -> pathlib.Path:
    """Where the checkpoint lies: `name` is a shipped one's name, or the `pathlib.Path` of a file.

    ValueError when there is none.
    """
    if isinstance(name, os.PathLike):
        if not pathlib.Path(name).is_file():
            raise ValueError(f"name={os.fspath(name)!r}: there is no such file")
        return pathlib.Path(name)
    if name not in names():
        there = ", ".join(names()) or "none"
        raise ValueError(f"name={name!r}: no such checkpoint; there is {there}")
    return root() / "checkpoints" / f"{name}.safetensors"


def info(name: str | os.PathLike) -> dict[str, Any]:
    """The header of a checkpoint: config, command, seed, score and what else was noted.

    name: see `path`. ValueError when there is no such checkpoint, or the header is another one.
    """
    from safetensors import SafetensorError, safe_open  # here: data asks this file for `root` alone

    shown = f"name={os.fspath(name)!r}"
    try:
        with safe_open(path(name), framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{shown}: is no safetensors file ({error})") from None
    missing = [key for key in HEADER if key not in metadata]
    if missing:
        raise ValueError(f"{shown}: its header has no {', '.join(missing)}")
    try:
        return {key: json.loads(value) for key, value in metadata.items()}
    except json.JSONDecodeError as error:
        raise ValueError(f"{shown}: its header has {error.doc!r}, which is no JSON") from None


def seeds(name: str) -> dict[int, dict[str, Any]]:
    """The trainings of a checkpoint that differ in nothing but the seed: seed -> what is known.

    {0: {"command": ..., "seed": 0, "score": ..., ...}, 1: ...}, seeds ascending. "score" is what
    `info` has, measured alike; 0 are the shipped weights, where any are. "notebook", where there:
    what a notebook measures of the shipped weights, measured of these (data/README.md says how).
    ValueError for a name without such a table; the message has those with one.
    """
    folder = root() / "checkpoints"
    known = sorted(file.name.removesuffix(_SEEDS) for file in folder.glob(f"*{_SEEDS}"))
    if name not in known:
        there = ", ".join(known) or "none"
        raise ValueError(f"name={name!r}: no scores of several seeds; they are there of {there}")
    table = json.loads((folder / f"{name}{_SEEDS}").read_text(encoding="utf-8"))
    return {int(seed): row for seed, row in sorted(table.items(), key=lambda item: int(item[0]))}


def load(
    name: str | os.PathLike,
    build: Callable[..., nn.Module],
    device: torch.device | str | None = None,
) -> Any:
    """`build(**config)` with the stored weights, in eval mode and single precision.

    Args:
        name: see `path`.
        build: the class, or a function that makes the model from the header's config.
        device: where the model goes; None: the CPU.

    The result is the same whatever torch's defaults of device, dtype and grad mode are, and no
    global random number is drawn. ValueError when there is no such checkpoint, and for a `build`
    that does not take its config or makes another net.
    """
    from safetensors.torch import load_file

    check_callable(build, "build", "a class, or a function that makes the model")
    device, config = check_device(device), info(name)["config"]
    with plain_torch():
        model = _built(build, config, name).float()
        weights = load_file(path(name))
        try:
            model.load_state_dict({key: _single(value) for key, value in weights.items()})
        except RuntimeError as error:
            differs = " ".join(str(error).split())[:300]
            raise ValueError(
                f"build={build!r} makes another net than name={os.fspath(name)!r} is of: {differs}"
            ) from error
        return model.eval().to(device)


def _built(build: Callable[..., nn.Module], config: Any, name: str | os.PathLike) -> nn.Module:
    """`build(**config)`. ValueError where it does not take the config, or makes no module.

    Args:
        build: the class or function.
        config: of the header.
        name: of the checkpoint.
    """
    try:
        model = build(**config)
    except TypeError as error:
        shown = f"build={build!r} does not take the config of name={os.fspath(name)!r}"
        raise ValueError(f"{shown}, {config}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"build={build!r} made a {type(model).__name__}: needs a torch module")
    return model


def _single(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """The CPU and single precision as defaults, and the caller's random numbers back at the end."""
    dtype = torch.get_default_dtype()
    with (
        torch.random.fork_rng(devices=[]),         # the random start of a model is overwritten
        torch.inference_mode(False),
        torch.device("cpu"),
    ):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
