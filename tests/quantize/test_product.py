"""Digits of product quantisers, masks, and what FSQ, LFQ, BSQ and DimensionWise have in common."""

import itertools

import pytest
import torch

from tests.wrong import raw_errors
from vtlib.quantize import (
    BSQ,
    FSQ,
    LFQ,
    DiagonalGaussian,
    DimensionWise,
    KLBottleneck,
    Quantized,
    digits_to_index,
    dimwise,
    index_to_digits,
    lfq,
    used,
)

from ..settings import SETTINGS, default_dtype
from .both import check_meta_compile_export

NETS = {
    "FSQ": lambda: FSQ((8, 5, 5, 4)),
    "FSQ linear": lambda: FSQ((8, 5, 2, 4), bound="linear"),
    "LFQ": lambda: LFQ(4),
    "LFQ groups": lambda: LFQ(4, group_size=2),
    "BSQ": lambda: BSQ(4, commitment_weight=0.25),
    "DimensionWise": lambda: DimensionWise(4, 16),
}


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------- digits
@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,) * 6, (3,), (1, 4, 1)])
def test_the_first_channel_runs_fastest(levels):
    want = list(itertools.product(*(range(count) for count in levels[::-1])))
    digits = index_to_digits(torch.arange(len(want)), levels)
    assert digits.tolist() == [list(row[::-1]) for row in want]
    assert digits_to_index(digits, levels).tolist() == list(range(len(want)))


@pytest.mark.parametrize("levels", [(7,) * 9, (7,) * 10, (2,) * 62, (3, 5) * 16, (2**31, 2**31)])
def test_numbers_are_exact_beyond_what_float32_can_count(levels):
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(0, count, (3, 500), generator=generator) for count in levels]
    digits = torch.stack(columns, dim=-1)
    index = digits_to_index(digits, levels)
    assert index.dtype == torch.int64 and index.max() > 2**24
    assert torch.equal(index_to_digits(index, levels), digits)
    place, total = (1, 77), 0
    for digit, count in zip(digits[place].tolist()[::-1], levels[::-1], strict=True):
        total = total * count + digit
    assert index[place].item() == total
    last = torch.tensor(levels) - 1
    assert digits_to_index(last, levels).item() == torch.tensor(levels).prod().item() - 1


def test_one_order_in_all_product_quantisers():
    """The second number is the code that differs from the first in its first channel only."""
    for net in (FSQ((8, 5, 5)), FSQ((2, 2, 2)), LFQ(3), BSQ(3)):
        codes = net.decode(torch.arange(3))
        assert (codes[1] != codes[0]).tolist() == [True, False, False]
    bits = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]])
    signs = (2 * bits - 1).float()
    want = digits_to_index(bits, (2,) * 4)
    assert want.tolist() == [9, 6]
    for net in (LFQ(4), BSQ(4), FSQ((2,) * 4, bound="linear")):
        assert torch.equal(net(signs).indices, want), net
    net = DimensionWise(3, 4)
    whole = digits_to_index(net(draw(9, 3)).indices, (4,) * 3)
    assert torch.equal(index_to_digits(whole, (4,) * 3), net(draw(9, 3)).indices)


# ------------------------------------------------------------------------------------------- nets
@pytest.mark.parametrize("training", [True, False])
def test_what_forward_returns_decodes_bit_for_bit(net, training):
    net.train(training)
    for x in (draw(3, 50, 4), 30 * draw(2, 4, 5, 4), draw(4), torch.zeros(1, 4)):
        out = net(x)
        assert isinstance(out, Quantized) and out.indices.dtype == torch.int64
        assert torch.equal(net.decode(out.indices), out.codes) and out.codes.shape == x.shape
        assert out.indices.min() >= 0 and out.indices.max() < net.codebook_size
        assert out.loss.shape == out.usage.shape == () and out.loss.isfinite()
        again = net(out.codes)
        if "tanh" not in repr(net):
            assert torch.equal(again.indices, out.indices) and torch.equal(again.codes, out.codes)


def test_training_and_evaluation_are_the_same_and_nothing_is_written(net):
    before = {name: value.clone() for name, value in net.named_buffers()}
    x = draw(5, 9, 4)
    first, second = net.train()(x), net.eval()(x)
    assert torch.equal(first.loss, second.loss) and torch.equal(first.codes, second.codes)
    assert all(torch.equal(before[name], value) for name, value in net.named_buffers())
    assert not net.state_dict() and not list(net.parameters())


def test_a_mask_changes_nothing_for_the_tokens_that_count(net):
    x = draw(4, 6, 4)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 2:], mask[3, 5:] = False, False
    far = torch.where(mask[..., None], x, 50 * draw(4, 6, 4, seed=1))
    masked, other, alone = net(x, mask), net(far, mask), net(x[mask])
    assert torch.equal(masked.codes[mask], net(x).codes[mask])
    assert torch.equal(masked.codes[mask], alone.codes)
    assert torch.equal(masked.indices[mask], alone.indices)
    assert torch.equal(masked.loss, other.loss) and torch.equal(masked.usage, other.usage)
    torch.testing.assert_close(masked.loss, alone.loss)
    assert torch.equal(masked.usage, alone.usage)
    everything = net(x, torch.ones_like(mask))
    assert torch.equal(everything.loss, net(x).loss)
    assert torch.equal(everything.usage, net(x).usage)


def test_usage_under_a_mask():
    indices, mask = torch.tensor([[3, 3], [0, 1]]), torch.tensor([[False, True], [True, False]])
    assert used(indices, 8, mask).item() == 0.25
    assert used(indices, 8, ~mask).item() == 0.25 and used(indices, 8).item() == 3 / 8


def test_half_precision_and_autocast_choose_as_float32(net):
    x = draw(200, 4).bfloat16()
    want = net(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside, floats = net(x), net(x.float())
    for out in (net(x), inside, floats):
        assert torch.equal(out.indices, want.indices) and torch.equal(out.codes, want.codes)
        assert torch.equal(out.loss, want.loss) and out.loss.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float64):
        out = net.to(dtype)(x)
        assert out.codes.dtype == dtype and torch.equal(net.decode(out.indices), out.codes)
        assert torch.equal(out.indices, want.indices)
    wide = net(x.double())
    assert torch.equal(wide.indices, want.indices) and wide.codes.dtype == torch.float64


def test_the_gradient_reaches_the_input(net):
    x = draw(30, 4).requires_grad_()
    out = net(x)
    (grad,) = torch.autograd.grad((out.codes * draw(30, 4, seed=1)).sum() + out.loss, x)
    assert grad.isfinite().all() and (grad != 0).all()
    assert torch.autograd.gradcheck(lambda x: net(x).loss, x.detach()[:3].double().requires_grad_())


def test_meta_compile_and_export_with_a_free_batch(net):
    check_meta_compile_export(net, draw(5, 7, 4), draw(5, 7) > -1)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_torchs_settings_change_nothing(net, setting):
    x = draw(6, 4)
    want = net(x)
    with setting():
        out = net(x)
        decoded = net.decode(out.indices)
    assert torch.equal(out.codes, want.codes) and torch.equal(decoded, want.codes)
    assert torch.equal(out.usage, want.usage) and torch.equal(out.loss, want.loss)
    assert out.codes.dtype == out.loss.dtype == torch.float32


@pytest.mark.parametrize("name", NETS)
def test_a_quantiser_made_under_another_default_dtype_is_the_same(name):
    x = draw(4, 4)
    with default_dtype():
        made = NETS[name]()
    got, want = made(x), NETS[name]()(x)
    assert torch.equal(got.codes, want.codes) and torch.equal(got.loss, want.loss)


def test_bits():
    assert FSQ((8, 4)).bits == 5 and LFQ(7).bits == BSQ(7).bits == 7
    assert DimensionWise(16, 64).bits == 96


# ------------------------------------------------------------------------------------- bad input
X = torch.rand(2, 5, 4)
MASK = torch.ones(2, 5, dtype=torch.bool)
INDICES = torch.zeros(2, 5, dtype=torch.long)
DIGITS = torch.zeros(2, 5, 4, dtype=torch.long)
WEIGHTS = dict(temperature=1.0, commitment_weight=0.1, entropy_weight=0.1, diversity_weight=1.0)
POSTERIOR = DiagonalGaussian.of(torch.rand(2, 5, 8))
CALLS = {
    "digits_to_index": (digits_to_index, dict(digits=DIGITS, levels=(2, 3, 4, 5))),
    "index_to_digits": (index_to_digits, dict(index=INDICES, levels=(2, 3, 4, 5))),
    "used": (used, dict(indices=INDICES, codebook_size=4, mask=MASK)),
    "FSQ": (FSQ, dict(levels=(3, 5), bound="linear")),
    "LFQ": (LFQ, dict(dim=4, group_size=2, **WEIGHTS)),
    "BSQ": (BSQ, dict(dim=4, group_size=2, **WEIGHTS)),
    "DimensionWise": (DimensionWise, dict(dim=4, levels=8, limits=(-5.0, 5.0), r=3.0)),
    "gaussian_bins": (dimwise.gaussian_bins, dict(levels=8, r=3.0)),
    "LFQ.terms": (LFQ(4).terms, dict(x=X, mask=MASK)),
    "bit_entropy": (lfq.bit_entropy, dict(logits=X)),
    "entropy": (lfq.entropy, dict(probabilities=X)),
    "code_probabilities": (
        lfq.code_probabilities, dict(logits=X[0], group_size=2, weight=torch.rand(5))
    ),
    "KLBottleneck": (KLBottleneck, dict(weight=1e-6)),
    "KLBottleneck.forward": (KLBottleneck(), dict(
        parameters=torch.rand(2, 5, 8), mask=MASK, generator=torch.Generator("cpu")
    )),
    "DiagonalGaussian.of": (DiagonalGaussian.of, dict(parameters=X)),
    "DiagonalGaussian.sample": (POSTERIOR.sample, dict(generator=torch.Generator("cpu"))),
    "DiagonalGaussian.kl": (POSTERIOR.kl, dict(other=POSTERIOR, mask=MASK)),
    "DiagonalGaussian.nll": (POSTERIOR.nll, dict(latents=X, mask=MASK)),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_error_from_deep_inside(name):
    assert raw_errors(*CALLS[name], part=True) == []


def test_no_error_from_deep_inside_a_net(net):
    assert raw_errors(net, dict(x=X, mask=MASK)) == []
    assert raw_errors(net.decode, dict(indices=net(X).indices)) == []
    codes = getattr(net, "codes", None)
    if codes is not None:
        assert raw_errors(codes, dict(digits=DIGITS)) == []


@pytest.mark.parametrize("call, message", [
    (lambda: digits_to_index(DIGITS, (2, 3)), r"digits has shape \(2, 5, 4\): needs \(..., 2\)"),
    (lambda: digits_to_index(torch.tensor([1, 3]), (2, 3)), r"digits\[..., 1\]=3 is no place"),
    (lambda: digits_to_index(torch.tensor([-1, 0]), (2, 3)), r"digits\[..., 0\]=-1"),
    (lambda: digits_to_index(torch.tensor([1.0]), (2,)), "digits is torch.float32"),
    (lambda: digits_to_index(DIGITS, (2, 3, 0, 1)), r"levels\[2\]=0"),
    (lambda: digits_to_index(torch.zeros(63).long(), (2,) * 63), "< 2\\^63 codes"),
    (lambda: index_to_digits(torch.tensor([6]), (2, 3)), r"index\[0\]=6 .* in 0 ... 5"),
    (lambda: index_to_digits(torch.tensor([0]), ()), "1 channel at least"),
    (lambda: used(INDICES, 4, ~MASK), "mask is False everywhere"),
    (lambda: used(INDICES, 4, MASK[0]), "mask is torch.bool .5,. but needs to be boolean"),
    (lambda: KLBottleneck()(X, sample="yes"), "sample='yes' .str.: needs True or False"),
    (lambda: FSQ((3, 5), bound="sigmoid"), "bound='sigmoid': needs one of tanh, linear"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
