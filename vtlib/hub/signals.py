"""What the vision tower of any model says of its visual tokens: [CLS] row, keys, attention, states.

A tower's layers are found by their attention; hooks record what the needed ones are given, and
their queries and keys come from `probe` afterwards, so that the tower runs as it always does. What
is left per model is which patches make one token, the map `source`, of three kinds:

    tiles    a batch of tiles of P patches makes N tokens: each is a block of r x r patches of its
             tile, r^2 = T P / N (1: LLaVA, PaliGemma; pixel shuffle: InternVL, SmolVLM, Llama 4;
             mean pooling: Gemma 3)
    packed   tiles whose tokens are cut to the picture's shape, with a newline behind each row
             (LLaVA-NeXT, OneVision): the model's own function packs the numbers of the patches
    raster   images one behind the other in one sequence, each token r x r patches of its image
             (Pixtral's tower in Mistral 3)
    merged   the same, but the patches of a token are neighbours in the sequence (Qwen2-VL, GLM-4V)

Of r x r patches a token has the sum of the [CLS] row, the mean of keys and states; of attention
maps the mean over the queries and the sum over the keys, so that rows still sum to 1 (less what
[CLS] got). A newline has none of it: zeros. Keys are rotated in raster and merged towers, and in
Llama 4's.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import named
from .probe import attention_of, probe, queries_and_keys
from .tower import Reads, full_map

KINDS = {
    "tiles": """aya_vision cohere2_vision deepseek_vl gemma3 idefics3 internvl janus llama4 llava
        ovis2 paligemma smolvlm video_llava vipllava""".split(),
    "packed": "llava_next llava_next_video llava_onevision".split(),
    "raster": "lighton_ocr mistral3".split(),
    "merged": "glm46v glm4v qwen2_vl qwen3_vl qwen3_vl_moe".split(),
}
"""Which model_type's tokens are made how; tests/hub/test_signals.py tests each."""
PREFIX = ("class_embedding", "cls_token")


def kind_of(model: Any) -> str | None:
    """"tiles", "packed" or "raster"; None for a model whose tower is not read."""
    kind = model.config.model_type
    found = next((name for name, types in KINDS.items() if kind in types), None)
    tower = getattr(model.config, "vision_config", None)
    if kind == "llava" and getattr(tower, "model_type", None) == "pixtral":
        found = "raster"
    return found if found and tower_of(model) is not None else None


def tower_of(model: Any) -> nn.Module | None:
    """The vision tower; None where there is none whose layers have attention."""
    try:
        tower = model.get_encoder(modality="image")
    except (AttributeError, TypeError, ValueError):
        return None
    return tower if isinstance(tower, nn.Module) and layers_of(tower) else None


def layers_of(tower: nn.Module) -> list[nn.Module]:
    """The layers of a tower: its longest list of modules with attention."""
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m)]
    lists = [m for m in lists if all(attention_of(layer) is not None for layer in m)]
    return list(max(lists, key=len)) if lists else []


def prefix_of(tower: nn.Module) -> int:
    """1 for a tower with [CLS], else 0."""
    names = (name.rpartition(".")[2] for name, _ in tower.named_parameters())
    return int(any(name in PREFIX for name in names))


def sizes_of(out: Any) -> list[int] | None:
    """How many tokens each image (or tile) of what get_image_features gave has; None where that
    does not say it. Llama 4 gives states in place of tokens."""
    tokens = getattr(out, "pooler_output", None)
    tokens = getattr(out, "last_hidden_state", None) if tokens is None else tokens
    if isinstance(tokens, (list, tuple)) and all(isinstance(t, Tensor) for t in tokens):
        return [t.numel() // t.shape[-1] for t in tokens]
    if isinstance(tokens, Tensor) and tokens.dim() == 3:
        return [tokens.shape[1]] * tokens.shape[0]
    return None


# -------------------------------------------------------------------------------- what is recorded
def note(layer: nn.Module) -> Callable[..., Any]:
    """What `Family.record` keeps of a layer: (its input, its other arguments)."""

    def of(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        given = named(layer, args, kwargs)
        first = "hidden_states" if "hidden_states" in given else next(iter(given))
        return given.pop(first).detach(), given

    return of


@dataclass
class Signals:
    """What was read of all visual tokens of a call, T of them, in the order of the placeholders.

    source (T, k): the numbers of the patches that made each, -1 for none. blocks: the (start, end)
    of patches that see each other. cls_row (heads, T), keys (T, head_dim), hidden {index: (T, C)};
    maps {layer: [(heads, P, P) a block]}, of patches.
    """

    source: Tensor
    blocks: list[tuple[int, int]]
    cls_row: Tensor | None
    keys: Tensor | None
    hidden: dict[int, Tensor]
    maps: dict[int, list[Tensor]]

    def attention(self, layer: int, start: int, stop: int) -> Tensor:
        """(heads, n, n): a layer's weights among some tokens; 0 between those of different blocks.

        Args:
            layer: 0-based.
            start: the first token.
            stop: behind the last.
        """
        source = self.source[start:stop]
        heads = self.maps[layer][0].shape[0]
        out = self.maps[layer][0].new_zeros(heads, len(source), len(source))
        for (low, high), weights in zip(self.blocks, self.maps[layer], strict=True):
            here = ((source >= low) & (source < high)).all(dim=1).nonzero()[:, 0]
            if len(here):
                patch = source[here] - low                                               # n k
                part = weights[:, patch].mean(dim=2)[:, :, patch].sum(dim=3)             # h n n
                out[:, here[:, None], here] = part
        return out


def gathered(
    reads: Reads, deep: int, seen: dict[Any, Any], layers: list[nn.Module], shape: "Shape"
) -> Signals:
    """`Signals` of what the hooks recorded.

    Args:
        reads: what is wanted.
        deep: the layer, 0-based, that made the features.
        seen: {("layer", i): (input, arguments)} of the layers that are needed.
        layers: of the tower.
        shape: of this call's patches and tokens.
    """
    pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def flat(layer: int) -> tuple[Tensor, Tensor]:
        """Queries and keys (heads, all places, P)."""
        if layer not in pairs:
            hidden, given = seen["layer", layer]
            if "cu_seqlens" in given:  # all images at once; who sees whom is `shape.places`
                given = {**given, "cu_seqlens": given["cu_seqlens"][[0, -1]]}
            found = queries_and_keys(probe(layers[layer]), hidden, given)
            pairs[layer] = tuple(t.transpose(0, 1).flatten(1, 2) for t in found)
        return pairs[layer]

    def maps(layer: int) -> list[Tensor]:
        """Weights of each block, of [CLS] (if any) first, then of patches."""
        query, key = flat(layer)
        return [full_map(query[None, :, at], key[None, :, at])[0] for at in shape.places]

    row = keys = None
    with torch.no_grad():
        if "cls_row" in reads.need:
            query, key = flat(deep)
            found = [
                full_map(query[None, :, at[:1]], key[None, :, at])[0, :, 0, 1:]
                for at in shape.places
            ]
            row = _made(torch.cat(found, dim=1), shape.source).sum(dim=-1)               # h t
        if "keys" in reads.need:
            patches = flat(deep)[1][:, shape.patches].mean(dim=0)
            keys = _made(patches.T, shape.source).mean(dim=-1).T                         # t p
        weights = {}
        for layer in reads.attention:
            weights[layer] = [m[:, shape.prefix :, shape.prefix :] for m in maps(layer)]
    hidden = {}
    for index in reads.hidden:
        states = seen["layer", index][0] if index < len(layers) else seen["end"]
        states = states.reshape(-1, states.shape[-1])[shape.patches]
        hidden[index] = _made(states.T, shape.source).mean(dim=-1).T
    return Signals(shape.source, shape.blocks, row, keys, hidden, weights)


def _made(x: Tensor, source: Tensor) -> Tensor:
    """x (..., patches) at source (T, k) -> (..., T, k); zeros where there is none."""
    return x[..., source.clamp(min=0)].masked_fill(source < 0, 0.0)


# ----------------------------------------------------------------------- which patches make a token
@dataclass
class Shape:
    """How a call's patches stand in the tower, and which make a token.

    prefix: 1 if there is a [CLS]. places: of each block its places among all of the tower's, [CLS]
    first. patches (all patches,): the places without [CLS]. blocks: (start, end) of each block's
    patches. source: see `Signals`.
    """

    prefix: int
    places: list[Tensor]
    patches: Tensor
    blocks: list[tuple[int, int]]
    source: Tensor


def tiles(states: Tensor, total: int, prefix: int, last: bool) -> Shape:
    """Tiles (T, prefix + P, C) that make `total` tokens.

    Args:
        states: of the tower.
        total: how many tokens there are; None of them is cut off.
        prefix: 1 if there is a [CLS].
        last: whether it stands behind the patches.
    """
    count, size = states.shape[0], states.shape[1] - prefix
    side, ratio = math.isqrt(size), math.isqrt(max(count * size // max(total, 1), 1))
    if side * side != size or ratio * ratio * total != count * size or side % ratio:
        raise ValueError(
            f"{count} tiles of {size} patches make {total} tokens: it is not known which make which"
        )
    base = squares(side, side, ratio, states.device)
    starts = torch.arange(count, device=states.device)[:, None, None] * size
    return _tiled(states, prefix, last, (base + starts).flatten(0, 1))


def _tiled(states: Tensor, prefix: int, last: bool, source: Tensor) -> Shape:
    """A `Shape` of tiles.

    Args:
        states: (T, prefix + P, C).
        prefix: 1 if there is a [CLS].
        last: whether it stands behind the patches.
        source: (tokens, k).
    """
    count, length = states.shape[:2]
    size = length - prefix
    order = torch.arange(length, device=states.device)
    order = order.roll(1) if last and prefix else order
    whole = [order + tile * length for tile in range(count)]
    ends = range(0, (count + 1) * size, size)
    patches = torch.cat([at[prefix:] for at in whole])
    return Shape(prefix, whole, patches, list(itertools.pairwise(ends)), source)


def packed(
    states: Tensor, prefix: int, pack: Callable[[list[Tensor]], list[Tensor]], counts: list[int]
) -> Shape:
    """Tiles whose tokens the model packs.

    Args:
        states: (T, prefix + P, C) of the tower.
        prefix: 1 if there is a [CLS].
        pack: the model's function, of one (tiles, P, 1) an image; newlines are -1.
        counts: tiles of each image.
    """
    size = states.shape[1] - prefix
    number = torch.arange(states.shape[0] * size, device=states.device, dtype=torch.float64)
    number = number.view(states.shape[0], size, 1)
    source = torch.cat(list(pack(list(number.split(counts)))))
    if not torch.equal(source, source.round()):
        raise ValueError(
            "an image has more tiles than its model takes, which resizes their features: a method "
            "that reads the vision tower needs a smaller one"
        )
    return _tiled(states, prefix, False, source.long())


def raster(states: Tensor, grids: list[tuple[int, int]], ratio: int) -> Shape:
    """Images (1, all patches, C), one behind the other.

    Args:
        states: of the tower.
        grids: (h, w) of each image's patches.
        ratio: r, of r x r patches a token.
    """
    ends = [0, *itertools.accumulate(h * w for h, w in grids)]
    blocks = list(itertools.pairwise(ends))
    every = torch.arange(states.shape[1], device=states.device)
    if ends[-1] != len(every):
        raise ValueError(f"images of {grids} patches, but the tower has {len(every)}")
    source = [
        squares(h, w, ratio, states.device) + start
        for (h, w), start in zip(grids, ends, strict=False)
    ]
    return Shape(0, [every[a:b] for a, b in blocks], every, blocks, torch.cat(source))


def merged(states: Tensor, ends: list[int], unit: int) -> Shape:
    """Images (all patches, C), one behind the other, each token `unit` neighbours.

    Args:
        states: of the tower.
        ends: 0 and where each image ends.
        unit: patches of a token.
    """
    every = torch.arange(states.shape[0], device=states.device)
    blocks = list(itertools.pairwise(ends))
    return Shape(0, [every[a:b] for a, b in blocks], every, blocks, every.view(-1, unit))


def squares(height: int, width: int, ratio: int, device: Any) -> Tensor:
    """(tokens, r^2): the patches, row-major, of each r x r square of a grid; what is left over at
    its ends makes no token.

    Args:
        height: of the grid.
        width: of the grid.
        ratio: r.
        device: of the table.
    """
    grid = torch.arange(height * width, device=device).view(height, width)
    grid = grid[: height // ratio * ratio, : width // ratio * ratio]
    parts = grid.unfold(0, ratio, ratio).unfold(1, ratio, ratio)
    return parts.flatten(2).flatten(0, 1)
