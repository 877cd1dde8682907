"""Vector quantisation, each test a place where libraries or good guesses go wrong."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vtlib.quantize import Quantized, VectorQuantizer, perplexity, rotation, straight_through
from vtlib.quantize.vq import entropy_loss, kmeans, revive
from vtlib.tokens.cosine import unit

from ..settings import SETTINGS
from ..wrong import raw_errors
from .both import Both

MODES = [
    dict(learn="ema"), dict(learn="gradient"), dict(learn="ema", lookup="cosine"),
    dict(learn="gradient", lookup="cosine", gradient="rotation"),
    dict(gradient="rotation", revive_after=0.5, entropy_weight=0.1),
]


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(dim=4, size=16, seed=1, **options):
    net = VectorQuantizer(dim, size, **options)
    net.codebook.data.copy_(seeded(size, dim, seed=seed))
    return net


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def brute(net, x):
    rows, table = net.rows(x).double(), net.table().double()
    return (rows[:, None] - table).square().sum(-1).argmin(1).reshape(x.shape[:-1])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", MODES, ids=str)
def test_what_forward_returns_decodes_bit_for_bit(options, training):
    net = make(**options).train(training)
    for seed, shape in enumerate([(3, 50, 4), (2, 5, 6, 4), (4,)]):
        x = 3 * seeded(*shape, seed=seed) + 1
        want = brute(net, x)
        out = net(x)
        assert isinstance(out, Quantized) and torch.equal(out.indices, want)
        assert out.codes.shape == x.shape and torch.equal(net.decode(out.indices), out.codes)
        assert torch.equal(net.table()[out.indices], out.codes)
        assert out.loss.shape == out.usage.shape == () and out.loss > 0
        distinct = len(set(out.indices.flatten().tolist()))
        assert out.usage.item() == pytest.approx(distinct / 16)


@pytest.mark.parametrize("offset", [0, 100])
def test_the_lookup_is_that_of_float64_under_an_offset_and_autocast(offset):
    net = make(256, 200, seed=2).eval()
    net.codebook.add_(offset)
    x = offset + seeded(300, 256)
    want = brute(net, x)
    assert torch.equal(net(x).indices, want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(x).indices, want)


def test_a_lookup_in_bf16_would_change_tokens():
    net, x = make(4, 8192).eval(), seeded(400, 4)
    a, b = x.bfloat16(), net.codebook.bfloat16()
    low = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).argmin(1)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    assert (low != out.indices).float().mean() > 0.02
    assert torch.equal(out.indices, brute(net, x)) and out.codes.dtype == torch.float32


def test_cosine_normalises_in_the_search_and_in_decoding():
    for learn in ("ema", "gradient"):
        net = make(8, 40, learn=learn, lookup="cosine").eval()
        x = seeded(200, 8)
        out = net(x)
        cosine = F.normalize(x.double()) @ F.normalize(net.codebook.double()).T
        assert torch.equal(out.indices, cosine.argmax(1))
        plain = make(8, 40).eval()(x)
        assert (plain.indices != out.indices).float().mean() > 0.2
        torch.testing.assert_close(out.codes.norm(dim=1), torch.ones(200))
        scaled = make(8, 40, learn=learn, lookup="cosine").eval()
        scaled.codebook.data.mul_(torch.arange(1.0, 41)[:, None])
        assert torch.equal(scaled(5 * x).indices, out.indices)
        torch.testing.assert_close(scaled(5 * x).loss, out.loss)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_eval_and_frozen_change_nothing(options):
    net, x = make(kmeans_init=True, **options), seeded(64, 4)
    before = state(net)
    net.eval()(x)
    net.train().frozen = True
    out = net(x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    if net.learn_by == "gradient":
        assert not out.loss.requires_grad
    net.frozen = False
    net(x)
    assert net.started and not torch.equal(net.codebook, before["codebook"])


def test_the_loss_of_validation_is_not_zero():
    for options in MODES:
        net, x = make(**options).eval(), seeded(64, 4)
        net.entropy_weight = 0.0
        out = net(x)
        rows = net.rows(x)
        want = (0.25 + (net.learn_by == "gradient")) * F.mse_loss(rows, out.codes)
        torch.testing.assert_close(out.loss, want)
        net.train().frozen = True
        torch.testing.assert_close(net(x).loss, 0.25 * F.mse_loss(rows, out.codes))


# ------------------------------------------------------------------------------- gradients
def test_the_commitment_weight_multiplies_the_commitment_term_alone():
    for weight in (0.0, 0.25, 2.0):
        net = make(learn="gradient", commitment_weight=weight)
        x = seeded(50, 4).requires_grad_()
        out = net(x)
        to_x, to_codes = torch.autograd.grad(out.loss, (x, net.codebook))
        apart = x.detach() - out.codes.detach()
        torch.testing.assert_close(to_x, weight * 2 * apart / apart.numel())
        want = torch.zeros(16, 4).index_add(0, out.indices, -2 * apart / apart.numel())
        torch.testing.assert_close(to_codes, want)
        assert to_codes.any()
    ema, x = make(commitment_weight=3), seeded(50, 4).requires_grad_()
    out = ema(x)
    torch.testing.assert_close(out.loss, 3 * F.mse_loss(x, out.codes))


@pytest.mark.parametrize("training", [True, False])
def test_straight_through_passes_the_gradient_as_it_is(training):
    net, x = make().train(training), seeded(2, 9, 4).requires_grad_()
    upstream = seeded(2, 9, 4, seed=5)
    (got,) = torch.autograd.grad(net(x).codes, x, upstream)
    assert torch.equal(got, upstream)


@pytest.mark.parametrize("training", [True, False])
def test_the_rotation_trick_turns_and_stretches_it(training):
    net, x = make(gradient="rotation").train(training), (1 + seeded(30, 4)).requires_grad_()
    out, upstream = net(x), seeded(30, 4, seed=5)
    assert torch.equal(out.codes, net.decode(out.indices))
    (got,) = torch.autograd.grad(out.codes, x, upstream)
    vectors = x.detach(), out.codes.detach(), upstream, got
    for source, code, above, grad in zip(*vectors, strict=True):
        e, q = (v.double() / v.double().norm() for v in (source, code))
        w = (e + q) / (e + q).norm()
        turn = torch.eye(4).double() - 2 * torch.outer(w, w) + 2 * torch.outer(q, e)
        torch.testing.assert_close(turn @ e, q)
        scale = code.double().norm() / source.double().norm()
        want = (scale * turn.T @ above.double()).float()
        torch.testing.assert_close(grad, want, atol=1e-5, rtol=1e-4)
        assert grad.norm() / above.norm() == pytest.approx(scale.item(), rel=1e-4)


def test_rotation_where_there_is_no_direction():
    codes = torch.tensor([[1.0, 2], [0, 0], [3, -4], [1, 1]])
    x = torch.tensor([[0.0, 0], [3, 4], [-3, 4], [1, 1]], requires_grad=True)
    out = rotation(codes, x)
    assert torch.equal(out, codes)
    (grad,) = torch.autograd.grad(out, x, torch.ones(4, 2))
    assert torch.equal(grad[0], torch.ones(2)) and not grad[1].any() and grad.isfinite().all()
    torch.testing.assert_close(grad[2].norm(), torch.tensor(2.0).sqrt())
    torch.testing.assert_close(grad[3], torch.ones(2))
    half = rotation(codes.bfloat16(), x.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.equal(half, codes.bfloat16())


# ------------------------------------------------------------------------- moving averages
def test_the_moving_average_is_sum_over_count():
    """Against the paper's N and m, kept apart in float64."""
    net = make(decay=0.9)
    count = torch.zeros(16).double()
    total = torch.zeros(16, 4).double()
    for step in range(20):
        x = 0.5 * seeded(40, 4, seed=step) + 0.1 * step
        indices = brute(net, x)
        before = net.codebook.clone()
        hits = torch.bincount(indices, minlength=16).double()
        sums = torch.zeros(16, 4).double().index_add(0, indices, x.double())
        count, total = 0.9 * count + 0.1 * hits, 0.9 * total + 0.1 * sums
        assert torch.equal(net(x).indices, indices)
        used = count > 0
        want = total[used] / count[used][:, None]
        torch.testing.assert_close(net.codebook[used].double(), want, atol=1e-5, rtol=1e-4)
        assert torch.equal(net.codebook[hits == 0], before[hits == 0])
        torch.testing.assert_close(net.count.double(), count, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", [dict(), dict(lookup="cosine")])
def test_unused_codes_never_drift(options):
    net, x = make(decay=0.8, **options), torch.ones(1, 4)
    before, index = net.codebook.clone(), net(x).indices.item()
    for _ in range(300):
        net(x)
    rest = torch.arange(16) != index
    assert torch.equal(net.codebook[rest], before[rest])
    assert net.idle[rest].eq(301).all() and net.idle[index] == 0
    torch.testing.assert_close(net.codebook[index], net.rows(x)[0])


def test_moving_averages_under_a_large_offset():
    net = make(8, 4, decay=0.5)
    net.codebook.add_(1e4)
    for step in range(40):
        net(1e4 + seeded(100, 8, seed=step % 3))
    x = torch.cat([1e4 + seeded(100, 8, seed=step) for step in range(3)])
    out = net.eval()(x)
    means = torch.stack([x[out.indices == k].double().mean(0) for k in range(4)])
    assert (net.codebook - means).abs().max() < 0.5


def test_a_bf16_module_learns_and_counts_beyond_256():
    net = VectorQuantizer(2, 2).bfloat16()
    net.codebook.copy_(torch.tensor([[0.0, 0], [9, 9]]))
    out = net(torch.ones(5000, 2).bfloat16())
    assert torch.equal(net.codebook[0], torch.ones(2).bfloat16())
    assert out.codes.dtype == torch.bfloat16 and torch.equal(net.decode(out.indices), out.codes)
    grown = VectorQuantizer(2, 2, learn="gradient", commitment_weight=0).bfloat16()
    grown(torch.ones(5000, 2).bfloat16()).loss.backward()
    want = grown.codebook.detach().float() - 1           # 5000 (e - 1) 2 / (5000 2), or 256 of them
    used = grown.codebook.grad.float().abs().amax(1) > 0
    got = grown.codebook.grad.float()[used]
    torch.testing.assert_close(got, want[used], atol=0, rtol=0.02)


# -------------------------------------------------------------------------------- dead codes
def test_dead_codes_come_to_life_as_different_vectors():
    for learn in ("ema", "gradient"):
        net = make(4, 64, learn=learn, revive_after=1.0)
        net.codebook.data[1:] += 1000
        x = seeded(128, 4)
        out = net(x)
        assert out.usage == 1 / 64 and torch.equal(net.decode(out.indices), out.codes)
        revived = net.codebook.detach()[net.codebook.abs().amax(1) < 500]
        assert len(revived) == len(revived.unique(dim=0)) > 40
        again = net(x)
        assert again.usage > 0.5


def test_one_vector_revives_one_code_at_most():
    net = make(4, 16, revive_after=0.1)
    x = seeded(1, 4).expand(50, 4)
    for _ in range(20):
        net(x)
    assert len(net.codebook.unique(dim=0)) == 16
    two = torch.cat([x, x + 1])
    for _ in range(5):
        net(two)
    assert len(net.codebook.unique(dim=0)) == 16 and net.eval()(two).usage == 2 / 16


def test_with_few_vectors_a_step_dead_still_ends():
    """256 vectors a step for 512 codes: by hits of a step, nearly all would be dead for ever."""
    net = make(4, 512, revive_after=8.0)
    changed = []
    for step in range(120):
        before = net.codebook.clone()
        x = seeded(256, 4, seed=step)
        indices = net(x).indices
        rest = torch.ones(512, dtype=torch.bool)
        rest[indices] = False
        changed.append((net.codebook != before).any(1)[rest].sum().item())
    assert sum(changed[-60:]) < 30 and (net.idle < 8 * 512).all()
    probe = net.eval()(seeded(20000, 4, seed=999))
    assert probe.usage > 0.95


def test_revival_is_off_unless_asked_for():
    net = make(4, 64)
    net.codebook[1:] += 1000
    before = net.codebook.clone()
    for _ in range(50):
        net(seeded(64, 4))
    assert torch.equal(net.codebook[1:], before[1:])


# ----------------------------------------------------------------------------------- k-means
def clusters(num=8, each=40, dim=6):
    centres = 5 * seeded(num, dim, seed=3)
    return centres, (centres[:, None] + 0.1 * seeded(num, each, dim, seed=4)).flatten(0, 1)


@pytest.mark.parametrize("options", [dict(), dict(learn="gradient"), dict(lookup="cosine")])
def test_kmeans_starts_the_codebook_once_and_in_training_only(options):
    centres, x = clusters()
    net = VectorQuantizer(6, 8, kmeans_init=True, **options)
    before = net.codebook.detach().clone()
    net.eval()(x)
    assert torch.equal(net.codebook, before) and not net.started
    out = net.train()(x)
    assert net.started and out.usage > 0.6
    rows = net.rows(x)
    assert (net.decode(out.indices) - rows).square().mean() < rows.var() / 4
    first = net.codebook.detach().clone()
    other = VectorQuantizer(6, 8, kmeans_init=True, **options)
    other.load_state_dict(net.state_dict())
    other.frozen = False
    other(x + 50)
    assert (other.codebook.detach() - first).abs().max() < 50 + first.abs().max()
    assert not other.waits


def test_kmeans_without_enough_vectors_makes_no_copies():
    x = seeded(5, 4).repeat(10, 1)
    for options in (dict(), dict(lookup="cosine")):
        net = VectorQuantizer(4, 16, kmeans_init=True, **options)
        out = net(x)
        assert len(net.codebook.unique(dim=0)) == 16
        torch.testing.assert_close(out.codes, net.rows(x))


def test_training_uses_the_codebook():
    """k-means and revival against a start at the origin: 64 clusters, 64 codes."""
    _, x = clusters(64, 32)
    usage = {}
    for name, options in dict(plain={}, both=dict(kmeans_init=True, revive_after=2.0)).items():
        torch.manual_seed(0)
        net = VectorQuantizer(6, 64, **options)
        for step in range(60):
            net(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:512]])
        usage[name] = net.eval()(x).usage.item()
    assert usage["both"] > 0.9 > usage["plain"]


# ------------------------------------------------------------------------------ usage, entropy
def test_perplexity():
    assert perplexity(torch.arange(8), 8).item() == pytest.approx(8)
    assert perplexity(torch.full((9,), 3), 8).item() == 1
    masked = torch.tensor([True, False, True])
    assert perplexity(torch.tensor([1, 5, 1]), 8, masked).item() == 1
    share = np.array([0.5, 0.25, 0.25])
    got = perplexity(torch.tensor([[0, 0], [1, 2]]), 5).item()
    assert got == pytest.approx(math.exp(-(share * np.log(share)).sum()))


def test_the_entropy_loss_is_its_formula_and_no_table_is_kept(monkeypatch):
    rows, table = seeded(50, 4).double().requires_grad_(), seeded(16, 4, seed=1).double()
    table.requires_grad_()
    counted = torch.arange(50) % 3 > 0
    log_p = (-torch.cdist(rows, table)[counted].square() / 0.5).log_softmax(1)
    p = log_p.exp()
    want = -(p * log_p).sum(1).mean() + (p.mean(0) * p.mean(0).log()).sum()
    want_grads = torch.autograd.grad(want, (rows, table))
    monkeypatch.setattr("vtlib.quantize.vq.BLOCK", 16 * 7)
    got = entropy_loss(rows, table, counted, 0.5)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, (rows, table)), want_grads)
    far = (100 * seeded(5, 4)).requires_grad_()                       # codes that nobody comes near
    (grad,) = torch.autograd.grad(entropy_loss(far, 100 * seeded(16, 4, seed=1)), far)
    assert grad.isfinite().all()
    sure = entropy_loss(100 * torch.eye(16), 100 * torch.eye(16))
    assert sure.item() == pytest.approx(-math.log(16), abs=1e-5)


# ------------------------------------------------------------------------------------- masks
@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_mask_changes_nothing_for_the_others(options):
    x = seeded(4, 20, 4)
    mask = torch.arange(20) < torch.tensor([[20], [5], [12], [1]])
    padded = torch.where(mask[..., None], x, 77 * seeded(4, 20, 4, seed=9))
    nets = [make(**options) for _ in range(3)]
    inputs = [x.clone().requires_grad_(), padded.requires_grad_(), x[mask].requires_grad_()]
    masks = [mask, mask, None]
    outs = [net(*pair) for net, *pair in zip(nets, inputs, masks, strict=True)]
    want = outs[2]
    for net, out, given in zip(nets[:2], outs, inputs, strict=False):
        assert torch.equal(out.indices[mask], want.indices)
        torch.testing.assert_close(out.codes[mask], want.codes)
        torch.testing.assert_close(out.loss, want.loss)
        assert torch.equal(out.usage, want.usage) and torch.equal(net.idle, nets[2].idle)
        torch.testing.assert_close(net.codebook, nets[2].codebook)
        assert torch.equal(net.decode(out.indices), out.codes)
        (grad,) = torch.autograd.grad(out.loss, given)
        assert not grad[~mask].any() and grad[mask].any()
    full = make(**options)(x, torch.ones(4, 20, dtype=torch.bool))
    none = make(**options)(x)
    assert torch.equal(full.codes, none.codes)
    torch.testing.assert_close(full.loss, none.loss)


# ------------------------------------------------------------- devices, dtypes, compiling
def test_meta():
    for options in MODES:
        net = make(kmeans_init=True, **options).to("meta")
        out = net(torch.randn(2, 7, 4, device="meta"))
        assert out.codes.shape == (2, 7, 4) and out.indices.shape == (2, 7)
        assert net.decode(out.indices).is_meta


@pytest.mark.parametrize("options", MODES, ids=str)
def test_compile_in_one_graph_is_the_same(options):
    torch.compiler.reset()
    nets = [make(kmeans_init=True, **options) for _ in range(2)]
    run = torch.compile(nets[1], backend="aot_eager", fullgraph=True)
    mask = torch.arange(30) < 25
    for step in range(3):
        xs = [seeded(2, 30, 4, seed=step).requires_grad_() for _ in range(2)]
        outs = [f(x, mask.expand(2, 30)) for f, x in zip((nets[0], run), xs, strict=True)]
        sums = [out.codes.sum() + out.loss for out in outs]
        torch.testing.assert_close(*map(torch.autograd.grad, sums, xs))
        assert torch.equal(outs[0].indices, outs[1].indices)
        torch.testing.assert_close(outs[0].codes, outs[1].codes)
    states = [state(net) for net in nets]
    torch.testing.assert_close(*states)


def test_export_with_a_free_batch():
    net = make().eval()

    free = torch.export.Dim("batch", min=2)
    example = (torch.randn(2, 7, 4),)
    exported = torch.export.export(Both(net), example, dynamic_shapes=({0: free},)).module()
    x = seeded(5, 7, 4)
    for got, want in zip(exported(x), Both(net)(x), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_torchs_settings_change_nothing(setting):
    x = seeded(40, 4)
    want_net, net = make(revive_after=0.5), make(revive_after=0.5)
    want = want_net(x)
    with setting():
        out = net(x)
        decoded = net.decode(out.indices)
    assert torch.equal(out.codes, want.codes) and torch.equal(decoded, want.codes)
    torch.testing.assert_close(state(net), state(want_net))


def test_float64_and_half_precision():
    net, x = make().eval(), seeded(60, 4)
    double = make().double().eval()
    assert double(x.double()).codes.dtype == double(x).codes.dtype == torch.float64
    assert torch.equal(double(x).indices, net(x).indices)
    assert torch.equal(net(x.bfloat16()).indices, net(x.bfloat16().float()).indices)
    assert net(x.half()).codes.dtype == net(x.double()).codes.dtype == torch.float32


def test_the_same_twice_and_only_the_start_is_random():
    runs = []
    for seed in (0, 1):
        net = make(kmeans_init=True, revive_after=0.3)
        torch.manual_seed(seed)
        for step in range(5):
            net(seeded(64, 4, seed=step))
        runs.append(state(net))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    torch.manual_seed(0)
    first = VectorQuantizer(4, 16).codebook
    assert first.abs().max() <= 1 / 16 and first.std() > 0.02


@pytest.mark.parametrize("options", MODES, ids=str)
def test_two_forwards_before_a_backward(options):
    net, x = make(size=64, **{**options, "revive_after": 0.1}), seeded(30, 4).requires_grad_()
    a, b = net(x), net(x + 1)
    (a.codes.sum() + b.codes.sum() + a.loss + b.loss).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_decoded_code_is_encoded_as_itself(options):
    net, every = make(**options).eval(), torch.arange(16)
    assert torch.equal(net(net.decode(every)).indices, every)
    assert net.bits == 4


def test_copies_and_what_is_stored():
    net = make(kmeans_init=True, revive_after=1.0)
    net(seeded(64, 4))
    other = copy.deepcopy(net)
    torch.testing.assert_close(state(other), state(net))
    x = seeded(64, 4, seed=5)
    assert torch.equal(other(x).codes, net(x).codes)
    fresh = VectorQuantizer(4, 16, kmeans_init=True)
    fresh.load_state_dict(net.state_dict())
    assert not fresh.waits and torch.equal(fresh.eval()(x).codes, net.eval()(x).codes)
    waiting = VectorQuantizer(4, 16, kmeans_init=True)
    fresh.load_state_dict(waiting.state_dict())
    assert fresh.waits


BAD = [
    (lambda: VectorQuantizer(0, 4), "dim=0"),
    (lambda: VectorQuantizer(4, 0), "codebook_size=0"),
    (lambda: VectorQuantizer(4, 4, learn="adam"), "learn='adam': needs one of ema, gradient"),
    (lambda: VectorQuantizer(4, 4, lookup=None), "lookup=None"),
    (lambda: VectorQuantizer(4, 4, gradient="gumbel"), "straight_through, rotation"),
    (lambda: VectorQuantizer(4, 4, commitment_weight=-1), "commitment_weight=-1"),
    (lambda: VectorQuantizer(4, 4, decay=1.5), "decay=1.5"),
    (lambda: VectorQuantizer(4, 4, revive_after=0), "revive_after=0"),
    (lambda: VectorQuantizer(4, 4, kmeans_init="no"), "kmeans_init='no'"),
    (lambda: VectorQuantizer(4, 4, entropy_temperature=0), "entropy_temperature=0"),
    (lambda: make()(torch.zeros(2, 3)), r"x has shape \(2, 3\) but needs \(..., 4\)"),
    (lambda: make()(torch.zeros(0, 4)), "not empty"),
    (lambda: make()(torch.zeros(2, 4).long()), "x is torch.int64"),
    (lambda: make()(np.zeros((2, 4))), "x is a numpy.ndarray"),
    (lambda: make()(torch.full((2, 4), torch.nan)), "x .* non-finite"),
    (lambda: make()(torch.zeros(2, 4), torch.ones(3).bool()), r"mask is torch.bool \(3,\)"),
    (lambda: make()(torch.zeros(2, 4), torch.ones(2)), r"mask is torch.float32"),
    (lambda: make()(torch.zeros(2, 4), torch.zeros(2).bool()), "mask is False everywhere"),
    (lambda: make().decode(torch.tensor([16])), r"indices\[0\]=16 .* 0 ... 15"),
    (lambda: make().decode(torch.tensor([-1])), r"indices\[0\]=-1"),
    (lambda: make().decode(torch.tensor([1.0])), "indices is torch.float32"),
    (lambda: rotation(torch.zeros(2), torch.zeros(3)), r"codes has shape \(2,\)"),
    (lambda: rotation(torch.tensor(1.0), torch.tensor(1.0)), "need channels"),
    (lambda: straight_through([1.0], torch.zeros(1)), "codes is a list"),
    (lambda: perplexity(torch.zeros(0).long(), 4), "indices is empty"),
    (lambda: perplexity(torch.tensor([4]), 4), "indices"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_whatever_comes_in_a_value_error_comes_out():
    net = make()
    fits = dict(x=torch.randn(2, 5, 4), mask=torch.ones(2, 5, dtype=torch.bool))
    assert not raw_errors(net, fits)
    assert not raw_errors(net.decode, dict(indices=torch.ones(2, 5, dtype=torch.long)))
    options = dict(
        dim=4, codebook_size=8, commitment_weight=0.5, decay=0.9, kmeans_iters=3, revive_after=2.0,
        entropy_weight=0.5, entropy_temperature=0.5, learn="ema", lookup="cosine",
        gradient="rotation", kmeans_init=True,
    )
    assert not raw_errors(VectorQuantizer, options)
    pair = dict(codes=torch.randn(3, 4), x=torch.randn(3, 4))
    assert not raw_errors(rotation, pair) and not raw_errors(straight_through, pair)
    assert not raw_errors(perplexity, dict(indices=torch.arange(4), codebook_size=4))


def test_the_single_steps_are_operators():
    """Fake tensors and mutation as torch wants them of an operator."""
    book, count, idle = seeded(6, 4), torch.zeros(6), torch.full((6,), 99)
    rows = seeded(20, 4, seed=2)
    args = book, count, idle, book.clone(), rows, torch.zeros(20).long(), torch.ones(20), 5
    torch.library.opcheck(revive, args)
    torch.library.opcheck(kmeans, (book, count, rows, torch.arange(20) < 15, 3, False))
    rows = unit(rows)
    torch.library.opcheck(kmeans, (book, count, rows, None, 3, True))
