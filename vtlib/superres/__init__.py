"""More pixels, and more features, than were given: TTVSR (video), CATANet (images), UPLiFT (features of a ViT).

Import the paper's module: `from vtlib.superres import ttvsr`. What they share: `warp` (backward warping), `bicubic` and `blur_down` (the
degradations BI and BD of the benchmarks), `psnr` and `ssim` as papers report them, `spynet` (optical flow), `pretrained` (shipped weights).
"""

import importlib

from ..nn import warp
from .degrade import bicubic, blur_down
from .quality import luma, psnr, ssim

__all__ = ["bicubic", "blur_down", "luma", "psnr", "ssim", "warp"]
_MODULES = ("ttvsr", "catanet", "uplift", "cross_attention", "spynet", "pretrained")


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join((*_MODULES, *__all__))}")
