"""Captions, and questions with answers, from what is known of a scene. No question is asked whose answer could be disputed."""

import random
from dataclasses import dataclass

from vtlib.data import pictograms

# an object counts as seen when this part of it, and so many pixels, are visible; questions that rest on a hidden one are left out
SEEN, PIXELS = 0.3, 16
CLEAR = 0.08  # places must differ by this fraction of the picture's side to be told apart


@dataclass(frozen=True)
class Question:
    """kind: see KINDS; objects: the slots that the answer rests on (empty where it rests on an absence)."""

    kind: str
    text: str
    answer: str
    objects: tuple[int, ...] = ()


@dataclass(frozen=True)
class Thing:
    slot: int
    name: str
    twin: int  # equal for pictograms that look the same
    category: str
    subcategory: str
    scale: float
    x: float  # middle of the visible pixels' box, as a fraction of the width
    y: float
    seen: bool


def things(scenes) -> list[list[Thing]]:
    """What is in each scene, as plain Python."""
    height, width = scenes.size
    twins, rows = pictograms.twins(), pictograms.table()
    columns = (scenes.valid, scenes.pictogram, scenes.scale, scenes.boxes, scenes.visible, scenes.masks.flatten(2).sum(-1))
    table = scenes.table.tolist()
    out = []
    for valid, which, scale, boxes, visible, pixels in zip(*(c.tolist() for c in columns)):
        scene = []
        for k, there in enumerate(valid):
            if there:
                row, (x0, y0, x1, y1) = rows[table[which[k]]], boxes[k]
                place = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height)
                seen = visible[k] >= SEEN and pixels[k] >= PIXELS
                twin = int(twins[table[which[k]]])
                scene.append(Thing(k, row["name"], twin, row["category"], row["subcategory"], scale[k], *place, seen))
        out.append(scene)
    return out


def article(name: str) -> str:
    """`name` with "a" or "an"."""
    vowel = name[0] in "aeiouAEIOU" and not name.startswith(
        ("eu", "uni", "uk", "ur", "us", "one", "Eu", "UK", "Uk", "U.", "US", "Ur", "Uni")
    )
    return f"{'an' if vowel else 'a'} {name}"


def where(thing: Thing) -> str:
    """ "at the top left", ..., "in the middle": by thirds of the picture."""
    row = "top" if thing.y < 1 / 3 else "bottom" if thing.y > 2 / 3 else ""
    column = "left" if thing.x < 1 / 3 else "right" if thing.x > 2 / 3 else ""
    if row:
        return f"at the {row} {column}".rstrip()
    return f"on the {column}" if column else "in the middle"


def captions(scenes) -> list[str]:
    """One sentence a picture: the seen objects from left to right with their places, and what the sign says."""
    out = []
    for scene, word in zip(things(scenes), scenes.words or [None] * len(scenes)):
        seen = sorted((t for t in scene if t.seen), key=lambda t: (t.x, t.y))
        parts = [f"{article(t.name)} {where(t)}" for t in seen]
        if word:
            parts.append(f'a sign that says "{word}"')
        text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "nothing that can be seen"
        out.append(text[0].upper() + text[1:] + ".")
    return out


def alone(scene: list[Thing]) -> list[Thing]:
    """Seen objects that are the only one of their looks."""
    return [t for t in scene if t.seen and sum(o.twin == t.twin for o in scene) == 1]


def absent(scene, world, rng) -> str | None:
    """Name of a pictogram that is not there, if possible from a sub-category that is not there."""
    looks, kinds = {t.twin for t in scene}, {t.subcategory for t in scene}
    twins, rows = pictograms.twins(), pictograms.table()
    fallback = None
    for _ in range(20):
        row = rng.choice(world)
        if int(twins[row]) not in looks:
            fallback = rows[row]["name"]
            if rows[row]["subcategory"] not in kinds:
                return fallback
    return fallback


def presence(scene, world, rng, some):
    if some:
        seen = [t for t in scene if t.seen]
        if not seen:
            return None
        name = rng.choice(seen).name
        twin = next(t.twin for t in seen if t.name == name)
        return f"Is there {article(name)}?", "yes", [t for t in seen if t.twin == twin]
    name = absent(scene, world, rng)
    return name and (f"Is there {article(name)}?", "no", [])


def half(scene, rng, axis, low, high, where):
    """In which half of the picture an object that is there once, and clearly not in the middle, lies along `axis` ("x" or "y")."""
    clear = [t for t in alone(scene) if abs(getattr(t, axis) - 0.5) > CLEAR]
    if not clear:
        return None
    t = rng.choice(clear)
    return f"Is the {t.name} {where}?", low if getattr(t, axis) < 0.5 else high, [t]


def side(scene, world, rng, some):
    return half(scene, rng, "x", "left", "right", "on the left or on the right")


def height(scene, world, rng, some):
    return half(scene, rng, "y", "top", "bottom", "at the top or at the bottom")


def relation(scene, world, rng, some):
    """The one object that is clearly left of (above) another; every other object is clearly not."""
    if not all(t.seen for t in scene):
        return None
    found = []
    for t in alone(scene):
        for words, axis in (("to the left of", "x"), ("above", "y")):
            offset = {o: getattr(t, axis) - getattr(o, axis) for o in scene if o is not t}
            before = [o for o, d in offset.items() if d > CLEAR]
            if len(before) == 1 and all(abs(d) > CLEAR for d in offset.values()):
                found.append((f"What is {words} the {t.name}?", before[0].name, [before[0], t]))
    return rng.choice(found) if found else None


def count(scene, world, rng, some):
    """How often a pictogram appears; each number that this scene offers is equally likely."""
    if not some:
        name = absent(scene, world, rng)
        return name and (f"How many times does the {name} appear?", "0", [])
    hidden = {t.twin for t in scene if not t.seen}
    offers = {}
    for t in scene:
        same = [o for o in scene if o.twin == t.twin]
        if t.twin not in hidden and len({o.name for o in same}) == 1:
            offers.setdefault(len(same), []).append((t.name, same))
    if not offers:
        return None
    number = rng.choice(sorted(offers))
    name, same = rng.choice(offers[number])
    return f"How many times does the {name} appear?", str(number), same


def count_category(scene, world, rng, some):
    """How many objects are of a category; each number that this scene offers is equally likely."""
    hidden = {t.category for t in scene if not t.seen}
    offers = {}
    for category in pictograms.categories():
        if category not in hidden:
            same = [t for t in scene if t.category == category]
            if bool(same) == some:
                offers.setdefault(len(same), []).append((category, same))
    if not offers:
        return None
    number = rng.choice(sorted(offers))
    category, same = rng.choice(offers[number])
    return f'How many objects are of the category "{category}"?', str(number), same


def category(scene, world, rng, some):
    """The category of the object that is clearly the largest."""
    if not all(t.seen for t in scene):
        return None
    largest = sorted(scene, key=lambda t: -t.scale)
    if not largest or (len(largest) > 1 and largest[0].scale < 1.25 * largest[1].scale):
        return None
    return "Which category does the largest object belong to?", largest[0].category, [largest[0]]


def affirmative(scene) -> dict[str, int]:
    """How many different questions of a kind have an answer other than "no" or "0"."""
    hidden = {t.twin for t in scene if not t.seen}
    clear = {t.name for t in scene if t.twin not in hidden and len({o.name for o in scene if o.twin == t.twin}) == 1}
    broad = {t.category for t in scene} - {t.category for t in scene if not t.seen}
    return {"presence": len({t.name for t in scene if t.seen}), "count": len(clear), "count_category": len(broad)}


KINDS = {
    "presence": presence,
    "side": side,
    "height": height,
    "relation": relation,
    "count": count,
    "count_category": count_category,
    "category": category,
    "sign": None,
}
"""What can be asked. "sign" (what does the sign say?) needs scenes made with `signs` > 0."""


def questions(scenes, n: int, seed: int, kinds=None) -> list[list[Question]]:
    """Up to n different questions for each picture, of random kinds among `kinds` (default: all).

    In a scene's "presence" questions yes and no alternate, and so do some and none in "count" and "count_category": no answer can be
    guessed from the kind. "sign" needs scenes made with `signs`; "relation" and "category" need scenes that allow one.
    Fewer than n come back where a scene has no more that are beyond dispute. ValueError for an unknown kind or n < 1.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: needs an int of at least 1")
    kinds = list(KINDS) if kinds is None else [kinds] if isinstance(kinds, str) else list(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kinds has {kind!r}: needs some of {', '.join(KINDS)}")
    world = scenes.table.tolist()
    out = []
    for b, scene in enumerate(things(scenes)):
        rng = random.Random(seed * 1_000_003 + b)
        asked = {}
        # affirmative and negative answers alternate; there are at most as many negative ones as the scene has objects to ask about
        wanted = {kind: rng.random() < 0.5 for kind in ("presence", "count", "count_category")}
        room = affirmative(scene)
        for _ in range(16 * n):
            kind = rng.choice(kinds)
            some = wanted.get(kind, True)
            if not some and room[kind] == 0:
                continue
            if kind == "sign":
                word = scenes.words[b] if scenes.words else None
                found = word and ("What does the sign say?", word, [])
            else:
                found = KINDS[kind](scene, world, rng, some)
            if found and found[0] not in asked:
                text, answer, rests = found
                if kind in wanted:
                    wanted[kind] = not some
                    room[kind] -= not some
                asked[text] = Question(kind, text, answer, tuple(t.slot for t in rests))
            if len(asked) == n:
                break
        out.append(list(asked.values()))
    return out
