"""Camouflage: TVA's mean removal, CIN's invariance, fusion, the whole head and its loss."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.segmentation import (
    CIN,
    MSFF,
    CamouflageSegmenter,
    aggregate,
    camouflage_loss,
    foreground,
    standardise,
)
from vtlib.segmentation.camouflage import resize
from vtlib.segmentation.oneformer_tasks import Targets
from vtlib.tokens.cosine import unit

CHANNELS, LAST, TEXT, WIDTH, QUERIES = (6, 10), 6, 12, 16, 5
SMALL = dict(
    text_dim=TEXT, embed_dim=WIDTH, num_queries=QUERIES, num_layers=3, num_heads=2, hidden_dim=24,
    groups=4,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(**options):
    torch.manual_seed(0)
    return CamouflageSegmenter(CHANNELS, LAST, **{**SMALL, **options}).eval()


def maps(batch=2, height=16, width=12, seed=0):
    encoder = [random(batch, 6, height, width, seed=seed),
               random(batch, 10, height // 2, width // 2, seed=seed + 1)]
    return encoder, random(batch, LAST, height, width, seed=seed + 2)


TEXTS = unit(random(4, TEXT, seed=9))


def wanted(height=16, width=12, classes=((0, 3), (2,))):
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 2:7, 2:7], masks[1, 9:14, 5:10] = True, True
    none = torch.empty(0, dtype=torch.long)
    return [Targets(torch.tensor(entry), masks[: len(entry)], none) for entry in classes]


# ------------------------------------------------------------------------------------ TVA
def test_scores_sum_to_zero_over_classes():
    found = aggregate(unit(random(2, 7, TEXT)), TEXTS)
    assert found.products.shape == (2, 7, 4, TEXT) and found.scores.abs().max() > 0.01
    torch.testing.assert_close(found.scores.sum(-1), torch.zeros(2, 7), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.weights.mean(-1), torch.ones(2, 7))
    with_mean = aggregate(unit(random(2, 7, TEXT)), TEXTS, remove_mean=False)
    assert with_mean.scores.sum(-1).abs().max() > 0.01
    torch.testing.assert_close(with_mean.weights, found.weights)


def test_one_class_scores_zero_and_other_classes_change_the_score():
    visual = unit(random(2, 7, TEXT))
    assert aggregate(visual, TEXTS[:1]).scores.abs().max() < 1e-6
    assert aggregate(visual, TEXTS[:1], remove_mean=False).scores.abs().max() > 0.05
    more, fewer = (aggregate(visual, TEXTS[:count]).scores[..., :2] for count in (4, 2))
    assert (more - fewer).abs().max() > 0.01


def test_what_all_classes_share_cancels_under_equal_weights():
    """`overall` at a right angle to all texts weighs them alike."""
    basis = torch.linalg.qr(random(TEXT, TEXT)).Q
    text, shift, overall = basis[:4], 3 * basis[5], basis[6].expand(2, 1, -1)
    visual = unit(random(2, 7, TEXT, seed=1))
    before, after = (aggregate(visual, t, overall) for t in (text, text + shift))
    torch.testing.assert_close(before.weights, torch.ones(2, 1, 4))
    torch.testing.assert_close(after.scores, before.scores, atol=1e-5, rtol=1e-4)
    kept = [aggregate(visual, t, overall, False).scores for t in (text, text + shift)]
    assert (kept[0] - kept[1]).abs().max() > 0.1


def test_aggregate_against_a_loop():
    visual, overall = unit(random(1, 3, TEXT)), unit(random(1, 1, TEXT, seed=2))
    share = torch.stack([(2 * overall[0, 0] @ t).exp() for t in TEXTS])
    weight = share / share.sum() * len(TEXTS)
    for x in range(3):
        e = torch.stack([visual[0, x] * t * w for t, w in zip(TEXTS, weight, strict=True)])
        want = e - sum(e) / len(e)
        found = aggregate(visual, TEXTS, overall)
        torch.testing.assert_close(found.products[0, x], want, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.scores[0, x], want.sum(1), atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------ CIN
def test_gain_and_offset_of_a_channel_change_nothing():
    torch.manual_seed(0)
    cin, plain = CIN(8), CIN(8, normalise=False)
    plain.load_state_dict(cin.state_dict())
    x, who = random(2, 8, 9, 7), random(2, 3, 8, seed=1)
    gain = torch.linspace(0.01, 50, 8)[:, None, None]
    offset = random(8, 1, 1, seed=2) * 5
    torch.testing.assert_close(cin(gain * x + offset, who), cin(x, who), atol=1e-4, rtol=1e-4)
    assert (plain(gain * x + offset, who) - plain(x, who)).abs().max() > 1
    assert cin(x, who).shape == (2, 3, 9, 7)
    assert not torch.allclose(cin(-x, who), cin(x, who))         # a > 0: a sign is no gain


def test_gains_by_powers_of_two_change_not_a_bit():
    x = random(1, 4, 6, 6)
    assert torch.equal(standardise(8 * x, 1e-30), standardise(x, 1e-30))


def test_standardised_over_the_whole_picture():
    x = standardise(3 * random(2, 8, 9, 7) + 2)
    torch.testing.assert_close(x.mean((2, 3)), torch.zeros(2, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var((2, 3), correction=0), torch.ones(2, 8))
    assert not standardise(torch.full((1, 2, 3, 3), 5.0)).any()


def test_parameters_of_cin():
    assert sum(p.numel() for p in CIN(24).parameters()) == (24 * 24 + 24) + (24 + 1)
    own = CIN(24, 7)
    assert own.affine_scale.weight.shape == (24, 7) and own.affine_bias.weight.shape == (1, 7)


# ------------------------------------------------------------------------------------ fusion
def test_fusion_by_hand():
    torch.manual_seed(0)
    fusion = MSFF(CHANNELS, LAST, 8, 4)
    encoder, last = maps()
    out = fusion(encoder, last)
    assert [tuple(x.shape) for x in out] == [
        (2, 8, 16, 12), (2, 8, 8, 6), (2, 8, 4, 3), (2, 8, 2, 2)
    ]
    joined = torch.cat([resize(x, (8, 6)) for x in encoder], 1)
    content = fusion.project[1](F.avg_pool2d(last, 2))
    torch.testing.assert_close(out[1], content * (1 + fusion.attend[1](joined)))
    silent = [torch.zeros_like(x) for x in encoder]
    for conv in fusion.attend:
        torch.nn.init.zeros_(conv.bias)
    torch.testing.assert_close(fusion(silent, last)[1], content)               # the residual
    assert fusion(encoder, last, (5, 7))[0].shape == (2, 8, 5, 7)


# ------------------------------------------------------------------------------------ the whole
def test_shapes_and_parts_of_the_answer():
    model = make()
    out = model(*maps(), TEXTS)
    assert out.last.class_logits.shape == (2, QUERIES, 5) and len(out.earlier) == 3
    assert out.last.mask_logits.shape == (2, QUERIES, 16, 12)
    assert out.scores.shape == (2, QUERIES, 4)
    torch.testing.assert_close(
        out.last.mask_logits, out.generated + model.gain * out.normalised
    )
    torch.testing.assert_close(out.scores.sum(-1), torch.zeros(2, QUERIES), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.embeddings.norm(dim=-1), torch.ones(2, QUERIES))
    share = foreground(out)
    assert share.shape == (2, 16, 12) and 0 <= share.min() <= share.max() <= 1
    assert foreground(out, (32, 24)).shape == (2, 32, 24)
    assert model.heat(out).shape == (2, 4, 16, 12)


def test_the_class_list_is_an_input():
    """One model, other lists: classes change places with their texts, masks are found anyhow."""
    model = make(cin=False)
    few, swapped, many = (
        model(*maps(), t).last for t in (TEXTS, TEXTS[[1, 0, 2, 3]], torch.cat([TEXTS, TEXTS + 1]))
    )
    torch.testing.assert_close(swapped.class_logits[..., [1, 0, 2, 3, 4]], few.class_logits)
    torch.testing.assert_close(many.class_logits[..., [0, 1, 2, 3, 8]], few.class_logits)
    torch.testing.assert_close(many.mask_logits, few.mask_logits)
    joined = model(*maps(), TEXTS, synonyms=[3, 1]).last.class_logits
    torch.testing.assert_close(joined[..., 0], few.class_logits[..., :3].amax(-1))


def test_without_text_all_classes_are_alike_and_cin_knows_no_instance():
    out = make()(*maps(), torch.zeros(4, TEXT))
    assert not out.scores.any() and not out.last.class_logits[..., :-1].any()
    torch.testing.assert_close(out.normalised, out.normalised[:, :1].expand(-1, QUERIES, -1, -1))
    told = make()(*maps(), TEXTS).normalised
    assert (told - told[:, :1]).abs().max() > 0.1


def test_each_part_can_be_left_out():
    whole, given = make(), (*maps(), TEXTS)
    without = make(cin=False)
    assert not hasattr(without, "gain") and not without(*given).normalised.any()
    kept = make(remove_mean=False)
    kept.load_state_dict(whole.state_dict())
    assert not torch.allclose(kept(*given).normalised, whole(*given).normalised)
    plain = make(normalise=False)
    plain.load_state_dict(whole.state_dict())
    assert not torch.allclose(plain(*given).normalised, whole(*given).normalised)


def test_cin_starts_small():
    model, given = make(), (*maps(), TEXTS)
    assert model.gain.item() == pytest.approx(0.1)
    out = model(*given)
    added = (out.last.mask_logits - out.generated).abs().mean()
    assert added < 0.5 * out.normalised.abs().mean()


def test_the_same_head_reads_other_nets():
    """Maps of one size, as a ViT gives them, and masks of a finer one."""
    torch.manual_seed(0)
    model = CamouflageSegmenter((8, 8, 8), 8, **SMALL)
    states = [random(2, 8, 4, 4, seed=i) for i in range(3)]
    assert model(states, states[-1], TEXTS, size=(16, 16)).last.mask_logits.shape[2:] == (16, 16)


def test_loss_falls_and_every_layer_is_asked():
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        parts = camouflage_loss(model(*maps(), TEXTS), wanted())
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        losses.append(parts.total.item())
    assert losses[-1] < 0.6 * losses[0]
    out = model(*maps(), TEXTS)
    parts, last = (camouflage_loss(o, wanted()) for o in (out, out._replace(earlier=[])))
    assert parts.dice > 2 * last.dice
    doubled = camouflage_loss(out, wanted(), alpha=2.0)
    assert doubled.total > parts.total
    total = parts.classes + parts.bce + parts.dice
    torch.testing.assert_close(parts.total, total)


def test_frozen_parts_get_no_gradient_and_trained_ones_all_do():
    model, frozen = make().train(), torch.nn.Conv2d(3, 6, 1).requires_grad_(False)
    text = TEXTS.clone()
    encoder, last = maps()
    encoder[0] = frozen(random(2, 3, 16, 12))
    camouflage_loss(model(encoder, last, text), wanted()).total.backward()
    assert frozen.weight.grad is None and text.grad is None
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert not silent
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_trained_parameters_are_a_small_share():
    """Beside Stable Diffusion's U-Net of 860 million, with ODISE's sizes."""
    with torch.device("meta"):
        model = CamouflageSegmenter((320, 640, 1280, 1280), 320)
    assert sum(p.numel() for p in model.parameters()) < 0.03 * 860e6


def test_state_dict_round_trip_and_no_chance():
    first, second = make(), make()
    torch.manual_seed(5)
    second.load_state_dict(first.state_dict())
    given = (*maps(), TEXTS)
    assert torch.equal(first(*given).last.mask_logits, second(*given).last.mask_logits)


@pytest.mark.parametrize("call, named", [
    (lambda: MSFF((), 4, 8, 4), "channels"),
    (lambda: MSFF((4,), 4, 10, 4), "groups=4"),
    (lambda: MSFF(CHANNELS, LAST, 8, 4)(maps()[0][:1], maps()[1]), "channels"),
    (lambda: MSFF(CHANNELS, LAST, 8, 4)(maps()[0], maps(3)[1]), "pictures"),
    (lambda: make()(*maps(), TEXTS[:, :5]), "text"),
    (lambda: make()(*maps(), TEXTS, [3, 2]), "synonyms"),
    (lambda: aggregate(random(2, 3), TEXTS), "visual"),
    (lambda: aggregate(random(2, 3, TEXT), TEXTS, random(2, 2, TEXT)), "overall"),
    (lambda: aggregate(random(2, 3, TEXT), TEXTS, remove_mean="no"), "remove_mean"),
    (lambda: CIN(8)(random(1, 7, 4, 4), random(1, 2, 8)), "features"),
    (lambda: CIN(8)(random(1, 8, 4, 4), random(1, 2, 7)), "instances"),
    (lambda: CIN(8, eps=0), "eps"),
    (lambda: make(cin=1), "cin"),
    (lambda: camouflage_loss(make()(*maps(), TEXTS), wanted(), alpha=-1), "alpha"),
])
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()
