"""CATANet against plain loops, the paper's facts, official sizes and names, and where the release
breaks."""

import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from vtlib.superres import catanet
from vtlib.superres.catanet import (
    IASA,
    LRSA,
    TAB,
    CATANet,
    center_iter,
    grouping,
    patch_divide,
    patch_reverse,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return F.normalize(randn(*shape, seed=seed), dim=-1)


def block(num_centres=5, group_size=8, **options):
    torch.manual_seed(0)
    return TAB(12, 8, 16, 2, num_centres, group_size, **options)


def small(**options):
    torch.manual_seed(0)
    sizes = dict(
        embed_dim=12, num_layers=2, qk_dim=8, mlp_dim=16, num_heads=2, patch_sizes=(8, 6),
        num_centres=(4, 6), group_sizes=(32, 24),
    )
    return CATANet(**{**sizes, **options})


def heads(tokens, *linears, num_heads=2):
    """(..., N, C) through each of the projections -> (..., heads, N, P)."""
    return [rearrange(to(tokens), "... n (h p) -> ... h n p", h=num_heads) for to in linears]


def projections(layer):
    return layer.to_q, layer.to_k, layer.to_v


def rows(x):
    """Maps (B, C, h, w) as tokens in raster order."""
    return rearrange(x, "b c h w -> b (h w) c")


def pieces(n, group_size):
    """Positions in the sorted row of n: queries (G, s), keys (G, 2 s)."""
    row, size = catanet.sorted_row(n, group_size)
    return row[:-size].reshape(-1, size), row.unfold(0, 2 * size, size)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------------------------- sizes and names
@pytest.mark.parametrize("upscale, count", [(2, 477_435), (3, 549_635), (4, 535_195)])
def test_official_sizes(upscale, count):
    with torch.device("meta"):
        model = CATANet(upscale)
    assert parameters(model) == count
    assert sum(b.numel() for b in model.buffers()) == 19_208 == 480 * 40 + 8
    assert [b[0].means.shape[0] for b in model.blocks] == [16, 32, 64, 128] * 2
    assert [b[0].group_size for b in model.blocks] == [256, 128, 64, 32] * 2
    assert [b[1].patch_size for b in model.blocks] == [16, 20, 24, 28] * 2


def test_the_ablation_without_aggregation_has_the_papers_size():
    with torch.device("meta"):
        assert round(parameters(CATANet(4, aggregate=False)) / 1000) == 366


def test_official_names():
    names = set(CATANet(4).state_dict())
    stem = {"first_conv", "last_conv", "upconv1", "upconv2", *(f"mid_convs.{i}" for i in range(8))}
    assert {n.rsplit(".", 1)[0] for n in names if not n.startswith("blocks")} == stem
    parts = ("fc1", "dwconv.depthwise_conv.0", "fc2")
    ffn = [f"fn.{n}.{p}" for n in parts for p in ("weight", "bias")]
    norm, own = ["norm.weight", "norm.bias"], ("to_q", "to_k", "to_v", "proj")
    tab = [
        "means", "initted", *norm, "conv1x1.weight",
        "irca_attn.to_k.weight", "irca_attn.to_v.weight",
        *(f"iasa_attn.{n}.weight" for n in own),
        *(f"mlp.{n}" for n in norm + ffn),
    ]
    lrsa = [
        *(f"layer.0.{n}" for n in norm),
        *(f"layer.0.fn.{n}.weight" for n in own),
        *(f"layer.1.{n}" for n in norm + ffn),
    ]
    got = {n.removeprefix("blocks.3.") for n in names if n.startswith("blocks.3.")}
    assert got == {f"0.{n}" for n in tab} | {f"1.{n}" for n in lrsa}
    assert "upconv.weight" in CATANet(3).state_dict()


# ------------------------------------------------------------------------------------------- groups
def test_assign_is_the_largest_cosine_and_does_not_see_length():
    tokens, centres = randn(2, 9, 6), randn(4, 6, seed=1)
    got = catanet.assign(tokens, centres)
    for b, i in itertools.product(range(2), range(9)):
        cosine = [F.cosine_similarity(tokens[b, i], c, dim=0).item() for c in centres]
        assert got[b, i] == max(range(4), key=cosine.__getitem__)
    longer = torch.tensor([0.1, 2, 3, 40])[:, None] * centres
    assert torch.equal(got, catanet.assign(7 * tokens, longer))


def test_order_is_a_permutation_and_ties_keep_raster_order():
    groups = grouping(randn(3, 50, 6), randn(4, 6, seed=1), 8)
    assert torch.equal(groups.order.sort(-1).values, torch.arange(50).expand(3, -1))
    for belong, order in zip(groups.belong.tolist(), groups.order.tolist(), strict=True):
        assert order == sorted(range(50), key=lambda i: (belong[i], i))
    same = grouping(torch.ones(1, 50, 6), randn(4, 6), 8)
    assert torch.equal(same.order[0], torch.arange(50))


def test_scatter_after_gather_is_the_identity():
    x = randn(2, 21, 6)
    order = grouping(x, randn(4, 6, seed=1), 8).order[..., None].expand(-1, -1, 6)
    assert torch.equal(torch.empty_like(x).scatter(1, order, x.gather(1, order)), x)


@given(st.integers(1, 70), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_subgroups_are_the_releases_padding_wherever_the_release_runs(n, group_size):
    queries, keys = pieces(n, group_size)
    size = min(n, group_size)
    count = -(-n // size)
    pad = count * size - n
    assert queries.shape == (count, size) and keys.shape == (count, 2 * size)
    assert torch.equal(keys[:, :size], queries)
    assert torch.equal(queries.flatten()[:n], torch.arange(n))
    if n >= pad + size:                                                # else its slice is too short
        row = torch.arange(n)
        assert torch.equal(queries.flatten(), torch.cat([row, row[n - pad:].flip(0)]))
        longer = torch.cat([row, row[n - pad - size:].flip(0)])
        want = [longer[i * size:(i + 2) * size] for i in range(count)]
        assert torch.equal(keys, torch.stack(want))
    # everywhere, also beyond the release
    bounced = np.pad(np.arange(n), (0, (count + 1) * size - n), mode="symmetric")
    assert np.array_equal(keys, np.lib.stride_tricks.sliding_window_view(bounced, 2 * size)[::size])


def test_without_padding_only_the_last_look_ahead_is_mirrored():
    queries, keys = pieces(24, 8)
    assert torch.equal(queries, torch.arange(24).view(3, 8))
    assert torch.equal(keys[:2, 8:], queries[1:])
    assert keys[2, 8:].tolist() == list(range(23, 15, -1))


# ------------------------------------------------------------------------------ attention in groups
def by_loops(layer, tokens, order, group_size, k_global, v_global):
    """IASA + IRCA query by query and head by head, the padding as the release has it: flipped
    slices."""
    num_heads, (batch, n, dim) = layer.num_heads, tokens.shape
    out = torch.zeros(batch, n, dim)
    size = min(n, group_size)
    pad = -(-n // size) * size - n
    for b in range(batch):
        row = tokens[b, order[b]]
        q, k, v = heads(row, *projections(layer), num_heads=num_heads)
        k, v = (torch.cat([t, t[:, n - pad - size:].flip(1)], 1) for t in (k, v))
        for i, h in itertools.product(range(n), range(num_heads)):
            start, scale = i // size * size, q.shape[-1] ** -0.5
            near = slice(start, start + 2 * size)
            own = (k[h, near] @ q[h, i] * scale).softmax(0) @ v[h, near]
            far = (k_global[h] @ q[h, i] * scale).softmax(0) @ v_global[h]
            width = dim // num_heads
            out[b, order[b, i], h * width:(h + 1) * width] = own + far
    return layer.proj(out)


@pytest.mark.parametrize("n, group_size", [(24, 8), (21, 8), (19, 6), (13, 40), (8, 8), (9, 1)])
def test_attention_is_the_loop_over_subgroups(n, group_size):
    tab, tokens = block(group_size=group_size), randn(2, n, 12)
    groups = grouping(tokens, tab.means, group_size)
    k, v = tab.irca_attn(tab.means)
    with torch.no_grad():
        got = tab.iasa_attn(tokens, groups, k, v)
        want = by_loops(tab.iasa_attn, tokens, groups.order, group_size, k, v)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n", [17, 5, 1])
@pytest.mark.parametrize("more", [0, 9])
def test_one_group_equals_unsplit_attention(n, more):
    """gs >= N: every key stands there twice, which softmax does not notice.

    Without centres it is full attention, whatever the order.
    """
    torch.manual_seed(0)
    layer, tokens = IASA(12, 8, 2), randn(2, n, 12)
    groups = grouping(tokens, randn(3, 12, seed=1), n + more)
    q, k, v = heads(tokens, *projections(layer))
    want = layer.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n p -> b n (h p)"))
    zero = torch.zeros(2, 3, 4), torch.zeros(2, 3, 6)
    torch.testing.assert_close(layer(tokens, groups, *zero), want, atol=1e-6, rtol=1e-5)


def test_a_query_sees_its_own_and_the_next_subgroup_and_no_other():
    tab, tokens = block(group_size=4), randn(1, 20, 12)
    groups = grouping(tokens, tab.means, 4)
    queries, keys = (groups.order[:, at] for at in pieces(20, 4))
    tokens.requires_grad_()
    zero = torch.zeros(2, 5, 4), torch.zeros(2, 5, 6)
    for g in range(5):
        out = tab.iasa_attn(tokens, groups, *zero)[0, queries[0, g]]
        seen = torch.autograd.grad(out.sum(), tokens)[0][0].abs().sum(-1).nonzero()[:, 0]
        assert set(seen.tolist()) == set(keys[0, g].tolist())
    # the last one looks at its own mirror image
    assert set(keys[0, 4].tolist()) == set(queries[0, 4].tolist())


@pytest.mark.parametrize("n", [17, 18, 20])
def test_where_the_release_breaks_all_tokens_still_count(n):
    """N just above gs: pad + gs > N. The release's slice is too short there; here the row bounces
    to and fro, and everyone gets its own answer."""
    tab, tokens = block(group_size=16), randn(1, n, 12)
    groups = grouping(tokens, tab.means, 16)
    zero = torch.zeros(2, 5, 4), torch.zeros(2, 5, 6)
    longer = np.pad(groups.order[0].numpy(), (0, 48 - n), mode="symmetric")
    with torch.no_grad():
        q, k, v = heads(tokens[0], *projections(tab.iasa_attn))
        out = torch.zeros(n, 12)
        for at, i in enumerate(groups.order[0].tolist()):
            seen = longer[at // 16 * 16:][:32]
            weights = ((k[:, seen] @ q[:, i, :, None]) / 2).softmax(1).mT
            out[i] = rearrange(weights @ v[:, seen], "h 1 p -> (h p)")
        got, want = tab.iasa_attn(tokens, groups, *zero)[0], tab.iasa_attn.proj(out)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_attention_to_centres_is_added_before_the_projection():
    """Not concatenated, no softmax over both: what the centres give is the same whatever the
    subgroups say."""
    tab, tokens = block(), randn(2, 21, 12)
    groups, keys = grouping(tokens, tab.means, 8), torch.zeros(2, 5, 4)
    values = randn(2, 5, 6, seed=2)
    far = tab.iasa_attn(tokens, groups, keys, values)
    far = far - tab.iasa_attn(tokens, groups, keys, 0 * values)
    want = tab.iasa_attn.proj(values.mean(1).flatten())  # keys of zero: the mean of the values
    torch.testing.assert_close(far, want.expand_as(far), atol=1e-5, rtol=1e-4)


def test_conv_ffn_is_the_equation():
    """fc2(a + GELU(depthwise(a))) with a = GELU(fc1(x)), the 5 x 5 sum written out."""
    torch.manual_seed(0)
    ffn, x = catanet.ConvFFN(6, 10), randn(2, 12, 6)
    with torch.no_grad():
        a = F.gelu(x @ ffn.fc1.weight.T + ffn.fc1.bias)
        conv, grid = ffn.dwconv.depthwise_conv[0], rearrange(a, "b (h w) c -> b h w c", h=3)
        near = conv.bias.expand_as(grid).clone()
        for y, x0, dy, dx in itertools.product(range(3), range(4), range(-2, 3), range(-2, 3)):
            if 0 <= y + dy < 3 and 0 <= x0 + dx < 4:
                near[:, y, x0] += conv.weight[:, 0, dy + 2, dx + 2] * grid[:, y + dy, x0 + dx]
        want = (a + F.gelu(near.flatten(1, 2))) @ ffn.fc2.weight.T + ffn.fc2.bias
        torch.testing.assert_close(ffn(x, (3, 4)), want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("group_size", [8, 30])
def test_the_block_is_its_equations(group_size):
    """Two residuals around the loop: x + conv1x1(proj(own + far)), then + ConvFFN(LN).

    The stored centres enter as long as they are.
    """
    tab, x = block(group_size=group_size).eval(), randn(2, 12, 5, 6)
    tab.means.mul_(torch.linspace(0.3, 2, 5)[:, None])
    with torch.no_grad():
        raster = rearrange(x, "b c h w -> b (h w) c")
        tokens = F.layer_norm(raster, (12,), tab.norm.weight, tab.norm.bias)
        belong = F.cosine_similarity(tokens[:, :, None], tab.means, dim=-1).argmax(-1).tolist()
        order = torch.tensor([sorted(range(30), key=lambda i: (row[i], i)) for row in belong])
        k, v = heads(tab.means, tab.irca_attn.to_k, tab.irca_attn.to_v)
        attended = by_loops(tab.iasa_attn, tokens, order, group_size, k, v)
        y = raster + attended @ tab.conv1x1.weight[:, :, 0, 0].T
        y = y + tab.mlp.fn(F.layer_norm(y, (12,), tab.mlp.norm.weight, tab.mlp.norm.bias), (5, 6))
        want = rearrange(y, "b (h w) c -> b c h w", h=5)
        torch.testing.assert_close(tab(x), want, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------ centres
def test_center_iter_is_the_loop():
    tokens, centres = unit(2, 23, 6), unit(7, 6, seed=1)
    # nobody's; not of unit length: it has to come out as it went in
    centres[3] = -F.normalize(tokens.mean((0, 1)), dim=0) * 0.6
    tokens[(tokens @ centres.T).argmax(-1) == 3] = centres[0]
    got, belong = center_iter(tokens, centres), catanet.nearest(tokens, centres)
    assert (belong == 3).sum() == 0
    for j in range(7):
        mine = tokens[belong == j]
        want = F.normalize(mine.sum(0), dim=0) if len(mine) else centres[j]
        torch.testing.assert_close(got[j], want)
    assert torch.equal(got[3], centres[3])


def test_center_iter_pools_the_batch_and_gives_unit_rows():
    tokens, centres = unit(4, 30, 6), unit(5, 6, seed=1)
    got = center_iter(tokens, centres)
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(center_iter(tokens.flip(0), centres), got)
    torch.testing.assert_close(center_iter(tokens.flatten(0, 1)[None], centres), got)
    assert not torch.allclose(center_iter(tokens[:1], centres), got, atol=1e-3)


def test_every_round_brings_tokens_closer_to_their_centre():
    """Spherical k-means: the sum of cosines never falls.

    Clustered anew, each picture fits better than with shared centres: that is the competitor.
    """
    tokens, centres = unit(1, 200, 6), unit(8, 6, seed=1)
    fit = []
    for _ in range(6):
        fit.append((tokens @ centres.T).amax(-1).mean().item())
        centres = center_iter(tokens, centres)
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(fit)) and fit[-1] > fit[0] + 0.05


@pytest.mark.parametrize("n, pad", [(23, 2), (20, 5), (4, 1), (1, 4), (2, 3)])
def test_first_centres_are_means_of_stretches(n, pad):
    """The end is filled up with reversed tail tokens: M - N mod M of them, so M extra ones when M
    divides N."""
    tokens, m = randn(3, n, 6), 5
    there = list(range(n))
    tail = ((there[::-1] + there) * pad)[:pad]                      # beyond the release: to and fro
    padded = torch.cat([tokens, tokens[:, tail]], 1)
    length = padded.shape[1] // m
    assert padded.shape[1] == m * length
    stretches = [padded[:, i * length:(i + 1) * length].flatten(0, 1) for i in range(m)]
    want = torch.stack([stretch.mean(0) for stretch in stretches])
    torch.testing.assert_close(catanet.first_centres(tokens, m), want)


# --------------------------------------------------------------------------------- training and use
def test_eval_is_deterministic_and_changes_nothing():
    tab, x = block().eval(), randn(2, 12, 5, 6)
    before = {k: v.clone() for k, v in tab.state_dict().items()}
    assert torch.equal(tab(x), tab(x))
    assert all(torch.equal(before[k], v) for k, v in tab.state_dict().items())
    _, groups = tab(x, return_groups=True)
    assert groups.centres is tab.means                      # as they are: the keys see their length


def test_training_copies_first_and_then_follows_slowly():
    tab = block(n_iter=3, ema_decay=0.9).train()
    one, two = (randn(2, 12, 5, 6, seed=s) for s in (1, 2))
    assert not tab.initted
    _, groups = tab(one, return_groups=True)
    tokens = tab.norm(rearrange(one, "b c h w -> b (h w) c"))
    want = catanet.first_centres(tokens, 5)
    for _ in range(3):
        want = center_iter(F.normalize(tokens, dim=-1), F.normalize(want, dim=-1))
    torch.testing.assert_close(groups.centres, want)         # training works with the fresh centres
    torch.testing.assert_close(tab.means, want)
    assert tab.initted and not tab.means.requires_grad

    stored = tab.means.clone()
    _, groups = tab(two, return_groups=True)
    torch.testing.assert_close(tab.means, 0.9 * stored + 0.1 * groups.centres.detach())
    torch.testing.assert_close(groups.centres.norm(dim=-1), torch.ones(5))
    assert (tab.means.norm(dim=-1) < 1).any()                # an average of unit vectors is shorter


def test_the_very_first_call_does_not_look_at_the_stored_centres():
    """Whatever stands in them plays no part, not even what is no number; from the second call on
    they are where iteration starts."""
    x, after = randn(2, 12, 5, 6), []
    for fill in (0.0, 5.0, float("nan")):
        tab = block().train()
        tab.means.fill_(fill)
        after.append((tab(x).detach(), tab.means.clone()))
    for other in after[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, after[0], strict=True))
    assert after[0][1].isfinite().all()
    starts = []
    for seed in (1, 2):
        tab = block(n_iter=1).train()
        tab.means.copy_(unit(5, 12, seed=seed))
        tab.initted.fill_(True)
        starts.append(tab(x, return_groups=True)[1].centres)
        tokens = F.normalize(tab.norm(rows(x)), dim=-1)
        torch.testing.assert_close(starts[-1], center_iter(tokens, unit(5, 12, seed=seed)))
    assert (starts[0] - starts[1]).abs().max() > 0.1


def test_the_default_average_keeps_999_of_1000():
    tab = block().train()
    tab(randn(2, 12, 5, 6))
    before = tab.means.clone()
    _, groups = tab(randn(2, 12, 5, 6, seed=1), return_groups=True)
    moved = tab.means - before
    want = 0.001 * (groups.centres.detach() - before)
    torch.testing.assert_close(moved, want, atol=1e-6, rtol=1e-3)
    assert moved.abs().max() > 1e-5


def test_pictures_of_a_training_batch_see_each_other_through_the_centres():
    """In use they do not: then an image's answer is its own."""
    tab, x = block(), randn(2, 12, 5, 6).requires_grad_()
    for training in (True, False):
        other = torch.autograd.grad(tab.train(training)(x)[0].square().sum(), x)[0][1]
        assert bool(other.abs().sum() > 0) == training


def test_gradient_checkpointing_learns_once_and_gives_the_same_gradients():
    """The backward pass runs the step again: from the same stored centres, which stay put."""
    runs = []
    for checkpointed in (False, True):
        tab, x = block(ema_decay=0.5).train(), randn(2, 12, 5, 6)
        for seed in (1, 2):                                # the first step copies, the second moves
            run = functools.partial(checkpoint, tab, use_reentrant=False) if checkpointed else tab
            (run(x + seed).square().sum()).backward()
        runs.append([tab.means, tab.initted, *(p.grad for p in tab.parameters())])
    for plain, again in zip(*runs, strict=True):
        torch.testing.assert_close(again, plain)


def test_training_and_eval_differ_at_all():
    tab, x = block().train(), randn(2, 12, 5, 6)
    for _ in range(2):
        trained = tab(x)
    # the picture it was just taught: nearly the same
    assert (tab.eval()(x) - trained).abs().max() < 1e-3
    other = randn(2, 12, 5, 6, seed=3)
    # another one: training fits centres to it
    assert (tab(other) - tab.train()(other)).abs().max() > 1e-2


def test_training_and_eval_differ_in_the_centres_alone():
    tab, x = block().train(), randn(2, 12, 5, 6)
    trained, groups = tab(x, return_groups=True)
    tab.means.copy_(groups.centres.detach())
    torch.testing.assert_close(tab.eval()(x), trained)


def test_only_the_last_round_carries_gradient():
    tab, x = block(n_iter=4).train(), randn(1, 12, 5, 6).requires_grad_()
    tokens = tab.norm(rearrange(x, "b c h w -> b (h w) c"))
    centres = tab.centres(tokens)
    got, = torch.autograd.grad(centres.square().sum(0)[0], x, retain_graph=True)
    fixed, start = tokens.detach(), catanet.first_centres(tokens.detach(), 5)
    for _ in range(3):
        start = center_iter(F.normalize(fixed, dim=-1), F.normalize(start, dim=-1))
    last = center_iter(F.normalize(tokens, dim=-1), F.normalize(start, dim=-1))
    want, = torch.autograd.grad(last.square().sum(0)[0], x)
    torch.testing.assert_close(got, want)
    assert got.abs().sum() > 0 and not tab.eval().centres(tokens).requires_grad


def test_centres_are_shared_and_groups_belong_to_one_picture():
    model, x = small().eval(), torch.rand(3, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    out, groups = model(x, return_groups=True)
    alone, own = model(x[1:2], return_groups=True)
    torch.testing.assert_close(out[1:2], alone, atol=1e-5, rtol=1e-4)
    for together, single in zip(groups, own, strict=True):
        assert torch.equal(together.order[1:2], single.order)
        assert together.centres.shape == single.centres.shape


def test_a_mirrored_picture_gets_another_answer():
    """Pieces are cut in raster order, so the net is not equivariant to flips.

    Without aggregation the difference is the convolutions' alone.
    """
    tab, x = block(num_centres=2, group_size=6).eval(), randn(1, 12, 6, 6)
    for conv in tab.modules():
        if isinstance(conv, torch.nn.Conv2d):
            conv.weight.data = (conv.weight.data + conv.weight.data.flip(-1)) / 2
    assert (tab(x.flip(-1)).flip(-1) - tab(x)).abs().max() > 1e-3
    tab.group_size = 36                                                  # one group: nothing is cut
    torch.testing.assert_close(tab(x.flip(-1)).flip(-1), tab(x), atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------- local attention
@given(st.integers(1, 40), st.integers(1, 30), st.integers(3, 12))
@settings(max_examples=60, deadline=None)
def test_dividing_and_reversing_is_the_identity(height, width, patch):
    x = randn(1, 2, height, width)
    torch.testing.assert_close(patch_reverse(patch_divide(x, patch), (height, width)), x)


def released_divisor(side, patch):
    """How the release divides along one side: 2 for each seam, and the last, shifted seam once more
    over its whole width."""
    out, step = torch.ones(side), patch - 2
    for i in range(step, side + step - patch, step):
        top = side - patch if i + patch > side else i
        out[top:i + patch - step] *= 2
    return out


@pytest.mark.parametrize("patch", [6, 8, 16])
def test_overlaps_are_counted_as_in_the_release_but_for_one_row(patch):
    for side in range(patch + 1, 6 * patch):
        count = torch.bincount(catanet.patch_rows(side, patch).flatten(), minlength=side).float()
        wrong = (count != released_divisor(side, patch)).nonzero()[:, 0]
        m, rest = divmod(side - patch - 1, patch - 2)
        if m >= 1 and rest == 0:                               # p + m (p - 2) + 1, such as 15 for 8
            assert len(wrong) == 1 and count[wrong] == 3
            assert released_divisor(side, patch)[wrong] == 4
        else:
            assert len(wrong) == 0


def test_local_attention_is_the_loop_over_patches():
    torch.manual_seed(0)
    layer, x = LRSA(12, 8, 16, 2, 8).eval(), randn(2, 12, 15, 11)
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    with torch.no_grad():
        for top, left in itertools.product((0, 6, 7), (0, 3)):
            tokens = rearrange(x[:, :, top:top + 8, left:left + 8], "b c h w -> b (h w) c")
            n, fn = layer.layer[0].norm(tokens), layer.layer[0].fn
            q, k, v = heads(n, *projections(fn))
            y = ((q @ k.mT) * 4**-0.5).softmax(-1) @ v
            tokens = tokens + fn.proj(rearrange(y, "b h n p -> b n (h p)"))
            there = (slice(None), slice(None), slice(top, top + 8), slice(left, left + 8))
            total[there] += rearrange(tokens, "b (h w) c -> b c h w", h=8)
            count[there] += 1
        mean = rearrange(total / count, "b c h w -> b (h w) c")
        want = rearrange(mean + layer.layer[1](mean, (15, 11)), "b (h w) c -> b c h w", h=15)
        torch.testing.assert_close(layer(x), want, atol=1e-5, rtol=1e-4)


# -------------------------------------------------------------------------------------- the network
@pytest.mark.parametrize("upscale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 19)])
def test_any_size(upscale, size):
    model = small(upscale=upscale).eval()
    out, groups = model(torch.rand(2, 3, *size), return_groups=True)
    assert out.shape == (2, 3, upscale * size[0], upscale * size[1]) and out.isfinite().all()
    assert len(groups) == 2 and all(g.belong.shape == (2, size[0] * size[1]) for g in groups)
    model.train()(torch.rand(2, 3, *size)).mean().backward()


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_the_tail_after_the_long_skip(upscale):
    """Stages of zeros leave x = first_conv(images); the long skip makes it two of them.

    Then convolution, shuffle, LeakyReLU(0.1).
    """
    model, x = small(upscale=upscale).eval(), torch.rand(2, 3, 6, 5)
    for conv in model.mid_convs:
        torch.nn.init.zeros_(conv.weight), torch.nn.init.zeros_(conv.bias)
    y = 2 * model.first_conv(x)
    for conv in (model.upconv1, model.upconv2) if upscale == 4 else (model.upconv,):
        y = conv(y)
        r = 3 if upscale == 3 else 2
        y = rearrange(y, "b (c i j) h w -> b c (h i) (w j)", i=r, j=r)
        y = torch.where(y > 0, y, 0.1 * y)
    base = F.interpolate(x, scale_factor=upscale, mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), model.last_conv(y) + base, atol=1e-6, rtol=1e-5)


def test_a_stage_adds_the_convolution_of_local_after_global():
    """x + conv(LRSA(TAB(x))), stage after stage."""
    model, images, seen = small().eval(), torch.rand(1, 3, 8, 9), {}
    model.upconv.register_forward_hook(lambda module, args, out: seen.update(x=args[0]))
    model(images)
    first = x = model.first_conv(images)
    for i in range(2):
        x = x + model.mid_convs[i](model.blocks[i][1](model.blocks[i][0](x)))
    torch.testing.assert_close(seen["x"], x + first)


def test_training_in_bf16_moves_centres_kept_in_float():
    model = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(2, 3, 9, 11)).float().square().mean().backward()
    for tab, _ in model.blocks:
        assert tab.initted and tab.means.dtype == torch.float32
        length = tab.means.norm(dim=-1)
        torch.testing.assert_close(length, torch.ones(len(length)), atol=1e-2, rtol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    half = small().eval().to(torch.bfloat16)
    assert half(torch.rand(1, 3, 9, 11).bfloat16()).dtype == torch.bfloat16


def test_a_training_step_on_meta_at_official_size():
    with torch.device("meta"):
        out = CATANet(4).train()(torch.rand(2, 3, 41, 67))
        out.mean().backward()
    assert out.shape == (2, 3, 164, 268)


def test_starts_from_bilinear():
    """With a last convolution of zeros the net is bilinear enlargement."""
    model, x = small(upscale=3).eval(), torch.rand(1, 3, 6, 5)
    torch.nn.init.zeros_(model.last_conv.weight), torch.nn.init.zeros_(model.last_conv.bias)
    want = F.interpolate(x, size=(18, 15), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), want, atol=1e-6, rtol=1e-5)


def test_the_groups_of_a_layer_are_those_of_its_block():
    model, seen = small().eval(), {}
    model.blocks[1][0].register_forward_hook(lambda module, args, out: seen.update(x=args[0]))
    _, groups = model(torch.rand(1, 3, 8, 9), return_groups=True)
    tab = model.blocks[1][0]
    want = catanet.assign(tab.norm(rearrange(seen["x"], "b c h w -> b (h w) c")), tab.means)
    assert torch.equal(groups[1].belong, want)


def test_without_aggregation_there_are_no_groups():
    model = small(aggregate=False)
    assert model(torch.rand(1, 3, 8, 8), return_groups=True)[1] == []
    assert not any("means" in name for name in model.state_dict())


@pytest.mark.parametrize("options, message", [
    (dict(upscale=5), "upscale=5: needs an integer from 2 to 4"),
    (dict(num_heads=5), "num_heads=5"),
    (dict(qk_dim=7), "7"),
    (dict(patch_sizes=2), "patch_size=2"),
    (dict(group_sizes=(1, 2, 3)), r"group_sizes=\(1, 2, 3\).*num_layers=2"),
    (dict(patch_sizes=8.0), r"patch_sizes=8.0 \(float\): needs an integer"),
    (dict(num_layers=0), "num_layers=0"),
    (dict(ema_decay=1.5), "ema_decay=1.5"),
    (dict(num_centres=0), "num_centres=0"),
    (dict(group_sizes=0), "group_size=0"),
    (dict(n_iter=0), "n_iter=0"),
    (dict(num_centres=()), r"num_centres=\(\)"),
])
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("make", [
    lambda **o: TAB(**{**dict(dim=12, mlp_dim=16, num_centres=5, group_size=8), **o}),
    lambda **o: LRSA(**{**dict(dim=12, mlp_dim=16, patch_size=8), **o}),
])
def test_blocks_alone_refuse_heads_that_do_not_divide(make):
    for widths in (dict(qk_dim=7, num_heads=2), dict(qk_dim=10, num_heads=5)):
        with pytest.raises(ValueError, match=f"num_heads={widths['num_heads']}"):
            make(**widths)


def test_bad_input():
    with pytest.raises(ValueError, match="images has 4 channels"):
        small()(torch.rand(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"size=\(9, 9\)"):
        patch_reverse(patch_divide(torch.rand(1, 2, 20, 20), 8), (9, 9))
    with pytest.raises(ValueError, match="size=9"):
        patch_reverse(patch_divide(torch.rand(1, 2, 20, 20), 8), 9)


@pytest.mark.parametrize("call, message", [
    (lambda: catanet.assign(torch.rand(1, 5, 4), torch.rand(3, 5)), r"centres has shape \(3, 5\)"),
    (lambda: catanet.first_centres(torch.rand(5, 4), 2), "3 axes"),
    (lambda: catanet.center_iter(torch.rand(1, 5, 4), [1.0]), "centres is a list"),
    (lambda: catanet.sorted_row(0, 4), "n=0"),
    (lambda: catanet.patch_rows(8, 2), "patch=2"),
    (lambda: patch_divide(torch.rand(2, 8, 8), 4), "x has shape"),
    (lambda: catanet.ConvFFN(8, "16"), "mlp_dim='16'"),
    (lambda: catanet.IRCA(8, 6, 4), "num_heads=4"),
    (lambda: catanet.DepthwiseConv(8, 4), "kernel_size=4: needs an odd"),
])
def test_parts_alone_name_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
