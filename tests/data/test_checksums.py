"""Pictures, labels and words are those of the commit that the checksums were recorded from."""

import json

import pytest
import torch

from vtlib import data
from vtlib.data import assets, footage  # noqa: F401

from . import checksums

STORED = json.loads(checksums.FILE.read_text(encoding="utf-8"))
SAME_BITS = STORED["processor"] == checksums.processor()


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", checksums.KINDS, ids=lambda kind: kind.__name__)
def test_as_recorded(kind, threads):
    """The same bits at any number of threads; on another processor the same up to rounding."""
    found, stored = checksums.of(kind, data), STORED[kind.__name__]
    assert len(found) == len(stored)
    for place, (new, old) in enumerate(zip(found, stored, strict=True)):
        if SAME_BITS or len(old) == 1:
            assert new == old, place
        else:
            size = max(1, abs(old[1]))
            assert new[1:] == pytest.approx(old[1:], rel=1e-4, abs=1e-3 * size), place


def test_every_kind_is_recorded():
    assert set(STORED) == {"commit", "processor", *(kind.__name__ for kind in checksums.KINDS)}
