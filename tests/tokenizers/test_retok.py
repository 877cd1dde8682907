"""ReToK: redundant queries, nested dropout over N + M, prefixes, weights by length, two stages."""

import pytest
import torch
from torch import nn

from vtlib.tokenizers import retok as paper
from vtlib.tokenizers.gigatok import GigaTok, convert_official, semantic_loss
from vtlib.tokenizers.retok import (
    PaddedDecoder,
    PaddedEncoder,
    ReToK,
    alignment_weight,
    draw_lengths,
    prefix_mask,
    survival,
)

from ..wrong import raw_errors

CNN = dict(channels=8, multipliers=(1, 2), num_res_blocks=1, num_mid_blocks=1, groups=4)
CNN |= dict(patch_size=2)
SIZES = dict(img_size=32, encoder_size=(16, 1, 2), decoder_size=(24, 2, 3), num_tokens=16)
SIZES |= dict(codebook_size=32, code_dim=4, map_channels=12, align_layer=1, teacher_dim=10, cnn=CNN)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(loud=True, **options):
    """A model with weights large enough that each part is seen."""
    torch.manual_seed(0)
    model = ReToK(**{**SIZES, "min_tokens": 4, **options})
    with torch.no_grad():
        for parameter in model.parameters() if loud else ():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=seeded())


# ------------------------------------------------------------------------------ redundant queries
def test_redundant_queries_are_copies():
    encoder = PaddedEncoder((12, 1, 3), 6, 16, (4, 4))
    encoder.pad(4, 12)
    features = draw(2, 6, 4, 4)
    memory = encoder.encoder_embed(encoder.ln_pre(features.flatten(2).mT))
    queries = encoder.queries(memory)
    assert queries.shape == (2, 28, 12)
    assert torch.equal(queries[:, 16:], queries[:, 4:16])
    assert not torch.equal(encoder.token_positions()[16:], encoder.token_positions()[4:16])
    assert not torch.equal(encoder(features)[:, 16:], encoder(features)[:, 4:16])
    encoder.transformer = nn.ModuleList()                  # no layer: no position, so still copies
    tokens = encoder(features)
    assert tokens.shape == (2, 28, 6) and torch.equal(tokens[:, 16:], tokens[:, 4:16])


def test_redundant_tokens_start_at_the_places_of_what_they_copy():
    part = made(loud=False, from_places=True).s2to1encoder
    noise = part.token_positions()[16:] - part.region_positions()[4:]
    assert noise.std().item() == pytest.approx(1, rel=0.15)
    assert not torch.equal(noise, part.token_positions()[4:16] - part.region_positions()[4:])


def test_fewer_redundant_queries_copy_the_first_ones():
    encoder = PaddedEncoder((12, 1, 3), 6, 16, (4, 4))
    encoder.pad(2, 5)
    queries = encoder.queries(draw(2, 16, 12))
    assert torch.equal(queries[:, 16:], queries[:, 2:7])


def test_tables_have_the_official_names_and_sizes():
    model = made()
    extra = model.state_dict().keys() - GigaTok(**SIZES).state_dict().keys()
    name = "latent_token_positional_embedding_comp"
    assert extra == {f"s2to1encoder.{name}", f"s1to2decoder.{name}"}
    assert model.s2to1encoder.latent_token_positional_embedding_comp.shape == (12, 1, 16)
    assert made(num_redundant=0).state_dict().keys() == GigaTok(**SIZES).state_dict().keys()
    model.load_state_dict(convert_official(model.state_dict()))


def test_real_tokens_are_read_with_the_redundant_ones(images):
    model = made().eval()
    features = model.features(images)
    before = model.s2to1encoder(features)
    assert before.shape == (2, 28, 12) and model.encode(images).codes.shape == (2, 16, 4)
    with torch.no_grad():
        model.s2to1encoder.latent_token_positional_embedding_comp.add_(2 * draw(12, 1, 16))
    after = model.s2to1encoder(features)
    assert ((after - before)[:, :16].abs().amax(dim=-1) > 1e-4).all()


# ------------------------------------------------------------------------------------ prefixes
@pytest.mark.parametrize("k", [1, 5, 16, 20, 28])
def test_cutting_is_hiding(images, k):
    model = made().eval()
    codes = model.encode_all(images).codes
    cut = model.decode(codes, k)
    hidden = model.render(model.read(codes, prefix_mask(torch.tensor([k, k]), 28))[0])
    torch.testing.assert_close(cut, hidden, atol=1e-5, rtol=1e-4)


def test_each_image_has_its_own_length(images):
    model = made().eval()
    codes = model.encode_all(images).codes
    both = model.render(model.read(codes, prefix_mask(torch.tensor([5, 20]), 28))[0])
    for image, k in enumerate((5, 20)):
        alone = model.decode(codes[image:image + 1], k)
        torch.testing.assert_close(both[image:image + 1], alone, atol=1e-5, rtol=1e-4)


def test_by_itself_the_decoder_sees_n_tokens(images):
    model = made().eval()
    codes = model.encode_all(images).codes.detach().requires_grad_()
    image = model.decode(codes)
    assert torch.equal(image, model.decode(codes[:, :16]))
    (grad,) = torch.autograd.grad(image.sum(), codes)
    assert grad[:, :16].any(dim=-1).all() and not grad[:, 16:].any()


def test_indices_decode_as_forward_and_so_do_prefixes(images):
    model = made().eval()
    out = model(images)
    indices = out.quantized.indices
    assert indices.shape == (2, 16) and out.quantized.codes.shape == (2, 16, 4)
    assert torch.equal(model.decode_indices(indices), out.images)
    assert torch.equal(model.encode(images).indices, indices)
    assert model.bits(out.quantized) == 16 * 5
    assert 0 < out.quantized.usage <= 1
    indices = torch.randint(32, (2, 16), generator=seeded())
    short = model.decode_indices(indices[:, :6])
    assert torch.equal(short, model.decode_indices(indices, 6))
    assert not torch.allclose(short, model.decode_indices(indices), atol=1e-2)


# ------------------------------------------------------------------------------ how long, how hard
def test_survival_is_how_often_a_token_is_seen():
    want = survival(16, 12, 4)
    assert want.shape == (28,) and torch.equal(want[:4], torch.ones(4))
    lengths = draw_lengths(40_000, 4, 28, seeded())
    assert lengths.min() == 4 and lengths.max() == 28
    seen = prefix_mask(lengths, 28).float().mean(dim=0)
    torch.testing.assert_close(seen, want, atol=0.01, rtol=0)


def test_survival_of_the_last_token_as_released():
    assert survival(256, 0, 32)[255].item() == pytest.approx(1 / 225)
    assert survival(256, 224, 32)[255].item() == pytest.approx(225 / 449)


def test_weights_fall_with_length():
    k = torch.arange(1, 481)
    w = alignment_weight(k, 32, 256)
    assert torch.equal(w[:32], torch.full((32,), 0.5)) and (w.diff() <= 0).all()
    torch.testing.assert_close(w[255:], torch.full((225,), 0.05))
    assert w[143].item() == pytest.approx(0.275)                          # halfway: k = 144
    steep = alignment_weight(k, 32, 256, w_max=1.0, w_min=0.2, shape=2.0)
    assert steep[143].item() == pytest.approx(0.4) and (steep.diff() <= 0).all()
    assert alignment_weight(torch.tensor([4, 4]), 4, 4).isfinite().all()


def test_lengths_are_drawn_in_training_only(images):
    model = made()
    codes = model.encode_all(images).codes
    lengths = model.read_prefix(codes, seeded())[2]
    assert torch.equal(lengths, draw_lengths(2, 4, 28, seeded()))
    assert torch.equal(lengths, model.read_prefix(codes, seeded())[2])
    drawn = torch.stack([model.read_prefix(codes, seeded(i))[2] for i in range(20)])
    assert drawn.min() < 16 < drawn.max() and (drawn[:, 0] != drawn[:, 1]).any()
    model.per_image = False
    drawn = torch.stack([model.read_prefix(codes, seeded(i))[2] for i in range(20)])
    assert torch.equal(drawn[:, 0], drawn[:, 1]) and len(drawn.unique()) > 5
    spatial, inner, lengths = model.eval().read_prefix(codes)
    assert lengths.tolist() == [16, 16]
    torch.testing.assert_close(model.render(spatial), model(images).images)


# --------------------------------------------------------------------------------------- training
def test_the_loss_is_its_parts(images):
    model, teacher = made(w_max=0.8, w_min=0.2), draw(2, 64, 10)
    loss, parts = model.loss(images, teacher, seeded(3))
    out = model(images, seeded(3))
    weight = alignment_weight(draw_lengths(2, 4, 28, seeded(3)), 4, 16, 0.8, 0.2)
    assert weight[0] != weight[1]
    semantic = (weight * semantic_loss(out.features, teacher)).mean()
    torch.testing.assert_close(parts["semantic"], semantic.detach())
    pixels = (out.images - images).square().mean()
    torch.testing.assert_close(loss, 4 * pixels + out.quantized.loss + semantic)
    again = model.loss(images, teacher, seeded(3))[0]
    assert torch.equal(loss, again)
    model.eval()
    assert torch.equal(model.loss(images, teacher)[0], model.loss(images, teacher)[0])
    assert set(model.loss(images)[1]) == {"pixels", "quantizer"}


def test_every_weight_learns(images):
    model = made(loud=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(images, draw(2, 64, 10), seeded(1))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    used = model.s1to2decoder.latent_token_positional_embedding_comp.grad[:, 0].abs().sum(dim=1) > 0
    seen = draw_lengths(2, 4, 28, seeded(1)).max().item() - 16
    assert seen > 0 and used.sum() == seen                 # positions of tokens that some image saw


def test_then_only_the_decoder_learns(images):
    model, teacher = made(loud=False), draw(2, 64, 10)
    before = model.quantizer.codebook.clone()
    model.finetune_decoder()
    loss, parts = model.loss(images, teacher, seeded(1))
    assert set(parts) == {"pixels"}
    loss.backward()
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learns == {"post_quant_conv", "s1to2decoder", "decoder"}
    assert torch.equal(model.quantizer.codebook, before) and not model.quantizer.idle.any()
    model.finetune_decoder(False)
    assert set(model.loss(images, teacher)[1]) == {"pixels", "quantizer", "semantic"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_redundant_tokens_it_is_nested_dropout_alone(images):
    model = made(num_redundant=0)
    assert model.encode_all(images).codes.shape == (2, 16, 4)
    lengths = [model.read_prefix(model.encode_all(images).codes, seeded(i))[2] for i in range(20)]
    assert torch.stack(lengths).max() <= 16
    assert model.loss(images, draw(2, 64, 10))[0].isfinite()


@pytest.mark.parametrize("build, count", [
    (paper.retok_s_s, 136_073_227 + 224 * (512 + 512)), (paper.retok_s_b, 232_686_347),
])
def test_parameter_counts(build, count):
    with torch.device("meta"):
        model = build()
    assert sum(p.numel() for p in model.parameters()) == count
    assert (model.num_tokens, model.num_redundant, model.min_tokens) == (256, 224, 32)


# --------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("options, said", [
    (dict(min_tokens=0), "min_tokens=0"),
    (dict(min_tokens=17), "min_tokens=17"),
    (dict(num_redundant=13), "num_redundant=13"),
    (dict(num_redundant=-1), "num_redundant=-1"),
    (dict(w_min=0.6), "w_min=0.6"),
    (dict(shape=0), "shape=0"),
    (dict(per_image=1), "per_image=1"),
    (dict(semantic_weight=0.5), "ReToK has no semantic_weight"),
    (dict(shortcut=True), "ReToK has no shortcut"),
])
def test_wrong_sizes_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        made(**options)


@pytest.mark.parametrize("count", [0, 17, 2.0, True])
def test_wrong_numbers_of_tokens_are_named(count):
    with pytest.raises(ValueError, match="num_tokens"):
        made().decode(draw(1, 16, 4), count)


def test_more_tokens_than_there_are_places():
    with pytest.raises(ValueError, match="29 of them but there are 28"):
        made().decode(draw(1, 29, 4), 29)


def test_what_is_no_argument_is_refused(images):
    model, codes = made().eval(), draw(2, 16, 4)
    decoder = PaddedDecoder((12, 1, 3), 6, 8, (4, 2), 1, 5)
    calls = {
        "draw_lengths": (draw_lengths, dict(
            count=2, min_tokens=3, num_columns=9, generator=seeded()
        )),
        "prefix_mask": (prefix_mask, dict(lengths=torch.tensor([1, 2]), num_columns=4)),
        "survival": (survival, dict(num_tokens=8, num_redundant=4, min_tokens=2)),
        "alignment_weight": (alignment_weight, dict(
            lengths=torch.tensor([1, 2]), min_tokens=2, num_tokens=8, w_max=0.5, w_min=0.1,
            shape=1.0,
        )),
        "pad": (decoder.pad, dict(min_tokens=2, num_redundant=4)),
        "ReToK.forward": (model, dict(images=images, generator=seeded())),
        "ReToK.decode": (model.decode, dict(codes=codes, num_tokens=3)),
        "ReToK.decode_indices": (model.decode_indices, dict(
            indices=torch.zeros(2, 16, dtype=torch.long), num_tokens=3
        )),
        "ReToK.loss": (model.loss, dict(
            images=images, teacher=draw(2, 64, 10), generator=seeded()
        )),
        "finetune_decoder": (model.finetune_decoder, dict(only=False)),
    }
    with torch.no_grad():
        found = {name: raw_errors(*call, part=True) for name, call in calls.items()}
    assert {name: errors for name, errors in found.items() if errors} == {}
