"""Weights and nodes out of an .onnx file, without the package onnx.

ONNX is a protocol buffer, and of its many messages a few are needed here: the graph, its nodes,
their attributes and the stored tensors. Reading those is shorter than depending on a package of
20 MB would be, for the two files that `make real` meets; what onnx reads of them is the same, bit
for bit (tried with onnx 1.23.2). Field numbers are those of onnx.proto3. `onnx_graph` runs what was
read.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

GRAPH, PROPERTY = 7, 14                                # of ModelProto
KEY, VALUE = 1, 2                                      # of StringStringEntryProto
NODE, TENSOR, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12                 # of GraphProto
VALUE_NAME = 1                                         # of ValueInfoProto
INPUT, OUTPUT, NODE_NAME, OPERATOR, ATTRIBUTE = 1, 2, 3, 4, 5          # of NodeProto
ATTRIBUTE_NAME = 1                                     # of AttributeProto
FLOAT, INTEGER, STRING, ATTRIBUTE_TENSOR, FLOATS, INTEGERS = 2, 3, 4, 5, 7, 8
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
        attributes: numbers, strings, lists of numbers and arrays by name; those of other kinds are
            left out.
    """

    operator: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """The stored tensors by name, the nodes in their order, what goes in and comes out, and the
    file's own notes."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def read(data: bytes) -> Graph:
    """The graph of an .onnx file. ValueError for what is none, or a tensor of another kind."""
    fields = list(_fields(memoryview(data)))
    graphs = [value for number, value in fields if number == GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"data holds {len(graphs)} graphs: an .onnx file needs to have one")
    graph = Graph()
    for number, value in _fields(graphs[0]):
        if number == NODE:
            graph.nodes.append(_node(value))
        elif number == TENSOR:
            name, array = _tensor(value)
            graph.tensors[name] = array
        elif number in (GRAPH_INPUT, GRAPH_OUTPUT):
            names = graph.inputs if number == GRAPH_INPUT else graph.outputs
            names.append(_text(dict(_fields(value))[VALUE_NAME]))
    for number, value in fields:
        if number == PROPERTY:
            note = dict(_fields(value))
            graph.notes[_text(note[KEY])] = _text(note.get(VALUE, memoryview(b"")))
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
    attributes = {}
    for number, value in _fields(data):
        if number in parts:
            parts[number].append(_text(value))
        elif number == ATTRIBUTE:
            attributes.update(_attribute(value))
    name, operator = "".join(parts[NODE_NAME]), "".join(parts[OPERATOR])
    return Node(operator, name, parts[INPUT], parts[OUTPUT], attributes)


def _attribute(data: memoryview) -> dict[str, Any]:
    """{name: value}, or nothing for a kind that is not read (graphs, lists of strings)."""
    name, found = "", []
    for number, value in _fields(data):
        if number == ATTRIBUTE_NAME:
            name = _text(value)
        elif number == INTEGER:
            return {name: _signed(value)}
        elif number == FLOAT:
            return {name: struct.unpack("<f", value)[0]}
        elif number == STRING:
            return {name: _text(value)}
        elif number == ATTRIBUTE_TENSOR:
            return {name: _tensor(value)[1]}
        elif number == INTEGERS:
            found += [_signed(number) for number in _numbers(value)]
        elif number == FLOATS:
            found += [number for number, in struct.iter_unpack("<f", value)]
    return {name: found} if found else {}


def _signed(value: int) -> int:
    """A negative number is stored as 2^64 more."""
    return value - (1 << 64) if value >> 63 else value


def _numbers(value: int | memoryview) -> list[int]:
    """The integers of a repeated field: one, or packed many."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(number)
    return found


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    shape, kind, name, raw = [], 0, "", memoryview(b"")
    for number, value in _fields(data):
        if number == DIMS:
            shape += _numbers(value)
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
