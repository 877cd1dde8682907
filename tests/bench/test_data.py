"""The data bench compares the same pictures, and its three tables have their rows."""

from .data import against_before, by_threads, first_batch


def test_same_pictures():
    rows = list(against_before(repeats=1))
    assert len(rows) == 7 and all(same == "same bits" for _, same, _ in rows)


def test_rows():
    assert [row[0] for row in by_threads((1, 2), repeats=1)] == [1, 2]
    assert [row[0] for row in first_batch(repeats=1)][0] == "today"
