"""What is no plan, no score, no `keep` ends in a ValueError that names the argument."""

import numpy as np
import pytest
import torch

from vtlib.tokens import Plan, check_scores, resolve_keep, top_tokens

LONG = torch.int64


def long(*rows):
    return torch.tensor(rows)


GOOD = dict(
    index=long([0, 2], [1, 2]),
    num_tokens=4,
    origin=long([0, 1, 2], [1, 2, 3]),
    slot=long([0, 0, 1], [0, 1, 1]),
    weight=torch.full((2, 3), 0.5),
)


@pytest.mark.parametrize("change, message", [
    (dict(index=torch.zeros(2, 2)), r"index is torch.float32 \(2, 2\) but needs"),
    (dict(index=[[0, 2]]), "index is a list"),
    (dict(index=long(0, 2)), r"index is torch.int64 \(2,\)"),
    (dict(index=long([0, 4], [0, 1])), r"index\[0, 1\]=4 is no place: it must lie in -1 ... 3"),
    (dict(index=long([0, 3], [-2, 1])), r"index\[1, 0\]=-2 is no place"),
    (dict(num_tokens=4.0), "num_tokens=4.0"),
    (dict(num_tokens=-1), "num_tokens=-1"),
    (dict(num_prefix=-1), "num_prefix=-1"),
    (dict(num_prefix=5), "num_prefix=5"),
    (dict(slot=None), "slot is None: a plan that merges needs origin, slot, weight"),
    (dict(origin=None, slot=None), "origin is None"),
    (dict(origin=long([0, 1, 4], [1, 2, 3])), r"origin\[0, 2\]=4 is no place: .* 0 ... 3"),
    (dict(origin=long([0, 1, 2], [1, -1, 3])), r"origin\[1, 1\]=-1 is no place"),
    (dict(origin=long([0, 1, 2])), r"origin is torch.int64 \(1, 3\) .*\(B, E\) = \(2, E\)"),
    (dict(origin=torch.zeros(2, 3)), "origin is torch.float32"),
    (dict(slot=long([0, 0, 2], [0, 1, 1])), r"slot\[0, 2\]=2 is no place: .* 0 ... 1"),
    (dict(slot=long([0, 0], [0, 1])), r"slot is torch.int64 \(2, 2\) .*\(B, E\) = \(2, 3\)"),
    (dict(slot=torch.zeros(2, 3, dtype=torch.int32)), "slot is torch.int32"),
    (dict(weight=torch.ones(2, 3, dtype=LONG)), "weight is torch.int64"),
    (dict(weight=np.ones((2, 3))), "weight is a numpy.ndarray"),
    (dict(weight=torch.ones(2, 2)), r"weight has shape \(2, 2\)"),
    (dict(weight=torch.tensor([[0, 1, torch.nan]] * 2)), "weight .* non-finite"),
    (dict(role=long([0, 1])), r"role is torch.int64 \(1, 2\) but needs .*\(B, T\) = \(2, 2\)"),
    (dict(role=torch.zeros(2, 2)), "role is torch.float32"),
])
def test_wrong_plans(change, message):
    Plan(**GOOD)
    with pytest.raises(ValueError, match=message):
        Plan(**{**GOOD, **change})


def test_a_token_is_kept_once():
    with pytest.raises(ValueError, match="index holds token 2 of image 1 twice"):
        Plan(long([0, 2, 1], [2, 0, 2]), 4)
    Plan(long([3, 0, -1, -1]), 4)                                    # any order; empty slots repeat
    Plan(long([1, 1]), 4, long([0, 1]), long([0, 1]), torch.ones(1, 2))     # sums may grow from one


def test_one_row_for_two_images():
    with pytest.raises(ValueError, match="x has 2 images but this plan is for 1"):
        Plan(long([0, 1]), 4).apply(torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match="x has 1 images but this plan is for 2"):
        Plan(**GOOD).apply(torch.randn(1, 4, 3))


def test_values_are_looked_at_on_the_cpu_only():
    """On the meta device, and for a compiler, there are none: the plan is built all the same."""
    far = Plan(**{k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in GOOD.items()})
    far.check()
    assert far.apply(torch.randn(2, 4, 3, device="meta")).shape == (2, 2, 3)
    run = torch.compile(lambda i, x: Plan(i, 4).apply(x), backend="eager", fullgraph=True)
    x = torch.randn(1, 4, 3)
    assert torch.equal(run(long([3, 0]), x), x[:, [3, 0]])
    holes = run(long([3, -1]), x)
    assert torch.equal(holes[:, 0], x[:, 3]) and not holes[:, 1].any()


def test_check_looks_again():
    plan = Plan(long([0, 1]), 4)
    plan.index[0, 1] = 7
    with pytest.raises(ValueError, match=r"index\[0, 1\]=7"):
        plan.check()


@pytest.mark.parametrize("keep", [
    np.int64(3), np.int32(3), torch.tensor(3), 3, 0.3, np.float32(0.3), np.float64(0.3),
])
def test_integers_of_numpy_and_torch_count(keep):
    got = resolve_keep(keep, 10)
    assert got == 3 and type(got) is int
    assert top_tokens(torch.arange(10.0)[None], keep).tolist() == [[7, 8, 9]]


@pytest.mark.parametrize("keep", [True, np.bool_(True), torch.tensor(True), torch.tensor(0.5), "3",
                                  None, np.int64(0), np.int64(11), np.float32(1.5), [3],
                                  torch.tensor([3, 4])])
def test_what_is_no_keep(keep):
    with pytest.raises(ValueError, match="keep="):
        resolve_keep(keep, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scores_with_nan(dtype):
    score = torch.rand(3, 20).to(dtype)
    score[1, 4] = torch.nan
    with pytest.raises(ValueError, match=r"score holds NaN in rows \[1\].*non-finite"):
        top_tokens(score, 5)
    with pytest.raises(ValueError, match="scores .* non-finite"):
        check_scores(score)
    assert top_tokens(score[:, 5:], 5).shape == (3, 5)
    run = torch.compile(top_tokens, backend="eager", fullgraph=True)
    for values in (score, torch.full_like(score, torch.nan)):        # exactly keep real tokens
        index = run(values, 5)
        assert index.shape == (3, 5) and index.min() >= 0 and index.max() < 20
        assert (index[:, 1:] > index[:, :-1]).all() and 4 not in index[1] or values is not score


def test_infinite_scores_are_scores():
    score = torch.tensor([[-torch.inf, 1.0, torch.inf, -torch.inf, torch.inf]])
    assert top_tokens(score, 2).tolist() == [[2, 4]]
    assert top_tokens(score, 4).tolist() == [[0, 1, 2, 4]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.bfloat16])
def test_scores_of_every_dtype(dtype):
    score = torch.tensor([[0, 1, 1, 0, 1, 0]]).to(dtype)
    assert top_tokens(score, 2).tolist() == [[1, 2]]
    assert top_tokens(score, 4).tolist() == [[0, 1, 2, 4]]
    assert top_tokens(score, 6).tolist() == [list(range(6))]


@pytest.mark.parametrize("score", [
    [[1.0, 2.0]], np.ones((1, 2)), torch.ones(3), torch.ones(1, 2, 3),
])
def test_what_is_no_score(score):
    with pytest.raises(ValueError, match=r"score is .* but needs to be a real tensor \(B, N\)"):
        top_tokens(score, 1)
    with pytest.raises(ValueError, match="num_prefix=3"):
        top_tokens(torch.ones(1, 2), 1, num_prefix=3)


@pytest.mark.parametrize("keep", [1, 5, 63, 64])
def test_compiled_and_eager_choose_alike(keep):
    run = torch.compile(top_tokens, backend="eager", fullgraph=True)
    for score in (torch.rand(4, 64), torch.randint(0, 4, (4, 64)).float(), torch.zeros(4, 64)):
        assert torch.equal(run(score, keep), top_tokens(score, keep))
