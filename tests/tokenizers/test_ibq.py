"""IBQ's tokenizer: official sizes and names, its loss, and a start that keeps all codes."""

import re

import pytest
import torch

from tests.wrong import raw_errors
from vtlib.tokenizers.ibq import IBQTokenizer, convert_official

NET = dict(patch_size=2, channels=8, multipliers=(1, 2), num_res_blocks=1, groups=4)


def made(**options):
    torch.manual_seed(0)
    return IBQTokenizer(**{**dict(dim=4, codebook_size=16, norm=4.0, net=NET), **options})


@pytest.fixture(scope="module")
def images():
    noise = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_official_sizes():
    with torch.device("meta"):
        model = IBQTokenizer()
    assert count(model.encoder) == 46_752_256 and count(model.decoder) == 59_903_875
    assert count(model) == 46_752_256 + 59_903_875 + 2 * (256 * 256 + 256) + 131_072 * 256
    assert model.encoder.factor == 16 and model.quantizer.norm is None


def official(name, levels):
    """A name of `IBQTokenizer` as SEED-Voken has it."""
    def level(match):
        k = int(match[2])
        kind = "down" if match[1] == "encoder" else "up"
        return f"{match[1]}.{kind}.{k if kind == 'down' else levels - 1 - k}.{match[3]}"

    name = name.replace("quantizer.codebook", "quantize.embedding.weight")
    name = re.sub(r"^(encoder|decoder)\.conv_blocks\.(\d)\.(.*)", level, name)
    name = name.replace(".res.", ".block.")
    for k, part in enumerate(("block_1", "attn_1", "block_2")):
        name = name.replace(f".mid.{k}.", f".mid.{part}.")
    return name


def test_official_names_load():
    net = dict(channels=8, multipliers=(1, 1, 2), num_res_blocks=2, attention=True, groups=4)
    model, other = made(net=net, norm=None), made(net=net, norm=None)
    state = {official(name, 3): value for name, value in model.state_dict().items()}
    examples = {
        "encoder.down.0.block.1.conv2.weight", "encoder.down.2.attn.0.proj_out.bias",
        "encoder.mid.attn_1.q.weight", "decoder.up.2.upsample.conv.weight",
        "decoder.up.0.block.2.norm1.weight", "quantize.embedding.weight", "quant_conv.weight",
        "post_quant_conv.bias", "encoder.down.1.downsample.conv.weight", "decoder.norm_out.bias",
    }
    assert examples <= state.keys()
    extra = {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.zeros(1)}
    other.load_state_dict(convert_official({**state, **extra}))
    assert all(torch.equal(a, b) for a, b in zip(
        model.state_dict().values(), other.state_dict().values(), strict=True
    ))


def test_images_to_indices_and_back(images):
    model = made().eval()
    out = model(images)
    assert out.quantized.indices.shape == (2, 4, 6) and out.images.shape == images.shape
    assert out.quantized.codes.shape == (2, 4, 6, 4)
    assert torch.equal(model.decode_indices(out.quantized.indices), out.images)
    assert model.bits(out.quantized) == 24 * 4
    alone = model(images[1:])
    assert torch.equal(alone.quantized.indices, out.quantized.indices[1:])


def test_the_loss_and_whom_it_reaches(images):
    model = made()
    out = model(images)
    loss, parts = model.loss(images, teacher=torch.zeros(2, 3, 5))
    torch.testing.assert_close(parts["pixels"], 2 * (out.images - images).abs().mean())
    torch.testing.assert_close(loss, parts["pixels"] + parts["quantizer"])
    torch.testing.assert_close(parts["quantizer"], out.quantized.loss)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert (model.quantizer.codebook.grad.abs().sum(1) > 0).all()


def test_a_warm_up_without_codes(images):
    model = made()
    value = model.loss_without_codes(images)
    value.backward()
    assert model.quantizer.codebook.grad is None
    assert all(p.grad is not None for p in model.encoder.parameters())
    with torch.no_grad():
        model.quantizer.codebook.fill_(1)
    assert torch.equal(model.loss_without_codes(images), value)


def test_the_codebook_starts_at_the_encoders_outputs(images):
    model = made()
    with torch.no_grad():
        model.quantizer.codebook.copy_(torch.eye(4).repeat(4, 1))
    before = model.encode(images).usage
    model.start_codebook(images)
    assert model.encode(images).usage > 2 * before


def test_the_loss_warms_up_where_it_is_asked_to(images):
    model, plain = made(warm_up=2), made()
    before = model.quantizer.codebook.clone()
    for step in (1, 2):
        loss, parts = model.loss(images)
        assert torch.equal(loss, plain.loss_without_codes(images)) and not parts["quantizer"]
        assert torch.equal(model.quantizer.codebook, before) == (step == 1)
    plain.start_codebook(images)
    assert torch.equal(model.loss(images)[0], plain.loss(images)[0])
    model = made(warm_up=5)
    assert model.eval().loss(images)[1]["quantizer"] and model.waits == 5
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.train().loss(images)[0], plain.loss(images)[0])


def test_no_error_from_deep_inside(images):
    model = made()
    given = dict(dim=4, codebook_size=16, norm=4.0, entropy_weight=0.05, net=NET, warm_up=3)
    with torch.device("meta"):
        assert raw_errors(IBQTokenizer, given) == []
    assert raw_errors(model.loss, dict(images=images), part=True) == []
    assert raw_errors(model.decode, dict(codes=torch.rand(1, 2, 3, 4)), part=True) == []
    with pytest.raises(ValueError, match=r"codes has shape \(1, 2, 3, 5\) but needs \(..., 4\)"):
        model.decode(torch.rand(1, 2, 3, 5))
