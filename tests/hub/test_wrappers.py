"""Models inside something else: a PEFT model, a pipeline."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor

from tests.hub.tiny import PROMPT, greedy, hooks, make_llava
from vtlib.hub import prune
from vtlib.hub.pruning import unwrapped


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# ------------------------------------------------------------------------------------------ PEFT
class Lowered(torch.nn.Module):
    """A linear layer with an adapter of low rank beside it: W x + B A x."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base, generator = base, torch.Generator("cpu").manual_seed(0)
        self.down = torch.nn.Parameter(torch.randn(rank, base.in_features, generator=generator))
        self.up = torch.nn.Parameter(torch.randn(base.out_features, rank, generator=generator))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Tuner(torch.nn.Module):
    """What peft puts around a model: it replaces linear layers and forwards everything."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        layers = [layer.self_attn for layer in model.model.language_model.layers]
        layers += [layer.self_attn for layer in model.model.vision_tower.encoder.layers]
        for attention in layers:
            attention.q_proj = Lowered(attention.q_proj)

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class Peft(torch.nn.Module):
    """As peft.PeftModel: `get_base_model` gives the model inside, `generate` goes through."""

    def __init__(self, model):
        super().__init__()
        self.base_model = Tuner(model)

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)

    def generate(self, **kwargs):
        return self.get_base_model().generate(**kwargs)


@pytest.mark.parametrize("method", ["fastervlm", "divprune", "fastv", "transprune"])
def test_inside_a_peft_model(method):
    wrapped = Peft(make_llava())
    inner = wrapped.get_base_model()
    assert unwrapped(wrapped) is inner and unwrapped(inner) is inner
    full, before = wrapped(**PROMPT).logits, hooks(wrapped)
    with prune(inner, method, 4):
        want, words = inner(**PROMPT).logits, greedy(inner, PROMPT)
    with prune(wrapped, method, 4) as pruned:
        assert torch.equal(wrapped(**PROMPT).logits, want)
        assert torch.equal(greedy(wrapped, PROMPT), words)
        assert pruned.lengths[-1] == 11
        with pytest.raises(ValueError, match="is being pruned already"), prune(inner, method, 4):
            pass
    assert hooks(wrapped) == before and torch.equal(wrapped(**PROMPT).logits, full)
    plain = make_llava()
    assert not torch.equal(plain(**PROMPT).logits, full)  # the adapters do something


def test_adapters_train_in_a_block():
    """Only the adapters have gradients, in the decoder and in the tower."""
    wrapped = Peft(make_llava()).train()
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(name.endswith((".up", ".down")))
    labels = PROMPT["input_ids"].masked_fill(PROMPT["input_ids"] == 99, -100)
    with torch.enable_grad(), prune(wrapped, "divprune", 4):
        wrapped(**PROMPT, labels=labels).loss.backward()
    for name, parameter in wrapped.named_parameters():
        behind = "vision_tower.encoder.layers.3." in name  # the features: vision_feature_layer=-2
        trained = name.endswith((".up", ".down")) and not behind
        assert (parameter.grad is not None) == trained, name
    assert all(p.grad.abs().max() > 0 for p in wrapped.parameters() if p.grad is not None)


# -------------------------------------------------------------------------------------- pipeline
def make_pipeline():
    words = {f"w{i}": i for i in range(2, 99)}
    vocabulary = {"<pad>": 0, "<s>": 1, **words, "<image>": 99}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    size = dict(height=56, width=56)
    processor = LlavaProcessor(
        image_processor=kind(size=dict(shortest_edge=56), crop_size=size),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    model = make_llava()
    return transformers.pipeline("image-text-to-text", model=model, processor=processor)


def ask(pipe, images, text, **options):
    """Token ids of each answer."""
    found = pipe(
        images=images,
        text=text,
        max_new_tokens=4,
        do_sample=False,
        return_tensors=True,
        **options,
    )
    flat = [one[0] if isinstance(one, list) else one for one in found]
    return [one["generated_token_ids"].tolist() for one in flat]


def test_inside_a_pipeline():
    pipe = make_pipeline()
    draw = np.random.default_rng(0)
    pictures = [
        Image.fromarray(draw.integers(0, 256, (56, 56, 3), dtype=np.uint8)) for _ in range(2)
    ]
    one = ([pictures[0]], "w12 <image> w5 w7")
    two = ([[picture] for picture in pictures], ["w12 <image> w5 w7", "w12 <image> w9 w3"])
    full = ask(pipe, *one)
    before = hooks(pipe.model)
    answers = []
    for given in (pipe, pipe.model):
        with prune(given, "divprune", 4) as pruned:
            answers.append((ask(pipe, *one), ask(pipe, *two), ask(pipe, *two, batch_size=2)))
            assert pruned.lengths == [7] * 5 and len(pruned.columns) == 2
    assert answers[0] == answers[1]
    [[single], both, batch] = answers[0]
    assert both == batch and both[0] == single != full[0]
    assert hooks(pipe.model) == before and ask(pipe, *one) == full
