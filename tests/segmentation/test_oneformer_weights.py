"""OneFormer's weights by the names of the release and of transformers."""

import pytest
import torch

from vtlib.segmentation import OneFormer, Predictor, TextEncoder, TextMapper, task_ids
from vtlib.segmentation.oneformer_weights import (
    OFFICIAL,
    convert_official,
    convert_transformers,
    to_transformers,
)


def make():
    """Without `pixels`, whose weights have no other names."""
    torch.manual_seed(0)
    text = TextMapper(TextEncoder(20, 8, 16, 1, 2), 2)
    return OneFormer(torch.nn.Identity(), Predictor(4, 7, 16, 2, 24, 2), text, 8)


def official_name(name):
    """The other way round than `convert_official`."""
    for official, own in OFFICIAL:
        if name.startswith(own):
            return official + name[len(own):]
    return None


def test_convert_official_there_and_back():
    state = make().state_dict()
    official = {official_name(key): value for key, value in state.items()}
    assert None not in official
    got = convert_official(official | {"backbone.patch_embed.proj.weight": torch.zeros(1)})
    assert got.keys() == state.keys() and all(torch.equal(got[k], state[k]) for k in state)
    with pytest.raises(ValueError, match="none of the release's names"):
        convert_official({"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="none of transformers' names"):
        convert_transformers({"x": torch.zeros(1)})


def test_transformers_there_and_back():
    """Only the masked decoder's self attention has q, k, v apart."""
    state = make().state_dict()
    given = to_transformers(state)
    assert "model.transformer_module.decoder.layers.1.self_attn.self_attn.q_proj.bias" in given
    assert len(given) == len(state) + 4 * 2
    got = convert_transformers(given | {"model.pixel_level_module.x": torch.zeros(1)})
    assert got.keys() == state.keys() and all(torch.equal(got[k], state[k]) for k in state)
    with pytest.raises(ValueError, match="none of OneFormer's names"):
        to_transformers({"pixels.x": torch.zeros(1)})


def tiny_transformers():
    """transformers' own model, untrained; no bias and no norm is left at its start."""
    lib = pytest.importorskip("transformers")
    torch.manual_seed(0)
    swin = lib.SwinConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = lib.OneFormerConfig(
        backbone_config=swin, num_labels=5, num_queries=12, hidden_dim=64, mask_dim=64, conv_dim=64,
        num_attention_heads=4, dim_feedforward=48, encoder_feedforward_dim=48, encoder_layers=1,
        decoder_layers=4, text_encoder_width=64, text_encoder_num_layers=1, text_encoder_n_ctx=3,
        text_encoder_vocab_size=49408, is_training=True,
    )
    model = lib.OneFormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Theirs(torch.nn.Module):
    """The maps that transformers' backbone and pixel decoder made last."""

    def __init__(self, pixels):
        super().__init__()
        self.maps = None
        pixels.register_forward_hook(lambda _, args, out: setattr(self, "maps", out))

    def forward(self, images):
        return list(self.maps.decoder_features), self.maps.decoder_last_feature


def test_transformers_model_gives_the_same():
    other = tiny_transformers()
    text = TextMapper(TextEncoder(49408, 77, 64, 1, causal=False), 3)
    predictor = Predictor(5, 12, 64, 4, 48, num_layers=3)
    model = OneFormer(Theirs(other.model.pixel_level_module), predictor, text).eval()
    model.load_state_dict(convert_transformers(other.state_dict()))
    tasks, images = ["panoptic", "semantic"], torch.rand(2, 3, 64, 96)
    texts = torch.randint(1, 49000, (2, 9, 77))
    texts[..., 40] = 49407
    with torch.no_grad():
        want = other.model(images, task_ids(tasks).float(), texts)
        got = model(images, tasks, texts)
    close = dict(atol=1e-5, rtol=1e-4)
    for ours, theirs in (
        (got.last.class_logits, want.transformer_decoder_class_predictions),
        (got.last.mask_logits, want.transformer_decoder_mask_predictions),
        (got.formed, want.transformer_decoder_contrastive_queries),
        (got.texts, want.text_queries),
    ):
        torch.testing.assert_close(ours, theirs, **close)


def test_transformers_takes_our_weights():
    """The other way: theirs computes what ours does, and its own weights come back unchanged."""
    other = tiny_transformers()
    text = TextMapper(TextEncoder(49408, 77, 64, 1, causal=False), 3)
    predictor = Predictor(5, 12, 64, 4, 48, num_layers=3)
    torch.manual_seed(1)
    model = OneFormer(Theirs(other.model.pixel_level_module), predictor, text).eval()
    state = other.state_dict()
    back = to_transformers(convert_transformers(state))
    assert all(torch.equal(back[key], state[key]) for key in back)
    missing, unexpected = other.load_state_dict(to_transformers(model.state_dict()), strict=False)
    assert not unexpected and all(
        "pixel_level" in key or key == "criterion.empty_weight" for key in missing
    )
    images, texts = torch.rand(1, 3, 64, 64), torch.randint(1, 49000, (1, 9, 77))
    with torch.no_grad():
        want = other.model(images, task_ids(["instance"]).float(), texts)
        got = model(images, "instance", texts)
    masks = want.transformer_decoder_mask_predictions
    torch.testing.assert_close(got.last.mask_logits, masks, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.texts, want.text_queries, atol=1e-5, rtol=1e-4)
