"""VisionDrop: the encoder's stage and the language model's against plain loops, and what a causal
score does to early tokens."""

import math

import pytest
import torch

from vtlib.pruning import visiondrop
from vtlib.pruning.visiondrop import (
    default_contextual,
    prune,
    reduce,
    schedule,
    score,
    stages,
    visual_score,
)
from vtlib.tokens import VisionOutputs
from vtlib.tokens.cost import tokens_per_layer
from vtlib.vlm.decoder import Decoder


def vision(batch=2, grid=(3, 5), num_prefix=1, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
    attention = randn(batch, 4, num_prefix + n, num_prefix + n).softmax(dim=-1)
    row = attention[:, :, 0, num_prefix:] if num_prefix else None
    selected, keys = randn(batch, num_prefix + n, 8), randn(batch, num_prefix + n, 6)
    return VisionOutputs(selected, grid, torch.nn.Identity(), num_prefix, row, keys, {2: attention})


def loop_plan(importance, keys, keep, contextual, num_prefix):
    """Slots as sets: [(seed, followers)] in output order."""
    d, n = keep - contextual, len(keys)
    patches = sorted(range(num_prefix, n), key=lambda i: (-float(importance[i - num_prefix]), i))
    kept = sorted([*range(num_prefix), *patches[: d - num_prefix]])
    rest = [i for i in range(n) if i not in kept]
    slots = [(i, []) for i in kept]
    if contextual:
        targets = rest[:: max(1, len(rest) // contextual)][:contextual]
        follow = {t: [] for t in targets}
        for i in rest:
            if i not in targets:
                like = [float(torch.cosine_similarity(keys[i], keys[t], dim=0)) for t in targets]
                follow[targets[like.index(max(like))]].append(i)
        slots += list(follow.items())
    return slots


def loop_apply(x, slots):
    return torch.stack([x[i] + (x[follow].mean(dim=0) if follow else 0) for i, follow in slots])


# ---------------------------------------------------------------- budgets
def test_the_releases_schedule_has_a_mean_of_32():
    assert schedule(32) == [(42, 6), (30, 5), (22, 4), (16, 3)]
    encoder, *rest = (d + c for d, c in schedule(32))
    lengths = tokens_per_layer(32, encoder, 0, stages(rest, 32))
    assert lengths == [48] * 8 + [35] * 8 + [26] * 8 + [19] * 8 and sum(lengths) / 32 == 32
    for average in (8, 16, 64, 128, 192):
        assert abs(sum(d + c for d, c in schedule(average)) / 4 - average) < 0.006 * average + 0.5
    assert schedule(1) == [(1, 1), (1, 0), (1, 0), (1, 0)] and len(schedule(32, 2)) == 2
    assert [default_contextual(n) for n in (0, 1, 2, 8, 9)] == [0, 0, 1, 1, 2]
    for average in (0.5, "32", math.nan, math.inf):
        with pytest.raises(ValueError, match=f"average={average!r}"):
            schedule(average)
    with pytest.raises(ValueError, match="num_stages=1.5"):
        schedule(32, 1.5)
    with pytest.raises(ValueError, match="keep=2.5"):
        default_contextual(2.5)


# ---------------------------------------------------------------- stage 0
@pytest.mark.parametrize("num_prefix", [0, 1, 3])
@pytest.mark.parametrize("keep, contextual", [(9, 3), (9, 0), (5, 2), (4, 1), (14, 7), (13, 1)])
def test_encoder_stage_equals_plain_loops(num_prefix, keep, contextual):
    v = vision(num_prefix=num_prefix, dtype=torch.float64)
    plan = prune(v, keep, contextual)
    out = plan.apply(v.selected)
    a = v.attention[2]
    for b in range(2):
        importance = a[b, :, 0, num_prefix:].sum(0) if num_prefix else a[b].sum(0).mean(0)
        slots = loop_plan(importance, v.keys[b], keep, contextual, num_prefix)
        assert plan.index[b].tolist() == [i for i, _ in slots]
        torch.testing.assert_close(out[b], loop_apply(v.selected[b], slots))
    d = keep - contextual
    # [CLS] travels, bit for bit
    assert torch.equal(out[:, :num_prefix], v.selected[:, :num_prefix])
    assert torch.equal(out[:, :d], v.selected.gather(1, plan.index[:, :d, None].expand(-1, -1, 8)))
    assert plan.num_prefix == num_prefix and plan.roles == ("dominant", "contextual")
    assert plan.role.sum() == 2 * contextual
    assert (plan.source() >= 0).all() == (contextual > 0)


def test_dominant_counts_cls():
    v = vision()
    plan = prune(v, 8, 2)
    best = v.cls_row.sum(1).topk(5).indices.sort(dim=1).values + 1
    cls = torch.zeros(2, 1, dtype=torch.long)
    assert torch.equal(plan.index[:, :6], torch.cat([cls, best], dim=1))
    assert prune(v, 1).index.tolist() == [[0], [0]]                               # only [CLS]
    assert prune(v, 2).role.tolist() == [[0, 1]] * 2


def test_default_contextual_and_fractions():
    v = vision()
    assert torch.equal(prune(v, 9).index, prune(v, 9, 2).index) and len(prune(v, 0.5)) == 8


def test_keep_all_is_the_identity():
    for num_prefix in (0, 1, 3):
        v = vision(num_prefix=num_prefix)
        for keep in (1.0, 15 + num_prefix):
            plan = prune(v, keep)
            assert not plan.merges and torch.equal(plan.apply(v.selected), v.selected)


def test_ties_go_to_the_lower_index():
    v = vision()
    v.cls_row = torch.full_like(v.cls_row, 0.05)
    assert prune(v, 6, 0).index.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_score_without_cls_is_attention_received():
    v = vision(num_prefix=0)
    torch.testing.assert_close(score(v), torch.einsum("b h q n -> b n", v.attention[2]) / 15)
    v.attention[4] = v.attention[2].flip(-1)
    torch.testing.assert_close(score(v, 4), score(v, 2).flip(1))
    needs = r"layer=None but vision.attention has the layers \[2, 4\]"
    with pytest.raises(ValueError, match=needs):
        prune(v, 5)


def test_batch_half_precision_and_meta():
    v = vision(batch=4)
    many = prune(v, 9, 3)
    for b in range(4):
        signals = v.cls_row[b:b + 1], v.keys[b:b + 1]
        one = VisionOutputs(v.selected[b:b + 1], v.grid, v.project, 1, *signals)
        assert torch.equal(prune(one, 9, 3).slot[0], many.slot[b])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prune(v, 9, 3).slot, many.slot)
    low = vision(dtype=torch.bfloat16)
    out = prune(low, 9, 3).apply(low.selected)
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()
    signals = v.cls_row.to("meta"), v.keys.to("meta")
    meta = VisionOutputs(v.selected.to("meta"), v.grid, v.project, 1, *signals)
    assert prune(meta, 9, 3).apply(meta.selected).shape == (4, 9, 8)
    run = torch.compile(lambda s, k: reduce(s, k, 9, 3, 1).slot, backend="eager", fullgraph=True)
    assert torch.equal(run(score(v), v.keys), many.slot)


@pytest.mark.parametrize("bad, message", [
    (dict(keep=17), "keep=17 but there are 16 tokens"), (dict(keep=0), "keep=0"),
    (dict(keep=5, contextual=5), r"contextual=5 but keep=5.*0 \.\.\. 4"),
    (dict(keep=5, contextual=-1), "contextual=-1"),
    (dict(keep=5, contextual=2.0), "contextual=2.0"),
])
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        prune(vision(), **bad)


def test_missing_signals():
    v = vision()
    v.keys = None
    with pytest.raises(ValueError, match="vision.keys is None"):
        prune(v, 5)
    v = vision()
    v.cls_row = None
    with pytest.raises(ValueError, match="vision.cls_row is None"):
        prune(v, 5)
    with pytest.raises(ValueError, match="keep=2 but the 3 prefix tokens"):
        prune(vision(num_prefix=3), 2)
    with pytest.raises(ValueError, match=r"score has shape \(2, 16\)"):
        reduce(torch.rand(2, 16), torch.rand(2, 16, 4), 5, num_prefix=1)


# ---------------------------------------------------------------- stages 1-3
def decoder(num_layers=4, num_heads=4, num_kv_heads=None, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return Decoder(16, num_layers, num_heads, num_kv_heads, 24).to(dtype)


def prompt(batch=2, before=3, n=20, behind=4, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, before + n + behind, 16, generator=g, dtype=torch.float64) * 2
    return x.to(dtype), slice(before, before + n)


def loop_attention(model, state):
    """Causal softmax of the next layer for the visual rows, one head and one row at a time: (B,
    heads, n, S)."""
    q, k = model.layers[state.after].qk(state.hidden, model.rope(state.positions))
    group = q.shape[1] // k.shape[1]
    first, stop = state.visual.start, state.visual.stop
    out = torch.zeros(*q.shape[:2], stop - first, q.shape[2], dtype=q.dtype)
    for b in range(len(q)):
        for h in range(q.shape[1]):
            seen = k[b, h // group]
            for r, i in enumerate(range(first, stop)):
                logits = [q[b, h, i] @ seen[j] / q.shape[-1] ** 0.5 for j in range(i + 1)]
                out[b, h, r, : i + 1] = torch.stack(logits).softmax(dim=0)
    return out, k.mean(dim=1)[:, state.visual]


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("normalise", visiondrop.NORMALISE)
def test_stages_equal_plain_loops(num_kv_heads, normalise):
    model, (x, visual) = decoder(num_kv_heads=num_kv_heads), prompt()
    cuts = stages([(9, 3), (4, 2)], 4, after=[1, 3], normalise=normalise)
    with torch.no_grad():
        run = model.prefill(x, visual, cuts)
        for state, plan, (d, c) in zip(run.states, run.plans, [(9, 3), (4, 2)], strict=True):
            attention, keys = loop_attention(model, state)
            n = attention.shape[2]
            # 3 of text, visual ones so far, itself
            keys_seen = torch.arange(n)[:, None] + 4 if normalise == "chance" else 1
            by = n if normalise == "none" else torch.arange(n, 0, -1)
            want = (attention[..., state.visual].mean(1) * keys_seen).sum(1) / by
            got, out = visual_score(state, normalise).double(), plan.apply(state.tokens)
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
            for b in range(2):
                slots = loop_plan(want[b], keys[b], d + c, c, 0)
                assert plan.index[b].tolist() == [i for i, _ in slots]
                torch.testing.assert_close(out[b], loop_apply(state.tokens[b], slots))
    assert run.cache.lengths == [27, 19, 19, 13] and run.visual == slice(3, 9)


def test_text_is_copied_positions_are_renumbered_nothing_is_lost():
    model, (x, visual) = decoder(6), prompt()
    with torch.no_grad():
        run = model.prefill(x, visual, stages([12, 8, 4], 6))
    assert run.cache.lengths == [27, 19, 19, 15, 11, 11]
    assert [s.after for s in run.states] == [1, 3, 4]
    lengths = [27, 19, 15]
    for i, state in enumerate(run.states):
        assert state.hidden.shape[1] == lengths[i]
        assert (state.visual.start, state.visual.stop) == (3, lengths[i] - 4)
        assert torch.equal(state.positions, torch.arange(state.hidden.shape[1]).expand(2, -1))
        plan = run.plans[i]
        d = int((plan.role[0] == 0).sum())
        dominant = state.tokens.gather(1, plan.index[:, :d, None].expand(-1, -1, 16))
        assert torch.equal(plan.apply(state.tokens)[:, :d], dominant)
        assert (plan.source() >= 0).all()
    # through all stages: each of the 20 has a slot
    assert set(run.plan.source()[0].tolist()) == {0, 1, 2, 3}


def test_contextual_tokens_stand_behind_the_dominant_ones_at_the_next_stage():
    model, (x, visual) = decoder(), prompt()
    with torch.no_grad():
        run = model.prefill(x, visual, stages([(6, 4), (5, 0)], 4, after=[1, 1 + 1]))
    assert run.plans[1].num_tokens == 10 and run.plans[0].role[0].tolist() == [0] * 6 + [1] * 4


def test_default_places_of_the_cuts():
    assert [s.after for s in stages([3, 2, 1], 32)] == [8, 16, 24]
    assert [s.after for s in stages([3], 6)] == [3]
    assert [s.keep for s in stages([(5, 2), 0.25, 3], 8)] == [7, 0.25, 3]


def test_keep_all_changes_nothing():
    model, (x, visual) = decoder(), prompt()
    with torch.no_grad():
        plain = model.prefill(x, visual).hidden
        for cuts in (stages([1.0, 1.0], 4), stages([1.0], 4, contextual=0)):
            assert torch.equal(model.prefill(x, visual, cuts).hidden, plain)
        assert model.prefill(x, visual, stages([0], 4)).visual == slice(3, 3)


def test_hiding_equals_dropping():
    """Without contextual tokens and at kept positions; hidden tokens neither vote nor come back."""
    model, (x, visual) = decoder(), prompt()
    for normalise in visiondrop.NORMALISE:
        cuts = stages([9, 4], 4, after=[1, 2], contextual=0, normalise=normalise)
        with torch.no_grad():
            drop, mask = (model.prefill(x, visual, cuts, positions="keep", mode=mode)
                          for mode in ("drop", "mask"))
        assert torch.equal(drop.plan.index, mask.plan.index)
        torch.testing.assert_close(drop.hidden[:, -4:], mask.hidden[:, -4:])


def test_padding_and_batch_do_not_matter():
    model, (x, visual) = decoder(), prompt(batch=3)
    cuts = stages([10, 5], 4)
    with torch.no_grad():
        want = model.prefill(x, visual, cuts)
        one = model.prefill(x[1:2], visual, cuts)
        behind = torch.full((3, 2, 16), 9.0, dtype=x.dtype)
        padded = model.prefill(torch.cat([x, behind], 1), visual, cuts,
                               valid=(torch.arange(29) < 27).expand(3, -1))
    torch.testing.assert_close(one.hidden, want.hidden[1:2])
    torch.testing.assert_close(padded.hidden[:, :-2], want.hidden)


def uniform_state(before=3, n=12, behind=2):
    """A next layer that looks everywhere alike, as for identical tokens at one position."""
    model = decoder()
    torch.nn.init.zeros_(model.layers[1].self_attn.q_proj.weight)
    x, visual = prompt(1, before, n, behind)
    with torch.no_grad():
        return model.prefill(x, visual, stages([5], 4, after=[1])).states[0]


def test_queries_and_keys_are_computed_once_a_cut(monkeypatch):
    state, calls = uniform_state(), []
    qk = type(state).qk
    monkeypatch.setattr(type(state), "qk", lambda self, *args: calls.append(1) or qk(self, *args))
    plan = visiondrop.plan_stage(state, 6, contextual=2)
    assert len(calls) == 1 and len(plan) == 6
    assert torch.equal(visual_score(state), visual_score(state, qk=state.qk()))


def test_causal_bias_in_closed_form():
    p, n = 3, 12
    state = uniform_state(p, n)
    with torch.no_grad():
        got, column, chance = (visual_score(state, kind)[0].double()
                               for kind in ("none", "column", "chance"))
    want = [sum(1 / (p + i + 1) for i in range(j, n)) / n for j in range(n)]
    want = torch.tensor(want, dtype=torch.float64)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(column, want * n / torch.arange(n, 0, -1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(chance, torch.ones_like(chance), atol=1e-6, rtol=1e-5)
    assert (got.diff() < 0).all() and got[0] / got[-1] > 10      # early patches win by construction
    # less steep, but still the same order
    assert (column.diff() < 0).all() and column[0] / column[-1] < 2.2


def test_place_of_the_kept():
    """Random tokens, several seeds, 0 = first, 1 = last. When attention is nearly flat, dividing
    columns leaves the order as it is; comparing with chance does not. When attention is decided,
    both help."""
    place = {}
    for normalise in visiondrop.NORMALISE:
        for gain in (1, 8):
            where, cut = [], stages([10], 4, after=[2], contextual=0, normalise=normalise)
            for seed in range(6):
                x, visual = prompt(4, before=30, n=40, seed=seed)
                model = decoder(seed=seed)
                with torch.no_grad():
                    model.layers[2].self_attn.q_proj.weight *= gain
                    run = model.prefill(x, visual, cut)
                where.append(run.plans[0].index.double().mean() / 39)
            place[normalise, gain] = float(sum(where) / len(where))
    # the first ten of forty: 0.115
    assert place["none", 1] < 0.15 and place["column", 1] < 0.2, place
    assert place["none", 8] + 0.1 < place["column", 8] <= 0.5, place
    assert 0.4 < place["chance", 1] < 0.6 and 0.4 < place["chance", 8] < 0.6, place


def test_decoder_half_precision_and_meta():
    x, visual = prompt(dtype=torch.bfloat16)
    cuts = stages([10, 5], 4)
    with torch.no_grad():
        run = decoder(dtype=torch.bfloat16).prefill(x, visual, cuts)
        assert run.hidden.dtype == torch.bfloat16 and torch.isfinite(run.hidden).all()
        x, model = x.float(), decoder(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(model.prefill(x, visual, cuts).hidden).all()
        meta = model.to("meta").prefill(x.to("meta"), visual, cuts)
    assert meta.hidden.shape == (2, 12, 16)


@pytest.mark.parametrize("bad, message", [
    (dict(budgets=[5, 3], num_layers=4, after=[2]),
     r"after=\[2\] has 1 entries but there are 2 budgets"),
    (dict(budgets=[5], num_layers=4, after=[4]), r"after=\[4\] must rise and stay in 0 ... 3"),
    (dict(budgets=[5, 3], num_layers=4, after=[2, 2]), "must rise"),
    (dict(budgets=[5, 3], num_layers=4, after=[1.5, 3]), r"after\[0\]=1.5 \(float\): needs"),
    (dict(budgets=[5], num_layers=4, after="1"), "after='1': needs a sequence of integers"),
    (dict(budgets=[5], num_layers=4, after=1), "after=1: needs a sequence of integers"),
    (dict(budgets=[5], num_layers=4, normalise="row"), "normalise='row' must be one of"),
    (dict(budgets=[(0, 3)], num_layers=4), r"budgets has \(0, 3\): at least one dominant"),
    (dict(budgets=[(3, 1, 1)], num_layers=4), "budgets.*needs a sequence of 2 integers"),
    (dict(budgets=5, num_layers=4), "budgets=5: needs a sequence"),
    (dict(budgets=["5"], num_layers=4), "keep='5'"),
    (dict(budgets=[5], num_layers="4"), "num_layers='4'"),
    (dict(budgets=[5], num_layers=4, contextual=1.5), "contextual=1.5"),
])
def test_bad_stages(bad, message):
    with pytest.raises(ValueError, match=message):
        stages(**bad)


def test_bad_budgets_at_run_time():
    model, (x, visual) = decoder(), prompt()
    with torch.no_grad():
        with pytest.raises(ValueError, match="keep=21 but there are 20 tokens"):
            model.prefill(x, visual, stages([21], 4))
        with pytest.raises(ValueError, match="keep=9 but there are 5 tokens"):
            model.prefill(x, visual, stages([5, 9], 4))
        with pytest.raises(ValueError, match="contextual=7 but keep=5"):
            model.prefill(x, visual, stages([5], 4, contextual=7))
