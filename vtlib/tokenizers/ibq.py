"""IBQ, the tokenizer that ETT tunes: VQGAN's nets around index backpropagation.

Shi et al., "Taming Scalable Visual Tokenizer for Autoregressive Image Generation", 2024, arXiv
2412.02692 (the quantiser itself: `vtlib.quantize.ibq`).

    images -> CNN -> 1 x 1 convolution -> IBQ -> 1 x 1 convolution -> CNN -> images
    L_vq = mean |x - x^| + L_quant + 0.05 L_entropy  (+ LPIPS + 0.1 GAN, the caller's)

Pixels are compared in [-1, 1], as in the official code (TencentARC/SEED-Voken, src/IBQ). Defaults
are ETT's: K = 131,072 codes of 256 channels, 16 x 16 pixels a token, nets of the official
configuration. `convert_official` gives official checkpoints these names.

From a random codebook a short training ends with one code. What helps, and is not in the paper:
train as a continuous autoencoder first (`loss_without_codes`), then take the codebook from what the
encoder says (`start_codebook`), and give vectors and codes one length (`norm=4`). `warm_up` makes
`loss` do the first two.
"""

import re
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn.checks import check_channels, check_dtype, check_int
from ..nn.cnn import CNNDecoder, CNNEncoder
from ..quantize.ibq import IBQ
from ..tokens.precision import widen
from .autoencoder import Autoencoder
from .base import Reconstruction, total

OFFICIAL: dict[str, Any] = dict(
    channels=128, multipliers=(1, 1, 2, 2, 4), num_res_blocks=4, attention=True
)


class IBQTokenizer(Autoencoder):
    """images (B, 3, H, W) in [0, 1] -> indices (B, H / f, W / f) -> images.

    Args:
        dim: D, channels of a code.
        codebook_size: K.
        norm: see `vtlib.quantize.IBQ`; None as in the paper.
        entropy_weight: of the entropy loss.
        net: arguments of `CNNEncoder` and `CNNDecoder`; None: the official ones, f = 16.
        warm_up: in training so many first calls of `loss` are without codes, and the last of them
            starts the codebook from its images. `waits` counts down; stored weights wait for none.
    """

    def __init__(
        self,
        dim: int = 256,
        codebook_size: int = 131_072,
        norm: float | None = None,
        entropy_weight: float = 0.05,
        net: dict[str, Any] | None = None,
        warm_up: int = 0,
    ) -> None:
        if not (net is None or isinstance(net, dict)):
            raise ValueError(f"net={net!r}: needs a dict of the arguments of CNNEncoder, or None")
        net, dim = OFFICIAL if net is None else net, check_int(dim, "dim", 1)
        quantizer = IBQ(dim, codebook_size, norm, entropy_weight=entropy_weight)
        encoder, decoder = CNNEncoder(3, dim, **net), CNNDecoder(dim, 3, **net)
        super().__init__(encoder, quantizer, decoder)
        self.quant_conv = nn.Conv2d(dim, dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, dim, 1)
        self.waits = check_int(warm_up, "warm_up", 0)
        self.register_load_state_dict_post_hook(_stop_waiting)

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> what the quantiser sees, (B, h, w, D)."""
        x = super().features(images)                                                 # b h w d
        x = self.quant_conv(rearrange(x, "b h w d -> b d h w").contiguous())
        return rearrange(x, "b d h w -> b h w d")

    def decode(self, codes: Tensor) -> Tensor:
        check_channels(codes, self.quantizer.dim, "codes")
        if codes.dim() != 4 or 0 in codes.shape:
            raise ValueError(f"codes has shape {tuple(codes.shape)} but needs (B, h, w, D)")
        check_dtype(codes, self.post_quant_conv.weight, "codes")
        x = self.post_quant_conv(rearrange(codes, "b h w d -> b d h w").contiguous())
        return super().decode(rearrange(x, "b d h w -> b h w d"))

    # --------------------------------------------------------------------------------- training
    def loss(
        self, images: Tensor, teacher: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_vq and its parts; while it warms up, the pixels' part without codes.

        Args:
            images: (B, 3, H, W) in [0, 1].
            teacher: what other methods learn from; it is not read.
        """
        if not (self.training and self.waits):
            return self.loss_of(self(images), images)
        pixels = self.loss_without_codes(images)
        self.waits -= 1
        if not self.waits:
            self.start_codebook(images)
        return total({"pixels": pixels, "quantizer": torch.zeros_like(pixels)})

    def loss_of(self, out: Reconstruction, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of what forward has made of these images."""
        return total({"pixels": _pixels(out.images, images), "quantizer": out.quantized.loss})

    def loss_without_codes(self, images: Tensor) -> Tensor:
        """The pixels' loss where vectors pass the bottleneck unquantised, to warm up nets: 0-dim.
        Neither is the codebook used, nor does it get a gradient."""
        return _pixels(self.decode(self.quantizer.normalised(self.features(images))), images)

    @torch.no_grad()
    def start_codebook(self, images: Tensor) -> None:
        """The codebook becomes k-means of what the encoder says about these images."""
        self.quantizer.warm_start(self.features(images))


def _stop_waiting(module: Any, _: object) -> None:
    module.waits = 0


def _pixels(images: Tensor, truth: Tensor) -> Tensor:
    return 2 * F.l1_loss(widen(images), widen(truth))         # [0, 1] is half as wide as [-1, 1]


# ---------------------------------------------------------------------------- official checkpoints
NAMES = (
    (r"^quantize\.embedding\.weight$", "quantizer.codebook"),
    (r"^(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.", r"\1.conv_blocks.\2.res."),
    (r"^(encoder|decoder)\.(?:down|up)\.(\d+)\.", r"\1.conv_blocks.\2."),
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid.0."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid.1."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid.2."),
)


def convert_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of SEED-Voken's IBQ under the names of `IBQTokenizer`. Its decoder counts levels from
    the pixels, this one from the codes. What belongs to the losses and to the moving average of
    weights is left out."""
    levels = [re.match(r"decoder\.up\.(\d+)\.", name) for name in state_dict]
    last = max((int(match[1]) for match in levels if match), default=0)
    out = {}
    for name, value in state_dict.items():
        if not name.startswith(("encoder.", "decoder.", "quant")) and "quant_conv" not in name:
            continue
        if match := re.match(r"decoder\.up\.(\d+)\.", name):
            name = f"decoder.up.{last - int(match[1])}.{name[match.end():]}"
        for official, own in NAMES:
            name = re.sub(official, own, name)
        out[name] = value
    return out
