"""One backbone, four decoders: sizes, gradients, the pictures they are trained on, bad input."""

import pytest
import torch

from tests.wrong import raw_errors
from vtlib.segmentation import Segmenter, effective_receptive_field
from vtlib.segmentation.segmenter import DECODERS, SIZE, make_decoder, scenes, world

WIDTHS = (4, 6, 8, 10)


def small(decoder, **options):
    torch.manual_seed(0)
    return Segmenter(decoder, 3, 16, WIDTHS, **options)


def options(decoder):
    return dict(ratios=(1, 2, 4), num_heads=2) if decoder == "vw" else {}


@pytest.mark.parametrize("decoder", DECODERS)
def test_scores_and_gradients(decoder):
    net = small(decoder, **options(decoder))
    images = torch.rand(2, 3, 64, 96)
    maps = net.features(images)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (4, 32, 48), (6, 16, 24), (8, 8, 12), (10, 4, 6)
    ]
    out = net(images)
    assert out.shape == (2, 3, 64, 96)
    if decoder == "vw":                               # its attention begins at zero
        for attention in net.decoder.attn:
            torch.nn.init.ones_(attention.conv_out.bn.weight)
        out = net(images)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
def test_weights_go_round(decoder):
    net = small(decoder, **options(decoder)).eval()
    again = small(decoder, **options(decoder)).eval()
    torch.nn.init.normal_(again.stages[0][0].weight)
    again.load_state_dict(net.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(images), again(images))


def test_how_far_each_decoder_sees():
    """At random weights: the MLP a few pixels, the dilated one and the pyramid more; what is seen
    through the picture's mean counts."""
    maps = small("mlp").eval().features(torch.rand(1, 3, 64, 64))
    maps = [m.detach() for m in maps]
    seen = {}
    for name in DECODERS:
        decoder = small(name, **options(name)).decoder.eval()
        field = effective_receptive_field(decoder, maps, (16, 16))[1]
        seen[name] = int((field > 0).sum())
    assert seen["mlp"] <= 4 < seen["fpn"] < seen["aspp"] == seen["vw"] == 256


def test_the_pictures():
    train, test = world("train"), world("test")
    assert train.classes == test.classes and len(train.classes) == 36
    assert set(train.photos).isdisjoint(test.photos)
    counts = train.level_ids("category").bincount()
    assert counts.tolist() == [4] * 9
    images, labels = scenes(test, 3, 5)
    assert images.shape == (3, 3, SIZE, SIZE) and labels.shape == (3, SIZE, SIZE)
    assert labels.dtype == torch.int64 and 0 < labels.max() < 10 and labels.min() == 0
    assert torch.equal(images, scenes(test, 3, 5)[0])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="decoder"):
        Segmenter("unet")
    with pytest.raises(ValueError, match="widths"):
        Segmenter("mlp", widths=(1, 2, 3))
    with pytest.raises(ValueError, match="images"):
        small("mlp")(torch.rand(2, 4, 64, 64))
    given = dict(widths=WIDTHS, num_classes=3, channels=8)
    assert not raw_errors(make_decoder, dict(given, name="mlp"))
    assert not raw_errors(Segmenter, dict(given, decoder="aspp"))
