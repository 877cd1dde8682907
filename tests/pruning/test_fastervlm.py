"""FasterVLM: the row of [CLS], the selection, several views, the analysis; against loops and the
paper's facts."""

import functools

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.pruning import fastervlm as fv
from vtlib.tokens import VisionOutputs, take
from vtlib.tokens.cost import cache_bytes, decoder_flops, tokens_per_layer
from vtlib.tokens.views import join_views, view_order


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(batch=3, grid=(4, 5), heads=2, dim=6, num_prefix=1, seed=0, dtype=torch.float32):
    n = grid[0] * grid[1] + num_prefix
    shapes = [(heads, n, 4), (heads, n, 4), (n, dim)]
    q, k, x = (seeded(batch, *shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes))
    row = fv.cls_row(q, k, num_prefix)
    return VisionOutputs(x, grid, torch.nn.Identity(), num_prefix, cls_row=row), q, k


@pytest.mark.parametrize("num_prefix", [1, 5])
def test_the_row_is_row_zero_of_the_full_map(num_prefix):
    vision, q, k = make(num_prefix=num_prefix)
    full = (q @ k.transpose(-2, -1) / 2).softmax(dim=-1)
    torch.testing.assert_close(vision.cls_row, full[:, :, 0, num_prefix:], atol=1e-6, rtol=0)
    to_prefix = full[:, :, 0, :num_prefix].sum(dim=-1)
    torch.testing.assert_close(vision.cls_row.sum(dim=-1), 1 - to_prefix, atol=1e-6, rtol=0)
    # one query is enough
    torch.testing.assert_close(fv.cls_row(q[:, :, :1], k, num_prefix), vision.cls_row)
    torch.testing.assert_close(fv.cls_row(2 * q, k, num_prefix, scale=0.25), vision.cls_row)


def test_equals_loops():
    vision, q, k = make(batch=4, dtype=torch.float64)
    kept = fv.prune(vision, 7).apply(vision.features)
    for b in range(4):
        scores = []
        for n in range(20):
            total = 0.0
            for h in range(2):
                logits = [(q[b, h, 0] @ k[b, h, j]).item() / 2 for j in range(21)]
                weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
                total += weights[1 + n].item()
            scores.append(total / 2)
        best = sorted(sorted(range(20), key=lambda n: (-scores[n], n))[:7])      # raster order
        assert torch.equal(kept[b], vision.selected[b, [1 + n for n in best]])


def test_plan():
    vision, _, _ = make()
    plan = fv.prune(vision, 6)
    assert plan.num_tokens == 20 and len(plan) == 6 and not plan.merges
    assert plan.kept().sum(dim=1).tolist() == [6] * 3
    assert (plan.index[:, 1:] > plan.index[:, :-1]).all()
    everything = fv.prune(vision, 20)
    assert torch.equal(everything.apply(vision.features), vision.features)
    assert torch.equal(fv.prune(vision, 0.25).index, fv.prune(vision, 5).index)
    for share, count in ((0.25, 144), (0.1, 58), (0.05, 29)):
        assert len(fv.prune(make(grid=(24, 24))[0], share)) == count


@given(st.integers(1, 12), st.integers(0, 10**6), st.data())
@settings(max_examples=30, deadline=None)
def test_nested_ties_permutation(n, seed, data):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (2, n), generator=generator).float()
    keep = data.draw(st.integers(1, n))
    kept = fv.select(scores, keep).kept()
    for row, mask in zip(scores, kept, strict=True):
        want = sorted(range(n), key=lambda i: (-row[i].item(), i))[:keep]  # ties to the lower index
        assert mask.nonzero()[:, 0].tolist() == sorted(want)
    if keep < n:
        assert not (kept & ~fv.select(scores, keep + 1).kept()).any()            # nested
    scores = torch.rand(2, n, generator=generator)
    shuffle = torch.randperm(n, generator=generator)
    moved = fv.select(scores[:, shuffle], keep).kept()
    assert torch.equal(moved, fv.select(scores, keep).kept()[:, shuffle])


def test_batch_is_each_image_alone():
    vision, _, _ = make(batch=5)
    together = fv.prune(vision, 4).index
    for b in range(5):
        alone = vision.rows(torch.tensor([b]))
        assert torch.equal(fv.prune(alone, 4).index[0], together[b])


@pytest.mark.parametrize("crops", [(2, 2), (1, 3), (3, 1)])
def test_views(crops):
    grid, (rows, cols) = (2, 3), crops
    views, n = 1 + rows * cols, 6
    vision, _, _ = make(batch=2 * views, grid=grid)
    pool = rearrange(vision.features, "(b v) n d -> b (v n) d", v=views)
    plan = fv.prune_views(vision, 2, crops)
    out, per_view = plan.apply(pool), fv.prune(vision, 2).kept().reshape(2, views, n)
    assert out.shape == (2, views * 2, 6)
    for b in range(2):                                          # draw the big picture, walk over it
        features = vision.features.reshape(2, views, n, -1)[b]
        want = [features[0, i] for i in range(n) if per_view[b, 0, i]]
        for y in range(rows * grid[0]):
            for x in range(cols * grid[1]):
                v = 1 + y // grid[0] * cols + x // grid[1]
                i = y % grid[0] * grid[1] + x % grid[1]
                if per_view[b, v, i]:
                    want.append(features[v, i])
        assert torch.equal(out[b], torch.stack(want))
    whole = fv.prune_views(vision, n, crops).apply(pool)
    assert torch.equal(whole, take(pool, view_order(crops, grid).expand(2, -1)))
    assert len(fv.prune_views(make(batch=5, grid=(24, 24))[0], 29, (2, 2))) == 145


def test_views_refuse():
    vision, _, _ = make(batch=4)
    with pytest.raises(ValueError, match="4 views of 20 tokens .* multiple of 5 views"):
        fv.prune_views(vision, 3, (2, 2))
    with pytest.raises(ValueError, match="views of 20 tokens"):
        join_views(fv.prune(vision, 3), (1, 3), (4, 4))
    with pytest.raises(ValueError, match=r"crops\[0\]=0: needs an integer of at least 1"):
        view_order((0, 2), (4, 4))
    for call in (view_order, functools.partial(join_views, fv.prune(vision, 3))):
        for crops in (4, "13", (1, 2, 3), (1, 1.5), None):
            with pytest.raises(ValueError, match="crops.*needs"):
                call(crops, (4, 5))
            with pytest.raises(ValueError, match="grid.*needs"):
                call((1, 3), crops)
    with pytest.raises(ValueError, match="crops=4: needs a sequence of 2 integers"):
        fv.prune_views(vision, 2, 4)
    with pytest.raises(ValueError, match="plan is a int but needs to be a Plan"):
        join_views(3, (1, 3), (4, 5))


def test_saving_on_llava():
    """T = 58 of 576, 60 text tokens: 118 / 636 of the part linear in n, and less of the part
    quadratic in it."""
    full, short = (decoder_flops(tokens_per_layer(32, n, 60), 4096, 11008) for n in (576, 58))
    linear, quadratic = (decoder_flops([1], 4096, 11008) - 2 * 4096) * 32, 2 * 4096 * 32
    assert full == 636 * linear + 636**2 * quadratic and short == 118 * linear + 118**2 * quadratic
    assert 0.18 < short / full < 118 / 636
    for length in (636, 118):
        assert cache_bytes([length] * 32, 4096) == length * 2**19


def test_concentration():
    flat = fv.concentration(torch.ones(1, 8))[0]
    torch.testing.assert_close(flat, torch.arange(1, 9) / 8)
    peaked = fv.concentration(torch.tensor([[0.1, 0.7, 0.0, 0.2]]))[0]
    torch.testing.assert_close(peaked, torch.tensor([0.7, 0.9, 1.0, 1.0]))
    half = torch.full((1, 3000), 1 / 3000, dtype=torch.float16)      # 1 in halves: steps of 0.0005
    torch.testing.assert_close(fv.concentration(half)[0], torch.arange(1, 3001) / 3000)
    for row in (torch.zeros(3), torch.tensor([0.5, -0.5, 0.0])):
        with pytest.raises(ValueError, match=r"scores\[1\] sums to 0.0: .* above 0"):
            fv.concentration(torch.stack([torch.ones(3), row]))


def test_rope_bias():
    """Late tokens win when query and keys agree; with independent noise, or one position for all,
    nobody does."""
    def first_and_last(**options):
        generator = torch.Generator().manual_seed(0)
        weight = fv.rope_bias(144, 64, samples=400, generator=generator, **options)
        torch.testing.assert_close(weight.sum(), torch.tensor(1.0))
        return weight[:36].sum().item(), weight[-36:].sum().item()
    first, last = first_and_last(agreement=1.0)
    assert last > 3 * first
    for options in ({"agreement": 0.0}, {"agreement": 1.0, "same_position": True}):
        first, last = first_and_last(**options)
        assert abs(first - 0.25) < 0.03 and abs(last - 0.25) < 0.03


def test_meta_half_compile():
    with torch.device("meta"):
        row = fv.cls_row(torch.empty(4, 2, 21, 4), torch.empty(4, 2, 21, 4))
        vision = VisionOutputs(torch.empty(4, 21, 6), (4, 5), torch.nn.Identity(), cls_row=row)
        plan = fv.prune(vision, 3)
        assert plan.apply(vision.features).shape == (4, 3, 6) and plan.index.device.type == "meta"
        assert fv.prune_views(vision, 3, (1, 3)).index.shape == (1, 12)
        assert fv.rope_bias(9, 8, samples=2, device="meta").shape == (9,)
    vision, q, k = make()
    row = fv.cls_row(q.bfloat16(), k.bfloat16())
    assert row.dtype == torch.bfloat16 and fv.select(fv.score(row), 5).index.shape == (3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert fv.prune(make()[0], 5).apply(vision.features).dtype == torch.float32
    def chosen(q, k):
        return fv.select(fv.score(fv.cls_row(q, k)), 5).index

    compiled = torch.compile(chosen, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k), fv.prune(vision, 5).index)


@pytest.mark.parametrize("call, words", [
    (lambda v: fv.prune(v, 21), "keep=21 but there are 20 tokens"),
    (lambda v: fv.prune(v, 0), "keep=0"),
    (lambda v: fv.prune(VisionOutputs(v.selected, v.grid, v.project), 3), "cls_row is None"),
    (lambda v: fv.score(v.cls_row[0]), "3 axes"),
    (lambda v: fv.cls_row(v.selected[:, None], v.selected[:, None], num_prefix=0), "num_prefix=0"),
    (lambda v: fv.cls_row(v.selected[:, None], v.selected[:, None], -1), "num_prefix=-1"),
    (lambda v: fv.cls_row(v.selected[:, None], v.selected[:, None], 99), "num_prefix=99: needs"),
    (lambda v: fv.cls_row(v.selected[:, None], v.selected[:, None], 1.0), "num_prefix=1.0"),
    (lambda v: fv.rope_bias(0), "num_visual=0"),
    (lambda v: fv.rope_bias(9, 8, "1"), "agreement='1'"),
    (lambda v: fv.rope_bias(9, 8, generator=3), "generator is a int"),
    (lambda v: fv.cls_row(v.selected, v.selected), "q has shape .* 4 axes"),
    (lambda v: fv.cls_row(v.selected[:, None], v.selected[:2, None]), "q is .* must agree"),
    (lambda v: fv.prune(v.selected, 3), "vision is torch.float32 .* needs to be VisionOutputs"),
])
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(make()[0])


def test_declarations():
    assert fv.METHOD.reads == ("cls_row",)
    assert fv.METHOD.space == "features" and not fv.METHOD.asks
