"""Plausible wrong answers to the exercises of holov.py, with what the check must say."""

from tests.teach.slips import changed, slips

QUOTAS = '''
def quotas(weight, keep):
    quota = (weight * keep).floor().long()
    rest = keep - quota.sum(dim=1, keepdim=True)
    rank = weight.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return quota + (rank < rest)
'''
RANK = "weight.argsort(dim=1, descending=True, stable=True).argsort(dim=1)"
BACKWARDS = "weight.flip(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).flip(1)"

WRONG = {
    "holov.quotas": slips(
        QUOTAS,
        (
            "largest remainder",
            RANK,
            changed(RANK, "weight", "(weight * keep - quota)"),
            "largest WEIGHT",
        ),
        ("all to one", "(rank < rest)", "(rank == 0) * rest", "one each"),
        ("no rest", " + (rank < rest)", "", "rest is missing"),
        ("rounded", "quota + (rank < rest)", "(weight * keep).round().long()", "rounded"),
        ("rounded up", "quota + (rank < rest)", "(weight * keep).ceil().long()", "rounded up"),
        ("smallest", "descending=True, ", "", "SMALLEST"),
        ("ties anyhow", RANK, BACKWARDS, "ties went elsewhere"),
        ("sorted once", RANK, RANK.removesuffix(".argsort(dim=1)"), "sort twice"),
    ),
}
