"""The contract of quantisers, and finite scalar quantisation against the paper's numbers."""

import itertools

import numpy as np
import pytest
import torch

from vtlib.quantize import FSQ, Quantized, straight_through, used

from ..settings import SETTINGS, default_dtype
from .both import Both

LEVELS = [(8, 5, 5, 5), (3, 3), (2, 7, 4), (4,) * 4, (1001, 1003, 2001)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("levels", LEVELS)
def test_what_forward_returns_decodes_bit_for_bit(levels, training):
    net = FSQ(levels).train(training)
    for x in (torch.randn(3, 50, len(levels)), 30 * torch.randn(2, 4, 5, len(levels))):
        out = net(x)
        assert isinstance(out, Quantized) and out.indices.dtype == torch.int64
        assert out.codes.shape == x.shape and out.indices.shape == x.shape[:-1]
        assert torch.equal(net.decode(out.indices), out.codes)
        assert out.indices.min() >= 0 and out.indices.max() < net.codebook_size
        assert out.loss.shape == out.usage.shape == () and out.loss == 0 and 0 < out.usage <= 1
        distinct = len(set(out.indices.flatten().tolist()))
        assert out.usage.item() == pytest.approx(distinct / net.codebook_size)


def test_levels_of_a_channel():
    net = FSQ((8, 5))
    x = torch.linspace(-6, 6, 4001)[:, None].expand(-1, 2)
    codes = net(x).codes
    assert codes[:, 0].unique().tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]
    assert codes[:, 1].unique().tolist() == [-1, -0.5, 0, 0.5, 1]
    assert (codes.diff(dim=0) >= 0).all()
    middle = FSQ((8, 5, 5, 5))(torch.zeros(1, 4))
    assert middle.indices.tolist() == [500] and not middle.codes.any()


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 7, 4)])
def test_every_number_is_a_code_of_its_own_and_the_first_channel_runs_fastest(levels):
    net = FSQ(levels)
    codes = net.decode(torch.arange(net.codebook_size))
    want = []
    for digits in itertools.product(*(range(count) for count in levels[::-1])):
        pairs = zip(digits[::-1], levels, strict=True)
        want.append([(digit - count // 2) / (count // 2) for digit, count in pairs])
    torch.testing.assert_close(codes, torch.tensor(want))
    assert len(codes.unique(dim=0)) == net.codebook_size


def test_numbers_beyond_what_float32_can_count():
    net = FSQ((7,) * 20)
    out = net(torch.randn(1000, 20, generator=torch.Generator().manual_seed(0)))
    assert out.indices.max() > 2**53 and torch.equal(net.decode(out.indices), out.codes)
    last = torch.tensor([net.codebook_size - 1])
    assert torch.equal(net.decode(last), torch.ones(1, 20))


MANY = [*range(2, 130), 255, 256, 257, 1000, 1001, 4096, 65536]


def again(net):
    """For each code, whether encoding it gives its number again."""
    numbers = torch.arange(net.codebook_size)
    return net(net.decode(numbers)).indices == numbers


def test_codes_are_given_again_by_three_and_five_levels_only():
    assert [count for count in MANY if again(FSQ((count,))).all()] == [3, 5]
    shares = {(8, 5, 5, 5): 0.5, (8,) * 4: 0.0625, (4,) * 4: 0.3164, (7,) * 4: 0.2603}
    shares |= {(3,) * 4: 1, (5,) * 4: 1, (3, 5, 5, 3): 1}
    for levels, share in shares.items():
        assert again(FSQ(levels)).float().mean().item() == pytest.approx(share, abs=1e-4)


def test_every_code_of_any_levels_is_given_again_by_the_linear_bound():
    assert all(again(FSQ((count,), "linear")).all() for count in MANY)
    for levels in [(8, 5, 5, 5), (8,) * 4, (4,) * 5, (7,) * 4, (15, 2, 6), (1001, 20)]:
        net = FSQ(levels, bound="linear")
        assert again(net).all() and again(net.double()).all()
        everything = torch.arange(net.codebook_size)
        assert torch.equal(net.decode(everything), FSQ(levels).double().decode(everything))
    assert all(again(FSQ((count,), "linear").bfloat16()).all() for count in range(2, 513))


def test_the_linear_bound():
    """As x between the outermost codes, and never without a gradient for a latent near by."""
    net = FSQ((8, 5), bound="linear").double()
    x = torch.linspace(-4, 4, 1601, dtype=torch.float64)[:, None].repeat(1, 2).requires_grad_()
    y = net.bound(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    inside = (x >= -1) & (x <= torch.tensor([0.75, 1.0]))
    half = torch.tensor([4.0, 2.0]).double().expand_as(x)
    torch.testing.assert_close(y[inside], (half * x)[inside])
    torch.testing.assert_close(slope[inside], half[inside])
    assert (slope > 0.01).all() and (y.diff(dim=0) > 0).all()
    assert (y.abs() < 2 * half).all()
    want = (half * x).round().clamp(-half, torch.tensor([3.0, 2.0]).double()) / half
    off = ((half * x) % 1 - 0.5).abs() > 1e-9                                      # not on an edge
    assert torch.equal(net(x).codes[off], want[off])


def test_against_the_formula_in_loops():
    levels, x = (8, 5, 2), torch.randn(40, 3, dtype=torch.float64)
    codes = FSQ(levels).double()(x).codes
    for row, got in zip(x.tolist(), codes.tolist(), strict=True):
        for value, count, code in zip(row, levels, got, strict=True):
            half, offset = (count - 1) * 1.001 / 2, 0.0 if count % 2 else 0.5
            y = np.tanh(value + np.arctanh(offset / half)) * half - offset
            assert code == np.round(y) / (count // 2)


def test_the_gradient_passes_straight_through():
    net = FSQ((8, 5))
    x = torch.randn(6, 2, requires_grad=True)
    upstream = torch.randn(6, 2)
    (got,) = torch.autograd.grad(net(x).codes, x, upstream)
    (want,) = torch.autograd.grad(net.bound(x) / torch.tensor([4.0, 2.0]), x, upstream)
    torch.testing.assert_close(got, want)
    assert got.abs().min() > 0
    codes, y = torch.randn(9), torch.randn(9, requires_grad=True)
    assert torch.equal(straight_through(codes, y), codes)
    straight_through(codes, y).sum().backward()
    assert torch.equal(y.grad, torch.ones(9))


def test_half_precision_and_autocast_choose_as_float32():
    net, x = FSQ((8, 5, 5)), torch.randn(200, 3).bfloat16()
    want = net(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside, floats = net(x), net(x.float())
    for out in (net(x), inside, floats):
        assert torch.equal(out.indices, want.indices) and torch.equal(out.codes, want.codes)
    half = FSQ((8, 5, 5)).bfloat16()
    out = half(x)
    assert out.codes.dtype == torch.bfloat16 and torch.equal(half.decode(out.indices), out.codes)


def test_meta_compile_and_export_with_a_free_batch():
    net = FSQ((8, 5, 5))
    far = FSQ((8, 5, 5)).to("meta")
    out = far(torch.randn(2, 7, 3, device="meta"))
    assert out.codes.shape == (2, 7, 3) and far.decode(out.indices).shape == (2, 7, 3)

    free = torch.export.Dim("batch", min=2)
    example = torch.randn(2, 7, 3)
    exported = torch.export.export(Both(net), (example,), dynamic_shapes=({0: free},)).module()
    compiled = torch.compile(Both(net), backend="eager", fullgraph=True)
    x = torch.randn(5, 7, 3)
    for run in (exported, compiled):
        for got, want in zip(run(x), Both(net)(x), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_torchs_settings_change_nothing(setting):
    x, net = torch.randn(4, 3), FSQ((8, 5, 5))
    want = net(x)
    with setting():
        out = net(x)
        decoded = net.decode(out.indices)
        shared = used(out.indices, net.codebook_size)
    assert torch.equal(out.codes, want.codes) and torch.equal(decoded, want.codes)
    assert torch.equal(out.usage, want.usage) and torch.equal(shared, want.usage)
    assert out.codes.dtype == torch.float32


def test_a_quantiser_made_under_another_default_dtype_is_the_same():
    x = torch.randn(4, 3)
    with default_dtype():
        made = FSQ((8, 5, 5))
    got, want = made(x), FSQ((8, 5, 5))(x)
    assert torch.equal(got.codes, want.codes) and got.codes.dtype == torch.float32


def test_usage():
    assert used(torch.tensor([[3, 3], [0, 3]]), 8).item() == 0.25
    assert used(torch.arange(8), 8).item() == 1 and used(torch.tensor([5]), 4).item() == 0.25


@pytest.mark.parametrize("call, message", [
    (lambda: FSQ((8, 1)), r"levels\[1\]=1: needs an integer of at least 2"),
    (lambda: FSQ((8.0,)), r"levels\[0\]=8.0"),
    (lambda: FSQ(5), "levels=5: needs a sequence of integers"),
    (lambda: FSQ("85"), "levels='85': needs a sequence of integers"),
    (lambda: FSQ(()), "need 1 channel at least"),
    (lambda: FSQ((8,) * 21), "< 2\\^63 codes"),
    (lambda: FSQ((8, 5))(torch.zeros(2, 3)), r"x has shape \(2, 3\) but needs \(..., 2\)"),
    (lambda: FSQ((8, 5))(torch.zeros(0, 2)), "not empty"),
    (lambda: FSQ((8, 5))(torch.zeros(1, 2).long()), "x is torch.int64"),
    (lambda: FSQ((8, 5))(np.zeros((1, 2))), "x is a numpy.ndarray"),
    (lambda: FSQ((8, 5))(torch.tensor([[0.0, torch.nan]])), "x .* non-finite"),
    (lambda: FSQ((8, 5)).decode(torch.tensor([40])), r"indices\[0\]=40 .* in 0 ... 39"),
    (lambda: FSQ((8, 5)).decode(torch.tensor([-1])), r"indices\[0\]=-1 is no place"),
    (lambda: FSQ((8, 5)).decode(torch.tensor([1.0])), "indices is torch.float32"),
    (lambda: FSQ((8, 5)).decode([1]), "indices is a list"),
    (lambda: FSQ((8, 5)).bound([1.0, 2.0]), "x is a list"),
    (lambda: FSQ((8, 5)).codes(torch.tensor([1])), r"digits has shape \(1,\)"),
    (lambda: straight_through(torch.zeros(2), torch.zeros(3)), r"codes has shape \(2,\)"),
    (lambda: straight_through([1.0], torch.zeros(1)), "codes is a list"),
    (lambda: used(torch.zeros(0).long(), 4), "indices is empty"),
    (lambda: used(torch.arange(4), "4"), "codebook_size='4'"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integers_of_numpy_count():
    assert FSQ(np.array([8, 5])).codebook_size == 40
