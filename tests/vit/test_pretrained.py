"""The shipped ViT: loads, knows its classes, and still reaches its score on a fixed set of
pictures."""

import torch

from vtlib.data import EASY, EmojiWorld
from vtlib.vit import vit_emoji

FLOOR = {"noto": 0.75, "twemoji": 0.72}


def test_classes_and_size():
    model, classes = vit_emoji()
    assert not model.training and len(classes) == len(set(classes)) == 48
    assert tuple(classes[:12]) == EASY
    assert model(torch.rand(1, 3, 96, 96)).shape == (1, 48)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_loading_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    vit_emoji()
    assert torch.equal(before, torch.random.get_rng_state())


def test_accuracy_on_held_out_backgrounds():
    model, classes = vit_emoji()
    for artist, floor in FLOOR.items():
        world = EmojiWorld(96, "test", artist=artist, pictograms=classes)
        images, labels = world.classify(96, seed=1, scale=(0.5, 0.9))
        with torch.no_grad():
            accuracy = (model(images).argmax(1) == labels).float().mean().item()
        assert accuracy > floor, (artist, accuracy)


def test_attention_maps_are_probabilities():
    model, classes = vit_emoji()
    with torch.no_grad():
        logits, attns = model(torch.rand(2, 3, 96, 96), return_attn=True)
    assert len(attns) == 6 and attns[0].shape == (2, 4, 145, 145)
    assert torch.allclose(attns[-1].sum(-1), torch.ones(2, 4, 145), atol=1e-5)
