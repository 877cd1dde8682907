"""Plausible wrong answers to the exercises of fastervlm.py, with what the check must say."""

def cls(line):
    return f'''
def keep_by_cls(attention, keep):
    row = attention[:, :, 0]
    {line}
'''

WRONG = {
    "fastervlm.keep_by_cls": [
        ("score order", cls("return row[:, :, 1:].mean(dim=1).topk(keep, dim=1).indices"), "sort them"),
        ("cls may win", cls("return row.mean(dim=1).topk(keep, dim=1).indices.sort(dim=1).values"), "cut key 0 away"),
        ("off by one", cls("return row[:, :, 1:].mean(dim=1).topk(keep, dim=1).indices.sort(dim=1).values + 1"), "off by one"),
        ("max over heads", cls("return row[:, :, 1:].amax(dim=1).topk(keep, dim=1).indices.sort(dim=1).values"), "max over heads"),
        ("normalised again", cls("row = row[:, :, 1:] / row[:, :, 1:].sum(-1, keepdim=True)\n    return row.mean(dim=1).topk(keep, dim=1).indices.sort(dim=1).values"), "normalised again"),
        ("column", cls("return attention[:, :, 1:, 0].mean(dim=1).topk(keep, dim=1).indices.sort(dim=1).values"), "that is the column"),
        ("lowest", cls("return row[:, :, 1:].mean(dim=1).topk(keep, dim=1, largest=False).indices.sort(dim=1).values"), "lowest scores"),
    ],
}
