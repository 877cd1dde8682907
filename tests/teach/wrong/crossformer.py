"""Plausible wrong answers to the CrossFormer exercises of notebook 01."""


def _cel(padding):
    return f'''
def cf_cel(images, weights, stride):
    maps = []
    for weight in weights:
        k = weight.shape[-1]
        padding = {padding}
        maps.append(F.conv2d(images, weight, stride=stride, padding=padding))
    return torch.cat(maps, dim=1)
'''


def _lda(body):
    return f'''
def cf_lda_groups(x, group_size, interval):
    g, i = group_size, interval
    {body}
'''


def _mask(body):
    return f'''
def cf_key_mask(x, multiple, group):
    down, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    real = torch.ones_like(x[:1, :, :, :1])
    {body}
'''


def _bias(index, out="h q k"):
    return f'''
def cf_bias(table, group_size):
    g = group_size
    at = torch.cartesian_prod(torch.arange(g), torch.arange(g))
    dy, dx = (at[:, None] - at[None]).unbind(-1)
    return rearrange(table[{index}], "q k h -> {out}")
'''


_ROWS = "(dy + g - 1) * (2 * g - 1) + dx + g - 1"

WRONG = {
    "crossformer.cel_padding": [
        ("padding of stride 1", _cel("k // 2"), "one row and one column too many"),
        ("padding of odd kernels", _cel("(k - 1) // 2"), "kernel's centre is not the centre"),
        ("both sides get all", _cel("k - stride"), "each side gets half"),
        ("none", _cel("0"), "loses rows and columns"),
        ("stride 4 written in", _cel("max(0, (k - 4) // 2)"), "use the argument `stride`"),
        ("top and left only", '''
def cf_cel(images, weights, stride):
    maps = []
    for weight in weights:
        rest = weight.shape[-1] - stride
        maps.append(F.conv2d(F.pad(images, (rest, 0, rest, 0)), weight, stride=stride))
    return torch.cat(maps, dim=1)
''', "looks up and left"),
    ],
    "crossformer.lda_groups": [
        ("no regions", _lda('return rearrange(x, "b (g i) (f j) c -> b (i j) (g f) c", g=g, f=g)'), "cut into regions"),
        ("no regions, by slices", _lda('return torch.stack([x[:, a::i, b::i].flatten(1, 2) for a in range(i) for b in range(i)], dim=1)'),
         "cut into regions"),
        ("axes of G and I swapped", _lda('return rearrange(x, "b (r g i) (s f j) c -> b (r s g f) (i j) c", g=g, f=g, i=i, j=i)'),
         "axes of group and interval are swapped"),
        ("adjacent tokens", _lda('return rearrange(x, "b (r g) (s f) c -> b (r s) (g f) c", g=g, f=g)'), "groups of adjacent tokens"),
        ("interval outside", _lda('return rearrange(x, "b (r i g) (s j f) c -> b (r s i j) (g f) c", g=g, f=g, i=i, j=i)'),
         "groups of adjacent tokens"),
        ("columns first", _lda('return rearrange(x, "b (r g i) (s f j) c -> b (r s i j) (f g) c", g=g, f=g, i=i, j=i)'), "column by column"),
        ("regions last", _lda('return rearrange(x, "b (r g i) (s f j) c -> b (i j r s) (g f) c", g=g, f=g, i=i, j=i)'), "not their order"),
    ],
    "crossformer.key_mask": [
        ("queries masked", _mask('real = group(F.pad(real, (0, 0, 0, right, 0, down)))[0]; return (1 - real) * -1e6'), "queries are masked"),
        ("before grouping", _mask('real = F.pad(real, (0, 0, 0, right, 0, down)); n, k = group(real).shape[1:3]; '
                                  'return (1 - real.reshape(n, 1, k)) * -1e6'), "pass through `group`"),
        ("top and left", _mask('real = F.pad(real, (0, 0, right, 0, down, 0)); return (1 - rearrange(group(real), "1 n k 1 -> n 1 k")) * -1e6'),
         "top and left"),
        ("upside down", _mask('real = F.pad(real, (0, 0, 0, right, 0, down)); return rearrange(group(real), "1 n k 1 -> n 1 k") * -1e6'),
         "upside down"),
        ("infinity", _mask('real = F.pad(real, (0, 0, 0, right, 0, down)); real = rearrange(group(real), "1 n k 1 -> n 1 k"); '
                           'return torch.zeros_like(real).masked_fill(real == 0, float("-inf"))'), "NaN"),
        ("ones and zeros", _mask('real = F.pad(real, (0, 0, 0, right, 0, down)); return rearrange(group(real), "1 n k 1 -> n 1 k")'),
         "added to the logits"),
        ("no padding", _mask('return (1 - rearrange(group(real), "1 n k 1 -> n 1 k")) * -1e6'), "not a multiple"),
    ],
    "crossformer.dpb_bias": [
        ("key minus query", _bias("(g - 1 - dy) * (2 * g - 1) + g - 1 - dx"), "key minus query"),
        ("keys first", _bias(_ROWS, "h k q"), "key minus query"),
        ("dx outer", _bias("(dx + g - 1) * (2 * g - 1) + dy + g - 1"), "dy and dx are swapped"),
        ("one sign", _bias("(dy + g - 1) * (2 * g - 1) + g - 1 - dx"), "only dx has the wrong sign"),
        ("not shifted", _bias("dy * (2 * g - 1) + dx"), "not shifted"),
        ("stride G", _bias("(dy + g - 1) * g + dx + g - 1"), "skips 2G - 1 rows"),
        ("no sign", _bias("(dy.abs() + g - 1) * (2 * g - 1) + dx.abs() + g - 1"), "without a sign"),
        ("heads last", _bias(_ROWS, "q k h"), "heads come last"),
    ],
}
