"""VWFormer: windows and their contexts against loops, no zeros and nothing twice, the cost of a
wide context, attention against a loop, both decoders part by part."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.wrong import raw_errors
from vtlib.segmentation import (
    VWA,
    MultiheadVWA,
    VWCityHead,
    VWHead,
    context_positions,
    context_windows,
    copy_shift_padding,
    fold,
    merge_windows,
    multiply_adds,
    query_windows,
    vwformer,
)
from vtlib.segmentation.conv_module import ConvModule
from vtlib.segmentation.vwformer import embed_densely, folded_contexts
from vtlib.teach.meter import activation_bytes, flops

LEVELS = (3, 4, 5, 6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def awake(head):
    """Attention that starts at zero, and norms that do nothing, would hide what is tested."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=seeded(1))
            nn.init.normal_(module.bias, std=0.2, generator=seeded(2))
        if isinstance(module, VWA):
            nn.init.normal_(module.theta.conv.weight, std=0.1, generator=seeded(3))
    return head.eval()


def make(kind=VWHead, channels=64, num_heads=2, **options):
    torch.manual_seed(0)
    return awake(kind(LEVELS, 5, channels=channels, num_heads=num_heads, **options))


def levels(batch=1, height=16, width=16):
    sides = (2, 1, 0.5, 0.25)
    return [
        rand(batch, c, int(s * height), int(s * width), seed=i)
        for i, (c, s) in enumerate(zip(LEVELS, sides, strict=True))
    ]


# ------------------------------------------------------------------------------------- the windows
def test_windows_come_by_batch_row_column():
    x = rand(2, 3, 16, 24)
    windows = query_windows(x)
    assert windows.shape == (128, 3, 2, 3)
    assert torch.equal(windows[64 + 8 * 5 + 2], x[1, :, 10:12, 6:9])
    assert torch.equal(merge_windows(windows), x)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(16, 16), (16, 32), (24, 8)])
def test_shapes(ratio, size):
    c = 64 // ratio**2
    p, q = size[0] // 8, size[1] // 8
    windows = context_windows(rand(2, c, *size), ratio)
    assert windows.shape == (128, c, ratio * p, ratio * q)
    assert fold(windows, ratio).shape == (128, 64, p, q)
    extra = [(ratio - 1) * side + (ratio - 1) * side % 2 for side in (p, q)]
    padded = copy_shift_padding(rand(2, c, *size), ratio)
    assert padded.shape[2:] == (size[0] + extra[0], size[1] + extra[1])


def sources(size, ratio, window, i):
    """Rows that the context of window i shows, from the definition: the square around the window;
    outside, what copy-shift padding takes from inside."""
    side, inner = ratio * window, (ratio + 1) * window // 2
    strip = side - inner
    rows = []
    for row in range(i * window - strip, i * window - strip + side):
        if row < 0:
            row += side                                                   # [(R+1)P/2, RP)
        elif row >= size:
            row -= side
        rows.append(row)
    return rows


@pytest.mark.parametrize("ratio", [2, 4, 8])
@pytest.mark.parametrize("window", [2, 3, 4])
def test_contexts_against_a_loop(ratio, window):
    size = 8 * window
    x = rand(1, 2, size, size)
    windows = context_windows(x, ratio)
    table = context_positions(size, ratio)
    for i in (0, 1, 3, 6, 7):
        for j in (0, 2, 7):
            rows, columns = (sources(size, ratio, window, k) for k in (i, j))
            assert torch.equal(windows[8 * i + j], x[0][:, rows][:, :, columns])
        assert table[i].tolist() == rows


@pytest.mark.parametrize("ratio", [2, 4, 8])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 6])
def test_a_context_is_the_nearest_square_inside_rearranged(ratio, window):
    """Each pixel once, none of them zero, a cyclic shift. Where (R-1)P is odd the square has no
    middle and begins half a pixel early."""
    size, side = 8 * window, ratio * window
    for i, rows in enumerate(context_positions(size, ratio)):
        middle = i * window - math.ceil((ratio - 1) * window / 2)
        start = min(max(middle, 0), size - side)
        inside = torch.arange(start, start + side)
        assert torch.equal(rows.sort().values, inside)
        assert any(torch.equal(rows.roll(k), inside) for k in range(side))
    assert (ratio < 8) == (len(torch.unique(rows)) < size)                  # R = 8 sees the map


@pytest.mark.parametrize("ratio, share", [(2, 0.4375), (4, 0.609375), (8, 0.68359375)])
def test_zeros_in_a_corner(ratio, share):
    x = torch.ones(1, 1, 32, 32)
    corner = context_windows(x, ratio, padding="zeros")[0]
    assert 1 - corner.mean().item() == share == 1 - ((ratio + 1) / (2 * ratio)) ** 2
    rows = context_positions(32, ratio, padding="zeros")[0]
    assert ((rows[:, None] < 0) | (rows[None] < 0)).float().mean() == share
    assert context_windows(x, ratio).min() == 1


def test_paddings_differ_at_the_border_only():
    x = rand(1, 1, 16, 16)
    same = (context_windows(x, 2) == context_windows(x, 2, padding="zeros")).flatten(1).all(1)
    assert torch.equal(same.unflatten(0, (8, 8))[1:-1, 1:-1], torch.ones(6, 6, dtype=torch.bool))
    assert same.sum() == 36


def test_fold_is_row_column_channel():
    windows = rand(1, 3, 8, 4)
    folded = fold(windows, 2)
    for r in range(2):
        for s in range(2):
            part = folded[0, 3 * (2 * r + s):][:3]
            assert torch.equal(part, windows[0, :, r::2, s::2])


def test_one_pixel_windows():
    assert context_positions(8, 2).shape == (8, 2)
    assert context_windows(rand(1, 1, 8, 8), 4).shape == (64, 1, 4, 4)


# ------------------------------------------------------------------------------------ pre-scaling
@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_embedding_is_dense_and_its_padding_uneven(index):
    head, x = make(), rand(1, 64, 8, 8)
    ratio, layer = head.ratios[index], head.ds[index]
    got = head.embed(x, index)
    assert got.shape == (1, 64 // ratio**2, 8, 8)
    for y, column in ((0, 0), (3, 5), (7, 7)):
        total = torch.zeros(64 // ratio**2)
        for v in range(ratio):
            for u in range(ratio):
                row, col = y + v - (ratio // 2 - 1), column + u - (ratio // 2 - 1)
                if 0 <= row < 8 and 0 <= col < 8:
                    total = total + layer.conv.weight[:, :, v, u] @ x[0, :, row, col]
        want = layer.bn(total[None, :, None, None]).relu().flatten()
        torch.testing.assert_close(got[0, :, y, column], want, atol=1e-5, rtol=1e-4)


def test_every_context_has_as_many_weights():
    with torch.device("meta"):
        head = VWHead(LEVELS, 5, 512, 1)
    assert [layer.conv.weight.numel() for layer in head.ds] == [512**2] * 3


def test_a_wide_context_costs_what_a_narrow_one_does():
    """FLOPs of the three scales are equal to the last one, and what theory says; what autograd
    keeps differs by padding and by the few channels before the fold, and is most for R = 2."""
    head, x = make(), rand(1, 64, 16, 16)
    counted = [flops(head.scale, x, i) for i in range(3)]
    assert counted == [2 * multiply_adds(64, (16, 16), ratio) for ratio in head.ratios]
    assert len(set(counted)) == 1
    contexts = [head.contexts(x, i) for i in range(3)]
    query = query_windows(x)
    attended = [activation_bytes(head.attn[i], query, contexts[i].detach()) for i in range(3)]
    assert len(set(attended)) == 1
    whole = [activation_bytes(head.scale, x, i) for i in range(3)]
    assert max(whole) < 1.1 * min(whole)


def test_other_ways_cost_as_theory_says():
    x, ratios = rand(1, 64, 16, 16), (1, 2, 4, 8)
    query, layer = query_windows(x), make().attn[0]
    naive = [flops(layer, query, context_windows(x, ratio)) for ratio in ratios]
    assert naive == [2 * multiply_adds(64, (16, 16), r, way="naive") for r in ratios]
    post = make(pre_scaling=False)
    counted = [flops(post.scale, x, i) for i in range(3)]
    assert counted == [2 * multiply_adds(64, (16, 16), r, way="post") for r in post.ratios]
    local = 2 * multiply_adds(64, (16, 16), 8, way="window")
    assert naive[0] == flops(layer, query, query) == local
    assert naive[3] > 20 * naive[0] and post.ratios == (2, 4, 8)


def test_post_scaling_shrinks_each_context_alone():
    head, x = make(pre_scaling=False), rand(1, 64, 16, 16)
    got = head.contexts(x, 0)
    windows = context_windows(x, 2)
    alone = fold(head.embed(windows[9:10], 0), 2)
    torch.testing.assert_close(got[9:10], alone, atol=1e-5, rtol=1e-4)
    before = make().contexts(x, 0)
    assert not torch.allclose(got, before, atol=1e-3)       # zeros come at other places


# ------------------------------------------------------------------------------------ the attention
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_against_a_loop(num_heads):
    layer = awake(VWA(8, num_heads))
    query, context = rand(2, 8, 2, 3), rand(2, 8, 2, 2, seed=1)
    got, attn = layer(query, context, return_attn=True)
    assert attn.shape == (2, num_heads, 6, 4)

    def project(part, x):
        return part.conv.weight[:, :, 0, 0] @ x + part.conv.bias

    d = 8 // num_heads
    for n in range(2):
        keys = [project(layer.phi, x) for x in context[n].flatten(1).T]
        values = [project(layer.g, x) for x in context[n].flatten(1).T]
        for i, x in enumerate(query[n].flatten(1).T):
            asked, mixed = project(layer.theta, x), []
            for m in range(num_heads):
                part = slice(m * d, (m + 1) * d)
                logits = torch.stack([asked[part] @ key[part] / math.sqrt(d) for key in keys])
                weights = logits.softmax(0)
                torch.testing.assert_close(attn[n, m, i], weights, atol=1e-5, rtol=1e-4)
                mixed.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)))
            want = layer.conv_out(torch.cat(mixed)[None, :, None, None]).flatten()
            torch.testing.assert_close(got[n].flatten(1)[:, i], want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer(query, context), got, atol=1e-5, rtol=1e-4)


def test_standard_attention_is_torchs():
    layer, theirs = MultiheadVWA(8, 2), nn.MultiheadAttention(8, 2)
    theirs.load_state_dict(layer.state_dict())
    query, context = rand(3, 8, 2, 3), rand(3, 8, 2, 2, seed=1)
    tokens = (t.flatten(2).permute(2, 0, 1) for t in (query, context))
    q, k = tokens
    want, weights = theirs(q, k, k, average_attn_weights=False)
    got, attn = layer(query, context, return_attn=True)
    torch.testing.assert_close(got.flatten(2).permute(2, 0, 1), want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attn, weights, atol=1e-5, rtol=1e-4)


def test_a_whole_scale_against_a_loop():
    """For each window: gather its context pixel by pixel, fold, attend, put back."""
    head, x = make(short_cut=False), rand(1, 64, 16, 16)
    for index, ratio in enumerate(head.ratios):
        narrow = head.embed(x, index)[0]
        want = torch.zeros(64, 16, 16)
        for i in range(8):
            for j in range(8):
                rows, columns = sources(16, ratio, 2, i), sources(16, ratio, 2, j)
                square = narrow[:, rows][:, :, columns]
                tokens = torch.zeros(64, 2, 2)
                for p in range(2):
                    for q in range(2):
                        patch = square[:, p * ratio:(p + 1) * ratio, q * ratio:(q + 1) * ratio]
                        tokens[:, p, q] = patch.permute(1, 2, 0).flatten()
                place = slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
                want[:, *place] = head.attn[index](x[:, :, *place], tokens[None])[0]
        torch.testing.assert_close(head.scale(x, index)[0], want, atol=1e-5, rtol=1e-4)


def test_ratio_one_is_local_window_attention():
    head, x = make(ratios=(1,), short_cut=False), rand(1, 64, 16, 24)
    context = head.ds[0](x)                                             # a 1x1 convolution
    want = head.attn[0](query_windows(x), query_windows(context))
    torch.testing.assert_close(head.scale(x, 0), merge_windows(want), atol=1e-5, rtol=1e-4)


def test_padding_with_zeros_gives_attention_to_nothing():
    """All tokens that lie in the padding have one weight, and it is not small; with strips of the
    map they differ as others do."""
    x = rand(1, 64, 32, 32)
    attn = {}
    for padding in vwformer.PADDINGS:
        head = make(padding=padding)
        nn.init.normal_(head.attn[2].theta.conv.weight, std=0.002, generator=seeded(3))
        attn[padding] = head.scale(x, 2, return_attn=True)[1][0, 0]          # R = 8, the corner
    rows = context_positions(32, 8, padding="zeros")[0]
    padded = (rows.unflatten(0, (4, 8)) < 0).all(1)
    nothing = (padded[:, None] | padded[None]).flatten()
    weights = attn["zeros"][:, nothing]
    assert nothing.sum() == 7
    torch.testing.assert_close(weights, weights[:, :1].expand_as(weights))
    assert weights.sum(1).min() > 0.3                                           # of 7/16
    shifted = attn["copy_shift"][:, nothing]
    assert shifted.std(1).min() > 1e-4


def test_left_and_right_are_one_without_positions():
    layer, query, context = awake(VWA(8)), rand(1, 8, 2, 2), rand(1, 8, 2, 2, seed=1)
    torch.testing.assert_close(layer(query, context.flip(3)), layer(query, context))
    flat = torch.ones(1, 64, 32, 32)
    plain, placed = (make(pos=pos).scale(flat, 0) for pos in vwformer.POSITIONS)
    inner = plain[..., :16, :16]
    torch.testing.assert_close(inner, plain[..., :1, :1].expand_as(inner), atol=1e-5, rtol=1e-4)
    assert (placed[..., 8, 8] - placed[..., 8, 20]).abs().max() > 1e-2


# ------------------------------------------------------------------------------------- the decoders
@pytest.mark.parametrize("kind, in_channels, classes, heads, want", [
    (VWHead, (128, 256, 512, 1024), 150, 1, 7_855_638),
    (VWHead, (128, 256, 512, 1024), 150, 16, 7_855_638),
    (VWHead, (96, 192, 384, 768), 150, 16, 7_624_726),
    (VWCityHead, (128, 256, 512, 1024), 19, 16, 7_263_171),
])
def test_parameters_of_the_release(kind, in_channels, classes, heads, want):
    with torch.device("meta"):
        head = kind(in_channels, classes, num_heads=heads)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(head) == want
    assert count(head.ds) == 786_768
    if kind is VWHead:
        assert count(head.attn) == 3_153_408 and count(head.cat) == 1_311_744


def test_defaults_are_a_release():
    with torch.device("meta"):
        assert sum(p.numel() for p in VWHead().parameters()) == 7_624_726
        assert VWCityHead().conv_seg.out_channels == 19 and not VWCityHead().short_cut
        maps = [torch.empty(1, c, 128 // s, 256 // s) for c, s in zip(
            (96, 192, 384, 768), (1, 2, 4, 8), strict=True
        )]
        assert VWHead().eval()(maps).shape == (1, 150, 128, 256)


def seen(module, run):
    """What the module got."""
    got = []
    handle = module.register_forward_pre_hook(lambda _, args: got.append(args[0]))
    run()
    handle.remove()
    return got[0]


@pytest.mark.parametrize("kind, mode", [(VWHead, "bilinear"), (VWCityHead, "nearest")])
def test_levels_are_fused_from_coarse_to_fine(kind, mode):
    head, (_, c2, c3, c4) = make(kind), levels()
    got = seen(head.linear_fuse, lambda: head.fuse_levels(c2, c3, c4)).chunk(3, dim=1)
    options = dict(mode=mode) | (dict(align_corners=False) if mode == "bilinear" else {})
    coarse = F.interpolate(head.linear_c4(c4), (16, 16), **options)
    middle = F.interpolate(head.linear_c3(c3), (16, 16), **options)
    for part, want in zip(got, (coarse, middle, head.linear_c2(c2)), strict=True):
        torch.testing.assert_close(part, want)


@pytest.mark.parametrize("kind", [VWHead, VWCityHead])
def test_what_the_last_fusion_gets(kind):
    head, x = make(kind), rand(1, 64, 16, 16)
    parts = seen(head.cat, lambda: head.scales(x)).split(64, dim=1)
    torch.testing.assert_close(parts[0], head.short_path(x))
    if kind is VWHead:
        pooled = head.image_pool[1](x.mean(dim=(2, 3), keepdim=True))
        torch.testing.assert_close(parts[1], pooled.expand_as(x))
    assert len(parts) == (5 if kind is VWHead else 4)
    for index, part in enumerate(parts[-3:]):
        torch.testing.assert_close(part, head.scale(x, index))
    assert head.scale(x, 0).sub(head.scale(x, 1)).abs().max() > 1e-3


def test_the_short_cut_adds_the_map():
    x = rand(1, 64, 16, 16)
    with_it, without = (make(short_cut=flag).scale(x, 1) for flag in (True, False))
    torch.testing.assert_close(with_it, without + x)


def test_the_finest_map_counts_in_48_channels():
    head, maps = make(), levels()
    assert head.linear_c1.proj.weight.shape == (48, 3)
    x = rand(1, 64, 16, 16)
    got = seen(head.low_level_fuse, lambda: head.sharpen(x, maps[0]))
    large = F.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, torch.cat([large, head.linear_c1(maps[0])], dim=1))


def test_attention_starts_at_zero():
    torch.manual_seed(0)
    head, x = VWHead(LEVELS, 5, 64, 2).eval(), rand(1, 64, 16, 16)
    assert torch.equal(head.scale(x, 2), x)


def test_dropout_in_training_only():
    head, maps = make(channels=16, ratios=(2,), num_windows=2, dropout=0.9), levels(2, 4, 4)
    assert torch.equal(head(maps), head(maps))
    head.dropout.train()
    torch.manual_seed(0)
    first = head(maps)
    second = head(maps)
    torch.manual_seed(0)
    assert torch.equal(head(maps), first) and not torch.equal(first, second)


@pytest.mark.parametrize("kind", [VWHead, VWCityHead])
def test_gradients_reach_all(kind):
    head = make(kind, 16, ratios=(2, 4), num_windows=4).train()
    maps = [level.requires_grad_() for level in levels(2, 8, 8)]
    head(maps).square().mean().backward()
    for tensor in (*head.parameters(), *maps):
        assert tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0


def test_other_sizes_and_round_trip():
    head, other = make(ratios=(2, 4), num_windows=4), make(ratios=(2, 4), num_windows=4)
    other.load_state_dict(head.state_dict())
    maps = levels(2, 12, 20)
    out = head(maps)
    assert out.shape == (2, 5, 24, 40) and torch.equal(other(maps), out)


def test_an_official_checkpoint():
    head = make()
    official = {f"decode_head.{key}": value for key, value in head.state_dict().items()}
    checkpoint = {"state_dict": official | {"backbone.x": torch.ones(1)}, "meta": {}}
    converted = vwformer.convert_official(checkpoint)
    make().load_state_dict(converted)
    assert converted.keys() == vwformer.convert_official(head.state_dict()).keys()
    some = ("linear_c4.proj.weight", "linear_fuse.bn.running_mean", "ds.2.conv.weight",
            "attn.1.theta.conv.bias", "attn.0.conv_out.bn.weight", "image_pool.1.conv.weight",
            "short_path.bn.bias", "cat.conv.weight", "low_level_fuse.conv.weight", "conv_seg.bias")
    assert set(some) <= converted.keys()


# --------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("options, said", [
    (dict(channels=32), r"channels=32 but R=8"),
    (dict(num_heads=3), r"num_heads=3"),
    (dict(ratios=(16,)), r"ratios=\(16,\): none may exceed num_windows=8"),
    (dict(padding="reflect"), r"padding='reflect'"),
    (dict(pos="rope"), r"pos='rope'"),
    (dict(channels=2, num_heads=1, ratios=(1,), pos="sincos"), r"channels=2"),
    (dict(dropout=1.5), r"dropout=1.5"),
    (dict(in_channels=(1, 2, 3)), r"in_channels"),
    (dict(short_cut="no"), r"short_cut='no'"),
])
def test_no_such_decoder(options, said):
    with pytest.raises(ValueError, match=said):
        VWHead(**dict(in_channels=LEVELS, num_classes=5, channels=64, num_heads=2) | options)


def test_no_such_maps():
    head, maps = make(), levels()
    with pytest.raises(ValueError, match="features has 3 maps"):
        head(maps[:3])
    with pytest.raises(ValueError, match=r"features\[2\] has 4 channels"):
        head([maps[0], maps[1], maps[1], maps[3]])
    with pytest.raises(ValueError, match=r"features\[1\]: map size \(12, 20\)"):
        head(levels(1, 12, 20))
    with pytest.raises(ValueError, match="one batch size"):
        head([*maps[:3], maps[3].repeat(2, 1, 1, 1)])
    with pytest.raises(ValueError, match=r"x: map size \(12, 12\) is not a multiple of 8"):
        context_windows(rand(1, 1, 12, 12), 2)
    with pytest.raises(ValueError, match="ratio=9"):
        copy_shift_padding(rand(1, 1, 16, 16), 9)
    with pytest.raises(ValueError, match="needs one of window, naive, vwa, post"):
        multiply_adds(64, (16, 16), 2, way="pre")


@torch.no_grad()
def test_no_error_from_deep_inside():
    x, head = rand(2, 4, 4, 4), make(channels=4, ratios=(1, 2), num_windows=2)
    pair = dict(query=rand(2, 8, 2, 2), context=rand(2, 8, 2, 2), return_attn=False)
    around = dict(ratio=2, num_windows=2, padding="zeros")
    calls = {
        "query_windows": (query_windows, dict(x=x, num_windows=2)),
        "merge_windows": (merge_windows, dict(windows=rand(4, 1, 2, 2), num_windows=2)),
        "copy_shift_padding": (copy_shift_padding, dict(x=x, **around)),
        "context_windows": (context_windows, dict(x=x, **around)),
        "context_positions": (context_positions, dict(size=16, **around)),
        "fold": (fold, dict(windows=x, ratio=2)),
        "multiply_adds": (multiply_adds, dict(
            channels=8, size=(16, 16), ratio=2, num_windows=8, way="vwa"
        )),
        "VWA": (VWA(8).eval(), pair),
        "MultiheadVWA": (MultiheadVWA(8), pair),
        "VWHead.forward": (head, dict(features=levels(1, 4, 4))),
        "VWHead.scale": (head.scale, dict(x=x, index=1, return_attn=False)),
        "VWHead.embed": (head.embed, dict(x=x, index=1)),
        "VWHead.scales": (head.scales, dict(x=x)),
    }
    found = {name: raw_errors(*call, part=True) for name, call in calls.items()}
    assert {name: errors for name, errors in found.items() if errors} == {}


@pytest.mark.parametrize("ratio, padding", [(1, "zeros"), (2, "copy_shift"), (4, "zeros")])
def test_folded_contexts_are_both_steps_at_once(ratio, padding):
    x = rand(2, 3, 8, 12)
    want = fold(context_windows(x, ratio, 4, padding), ratio)
    assert torch.equal(folded_contexts(x, ratio, 4, padding), want)


@pytest.mark.parametrize("ratio", [4, 5, 8])
def test_a_matrix_and_a_sum_are_the_convolution(ratio):
    """With odd kernels, and gradients alike."""
    torch.manual_seed(0)
    layer, x = ConvModule(6, 3, ratio).eval(), torch.rand(2, 6, 9, 11, requires_grad=True)
    before, after = ratio // 2 - 1 + ratio % 2, ratio // 2
    want = layer(F.pad(x, (before, after, before, after)))
    got = embed_densely(x, layer, ratio)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-3)
