"""Plausible wrong answers to the exercises of fastervlm.py, with what the check must say."""

from tests.teach.slips import slips

BY_CLS = '''
def keep_by_cls(attention, keep):
    row = attention[:, :, 0, 1:]
    return row.mean(dim=1).topk(keep, dim=1).indices.sort(dim=1).values
'''

WRONG = {
    "fastervlm.keep_by_cls": slips(
        BY_CLS,
        ("score order", ".sort(dim=1).values", "", "sort them"),
        ("cls may win", "0, 1:]", "0]", "cut key 0 away"),
        ("off by one", ".values", ".values + 1", "off by one"),
        ("max over heads", "mean(dim=1)", "amax(dim=1)", "max over heads"),
        (
            "normalised again",
            "row.mean",
            "(row / row.sum(dim=-1, keepdim=True)).mean",
            "normalised again",
        ),
        ("column", "0, 1:]", "1:, 0]", "that is the column"),
        ("lowest", "keep, dim=1)", "keep, dim=1, largest=False)", "lowest scores"),
    ),
}
