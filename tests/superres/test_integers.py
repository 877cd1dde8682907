"""Pictures of integers, NumPy arrays and lists: refused wherever pictures enter, with a way out."""

import numpy as np
import pytest
import torch

from vtlib.superres import bicubic, blur_down, luma, psnr, ssim, warp
from vtlib.superres.catanet import CATANet
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.spynet import SPyNet
from vtlib.superres.ttvsr import TTVSR
from vtlib.superres.uplift import UPLiFT, loss_terms

PICTURES = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
FLOATS, FLOW = torch.rand(2, 3, 16, 16), torch.zeros(2, 2, 16, 16)
FEATURES = torch.rand(2, 4, 4, 4)


def video(frames):
    net = TTVSR(4, 1, 1, 4, spynet=SPyNet(1, (4,)))
    return net(frames[None] if hasattr(frames, "dim") else frames)


ENTRANCES = {
    "psnr": lambda x: psnr(x, x),
    "psnr, want": lambda x: psnr(FLOATS, x),
    "ssim": lambda x: ssim(x, x),
    "ssim, want": lambda x: ssim(FLOATS, x),
    "luma": luma,
    "bicubic": lambda x: bicubic(x, 0.5),
    "blur_down": blur_down,
    "warp": lambda x: warp(x, FLOW),
    "warp, flow": lambda x: warp(FLOATS, x[:, :2] if hasattr(x, "dim") else x),
    "spynet, reference": lambda x: SPyNet(2, (4,))(x, FLOATS),
    "spynet, supporting": lambda x: SPyNet(2, (4,))(FLOATS, x),
    "ttvsr": video,
    "catanet": lambda x: CATANet(2, 8, 1, 4, 8, 2, 6, 4, 8)(x),
    "uplift, images": lambda x: UPLiFT(4, 4, (4, 8), (8, 8))(x, FEATURES),
    "uplift, features": lambda x: UPLiFT(3, 4, (4, 8), (8, 8))(FLOATS, x),
    "uplift, loss": lambda x: loss_terms(None, None, x, 1),
    "cross_attention": lambda x: CrossAttentionUpsampler(4, (4, 8), 8)(x, FEATURES),
}
KINDS = {
    "uint8": (PICTURES, "torch.uint8 but needs a floating dtype"),
    "int64": (PICTURES.long(), "torch.int64 but needs a floating dtype"),
    "numpy": (FLOATS.numpy(), "numpy.ndarray but needs to be a floating torch tensor"),
    "list": (list(FLOATS), "list but needs to be a floating torch tensor"),
}


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
@pytest.mark.parametrize("pictures, message", KINDS.values(), ids=KINDS.keys())
def test_what_is_no_floating_tensor_is_refused(enter, pictures, message):
    with pytest.raises(ValueError, match=message):
        enter(pictures)


def test_the_right_value_of_bytes_is_that_of_floats():
    """Two pictures of bytes at 12.8 dB: as integers their difference used to overflow."""
    torch.manual_seed(0)
    a, b = (torch.randint(60, 196, (1, 3, 32, 32), dtype=torch.uint8) for _ in range(2))
    error = (a.double() - b.double()).square().mean() / 255**2
    got = psnr(a.float() / 255, b.float() / 255, y=False)
    torch.testing.assert_close(got.double(), -10 * error.log10()[None], atol=1e-4, rtol=0)


def test_shapes_do_not_broadcast():
    for other in (FLOATS[:1], FLOATS[:, :1], FLOATS[0], FLOATS[..., :1]):
        for measure in (psnr, ssim):
            with pytest.raises(ValueError, match="both need the same"):
                measure(FLOATS, other)


def test_labels_are_still_read_by_nearest_warping():
    assert warp(PICTURES, FLOW, mode="nearest").equal(PICTURES)


def test_integers_of_numpy_are_integers():
    eight, two = np.int64(8), np.int64(2)
    net = CATANet(two, eight, np.int64(1), np.int64(4), eight, two, np.int64(6), two, eight)
    assert net.eval()(FLOATS).shape == (2, 3, 32, 32)
    assert psnr(FLOATS, FLOATS, crop=two).isinf().all()
    assert bicubic(FLOATS, two).shape == blur_down(bicubic(FLOATS, 4), two).shape
    ttvsr = TTVSR(eight, two, two, eight, stride=np.int64(4), keyframe_stride=two, spynet=None)
    flows = (torch.zeros(1, 1, 2, 16, 16),) * 2
    assert ttvsr(FLOATS[None], flows).shape == (1, 2, 3, 64, 64)
    uplift = UPLiFT(np.int64(4), np.int64(4), (4, 8), (8, 8), num_neighbours=np.int64(9)).eval()
    assert uplift(FLOATS, FEATURES, iterations=two, size=np.int64(20)).shape == (2, 4, 20, 20)
    assert SPyNet(two, (eight,), np.int64(3))(FLOATS, FLOATS).shape == (2, 2, 16, 16)
