"""Super-resolution: attention along trajectories against all of space and time, content groups against all tokens, the local attender against
cross-attention, each as its axis grows."""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange

from vtlib.superres import catanet
from vtlib.superres.catanet import LRSA, TAB, grouping
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
from vtlib.superres.uplift import LocalAttender, UPLiFT, shifted
from vtlib.teach import flops, latency

from .before import before, ratio

C, STRIDE = 16, 4                                                                # channels of the demo nets, pixels a token side


def ratios(rows, sizes, makers, repeat=5):
    """FLOPs and time of each entry of makers(size), relative to its own value at the first size. Operations that count nothing show "-"."""
    first = {}
    for size in sizes:
        for name, run in makers(size).items():
            cost = flops(run), latency(run, repeat=repeat, warmup=1)
            base = first.setdefault(name, cost)
            rows.setdefault(name, [name]).extend(f"{now / then:.1f}" if then else "-" for now, then in zip(cost, base))
    return [f"{what} {size}" for size in sizes for what in ("FLOPs", "time")], list(rows.values())


# ------------------------------------------------------------------------------------------------------------------------ TTVSR
def memory(frames, side, channels=C, batch=1):
    """A feature and k key frames of tokens, side x side each, with location maps of random motion: the arguments of `LTAM`."""
    pixels = side * STRIDE
    maps = torch.randn(batch, frames, channels, pixels, pixels)
    keys = torch.stack([tokenize(m, STRIDE) for m in maps.unbind(1)], 2)         # b c k h w
    values = [torch.stack(v, 2) for v in zip(*(cross_scale_tokens(m, STRIDE) for m in maps.unbind(1)))]
    location = torch.cat([identity_grid(batch, side, side)] * frames, 1)
    location = carry(location, token_flow(6 * torch.randn(batch, 2, pixels, pixels), STRIDE)).unflatten(1, (frames, 2))
    return torch.randn(batch, channels, pixels, pixels), keys, torch.randn(batch, channels, pixels, pixels), values, location


def masked_full_attention(layer, query, keys, anchor, values, location):
    """LTAM the naive way: all cosines between every token and every token of every key frame, those off the trajectory struck out."""
    _, _, k, h, w = keys.shape
    q, found = (F.normalize(t, dim=1) for t in (tokenize(query, STRIDE), keys))
    cosine = torch.einsum("bcn,bcm->bnm", q.flatten(2), found.flatten(2))         # every token x every token of every key frame
    at = location.round().long()
    place = (torch.arange(k)[:, None, None] * h + at[:, :, 1]) * w + at[:, :, 0]   # b k h w
    on = torch.zeros_like(cosine, dtype=torch.bool).scatter(2, rearrange(place, "b k h w -> b (h w) k"), True)
    weight, chosen = cosine.masked_fill(~on, float("-inf")).max(-1)              # b n
    scales = [v.flatten(2).gather(2, chosen[:, None].expand(-1, v.shape[1], -1)).unflatten(2, (h, w)) for v in values]
    soft = weight.unflatten(1, (h, w))[:, None].repeat_interleave(STRIDE, 2).repeat_interleave(STRIDE, 3)
    return anchor + layer.fusion(torch.cat([untokenize(s, STRIDE) for s in scales], 1)) * soft


def space_time_attention(layer, query, keys, anchor, values, location):
    """What one would write without trajectories: softmax attention of every token over all tokens of all key frames, at the same three scales."""
    q, k, v = (rearrange(t.flatten(2), "b c n -> b 1 n c") for t in (tokenize(query, STRIDE), keys, torch.cat(values, 1)))
    h, w = keys.shape[3:]
    out = rearrange(F.scaled_dot_product_attention(q, k, v), "b 1 (h w) (s c) -> s b c h w", h=h, s=3)
    return anchor + layer.fusion(torch.cat([untokenize(s, STRIDE) for s in out], 1))


def trajectories_against_all(cases=((1, 16), (4, 16), (16, 16), (4, 8), (4, 32), (4, 48))):
    """Comparisons a token and time of LTAM and of the two full attentions."""
    layer = LTAM(C, STRIDE)
    for frames, side in cases:
        inputs = memory(frames, side)
        own, masked, full = (latency(f, *inputs, repeat=5) for f in (layer, lambda *a: masked_full_attention(layer, *a),
                                                                     lambda *a: space_time_attention(layer, *a)))
        difference = (layer(*inputs) - masked_full_attention(layer, *inputs)).abs().max()
        yield (f"{frames} key frames of {side} x {side}", frames, frames * side * side, f"{1000 * own:.2f} ms", f"{masked / own:.1f} x",
               f"{full / own:.1f} x", f"{difference:.0e}")


def length(frames=(4, 8, 16, 32), side=32):
    """A whole small net on longer and longer clips: time a frame stays, whatever the number of key frames."""
    net = TTVSR(C, num_blocks=2, feat_blocks=1, head_channels=C, spynet=None).eval()
    for t in frames:
        clip = torch.rand(1, t, 3, side, side)
        flows = tuple(torch.randn(1, t - 1, 2, side, side) for _ in range(2))
        seconds = latency(net, clip, flows, repeat=3, warmup=1)
        keys = len(net.key_frames(t))
        yield t, keys, f"{1000 * seconds:.0f} ms", f"{1000 * seconds / t:.1f} ms", f"{flops(net, clip, flows) / t / 1e6:.0f} M"


# ---------------------------------------------------------------------------------------------------------------------- CATANet
def make_tab(side, num_centres=64, group_size=64, dim=40):
    """A released-size block with learned-looking centres, and a map of side x side tokens."""
    tab = TAB(dim, 36, 96, 4, num_centres, group_size).eval()
    tab.means.copy_(F.normalize(torch.randn(num_centres, dim), dim=-1))
    return tab, torch.randn(1, dim, side, side)


def aggregate(tab, x):
    """Token aggregation alone: grouping, attention in subgroups, attention to the centres; (1, C, h, w) -> (1, N, C)."""
    tokens = tab.norm(rearrange(x, "b c h w -> b (h w) c"))
    return tab.iasa_attn(tokens, grouping(tokens, tab.means, tab.group_size), *tab.irca_attn(tab.means))


def split(layer, tokens):
    """(N, C) -> q, k, v, each (heads, N, P)."""
    return (rearrange(to(tokens), "n (h p) -> h n p", h=layer.num_heads) for to in (layer.to_q, layer.to_k, layer.to_v))


def subgroup_by_subgroup(tab, x):
    """The same with loops over images and subgroups, the sorted row and its mirror image written out."""
    out, size = [], tab.group_size
    for image in rearrange(x, "b c h w -> b (h w) c"):
        tokens = tab.norm(image)
        order = torch.tensor(sorted(range(len(tokens)), key=(F.normalize(tokens, dim=-1) @ tab.means.T).argmax(-1).tolist().__getitem__))
        row = torch.cat([order, order.flip(0)[:-len(order) % size + size]])
        q, k, v = split(tab.iasa_attn, tokens)
        kc, vc = tab.irca_attn(tab.means)
        y = torch.zeros(tab.iasa_attn.num_heads, *v.shape[1:])
        for start in range(0, len(order), size):
            own, seen = row[start:min(start + size, len(order))], row[start:start + 2 * size]
            y[:, own] = F.scaled_dot_product_attention(q[:, own], k[:, seen], v[:, seen]) + F.scaled_dot_product_attention(q[:, own], kc, vc)
        out.append(tab.iasa_attn.proj(rearrange(y, "h n p -> n (h p)")))
    return torch.stack(out)


def masked_groups(tab, x):
    """The same as full attention over all tokens with a mask; right where the row is not mirrored into a subgroup that holds the same token already."""
    (tokens,) = tab.norm(rearrange(x, "b c h w -> b (h w) c"))
    groups = grouping(tokens[None], tab.means, tab.group_size)
    queries, keys = (m[0] for m in groups.members())
    mask = torch.full((len(tokens), len(tokens)), float("-inf"))
    for own, seen in zip(queries, keys):
        times = torch.zeros(len(tokens)).index_add(0, seen, torch.ones(len(seen)))   # a token seen twice counts twice
        mask[own] = times.log()
    q, k, v = split(tab.iasa_attn, tokens)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask) + F.scaled_dot_product_attention(q, *tab.irca_attn(tab.means))
    return tab.iasa_attn.proj(rearrange(y, "h n p -> n (h p)"))[None]


def groups_against_naive(sides=(16, 32, 64)):
    for side in sides:
        tab, x = make_tab(side)
        fast = latency(aggregate, tab, x, repeat=5)
        for name, slow in (("loops over images and subgroups", subgroup_by_subgroup), ("full attention with a mask", masked_groups)):
            difference = (slow(tab, x) - aggregate(tab, x)).abs().max()
            yield name, side * side, f"{difference:.0e}", f"{latency(slow, tab, x, repeat=3, warmup=1) / fast:.1f} x"


def groups_against_all(sides=(32, 64, 128)):
    """Against global attention with the same projections; N tokens of one image."""
    def makers(side):
        tab, x = make_tab(side)
        local, everything = LRSA(40, 36, 96, 4, 16).eval(), catanet.Attention(40, 36, 4)
        tokens = rearrange(x, "b c h w -> b (h w) c")
        return {"content groups and centres": lambda: aggregate(tab, x), "local patches (LRSA)": lambda: local(x),
                "global attention": lambda: everything(tokens)}
    header, rows = ratios({}, [side * side for side in sides], lambda n: makers(int(n**0.5)), repeat=3)
    return ["cost relative to the first N", *header], rows


# ------------------------------------------------------------------------------- old against new
def catanet_before(sides=(64, 96), repeats=3, **config):
    """The release's x2 net against this code at the first commit: time, training step, difference."""
    old = before().module("superres.catanet").CATANet(2, **config)
    new = catanet.CATANet(2, **config)
    new.load_state_dict(old.state_dict())

    def step(net, images):
        with torch.enable_grad():
            net(images).square().mean().backward()

    for side in sides:
        images = torch.rand(1, 3, side, side)
        old.eval(), new.eval()
        difference = (new(images) - old(images)).abs().max()
        forward = ratio(partial(new, images), partial(old, images), repeats)
        old.train(), new.train()
        training = ratio(partial(step, new, images), partial(step, old, images), repeats)
        yield f"{side} px", f"{forward:.2f}", f"{training:.2f}", f"{difference:.0e}"


def trajectories_before(frames=(1, 4, 16), side=16, channels=64, repeats=5):
    """LTAM with more and more key frames, against this code at the first commit."""
    old = before().module("superres.ttvsr").LTAM(channels, STRIDE)
    new = LTAM(channels, STRIDE)
    new.load_state_dict(old.state_dict())
    for count in frames:
        query, keys, anchor, values, location = memory(count, side, channels)
        rows = [t.contiguous(memory_format=torch.channels_last_3d) for t in (keys, *values)]
        given_new = (query, rows[0], anchor, rows[1:], location)                 # as `push` keeps them
        given_old = (query, keys, anchor, values, location)
        difference = (new(*given_new) - old(*given_old)).abs().max()
        share = ratio(partial(new, *given_new), partial(old, *given_old), repeats)
        yield count, f"{share:.2f}", f"{difference:.0e}"


# ----------------------------------------------------------------------------------------------------------------------- UPLiFT
def pixel_by_pixel(attender, guide, value):
    """The Local Attender as loops over fine pixels and neighbours, edges replicated by hand."""
    attn, (h, w) = attender.weights(guide), value.shape[-2:]
    times, out = guide.shape[-1] // w, torch.zeros(*value.shape[:2], *guide.shape[-2:])
    for y in range(guide.shape[-2]):
        for x in range(guide.shape[-1]):
            for k, (dy, dx) in enumerate(attender.offsets):
                row, column = min(max(y // times + dy, 0), h - 1), min(max(x // times + dx, 0), w - 1)
                out[:, :, y, x] += attn[:, k, y, x, None] * value[:, :, row, column]
    return out


def unfolded(attender, guide, value):
    """The same with every fine pixel's neighbours written out: the coarse copies enlarged first, n C numbers a pixel."""
    times = guide.shape[-1] // value.shape[-1]
    copies = shifted(value, attender.offsets).repeat_interleave(times, -2).repeat_interleave(times, -1)     # b c n H W
    return (copies * attender.weights(guide)[:, None]).sum(2)


def attender_against_loops(side=16, channels=64):
    attender = LocalAttender(32)
    guide, value = torch.randn(1, 32, 2 * side, 2 * side), torch.randn(1, channels, side, side)
    fast = latency(attender, guide, value)
    for name, slow in (("pixel by pixel, neighbour by neighbour", pixel_by_pixel), ("neighbours written out for every fine pixel", unfolded)):
        difference = (slow(attender, guide, value) - attender(guide, value)).abs().max()
        yield name, f"{difference:.0e}", f"{latency(slow, attender, guide, value, repeat=1, warmup=0) / fast:.1f} x"


def upsampling(sizes=(64, 128, 256), channels=64):
    """From a quarter of the output's side: attender and cross-attention alone, and UPLiFT whole with its two doublings."""
    def makers(side):
        small = torch.randn(1, channels, side // 4, side // 4)
        value, guide = torch.randn(1, channels, side // 2, side // 2), torch.randn(1, 32, side, side)
        images = torch.rand(1, 3, side, side)
        net, attender = UPLiFT(channels, 4, (8, 16), (32, 32)).eval(), LocalAttender(32)
        q, k, v = torch.randn(1, 1, side * side, 64), torch.randn(1, 1, side * side // 16, 64), torch.randn(1, 1, side * side // 16, channels)
        return {"UPLiFT, two doublings": lambda: net(images, small), "Local Attender alone": lambda: attender(guide, value),
                "cross-attention alone": lambda: F.scaled_dot_product_attention(q, k, v)}
    header, rows = ratios({}, sizes, makers, repeat=3)
    return ["cost relative to the first side", *header], rows


def tables():
    with torch.no_grad():
        yield ("TTVSR, tokens of 4 x 4 pixels, 16 channels: attention along trajectories against attention over all tokens of all key frames",
               ["memory", "comparisons a token", "all", "LTAM", "masked full attention", "softmax over all", "difference (masked)"],
               list(trajectories_against_all()))
        yield ("TTVSR, a whole small net, 32 x 32 pixels: cost is linear in the frames", ["frames", "key frames", "time", "a frame", "FLOPs a frame"],
               list(length()))
        yield ("CATANet, subgroups of 64 tokens, 64 centres, 40 channels: how many times faster vtlib is than naive forms",
               ["reference", "N", "difference", "faster"], list(groups_against_naive()))
        yield ("CATANet x2 as released, against the first commit's code: 1 is as it was",
               ["images", "forward", "training step", "difference"], list(catanet_before()))
        yield ("TTVSR, one attention along trajectories, 64 channels, against the first commit's code",
               ["key frames", "time", "difference"], list(trajectories_before()))
        header, rows = groups_against_all()
        yield "CATANet against N: linear is 4 and 16, quadratic is 16 and 256", header, rows
        yield ("UPLiFT's Local Attender, 16 x 16 to 32 x 32, 64 channels, 17 neighbours: how many times faster vtlib is",
               ["reference", "difference", "faster"], list(attender_against_loops()))
        header, rows = upsampling()
        yield ("Upsampling x4 against the output's side: linear in pixels is 4 and 16 (time: more where copies leave the cache), quadratic is 16 and 256",
               header, rows)
