"""Every answer is derived again from the masks and the table, by reading the question."""

import re
from collections import Counter

import pytest

from vtlib import data
from vtlib.data import pictograms


@pytest.fixture(scope="module")
def asked():
    world = data.EmojiWorld(80, artist="both")
    scenes = world.scenes(150, 3, objects=(1, 5), signs=0.3, repeat=0.4)
    return scenes, scenes.questions(8, seed=1)


def look(scenes, b):
    """Objects of a scene: slot, row of the table, middle of the visible box (fractions), visible
    pixels, share seen."""
    height, width = scenes.size
    found = []
    for k in range(scenes.valid.shape[1]):
        if scenes.valid[b, k]:
            mask = scenes.instance[b] == k + 1
            rows, columns = mask.nonzero(as_tuple=True)
            pixels = len(rows)
            x = (int(columns.min()) + int(columns.max()) + 1) / 2 / width if pixels else 0
            y = (int(rows.min()) + int(rows.max()) + 1) / 2 / height if pixels else 0
            row = pictograms.table()[int(scenes.table[scenes.pictogram[b, k]])]
            found.append((k, row, x, y, pixels, pixels / int(scenes.area[b, k])))
    return found


def same(row, name):
    return row["twin"] == pictograms.table()[data.pictogram(name)]["twin"]


def answer(scenes, b, question):
    """The answer, from the text of the question and the masks alone."""
    there = look(scenes, b)
    if m := re.fullmatch(r"Is there an? (.+)\?", question.text):
        return "yes" if any(same(o[1], m[1]) for o in there) else "no"
    if m := re.fullmatch(r"Is the (.+) on the left or on the right\?", question.text):
        (o,) = [o for o in there if same(o[1], m[1])]
        return "left" if o[2] < 0.5 else "right"
    if m := re.fullmatch(r"Is the (.+) at the top or at the bottom\?", question.text):
        (o,) = [o for o in there if same(o[1], m[1])]
        return "top" if o[3] < 0.5 else "bottom"
    if m := re.fullmatch(r"How many times does the (.+) appear\?", question.text):
        return str(sum(same(o[1], m[1]) for o in there))
    if m := re.fullmatch(r'How many objects are of the category "(.+)"\?', question.text):
        return str(sum(o[1]["category"] == m[1] for o in there))
    if m := re.fullmatch(r"What is (to the left of|above) the (.+)\?", question.text):
        axis = 2 if "left" in m[1] else 3
        (o,) = [o for o in there if same(o[1], m[2])]
        (other,) = [p for p in there if p[axis] < o[axis]]
        return other[1]["name"]
    if question.text == "Which category does the largest object belong to?":
        return max(there, key=lambda o: float(scenes.scale[b, o[0]]))[1]["category"]
    if question.text == "What does the sign say?":
        return scenes.words[b]
    raise AssertionError(question.text)


def test_answers(asked):
    scenes, questions = asked
    kinds = Counter()
    for b, batch in enumerate(questions):
        for question in batch:
            assert answer(scenes, b, question) == question.answer, (b, question)
            kinds[question.kind] += 1
    assert set(kinds) == set(data.KINDS) and min(kinds.values()) > 10


def test_the_objects_that_matter_can_be_seen(asked):
    scenes, questions = asked
    for b, batch in enumerate(questions):
        there = {o[0]: o for o in look(scenes, b)}
        for question in batch:
            needs = question.kind in ("side", "height", "relation", "category")
            needs |= question.answer == "yes"
            needs |= question.kind.startswith("count") and question.answer != "0"
            assert bool(question.objects) == needs
            for k in question.objects:
                assert there[k][4] >= 16 and there[k][5] >= 0.3


def test_nothing_is_nearly_a_tie(asked):
    scenes, questions = asked
    for b, batch in enumerate(questions):
        there = {o[0]: o for o in look(scenes, b)}
        for question in batch:
            if question.kind in ("side", "height"):
                axis = 2 if question.kind == "side" else 3
                assert abs(there[question.objects[0]][axis] - 0.5) > 0.08
            if question.kind == "relation":
                axis = 2 if "left" in question.text else 3
                place = there.pop(question.objects[1])[axis]
                assert all(abs(o[axis] - place) > 0.08 for o in there.values())
                there = {o[0]: o for o in look(scenes, b)}


def test_no_question_twice(asked):
    _, questions = asked
    for batch in questions:
        assert len({q.text for q in batch}) == len(batch) <= 8
    assert sum(len(batch) for batch in questions) > 0.9 * 8 * len(questions)


def test_balance():
    world = data.EmojiWorld(64)
    tally = Counter()
    for seed in range(3):
        scenes = world.scenes(300, seed, objects=(1, 4))
        tally.update((q.kind, q.answer) for batch in scenes.questions(4, seed) for q in batch)
    yes, no = tally["presence", "yes"], tally["presence", "no"]
    assert abs(yes - no) < 4 * (yes + no) ** 0.5
    for kind, a, b in (("side", "left", "right"), ("height", "top", "bottom")):
        assert abs(tally[kind, a] - tally[kind, b]) < 4 * (tally[kind, a] + tally[kind, b]) ** 0.5
    for kind in ("count", "count_category"):
        none = tally[kind, "0"]
        some = sum(n for (k, answer), n in tally.items() if k == kind) - none
        assert 0.8 < none / some < 1.25


def test_kinds_and_errors():
    scenes = data.EmojiWorld(64).scenes(10, 0)
    asked = scenes.questions(3, 0, kinds=["count", "side"])
    assert {q.kind for batch in asked for q in batch} == {"count", "side"}
    assert all(not batch for batch in scenes.questions(2, 0, kinds="sign"))
    with pytest.raises(ValueError, match="kinds has 'why': needs some of presence"):
        scenes.questions(1, 0, kinds=["why"])
    with pytest.raises(ValueError, match="n=0"):
        scenes.questions(0, 0)


def test_a_closed_world_where_nothing_is_absent():
    scenes = data.EmojiWorld(64, pictograms=["guitar"]).scenes(20, 0, objects=2)
    answers = {q.answer for batch in scenes.questions(2, 0, kinds=["presence"]) for q in batch}
    assert answers <= {"yes"}


PLACES = {
    (0, 0): "at the top left", (0, 1): "at the top", (0, 2): "at the top right",
    (1, 0): "on the left", (1, 1): "in the middle", (1, 2): "on the right",
    (2, 0): "at the bottom left", (2, 1): "at the bottom", (2, 2): "at the bottom right",
}
"""By thirds of the picture, (row, column)."""


def test_captions(asked):
    scenes, _ = asked
    for b, caption in enumerate(scenes.captions()):
        seen = [o for o in look(scenes, b) if o[4] >= 16 and o[5] >= 0.3]
        for _, row, x, y, *_ in seen:
            place = (int(3 * y) if 3 * y != 2 else 1, int(3 * x) if 3 * x != 2 else 1)
            words = PLACES[place]
            assert f"{row['name']} {words}".lower() in caption.lower()
        places = (" at the ", " in the middle", " on the ")
        assert sum(caption.lower().count(place) for place in places) >= len(seen)
        if scenes.words[b]:
            assert f'says "{scenes.words[b]}"' in caption
        assert caption.endswith(".") and caption[0].isupper()
