"""The shared denoiser: its schedule, its text, its features, its sampler."""

import math

import pytest
import torch

from vtlib.generation.diffusion import (
    STEPS,
    Denoiser,
    add_noise,
    alphas,
    ddim,
    diffusion_loss,
    target,
    time_embedding,
)

SMALL = dict(text_dim=6, widths=(8, 12, 16), text_at=(False, True, True), num_heads=2, groups=4)


def net(**options):
    """A small denoiser whose blocks and head don't begin at zero."""
    torch.manual_seed(0)
    model = Denoiser(**{**SMALL, "time_dim": 16, **options})
    for name, parameter in model.named_parameters():
        if name.startswith("head") or "conv2" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return net()


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text():
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(2))


def test_cosine_schedule_is_nichol_and_dhariwals():
    t = torch.arange(STEPS)
    alpha, sigma = alphas(t)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(STEPS, 1, 1, 1))
    kept = alpha.square().flatten()
    assert (kept[1:] <= kept[:-1]).all() and kept[0] > 0.999 and kept[-1] < 1e-4

    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    assert kept[499].item() == pytest.approx(f(0.5) / f(0), rel=1e-5)


def test_v_gives_picture_and_noise_back(pictures):
    """x_0 = alpha x_t - sigma v, eps = sigma x_t + alpha v."""
    t = torch.tensor([100, 700])
    noise = torch.randn_like(pictures)
    x, v = add_noise(pictures, t, noise), target(pictures, t, noise)
    alpha, sigma = alphas(t)
    torch.testing.assert_close(alpha * x - sigma * v, pictures)
    torch.testing.assert_close(sigma * x + alpha * v, noise)


def test_time_embedding():
    out = time_embedding(torch.tensor([0, 7]), 4)
    want = [math.cos(7), math.cos(0.07), math.sin(7), math.sin(0.07)]
    torch.testing.assert_close(out[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(out[1], torch.tensor(want))


def test_default_size_on_the_meta_device():
    with torch.device("meta"):
        model = Denoiser(widths=(40, 64, 80, 96))
    assert sum(p.numel() for p in model.parameters()) == 1_661_140
    assert model.strides == (2, 4, 8, 16) and model.multiple == 16


def test_begins_with_a_guess_of_zero(pictures, text):
    fresh = Denoiser(**SMALL)
    assert not fresh(pictures, torch.tensor([5, 5]), text).any()


def test_text_time_and_the_order_of_tokens(model, pictures, text):
    t = torch.tensor([10, 500])
    with torch.no_grad():
        out = model(pictures, t, text)
        torch.testing.assert_close(model(pictures, t, text.flip(1)), out, atol=1e-5, rtol=1e-4)
        assert (model(pictures, t, text.flip(0)) - out).abs().max() > 1e-4
        assert (model(pictures, t + 100, text) - out).abs().max() > 1e-4


def test_a_token_of_zeros_is_an_empty_place(model, pictures, text):
    t = torch.tensor([10, 500])
    with torch.no_grad():
        longer = torch.cat([text, torch.zeros(2, 4, 6)], 1)
        torch.testing.assert_close(model(pictures, t, longer), model(pictures, t, text))
        empty = model(pictures, t, None)
        torch.testing.assert_close(model(pictures, t, torch.zeros_like(text)), empty)
        assert (model(pictures, t, text) - empty).abs().max() > 1e-4


def test_features_are_one_deterministic_pass(model, pictures, text):
    calls = []
    handle = model.stem.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        maps = model.features(pictures, text, t=20)
        again = model.features(pictures, text, t=20)
    handle.remove()
    assert len(calls) == 2
    for (a, b, width, stride) in zip(
        maps.encoder, again.encoder, model.widths, model.strides, strict=True
    ):
        assert a.shape == (2, width, 16 // stride, 24 // stride) and torch.equal(a, b)
    assert maps.decoder.shape == maps.encoder[0].shape
    with torch.no_grad():
        empty = model.features(pictures, None, t=20)
    assert torch.equal(empty.encoder[0], maps.encoder[0])                # reads no text
    assert not torch.equal(empty.encoder[1], maps.encoder[1])
    assert not torch.equal(empty.decoder, maps.decoder)


def test_features_are_those_of_the_forward_pass(model, pictures, text):
    """The last decoder map, normed and through the head, is the guess."""
    noise = torch.randn_like(pictures)
    t = torch.tensor([30, 30])
    with torch.no_grad():
        last = model.features(pictures, text, 30, noise).decoder
        out = torch.nn.functional.pixel_shuffle(
            model.head(torch.nn.functional.silu(model.norm(last))), model.patch_size
        )
        want = model(add_noise(model.scaled(pictures), t, noise), t, text)
        shared = model.features(pictures, text, 30, noise[0]).decoder
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(shared[0], last[0], atol=1e-5, rtol=1e-4)


def test_loss_is_seeded_and_drops_prompts(model, pictures, text):
    def loss(seed, drop, words):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return diffusion_loss(model, pictures, words, generator, drop)

    assert torch.equal(loss(0, 0.1, text), loss(0, 0.1, text))
    assert not torch.equal(loss(0, 0.1, text), loss(1, 0.1, text))
    assert torch.equal(loss(0, 1.0, text), loss(0, 1.0, torch.zeros_like(text)))
    assert not torch.equal(loss(0, 0.0, text), loss(0, 1.0, text))


def test_a_perfect_guess_has_no_loss(pictures):
    """With one picture to know, v follows from x_t and t."""
    class Knows(Denoiser):
        def forward(self, x, t, text=None):
            alpha, sigma = alphas(t)
            noise = (x - alpha * self.scaled(pictures)) / sigma
            return target(self.scaled(pictures), t, noise)

    knows = Knows(**SMALL, scale=2.0)
    generator = torch.Generator().manual_seed(0)
    assert diffusion_loss(knows, pictures, None, generator).max() < 1e-4
    drawn = ddim(knows, None, torch.randn_like(pictures), steps=5)
    torch.testing.assert_close(drawn, pictures, atol=1e-3, rtol=0)


def test_guidance(model, text):
    noise = torch.randn(2, 3, 16, 24)
    plain = ddim(model, text, noise, 3)
    assert plain.shape == noise.shape and torch.equal(plain, ddim(model, text, noise, 3))
    none = ddim(model, None, noise, 3)
    torch.testing.assert_close(ddim(model, text, noise, 3, guidance=0), none)
    assert not torch.equal(ddim(model, text, noise, 3, guidance=3), plain)
    assert 0 <= plain.min() and plain.max() <= 1


def test_frozen_features_need_no_gradient_but_let_the_pictures_have_one(model, pictures, text):
    pictures.requires_grad_()
    model.features(pictures, text).decoder.sum().backward()
    assert pictures.grad.abs().sum() > 0
    model.zero_grad()


@pytest.mark.parametrize(("call", "name"), [
    (lambda m, x, w: m(x[..., :20], torch.zeros(2).long(), w), "multiple of 8"),
    (lambda m, x, w: m(x, torch.zeros(2), w), "t is"),
    (lambda m, x, w: m(x, torch.zeros(3).long(), w), "t is"),
    (lambda m, x, w: m(x, torch.zeros(2).long(), w[:1]), "prompts"),
    (lambda m, x, w: m(x, torch.zeros(2).long(), w[..., :5]), "text"),
    (lambda m, x, w: m.features(x, w, 1000), "t="),
    (lambda m, x, w: m.features(x, w, 0, x[..., :8]), "noise"),
    (lambda m, x, w: diffusion_loss(m, x, w, drop=2), "drop"),
    (lambda m, x, w: ddim(m, w, x, 0), "steps"),
    (lambda m, x, w: Denoiser(text_at=(True,)), "text_at"),
    (lambda m, x, w: Denoiser(time_dim=7), "time_dim"),
    (lambda m, x, w: Denoiser(scale=0), "scale"),
])
def test_bad_input_is_named(model, pictures, text, call, name):
    with pytest.raises(ValueError, match=name):
        call(model, pictures, text)
