"""The shipped files: photographs, digits, a clip, pictograms, glyphs. Read with numpy alone, on first use, then kept in memory."""

import functools
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints import root

ARTISTS = ("noto", "twemoji")


def read_arrays(file: str, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of an .npz asset whose names start with `prefix`."""
    with np.load(root() / file, allow_pickle=False) as archive:
        return {k: archive[k] for k in archive.files if k.startswith(prefix)}


def read_rows(file: str) -> list[dict]:
    """A .json asset: a list of flat dicts."""
    return json.loads((root() / file).read_text(encoding="utf-8"))


def from_planes(y: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> Tensor:
    """Undo the packing of photographs and clips (row-wise differences, chroma at half size, JPEG's full-range YCbCr).

    y (T, H, W), cb and cr (T, H/2, W/2) uint8 -> (T, 3, H, W) float32 in [0, 1].
        R = Y + 1.402 Cr,  G = Y - 0.344136 Cb - 0.714136 Cr,  B = Y + 1.772 Cb  (ITU-T T.871)
    """
    planes = [torch.from_numpy(np.cumsum(p, axis=-1, dtype=np.uint8)).float() for p in (y, cb, cr)]
    luma, chroma = planes[0], torch.stack(planes[1:], 1) - 128
    cb, cr = F.interpolate(chroma, size=luma.shape[-2:], mode="bilinear", align_corners=False).unbind(1)
    rgb = torch.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], 1)
    return rgb.div_(255).clamp_(0, 1)


@functools.cache
def photo_table() -> list[dict]:
    """What is known of each photograph: name, title, author, licence, split ("none": not used as a background), height, width."""
    return read_rows("photos.json")


@functools.cache
def _photo(name: str) -> Tensor:
    planes = read_arrays("photos.npz", name + "_")
    return from_planes(*(planes[f"{name}_{p}"][None] for p in ("y", "cb", "cr")))[0]


def photographs(size: int | tuple[int, int] | None = None, names: list[str] | None = None, device=None) -> dict[str, Tensor]:
    """Real photographs under free licences (data/README.md says whose), name -> (3, H, W) float32 in [0, 1].

    size: None keeps each one's own size (longest side at most 512); an int or (H, W) covers that size and cuts the middle out.
    names: which ones, in this order (default: all). ValueError for an unknown name.
    """
    known = [row["name"] for row in photo_table()]
    names = known if names is None else list(names)
    for name in names:
        if name not in known:
            raise ValueError(f"names has {name!r}, but the photographs are {', '.join(known)}")
    if size is None:
        return {n: _photo(n).clone().to(device) for n in names}
    height, width = image_size(size)
    return {n: cover(_photo(n), height, width).to(device) for n in names}


def cover(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (C, h, w) with antialiasing until it covers (height, width), then cut the middle out."""
    h, w = image.shape[-2:]
    scale = max(height / h, width / w)
    h, w = max(height, round(h * scale)), max(width, round(w * scale))
    out = F.interpolate(image[None], size=(h, w), mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)
    top, left = (h - height) // 2, (w - width) // 2
    return out[:, top : top + height, left : left + width].contiguous()


def image_size(size, what: str = "size") -> tuple[int, int]:
    """An int or (H, W) as two positive ints. ValueError otherwise."""
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list, torch.Size)) else ()
    if len(pair) != 2 or not all(isinstance(s, int) and s > 0 for s in pair):
        raise ValueError(f"{what}={size!r}: needs a positive int or (height, width)")
    return pair


def digits(device=None) -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits: images (N, 1, 8, 8) float32 in [0, 1], labels (N,) long. Source: scikit-learn's load_digits."""
    arrays = read_arrays("digits.npz")
    images = torch.from_numpy(arrays["images"]).float().div(16).unsqueeze(1)
    return images.to(device), torch.from_numpy(arrays["labels"]).long().to(device)


def clip(device=None) -> tuple[Tensor, float]:
    """A real video: frames (48, 3, 108, 192) float32 in [0, 1] and frames per second (buildings at night, slow camera move)."""
    arrays = read_arrays("clip.npz")
    return from_planes(arrays["y"], arrays["cb"], arrays["cr"]).to(device), arrays["fps"].item()


def shots(device=None) -> tuple[Tensor, Tensor, float]:
    """The same video as `clip`, not made smaller: its middle 192 x 256 pixels in two shots of different towers, (32, 3, 192, 256) and
    (24, 3, 192, 256) float32 in [0, 1], and frames per second. What a camera saw and MPEG-2 kept: no detail finer than the video's own."""
    arrays = read_arrays("shots.npz")
    y, cb, cr = (np.cumsum(arrays[k], axis=0, dtype=np.uint8) for k in ("y", "cb", "cr"))        # stored less the frame before
    frames, cut = from_planes(y, cb, cr).to(device), arrays["cut"].item()
    return frames[:cut], frames[cut:], arrays["fps"].item()


@functools.cache
def drawings(artist: str) -> Tensor:
    """All pictograms by one artist, (1911, 64, 64, 4) uint8 RGBA with straight alpha, in the order of `pictograms.table()`."""
    if artist not in ARTISTS:
        raise ValueError(f"artist={artist!r}: needs one of {', '.join(ARTISTS)}")
    return torch.from_numpy(read_arrays("emoji.npz", artist)[artist])


def as_device(device) -> torch.device:
    """None is the CPU; 'cuda' is the current GPU, so that equal devices compare (and cache) as equal."""
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
