"""Exercises on CrossFormer: cross-scale embedding, distant groups, key mask, position bias."""

import torch
import torch.nn.functional as F
from einops import rearrange

from vtlib.multiscale.crossformer import NEG_INF, group_lda, group_sda
from vtlib.nn import pad_to_multiple, relative_index
from vtlib.teach.exercises import Wrong, check, expect

# ------------------------------------------------------------------- 1: padding of the kernels


def embed(images, weights, stride):
    """Token maps of kernels (d, 3, k, k) that all give the same grid, side by side."""
    maps = []
    for weight in weights:
        padding = (weight.shape[-1] - stride) // 2
        maps.append(F.conv2d(images, weight, stride=stride, padding=padding))
    return torch.cat(maps, dim=1)


def _one_side(images, weight, stride):
    rest = weight.shape[-1] - stride
    return F.conv2d(F.pad(images, (rest, 0, rest, 0)), weight, stride=stride)


def _padding_causes(images, weight, stride):
    """The causes for one kernel, which is named in each message."""
    k = weight.shape[-1]
    paddings = {
        "the stride 4 is written into the padding; use the argument `stride`": max(0, (k - 4) // 2),
        "k - stride is the surplus of both sides together; each side gets half of it": k - stride,
        "k // 2 keeps the grid of a kernel with stride 1; here one row and one column too many"
        " come out": k // 2,
        "(k - 1) // 2 is the padding of odd kernels: the grid fits, but the kernel's centre is not"
        " the centre of its patch": (k - 1) // 2,
        "no padding: a kernel larger than the stride loses rows and columns at the border": 0,
    }
    paddings = {cause: p for cause, p in paddings.items() if p != (k - stride) // 2}
    causes = {
        f"{cause} (kernel {k})": F.conv2d(images, weight, stride=stride, padding=padding)
        for cause, padding in paddings.items()
    }
    cause = "all of the surplus went to the top and left, so the kernel looks up and left of its"
    causes[f"{cause} patch (kernel {k})"] = _one_side(images, weight, stride)
    return causes


@check("crossformer.cel_padding", reference=embed)
def _(fn):
    images = torch.randn(2, 3, 32, 48)
    kernels = [torch.randn(d, 3, k, k) / k for k, d in ((4, 4), (8, 2), (16, 1), (32, 1))]
    small = torch.randn(1, 3, 12, 12)
    cases = [(images, kernel, 4) for kernel in kernels]
    cases += [(small, torch.randn(2, 3, k, k), 2) for k in (2, 4, 6)]
    for x, weight, stride in cases:  # each kernel alone first: its own grid, its own message
        what = f"token map of kernel {weight.shape[-1]} with stride {stride}"
        got, want = fn(x, [weight], stride), embed(x, [weight], stride)
        expect(got, want, what=what, mistakes=_padding_causes(x, weight, stride), atol=1e-4)
    got, want = fn(images, kernels, 4), embed(images, kernels, 4)
    expect(got, want, what="token map of kernel 4, 8, 16, 32", atol=1e-4)


# ------------------------------------------------------------------------ 2: long-distance groups

_ADJACENT = (
    "these are groups of adjacent tokens (SDA); members of an LDA group stand `interval` rows or"
    " columns apart"
)
_NUMBERING = (
    "the groups are right but not their order: regions first (row by row), then the remainders"
    " modulo I"
)
_REGIONS = (
    "the whole map was sampled at once; a map larger than G * I is cut into regions of"
    " (G I) x (G I), and each is sampled by itself"
)
_IN_REGIONS = (
    ("b (r g i) (s f j) c -> b (r s g f) (i j) c",
     "the axes of group and interval are swapped: your groups hold the I x I tokens of one cell,"
     " not G x G tokens spaced I apart"),
    ("b (r i g) (s j f) c -> b (r s g f) (i j) c",
     "your groups hold I x I tokens spaced G apart; it should be G x G tokens spaced I apart"),
    ("b (r i g) (s j f) c -> b (r s i j) (g f) c", _ADJACENT),
    ("b (r g i) (s f j) c -> b (r s i j) (f g) c",
     "the tokens inside a group run column by column; rows come first"),
    ("b (r g i) (s f j) c -> b (i j r s) (g f) c", _NUMBERING),
    ("b (r g i) (s f j) c -> b (r s j i) (g f) c", _NUMBERING),
    ("b (r g i) (s f j) c -> b (r i s j) (g f) c", _NUMBERING),
)


def _group_causes(x, g, i):
    found = [(_ADJACENT, group_sda(x, g))]
    found += [
        (cause, rearrange(x, pattern, g=g, f=g, i=i, j=i)) for pattern, cause in _IN_REGIONS
    ]
    whole = "b (g i) (f j) c -> b (i j) (g f) c"
    found += [(_REGIONS, rearrange(x, whole, g=g, f=g)), (_REGIONS, rearrange(x, whole, i=i, j=i))]
    # a cause may have several values: blanks, which are not shown, tell its keys apart
    return {cause + " " * n: value for n, (cause, value) in enumerate(found)}


@check("crossformer.lda_groups", reference=group_lda)
def _(fn):
    def numbered(height, width):
        return torch.arange(height * width).reshape(1, height, width, 1)

    cases = {
        "6 x 6 map, G=3, I=2": (numbered(6, 6), 3, 2),
        "6 x 6 map, G=2, I=3": (numbered(6, 6), 2, 3),
        "12 x 18 map, G=3, I=2": (numbered(12, 18), 3, 2),
        "batch of 2 with 5 channels": (torch.randn(2, 12, 6, 5), 3, 2),
    }
    for what, args in cases.items():
        got, want = fn(*args), group_lda(*args)
        expect(got, want, what=f"groups of a {what}", mistakes=_group_causes(*args))


# ------------------------------------------------------------------------------ 3: the key mask


def key_mask(x, multiple, group):
    """What is added to the logits: (groups, 1, keys), 0 where a key is real, -1e6 where padding."""
    real = pad_to_multiple(torch.ones_like(x[:1, :, :, :1]), multiple)[0]  # 1 h w 1
    return (rearrange(group(real), "1 n k 1 -> n 1 k") - 1) * -NEG_INF


def _top_left_mask(x, multiple, group):
    down, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    real = F.pad(torch.ones_like(x[:1, :, :, 0]), (right, 0, down, 0))[..., None]
    return (rearrange(group(real), "1 n k 1 -> n 1 k") - 1) * -NEG_INF


def _ungrouped_mask(x, multiple, keys):
    """The mask cut into rows of `keys` slots without grouping."""
    real = pad_to_multiple(torch.ones_like(x[:1, :, :, :1]), multiple)[0]
    return (real.reshape(-1, 1, keys) - 1) * -NEG_INF


def _mask_causes(x, multiple, group):
    want = key_mask(x, multiple, group)
    return {
        "the queries are masked, not the keys: the last axis of the logits (n, queries, keys) is"
        " the one to close, so the mask is (n, 1, keys)": want.transpose(1, 2),
        "the mask is upside down: real tokens get 0, padded ones -1e6": NEG_INF - want,
        "the mask is cut into groups by reshape; it has to pass through `group`, like the tokens":
            _ungrouped_mask(x, multiple, want.shape[-1]),
        "the padding stands at the top and left; tokens are padded at the bottom and right":
            _top_left_mask(x, multiple, group),
        "this is the map of padding itself (ones and zeros); what is added to the logits must be"
        " -1e6 where it is padding": want / NEG_INF,
        "this is the map of real tokens (ones and zeros); the mask is added to the logits: 0 where"
        " it is real, -1e6 where it is padding": 1 - want / NEG_INF,
        "one row per image of the batch: the mask is the same for all images, take one":
            want[None].expand(len(x), -1, -1, -1),
    }


@check("crossformer.key_mask", reference=key_mask)
def _(fn):
    def sda(t):
        return group_sda(t, 3)

    def lda(t):
        return group_lda(t, 3, 2)

    cases = {
        "5 x 5 map, SDA with G=3": (5, 5, 3, sda),
        "5 x 7 map, SDA with G=3": (5, 7, 3, sda),
        "5 x 7 map, LDA with G=3, I=2": (5, 7, 6, lda),
        "6 x 6 map, nothing to pad": (6, 6, 3, sda),
    }
    for what, (h, w, multiple, group) in cases.items():
        x = torch.randn(2, h, w, 4)
        want, got = key_mask(x, multiple, group), fn(x, multiple, group)
        if isinstance(got, torch.Tensor) and got.shape == want.shape and torch.isinf(got).any():
            raise Wrong(
                f"mask ({what}): -inf instead of -1e6\n"
                "  likely cause: a group made of nothing but padding then has a softmax over -inf"
                " only, which is NaN; with a finite -1e6 it is harmless and cropped later"
            )
        causes = _mask_causes(x, multiple, group)
        expect(got, want, what=f"mask ({what})", mistakes=causes)


# -------------------------------------------------------- 4: from a table to the bias of a head


def bias(table, group_size):
    """table ((2 G - 1)^2, heads) -> (heads, G^2, G^2): one bias a pair, by query minus key."""
    return rearrange(table[relative_index(group_size, table.device)], "q k h -> h q k")


def _bias_causes(table, g):
    want = bias(table, g)
    place = torch.cartesian_prod(torch.arange(g), torch.arange(g))
    dy, dx = (place[:, None] - place[None]).unbind(-1)
    m, n = g - 1, 2 * g - 1
    rows = {
        "dy and dx are swapped: dx is the outer one in your rows; dy is": (dx + m) * n + dy + m,
        "dy and dx are swapped, and the sign of the offset too": (m - dx) * n + m - dy,
        "only dx has the wrong sign; both are query minus key": (dy + m) * n + m - dx,
        "only dy has the wrong sign; both are query minus key": (m - dy) * n + dx + m,
        "the offsets are not shifted: they start at 1 - G, and a negative index counts from the"
        " end of the table": dy * n + dx,
        "a step of dy skips 2G - 1 rows of the table, not G": (dy + m) * g + dx + m,
        "a step of dy skips 2G - 1 rows of the table, not 2G":
            ((dy + m) * (n + 1) + dx + m) % n**2,
        "offsets without a sign: left and right, up and down would get the same bias":
            (dy.abs() + m) * n + dx.abs() + m,
    }
    return {
        "the sign of the offset: this is key minus query; it is query minus key":
            want.transpose(1, 2),
        **{cause: rearrange(table[index], "q k h -> h q k") for cause, index in rows.items()},
        "the heads come last; they come first: (heads, queries, keys)": want.permute(1, 2, 0),
    }


@check("crossformer.dpb_bias", reference=bias)
def _(fn):
    for g, heads in ((2, 3), (3, 2), (5, 1)):
        table = torch.randn((2 * g - 1) ** 2, heads)
        causes = _bias_causes(table, g)
        expect(fn(table, g), bias(table, g), what=f"the bias for G={g}", mistakes=causes)
    doubles = torch.arange(9.0)[:, None].double()
    what = "the dtype of the bias for a table of doubles"
    expect(fn(doubles, 2).dtype, torch.float64, what=what)
