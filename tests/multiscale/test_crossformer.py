"""The paper's facts: groups, masks, bias, sizes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.multiscale import crossformer as cf
from vtlib.nn import pad_to_multiple
from vtlib.teach import flops

SIZES = dict(
    tiny=27_776_794,
    small=30_657_394,
    base=51_971_554,
    large=91_971_184,
    pp_small=23_325_340,
    pp_base=51_994_594,
    pp_large=92_001_904,
    pp_huge=95_962_944,
)


@pytest.mark.parametrize("name", SIZES)
def test_official_parameter_counts(name):
    with torch.device("meta"):
        model = getattr(cf, f"crossformer_{name}")()
    assert sum(p.numel() for p in model.parameters()) == SIZES[name]


@pytest.mark.parametrize("name, giga", [
    ("tiny", 2.858), ("small", 4.910), ("base", 9.165), ("pp_small", 4.389),
])
def test_multiply_adds_are_near_the_officially_counted_ones(name, giga):
    """The repository's own count leaves out the merging convolutions' exact kernels and the bias
    MLP: 4 % is agreement."""
    with torch.device("meta"):
        model = getattr(cf, f"crossformer_{name}")(drop_path=0.0)
        got = flops(model, torch.zeros(1, 3, 224, 224)) / 2e9
    assert got == pytest.approx(giga, rel=0.04)


def test_channel_split():
    assert cf.split_channels(96, 4) == [48, 24, 12, 12]
    assert cf.split_channels(192, 2) == [96, 96]
    with pytest.raises(ValueError, match="embed_dim=90"):
        cf.split_channels(90, 4)


def test_official_names():
    with torch.device("meta"):
        names = set(cf.crossformer_pp_small().state_dict())
    outside = "patch_embed.projs.3.weight patch_embed.norm.bias norm.weight head.bias"
    inside = (
        "0.blocks.1.attn.pos.pos_proj.weight 0.blocks.1.attn.pos.pos3.2.bias "
        "0.downsample.reductions.1.weight 0.downsample.norm.weight 2.blocks.17.mlp.fc2.weight "
        "2.blocks.2.ex_conv.weight 2.blocks.2.ex_ln.bias"
    )
    assert {*outside.split(), *(f"layers.{name}" for name in inside.split())} <= names
    third = [n for n in names if n.startswith("layers.2") and "ex_conv.weight" in n]
    cooled = {int(name.split(".")[3]) for name in third}
    assert cooled == {2, 5, 8, 11, 14}                           # every third block, never the last


def groups_by_hand(height, width, size, interval):
    """Pixel numbers of each group, by loops over regions and residues."""
    step = interval or 1
    tops, lefts = range(0, height, size * step), range(0, width, size * step)
    out = []
    for top, left, i, j in itertools.product(tops, lefts, range(step), range(step)):
        rows = [top + i + y * step for y in range(size)]
        cols = [left + j + x * step for x in range(size)]
        out.append([row * width + col for row in rows for col in cols])
    return out


@pytest.mark.parametrize("height, width, size, interval", [
    (6, 9, 3, None), (12, 8, 2, 2), (6, 6, 2, 3), (8, 8, 2, 4), (9, 18, 3, 3),
])
def test_groups_against_loops(height, width, size, interval):
    x = torch.arange(height * width).reshape(1, height, width, 1)
    groups = cf.group_sda(x, size) if interval is None else cf.group_lda(x, size, interval)
    assert groups[0, :, :, 0].tolist() == groups_by_hand(height, width, size, interval)


@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 4), st.sampled_from([None, 1, 2, 3]))
@settings(max_examples=40, deadline=None)
def test_ungroup_inverts_and_every_token_is_in_one_group(height, width, size, interval):
    x = torch.arange(1.0, 2 * height * width + 1).reshape(2, height, width, 1)
    padded, _ = pad_to_multiple(x, size * (interval or 1))
    if interval is None:
        groups = cf.group_sda(padded, size)
    else:
        groups = cf.group_lda(padded, size, interval)
    assert torch.equal(cf.ungroup(groups, size, *padded.shape[1:3], interval), padded)
    assert torch.equal(groups[0][groups[0] > 0].sort().values, x[0].flatten())


def randomised(block):
    torch.manual_seed(1)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block.eval()


@pytest.mark.parametrize("kind, interval", [("sda", 2), ("lda", 2)])
@pytest.mark.parametrize("grid", [(8, 8), (7, 9), (5, 11)])
def test_block_equals_full_attention_with_a_mask(kind, interval, grid):
    """Brute force: every query against every token of the map, allowed when the two share a group;
    bias by the slots' offset."""
    size, dim, heads, width = 2, 32, 2, 3
    block = randomised(cf.CrossFormerBlock(dim, heads, size, interval, kind, mlp_ratio=1.0))
    x = torch.randn(1, grid[0] * grid[1], dim)
    step = interval if kind == "lda" else 1
    where = {}
    padded = [-(-s // (size * step)) * size * step for s in grid]
    for g, group in enumerate(groups_by_hand(*padded, size, step)):
        for slot, pixel in enumerate(group):
            where[divmod(pixel, padded[1])] = (g, slot)
    table = block.attn.pos.table(size)
    qkv = block.attn.qkv(block.norm1(x))[0].reshape(-1, 3, heads, dim // heads)
    q, k, v = qkv.permute(1, 2, 0, 3)
    logits = q @ k.transpose(-2, -1) * (dim // heads) ** -0.5
    tokens = [(y, z) for y in range(grid[0]) for z in range(grid[1])]
    for i, a in enumerate(tokens):
        for j, b in enumerate(tokens):
            (ga, sa), (gb, sb) = where[a], where[b]
            if ga != gb:
                logits[:, i, j] = float("-inf")
            else:
                dy, dx = sa // size - sb // size, sa % size - sb % size
                logits[:, i, j] += table[(dy + size - 1) * width + dx + size - 1]
    out = (logits.softmax(-1) @ v).permute(1, 0, 2).reshape(1, -1, dim)
    want = x + block.attn.proj(out)
    want = want + block.mlp(block.norm2(want))
    torch.testing.assert_close(block(x, grid), want, atol=1e-5, rtol=1e-4)


def test_padding_content_does_not_matter(monkeypatch):
    block, x = randomised(cf.CrossFormerBlock(32, 2, 3, 2, "lda")), torch.randn(2, 49, 32)
    want = block(x, (7, 7))

    def pad_with_junk(t, multiple):
        padded, pad = pad_to_multiple(t, multiple)
        padded[:, 7:], padded[:, :, 7:] = 100.0, -50.0
        return padded, pad
    monkeypatch.setattr(cf, "pad_to_multiple", pad_with_junk)
    torch.testing.assert_close(block(x, (7, 7)), want, atol=1e-5, rtol=1e-4)


def test_official_sizes_need_no_padding_at_224():
    with torch.device("meta"):
        model = cf.crossformer_tiny()
    plans = []
    for side, stage in zip((56, 28, 14, 7), model.layers, strict=True):
        plans += [(side, *block.plan(side, side)) for block in stage.blocks]
    assert len(plans) == 16
    for side, size, interval in plans:
        assert side % (size * (interval or 1)) == 0
    assert plans[-6:] == [(7, 7, None)] * 6            # 7 x 7: one group, also where LDA's turn is


def test_small_maps_fall_back_to_one_group_per_square():
    block = cf.CrossFormerBlock(32, 2, 7, 4, "lda")
    assert block.plan(7, 7) == (7, None) and block.plan(5, 9) == (5, None)
    assert block.plan(8, 8) == (7, 4)


def reach(kinds, side=6, dim=32):
    blocks = [randomised(cf.CrossFormerBlock(dim, 2, 3, 2, kind)) for kind in kinds]
    x = torch.randn(1, side**2, dim, requires_grad=True)
    y = x
    for block in blocks:
        y = block(y, (side, side))
    y[0, 0].sum().backward()
    return (x.grad[0].abs().sum(-1) > 0).reshape(side, side)


def test_sda_alone_stays_in_its_window_and_alternation_gets_out():
    alone = reach(["sda", "sda", "sda"])
    assert alone[:3, :3].all() and alone.sum() == 9
    assert reach(["sda", "lda"]).all()


def test_reach_without_training():
    """Fractions of connected pairs by counting: 56 x 56, G = 7, I = 8."""
    def adjacency(side, size, interval):
        group = torch.empty(side**2, dtype=torch.long)
        for g, members in enumerate(groups_by_hand(side, side, size, interval)):
            group[members] = g
        return (group[:, None] == group[None]).float()
    sda, lda = adjacency(56, 7, None), adjacency(56, 7, 8)
    two = (sda @ lda > 0).float()
    assert round(sda.mean().item(), 3) == 0.016 and round(two.mean().item(), 3) == 0.766
    assert (two @ sda > 0).all()
    sda, lda = adjacency(8, 2, None), adjacency(8, 2, 4)         # G < I, G divides I: never mixes
    hops = torch.eye(64)
    for _ in range(5):
        hops = ((hops @ sda @ lda) > 0).float()
    assert hops.mean().item() == 0.25


def test_bias_is_a_table_lookup_and_changes_size():
    bias = randomised(cf.DynamicPositionBias(4, 3))
    assert bias.table(3).shape == (25, 3)
    assert bias(3).shape == (3, 9, 9) and bias(5).shape == (3, 25, 25)
    inner = bias.table(5).reshape(9, 9, 3)[2:7, 2:7]                     # same offsets, same bias
    torch.testing.assert_close(inner, bias.table(3).reshape(5, 5, 3))
    yx = [(s // 3, s % 3) for s in range(9)]
    for i in (0, 4, 7):
        for j in (1, 5, 8):
            offset = torch.tensor([float(a - b) for a, b in zip(yx[i], yx[j], strict=True)])
            want = bias.pos3(bias.pos2(bias.pos1(bias.pos_proj(offset))))
            torch.testing.assert_close(bias(3)[:, i, j], want)


def test_cost_is_linear_in_tokens():
    def cost(side):
        with torch.device("meta"):
            block, x = cf.CrossFormerBlock(32, 2, 4, 2, "lda"), torch.zeros(1, side * side, 32)
        return flops(block, x, (side, side))
    # 4 times the tokens; the bias MLP costs next to nothing
    assert cost(32) / cost(16) == pytest.approx(4, rel=0.01)


def test_stages_for_dense_tasks():
    sizes = dict(depths=(1, 1), num_heads=(1, 2), group_size=(3, 3), interval=(2, 1))
    model = cf.CrossFormer((4, 8), num_classes=5, embed_dim=32, merge_size=((2, 4),), **sizes)
    model.eval()
    maps = model.stages(torch.rand(1, 3, 32, 48))
    assert [tuple(m.shape) for m in maps] == [(1, 32, 8, 12), (1, 64, 4, 6)]


@pytest.mark.parametrize("call, words", [
    (lambda: cf.CrossFormer(group_size=(7, 7)), "group_size (2)"),
    (lambda: cf.CrossFormer(group_size=((7, 7), 7, 7, 7)), "group_size[0]=(7, 7)"),
    (lambda: cf.CrossFormer(patch_size=()), "patch_size=()"),
    (lambda: cf.GroupAttention(8, 2), "dim=8"),
    (lambda: cf.CrossFormerBlock(32, 2, kind="global"), "kind='global'"),
    (lambda: cf.CrossScaleEmbed((4, 7)), "patch_size=(4, 7)"),
    (lambda: cf.CrossScaleEmbed(embed_dim=64)(torch.rand(1, 3, 30, 32)), "(30, 32)"),
    (lambda: cf.CrossScaleMerge(8)(torch.rand(1, 15, 8), (3, 5)), "(3, 5)"),
    (lambda: cf.crossformer_tiny()(torch.rand(1, 3, 48, 48)), "multiple of 32"),
    (lambda: cf.group_lda(torch.rand(1, 8, 9, 1), 2, 2), "multiple of 4"),
    (lambda: cf.group_lda(torch.rand(1, 8, 8, 1), 2, 0), "interval=0"),
    (lambda: cf.group_sda(torch.rand(8, 8, 1), 2), "(8, 8, 1)"),
    (lambda: cf.ungroup(torch.rand(1, 3, 4, 2), 2, 4, 4, 1), "(1, 3, 4, 2)"),
    (lambda: cf.split_channels(8.0, 2), "embed_dim=8.0"),
    (lambda: cf.CrossFormerBlock(32, 2)(torch.rand(1, 15, 32), (4, 4)), "15 tokens"),
    (lambda: cf.CrossFormer(merge_size=2), "merge_size=2: needs a sequence"),
    (lambda: cf.CrossFormer(mlp_ratio=(4.0, 4.0)), "mlp_ratio=(4.0, 4.0)"),
])
def test_bad_input(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
