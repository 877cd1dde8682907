"""Plausible wrong answers to the ETT exercise of notebook 02b."""

from tests.teach.slips import slips

CHOICE = '''
import torch
import torch.nn.functional as F
def soft_choice(z, codebook):
    p = (z @ codebook.T).softmax(dim=1)
    hard = F.one_hot(p.argmax(dim=1), len(codebook)).float()
    return (hard + p - p.detach()) @ codebook
'''

WRONG = {
    "ett.soft_choice": slips(
        CHOICE,
        ("soft", "(hard + p - p.detach())", "p", "soft mixture"),
        ("not taken away", "hard + p - p.detach()", "hard + p", "never taken away"),
        ("straight-through", "return (hard + p - p.detach()) @ codebook",
         "return z + (hard @ codebook - z).detach()", "straight-through"),
        ("look-up", "return (hard + p - p.detach()) @ codebook",
         "return codebook[p.argmax(dim=1)]", "plain look-up"),
        ("hard alone", "hard + p - p.detach()", "hard + (p - p).detach()", "no gradient"),
        ("axis", "softmax(dim=1)", "softmax(dim=0)", "axis 1"),
        ("no softmax", "p = (z @ codebook.T).softmax(dim=1)", "p = z @ codebook.T",
         "softmax is missing"),
    ),
}
