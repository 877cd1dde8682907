"""HieraTok: one map pooled to scales, a mask from coarse to fine, no leak, the plain tokenizer at
one scale, pictures of the coarse scales."""

import pytest
import torch
import torch.nn.functional as F

from tests.wrong import raw_errors
from vtlib.nn import sincos_2d
from vtlib.quantize import KLBottleneck
from vtlib.tokenizers import Autoencoder, HieraTok, ViTDecoder, ViTEncoder, hieratok, roughness
from vtlib.tokenizers.hieratok import (
    ScaleDecoder,
    attended_pairs,
    pool_scales,
    scale_causal_mask,
    scale_index,
    scale_positions,
    shrunk,
    token_counts,
)

PAPER_SCALES, SCALES = (1, 2, 4, 8, 16), (1, 2, 4)
SIZES = dict(patch_size=4, latent_dim=3, embed_dim=16, encoder_layers=1, decoder_layers=2)
SIZES |= dict(num_heads=2)


def make(scales=SCALES, **options):
    """A small untrained one in eval mode, with weights large enough to tell tokens apart."""
    torch.manual_seed(0)
    model = HieraTok(scales, **SIZES | options).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.dim() > 1:
                parameter *= 2
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 16, 16, generator=seeded())


@pytest.fixture(scope="module")
def codes():
    return torch.randn(2, 4, 4, 3, generator=seeded(1))


# -------------------------------------------------------------------------------------- the scales
def test_counts_and_pairs_of_the_card():
    assert sum(token_counts(PAPER_SCALES)) == 341
    assert attended_pairs(PAPER_SCALES) == 93093
    assert attended_pairs(PAPER_SCALES, "full") == 116281
    assert attended_pairs((16,)) == attended_pairs((16,), "full") == 65536


@pytest.mark.parametrize("scales", [PAPER_SCALES, (1, 3, 5), (2,), ((1, 2), (2, 4), (3, 8))])
def test_the_mask_is_block_lower_triangular(scales):
    mask, index = scale_causal_mask(scales), scale_index(scales)
    counts = token_counts(scales)
    assert mask.shape == (sum(counts),) * 2 and mask.sum() == attended_pairs(scales)
    blocks = [row.split(counts, dim=1) for row in mask.split(counts)]
    for i, row in enumerate(blocks):
        for j, block in enumerate(row):
            assert block.all() if j <= i else not block.any()
    assert torch.equal(index.bincount(), torch.tensor(counts)) and (index.diff() >= 0).all()
    assert mask[-1].all() and mask[0].sum() == counts[0]


def test_a_parent_is_the_mean_of_its_children(codes):
    one, two, four = (part.unflatten(1, (side, side)) for part, side in zip(
        pool_scales(codes, SCALES).split(token_counts(SCALES), dim=1), SCALES, strict=True
    ))
    assert torch.equal(four, codes)
    children = two.reshape(2, 1, 2, 1, 2, 3).mean(dim=(2, 4))
    torch.testing.assert_close(one, children)
    torch.testing.assert_close(two, four.reshape(2, 2, 2, 2, 2, 3).mean(dim=(2, 4)))


def test_pooling_before_or_after_a_linear_map_is_the_same(codes):
    linear = torch.nn.Linear(3, 5)
    torch.testing.assert_close(
        linear(pool_scales(codes, SCALES)), pool_scales(linear(codes), SCALES)
    )


def test_scales_that_do_not_divide_and_maps_that_are_not_square():
    x = torch.randn(1, 3, 6, 2, generator=seeded())
    got = pool_scales(x, ((1, 2), (2, 4), (3, 6)))
    assert got.shape == (1, 2 + 8 + 18, 2)
    torch.testing.assert_close(got[0, 0], x[0, :, :3].mean(dim=(0, 1)))
    want = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (2, 4)).flatten(2).mT
    torch.testing.assert_close(got[:, 2:10], want)


def test_positions_are_the_middles_of_cells():
    table = scale_positions((1, 2, 4), 8)
    assert torch.equal(table[5:], sincos_2d((4, 4), 8))
    # the one cell of scale 1 has its middle at row 1.5, column 1.5; frequencies 1 and 1/100
    half = torch.tensor([1.5, 0.015])
    torch.testing.assert_close(table[0], torch.cat([half.sin(), half.cos()]).repeat(2))
    # the second cell of scale 2 lies in row 0.5 and column 2.5
    rows, columns = torch.tensor([0.5, 0.005]), torch.tensor([2.5, 0.025])
    want = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()])
    torch.testing.assert_close(table[2], want)


# ----------------------------------------------------------------------------- from coarse to fine
def changed_scales(model, tokens, scale):
    """Which scales of the decoder's output change when tokens of one scale do."""
    index = scale_index(model.scales)
    other = tokens.clone()
    other[:, index == scale] += torch.randn(2, int((index == scale).sum()), 3, generator=seeded(2))
    change = (model.decoder(other) - model.decoder(tokens)).abs().amax(dim=(0, 2))
    return [bool(change[index == k].max() > 0) for k in range(len(model.scales))]


def test_nothing_flows_from_fine_to_coarse(codes):
    """The pooled tokens are held fixed: a change of tokens, not of the latents below them."""
    model = make()
    tokens = model.tokens(codes)
    assert changed_scales(model, tokens, 2) == [False, False, True]
    assert changed_scales(model, tokens, 1) == [False, True, True]
    assert changed_scales(model, tokens, 0) == [True, True, True]


def test_without_the_mask_everything_flows(codes):
    model = make(mask="full")
    assert changed_scales(model, model.tokens(codes), 2) == [True, True, True]


def test_no_gradient_from_coarse_outputs_to_fine_tokens(codes):
    index, seen = scale_index(SCALES), {}
    for mask in ("causal", "full"):
        model = make(mask=mask)
        tokens = model.tokens(codes).requires_grad_()
        model.decoder(tokens)[:, index == 1].square().sum().backward()
        seen[mask] = [float(tokens.grad[:, index == k].abs().max()) for k in range(3)]
    assert seen["causal"][0] > 0 and seen["causal"][1] > 0 and seen["causal"][2] == 0
    assert min(seen["full"]) > 0


def test_a_latent_reaches_every_scale_through_pooling(codes):
    model, other = make(), codes.clone()
    other[:, 3, 3] += 1
    index = scale_index(SCALES)
    change = (model.tokens(other) - model.tokens(codes)).abs().amax(dim=(0, 2))
    assert [int((change[index == k] > 0).sum()) for k in range(3)] == [1, 1, 1]


def test_weights_of_attention_obey_the_mask(codes):
    model = make()
    out, attns = model.decoder(model.tokens(codes), return_attn=True)
    torch.testing.assert_close(out, model.decoder(model.tokens(codes)))
    assert len(attns) == 2 and attns[0].shape == (2, 2, 21, 21)
    assert ((attns[1] > 0) == scale_causal_mask(SCALES)).all()


def test_the_scale_is_told(codes):
    """A map with two equal scales in it: only the scale embedding tells their tokens apart."""
    model = make(((4, 4), (4, 4)), mask="full")
    tokens = model.tokens(codes)
    first, second = model.decoder(tokens).chunk(2, dim=1)
    assert not torch.allclose(first, second)
    with torch.no_grad():
        model.decoder.scale_embed.zero_()
    first, second = model.decoder(tokens).chunk(2, dim=1)
    torch.testing.assert_close(first, second)


# ------------------------------------------------------------------------------------- one scale
@pytest.mark.parametrize("mask", ["causal", "full"])
def test_one_scale_is_the_plain_tokenizer(mask, images):
    model = make((4,), mask=mask)
    sizes = dict(patch_size=4, embed_dim=16, num_heads=2)
    plain = Autoencoder(
        ViTEncoder(6, num_layers=1, **sizes), KLBottleneck(), ViTDecoder(3, num_layers=2, **sizes)
    ).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(images).images, plain(images).images)
    losses = []
    for each in (model, plain):
        torch.manual_seed(0)
        loss, parts = each.train().loss(images)
        loss.backward()
        losses.append((loss, parts, each.decoder.embed.weight.grad))
    torch.testing.assert_close(losses[0], losses[1], atol=0, rtol=0)


def test_scales_cost_a_vector_each_and_no_latent(images):
    many, one = make(), make((4,))
    assert many.encode(images).codes.shape == one.encode(images).codes.shape == (2, 4, 4, 3)
    count = [sum(p.numel() for p in model.parameters()) for model in (many, one)]
    assert count[0] == count[1] + 3 * 16
    assert count[0] == sum(p.numel() for p in make(mask="full").parameters())


# ------------------------------------------------------------------------------- pictures of scales
def test_the_first_scales_need_no_others(codes):
    model = make()
    pictures = model.decode_scales(codes)
    assert [tuple(p.shape[1:]) for p in pictures] == [(3, 4, 4), (3, 8, 8), (3, 16, 16)]
    for k in (1, 2, 3):
        torch.testing.assert_close(model.decode(codes, k), pictures[k - 1], atol=1e-6, rtol=1e-5)
    assert torch.equal(model.decode(codes), pictures[-1])
    leaky = make(mask="full")
    assert not torch.allclose(leaky.decode(codes, 1), leaky.decode_scales(codes)[0], atol=1e-3)


def test_the_loss_and_its_parts(images):
    model = make(kl_weight=1e-3, coarse_weight=0.1)
    loss, parts = model.loss(images, teacher=torch.zeros(2, 16, 5))
    out = model(images)
    assert out.features is None and model.bits(out.quantized) == float("inf")
    pictures = model.decode_scales(out.quantized.codes)
    coarse = [F.mse_loss(p, F.adaptive_avg_pool2d(images, p.shape[-2:])) for p in pictures[:2]]
    want = {
        "pixels": F.mse_loss(out.images, images),
        "quantizer": 1e-3 * out.quantized.posterior.kl().mean(),
        "coarse": (coarse[0] + coarse[1]) / 2,
    }
    torch.testing.assert_close(parts, want)
    torch.testing.assert_close(loss, want["pixels"] + want["quantizer"] + 0.1 * want["coarse"])
    assert not any(part.requires_grad for part in parts.values())
    assert set(make().loss(images)[1]) == set(make((4,), coarse_weight=1).loss(images)[1])


@pytest.mark.parametrize("options", [dict(), dict(coarse_weight=0.1), dict(scales=(4,))])
def test_every_weight_gets_a_gradient(images, options):
    model = make(**options).train()
    model.loss(images)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_coarse_scales_learn_to_be_pictures(images):
    """With the coarse loss, a few steps teach scale 1 to show the image's means."""
    model = make(coarse_weight=1.0).train()
    soft = F.avg_pool2d(images, 7, 1, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    first = model.loss(soft)[1]["coarse"]
    for _ in range(30):
        optimizer.zero_grad()
        loss, parts = model.loss(soft)
        loss.backward()
        optimizer.step()
    assert parts["coarse"] < 0.5 * first
    assert shrunk(soft, (4, 4)).shape == (2, 3, 4, 4)


# ---------------------------------------------------------------------------------------- the rest
def test_the_generator_decides(images):
    model = make().train()
    before = torch.get_rng_state()
    codes = [model.encode(images, seeded(s)).codes for s in (0, 0, 1)]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])
    assert torch.equal(torch.get_rng_state(), before)
    model.eval()
    assert torch.equal(model.encode(images).codes, model.encode(images).posterior.mean)


def test_maps_that_are_not_square():
    model = make(((1, 2), (2, 4), (3, 6)), coarse_weight=0.1)
    images = torch.rand(1, 3, 12, 24)
    assert model(images).images.shape == (1, 3, 12, 24)
    assert model.decode(model.encode(images).codes, 1).shape == (1, 3, 4, 8)
    model.loss(images)[0].backward()


def test_default_size():
    with torch.device("meta"):
        model = HieraTok()
    block = 12 * 384**2 + 13 * 384
    encoder = 768 * 384 + 384 + 12 * block + 2 * 384 + 384 * 64 + 64
    decoder = 32 * 384 + 384 + 5 * 384 + 12 * block + 2 * 384 + 384 * 768 + 768
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder == 43_218_880
    assert model(torch.empty(1, 3, 256, 256, device="meta")).images.is_meta


def test_state_dict_round_trip(images):
    model, other = make(), HieraTok(SCALES, **SIZES).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images).images, model(images).images)
    assert "decoder.scale_embed" in model.state_dict()


def test_roughness():
    model, codes = make(), torch.randn(4, 4, 4, 3, generator=seeded())
    got = [roughness(model, codes, generator=seeded(s)) for s in (0, 0)]
    assert got[0].shape == () and got[0] == got[1] > 0

    class Twice(torch.nn.Module):
        def decode(self, codes):
            return 2 * codes

    # the picture of a linear decoder moves by twice the spread, whatever the step
    wide = codes * torch.tensor([1.0, 5.0, 0.0])
    want = 2 * (wide.flatten(0, 2).var(dim=0, correction=0).mean()).sqrt()
    for step in (0.01, 1.0):
        torch.testing.assert_close(
            roughness(Twice(), wide, step, seeded()), want, rtol=0.15, atol=0
        )


@pytest.mark.parametrize("call, told", [
    (lambda m, x: HieraTok(()), "scales="),
    (lambda m, x: HieraTok((4, 2)), "no scale may be smaller"),
    (lambda m, x: HieraTok((0, 2)), r"scales\[0\]"),
    (lambda m, x: HieraTok(mask="none"), "mask='none'"),
    (lambda m, x: HieraTok(latent_dim=0), "latent_dim=0"),
    (lambda m, x: HieraTok(decoder_layers=0), "decoder_layers=0"),
    (lambda m, x: HieraTok(kl_weight=-1), "kl_weight"),
    (lambda m, x: HieraTok(coarse_weight=float("nan")), "coarse_weight"),
    (lambda m, x: HieraTok(embed_dim=30, num_heads=4), "embed_dim=30"),
    (lambda m, x: m(x[:, :, :8]), r"the scales need \(16, 16\)"),
    (lambda m, x: m(x[:0]), "empty"),
    (lambda m, x: m(x.double()), "float64"),
    (lambda m, x: m.decode(torch.randn(1, 4, 5, 3)), "do not fit the last scale"),
    (lambda m, x: m.decode(torch.randn(1, 4, 4, 2)), "D = 3"),
    (lambda m, x: m.decode(torch.randn(1, 4, 4, 3), 4), "num_scales=4"),
    (lambda m, x: m.decoder(torch.randn(1, 20, 3)), "do not fill"),
    (lambda m, x: m.decode_indices(torch.zeros(1, 4, 4).long()), "KLBottleneck has none"),
    (lambda m, x: attended_pairs((1, 2), "half"), "mask='half'"),
    (lambda m, x: scale_positions((1, 2), 6), "embed_dim=6"),
    (lambda m, x: roughness(m, torch.randn(2, 4, 4, 3), 0), "step"),
])
def test_bad_input_is_named(images, call, told):
    with pytest.raises(ValueError, match=told):
        call(make(), images)


def test_no_error_from_deep_inside(images, codes):
    model = make()
    sizes = dict(patch_size=4, embed_dim=16, num_layers=1, num_heads=2)
    calls = [
        (HieraTok, dict(SIZES, scales=SCALES, mask="full", kl_weight=1e-6, coarse_weight=0.1)),
        (ScaleDecoder, dict(sizes, in_channels=3, scales=SCALES, mask="causal")),
        (model, dict(images=images)),
        (model.encode, dict(images=images, generator=seeded())),
        (model.decode, dict(codes=codes, num_scales=2)),
        (model.decode_scales, dict(codes=codes)),
        (model.tokens, dict(codes=codes, num_scales=2)),
        (model.decoder, dict(tokens=model.tokens(codes), num_scales=3, return_attn=False)),
        (model.decoder.pictures, dict(x=model.decoder(model.tokens(codes)))),
        (model.loss, dict(images=images)),
        (pool_scales, dict(latents=codes, scales=SCALES)),
        (scale_index, dict(scales=SCALES, device="cpu")),
        (scale_causal_mask, dict(scales=SCALES, device="cpu")),
        (attended_pairs, dict(scales=SCALES, mask="full")),
        (scale_positions, dict(scales=SCALES, embed_dim=8, device="cpu")),
        (shrunk, dict(images=images, size=(4, 4))),
        (roughness, dict(tokenizer=model, codes=codes, step=0.1, generator=seeded())),
    ]
    for function, fits in calls:
        found = raw_errors(function, fits, part=True)
        assert [each for each in found if each[0] != "tokenizer"] == [], function


def test_it_says_whose_it_is():
    assert hieratok.PAPER == "hieratok"
