"""MiniLM as a tower of texts: a tiny one of the same class, and the real one."""

import pytest
import torch

from vtlib.hub import MiniLMText, minilm_text, real_missing
from vtlib.vlm import ImageText

transformers = pytest.importorskip("transformers")


class Letters:
    """A tokenizer with one id a letter, called as transformers' are."""

    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        rows = [[ord(letter) % 50 + 1 for letter in text][:max_length] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return transformers.BatchEncoding(
            {"input_ids": ids, "attention_mask": (ids > 0).long()}
        )


@pytest.fixture
def tower():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )
    return MiniLMText(transformers.BertModel(config), Letters(), most=20)


def test_vectors(tower):
    found = tower(["a cup", "a long red cup", "a cup"])
    assert found.shape == (3, 16) and torch.equal(found[0], found[2])
    assert torch.allclose(found.norm(dim=1), torch.ones(3))
    assert torch.allclose(tower(["a long red cup"])[0], found[1])
    tower.known.clear()                                       # alone: without the other's padding
    assert torch.allclose(tower(["a cup"])[0], found[0], atol=1e-5)
    assert torch.equal(tower(["a" * 30]), tower(["a" * 20]))


def test_it_is_frozen_and_in_no_state_dict(tower):
    encoder = ImageText(tower, img_size=16, embed_dim=16, num_layers=1, num_heads=2, joint_dim=8)
    assert not [name for name in encoder.state_dict() if name.startswith("text.")]
    encoder.train()
    encoder(torch.rand(2, 3, 16, 16), ["a cup", "cups"]).sum().backward()
    assert encoder.text_proj.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in tower._read[0].parameters())
    assert not tower._read[0].training
    with pytest.raises(ValueError, match="list of at least one"):
        tower("a cup")


@pytest.mark.skipif(bool(real_missing("minilm")), reason="needs `make real`")
def test_the_real_one():
    vectors = minilm_text()(["a red apple", "a green apple", "a fire engine"])
    cosine = vectors @ vectors.mT
    assert cosine[0, 1] > cosine[0, 2] + 0.2 and vectors.shape == (3, 384)
