"""OneFormer's loss: every layer, matched anew, weights of the release, three tasks in one batch."""

import pytest
import torch

from vtlib.segmentation.losses import class_loss, mask_losses
from vtlib.segmentation.matching import match
from vtlib.segmentation.oneformer_loss import joint_loss
from vtlib.segmentation.oneformer_tasks import task_targets


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def targets():
    """One scene as three tasks."""
    scene = torch.full((6, 8), 5)
    scene[1:3, 1:3], scene[1:3, 4:7], scene[5] = 6, 7, 4
    segments = [(5, 0, False), (6, 2, False), (7, 2, False), (4, 1, False)]
    tasks = ("semantic", "instance", "panoptic")
    return [task_targets(scene, segments, task, {2, 3}) for task in tasks]


@pytest.fixture
def predictions():
    drawn = seeded()
    return [
        (torch.randn(3, 7, 5, generator=drawn).requires_grad_(),
         torch.randn(3, 7, 6, 8, generator=drawn).requires_grad_())
        for _ in range(3)
    ]


def test_parts_are_sums_over_layers(predictions, targets):
    got = joint_loss(predictions, targets, torch.tensor(3.0), num_points=None)
    labels, masks = [t.classes for t in targets], [t.masks for t in targets]
    classes = bce = dice = 0
    for class_logits, mask_logits in predictions:
        pairs = match(class_logits, mask_logits, labels, masks, num_points=None)
        classes = classes + class_loss(class_logits, labels, pairs)
        two = mask_losses(mask_logits, masks, pairs, num_points=None)
        bce, dice = bce + two.bce, dice + two.dice
    torch.testing.assert_close(got.classes, classes)
    torch.testing.assert_close((got.bce, got.dice), (bce, dice))
    torch.testing.assert_close(got.total, 2 * classes + 5 * bce + 5 * dice + 0.5 * 3)
    without = joint_loss(predictions, targets, num_points=None)
    torch.testing.assert_close(without.total, got.total - 1.5)


def test_every_layer_gets_a_gradient(predictions, targets):
    joint_loss(predictions, targets, generator=seeded(), num_points=20).total.backward()
    for pair in predictions:
        for logits in pair:
            assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_layers_are_matched_anew(targets):
    """Two layers with the same queries in another order: the same loss twice."""
    drawn = seeded()
    one = (torch.randn(3, 7, 5, generator=drawn), torch.randn(3, 7, 6, 8, generator=drawn))
    other = tuple(logits.flip(1) for logits in one)
    single = joint_loss([one], targets, num_points=None)
    both = joint_loss([one, other], targets, num_points=None)
    torch.testing.assert_close(both.total, 2 * single.total)


def test_right_answers_cost_next_to_nothing(targets):
    classes, masks = torch.full((3, 7, 5), -20.0), torch.full((3, 7, 6, 8), -20.0)
    for i, target in enumerate(targets):
        for n in range(7):
            there = n < len(target.classes)
            classes[i, n, target.classes[n] if there else 4] = 20
            if there:
                masks[i, n][target.masks[n]] = 20
    assert joint_loss([(classes, masks)], targets, num_points=None).total < 1e-3
    swapped = [targets[1], targets[2], targets[0]]                    # the labels of another task
    assert joint_loss([(classes, masks)], swapped, num_points=None).total > 1


def test_points_follow_the_generator(predictions, targets):
    def total(seed):
        return joint_loss(predictions, targets, generator=seeded(seed), num_points=9).total
    assert torch.equal(total(1), total(1)) and not torch.equal(total(1), total(2))


def test_wrong_arguments(predictions, targets):
    with pytest.raises(ValueError, match="predictions is empty"):
        joint_loss([], targets)
    with pytest.raises(ValueError, match=r"targets\[0\] is a"):
        joint_loss(predictions, [1, 2, 3], num_points=None)
    with pytest.raises(ValueError, match="generator"):
        joint_loss(predictions, targets)
    with pytest.raises(ValueError, match="weights"):
        joint_loss(predictions, targets, num_points=None, weights=(1, 2))
    with pytest.raises(ValueError, match="num_points=0"):
        joint_loss(predictions, targets, num_points=0)
    with pytest.raises(ValueError, match="labels has 2"):
        joint_loss(predictions, targets[:2], num_points=None)
