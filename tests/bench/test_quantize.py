"""What the bench of vector quantisation compares computes the same thing, in a tenth of the
memory; what the library does otherwise is seen here too."""

import torch

from .quantize import against_library, memory_of_codes, pair


def frozen(dim, codes, **options):
    ours, theirs = pair(dim, codes, **options)
    ours.frozen = True
    return ours, theirs


def test_both_compute_the_same():
    torch.manual_seed(0)
    ours, theirs = frozen(8, 60)
    x = torch.randn(2, 40, 8).requires_grad_()
    upstream = torch.randn(2, 40, 8)
    out, (codes, indices, loss) = ours(x), theirs(x, freeze_codebook=True)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.codes, codes)
    torch.testing.assert_close(out.loss, loss)
    wants = torch.autograd.grad((codes * upstream).sum() + loss, x)
    gots = torch.autograd.grad((out.codes * upstream).sum() + out.loss, x)
    torch.testing.assert_close(gots, wants, atol=1e-4, rtol=1e-4)


def test_levels_agree_and_the_library_multiplies_the_gradient():
    torch.manual_seed(0)
    ours, theirs = frozen(8, 60, levels=4)
    for layer in theirs.layers:
        layer.rotation_trick = False
    for quantizer in ours.quantizers:
        quantizer.gradient = "straight_through"
    x = torch.randn(2, 40, 8).requires_grad_()
    out, (codes, indices, loss) = ours(x), theirs(x, freeze_codebook=True)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.codes, codes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.loss, loss.mean())
    (own,) = torch.autograd.grad(out.codes.sum(), x)
    (other,) = torch.autograd.grad(codes.sum(), x)
    assert torch.equal(own, torch.ones_like(x))
    torch.testing.assert_close(other, torch.full_like(x, 4.0))


def test_a_tenth_of_the_memory_and_half_of_the_time():
    rows = [*against_library(2048, 4096), *against_library(2048, 4096, (8,), levels=2)]
    for _, _, _, time, _, _, memory in rows:
        assert float(memory) < 0.25 and float(time) < 0.7, rows


def test_memory_is_flat_in_the_number_of_codes():
    ((_, small, large),) = memory_of_codes(4096, (2048, 32768), (8,))
    assert float(large) < float(small) + 16
