"""HiPrune: scores, the three kinds of patches, borders, the budget, the layer analysis; against
loops and the paper's facts."""

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.settings import default_dtype
from vtlib.pruning import hiprune as hp
from vtlib.tokens import VisionOutputs, take
from vtlib.tokens.views import view_order

ANCHOR, BUFFER, REGISTER = range(3)


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(batch=2, grid=(4, 6), layers=(1, 4), heads=2, num_prefix=1, seed=0):
    n = grid[0] * grid[1] + num_prefix
    attention = {}
    for layer in layers:
        logits = seeded(batch, heads, n, n, seed=seed + layer).mul(6)
        attention[layer] = logits.softmax(dim=-1)
    selected = seeded(batch, n, 5, seed=99)
    return VisionOutputs(selected, grid, torch.nn.Identity(), num_prefix, attention=attention)


def naive(middle, deep, keep, grid, alpha, wrap):
    """One image with lists and sets; `middle`, `deep` lists of numbers. The budget is large enough
    for all crosses."""
    h, w = grid
    n = h * w
    anchors = sorted(range(n), key=lambda i: (-middle[i], i))[: round(keep * alpha / 5)]
    chosen = set(anchors)
    for i in anchors:
        if wrap:
            chosen |= {min(max(j, 0), n - 1) for j in (i - 1, i + 1, i - w, i + w)}
        else:
            y, x = divmod(i, w)
            cross = ((y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x))
            chosen |= {a * w + b for a, b in cross if 0 <= a < h and 0 <= b < w}
    rest = sorted(set(range(n)) - chosen, key=lambda i: (-deep[i], i))[: keep - len(chosen)]
    return set(anchors), chosen - set(anchors), set(rest)


def parts(plan, b):
    pairs = list(zip(plan.index[b].tolist(), plan.role[b].tolist(), strict=True))
    return tuple({i for i, role in pairs if role == kind} for kind in range(3))


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]),
       st.booleans(), st.integers(0, 10**6), st.data())
@settings(max_examples=60, deadline=None)
def test_equals_loops(h, w, alpha, wrap, seed, data):
    keep = data.draw(st.integers(1, h * w))
    generators = (torch.Generator().manual_seed(seed + i) for i in (0, 1))
    middle, deep = (torch.randint(0, 9, (2, h * w), generator=g) / 9 for g in generators)
    plan = hp.select(middle, deep, keep, (h, w), alpha, wrap)
    # the budget is met exactly, always
    assert len(plan) == keep and plan.kept().sum(dim=1).tolist() == [keep] * 2
    assert (plan.index[:, 1:] > plan.index[:, :-1]).all()
    for b in range(2):
        anchors, buffers, registers = parts(plan, b)
        want = naive(middle[b].tolist(), deep[b].tolist(), keep, (h, w), alpha, wrap)
        assert anchors == want[0]
        if len(want[0] | want[1]) <= keep:
            assert (buffers, registers) == want[1:]
        else:                                                 # crosses do not fit: the best buffers
            best = sorted(want[1], key=lambda i: (-middle[b, i].item(), i))[: keep - len(anchors)]
            assert buffers == set(best) and not registers
        if not wrap:                                # no buffer farther than one step from an anchor
            for i in buffers:
                assert any(abs(i // w - a // w) + abs(i % w - a % w) == 1 for a in anchors)


def test_whole_path_against_loops():
    vision = make()
    # 2 anchors; the deepest layer there is 5
    plan = hp.prune(vision, 15, object_layer=2, alpha=0.7)
    for b in range(2):
        scores = []
        for layer in (1, 4):
            a = vision.attention[layer][b]
            scores.append([sum(a[h, i, 1 + n].item() for h in range(2) for i in range(25)) / 50
                           for n in range(24)])
        assert parts(plan, b) == naive(*scores, 15, (4, 6), 0.7, wrap=False)
    assert torch.equal(plan.apply(vision.features)[1], vision.features[1, plan.index[1]])


def test_two_layers_and_all_queries():
    vision = make()
    middle, deep = hp.score(vision, 2, 5)
    assert not torch.allclose(middle, deep)
    with_cls = vision.attention[1].mean(dim=1).mean(dim=1)[:, 1:]
    torch.testing.assert_close(middle, with_cls)
    # not the row of [CLS]
    assert not torch.allclose(middle, vision.attention[1].mean(dim=1)[:, 0, 1:])
    # [CLS] asks too
    assert not torch.allclose(middle, vision.attention[1].mean(dim=1)[:, 1:, 1:].mean(dim=1))
    assert hp.attention_layers(24) == (8, 22)         # CLIP in LLaVA: attentions[8], attentions[-2]
    assert hp.attention_layers(32, 16, 32) == (15, 31)                           # Qwen2.5-VL
    with pytest.raises(ValueError, match="object_layer=0 counts from 1"):
        hp.attention_layers(24, 0)
    with pytest.raises(ValueError, match="deep_layer=25"):
        hp.attention_layers(24, 9, 25)


def test_qwen_scores():
    """Sum over queries, mean over the four merged patches, window order undone."""
    attention, order = seeded(2, 3, 24, 24), torch.tensor([3, 0, 5, 1, 4, 2])
    got = hp.received_merged(attention, order)
    for b in range(2):
        for place in range(6):
            received = attention[b, :, :, 4 * place : 4 * place + 4]
            total = sum(received.flatten().tolist())
            assert abs(got[b, order[place]].item() - total / 3 / 4) < 1e-9
    assert torch.equal(hp.received_merged(attention), got[:, order])
    assert torch.equal(got, hp.received_merged(attention)[:, order.argsort()])   # the release's way


def test_budget_arithmetic():
    assert [hp.num_anchors(keep, 0.1) for keep in (192, 128, 64, 26, 25, 8)] == [4, 3, 1, 1, 0, 0]
    middle, deep = seeded(1, 576), seeded(1, 576, seed=1)
    role = hp.select(middle, deep, 192, (24, 24)).role[0]
    assert (role == ANCHOR).sum() == 4 and 12 <= (role != REGISTER).sum() <= 20
    assert (role == REGISTER).sum() > 0.89 * 192
    # alpha = 1 with lone anchors inside the grid: five tokens each
    middle = torch.zeros(1, 100)
    middle[0, [22, 25, 28, 52]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    role = hp.select(middle, seeded(1, 100).float(), 20, (10, 10), alpha=1.0).role[0]
    assert (role == ANCHOR).sum() == 4 and (role == BUFFER).sum() == 16


def test_crosses_that_do_not_fit():
    """Two anchors far apart cost ten tokens, the budget is eight: both anchors stay, the two least
    attended buffers go."""
    middle = torch.zeros(1, 50)
    middle[0, [11, 38]] = torch.tensor([9.0, 8.0])                                # on a 5 x 10 grid
    around = [1, 10, 12, 21, 28, 37, 39, 48]
    middle[0, around] = torch.tensor([0.1, 2.0, 3.0, 4.0, 0.2, 5.0, 6.0, 7.0])
    plan = hp.select(middle, seeded(1, 50).float(), 8, (5, 10), alpha=1.0)
    assert plan.index[0].tolist() == [10, 11, 12, 21, 37, 38, 39, 48]
    assert (plan.index[0, plan.role[0] == ANCHOR]).tolist() == [11, 38]
    assert (plan.role != REGISTER).all()


def test_alpha_zero_is_the_deep_score():
    middle, deep = seeded(2, 24), seeded(2, 24, seed=1)
    plan = hp.select(middle, deep, 7, (4, 6), alpha=0.0)
    assert torch.equal(plan.index, deep.topk(7, dim=1).indices.sort(dim=1).values)
    assert (plan.role == REGISTER).all()


def test_borders():
    """A corner has two neighbours; the release's flat index gives it the next row's start, and
    limits what falls outside."""
    def around(i, wrap=False):
        near = hp.neighbourhood(torch.tensor([[i]]), (4, 6), wrap=wrap)
        return near[0].nonzero()[:, 0].tolist()
    assert around(5) == [4, 5, 11]                                  # top right of 4 x 6
    assert around(5, wrap=True) == [0, 4, 5, 6, 11]
    assert around(20, wrap=True) == [14, 19, 20, 21, 23]
    inside = torch.tensor([[8], [15]])
    wrapped = hp.neighbourhood(inside, (4, 6), wrap=True)
    assert torch.equal(hp.neighbourhood(inside, (4, 6)), wrapped)
    assert hp.neighbourhood(torch.zeros(3, 0, dtype=torch.long), (4, 6)).sum() == 0


def test_flips_but_not_permutations():
    middle, deep, grid = seeded(2, 24), seeded(2, 24, seed=1), (4, 6)
    kept = hp.select(middle, deep, 12, grid, alpha=0.8).kept()

    def flip(x, axis):
        return x.unflatten(1, grid).flip(axis).flatten(1)
    for axis in (1, 2):
        flipped = hp.select(flip(middle, axis), flip(deep, axis), 12, grid, alpha=0.8)
        assert torch.equal(flipped.kept(), flip(kept, axis))
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = hp.select(middle[:, shuffle], deep[:, shuffle], 12, grid, alpha=0.8)
    assert not torch.equal(shuffled.kept(), kept[:, shuffle])


def test_identity_and_fractions():
    vision = make()
    everything = hp.prune(vision, 24, object_layer=2)
    assert torch.equal(everything.apply(vision.features), vision.features)
    assert len(hp.prune(vision, 0.334, object_layer=2)) == round(24 * 0.334)


def test_scores_above_one():
    """The release takes 1 off the deep score of chosen patches. Qwen's are sums and exceed 1: one
    may win a second place."""
    middle, deep = seeded(1, 24), seeded(1, 24, seed=1)
    middle[0, 8], deep[0, 8] = 5.0, 5.0
    release = hp.select(middle, deep, 10, (4, 6), alpha=0.5, exact=False)
    assert (release.index == -1).sum() == 1 and release.index[0, -1] == -1
    assert release.kept().sum() == 9
    assert hp.select(middle, deep, 10, (4, 6), alpha=0.5).kept().sum() == 10
    small = [hp.select(middle / 9, deep / 9, 10, (4, 6), alpha=0.5, exact=exact).index
             for exact in (True, False)]
    assert torch.equal(*small)                                      # below 1 the two are the same


def test_batch_is_each_image_alone():
    vision = make(batch=4)
    together = hp.prune(vision, 11, 2, alpha=0.6)
    for b in range(4):
        attention = {layer: a[b : b + 1] for layer, a in vision.attention.items()}
        alone = VisionOutputs(vision.selected[b : b + 1], vision.grid, vision.project,
                              attention=attention)
        assert torch.equal(hp.prune(alone, 11, 2, alpha=0.6).index[0], together.index[b])


def test_views():
    vision = make(batch=6, grid=(2, 3))
    per_view = hp.prune(vision, 4, 2, alpha=0.8)         # one anchor each, and two or three buffers
    # int(14 / 3) = 4 from each of three views
    plan = hp.prune_views(vision, 14, (1, 2), 2, alpha=0.8)
    assert set(per_view.role.flatten().tolist()) >= {ANCHOR, BUFFER}
    assert plan.index.shape == (2, 12)
    mask = rearrange(per_view.kept(), "(b v) n -> b (v n)", v=3)
    assert torch.equal(plan.kept(), mask)
    order = view_order((1, 2), (2, 3))
    place = order.argsort()
    assert (place[plan.index].diff(dim=1) > 0).all()               # in the order of the big picture
    role = torch.full((6, 6), -1).scatter(1, per_view.index, per_view.role)
    assert torch.equal(plan.role, take(rearrange(role, "(b v) n -> b (v n)", v=3), plan.index))
    with pytest.raises(ValueError, match="total=2 tokens for 3 views"):
        hp.prune_views(vision, 2, (1, 2), 2)


def test_layer_analysis():
    grid, n = (5, 5), 25
    mask = torch.zeros(2, n, dtype=torch.bool)
    mask[:, [6, 7, 11, 12]] = True
    sees = torch.where(mask, 1.0, 0.01)
    scattered = torch.zeros(2, n)
    scattered[:, [0, 4, 20, 24]] = 1.0
    assert hp.object_iou(sees, mask, 4).tolist() == [1, 1]
    assert hp.object_iou(sees, mask, 8).tolist() == [0.5, 0.5]
    assert hp.object_iou(scattered, mask, 4).tolist() == [0, 0]
    near, far = hp.spread(sees, grid, 4)[0].item(), hp.spread(scattered, grid, 4)[0].item()
    assert abs(near - (4 + 2 * 2**0.5) / 6) < 1e-6 and abs(far - 4 * near) < 1e-5
    attention = {layer: torch.cat([torch.ones(2, 1), s], dim=1)[:, None, None].expand(2, 3, 26, 26)
                 for layer, s in ((0, scattered), (3, sees))}
    vision = VisionOutputs(torch.zeros(2, 26, 4), grid, torch.nn.Identity(), attention=attention)
    layers, iou, wide = hp.layer_analysis(vision, mask, 4)
    assert layers == [1, 4] and iou.tolist() == [0, 1] and wide[0] > wide[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_overlap_is_float32_whatever_the_default(dtype):
    mask = torch.arange(24).expand(2, -1) < 9
    scores = torch.arange(24.0).neg().expand(2, -1)
    with default_dtype(dtype):
        overlap = hp.object_iou(scores, mask, 7)
    assert overlap.dtype == torch.float32
    assert torch.equal(overlap, torch.full((2,), 7 / 9, dtype=torch.float32))


def test_meta_half_compile():
    with torch.device("meta"):
        attention = {layer: torch.empty(2, 3, 25, 25) for layer in (0, 2)}
        selected = torch.empty(2, 25, 5)
        vision = VisionOutputs(selected, (4, 6), torch.nn.Identity(), attention=attention)
        assert hp.prune(vision, 9, 1, alpha=0.6).apply(vision.features).shape == (2, 9, 5)
        assert hp.received_merged(torch.empty(2, 3, 24, 24), torch.arange(6)).shape == (2, 6)
    middle, deep = seeded(2, 24), seeded(2, 24, seed=1)
    half = hp.select(middle.bfloat16(), deep.bfloat16(), 9, (4, 6), 0.6)
    assert half.kept().sum(dim=1).tolist() == [9, 9]
    def run(m, d):
        return hp.select(m, d, 9, (4, 6), 0.6).index
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(middle, deep), run(middle, deep))


def bare(v):
    return VisionOutputs(v.selected, v.grid, v.project)


@pytest.mark.parametrize("call, words", [
    (lambda v: hp.prune(v, 25, 2), "keep=25 but there are 24 tokens"),
    (lambda v: hp.prune(v, 5, 2, alpha=1.5), "alpha=1.5"),
    (lambda v: hp.prune(v, 5), r"object_layer=9 .* layers \[2, 5\]"),
    (lambda v: hp.prune(v, 5, 2, deep_layer=3), "deep_layer=3"),
    (lambda v: hp.prune(bare(v), 5), "vision.attention is empty"),
    (lambda v: hp.layer_analysis(bare(v), torch.ones(2, 24) > 0), "attention is empty"),
    (lambda v: hp.select(seeded(2, 24), seeded(2, 24), 5, (5, 5)),
     "has 25 places but there are 24 tokens"),
    (lambda v: hp.received(v.attention[1][:, 0]), r"\(B, heads, S, S\)"),
    (lambda v: hp.received_merged(v.attention[1]), "merge=4 dividing S"),
    (lambda v: hp.received_merged(seeded(2, 3, 24, 24), merge=0), "merge=0: needs an integer of"),
    (lambda v: hp.received_merged(seeded(2, 3, 24, 24), merge=-4), "merge=-4: needs an integer of"),
    (lambda v: hp.received_merged(seeded(2, 3, 24, 24), torch.tensor([3, 0, 5, 1, 4, 4])),
     "order lacks place 2: needs each of 0 ... 5 once"),
    (lambda v: hp.received_merged(seeded(2, 3, 24, 24), torch.tensor([3, 0, 5, 1, 4, 6])),
     r"order\[5\]=6 is no place"),
    (lambda v: hp.received_merged(seeded(2, 3, 24, 24), torch.arange(5)),
     r"order is torch.int64 \(5,\) but needs to be torch.int64 \(S / merge,\) = \(6,\)"),
    (lambda v: hp.received_merged(seeded(2, 3, 24, 24), [3, 0, 5, 1, 4, 2]), "order is a list"),
    (lambda v: hp.received(v.attention[1], -1), "num_prefix=-1: needs an integer from 0 to 25"),
    (lambda v: hp.received(v.attention[1], 26), "num_prefix=26: needs an integer from 0 to 25"),
    (lambda v: hp.object_iou(seeded(2, 24), seeded(2, 24)), "boolean"),
    (lambda v: hp.attention_layers(12, 1.5), "object_layer=1.5 .*needs an integer"),
    (lambda v: hp.attention_layers(12, 1, "9"), "deep_layer='9' .*needs an integer"),
    (lambda v: hp.score(v, 2.0), "object_layer=2.0 .*needs an integer"),
    (lambda v: hp.num_anchors(5, "a"), "alpha='a'"),
    (lambda v: hp.num_anchors(5.0, 0.1), "keep=5.0"),
    (lambda v: hp.num_anchors(5, torch.nan), "alpha=nan"),
    (lambda v: hp.prune_views(v, 2, 4, 2), "crops=4: needs a sequence of 2 integers"),
    (lambda v: hp.spread(seeded(2, 24), (5, 5), 3), "has 25 places but there are 24 tokens"),
    (lambda v: hp.neighbourhood(torch.tensor([[24]]), (4, 6)), r"index\[0, 0\]=24 is no place"),
    (lambda v: hp.neighbourhood(torch.tensor([[4]]), 5), "grid=5"),
    (lambda v: hp.spread(seeded(2, 24), (4, 6), 1), "a distance needs two"),
])
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(make())


def test_declarations():
    assert hp.METHOD.reads == ("attention",)
    assert hp.METHOD.space == "features" and not hp.METHOD.asks
