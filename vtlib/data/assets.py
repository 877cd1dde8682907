"""The shipped files: photographs, digits, a clip, pictograms, glyphs.

Read with NumPy alone, on first use and no more of them than is asked for; what is likely to be
asked for again is kept in memory.
"""

import functools
import json
import lzma
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints import root
from ..nn.checks import check_float, check_int, check_list
from ._arguments import as_device, image_size, one_of
from ._threads import one_thread

ARTISTS = ("noto", "twemoji")
DRAWING = (64, 64, 4)
PACKED = 2
"""So many drawings are compressed together (data/build_emoji.py)."""


def read_arrays(file: str, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of an .npz asset whose names start with `prefix`."""
    with np.load(root() / file, allow_pickle=False) as archive:
        return {k: archive[k] for k in archive.files if k.startswith(prefix)}


def place_in_file(file: str, name: str) -> int:
    """Where the bytes of an array begin that an .npz asset holds as it is, not compressed."""
    path = root() / file
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
    with open(path, "rb") as content:
        content.seek(entry.header_offset + 26)                   # the zip's header of this entry
        lengths = struct.unpack("<HH", content.read(4))
        content.seek(entry.header_offset + 30 + sum(lengths))
        np.lib.format.read_magic(content)
        np.lib.format.read_array_header_1_0(content)
        return content.tell()


Rows = tuple[Mapping[str, Any], ...]


@functools.cache
def read_rows(file: str) -> Rows:
    """A .json asset: flat rows, read-only, as everyone who asks gets the same."""
    rows = json.loads((root() / file).read_text(encoding="utf-8"))
    return tuple(MappingProxyType(row) for row in rows)


def from_planes(y: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> Tensor:
    """Undo the packing of photographs and clips: differences along rows, chroma at half size.

        R = Y + 1.402 Cr,  G = Y - 0.344136 Cb - 0.714136 Cr,  B = Y + 1.772 Cb  (ITU-T T.871)

    Args:
        y: (T, H, W) uint8, JPEG's full-range luma.
        cb: (T, H/2, W/2) uint8, the blue chroma.
        cr: (T, H/2, W/2) uint8, the red chroma.

    Returns (T, 3, H, W) float32 in [0, 1].
    """
    planes = [np.cumsum(plane, axis=-1, dtype=np.uint8) for plane in (y, cb, cr)]
    luma, *chroma = (torch.from_numpy(plane).float() for plane in planes)
    chroma = torch.stack(chroma, 1).sub_(128)
    size = luma.shape[-2:]
    chroma = F.interpolate(chroma, size=size, mode="bilinear", align_corners=False)
    blue, red = chroma.unbind(1)
    rgb = torch.empty(len(y), 3, *size, dtype=torch.float32, device="cpu")
    torch.mul(red, 1.402, out=rgb[:, 0])
    torch.mul(blue, -0.344136, out=rgb[:, 1])
    torch.mul(blue, 1.772, out=rgb[:, 2])
    rgb += luma[:, None]
    rgb[:, 1] += red.mul_(-0.714136)
    return rgb.div_(255).clamp_(0, 1)


def photo_table() -> Rows:
    """What is known of each photograph: name, title, author, licence, split, height, width.

    The split "none" says that it is not used as a background.
    """
    return read_rows("photos.json")


def photo_names() -> list[str]:
    """The names of all photographs."""
    return [row["name"] for row in photo_table()]


def photo(name: str) -> Tensor:
    """One photograph, (3, H, W) float32 in [0, 1]. ValueError for a name that there is not."""
    return _photo(one_of(name, "name", photo_names())).clone()


@functools.lru_cache(maxsize=2)
def _photo(name: str) -> Tensor:
    """The last two are kept."""
    planes = read_arrays("photos.npz", name + "_")
    return from_planes(*(planes[f"{name}_{p}"][None] for p in ("y", "cb", "cr")))[0]


def check_photos(names: Any) -> list[str]:
    """Names of photographs as a list. ValueError for one that there is not."""
    known, names = photo_names(), check_list(names, "names", "a list of names")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"names has {name!r}, but the photographs are {', '.join(known)}")
    return names


@one_thread()
def photographs(size: Any = None, names: Any = None, device: Any = None) -> dict[str, Tensor]:
    """Real photographs under free licences (data/README.md says whose).

    Args:
        size: None keeps each one's own size (longest side at most 512); an int or (H, W) covers
            that size and cuts the middle out.
        names: which ones, in this order (default: all).
        device: where they go; None: the CPU.

    Returns name -> (3, H, W) float32 in [0, 1]. ValueError for an unknown name.
    """
    names = photo_names() if names is None else check_photos(names)
    device = as_device(device)
    if size is None:
        return {name: photo(name).to(device) for name in names}
    height, width = image_size(size)
    return {name: cover(photo(name), height, width).to(device) for name in names}


def cover(image: Tensor, height: int, width: int) -> Tensor:
    """Resize with antialiasing until the picture covers (height, width), then cut the middle out.

    Args:
        image: (C, h, w) float in [0, 1].
        height: of the result, in pixels.
        width: of the result, in pixels.
    """
    check_float(image, "image")
    if image.dim() != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}: needs (C, h, w), not empty")
    height, width = check_int(height, "height", 1), check_int(width, "width", 1)
    h, w = image.shape[-2:]
    scale = max(height / h, width / w)
    size = max(height, round(h * scale)), max(width, round(w * scale))
    large = F.interpolate(
        image[None], size=size, mode="bilinear", align_corners=False, antialias=True
    )[0].clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[:, top : top + height, left : left + width].contiguous()


def digits(device: Any = None) -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits: images (N, 1, 8, 8) float32 in [0, 1], labels (N,) long.

    Source: scikit-learn's load_digits.
    """
    device = as_device(device)
    arrays = read_arrays("digits.npz")
    images = torch.from_numpy(arrays["images"]).float().div(16).unsqueeze(1)
    return images.to(device), torch.from_numpy(arrays["labels"]).long().to(device)


@one_thread()
def clip(device: Any = None) -> tuple[Tensor, float]:
    """A real video, buildings at night under a slow camera move: frames and frames per second.

    Frames are (48, 3, 108, 192) float32 in [0, 1].
    """
    device = as_device(device)
    arrays = read_arrays("clip.npz")
    frames = from_planes(arrays["y"], arrays["cb"], arrays["cr"])
    return frames.to(device), arrays["fps"].item()


@one_thread()
def shots(device: Any = None) -> tuple[Tensor, Tensor, float]:
    """The same video as `clip`, not made smaller: the middle of two shots of different towers.

    Returns (32, 3, 192, 256) and (24, 3, 192, 256) float32 in [0, 1], and frames per second. What a
    camera saw and MPEG-2 kept: no detail finer than the video's own.
    """
    device = as_device(device)
    arrays = read_arrays("shots.npz")
    # each frame is stored less the one before
    planes = (np.cumsum(arrays[k], axis=0, dtype=np.uint8) for k in ("y", "cb", "cr"))
    frames, cut = from_planes(*planes).to(device), arrays["cut"].item()
    return frames[:cut], frames[cut:], arrays["fps"].item()


@functools.cache
def _streams(artist: str) -> tuple[pathlib.Path, list[int]]:
    """The file of all drawings, and where in it each stream by one artist starts; the last end."""
    key = f"{artist}_start"
    start = read_arrays("emoji.npz", key)[key] + place_in_file("emoji.npz", artist)
    return root() / "emoji.npz", start.tolist()


@functools.lru_cache(maxsize=4)
def _unpacked(artist: str, block: int) -> np.ndarray:
    """(up to 2, 64, 64, 4) uint8: the drawings of one stream, read from the file."""
    path, start = _streams(artist)
    first, end = start[block : block + 2]
    with open(path, "rb") as content:
        content.seek(first)
        drawn = lzma.decompress(content.read(end - first))
    return np.frombuffer(drawn, np.uint8).reshape(-1, *DRAWING)


def drawing(artist: str, index: int) -> np.ndarray:
    """One pictogram by one artist, (64, 64, 4) uint8 RGBA with straight alpha; to be read only.

    index: its place in `pictograms.table()`.
    """
    artist = one_of(artist, "artist", ARTISTS)
    index = check_int(index, "index", 0, len(read_rows("emoji.json")) - 1)
    block, place = divmod(index, PACKED)
    return _unpacked(artist, block)[place]


def drawings(artist: str) -> Tensor:
    """All pictograms by one artist, (1911, 64, 64, 4) uint8 RGBA with straight alpha.

    In the order of `pictograms.table()`. They are unpacked at each call, which takes 0.5 s and
    30 MiB; `drawing` unpacks one.
    """
    _, start = _streams(one_of(artist, "artist", ARTISTS))
    blocks = [_unpacked(artist, block) for block in range(len(start) - 1)]
    return torch.from_numpy(np.concatenate(blocks))
