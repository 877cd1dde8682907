"""Camouflage by texture: objects and ground have one mean and one variance, only the direction and
the fineness of their noise tell them apart.

A texture is white noise through a band-pass filter; in polar coordinates of the spectrum

    G(f, phi) = exp(-log2(f / f_c)^2 / (2 OCTAVES^2)) exp(-d(phi, theta_c)^2 / (2 SPREAD^2))

and each field is then brought to mean 0 and variance 1 over the region that shows it, exactly
(loud pictures are clipped to 0 ... 1 here and there). A picture is

    image = colour + CONTRAST * tint * field * (1 on the ground, `contrast` on objects)
                   + `colour` * hue on objects

so contrast=1, colour=0 is complete camouflage: no pixel's value, no mean and no variance says
what is an object. Silhouettes are pictograms' (EmojiWorld). Needs no photograph.

`vectors` are stand-ins for a frozen text encoder: similar textures have similar vectors, so the
name of a texture that no training has seen still means something.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..nn.checks import check_int, check_ints, check_number
from ._arguments import as_device, bounds, count_bounds, one_of
from ._random import seeded, unit
from ._threads import one_thread

ANGLES = {"level": 0, "rising": 45, "upright": 90, "falling": 135}
"""Degrees, counter-clockwise on the screen, of the streaks' direction."""
WAVELENGTHS = {"coarse": 9.0, "fine": 4.5}
"""Pixels from one streak to the next."""
NAMES = tuple(f"{size} {angle}" for size in WAVELENGTHS for angle in ANGLES)
"""The eight textures: "coarse level", ..., "fine falling"."""
HELD_OUT = (NAMES.index("coarse falling"), NAMES.index("fine rising"))
"""Two that training leaves out. Either half of their names is seen with another other half."""
SEEN = tuple(i for i in range(len(NAMES)) if i not in HELD_OUT)
OCTAVES, SPREAD = 0.25, math.radians(14)
CONTRAST = 0.11
"""Standard deviation of the ground, of 1."""
TEXT_DIM = 32
OWN = 0.3
"""Share of a vector that is the texture's alone, not its direction's or fineness's."""


@dataclass
class TextureScenes:
    """B pictures with up to K objects; unused slots have class -1. Masks are exact: no pixel is
    mixed of two textures. An object that others cover keeps its slot and an empty mask."""

    images: Tensor  # (B, 3, H, W) float32 in [0, 1]
    valid: Tensor  # (B, K) bool: the slot is used, and something of the object is seen
    label: Tensor  # (B, K) long, index into NAMES; -1 in slots that are not valid
    ground: Tensor  # (B,) long: the texture behind
    instance: Tensor  # (B, H, W) long: 0 background, slot + 1 where that object is seen
    contrast: Tensor  # (B,) float32: objects' amplitude, of the ground's
    colour: Tensor  # (B,) float32: how far objects differ in colour

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def masks(self) -> Tensor:
        """(B, K, H, W) bool."""
        slots = torch.arange(1, self.valid.shape[1] + 1, device=self.instance.device)
        return self.instance[:, None] == slots[:, None, None]

    @functools.cached_property
    def semantic(self) -> Tensor:
        """(B, H, W) long: 0 background, else 1 + the object's texture."""
        lookup = torch.cat([torch.zeros_like(self.label[:, :1]), self.label + 1], 1)
        return lookup.gather(1, self.instance.flatten(1)).view_as(self.instance)

    @functools.cached_property
    def surface(self) -> Tensor:
        """(B, H, W) long: the texture of each pixel, the ground's too."""
        lookup = torch.cat([self.ground[:, None], self.label], 1)
        return lookup.gather(1, self.instance.flatten(1)).view_as(self.instance)

    def text(self, extra: Any = ()) -> Tensor:
        """What a prompt with the objects' names says: (B, K + len(extra), TEXT_DIM), one vector an
        object, zeros for slots that are not valid. The ground is not named.

        Args:
            extra: textures named in each picture's prompt besides, indices into NAMES.
        """
        extra = torch.tensor(check_classes(extra, "extra", empty=True), dtype=torch.long)
        extra = extra.to(self.label.device).expand(len(self), -1)
        return prompt(torch.cat([self.label, extra], 1))

    def captions(self) -> list[str]:
        """"coarse level, fine upright" for each picture: the textures of its objects, once each."""
        return [
            ", ".join(NAMES[i] for i in sorted(set(row)) if i >= 0) for row in self.label.tolist()
        ]


@functools.cache
def _vectors() -> Tensor:
    generator = seeded(14)
    draws = torch.randn(TEXT_DIM, 3 + len(NAMES), generator=generator, device="cpu")
    axes = torch.linalg.qr(draws.double()).Q
    rows = []
    for i, name in enumerate(NAMES):
        size, angle = name.split()
        turn = math.radians(2 * ANGLES[angle])                  # a streak turned by 180 is the same
        fineness = 1.0 if size == "fine" else -1.0
        says = torch.tensor([fineness, math.cos(turn), math.sin(turn)], dtype=torch.float64)
        row = axes[:, :3] @ says + OWN * axes[:, 3 + i]
        rows.append(row / row.norm())
    return torch.stack(rows).float()


def vectors(device: Any = None) -> Tensor:
    """(8, TEXT_DIM) float32 of length 1, in the order of NAMES: the same in every call.

    Cosine of two textures: about 1/2 with one half of the name in common and 45 degrees between,
    0 with 90 degrees or another fineness, -1/2 and below with neither.

    Args:
        device: where they are; None: the CPU.
    """
    return _vectors().to(as_device(device), copy=True)


def prompt(label: Tensor) -> Tensor:
    """Classes (..., N) -> their `vectors` (..., N, TEXT_DIM); zeros where the class is -1."""
    wrong = not isinstance(label, Tensor) or label.dtype != torch.long or label.dim() < 1
    if wrong or (label.numel() and not -1 <= int(label.min()) <= int(label.max()) < len(NAMES)):
        raise ValueError(f"label={label!r}: needs a long tensor of -1 ... {len(NAMES) - 1}")
    return vectors(label.device)[label.clamp(min=0)] * (label >= 0)[..., None]


def check_classes(classes: Any, name: str, empty: bool = False) -> tuple[int, ...]:
    """Indices into NAMES as a tuple of ints. ValueError for others, and for none unless `empty`.

    Args:
        classes: indices or names.
        name: what the message calls them.
        empty: whether there may be none.
    """
    if isinstance(classes, (list, tuple)):
        classes = [NAMES.index(c) if c in NAMES else c for c in classes]
    found = check_ints(classes, name, 0)
    if any(c >= len(NAMES) for c in found) or not (found or empty):
        raise ValueError(f"{name}={classes!r}: needs indices below {len(NAMES)} or of {NAMES}")
    return found


@functools.lru_cache(maxsize=8)
def _filters(size: tuple[int, int]) -> Tensor:
    """(8, H, W // 2 + 1) float32: what each texture lets through of a real spectrum."""
    rows = torch.fft.fftfreq(size[0], dtype=torch.float64, device="cpu")[:, None]
    columns = torch.fft.rfftfreq(size[1], dtype=torch.float64, device="cpu")[None]
    radius = (rows.square() + columns.square()).sqrt().clamp(min=1e-9)
    waves = torch.atan2(-rows, columns)                 # y points down, angles are counted upwards
    out = []
    for wavelength in WAVELENGTHS.values():
        octave = torch.log2(radius * wavelength)
        for angle in ANGLES.values():
            across = math.radians(angle + 90)                    # a wave runs across its streaks
            off = (waves - across + math.pi / 2).remainder(math.pi) - math.pi / 2
            exponent = (octave / OCTAVES).square() + (off / SPREAD).square()
            out.append((-exponent / 2).exp())
    return torch.stack(out).float()


def texture(
    classes: Tensor, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Fields (..., H, W) float32 on the CPU, not yet standardised.

    Args:
        classes: (...) long, indices into NAMES.
        size: (H, W).
        generator: decides.
    """
    shape = (*classes.shape, *size)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return torch.fft.irfft2(torch.fft.rfft2(noise) * _filters(size)[classes], s=size)


def joined(fields: Tensor, instance: Tensor) -> Tensor:
    """(B, H, W): each pixel of its region's field, which has mean 0 and variance 1 there.

    Args:
        fields: (B, 1 + K, H, W), the ground's first.
        instance: (B, H, W) long of 0 ... K.
    """
    regions = torch.arange(fields.shape[1], device="cpu")[:, None, None]
    share = (instance[:, None] == regions).float()
    count = share.sum((-2, -1), keepdim=True).clamp(min=1)
    fields = fields - (fields * share).sum((-2, -1), keepdim=True) / count
    power = (fields.square() * share).sum((-2, -1), keepdim=True) / count
    return (fields * share * power.clamp(min=1e-12).rsqrt()).sum(1)


def between(pair: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers of low ... high; low itself where they are the same.

    Args:
        pair: (low, high).
        count: how many.
        generator: decides.
    """
    low, high = pair
    return low + (high - low) * unit((count,), generator)


class TextureWorld:
    """A generator of textured scenes: what it makes depends on its arguments and the seed only.

        world = TextureWorld(64)
        scenes = world.scenes(32, seed=0)
        text = scenes.text()                # (32, 2, TEXT_DIM)

    Args:
        size: an int or (H, W) in pixels, at least 16.
        split: "train", "test" or "all": whose pictograms lend their silhouettes.
    """

    def __init__(self, size: Any = 64, split: str = "train") -> None:
        from .emojiworld import EmojiWorld

        self.world = EmojiWorld(size, split)
        self.size = self.world.size
        if min(self.size) < 16:
            raise ValueError(f"size={size!r}: needs at least 16 pixels a side")

    @one_thread()
    def scenes(
        self,
        batch: int,
        seed: int,
        objects: Any = (1, 2),
        classes: Any = SEEN,
        grounds: Any = None,
        contrast: Any = 1.0,
        colour: Any = 0.0,
        scale: Any = (0.4, 0.65),
        rotation: float = 30,
        same: str = "may",
        device: Any = None,
    ) -> TextureScenes:
        """B pictures, objects in other textures than the ground.

        Args:
            batch: B.
            seed: decides.
            objects: how many, an int or (fewest, most).
            classes: textures of objects, indices into NAMES or names.
            grounds: textures of the ground; None: as `classes`.
            contrast: amplitude of objects over the ground's, a number or (least, most).
            colour: how far objects differ in colour from the ground, of 1; a number or bounds.
            scale: side of a silhouette as a fraction of min(H, W), a number or bounds.
            rotation: of silhouettes, at most that many degrees either way.
            same: "may": two objects of a picture may share a texture; "all": they do; "never".
            device: where the result is; None: the CPU.
        """
        device = as_device(device)
        few, many = count_bounds(objects, "objects", 1, 6)
        classes = check_classes(classes, "classes")
        grounds = classes if grounds is None else check_classes(grounds, "grounds")
        contrast = bounds(contrast, "contrast", 0.25, 3)
        colour = bounds(colour, "colour", 0, 0.5)
        same = one_of(same, "same", ("may", "all", "never"))
        rotation = check_number(rotation, "rotation", 0, 360)
        drawn = self.world.scenes(
            check_int(batch, "batch", 1), seed, (few, many), scale, rotation, "noise",
            repeat=0.0, occlusion="none",
        )
        generator = seeded(seed)
        ground, label = self._assign(len(drawn), many, classes, grounds, same, generator)
        instance = drawn.instance.cpu()
        layers = torch.cat([ground[:, None], label], 1)
        field = joined(texture(layers, self.size, generator), instance)
        contrast, colour = (between(p, len(drawn), generator) for p in (contrast, colour))
        base = 0.42 + 0.16 * unit((len(drawn), 3, 1, 1), generator)
        tint = 0.7 + 0.3 * unit((len(drawn), 3, 1, 1), generator)
        hue = torch.randn((len(drawn), 3, 1, 1), generator=generator, device="cpu")
        hue = hue / hue.norm(dim=1, keepdim=True)
        on = (instance > 0)[:, None].float()
        amplitude = CONTRAST * (1 + (contrast[:, None, None, None] - 1) * on)
        images = base + amplitude * tint * field[:, None]
        images = (images + colour[:, None, None, None] * hue * on).clamp_(0, 1)
        slots = torch.arange(1, many + 1, device="cpu")[:, None, None]
        valid = drawn.valid.cpu() & (instance[:, None] == slots).flatten(2).any(-1)
        label = torch.where(valid, label, -1)
        parts = (images, valid, label, ground, instance, contrast, colour)
        return TextureScenes(*(part.to(device) for part in parts))

    @staticmethod
    def _assign(
        batch: int, many: int, classes: tuple, grounds: tuple, same: str, generator
    ) -> tuple[Tensor, Tensor]:
        """Textures: of the ground (B,), and of each object (B, K), none the ground's.

        Args:
            batch: B.
            many: K.
            classes: for objects.
            grounds: for the ground.
            same: of `scenes`.
            generator: decides.
        """
        needed = many if same == "never" else 1
        if min(len(set(classes) - {g}) for g in grounds) < needed:
            raise ValueError(
                f"classes={classes} with grounds={grounds}: {needed} other textures than the "
                "ground's are needed for objects"
            )
        pool = torch.tensor(grounds, device="cpu")
        ground = pool[(unit((batch,), generator) * len(grounds)).long()]
        pool = torch.tensor(classes, device="cpu")
        key = unit((batch, many, len(classes)), generator)
        if same != "may":                       # one order of the textures for the whole picture
            key = key[:, :1].expand_as(key)
        key = key - 2.0 * (pool == ground[:, None])[:, None]                     # never the ground
        order = key.argsort(-1, descending=True)
        rank = torch.arange(many, device="cpu") if same == "never" else torch.zeros(many).long()
        return ground, pool[order.gather(-1, rank.expand(batch, many)[..., None])[..., 0]]
