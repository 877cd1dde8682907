"""AIM: merging and page rank against plain loops, the paper's numbers, and the schedule to zero in
the decoder."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.pruning import aim
from vtlib.pruning.aim import (
    halvings,
    merge,
    merge_counts,
    merge_step,
    page_rank,
    prune,
    ramp_for,
    rate,
    split_budget,
    stages,
)
from vtlib.tokens import Stage, VisionOutputs
from vtlib.tokens.cost import decoder_flops, tokens_per_layer
from vtlib.vlm import Decoder
from vtlib.vlm.decoder import rotate

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
NUM_VISUAL, DIM, VISUAL, SIZE = 16, 16, slice(3, 19), 24


def tokens(batch=2, size=14, dim=6, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, size, dim, generator=g, dtype=torch.float64).to(dtype)


def vision(x, grid=None):
    return VisionOutputs(x, grid or (1, x.shape[1]), project=lambda t: t, num_prefix=0)


def build(num_layers=6, kv=2, dtype=torch.float64):
    torch.manual_seed(0)
    model = Decoder(DIM, num_layers, 4, kv, 24)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.dim() > 1 else torch.nn.init.ones_(p)
    return model.to(dtype).eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------
# ---------------------- merging
def loop_step(x, r):
    """One image, a list of token vectors -> (list of vectors, list of lists: which went in)."""
    size, r = len(x), min(r, len(x) // 2)
    if r == 0:
        return list(x), [[i] for i in range(size)]
    cosine = lambda a, b: float(a @ b / (a.norm() * b.norm()))                   # noqa: E731
    best = {}
    for i in range(0, size, 2):
        best[i] = max(((cosine(x[i], x[j]), -j) for j in range(1, size, 2)))
    order = sorted(best, key=lambda i: (-best[i][0], i))
    groups = [[i] for i in order[r:]]
    for j in range(1, size, 2):
        groups.append([j, *(i for i in order[:r] if -best[i][1] == j)])
    return [torch.stack([x[i] for i in group]).mean(0) for group in groups], groups


@given(st.integers(1, 21), st.integers(0, 12), st.integers(0, 100))
@SETTINGS
def test_one_step_in_loops(size, r, seed):
    x = tokens(2, size, seed=seed)
    plan = merge_step(x, r)
    out = plan.apply(x)
    assert len(plan) == size - min(r, size // 2)
    for b in range(2):
        want, groups = loop_step(x[b], r)
        # weights are float32
        torch.testing.assert_close(out[b], torch.stack(want), atol=1e-6, rtol=1e-6)
        assert plan.index[b].tolist() == [g[0] for g in groups]
        source = plan.source()[b].tolist()
        assert all(source[i] == s for s, g in enumerate(groups) for i in g)


@given(st.integers(1, 33), st.lists(st.integers(0, 20), max_size=4), st.integers(0, 100))
@SETTINGS
def test_several_steps_as_one_plan(size, steps, seed):
    x = tokens(2, size, seed=seed)
    plan, y = merge(x, steps), x
    for b in range(2):
        vectors, members = list(x[b]), [[i] for i in range(size)]
        for r in steps:
            vectors, groups = loop_step(vectors, r)
            members = [[m for i in g for m in members[i]] for g in groups]
        torch.testing.assert_close(plan.apply(x)[b], torch.stack(vectors), atol=1e-5, rtol=1e-5)
        source = plan.source()[b].tolist()
        # every token exactly once
        assert sorted(m for g in members for m in g) == list(range(size))
        assert all(source[i] == s for s, g in enumerate(members) for i in g)
        if plan.merges:
            assert [int(v) for v in plan.role[b]] == [int(len(g) > 1) for g in members]
    for r in steps:
        y = merge_step(y, r).apply(y)
    torch.testing.assert_close(plan.apply(x), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plan.matrix().sum(-1), torch.ones(2, len(plan)), atol=1e-5, rtol=0)
    assert torch.equal(plan.then(merge_step(y, 0)).index, plan.index)


@pytest.mark.parametrize("size, steps, sizes", [
    (196, 2, [98, 49]), (49, 2, [25, 13]), (64, 4, [32, 16, 8, 4]), (3, 2, [2, 2]),
    (576, 3, [288, 144, 72])])
def test_halvings(size, steps, sizes):
    r = halvings(size, steps)
    got, n = [], size
    for step in r:
        n -= min(step, n // 2)
        got.append(n)
    assert got == sizes
    assert len(merge(tokens(1, size), r)) == sizes[-1]
    assert len(prune(vision(tokens(1, size)), 0.5**steps)) == sizes[-1]


@given(st.integers(1, 80), st.data())
@SETTINGS
def test_any_number_can_be_reached(size, data):
    keep = data.draw(st.integers(1, size))
    plan = prune(vision(tokens(1, size)), keep)
    assert len(plan) == keep
    r, n = merge_counts(keep, size), size
    for step in r:
        assert 1 <= step <= n // 2
        n -= step
    assert keep == n and all(a >= b for a, b in itertools.pairwise(r))
    if keep < size and keep <= size - size // 2:      # on its way it passes the paper's first count
        assert r[0] == size // 2


def test_fractions():
    assert merge_counts(0.25, 49) == [24, 12] and merge_counts(13, 49) == [24, 12]
    assert merge_counts(0.3, 50) == [25, 10]
    assert merge_counts(1.0, 50) == [] and merge_counts(50, 50) == []


def test_keep_all_is_the_identity():
    x = tokens(dtype=torch.float32)
    for plan in (prune(vision(x), 1.0), prune(vision(x), 14), merge_step(x, 0), merge(x, [0, 0])):
        assert torch.equal(plan.apply(x), x) and not plan.merges


def test_raster_order_is_lost_and_alike_go_first():
    x = tokens(1, 8, 4)
    x[0, 2] = 2 * x[0, 5]                             # exactly the same direction, twice the length
    plan = merge_step(x, 1)
    assert plan.source()[0, 2] == plan.source()[0, 5]
    # three unmerged, then 1, 3, 5, 7
    torch.testing.assert_close(plan.apply(x)[0, 3 + 2], 1.5 * x[0, 5])
    assert plan.index[0, 3:].tolist() == [1, 3, 5, 7]
    assert sorted(plan.index[0, :3].tolist()) == [0, 4, 6]
    similarity, _ = aim.match(x)
    falling = [float(similarity[0, i // 2]) for i in plan.index[0, :3].tolist()]
    assert falling == sorted(falling, reverse=True)


def test_ties_go_to_the_lower_index():
    x = torch.ones(2, 9, 4)
    plan = merge_step(x, 2)
    assert plan.index.tolist() == [[4, 6, 8, 1, 3, 5, 7]] * 2       # 0 and 2 go, both into 1
    assert plan.source().tolist() == [[3, 3, 3, 4, 0, 5, 1, 6, 2]] * 2
    # tokens that are all alike leave that token
    torch.testing.assert_close(merge(x, [4, 2]).apply(x), torch.ones(2, 3, 4))
    assert merge_step(torch.zeros(1, 4, 3), 2).apply(torch.zeros(1, 4, 3)).isfinite().all()


def test_sizes_are_not_tracked():
    """Weighing the outputs by how many tokens are in them gives the inputs' mean after one step,
    not after two (ToMe would keep it)."""
    x = tokens(1, 32)

    def weighted(plan):
        counts = torch.bincount(plan.source()[0], minlength=len(plan)).double()
        return (plan.apply(x)[0] * counts[:, None]).sum(0) / 32
    torch.testing.assert_close(weighted(merge(x, [16])), x[0].mean(0), atol=1e-6, rtol=1e-5)
    assert (weighted(merge(x, [16, 8])) - x[0].mean(0)).abs().max() > 1e-3
    plan = merge(x, [16, 8])
    shares = [{round(float(w), 6) for w in plan.weight[0, plan.slot[0] == s]} for s in range(8)]
    assert any(len(share) > 1 for share in shares)


def test_frames_do_not_mix():
    x = tokens(3, 20)
    together, alone = merge(x, [10, 5]), merge(x[1:2], [10, 5])
    assert torch.equal(together.index[1:2], alone.index)
    torch.testing.assert_close(together.apply(x)[1:2], alone.apply(x[1:2]))
    y = x.clone()
    y[0] += 1
    torch.testing.assert_close(merge(y, [10, 5]).apply(y)[1:], together.apply(x)[1:])


def test_scale_does_not_matter_but_order_does():
    x = tokens()
    assert torch.equal(merge(3 * x, [7, 3]).slot, merge(x, [7, 3]).slot)
    order = torch.arange(14).roll(1)
    here, moved = (merge(t, [7, 3]).apply(t).sort(dim=1).values for t in (x, x[:, order]))
    assert not torch.allclose(moved, here)                          # even and odd changed places


def test_merging_meta_bf16_gradient():
    far = torch.empty(2, 30, 4, device="meta")
    assert merge(far, [15, 7]).apply(far).shape == (2, 8, 4)
    x = tokens(dtype=torch.bfloat16)
    out = merge(x, [7, 3]).apply(x)
    assert out.dtype == torch.bfloat16 and out.shape == (2, 4, 6) and out.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        # similarities are not left to eight bits
        assert torch.equal(merge(x.float(), [7]).slot, merge(x, [7]).slot)
    x = tokens().requires_grad_()
    merge(x, [7, 3]).apply(x).sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).all()


@pytest.mark.parametrize("call, words", [
    (lambda: merge_step(tokens(), -1), "r=-1"), (lambda: merge_step(tokens()[0], 1), "3 axes"),
    (lambda: prune(vision(tokens()), 15), "keep=15 but there are 14"),
    (lambda: prune(vision(tokens()), 0), "keep=0"),
    (lambda: prune(vision(tokens()), 0.0), "fraction")])
def test_merging_refuses(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)


# ------------------------------------------------------------------------------------------------
# -------------------- page rank
def hide_later(logits):
    later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -torch.inf)


def causal_logits(batch=2, heads=3, size=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return hide_later(torch.randn(batch, heads, size, size, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("tau, iterations, damping", [
    (0.1, 5, 0.0), (1.0, 1, 0.0), (0.5, 3, 0.15), (1.0, 0, 0.3)])
def test_page_rank_in_loops(tau, iterations, damping):
    logits = causal_logits()
    got = page_rank(logits, tau, iterations, damping)
    for b in range(2):
        total = [0.0] * 12
        for h in range(3):
            s = [1 / 12] * 12
            for _ in range(iterations):
                new = [damping / 12] * 12
                for i in range(12):
                    weights = [math.exp(float(v) / tau) for v in logits[b, h, i, : i + 1]]
                    for j, w in enumerate(weights):
                        new[j] += (1 - damping) * s[i] * w / sum(weights)
                s = new
            total = [t + v**2 / 3 for t, v in zip(total, s, strict=True)]
        torch.testing.assert_close(got[b], torch.tensor(total, dtype=torch.float64).sqrt())


def test_page_rank_limits():
    one_head = causal_logits(heads=1)
    # each head's mass sums to 1
    torch.testing.assert_close(page_rank(one_head).sum(1), torch.ones(2, dtype=torch.float64))
    even = torch.full((2, 12), 1 / 12, dtype=torch.float64)
    torch.testing.assert_close(page_rank(one_head, damping=1.0), even)
    far = page_rank(causal_logits(), tau=1.0, iterations=2000)
    # token 0 attends to itself alone: it absorbs all
    torch.testing.assert_close(far[:, 0], torch.ones(2, dtype=torch.float64))
    assert far[:, 1:].max() < 1e-6
    plain = causal_logits().softmax(-1).mean(2)                 # one iteration, tau 1: column means
    torch.testing.assert_close(page_rank(causal_logits(), 1.0, 1), plain.square().mean(1).sqrt())


def test_page_rank_drains_to_the_front_and_a_low_temperature_slows_it():
    logits = causal_logits(4, 4, 64, seed=3)

    def front(tau, n):
        mass = page_rank(logits, tau, n).square()
        return float(mass[:, :8].sum() / mass.sum())
    drained = [front(1.0, n) for n in (1, 2, 5, 10, 40)]
    assert drained == sorted(drained) and drained[-1] > 0.99
    cold, warm = (page_rank(logits[:, :1], tau, 40)[:, :8].sum(1) for tau in (0.1, 1.0))
    assert (cold < warm + 1e-9).all()


def test_padding_takes_no_part():
    logits = causal_logits(1, 2, 9)
    padded = hide_later(torch.zeros(1, 2, 12, 12, dtype=torch.float64))
    padded[:, :, :9, :9] = logits
    padded[:, :, :, 9:] = -torch.inf
    running = torch.arange(12)[None] < 9
    for damping in (0.0, 0.2):
        got = page_rank(padded, damping=damping, running=running)
        torch.testing.assert_close(got[:, :9], page_rank(logits, damping=damping))
        assert (got[:, 9:] == 0).all()
        padded[:, :, 9:] = -torch.inf                               # padding that sees nothing
        assert torch.equal(page_rank(padded, damping=damping, running=running), got)


def test_a_query_that_sees_nothing_is_refused():
    logits = causal_logits(1, 2, 9)
    logits[0, 1, 4] = -torch.inf
    with pytest.raises(ValueError, match="page rank .* non-finite"):
        page_rank(logits)
    running = torch.ones(1, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="page rank .* non-finite"):
        page_rank(logits, running=running)


WRONG_CONSTANTS = [
    (dict(tau=0.0), "tau=0.0 .*above 0"), (dict(tau="a"), "tau='a'"), (dict(tau=torch.nan), "tau="),
    (dict(iterations=-1), "iterations=-1"), (dict(iterations=1.5), "iterations=1.5"),
    (dict(damping=1.5), "damping=1.5"), (dict(damping=2), "damping=2"),
]


@pytest.mark.parametrize("more, words", WRONG_CONSTANTS)
def test_constants_of_a_page_rank(more, words):
    with pytest.raises(ValueError, match=words):
        page_rank(causal_logits(), **more)
    with pytest.raises(ValueError, match=words):                    # where they are given
        stages(6, 8, 16, **more)


@pytest.mark.parametrize("call, words", [
    (lambda: aim.match(tokens()[:, :1]), "N >= 2"),
    (lambda: merge(tokens(), 3), "steps=3: needs a sequence of integers"),
    (lambda: merge(tokens(), [1.5]), r"steps\[0\]=1.5"),
    (lambda: aim.halvings("9"), "num_tokens='9'"), (lambda: aim.halvings(9, -1), "steps=-1"),
    (lambda: rate(3, 5, 5), "l1=5.0, l2=5.0: needs l1 < l2"),
    (lambda: rate("3", 1, 5), "layer='3'"),
    (lambda: aim.mean_rate(0, 1, 5), "num_layers=0"),
    (lambda: aim.ramp_for(6, 1.5, 2), "mean=1.5"), (lambda: aim.ramp_for(6, 0.1, 2), "mean=0.1"),
    (lambda: aim.ramp_for(6, 0.5, 0), "width=0 .*above 0"),
    (lambda: page_rank(torch.zeros(1, 2, 3)), "4 axes"),
    (lambda: page_rank(causal_logits(), running=torch.ones(2, 12)), "running is torch.float32"),
    (lambda: stages(6, None, 16, rates="high"), "rates='high'"),
    (lambda: stages(6, None, 16, rates=(1, 1, 1, 0.5, torch.nan, 0)), r"rates\[4\]=nan"),
    (lambda: stages(6, 8, "16"), "num_visual='16'"), (lambda: stages("6", 8, 16), "num_layers='6'"),
])
def test_arguments_that_are_none(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_least_mean_of_a_ramp():
    """The first layer alone sees all."""
    l1, l2 = aim.ramp_for(6, 1 / 6, 2)
    assert aim.mean_rate(6, l1, l2) == pytest.approx(1 / 6) and rate(1, l1, l2) == 0


# ------------------------------------------------------------------------------------------------
# --------------------- schedule
def test_the_papers_schedule():
    # 0-based, 28 layers
    release = [1.0] * 14 + [0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125] + [0.0] * 7
    rates = [rate(layer + 1, 14, 22) for layer in range(28)]
    assert rates == release
    assert rates == [min(1, max(0, 1 - (layer - 13) / 8)) for layer in range(28)]
    cuts = stages(28, None, 1568)
    left = {c.after - 1: c.keep for c in cuts}                      # after 0-based layer
    assert left[14] == 1372 and left[20] == 196 and left[21] == 0
    assert min(left) == 14 and max(left) == 21
    assert [c.keep for c in cuts] == [c.keep for c in stages(28, None, 1568, rates=release)]
    assert [c.after for c in stages(32, None, 576, "image")] == list(range(14, 22))
    assert [(c.after, c.keep) for c in stages(28, None, 1568, l1=14, l2=15)] == [(15, 0)]
    assert [(c.after, c.keep) for c in stages(6, None, 64)] == [(4, 26), (5, 0)]
    assert stages(6, None, 64, l1=6, l2=8) == []
    cuts = stages(3, None, 49, rates=(0.875, 0.5, 0.1))
    assert [c.keep for c in cuts] == [42, 24]


@given(st.integers(2, 40), st.integers(1, 300), st.data())
@SETTINGS
def test_keep_is_the_mean_over_layers(num_layers, num_visual, data):
    keep = data.draw(st.integers(-(-num_visual // num_layers), num_visual))
    cuts = stages(num_layers, keep, num_visual)
    left = [c.keep for c in cuts]
    assert left == sorted(set(left), reverse=True)
    mean = sum(tokens_per_layer(num_layers, num_visual, 0, cuts)) / num_layers
    assert keep - 1 < mean <= keep + 1e-6
    if keep == num_visual:
        assert cuts == []


@given(st.integers(2, 40), st.integers(1, 300), st.sampled_from(["video", "image"]), st.data())
@SETTINGS
def test_both_knobs(num_layers, num_visual, schedule, data):
    keep = data.draw(st.integers(1, num_visual))
    merged, cuts = split_budget(num_layers, keep, num_visual, schedule)
    assert 1 <= merged <= num_visual
    mean = sum(tokens_per_layer(num_layers, merged, 0, cuts)) / num_layers
    assert keep - 2 < mean <= max(keep, 1) + 1e-6
    if keep == num_visual:
        assert merged == num_visual and cuts == []
    if merged < num_visual:
        want = stages(num_layers, None, merged, schedule)
        assert [(c.after, c.keep) for c in cuts] == [(c.after, c.keep) for c in want]


def test_both_knobs_in_numbers():
    merged, cuts = split_budget(28, 259, 1568)          # the schedule's mean is 18.5/28, 259 of 392
    assert merged == 392 and cuts[-1].keep == 0 and cuts[0].after == 15
    model, x = build(), sequence(2, 3 + 64 + 5)
    merged, cuts = split_budget(6, 8, 64)
    plan = prune(vision(x[:, 3:67]), merged)
    short = torch.cat([x[:, :3], plan.apply(x[:, 3:67]), x[:, 67:]], dim=1)
    run = model.prefill(short, slice(3, 3 + merged), cuts, positions=aim.METHOD.positions)
    assert 6 < sum(run.cache.lengths) / 6 - 8 <= 8
    with pytest.raises(ValueError, match="keep=65 but there are 64"):
        split_budget(6, 65, 64)


def test_ramp_for():
    l1, l2 = ramp_for(28, (14 + 3.5 + 1) / 28, 8)      # the video schedule: 15 see all, 7/8 ... 1/8
    assert math.isclose(l1, 14, abs_tol=1e-6) and math.isclose(l2, 22, abs_tol=1e-6)
    assert [c.keep for c in stages(28, 1036, 1568)] == [c.keep for c in stages(28, None, 1568)]
    # `keep` halves the tokens that a layer sees on average
    assert abs(sum(tokens_per_layer(28, 1568, 0, stages(28, 0.5, 1568))) / 28 - 784) < 1


def test_flops_of_the_schedule_and_of_the_release():
    def flops(cuts):
        return decoder_flops(tokens_per_layer(28, 1568, 60, cuts), 3584, 18944, gated=True)
    full, late, early = (flops(cuts) for cuts in (
        [], stages(28, None, 1568), stages(28, None, 1568, l1=7, l2=22)))
    assert early < late < 0.7 * full
    model, x = build(28), torch.randn(1, SIZE, DIM, dtype=torch.float64)
    cuts = stages(28, None, NUM_VISUAL)
    drop, mask = both_modes(model, x, cuts)
    assert drop.cache.lengths == tokens_per_layer(28, NUM_VISUAL, 8, cuts)
    assert mask.cache.lengths == [SIZE] * 28           # what the masked release computes: no saving


# ------------------------------------------------------------------------------------------------
# ------------- in the decoder
def sequence(batch=2, size=SIZE, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, size, DIM, generator=g, dtype=torch.float64).to(dtype)


def both_modes(model, x, cuts):
    return (model.prefill(x, VISUAL, cuts, positions="keep", mode=mode)
            for mode in ("drop", "mask"))


def test_one_cut_in_the_decoder_by_hand():
    model, x = build(), sequence()
    cuts = stages(6, None, NUM_VISUAL, rates=(1, 0.3, 0.3, 0.3, 0.3, 0.3))
    run = model.prefill(x, VISUAL, cuts, positions="keep")
    y, rope = x, model.rope(torch.arange(SIZE)[None])
    y, _, _ = model.layers[0](y, rope)
    z = model.layers[1].input_layernorm(y)               # the layer that has just run, not the next
    attn = model.layers[1].self_attn
    q, k = (rotate(p(z).unflatten(-1, (-1, 4)).transpose(1, 2), *rope)
            for p in (attn.q_proj, attn.k_proj))
    logits = hide_later(q @ k.repeat_interleave(2, 1).mT / 2)
    score = page_rank(logits)[:, VISUAL]
    for b in range(2):
        assert run.plan.index[b].tolist() == sorted(score[b].argsort(descending=True)[:4].tolist())
    assert run.cache.lengths == [24, 24, 12, 12, 12, 12]


def test_dropping_equals_masking_with_one_cut():
    """Same scores at the first cut, so the same tokens, so the same numbers for those that stay."""
    model, x = build(), sequence()
    cuts = stages(6, None, NUM_VISUAL, l1=2, l2=3)                  # 16, 16, 16, then none
    assert [(c.after, c.keep) for c in cuts] == [(3, 0)]
    cuts = stages(6, None, NUM_VISUAL, rates=(1, 1, 0.4, 0.4, 0.4, 0.4))
    drop, mask = both_modes(model, x, cuts)
    assert torch.equal(drop.plan.index, mask.plan.index)
    before, behind = torch.arange(3).expand(2, -1), torch.arange(19, SIZE).expand(2, -1)
    kept = torch.cat([before, 3 + drop.plan.index, behind], 1)
    want = mask.hidden.gather(1, kept[..., None].expand(-1, -1, DIM))
    torch.testing.assert_close(drop.hidden, want, atol=1e-6, rtol=1e-6)


def test_masked_rows_send_mass_and_dropped_rows_do_not():
    """With several cuts the two modes score differently: in the release's, tokens that are gone
    still vote."""
    model, x = build(), sequence()
    cuts = stages(6, None, NUM_VISUAL, rates=(0.75, 0.5, 0.25, 0.125, 0, 0))
    drop, mask = both_modes(model, x, cuts)
    first = mask.plans[0].kept()
    state = mask.states[1]
    assert torch.equal(state.alive, first) and state.running.all()
    rank = page_rank(state.logits(layer="last"), running=state.running)
    assert (rank[:, VISUAL][~first] == 0).all()                     # nobody looks at them
    votes = state.attention(layer="last")[:, :, VISUAL][~first[:, None].expand(-1, 4, -1)]
    # but they look
    torch.testing.assert_close(votes.sum(-1), torch.ones(len(votes), dtype=torch.float64))
    dropped = page_rank(drop.states[1].logits(layer="last"), running=drop.states[1].running)
    assert dropped.shape[1] == SIZE - 4
    assert (dropped[:, 3:15] - rank[:, VISUAL].gather(1, drop.plans[0].index)).abs().max() > 1e-4


@pytest.mark.parametrize("mode", ["drop", "mask"])
def test_text_stays_and_masks_are_nested(mode):
    model, x = build(), sequence()
    valid = torch.arange(SIZE) < torch.tensor([[SIZE], [SIZE - 2]])
    cuts = stages(6, 0.4, NUM_VISUAL)
    run = model.prefill(x, VISUAL, cuts, valid, "keep", mode)
    index = torch.arange(NUM_VISUAL).expand(2, -1)
    for plan in run.plans:
        after = plan.index if mode == "mask" else index.gather(1, plan.index)
        assert all(set(a.tolist()) <= set(i.tolist()) for a, i in zip(after, index, strict=True))
        index = after
    assert run.plan.index.shape == (2, 0) and run.valid.sum(1).tolist() == [8, 6]
    for b, size in enumerate((SIZE, SIZE - 2)):           # the release takes the first one's length
        one = model.prefill(x[b:b + 1, :size], VISUAL, cuts, None, "keep", mode)
        for together, alone in zip(run.plans, one.plans, strict=True):
            assert torch.equal(together.index[b:b + 1], alone.index)
        new = torch.zeros(1, 1, DIM, dtype=torch.float64)
        got, want = one.hidden[0, one.valid[0]][-5:], run.hidden[b, run.valid[b]][-5:]
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-6)
        assert model.step(new, one.cache).isfinite().all()


@pytest.mark.parametrize("mode", ["drop", "mask"])
def test_padding_does_not_vote(mode, monkeypatch):
    votes = []

    def spy(logits, tau, iterations, damping, running=None):
        votes.append(running)
        return page_rank(logits, tau, iterations, damping, running)
    monkeypatch.setattr(aim, "page_rank", spy)
    model, x = build(), sequence(1)
    longer = torch.cat([x, 5 * sequence(1, 40, seed=8)], dim=1)
    valid = torch.arange(SIZE + 40)[None] < SIZE
    cuts = stages(6, 0.5, NUM_VISUAL)
    alone, padded = (model.prefill(t, VISUAL, cuts, v, "keep", mode)
                     for t, v in ((x, None), (longer, valid)))
    scored = [s for run in (alone, padded) for s, cut in zip(run.states, cuts, strict=True)
              if cut.keep]
    assert len(votes) == len(scored)
    assert all(torch.equal(v, s.running) for v, s in zip(votes, scored, strict=True))
    for a, b in zip(alone.states, padded.states, strict=True):
        want, got = (page_rank(s.logits(layer="last"), running=s.running) for s in (a, b))
        torch.testing.assert_close(got[:, : want.shape[1]], want)
        assert (got[:, want.shape[1]:] == 0).all() and not b.running[:, want.shape[1]:].any()
    for a, b in zip(alone.plans, padded.plans, strict=True):
        assert torch.equal(a.index, b.index)


def test_compile_without_graph_breaks():
    torch._dynamo.reset()
    x, logits = tokens(dtype=torch.float32), causal_logits().float()
    for function, argument in ((lambda t: merge(t, [7, 3]).apply(t), x), (page_rank, logits)):
        compiled = torch.compile(function, backend="eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(compiled(argument), function(argument))


def test_keep_all_in_the_decoder():
    model, x = build(dtype=torch.float32), sequence(dtype=torch.float32)
    for mode in ("drop", "mask"):
        run = model.prefill(x, VISUAL, stages(6, 1.0, NUM_VISUAL), positions="keep", mode=mode)
        assert torch.equal(run.hidden, model(x))
    look = [Stage(3, 1.0, stages(6, 0.5, NUM_VISUAL)[0].plan)]
    assert torch.equal(model.prefill(x, VISUAL, look, positions="keep").hidden, model(x))


def test_decoder_meta_and_bf16():
    with torch.device("meta"):
        model, x = Decoder(DIM, 6, 4, 2, 24), torch.empty(2, SIZE, DIM)
        run = model.prefill(x, VISUAL, stages(6, None, NUM_VISUAL), positions="keep")
        assert run.hidden.is_meta and run.hidden.shape == (2, 8, DIM)
    model, x = build(dtype=torch.bfloat16), sequence(dtype=torch.bfloat16)
    run = model.prefill(x, VISUAL, stages(6, 0.4, NUM_VISUAL), positions="keep")
    assert run.hidden.dtype == torch.bfloat16 and run.hidden.isfinite().all()
    assert page_rank(run.states[0].logits(layer="last")).dtype == torch.float32


@pytest.mark.parametrize("arguments, words", [
    (dict(schedule="film"), "schedule='film'"), (dict(num_layers=1), "num_layers=1"),
    (dict(keep=None, l1=2), "l1 with l2"),
    (dict(l1=2, l2=3), "one of keep"), (dict(rates=(1,) * 6), "one of keep"),
    (dict(keep=None, l1=3, l2=3), "l1 < l2"), (dict(keep=None, rates=(1, 0.5)), "one entry"),
    (dict(keep=None, rates=(0.5, 1, 1, 1, 1, 1)), "not rise"),
    (dict(keep=17), "keep=17 but there are 16"),
    (dict(keep=None, rates=(2, 1, 1, 1, 1, 1)), "0 ... 1"), (dict(keep=2), "at least 2.7"),
    (dict(keep=0), "keep=0"),
])
def test_stages_refuse(arguments, words):
    with pytest.raises(ValueError) as error:
        stages(**{**dict(num_layers=6, keep=8, num_visual=16), **arguments})
    assert words in str(error.value)
