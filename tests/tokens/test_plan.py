"""Plans as values: what they do to tokens, where they say tokens went, and one after another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.tokens import Plan, Stage, keep_all


def by_hand(plan, x):
    """`Plan.apply` in loops."""
    out = torch.zeros(x.shape[0], len(plan), *x.shape[2:])
    for b in range(x.shape[0]):
        if plan.merges:
            entries = zip(plan.origin[b], plan.slot[b], plan.weight[b], strict=True)
            for origin, slot, weight in entries:
                out[b, slot] += weight * x[b, origin]
        else:
            for slot, index in enumerate(plan.index[b]):
                if index >= 0:
                    out[b, slot] = x[b, index]
    return out


def drops(generator, batch, tokens, slots):
    index = torch.rand(batch, tokens, generator=generator).argsort(1)[:, :slots].sort(1).values
    return Plan(index, tokens)


def merges(generator, batch, tokens, slots):
    """Every token goes to a random slot with a random weight, the first ones to their own; some to
    a second slot."""
    own = torch.arange(slots).expand(batch, -1)
    others = torch.randint(slots, (batch, tokens - slots + 3), generator=generator)
    slot = torch.cat([own, others], 1)
    again = torch.randint(tokens, (batch, 3), generator=generator)
    origin = torch.cat([torch.arange(tokens).expand(batch, -1), again], 1)
    weight = torch.rand(slot.shape, generator=generator)
    return Plan(own, tokens, origin, slot, weight)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 9), st.data())
@settings(deadline=None)
def test_apply_source_and_composition(seed, batch, tokens, data):
    generator = torch.Generator().manual_seed(seed)
    middle = data.draw(st.integers(1, tokens))
    last = data.draw(st.integers(1, middle))
    first = data.draw(st.sampled_from([drops, merges]))(generator, batch, tokens, middle)
    second = data.draw(st.sampled_from([drops, merges]))(generator, batch, middle, last)
    x = torch.randn(batch, tokens, 4, generator=generator)
    torch.testing.assert_close(first.apply(x), by_hand(first, x))
    torch.testing.assert_close(first.matrix() @ x, by_hand(first, x))
    both = first.then(second)
    torch.testing.assert_close(both.apply(x), second.apply(first.apply(x)), atol=1e-5, rtol=1e-4)
    assert torch.equal(both.index, first.index.gather(1, second.index))
    source = first.source()
    for b in range(batch):
        for n in range(tokens):
            slots = [s for s in range(middle) if first.matrix()[b, s, n] != 0]
            assert source[b, n] == (slots[0] if slots else -1)


def test_keep_all_and_kept_are_bit_identical():
    x = torch.randn(2, 7, 3)
    assert torch.equal(keep_all(2, 7).apply(x), x)
    plan = Plan(torch.tensor([[1, 4, 6], [0, 2, 3]]), 7)
    assert torch.equal(plan.apply(x)[0], x[0, [1, 4, 6]])
    assert plan.kept()[1].tolist() == [True, False, True, True, False, False, False]


def test_empty_slots_are_zeros():
    plan = Plan(torch.tensor([[2, -1]]), 3)
    x = torch.randn(1, 3, 2)
    assert torch.equal(plan.apply(x), torch.stack([x[:, 2], torch.zeros(1, 2)], 1))
    assert plan.source().tolist() == [[-1, -1, 0]]
    assert plan.kept().tolist() == [[False, False, True]]
    assert torch.equal(plan.matrix() @ x, plan.apply(x))


def test_a_long_merge_goes_through_the_matrix():
    generator = torch.Generator().manual_seed(0)
    slot = torch.randint(3, (2, 40), generator=generator)
    origin = torch.randint(5, (2, 40), generator=generator)
    weight = torch.rand(2, 40, generator=generator)
    plan = Plan(torch.zeros(2, 3, dtype=torch.long), 5, origin, slot, weight)
    x = torch.randn(2, 5, 2, 3, generator=generator)
    torch.testing.assert_close(plan.apply(x), by_hand(plan, x))


def test_weights_may_be_float64():
    generator = torch.Generator().manual_seed(0)
    fine = merges(generator, 2, 6, 4)
    fine = Plan(fine.index, 6, fine.origin, fine.slot, fine.weight.double())
    both = fine.then(drops(generator, 2, 4, 2))
    assert both.weight.dtype == torch.float64
    assert both.apply(torch.randn(2, 6, 3)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_sums_are_not_rounded_to_halves(dtype):
    """0.3 x 700 - 0.7 x 300; with 0.3 and 0.7 in half precision it is 0.02 or 0.8."""
    weight, slot = torch.tensor([[0.3, 0.7]]), torch.zeros(1, 2, dtype=torch.long)
    x = torch.tensor([[[700.0], [-300.0]]], dtype=dtype)
    exact = 0.3 * x[0, 0].double() + 0.7 * x[0, 1].double()
    for repeat in (1, 5):                                           # read by rows, and as a matrix
        plan = Plan(slot[:, :1], 2, torch.arange(2).repeat(repeat)[None], slot.repeat(1, repeat),
                    weight.repeat(1, repeat) / repeat)
        out = plan.apply(x)
        assert out.dtype == dtype and (out[0, 0] - exact).abs() < 1e-3
        grown = Plan(plan.index, 2, plan.origin, plan.slot, plan.weight.to(dtype))
        assert grown.matrix().dtype == torch.float32


@pytest.mark.parametrize("call, message", [
    (lambda: Plan(torch.tensor([[0]]), 3).apply(torch.zeros(1, 4, 2)),
     "4 tokens but this plan is for 3"),
    (lambda: Plan(torch.tensor([[0]]), 3).then(Plan(torch.tensor([[0]]), 2)),
     "for 2 tokens but the first leaves 1"),
    (lambda: Plan(torch.tensor([[0]]), 3).then(3), "other is a int but needs to be a Plan"),
    (lambda: keep_all(2.0, 12), "batch=2.0"),
    (lambda: keep_all(2, -1), "num_tokens=-1"),
    (lambda: Stage(1, "4", print), "keep='4' must be an int"),
    (lambda: Stage(1, -4, print), "keep=-4: needs at least 0"),
    (lambda: Stage(1, False, print), "keep=False"),
    (lambda: Stage(1, torch.nan, print), r"keep=nan .*\(0, 1\]"),
    (lambda: Stage(1, 30, print).count(20), "keep=30 but there are 20"),
    (lambda: Stage(1, 1.5, print).count(20), "keep=1.5"),
    (lambda: Stage(1.5, 4, print), r"after=1.5 \(float\): needs an integer"),
    (lambda: Stage(2.0, 4, print), r"after=2.0 \(float\): needs an integer"),
    (lambda: Stage("1", 4, print), r"after='1' \(str\): needs an integer"),
    (lambda: Stage(None, 4, print), r"after=None \(NoneType\): needs an integer"),
    (lambda: Stage(3, 4, print, (1, 1.5)), r"watch\[1\]=1.5 \(float\): needs an integer"),
    (lambda: Stage(3, 4, print, 1), "watch=1: needs a sequence of integers"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("number", [int, np.int64, torch.tensor])
def test_a_stage_takes_integers_of_any_kind(number):
    stage = Stage(number(3), 4, print, [number(1), number(2)])
    assert type(stage.after) is int and stage == Stage(3, 4, print, (1, 2))


def test_a_stage_may_leave_nothing():
    assert Stage(3, 0, print).count(20) == Stage(3, 0.0, print).count(20) == 0
    assert Stage(3, 0.25, print).count(20) == 5


def test_meta():
    plan = Plan(torch.zeros(2, 3, dtype=torch.long, device="meta"), 5)
    assert plan.apply(torch.zeros(2, 5, 4, device="meta")).shape == (2, 3, 4)
    assert plan.source().shape == (2, 5)
    assert plan.matrix().shape == (2, 3, 5)
