"""Exercise on CASWiT: an answer, weighed by a gate for each token and channel."""

import torch

from vtlib.teach.exercises import check, expect


def gated(h, answer, weight, bias):
    """h, answer (B, N, C), weight (C, 2 C), bias (C,) -> (B, N, C): h + gate * answer."""
    gate = (torch.cat([h, answer], dim=-1) @ weight.T + bias).sigmoid()
    return h + gate * answer


def _causes(h, answer, weight, bias):
    both = torch.cat([h, answer], dim=-1) @ weight.T
    gate = (both + bias).sigmoid()
    turned = (torch.cat([answer, h], dim=-1) @ weight.T + bias).sigmoid()
    return {
        "h is missing: the answer is added to it": gate * answer,
        "the gate mixes (1 - g) h + g o; here h stays whole": (1 - gate) * h + gate * answer,
        "the gate weighs h; it weighs the answer": gate * h + answer,
        "the answer stands before h in what the gate reads": h + turned * answer,
        "the bias is missing": h + both.sigmoid() * answer,
        "the gate has no sigmoid": h + (both + bias) * answer,
        "the gate is a tanh; here it is a sigmoid": h + (both + bias).tanh() * answer,
        "one gate for all channels; each channel has its own":
            h + gate.mean(-1, keepdim=True) * answer,
        "there is no gate: all of the answer was added": h + answer,
    }


@check("caswit.gated", reference=gated)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for batch, tokens, channels in ((1, 4, 3), (2, 5, 6)):
        shapes = [(batch, tokens, channels)] * 2 + [(channels, 2 * channels), (channels,)]
        inputs = [torch.randn(shape, generator=generator) for shape in shapes]
        got, want = fn(*inputs), gated(*inputs)
        expect(got, want, what=f"{tokens} fused tokens", mistakes=_causes(*inputs))
