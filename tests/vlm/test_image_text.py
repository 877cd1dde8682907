"""The image-text encoder: both towers, patches and regions in the joint space, the contrast."""

import math

import pytest
import torch

from vtlib import checkpoints
from vtlib.data import EASY
from vtlib.vlm import ImageText, WordText, contrast, image_text_emoji, pretrained
from vtlib.vlm.image_text import split_words

WORDS = ["a", "and", "apple", "blue", "cup", "red"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    text = WordText(WORDS, embed_dim=16, num_layers=1, num_heads=2, context=5)
    return ImageText(
        text, img_size=32, embed_dim=24, num_layers=3, num_heads=3, joint_dim=8
    ).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(1))


def unit(x):
    return torch.allclose(x.norm(dim=-1), torch.ones(x.shape[:-1]), atol=1e-5)


def test_shapes_and_lengths(model, images):
    texts = ["a red apple", "blue cup", "cup"]
    assert model.image(images).shape == (2, 8) and unit(model.image(images))
    assert model.text_vectors(texts).shape == (3, 8) and unit(model.text_vectors(texts))
    for how in ("value", "hidden"):
        dense = model.dense(images, how)
        assert dense.shape == (2, 4, 5, 8) and unit(dense)
    logits = model(images, texts)
    cosine = model.image(images) @ model.text_vectors(texts).mT
    assert torch.allclose(logits, 10 * cosine, atol=1e-5)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert torch.allclose(model(images, texts), 100 * cosine, atol=1e-4)


def test_texts_do_not_see_each_others_padding(model):
    alone, among = model.text(["cup"]), model.text(["cup", "a red apple and"])
    assert torch.allclose(alone[0], among[0], atol=1e-6)
    assert not torch.allclose(model.text(["red cup"]), model.text(["cup red"]), atol=1e-4)


def test_words(model):
    assert split_words("A red-apple's CUP 3") == ["a", "red", "apple", "s", "cup", "3"]
    assert model.text.encode(["red dog"]).tolist() == [[7, 1]]
    assert model.text.known("a red cup") and not model.text.known("a red dog")
    assert torch.equal(model.text(["dog"]), model.text(["cat"]))


def test_templates_are_averaged(model):
    two = model.text_vectors(["red cup"], templates=("{}", "a {}"))
    each = torch.stack([model.text_vectors(["red cup"]), model.text_vectors(["a red cup"])])
    assert torch.allclose(two, torch.nn.functional.normalize(each.mean(0), dim=-1), atol=1e-6)


def test_value_is_the_last_block_without_attention(model, images):
    """With attention weights of the identity both ways are one: ask it of a single patch."""
    one = images[:, :, :8, :8]
    last = model.vit.blocks[-1]
    x, _ = model.vit.embed(one)
    for block in model.vit.blocks[:-1]:
        x = block(x)
    patch = x[:, 1:]
    expected = model._joint(model.vit.norm(last(patch)))     # alone it attends to itself
    assert torch.allclose(model.dense(one)[:, 0], expected, atol=1e-5)


def test_a_region_of_everything_is_the_image(model, images):
    """A copy of [CLS] reads the same patches, and itself: equal for any number of blocks."""
    everything = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    for blocks in (1, 2, 3, None):
        found = model.region(images, everything, blocks=blocks)[:, 0]
        assert torch.allclose(found, model.image(images), atol=1e-5)


def test_regions(model, images):
    masks = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    masks[:, 0, :2], masks[:, 1, 2:] = True, True            # the third region is empty
    for how in ("mask", "mean"):
        both = model.region(images, masks, how)
        assert both.shape == (2, 3, 8) and unit(both[:, :2]) and not both[:, 2].any()
        assert torch.allclose(model.region(images, masks[:, 1:2], how), both[:, 1:2], atol=1e-5)
        assert not torch.allclose(both[:, 0], both[:, 1], atol=1e-3)
    mean = model.dense(images)[:, :2].flatten(1, 2).mean(1)
    assert torch.allclose(
        model.region(images, masks, "mean")[:, 0], mean / mean.norm(dim=-1, keepdim=True), atol=1e-5
    )


def test_a_region_with_one_block_reads_nothing_outside(model, images):
    """What lies outside reaches it through the patches only, and they are done before the block."""
    masks = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    masks[:, 0, 0, 0] = True
    x, _ = model.vit.embed(images)
    for block in model.vit.blocks[:-1]:
        x = block(x)
    small = model.vit.blocks[-1](x[:, :2])[:, 0]             # [CLS] and the one patch
    expected = model._joint(model.vit.norm(small))
    assert torch.allclose(model.region(images, masks, blocks=1)[:, 0], expected, atol=1e-5)


def test_contrast_by_hand():
    assert contrast(torch.zeros(2, 2)).item() == pytest.approx(math.log(2))
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    rows = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-2))) / 2
    columns = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2
    assert contrast(logits).item() == pytest.approx((rows + columns) / 2)
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert contrast(torch.zeros(2, 2), everything).item() == pytest.approx(math.log(2))
    assert contrast(torch.tensor([[9.0, 9.0], [0.0, 0.0]]), everything).item() > math.log(2)


def test_gradients(model, images):
    model.train()
    loss = contrast(model(images, ["red cup", "blue apple"]))
    loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name


def test_bad_input(model, images):
    everything = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    for call, message in (
        (lambda: model(images, "cup"), "list of at least one"),
        (lambda: model.text_vectors([]), "list of at least one"),
        (lambda: model.text_vectors([3]), "needs to be a str"),
        (lambda: model.text_vectors(["!"]), "0 words"),
        (lambda: model.text_vectors(["a a a a a a"]), "6 words"),
        (lambda: model.text_vectors(["cup"], templates=("a",)), "place"),
        (lambda: model.dense(images, "key"), "how='key'"),
        (lambda: model.dense(images[..., :30]), "multiple"),
        (lambda: model.image(images[:, :1]), "images"),
        (lambda: model.region(images, everything, "max"), "how='max'"),
        (lambda: model.region(images, everything.float()), "masks is"),
        (lambda: model.region(images, [1]), "masks is"),
        (lambda: model.region(images, everything[..., :4]), "masks is"),
        (lambda: model.region(images, everything[:1]), "2 images but 1 masks"),
        (lambda: model.region(images, everything, blocks=4), "blocks=4"),
        (lambda: contrast(torch.zeros(2, 3)), "needs"),
        (lambda: contrast(torch.zeros(2, 2), torch.ones(2, 2)), "bool"),
        (lambda: contrast(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)), "right pair"),
        (lambda: WordText(["a", "a"]), "twice"),
        (lambda: ImageText(model.text, num_layers=0), "num_layers"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_meta_and_state_dict(model):
    with torch.device("meta"):
        text = WordText(WORDS, embed_dim=16, num_layers=1, num_heads=2, context=5)
        again = ImageText(text, img_size=32, embed_dim=24, num_layers=3, num_heads=3, joint_dim=8)
    assert again.image(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 8)
    again.load_state_dict(model.state_dict(), assign=True)


# --------------------------------------------------------------------------------- what is shipped
def test_what_it_was_taught():
    trained = pretrained.trained()
    assert set(EASY) <= set(trained) and not set(pretrained.NEW) & set(trained)
    taught = {word for name in trained for word in split_words(name)}
    assert taught.issuperset(word for name in pretrained.NEW for word in split_words(name))


def test_captions():
    part = pretrained.pictures(pretrained.world("test", ["red apple"]), 8, seed=1, general=0)
    assert set(part.captions) <= {"a red apple", "a red apple and a red apple"}
    part = pretrained.pictures(pretrained.world("test", ["red apple"]), 4, seed=1, general=1)
    assert all("food fruit" in caption for caption in part.captions)


def test_the_shipped_encoder_names_what_it_sees():
    encoder = image_text_emoji()
    score = checkpoints.info("image_text_emoji")["score"]
    assert score["places"]["region mask 4"] > score["places"]["region mean"] + 0.3
    assert score["places"]["patch value"] > score["places"]["patch hidden"] + 0.1
    images, labels = pretrained.world("test", list(EASY)).classify(96, 5, scale=(0.5, 0.75))
    with torch.no_grad():
        found = (encoder.image(images) @ encoder.text_vectors(list(EASY)).mT).argmax(1)
    assert (found == labels).float().mean() > 0.6
