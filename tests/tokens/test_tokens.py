import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib import tokens as vt
from vtlib.tokens.precision import exp_normal


@pytest.mark.parametrize("keep, n, want", [
    (3, 10, 3), (10, 10, 10), (0.5, 10, 5), (1.0, 7, 7), (0.01, 10, 1), (1 / 9, 576, 64),
])
def test_resolve_keep(keep, n, want):
    assert vt.resolve_keep(keep, n) == want


@pytest.mark.parametrize("keep, words", [
    (0, "1 ... 10"), (11, "there are 10 tokens"), (0.0, "(0, 1]"), (1.5, "(0, 1]"), ("3", "int"),
    (True, "int"), (float("nan"), "(0, 1]"),
])
def test_resolve_keep_refuses(keep, words):
    with pytest.raises(ValueError, match="keep=") as error:
        vt.resolve_keep(keep, 10)
    assert words in str(error.value)


@given(st.integers(2, 12), st.integers(0, 2), st.data())
@settings(max_examples=40, deadline=None)
def test_top_tokens(n, prefix, data):
    prefix = min(prefix, n - 1)
    keep = data.draw(st.integers(1, n - prefix))
    score = torch.randint(0, 4, (2, n)).float()  # with ties
    index = vt.top_tokens(score, keep, prefix)
    assert index.shape == (2, prefix + keep)
    assert (index[:, 1:] > index[:, :-1]).all()  # ascending, no repeats
    assert index[:, :prefix].tolist() == [list(range(prefix))] * 2
    for row, chosen in zip(score, index, strict=True):
        rest = sorted(range(prefix, n), key=lambda i: (-row[i], i))[:keep]
        assert chosen[prefix:].tolist() == sorted(rest)


def test_take_and_scatter_back():
    x = torch.randn(2, 6, 3)
    index = torch.tensor([[0, 2, 5], [1, 2, 3]])
    kept = vt.take(x, index)
    assert torch.equal(kept[1, 0], x[1, 1]) and torch.equal(kept[0, 2], x[0, 5])
    back = vt.scatter_back(kept, index, 6, fill=-1.0)
    for b in range(2):
        for i in range(6):
            filled = x[b, i] if i in index[b] else torch.full((3,), -1.0)
            assert torch.equal(back[b, i], filled)
    nothing = vt.scatter_back(kept, index, 6, fill=math.nan)        # a number like any other
    assert torch.equal(nothing.isnan(), back == -1.0) and nothing.isnan().sum() == 18
    everything = torch.arange(6).expand(2, 6)
    assert torch.equal(vt.take(x, everything), x)  # keep = all changes nothing


@pytest.mark.parametrize("change, words", [
    (dict(num_tokens=-1), "num_tokens=-1"), (dict(num_tokens=6.0), "num_tokens=6.0"),
    (dict(fill="x"), "fill='x'"), (dict(fill=None), "fill=None"),
    (dict(x=torch.ones(2, 3, dtype=torch.long), fill=0.5), "fill=0.5 .* torch.int64"),
    (dict(index=torch.tensor([[0, 2, 5], [3, 1, 3]])), r"index\[1\] holds place 3 twice"),
    (dict(index=torch.tensor([[0, 2, 6], [3, 1, 2]])), r"index\[0, 2\]=6 is no place"),
])
def test_what_cannot_be_put_back(change, words):
    fits = dict(x=torch.ones(2, 3, 4), index=torch.tensor([[0, 2, 5], [3, 1, 2]]), num_tokens=6)
    with pytest.raises(ValueError, match=words):
        vt.scatter_back(**{**fits, **change})


def test_entropy():
    for bad, words in (
        (math.nan, "attn .* non-finite"), (math.inf, "attn .* non-finite"),
        (-0.1, "attn has a weight of -0.1"),
    ):
        with pytest.raises(ValueError, match=words):
            vt.entropy(torch.tensor([[0.5, bad]]))
    with pytest.raises(ValueError, match="axis of keys"):
        vt.entropy(torch.tensor(0.5))
    assert vt.entropy(torch.tensor([1.0, 0.0, 0.0])).item() == 0.0
    assert math.isclose(vt.entropy(torch.full((2, 5), 0.2))[0].item(), math.log(5), rel_tol=1e-5)


def test_redundancy_against_loops():
    x = torch.randn(2, 5, 4)
    want = []
    for image in x:
        best = []
        for i, a in enumerate(image):
            others = [b for j, b in enumerate(image) if j != i]
            best.append(max(torch.cosine_similarity(a, b, dim=0).item() for b in others))
        want.append(sum(best) / 5)
    torch.testing.assert_close(vt.redundancy(x), torch.tensor(want), atol=1e-5, rtol=1e-4)
    assert vt.redundancy(torch.ones(1, 3, 4)).item() == pytest.approx(1.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = vt.redundancy(x)
    assert torch.equal(rounded, vt.redundancy(x))
    half = vt.redundancy(x.half())
    assert half.dtype == torch.float32 and torch.equal(half, vt.redundancy(x.half().float()))
    with pytest.raises(ValueError, match="N >= 2"):
        vt.redundancy(torch.ones(1, 1, 4))


def test_exp_without_its_slow_end():
    x = torch.tensor([0.0, -1.0, -80.0, -84.0, -90.0, -1e4, float("-inf")], requires_grad=True)
    out = exp_normal(x)
    assert torch.equal(out[:4], x[:4].exp()) and torch.equal(out[4:], torch.zeros(3))
    out.sum().backward()
    assert torch.equal(x.grad, out)
    assert torch.equal(exp_normal(x.double())[:6], x[:6].double().exp() * (x[:6] > -700))
