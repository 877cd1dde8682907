"""Vector quantisation: each vector becomes the nearest code of a learned codebook.

van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning", 2017, arXiv
1711.00937; the moving average is that of its appendix A.1. For x of shape (..., D) and codes e_k:

    index = argmin_k |x - e_k|,    codes = e_index
    loss = b mean((x - sg(codes))^2)  [+ mean((sg(x) - codes)^2)]  [+ w (E[H(p)] - H(E[p]))]

sg stops gradients and b is the commitment weight. The codebook learns by the second term, or by
moving averages of what falls to each code: with n_k vectors of mean m_k in a batch,

    c_k <- d c_k + (1 - d) n_k,    e_k <- e_k + (1 - d) n_k / c_k (m_k - e_k)

which is the paper's N_k, m_k and m_k / N_k without a second table. p is the softmax of squared
distances over -t (Yu et al., "Language Model Beats Diffusion", 2023, arXiv 2310.05737).

What differs from other code, on purpose:
- `nearest` is exact, under any offset and under autocast, and no N x K table is kept;
- codes are those after the step of the moving average, so decode(indices) gives them to the bit;
- a code that nothing falls to keeps its value: sums and counts that fade together would, once
  counts are smoothed, pull it to the origin;
- a code is dead when `revive_after` times K vectors went by without it, whatever a batch holds, and
  is replaced by a vector of the batch that no other code has got;
- the loss is the same in training and not, and gradients pass in both.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..nn.checks import check_flag, check_index, check_int, check_number, readable
from ..tokens.cosine import unit
from ..tokens.precision import full_precision, widen
from .contract import (
    Quantized,
    check_counted,
    check_latents,
    rotation,
    straight_through,
    used,
)
from .lookup import nearest_code

LEARN = ("ema", "gradient")
LOOKUP = ("euclidean", "cosine")
GRADIENT = {"straight_through": straight_through, "rotation": rotation}
CHECKPOINT: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
BLOCK = 2**20
"""Numbers of a block of softmax, for the loss by entropy."""


class VectorQuantizer(nn.Module):
    """x (..., D) -> `Quantized`: codes (..., D), indices (...) in 0 ... K - 1.

    Args:
        dim: D, channels of a vector.
        codebook_size: K.
        learn: how the codebook does: "ema", a buffer with moving averages, or "gradient", a
            parameter with a term of the loss.
        lookup: "euclidean", or "cosine": vectors and codes have length 1, in the search, in the
            loss and in what comes out.
        gradient: what the input gets of the codes' gradient: "straight_through" or "rotation".
        commitment_weight: b, of the term that draws vectors to their codes; of that term alone.
        decay: d, of the moving averages.
        kmeans_init: the first batch in training gives the codebook, by k-means.
        kmeans_iters: its rounds.
        revive_after: r: a code is dead once r K vectors went by without it; None: never. The
            uniform use of all codes leaves one out for so long with probability exp(-r).
        entropy_weight: w, of the entropy of choices less that of their mean: codes are used alike.
        entropy_temperature: t.

    Codes have the dtype of the module, whatever the input's; distances are computed in float32 at
    least. Only training changes the codebook, and not while `frozen` is set to True; nothing here
    draws random numbers but the first codebook, uniform in -1/K ... 1/K. `idle` (K,) counts the
    vectors since each code was last used. Gradient checkpointing around this module would teach the
    codebook twice a step: it belongs around what comes before and after.

    ValueError: sizes below 1, names that are none of those, weights or temperatures out of range,
    an x that is empty, not floating, not finite or of other channels, a mask of another shape or
    one that hides everything, indices that are not long or out of range.
    """

    codebook: Tensor
    count: Tensor
    idle: Tensor
    started: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        learn: str = "ema",
        lookup: str = "euclidean",
        gradient: str = "straight_through",
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        revive_after: float | None = None,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.dim = check_int(dim, "dim", 1)
        self.codebook_size = check_int(codebook_size, "codebook_size", 1)
        self.learn_by = _one_of(learn, "learn", LEARN)
        self.cosine = _one_of(lookup, "lookup", LOOKUP) == "cosine"
        self.gradient = _one_of(gradient, "gradient", GRADIENT)
        self.commitment_weight = check_number(commitment_weight, "commitment_weight", 0)
        self.decay = check_number(decay, "decay", 0, 1)
        self.kmeans_iters = check_int(kmeans_iters, "kmeans_iters", 1)
        self.revive_after = revive_after
        if revive_after is not None:
            self.revive_after = check_number(revive_after, "revive_after", above=0)
        self.entropy_weight = check_number(entropy_weight, "entropy_weight", 0)
        self.entropy_temperature = check_number(entropy_temperature, "entropy_temperature", above=0)
        self.frozen = False
        self._make_buffers(not check_flag(kmeans_init, "kmeans_init"))

    def _make_buffers(self, started: bool) -> None:
        size = self.codebook_size
        codebook = torch.empty(size, self.dim, dtype=torch.float32).uniform_(-1 / size, 1 / size)
        if self.learn_by == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("count", torch.zeros(size, dtype=torch.float32))
        self.register_buffer("idle", torch.zeros(size, dtype=torch.long))
        self.register_buffer("started", torch.tensor(started))
        self.waits = not started                    # for k-means; a look at the buffer would cost
        self.register_load_state_dict_post_hook(_read_started)

    @property
    def bits(self) -> float:
        """Bits of an index, log2 of the number of codes."""
        return math.log2(self.codebook_size)

    def extra_repr(self) -> str:
        lookup = "cosine" if self.cosine else "euclidean"
        return f"{self.dim}, {self.codebook_size}, {self.learn_by}, {lookup}, {self.gradient}"

    # ---------------------------------------------------------------------------- in and out
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """x (..., D), mask (...) bool, True where a vector counts -> `Quantized`.

        Vectors that do not count get codes too. They change nothing for the others, nothing in the
        codebook, the loss and the usage.
        """
        rows = self.rows(x)
        counted = self.counted(mask, x)
        still = rows.detach()
        self.start(still, counted)
        indices = self.search(still)
        self.learn(still, indices, counted)
        codes = self.decode(indices).detach().reshape(x.shape)
        out = GRADIENT[self.gradient](codes, rows.reshape(x.shape))
        loss = self.loss(rows, indices, counted)
        usage = used(indices, self.codebook_size, counted)
        return Quantized(out, indices.reshape(x.shape[:-1]), loss, usage)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (...) long -> codes (..., D), bit for bit those that forward returned."""
        check_index(indices, "indices", stop=self.codebook_size)
        return F.embedding(indices, self.table())

    def table(self) -> Tensor:
        """(K, D), what searching and decoding read: the codebook, of length 1 for "cosine"."""
        return self.normalised(self.codebook).to(self.codebook.dtype)

    def normalised(self, vectors: Tensor) -> Tensor:
        """(N, D) -> (N, D), as vectors and codes alike are compared: of length 1 for "cosine", else
        as they are. A subclass may compare them in another way."""
        return unit(vectors) if self.cosine else vectors

    def weighed(self, vectors: Tensor) -> Tensor:
        """(N, D) -> (N, D): Euclidean distances of these decide which code is nearest. A subclass
        may stretch channels, so that they count more in the choice."""
        return vectors

    # ------------------------------------------------------- the steps of forward, one by one
    def rows(self, x: Tensor) -> Tensor:
        """x (..., D) -> (N, D) as distances are taken: float32 at least, of length 1 for
        "cosine"."""
        check_latents(x, self.dim)
        dtype = torch.promote_types(widen(x).dtype, widen(self.codebook).dtype)
        rows = x.reshape(-1, self.dim).to(dtype)
        return self.normalised(rows)

    def counted(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """mask (...) -> (N,), None as it is. ValueError unless it is bool and one for a vector."""
        if mask is None:
            return None
        check_counted(mask, x.shape[:-1])
        return mask.flatten()

    @torch.no_grad()
    def start(self, rows: Tensor, counted: Tensor | None = None) -> None:
        """The codebook by k-means of rows (N, D), where that is due: once, in training."""
        if not (self.waits and self.training and not self.frozen):
            return
        codebook = self.codebook.detach()
        kmeans(codebook, self.count, rows, counted, self.kmeans_iters, self.cosine)
        self.started.fill_(True)
        self.waits = False

    @torch.no_grad()
    def search(self, rows: Tensor) -> Tensor:
        """rows (N, D) -> (N,) long, the nearest codes."""
        table = self.table().detach().to(rows.dtype)
        return nearest_code(self.weighed(rows.detach()), self.weighed(table))

    @torch.no_grad()
    def learn(self, rows: Tensor, indices: Tensor, counted: Tensor | None = None) -> None:
        """What a step of training does to the codebook outside of gradients: the moving averages,
        and dead codes come to life. Nothing when frozen or not training.

        Args:
            rows: (N, D), see `rows`.
            indices: (N,), their codes, found before.
            counted: (N,) bool, those that count; None: all.
        """
        if self.frozen or not self.training:
            return
        weight = torch.ones_like(indices, dtype=rows.dtype)
        if counted is not None:
            weight = counted.to(rows.dtype)
        hits = weight.new_zeros(self.codebook_size).index_add(0, indices, weight)
        if self.learn_by == "ema":
            self._average(rows, indices, weight, hits)
        passed = self.idle + weight.sum().long()
        self.idle.copy_(torch.where(hits > 0, 0, passed))
        if self.revive_after is not None:
            most = int(self.revive_after * self.codebook_size)
            table = self.table().detach().to(rows.dtype)
            books = self.codebook.data, self.count, self.idle    # an earlier graph stays as it is
            revive(*books, table, rows, indices, weight, most)

    def _average(self, rows: Tensor, indices: Tensor, weight: Tensor, hits: Tensor) -> None:
        """The step of the moving averages. Codes move by differences, in place: nothing rounds at
        the size of an offset, and codes without a vector keep every bit."""
        count = torch.lerp(hits, self.count.to(hits.dtype), self.decay)
        self.count.copy_(count)
        rate = torch.where(hits > 0, (1 - self.decay) / count, 0)
        table = self.table().to(rows.dtype)
        step = (rows - table[indices]) * (rate[indices] * weight)[:, None]
        if table is self.codebook:
            self.codebook.index_add_(0, indices, step)
            return
        moved = self.normalised(table.index_add(0, indices, step))
        self.codebook.copy_(torch.where(hits[:, None] > 0, moved.to(self.codebook), self.codebook))

    def loss(self, rows: Tensor, indices: Tensor, counted: Tensor | None = None) -> Tensor:
        """What training adds to the loss of the model, 0-dim.

        Args:
            rows: (N, D), see `rows`.
            indices: (N,), their codes.
            counted: (N,) bool, those that count; None: all.
        """
        codes = F.embedding(indices, self.table().to(rows.dtype))     # bf16 cannot sum gradients
        loss = self.commitment_weight * _mean_square(rows, codes.detach(), counted)
        if self.learn_by == "gradient" and not self.frozen:
            loss = loss + _mean_square(rows.detach(), codes, counted)
        if self.entropy_weight:
            table = self.weighed(self.table().to(rows.dtype))
            table = table.detach() if self.frozen else table
            entropy = entropy_loss(self.weighed(rows), table, counted, self.entropy_temperature)
            loss = loss + self.entropy_weight * entropy
        return loss


def _one_of(value: object, name: str, choices: Iterable[str]) -> str:
    names = tuple(choices)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name}={value!r}: needs one of {', '.join(names)}")
    return value


def _read_started(module: Any, _: object) -> None:
    if readable(module.started):
        module.waits = not bool(module.started)


def _mean_square(a: Tensor, b: Tensor, counted: Tensor | None) -> Tensor:
    """Mean of (a - b)^2 over channels and the vectors that count; a, b (N, D)."""
    if counted is None:
        return F.mse_loss(a, b)
    weight = counted.to(a.dtype)
    return ((a - b).square().mean(dim=1) * weight).sum() / weight.sum().clamp_min(1)


# ------------------------------------------------------------------------------------- entropy
def entropy_loss(
    rows: Tensor, table: Tensor, counted: Tensor | None = None, temperature: float = 0.01
) -> Tensor:
    """E[H(p)] - H(E[p]) in nats, 0-dim, with p = softmax(-|x - e_k|^2 / temperature) over codes.

    Between -log K (each vector is sure of its code, all codes are used alike) and 0. Softmax is
    done in blocks, and again for the gradient: no N x K table is kept.

    Args:
        rows: x (N, D), float32 at least.
        table: e (K, D), of the same dtype.
        counted: (N,) bool, the vectors that count; None: all.
        temperature: above 0.
    """
    weight = rows.new_ones(rows.shape[0]) if counted is None else counted.to(rows.dtype)
    weight = weight / weight.sum().clamp_min(1)
    centre = table.detach().mean(dim=0)
    rows, table = rows - centre, table - centre
    own, mean = rows.new_zeros(()), rows.new_zeros(table.shape[0])
    size = max(1, BLOCK // table.shape[0])
    for x, w in zip(rows.split(size), weight.split(size), strict=True):
        part = checkpoint(_block, x, w, table, temperature, **CHECKPOINT)
        own, mean = own + part[0], mean + part[1]
    mean = mean.clamp_min(torch.finfo(mean.dtype).tiny)      # the slope of p log p at 0 is infinite
    return own - torch.special.entr(mean).sum()


def _block(x: Tensor, weight: Tensor, table: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(sum of the weighted entropies, weighted sum of p (K,)) of a block of vectors."""
    with full_precision(x.device):
        score = x @ table.T - table.square().sum(dim=1) / 2                                  # n k
    logits = 2 * score / temperature
    # not log_p.exp(): torch's exp takes some fifty times as long where it underflows
    p, log_p = logits.softmax(dim=1), logits.log_softmax(dim=1)
    return -((p * log_p).sum(dim=1) * weight).sum(), weight @ p


# -------------------------------------------------------- what looks at values, as single steps
@torch.library.custom_op("vtlib::revive", mutates_args=("codebook", "count", "idle"))
def revive(
    codebook: Tensor, count: Tensor, idle: Tensor, table: Tensor, rows: Tensor, indices: Tensor,
    weight: Tensor, most: int,
) -> None:
    """Codes that `idle` says were not used for more than `most` vectors become vectors of the
    batch: different ones, none that is a code already, spread evenly over the squared error.

    Args:
        codebook: (K, D), changed in place.
        count: (K,), of the moving averages; 0 for those replaced: their next step is a whole one.
        idle: (K,) long, vectors since each was used; 0 again for those replaced.
        table: (K, D), see `VectorQuantizer.table`.
        rows: (N, D), the batch.
        indices: (N,), its codes.
        weight: (N,), 0 for vectors that do not count.
        most: the limit.
    """
    dead = (idle > most).nonzero()[:, 0]
    if not len(dead):
        return
    error = (rows - table[indices]).square().sum(dim=1).double() * weight
    total = error.cumsum(0)
    if not total[-1] > 0:
        return
    num = min(len(dead), len(rows))
    step = (torch.arange(num, device=rows.device, dtype=total.dtype) + 0.5) / num * total[-1]
    picked = torch.searchsorted(total, step).clamp_max(len(rows) - 1).unique()
    fresh = rows[picked].to(codebook.dtype).unique(dim=0)
    longest = idle[dead].argsort(descending=True, stable=True)
    replaced = dead[longest[:len(fresh)]]
    codebook[replaced] = fresh
    count[replaced] = 0
    idle[replaced] = 0


@torch.library.custom_op("vtlib::kmeans", mutates_args=("codebook", "count"))
def kmeans(
    codebook: Tensor, count: Tensor, rows: Tensor, counted: Tensor | None, rounds: int,
    cosine: bool,
) -> None:
    """The codebook becomes the means of k-means of the batch, begun at different vectors of it. If
    it has fewer of those than there are codes, the last codes stay as they are.

    Args:
        codebook: (K, D), changed in place.
        count: (K,), becomes how many vectors fall to each.
        rows: (N, D), the batch.
        counted: (N,) bool, those that count; None: all.
        rounds: of searching the nearest and taking means.
        cosine: means are scaled to length 1.
    """
    rows = rows if counted is None else rows[counted]
    distinct = rows.unique(dim=0)
    num = min(len(distinct), len(codebook))
    means = distinct[torch.arange(num, device=rows.device) * len(distinct) // num]
    hits = means.new_zeros(num)
    for _ in range(rounds):
        indices = nearest_code(rows, means)
        hits = means.new_zeros(num).index_add(0, indices, torch.ones_like(rows[:, 0]))
        shift = torch.zeros_like(means).index_add(0, indices, rows - means[indices])
        means = means + shift / hits.clamp_min(1)[:, None]
        means = unit(means) if cosine else means
    codebook[:num] = means.to(codebook.dtype)
    count[:num] = hits.to(count.dtype)
