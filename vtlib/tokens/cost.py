"""What a decoder costs as the papers on token reduction count it: prefill FLOPs and the cache, from
the number of tokens in each layer."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..nn.checks import check_flag, check_int, check_ints, check_list
from .plan import Stage
from .select import resolve_keep


def tokens_per_layer(
    num_layers: int, num_visual: int, num_text: int, cuts: Iterable[Stage | tuple] = ()
) -> list[int]:
    """How many tokens each of the L layers reads: list of L ints.

    Args:
        num_layers: L.
        num_visual: visual tokens in front of the first cut.
        num_text: text tokens, which always stay.
        cuts: (after, keep) pairs or `Stage`s in order of depth: when `after` layers have run,
            `keep` visual tokens go on (an int, 0 included, or a float: fraction of num_visual).
            after=0 is pruning before the decoder.

    ValueError: cuts that are no such pairs, out of order, outside 0 ... L, or a later cut that
    keeps more than an earlier one.
    """
    num_layers = check_int(num_layers, "num_layers", 1)
    num_visual = check_int(num_visual, "num_visual", 0)
    num_text = check_int(num_text, "num_text", 0)
    counts: list[int] = []
    alive = num_visual
    for after, keep in _pairs(cuts):
        if not len(counts) <= after <= num_layers:
            raise ValueError(
                f"cuts: a cut after layer {after} must come in order and lie in 0 ... {num_layers}"
            )
        left = resolve_keep(keep, num_visual, least=0)
        if left > alive:
            raise ValueError(
                f"cuts: keep={left} after layer {after} but only {alive} visual tokens are left "
                f"there"
            )
        counts += [alive + num_text] * (after - len(counts))
        alive = left
    return counts + [alive + num_text] * (num_layers - len(counts))


def _pairs(cuts: Any) -> list[tuple[int, Any]]:
    """(after, keep) of each cut. ValueError for what is no list of pairs or `Stage`s."""
    pairs = []
    for cut in check_list(cuts, "cuts", "(after, keep) pairs or Stages"):
        pair = (cut.after, cut.keep) if isinstance(cut, Stage) else cut
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"cuts has {cut!r}: needs (after, keep) pairs or Stages")
        pairs.append((check_int(pair[0], "cuts: after"), pair[1]))
    return pairs


def decoder_flops(
    num_tokens: Sequence[int], dim: int, hidden_dim: int, gated: bool = False
) -> int:
    """Prefill cost of a decoder in multiply-adds, each counted once (`vtlib.teach.flops` counts
    them twice):

        sum over layers of   4 n d^2   +   2 n^2 d   +   2 n d m            (gated: 3 n d m)
                             q,k,v,out     qk^T, av      feed-forward

    Args:
        num_tokens: n of each layer (`tokens_per_layer`), text included.
        dim: d.
        hidden_dim: m, inside the feed-forward net.
        gated: three matrices, as LLaMA has and TransPrune counts; False is the convention of FastV
            and DivPrune (tflops.py), which under-counts LLaMA.

    DivPrune's eq. 5 prints a minus before the attention term; its code adds it, and so does this.
    Causal masks are not exploited.
    """
    counts = check_ints(num_tokens, "num_tokens", 0)
    if not counts:
        raise ValueError("num_tokens=[] needs one count (>= 0) a layer")
    dim = check_int(dim, "dim", 1)
    hidden_dim = check_int(hidden_dim, "hidden_dim", 0)
    matrices = 3 if check_flag(gated, "gated") else 2
    return sum(4 * n * dim**2 + 2 * n**2 * dim + matrices * n * dim * hidden_dim for n in counts)


def cache_bytes(num_tokens: Sequence[int], kv_dim: int, bytes_per_value: int = 2) -> int:
    """Bytes of keys and values after the prefill: 2 sum n kv_dim bytes.

    Args:
        num_tokens: n of each layer.
        kv_dim: kv heads times head dim (= d without grouped queries).
        bytes_per_value: 2 in half precision.
    """
    counts = check_ints(num_tokens, "num_tokens", 0)
    kv_dim = check_int(kv_dim, "kv_dim", 1)
    bytes_per_value = check_int(bytes_per_value, "bytes_per_value", 1)
    return 2 * sum(counts) * kv_dim * bytes_per_value
