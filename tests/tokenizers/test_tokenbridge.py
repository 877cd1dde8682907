"""TokenBridge: a KL autoencoder made discrete without training; the order of its channels."""

import math

import pytest
import torch

from vtlib.nn.cnn import CNNDecoder, CNNEncoder
from vtlib.quantize import DimensionWise, KLBottleneck, VectorQuantizer
from vtlib.quantize.dimwise import gaussian_bins
from vtlib.quantize.kl import DiagonalGaussian, Sampled
from vtlib.tokenizers.autoencoder import Autoencoder
from vtlib.tokenizers.base import Tokenizer
from vtlib.tokenizers.tokenbridge import (
    FREQUENCY_ORDER,
    TokenBridge,
    frequency_order,
    inverse_order,
    standardisation,
)

NETS = dict(channels=8, multipliers=(1, 1), num_res_blocks=1, num_mid_blocks=0, groups=4)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autoencoder(dim=4, bottleneck=None):
    torch.manual_seed(0)
    quantizer = bottleneck or KLBottleneck()
    encoder = CNNEncoder(3, dim if bottleneck else 2 * dim, patch_size=4, **NETS)
    return Autoencoder(encoder, quantizer, CNNDecoder(dim, 3, patch_size=4, **NETS))


class Given(Tokenizer):
    """A continuous tokenizer whose latents are the pictures, and the other way round."""

    def __init__(self):
        super().__init__()
        self.quantizer = KLBottleneck()

    def encode(self, images):
        latents = images.movedim(1, -1)
        return Sampled(latents, images.new_zeros(()), DiagonalGaussian(latents, latents))

    def decode(self, codes):
        return codes.movedim(-1, 1)


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------- the tokenizer
def test_tokens_are_the_nearest_values_of_the_means(images):
    kl = autoencoder().eval()
    net, means = TokenBridge(kl, 4, 16), kl.encode(images).codes
    out = net(images)
    assert out.quantized.indices.shape == (2, 2, 3, 4)
    assert torch.equal(out.quantized.indices, DimensionWise(4, 16)(means).indices)
    assert torch.equal(net.decode_indices(out.quantized.indices), out.images)
    assert torch.equal(net.encode(images).codes, net.quantizer.decode(out.quantized.indices))
    assert net.bits(out.quantized) == 2 * 3 * 4 * 4 and out.quantized.loss == 0
    torch.testing.assert_close(out.images, kl.decode(out.quantized.codes))


def test_nothing_is_trained(images):
    kl = autoencoder()
    net = TokenBridge(kl, 4).train()
    assert not any(p.requires_grad for p in net.parameters())
    assert net.training and not any(m.training for m in kl.modules())
    assert {name.split(".")[0] for name in net.state_dict()} == {"autoencoder"}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = net(images)                                     # means: training draws no sample
    assert torch.equal(net.eval()(images).images, first.images)
    images.requires_grad_()
    loss, parts = net.loss(images)
    loss.backward()                                         # straight through, to the pictures
    assert images.grad.abs().sum() > 0 and parts.keys() == {"pixels", "quantizer"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_more_bits_come_nearer_to_the_autoencoder(images):
    kl = autoencoder().eval()
    shift, scale = standardisation(kl.encode(images).codes)
    errors = []
    for levels in (4, 8, 16, 64, 512):
        net = TokenBridge(kl, 4, levels, shift=shift, scale=scale)
        errors.append((net(images).images - kl(images).images).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 1000


def test_latents_three_times_as_wide_are_clipped_unless_standardised():
    """The card's failure mode, and the way out."""
    latents = 3 * draw(8, 4, 16, 16) + torch.tensor([0.0, 0.0, 4.0, -4.0])[:, None, None]
    plain = TokenBridge(Given(), 4)
    shift, scale = standardisation(plain.latents(latents))
    fitted = TokenBridge(Given(), 4, shift=shift, scale=scale)
    release = TokenBridge(Given(), 4, scale=1 / 3)
    errors = {
        name: (net(latents).images - latents).square().mean((0, 2, 3))
        for name, net in (("plain", plain), ("fitted", fitted), ("release", release))
    }
    assert (errors["plain"][:2] > 0.3).all() and (errors["plain"][2:] > 2).all()
    assert (errors["fitted"] < 0.01).all() and (errors["release"][:2] < 0.01).all()
    assert (errors["release"][2:] > errors["fitted"][2:]).all()
    share = plain.encode(latents).indices.eq(63).float().mean().item()
    assert share > 0.15 and fitted.encode(latents).indices.eq(63).float().mean() < 0.02


def test_standardised_codes_are_what_decode_takes():
    latents = draw(2, 4, 5, 3)
    net = TokenBridge(Given(), 4, 32, shift=(1, 2, 3, 4), scale=torch.tensor([0.5, 1.0, 2.0, 4.0]))
    want = (latents.movedim(1, -1) - torch.arange(1.0, 5)) * 2.0 ** torch.arange(-1, 3)
    torch.testing.assert_close(net.latents(latents), want)
    torch.testing.assert_close(net.decode(net.latents(latents)), latents)
    indices = net.encode(latents).indices
    torch.testing.assert_close(net.encode(net.decode_indices(indices)).indices, indices)


def test_standardisation_gives_mean_0_and_deviation_1():
    latents = 5 * draw(4, 3, 3, 6) * torch.arange(1.0, 7) + 2
    shift, scale = standardisation(latents)
    std, mean = torch.std_mean(((latents - shift) * scale).flatten(0, -2), dim=0)
    torch.testing.assert_close(mean, torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(6))
    latents[..., 4] = 7
    with pytest.raises(ValueError, match="channel 4 has one value"):
        standardisation(latents)
    for wrong in (latents[0, 0, 0], latents.long(), torch.tensor([[0.0], [math.nan]])):
        with pytest.raises(ValueError, match="latents"):
            standardisation(wrong)


@pytest.mark.parametrize("setting", ["meta", "bfloat16", "autocast", "compile"])
def test_where_it_runs(setting, images):
    with torch.device("meta" if setting == "meta" else "cpu"):
        net = TokenBridge(autoencoder(), 4, 16, scale=(1, 2, 3, 4))
    if setting == "meta":
        assert net(images.to("meta")).images.shape == images.shape
    elif setting == "bfloat16":
        out = net.bfloat16()(images.bfloat16())
        assert out.images.dtype == torch.bfloat16 and out.images.isfinite().all()
        assert torch.equal(net.decode_indices(out.quantized.indices), out.images)
    elif setting == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert (net(images).images - net.float()(images).images).abs().max() < 1
    else:
        compiled = torch.compile(net.encode, backend="eager", fullgraph=True)
        assert torch.equal(compiled(images).indices, net.encode(images).indices)


def test_what_is_no_tokenizer_is_refused(images):
    with pytest.raises(ValueError, match="autoencoder is a Autoencoder: needs .* continuous"):
        TokenBridge(autoencoder(4, VectorQuantizer(4, 8)), 4)
    with pytest.raises(ValueError, match="autoencoder is a Conv2d"):
        TokenBridge(torch.nn.Conv2d(3, 4, 1), 4)
    for name, wrong in {
        "levels": 1, "dim": 0, "limits": (2, -2), "r": 0, "scale": 0, "shift": (1, 2),
    }.items():
        with pytest.raises(ValueError, match=name):
            TokenBridge(autoencoder(), **{"dim": 4, name: wrong})
    net = TokenBridge(autoencoder(), 4)
    with pytest.raises(ValueError, match="the autoencoder's latents"):
        TokenBridge(autoencoder(), 5).encode(images)
    for wrong in (torch.zeros(1, 2, 3, 5), torch.full((1, 2, 3, 4), math.nan)):
        with pytest.raises(ValueError, match="codes"):
            net.decode(wrong)
    with pytest.raises(ValueError, match="indices"):
        net.decode_indices(torch.full((1, 2, 3, 4), 64))


def test_gamma_is_antisymmetric_and_codes_are_fixed_points():
    means = gaussian_bins(64)[1]
    assert torch.equal(means, -means.flip(0)) and (means.diff() > 0).all()
    net = TokenBridge(Given(), 4)
    every = torch.arange(64)[:, None, None].expand(-1, 2, 4)[None]
    assert torch.equal(net.quantizer(net.quantizer.decode(every)).indices, every)


# --------------------------------------------------------------------------- order of channels
def test_smooth_channels_come_first():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    phase = draw(6, 1, 1)
    slow = torch.sin(2 * math.pi * rows / 8 + phase)
    middle = torch.sin(2 * math.pi * 2 * columns / 8 + phase)
    fast = torch.cos(math.pi * (rows + columns)) * phase
    latents = torch.stack([fast, slow + 0.1 * fast, 9 * slow, middle + slow / 2], dim=-1)
    assert frequency_order(latents).tolist() == [2, 1, 3, 0]
    assert frequency_order(latents + 100 * torch.arange(4)).tolist() == [2, 1, 3, 0]
    assert frequency_order(latents * torch.tensor([9, 1, 5, 0.1])).tolist() == [2, 1, 3, 0]


def test_frequency_order_against_sums_of_cosines():
    latents = draw(3, 4, 6, 5)
    maps = (latents - latents.mean((0, 1, 2))).double()
    low, total = torch.zeros(5), torch.zeros(5)
    for u in range(4):
        for v in range(6):
            angle = 2 * math.pi * (u * torch.arange(4)[:, None] / 4 + v * torch.arange(6) / 6)
            wave = torch.polar(torch.ones_like(angle), -angle).to(torch.complex128)
            energy = (maps * wave[..., None]).sum((1, 2)).abs().square().sum(0)
            total += energy
            if math.hypot(min(u, 4 - u) / 4, min(v, 6 - v) / 6) <= 0.3:
                low += energy
    assert torch.equal(frequency_order(latents, 0.3), (low / total).argsort(descending=True))


def test_an_order_and_its_inverse():
    assert sorted(FREQUENCY_ORDER) == list(range(16))
    x, inverse = draw(16), list(inverse_order(FREQUENCY_ORDER))
    assert torch.equal(x[list(FREQUENCY_ORDER)][inverse], x)
    assert torch.equal(x[inverse][list(FREQUENCY_ORDER)], x)
    assert inverse_order(torch.tensor([2, 0, 1])) == (1, 2, 0)
    for wrong in ((0, 0, 1), (1, 2, 3), "012", (0.0, 1.0)):
        with pytest.raises(ValueError, match="order"):
            inverse_order(wrong)
    for wrong in (draw(4, 4, 3), draw(1, 4, 4, 3).long(), draw(1, 4, 4, 3) / 0):
        with pytest.raises(ValueError, match="latents"):
            frequency_order(wrong)
    with pytest.raises(ValueError, match="cutoff"):
        frequency_order(draw(1, 4, 4, 3), 0.8)
