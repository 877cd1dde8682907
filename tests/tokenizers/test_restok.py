"""ResTok as a tokenizer: the contract, nested dropout, alignment, weights of the release."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.quantize import Quantized
from vtlib.tokenizers import ResTok, Tokenizer
from vtlib.tokenizers.restok import alignment, convert_official

TINY = dict(
    image_size=32, channels=8, multipliers=(1, 1), num_res_blocks=1, groups=4, patch_size=2,
    map_channels=6, embed_dim=16, num_layers=3, num_heads=2, num_latents=16, stages=3,
    code_dim=4, codebook_size=32, teacher_dim=5,
)
DEMO = dict(
    image_size=64, channels=24, multipliers=(1, 1), num_res_blocks=1, groups=8, patch_size=4,
    map_channels=32, embed_dim=64, num_layers=3, decoder_layers=2, num_heads=2, num_latents=32,
    stages=3, code_dim=8, codebook_size=512, teacher_dim=128, revive_after=40.0,
)


def made(**options):
    torch.manual_seed(0)
    return ResTok(**{**TINY, **options})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=seeded())


@pytest.fixture(scope="module")
def teacher():
    return torch.randn(2, 64, 5, generator=seeded(1))


def count(module):
    return sum(p.numel() for p in module.parameters())


# --------------------------------------------------------------------------------------- contract
def test_parameters_of_the_release_and_of_the_demo():
    with torch.device("meta"):
        net, demo = ResTok(teacher_dim=None), ResTok(**DEMO)
    wanted = 302_685_248 + 302_689_544 + 23_775_104 + 30_478_339 + 65_536
    assert count(net) == wanted and count(net.quantizer) == 65_536
    assert net.grid == (16, 16) and net.lengths == (4, 8, 16, 32, 64, 128)
    assert count(demo) == 380_344


def test_the_same_picture_from_the_indices(images):
    net = made().eval()
    out, tokens = net(images), net.encode(images)
    assert isinstance(net, Tokenizer) and isinstance(tokens, Quantized)
    assert out.images.shape == images.shape and tokens.codes.shape == (2, 16, 4)
    assert torch.equal(out.quantized.indices, tokens.indices) and tokens.indices.shape == (2, 16)
    assert torch.equal(net.decode_indices(tokens.indices), out.images)
    assert out.features is None and net.bits(tokens) == 16 * 5


def test_pictures_of_another_size(images):
    net = made().eval()
    wide = torch.cat([images, images], dim=3)[:1]
    out = net(wide)
    assert out.images.shape == (1, 3, 32, 64) and out.quantized.codes.shape == (1, 16, 4)
    assert torch.equal(net.decode(out.quantized.codes, grid=(8, 16)), out.images)
    assert made(image_size=(32, 64)).grid == (8, 16)


def test_pixels_are_normalised(images):
    net, seen = made().eval(), []
    net.pixel_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net.encode(torch.tensor([0.485, 0.456, 0.406])[None, :, None, None].expand(1, 3, 32, 32))
    assert seen[0].abs().max() < 1e-6


def test_a_prefix_of_codes_decodes(images):
    net = made().eval()
    codes = net.encode(images).codes
    assert torch.equal(net.decode(codes, 16), net.decode(codes))
    other = codes.clone()
    other[:, 4:] = codes.flip(0)[:, 4:]
    assert torch.equal(net.decode(codes, 4), net.decode(other, 4))
    assert torch.equal(net(images, keep=4).images, net.decode(codes, 4))


def test_state_dict_round_trip(images):
    net, other = made().eval(), made(codebook_size=32).eval()
    with torch.no_grad():
        net.quantizer.codebook.add_(torch.randn(32, 4))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(images).images, other(images).images)


# ---------------------------------------------------------------------------------- nested dropout
def test_lengths_are_drawn_by_their_probabilities():
    net = made()
    lengths = net.draw_lengths(4000, seeded())
    assert torch.equal(lengths, net.draw_lengths(4000, seeded()))
    shares = [(lengths == k).float().mean().item() for k in (4, 8, 16)]
    assert shares == pytest.approx([0.0667, 0.1333, 0.8], abs=0.03)
    assert (made(drop=0.0).draw_lengths(50) == 16).all()
    assert (made(drop=1.0, least=8).draw_lengths(50) == 8).all()


def test_training_drops_per_sample_and_evaluation_does_not(images):
    net, seen = made(), []
    net.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    net(images, generator=seeded())
    assert torch.equal(seen[0], net.draw_lengths(2, seeded()))
    net.eval()(images)
    assert seen[1] is None
    first, second = (made()(images, generator=seeded(3)).images for _ in range(2))
    assert torch.equal(first, second)


# ----------------------------------------------------------------------------------------- the loss
def test_the_parts_of_the_loss(images, teacher):
    net = made(align_weight=0.5)
    loss, parts = net.loss(images, teacher, generator=seeded())
    assert set(parts) == {"pixels", "quantizer", "summary", "patches"}
    sides = [0.5 if name in ("summary", "patches") else 1.0 for name in parts]
    weighted = sum(w * part.item() for w, part in zip(sides, parts.values(), strict=True))
    assert loss.dim() == 0 and loss.item() == pytest.approx(weighted, rel=1e-5)
    assert not any(part.requires_grad for part in parts.values())
    net.eval()
    assert set(net.loss(images)[1]) == {"pixels", "quantizer"}
    out = net(images)
    wanted = F.mse_loss(out.images, images).item()
    assert net.loss(images)[1]["pixels"].item() == pytest.approx(wanted)


def test_who_gets_a_gradient(images, teacher):
    net = made(drop=1.0)
    net.loss(images, teacher)[0].backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    net = made(drop=0.0)
    net.loss(images)[0].backward()
    without = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {
        "vf_proj.weight", "vf_proj_dec.weight", "decoder.feat_mask_token",
        "decoder.latent_mask_token",
    }


def test_alignment_has_a_margin():
    x, y = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert alignment(x, y, 0.25).item() == pytest.approx(0.75)
    assert alignment(x, -x, 0.25).item() == pytest.approx(1.75)
    near = torch.tensor([[[1.0, 0.5]]], requires_grad=True)                  # cos = 0.89
    loss = alignment(near, x, 0.25)
    loss.backward()
    assert loss == 0 and not near.grad.any()
    assert alignment(near, x, 0.0) > 0
    both = torch.cat([x, x], dim=1), torch.cat([x, y], dim=1)
    assert alignment(*both, 0.25).item() == pytest.approx(0.375)             # per position


def test_the_summary_is_that_of_the_coarsest_tokens(images, teacher):
    """Only the coarsest level's tokens are compared: a bias on finer ones changes nothing."""
    net = made().eval()
    encoded = net.encoded(images)
    token = F.linear(encoded.levels[0].mean(1), net.vf_proj.weight[..., 0, 0])
    cosine = F.cosine_similarity(token, teacher.mean(1))
    wanted = (0.75 - cosine).relu().mean().item()
    assert net.loss(images, teacher)[1]["summary"].item() == pytest.approx(wanted, rel=1e-5)
    aligned = net.loss(images, teacher, summary=token.detach())[1]["summary"]
    assert aligned == 0
    assert encoded.levels[0].shape[1] == 16                                  # 8 x 8, 8 x 4, 8 x 2


def test_patches_are_compared_place_by_place(images, teacher):
    net = made()
    out = net(images, keep=16)
    assert out.features.shape == (2, 64, 5)
    net.drop = 0.0
    part = net.loss(images, out.features.detach())[1]["patches"]
    assert part < 1e-4
    turned = out.features.detach().flip(1)
    cosine = F.cosine_similarity(out.features, turned, dim=-1)
    wanted = (0.75 - cosine).relu().mean().item()
    assert net.loss(images, turned)[1]["patches"].item() == pytest.approx(wanted, abs=1e-4)


def test_a_few_steps_learn_under_autocast(images, teacher):
    net = made()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    values = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = net.loss(images, teacher, generator=seeded())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]


# -------------------------------------------------------------------------------- official weights
def test_weights_of_the_release_load(images):
    options = dict(merge="nearest", legacy=True, teacher_dim=None)
    net = made(**options).eval()
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("quantizer.")}
    state["quantize.embedding.weight"] = torch.randn(32, 4)
    state["foundation_model.norm.weight"] = torch.ones(3)
    other = made(**options).eval()
    other.load_state_dict(convert_official({"state_dict": state}))
    assert torch.equal(other.quantizer.codebook, state["quantize.embedding.weight"])
    assert other(images).images.isfinite().all()
    with pytest.raises(ValueError, match="no ResTok"):
        convert_official({"a": torch.ones(1)})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: made(image_size=30), "multiple"),
        (lambda: made(teacher_dim=0), "teacher_dim"),
        (lambda: made(margin=-1), "margin"),
        (lambda: made(least=32), "least"),
        (lambda: made(from_places=1), "from_places"),
        (lambda: made(merge="max"), "merge"),
        (lambda: made()(torch.rand(1, 3, 32, 30)), "multiple"),
        (lambda: made()(torch.rand(1, 1, 32, 32)), "images"),
        (lambda: made()(torch.rand(1, 3, 32, 32), keep=17), "keep"),
        (lambda: made().decode(torch.rand(1, 15, 4)), "15 tokens"),
        (lambda: made().decode_indices(torch.full((1, 16), 32)), "32"),
        (lambda: made().loss(torch.rand(1, 3, 32, 32), torch.rand(1, 63, 5)), "teacher"),
        (lambda: made().loss(torch.rand(1, 3, 32, 32), torch.rand(1, 64, 4)), "teacher"),
        (
            lambda: made().loss(torch.rand(1, 3, 32, 32), torch.rand(1, 64, 5), torch.rand(1, 4)),
            "summary",
        ),
        (
            lambda: made(teacher_dim=None).loss(torch.rand(1, 3, 32, 32), torch.rand(1, 64, 5)),
            "teacher_dim=None",
        ),
        (lambda: made().draw_lengths(2, generator=3), "generator"),
        (lambda: alignment(torch.rand(1, 2, 3), torch.rand(1, 3, 3)), "teacher"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
