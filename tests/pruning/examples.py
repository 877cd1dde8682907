"""An encoder's outputs as pruning methods get them, small and the same each time."""

import torch

from vtlib.tokens import VisionOutputs

BATCH, GRID, DIM, HEADS, KEEP = 2, (6, 6), 8, 2, 9
N = GRID[0] * GRID[1]


def seeded(*shape, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")


def vision_of(tokens, flat=False):
    """An encoder's outputs around patches (B, N, D); flat: [CLS] looks everywhere alike."""
    selected = torch.cat([tokens.new_ones(len(tokens), 1, tokens.shape[2]), tokens], dim=1)
    weights = seeded(len(tokens), HEADS, 1 + N, 1 + N).softmax(dim=-1).to(tokens.dtype)
    if flat:
        weights = torch.full_like(weights, 1 / (1 + N))
    return VisionOutputs(
        selected,
        GRID,
        torch.nn.Identity(),
        cls_row=weights[:, :, 0, 1:],
        keys=selected[..., :4],
        attention={8: weights, 9: weights.flip(1)},
    )
