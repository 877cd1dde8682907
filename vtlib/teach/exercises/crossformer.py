"""Exercises on CrossFormer: the padding of cross-scale embedding, long-distance groups, the key mask, the position bias."""

import torch
import torch.nn.functional as F
from einops import rearrange

from vtlib.multiscale.crossformer import NEG_INF, group_lda, group_sda
from vtlib.nn import pad_to_multiple, relative_index
from vtlib.teach.exercises import Wrong, check, expect, untouched


# ------------------------------------------------------------------------------------------------- 1: padding of the kernels
def embed(images, weights, stride):
    maps = []
    for weight in weights:
        padding = (weight.shape[-1] - stride) // 2
        maps.append(F.conv2d(images, weight, stride=stride, padding=padding))
    return torch.cat(maps, dim=1)


def _padded(images, weights, stride, padding):
    return torch.cat([F.conv2d(images, weight, stride=stride, padding=padding(weight.shape[-1])) for weight in weights], dim=1)


def _one_side(images, weights, stride):
    return torch.cat([F.conv2d(F.pad(images, (w.shape[-1] - stride, 0) * 2), w, stride=stride) for w in weights], dim=1)


@check("crossformer.cel_padding", reference=embed)
def _(fn):
    images = torch.randn(2, 3, 32, 48)
    kernels = [torch.randn(d, 3, k, k) / k for k, d in ((4, 4), (8, 2), (16, 1), (32, 1))]
    for weights in [[w] for w in kernels] + [kernels]:                           # each kernel alone first: its own grid, its own message
        sizes = ", ".join(str(w.shape[-1]) for w in weights)
        mistakes = {f"{message} (kernel {sizes})": lambda pad=pad: _padded(images, weights, 4, pad) for message, pad in {
            "k - stride is the surplus of both sides together; each side gets half of it": lambda k: k - 4,
            "k // 2 keeps the grid of a kernel with stride 1; here one row and one column too many come out": lambda k: k // 2,
            "(k - 1) // 2 is the padding of odd kernels: the grid fits, but the kernel's centre is not the centre of its 4 x 4 patch":
                lambda k: (k - 1) // 2,
            "no padding: a kernel larger than the stride loses rows and columns at the border": lambda k: 0,
        }.items() if len(weights) == 1}
        if len(weights) == 1:
            mistakes[f"all of the surplus went to the top and left, so the kernel looks up and left of its patch (kernel {sizes})"] = (
                lambda: _one_side(images, weights, 4))
        expect(fn(images, weights, 4), embed(images, weights, 4), what=f"token map of kernel {sizes}", mistakes=mistakes, atol=1e-4)
    for k in (2, 4, 6):
        more = torch.randn(1, 3, 12, 12), [torch.randn(2, 3, k, k)]
        expect(fn(*more, 2), embed(*more, 2), what=f"token map of kernel {k} with stride 2", atol=1e-4,
               mistakes={"the stride 4 is written into the padding; use the argument `stride`":
                         lambda: _padded(*more, 2, lambda k: max(0, (k - 4) // 2))})


# --------------------------------------------------------------------------------------------------- 2: long-distance groups
def _lda(x, g, i, pattern):
    return rearrange(x, pattern, g=g, f=g, i=i, j=i)


_ADJACENT = "these are groups of adjacent tokens (SDA); members of an LDA group stand `interval` rows or columns apart"
_PIECES = "the axes of group and interval are swapped: your groups hold the I x I tokens of one cell, not G x G tokens spaced I apart"
_COLUMNS = "the tokens inside a group run column by column; rows come first"
_NUMBERING = "the groups are right but not their order: regions first (row by row), then the remainders modulo I"
_REGIONS = "the whole map was sampled at once; a map larger than G * I is cut into regions of (G I) x (G I), and each is sampled by itself"
_OUTER = "your groups hold I x I tokens spaced G apart; it should be G x G tokens spaced I apart"


@check("crossformer.lda_groups", reference=group_lda)
def _(fn):
    def numbered(height, width):
        return torch.arange(height * width).reshape(1, height, width, 1)

    cases = {"6 x 6 map, G=3, I=2": (numbered(6, 6), 3, 2), "6 x 6 map, G=2, I=3": (numbered(6, 6), 2, 3),
             "12 x 18 map, G=3, I=2": (numbered(12, 18), 3, 2), "batch of 2 with 5 channels": (torch.randn(2, 12, 6, 5), 3, 2)}
    for what, (x, g, i) in cases.items():
        wrong = {
            _ADJACENT: lambda: group_sda(x, g),
            _PIECES: lambda: _lda(x, g, i, "b (r g i) (s f j) c -> b (r s g f) (i j) c"),
            _OUTER: lambda: _lda(x, g, i, "b (r i g) (s j f) c -> b (r s g f) (i j) c"),
            _ADJACENT + " ": lambda: _lda(x, g, i, "b (r i g) (s j f) c -> b (r s i j) (g f) c"),
            _COLUMNS: lambda: _lda(x, g, i, "b (r g i) (s f j) c -> b (r s i j) (f g) c"),
            _REGIONS: lambda: rearrange(x, "b (g i) (f j) c -> b (i j) (g f) c", g=g, f=g),
            _REGIONS + " ": lambda: rearrange(x, "b (g i) (f j) c -> b (i j) (g f) c", i=i, j=i),
            _NUMBERING: lambda: _lda(x, g, i, "b (r g i) (s f j) c -> b (i j r s) (g f) c"),
            _NUMBERING + " ": lambda: _lda(x, g, i, "b (r g i) (s f j) c -> b (r s j i) (g f) c"),
            _NUMBERING + "  ": lambda: _lda(x, g, i, "b (r g i) (s f j) c -> b (r i s j) (g f) c"),
        }
        with untouched(x):
            got = fn(x, g, i)
        expect(got, group_lda(x, g, i), what=f"groups ({what})", mistakes=wrong)


# ------------------------------------------------------------------------------------------------------------ 3: the key mask
def key_mask(x, multiple, group):
    real = pad_to_multiple(torch.ones_like(x[:1, :, :, :1]), multiple)[0]        # 1 h w 1, zeros where it is padding
    return (rearrange(group(real), "1 n k 1 -> n 1 k") - 1) * -NEG_INF


def _mask(x, multiple, group, sides=lambda down, right: (0, right, 0, down)):
    down, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    real = F.pad(torch.ones_like(x[:1, :, :, 0]), sides(down, right))[..., None]
    return (rearrange(group(real), "1 n k 1 -> n 1 k") - 1) * -NEG_INF


def _before(x, multiple, keys):
    """The mask cut into rows of `keys` slots without grouping."""
    real = pad_to_multiple(torch.ones_like(x[:1, :, :, :1]), multiple)[0]
    return (real.reshape(-1, 1, keys) - 1) * -NEG_INF


@check("crossformer.key_mask", reference=key_mask)
def _(fn):
    def sda(t):
        return group_sda(t, 3)

    def lda(t):
        return group_lda(t, 3, 2)

    cases = {"5 x 5 map, SDA with G=3": (5, 5, 3, sda), "5 x 7 map, SDA with G=3": (5, 7, 3, sda), "5 x 7 map, LDA with G=3, I=2": (5, 7, 6, lda),
             "6 x 6 map, nothing to pad": (6, 6, 3, sda)}
    for what, (h, w, multiple, group) in cases.items():
        x = torch.randn(2, h, w, 4)
        want = key_mask(x, multiple, group)
        got = fn(x, multiple, group)
        if isinstance(got, torch.Tensor) and got.shape == want.shape and bool(torch.isinf(got).any()):
            raise Wrong(f"mask ({what}): -inf instead of -1e6\n  likely cause: a group made of nothing but padding then has a softmax over "
                        "-inf only, which is NaN; with a finite -1e6 it is harmless and cropped later")
        expect(got, want, what=f"mask ({what})", mistakes={
            "the queries are masked, not the keys: the last axis of the logits (n, queries, keys) is the one to close, so the mask is (n, 1, keys)":
                want.transpose(1, 2),
            "the mask is upside down: real tokens get 0, padded ones -1e6": NEG_INF - want,
            "the mask is cut into groups by reshape; it has to pass through `group`, like the tokens": lambda: _before(x, multiple, want.shape[-1]),
            "the padding stands at the top and left; tokens are padded at the bottom and right":
                lambda: _mask(x, multiple, group, lambda down, right: (right, 0, down, 0)),
            "this is the map of padding itself (ones and zeros); what is added to the logits must be -1e6 where it is padding": want / NEG_INF,
            "this is the map of real tokens (ones and zeros); the mask is added to the logits: 0 where it is real, -1e6 where it is padding":
                1 - want / NEG_INF,
            "one row per image of the batch: the mask is the same for all images, take one": want[None].expand(2, -1, -1, -1),
        })


# ------------------------------------------------------------------------------------------ 4: from a table to the bias of a head
def bias(table, group_size):
    return rearrange(table[relative_index(group_size, table.device)], "q k h -> h q k")


def _bias(table, g, index):
    """The bias when a pair reads row index(dy, dx) of the table, both offsets query minus key."""
    at = torch.cartesian_prod(torch.arange(g), torch.arange(g))
    dy, dx = (at[:, None] - at[None]).unbind(-1)
    return rearrange(table[index(dy, dx)], "q k h -> h q k")


@check("crossformer.dpb_bias", reference=bias)
def _(fn):
    for g, heads in ((2, 3), (3, 2), (5, 1)):
        table, m, n = torch.randn((2 * g - 1) ** 2, heads), g - 1, 2 * g - 1
        want = bias(table, g)
        with untouched(table):
            got = fn(table, g)
        expect(got, want, what=f"the bias for G={g}", mistakes={
            "the sign of the offset: this is key minus query; it is query minus key": want.transpose(1, 2),
            "dy and dx are swapped: dx is the outer one in your rows; dy is": lambda: _bias(table, g, lambda dy, dx: (dx + m) * n + dy + m),
            "dy and dx are swapped, and the sign of the offset too": lambda: _bias(table, g, lambda dy, dx: (m - dx) * n + m - dy),
            "only dx has the wrong sign; both are query minus key": lambda: _bias(table, g, lambda dy, dx: (dy + m) * n + m - dx),
            "only dy has the wrong sign; both are query minus key": lambda: _bias(table, g, lambda dy, dx: (m - dy) * n + dx + m),
            "the offsets are not shifted: they start at 1 - G, and a negative index counts from the end of the table":
                lambda: _bias(table, g, lambda dy, dx: dy * n + dx),
            "a step of dy skips 2G - 1 rows of the table, not G": lambda: _bias(table, g, lambda dy, dx: (dy + m) * g + dx + m),
            "a step of dy skips 2G - 1 rows of the table, not 2G": lambda: _bias(table, g, lambda dy, dx: ((dy + m) * (n + 1) + dx + m) % n**2),
            "offsets without a sign: left and right, up and down would get the same bias":
                lambda: _bias(table, g, lambda dy, dx: (dy.abs() + m) * n + dx.abs() + m),
            "the heads come last; they come first: (heads, queries, keys)": want.permute(1, 2, 0),
        })
    expect(fn(torch.arange(9.0)[:, None].double(), 2).dtype, torch.float64, what="the dtype of the bias for a table of doubles")
