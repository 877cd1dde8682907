"""Recoverable Compression: the outlier factor is scikit-learn's, the selection a plain loop's, the
flags are the quirks."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.pruning import recoverable
from vtlib.pruning.recoverable import (
    ROLES,
    filters,
    local_outlier_factor,
    local_outliers,
    num_real,
    prune,
    quotas,
    select,
    text_score,
    visual_score,
)
from vtlib.tokens import VisionOutputs


def sklearn_factor(scores, k):
    from sklearn.neighbors import LocalOutlierFactor

    factor = LocalOutlierFactor(n_neighbors=k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")             # more neighbours than scores: it warns and cuts
        factor.fit(scores.numpy()[:, None])
    return torch.from_numpy(-factor.negative_outlier_factor_).float()


def case(batch=3, grid=(6, 7), width=12, joint=10, seed=0, loud=4, asked=3, sharp=3.0):
    """Pictures with a few salient patches and a few that the question is about: vision, and the
    arguments of `prune`."""
    g = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]
    features = torch.randn(batch, 1 + n, width, generator=g)
    query = torch.randn(batch, 1 + n, width, generator=g)
    key = torch.randn(batch, 1 + n, width, generator=g)
    patches = torch.randn(batch, n, joint, generator=g) * 0.6
    text = torch.randn(batch, joint, generator=g)
    asking = F.normalize(text, dim=-1)
    patches = patches - asking[:, None] * (patches @ asking[..., None]) * 0.9
    for b in range(batch):
        some = torch.randperm(n, generator=g)
        key[b, 1 + some[: loud + b]] += sharp * query[b, :1] / query[b, 0].norm()
        patches[b, some[10 : 10 + asked + b]] += 1.5 * F.normalize(text[b], dim=-1)
    vision = VisionOutputs(features, grid, torch.nn.Identity())
    return vision, dict(query=query, key=key, patches=patches, text=text)


def reference(features, query, key, patches, text, neighbours=(20, 20, 10), gathered=32,
              weight=50.0, center_width=None, wrong_keys=False):
    """One image in plain loops, with scikit-learn's factor: the output tokens, and what chose them.
    """
    n = len(features)
    q, keys = query[0].double(), key.double()
    logits = [float(q @ keys[j]) / math.sqrt(key.shape[1]) for j in range(n + 1)]
    top = max(logits)
    a = [math.exp(x - top) / sum(math.exp(y - top) for y in logits) for x in logits][1:]
    cosines = [float(F.cosine_similarity(text.double(), v.double(), dim=0)) for v in patches]
    s = [c / math.sqrt(patches.shape[1]) for c in cosines]

    def outliers(values, k):
        return int((sklearn_factor(torch.tensor(values, dtype=torch.float32), k) > 1.5).sum())

    def best(values, count):
        return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    seen = best(a, outliers(a, neighbours[0]))
    low = min(s)
    masked = [low if j in seen else s[j] for j in range(n)]
    recovered = best(masked, (n - len(seen)) * outliers(masked, neighbours[1]) // n)
    kept = sorted([*seen, *recovered])
    left = [j for j in range(n) if j not in kept]
    count = outliers([a[j] for j in left], neighbours[2])
    count = min(len(left), center_width * count // len(left)) if center_width else count
    centres = [left[p] for p in best([a[j] for j in left], count)]
    out = [features[j] for j in kept]
    k, nothing = key[1:], torch.zeros_like(features[0])

    def likeness(i, j):
        x, y = (k[left.index(i)], k[left.index(j)]) if wrong_keys else (k[i], k[j])
        return float(F.cosine_similarity(x.double(), y.double(), dim=0)) + weight * s[j]
    for i in centres:
        others = [j for j in left if j != i]
        near = sorted(others, key=lambda j, i=i: (-likeness(i, j), j))[:gathered]
        out.append(features[i] + sum((a[j] * features[j] for j in near), nothing))
    if centres:
        out.append(sum((a[j] * features[j] for j in left if j not in centres), nothing))
    return out, seen, recovered, centres


# ---------------------------------------------------------------- the local outlier factor
@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("n", [2, 15, 21, 90, 200])
def test_factor_is_scikit_learns(n, k):
    g = torch.Generator().manual_seed(n + k)
    scores = torch.randn(4, n, generator=g) ** 3
    want = torch.stack([sklearn_factor(row, k) for row in scores])
    torch.testing.assert_close(local_outlier_factor(scores, k), want, rtol=2e-4, atol=2e-5)


def test_factor_with_duplicates_is_scikit_learns():
    g = torch.Generator().manual_seed(1)
    scores = torch.rand(3, 60, generator=g)
    scores[:, ::3] = scores.amin(1, keepdim=True)        # 20 equal ones and more: densities of 1e10
    for k in (5, 20, 25):
        want = torch.stack([sklearn_factor(row, k) for row in scores])
        assert want.max() > 1e3 or k == 25
        got = local_outlier_factor(scores, k)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
        assert torch.equal(got > 1.5, want > 1.5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=40), st.integers(1, 25))
def test_factor_on_any_scores(values, k):
    scores = torch.tensor([values])
    if scores.unique().diff().numel() and scores.unique().diff().min() < 1e-4:
        return                                           # there the 1e-10 guard and rounding decide
    x = scores[0]
    gaps = (x[:, None] - x).abs().sort(1).values
    k_cut = min(k, len(values) - 1)
    if k_cut < len(values) - 1:
        equal = (gaps[:, k_cut + 1] - gaps[:, k_cut]).abs() < 1e-6
        if (equal & (gaps[:, k_cut] > 0)).any():
            return                             # equally far to the left and right: anybody's choice
    got, want = local_outlier_factor(scores, k)[0], sklearn_factor(x, k)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_factor_of_a_masked_row_is_that_of_the_rest_alone():
    g = torch.Generator().manual_seed(2)
    scores, mask = torch.randn(5, 50, generator=g), torch.rand(5, 50, generator=g) < 0.6
    mask[3] = False
    mask[4] = torch.arange(50) == 7
    got = local_outlier_factor(scores, 10, mask)
    for row, there, found in zip(scores[:3], mask[:3], got[:3], strict=True):
        torch.testing.assert_close(found[there], local_outlier_factor(row[there][None], 10)[0])
        assert (found[~there] == 1).all()
    assert (got[3:] == 1).all()


def test_outliers_ignore_scale_and_shift_and_survive_constants():
    g = torch.Generator().manual_seed(3)
    scores = torch.randn(4, 100, generator=g) ** 3
    found = local_outliers(scores, 20)
    assert found.any() and not found.all()
    for factor, shift in ((4.0, 0.0), (0.5, 3.0), (8.0, -16.0)):
        assert torch.equal(local_outliers(scores * factor + shift, 20), found)
    for constant in (torch.zeros(2, 30), torch.full((2, 30), 0.7), torch.zeros(2, 1)):
        assert not local_outliers(constant, 20).any()


def test_low_outliers_count_but_high_scores_are_kept():
    scores = torch.linspace(0, 1, 40)[None].clone()
    scores[0, 11] = -9.0
    found = local_outliers(scores, 5)[0]
    assert found[11] and not found[39]
    picked = filters(scores, torch.zeros_like(scores), (5, 5, 5))
    assert not picked.vision[0, 11] and picked.vision[0, 39] and picked.counts[0, 0] == found.sum()


def test_a_ramp_has_no_outliers_and_a_block_of_equals_makes_many():
    ramp = torch.linspace(0, 1, 80)[None]
    assert not local_outliers(ramp, 20).any()
    block = torch.where(torch.arange(80) % 2 == 0, torch.tensor(0.0), ramp)
    assert local_outliers(block, 20).sum() >= 10   # scores near the block, which are what they were


# ---------------------------------------------------------------- scores
def test_scores():
    vision, args = case()
    a, s = visual_score(args["query"], args["key"]), text_score(args["text"], args["patches"])
    attn = (args["query"] @ args["key"].mT / math.sqrt(12)).softmax(-1)
    torch.testing.assert_close(a, attn[:, 0, 1:])
    torch.testing.assert_close(a.sum(1), 1 - attn[:, 0, 0])
    assert s.abs().max() <= 1 / math.sqrt(10) + 1e-6
    cosine = F.cosine_similarity(args["text"][:, None], args["patches"], dim=-1)
    torch.testing.assert_close(s * math.sqrt(10), cosine)
    assert text_score(torch.ones(1, 10), args["patches"][:1].bfloat16()).dtype == torch.float32


# ---------------------------------------------------------------- the plan
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_plain_loops(seed, released):
    vision, args = case(seed=seed)
    flags = dict(released_center_count=True, released_key_index=True) if released else {}
    plan = prune(vision, **args, **flags)
    out, real = plan.apply(vision.features), num_real(plan)
    sizes = []
    for b in range(3):
        one = [vision.features[b], *(args[name][b] for name in ("query", "key", "patches", "text"))]
        want, seen, recovered, centres = reference(
            *one, center_width=12 if released else None, wrong_keys=released)
        assert real[b] == len(want) == len(seen) + len(recovered) + len(centres) + bool(centres)
        torch.testing.assert_close(out[b, : len(want)], torch.stack(want), atol=2e-5, rtol=1e-4)
        assert (out[b, len(want) :] == 0).all() and (plan.index[b, len(want) :] == -1).all()
        roles = [ROLES[r] for r in plan.role[b].tolist()]
        assert sorted(plan.index[b][plan.role[b] == 0].tolist()) == sorted(seen)
        assert sorted(plan.index[b][plan.role[b] == 1].tolist()) == sorted(recovered)
        assert plan.index[b][plan.role[b] == 2].tolist() == centres
        assert roles[len(want) :] == ["empty"] * (len(plan) - len(want))
        assert roles.count("extra") == bool(centres)
        sizes.append(len(want))
    assert max(sizes) == len(plan)


def test_kept_rows_are_bit_identical_in_order_and_disjoint():
    vision, args = case(batch=5, seed=7)
    plan = prune(vision, **args)
    out = plan.apply(vision.features)
    for b in range(5):
        rows = (plan.role[b] < 2).nonzero()[:, 0]
        index = plan.index[b, rows]
        assert len(rows) and (index.diff() > 0).all() and torch.equal(rows, torch.arange(len(rows)))
        assert torch.equal(out[b, rows], vision.features[b, index])
        centres = plan.index[b][plan.role[b] == 2]
        assert not set(index.tolist()) & set(centres.tolist())
        a = visual_score(args["query"], args["key"])[b]
        assert (a[centres].diff() <= 0).all()


def test_the_flags_change_what_they_should():
    vision, args = case(seed=1, grid=(8, 8), width=40)
    base = prune(vision, **args)
    counted = prune(vision, **args, released_center_count=True)
    keyed = prune(vision, **args, released_key_index=True)
    centres = [(p.role == 2).sum().item() for p in (base, counted, keyed)]
    assert centres[1] < centres[0] == centres[2] > 0         # 40 channels, but more tokens are left
    assert torch.equal(keyed.index, base.index) and not torch.equal(keyed.origin, base.origin)


def test_the_released_count_loses_one_where_the_product_falls_short():
    assert int(100 * (29 / 100)) == 28
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        scores = torch.randn(1, 100, generator=g) ** 3
        if local_outliers(scores, 5).sum() == 29:
            flat = torch.zeros(1, 100)
            found = [filters(scores, flat, (5, 5, 5), float_count=flag).counts[0, 0].item()
                     for flag in (False, True)]
            break
    assert found == [29, 28]


def test_extra_token_needs_a_centre():
    visual = torch.linspace(0.001, 0.002, 30)[None]           # a ramp: no visual outlier, no centre
    text = torch.zeros(1, 30)
    text[0, [3, 20]] = torch.tensor([0.3, 0.2])
    text += torch.linspace(0, 0.01, 30)
    plan = select(visual, text, torch.randn(1, 30, 4))
    assert plan.index.tolist() == [[3, 20]] and plan.role.tolist() == [[1, 1]]
    nothing = select(visual, torch.zeros(1, 30), torch.randn(1, 30, 4))
    assert len(nothing) == 0 and num_real(nothing).tolist() == [0]
    assert nothing.apply(torch.randn(1, 30, 4)).shape == (1, 0, 4)


def test_recovery_finds_what_the_question_asks_for():
    """Claim 1: 196 tokens, 10 salient ones, 8 others that match the question."""
    recalls = []
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        visual = (torch.randn(1, 196, generator=g) * 0.3 - 6).exp()
        text = torch.randn(1, 196, generator=g) * 0.01
        some = torch.randperm(196, generator=g)
        visual[0, some[:10]] += 0.02 + 0.01 * torch.rand(10, generator=g)
        text[0, some[10:18]] += 0.1 + 0.05 * torch.rand(8, generator=g)
        plan = select(visual, text, torch.randn(1, 196, 8, generator=g))
        kept = plan.index[plan.role < 2]
        by_eye = visual[0].topk(len(kept)).indices
        recalls.append([torch.isin(some[10:18], chosen).float().mean().item()
                        for chosen in (kept, by_eye)])
    with_text, without = np.mean(recalls, axis=0)
    assert with_text > 0.95 and without < 0.35


def test_text_weight_zero_clusters_by_keys_alone():
    vision, args = case(seed=2)
    a, s = visual_score(args["query"], args["key"]), text_score(args["text"], args["patches"])
    plan = select(a, s, args["key"][:, 1:], text_weight=0.0, num_gathered=4)
    unit = F.normalize(args["key"][:, 1:], dim=-1)
    b, i = next((b, i) for b in range(3) for i in plan.index[b][plan.role[b] == 2].tolist())
    left = ~filters(a, s).kept[b]
    left[i] = False
    near = torch.where(left, unit[b] @ unit[b, i], -2.0).topk(4).indices
    row = plan.matrix()[b, plan.index[b].tolist().index(i)]
    assert set(row.nonzero()[:, 0].tolist()) == {i, *near.tolist()} and row[i] == 1


def test_fewer_left_than_a_centre_gathers():
    vision, args = case(batch=2, grid=(4, 5), seed=4)
    plan = prune(vision, 10, **args)
    assert plan.apply(vision.features).isfinite().all()
    for b in range(2):
        for slot in (plan.role[b] == 2).nonzero()[:, 0]:
            row = plan.matrix()[b, slot]
            # all that is left, itself included
            assert row.count_nonzero() == 20 - (plan.role[b] < 2).sum()


# ---------------------------------------------------------------- a budget
@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=3, max_size=3), st.integers(1, 60))
def test_quotas_fill_the_budget(counts, keep):
    share = quotas(torch.tensor([counts]), keep)[0]
    assert (share >= 0).all() and share.sum() + (share[2] > 0) == keep
    if sum(counts):
        exact = [(keep - 1) * c / sum(counts) for c in counts]
        slack = 1 if share[2] else 2
        assert all(abs(s - e) <= slack for s, e in zip(share.tolist(), exact, strict=True))


@pytest.mark.parametrize("keep", [1, 2, 3, 7, 20, 41])
def test_forced_budget_has_exactly_keep_slots(keep):
    vision, args = case(seed=5)
    plan = prune(vision, keep, **args)
    assert len(plan) == keep and (num_real(plan) == keep).all() and (plan.role < 4).all()
    for b in range(3):
        chosen = plan.index[b][plan.role[b] < 3].tolist()
        assert len(set(chosen)) == len(chosen)
    assert plan.apply(vision.features).isfinite().all()


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 30), st.integers(0, 30), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_any_scores_give_a_sound_plan(n, keep, ties, released, seed):
    g = torch.Generator().manual_seed(seed)
    visual = (torch.randn(2, n, generator=g) * 2).softmax(1)
    text = torch.randn(2, n, generator=g) ** 3 / 10
    if ties:
        visual, text = (visual * 8).round() / 8, text.round(decimals=1)
    keep = keep if 1 <= keep <= n else None
    flags = {}
    if released:
        flags = dict(released_center_count=1000, released_key_index=True, released_float_count=True)
    keys = torch.randn(2, n, 4, generator=g)
    plan = select(visual, text, keys, keep, n_neighbors=(3, 3, 2), **flags)
    x = torch.randn(2, n, 5, generator=g)
    out, real = plan.apply(x), num_real(plan)
    assert out.isfinite().all() and len(plan) == (keep or real.max())
    for b in range(2):
        index, role = plan.index[b, : real[b]], plan.role[b, : real[b]].tolist()
        assert (plan.role[b, real[b] :] == 4).all() and (out[b, real[b] :] == 0).all()
        kept = [s for s, r in enumerate(role) if r < 2]
        assert role[len(kept) :] == [2] * (role.count(2)) + [3] * role.count(3)
        assert (3 in role) == (2 in role)
        assert (index[kept].diff() > 0).all() and torch.equal(out[b, kept], x[b, index[kept]])
        chosen = index[[s for s, r in enumerate(role) if r < 3]].tolist()
        assert len(set(chosen)) == len(chosen)


def test_keep_all_is_the_identity():
    vision, args = case()
    for keep in (42, 1.0):
        assert torch.equal(prune(vision, keep, **args).apply(vision.features), vision.features)


def test_batch_rows_are_independent():
    vision, args = case(batch=4, seed=6)
    for keep in (None, 9):
        plan = prune(vision, keep, **args)
        out = plan.apply(vision.features)
        for b in range(4):
            alone = VisionOutputs(vision.selected[b : b + 1], vision.grid, vision.project)
            one = prune(alone, keep, **{name: value[b : b + 1] for name, value in args.items()})
            assert torch.equal(one.index, plan.index[b : b + 1, : len(one)])
            got, want = one.apply(alone.features), out[b : b + 1, : len(one)]
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_permuting_the_tokens_permutes_the_choice():
    vision, args = case(batch=2, seed=8)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(0))
    shuffled = torch.cat([vision.selected[:, :1], vision.features[:, order]], 1)
    moved = VisionOutputs(shuffled, vision.grid, vision.project)
    behind = torch.cat([torch.zeros(1, dtype=torch.long), order + 1])
    permuted = dict(query=args["query"], key=args["key"][:, behind],
                    patches=args["patches"][:, order], text=args["text"])
    first, second = prune(vision, **args), prune(moved, **permuted)
    assert torch.equal(first.kept()[:, order], second.kept())
    one = first.apply(vision.features)[first.role == 2]
    two = second.apply(moved.features)[second.role == 2]
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- meta, bfloat16, compile, bad
# input
def test_meta_device_with_a_budget():
    vision, args = case()
    far = VisionOutputs(vision.selected.to("meta"), vision.grid, vision.project)
    plan = prune(far, 10, **{name: value.to("meta") for name, value in args.items()})
    assert plan.apply(far.features).shape == (3, 10, 12) and plan.index.is_meta


def test_bfloat16_and_autocast():
    vision, args = case()
    half = VisionOutputs(vision.selected.bfloat16(), vision.grid, vision.project)
    plan = prune(half, **{name: value.bfloat16() for name, value in args.items()})
    out = plan.apply(half.features)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    assert plan.weight.dtype == torch.float32
    plain = prune(vision, **args)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prune(vision, **args).index, plain.index)


def test_compile():
    torch._dynamo.reset()
    vision, args = case()
    a, s = visual_score(args["query"], args["key"]), text_score(args["text"], args["patches"])

    def run(a, s, keys, x):
        return select(a, s, keys, 10).apply(x)
    inputs = (a, s, args["key"][:, 1:], vision.features)
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), run(*inputs))


@pytest.mark.parametrize("change, message", [
    (dict(keep=0), "keep=0"),
    (dict(keep=43), "keep=43 but there are 42"),
    (dict(keep=1.5), "keep=1.5"),
    (dict(query=torch.zeros(3, 42, 12)),
     r"query has shape \(3, 42, 12\) but needs \(3, 43, channels\)"),
    (dict(key=torch.zeros(2, 43, 12)), "key has shape"),
    (dict(patches=torch.zeros(3, 43, 10)),
     r"patches has shape \(3, 43, 10\) but needs \(3, 42, channels\)"),
    (dict(text=torch.zeros(3, 11)), r"text has shape \(3, 11\) but needs \(3, 10\)"),
    (dict(n_neighbors=(0, 5, 5)), r"n_neighbors\[0\]=0"),
    (dict(n_neighbors=(5, 5)), r"n_neighbors=\(5, 5\): needs a sequence of 3 integers"),
    (dict(text_weight=torch.nan), "text_weight=nan"),
    (dict(text_weight="50"), "text_weight='50'"),
    (dict(num_gathered=-4), "num_gathered=-4"),
    (dict(num_gathered=2.5), "num_gathered=2.5"),
    (dict(released_center_count=0.5), "released_center_count=0.5"),
])
def test_bad_input(change, message):
    vision, args = case()
    with pytest.raises(ValueError, match=message):
        prune(vision, **{**args, **change})


@pytest.mark.parametrize("num_prefix", [-1, 99, 1.0])
def test_prefix_of_the_visual_score(num_prefix):
    args = case()[1]
    with pytest.raises(ValueError, match=f"num_prefix={num_prefix}.*needs an integer from 0 to"):
        visual_score(args["query"], args["key"], num_prefix)


@pytest.mark.parametrize("call, words", [
    (lambda c: recoverable.quotas(c, -4), "keep=-4: needs an integer of at least 1"),
    (lambda c: recoverable.quotas(c, 2.5), "keep=2.5"),
    (lambda c: recoverable.quotas(-c, 4), "counts=.*at least 0"),
    (lambda c: recoverable.quotas(c[:, :2], 4), r"counts is torch.int64 \(1, 2\)"),
    (lambda c: recoverable.quotas(c.float(), 4), "counts is torch.float32"),
    (lambda c: recoverable.filters(torch.rand(2, 9), torch.rand(2, 9), counts=c),
     r"counts .* \(2, 3\)"),
    (lambda c: local_outlier_factor(torch.rand(2, 9), mask=torch.ones(2, 9)), "mask is"),
    (lambda c: visual_score(torch.rand(2, 9, 4), torch.rand(2, 9, 5)), "agree in B, C and dtype"),
    (lambda c: text_score(torch.rand(3, 4), torch.rand(2, 9, 4)), "text has shape"),
])
def test_numbers_that_are_none(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.tensor([[4, 2, 1]]))


def test_needs_a_cls_and_agreeing_shapes():
    vision, args = case()
    with pytest.raises(ValueError, match="num_prefix=0"):
        prune(VisionOutputs(vision.features, vision.grid, vision.project, num_prefix=0), **args)
    with pytest.raises(ValueError, match="must agree"):
        select(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 5, 2))
    method = recoverable.METHOD
    assert method.asks and method.space == "features" and method.reads == ()
    assert method.signals == ("query", "key", "patches", "text")
