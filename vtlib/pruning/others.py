"""Seven methods of others, rivals of the course's, each written as one writes a method of one's
own: a function and a `Method`, found by its name in the registry, the bench and the hub.

    visionzip     before, [CLS] row and keys    the dominant, and the rest merged into a few
    prumerge      before, [CLS] row and keys    the dominant, each with its neighbours; one of the
                                                rest
    vispruner     before, [CLS] row             half the dominant, half what has no double
    cdpruner      before, question              a determinant: relevant, and unlike each other
    pyramiddrop   inside, three cuts            by the last word's attention
    sparsevlm     inside, three cuts            by the attention of the words that see the picture
    dart          inside, one cut               what is least like eight pivots

    a_n = mean over heads of cls_row[n]    attention of [CLS]
    cos(x, y)                              in float32 at least

What is common to all: `keep` tokens are left, exactly, and the tokens before the language model are
patches: a [CLS] that a release hands over as well is left out. Chosen tokens stand in raster order,
ties go to the lower index, all tokens left changes nothing. Each docstring says what else the
release does. The choices are compared with the official functions' on recorded inputs
(tests/golden/others).
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..nn.checks import (
    check_axes,
    check_finite,
    check_float,
    check_int,
    check_tokens,
    describe,
)
from ..tokens import Plan, Stage, keep_all, resolve_keep, take, top_tokens
from ..tokens.cosine import cosines, unit
from ..tokens.merge import merge_to_targets
from ..tokens.precision import full_precision, widen
from ..tokens.vision import VisionOutputs, check_vision
from .method import Method, as_plan


# ----------------------------------------------------------------------------- before the decoder
def checked(rule: Callable[..., Plan | Tensor]) -> Callable[..., Plan]:
    """A rule (vision, keep, ...) -> Plan or indices as a `prune`: the rule is given `keep` as an
    int below N, and whoever keeps all changes nothing. ValueError for what is no `VisionOutputs`
    and a keep that cannot be."""

    @functools.wraps(rule)
    def prune(vision: VisionOutputs, keep: int | float, **signals: Tensor) -> Plan:
        check_vision(vision)
        batch, num_tokens = vision.features.shape[:2]
        keep = resolve_keep(keep, num_tokens)
        if keep == num_tokens:
            return keep_all(batch, num_tokens, vision.features.device)
        return as_plan(rule(vision, keep, **signals), batch, num_tokens, keep, rule.__name__)

    return prune


@checked
def visionzip(vision: VisionOutputs, keep: int) -> Plan:
    """VisionZip: Longer is Better but Not Necessary in Vision Language Models (Yang, Chen, Tian,
    Wang, Li, Yu, Jia, CVPR 2025, arXiv 2412.04467).

        dominant      top d of a, as they are
        contextual    each c-th of the others + mean of those whose keys are most like its own
        d : c = 27 : 5, of all budgets in the paper (54 and 10 of 64)

    Left out: [CLS], which the release counts among the dominant.
    """
    few = round(keep * 5 / 32)
    dominant = top_tokens(cls_attention(vision), keep - few)
    return merge_to_targets(patch_keys(vision), dominant, few)


@checked
def prumerge(vision: VisionOutputs, keep: int) -> Plan:
    """LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models (Shang, Cai,
    Xu, Lee, Yan, ICCV 2025, arXiv 2403.15388).

        y_i    = x_i + sum over j in near(i) of a_j x_j      i: the top keep - 1 of a
        near(i)  the 32 with the largest cos(k_i, k_j), j != i, chosen ones too
        y_last = sum over the others of a_j x_j              weights are not normalised, as released

    Left out: the number of tokens is `keep`, not that of the outliers of a (above the third
    quartile + 1.5 times the distance to the first), and PruMerge+'s further tokens on a grid. The
    release takes a and k from the last layer with all heads as one, here both are of the layer
    that made the features; and its tokens stand by falling a.
    """
    a, like = cls_attention(vision), cosines(patch_keys(vision).detach())       # b n, b n n
    kept = top_tokens(a, max(1, keep - 1))                             # b t
    near = take(like, kept).scatter(2, kept[..., None], -torch.inf)    # b t n
    near = near.topk(min(32, a.shape[1] - 1), dim=2).indices
    share = a.new_zeros(*kept.shape, a.shape[1])
    share = share.scatter(2, near, a[:, None].expand_as(share).gather(2, near))
    share = torch.cat([share.scatter(2, kept[..., None], 1), a.scatter(1, kept, 0)[:, None]], dim=1)
    index = torch.cat([kept, a.scatter(1, kept, -1).argmax(dim=1, keepdim=True)], dim=1)
    return sums(index[:, :keep], share[:, :keep])


@checked
def vispruner(vision: VisionOutputs, keep: int) -> Tensor:
    """VisPruner - Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning
    in VLMs (Zhang, Cheng, Lu, Zhang, Zhuo, Cao, Guo, She, Zhang, ICCV 2025, arXiv 2412.01818, from
    version 2 on).

        important    top half of a
        diverse      the others, by falling a, lose 8 at a time, until as many are left: those of
                     the odd places whose nearest of the even places is most like them

    Left out: a share of important tokens other than a half, which the release's scripts take for
    some benchmarks. An odd number of others is no error here.
    """
    important = keep // 2
    like = finite_cosines(vision.features, "vision.features")           # b n n
    order = cls_attention(vision).argsort(dim=1, descending=True, stable=True)
    rest = order[:, important:]
    while (gone := min(8, rest.shape[1] - (keep - important))) > 0:
        a, b = rest[:, ::2], rest[:, 1::2]
        nearest = take(like, a).gather(2, b[:, None].expand(-1, a.shape[1], -1)).amax(dim=2)
        stays = nearest.argsort(dim=1, descending=True, stable=True)[:, gone:]
        rest = torch.cat([take(a, stays), b], dim=1)
    return torch.cat([order[:, :important], rest], dim=1).sort(dim=1).values


@checked
def cdpruner(vision: VisionOutputs, keep: int, patches: Tensor, text: Tensor) -> Tensor:
    """CDPruner - Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning
    in MLLMs (Zhang, Liu, Li, Lu, Zhang, Pan, She, Zhang, NeurIPS 2025, arXiv 2506.10967).

        r_n  = cos(patch_n, text), moved to 0 ... 1 over the picture
        L    = diag(r) S diag(r), S_nm = cos(token_n, token_m)
        keep   greedily the largest det L of the chosen: a determinantal point process

    The release has CLIP's space, and turns the sign: there a patch is least like the words that it
    shows. Give -text for that. It moves r over the whole batch.

    Args:
        vision: what the encoder made.
        keep: how many.
        patches: (B, N, D) in the question's space: the language model's (`vision.tokens`), or
            CLIP's (`vtlib.hub.question_signals`).
        text: (B, D), the question there.
    """
    check_signals(patches, text, vision)
    like = finite_cosines(vision.tokens, "vision.tokens")               # b n n
    with full_precision(text.device):
        r = (unit(patches) @ unit(text)[..., None])[..., 0]             # b n
    low, high = r.amin(dim=1, keepdim=True), r.amax(dim=1, keepdim=True)
    r = (r - low + 1e-6) / (high - low).clamp_min(1e-6)
    return most_volume(r[:, :, None] * like * r[:, None], keep)


# ------------------------------------------------------------------------------- what they share
def cls_attention(vision: VisionOutputs) -> Tensor:
    """a (B, N), float32 at least: the mean over heads of `vision.cls_row`. ValueError where it is
    missing, no floating (B, heads, N) or not finite."""
    if vision.cls_row is None:
        raise ValueError("vision.cls_row is None: ask the encoder for need=('cls_row',)")
    batch, num_tokens = vision.features.shape[:2]
    check_axes(vision.cls_row, "vision.cls_row", "(B, heads, N)")
    if vision.cls_row.shape[::2] != (batch, num_tokens):
        raise ValueError(
            f"vision.cls_row is {describe(vision.cls_row)} but there are {num_tokens} patches in "
            f"{batch} images"
        )
    check_finite(vision.cls_row, "vision.cls_row")
    return widen(vision.cls_row).mean(dim=1)


def patch_keys(vision: VisionOutputs) -> Tensor:
    """(B, N, P): the patches' keys. ValueError where they are missing, no floating (B, prefix + N,
    P) or not finite."""
    if vision.keys is None:
        raise ValueError("vision.keys is None: ask the encoder for need=('keys',)")
    check_tokens(vision.keys, name="vision.keys")
    if vision.keys.shape[:2] != vision.selected.shape[:2]:
        raise ValueError(
            f"vision.keys is {describe(vision.keys)} but vision.selected is "
            f"{describe(vision.selected)}: needs a key for each of its tokens"
        )
    check_finite(vision.keys, "vision.keys")
    return vision.keys[:, vision.num_prefix :]


def finite_cosines(tokens: Tensor, name: str) -> Tensor:
    """(B, N, N): cosines of all pairs of tokens (B, N, D). ValueError for those that are not
    floating or not finite; name: what the message calls them."""
    check_tokens(tokens, name=name)
    check_finite(tokens, name)
    return cosines(tokens.detach())


def check_signals(patches: Tensor, text: Tensor, vision: VisionOutputs) -> None:
    """ValueError unless patches are (B, N, D) and text (B, D), floating and finite.

    Args:
        patches: in the question's space.
        text: the question.
        vision: of the same images.
    """
    check_tokens(patches, name="patches")
    check_float(text, "text")
    shape = vision.features.shape[:2]
    if patches.shape[:2] != shape or text.shape != (shape[0], patches.shape[2]):
        raise ValueError(
            f"patches is {describe(patches)} and text {describe(text)}: need (B, N, D) and (B, D) "
            f"with (B, N) = {tuple(shape)}"
        )
    check_finite(patches, "patches")
    check_finite(text, "text")


def sums(index: Tensor, share: Tensor) -> Plan:
    """The plan whose slot t, at token index[t], is the sum over n of share[t, n] x_n.

    index (B, T) long; share (B, T, N).
    """
    batch, slots, num_tokens = share.shape
    origin = torch.arange(num_tokens, device=index.device).repeat(slots)
    slot = torch.arange(slots, device=index.device).repeat_interleave(num_tokens)
    entries = origin.expand(batch, -1), slot.expand(batch, -1), share.flatten(1)
    return Plan(index, num_tokens, *entries)


def most_volume(kernel: Tensor, keep: int) -> Tensor:
    """Greedy maximum of det(L of the chosen): (B, keep) long, rising.

    left_n is what n would multiply the determinant by, the Schur complement of the chosen; each
    step takes the largest, j, and one column of a Cholesky factor off all:

        e = (L_j - sum of earlier e[j] e) / sqrt(left_j),   left <- left - e^2

    Tokens of which nothing is left but rounding (below 1e-5 of L_nn: copies, or more tokens than
    channels) come last, by L_nn, and change nothing.

    Args:
        kernel: L (B, N, N), symmetric and positive semi-definite.
        keep: how many.
    """
    kernel = kernel.detach()
    own = kernel.diagonal(dim1=1, dim2=2)                               # b n
    last = own / own.amax(dim=1, keepdim=True) - 2                      # below all that is left
    left, taken = own.clone(), torch.zeros_like(own, dtype=torch.bool)
    factor = kernel.new_zeros(len(kernel), keep, kernel.shape[1])       # b t n
    for step in range(keep):
        spent = left <= 1e-5 * own
        j = torch.where(spent, last, left).masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
        earlier = factor[:, :step]
        at_j = earlier.gather(2, j[:, None].expand(-1, step, -1))       # b step 1
        e = take(kernel, j)[:, 0] - (at_j * earlier).sum(dim=1)
        e = (e / left.gather(1, j).clamp_min(1e-30).sqrt()).masked_fill(spent.gather(1, j), 0)
        factor[:, step] = e
        left, taken = left - e.square(), taken.scatter(1, j, True)
    return top_tokens(taken, keep)


# ----------------------------------------------------------------------------- inside the decoder
def pyramiddrop(num_layers: int, keep: int | float, num_visual: int) -> list[Stage]:
    """PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
    Reduction (Xing, Huang, Dong, Lu, Zhang, Zang, Cao, He, Wang, Wu, Lin, CVPR 2025, arXiv
    2410.17247).

        s_n = mean over heads of attention[last word, n], of the layer to come
        cuts  after L / 4, L / 2 and 3 L / 4 layers, each leaves the same share of what there is

    The release's share is 0.5, keep = N / 8; another `keep` is another share, (keep / N)^(1/3).
    Left out: training with the cuts in place, where each turn's last word asks.

    Args:
        num_layers: of the decoder.
        keep: an int or a fraction of num_visual.
        num_visual: visual tokens at the start.
    """

    def plan(state, keep: int) -> Plan:
        rows, words = asking(state)
        place = torch.arange(words.shape[1], device=words.device)
        last = torch.where(words, place, 0).amax(dim=1, keepdim=True)
        weights = state.attention(rows)[..., state.visual].mean(dim=1)  # b r n
        return state.top(take(weights, last)[:, 0], keep)

    return [Stage(*cut, plan) for cut in cuts(num_layers, keep, num_visual, (1 / 4, 1 / 2, 3 / 4))]


def sparsevlm(num_layers: int, keep: int | float, num_visual: int) -> list[Stage]:
    """SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference (Zhang,
    Fan, Ma, Zheng, Huang, Cheng, Gudovskiy, Okuno, Nakata, Keutzer, Zhang, ICML 2025, arXiv
    2410.04417): its raters.

        m_w = mean over n of softmax over words of (x_n . x_w)     at the decoder's door
        s_n = mean over heads and the words with m_w > mean of m, of attention[w, n]
        cuts  after 3, 7 and 16 of 32 layers, by the layer that has run

    Words are those behind the picture. The first stage, before any layer, drops nothing: it rates
    the words. Left out: the merging of what was dropped ("recycling", gone in the release's second
    version, too), the rank that may skip a layer, and SparseVLM+'s choice of heads. The release's
    numbers of tokens are tables for four budgets; here each cut leaves the same share.

    Args:
        num_layers: of the decoder.
        keep: an int or a fraction of num_visual.
        num_visual: visual tokens at the start.
    """
    rated: dict[str, Tensor] = {}

    def rate(state, keep: int) -> Plan:
        order = state.asking.int().argsort(dim=1, descending=True, stable=True)
        rated["words"] = raters(state).gather(1, order)                 # word by word
        return keep_all(len(order), keep, order.device)

    def plan(state, keep: int) -> Plan:
        rows, words = asking(state)
        number = (words.long().cumsum(dim=1) - 1).clamp(min=0)          # pictures between words go
        asked = words & rated["words"].gather(1, number)
        weights = state.attention(rows, "last")[..., state.visual].mean(dim=1)     # b r n
        weights = weights.masked_fill(~asked[..., None], 0)
        return state.top(weights.sum(dim=1) / asked.sum(dim=1, keepdim=True), keep)

    found = cuts(num_layers, keep, num_visual, (3 / 32, 7 / 32, 16 / 32))
    return [Stage(0, num_visual, rate), *(Stage(*cut, plan) for cut in found)]


def raters(state) -> Tensor:
    """(B, S) bool: the words that see the picture more than the mean of words does; all of them
    where none does."""
    words = state.asking
    with full_precision(words.device):
        alike = widen(state.tokens) @ widen(state.hidden).mT            # b n s
    m = alike.masked_fill(~words[:, None], -torch.inf).softmax(dim=2).mean(dim=1)
    above = words & (m * words.sum(dim=1, keepdim=True) > 1 + 1e-6)     # m adds up to 1
    return torch.where(above.any(dim=1, keepdim=True), above, words)


def dart(num_layers: int, keep: int | float, num_visual: int, after: int = 2) -> list[Stage]:
    """DART - Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters
    More (Wen, Gao, Wang, Zhang, Zhang, Li, He, Zhang, EMNLP 2025, arXiv 2502.11494).

        pivots    the 4 visual tokens and the 4 words with the largest |k|_1, of the layer that has
                  run; the visual ones stay
        each      in turn keeps the same number of those left that are least like it, cos(h_p, h_n)
        one cut   after 2 layers; positions are kept

    Turns go by place in the prompt; in the release by the order of a Python set of places. Left
    out: the decoder's last norm before the cosine, whose weights stretch some channels. The release
    rounds each turn's number down, so that up to 7 fewer than asked for stay; 4 + 8 t are equal.

    Args:
        num_layers: of the decoder.
        keep: an int or a fraction of num_visual.
        num_visual: visual tokens at the start.
        after: layers that run before the cut.

    ValueError for an `after` outside 1 ... num_layers - 1.
    """
    check_int(after, "after", 1, check_int(num_layers, "num_layers", 2) - 1)

    def plan(state, keep: int) -> Plan:
        pivots, taken = dart_pivots(state, min(4, keep))                # b p, b n
        x, rest, count = unit(state.hidden), keep - min(4, keep), pivots.shape[1]
        for turn in range(count):
            with full_precision(x.device):
                unlike = -(take(x, pivots[:, turn : turn + 1]) @ x[:, state.visual].mT)[:, 0]
            number = (turn + 1) * rest // count - turn * rest // count
            least = state.top(unlike.masked_fill(taken, -torch.inf), number)
            taken = taken.scatter(1, least.index, True)
        return state.top(taken.float(), keep)

    return [Stage(after, resolve_keep(keep, num_visual), plan)]


def dart_pivots(state, count: int) -> tuple[Tensor, Tensor]:
    """(pivots (B, P) long, places in the prompt; taken (B, n) bool: those that are visual).

    Args:
        state: of the decoder.
        count: visual pivots; there are as many words, where the prompt has them: one that has
            fewer repeats its first.
    """
    rows, words = asking(state)
    length = widen(state.qk("last")[1]).abs().sum(dim=(1, 3))           # b s
    own = state.top(length[:, state.visual], count).index
    of_words = length[:, rows].masked_fill(~words, -torch.inf)
    value, asked = of_words.topk(min(count, words.shape[1]), dim=1)
    asked = torch.where(value > -torch.inf, asked, asked[:, :1]).sort(dim=1).values
    taken = torch.zeros_like(state.alive).scatter(1, own, True)
    return torch.cat([own + state.visual.start, asked + rows.start], dim=1), taken


def asking(state) -> tuple[slice, Tensor]:
    """(rows, words): the places behind the picture, and which of them (B, rows) are words.
    ValueError where there is none."""
    rows = slice(state.visual.stop, None)
    words = state.asking[:, rows]
    if words.shape[1] == 0:
        raise ValueError("the words behind the picture rate it: the prompt has none there")
    return rows, words


def cuts(
    num_layers: int, keep: int | float, num_visual: int, depths: tuple[float, ...]
) -> list[tuple[int, int]]:
    """[(after, left)]: cuts that each leave the same share, the last one `keep` of num_visual.

    Args:
        num_layers: L, of the decoder.
        keep: an int or a fraction of num_visual.
        num_visual: visual tokens at the start.
        depths: shares of L after which they come; in a shallow decoder some fall together.
    """
    num_layers = check_int(num_layers, "num_layers", 2)
    num_visual = check_int(num_visual, "num_visual", 0)
    keep = resolve_keep(keep, num_visual)
    after = sorted({min(max(1, round(d * num_layers)), num_layers - 1) for d in depths})
    share = (keep / num_visual) ** (1 / len(after))
    left = [max(keep, round(num_visual * share**cut)) for cut in range(1, len(after))]
    return list(zip(after, [*left, keep], strict=True))


VISIONZIP = Method(
    "visionzip", "VisionZip", prune=visionzip, reads=("cls_row", "keys"), arxiv="2412.04467"
)
PRUMERGE = Method(
    "prumerge", "PruMerge", prune=prumerge, reads=("cls_row", "keys"), arxiv="2403.15388"
)
VISPRUNER = Method(
    "vispruner", "VisPruner", prune=vispruner, reads=("cls_row",), arxiv="2412.01818"
)
CDPRUNER = Method("cdpruner", "CDPruner", prune=cdpruner, space="tokens", arxiv="2506.10967")
PYRAMIDDROP = Method(
    "pyramiddrop", "PyramidDrop", stages=pyramiddrop, asks=True, positions="renumber",
    arxiv="2410.17247",
)
SPARSEVLM = Method(
    "sparsevlm", "SparseVLM (raters)", stages=sparsevlm, asks=True, positions="renumber",
    arxiv="2410.04417",
)
DART = Method("dart", "DART", stages=dart, asks=True, positions="keep", arxiv="2502.11494")
