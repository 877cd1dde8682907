"""The shared decoder: what predicts what, conditions and their dropping, the cache, guidance, and
that it learns."""

import pytest
import torch
import torch.nn.functional as F

from tests.wrong import raw_errors
from vtlib.generation import AutoregressiveModel, guidance_steps, guide

SIZES = dict(embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, hidden_dim=24)
K, L = 11, 6
CLASSES = torch.tensor([0, 2, -1])


def make(sharp=1.0, **options):
    """A small untrained model in eval mode. sharp: its head's weights are that much larger."""
    torch.manual_seed(0)
    model = AutoregressiveModel(K, L, **SIZES | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 5
        model.no_condition *= 20
        model.head.weight *= sharp
    return model


@pytest.fixture
def by_class():
    return make(num_classes=3)


@pytest.fixture
def by_caption():
    return make(condition_dim=5)


@pytest.fixture
def ids():
    return torch.randint(0, K, (3, L), generator=torch.Generator().manual_seed(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------- what is predicted
def test_a_token_is_predicted_from_those_before_it(by_class, ids):
    want = by_class(ids, CLASSES)
    assert want.shape == (3, L, K)
    for i in range(L):
        other = ids.clone()
        other[:, i] = (other[:, i] + 1) % K
        change = (by_class(other, CLASSES) - want).abs().amax(dim=(0, 2))
        assert (change[: i + 1] == 0).all() and (change[i + 1 :] > 0).all()


def test_fewer_tokens_give_the_same_logits(by_class, ids):
    torch.testing.assert_close(by_class(ids[:, :3], CLASSES), by_class(ids, CLASSES)[:, :3])


def test_loss_is_the_mean_cross_entropy(by_class, ids):
    logits = by_class(ids, CLASSES)
    want = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    torch.testing.assert_close(by_class.loss(ids, CLASSES), want)
    places = by_class.position_losses(ids, CLASSES)
    assert places.shape == (L,)
    torch.testing.assert_close(places.mean(), want)
    torch.testing.assert_close(places[2], F.cross_entropy(logits[:, 2], ids[:, 2]))


def test_the_place_is_told(ids):
    """Equal tokens before two places: only the learned vectors and the length tell them apart."""
    model = make()
    same = torch.full((1, L), 3)
    with torch.no_grad():
        model.place.zero_()
        still = model(same)
        model.place[4] += 1
    change = (model(same) - still).abs().amax(dim=(0, 2))
    assert (change[:4] == 0).all() and (change[4:] > 0).all()


# --------------------------------------------------------------------------------------- conditions
def test_conditions_matter_and_minus_one_is_none(by_class, ids):
    out = by_class(ids, torch.tensor([0, 2, -1]))
    assert not torch.allclose(out, by_class(ids, torch.tensor([1, 1, 1])))
    torch.testing.assert_close(out[2], by_class(ids)[2])
    everyone = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(by_class(ids, CLASSES, everyone), by_class(ids))


def test_captions_of_ids_and_of_embeddings(by_class, by_caption, ids):
    words = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    assert by_class(ids, words).shape == (3, L, K)
    one = by_class(ids, torch.tensor([[0, 1], [2, 1], [2, 2]]))
    torch.testing.assert_close(one[0], by_class(ids, words)[0])
    caption = torch.randn(3, 4, 5)
    out = by_caption(ids, caption)
    assert out.shape == (3, L, K)
    other = torch.cat([torch.randn(3, 1, 5), caption[:, 1:]], dim=1)
    assert not torch.allclose(out, by_caption(ids, other))


def test_dropped_conditions_in_training_only(by_class, ids):
    by_class.condition_dropout = 1.0
    want = by_class.position_losses(ids, CLASSES).mean()
    torch.testing.assert_close(by_class.loss(ids, CLASSES).detach(), want)
    by_class.train()
    torch.testing.assert_close(by_class.loss(ids, CLASSES), by_class.loss(ids))
    assert not torch.allclose(by_class.loss(ids), want)


def test_how_often_a_condition_is_dropped():
    model, seen = make(num_classes=3, condition_dropout=0.25).train(), []
    model.prefix = lambda condition, batch, dropped: seen.append(dropped) or (
        AutoregressiveModel.prefix(model, condition, batch, dropped)
    )
    ids = torch.zeros(2000, 1, dtype=torch.long)
    for seed in (0, 0, 1):
        model.loss(ids, torch.zeros(2000, dtype=torch.long), seeded(seed))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert abs(seen[0].float().mean() - 0.25) < 0.03


def test_who_gets_a_gradient(by_class, ids):
    by_class.loss(ids, torch.tensor([0, 0, 0])).backward()
    assert by_class.condition.weight.grad[0].abs().sum() > 0
    assert (by_class.condition.weight.grad[1:] == 0).all()
    assert (by_class.no_condition.grad == 0).all()
    by_class.zero_grad()
    by_class.loss(ids).backward()
    assert by_class.no_condition.grad.abs().sum() > 0 and by_class.condition.weight.grad is None


# --------------------------------------------------------------------------------------- generation
@pytest.mark.parametrize("options", [
    dict(),
    dict(guidance=3.0),
    dict(guidance=3.0, schedule=guidance_steps(0.5)),
    dict(prompt=torch.tensor([[1, 2], [3, 4], [5, 6]]), top_k=4, top_p=0.9, temperature=0.7),
])
def test_the_cache_changes_nothing(by_class, options):
    call = dict(condition=CLASSES, **options)
    with_cache = by_class.generate(**call, generator=seeded())
    without = by_class.generate(**call, generator=seeded(), cache=False)
    assert with_cache.shape == (3, L) and with_cache.dtype == torch.long
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("many", [1, 4])
def test_logits_with_and_without_cache(by_caption, ids, many):
    prefix = by_caption.prefix(torch.randn(3, many, 5), 3)
    cache = None
    for i in range(L):
        got, cache = by_caption._next(prefix, ids[:, :i], cache)
        want, _ = by_caption._next(prefix, ids[:, :i], None)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert cache.lengths == [many + L - 1] * 2


def test_generation_asks_what_forward_says(by_class):
    greedy = by_class.generate(CLASSES, temperature=0)
    assert torch.equal(by_class(greedy, CLASSES).argmax(-1), greedy)


def test_generation_with_guidance_asks_what_forward_says(by_class):
    greedy = by_class.generate(CLASSES, temperature=0, guidance=4.0)
    logits = guide(by_class(greedy, CLASSES), by_class(greedy), 4.0)
    assert torch.equal(logits.argmax(-1), greedy)
    late = by_class.generate(CLASSES, temperature=0, guidance=4.0, schedule=guidance_steps(0.5))
    told, untold = by_class(late, CLASSES), by_class(late)
    mixed = torch.cat([told[:, :3], guide(told, untold, 4.0)[:, 3:]], dim=1)
    assert torch.equal(mixed.argmax(-1), late)


def test_prompts_stay_and_lengths_are_kept(by_class, ids):
    out = by_class.generate(CLASSES, num_tokens=5, prompt=ids[:, :2], generator=seeded())
    assert out.shape == (3, 5) and torch.equal(out[:, :2], ids[:, :2])
    assert by_class.generate(batch=4).shape == (4, L)
    assert by_class.generate().shape == (1, L)


def test_the_generator_decides(by_class):
    before = torch.get_rng_state()
    draws = [by_class.generate(batch=8, generator=seeded(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_generation_under_autocast(by_class):
    with torch.autocast("cpu", torch.bfloat16):
        out = by_class.generate(CLASSES, guidance=2.0, generator=seeded())
    assert out.shape == (3, L)


# --------------------------------------------------------------------------------------- it learns
def test_features(by_class, ids):
    out = by_class.features(ids)
    assert out.shape == (3, 16) and not out.requires_grad
    seen = {}
    by_class.decoder.layers[1].register_forward_pre_hook(
        lambda _, args: seen.__setitem__("x", args[0])
    )
    by_class(ids)
    torch.testing.assert_close(out, seen["x"].mean(dim=1))
    assert torch.equal(out, by_class.features(ids, 1))
    assert not torch.equal(out, by_class.features(ids, 2))


def test_it_learns_a_rule_and_a_condition():
    """Class c: the sequence c, c + 1, c + 2, ... A hundred steps are enough."""
    torch.manual_seed(0)
    model = AutoregressiveModel(4, 5, num_classes=4, embed_dim=32, num_layers=1, hidden_dim=32)
    classes = torch.arange(4).repeat(4)
    ids = (classes[:, None] + torch.arange(5)) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        model.loss(ids, classes, seeded()).backward()
        optimizer.step()
    model.eval()
    assert model.position_losses(ids, classes).max() < 0.1
    # without the class the first token can be any of four, and the others follow from it
    alone = model.position_losses(ids)
    assert alone[0] > 1 and alone[1:].max() < 0.3
    assert torch.equal(model.generate(classes, top_k=1), ids)


def test_sizes():
    model = AutoregressiveModel(1024, 64, num_classes=9, embed_dim=96, num_layers=3, num_heads=4)
    assert model.decoder.layers[0].mlp.gate_proj.out_features == 256
    layers = 3 * (4 * 96 * 96 + 3 * 96 * 256 + 2 * 96)
    rest = 2 * 1024 * 96 + 64 * 96 + 9 * 96 + 96 + 96
    assert sum(p.numel() for p in model.parameters()) == layers + rest


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("options, told", [
    (dict(vocab_size=0), "vocab_size=0"),
    (dict(num_tokens=0), "num_tokens=0"),
    (dict(num_classes=2, condition_dim=3), "need one at most"),
    (dict(num_classes=0), "num_classes=0"),
    (dict(condition_dim=0), "condition_dim=0"),
    (dict(condition_dropout=1.5), "condition_dropout=1.5"),
    (dict(embed_dim=15), "embed_dim=15"),
])
def test_bad_sizes_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        AutoregressiveModel(**dict(vocab_size=K, num_tokens=L) | options)


@pytest.mark.parametrize("call, told", [
    (lambda m, x: m(x + K), "must lie in 0 ... 10"),
    (lambda m, x: m(torch.zeros(1, L + 1, dtype=torch.long)), "1 ... 6 tokens"),
    (lambda m, x: m(x[:, :0]), "at least one picture"),
    (lambda m, x: m(x.float()), "torch.int64"),
    (lambda m, x: m(x, torch.tensor([0, 3, 0])), "must lie in -1 ... 2"),
    (lambda m, x: m(x, torch.tensor([0, 1])), "condition has 2 rows: needs 3"),
    (lambda m, x: m(x, torch.randn(3, 2, 5)), "condition is torch.float32"),
    (lambda m, x: m.generate(guidance=2.0), "guidance=2.0 needs a condition"),
    (lambda m, x: m.generate(CLASSES, batch=2), "disagree"),
    (lambda m, x: m.generate(CLASSES, prompt=x), "nothing is left"),
    (lambda m, x: m.generate(CLASSES, schedule=0.18), "schedule"),
    (lambda m, x: m.generate(num_tokens=7), "num_tokens=7"),
    (lambda m, x: m.generate(top_k=12), "top_k=12"),
    (lambda m, x: m.features(x, 3), "layer=3"),
])
def test_bad_input_is_named(by_class, ids, call, told):
    with pytest.raises(ValueError, match=told):
        call(by_class, ids)


def test_a_condition_for_a_model_without():
    with pytest.raises(ValueError, match="neither num_classes nor condition_dim"):
        make()(torch.zeros(1, L, dtype=torch.long), torch.tensor([0]))


def test_no_error_from_deep_inside(by_class, by_caption, ids):
    drop = torch.zeros(3, dtype=torch.bool)
    calls = [
        (by_class, dict(indices=ids, condition=CLASSES)),
        (by_caption, dict(indices=ids, condition=torch.randn(3, 2, 5))),
        (by_class.loss, dict(indices=ids, condition=CLASSES, generator=seeded())),
        (by_class.features, dict(indices=ids, layer=1)),
        (by_class.generate, dict(
            condition=CLASSES, num_tokens=4, temperature=1.0, top_k=2, top_p=0.5, guidance=2.0,
            schedule=None, prompt=ids[:, :2], batch=3, generator=seeded(), cache=True,
        )),
    ]
    for function, fits in calls:
        assert raw_errors(function, fits, part=True) == []
    assert by_class(ids, CLASSES, drop).shape == (3, L, K)
