"""An hourglass in running models: vtlib's ViT, transformers' DINOv2, the real one where it is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hub.tiny import make_dinov2
from vtlib import hub
from vtlib.data import photographs
from vtlib.hub import Dropping, Merging, hourglass
from vtlib.nn import IMAGENET_MEAN, IMAGENET_STD
from vtlib.segmentation import Expedit, Pooling
from vtlib.vit import ViT, tiny

GLASS = Expedit((4, 4), window=3, tau=2.0, k=4, normalise="sum")
REDUCTIONS = {
    "expedit": GLASS, "pooling": Pooling((4, 4)), "merging": Merging(16), "dropping": Dropping(16),
}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def dino():
    return make_dinov2()


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return tiny(num_classes=0).eval()


def num_hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_fewer_tokens_between_and_all_of_them_after(dino, name):
    x, counts = torch.randn(2, 3, 112, 140), []
    handles = [
        layer.register_forward_hook(lambda _, args, out: counts.append(args[0].shape[1]))
        for layer in dino.encoder.layer
    ]
    want = dino(x).last_hidden_state
    counts.clear()
    hooked = num_hooks(dino)
    with hourglass(dino, REDUCTIONS[name], after=5) as seen:
        out = dino(x).last_hidden_state
    assert counts == [81] * 5 + [17] * 7
    assert out.shape == want.shape and not torch.equal(out, want)
    assert seen.size == (8, 10) and seen.before.shape[1] == 80 and seen.tokens.shape[1] == 16
    assert num_hooks(dino) == hooked
    assert torch.equal(dino(x).last_hidden_state, want)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    "reduction", [Expedit((8, 10)), Pooling((8, 10)), Merging(80), Merging(1.0)], ids=repr
)
def test_all_kept_is_the_model_itself(dino, reduction):
    x = torch.randn(1, 3, 112, 140)
    with hourglass(dino, reduction, after=3):
        out = dino(x).last_hidden_state
    assert torch.equal(out, dino(x).last_hidden_state)


def test_it_is_the_layers_by_hand(vit):
    """[CLS] is split off, the blocks run on [CLS] and centres, the map is rebuilt, [CLS] stays."""
    images = torch.rand(2, 3, 64, 64)
    x, _ = vit.embed(images)
    for block in vit.blocks[:2]:
        x = block(x)
    tokens, restore = GLASS.reduce(x[:, 1:].unflatten(1, (8, 8)))
    small = torch.cat([x[:, :1], tokens], dim=1)
    third = vit.blocks[2](small)
    small = vit.blocks[3](third)
    full = torch.cat([small[:, :1], restore(small[:, 1:])], dim=1)
    with hourglass(vit, GLASS, after=2, taps=(0, 2)) as seen:
        assert torch.equal(vit.tokens(images), vit.norm(full))
        tap = torch.cat([third[:, :1], restore(third[:, 1:])], dim=1)
        assert torch.equal(seen.taps[2], tap) and seen.taps[0].shape == (2, 65, 96)
        out, attns = vit.tokens(images, return_attn=True)
    assert [a.shape[-1] for a in attns] == [65, 65, 17, 17]
    torch.testing.assert_close(out, vit.norm(full))
    with hourglass(vit, GLASS, after=2, restore=False):
        assert torch.equal(vit.tokens(images), vit.norm(small))


def test_a_last_norm_forgets_the_l2_rule(dino):
    """Each token is longer by a factor of its own, [CLS] is not touched."""
    x, outputs = torch.randn(1, 3, 112, 112), {}
    for normalise in ("l2", "sum"):
        glass = Expedit((4, 4), tau=0.02, k=4, normalise=normalise)
        with hourglass(dino, glass, after=9, taps=(11,)) as seen:
            outputs[normalise] = dino(x).last_hidden_state, seen.taps[11]
    (out, before), (want, convex) = outputs["l2"], outputs["sum"]
    ratio = before.norm(dim=2) / convex.norm(dim=2)
    assert (ratio[:, 1:] > 1.2).all() and (ratio[:, 0] == 1).all()
    torch.testing.assert_close(out, want, atol=1e-3, rtol=0)


def test_tome_gives_back_what_a_token_was_merged_into(vit):
    x = torch.randn(1, 4, 4, 3)
    x[:, :, 1::2] = x[:, :, ::2]                              # each token twice, side by side
    tokens, restore = Merging(8).reduce(x)
    torch.testing.assert_close(restore(tokens), x.flatten(1, 2))


def test_hooks_are_removed_after_an_error_and_not_copied(vit):
    with pytest.raises(RuntimeError, match="mine"), hourglass(vit, GLASS, after=2):
        raise RuntimeError("mine")
    assert num_hooks(vit) == 0
    images = torch.rand(1, 3, 64, 64)
    want = vit(images)
    with hourglass(vit, GLASS, after=2):
        assert torch.equal(copy.deepcopy(vit)(images), want)
        assert not torch.equal(vit(images), want)
        with pytest.raises(ValueError, match="in an hourglass already"):
            with hourglass(vit, GLASS, after=1):
                pass
        with pytest.raises(ValueError, match=r"grid=\(4, 4\) but the map has 3 x 4"):
            vit(torch.rand(1, 3, 24, 32))
        assert vit(torch.rand(1, 3, 32, 48)).isfinite().all()
    assert num_hooks(vit) == 0 and torch.equal(vit(images), want)


@torch.enable_grad()
def test_gradients_reach_the_weights(vit):
    for reduction in REDUCTIONS.values():
        vit.zero_grad()
        with hourglass(vit, reduction, after=2):
            vit.tokens(torch.rand(1, 3, 64, 64))[:, 1:].square().mean().backward()
        for name, parameter in vit.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


WRONG = {
    "after=4: needs an integer from 0 to 3": dict(after=4),
    "after=1.5": dict(after=1.5),
    "taps=9": dict(taps=(9,)),
    "taps=2: needs numbers": dict(taps=2),
    "restore='no'": dict(restore="no"),
    "reduction=None needs a method": dict(reduction=None),
    "model=Linear has no list of blocks": dict(model=nn.Linear(2, 2)),
}


@pytest.mark.parametrize("told", WRONG)
def test_bad_arguments(vit, told):
    given = dict(model=vit, reduction=GLASS, after=2) | WRONG[told]
    with pytest.raises(ValueError, match=told), hourglass(**given):
        pass
    assert num_hooks(vit) == 0


def test_dropping_gives_each_place_the_nearest_that_is_left():
    features = torch.arange(30.0).reshape(1, 5, 6, 1)
    tokens, back = Dropping(7, seed=3).reduce(features)
    kept = [divmod(int(value), 6) for value in tokens.flatten()]
    assert len(set(kept)) == 7 and kept == sorted(kept)
    full = back(tokens).reshape(5, 6)
    for row in range(5):
        for col in range(6):
            apart = [(row - r) ** 2 + (col - c) ** 2 for r, c in kept]
            r, c = kept[apart.index(min(apart))]
            assert full[row, col] == features[0, r, c, 0]
    assert torch.equal(Dropping(7, seed=3).reduce(features)[0], tokens)
    assert not torch.equal(Dropping(7, seed=4).reduce(features)[0], tokens)
    whole, same = Dropping(1.0).reduce(features)
    assert torch.equal(same(whole), features.flatten(1, 2))


def test_models_it_cannot_shorten():
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, num_layers=2, num_heads=3)
    turned = ViT(**sizes, pos="rope")
    with hourglass(turned, Pooling((2, 2)), after=1):
        with pytest.raises(ValueError, match="rotary tables or a mask"):
            turned(torch.rand(1, 3, 32, 32))
    bare = nn.Module()
    bare.blocks = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="no convolution"), hourglass(bare, GLASS, after=0):
        pass


# ------------------------------------------------------------------------------ the real DINOv2
@pytest.fixture(scope="module")
def real():
    told = hub.real_missing("dinov2")
    if told:
        pytest.skip(told)
    model = hub.real("dinov2")
    pictures = torch.stack(list(photographs(size=224, names=["astronaut", "cat"]).values()))
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return model, (pictures - mean) / std


def likeness(real, want, reduction, after):
    """Mean cosine of patch features with the hourglass, and without it: want."""
    model, pixels = real
    with hourglass(model, reduction, after):
        got = model(pixels).last_hidden_state[:, 1:]
    return F.cosine_similarity(got, want[:, 1:], dim=-1).mean().item()


def test_on_real_dinov2_it_beats_pooling_and_merging(real):
    """4 of 12 blocks on 256 tokens, 8 on 100. DINOv2's tokens have squared norms of about 1 there,
    so tau is 20: Segmenter's 0.02, made for much longer ones, mixes all k centres evenly."""
    model, pixels = real
    want = model(pixels).last_hidden_state
    glass = Expedit((10, 10), tau=20.0, normalise="sum")
    like = {
        "expedit": likeness(real, want, glass, after=4),
        "merging": likeness(real, want, Merging(100), after=4),
        "pooling": likeness(real, want, Pooling((10, 10)), after=4),
        "untuned": likeness(real, want, Expedit((10, 10), normalise="sum"), after=4),
    }
    assert like["expedit"] > 0.9, like
    assert like["expedit"] > like["merging"] > like["pooling"] > like["untuned"], like
    later = likeness(real, want, glass, after=8)
    assert later > like["expedit"], (later, like)                # fewer blocks on few tokens


def test_real_dinov2_with_all_tokens_is_itself(real):
    model, pixels = real
    with hourglass(model, Expedit((16, 16)), after=4):
        out = model(pixels).last_hidden_state
    assert torch.equal(out, model(pixels).last_hidden_state)
