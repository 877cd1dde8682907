"""How far a pixel of a decoder's output really sees: gradients with respect to its input.

The theoretical field of a net is where it could look; the effective one is where its gradient is
(Luo et al. 2016, arXiv 1701.04128). It works on any decoder, so decoders can be compared: a pyramid
of features with lateral additions, dilated convolutions, a pixel-wise MLP, varying windows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..nn.checks import (
    check_axes,
    check_callable,
    check_images,
    check_int,
    check_ints,
    check_list,
    check_number,
)

Decoder = Callable[[list[Tensor]], Tensor]


def effective_receptive_field(
    decoder: Decoder, features: Sequence[Tensor], place: tuple[int, int] | None = None
) -> list[Tensor]:
    """One map for each input map: how much each of its pixels moves one pixel of the output.

        field_i(v, u) = sum over batch, channels of |d (sum_k out[b, k, y, x]) / d in_i[b, c, v, u]|

    divided by the sum of field_i, so that it adds up to one (a map that plays no part stays zero).

    Args:
        decoder: list of maps (B, C_i, h_i, w_i) -> (B, K, H, W), in eval mode: batch statistics of
            training would tie all pixels together.
        features: its input maps.
        place: (y, x) in the output; None: the middle (H // 2, W // 2).

    Returns maps (h_i, w_i). Parameters get no gradients. ValueError for maps that are no floating
    (B, C, h, w), for a place outside the output, and for an output that hangs on none of the maps.
    """
    check_callable(decoder, "decoder")
    features = check_list(features, "features", "a list of maps (B, C, h, w)")
    for i, feature in enumerate(features):
        check_images(feature, None, f"features[{i}]")
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [feature.detach().clone().requires_grad_() for feature in features]
        out = decoder(list(inputs))
        check_axes(out, "the decoder's output", "(B, K, H, W)")
        if not inputs or not out.requires_grad:
            raise ValueError("features: the decoder's output hangs on none of them")
        y, x = _place(place, tuple(out.shape[2:]), "place")
        found = torch.autograd.grad(out[:, :, y, x].sum(), inputs, allow_unused=True)
    fields = []
    for feature, gradient in zip(inputs, found, strict=True):
        gradient = torch.zeros_like(feature) if gradient is None else gradient
        field = gradient.detach().abs().sum(dim=(0, 1))                              # h w
        total = field.sum()
        fields.append(field / torch.where(total == 0, 1, total))
    return fields


def reach(field: Tensor, place: tuple[int, int] | None = None, share: float = 0.95) -> int:
    """Pixels to each side of `place` until a square around it holds that share of the field.

    Args:
        field: (h, w), not negative, one of `effective_receptive_field`.
        place: (y, x), the middle of the square, in pixels of the field; None: (h // 2, w // 2).
        share: of the field's sum, above 0 and at most 1.

    ValueError for a field that is zero everywhere.
    """
    check_axes(field, "field", "(h, w)")
    share = check_number(share, "share", above=0.0, most=1.0)
    y, x = _place(place, tuple(field.shape), "place")
    total = field.double().sum()
    if not total > 0:
        raise ValueError("field sums to zero: nothing is seen, so there is no reach")
    rows = (torch.arange(field.shape[0], device=field.device) - y).abs()
    columns = (torch.arange(field.shape[1], device=field.device) - x).abs()
    distance = torch.maximum(rows[:, None], columns[None])                               # h w
    rings = field.new_zeros(max(field.shape), dtype=torch.float64)
    rings = rings.index_add(0, distance.flatten(), field.double().flatten())
    # a hair less: sums of floats need not reach their own total
    return int((rings.cumsum(0) < share * total * (1 - 1e-9)).sum())


def _place(place: tuple[int, int] | None, size: Sequence[int], name: str) -> tuple[int, int]:
    """`place`, or the middle. ValueError outside 0 ... size - 1."""
    if place is None:
        return size[0] // 2, size[1] // 2
    y, x = check_ints(place, name, 0, length=2)
    return check_int(y, f"{name}[0]", 0, size[0] - 1), check_int(x, f"{name}[1]", 0, size[1] - 1)
