"""The nets of pixels around ResTok."""

import pytest
import torch

from vtlib.tokenizers.restok_pixels import PixelDecoder, PixelEncoder, ResBlock

SMALL = dict(channels=8, multipliers=(1, 2), num_res_blocks=1, groups=4, patch_size=2)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_and_names_of_the_release():
    with torch.device("meta"):
        encoder, decoder = PixelEncoder(), PixelDecoder()
        assert encoder(torch.rand(1, 3, 256, 256)).shape == (1, 256, 16, 16)
        assert decoder(torch.rand(1, 256, 16, 16)).shape == (1, 3, 256, 256)
    assert count(encoder) == 23_775_104 and count(decoder) == 30_478_339
    names = {*encoder.state_dict(), *decoder.state_dict()}
    assert {"down.2.block.0.nin_shortcut.weight", "up.1.upsample_conv.weight"} <= names
    assert "up.0.upsample_conv.weight" not in names and "mid.1.conv2.weight" in names


def test_there_and_back_at_any_size():
    encoder, decoder = PixelEncoder(6, **SMALL), PixelDecoder(6, **SMALL)
    maps = encoder(torch.rand(2, 3, 12, 20))
    assert encoder.factor == 4 and maps.shape == (2, 6, 3, 5)
    assert decoder(maps).shape == (2, 3, 12, 20)
    decoder(maps).square().mean().backward()
    for module in (encoder, decoder):
        assert all(p.grad is not None for p in module.parameters())


def test_the_shortcut_reads_what_the_block_made():
    block, x = ResBlock(4, 8, 4), torch.rand(1, 4, 3, 3)
    with torch.no_grad():
        block.conv2.weight.zero_()
    assert not block(x).any()                             # the input is gone, too
    same = ResBlock(4, 4, 4)
    with torch.no_grad():
        same.conv2.weight.zero_()
    assert torch.equal(same(x), x)


def test_bad_input():
    encoder, decoder = PixelEncoder(6, **SMALL), PixelDecoder(6, **SMALL)
    with pytest.raises(ValueError, match="multiple"):
        encoder(torch.rand(1, 3, 12, 18))
    with pytest.raises(ValueError, match="images"):
        encoder(torch.rand(1, 1, 12, 12))
    with pytest.raises(ValueError, match="maps"):
        decoder(torch.rand(1, 5, 3, 3))
    with pytest.raises(ValueError, match="groups=3"):
        PixelEncoder(6, **{**SMALL, "groups": 3})
    with pytest.raises(ValueError, match="num_res_blocks"):
        PixelDecoder(6, **{**SMALL, "num_res_blocks": 0})
