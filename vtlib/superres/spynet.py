"""SPyNet - Optical Flow Estimation using a Spatial Pyramid Network (Ranjan, Black, CVPR 2017, arXiv 1611.00850), as TTVSR uses it.

The idea: large motion is small on a small picture. So start from a picture shrunk 32 times and assume no motion; at each level double the
flow found so far, warp the supporting picture by it, and let a small convolutional net look at both pictures and add what is still
missing. No level ever has to find more than a pixel or two, which is why five 7 x 7 convolutions a level are enough.

    V_k = up(V_{k-1}) + v_k                                SPyNet.levels_of          (paper eq. 2)
    v_k = G_k(I1_k, w(I2_k, up(V_{k-1})), up(V_{k-1}))     SPyNetBasicModule         (eq. 1); w = `vtlib.nn.warp`

    flow = net(reference, supporting)                      warp(supporting, flow) ~ reference

State-dict names are those of TTVSR's code (researchmm/TTVSR, OpenMMLab's SPyNet): `basic_module.{0-5}.basic_module.{0-4}.conv.{weight, bias}`,
so official weights load, with or without the entries `mean` and `std` (OpenMMLab's file lacks them, TTVSR's has them). Different from
the official code: number of levels and widths are arguments, and the input sides go to multiples of 2^(levels - 1).
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import check_float, check_images, warp

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)                         # ImageNet's


class ConvReLU(nn.Module):
    """A convolution that keeps the size, and ReLU unless it is the last. Official name of the convolution: conv."""

    def __init__(self, in_chans, out_chans, kernel_size, relu):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, padding=kernel_size // 2)
        self.relu = relu

    def forward(self, x):
        return self.conv(x).relu() if self.relu else self.conv(x)


class SPyNetBasicModule(nn.Module):
    """G_k: (B, 8, h, w) -> the missing flow (B, 2, h, w). The 8 channels are reference, warped supporting picture, flow so far."""

    def __init__(self, channels, kernel_size):
        super().__init__()
        sizes = (8, *channels, 2)
        last = len(sizes) - 2
        self.basic_module = nn.Sequential(*(ConvReLU(a, b, kernel_size, i < last) for i, (a, b) in enumerate(zip(sizes, sizes[1:]))))

    def forward(self, x):
        return self.basic_module(x)


def check_pair(reference, supporting):
    """ValueError unless both are images (B, 3, h, w) of one shape."""
    check_images(reference, name="reference")
    check_float(supporting, "supporting")
    if supporting.shape != reference.shape:
        raise ValueError(
            f"supporting has shape {tuple(supporting.shape)} but reference "
            f"{tuple(reference.shape)}: they need to be equal"
        )


class SPyNet(nn.Module):
    """Optical flow from coarse to fine. The defaults are the official size: 6 levels, 1,440,300 parameters.

    levels: the coarsest sees pictures shrunk 2^(levels - 1) times. channels: widths of the hidden convolutions, one tuple for all levels.
    kernel_size: odd. Raises ValueError for sizes that make no net.
    """

    def __init__(self, levels=6, channels=(32, 64, 32, 16), kernel_size=7):
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels={levels}: needs at least 1")
        if not channels or min(channels) < 1:
            raise ValueError(f"channels={channels!r}: needs the widths of at least one hidden convolution, all positive")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: needs an odd number")
        self.basic_module = nn.ModuleList(SPyNetBasicModule(channels, kernel_size) for _ in range(levels))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name, value in (("mean", MEAN), ("std", STD)):                       # constants: OpenMMLab's file does not list them
            state_dict.setdefault(prefix + name, torch.tensor(value).view(1, 3, 1, 1))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def multiple(self):
        """Sides of the pictures are brought to multiples of this."""
        return 2 ** (len(self.basic_module) - 1)

    def levels_of(self, reference, supporting):
        """The flow after each level, coarse to fine: a list of (B, 2, h_k, w_k) in pixels of that level (what a multi-scale loss wants).

        reference, supporting (B, 3, h, w) in [0, 1], both sides multiples of `multiple`; ValueError otherwise.
        """
        check_pair(reference, supporting)
        if any(side % self.multiple for side in reference.shape[2:]):
            raise ValueError(f"reference is {tuple(reference.shape[2:])}: the levels need multiples of {self.multiple}; calling the net resizes")
        pyramid = [((reference - self.mean) / self.std, (supporting - self.mean) / self.std)]
        for _ in self.basic_module[1:]:
            pyramid.append(tuple(F.avg_pool2d(image, 2) for image in pyramid[-1]))                # b 3 h w -> b 3 h/2 w/2
        flows = []
        for module, (ref, supp) in zip(self.basic_module, reversed(pyramid)):
            if flows:
                flow = 2 * F.interpolate(flows[-1], scale_factor=2, mode="bilinear", align_corners=True)
            else:
                flow = torch.zeros_like(ref[:, :2])
            flows.append(flow + module(torch.cat([ref, warp(supp, flow), flow], dim=1)))          # b 8 h w -> b 2 h w
        return flows

    def forward(self, reference, supporting):
        """Flow (B, 2, h, w) in pixels (x, y): what is at p in `reference` is at p + flow(p) in `supporting`.

        reference, supporting (B, 3, h, w) in [0, 1], any size: they are resized to multiples of `multiple` and the flow is resized back.
        Raises ValueError for other shapes or an empty batch.
        """
        check_pair(reference, supporting)
        h, w = reference.shape[2:]
        size = tuple(-(-side // self.multiple) * self.multiple for side in (h, w))
        if size == (h, w):
            return self.levels_of(reference, supporting)[-1]
        reference, supporting = (F.interpolate(image, size=size, mode="bilinear", align_corners=False) for image in (reference, supporting))
        flow = F.interpolate(self.levels_of(reference, supporting)[-1], size=(h, w), mode="bilinear", align_corners=False)
        return flow * flow.new_tensor([w / size[1], h / size[0]]).view(1, 2, 1, 1)
