"""Mask losses against formulas and loops; points where they belong; gradients; bad input."""

import pytest
import torch
import torch.nn.functional as F

from tests.settings import SETTINGS
from vtlib.segmentation.losses import (
    bce_loss,
    class_loss,
    dice_loss,
    mask_losses,
    random_points,
    sample_points,
    uncertain_points,
)


def generator(seed=0):
    return torch.Generator(device="cpu").manual_seed(seed)


def batch(seed=0, counts=(2, 0, 3), size=(6, 8)):
    """mask_logits (B, 4, H, W), class_logits (B, 4, 6), labels, masks, matches."""
    g = generator(seed)
    how = dict(generator=g, device="cpu", dtype=torch.float32)
    mask_logits = 3 * torch.randn(len(counts), 4, *size, **how)
    class_logits = torch.randn(len(counts), 4, 6, **how)
    labels = [torch.randint(0, 5, (n,), generator=g, device="cpu") for n in counts]
    masks = [torch.rand(n, *size, **how) < 0.4 for n in counts]
    matches = []
    for n in counts:
        query = torch.randperm(4, generator=g, device="cpu")[:n].sort().values
        matches.append((query, torch.randperm(n, generator=g, device="cpu")))
    return mask_logits, class_logits, labels, masks, matches


def by_loop(mask_logits, masks, matches):
    bce = dice = 0.0
    for b, (query, target) in enumerate(matches):
        for q, t in zip(query.tolist(), target.tolist(), strict=True):
            p, m = mask_logits[b, q].sigmoid(), masks[b][t].float()
            bce = bce - (m * p.log() + (1 - m) * (1 - p).log()).mean()
            dice = dice + 1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)
    count = sum(len(m) for m in masks)
    return bce / count, dice / count


def test_losses_of_every_pixel_are_the_formulas():
    mask_logits, _, _, masks, matches = batch()
    found = mask_losses(mask_logits, masks, matches, num_points=None)
    torch.testing.assert_close(tuple(found), by_loop(mask_logits, masks, matches))


def test_one_mask_by_hand():
    logits, target = torch.zeros(1, 4), torch.tensor([[1.0, 1, 0, 0]])
    assert bce_loss(logits, target, 1).item() == pytest.approx(0.693147, abs=1e-5)
    assert dice_loss(logits, target, 1).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))
    sure = torch.full((2, 4), -40.0)
    assert dice_loss(sure, torch.zeros(2, 4), 1).item() == 0         # nothing there, nothing seen
    assert dice_loss(-sure, torch.ones(2, 4), 2).item() == 0
    torch.testing.assert_close(bce_loss(logits, target, 4), bce_loss(logits, target, 1) / 4)


def test_points_are_bilinear_with_zeros_outside():
    maps = torch.arange(8.0).reshape(1, 1, 2, 4) + 1
    middle = torch.tensor([[[0.5 / 4, 0.5 / 2], [3.5 / 4, 1.5 / 2], [0.5, 0.5], [0.0, 0.25]]])
    found = sample_points(maps, middle)
    assert found.flatten().tolist() == pytest.approx([1, 8, 4.5, 0.5])     # x comes first
    both = sample_points(torch.cat([maps, -maps], dim=1), middle)
    torch.testing.assert_close(both, torch.cat([found, -found], dim=1))


def test_points_go_where_the_mask_is_unsure():
    """Logits of -20 ... 20 from left to right: the unsure ones are in the middle."""
    logits = torch.linspace(-20, 20, 32)[None, None].expand(2, 16, 32)
    points = uncertain_points(logits, 400, generator())
    assert points.shape == (2, 400, 2) and 0 <= points.min() and points.max() < 1
    off = (points[..., 0] - 0.5).abs()
    # a quarter of them; some are farther off, at the border, where zeros outside make them unsure
    assert off[:, :300].mean() < 0.08 and off[:, :300].max() < 0.25 < off[:, 300:].max()
    assert not torch.equal(points[0], points[1])
    anywhere = uncertain_points(logits, 400, generator(), importance=0)
    assert anywhere[..., 0].std() > 0.25
    closer = uncertain_points(logits, 400, generator(), oversample=8, importance=1)
    assert (closer[..., 0] - 0.5).abs().mean() < off[:, :300].mean()
    torch.testing.assert_close(points, uncertain_points(logits, 400, generator()))


def test_many_random_points_come_near_to_every_pixel():
    """A smooth mask; importance 0, or the points would be the hard ones."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    disc = 6 * (0.5 - x.square() - y.square())
    target = (x - 0.2).square() + y.square() < 0.4
    given = disc[None, None], [target[None]], [(torch.tensor([0]), torch.tensor([0]))]
    every = mask_losses(*given, num_points=None)
    some = mask_losses(*given, generator(), num_points=20000, importance=0.0)
    assert some.bce.item() == pytest.approx(every.bce.item(), rel=0.03)
    assert some.dice.item() == pytest.approx(every.dice.item(), rel=0.03)
    hard = mask_losses(*given, generator(), num_points=20000)
    assert hard.bce > 1.5 * every.bce


def test_points_let_sizes_differ():
    """Logits at a quarter of the size of the masks, as in Mask2Former."""
    mask_logits, _, _, _, matches = batch()
    masks = [torch.ones(n, 24, 32) for n in (2, 0, 3)]
    found = mask_losses(mask_logits, masks, matches, generator(), num_points=50)
    again = mask_losses(mask_logits, masks, matches, generator(), num_points=50)
    assert found == again and found.bce > 0
    other = mask_losses(mask_logits, masks, matches, generator(1), num_points=50)
    assert other.bce != found.bce


@pytest.mark.parametrize("num_points", [None, 40])
def test_only_matched_queries_get_a_gradient(num_points):
    mask_logits, _, _, masks, matches = batch()
    mask_logits.requires_grad_()
    sum(mask_losses(mask_logits, masks, matches, generator(), num_points)).backward()
    moved = mask_logits.grad.abs().sum((2, 3)) > 0
    want = torch.zeros(3, 4, dtype=torch.bool)
    for b, (query, _) in enumerate(matches):
        want[b, query] = True
    assert torch.equal(moved, want) and mask_logits.grad.isfinite().all()


def test_no_target_in_the_whole_batch():
    mask_logits, class_logits, labels, masks, matches = batch(counts=(0, 0))
    mask_logits.requires_grad_()
    found = mask_losses(mask_logits, masks, matches, generator())
    sum(found).backward()
    assert found == (0, 0) and not mask_logits.grad.any()
    want = F.cross_entropy(class_logits.flatten(0, 1), torch.full((8,), 5))
    torch.testing.assert_close(class_loss(class_logits, labels, matches), want)


def test_class_loss_by_loop():
    _, class_logits, labels, _, matches = batch()
    log_p, total, weights = class_logits.log_softmax(-1), 0.0, 0.0
    for b, (query, target) in enumerate(matches):
        wanted = {q: labels[b][t].item() for q, t in zip(query.tolist(), target, strict=True)}
        for q in range(4):
            weight = 1 if q in wanted else 0.1
            total -= weight * log_p[b, q, wanted.get(q, 5)].item()
            weights += weight
    found = class_loss(class_logits, labels, matches)
    assert found.item() == pytest.approx(total / weights, rel=1e-5)
    even = class_loss(class_logits, labels, matches, no_object=1.0)
    assert even.item() != pytest.approx(found.item(), rel=1e-3)


def test_half_precision_is_widened():
    mask_logits, class_logits, labels, masks, matches = batch()
    half = mask_logits.bfloat16()
    want = mask_losses(half.float(), masks, matches, num_points=None)
    with torch.autocast("cpu", torch.bfloat16):
        found = mask_losses(half, masks, matches, num_points=None)
        by_class = class_loss(class_logits.bfloat16(), labels, matches)
    assert found == want and by_class.dtype == torch.float32


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_torch_change_nothing(setting):
    mask_logits, class_logits, labels, masks, matches = batch()

    def run():
        each = mask_losses(mask_logits, masks, matches, generator(), 30)
        return [x.item() for x in (*each, class_loss(class_logits, labels, matches))]

    want = run()
    with setting():
        assert run() == want


@pytest.mark.parametrize("change, told", [
    (dict(mask_logits=torch.zeros(3, 4, 6)), "mask_logits has shape"),
    (dict(masks=[torch.zeros(2, 6, 8)]), "masks has 1 entries but the batch 3"),
    (dict(masks=[torch.zeros(2, 6), torch.zeros(0, 6, 8), torch.zeros(3, 6, 8)]), r"masks\[0\] is"),
    (dict(masks=[torch.full((n, 6, 8), 255) for n in (2, 0, 3)]), r"masks\[0\].*outside \[0, 1\]"),
    (dict(masks=[torch.zeros(n, 7, 8) for n in (2, 0, 3)]), "without points needs one size"),
    (dict(masks=[torch.zeros(n, 6 + n, 8) for n in (2, 0, 3)], num_points=9), "pad them"),
    (dict(matches=[]), "matches has 0 entries"),
    (dict(matches=[(torch.tensor([4]), torch.tensor([0]))] * 3), r"matches\[0\] query\[0\]=4"),
    (dict(matches=[(torch.tensor([0]), torch.tensor([2]))] * 3), r"matches\[0\] target\[0\]=2"),
    (dict(matches=[(torch.tensor([0, 1]), torch.tensor([0]))] * 3), r"matches\[0\] target"),
    (dict(num_points=0, generator=generator()), "num_points=0"),
    (dict(num_points=9), "generator is a NoneType"),
    (dict(num_points=9, generator=generator(), oversample=0.5), "oversample=0.5"),
    (dict(num_points=9, generator=generator(), importance=1.5), "importance=1.5"),
])
def test_bad_input(change, told):
    mask_logits, _, _, masks, matches = batch()
    given = dict(mask_logits=mask_logits, masks=masks, matches=matches, num_points=None)
    with pytest.raises(ValueError, match=told):
        mask_losses(**(given | change))


def test_bad_classes_and_points():
    _, class_logits, labels, _, matches = batch()
    with pytest.raises(ValueError, match=r"labels\[0\]\[0\]=\d is no place: .* 0 ... 4"):
        class_loss(class_logits, [entry + 5 for entry in labels], matches)
    with pytest.raises(ValueError, match="labels has 2 entries"):
        class_loss(class_logits, labels[:2], matches)
    with pytest.raises(ValueError, match="no_object"):
        class_loss(class_logits, labels, matches, no_object=0)
    with pytest.raises(ValueError, match="points torch.float32"):
        sample_points(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="generator"):
        random_points(1, 2, None, torch.device("cpu"))
