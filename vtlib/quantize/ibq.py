"""Index backpropagation: a gradient for every code, through the choice of one.

Shi, Luo, Ge, Yang, Shan, Wang, "Taming Scalable Visual Tokenizer for Autoregressive Image
Generation" (IBQ), 2024, arXiv 2412.02692; equations as in the official code (SEED-Voken, src/IBQ).
For x of shape (..., D) and codes e_k:

    s_k = x . e_k,    p = softmax(s),    index = argmax_k s_k                          `search`
    codes = sum_k (onehot - sg(p) + p)_k e_k                                           `through`
    loss = mean((codes - x)^2) + mean((x - sg(e))^2) + b mean((e - sg(x))^2)           `terms`
           + w (E[H(q)] - H(E[q])),    q = softmax(s / t),    e = e_index

sg stops gradients. The values of `codes` are those of e_index; its gradient passes through the
chosen code and, by p, to x and to all K codes, where a straight-through estimate reaches the chosen
ones only. Scores are plain products: a long code wins more often.

What differs from the official code, on purpose:
- a table of positions x codes is made in blocks of BLOCK numbers; where there are several, each is
  made again for the gradient, so no two are there at once;
- codes are those of the codebook to the bit (there they are off by the rounding of 1 - p + p);
- no small number is added inside logarithms (there 1e-5);
- `norm`: x and codes are scaled to one length first, 4 in this course. This is a deviation: from a
  random codebook plain products collapse to a single code in short trainings;
- `warm_start`: the codebook by k-means of an encoder's outputs, for the same reason.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..nn.checks import check_index, check_int, check_number
from ..tokens.cosine import unit
from ..tokens.precision import full_precision, widen
from .contract import Quantized, check_counted, check_latents, used
from .vq import kmeans

CHECKPOINT: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
BLOCK = 2**23
"""Numbers of a table of scores: 32 MiB in float32."""


class Terms(NamedTuple):
    """What the loss of `IBQ` is made of, each 0-dim, before weights.

    Args:
        soft: mean (codes - x)^2, with the gradient of `codes`.
        commitment: mean (x - sg(e))^2, pulls vectors to their codes.
        codebook: mean (e - sg(x))^2, pulls codes to their vectors.
        sample_entropy: E[H(q)], nats: low when each vector is sure of its code.
        codebook_entropy: H(E[q]), nats: high when all codes are used alike.
    """

    soft: Tensor
    commitment: Tensor
    codebook: Tensor
    sample_entropy: Tensor
    codebook_entropy: Tensor


class IBQ(nn.Module):
    """x (..., D) -> `Quantized`: codes (..., D), indices (...) in 0 ... K - 1.

    Args:
        dim: D, channels of a vector.
        codebook_size: K.
        norm: None: scores are plain products; a number: vectors and codes have this length, in the
            search, in the loss and in what comes out. Then scores lie in -norm^2 ... norm^2.
        codebook_weight: b, of the term that pulls codes to their vectors.
        entropy_weight: w, of the entropy of choices less that of their mean: codes are used alike.
        entropy_temperature: t.

    The first codebook is uniform in -1/K ... 1/K, so start warm. Codes have the dtype of the
    module, whatever the input's; scores and losses are computed in float32 at least. Training and
    evaluation are the same, and nothing is written in forward. While nothing asks for a gradient
    p is not computed. The loss can be negative, at least -w log(K).

    ValueError: sizes below 1, weights, temperature or norm out of range, an x that is empty, not
    floating, not finite or of other channels, a mask of another shape or one that hides everything,
    indices that are not long or out of range.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        norm: float | None = None,
        codebook_weight: float = 0.25,
        entropy_weight: float = 0.05,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.dim = check_int(dim, "dim", 1)
        self.codebook_size = check_int(codebook_size, "codebook_size", 1)
        self.norm = norm
        if norm is not None:
            self.norm = check_number(norm, "norm", above=0)
        self.codebook_weight = check_number(codebook_weight, "codebook_weight", 0)
        self.entropy_weight = check_number(entropy_weight, "entropy_weight", 0)
        self.entropy_temperature = check_number(entropy_temperature, "entropy_temperature", above=0)
        size = self.codebook_size
        codebook = torch.empty(size, self.dim, dtype=torch.float32).uniform_(-1 / size, 1 / size)
        self.codebook = nn.Parameter(codebook)

    @property
    def bits(self) -> float:
        """Bits of an index, log2 of the number of codes."""
        return math.log2(self.codebook_size)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.codebook_size}, norm={self.norm}"

    # ---------------------------------------------------------------------------- in and out
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """x (..., D), mask (...) bool, True where a vector counts -> `Quantized`.

        Vectors that do not count get codes too. They change nothing in the loss and the usage.
        """
        rows, counted = self.rows(x), _counted(mask, x)
        table = self.table()
        indices = search(rows, table.to(rows.dtype))
        codes = self.through(rows, table, indices)
        loss = self.loss(self._terms(rows, table, indices, codes, counted))
        usage = used(indices, self.codebook_size, counted)
        shape = x.shape[:-1]
        return Quantized(codes.reshape(x.shape), indices.reshape(shape), loss, usage)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (...) long -> codes (..., D), bit for bit those that forward returned."""
        check_index(indices, "indices", stop=self.codebook_size)
        return F.embedding(indices, self.table())

    def table(self) -> Tensor:
        """(K, D), what searching and decoding read: the codebook, of one length under `norm`."""
        return self.normalised(self.codebook).to(self.codebook.dtype)

    def normalised(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., D), as vectors and codes alike are scored: of length `norm`."""
        return vectors if self.norm is None else self.norm * unit(vectors)

    def rows(self, x: Tensor) -> Tensor:
        """x (..., D) -> (N, D) as it is scored: float32 at least, of length `norm`."""
        check_latents(x, self.dim)
        dtype = torch.promote_types(widen(x).dtype, widen(self.codebook).dtype)
        return self.normalised(x.reshape(-1, self.dim).to(dtype))

    def through(self, rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
        """Codes (N, D) with the values of table[indices], to the bit, and the gradient of
        (onehot - sg(p) + p) @ table.

        Args:
            rows: (N, D), see `rows`.
            table: (K, D), see `table`.
            indices: (N,), what `search` found.
        """
        codes = F.embedding(indices, table)
        if not (torch.is_grad_enabled() and (rows.requires_grad or table.requires_grad)):
            return codes
        soft = soft_codes(rows, table.to(rows.dtype))
        return codes + (soft - soft.detach()).to(codes.dtype)

    # --------------------------------------------------------------------------------- the loss
    def terms(self, x: Tensor, mask: Tensor | None = None) -> Terms:
        """The terms of the loss for x (..., D), before weights; mask (...) as in forward."""
        rows, counted = self.rows(x), _counted(mask, x)
        table = self.table()
        indices = search(rows, table.to(rows.dtype))
        codes = self.through(rows, table, indices)
        return self._terms(rows, table, indices, codes, counted, always=True)

    def _terms(
        self,
        rows: Tensor,
        table: Tensor,
        indices: Tensor,
        codes: Tensor,
        counted: Tensor | None,
        always: bool = False,
    ) -> Terms:
        table = table.to(rows.dtype)
        chosen = F.embedding(indices, table)                                             # n d
        weight = rows.new_ones(rows.shape[0]) if counted is None else counted.to(rows.dtype)
        weight = weight / weight.sum()

        def mean_square(a: Tensor, b: Tensor) -> Tensor:
            return ((a - b).square().mean(dim=1) * weight).sum()

        own = mean = rows.new_zeros(())
        if always or self.entropy_weight:
            own, mean = entropies(rows, table, weight, self.entropy_temperature)
        return Terms(
            mean_square(codes.to(rows.dtype), rows),
            mean_square(rows, chosen.detach()),
            mean_square(chosen, rows.detach()),
            own,
            mean,
        )

    def loss(self, terms: Terms) -> Tensor:
        """The weighted sum of `terms`, 0-dim."""
        quantisation = terms.soft + terms.commitment + self.codebook_weight * terms.codebook
        return quantisation + self.entropy_weight * (terms.sample_entropy - terms.codebook_entropy)

    # ------------------------------------------------------------------------------- the start
    @torch.no_grad()
    def warm_start(self, x: Tensor, rounds: int = 10) -> None:
        """The codebook becomes the means of k-means of x (..., D), outputs of an encoder.

        Under `norm` by angles. Draws no random numbers. If x has fewer different vectors than there
        are codes, the last codes stay as they are.

        Args:
            x: (..., D).
            rounds: of searching the nearest and taking means.
        """
        check_latents(x, self.dim)
        rounds = check_int(rounds, "rounds", 1)
        rows = widen(x).reshape(-1, self.dim)
        cosine = self.norm is not None
        rows = unit(rows) if cosine else rows
        hits = rows.new_zeros(self.codebook_size)
        kmeans(self.codebook.data, hits, rows, None, rounds, cosine)
        self.codebook.copy_(self.table())


def _counted(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """mask (...) -> (N,), None as it is. ValueError unless it is bool and one for a vector."""
    if mask is None:
        return None
    check_counted(mask, x.shape[:-1])
    return mask.flatten()


# ---------------------------------------------------------------- tables of positions x codes
def _each(function: Any, table: Tensor, *rows: Tensor, **options: Any) -> list[Any]:
    """`function` of the table and each block of rows, which makes BLOCK scores at most. Where there
    are several blocks, their scores are not kept for the gradient.

    Args:
        function: of (table, *blocks), with the options.
        table: (K, D).
        rows: tensors (N, ...), cut alike; with a free batch they stay in one piece.
        options: of the function.
    """
    size = max(1, BLOCK // table.shape[0])
    if torch.compiler.is_exporting() or rows[0].shape[0] <= size:
        return [function(table, *rows, **options)]
    blocks = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return [checkpoint(function, table, *block, **options, **CHECKPOINT) for block in blocks]


def _scores(table: Tensor, rows: Tensor) -> Tensor:
    with full_precision(rows.device):
        return rows @ table.T                                                            # n k


@torch.no_grad()
def search(rows: Tensor, table: Tensor) -> Tensor:
    """rows (N, D), table (K, D) -> (N,) long, the codes with the largest product."""
    return torch.cat(_each(_best, table.detach(), rows.detach()))


def _best(table: Tensor, rows: Tensor) -> Tensor:
    return _scores(table, rows).argmax(dim=1)


def soft_codes(rows: Tensor, table: Tensor) -> Tensor:
    """rows (N, D), table (K, D) -> softmax(rows table^T) sg(table), (N, D).

    Its gradient is that of `codes` but for the chosen code's own: sg, because one-hot - sg(p) + p
    has the values of one-hot, so that the product's other factor hands its gradient to that code.
    """
    return torch.cat(_each(_soft, table, rows))


def _soft(table: Tensor, rows: Tensor) -> Tensor:
    p = _scores(table, rows).softmax(dim=1)
    with full_precision(rows.device):
        return p @ table.detach()


def entropies(
    rows: Tensor, table: Tensor, weight: Tensor, temperature: float = 0.01
) -> tuple[Tensor, Tensor]:
    """(E[H(q)], H(E[q])) in nats, each 0-dim, with q = softmax(rows table^T / temperature).

    Args:
        rows: (N, D), float32 at least.
        table: (K, D), of the same dtype.
        weight: (N,), how much each row counts, adding up to 1.
        temperature: above 0.
    """
    parts = _each(_choices, table, rows, weight, temperature=temperature)
    own = torch.stack([part[0] for part in parts]).sum()
    mean = torch.stack([part[1] for part in parts]).sum(dim=0)                           # k
    mean = mean.clamp_min(torch.finfo(mean.dtype).tiny)      # the slope of p log p at 0 is infinite
    return own, torch.special.entr(mean).sum()


def _choices(
    table: Tensor, rows: Tensor, weight: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(sum of the weighted entropies, weighted sum of q (K,)) of a block of vectors."""
    logits = _scores(table, rows) / temperature
    # not log_q.exp(): torch's exp takes some fifty times as long where it underflows
    q, log_q = logits.softmax(dim=1), logits.log_softmax(dim=1)
    with full_precision(rows.device):
        return -((q * log_q).sum(dim=1) * weight).sum(), weight @ q
