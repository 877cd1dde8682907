"""TransPrune against plain loops, the paper's numbers, and the decoder it runs in."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.pruning import transprune
from vtlib.pruning.transprune import (
    HIGH,
    LOW,
    counts,
    iga,
    layer_ttv,
    scaled_layers,
    score,
    stages,
    transition,
    ttv,
)
from vtlib.tokens.cost import decoder_flops, tokens_per_layer
from vtlib.vlm import Decoder, Transition, decoder
from vtlib.vlm.decoder import rotate

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
SYSTEM, NUM_VISUAL, TEXT, DIM = 3, 16, 5, 16
VISUAL, SIZE = slice(3, 19), 24


def build(num_layers=6, kv=4, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = Decoder(DIM, num_layers, 4, kv, 24)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.dim() > 1 else torch.nn.init.ones_(p)
    return model.to(dtype).eval().requires_grad_(False)


def sequence(batch=2, size=SIZE, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, size, DIM, generator=g, dtype=torch.float64).to(dtype)


def run(model, x, cuts, **more):
    return model.prefill(x, VISUAL, cuts, **{"positions": transprune.METHOD.positions, **more})


# ------------------------------------------------------------------------------------------------
# ------------------ transitions
def test_identity_module():
    x = sequence()
    m, d = transition(x, x)
    torch.testing.assert_close(m, torch.ones_like(m))
    torch.testing.assert_close(d, torch.ones_like(d))


@given(st.floats(0.01, 100))
@SETTINGS
def test_scaling_the_input(c):
    x, y = sequence(), sequence(seed=2)
    m, d = transition(x, y)
    m2, d2 = transition(c * x, y)
    torch.testing.assert_close(m2, m / c)
    torch.testing.assert_close(d2, d)


def test_the_decoder_records_the_same():
    x, y = sequence(), sequence(seed=2)
    for here, there in zip(transition(x, y), decoder.transition(x, y), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("direction", ["release", "abs"])
def test_ttv_in_loops(direction):
    m, d = transition(sequence(), sequence(seed=2))
    valid = torch.rand(2, SIZE, generator=torch.Generator().manual_seed(0)) < 0.7
    got = ttv(m, d, valid, direction)
    for b in range(2):
        turn = [1 - (abs(float(v)) if direction == "abs" else float(v)) for v in d[b]]
        total = sum(math.exp(t) for t, ok in zip(turn, valid[b], strict=True) if ok)
        for i in range(SIZE):
            want = float(m[b, i]) * math.exp(turn[i]) / total if valid[b, i] else 0.0
            assert math.isclose(float(got[b, i]), want, rel_tol=1e-9)
    assert (got.sum(1) <= m.max(1).values + 1e-12).all()


def test_reversed_or_orthogonal():
    # kept its direction, orthogonal, turned round
    m, d = torch.ones(1, 3), torch.tensor([[1.0, 0.0, -1.0]])
    assert ttv(m, d).argsort().tolist() == [[0, 1, 2]]
    paper = ttv(m, d, direction="abs")
    assert paper.argmax() == 1 and paper[0, 0] == paper[0, 2]
    # the softmax does not see the magnitude
    torch.testing.assert_close(ttv(3 * m, d), 3 * ttv(m, d))
    with pytest.raises(ValueError, match="direction='paper'"):
        ttv(m, d, direction="paper")


@given(st.integers(0, 1000), st.integers(1, 20))
@SETTINGS
def test_other_tokens_change_only_the_scale(seed, extra):
    g = torch.Generator().manual_seed(seed)
    m = torch.rand(1, 30, generator=g, dtype=torch.float64)
    d = torch.rand(1, 30, generator=g, dtype=torch.float64) * 2 - 1
    few, all_ = ttv(m[:, :-extra], d[:, :-extra]), ttv(m, d)[:, :-extra]
    torch.testing.assert_close(few / few.sum(), all_ / all_.sum())


# ------------------------------------------------------------------------------------------------
# ------------- layers and scores
def brute(model, x, accumulate, direction, support):
    """(B, layers, n) from the modules' inputs and outputs, nothing cut."""
    rows, rope = [], model.rope(torch.arange(SIZE)[None])
    later = torch.ones(SIZE, SIZE).triu(1).bool()
    for number, layer in enumerate(model.layers[: max(accumulate)], 1):
        attn, y = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (p(y).unflatten(-1, (4, -1)).transpose(1, 2)
                   for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        logits = (rotate(q, *rope) @ rotate(k, *rope).mT) / 2
        weight = logits.masked_fill(later, -torch.inf).softmax(-1)
        a = attn.o_proj((weight @ v).transpose(1, 2).flatten(2))
        z = layer.post_attention_layernorm(x + a)
        change, both = layer.mlp(z), 0
        for before, after in ((y, a), (z, change)):
            m = after.norm(dim=-1) / before.norm(dim=-1)
            d = F.cosine_similarity(before, after, dim=-1)
            turn = (1 - (d.abs() if direction == "abs" else d)).exp()
            over = turn[:, VISUAL] if support == "image" else turn
            both = both + m * turn / over.sum(1, keepdim=True)
        if number in accumulate:
            rows.append(both[:, VISUAL])
        x = x + a + change
    return torch.stack(rows, 1)


@pytest.mark.parametrize("direction", ["release", "abs"])
@pytest.mark.parametrize("support", ["sequence", "image"])
def test_one_cut_in_loops(direction, support):
    model, x = build(), sequence()
    cut = stages(6, 5, NUM_VISUAL, layers=(3,), accumulate=(1, 2, 3), direction=direction,
                 support=support)
    result = run(model, x, cut)
    state = result.states[0]
    want = brute(model, x, (1, 2, 3), direction, support)
    rows = layer_ttv([state.transitions[n] for n in (1, 2, 3)], direction, support)
    torch.testing.assert_close(rows, want)
    # the next layer's attention of the words behind the image, head by head, row by row
    layer = model.layers[3]
    y = layer.input_layernorm(state.hidden)
    total = torch.zeros(2, NUM_VISUAL, dtype=torch.float64)
    rope = model.rope(torch.arange(SIZE)[None])
    q = rotate(layer.self_attn.q_proj(y).unflatten(-1, (4, 4)).transpose(1, 2), *rope)
    k = rotate(layer.self_attn.k_proj(y).unflatten(-1, (4, 4)).transpose(1, 2), *rope)
    for b in range(2):
        for h in range(4):
            for r in range(VISUAL.stop, SIZE):
                total[b] += torch.softmax(k[b, h, : r + 1] @ q[b, h, r] / 2, 0)[VISUAL] / (4 * TEXT)
    attends = iga(state.attention(slice(VISUAL.stop, None)), VISUAL, state.asking[:, VISUAL.stop:])
    torch.testing.assert_close(attends, total)
    together = want.sum(1) / want.sum((1, 2))[:, None] + total / total.sum(1, keepdim=True)
    torch.testing.assert_close(2 * score(want.sum(1), total), together, atol=1e-6, rtol=1e-6)
    for b in range(2):
        best = sorted(range(NUM_VISUAL), key=lambda i: -float(together[b, i]))[:5]
        assert result.plan.index[b].tolist() == sorted(best)


def test_accumulation_without_pruning_is_a_plain_sum_and_history_follows_survivors():
    model, x = build(), sequence()
    cuts = stages(6, None, NUM_VISUAL, ratios=(0.75, 0.5, 0.25), layers=(2, 3, 5))
    result = run(model, x, cuts)
    assert [c.watch for c in cuts] == [(2,), (2, 3), (2, 3, 4, 5)]
    assert [len(p) for p in result.plans] == [12, 8, 4]
    last, first = result.states[2], result.states[0]
    rows = layer_ttv([last.transitions[n] for n in (2, 3, 4, 5)])
    assert rows.shape == (2, 4, 8)
    # layer 2 as the first cut saw it, all 16 tokens
    whole = layer_ttv([first.transitions[2]])[:, 0]
    torch.testing.assert_close(rows[:, 0], whole.gather(1, last.plan.index))
    unpruned = run(model, x, stages(6, NUM_VISUAL, NUM_VISUAL, layers=(2, 3, 5)))
    assert torch.equal(unpruned.hidden, model(x))
    state = unpruned.states[2]
    want = brute(model, x, (2, 3, 4, 5), "release", "sequence").sum(1)
    torch.testing.assert_close(layer_ttv(state.transitions.values()).sum(1), want)


def test_kept_sets_are_nested():
    result = run(build(), sequence(), stages(6, 3, NUM_VISUAL))
    index = torch.arange(NUM_VISUAL).expand(2, -1)
    for plan in result.plans:
        after = index.gather(1, plan.index)
        assert all(set(a.tolist()) <= set(i.tolist()) for a, i in zip(after, index, strict=True))
        assert (after.diff(dim=1) > 0).all()
        index = after
    assert torch.equal(index, result.plan.index)


def test_only_alive_tokens_share_the_sums():
    t, a = torch.tensor([[1.0, 3.0, 4.0]]), torch.tensor([[2.0, 2.0, 6.0]])
    alive = torch.tensor([[True, True, False]])
    want = torch.tensor([[0.5 * 0.25 + 0.25, 0.5 * 0.75 + 0.25, 0.0]])
    torch.testing.assert_close(score(t, a, alive), want)
    torch.testing.assert_close(score(t, a, alpha=1.0), t / 8)
    torch.testing.assert_close(score(t, a, alpha=0.0), a / 10)
    torch.testing.assert_close(score(100 * t, a), score(t, a))   # each is normalised before the sum
    assert score(torch.zeros(1, 3), torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_ttv_is_blind_to_the_question_and_iga_is_not():
    model, x = build(), sequence()
    y = x.clone()
    y[:, VISUAL.stop:] = sequence(2, TEXT, seed=7)
    cut = stages(6, 4, NUM_VISUAL, layers=(3,), support="image")
    blind = [run(model, t, cut).states[0] for t in (x, y)]
    one, two = (layer_ttv(s.transitions.values(), support="image") for s in blind)
    torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-9)     # the image cannot look ahead
    behind = slice(VISUAL.stop, None)
    one, two = (iga(s.attention(behind), s.visual, s.asking[:, behind]) for s in blind)
    assert (one - two).abs().max() > 0.05 * one.max()
    iga_gap = (one / one.sum(1, keepdim=True) - two / two.sum(1, keepdim=True)).abs().max()
    # the release's support lets the question in by a back door: it weighs modules and layers
    # against each other
    released = [layer_ttv(s.transitions.values()).sum(1) for s in blind]
    a, b = (r / r.sum(1, keepdim=True) for r in released)
    change = (a - b).abs().max()
    assert 0 < change < iga_gap / 3
    for s in blind:                                            # in one module it is a common factor
        record = next(iter(s.transitions.values()))
        s.one = ttv(*record.attention, record.valid)[:, VISUAL]
    one, two = (s.one / s.one.sum(1, keepdim=True) for s in blind)
    torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("positions, mode", [
    ("renumber", "drop"), ("keep", "drop"), ("keep", "mask")])
def test_batch_of_one_and_padding(positions, mode):
    model, x = build(kv=2), sequence()
    order = torch.arange(SIZE)
    valid = order < torch.tensor([[SIZE], [SIZE - 2]])
    cuts = stages(6, 3, NUM_VISUAL)
    both = run(model, x, cuts, valid=valid, positions=positions, mode=mode)
    for b, size in enumerate((SIZE, SIZE - 2)):
        one = run(model, x[b:b + 1, :size], cuts, positions=positions, mode=mode)
        assert torch.equal(both.plan.index[b:b + 1], one.plan.index)


def test_masking_keeps_the_same_tokens():
    model, x = build(kv=1), sequence()
    drop, mask = (run(model, x, stages(6, 3, NUM_VISUAL), positions="keep", mode=mode)
                  for mode in ("drop", "mask"))
    assert torch.equal(drop.plan.index, mask.plan.index)


# ------------------------------------------------------------------------------------------------
# -------------------- schedule
def test_the_papers_numbers():
    assert scaled_layers(32) == (7, 9, 12) == transprune.PRUNING_LAYERS
    cuts = stages(32, None, 576, ratios=HIGH)
    assert [(c.after, c.keep) for c in cuts] == [(7, 504), (9, 360), (12, 72)]
    assert cuts[0].watch == (7,)
    assert cuts[2].watch == (7, 8, 9, 10, 11, 12) == transprune.ACCUMULATING_LAYERS
    for keep in (72, 0.125):
        assert [c.keep for c in stages(32, keep, 576)] == [504, 360, 72]
    assert [c.keep for c in stages(32, None, 576, ratios=LOW)] == [432, 288, 0]
    # int() of the original count
    assert [c.keep for c in stages(32, None, 577, ratios=HIGH)] == [504, 360, 72]


@pytest.mark.parametrize("num_visual, ratios, tera, share", [
    (576, (), 3.817, 1.0), (576, HIGH, 1.557, 0.4079), (2880, HIGH, 20.825 * 0.4, 0.4),
    (576, LOW, 1.190, 0.3117)])
def test_flops(num_visual, ratios, tera, share):
    """The paper's numbers: the visual tokens alone, d 4096, m 11008, gated feed-forward
    net."""
    def flops(cuts):
        tokens = tokens_per_layer(32, num_visual, 0, cuts)
        return decoder_flops(tokens, 4096, 11008, gated=True) / 1e12
    full, cut = flops(()), flops(stages(32, None, num_visual, ratios=ratios) if ratios else ())
    assert math.isclose(full, 3.817 if num_visual == 576 else 20.825, abs_tol=1e-3)
    assert math.isclose(cut, tera, abs_tol=6e-3) and math.isclose(cut / full, share, abs_tol=1e-4)


@pytest.mark.parametrize("num_layers, layers", [
    (4, (1, 2, 3)), (5, (1, 2, 3)), (6, (1, 2, 3)), (8, (2, 3, 4)), (16, (4, 5, 6)),
    (28, (6, 8, 10)), (40, (9, 11, 15)), (64, (14, 18, 24))])
def test_layers_at_the_same_depth(num_layers, layers):
    assert scaled_layers(num_layers) == layers


@given(st.integers(4, 64), st.integers(1, 300), st.data())
@SETTINGS
def test_counts(num_layers, num_visual, data):
    layers = scaled_layers(num_layers)
    assert list(layers) == sorted(set(layers)) and layers[-1] < num_layers
    keep = data.draw(st.integers(0, num_visual))
    left = counts(num_layers, keep, num_visual, layers)
    assert left[-1] == keep and left == sorted(left, reverse=True) and left[0] <= num_visual
    if keep == num_visual:
        assert left == [num_visual] * 3

    def mean(left):
        cuts = list(zip(layers, left, strict=True))
        return sum(tokens_per_layer(num_layers, num_visual, 0, cuts)) / num_layers
    least = mean(counts(num_layers, 0, num_visual, layers))
    if keep > least + 1:
        got = mean(counts(num_layers, keep, num_visual, layers, "mean"))
        assert keep - 1 < got <= keep


def test_mean_budget():
    """0.4 of the tokens a layer is about what High costs; what no schedule of this depth can reach
    is refused."""
    high = [(a, n) for a, n in zip((7, 9, 12), (504, 360, 72), strict=True)]
    mean = sum(tokens_per_layer(32, 576, 0, high)) / 32
    assert mean == (7 * 576 + 2 * 504 + 3 * 360 + 20 * 72) / 32
    left = [c.keep for c in stages(32, int(mean), 576, budget="mean")]
    assert left == pytest.approx([504, 360, 72], abs=2)
    with pytest.raises(ValueError, match="leave at least 187.7"):                # 0.33 of 576
        stages(32, 100, 576, budget="mean")
    assert [c.keep for c in stages(32, 1.0, 576, budget="mean")] == [576] * 3
    assert [c.keep for c in stages(9, 2, 10, layers=(2, 5))] == [6, 2]
    assert stages(9, 0.01, 10)[-1].keep == 1


# ------------------------------------------------------------------------------------------------
# ------- devices, dtypes, input
def test_nothing_left_and_all_left():
    model, x = build(), sequence()
    gone = run(model, x, stages(6, None, NUM_VISUAL, ratios=LOW))
    assert gone.cache.lengths == [24, 20, 16, 8, 8, 8] and gone.visual == slice(3, 3)
    assert gone.hidden.isfinite().all()
    assert torch.equal(run(model, x, stages(6, 1.0, NUM_VISUAL)).hidden, model(x))


def test_meta_and_bf16():
    with torch.device("meta"):
        model, x = Decoder(DIM, 6, 4, 2, 24), torch.empty(2, SIZE, DIM)
        assert run(model, x, stages(6, 3, NUM_VISUAL)).hidden.shape == (2, 11, DIM)
    model, x = build(dtype=torch.bfloat16), sequence(dtype=torch.bfloat16)
    result = run(model, x, stages(6, 3, NUM_VISUAL))
    assert result.hidden.dtype == torch.bfloat16 and result.hidden.isfinite().all()
    assert layer_ttv(result.states[2].transitions.values()).dtype == torch.float32
    model, x = build(dtype=torch.float32), sequence(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(model, x, stages(6, 3, NUM_VISUAL)).hidden.isfinite().all()


def test_equal_tokens_keep_the_first():
    same = torch.ones(1, 4), torch.zeros(1, 4)
    valid, now = torch.ones(1, 4, dtype=torch.bool), torch.arange(4)[None]
    change = Transition(same, same, valid, slice(0, 4), now)
    assert layer_ttv([change, change]).tolist() == [[[0.5] * 4] * 2]
    model, x = build(), sequence(1)
    x[:, VISUAL] = 0.0                                              # nothing tells them apart
    for layer in model.layers:
        layer.self_attn.k_proj.weight.zero_()
        layer.self_attn.v_proj.weight.zero_()
    assert run(model, x, stages(6, 3, NUM_VISUAL)).plan.index.tolist() == [[0, 1, 2]]


def test_compile_without_graph_breaks():
    torch._dynamo.reset()
    model, x = build(2, dtype=torch.float32), sequence(dtype=torch.float32)
    cuts = stages(2, 3, NUM_VISUAL, layers=(1,))

    def hidden(t):
        return run(model, t, cuts).hidden
    compiled = torch.compile(hidden, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x), hidden(x))


@pytest.mark.parametrize("arguments, words", [
    (dict(num_layers=3), "at least 4"),
    (dict(keep=None), "one of the two"),
    (dict(ratios=HIGH), "one of the two"),
    (dict(keep=17), "keep=17 but there are 16"),
    (dict(keep=1.5), "fraction"),
    (dict(keep=-1), "keep=-1"),
    (dict(keep=None, ratios=(0.5, 0.25)), "one entry"),
    (dict(keep=None, ratios=(0.5, 0.75, 0.1)), "not rise"),
    (dict(keep=None, ratios=(1.5, 0.75, 0.1)), "0 ... 1"),
    (dict(layers=(2, 6)), "1 ... 5"),
    (dict(layers=(0, 2)), "1 ... 5"),
    (dict(layers=(3, 2)), "must rise"),
    (dict(layers=()), "must rise"),
    (dict(layers=(1.5, 3)), "layers[0]=1.5 (float): needs"),
    (dict(layers=(2, 3), accumulate=(1.5,)), "accumulate[0]=1.5 (float): needs"),
    (dict(layers=(2, 3), accumulate=(3,)), "after layer 2"),
    (dict(accumulate=(0, 1)), "accumulate"),
    (dict(budget="average"), "budget='average'"),
    (dict(direction="cos"), "direction='cos'"),
    (dict(support="text"), "support='text'"),
    (dict(alpha=1.5), "alpha=1.5"),
    (dict(alpha=-0.1), "alpha=-0.1"),
    (dict(alpha=float("nan")), "alpha=nan"),
    (dict(alpha="half"), "alpha='half'"),
    (dict(num_layers="6"), "num_layers='6'"),
    (dict(num_visual=16.0), "num_visual=16.0"),
    (dict(keep=None, ratios="high"), "ratios='high'"),
    (dict(keep=None, ratios=(0.5, float("nan"), 0.1)), "ratios[1]=nan"),
])
def test_stages_refuse(arguments, words):
    with pytest.raises(ValueError) as error:
        stages(**{**dict(num_layers=6, keep=4, num_visual=16), **arguments})
    assert words in str(error.value)


@pytest.mark.parametrize("call, words", [
    (lambda m, a: score(m, m, alpha=2), "alpha=2"),
    (lambda m, a: score(m, m[:1]), r"ttv has shape \(2, 5\) and iga \(1, 5\)"),
    (lambda m, a: score(m, m, m), "alive is torch.float32"),
    (lambda m, a: ttv(m, m, m), "valid is torch.float32"),
    (lambda m, a: transition(m, m[:1]), "token_in has shape"),
    (lambda m, a: iga(m, slice(0, 3), a), "attention has shape .* 4 axes"),
    (lambda m, a: iga(a[:, None, None].float(), slice(0, 3), a), r"asking .* \(B, R\) = \(2, 1\)"),
    (lambda m, a: iga(a[:, None, None].float(), 3, a[:, :1]), "visual=3: needs slice"),
    (lambda m, a: counts(6, 3, 16, 2), "layers=2: needs a sequence"),
    (lambda m, a: scaled_layers("6"), "num_layers='6'"),
])
def test_arguments_that_are_none(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.rand(2, 5), torch.ones(2, 5, dtype=torch.bool))


def test_a_prompt_without_question_is_refused():
    with pytest.raises(ValueError, match="no text behind"):
        run(build(), sequence(1, VISUAL.stop), stages(6, 4, NUM_VISUAL))
