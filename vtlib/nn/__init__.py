"""The vocabulary all papers share: attention, blocks, patches, positions, windows, warping."""

from .attention import Attention, CrossAttention, attend
from .blocks import Block, DropPath, Mlp
from .checks import (
    check_finite,
    check_float,
    check_heads,
    check_images,
    check_int,
    check_ints,
    check_multiple,
    check_number,
    check_tokens,
)
from .norms import ChannelNorm
from .patches import PatchEmbed, patchify, unpatchify
from .positions import (
    apply_rope,
    mirrored,
    places_2d,
    resize_pos_embed,
    rope_1d,
    rope_2d,
    rope_at,
    sincos_2d,
)
from .warp import warp
from .weights import load_weights, unwrap
from .windows import (
    pad_to_multiple,
    relative_index,
    relative_offsets,
    window_merge,
    window_partition,
)

__all__ = [
    "Attention", "Block", "ChannelNorm", "CrossAttention", "DropPath", "Mlp", "PatchEmbed",
    "apply_rope", "attend", "check_finite", "check_float", "check_heads", "check_images",
    "check_int", "check_ints", "check_multiple", "check_number", "check_tokens", "load_weights",
    "mirrored", "pad_to_multiple", "patchify", "places_2d", "relative_index", "relative_offsets",
    "resize_pos_embed", "rope_1d", "rope_2d", "rope_at", "sincos_2d", "unpatchify", "unwrap",
    "warp", "window_merge", "window_partition",
]
