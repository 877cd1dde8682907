"""From pixels to tokens and back."""

from einops import rearrange
from torch import Tensor, nn

from .checks import (
    check_dtype,
    check_float,
    check_images,
    check_int,
    check_ints,
    check_multiple,
)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into non-overlapping squares and lay each out as one vector.

    images: (B, C, H, W) with H and W multiples of patch_size -> (B, N, P*P*C),
    N = (H/P)(W/P) row-major, channels last inside. Raises ValueError for other shapes.
    """
    patch_size = check_int(patch_size, "patch_size", 1)
    check_images(images, None)
    check_multiple(images.shape[-2:], patch_size)
    return rearrange(
        images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size
    )


def unpatchify(tokens: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: tokens (B, h*w, P*P*C) -> images (B, C, h*P, w*P).

    Args:
        tokens: the pixels of one patch each.
        patch_size: P.
        grid: (h, w).
    """
    check_float(tokens, "tokens")
    patch_size = check_int(patch_size, "patch_size", 1)
    h, w = check_ints(grid, "grid", 1, length=2)
    if tokens.dim() != 3 or tokens.shape[1] != h * w or tokens.shape[2] % patch_size**2:
        raise ValueError(
            f"tokens {tuple(tokens.shape)} do not fill grid={(h, w)} "
            f"with patches of {patch_size} x {patch_size} pixels"
        )
    sizes = dict(h=h, w=w, p=patch_size, q=patch_size)
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", **sizes)


class PatchEmbed(nn.Module):
    """Linear embedding of patches as a strided convolution (kernel = stride = patch_size).

    images (B, in_chans, H, W) -> tokens (B, (H/P)(W/P), D); state-dict name `proj`. Raises
    ValueError for wrong channels and sizes that P does not divide.

    Args:
        patch_size: P.
        in_chans: channels of the images.
        embed_dim: D.
    """

    def __init__(self, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768) -> None:
        super().__init__()
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.in_chans = check_int(in_chans, "in_chans", 1)
        self.proj = nn.Conv2d(self.in_chans, embed_dim, self.patch_size, stride=self.patch_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w): tokens per side for an image of this size."""
        check_multiple((height, width), self.patch_size)
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_chans)
        check_dtype(images, self.proj.weight, "images")
        self.grid(*images.shape[-2:])
        return rearrange(self.proj(images), "b d h w -> b (h w) d")
