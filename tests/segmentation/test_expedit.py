"""Expedit's two layers: against loops, the card's limits, windows, costs, bad input."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.segmentation import expedit
from vtlib.segmentation.expedit import Expedit, Pooling


def features(batch=2, height=8, width=12, channels=5, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, height, width, channels, generator=generator)


def smooth(batch=1, side=24, channels=6, seed=0):
    """Two flat regions with a curved border, and a little noise."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    inside = ((y - 0.2) ** 2 + (x + 0.1) ** 2 < 0.35).float()
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randn(2, channels, generator=generator)
    flat = inside[..., None] * 9 * levels[0] + (1 - inside[..., None]) * 9 * levels[1]
    noise = torch.randn(batch, side, side, channels, generator=generator)
    return flat + 0.1 * noise


# ------------------------------------------------------------------------------------- clustering
def loop_cluster(x, grid, window, tau, iterations):
    """One picture, one token, one centre at a time."""
    height, width, _ = x.shape
    (rows, cols), radius = grid, window // 2
    pooled = F.adaptive_avg_pool2d(x.permute(2, 0, 1)[None], grid)[0]
    centres = [pooled[:, q // cols, q % cols] for q in range(rows * cols)]
    for _ in range(iterations):
        total = [torch.zeros_like(c) for c in centres]
        mass = [0.0] * len(centres)
        for p in range(height * width):
            row, col = p // width, p % width
            cell = row * rows // height, col * cols // width
            near = [
                q for q in range(rows * cols)
                if abs(q // cols - cell[0]) <= radius and abs(q % cols - cell[1]) <= radius
            ]
            logit = torch.stack([-tau * (x[row, col] - centres[q]).square().sum() for q in near])
            for q, share in zip(near, logit.softmax(0), strict=True):
                total[q] = total[q] + share * x[row, col]
                mass[q] += share
        centres = [t / m for t, m in zip(total, mass, strict=True)]
    return torch.stack(centres)


@pytest.mark.parametrize("grid, window", [((2, 3), 3), ((2, 3), 1), ((3, 5), 3)])
def test_clustering_equals_loops(grid, window):
    x = features(2, 4, 6)
    got = expedit.cluster(x, grid, window, 0.3, 2)
    want = torch.stack([loop_cluster(one, grid, window, 0.3, 2) for one in x])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size, grid", [((14, 10), (4, 4)), ((28, 40), (9, 11)), ((7, 5), (7, 3))])
def test_initial_cells_are_the_nearest_neighbour_resize(size, grid):
    numbers = torch.arange(grid[0] * grid[1]).float().view(1, 1, *grid)
    want = F.interpolate(numbers, size=size, mode="nearest").flatten().long()
    assert torch.equal(expedit.initial_cells(size, grid), want)


def test_no_iteration_is_average_pooling():
    x = features()
    want = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (4, 6)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(expedit.cluster(x, (4, 6), iterations=0), want)
    assert not torch.allclose(expedit.cluster(x, (4, 6), iterations=1), want, atol=1e-3)


def test_as_many_centres_as_tokens_is_the_identity():
    x = features()
    layers = Expedit((8, 12), k=3)
    tokens, restore = layers.reduce(x)
    assert torch.equal(expedit.cluster(x, (8, 12)), x.flatten(1, 2))
    assert torch.equal(tokens, x.flatten(1, 2)) and torch.equal(restore(tokens), tokens)
    hard = expedit.soft_kmeans(x, (8, 12), tau=1e4)          # as released, it takes a large tau
    torch.testing.assert_close(hard, x.flatten(1, 2))
    rebuilt = expedit.reconstruct(hard, x.flatten(1, 2), hard, 3, 1e4)
    torch.testing.assert_close(rebuilt, x.flatten(1, 2))
    assert not torch.allclose(expedit.soft_kmeans(x, (8, 12), tau=0.02), x.flatten(1, 2), atol=0.1)


def test_assignments_sum_to_one_inside_the_window():
    x = features()
    centres = expedit.cluster(x, (4, 6), iterations=0)
    allowed = expedit.window_mask((8, 12), (4, 6), 3)
    share = expedit.soft_assignment(x.flatten(1, 2), centres, allowed, 0.3)
    torch.testing.assert_close(share.sum(2), torch.ones(2, 96))
    assert (share[:, ~allowed] == 0).all() and (share[:, allowed] > 0).all()
    assert allowed.sum(1).min() == 4 and allowed.sum(1).max() == 9      # corners, the middle


def test_without_temperature_uniform_with_much_of_it_hard():
    x = features()
    centres = expedit.cluster(x, (4, 6), iterations=0)
    allowed = expedit.window_mask((8, 12), (4, 6), 3)
    flat = expedit.soft_assignment(x.flatten(1, 2), centres, allowed, 0.0)
    torch.testing.assert_close(flat, (allowed / allowed.sum(1, keepdim=True)).expand(2, -1, -1))
    hard = expedit.soft_assignment(x.flatten(1, 2), centres, allowed, 1e5)
    distance = torch.cdist(x.flatten(1, 2), centres).masked_fill(~allowed, torch.inf)
    assert torch.equal(hard.argmax(2), distance.argmin(2))
    torch.testing.assert_close(hard.amax(2), torch.ones(2, 96))


def test_centres_stay_among_the_tokens_of_their_window():
    x = features()
    centres = expedit.cluster(x, (4, 6), 3, 0.3).unflatten(1, (4, 6))
    assert (centres <= x.amax((1, 2))[:, None, None]).all()
    assert (centres >= x.amin((1, 2))[:, None, None]).all()


def test_a_centre_is_a_mean_of_the_tokens_of_its_window():
    """The window is that of the initial cells, however often centres move."""
    allowed = expedit.window_mask((8, 12), (4, 6), 3)
    for iterations in (1, 5):
        x = features().requires_grad_()
        expedit.cluster(x, (4, 6), 3, 0.01, iterations)[:, 8].sum().backward()
        read = (x.grad != 0).all(3).flatten(1)
        assert torch.equal(read, allowed[:, 8].expand(2, -1))
    corner = allowed.view(8, 12, 24)[0, 0].nonzero().flatten()
    assert torch.equal(corner, torch.tensor([0, 1, 6, 7]))


def test_centres_move_most_in_the_first_iteration():
    x = smooth()
    states = [expedit.cluster(x, (6, 6), tau=0.1, iterations=n) for n in range(4)]
    moves = [(b - a).norm().item() for a, b in zip(states[:-1], states[1:], strict=True)]
    assert moves[0] > 2 * moves[1] > 0 and moves[1] > moves[2] > 0, moves


def test_hard_labels_look_at_all_centres():
    x = features()
    centres = expedit.cluster(x, (4, 6), 1, 0.3)
    want = torch.cdist(x.flatten(1, 2), centres).argmin(2)
    labels = expedit.nearest_centres(x.flatten(1, 2), centres)
    assert torch.equal(labels, want)
    allowed = expedit.window_mask((8, 12), (4, 6), 1)
    assert not allowed.expand(2, -1, -1).gather(2, labels[..., None]).all()


def test_gradients_pass_the_means_and_not_the_assignment():
    x = features(1, 4, 4, 3).double().requires_grad_()
    allowed = expedit.window_mask((4, 4), (2, 2), 3)
    expedit.cluster(x, (2, 2), 3, 0.3, 1).square().sum().backward()
    z = x.detach().flatten(1, 2).requires_grad_()
    pooled = expedit.cluster(x.detach(), (2, 2), iterations=0)
    share = expedit.soft_assignment(z.detach(), pooled, allowed, 0.3)
    centres = share.transpose(1, 2) @ z / share.sum(1)[..., None]
    centres.square().sum().backward()
    torch.testing.assert_close(x.grad.flatten(1, 2), z.grad)


# --------------------------------------------------------------------------------- reconstruction
def loop_weights(before, centres, k, tau, normalise):
    out = torch.zeros(len(before), len(centres), dtype=before.dtype)
    for p, z in enumerate(before):
        weight = torch.stack([torch.exp(-tau * (z - s).square().sum()) for s in centres])
        kept = weight >= weight.sort(descending=True).values[k - 1]
        weight = weight * kept
        out[p] = weight / (weight.norm() if normalise == "l2" else weight.sum())
    return out


@pytest.mark.parametrize("normalise", expedit.NORMALISE)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_reconstruction_equals_loops(k, normalise):
    before, centres, refined = features(2, 1, 12)[:, 0], features(2, 1, 9, seed=1)[:, 0], None
    refined = features(2, 1, 9, 7, seed=2)[:, 0]
    want = torch.stack([
        loop_weights(z, s, k, 0.2, normalise) for z, s in zip(before, centres, strict=True)
    ])
    weight = expedit.reconstruction_weights(before, centres, k, 0.2, normalise)
    torch.testing.assert_close(weight, want, atol=1e-5, rtol=1e-4)
    assert ((weight > 0).sum(2) == k).all()
    total = weight.sum(2) if normalise == "sum" else weight.square().sum(2)
    torch.testing.assert_close(total, torch.ones(2, 12))
    out = expedit.reconstruct(refined, before, centres, k, 0.2, normalise)
    assert out.shape == (2, 12, 7)
    torch.testing.assert_close(out, want @ refined, atol=1e-5, rtol=1e-4)


def test_constant_features():
    x = torch.full((2, 6, 6, 4), 3.0)
    centres = expedit.cluster(x, (3, 3))
    torch.testing.assert_close(centres, torch.full((2, 9, 4), 3.0))
    before = x.flatten(1, 2)
    out = expedit.reconstruct(centres, before, centres, 2, normalise="sum")
    torch.testing.assert_close(out, before)
    # all centres tie with the second: all nine stay
    out = expedit.reconstruct(centres, before, centres, 2, normalise="l2")
    torch.testing.assert_close(out, 9**0.5 * before)


def test_a_norm_behind_it_forgets_the_l2_rule():
    x, refined = features(scale=3.0), features(2, 4, 6, seed=1).flatten(1, 2)
    before, centres = x.flatten(1, 2), expedit.cluster(x, (4, 6))
    long, convex = (expedit.reconstruct(refined, before, centres, 9, normalise=n)
                    for n in expedit.NORMALISE)
    assert (long.norm(dim=2) > 1.5 * convex.norm(dim=2)).all()
    torch.testing.assert_close(F.layer_norm(long, (5,), eps=0), F.layer_norm(convex, (5,), eps=0))


@pytest.mark.parametrize("normalise", expedit.NORMALISE)
def test_far_tokens_neither_vanish_nor_turn_nan(normalise):
    before, centres = 1e3 * features(1, 1, 6)[:, 0], features(1, 1, 4, seed=1)[:, 0]
    weight = expedit.reconstruction_weights(before, centres, 2, 10.0, normalise)
    assert torch.equal(weight.argmax(2), torch.cdist(before, centres).argmin(2))
    torch.testing.assert_close(weight.amax(2), torch.ones(1, 6))


def test_before_the_clustering_and_not_after_the_layers():
    """The weights come from the tokens and the fresh centres; refined ones are only mixed."""
    x = features()
    before, centres = x.flatten(1, 2), expedit.cluster(x, (4, 6))
    refined = features(2, 4, 6, seed=3).flatten(1, 2)
    one = expedit.reconstruct(refined, before, centres)
    torch.testing.assert_close(expedit.reconstruct(2 * refined, before, centres), 2 * one)


def test_better_than_pooling_and_bilinear_at_the_border():
    x = smooth()
    layers = Expedit((6, 6), tau=0.1, k=4, normalise="sum")
    error = {}
    for name, reduction in (("expedit", layers), ("pooling", Pooling((6, 6)))):
        tokens, restore = reduction.reduce(x)
        assert tokens.shape == (1, 36, 6)
        error[name] = ((restore(tokens) - x.flatten(1, 2)).norm() / x.norm()).item()
    assert error["expedit"] < 0.4 * error["pooling"], error


def test_pooling_is_average_and_bilinear():
    x = features()
    tokens, restore = Pooling((4, 6)).reduce(x)
    torch.testing.assert_close(tokens, expedit.cluster(x, (4, 6), iterations=0))
    low = tokens.transpose(1, 2).unflatten(2, (4, 6))
    want = F.interpolate(low, size=(8, 12), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(restore(tokens), want)
    tokens, restore = Pooling((8, 12)).reduce(x)
    assert torch.equal(restore(tokens), x.flatten(1, 2))


# ------------------------------------------------------------------------------------ dtypes, cost
def test_cost():
    cost = expedit.encoder_cost
    assert round(cost(1, 1024, 1600) / 1e9, 1) == 25.4
    assert round(cost(24, 1024, 1600) / 1e9) == 609
    saved = cost(24, 1024, 1600) - cost(24, 1024, 1600, after=10, num_centres=784)
    assert abs(saved / 1e9 - 199.6) < 0.2
    decoder = cost(2, 1024, 1600) - cost(2, 1024, 784)
    clustering = expedit.clustering_cost(1600, 784, 1024)
    assert round(clustering / 1e9, 1) == 12.8
    assert abs((saved + decoder - clustering) / 1e9 - 215) < 0.5         # as the paper reports
    # no gain where the map is small and the layer late
    tiny = cost(12, 384, 64) - cost(12, 384, 64, after=11, num_centres=49)
    assert tiny < expedit.clustering_cost(64, 49, 384) * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_follows(dtype):
    x = features().to(dtype)
    tokens, restore = Expedit((4, 6), k=4).reduce(x)
    out = restore(tokens)
    assert tokens.dtype == out.dtype == dtype and out.shape == (2, 96, 5)
    want, back = Expedit((4, 6), k=4).reduce(x.float())
    torch.testing.assert_close(tokens.float(), want, atol=0.02, rtol=0.02)


def test_meta_and_autocast():
    x = features()
    tokens, restore = Expedit((4, 6), k=4).reduce(x)
    small, back = Expedit((4, 6), k=4).reduce(x.to("meta"))
    assert back(small).shape == (2, 96, 5)
    with torch.autocast("cpu", torch.bfloat16):
        again, back = Expedit((4, 6), k=4).reduce(x)
        assert torch.equal(again, tokens) and torch.equal(back(again), restore(tokens))


def test_gradients_are_finite_and_rows_independent():
    x = features().requires_grad_()
    tokens, restore = Expedit((4, 6), k=4).reduce(x)
    restore(tokens).square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).any()
    alone, _ = Expedit((4, 6), k=4).reduce(x[1:])
    torch.testing.assert_close(alone, tokens[1:])


X = features()
T, S = X.flatten(1, 2), expedit.cluster(X, (4, 6))
WRONG = {
    "features": lambda: expedit.cluster(T, (4, 4)),
    "features is torch.int64": lambda: expedit.cluster(X.long(), (4, 4)),
    "features is empty": lambda: expedit.cluster(X[:0], (4, 4)),
    r"grid=\(9, 4\) but the map has 8 x 12": lambda: expedit.cluster(X, (9, 4)),
    "grid=4": lambda: expedit.cluster(X, 4),
    "window=4": lambda: expedit.cluster(X, (4, 4), 4),
    "tau=-1": lambda: expedit.cluster(X, (4, 4), tau=-1),
    "iterations=-1": lambda: expedit.cluster(X, (4, 4), iterations=-1),
    "iterations=1.5": lambda: expedit.cluster(X, (8, 12), iterations=1.5),
    "k=25": lambda: expedit.reconstruct(S, T, S, k=25),
    "k=0": lambda: expedit.reconstruct(S, T, S, k=0),
    "normalise='max'": lambda: expedit.reconstruct(S, T, S, normalise="max"),
    "refined has shape": lambda: expedit.reconstruct(S[:, 1:], T, S),
    "before .* and centres": lambda: expedit.reconstruct(S, T[..., 1:], S),
    "tokens .* and centres": lambda: expedit.nearest_centres(T[:1], S),
    "k=20: needs an integer from 1 to 4": lambda: Expedit((2, 2)),
    "normalise=None": lambda: Expedit(normalise=None),
    r"grid\[0\]=0": lambda: Pooling((0, 4)),
    "after=25": lambda: expedit.encoder_cost(24, 8, 16, after=25),
    "num_tokens=0": lambda: expedit.clustering_cost(0, 1, 1),
}


@pytest.mark.parametrize("told", WRONG)
def test_bad_input(told):
    with pytest.raises(ValueError, match=told):
        WRONG[told]()


def test_defaults_are_segmenters():
    layers = Expedit()
    want = ((28, 28), 5, 0.02, 5, 20, "l2")
    assert (layers.grid, layers.window, layers.tau, layers.iterations, layers.k,
            layers.normalise) == want
