"""How far a pixel sees: known fields of convolutions, and of a decoder with windows."""

import pytest
import torch
from torch import nn

from tests.wrong import raw_errors
from vtlib.segmentation import VWHead, effective_receptive_field, reach


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def first(net):
    return lambda maps: net(maps[0])


@pytest.fixture(scope="module")
def x():
    return torch.rand(2, 3, 17, 21, generator=seeded())


@pytest.mark.parametrize("dilation, num_layers, side", [(1, 1, 1), (1, 3, 3), (4, 1, 4)])
def test_convolutions_see_their_kernel(x, dilation, num_layers, side):
    torch.manual_seed(0)
    conv = [nn.Conv2d(3, 3, 3, padding=dilation, dilation=dilation) for _ in range(num_layers)]
    field, = effective_receptive_field(first(nn.Sequential(*conv)), [x])
    assert field.shape == (17, 21) and field.sum().item() == pytest.approx(1)
    around = torch.zeros(17, 21, dtype=torch.bool)
    around[8 - side:9 + side:dilation, 10 - side:11 + side:dilation] = True
    assert torch.equal(field > 0, around) and reach(field, share=1.0) == side


def test_a_pixelwise_decoder_sees_itself(x):
    field, = effective_receptive_field(first(nn.Conv2d(3, 5, 1)), [x], place=(2, 5))
    assert field[2, 5] == 1 and field.sum() == 1 and reach(field, (2, 5)) == 0


def test_against_finite_differences():
    torch.manual_seed(0)
    net, x = nn.Conv2d(1, 2, 3, padding=1).double(), torch.rand(1, 1, 5, 5).double()
    field, = effective_receptive_field(first(net), [x])
    want = torch.zeros(5, 5).double()
    for v in range(5):
        for u in range(5):
            moved = x.clone()
            moved[0, 0, v, u] += 1e-4
            want[v, u] = (net(moved) - net(x))[0, :, 2, 2].sum().abs()
    torch.testing.assert_close(field, want / want.sum(), atol=1e-6, rtol=1e-5)


def test_parameters_and_inputs_are_left_alone(x):
    net, unused = nn.Conv2d(3, 1, 3, padding=1), torch.rand(2, 1, 4, 4)
    with torch.no_grad():
        fields = effective_receptive_field(first(net), [x, unused])
    with torch.inference_mode():
        again = effective_receptive_field(first(net), [x + 0, unused])
    assert net.weight.grad is None and not x.requires_grad and x.grad is None
    assert fields[1].shape == (4, 4) and fields[1].sum() == 0
    assert torch.equal(fields[0], again[0])


def windowed(ratios):
    torch.manual_seed(0)
    head = VWHead((1, 4, 1, 1), 3, 16, 1, ratios=ratios, num_windows=4)
    for attention in head.attn:
        nn.init.ones_(attention.conv_out.bn.weight)
    head.image_pool[1].conv.weight.data.zero_()                  # it sees everything, thinly
    return head.eval()


def test_a_wider_context_sees_farther():
    """Pooling aside, the middle of a map sees its context, up to RP + R - 1 pixels wide."""
    sizes = ((1, 16), (4, 8), (1, 4), (1, 2))
    maps = [torch.rand(1, c, side, side, generator=seeded()) for c, side in sizes]
    seen = []
    for ratio in (1, 2, 4):
        field = effective_receptive_field(windowed((ratio,)), maps, place=(9, 9))[1]
        assert field.sum().item() == pytest.approx(1)
        seen.append(int((field > 0).sum()))
    assert seen[0] < seen[1] < seen[2] and seen[2] > 50


@pytest.mark.parametrize("share, want", [(0.2, 0), (0.5, 1), (1.0, 2), (0.95, 2)])
def test_reach(share, want):
    field = torch.zeros(5, 7)
    field[2, 3], field[1, 3], field[2, 5] = 2.0, 3.0, 5.0
    assert reach(field, share=share) == want
    assert reach(torch.ones(9, 9), share=1.0) == 4 and reach(torch.eye(3), (0, 0), 1.0) == 2


def test_bad_input(x):
    net = first(nn.Conv2d(3, 1, 1))
    for call, said in (
        (lambda: effective_receptive_field(net, [x], (17, 0)), r"place\[0\]=17"),
        (lambda: effective_receptive_field(net, [x.long()]), r"features\[0\] is torch.int64"),
        (lambda: effective_receptive_field(lambda maps: torch.ones(1, 1, 2, 2), [x]), "none of"),
        (lambda: effective_receptive_field(None, [x]), "decoder"),
        (lambda: reach(torch.zeros(3, 3)), "sums to zero"),
        (lambda: reach(torch.ones(3, 3), share=0.0), "share=0.0"),
        (lambda: reach(torch.ones(3, 3), (0, 3)), r"place\[1\]=3"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    assert raw_errors(reach, dict(field=torch.ones(3, 3), place=(0, 1), share=0.5), part=True) == []
