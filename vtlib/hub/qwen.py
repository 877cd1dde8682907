"""transformers' Qwen2.5-VL: a tower whose patches go through the blocks in the order of its
windows, a merger that makes one visual token of 2 x 2 neighbours, and a decoder whose positions
have three parts.

Here N counts merged tokens in raster order: features (B, N, 4 C) are the merger's input; attention
maps are mean over the four queries and sum over the four keys, so that rows still sum to 1 (0
outside of a window in blocks that have windows); keys are means of the four.
"""

import itertools
import sys
from typing import Any

import torch
from torch import Tensor

from ..tokens import VisionOutputs
from .hooks import Hooks
from .tower import Family, Found, Reads, full_map


class Qwen(Family):
    """Qwen2_5_VLForConditionalGeneration: `tower` with windows and its `merger` -> `language` with
    three-part positions."""

    default_positions = "keep"
    position_parts = (1, 3, 4)
    num_prefix = 0

    def __init__(self, model: Any):
        super().__init__(model)
        self.language, self.tower = self.core.language_model, self.core.visual
        self.image_token = model.config.image_token_id
        self.video_token = model.config.video_token_id
        self.attentions = [block.attn for block in self.tower.blocks]
        self.num_layers = self.selected = len(self.attentions)
        self.merge = self.tower.spatial_merge_size
        self.unit = self.merge**2  # patches of a merged token

    def project(self, features: Tensor) -> Tensor:
        """The merger: (..., 4 C) -> (..., D)."""
        patches = features.reshape(-1, features.shape[-1] // self.unit)
        return self.tower.merger(patches).unflatten(0, features.shape[:-1])

    # -------------------------------------------------------------------------------- the tower
    def attach(self, hooks: Hooks, reads: Reads) -> None:
        for layer in self.watched(reads):
            attn = self.attentions[layer]
            # for a choice, which has no gradient, with checkpointing or without
            record = self.record((layer, "qkv"), lambda args, kwargs, out: out.detach())
            hooks.behind(attn.qkv, record)
            for name in ("cu_seqlens", "position_embeddings"):
                record = self.record((layer, name), lambda args, kwargs, name=name: kwargs[name])
                hooks.before(attn, record)
        for index in {self.selected, *reads.hidden}:
            if index == 0:
                record = self.record("state 0", lambda args, kwargs: args[0])
                hooks.before(self.tower.blocks[0], record)
            else:
                record = self.record(f"state {index}", lambda args, kwargs, out: out)
                hooks.behind(self.tower.blocks[index - 1], record)

    def read(self, inputs: dict[str, Any], reads: Reads) -> Found:
        """As `Family.read`. Images with one grid share an entry."""
        grids = _still_grids(inputs)
        out, seen = self.run(inputs["pixel_values"].to(self.tower.dtype), grid_thw=grids)
        order = self._order(grids)
        back = order.argsort()  # raster place -> place in the tower

        def raster(x: Tensor) -> Tensor:
            """(4 N, C) -> (N, 4, C), all images."""
            return x.unflatten(0, (-1, self.unit))[back]

        states = {i: raster(seen[f"state {i}"]).flatten(1) for i in {self.selected, *reads.hidden}}
        keys = None
        if "keys" in reads.need:  # before they are rotated
            heads = self.attentions[self.deep].num_heads
            key = seen[self.deep, "qkv"].unflatten(-1, (3, heads, -1))[:, 1]
            keys = raster(key.mean(dim=1)).mean(dim=1)  # n p
        ends = (grids.prod(dim=1) // self.unit).cumsum(0).tolist()
        rows = [slice(a, b) for a, b in itertools.pairwise([0, *ends])]
        found: Found = []
        for grid, images in self._alike(grids).items():
            here = [rows[image] for image in images]
            maps = {
                layer: torch.stack([self._map(seen, layer, part, order) for part in here])
                for layer in reads.attention
            }
            vision = VisionOutputs(
                _rows(states[self.selected], here),
                grid,
                self.project,
                num_prefix=0,
                keys=None if keys is None else _rows(keys, here),
                attention=maps,
                hidden={index: _rows(states[index], here) for index in reads.hidden},
            )
            vision.tokens = _rows(out.pooler_output, here)  # the tower has merged them already
            found.append((images, vision))
        return found

    def _alike(self, grids: Tensor) -> dict[tuple[int, int], list[int]]:
        """Images by their grid of merged tokens."""
        alike: dict[tuple[int, int], list[int]] = {}
        for image, (_, h, w) in enumerate(grids.tolist()):
            alike.setdefault((h // self.merge, w // self.merge), []).append(image)
        return alike

    def _order(self, grids: Tensor) -> Tensor:
        """Place in the tower -> raster place, of the merged tokens of all images."""
        tower, module = self.tower, sys.modules[type(self.tower).__module__]
        if hasattr(module, "get_vision_window_index"):
            order, _ = module.get_vision_window_index(
                grids, self.merge, tower.window_size, tower.patch_size
            )
        else:
            order, _ = tower.get_window_index(grids)
        return order.to(grids.device)

    def _map(self, seen: dict, layer: int, rows: slice, order: Tensor) -> Tensor:
        """(heads, n, n): a layer's weights among the merged tokens of one image, in raster order.

        Args:
            seen: what the hooks recorded.
            layer: which, 0-based.
            rows: the image's tokens among those of all.
            order: see `_order`.
        """
        attn, size = self.attentions[layer], rows.stop - rows.start
        rotated = sys.modules[type(attn).__module__].apply_rotary_pos_emb_vision
        query, key, _ = seen[layer, "qkv"].unflatten(-1, (3, attn.num_heads, -1)).unbind(1)
        query, key = rotated(query, key, *seen[layer, "position_embeddings"])
        query, key = (x.transpose(0, 1)[None] for x in (query, key))  # 1 h s p
        patches, first = size * self.unit, rows.start * self.unit
        whole = query.new_zeros(attn.num_heads, patches, patches, dtype=torch.float32)
        for start, stop in itertools.pairwise(seen[layer, "cu_seqlens"].tolist()):
            if first <= start < rows.stop * self.unit:
                window, here = slice(start, stop), slice(start - first, stop - first)
                whole[:, here, here] = full_map(query[:, :, window], key[:, :, window])[0]
        merged = whole.unflatten(1, (size, self.unit)).unflatten(3, (size, self.unit))
        merged = merged.mean(dim=2).sum(dim=-1)  # h n n
        back = (order[rows] - rows.start).argsort()
        return merged[:, back][:, :, back]


def _still_grids(inputs: dict[str, Any]) -> Tensor:
    """image_grid_thw (images, 3). ValueError where it is missing or of a video."""
    grids = inputs.get("image_grid_thw")
    if grids is None:
        raise ValueError(
            "image_grid_thw is missing: Qwen2.5-VL's processor gives it together with pixel_values"
        )
    if (grids[:, 0] != 1).any():
        raise ValueError(
            f"image_grid_thw={grids.tolist()}: only still images (t = 1) can be pruned"
        )
    return grids


def _rows(x: Tensor, parts: list[slice]) -> Tensor:
    """(N, C) of all images -> (M, n, C) of those that stand in `parts`."""
    return torch.stack([x[part] for part in parts])
