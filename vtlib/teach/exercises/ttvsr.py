"""Exercises on TTVSR: warping, location maps, key frames, attention along trajectories, scales."""

import torch
import torch.nn.functional as F
from einops import rearrange

from vtlib.nn import warp
from vtlib.superres import ttvsr
from vtlib.teach.exercises import Wrong, check, expect

# -------------------------------------------------------------------------------- backward warping


def backward_warp(image, flow):
    """image (C, h, w), flow (2, h, w) in pixels -> (C, h, w): read at pixel + flow.

    The nearest pixel is taken; borders are repeated.
    """
    return warp(image[None], flow[None], mode="nearest")[0]


def _warp(image, flow, sign=1, swap=False, snap=torch.round, edge="clamp", splat=False):
    """`backward_warp` with one thing done differently."""
    _, h, w = image.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    dx, dy = (flow[1], flow[0]) if swap else (flow[0], flow[1])
    column, row = snap(x + sign * dx).long(), snap(y + sign * dy).long()
    if edge == "wrap":
        column, row = column % w, row % h
    else:
        column, row = column.clamp(0, w - 1), row.clamp(0, h - 1)
    if splat:
        out = torch.zeros_like(image)
        out[:, row, column] = image
        return out
    return image[:, row, column]


def _warp_causes(image, flow):
    return {
        "the pixel was read at itself - flow; backward warping reads at pixel + flow":
            _warp(image, flow, sign=-1),
        "x and y are swapped: flow[0] goes right (columns), flow[1] down (rows)":
            _warp(image, flow, swap=True),
        "pixels were pushed along the flow (forward); every pixel of the result has to fetch its"
        " own value": _warp(image, flow, splat=True),
        "positions were cut to whole numbers; the nearest pixel is round()":
            _warp(image, flow, snap=torch.trunc),
        "positions were cut down to whole numbers; the nearest pixel is round()":
            _warp(image, flow, snap=torch.floor),
        "outside, the picture starts again from the other side; repeat its border: clamp":
            _warp(image, flow, edge="wrap"),
        "nothing has moved": image,
    }


@check("ttvsr.backward_warp", reference=backward_warp)
def _(fn):
    generator = torch.Generator().manual_seed(4)
    for channels, h, w in ((3, 6, 9), (1, 7, 5)):
        image = torch.rand(channels, h, w, generator=generator)
        flow = torch.rand(2, h, w, generator=generator) * 5 - 2
        flow[0] += 0.6
        got, causes = fn(image, flow), _warp_causes(image, flow)
        what = f"the warped picture of {h} x {w}"
        expect(got, backward_warp(image, flow), what=what, mistakes=causes)
    expect(fn(image, torch.zeros_like(flow)), image, what="with no flow the picture itself")


# ----------------------------------------------------------------------------------- location maps


def update_maps(location, flow, stride=4):
    """location (k, 2, h, w), x and y in tokens, one map a key frame -> (k, 2, h, w).

    flow (2, H, W) in pixels, to the frame before.
    """
    in_tokens = ttvsr.token_flow(flow[None], stride)
    return ttvsr.carry(location, in_tokens.expand(len(location), -1, -1, -1))


_ADDED = (
    "the flow was added to what is stored{}. The map moves: token i now has what i + flow had"
)
_AND_ADDED = (
    "the map was warped AND the flow was added. Warping is all: what is stored are places in the"
    " key frame, they travel with the token and stay as they are"
)


def _warp_maps(location, flow, **kw):
    """`_warp` of k maps (k, 2, h, w)."""
    return _warp(location.flatten(0, 1), flow, **kw).unflatten(0, (-1, 2))


def _update_causes(location, flow, stride):
    tokens = F.avg_pool2d(flow[None], stride)[0] / stride
    corner = flow[:, ::stride, ::stride] / stride
    moved = _warp_maps(location, tokens)
    smooth = warp(location, tokens.expand(len(location), -1, -1, -1))
    last = torch.cat([location[:-1], _warp_maps(location[-1:], tokens)])
    return {
        "the flow is in pixels, the maps are in tokens: divide by the stride":
            _warp_maps(location, tokens * stride),
        "the flow is that of each token's first pixel; take the mean over its pixels":
            _warp_maps(location, corner),
        _ADDED.format(""): location + tokens,
        _ADDED.format(", and rounded"): (location + tokens).round(),
        _AND_ADDED: moved + tokens,
        f"{_AND_ADDED} ": (moved + tokens).round(),
        f"{_AND_ADDED}  ": smooth + tokens,
        "the map was read at i - flow; read it at i + flow": _warp_maps(location, -tokens),
        "x and y are swapped": _warp_maps(location, tokens, swap=True),
        "only the last key frame's map moved; all stored trajectories grow by one step": last,
        "the maps were interpolated; the release reads them at the nearest token, so that they"
        " stay whole numbers": smooth,
        "the stride of 4 is written out; use the argument":
            _warp_maps(location, tokens * stride / 4),
    }


@check("ttvsr.update_maps", reference=update_maps)
def _(fn):
    generator = torch.Generator().manual_seed(3)
    grid = ttvsr.identity_grid(1, 5, 7)[0]
    for stride, shifts in ((4, (1.0, -2.0, 0.0)), (8, (2.0, 1.0))):
        size = (5 * stride, 7 * stride)
        broad = torch.randn(1, 2, 3, 4, generator=generator) * 2.25 * stride
        flow = F.interpolate(broad, size=size, mode="bilinear")[0]
        flow = flow + torch.randn(2, *size, generator=generator)
        location = torch.stack([_warp(grid, torch.full_like(grid, shift)) for shift in shifts])
        causes = _update_causes(location, flow, stride)
        got, want = fn(location, flow, stride), update_maps(location, flow, stride)
        expect(got, want, what=f"the new maps, tokens of {stride} pixels", mistakes=causes)
    still = fn(location, torch.zeros_like(flow), 8)
    expect(still, location, what="with no motion the maps")
    what = "with tokens of 8 pixels, all moving by 8, the maps"
    moved = fn(location, torch.full_like(flow, 8.0), 8)
    expect(moved, _warp_maps(location, torch.ones_like(grid)), what=what)


# -------------------------------------------------------------------------------------- key frames


def key_frames_seen(t, frames, stride, direction):
    """The key frames that frame t can look at in this pass, in the order they were stored."""
    if direction == "forward":
        return [frame for frame in range(0, frames, stride) if frame < t]
    return [frame for frame in range(frames - 1, 0, -stride) if frame > t]


def _seen_causes(t, frames, stride, direction):
    want = key_frames_seen(t, frames, stride, direction)
    if direction == "forward":
        every = list(range(0, frames, stride))
        itself = [frame for frame in every if frame <= t]
        whole, other_order = every, want[::-1]
    else:
        every = list(range(frames - 1, -1, -stride))
        itself = [frame for frame in every if frame > t or frame == t and t]
        whole, other_order = [frame for frame in every if frame], sorted(want)
    from_zero = [frame for frame in range(0, frames, stride) if frame > t]
    causes = {
        "a frame does not look at itself: its tokens are stored after the attention has run":
            itself,
        "these are the key frames of the whole clip; in this pass only those before have been"
        " seen": whole,
        "the backward pass counts from the last frame: T-1, T-1-s, ...": from_zero[::-1],
        "the order is the one of the pass: backward goes from the last frame down": other_order,
        "the backward pass runs from the end: it has seen frames after t, not before":
            [frame for frame in every if 0 < frame < t],
    }
    return {cause: value for cause, value in causes.items() if value != want}


@check("ttvsr.key_frames_seen", reference=key_frames_seen)
def _(fn):
    cases = (
        (6, 10, 3, "forward"),
        (7, 10, 3, "forward"),
        (3, 10, 3, "backward"),
        (0, 10, 3, "backward"),
        (0, 7, 2, "forward"),
        (1, 8, 2, "backward"),
        (5, 7, 2, "forward"),
        (2, 13, 3, "backward"),
    )
    for case in cases:
        t, frames, stride, direction = case
        got, want = fn(*case), key_frames_seen(*case)
        got = list(got) if isinstance(got, range) else got
        what = f"key frames of t={t}, T={frames}, stride {stride}, {direction}"
        expect(got, want, what=what, mistakes=_seen_causes(*case))


# --------------------------------------------------------------------------------------- attention


def trajectory_attention(query, keys, values):
    """query (N, D), keys (k, N, D), values (S, k, N, D), all read along the trajectories.

    -> (S, N, D): hard choice, soft weight.
    """
    similarity = F.cosine_similarity(query[None], keys, dim=-1)  # k n
    weight, chosen = similarity.max(dim=0)
    return _chosen(values, chosen) * weight[:, None]


def _chosen(values, chosen):
    return values[:, chosen, torch.arange(len(chosen), device=chosen.device)]


def _mixed(weights, values):
    return torch.einsum("kn,sknd->snd", weights, values)


def _attention_causes(query, keys, values):
    cosine, dot = F.cosine_similarity(query[None], keys, dim=-1), (query[None] * keys).sum(dim=-1)
    weight, chosen = cosine.max(dim=0)
    taken, by_dot = _chosen(values, chosen), _chosen(values, dot.argmax(dim=0))
    soft = cosine.softmax(dim=0)
    one = cosine.mean(dim=1).argmax()
    least, least_chosen = cosine.min(dim=0)
    return {
        "softmax over the key frames, and a mixture of values. TTVSR takes one value whole: a mean"
        " of textures is a blur": _mixed(soft, values),
        "softmax of the dot products; there is no softmax here":
            _mixed(dot.softmax(dim=0), values),
        "the soft weight is missing: multiply the chosen value by its cosine": taken,
        "dot products, not cosines: normalise query and keys": by_dot * dot.amax(dim=0)[:, None],
        "dot products made the choice; a long key wins for being long": by_dot * weight[:, None],
        "the weight is the softmax; it is the cosine itself":
            taken * soft.amax(dim=0)[:, None],
        "a negative weight was cut off; it stays as it is": taken * weight.clamp(min=0)[:, None],
        "all values weighted by their cosines and added up; only the best one counts":
            _mixed(cosine, values),
        "the least similar was chosen: argmin instead of argmax":
            _chosen(values, least_chosen) * least[:, None],
        "one key frame for the whole picture; each token chooses its own":
            values[:, one] * cosine[one][:, None],
    }


@check("ttvsr.trajectory_attention", reference=trajectory_attention)
def _(fn):
    generator = torch.Generator().manual_seed(1)
    for tokens, frames, scales in ((5, 3, 2), (4, 2, 1)):
        query = torch.randn(tokens, 4, generator=generator)
        keys = torch.randn(frames, tokens, 4, generator=generator)
        values = torch.randn(scales, frames, tokens, 4, generator=generator)
        lengths = torch.tensor([3.0, 1.0, 0.4])[:frames]  # long keys must not win for being long
        keys = keys * lengths[:, None, None]
        keys[:, 0] -= 4 * query[0]  # token 0 finds nothing but opposites
        values[..., 0] *= 3
        got, want = fn(query, keys, values), trajectory_attention(query, keys, values)
        causes = _attention_causes(query, keys, values)
        expect(got, want, what=f"what {tokens} tokens fetch", mistakes=causes)
    expect(fn(query, 7 * keys, values), want, what="with keys seven times as long")


# ------------------------------------------------------------------------------------------ scales


def scale_tokens(x, size):
    """x (C, H, W) -> (C*16, H/4, W/4): around each 4 x 4 token size x size pixels, pooled to 4 x 4.

    Outside the picture there are zeros.
    """
    _, h, w = x.shape
    patches = F.unfold(x[None], size, stride=4, padding=(size - 4) // 2)
    spread = rearrange(
        patches, "1 (c p q) (h w) -> 1 c (h p) (w q)", p=size, q=size, h=h // 4
    )
    return ttvsr.tokenize(F.adaptive_avg_pool2d(spread, (h, w)))[0]


def _pooled(padded, size, how=F.adaptive_avg_pool2d):
    """Tokens of a padded picture, each patch resized by itself."""
    rows = (padded.shape[-2] - size) // 4 + 1
    patches = F.unfold(padded[None], size, stride=4)
    each = how(rearrange(patches, "1 (c p q) n -> n c p q", p=size, q=size), 4)
    return rearrange(each, "(h w) c p q -> (c p q) h w", h=rows)


def _bilinear(patches, size):
    return F.interpolate(patches, size=size, mode="bilinear")


def _scale_causes(x, size):
    margin = (size - 4) // 2
    around = (margin,) * 4
    zeros = F.pad(x, around)
    whole = F.adaptive_avg_pool2d(zeros[None], x.shape[-2:])
    return {
        "the margin repeats the border; beyond it there are zeros":
            _pooled(F.pad(x[None], around, mode="replicate")[0], size),
        "the margin mirrors the picture; beyond it there are zeros":
            _pooled(F.pad(x[None], around, mode="reflect")[0], size),
        "the patch starts at the token's first pixel; it has to lie around the token: padding"
        " (size - 4) // 2": _pooled(F.pad(x, (0, 2 * margin, 0, 2 * margin)), size),
        "resized by interpolation between pixels; take the mean over the windows of"
        " adaptive_avg_pool2d": _pooled(zeros, size, _bilinear),
        "the largest pixel was taken; take the mean":
            _pooled(zeros, size, F.adaptive_max_pool2d),
        "the picture was blurred or resized as a whole; each patch is pooled by itself, and"
        " neighbours overlap": ttvsr.tokenize(whole)[0],
        "the middle of the patch was cut out: these are the tokens of size 4 again":
            ttvsr.tokenize(x[None])[0],
    }


@check("ttvsr.scale_tokens", reference=scale_tokens)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 12, 16, generator=generator)
    expect(fn(x, 4), ttvsr.tokenize(x[None])[0], what="size 4: the tokens themselves")
    for size, shape in ((6, (2, 12, 16)), (8, (1, 8, 20))):
        x = torch.rand(shape, generator=generator)
        causes = _scale_causes(x, size)
        expect(fn(x, size), scale_tokens(x, size), what=f"size {size}", mistakes=causes)


# --------------------------------------------------------------------------------- fractional maps


def follow(flows):
    """flows: a list of (2, h, w), in tokens, each to the frame before -> (2, h, w) whole numbers.

    They say where each token was in the first frame.
    """
    return _walk(flows, lambda location, flow: ttvsr.carry(location, flow, "fractional")).round()


def _walk(flows, step):
    """The map after all flows: location = step(location, flow)."""
    first = flows[0]
    location = ttvsr.identity_grid(1, *first.shape[-2:], device=first.device, dtype=first.dtype)
    for flow in flows:
        location = step(location, flow[None])
    return location[0]


def _follow_causes(flows):
    _, h, w = flows[0].shape
    grid = ttvsr.identity_grid(1, h, w)[0]
    limit = torch.tensor([w - 1.0, h - 1.0]).view(2, 1, 1)
    total = grid + sum(flows)
    added = (
        "the flows at one and the same place were added up; but the content moves, and meets other"
        " flow"
    )
    nearest = _walk(flows, lambda location, flow: warp(location, flow, mode="nearest"))
    return {
        "rounded in every step: that is the release, where slow motion never registers. Round"
        " once, at the end": _walk(flows, lambda location, flow: warp(location, flow).round()),
        "read at the nearest token in every step: that is the release. Interpolate (bilinear), and"
        " round once, at the end": nearest,
        added: total.round(),
        f"{added} ": total.clamp(min=0).minimum(limit).round(),
        "the last step is missing: round what you hand out, tokens are read at whole numbers":
            _walk(flows, warp),
        "cut down to whole numbers; round to the nearest token": _walk(flows, warp).floor(),
        "the flow was added to the map where the token stands now; the map has to be read at"
        " i + flow": _walk(flows, torch.add).round(),
        "the flows were taken from the last to the first; each new frame reads the map of the"
        " frame before it": _walk(flows[::-1], warp).round(),
    }


def _whole(answer):
    """Whole numbers are welcome as integers, too."""
    integers = isinstance(answer, torch.Tensor) and not answer.is_floating_point()
    return answer.float() if integers else answer


@check("ttvsr.follow", reference=follow)
def _(fn):
    generator = torch.Generator().manual_seed(5)
    flows = [
        F.interpolate(
            torch.randn(1, 2, 2, 3, generator=generator) * 0.9 + 0.3,
            size=(7, 9),
            mode="bilinear",
            align_corners=True,
        )[0]
        for _ in range(6)
    ]
    got = _whole(fn(flows))
    if isinstance(got, torch.Tensor) and got.shape == (1, 2, 7, 9):
        raise Wrong(
            "where the tokens were: the shape is off\n  found:    (1, 2, 7, 9)\n"
            "  expected: (2, 7, 9)\n"
            "  likely cause: the batch axis that `warp` needs is still there"
        )
    causes = _follow_causes(flows)
    expect(got, follow(flows), what="where the tokens were", mistakes=causes)
    slow = _whole(fn([torch.full((2, 7, 9), 0.25)] * 4))
    what = "a quarter of a token, four times: token (2, 2) was at"
    expect(slow[:, 2, 2], torch.tensor([3.0, 3.0]), what=what)
