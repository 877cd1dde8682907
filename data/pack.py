"""Write assets so that the same content gives the same bytes.

No clock, no file order, a fixed level of compression.
"""

import hashlib
import io
import json
import lzma
import pathlib
import zipfile

import numpy as np

FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 9, "lc": 2, "lp": 2, "pb": 2, "dict_size": 2**17}]
"""Pixels have four bytes: the place modulo 4 tells what a byte is. A quarter less than deflate."""


def save_npz(path, stored=(), **arrays):
    """NumPy's .npz (a zip of .npy) with a fixed time stamp; prints name, size and sha256.

    Args:
        path: of the file.
        stored: names of arrays that stay as they are, so that they can be mapped into memory; the
            others are deflated at level 9.
        arrays: name -> array.
    """
    path = pathlib.Path(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            kind = zipfile.ZIP_STORED if name in stored else zipfile.ZIP_DEFLATED
            entry.compress_type = kind
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, buffer.getvalue())
    report(path)


def in_blocks(items, block):
    """(N, ...) uint8 in streams of `block` items each: one can be read without the rest.

    A stream is a file of the kind .lzma, which says itself how to unpack it. Returns the streams
    end to end, (bytes,) uint8, and where each starts and the last ends, int64.
    """
    parts = [items[first : first + block].tobytes() for first in range(0, len(items), block)]
    streams = [lzma.compress(part, lzma.FORMAT_ALONE, filters=FILTERS) for part in parts]
    start = np.cumsum([0, *map(len, streams)], dtype=np.int64)
    return np.frombuffer(b"".join(streams), np.uint8), start


def save_json(path, rows):
    """A list of flat dicts, one a line."""
    path = pathlib.Path(path)
    lines = [json.dumps(r, ensure_ascii=True, separators=(", ", ": ")) for r in rows]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8", newline="\n")
    report(path)


def report(path):
    content = path.read_bytes()
    print(f"{path.name}  {len(content):,} bytes  sha256 {hashlib.sha256(content).hexdigest()}")


def to_planes(rgb):
    """Planes of a picture: (..., H, W, 3) RGB -> y (..., H, W), cb and cr (..., H/2, W/2).

    H and W are even, everything is uint8. JPEG's full-range conversion (ITU-T T.871) with the
    chroma averaged over 2 x 2 pixels.
    Each row is stored as differences to its left neighbour modulo 256, which deflate packs better;
    a running sum along the row undoes it.
    """
    r, g, b = np.moveaxis(rgb.astype(np.float64), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = {"y": y, "cb": half(128 + (b - y) / 1.772), "cr": half(128 + (r - y) / 1.402)}
    levels = {name: plane.round().clip(0, 255).astype(np.uint8) for name, plane in planes.items()}
    return {name: np.diff(x, axis=-1, prepend=np.uint8(0)) for name, x in levels.items()}


def half(x):
    """Means of 2 x 2 pixels, (..., H, W) -> (..., H/2, W/2)."""
    height, width = x.shape[-2:]
    return x.reshape(*x.shape[:-2], height // 2, 2, width // 2, 2).mean(axis=(-3, -1))
