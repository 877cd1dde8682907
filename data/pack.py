"""Write assets so that the same content gives the same bytes: no clock, no file order, fixed compression level."""

import hashlib
import io
import json
import pathlib
import zipfile

import numpy as np


def save_npz(path, **arrays):
    """numpy's .npz (a zip of .npy), deflated at level 9, with a fixed time stamp; prints name, size and sha256."""
    path = pathlib.Path(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, buffer.getvalue())
    report(path)


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
    """(..., H, W, 3) uint8 RGB, H and W even -> dict of y (..., H, W), cb and cr (..., H/2, W/2), uint8.

    JPEG's full-range conversion (ITU-T T.871) with the chroma averaged over 2 x 2 pixels. Each row is stored as differences to its
    left neighbour modulo 256, which deflate packs better; a running sum along the row undoes it.
    """
    r, g, b = np.moveaxis(rgb.astype(np.float64), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    half = lambda x: x.reshape(*x.shape[:-2], x.shape[-2] // 2, 2, x.shape[-1] // 2, 2).mean(axis=(-3, -1))  # noqa: E731
    cb = half(128 + (b - y) / 1.772)
    cr = half(128 + (r - y) / 1.402)
    planes = {"y": y, "cb": cb, "cr": cr}
    return {k: np.diff(p.round().clip(0, 255).astype(np.uint8), axis=-1, prepend=np.uint8(0)) for k, p in planes.items()}
