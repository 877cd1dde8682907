"""An hourglass in a ViT of DINOv2-S's size: the time that is left, beside what the multiply-adds
promise."""

import torch

from vtlib.hub import Merging, hourglass
from vtlib.segmentation import Expedit, Pooling, clustering_cost, encoder_cost
from vtlib.teach.meter import processor_seconds
from vtlib.vit import ViT

HEADER = ("alpha, grid, way", "promised", "measured", "measured / promised")


def promised(layers, dim, num_tokens, after, num_centres, clusters):
    """Multiply-adds that are left, as a part of all; the clustering and the rebuilding are new."""
    cost = encoder_cost(layers, dim, num_tokens, after, num_centres)
    if clusters:
        cost += clustering_cost(num_tokens, num_centres, dim) + 2 * num_tokens * num_centres * dim
    return cost / encoder_cost(layers, dim, num_tokens)


@torch.no_grad()
def against_promise(side=32, dim=384, layers=12, cases=((4, 16), (4, 20), (8, 16)), repeat=3):
    """Each way at each place: processor time, the least of each, as a part of the full model's.

    Args:
        side: of the map.
        dim: C.
        layers: how many blocks.
        cases: (alpha, side of the grid).
        repeat: runs.
    """
    model = ViT(14 * side, 14, num_classes=0, embed_dim=dim, num_layers=layers, num_heads=dim // 64)
    pixels = torch.randn(1, 3, 14 * side, 14 * side)
    whole = processor_seconds(model.eval(), pixels, repeat=repeat)
    for after, grid in cases:
        ways = {
            "Expedit": Expedit((grid, grid), tau=5.0, k=10, normalise="sum"),
            "pooling": Pooling((grid, grid)),
            "merging": Merging(grid * grid),
        }
        for name, way in ways.items():
            with hourglass(model, way, after):
                part = processor_seconds(model, pixels, repeat=repeat) / whole
            share = promised(layers, dim, side * side, after, grid * grid, name == "Expedit")
            yield f"{after}, {grid} x {grid}, {name}", share, part, part / share


def tables():
    rows = [(name, *(f"{x:.2f}" for x in numbers)) for name, *numbers in against_promise()]
    yield "Expedit: 12 blocks of 384 channels, 1024 tokens", HEADER, rows
