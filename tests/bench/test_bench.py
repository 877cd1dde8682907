"""The references of the benchmark compute the same thing.

A speed-up over something else would mean nothing.
"""

from .__main__ import benches
from .multiscale import against_naive


def test_references_agree():
    rows = list(against_naive(sizes=(64,)))
    assert len(rows) == 4
    for name, _, difference, _ in rows:
        assert float(difference) < 1e-4, name


def test_every_family_with_tables_is_asked():
    names = {module.__name__.rpartition(".")[2] for module in benches()}
    assert {"multiscale", "pruning", "superres", "tokens"} <= names and "before" not in names
