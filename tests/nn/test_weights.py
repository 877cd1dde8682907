"""Checkpoints as people have them: wrappers, prefixes, both kinds of files; what does not fit."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vtlib.hub import load_official, official
from vtlib.multiscale import tokenformer
from vtlib.nn import load_weights, unwrap
from vtlib.superres import catanet, ttvsr, uplift


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


WRAPS = {
    "bare": lambda s: s,
    "params": lambda s: {"params": s},
    "params_ema": lambda s: {"params": prefixed("x.", s), "params_ema": s},
    "state_dict": lambda s: {"meta": {"epoch": 3}, "state_dict": s},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3},
    "module.": lambda s: prefixed("module.", s),
    "net_g.": lambda s: {**prefixed("net_g.", s), "net_d.weight": torch.ones(1)},
    "generator.": lambda s: {**prefixed("generator.", s), "step_counter": torch.ones(1)},
    "all": lambda s: {"model": {"state_dict": prefixed("module.generator.", s)}},
}


FLAT = ("bare", "module.", "net_g.", "generator.")             # safetensors hold no wrappers
FILES = [(name, "pth") for name in WRAPS] + [(name, "safetensors") for name in FLAT]


@pytest.mark.parametrize("wrap, ending", FILES)
def test_files_load_whatever_the_trainer_put_around_the_weights(wrap, ending, tmp_path):
    want = net(1).state_dict()
    state, file = WRAPS[wrap](want), tmp_path / f"net.{ending}"
    if ending == "pth":
        torch.save(state, file)
    else:
        save_file({key: value.clone() for key, value in state.items()}, file)
    got = load_official(net(2), file).state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


CONVERSIONS = {
    "ttvsr": ttvsr.convert_official,
    "timm_crossvit": official.convert_timm_crossvit,
    "crossformer": official.convert_crossformer,
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS.keys())
def test_every_conversion_opens_the_same_wrappers(convert, wrap):
    want = net().state_dict()
    got = convert(wrap(want))
    assert got.keys() == want.keys() and all(got[key] is want[key] for key in want)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_tokenformer_opens_them_too(wrap):
    state = {
        "word_embeddings.weight": torch.ones(4, 2),
        "3.attention.query.key_param_tokens": torch.ones(4, 2),
    }
    got = tokenformer.convert_official(wrap(state))
    assert set(got) == {"embedding.weight", "blocks.0.attention.query.key_param_tokens"}


@pytest.mark.parametrize("build", [
    lambda: catanet.CATANet(2, 8, 1, 4, 8, 2, 6, 4, 8),
    lambda: uplift.UPLiFT(4, 4, (4, 8), (8, 8), num_neighbours=5),
])
def test_releases_whose_names_agree_load_without_conversion(build, tmp_path):
    want = build().state_dict()
    torch.save({"params_ema": prefixed("module.", want)}, tmp_path / "x.pth")
    got = load_official(build(), tmp_path / "x.pth").state_dict()
    assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("strict", [True, False])
def test_no_key_that_fits_raises_also_when_not_strict(strict):
    with pytest.raises(ValueError, match=r"no key fits; it has \['a.0.weight'"):
        load_weights(net(), {"a.0.weight": torch.ones(2, 3)}, strict)


def test_some_keys_may_be_missing_when_not_strict():
    state, model = {"0.bias": torch.full((2,), 7.0), "more": torch.ones(1)}, net()
    with pytest.raises(ValueError, match=r"missing \['0.weight', .*\(3\), unexpected \['more'\]"):
        load_weights(net(), state)
    load_weights(model, state, strict=False)
    assert torch.equal(model[0].bias, state["0.bias"])


def test_other_shapes_and_what_is_no_checkpoint():
    with pytest.raises(ValueError, match=r"0.bias is \(3,\), the model's \(2,\)"):
        load_weights(net(), {"0.bias": torch.ones(3)}, strict=False)
    with pytest.raises(ValueError, match=r"state holds no tensors, only \['epoch'\]"):
        unwrap({"epoch": 3})
    with pytest.raises(ValueError, match="file is a list but needs to be a state dict"):
        unwrap([1], "file")
    with pytest.raises(ValueError, match="state is a list but needs to be a state dict"):
        load_weights(net(), [1])
    with pytest.raises(ValueError, match="state has '0.bias', which is no tensor"):
        load_weights(net(), {"0.bias": [1.0, 2.0]})
    with pytest.raises(ValueError, match="model is a dict"):
        load_weights({}, net().state_dict())
