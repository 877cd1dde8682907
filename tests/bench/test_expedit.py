"""The time that an hourglass leaves is near what its multiply-adds promise."""

import pytest
import torch

from vtlib import hub
from vtlib.hub import hourglass
from vtlib.segmentation import Expedit
from vtlib.teach.meter import processor_seconds

from .expedit import against_promise, promised

LIMIT = 1.3


def test_promise_of_the_papers_case():
    """ViT-L, 640 px: 10 blocks on 1600 tokens, 14 on 784."""
    plain = promised(24, 1024, 1600, 10, 784, clusters=False)
    full = promised(24, 1024, 1600, 10, 784, clusters=True)
    assert plain == pytest.approx(1 - 199.6 / 609, abs=1e-3)
    assert full - plain == pytest.approx(12 * 1600 * 784 * 1024 / 609e9, abs=1e-3)


@pytest.mark.slow
def test_a_vit_of_random_weights_keeps_the_promise():
    rows = list(against_promise(cases=((4, 16),)))
    assert all(over < LIMIT for *_, over in rows), rows


@pytest.mark.slow
@torch.no_grad()
def test_the_real_dinov2_keeps_the_promise():
    told = hub.real_missing("dinov2")
    if told:
        pytest.skip(told)
    model, pixels = hub.real("dinov2"), torch.randn(1, 3, 448, 448)
    glass = Expedit((16, 16), tau=20.0, k=10, normalise="sum")
    whole = processor_seconds(model, pixels, repeat=3)
    with hourglass(model, glass, after=4):
        part = processor_seconds(model, pixels, repeat=3)
    assert part / whole < LIMIT * promised(12, 384, 1024, 4, 256, clusters=True)
