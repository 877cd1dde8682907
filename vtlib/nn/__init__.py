"""The vocabulary all papers share: attention, blocks, convolutional nets, patches,
positions, windows, warping."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".attention": ("Attention", "CrossAttention", "attend", "start_alike"),
    ".blocks": ("Block", "DropPath", "Mlp"),
    ".checks": (
        "check_callable", "check_device", "check_dtype", "check_finite", "check_flag",
        "check_float", "check_heads",
        "check_images", "check_int", "check_ints", "check_multiple", "check_number",
        "check_numbers", "check_odd", "check_tokens",
    ),
    ".cnn": ("AttnBlock", "CNNDecoder", "CNNEncoder", "Downsample", "ResBlock", "Upsample"),
    ".norms": ("ChannelNorm",),
    ".patches": ("PatchEmbed", "patchify", "unpatchify"),
    ".pixels": ("IMAGENET_MEAN", "IMAGENET_STD"),
    ".positions": (
        "apply_rope", "mirrored", "places_2d", "resize_pos_embed", "rope_1d", "rope_2d", "rope_at",
        "sincos_2d",
    ),
    ".regions": ("region_tokens",),
    ".warping": ("warp",),
    ".weights": ("load_weights", "unwrap"),
    ".windows": (
        "pad_to_multiple", "relative_index", "relative_offsets", "window_merge",
        "window_partition",
    ),
})
