"""The Swin backbone against transformers' one with the same weights, official sizes and names, and
windows against plain loops."""

import pytest
import torch
from einops import rearrange

from tests.wrong import raw_errors
from vtlib.nn import attend, load_weights
from vtlib.segmentation.swin import (
    PatchMerging,
    Swin,
    SwinBlock,
    WindowAttention,
    convert_official,
    shift_mask,
)

SIZES = dict(embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4, mlp_ratio=2.0)
SIZES |= dict(outputs=(0, 1))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(**options):
    """With weights large enough for windows and biases to matter."""
    torch.manual_seed(0)
    net = Swin(**SIZES | options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return net


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("sizes, count", [
    ((96, (2, 2, 6, 2), (3, 6, 12, 24)), 28_288_354),
    ((96, (2, 2, 18, 2), (3, 6, 12, 24)), 49_606_258),
    ((128, (2, 2, 18, 2), (4, 8, 16, 32)), 87_768_224),
])
def test_official_sizes(sizes, count):
    """Swin-T, -S, -B as published: with a classifier of 1000 and one norm, at the end."""
    with torch.device("meta"):
        net = Swin(*sizes, outputs=(3,))
    assert parameters(net) + 1000 * (net.dims[3] + 1) == count
    if count == 28_288_354:
        assert net.dims == Swin().dims


def test_shapes_at_512():
    with torch.device("meta"):
        maps = Swin(128, (1, 1, 1, 1), (4, 8, 16, 32))(torch.rand(1, 3, 512, 512))
    want = [(1, 128 * 2**s, 128 // 2**s, 128 // 2**s) for s in range(4)]
    assert [tuple(x.shape) for x in maps] == want


# ------------------------------------------------------------------ transformers' own weights
RENAMED = [
    ("swin.", ""),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.norm", "patch_embed.norm"),
    ("encoder.", ""),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.relative_position_bias.", "attn."),
    ("attention.o_proj", "attn.proj"),
    ("attention.", "attn."),
    ("hidden_states_norms.stage1", "norm0"),
    ("hidden_states_norms.stage2", "norm1"),
]


def from_transformers(state):
    """transformers' weights under the official names."""
    out = {}
    for name, tensor in state.items():
        for old, new in RENAMED:
            name = name.replace(old, new)
        out[name] = tensor
    for name in [name for name in out if ".q_proj." in name]:
        three = [out.pop(name.replace("q_proj", f"{kind}_proj")) for kind in "qkv"]
        out[name.replace("q_proj", "qkv")] = torch.cat(three)
    unused = ("layernorm.weight", "layernorm.bias")
    return convert_official({name: t for name, t in out.items() if name not in unused})


@pytest.mark.parametrize("size", [(64, 80), (44, 76)])
def test_the_same_numbers_as_transformers(size):
    """The second size is padded for windows and for merging."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.SwinConfig(
        image_size=size, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4,
        mlp_ratio=2.0, out_features=["stage1", "stage2"],
    )
    theirs = transformers.SwinBackbone(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    ours = make()
    load_weights(ours, from_transformers(theirs.state_dict()))
    x = randn(2, 3, *size)
    with torch.no_grad():
        want, got = theirs(x).feature_maps, ours(x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


# ------------------------------------------------------------------------------------------ windows
def test_the_bias_is_that_of_the_offset():
    torch.manual_seed(0)
    layer, x = WindowAttention(8, 2, 3), randn(1, 1, 9, 8)
    with torch.no_grad():
        layer.relative_position_bias_table.copy_(randn(25, 2))
    bias = torch.zeros(2, 9, 9)
    for i in range(9):
        for j in range(9):
            dy, dx = i // 3 - j // 3, i % 3 - j % 3
            bias[:, i, j] = layer.relative_position_bias_table[(dy + 2) * 5 + dx + 2]
    qkv = rearrange(layer.qkv(x[0]), "b n (three h p) -> three b h n p", three=3, h=2)
    want = layer.proj(rearrange(attend(*qkv, bias[None]), "b h n p -> b n (h p)"))
    torch.testing.assert_close(layer(x)[0], want)


def test_shifted_windows_keep_strangers_apart():
    """By a loop: tokens of one window that were neighbours before the roll."""
    height, width, size, shift = 6, 9, 3, (1, 2)
    mask, place = shift_mask((height, width), size, shift), []
    for top in range(0, height, size):
        for left in range(0, width, size):
            place.append([(top + i, left + j) for i in range(size) for j in range(size)])
    for w, window in enumerate(place):
        for i, a in enumerate(window):
            for j, b in enumerate(window):
                before = [((p[0] + 1) % height, (p[1] + 2) % width) for p in (a, b)]
                near = all(abs(before[0][k] - before[1][k]) < size for k in (0, 1))
                assert bool(mask[w, i, j]) == near
    assert shift_mask((3, 3), 3, (0, 0)).all()


def touched(block, side, at):
    """Where the output changes when one token does."""
    x = randn(1, side, side, 8)
    y = x.clone()
    y[0, at[0], at[1]] += randn(8, seed=1)
    return (block(x) != block(y)).any(dim=-1)[0]


def test_what_a_token_reaches():
    torch.manual_seed(0)
    plain, shifted = SwinBlock(8, 2, 4), SwinBlock(8, 2, 4, shift=2)
    want = torch.zeros(8, 8, dtype=torch.bool)
    want[:4, 4:] = True
    assert torch.equal(touched(plain, 8, (1, 5)), want)
    want = torch.zeros(8, 8, dtype=torch.bool)
    want[2:6, 2:6] = True
    assert torch.equal(touched(shifted, 8, (3, 3)), want)
    want = torch.zeros(8, 8, dtype=torch.bool)
    want[:2, :2] = True                            # not the far corners that share its window
    assert torch.equal(touched(shifted, 8, (0, 1)), want)
    assert touched(shifted, 4, (0, 0)).all()       # one window: nothing is shifted


def test_merging_takes_columns_of_squares():
    layer = PatchMerging(2)
    x = randn(1, 3, 4, 2)
    square = torch.cat([x[0, 0, 0], x[0, 1, 0], x[0, 0, 1], x[0, 1, 1]])
    torch.testing.assert_close(layer(x)[0, 0, 0], layer.reduction(layer.norm(square)))
    last = torch.cat([x[0, 2, 2], torch.zeros(2), x[0, 2, 3], torch.zeros(2)])
    torch.testing.assert_close(layer(x)[0, 1, 1], layer.reduction(layer.norm(last)))


def test_stochastic_depth_grows():
    blocks = [b for stage in Swin(8, (2, 3), (1, 1), drop_path=0.4, outputs=()).layers
              for b in stage.blocks]
    assert [round(b.drop_path.rate, 6) for b in blocks] == [0, 0.1, 0.2, 0.3, 0.4]
    assert [b.shift for b in blocks] == [0, 3, 0, 3, 0]


# -------------------------------------------------------------------------------- names, bad input
def test_official_checkpoints_load():
    net = make()
    state = {f"backbone.{name}": tensor for name, tensor in net.state_dict().items()}
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    state["backbone.layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    state["backbone.head.weight"] = torch.zeros(10, 16)
    other = Swin(**SIZES).eval()
    load_weights(other, convert_official({"state_dict": state}))
    x = randn(1, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(net(x), other(x), strict=True))
    classifier = {"layers.1.blocks.0.norm1.weight": torch.ones(16), "norm.weight": torch.ones(16)}
    assert set(convert_official(classifier)) == {"layers.1.blocks.0.norm1.weight", "norm1.weight"}


def test_wrong_arguments():
    net, block = make(), SwinBlock(8, 2, 4)
    with pytest.raises(ValueError, match="outputs"):
        Swin(**SIZES | dict(outputs=(0, 2)))
    with pytest.raises(ValueError, match="shift"):
        SwinBlock(8, 2, 4, shift=4)
    with pytest.raises(ValueError, match="num_heads"):
        Swin(**SIZES | dict(num_heads=(1,)))
    with pytest.raises(ValueError, match="multiple of 4"):
        net(torch.rand(1, 3, 30, 32))
    assert not raw_errors(Swin, dict(SIZES, drop_path=0.1, patch_size=4, in_chans=3))
    assert not raw_errors(block, dict(x=torch.rand(1, 8, 8, 8)), part=True)
    assert not raw_errors(block.attn, dict(x=torch.rand(1, 2, 16, 8)), part=True)
    assert not raw_errors(PatchMerging(4), dict(x=torch.rand(1, 3, 3, 4)), part=True)
    assert not raw_errors(net, dict(images=torch.rand(1, 3, 32, 32)))
    assert not raw_errors(shift_mask, dict(grid=(8, 8), window_size=4, shift=(2, 2)))
    assert not raw_errors(convert_official, dict(state=net.state_dict()))
