"""SAM's encoder with the hourglass: sizes, what the hourglass changes, relative positions."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.segmentation import SAMEncoder, sam_vit_h, sam_vit_l
from vtlib.segmentation.expedit_sam import SAMBlock, relative_bias, relative_rows

SIZES = dict(img_size=48, patch_size=4, embed_dim=16, num_layers=4, num_heads=2, mlp_ratio=2.0,
             out_chans=6, window_size=6, global_blocks=(3,))
GLASS = dict(num_clusters=9, after=1, cluster_window=3, k=4)


def build(**kwargs):
    torch.manual_seed(0)
    model = SAMEncoder(**SIZES | kwargs).eval()
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize(
    "make, count",
    [(SAMEncoder, 89_670_912), (sam_vit_l, 308_278_272), (sam_vit_h, 637_026_048)],
)
def test_parameters(make, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count
        assert sum(p.numel() for p in make(num_clusters=81).parameters()) == count


def test_the_hourglass_takes_the_trained_weights():
    plain, glass = build(), build(**GLASS)
    assert plain.state_dict().keys() == glass.state_dict().keys()
    glass.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 48, 48)
    out, steps = glass(x, return_steps=True)
    assert out.shape == plain(x).shape == (2, 6, 12, 12)
    assert steps["clustered"].shape == (2, 6, 6, 16) and steps["refined"].shape == (2, 6, 6, 16)
    assert steps["reconstructed"].shape == steps["before"].shape == (2, 12, 12, 16)
    full = build(**GLASS | dict(num_clusters=36))
    assert torch.equal(full(x), plain(x))                     # as many centres as tokens


def test_blocks_change_window_behind_the_clustering(monkeypatch):
    seen = []
    forward = SAMBlock.forward
    monkeypatch.setattr(
        SAMBlock, "forward",
        lambda self, x, window=0: seen.append((tuple(x.shape[1:3]), window))
        or forward(self, x, window),
    )
    build(**GLASS)(torch.rand(1, 3, 40, 48))                  # 10 x 12 tokens, padded to 12 x 12
    assert seen == [((10, 12), 6), ((6, 6), 3), ((6, 6), 3), ((6, 6), 0)]


def test_padding_is_cut_off_again():
    out, steps = build(**GLASS)(torch.rand(1, 3, 40, 28), return_steps=True)
    assert out.shape == (1, 6, 10, 7) and steps["reconstructed"].shape == (1, 10, 7, 16)


def test_the_necks_norm_forgets_the_l2_rule():
    x = torch.rand(1, 3, 48, 48)
    long, convex = build(**GLASS), build(**GLASS, normalise="sum")
    (a, steps), (b, others) = (m(x, return_steps=True) for m in (long, convex))
    assert (steps["reconstructed"].norm() > 1.5 * others["reconstructed"].norm())
    torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)


def test_relative_bias_equals_loops():
    q, h, w = torch.randn(1, 2, 6, 4), torch.randn(5, 4), torch.randn(5, 4)
    got = relative_bias(q, (2, 3), h, w)
    rows, cols = (relative_rows(t, s) for t, s in ((h, 2), (w, 3)))
    for i in range(6):
        for j in range(6):
            rel = rows[i // 3, j // 3] + cols[i % 3, j % 3]
            torch.testing.assert_close(got[0, :, i, j], q[0, :, i] @ rel)
    assert torch.equal(cols[2, 0], w[4]) and torch.equal(cols[0, 2], w[0])     # query - key
    small = F.interpolate(h.T[None], size=3, mode="linear")[0].T
    torch.testing.assert_close(rows[1, 0], small[2])


def test_gradients_and_round_trip():
    model = build(**GLASS).train()
    x = torch.rand(2, 3, 48, 48)
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    other = build(**GLASS, normalise="l2")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model.eval()(x))


WRONG = {
    "num_clusters=8 is no square": dict(GLASS, num_clusters=8),
    "num_clusters=49: needs an integer from 1 to 36": dict(GLASS, num_clusters=49),
    "after=4": dict(GLASS, after=4),
    "k=20": dict(GLASS, k=20),
    "cluster_window|window=2": dict(GLASS, cluster_window=2),
    "global_blocks=4": dict(global_blocks=(4,)),
    "not a multiple of patch_size=4": dict(img_size=47),
    "window_size=0": dict(window_size=0),
    "num_heads=3": dict(num_heads=3),
    "normalise='no'": dict(GLASS, normalise="no"),
}


@pytest.mark.parametrize("told", WRONG)
def test_bad_arguments(told):
    with pytest.raises(ValueError, match=told):
        SAMEncoder(**SIZES | WRONG[told])


def test_bad_pictures():
    model = build()
    for x, told in (
        (torch.rand(3, 48, 48), "needs 4 axes"),
        (torch.rand(1, 3, 47, 48), r"\(47, 48\) is not a multiple"),
        (torch.rand(1, 3, 48, 48).double(), "images is torch.float64"),
    ):
        with pytest.raises(ValueError, match=told):
            model(x)
