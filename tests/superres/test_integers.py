"""What may enter: pictures are floating tensors, sizes are integers of any maker, scales are
numbers; what is not finite never becomes a finite answer in silence."""

import numpy as np
import pytest
import torch

from vtlib.superres import bicubic, blur_down, catanet, luma, psnr, ssim, ttvsr, warp
from vtlib.superres.catanet import LRSA, TAB, CATANet
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.spynet import SPyNet
from vtlib.superres.ttvsr import LTAM, TTVSR
from vtlib.superres.uplift import LocalAttender, UPLiFT, loss_terms, pyramid

PICTURES = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
FLOATS, FLOW = torch.rand(2, 3, 16, 16), torch.zeros(2, 2, 16, 16)
FEATURES = torch.rand(2, 4, 4, 4)


def video(frames):
    net = TTVSR(4, 1, 1, 4, spynet=SPyNet(1, (4,)))
    return net(frames[None] if hasattr(frames, "dim") else frames)


ENTRANCES = {
    "psnr": lambda x: psnr(x, x),
    "psnr, want": lambda x: psnr(FLOATS, x),
    "ssim": lambda x: ssim(x, x),
    "ssim, want": lambda x: ssim(FLOATS, x),
    "luma": luma,
    "bicubic": lambda x: bicubic(x, 0.5),
    "blur_down": blur_down,
    "warp": lambda x: warp(x, FLOW),
    "warp, flow": lambda x: warp(FLOATS, x[:, :2] if hasattr(x, "dim") else x),
    "spynet, reference": lambda x: SPyNet(2, (4,))(x, FLOATS),
    "spynet, supporting": lambda x: SPyNet(2, (4,))(FLOATS, x),
    "spynet, levels": lambda x: SPyNet(2, (4,)).levels_of(x, FLOATS),
    "ttvsr": video,
    "ttvsr, flows": lambda x: TTVSR(4, 1, 1, 4, spynet=SPyNet(1, (4,))).flows(
        x[None] if hasattr(x, "dim") else x
    ),
    "catanet": lambda x: CATANet(2, 8, 1, 4, 8, 2, 6, 4, 8)(x),
    "uplift, images": lambda x: UPLiFT(4, 4, (4, 8), (8, 8))(x, FEATURES),
    "uplift, features": lambda x: UPLiFT(3, 4, (4, 8), (8, 8))(FLOATS, x),
    "uplift, encode": lambda x: UPLiFT(4, 4, (4, 8), (8, 8)).encode(x),
    "uplift, pyramid": lambda x: pyramid(x, 1),
    "uplift, loss": lambda x: loss_terms(None, None, x, 1),
    "cross_attention": lambda x: CrossAttentionUpsampler(4, (4, 8), 8)(x, FEATURES),
    "cross_attention, features": lambda x: CrossAttentionUpsampler(3, (4, 8), 8)(FLOATS, x),
}
KINDS = {
    "uint8": (PICTURES, "torch.uint8 but needs a floating dtype"),
    "int64": (PICTURES.long(), "torch.int64 but needs a floating dtype"),
    "numpy": (FLOATS.numpy(), "numpy.ndarray but needs to be a floating torch tensor"),
    "list": (list(FLOATS), "list but needs to be a floating torch tensor"),
}


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
@pytest.mark.parametrize("pictures, message", KINDS.values(), ids=KINDS.keys())
def test_what_is_no_floating_tensor_is_refused(enter, pictures, message):
    with pytest.raises(ValueError, match=message):
        enter(pictures)


def test_the_right_value_of_bytes_is_that_of_floats():
    """Two pictures of bytes at 12.8 dB: as integers their difference used to overflow."""
    torch.manual_seed(0)
    a, b = (torch.randint(60, 196, (1, 3, 32, 32), dtype=torch.uint8) for _ in range(2))
    error = (a.double() - b.double()).square().mean() / 255**2
    got = psnr(a.float() / 255, b.float() / 255, y=False)
    torch.testing.assert_close(got.double(), -10 * error.log10()[None], atol=1e-4, rtol=0)


def test_shapes_do_not_broadcast():
    for other in (FLOATS[:1], FLOATS[:, :1], FLOATS[0], FLOATS[..., :1]):
        for measure in (psnr, ssim):
            with pytest.raises(ValueError, match="both need the same"):
                measure(FLOATS, other)


def test_labels_are_still_read_by_nearest_warping():
    assert warp(PICTURES, FLOW, mode="nearest").equal(PICTURES)


@pytest.mark.parametrize("of", [np.int64, np.uint8, torch.tensor], ids=["int64", "uint8", "torch"])
def test_integers_of_any_maker_are_integers(of):
    eight, two = of(8), of(2)
    net = CATANet(two, eight, of(1), of(4), eight, two, of(6), two, eight)
    assert net.eval()(FLOATS).shape == (2, 3, 32, 32)
    assert psnr(FLOATS, FLOATS, crop=two).isinf().all()
    assert bicubic(FLOATS, two).shape == blur_down(bicubic(FLOATS, 4), two).shape
    video = TTVSR(eight, two, two, eight, stride=of(4), keyframe_stride=two, spynet=None)
    flows = (torch.zeros(1, 1, 2, 16, 16),) * 2
    assert video(FLOATS[None], flows).shape == (1, 2, 3, 64, 64)
    assert video.key_frames(of(5)) == [0, 2, 4]
    uplift = UPLiFT(of(4), of(4), (of(4), 8), (8, 8), num_neighbours=of(9)).eval()
    assert uplift(FLOATS, FEATURES, iterations=two, size=of(20)).shape == (2, 4, 20, 20)
    assert uplift(FLOATS, FEATURES, size=(of(20), 9)).shape == (2, 4, 20, 9)
    cross = CrossAttentionUpsampler(of(4), (of(4), 8), eight).eval()
    assert cross(FLOATS, FEATURES, size=eight).shape == (2, 4, 8, 8)
    assert SPyNet(two, (eight,), of(3))(FLOATS, FLOATS).shape == (2, 2, 16, 16)
    assert len(pyramid(FLOATS, two)) == 3


@pytest.mark.parametrize("of", [np.float64, torch.tensor], ids=["float64", "torch"])
def test_numbers_of_any_maker_are_numbers(of):
    assert torch.equal(bicubic(FLOATS, of(0.25)), bicubic(FLOATS, 0.25))
    assert torch.equal(blur_down(FLOATS, 2, of(1.25)), blur_down(FLOATS, 2, 1.25))
    third = bicubic(torch.rand(1, 9, 9), np.float32(1 / 3))
    assert third.shape == (1, 3, 3)
    assert TAB(8, 4, 8, 2, 3, 4, ema_decay=of(0.5)).ema_decay == 0.5


NET = dict(
    embed_dim=8, num_layers=1, qk_dim=4, mlp_dim=8, num_heads=2, patch_sizes=6, num_centres=3,
    group_sizes=8,
)
TOKENS = torch.rand(1, 6, 8)
INTEGERS = {
    "crop": [lambda n: psnr(FLOATS, FLOATS, n), lambda n: ssim(FLOATS, FLOATS, n)],
    "scale": [lambda n: blur_down(FLOATS, n)],
    "levels": [SPyNet],
    "kernel_size": [lambda n: SPyNet(1, (4,), n)],
    "channels": [lambda n: SPyNet(1, (n,)), lambda n: LTAM(n)],
    "stride": [
        lambda n: TTVSR(stride=n), lambda n: ttvsr.tokenize(FLOATS, n), lambda n: LTAM(4, n),
        lambda n: ttvsr.token_flow(FLOW, n), lambda n: ttvsr.cross_scale_tokens(FLOATS, n),
    ],
    "height": [lambda n: ttvsr.identity_grid(1, n, 2)],
    "width": [
        lambda n: ttvsr.identity_grid(1, 2, n), lambda n: UPLiFT(encoder=(4, n)),
        lambda n: UPLiFT(refiner=(4, n)),
    ],
    "frames": [lambda n: TTVSR(4, 1, 1, 4, spynet=None).key_frames(n)],
    **{
        name: [lambda n, name=name: TTVSR(**{name: n})]
        for name in ("mid_channels", "num_blocks", "feat_blocks", "head_channels",
                     "keyframe_stride")
    },
    **{
        name: [lambda n, name=name: CATANet(**{**NET, name: n})]
        for name in ("upscale", "embed_dim", "num_layers", "mlp_dim", "n_iter", "in_chans")
    },
    "qk_dim": [lambda n: CATANet(**{**NET, "qk_dim": n}), lambda n: LRSA(8, n, 8, 2, 6)],
    "num_heads": [lambda n: CATANet(**{**NET, "num_heads": n}), lambda n: TAB(8, 4, 8, n, 3, 4)],
    "patch_size": [
        lambda n: LRSA(8, 4, 8, 2, n), lambda n: UPLiFT(patch_size=n),
        lambda n: catanet.patch_divide(FLOATS, n),
    ],
    "num_centres": [lambda n: TAB(8, 4, 8, 2, n, 4), lambda n: catanet.first_centres(TOKENS, n)],
    "group_size": [lambda n: TAB(8, 4, 8, 2, 3, n), lambda n: catanet.sorted_row(6, n)],
    "in_channels": [UPLiFT, CrossAttentionUpsampler],
    "decoder_convs": [lambda n: UPLiFT(decoder_convs=n)],
    "noise_channels": [lambda n: UPLiFT(noise_channels=n)],
    "num_neighbours": [lambda n: UPLiFT(num_neighbours=n), lambda n: LocalAttender(4, n)],
    "guide_channels": [LocalAttender],
    "dim": [lambda n: CrossAttentionUpsampler(4, (4, 8), n), lambda n: TAB(n, 4, 8, 2, 3, 4)],
    "iterations": [lambda n: UPLiFT(4, 4, (4, 8), (8, 8))(FLOATS, FEATURES, n)],
    "size": [
        lambda n: UPLiFT(4, 4, (4, 8), (8, 8))(FLOATS, FEATURES, size=(n, 8)),
        lambda n: CrossAttentionUpsampler(4, (4, 8))(FLOATS, FEATURES, n),
    ],
    "depth": [lambda n: pyramid(FLOATS, n), lambda n: loss_terms(None, None, FLOATS, n)],
}


@pytest.mark.parametrize("name", INTEGERS)
def test_what_is_no_size_is_named(name):
    for enter in INTEGERS[name]:
        for value in (2.0, -1, "2", True, float("nan"), np.float32(2)):
            with pytest.raises(ValueError, match=rf"\b{name}(\[0\])?="):
                enter(value)


NUMBERS = {
    "scale": lambda x: bicubic(FLOATS, x),
    "sigma": lambda x: blur_down(FLOATS, 2, x),
    "ema_decay": lambda x: CATANet(**NET, ema_decay=x),
    "noise_scale": lambda x: UPLiFT(noise_scale=x),
    "noise": lambda x: loss_terms(None, None, FLOATS, 1, x),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_named(name):
    for value in ("0.5", -0.5, float("nan"), float("inf"), True, None, [0.5]):
        with pytest.raises(ValueError, match=rf"\b{name}="):
            NUMBERS[name](value)


# -------------------------------------------------------------------------------- what is no number
BAD = [float("nan"), float("inf")]
ANSWERS = {
    "psnr": lambda x: psnr(x, FLOATS),
    "ssim": lambda x: ssim(x, FLOATS),
    "luma": luma,
    "bicubic": lambda x: bicubic(x, 0.5),
    "blur_down": blur_down,
    "warp": lambda x: warp(x, FLOW),
    "spynet": lambda x: SPyNet(2, (4,))(x, FLOATS),
    "ttvsr": lambda x: video(x),
    "catanet": lambda x: CATANet(2, **NET).eval()(x),
    "uplift": lambda x: UPLiFT(4, 4, (4, 8), (8, 8)).eval()(x, FEATURES),
    "cross_attention": lambda x: CrossAttentionUpsampler(4, (4, 8), 8).eval()(x, FEATURES),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_what_is_not_finite_in_a_picture_stays_visible(answer, bad):
    """One pixel of one picture: its answer is not finite somewhere, the other picture's is as ever
    (a video's frames are one clip)."""
    torch.manual_seed(0)
    x = FLOATS.clone()
    x[0, 1, 5, 7] = bad
    got = answer(x)
    first = got if answer is ANSWERS["ttvsr"] else got[0]
    assert not first.isfinite().all()
    if answer is not ANSWERS["ttvsr"]:
        assert not got[1].isnan().any()


def test_features_that_are_not_finite_stay_visible():
    for bad in BAD:
        features = FEATURES.clone()
        features[0, 2, 1, 1] = bad
        for net in (UPLiFT(4, 4, (4, 8), (8, 8)), CrossAttentionUpsampler(4, (4, 8), 8)):
            out = net.eval()(FLOATS, features)
            assert not out[0].isfinite().all() and out[1].isfinite().all()


@pytest.mark.parametrize("bad", BAD)
def test_flow_that_is_not_finite_is_refused(bad):
    """It would become a place, and a finite picture."""
    flows = [torch.zeros(1, 1, 2, 16, 16) for _ in range(2)]
    flows[1][0, 0, 1, 3, 4] = bad
    with pytest.raises(ValueError, match=r"flows \(forward\) .* 1 non-finite .* \[0, 0, 1, 3, 4\]"):
        TTVSR(4, 1, 1, 4, spynet=None)(FLOATS[None], flows)


@pytest.mark.parametrize("learned", [False, True])
def test_a_batch_that_is_not_finite_teaches_no_centres(learned):
    torch.manual_seed(0)
    tab, x = TAB(8, 4, 8, 2, 3, 4).train(), torch.randn(2, 8, 4, 5)
    if learned:
        tab(x)
    before = tab.means.clone()
    bad = x.clone()
    bad[1, 3, 2, 2] = float("nan")
    assert not tab(bad).isfinite().all()
    assert torch.equal(tab.means, before) and bool(tab.initted) == learned
    tab(x)
    assert tab.initted and tab.means.isfinite().all() and not torch.equal(tab.means, before)
