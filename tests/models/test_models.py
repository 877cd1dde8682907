"""What each model must bear: meta device, bf16 autocast, compile, backward, odd sizes, batch of 1, save and load, eval mode determinism."""

import pytest
import torch

from .registry import MODELS


@pytest.fixture(params=MODELS, ids=list(MODELS))
def model(request):
    torch.manual_seed(0)
    entry = MODELS[request.param]
    entry.module = entry.build().eval()
    return entry


def test_shape_and_finite(model):
    out = model.module(model.inputs(2))
    assert out.shape == (2, *model.output)
    assert out.isfinite().all()


def test_batch_rows_are_independent_and_batch_of_one_works(model):
    x = model.inputs(3)
    torch.testing.assert_close(model.module(x)[1:2], model.module(x[1:2]), atol=1e-5, rtol=1e-4)


def test_odd_sizes(model):
    out = model.module(model.inputs(2, True))
    assert out.isfinite().all() and out.shape[0] == 2 and out.shape[-1] == model.output[-1]


def test_every_parameter_gets_a_finite_gradient(model):
    module = model.module.train()
    module(model.inputs(2)).square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} takes no part in the output"
        assert parameter.grad.isfinite().all(), name


def test_meta_device(model):
    with torch.device("meta"):
        module = model.build()
    for odd in (False, True):
        out = module(model.inputs(2, odd, "meta"))
        assert out.is_meta and out.shape[0] == 2


def test_bf16_autocast(model):
    x = model.inputs(2)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.module(x)
    assert out.isfinite().all()
    want = model.module(x)
    assert (out.float() - want).abs().max() < 0.1 * want.abs().max() + 0.05


def test_half_precision_weights(model):
    module = model.build().eval().to(torch.bfloat16)
    x = model.inputs(2)
    out = module(x.to(torch.bfloat16) if x.is_floating_point() else x)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


def test_double_precision(model):
    module = model.build().eval().double()
    x = model.inputs(2)
    assert module(x.double() if x.is_floating_point() else x).dtype == torch.float64


def test_compile_without_graph_breaks(model):
    torch._dynamo.reset()
    compiled = torch.compile(model.module, backend="eager", fullgraph=True, dynamic=False)      # traced in one piece: no graph break
    x = model.inputs(2, True)
    torch.testing.assert_close(compiled(x), model.module(x), atol=1e-5, rtol=1e-4)


def test_state_dict_round_trip(model):
    other = model.build().eval()
    other.load_state_dict(model.module.state_dict())
    x = model.inputs(2)
    assert torch.equal(other(x), model.module(x))


def test_empty_batch_is_refused(model):
    with pytest.raises(ValueError, match=r"empty|at least one"):
        model.module(model.inputs(2)[:0])
