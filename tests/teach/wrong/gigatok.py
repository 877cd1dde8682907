"""Plausible wrong answers to the exercises of gigatok.py, with what the check must say."""

from tests.teach.slips import slips

POOL = '''
import torch
import torch.nn.functional as F
def pool_queries(features, num_queries):
    rows, columns = 1, 1
    levels = [features.mean(dim=(1, 2))[None]]
    while sum(len(level) for level in levels) < num_queries:
        size = features.shape[1] // rows, features.shape[2] // columns
        means = F.avg_pool2d(features, size)
        levels.append(means.flatten(1).T)
        if rows == columns:
            columns = 2 * columns
        else:
            rows = 2 * rows
    return torch.cat(levels)
'''
ENTROPY = '''
import torch
def entropy(p):
    return -(p * (p + 1e-12).log()).sum(dim=-1)
def entropy_loss(chances):
    return entropy(chances).mean() - entropy(chances.mean(dim=0))
'''
LOSS = "entropy(chances).mean() - entropy(chances.mean(dim=0))"

WRONG = {
    "gigatok.pool_queries": slips(
        POOL,
        ("rows first", "columns = 2 * columns\n        else:\n            rows = 2 * rows",
         "rows = 2 * rows\n        else:\n            columns = 2 * columns",
         "columns double first"),
        ("column by column", "means.flatten(1).T", "means.transpose(1, 2).flatten(1).T",
         "row by row"),
        ("fine first", "torch.cat(levels)", "torch.cat(levels[::-1])", "coarse to fine"),
        ("largest", "F.avg_pool2d", "F.max_pool2d", "largest values"),
        ("swapped", "torch.cat(levels)", "torch.cat(levels).T", "(N, C) is wanted"),
        ("once only", "torch.cat(levels)", "torch.cat(levels[1:])", "once only"),
    ),
    "gigatok.entropy_loss": slips(
        ENTROPY,
        ("turned", LOSS, "entropy(chances.mean(dim=0)) - entropy(chances).mean()",
         "the sign is turned"),
        ("rows alone", LOSS, "entropy(chances).mean()", "their mean is missing"),
        ("mean alone", LOSS, "-entropy(chances.mean(dim=0))", "the rows' is missing"),
        ("added", LOSS, LOSS.replace(" - ", " + "), "the second is subtracted"),
        ("sum", "entropy(chances).mean()", "entropy(chances).sum()", "the sum over rows"),
        ("other axis", "entropy(chances).mean()", "entropy(chances.T).mean()", "the last axis"),
        ("base 2", ".log()", ".log2()", "base 2"),
    ),
}
