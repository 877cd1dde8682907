"""ReToK - Improving Flexible Image Tokenizers for Autoregressive Image Generation
(Fu, Guo, Wang, Song, Liu, Wen, 2026, arXiv 2601.01535).

The idea: a flexible tokenizer is trained with nested dropout, which cuts the tail of the tokens at
random; information then crowds into the first tokens and a generator gains nothing from the rest.
ReToK lets redundant tokens follow the N real ones in training, so real tokens at the end are kept
far more often, and ties short prefixes strongly to a teacher, long ones weakly. All N tokens become
useful, and any prefix of them decodes to an image.

    q_1 ... q_N as in GigaTok, q_N+j = q_kmin+j, j = 1 ... M     PaddedEncoder.queries: copies with
                                                                 positions of their own
    all N + M attend to each other and are quantised             ReToK.encode_all
    k uniform in kmin ... N + M, tokens after k are not seen     draw_lengths, prefix_mask
    P(token i is seen) = (N + M - i + 1) / (N + M - kmin + 1)    survival, 1 for i <= kmin
    w(k) falls from 0.5 at kmin to 0.05 at N and beyond          alignment_weight
    loss = GigaTok's with mean over images of w(k) semantic      ReToK.loss
    then only the decoder learns                                 ReToK.finetune_decoder
    image = decoder(tokens 1 ... k), k = N if nothing is said    ReToK.decode

The encoder always sees its redundant queries, at inference too; their tokens are thrown away there.
Cutting after k tokens and hiding those after k give the same image.

The official code (zfu006/ReTok, built on GigaTok's; `gigatok.convert_official` reads its weights)
has the padded codec, hard-coded as N = 256, kmin = 32, M = N - kmin = 224, and no training code.
Inferred here: the law of k; w(k), of which the paper's abstract says that
regularisation is strong for few tokens and weaker for more; that all N + M tokens take part in the
quantiser's loss, as they do in GigaTok's; that k is drawn while the decoder is fine-tuned, too, and
that nothing but pixels (and the caller's GAN) is in the loss then.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..nn import check_flag, check_int, check_number, check_tokens
from ..nn.checks import check_generator, check_index
from ..quantize import Quantized
from ..quantize.contract import used
from .base import Reconstruction, pixel_loss, total
from .gigatok import GigaTok, semantic_loss
from .gigatok_qformer import QFormer, QFormerDecoder, QFormerEncoder

PAPER = "retok-flexible"

# ---------------------------------------------------------------------------- how many are kept
def draw_lengths(
    count: int,
    min_tokens: int,
    num_columns: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """k, uniform in min_tokens ... num_columns: (count,) long.

    Args:
        count: how many are drawn.
        min_tokens: the smallest.
        num_columns: the largest, N + M.
        generator: on the device; None: torch's global one.
        device: where they are; None: torch's default.
    """
    count, num_columns = check_int(count, "count", 1), check_int(num_columns, "num_columns", 1)
    min_tokens = check_int(min_tokens, "min_tokens", 1, num_columns)
    check_generator(generator, optional=True)
    bounds = min_tokens, num_columns + 1
    return torch.randint(*bounds, (count,), generator=generator, device=device)


def prefix_mask(lengths: Tensor, num_columns: int) -> Tensor:
    """lengths (B,) long -> (B, num_columns) bool, True for the first `length` tokens."""
    check_index(lengths, "lengths", "(B,)")
    places = torch.arange(check_int(num_columns, "num_columns", 1), device=lengths.device)
    return places < lengths[:, None]


def survival(num_tokens: int, num_redundant: int, min_tokens: int) -> Tensor:
    """P(k >= i) for tokens i = 1 ... N + M under `draw_lengths`: (N + M,), 1 up to min_tokens.

    Args:
        num_tokens: N.
        num_redundant: M.
        min_tokens: the smallest k.
    """
    num_columns = check_int(num_tokens, "num_tokens", 1)
    num_columns += check_int(num_redundant, "num_redundant", 0)
    min_tokens = check_int(min_tokens, "min_tokens", 1, num_columns)
    later = torch.arange(num_columns, 0, -1, dtype=torch.float32)      # N + M - i + 1
    return (later / (num_columns - min_tokens + 1)).clamp_max(1)


def alignment_weight(
    lengths: Tensor,
    min_tokens: int,
    num_tokens: int,
    w_max: float = 0.5,
    w_min: float = 0.05,
    shape: float = 1.0,
) -> Tensor:
    """w(k) = w_min + (w_max - w_min) (1 - t)^shape, t = (k - min) / (N - min) clamped to 0 ... 1.

    Args:
        lengths: k, (...) long.
        min_tokens: where w begins to fall.
        num_tokens: N, where it is w_min.
        w_max: the weight of short prefixes.
        w_min: the weight of long ones, at most w_max.
        shape: 1 falls linearly, 2 fast at first.
    """
    check_index(lengths, "lengths")
    num_tokens = check_int(num_tokens, "num_tokens", 1)
    min_tokens = check_int(min_tokens, "min_tokens", 1, num_tokens)
    w_max = check_number(w_max, "w_max", 0)
    w_min = check_number(w_min, "w_min", 0, w_max)
    shape = check_number(shape, "shape", above=0)
    share = (num_tokens - lengths) / max(1, num_tokens - min_tokens)
    return w_min + (w_max - w_min) * share.clamp(0, 1) ** shape


# ------------------------------------------------------------------------------ padded Q-Formers
class Padded(QFormer):
    """Positions for redundant tokens behind those of the real ones.

    `pad` makes them, once: the number of redundant tokens is 0 before.
    """

    num_redundant = 0
    min_tokens = 1

    def pad(self, min_tokens: int, num_redundant: int) -> None:
        """The j-th redundant token is a copy of real token min_tokens + j, so there are N -
        min_tokens at most."""
        self.min_tokens = check_int(min_tokens, "min_tokens", 1, self.num_tokens)
        most = self.num_tokens - self.min_tokens
        self.num_redundant = check_int(num_redundant, "num_redundant", 0, most)
        if self.num_redundant:
            table = torch.randn(self.num_redundant, 1, self.width) * self.width**-0.5
            self.latent_token_positional_embedding_comp = nn.Parameter(table)

    @torch.no_grad()
    def start_at_places(self) -> None:
        """As of `QFormer`; a redundant token has the region of the real one it is a copy of, and
        noise of its own."""
        super().start_at_places()
        if self.num_redundant:
            table = self.latent_token_positional_embedding_comp
            stop = self.min_tokens + self.num_redundant
            copied = self.region_positions()[self.min_tokens:stop]
            table[:, 0] = copied + torch.randn_like(table[:, 0])

    def token_positions(self) -> Tensor:
        """(N + M, width)."""
        real = super().token_positions()
        if not self.num_redundant:
            return real
        return torch.cat([real, self.latent_token_positional_embedding_comp[:, 0]])


class PaddedEncoder(Padded, QFormerEncoder):
    """A map (B, C, h, w) -> N real tokens and M redundant ones, (B, N + M, C)."""

    def queries(self, memory: Tensor) -> Tensor:
        """-> (B, N + M, width): the last M are copies."""
        real = super().queries(memory)
        stop = self.min_tokens + self.num_redundant
        return torch.cat([real, real[:, self.min_tokens:stop]], dim=1)


class PaddedDecoder(Padded, QFormerDecoder):
    """Tokens (B, L, C), L <= N + M -> a map, and features of one layer."""


# ------------------------------------------------------------------------------------- the model
class ReToK(GigaTok):
    """images (B, 3, H, W) -> N tokens, any prefix of them -> images. Defaults: S-S.

    Nested dropout is at work in training mode only, as dropout is: in eval mode all N tokens are
    seen, in `forward` and in `loss`.

    Args:
        min_tokens: kmin, the smallest k of training.
        num_redundant: M; None: N - min_tokens; 0: nested dropout alone.
        per_image: whether each image of a batch has a k of its own.
        w_max: weight of the semantic loss for short prefixes, see `alignment_weight`.
        w_min: its weight for long ones.
        shape: how it falls.
        options: as of `GigaTok`, without semantic_weight, which w(k) replaces, and shortcut.

    ValueError as of `GigaTok`, for more redundant tokens than can be copied, weights out of order.
    """

    encoder_type = PaddedEncoder
    decoder_type = PaddedDecoder
    s2to1encoder: PaddedEncoder
    s1to2decoder: PaddedDecoder

    def __init__(
        self,
        min_tokens: int = 32,
        num_redundant: int | None = None,
        per_image: bool = True,
        w_max: float = 0.5,
        w_min: float = 0.05,
        shape: float = 1.0,
        **options: Any,
    ) -> None:
        unknown = options.keys() & {"semantic_weight", "shortcut"}
        if unknown:
            raise ValueError(f"ReToK has no {', '.join(sorted(unknown))}: w_max, w_min are its own")
        super().__init__(**options)
        self.min_tokens = check_int(min_tokens, "min_tokens", 1, self.num_tokens)
        if num_redundant is None:
            num_redundant = self.num_tokens - self.min_tokens
        for part in (self.s2to1encoder, self.s1to2decoder):
            part.pad(self.min_tokens, num_redundant)
            if options.get("from_places", False):
                part.start_at_places()
        self.num_redundant = self.s2to1encoder.num_redundant
        self.per_image = check_flag(per_image, "per_image")
        self.w_max = check_number(w_max, "w_max", 0)
        self.w_min = check_number(w_min, "w_min", 0, self.w_max)
        self.shape = check_number(shape, "shape", above=0)
        self.only_decoder = False

    # ------------------------------------------------------------------------- images to tokens
    def encode_all(self, images: Tensor) -> Quantized:
        """All tokens, codes (B, N + M, code_dim): what training sees."""
        return self.quantize(self.features(images))

    def encode(self, images: Tensor) -> Quantized:
        """The N real tokens; the loss is that of all."""
        return self.real(self.encode_all(images))

    def real(self, found: Quantized) -> Quantized:
        """The first N of all tokens; the loss stays."""
        codes, indices = found.codes[:, :self.num_tokens], found.indices[:, :self.num_tokens]
        usage = used(indices, self.quantizer.codebook_size)
        return Quantized(codes, indices, found.loss, usage)

    # ------------------------------------------------------------------------- tokens to images
    def decode(self, codes: Tensor, num_tokens: int | None = None) -> Tensor:
        """codes (B, L, code_dim), L <= N + M -> images of the first num_tokens of them; None: N, or
        all L where those are fewer."""
        check_tokens(codes, self.code_dim, "codes")
        length = codes.shape[1]
        if num_tokens is None:
            num_tokens = min(length, self.num_tokens)
        num_tokens = check_int(num_tokens, "num_tokens", 1, length)
        return super().decode(codes[:, :num_tokens])

    def decode_indices(self, indices: Tensor, num_tokens: int | None = None) -> Tensor:
        """indices (B, L) long, a prefix of a sequence -> images, see `decode`."""
        check_index(indices, "indices", "(B, L)")
        return self.decode(self.quantizer.decode(indices), num_tokens)

    # --------------------------------------------------------------------------------- training
    def read_prefix(
        self, codes: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Nested dropout: all codes (B, N + M, code_dim) -> as `read`, and k (B,)."""
        batch, num_columns = codes.shape[:2]
        if not self.training:
            lengths = codes.new_full((batch,), self.num_tokens, dtype=torch.long)
            return *self.read(codes[:, :self.num_tokens]), lengths
        count = batch if self.per_image else 1
        lengths = draw_lengths(count, self.min_tokens, num_columns, generator, codes.device)
        lengths = lengths.expand(batch)
        return *self.read(codes, prefix_mask(lengths, num_columns)), lengths

    def forward(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> Reconstruction:
        """`Reconstruction` of N tokens, in training mode of the first k of all; `generator` draws
        k."""
        found = self.encode_all(images)
        spatial, inner, _ = self.read_prefix(found.codes, generator)
        projected = self.s1to2decoder.project(inner)
        return Reconstruction(self.render(spatial), self.real(found), projected)

    def loss(
        self,
        images: Tensor,
        teacher: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """4 pixels + quantizer + semantic, which is a mean of w(k) times GigaTok's; pixels alone
        while only the decoder learns.

        Args:
            images: (B, 3, H, W) in [0, 1].
            teacher: (B, h w, teacher_dim), as of `GigaTok.loss`.
            generator: draws k; None: torch's global one.
        """
        found = self.encode_all(images)
        spatial, inner, lengths = self.read_prefix(found.codes, generator)
        parts = {"pixels": pixel_loss(self.render(spatial), images)}
        if not self.only_decoder:
            parts["quantizer"] = found.loss
        if teacher is not None and self.has_teacher and not self.only_decoder:
            each = semantic_loss(self.s1to2decoder.project(inner), teacher)      # b
            law = (self.w_max, self.w_min, self.shape)
            weight = alignment_weight(lengths, self.min_tokens, self.num_tokens, *law)
            parts["semantic"] = (weight * each).mean()
        return total(parts, {"pixels": 4.0})

    def finetune_decoder(self, only: bool = True) -> None:
        """The second stage: CNN encoder, Q-Former encoder and codebook stay as they are, and pixels
        are all the loss. only=False: back to the first."""
        self.only_decoder = check_flag(only, "only")
        self.quantizer.frozen = self.only_decoder
        for part in (self.encoder, self.s2to1encoder, self.quant_conv, self.quantizer):
            part.requires_grad_(not self.only_decoder)


# ------------------------------------------------------------------------------ released models
def retok_s_s(**options: Any) -> ReToK:
    """136,302,603 parameters; options as of `ReToK`."""
    return ReToK(**{"encoder_size": "small", "decoder_size": "small", **options})


def retok_s_b(**options: Any) -> ReToK:
    """232,686,347 parameters; options as of `ReToK`."""
    return ReToK(**{"encoder_size": "small", "decoder_size": "base", **options})
