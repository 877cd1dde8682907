"""TokenBridge - Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation (Wang,
Lin, Teng, Zhu, Ren, Feng, Liu, 2025, arXiv 2503.16430).

The idea: discrete tokens are easy to model but a quantiser that is trained loses detail; continuous
tokens keep it but need a diffusion head. So train no quantiser: take a trained KL autoencoder and
cut every channel of its latents into B Gaussian-shaped levels afterwards. The B^C tokens that a
position may have are then modelled by a small head that predicts one channel after another.

    n = (x - shift) scale                            standardisation, TokenBridge; x: latents
    q_c = nearest of B means of a cut Gaussian       vtlib.quantize.DimensionWise
    x^ = value(q) / scale + shift, the old decoder   TokenBridge.decode
    order: most low-frequency energy first           frequency_order; back: inverse_order
    p(q | z) = prod_i p(q_o(i) | q_o(<i), z)         tokenbridge_head.DimensionHead, z: a context
    z of masked positions, from the values q^ of     tokenbridge_generator.MaskedGenerator: MAR's
        visible ones and a class                     encoder-decoder, its loss, sampling

Different from the release (YuqingWang1029/TokenBridge):
- the tokens are of the posterior's mean, so a picture has one code; there, of a sample;
- there, latents are multiplied by 0.2325, which gives those of its autoencoder a deviation of 1;
  here that is `scale=0.2325`, or a shift and a scale a channel (`standardisation`).
What differs in head and generator is said there. The published order of channels is given
(FREQUENCY_ORDER); how it was found is told in words only, so that `frequency_order` is inferred.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ..nn.checks import (
    check_axes,
    check_finite,
    check_float,
    check_ints,
    check_number,
    check_numbers,
)
from ..quantize.contract import Quantized, check_latents
from ..quantize.dimwise import DimensionWise
from ..quantize.kl import Sampled
from ..tokens.precision import widen
from .base import Tokenizer

PAPER = "tokenbridge"

FREQUENCY_ORDER = (8, 1, 10, 9, 6, 12, 4, 0, 3, 11, 7, 14, 2, 15, 13, 5)
"""The release's order of the 16 channels of MAR's autoencoder, of which 8 has most low-frequency
energy."""


# ------------------------------------------------------------------------------- the tokenizer
def standardisation(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale (C,) of each channel, with which (latents - shift) scale has mean 0 and
    deviation 1: the mean, and 1 over the deviation. latents (..., C), two at least, in float32.

    ValueError: not floating, not finite, or a channel that does not vary.
    """
    check_float(latents, "latents")
    if latents.dim() < 2 or latents[..., 0].numel() < 2:
        raise ValueError(f"latents has shape {tuple(latents.shape)}: needs (..., C), two at least")
    check_finite(latents, "latents")
    rows = widen(latents.detach()).flatten(0, -2)
    std, mean = torch.std_mean(rows, dim=0)
    if not rows.is_meta and (std == 0).any():
        raise ValueError(f"latents: channel {int((std == 0).nonzero()[0])} has one value only")
    return mean, 1 / std


class TokenBridge(Tokenizer):
    """A trained KL autoencoder whose latents become numbers, channel by channel, without training.

        tokenizer = TokenBridge(autoencoder, dim=16, levels=64)
        tokenizer.encode(images).indices                       (B, h, w, C) long, each below B

    Codes are the standardised latents: those of `encode`, those that `decode` takes, and those that
    a generator works with. Gradients pass straight through to the images.

    Args:
        autoencoder: a continuous `Tokenizer`, an `Autoencoder` with a `KLBottleneck`. It is frozen:
            from here on it stays in eval mode and its weights get no gradient.
        dim: C, the channels of its latents.
        levels: B, how many values a channel may take.
        limits: (low, high) of the values, in deviations; one pair, or one a channel.
        r: where the Gaussian is cut, see `DimensionWise`.
        shift: of the latents, a number or one a channel.
        scale: of the latents, likewise, above 0. Latents of another deviation than 1 lose what is
            beyond the limits: see `standardisation`.

    ValueError: an autoencoder that is none, or that has indices already; sizes out of range.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        autoencoder: Tokenizer,
        dim: int = 16,
        levels: int = 64,
        limits: Sequence[float] | Sequence[Sequence[float]] | Tensor = (-5.0, 5.0),
        r: float = 3.0,
        shift: float | Sequence[float] | Tensor = 0.0,
        scale: float | Sequence[float] | Tensor = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(autoencoder, Tokenizer) or hasattr(autoencoder.quantizer, "decode"):
            kind = type(autoencoder).__name__
            raise ValueError(f"autoencoder is a {kind}: needs a Tokenizer with continuous latents")
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.quantizer = DimensionWise(dim, levels, limits, r)
        shifts = _each(shift, "shift", self.quantizer.dim)
        scales = _each(scale, "scale", self.quantizer.dim)
        if min(scales) <= 0:
            raise ValueError(f"scale={scales}: needs numbers above 0")
        self.register_buffer("shift", torch.tensor(shifts, dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float32), persistent=False)

    def train(self, mode: bool = True) -> "TokenBridge":
        """The autoencoder stays in eval mode: its latents are the means, not samples."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def latents(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> standardised latents (B, h, w, C), not yet discrete."""
        out = self.autoencoder.encode(images)
        if not isinstance(out, Sampled):
            raise ValueError(f"autoencoder gives a {type(out).__name__}: needs a Sampled")
        check_latents(out.codes, self.quantizer.dim, "the autoencoder's latents")
        return (widen(out.codes) - self.shift) * self.scale

    def encode(self, images: Tensor) -> Quantized:
        return self.quantizer(self.latents(images))

    def decode(self, codes: Tensor) -> Tensor:
        check_latents(codes, self.quantizer.dim, "codes")
        return self.autoencoder.decode(codes / self.scale + self.shift)


def _each(value: object, name: str, dim: int) -> tuple[float, ...]:
    """A number for every channel, or one for each."""
    if isinstance(value, Tensor) and value.dim() == 0 or isinstance(value, (int, float)):
        return (check_number(value, name),) * dim
    return check_numbers(value, name, length=dim)


# --------------------------------------------------------------------------- order of channels
def frequency_order(latents: Tensor, cutoff: float = 0.125) -> Tensor:
    """The channels (C,), the one with the largest share of its energy in low frequencies first.

        share_c = sum over |f| <= cutoff of |FFT(x_c)|^2 / sum over all f of |FFT(x_c)|^2

    x_c: latents of the channel less their mean over all pictures, f: cycles a position in both
    directions; the sums run over all pictures. Ties go to the lower channel. Inferred: the paper
    speaks of an FFT and low frequencies, without a formula.

    Args:
        latents: (B, h, w, C).
        cutoff: the highest frequency that is low; the highest of all along one side is 0.5.

    ValueError: not floating (B, h, w, C), not finite, cutoff out of 0 ... 0.7071.
    """
    check_axes(latents, "latents", "(B, h, w, C)")
    check_finite(latents, "latents")
    cutoff = check_number(cutoff, "cutoff", 0, 2**-0.5)
    maps = rearrange(widen(latents.detach()), "b h w c -> b c h w")
    maps = maps - maps.mean(dim=(0, 2, 3), keepdim=True)
    energy = torch.fft.fft2(maps).abs().square().sum(dim=0)                      # c h w
    rows, columns = (torch.fft.fftfreq(n, device=maps.device) for n in maps.shape[-2:])
    low = torch.hypot(rows[:, None], columns) <= cutoff                          # h w
    share = (energy * low).sum(dim=(1, 2)) / energy.sum(dim=(1, 2))
    return share.nan_to_num(0).argsort(descending=True, stable=True)


def inverse_order(order: Sequence[int] | Tensor) -> tuple[int, ...]:
    """Where each channel is in `order`: x[order][inverse_order(order)] is x.

    ValueError unless `order` holds each of 0 ... C - 1 once.
    """
    places = check_ints(order, "order", 0)
    if sorted(places) != list(range(len(places))):
        raise ValueError(f"order={places}: needs each of 0 ... {len(places) - 1} once")
    return tuple(places.index(channel) for channel in range(len(places)))
