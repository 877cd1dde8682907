"""transformers' LLaVA: CLIP's tower ([CLS] + patches) or SigLIP's (patches), a projector, and a
decoder that counts places from 0."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tokens import VisionOutputs
from .hooks import Hooks
from .tower import Family, Found, Reads, cls_row, full_map

OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy", "image_sizes")
"""Arguments of a forward that would change which features are used."""


class Llava(Family):
    """LlavaForConditionalGeneration: `tower` -> `multi_modal_projector` -> `language`."""

    default_positions = "renumber"

    def __init__(self, model: Any):
        super().__init__(model)
        self.language, self.tower = self.core.language_model, self.core.vision_tower
        self.image_token = model.config.image_token_id
        select = model.config.vision_feature_layer
        inner = getattr(self.tower, "vision_model", self.tower)
        if not hasattr(getattr(inner, "encoder", None), "layers") or not isinstance(select, int):
            raise ValueError(
                f"vision tower {type(self.tower).__name__} with vision_feature_layer={select!r} "
                "is not supported: needs CLIP's or SigLIP's tower and one layer"
            )
        self.attentions = [layer.self_attn for layer in inner.encoder.layers]
        self.num_layers = len(self.attentions)
        self.num_prefix = int(hasattr(inner.embeddings, "class_embedding"))
        self.selected = select % (self.num_layers + 1)  # index into the hidden states
        if self.selected == 0:
            raise ValueError(f"vision_feature_layer={select}: the embeddings have no attention")
        self._check_strategy(model.config.vision_feature_select_strategy)

    def _check_strategy(self, strategy: str) -> None:
        if strategy != ("default" if self.num_prefix else "full"):
            raise ValueError(
                f"vision_feature_select_strategy={strategy!r} does not fit "
                f"{type(self.tower).__name__}, whose patches stand behind {self.num_prefix} other "
                "tokens"
            )

    # -------------------------------------------------------------------------------- the tower
    def attach(self, hooks: Hooks, reads: Reads) -> None:
        for layer in self.watched(reads):
            for name in ("q_proj", "k_proj"):
                record = self.record((layer, name), lambda args, kwargs, out: out)
                hooks.behind(getattr(self.attentions[layer], name), record)

    def read(self, inputs: dict[str, Any], reads: Reads) -> Found:
        """As `Family.read`; one entry: all images have one size."""
        pixels = inputs["pixel_values"]
        self._check_options(inputs)
        states = sorted({self.selected, *reads.hidden})
        out, seen = self.run(pixels, output_hidden_states=states)

        def projected(layer: int, name: str) -> Tensor:
            heads = self.attentions[layer].num_heads
            return seen[layer, name].unflatten(-1, (heads, -1)).transpose(1, 2)  # b h s p

        def weights(function: Callable[[Tensor, Tensor], Tensor], layer: int) -> Tensor:
            return function(projected(layer, "q_proj"), projected(layer, "k_proj"))

        row = keys = None
        if "cls_row" in reads.need:
            row = weights(cls_row, self.deep)[..., self.num_prefix :]
        if "keys" in reads.need:
            keys = projected(self.deep, "k_proj").mean(dim=1)
        patch = self.tower.config.patch_size
        vision = VisionOutputs(
            out.hidden_states[self.selected],
            (pixels.shape[-2] // patch, pixels.shape[-1] // patch),
            self.core.multi_modal_projector,
            self.num_prefix,
            row,
            keys,
            {layer: weights(full_map, layer) for layer in reads.attention},
            {index: out.hidden_states[index] for index in reads.hidden},
        )
        return [(list(range(len(pixels))), vision)]

    def _check_options(self, inputs: dict[str, Any]) -> None:
        for name in OPTIONS:
            given = inputs.get(name)
            if given is not None and given != getattr(self.model.config, name, None):
                raise ValueError(
                    f"{name}={given!r} in a forward call is not supported while pruning: set it "
                    "in the model's configuration"
                )

    # ---------------------------------------------------------------------------- the positions
    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, None]:
        """Position ids (B, S): 0, 1, 2 ..."""
        ids = inputs["input_ids"]
        return torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1), None

    def delta(self, positions: Tensor, mask: Tensor | None, draft: int) -> None:
        """Nothing: words behind a prompt go on counting places.

        Args:
            positions: (..., B, S) of the prompt.
            mask: its attention_mask.
            draft: how many of its last tokens are guesses.
        """

    def after(self, past: int, new: Tensor, mask: Tensor | None, delta: None) -> Tensor:
        """Position ids (B, n) of new tokens.

        Args:
            past: how many tokens are before them.
            new: (B, n, ...) the tokens.
            mask: the attention_mask of all.
            delta: what `positions` or `delta` gave for the prompt.
        """
        return torch.arange(past, past + new.shape[1], device=new.device).expand(len(new), -1)
