"""What the pruning bench compares computes the same thing, and its list of methods runs."""

import pytest
import torch

from . import pruning
from .before import peak_bytes, today
from .pruning import HEADS, METHODS, against_loops, jobs, make

SMALL = (2, 72, 32)


def test_references_agree():
    rows = list(against_loops(batch=2, num_tokens=20, dim=8, keep=6))
    assert len(rows) == 2 and all(same == "same choice" for _, same, _ in rows)


def test_releases_agree(monkeypatch):
    monkeypatch.setitem(pruning.GRIDS, 72, (8, 9))
    torch.manual_seed(0)
    found = {name: (ours(), release()) for name, ours, release in jobs(today, SMALL)}
    assert torch.equal(*found.pop("FasterVLM"))
    for name in ("ToMe, one round", "ToMe, down to N / 9"):
        ours, release = found.pop(name)
        length = [kept.square().sum(dim=2).sort(dim=1).values for kept in (ours, release)]
        torch.testing.assert_close(*length)
    ours, release = found.pop("CrossGET, matching")
    for b in range(2):                              # of a mutual pair the release gives either one
        pairs, wanted = (
            {frozenset(pair) for pair in zip(p[0][b].tolist(), p[1][b].tolist(), strict=True)}
            for p in (ours, release)
        )
        assert len(pairs & wanted) >= 0.8 * len(wanted)
    assert not found


@pytest.mark.parametrize("name", METHODS)
def test_no_more_than_two_images_pairs_are_held(name):
    """Whatever the batch: N x N numbers twice, and a few copies of the tokens."""
    vision = make(batch=16, side=24, dim=HEADS, maps=False)
    if name == "HiPrune":
        vision = make(batch=2, side=24, dim=HEADS)                  # its maps are what is given
    pairs, tokens = 576 * 576 * 4, vision.tokens.numel() * 4
    assert peak_bytes(lambda: METHODS[name][1](vision, 64)) < 2 * pairs + 8 * tokens


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name):
    vision = make(batch=2, side=6, dim=32)
    plan = METHODS[name][1](vision, 9)
    out = plan.apply(vision.selected if plan.num_prefix else vision.features)
    assert out.shape[1] == 9 and torch.isfinite(out).all()
