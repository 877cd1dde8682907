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


def check_meta_compile_export(net, x, mask):
    """On x (B, N, C) and its mask, export with a free batch and torch.compile in one piece give
    what the quantiser gives; on the meta device shapes come out."""
    free = torch.export.Dim("batch", min=2)
    shapes = ({0: free}, {0: free})
    exported = torch.export.export(Both(net), (x[:2], mask[:2]), dynamic_shapes=shapes).module()
    compiled = torch.compile(Both(net), backend="eager", fullgraph=True)
    for run in (exported, compiled):
        for got, want in zip(run(x, mask), Both(net)(x, mask), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    far = net.to("meta")
    out = far(torch.empty_like(x[:2], device="meta"))
    assert out.codes.shape == x[:2].shape and far.decode(out.indices).shape == x[:2].shape
