"""Decoders: against transformers' UPerNet and SegFormer heads with the same weights, sizes, bad
input."""

import pytest
import torch
from torch import nn

from tests.wrong import raw_errors
from vtlib.segmentation.heads import ASPPHead, ConvHead, MLPHead, UPerHead, conv

DIMS, SIDES = (4, 6, 8), ((12, 10), (6, 5), (3, 3))


def maps(batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = zip(DIMS, SIDES, strict=True)
    return [torch.randn(batch, dim, *side, generator=g) for dim, side in shapes]


def stirred(module, seed=0):
    """In eval mode, with norms that do something."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)
    return module.eval()


def copied(ours, theirs):
    """Weights in the order in which they were made, where that is the same."""
    state = dict(zip(ours.state_dict(), theirs.values(), strict=True))
    assert all(t.shape == state[name].shape for name, t in ours.state_dict().items())
    ours.load_state_dict(state)
    return ours


def test_upernet_as_in_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.models.upernet.modeling_upernet import UperNetHead

    config = transformers.UperNetConfig(hidden_size=8, pool_scales=[1, 2, 3, 6], num_labels=5)
    theirs = stirred(UperNetHead(config, DIMS))
    state = theirs.state_dict()
    starts = ("psp_modules", "bottleneck", "lateral", "fpn_convs", "fpn_bottleneck", "classifier")
    order = [name for start in starts for name in state if name.startswith(start)]
    assert len(order) == len(state)
    ours = copied(UPerHead(DIMS, 5, 8).eval(), {name: state[name] for name in order})
    with torch.no_grad():
        torch.testing.assert_close(ours(maps()), theirs(maps()), atol=1e-5, rtol=1e-4)


def test_mlp_decoder_as_in_transformers():
    """Theirs has linear layers, and the norm after a convolution without bias."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

    config = transformers.SegformerConfig(
        num_encoder_blocks=3, hidden_sizes=list(DIMS), decoder_hidden_size=8, num_labels=5
    )
    theirs = stirred(SegformerDecodeHead(config))
    state = {
        name: t[..., None, None] if name.startswith("linear_projections") and t.dim() == 2 else t
        for name, t in theirs.state_dict().items()
    }
    starts = ("linear_projections", "linear_fuse", "batch_norm", "classifier")
    order = [name for start in starts for name in state if name.startswith(start)]
    assert len(order) == len(state)
    ours = copied(MLPHead(DIMS, 5, 8).eval(), {name: state[name] for name in order})
    with torch.no_grad():
        torch.testing.assert_close(ours(maps()), theirs(maps()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", [UPerHead, MLPHead, ASPPHead])
def test_every_map_is_read(head):
    net, given = stirred(head(DIMS, 5, 8)), [x.requires_grad_() for x in maps()]
    out = net(given)
    assert out.shape == (2, 5, 12, 10)
    out.square().mean().backward()
    assert all(x.grad.abs().sum() > 0 for x in given)


def test_without_pooling_it_is_a_feature_pyramid():
    net = stirred(UPerHead(DIMS, 5, 8, pool_scales=()))
    assert len(net.pools) == 0 and net.bottleneck[0].in_channels == DIMS[-1]
    pairs = zip(DIMS, (32, 16, 8), strict=True)
    given = [torch.rand(1, dim, side, side) for dim, side in pairs]
    moved = [given[0], given[1], given[2].clone()]
    moved[2][:, :, -1] += 5
    change = (net(moved) - net(given)).abs().sum((0, 1, 3))
    assert change[-1] > 0 and change[0] == 0            # nothing tells the first row of the last


@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_a_dilated_convolution_is_a_sum_of_shifts(dilation):
    layer, x = stirred(conv(2, 3, 3, dilation)), torch.randn(1, 2, 9, 11)
    wide = torch.nn.functional.pad(x, (dilation,) * 4)
    total = torch.zeros(1, 3, 9, 11)
    for r in range(3):
        for s in range(3):
            part = wide[:, :, r * dilation:r * dilation + 9, s * dilation:s * dilation + 11]
            total += torch.einsum("dc,bchw->bdhw", layer[0].weight[:, :, r, s], part)
    torch.testing.assert_close(layer(x), layer[1](total).relu(), atol=1e-5, rtol=1e-4)


def test_dilated_branches_and_the_mean_are_told_apart():
    """Without the picture's mean a pixel sees as far as the largest dilation, and in holes."""
    net = stirred(ASPPHead((4, 6), 5, 8, dilations=(3,), low_channels=2))
    x = torch.randn(1, 8, 15, 15, requires_grad=True)
    net.image_pool[0].weight.data.zero_()
    net.pyramid(x)[0, :, 7, 7].sum().backward()
    seen = x.grad[0].abs().sum(0) > 0
    want = torch.zeros(15, 15, dtype=torch.bool)
    want[4:11:3, 4:11:3] = True
    assert torch.equal(seen, want)


def test_conv_head():
    net = stirred(ConvHead(4, 5, 8))
    assert net(maps()[0]).shape == (2, 5, 12, 10)


def test_wrong_arguments():
    net = UPerHead(DIMS, 5, 8)
    with pytest.raises(ValueError, match="needs 2"):
        net.train()(maps(1))
    assert net.eval()(maps(1)).shape == (1, 5, 12, 10)
    with pytest.raises(ValueError, match="needs 2"):
        ASPPHead(DIMS, 5, 8).train()(maps(1))
    with pytest.raises(ValueError, match="two maps"):
        ASPPHead((4,), 5)
    for head in (net, MLPHead(DIMS, 5, 8), ASPPHead(DIMS, 5, 8).eval()):
        with pytest.raises(ValueError, match="maps are 2"):
            head(maps()[:2])
        with pytest.raises(ValueError, match=r"maps\[0\]"):
            head(maps()[::-1])
        with pytest.raises(ValueError, match="maps"):
            head(3)
    with pytest.raises(ValueError, match="dims"):
        UPerHead((), 5)
    sizes = dict(dims=DIMS, num_classes=5, channels=8, dropout=0.1)
    assert not raw_errors(UPerHead, dict(sizes, pool_scales=(1, 2)))
    assert not raw_errors(MLPHead, sizes)
    assert not raw_errors(ASPPHead, dict(sizes, dilations=(1, 2), low_channels=4))
    assert not raw_errors(ConvHead, dict(dim=4, num_classes=5, channels=8, dropout=0.1))
    assert not raw_errors(ConvHead(4, 5, 8), dict(x=maps()[0]), part=True)
