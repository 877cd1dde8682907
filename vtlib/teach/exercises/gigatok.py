"""Exercises on GigaTok: the first queries of the encoder, the entropy loss."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import check, expect
from vtlib.tokenizers.gigatok_qformer import block_counts
from vtlib.tokenizers.gigatok_qformer import pool_queries as pooled

# -------------------------------------------------------------------------------- first queries


def pool_queries(features, num_queries):
    """features (C, h, w), num_queries a power of two -> means over ever finer blocks (N, C)."""
    return pooled(features[None], num_queries)[0]


def _means(features, counts, order="rows", pool=F.avg_pool2d):
    levels = []
    for rows, columns in counts:
        size = features.shape[1] // rows, features.shape[2] // columns
        means = pool(features[None], size)[0]
        means = means.transpose(1, 2) if order == "columns" else means
        levels.append(means.flatten(1).T)
    return torch.cat(levels)


def _pool_causes(features, num_queries):
    counts = block_counts(num_queries)
    swapped = block_counts(num_queries, columns_first=False)
    fine, again = counts[::-1], counts[1:] + counts[-1:]

    return {
        "rows were halved first: columns double first, so level 2 has 1 row and 2 columns":
            lambda: _means(features, swapped),
        "blocks are listed column by column: within a level they come row by row":
            lambda: _means(features, counts, "columns"),
        "the finest level comes first: coarse to fine": lambda: _means(features, fine),
        "the mean of all is there once only: the first two levels both have one block":
            lambda: _means(features, counts[1:]),
        "the mean of all is there once, and the finest level twice":
            lambda: _means(features, again),
        "these are largest values: means are wanted": lambda: torch.cat([
            _means(features, counts[:1]), _means(features, counts[1:], pool=F.max_pool2d)
        ]),
        "channels and tokens are swapped: (N, C) is wanted": lambda: _means(features, counts).T,
    }


@check("gigatok.pool_queries", reference=pool_queries)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for shape, num_queries in (((3, 4, 4), 8), ((2, 8, 4), 16), ((5, 4, 8), 4)):
        features = torch.randn(shape, generator=generator)
        want, causes = pool_queries(features, num_queries), _pool_causes(features, num_queries)
        what = f"{num_queries} queries of a map {shape}"
        expect(fn(features, num_queries), want, what=what, mistakes=causes)


# --------------------------------------------------------------------------------- entropy loss


def entropy_loss(chances):
    """chances (n, K), rows of sum 1 -> mean entropy of a row - entropy of the mean row."""
    return _entropies(chances)[0] - _entropies(chances)[1]


def _entropy(p):
    return -(p * (p + 1e-12).log()).sum(dim=-1)


def _entropies(chances):
    return _entropy(chances).mean(), _entropy(chances.mean(dim=0))


@check("gigatok.entropy_loss", reference=entropy_loss)
def _(fn):
    generator = torch.Generator().manual_seed(1)
    for count, size in ((5, 3), (2, 6)):
        chances = torch.randn(count, size, generator=generator).mul(2).softmax(dim=1)
        each, whole = _entropies(chances)
        along = -(chances * chances.log()).sum(dim=0).mean()
        causes = {
            "the sign is turned: rows should be sure (low), their mean even (high)": whole - each,
            "only the rows' entropy: that of their mean is missing": each,
            "only the entropy of the mean, and positive: the rows' is missing": whole,
            "only the entropy of the mean: the rows' is missing": -whole,
            "both are added: the second is subtracted": each + whole,
            "the sum over rows: their mean": count * each - whole,
            "entropies are taken over the tokens: the last axis is that of the codes":
                along - whole,
            "the entropy lacks its minus sign": -each - whole,
            "the logarithm is one to base 2: natural ones, as everywhere in the course":
                (each - whole) / torch.tensor(2.0).log(),
        }
        expect(fn(chances), each - whole, what="the loss", mistakes=causes)
