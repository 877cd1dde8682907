"""The shipped heads of camouflage: they find what no pixel's value shows, and name it."""

import pytest
import torch

from vtlib.data.textures import SEEN, TextureWorld, vectors
from vtlib.segmentation import foreground, pretrained
from vtlib.segmentation.camouflage_inputs import denoiser_maps, vit_maps
from vtlib.vit import vit_emoji

SIZE = 64
PICTURES = 48


@pytest.fixture(scope="module")
def scenes():
    return TextureWorld(SIZE, "test").scenes(PICTURES, 77)


def answer(variant, scenes, text):
    head = pretrained.camouflage(variant)
    with torch.no_grad():
        if variant == "vit":
            maps = vit_maps(vit_emoji()[0], scenes.images)
        else:
            maps = denoiser_maps(pretrained.diffusion_camouflage(), scenes.images)
        return head(*maps, text, size=(32, 32))


@pytest.mark.parametrize("variant, least", [(None, 0.65), ("vit", 0.38)])
def test_objects_of_unseen_silhouettes(variant, least, scenes):
    """Their texture alone tells them from the ground: mean and variance are equal."""
    out = answer(variant, scenes, vectors()[list(SEEN)])
    found, there = foreground(out, (SIZE, SIZE)) > 0.5, scenes.instance > 0
    assert (found & there).sum() / (found | there).sum() > least
    torch.testing.assert_close(out.scores.sum(-1), torch.zeros(PICTURES, 8), atol=1e-5, rtol=0)


def test_names(scenes):
    """Of the query that fits an object best; other lists put the classes elsewhere."""
    text = vectors()[list(SEEN)]
    out = answer(None, scenes, text)
    masks = torch.nn.functional.interpolate(out.last.mask_logits, size=(SIZE, SIZE)) > 0
    masks, true = masks.flatten(2).float(), scenes.masks.flatten(2).float()
    both = masks @ true.mT                                                           # b n k
    fit = both / (masks.sum(2)[..., None] + true.sum(2)[:, None] - both).clamp(min=1)
    index = fit.argmax(1)[..., None].expand(-1, -1, len(SEEN))
    said = torch.tensor(SEEN)[out.last.class_logits[..., :-1].gather(1, index).argmax(-1)]
    assert (said == scenes.label)[scenes.valid].float().mean() > 0.6
    swapped = answer(None, scenes, text.flip(0)).last.class_logits[:, :, :-1].flip(2)
    torch.testing.assert_close(swapped, out.last.class_logits[:, :, :-1], atol=0.05, rtol=0.01)


def test_other_variants_are_refused():
    with pytest.raises(ValueError, match="variant='zero'"):
        pretrained.camouflage("zero")
