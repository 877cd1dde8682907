"""Whole nets: the same numbers as at the first commit, with less memory."""

import pytest

from .multiscale import against_naive, whole_nets

MEMORY = {"DeiT-S": 0.93, "CrossViT-Ti": 0.95}
"""Peak memory of a forward pass over that of the first commit, which had timm's (1.00, 1.08)."""


@pytest.mark.parametrize("name", MEMORY)
def test_nets_hold_less_than_at_the_first_commit(name):
    rows = list(whole_nets((1,), 1, (name,)))
    assert rows
    for _, _, _, difference, _, memory in rows:
        assert float(difference) < 1e-5 and float(memory) <= MEMORY[name]


def test_references_agree():
    """The references of the benchmark compute the same thing: a speed-up over something else would
    mean nothing."""
    rows = list(against_naive(sizes=(64,)))
    assert len(rows) == 4
    for name, _, difference, _ in rows:
        assert float(difference) < 1e-4, name
