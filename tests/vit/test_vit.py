import pytest
import torch
import torch.nn.functional as F

from vtlib import vit
from vtlib.teach import flops


@pytest.mark.parametrize("build, count", [
    (vit.deit_tiny, 5_717_416), (vit.deit_small, 22_050_664), (vit.vit_base, 86_567_656),
])
def test_official_sizes(build, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


def test_multiply_adds_of_deit_tiny():
    """12 layers of 12 N D^2 + 2 N^2 D multiply-adds, N = 197, plus the embedding and the head.

    DeiT's table says 1.3 G.
    """
    n, d = 197, 192
    want = 12 * (12 * n * d**2 + 2 * n**2 * d) + 196 * 768 * d + d * 1000
    with torch.device("meta"):
        model, x = vit.deit_tiny().eval(), torch.zeros(1, 3, 224, 224)
    assert flops(model, x) == 2 * want
    assert 1.2e9 < want < 1.3e9


def test_state_dict_names_are_timms():
    outside = "cls_token pos_embed patch_embed.proj.weight norm.weight head.bias"
    inside = "norm1.weight attn.qkv.bias attn.proj.weight mlp.fc1.weight mlp.fc2.bias"
    names = {*outside.split(), *(f"blocks.{i}.{name}" for i in (0, 3) for name in inside.split())}
    assert names <= set(vit.tiny().state_dict())


def permute_patches(images, patch, order):
    from vtlib.nn import patchify, unpatchify
    h, w = images.shape[-2] // patch, images.shape[-1] // patch
    return unpatchify(patchify(images, patch)[:, order], patch, (h, w))


@pytest.mark.parametrize("pos", ["none", "learned", "sincos", "rope"])
def test_only_positions_tell_the_order(pos):
    torch.manual_seed(0)
    model = vit.tiny(pos=pos).eval()
    if pos == "learned":
        torch.nn.init.normal_(model.pos_embed)
    x = torch.rand(2, 3, 64, 64)
    shuffled = permute_patches(x, 8, torch.randperm(64))
    same = torch.allclose(model(x), model(shuffled), atol=1e-5)
    assert same == (pos == "none")


def test_attention_comes_out_and_changes_nothing():
    model, x = vit.tiny(pos="rope").eval(), torch.rand(2, 3, 64, 64)
    logits, attns = model(x, return_attn=True)
    torch.testing.assert_close(logits, model(x), atol=1e-5, rtol=1e-4)
    assert len(attns) == 4 and attns[0].shape == (2, 3, 65, 65)
    torch.testing.assert_close(attns[2].sum(-1), torch.ones(2, 3, 65))


def test_other_sizes_resize_the_learned_table():
    model = vit.tiny().eval()
    assert model.tokens(torch.rand(1, 3, 96, 40)).shape == (1, 1 + 12 * 5, 96)


@pytest.mark.parametrize("kwargs, words", [
    (dict(pos="fourier"), "pos='fourier'"),
    (dict(embed_dim=97), "embed_dim=97"),
    (dict(img_size=65), "(65, 65)"),
    (dict(img_size=(64, 64, 64)), "img_size"),
    (dict(drop_path=1.5), "drop_path=1.5"),
])
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError) as error:
        vit.tiny(**kwargs)
    assert words in str(error.value)


def test_feature_map():
    torch.manual_seed(0)
    model = vit.ViT(32, 8, num_classes=0, embed_dim=16, num_layers=3, num_heads=2).eval()
    images = torch.rand(2, 3, 24, 40)
    out = model.feature_map(images, 3)
    assert out.shape == (2, 16, 3, 5)
    # the tokens are normalised already: once more changes eps only
    want = F.layer_norm(model.tokens(images), (16,))
    torch.testing.assert_close(out[1, :, 2, 3], want[1, 1 + 2 * 5 + 3], atol=2e-3, rtol=1e-3)
    tokens, _ = model.embed(images)
    want = F.layer_norm(model.blocks[0](tokens)[0, 5], (16,))
    torch.testing.assert_close(model.feature_map(images, 1)[0, :, 0, 4], want)
    with pytest.raises(ValueError, match="blocks=4 but the ViT has 3"):
        model.feature_map(images, 4)
