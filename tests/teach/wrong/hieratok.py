"""Plausible wrong answers to the exercise of hieratok.py, with what the check must say."""

from tests.teach.slips import slips

MASK = '''
import torch
def scale_mask(sides):
    counts = torch.tensor([side * side for side in sides])
    scale = torch.arange(len(sides)).repeat_interleave(counts)
    return scale[:, None] >= scale[None]
'''
RULE = "scale[:, None] >= scale[None]"

WRONG = {
    "hieratok.scale_mask": slips(
        MASK,
        ("turned", RULE, "scale[:, None] <= scale[None]", "swapped"),
        ("strict", RULE, "scale[:, None] > scale[None]", "its own scale"),
        ("own", RULE, "scale[:, None] == scale[None]", "its own scale only"),
        ("hidden", RULE, "scale[:, None] < scale[None]", "may NOT look"),
        ("by token", RULE, "torch.ones(len(scale), len(scale)).tril().bool()", "token by token"),
        ("sides", "side * side", "side", "s * s tokens"),
    ),
}
