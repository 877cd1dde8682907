"""Exercise on ReToK: how often each token is seen in training."""

import torch

from vtlib.teach.exercises import check, expect
from vtlib.tokenizers.retok import survival


def _other(num_tokens, num_redundant, min_tokens, shift=0, lengths=None, real=False, keep=True):
    columns = num_tokens + num_redundant
    later = torch.arange(columns, 0, -1, dtype=torch.float32) + shift
    out = later / (columns - min_tokens + 1 if lengths is None else lengths)
    out = out.clamp_max(1) if keep else out
    return out[:num_tokens] if real else out


@check("retok.survival", reference=survival)
def _(fn):
    for sizes in ((8, 0, 2), (8, 6, 2), (6, 3, 3)):
        num_tokens, num_redundant, min_tokens = sizes
        columns = num_tokens + num_redundant

        def other(sizes=sizes, **change):
            return lambda: _other(*sizes, **change)

        causes = {
            "one length too few: k = i keeps token i, so N + M - i + 1 lengths keep it":
                other(shift=-1),
            "min_tokens ... N + M are N + M - min_tokens + 1 lengths, both ends included":
                other(lengths=columns - min_tokens),
            "k begins at min_tokens, not at 1: divide by N + M - min_tokens + 1":
                other(lengths=columns),
            "a probability above 1: the first min_tokens tokens are always kept, clamp them":
                other(keep=False),
            "the order is turned: token 1 comes first": survival(*sizes).flip(0),
            "the redundant tokens are left out: N + M numbers are wanted": other(real=True),
        }
        if num_redundant:
            causes["M is left out: k goes up to N + M"] = lambda sizes=sizes: _other(
                sizes[0], 0, sizes[2]
            )
        what = "survival(num_tokens={}, num_redundant={}, min_tokens={})".format(*sizes)
        expect(fn(*sizes), survival(*sizes), what=what, mistakes=causes)
