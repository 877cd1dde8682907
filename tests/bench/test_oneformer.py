"""The OneFormer bench compares what computes the same."""

import pytest
import torch


@torch.no_grad()
def test_same_as_transformers():
    pytest.importorskip("transformers")
    from .oneformer import against_transformers

    torch.manual_seed(0)
    sizes = dict(num_queries=5, embed_dim=32, num_heads=2, hidden_dim=16, num_layers=3)
    rows = list(against_transformers((64,), (1, 2), 1, **sizes))
    assert len(rows) == 2 and all(float(row[-1]) < 1e-4 for row in rows)
