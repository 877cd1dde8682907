"""HoloV - Don't Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context Retention (Zou, Lu, Wang, Yan, Lyu,
Zheng, Zhang, Hu, NeurIPS 2025, arXiv 2510.02912).

The idea: keeping the tokens with the highest attention keeps clusters of look-alikes around the highlights and loses the scene.
So the picture is cut into crops, and every crop first gets a quota of the budget, by how much attention it draws and how varied
it is inside; only then do tokens compete, and only within their crop. It runs before the language model and needs the [CLS] row
and the projected tokens.

    crops = runs of consecutive raster tokens         bands                  (sec. 4.1; `rectangles` is this package's extension)
    V_i, gamma, H = A + weight gamma V                score                  (eq. 1-3; A = 1000 a, a = [CLS] row, mean over heads)
    w_c = s_c^tau / sum s^tau,  s_c = mean of H       crop_weights           (eq. 4)
    q_c = floor(w_c K), rest, capacity, surplus       quotas                 (eq. 4)
    the best q_c tokens of crop c                     select                 (eq. 5)
    FFN'(x), pruned tokens come back                  refetch                (sec. 4.1.1, appendix D; not in the release)

Paper and official code (obananas/HoloV) differ in four places, each a parameter here:
- allocate: a quota may exceed its crop. "paper" hands the surplus to crops with free places, "release" loses it and pads with
  zero rows (index -1). The paper gives no tie rule for the surplus; the one in `quotas` is ours. The release also scores a crop
  of one token by its raw attention, a thousand times less than the rest; "release" copies that too.
- variance_weight: the release has 0.09 before gamma, the paper nothing (1.0), which makes both terms equal in mean.
- rank_by: inside a crop the release ranks by attention, the paper by H ("score").
- order: "release" goes crop by crop and, inside, by falling attention, which shuffles positions; "raster" sorts.
"""

import torch
from torch import Tensor

from ..nn import check_tokens
from ..tokens import Plan, resolve_keep, take
from ..tokens.precision import full_precision, widen
from .method import Method

PAPER = "holov"
EPS = 1e-6
ALLOCATE, RANK_BY, ORDER, LAYOUTS = ("paper", "release"), ("attention", "score"), ("raster", "release"), ("bands", "rectangles")


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {choices}")


# ------------------------------------------------------------------------------------------------ crops
def default_crops(num_tokens: int, keep: int) -> int:
    """C = int(1024/576 N/K), at least 1, at most N: the rule of the Qwen file; 16 at the LLaVA file's N = 576, K = 64."""
    return min(num_tokens, max(1, int(1024 / 576 * num_tokens / keep)))


def bands(num_tokens: int, num_crops: int, device=None) -> Tensor:
    """Crops = runs of consecutive tokens, the first N % C of them one longer. -> (C, M) long: token indices, -1 = filling.

    Several views of one image are concatenated before, so a band may run from one view into the next.
    ValueError unless 1 <= C <= N.
    """
    if not 1 <= num_crops <= num_tokens:
        raise ValueError(f"num_crops={num_crops} but there are {num_tokens} tokens; it must lie in 1 ... {num_tokens}")
    short, longer = divmod(num_tokens, num_crops)
    crop = torch.arange(num_crops, device=device)[:, None]                                      # c 1
    place = torch.arange(short + (longer > 0), device=device)                                   # m
    return torch.where(place < short + (crop < longer), crop * short + crop.clamp(max=longer) + place, -1)


def rectangles(grid: tuple[int, int], num_crops: int | tuple[int, int], device=None) -> Tensor:
    """Crops = R x S rectangles of the grid, as even as possible. -> (R S, M) long: token indices, -1 = filling.

    An extension: not in paper or release. num_crops: (R, S), or C, which is split into the two factors that give the squarest
    crops. ValueError when C has no factors that fit.
    """
    h, w = grid
    if isinstance(num_crops, int):
        pairs = [(r, num_crops // r) for r in range(1, h + 1) if num_crops >= 1 and num_crops % r == 0 and num_crops // r <= w]
        if not pairs:
            raise ValueError(f"num_crops={num_crops} does not factor into rows x columns of rectangles on a grid of {h} x {w}")
        num_crops = min(pairs, key=lambda p: (max(h * p[1], w * p[0]) / min(h * p[1], w * p[0]), p))
    rows, columns = bands(h, num_crops[0], device), bands(w, num_crops[1], device)              # r m, s n
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    table = torch.where((rows >= 0) & (columns >= 0), rows * w + columns, -1)                   # r s m n
    return table.flatten(2).flatten(0, 1)


def _to_crops(x, crops, runs=False):
    """x (B, N, ...) -> (B, C, M, ...); filling places hold token 0. runs: the crops are equal runs of tokens, so a view will do."""
    if runs and crops.numel() == x.shape[1]:
        return x.unflatten(1, tuple(crops.shape))
    return x.index_select(1, crops.clamp(min=0).flatten()).unflatten(1, tuple(crops.shape))


def _check(attention, crops, name="attention"):
    if attention.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(attention.shape)} but needs (B, N): one number a patch, the mean over heads")
    if crops.dim() != 2 or crops.numel() < attention.shape[1]:
        raise ValueError(f"crops has shape {tuple(crops.shape)} but needs (C, M) with C M >= {attention.shape[1]}; see `bands`")


# ------------------------------------------------------------------------------------------------ score
def score(tokens: Tensor, attention: Tensor, crops: Tensor, variance_weight: float = 0.09, raw_singles: bool = False,
          runs: bool = False) -> Tensor:
    """H = A + variance_weight gamma V per token (eq. 1-3). tokens (B, N, D) projected, attention (B, N), crops (C, M) -> (B, N).

    In a crop of M tokens, with S the cosine similarities and a zero diagonal:
        mu_i = sum_j S_ij / (M-1),    V_i = sum_j (S_ij - mu_i)^2 / (M-1)      the zero on the diagonal takes part, it adds mu_i^2
        A = 1000 attention,           gamma = mean|A| / (mean|V| + 1e-6)       so that gamma V has the mean of A
    V is large where some neighbours are alike and others are not. A crop of one token has V = 0; raw_singles: it then also counts
    its attention without the 1000 (the release's quirk). runs: say that the crops come from `bands`; where C divides N nothing is
    then copied. Cost N^2 D / C. Half precision is computed in float32.
    """
    check_tokens(tokens)
    _check(attention, crops)
    if tokens.shape[:2] != attention.shape:
        raise ValueError(f"tokens {tuple(tokens.shape)} and attention {tuple(attention.shape)} must agree in (B, N)")
    valid = crops >= 0                                                                          # c m
    size = valid.sum(dim=1, keepdim=True)                                                       # c 1
    x = _to_crops(widen(tokens), crops, runs)                                                   # b c m d
    scale = 1 / (x.norm(dim=-1) + EPS)                                                          # b c m
    itself = torch.eye(crops.shape[1], dtype=torch.bool, device=crops.device)
    pairs = valid[:, :, None] & valid[:, None, :]                                               # c m m
    with full_precision(x.device):
        similarity = x @ x.transpose(-2, -1) * scale[..., None] * scale[..., None, :]           # b c m m
    similarity = similarity.masked_fill(~pairs | itself, 0)
    others = (size - 1).clamp(min=1)
    mean = similarity.sum(dim=-1) / others                                                      # b c m
    variance = (similarity - mean[..., None]).square().masked_fill(~pairs, 0).sum(dim=-1) / others

    a = (1000 * _to_crops(attention.to(x.dtype), crops)).masked_fill(~valid, 0)                   # b c m
    gamma = (a.abs().sum(-1, keepdim=True) / size) / (variance.sum(-1, keepdim=True) / size + EPS)
    h = a + variance_weight * gamma * variance
    if raw_singles:
        h = torch.where(size == 1, a / 1000, h)
    place = torch.where(valid, crops, attention.shape[1]).flatten().expand(len(h), -1)          # filling goes to a spare place
    return h.new_zeros(h.shape[0], attention.shape[1] + 1).scatter(1, place, h.flatten(1))[:, :-1]


def crop_scores(token_score: Tensor, crops: Tensor) -> Tensor:
    """s_c = mean of H over the crop. token_score (B, N), crops (C, M) -> (B, C)."""
    valid = crops >= 0
    return _to_crops(token_score, crops).masked_fill(~valid, 0).sum(dim=-1) / valid.sum(dim=-1)


def crop_weights(token_score: Tensor, crops: Tensor, tau: float = 1.0) -> Tensor:
    """w_c = s_c^tau / sum of s^tau (eq. 4). token_score (B, N), crops (C, M) -> (B, C).

    tau = 0: all crops alike; 1: both releases; infinity: one crop takes all. ValueError for tau < 0.
    """
    if not tau >= 0:
        raise ValueError(f"tau={tau} must be a number >= 0")
    s = crop_scores(token_score, crops)
    if tau != 1:
        s = (s / s.amax(dim=1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)).pow(tau)     # in [0, 1]: no overflow
    return s / (s.sum(dim=1, keepdim=True) + EPS)


# ------------------------------------------------------------------------------------------------ select
def _rank(x):
    """0 for the largest entry of each row, 1 for the next; ties to the lower index."""
    return x.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def quotas(weight: Tensor, sizes: Tensor, keep: int, allocate: str = "paper") -> Tensor:
    """Places per crop: weight (B, C), sizes (C,) tokens per crop, keep K -> (B, C) long.

    q_c = floor(w_c K); the rest goes, one each, to the crops with the largest weight (not the largest remainder).
    "release" stops here: q_c may exceed the size.
    "paper": clamp q to the size M; while tokens are left, crop c gets floor(left share_c), at most its free places, with
    share_c = w_c (M_c - q_c) / sum. When all of these are 0, one each by falling share, ties to the lower index (our rule).
    Then 0 <= q <= M and sum q = K.
    """
    _check_choice("allocate", allocate, ALLOCATE)
    quota = (weight * keep).floor().long()                                                      # b c
    quota = quota + (_rank(weight) < keep - quota.sum(dim=1, keepdim=True))
    if allocate == "release":
        return quota
    quota = torch.minimum(quota, sizes)
    for _ in range(keep):                                                                       # each round gives at least one
        left = keep - quota.sum(dim=1, keepdim=True)                                            # b 1
        if left.device.type == "meta" or not left.any():                                        # one or two rounds as a rule
            break
        room = sizes - quota
        pull = weight * room
        share = pull / pull.sum(dim=1, keepdim=True).clamp(min=torch.finfo(pull.dtype).tiny)
        whole = torch.minimum((left * share).floor().long(), room)
        single = (_rank(share.masked_fill(room == 0, -1)) < left) & (room > 0)
        quota = quota + torch.where(whole.any(dim=1, keepdim=True), whole, single.long())
    return quota


def select(token_score: Tensor, attention: Tensor, crops: Tensor, keep: int | float, allocate: str = "paper",
           rank_by: str = "attention", tau: float = 1.0, order: str = "raster") -> Plan:
    """Quotas between the crops, then the best q_c tokens of each crop (eq. 4, 5). token_score, attention (B, N), crops (C, M).

    rank_by: "attention" or "score" (H). order: "raster" sorts all; "release": crop by crop, by falling rank inside; a crop whose
    quota covers it stays in raster order. role = the slot's crop. With allocate="release" the slots that nobody fills are last,
    index and role -1. ValueError: keep out of range, unknown choices, shapes that do not fit.
    """
    _check(token_score, crops, "token_score")
    _check(attention, crops)
    _check_choice("rank_by", rank_by, RANK_BY)
    _check_choice("order", order, ORDER)
    batch, num_tokens = token_score.shape
    keep = resolve_keep(keep, num_tokens)
    num_crops, longest = crops.shape
    valid = crops >= 0
    quota = quotas(crop_weights(token_score, crops, tau), valid.sum(dim=1), keep, allocate)[..., None]              # b c 1

    value = _to_crops(attention if rank_by == "attention" else token_score, crops)              # b c m
    rank = _rank(value.masked_fill(~valid, float("-inf")))
    chosen = (rank < quota) & valid
    place = torch.arange(longest, device=crops.device).expand_as(rank)
    crop = torch.arange(num_crops, device=crops.device)[:, None].expand_as(crops)               # c m
    if order == "raster":
        key = crops.expand_as(rank)
    else:
        key = crop * longest + torch.where(quota >= valid.sum(dim=1, keepdim=True), place, rank)
    key = key.masked_fill(~chosen, num_crops * longest).flatten(1)                              # b (c m)
    slots = key.argsort(dim=1, stable=True)[:, :keep]                                           # b t
    empty = ~take(chosen.flatten(1), slots)
    index = take(crops.flatten().expand(batch, -1), slots).masked_fill(empty, -1)
    role = take(crop.flatten().expand(batch, -1), slots).masked_fill(empty, -1)
    return Plan(index, num_tokens, role=role, roles=tuple(f"crop {c}" for c in range(num_crops)))


def prune(vision, keep: int | float, num_crops: int | tuple[int, int] | None = None, layout: str = "bands",
          allocate: str = "paper", rank_by: str = "attention", variance_weight: float = 0.09, tau: float = 1.0,
          order: str = "raster") -> Plan:
    """The plan for `vision.tokens` of a `VisionOutputs`: `score`, then `select`.

    num_crops: None = `default_crops`; layout: "bands" or, an extension, "rectangles" (then also (R, S)). ValueError for wrong
    choices, keep out of range and an encoder without [CLS] row (`score` and `select` take any attention).
    """
    _check_choice("layout", layout, LAYOUTS)
    _check_choice("allocate", allocate, ALLOCATE)
    if vision.cls_row is None:
        raise ValueError("vision.cls_row is None but HoloV reads the [CLS] row: ask the encoder for need={'cls_row'}")
    attention = vision.cls_row.mean(dim=1)                                                      # b n
    keep = resolve_keep(keep, attention.shape[1])
    num_crops = default_crops(attention.shape[1], keep) if num_crops is None else num_crops
    device = attention.device
    if layout == "bands" and not isinstance(num_crops, int):
        raise ValueError(f"num_crops={num_crops!r} must be an int for layout='bands'; (rows, columns) is for layout='rectangles'")
    crops = bands(attention.shape[1], num_crops, device) if layout == "bands" else rectangles(vision.grid, num_crops, device)
    token_score = score(vision.tokens, attention, crops, variance_weight, raw_singles=allocate == "release", runs=layout == "bands")
    return select(token_score, attention, crops, keep, allocate, rank_by, tau, order)


def refetch(x: Tensor, pruned: Tensor, ffn: Tensor, beta: float, activation=torch.nn.functional.silu) -> Tensor:
    """FFN'(x) = beta sum_i phi(<x, z_i>) z_i + (1 - beta) FFN(x): pruned tokens as a memory of a middle layer (appendix D).

    x (B, T, D) the FFN's input, pruned z (B, R, D), ffn = FFN(x) -> (B, T, D), phi = activation. Which layer, when, and which
    beta are not given in the paper, and the release does not have it: an exercise, nothing is claimed for it.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta} must lie in [0, 1]")
    return beta * (activation(x @ pruned.transpose(1, 2)) @ pruned) + (1 - beta) * ffn


METHOD = Method("holov", "HoloV", paper=PAPER, prune=prune, reads=("cls_row",), space="tokens")
