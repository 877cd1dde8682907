"""TokenBridge's generator: masked positions from visible ones, in any order.

Part of `tokenbridge` (arXiv 2503.16430); the backbone is that of MAR (Li et al. 2024, arXiv
2406.11838). It reads de-quantised values, never indices; its head (`tokenbridge_head`) predicts
indices.

    [class, ..., class, Linear(values)] + position, LN      encode: buffer and visible tokens only
    mask tokens at the masked positions, + position         decode -> z, a context for each position
    share masked ~ N(1, 0.25^2) cut to [0.7, 1]             mask_share; its ceiling in positions
    mean cross-entropy, masked positions and channels       MaskedGenerator.loss
    masked after step s of T: floor(N cos(pi s / 2 T))      masked_left, MaskedGenerator.sample
    z = z_u + w (z_c - z_u), guidance on z, not on logits   w = 1 + (guidance - 1) (N - masked) / N

Different from the release (YuqingWang1029/TokenBridge): positions come as indices (`visible`, (B,
V) long) and none is computed that isn't seen; conditional and unconditional pass are one batch;
more steps than positions are an error (there, steps without a position fail); the head's first
element when sampling, see `tokenbridge_head`; three buffers are no part of the state
(`convert_official` checks them). `order="confidence"` is the paper's section 4, which it describes
in words and the release does not have: inferred.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..generation.sampling import guide
from ..nn.checks import (
    check_axes,
    check_dtype,
    check_generator,
    check_index,
    check_int,
    check_ints,
    check_number,
)
from ..quantize.dimwise import DimensionWise, gaussian_bins
from ..tokens import take
from ..tokens.select import best, check_once
from .tokenbridge import FREQUENCY_ORDER
from .tokenbridge_head import Attention, DimensionHead, DropoutMlp, xavier

LARGE: dict = dict()
"""TokenBridge-L, the defaults: 486,889,472 parameters."""
HUGE: dict = dict(embed_dim=1280, num_layers=20, head_layers=6)
"""TokenBridge-H: 910,040,576 parameters."""


class Block(nn.Module):
    """A pre-norm transformer block with dropout, timm's names.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        mlp_ratio: hidden width of the MLP / D.
        dropout: in training.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden = int(embed_dim * check_number(mlp_ratio, "mlp_ratio", 0, 1e4))
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = DropoutMlp(embed_dim, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MaskedGenerator(nn.Module):
    """Indices (B, h, w, C) of a class, and how likely they are. Defaults: TokenBridge-L.

        generator = MaskedGenerator((8, 8), 16, num_classes=9, levels=16, embed_dim=64, ...)
        generator.loss(tokenizer.encode(images).indices, labels)
        tokenizer.decode_indices(generator.sample(labels))

    levels, limits and r are those of the tokenizer.

    Args:
        grid: (h, w), N = h w positions.
        dim: C, channels of a latent.
        num_classes: how many classes there are.
        levels: B, values of a channel.
        limits: of the values, see `DimensionWise`.
        r: likewise.
        embed_dim: width of encoder and decoder.
        num_layers: blocks of the encoder, and of the decoder.
        num_heads: of each of their blocks.
        decoder_dim: width of the decoder, where it is another one.
        num_buffer: tokens in front that carry the class.
        head_dim: width of the head.
        head_layers: its blocks.
        head_heads: heads of each.
        mlp_ratio: of all blocks.
        order: the channels as the head predicts them.
        parallel: all channels at once, the paper's baseline.
        least_masked: the smallest share of positions that training masks.
        label_drop: how often training learns without the class.
        dropout: of all blocks.
    """

    def __init__(
        self,
        grid: Sequence[int] = (16, 16),
        dim: int = 16,
        num_classes: int = 1000,
        levels: int = 64,
        limits: Sequence[float] | Sequence[Sequence[float]] | Tensor = (-5.0, 5.0),
        r: float = 3.0,
        embed_dim: int = 1024,
        num_layers: int = 16,
        num_heads: int = 16,
        decoder_dim: int | None = None,
        num_buffer: int = 64,
        head_dim: int = 1024,
        head_layers: int = 4,
        head_heads: int = 8,
        mlp_ratio: float = 4.0,
        order: Sequence[int] | Tensor = FREQUENCY_ORDER,
        parallel: bool = False,
        least_masked: float = 0.7,
        label_drop: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.grid = check_ints(grid, "grid", 1, length=2)
        self.num_positions = math.prod(self.grid)
        self.num_buffer = check_int(num_buffer, "num_buffer", 1)
        self.num_classes = check_int(num_classes, "num_classes", 1)
        self.label_drop = check_number(label_drop, "label_drop", 0, 1)
        self.least_masked = check_number(least_masked, "least_masked", 0, 1)
        self.quantizer = DimensionWise(dim, levels, limits, r)
        head_sizes = (
            check_int(head_dim, "head_dim", 1), check_int(head_layers, "head_layers", 1),
            check_int(head_heads, "head_heads", 1),
        )
        width = check_int(embed_dim, "embed_dim", 1)
        decoder = width if decoder_dim is None else check_int(decoder_dim, "decoder_dim", 1)
        layers = check_int(num_layers, "num_layers", 1)
        length = self.num_buffer + self.num_positions

        self.class_emb = nn.Embedding(self.num_classes, width)
        self.fake_latent = _small(1, width)                                # of no class
        self.z_proj = nn.Linear(self.quantizer.dim, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=1e-6)
        self.encoder_pos_embed_learned = _small(1, length, width)
        options = num_heads, mlp_ratio, dropout
        self.encoder_blocks = nn.ModuleList(Block(width, *options) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)

        self.decoder_embed = nn.Linear(width, decoder)
        self.mask_token = _small(1, 1, decoder)
        self.decoder_pos_embed_learned = _small(1, length, decoder)
        self.decoder_blocks = nn.ModuleList(Block(decoder, *options) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(decoder, eps=1e-6)
        self.output_pos_embed = _small(1, self.num_positions, decoder)
        nn.init.normal_(self.class_emb.weight, std=0.02)
        self.apply(xavier)
        self.head = DimensionHead(
            decoder, dim, levels, *head_sizes, mlp_ratio, order, parallel, dropout
        )

    # ------------------------------------------------------------------------------ backbone
    def embed(self, labels: Tensor | None, batch: int) -> Tensor:
        """The class as a vector (B, D). labels: (B,) long; None: of no class."""
        if labels is None:
            return self.fake_latent.expand(batch, -1)
        check_index(labels, "labels", "(B,)", (batch,), stop=self.num_classes)
        return self.class_emb(labels)

    def encode(self, values: Tensor, visible: Tensor, condition: Tensor) -> Tensor:
        """Buffer and visible tokens (B, buffer + V, D), each having seen all of them.

        Args:
            values: (B, N, C) de-quantised latents; those of masked positions are not read.
            visible: (B, V) long, ascending, V >= 0.
            condition: (B, D), see `embed`.
        """
        self._check_values(values, visible)
        x = self.z_proj(take(values, visible))
        buffer = condition[:, None].to(x.dtype).expand(-1, self.num_buffer, -1)
        place = self.encoder_pos_embed_learned.expand(x.shape[0], -1, -1)
        places = [place[:, :self.num_buffer], take(place[:, self.num_buffer:], visible)]
        x = self.z_proj_ln(torch.cat([buffer, x], dim=1) + torch.cat(places, dim=1))
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def decode(self, x: Tensor, visible: Tensor) -> Tensor:
        """Contexts (B, N, D') of all positions.

        Args:
            x: (B, buffer + V, D), as of `encode`.
            visible: (B, V) long, where the V tokens are.
        """
        x = self.decoder_embed(x)
        mask = self.mask_token.to(x.dtype).expand(x.shape[0], -1, -1)
        table = torch.cat([x[:, self.num_buffer:], mask], dim=1)                 # b v+1 d
        x = torch.cat([x[:, :self.num_buffer], take(table, self._slots(visible))], dim=1)
        x = x + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, self.num_buffer:] + self.output_pos_embed

    def context(self, values: Tensor, visible: Tensor, condition: Tensor) -> Tensor:
        """z (B, N, D') of all positions: `decode` of `encode`.

        Args:
            values: see `encode`.
            visible: see `encode`.
            condition: see `encode`.
        """
        return self.decode(self.encode(values, visible, condition), visible)

    def _slots(self, visible: Tensor) -> Tensor:
        """(B, N) long: which of V visible tokens is at a position; V for a masked one."""
        batch, count = visible.shape
        numbers = torch.arange(count, device=visible.device).expand(batch, -1)
        slots = numbers.new_full((batch, self.num_positions), count)
        return slots.scatter(1, visible, numbers)

    def masked(self, visible: Tensor) -> Tensor:
        """(B, N - V) long, ascending: the positions that are not in `visible` (B, V)."""
        check_index(visible, "visible", "(B, V)")
        check_once(visible, "visible", self.num_positions, "position")
        count = visible.shape[1]
        shown = self._slots(visible) < count
        return shown.long().argsort(dim=1, stable=True)[:, :self.num_positions - count]

    def forward(self, indices: Tensor, visible: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, M, C, levels) of the masked positions, ascending, given the true indices of
        the channels before each.

        Args:
            indices: (B, h, w, C) or (B, N, C) long.
            visible: (B, V) long, ascending: the positions that are given; M = N - V >= 1.
            labels: (B,) long; None: of no class.
        """
        indices = self._flat(indices)
        return self._predict(indices, visible, self.embed(labels, indices.shape[0]))[0]

    def _predict(
        self, indices: Tensor, visible: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, M, C, levels) of the masked positions, and the truth (B, M, C)."""
        check_index(visible, "visible", "(B, V)", (indices.shape[0], None))
        masked = self.masked(visible)
        truth = take(indices, masked)                                            # b m c
        z = take(self.context(self.quantizer.decode(indices), visible, condition), masked)
        logits = self.head(z.flatten(0, 1), truth.flatten(0, 1))
        return logits.unflatten(0, masked.shape), truth

    # ------------------------------------------------------------------------------ training
    def loss(
        self,
        indices: Tensor,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean cross-entropy over masked positions and channels, 0-dim, in nats.

        One share of positions is masked in all pictures, others in each. In training a label is
        dropped with probability `label_drop`.

        Args:
            indices: (B, h, w, C) or (B, N, C) long.
            labels: (B,) long; None: of no class.
            generator: of what is masked and dropped; None: torch's own numbers.
        """
        check_generator(generator, optional=True)
        indices = self._flat(indices)
        batch, device = indices.shape[0], indices.device
        condition = self.embed(labels, batch)
        if self.training and self.label_drop:
            chance = torch.rand(batch, 1, dtype=torch.float32, device=device, generator=generator)
            condition = torch.where(chance < self.label_drop, self.fake_latent, condition)
        count = math.ceil(self.num_positions * mask_share(self.least_masked, generator))
        visible = self.shuffled(batch, device, generator)[:, max(count, 1):].sort(dim=1).values
        logits, truth = self._predict(indices, visible, condition)
        return F.cross_entropy(logits.flatten(0, 2), truth.flatten())

    def shuffled(
        self, batch: int, device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """(B, N) long: the positions of each picture in random order.

        Args:
            batch: B.
            device: of the result.
            generator: decides.
        """
        shape = batch, self.num_positions
        chance = torch.rand(shape, dtype=torch.float32, device=device, generator=generator)
        return chance.argsort(dim=1)

    # ------------------------------------------------------------------------------ sampling
    @torch.no_grad()
    def sample(
        self,
        labels: Tensor | None = None,
        batch: int | None = None,
        steps: int = 64,
        guidance: float = 1.0,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        order: str | Tensor = "random",
        released: bool = False,
    ) -> Tensor:
        """Indices (B, h, w, C) long, in `steps` passes of the backbone. In eval mode throughout.

        Args:
            labels: (B,) long; None: of no class, then `batch` says how many.
            batch: B, where labels are None.
            steps: T, 1 ... N.
            guidance: 1: none; the paper's is 3.1 (L), 3.45 (H).
            temperature: of the head; 0 takes the most likely.
            generator: decides; None: torch's own numbers.
            order: "random", or (B, N) long positions, the last come first; "confidence": each step
                tries all masked positions and keeps those whose indices are most likely.
            released: see `DimensionHead.sample`.
        """
        check_generator(generator, optional=True)
        guidance = check_number(guidance, "guidance")
        if labels is None and guidance != 1:
            raise ValueError(f"guidance={guidance} needs labels")
        if labels is None:
            batch = check_int(batch, "batch", 1)
        else:
            check_index(labels, "labels", "(B,)")
            batch = labels.shape[0]
        conditions = [self.embed(labels, batch)]
        if guidance != 1:
            conditions.append(self.embed(None, batch))
        places = self._places(order, batch, generator)
        indices = torch.zeros(
            batch, self.num_positions, self.quantizer.dim, dtype=torch.long,
            device=self.mask_token.device,
        )
        visible = indices[:, :0, 0]
        with evaluating(self):
            for left in masked_left(self.num_positions, steps):
                share = 1 - max(left, 1) / self.num_positions
                z = self._guided(indices, visible, conditions, 1 + (guidance - 1) * share)
                count = self.num_positions - visible.shape[1] - left
                ask = self.masked(visible) if places is None else places[:, left:left + count]
                found, sure = self.head.sample(
                    take(z, ask).flatten(0, 1), temperature, generator, released
                )
                found, sure = found.unflatten(0, ask.shape), sure.unflatten(0, ask.shape)
                if places is None:
                    kept = best(sure, count)
                    ask, found = take(ask, kept), take(found, kept)
                indices = indices.scatter(1, ask[..., None].expand_as(found), found)
                visible = torch.cat([visible, ask], dim=1).sort(dim=1).values
        return indices.unflatten(1, self.grid)

    def _guided(
        self, indices: Tensor, visible: Tensor, conditions: list[Tensor], weight: float
    ) -> Tensor:
        """z (B, N, D'), away from that of no class where there are two conditions."""
        parts = len(conditions)
        values = self.quantizer.decode(indices).repeat(parts, 1, 1)
        z = self.context(values, visible.repeat(parts, 1), torch.cat(conditions))
        if parts == 1:
            return z
        return guide(*z.chunk(2), weight)

    def _places(
        self, order: str | Tensor, batch: int, generator: torch.Generator | None
    ) -> Tensor | None:
        """(B, N) long, or None where confidence decides."""
        if isinstance(order, Tensor):
            check_index(order, "order", "(B, N)", (batch, self.num_positions))
            check_once(order, "order", self.num_positions, "position")
            return order
        if order not in ("random", "confidence"):
            raise ValueError(f"order={order!r}: needs 'random', 'confidence' or positions (B, N)")
        if order == "confidence":
            return None
        return self.shuffled(batch, self.mask_token.device, generator)

    # -------------------------------------------------------------------------------- checks
    def _flat(self, indices: Tensor) -> Tensor:
        """(B, h, w, C) or (B, N, C) long -> (B, N, C)."""
        size = *self.grid, self.quantizer.dim
        if isinstance(indices, Tensor) and indices.dim() == 4 and indices.shape[1:] == size:
            indices = indices.flatten(1, 2)
        sizes = None, self.num_positions, self.quantizer.dim
        check_index(indices, "indices", "(B, N, C)", sizes, stop=self.quantizer.codebook_size)
        if indices.shape[0] == 0:
            raise ValueError("indices is empty: needs one picture at least")
        return indices

    def _check_values(self, values: Tensor, visible: Tensor) -> None:
        check_axes(values, "values", "(B, N, C)")
        needs = self.num_positions, self.quantizer.dim
        if values.shape[1:] != needs:
            raise ValueError(f"values has shape {tuple(values.shape)} but needs (B, N, C) = "
                             f"(B, {needs[0]}, {needs[1]})")
        check_dtype(values, self.z_proj.weight, "values")
        check_index(visible, "visible", "(B, V)", (values.shape[0], None))


def _small(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(shape))


def mask_share(least: float = 0.7, generator: torch.Generator | None = None) -> float:
    """A share of positions: normal with mean 1 and deviation 0.25, cut to [least, 1].

        1 + 0.25 Phi^-1(u),  u uniform from Phi((least - 1) / 0.25) to 1/2

    least: from 0 to 1. generator: decides; None: torch's own numbers.
    """
    least = check_number(least, "least", 0, 1)
    check_generator(generator, optional=True)
    device = "cpu" if generator is None else generator.device
    u = torch.rand((), dtype=torch.float64, device=device, generator=generator)
    low = 0.5 * math.erfc((1 - least) / 0.25 / math.sqrt(2))
    share = 1 + 0.25 * torch.special.ndtri(low + (0.5 - low) * u)
    return min(max(share.item(), least), 1.0)


def masked_left(num_positions: int, steps: int) -> list[int]:
    """How many positions are masked after each of T steps: floor(N cos(pi s / 2 T)), at least 1 and
    fewer than before; 0 after the last.

    ValueError: more steps than positions.
    """
    num_positions = check_int(num_positions, "num_positions", 1)
    steps = check_int(steps, "steps", 1)
    if steps > num_positions:
        raise ValueError(f"steps={steps} but there are {num_positions} positions")
    left, now = [], num_positions
    for step in range(1, steps):
        wanted = math.floor(num_positions * math.cos(math.pi / 2 * step / steps))
        now = max(1, min(now - 1, wanted))
        left.append(now)
    return [*left, 0]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


# ---------------------------------------------------------------------------- official weights
HEAD = (
    "condition_proj", "channel_embed", "timesteps_embeddings", "token_embeddings",
    "channel_blocks", "channel_norm", "channel_final", "channel_heads",
)


def convert_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's state dict under our names: the head's weights go below "head.".

    Its three buffers follow from the arguments and are left out: the causal mask, and the bins of
    the Gaussian. ValueError where the bins are not those of r = 3, as many as the head has.
    """
    state = dict(state)
    state.pop("channel_mask", None)
    edges, means = state.pop("boundaries", None), state.pop("reconstruction_values", None)
    if edges is not None and means is not None:
        want = gaussian_bins(len(means), 3.0)
        for got, values in zip((edges, means), want, strict=True):
            if not torch.allclose(got.double(), values.to(got.device), atol=1e-4):
                raise ValueError(f"state: its {len(means)} bins are not those of r = 3")
    return {
        f"head.{name}" if name.split(".")[0] in HEAD else name: value
        for name, value in state.items()
    }
