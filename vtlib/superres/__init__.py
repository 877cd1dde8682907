"""More pixels, and more features, than were given: TTVSR (video), CATANet (images), UPLiFT
(features of a ViT).

Import the paper's module: `from vtlib.superres import ttvsr`. What they share: `warp` (backward
warping), `bicubic` and `blur_down` (the degradations BI and BD of the benchmarks), `psnr` and
`ssim` as papers report them, `spynet` (optical flow), `pretrained` (shipped weights).
"""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    "..nn": ("warp",),
    ".degrade": ("bicubic", "blur_down"),
    ".quality": ("luma", "psnr", "ssim"),
})
