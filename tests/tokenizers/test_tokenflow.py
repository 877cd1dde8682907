"""TokenFlow: two codebooks under one index, in scales, between two encoders and two decoders."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from vtlib.quantize import perplexity
from vtlib.quantize.residual import from_scale, to_scale
from vtlib.tokenizers.tokenflow import (
    SharedMapping,
    SharedScales,
    TokenFlow,
    VisionTower,
    convert_official,
    semantic_loss,
)
from vtlib.vit import ViT

from ..wrong import raw_errors

CNN = dict(channels=4, multipliers=(1, 2), num_res_blocks=1, groups=2, patch_size=2)
SMALL = dict(
    scales=(1, 2, (2, 3), (4, 5)), codebook_size=20, semantic_dim=6, pixel_dim=3, patch_size=4,
    embed_dim=16, num_layers=2, num_heads=2, teacher_dim=7, decoder_dim=8, decoder_layers=1,
    decoder_heads=2, z_channels=5, cnn=CNN,
)


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mapping(size=50, seed=1, **options):
    net = SharedMapping(9, size, 6, **options)
    net.codebook.data.copy_(seeded(size, 9, seed=seed))
    return net


def scaled(scales=(1, 2, (3, 4), (6, 8)), size=16, **options):
    net = SharedScales(5, size, scales, semantic_dim=3, **options)
    net.first.codebook.data.copy_(seeded(size, 5, seed=7))
    return net


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return TokenFlow(**SMALL | changes)


def images(batch=2, seed=0):
    return torch.rand(batch, 3, 16, 20, generator=torch.Generator().manual_seed(seed))


def teacher(batch=2):
    return seeded(batch, 20, 7, seed=5)


def units(x, split):
    return [F.normalize(part, dim=-1) for part in (x[..., :split], x[..., split:])]


# ------------------------------------------------------------------------------- shared mapping
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 4.0, 1e8])
def test_one_argmin_of_the_sum_of_both_distances(weight):
    net, x = mapping(pixel_weight=weight), 3 * seeded(2, 40, 9)
    semantic, pixel = (
        torch.cdist(a, b) ** 2
        for a, b in zip(units(x.double(), 6), units(net.codebook.double(), 6), strict=True)
    )
    want = (semantic + weight * pixel).argmin(dim=-1)
    if weight == 1e8:
        want = pixel.argmin(dim=-1)
    out = net(x)
    assert torch.equal(out.indices, want)
    assert torch.equal(net.decode(out.indices), out.codes)
    for got, table in zip(net.distances(x), (semantic, pixel), strict=True):
        torch.testing.assert_close(got.double(), table, atol=1e-5, rtol=1e-5)
        assert got.min() >= 0 and got.max() <= 4
    if weight == 1.0:                    # not two indices, and not the two halves scaled as one
        as_one = torch.cdist(F.normalize(x, dim=-1), F.normalize(net.codebook, dim=-1))
        for other in (semantic, pixel, as_one):
            assert not torch.equal(want, other.argmin(dim=-1))


def test_lengths_of_halves_do_not_matter():
    net, x = mapping(), seeded(40, 9)
    want = net(x)
    stretch = torch.tensor([7.0] * 6 + [0.01] * 3)
    got = net(x * stretch)
    assert torch.equal(got.indices, want.indices)
    torch.testing.assert_close(got.loss, want.loss)
    net.codebook.data *= stretch.flip(0)[-1] * seeded(50, 1).abs() + 0.1
    net.codebook.data[:, :6] *= 30
    got = net(x)
    assert torch.equal(got.indices, want.indices)
    torch.testing.assert_close(got.codes, want.codes)
    for half in net.halves(got.codes):
        torch.testing.assert_close(half.norm(dim=-1), torch.ones(40))


def test_of_equal_codes_the_first_is_taken():
    net = mapping(size=6)
    net.codebook.data[4] = 2 * net.codebook.data[1]
    out = net(net.codebook[[4, 1]] * 3)
    assert out.indices.tolist() == [1, 1]


def test_codebooks_begin_with_halves_of_length_one():
    net = SharedMapping(12, 1000, 8)
    assert isinstance(net.codebook, torch.nn.Parameter)
    for half in net.halves(net.codebook):
        torch.testing.assert_close(half.norm(dim=-1), torch.ones(1000))


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_losses_are_of_both_halves_side_by_side(weight):
    net, x = mapping(pixel_weight=weight), seeded(30, 9)
    z = torch.cat(units(x, 6), dim=-1).requires_grad_()
    books = torch.cat(units(net.codebook, 6), dim=-1)
    code = books[net(x).indices]
    want = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
    torch.testing.assert_close(net(x).loss, want)
    more = mapping(pixel_weight=weight, entropy_weight=0.2, entropy_temperature=0.3)
    d = net.distances(x)
    p = (-(d[0] + weight * d[1]) / 0.3).softmax(dim=-1)
    entropy = torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum()
    torch.testing.assert_close(more(x).loss - want, 0.2 * entropy, atol=1e-5, rtol=1e-4)


def test_gradients_pass_through_the_normalisation():
    net, x, upstream = mapping(), seeded(30, 9).requires_grad_(), seeded(30, 9, seed=3)
    (got,) = torch.autograd.grad(net(x).codes, x, upstream)
    (want,) = torch.autograd.grad(torch.cat(units(x, 6), dim=-1), x, upstream)
    torch.testing.assert_close(got, want)
    net(x).loss.backward()
    hit = net(x).indices.unique()
    moved = net.codebook.grad.abs().sum(1) > 0
    assert torch.equal(moved.nonzero()[:, 0], hit)


# ------------------------------------------------------------------------- claim 1 of the card
def two_factors(seed, meanings=8, textures=16, number=6000):
    """Vectors of a meaning (32 channels) and a texture (8), and which."""
    generator = torch.Generator().manual_seed(seed)
    centres = [torch.randn(n, d, generator=generator) for n, d in ((meanings, 32), (textures, 8))]
    which = [torch.randint(n, (number,), generator=generator) for n in (meanings, textures)]
    x = torch.cat([c[i] for c, i in zip(centres, which, strict=True)], dim=1)
    return x + 0.35 * torch.randn(x.shape, generator=generator), which


def clustered(x, size, weight, rounds=10):
    """k-means under the combined distance: moving averages that forget all."""
    net = SharedMapping(40, size, 32, pixel_weight=weight, learn="ema", decay=0.0)
    start = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:size]
    net.codebook.copy_(net.normalised(x[start]))
    for _ in range(rounds):
        net(x)
    return net.eval()


def purity(indices, labels):
    """Share of vectors that are of the commonest kind in their cluster."""
    table = torch.zeros(int(indices.max()) + 1, int(labels.max()) + 1)
    table.index_put_((indices, labels), torch.ones(len(labels)), accumulate=True)
    return (table.amax(dim=1).sum() / len(labels)).item()


def seen(x, which, size, weight):
    """(purity of meaning, of texture, error of the semantic half, of the pixel half)."""
    net = clustered(x, size, weight)
    out = net(x)
    errors = [
        (a - b).square().sum(1).mean().item()
        for a, b in zip(net.halves(net.rows(x)), net.halves(out.codes), strict=True)
    ]
    return *(purity(out.indices, labels) for labels in which), *errors


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
def test_a_shared_index_keeps_both_factors(seed):
    """Card: semantic alone 1.00 / 0.13, pixel alone 0.20 / 0.99, shared 1.00 / 0.88."""
    x, which = two_factors(seed)
    semantic = seen(x, which, 128, 0.0)
    pixel = seen(x, which, 128, 1e6)
    shared = seen(x, which, 128, 1.0)
    heavier = seen(x, which, 128, 4.0)
    assert semantic[0] > 0.97 and semantic[1] < 0.25 and semantic[3] > 1
    assert pixel[0] < 0.35 and pixel[1] > 0.95 and pixel[2] > 1
    assert shared[0] > 0.95 and shared[1] > 0.75 and max(shared[2:]) < 0.3
    assert heavier[1] > shared[1] + 0.03 and heavier[0] < shared[0] - 0.03


@torch.no_grad()
def test_codes_are_needed_for_each_pair():
    """Claim 2 and the failure: below 8 x 16 codes a factor is lost; more codes help the shared
    index, and never the texture of codes chosen by meaning."""
    x, which = two_factors(0)
    few, enough, many = (seen(x, which, size, 1.0) for size in (32, 128, 512))
    assert few[1] < 0.5 < enough[1] < many[1] and many[1] > 0.93
    assert sum(few[2:]) > 1.8 * sum(enough[2:]) > 2.2 * sum(many[2:])
    alone = seen(x, which, 512, 0.0)
    assert alone[1] < 0.5 * many[1]
    assert perplexity(clustered(x, 512, 1.0)(x).indices, 512) > 256


# --------------------------------------------------------------------------------------- scales
def by_hand(net, x, levels=None):
    """The official loop, each scale with its own straight-through: (F, loss, indices)."""
    residual, total, losses, indices = x, 0, [], []
    table = torch.cat(units(net.first.codebook, 3), dim=-1)
    for level in levels or range(len(net.scales)):
        z = torch.cat(units(to_scale(residual, net.scales[level]), 3), dim=-1)
        found = torch.cdist(z.double(), table.double()).argmin(dim=-1)
        code = table[found]
        losses.append(F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach()))
        up = from_scale(z + (code - z).detach(), net.scales[-1])
        total, residual = total + up, residual - up.detach()
        indices.append(found.flatten(1))
    return total, torch.stack(losses).mean(), torch.cat(indices, dim=1)


@pytest.mark.parametrize("training", [True, False])
def test_scales_and_their_gradients_are_those_of_the_official_loop(training):
    net, x = scaled(drop_rate=0.0).train(training), 2 * seeded(2, 6, 8, 5)
    x.requires_grad_()
    upstream = seeded(2, 6, 8, 5, seed=2)
    out, (codes, loss, indices) = net(x), by_hand(net, x)
    assert torch.equal(out.indices, indices) and indices.shape == (2, 1 + 4 + 12 + 48)
    torch.testing.assert_close(out.codes, codes)
    torch.testing.assert_close(out.loss, loss)
    assert torch.equal(net.decode(out.indices), out.codes)
    for got, want in ((out.codes, codes), (out.loss, loss)):
        grad = upstream if got.dim() else None
        wrt = (x,) if got.dim() else (x, net.first.codebook)
        torch.testing.assert_close(
            torch.autograd.grad(got, wrt, grad, retain_graph=True),
            torch.autograd.grad(want, wrt, grad, retain_graph=True),
        )


def test_a_dropped_scale():
    """With its probability, in training, any but the first; the last too."""
    net, x = scaled(drop_rate=0.3), seeded(2, 6, 8, 5)
    generator = torch.Generator().manual_seed(0)
    drawn = [net.used_levels(None, generator) for _ in range(600)]
    whole = (0, 1, 2, 3)
    assert set(drawn) == {whole, (0, 2, 3), (0, 1, 3), (0, 1, 2)}
    assert 0.22 < sum(levels != whole for levels in drawn) / 600 < 0.38
    for seed in range(12):
        generator.manual_seed(seed)
        levels = net.used_levels(None, generator)
        out = net(x, generator=generator.manual_seed(seed))
        codes, loss, indices = by_hand(net, x, levels)
        assert torch.equal(out.indices, indices)
        torch.testing.assert_close((out.codes, out.loss), (codes, loss))
        assert torch.equal(net.decode(out.indices, levels), out.codes)
    assert {net.used_levels(2, generator) for _ in range(30)} == {(0, 1)}
    net.eval()
    assert {net.used_levels(None, generator) for _ in range(30)} == {whole}
    assert {scaled(scales=(6,), drop_rate=1.0).used_levels() for _ in range(9)} == {(0,)}
    assert SharedScales(5, 4, (1, 2), semantic_dim=3).drop_rate == 0.1


@pytest.mark.parametrize("scales, count", [
    ((1, 2, 4, 6, 8, 10, 12, 14), 561),
    ((1, 2, 4, 6, 8, 10, 12, 14, 16), 817),
    ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27), 2227),
])
def test_token_counts(scales, count):
    net, side = scaled(scales, size=4).eval(), scales[-1]
    out = net(seeded(2, side, side, 5))
    assert out.indices.shape == (2, count) and out.codes.shape == (2, side, side, 5)


def test_the_last_scale_passes_as_it_is():
    """A single scale: halves of length 1, no interpolation; and bicubic to the same size is none.
    """
    same = seeded(1, 3, 4, 5)
    assert torch.equal(F.interpolate(same, (4, 5), mode="bicubic"), same)
    net, x = scaled(scales=((2, 3),)).eval(), seeded(1, 2, 3, 5)
    out = net(x)
    assert torch.equal(out.codes, net.first(x).codes)
    for half in net.first.halves(out.codes):
        torch.testing.assert_close(half.norm(dim=-1), torch.ones(1, 2, 3))


def test_only_complete_scales_decode():
    net = scaled().eval()
    out = net(seeded(1, 6, 8, 5))
    assert torch.equal(net.decode(out.indices[:, :17]), net(seeded(1, 6, 8, 5), 3).codes)
    with pytest.raises(ValueError, match="complete"):
        net.decode(out.indices[:, :18])


# ------------------------------------------------------------------------------------ the whole
def test_what_comes_out():
    model, x = small().eval(), images()
    out = model(x)
    assert out.images.shape == x.shape and out.features.shape == (2, 20, 7)
    assert out.quantized.codes.shape == (2, 4, 5, 9)
    assert out.quantized.indices.shape == (2, 1 + 4 + 6 + 20)
    assert torch.equal(model.decode_indices(out.quantized.indices), out.images)
    assert model.bits(out.quantized) == pytest.approx(31 * math.log2(20))
    h = model.features(x)
    tokens = model.encode_task_layer(model.encoder_vqkd.tokens(x)[:, 1:]).reshape(2, 4, 5, 6)
    assert torch.equal(h[..., :6], tokens)
    assert torch.equal(model.quantizer(h).indices, out.quantized.indices)


def test_each_decoder_reads_its_half():
    model = small().eval()
    codes = seeded(2, 4, 5, 9)
    other = seeded(2, 4, 5, 9, seed=1)
    semantic = torch.cat([codes[..., :6], other[..., 6:]], dim=-1)       # the pixel half changed
    pixel = torch.cat([other[..., :6], codes[..., 6:]], dim=-1)
    assert torch.equal(model.decode_semantic(semantic), model.decode_semantic(codes))
    assert not torch.equal(model.decode_semantic(pixel), model.decode_semantic(codes))
    assert torch.equal(model.decode(pixel), model.decode(codes))
    assert not torch.equal(model.decode(semantic), model.decode(codes))


def test_the_loss_has_the_terms_of_the_paper():
    model, x, want = small(drop_rate=0.0), images(), teacher()
    out = model(x)
    pixels = F.mse_loss(2 * out.images - 1, 2 * x - 1)
    cosine = F.cosine_similarity(out.features, want, dim=-1)
    loss, parts = model.loss(x, want)
    assert set(parts) == {"pixels", "quantizer", "semantic"}
    torch.testing.assert_close(loss, pixels + out.quantized.loss + (1 - cosine).mean())
    torch.testing.assert_close(parts["semantic"], (1 - cosine).mean())
    assert not any(part.requires_grad for part in parts.values())
    alone, parts = model.loss(x)
    torch.testing.assert_close(alone, pixels + out.quantized.loss)
    assert set(parts) == {"pixels", "quantizer"}


def test_both_encoders_learn_and_the_teacher_does_not():
    model = small(drop_rate=0.0)
    target = teacher().requires_grad_()
    model.loss(images(), target)[0].backward()
    assert target.grad is None
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.encoder_vqkd.patch_embed.proj.weight.grad.abs().sum() > 0
    model = small(drop_rate=0.0)
    semantic_loss(model(images()).features, teacher()).backward()
    assert model.encoder_vqkd.patch_embed.proj.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.decoder.parameters())
    model = small(drop_rate=0.0)
    model(images()).images.sum().backward()
    assert all(p.grad is None for p in model.decoder_vqkd.parameters())
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0


def test_the_loss_of_a_few_steps_falls():
    model, x, want = small(drop_rate=0.1), images(8), teacher(8)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    first = model.loss(x, want)[0].item()
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        loss, _ = model.loss(x, want, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.eval().loss(x, want)[0] < 0.8 * first


def test_semantic_loss_is_a_cosine():
    a, b = seeded(2, 5, 4), seeded(2, 5, 4, seed=1)
    assert semantic_loss(a, 3 * a).item() == pytest.approx(0, abs=1e-6)
    assert semantic_loss(a, -a).item() == pytest.approx(2, abs=1e-6)
    torch.testing.assert_close(semantic_loss(a, b), semantic_loss(7 * a, b))
    half = a.bfloat16().requires_grad_()
    assert semantic_loss(half, b).dtype == torch.float32
    for wrong in (b[:1], b[:, :4], b[..., :3]):
        with pytest.raises(ValueError, match="same tokens and channels"):
            semantic_loss(a, wrong)


def test_what_a_language_model_reads():
    """F at the last scale, both halves; with no dropped scale and no gradient, also in training."""
    model, x = small(drop_rate=1.0), images()
    got = model.understanding_features(x)
    want = model.eval()(x).quantized.codes
    assert got.shape == (2, 20, 9) and not got.requires_grad
    assert torch.equal(got, want.flatten(1, 2))


# ------------------------------------------------------------------------------------ the tower
@pytest.mark.parametrize("layers", [2, 3])
def test_the_tower_starts_as_the_teacher(layers):
    torch.manual_seed(0)
    net = ViT(48, 4, embed_dim=16, num_layers=3, num_heads=2, num_classes=5).eval()
    torch.nn.init.normal_(net.norm.weight)
    tower = VisionTower((16, 20), 4, 3, 0, 16, layers, 2).eval()
    tower.start_from(net)
    want = net.tokens(images())[:, 1:]
    if layers == 2:
        want = net.feature_map(images(), 2).flatten(2).mT
    torch.testing.assert_close(tower(images()), want, atol=1e-4, rtol=1e-4)
    before = copy.deepcopy(net.state_dict())
    torch.optim.SGD(tower.parameters(), 1.0).zero_grad()
    tower(images()).sum().backward()
    torch.optim.SGD(tower.parameters(), 1.0).step()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_teacher_that_does_not_fit_is_refused():
    tower = VisionTower(16, 4, 3, 0, 16, 2, 2)
    few = ViT(16, 4, embed_dim=16, num_layers=1, num_heads=2)
    wide = ViT(16, 4, embed_dim=18, num_layers=2, num_heads=2)
    coarse = ViT(16, 8, embed_dim=16, num_layers=2, num_heads=2)
    for wrong, said in ((few, "2 layers"), (wide, "teacher"), (coarse, "teacher"), (3, "ViT")):
        with pytest.raises(ValueError, match=said):
            tower.start_from(wrong)


def test_another_tower_takes_the_place():
    model = small()
    model.encoder_vqkd = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 4, 4), torch.nn.Flatten(2))
    with pytest.raises(ValueError, match="tower's tokens has 20 channels"):
        model(images())
    model.encoder_vqkd = VisionTower((16, 20), 2, 3, 0, 16, 1, 2)
    with pytest.raises(ValueError, match=r"the tower gives 80 tokens: .*needs 20"):
        model(images())


def test_a_cnn_of_another_factor_sees_resized_images():
    """The official 384 px: patch 14, and 16 pixels a place for the CNN."""
    model = small(patch_size=3).eval()
    x = torch.rand(2, 3, 12, 15)
    seen_by = []
    model.encoder.register_forward_hook(lambda module, args, out: seen_by.append(args[0]))
    out = model(x)
    want = F.interpolate(2 * x - 1, (16, 20), mode="bicubic")
    assert torch.equal(seen_by[0], want) and out.images.shape == x.shape
    assert torch.equal(model.decode_indices(out.quantized.indices), out.images)


def test_another_grid_with_the_same_weights():
    model = small().eval()
    model.set_scales((1, 2, (2, 3), (4, 5), (6, 6)))
    out = model(torch.rand(2, 3, 24, 24))
    assert out.images.shape == (2, 3, 24, 24) and out.features.shape == (2, 36, 7)
    assert out.quantized.indices.shape == (2, 31 + 36)


def test_the_enhanced_decoder_is_trained_alone():
    plain, model = small(), small(enhanced=True)
    assert model.decoder.conv_in.out_channels == 2 * plain.decoder.conv_in.out_channels
    assert len(model.decoder.conv_blocks[0].res) == 3 and len(plain.decoder.conv_blocks[0].res) == 2
    model.train_pixel_decoder_only()
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learned == {f"decoder.{name}" for name, _ in model.decoder.named_parameters()}
    model.loss(images(), teacher())[0].backward()


# --------------------------------------------------------------------------- official, and sizes
def test_parameters_of_the_official_model():
    with torch.device("meta"):
        model, enhanced = TokenFlow(), TokenFlow(enhanced=True)
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    keys = 3 * 768                               # biases of keys, which the official decoder lacks
    assert count == {
        "encoder_vqkd": 85_798_656, "encode_task_layer": 615_200, "encoder": 29_298_176,
        "quant_conv": 2_056, "quantizer": 32768 * 40, "decoder_vqkd": 21_440_256 + keys,
        "decode_task_layer": 984_320, "post_quant_conv": 2_304, "decoder": 42_449_795,
    }
    assert sum(p.numel() for p in enhanced.decoder.parameters()) == 237_117_187
    assert sum(h * w for h, w in model.quantizer.scales) == 561
    assert model.quantizer.first.bits == 15 and model.quantizer.drop_rate == 0.1


def official_names(model):
    """The state dict of a model under the names of the official code."""
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("quantizer."):
            continue
        if name.startswith("decoder_vqkd") and name.endswith("qkv.bias"):
            query, key, values = value.chunk(3)
            assert not key.any()
            state[name.replace("qkv.bias", "q_bias")] = query
            state[name.replace("qkv.bias", "v_bias")] = values
            continue
        state[name.replace("decoder_vqkd.norm", "decoder_vqkd.fc_norm")] = value
    semantic, pixel = model.quantizer.first.halves(model.quantizer.first.codebook.detach())
    more = {"embedding_vqkd.weight": semantic, "embedding_vqgan.weight": pixel}
    more["codebook_used"] = torch.zeros(4)
    return state | {f"quantize.{name}": value for name, value in more.items()}


def test_official_weights():
    model, other = small().eval(), small(seed=1).eval()
    names = official_names(model)
    assert {"decoder_vqkd.blocks.0.attn.q_bias", "encoder.conv_blocks.0.res.0.conv1.weight",
            "decoder_vqkd.fc_norm.weight", "decode_task_layer.2.bias"} <= set(names)
    other.load_state_dict(convert_official(names))
    a, b = model(images()), other(images())
    assert torch.equal(a.images, b.images) and torch.equal(a.features, b.features)
    with pytest.raises(ValueError, match="embedding_vqgan"):
        convert_official({"quantize.embedding_vqkd.weight": torch.zeros(2, 2)})


def test_state_dict_and_seeds():
    model, x = small(), images()
    other = small(seed=1)
    other.load_state_dict(load(save({k: v.clone() for k, v in model.state_dict().items()})))
    assert torch.equal(other.eval()(x).images, model.eval()(x).images)
    model, other = small(drop_rate=0.5), small(drop_rate=0.5)
    for seed in range(4):
        runs = [net.loss(x, teacher(), torch.Generator().manual_seed(seed))[0]
                for net in (model, other)]
        assert torch.equal(*runs)


def test_a_half_precision_region_and_one_image():
    model, x = small(drop_rate=0.0), images(1)
    want, _ = model.loss(x, teacher(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(x, teacher(1))
    loss.backward()
    assert abs(loss - want) < 0.1 * want
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("changes, said", [
    (dict(semantic_dim=0), "semantic_dim"), (dict(pixel_dim=0), "pixel_dim"),
    (dict(scales=(4, 2)), "scales"), (dict(scales=()), "scales"), (dict(codebook_size=0), "code"),
    (dict(pixel_weight=-1), "pixel_weight"), (dict(drop_rate=1.1), "drop_rate"),
    (dict(teacher_dim=0), "teacher_dim"), (dict(decoder_dim=9), "embed_dim"),
    (dict(patch_size=0), "patch_size"), (dict(z_channels=0), "z_channels"),
    (dict(enhanced="no"), "enhanced"), (dict(num_layers=-1), "num_layers"),
])
def test_sizes_that_do_not_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        small(**changes)


def test_no_error_from_deep_inside():
    model, net = small().eval(), mapping()
    generator = torch.Generator("cpu")
    calls = {
        "SharedMapping": (SharedMapping, dict(
            dim=9, codebook_size=5, semantic_dim=6, pixel_weight=0.5, learn="ema",
            commitment_weight=0.1, decay=0.9, revive_after=2.0, entropy_weight=0.1,
            entropy_temperature=0.1,
        )),
        "forward": (net, dict(x=seeded(4, 9))),
        "distances": (net.distances, dict(x=seeded(4, 9))),
        "scales": (scaled().eval(), dict(
            x=seeded(1, 6, 8, 5), num_levels=2, generator=generator
        )),
        "model": (model, dict(images=images(), generator=generator)),
        "loss": (model.loss, dict(images=images(), teacher=teacher(), generator=generator)),
        "understanding_features": (model.understanding_features, dict(images=images())),
        "decode": (model.decode, dict(codes=seeded(2, 4, 5, 9))),
        "decode_semantic": (model.decode_semantic, dict(codes=seeded(2, 4, 5, 9))),
        "decode_indices": (model.decode_indices, dict(
            indices=torch.zeros(2, 31, dtype=torch.long)
        )),
        "semantic_loss": (semantic_loss, dict(features=teacher(), teacher=teacher())),
        "set_scales": (small().set_scales, dict(scales=(1, 2))),
    }
    with torch.no_grad():
        found = {name: raw_errors(*call, part=True) for name, call in calls.items()}
    assert {name: errors for name, errors in found.items() if errors} == {}
