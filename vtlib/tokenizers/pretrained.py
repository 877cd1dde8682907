"""The tokenizers that the repository ships: 64 px, trained on the same pictures for as long.

    tokenizer = pretrained("vq")                     names(): what there is

`train/visual_tokenizers.py` made them; `checkpoints.info("tokenizer_vq")["score"]` and
data/README.md say how well they do.
"""

import importlib

import torch

from .. import checkpoints
from .base import Tokenizer

STEM = "tokenizer_"


def names() -> list[str]:
    """What `pretrained` knows, sorted."""
    return [name.removeprefix(STEM) for name in checkpoints.names() if name.startswith(STEM)]


def pretrained(name: str, device: torch.device | str | None = None) -> Tokenizer:
    """A shipped tokenizer in eval mode.

    Args:
        name: one of `names()`.
        device: where it goes; None: the CPU.

    ValueError for another name.
    """
    if name not in names():
        raise ValueError(f"name={name!r}: there is no such tokenizer, only {', '.join(names())}")
    package = importlib.import_module("vtlib.tokenizers")
    build = getattr(package, checkpoints.info(STEM + name)["build"])
    return checkpoints.load(STEM + name, build, device)
