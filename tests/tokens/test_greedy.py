"""Greedy max-min selection against plain loops, its properties, bad input."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.tokens import groups
from vtlib.tokens.cosine import unit
from vtlib.tokens.greedy import greedy_maxmin


def distances(tokens):
    x = F.normalize(tokens, dim=-1)
    return 1 - x @ x.T


def naive(tokens, keep, weight=None, first=None):
    """One image, token by token, the whole set scanned at every step. O(N T^2)."""
    d = distances(tokens)
    n = len(tokens)
    w = torch.ones(n, dtype=tokens.dtype) if weight is None else weight
    if isinstance(first, int):
        order = [first]
        gains = [(w[first] * min(d[first, j] for j in range(n) if j != first)).item()]
    else:
        alone = [min(d[i, j] for j in range(n) if j != i) for i in range(n)]
        score = [w[i] if first == "weight" else w[i] * alone[i] for i in range(n)]
        order = [max(range(n), key=lambda i: (score[i].item(), -i))]
        gains = [score[order[0]].item()]
    while len(order) < keep:
        score = {i: (w[i] * min(d[i, j] for j in order)).item() for i in range(n) if i not in order}
        best = max(score, key=lambda i: (score[i], -i))
        order.append(best)
        gains.append(score[best])
    return order, gains


FIRSTS = [(None, False), (None, True), ("weight", True), (3, False), (3, True)]


@pytest.mark.parametrize("first, weighted", FIRSTS)
def test_equals_the_loop(first, weighted):
    tokens = torch.randn(3, 14, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(3, 14, dtype=torch.float64, generator=generator) if weighted else None
    start = torch.full((3,), first) if isinstance(first, int) else first
    index, gains = greedy_maxmin(tokens, 9, weight, start)
    assert index.dtype == torch.long and index.shape == gains.shape == (3, 9)
    for b in range(3):
        order, want = naive(tokens[b], 9, None if weight is None else weight[b], first)
        assert index[b].tolist() == order
        torch.testing.assert_close(gains[b], torch.tensor(want, dtype=torch.float64))


def test_gains_are_what_they_say():
    tokens = torch.randn(4, 40, 5, dtype=torch.float64)
    index, gains = greedy_maxmin(tokens, 11)
    assert (gains[:, 2:] <= gains[:, 1:-1]).all()                   # never rise, from the second on
    for b in range(4):
        chosen = distances(tokens[b])[index[b]][:, index[b]]
        pairs = [chosen[i, j] for i, j in itertools.combinations(range(11), 2)]
        # the last one is the set's smallest distance
        torch.testing.assert_close(gains[b, -1], min(pairs))


def test_nested_and_everything():
    tokens = torch.randn(2, 12, 4)
    order = greedy_maxmin(tokens, 12)[0]
    assert torch.equal(order.sort(dim=1).values, torch.arange(12).expand(2, -1))
    for keep in (1, 5, 11):
        assert torch.equal(greedy_maxmin(tokens, keep)[0], order[:, :keep])
    assert torch.equal(greedy_maxmin(tokens, 0.5)[0], order[:, :6])


def test_weights_of_one_are_no_weights():
    tokens = torch.randn(2, 20, 4)
    ones = torch.ones(2, 20)
    assert torch.equal(greedy_maxmin(tokens, 8, ones)[0], greedy_maxmin(tokens, 8)[0])
    start = torch.zeros(2, dtype=torch.long)
    by_weight = greedy_maxmin(tokens, 8, ones, "weight")[0]
    assert torch.equal(by_weight, greedy_maxmin(tokens, 8, first=start)[0])


def test_weight_zero_comes_last():
    tokens = torch.randn(1, 10, 4, dtype=torch.float64)
    weight = torch.rand(1, 10, dtype=torch.float64) + 0.1
    weight[0, [2, 7]] = 0
    assert greedy_maxmin(tokens, 10, weight, "weight")[0][0, -2:].tolist() == [2, 7]


def test_ties_copies_and_zero_tokens():
    index, gains = greedy_maxmin(torch.eye(6)[None], 6)        # all equally far: lowest index first
    assert index[0].tolist() == list(range(6)) and torch.equal(gains, torch.ones(1, 6))
    index, gains = greedy_maxmin(torch.ones(2, 7, 3), 7)        # exact copies: no token comes twice
    assert torch.equal(index.sort(dim=1).values, torch.arange(7).expand(2, -1))
    assert gains.abs().max() < 1e-6
    tokens = torch.cat([torch.zeros(1, 2, 4), torch.randn(1, 5, 4)], dim=1)
    index, gains = greedy_maxmin(tokens, 7)
    assert gains.isfinite().all() and len(set(index[0].tolist())) == 7
    assert unit(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]
    index, gains = greedy_maxmin(torch.randn(2, 1, 4), 1)
    assert index.tolist() == [[0], [0]] and gains.isinf().all()


@given(st.integers(2, 14), st.integers(1, 5), st.integers(0, 10**6), st.data())
@settings(max_examples=40, deadline=None)
def test_invariants(n, dim, seed, data):
    keep = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(seed)
    # copies, zeros and ties
    tokens = torch.randint(-2, 3, (2, n, dim), generator=generator).double()
    index, gains = greedy_maxmin(tokens, keep)
    assert all(len(set(row.tolist())) == keep for row in index) and not gains.isnan().any()
    which = torch.randint(0, 3, (2, n, 1), generator=generator)
    powers = torch.tensor([0.25, 1.0, 8.0], dtype=torch.float64)[which]
    scaled = greedy_maxmin(tokens * powers, keep)
    # a token's length does not matter
    assert torch.equal(scaled[0], index) and torch.equal(scaled[1], gains)
    tokens = torch.randn(2, n, dim + 2, generator=generator, dtype=torch.float64)
    index, shuffle = greedy_maxmin(tokens, keep)[0], torch.randperm(n, generator=generator)
    moved = greedy_maxmin(tokens[:, shuffle], keep)[0]
    for b in range(2):
        alone = distances(tokens[b]).fill_diagonal_(9).amin(dim=1).sort(descending=True).values
        if alone[0] - alone[1] > 1e-9:                     # two tokens, each other's nearest: a tie
            assert torch.equal(shuffle[moved[b]], index[b])


def test_batch_is_each_image_alone(monkeypatch):
    """All five together, and in groups of two."""
    tokens = torch.randn(5, 30, 8, dtype=torch.float64)
    weight = torch.rand(5, 30, dtype=torch.float64)
    for cached in (5, 2):
        monkeypatch.setattr(groups, "CACHED", cached * 30**2)
        for first in ("weight", torch.arange(5)):
            together = greedy_maxmin(tokens, 10, weight, first)[0]
            for b in range(5):
                own = first if isinstance(first, str) else first[b : b + 1]
                alone = greedy_maxmin(tokens[b : b + 1], 10, weight[b : b + 1], own)[0]
                assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_tokens_that_are_not_finite(monkeypatch, value):
    """Wherever they are, also where nothing is read but the largest weight."""
    monkeypatch.setattr(groups, "CACHED", 2 * 6**2)
    tokens, weight = torch.randn(5, 6, 3), torch.rand(5, 6)
    tokens[3, 4, 1] = value
    for first in (None, "weight"):
        with pytest.raises(ValueError, match=r"tokens .* 1 non-finite .* \[3, 4, 1\]"):
            greedy_maxmin(tokens, 1, weight, first)


def test_meta_half_autocast_compile():
    with torch.device("meta"):
        index, gains = greedy_maxmin(torch.empty(2, 9, 4), 3)
    assert index.shape == gains.shape == (2, 3) and index.device.type == "meta"
    tokens = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(0))
    half = tokens.bfloat16()
    index, gains = greedy_maxmin(half, 12)
    assert gains.dtype == torch.bfloat16 and torch.equal(index, greedy_maxmin(half.float(), 12)[0])
    want = greedy_maxmin(tokens, 12)
    with torch.autocast("cpu", torch.bfloat16):
        got = greedy_maxmin(tokens, 12)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    got = torch.compile(greedy_maxmin, backend="aot_eager", fullgraph=True)(tokens, 12)
    assert torch.equal(got[0], want[0])
    assert not greedy_maxmin(tokens.requires_grad_(), 3)[1].requires_grad


@pytest.mark.parametrize("call, words", [
    (lambda x, w: greedy_maxmin(x, 6), "keep=6 but there are 5 tokens"),
    (lambda x, w: greedy_maxmin(x, 0), "keep=0"),
    (lambda x, w: greedy_maxmin(x[0], 2), "3 axes"),
    (lambda x, w: greedy_maxmin(x, 2, w[:, :3]), r"weight has shape \(2, 3\)"),
    (lambda x, w: greedy_maxmin(x, 2, first="weight"), "weight=None"),
    (lambda x, w: greedy_maxmin(x, 2, w, first="random"), "first='random'"),
    (lambda x, w: greedy_maxmin(x, 2, first=torch.zeros(3, dtype=torch.long)), "first has shape"),
    (lambda x, w: greedy_maxmin(x, 2, first=torch.tensor([0, 5])), r"first\[1\]=5 is no place"),
    (lambda x, w: greedy_maxmin(x, 2, first=torch.tensor([-1, 0])), r"first\[0\]=-1 is no"),
])
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.randn(2, 5, 3), torch.rand(2, 5))
