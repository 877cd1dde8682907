"""What transformers' vision towers hand to a pruner: hooks on their projections, and `VisionOutputs` made of what they saw.

    read(model, inputs, need, attention, hidden) -> [(images, VisionOutputs)]     images of one size share an entry

Nothing in the tower is replaced: its own attention runs, so its output stays the same to the last bit and fast kernels stay
in use. Hooks record queries and keys where the projections make them, each thread for itself, and what was asked for is
computed beside the tower: the [CLS] row (O(N) memory), mean keys, or whole maps.

LLaVA: CLIP's tower ([CLS] + patches) or SigLIP's (patches). Qwen2.5-VL: patches go through the blocks in the order of its
windows, and 2 x 2 neighbours become one visual token. Here N counts merged tokens in raster order: features (B, N, 4 C) are
the merger's input; attention maps are mean over the four queries and sum over the four keys, so that rows still sum to 1
(0 outside of a window in blocks that have windows); keys are means of the four.
"""

import itertools
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import VisionOutputs
from .hooks import Hooks, Own

Found = list[tuple[list[int], VisionOutputs]]


def cls_row(query: Tensor, key: Tensor) -> Tensor:
    """(B, heads, S): weights of the first query. query, key (B, heads, S, P)."""
    return full_map(query[:, :, :1], key)[:, :, 0]


def full_map(query: Tensor, key: Tensor) -> Tensor:
    """(B, heads, Q, S): all weights of query (B, heads, Q, P) over key (B, heads, S, P)."""
    scaled = query * query.shape[-1] ** -0.5
    return (scaled @ key.transpose(-2, -1)).float().softmax(dim=-1)


class Family:
    """What this module knows of one kind of model.

    model, core: with and without its head; tower, language: its two parts. image_token: the id of a placeholder. num_layers,
    num_prefix: of the tower; deep: the layer (0-based) that made the features. default_positions: see `prune`.
    """

    default_positions: str
    image_token: int
    num_layers: int
    num_prefix: int
    selected: int
    tower: nn.Module
    language: nn.Module
    attentions: list[nn.Module]

    def __init__(self, model: Any):
        self.model, self.core = model, model.model
        self.own = Own()

    @property
    def deep(self) -> int:
        return self.selected - 1

    def record(self, key: Any, of: Callable[..., Any]) -> Callable[..., None]:
        """A hook that keeps of(args, kwargs, output) under `key` while this thread reads."""

        def hook(module: nn.Module, args: tuple, kwargs: dict, *output: Any) -> None:
            if self.own.seen is not None:
                self.own.seen[key] = of(args, kwargs, *output)

        return hook

    def watched(self, need: Collection[str], attention: Sequence[int]) -> set[int]:
        """The layers whose queries and keys `read` uses."""
        return {*attention, *([self.deep] if {"cls_row", "keys"} & set(need) else [])}

    def parts(self, positions: Tensor) -> Tensor:
        """Position ids with all parts that the decoder's tables are made of."""
        return positions

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, dict]:
        """(the tower's output, what the hooks recorded of it)."""
        self.own.seen = seen = {}
        try:
            return self.tower(*args, **kwargs, return_dict=True), seen
        finally:
            self.own.seen = None

    def attach(
        self,
        hooks: Hooks,
        need: Collection[str] = (),
        attention: Sequence[int] = (),
        hidden: Sequence[int] = (),
    ) -> None:
        """Hang on the tower what `read` with the same wishes needs."""
        raise NotImplementedError

    def read(
        self,
        inputs: dict[str, Any],
        need: Collection[str] = (),
        attention: Sequence[int] = (),
        hidden: Sequence[int] = (),
    ) -> Found:
        """What the tower says of a forward's images.

        Args:
            inputs: keyword arguments of the model's forward.
            need: of "cls_row", "keys".
            attention: layers whose maps are wanted, 0-based.
            hidden: hidden states that are wanted, 0 for the embeddings.
        """
        raise NotImplementedError


# ----------------------------------------------------------------------------------------------------------------- LLaVA
class Llava(Family):
    """LlavaForConditionalGeneration: `tower` -> `multi_modal_projector` -> `language`."""

    default_positions = "renumber"

    def __init__(self, model: Any):
        super().__init__(model)
        self.language, self.tower = self.core.language_model, self.core.vision_tower
        self.image_token = model.config.image_token_id
        select = model.config.vision_feature_layer
        strategy = model.config.vision_feature_select_strategy
        inner = getattr(self.tower, "vision_model", self.tower)
        if not hasattr(getattr(inner, "encoder", None), "layers") or not isinstance(select, int):
            raise ValueError(
                f"vision tower {type(self.tower).__name__} with vision_feature_layer={select!r} "
                "is not supported: needs CLIP's or SigLIP's tower and one layer"
            )
        self.attentions = [layer.self_attn for layer in inner.encoder.layers]
        self.num_layers = len(self.attentions)
        self.num_prefix = int(hasattr(inner.embeddings, "class_embedding"))
        if strategy != ("default" if self.num_prefix else "full"):
            raise ValueError(
                f"vision_feature_select_strategy={strategy!r} does not fit "
                f"{type(self.tower).__name__}, whose patches stand behind {self.num_prefix} other "
                "tokens"
            )
        self.selected = select % (self.num_layers + 1)  # index into the hidden states
        if self.selected == 0:
            raise ValueError(f"vision_feature_layer={select}: the embeddings have no attention")

    def attach(self, hooks, need=(), attention=(), hidden=()) -> None:
        for layer in self.watched(need, attention):
            for name in ("q_proj", "k_proj"):
                record = self.record((layer, name), lambda args, kwargs, out: out)
                hooks.behind(getattr(self.attentions[layer], name), record)

    def read(self, inputs, need=(), attention=(), hidden=()) -> Found:
        """As `Family.read`; one entry: all images have one size."""
        pixels = inputs["pixel_values"]
        self._check_options(inputs)
        states = sorted({self.selected, *hidden})
        out, seen = self.run(pixels, output_hidden_states=states)

        def projected(layer: int, name: str) -> Tensor:
            heads = self.attentions[layer].num_heads
            return seen[layer, name].unflatten(-1, (heads, -1)).transpose(1, 2)  # b h s p

        def weights(function: Callable[[Tensor, Tensor], Tensor], layer: int) -> Tensor:
            return function(projected(layer, "q_proj"), projected(layer, "k_proj"))

        patch = self.tower.config.patch_size
        vision = VisionOutputs(
            out.hidden_states[self.selected],
            (pixels.shape[-2] // patch, pixels.shape[-1] // patch),
            self.core.multi_modal_projector,
            self.num_prefix,
            weights(cls_row, self.deep)[..., self.num_prefix :] if "cls_row" in need else None,
            projected(self.deep, "k_proj").mean(dim=1) if "keys" in need else None,
            {layer: weights(full_map, layer) for layer in attention},
            {index: out.hidden_states[index] for index in hidden},
        )
        return [(list(range(len(pixels))), vision)]

    def _check_options(self, inputs: dict[str, Any]) -> None:
        for name in ("vision_feature_layer", "vision_feature_select_strategy", "image_sizes"):
            given = inputs.get(name)
            if given is not None and given != getattr(self.model.config, name, None):
                raise ValueError(
                    f"{name}={given!r} in a forward call is not supported while pruning: set it "
                    "in the model's configuration"
                )

    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, None]:
        """Position ids (B, S) as the model itself would number a prompt, and what `after` needs to go on."""
        ids = inputs["input_ids"]
        return torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1), None

    def delta(self, positions: Tensor, mask: Tensor | None, draft: int) -> None:
        """What `after` needs behind a prompt with these positions."""

    def after(self, past: int, new: Tensor, mask: Tensor | None, delta: None) -> Tensor:
        """Position ids (B, n) of tokens `new` (B, n, ...) behind `past` others."""
        return torch.arange(past, past + new.shape[1], device=new.device).expand(len(new), -1)


# ------------------------------------------------------------------------------------------------------------ Qwen2.5-VL
class Qwen(Family):
    """Qwen2_5_VLForConditionalGeneration: `tower` with windows and its `merger` -> `language` with three-part positions."""

    default_positions = "keep"
    num_prefix = 0

    def __init__(self, model: Any):
        super().__init__(model)
        self.language, self.tower = self.core.language_model, self.core.visual
        self.image_token = model.config.image_token_id
        self.attentions = [block.attn for block in self.tower.blocks]
        self.num_layers = self.selected = len(self.attentions)
        self.merge = self.tower.spatial_merge_size

    def project(self, features: Tensor) -> Tensor:
        """The merger: (..., 4 C) -> (..., D)."""
        patches = features.reshape(-1, features.shape[-1] // self.merge**2)
        return self.tower.merger(patches).unflatten(0, features.shape[:-1])

    def attach(self, hooks, need=(), attention=(), hidden=()) -> None:
        for layer in self.watched(need, attention):
            attn = self.attentions[layer]
            hooks.behind(attn.qkv, self.record((layer, "qkv"), lambda args, kwargs, out: out))
            for name in ("cu_seqlens", "position_embeddings"):
                record = self.record((layer, name), lambda args, kwargs, name=name: kwargs[name])
                hooks.before(attn, record)
        for index in {self.selected, *hidden}:
            if index == 0:
                record = self.record("state 0", lambda args, kwargs: args[0])
                hooks.before(self.tower.blocks[0], record)
            else:
                record = self.record(f"state {index}", lambda args, kwargs, out: out)
                hooks.behind(self.tower.blocks[index - 1], record)

    def _order(self, grids: Tensor) -> Tensor:
        config, module = self.tower, sys.modules[type(self.tower).__module__]
        if hasattr(module, "get_vision_window_index"):
            order, _ = module.get_vision_window_index(
                grids, self.merge, config.window_size, config.patch_size
            )
        else:
            order, _ = config.get_window_index(grids)
        return order.to(grids.device)

    def read(self, inputs, need=(), attention=(), hidden=()) -> Found:
        """As `Family.read`. Images with one grid share an entry."""
        grids = inputs.get("image_grid_thw")
        if grids is None:
            raise ValueError(
                "image_grid_thw is missing: Qwen2.5-VL's processor gives it together with "
                "pixel_values"
            )
        if (grids[:, 0] != 1).any():
            raise ValueError(
                f"image_grid_thw={grids.tolist()}: only still images (t = 1) can be pruned"
            )
        out, seen = self.run(inputs["pixel_values"].to(self.tower.dtype), grid_thw=grids)
        order, unit = self._order(grids), self.merge**2
        back = order.argsort()  # raster place -> place in the tower

        def raster(x: Tensor) -> Tensor:
            """(4 N, C) -> (N, 4, C), all images."""
            return x.unflatten(0, (-1, unit))[back]

        states = {i: raster(seen[f"state {i}"]).flatten(1) for i in {self.selected, *hidden}}
        keys = None
        if "keys" in need:  # before they are rotated
            heads = self.attentions[self.deep].num_heads
            key = seen[self.deep, "qkv"].unflatten(-1, (3, heads, -1))[:, 1]
            keys = raster(key.mean(dim=1)).mean(dim=1)  # n p
        ends = (grids.prod(dim=1) // unit).cumsum(0).tolist()
        rows = [slice(a, b) for a, b in itertools.pairwise([0, *ends])]
        alike: dict[tuple[int, int], list[int]] = {}
        for image, (_, h, w) in enumerate(grids.tolist()):
            alike.setdefault((h // self.merge, w // self.merge), []).append(image)
        found = []
        for grid, images in alike.items():

            def split(x: Tensor, images: list[int] = images) -> Tensor:
                return torch.stack([x[rows[i]] for i in images])

            maps = {
                layer: torch.stack([self._map(seen, layer, rows[i], order) for i in images])
                for layer in attention
            }
            vision = VisionOutputs(
                split(states[self.selected]),
                grid,
                self.project,
                0,
                None,
                None if keys is None else split(keys),
                maps,
                {index: split(states[index]) for index in hidden},
            )
            vision.tokens = split(out.pooler_output)  # the tower has merged them already
            found.append((images, vision))
        return found

    def _map(self, seen: dict, layer: int, rows: slice, order: Tensor) -> Tensor:
        """(heads, n, n): the layer's weights among the merged tokens `rows` of one image, in raster order."""
        attn, unit, size = self.attentions[layer], self.merge**2, rows.stop - rows.start
        rotated = sys.modules[type(attn).__module__].apply_rotary_pos_emb_vision
        query, key, _ = seen[layer, "qkv"].unflatten(-1, (3, attn.num_heads, -1)).unbind(1)
        query, key = rotated(query, key, *seen[layer, "position_embeddings"])
        query, key = (x.transpose(0, 1)[None] for x in (query, key))  # 1 h s p
        whole = query.new_zeros(attn.num_heads, size * unit, size * unit, dtype=torch.float32)
        first = rows.start * unit
        for start, stop in itertools.pairwise(seen[layer, "cu_seqlens"].tolist()):
            if first <= start < rows.stop * unit:
                window, here = slice(start, stop), slice(start - first, stop - first)
                whole[:, here, here] = full_map(query[:, :, window], key[:, :, window])[0]
        merged = whole.unflatten(1, (size, unit)).unflatten(3, (size, unit))
        merged = merged.mean(dim=2).sum(dim=-1)  # h n n
        back = (order[rows] - rows.start).argsort()
        return merged[:, back][:, :, back]

    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Position ids (3, B, S) as the model itself would number a prompt, and what `after` needs to go on: by how much the
        words behind it are shifted (B, 1), None for not at all."""
        ids, kinds = inputs["input_ids"], inputs.get("mm_token_type_ids")
        if kinds is None or inputs.get("image_grid_thw") is None:
            return torch.arange(ids.shape[1], device=ids.device).expand(3, len(ids), -1), None
        positions, delta = self.core.get_rope_index(
            ids,
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs.get("attention_mask"),
            mm_token_type_ids=kinds,
        )
        self.core.rope_deltas = delta  # as its own forward does: `generate` reads it
        return positions, delta

    def parts(self, positions: Tensor) -> Tensor:
        """(B, S) and (1, B, S) -> (3, B, S); three and four parts as they are."""
        one = positions.dim() == 2 or len(positions) == 1
        return positions.expand(3, *positions.shape[-2:]) if one else positions

    def delta(self, positions: Tensor, mask: Tensor | None, draft: int) -> Tensor:
        """What `after` needs behind a prompt with these positions, without a draft: (B, 1)."""
        size = positions.shape[-1] - draft
        last = positions[-3:, :, :size].amax(dim=(0, 2))
        real = size if mask is None else mask[:, :size].sum(dim=1)
        return (last + 1 - real)[:, None]

    def after(self, past: int, new: Tensor, mask: Tensor | None, delta: Tensor | None) -> Tensor:
        """Position ids (3, B, n) of tokens `new` (B, n, ...) behind `past` others."""
        place = torch.arange(past, past + new.shape[1], device=new.device).expand(len(new), -1)
        if mask is not None:
            place = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        return (place if delta is None else place + delta.to(place.device)).expand(3, -1, -1)


FAMILIES = {"llava": Llava, "qwen2_5_vl": Qwen}


def family(model: Any) -> Family:
    """What this module knows of a model: `Llava` or `Qwen`. ValueError for any other class."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES or not hasattr(getattr(model, "model", None), "language_model"):
        raise ValueError(
            f"model={type(model).__name__} is not supported: needs LlavaForConditionalGeneration "
            "or Qwen2_5_VLForConditionalGeneration, or CLIPModel for CrossGET"
        )
    return FAMILIES[kind](model)


def read(
    model: Any,
    inputs: dict[str, Any],
    need: Collection[str] = (),
    attention: Sequence[int] = (),
    hidden: Sequence[int] = (),
) -> Found:
    """`Family.read` of a model that no block prunes: hooks on, one forward of its tower, hooks off."""
    known, hooks = family(model), Hooks()
    try:
        known.attach(hooks, need, attention, hidden)
        return known.read(inputs, need, attention, hidden)
    finally:
        hooks.remove()
