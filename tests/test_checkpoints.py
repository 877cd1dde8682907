"""Every shipped file through the one loader and the one header; nothing outside moves."""

import json
import random
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.settings import default_dtype, meta_device
from vtlib import checkpoints, data, tokenizers
from vtlib.generation import Denoiser
from vtlib.hub import dino
from vtlib.multiscale import pretrained as multiscale
from vtlib.multiscale.tokenformer import TokenFormer
from vtlib.pruning.crossget_encoder import CrossGETCLIP
from vtlib.pruning.pretrained import crossget_clip
from vtlib.segmentation import (
    CamouflageSegmenter,
    CASWiT,
    LinearSegmenter,
    Segmenter,
    SplitMatching,
    oneformer_small,
)
from vtlib.segmentation import pretrained as segmentation
from vtlib.segmentation.linear_segmenter import tuned_part
from vtlib.superres import pretrained as superres
from vtlib.superres.catanet import CATANet
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.spynet import SPyNet
from vtlib.superres.uplift import UPLiFT
from vtlib.tokenizers import HAR, MaskedGenerator
from vtlib.vit import ViT, vit_emoji
from vtlib.vlm import TinyVLM, image_text_emoji
from vtlib.vlm.image_text import emoji_encoder

BUILD = {
    "camouflage": CamouflageSegmenter, "caswit": CASWiT,
    "catanet": CATANet, "crossget": CrossGETCLIP, "diffusion": Denoiser,
    "ett": tokenizers.ETT, "image": emoji_encoder,
    "oneformer": oneformer_small.small, "recurrent": superres.video, "restok": HAR,
    "split": SplitMatching, "spynet": SPyNet,
    "tinyvlm": TinyVLM,
    "tokenbridge": MaskedGenerator, "tokenformer": TokenFormer,
    "ttvsr": superres.video, "uplift": UPLiFT, "vit": ViT,
    "vwformer": Segmenter,
}
NAMES = checkpoints.names()
LOADERS = (
    segmentation.camouflage,
    multiscale.emoji, vit_emoji, TinyVLM.pretrained, crossget_clip, superres.spynet_emoji,
    superres.ttvsr_small, superres.recurrent_small, superres.catanet_small, superres.uplift_emoji,
    segmentation.diffusion_camouflage, segmentation.vwformer_emoji,
    segmentation.split_matching,
    segmentation.oneformer_emoji, segmentation.caswit_emoji,
    segmentation.segmenter_emoji,
    image_text_emoji,
)


def build(name):
    if name == "tinyvlm_dino":
        return dino.reader
    if name.startswith("tokenizer_"):
        return getattr(tokenizers, checkpoints.info(name)["build"])
    if name.startswith("mixed_"):
        return multiscale.KINDS[checkpoints.info(name)["kind"]]
    if name.startswith("uplift_emoji_cross"):
        return CrossAttentionUpsampler
    if name == "segmenter_emoji":
        return lambda **config: tuned_part(
            LinearSegmenter(**config), checkpoints.info(name)["frozen"]
        )
    return BUILD[name.split("_")[0]]


def random_state():
    return torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


def same_random_state(before):
    now = random_state()
    return torch.equal(now[0], before[0]) and now[1:] == before[1:]


SEVERAL = sorted(
    file.name.removesuffix("_seeds.json")
    for file in (checkpoints.root() / "checkpoints").glob("*_seeds.json")
)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_loads_and_moves_nothing(name):
    how, stored = checkpoints.info(name), load_file(checkpoints.path(name))
    assert {"config", "command", "seed", "score"} <= set(how)
    script = re.search(r"python (train/\w+\.py)", how["command"]).group(1)
    assert (data.root().parent / script).is_file()
    assert isinstance(how["config"], dict) and how["score"]
    before = random_state()
    model = checkpoints.load(name, build(name))
    assert same_random_state(before)
    state = model.state_dict()
    assert state.keys() == stored.keys() and not any(m.training for m in model.modules())
    for key, value in state.items():
        want = stored[key].float() if stored[key].is_floating_point() else stored[key]
        assert torch.equal(value, want) and value.dtype == want.dtype and value.device.type == "cpu"
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def everything(model):
    """Parameters and all buffers, also those that no file keeps."""
    return [*model.named_parameters(), *model.named_buffers()]


@pytest.mark.parametrize("name", NAMES)
def test_torchs_defaults_change_nothing(name):
    plain = everything(checkpoints.load(name, build(name)))
    before = random_state()
    with meta_device(), default_dtype():
        with torch.inference_mode():
            model = checkpoints.load(name, build(name))
        assert torch.get_default_dtype() == torch.float64 and torch.empty(0).is_meta
    assert same_random_state(before)
    for (key, value), (other, want) in zip(everything(model), plain, strict=True):
        assert key == other and torch.equal(value, want) and value.dtype == want.dtype
        assert not value.is_inference()


@pytest.mark.parametrize("load", LOADERS)
def test_the_families_loaders_move_nothing(load):
    before = random_state()
    args = ("crossvit",) if load is multiscale.emoji else ()
    load(*args)
    assert same_random_state(before)


def test_a_device_is_followed():
    model = checkpoints.load("spynet_emoji", SPyNet, "meta")
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("read", [
    checkpoints.info, checkpoints.path, lambda name: checkpoints.load(name, ViT),
])
def test_unknown_names_list_the_known_ones(read):
    with pytest.raises(ValueError, match="name='vit_emojy'.* vit_emoji") as error:
        read("vit_emojy")
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize("name", SEVERAL)
def test_seeds_are_trainings_that_differ_in_the_seed_alone(name):
    table = checkpoints.seeds(name)
    shipped = checkpoints.info(name) if name in NAMES else table[0]
    assert list(table) == list(range(len(table)))
    assert len(table) > (name in NAMES)                      # scores alone may be of one training
    for seed, row in table.items():
        assert row["seed"] == seed and {"command", "score", "minutes"} <= row.keys()
        assert shape(row["score"]) == shape(shipped["score"])
        assert without_seed(row["command"]) == without_seed(shipped["command"])
    assert all(shipped[key] == value for key, value in table[0].items() if key in shipped)
    assert len({json.dumps(row["score"]) for row in table.values()}) == len(table)


def without_seed(command):
    return re.sub(r" --seed \d+", "", command)


def shape(value):
    """Keys and lengths without the numbers."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else None


def test_seeds_of_what_was_trained_once():
    assert SEVERAL
    for name in ("vit_emoji", "vit_emojy", "../checkpoints/catanet_small"):
        with pytest.raises(ValueError, match=f"name='{name}'.*several seeds") as error:
            checkpoints.seeds(name)
        assert all(known in str(error.value) for known in SEVERAL)


def test_only_the_first_seeds_weights_are_shipped():
    assert all(checkpoints.info(name)["seed"] in (0, [0, 1]) for name in NAMES)


def test_a_file_of_ones_own(tmp_path):
    file, config = tmp_path / "mine.safetensors", dict(in_features=2, out_features=3)
    weights = nn.Linear(**config).half().state_dict()
    header = dict(config=config, command="mine", seed=3, score={"loss": 0.5}, steps=7)
    save_file(weights, file, metadata={key: json.dumps(value) for key, value in header.items()})
    assert checkpoints.info(file) == header
    model = checkpoints.load(file, nn.Linear)
    assert torch.equal(model.weight, weights["weight"].float())
    save_file(weights, file, metadata={"config": json.dumps(config)})
    with pytest.raises(ValueError, match="mine.safetensors.*no command, seed, score"):
        checkpoints.info(file)
    with pytest.raises(ValueError, match="nowhere"):
        checkpoints.info(tmp_path / "nowhere")


def test_a_failing_constructor_leaves_the_defaults_as_they_were():
    def fails(**config):
        raise RuntimeError("no")
    with default_dtype():
        with pytest.raises(RuntimeError, match="no"):
            checkpoints.load("spynet_emoji", fails)
        assert torch.get_default_dtype() == torch.float64


def linear(folder, **header):
    """A file of the smallest net."""
    file, config = folder / "net.safetensors", dict(in_features=2, out_features=3)
    header = dict(config=config, command="mine", seed=3, score=1) | header
    metadata = {key: json.dumps(value) for key, value in header.items()}
    save_file(nn.Linear(**config).state_dict(), file, metadata=metadata)
    return file


@pytest.mark.parametrize("build, message", [
    (nn.Conv2d, "does not take the config of name='.*net.safetensors', .*in_features"),
    (5, "build is a int but needs to be a class"),
    (lambda **config: nn.Linear(4, 4), "another net than .*net.safetensors.* weight"),
    (lambda **config: nn.Linear(2, 3, bias=False), "another net .*bias"),
    (lambda **config: config, "made a dict: needs a torch module"),
])
def test_a_build_that_makes_another_net_is_named(build, message, tmp_path):
    with pytest.raises(ValueError, match=f"^build=.*{message}" if build != 5 else message):
        checkpoints.load(linear(tmp_path), build)


def test_files_and_devices_that_are_none(tmp_path):
    file = tmp_path / "text.safetensors"
    file.write_text("hello")
    with pytest.raises(ValueError, match="text.safetensors'.* no safetensors file"):
        checkpoints.load(file, nn.Linear)
    with pytest.raises(ValueError, match="^device='gpu'"):
        checkpoints.load(linear(tmp_path), nn.Linear, "gpu")
    with pytest.raises(ValueError, match="does not take the config .*, 7:"):
        checkpoints.load(linear(tmp_path, config=7), nn.Linear)
    weights = nn.Linear(2, 3).state_dict()
    save_file(weights, file, metadata=dict.fromkeys(checkpoints.HEADER, "no json"))
    with pytest.raises(ValueError, match="its header has 'no json', which is no JSON"):
        checkpoints.info(file)


def test_the_folder_is_known_in_one_place():
    assert data.root is checkpoints.root and data.checkpoint is checkpoints.path


@pytest.mark.parametrize("name", multiscale.SHIPPED)
def test_the_plan_of_a_model_is_what_was_trained(name):
    kind, arguments = multiscale.config(name)
    how = checkpoints.info(multiscale.stem(name))
    assert (how["kind"], how["config"]) == (kind, json.loads(json.dumps(arguments)))
