"""The Gaussian posterior of a KL autoencoder: against torch's distributions, and its gradients."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vtlib.quantize import DiagonalGaussian, KLBottleneck

from ..settings import SETTINGS


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_against_torchs_distributions():
    posterior = DiagonalGaussian.of(draw(3, 4, 5, 6).double())
    other = DiagonalGaussian.of(draw(3, 4, 5, 6, seed=1).double())
    assert posterior.mean.shape == (3, 4, 5, 3)
    mine, theirs = (Normal(p.mean, p.std) for p in (posterior, other))
    unit = Normal(torch.zeros(()).double(), torch.ones(()).double())
    torch.testing.assert_close(posterior.kl(), kl_divergence(mine, unit).sum(dim=(1, 2, 3)))
    torch.testing.assert_close(posterior.kl(other), kl_divergence(mine, theirs).sum(dim=(1, 2, 3)))
    latents = draw(3, 4, 5, 3, seed=2).double()
    torch.testing.assert_close(posterior.nll(latents), -mine.log_prob(latents).sum(dim=(1, 2, 3)))
    torch.testing.assert_close(posterior.var, posterior.std**2)
    assert torch.equal(posterior.kl(posterior), torch.zeros(3).double())


def test_means_come_before_log_variances_and_those_are_clamped():
    parameters = torch.tensor([[1.0, 2.0, -40.0, 25.0]])
    posterior = DiagonalGaussian.of(parameters)
    assert posterior.mean.tolist() == [[1, 2]] and posterior.logvar.tolist() == [[-30, 20]]
    assert posterior.mode() is posterior.mean and posterior.kl().isfinite().all()
    assert DiagonalGaussian.of(torch.zeros(2, 6)).kl().tolist() == [0, 0]


def test_small_divergences_are_not_lost_in_float32():
    """exp(v) - 1 - v by its three terms is wrong in all digits at v = 1e-4."""
    posterior = DiagonalGaussian.of(torch.tensor([[0.0, 1e-4]]))
    assert posterior.kl().item() == pytest.approx(0.25e-8, rel=1e-3)


def test_samples():
    posterior = DiagonalGaussian.of(torch.tensor([0.5, -2.0, 0.0, 1.0]).expand(40_000, 4))
    one, two = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, posterior.sample(torch.Generator().manual_seed(4)))
    torch.testing.assert_close(one.mean(dim=0), posterior.mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(one.std(dim=0), posterior.std[0], atol=0.03, rtol=0)
    before = torch.get_rng_state()
    posterior.sample(torch.Generator().manual_seed(3))
    assert torch.equal(before, torch.get_rng_state())


def test_the_bottleneck():
    net, parameters = KLBottleneck(weight=0.5), draw(3, 4, 10)
    out = net(parameters, generator=torch.Generator().manual_seed(0))
    again = net(parameters, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out.codes, again.codes) and out.codes.shape == (3, 4, 5)
    torch.testing.assert_close(out.loss, 0.5 * out.posterior.kl().mean())
    quiet = net.eval()(parameters)
    assert torch.equal(quiet.codes, quiet.posterior.mean) and torch.equal(quiet.loss, out.loss)
    drawn = net(parameters, sample=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn.codes, out.codes)
    assert not hasattr(out, "indices") and not hasattr(net, "decode")


def test_gradients():
    parameters = draw(3, 4, 10).requires_grad_()
    out = KLBottleneck(1.0)(parameters, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(out.codes.sum() + out.loss, parameters)
    assert grad.isfinite().all() and (grad != 0).all()
    (mean,) = torch.autograd.grad(KLBottleneck(1.0).eval()(parameters).loss, parameters)
    torch.testing.assert_close(mean[..., :5], parameters.detach()[..., :5] / 3)


def test_a_mask_changes_nothing_for_the_tokens_that_count():
    parameters, mask = draw(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    mask[0, 2:] = False
    posterior = DiagonalGaussian.of(parameters)
    short = DiagonalGaussian.of(parameters[:1, :2])
    torch.testing.assert_close(posterior.kl(mask=mask)[:1], short.kl())
    assert torch.equal(posterior.kl(mask=mask)[1], posterior.kl()[1])
    latents = draw(2, 6, 4, seed=1)
    torch.testing.assert_close(posterior.nll(latents, mask)[:1], short.nll(latents[:1, :2]))


def test_half_precision_sums_in_float32():
    parameters = draw(2, 500, 8).bfloat16()
    want = KLBottleneck().eval()(parameters.float())
    for run in (parameters, parameters.float()):
        with torch.autocast("cpu", torch.bfloat16):
            out = KLBottleneck().eval()(run)
        assert torch.equal(out.loss, want.loss) and out.codes.dtype == run.dtype
    assert KLBottleneck()(parameters).codes.dtype == torch.bfloat16


class Codes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = KLBottleneck().eval()

    def forward(self, x):
        out = self.net(x)
        return out.codes, out.loss


def test_meta_compile_and_export_with_a_free_batch():
    free = torch.export.Dim("batch", min=2)
    exported = torch.export.export(Codes(), (draw(2, 7, 4),), dynamic_shapes=({0: free},)).module()
    compiled = torch.compile(Codes(), backend="eager", fullgraph=True)
    x = draw(5, 7, 4)
    for run in (exported, compiled):
        for got, want in zip(run(x), Codes()(x), strict=True):
            torch.testing.assert_close(got, want)
    training = torch.compile(KLBottleneck(), backend="eager", fullgraph=True)
    assert training(x).codes.shape == (5, 7, 2)
    far = KLBottleneck()(torch.randn(2, 7, 4, device="meta"))
    assert far.codes.shape == (2, 7, 2) and far.loss.shape == ()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_torchs_settings_change_nothing(setting):
    x = draw(2, 3, 4)
    want = KLBottleneck()(x, generator=torch.Generator("cpu").manual_seed(0))
    with setting():
        got = KLBottleneck()(x, generator=torch.Generator("cpu").manual_seed(0))
    assert torch.equal(got.codes, want.codes) and torch.equal(got.loss, want.loss)


@pytest.mark.parametrize("call, message", [
    (lambda: KLBottleneck(-1), "weight=-1"),
    (lambda: KLBottleneck()(torch.zeros(2, 5)), r"parameters has shape \(2, 5\) but needs"),
    (lambda: KLBottleneck()(torch.zeros(4)), "as many means as log-variances"),
    (lambda: KLBottleneck()(torch.zeros(0, 4)), "not empty"),
    (lambda: KLBottleneck()(torch.full((1, 4), torch.nan)), "parameters .* non-finite"),
    (lambda: KLBottleneck()(torch.zeros(2, 4), generator=3), "generator is a int"),
    (lambda: DiagonalGaussian.of(draw(2, 4)).kl(3), "other is a int: needs a DiagonalGaussian"),
    (lambda: DiagonalGaussian.of(draw(2, 4)).nll(draw(2, 4)), r"latents has shape \(2, 4\)"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
