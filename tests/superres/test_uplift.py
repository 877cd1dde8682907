"""UPLiFT against plain loops, the paper's facts, official sizes, and the training loss term by
term."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.superres import uplift
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.uplift import OFFSETS, LocalAttender, UPLiFT, loss, loss_terms, pool, shifted


def small(**kwargs):
    """A model of a few thousand weights with norms that do something; patch 8, 6 channels."""
    torch.manual_seed(0)
    sizes = dict(in_channels=6, patch_size=8, encoder=(4, 6, 8), decoder=(10, 12))
    model = UPLiFT(**{**sizes, **kwargs})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def inputs(batch=2, grid=(3, 4), channels=6, patch=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, 3, grid[0] * patch, grid[1] * patch, generator=generator)
    return images, torch.randn(batch, channels, *grid, generator=generator)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def by_loops(attn, value, offsets):
    """The equation, pixel by pixel."""
    (batch, n, height, width), (channels, h, w) = attn.shape, value.shape[1:]
    out = torch.zeros(batch, channels, height, width)
    factor = height // h
    for b, y, x, k in itertools.product(range(batch), range(height), range(width), range(n)):
        row, col = y // factor + offsets[k][0], x // factor + offsets[k][1]
        row, col = min(max(row, 0), h - 1), min(max(col, 0), w - 1)
        out[b, :, y, x] += attn[b, k, y, x] * value[b, :, row, col]
    return out


# ------------------------------------------------------------------------------- the Local Attender
def test_offset_sets_are_the_official_ones():
    assert {n: len(set(o)) for n, o in OFFSETS.items()} == {5: 5, 9: 9, 13: 13, 17: 17, 25: 25}
    assert all(list(o) == sorted(o) for o in OFFSETS.values())                   # row-major
    assert OFFSETS[5] == ((-1, 0), (0, -1), (0, 0), (0, 1), (1, 0))
    far = {(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2)} - {(0, 0)}
    assert set(OFFSETS[17]) - set(OFFSETS[9]) == far
    assert set(OFFSETS[13]) == {o for o in OFFSETS[25] if abs(o[0]) + abs(o[1]) <= 2}


@pytest.mark.parametrize("n", OFFSETS)
@pytest.mark.parametrize("low_mem", [False, True])
def test_pool_is_the_equation(n, low_mem, monkeypatch):
    monkeypatch.setattr(uplift, "BAND", 2 * 5 * 3 * n)                   # three rows, two at a time
    torch.manual_seed(n)
    attn, value = torch.randn(2, n, 6, 10).softmax(1), torch.randn(2, 3, 3, 5)
    got, want = pool(attn, value, OFFSETS[n], low_mem), by_loops(attn, value, OFFSETS[n])
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    n=st.sampled_from(sorted(OFFSETS)), h=st.integers(1, 4), w=st.integers(1, 4),
    factor=st.integers(1, 3), channels=st.integers(1, 24), seed=st.integers(0, 10**6),
)
def test_attender_weights_sum_to_one_and_outputs_stay_among_neighbours(
    n, h, w, factor, channels, seed
):
    generator = torch.Generator().manual_seed(seed)
    attender = LocalAttender(channels, n)
    guide = torch.randn(2, channels, factor * h, factor * w, generator=generator) * 3
    value = torch.randn(2, 3, h, w, generator=generator)
    with torch.no_grad():
        out, attn = attender(guide, value, return_attn=True)
    torch.testing.assert_close(attn.sum(1), torch.ones(2, factor * h, factor * w))
    near = shifted(value, attender.offsets)
    bounds = near.amin(2), near.amax(2)
    low, high = (F.interpolate(t, scale_factor=factor, mode="nearest") for t in bounds)
    assert (out >= low - 1e-5).all() and (out <= high + 1e-5).all()


def test_one_hot_at_the_centre_is_nearest_and_equal_weights_are_a_box_filter():
    value = torch.randn(2, 5, 4, 3)
    centre = torch.zeros(2, 17, 8, 6)
    centre[:, OFFSETS[17].index((0, 0))] = 1
    nearest = F.interpolate(value, scale_factor=2, mode="nearest")
    assert torch.equal(pool(centre, value, OFFSETS[17]), nearest)
    attender = LocalAttender(9, 9)
    torch.nn.init.zeros_(attender.conv1.weight), torch.nn.init.zeros_(attender.conv1.bias)
    box = F.avg_pool2d(F.pad(value, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    want = F.interpolate(box, scale_factor=2, mode="nearest")
    torch.testing.assert_close(attender(torch.zeros(2, 9, 8, 6), value), want)


def test_the_guide_itself_is_added_to_the_logits():
    guide = torch.randn(1, 20, 4, 4)
    attender = LocalAttender(20, 17)
    want = attender.conv1(guide) + guide[:, :17]
    torch.testing.assert_close(attender.weights(guide), want.softmax(1))
    narrow = LocalAttender(5, 9)
    want = narrow.conv1(guide[:, :5])
    want[:, :5] += guide[:, :5]
    torch.testing.assert_close(narrow.weights(guide[:, :5]), want.softmax(1))


# ---------------------------------------------------------------------------------- the whole model
def test_official_sizes():
    with torch.device("meta"):
        dino, vae = uplift.uplift_dino(), uplift.uplift_vae()
    parts = (dino, dino.encoder, dino.decoder, dino.attender)
    assert [parameters(part) for part in parts] == [789_521, 283_904, 504_512, 1_105]
    assert (parameters(vae), parameters(vae.refiner)) == (53_487_445, 31_512_576)
    keys = set(dino.state_dict())
    assert {
        "encoder.block_4.blocks.0.conv.1.running_var", "decoder.block_1.blocks.0.conv.6.bias",
        "decoder.up_1.up.weight", "attender.conv1.bias",
    } <= keys
    assert {
        "refiner.blocks.11.conv.3.bias", "ref_outc.weight",
        "encoder.block_2.blocks.1.conv.0.weight",
    } <= set(vae.state_dict())
    assert dino.pixel_steps == uplift.uplift_dino(patch_size=16).pixel_steps == 4
    assert vae.pixel_steps == 3


def test_iterations_feed_their_own_output_and_share_the_guide():
    model, (images, features) = small(), inputs()
    calls = []
    model.encoder.register_forward_hook(lambda *args: calls.append(1))
    steps = model(images, features, iterations=3, return_steps=True)
    assert len(calls) == 1                                                    # the encoder ran once
    assert [tuple(s.shape) for s in steps] == [(2, 6, 6, 8), (2, 6, 12, 16), (2, 6, 24, 32)]
    encoded, x = model.encode(images), features
    assert all(e.shape[-2:] == images.shape[-2:] for e in encoded)
    for step in steps:
        guide = model.decoder(x, encoded)
        # V is the output of the iteration before
        x = by_loops(model.attender.weights(guide), x, OFFSETS[17])
        torch.testing.assert_close(x, step, atol=1e-5, rtol=1e-4)
    assert torch.equal(model(images, features), steps[-1])    # patch 8: three iterations by default


def test_nearest_resize_takes_the_floor():
    x = torch.arange(8.0).reshape(1, 1, 1, 8).expand(1, 1, 6, 8)
    assert uplift.resize_nearest(x, (2, 3))[0, 0, 0].tolist() == [0, 2, 5]    # floor(0, 2.67, 5.33)


def test_outputs_stay_in_the_range_of_the_input_only_with_an_attender():
    images, features = inputs(grid=(4, 4))
    low, high = features.amin((-2, -1), keepdim=True), features.amax((-2, -1), keepdim=True)
    with torch.no_grad():
        hull = small()(images, features)
        free = small(num_neighbours=None)(images, features)
    assert (hull >= low - 1e-5).all() and (hull <= high + 1e-5).all()
    assert ((free < low) | (free > high)).float().mean() > 0.05


def test_constant_features_stay_and_channels_of_the_value_commute():
    model, (images, features) = small(), inputs()
    constant = torch.randn(2, 6, 1, 1).expand(2, 6, 3, 4)
    want = constant[..., :1, :1].expand(2, 6, 24, 32)
    torch.testing.assert_close(model(images, constant), want, atol=1e-5, rtol=1e-5)
    guide, turn = torch.randn(2, 12, 6, 8), torch.randperm(6)
    got, want = model.attender(guide, features[:, turn]), model.attender(guide, features)[:, turn]
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_low_mem_and_batch_of_one(monkeypatch):
    model, (images, features) = small(), inputs(3)
    want = model(images, features)
    torch.testing.assert_close(model(images[1:2], features[1:2]), want[1:2], atol=1e-5, rtol=1e-4)
    model.attender.low_mem = True
    monkeypatch.setattr(uplift, "BAND", 1)
    torch.testing.assert_close(model(images, features), want, atol=1e-5, rtol=1e-4)


def test_patch_14_enlarges_the_image_to_16_features_and_resizes_the_result():
    model, (images, features) = small(patch_size=14), inputs(grid=(2, 3), patch=14)
    assert [e.shape[-2:] for e in model.encode(images)] == [(32, 48)] * 3
    larger = F.interpolate(images, (32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.encode(images)[0], model.encoder(larger)[0])
    assert model(images, features).shape == (2, 6, 32, 48)
    assert model(images, features, size=(28, 42)).shape == (2, 6, 28, 42)
    model.patch_size = 16
    assert model.encode(images)[0].shape[-2:] == (28, 42)


def test_odd_sizes_and_meta_and_half_precision():
    model = small()
    images, features = torch.rand(1, 3, 37, 53), torch.randn(1, 6, 5, 7)
    assert model(images, features, iterations=2).shape == (1, 6, 20, 28)
    assert model(images, features[..., :4, :6], iterations=2).shape == (1, 6, 16, 24)
    assert model.to("meta")(images.to("meta"), features.to("meta")).shape == (1, 6, 40, 56)
    model, (images, features) = small(), inputs()
    want = model(images, features)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(images, features).float() - want).abs().max() < 0.1
    assert model.double()(images.double(), features.double()).dtype == torch.float64


def test_attention_for_pictures():
    model, (images, features) = small(num_neighbours=9), inputs()
    out, attns = model(images, features, iterations=2, return_attn=True)
    assert [tuple(a.shape) for a in attns] == [(2, 9, 6, 8), (2, 9, 12, 16)]
    first = model(images, features, iterations=1)
    torch.testing.assert_close(pool(attns[1], first, OFFSETS[9]), out)


# ------------------------------------------------------------------------------- generative variant
def generative(**kwargs):
    sizes = dict(
        in_channels=4, norm="layer", decoder_convs=1, noise_channels=3, noise_scale=2.0,
        refiner=(8, 8),
    )
    return small(**{**sizes, **kwargs})


def test_noise_comes_from_the_generator():
    model, (images, features) = generative(), inputs(channels=4)

    def run(seed):
        return model(images, features, iterations=2, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(run(3), run(3)) and not torch.allclose(run(3), run(4))
    state = torch.get_rng_state()
    run(3)
    assert torch.equal(state, torch.get_rng_state())                  # the global one is left alone
    calm = generative(noise_scale=0.0)
    calm.load_state_dict(model.state_dict())
    assert torch.equal(calm(images, features), calm(images, features))
    assert not torch.allclose(calm(images, features), model(images, features))


def test_noise_channels_have_their_scale_and_come_last():
    x, encoded = torch.zeros(2, 4, 30, 40), torch.ones(2, 5, 60, 80)
    out = uplift.combine(x, encoded, 3, 2.0, torch.Generator().manual_seed(0))
    assert out.shape == (2, 12, 30, 40) and (out[:, 4:9] == 1).all()
    assert out[:, 9:].std().item() == pytest.approx(2, rel=0.05)


def test_the_refiner_replaces_the_output_of_the_attender():
    model, (images, features) = generative(noise_channels=0), inputs(channels=4)
    torch.nn.init.zeros_(model.ref_outc.weight), torch.nn.init.constant_(model.ref_outc.bias, 7)
    assert (model(images, features) == 7).all()          # nothing of the attender's output is added


# ----------------------------------------------------------------------------------------- training
def backbone(images):
    """Six channels, stride 8."""
    return F.avg_pool2d(torch.cat([images, images.square()], 1), 8)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_number_of_loss_terms(depth):
    images = torch.rand(2, 3, 64, 128)
    terms = loss_terms(small(), backbone, images, depth)
    assert set(terms) == {(i, t) for i in range(depth) for t in range(i + 1)}
    assert len(terms) == depth * (depth + 1) // 2
    assert len(loss_terms(small(), backbone, images, depth, multi_step=False)) == depth
    torch.testing.assert_close(loss(small(), backbone, images, depth), sum(terms.values()))


def test_each_term_compares_the_right_sizes():
    """Level 1 starts at a quarter, guided by the quarter-size image, and its steps are compared at
    a half and at full size."""
    model, images = small(), torch.rand(2, 3, 64, 64)
    how = dict(mode="bilinear", align_corners=False, antialias=True)
    half, quarter = (F.interpolate(images, scale_factor=s, **how) for s in (0.5, 0.25))
    terms = loss_terms(model, backbone, images, 2)
    first, second = model(quarter, backbone(quarter), iterations=2, return_steps=True)
    torch.testing.assert_close(terms[1, 0], F.mse_loss(first, backbone(half)))
    torch.testing.assert_close(terms[1, 1], F.mse_loss(second, backbone(images)))
    alone = model(half, backbone(half), iterations=1)
    torch.testing.assert_close(terms[0, 0], F.mse_loss(alone, backbone(images)))


def test_noise_is_added_to_the_input_alone_and_targets_stay_clean():
    """With constant weights and constant features the output is the (noisy) input's average: its
    error is against the clean target."""
    model, images = small(), torch.rand(2, 3, 32, 32)
    kept = []

    def remember(copy):
        kept.append(backbone(copy))
        return kept[-1]
    before = [backbone(copy) for copy in uplift.pyramid(images, 2)]
    noisy = loss(model, remember, images, 2, noise=1.0, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    assert noisy > loss(model, backbone, images, 2) + 0.01
    again = loss(model, backbone, images, 2, noise=1.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)


def test_the_backbone_is_frozen_and_training_lowers_the_loss():
    model = small().train()
    net = torch.nn.Conv2d(3, 6, 8, 8)
    # smooth: the guide can tell where features change
    images = F.interpolate(torch.rand(4, 3, 5, 5), size=(64, 64), mode="bicubic")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(model, net, images, 2)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(p.grad is None for p in net.parameters())
    assert values[-1] < 0.9 * values[0]


# ----------------------------------------------------------------------------------------- the rest
@pytest.mark.parametrize("call, message", [
    (lambda: LocalAttender(8, 7), "num_neighbours=7 must be one of"),
    (lambda: small()(torch.rand(2, 3, 24, 32), torch.rand(2, 5, 3, 4)), "features has 5 channels"),
    (lambda: small()(torch.rand(3, 24, 32), torch.rand(1, 6, 3, 4)), "needs 4 axes"),
    (lambda: small()(torch.rand(2, 3, 24, 32), torch.rand(1, 6, 3, 4)),
     "features of 1 images for 2"),
    (lambda: small()(*inputs(), iterations=0), "iterations=0"),
    (lambda: small(patch_size=4)(torch.rand(1, 3, 16, 24), torch.rand(1, 6, 3, 9)),
     "features have a grid of 3 x 9 for images of 16 x 24: patches of 4 need 4 x 6$"),
    (lambda: small()(torch.rand(1, 3, 37, 53), torch.rand(1, 6, 5, 8)),
     "grid of 5 x 8 for images of 37 x 53: patches of 8 need 4 x 6 or 5 x 7$"),
    (lambda: small()(torch.rand(1, 3, 37, 53), torch.rand(1, 6, 3, 6)), "grid of 3 x 6"),
    (lambda: small(num_neighbours=None)(*inputs(), return_attn=True), "needs an attender"),
    (lambda: pool(torch.rand(1, 5, 6, 6), torch.rand(1, 2, 3, 4), OFFSETS[5]),
     "whole number of times larger"),
    (lambda: pool(torch.rand(1, 9, 6, 8), torch.rand(1, 2, 3, 4), OFFSETS[5]),
     "9 channels, but there are 5 offsets"),
    (lambda: small(norm="group"), "norm='group'"),
    (lambda: small(encoder=(4,)), "at least 2 encoder groups"),
    (lambda: small(encoder=4), "at least 2 encoder groups"),
    (lambda: UPLiFT(6, 0), "patch_size=0"),
    (lambda: UPLiFT(6, 14.0), "patch_size=14.0"),
    (lambda: small(decoder_convs=0), "decoder_convs=0"),
    (lambda: small(noise_channels=-1), "noise_channels=-1"),
    (lambda: uplift.resize_image(torch.rand(1, 3, 8, 8), 4.0), "size=4.0"),
    (lambda: uplift.resize_image(torch.rand(3, 8, 8), 4), "4 axes"),
    (lambda: small().encode(torch.rand(1, 3, 24, 32).double()), "images is torch.float64"),
    (lambda: small().upsample([1.0], []), "x is a list"),
    (lambda: uplift.shifted([1.0], OFFSETS[5]), "value is a list"),
    (lambda: uplift.ConvBlock(3, 4, 0), "convs=0"),
    (lambda: uplift.Encoder(4), "widths=4"),
    (lambda: uplift.Decoder(4, (4,), (4, 4)), "two groups"),
    (lambda: uplift.pyramid(torch.rand(1, 3, 36, 32), 3), "36 x 32 cannot be halved depth=3 times"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_cross_attention_upsampler():
    torch.manual_seed(0)
    net, (images, features) = CrossAttentionUpsampler(6, (4, 8), dim=12).eval(), inputs()
    with torch.no_grad():
        out, attn = net(images, features, return_attn=True)
        torch.testing.assert_close(net(images, features), out, atol=1e-5, rtol=1e-4)
        assert out.shape == (2, 6, 24, 32) and attn.shape == (2, 1, 24 * 32, 12)
        assert net(images, features, size=(9, 7)).shape == (2, 6, 9, 7)
        torch.testing.assert_close(net(images[:1], features[:1]), out[:1], atol=1e-5, rtol=1e-4)
    # convex as well, over the whole grid
    assert (out <= features.amax((-2, -1), keepdim=True) + 1e-5).all()
