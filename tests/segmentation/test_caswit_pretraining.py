"""CASWiT's masked pre-training: counts, the hidden centre, no leak, loss of hidden pixels only."""

import pytest
import torch

from tests.wrong import raw_errors
from vtlib.segmentation import CASWiT, MaskedPretraining
from vtlib.segmentation.caswit_context import cut
from vtlib.segmentation.caswit_pretraining import PixelDecoder, mask_units, masked_l1

SIZES = dict(embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 2), window_size=4, mlp_ratio=2.0)
SIZES |= dict(drop_path=0.0, fuse_at=(0, 1, 2), channels=8)


def make(**options):
    torch.manual_seed(0)
    model = MaskedPretraining(CASWiT(2, **SIZES), mask_unit=16, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pair():
    return cut(torch.rand(2, 3, 128, 128, generator=seeded()), (32, 32), (64, 64))


# --------------------------------------------------------------------------------------- the masks
def test_the_count_of_the_card():
    hidden = mask_units(3, (16, 16), 0.75, seeded())
    assert hidden.shape == (3, 16, 16) and hidden.sum((1, 2)).tolist() == [192] * 3
    assert mask_units(1, (3, 3), 0.75, seeded()).sum() == 7      # the ceiling of 6.75
    assert not torch.equal(hidden[0], hidden[1])
    assert mask_units(2, (2, 2), 0.0, seeded()).sum() == 0
    assert mask_units(2, (2, 2), 1.0, seeded()).all()


def test_every_unit_is_hidden_as_often():
    share = mask_units(4000, (2, 3), 0.5, seeded()).float().mean(0)
    assert (share - 0.5).abs().max() < 0.05


def test_the_generator_decides(pair):
    model = make()
    a, b, c = (model.draw(pair[0], seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.shape == (2, 4, 4)


def test_the_hidden_part_of_the_context_is_the_crop():
    with torch.device("meta"):
        net = CASWiT(2, **SIZES)
    images = torch.rand(1, 3, 512, 512)
    hidden = MaskedPretraining(net).hidden_context(images, images)
    want = torch.zeros(128, 128, dtype=torch.bool)
    want[32:96, 32:96] = True                                    # 256 x 256 pixels of 512 x 512
    assert torch.equal(hidden, want)
    # patches that show any of it: 40 pixels of the crop are 20 of the context, from 22 to 42
    hidden = MaskedPretraining(net).hidden_context(images[..., :40, :40], images[..., :64, :64])
    assert hidden.sum() == 36 and hidden[5:11, 5:11].all()


# --------------------------------------------------------------------------------------- no leak
def test_hidden_pixels_are_seen_by_nobody(pair):
    """Change all that is hidden, in the crop and in its copy: the reconstruction stays."""
    model = make(ratio=1.0)
    crop, context = pair
    hidden = model.draw(crop, seeded())
    other, elsewhere = torch.rand_like(crop), context.clone()
    elsewhere[..., 16:48, 16:48] = torch.rand(2, 3, 32, 32)
    want = model(crop, context, hidden).images
    assert torch.equal(model(other, elsewhere, hidden).images, want)
    elsewhere[..., 15, 15] += 1
    assert not torch.equal(model(crop, elsewhere, hidden).images, want)


def test_without_the_centre_hidden_the_answer_is_there(pair):
    model = make(ratio=1.0, mask_centre=False)
    crop, context = pair
    hidden, elsewhere = model.draw(crop, seeded()), context.clone()
    elsewhere[..., 16:48, 16:48] = 0.0
    want = model(crop, context, hidden).images
    assert not torch.equal(model(crop, elsewhere, hidden).images, want)


def test_visible_units_are_read(pair):
    model = make(ratio=0.5)
    crop, context = pair
    hidden = model.draw(crop, seeded())
    pixels = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    seen = torch.where(pixels, crop, torch.zeros(()))
    want = model(crop, context, hidden).images
    assert not torch.equal(model(seen, context, hidden).images, want)
    filled = torch.where(pixels, torch.zeros(()), crop)
    assert torch.equal(model(filled, context, hidden).images, want)


# --------------------------------------------------------------------------------------- the loss
def test_the_loss_by_hand():
    images, hidden = torch.zeros(1, 3, 4, 4), torch.tensor([[[True, False], [False, False]]])
    rebuilt = torch.ones(1, 3, 4, 4)
    rebuilt[..., :2, :2] = 0.25
    torch.testing.assert_close(masked_l1(images, rebuilt, hidden), torch.tensor(0.25))
    assert masked_l1(images, images, hidden) == 0
    assert masked_l1(images, rebuilt, torch.zeros_like(hidden)) == 0


def test_no_gradient_of_visible_pixels(pair):
    model = make()
    crop, context = pair
    hidden = model.draw(crop, seeded())
    out = model(crop, context, hidden)
    out.images.retain_grad()
    out.loss.backward()
    pixels = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(out.images.grad != 0, pixels)
    used = [name for name, p in model.named_parameters() if p.grad is None]
    apart = ("net.decoder", "net.aux_head", "net.hr.norm0", "net.hr.norm1", "net.lr.norm")
    assert all(name.startswith(apart) for name in used)
    assert model.crop_token.grad.any() and model.context_token.grad.any()


def test_targets_are_the_crops_own_pixels(pair):
    """The decoder of one layer: 3 * stride^2 numbers for each place, shuffled to pixels."""
    model = make()
    assert model.stride == 16 and model.pixels.decoder[0].weight.shape == (3 * 16**2, 32, 1, 1)
    crop, context = pair
    hidden = model.draw(crop, seeded())
    out = model(crop, context, hidden)
    assert out.images.shape == crop.shape
    assert out.loss == masked_l1(crop, out.images, hidden)
    decoder = PixelDecoder(4, 2)
    x = torch.rand(1, 4, 3, 3)
    values = decoder.decoder[0](x)[0, :, 1, 2]
    torch.testing.assert_close(decoder(x)[0, 1, 2:4, 4:6].flatten(), values[4:8])


def test_it_learns_and_leaves_a_model_to_be_tuned(pair):
    model = make().train()
    crop, context = pair
    hidden = model.draw(crop, seeded())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        out = model(crop, context, hidden)
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert model.net(crop, context).logits.shape == (2, 2, 64, 64)


# --------------------------------------------------------------------------------------- bad input
def test_wrong_arguments(pair):
    model = make()
    crop, context = pair
    hidden = model.draw(crop, seeded())
    fits = dict(crop=crop, context=context, hidden=hidden)
    assert not raw_errors(model, fits)
    assert not raw_errors(model.hidden_context, dict(crop=crop, context=context))
    assert not raw_errors(model.draw, dict(crop=crop, generator=seeded()))
    assert not raw_errors(masked_l1, dict(images=crop, rebuilt=crop, hidden=hidden))
    assert not raw_errors(mask_units, dict(
        batch=2, grid=(2, 2), ratio=0.5, generator=torch.Generator()
    ))
    assert not raw_errors(PixelDecoder, dict(in_dim=4, stride=2, out_chans=3))
    with pytest.raises(ValueError, match="mask_unit"):
        MaskedPretraining(model.net, mask_unit=6)
    with pytest.raises(ValueError, match="net is"):
        MaskedPretraining(torch.nn.Identity())
    with pytest.raises(ValueError, match="crop size"):
        model(crop[..., :40], context, hidden)
    with pytest.raises(ValueError, match="cuts through patches"):
        model(crop, context, torch.ones(2, 32, 32, dtype=torch.bool))
