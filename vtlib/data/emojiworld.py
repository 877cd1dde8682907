"""EmojiWorld: pictures of pictograms on photographs, generated on the fly with exact truth."""

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..nn.checks import check_int, check_list, check_number
from . import backgrounds, pictograms, render
from ._arguments import (
    as_device,
    bounds,
    count_bounds,
    image_size,
    one_of,
)
from ._random import below, seeded, uniform, unit
from ._threads import one_thread
from .assets import ARTISTS
from .scenes import Scenes, layout

if TYPE_CHECKING:       # here and below: a generator's own file is loaded when it is asked for
    from .biomes import Biomes
    from .mosaic import Mosaic
    from .retrieval import Retrieval
    from .text import TextPictures
    from .video import Video

TRIES = {"any": 1, "some": 2, "none": 48}
SCALES = (0.02, 1.0)
MOST = 64
"""Objects in one picture."""
TURN = 360
"""Degrees either way."""
PLURAL = {"category": "categories", "subcategory": "subcategories"}
DRAWS = 32
"""So many pictograms are drawn for each object of the clutter, to find one of another class."""


class EmojiWorld:
    """A generator of pictures. What it makes depends on its arguments and the call's seed only.

        world = EmojiWorld(96, "train", pictograms=list(vtlib.data.EASY))
        images, labels = world.classify(64, seed=0)

    The operators of one call run on the calling thread alone: they are small.

    Args:
        size: an int or (H, W) in pixels.
        split: "train", "test" or "all". Splits share no pictogram (about 80 / 20, by a hash of the
            code points; drawings that look the same stay together) and no background photograph.
        artist: "noto", "twemoji" or "both"; or a list with one of these per pictogram, in the order
            of `classes`: whose drawings of it appear.
        pictograms: None for all of the split; a list of names for a closed set, which then is the
            same in every split (splits differ in their backgrounds only); an int takes that many of
            the split's.

    ValueError when an argument is none of these.
    """

    def __init__(
        self, size: Any = 96, split: str = "train", artist: Any = "noto", pictograms: Any = None
    ):
        self.size = image_size(size)
        self.split = split
        self.table = torch.tensor(choose(pictograms, split), device="cpu")
        self.artist, self.only = whose(artist, len(self.table))
        self.artists = (self.artist,) if self.artist in ARTISTS else ARTISTS
        self.classes = [row_name(i) for i in self.table.tolist()]
        self.photos = backgrounds.names(split)

    def __repr__(self) -> str:
        height, width = self.size
        count = len(self.classes)
        return f"EmojiWorld({height} x {width}, {self.split}, {self.artist}, {count} pictograms)"

    def __len__(self) -> int:
        """How many pictograms this world draws from."""
        return len(self.classes)

    def names(self, level: str = "pictogram") -> list[str]:
        """Class names at a level; labels index into it.

        Categories and sub-categories are the same 9 and 99 in every world.
        """
        if pictograms.check_level(level) == "pictogram":
            return list(self.classes)
        return list(getattr(pictograms, PLURAL[level])())

    def level_ids(self, level: str) -> Tensor:
        """(len(classes),) long: the class at `level` of each of this world's pictograms."""
        if level == "pictogram":
            return torch.arange(len(self.table), device="cpu")
        return pictograms.level_ids(level)[self.table]

    def draw(self, shape: tuple[int, ...], level: str, generator: torch.Generator) -> Tensor:
        """Random pictograms, as indices into `classes`.

        Args:
            shape: of the result.
            level: each class of it that this world has is equally likely.
            generator: decides.
        """
        ids = self.level_ids(level)
        if level == "pictogram":
            return below(len(ids), shape, generator)
        order = ids.argsort(stable=True)
        count = ids.bincount()
        start, there = count.cumsum(0) - count, count.nonzero()[:, 0]
        pick = there[below(len(there), shape, generator)]
        return order[start[pick] + (unit(shape, generator) * count[pick]).long()]

    def classify(
        self,
        batch: int,
        seed: int,
        level: str = "pictogram",
        scale: Any = (0.4, 0.9),
        rotation: float = 20,
        background: Any = "photo",
        clutter: int = 0,
        device: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """One object a picture: images (B, 3, H, W) float32 in [0, 1] and labels (B,) long.

        Labels are indices into `names(level)`.

        Args:
            batch: B.
            seed: decides.
            level: "pictogram", "category" or "subcategory"; its classes are equally likely.
            scale: side of the drawing as a fraction of the picture's shorter side: a number or
                (smallest, largest).
            rotation: at most that many degrees either way.
            background: "photo", "plain", "noise" or a float tensor (3, H, W) or (B, 3, H, W).
            clutter: so many smaller objects of other classes behind it.
            device: where the result is; None: the CPU.
        """
        scenes = self._classify(batch, seed, level, scale, rotation, background, clutter, device)
        return scenes.images, scenes.ids(level)[:, -1]

    @one_thread()
    def _classify(
        self, batch, seed, level, scale, rotation, background, clutter, device
    ) -> Scenes:
        """The same as scenes: the labelled object is the last slot."""
        batch, scale = check_int(batch, "batch", 1), bounds(scale, "scale", *SCALES)
        clutter = check_int(clutter, "clutter", 0)
        rotation = check_number(rotation, "rotation", 0, TURN)
        generator = seeded(seed)
        which = self.draw((batch, 1), level, generator)
        side = uniform((batch, 1), scale, generator) * min(self.size)
        if clutter:
            other = self._others(which, clutter, level, generator)
            which = torch.cat([other, which], 1)
            smaller = uniform((batch, clutter), (0.3, 0.6), generator)
            side = torch.cat([side * smaller, side], 1)
        angle = uniform(side.shape, (-rotation, rotation), generator)
        valid = torch.ones_like(side, dtype=torch.bool)
        centre = layout(valid, side, angle, self.size, 12, generator)
        return self._render(valid, which, side, angle, centre, background, generator, device)

    def _others(self, target, clutter: int, level: str, generator) -> Tensor:
        """(B, clutter) pictograms of other classes than target (B, 1)."""
        ids = self.level_ids(level)
        if len(ids.unique()) < 2:
            needs = f"a world with at least 2 classes at level {level!r}"
            raise ValueError(f"clutter={clutter}: needs {needs}")
        other = self.draw((len(target), clutter, DRAWS), level, generator)
        wrong = ids[other] == ids[target][..., None]
        first = wrong.int().argmin(-1, keepdim=True)           # the first draw of another class
        other = other.gather(-1, first)[..., 0]
        clash = ids[other] == ids[target]                      # none was: take any such pictogram
        spare = (ids[None, :] != ids[target]).int().argmax(-1, keepdim=True)
        return torch.where(clash, spare, other)

    @one_thread()
    def scenes(
        self,
        batch: int,
        seed: int,
        objects: Any = (1, 4),
        scale: Any = (0.15, 0.5),
        rotation: float = 30,
        background: Any = "photo",
        repeat: float = 0.25,
        occlusion: str = "some",
        level: str = "pictogram",
        signs: float = 0.0,
        device: Any = None,
    ) -> Scenes:
        """Several objects a picture with exact masks, boxes, depth order, captions and questions.

        Args:
            batch: B.
            seed: decides.
            objects: how many, an int or (fewest, most).
            scale: as in `classify`.
            rotation: at most that many degrees either way.
            background: as in `classify`.
            repeat: probability that an object is another copy of one that is already there.
            occlusion: "any" places objects at random, "some" spreads them, "none" gives each the
                best of 48 random places.
            level: its classes are equally likely.
            signs: probability that a picture has a sign with a word on it, nearest of all and
                background to `instance`.
            device: where the result is; None: the CPU.
        """
        batch, scale = check_int(batch, "batch", 1), bounds(scale, "scale", *SCALES)
        few, many = count_bounds(objects, "objects", 1, MOST)
        rotation = check_number(rotation, "rotation", 0, TURN)
        repeat, signs = check_number(repeat, "repeat", 0, 1), check_number(signs, "signs", 0, 1)
        tries = TRIES[one_of(occlusion, "occlusion", TRIES)]
        generator = seeded(seed)
        count = below(many + 1, (batch, 1), generator, start=few)
        valid = torch.arange(many, device="cpu") < count
        which = self._repeated(self.draw((batch, many), level, generator), repeat, generator)
        side = uniform((batch, many), scale, generator) * min(self.size)
        # large ones tend to the back, so that small ones stay visible
        key = side * uniform((batch, many), (0.6, 1.6), generator)
        order = torch.where(valid, key, -1.0).argsort(1, descending=True)
        which, side = which.gather(1, order), side.gather(1, order)
        angle = uniform((batch, many), (-rotation, rotation), generator)
        centre = layout(valid, side, angle, self.size, tries, generator)
        drawn = (valid, which, side, angle, centre)
        scenes = self._render(*drawn, background, generator, device)
        if signs:
            from .text import add_signs

            add_signs(scenes, signs, generator)
        return scenes

    def _repeated(self, which: Tensor, repeat: float, generator) -> Tensor:
        """Pictograms (B, K) of which some become copies of earlier ones, in place."""
        batch, many = which.shape
        again = unit((batch, many), generator) < repeat
        earlier = unit((batch, many), generator)
        for k in range(1, many):
            copy = which.gather(1, (earlier[:, k : k + 1] * k).long())[:, 0]
            which[:, k] = torch.where(again[:, k], copy, which[:, k])
        return which

    @one_thread()
    def video(
        self,
        batch: int,
        frames: int,
        seed: int,
        objects: Any = (1, 3),
        scale: Any = (0.2, 0.45),
        speed: float = 0.03,
        spin: float = 3,
        pan: float = 0.01,
        zoom: float = 0.01,
        device: Any = None,
    ) -> "Video":
        """Pictograms that move over a photograph under a moving camera, with the true motion.

        Args:
            batch: B.
            frames: T.
            seed: decides.
            objects: an int or (fewest, most).
            scale: as in `classify`.
            speed: at most that fraction of the shorter side a frame.
            spin: at most that many degrees a frame.
            pan: the camera's step as a fraction of the shorter side a frame, at most 0.35 in all.
            zoom: the camera's growth a frame, at most, either way, at most exp(0.35) in all.
            device: where the result is; None: the CPU.
        """
        from .video import make_video

        batch, frames = check_int(batch, "batch", 1), check_int(frames, "frames", 1)
        scale, objects = bounds(scale, "scale", *SCALES), count_bounds(objects, "objects", 1, MOST)
        given = (("speed", speed), ("spin", spin), ("pan", pan), ("zoom", zoom))
        moves = {name: check_number(value, name, 0, TURN) for name, value in given}
        return make_video(self, batch, frames, seed, objects, scale, **moves, device=device)

    @one_thread()
    def retrieval(
        self,
        identities: int,
        seed: int,
        scales: Any = (0.3, 0.5, 0.8),
        rotation: float = 20,
        background: Any = "photo",
        device: Any = None,
    ) -> "Retrieval":
        """Different pictograms, each by both artists at each scale: cross-camera retrieval.

        Args:
            identities: how many pictograms.
            seed: decides.
            scales: sides of the drawing as fractions of the picture's shorter side.
            rotation: at most that many degrees either way.
            background: as in `classify`.
            device: where the result is; None: the CPU.
        """
        from .retrieval import make_retrieval

        identities = check_int(identities, "identities", 1)
        scales = check_list(scales, "scales", "a list of numbers")
        scales = [check_number(scale, "scales", *SCALES) for scale in scales]
        if not scales:
            raise ValueError("scales is empty: needs at least one number")
        rotation = check_number(rotation, "rotation", 0, TURN)
        return make_retrieval(self, identities, seed, scales, rotation, background, device)

    @one_thread()
    def camouflage(
        self,
        batch: int,
        seed: int,
        objects: Any = 1,
        scale: Any = (0.35, 0.7),
        rotation: float = 30,
        blend: float = 0.8,
        background: str = "photo",
        device: Any = None,
    ) -> Scenes:
        """Silhouettes filled with texture from elsewhere in the same photograph, as `Scenes`.

        Args:
            batch: B.
            seed: decides.
            objects: an int or (fewest, most).
            scale: as in `classify`.
            rotation: at most that many degrees either way.
            blend: how far the silhouette takes over the brightness and colour of its surroundings;
                0: easy to see, 1: only its texture gives it away.
            background: "photo" or "noise".
            device: where the result is; None: the CPU.
        """
        from .camouflage import make_camouflage

        batch, scale = check_int(batch, "batch", 1), bounds(scale, "scale", *SCALES)
        objects = count_bounds(objects, "objects", 1, MOST)
        rotation = check_number(rotation, "rotation", 0, TURN)
        blend = check_number(blend, "blend", 0, 1)
        return make_camouflage(
            self, batch, seed, objects, scale, rotation, blend, background, device
        )

    @one_thread()
    def mosaic(
        self,
        height: int,
        width: int,
        seed: int,
        cell: int = 96,
        fill: float = 0.7,
        device: Any = None,
    ) -> "Mosaic":
        """One ultra-high-resolution picture with objects from 0.2 * cell to 3 * cell pixels.

        Args:
            height: of the picture, in pixels, whatever the world's own `size`.
            width: likewise.
            seed: decides.
            cell: side of a cell in pixels, at least 16.
            fill: the fraction of cells that hold an object.
            device: where the result is; None: the CPU.
        """
        from .mosaic import make_mosaic

        height, width = check_int(height, "height", 1), check_int(width, "width", 1)
        cell, fill = check_int(cell, "cell", 16), check_number(fill, "fill", 0.001, 1)
        return make_mosaic(self, height, width, seed, cell, fill, device)

    @one_thread()
    def biomes(
        self,
        height: int,
        width: int,
        seed: int,
        cell: int = 40,
        spacing: int = 80,
        device: Any = None,
    ) -> "Biomes":
        """One large picture of silhouettes, each pixel labelled by the biome of the nearest marker.

        Half of the silhouettes are outlines of 4 pixels. Markers are the same four pictograms in
        every world; the silhouettes are this world's.

        Args:
            height: of the picture, in pixels, whatever the world's own `size`.
            width: likewise.
            seed: decides.
            cell: side of the cells that hold one silhouette each, at least 16.
            spacing: side of the cells that hold one marker each, at least 32.
            device: where the result is; None: the CPU.
        """
        from .biomes import make_biomes

        height, width = check_int(height, "height", 1), check_int(width, "width", 1)
        cell, spacing = check_int(cell, "cell", 16), check_int(spacing, "spacing", 32)
        return make_biomes(self, height, width, seed, cell, spacing, device)

    @one_thread()
    def text(
        self,
        batch: int,
        seed: int,
        words: Any = None,
        height: Any = (10, 28),
        background: Any = "photo",
        device: Any = None,
    ) -> "TextPictures":
        """Pictures with one word on a plate each, for tests of legibility.

        Args:
            batch: B.
            seed: decides.
            words: None for random ones from `vtlib.data.text.WORDS`, or a list to draw from.
            height: line height in pixels, a number or (smallest, largest).
            background: as in `classify`.
            device: where the result is; None: the CPU.

        ValueError when a word does not fit at its height.
        """
        from .text import make_text

        batch, height = check_int(batch, "batch", 1), bounds(height, "height", 4, 1000)
        return make_text(self, batch, seed, words, height, background, device)

    def _render(
        self,
        valid,
        which,
        side,
        angle,
        centre,
        background,
        generator,
        device,
        artist=None,
        artists=None,
        fill=None,
    ) -> Scenes:
        """Draw a layout given as CPU tensors (B, K).

        background is as in `classify`, or (images in [0, 255], photographs); fill as in
        `render.paint`.
        """
        device = as_device(device)
        artists = self.artists if artists is None else artists
        if artist is None:
            artist = self._artist(which, generator)
        if not isinstance(background, tuple):
            wanted = (background, self.split, self.size, len(valid), generator, device)
            background = backgrounds.make(*wanted)
        image, photo = background
        drawn = (valid, which, side, angle, centre, artist)
        valid, which, side, angle, centre, artist = (t.to(device) for t in drawn)
        table, empty = self.table.to(device), ~valid
        pick = valid.nonzero(as_tuple=True)
        placed = (table[which[pick]], artist[pick], centre[pick], side[pick], angle[pick])
        objects = render.Placed(artists, *placed, *pick)
        instance, whole = render.paint(image, objects, fill)
        area = torch.zeros_like(which)
        area[pick] = whole
        order = torch.arange(valid.shape[1], device=device)
        return Scenes(
            images=image.div_(255).clamp_(0, 1),
            valid=valid,
            pictogram=which.masked_fill(empty, -1),
            category=pictograms.classes_at("category", table[which], empty),
            subcategory=pictograms.classes_at("subcategory", table[which], empty),
            artist=artist.masked_fill(empty, -1),
            centre=centre * valid[..., None],
            scale=side * valid / min(self.size),
            angle=angle * valid,
            depth=(valid.sum(1, keepdim=True) - 1 - order).masked_fill(empty, -1),
            instance=instance,
            area=area,
            photo=photo,
            classes=list(self.classes),
            artists=artists,
            photos=list(self.photos),
            table=self.table.clone(),
        )

    def _artist(self, which: Tensor, generator: torch.Generator) -> Tensor:
        """Who draws each of the pictograms (B, K), as indices into `artists`."""
        artist = below(len(self.artists), which.shape, generator)
        if self.only is None:
            return artist
        only = self.only[which.clamp(min=0)]
        return torch.where(only >= 0, only, artist)


row_name = pictograms.name_of    # where the module's name is taken by an argument


def whose(artist: Any, count: int) -> tuple[str, Tensor | None]:
    """"noto", "twemoji", "both" or "mixed"; if mixed, each pictogram's only artist or -1.

    Args:
        artist: see EmojiWorld.
        count: of pictograms.
    """
    each = [artist] if isinstance(artist, str) else check_list(artist, "artist", "a word or a list")
    known = (*ARTISTS, "both")
    if not all(isinstance(a, str) and a in known for a in each) or len(each) not in (1, count):
        needs = f"noto, twemoji or both, or a list of these with one for each of {count} pictograms"
        raise ValueError(f"artist={artist!r}: needs {needs}")
    if len(set(each)) == 1:
        return each[0], None
    only = [ARTISTS.index(a) if a in ARTISTS else -1 for a in each]
    return "mixed", torch.tensor(only, device="cpu")


def choose(wanted: Any, split: str) -> list[int]:
    """Table indices of a world's pictograms: see EmojiWorld."""
    pool = pictograms.in_split(split)
    if wanted is None:
        return pool
    if _is_integer(wanted):
        count = check_int(wanted, "pictograms")
        if not 1 <= count <= len(pool):
            needs = f"the split {split!r} has {len(pool)}, needs between 1 and that"
            raise ValueError(f"pictograms={count}: {needs}")
        generator = torch.Generator("cpu").manual_seed(0)
        shuffled = torch.randperm(len(pool), generator=generator, device="cpu").tolist()
        return sorted(pool[i] for i in shuffled[:count])
    needs = "None, an int or a list of names, such as list(vtlib.data.EASY)"
    names = check_list(wanted, "pictograms", needs)
    if not names:
        raise ValueError(f"pictograms={wanted!r}: needs {needs}")
    found = [_row(name) for name in names]
    if len(set(found)) < len(found):
        raise ValueError("pictograms names one pictogram twice")
    return found


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _row(name: Any) -> int:
    """Table index of a pictogram given by its name or by just that."""
    if _is_integer(name):
        return check_int(name, "pictograms", 0, len(pictograms.table()) - 1)
    return pictograms.pictogram(name)
