"""Plausible wrong answers to the exercises of holov.py, with what the check must say."""

def quota(line):
    return f'''
def quotas(weight, keep):
    quota = (weight * keep).floor().long()
    rest = keep - quota.sum(dim=1, keepdim=True)
    rank = weight.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    {line}
'''

WRONG = {
    "holov.quotas": [
        ("largest remainder", quota("rank = (weight * keep - quota).argsort(dim=1, descending=True, stable=True).argsort(dim=1)\n    return quota + (rank < rest)"), "largest WEIGHT"),
        ("all to one", quota("return quota + (rank == 0) * rest"), "one each"),
        ("no rest", quota("return quota"), "rest is missing"),
        ("rounded", quota("return (weight * keep).round().long()"), "rounded"),
        ("rounded up", quota("return (weight * keep).ceil().long()"), "rounded up"),
        ("smallest", quota("rank = weight.argsort(dim=1, stable=True).argsort(dim=1)\n    return quota + (rank < rest)"), "SMALLEST"),
        ("ties anyhow", quota("rank = weight.flip(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).flip(1)\n    return quota + (rank < rest)"), "ties went elsewhere"),
        ("sorted once", quota("return quota + (weight.argsort(dim=1, descending=True, stable=True) < rest)"), "sort twice"),
    ],
}
