"""Images in groups, so that N x N numbers of a batch need the memory of a few images."""

import torch

CACHED = 2 * 576 * 576
"""Numbers that are held at a time on a CPU: two images' pairs of LLaVA-1.5's 576 tokens, 2.7 MB."""


def groups(batch: int, numbers: int, device: torch.device) -> list[slice]:
    """Which images are computed together: all, but on a CPU as many as need `CACHED` numbers.

    Args:
        batch: how many images there are.
        numbers: that one image needs, N^2 for the similarities of all pairs.
        device: where they are.
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(None)]
    images = max(1, CACHED // max(1, numbers))
    return [slice(start, start + images) for start in range(0, batch, images)] or [slice(None)]
