"""A quantiser as export and torch.compile take it."""

import torch


class Both(torch.nn.Module):
    """All that forward gives, and what decoding the indices gives, as a tuple of tensors."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, mask=None):
        out = self.net(x, mask)
        return out.codes, out.indices, out.loss, out.usage, self.net.decode(out.indices)
