"""EmojiWorld: pictures of pictograms on photographs, generated on the fly with exact ground truth."""

import torch
from torch import Tensor

from vtlib.data import backgrounds, pictograms, render
from vtlib.data.assets import ARTISTS, as_device, image_size
from vtlib.data.camouflage import make_camouflage
from vtlib.data.mosaic import Mosaic, make_mosaic
from vtlib.data.retrieval import Retrieval, make_retrieval
from vtlib.data.scenes import Scenes, layout, uniform
from vtlib.data.text import WORDS, TextPictures, add_signs, plates, write
from vtlib.data.video import Video, make_video

TRIES = {"any": 1, "some": 2, "none": 48}


def positive(value, what: str) -> int:
    """An int >= 1. ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what}={value!r}: needs an int of at least 1")
    return value


def bounds(value, what: str, low: float, high: float) -> tuple[float, float]:
    """A number or (low, high) as an ordered pair inside [low, high]. ValueError otherwise."""
    pair = (value, value) if isinstance(value, (int, float)) else tuple(value)
    if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
        raise ValueError(f"{what}={value!r}: needs a number or (smallest, largest) between {low} and {high}")
    return pair


class EmojiWorld:
    """A generator of pictures. Everything it makes depends on its arguments and the call's seed only.

    size: an int or (H, W) in pixels.
    split: "train", "test" or "all". Splits share no pictogram (about 80 / 20, by a hash of the code points; drawings that look the same
        stay together) and no background photograph.
    artist: "noto", "twemoji" or "both"; or a list with one of these per pictogram, in the order of `classes`: whose drawings of it appear.
    pictograms: None for all of the split; a list of names for a closed set, which then is the same in every split (splits differ in
        their backgrounds only); an int takes that many of the split's.
    ValueError when an argument is none of these.

        world = EmojiWorld(96, "train", pictograms=list(vtlib.data.EASY))
        images, labels = world.classify(64, seed=0)
    """

    def __init__(self, size=96, split: str = "train", artist: str = "noto", pictograms=None):
        self.size = image_size(size)
        self.split = split
        self.table = torch.tensor(choose(pictograms, split))
        each = [artist] if isinstance(artist, str) else list(artist)
        wrong = [a for a in each if a not in (*ARTISTS, "both")]
        if wrong or len(each) not in (1, len(self.table)):
            raise ValueError(f"artist={artist!r}: needs noto, twemoji or both, or a list of these with one for each of {len(self.table)} pictograms")
        self.artist = each[0] if len(set(each)) == 1 else "mixed"
        self.artists = (self.artist,) if self.artist in ARTISTS else ARTISTS
        # per pictogram: the only artist who draws it here, or -1
        self.only = torch.tensor([ARTISTS.index(a) if a in ARTISTS else -1 for a in each]) if self.artist == "mixed" else None
        self.classes = [row_name(i) for i in self.table.tolist()]
        self.photos = backgrounds.names(split)

    def __repr__(self):
        height, width = self.size
        return f"EmojiWorld({height} x {width}, {self.split}, {self.artist}, {len(self.classes)} pictograms)"

    def __len__(self) -> int:
        """How many pictograms this world draws from."""
        return len(self.classes)

    def names(self, level: str = "pictogram") -> list[str]:
        """Class names at a level; labels index into it. Categories and sub-categories are the same 9 and 99 in every world."""
        if level not in pictograms.LEVELS:
            raise ValueError(f"level={level!r}: needs one of {', '.join(pictograms.LEVELS)}")
        return self.classes if level == "pictogram" else list(getattr(pictograms, _PLURAL[level])())

    def level_ids(self, level: str) -> Tensor:
        """(len(classes),) long: the class at `level` of each of this world's pictograms."""
        return torch.arange(len(self.table)) if level == "pictogram" else pictograms.level_ids(level)[self.table]

    def draw(self, shape, level: str, generator) -> Tensor:
        """Random pictograms (indices into `classes`), each class of `level` that this world has being equally likely."""
        ids = self.level_ids(level)
        if level == "pictogram":
            return torch.randint(len(ids), shape, generator=generator)
        order = ids.argsort(stable=True)
        count = ids.bincount()
        start, there = count.cumsum(0) - count, count.nonzero()[:, 0]
        pick = there[torch.randint(len(there), shape, generator=generator)]
        return order[start[pick] + (torch.rand(shape, generator=generator) * count[pick]).long()]

    def classify(
        self,
        batch: int,
        seed: int,
        level: str = "pictogram",
        scale=(0.4, 0.9),
        rotation: float = 20,
        background="photo",
        clutter: int = 0,
        device=None,
    ) -> tuple[Tensor, Tensor]:
        """One object a picture: images (B, 3, H, W) float32 in [0, 1] and labels (B,) long, indices into `names(level)`.

        level: "pictogram", "category" or "subcategory"; classes are equally likely.
        scale: side of the drawing as a fraction of the picture's shorter side. rotation: at most that many degrees either way.
        background: "photo", "plain", "noise" or a float tensor (3, H, W) or (B, 3, H, W).
        clutter: so many smaller objects of other classes behind it.
        """
        scenes = self._classify(batch, seed, level, scale, rotation, background, clutter, device)
        return scenes.images, scenes.ids(level)[:, -1]

    def _classify(self, batch, seed, level, scale, rotation, background, clutter, device) -> Scenes:
        """The same as scenes: the labelled object is the last slot."""
        batch, scale = positive(batch, "batch"), bounds(scale, "scale", 0.02, 1.0)
        if not isinstance(clutter, int) or clutter < 0:
            raise ValueError(f"clutter={clutter!r}: needs an int of at least 0")
        generator = torch.Generator().manual_seed(seed)
        target = self.draw((batch, 1), level, generator)
        side = uniform((batch, 1), scale, generator) * min(self.size)
        if clutter:
            ids = self.level_ids(level)
            if len(ids.unique()) < 2:
                raise ValueError(f"clutter={clutter}: needs a world with at least 2 classes at level {level!r}")
            other = self.draw((batch, clutter, 32), level, generator)
            wrong = ids[other] == ids[target][..., None]
            first = wrong.int().argmin(-1, keepdim=True)  # the first of 32 draws with another class
            other = other.gather(-1, first)[..., 0]
            clash = ids[other] == ids[target]  # all 32 failed: take any pictogram of another class
            spare = (ids[None, :] != ids[target]).int().argmax(-1, keepdim=True)
            target = torch.cat([torch.where(clash, spare, other), target], 1)
            side = torch.cat([side * uniform((batch, clutter), (0.3, 0.6), generator), side], 1)
        angle = uniform(side.shape, (-rotation, rotation), generator)
        valid = torch.ones_like(side, dtype=torch.bool)
        centre = layout(valid, side, angle, self.size, 12, generator)
        return self._render(valid, target, side, angle, centre, background, generator, device)

    def scenes(
        self,
        batch: int,
        seed: int,
        objects=(1, 4),
        scale=(0.15, 0.5),
        rotation: float = 30,
        background="photo",
        repeat: float = 0.25,
        occlusion: str = "some",
        level: str = "pictogram",
        signs: float = 0.0,
        device=None,
    ) -> Scenes:
        """Several objects a picture with exact masks, boxes, depth order, captions and questions: see `Scenes`.

        objects: how many, an int or (fewest, most). scale, rotation, background: as in `classify`.
        repeat: probability that an object is another copy of one that is already there. level: classes of it are equally likely.
        occlusion: "any" places objects at random, "some" spreads them, "none" gives each the best of 48 random places.
        signs: probability that a picture has a sign with a word on it (nearest of all; background to `instance`).
        """
        batch, scale = positive(batch, "batch"), bounds(scale, "scale", 0.02, 1.0)
        few, many = bounds(objects, "objects", 1, 64)
        for what, value in (("repeat", repeat), ("signs", signs)):
            bounds(value, what, 0, 1)
        if occlusion not in TRIES:
            raise ValueError(f"occlusion={occlusion!r}: needs one of {', '.join(TRIES)}")
        generator = torch.Generator().manual_seed(seed)
        count = torch.randint(few, many + 1, (batch, 1), generator=generator)
        valid = torch.arange(many) < count
        which = self.draw((batch, many), level, generator)
        again = torch.rand(batch, many, generator=generator) < repeat
        earlier = torch.rand(batch, many, generator=generator)
        for k in range(1, many):
            copy = which.gather(1, (earlier[:, k : k + 1] * k).long())[:, 0]
            which[:, k] = torch.where(again[:, k], copy, which[:, k])
        side = uniform((batch, many), scale, generator) * min(self.size)
        # large ones tend to the back, so that small ones stay visible
        key = torch.where(valid, side * uniform((batch, many), (0.6, 1.6), generator), -1.0)
        order = key.argsort(1, descending=True)
        which, side = which.gather(1, order), side.gather(1, order)
        angle = uniform((batch, many), (-rotation, rotation), generator)
        centre = layout(valid, side, angle, self.size, TRIES[occlusion], generator)
        return self._render(valid, which, side, angle, centre, background, generator, device, signs)

    def video(
        self,
        batch: int,
        frames: int,
        seed: int,
        objects=(1, 3),
        scale=(0.2, 0.45),
        speed: float = 0.03,
        spin: float = 3,
        pan: float = 0.01,
        zoom: float = 0.01,
        device=None,
    ) -> Video:
        """Pictograms that move over a photograph under a moving camera: see `Video` for the ground truth.

        objects: an int or (fewest, most). scale: as in `classify`. speed: at most that fraction of the shorter side a frame.
        spin: at most that many degrees a frame. pan: the camera's step as a fraction of the shorter side a frame (at most 0.35 in all).
        zoom: the camera's growth a frame, at most, either way (at most a factor of exp(0.35) in all).
        """
        batch, frames = positive(batch, "batch"), positive(frames, "frames")
        scale, objects = bounds(scale, "scale", 0.02, 1.0), bounds(objects, "objects", 1, 64)
        for what, value in (("speed", speed), ("spin", spin), ("pan", pan), ("zoom", zoom)):
            bounds(value, what, 0, 360)
        return make_video(self, batch, frames, seed, objects, scale, speed, spin, pan, zoom, device)

    def retrieval(
        self, identities: int, seed: int, scales=(0.3, 0.5, 0.8), rotation: float = 20, background="photo", device=None
    ) -> Retrieval:
        """Each of `identities` different pictograms by both artists at each of `scales`: cross-camera, cross-scale retrieval."""
        identities = positive(identities, "identities")
        scales = [bounds(s, "scales", 0.02, 1.0)[0] for s in scales]
        return make_retrieval(self, identities, seed, scales, rotation, background, device)

    def camouflage(
        self,
        batch: int,
        seed: int,
        objects=1,
        scale=(0.35, 0.7),
        rotation: float = 30,
        blend: float = 0.8,
        background="photo",
        device=None,
    ) -> Scenes:
        """Silhouettes filled with texture from elsewhere in the same photograph. Returns `Scenes`; `instance` tells what is hidden where.

        blend: how far the silhouette takes over the brightness and colour of its surroundings (0: easy to see, 1: only its texture
        gives it away). background: "photo" or "noise".
        """
        batch, scale = positive(batch, "batch"), bounds(scale, "scale", 0.02, 1.0)
        bounds(blend, "blend", 0, 1)
        return make_camouflage(self, batch, seed, bounds(objects, "objects", 1, 64), scale, rotation, blend, background, device)

    def mosaic(self, height: int, width: int, seed: int, cell: int = 96, fill: float = 0.7, device=None) -> Mosaic:
        """One ultra-high-resolution picture with many objects, from 0.2 * cell to 3 * cell pixels large: see `Mosaic`.

        fill: the fraction of cells (squares of `cell` pixels) that hold an object. Ignores the world's own `size`.
        """
        for what, value in (("height", height), ("width", width), ("cell", cell)):
            positive(value, what)
        if cell < 16:
            raise ValueError(f"cell={cell}: needs at least 16 pixels")
        bounds(fill, "fill", 0.001, 1)
        return make_mosaic(self, height, width, seed, cell, fill, device)

    def text(self, batch: int, seed: int, words=None, height=(10, 28), background="photo", device=None) -> TextPictures:
        """Pictures with one word on a plate each: images, words, boxes, line heights. For tests of legibility.

        words: None for random ones from `vtlib.data.text.WORDS`, or a list to draw from. height: line height in pixels, (from, to).
        ValueError when a word does not fit at its height.
        """
        batch, height = positive(batch, "batch"), bounds(height, "height", 4, 1000)
        device = as_device(device)
        generator = torch.Generator().manual_seed(seed)
        pool = WORDS if words is None else list(words)
        longest = max((len(w) for w in pool), default=0)
        if not longest or min(map(len, pool)) == 0:
            raise ValueError("words needs strings of at least one character")
        drawn = [pool[i] for i in torch.randint(len(pool), (batch,), generator=generator).tolist()]
        tall = uniform((batch,), height, generator)
        if words is None:  # default words shrink where the picture is small
            tall = tall.minimum(torch.tensor([(self.size[1] - 2) / (len(w) * 0.51 + 0.5) for w in drawn]))
            tall = tall.clamp(max=(self.size[0] - 1) / 1.15)
        image, _ = backgrounds.make(background, self.split, self.size, batch, generator, device)
        image = image.div_(255).clamp_(0, 1)
        tall = tall.to(device)
        boxes = plates(drawn, tall, torch.zeros(batch, *self.size, dtype=torch.bool, device=device), generator)
        write(image, drawn, boxes, tall)
        return TextPictures(image, drawn, boxes, tall)

    def _render(
        self, valid, which, side, angle, centre, background, generator, device, signs=0.0, artist=None, artists=None, fill=None
    ) -> Scenes:
        """Draw a layout given as CPU tensors (B, K)."""
        device = as_device(device)
        batch, slots = valid.shape
        artists = self.artists if artists is None else artists
        if artist is None:
            artist = torch.randint(len(artists), (batch, slots), generator=generator)
            if self.only is not None:
                only = self.only[which.clamp(min=0)]
                artist = torch.where(only >= 0, only, artist)
        if isinstance(background, tuple):
            image, photo = background
        else:
            image, photo = backgrounds.make(background, self.split, self.size, batch, generator, device)
        valid, which, side, angle, centre, artist = (t.to(device) for t in (valid, which, side, angle, centre, artist))
        table = self.table.to(device)
        at, slot = valid.nonzero(as_tuple=True)
        pick = (at, slot)
        source = render.gather(table[which[pick]], artist[pick], artists)
        image, instance, whole = render.paint(image, source, centre[pick], side[pick], angle[pick], at, slot, fill)
        area = torch.zeros(batch, slots, dtype=torch.long, device=device)
        area[pick] = whole
        empty = ~valid
        scenes = Scenes(
            images=image.div_(255).clamp_(0, 1),
            valid=valid,
            pictogram=which.masked_fill(empty, -1),
            category=pictograms.level_ids("category").to(device)[table[which]].masked_fill(empty, -1),
            subcategory=pictograms.level_ids("subcategory").to(device)[table[which]].masked_fill(empty, -1),
            artist=artist.masked_fill(empty, -1),
            centre=centre * valid[..., None],
            scale=side * valid / min(self.size),
            angle=angle * valid,
            depth=(valid.sum(1, keepdim=True) - 1 - torch.arange(slots, device=device)).masked_fill(empty, -1),
            instance=instance,
            area=area,
            photo=photo,
            classes=self.classes,
            artists=artists,
            photos=self.photos,
            table=self.table,
        )
        if signs:
            add_signs(scenes, signs, generator)
        return scenes


row_name = pictograms.name_of
_PLURAL = {"category": "categories", "subcategory": "subcategories"}


def choose(wanted, split: str) -> list[int]:
    """Table indices of a world's pictograms: see EmojiWorld."""
    pool = pictograms.in_split(split)
    if wanted is None:
        return pool
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if not 1 <= wanted <= len(pool):
            raise ValueError(f"pictograms={wanted}: the split {split!r} has {len(pool)}, needs between 1 and that")
        shuffled = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0)).tolist()
        return sorted(pool[i] for i in shuffled[:wanted])
    if isinstance(wanted, str) or not wanted:
        raise ValueError(f"pictograms={wanted!r}: needs None, an int or a list of names, such as list(vtlib.data.EASY)")
    found = [w if isinstance(w, int) else pictograms.pictogram(w) for w in wanted]
    if len(set(found)) < len(found):
        raise ValueError("pictograms names one pictogram twice")
    return found
