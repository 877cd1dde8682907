"""Plausible wrong answers to the exercises on CrossViT: {name: [(short name, source, fragment of the message)]}."""

_QUERY = '''
def cls_attention(z, wq, wk, wv):
    k, v = wk(z), wv(z)
    q = {}
    weights = (q @ k.transpose(1, 2) * z.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ v
'''

_CROSS = '''
def cross_attention(c, patches, w, heads):
    z = torch.cat([c, patches], dim=1)
    n = w["norm"](z)
    q, k, v = w["wq"](n[:, :1]), w["wk"](n), w["wv"](n)
    q, k, v = (rearrange(t, "b n (h p) -> b h n p", h=heads) for t in (q, k, v))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return c + w["proj"](rearrange(weights @ v, "b h n p -> b n (h p)"))
'''

_EXCHANGE = '''
def exchange(xs, f, mca, g):
    out = []
    for i in (0, 1):
        own, other = xs[i], xs[1 - i]
        c = f[i](own[:, :1])
        y = mca[i](c, other[:, 1:])
        out.append(torch.cat([g[i](y), own[:, 1:]], dim=1))
    return out
'''


def _changed(source, old, new):
    assert source.count(old) == 1, f"{old!r} is not in the source once"
    return source.replace(old, new)


WRONG = {
    "crossvit.cls_query": [
        ("all tokens ask", _QUERY.format("wq(z)"), "every token asks"),
        ("mean token asks", _QUERY.format("wq(z.mean(dim=1, keepdim=True))"), "the mean of all tokens asks"),
        ("mean of queries", _QUERY.format("wq(z).mean(dim=1, keepdim=True)"), "mean of all tokens asks"),
        ("axis lost", _QUERY.format("wq(z[:, 0])"), "loses the token axis"),
        ("not projected", _QUERY.format("z[:, :1]"), "not projected"),
        ("first patch", _QUERY.format("wq(z[:, 1:2])"), "first patch asks"),
        ("patches", _QUERY.format("wq(z[:, 1:])"), "all patches ask"),
    ],
    "crossvit.cross_attention": [
        ("no residual", _changed(_CROSS, "return c + ", "return "), "residual is missing"),
        ("residual after the norm", _changed(_CROSS, "return c + ", "return n[:, :1] + "), "residual is the normalised c"),
        ("keys without own cls", _changed(_CROSS, 'w["wk"](n), w["wv"](n)', 'w["wk"](n[:, 1:]), w["wv"](n[:, 1:])'), "leave out the own"),
        ("scale of the width", _changed(_CROSS, "q.shape[-1] ** -0.5", "c.shape[-1] ** -0.5"), "scaled by the width D"),
        ("no scale", _changed(_CROSS, " * q.shape[-1] ** -0.5", ""), "the scale is missing"),
        ("softmax over queries", _changed(_CROSS, "softmax(dim=-1)", "softmax(dim=-2)"), "softmax over the query axis"),
        ("softmax over heads", _changed(_CROSS, "softmax(dim=-1)", "softmax(dim=1)"), "softmax over the heads"),
        ("no norm", _changed(_CROSS, 'w["norm"](z)', "z"), "LN is missing"),
        ("raw query", _changed(_CROSS, 'w["wq"](n[:, :1])', 'w["wq"](c)'), "made from c itself"),
        ("all queries", _changed(_CROSS, 'w["wq"](n[:, :1])', 'w["wq"](n)'), "every token asks"),
        ("mean query", _changed(_CROSS, 'w["wq"](n[:, :1])', 'w["wq"](n.mean(dim=1, keepdim=True))'), "mean of all tokens asks"),
        ("no projection", _changed(_CROSS, 'w["proj"](rearrange(weights @ v, "b h n p -> b n (h p)"))',
                                   'rearrange(weights @ v, "b h n p -> b n (h p)")'), "projection w['proj'] is missing"),
        ("interleaved heads", _CROSS.replace("(h p)", "(p h)"), "heads are interleaved"),
        (
            "split interleaved",
            _changed(_CROSS, "b n (h p) ->", "b n (p h) ->"),
            "heads are interleaved",
        ),
        ("merged interleaved", _changed(_CROSS, "b n (h p)\"))", "b n (p h)\"))"), "put back interleaved"),
        ("module called", _changed(_CROSS, 'w["norm"](z)', "w(z)"), "pick one by its name"),
        ("one head", _changed(_CROSS, "h=heads", "h=1"), "one head of width D"),
    ],
    "crossvit.exchange": [
        ("outer residual", _changed(_EXCHANGE, "g[i](y), own", "own[:, :1] + g[i](y), own"), "residual around the whole exchange"),
        ("residual outside g", _changed(_EXCHANGE, "g[i](y), own", "c + g[i](y), own"), "added once more after g"),
        ("residual twice", _changed(_EXCHANGE, "g[i](y), own", "g[i](c + y), own"), "residual is there twice"),
        ("unprojected", _changed(_EXCHANGE, "f[i](own[:, :1])", "own[:, :1]"), "not projected"),
        ("not projected back", _changed(_EXCHANGE, "g[i](y), own", "y, own"), "not projected back"),
        ("own patches", _changed(_EXCHANGE, "mca[i](c, other[:, 1:])", "mca[i](c, own[:, 1:])"), "visits its own patches"),
        ("other's cls too", _changed(_EXCHANGE, "mca[i](c, other[:, 1:])", "mca[i](c, other)"), "is among the visited tokens"),
        ("patches updated", _changed(_EXCHANGE, "own[:, 1:]], dim=1)", "g[i](f[i](own[:, 1:]))], dim=1)"), "patch tokens went through"),
        ("patches swapped", _changed(_EXCHANGE, "own[:, 1:]], dim=1)", "other[:, 1:]], dim=1)"), "patch tokens have changed branches"),
        ("cls alone", _changed(_EXCHANGE, "torch.cat([g[i](y), own[:, 1:]], dim=1)", "g[i](y)"), "only the [CLS] came back"),
        ("wrong modules", _changed(_EXCHANGE, "f[i](own", "f[1 - i](own"), "belongs to branch i's own"),
        ("axis lost", _changed(_EXCHANGE, "f[i](own[:, :1])", "f[i](own[:, 0])"), "loses the token axis"),
        ("in place", '''
def exchange(xs, f, mca, g):
    for i in (0, 1):
        xs[i][:, :1] = g[i](mca[i](f[i](xs[i][:, :1]), xs[1 - i][:, 1:]))
    return xs
''', "in place"),
    ],
}
