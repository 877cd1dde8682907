"""Sine positions, attention with three streams, and a small pyramid of maps."""

import math

import pytest
import torch

from vtlib.segmentation.oneformer_nets import MLP, ConvPyramid, StreamAttention, sine_positions


def test_sine_positions_by_hand():
    table = sine_positions((3, 4), 8).unflatten(0, (3, 4))
    row, col = 2 / 3 * 2 * math.pi, 3 / 4 * 2 * math.pi                # place (1, 2)
    angles = [row, row / 100, col, col / 100]                          # 10000^(1/2) = 100
    want = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
    torch.testing.assert_close(table[1, 2], torch.tensor(want), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="embed_dim=6"):
        sine_positions((3, 4), 6)


def test_attention_is_torchs():
    torch.manual_seed(0)
    own, other = StreamAttention(8, 2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    other.load_state_dict(own.state_dict())
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(own(q, k, v), other(q, k, v)[0], atol=1e-5, rtol=1e-4)


def test_mlp():
    torch.manual_seed(0)
    net = MLP(3, 5, 2, 2)
    x = torch.randn(4, 3)
    torch.testing.assert_close(net(x), net.layers[1](net.layers[0](x).relu()))
    with pytest.raises(ValueError, match="needs"):
        net(x[:, 1:])


@pytest.mark.parametrize("size", [(64, 96), (37, 50)])
def test_pyramid(size):
    levels, features = ConvPyramid(8, (4, 4, 8, 8, 8), 4)(torch.rand(2, 3, *size))
    sides = [[-(-s // step) for s in size] for step in (32, 16, 8, 4)]
    assert [list(x.shape) for x in (*levels, features)] == [[2, 8, *side] for side in sides]
    with pytest.raises(ValueError, match="groups=3"):
        ConvPyramid(8, (4, 4, 8, 8, 8), 3)
    with pytest.raises(ValueError, match="channels"):
        ConvPyramid(8, (4, 4))
