"""Chance, grid, pooling, Token Merging, oracle: any keep, any grid, against loops."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.pruning import baselines as bl
from vtlib.tokens import VisionOutputs

GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 9))


def vision_of(grid=(4, 6), batch=2, dim=5, num_prefix=1, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, num_prefix + grid[0] * grid[1], dim, generator=g, dtype=dtype)
    return VisionOutputs(x, grid, torch.nn.Identity(), num_prefix)


def methods(vision):
    mask = torch.zeros(vision.features.shape[:2], dtype=torch.bool)
    mask[:, ::3] = True
    return {"random": bl.random, "uniform": bl.uniform, "pool": bl.pool, "tome": bl.tome,
            "oracle": functools.partial(bl.oracle, mask)}


@given(GRIDS, st.integers(0, 10**6), st.data())
@settings(max_examples=40, deadline=None)
def test_every_method_any_keep_any_grid(grid, seed, data):
    n = grid[0] * grid[1]
    keep = data.draw(st.integers(1, n))
    vision = vision_of(grid, seed=seed)
    for name, method in methods(vision).items():
        plan = method(vision, keep)
        assert len(plan) == keep and plan.num_tokens == n, name
        assert (plan.index[:, 1:] > plan.index[:, :-1]).all(), name
        assert 0 <= plan.index.min() and plan.index.max() < n, name
        out = plan.apply(vision.features)
        assert out.shape == (2, keep, 5) and out.isfinite().all(), name
        # keep = all: bit for bit
        assert torch.equal(method(vision, n).apply(vision.features), vision.features), name
        if plan.merges:
            # nothing dropped, nothing twice
            once = torch.ones_like(plan.origin)
            everyone = torch.zeros(2, n, dtype=torch.long).scatter_add(1, plan.origin, once)
            assert (everyone == 1).all(), name
            # every slot is a mean
            total = torch.zeros(2, keep, dtype=torch.float64).scatter_add(1, plan.slot, plan.weight)
            torch.testing.assert_close(total, torch.ones_like(total))
            # a slot sits at one of its own
            assert (plan.source().gather(1, plan.index) == torch.arange(keep)).all(), name
        else:
            chosen = vision.features.gather(1, plan.index[..., None].expand_as(out))
            assert torch.equal(out, chosen), name


# ---------------------------------------------------------------- random
def test_random():
    vision = vision_of((3, 4), batch=3)
    def draw(seed):
        return bl.random(vision, 5, torch.Generator().manual_seed(seed)).index
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert not torch.equal(draw(1)[0], draw(1)[1])                     # each image its own
    state = torch.get_rng_state()
    draw(1)                                            # a generator leaves the global state alone
    assert torch.equal(torch.get_rng_state(), state)
    many = bl.random(vision_of((3, 4), batch=3000), 5, torch.Generator().manual_seed(0))
    share = many.kept().float().mean(dim=0)
    assert (share - 5 / 12).abs().max() < 0.05                         # five standard errors


# ---------------------------------------------------------------- grid
def test_uniform_is_the_regular_grid_where_there_is_one():
    index = bl.uniform(vision_of((8, 8)), 16).index[0]
    assert index.tolist() == [r * 8 + c for r in (1, 3, 5, 7) for c in (1, 3, 5, 7)]
    index = bl.uniform(vision_of((6, 9)), 6).index[0]
    assert index.tolist() == [r * 9 + c for r in (1, 4) for c in (1, 4, 7)]


@given(GRIDS, st.data())
@settings(max_examples=60, deadline=None)
def test_cells(grid, data):
    h, w = grid
    keep = data.draw(st.integers(1, h * w))
    boxes = bl.cells(keep, grid)
    cover = torch.zeros(h, w)
    for top, bottom, left, right in boxes:
        assert top < bottom and left < right
        cover[top:bottom, left:right] += 1
    assert len(boxes) == keep and (cover == 1).all()                             # a partition
    areas = [(b - t) * (r - q) for t, b, q, r in boxes]
    assert max(areas) <= 4 * (h * w / keep + 1)


def test_uniform_leaves_no_hole():
    """Every patch has a kept one nearby, for budgets that are no product of rows and columns
    too."""
    for grid, keep in [((24, 24), 58), ((24, 24), 29), ((10, 6), 7), ((12, 30), 23)]:
        index = bl.uniform(vision_of(grid, batch=1, dim=1), keep).index[0]
        place = torch.stack([index // grid[1], index % grid[1]], -1).float()
        every = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).float()
        step = (grid[0] * grid[1] / keep) ** 0.5
        assert torch.cdist(every, place).amin(dim=1).max() < 1.2 * step


def test_pool_is_average_pooling():
    vision = vision_of((6, 8))
    maps = vision.features.transpose(1, 2).unflatten(2, (6, 8))
    for size in ((2, 2), (3, 4)):
        want = F.avg_pool2d(maps, size).flatten(2).transpose(1, 2)
        plan = bl.pool(vision, want.shape[1])
        torch.testing.assert_close(plan.apply(vision.features), want)
    kept, at = bl.pool(vision, 7), bl.cells(7, (6, 8))
    for slot, (top, bottom, left, right) in enumerate(at):
        want = maps[:, :, top:bottom, left:right].mean(dim=(2, 3))
        torch.testing.assert_close(kept.apply(vision.features)[:, slot], want)
    assert torch.equal(kept.index, bl.uniform(vision, 7).index)


# ---------------------------------------------------------------- Token Merging
def naive_tome(x, keep):
    """One image as a list of groups (patches, seat); a round compares means, merges the best pairs,
    keeps the seats' order."""
    groups = [([i], i) for i in range(len(x))]
    while len(groups) > keep:
        means = [x[members].mean(dim=0) for members, _ in groups]
        merged = min(len(groups) - keep, len(groups) // 2)
        pairs = []
        for a in range(0, len(groups), 2):
            likeness = [(F.cosine_similarity(means[a], means[b], dim=0).item(), -b)
                        for b in range(1, len(groups), 2)]
            if likeness:
                best = max(likeness)
                pairs.append((-best[0], a, -best[1]))
        goes = {a: b for _, a, b in sorted(pairs)[:merged]}
        groups = [(members + [i for a, b in goes.items() if b == j for i in groups[a][0]], seat)
                  for j, (members, seat) in enumerate(groups) if j not in goes]
    return groups


@pytest.mark.parametrize("grid, keep", [
    ((3, 4), 7), ((3, 4), 5), ((3, 5), 2), ((2, 3), 1), ((5, 5), 24), ((6, 8), 3)])
def test_tome_equals_loops(grid, keep):
    vision = vision_of(grid, batch=3)
    plan = bl.tome(vision, keep)
    out, source = plan.apply(vision.features), plan.source()
    for b in range(3):
        groups = naive_tome(vision.features[b], keep)
        members = [sorted(patches) for patches, _ in groups]
        assert members == [(source[b] == s).nonzero()[:, 0].tolist() for s in range(keep)]
        assert plan.index[b].tolist() == [seat for _, seat in groups]
        means = [vision.features[b, patches].mean(dim=0) for patches, _ in groups]
        torch.testing.assert_close(out[b], torch.stack(means))


def test_tome_merges_copies_first_and_weighs_by_size():
    x = torch.eye(6).double().repeat_interleave(2, dim=0)[None]        # six pairs of copies
    vision = VisionOutputs(x, (3, 4), torch.nn.Identity(), num_prefix=0)
    assert torch.equal(bl.tome(vision, 6).apply(x)[0], torch.eye(6).double())
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [1.0, 0.05], [0.0, 1.0]]]).double()
    vision = VisionOutputs(x, (1, 4), torch.nn.Identity(), num_prefix=0)
    # a third each
    torch.testing.assert_close(bl.tome(vision, 2).apply(x)[0, 0], x[0, :3].mean(dim=0))
    torch.testing.assert_close(bl.tome(vision, 1).apply(x)[0, 0], x[0].mean(dim=0))


def test_tome_on_keys():
    vision = vision_of()
    keys = vision_of(seed=5).features
    plan = bl.tome(vision, 9, keys)
    other = VisionOutputs(torch.cat([keys[:, :1], keys], dim=1), (4, 6), torch.nn.Identity())
    source = plan.source()
    assert torch.equal(source, bl.tome(other, 9).source())
    assert not torch.equal(source, bl.tome(vision, 9).source())


# ---------------------------------------------------------------- oracle
def test_oracle_takes_the_marked_first():
    vision = vision_of((4, 6), batch=3)
    mask = torch.zeros(3, 24, dtype=torch.bool)
    mask[0, [3, 4, 9, 10]] = True
    mask[1] = True
    for keep in (1, 4, 7, 24):
        kept = bl.oracle(mask, vision, keep).kept()
        for b in range(3):
            assert (kept[b] & mask[b]).sum() == min(keep, int(mask[b].sum()))
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[:, 2:5, 7:10] = True
    kept = bl.oracle(mask.flatten(1), vision_of((12, 12), batch=1), 9 + 24).kept()
    others = (kept & ~mask.flatten(1)).reshape(12, 12)
    quarters = [part for half in others.chunk(2) for part in half.chunk(2, dim=1)]
    assert min(part.sum() for part in quarters) >= 4                   # of 24: spread


@given(st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_spread_order_is_a_permutation(h, w):
    assert bl.spread_order((h, w)).sort().values.tolist() == list(range(h * w))


def test_spread_order_spreads():
    """Every quarter of the picture gets its share of every beginning."""
    order = bl.spread_order((8, 8))
    for count in (4, 8, 16, 32):
        row, col = order[:count] // 8, order[:count] % 8
        for top, left in ((0, 0), (0, 4), (4, 0), (4, 4)):
            assert ((row // 4 * 4 == top) & (col // 4 * 4 == left)).sum() == count // 4


# ---------------------------------------------------------------- all
def test_batch_is_each_image_alone():
    vision = vision_of(batch=4)
    for name, method in methods(vision).items():
        if name in ("random", "oracle"):                   # drawn per image; a mask per image
            continue
        together = method(vision, 7).source()
        for b in range(4):
            alone = VisionOutputs(vision.selected[b : b + 1], (4, 6), vision.project)
            assert torch.equal(method(alone, 7).source()[0], together[b]), name


def test_meta_and_half():
    with torch.device("meta"):
        vision = VisionOutputs(torch.empty(2, 25, 5), (4, 6), torch.nn.Identity())
        for name, method in methods(vision).items():
            plan = method(vision, 7)
            assert plan.apply(vision.features).shape == (2, 7, 5), name
            assert plan.index.device.type == "meta", name
    vision = vision_of(dtype=torch.bfloat16)
    for name, method in methods(vision).items():
        out = method(vision, 7).apply(vision.features)
        assert out.dtype == torch.bfloat16 and out.isfinite().all(), name
    vision = vision_of(dtype=torch.float32)
    want = bl.tome(vision, 7).source()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bl.tome(vision, 7).source(), want)


def test_gradients_reach_the_tokens():
    vision = vision_of()
    x = vision.features.clone().requires_grad_()
    for method in (bl.pool, bl.tome):
        (grad,) = torch.autograd.grad(method(vision, 5).apply(x).sum(), x)
        assert (grad > 0).all()


@pytest.mark.parametrize("name", ["random", "uniform", "pool", "tome", "oracle"])
def test_bad_keep(name):
    vision = vision_of()
    for keep, words in ((25, "keep=25 but there are 24 tokens"), (0, "keep=0"), (1.5, "keep=1.5")):
        with pytest.raises(ValueError, match=words):
            methods(vision)[name](vision, keep)


def test_bad_input():
    vision = vision_of()
    with pytest.raises(ValueError, match="metric has shape"):
        bl.tome(vision, 4, vision.selected)
    for mask in (torch.ones(2, 25, dtype=torch.bool), torch.ones(2, 24)):
        with pytest.raises(ValueError, match="mask is"):
            bl.oracle(mask, vision, 4)


def test_cells_of_no_grid():
    for keep, grid, words in (
        (0, (4, 6), "keep=0: needs an integer from 1 to 24"), (25, (4, 6), "keep=25"),
        (2.0, (4, 6), "keep=2.0"), (2, (4, 0), r"grid\[1\]=0"), (2, 24, "grid=24"),
    ):
        with pytest.raises(ValueError, match=words):
            bl.cells(keep, grid)
    with pytest.raises(ValueError, match="grid=None"):
        bl.spread_order(None)
    with pytest.raises(ValueError, match="generator is a int"):
        bl.random(vision_of(), 3, 7)
    for method in (bl.random, bl.uniform, bl.pool, bl.tome):
        with pytest.raises(ValueError, match="vision is a list .* VisionOutputs"):
            method([1], 3)


def test_declarations():
    for method in (bl.RANDOM, bl.UNIFORM, bl.POOL, bl.TOME):
        assert method.paper is None and method.space == "features" and not method.asks
        assert method.reads == (("keys",) if method is bl.TOME else ())
