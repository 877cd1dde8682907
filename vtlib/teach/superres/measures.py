"""What groups of tokens are worth: numbers that stand beside the idea in notebook 07b."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.superres import catanet
from vtlib.teach.meter import flops, timed


def in_window(n: int, side: int, every: int = 1, device: torch.device | None = None) -> Tensor:
    """Which pixels of a picture lie in the window around each `every`-th pixel -> (m, n * n) bool.

    Args:
        n: side of the picture.
        side: of the window, which reaches from side // 2 before the pixel to as much after it.
        every: 9 for every ninth pixel in raster order.
        device: where the answer is; None: torch's default.
    """
    n, side, every = (check_int(v, "n, side, every", 1) for v in (n, side, every))
    at = torch.arange(n * n, device=device)
    down = at // n - at[::every, None] // n
    across = at % n - at[::every, None] % n
    low = -(side // 2)
    rows = (down >= low) & (down < low + side)
    return rows & (across >= low) & (across < low + side)


def piece_of(belong: Tensor, size: int) -> Tensor:
    """(N,): the number of the piece in which each token lies, once sorted by group."""
    return belong.argsort(stable=True).argsort() // check_int(size, "size", 1)


def companions_kept(belong: Tensor, turn: Callable, size: int) -> float:
    """Share of the tokens of its piece that a token keeps when a square picture is turned.

    Every token keeps its group; only the raster order changes.

    Args:
        belong: groups (n * n,) in raster order.
        turn: turns a map (n, n) and is its own inverse, such as a mirror image.
        size: tokens of a piece; divides n * n.
    """
    n = round(len(belong) ** 0.5)
    if n * n != len(belong) or len(belong) % size or size < 2:
        raise ValueError(f"{len(belong)} tokens, size={size}: needs n * n, in pieces of one size")
    turned = piece_of(turn(belong.view(n, n)).flatten(), size)
    after = turn(turned.view(n, n)).flatten()                    # back at each token's place
    pair = piece_of(belong, size) * (n * n) + after
    together = pair.unique(return_counts=True)[1].double()
    return (together * (together - 1)).sum().item() / (n * n * (size - 1))


def explained(values: Tensor, belong: Tensor) -> float:
    """Share of the variance of values (N, k) that lies between groups (N,): 1, one value each."""
    values = values - values.mean(0)
    between = values.new_zeros(())
    for group in belong.unique():
        members = values[belong == group]
        between = between + len(members) * members.mean(0).square().sum()
    return (between / values.square().sum()).item()


@torch.no_grad()
def attention_flops(sides: Sequence[int], device: torch.device | None = None) -> dict:
    """{way to attend: GFLOPs of one layer at each side}, on side x side tokens of 32 channels.

    The ways: all to all, content pieces of 64 with look-ahead and 32 centres, windows of 8 x 8.

    Args:
        sides: of the map of tokens, multiples of 8.
        device: where the layer runs; None: torch's default.
    """
    tab = catanet.TAB(32, 32, 64, 2, 32, 64).to(device).eval()
    part = tab.iasa_attn

    def all_to_all(tokens: Tensor) -> Tensor:
        q, k, v = part.to_q(tokens), part.to_k(tokens), part.to_v(tokens)
        return part.proj(F.scaled_dot_product_attention(q, k, v))

    def pieces(tokens: Tensor) -> Tensor:
        groups = catanet.grouping(tokens, tab.means, 64)
        return part(tokens, groups, *tab.irca_attn(tab.means))

    def windows(tokens: Tensor) -> Tensor:
        return all_to_all(tokens.reshape(-1, 64, 32))

    ways = {"all to all": all_to_all, "content pieces": pieces, "windows": windows}
    counted: dict[str, list[float]] = {name: [] for name in ways}
    for side in sides:
        tokens = torch.randn(1, side * side, 32, device=device)
        for name, way in ways.items():
            counted[name].append(flops(way, tokens) / 1e9)
    return counted


def fastest(ways: Mapping[str, Callable], *args, rounds: int = 5) -> dict[str, float]:
    """{way: milliseconds of the fastest run of `way(*args)`, as `teach.timed` counts them}.

    The ways take turns, so that what else the machine does slows no one of them alone.

    Args:
        ways: {name: a function}.
        args: their arguments.
        rounds: runs of each, after one to warm up.
    """
    rounds = check_int(rounds, "rounds", 1)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            times[name].append(1000 * timed(way, *args)[1])
    return {name: min(values[1:]) for name, values in times.items()}
