"""A trained CATANet with a part switched off, or replaced by something that knows less.

Nothing of the net itself changes: other functions stand in for those of `vtlib.superres.catanet`
for as long as a `with` block lasts.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlib.superres import bicubic, catanet, psnr
from vtlib.tokens import entropy

grouping, attend = catanet.grouping, catanet.attend


@contextlib.contextmanager
def swapped(
    grouping: Callable | None = None, centres: Callable | None = None,
    attend: Callable | None = None,
) -> Iterator[None]:
    """While it lasts, CATANets use these in place of their own.

        with superres.swapped(grouping=superres.random_pieces):
            enlarged = net(small)

    Args:
        grouping: in place of `catanet.grouping`.
        centres: in place of the method `TAB.centres`.
        attend: in place of all attention: (q, k, v) -> their mixture.
    """
    with (
        mock.patch.object(catanet, "grouping", grouping or catanet.grouping),
        mock.patch.object(catanet.TAB, "centres", centres or catanet.TAB.centres),
        mock.patch.object(catanet, "attend", attend or catanet.attend),
    ):
        yield


def switched_off(net: torch.nn.Module, *names: str) -> torch.nn.Module:
    """A copy of the net in which all weights are 0 whose name contains one of `names`."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if any(part in name for part in names):
                weight.zero_()
    return net


# ------------------------------------------------------------------------------- in place of a part
def without_look_ahead(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in which s queries with 2 s keys, a piece and the next one, see the first s only.

    Args:
        q: queries (..., n, P).
        k: keys (..., m, P).
        v: values (..., m, P).
    """
    size = q.shape[-2]
    if kind(q, k) != "pieces":
        return attend(q, k, v)
    return attend(q, k[..., :size, :], v[..., :size, :])


def kind(q: Tensor, k: Tensor) -> str:
    """Which of a CATANet's attentions this is: "pieces", "windows" or "centres"."""
    queries, keys = q.shape[-2], k.shape[-2]
    if keys == 2 * queries:
        return "pieces"
    return "windows" if keys == queries else "centres"


def random_pieces(tokens: Tensor, centres: Tensor, group_size: int) -> catanet.Grouping:
    """A grouping whose sorted row is in random order: a piece holds any tokens.

    Args:
        tokens: (B, N, C).
        centres: (M, C).
        group_size: tokens of a piece.
    """
    found = grouping(tokens, centres, group_size)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(found.order.shape, generator=generator).argsort(1)
    found.order = order.to(tokens.device)
    return found


def scanned_backwards(tokens: Tensor, centres: Tensor, group_size: int) -> catanet.Grouping:
    """The grouping of a square picture, in which the tokens of a group stand from right to left.

    Args:
        tokens: (B, n * n, C).
        centres: (M, C).
        group_size: tokens of a piece.
    """
    found = grouping(tokens, centres, group_size)
    side = round(tokens.shape[1] ** 0.5)
    places = torch.arange(side * side, device=tokens.device)
    flip = places.view(side, side).flip(-1).flatten()
    found.order = flip[found.belong[:, flip].argsort(dim=-1, stable=True)]
    return found


def moved_centres(rounds: int, seed: int | None = None) -> Callable:
    """In place of `TAB.centres`: k-means on the picture at hand.

    Args:
        rounds: of `center_iter`, on the tokens of the call.
        seed: of random centres to start from; None: from the stored ones.
    """
    def centres(tab: catanet.TAB, tokens: Tensor) -> Tensor:
        start = tab.means
        if seed is not None:
            start = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
        moving = F.normalize(start.to(tokens.device), dim=-1)
        for _ in range(rounds):
            moving = catanet.center_iter(F.normalize(tokens, dim=-1), moving)
        return moving

    return centres


# --------------------------------------------------------------------------- how much it knows
@torch.no_grad()
def keys_in_use(net: torch.nn.Module, images: Tensor) -> dict[tuple[str, int], list[float]]:
    """{(kind of attention, number of keys): for each such layer the share of keys in use}.

    Keys in use: exp(entropy of the weights), the mean over the queries. images: (B, 3, h, w).
    """
    shares: dict[tuple[str, int], list[float]] = {}

    def probe(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        share = entropy(weights).exp().mean().item() / k.shape[-2]
        shares.setdefault((kind(q, k), k.shape[-2]), []).append(share)
        return weights @ v

    with swapped(attend=probe):
        net(images)
    return shares


@contextlib.contextmanager
def constant_attention(net: torch.nn.Module, which: str, images: Tensor) -> Iterator[None]:
    """While it lasts, attention of one kind gives one vector a layer, whatever comes in.

    That vector is the mean of the layer's values on `images`.

    Args:
        net: a CATANet, run once on the images, and then as often as one likes.
        which: "pieces", "windows" or "centres".
        images: (B, 3, h, w), small pictures.
    """
    if which not in ("pieces", "windows", "centres"):
        raise ValueError(f"which={which!r}: needs 'pieces', 'windows' or 'centres'")
    kept = []

    def record(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if kind(q, k) == which:
            kept.append(v.mean((0, 2), keepdim=True))
        return attend(q, k, v)

    def replay(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if kind(q, k) != which:
            return attend(q, k, v)
        kept.append(kept.pop(0))                        # layer after layer, call after call
        return kept[-1].expand(len(v), -1, q.shape[-2], -1)

    with torch.no_grad(), swapped(attend=record):
        net(images)
    with swapped(attend=replay):
        yield


# ---------------------------------------------------------------------------------------- how well
@torch.no_grad()
def decibels(enlarge: Callable, photographs: dict[str, Tensor]) -> dict[str, float]:
    """{name: PSNR on Y in dB, mean of its crops} of a way to enlarge x2 what was shrunk by BI.

    Args:
        enlarge: small images (B, 3, h, w) -> (B, 3, 2h, 2w), such as a net.
        photographs: {name: its crops (B, 3, 2h, 2w)}.
    """
    found = {}
    for name, images in photographs.items():
        out = enlarge(bicubic(images, 1 / 2)).clamp(0, 1)
        found[name] = psnr(out, images, crop=2).mean().item()
    return found


@torch.no_grad()
def with_centres(
    net: torch.nn.Module, photographs: dict[str, Tensor], centres: Callable | None = None
) -> tuple[float, list[Tensor]]:
    """Mean PSNR on Y in dB, and the groups (1, N) of all tokens, picture by picture and layer by
    layer.

    Args:
        net: a CATANet x2.
        photographs: {name: crops (B, 3, 2h, 2w)}.
        centres: in place of those that are stored, such as `moved_centres(3)`.
    """
    values, belong = [], []
    with swapped(centres=centres):
        for image in torch.cat(list(photographs.values())):
            out, found = net(bicubic(image[None], 1 / 2), return_groups=True)
            values.append(psnr(out.clamp(0, 1), image[None], crop=2).item())
            belong += [groups.belong for groups in found]
    return sum(values) / len(values), belong


def other_centres(
    net: torch.nn.Module, photographs: dict[str, Tensor], ways: Mapping[str, Callable]
) -> dict[str, tuple[float, float]]:
    """{way: mean PSNR on Y in dB, share of all tokens that keep their group}; "stored" first.

    Args:
        net: a CATANet x2.
        photographs: {name: crops (B, 3, 2h, 2w)}.
        ways: {name: in place of the stored centres, such as `moved_centres(3)`}.
    """
    value, stored = with_centres(net, photographs)
    found = {"stored": (value, 1.0)}
    for name, centres in ways.items():
        value, belong = with_centres(net, photographs, centres)
        equal = [(a == b).float().mean() for a, b in zip(belong, stored, strict=True)]
        found[name] = value, torch.stack(equal).mean().item()
    return found
