"""The vocabulary all papers share: attention, blocks, patches, positions, windows."""

from .attention import Attention, attend
from .blocks import Block, DropPath, Mlp
from .checks import (
    check_finite,
    check_float,
    check_heads,
    check_images,
    check_int,
    check_multiple,
    check_tokens,
)
from .patches import PatchEmbed, patchify, unpatchify
from .positions import apply_rope, resize_pos_embed, rope_1d, rope_2d, rope_at, sincos_2d
from .weights import load_weights, unwrap
from .windows import (
    pad_to_multiple,
    relative_index,
    relative_offsets,
    window_merge,
    window_partition,
)

__all__ = [
    "Attention", "Block", "DropPath", "Mlp", "PatchEmbed", "apply_rope", "attend",
    "check_finite", "check_float", "check_heads", "check_images", "check_int", "check_multiple",
    "check_tokens", "load_weights", "pad_to_multiple", "patchify", "relative_index",
    "relative_offsets",
    "resize_pos_embed", "rope_1d", "rope_2d", "rope_at", "sincos_2d", "unpatchify", "unwrap",
    "window_merge", "window_partition",
]
