"""Whom a tokenizer may learn meaning from: features of a trained vision model, by one call.

    teacher = course_teacher()            the course's ViT, always there
    teacher = hub.dino_teacher()          DINOv2, after `make real`
    features = teacher(images)            (B, n, D), no gradient
    features, summary = teacher(images, summary=True)             and of the whole image, (B, D)
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..nn.checks import check_flag, check_images, check_int, check_multiple
from ..vit.pretrained import vit_emoji


class Teacher(nn.Module):
    """Base class: frozen, in eval mode whatever the model around it does.

    A teacher gives `read`, and the attributes `dim` (D) and `patch_size`: n is the number of
    patches.
    """

    dim: int
    patch_size: int

    def read(self, images: Tensor, summary: bool) -> tuple[Tensor, Tensor | None]:
        """Features (B, n, D) row-major and a summary (B, D), which may be None unless asked for.

        Args:
            images: (B, 3, H, W) in [0, 1].
            summary: whether it is asked for.
        """
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor, summary: bool = False) -> Any:
        """features (B, n, D); with summary=True also that of the whole image, (B, D)."""
        features, whole = self.read(images, check_flag(summary, "summary"))
        return (features, whole) if summary else features

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher stays in eval mode."""
        return super().train(False)


class CourseTeacher(Teacher):
    """The course's ViT: patches of 8 pixels, D = 128.

    Features are those after `blocks` of its 6 blocks, normalised: it was trained to classify by
    [CLS], so its last patch tokens need not mean anything. The summary is the last [CLS].

    Args:
        vit: as of `vtlib.vit.pretrained.vit_emoji`.
        blocks: how many.
    """

    def __init__(self, vit: nn.Module, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = check_int(blocks, "blocks", 1)
        self.vit = vit.requires_grad_(False).eval()
        self.patch_size = self.vit.patch_embed.proj.kernel_size[0]
        self.dim = self.vit.norm.normalized_shape[0]

    def read(self, images: Tensor, summary: bool) -> tuple[Tensor, Tensor | None]:
        check_images(images)
        check_multiple(images.shape[-2:], self.patch_size)
        features = self.vit.feature_map(images, self.blocks).flatten(2).mT       # b n d
        return features, self.vit.tokens(images)[:, 0] if summary else None


def course_teacher(blocks: int = 4, device: torch.device | str | None = None) -> CourseTeacher:
    """The shipped ViT as a teacher.

    Args:
        blocks: of 6, whose patch tokens are the features.
        device: where it goes; None: the CPU.
    """
    vit, _ = vit_emoji(device)
    return CourseTeacher(vit, blocks)
