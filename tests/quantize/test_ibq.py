"""Index backpropagation against the formula with a whole table of scores, and what it is for: a
gradient for every code."""

import pytest
import torch
import torch.nn.functional as F

from tests.wrong import raw_errors
from vtlib.quantize import IBQ, Quantized, VectorQuantizer, ibq

from ..settings import SETTINGS, default_dtype
from .both import check_meta_compile_export

TERMS = ("soft", "commitment", "codebook", "sample_entropy", "codebook_entropy")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(dim=4, size=12, **options):
    net = IBQ(dim, size, **options)
    with torch.no_grad():
        net.codebook.copy_(draw(size, dim, seed=7))
    return net


@pytest.fixture(params=[None, 4.0], ids=["products", "norm"])
def net(request):
    return make(norm=request.param)


def written_out(net, x, mask):
    """(codes, terms) by one-hot - sg(p) + p, all scores at once."""
    def scaled(v):
        return v if net.norm is None else net.norm * F.normalize(v, dim=-1)

    z, e, weight = scaled(x).flatten(0, -2), scaled(net.codebook), mask.flatten().float()
    scores = z @ e.T
    p = scores.softmax(1)
    hard = F.one_hot(scores.argmax(1), len(e)).to(p.dtype)
    codes, chosen = (hard - p.detach() + p) @ e, hard @ e

    def mean(rows):
        return (rows * weight).sum() / weight.sum()

    q = (scores / net.entropy_temperature).softmax(1)
    pairs = (codes, z), (z, chosen.detach()), (chosen, z.detach())
    squares = [mean((a - b).square().mean(1)) for a, b in pairs]
    share = (q * weight[:, None]).sum(0) / weight.sum()
    entropies = [mean(torch.special.entr(q).sum(1)), torch.special.entr(share).sum()]
    return codes.reshape(x.shape), squares + entropies


@pytest.mark.parametrize("block", [ibq.BLOCK, 36])
def test_against_the_formula(net, block, monkeypatch):
    """Values and gradients, of codes and of the loss, in one piece and in several."""
    monkeypatch.setattr(ibq, "BLOCK", block)
    net.entropy_temperature = 0.5
    x, mask = draw(2, 5, 4).requires_grad_(), draw(2, 5, seed=1) > -0.5
    out, terms = net(x, mask), net.terms(x, mask)
    codes, want = written_out(net, x, mask)
    torch.testing.assert_close(out.codes, codes)
    torch.testing.assert_close(list(terms), want)
    loss = want[0] + want[1] + 0.25 * want[2] + 0.05 * (want[3] - want[4])
    torch.testing.assert_close(out.loss, loss)
    pairs = (out.codes * draw(2, 5, 4, seed=2), codes * draw(2, 5, 4, seed=2)), (out.loss, loss)
    for got, wanted in pairs:
        both = [torch.autograd.grad(v.sum(), (x, net.codebook), retain_graph=True)
                for v in (got, wanted)]
        torch.testing.assert_close(*both, atol=1e-5, rtol=1e-4)


def test_every_code_gets_a_gradient_and_straight_through_reaches_none():
    net, x = make(), draw(3, 2, 4)
    plain = VectorQuantizer(4, 12, learn="gradient")
    with torch.no_grad():
        plain.codebook.copy_(net.codebook)
    out = net(x)
    (dense,) = torch.autograd.grad(out.codes.sum(), net.codebook)
    assert out.usage < 0.6 and (dense.abs().sum(1) > 0).all()
    x.requires_grad_()
    codes = plain(x).codes
    (none,) = torch.autograd.grad(codes.sum(), plain.codebook, allow_unused=True)
    assert none is None
    (few,) = torch.autograd.grad(plain(x).loss, plain.codebook)
    assert 0 < (few.abs().sum(1) > 0).sum() <= 6


@pytest.mark.parametrize("training", [True, False])
def test_codes_are_the_best_ones_to_the_bit(net, training):
    net.train(training)
    for x in (draw(3, 5, 4), 30 * draw(2, 2, 3, 4), draw(4)):
        out = net(x)
        assert isinstance(out, Quantized) and out.indices.dtype == torch.int64
        assert torch.equal(net.decode(out.indices), out.codes) and out.codes.shape == x.shape
        assert torch.equal(out.codes, net.table()[out.indices])
        best = (net.normalised(x) @ net.table().T).argmax(-1)
        assert torch.equal(out.indices, best)
        with torch.no_grad():
            again = net(x)
        assert torch.equal(again.codes, out.codes) and torch.equal(again.loss, out.loss)
        assert out.usage == len(out.indices.unique()) / 12


def test_scores_are_products_not_distances():
    """A long code far away wins over the code at the very place; not once lengths are the same."""
    x, codebook = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    for norm, best in ((None, 1), (4, 0)):
        net = IBQ(2, 2, norm=norm)
        net.codebook.data.copy_(codebook)
        assert net(x).indices.tolist() == [best]
    assert torch.allclose(net(x).codes, torch.tensor([[4.0, 0.0]]))


def test_nothing_is_lost_at_the_codes():
    """z = e_index and one-hot p: no loss, and no gradient of it."""
    net = IBQ(3, 3, entropy_weight=0.0)
    net.codebook.data.copy_(20 * torch.eye(3))
    x = net.codebook.detach()[[2, 0, 1, 1]].requires_grad_()
    out = net(x)
    assert out.indices.tolist() == [2, 0, 1, 1] and out.loss == 0
    assert all(term == 0 for term in net.terms(x)[:3])
    grads = torch.autograd.grad(out.loss, (x, net.codebook))
    assert not any(grad.any() for grad in grads)


def test_three_terms_and_where_they_pull():
    net, x = make(), draw(6, 4).requires_grad_()
    terms = net.terms(x)
    assert terms.soft == terms.commitment == terms.codebook
    grads = {name: torch.autograd.grad(
        getattr(terms, name), (x, net.codebook), retain_graph=True, allow_unused=True
    ) for name in TERMS}
    assert grads["commitment"][1] is None and grads["codebook"][0] is None
    rows = grads["codebook"][1].abs().sum(1) > 0
    assert rows.sum() == len(net(x).indices.unique())
    for name in ("soft", "sample_entropy", "codebook_entropy"):
        assert all(grad.any() for grad in grads[name])
    plain = make(entropy_weight=0.0, codebook_weight=0.0)
    torch.testing.assert_close(plain(x).loss, 2 * terms.commitment)


def test_vectors_of_a_mask_change_nothing(net):
    x, mask = draw(3, 4, 4), draw(3, 4, seed=1) > 0
    far = torch.where(mask[..., None], x, 9 * draw(3, 4, 4, seed=2))
    got, other, alone = net(x, mask), net(far, mask), net(x[mask])
    assert torch.equal(got.loss, other.loss) and torch.equal(got.usage, alone.usage)
    torch.testing.assert_close(got.loss, alone.loss)
    torch.testing.assert_close(net(x, torch.ones_like(mask)).loss, net(x).loss)


def test_no_table_of_all_scores_is_kept(monkeypatch):
    net, x, sizes = make(4, 64), draw(50, 4).requires_grad_(), []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    for block, most in ((64 * 8, 64 * 8), (64 * 50, 64 * 50)):
        monkeypatch.setattr(ibq, "BLOCK", block)
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            net(x)
        assert max(sizes) <= most
    assert max(sizes) == most


def test_a_warm_start_spreads_the_codes():
    centres = 5 * F.normalize(draw(8, 6), dim=1)
    x = centres.repeat(20, 1) + 0.05 * draw(160, 6, seed=1)
    for norm in (None, 4.0):
        net = IBQ(6, 8, norm=norm)
        assert net(x + 20).usage < 0.5
        net.warm_start(x)
        assert net(x).usage > 0.8 and net.codebook.requires_grad
        before = net.codebook.clone()
        net.warm_start(x)
        assert torch.equal(before, net.codebook)
        if norm is not None:
            torch.testing.assert_close(net.codebook.norm(dim=1), torch.full((8,), 4.0))


def test_no_gradient_no_softmax(monkeypatch):
    net, x = make(), draw(3, 4)
    monkeypatch.setattr(ibq, "soft_codes", None)
    with torch.no_grad():
        net(x)
    net.requires_grad_(False)
    assert not net(x).codes.requires_grad
    with pytest.raises(TypeError):
        net(x.requires_grad_())


def test_a_fixed_codebook_still_hands_a_gradient_to_x(net):
    net.requires_grad_(False)
    x = draw(3, 4).requires_grad_()
    (grad,) = torch.autograd.grad((net(x).codes * draw(3, 4, seed=1)).sum(), x)
    assert grad.isfinite().all() and (grad != 0).all()


def test_precision(net):
    x = draw(50, 4).bfloat16()
    want = net(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = net(x), net(x.float())
    for out in (net(x), *inside):
        assert torch.equal(out.indices, want.indices) and torch.equal(out.codes, want.codes)
        assert torch.equal(out.loss, want.loss) and out.loss.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float64):
        out = net.to(dtype)(x)
        assert out.codes.dtype == dtype and torch.equal(net.decode(out.indices), out.codes)


def test_meta_compile_and_export_with_a_free_batch(net):
    check_meta_compile_export(net, draw(5, 7, 4), draw(5, 7) > -1)


def test_torchs_settings_change_nothing(net):
    x = draw(6, 4)
    want = net(x)
    for setting in SETTINGS:
        with setting():
            out = net(x)
        assert torch.equal(out.codes, want.codes) and torch.equal(out.loss, want.loss)
    with default_dtype():
        assert IBQ(4, 12).codebook.dtype == torch.float32
    assert IBQ(4, 12).bits == pytest.approx(3.585, abs=1e-3)


X = torch.rand(2, 5, 4)
MASK = torch.ones(2, 5, dtype=torch.bool)
WEIGHTS = dict(codebook_weight=0.25, entropy_weight=0.1, entropy_temperature=0.1)


def test_no_error_from_deep_inside(net):
    assert raw_errors(IBQ, dict(dim=4, codebook_size=3, norm=4.0, **WEIGHTS)) == []
    for function in (net, net.terms):
        assert raw_errors(function, dict(x=X, mask=MASK), part=True) == []
    assert raw_errors(net.decode, dict(indices=net(X).indices)) == []
    assert raw_errors(net.warm_start, dict(x=X, rounds=2), part=True) == []


@pytest.mark.parametrize("call, message", [
    (lambda: IBQ(4, 3, norm=0), "norm=0 .int.: needs a finite number above 0"),
    (lambda: IBQ(4, 3)(X[..., :3]), r"x has shape \(2, 5, 3\) but needs \(..., 4\)"),
    (lambda: IBQ(4, 3)(X, ~MASK), "mask is False everywhere"),
    (lambda: IBQ(4, 3).decode(torch.tensor([3])), r"indices\[0\]=3 is no place"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
