"""GloTok: two codebooks, residual nets, and what trains them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from vtlib.quantize import Quantized, digits_to_index
from vtlib.tokenizers.glotok import DualCodebook, GloTok, Residual
from vtlib.tokenizers.glotok_histogram import histogram_loss, teacher_histogram

from ..wrong import raw_errors

SMALL = dict(
    codebook_size=(12, 20), code_dim=8, latent_dim=16, residual_dim=16, num_heads=2, channels=8,
    multipliers=(1, 2), num_res_blocks=1, num_mid_blocks=1, groups=4, patch_size=4,
)


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clusters(count=256, seed=0):
    middle = seeded(12, 64, seed=seed)
    which = torch.arange(count) % 12
    return middle[which] + seeded(count, 64, seed=seed + 1)


def small(seed=0, awake=True, **options):
    """A small model; awake: its residual nets, which begin at 0, do something."""
    torch.manual_seed(seed)
    model = GloTok(**(SMALL | options))
    if awake:
        for residual in model.residuals:
            torch.nn.init.normal_(residual.proj_out.weight, std=0.2)
    return model


def pictures(batch=2, size=(16, 24), seed=0):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------- two codebooks
def test_each_half_has_a_codebook_of_its_own():
    net, x = DualCodebook(4, (6, 10)), seeded(3, 5, 8)
    out = net(x)
    assert isinstance(out, Quantized) and out.indices.shape == (3, 5, 2)
    semantic, visual = net.semantic(x[..., :4]), net.visual(x[..., 4:])
    assert torch.equal(out.codes, torch.cat([semantic.codes, visual.codes], dim=-1))
    assert torch.equal(out.indices[..., 0], semantic.indices)
    assert torch.equal(out.indices[..., 1], visual.indices)
    assert torch.equal(net.decode(out.indices), out.codes)
    torch.testing.assert_close(out.loss, semantic.loss + visual.loss)
    number = digits_to_index(out.indices, net.codebook_size)
    assert torch.equal(number, semantic.indices + 6 * visual.indices)
    both = len(semantic.indices.unique()) + len(visual.indices.unique())
    assert out.usage.item() == pytest.approx(both / 16)
    assert net.codebook_size == (6, 10) and net.bits == math.log2(6) + math.log2(10)


def test_codes_and_vectors_have_length_one_from_the_start():
    net, x = DualCodebook(8, (30, 50)), 7 * seeded(40, 16)
    torch.testing.assert_close(net.semantic.codebook.norm(dim=1), torch.ones(30))
    cosine = F.normalize(x[:, 8:].double()) @ F.normalize(net.visual.codebook.double()).T
    assert torch.equal(net(x).indices[:, 1], cosine.argmax(dim=1))
    halves = net.normalised(x).unflatten(1, (2, 8))
    torch.testing.assert_close(halves, F.normalize(x.unflatten(1, (2, 8)), dim=-1))


def test_the_loss_of_the_codebooks_is_that_of_the_paper():
    net, x = DualCodebook(4, (6, 10), commitment_weight=0.3), seeded(20, 8).requires_grad_()
    out = net(x)
    z, q = net.normalised(x), net.decode(out.indices)
    want = 0
    for half in (slice(0, 4), slice(4, 8)):
        want = want + F.mse_loss(q[:, half], z[:, half].detach())
        want = want + 0.3 * F.mse_loss(z[:, half], q[:, half].detach())
    torch.testing.assert_close(out.loss, want)
    got, expected = (torch.autograd.grad(loss, [x, *net.parameters()], retain_graph=True)
                     for loss in (out.loss, want))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert len(list(net.parameters())) == 2


@pytest.mark.parametrize("indices", [
    [[6, 7]], [[-1, 7]], [[0, 10]], [[0, 7, 7]], [[0.0, 7.0]], [[7, 0]], 3,
])
def test_indices_out_of_their_codebook_are_refused(indices):
    with pytest.raises(ValueError, match="indices"):
        DualCodebook(4, (6, 10)).decode(torch.tensor(indices))


# ----------------------------------------------------------------------------- the residual nets
def test_the_residual_nets_begin_as_the_plain_tokenizer():
    """With R = 0 the model is a dual codebook: the same weights without R, the same picture."""
    model, images = small(awake=False).eval(), pictures()
    plain = small(residual_dim=0).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "residuals" not in k})
    assert torch.equal(model(images).images, plain(images).images)
    codes = model.encode(images).codes
    assert torch.equal(model.refine(codes), codes)
    awake = small().eval()
    assert (awake.refine(codes) - codes).abs().max() > 0.05
    assert "residual" not in plain.loss(images)[1]


def test_each_branch_has_a_residual_net_that_sees_its_own_codes_only():
    model = small().eval()
    codes = model.encode(pictures()).codes
    other = codes.clone()
    other[..., :8] = -other[..., :8]
    assert torch.equal(model.refine(other)[..., 8:], model.refine(codes)[..., 8:])
    want = [part + net(part) for net, part in zip(model.residuals, codes.split(8, -1), strict=True)]
    assert torch.equal(model.refine(codes), torch.cat(want, dim=-1))


def test_the_residual_is_added_before_decoding_and_sees_no_latents():
    """Latents that move without changing codes change nothing."""
    model, images = small().eval(), pictures()
    latents = model.latents(images)
    near = latents + 1e-4 * seeded(*latents.shape)
    first, second = model.quantizer(latents), model.quantizer(near)
    assert torch.equal(first.indices, second.indices) and not torch.equal(latents, near)
    assert torch.equal(model.decode(first.codes), model.decode(second.codes))
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.decode(first.codes)
    assert torch.equal(seen[0].permute(0, 2, 3, 1), model.refine(first.codes))


def test_a_residual_net_knows_where_and_looks_around():
    torch.manual_seed(0)
    net = Residual(8, 16, 2)
    torch.nn.init.normal_(net.proj_out.weight)
    codes = seeded(1, 3, 4, 8)
    other = codes.clone()
    other[:, 0, 0] += 1
    assert ((net(other) - net(codes)).abs().amax(dim=-1) > 1e-4).all()
    turned = net(codes.flip(2)).flip(2)
    assert (turned - net(codes)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="multiple of 4"):
        Residual(8, 18, 3)


def test_the_loss_of_the_residual_stops_at_the_latents_only():
    model, images = small(), pictures()
    latents = model.latents(images)
    quantized = model.quantizer(latents)
    loss = model.residual_loss(latents, quantized.indices)
    z, q = model.quantizer.normalised(latents), quantized.codes
    res = model.refine(q) - q
    want = sum(F.mse_loss(z[..., h], (q + res)[..., h]) for h in (slice(0, 8), slice(8, 16)))
    torch.testing.assert_close(loss, want)
    model.zero_grad()
    loss.backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    books = {"quantizer.semantic.codebook", "quantizer.visual.codebook"}
    assert books < got
    assert {name.split(".")[0] for name in got} == {"quantizer", "residuals"}


def test_the_residual_nets_learn_what_quantisation_took():
    """Claim 3 in small: trained on fixed latents, R takes away a part of the error of unseen
    maps, whose codes tell something of what lies beside them."""
    model = small(codebook_size=(4, 4)).eval()
    wave = seeded(64, 1, 1, 2).cumsum(dim=0)
    angle = torch.linspace(0, 3, 8)[None, :, None] + torch.linspace(0, 2, 8) + wave[:, 0, :, :1]
    latents = torch.stack([(angle * (1 + k / 4)).sin() for k in range(16)], dim=-1)
    indices = model.quantizer(latents).indices
    train, test = slice(0, 48), slice(48, 64)
    optimizer = torch.optim.Adam(model.residuals.parameters(), lr=1e-2)
    plain = 2 * F.mse_loss(
        model.quantizer.decode(indices[test]), model.quantizer.normalised(latents[test])
    )
    for _ in range(30):
        loss = model.residual_loss(latents[train], indices[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.residual_loss(latents[test], indices[test]) < 0.75 * plain


# ------------------------------------------------------------------------------------- the model
def test_pictures_tokens_pictures():
    model, images = small().eval(), pictures(3)
    out = model(images)
    assert out.images.shape == images.shape and out.features is None
    assert out.quantized.codes.shape == (3, 2, 3, 16)
    assert out.quantized.indices.shape == (3, 2, 3, 2)
    assert torch.equal(model.decode_indices(out.quantized.indices), out.images)
    assert model.bits(out.quantized) == pytest.approx(6 * (math.log2(12) + math.log2(20)))
    alone = model(images[1:2])
    torch.testing.assert_close(alone.images, out.images[1:2])
    torch.testing.assert_close(model.train()(images).images, out.images)


def test_as_in_the_paper():
    """256 places of two codes each, 8 channels, 4096 + 12,288 codes, weights 0.5 and 0.01."""
    with torch.device("meta"):
        model = GloTok()
        out = model(torch.rand(1, 3, 256, 256))
    assert out.images.shape == (1, 3, 256, 256)
    assert out.quantized.indices.shape == (1, 16, 16, 2) and out.quantized.codes.shape[-1] == 16
    assert model.quantizer.codebook_size == (4096, 12288)
    assert (model.residual_weight, model.histogram_weight, len(model.teacher)) == (0.5, 0.01, 40)
    assert model.bits(out.quantized) == pytest.approx(256 * (12 + math.log2(12288)))


def test_the_size_that_trains_on_one_core():
    sizes = dict(latent_dim=32, residual_dim=32, num_heads=2, channels=24, multipliers=(1, 2))
    sizes |= dict(num_res_blocks=1, num_mid_blocks=1, groups=8, patch_size=4, attention=False)
    with torch.device("meta"):
        model = GloTok(codebook_size=(128, 384), **sizes)
        out = model(torch.rand(1, 3, 64, 64))
    assert sum(p.numel() for p in model.parameters()) == 355_176
    assert out.quantized.indices.shape == (1, 8, 8, 2)
    assert model.bits(out.quantized) == pytest.approx(64 * (7 + math.log2(384)))


def test_the_loss_is_the_weighted_sum_of_its_parts():
    model, images = small(), pictures()
    assert set(model.loss(images)[1]) == {"pixels", "quantizer", "residual"}
    model.set_teacher(clusters(60))
    loss, parts = model.loss(images)
    out = model(images)
    assert set(parts) == {"pixels", "quantizer", "residual", "histogram"}
    torch.testing.assert_close(parts["pixels"], F.mse_loss(out.images, images).detach())
    torch.testing.assert_close(parts["quantizer"], out.quantized.loss.detach())
    book = model.quantizer.semantic.codebook
    want = histogram_loss(book, teacher_histogram(clusters(60)))
    torch.testing.assert_close(parts["histogram"], want.detach())
    weights = dict(pixels=4, quantizer=1, residual=0.5, histogram=0.01)
    torch.testing.assert_close(loss.detach(), sum(weights[k] * parts[k] for k in parts))


def test_the_histogram_moves_the_semantic_codebook_only():
    model = small()
    model.set_teacher(clusters(60))
    model.histogram_loss().backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == {"quantizer.semantic.codebook"}
    assert model.histogram_loss() == model.histogram_loss()


def test_all_parameters_learn_from_the_whole_loss():
    model = small()
    model.set_teacher(clusters(60))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(pictures())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_picture_reaches_the_encoder_through_the_codes():
    """Straight-through, and through the residual nets, too."""
    model = small().eval()
    z = model.latents(pictures()).detach().requires_grad_()
    model.decode(model.quantizer(z).codes).square().sum().backward()
    assert z.grad.abs().sum() > 0
    codes = model.quantizer(z).codes.detach().requires_grad_()
    model.decode(codes).square().sum().backward()
    through = z.detach().requires_grad_()
    model.quantizer.normalised(through).backward(codes.grad)
    torch.testing.assert_close(z.grad, through.grad)


def test_a_teacher_is_set_once_and_kept_with_the_weights():
    model, other = small(), small(seed=1)
    with pytest.raises(ValueError, match="set_teacher"):
        model.histogram_loss()
    with pytest.raises(ValueError, match="set_teacher"):
        model.loss(pictures(), teacher=seeded(2, 6, 24))
    model.set_teacher(seeded(50, 24))
    want = model.loss(pictures())[0]
    assert torch.equal(model.loss(pictures(), teacher=seeded(2, 6, 24))[0], want)
    other.load_state_dict(model.state_dict())
    assert other.has_teacher and torch.equal(other.loss(pictures())[0], want)
    assert torch.equal(copy.deepcopy(model).loss(pictures())[0], want)
    other.load_state_dict(small().state_dict())
    assert not other.has_teacher


def test_training_makes_both_losses_smaller():
    model = small(quantizer=dict(kmeans_init=True, revive_after=4.0))
    images = F.interpolate(pictures(8, (2, 2)), size=(16, 16), mode="bilinear")
    model.set_teacher(clusters(60))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(20):
        loss, parts = model.loss(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((parts["pixels"].item(), parts["residual"].item()))
    assert history[-1][0] < 0.8 * history[0][0] and history[-1][1] < 0.2 * history[0][1]


def test_bad_input_is_told():
    for wrong in (
        dict(codebook_size=(0, 4)), dict(codebook_size=4), dict(codebook_size=(4, 4, 4)),
        dict(code_dim=0), dict(latent_dim=18), dict(residual_dim=6), dict(num_heads=3),
        dict(histogram_weight=-1), dict(residual_weight=math.nan), dict(num_bins=1),
        dict(sharpness=0), dict(commitment_weight="x"), dict(channels=6),
    ):
        with pytest.raises(ValueError):
            small(**wrong)
    model = small()
    for images in (pictures()[:0], pictures()[0], pictures().byte(), pictures(size=(17, 16))):
        with pytest.raises(ValueError):
            model(images)
    for codes in (seeded(2, 3, 16), seeded(1, 2, 2, 15), None, seeded(1, 2, 2, 16).long()):
        with pytest.raises(ValueError):
            model.decode(codes)
    for tokens in (seeded(3), seeded(0, 3), torch.full((3, 4), torch.nan), [1.0]):
        with pytest.raises(ValueError, match="tokens"):
            model.set_teacher(tokens)


def test_no_error_from_deep_inside():
    calls = [
        (DualCodebook, dict(dim=4, codebook_size=(3, 5))),
        (DualCodebook(4, (3, 5)), dict(x=seeded(5, 8))),
        (DualCodebook(4, (3, 5)).decode, dict(indices=torch.tensor([[0, 3]]))),
        (Residual, dict(dim=4, width=8, num_heads=2)),
        (Residual(4, 8, 2), dict(codes=seeded(1, 2, 2, 4))),
    ]
    for function, fits in calls:
        assert raw_errors(function, fits, part=True) == [], function
