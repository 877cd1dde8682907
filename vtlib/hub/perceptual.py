"""Perceptual distances with their real trunks: LPIPS and DISTS.

LPIPS - The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang, Isola, Efros,
Shechtman, Wang, CVPR 2018, arXiv 1801.03924), version 0.1:

    d(x, y) = sum_l  mean_p  w_l . (x_lp - y_lp)^2         features of layer l at place p, length 1

DISTS - Image Quality Assessment: Unifying Structure and Texture Similarity (Ding, Ma, Wang,
Simoncelli, 2020, arXiv 2004.07728): means of the features compare texture, covariances structure,

    d(x, y) = 1 - sum_l  alpha_l . s(mean) + beta_l . s(covariance)

torchmetrics and the package lpips compute the first, but ask torchvision for the trunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import IMAGENET_MEAN, IMAGENET_STD, check_images

ALEX = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1))                     # in, out, kernel, stride, padding  # fmt: skip
VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)      # LPIPS, of pictures in [-1, 1]


def _row(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


class AlexNet(nn.Module):
    """The convolutions of AlexNet, ReLU after each: five feature maps.

    Pools of 3 with stride 2 stand before the second and the third.
    """

    widths = tuple(out for _, out, *_ in ALEX)

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, kernel, stride, padding) for i, o, kernel, stride, padding in ALEX
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for k, conv in enumerate(self.convs):
            x = F.max_pool2d(x, 3, 2) if k in (1, 2) else x
            x = conv(x).relu()
            features.append(x)
        return features


class VGG16(nn.Module):
    """The thirteen convolutions of VGG-16 in five stages: the last feature map of each.

    Before each stage but the first, pictures are halved by `pool(x, stage)`.
    """

    widths = tuple(stage[-1] for stage in VGG)

    def __init__(self):
        super().__init__()
        self.convs, width = nn.ModuleList(), 3
        for out in (out for stage in VGG for out in stage):
            self.convs.append(nn.Conv2d(width, out, 3, padding=1))
            width = out

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        features, convs = [], iter(self.convs)
        for k, stage in enumerate(VGG):
            x = self.pool(x) if k else x
            for _ in stage:
                x = next(convs)(x).relu()
            features.append(x)
        return features


class SoftVGG16(VGG16):
    """With DISTS's pooling: the root of the squares' mean under a 3 x 3 window, no aliasing."""

    def pool(self, x: Tensor) -> Tensor:
        window = x.new_tensor([0.5, 1, 0.5])                        # Hann
        window = torch.outer(window, window) / 4
        kernel = window.expand(x.shape[1], 1, 3, 3)
        mean = F.conv2d(x**2, kernel, stride=2, padding=1, groups=x.shape[1])
        return (mean + 1e-12).sqrt()


def check_pictures(x: Tensor, y: Tensor) -> None:
    """ValueError unless both are pictures (B, 3, H, W) of one shape."""
    check_images(x, name="x")
    check_images(y, name="y")
    if x.shape != y.shape:
        raise ValueError(f"y has shape {tuple(y.shape)} but x {tuple(x.shape)}: needs the same")


class LPIPS(nn.Module):
    """Pictures x and y (B, 3, H, W) in [0, 1] -> distances (B,), 0 for equal ones.

    The package lpips calls that `normalize=True`; by default it takes [-1, 1].
    """

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in trunk.widths)
        self.register_buffer("shift", _row(SHIFT), persistent=False)
        self.register_buffer("scale", _row(SCALE), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        check_pictures(x, y)
        layers = [self.trunk((2 * image - 1 - self.shift) / self.scale) for image in (x, y)]
        distance = x.new_zeros(len(x))
        for head, ours, theirs in zip(self.heads, *layers, strict=True):
            apart = (_length_one(ours) - _length_one(theirs)) ** 2               # b c h w
            distance = distance + (head * apart).sum(1).mean((1, 2))
        return distance


def _length_one(features: Tensor) -> Tensor:
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def lpips_alex() -> LPIPS:
    return LPIPS(AlexNet())


def lpips_vgg() -> LPIPS:
    return LPIPS(VGG16())


class DISTS(nn.Module):
    """Pictures x and y (B, 3, H, W) in [0, 1] -> distances (B,), 0 for equal ones."""

    def __init__(self):
        super().__init__()
        self.trunk = SoftVGG16()
        self.widths = (3, *VGG16.widths)
        self.alpha = nn.Parameter(torch.zeros(1, sum(self.widths), 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, sum(self.widths), 1, 1))
        self.register_buffer("mean", _row(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", _row(IMAGENET_STD), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        check_pictures(x, y)
        layers = [[image, *self.trunk((image - self.mean) / self.std)] for image in (x, y)]
        weights = [weight.split(self.widths, dim=1) for weight in (self.alpha, self.beta)]
        total = self.alpha.sum() + self.beta.sum()
        alike = x.new_zeros(len(x))
        for alpha, beta, ours, theirs in zip(*weights, *layers, strict=True):
            texture, structure = similarities(ours, theirs)
            alike = alike + (alpha * texture + beta * structure).sum((1, 2, 3)) / total
        return 1 - alike


def similarities(x: Tensor, y: Tensor, tiny: float = 1e-6) -> tuple[Tensor, Tensor]:
    """SSIM's two factors of whole feature maps: of the means, of the covariance. (B, C, 1, 1) each.

    Args:
        x: features (B, C, h, w).
        y: features of the other picture.
        tiny: keeps empty channels from dividing by zero.
    """
    mx, my = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
    vx, vy = (((z - m) ** 2).mean((2, 3), keepdim=True) for z, m in ((x, mx), (y, my)))
    both = (x * y).mean((2, 3), keepdim=True) - mx * my
    texture = (2 * mx * my + tiny) / (mx**2 + my**2 + tiny)
    structure = (2 * both + tiny) / (vx + vy + tiny)
    return texture, structure
