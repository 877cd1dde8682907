"""Features of a frozen Stable Diffusion, of diffusers: ONE pass, no sampling.

    frozen = StableDiffusion(unet, vae, text_encoder, tokenizer)      # or stable_diffusion(folder)
    maps = frozen.features(images, frozen.encode(["a photo of a gecko"]))
    eight = frozen.odise(images, text)

`features` gives what `vtlib.generation.Denoiser.features` gives: the encoder's map at each stride,
finest first, and the decoder's last one; strides 8, 16, 32, 64 of the picture. `odise` gives the
eight maps of ODISE (Xu et al. 2023, arXiv 2303.04803).

    latent = scaling_factor * mean of the posterior          the mean: nothing is drawn
    x_t = sqrt(abar_t) latent + sqrt(1 - abar_t) noise       "scaled linear" betas, 1000 levels

What diffusers leaves to its callers, and does not complain about: `vae.encode` wants pictures of
-1 ... 1 and gives latents that are NOT yet multiplied by `scaling_factor`; its posterior is
sampled unless the mean is asked for; sides that are no multiple of 8 lose their rest in the
latents. Its up-blocks are deepest first, like ODISE's numbers. ODISE's taps are the INPUTS of its
blocks, with the skip connection already concatenated: here hooks in front of the third residual
block of each up-block. With `vae.enable_slicing()` or tiling a hook is called once a picture or
tile, which `odise` refuses. A level t of -7 or 5000, or 0.5, is taken without complaint by the
U-Net, not here; `DDPMScheduler()` as it stands has other betas (1e-4 ... 0.02, linear) than any
Stable Diffusion.

Stable Diffusion's empty prompt is its text encoder's answer to "", 77 vectors that are not zero;
zeros are another thing, the ablation "no text". diffusers is imported by `stable_diffusion` only.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..generation.diffusion import Features
from ..nn.checks import (
    check_dtype,
    check_images,
    check_int,
    check_list,
    check_multiple,
    check_tokens,
    describe,
)

BETAS = (0.00085, 0.012)
LEVELS = 1000
ENCODER_TAPS, UNET_TAPS, DECODER_TAPS = (5, 7), (2, 5, 8, 11), (2, 5)
"""ODISE's blocks, counted through all residual blocks of the autoencoder's encoder, of the U-Net's
way up, of the autoencoder's decoder."""


def kept() -> Tensor:
    """(1000,) float64: abar_t of Stable Diffusion 1 and 2, betas linear in their roots."""
    low, high = (beta**0.5 for beta in BETAS)
    betas = torch.linspace(low, high, LEVELS, dtype=torch.float64, device="cpu").square()
    return (1 - betas).cumprod(0)


def _inside(modules: Any, attribute: str) -> list[nn.Module]:
    return [inner for module in modules for inner in getattr(module, attribute)]


def _pick(blocks: list[nn.Module], taps: tuple[int, ...], name: str) -> list[nn.Module]:
    if len(blocks) <= max(taps):
        raise ValueError(f"{name} has {len(blocks)} residual blocks, too few for the taps {taps}")
    return [blocks[i] for i in taps]


class StableDiffusion(nn.Module):
    """UNet2DConditionModel, AutoencoderKL and, where prompts are words, CLIPTextModel with its
    tokenizer. All are put into eval mode and frozen: no parameter gets a gradient, the text may.

    Sides of pictures must be multiples of `multiple` (64 for Stable Diffusion).

    Args:
        unet: diffusers.UNet2DConditionModel.
        vae: diffusers.AutoencoderKL.
        text_encoder: transformers.CLIPTextModel or None.
        tokenizer: of the text encoder or None.
    """

    def __init__(
        self, unet: nn.Module, vae: nn.Module, text_encoder: Any = None, tokenizer: Any = None
    ) -> None:
        super().__init__()
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer = tokenizer
        self.eval().requires_grad_(False)
        latent, shape = len(vae.config.block_out_channels), len(unet.config.block_out_channels)
        if vae.config.latent_channels != unet.config.in_channels:
            raise ValueError(
                f"vae has {vae.config.latent_channels} channels of latents, but unet takes "
                f"{unet.config.in_channels}"
            )
        first = 2 ** (latent - 1)
        self.strides = tuple(first * 2**i for i in range(shape))
        self.widths = tuple(unet.config.block_out_channels)
        self.multiple = self.strides[-1]
        self.text_dim = unet.config.cross_attention_dim

    def train(self, mode: bool = True) -> "StableDiffusion":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, prompts: Any) -> Tensor:
        """Prompts (B strings) -> (B, 77, D): the text encoder's last layer, normed; what follows a
        prompt's end is padding, which the U-Net reads, too."""
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("prompts of words need a text_encoder and a tokenizer")
        prompts = check_list(prompts, "prompts", "a list of strings")
        length = self.text_encoder.config.max_position_embeddings
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        where = next(self.text_encoder.parameters()).device
        return self.text_encoder(ids["input_ids"].to(where)).last_hidden_state

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in 0 ... 1 -> (B, 4, H / 8, W / 8), scaled, nothing drawn."""
        check_images(images, self.vae.config.in_channels)
        check_dtype(images, self.vae.encoder.conv_in.weight, "images")
        check_multiple(images.shape[-2:], self.multiple)
        posterior = self.vae.encode(2 * images - 1).latent_dist
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (posterior.mean - shift) * self.vae.config.scaling_factor

    def features(
        self, images: Tensor, text: Tensor | None = None, t: int = 0, noise: Tensor | None = None
    ) -> Features:
        """The encoder's map at each of `strides` with `widths` channels, and the decoder's last.

        Args:
            images: (B, 3, H, W) in 0 ... 1.
            text: (B, N, D) of `encode`; None: the empty prompt's.
            t: noise level, 0 ... 999.
            noise: for the latents, of their shape (B, C, h, w) or (C, h, w), as often as not drawn
                once for all pictures (ODISE); None: none.
        """
        found: list[Tensor] = []
        last: list[Tensor] = []

        def leaving(module: nn.Module, args: Any, output: Any) -> None:
            states = output[1]                         # after each block, then after downsampling
            found.append(states[-1 if module.downsamplers is None else -2])

        with contextlib.ExitStack() as stack:
            for block in self.unet.down_blocks:
                stack.callback(block.register_forward_hook(leaving).remove)
            entering = _entering(last)
            stack.callback(self.unet.conv_norm_out.register_forward_pre_hook(entering).remove)
            self._pass(self.latents(images), text, t, noise)
        return Features(found, last[0])

    def odise(
        self, images: Tensor, text: Tensor | None = None, t: int = 0, noise: Tensor | None = None
    ) -> list[Tensor]:
        """Eight maps in ODISE's order: the autoencoder's encoder (strides 4, 8), the U-Net's way up
        (64, 32, 16, 8), the autoencoder's decoder (8, 4).

        Args:
            images: (B, 3, H, W) in 0 ... 1.
            text: (B, N, D) of `encode`; None: the empty prompt's.
            t: noise level, 0 ... 999.
            noise: as in `features`. ODISE itself adds noise of one seed, the same for all pictures,
                even at t = 0.
        """
        if getattr(self.vae, "use_slicing", False) or getattr(self.vae, "use_tiling", False):
            raise ValueError(
                "the vae works on slices or tiles, so its blocks see parts: disable_slicing() and "
                "disable_tiling() first"
            )
        encoder = _inside(self.vae.encoder.down_blocks, "resnets")
        unet = _inside(self.unet.up_blocks, "resnets")
        decoder = _inside(self.vae.decoder.up_blocks, "resnets")
        taps = [
            *_pick(encoder, ENCODER_TAPS, "vae.encoder"),
            *_pick(unet, UNET_TAPS, "unet.up_blocks"),
            *_pick(decoder, DECODER_TAPS, "vae.decoder"),
        ]
        found: list[Tensor] = []
        with _tapped(taps, found):
            latents = self.latents(images)
            self._pass(latents, text, t, noise)
            shift = getattr(self.vae.config, "shift_factor", None) or 0.0
            self.vae.decode(latents / self.vae.config.scaling_factor + shift)
        return found

    def _pass(self, latents: Tensor, text: Tensor | None, t: int, noise: Tensor | None) -> Tensor:
        """The U-Net's guess; latents (B, C, h, w), the others as in `features`."""
        t, batch = check_int(t, "t", 0, LEVELS - 1), latents.shape[0]
        if text is None:
            text = self.encode([""]).expand(batch, -1, -1)
        check_tokens(text, self.text_dim, "text")
        if text.shape[0] != batch:
            raise ValueError(f"text has {text.shape[0]} prompts for {batch} pictures")
        alpha = float(kept()[t])
        x = alpha**0.5 * latents
        if noise is not None:
            if not isinstance(noise, Tensor) or tuple(noise.shape[-3:]) != tuple(latents.shape[1:]):
                needs = f"needs a tensor like the latents, {tuple(latents.shape)}"
                raise ValueError(f"noise is {describe(noise)}: {needs}")
            x = x + (1 - alpha) ** 0.5 * noise.to(x)
        level = torch.full((batch,), t, device=latents.device)
        return self.unet(x, level, encoder_hidden_states=text.to(x)).sample


def _entering(into: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple) -> None:
        into.append(args[0])

    return hook


@contextlib.contextmanager
def _tapped(modules: list[nn.Module], into: list[Tensor]) -> Iterator[None]:
    """Inside, what the modules are called with is appended, in the order of the calls."""
    handles = [module.register_forward_pre_hook(_entering(into)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stable_diffusion(folder: Any, device: Any = None) -> StableDiffusion:
    """A Stable Diffusion 1 or 2 in diffusers' layout: unet, vae, text_encoder, tokenizer.

    Args:
        folder: a folder, or a name that diffusers can download.
        device: where it goes; None: the CPU.
    """
    try:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise ValueError("Stable Diffusion needs diffusers: pip install diffusers") from error
    model = StableDiffusion(
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
    )
    return model if device is None else model.to(device)
