"""Bad input ends here: each check raises a ValueError that names the argument, what it got and what it needs.

They look at shapes only, so they cost nothing, work on the meta device and under torch.compile. NaNs are left to the user.
"""


def check_images(images, in_chans=3, name="images"):
    """Raise unless `images` is a batch (B, in_chans, H, W) with B, H, W >= 1."""
    shape = tuple(images.shape)
    if len(shape) != 4:
        raise ValueError(f"{name} has shape {shape} but needs 4 axes (B, {in_chans}, H, W); a single image needs images[None]")
    if shape[1] != in_chans:
        hint = "; the channels come last here, permute them to axis 1" if shape[3] == in_chans else ""
        raise ValueError(f"{name} has {shape[1]} channels (shape {shape}) but the model needs {in_chans}{hint}")
    if 0 in shape:
        raise ValueError(f"{name} is empty: shape {shape}; at least one image and one pixel are needed")


def check_tokens(x, dim=None, name="tokens"):
    """Raise unless `x` is (B, N, D) with B, N >= 1 and, if given, D == dim."""
    shape = tuple(x.shape)
    if len(shape) != 3:
        raise ValueError(f"{name} has shape {shape} but needs 3 axes (B, N, D)")
    if dim is not None and shape[2] != dim:
        raise ValueError(f"{name} has {shape[2]} channels (shape {shape}) but this layer needs D = {dim}")
    if 0 in shape:
        raise ValueError(f"{name} is empty: shape {shape}")


def check_multiple(size, multiple, name="image size"):
    """Raise unless both sides of `size` = (H, W) are multiples of `multiple` (an int or a pair)."""
    pair = multiple if isinstance(multiple, tuple) else (multiple, multiple)
    if any(s % m for s, m in zip(size, pair)):
        good = tuple(-(-s // m) * m for s, m in zip(size, pair))
        raise ValueError(f"{name} {tuple(size)} is not a multiple of {multiple}; resize or pad it to {good}")


def check_heads(embed_dim, num_heads):
    """Raise unless the channels divide evenly among the heads; returns the channels per head."""
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"embed_dim={embed_dim} does not divide into num_heads={num_heads}: each head needs the same number of channels")
    return embed_dim // num_heads
