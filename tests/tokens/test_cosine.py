"""Unit vectors and cosines: of any length, symmetric to the bit, against float64."""

import pytest
import torch

from vtlib.tokens import redundancy
from vtlib.tokens.cosine import cosines, unit, within_range


def seeded(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("length", [1e-8, 1.0, 1e18, 1e25, 1e37])
def test_any_length(length):
    """Squares overflow from 1e19 on."""
    x = seeded(2, 30, 8).clamp(-3, 3)
    want = torch.nn.functional.normalize(x.double(), dim=-1).float()
    for tokens in (x * length, torch.cat([x[:, :1], x[:, 1:] * length], dim=1)):
        got = unit(tokens)
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
        torch.testing.assert_close(cosines(tokens), want @ want.mT, atol=1e-6, rtol=0)
        torch.testing.assert_close(redundancy(tokens), redundancy(x), atol=1e-6, rtol=0)


def test_zero_tokens_stay_zero():
    x = seeded(1, 5, 4) * 1e30
    x[0, 2] = 0
    assert not unit(x)[0, 2].any() and not cosines(x)[0, 2].any()
    assert unit(x).isfinite().all()


@pytest.mark.parametrize("num_tokens", [2, 96, 98, 130, 134, 258, 386])
def test_exact_copies_have_the_same_cosines(num_tokens):
    """To the bit, so that ties are ties: no token may end up in a band of a few rows."""
    x = seeded(1, num_tokens // 2, 64)
    got = cosines(torch.cat([x, x], dim=1))[0]
    assert torch.equal(*got.chunk(2)) and torch.equal(*got.chunk(2, dim=1))


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 9, 127, 129, 300, 577])
def test_symmetric_to_the_bit(num_tokens):
    """Bands that fit, bands that do not, and one band."""
    x = seeded(2, num_tokens, 17)
    got = cosines(x)
    assert torch.equal(got, got.mT)
    want = torch.nn.functional.normalize(x.double(), dim=-1)
    torch.testing.assert_close(got.double(), want @ want.mT, atol=1e-6, rtol=0)


def test_within_range():
    x = seeded(2, 5, 4)
    assert within_range(x) is x
    x[1, 2, 3] = -1e30
    small = within_range(x)
    assert small.abs().max() == 1
    torch.testing.assert_close(small.double() * 1e30, x.double(), rtol=1e-6, atol=0)


def test_compiled_and_meta():
    run = torch.compile(unit, backend="eager", fullgraph=True)
    for length in (1.0, 1e30):
        x = seeded(2, 9, 4) * length
        assert torch.equal(run(x), unit(x))
    assert cosines(torch.empty(2, 9, 4, device="meta")).shape == (2, 9, 9)
    assert unit(seeded(1, 3, 4).half()).dtype == torch.float32
