"""A TinyVLM of small sizes."""

import torch

from vtlib.vlm import TinyVLM, exam


def make_tinyvlm(num_layers=6):
    """An untrained one, the same each time. num_layers: of its decoder."""
    torch.manual_seed(0)
    encoder = dict(embed_dim=32, num_layers=4, num_heads=4, place_dim=8)
    decoder = dict(embed_dim=32, num_layers=num_layers, num_heads=4, hidden_dim=48)
    return TinyVLM(exam.VOCABULARY, encoder, decoder).eval()
