"""An ONNX graph as a torch module: its nodes one after the other, on the tensors' own device.

    graph = onnx_file.read(data)
    description, state = taken_apart(graph)            # json and weights
    net = OnnxGraph(description)
    net.load_state_dict(state)
    net(x)                                             # what the file's only output is
    net.values((x,), ["softmax_9.tmp_0"])              # and what any node inside computes

It needs neither onnx nor onnxruntime, and gradients, autocast and the meta device work as with
other modules. It knows the operators that the files of `make real` use, and says so of another one
when it is built. Sizes are Python's integers: what a graph computes out of `Shape` costs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_list
from .onnx_file import Graph

Value = Tensor | list[int]
"""What flows between nodes: a tensor, or sizes and places as integers."""
DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64}


# --------------------------------------------------------------------------------------- operators
def _conv(inputs: list[Tensor], kernel: Mapping[str, Any]) -> Tensor:
    x, weight, *bias = inputs
    x, padding = _padded(x, kernel)
    return F.conv2d(
        x, weight, bias[0] if bias else None, kernel.get("strides", 1), padding,
        kernel.get("dilations", 1), kernel.get("group", 1),
    )  # fmt: skip


def _padded(x: Tensor, kernel: Mapping[str, Any]) -> tuple[Tensor, tuple[int, int]]:
    """(x, padding either side): uneven margins are put around x at once."""
    if kernel.get("auto_pad", "NOTSET") != "NOTSET" or x.dim() != 4:
        raise ValueError(f"auto_pad={kernel.get('auto_pad')!r} of {x.dim()} axes is not known")
    top, left, bottom, right = kernel.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom)), (0, 0)


def _average_pool(inputs: list[Tensor], kernel: Mapping[str, Any]) -> Tensor:
    x, padding = inputs[0], kernel.get("pads", (0, 0, 0, 0))[:2]
    counted = bool(kernel.get("count_include_pad", 0))
    rounded_up = bool(kernel.get("ceil_mode", 0))
    strides = kernel.get("strides", 1)
    return F.avg_pool2d(x, kernel["kernel_shape"], strides, padding, rounded_up, counted)


def _batch_norm(inputs: list[Tensor], options: Mapping[str, Any]) -> Tensor:
    x, weight, bias, mean, variance = inputs
    return F.batch_norm(x, mean, variance, weight, bias, eps=options.get("epsilon", 1e-5))


def _clip(inputs: list[Tensor], options: Mapping[str, Any]) -> Tensor:
    x, low, high = inputs
    return x.clamp(low, high)


def _hard_sigmoid(inputs: list[Tensor], options: Mapping[str, Any]) -> Tensor:
    return (inputs[0] * options.get("alpha", 0.2) + options.get("beta", 0.5)).clamp(0, 1)


def _softmax(inputs: list[Tensor], options: Mapping[str, Any]) -> Tensor:
    x, axis = inputs[0], options.get("axis", -1)
    if axis not in (-1, x.dim() - 1):                  # before opset 13 it meant all axes from here
        raise ValueError(f"Softmax over axis {axis} of {x.dim()} is not known: only over the last")
    return x.softmax(dim=-1)


def _cast(inputs: list[Value], options: Mapping[str, Any]) -> Value:
    x = inputs[0]
    return x if isinstance(x, list) else x.to(DTYPES[options["to"]])


def _concat(inputs: list[Any], options: Mapping[str, Any]) -> Value:
    if isinstance(inputs[0], list):
        return [number for part in inputs for number in part]
    return torch.cat(inputs, dim=options["axis"])


def _slice(inputs: list[Any], options: Mapping[str, Any]) -> Value:
    x, starts, ends, axes, *steps = inputs
    steps = steps[0] if steps else [1] * len(starts)
    if isinstance(x, list):
        return x[starts[0] : ends[0] : steps[0]]
    places = [slice(None)] * x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places[axis] = slice(start, end, step)
    return x[tuple(places)]


def _reshape(inputs: list[Any], options: Mapping[str, Any]) -> Tensor:
    x, shape = inputs
    return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(shape)])


def _squeeze(inputs: list[Tensor], options: Mapping[str, Any]) -> Tensor:
    return inputs[0].squeeze(tuple(options["axes"]))


def _reduce_mean(inputs: list[Tensor], options: Mapping[str, Any]) -> Tensor:
    return inputs[0].mean(dim=options["axes"], keepdim=bool(options.get("keepdims", 1)))


OPERATORS: dict[str, Callable[[list[Any], Mapping[str, Any]], Any]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Div": lambda inputs, _: inputs[0] / inputs[1],
    "Pow": lambda inputs, _: inputs[0] ** inputs[1],
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "Sqrt": lambda inputs, _: inputs[0].sqrt(),
    "Relu": lambda inputs, _: inputs[0].relu(),
    "Sigmoid": lambda inputs, _: inputs[0].sigmoid(),
    "Shape": lambda inputs, _: list(inputs[0].shape),
    "Transpose": lambda inputs, options: inputs[0].permute(options["perm"]),
    "GlobalAveragePool": lambda inputs, _: inputs[0].mean((2, 3), keepdim=True),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "HardSigmoid": _hard_sigmoid,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
}
"""What is known: the inputs of a node and its attributes -> its output."""


# -------------------------------------------------------------------------------------- a net of it
def taken_apart(graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A graph as (what json can hold, its weights): for `OnnxGraph` and its `load_state_dict`.

    Integers, which are sizes, places and axes, go with the description.
    """
    stored = dict(graph.tensors)
    for node in graph.nodes:
        if node.operator == "Constant":
            stored[node.outputs[0]] = node.attributes["value"]
    integers, weights = {}, {}
    for name, array in stored.items():
        if np.issubdtype(array.dtype, np.integer):
            integers[name] = array.tolist()
        else:
            weights[name] = torch.from_numpy(array.copy())
    nodes = [
        [node.operator, node.inputs, node.outputs[0], node.attributes]
        for node in graph.nodes if node.operator != "Constant"
    ]  # fmt: skip
    description = {
        "inputs": [name for name in graph.inputs if name not in stored],
        "outputs": graph.outputs,
        "nodes": nodes,
        "integers": integers,
        "weights": {name: list(weight.shape) for name, weight in weights.items()},
    }
    return description, {f"weights.{_key(name)}": weight for name, weight in weights.items()}


def _key(name: str) -> str:
    """The name of a weight in a state dict, where a dot would separate modules."""
    return name.replace(".", "/")


class OnnxGraph(nn.Module):
    """Runs a graph as it is written, for inference: its weights ask for no gradient.

    Args:
        description: see `taken_apart`.

    ValueError for an operator that is not known.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.inputs, self.outputs = list(description["inputs"]), list(description["outputs"])
        self.nodes = [tuple(node) for node in description["nodes"]]
        self.integers = dict(description["integers"])
        strange = sorted({operator for operator, *_ in self.nodes} - set(OPERATORS))
        if strange:
            raise ValueError(f"description has {', '.join(strange)}: no such operator is known")
        self.weights = nn.ParameterDict()
        for name, shape in description["weights"].items():
            self.weights[_key(name)] = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.names = {name: _key(name) for name in description["weights"]}
        self.made = {output: i for i, (_, _, output, _) in enumerate(self.nodes)}
        self.last = {}                                 # the last node that reads it
        for i, (_, sources, _, _) in enumerate(self.nodes):
            self.last.update(dict.fromkeys(sources, i))

    def forward(self, *inputs: Tensor) -> Any:
        """The graph's output, or a tuple of them where it has several."""
        found = self.values(inputs, self.outputs)
        results = tuple(found[name] for name in self.outputs)
        return results if len(results) > 1 else results[0]

    def values(self, inputs: Sequence[Tensor], names: Sequence[str]) -> dict[str, Value]:
        """What nodes inside compute, by the names of their outputs.

        Args:
            inputs: as many as the graph has.
            names: which are wanted.

        ValueError for a name that no node has. Nothing else is kept, and nothing computed behind
        the last of them.
        """
        names = check_list(names, "names", "a list of names")
        if len(inputs) != len(self.inputs):
            raise ValueError(f"{len(inputs)} inputs: needs {len(self.inputs)}, {self.inputs}")
        strange = [name for name in names if name not in self.made]
        if strange:
            raise ValueError(f"names has {strange[0]!r}, which no node computes")
        flowing: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        stop = max([self.made[name] + 1 for name in names]) if names else 0
        for i, (operator, sources, output, options) in enumerate(self.nodes[:stop]):
            taken = [self._of(name, flowing) for name in sources]
            flowing[output] = OPERATORS[operator](taken, options)
            for name in set(sources):
                if self.last[name] == i and name not in names:
                    flowing.pop(name, None)
        return {name: flowing[name] for name in names}

    def _of(self, name: str, flowing: Mapping[str, Any]) -> Value:
        """A value by its name: computed, an integer, or a weight."""
        if name in flowing:
            return flowing[name]
        if name in self.integers:
            return self.integers[name]
        return self.weights[self.names[name]]
