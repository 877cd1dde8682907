"""The paper's facts: Pattention, growth, counts."""

import math

import pytest
import torch
import torch.nn.functional as F

from vtlib.multiscale import tokenformer as tf
from vtlib.teach import flops


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = tf.Pattention(8, 12, 16)
    torch.nn.init.normal_(layer.key_param_tokens)
    return layer


def test_against_loops(layer):
    x = torch.randn(2, 3, 8)
    out = layer(x)
    for b in range(2):
        for t in range(3):
            scores = [sum(x[b, t, c] * key[c] for c in range(8)) for key in layer.key_param_tokens]
            norm = math.sqrt(sum(s.item() ** 2 for s in scores))
            pairs = zip(scores, layer.value_param_tokens, strict=True)
            want = sum(F.gelu(score / norm * 4) * value for score, value in pairs)
            torch.testing.assert_close(out[b, t], want, atol=1e-5, rtol=1e-4)


def test_scale_and_order_of_pairs_do_not_matter(layer):
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(3.7 * x), layer(x), atol=1e-5, rtol=1e-4)
    order, shuffled = torch.randperm(16), tf.Pattention(8, 12, 16)
    shuffled.load_state_dict({k: v[order] for k, v in layer.state_dict().items()})
    torch.testing.assert_close(shuffled(x), layer(x), atol=1e-5, rtol=1e-4)


def test_normalised_scores_have_mean_square_one(layer):
    scores = torch.randn(4, 16)
    inner = layer.tau * F.normalize(scores, dim=-1)
    torch.testing.assert_close(inner.square().mean(-1), torch.ones(4))


def test_zero_input_gives_zero_not_nan(layer):
    x = torch.zeros(1, 2, 8, requires_grad=True)
    out = layer(x)
    assert torch.equal(out, torch.zeros(1, 2, 12))
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_softmax_weights_sum_to_n_and_huge_scores_survive(layer):
    soft = tf.Pattention(8, 12, 16, kind="softmax")
    soft.load_state_dict(layer.state_dict())
    weights = soft.weights(torch.randn(3, 8) * 1e4)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(-1), torch.full((3,), 16.0))


def test_mask_is_removal_except_for_tau(layer):
    x, visible = torch.randn(2, 5, 8), torch.rand(16) > 0.4
    masked = layer(x, mask=visible)
    few = layer(x, index=visible.nonzero()[:, 0])
    assert not torch.allclose(masked, few)          # tau: sqrt(16) against sqrt(number visible)
    layer_few = tf.Pattention(8, 12, int(visible.sum()))
    layer_few.load_state_dict({k: v[visible] for k, v in layer.state_dict().items()})
    torch.testing.assert_close(layer_few(x), few)
    layer_few.tau = layer.tau
    torch.testing.assert_close(layer_few(x), masked)


def test_growth_keeps_the_function(layer):
    x = torch.randn(2, 5, 8)
    before = layer(x)
    layer.grow(8)
    assert layer.num_tokens == 24 and layer.key_param_tokens.requires_grad
    assert torch.equal(layer.key_param_tokens[16:], torch.zeros(8, 8))
    assert layer.value_param_tokens[16:].abs().min() > 0
    assert (layer(x) - before).abs().max() < 1e-6


def test_recomputed_tau_random_keys_and_softmax_do_not(layer):
    x = torch.randn(2, 5, 8)
    for kind, kwargs in [
        ("l2_norm_gelu", dict(keep_tau=False)),
        ("l2_norm_gelu", dict(init="random")),
        ("softmax", {}),
    ]:
        other = tf.Pattention(8, 12, 16, kind=kind)
        other.load_state_dict(layer.state_dict())
        before = other(x)
        assert (other.grow(8, **kwargs)(x) - before).abs().max() > 1e-3, (kind, kwargs)


def new_gradients(layer, x):
    layer.zero_grad()
    layer(x).square().sum().backward()
    grads = layer.key_param_tokens.grad, layer.value_param_tokens.grad
    return tuple(grad[16:].abs().max() for grad in grads)


def test_gradients_after_growth(layer):
    x = torch.randn(2, 5, 8)
    keys, values = new_gradients(layer.grow(8), x)
    assert keys > 0 and values == 0           # keys move first, values from the next step on
    dead = tf.Pattention(8, 12, 16).grow(8, init="dead")
    optimizer = torch.optim.SGD(dead.parameters(), 0.1)
    for _ in range(3):
        keys, values = new_gradients(dead, x)
        assert keys == 0 and values == 0
        optimizer.step()


def test_grown_state_dict_loads_into_a_small_model(layer):
    x = torch.randn(2, 5, 8)
    official = {"key_param_tokens", "value_param_tokens"}
    assert set(layer.state_dict()) == official
    grown = layer.grow(8)
    assert set(grown.state_dict()) == official | {"tau"}
    for start in (16, 24, 3):
        other = tf.Pattention(8, 12, start)
        other.load_state_dict(grown.state_dict())
        torch.testing.assert_close(other(x), grown(x))
    recomputed = tf.Pattention(8, 12, 16).grow(8, keep_tau=False)
    assert "tau" not in recomputed.state_dict()


def test_growth_is_seeded():
    def grown():
        generator = torch.Generator("cpu").manual_seed(1)
        return tf.Pattention(4, 4, 3).grow(5, generator=generator).value_param_tokens[3:]

    want = grown()
    assert torch.equal(grown(), want)
    layer = tf.Pattention(4, 4, 3)
    with torch.device("meta"):                       # whatever the default device is
        layer.grow(5, generator=torch.Generator("cpu").manual_seed(1))
    assert torch.equal(layer.value_param_tokens[3:], want)


@pytest.mark.parametrize("build, layers", [
    (tf.tokenformer_150m, 113_246_208), (tf.tokenformer_124m, 84_934_656),
])
def test_official_parameter_counts(build, layers):
    with torch.device("meta"):
        model = build()
    assert sum(p.numel() for p in model.blocks.parameters()) == layers
    assert model.embedding.weight.numel() == 50304 * 768
    # LayerNorms have none, the head is tied
    assert sum(p.numel() for p in model.parameters()) == layers + 50304 * 768


@pytest.mark.parametrize("build, millions", [
    (tf.tokenformer_450m, 450),
    (tf.tokenformer_900m, 900),
    (tf.tokenformer_1_5b, 1500),
    (tf.tokenformer_354m, 354),
    (tf.tokenformer_757m, 757),
    (tf.tokenformer_1_4b, 1400),
])
def test_other_official_sizes_are_what_their_names_say(build, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in build().parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.07)


def test_parameters_per_layer():
    block = tf.TokenFormerBlock(24, 3, 20, 18, 40)
    assert sum(p.numel() for p in block.parameters()) == 2 * 24 * (3 * 20 + 18 + 40)
    layers = "attention.query", "attention.key", "attention.value", "attention.proj", "mlp"
    names = {f"{layer}.{kv}_param_tokens" for layer in layers for kv in ("key", "value")}
    assert set(block.state_dict()) == names


def test_rotary_turns_a_quarter_of_each_head():
    assert tf.TokenFormer(11, 48, 1, 3, num_tokens=4).blocks[0].attention.rotary_dim == 4
    vision = tf.TokenFormerViT(32, 8, embed_dim=48, num_layers=1, num_heads=3, num_tokens=4)
    assert vision.blocks[0].attention.rotary_dim == 0


def test_language_model_is_causal():
    model = tf.TokenFormer(11, 24, 2, 3, num_tokens=12).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ids = torch.randint(0, 11, (1, 8))
    other = ids.clone()
    other[0, 5] = (ids[0, 5] + 1) % 11
    a, b = model(ids), model(other)
    torch.testing.assert_close(a[:, :5], b[:, :5], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(a[:, 5:], b[:, 5:])


SIZES = dict(embed_dim=24, num_layers=2, num_heads=3, num_tokens=12)


@pytest.mark.parametrize("model, x", [
    (tf.TokenFormer(11, **SIZES), torch.randint(0, 11, (2, 8))),
    (tf.TokenFormerViT(32, 8, num_classes=5, **SIZES), torch.rand(2, 3, 32, 32)),
])
def test_growing_a_whole_model(model, x):
    model.eval()
    before = model(x)
    model.grow(6)
    assert (model(x) - before).abs().max() < 1e-5
    assert model.blocks[0].attention.query.num_tokens == 18
    assert model.blocks[1].mlp.num_tokens == 48 + 24


def test_growth_costs_parameter_attention_only():
    """Arithmetic grows linearly in n; the token-token part, 4 N^2 D a layer (2 per multiply-add),
    does not move."""
    def cost(n):
        with torch.device("meta"):
            return flops(tf.TokenFormerBlock(24, 3, n), torch.zeros(1, 10, 24))
    assert cost(64) - cost(32) == cost(96) - cost(64) == 2 * 2 * 10 * 24 * 8 * 32
    assert cost(32) - 32 * (cost(64) - cost(32)) // 32 == 4 * 10**2 * 24


def test_official_checkpoints_are_renumbered():
    model = tf.TokenFormer(11, 24, 3, 3, num_tokens=4)
    official = {f"sequential.{i}.word_embeddings.weight": model.embedding.weight for i in (0, 6)}
    for name, weight in model.state_dict().items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            official[f"sequential.{int(number) + 2}.{rest}"] = weight.half()
            official[f"sequential.{int(number) + 2}.attention.rotary_emb.inv_freq"] = torch.ones(2)
    converted = tf.convert_official({"module": official})
    own = model.state_dict()
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in own.items()}
    assert all(torch.allclose(converted[k], v, atol=1e-3) for k, v in own.items())
    with pytest.raises(ValueError, match="not a TokenFormer"):
        tf.convert_official({"layers.0.weight": torch.ones(1)})


def test_identity_keys_are_not_a_linear_layer():
    layer, weight = tf.Pattention(6, 4, 6), torch.randn(6, 4)
    layer.load_state_dict({"key_param_tokens": torch.eye(6), "value_param_tokens": weight})
    x = torch.randn(3, 6)
    assert not torch.allclose(layer(x), x @ weight, atol=0.1)


def test_identity_keys_and_their_mirror_are_a_linear_layer_behind_a_layer_norm():
    """All tokens have length sqrt(D) there, and GELU(z) - GELU(-z) = z."""
    weight, keys = torch.randn(6, 4), torch.eye(6)
    pairs = {
        "key_param_tokens": torch.cat([keys, -keys]),
        "value_param_tokens": torch.cat([weight, -weight]),
    }
    layer = tf.Pattention(6, 4, 12)
    layer.load_state_dict(pairs)
    x = torch.nn.functional.layer_norm(torch.randn(3, 6), (6,))
    assert torch.allclose(layer(x), x @ weight, atol=1e-3)                # the norm's own epsilon
    assert not torch.allclose(layer(2 * x), 2 * x @ weight, atol=0.1)


@pytest.mark.parametrize("call, words", [
    (lambda: tf.Pattention(4, 4, 0), "num_tokens=0"),
    (lambda: tf.Pattention(4, 4, 3, kind="relu"), "kind='relu'"),
    (lambda: tf.Pattention(4, 4, 3).grow(0), "num_new=0"),
    (lambda: tf.Pattention(4, 4, 3).grow(1, init="ones"), "init='ones'"),
    (lambda: tf.Pattention(4, 4, 3)(torch.rand(2, 5)), "in_dim=4"),
    (lambda: tf.Pattention(4, 4, 3)([1.0]), "x is a list"),
    (lambda: tf.Pattention(4, 4, 3)(torch.rand(2, 4).double()), "x is torch.float64"),
    (lambda: tf.Pattention(4, 4, 3, scale="1"), "scale='1'"),
    (lambda: tf.TokenFormer(11, 24, 2, 3, num_tokens=4, rotary=2), "rotary=2"),
    (lambda: tf.modified_softmax([1.0], 1.0), "scores is a list"),
    (lambda: tf.modified_softmax(torch.rand(2), "1"), "tau='1'"),
    (lambda: tf.Pattention(4, 4, 3)(torch.rand(2, 4), mask=1), "mask is a int"),
    (lambda: tf.Pattention(4, 4, 3)(torch.rand(2, 4), index=[0]), "index is a list"),
    (lambda: tf.Pattention(4, 4, 3).grow(1, generator=0), "generator is a int"),
    (lambda: tf.TokenFormer(11, 25, 2, 3), "embed_dim=25"),
    (lambda: tf.TokenFormer(11, **SIZES)(torch.zeros(3, dtype=torch.long)), "(B, T)"),
    (lambda: tf.TokenFormer(11, **SIZES)(torch.rand(2, 3)), "ids is torch.float32"),
    (lambda: tf.TokenFormer(11, **SIZES)([[1, 2]]), "ids is list"),
    (lambda: tf.TokenFormer(11, **SIZES)(torch.tensor([[1, 11]])), "ids[0, 1]=11 is no place"),
    (lambda: tf.TokenFormer(11, **SIZES)(torch.tensor([[-1, 2]])), "ids[0, 0]=-1 is no place"),
])
def test_bad_input(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
