"""Plausible wrong answers to the exercises on CrossViT, with what the check must say."""

from tests.teach.slips import changed, slips

_QUERY = '''
def cls_attention(z, wq, wk, wv):
    k, v = wk(z), wv(z)
    q = wq(z[:, :1])
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
def exchange(xs, f, visit, g):
    out = []
    for i in (0, 1):
        own, other = xs[i], xs[1 - i]
        c = f[i](own[:, :1])
        y = visit[i](c, other[:, 1:])
        out.append(torch.cat([g[i](y), own[:, 1:]], dim=1))
    return out
'''


_IN_PLACE = '''
def exchange(xs, f, visit, g):
    for i in (0, 1):
        xs[i][:, :1] = g[i](visit[i](f[i](xs[i][:, :1]), xs[1 - i][:, 1:]))
    return xs
'''

_MERGED = 'rearrange(weights @ v, "b h n p -> b n (h p)")'
_ONE_WAY = changed(_CROSS, "b n (h p) ->", "b n (p h) ->")

WRONG = {
    "crossvit.cls_query": slips(
        _QUERY,
        ("all tokens ask", "wq(z[:, :1])", "wq(z)", "every token asks"),
        (
            "mean token asks",
            "wq(z[:, :1])",
            "wq(z.mean(dim=1, keepdim=True))",
            "the mean of all tokens asks",
        ),
        (
            "mean of queries",
            "wq(z[:, :1])",
            "wq(z).mean(dim=1, keepdim=True)",
            "mean of all tokens asks",
        ),
        ("axis lost", "wq(z[:, :1])", "wq(z[:, 0])", "loses the token axis"),
        ("not projected", "wq(z[:, :1])", "z[:, :1]", "not projected"),
        ("first patch", "wq(z[:, :1])", "wq(z[:, 1:2])", "first patch asks"),
        ("patches", "wq(z[:, :1])", "wq(z[:, 1:])", "all patches ask"),
    ),
    "crossvit.cross_attention": [
        *slips(
            _CROSS,
            ("no residual", "return c + ", "return ", "residual is missing"),
            (
                "residual after the norm",
                "return c + ",
                "return n[:, :1] + ",
                "residual is the normalised c",
            ),
            (
                "keys without own cls",
                'w["wk"](n), w["wv"](n)',
                'w["wk"](n[:, 1:]), w["wv"](n[:, 1:])',
                "leave out the own",
            ),
            ("scale of the width", "* q.shape[-1]", "* c.shape[-1]", "scaled by the width D"),
            ("no scale", " * q.shape[-1] ** -0.5", "", "the scale is missing"),
            (
                "softmax over queries",
                "softmax(dim=-1)",
                "softmax(dim=-2)",
                "softmax over the query axis",
            ),
            ("softmax over heads", "softmax(dim=-1)", "softmax(dim=1)", "softmax over the heads"),
            ("no norm", 'w["norm"](z)', "z", "LN is missing"),
            ("raw query", 'w["wq"](n[:, :1])', 'w["wq"](c)', "made from c itself"),
            ("all queries", 'w["wq"](n[:, :1])', 'w["wq"](n)', "every token asks"),
            (
                "mean query",
                'w["wq"](n[:, :1])',
                'w["wq"](n.mean(dim=1, keepdim=True))',
                "mean of all tokens asks",
            ),
            (
                "no projection",
                f'w["proj"]({_MERGED})',
                _MERGED,
                "projection w['proj'] is missing",
            ),
            ("split interleaved", "b n (h p) ->", "b n (p h) ->", "heads are interleaved"),
            ("merged interleaved", 'b n (h p)"))', 'b n (p h)"))', "put back interleaved"),
            ("module called", 'w["norm"](z)', "w(z)", "pick one by its name"),
            ("one head", "h=heads", "h=1", "one head of width D"),
        ),
        (
            "interleaved heads",
            changed(_ONE_WAY, 'b n (h p)"))', 'b n (p h)"))'),
            "heads are interleaved",
        ),
    ],
    "crossvit.exchange": [
        *slips(
            _EXCHANGE,
            (
                "outer residual",
                "g[i](y), own",
                "own[:, :1] + g[i](y), own",
                "residual around the whole exchange",
            ),
            ("residual outside g", "g[i](y)", "c + g[i](y)", "added once more after g"),
            ("residual twice", "g[i](y)", "g[i](c + y)", "residual is there twice"),
            ("unprojected", "f[i](own[:, :1])", "own[:, :1]", "not projected"),
            ("not projected back", "g[i](y)", "y", "not projected back"),
            ("own patches", "(c, other[:, 1:])", "(c, own[:, 1:])", "visits its own patches"),
            (
                "other's cls too",
                "(c, other[:, 1:])",
                "(c, other)",
                "is among the visited tokens",
            ),
            (
                "patches updated",
                "own[:, 1:]]",
                "g[i](f[i](own[:, 1:]))]",
                "patch tokens went through",
            ),
            (
                "patches swapped",
                "own[:, 1:]]",
                "other[:, 1:]]",
                "patch tokens have changed branches",
            ),
            (
                "cls alone",
                "torch.cat([g[i](y), own[:, 1:]], dim=1)",
                "g[i](y)",
                "only the [CLS] came back",
            ),
            ("wrong modules", "f[i](own", "f[1 - i](own", "belongs to branch i's own"),
            ("axis lost", "own[:, :1]", "own[:, 0]", "loses the token axis"),
        ),
        ("in place", _IN_PLACE, "in place"),
    ],
}
