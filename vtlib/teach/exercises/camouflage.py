"""Exercise on camouflaged instances: textual-visual aggregation."""

import torch

from vtlib.teach.exercises import check, expect


def aggregate(v, texts):
    """v (C,), texts (K, C) -> what each text has in common with v and not all texts have, (K, C),
    and its sums over channels (K,)."""
    return _aggregate(v, texts)


def _aggregate(v, texts, scale=2.0, weigh="mean", mean=0, late=False):
    """`aggregate`, or with one thing done differently."""
    share = (scale * texts @ v).softmax(dim=0)
    weights = {"mean": share / share.mean(), "share": share, "none": torch.ones_like(share)}[weigh]
    products = v * texts
    if late:
        products = (products - products.mean(dim=0)) * weights[:, None]
    else:
        products = products * weights[:, None]
        if mean is not None:
            products = products - products.mean(dim=mean, keepdim=True)
    return products, products.sum(dim=1)


def _causes(v, texts):
    def other(part, **change):
        return lambda: _aggregate(v, texts, **change)[part]

    ways = {
        "nothing is subtracted: take away the mean over texts": dict(mean=None),
        "the mean runs over channels: it runs over texts, dim=0": dict(mean=1),
        "the mean is taken before the weights: weights first, then the mean": dict(late=True),
        "the likeness in the softmax is multiplied by 2": dict(scale=1.0),
        "the weights are p / mean of p, so that they average 1": dict(weigh="share"),
        "the texts are not weighed": dict(weigh="none"),
    }
    return ways, other


@check("camouflage.aggregate", reference=aggregate)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for count, channels in ((3, 4), (5, 6)):
        v, texts = (torch.randn(*shape, generator=generator, dtype=torch.float64)
                    for shape in ((channels,), (count, channels)))
        v, texts = v / v.norm(), texts / texts.norm(dim=1, keepdim=True)
        ways, other = _causes(v, texts)
        got = fn(v.clone(), texts.clone())
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            expect(got, aggregate(v, texts), what="the products and their sums")
        for part, what in ((0, "the products (K, C)"), (1, "the sums over channels (K,)")):
            causes = {why: other(part, **change) for why, change in ways.items()}
            expect(got[part], aggregate(v, texts)[part], what=what, mistakes=causes)
