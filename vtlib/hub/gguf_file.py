"""Weights and metadata out of a .gguf file, without the package gguf.

    header (magic, version, counts) | metadata: key, kind, value | tensors: name, shape, kind, place
    | padding | the numbers, each tensor at its place

Numbers come in blocks of 32 that share a scale (Q8_0) or a scale and an offset (Q4_1); here they
come out in single precision. transformers reads such files too, through gguf and accelerate: two
packages for one file of `make real`, half a minute instead of two seconds, and a model that then
cannot be saved. What comes out is the same, bit for bit (tried with gguf 0.19.0).
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 32
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # of metadata, as struct names
STRING, ARRAY = 8, 9
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8                      # of tensors


@dataclass
class Contents:
    """Of a file: metadata by key, tensors in single precision by name."""

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]


class _Reader:
    """Little-endian values, one after the other."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def scalar(self, kind: str) -> Any:
        if self.at + struct.calcsize(kind) > len(self.data):
            raise ValueError("data ends inside its header: this is no whole .gguf file")
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def text(self) -> str:
        size = self.scalar("Q")
        value = self.data[self.at : self.at + size]
        self.at += size
        return value.decode()

    def value(self, kind: int) -> Any:
        """A value of the metadata: number, text, or a list of either."""
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"data has metadata of kind {kind}: this is no .gguf file")
        return self.scalar(SCALARS[kind])


def read(data: bytes) -> Contents:
    """What a .gguf file holds. ValueError for what is none, or tensors of a kind not known here."""
    reader = _Reader(data)
    if data[:4] != b"GGUF":
        raise ValueError(f"data starts with {data[:4]!r}: a .gguf file starts with b'GGUF'")
    reader.at = 4
    version = reader.scalar("I")
    if version not in (2, 3):
        raise ValueError(f"data is GGUF version {version}: only 2 and 3 are read")
    tensors, entries = reader.scalar("Q"), reader.scalar("Q")
    metadata = {}
    for _ in range(entries):
        key = reader.text()
        metadata[key] = reader.value(reader.scalar("I"))
    places = []
    for _ in range(tensors):
        name = reader.text()
        shape = [reader.scalar("Q") for _ in range(reader.scalar("I"))]
        places.append((name, shape[::-1], reader.scalar("I"), reader.scalar("Q")))
    align = metadata.get("general.alignment", 32)
    start = -(-reader.at // align) * align
    found = {
        name: numbers(data, start + place, shape, kind) for name, shape, kind, place in places
    }
    return Contents(metadata, found)


def numbers(data: bytes, start: int, shape: list[int], kind: int) -> np.ndarray:
    """A tensor in single precision. ValueError for a kind that is not known here.

    Args:
        data: the whole file.
        start: where the tensor's numbers begin.
        shape: rows first, so the file's own order backwards.
        kind: F32, F16, Q4_1 or Q8_0.
    """
    count = math.prod(shape)
    if kind in (F32, F16):
        dtype = np.dtype("<f4" if kind == F32 else "<f2")
        return np.frombuffer(data, dtype, count, start).astype(np.float32).reshape(shape)
    if kind == Q8_0:                                   # 32 signed bytes: x = d q
        layout = np.dtype([("d", "<f2"), ("q", "i1", BLOCK)])
        block = np.frombuffer(data, layout, count // BLOCK, start)
        return (block["d"].astype(np.float32)[:, None] * block["q"]).reshape(shape)
    if kind == Q4_1:                                   # 16 bytes: low halves first; x = d q + m
        layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", BLOCK // 2)])
        block = np.frombuffer(data, layout, count // BLOCK, start)
        level = np.concatenate([block["q"] & 15, block["q"] >> 4], axis=1)
        scale, offset = (block[name].astype(np.float32)[:, None] for name in ("d", "m"))
        return (scale * level + offset).reshape(shape)
    raise ValueError(f"a tensor has kind {kind}: only F32, F16, Q4_1 and Q8_0 are read")
