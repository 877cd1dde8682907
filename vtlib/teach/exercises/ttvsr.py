"""Exercises of notebook 07: backward warping, the update of location maps, key frames, attention along trajectories, scales, fractional maps."""

import torch
import torch.nn.functional as F
from einops import rearrange

from vtlib.superres import ttvsr
from vtlib.superres.warp import warp
from vtlib.teach.exercises import Wrong, check, expect, untouched


def _pixels(h, w):
    return torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")


# ----------------------------------------------------------------------------------------------------------- backward warping


def backward_warp(image, flow):
    """image (C, h, w), flow (2, h, w) in pixels -> (C, h, w): every pixel read at itself + flow, at the nearest pixel, borders repeated."""
    return warp(image[None], flow[None], mode="nearest")[0]


def _warp(image, flow, sign=1, swap=False, snap=torch.round, edge="clamp", splat=False):
    """The same with a mistake."""
    _, h, w = image.shape
    y, x = _pixels(h, w)
    dx, dy = (flow[1], flow[0]) if swap else (flow[0], flow[1])
    column, row = snap(x + sign * dx).long(), snap(y + sign * dy).long()
    column, row = (column % w, row % h) if edge == "wrap" else (column.clamp(0, w - 1), row.clamp(0, h - 1))
    if splat:
        out = torch.zeros_like(image)
        out[:, row, column] = image
        return out
    return image[:, row, column]


@check("ttvsr.backward_warp", reference=backward_warp)
def _(fn):
    g = torch.Generator().manual_seed(4)
    image, flow = torch.rand(3, 6, 9, generator=g), torch.rand(2, 6, 9, generator=g) * 5 - 2
    flow[0] += 0.6
    with untouched(image, flow):
        got = fn(image, flow)
    causes = {
        "the pixel was read at itself - flow; backward warping reads at pixel + flow": _warp(image, flow, sign=-1),
        "x and y are swapped: flow[0] goes right (columns), flow[1] down (rows)": _warp(image, flow, swap=True),
        "pixels were pushed along the flow (forward); every pixel of the result has to fetch its own value": _warp(image, flow, splat=True),
        "positions were cut to whole numbers; the nearest pixel is round()": _warp(image, flow, snap=torch.trunc),
        "positions were cut down to whole numbers; the nearest pixel is round()": _warp(image, flow, snap=torch.floor),
        "outside, the picture starts again from the other side; repeat its border: clamp": _warp(image, flow, edge="wrap"),
        "nothing has moved": image}
    expect(got, backward_warp(image, flow), what="the warped picture", mistakes=causes)
    expect(fn(image, torch.zeros(2, 6, 9)), image, what="with no flow the picture itself")


# ------------------------------------------------------------------------------------------------------------- location maps


def update_maps(location, flow, stride=4):
    """location (2k, h, w), x and y in tokens of k key frames; flow (2, H, W) in pixels, to the frame before -> (2k, h, w)."""
    return ttvsr.carry(location[None], ttvsr.token_flow(flow[None], stride))[0]


@check("ttvsr.update_maps", reference=update_maps)
def _(fn):
    g = torch.Generator().manual_seed(3)
    flow = F.interpolate(torch.randn(1, 2, 3, 4, generator=g) * 9, size=(20, 28), mode="bilinear")[0] + torch.randn(2, 20, 28, generator=g)
    location = ttvsr.identity_grid(1, 5, 7)[0]
    location = torch.cat([_warp(location, torch.full((2, 5, 7), 1.0)), _warp(location, torch.full((2, 5, 7), -2.0)), location])
    tokens = F.avg_pool2d(flow[None], 4)[0] / 4
    with untouched(location, flow):
        got = fn(location, flow, 4)
    causes = {
        "the flow is in pixels, the maps are in tokens: divide by the stride": _warp(location, tokens * 4),
        "the flow is that of each token's first pixel; take the mean over its 4 x 4 pixels": _warp(location, flow[:, ::4, ::4] / 4),
        "the flow was added to what is stored. The map moves: token i now has what i + flow had": location + tokens.repeat(3, 1, 1),
        "the flow was added to what is stored, and rounded. The map moves: token i now has what i + flow had": (location + tokens.repeat(3, 1, 1)).round(),
        "the map was read at i - flow; read it at i + flow": _warp(location, -tokens),
        "x and y are swapped": _warp(location, tokens, swap=True),
        "only the last key frame's pair moved; all stored trajectories grow by one step": torch.cat([location[:-2], _warp(location[-2:], tokens)]),
        "the maps were interpolated; the release reads them at the nearest token, so that they stay whole numbers": warp(location[None], tokens[None])[0]}
    expect(got, update_maps(location, flow, 4), what="the new maps", mistakes=causes)
    expect(fn(location, torch.zeros(2, 20, 28), 4), location, what="with no motion the maps")
    eight = torch.zeros(2, 40, 56) + 8.0
    expect(fn(location, eight, 8), _warp(location, torch.ones(2, 5, 7)), what="with tokens of 8 pixels, all moving by 8, the maps",
           mistakes={"the stride of 4 is written out; use the argument": _warp(location, torch.full((2, 5, 7), 2.0))})


# ---------------------------------------------------------------------------------------------------------------- key frames


def key_frames_seen(t, frames, stride, direction):
    """The key frames that frame t can look at in this pass, in the order in which they were stored."""
    if direction == "forward":
        return [f for f in range(0, frames, stride) if f < t]
    return [f for f in range(frames - 1, 0, -stride) if f > t]


@check("ttvsr.key_frames_seen", reference=key_frames_seen)
def _(fn):
    def keys(frames, stride, direction):
        return list(range(0, frames, stride)) if direction == "forward" else list(range(frames - 1, -1, -stride))

    for t, frames, stride, direction in ((6, 10, 3, "forward"), (7, 10, 3, "forward"), (3, 10, 3, "backward"), (0, 10, 3, "backward"), (0, 7, 2, "forward"),
                                         (1, 8, 2, "backward")):
        want = key_frames_seen(t, frames, stride, direction)
        every = keys(frames, stride, direction)
        later = (lambda f: f < t) if direction == "forward" else (lambda f: f > t)
        causes = {
            "a frame does not look at itself: its tokens are stored after the attention has run": [f for f in every if later(f) or f == t and (t or direction == "forward")],
            "these are the key frames of the whole clip; in this pass only those before have been seen": [f for f in every if f or direction == "forward"],
            "the backward pass counts from the last frame: T-1, T-1-s, ...": [f for f in range(0, frames, stride) if f > t][::-1],
            "the order is the one of the pass: backward goes from the last frame down": sorted(want) if direction == "backward" else want[::-1],
            "the backward pass runs from the end: it has seen frames after t, not before": [f for f in every if f < t and f]}
        causes = {k: v for k, v in causes.items() if v != want}
        got = fn(t, frames, stride, direction)
        expect(list(got) if isinstance(got, range) else got, want, what=f"key frames of t={t}, T={frames}, stride {stride}, {direction}", mistakes=causes)


# ----------------------------------------------------------------------------------------------------------------- attention


def trajectory_attention(query, keys, values):
    """query (N, D), keys (k, N, D), values (S, k, N, D), all read along the trajectories -> (S, N, D): hard choice, soft weight."""
    similarity = F.cosine_similarity(query[None], keys, dim=-1)                   # k n
    weight, chosen = similarity.max(dim=0)
    return values[:, chosen, torch.arange(len(query))] * weight[:, None]


@check("ttvsr.trajectory_attention", reference=trajectory_attention)
def _(fn):
    g = torch.Generator().manual_seed(1)
    query, keys, values = torch.randn(5, 4, generator=g), torch.randn(3, 5, 4, generator=g), torch.randn(2, 3, 5, 4, generator=g)
    keys *= torch.tensor([3.0, 1.0, 0.4])[:, None, None]                          # long keys must not win for being long
    keys[:, 0] -= 4 * query[0]                                                    # token 0 finds nothing but opposites
    values[..., 0] *= 3
    with untouched(query, keys, values):
        got = fn(query, keys, values)
    n = torch.arange(5)
    cosine, dot = F.cosine_similarity(query[None], keys, dim=-1), (query[None] * keys).sum(-1)
    (w, j), jd = cosine.max(0), dot.argmax(0)
    soft = cosine.softmax(0)
    causes = {
        "softmax over the key frames, and a mixture of values. TTVSR takes one value whole: a mean of textures is a blur": torch.einsum("kn,sknd->snd", soft, values),
        "softmax of the dot products; there is no softmax here": torch.einsum("kn,sknd->snd", dot.softmax(0), values),
        "the soft weight is missing: multiply the chosen value by its cosine": values[:, j, n],
        "dot products, not cosines: normalise query and keys": values[:, jd, n] * dot.amax(0)[:, None],
        "dot products made the choice; a long key wins for being long": values[:, jd, n] * w[:, None],
        "the weight is the softmax; it is the cosine itself": values[:, j, n] * soft.amax(0)[:, None],
        "a negative weight was cut off; it stays as it is": values[:, j, n] * w.clamp(min=0)[:, None],
        "all values weighted by their cosines and added up; only the best one counts": torch.einsum("kn,sknd->snd", cosine, values),
        "the least similar was chosen: argmin instead of argmax": values[:, cosine.argmin(0), n] * cosine.amin(0)[:, None],
        "one key frame for the whole picture; each token chooses its own": values[:, cosine.mean(1).argmax()] * cosine[cosine.mean(1).argmax()][:, None]}
    expect(got, trajectory_attention(query, keys, values), what="what the tokens fetch", mistakes=causes)
    expect(fn(query, 7 * keys, values), trajectory_attention(query, keys, values), what="with keys seven times as long")


# ------------------------------------------------------------------------------------------------------------------- scales


def scale_tokens(x, size):
    """x (C, H, W) -> (C*16, H/4, W/4): around each 4 x 4 token a patch of size x size pixels (zeros outside), pooled to 4 x 4."""
    _, h, w = x.shape
    patches = F.unfold(x[None], size, stride=4, padding=(size - 4) // 2)
    spread = rearrange(patches, "1 (c p q) (h w) -> 1 c (h p) (w q)", p=size, q=size, h=h // 4)
    return ttvsr.tokenize(F.adaptive_avg_pool2d(spread, (h, w)))[0]


@check("ttvsr.scale_tokens", reference=scale_tokens)
def _(fn):
    x = torch.rand(2, 12, 16, generator=torch.Generator().manual_seed(0))
    with untouched(x):
        expect(fn(x, 4), ttvsr.tokenize(x[None])[0], what="size 4: the tokens themselves")
    for size in (6, 8):
        margin = (size - 4) // 2

        def patches(padded, how=F.adaptive_avg_pool2d):
            cut = F.unfold(padded[None], size, stride=4)
            each = how(rearrange(cut, "1 (c p q) n -> n c p q", p=size, q=size), 4)
            return rearrange(each, "(h w) c p q -> (c p q) h w", h=3)
        causes = {
            "the margin repeats the border; beyond it there are zeros": patches(F.pad(x[None], (margin,) * 4, mode="replicate")[0]),
            "the margin mirrors the picture; beyond it there are zeros": patches(F.pad(x[None], (margin,) * 4, mode="reflect")[0]),
            "the patch starts at the token's first pixel; it has to lie around the token: padding (size - 4) // 2": patches(F.pad(x, (0, 2 * margin, 0, 2 * margin))),
            "resized by interpolation between pixels; take the mean over the windows of adaptive_avg_pool2d": patches(
                F.pad(x, (margin,) * 4), lambda p, n: F.interpolate(p, size=n, mode="bilinear")),
            "the largest pixel was taken; take the mean": patches(F.pad(x, (margin,) * 4), F.adaptive_max_pool2d),
            "the picture was blurred or resized as a whole; each patch is pooled by itself, and neighbours overlap": ttvsr.tokenize(
                F.adaptive_avg_pool2d(F.pad(x, (margin,) * 4)[None], (12, 16)))[0],
            "the middle of the patch was cut out: these are the tokens of size 4 again": ttvsr.tokenize(x[None])[0]}
        expect(fn(x, size), scale_tokens(x, size), what=f"size {size}", mistakes=causes)


# ------------------------------------------------------------------------------------------------------------ fractional maps


def follow(flows):
    """flows: a list of (2, h, w), in tokens, each to the frame before -> (2, h, w) whole numbers: where each token was in the first frame."""
    location = ttvsr.identity_grid(1, *flows[0].shape[-2:], dtype=flows[0].dtype)
    for flow in flows:
        location = ttvsr.carry(location, flow[None], "fractional")
    return location[0].round()


@check("ttvsr.follow", reference=follow)
def _(fn):
    g = torch.Generator().manual_seed(5)
    flows = [F.interpolate(torch.randn(1, 2, 2, 3, generator=g) * 0.9 + 0.3, size=(7, 9), mode="bilinear", align_corners=True)[0] for _ in range(6)]
    grid = ttvsr.identity_grid(1, 7, 9)
    def whole(answer):
        """Whole numbers are welcome as integers, too."""
        return answer.float() if isinstance(answer, torch.Tensor) and not answer.is_floating_point() else answer

    with untouched(*flows):
        got = whole(fn(flows))

    def walk(step, end=torch.round, order=flows):
        location = grid
        for flow in order:
            location = step(location, flow[None])
        return end(location)[0]

    limit = torch.tensor([8.0, 6.0]).view(2, 1, 1)
    causes = {
        "rounded in every step: that is the release, where slow motion never registers. Round once, at the end": walk(lambda m, f: warp(m, f).round()),
        "read at the nearest token in every step: that is the release. Interpolate (bilinear), and round once, at the end": walk(lambda m, f: warp(m, f, mode="nearest")),
        "the flows at one and the same place were added up; but the content moves, and meets other flow": (grid[0] + sum(flows)).round(),
        "the flows at one and the same place were added up; but the content moves, and meets other flow ": (grid[0] + sum(flows)).clamp(min=0).minimum(limit).round(),
        "the last step is missing: round what you hand out, tokens are read at whole numbers": walk(warp, end=lambda m: m),
        "cut down to whole numbers; round to the nearest token": walk(warp, end=torch.floor),
        "the flow was added to the map where the token stands now; the map has to be read at i + flow": walk(lambda m, f: m + f),
        "the flows were taken from the last to the first; each new frame reads the map of the frame before it": walk(warp, order=flows[::-1])}
    if isinstance(got, torch.Tensor) and got.shape == (1, 2, 7, 9):
        raise Wrong("where the tokens were: the shape is off\n  found:    (1, 2, 7, 9)\n  expected: (2, 7, 9)\n  likely cause: the batch axis that `warp` needs is still there")
    expect(got, follow(flows), what="where the tokens were", mistakes=causes)
    expect(whole(fn([torch.full((2, 7, 9), 0.25)] * 4))[:, 2, 2], torch.tensor([3.0, 3.0]), what="a quarter of a token, four times: token (2, 2) was at")
