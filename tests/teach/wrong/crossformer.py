"""Plausible wrong answers to the CrossFormer exercises of notebook 01."""

from tests.teach.slips import slips

_CEL = '''
def cross_scale_embed(images, weights, stride):
    maps = []
    for weight in weights:
        k = weight.shape[-1]
        padding = (k - stride) // 2
        maps.append(F.conv2d(images, weight, stride=stride, padding=padding))
    return torch.cat(maps, dim=1)
'''

_CEL_TOP_AND_LEFT = '''
def cross_scale_embed(images, weights, stride):
    maps = []
    for weight in weights:
        rest = weight.shape[-1] - stride
        maps.append(F.conv2d(F.pad(images, (rest, 0, rest, 0)), weight, stride=stride))
    return torch.cat(maps, dim=1)
'''


def _lda(pattern, sizes="g=g, f=g, i=i, j=i"):
    return f'''
def lda_groups(x, group_size, interval):
    g, i = group_size, interval
    return rearrange(x, "{pattern}", {sizes})
'''


_LDA_SLICES = '''
def lda_groups(x, group_size, interval):
    g, i = group_size, interval
    groups = [x[:, a::i, b::i].flatten(1, 2) for a in range(i) for b in range(i)]
    return torch.stack(groups, dim=1)
'''

_MASK = '''
def key_mask(x, multiple, group):
    down, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    real = torch.ones_like(x[:1, :, :, :1])
    real = F.pad(real, (0, 0, 0, right, 0, down))
    real = rearrange(group(real), "1 n k 1 -> n 1 k")
    return (1 - real) * -1e6
'''
_PADDED = "    real = F.pad(real, (0, 0, 0, right, 0, down))\n"
_GROUPED = '    real = rearrange(group(real), "1 n k 1 -> n 1 k")\n'
_RESHAPED = '''    n, k = group(real).shape[1:3]
    real = real.reshape(n, 1, k)
'''

_BIAS = '''
def bias_of_pairs(table, group_size):
    g = group_size
    at = torch.cartesian_prod(torch.arange(g), torch.arange(g))
    dy, dx = (at[:, None] - at[None]).unbind(-1)
    return rearrange(table[(dy + g - 1) * (2 * g - 1) + dx + g - 1], "q k h -> h q k")
'''
_ROW = "(dy + g - 1) * (2 * g - 1) + dx + g - 1"

WRONG = {
    "crossformer.cel_padding": [
        *slips(
            _CEL,
            (
                "padding of stride 1",
                "(k - stride) // 2",
                "k // 2",
                "one row and one column too many",
            ),
            (
                "padding of odd kernels",
                "(k - stride) // 2",
                "(k - 1) // 2",
                "kernel's centre is not the centre",
            ),
            ("both sides get all", "(k - stride) // 2", "k - stride", "each side gets half"),
            ("none", "(k - stride) // 2", "0", "loses rows and columns"),
            (
                "stride 4 written in",
                "(k - stride) // 2",
                "max(0, (k - 4) // 2)",
                "use the argument `stride`",
            ),
        ),
        ("top and left only", _CEL_TOP_AND_LEFT, "looks up and left"),
    ],
    "crossformer.lda_groups": [
        (
            "no regions",
            _lda("b (g i) (f j) c -> b (i j) (g f) c", "g=g, f=g"),
            "cut into regions",
        ),
        ("no regions, by slices", _LDA_SLICES, "cut into regions"),
        (
            "axes of G and I swapped",
            _lda("b (r g i) (s f j) c -> b (r s g f) (i j) c"),
            "axes of group and interval are swapped",
        ),
        (
            "adjacent tokens",
            _lda("b (r g) (s f) c -> b (r s) (g f) c", "g=g, f=g"),
            "groups of adjacent tokens",
        ),
        (
            "interval outside",
            _lda("b (r i g) (s j f) c -> b (r s i j) (g f) c"),
            "groups of adjacent tokens",
        ),
        (
            "columns first",
            _lda("b (r g i) (s f j) c -> b (r s i j) (f g) c"),
            "column by column",
        ),
        (
            "regions last",
            _lda("b (r g i) (s f j) c -> b (i j r s) (g f) c"),
            "not their order",
        ),
    ],
    "crossformer.key_mask": slips(
        _MASK,
        ("queries masked", _GROUPED, "    real = group(real)[0]\n", "queries are masked"),
        ("before grouping", _GROUPED, _RESHAPED, "pass through `group`"),
        ("top and left", "0, right, 0, down)", "right, 0, down, 0)", "top and left"),
        ("upside down", "(1 - real)", "real", "upside down"),
        (
            "infinity",
            "(1 - real) * -1e6",
            'torch.zeros_like(real).masked_fill(real == 0, float("-inf"))',
            "NaN",
        ),
        ("ones and zeros", "(1 - real) * -1e6", "real", "added to the logits"),
        ("no padding", _PADDED, "", "not a multiple"),
    ),
    "crossformer.dpb_bias": slips(
        _BIAS,
        (
            "key minus query",
            _ROW,
            "(g - 1 - dy) * (2 * g - 1) + g - 1 - dx",
            "key minus query",
        ),
        ("keys first", "h q k", "h k q", "key minus query"),
        ("dx outer", _ROW, "(dx + g - 1) * (2 * g - 1) + dy + g - 1", "dy and dx are swapped"),
        ("one sign", "+ dx + g - 1", "+ g - 1 - dx", "only dx has the wrong sign"),
        ("not shifted", _ROW, "dy * (2 * g - 1) + dx", "not shifted"),
        ("stride G", "* (2 * g - 1)", "* g", "skips 2G - 1 rows"),
        (
            "no sign",
            _ROW,
            "(dy.abs() + g - 1) * (2 * g - 1) + dx.abs() + g - 1",
            "without a sign",
        ),
        ("heads last", "h q k", "q k h", "heads come last"),
    ),
}
