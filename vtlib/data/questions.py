"""Captions, and questions with answers, from what is known of a scene.

No question is asked whose answer could be disputed.
"""

import random
from dataclasses import dataclass
from typing import Any

from ..nn.checks import check_int, check_list
from . import pictograms

# an object counts as seen when this part of it, and so many pixels, are visible; questions that
# rest on a hidden one are left out
SEEN, PIXELS = 0.3, 16
CLEAR = 0.08  # places must differ by this fraction of the picture's side to be told apart
TURNS = 16  # so many attempts for each question that is wanted
CONSONANT = (
    *("eu", "uni", "uk", "ur", "us", "one"),
    *("Eu", "UK", "Uk", "U.", "US", "Ur", "Uni"),
)
"""What begins with a vowel's letter and is spoken with a consonant, "a unicorn"."""


@dataclass(frozen=True)
class Question:
    """kind: see KINDS; objects: the slots that the answer rests on, none if it rests on absence."""

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
    pixels = scenes.masks.flatten(2).sum(-1).tolist()
    columns = (scenes.valid, scenes.pictogram, scenes.scale, scenes.boxes, scenes.visible)
    fields = zip(*(column.tolist() for column in columns), pixels, strict=True)
    table = scenes.table.tolist()
    out = []
    for scene in fields:
        slots = enumerate(zip(*scene, strict=True))
        there = ((k, which, known) for k, (valid, which, *known) in slots if valid)
        out.append([_thing(k, table[which], scenes.size, *known) for k, which, known in there])
    return out


def _thing(slot: int, row: int, size: tuple[int, int], scale, box, visible, pixels) -> Thing:
    """One object; row: its place in `pictograms.table()`."""
    height, width = size
    known, (x0, y0, x1, y1) = pictograms.table()[row], box
    return Thing(
        slot=slot,
        name=known["name"],
        twin=known["twin"],
        category=known["category"],
        subcategory=known["subcategory"],
        scale=scale,
        x=(x0 + x1) / 2 / width,
        y=(y0 + y1) / 2 / height,
        seen=visible >= SEEN and pixels >= PIXELS,
    )


def article(name: str) -> str:
    """`name` with "a" or "an"."""
    vowel = name[0] in "aeiouAEIOU" and not name.startswith(CONSONANT)
    return f"{'an' if vowel else 'a'} {name}"


def third(place: float, names: tuple[str, str]) -> str:
    """The first or second name in the first or last third, "" in the middle."""
    if place < 1 / 3:
        return names[0]
    return names[1] if place > 2 / 3 else ""


def where(thing: Thing) -> str:
    """"at the top left", ..., "in the middle": by thirds of the picture."""
    row, column = third(thing.y, ("top", "bottom")), third(thing.x, ("left", "right"))
    if row:
        return f"at the {row} {column}".rstrip()
    return f"on the {column}" if column else "in the middle"


def captions(scenes) -> list[str]:
    """One sentence a picture: the seen objects from left to right with their places, and what the
    sign says."""
    words = scenes.words or [None] * len(scenes)
    return [caption(scene, word) for scene, word in zip(things(scenes), words, strict=True)]


def caption(scene: list[Thing], word: str | None) -> str:
    """The sentence for one picture."""
    seen = sorted((t for t in scene if t.seen), key=lambda t: (t.x, t.y))
    parts = [f"{article(t.name)} {where(t)}" for t in seen]
    if word:
        parts.append(f'a sign that says "{word}"')
    text = parts[-1] if parts else "nothing that can be seen"
    if len(parts) > 1:
        text = f"{', '.join(parts[:-1])} and {text}"
    return text[0].upper() + text[1:] + "."


def alone(scene: list[Thing]) -> list[Thing]:
    """Seen objects that are the only one of their looks."""
    return [t for t in scene if t.seen and sum(o.twin == t.twin for o in scene) == 1]


def _absent(scene, world, rng) -> str | None:
    """Name of a pictogram that is not there, if possible from a sub-category that is not there."""
    looks, kinds = {t.twin for t in scene}, {t.subcategory for t in scene}
    rows = pictograms.table()
    fallback = None
    for _ in range(20):
        row = rows[rng.choice(world)]
        if row["twin"] not in looks:
            fallback = row["name"]
            if row["subcategory"] not in kinds:
                return fallback
    return fallback


# Each kind takes the things of a scene, the pictograms that could be there, a random.Random, and
# `some`, which only presence and the counts read: is the answer to be other than "no" or "0"? It
# makes (text, answer, the things that it rests on), or None where the scene offers no question.
def _presence(scene, world, rng, some):
    if some:
        seen = [t for t in scene if t.seen]
        if not seen:
            return None
        name = rng.choice(seen).name
        twin = next(t.twin for t in seen if t.name == name)
        return f"Is there {article(name)}?", "yes", [t for t in seen if t.twin == twin]
    name = _absent(scene, world, rng)
    return name and (f"Is there {article(name)}?", "no", [])


def _half(scene, rng, axis, low, high, where):
    """In which half of the picture an object lies along an axis.

    It is there once, and clearly not in the middle.

    Args:
        scene: what is there.
        rng: decides.
        axis: "x" or "y".
        low, high: the answers.
        where: how the question puts them.
    """
    clear = [t for t in alone(scene) if abs(getattr(t, axis) - 0.5) > CLEAR]
    if not clear:
        return None
    t = rng.choice(clear)
    return f"Is the {t.name} {where}?", low if getattr(t, axis) < 0.5 else high, [t]


def _side(scene, world, rng, some):
    return _half(scene, rng, "x", "left", "right", "on the left or on the right")


def _height(scene, world, rng, some):
    return _half(scene, rng, "y", "top", "bottom", "at the top or at the bottom")


def _relation(scene, world, rng, some):
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


def _count(scene, world, rng, some):
    """How often a pictogram appears; each number that this scene offers is equally likely."""
    if not some:
        name = _absent(scene, world, rng)
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


def _count_category(scene, world, rng, some):
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


def _category(scene, world, rng, some):
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
    names = {t.twin: {o.name for o in scene if o.twin == t.twin} for t in scene}
    clear = {t.name for t in scene if t.twin not in hidden and len(names[t.twin]) == 1}
    broad = {t.category for t in scene} - {t.category for t in scene if not t.seen}
    presence = {t.name for t in scene if t.seen}
    return {"presence": len(presence), "count": len(clear), "count_category": len(broad)}


KINDS = {
    "presence": _presence,
    "side": _side,
    "height": _height,
    "relation": _relation,
    "count": _count,
    "count_category": _count_category,
    "category": _category,
    "sign": None,
}
"""What can be asked. "sign" (what does the sign say?) needs scenes made with `signs` > 0."""


def questions(scenes, n: int, seed: int, kinds: Any = None) -> list[list[Question]]:
    """Up to n different questions for each picture, of random kinds.

    In a scene's "presence" questions yes and no alternate, and so do some and none in "count" and
    "count_category": no answer can be guessed from the kind. "sign" needs scenes made with `signs`;
    "relation" and "category" need scenes that allow one. Fewer than n come back where a scene has
    no more that are beyond dispute.

    Args:
        scenes: a `Scenes`.
        n: at most so many a picture.
        seed: decides.
        kinds: one of KINDS or a list of some; None: all.
    """
    n, seed = check_int(n, "n", 1), check_int(seed, "seed")
    kinds = check_kinds(kinds)
    world = scenes.table.tolist()
    words = scenes.words or [None] * len(scenes)
    return [
        ask(scene, word, world, n, kinds, random.Random(seed * 1_000_003 + b))
        for b, (scene, word) in enumerate(zip(things(scenes), words, strict=True))
    ]


def check_kinds(kinds: Any) -> list[str]:
    """Some of KINDS."""
    if kinds is None:
        return list(KINDS)
    kinds = [kinds] if isinstance(kinds, str) else check_list(kinds, "kinds", "a list of names")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"kinds has {kind!r}: needs some of {', '.join(KINDS)}")
    if not kinds:
        raise ValueError(f"kinds is empty: needs some of {', '.join(KINDS)}")
    return kinds


def ask(
    scene: list[Thing], word: str | None, world: list[int], n: int, kinds: list[str], rng
) -> list[Question]:
    """Up to n questions about one scene.

    Args:
        scene: what is there.
        word: what the sign says.
        world: the pictograms that could be there, as places in `pictograms.table()`.
        n: how many questions.
        kinds: some of KINDS.
        rng: decides.
    """
    asked: dict[str, Question] = {}
    # affirmative and negative answers alternate; there are at most as many negative ones as the
    # scene has objects to ask about
    wanted = {kind: rng.random() < 0.5 for kind in ("presence", "count", "count_category")}
    room = affirmative(scene)
    for _ in range(TURNS * n):
        kind = rng.choice(kinds)
        some = wanted.get(kind, True)
        if not some and room[kind] == 0:
            continue
        if kind == "sign":
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
    return list(asked.values())
