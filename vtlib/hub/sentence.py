"""MiniLM as a tower of texts for `vtlib.vlm.ImageText`: sentences to vectors, frozen.

    encoder = ImageText(minilm_text())
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_int
from ..vlm.image_text import check_texts
from .weights import real, real_tokenizer


class MiniLMText(nn.Module):
    """all-MiniLM-L6-v2 as its authors read it: the mean over words, then unit length (K, 384).

    Frozen, and in eval mode whatever the model around it does. Its weights are in no state dict:
    a model that reads with it stores what it has learnt itself. A text that it has read before is
    looked up.

    Args:
        model: transformers' BertModel.
        tokenizer: its own.
        most: words (pieces) of a text that are read; the rest is cut off.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, most: int = 128) -> None:
        super().__init__()
        self._read = [model.requires_grad_(False).eval(), tokenizer]      # a list: no sub-module
        self.dim, self.most = model.config.hidden_size, check_int(most, "most", 3)
        self.register_buffer("place", torch.zeros(0), persistent=False)   # where it lives
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """K texts -> (K, 384) of unit length."""
        texts = check_texts(texts)
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        if new:
            self.known.update(zip(new, self._vectors(new), strict=True))
        return torch.stack([self.known[text] for text in texts]).to(self.place)

    def _vectors(self, texts: list[str]) -> Tensor:
        model, tokenizer = self._read
        model.to(self.place.device)
        inputs = tokenizer(
            texts, padding=True, truncation=True, max_length=self.most, return_tensors="pt"
        ).to(self.place.device)
        hidden = model(**inputs).last_hidden_state                               # k l d
        there = inputs["attention_mask"][..., None].to(hidden.dtype)
        return F.normalize((hidden * there).sum(1) / there.sum(1), dim=-1)


def minilm_text(device: torch.device | str | None = None) -> MiniLMText:
    """The real MiniLM as a tower of texts, D = 384.

    FileNotFoundError (weights) or ImportError (transformers), in one line, when something is
    missing.
    """
    return MiniLMText(real("minilm", device), real_tokenizer("minilm"))
