"""HoloV - Don't Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context
Retention (Zou, Lu, Wang, Yan, Lyu, Zheng, Zhang, Hu, NeurIPS 2025, arXiv 2510.02912).

The idea: keeping the tokens with the highest attention keeps clusters of look-alikes around the
highlights and loses the scene. So the picture is cut into crops, and every crop first gets a quota
of the budget, by how much attention it draws (and, says the paper, how varied it is inside: see
`score`); only then do tokens compete, and only within their crop. It runs before the language
model and needs the [CLS] row and the projected tokens.

    crops = runs of consecutive raster tokens      bands         (sec. 4.1; `rectangles` is this
                                                                 package's extension)
    V_i, gamma, H = A + weight gamma V             score         (eq. 1-3; A = 1000 a, a [CLS] row,
                                                                 mean over heads)
    w_c = s_c^tau / sum s^tau, s_c = mean of H     crop_weights  (eq. 4)
    q_c = floor(w_c K), rest, capacity, surplus    quotas        (eq. 4)
    the best q_c tokens of crop c                  select        (eq. 5)
    FFN'(x), pruned tokens come back               refetch       (sec. 4.1.1, appendix D; not in the
                                                                 release)

Paper and official code (obananas/HoloV) differ in four places, each a parameter here:
- allocate: a quota may exceed its crop. "paper" hands the surplus to crops with free places,
  "release" loses it and pads with zero rows (index -1). The paper gives no tie rule for the
  surplus; the one in `quotas` is ours. The release also scores a crop of one token by its raw
  attention, a thousand times less than the rest; "release" copies that too.
- variance_weight: the release has 0.09 before gamma, the paper nothing (1.0), which makes both
  terms equal in mean.
- rank_by: inside a crop the release ranks by attention, the paper by H ("score").
- order: "release" goes crop by crop and, inside, by falling attention, which shuffles positions;
  "raster" sorts.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..nn.checks import (
    at_hand,
    check_axes,
    check_callable,
    check_finite,
    check_flag,
    check_float,
    check_index,
    check_int,
    check_ints,
    check_number,
    check_tokens,
    describe,
)
from ..tokens import Plan, VisionOutputs, resolve_keep, take
from ..tokens.checks import check_grid, check_scores
from ..tokens.cosine import within_range
from ..tokens.groups import groups
from ..tokens.precision import full_precision, widen
from ..tokens.vision import check_vision
from .method import Method

PAPER = "holov"
EPS = 1e-6
ALLOCATE = ("paper", "release")
RANK_BY = ("attention", "score")
ORDER = ("raster", "release")
LAYOUTS = ("bands", "rectangles")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {choices}")


# ---------------------------------------------------------------- crops
def default_crops(num_tokens: int, keep: int) -> int:
    """C = int(1024/576 N/K), at least 1, at most N: the rule of the Qwen file; 16 at the LLaVA
    file's N = 576, K = 64."""
    num_tokens, keep = check_int(num_tokens, "num_tokens", 1), check_int(keep, "keep", 1)
    return min(num_tokens, max(1, int(1024 / 576 * num_tokens / keep)))


def bands(num_tokens: int, num_crops: int, device: torch.device | None = None) -> Tensor:
    """Crops = runs of consecutive tokens, the first N % C of them one longer.

    Several views of one image are concatenated before, so a band may run from one view into the
    next.

    Args:
        num_tokens: N.
        num_crops: C, 1 ... N.
        device: of the result.

    Returns (C, M) long: token indices, -1 = filling.
    """
    num_tokens = check_int(num_tokens, "num_tokens", 1)
    num_crops = check_int(num_crops, "num_crops")
    if not 1 <= num_crops <= num_tokens:
        raise ValueError(
            f"num_crops={num_crops} but there are {num_tokens} tokens; it must lie in "
            f"1 ... {num_tokens}"
        )
    short, longer = divmod(num_tokens, num_crops)
    crop = torch.arange(num_crops, device=device)[:, None]          # c 1
    place = torch.arange(short + (longer > 0), device=device)       # m
    start = crop * short + crop.clamp(max=longer)
    size = short + (crop < longer)
    return torch.where(place < size, start + place, -1)


def rectangles(
    grid: tuple[int, int], num_crops: int | tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Crops = R x S rectangles of the grid, as even as possible: an extension, not in paper or
    release.

    Args:
        grid: (h, w).
        num_crops: (R, S), or C, which is split into the two factors that give the squarest crops.
        device: of the result.

    Returns (R S, M) long: token indices, -1 = filling. ValueError when C has no factors that fit.
    """
    h, w = check_grid(grid)
    if isinstance(num_crops, tuple):
        r, s = check_ints(num_crops, "num_crops", 1, 2)
    else:
        r, s = _squarest((h, w), check_int(num_crops, "num_crops"))
    rows, columns = bands(h, r, device), bands(w, s, device)        # r m, s n
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    real = (rows >= 0) & (columns >= 0)
    index = torch.where(real, rows * w + columns, -1)               # r s m n
    return index.flatten(2).flatten(0, 1)


def _squarest(grid: tuple[int, int], num_crops: int) -> tuple[int, int]:
    """The factors (R, S) of num_crops whose crops h/R x w/S are nearest to squares."""
    h, w = grid
    best, best_aspect = None, math.inf
    for rows in range(1, min(h, num_crops) + 1):
        columns, rest = divmod(num_crops, rows)
        if rest or columns > w:
            continue
        sides = h * columns, w * rows
        aspect = max(sides) / min(sides)
        if aspect < best_aspect:
            best, best_aspect = (rows, columns), aspect
    if best is None:
        raise ValueError(
            f"num_crops={num_crops} does not factor into rows x columns of rectangles on a grid of "
            f"{h} x {w}"
        )
    return best


def _to_crops(x: Tensor, crops: Tensor, runs: bool = False) -> Tensor:
    """x (B, N, ...) -> (B, C, M, ...); filling places hold token 0.

    runs: the crops are runs of tokens; where they are equally long a view will do.
    """
    if runs and crops.numel() == x.shape[1]:
        return x.unflatten(1, tuple(crops.shape))
    return x.index_select(1, crops.clamp(min=0).flatten()).unflatten(1, tuple(crops.shape))


def _check_crops(crops: Tensor, num_tokens: int) -> None:
    """Raise unless each token is in one crop, and, on the CPU in eager mode, each crop has one."""
    check_index(crops, "crops", "(C, M)")
    if crops.numel() < num_tokens:
        raise ValueError(
            f"crops has shape {tuple(crops.shape)} but needs (C, M) with C M >= {num_tokens}; see "
            f"`bands`"
        )
    if not at_hand(crops):
        return
    real = crops >= 0
    everyone = torch.arange(num_tokens, device=crops.device)
    if not torch.equal(crops[real].sort().values, everyone):
        raise ValueError(
            f"crops has {int(real.sum())} places of tokens: needs each of 0 ... {num_tokens - 1} "
            f"once, -1 elsewhere; see `bands`"
        )
    if not real.any(dim=1).all():
        empty = int((~real.any(dim=1)).nonzero()[0])
        raise ValueError(f"crops[{empty}] holds no token: each crop needs one at least")


# ---------------------------------------------------------------- score
def score(
    tokens: Tensor,
    attention: Tensor,
    crops: Tensor,
    variance_weight: float = 0.09,
    raw_singles: bool = False,
    runs: bool = False,
) -> Tensor:
    """H = A + variance_weight gamma V per token (eq. 1-3).

    In a crop of M tokens, with S the cosine similarities and a zero diagonal:
        mu_i = sum_j S_ij / (M-1)
        V_i = sum_j (S_ij - mu_i)^2 / (M-1)    the zero on the diagonal takes part, it adds mu_i^2
        A = 1000 attention
        gamma = mean|A| / (mean|V| + 1e-6)     so that gamma V has the mean of A
    V is large where some neighbours are alike and others are not; a crop of one token has V = 0.
    The mean of H over a crop is (1 + variance_weight) mean(A) wherever V is not all 0: the factor
    cancels in `crop_weights`, so V counts only where `select` ranks by "score".
    Cost N^2 D / C. Half precision is computed in float32.

    Args:
        tokens: (B, N, D), projected.
        attention: (B, N), the [CLS] row, mean over heads.
        crops: (C, M) long, see `bands`.
        variance_weight: the release's 0.09, the paper's 1.
        raw_singles: a crop of one token counts its attention without the 1000, the release's quirk.
        runs: say that the crops come from `bands`; where C divides N nothing is then copied.

    Returns (B, N). ValueError for shapes that do not fit, tokens or attention that are not floating
    or not finite.
    """
    check_tokens(tokens)
    check_finite(tokens, "tokens")
    check_scores(attention, "attention", tuple(tokens.shape[:2]))
    _check_crops(crops, tokens.shape[1])
    variance_weight = check_number(variance_weight, "variance_weight")
    raw_singles, runs = check_flag(raw_singles, "raw_singles"), check_flag(runs, "runs")
    valid = crops >= 0                                              # c m
    size = valid.sum(dim=1, keepdim=True)                           # c 1
    x = _to_crops(within_range(widen(tokens)), crops, runs)         # b c m d
    several = groups(len(x), 4 * crops.numel() * crops.shape[1], x.device)
    v = torch.cat([_variance(x[part], valid) for part in several])  # b c m
    a = 1000 * _to_crops(attention.to(v.dtype), crops)              # b c m
    a = a.masked_fill(~valid, 0)
    mean_a = a.abs().sum(dim=-1, keepdim=True) / size
    mean_v = v.sum(dim=-1, keepdim=True) / size
    gamma = mean_a / (mean_v + EPS)                                 # b c 1
    h = a + variance_weight * gamma * v
    if raw_singles:
        h = torch.where(size == 1, a / 1000, h)
    return _from_crops(h, crops, tokens.shape[1])


def _variance(x: Tensor, valid: Tensor) -> Tensor:
    """V of eq. 1: tokens by crops x (B, C, M, D), valid (C, M) bool -> (B, C, M), 0 at filling."""
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    pairs = valid[:, :, None] & valid[:, None, :]                   # c m m
    scale = 1 / (x.norm(dim=-1) + EPS)                              # b c m
    with full_precision(x.device):
        product = x @ x.transpose(-2, -1)
        similarity = product * scale[..., None] * scale[..., None, :]
    similarity = similarity.masked_fill(~pairs | itself, 0)         # b c m m
    others = (valid.sum(dim=1, keepdim=True) - 1).clamp(min=1)      # c 1
    mean = similarity.sum(dim=-1) / others                          # b c m
    deviation = (similarity - mean[..., None]).square().masked_fill(~pairs, 0)
    return deviation.sum(dim=-1) / others


def _from_crops(x: Tensor, crops: Tensor, num_tokens: int) -> Tensor:
    """The inverse of `_to_crops`: (B, C, M) -> (B, N)."""
    place = torch.where(crops >= 0, crops, num_tokens)              # filling goes to a spare place
    place = place.flatten().expand(len(x), -1)
    out = x.new_zeros(len(x), num_tokens + 1)
    return out.scatter(1, place, x.flatten(1))[:, :-1]


def crop_scores(token_score: Tensor, crops: Tensor) -> Tensor:
    """s_c = mean of H over the crop. token_score (B, N), crops (C, M) -> (B, C), float32 at least.

    ValueError for scores that are not floating or not finite, and for crops that do not fit.
    """
    check_scores(token_score, "token_score")
    _check_crops(crops, token_score.shape[1])
    return _means(token_score, crops)


def _means(token_score: Tensor, crops: Tensor) -> Tensor:
    valid = crops >= 0
    total = _to_crops(widen(token_score), crops).masked_fill(~valid, 0).sum(dim=-1)
    return total / valid.sum(dim=-1)


def crop_weights(token_score: Tensor, crops: Tensor, tau: float = 1.0) -> Tensor:
    """w_c = s_c^tau / sum of s^tau (eq. 4).

    Args:
        token_score: (B, N), H of `score`.
        crops: (C, M) long.
        tau: 0: all crops alike; 1: both releases; infinity: one crop takes all.

    Returns (B, C), float32 at least. ValueError for tau < 0 and as `crop_scores`, and, on the CPU,
    for a mean below 0 that tau != 1 has no power of.
    """
    check_scores(token_score, "token_score")
    _check_crops(crops, token_score.shape[1])
    return _weights(token_score, crops, tau)


def _weights(token_score: Tensor, crops: Tensor, tau: float) -> Tensor:
    if not (isinstance(tau, float) and tau == math.inf):
        tau = check_number(tau, "tau", 0)
    s = _means(token_score, crops)
    if tau != 1:
        if at_hand(s) and (s < 0).any():
            raise ValueError(
                f"token_score has a crop with the mean {s.min().item()}: tau={tau} needs means >= 0"
            )
        highest = s.amax(dim=1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
        s = (s / highest).pow(tau)                                  # in [0, 1]: no overflow
    return s / (s.sum(dim=1, keepdim=True) + EPS)


# ---------------------------------------------------------------- select
def _rank(x: Tensor) -> Tensor:
    """0 for the largest entry of each row, 1 for the next; ties to the lower index."""
    return x.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def quotas(weight: Tensor, sizes: Tensor, keep: int, allocate: str = "paper") -> Tensor:
    """Places per crop.

    q_c = floor(w_c K); the rest goes, one each, to the crops with the largest weight (not the
    largest remainder). "release" stops here: q_c may exceed the size.
    "paper": clamp q to the size M; while tokens are left, crop c gets floor(left share_c), at most
    its free places, with share_c = w_c (M_c - q_c) / sum. When all of these are 0, one each by
    falling share, ties to the lower index (our rule). Then 0 <= q <= M and sum q = K.

    Args:
        weight: (B, C), of `crop_weights`.
        sizes: (C,) tokens per crop.
        keep: K.
        allocate: "paper" or "release".

    Returns (B, C) long.
    """
    _check_choice("allocate", allocate, ALLOCATE)
    check_scores(weight, "weight")
    keep = _check_sizes(sizes, weight.shape[1], keep)
    quota = (weight * keep).floor().long()                          # b c
    quota = quota + (_rank(weight) < keep - quota.sum(dim=1, keepdim=True))
    if allocate == "release":
        return quota
    quota = torch.minimum(quota, sizes)
    for _ in range(keep):                                           # a round gives at least one
        left = keep - quota.sum(dim=1, keepdim=True)                # b 1
        if left.device.type == "meta" or not left.any():            # one or two rounds as a rule
            break
        room = sizes - quota
        pull = weight * room
        share = pull / pull.sum(dim=1, keepdim=True).clamp(min=torch.finfo(pull.dtype).tiny)
        whole = torch.minimum((left * share).floor().long(), room)
        single = (_rank(share.masked_fill(room == 0, -1)) < left) & (room > 0)
        quota = quota + torch.where(whole.any(dim=1, keepdim=True), whole, single.long())
    return quota


def _check_sizes(sizes: Tensor, num_crops: int, keep: int) -> int:
    """`keep` as an int. Raise unless the crops have these sizes and hold so many tokens."""
    check_index(sizes, "sizes", "(C,)", (num_crops,))
    if at_hand(sizes):
        return resolve_keep(check_int(keep, "keep"), int(sizes.sum()))
    return check_int(keep, "keep", 1)


def select(
    token_score: Tensor,
    attention: Tensor,
    crops: Tensor,
    keep: int | float,
    allocate: str = "paper",
    rank_by: str = "attention",
    tau: float = 1.0,
    order: str = "raster",
) -> Plan:
    """Quotas between the crops, then the best q_c tokens of each crop (eq. 4, 5).

    Args:
        token_score: (B, N), H of `score`.
        attention: (B, N), the [CLS] row, mean over heads.
        crops: (C, M) long, see `bands`.
        keep: K, an int or a fraction.
        allocate: "paper" or "release". With "release" the slots that nobody fills are last, index
            and role -1.
        rank_by: inside a crop, "attention" or "score" (H).
        tau: see `crop_weights`.
        order: "raster" sorts all; "release": crop by crop, by falling rank inside; a crop whose
            quota covers it stays in raster order.

    `Plan.role` is the slot's crop. ValueError: keep out of range, unknown choices, shapes that do
    not fit, scores or attention that are not floating or not finite.
    """
    check_scores(token_score, "token_score")
    check_scores(attention, "attention", tuple(token_score.shape))
    _check_crops(crops, token_score.shape[1])
    _check_choice("rank_by", rank_by, RANK_BY)
    _check_choice("order", order, ORDER)
    batch, num_tokens = token_score.shape
    num_crops, longest = crops.shape
    keep = resolve_keep(keep, num_tokens)
    valid = crops >= 0                                              # c m
    size = valid.sum(dim=1)                                         # c
    quota = quotas(_weights(token_score, crops, tau), size, keep, allocate)[..., None]  # b c 1

    by = attention if rank_by == "attention" else token_score
    rank = _rank(_to_crops(by, crops).masked_fill(~valid, -torch.inf))      # b c m
    chosen = (rank < quota) & valid
    crop = torch.arange(num_crops, device=crops.device)[:, None].expand_as(crops)   # c m
    if order == "raster":
        key = crops.expand_as(rank)
    else:
        place = torch.arange(longest, device=crops.device)
        inside = torch.where(quota >= size[:, None], place, rank)
        key = crop * longest + inside
    key = key.masked_fill(~chosen, num_crops * longest).flatten(1)  # what is not chosen comes last
    slots = key.argsort(dim=1, stable=True)[:, :keep]               # b t
    empty = ~take(chosen.flatten(1), slots)
    index = take(crops.flatten().expand(batch, -1), slots).masked_fill(empty, -1)
    role = take(crop.flatten().expand(batch, -1), slots).masked_fill(empty, -1)
    return Plan(index, num_tokens, role=role, roles=tuple(f"crop {c}" for c in range(num_crops)))


def prune(
    vision: VisionOutputs,
    keep: int | float,
    num_crops: int | tuple[int, int] | None = None,
    layout: str = "bands",
    allocate: str = "paper",
    rank_by: str = "attention",
    variance_weight: float = 0.09,
    tau: float = 1.0,
    order: str = "raster",
) -> Plan:
    """The plan for `vision.tokens`: `score`, then `select`.

    Args:
        vision: what the encoder made, with `cls_row`.
        keep: K, an int or a fraction.
        num_crops: C; None = `default_crops`; with layout="rectangles" also (R, S).
        layout: "bands" or, an extension, "rectangles".
        allocate: see `quotas`.
        rank_by: see `select`.
        variance_weight: see `score`.
        tau: see `crop_weights`.
        order: see `select`.

    ValueError for wrong choices, keep out of range and an encoder without [CLS] row (`score` and
    `select` take any attention).
    """
    _check_choice("layout", layout, LAYOUTS)
    _check_choice("allocate", allocate, ALLOCATE)
    check_vision(vision)
    if vision.cls_row is None:
        raise ValueError(
            "vision.cls_row is None but HoloV reads the [CLS] row: ask the encoder for "
            "need={'cls_row'}"
        )
    check_axes(vision.cls_row, "vision.cls_row", "(B, heads, N)")
    attention = widen(vision.cls_row).mean(dim=1)                   # b n
    num_tokens, device = attention.shape[1], attention.device
    keep = resolve_keep(keep, num_tokens)
    if num_crops is None:
        num_crops = default_crops(num_tokens, keep)
    if layout == "rectangles":
        crops = rectangles(vision.grid, num_crops, device)
    elif isinstance(num_crops, tuple):
        raise ValueError(
            f"num_crops={num_crops!r} must be an int for layout='bands'; (rows, columns) is for "
            f"layout='rectangles'"
        )
    else:
        crops = bands(num_tokens, num_crops, device)
    raw_singles, runs = allocate == "release", layout == "bands"
    h = score(vision.tokens, attention, crops, variance_weight, raw_singles, runs)
    return select(h, attention, crops, keep, allocate, rank_by, tau, order)


def refetch(
    x: Tensor,
    pruned: Tensor,
    ffn: Tensor,
    beta: float,
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.silu,
) -> Tensor:
    """FFN'(x) = beta sum_i phi(<x, z_i>) z_i + (1 - beta) FFN(x): pruned tokens as a memory of a
    middle layer (appendix D).

    Which layer, when, and which beta are not given in the paper, and the release does not have it:
    an exercise, nothing is claimed for it.

    Args:
        x: (B, T, D), the FFN's input.
        pruned: (B, R, D), z.
        ffn: (B, T, D), FFN(x).
        beta: in [0, 1].
        activation: phi.
    """
    beta = check_number(beta, "beta", 0, 1)
    check_tokens(x, name="x")
    check_axes(pruned, "pruned", "(B, R, D)")
    check_float(ffn, "ffn")
    fits = len(pruned) == len(x) and pruned.shape[2] == x.shape[2] and ffn.shape == x.shape
    if not fits or pruned.dtype != x.dtype:
        raise ValueError(
            f"x is {describe(x)}, pruned {describe(pruned)} and ffn {describe(ffn)}: they need "
            f"(B, T, D), (B, R, D), (B, T, D) and one dtype"
        )
    check_callable(activation, "activation", "a function of (B, T, R)")
    memory = activation(x @ pruned.transpose(1, 2)) @ pruned
    return beta * memory + (1 - beta) * ffn


METHOD = Method("holov", "HoloV", paper=PAPER, prune=prune, reads=("cls_row",), space="tokens")
