"""What the pruning bench compares computes the same thing, and its list of methods runs."""

import pytest
import torch

from . import pruning
from .before import today
from .pruning import METHODS, against_loops, jobs, make

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
def test_every_method_runs(name):
    vision = make(batch=2, side=6, dim=32)
    plan = METHODS[name][1](vision, 9)
    out = plan.apply(vision.selected if plan.num_prefix else vision.features)
    assert out.shape[1] == 9 and torch.isfinite(out).all()
