"""Merging to strided targets against plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.tokens import Plan, keep_all
from vtlib.tokens.merge import chained, merge_to_targets, strided
from vtlib.tokens.precision import full_precision, widen


def loop_merge(x, keys, kept, num_targets):
    """The rule in words, one token at a time: (rows, target of each slot)."""
    rest = [n for n in range(len(x)) if n not in kept]
    if not num_targets:
        return [x[n] for n in kept], list(kept)
    step = max(1, len(rest) // num_targets)
    targets = rest[::step][:num_targets]
    follow = {t: [] for t in targets}
    for n in rest:
        if n not in targets:
            like = [float(keys[n] @ keys[t] / keys[n].norm() / keys[t].norm()) for t in targets]
            follow[targets[like.index(max(like))]].append(n)
    rows = [x[n] for n in kept]
    for t in targets:
        rows.append(x[t] + (sum(x[n] for n in follow[t]) / len(follow[t]) if follow[t] else 0))
    return rows, [*kept, *targets]


def example(batch, num_tokens, num_kept, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x, keys = (
        torch.randn(batch, num_tokens, d, generator=g, dtype=torch.float64).to(dtype)
        for d in (5, 3)
    )
    order = torch.rand(batch, num_tokens, generator=g).argsort(dim=1)
    kept = order[:, :num_kept].sort(dim=1).values
    return x, keys, kept


@given(st.integers(1, 16), st.integers(0, 10**6), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_plain_loops(num_tokens, seed, data):
    num_kept = data.draw(st.integers(0, num_tokens))
    num_targets = data.draw(st.integers(0, num_tokens - num_kept))
    x, keys, kept = example(2, num_tokens, num_kept, seed)
    plan = merge_to_targets(keys, kept, num_targets)
    out = plan.apply(x)
    assert out.shape == (2, num_kept + num_targets, 5) and plan.num_tokens == num_tokens
    for b in range(2):
        rows, index = loop_merge(x[b], keys[b], kept[b].tolist(), num_targets)
        assert plan.index[b].tolist() == index
        if rows:
            torch.testing.assert_close(out[b], torch.stack(rows))
    copies = x.gather(1, kept[..., None].expand(-1, -1, 5))
    assert torch.equal(out[:, :num_kept], copies)                       # bit-identical
    assert plan.role.tolist() == [[0] * num_kept + [1] * num_targets] * 2
    source = plan.source()
    if num_targets:
        assert (source >= 0).all()                                                # nothing is lost
        once = torch.ones(2, num_tokens, dtype=torch.long)
        assert torch.equal(plan.matrix().count_nonzero(dim=1), once)
        first = source[0, plan.index[0]]
        assert first.tolist() == list(range(len(plan)))


def test_one_target_takes_the_mean_of_all_others():
    x, keys, kept = example(3, 9, 4, 0)
    out = merge_to_targets(keys, kept, 1).apply(x)
    for b in range(3):
        rest = [n for n in range(9) if n not in kept[b].tolist()]
        torch.testing.assert_close(out[b, 4], x[b, rest[0]] + x[b, rest[1:]].mean(dim=0))


def test_without_followers_a_target_stays_as_it_is():
    x = torch.randn(1, 6, 4)
    keys = torch.tensor([[[1.0, 0.0], [0, 1], [1, 0.1], [1, 0], [1, 0.2], [2, 0.1]]])
    plan = merge_to_targets(keys, torch.zeros(1, 0, dtype=torch.long), 6)
    assert torch.equal(plan.apply(x), x)                                          # all are targets
    plan = merge_to_targets(keys, torch.tensor([[3, 5]]), 2)
    # the rest is 0 1 2 4, the targets 0 and 2; 1 and 4 follow 2
    assert plan.index.tolist() == [[3, 5, 0, 2]] and torch.equal(plan.apply(x)[:, 2], x[:, 0])
    torch.testing.assert_close(plan.apply(x)[0, 3], x[0, 2] + (x[0, 1] + x[0, 4]) / 2)


def test_length_of_keys_does_not_matter_and_ties_go_to_the_first_target():
    x, keys, kept = example(2, 12, 3, 1)
    lengths = torch.rand(2, 12, 1, dtype=torch.float64) + 0.5
    longer, plain = merge_to_targets(keys * lengths, kept, 3), merge_to_targets(keys, kept, 3)
    assert torch.equal(longer.slot, plain.slot)
    plan = merge_to_targets(torch.ones(1, 6, 2), torch.tensor([[0, 1]]), 2)
    assert plan.source()[0].tolist() == [0, 1, 2, 2, 3, 2]


def test_contextual_tokens_are_about_twice_as_long():
    """Target + mean, not an average: tokens that are all alike come out at twice their length."""
    x = torch.ones(1, 10, 4)
    out = merge_to_targets(x, torch.tensor([[0, 1]]), 2).apply(x)
    assert torch.equal(out[0, :2], torch.ones(2, 4))
    assert torch.allclose(out[0, 2], torch.full((4,), 2.0))


def test_strided():
    assert strided(17, 4).tolist() == [0, 4, 8, 12] and strided(7, 4).tolist() == [0, 1, 2, 3]
    assert strided(3, 5).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="count=0: needs an integer of at least 1"):
        strided(5, 0)


def test_batch_of_one_half_precision_and_meta():
    x, keys, kept = example(4, 14, 5, 2)
    many = merge_to_targets(keys, kept, 3)
    for b in range(4):
        one = merge_to_targets(keys[b:b + 1], kept[b:b + 1], 3)
        assert torch.equal(one.slot[0], many.slot[b]) and torch.equal(one.weight[0], many.weight[b])
    many_keys = torch.randn(2, 300, 3, generator=torch.Generator().manual_seed(0))
    first = torch.arange(2).expand(2, -1)
    with torch.autocast("cpu", torch.bfloat16):         # rounding would move some of 600 followers
        plan = merge_to_targets(many_keys, first, 40)
    assert torch.equal(plan.slot, merge_to_targets(many_keys, first, 40).slot)
    plan = merge_to_targets(keys.bfloat16(), kept, 3)
    assert torch.equal(plan.slot, merge_to_targets(keys.bfloat16().float(), kept, 3).slot)
    assert plan.apply(x.bfloat16()).dtype == torch.bfloat16
    plan = merge_to_targets(keys.to("meta"), kept.to("meta"), 3)
    assert plan.apply(x.to("meta")).shape == (4, 8, 5)


def test_compile():
    keys, kept = example(4, 14, 5, 2)[1:]
    run = torch.compile(
        lambda k, i: merge_to_targets(k, i, 3).slot, backend="eager", fullgraph=True
    )
    assert torch.equal(run(keys, kept), merge_to_targets(keys, kept, 3).slot)


def test_bad_input():
    _, keys, kept = example(2, 8, 5, 0)
    for count in (4, -1):
        message = f"num_targets={count} but 5 of 8 tokens are kept: needs 0 ... 3"
        with pytest.raises(ValueError, match=message):
            merge_to_targets(keys, kept, count)
    with pytest.raises(ValueError, match=r"kept is torch.int64 \(1, 5\) .*\(B, d\) = \(2, d\)"):
        merge_to_targets(keys, kept[:1], 1)
    with pytest.raises(ValueError, match=r"keys has shape \(8, 3\) but needs \(B, N, P\)"):
        merge_to_targets(keys[0], kept, 1)


@pytest.mark.parametrize("num_targets", [0, 2])
def test_bad_kept(num_targets):
    keys = example(2, 8, 5, 0)[1]
    for kept, message in (
        (torch.tensor([[0, 3, 5], [4, 1, 4]]), r"kept\[1\] holds token 4 twice"),
        (torch.tensor([[0, 3], [8, 1]]), r"kept\[1, 0\]=8 is no place: it must lie in 0 ... 7"),
        (torch.tensor([[0, -1], [3, 1]]), r"kept\[0, 1\]=-1 is no place"),
        (torch.tensor([[0, 3], [4, 1]], dtype=torch.int32), r"kept is torch.int32 \(2, 2\)"),
        ([[0, 3], [4, 1]], "kept is a list but needs to be torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_to_targets(keys, kept, num_targets)


@pytest.mark.parametrize("count", [2.0, "2", True, None])
def test_number_of_targets_is_an_integer(count):
    _, keys, kept = example(2, 8, 5, 0)
    with pytest.raises(ValueError, match=f"num_targets={count!r}.*needs an integer"):
        merge_to_targets(keys, kept, count)
    plan = merge_to_targets(keys, kept, torch.tensor(2))
    assert torch.equal(plan.slot, merge_to_targets(keys, kept, 2).slot)


def test_precision():
    for dtype in (torch.bfloat16, torch.half):
        assert widen(torch.ones(1).to(dtype)).dtype == torch.float32
    assert widen(torch.ones(1).double()).dtype == torch.float64
    a = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a.device):
            assert (a @ a).dtype == torch.float32
    with full_precision(torch.device("meta")):
        pass


def test_chained_is_then_without_its_table():
    """Two merging plans with an entry a token, one after the other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)
    first, second = (one_slot_a_token(n, slots, generator) for n, slots in ((9, 6), (6, 4)))
    got, want = chained(first, second), first.then(second)
    assert torch.equal(got.index, want.index) and got.origin.shape == (2, 9)
    torch.testing.assert_close(got.apply(x), want.apply(x))
    torch.testing.assert_close(got.apply(x), second.apply(first.apply(x)))
    with pytest.raises(ValueError, match="second only keeps and drops"):
        chained(first, keep_all(2, 6))


def one_slot_a_token(num_tokens, slots, generator):
    """A plan for two images whose tokens enter slots at random, each slot one at least."""
    shape = 2, num_tokens
    slot = torch.arange(num_tokens).remainder(slots).expand(2, -1)
    slot = slot.gather(1, torch.rand(shape, generator=generator).argsort(dim=1))
    weight = torch.rand(shape, generator=generator, dtype=torch.float64)
    index = torch.arange(slots).expand(2, -1)
    return Plan(index, num_tokens, torch.arange(num_tokens).expand(2, -1), slot, weight)
