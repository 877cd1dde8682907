"""Weights and node names out of an .onnx file, without the package onnx.

ONNX is a protocol buffer, and of its many messages three are needed here: the graph, its nodes and
its stored tensors. Reading those is shorter than depending on a package of 20 MB would be, for the
one file that `make real` meets; what onnx reads of that file is the same, bit for bit (tried with
onnx 1.23.2). Field numbers are those of onnx.proto3.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

GRAPH = 7                                              # of ModelProto
NODE, TENSOR = 1, 5                                    # of GraphProto
INPUT, OUTPUT, NODE_NAME, OPERATOR = 1, 2, 3, 4        # of NodeProto
DIMS, DATA_TYPE, TENSOR_NAME, RAW = 1, 2, 8, 9         # of TensorProto
DTYPES = {1: "<f4", 6: "<i4", 7: "<i8"}
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5    # wire types


@dataclass(frozen=True)
class Node:
    """One operation: its kind, its own name, and the names of what goes in and comes out.

    Args:
        operator: such as "MatMul".
        name: such as "/backbone/encoder/layer.0/mlp/fc1/MatMul".
        inputs: names of tensors.
        outputs: names of tensors.
    """

    operator: str
    name: str
    inputs: list[str]
    outputs: list[str]


@dataclass
class Graph:
    """The stored tensors by name, and the nodes in their order."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)


def read(data: bytes) -> Graph:
    """The graph of an .onnx file. ValueError for what is none, or a tensor of another kind."""
    graphs = [value for number, value in _fields(memoryview(data)) if number == GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"data holds {len(graphs)} graphs: an .onnx file needs to have one")
    graph = Graph()
    for number, value in _fields(graphs[0]):
        if number == NODE:
            graph.nodes.append(_node(value))
        elif number == TENSOR:
            name, array = _tensor(value)
            graph.tensors[name] = array
    return graph


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, seven bits a byte, and where the next thing starts."""
    value, shift = 0, 0
    while True:
        if at >= len(data):
            raise ValueError("data ends inside a number: this is no whole .onnx file")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message, in order."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire not in (EIGHT_BYTES, BYTES, FOUR_BYTES):
            raise ValueError(f"data has wire type {wire} at byte {at}: this is no .onnx file")
        size, at = _varint(data, at) if wire == BYTES else ({EIGHT_BYTES: 8}.get(wire, 4), at)
        if at + size > len(data):
            raise ValueError("data ends inside a field: this is no whole .onnx file")
        yield number, data[at : at + size]
        at += size


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _node(data: memoryview) -> Node:
    parts: dict[int, list[str]] = {INPUT: [], OUTPUT: [], NODE_NAME: [], OPERATOR: []}
    for number, value in _fields(data):
        if number in parts:
            parts[number].append(_text(value))
    name, operator = "".join(parts[NODE_NAME]), "".join(parts[OPERATOR])
    return Node(operator, name, parts[INPUT], parts[OUTPUT])


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    shape, kind, name, raw = [], 0, "", memoryview(b"")
    for number, value in _fields(data):
        if number == DIMS and isinstance(value, int):
            shape.append(value)
        elif number == DIMS:                           # packed: all sides in one field
            at = 0
            while at < len(value):
                side, at = _varint(value, at)
                shape.append(side)
        elif number == DATA_TYPE:
            kind = value
        elif number == TENSOR_NAME:
            name = _text(value)
        elif number == RAW:
            raw = value
    if kind not in DTYPES:
        raise ValueError(f"tensor {name!r} has data type {kind}: only {sorted(DTYPES)} are read")
    dtype = np.dtype(DTYPES[kind])
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} of shape {tuple(shape)} has {len(raw)} raw bytes")
    return name, np.frombuffer(raw, dtype).reshape(shape)
