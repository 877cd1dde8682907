"""ETT - End-to-End Vision Tokenizer Tuning (Wang et al., CASIA and BAAI, 2025, arXiv 2505.10562).

The idea: a language model that reads images usually gets the *indices* of a frozen reconstruction
tokenizer, so nothing of its task reaches the tokenizer, and what the codes say is thrown away. ETT
hands it the codes themselves through a small projector; with index backpropagation the chain image
-> encoder -> quantiser -> language model then has a gradient. The tokenizer is tuned by the
captions' loss, and kept a tokenizer by its own.

    z_q = IBQ(encoder(x))                                            IBQTokenizer    of ibq.py
    visual tokens = W2 gelu(W1 z_q)                                  ETT.visual_tokens
    L_cap = - mean_t log P(text_t | image, text_<t)                  caption_loss    text alone
    L = L_cap + alpha L_vq,  alpha = 0.25                            ETT.loss        Eq. 3
    stage 1: projector;  2: everything, by L;  3: all but the tokenizer, by L_cap    ETT.stage
    P(index_i | text, index_<i) = softmax(W h)                       ETT.generate

The three-way comparison is `inputs`: "indices" (rows of an embedding table of their own, no way
back for a gradient), or "embeddings", the tokenizer left frozen (stages 1, 3) or tuned (1, 2, 3).

There is no official code; IBQ has some, and its quantiser agrees with it to rounding. Not stated in
the paper, chosen here: the projector's depth and width (Linear, GELU, Linear, as wide as the
language model); the head of generation (Linear(C, K) on the last hidden states, image tokens read
through codes and projector, one learned vector begins the image); one id must come first in a text.
Not in the paper at all: `places`, learned vectors of the places in the image, for language models
too small to find rows in a sequence. LPIPS and GAN, which L_vq has too, are the caller's. Defaults
are the paper's: IBQ at 131,072 x 256, Qwen2.5-1.5B.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..generation.sampling import sample
from ..nn.checks import (
    check_dtype,
    check_flag,
    check_index,
    check_int,
    check_number,
    check_tokens,
)
from ..quantize.contract import Quantized
from ..tokens.checks import check_grid, check_mask
from ..tokens.precision import widen
from ..vlm.decoder import Cache, Decoder, causal
from .ibq import IBQTokenizer

PAPER = "ett"

INPUTS = ("embeddings", "indices")
QWEN: dict[str, Any] = dict(
    embed_dim=1536, num_layers=28, num_heads=12, num_kv_heads=2, hidden_dim=8960, qkv_bias=True,
    rope_base=1e6, eps=1e-6,
)
IGNORED = -100


def caption_loss(logits: Tensor, ids: Tensor, valid: Tensor | None = None) -> Tensor:
    """L_cap: mean cross-entropy in nats a word, 0-dim. Words alone count, image tokens never do.

    Args:
        logits: (B, L, V), entry t says what follows ids[:, t]; the last one is not read.
        ids: (B, L) long, L >= 2; the first one is given, each other one is predicted.
        valid: (B, L) bool, False for padding and for a question, which are not to be predicted;
            None: all are.
    """
    check_tokens(logits, None, "logits")
    check_index(ids, "ids", "(B, L)", logits.shape[:2], logits.shape[2])
    if ids.shape[1] < 2:
        raise ValueError(f"ids has shape {tuple(ids.shape)}: needs two words at least")
    target = ids
    if valid is not None:
        check_mask(valid, "valid", ids.shape, "(B, L)")
        target = ids.masked_fill(~valid, IGNORED)
    flat = widen(logits[:, :-1]).flatten(0, 1)
    return F.cross_entropy(flat, target[:, 1:].flatten(), ignore_index=IGNORED)


class ETT(nn.Module):
    """Tokenizer, projector and language model.

    Args:
        tokenizer: an `IBQTokenizer`, or a dict of its arguments; None: the paper's.
        vocab_size: V, words of the language model.
        decoder: a dict of the arguments of `vtlib.vlm.Decoder`; None: Qwen2.5-1.5B's.
        inputs: "embeddings": codes through the projector; "indices": rows of a table (K, C).
        alpha: weight of L_vq in stage 2.
        places: 0, or how many image tokens have a learned vector of their place added.
        generates: whether there is a head that writes images.

    Weights of words read and write (tied), as in Qwen2.5-1.5B. A new model is in stage 2.
    ValueError: sizes below 1, other names, an alpha below 0.
    """

    def __init__(
        self,
        tokenizer: IBQTokenizer | dict[str, Any] | None = None,
        vocab_size: int = 151_936,
        decoder: dict[str, Any] | None = None,
        inputs: str = "embeddings",
        alpha: float = 0.25,
        places: int = 0,
        generates: bool = False,
    ) -> None:
        super().__init__()
        if inputs not in INPUTS:
            raise ValueError(f"inputs={inputs!r}: needs one of {INPUTS}")
        self.inputs = inputs
        self.alpha = check_number(alpha, "alpha", 0)
        self.tokenizer = _tokenizer(tokenizer)
        self.decoder = Decoder(**_arguments(decoder, "decoder", QWEN))
        width, quantizer = self.decoder.embed_dim, self.tokenizer.quantizer
        self.embed_tokens = nn.Embedding(check_int(vocab_size, "vocab_size", 2), width)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.bridge = nn.Module()                                  # what stage 1 trains
        if inputs == "indices":
            self.bridge.embedding = nn.Embedding(quantizer.codebook_size, width)
        else:
            self.bridge.projector = nn.Sequential(
                nn.Linear(quantizer.dim, width), nn.GELU(), nn.Linear(width, width)
            )
        if check_int(places, "places", 0):
            self.bridge.places = nn.Parameter(0.02 * torch.randn(int(places), width))
        self.head = None
        if check_flag(generates, "generates"):
            self.head = nn.Linear(width, quantizer.codebook_size)
            self.begin = nn.Parameter(0.02 * torch.randn(width))
        self.trains = 2

    # ------------------------------------------------------------------------------- three stages
    def stage(self, number: int) -> "ETT":
        """Says what trains from here on: 1 the projector (or table) alone, 2 everything, 3 all but
        the tokenizer. What does not train loses its gradient too, so an optimizer that has it in
        its list leaves it as it is, to the bit. Returns the model."""
        self.trains = check_int(number, "number", 1, 3)
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            tuned = part == "bridge" or number == 2 or (number == 3 and part != "tokenizer")
            parameter.requires_grad_(tuned)
            if not tuned:
                parameter.grad = None
        return self

    def loss(
        self, images: Tensor, ids: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_cap + alpha L_vq in stage 2, L_cap in stages 1 and 3; and the parts, detached.

        With alpha = 0 L_vq is not computed: the tokenizer's decoder gets no gradient, not even one
        of zeros, which weight decay would act on.

        Args:
            images: (B, 3, H, W) in [0, 1].
            ids: (B, L) long, see `caption_loss`.
            valid: (B, L) bool, see `caption_loss`.
        """
        joint = self.trains == 2 and self.alpha > 0
        out = self.tokenizer(images) if joint else None
        quantized = out.quantized if joint else self.tokenizer.encode(images)
        logits = self.read(self.visual_tokens(quantized), ids)
        caption = caption_loss(logits, ids, valid)
        parts = {"caption": caption.detach()}
        if not joint:
            return caption, parts
        tokenizer, own = self.tokenizer.loss_of(out, images)
        return caption + self.alpha * tokenizer, {**parts, **own}

    # ---------------------------------------------------------------------------------- reading
    def visual_tokens(self, quantized: Quantized) -> Tensor:
        """What the tokenizer gave, codes (B, h, w, D), -> (B, h w, C) without places."""
        if self.inputs == "indices":
            return self.bridge.embedding(quantized.indices.flatten(1))
        return self.bridge.projector(quantized.codes.flatten(1, 2))                      # b hw c

    def placed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens (B, N, C) with the vectors of their places (B or 1, N), where there are any."""
        if not hasattr(self.bridge, "places"):
            return tokens
        count = self.bridge.places.shape[0]
        if tokens.shape[1] > count:
            raise ValueError(f"there are {tokens.shape[1]} image tokens but places={count}")
        return tokens + self.bridge.places[positions].to(tokens.dtype)

    def read(self, tokens: Tensor, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of the word that follows each word: image | text, causal.

        Args:
            tokens: (B, N, C), of `visual_tokens`, in any order.
            ids: (B, L) long; padding belongs at the end, where no word looks at it.
            positions: (B, N) long, the place of each token in the image, each of 0 ... N - 1 once;
                None: they are in order. A token sees those of earlier places, wherever they stand.
        """
        self._check(tokens, ids)
        batch, count, _ = tokens.shape
        words = count + torch.arange(ids.shape[1], device=ids.device)                    # l
        if positions is None:
            order, mask = torch.arange(count, device=ids.device)[None], None
            everything = torch.cat([order[0], words])[None]                              # 1 n+l
        else:
            check_index(positions, "positions", "(B, N)", (batch, count), count)
            order = positions
            everything = torch.cat([order, words.expand(batch, -1)], dim=1)              # b n+l
            mask = (everything[:, :, None] >= everything[:, None, :])[:, None]
        text = self.embed_tokens(ids).to(tokens.dtype)
        x = torch.cat([self.placed(tokens, order), text], dim=1)
        hidden = self.decoder(x, everything, mask)
        return self.words(hidden[:, count:])

    def words(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., C) -> logits (..., V), with the embedding's own matrix."""
        return hidden @ self.embed_tokens.weight.T.to(hidden.dtype)

    def _check(self, tokens: Tensor, ids: Tensor) -> None:
        check_tokens(tokens, self.decoder.embed_dim)
        check_dtype(tokens, self.embed_tokens.weight, "tokens")
        self._check_ids(ids, tokens.shape[0])

    def _check_ids(self, ids: Tensor, batch: int | None) -> None:
        check_index(ids, "ids", "(B, L)", (batch, None), self.embed_tokens.num_embeddings)
        if 0 in ids.shape:
            raise ValueError(f"ids is empty: shape {tuple(ids.shape)}")

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of the word that follows each word of ids (B, L), behind images
        (B, 3, H, W) in [0, 1]."""
        return self.read(self.visual_tokens(self.tokenizer.encode(images)), ids)

    @torch.no_grad()
    def describe(self, images: Tensor, ids: Tensor, end: int, max_words: int = 32) -> Tensor:
        """The likeliest next word, again and again: (B, n) long, n <= max_words; `end` fills what
        comes behind an `end`.

        Args:
            images: (B, 3, H, W) in [0, 1].
            ids: (B, L) long, what each text begins with, of one length.
            end: the id that ends a text.
            max_words: most words.
        """
        end = check_int(end, "end", 0, self.embed_tokens.num_embeddings - 1)
        max_words = check_int(max_words, "max_words", 1)
        tokens = self.visual_tokens(self.tokenizer.encode(images))
        self._check(tokens, ids)
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        text = self.embed_tokens(ids).to(tokens.dtype)
        run = self.decoder.prefill(torch.cat([self.placed(tokens, places), text], dim=1))
        hidden, out = run.hidden[:, -1], []
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        while len(out) < max_words and not done.all():
            word = self.words(hidden).argmax(dim=-1).masked_fill(done, end)              # b
            out.append(word)
            done = done | (word == end)
            hidden = self._step(self.embed_tokens(word), run.cache)
        return torch.stack(out, dim=1)

    def _step(self, x: Tensor, cache: Cache) -> Tensor:
        """One more vector a sample, (B, C), -> hidden states (B, C)."""
        return self.decoder.step(x[:, None], cache)[:, 0]

    # ------------------------------------------------------------------------------- generation
    def image_loss(self, images: Tensor, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of the image's indices behind a text, 0-dim (ETT-Gen).

        Args:
            images: (B, 3, H, W) in [0, 1].
            ids: (B, L) long, the text.
            valid: (B, L) bool, False for padding; None: there is none.
        """
        quantized = self.tokenizer.encode(images)
        prompt, valid = self._prompt(ids, valid, quantized.indices.shape[0])
        tokens = self.visual_tokens(quantized)
        places = torch.arange(tokens.shape[1], device=ids.device)[None]
        tokens = self.placed(tokens, places)[:, :-1]                      # the last one is not read
        valid = F.pad(valid, (0, tokens.shape[1]), value=True)
        x = torch.cat([prompt.to(tokens.dtype), tokens], dim=1)
        positions = (valid.long().cumsum(dim=1) - 1).clamp_min(0)
        hidden = self.decoder(x, positions, causal(valid))[:, prompt.shape[1] - 1:]
        logits = widen(self.head(hidden)).flatten(0, 1)
        return F.cross_entropy(logits, quantized.indices.flatten())

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        grid: tuple[int, int],
        valid: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Indices (B, h, w) of an image for each text; `tokenizer.decode_indices` paints it. The
        paper draws among all codes (top-k of all, top-p 1), as the defaults do.

        Args:
            ids: (B, L) long, the texts.
            grid: (h, w).
            valid: (B, L) bool, False for padding; None: there is none.
            temperature: see `vtlib.generation.sample`.
            top_k: the same.
            top_p: the same.
            generator: of the draws, on the model's device.
        """
        grid = check_grid(grid)
        prompt, valid = self._prompt(ids, valid)
        run = self.decoder.prefill(prompt, valid=valid)
        hidden, drawn = run.hidden[:, -1], []
        for place in range(grid[0] * grid[1]):
            index = sample(self.head(hidden), temperature, top_k, top_p, generator)      # b
            drawn.append(index)
            if place + 1 < grid[0] * grid[1]:
                token = self._token(index)
                here = torch.tensor([[place]], device=token.device)
                hidden = self._step(self.placed(token[:, None], here)[:, 0], run.cache)
        return torch.stack(drawn, dim=1).unflatten(1, grid)

    def _token(self, index: Tensor) -> Tensor:
        """index (B,) -> its visual token (B, C)."""
        if self.inputs == "indices":
            return self.bridge.embedding(index)
        return self.bridge.projector(self.tokenizer.quantizer.decode(index))

    def _prompt(
        self, ids: Tensor, valid: Tensor | None, batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """text | begin as vectors (B, L + 1, C), and which of them are no padding."""
        if self.head is None:
            raise ValueError("generates=False: this model has no head that writes images")
        self._check_ids(ids, batch)
        if valid is None:
            valid = torch.ones_like(ids, dtype=torch.bool)
        check_mask(valid, "valid", ids.shape, "(B, L)")
        text = self.embed_tokens(ids)
        begin = self.begin.expand(len(ids), 1, -1).to(text.dtype)
        return torch.cat([text, begin], dim=1), F.pad(valid, (0, 1), value=True)


def _arguments(value: Any, name: str, default: dict[str, Any]) -> dict[str, Any]:
    if not (value is None or isinstance(value, dict)):
        raise ValueError(f"{name}={value!r}: needs a dict of its arguments, or None")
    return default if value is None else value


def _tokenizer(value: Any) -> IBQTokenizer:
    return value if isinstance(value, IBQTokenizer) else IBQTokenizer(
        **_arguments(value, "tokenizer", {})
    )
