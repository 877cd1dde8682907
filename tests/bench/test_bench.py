"""The references of the benchmark compute the same thing: a speed-up over something else would mean nothing."""

from .multiscale import against_naive


def test_references_agree():
    rows = list(against_naive(sizes=(64,)))
    assert len(rows) == 4
    for name, _, difference, _ in rows:
        assert float(difference) < 1e-4, name
