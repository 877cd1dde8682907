"""Diffusion in pixels, conditioned on text: a small U-Net that any family may train or freeze.

    x_t = alpha_t x_0 + sigma_t eps          alpha_t^2 = abar_t, sigma_t^2 = 1 - abar_t
    v_t = alpha_t eps - sigma_t x_0          what the net is asked for
    loss = || v_theta(x_t, t, text) - v_t ||^2                             (`diffusion_loss`)

DDPM, Ho, Jain, Abbeel 2020, arXiv 2006.11239: the forward process, the net as a U-Net, uniform t.
Cosine schedule, Nichol, Dhariwal 2021, arXiv 2102.09672, eq. 17, with its s = 0.008 (`alphas`).
v, Salimans, Ho 2022, arXiv 2202.00512, appendix D: asks for the noise where little is left of it
    and for the picture where little is left of that, so all t have losses of one size.
DDIM, Song, Meng, Ermon 2020, arXiv 2010.02502, eq. 12 with sigma = 0 (`ddim`).
Text by cross-attention at several strides, a share of the prompts emptied in training
(classifier-free guidance, Ho, Salimans 2022, arXiv 2207.12598): Latent Diffusion, Rombach et al.
2022, arXiv 2112.10752.

Unlike Stable Diffusion: pixels, no autoencoder (made for about 64 px; squares of 2 x 2 pixels are
folded into channels first); cosine schedule and v, where Stable Diffusion 1 has a "scaled linear"
schedule and eps; an empty prompt is no text at all, where Stable Diffusion has its text encoder
read an empty string.

Features of a frozen net, `Denoiser.features`: ONE pass at one small t, no sampling, no random
number, as ODISE does (Xu et al. 2023, arXiv 2303.04803): the encoder's map at each stride and the
decoder's last map.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.attention import attend
from ..nn.blocks import Mlp
from ..nn.checks import (
    check_dtype,
    check_generator,
    check_heads,
    check_images,
    check_int,
    check_ints,
    check_multiple,
    check_number,
    check_tokens,
    describe,
)

STEPS = 1000
"""Noise levels t = 0 ... STEPS - 1."""
OFFSET = 0.008


def alphas(t: Tensor) -> tuple[Tensor, Tensor]:
    """t (B,) of 0 ... STEPS - 1 -> alpha, sigma (B, 1, 1, 1) float32 of the cosine schedule.

        abar(u) = cos^2((u + s) / (1 + s) * pi / 2) / cos^2(s / (1 + s) * pi / 2),
        u = (t + 1) / STEPS

    The paper clips beta at 0.999; here abar is kept above 1e-5 to the same end.
    """
    angle = ((t.float() + 1) / STEPS + OFFSET) / (1 + OFFSET) * (math.pi / 2)
    first = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2) ** 2
    kept = (angle.cos().square() / first).clamp(1e-5, 1)[:, None, None, None]
    return kept.sqrt(), (1 - kept).sqrt()


def add_noise(images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t noise.

    Args:
        images: x_0 (B, C, H, W), `Denoiser.scaled`.
        t: (B,) noise levels.
        noise: standard normal, of that shape or one that broadcasts to it.
    """
    alpha, sigma = (part.to(images.dtype) for part in alphas(t))
    return alpha * images + sigma * noise


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """t (B,) -> (B, dim) float32: cosines and sines of t over wavelengths up to 2 pi 10000.

    Args:
        t: noise levels.
        dim: even.
    """
    half = dim // 2
    places = torch.arange(half, device=t.device, dtype=torch.float32)
    angle = t.float()[:, None] * (-math.log(10000.0) * places / half).exp()
    return torch.cat([angle.cos(), angle.sin()], -1)


class Features(NamedTuple):
    """Maps of one pass: the encoder's at each stride, finest first, and the decoder's last."""

    encoder: list[Tensor]  # (B, widths[i], H / strides[i], W / strides[i])
    decoder: Tensor  # (B, widths[0], H / strides[0], W / strides[0])


class TimedBlock(nn.Module):
    """Residual block; the noise level scales and shifts its middle, per channel.

        x -> shortcut(x) + conv(silu((1 + scale(t)) norm(conv(silu(norm(x)))) + shift(t)))

    Args:
        in_channels: of the input.
        out_channels: of the output; another number makes the shortcut a 1 x 1 convolution.
        time_dim: channels of the noise level's embedding.
        groups: of the norms.
    """

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)                       # each block begins as its shortcut
        nn.init.zeros_(self.conv2.bias)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        y = self.conv2(F.silu((1 + scale) * self.norm2(y) + shift))
        return self.shortcut(x) + y


class TextBlock(nn.Module):
    """A map's pixels attend to each other, then to the text, then an MLP: all residual.

    Args:
        channels: of the map.
        text_dim: of a text token.
        num_heads: must divide `channels`.
    """

    def __init__(self, channels: int, text_dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        self.num_heads = num_heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.text_q = nn.Linear(channels, channels)
        self.text_kv = nn.Linear(text_dim, 2 * channels)
        self.text_proj = nn.Linear(channels, channels)
        self.mlp = Mlp(channels, 2 * channels)

    def forward(self, x: Tensor, text: Tensor, used: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape.

        Args:
            x: the map.
            text: (B, N, text_dim).
            used: (B, 1, 1, N) bool, which tokens are read.
        """
        y = x.flatten(2).mT                                                               # b n c
        q, k, v = self._split(self.qkv(self.norm1(y)), 3)
        y = y + self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        (q,), (k, v) = self._split(self.text_q(self.norm2(y)), 1), self._split(
            self.text_kv(text), 2
        )
        y = y + self.text_proj(attend(q, k, v, used).transpose(1, 2).flatten(2))
        y = y + self.mlp(self.norm3(y))
        return y.mT.reshape(x.shape)

    def _split(self, x: Tensor, parts: int) -> Sequence[Tensor]:
        """(B, N, parts C) -> `parts` tensors (B, heads, N, C / heads)."""
        x = x.unflatten(-1, (parts, self.num_heads, -1))                           # b n parts h p
        return x.permute(2, 0, 3, 1, 4).unbind(0)


class Level(nn.Module):
    """One stride on one side of the U-Net: a residual block, and a text block where asked for.

    Args:
        channels: (in, out).
        time_dim: channels of the noise level's embedding.
        groups: of the norms.
        text: (text_dim, num_heads), or None: no text block.
    """

    def __init__(
        self, channels: tuple[int, int], time_dim: int, groups: int, text: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.block = TimedBlock(*channels, time_dim, groups)
        self.text = TextBlock(channels[1], *text) if text else None

    def forward(self, x: Tensor, time: Tensor, text: Tensor, used: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w).

        Args:
            x: the map.
            time: (B, time_dim).
            text: (B, N, text_dim).
            used: (B, 1, 1, N) bool, which tokens are read.
        """
        x = self.block(x, time)
        return x if self.text is None else self.text(x, text, used)


class Denoiser(nn.Module):
    """v_theta(x_t, t, text): a U-Net of one residual block a stride and side.

    Sides of pictures must be multiples of `multiple` = patch_size * 2^(len(widths) - 1): 16 by
    default. Nothing in it depends on the size otherwise.

    Args:
        text_dim: channels of a text token.
        widths: channels at strides patch_size, 2 patch_size, ...
        text_at: which of the strides read the text (and let their pixels see each other), on both
            sides of the U-Net; one entry a stride.
        num_heads: of attention.
        patch_size: squares of so many pixels are folded into channels first.
        time_dim: channels of the noise level's embedding.
        groups: of the group norms, a divisor of all widths.
        in_chans: of pictures.
        scale: pictures of 0 ... 1 become -scale ... scale. Noise has variance 1, so should what
            the pictures are about: faint ones need more than 1 (Stable Diffusion's factor of its
            latents, 0.18215, is there for the same reason).
    """

    def __init__(
        self,
        text_dim: int = 32,
        widths: Sequence[int] = (48, 64, 96, 128),
        text_at: Sequence[bool] = (False, True, True, True),
        num_heads: int = 4,
        patch_size: int = 2,
        time_dim: int = 128,
        groups: int = 8,
        in_chans: int = 3,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        widths = check_ints(widths, "widths", 1)
        if not widths or len(text_at) != len(widths):
            raise ValueError(f"text_at={text_at!r}: needs one entry for each of widths={widths}")
        if check_int(time_dim, "time_dim", 2) % 2:
            raise ValueError(f"time_dim={time_dim}: needs an even number")
        self.text_dim = check_int(text_dim, "text_dim", 1)
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.in_chans = check_int(in_chans, "in_chans", 1)
        self.scale = check_number(scale, "scale", above=0)
        self.widths = widths
        self.strides = tuple(self.patch_size * 2**i for i in range(len(widths)))
        self.multiple = self.strides[-1]
        folded = in_chans * patch_size**2
        self.time_dim = time_dim
        self.time = nn.Sequential(nn.Linear(time_dim, time_dim), nn.SiLU())
        self.none = nn.Parameter(torch.randn(1, 1, text_dim) * 0.02)
        self.stem = nn.Conv2d(folded, widths[0], 3, padding=1)

        def level(channels: tuple[int, int], i: int) -> Level:
            text = (self.text_dim, num_heads) if text_at[i] else None
            return Level(channels, time_dim, groups, text)

        before = (widths[0], *widths[:-1])
        self.encoder = nn.ModuleList(level((widths[i], widths[i]), i) for i in range(len(widths)))
        self.down = nn.ModuleList(
            nn.Conv2d(before[i], widths[i], 3, stride=2, padding=1) for i in range(1, len(widths))
        )
        self.up = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i - 1], 1) for i in range(1, len(widths))
        )
        self.decoder = nn.ModuleList(
            level((2 * widths[i] if i < len(widths) - 1 else widths[i], widths[i]), i)
            for i in range(len(widths))
        )
        self.norm = nn.GroupNorm(groups, widths[0])
        self.head = nn.Conv2d(widths[0], folded, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def scaled(self, images: Tensor) -> Tensor:
        """Pictures of 0 ... 1 -> x_0 of -scale ... scale."""
        return self.scale * (2 * images - 1)

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None) -> Tensor:
        """v of the noisy pictures.

        Args:
            x: (B, in_chans, H, W) x_t, made of `scaled` pictures.
            t: (B,) noise levels, 0 ... STEPS - 1; an integer tensor.
            text: (B, N, text_dim); a token of zeros is an empty place that nobody reads, so zeros
                all over are the empty prompt. None: the empty prompt.

        Returns (B, in_chans, H, W).
        """
        last = self._maps(x, t, text).decoder
        v = self.head(F.silu(self.norm(last)))
        return F.pixel_shuffle(v, self.patch_size)

    def features(
        self,
        images: Tensor,
        text: Tensor | None = None,
        t: int = 0,
        noise: Tensor | None = None,
    ) -> Features:
        """What the net computes on the way, in ONE pass: no sampling and nothing random.

        Args:
            images: (B, in_chans, H, W) in 0 ... 1.
            text: of `forward`.
            t: the noise level that the net is told, 0 ... STEPS - 1, the same for all pictures.
            noise: added as `add_noise` does, (in_chans, H, W) or a batch of it; None: none, the
                mean of x_t.

        Returns `Features`: encoder maps at `strides` with `widths` channels, and the decoder's
        last map, of stride strides[0] with widths[0] channels. Maps of the encoder at strides that
        read no text (`text_at`) do not depend on it.
        """
        check_images(images, self.in_chans)
        level = check_int(t, "t", 0, STEPS - 1)
        ts = torch.full((images.shape[0],), level, device=images.device)
        noise = torch.zeros_like(images) if noise is None else noise
        if not isinstance(noise, Tensor) or tuple(noise.shape[-3:]) != tuple(images.shape[1:]):
            needs = f"needs a tensor (B, C, H, W) or (C, H, W) for images {tuple(images.shape)}"
            raise ValueError(f"noise is {describe(noise)}: {needs}")
        return self._maps(add_noise(self.scaled(images), ts, noise.to(images)), ts, text)

    def _maps(self, x: Tensor, t: Tensor, text: Tensor | None) -> Features:
        """The U-Net without its head; arguments of `forward`."""
        text, used = self._check(x, t, text)
        time = self.time(time_embedding(t, self.time_dim).to(self.none.dtype))
        x = self.stem(F.pixel_unshuffle(x, self.patch_size))
        encoder: list[Tensor] = []
        for i, level in enumerate(self.encoder):
            x = level(self.down[i - 1](x) if i else x, time, text, used)
            encoder.append(x)
        for i in reversed(range(len(self.widths))):
            if i < len(self.widths) - 1:
                x = F.interpolate(self.up[i](x), scale_factor=2.0, mode="nearest")
                x = torch.cat([x, encoder[i]], 1)
            x = self.decoder[i](x, time, text, used)
        return Features(encoder, x)

    def _check(self, x: Tensor, t: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor]:
        """The text with the learned token of an empty prompt before it, and (B, 1, 1, N + 1) bool:
        which tokens are read."""
        check_images(x, self.in_chans, "x")
        check_dtype(x, self.stem.weight, "x")
        check_multiple(x.shape[-2:], self.multiple)
        batch = x.shape[0]
        if not isinstance(t, Tensor) or tuple(t.shape) != (batch,) or t.is_floating_point():
            raise ValueError(f"t is {describe(t)}: needs an integer tensor ({batch},)")
        none = self.none.expand(batch, -1, -1)
        if text is None:
            return none, torch.ones(batch, 1, 1, 1, dtype=torch.bool, device=x.device)
        check_tokens(text, self.text_dim, "text")
        if text.shape[0] != batch:
            raise ValueError(f"text has {text.shape[0]} prompts for {batch} pictures")
        used = F.pad((text != 0).any(-1), (1, 0), value=True)
        return torch.cat([none, text.to(none.dtype)], 1), used[:, None, None]


def target(images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """v_t = alpha_t noise - sigma_t x_0: arguments of `add_noise`.

    Args:
        images: x_0.
        t: (B,) noise levels.
        noise: what was added.
    """
    alpha, sigma = (part.to(images.dtype) for part in alphas(t))
    return alpha * noise - sigma * images


def diffusion_loss(
    model: Denoiser,
    images: Tensor,
    text: Tensor | None,
    generator: torch.Generator | None = None,
    drop: float = 0.1,
    t: Tensor | None = None,
) -> Tensor:
    """(B,) mean squared error of v for each picture, at a random t with random noise.

    Args:
        model: the net.
        images: (B, C, H, W) in 0 ... 1.
        text: (B, N, text_dim) or None.
        generator: decides t, noise and which prompts are emptied; on the device of the images.
        drop: probability that a picture's prompt is emptied.
        t: (B,) noise levels in place of random ones.
    """
    check_images(images, model.in_chans)
    check_generator(generator, optional=True)
    drop = check_number(drop, "drop", 0, 1)
    batch, where = images.shape[0], dict(device=images.device, generator=generator)
    if t is None:
        t = torch.randint(0, STEPS, (batch,), **where)
    noise = torch.randn(images.shape, dtype=images.dtype, **where)
    if text is not None:
        kept = torch.rand((batch, 1, 1), dtype=torch.float32, **where) >= drop
        text = text * kept.to(text.dtype)
    pictures = model.scaled(images)
    v = model(add_noise(pictures, t, noise), t, text)
    return (v - target(pictures, t, noise)).float().square().mean((1, 2, 3))


@torch.no_grad()
def ddim(
    model: Denoiser,
    text: Tensor | None,
    noise: Tensor,
    steps: int = 25,
    guidance: float = 1.0,
) -> Tensor:
    """Pictures (B, C, H, W) in 0 ... 1 out of noise; nothing is random but the noise.

        v = v(no text) + guidance (v(text) - v(no text))
        x_0 = alpha x_t - sigma v, eps = sigma x_t + alpha v, x_s = alpha_s x_0 + sigma_s eps

    Args:
        model: the net.
        text: (B, N, text_dim) or None.
        noise: (B, C, H, W), standard normal.
        steps: passes, evenly spaced in t, from STEPS - 1 on.
        guidance: 1: none.
    """
    steps = check_int(steps, "steps", 1, STEPS)
    guidance = check_number(guidance, "guidance", 0)
    check_images(noise, model.in_chans, "noise")
    x, batch = noise, noise.shape[0]
    places = torch.linspace(STEPS - 1, 0, steps + 1).long().tolist()
    for level, following in zip(places[:-1], places[1:], strict=True):
        t = torch.full((batch,), level, device=x.device)
        v = model(x, t, text)
        if text is not None and guidance != 1:
            empty = model(x, t, None)
            v = empty + guidance * (v - empty)
        alpha, sigma = (part.to(x.dtype) for part in alphas(t))
        picture = (alpha * x - sigma * v).clamp(-model.scale, model.scale)
        eps = (x - alpha * picture) / sigma
        x = add_noise(picture, torch.full_like(t, following), eps) if following else picture
    return (x / model.scale + 1) / 2
