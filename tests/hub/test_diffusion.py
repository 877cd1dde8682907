"""Features of diffusers' Stable Diffusion, on a tiny one of random weights.

The package is an option: without it these tests have nothing to look at.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from vtlib.generation.diffusion import Features
from vtlib.hub.diffusion import BETAS, StableDiffusion, kept, stable_diffusion

diffusers = pytest.importorskip("diffusers")


def make_unet():
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 12, 16, 16), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=4, layers_per_block=2,
    )


def make_vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, layers_per_block=2,
    )


def words(prompts, padding, max_length, truncation, return_tensors):
    """A tokenizer: letters, an end, padding of ends."""
    assert padding == "max_length" and truncation and return_tensors == "pt"
    rows = [[1 + ord(c) % 40 for c in p][: max_length - 1] for p in prompts]
    return {"input_ids": torch.tensor([r + [49] * (max_length - len(r)) for r in rows])}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=12, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=9, eos_token_id=49,
    )
    return StableDiffusion(make_unet(), make_vae(), CLIPTextModel(config), words)


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def text(model):
    return model.encode(["gecko", "a moth on bark"])


def test_features_have_the_shapes_of_our_own_denoiser(model, pictures, text):
    maps = model.features(pictures, text)
    assert isinstance(maps, Features) and model.strides == (8, 16, 32, 64)
    for found, stride, width in zip(maps.encoder, model.strides, model.widths, strict=True):
        assert found.shape == (2, width, 64 // stride, 128 // stride)
    assert maps.decoder.shape == (2, 8, 8, 16)
    again = model.features(pictures, text)
    assert all(torch.equal(a, b) for a, b in zip(maps.encoder, again.encoder, strict=True))


def test_the_last_map_is_one_norm_and_one_convolution_from_the_guess(model, pictures, text):
    last = model.features(pictures, text, 7).decoder
    unet = model.unet
    guess = unet.conv_out(torch.nn.functional.silu(unet.conv_norm_out(last)))
    x = kept()[7].sqrt().float() * model.latents(pictures)
    want = unet(x, 7, encoder_hidden_states=text).sample
    torch.testing.assert_close(guess, want, atol=1e-5, rtol=1e-4)


def test_odises_taps(model, pictures, text):
    """Inputs of its blocks, those of the U-Net with the skip concatenated: widths and strides as
    its own table counts them (in_channels of the blocks)."""
    maps = model.odise(pictures, text)
    vae, unet = model.vae, model.unet
    blocks = [
        vae.encoder.down_blocks[2].resnets[1], vae.encoder.down_blocks[3].resnets[1],
        *(block.resnets[2] for block in unet.up_blocks),
        vae.decoder.up_blocks[0].resnets[2], vae.decoder.up_blocks[1].resnets[2],
    ]
    strides = (4, 8, 64, 32, 16, 8, 8, 4)
    for found, block, stride in zip(maps, blocks, strides, strict=True):
        assert found.shape == (2, block.in_channels, 64 // stride, 128 // stride)
    skip = maps[5][:, -8:]
    states = []
    handle = unet.conv_in.register_forward_hook(lambda m, a, out: states.append(out))
    model.features(pictures, text)
    handle.remove()
    torch.testing.assert_close(skip, states[0])              # the way up ends with the stem's skip


def test_nothing_is_left_behind(model, pictures, text):
    model.odise(pictures, text)
    with pytest.raises(ValueError, match="text"):
        model.features(pictures, text[:1])
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_latents_are_the_scaled_mean(model, pictures):
    posterior = model.vae.encode(2 * pictures - 1).latent_dist
    torch.testing.assert_close(model.latents(pictures), posterior.mean * 0.18215)
    assert torch.equal(model.latents(pictures), model.latents(pictures))


def test_the_schedule_is_stable_diffusions(model, pictures, text):
    scheduler = diffusers.DDPMScheduler(
        beta_start=BETAS[0], beta_end=BETAS[1], beta_schedule="scaled_linear"
    )
    torch.testing.assert_close(kept().float(), scheduler.alphas_cumprod, atol=1e-6, rtol=0)
    latents, noise = model.latents(pictures), torch.randn(1, 4, 8, 16)
    t = torch.tensor([50, 50])
    noisy = scheduler.add_noise(latents, noise.expand_as(latents), t)
    want = model.unet(noisy, t, encoder_hidden_states=text).sample
    got = model._pass(latents, text, 50, noise)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_text_matters_and_the_empty_prompt_is_not_zero(model, pictures, text):
    named, empty = (model.features(pictures, t).decoder for t in (text, None))
    zero = model.features(pictures, torch.zeros_like(text)).decoder
    assert (named - empty).abs().max() > 1e-4 and (zero - empty).abs().max() > 1e-4
    torch.testing.assert_close(model.features(pictures, model.encode(["", ""])).decoder, empty)


def test_frozen(model, pictures, text):
    model.train()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    learned = text.clone().requires_grad_()
    model.features(pictures, learned).decoder.sum().backward()
    assert learned.grad.abs().sum() > 0                        # a prompt may be learned


def test_from_a_folder(model, pictures, text, tmp_path, monkeypatch):
    for name in ("unet", "vae", "text_encoder"):
        getattr(model, name).save_pretrained(tmp_path / name)
    import transformers

    made = SimpleNamespace(from_pretrained=lambda folder, subfolder: words)
    monkeypatch.setattr(transformers, "CLIPTokenizer", made)
    other = stable_diffusion(tmp_path)
    want = model.odise(pictures, text)
    got = other.odise(pictures, other.encode(["gecko", "a moth on bark"]))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_no_torchvision():
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize(("call", "name"), [
    (lambda m, x, w: m.features(x[..., :72], w), "multiple of 64"),
    (lambda m, x, w: m.features((255 * x).byte(), w), "images"),
    (lambda m, x, w: m.features(x, w[..., :5]), "text"),
    (lambda m, x, w: m.features(x, w, 1000), "t="),
    (lambda m, x, w: m.features(x, w, -1), "t="),
    (lambda m, x, w: m.features(x, w, 0, x), "noise"),
    (lambda m, x, w: m.encode("gecko"), "prompts"),
    (lambda m, x, w: StableDiffusion(m.unet, m.vae).features(x), "text_encoder"),
    (lambda m, x, w: StableDiffusion(
        diffusers.UNet2DConditionModel(
            in_channels=9, block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=12,
            attention_head_dim=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        ), m.vae), "vae has 4"),
])
def test_bad_input_is_named(model, pictures, text, call, name):
    with pytest.raises(ValueError, match=name):
        call(model, pictures, text)


def test_slices_and_tiles_are_refused(model, pictures, text):
    model.vae.enable_slicing()
    try:
        with pytest.raises(ValueError, match="disable_slicing"):
            model.odise(pictures, text)
        assert model.features(pictures, text).decoder.shape[0] == 2
    finally:
        model.vae.disable_slicing()
