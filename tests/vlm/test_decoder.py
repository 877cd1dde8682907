"""The decoder that loses tokens on the way: equal to itself without cuts, to masking, to decoding
step by step, and to transformers' models."""

import itertools
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vtlib.tokens import Plan, Stage, keep_all
from vtlib.tokens.cost import cache_bytes, tokens_per_layer
from vtlib.vlm import Decoder
from vtlib.vlm.decoder import causal, count, rotate, transition

SYSTEM, NUM_VISUAL, TEXT, DIM, LAYERS = 3, 12, 5, 16, 4
VISUAL, SIZE = slice(SYSTEM, SYSTEM + NUM_VISUAL), SYSTEM + NUM_VISUAL + TEXT


def build(num_layers=LAYERS, kv=2, dtype=torch.float64, seed=0, **more):
    torch.manual_seed(seed)
    model = Decoder(DIM, num_layers, 4, kv, 24, qkv_bias=True, **more)
    for name, p in model.named_parameters():       # far from the start's small weights, norms not 1
        torch.nn.init.normal_(p, 1.0 if "norm" in name else 0.0, 0.3)
    return model.to(dtype).eval().requires_grad_(False)


def sequence(batch=2, size=SIZE, dtype=torch.float64, seed=1):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(batch, size, DIM, generator=generator, dtype=torch.float64).to(dtype)


def lottery(seed=0):
    """A plan that looks at each sample's visual tokens: another selection in every row, blind to
    what comes behind the image."""
    def plan(state, keep):
        direction = sequence(1, 1, seed=seed)[0, 0].to(state.tokens)
        return state.top(state.tokens @ direction, keep)
    return plan


def pairs(state, keep):
    """A plan that merges: means of equal runs of tokens."""
    n = state.tokens.shape[1]
    slot = (torch.arange(n) * keep // n).expand(len(state.tokens), -1)
    counts = torch.bincount(slot[0], minlength=keep)
    index = (counts.cumsum(0) - counts).expand(len(state.tokens), -1)
    return Plan(index, n, torch.arange(n).expand(len(slot), -1), slot, 1 / counts[slot].float())


def stages(*cuts, plan=None):
    return [Stage(after, keep, plan or lottery(after)) for after, keep in cuts]


SCHEDULES = {
    "none": (),
    "first": ((0, 5),),
    "one": ((2, 4),),
    "several": ((1, 8), (2, 5), (3, 2)),
    "to zero": ((1, 6), (3, 0)),
    "twice at one place": ((2, 8), (2, 3)),
    "all": ((1, 12),),
}
WAYS = pytest.mark.parametrize(
    "mode, positions", [("drop", "renumber"), ("drop", "keep"), ("mask", "keep")]
)
EXACT = dict(atol=1e-12, rtol=1e-9)
CLOSE = dict(atol=1e-9, rtol=1e-6)


# -------------------------------------------------------------------------- by hand, in plain loops
def by_hand(model, x, cuts=(), positions="renumber"):
    """One sample x (S, D), one token and one head at a time -> (S', D).

    cuts: {after: kept visual places among those alive}.
    """
    where, visual = list(range(len(x))), (VISUAL.start, VISUAL.stop)
    for i, layer in enumerate(model.layers):
        if i in cuts:
            chosen = [visual[0] + k for k in cuts[i]]
            keep = [*range(visual[0]), *chosen, *range(visual[1], len(x))]
            x, visual = x[keep], (visual[0], visual[0] + len(cuts[i]))
            where = [where[k] for k in keep] if positions == "keep" else list(range(len(keep)))
        attn, y = layer.self_attn, norm(layer.input_layernorm, x)
        q, k, v = attn.q_proj(y), attn.k_proj(y), attn.v_proj(y)
        rows = []
        for n in range(len(x)):
            heads = []
            for h in range(4):
                g, p = h // (4 // attn.num_kv_heads), model.head_dim
                query = turn(model, q[n, h * p:(h + 1) * p], where[n])
                mine = slice(g * p, (g + 1) * p)
                keys = torch.stack([turn(model, k[m, mine], where[m]) for m in range(n + 1)])
                weight = torch.softmax(keys @ query / p**0.5, dim=0)
                heads.append(weight @ v[: n + 1, mine])
            rows.append(torch.cat(heads))
        x = x + attn.o_proj(torch.stack(rows))
        z = norm(layer.post_attention_layernorm, x)
        gate = F.silu(layer.mlp.gate_proj(z))
        x = x + layer.mlp.down_proj(gate * layer.mlp.up_proj(z))
    return norm(model.norm, x)


def norm(layer, x):
    return x / (x.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight


def turn(model, vector, position):
    """Channel i and i + P/2 are a pair, turned by position * base^(-2i/P)."""
    half, out = len(vector) // 2, vector.clone()
    for i in range(half):
        angle = torch.tensor(float(position)) * model.rope_base ** (-2 * i / len(vector))
        c, s = angle.cos().double(), angle.sin().double()
        out[i] = vector[i] * c - vector[i + half] * s
        out[i + half] = vector[i + half] * c + vector[i] * s
    return out


@pytest.mark.parametrize("kv", [4, 2, 1])
def test_forward_by_hand(kv):
    model, x = build(kv=kv), sequence(1)
    torch.testing.assert_close(model(x)[0], by_hand(model, x[0]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_cuts_by_hand(positions):
    model, x = build(), sequence(2)
    run = model.prefill(x, VISUAL, stages((1, 7), (3, 3)), positions=positions)
    for b in range(2):
        chosen = {1: run.plans[0].index[b].tolist(), 3: run.plans[1].index[b].tolist()}
        want = by_hand(model, x[b], chosen, positions)
        torch.testing.assert_close(run.hidden[b], want, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------ without a cut
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prefill_is_forward(dtype):
    model, x = build(dtype=dtype), sequence(dtype=dtype)
    run = model.prefill(x, VISUAL)
    assert torch.equal(run.hidden, model(x)) and run.hidden.dtype == dtype
    assert run.visual == VISUAL and run.valid.all() and len(run.plan) == NUM_VISUAL
    assert not run.states and not run.plans
    assert torch.equal(model.prefill(x).hidden, model(x))                      # no image at all


@WAYS
@pytest.mark.parametrize("padded", [False, True])
def test_keep_all_changes_nothing(mode, positions, padded):
    model, x = build(dtype=torch.float32), sequence(dtype=torch.float32)
    valid = padding([0, 2]) if padded else None
    plain = model.prefill(x, VISUAL, valid=valid)
    ready = Stage(2, 1.0, lambda state, keep: keep_all(2, NUM_VISUAL))
    for cuts in (stages((0, NUM_VISUAL)), stages((1, 1.0), (3, NUM_VISUAL)), [ready]):
        run = model.prefill(x, VISUAL, cuts, valid, positions, mode)
        assert torch.equal(run.hidden, plain.hidden)
        for name in ("keys", "values"):
            pairs = zip(getattr(run.cache, name), getattr(plain.cache, name), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(run.plan.index, torch.arange(NUM_VISUAL).expand(2, -1))
        assert run.cache.shift == [0] * LAYERS


def test_keep_all_stays_on_the_fast_path(monkeypatch):
    """Where kernels round differently with a mask, masking nothing must not bring one in."""
    monkeypatch.setattr("vtlib.vlm.layers.attend", lambda *a: pytest.fail("a mask was built"))
    model, x = build(), sequence()
    for mode in ("drop", "mask"):
        cuts = stages((1, 1.0), (2, NUM_VISUAL))
        run = model.prefill(x, VISUAL, cuts, positions="keep", mode=mode)
        assert torch.equal(run.hidden, model(x))


def test_causal_and_batch():
    model, x = build(), sequence(3)
    torch.testing.assert_close(model(x[1:2]), model(x)[1:2], atol=1e-12, rtol=1e-9)
    y = x.clone()
    y[:, 10:] += 1
    torch.testing.assert_close(model(y)[:, :10], model(x)[:, :10], atol=1e-12, rtol=1e-9)
    assert (model(y)[:, 10:] - model(x)[:, 10:]).abs().min() > 1e-9


def test_forward_takes_positions_and_mask():
    model, x = build(), sequence()
    order = torch.arange(SIZE)
    moved = model(x, order[None] + 7, order[:, None] >= order)
    torch.testing.assert_close(moved, model(x), atol=1e-5, rtol=1e-4)          # rope is relative
    assert (model(x, order[None] * 2) - model(x)).abs().max() > 1e-3
    alone = model(x, mask=torch.eye(SIZE, dtype=torch.bool))
    torch.testing.assert_close(alone[:, 4:5], model(x[:, 4:5]), atol=1e-5, rtol=1e-4)


def test_a_layer_takes_another_attention():
    model, x = build(), sequence()
    layer, rope = model.layers[0], model.rope(torch.arange(SIZE)[None])
    plain = layer(x, rope)[0]

    def causal_only(q, k, v):
        assert q.shape == k.shape == v.shape == (2, 4, SIZE, 4)      # repeated for grouped heads
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.equal(layer(x, rope, attention=causal_only)[0], plain)
    assert not torch.allclose(layer(x, rope, attention=lambda q, k, v: v)[0], plain)


# --------------------------------------------------------------------------------- dropped = masked
def padding(lengths, size=SIZE, side="right"):
    """valid (B, S): the last (or first) `lengths[b]` tokens are padding."""
    order = torch.arange(size)
    return torch.stack([order < size - n if side == "right" else order >= n for n in lengths])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("pad", [None, [0, 2], [3, 1]])
@pytest.mark.parametrize("kv", [4, 2])
def test_drop_equals_mask(name, pad, kv):
    model, x, cuts = build(kv=kv), sequence(), stages(*SCHEDULES[name])
    valid = None if pad is None else padding(pad)
    drop, mask = (model.prefill(x, VISUAL, cuts, valid, "keep", mode) for mode in ("drop", "mask"))
    assert torch.equal(drop.plan.index, mask.plan.index)
    index = drop.plan.index
    ends = (0, SYSTEM), (VISUAL.stop, SIZE)
    system, text = (torch.arange(start, stop).expand(2, -1) for start, stop in ends)
    kept = torch.cat([system, SYSTEM + index, text], dim=1)
    there = mask.hidden.gather(1, kept[..., None].expand(-1, -1, DIM))
    torch.testing.assert_close(drop.hidden[drop.valid], there[drop.valid], atol=1e-6, rtol=1e-6)
    assert mask.hidden.shape[1] == SIZE and drop.hidden.shape[1] == SYSTEM + TEXT + index.shape[1]
    assert mask.cache.lengths == [SIZE] * LAYERS
    assert mask.valid.sum(1).tolist() == drop.valid.sum(1).tolist()
    if name in ("one", "several"):
        assert not torch.equal(index[0], index[1])                # the samples chose differently
    for cache in (drop.cache, mask.cache):                        # and both decode alike
        cache.out = [model.step(sequence(2, 1, seed=s), cache) for s in (5, 6)]
    torch.testing.assert_close(drop.cache.out, mask.cache.out, atol=1e-6, rtol=1e-6)


def test_hidden_tokens_run_on_but_are_seen_by_nobody():
    model, x = build(), sequence(1)
    cut = [Stage(1, 4, lambda state, keep: Plan(torch.tensor([[0, 1, 2, 3]]), NUM_VISUAL))]
    gone = slice(SYSTEM + 4, VISUAL.stop)
    run = model.prefill(x, VISUAL, cut, positions="keep", mode="mask")
    assert not run.valid[0, gone].any() and run.valid.sum() == SIZE - 8
    layer, before = model.layers[1], run.states[0].hidden
    rope = model.rope(torch.arange(SIZE)[None])
    see = torch.ones(SIZE, SIZE, dtype=torch.bool).tril()
    see[:, gone] = False                                                       # not even themselves
    want, _, _ = layer(before, rope, see)
    look = Stage(2, 4, lambda state, keep: state.top(state.alive.double(), keep))
    got = model.prefill(x, VISUAL, [*cut, look], positions="keep", mode="mask")
    torch.testing.assert_close(got.states[1].hidden, want, atol=1e-12, rtol=1e-9)
    assert torch.equal(got.states[1].running, torch.ones(1, SIZE, dtype=torch.bool))


@WAYS
@pytest.mark.parametrize("name", SCHEDULES)
def test_padding_changes_nothing(name, mode, positions):
    """Samples of different lengths in one batch, padded at the end or behind the image, equal the
    samples alone."""
    model, cuts = build(), stages(*SCHEDULES[name])
    alone = [sequence(1, SIZE - n, seed=10 + n) for n in (0, 2)]
    order, junk = torch.arange(SIZE), 1e3 * torch.ones(1, 2, DIM)
    before, behind = alone[1].tensor_split([VISUAL.stop], dim=1)
    short = torch.cat([alone[1], junk], dim=1)
    inside = torch.cat([before, -junk, behind], dim=1)
    real_inside = (order < VISUAL.stop) | (order >= VISUAL.stop + 2)
    for second, valid in ((short, order < SIZE - 2), (inside, real_inside)):
        x, valid = torch.cat([alone[0], second]), torch.stack([order >= 0, valid])
        run = model.prefill(x, VISUAL, cuts, valid, positions, mode)
        new = sequence(2, 1, seed=3)
        steps = [model.step(new, run.cache), model.step(new, run.cache)]
        for b in range(2):
            one = model.prefill(alone[b], VISUAL, cuts, None, positions, mode)
            masked = mode == "mask" and run.states
            real = run.states[-1].running if masked else run.valid        # hidden tokens too
            torch.testing.assert_close(run.hidden[b][real[b]], one.hidden[0], **CLOSE)
            assert torch.equal(run.plan.index[b:b + 1], one.plan.index)
            for step in steps:
                want = model.step(new[b:b + 1], one.cache)
                torch.testing.assert_close(step[b:b + 1], want, **CLOSE)


def test_left_padding():
    model, x = build(), sequence()
    valid = padding([0, 2], side="left")                # the picture is three places on in both
    run = model.prefill(x, VISUAL, stages((2, 5)), valid)
    one = model.prefill(x[1:, 2:], slice(SYSTEM - 2, VISUAL.stop - 2), stages((2, 5)))
    torch.testing.assert_close(run.hidden[1:, 2:], one.hidden, atol=1e-9, rtol=1e-6)
    new = sequence(2, 1, seed=3)
    together, alone = model.step(new, run.cache), model.step(new[1:], one.cache)
    torch.testing.assert_close(together[1:], alone, **CLOSE)


def test_causal_mask_and_positions():
    valid = torch.tensor([[True, True, False, True], [False, False, True, True]])
    see = causal(valid)[:, 0]
    want = torch.zeros(2, 4, 4, dtype=torch.bool)
    for b, i, j in itertools.product(range(2), range(4), range(4)):
        want[b, i, j] = (j <= i and valid[b, j]) or (i == j and not valid[b, : i + 1].any())
    assert torch.equal(see, want) and see.any(-1).all()
    assert torch.equal(causal(valid, slice(1, 3))[:, 0], want[:, 1:3])
    assert count(valid)[valid].tolist() == [0, 1, 2, 0, 1] and count(valid).min() == 0


# ----------------------------------------------------------------- prefill + steps = longer prefill
@WAYS
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kv", [4, 1])
def test_steps_equal_a_longer_prefill(name, mode, positions, kv):
    model, x, cuts = build(kv=kv), sequence(), stages(*SCHEDULES[name])
    more = sequence(2, 3, seed=9)
    whole = model.prefill(torch.cat([x, more], dim=1), VISUAL, cuts, None, positions, mode)
    run = model.prefill(x, VISUAL, cuts, None, positions, mode)
    assert torch.equal(whole.plan.index, run.plan.index)
    for i in range(3):
        step, want = model.step(more[:, i:i + 1], run.cache), whole.hidden[:, i - 3, None]
        torch.testing.assert_close(step, want, atol=1e-6, rtol=1e-6)
    assert run.cache.lengths == whole.cache.lengths
    assert torch.equal(run.cache.next, whole.cache.next)
    for name in ("keys", "values"):
        got, want = getattr(run.cache, name), getattr(whole.cache, name)
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("positions", ["renumber", "keep"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_with_padding(name, positions):
    """The longer prefill has the new tokens where the shorter one has padding."""
    model, cuts = build(), stages(*SCHEDULES[name])
    x, more = sequence(), sequence(2, 2, seed=9)
    lengths, order = torch.tensor([SIZE, SIZE - 3]), torch.arange(SIZE + 2)
    longer = torch.cat([x, torch.zeros(2, 2, DIM, dtype=x.dtype)], dim=1)
    for b in range(2):
        longer[b, lengths[b]:lengths[b] + 2] = more[b]
    whole = model.prefill(longer, VISUAL, cuts, order < lengths[:, None] + 2, positions)
    run = model.prefill(x, VISUAL, cuts, order[:SIZE] < lengths[:, None], positions)
    cut = SIZE - run.hidden.shape[1]
    for i in range(2):
        step = model.step(more[:, i:i + 1], run.cache)
        for b in range(2):
            want = whole.hidden[b, lengths[b] - cut + i]
            torch.testing.assert_close(step[b, 0], want, atol=1e-6, rtol=1e-6)


def test_renumbering_differs_from_keeping():
    model, x = build(), sequence()
    a, b = (model.prefill(x, VISUAL, stages((1, 4)), positions=p) for p in ("renumber", "keep"))
    assert torch.equal(a.plan.index, b.plan.index) and (a.hidden - b.hidden).abs().max() > 1e-3
    assert a.cache.shift == [0, 8, 8, 8] and b.cache.shift == [0] * 4
    assert a.cache.next.tolist() == b.cache.next.tolist() == [SIZE] * 2


# ---------------------------------------------------------------------------------------- the cache
@pytest.mark.parametrize("name, lengths", [
    ("none", [20] * 4),
    ("first", [13] * 4),
    ("one", [20, 20, 12, 12]),
    ("several", [20, 16, 13, 10]),
    ("to zero", [20, 14, 14, 8]),
    ("twice at one place", [20, 20, 11, 11]),
])
def test_lengths_and_bytes(name, lengths):
    model, x = build(dtype=torch.float32), sequence(dtype=torch.float32)
    cuts = stages(*SCHEDULES[name])
    run = model.prefill(x, VISUAL, cuts)
    assert run.cache.lengths == lengths == tokens_per_layer(LAYERS, NUM_VISUAL, SYSTEM + TEXT, cuts)
    assert [v.shape for v in run.cache.valid] == [(2, n) for n in lengths]
    for tensors in (run.cache.keys, run.cache.values):
        assert [t.shape for t in tensors] == [(2, 2, n, 4) for n in lengths]
    want = 2 * 2 * sum(lengths) * 2 * 4 * 4                 # k, v; B; n; heads; channels; bytes
    assert run.cache.bytes == want == 2 * cache_bytes(lengths, 2 * 4, 4)
    model.step(sequence(2, 1, torch.float32), run.cache)
    assert run.cache.lengths == [n + 1 for n in lengths]
    assert build(kv=4, dtype=torch.float32).prefill(x, VISUAL, cuts).cache.bytes == 2 * want


def test_fractions_count_from_the_start():
    model, x = build(), sequence()
    run = model.prefill(x, VISUAL, stages((1, 0.5), (2, 0.25)))
    assert run.cache.lengths == [20, 14, 11, 11]                      # 0.25 of 12, not of 6


def test_stages_may_come_in_any_order():
    model, x = build(), sequence()
    cuts = stages(*SCHEDULES["several"])
    backwards, forwards = (model.prefill(x, VISUAL, order) for order in (cuts[::-1], cuts))
    assert torch.equal(backwards.hidden, forwards.hidden)


# ---------------------------------------------------------------------------------- what comes back
def test_plan_follows_the_survivors():
    model, x = build(), sequence()
    run = model.prefill(x, VISUAL, stages(*SCHEDULES["several"]))
    first, second, third = run.plans
    for b in range(2):
        want = [int(first.index[b][second.index[b][i]]) for i in third.index[b]]
        assert run.plan.index[b].tolist() == want
    assert run.plan.num_tokens == NUM_VISUAL and run.visual == slice(SYSTEM, SYSTEM + 2)
    assert [s.after for s in run.states] == [1, 2, 3]
    assert [s.tokens.shape[1] for s in run.states] == [12, 8, 5]
    assert all(s.num_visual == NUM_VISUAL and s.alive.all() for s in run.states)
    assert run.states[1].plan.index.tolist() == first.index.tolist()
    kept = model.prefill(x, VISUAL, stages(*SCHEDULES["several"]), positions="keep")
    state = kept.states[2]
    assert torch.equal(state.positions[:, state.visual], VISUAL.start + state.plan.index)


def test_merging_plans():
    model, x = build(), sequence()
    run = model.prefill(x, VISUAL, stages((1, 6), (3, 2), plan=pairs), positions="keep")
    state = run.states[0]
    merged = state.tokens.reshape(2, 6, 2, DIM).mean(2)
    short = torch.cat([state.hidden[:, :SYSTEM], merged, state.hidden[:, VISUAL.stop:]], dim=1)
    order = torch.arange(SIZE)
    positions = torch.cat([order[:SYSTEM], order[SYSTEM : VISUAL.stop : 2], order[VISUAL.stop :]])
    want = short
    for layer in model.layers[1:3]:
        want, _, _ = layer(want, model.rope(positions[None]))
    torch.testing.assert_close(run.states[1].hidden, want, **EXACT)
    matrix = torch.zeros(2, NUM_VISUAL)
    matrix[0, :6], matrix[1, 6:] = 1 / 6, 1 / 6
    torch.testing.assert_close(run.plan.matrix(), matrix.expand(2, -1, -1), atol=1e-6, rtol=0)
    assert run.cache.lengths == [20, 14, 14, 10]
    with pytest.raises(ValueError, match="mask"):
        model.prefill(x, VISUAL, stages((1, 6), plan=pairs), positions="keep", mode="mask")
    new, cuts = sequence(2, 1, seed=9), stages((1, 6), (3, 2), plan=pairs)
    whole = model.prefill(torch.cat([x, new], 1), VISUAL, cuts)
    part = model.prefill(x, VISUAL, cuts)
    torch.testing.assert_close(model.step(new, part.cache), whole.hidden[:, -1:], **CLOSE)


def test_a_merged_slot_of_one_token_is_that_token():
    model, x = build(), sequence()

    def identity(state, keep):
        everyone = torch.arange(NUM_VISUAL).expand(2, -1)
        return Plan(everyone, NUM_VISUAL, everyone, everyone, torch.ones(2, NUM_VISUAL))
    assert torch.equal(model.prefill(x, VISUAL, [Stage(1, 1.0, identity)]).hidden, model(x))


# ------------------------------------------------------------------------------ what a plan may see
@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_state_shows_what_the_layers_do(positions):
    """Queries and keys at the cut are the running model's own: those of the layer behind it go into
    its cache."""
    seen = {}

    def plan(state, keep):
        seen[state.after] = state, state.qk("last"), state.qk("next"), state.attention()
        return lottery()(state, keep)
    model, x = build(kv=2), sequence()
    valid = padding([0, 2])
    run = model.prefill(x, VISUAL, [Stage(2, 1.0, plan), Stage(3, 5, lottery())], valid, positions)
    state, last, following, attention = seen[2]
    # keep = all: nothing moved
    torch.testing.assert_close(following[1][:, ::2], run.cache.keys[2], **EXACT)
    torch.testing.assert_close(last[1][:, ::2], run.cache.keys[1], **EXACT)
    assert following[0].shape == following[1].shape == (2, 4, SIZE, 4)
    assert torch.equal(following[1][:, 0], following[1][:, 1])        # two query heads share a key
    assert torch.equal(attention, state.attention(layer="next"))
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, SIZE, dtype=torch.float64))
    assert (attention[1, :, :, SIZE - 2:] == 0).all() and (attention[:, :, 4, 5:] == 0).all()
    want = (last[0] / 2) @ last[1].mT
    got = state.logits(layer="last")
    torch.testing.assert_close(got[got > -torch.inf], want[got > -torch.inf])
    assert torch.equal(got > -torch.inf, causal(valid).expand(2, 4, -1, -1))
    torch.testing.assert_close(state.logits(slice(4, 9), "last"), got[:, :, 4:9], **EXACT)
    assert torch.equal(state.asking, valid & (torch.arange(SIZE) >= VISUAL.stop))
    assert torch.equal(state.running, valid)
    # and the attention is the layer's: its output can be made of it
    layer = model.layers[1]
    values = layer.self_attn.repeat(run.cache.values[1])
    out = torch.einsum("bhk,bhkp->bhp", state.attention(layer="last")[:, :, 6], values)
    entered = state.entered[:, 6] + layer.self_attn.o_proj(out.flatten(1))
    out = entered + layer.mlp(layer.post_attention_layernorm(entered))
    torch.testing.assert_close(out, state.hidden[:, 6], **CLOSE)


def test_there_is_no_layer_before_the_first():
    def plan(state, keep):
        assert state.entered is None
        state.qk("last")
    with pytest.raises(ValueError, match="no last layer"):
        build().prefill(sequence(), VISUAL, [Stage(0, 4, plan)])


def test_transitions():
    model, x, records = build(), sequence(), {}

    def record(module, *key):
        module.register_forward_hook(lambda m, inputs, out: records.__setitem__(key, out))

    for i, layer in enumerate(model.layers):
        record(layer.input_layernorm, i, "in")
        record(layer.self_attn.o_proj, i, "attention")
        record(layer.post_attention_layernorm, i, "middle")
        record(layer.mlp, i, "mlp")
    cuts = [
        Stage(1, 9, lottery(1), watch=(1,)),
        Stage(2, 6, lottery(2), watch=(1, 2)),
        Stage(3, 2, lottery(3), watch=(1, 3)),
    ]
    run = model.prefill(x, VISUAL, cuts)
    state = run.states[2]
    assert set(state.transitions) == {1, 2, 3} and set(run.states[0].transitions) == {1}
    for number, change in state.transitions.items():
        for got, a, b in ((change.attention, "in", "attention"), (change.mlp, "middle", "mlp")):
            before, after = records[number - 1, a], records[number - 1, b]
            magnitude, direction = got
            torch.testing.assert_close(magnitude, after.norm(dim=-1) / before.norm(dim=-1))
            cosine = F.cosine_similarity(before, after, dim=-1)
            torch.testing.assert_close(direction, cosine)
        assert change.valid.shape == change.mlp[0].shape == (2, run.cache.lengths[number - 1])
    first, second = run.plans[:2]
    for b in range(2):                                     # where the six that are alive stood
        places = [int(first.index[b][i]) for i in second.index[b]]
        assert state.transitions[1].now[b].tolist() == places
        assert state.transitions[2].now[b].tolist() == second.index[b].tolist()
        assert state.transitions[3].now[b].tolist() == list(range(6))
    before = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    m, d = transition(before, torch.tensor([[[6.0, 8.0], [0.0, -2.0]]]))
    assert m.tolist() == [[2.0, 2.0]]
    torch.testing.assert_close(d, torch.tensor([[1.0, 0.0]]))
    unwatched = model.prefill(x, VISUAL, stages((2, 4)))
    assert not unwatched.states[0].transitions


def test_top_breaks_ties_low_and_never_takes_the_dropped():
    model, x = build(), sequence()

    def by(score):
        return lambda state, keep: state.top(score.expand(2, -1), keep)

    run = model.prefill(x, VISUAL, [Stage(1, 4, by(torch.zeros(12)))])
    assert run.plan.index.tolist() == [[0, 1, 2, 3]] * 2
    worst = [Stage(1, 6, by(torch.arange(12.0))), Stage(2, 3, by(-torch.arange(12.0)))]
    run = model.prefill(x, VISUAL, worst, positions="keep", mode="mask")
    assert run.plan.index.tolist() == [[6, 7, 8]] * 2


# ------------------------------------------------------------------------------------- transformers
def official(kind, kv):
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        vocab_size=11,
        hidden_size=DIM,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=kv,
        attn_implementation="eager",
    )
    eps = 1e-5 if kind == "llama" else 1e-6
    torch.manual_seed(3)
    if kind == "llama":
        model = transformers.LlamaModel(transformers.LlamaConfig(**sizes, rms_norm_eps=eps))
    else:
        model = transformers.Qwen2Model(transformers.Qwen2Config(**sizes, rms_norm_eps=eps))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours = Decoder(DIM, LAYERS, 4, kv, 24, qkv_bias=kind == "qwen2", eps=eps)
    weights = model.state_dict()
    del weights["embed_tokens.weight"]
    ours.load_state_dict(weights)
    return model.eval().requires_grad_(False), ours.eval().requires_grad_(False)


@pytest.mark.parametrize("kind, kv", [("llama", 4), ("llama", 2), ("qwen2", 2), ("qwen2", 1)])
def test_equals_transformers(kind, kv):
    theirs, ours = official(kind, kv)
    x = sequence(dtype=torch.float32)
    out = theirs(inputs_embeds=x, use_cache=True)
    torch.testing.assert_close(ours(x), out.last_hidden_state, atol=1e-5, rtol=1e-4)
    run = ours.prefill(x, VISUAL)
    for i in range(LAYERS):
        keys = out.past_key_values.layers[i].keys
        torch.testing.assert_close(run.cache.keys[i], keys, atol=1e-5, rtol=1e-4)
    new = sequence(2, 1, torch.float32, seed=8)
    step = theirs(inputs_embeds=new, past_key_values=out.past_key_values).last_hidden_state
    torch.testing.assert_close(ours.step(new, run.cache), step, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_cut_before_the_first_layer_equals_transformers_on_fewer_tokens(kind):
    theirs, ours = official(kind, 2)
    x, kept = sequence(1, dtype=torch.float32), torch.tensor([[0, 3, 4, 9]])
    places = torch.cat([torch.arange(SYSTEM), SYSTEM + kept[0], torch.arange(VISUAL.stop, SIZE)])
    cut = [Stage(0, 4, lambda state, keep: Plan(kept, NUM_VISUAL))]
    for positions, ids in (("renumber", torch.arange(len(places))), ("keep", places)):
        run = ours.prefill(x, VISUAL, cut, positions=positions)
        want = theirs(inputs_embeds=x[:, places], position_ids=ids[None]).last_hidden_state
        torch.testing.assert_close(run.hidden, want, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------- devices and dtypes
def test_meta_device():
    with torch.device("meta"):
        model = Decoder(DIM, LAYERS, 4, 2, 24)
        x = torch.empty(2, SIZE, DIM)
        assert model(x).is_meta and model(x).shape == (2, SIZE, DIM)
        valid = torch.ones(2, SIZE, dtype=torch.bool)

        def received(state, keep):
            return state.top(state.attention(slice(15, None)).mean((1, 2))[:, state.visual], keep)

        watch = [Stage(1, 6, received, watch=(1,)), Stage(3, 0, received)]
        for positions, mode in (("renumber", "drop"), ("keep", "drop"), ("keep", "mask")):
            run = model.prefill(x, VISUAL, watch, valid, positions, mode)
            size = SIZE if mode == "mask" else 8
            assert run.hidden.is_meta and run.hidden.shape == (2, size, DIM)
            assert model.step(torch.empty(2, 1, DIM), run.cache).shape == (2, 1, DIM)


def test_bf16():
    full, x = build(dtype=torch.float32), sequence(dtype=torch.float32)
    half = build(dtype=torch.bfloat16)
    cuts = [Stage(2, 5, lambda state, keep: Plan(torch.arange(5).expand(2, -1), 12))]
    want = full.prefill(x, VISUAL, cuts)
    got = half.prefill(x.bfloat16(), VISUAL, cuts)
    assert got.hidden.dtype == torch.bfloat16 and got.cache.bytes * 2 == want.cache.bytes
    assert (got.hidden.float() - want.hidden).abs().mean() < 0.05 * want.hidden.abs().mean()
    assert got.states[0].attention().dtype == got.states[0].logits().dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        auto = full.prefill(x, VISUAL, cuts)
        step = full.step(sequence(2, 1, torch.float32), auto.cache)
        assert auto.states[0].logits().dtype == torch.float32
    assert auto.hidden.isfinite().all() and step.isfinite().all()
    assert auto.cache.keys[0].dtype == torch.bfloat16
    assert (auto.hidden - want.hidden).abs().mean() < 0.05 * want.hidden.abs().mean()


def test_compile_without_graph_breaks():
    model, x = build(2, dtype=torch.float32), sequence(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x), model(x), atol=1e-6, rtol=1e-5)

    def prefill(t):
        cut = Stage(1, 4, lambda state, keep: state.top(state.tokens.mean(-1), keep))
        return model.prefill(t, VISUAL, [cut]).hidden

    compiled = torch.compile(prefill, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x), prefill(x))


@pytest.mark.parametrize("mode, positions", [("drop", "renumber"), ("mask", "keep")])
def test_gradients(mode, positions):
    model = build().train().requires_grad_(True)
    x = sequence().requires_grad_()
    run = model.prefill(x, VISUAL, stages(*SCHEDULES["several"]), padding([0, 2]), positions, mode)
    run.hidden[run.valid].square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name
    assert x.grad.isfinite().all()
    assert (x.grad[1, SIZE - 2:] == 0).all()                      # padding is nobody's business


def test_rotation_keeps_lengths_and_depends_on_differences():
    model = build()
    q, k = (sequence(1, 1, seed=s).reshape(1, 1, 4, 4).transpose(1, 2) for s in (1, 2))

    def product(a, b):
        tables = [model.rope(torch.tensor([[n]])) for n in (a, b)]
        return (rotate(q, *tables[0]) * rotate(k, *tables[1])).sum(-1)
    torch.testing.assert_close(product(9, 4), product(105, 100), atol=1e-4, rtol=1e-4)
    assert (product(9, 4) - product(9, 5)).abs().max() > 1e-3
    turned = rotate(q, *model.rope(torch.tensor([[77]])))
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1), atol=1e-6, rtol=1e-5)


def test_names_are_those_of_llama():
    names = set(Decoder(DIM, 1, 4, 2, 24, qkv_bias=True).state_dict())
    inside = [f"{x}.weight" for x in ("input_layernorm", "post_attention_layernorm")]
    inside += ["self_attn.o_proj.weight"]
    inside += [f"self_attn.{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")]
    inside += [f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")]
    assert names == {"norm.weight", *(f"layers.0.{name}" for name in inside)}
    assert not any("bias" in name for name in Decoder(DIM, 1, 4).state_dict())


# -------------------------------------------------------------------------------------------- speed
def test_fewer_tokens_take_less_time():
    torch.manual_seed(0)
    model = Decoder(128, 6, 4, None, 256).eval().requires_grad_(False)
    x, visual = torch.randn(4, 8 + 768 + 8, 128), slice(8, 776)

    def first(state, keep):
        return state.top(torch.zeros(4, state.tokens.shape[1]), keep)

    def seconds(*cuts, **more):
        times = []
        for _ in range(3):
            start = time.process_time()         # what the cores worked, whoever else is there
            model.prefill(x, visual, [Stage(after, keep, first) for after, keep in cuts], **more)
            times.append(time.process_time() - start)
        return min(times)
    full, late, early = seconds(), seconds((3, 32)), seconds((1, 32))
    assert early < 0.6 * full and late < 0.9 * full and early < late, (full, late, early)
    hidden = seconds((1, 32), positions="keep", mode="mask")
    assert hidden > 1.5 * early                                   # hiding saves nothing


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("arguments, words", [
    (dict(visual=None, stages=stages((1, 4))), "visual=slice"),
    (dict(stages=stages((4, 4))), "after layer 4 is outside 0 ... 3"),
    (dict(stages=stages((-1, 4))), "outside"),
    (dict(stages=stages((1, 13))), "keep=13 but there are 12"),
    (dict(stages=stages((1, 4), (2, 5))), "keep=5 but there are 4"),
    (dict(stages=[Stage(1, 4, lottery(), watch=(2,))]), "watches layer 2"),
    (dict(stages=[Stage(1, 4, lottery(), watch=(0,))]), "watches layer 0"),
    (
        dict(stages=[Stage(1, 4, lambda state, keep: keep_all(2, 7))]),
        "plan for 7 tokens; 12 are there",
    ),
    (dict(positions="original"), "positions='original'"),
    (dict(mode="hide"), "mode='hide'"),
    (dict(mode="mask"), 'positions="keep"'),
    (dict(visual=slice(3, 40)), "visual.stop=40: needs an integer from 3 to 20"),
    (dict(visual=slice(9, 3)), "visual.stop=3: needs an integer from 9 to 20"),
    (dict(visual=slice(-5, 3)), "visual.start=-5: needs an integer from 0 to 20"),
    (dict(visual=slice(None, 3)), "visual.start=None (NoneType): needs an integer from 0 to 20"),
    (dict(visual=slice(3, 15, 2)), "visual.step=2: needs None or 1"),
    (dict(visual=(3, 15)), "visual=(3, 15) (tuple): needs slice(start, stop)"),
    (dict(visual=()), "visual=() (tuple): needs slice(start, stop)"),
    (dict(valid=[[True] * 20] * 2), "valid is a list but needs to be boolean, (B, S)"),
    (dict(valid=torch.ones(2, 7, dtype=torch.bool)), "valid is"),
    (dict(valid=torch.ones(2, 20)), "needs to be boolean"),
    (dict(x=torch.zeros(2, 20, 16)), "x is torch.float32 but the model's weights are torch.float6"),
    (dict(stages=3), "stages=3: needs a list of Stages"),
    (dict(stages=[(1, 4)]), "stages has (1, 4): needs Stages"),
    (dict(stages=[Stage(1, 4, lambda state, keep: 3)]), "made is a int but needs to be a Plan"),
    (dict(x=torch.zeros(2, 20, 8, dtype=torch.float64)), "D = 16"),
    (dict(x=torch.zeros(20, 16, dtype=torch.float64)), "3 axes"),
])
def test_prefill_refuses(arguments, words):
    with pytest.raises(ValueError) as error:
        build().prefill(**{**dict(x=sequence(), visual=VISUAL), **arguments})
    assert words in str(error.value)


@pytest.mark.parametrize("change, words", [
    (dict(eps=-1), "eps=-1 .*above 0"), (dict(eps=float("nan")), "eps=nan"),
    (dict(eps="1"), "eps='1'"), (dict(rope_base=0), "rope_base=0 .*above 0"),
    (dict(rope_base="1e4"), "rope_base='1e4'"), (dict(num_kv_heads=0), "num_kv_heads=0"),
])
def test_a_decoder_that_cannot_be(change, words):
    with pytest.raises(ValueError, match=words):
        Decoder(16, 2, 4, **change)


def test_another_dtype_than_the_weights():
    """Refused by name; under autocast both come together."""
    model, x = build(dtype=torch.float32), sequence(dtype=torch.float32)
    cache = model.prefill(x).cache
    for call in (model, model.prefill, lambda x: model.step(x[:, :1], cache)):
        with pytest.raises(ValueError, match="x is torch.float64 .* torch.float32"):
            call(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x.bfloat16()).isfinite().all()
    for positions in (torch.zeros(2, 7, dtype=torch.long), torch.zeros(2, SIZE), 3):
        with pytest.raises(ValueError, match="positions is .* integers"):
            model(x, positions)
    with pytest.raises(ValueError, match="cache is a int"):
        model.step(x[:, :1], 3)


@pytest.mark.parametrize("number", [np.int64, torch.tensor])
def test_the_ends_of_visual_are_integers_of_any_kind(number):
    model, x = build(), sequence()
    run = model.prefill(x, slice(number(VISUAL.start), number(VISUAL.stop), 1), stages((1, 4)))
    plain = model.prefill(x, VISUAL, stages((1, 4)))
    assert run.visual == plain.visual and torch.equal(run.hidden, plain.hidden)
    assert type(run.visual.start) is int and type(run.states[0].visual.stop) is int


@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("rows, batch", [(1, 2), (3, 2), (2, 1)])
@pytest.mark.parametrize("keep", [4, NUM_VISUAL])
def test_a_plan_has_a_row_for_each_image(mode, rows, batch, keep):
    index = torch.arange(keep).expand(rows, -1)
    cut = Stage(1, keep, lambda state, keep: Plan(index, NUM_VISUAL))
    with pytest.raises(ValueError, match=f"{batch} images but this plan is for {rows}"):
        build().prefill(sequence(batch), VISUAL, [cut], positions="keep", mode=mode)


@pytest.mark.parametrize("positions, mode", [
    ("renumber", "drop"), ("keep", "drop"), ("keep", "mask"),
])
@pytest.mark.parametrize("rows, place", [
    ([[2, 4, 9, -1], [1, 3, -1, -1]], r"index\[0, 3\] = -1"),
    ([[2, 4, 9], [-1, 3, 5]], r"index\[1, 0\] = -1"),
    ([list(range(NUM_VISUAL)), [*range(NUM_VISUAL - 1), -1]], r"index\[1, 11\] = -1"),
])
def test_a_stage_leaves_no_empty_slot(positions, mode, rows, place):
    """Rows would be of different lengths; the message tells the stage and the slot."""
    def holes(state, keep):
        return Plan(torch.tensor(rows), state.tokens.shape[1])
    first = stages((1, NUM_VISUAL))
    message = f"the stage after layer 2 made a plan with an empty slot, {place}"
    with pytest.raises(ValueError, match=message):
        cuts = [*first, Stage(2, 3, holes)]
        build().prefill(sequence(), VISUAL, cuts, positions=positions, mode=mode)


def test_step_refuses():
    model = build()
    cache = model.prefill(sequence(), VISUAL).cache
    for x in (sequence(2, 2), sequence(1, 1), sequence(3, 1)):
        with pytest.raises(ValueError, match="x has shape"):
            model.step(x, cache)
    with pytest.raises(ValueError, match="3 layers"):
        build(3).step(sequence(2, 1), cache)
    assert cache.lengths == [SIZE] * LAYERS                                   # nothing was spoiled


@pytest.mark.parametrize("sizes, words", [
    ((16, 2, 3), "num_heads=3"),
    ((16, 2, 4, 3), "num_kv_heads=3"),
    ((16, 2, 4, 0), "num_kv_heads=0"),
    ((12, 2, 4), "even"),
])
def test_constructor_refuses(sizes, words):
    with pytest.raises(ValueError, match=words):
        Decoder(*sizes)
