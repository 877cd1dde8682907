"""The vocabulary against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtlib import nn as vnn


def test_patchify_against_loops():
    images = torch.rand(2, 3, 6, 9)
    tokens = vnn.patchify(images, 3)
    n = 0
    for i in range(2):
        for j in range(3):
            square = images[:, :, 3 * i:3 * i + 3, 3 * j:3 * j + 3]
            assert torch.equal(tokens[:, n], square.permute(0, 2, 3, 1).reshape(2, -1))
            n += 1
    assert n == tokens.shape[1]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_unpatchify_inverts(batch, h, w, patch):
    images = torch.rand(batch, 3, h * patch, w * patch)
    assert torch.equal(vnn.unpatchify(vnn.patchify(images, patch), patch, (h, w)), images)


def test_patch_embed_is_a_linear_layer_on_patches():
    embed, images = vnn.PatchEmbed(4, 3, 10), torch.rand(2, 3, 8, 12)
    weight = embed.proj.weight.permute(0, 2, 3, 1).reshape(10, -1)
    want = vnn.patchify(images, 4) @ weight.t() + embed.proj.bias
    torch.testing.assert_close(embed(images), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("call, words", [
    (lambda: vnn.PatchEmbed(4)(torch.rand(1, 4, 8, 8)), ["images", "4 channels", "needs 3"]),
    (lambda: vnn.PatchEmbed(4)(torch.rand(1, 8, 8, 3)), ["channels come last"]),
    (lambda: vnn.PatchEmbed(4)(torch.rand(3, 8, 8)), ["4 axes", "images[None]"]),
    (lambda: vnn.PatchEmbed(4)(torch.rand(1, 3, 8, 10)), ["(8, 10)", "multiple of 4", "(8, 12)"]),
    (lambda: vnn.PatchEmbed(4)(torch.rand(0, 3, 8, 8)), ["empty"]),
    (lambda: vnn.patchify(torch.rand(1, 3, 8, 9), 4), ["(8, 9)", "multiple of 4"]),
    (lambda: vnn.unpatchify(torch.rand(1, 5, 12), 2, (2, 2)), ["grid=(2, 2)", "(1, 5, 12)"]),
    (lambda: vnn.Attention(10, 3), ["embed_dim=10", "num_heads=3"]),
    (lambda: vnn.DropPath(1.0), ["rate=1.0"]),
    (lambda: vnn.sincos_2d((2, 2), 6), ["embed_dim=6", "multiple of 4"]),
    (lambda: vnn.places_2d((2, 2), 6), ["channels=6", "multiple of 4"]),
    (lambda: vnn.rope_2d((2, 2), 6), ["head_dim=6"]),
    (lambda: vnn.rope_1d(4, 3), ["dim=3", "even"]),
    (
        lambda: vnn.apply_rope(torch.rand(1, 1, 5, 8), *vnn.rope_1d(4, 8)),
        ["(4, 8)", "(1, 1, 5, 8)"],
    ),
    (lambda: vnn.resize_pos_embed(torch.rand(1, 5, 8), (3, 3), (4, 4)), ["(1, 10, D)"]),
    (lambda: vnn.window_partition(torch.rand(1, 5, 6, 2), 3), ["(5, 6)", "multiple of 3"]),
    (lambda: vnn.check_multiple((8, 8), 0), ["multiple[0]=0"]),
    (lambda: vnn.patchify(torch.rand(1, 3, 8, 8), 0), ["patch_size=0"]),
    (lambda: vnn.unpatchify(torch.rand(1, 4, 12), 2, 2), ["grid=2", "2 integers"]),
    (lambda: vnn.sincos_2d(3, 8), ["grid=3", "2 integers"]),
    (lambda: vnn.sincos_2d((2, 2), 8, -1.0), ["temperature=-1.0", "positive"]),
    (lambda: vnn.rope_at([1, 2], 4), ["positions is a list"]),
    (lambda: vnn.rope_1d(4, 4, 0), ["base=0", "positive"]),
    (lambda: vnn.mirrored(torch.arange(3), 0), ["length=0"]),
    (
        lambda: vnn.apply_rope(torch.rand(1, 4, 8), torch.rand(4, 8), torch.rand(4, 6)),
        ["(4, 8)", "(4, 6)"],
    ),
    (lambda: vnn.pad_to_multiple(torch.rand(5, 6, 2), 3), ["(5, 6, 2)", "(B, H, W, C)"]),
    (lambda: vnn.window_merge(torch.rand(1, 3, 4, 2), 2, 4, 4), ["(1, 3, 4, 2)", "4 x 4"]),
    (lambda: vnn.relative_index("3"), ["size='3'"]),
    (lambda: vnn.attend(*torch.rand(3, 1, 1, 4, 6)[:2], torch.rand(1, 1, 5, 6)), ["(1, 1, 5, 6)"]),
    (lambda: vnn.attend(*torch.rand(3, 1, 1, 4, 6), bias=torch.zeros(4, 3)), ["bias", "(4, 3)"]),
    (lambda: vnn.attend(*torch.rand(3, 1, 1, 4, 6), bias=torch.ones(4, 4).long()),
     ["bias is torch.int64 (4, 4) but needs to be boolean or floating"]),
    (lambda: vnn.Attention(12, 3)(torch.rand(1, 4, 12), rope=1), ["rope is a int", "(cos, sin)"]),
    (lambda: vnn.Block(12, 3)(torch.rand(1, 4, 11)), ["x has 11 channels", "D = 12"]),
    (lambda: vnn.Block(12, 3, mlp_ratio=1e300), ["mlp_ratio=1e+300"]),
    (lambda: vnn.Block(12, 3, eps="1"), ["eps='1'"]),
    (lambda: vnn.Mlp(4, 4)([1.0]), ["x is a list"]),
    (lambda: vnn.ChannelNorm(4)(torch.rand(1, 3, 2, 2)), ["x has 3 channels", "needs 4"]),
    (lambda: vnn.check_tokens(torch.rand(2, 3)), ["3 axes"]),
    (lambda: vnn.check_tokens(torch.rand(2, 3, 4), 5), ["4 channels", "D = 5"]),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def loop_attention(q, k, v, allowed=None):
    out = torch.zeros(*q.shape[:3], v.shape[-1])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                keys = [j for j in range(k.shape[2]) if allowed is None or allowed[i, j]]
                dots = [(q[b, h, i] * k[b, h, j]).sum() for j in keys]
                weights = torch.softmax(torch.stack(dots) / math.sqrt(q.shape[-1]), 0)
                out[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weights, keys, strict=True))
    return out


@pytest.mark.parametrize("return_attn", [False, True])
def test_attend_against_loops(return_attn):
    q, k, v = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    allowed = torch.rand(3, 5) > 0.4
    allowed[:, 0] = True
    for mask in (None, allowed):
        out = vnn.attend(q, k, v, mask, return_attn)
        out, attn = out if return_attn else (out, None)
        torch.testing.assert_close(out, loop_attention(q, k, v, mask), atol=1e-5, rtol=1e-4)
        if return_attn:
            torch.testing.assert_close(attn.sum(-1), torch.ones(2, 2, 3))
            assert mask is None or (attn[..., ~mask] == 0).all()


@pytest.mark.parametrize("head_dim, value_dim", [(9, 10), (10, 9), (3, 16), (17, 8), (5, 5)])
def test_uneven_heads_take_the_fused_kernel(head_dim, value_dim):
    """Without a kernel that writes the weights down there is no way but the fused one."""
    q, k = torch.randn(2, 2, 3, head_dim), torch.randn(2, 2, 5, head_dim)
    v = torch.randn(2, 2, 5, value_dim)
    allowed = torch.rand(3, 5) > 0.4
    allowed[:, 0] = True
    for mask in (None, allowed, torch.randn(3, 5)):
        want, _ = vnn.attend(q, k, v, mask, return_attn=True)
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            torch.testing.assert_close(vnn.attend(q, k, v, mask), want, atol=1e-6, rtol=1e-5)


def test_attention_weights_path_equals_fused_path():
    layer, x, bias = vnn.Attention(12, 3), torch.randn(2, 6, 12), torch.randn(3, 6, 6)
    out, attn = layer(x, bias=bias, return_attn=True)
    torch.testing.assert_close(out, layer(x, bias=bias), atol=1e-5, rtol=1e-4)
    assert attn.shape == (2, 3, 6, 6)


def test_drop_path():
    x = torch.ones(4000, 2, 3)
    layer = vnn.DropPath(0.25)
    torch.manual_seed(0)
    y = layer.train()(x)
    assert set(y.unique().tolist()) <= {0.0, x.new_tensor(1 / 0.75).item()}
    assert ((y == 0).all((1, 2)) | (y != 0).all((1, 2))).all()                   # whole samples
    assert abs(y.mean() - 1) < 0.05
    assert layer.eval()(x) is x


def test_sincos_values():
    table = vnn.sincos_2d((3, 5), 8)
    assert table.shape == (15, 8)
    row, col = 2, 4
    token = table[row * 5 + col]
    want = []
    for place in (row, col):
        want += [math.sin(place), math.sin(place / 100), math.cos(place), math.cos(place / 100)]
    torch.testing.assert_close(token, torch.tensor(want), atol=1e-5, rtol=1e-4)


def test_rope_1d_depends_on_differences_only():
    tables = vnn.rope_1d(12, 8)
    q, k = torch.randn(8), torch.randn(8)
    scores = vnn.apply_rope(q.expand(12, 8), *tables) @ vnn.apply_rope(k.expand(12, 8), *tables).t()
    for lag in range(5):
        diagonal = scores.diagonal(lag)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


def test_rope_2d_depends_on_both_differences_only():
    h, w = 4, 5
    cos, sin = vnn.rope_2d((h, w), 8, num_prefix=1)
    assert (cos[0] == 1).all() and (sin[0] == 0).all()                     # [CLS] is not turned
    q, k = torch.randn(8), torch.randn(8)
    a, b = (vnn.apply_rope(t.expand(1 + h * w, 8), cos, sin)[1:].reshape(h, w, 8) for t in (q, k))
    for y, x, v, u in [(0, 0, 1, 2), (1, 1, 3, 0)]:
        dy, dx = v - y, u - x
        want = a[y, x] @ b[v, u]
        for yy in range(max(0, -dy), h - max(0, dy)):
            for xx in range(max(0, -dx), w - max(0, dx)):
                got = a[yy, xx] @ b[yy + dy, xx + dx]
                torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(a[0, 0] @ b[0, 1], a[0, 0] @ b[1, 0])


def test_apply_rope_leaves_other_channels_and_lengths_alone():
    x = torch.randn(2, 3, 6, 10)
    y = vnn.apply_rope(x, *vnn.rope_1d(6, 4))
    assert torch.equal(y[..., 4:], x[..., 4:]) and torch.equal(y[..., 0, :], x[..., 0, :])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


def test_resize_pos_embed_keeps_prefix_and_constants():
    table = torch.cat([torch.randn(1, 1, 6), torch.full((1, 12, 6), 0.7)], dim=1)
    new = vnn.resize_pos_embed(table, (3, 4), (5, 7))
    assert new.shape == (1, 36, 6) and torch.equal(new[:, :1], table[:, :1])
    torch.testing.assert_close(new[:, 1:], torch.full((1, 35, 6), 0.7))
    assert vnn.resize_pos_embed(table, (3, 4), (3, 4)) is table


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_windows(height, width, size):
    x = torch.arange(1.0, height * width + 1).reshape(1, height, width, 1)
    padded, (down, right) = vnn.pad_to_multiple(x, size)
    assert padded.shape[1] % size == 0 == padded.shape[2] % size
    assert 0 <= down < size and 0 <= right < size
    groups = vnn.window_partition(padded, size)
    assert torch.equal(vnn.window_merge(groups, size, *padded.shape[1:3]), padded)
    values = groups[groups > 0].sort().values
    assert torch.equal(values, x.flatten())                         # every real token exactly once


def test_relative_index_points_at_query_minus_key():
    size = 3
    offsets, index = vnn.relative_offsets(size), vnn.relative_index(size)
    for i in range(size**2):
        for j in range(size**2):
            want = [i // size - j // size, i % size - j % size]
            assert offsets[index[i, j]].tolist() == want


def test_channel_norm():
    x = torch.randn(2, 5, 3, 4)
    norm = vnn.ChannelNorm(5)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    want = (x - mean) / (var + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), want)


def test_mirrored_bounces():
    assert vnn.mirrored(torch.arange(10), 3).tolist() == [0, 1, 2, 2, 1, 0, 0, 1, 2, 2]
    assert vnn.mirrored(torch.arange(-4, 0), 3).tolist() == [2, 2, 1, 0]
    assert vnn.mirrored(torch.arange(3), 1).tolist() == [0, 0, 0]


def test_places_are_the_same_at_every_resolution():
    fine = vnn.places_2d((6, 6), 16).view(6, 6, 16)
    coarse = vnn.places_2d((2, 2), 16).view(2, 2, 16)
    # patches 1 of 6 and 0 of 2 have one middle
    torch.testing.assert_close(fine[1::3, 1::3], coarse)
    many = vnn.places_2d((16, 16), 16)
    assert torch.cdist(many, many).fill_diagonal_(1).min() > 0.05


def test_places_values():
    row, col = 1.5 / 2 * math.pi, 2.5 / 3 * math.pi
    waves = [(wave, k * at) for at in (row, col) for wave in (math.sin, math.cos) for k in (1, 2)]
    want = torch.tensor([wave(angle) for wave, angle in waves])
    torch.testing.assert_close(vnn.places_2d((2, 3), 8, math.pi)[5], want)


def test_cross_attention_is_attention_between_two_sets():
    layer = vnn.CrossAttention(8, 2, context_dim=6)
    queries, context = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    out, attn = layer(queries, context, return_attn=True)
    assert out.shape == (2, 3, 8) and attn.shape == (2, 2, 3, 5)
    torch.testing.assert_close(layer(queries, context), out, atol=1e-5, rtol=1e-4)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2)
               for t in (layer.wq(queries), layer.wk(context), layer.wv(context)))
    want = layer.proj(loop_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-4)
    learned = torch.nn.Parameter(torch.randn(1, 3, 8))           # learned queries: one row for all
    assert layer(learned.expand(2, -1, -1), context).shape == (2, 3, 8)


def test_cross_attention_names_what_does_not_fit():
    layer = vnn.CrossAttention(8, 2, context_dim=6)
    with pytest.raises(ValueError, match="queries has 6 channels.* D = 8"):
        layer(torch.randn(1, 3, 6), torch.randn(1, 5, 6))
    with pytest.raises(ValueError, match="context has 8 channels.* D = 6"):
        layer(torch.randn(1, 3, 8), torch.randn(1, 5, 8))


def test_keys_that_begin_as_queries():
    weight = torch.nn.Parameter(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
    queries, _, values = (part.clone() for part in weight.detach().chunk(3))
    vnn.start_alike(weight)
    assert torch.equal(weight.detach(), torch.cat([queries, queries, values]))
    with pytest.raises(ValueError, match=r"weight has shape \(4, 4\)"):
        vnn.start_alike(torch.zeros(4, 4))
