"""SPyNet: official size and names, equality with the algorithm written out, scaling of flows, bad
input."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.nn import IMAGENET_MEAN, IMAGENET_STD
from vtlib.superres import warp
from vtlib.superres.spynet import SPyNet


def small(levels=3, **kwargs):
    torch.manual_seed(0)
    return SPyNet(levels, **{**dict(channels=(8, 8), kernel_size=3), **kwargs}).eval()


def test_official_size_and_names():
    with torch.device("meta"):
        net = SPyNet()
    assert sum(p.numel() for p in net.parameters()) == 1_440_300
    convs = [f"basic_module.{i}.basic_module.{j}.conv" for i in range(6) for j in range(5)]
    names = {f"{conv}.{p}" for conv in convs for p in ("weight", "bias")}
    assert {name for name, _ in net.named_parameters()} == names
    shapes = [tuple(c.conv.weight.shape) for c in net.basic_module[0].basic_module]
    assert shapes == [(32, 8, 7, 7), (64, 32, 7, 7), (32, 64, 7, 7), (16, 32, 7, 7), (2, 16, 7, 7)]


def test_official_files_load_with_and_without_mean_and_std():
    state = small().state_dict()
    assert {"mean", "std"} < set(state)
    small().load_state_dict(state)
    bare = {k: v for k, v in state.items() if k not in ("mean", "std")}
    net = small()
    net.load_state_dict(bare)                                                    # OpenMMLab's file
    assert net.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN) and "mean" not in bare
    whole = torch.nn.ModuleDict({"spynet": small()})
    whole.load_state_dict({f"spynet.{k}": v for k, v in bare.items()})
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({k: v for k, v in bare.items() if "basic_module.0" not in k})


def test_equals_the_algorithm_written_out():
    """Levels from coarse to fine, by hand: resize to multiples, average pools, upsample and double,
    warp, add, resize back."""
    net = small()
    torch.manual_seed(1)
    reference, supporting = torch.rand(2, 2, 3, 13, 22)
    with torch.no_grad():
        mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
        pair = (F.interpolate(t, size=(16, 24), mode="bilinear") for t in (reference, supporting))
        ref, supp = ((t - mean) / std for t in pair)
        flow = torch.zeros(2, 2, 4, 6)
        for k, module in enumerate(net.basic_module):
            times = len(net.basic_module) - 1 - k
            a, b = ref, supp
            for _ in range(times):
                a, b = (F.avg_pool2d(t, 2, count_include_pad=False) for t in (a, b))
            if k:
                flow = F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
                flow = flow * 2.0
            flow = flow + module(torch.cat([a, warp(b, flow), flow], 1))
        flow = F.interpolate(flow, size=(13, 22), mode="bilinear")
        flow = torch.stack([flow[:, 0] * 22 / 24, flow[:, 1] * 13 / 16], 1)
        torch.testing.assert_close(net(reference, supporting), flow)


@pytest.mark.parametrize("channels", [(4,), (8, 16, 8), (32, 64, 32, 16)])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_sizes(levels, channels):
    net = SPyNet(levels, channels, kernel_size=3)
    assert len(net.basic_module) == levels and net.multiple == 2 ** (levels - 1)
    assert net(torch.rand(1, 3, 9, 11), torch.rand(1, 3, 9, 11)).shape == (1, 2, 9, 11)
    flows = net.levels_of(torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24))
    sizes = [(1, 2, 16 >> k, 24 >> k) for k in reversed(range(levels))]
    assert [tuple(f.shape) for f in flows] == sizes


def test_silent_modules_mean_no_motion_and_constant_residuals_add_up():
    net = small()
    with torch.no_grad():
        for module in net.basic_module:
            module.basic_module[-1].conv.weight.zero_()
            module.basic_module[-1].conv.bias.zero_()
        x = torch.rand(1, 3, 16, 24)
        assert (net(x, x.flip(-1)) == 0).all()
        for module in net.basic_module:
            module.basic_module[-1].conv.bias.copy_(torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(net(x, x)[:, 0], torch.full((1, 16, 24), 1.0 + 2 + 4))
        assert (net(x, x)[:, 1] == 0).all()
        cut = x[..., :15, :21]                                                   # in true pixels
        torch.testing.assert_close(net(cut, cut)[:, 0], torch.full((1, 15, 21), 7 * 21 / 24))


def test_the_pictures_are_normalised():
    """With one 1 x 1 level that copies, the first channel that goes in is (red - 0.485) / 0.229."""
    net = SPyNet(1, (8,), 1)
    seen = {}
    net.basic_module[0].register_forward_hook(lambda module, args, out: seen.update(x=args[0]))
    x = torch.rand(1, 3, 4, 4)
    net(x, x.flip(-1))
    torch.testing.assert_close(seen["x"][:, 0], (x[:, 0] - 0.485) / 0.229)
    torch.testing.assert_close(seen["x"][:, 5], (x.flip(-1)[:, 2] - 0.406) / 0.225)
    assert (seen["x"][:, 6:] == 0).all()


def test_batch_rows_are_independent_and_one_pixel_works():
    net = small()
    a, b = torch.rand(2, 3, 3, 13, 10)
    torch.testing.assert_close(net(a, b)[1:2], net(a[1:2], b[1:2]), atol=1e-6, rtol=1e-5)
    assert net(a[..., :1, :1], b[..., :1, :1]).shape == (3, 2, 1, 1)


def test_meta_and_half_precision():
    with torch.device("meta"):
        assert SPyNet()(torch.rand(2, 3, 50, 70), torch.rand(2, 3, 50, 70)).shape == (2, 2, 50, 70)
    net = small().to(torch.bfloat16)
    a, b = torch.rand(2, 1, 3, 12, 20)
    out = net(a.bfloat16(), b.bfloat16())
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert (small()(a, b).float() - small()(a, b).float()).abs().max() == 0


def test_bad_input():
    net, x = small(), torch.rand(2, 3, 16, 24)
    message = r"supporting has shape \(1, 3, 16, 24\) but reference \(2, 3, 16, 24\)"
    with pytest.raises(ValueError, match=message):
        net(x, x[:1])
    with pytest.raises(ValueError, match="reference has 2 channels"):
        net(x[:, :2], x[:, :2])
    with pytest.raises(ValueError, match="needs multiples of 4|need multiples of 4"):
        net.levels_of(x[..., :15], x[..., :15])
    with pytest.raises(ValueError, match="reference is empty"):
        net(x[:0], x[:0])
    for kwargs, match in (
        (dict(levels=0), "levels=0"),
        (dict(levels=2.0), r"levels=2.0 \(float\): needs an integer"),
        (dict(channels=()), "channels="),
        (dict(channels=8), "channels=8: needs a sequence"),
        (dict(channels=(8, 0)), r"channels\[1\]=0"),
        (dict(kernel_size=4), "kernel_size=4: needs an odd"),
        (dict(kernel_size="3"), "kernel_size='3'"),
    ):
        with pytest.raises(ValueError, match=match):
            SPyNet(**kwargs)
