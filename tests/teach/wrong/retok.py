"""Plausible wrong answers to the exercise of retok.py, with what the check must say."""

from tests.teach.slips import slips

SURVIVAL = '''
import torch
def survival(num_tokens, num_redundant, min_tokens):
    columns = num_tokens + num_redundant
    token = torch.arange(1, columns + 1)
    chance = (columns - token + 1) / (columns - min_tokens + 1)
    return chance.clamp(max=1)
'''

WRONG = {
    "retok.survival": slips(
        SURVIVAL,
        ("one too few", "(columns - token + 1)", "(columns - token)", "one length too few"),
        ("one end", "(columns - min_tokens + 1)", "(columns - min_tokens)", "both ends"),
        ("from 1", "(columns - min_tokens + 1)", "columns", "not at 1"),
        ("above 1", "chance.clamp(max=1)", "chance", "a probability above 1"),
        ("real ones", "chance.clamp(max=1)", "chance.clamp(max=1)[:num_tokens]",
         "redundant tokens are left out"),
        ("no padding", "num_tokens + num_redundant", "num_tokens", "M is left out"),
        ("turned", "chance.clamp(max=1)", "chance.clamp(max=1).flip(0)", "the order is turned"),
    ),
}
