"""Words as pixels: plain lines of text, and signs on pictures, for tests of legibility."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..nn.checks import check_flag, check_int, check_list
from . import backgrounds
from ._arguments import as_device, image_size
from ._random import below, seeded, uniform, unit
from ._threads import one_thread
from .assets import read_arrays
from .render import middles

WORDS = (
    "OPEN EXIT STOP TAXI CAFE BANK ZOO PARK BUS TRAIN HOTEL SALE NORTH SOUTH EAST WEST PIZZA BREAD "
    "FRUIT MUSIC WATER BEACH RIVER LAKE FOREST GARDEN MARKET MUSEUM SCHOOL BRIDGE TOWER HARBOR "
    "STUDIO LIBRARY GALLERY STATION"
).split()
"""Words that signs say by default."""

PLACES = 16
"""A sign takes the best of so many random places."""
TALL, WIDE, MARGIN = 1.15, 0.51, 0.5
"""A plate's height, a letter's width and the plate's margins, in line heights."""


@functools.cache
def _font(bold: bool) -> tuple[Tensor, dict[str, int]]:
    arrays = read_arrays("font.npz")
    glyphs = torch.from_numpy(arrays["bold" if bold else "regular"]).float() / 255
    return glyphs, {chr(c): i for i, c in enumerate(arrays["codes"].tolist())}


def check_words(words: Any) -> list[str]:
    """A list of strings that can be drawn: ASCII, Latin-1 and newlines."""
    words = check_list(words, "words", "strings")
    known = {*_font(False)[1], "\n"}
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f"words has {word!r}: needs strings")
        strange = sorted(set(word) - known)
        if strange:
            needs = "only ASCII and Latin-1 characters can be drawn"
            raise ValueError(f"words has {strange[0]!r} in {word!r}: {needs}")
    return words


def coverage(words: list[str], bold: bool = False, device: Any = None) -> Tensor:
    """(B, rows * 57, columns * 29) float32 in [0, 1]: DejaVu Sans Mono at 48 px.

    Padded with blanks to the longest text. ValueError for a character that is not in ASCII or
    Latin-1.

    Args:
        words: B texts; a newline starts a new row.
        bold: which face.
        device: where the result is; None: the CPU.
    """
    glyphs, place = _font(check_flag(bold, "bold"))
    lines = [word.split("\n") for word in check_words(words)]
    rows = max(len(text) for text in lines)
    columns = max(1, max(len(line) for text in lines for line in text))
    padded = [text + [""] * (rows - len(text)) for text in lines]
    index = [[[place[c] for c in line.ljust(columns)] for line in text] for text in padded]
    cells = glyphs[torch.tensor(index, device="cpu")]
    return rearrange(cells, "b r l h w -> b (r h) (l w)").to(as_device(device))


def _colour(value: Any, name: str, device: torch.device) -> Tensor:
    needs = f"{name}={value!r}: needs a grey level or (red, green, blue) in [0, 1]"
    try:
        colour = torch.as_tensor(value, dtype=torch.float32, device=device).detach().flatten()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(needs) from None
    if colour.numel() not in (1, 3) or not ((colour >= 0) & (colour <= 1)).all():
        raise ValueError(needs)
    return colour.view(1, -1, 1, 1)


@one_thread()
def text_image(
    words: Any,
    size: Any = None,
    height: int = 24,
    colour: Any = 0.0,
    background: Any = 1.0,
    bold: bool = False,
    device: Any = None,
) -> Tensor:
    """Lines of text, black on white by default: (B, 3, H, W) float32 in [0, 1].

    Args:
        words: a string or a list of them; a newline starts a new line.
        size: None for just as large as needed, else an int or (H, W); the text stands in the
            middle. ValueError when it doesn't fit.
        height: line height in pixels, at least 4 (a capital is about 0.63 of it).
        colour: of the text, a grey level or (red, green, blue), in [0, 1].
        background: of the page, likewise.
        bold: the bold face instead of the regular one.
        device: where the result is; None: the CPU.
    """
    device, height = as_device(device), check_int(height, "height", 4)
    words = [words] if isinstance(words, str) else check_list(words, "words", "strings")
    if not words:
        raise ValueError("words is empty: needs at least one string")
    ink = coverage(words, bold, device)
    glyph_height, glyph_width = _font(bold)[0].shape[1:]
    rows, columns = ink.shape[1] // glyph_height, ink.shape[2] // glyph_width
    tall = rows * height
    wide = max(1, round(columns * glyph_width * height / glyph_height))
    ink = F.interpolate(
        ink[:, None], size=(tall, wide), mode="bilinear", align_corners=False, antialias=True
    )
    if size is not None:
        page = image_size(size)
        if tall > page[0] or wide > page[1]:
            needs = f"the text at height={height} needs at least {(tall, wide)}"
            raise ValueError(f"size={size!r}: {needs}")
        top, left = (page[0] - tall) // 2, (page[1] - wide) // 2
        ink = F.pad(ink, (left, page[1] - wide - left, top, page[0] - tall - top))
    ground = _colour(background, "background", device)
    mixed = ground + ink * (_colour(colour, "colour", device) - ground)
    return mixed.expand(-1, 3, -1, -1).contiguous().clamp_(0, 1)


def place(
    words: list[str], box: Tensor, height: Tensor, size: tuple[int, int], bold: bool = True
) -> Tensor:
    """Coverage (B, H, W) in [0, 1] of one line each, its middle at the middle of its box.

    Args:
        words: B of them.
        box: (B, 4) float: x0, y0, x1, y1.
        height: (B,) line heights in pixels.
        size: (H, W).
        bold: which face.
    """
    device = box.device
    ink = coverage(words, bold, device)[:, None]
    tall, wide = ink.shape[2:]
    letters = torch.tensor([len(word) for word in words], device=device)
    own = letters * _font(bold)[0].shape[2]                  # width of each word in glyph pixels
    ratio = tall / height                                    # glyph pixels per picture pixel
    level = torch.log2(ratio).round().clamp(0, 3).long()
    x = middles(size[1], device) - (box[:, :1] + box[:, 2:3]) / 2
    y = middles(size[0], device) - (box[:, 1:2] + box[:, 3:]) / 2
    grid = torch.empty(len(words), *size, 2, device=device, dtype=torch.float32)
    half = own[:, None].float() / 2
    grid[..., 0] = ((x * ratio[:, None] + half) * (2 / wide) - 1)[:, None, :]
    grid[..., 1] = (y * ratio[:, None] * (2 / tall))[:, :, None]
    out = torch.zeros(len(words), *size, device=device, dtype=torch.float32)
    for k in range(4):
        here = (level == k).nonzero()[:, 0]
        if len(here):
            smaller = (math.ceil(tall / 2**k), math.ceil(wide / 2**k))
            small = F.interpolate(ink[here], size=smaller, mode="area")
            seen = F.grid_sample(small, grid[here], padding_mode="zeros", align_corners=False)
            out[here] = seen[:, 0]
    return out


def plates(
    words: list[str], height: Tensor, taken: Tensor, generator, bold: bool = True
) -> Tensor:
    """(B, 4) long boxes for one sign each: of 16 random places the one that hides the least.

    Args:
        words: B of them.
        height: (B,) line heights in pixels.
        taken: (B, H, W) bool: pixels that had better not be covered.
        generator: decides.
        bold: which face.
    """
    glyphs = _font(check_flag(bold, "bold"))[0]
    page_height, page_width = taken.shape[1:]
    letters = torch.tensor([len(word) for word in words], device="cpu")
    line = height.cpu()
    tall = (line * TALL).ceil().long()
    wide = (letters * line * (glyphs.shape[2] / glyphs.shape[1]) + line * MARGIN).ceil().long()
    if (tall > page_height).any() or (wide > page_width).any():
        worst = int((wide.double() / page_width).argmax())
        what = f"words has {words[worst]!r}, which at height {float(line[worst]):.0f}"
        raise ValueError(f"{what} is wider than {page_width} pixels")
    spot = unit((2, PLACES, len(words)), generator)
    x0 = (spot[0] * (page_width - wide + 1)).long()
    y0 = (spot[1] * (page_height - tall + 1)).long()
    boxes = torch.stack([x0, y0, x0 + wide, y0 + tall], -1).to(taken.device)                # t b 4
    table = F.pad(taken.long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    at = torch.arange(len(words), device=taken.device)
    left, top, right, bottom = boxes.unbind(-1)
    below_top = table[at, bottom, right] - table[at, top, right]
    covered = below_top - table[at, bottom, left] + table[at, top, left]
    return boxes[covered.argmin(0), at]


def write(
    images: Tensor, words: list[str], boxes: Tensor, height: Tensor, bold: bool = True
) -> Tensor:
    """Paint signs, dark words on light plates, in place; returns the plates' pixels (B, H, W) bool.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        words: B of them.
        boxes: (B, 4) long, the plates.
        height: (B,) line heights in pixels.
        bold: which face.
    """
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
    """Give about `chance` of the scenes a sign: changes images, instance, `sign` and `words`.

    Args:
        scenes: a `Scenes`, changed in place.
        chance: the probability.
        generator: decides.
    """
    batch, (height, width), device = len(scenes), scenes.size, scenes.images.device
    chosen = (unit((batch,), generator) < chance).nonzero()[:, 0]
    tall = max(12.0, 0.15 * min(height, width))
    fitting = [word for word in WORDS if (len(word) * WIDE + MARGIN) * tall + 1 <= width]
    if not fitting or tall * TALL > height:
        what = f"pictures of {height} x {width} are too small for a sign; 40 x 40 is enough"
        raise ValueError(f"signs={chance}: {what}")
    pick = below(len(fitting), (batch,), generator).tolist()
    scenes.words = [None] * batch
    scenes.sign = torch.zeros(batch, height, width, dtype=torch.bool, device=device)
    if not len(chosen):
        return
    words = [fitting[pick[i]] for i in chosen.tolist()]
    sizes = torch.full((len(words),), tall, device=device, dtype=torch.float32)
    at = chosen.to(device)
    boxes = plates(words, sizes, scenes.instance[at] > 0, generator)
    images = scenes.images[at]
    scenes.sign[at] = write(images, words, boxes, sizes)
    scenes.images[at] = images
    scenes.instance.masked_fill_(scenes.sign, 0)
    for i, word in zip(chosen.tolist(), words, strict=True):
        scenes.words[i] = word


@dataclass
class TextPictures:
    """Pictures with one sign each."""

    images: Tensor  # (B, 3, H, W) float32 in [0, 1]
    words: list[str]
    boxes: Tensor  # (B, 4) long: x0, y0, x1, y1 of the plate
    height: Tensor  # (B,) float32: line height in pixels


def make_text(world, batch, seed, words, height, background, device) -> TextPictures:
    """What EmojiWorld.text does once it has checked its numbers.

    Args:
        world: an EmojiWorld.
        batch: B.
        seed: decides.
        words: a list to draw from; None: `WORDS`, lower where a picture is too small for one.
        height: line height in pixels, (smallest, largest).
        background: as in EmojiWorld.classify.
        device: where the result is; None: the CPU.
    """
    device, generator = as_device(device), seeded(seed)
    pool = WORDS if words is None else check_words(words)
    if not pool or not all(pool):
        raise ValueError("words needs strings of at least one character")
    if any("\n" in word for word in pool):
        raise ValueError("words has a newline: a sign has one line")
    drawn = [pool[i] for i in below(len(pool), (batch,), generator).tolist()]
    tall = uniform((batch,), height, generator)
    if words is None:                                  # default words shrink in small pictures
        page_height, page_width = world.size
        widest = [(page_width - 2) / (len(word) * WIDE + MARGIN) for word in drawn]
        tall = tall.minimum(torch.tensor(widest, dtype=torch.float32, device="cpu"))
        tall = tall.clamp(max=(page_height - 1) / TALL)
    image, _ = backgrounds.make(background, world.split, world.size, batch, generator, device)
    image = image.div_(255).clamp_(0, 1)
    tall = tall.to(device)
    taken = torch.zeros(batch, *world.size, dtype=torch.bool, device=device)
    boxes = plates(drawn, tall, taken, generator)
    write(image, drawn, boxes, tall)
    return TextPictures(image, drawn, boxes, tall)
