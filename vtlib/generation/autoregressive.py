"""One small decoder over discrete image tokens, shared by all families: class- or
caption-conditioned, with a cache of keys and values, guidance, and the two probes that GigaTok
judges tokenizers with.

    sequence      c_1 ... c_n  t_1 ... t_(L-1)            c: the condition, t: the picture's tokens
    model         p(t_i | c, t_1 ... t_(i-1)) = softmax(head(decoder(...)))
    loss          - mean_i log p(t_i | c, t_1 ... t_(i-1))

The last condition vector takes the place of a start token (as in LlamaGen, Sun et al. 2024, arXiv
2406.06525). In training a condition is sometimes replaced by one learned vector, "no condition", so
that the model can also be asked without one (Ho, Salimans 2022, arXiv 2207.12598).

The decoder is Llama-shaped (`vtlib.vlm.decoder`): rotary positions in each layer. A learned vector
for each place 1 ... L is added to what predicts this place: in a grid or a pyramid the place says
more than a distance does.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import (
    check_callable,
    check_dtype,
    check_flag,
    check_generator,
    check_index,
    check_int,
    check_number,
    check_tokens,
    describe,
)
from ..vlm.decoder import Cache, Decoder
from .sampling import guidance_weight, guide, sample

NO_CONDITION = -1
Schedule = Callable[[int, int], float]


class AutoregressiveModel(nn.Module):
    """Reads indices (B, n) of a picture's first tokens, says what each next one is.

    Args:
        vocab_size: K, how many codes a token can have.
        num_tokens: L, tokens of a whole picture.
        num_classes: conditions are long, (B,) classes or (B, n) words, below num_classes; -1 stands
            for no condition, or for padding of a caption. None: they are not.
        condition_dim: conditions are floats, (B, n, condition_dim), embeddings of a caption. None:
            they are not. With neither the model takes no condition.
        embed_dim: D.
        num_layers: of the decoder.
        num_heads: of the queries.
        num_kv_heads: of keys and values; None: num_heads.
        hidden_dim: of the gated MLPs; None: 8/3 of D, up to a multiple of 8.
        condition_dropout: how often `loss` in training replaces a condition by no condition.
    """

    def __init__(
        self,
        vocab_size: int,
        num_tokens: int,
        num_classes: int | None = None,
        condition_dim: int | None = None,
        embed_dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        hidden_dim: int | None = None,
        condition_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.vocab_size = check_int(vocab_size, "vocab_size", 1)
        self.num_tokens = check_int(num_tokens, "num_tokens", 1)
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        if hidden_dim is None:
            hidden_dim = -(-embed_dim // 3) * 8
        if num_classes is not None and condition_dim is not None:
            raise ValueError(
                f"num_classes={num_classes} and condition_dim={condition_dim}: need one at most"
            )
        self.num_classes, self.condition_dim = num_classes, condition_dim
        self.condition: nn.Embedding | nn.Linear | None = None
        if num_classes is not None:
            self.num_classes = check_int(num_classes, "num_classes", 1)
            self.condition = nn.Embedding(self.num_classes, embed_dim)
        elif condition_dim is not None:
            self.condition_dim = check_int(condition_dim, "condition_dim", 1)
            self.condition = nn.Linear(self.condition_dim, embed_dim)
        self.condition_dropout = check_number(condition_dropout, "condition_dropout", 0, 1)
        self.no_condition = nn.Parameter(torch.empty(embed_dim))
        self.embed_tokens = nn.Embedding(self.vocab_size, embed_dim)
        self.place = nn.Parameter(torch.empty(self.num_tokens, embed_dim))
        self.decoder = Decoder(embed_dim, num_layers, num_heads, num_kv_heads, hidden_dim)
        self.head = nn.Linear(embed_dim, self.vocab_size, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.no_condition, std=0.02)
        nn.init.normal_(self.place, std=0.02)

    # -------------------------------------------------------------------------------- the sequence
    def prefix(self, condition: Tensor | None, batch: int, dropped: Tensor | None = None) -> Tensor:
        """The condition as vectors (B, n, D) before the tokens.

        Args:
            condition: (B,) or (B, n) long, or (B, n, condition_dim), see the class; None: none.
            batch: B, what the condition must fit.
            dropped: (B,) bool, whose condition is replaced by no condition; None: nobody's.
        """
        if condition is None:
            return self.no_condition.expand(batch, 1, -1)
        if self.condition is None:
            raise ValueError("condition: this model has neither num_classes nor condition_dim")
        if self.num_classes is not None:
            condition = self._check_classes(condition, batch)
            missing = condition == NO_CONDITION                                      # b n
            vectors = self.condition(condition.clamp(min=0))
        else:
            check_tokens(condition, self.condition_dim, "condition")
            check_dtype(condition, self.condition.weight, "condition")
            self._check_batch(condition, batch)
            missing = torch.zeros(condition.shape[:2], dtype=torch.bool, device=condition.device)
            vectors = self.condition(condition)
        if dropped is not None:
            missing = missing | dropped[:, None]
        return torch.where(missing[..., None], self.no_condition.to(vectors.dtype), vectors)

    def _check_classes(self, condition: Tensor, batch: int) -> Tensor:
        if isinstance(condition, Tensor) and condition.dim() == 1:
            condition = condition[:, None]
        check_index(condition, "condition", "(B, n)", stop=self.num_classes, least=NO_CONDITION)
        if condition.shape[1] == 0:
            raise ValueError("condition is empty: needs a class or a word at least")
        self._check_batch(condition, batch)
        return condition

    def _check_batch(self, condition: Tensor, batch: int) -> None:
        if condition.shape[0] != batch:
            raise ValueError(f"condition has {condition.shape[0]} rows: needs {batch}")

    def _sequence(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """prefix (B, n, D) | tokens (B, t) -> (B, n + t, D), the places of the next tokens added
        to the last t + 1."""
        x = torch.cat([prefix, self.embed_tokens(tokens).to(prefix.dtype)], dim=1)
        place = F.pad(self.place[: tokens.shape[1] + 1], (0, 0, prefix.shape[1] - 1, 0))
        return x + place.to(x.dtype)

    def _check_indices(self, indices: Tensor, least: int = 1) -> None:
        check_index(indices, "indices", "(B, n)", stop=self.vocab_size)
        batch, length = indices.shape
        if batch == 0 or not least <= length <= self.num_tokens:
            raise ValueError(
                f"indices has shape {(batch, length)}: needs at least one picture of {least} ... "
                f"{self.num_tokens} tokens"
            )

    # ------------------------------------------------------------------------------- what it learns
    def forward(
        self, indices: Tensor, condition: Tensor | None = None, dropped: Tensor | None = None
    ) -> Tensor:
        """Logits (B, n, K): entry i is what is said about token i from those before it.

        Args:
            indices: (B, n) long in 0 ... K - 1, n <= L; the last one is not read.
            condition: see the class; None: none.
            dropped: (B,) bool, whose condition is replaced by no condition; None: nobody's.

        ValueError: indices or a condition of another kind, shape or range; an empty batch.
        """
        self._check_indices(indices)
        prefix = self.prefix(condition, indices.shape[0], dropped)
        hidden = self.decoder(self._sequence(prefix, indices[:, :-1]))
        return self.head(hidden[:, prefix.shape[1] - 1 :])

    def loss(
        self,
        indices: Tensor,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats a token, 0-dim. In training mode every condition is dropped
        with probability `condition_dropout`.

        Args:
            indices: (B, n) long.
            condition: see the class; None: none.
            generator: which conditions are dropped; on the device of the indices.
        """
        self._check_indices(indices)
        check_generator(generator, optional=True)
        dropped = None
        if self.training and condition is not None and self.condition_dropout > 0:
            chance = torch.empty(indices.shape[0], device=indices.device)
            dropped = chance.uniform_(generator=generator) < self.condition_dropout
        return self._losses(indices, condition, dropped).mean()

    @torch.no_grad()
    def position_losses(self, indices: Tensor, condition: Tensor | None = None) -> Tensor:
        """Cross-entropy in nats of each place, (n,), the mean over pictures, nothing dropped: on
        validation pictures it says how learnable a tokenizer's sequences are, and where."""
        self._check_indices(indices)
        return self._losses(indices, condition, None).mean(dim=0)

    def _losses(
        self, indices: Tensor, condition: Tensor | None, dropped: Tensor | None
    ) -> Tensor:
        logits = self(indices, condition, dropped)
        flat = F.cross_entropy(logits.flatten(0, 1).float(), indices.flatten(), reduction="none")
        return flat.unflatten(0, tuple(indices.shape))                               # b n

    @torch.no_grad()
    def features(self, indices: Tensor, layer: int | None = None) -> Tensor:
        """What a linear probe is trained on, (B, D): the residual stream behind `layer` layers, the
        mean over the places 1 ... n, as GigaTok's code does it. No condition is read: it would be
        the answer.

        Args:
            indices: (B, n) long; the last one is not read, as in training.
            layer: 0 ... num_layers; None: half of them.
        """
        self._check_indices(indices)
        depth = len(self.decoder.layers)
        layer = depth // 2 if layer is None else check_int(layer, "layer", 0, depth)
        x = self._sequence(self.prefix(None, indices.shape[0]), indices[:, :-1])
        rope = self.decoder.rope(torch.arange(x.shape[1], device=x.device)[None])
        for block in self.decoder.layers[:layer]:
            x, _, _ = block(x, rope)
        return x.mean(dim=1)

    # ------------------------------------------------------------------------------ what it makes
    @torch.no_grad()
    def generate(
        self,
        condition: Tensor | None = None,
        num_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        guidance: float = 1.0,
        schedule: Schedule | None = None,
        prompt: Tensor | None = None,
        batch: int | None = None,
        generator: torch.Generator | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Indices (B, num_tokens) long, one token after another.

        Args:
            condition: see the class; None: none.
            num_tokens: how many, the prompt's included, up to L; None: L.
            temperature: see `sampling.sample`.
            top_k: see `sampling.sample`.
            top_p: see `sampling.sample`.
            guidance: scale s of `sampling.guide`, 1 is none; anything else needs a condition and
                twice the time.
            schedule: for token i of num_tokens, the share of the guidance it gets, such as
                `sampling.guidance_steps(0.18)`; None: all of it, for all.
            prompt: (B, p) long, the first tokens, p < num_tokens, which stay; None: none.
            batch: B where neither condition nor prompt says it; None: 1.
            generator: of the draws, on the model's device.
            cache: keep keys and values; False: read everything again for each token, which gives
                the same up to rounding.

        ValueError: what does not fit; guidance without a condition.
        """
        length = self.num_tokens if num_tokens is None else num_tokens
        length = check_int(length, "num_tokens", 1, self.num_tokens)
        weight = guidance_weight(check_number(guidance, "guidance"))
        cache = check_flag(cache, "cache")
        if schedule is not None:
            check_callable(schedule, "schedule", "a function of (index, count)")
        if weight and condition is None:
            raise ValueError(f"guidance={guidance} needs a condition to guide to")
        tokens = self._first_tokens(condition, prompt, batch, length)
        prefix = self.prefix(condition, tokens.shape[0])
        if weight:
            nothing = self.no_condition.to(prefix.dtype).expand_as(prefix)
            prefix = torch.cat([prefix, nothing])                                    # 2b n d
        kept = None
        for index in range(tokens.shape[1], length):
            logits, kept = self._next(prefix, tokens, kept if cache else None)
            if weight:
                share = 1.0 if schedule is None else schedule(index, length)
                told, untold = logits.chunk(2)
                logits = guide(told, untold, share * weight, "weight")
            token = sample(logits, temperature, top_k, top_p, generator)             # b
            tokens = torch.cat([tokens, token[:, None]], dim=1)
        return tokens

    def _first_tokens(
        self, condition: Tensor | None, prompt: Tensor | None, batch: int | None, length: int
    ) -> Tensor:
        """The prompt (B, p) long, or (B, 0), once all that says B agrees."""
        sizes = {}
        if batch is not None:
            sizes["batch"] = check_int(batch, "batch", 1)
        for given, name in ((condition, "condition"), (prompt, "prompt")):
            if given is None:
                continue
            if not isinstance(given, Tensor) or given.dim() == 0 or given.shape[0] == 0:
                raise ValueError(f"{name} is {describe(given)} but needs to be a tensor (B, ...)")
            sizes[name] = given.shape[0]
        if len(set(sizes.values())) > 1:
            raise ValueError(f"these disagree on the number of pictures: {sizes}")
        count = next(iter(sizes.values()), 1)
        if prompt is None:
            return torch.empty(count, 0, dtype=torch.long, device=self.place.device)
        check_index(prompt, "prompt", "(B, p)", stop=self.vocab_size)
        if prompt.shape[1] >= length:
            raise ValueError(
                f"prompt has {prompt.shape[1]} tokens but num_tokens={length}: nothing is left"
            )
        return prompt

    def _next(
        self, prefix: Tensor, tokens: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """Logits of the token behind `tokens`, (rows of prefix, K), and the cache.

        Args:
            prefix: (B or 2 B, n, D); with 2 B rows, the tokens are read twice.
            tokens: (B, t).
            cache: of all but the last token; None: everything is read.
        """
        tokens = tokens.repeat(prefix.shape[0] // tokens.shape[0], 1)
        if cache is None:
            run = self.decoder.prefill(self._sequence(prefix, tokens))
            return self.head(run.hidden[:, -1]), run.cache
        x = self.embed_tokens(tokens[:, -1:]) + self.place[tokens.shape[1]]          # b 1 d
        return self.head(self.decoder.step(x.to(prefix.dtype), cache)[:, 0]), cache
