"""What every pruner has to beat: chance, a uniform grid, average pooling, merging of look-alikes,
and an oracle that knows the answer.

    random      any `keep` patches, drawn for each image
    uniform     the picture cut into `keep` cells, the middle patch of each: blind to the content,
                never unlucky
    pool        the same cells, their mean: a low-resolution picture; nothing is thrown away, small
                things are diluted
    tome        Token Merging by bipartite soft matching (Bolya, Fu, Dai, Zhang, Feichtenhofer,
                Hoffman, ICLR 2023, arXiv 2210.09461): again and again the most similar pairs become
                one token, the mean weighted by how many patches each side stands for
    oracle      the patches of a given mask first: what a pruner could reach that knew where the
                answer lies

"Attention received" is `hiprune.select(..., alpha=0)`; FastV acts inside the language model. ToMe
is applied here once, to the finished features, in as many rounds as `keep` needs; the paper merges
a few tokens in every layer of the ViT and weights attention by their size. All plans are for
`vision.features`.
"""

import math

import torch
from torch import Tensor

from ..nn.checks import check_finite, check_generator, check_int, check_tokens
from ..tokens import Plan, keep_all, resolve_keep
from ..tokens.checks import check_grid, check_mask
from ..tokens.cosine import within_range
from ..tokens.groups import groups
from ..tokens.precision import full_precision, widen
from ..tokens.select import add_rows
from ..tokens.vision import VisionOutputs, check_vision
from .method import Method


def random(
    vision: VisionOutputs, keep: int | float, generator: torch.Generator | None = None
) -> Plan:
    """`keep` patches of each image, every subset equally likely, in raster order.

    Args:
        vision: what the encoder gave; its grid of N patches is all that is read.
        keep: an int or a fraction of N.
        generator: of the draw, made on its device; None: torch's own, on the features' device.
    """
    check_vision(vision)
    check_generator(generator, optional=True)
    features = vision.features
    batch, num_tokens, _ = features.shape
    keep = resolve_keep(keep, num_tokens)
    drawn_on = features.device if generator is None else generator.device
    draw = torch.rand(
        batch, num_tokens, generator=generator, device=drawn_on, dtype=torch.float32
    ).to(features.device)
    return Plan(draw.argsort(dim=1)[:, :keep].sort(dim=1).values, num_tokens)


# ------------------------------------------------------------------------------------- on the grid
def cells(keep: int, grid: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """A picture of h x w patches cut into `keep` boxes of whole patches, nearly square and equal.

    r bands of rows, r near sqrt(keep h / w), and each band cut into keep / r boxes, rounded down or
    up. Returns boxes (top, bottom, left, right), for any keep in 1 ... h w.
    """
    h, w = check_grid(grid)
    keep = check_int(keep, "keep", 1, h * w)
    square = round(math.sqrt(keep * h / w))
    fewest = -(-keep // w)
    bands = min(max(square, fewest), h, keep)
    boxes = []
    for i in range(bands):
        top, bottom = i * h // bands, (i + 1) * h // bands
        count = (i + 1) * keep // bands - i * keep // bands
        boxes += [(top, bottom, j * w // count, (j + 1) * w // count) for j in range(count)]
    return boxes


def _middles(boxes: list[tuple[int, int, int, int]], width: int) -> list[int]:
    return [
        (top + bottom) // 2 * width + (left + right) // 2 for top, bottom, left, right in boxes
    ]


def uniform(vision: VisionOutputs, keep: int | float) -> Plan:
    """The middle patch of each of `keep` cells, the same in every image, in raster order."""
    check_vision(vision)
    batch, num_tokens, _ = vision.features.shape
    boxes = cells(resolve_keep(keep, num_tokens), vision.grid)
    middles = sorted(_middles(boxes, vision.grid[1]))
    return Plan(torch.tensor(middles, device=vision.features.device).expand(batch, -1), num_tokens)


def pool(vision: VisionOutputs, keep: int | float) -> Plan:
    """The mean of each of `keep` cells; where the cells are equal this is `avg_pool2d`.

    A plan that merges, each slot at its cell's middle.
    """
    check_vision(vision)
    batch, num_tokens, _ = vision.features.shape
    device, width = vision.features.device, vision.grid[1]
    keep = resolve_keep(keep, num_tokens)
    if keep == num_tokens:
        return keep_all(batch, num_tokens, device)
    boxes = cells(keep, vision.grid)
    origin, slot, weight = [], [], []
    for number, (top, bottom, left, right) in enumerate(boxes):
        rows, cols = range(top, bottom), range(left, right)
        inside = [row * width + col for row in rows for col in cols]
        origin += inside
        slot += [number] * len(inside)
        weight += [1 / len(inside)] * len(inside)
    dtype = torch.promote_types(vision.features.dtype, torch.float32)
    share = torch.tensor(weight, device=device, dtype=dtype).expand(batch, -1)
    places = (_middles(boxes, width), origin, slot)
    index, origin, slot = (torch.tensor(x, device=device).expand(batch, -1) for x in places)
    return Plan(index, num_tokens, origin, slot, share)


# ------------------------------------------------------------------------------------- by content
def tome(vision: VisionOutputs, keep: int | float, metric: Tensor | None = None) -> Plan:
    """Bipartite soft matching, repeated until `keep` tokens are left.

    In a round the tokens alternate between two sets, a and b; each a finds its most similar b
    (cosine); the r most similar pairs merge, r <= the size of a, s the number of patches:

        b <- (s_a a + s_b b) / (s_a + s_b)

    Here the sums s x are kept and never divided: a cosine knows no length.

    Args:
        vision: whose features the plan is for.
        keep: an int or a fraction of N.
        metric: (B, N, P), what is compared; None: `vision.features`. The paper compares keys,
            `vision.keys[:, vision.num_prefix:]`.

    Returns a plan that merges: every patch enters one slot with weight 1 / s. Slots stand in raster
    order of the b they grew from. Ties: lower index. ValueError for a metric that is not floating
    (B, N, P) or not finite.
    """
    check_vision(vision)
    metric = vision.features if metric is None else metric
    check_tokens(metric, name="metric")
    batch, num_tokens, _ = metric.shape
    want = tuple(vision.features.shape[:2])
    if (batch, num_tokens) != want:
        raise ValueError(
            f"metric has shape {tuple(metric.shape)} but there are (B, N) = {want} patches to "
            f"compare"
        )
    metric = metric.contiguous()                                    # without [CLS] it is not
    check_finite(metric, "metric")
    keep = resolve_keep(keep, num_tokens)
    device = metric.device
    if keep == num_tokens:
        return keep_all(batch, num_tokens, device)
    sums = within_range(widen(metric.detach()))                     # b n p
    place = torch.arange(num_tokens, device=device).expand(batch, -1)   # b n: of each token left
    slot = place                                                    # b N: the token of each patch
    while (alive := place.shape[1]) > keep:
        merged = min(alive - keep, alive // 2)
        target, survivors = _halve(sums, merged)
        slot = target.gather(1, slot)
        place = place.gather(1, survivors)
        if alive - merged > keep:                                   # read by a further round
            numbers = torch.arange(batch * alive, device=device).view(batch, alive)
            sums = add_rows(sums.flatten(0, 1), numbers, target, alive - merged)
    ones = torch.ones_like(slot, dtype=sums.dtype)
    size = ones.new_zeros(batch, keep).scatter_add(1, slot, ones)
    origin = torch.arange(num_tokens, device=device).expand(batch, -1)
    return Plan(place, num_tokens, origin, slot, 1 / size.gather(1, slot))


def _halve(x: Tensor, merged: int) -> tuple[Tensor, Tensor]:
    """One matching of tokens (B, n, P): the number that each has afterwards (B, n), the same for
    both of a merged pair, and the survivors (B, n - merged), rising."""
    batch, alive, _ = x.shape
    with full_precision(x.device):
        norm = torch.linalg.vector_norm(x, dim=2).clamp_min(1e-12)
        best = []
        for part in groups(batch, alive**2 // 2, x.device):
            own = x[part]                                           # the last of an odd number: a
            cosine = own[:, 0::2] @ own[:, 1::2].transpose(1, 2)
            best.append(cosine.div_(norm[part, None, 1::2]).max(dim=2))
    likeness, partner = map(torch.cat, zip(*best, strict=True))
    chosen = (likeness / norm[:, 0::2]).argsort(dim=1, descending=True, stable=True)[:, :merged]
    source, into = 2 * chosen, 2 * partner.gather(1, chosen) + 1
    number = torch.arange(alive, device=x.device).expand(batch, -1)
    stays = torch.ones_like(number, dtype=torch.bool).scatter(1, source, False)
    survivors = torch.where(stays, number, alive).sort(dim=1).values[:, : alive - merged]
    afterwards = stays.long().cumsum(dim=1) - 1
    return afterwards.gather(1, number.scatter(1, source, into)), survivors


# ------------------------------------------------------------------------------------- the oracle
def spread_order(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Patches in an order whose every beginning is spread over the grid: (h w,) long.

    The order in which a halftone screen (Bayer's matrix) fills: the bits of row xor column and of
    the row, interleaved and read backwards.
    """
    h, w = check_grid(grid)
    row = torch.arange(h, device=device)[:, None].expand(h, w).flatten()
    col = torch.arange(w, device=device).expand(h, w).flatten()
    rank = torch.zeros_like(row)
    for bit in range(max(h, w).bit_length()):
        rank = rank * 4 + ((row ^ col) >> bit & 1) * 2 + (row >> bit & 1)
    return rank.argsort(stable=True)


def oracle(mask: Tensor, vision: VisionOutputs, keep: int | float) -> Plan:
    """The patches a mask marks first, then the others, both by `spread_order` when not all fit.

    It cheats, so it bounds what pruning at this `keep` costs.
    `functools.partial(oracle, mask)` is a `prune`.

    Args:
        mask: (B, N) boolean, for example the patches of the object a question is about.
        vision: whose features the plan is for.
        keep: an int or a fraction of N.

    ValueError for a mask of another dtype or shape.
    """
    check_vision(vision)
    shape = tuple(vision.features.shape[:2])
    check_mask(mask, "mask", shape)
    keep = resolve_keep(keep, shape[1])
    order = spread_order(vision.grid, mask.device)
    not_marked = (~mask[:, order]).to(torch.uint8)                  # b n, in that order
    chosen = order[not_marked.argsort(dim=1, stable=True)[:, :keep]]
    return Plan(chosen.sort(dim=1).values, shape[1])


def _tome_on_keys(vision: VisionOutputs, keep: int | float) -> Plan:
    check_vision(vision)
    if vision.keys is None:
        raise ValueError(
            "vision.keys is None: Token Merging compares keys, ask the encoder for need=('keys',)"
        )
    check_tokens(vision.keys, name="vision.keys")
    return tome(vision, keep, vision.keys[:, vision.num_prefix :])


RANDOM = Method("random", "Random", prune=random)
UNIFORM = Method("uniform", "Uniform grid", prune=uniform)
POOL = Method("pool", "Average pooling", prune=pool)
TOME = Method("tome", "ToMe-style merging", prune=_tome_on_keys, reads=("keys",))
