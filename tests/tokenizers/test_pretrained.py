"""The shipped tokenizers: what their headers say is so, codes are in use, pictures come back."""

import pytest
import torch

from vtlib import checkpoints
from vtlib.data import EmojiWorld
from vtlib.quantize.kl import Sampled
from vtlib.superres.quality import psnr
from vtlib.tokenizers import pretrained

LEAST = {"usage": 0.5, "psnr": 17.5, "psnr, tokens in one dimension": 15.5}
"""Of any shipped tokenizer: a share of its codes, decibels on held-out scenes."""


@pytest.fixture(scope="module")
def images():
    return EmojiWorld(64, "test", artist="both").scenes(16, 990_000, scale=(0.2, 0.7)).images


@pytest.mark.parametrize("name", pretrained.names())
@torch.no_grad()
def test_what_the_header_says(name, images):
    tokenizer, header = pretrained.pretrained(name), checkpoints.info(f"tokenizer_{name}")
    assert not tokenizer.training and header["steps"] == 2000 and header["seed"] == 0
    out, score = tokenizer(images), header["score"]
    got = psnr(out.images.clamp(0, 1), images, y=False).mean().item()
    ordered = score.get("by tokens")
    assert abs(got - score["scenes"]["psnr"]) < 1.5
    assert got > LEAST["psnr, tokens in one dimension" if ordered else "psnr"]
    if ordered:
        gained = torch.tensor(list(ordered.values())).diff()
        assert (gained > -0.05).all(), "more tokens do not make the picture worse"
        assert gained[-1] > 0.3, "the last half of the tokens says something"
        assert ordered[str(out.quantized.indices.shape[1])] == pytest.approx(
            score["scenes"]["psnr"], abs=0.01
        )
    if not isinstance(out.quantized, Sampled):
        assert torch.equal(tokenizer.decode_indices(out.quantized.indices), out.images)
        assert tokenizer.bits(out.quantized) == pytest.approx(score["bits"], rel=1e-3)
        usage = score["usage"]
        assert min(usage if isinstance(usage, list) else [usage]) > LEAST["usage"]
    assert pretrained.pretrained(name).state_dict().keys() == tokenizer.state_dict().keys()


def test_no_such_tokenizer():
    with pytest.raises(ValueError, match="name='vqgan': there is no such tokenizer, only"):
        pretrained.pretrained("vqgan")
