"""Checkpoints as people have them: bare, wrapped by a trainer, with a prefix, in .pth and
.safetensors, of each net of super-resolution."""

import pytest
import torch
from safetensors.torch import save_file

from vtlib.hub import load_official
from vtlib.superres.catanet import CATANet
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.spynet import SPyNet
from vtlib.superres.ttvsr import TTVSR, convert_official
from vtlib.superres.uplift import UPLiFT

NETS = {
    "spynet": lambda: SPyNet(2, (4,), 3),
    "ttvsr": lambda: TTVSR(4, 1, 1, 4, spynet=SPyNet(2, (4,), 3)),
    "catanet": lambda: CATANet(
        2, 8, 1, 4, 8, 2, patch_sizes=6, num_centres=3, group_sizes=8
    ),
    "uplift": lambda: UPLiFT(4, 4, (4, 8), (8, 8)),
    "cross_attention": lambda: CrossAttentionUpsampler(4, (4, 8), 8),
}


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def other(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


WRAPPED = {
    "bare": lambda state: state,
    "params": lambda state: {"params": state},
    "params_ema before params": lambda state: {"params": other(state), "params_ema": state},
    "DataParallel": lambda state: prefixed(state, "module."),
    "DataParallel in params": lambda state: {"params": prefixed(state, "module.")},
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "trainer": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 1e-3}},
    "model": lambda state: {"model": state, "iteration": 7},
    "net_g": lambda state: {
        **prefixed(state, "net_g."), "net_d.conv.weight": torch.zeros(2), "step": torch.zeros(1),
    },
    "mmedit": lambda state: {
        "meta": {"epoch": 1},
        "state_dict": {**prefixed(state, "generator."), "step_counter": torch.zeros(1)},
    },
}


@pytest.fixture(params=NETS)
def net(request):
    torch.manual_seed(0)
    return request.param, NETS[request.param]().eval()


def same(one, two):
    left, right = one.state_dict(), two.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_wrapped_by_trainers(net, wrap, tmp_path):
    name, model = net
    torch.save(wrap(model.state_dict()), tmp_path / "net.pth")
    convert = convert_official if name == "ttvsr" else None
    assert same(load_official(NETS[name](), tmp_path / "net.pth", convert), model)


def test_safetensors_with_a_prefix(net, tmp_path):
    name, model = net
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(prefixed(state, "module."), tmp_path / "net.safetensors")
    assert same(load_official(NETS[name](), tmp_path / "net.safetensors"), model)


def test_a_flow_net_without_its_constants(tmp_path):
    """OpenMMLab's file lacks mean and std, alone and inside a whole net."""
    torch.manual_seed(0)
    for name in ("spynet", "ttvsr"):
        model = NETS[name]()
        constants = (".mean", ".std", "mean", "std")
        state = {k: v for k, v in model.state_dict().items() if not k.endswith(constants)}
        assert len(state) == len(model.state_dict()) - 2
        torch.save({"params": state}, tmp_path / "net.pth")
        assert same(load_official(NETS[name](), tmp_path / "net.pth"), model)


def test_what_does_not_fit_is_refused(net, tmp_path):
    name, model = net
    state = model.state_dict()
    first = next(key for key in state if key.endswith("weight"))
    for broken, strict, message in (
        ({key: value for key, value in state.items() if key != first}, True, "missing"),
        ({**state, "extra": torch.zeros(1)}, True, "unexpected"),
        ({**state, first: torch.zeros(7, 7)}, False, "the model's"),
        ({"something.else": torch.zeros(1)}, False, "no key fits"),
        ({"epoch": 3}, False, "no tensors"),
    ):
        torch.save(broken, tmp_path / "net.pth")
        with pytest.raises(ValueError, match=message):
            load_official(NETS[name](), tmp_path / "net.pth", strict=strict)
