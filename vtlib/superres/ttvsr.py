"""TTVSR - Learning Trajectory-Aware Transformer for Video Super-Resolution
(Liu, Yang, Fu, Qian, CVPR 2022, arXiv 2204.04216).

The idea: the texture that a frame lacks may have been seen thirty frames ago, but attention over
all tokens of a video is too dear, and a recurrent state forgets. So store, for every 4 x 4 token of
the present frame, *where its content was* in each past key frame (location maps, carried along by
optical flow), and attend only there: one comparison per key frame. The best match is taken hard,
weighted by its cosine, and read at three patch sizes, because things change size on their way.

    L <- [L(grid + flow / s); grid]    carry, identity_grid      (paper eq. 6-8: location maps;
                                                                  the new pair after a key frame)
    h_j = cos(q, k_j at L_j)           gather_tokens, LTAM       (eq. 3: along the trajectory)
    j* = argmax_j h_j,  w = max_j h_j  LTAM                      (eq. 4: hard choice, soft weight;
                                                                  no softmax, no projections)
    p + conv([V1; V2; V3] at j*) * w   cross_scale_tokens, LTAM  (eq. 5, 9: values at three scales,
                                                                  one choice for all)
    p = R([f_t; p])                    propagate                 (sec. 3.4: first backward, then
                                                                  forward through the clip; both
                                                                  passes share LTAM and R)

State-dict names are the official ones (researchmm/TTVSR, there with the prefix `generator.`), so
official weights load as they are. Different from the official code: positions are read by index
instead of by grid_sample (the same numbers, since maps hold integers), and values only at the
chosen key frame; `location="fractional"` is a repair of ours (below); `trajectories=False` is the
recurrent net without memory that a comparison needs; every width is an argument; frames smaller
than 64 pixels are accepted; pixel shuffles start as torch starts a convolution (there: kaiming,
bias 0). Where paper and code differ on key frames and buffers, this follows the code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import (
    check_dtype,
    check_finite,
    check_float,
    check_images,
    check_int,
    unwrap,
    warp,
)
from ..nn.checks import as_flag, check_axes, check_flag, check_index, describe, is_several
from ..tokens import take
from .spynet import SPyNet

PAPER = "ttvsr"
MAPS = ("nearest", "fractional")


# ------------------------------------------------------------------------------- location maps
def identity_grid(
    batch: int, height: int, width: int, device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The location map of a key frame at its own time: token (x, y) lies at (x, y).

    Args:
        batch: B.
        height: h, in tokens.
        width: w, in tokens.
        device: where the map is; None: torch's default.
        dtype: of the map.

    Returns (B, 2, h, w), channel 0 = x, in tokens.
    """
    height, width = check_int(height, "height", 1), check_int(width, "width", 1)
    batch = check_int(batch, "batch", 1)
    y = torch.arange(height, device=device, dtype=dtype)[:, None].expand(height, width)
    x = torch.arange(width, device=device, dtype=dtype).expand(height, width)
    return torch.stack([x, y]).expand(batch, -1, -1, -1)


def token_flow(flow: Tensor, stride: int = 4) -> Tensor:
    """Flow (B, 2, H, W) in pixels -> (B, 2, H/s, W/s) in tokens: each token's mean, over s."""
    check_images(flow, 2, "flow")
    return F.adaptive_avg_pool2d(flow, token_grid(flow, stride, "flow")) / stride


def token_grid(x: Tensor, stride: int, name: str) -> tuple[int, int]:
    """(H/s, W/s) of x. ValueError unless the stride divides both sides.

    Args:
        x: (..., H, W).
        stride: s, in pixels.
        name: what the message calls x.
    """
    stride = check_int(stride, "stride", 1)
    check_float(x, name)
    if x.dim() < 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)} but needs (..., H, W)")
    h, w = x.shape[-2:]
    if h % stride or w % stride:
        raise ValueError(
            f"{name} has {h} x {w} pixels but both sides need to be multiples of "
            f"stride={stride}; crop or pad them"
        )
    return h // stride, w // stride


def check_stride(stride: int) -> int:
    """`stride` as an int. ValueError unless patches of 1.5 and 2 strides lie evenly around one."""
    stride = check_int(stride, "stride", 4)
    if stride % 4:
        raise ValueError(
            f"stride={stride} must be a multiple of 4, so that patches of 1.5 and 2 strides "
            f"have whole margins on all sides"
        )
    return stride


def carry(location: Tensor, flow: Tensor, mode: str = "nearest") -> Tensor:
    """Move all location maps one frame on: L(x) <- L(x + flow(x)), borders repeated (paper eq. 7).

    Args:
        location: (B, 2k, h, w), pairs (x, y) in tokens for k key frames.
        flow: (B, 2, h, w) in tokens, from the new frame to the frame before.
        mode: "nearest" is the release: integers stay integers, but a motion of less than half a
            token is rounded away at every step, for ever. "fractional" interpolates the maps; they
            are rounded only when they are read. ValueError for another mode.
    """
    if mode not in MAPS:
        raise ValueError(f"mode={mode!r} must be one of {MAPS}")
    how = "nearest" if mode == "nearest" else "bilinear"
    return warp(location, flow, mode=how, padding="border")


def gather_tokens(tokens: Tensor, location: Tensor, key: Tensor | None = None) -> Tensor:
    """Read token maps (B, C, k, h, w) at round(location), zeros outside the frame.

    Args:
        tokens: (B, C, k, h, w).
        location: (B, k, 2, h, w), every key frame at its own places; with `key` (B, 2, h, w).
        key: None, or (B, h, w), an index into k: each token reads that one key frame only, at a
            cost that does not grow with k.

    Returns (B, C, k, h, w), with `key` (B, C, h, w). ValueError for shapes that do not fit, and
    for places that are not finite.
    """
    check_axes(tokens, "tokens", "(B, C, k, h, w)")
    check_float(location, "location")
    batch, _, k, height, width = tokens.shape
    want = (batch, k, 2, height, width) if key is None else (batch, 2, height, width)
    if location.shape != want:
        raise ValueError(f"location has shape {tuple(location.shape)} but needs {want}")
    _check_key(key, (batch, height, width), k)
    check_finite(location, "location")
    return _gather(tokens, location, key)


def _check_key(key: Tensor | None, shape: tuple[int, int, int], count: int) -> None:
    if key is None:
        return
    check_index(key, "key", "(B, h, w)", shape, count)


def _gather(tokens: Tensor, location: Tensor, key: Tensor | None = None) -> Tensor:
    found, inside = _rows_at(tokens, location, key)
    return (found * inside[..., None]).movedim(-1, 1)


def _rows_at(
    tokens: Tensor, location: Tensor, key: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `gather_tokens` reads, channels last, and whether it lies inside the frame; a place that
    is no number does not.

    Rows of C numbers move as a whole, which is cheap where they lie side by side, as in `push`.
    """
    batch, _, k, height, width = tokens.shape
    x, y = location.round().unbind(-3)                                       # b k h w, or b h w
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x.nan_to_num(), y.nan_to_num()                                    # no wild index
    if key is None:
        key = torch.arange(k, device=tokens.device)[:, None, None]
    at = (key * height + y.clamp(0, height - 1).long()) * width + x.clamp(0, width - 1).long()
    found = take(rearrange(tokens, "b c k h w -> b (k h w) c"), at.reshape(batch, -1))
    return found.unflatten(1, at.shape[1:]), inside


# -------------------------------------------------------------------------------------- tokens
def tokenize(x: Tensor, stride: int = 4) -> Tensor:
    """Feature map (B, c, H, W) -> tokens (B, c*s*s, H/s, W/s) of s x s pixels.

    Inside a token: channel, row, column.
    """
    check_images(x, None, "x")
    token_grid(x, stride, "x")
    return rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=stride, q=stride)


def untokenize(tokens: Tensor, stride: int = 4) -> Tensor:
    """The inverse of `tokenize`."""
    check_images(tokens, None, "tokens")
    if tokens.shape[1] % check_int(stride, "stride", 1) ** 2:
        raise ValueError(
            f"tokens has {tokens.shape[1]} channels but needs a multiple of stride^2={stride**2}"
        )
    return rearrange(tokens, "b (c p q) h w -> b c (h p) (w q)", p=stride, q=stride)


def cross_scale_tokens(x: Tensor, stride: int = 4) -> list[Tensor]:
    """Three tokenisations of x (B, c, H, W), each (B, c*s*s, H/s, W/s), on one grid (sec. 3.3).

    Patches of s, 1.5 s and 2 s pixels around each token (zeros outside the frame), average-pooled
    to s x s: 4, 6 and 8 for s = 4. ValueError for a stride that is no multiple of 4.
    """
    stride = check_stride(stride)
    out = [tokenize(x, stride)]
    h, w = out[0].shape[-2:]
    for size in (stride * 3 // 2, stride * 2):
        patches = F.unfold(x, size, stride=stride, padding=(size - stride) // 2)
        spread = rearrange(
            patches, "b (c p q) (h w) -> b c (h p) (w q)", p=size, q=size, h=h
        )
        pooled = F.adaptive_avg_pool2d(spread, (h * stride, w * stride))
        out.append(tokenize(pooled, stride))
    return out


class _Fusion(nn.Module):
    """What LTAM and its stand-in share: the convolution over three scales."""

    def __init__(self, channels: int = 64, stride: int = 4):
        super().__init__()
        channels = check_int(channels, "channels", 1)
        self.stride = check_int(stride, "stride", 1)
        self.fusion = nn.Conv2d(3 * channels, channels, 3, padding=1)


class LTAM(_Fusion):
    """Attention along trajectories: p + conv([V1; V2; V3] at the best key frame) * its cosine.

    State-dict name `fusion`.
    """

    def forward(
        self, query: Tensor, keys: Tensor, anchor: Tensor, values: Sequence[Tensor],
        location: Tensor, return_attn: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """-> (B, c, H, W).

        Args:
            query: feature f_t (B, c, H, W).
            keys: (B, c*s*s, k, h, w), tokens of k key frames' features.
            anchor: warped state p (B, c, H, W).
            values: three of the keys' shape, tokens of the k states at three scales.
            location: (B, k, 2, h, w), where each token of this frame was in each key frame.
            return_attn: also the cosines (B, k, h, w) and the chosen key frame (B, h, w), an index
                into k.
        """
        return_attn = check_flag(return_attn, "return_attn")
        self._check(query, keys, anchor, values, location)
        eps = max(1e-12, torch.finfo(query.dtype).tiny)             # half precision has no 1e-12
        q = F.normalize(tokenize(query, self.stride), dim=1, eps=eps)         # b c h w
        found, inside = _rows_at(keys, location)                              # b k h w c
        length = found.norm(dim=-1).clamp(min=eps)
        similarity = torch.einsum("bkhwc,bchw->bkhw", found, q) / length * inside
        weight, chosen = similarity.max(dim=1)                                # b h w
        index = chosen[:, None, None].expand(-1, 1, 2, -1, -1)
        place = location.gather(1, index)[:, 0]                               # b 2 h w
        scales = [untokenize(_gather(v, place, chosen), self.stride) for v in values]
        out = self.fusion(torch.cat(scales, dim=1))
        soft = weight[:, None].repeat_interleave(self.stride, 2)
        out = anchor + out * soft.repeat_interleave(self.stride, 3)
        return (out, similarity, chosen) if return_attn else out


    def _check(
        self, query: Tensor, keys: Tensor, anchor: Tensor, values: Sequence[Tensor],
        location: Tensor,
    ) -> None:
        """ValueError unless the arguments of `forward` fit each other."""
        channels = self.fusion.out_channels
        check_images(query, channels, "query")
        if not isinstance(values, (tuple, list)) or len(values) != 3:
            raise ValueError(f"values is {describe(values)} but needs to be three tensors")
        check_axes(keys, "keys", "(B, c*s*s, k, h, w)")
        h, w = token_grid(query, self.stride, "query")
        batch, k = query.shape[0], keys.shape[2]
        tokens, places = (batch, channels * self.stride**2, k, h, w), (batch, k, 2, h, w)
        _check_shape(anchor, "anchor", tuple(query.shape))
        _check_shape(keys, "keys", tokens)
        for i, value in enumerate(values):
            _check_shape(value, f"values[{i}]", tokens)
        _check_shape(location, "location", places)


class OwnPlace(_Fusion):
    """What stands in for LTAM in a net without trajectories.

    The same convolution, on the three scales of the warped state itself, at its own place. Equal
    parameters, equal names; no key frames, no memory beyond the state.
    """

    def forward(self, anchor: Tensor) -> Tensor:
        """(B, c, H, W) -> (B, c, H, W)."""
        check_images(anchor, self.fusion.out_channels, "anchor")
        scales = [untokenize(t, self.stride) for t in cross_scale_tokens(anchor, self.stride)]
        return anchor + self.fusion(torch.cat(scales, dim=1))


# ------------------------------------------------------------------------------------- the net
class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))), no normalisation.

    Both convolutions start at a tenth of their usual size, so that sixty in a row begin tame.
    """

    def __init__(self, channels: int):
        super().__init__()
        channels = check_int(channels, "channels", 1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(0.1)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.conv1.in_channels, "x")
        return x + self.conv2(F.relu(self.conv1(x)))


class ResidualBlocks(nn.Module):
    """Convolution, LeakyReLU 0.1, residual blocks: the encoder phi and R.

    State-dict name `main`.

    Args:
        in_chans: channels that come in.
        channels: of the blocks and what goes out.
        num_blocks: how many residual blocks.
    """

    def __init__(self, in_chans: int, channels: int, num_blocks: int):
        super().__init__()
        in_chans, channels = check_int(in_chans, "in_chans", 1), check_int(channels, "channels", 1)
        num_blocks = check_int(num_blocks, "num_blocks", 0)
        first = nn.Conv2d(in_chans, channels, 3, padding=1)
        blocks = nn.Sequential(*[ResidualBlock(channels) for _ in range(num_blocks)])
        self.main = nn.Sequential(first, nn.LeakyReLU(0.1), blocks)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.main[0].in_channels, "x")
        return self.main(x)


class PixelShuffleUp(nn.Module):
    """x2 by convolution and pixel shuffle. State-dict name `upsample_conv`."""

    def __init__(self, in_chans: int, out_chans: int):
        super().__init__()
        in_chans = check_int(in_chans, "in_chans", 1)
        out_chans = check_int(out_chans, "out_chans", 1)
        self.upsample_conv = nn.Conv2d(in_chans, 4 * out_chans, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.upsample_conv.in_channels, "x")
        return F.pixel_shuffle(self.upsample_conv(x), 2)


def push(buffer: Tensor | None, tokens: Tensor) -> Tensor:
    """Append tokens (B, C, h, w) to a buffer (B, C, k, h, w), or None when it is empty.

    In memory the C numbers of a token lie side by side: they are read together.
    """
    check_images(tokens, None, "tokens")
    if buffer is not None:
        check_axes(buffer, "buffer", "(B, C, k, h, w)")
        if buffer.shape[:2] + buffer.shape[3:] != tokens.shape:
            raise ValueError(
                f"buffer has shape {tuple(buffer.shape)} and tokens {tuple(tokens.shape)}: they "
                f"need (B, C, k, h, w) and (B, C, h, w)"
            )
    tokens = tokens[:, :, None].contiguous(memory_format=torch.channels_last_3d)
    return tokens if buffer is None else torch.cat([buffer, tokens], dim=2)


@dataclass
class Step:
    """What the attention saw at one frame of one pass."""

    direction: str            # "backward" or "forward"
    frame: int
    keys: tuple[int, ...]     # the k key frames, in the order of the axis k below
    location: Tensor          # (B, k, 2, h, w): where each token was, x and y in tokens
    similarity: Tensor        # (B, k, h, w): cosine with what lay there
    chosen: Tensor            # (B, h, w) long: the best, an index into `keys`

    @property
    def weight(self) -> Tensor:
        """(B, h, w): the soft weight, the cosine of the chosen one."""
        return self.similarity.amax(1)


class TTVSR(nn.Module):
    """Video super-resolution x4: frames (B, T, 3, h, w) in [0, 1] -> (B, T, 3, 4h, 4w).

    h and w are multiples of `stride`. Defaults are the official size: 6,773,615 parameters,
    1,440,300 of them the flow net's. ValueError for bad sizes.

    Args:
        mid_channels: c.
        num_blocks: residual blocks of R.
        feat_blocks: residual blocks of phi.
        head_channels: of the last two convolutions.
        stride: pixels of a token's side, a multiple of 4.
        keyframe_stride: every how many frames tokens are stored.
        location: "nearest" as released, or "fractional", see `carry`.
        trajectories: False: a plain recurrent net with the same parameters, see `OwnPlace`.
        spynet: the flow net, a module (reference, supporting) -> flow; True builds the official
            one, None none (then `forward` needs flows).
    """

    def __init__(
        self, mid_channels: int = 64, num_blocks: int = 60, feat_blocks: int = 5,
        head_channels: int = 64, stride: int = 4, keyframe_stride: int = 3,
        location: str = "nearest", trajectories: bool = True,
        spynet: nn.Module | bool | None = True,
    ):
        super().__init__()
        self.stride = check_stride(stride)
        if location not in MAPS:
            raise ValueError(f"location={location!r} must be one of {MAPS}")
        if not (spynet is None or isinstance(spynet, nn.Module) or as_flag(spynet) is not None):
            raise ValueError(f"spynet={spynet!r}: needs a module, a bool or None")
        self.keyframe_stride = check_int(keyframe_stride, "keyframe_stride", 1)
        num_blocks = check_int(num_blocks, "num_blocks", 0)
        feat_blocks = check_int(feat_blocks, "feat_blocks", 0)
        head_channels = check_int(head_channels, "head_channels", 1)
        c = self.mid_channels = check_int(mid_channels, "mid_channels", 1)
        self.location = location
        self.trajectories = check_flag(trajectories, "trajectories")
        self.spynet = spynet if isinstance(spynet, nn.Module) else None
        if as_flag(spynet):
            self.spynet = SPyNet()
        self.feat_extractor = ResidualBlocks(3, c, feat_blocks)
        self.LTAM = (LTAM if self.trajectories else OwnPlace)(c, self.stride)
        self.resblocks = ResidualBlocks(2 * c, c, num_blocks)
        self.fusion = nn.Conv2d(3 * c, c, 1)
        self.upsample1 = PixelShuffleUp(c, c)
        self.upsample2 = PixelShuffleUp(c, head_channels)
        self.conv_hr = nn.Conv2d(head_channels, head_channels, 3, padding=1)
        self.conv_last = nn.Conv2d(head_channels, 3, 3, padding=1)

    def key_frames(self, frames: int, direction: str = "forward") -> list[int]:
        """Key frames of a clip of `frames` frames, in the order of a pass.

        0, 3, 6 ... forward; T-1, T-4 ... > 0 backward.
        """
        frames = check_int(frames, "frames", 1)
        if direction not in ("forward", "backward"):
            raise ValueError(f"direction={direction!r} must be 'forward' or 'backward'")
        if direction == "forward":
            return list(range(0, frames, self.keyframe_stride))
        return list(range(frames - 1, 0, -self.keyframe_stride))

    def flows(self, frames: Tensor, mirror: bool = False) -> tuple[Tensor, Tensor]:
        """frames (B, T, 3, h, w) -> two flows (B, T-1, 2, h, w) in pixels.

        Backward [:, i] leads from frame i to i+1, forward [:, i] from i+1 to i. mirror: the clip's
        second half is its first half in reverse; then forward flows are the backward ones in
        reverse, at half the cost. ValueError as in `forward`.
        """
        self.check(frames)
        mirror = check_flag(mirror, "mirror")
        b, t, _, h, w = frames.shape
        if t == 1:
            none = frames.new_zeros(b, 0, 2, h, w)
            return none, none
        if self.spynet is None:
            raise ValueError(
                "flows=None needs a flow net, but this model was built with spynet=None; "
                "give flows=(backward, forward)"
            )
        early, late = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        backward = self.spynet(early, late).unflatten(0, (b, t - 1))
        if mirror:
            return backward, backward.flip(1)
        return backward, self.spynet(late, early).unflatten(0, (b, t - 1))

    def propagate(
        self, features: Tensor, flows: Tensor, direction: str, trace: list[Step] | None = None
    ) -> list[Tensor]:
        """One pass -> the states p of all frames, a list in the order of time.

        Args:
            features: (B, T, c, h, w).
            flows: (B, T-1, 2, h, w): [:, i] leads from the frame at hand to the one this pass saw
                before it.
            direction: "backward" or "forward".
            trace: a list that gets a `Step` a frame, or None.
        """
        check_axes(features, "features", "(B, T, c, h, w)")
        b, t, c, h, w = features.shape
        _check_shape(flows, "flows", (b, t - 1, 2, h, w))
        token_grid(features, self.stride, "features")
        if c != self.mid_channels or not (trace is None or isinstance(trace, list)):
            raise ValueError(
                f"features has {c} channels and trace is {describe(trace)}: needs "
                f"{self.mid_channels} channels, and a list or None"
            )
        keyframes = self.key_frames(t, direction)
        order = range(t) if direction == "forward" else range(t - 1, -1, -1)
        grid = identity_grid(b, h // self.stride, w // self.stride, flows.device, flows.dtype)
        location, state = grid, features.new_zeros(b, c, h, w)
        keys, values, seen, states = None, [None] * 3, [], [None] * t
        for i in order:
            feature = features[:, i]
            if i != order[0]:
                flow = flows[:, i - 1 if direction == "forward" else i]
                state = warp(state, flow)
                if self.trajectories:
                    location = carry(location, token_flow(flow, self.stride), self.location)
                    where = rearrange(location, "b (k xy) h w -> b k xy h w", xy=2)
                    state, *looked = self.LTAM(
                        feature, keys, state, values, where, return_attn=True
                    )
                    if trace is not None:
                        trace.append(Step(direction, i, tuple(seen), where, *looked))
                    if i in keyframes:                  # after LTAM: no frame attends to itself
                        location = torch.cat([location, grid], dim=1)
                else:
                    state = self.LTAM(state)
            states[i] = state = self.resblocks(torch.cat([feature, state], dim=1))
            if self.trajectories and i in keyframes:
                seen.append(i)
                keys = push(keys, tokenize(feature, self.stride))        # looked for: the input's
                scales = cross_scale_tokens(state, self.stride)          # fetched: the state's
                values = [push(v, tokens) for v, tokens in zip(values, scales, strict=True)]
        return states

    def forward(
        self, frames: Tensor, flows: Sequence[Tensor] | None = None, mirror: bool = False,
        return_trace: bool = False,
    ) -> Tensor | tuple[Tensor, list[Step]]:
        """frames (B, T, 3, h, w) -> (B, T, 3, 4h, 4w). ValueError for bad shapes.

        Args:
            frames: (B, T, 3, h, w) in [0, 1].
            flows: None, or (backward, forward), two (B, T-1, 2, h, w) in pixels, see `flows`.
            mirror: see `flows`.
            return_trace: also a list of `Step`, one per frame and pass but the first frames'.
        """
        flows = tuple(flows) if is_several(flows) else flows
        self.check(frames, flows)
        mirror = check_flag(mirror, "mirror")
        return_trace = check_flag(return_trace, "return_trace")
        b, t = frames.shape[:2]
        pair = self.flows(frames, mirror) if flows is None else flows
        exact = [torch.promote_types(flow.dtype, torch.float32) for flow in pair]
        backward, forward = (flow.to(dtype) for flow, dtype in zip(pair, exact, strict=True))
        features = self.feat_extractor(frames.flatten(0, 1)).unflatten(0, (b, t))
        trace = [] if return_trace else None
        back = self.propagate(features, backward, "backward", trace)
        ahead = self.propagate(features, forward, "forward", trace)
        out = [
            self._reconstruct(frames[:, i], back[i], features[:, i], ahead[i]) for i in range(t)
        ]
        out = torch.stack(out, dim=1)
        return (out, trace) if return_trace else out

    def _reconstruct(self, frame: Tensor, back: Tensor, feature: Tensor, ahead: Tensor) -> Tensor:
        """The features of a frame -> its picture (B, 3, 4h, 4w).

        A correction to the bilinear enlargement of `frame` (B, 3, h, w).

        Args:
            frame: (B, 3, h, w).
            back: its state in the backward pass (B, c, h, w).
            feature: its feature (B, c, h, w).
            ahead: its state in the forward pass (B, c, h, w).
        """
        x = F.leaky_relu(self.fusion(torch.cat([back, feature, ahead], dim=1)), 0.1)
        x = F.leaky_relu(self.upsample1(x), 0.1)
        x = F.leaky_relu(self.upsample2(x), 0.1)
        x = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.1))
        return x + F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)

    def check(self, frames: Tensor, flows: Sequence[Tensor] | None = None) -> None:
        """ValueError unless frames are (B, T, 3, h, w) that the stride divides, and flows fit."""
        check_float(frames, "frames")
        shape = tuple(frames.shape)
        if len(shape) != 5 or shape[2] != 3:
            hint = "; one clip needs frames[None]" if len(shape) == 4 else ""
            raise ValueError(f"frames has shape {shape} but needs (B, T, 3, h, w){hint}")
        if 0 in shape:
            raise ValueError(
                f"frames is empty: shape {shape}; at least one clip of one frame is needed"
            )
        check_dtype(frames, self.conv_last.weight, "frames")
        token_grid(frames, self.stride, "frames")
        if flows is None:
            return
        want = (shape[0], shape[1] - 1, 2, *shape[3:])
        if not isinstance(flows, (tuple, list)):
            kind = type(flows).__name__
            raise ValueError(f"flows is a {kind} but needs to be a pair: (backward, forward)")
        if len(flows) != 2:
            raise ValueError(f"flows has {len(flows)} entries but needs 2: (backward, forward)")
        for name, flow in zip(("backward", "forward"), flows, strict=True):
            _check_shape(flow, f"flows ({name})", want)
            check_finite(flow, f"flows ({name})")     # NaN would read some token, without a word


def _check_shape(x: Tensor, name: str, want: tuple[int, ...]) -> None:
    check_float(x, name)
    if tuple(x.shape) != want:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, needs {want}")


def convert_official(state: dict) -> dict[str, Tensor]:
    """Official checkpoint (TTVSR_REDS.pth, TTVSR_Vimeo90K.pth) -> state dict of `TTVSR()`.

    Wrappers and prefixes go (`vtlib.nn.unwrap`), and with `generator.` whatever does not belong to
    the generator (the training step counter). State dicts without the prefix pass through.
    """
    return unwrap(state)
