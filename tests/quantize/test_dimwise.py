"""Dimension-wise quantisation after training: bins of a Gaussian, nearest values, limits."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from vtlib.quantize import DimensionWise
from vtlib.quantize.dimwise import gaussian_bins

LEVELS = [2, 3, 5, 8, 16, 17, 64, 700]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", LEVELS)
def test_bins_against_integrals(levels):
    edges, means = gaussian_bins(levels)
    normal = NormalDist()
    inner = [normal.inv_cdf(i / levels) for i in range(1, levels)]
    torch.testing.assert_close(edges, torch.tensor([-3.0, *inner, 3.0], dtype=torch.float64))
    for i in (0, 1, levels // 2, levels - 1):
        grid = np.linspace(edges[i].item(), edges[i + 1].item(), 2001)
        density = np.exp(-(grid**2) / 2)
        mean = np.trapezoid(grid * density, grid) / np.trapezoid(density, grid)
        assert means[i].item() == pytest.approx(mean, abs=1e-6)
    assert torch.equal(means, -means.flip(0)) and torch.equal(edges, -edges.flip(0))
    assert (means.diff() > 0).all() and ((edges[:-1] < means) & (means < edges[1:])).all()


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("limits", [(-5, 5), (-1.5, 4.0), (2, 3), ((-1, 1), (0, 8), (-30, 2))])
def test_the_nearest_value_is_taken_and_given_again(levels, limits):
    net = DimensionWise(3, levels, limits)
    x = torch.cat([1.7 * draw(500, 3), torch.linspace(-7, 7, 401)[:, None].expand(-1, 3)])
    out = net(x)
    distances = (x.double()[..., None] - net.values.double()).abs()
    taken = distances.gather(2, out.indices[..., None])[..., 0]
    assert (taken - distances.min(dim=2).values).abs().max() < 1e-5
    every = torch.arange(levels)[:, None].expand(-1, 3)
    values = net.decode(every)
    assert torch.equal(net(values).indices, every) and torch.equal(net(values).codes, values)
    assert (net.values.diff(dim=1) > 0).all()


def test_numbers_of_the_paper():
    net = DimensionWise(1)
    assert net.codebook_size == 64 and net.bits == 6
    zero = net(torch.zeros(1, 1))
    assert zero.indices.item() == 31 and zero.codes.item() == pytest.approx(-0.0326, abs=1e-4)
    far = net(torch.tensor([[-99.0], [99.0]]))
    assert far.indices.flatten().tolist() == [0, 63]
    assert far.codes[1].item() == pytest.approx(4.0618, abs=1e-4)
    x = draw(200_000, 1)
    errors = {
        (bits, end): ((DimensionWise(1, 2**bits, (-end, end))(x).codes - x) ** 2).mean().item()
        for bits, end in [(3, 5), (4, 5), (5, 5), (6, 5), (6, 2), (6, 3), (6, 4), (2, 4), (2, 5)]
    }
    told = {(3, 5): 0.0406, (4, 5): 0.0103, (5, 5): 0.0026, (6, 5): 0.00066, (6, 2): 0.034}
    told |= {(6, 3): 0.0042, (6, 4): 0.00093, (2, 4): 0.125, (2, 5): 0.159}
    for key, value in told.items():
        assert errors[key] == pytest.approx(value, rel=0.05), key


def test_values_are_used_alike_where_the_range_fits():
    """Half the range is r deviations: then each value is for one in B latents, nearly."""
    x = draw(100_000, 1) * 5 / 3
    counts = DimensionWise(1, 8)(x).indices.flatten().bincount(minlength=8) / 100_000
    assert (counts - 1 / 8).abs().max() < 0.03
    out = DimensionWise(1, 8)(x)
    assert out.usage == 1 and out.loss == 0
    assert DimensionWise(2, 8)(torch.zeros(5, 2)).usage.item() == 2 / 16


def test_limits_of_each_channel():
    x = draw(5000, 3) * torch.tensor([0.1, 1.0, 9.0]) + torch.tensor([4.0, 0.0, -30.0])
    mean, deviation = x.mean(dim=0), x.std(dim=0)
    limits = torch.stack([mean - 3 * deviation, mean + 3 * deviation], dim=1)
    fitted = DimensionWise(3, 64, limits)
    error = ((fitted(x).codes - x) ** 2).mean(dim=0) / deviation**2
    assert (error < 0.006).all() and fitted(x).usage == 1
    plain = ((DimensionWise(3)(x).codes - x) ** 2).mean(dim=0) / deviation**2
    assert plain[2] > 1
    one = DimensionWise(1, 64, limits[2:])
    assert torch.equal(one(x[:, 2:]).indices, fitted(x).indices[:, 2:])


def test_the_gradient_passes_straight_through():
    x, upstream = (9 * draw(7, 4)).requires_grad_(), draw(7, 4, seed=1)
    (grad,) = torch.autograd.grad(DimensionWise(4)(x).codes, x, upstream)
    assert torch.equal(grad, upstream)


def test_a_module_in_half_precision_searches_as_before():
    x = draw(3000, 4).bfloat16()
    want = DimensionWise(4)(x).indices
    net = DimensionWise(4).bfloat16()
    assert torch.equal(net(x).indices, want)
    assert torch.equal(net.float()(x).indices, want)


def test_as_many_levels_as_have_a_width():
    assert gaussian_bins(740)[1].diff().min() > 0
    with pytest.raises(ValueError, match="levels=741: .* beyond r=3.0, at most 740"):
        gaussian_bins(741)
    tail = math.erfc(2 / math.sqrt(2)) / 2
    with pytest.raises(ValueError, match=f"at most {math.floor(1 / tail)} levels"):
        DimensionWise(2, 64, r=2)


@pytest.mark.parametrize("call, message", [
    (lambda: DimensionWise(0), "dim=0"),
    (lambda: DimensionWise(2, 1), "levels=1: needs an integer of at least 2"),
    (lambda: DimensionWise(2, r=0), "r=0 .* above 0"),
    (lambda: DimensionWise(2, limits=(1, 1)), r"limits=\(1.0, 1.0\): needs low < high"),
    (lambda: DimensionWise(2, limits=(1, 2, 3)), "limits=.*needs a sequence of 2 numbers"),
    (lambda: DimensionWise(2, limits=((0, 1),)), "limits has 1 pairs but dim=2"),
    (lambda: DimensionWise(2, limits=5), "limits=5: needs"),
    (lambda: DimensionWise(2)(torch.zeros(2, 3)), r"x has shape \(2, 3\) but needs \(..., 2\)"),
    (lambda: DimensionWise(2)(torch.zeros(0, 2)), "not empty"),
    (lambda: DimensionWise(2)(torch.full((1, 2), torch.inf)), "x .* non-finite"),
    (lambda: DimensionWise(2).decode(torch.tensor([[0, 64]])), r"indices\[0, 1\]=64"),
    (lambda: DimensionWise(2).decode(torch.tensor([0, 1, 2])), r"needs \(..., 2\), one index a"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_values_lie_where_a_parameter_would_be_made():
    with torch.device("meta"):
        net = DimensionWise(3, 8)
    assert all(buffer.is_meta for buffer in net.buffers())
    out = net(torch.zeros(2, 3, device="meta"))
    assert out.indices.is_meta and net.decode(out.indices).is_meta
