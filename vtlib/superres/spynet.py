"""SPyNet - Optical Flow Estimation using a Spatial Pyramid Network
(Ranjan, Black, CVPR 2017, arXiv 1611.00850), as TTVSR uses it.

The idea: large motion is small on a small picture. So start from a picture shrunk 32 times and
assume no motion; at each level double the flow found so far, warp the supporting picture by it, and
let a small convolutional net look at both pictures and add what is still missing. No level ever has
to find more than a pixel or two, which is why five 7 x 7 convolutions a level are enough.

    V_k = up(V_{k-1}) + v_k             SPyNet.levels_of     (paper eq. 2)
    v_k = G_k(I1_k, w(I2_k, up(V_{k-1})), up(V_{k-1}))
                                        SPyNetBasicModule    (eq. 1); w = `vtlib.nn.warp`

    flow = net(reference, supporting)   warp(supporting, flow) ~ reference

State-dict names are those of TTVSR's code (researchmm/TTVSR, OpenMMLab's SPyNet):
`basic_module.{0-5}.basic_module.{0-4}.conv.{weight, bias}`, so official weights load, with or
without the entries `mean` and `std` (OpenMMLab's file lacks them, TTVSR's has them). Different from
the official code: number of levels and widths are arguments, and the input sides go to multiples of
2^(levels - 1).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_dtype,
    check_flag,
    check_float,
    check_images,
    check_int,
    check_ints,
    check_odd,
    warp,
)

STATISTICS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


class ConvReLU(nn.Module):
    """A convolution that keeps the size, and ReLU unless it is the last. Official name: conv.

    Args:
        in_chans: channels that come in.
        out_chans: channels that go out.
        kernel_size: of the convolution, odd.
        relu: False in the last layer.
    """

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int, relu: bool):
        super().__init__()
        in_chans = check_int(in_chans, "in_chans", 1)
        out_chans = check_int(out_chans, "out_chans", 1)
        kernel_size = check_odd(kernel_size, "kernel_size")
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, padding=kernel_size // 2)
        self.relu = check_flag(relu, "relu")

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.conv.in_channels, "x")
        return self.conv(x).relu() if self.relu else self.conv(x)


class SPyNetBasicModule(nn.Module):
    """G_k: (B, 8, h, w) -> the missing flow (B, 2, h, w).

    The 8 channels are reference, warped supporting picture, flow so far.
    """

    def __init__(self, channels: Sequence[int], kernel_size: int):
        super().__init__()
        layers, width = [], 8
        channels = check_ints(channels, "channels", 1)
        for channel in channels:
            layers.append(ConvReLU(width, channel, kernel_size, relu=True))
            width = channel
        layers.append(ConvReLU(width, 2, kernel_size, relu=False))
        self.basic_module = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)


def check_pair(reference: Tensor, supporting: Tensor, weight: Tensor) -> None:
    """ValueError unless both are images (B, 3, h, w) of one shape, and of the net's dtype.

    Args:
        reference: what was given.
        supporting: what was given.
        weight: of the net.
    """
    check_images(reference, name="reference")
    check_float(supporting, "supporting")
    if supporting.shape != reference.shape:
        raise ValueError(
            f"supporting has shape {tuple(supporting.shape)} but reference "
            f"{tuple(reference.shape)}: they need to be equal"
        )
    check_dtype(reference, weight, "reference")
    check_dtype(supporting, weight, "supporting")


class SPyNet(nn.Module):
    """Optical flow from coarse to fine.

    The defaults are the official size: 6 levels, 1,440,300 parameters. ValueError for sizes that
    make no net.

    Args:
        levels: the coarsest sees pictures shrunk 2^(levels - 1) times.
        channels: widths of the hidden convolutions, one sequence for all levels.
        kernel_size: odd.
    """

    def __init__(
        self, levels: int = 6, channels: Sequence[int] = (32, 64, 32, 16), kernel_size: int = 7
    ):
        super().__init__()
        levels = check_int(levels, "levels", 1)
        channels = check_ints(channels, "channels", 1)
        if not channels:
            raise ValueError("channels=(): needs the widths of at least one hidden convolution")
        kernel_size = check_odd(kernel_size, "kernel_size")
        modules = (SPyNetBasicModule(channels, kernel_size) for _ in range(levels))
        self.basic_module = nn.ModuleList(modules)
        for name in STATISTICS:
            self.register_buffer(name, _statistic(name))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name in STATISTICS:                  # constants: OpenMMLab's file does not list them
            state_dict.setdefault(prefix + name, _statistic(name, "cpu"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def multiple(self) -> int:
        """Sides of the pictures are brought to multiples of this."""
        return 2 ** (len(self.basic_module) - 1)

    def levels_of(self, reference: Tensor, supporting: Tensor) -> list[Tensor]:
        """The flow after each level, coarse to fine: (B, 2, h_k, w_k) in pixels of that level.

        That is what a multi-scale loss wants. reference, supporting (B, 3, h, w) in [0, 1], both
        sides multiples of `multiple`; ValueError otherwise.
        """
        check_pair(reference, supporting, next(self.parameters()))
        size = tuple(reference.shape[2:])
        if any(side % self.multiple for side in size):
            raise ValueError(
                f"reference is {size}: the levels need multiples of {self.multiple}; "
                f"calling the net resizes"
            )
        pair = [(image - self.mean) / self.std for image in (reference, supporting)]
        pyramid = [pair]
        for _ in self.basic_module[1:]:
            pyramid.append([F.avg_pool2d(image, 2) for image in pyramid[-1]])    # b 3 h/2 w/2
        flows = []
        for module, (ref, supp) in zip(self.basic_module, reversed(pyramid), strict=True):
            flow = _doubled(flows[-1]) if flows else torch.zeros_like(ref[:, :2])
            seen = torch.cat([ref, warp(supp, flow), flow], dim=1)               # b 8 h w
            flows.append(flow + module(seen))                                    # b 2 h w
        return flows

    def forward(self, reference: Tensor, supporting: Tensor) -> Tensor:
        """Flow (B, 2, h, w) in pixels (x, y).

        What is at p in `reference` is at p + flow(p) in `supporting`, both (B, 3, h, w) in [0, 1],
        any size: they are resized to multiples of `multiple` and the flow is resized back.
        ValueError for other shapes or an empty batch.
        """
        check_pair(reference, supporting, next(self.parameters()))
        h, w = reference.shape[2:]
        size = tuple(-(-side // self.multiple) * self.multiple for side in (h, w))
        if size == (h, w):
            return self.levels_of(reference, supporting)[-1]
        flow = self.levels_of(_resized(reference, size), _resized(supporting, size))[-1]
        stretch = flow.new_tensor([w / size[1], h / size[0]])
        return _resized(flow, (h, w)) * stretch.view(1, 2, 1, 1)


def _statistic(name: str, device: str | None = None) -> Tensor:
    return torch.tensor(STATISTICS[name], device=device).view(1, 3, 1, 1)


def _doubled(flow: Tensor) -> Tensor:
    """A level's flow as the next one sees it: twice the pixels, twice the numbers."""
    return 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
