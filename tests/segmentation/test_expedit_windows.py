"""Expedit inside of windows."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.nn import relative_offsets
from vtlib.segmentation import Expedit, cluster_windows, resize_bias_table


def features(batch=2, height=8, width=12, channels=5):
    return torch.randn(batch, height, width, channels, generator=torch.Generator().manual_seed(0))


def test_each_window_for_itself():
    x = features(2, 12, 24)
    layers = Expedit((4, 4), window=3, tau=0.3, k=4)
    small, restore = cluster_windows(x, 6, layers)
    assert small.shape == (2, 8, 16, 5)
    tokens, back = layers.reduce(x[:, 6:12, 18:24])
    torch.testing.assert_close(small[:, 4:8, 12:16].flatten(1, 2), tokens)
    torch.testing.assert_close(restore(small)[:, 6:12, 18:24].flatten(1, 2), back(tokens))
    same, restore = cluster_windows(x, 4, layers)
    assert torch.equal(same, x) and torch.equal(restore(same), x)


def test_swins_table_is_resized():
    offsets = relative_offsets(12)                            # rows of a table linear in dy, dx
    table = resize_bias_table(offsets, 8)
    assert table.shape == (225, 2)
    torch.testing.assert_close(table[112], torch.zeros(2), atol=1e-5, rtol=0)        # the middle
    torch.testing.assert_close(table, -table.flip(0), atol=1e-5, rtol=0)
    plane = offsets.T.reshape(1, 2, 23, 23)
    want = F.interpolate(plane, size=(15, 15), mode="bilinear").flatten(2)[0].T
    torch.testing.assert_close(table, want)
    assert resize_bias_table(offsets, 12) is offsets


X = features()
WRONG = {
    "need a square one": lambda: cluster_windows(X, 4, Expedit((2, 3), k=2)),
    "token map": lambda: cluster_windows(X, 5, Expedit((2, 2), k=2)),
    r"table has shape \(16, 2\)": lambda: resize_bias_table(torch.zeros(16, 2), 2),
}


@pytest.mark.parametrize("told", WRONG)
def test_bad_input(told):
    with pytest.raises(ValueError, match=told):
        WRONG[told]()
