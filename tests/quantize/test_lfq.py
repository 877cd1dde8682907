"""Lookup-free and binary spherical quantisation: signs, entropies against all codes written out,
and gradients that do not vanish."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vtlib.quantize import BSQ, LFQ
from vtlib.quantize.lfq import bit_entropy, code_probabilities, entropy


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corners(dim):
    """All codes (2^D, D) of -1 and 1, the first channel fastest."""
    rows = [row[::-1] for row in itertools.product((-1.0, 1.0), repeat=dim)]
    return torch.tensor(rows, dtype=torch.float64)


def entropies(u, codes, temperature):
    """(mean H(q(. | u)), H(mean q)) over all codes, with every distance written out."""
    q = torch.softmax(-((u[:, None] - codes) ** 2).sum(dim=-1) / temperature, dim=-1)
    mean = q.mean(dim=0)
    return torch.special.entr(q).sum(dim=-1).mean(), torch.special.entr(mean).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("dim", [1, 2, 5, 6])
@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_losses_against_all_codes_written_out(kind, dim, temperature):
    x = draw(40, dim)
    net = kind(dim, None, temperature, 0.5, 0.3, 1.5).double()
    u, length = (F.normalize(x, dim=-1), dim**-0.5) if kind is BSQ else (x, 1.0)
    sample, codebook = entropies(u, length * corners(dim), temperature)
    commitment = ((u - length * torch.where(x > 0, 1.0, -1.0)) ** 2).mean()
    terms = net.terms(x)
    torch.testing.assert_close(terms.commitment, commitment)
    torch.testing.assert_close(terms.sample_entropy, sample)
    torch.testing.assert_close(terms.codebook_entropy, codebook)
    torch.testing.assert_close(net(x).loss, 0.5 * commitment + 0.3 * (sample - 1.5 * codebook))
    assert net(x).loss >= -0.3 * 1.5 * dim * math.log(2)


@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_groups_add_up_to_no_less_than_the_whole(kind):
    x = draw(60, 12) @ draw(12, 12, seed=1)
    whole, values = kind(12).double().terms(x), []
    for size in (1, 2, 3, 4, 6, 12):
        terms = kind(12, group_size=size).double().terms(x)
        torch.testing.assert_close(terms.sample_entropy, whole.sample_entropy)
        values.append(terms.codebook_entropy.item())
    assert values == sorted(values, reverse=True) and values[-1] < values[0]
    assert values[-1] == pytest.approx(whole.codebook_entropy.item())
    net = kind(4, group_size=2).double()
    u = net.project(x[:, :4])
    halves = [
        entropies(u[:, part], net.length * corners(2), 1.0) for part in (slice(0, 2), slice(2, 4))
    ]
    got = net.terms(x[:, :4])
    torch.testing.assert_close(got.sample_entropy, halves[0][0] + halves[1][0])
    torch.testing.assert_close(got.codebook_entropy, halves[0][1] + halves[1][1])


def test_probabilities_are_numbered_as_indices_are():
    net = LFQ(5, temperature=0.02).double()
    x = draw(1, 5).sign() * 0.7
    weight = torch.ones(1, dtype=torch.float64)
    probabilities = code_probabilities(net.logits(net.project(x)), 5, weight)
    assert probabilities.shape == (1, 32) and probabilities.argmax() == net(x).indices[0]
    torch.testing.assert_close(probabilities.sum().item(), 1.0)
    pairs = code_probabilities(net.logits(net.project(x))[:, :4], 2, weight)
    assert pairs.shape == (2, 4)
    assert (pairs.argmax(dim=1) * torch.tensor([1, 4])).sum() == net(x).indices[0] % 16


def test_signs():
    x = torch.tensor([[0.0, -0.0, 1e-30, -1e-30, 5.0]])
    assert LFQ(5)(x).codes.tolist() == [[-1, -1, 1, -1, 1]]
    assert LFQ(5)(x).indices.tolist() == [4 + 16]
    torch.testing.assert_close(BSQ(5)(x).codes, LFQ(5)(x).codes / math.sqrt(5))
    everything = torch.arange(32)
    assert torch.equal(LFQ(5).decode(everything).double(), corners(5))


@pytest.mark.parametrize("kind, dim, size", [(LFQ, 18, None), (BSQ, 36, 9), (LFQ, 62, 2)])
def test_long_codes(kind, dim, size):
    net = kind(dim, group_size=size)
    x = draw(500, dim).float().requires_grad_()
    out = net(x)
    assert net.codebook_size == 2**dim and torch.equal(net.decode(out.indices), out.codes)
    assert out.indices.max() > 0.9 * 2**dim and out.loss.isfinite()
    assert torch.autograd.grad(out.loss, x)[0].isfinite().all()


class Largest(TorchDispatchMode):
    """The most numbers that a tensor made inside holds."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_no_number_for_each_vector_and_each_code():
    x = draw(1000, 18).float().requires_grad_()
    with Largest() as largest:
        LFQ(18)(x).loss.backward()
    assert largest.numbers <= 1000 * 2**9 and largest.numbers < 1000 * 2**18 / 500


# ---------------------------------------------------------------------------------------- gradient
def test_no_vector_is_without_a_gradient_of_the_entropies():
    """At a temperature of 0.01, as elsewhere, a fifth of the vectors has exactly none."""
    x = draw(4096, 8).float().requires_grad_()
    dead = {}
    for temperature in (1.0, 0.01):
        net = LFQ(8, temperature=temperature, commitment_weight=0.0)
        (grad,) = torch.autograd.grad(net(x).loss, x)
        dead[temperature] = (grad == 0).all(dim=-1).float().mean().item()
        assert grad.isfinite().all()
        if temperature == 1:
            assert (grad != 0).all() and net.terms(3 * x).sample_entropy > 0.1
    assert dead[1.0] == 0 and 0.15 < dead[0.01] < 0.25
    far = (5 * x).detach().requires_grad_()
    (grad,) = torch.autograd.grad(LFQ(8).terms(far).sample_entropy, far)
    assert (grad != 0).all()


def test_entropy_of_a_bit_and_its_gradient_far_from_even():
    logits = torch.tensor([-60.0, -20.0, -3.0, 0.0, 0.5, 12.0, 40.0, 80.0], requires_grad=True)
    exact = logits.detach().double().requires_grad_()
    p, q = torch.sigmoid(exact), torch.sigmoid(-exact)
    want = -p * F.logsigmoid(exact) - q * F.logsigmoid(-exact)
    got = bit_entropy(logits)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(got.sum(), logits)
    torch.testing.assert_close(grad.double(), (-exact * p * q).detach(), rtol=1e-4, atol=0)


def test_entropy_with_empty_codes():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    assert entropy(p).item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(entropy(p).sum(), p)[0].isfinite().all()


@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_the_loss_spreads_vectors_over_the_codes(kind):
    x = (1 + 0.3 * draw(512, 6).float()).requires_grad_()
    net = kind(6, commitment_weight=0.0)
    before = net(x).usage
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        net(x).loss.backward()
        optimizer.step()
    assert before < 0.1 and net(x).usage > 0.8


# ---------------------------------------------------------------------------------------- sphere
def test_codes_and_latents_of_bsq_are_unit_vectors():
    net, x = BSQ(6), draw(200, 6).float()
    u, codes = net.project(x), net(x).codes
    for vectors in (u, codes):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(200))
    assert ((u - codes) ** 2).sum(dim=-1).max() <= 2 - 2 / math.sqrt(6)
    axis = torch.eye(6)[:1]
    error = ((net.project(axis) - net(axis).codes) ** 2).sum()
    assert error.item() == pytest.approx(2 - 2 / math.sqrt(6))
    for factor in (1e-40, 1e-25, 7.0, 1e37):
        assert torch.equal(net(factor * x).indices, net(x).indices)
        tolerance = 1e-2 if factor == 1e-40 else 1e-6
        torch.testing.assert_close(net.project(factor * x), u, rtol=0, atol=tolerance)


def test_a_zero_vector_has_a_code_and_a_gradient_as_it_is():
    x = torch.zeros(2, 4, requires_grad=True)
    out = BSQ(4)(x)
    assert out.indices.tolist() == [0, 0] and (out.codes == -0.5).all()
    (grad,) = torch.autograd.grad(out.codes.sum(), x)
    assert torch.equal(grad, torch.ones(2, 4))


def test_the_gradient_of_bsq_is_that_of_the_projection():
    x, upstream = draw(9, 5).requires_grad_(), draw(9, 5, seed=1)
    (got,) = torch.autograd.grad(BSQ(5).double()(x).codes, x, upstream)
    (want,) = torch.autograd.grad(F.normalize(x, dim=-1), x, upstream)
    torch.testing.assert_close(got, want)
    (plain,) = torch.autograd.grad(LFQ(5).double()(x).codes, x, upstream)
    assert torch.equal(plain, upstream)


@pytest.mark.parametrize("call, message", [
    (lambda: LFQ(0), "dim=0: needs an integer from 1 to 62"),
    (lambda: LFQ(63), "dim=63"),
    (lambda: LFQ(36), "None is for 20 .* needs a group_size of 1, 2, 3, 4, 6, 9, 12, 18"),
    (lambda: BSQ(36, group_size=36), "group_size=36: dim=36 needs a group_size of 1, 2"),
    (lambda: LFQ(6, group_size=4), "group_size=4: dim=6 needs a group_size of 1, 2, 3, 6"),
    (lambda: LFQ(4, temperature=0), "temperature=0 .* above 0"),
    (lambda: LFQ(4, entropy_weight=-1), "entropy_weight=-1"),
    (lambda: LFQ(4)(torch.zeros(2, 3)), r"x has shape \(2, 3\) but needs \(..., 4\)"),
    (lambda: LFQ(4)(torch.zeros(0, 4)), "not empty"),
    (lambda: BSQ(2)(torch.tensor([[0.0, torch.nan]])), "x .* non-finite"),
    (lambda: LFQ(4).decode(torch.tensor([16])), r"indices\[0\]=16 .* in 0 ... 15"),
    (lambda: LFQ(4).codes(torch.tensor([[2, 0, 0, 0]])), r"digits\[0, 0\]=2"),
    (lambda: code_probabilities(torch.zeros(2, 6), 4, torch.ones(2)), "does not divide D = 6"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
