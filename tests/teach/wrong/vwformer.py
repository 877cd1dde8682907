"""Plausible wrong answers to the exercise on copy-shift padding of notebook 08."""

from tests.teach.slips import slips

COPY = '''
import torch
def copy_shift(row, ratio, window):
    w = row.shape[-1]
    inner, outer = (ratio + 1) * window // 2, ratio * window
    left = row[..., inner:outer]
    right = row[..., w - outer : w - inner]
    return torch.cat([left, row, right], dim=-1)
'''

WRONG = {
    "vwformer.copy_shift": slips(
        COPY,
        ("zeros", "return torch", "left, right = 0 * left, 0 * right\n    return torch", "zeros"),
        ("swapped", "[left, row, right]", "[right, row, left]", "swapped"),
        ("nearest", "return torch", "s = outer - inner\n    left, right = row[..., :s], "
         "row[..., w - s:]\n    return torch", "twice"),
        ("reversed", "[left, row, right]", "[left.flip(-1), row, right.flip(-1)]", "reverse order"),
        ("wrapped", "return torch", "s = outer - inner\n    left, right = row[..., w - s:], "
         "row[..., :s]\n    return torch", "other end"),
        ("left alone", "torch.cat([left, row, right], dim=-1)", "row", "as it was"),
    ),
}
