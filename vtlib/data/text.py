"""Words as pixels: plain lines of text, and signs on pictures, for tests of legibility."""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vtlib.data.assets import as_device, image_size, read_arrays

WORDS = (
    "OPEN EXIT STOP TAXI CAFE BANK ZOO PARK BUS TRAIN HOTEL SALE NORTH SOUTH EAST WEST PIZZA BREAD FRUIT MUSIC "
    "WATER BEACH RIVER LAKE FOREST GARDEN MARKET MUSEUM SCHOOL BRIDGE TOWER HARBOR STUDIO LIBRARY GALLERY STATION"
).split()
"""Words that signs say by default."""


@functools.cache
def _font(bold: bool) -> tuple[Tensor, dict[str, int]]:
    arrays = read_arrays("font.npz")
    glyphs = torch.from_numpy(arrays["bold" if bold else "regular"]).float() / 255
    return glyphs, {chr(c): i for i, c in enumerate(arrays["codes"].tolist())}


def coverage(words: list[str], bold: bool = False, device=None) -> Tensor:
    """(B, rows * 57, columns * 29) float in [0, 1]: DejaVu Sans Mono at 48 px, padded with blanks to the longest text.

    A newline starts a new row. ValueError for a character that is not in ASCII or Latin-1.
    """
    glyphs, place = _font(bold)
    lines = [w.split("\n") for w in words]
    rows, columns = max(map(len, lines)), max(1, max(len(line) for text in lines for line in text))
    for text in words:
        strange = sorted(set(text) - set(place) - {"\n"})
        if strange:
            raise ValueError(f"words has {strange[0]!r} in {text!r}: only ASCII and Latin-1 characters can be drawn")
    blank = place[" "]
    index = [
        [[place[c] for c in line.ljust(columns)] for line in text] + [[blank] * columns] * (rows - len(text)) for text in lines
    ]
    return rearrange(glyphs[torch.tensor(index)], "b r l h w -> b (r h) (l w)").to(device)


def _colour(value, what: str, device) -> Tensor:
    colour = torch.as_tensor(value, dtype=torch.float32, device=device).flatten()
    if colour.numel() not in (1, 3) or colour.min() < 0 or colour.max() > 1:
        raise ValueError(f"{what}={value!r}: needs a grey level or (red, green, blue) in [0, 1]")
    return colour.view(1, -1, 1, 1)


def text_image(words, size=None, height: int = 24, colour=0.0, background=1.0, bold: bool = False, device=None) -> Tensor:
    """Lines of text, black on white by default: (B, 3, H, W) float32 in [0, 1].

    words: a string or a list of them; "\\n" starts a new line. height: line height in pixels (a capital is about 0.63 of it).
    size: None for just as large as needed, else an int or (H, W); the text stands in the middle. ValueError when it doesn't fit.
    """
    device = as_device(device)
    words = [words] if isinstance(words, str) else list(words)
    if not words:
        raise ValueError("words is empty: needs at least one string")
    if not isinstance(height, int) or height < 4:
        raise ValueError(f"height={height!r}: needs an int of at least 4 pixels")
    ink = coverage(words, bold, device)
    glyph_height, glyph_width = _font(bold)[0].shape[1:]
    rows, columns = ink.shape[1] // glyph_height, ink.shape[2] // glyph_width
    tall, wide = rows * height, max(1, round(columns * glyph_width * height / glyph_height))
    ink = F.interpolate(ink[:, None], size=(tall, wide), mode="bilinear", align_corners=False, antialias=True)
    if size is not None:
        page = image_size(size)
        if tall > page[0] or wide > page[1]:
            raise ValueError(f"size={size!r}: the text at height={height} needs at least {(tall, wide)}")
        top, left = (page[0] - tall) // 2, (page[1] - wide) // 2
        ink = F.pad(ink, (left, page[1] - wide - left, top, page[0] - tall - top))
    ground, colour = _colour(background, "background", device), _colour(colour, "colour", device)
    return (ground + ink * (colour - ground)).expand(-1, 3, -1, -1).contiguous().clamp_(0, 1)


def place(words: list[str], box: Tensor, height: Tensor, size: tuple[int, int], bold: bool = True) -> Tensor:
    """Coverage (B, H, W) in [0, 1] of one line each, its middle at the middle of `box` (B, 4), line height (B,) in pixels."""
    device = box.device
    ink = coverage(words, bold, device)[:, None]
    tall, wide = ink.shape[2:]
    own = torch.tensor([len(w) for w in words], device=device) * _font(bold)[0].shape[2]  # width of each word in glyph pixels
    ratio = tall / height  # glyph pixels per picture pixel
    level = torch.log2(ratio).round().clamp(0, 3).long()
    x = torch.arange(size[1], device=device) + 0.5 - (box[:, :1] + box[:, 2:3]) / 2
    y = torch.arange(size[0], device=device) + 0.5 - (box[:, 1:2] + box[:, 3:]) / 2
    grid = torch.empty(len(words), *size, 2, device=device)
    grid[..., 0] = ((x * ratio[:, None] + own[:, None] / 2) * (2 / wide) - 1)[:, None, :]
    grid[..., 1] = (y * ratio[:, None] * (2 / tall))[:, :, None]
    out = torch.zeros(len(words), *size, device=device)
    for k in range(4):
        here = (level == k).nonzero()[:, 0]
        if len(here):
            small = F.interpolate(ink[here], size=(math.ceil(tall / 2**k), math.ceil(wide / 2**k)), mode="area")
            out[here] = F.grid_sample(small, grid[here], padding_mode="zeros", align_corners=False)[:, 0]
    return out


def plates(words: list[str], height: Tensor, taken: Tensor, generator, bold: bool = True) -> Tensor:
    """(B, 4) long boxes for one sign each: of 16 random places the one that covers the fewest pixels of `taken` (B, H, W) bool."""
    glyphs = _font(bold)[0]
    page_height, page_width = taken.shape[1:]
    letters = torch.tensor([len(w) for w in words])
    tall = (height.cpu() * 1.15).ceil().long()
    wide = (letters * height.cpu() * (glyphs.shape[2] / glyphs.shape[1]) + height.cpu() * 0.5).ceil().long()
    if (tall > page_height).any() or (wide > page_width).any():
        worst = int((wide / page_width).argmax())
        raise ValueError(
            f"words has {words[worst]!r}, which at height {float(height[worst]):.0f} is wider than {page_width} pixels"
        )
    spot = torch.rand(2, 16, len(words), generator=generator)
    x0 = (spot[0] * (page_width - wide + 1)).long()
    y0 = (spot[1] * (page_height - tall + 1)).long()
    boxes = torch.stack([x0, y0, x0 + wide, y0 + tall], -1).to(taken.device)  # t b 4
    table = F.pad(taken.long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    at = torch.arange(len(words), device=taken.device)
    left, top, right, bottom = boxes.unbind(-1)
    covered = table[at, bottom, right] - table[at, top, right] - table[at, bottom, left] + table[at, top, left]
    return boxes[covered.argmin(0), at]


def write(images: Tensor, words: list[str], boxes: Tensor, height: Tensor, bold: bool = True) -> Tensor:
    """Paint signs (dark words on light plates) into images (B, 3, H, W), in place; returns the plates' pixels (B, H, W) bool."""
    size = tuple(images.shape[-2:])
    x = torch.arange(size[1], device=images.device)
    y = torch.arange(size[0], device=images.device)
    columns = (x >= boxes[:, :1]) & (x < boxes[:, 2:3])
    rows = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:])
    plate = rows[:, :, None] & columns[:, None, :]
    ink = place(words, boxes.float(), height, size, bold)
    shade = 0.97 - 0.9 * ink[:, None]
    images.copy_(torch.where(plate[:, None], shade, images))
    return plate


def add_signs(scenes, chance: float, generator) -> None:
    """Give about `chance` of the scenes a sign: changes images, instance, area-independent labels, `sign` and `words`."""
    batch, (height, width), device = len(scenes), scenes.size, scenes.images.device
    chosen = (torch.rand(batch, generator=generator) < chance).nonzero()[:, 0]
    tall = max(12.0, 0.15 * min(height, width))
    fitting = [w for w in WORDS if (len(w) * 0.51 + 0.5) * tall + 1 <= width]
    if not fitting or tall * 1.15 > height:
        raise ValueError(f"signs={chance}: pictures of {height} x {width} are too small for a sign; 40 x 40 is enough")
    pick = torch.randint(len(fitting), (batch,), generator=generator).tolist()
    scenes.words = [None] * batch
    scenes.sign = torch.zeros(batch, height, width, dtype=torch.bool, device=device)
    if not len(chosen):
        return
    words = [fitting[pick[i]] for i in chosen.tolist()]
    sizes = torch.full((len(words),), tall, device=device)
    at = chosen.to(device)
    boxes = plates(words, sizes, scenes.instance[at] > 0, generator)
    images = scenes.images[at]
    scenes.sign[at] = write(images, words, boxes, sizes)
    scenes.images[at] = images
    scenes.instance.masked_fill_(scenes.sign, 0)
    for i, word in zip(chosen.tolist(), words):
        scenes.words[i] = word


@dataclass
class TextPictures:
    """Pictures with one sign each."""

    images: Tensor  # (B, 3, H, W) float32 in [0, 1]
    words: list[str]
    boxes: Tensor  # (B, 4) long: x0, y0, x1, y1 of the plate
    height: Tensor  # (B,) float: line height in pixels
