"""Plausible wrong answers to the exercise on the gate of notebook 08."""

from tests.teach.slips import slips

GATED = '''
import torch
def gated(h, answer, weight, bias):
    both = torch.cat([h, answer], dim=-1)
    gate = torch.sigmoid(both @ weight.T + bias)
    return h + gate * answer
'''

WRONG = {
    "caswit.gated": slips(
        GATED,
        ("no residual", "return h + gate", "return gate", "h is missing"),
        ("mixed", "return h + gate", "return (1 - gate) * h + gate", "stays whole"),
        ("order", "[h, answer]", "[answer, h]", "stands before h"),
        ("no bias", " + bias)", ")", "bias is missing"),
        ("tanh", "torch.sigmoid", "torch.tanh", "is a tanh"),
        ("on h", "h + gate * answer", "gate * h + answer", "weighs the answer"),
        ("no gate", "h + gate * answer", "h + answer", "no gate"),
    ),
}
