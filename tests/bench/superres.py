"""Super-resolution: attention along trajectories against all of space and time, content groups
against all tokens, the local attender against cross-attention, each as its axis grows."""

import math
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange

from vtlib.superres import catanet
from vtlib.superres.catanet import LRSA, TAB, grouping, sorted_row
from vtlib.superres.ttvsr import (
    LTAM,
    TTVSR,
    carry,
    cross_scale_tokens,
    identity_grid,
    token_flow,
    tokenize,
    untokenize,
)
from vtlib.superres.uplift import OFFSETS, LocalAttender, UPLiFT, pool, shifted
from vtlib.teach import flops, latency

from .before import before, peak_bytes, ratio, ratios

C, STRIDE = 16, 4                              # channels of the demo nets, pixels of a token's side


def difference(a, b):
    return f"{(a - b).abs().max():.0e}"


# ------------------------------------------------------------------------------------------- TTVSR
def memory(frames, side, channels=C, batch=1):
    """A feature and k key frames of tokens, side x side each, with location maps of random motion:
    the arguments of `LTAM`."""
    pixels = side * STRIDE
    shape = (batch, channels, pixels, pixels)
    maps = [torch.randn(shape) for _ in range(frames)]
    keys = torch.stack([tokenize(m, STRIDE) for m in maps], 2)                         # b c k h w
    scales = [cross_scale_tokens(m, STRIDE) for m in maps]
    values = [torch.stack([scale[i] for scale in scales], 2) for i in range(3)]
    flow = token_flow(6 * torch.randn(batch, 2, pixels, pixels), STRIDE)
    location = carry(identity_grid(batch, side, side).repeat(1, frames, 1, 1), flow)
    location = location.unflatten(1, (frames, 2))
    return torch.randn(shape), keys, torch.randn(shape), values, location


def masked_full_attention(layer, query, keys, anchor, values, location):
    """LTAM the naive way: all cosines between every token and every token of every key frame, those
    off the trajectory struck out."""
    _, _, k, h, w = keys.shape
    q, found = (F.normalize(t, dim=1).flatten(2) for t in (tokenize(query, STRIDE), keys))
    cosine = torch.einsum("bcn,bcm->bnm", q, found)
    at = location.round().long()
    place = (torch.arange(k)[:, None, None] * h + at[:, :, 1]) * w + at[:, :, 0]         # b k h w
    place = rearrange(place, "b k h w -> b (h w) k")
    on = torch.zeros_like(cosine, dtype=torch.bool).scatter(2, place, True)
    weight, chosen = cosine.masked_fill(~on, float("-inf")).max(-1)                      # b n
    scales = []
    for v in values:
        index = chosen[:, None].expand(-1, v.shape[1], -1)
        scales.append(untokenize(v.flatten(2).gather(2, index).unflatten(2, (h, w)), STRIDE))
    soft = weight.unflatten(1, (h, w))[:, None].repeat_interleave(STRIDE, 2)
    soft = soft.repeat_interleave(STRIDE, 3)
    return anchor + layer.fusion(torch.cat(scales, 1)) * soft


def space_time_attention(layer, query, keys, anchor, values, location):
    """What one would write without trajectories: softmax attention of every token over all tokens
    of all key frames, at the same three scales."""
    parts = (tokenize(query, STRIDE), keys, torch.cat(values, 1))
    q, k, v = (rearrange(t.flatten(2), "b c n -> b 1 n c") for t in parts)
    out = F.scaled_dot_product_attention(q, k, v)
    out = rearrange(out, "b 1 (h w) (s c) -> s b c h w", h=keys.shape[3], s=3)
    return anchor + layer.fusion(torch.cat([untokenize(s, STRIDE) for s in out], 1))


def trajectories_against_all(cases=((1, 16), (4, 16), (16, 16), (4, 8), (4, 32), (4, 48))):
    """Comparisons a token and time of LTAM and of the two full attentions."""
    layer = LTAM(C, STRIDE)
    masked, full = partial(masked_full_attention, layer), partial(space_time_attention, layer)
    for frames, side in cases:
        inputs = memory(frames, side)
        seconds = [latency(f, *inputs, repeat=5) for f in (layer, masked, full)]
        times = [f"{s / seconds[0]:.1f} x" for s in seconds[1:]]
        yield (
            f"{frames} key frames of {side} x {side}", frames, frames * side * side,
            f"{1000 * seconds[0]:.2f} ms", *times, difference(layer(*inputs), masked(*inputs)),
        )


def clip_of(frames, side):
    """A clip and its flows both ways: the arguments of `TTVSR`."""
    flows = tuple(torch.randn(1, frames - 1, 2, side, side) for _ in range(2))
    return torch.rand(1, frames, 3, side, side), flows


def length(frames=(4, 8, 16, 32), side=32):
    """A whole small net on longer and longer clips: time a frame stays, whatever the number of key
    frames."""
    net = TTVSR(C, num_blocks=2, feat_blocks=1, head_channels=C, spynet=None).eval()
    for t in frames:
        clip = clip_of(t, side)
        seconds = latency(net, *clip, repeat=3, warmup=1)
        yield (
            t, len(net.key_frames(t)), f"{1000 * seconds:.0f} ms", f"{1000 * seconds / t:.1f} ms",
            f"{flops(net, *clip) / t / 1e6:.0f} M",
        )


def exponent(frames=(4, 8, 16, 32), side=64, repeats=3, **sizes):
    """Time of a whole net over the frames: the slope of log time against log frames.

    Today's code and the first commit's, in turns up and down the lengths; processor time, the
    least of each.
    """
    sizes = {**dict(mid_channels=64, num_blocks=2, feat_blocks=1), **sizes}
    nets = {
        "now": TTVSR(**sizes, spynet=None).eval(),
        "first commit": before().module("superres.ttvsr").TTVSR(**sizes, spynet=None).eval(),
    }
    clips = {t: clip_of(t, side) for t in frames}
    for name, net in nets.items():
        least = dict.fromkeys(frames, math.inf)
        net(*clips[frames[0]])
        for _ in range(repeats):
            for t in (*frames, *reversed(frames)):
                start = time.process_time()
                net(*clips[t])
                least[t] = min(least[t], time.process_time() - start)
        x = [math.log(t) for t in frames]
        y = [math.log(max(seconds, 1e-9)) for seconds in least.values()]
        slope = statistics.linear_regression(x, y).slope
        each = " ".join(f"{1000 * seconds / t:.0f}" for t, seconds in least.items())
        yield name, each, f"{slope:.2f}"


# ----------------------------------------------------------------------------------------- CATANet
def make_tab(side, num_centres=64, group_size=64, dim=40):
    """A released-size block with learned-looking centres, and a map of side x side tokens."""
    tab = TAB(dim, 36, 96, 4, num_centres, group_size).eval()
    tab.means.copy_(F.normalize(torch.randn(num_centres, dim), dim=-1))
    return tab, torch.randn(1, dim, side, side)


def rows_of(x):
    return rearrange(x, "b c h w -> b (h w) c")


def aggregate(tab, x):
    """Token aggregation alone: grouping, attention in subgroups, attention to the centres;
    (1, C, h, w) -> (1, N, C)."""
    tokens = tab.norm(rows_of(x))
    groups = grouping(tokens, tab.means, tab.group_size)
    return tab.iasa_attn(tokens, groups, *tab.irca_attn(tab.means))


def split(layer, tokens):
    """(N, C) -> q, k, v, each (heads, N, P)."""
    projected = (to(tokens) for to in (layer.to_q, layer.to_k, layer.to_v))
    return (rearrange(t, "n (h p) -> h n p", h=layer.num_heads) for t in projected)


def subgroup_by_subgroup(tab, x):
    """The same with loops over images and subgroups, the sorted row and its mirror image written
    out."""
    out, size, layer = [], tab.group_size, tab.iasa_attn
    kc, vc = tab.irca_attn(tab.means)
    for image in rows_of(x):
        tokens = tab.norm(image)
        belong = (F.normalize(tokens, dim=-1) @ tab.means.T).argmax(-1).tolist()
        order = torch.tensor(sorted(range(len(tokens)), key=belong.__getitem__))
        row = torch.cat([order, order.flip(0)[:-len(order) % size + size]])
        q, k, v = split(layer, tokens)
        y = torch.zeros(layer.num_heads, *v.shape[1:])
        for start in range(0, len(order), size):
            own, seen = row[start:min(start + size, len(order))], row[start:start + 2 * size]
            near = F.scaled_dot_product_attention(q[:, own], k[:, seen], v[:, seen])
            y[:, own] = near + F.scaled_dot_product_attention(q[:, own], kc, vc)
        out.append(layer.proj(rearrange(y, "h n p -> n (h p)")))
    return torch.stack(out)


def masked_groups(tab, x):
    """The same as full attention over all tokens with a mask.

    Right where the row is not mirrored into a subgroup that holds the same token already.
    """
    (tokens,) = tab.norm(rows_of(x))
    (order,) = grouping(tokens[None], tab.means, tab.group_size).order
    row, size = sorted_row(len(tokens), tab.group_size)
    queries, keys = order[row[:-size]].view(-1, size), order[row].unfold(0, 2 * size, size)
    mask = torch.full((len(tokens), len(tokens)), float("-inf"))
    for own, seen in zip(queries, keys, strict=True):
        ones = torch.ones(len(seen))                            # a token seen twice counts twice
        mask[own] = torch.zeros(len(tokens)).index_add(0, seen, ones).log()
    q, k, v = split(tab.iasa_attn, tokens)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    y = y + F.scaled_dot_product_attention(q, *tab.irca_attn(tab.means))
    return tab.iasa_attn.proj(rearrange(y, "h n p -> n (h p)"))[None]


def groups_against_naive(sides=(16, 32, 64)):
    naive = {
        "loops over images and subgroups": subgroup_by_subgroup,
        "full attention with a mask": masked_groups,
    }
    for side in sides:
        tab, x = make_tab(side)
        fast = latency(aggregate, tab, x, repeat=5)
        for name, slow in naive.items():
            times = latency(slow, tab, x, repeat=3, warmup=1) / fast
            apart = difference(slow(tab, x), aggregate(tab, x))
            yield name, side * side, apart, f"{times:.1f} x"


def groups_against_all(sides=(32, 64, 128)):
    """Against global attention with the same projections; N tokens of one image."""
    def makers(n):
        tab, x = make_tab(math.isqrt(n))
        local, everything = LRSA(40, 36, 96, 4, 16).eval(), catanet.Attention(40, 36, 4)
        return {
            "content groups and centres": partial(aggregate, tab, x),
            "local patches (LRSA)": partial(local, x),
            "global attention": partial(everything, rows_of(x)),
        }

    header, rows = ratios([side * side for side in sides], makers, repeat=3)
    return ["cost relative to the first N", *header], rows


# ------------------------------------------------------------------------------- old against new
def catanet_before(sides=(64, 96), repeats=3, **config):
    """The release's x2 net against this code at the first commit: time and peak memory of a forward
    pass, time of a training step, difference."""
    old = before().module("superres.catanet").CATANet(2, **config)
    new = catanet.CATANet(2, **config)

    def step(net, images):
        with torch.enable_grad():
            net(images).square().mean().backward()

    for side in sides:
        images = torch.rand(1, 3, side, side)
        new.load_state_dict(old.state_dict())            # the steps below move centres of both
        old.eval(), new.eval()
        apart = difference(new(images), old(images))
        run = partial(new, images), partial(old, images)
        forward, peak = ratio(*run, repeats), peak_bytes(run[0]) / peak_bytes(run[1])
        old.train(), new.train()
        training = ratio(partial(step, new, images), partial(step, old, images), repeats)
        yield f"{side} px", f"{forward:.2f}", f"{peak:.3f}", f"{training:.2f}", apart


def trajectories_before(frames=(1, 4, 16), side=16, channels=64, repeats=5):
    """LTAM with more and more key frames, against this code at the first commit."""
    old = before().module("superres.ttvsr").LTAM(channels, STRIDE)
    new = LTAM(channels, STRIDE)
    new.load_state_dict(old.state_dict())
    for count in frames:
        query, keys, anchor, values, location = memory(count, side, channels)
        rows = [t.contiguous(memory_format=torch.channels_last_3d) for t in (keys, *values)]
        given_new = (query, rows[0], anchor, rows[1:], location)              # as `push` keeps them
        given_old = (query, keys, anchor, values, location)
        share = ratio(partial(new, *given_new), partial(old, *given_old), repeats)
        yield count, f"{share:.2f}", difference(new(*given_new), old(*given_old))


# ------------------------------------------------------------------------------------------ UPLiFT
def pixel_by_pixel(attender, guide, value):
    """The Local Attender as loops over fine pixels and neighbours, edges replicated by hand."""
    attn, (h, w) = attender.weights(guide), value.shape[-2:]
    times, out = guide.shape[-1] // w, torch.zeros(*value.shape[:2], *guide.shape[-2:])
    for y in range(guide.shape[-2]):
        for x in range(guide.shape[-1]):
            for k, (dy, dx) in enumerate(attender.offsets):
                row = min(max(y // times + dy, 0), h - 1)
                column = min(max(x // times + dx, 0), w - 1)
                out[:, :, y, x] += attn[:, k, y, x, None] * value[:, :, row, column]
    return out


def unfolded(attender, guide, value):
    """The same with every fine pixel's neighbours written out: the coarse copies enlarged first,
    n C numbers a pixel."""
    times = guide.shape[-1] // value.shape[-1]
    copies = shifted(value, attender.offsets).repeat_interleave(times, -2)               # b c n H w
    copies = copies.repeat_interleave(times, -1)
    return (copies * attender.weights(guide)[:, None]).sum(2)


def attender_against_loops(side=16, channels=64):
    attender = LocalAttender(32)
    guide, value = torch.randn(1, 32, 2 * side, 2 * side), torch.randn(1, channels, side, side)
    fast = latency(attender, guide, value)
    naive = {
        "pixel by pixel, neighbour by neighbour": pixel_by_pixel,
        "neighbours written out for every fine pixel": unfolded,
    }
    for name, slow in naive.items():
        times = latency(slow, attender, guide, value, repeat=1, warmup=0) / fast
        apart = difference(slow(attender, guide, value), attender(guide, value))
        yield name, apart, f"{times:.1f} x"


def low_memory(cases=((384, 32), (384, 64), (64, 128)), repeats=5):
    """`pool` with low_mem against `pool` without: time, peak memory, difference. 17 neighbours,
    twice the resolution."""
    for channels, side in cases:
        attn = torch.randn(1, 17, 2 * side, 2 * side).softmax(1)
        value = torch.randn(1, channels, side, side)
        plain, low = (partial(pool, attn, value, OFFSETS[17], flag) for flag in (False, True))
        peak = peak_bytes(low) / peak_bytes(plain)
        size = f"{channels} x {side} x {side}"
        yield size, f"{ratio(low, plain, repeats):.2f}", f"{peak:.2f}", difference(low(), plain())


def upsampling(sizes=(64, 128, 256), channels=64):
    """From a quarter of the output's side: attender and cross-attention alone, and UPLiFT whole
    with its two doublings."""
    def makers(side):
        small = torch.randn(1, channels, side // 4, side // 4)
        value = torch.randn(1, channels, side // 2, side // 2)
        guide = torch.randn(1, 32, side, side)
        images, tokens = torch.rand(1, 3, side, side), side * side
        net, attender = UPLiFT(channels, 4, (8, 16), (32, 32)).eval(), LocalAttender(32)
        q, k = torch.randn(1, 1, tokens, 64), torch.randn(1, 1, tokens // 16, 64)
        v = torch.randn(1, 1, tokens // 16, channels)
        return {
            "UPLiFT, two doublings": partial(net, images, small),
            "Local Attender alone": partial(attender, guide, value),
            "cross-attention alone": partial(F.scaled_dot_product_attention, q, k, v),
        }

    header, rows = ratios(sizes, makers, repeat=3)
    return ["cost relative to the first side", *header], rows


def tables():
    with torch.no_grad():
        yield (
            "TTVSR, tokens of 4 x 4 pixels, 16 channels: attention along trajectories against "
            "attention over all tokens of all key frames",
            ["memory", "comparisons a token", "all", "LTAM", "masked full attention",
             "softmax over all", "difference (masked)"],
            list(trajectories_against_all()),
        )
        yield (
            "TTVSR, a whole small net, 32 x 32 pixels: cost is linear in the frames",
            ["frames", "key frames", "time", "a frame", "FLOPs a frame"],
            list(length()),
        )
        yield (
            "TTVSR, a whole net of 64 channels, 64 x 64 pixels, 4 to 32 frames: time is "
            "proportional to frames^slope",
            ["code", "ms a frame at 4, 8, 16, 32", "slope"],
            list(exponent()),
        )
        yield (
            "CATANet, subgroups of 64 tokens, 64 centres, 40 channels: how many times faster vtlib "
            "is than naive forms",
            ["reference", "N", "difference", "faster"],
            list(groups_against_naive()),
        )
        yield (
            "CATANet x2 as released, against the first commit's code: 1 is as it was",
            ["images", "forward", "peak memory", "training step", "difference"],
            list(catanet_before()),
        )
        yield (
            "TTVSR, one attention along trajectories, 64 channels, against the first commit's code",
            ["key frames", "time", "difference"],
            list(trajectories_before()),
        )
        yield (
            "CATANet against N: linear is 4 and 16, quadratic is 16 and 256",
            *groups_against_all(),
        )
        yield (
            "UPLiFT's Local Attender, 16 x 16 to 32 x 32, 64 channels, 17 neighbours: how many "
            "times faster vtlib is",
            ["reference", "difference", "faster"],
            list(attender_against_loops()),
        )
        yield (
            "UPLiFT's Local Attender with low_mem against without, 17 neighbours, doubling",
            ["features", "time", "peak memory", "difference"],
            list(low_memory()),
        )
        yield (
            "Upsampling x4 against the output's side: linear in pixels is 4 and 16 (time: more "
            "where copies leave the cache), quadratic is 16 and 256",
            *upsampling(),
        )
