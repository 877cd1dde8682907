"""ZOO-Prune: the estimate against loops and the exact Jacobian, the selection against a naive
search."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vtlib.pruning.zooprune import (
    anyres_layout,
    importance,
    jacobian_norm,
    low_rank,
    prune,
    sads,
    sads_views,
    select,
    select_views,
    sensitivity,
)
from vtlib.tokens import VisionOutputs
from vtlib.tokens.greedy import greedy_maxmin

SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def projector(d_v=6, d_l=10, dtype=torch.float64, seed=0):
    net = nn.Sequential(nn.Linear(d_v, d_l), nn.GELU(), nn.Linear(d_l, d_l)).to(dtype)
    g = generator(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.6)
    return net


def features(batch=2, num_tokens=12, d_v=6, dtype=torch.float64, seed=1):
    x = torch.randn(batch, num_tokens, d_v, generator=generator(seed), dtype=torch.float64)
    return x.mul(2).to(dtype)


def directions(m):
    return torch.randn(m, 6, generator=generator(2), dtype=torch.float64)


def vision(dtype=torch.float32, batch=2, grid=(3, 4), **more):
    selected = features(batch, 1 + grid[0] * grid[1], dtype=dtype)
    return VisionOutputs(selected, grid, projector(dtype=dtype), **more)


def rank_correlation(a, b):
    a, b = (t.flatten().argsort().argsort().double() for t in (a, b))
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


# ---------------------------------------------------------------- sensitivity
def test_equals_plain_loops():
    x, net, u = features(), projector(), directions(5)
    got = sensitivity(x, net, step=0.3, directions=u)
    for b in range(2):
        for n in range(12):
            steps = [0.3 * d / d.norm() for d in u]
            answers = [(net(x[b, n] + d) - net(x[b, n] - d)).norm() / 0.6 for d in steps]
            torch.testing.assert_close(got[b, n], sum(answers) / 5)


def test_mean_of_lengths_not_length_of_the_mean():
    x, net, u = features(), projector(), directions(64)
    unit = u / u.norm(dim=1, keepdim=True)
    changes = torch.stack([(net(x + 0.01 * d) - net(x - 0.01 * d)) / 0.02 for d in unit])
    mean_first = changes.mean(0).norm(dim=-1)
    assert (sensitivity(x, net, directions=u) > 2 * mean_first).all()


def test_exact_value_and_order_of_the_error():
    """E|Ju| over the same directions by forward-mode differentiation; the central difference is
    off by O(h^2): half the step, a quarter of it."""
    x, net, u = features(), projector(), directions(16)
    unit = u / u.norm(dim=1, keepdim=True)
    slopes = [torch.func.jvp(net, (x,), (d.expand_as(x),))[1] for d in unit]
    exact = torch.stack([slope.norm(dim=-1) for slope in slopes]).mean(0)
    errors = [(sensitivity(x, net, step=h, directions=u) - exact).abs() for h in (0.04, 0.02, 0.01)]
    assert errors[2].max() < 1e-3
    for a, b in itertools.pairwise(errors):
        four = torch.tensor(4.0, dtype=torch.float64)
        torch.testing.assert_close(a.sum() / b.sum(), four, atol=0.05, rtol=0)


@pytest.mark.parametrize("h", [0.01, 1.0])
def test_linear_projectors_know_nothing(h):
    x = features()
    s = sensitivity(x, nn.Linear(6, 9).double(), step=h, generator=generator())
    torch.testing.assert_close(s, s[:1, :1].expand_as(s))
    torch.testing.assert_close(sensitivity(x, lambda t: t, step=h), torch.ones_like(s))
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator(), dtype=torch.float64))
    # equal singular values
    longer = sensitivity(x, lambda t: 3.5 * t @ turn, step=h)
    torch.testing.assert_close(longer, torch.full_like(s, 3.5))


def test_linear_projector_in_float32_turns_rounding_into_weights():
    """The trap: S is constant up to rounding, and min-max normalisation spreads the rounding over 0
    ... 1."""
    linear, x = nn.Linear(6, 9), features(dtype=torch.float32)
    s = sensitivity(x, linear, generator=generator())
    assert (s / s.mean() - 1).abs().max() < 1e-3
    w = importance(s)
    assert w.min() == 0 and w.max() > 0.99 and w.std() > 0.1


def test_standard_error_falls_with_the_root_of_the_number_of_directions():
    x, net = features(1, 8), projector()
    g, spread = generator(), {}
    for m in (4, 16, 64):
        runs = torch.stack([sensitivity(x, net, m, generator=g) for _ in range(100)])
        spread[m] = runs.std(dim=0).mean()
    for m in (4, 16):
        two = torch.tensor(2.0, dtype=torch.float64)
        torch.testing.assert_close(spread[m] / spread[4 * m], two, atol=0.3, rtol=0)


@pytest.mark.parametrize("d_l", [10, 4])
def test_jacobian_norm_bounds_the_estimate(d_l):
    """Forwards where the projector widens, backwards where it narrows."""
    x, net = features(2, 30), projector(6, d_l)
    jacobians = [torch.autograd.functional.jacobian(net, v) for v in x.flatten(0, 1)]
    exact = torch.stack([jacobian.norm() for jacobian in jacobians]).view(2, 30) / 6**0.5
    torch.testing.assert_close(jacobian_norm(x, net), exact)
    s = sensitivity(x, net, 4096, generator=generator(), chunk=512)
    ratio = s / exact                                               # mean <= root mean square
    assert (ratio < 1.01).all() and (ratio > 0.8).all() and rank_correlation(s, exact) > 0.98


def test_one_set_of_directions_for_all_tokens_and_views():
    x = features(1, 1).expand(3, 5, -1)
    s = sensitivity(x, projector(), 3, generator=generator())
    assert torch.equal(s, s[:1, :1].expand_as(s))
    assert sensitivity(x, projector(), 3, generator=generator(1))[0, 0] != s[0, 0]
    assert torch.equal(sensitivity(x, projector(), 3, generator=generator()), s)


def test_chunks_and_lengths_of_directions_do_not_matter():
    x, net, u = features(), projector(), directions(7)
    want = sensitivity(x, net, directions=u, chunk=7)
    for chunk in (1, 2, 3, 100):
        torch.testing.assert_close(sensitivity(x, net, directions=u, chunk=chunk), want)
    longer = u * torch.arange(1, 8)[:, None]
    torch.testing.assert_close(sensitivity(x, net, directions=longer), want)


def test_half_precision_is_widened():
    """Weights and features in bfloat16: the arithmetic is float32. Done naively in bfloat16 the
    estimate is mostly rounding noise."""
    net, x = projector(16, 24, torch.bfloat16), features(1, 40, 16, torch.bfloat16)
    u = torch.randn(64, 16, generator=generator(2))
    want = sensitivity(x.float(), copy.deepcopy(net).float(), directions=u)
    got = sensitivity(x, net, directions=u)
    assert got.dtype == torch.float32 and torch.equal(got, want)
    assert net[0].weight.dtype == torch.bfloat16
    unit = (u / u.norm(dim=1, keepdim=True)).bfloat16()
    changes = [(net(x + 0.01 * d) - net(x - 0.01 * d)).float() for d in unit]
    naive = torch.stack([change.norm(dim=-1) / 0.02 for change in changes]).mean(0)
    assert rank_correlation(naive, want) < 0.9 < rank_correlation(got, want)
    assert (naive / want).mean() > 1.1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sensitivity(x.float(), copy.deepcopy(net).float(), directions=u), want)
        assert torch.isfinite(jacobian_norm(x, net)).all()


def test_no_gradient():
    x, net = features(), projector()
    assert not sensitivity(x, net).requires_grad and not jacobian_norm(x, net).requires_grad


# ---------------------------------------------------------------- low rank
def test_low_rank_projector():
    net, x = projector(6, 10), features()
    full = low_rank(net, (6, 10))
    torch.testing.assert_close(full(x), net(x))
    short = low_rank(net, (2, 3))
    for i, k in ((0, 2), (2, 3)):
        product = short[i][1].weight @ short[i][0].weight
        u, s, v = torch.linalg.svd(net[i].weight)
        torch.testing.assert_close(product, (u[:, :k] * s[:k]) @ v[:k])
        assert short[i][0].bias is None and torch.equal(short[i][1].bias, net[i].bias)
        assert tuple(short[i][0].weight.shape) == (k, net[i].in_features)
    assert [type(m) for m in net] == [nn.Linear, nn.GELU, nn.Linear]  # the original is untouched
    got, want = (sensitivity(x, one, generator=generator()) for one in (full, net))
    torch.testing.assert_close(got, want)


def test_low_rank_of_nested_and_single_modules():
    nested = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), nn.ReLU())})
    short = [m for m in low_rank(nested, 2).modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in short] == [2, 4]
    single = nn.Linear(5, 3, bias=False)
    torch.testing.assert_close(low_rank(single, 3)(torch.eye(5)), single(torch.eye(5)))
    assert low_rank(single.bfloat16(), 2)[0].weight.dtype == torch.bfloat16
    for net, rank, message in [(nn.Linear(4, 3), 4, "rank=4 does not lie in 1 ... 3"),
                               (nn.Linear(4, 3), 0, "rank=0"),
                               (projector(), (2, 2, 2), "2 Linear layers"),
                               (nn.GELU(), 2, "0 Linear layers"),
                               (abs, 2, "needs an nn.Module")]:
        with pytest.raises(ValueError, match=message):
            low_rank(net, rank)


# ---------------------------------------------------------------- selection
def naive_sads(s, z, keep):
    """Scan the whole selected set at every step."""
    low, high = min(s), max(s)
    w = [(v - low) / (high - low + 1e-8) if high > low else 1.0 for v in s]
    chosen = [max(range(len(s)), key=lambda i: (w[i], -i))]
    while len(chosen) < keep:
        rest = [i for i in range(len(s)) if i not in chosen]
        gain = {}
        for i in rest:
            likeness = [float(torch.cosine_similarity(z[i], z[j], dim=0)) for j in chosen]
            gain[i] = w[i] * min(1 - c for c in likeness)
        chosen.append(max(rest, key=lambda i: (gain[i], -i)))
    return chosen


@given(st.integers(1, 14), st.integers(0, 10**6), st.data())
@SETTINGS
def test_equals_naive_search(num_tokens, seed, data):
    keep = data.draw(st.integers(1, num_tokens))
    g = generator(seed)
    s = torch.rand(1, num_tokens, generator=g, dtype=torch.float64)
    z = torch.randn(1, num_tokens, 5, generator=g, dtype=torch.float64)
    index, gains = sads(s, z, keep)
    assert index[0].tolist() == naive_sads(s[0].tolist(), z[0], keep)
    assert torch.equal(select(s, z, keep).index, index.sort(dim=1).values)
    assert gains[0, 0] == importance(s).max()


def test_constant_sensitivity_is_greedy_from_token_0():
    z = torch.randn(3, 20, 4, generator=generator(), dtype=torch.float64)
    index, _ = sads(torch.full((3, 20), 0.7, dtype=torch.float64), z, 9)
    assert torch.equal(index, greedy_maxmin(z, 9, first=torch.zeros(3, dtype=torch.long))[0])


def test_least_sensitive_token_comes_last_and_all_is_a_permutation():
    s, z = torch.rand(2, 15, generator=generator()), torch.randn(2, 15, 4, generator=generator(1))
    index, _ = sads(s, z, 15)
    assert torch.equal(index.sort(dim=1).values, torch.arange(15).expand(2, -1))
    assert torch.equal(index[:, -1], s.argmin(dim=1)) and torch.equal(index[:, 0], s.argmax(dim=1))


def test_permuting_tokens_permutes_the_choice():
    s, z = torch.rand(1, 15, generator=generator()), torch.randn(1, 15, 4, generator=generator(1))
    order = torch.randperm(15, generator=generator(2))
    assert torch.equal(order[sads(s[:, order], z[:, order], 6)[0]], sads(s, z, 6)[0])
    assert torch.equal(sads(s * 3 + 1, z * 7, 6)[0], sads(s, z, 6)[0])


def test_importance():
    s = torch.tensor([[2.0, 4.0, 3.0]])
    assert torch.allclose(importance(s), torch.tensor([[0.0, 1.0, 0.5]]))
    assert torch.equal(importance(torch.full((2, 3), 5.0)), torch.ones(2, 3))


def test_floats_are_rounded_down():
    s, z = torch.rand(1, 576, generator=generator()), torch.randn(1, 576, 4, generator=generator(1))
    assert [len(select(s, z, r)) for r in (0.3334, 0.2223, 0.1112)] == [192, 128, 64]
    assert len(select(s[:, :15], z[:, :15], 0.3)) == 4
    assert len(select(s[:, :15], z[:, :15], 0.01)) == 1


# ---------------------------------------------------------------- several views
def test_anyres_layout():
    views, newlines = anyres_layout((2, 3), (2, 2))
    assert views[0].tolist() == list(range(6)) and newlines.tolist() == [12, 19, 26, 33]
    assert views[1].tolist() == [6, 7, 8, 13, 14, 15]
    assert views[2].tolist() == [9, 10, 11, 16, 17, 18]
    assert views[4].tolist() == [23, 24, 25, 30, 31, 32]
    assert sorted([*views.flatten().tolist(), *newlines.tolist()]) == list(range(34))


def test_views_are_pruned_one_by_one():
    views, newlines = anyres_layout((2, 3), (2, 2))
    s = torch.rand(2, 34, generator=generator()) + 1
    z = torch.randn(2, 34, 5, generator=generator(1))
    s[:, newlines] = -torch.inf
    index, gains = sads_views(s, z, views, 19)                                    # 19 // 5 = 3 each
    assert index.shape == gains.shape == (2, 5, 3)
    for v in range(5):
        assert torch.equal(index[:, v], views[v][sads(s[:, views[v]], z[:, views[v]], 3)[0]])
    plan = select_views(s, z, views, 19, newlines)
    assert len(plan) == 15 + 4 and (plan.index.diff(dim=1) > 0).all()
    assert plan.kept()[:, newlines].all()
    assert plan.roles == ("view 0", "view 1", "view 2", "view 3", "view 4", "newline")
    for slot, role in zip(plan.index[0].tolist(), plan.role[0].tolist(), strict=True):
        assert slot in (newlines if role == 5 else views[role])
    assert len(select_views(s, z, views, 19)) == 15
    everything = select_views(s, z, views, 1.0, newlines)
    assert torch.equal(everything.apply(z), z)


def test_views_of_uneven_length():
    """Unpadded tiles have fewer tokens; -1 fills the table and is never chosen, not even by a view
    that keeps all it has."""
    g = generator()
    for filled in ([5, 6, 7, -1, -1], [-1, 5, -1, 6, 7]):
        views = torch.tensor([[0, 1, 2, 3, 4], filled])
        for _ in range(10):
            s, z = torch.rand(1, 8, generator=g), torch.randn(1, 8, 2, generator=g)
            z[0, 6] = z[0, 5]                      # distance 0 to a token that may be chosen before
            index, _ = sads_views(s, z, views, 6)
            assert sorted(index[0, 1].tolist()) == [5, 6, 7]
            assert torch.equal(index[:, 0], sads(s[:, :5], z[:, :5], 3)[0])
            assert torch.equal(index[:, 1], 5 + sads(s[:, 5:], z[:, 5:], 3)[0])
    needs = r"keep=8 is 4 for each of 2 views; it must lie in 1 ... 3"
    with pytest.raises(ValueError, match=needs):
        sads_views(s, z, views, 8)
    with pytest.raises(ValueError, match="keep=1 is 0 for each of 2 views"):
        sads_views(s, z, views, 1)
    with pytest.raises(ValueError, match="keep=9 but there are 8 tokens"):
        sads_views(s, z, views, 9)


# ---------------------------------------------------------------- prune
def test_prune_is_sensitivity_then_select():
    v, u = vision(), torch.randn(8, 6, generator=generator(2))
    s = sensitivity(v.features, v.project, directions=u)
    assert torch.equal(prune(v, 5, directions=u).index, select(s, v.tokens, 5).index)
    first, second = (prune(v, 5, generator=generator()).index for _ in range(2))
    assert torch.equal(first, second)
    short = sensitivity(v.features, low_rank(v.project, 3), directions=u)
    assert torch.equal(prune(v, 5, directions=u, rank=3).index, select(short, v.tokens, 5).index)
    assert torch.equal(prune(v, 1.0).apply(v.tokens), v.tokens)


def test_batch_of_one_equals_batch_of_many():
    v = vision(batch=4)
    many = prune(v, 5, generator=generator()).index
    for b in range(4):
        one = VisionOutputs(v.selected[b:b + 1], v.grid, v.project)
        assert torch.equal(prune(one, 5, generator=generator()).index[0], many[b])


def test_bf16_meta_and_autocast():
    low = vision(torch.bfloat16)
    plan = prune(low, 5, generator=generator())
    assert plan.index.shape == (2, 5) and plan.apply(low.tokens).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert prune(vision(), 5).index.shape == (2, 5)
    v = vision()
    meta = VisionOutputs(v.selected.to("meta"), v.grid, v.project.to("meta"))
    for rank in (None, 2):
        plan = prune(meta, 5, rank=rank)
        assert plan.index.device.type == "meta" and plan.index.shape == (2, 5)
    views, newlines = anyres_layout((2, 3), (1, 2), "meta")
    s, z = torch.rand(1, 20, device="meta"), torch.rand(1, 20, 4, device="meta")
    plan = select_views(s, z, views, 6, newlines)
    assert plan.index.shape == (1, 8)


def test_compiles():
    net, x, u = projector(), features(), directions(8)

    def run(x):
        return sensitivity(x, net, directions=u)
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), run(x))


@pytest.mark.parametrize("bad, message", [
    (dict(keep=13), "keep=13 but there are 12 tokens"), (dict(keep=0.0), "keep=0.0"),
    (dict(keep=3, num_directions=0), "num_directions=0"),
    (dict(keep=3, step=0.0), "step=0.0 .*above 0"),
    (dict(keep=3, chunk=0), "chunk=0"), (dict(keep=3, chunk=2.0), "chunk=2.0"),
    (dict(keep=3, directions=torch.ones(4, 5)),
     r"directions has shape \(4, 5\) but needs \(m, 6\)"),
    (dict(keep=3, directions=torch.ones(0, 6)), "m >= 1"),
    (dict(keep=3, rank=7), "rank=7 does not lie in 1 ... 6"),
    (dict(keep=3, rank=(2, 1.5)), r"rank\[1\]=1.5"),
    (dict(keep=3, step="a"), "step='a'"), (dict(keep=3, step=float("nan")), "step=nan"),
    (dict(keep=3, generator=7), "generator is a int"),
])
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        prune(vision(), **bad)


def test_bad_shapes():
    needs = r"sensitivity has shape \(2, 11\) but needs \(B, N\) = \(2, 12\)"
    with pytest.raises(ValueError, match=needs):
        select(torch.rand(2, 11), features(), 3)
    with pytest.raises(ValueError, match=r"views is torch.int64 \(12,\)"):
        select_views(torch.rand(2, 12), features(), torch.arange(12), 3)
    views = torch.arange(12).view(2, 6)
    for wrong, words in (
        (dict(views=views.int()), "views is torch.int32"),
        (dict(views=views + 1), r"views\[1, 5\]=12 is no place"),
        (dict(newlines=views), "newlines is torch.int64"),
        (dict(newlines=3), "newlines is a int"),
        (dict(newlines=torch.tensor([12])), r"newlines\[0\]=12 is no place"),
    ):
        with pytest.raises(ValueError, match=words):
            select_views(torch.rand(2, 12), features(), **{**dict(views=views, keep=4), **wrong})
