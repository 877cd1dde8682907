"""Split Matching: two matchings against brute force, who gets a gradient, names at test time."""

from itertools import permutations
from pathlib import Path

import pytest
import torch

from tests.golden.runner import load_case
from vtlib.segmentation.losses import sample_points
from vtlib.segmentation.matching import assign, class_cost, match
from vtlib.segmentation.oneformer_loss import joint_loss
from vtlib.segmentation.oneformer_tasks import Targets
from vtlib.segmentation.split_matching import (
    MultiScaleEnhancement,
    Prediction,
    SplitMatching,
    candidate_cost,
    split_loss,
    split_match,
)
from vtlib.segmentation.split_matching_masks import Regions, pseudo_masks, region_means
from vtlib.segmentation.zero_shot import SeenTargets, annotate, feature_scenes, seen_targets
from vtlib.tokens.cosine import unit

CASE = Path(__file__).parents[1] / "golden" / "oneformer" / "matcher.json"
SIZES = dict(in_dim=8, text_dim=8, embed_dim=16, num_heads=2, hidden_dim=24, num_layers=2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(num_seen=4, num_candidates=3, **options):
    torch.manual_seed(0)
    return SplitMatching(**{**SIZES, **options}, num_seen=num_seen, num_candidates=num_candidates)


TEXT = torch.randn(5, 8, generator=seeded(9))
SEEN = [0, 1, 2]


@pytest.fixture
def scenes():
    return feature_scenes(3, seeded(), TEXT, size=8, noise=0.5)


@pytest.fixture
def known(scenes):
    annotation = annotate(scenes.labels, SEEN, 5)
    masks = pseudo_masks(scenes.features, annotation == 255, clusters=4)
    pairs = zip(region_means(scenes.features, masks), masks, strict=True)
    return seen_targets(annotation, 3), [Regions(*pair) for pair in pairs]


def nothing(kind, width, batch=3, side=8):
    """Targets of pictures that have none."""
    first = torch.zeros(0, dtype=torch.int64) if kind is SeenTargets else torch.zeros(0, width)
    return [kind(first, torch.zeros(0, side, side, dtype=torch.bool)) for _ in range(batch)]


def leaves(predictions):
    """The same predictions, cut off from the model: their gradients can be looked at."""
    return [Prediction(*(x.detach().requires_grad_() for x in each)) for each in predictions]


# ---------------------------------------------------------------------------------- two matchings
def test_no_query_of_one_group_gets_a_target_of_the_other(scenes, known):
    model = tiny()
    own, others = split_match(model, model(scenes.features)[-1], *known, TEXT[:3])
    for target, region, seen, candidate in zip(*known, own, others, strict=True):
        assert len(seen.query) == min(4, len(target.masks))
        assert len(candidate.query) == min(3, len(region.masks))
        assert (seen.query < 4).all() and (candidate.query >= 4).all()
        for query, chosen in (seen, candidate):
            assert len(query.unique()) == len(query) and len(chosen.unique()) == len(chosen)
    assert any(len(region.masks) > 3 for region in known[1])     # more than there are candidates
    assert any(len(region.masks) for region in known[1])


def test_the_two_know_nothing_of_each_other(scenes, known):
    model = tiny()
    prediction = model(scenes.features)[-1]
    own, others = split_match(model, prediction, *known, TEXT[:3])
    alone, _ = split_match(model, prediction, known[0], nothing(Regions, 8), TEXT[:3])
    _, apart = split_match(model, prediction, nothing(SeenTargets, 0), known[1], TEXT[:3])
    for first, second in ((own, alone), (others, apart)):
        for one, two in zip(first, second, strict=True):
            assert torch.equal(one.query, two.query) and torch.equal(one.target, two.target)


@pytest.mark.parametrize("queries, targets", [(5, 3), (6, 6), (3, 5)])
def test_candidates_equal_brute_force(queries, targets):
    drawn, model = seeded(queries), tiny(1, queries)
    prediction = Prediction(
        unit(torch.randn(1, 1 + queries, 8, generator=drawn)),
        torch.randn(1, 1 + queries, 4, 4, generator=drawn),
    )
    masks = torch.rand(targets, 4, 4, generator=drawn) < 0.4
    regions = Regions(unit(torch.randn(targets, 8, generator=drawn)), masks)
    _, (found,) = split_match(
        model, prediction, nothing(SeenTargets, 0, 1, 4), [regions], TEXT[:3]
    )
    cost = torch.empty(queries, targets)
    for q in range(queries):
        p = prediction.mask_logits[0, 1 + q].sigmoid().flatten()
        for t in range(targets):
            m = masks[t].flatten().float()
            bce = -(m * p.log() + (1 - m) * (1 - p).log()).mean()
            dice = 1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)
            cosine = prediction.embeddings[0, 1 + q] @ regions.embeddings[t]
            cost[q, t] = 2 * (1 - cosine) + 5 * bce + 5 * dice
    made = candidate_cost(
        prediction.embeddings[0, 1:], prediction.mask_logits[0, 1:].flatten(1),
        regions.embeddings, masks.flatten(1).float(),
    )
    torch.testing.assert_close(made, cost)
    small = min(queries, targets)
    wide = cost if queries <= targets else cost.T
    best = min(
        sum(float(wide[i, j]) for i, j in enumerate(order))
        for order in permutations(range(wide.shape[1]), small)
    )
    assert len(found.query) == small
    assert float(cost[found.query - 1, found.target].sum()) == pytest.approx(best, abs=1e-4)
    if targets <= queries:                 # what every query pays for a target changes nothing
        shifted = assign(cost + 3 * torch.rand(targets, generator=drawn))
        assert torch.equal(shifted.query, found.query - 1)
        assert torch.equal(shifted.target, found.target)


def test_mask_costs_are_those_of_the_official_matcher():
    case = load_case(CASE)
    t, c = case.tensors, case.config
    points = t["points"][None]
    logits, masks = (
        sample_points(t[name][None], points)[0] for name in ("mask_logits", "target_masks")
    )
    classes = class_cost(t["class_logits"], t["target_labels"].long())
    unitary = torch.ones(len(logits), 1), torch.ones(len(masks), 1)             # 1 - cos is 0
    weights = c["cost_class"], c["cost_mask"], c["cost_dice"]
    got = candidate_cost(unitary[0], logits, unitary[1], masks, weights)
    torch.testing.assert_close(
        got + c["cost_class"] * classes, t["out.cost"] if "out.cost" in t else t["cost"],
        atol=1e-5, rtol=1e-5,
    )


def test_queries_of_a_group_may_change_places(scenes, known):
    """Of pseudo masks that differ: two window sizes may find the same one."""
    model = tiny()
    known = known[0], [Regions(r.embeddings[: len(m)], m) for r, m in (
        (r, r.masks.unique(dim=0)) for r in known[1]
    )]
    prediction = model(scenes.features)[-1]
    order = torch.tensor([2, 0, 3, 1, 6, 4, 5])
    moved = Prediction(*(x[:, order] for x in prediction))
    for pairs, again in zip(
        split_match(model, prediction, *known, TEXT[:3]),
        split_match(model, moved, *known, TEXT[:3]),
        strict=True,
    ):
        for (query, target), (place, chosen) in zip(pairs, again, strict=True):
            first = dict(zip(query.tolist(), target.tolist(), strict=True))
            second = dict(zip(order[place].tolist(), chosen.tolist(), strict=True))
            assert first == second


# ---------------------------------------------------------------------------------------- the loss
def test_unmatched_candidates_have_no_gradient(scenes, known):
    model = tiny(4, 9)
    (prediction,) = leaves(model(scenes.features)[-1:])
    _, others = split_match(model, prediction, *known, TEXT[:3])
    split_loss(model, [prediction], *known, TEXT[:3]).total.backward()
    matched = torch.zeros(3, 13, dtype=torch.bool)
    for b, (query, _) in enumerate(others):
        matched[b, query] = True
    free = ~matched
    free[:, :4] = False
    assert free.any() and matched.any()
    for x in prediction:
        assert not x.grad[free].any() and (x.grad[matched].flatten(1) != 0).any(1).all()
    assert prediction.embeddings.grad[:, :4].any(-1).all()    # seen ones: a class or "no object"


def test_the_ablation_teaches_them_no_object(scenes, known):
    model = tiny(4, 9)
    (prediction,) = leaves(model(scenes.features)[-1:])
    _, others = split_match(model, prediction, *known, TEXT[:3])
    split_loss(model, [prediction], *known, TEXT[:3], background=True).total.backward()
    free = torch.ones(3, 13, dtype=torch.bool)
    for b, (query, _) in enumerate(others):
        free[b, query] = False
    assert prediction.embeddings.grad[free].any(-1).all()
    assert not prediction.mask_logits.grad[:, 4:][free[:, 4:]].any()


def test_parts_add_up(scenes, known):
    model = tiny()
    predictions = model(scenes.features)
    got = split_loss(model, predictions, *known, TEXT[:3], candidates=0.3)
    want = 2 * got.classes + 5 * got.bce + 5 * got.dice
    want = want + 0.3 * (2 * got.cosine + 5 * got.candidate_bce + 5 * got.candidate_dice)
    torch.testing.assert_close(got.total, want)
    layers = [split_loss(model, [each], *known, TEXT[:3]).total for each in predictions]
    torch.testing.assert_close(
        torch.stack(layers).sum(), split_loss(model, predictions, *known, TEXT[:3]).total
    )


def test_without_candidates_it_is_the_ordinary_segmenter(scenes, known):
    """The loss of OneFormer's predictions, with the same class logits."""
    model = tiny(6, 0)
    predictions = model(scenes.features)
    got = split_loss(model, predictions, known[0], known[1], TEXT[:3])
    pairs = [(model.class_logits(c, TEXT[:3]), m) for c, m in predictions]
    targets = [Targets(*t, torch.zeros(8, 8)) for t in known[0]]
    want = joint_loss(pairs, targets, num_points=None)
    torch.testing.assert_close(got.total, want.total)
    assert got.cosine == got.candidate_bce == got.candidate_dice == 0
    own, others = split_match(model, predictions[-1], *known, TEXT[:3])
    ordinary = match(*pairs[-1], [t.classes for t in targets], [t.masks for t in targets],
                     num_points=None)
    assert all(torch.equal(a.query, b.query) for a, b in zip(own, ordinary, strict=True))
    assert not sum(len(query) for query, _ in others)


def test_no_annotated_class_leaves_the_candidates_loss(scenes, known):
    model, none = tiny(), nothing(SeenTargets, 0)
    (prediction,) = leaves(model(scenes.features)[-1:])
    got = split_loss(model, [prediction], none, known[1], TEXT[:3])
    assert got.bce == got.dice == 0 and got.candidate_bce > 0
    got.total.backward()
    assert not prediction.mask_logits.grad[:, :4].any() and prediction.mask_logits.grad.any()


def test_no_pseudo_mask_leaves_the_seen_loss(scenes, known):
    model, none = tiny(), nothing(Regions, 8)
    (prediction,) = leaves(model(scenes.features)[-1:])
    got = split_loss(model, [prediction], known[0], none, TEXT[:3])
    assert got.cosine == got.candidate_bce == got.candidate_dice == 0 and got.bce > 0
    got.total.backward()
    assert not prediction.embeddings.grad[:, 4:].any()
    both = split_loss(model, [prediction], nothing(SeenTargets, 0), none, TEXT[:3])
    assert both.total.isfinite() and both.classes > 0


def test_every_weight_gets_a_finite_gradient(scenes, known):
    model = tiny()
    split_loss(model, model(scenes.features), *known, TEXT[:3]).total.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        first_conv = name.startswith("enhance") and name.split(".")[3] == "0"
        assert bool(weight.grad.any()) != first_conv, name    # behind a convolution of zeros


# --------------------------------------------------------------------------------------- the model
def test_enhancement_starts_from_its_input_and_sees_further():
    torch.manual_seed(0)
    net, x = MultiScaleEnhancement(6), torch.randn(2, 6, 9, 7)
    assert torch.equal(net(x), x)
    for branch in net.branches:
        torch.nn.init.normal_(branch[2].weight)
    moved = x.clone()
    moved[:, :, 0, 0] += 1
    touched = (net(moved) - net(x)).abs().amax(dim=(0, 1)) > 1e-6
    assert touched[4, 4] and net(x).shape == x.shape
    alone = MultiScaleEnhancement(6, (1,))
    torch.nn.init.normal_(alone.branches[0][2].weight)
    assert not ((alone(moved) - alone(x)).abs().amax(dim=(0, 1)) > 1e-6)[4, 4]


def test_forward_shapes_and_unit_embeddings(scenes):
    predictions = tiny()(scenes.features)
    assert len(predictions) == 3                                    # before, and after each layer
    for embeddings, masks in predictions:
        assert embeddings.shape == (3, 7, 8) and masks.shape == (3, 7, 8, 8)
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3, 7))


def test_a_query_looks_inside_its_mask_only(scenes):
    """One layer, masks that cover the left half: features on the right don't reach the queries."""
    model = tiny(num_layers=1, scales=())
    left = torch.full((1, 7, 8, 8), -1.0)
    left[..., :4] = 1
    first = model.predict
    shown = []

    def predict(queries, maps):
        shown.append(queries)
        found = first(queries, maps)
        return found._replace(mask_logits=left) if len(shown) % 2 else found

    model.predict = predict
    moved = scenes.features[:1].clone()
    moved[:, :, 4:] += 1
    model(scenes.features[:1])
    model(moved)
    torch.testing.assert_close(shown[1], shown[3])
    moved[:, :, :4] += torch.randn(8)
    model(moved)
    assert not torch.allclose(shown[1], shown[5])


def test_scores_equal_a_loop(scenes):
    model = tiny()
    with torch.no_grad():
        c, m = prediction = model(scenes.features)[-1]
        got = model.scores(prediction, TEXT)
    want = torch.zeros(3, 5, 8, 8)
    none = unit(model.no_object.detach())
    for b in range(3):
        for i in range(7):
            cosines = [c[b, i] @ t for t in unit(TEXT)] + ([c[b, i] @ none] if i < 4 else [])
            p = (torch.stack(cosines) / 0.07).softmax(0)[:5]
            want[b] += p[:, None, None] * m[b, i].sigmoid()
    torch.testing.assert_close(got, want)
    with_none = model.scores(prediction, TEXT, background=True)
    assert (with_none < got).all()


def test_text_that_training_never_saw_names_a_candidate():
    """A candidate with an unseen class's embedding gets that name, once the name is asked for."""
    model = tiny(1, 1, tau=0.05)
    embeddings = torch.stack([unit(model.no_object.detach()), unit(TEXT[4])])[None]
    masks = torch.full((1, 2, 4, 4), -9.0)
    masks[:, 1, :2] = 9
    prediction = Prediction(embeddings, masks)
    assert (model.scores(prediction, TEXT).argmax(1)[0, :2] == 4).all()
    assert (model.scores(prediction, TEXT[:3]).argmax(1) < 3).all()


def test_calibration_is_a_switch_and_off(scenes):
    model = tiny()
    prediction = model(scenes.features)[-1]
    plain = model.scores(prediction, TEXT)
    assert torch.equal(plain, model.scores(prediction, TEXT, SEEN))
    shifted = model.scores(prediction, TEXT, SEEN, calibration=0.25)
    torch.testing.assert_close(shifted[:, :3], plain[:, :3] - 0.25)
    assert torch.equal(shifted[:, 3:], plain[:, 3:])


def test_state_dict_round_trip(scenes):
    model, other = tiny(), SplitMatching(**SIZES, num_seen=4, num_candidates=3)
    other.load_state_dict(model.state_dict())
    first, again = (net(scenes.features)[-1] for net in (model, other))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_default_widths():
    """Mask2Former's decoder; the paper's own numbers are not known."""
    with torch.device("meta"):
        model = SplitMatching()
        found = model(torch.empty(1, 32, 24, 512))[-1]
    assert len(model.cross_attention) == 9 and found.embeddings.shape == (1, 100, 512)
    assert found.mask_logits.shape == (1, 100, 32, 24)
    layer = 2 * (4 * 256**2 + 4 * 256) + 2 * 256 * 2048 + 2048 + 256 + 3 * 2 * 256
    heads = (256 + 1) * 256 + (256 + 1) * 512 + 3 * (256 + 1) * 256 + 512
    branch = 9 * 256**2 + 256 + 256**2 + 256
    others = (512 + 1) * 256 + 2 * 256 + 2 * 100 * 256 + 2 * 256
    assert sum(p.numel() for p in model.parameters()) == 9 * layer + heads + 3 * branch + others


@pytest.mark.parametrize("change, said", [
    (dict(num_seen=0), "num_seen"), (dict(num_candidates=-1), "num_candidates"),
    (dict(tau=0), "tau"), (dict(num_heads=3), "num_heads"), (dict(scales=(0,)), "scales"),
    (dict(num_layers=1.5), "num_layers"), (dict(in_dim=0), "in_dim"),
])
def test_bad_settings(change, said):
    with pytest.raises(ValueError, match=said):
        SplitMatching(**{**SIZES, **change})


@pytest.mark.parametrize("call, said", [
    (lambda m, p, t, r: m(torch.zeros(2, 8, 8, 5)), "features"),
    (lambda m, p, t, r: m(torch.zeros(2, 8, 8)), "features"),
    (lambda m, p, t, r: m(torch.zeros(2, 8, 8, 8, dtype=torch.int64)), "features"),
    (lambda m, p, t, r: split_loss(m, [], t, r, TEXT), "predictions"),
    (lambda m, p, t, r: split_loss(m, p, t[:2], r, TEXT), "targets"),
    (lambda m, p, t, r: split_loss(m, p, t, [None] * 3, TEXT), "regions"),
    (lambda m, p, t, r: split_loss(m, p, t, r, TEXT[:, :5]), "text"),
    (lambda m, p, t, r: split_loss(m, p, t, r, TEXT[:0]), "text"),
    (lambda m, p, t, r: split_loss(m, p, t, r, TEXT[:1]), "labels"),      # a class out of range
    (lambda m, p, t, r: split_loss(m, p, t, r, TEXT, (1, 2)), "weights"),
    (lambda m, p, t, r: split_loss(m, p, t, r, TEXT, candidates=-1), "candidates"),
    (lambda m, p, t, r: split_loss(
        m, p, [e._replace(labels=e.labels.float()) for e in t], r, TEXT), "labels"),
    (lambda m, p, t, r: split_loss(
        m, p, [e._replace(masks=e.masks[:, :4]) for e in t], r, TEXT), r"targets\[0\] masks"),
    (lambda m, p, t, r: split_loss(
        m, p, t, [e._replace(masks=e.masks[:1]) for e in r], TEXT), r"regions\[\d\]"),
    (lambda m, p, t, r: split_loss(
        m, p, t, [e._replace(embeddings=e.embeddings[:, :4]) for e in r], TEXT), "regions"),
    (lambda m, p, t, r: m.scores(p[-1], TEXT, calibration=0.1), "seen"),
    (lambda m, p, t, r: m.scores(p[-1], TEXT, [7]), "seen"),
    (lambda m, p, t, r: m.scores(p[-1], TEXT, [0], calibration=-1), "calibration"),
    (lambda m, p, t, r: m.scores(p[-1], TEXT, background="no"), "background"),
    (lambda m, p, t, r: candidate_cost(
        p[-1][0], p[-1][1].flatten(2), TEXT[None, :, :4], torch.zeros(1, 5, 64)), "regions"),
])
def test_bad_input(scenes, known, call, said):
    model = tiny()
    with pytest.raises(ValueError, match=said):
        call(model, model(scenes.features), *known)
