"""Costs against the losses of every pair, assignments against all permutations."""

import itertools

import pytest
import torch

from tests.segmentation.test_losses import batch, generator
from tests.settings import SETTINGS
from vtlib.segmentation.losses import bce_loss, dice_loss
from vtlib.segmentation.matching import (
    assign,
    bce_cost,
    class_cost,
    dice_cost,
    match,
    match_cost,
)


def test_costs_are_the_losses_of_every_pair():
    mask_logits, class_logits, labels, masks, _ = batch(counts=(3,))
    logits, targets = mask_logits[0].flatten(1), masks[0].flatten(1).float()
    by_bce, by_dice = bce_cost(logits, targets), dice_cost(logits, targets)
    by_class = class_cost(class_logits[0], labels[0])
    p = class_logits[0].softmax(-1)
    for q, t in itertools.product(range(4), range(3)):
        pair = logits[q:q + 1], targets[t:t + 1], 1
        torch.testing.assert_close(by_bce[q, t], bce_loss(*pair))
        torch.testing.assert_close(by_dice[q, t], dice_loss(*pair))
        assert by_class[q, t] == -p[q, labels[0][t]]
    found = match_cost(class_logits[0], logits, labels[0], targets)
    torch.testing.assert_close(found, 2 * by_class + 5 * by_bce + 5 * by_dice)
    other = match_cost(class_logits[0], logits, labels[0], targets, (0, 1, 0))
    torch.testing.assert_close(other, by_bce)
    together = match_cost(class_logits, logits[None], labels[0][None], targets[None])
    torch.testing.assert_close(together[0], found)


def test_large_logits_keep_the_cost_finite_and_exact():
    logits = torch.tensor([[300.0, -300, 300, -300]])
    target = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    assert bce_cost(logits, target).tolist() == [[0, 300]]
    assert dice_cost(logits, target).tolist() == [[0, pytest.approx(1 - 1 / 5)]]


@pytest.mark.parametrize("queries, targets", [(5, 3), (3, 5), (6, 6), (1, 4), (4, 0)])
def test_the_assignment_is_the_best_of_all(queries, targets):
    cost = torch.randn(queries, targets, generator=generator())
    query, target = assign(cost)
    pairs = min(queries, targets)
    assert len(set(query.tolist())) == len(set(target.tolist())) == pairs == len(query)
    assert query.tolist() == sorted(query.tolist())
    wide = cost if queries <= targets else cost.T
    best = min(
        (sum(wide[i, j].item() for i, j in enumerate(chosen))
         for chosen in itertools.permutations(range(wide.shape[1]), pairs))
    )
    assert cost[query, target].sum().item() == pytest.approx(best, abs=1e-5)


def test_what_changes_no_assignment_and_what_permutes_it():
    cost = torch.randn(6, 4, generator=generator())
    query, target = assign(cost)
    moved = cost.clone()
    moved[:, 2] += 7                                                   # one more for every query
    assert torch.equal(torch.stack(assign(moved)), torch.stack([query, target]))
    order = torch.randperm(6, generator=generator(1))
    there, then = assign(cost[order])
    assert dict(zip(order[there].tolist(), then.tolist(), strict=True)) == dict(
        zip(query.tolist(), target.tolist(), strict=True)
    )


def test_a_batch_is_its_images():
    mask_logits, class_logits, labels, masks, _ = batch(counts=(2, 0, 3, 5))
    found = match(class_logits, mask_logits, labels, masks, num_points=None)
    assert [len(query) for query, _ in found] == [2, 0, 3, 4]           # 5 targets, 4 queries
    for b, pairs in enumerate(found):
        cost = match_cost(
            class_logits[b], mask_logits[b].flatten(1), labels[b], masks[b].flatten(1).float()
        )
        assert torch.equal(torch.stack(pairs), torch.stack(assign(cost)))
    nothing = match(class_logits[:2], mask_logits[:2], [labels[1]] * 2, [masks[1]] * 2, generator())
    assert [len(query) for query, _ in nothing] == [0, 0]


def test_each_term_decides_alone():
    """Three queries and three targets: class, BCE and Dice each find the diagonal."""
    masks = torch.zeros(3, 4, 6)
    for t in range(3):
        masks[t, :, 2 * t:2 * t + 2] = 1
    class_logits, mask_logits = 5 * torch.eye(3, 4)[None], (10 * masks - 5)[None]
    labels, flat = [torch.arange(3)], torch.zeros(1, 3, 4, 6)
    order = [2, 0, 1]
    for given, weights in (
        ((class_logits[:, order], flat), (1, 0, 0)),
        ((torch.zeros(1, 3, 4), mask_logits[:, order]), (0, 1, 0)),
        ((torch.zeros(1, 3, 4), mask_logits[:, order]), (0, 0, 1)),
    ):
        (pairs,) = match(*given, labels, [masks], num_points=None, weights=weights)
        assert pairs.query.tolist() == [0, 1, 2] and pairs.target.tolist() == order


def test_points_are_drawn_and_let_sizes_differ():
    mask_logits, class_logits, labels, masks, _ = batch()
    large = [m.float().repeat_interleave(4, 1).repeat_interleave(4, 2) for m in masks]
    given = class_logits, mask_logits, labels
    found, again = (match(*given, large, generator(), 5) for _ in range(2))
    assert all(torch.equal(a, b) for x, y in zip(found, again, strict=True)
               for a, b in zip(x, y, strict=True))
    many = match(*given, masks, generator(), 20000)
    every = match(*given, masks, num_points=None)
    assert all(torch.equal(a, b) for x, y in zip(many, every, strict=True)
               for a, b in zip(x, y, strict=True))


def test_no_gradient_and_full_precision():
    mask_logits, class_logits, labels, masks, _ = batch()
    half = [x.bfloat16().requires_grad_() for x in (class_logits, mask_logits)]
    want = match(*(x.float() for x in half), labels, masks, num_points=None)
    with torch.autocast("cpu", torch.bfloat16):
        found = match(*half, labels, masks, num_points=None)
    for x, y in zip(found, want, strict=True):
        assert torch.equal(x.query, y.query) and torch.equal(x.target, y.target)
    cost = match_cost(half[0][0], half[1][0].flatten(1), labels[0], masks[0].flatten(1).float())
    assert cost.dtype == torch.float32
    assert assign(cost).query.dtype == torch.int64                # a cost with a gradient will do


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_torch_change_nothing(setting):
    mask_logits, class_logits, labels, masks, _ = batch()

    def run():
        pairs = match(class_logits, mask_logits, labels, masks, generator(), 30)
        return [[x.tolist() for x in pair] for pair in pairs]

    want = run()
    with setting():
        assert run() == want


NAN = torch.full((3, 4, 6, 8), float("nan"))


@pytest.mark.parametrize("change, told", [
    (dict(class_logits=torch.zeros(3, 5, 6)), "both need the same B and Q"),
    (dict(class_logits=torch.zeros(3, 4)), "class_logits has shape"),
    (dict(mask_logits=torch.zeros(3, 4, 6, 8, dtype=torch.long)), "mask_logits is torch.int64"),
    (dict(labels=[torch.tensor([0, 5]), torch.tensor([]).long(), torch.arange(3)]),
     r"labels\[0\]\[1\]=5"),
    (dict(labels=[torch.arange(2)] * 3), r"labels has \[2, 2, 2\] targets"),
    (dict(masks=[torch.zeros(2, 6, 8)]), "masks has 1 entries"),
    (dict(masks=[torch.full((n, 6, 8), 2.0) for n in (2, 0, 3)]), r"outside \[0, 1\]"),
    (dict(weights=(1, 2)), "weights"),
    (dict(weights=(1, 2, -1)), r"weights\[2\]"),
    (dict(num_points=12), "generator is a NoneType"),
    (dict(num_points=0, generator=generator()), "num_points=0"),
    (dict(mask_logits=NAN), "cost .*non-finite"),
])
def test_bad_input(change, told):
    mask_logits, class_logits, labels, masks, _ = batch()
    given = dict(class_logits=class_logits, mask_logits=mask_logits, labels=labels, masks=masks,
                 num_points=None)
    with pytest.raises(ValueError, match=told):
        match(**(given | change))


def test_bad_costs():
    for cost, told in (
        (torch.zeros(2, 2, 2), "needs to be"), (torch.zeros(2, 2).long(), "floating"),
        (torch.tensor([[0.0, float("inf")]]), "non-finite"),
    ):
        with pytest.raises(ValueError, match=told):
            assign(cost)
    x = torch.zeros(4, 6)
    with pytest.raises(ValueError, match="needs .*Q, P"):
        match_cost(x, torch.zeros(4, 9), torch.arange(3), torch.zeros(3, 8))
    with pytest.raises(ValueError, match="labels"):
        match_cost(x, torch.zeros(4, 9), torch.arange(2), torch.zeros(3, 9))
