"""The plain tokenizer with each bottleneck, and what the base class promises for all."""

import math

import pytest
import torch

from vtlib.quantize import VectorQuantizer
from vtlib.quantize.kl import Sampled
from vtlib.tokenizers import Autoencoder, Tokenizer, ViTDecoder, ViTEncoder, small
from vtlib.tokenizers.base import pixel_loss, total

OPTIONS = {
    "vq": dict(codebook_size=32),
    "kl": {},
    "residual": dict(codebook_size=16, num_levels=3),
    "fsq": dict(levels=(5, 3)),
    "lfq": dict(dim=6),
    "bsq": dict(dim=6),
}
BITS = {"vq": 64 * 5, "kl": math.inf, "residual": 64 * 12, "fsq": 64 * math.log2(15)}


def made(net="cnn", bottleneck="vq", **options):
    torch.manual_seed(0)
    return small(net, bottleneck, **{**OPTIONS[bottleneck], **options})


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bottleneck", OPTIONS)
@pytest.mark.parametrize("net", ["cnn", "vit"])
def test_shapes_bits_and_the_same_picture_from_the_indices(net, bottleneck, images):
    tokenizer = made(net, bottleneck)
    tokenizer(images)                                     # starts codebooks
    tokenizer.eval()
    out = tokenizer(images)
    assert out.images.shape == images.shape and out.features is None
    assert out.quantized.codes.shape[:3] == (2, 8, 8)
    if bottleneck == "kl":
        assert isinstance(out.quantized, Sampled) and tokenizer.bits(out.quantized) == math.inf
        return
    assert tokenizer.bits(out.quantized) == pytest.approx(BITS.get(bottleneck, 64 * 6))
    assert torch.equal(tokenizer.decode_indices(out.quantized.indices), out.images)


@pytest.mark.parametrize("bottleneck", OPTIONS)
def test_the_loss_is_its_parts_and_reaches_every_weight(bottleneck, images):
    tokenizer = made("cnn", bottleneck)
    loss, parts = tokenizer.loss(images, teacher=torch.zeros(2, 64, 5))
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-5)
    assert not any(part.requires_grad for part in parts.values())
    loss.backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_any_size_that_the_factor_divides():
    for net in ("cnn", "vit"):
        tokenizer = made(net, "fsq").eval()
        out = tokenizer(torch.rand(1, 3, 24, 40))
        assert out.images.shape == (1, 3, 24, 40) and out.quantized.indices.shape == (1, 3, 5)


def test_a_few_steps_learn(images):
    tokenizer = made("cnn", "vq")
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 2e-3)
    blurred = torch.nn.functional.avg_pool2d(images, 9, 1, 4)
    first, last = None, None
    for _ in range(12):
        loss, parts = tokenizer.loss(blurred)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = parts["pixels"].item()
        first = last if first is None else first
    assert last < 0.7 * first


def test_own_parts():
    tokenizer = Autoencoder(
        ViTEncoder(4, 4, 8, 1, 2), VectorQuantizer(4, 7), ViTDecoder(4, 4, 8, 1, 2)
    )
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer(torch.rand(1, 3, 8, 12)).quantized.codes.shape == (1, 2, 3, 4)


def test_fsq_takes_its_width_from_the_levels():
    assert made("cnn", "fsq", dim=5).decoder.in_channels == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(net="mlp"), "net='mlp'"),
        (dict(bottleneck="vae"), "bottleneck='vae'"),
        (dict(dim=0), "dim"),
        (dict(codebook_size=0), "codebook_size"),
        (dict(levels=(8,)), "options of bottleneck='vq'"),
    ],
)
def test_bad_arguments(given, said):
    with pytest.raises(ValueError, match=said):
        small(**given)


def test_bad_input(images):
    tokenizer = made().eval()
    with pytest.raises(ValueError, match="multiple"):
        tokenizer(images[..., :-3])
    with pytest.raises(ValueError, match="images"):
        tokenizer(images[:, :2])
    with pytest.raises(ValueError, match=r"\(B, h, w, C\)"):
        tokenizer.decode(torch.rand(2, 8, 8))
    with pytest.raises(ValueError, match="32"):
        tokenizer.decode_indices(torch.full((1, 8, 8), 32))
    with pytest.raises(ValueError, match="indices"):
        tokenizer.decode_indices(torch.rand(1, 8, 8))
    with pytest.raises(ValueError, match="KLBottleneck has none"):
        made("cnn", "kl").decode_indices(torch.zeros(1, 8, 8).long())
    with pytest.raises(ValueError, match="finite"):
        tokenizer(images * float("nan"))
    with pytest.raises(ValueError, match="the truth"):
        pixel_loss(images, images[:1])
    with pytest.raises(ValueError, match=r"weights has \['c'\]"):
        total({"a": torch.ones(())}, {"c": 1.0})


def test_weights_of_the_parts():
    loss, parts = total({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {"b": 0.5})
    assert loss == 3.5 and parts["b"] == 3
