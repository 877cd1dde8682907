"""Density, variation, entropy and Gini against loops, closed forms, and scipy's estimate."""

import math

import numpy as np
import pytest
import torch

from vtlib.tokenizers.glotok_uniformity import (
    Uniformity,
    density,
    entropy,
    gini,
    principal,
    uniformity,
    variation,
)

from ..wrong import raw_errors


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_density_is_that_of_scipy(dim):
    stats = pytest.importorskip("scipy.stats")
    points = seeded(80, dim) @ (torch.eye(dim, dtype=torch.float64) + 0.7) + 3
    for bandwidth in (None, 0.3):
        want = stats.gaussian_kde(points.numpy().T, bw_method=bandwidth)(points.numpy().T)
        np.testing.assert_allclose(density(points, bandwidth).numpy(), want, rtol=1e-9)


def test_numbers_of_a_few_values_by_hand():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert variation(values).item() == pytest.approx(math.sqrt(3.5) / 3)
    share = [1 / 12, 2 / 12, 3 / 12, 6 / 12]
    want = -sum(p * math.log(p) for p in share) / math.log(4)
    assert entropy(values).item() == pytest.approx(want)
    pairs = sum(abs(a - b) for a in values.tolist() for b in values.tolist())
    assert gini(values).item() == pytest.approx(pairs / (2 * 16 * 3))
    assert gini(values.flip(0)).item() == pytest.approx(pairs / (2 * 16 * 3))


def test_the_ends_of_each_scale():
    even, alone = torch.ones(10), torch.eye(10)[0]
    assert variation(even) == 0 and gini(even).abs() < 1e-6
    assert entropy(even).item() == pytest.approx(1) and entropy(alone) == 0
    assert gini(alone).item() == pytest.approx(0.9)


def test_principal_components_are_those_of_the_svd():
    latents = seeded(50, 8) * torch.arange(1.0, 9)
    got = principal(latents)
    u, s, _ = torch.linalg.svd(latents - latents.mean(0), full_matrices=False)
    torch.testing.assert_close(got.abs(), (u * s)[:, :2].abs())


def disc(count=400):
    radius = torch.rand(count, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    angle = seeded(count, 1) * 10
    return radius.sqrt() * torch.cat([angle.cos(), angle.sin()], dim=1)


def test_a_crowd_is_less_even_than_a_disc():
    even = uniformity(disc())
    uneven = uniformity(torch.cat([disc()[:100] * 3, disc()[100:] * 0.2]))
    assert isinstance(even, Uniformity)
    assert even.variation < uneven.variation and even.gini < uneven.gini
    assert even.entropy > uneven.entropy


def test_lumps_of_one_size_pass_for_even():
    """What the numbers do not see: density is asked where points are, and in equal lumps each point
    has as many neighbours as any other."""
    lumps = seeded(4, 2, seed=2)[torch.arange(400) % 4] + 0.1 * disc()
    assert uniformity(lumps).variation < 0.5 * uniformity(disc()).variation


def test_it_looks_at_a_turned_and_stretched_cloud_alike():
    latents = seeded(60, 8)
    turn = torch.linalg.qr(seeded(8, 8, seed=2)).Q
    want, got = uniformity(latents), uniformity(5 * latents @ turn + 2)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b)


def test_half_precision_is_computed_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        assert uniformity(seeded(30, 4).bfloat16()).gini.dtype == torch.float32


def test_bad_input_is_told():
    points = seeded(9, 2)
    for function, fits in [
        (uniformity, dict(latents=points, bandwidth=0.5)),
        (principal, dict(latents=points, num_components=1)),
        (density, dict(points=points, bandwidth=0.5)),
        (variation, dict(values=points[:, 0])),
        (entropy, dict(values=points[:, 0].abs())),
        (gini, dict(values=points[:, 0].abs())),
    ]:
        assert raw_errors(function, fits) == []
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        density(torch.ones(5, 2))
