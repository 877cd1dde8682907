"""What every pruner has to beat: chance, a uniform grid, average pooling, merging of look-alikes, and an oracle that knows the
answer.

    random      any `keep` patches, drawn for each image
    uniform     the picture cut into `keep` cells, the middle patch of each: blind to the content, never unlucky
    pool        the same cells, their mean: a low-resolution picture; nothing is thrown away, small things are diluted
    tome        Token Merging by bipartite soft matching (Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman, ICLR 2023, arXiv
    2210.09461): again and
                again the most similar pairs become one token, the mean weighted by how many patches each side stands for
    oracle      the patches of a given mask first: what a pruner could reach that knew where the answer lies

"Attention received" is `hiprune.select(..., alpha=0)`; FastV acts inside the language model. ToMe is applied here once, to the
finished features, in as many rounds as `keep` needs; the paper merges a few tokens in every layer of the ViT and weights
attention by their size. All plans are for `vision.features`.
"""

import math

import torch
from torch import Tensor

from ..nn import check_finite, check_tokens
from ..tokens import Plan, keep_all, resolve_keep
from ..tokens.greedy import unit
from ..tokens.precision import full_precision, widen
from ..tokens.vision import VisionOutputs
from .method import Method


def random(vision: VisionOutputs, keep: int | float, generator: torch.Generator | None = None) -> Plan:
    """`keep` patches of each image, every subset equally likely, in raster order."""
    features = vision.features
    batch, num_tokens, _ = features.shape
    keep = resolve_keep(keep, num_tokens)
    where = features.device if generator is None else generator.device
    draw = torch.rand(
        batch, num_tokens, generator=generator, device=where, dtype=torch.float32
    ).to(features.device)
    return Plan(draw.argsort(dim=1)[:, :keep].sort(dim=1).values, num_tokens)


# ---------------------------------------------------------------- on the grid
def cells(keep: int, grid: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """A picture of h x w patches cut into `keep` boxes (top, bottom, left, right) of whole patches, nearly square and nearly
    equal: r bands of rows, r near sqrt(keep h / w), and each band cut into keep / r boxes, rounded down or up. Works for any keep
    in 1 ... h w."""
    h, w = grid
    bands = min(max(round(math.sqrt(keep * h / w)), -(-keep // w)), h, keep)
    boxes = []
    for i in range(bands):
        count = (i + 1) * keep // bands - i * keep // bands
        boxes += [(i * h // bands, (i + 1) * h // bands, j * w // count, (j + 1) * w // count) for j in range(count)]
    return boxes


def _middles(boxes, width):
    return [(top + bottom) // 2 * width + (left + right) // 2 for top, bottom, left, right in boxes]


def uniform(vision: VisionOutputs, keep: int | float) -> Plan:
    """The middle patch of each of `keep` cells, the same in every image, in raster order."""
    batch, num_tokens, _ = vision.features.shape
    middles = sorted(_middles(cells(resolve_keep(keep, num_tokens), vision.grid), vision.grid[1]))
    return Plan(torch.tensor(middles, device=vision.features.device).expand(batch, -1), num_tokens)


def pool(vision: VisionOutputs, keep: int | float) -> Plan:
    """The mean of each of `keep` cells; where the cells are equal this is `avg_pool2d`. A plan that merges, each slot at its
    cell's middle."""
    batch, num_tokens, _ = vision.features.shape
    device, width = vision.features.device, vision.grid[1]
    keep = resolve_keep(keep, num_tokens)
    if keep == num_tokens:
        return keep_all(batch, num_tokens, device)
    boxes = cells(keep, vision.grid)
    origin, slot, weight = [], [], []
    for number, (top, bottom, left, right) in enumerate(boxes):
        inside = [row * width + col for row in range(top, bottom) for col in range(left, right)]
        origin += inside
        slot += [number] * len(inside)
        weight += [1 / len(inside)] * len(inside)
    dtype = torch.promote_types(vision.features.dtype, torch.float32)
    weight = torch.tensor(weight, device=device, dtype=dtype).expand(batch, -1)
    index, origin, slot = (torch.tensor(x, device=device).expand(batch, -1) for x in (_middles(boxes, width), origin, slot))
    return Plan(index, num_tokens, origin, slot, weight)


# ---------------------------------------------------------------- by content
def tome(vision: VisionOutputs, keep: int | float, metric: Tensor | None = None) -> Plan:
    """Bipartite soft matching, repeated until `keep` tokens are left. In a round the tokens alternate between two sets, a and b;
    each a finds its
    most similar b (cosine); the r most similar pairs merge, r <= the size of a:   b <- (s_a a + s_b b) / (s_a + s_b),  s the
    number of patches.

    metric (B, N, P): what is compared, `vision.features` unless given; the paper compares keys, `vision.keys[:,
    vision.num_prefix:]`. Returns a plan that merges: every patch enters one slot with weight 1 / s. Slots stand in raster order
    of the b they grew from. Ties: lower index.
    """
    metric = vision.features if metric is None else metric
    check_tokens(metric, name="metric")
    batch, num_tokens, _ = metric.shape
    want = tuple(vision.features.shape[:2])
    if (batch, num_tokens) != want:
        raise ValueError(f"metric has shape {tuple(metric.shape)} but there are (B, N) = {want} patches to compare")
    check_finite(metric, "metric")
    keep = resolve_keep(keep, num_tokens)
    if keep == num_tokens:
        return keep_all(batch, num_tokens, metric.device)
    x = widen(metric.detach())                                                   # b n p: means of the metric
    size = x.new_ones(batch, num_tokens)
    place = torch.arange(num_tokens, device=x.device).expand(batch, -1)          # b n: where each living token sits
    slot = place                                                                 # b N: the living token that carries each patch
    while (alive := size.shape[1]) > keep:
        merged = min(alive - keep, alive // 2)
        a, b = unit(x[:, 0::2]), unit(x[:, 1::2])                                # the last of an odd number is an a
        with full_precision(x.device):
            likeness, partner = (a @ b.transpose(1, 2)).max(dim=2)               # b a
        chosen = likeness.argsort(dim=1, descending=True, stable=True)[:, :merged]
        old, into = 2 * chosen, 2 * partner.gather(1, chosen) + 1                # b r, numbers among the living
        target = torch.arange(alive, device=x.device).expand(batch, -1).scatter(1, old, into)
        stays = torch.ones_like(target, dtype=torch.bool).scatter(1, old, False)
        survivors = torch.where(stays, target, alive).sort(dim=1).values[:, : alive - merged]
        rank = stays.long().cumsum(dim=1) - 1                                    # number of each survivor afterwards
        slot = rank.gather(1, target).gather(1, slot)
        place = place.gather(1, survivors)
        grown = torch.zeros_like(size).scatter_add(1, target, size).gather(1, survivors)
        if alive - merged == keep:                                               # nobody reads the last round's means
            size = grown
            break
        start = torch.arange(batch, device=x.device)[:, None]                    # whole rows move, of all images at once
        rows = (x * size[..., None]).flatten(0, 1)
        x = rows.index_select(0, (start * alive + survivors).flatten())
        x.index_add_(0, (start * survivors.shape[1] + rank.gather(1, into)).flatten(), rows[(start * alive + old).flatten()])
        size = grown
        x = x.unflatten(0, (batch, -1)) / size[..., None]
    origin = torch.arange(num_tokens, device=x.device).expand(batch, -1)
    return Plan(place, num_tokens, origin, slot, 1 / size.gather(1, slot))


# ---------------------------------------------------------------- the oracle
def spread_order(grid: tuple[int, int], device=None) -> Tensor:
    """Patches in an order whose every beginning is spread over the grid: (h w,) long. The order in which a halftone screen
    (Bayer's matrix) fills: the bits of row xor column and of the row, interleaved and read backwards."""
    h, w = grid
    row = torch.arange(h, device=device)[:, None].expand(h, w).flatten()
    col = torch.arange(w, device=device).expand(h, w).flatten()
    rank = torch.zeros_like(row)
    for bit in range(max(h, w).bit_length()):
        rank = rank * 4 + ((row ^ col) >> bit & 1) * 2 + (row >> bit & 1)
    return rank.argsort(stable=True)


def oracle(mask: Tensor, vision: VisionOutputs, keep: int | float) -> Plan:
    """The patches a mask marks first, then the others, both by `spread_order` when not all fit. mask (B, N) boolean: for example
    the patches of the object a question is about. It cheats, so it bounds what pruning at this `keep` costs;
    `functools.partial(oracle, mask)` is a `prune`."""
    batch, num_tokens, _ = vision.features.shape
    if mask.dtype != torch.bool or mask.shape != (batch, num_tokens):
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)} but needs to be boolean, (B, N) = {(batch, num_tokens)}")
    keep = resolve_keep(keep, num_tokens)
    order = spread_order(vision.grid, mask.device)
    marked_first = (~mask[:, order]).to(torch.uint8).argsort(dim=1, stable=True)[:, :keep]       # b t, places in that order
    return Plan(order[marked_first].sort(dim=1).values, num_tokens)


def _tome_on_keys(vision: VisionOutputs, keep: int | float) -> Plan:
    if vision.keys is None:
        raise ValueError("vision.keys is None: Token Merging compares keys, ask the encoder for need=('keys',)")
    return tome(vision, keep, vision.keys[:, vision.num_prefix :])


RANDOM = Method("random", "Random", prune=random)
UNIFORM = Method("uniform", "Uniform grid", prune=uniform)
POOL = Method("pool", "Average pooling", prune=pool)
TOME = Method("tome", "ToMe-style merging", prune=_tome_on_keys, reads=("keys",))
