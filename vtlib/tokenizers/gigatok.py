"""GigaTok - Scaling Visual Tokenizers to 3 Billion Parameters for Autoregressive Image Generation
(Xiong, Liew, Huang, Feng, Liu, ICCV 2025, arXiv 2504.08736).

The idea: a larger VQ tokenizer reconstructs better, but its tokens become harder to predict, so the
generator behind it gets worse. Tying an early layer of the tokenizer's transformer decoder to the
features of a frozen teacher keeps tokens predictable while the tokenizer grows. Tokens stand in one
dimension, the decoder is larger than the encoder, and the largest model needs an entropy loss.

    s = CNN(image), x = Linear(LN(s))                        CNNEncoder, QFormerEncoder
    q = Linear(means of x over ever finer blocks)            pool_queries
    q += SelfAttn(Q = K = LN(q) + p_q, V = LN(q))            QFormerLayer: positions are added again
    q += CrossAttn(Q = LN(q) + p_q, K = x + p_x, V = x)      in each layer, and not to V; x is
    q += W2 GELU(W1 LN(q))                                   neither normalised nor changed
    z = unit(conv(LN(q))), code = nearest unit code          VectorQuantizer
    m = Linear(LN(conv(code))), q = m_1, m_1, ..., m_1       QFormerDecoder, the same layers: each
                                                             query begins as the first token
    image = CNN(s'), s' = conv(LN(q)); s' scales and         AdaptiveDecoder
    shifts its norms, too
    semantic = -mean cos(MLP(q after layer l), teacher)      semantic_loss, l = 3
    loss = |image - image'|^2 + VQ + w entropy               GigaTok.loss; LPIPS and the GAN are the
           + 0.5 semantic                                    caller's

`gigatok_s_s`, `gigatok_s_b`, `gigatok_b_l`, `gigatok_xl_xxl` are the released sizes of encoder and
decoder. w is 0.005 for XL-XXL and 0 elsewhere; the authors' later recipe takes 0.005 for all, with
straight-through gradients for the rotation trick's, which do as well (appendix C). `shortcut=True`
belongs to the older recipe's first 15,000 steps: the CNN decoder also learns from s, and s' is
drawn to s. Printed equation 1 has the MLP on the teacher's side and no minus sign; text and code
agree on the above. Tokens are indices (B, N), as an autoregressive generator takes them.

State-dict names are those of the official code (SilentView/GigaTok) but for the codebook and the
convolutions before depth-to-space, which `convert_official` renames. Different from it: images are
in [0, 1] outside, the pixel loss is that of [-1, 1]; grids need not be square; what no released
model uses is left out (learned queries, RoPE, other starts of the decoder's queries, attention in
the CNNs). The Q-Formers are in gigatok_qformer.py, the CNN decoder is in gigatok_cnn.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import (
    CNNEncoder,
    check_flag,
    check_images,
    check_int,
    check_ints,
    check_multiple,
    check_number,
    check_tokens,
    unwrap,
)
from ..nn.checks import check_dtype
from ..quantize import Quantized, VectorQuantizer
from ..tokens.cosine import unit
from ..tokens.precision import widen
from .base import Reconstruction, Tokenizer, pixel_loss, total
from .gigatok_cnn import AdaptiveDecoder
from .gigatok_qformer import QFormerDecoder, QFormerEncoder, Size, pointwise

PAPER = "gigatok"

CNN = ("channels", "multipliers", "num_res_blocks", "num_mid_blocks", "groups", "patch_size")


def semantic_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """-mean over positions of cos(projected, teacher): two of (B, n, D) -> (B,), in [-1, 1].

    The teacher gets no gradient. ValueError for shapes that differ.
    """
    check_tokens(projected, name="projected")
    check_tokens(teacher, name="teacher")
    if projected.shape != teacher.shape:
        raise ValueError(
            f"teacher has shape {tuple(teacher.shape)} but needs {tuple(projected.shape)}: a "
            f"vector for each place of the decoder's grid"
        )
    return -(unit(projected) * unit(teacher.detach())).sum(dim=-1).mean(dim=1)


class GigaTok(Tokenizer):
    """images (B, 3, H, W) -> N tokens -> images. Defaults: S-S.

    The size of images is fixed, by the tables of positions. Its parts have the official names:
    `encoder`, `s2to1encoder`, `quant_conv`, `quantizer`, `post_quant_conv`, `s1to2decoder`,
    `decoder`; they start as there, and the codebook on the unit sphere: a short vector would turn
    too far in a step.

    Args:
        img_size: of the images, an int or (H, W).
        encoder_size: of the Q-Former, a name in SIZES or (width, layers, heads).
        decoder_size: likewise.
        num_tokens: N, a power of two.
        codebook_size: how many codes there are.
        code_dim: channels of a code.
        map_channels: of the maps between CNNs and Q-Formers.
        align_layer: l, the decoder's layer that is compared with the teacher, counted from 1.
        teacher_dim: channels of the teacher; None: there is none, and no MLP.
        semantic_weight: of the semantic loss.
        entropy_weight: w.
        gradient: "rotation" or "straight_through".
        shortcut: whether the loss has the older recipe's two terms; may be set later.
        weight_std: deviation of the first weights of linear layers and convolutions; None: torch's
            own. 0.02 is made for widths of 512 and more: a Q-Former of 48 then used 6 codes of 256
            after 150 steps, and 117 with torch's own.
        from_places: whether positions know the grid before training, see `start_at_places`; the
            official code's are random. For short trainings of small models: after 400 steps at
            64 px 15.4 dB, and 12.2 dB without.
        cnn: channels, multipliers, num_res_blocks, num_mid_blocks, groups, patch_size of both
            CNNs; None: VQGAN's, of factor 16.

    ValueError for sizes that do not fit each other.
    """

    encoder_type: type[QFormerEncoder] = QFormerEncoder
    decoder_type: type[QFormerDecoder] = QFormerDecoder

    def __init__(
        self,
        img_size: int | Sequence[int] = 256,
        encoder_size: Size = "small",
        decoder_size: Size = "small",
        num_tokens: int = 256,
        codebook_size: int = 16384,
        code_dim: int = 8,
        map_channels: int = 256,
        align_layer: int = 3,
        teacher_dim: int | None = 768,
        semantic_weight: float = 0.5,
        entropy_weight: float = 0.0,
        gradient: str = "rotation",
        shortcut: bool = False,
        weight_std: float | None = 0.02,
        from_places: bool = False,
        cnn: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        sides = img_size if isinstance(img_size, Sequence) else (img_size, img_size)
        self.img_size = check_ints(sides, "img_size", 1, length=2)
        self.num_tokens = check_int(num_tokens, "num_tokens", 1)
        self.code_dim = check_int(code_dim, "code_dim", 1)
        self.semantic_weight = check_number(semantic_weight, "semantic_weight", 0)
        self.shortcut = check_flag(shortcut, "shortcut")
        cnn = check_cnn(cnn)
        if weight_std is not None:
            weight_std = check_number(weight_std, "weight_std", above=0)

        self.encoder = CNNEncoder(3, map_channels, **cnn)
        check_multiple(self.img_size, self.encoder.factor, "img_size")
        grid = [side // self.encoder.factor for side in self.img_size]
        between = (map_channels, self.num_tokens, grid)
        self.s2to1encoder = self.encoder_type(encoder_size, *between)
        self.s1to2decoder = self.decoder_type(decoder_size, *between, align_layer, teacher_dim)
        self.decoder = AdaptiveDecoder(map_channels, 3, **cnn)
        if weight_std is not None:
            start_weights(self, weight_std)
        if check_flag(from_places, "from_places"):
            for part in (self.s2to1encoder, self.s1to2decoder):
                part.start_at_places()

        self.quantizer = VectorQuantizer(
            self.code_dim, codebook_size, learn="gradient", lookup="cosine", gradient=gradient,
            commitment_weight=0.25, entropy_weight=entropy_weight, entropy_temperature=0.01,
        )
        self.quantizer.codebook.data.copy_(unit(self.quantizer.codebook.data))
        self.quant_conv = nn.Conv2d(map_channels, self.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(self.code_dim, map_channels, 1)

    @property
    def has_teacher(self) -> bool:
        """Whether there is an MLP to compare with a teacher."""
        return self.s1to2decoder.teacher_dim is not None

    # ------------------------------------------------------------------------- images to tokens
    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> s (B, C, h, w). ValueError for another size."""
        check_images(images)
        if tuple(images.shape[2:]) != self.img_size:
            raise ValueError(
                f"images are {tuple(images.shape[2:])} but this model has positions for "
                f"{self.img_size}"
            )
        return self.encoder(2 * images - 1)

    def quantize(self, features: Tensor) -> Quantized:
        """s (B, C, h, w) -> tokens, codes (B, N, code_dim)."""
        return self.quantizer(pointwise(self.quant_conv, self.s2to1encoder(features)))

    def encode(self, images: Tensor) -> Quantized:
        return self.quantize(self.features(images))

    # ------------------------------------------------------------------------- tokens to images
    def read(self, codes: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The Q-Former decoder: -> s' (B, C, h, w), features of layer l (B, h w, width).

        Args:
            codes: (B, L, code_dim), L <= N.
            mask: (B, L) bool, True for the tokens that are seen; None: all.
        """
        check_tokens(codes, self.code_dim, "codes")
        check_dtype(codes, self.post_quant_conv.weight, "codes")
        return self.s1to2decoder(pointwise(self.post_quant_conv, codes), mask)

    def render(self, spatial: Tensor) -> Tensor:
        """The CNN decoder: s' (B, C, h, w) -> images (B, 3, H, W) in about [0, 1]."""
        return (self.decoder(spatial) + 1) / 2

    def decode(self, codes: Tensor) -> Tensor:
        return self.render(self.read(codes)[0])

    def forward(self, images: Tensor) -> Reconstruction:
        """`Reconstruction` with features (B, h w, teacher_dim): the MLP's."""
        quantized = self.encode(images)
        spatial, inner = self.read(quantized.codes)
        return Reconstruction(self.render(spatial), quantized, self.s1to2decoder.project(inner))

    # --------------------------------------------------------------------------------- training
    def loss(
        self, images: Tensor, teacher: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """4 pixels + quantizer + 0.5 semantic [+ 4 shortcut_pixels + shortcut_map], and these
        parts; 4 turns errors of [0, 1] into those of [-1, 1].

        Args:
            images: (B, 3, H, W) in [0, 1].
            teacher: (B, h w, teacher_dim), its features at the places of the grid; None: no
                semantic term.
        """
        features = self.features(images)
        quantized = self.quantize(features)
        spatial, inner = self.read(quantized.codes)
        parts = {"pixels": pixel_loss(self.render(spatial), images), "quantizer": quantized.loss}
        if teacher is not None and self.has_teacher:
            parts["semantic"] = semantic_loss(self.s1to2decoder.project(inner), teacher).mean()
        if self.shortcut:
            parts["shortcut_pixels"] = pixel_loss(self.render(features), images)
            parts["shortcut_map"] = F.mse_loss(widen(spatial), widen(features.detach()))
        weights = {"pixels": 4.0, "shortcut_pixels": 4.0, "semantic": self.semantic_weight}
        return total(parts, {name: weights[name] for name in parts if name in weights})


def check_cnn(cnn: Mapping[str, Any] | None) -> dict[str, Any]:
    """`cnn` as a dict, {} for None. ValueError for names that are no sizes of a CNN."""
    if cnn is None:
        return {}
    if not isinstance(cnn, Mapping) or not set(cnn) <= set(CNN):
        raise ValueError(f"cnn={cnn!r}: needs a dict with some of {', '.join(CNN)}, or None")
    return dict(cnn)


@torch.no_grad()
def start_weights(model: nn.Module, std: float) -> None:
    """Weights of linear layers and convolutions from a normal of deviation `std`, biases 0."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                module.bias.zero_()


# ------------------------------------------------------------------------------ released models
def gigatok_s_s(**options: Any) -> GigaTok:
    """136,073,227 parameters, with the MLP of 6.8 M; options as of `GigaTok`."""
    return GigaTok(**{"encoder_size": "small", "decoder_size": "small", **options})


def gigatok_s_b(**options: Any) -> GigaTok:
    """232,399,627 parameters; options as of `GigaTok`."""
    return GigaTok(**{"encoder_size": "small", "decoder_size": "base", **options})


def gigatok_b_l(**options: Any) -> GigaTok:
    """621,637,131 parameters; options as of `GigaTok`."""
    return GigaTok(**{"encoder_size": "base", "decoder_size": "large", **options})


def gigatok_xl_xxl(**options: Any) -> GigaTok:
    """2,893,970,443 parameters and the entropy loss; options as of `GigaTok`."""
    sizes = {"encoder_size": "xl", "decoder_size": "xxl", "entropy_weight": 0.005}
    return GigaTok(**{**sizes, **options})


def convert_official(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint of GigaTok or ReToK (`ema` before `model`), or its state dict -> vtlib's names.

    `quantize.embedding.weight` becomes `quantizer.codebook`, `upsample.conv1` `upsample.conv`; the
    window of used codes, for a log, goes, and the quantiser's counts begin at 0.
    """
    inner = state.get("ema") if isinstance(state, Mapping) else None
    state = unwrap(state if inner is None else inner)
    converted = {}
    for name, value in state.items():
        name = re.sub(r"\bupsample\.conv1\b", "upsample.conv", name)
        name = re.sub(r"^quantize\.embedding\.weight$", "quantizer.codebook", name)
        if name != "quantize.codebook_used":
            converted[name] = value
    if "quantizer.codebook" in converted:
        codebook = converted["quantizer.codebook"]
        converted["quantizer.count"] = codebook.new_zeros(len(codebook), dtype=torch.float32)
        converted["quantizer.idle"] = codebook.new_zeros(len(codebook), dtype=torch.long)
        converted["quantizer.started"] = torch.ones((), dtype=torch.bool, device=codebook.device)
    return converted
