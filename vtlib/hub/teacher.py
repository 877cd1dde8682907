"""DINOv2 as a teacher of tokenizers, with the interface of `vtlib.tokenizers.teacher`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import IMAGENET_MEAN, IMAGENET_STD, check_images, check_int, check_multiple
from ..tokenizers.teacher import Teacher
from .weights import real


class DinoTeacher(Teacher):
    """Patch tokens behind DINOv2's last norm (what GigaTok's semantic regularisation reads), and
    [CLS] as the summary.

    A patch of `patch_size` pixels of the image becomes one of DINOv2's 14 x 14: images are resized
    by 14 / patch_size, bicubically, so a 64 px image has 8 x 8 features at patch_size=8.

    Args:
        backbone: transformers' Dinov2Model; it is frozen.
        patch_size: of the image's pixels.
    """

    def __init__(self, backbone: nn.Module, patch_size: int = 8) -> None:
        super().__init__()
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.backbone = backbone.requires_grad_(False).eval()
        self.dim, self.side = backbone.config.hidden_size, backbone.config.patch_size

    def read(self, images: Tensor, summary: bool) -> tuple[Tensor, Tensor | None]:
        check_images(images)
        check_multiple(images.shape[-2:], self.patch_size)
        size = [side // self.patch_size * self.side for side in images.shape[-2:]]
        x = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean = x.new_tensor(IMAGENET_MEAN)[:, None, None]
        std = x.new_tensor(IMAGENET_STD)[:, None, None]
        tokens = self.backbone((x - mean) / std).last_hidden_state               # b 1+n d
        return tokens[:, 1:], tokens[:, 0]


def dino_teacher(
    patch_size: int = 8, device: torch.device | str | None = None
) -> DinoTeacher:
    """The real DINOv2 ViT-S/14 as a teacher, D = 384.

    Args:
        patch_size: pixels of the image that become one patch.
        device: where it goes; None: the CPU.

    FileNotFoundError (weights) or ImportError (transformers), in one line, when something is
    missing.
    """
    return DinoTeacher(real("dinov2", device), patch_size)
