"""VQGAN's nets: official sizes, what each part does, bad input."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.nn import AttnBlock, CNNDecoder, CNNEncoder, Downsample, ResBlock, Upsample

SIZES = dict(channels=8, multipliers=(1, 2), num_res_blocks=1, groups=4)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_size_of_gigatoks_encoder():
    with torch.device("meta"):
        net = CNNEncoder()
    assert count(net) == 26_143_232
    assert net(torch.empty(2, 3, 64, 32, device="meta")).shape == (2, 256, 4, 2)


def test_names_are_llamagens():
    with torch.device("meta"):
        names = dict(CNNEncoder(attention=True).named_parameters())
        back = dict(CNNDecoder(attention=True).named_parameters())
    for name in ("conv_in", "conv_blocks.0.res.1.conv2", "conv_blocks.0.downsample.conv",
                 "conv_blocks.2.res.0.nin_shortcut", "conv_blocks.4.attn.1.proj_out", "mid.0.norm1",
                 "mid.1.q", "mid.2.conv1", "norm_out", "conv_out"):
        assert f"{name}.weight" in names
    for name in ("conv_blocks.0.attn.2.q", "conv_blocks.0.upsample.conv",
                 "conv_blocks.4.res.2.conv1"):
        assert f"{name}.weight" in back
    assert "conv_blocks.4.upsample.conv.weight" not in back


def test_residual_block_by_hand():
    torch.manual_seed(0)
    block, x = ResBlock(4, 8, 2), torch.randn(2, 4, 5, 6)
    y = F.group_norm(x, 2, block.norm1.weight, block.norm1.bias, 1e-6)
    y = F.conv2d(y * y.sigmoid(), block.conv1.weight, block.conv1.bias, padding=1)
    y = F.group_norm(y, 2, block.norm2.weight, block.norm2.bias, 1e-6)
    y = F.conv2d(y * y.sigmoid(), block.conv2.weight, block.conv2.bias, padding=1)
    want = y + F.conv2d(x, block.nin_shortcut.weight, block.nin_shortcut.bias)
    torch.testing.assert_close(block(x), want)
    assert not hasattr(ResBlock(4, 4, 2), "nin_shortcut")


def test_attention_by_hand():
    torch.manual_seed(0)
    block, x = AttnBlock(4, 2), torch.randn(1, 4, 2, 3)
    y = block.norm(x)
    q, k, v = (conv(y).flatten(2)[0] for conv in (block.q, block.k, block.v))     # c hw
    weights = (q.T @ k / 2).softmax(dim=-1)
    mixed = (v @ weights.T).reshape(1, 4, 2, 3)
    torch.testing.assert_close(block(x), x + block.proj_out(mixed))


def test_halving_pads_right_and_bottom_only():
    net = Downsample(1)
    with torch.no_grad():
        net.conv.weight.zero_()
        net.conv.weight[0, 0, 0, 0] = 1                # the pixel that the window begins at
        net.conv.bias.zero_()
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert net(x).flatten().tolist() == [0, 2, 8, 10]


def test_depth_to_space_has_block_offsets_outside():
    net = Upsample(2, "depth_to_space")
    with torch.no_grad():
        net.conv.weight.zero_()
        net.conv.bias.copy_(torch.arange(8.0))         # channel (row, col, c) = 4 row + 2 col + c
    out = net(torch.zeros(1, 2, 1, 1))
    assert out.shape == (1, 2, 2, 2)
    assert out[0, 0].flatten().tolist() == [0, 2, 4, 6]
    assert out[0, 1].flatten().tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("upsampling", ["nearest", "depth_to_space"])
@pytest.mark.parametrize("attention", [False, True])
def test_there_and_back(patch_size, upsampling, attention):
    sizes = dict(**SIZES, patch_size=patch_size, attention=attention)
    encoder, decoder = CNNEncoder(3, 5, **sizes), CNNDecoder(5, 3, **sizes, upsampling=upsampling)
    assert encoder.factor == decoder.factor == 2 * patch_size
    x = torch.rand(2, 3, 8, 12)
    code = encoder(x)
    assert code.shape == (2, 5, 8 // encoder.factor, 12 // encoder.factor)
    out = decoder(code)
    assert out.shape == x.shape
    out.square().mean().backward()
    grads = [p.grad for net in (encoder, decoder) for p in net.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)


def test_no_blocks_in_the_middle():
    assert len(CNNEncoder(**SIZES, num_mid_blocks=0).mid) == 0
    with_attention = CNNEncoder(**SIZES, num_mid_blocks=1, attention=True).mid
    assert [type(m) for m in with_attention] == [ResBlock, AttnBlock]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(multipliers=()), "one level at least"),
        (dict(groups=3), "multiple of groups=3"),
        (dict(channels=0), "channels"),
        (dict(num_res_blocks=0), "num_res_blocks"),
        (dict(num_mid_blocks=-1), "num_mid_blocks"),
        (dict(patch_size=0), "patch_size"),
        (dict(attention=2), "attention"),
    ],
)
def test_bad_sizes(change, said):
    for net in (CNNEncoder, CNNDecoder):
        with pytest.raises(ValueError, match=said):
            net(**{**SIZES, **change})


def test_bad_input():
    encoder, decoder = CNNEncoder(**SIZES), CNNDecoder(4, **SIZES)
    with pytest.raises(ValueError, match="upsampling='bilinear'"):
        CNNDecoder(upsampling="bilinear")
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        encoder(torch.rand(1, 4, 8, 8))
    with pytest.raises(ValueError, match="multiple"):
        encoder(torch.rand(1, 3, 7, 8))
    with pytest.raises(ValueError, match="not empty"):
        decoder(torch.rand(0, 4, 8, 8))
    with pytest.raises(ValueError, match="float64"):
        decoder(torch.rand(1, 4, 8, 8).double())
