"""A small net for dense prediction whose decoder can be exchanged: a backbone of plain convolutions
with maps at 1/2, 1/4, 1/8, 1/16 and VWFormer's decoder or one of its rivals behind it.

    net = Segmenter("vw")                    # "fpn", "aspp", "mlp"
    net(images).argmax(1)                    # (B, H, W)
    images, labels = scenes(world("test"), 16, seed=0)

For pictures of 64 pixels, where a stride of 4 at the start would leave too little. `world` and
`scenes` are what `train/vwformer.py` trains it on.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import data
from ..data import pictograms
from ..nn.checks import check_dtype, check_images, check_int, check_ints
from .heads import ASPPHead, MLPHead, UPerHead, resize
from .vwformer import VWHead, choice

DECODERS = ("vw", "fpn", "aspp", "mlp")
SIZE, PER_CATEGORY, OBJECTS, SCALE = 64, 4, (1, 3), (0.2, 0.8)


def make_decoder(
    name: str, widths: Sequence[int], num_classes: int, channels: int, **options: Any
) -> nn.Module:
    """Maps of four widths -> scores, one of `DECODERS`.

    Args:
        name: "vw" (`VWHead`), "fpn" (`UPerHead` without pooling), "aspp" or "mlp".
        widths: channels of the maps, finest first.
        num_classes: K.
        channels: inner width.
        options: further arguments of the decoder.
    """
    if choice(name, "decoder", DECODERS) == "vw":
        return VWHead(widths, num_classes, channels, **options)
    if name == "fpn":
        return UPerHead(widths, num_classes, channels, pool_scales=(), **options)
    return {"aspp": ASPPHead, "mlp": MLPHead}[name](widths, num_classes, channels, **options)


class Residual(nn.Module):
    """x + BN(conv(ReLU(BN(conv(x))))), then a ReLU: (B, C, h, w) -> the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()


class Segmenter(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> scores (B, K, H, W).

    Args:
        decoder: one of `DECODERS`.
        num_classes: K.
        channels: inner width of the decoder.
        widths: channels of the backbone's four maps, each half the size of the one before.
        options: further arguments of the decoder.
    """

    def __init__(
        self,
        decoder: str = "vw",
        num_classes: int = 10,
        channels: int = 64,
        widths: Sequence[int] = (16, 32, 64, 96),
        **options: Any,
    ) -> None:
        super().__init__()
        widths = check_ints(widths, "widths", 1, length=4)
        channels = check_int(channels, "channels", 1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                Residual(width),
            )
            for before, width in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.decoder = make_decoder(decoder, widths, num_classes, channels, **options)

    def features(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps, finest first."""
        check_images(images)
        check_dtype(images, self.stages[0].get_parameter("0.weight"), "images")
        x, maps = (images - 0.5) / 0.25, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        return resize(self.decoder(self.features(images)), images.shape[-2:])


def world(split: str = "test") -> data.EmojiWorld:
    """Pictures of 36 pictograms, four of each category, on the photographs of that split."""
    names: list[str] = []
    for category in pictograms.categories():
        rows = [row for row in pictograms.table() if row["category"] == category]
        own = [row["name"] for row in rows if row["split"] == "train"]
        names += own[:: max(len(own) // PER_CATEGORY, 1)][:PER_CATEGORY]
    return data.EmojiWorld(SIZE, split, pictograms=names)


def scenes(of: data.EmojiWorld, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, 64, 64) in [0, 1] and classes of pixels (B, 64, 64): 0 is the background.

    Args:
        of: a `world`.
        batch: B.
        seed: decides.
    """
    made = of.scenes(batch, seed, objects=OBJECTS, scale=SCALE, level="category")
    return made.images, made.semantic("category")
