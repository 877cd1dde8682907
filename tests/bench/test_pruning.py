"""What the pruning bench compares computes the same thing, and its list of methods runs."""

import torch

from .pruning import against_loops, available, make


def test_references_agree():
    rows = list(against_loops(batch=2, num_tokens=20, dim=8, keep=6))
    assert len(rows) == 2 and all(same == "same choice" for _, same, _ in rows)


def test_every_method_runs():
    vision, names = make(batch=2, side=6, dim=32), []
    for name, _, run in available():
        plan = run(vision, 9)
        names.append(name)
        out = plan.apply(vision.selected if plan.num_prefix else vision.features)
        assert out.shape[1] == 9 and torch.isfinite(out).all(), name
    assert {"DivPrune", "FasterVLM", "HiPrune", "random"} <= set(names)
