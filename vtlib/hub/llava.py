"""transformers' LLaVA: CLIP's tower ([CLS] + patches) or SigLIP's (patches), a projector, and a
decoder that counts places from 0."""

from collections.abc import Callable
from typing import Any

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
        inner = getattr(self.tower, "vision_model", self.tower)
        self.attentions = [layer.self_attn for layer in inner.encoder.layers]
        self.num_layers = len(self.attentions)
        self.num_prefix = int(hasattr(inner.embeddings, "class_embedding"))
        self.selected = model.config.vision_feature_layer % (self.num_layers + 1)

    @classmethod
    def knows(cls, model: Any) -> bool:
        """CLIP's tower without its [CLS], or SigLIP's in full, and one layer with attention."""
        config, tower = model.config, model.model.vision_tower
        inner = getattr(tower, "vision_model", tower)
        select = config.vision_feature_layer
        layers = getattr(getattr(inner, "encoder", None), "layers", None)
        if layers is None or not isinstance(select, int) or select % (len(layers) + 1) == 0:
            return False
        clip = hasattr(inner.embeddings, "class_embedding")
        return config.vision_feature_select_strategy == ("default" if clip else "full")

    # -------------------------------------------------------------------------------- the tower
    def attach(self, hooks: Hooks, reads: Reads) -> None:
        for layer in self.watched(reads):
            for name in ("q_proj", "k_proj"):
                # for a choice, which has no gradient, with checkpointing or without
                record = self.record((layer, name), lambda args, kwargs, out: out.detach())
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
