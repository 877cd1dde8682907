"""Drawings and widgets of the notebook on TokenBridge and ETT."""

import pytest
import torch

from vtlib.quantize.dimwise import gaussian_bins
from vtlib.teach import tokenizers
from vtlib.teach.tokenizers.bridge_panels import before_any
from vtlib.tokenizers import IBQTokenizer, small
from vtlib.tokenizers.tokenbridge_head import DimensionHead

ALT = "a picture that is long enough to be described"
NET = {"patch_size": 4, "channels": 8, "multipliers": (1,), "num_res_blocks": 1, "groups": 4}


def pictures(count=2, side=16):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_lloyd_finds_the_levels_of_a_uniform_distribution_and_never_does_worse():
    values = torch.linspace(0, 1, 4001)
    found = tokenizers.lloyd(values, torch.tensor([0.1, 0.2, 0.3, 0.9]), rounds=400)
    want = torch.tensor([1, 3, 5, 7]) / 8
    torch.testing.assert_close(found, want, atol=2e-3, rtol=0)
    start, errors = torch.tensor([0.0, 0.1, 0.15, 0.9]), []
    for rounds in range(6):
        levels = tokenizers.lloyd(values, start, rounds)
        errors.append((values[:, None] - levels).square().amin(dim=1).mean().item())
    assert errors == sorted(errors, reverse=True)


def test_lloyd_leaves_a_level_that_nothing_is_near():
    found = tokenizers.lloyd(torch.zeros(5), torch.tensor([0.0, 9.0]), rounds=3)
    assert found.tolist() == [0.0, 9.0]


def test_a_panel_shows_its_numbers():
    edges, means = gaussian_bins(4)
    fig = tokenizers.bins_figure([edges, edges], [means, means], ["one", "two"])
    titles = [ax.get_title("left") or ax.get_title() for ax in fig.axes]   # as the style says
    assert titles == ["one", "two"]
    latents = torch.randn(50, 3)
    assert len(tokenizers.densities(latents, "three").axes[0].lines) == 3 + 1
    assert len(tokenizers.joint([latents, latents], (0, 2), ["a", "b"]).axes) == 2


def test_levels_and_range_change_the_picture():
    torch.manual_seed(0)
    model = small("cnn", "kl", dim=4).eval().requires_grad_(False)
    shown = {"one": pictures(1, 64)[0]}
    panel = tokenizers.levels_panel(model, shown, scales=(1, 3), alt=ALT)
    frames = {panel.frame}
    for values in ({"levels": 64}, {"limit": 1.0}, {"scale": 3}, {"channel": 2}):
        panel.set(**values)
        frames.add(panel.frame)
    assert len(frames) == 5


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return DimensionHead(6, 4, 5, 8, 1, 2, order=(2, 0, 3, 1)).eval().requires_grad_(False)


def test_what_the_context_says_alone_is_the_mean_over_the_others(head):
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2, 6, generator=generator)
    alone = before_any(head, context, 50, generator)
    assert alone.shape == (2, 4, 5)
    torch.testing.assert_close(alone.sum(dim=-1), torch.ones(2, 4))
    first = head(context, torch.zeros(2, 4, dtype=torch.long))[:, 2].softmax(dim=-1)
    torch.testing.assert_close(alone[:, 2], first)             # nothing comes before it


def test_the_panel_of_the_head_follows_its_controls(head):
    contexts = {"here": (torch.randn(6), torch.tensor([0, 1, 2, 3]))}
    panel = tokenizers.head_panel(head, contexts, alt=ALT)
    frames = {panel.frame}
    for step, last in ((0, -1), (1, -1), (1, 4)):
        panel.set(step=step, last=last)
        frames.add(panel.frame)
    assert len(frames) == 4


def test_alpha_shows_another_run():
    torch.manual_seed(0)
    nets = [IBQTokenizer(4, 8, net=NET).eval().requires_grad_(False) for _ in range(3)]
    start, *others = (tokenizers.record(net, pictures()) for net in nets)
    assert start.vectors.shape == (2, 16, 4) and start.indices.shape == (2, 16)
    runs = dict(zip(("0", "4"), others, strict=True))
    told = dict.fromkeys(runs, "words")
    panel = tokenizers.alpha_panel(runs, start, pictures(), alt=ALT, told=told)
    frames = {panel.frame}
    for values in ({"alpha": "4"}, {"picture": 0}):
        panel.set(**values)
        frames.add(panel.frame)
    assert len(frames) == 3
