"""HoloV against plain loops, and the properties that its quotas promise."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.pruning import holov
from vtlib.pruning.holov import (
    bands,
    crop_scores,
    crop_weights,
    prune,
    quotas,
    rectangles,
    score,
    select,
)
from vtlib.tokens import VisionOutputs

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)


def example(batch=2, num_tokens=30, dim=8, seed=0, dtype=torch.float64, power=1.0):
    """Tokens with correlated neighbours, and attention that sums to one."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, num_tokens, dim, generator=g, dtype=dtype).cumsum(dim=1)
    a = torch.rand(batch, num_tokens, generator=g, dtype=dtype) ** power
    return x, a / a.sum(dim=1, keepdim=True)


def vision(grid=(5, 6), batch=2, dim=8, heads=3, dtype=torch.float64, seed=0, **more):
    x, a = example(batch, grid[0] * grid[1], dim, seed, dtype)
    row = torch.stack([a * (1 + 0.1 * i) for i in range(heads)], dim=1)
    selected = torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)
    return VisionOutputs(selected, grid, project=lambda t: t * 2, cls_row=row, **more)


def crop_lists(table):
    return [[int(i) for i in row if i >= 0] for row in table]


# ---------------------------------------------------------------- plain loops
def loop_score(x, a, crops, variance_weight, raw_singles=False):
    h = [0.0] * len(a)
    for members in crops:
        m = len(members)
        if m == 1:
            h[members[0]] = float(a[members[0]]) * (1 if raw_singles else 1000)
            continue
        z = [x[i] / (x[i].norm() + 1e-6) for i in members]
        s = [[0.0 if i == j else float(z[i] @ z[j]) for j in range(m)] for i in range(m)]
        mu = [sum(row) / (m - 1) for row in s]
        var = [sum((v - mu[i]) ** 2 for v in s[i]) / (m - 1) for i in range(m)]
        big = [1000 * float(a[i]) for i in members]
        gamma = (sum(big) / m) / (sum(var) / m + 1e-6)
        for place, i in enumerate(members):
            h[i] = big[place] + variance_weight * gamma * var[place]
    return h


def loop_quota(weight, sizes, keep, allocate):
    """One token at a time where the rule says so; python floats."""
    count = len(weight)
    q = [int(w * keep) for w in weight]
    order = sorted(range(count), key=lambda c: (-weight[c], c))
    for c in order[: keep - sum(q)]:
        q[c] += 1
    if allocate == "release":
        return q
    q = [min(a, b) for a, b in zip(q, sizes, strict=True)]
    while sum(q) < keep:
        left = keep - sum(q)
        pull = [w * (m - k) for w, m, k in zip(weight, sizes, q, strict=True)]
        share = [p / sum(pull) if sum(pull) else 0.0 for p in pull]
        add = [min(int(left * s), m - k) for s, m, k in zip(share, sizes, q, strict=True)]
        if not any(add):
            free = [c for c in range(count) if q[c] < sizes[c]]
            free.sort(key=lambda c: (-share[c], c))
            for c in free[:left]:
                add[c] = 1
        q = [k + n for k, n in zip(q, add, strict=True)]
    return q


def loop_holov(x, a, crops, keep, allocate="paper", rank_by="attention", variance_weight=0.09,
               tau=1.0, order="raster"):
    h = loop_score(x, a, crops, variance_weight, allocate == "release")
    s = [sum(h[i] for i in members) / len(members) for members in crops]
    top = max(s) if tau != 1 else 1.0
    s = [(v / top) ** tau for v in s]
    weight = [v / (sum(s) + 1e-6) for v in s]
    out = []
    quota = loop_quota(weight, [len(m) for m in crops], keep, allocate)
    value = a if rank_by == "attention" else h
    for members, q in zip(crops, quota, strict=True):
        if q < len(members):
            members = sorted(members, key=lambda i: (-float(value[i]), i))[:q]
        out += members
    out = sorted(out) if order == "raster" else out
    return (out + [-1] * keep)[:keep]


@pytest.mark.parametrize("allocate", holov.ALLOCATE)
@pytest.mark.parametrize("rank_by", holov.RANK_BY)
@pytest.mark.parametrize("order", holov.ORDER)
@pytest.mark.parametrize("tau", [1.0, 0.5, 3.0])
def test_equals_plain_loops(allocate, rank_by, order, tau):
    cases = [(1, 7, 1), (4, 11, 1), (7, 13, 6), (30, 15, 2), (8, 29, 9), (5, 30, 9)]
    for num_crops, keep, power in cases:
        x, a = example(power=power, seed=num_crops)
        table = bands(30, num_crops)
        h = score(x, a, table, 0.3, raw_singles=allocate == "release")
        plan = select(h, a, table, keep, allocate, rank_by, tau, order)
        for b in range(len(x)):
            rules = (allocate, rank_by, 0.3, tau, order)
            want = loop_holov(x[b], a[b], crop_lists(table), keep, *rules)
            assert plan.index[b].tolist() == want, (num_crops, keep, b)


TABLES = [bands(30, 4), bands(30, 30), bands(29, 1), rectangles((5, 6), (2, 4))]


@pytest.mark.parametrize("table", TABLES, ids=len)
@pytest.mark.parametrize("raw_singles", [False, True])
def test_score_equals_plain_loops(table, raw_singles):
    num_tokens = int(table.max()) + 1
    x, a = example(num_tokens=num_tokens)
    for weight in (0.09, 1.0):
        got = score(x, a, table, weight, raw_singles)
        want = [loop_score(x[b], a[b], crop_lists(table), weight, raw_singles) for b in range(2)]
        want = torch.tensor(want, dtype=torch.float64)
        torch.testing.assert_close(got, want)


# ---------------------------------------------------------------- crops
@given(st.integers(1, 80), st.data())
@SETTINGS
def test_bands_are_even_runs(num_tokens, data):
    num_crops = data.draw(st.integers(1, num_tokens))
    crops = crop_lists(bands(num_tokens, num_crops))
    assert [i for crop in crops for i in crop] == list(range(num_tokens))
    sizes = [len(crop) for crop in crops]
    short, longer = divmod(num_tokens, num_crops)
    assert sizes == [short + 1] * longer + [short] * (num_crops - longer)


@given(st.integers(1, 7), st.integers(1, 7), st.data())
@SETTINGS
def test_rectangles_partition_the_grid(h, w, data):
    r, s = data.draw(st.integers(1, h)), data.draw(st.integers(1, w))
    crops = crop_lists(rectangles((h, w), (r, s)))
    assert len(crops) == r * s and sorted(i for crop in crops for i in crop) == list(range(h * w))
    for crop in crops:
        rows, cols = {i // w for i in crop}, {i % w for i in crop}
        assert len(crop) == len(rows) * len(cols)
        assert max(rows) - min(rows) < len(rows) and max(cols) - min(cols) < len(cols)
        assert crop == sorted(crop)


def test_rectangles_choose_square_factors():
    assert torch.equal(rectangles((8, 8), 16), rectangles((8, 8), (4, 4)))
    assert torch.equal(rectangles((4, 8), 8), rectangles((4, 8), (2, 4)))
    with pytest.raises(ValueError, match="num_crops=11 does not factor.*8 x 8"):
        rectangles((8, 8), 11)


def test_default_number_of_crops():
    assert holov.default_crops(576, 64) == 16 and holov.default_crops(576, 576) == 1
    assert holov.default_crops(64, 1) == 64


def test_a_band_runs_through_views():
    # two views of 6 tokens, concatenated: 4 5 | 6 7
    assert crop_lists(bands(12, 3))[1] == [4, 5, 6, 7]


# ---------------------------------------------------------------- quotas
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.data())
@SETTINGS
def test_paper_quotas_spend_the_budget(weight, data):
    sizes = [data.draw(st.integers(1, 6)) for _ in weight]
    keep = data.draw(st.integers(1, sum(sizes)))
    w = torch.tensor([weight], dtype=torch.float64)
    w = w / (w.sum() + 1e-6)
    q = quotas(w, torch.tensor(sizes), keep)[0]
    assert q.sum() == keep and (q >= 0).all() and (q <= torch.tensor(sizes)).all()
    assert q.tolist() == loop_quota(w[0].tolist(), sizes, keep, "paper")
    release = quotas(w, torch.tensor(sizes), keep, "release")[0]
    assert release.tolist() == loop_quota(w[0].tolist(), sizes, keep, "release")


def test_equal_scores_give_even_quotas():
    for num_crops, keep in [(8, 40), (8, 13), (7, 20)]:
        q = quotas(torch.full((1, num_crops), 1 / num_crops), torch.full((num_crops,), 12), keep)
        assert q.sum() == keep and q.max() - q.min() <= 1
        assert (q[0].diff() <= 0).all()                             # ties to the lower index


def test_the_rest_goes_to_the_largest_weights_not_the_largest_remainders():
    w = torch.tensor([[0.52, 0.24, 0.24]])                          # times 10: 5.2 2.4 2.4
    assert quotas(w, torch.tensor([9, 9, 9]), 10).tolist() == [[6, 2, 2]]


def test_surplus_follows_weight_times_free_places():
    w = torch.tensor([[0.8, 0.15, 0.05]])
    # 20 tokens: 16 3 1; clamped to 6: left 10; pull 0.15*7, 0.05*9 -> shares 0.7, 0.3 -> 7 and 3
    assert quotas(w, torch.tensor([6, 10, 10]), 20).tolist() == [[6, 10, 4]]
    assert quotas(w, torch.tensor([6, 10, 10]), 20, "release").tolist() == [[16, 3, 1]]


def test_no_weight_outside_a_full_crop():
    """All attention in one crop: the rest is dealt one each in raster order of crops, several
    rounds."""
    one_crop = torch.tensor([[0.0, 1.0, 0.0]])
    assert quotas(one_crop, torch.tensor([4, 4, 4]), 9).tolist() == [[3, 4, 2]]


def test_crop_weights():
    x, a = example(power=3)
    table = bands(30, 6)
    h = score(x, a, table)
    total = crop_weights(h, table).sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
    flat = crop_weights(h, table, 0.0)
    sixths = torch.full((2, 6), 1 / 6, dtype=torch.float64)
    torch.testing.assert_close(flat, sixths, atol=1e-5, rtol=0)
    sharp = crop_weights(h, table, float("inf"))
    assert torch.equal(sharp.argmax(dim=1), crop_scores(h, table).argmax(dim=1))
    assert (sharp.amax(dim=1) > 0.9999).all()
    dealt = quotas(crop_weights(h, table, 200.0), torch.full((6,), 5), 5)
    assert torch.equal(dealt.amax(dim=1), torch.tensor([5, 5]))
    shares = [float(crop_weights(h, table, tau).amax()) for tau in (0, 0.5, 1, 2, 4)]
    assert shares == sorted(shares) and shares[0] < shares[-1]


def test_scaling_the_attention_changes_nothing():
    x, a = example(power=3)
    table = bands(30, 6)
    for allocate in holov.ALLOCATE:
        plans = [select(score(x, a * c, table), a * c, table, 12, allocate).index
                 for c in (1.0, 0.2, 7.0)]
        assert torch.equal(plans[0], plans[1]) and torch.equal(plans[0], plans[2])
    torch.testing.assert_close(score(x, a * 5, table), 5 * score(x, a, table))
    torch.testing.assert_close(score(x * 5, a, table), score(x, a, table), rtol=1e-4, atol=0)


def test_variance_term_has_the_mean_of_the_attention_term():
    """Paper: gamma alone, so without its own weight the term doubles the crop's mean."""
    x, a = example()
    table = bands(30, 5)
    only_a, both = (crop_scores(score(x, a, table, weight), table) for weight in (0.0, 1.0))
    torch.testing.assert_close(both, 2 * only_a, rtol=1e-3, atol=0)


# ---------------------------------------------------------------- select
def test_one_crop_is_top_k_by_attention():
    x, a = example()
    table = bands(30, 1)
    plan = select(score(x, a, table), a, table, 9, "release", order="release")
    assert torch.equal(plan.index, a.argsort(dim=1, descending=True)[:, :9])


def test_every_crop_one_token():
    x, a = example()
    table = bands(30, 30)
    plan = select(score(x, a, table), a, table, 15)
    assert plan.index.shape == (2, 15) and torch.equal(plan.index, plan.role)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 1.0), st.floats(0, 4),
       st.integers(0, 5), st.sampled_from(holov.LAYOUTS))
@SETTINGS
def test_exact_budget_without_repeats(h, w, fraction, tau, seed, layout):
    v = vision((h, w), seed=seed)
    keep = max(1, round(fraction * h * w))
    num_crops = min(h, 3) if layout == "bands" else (min(h, 2), min(w, 2))
    plan = prune(v, fraction, num_crops=num_crops, layout=layout, tau=tau)
    assert plan.index.shape == (2, keep) and plan.num_tokens == h * w
    assert (plan.index[:, 1:] > plan.index[:, :-1]).all() and (plan.index >= 0).all()
    if keep == h * w:
        assert torch.equal(plan.apply(v.tokens), v.tokens)


def test_flat_attention_spreads_and_ties_go_to_the_lower_index():
    x, a, table = torch.ones(1, 24, 4), torch.full((1, 24), 1 / 24), bands(24, 4)
    plan = select(score(x, a, table), a, table, 8)
    assert plan.index[0].tolist() == [0, 1, 6, 7, 12, 13, 18, 19]
    assert plan.role[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and plan.roles[2] == "crop 2"


def test_release_loses_what_a_crop_cannot_hold():
    x, _ = example(num_tokens=24)
    a = torch.full((2, 24), 0.001, dtype=torch.float64)
    a[:, 6:12] = 0.16                                       # band 1 of 4 holds nearly all attention
    table = bands(24, 4)
    h = score(x, a, table)
    release, paper = select(h, a, table, 12, "release"), select(h, a, table, 12)
    zeros = (release.index < 0)
    assert zeros.sum(dim=1).tolist() == [6, 6] and zeros[:, -6:].all()
    assert (release.role[:, -6:] == -1).all() and not release.apply(x)[:, -6:].any()
    assert (paper.index >= 0).all() and (paper.role == 1).sum(dim=1).tolist() == [6, 6]


def test_sharper_attention_costs_the_release_more_rows():
    """The quota is proportional to attention mass, so sharpening it (the order of tokens stays)
    empties slots; tau < 1 or the paper's rule cure it."""
    lost = []
    x, a = example(num_tokens=64, power=2)
    table = bands(64, 8)
    for power in (1, 2, 4):
        sharp = a**power / (a**power).sum(dim=1, keepdim=True)
        h = score(x, sharp, table)
        lost.append(int((select(h, sharp, table, 32, "release").index < 0).sum()))
        assert (select(h, sharp, table, 32).index >= 0).all()
        assert (select(h, sharp, table, 32, "release", tau=0.0).index >= 0).all()
    assert lost[0] < lost[1] < lost[2]


def test_rank_by_score_can_differ():
    x, a = example(power=0.1)
    table = bands(30, 3)
    h = score(x, a, table, 1.0)
    by_score = select(h, a, table, 9, rank_by="score")
    assert not torch.equal(select(h, a, table, 9).index, by_score.index)


# ---------------------------------------------------------------- prune
def test_prune_is_score_then_select():
    v = vision()
    a = v.cls_row.mean(dim=1)
    for allocate in holov.ALLOCATE:
        table = bands(30, 6)
        h = score(v.tokens, a, table, raw_singles=allocate == "release")
        got = prune(v, 10, num_crops=6, allocate=allocate).index
        assert torch.equal(got, select(h, a, table, 10, allocate).index)
    table = rectangles((5, 6), (2, 3))
    h = score(v.tokens, a, table, 1.0)
    want = select(h, a, table, 10, rank_by="score", tau=0.5, order="release").index
    got = prune(v, 10, (2, 3), "rectangles", "paper", "score", 1.0, 0.5, "release").index
    assert torch.equal(got, want)


def test_keep_all_is_the_identity():
    for allocate in holov.ALLOCATE:
        for order in holov.ORDER:
            v = vision(dtype=torch.float32)
            plan = prune(v, 1.0, allocate=allocate, order=order)
            assert torch.equal(plan.apply(v.tokens), v.tokens)


def test_batch_of_one_equals_batch_of_many():
    v = vision(batch=5, seed=3)
    many = prune(v, 8, num_crops=5)
    for b in range(5):
        one = VisionOutputs(v.selected[b:b + 1], v.grid, v.project, cls_row=v.cls_row[b:b + 1])
        assert torch.equal(prune(one, 8, num_crops=5).index[0], many.index[b])


def test_half_precision_and_autocast():
    v = vision(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        auto = prune(v, 9, num_crops=4, rank_by="score").index
        h = score(v.tokens, v.cls_row.mean(1), bands(30, 4))
    assert torch.equal(auto, prune(v, 9, num_crops=4, rank_by="score").index)
    assert h.dtype == torch.float32
    assert torch.equal(h, score(v.tokens, v.cls_row.mean(1), bands(30, 4)))
    low = vision(dtype=torch.bfloat16)
    plan = prune(low, 9, num_crops=4)
    assert plan.apply(low.tokens).dtype == torch.bfloat16 and (plan.index >= 0).all()


def test_degenerate_inputs_give_no_nan():
    table = bands(12, 4)
    no_token = torch.zeros(1, 12, 3), torch.full((1, 12), 1 / 12)
    no_attention = torch.randn(1, 12, 3), torch.zeros(1, 12)
    for x, a in (no_token, no_attention):
        h = score(x, a, table)
        assert h.isfinite().all() and crop_weights(h, table, 0.5).isfinite().all()
        assert select(h, a, table, 7).index[0].unique().numel() == 7


def test_meta_device():
    v = vision(dtype=torch.float32)
    meta = VisionOutputs(v.selected.to("meta"), v.grid, v.project, cls_row=v.cls_row.to("meta"))
    for layout in holov.LAYOUTS:
        plan = prune(meta, 7, num_crops=6, layout=layout)
        assert plan.index.shape == plan.role.shape == (2, 7) and plan.index.device.type == "meta"


def test_compiles():
    v = vision(dtype=torch.float32)
    a, table = v.cls_row.mean(1), bands(30, 4)

    def run(x, a):
        return select(score(x, a, table), a, table, 9, "release").index
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    assert torch.equal(compiled(v.tokens, a), run(v.tokens, a))


def test_refetch():
    g = torch.Generator().manual_seed(0)
    x, z, ffn = (torch.randn(2, n, 4, generator=g) for n in (3, 5, 3))
    want = torch.zeros_like(ffn)
    for b in range(2):
        for t in range(3):
            seen = sum(F.silu(x[b, t] @ z[b, i]) * z[b, i] for i in range(5))
            want[b, t] = 0.3 * seen + 0.7 * ffn[b, t]
    torch.testing.assert_close(holov.refetch(x, z, ffn, 0.3), want)
    assert torch.equal(holov.refetch(x, z, ffn, 0.0), ffn)
    with pytest.raises(ValueError, match="beta=1.5 .*at least 0 and at most 1"):
        holov.refetch(x, z, ffn, 1.5)


@pytest.mark.parametrize("bad, message", [
    (dict(keep=31), "keep=31 but there are 30 tokens"), (dict(keep=0), "keep=0"),
    (dict(keep=5, num_crops=31), "num_crops=31 but there are 30"),
    (dict(keep=5, num_crops=0), "num_crops=0"),
    (dict(keep=5, allocate="both"), "allocate='both' must be one of"),
    (dict(keep=5, rank_by="size"), "rank_by='size'"), (dict(keep=5, order="up"), "order='up'"),
    (dict(keep=5, layout="rings"), "layout='rings'"),
    (dict(keep=5, tau=-1.0), "tau=-1.0"), (dict(keep=5, tau=float("nan")), "tau=nan"),
    (dict(keep=5, num_crops=(2, 3)), r"num_crops=\(2, 3\) must be an int"),
    (dict(keep=5, num_crops=(6, 3), layout="rectangles"), "num_crops=6 but there are 5"),
])
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        prune(vision(), **bad)


@pytest.mark.parametrize("call, words", [
    (lambda s, c: crop_weights(s * torch.nan, c), "token_score .* non-finite"),
    (lambda s, c: holov.crop_scores(s * torch.inf, c), "token_score .* non-finite"),
    (lambda s, c: crop_weights(-s, c, 0.5), "token_score has a crop with the mean -"),
    (lambda s, c: crop_weights(s, c, "1"), "tau='1'"),
    (lambda s, c: score(s[..., None], s, c, torch.nan), "variance_weight=nan"),
    (lambda s, c: quotas(s, c, 5), "sizes is torch.int64"),
    (lambda s, c: quotas(s * torch.nan, (c >= 0).sum(1), 5), "weight .* non-finite"),
    (lambda s, c: quotas(torch.ones(1, 4), (c >= 0).sum(1), 13), "keep=13 but there are 12"),
    (lambda s, c: quotas(torch.ones(1, 4), (c >= 0).sum(1), 0.5), "keep=0.5"),
    (lambda s, c: rectangles(12, 4), "grid=12"),
    (lambda s, c: rectangles((3, 4), (2, 2, 1)), r"num_crops=\(2, 2, 1\): needs a sequence of 2"),
    (lambda s, c: bands(2.0, 1), "num_tokens=2.0"),
    (lambda s, c: holov.default_crops(12, 0), "keep=0"),
    (lambda s, c: prune(s, 5), "vision is torch.float32"),
])
def test_numbers_that_are_none(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.rand(1, 12) + 0.1, bands(12, 4))


def test_bad_shapes():
    x, a = example()
    with pytest.raises(ValueError, match="cls_row is None"):
        prune(VisionOutputs(x, (5, 6), lambda t: t, num_prefix=0), 5)
    with pytest.raises(ValueError, match=r"attention has shape \(2, 3, 30\)"):
        score(x, a[:, None].expand(-1, 3, -1), bands(30, 3))
    with pytest.raises(ValueError, match=r"attention has shape .* but needs \(B, N\) = \(2, 20\)"):
        score(x[:, :20], a, bands(30, 3))
    twice, empty = bands(30, 3), torch.cat([bands(30, 3), torch.full((1, 10), -1)])
    twice[0, 0] = 7
    for crops, words in (
        (twice, "crops has 30 places of tokens: needs each of 0 ... 29 once"),
        (empty, r"crops\[3\] holds no token"),
        (bands(30, 3).int(), "crops is torch.int32"),
        ([[0]], "crops is a list"),
    ):
        for call in (
            lambda c: score(x, a, c), lambda c: select(a, a, c, 5),
            lambda c: crop_weights(a, c), lambda c: holov.crop_scores(a, c),
        ):
            with pytest.raises(ValueError, match=words):
                call(crops)
    needs = r"crops has shape \(3, 7\) but needs \(C, M\) with C M >= 30"
    with pytest.raises(ValueError, match=needs):
        select(a, a, bands(20, 3), 5)
