"""One token for each region of an image, read by a frozen ViT's class token."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .checks import check_tokens, describe


def region_tokens(
    tokens: Tensor, regions: Tensor, blocks: Iterable[Callable[..., Tensor]]
) -> Tensor:
    """Copies of the class token, each of which attends to the patches of one region and to itself.

    They go through the blocks beside the ordinary tokens; nothing reads the copies, so the others
    stay as they are. With all patches in a region a copy is the class token (relative mask
    attention, Ding and others, ICML 2023, arXiv 2208.08984).

    Args:
        tokens: (B, 1 + N, D), the class token first, before these blocks.
        regions: (B, M, N) bool, the patches of each.
        blocks: the last blocks of the ViT, each called as block(x, mask) with mask (B, 1, L, L)
            bool, True = attend.

    Returns (B, M, D), before the ViT's last norm. ValueError for masks of another form.
    """
    check_tokens(tokens, name="tokens")
    batch, length = tokens.shape[:2]
    good = isinstance(regions, Tensor) and regions.dtype == torch.bool and regions.dim() == 3
    if not good or regions.shape[0] != batch or regions.shape[2] != length - 1:
        needs = f"torch.bool ({batch}, M, {length - 1})"
        raise ValueError(f"regions is {describe(regions)} but needs to be {needs}")
    count = regions.shape[1]
    x = torch.cat([tokens, tokens[:, :1].expand(-1, count, -1)], dim=1)          # b 1+n+m d
    sees = torch.zeros(batch, length + count, length + count, dtype=torch.bool, device=x.device)
    sees[:, :length, :length] = True
    sees[:, length:, 1:length] = regions
    sees[:, length:, length:] = torch.eye(count, dtype=torch.bool, device=x.device)
    for block in blocks:
        x = block(x, sees[:, None])
    return x[:, length:]
