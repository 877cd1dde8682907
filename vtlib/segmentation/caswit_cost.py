"""What larger surroundings cost: tokens, multiply-adds and training memory of a crop beside its
shrunk window, and of the window at full resolution, without computing anything.

    with torch.device("meta"):
        net = CASWiT(19)
    forward_cost(net, (2048, 2048))                     one encoder reads all of it
    forward_cost(net, (512, 512), (512, 512))           a crop, and 2048 pixels shrunk four times

The paper is in `caswit.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..nn import check_int, check_ints
from ..nn.checks import describe


class Cost(NamedTuple):
    """Of one picture in one forward pass."""

    tokens: int  # of the first stage, all inputs together
    multiply_adds: int  # of matrix products, convolutions and attention
    memory: int  # bytes kept for the backward pass in float32, the net's weights apart


def stage_tokens(size: Sequence[int], stages: int = 4, patch_size: int = 4) -> list[int]:
    """Tokens of a branch after each stage.

    Args:
        size: (h, w) in pixels.
        stages: how many.
        patch_size: side of a token of the first stage, in pixels.
    """
    height, width = check_ints(size, "size", 1, length=2)
    stages, patch = check_int(stages, "stages", 1), check_int(patch_size, "patch_size", 1)
    pitches = [patch * 2**s for s in range(stages)]
    return [-(-height // p) * -(-width // p) for p in pitches]


def forward_cost(net: nn.Module, *sizes: Sequence[int]) -> Cost:
    """What one picture costs, read off a forward pass on the meta device in eval mode.

    The memory is that of plain attention, which keeps its weights; fused kernels do not.

    Args:
        net: a `CASWiT`, or another net of images, on the meta device.
        sizes: (h, w) in pixels, one for each input of the net: the crop, the context.

    ValueError for a net elsewhere.
    """
    if not isinstance(net, nn.Module) or any(not p.is_meta for p in net.parameters()):
        raise ValueError(f"net is {describe(net)} but needs to be a network on the meta device")
    pairs = [check_ints(size, "sizes", 1, length=2) for size in sizes]
    inputs = [torch.zeros(1, 3, *pair, device="meta") for pair in pairs]
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in weights:
            kept[x.untyped_storage()._cdata] = x
        return x

    training = net.training
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = net.eval()(*inputs)
    net.train(training)
    memory = sum(x.untyped_storage().nbytes() for x in kept.values())
    del out
    tokens = sum(stage_tokens(pair)[0] for pair in pairs)
    return Cost(tokens, counter.get_total_flops() // 2, memory)
