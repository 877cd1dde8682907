"""Filters against a slow reference, guidance in both conventions, draws that follow the model."""

import math

import pytest
import torch

from tests.wrong import raw_errors
from vtlib.generation import filter_logits, guidance_ramp, guidance_steps, guide, sample


def slow_filter(row, top_k, top_p):
    """The indices that are left of one row, by sorting and counting."""
    order = sorted(range(len(row)), key=lambda i: row[i], reverse=True)
    if top_k:
        order = order[:top_k]
    if not top_p:
        return set(order)
    total = sum(math.exp(row[i]) for i in order)
    kept, below = {order[0]}, 0.0
    for i in reversed(order):
        below += math.exp(row[i]) / total
        if below > 1 - top_p:
            kept.add(i)
    return kept


@pytest.mark.parametrize("top_k, top_p", [(20, 0.8), (5, 0.8), (1, 0.0), (0, 0.6), (0, 0.0)])
def test_filters_against_a_slow_one(top_k, top_p):
    torch.manual_seed(0)
    logits = 2 * torch.randn(3, 4, 60, dtype=torch.float64)
    got = filter_logits(logits, top_k, top_p)
    for row, out in zip(logits.flatten(0, 1), got.flatten(0, 1), strict=True):
        kept = set(out.isfinite().nonzero().flatten().tolist())
        assert kept == slow_filter(row.tolist(), top_k, top_p)
    assert torch.equal(got[got.isfinite()], logits[got.isfinite()])


def test_filters_switched_off_change_nothing():
    logits = torch.randn(2, 5)
    assert torch.equal(filter_logits(logits), logits)
    assert torch.equal(filter_logits(logits, top_k=5), logits)


def test_the_nucleus_is_taken_of_what_top_k_has_left():
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert filter_logits(logits, 0, 0.6).isfinite().tolist() == [True, True, False]
    assert filter_logits(logits, 2, 0.6).isfinite().tolist() == [True, False, False]


def test_the_best_stays_and_ties_of_the_last_stay():
    assert filter_logits(torch.tensor([9.0, 0.0]), top_p=1e-6).isfinite().tolist() == [True, False]
    ties = filter_logits(torch.tensor([1.0, 1.0, 0.0, 2.0]), top_k=2)
    assert ties.isfinite().tolist() == [True, True, False, True]


def test_half_precision_keeps_its_dtype():
    logits = torch.randn(2, 300).bfloat16()
    out = filter_logits(logits, 50, 0.9)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, filter_logits(logits.float(), 50, 0.9).bfloat16())


def test_draws_follow_the_probabilities():
    p = torch.tensor([0.5, 0.3, 0.2])
    rows = p.log().expand(20000, 3)
    drawn = sample(rows, generator=torch.Generator().manual_seed(0)).bincount() / 20000
    torch.testing.assert_close(drawn, p, atol=0.015, rtol=0)
    cold = sample(rows, 0.5, generator=torch.Generator().manual_seed(0)).bincount() / 20000
    torch.testing.assert_close(cold, p**2 / (p**2).sum(), atol=0.015, rtol=0)
    two = sample(rows, top_k=2, generator=torch.Generator().manual_seed(0)).bincount() / 20000
    torch.testing.assert_close(two, torch.tensor([0.625, 0.375]), atol=0.015, rtol=0)


def test_greedy_and_shapes():
    logits = torch.randn(2, 3, 7)
    for options in (dict(temperature=0), dict(top_k=1), dict(top_p=1e-9), dict(temperature=1e-30)):
        assert torch.equal(sample(logits, **options), logits.argmax(-1))
    assert sample(logits[0, 0]).shape == ()
    assert sample(logits.to("meta")).shape == (2, 3)


def test_the_generator_decides():
    logits, before = torch.zeros(50, 9), torch.get_rng_state()
    draws = [sample(logits, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_impossible_codes_are_never_drawn():
    logits = torch.tensor([0.0, -math.inf, 0.0]).expand(200, 3)
    assert (sample(logits) != 1).all()


def test_guidance_in_both_conventions():
    told, untold = torch.randn(2, 5), torch.randn(2, 5)
    want = untold + 3 * (told - untold)
    torch.testing.assert_close(guide(told, untold, 3), want)
    torch.testing.assert_close(guide(told, untold, 2, "weight"), want)
    assert torch.equal(guide(told, untold, 1), told)
    assert torch.equal(guide(told, untold, 0, "weight"), told)
    torch.testing.assert_close(guide(told, untold, 0), untold)


def test_schedules():
    steps = guidance_steps()
    assert [steps(i, 256) for i in (0, 45, 46, 255)] == [0, 0, 1, 1]
    assert [guidance_ramp(i, 5) for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert guidance_ramp(0, 1) == 0
    with pytest.raises(ValueError, match="start=2"):
        guidance_steps(2)


@pytest.mark.parametrize("call, told", [
    (lambda x: filter_logits(x, top_k=6), "top_k=6"),
    (lambda x: filter_logits(x, top_k=-1), "top_k=-1"),
    (lambda x: filter_logits(x, top_p=1.5), "top_p=1.5"),
    (lambda x: sample(x, -1.0), "temperature=-1"),
    (lambda x: sample(x, generator=3), "generator is a int"),
    (lambda x: sample(x.long()), "logits is torch.int64"),
    (lambda x: sample(x[:, :0]), "not empty"),
    (lambda x: sample(x * torch.nan), "NaN"),
    (lambda x: sample(torch.full_like(x, -math.inf)), "-inf only"),
    (lambda x: sample(x, 0, top_k=99), "top_k=99"),
    (lambda x: guide(x, x[:, :2], 2), "need the same"),
    (lambda x: guide(x, x, 2, "w"), "convention='w'"),
])
def test_bad_input_is_named(call, told):
    with pytest.raises(ValueError, match=told):
        call(torch.randn(2, 5))


def test_no_error_from_deep_inside():
    x = torch.randn(2, 5)
    calls = [
        (filter_logits, dict(logits=x, top_k=2, top_p=0.5)),
        (sample, dict(
            logits=x, temperature=1.0, top_k=2, top_p=0.5, generator=torch.Generator("cpu")
        )),
        (guide, dict(conditional=x, unconditional=x, amount=2.0, convention="scale")),
    ]
    for function, fits in calls:
        assert raw_errors(function, fits, part=True) == []
