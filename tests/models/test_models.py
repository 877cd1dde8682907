"""What each model must bear: meta device, bf16 autocast, compile, export with a free batch,
backward, gradient checkpointing, odd sizes, batch of 1, save and load, other defaults of torch, the
fused attention kernel."""

import copy

import einops
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from ..settings import SETTINGS
from .registry import MODELS, VLM

# Why a model's attention is not fused in training. In eval mode all of them are.
WRITTEN_DOWN = {
    "crossformer": "its bias is learned, and the CPU's fused kernel gives a mask no gradient",
    "crossformer_pp": "the same",
    "caswit": "the same in its windows; the fusion is fused",
    "caswit_tied": "the same",
    "sam": "its bias depends on the queries, and needs a gradient, too",
    "expedit_sam": "the same",
}
NO_ATTENTION = (
    "spynet", "ttvsr", "ttvsr_recurrent", "uplift", "uplift_patch_6", "uplift_generative",
    "tokenizer_cnn", "tokenizer_ibq", "segmenter_fpn", "segmenter_aspp",
)
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"
MATH = "aten::_scaled_dot_product_attention_math"


@pytest.fixture(params=MODELS, ids=list(MODELS))
def model(request):
    torch.manual_seed(0)
    entry = MODELS[request.param]
    entry.name = request.param
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


@pytest.fixture
def rearrange_as_one_step():
    """torch traces `rearrange` line by line: two thirds of the time for lines that are not ours."""
    torch.compiler.allow_in_graph(einops.rearrange)
    yield
    torch._dynamo.trace_rules._allowed_callable_ids.remove(id(einops.rearrange))


def compile_in_one_piece(model):
    torch._dynamo.reset()
    # fullgraph: no graph break
    compiled = torch.compile(model.module, backend="eager", fullgraph=True, dynamic=False)
    x = model.inputs(2, True)
    torch.testing.assert_close(compiled(x), model.module(x), atol=1e-5, rtol=1e-4)


def test_compile_without_graph_breaks(model, rearrange_as_one_step):
    compile_in_one_piece(model)


@pytest.mark.nightly
def test_compile_without_graph_breaks_in_einops(model):
    compile_in_one_piece(model)


def test_state_dict_round_trip(model):
    other = model.build().eval()
    other.load_state_dict(model.module.state_dict())
    x = model.inputs(2)
    assert torch.equal(other(x), model.module(x))


def test_empty_batch_is_refused(model):
    with pytest.raises(ValueError, match=r"empty|at least one"):
        model.module(model.inputs(2)[:0])


def test_export_with_a_free_batch(model):
    free = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(model.module, (model.inputs(2),), dynamic_shapes=free)
    for batch in (3, 5):
        x = model.inputs(batch)
        torch.testing.assert_close(program.module()(x), model.module(x), atol=1e-5, rtol=1e-4)


def gradients(model, run):
    """Gradients of a freshly built model in training mode, the same random numbers each time."""
    torch.manual_seed(0)
    module = model.build().train()
    torch.manual_seed(1)
    run(module).square().mean().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def test_gradient_checkpointing(model):
    x = model.inputs(2)
    want = gradients(model, lambda module: module(x))
    got = gradients(model, lambda module: checkpoint(module, x, use_reentrant=False))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


def test_torchs_settings_change_nothing(model):
    """To the last bit; with another kernel, without gradients, to rounding."""
    x = model.inputs(2)
    want = model.module(x).detach()
    rounding = dict(atol=1e-6, rtol=1e-5) if model.name in WRITTEN_DOWN else dict(atol=0, rtol=0)
    for setting in SETTINGS:
        with setting():
            got = model.module(x)
        torch.testing.assert_close(got, want, **rounding)


def test_pictures_of_integers_are_refused(model):
    x = model.inputs(2)
    if not x.is_floating_point():
        return
    for wrong in ((255 * x).byte(), (255 * x).long(), x.numpy(), x.tolist()):
        with pytest.raises(ValueError, match="needs to be a floating|needs a floating"):
            model.module(wrong)


def test_another_dtype_than_the_weights_is_named(model):
    x = model.inputs(2)
    if not x.is_floating_point() or model.name in VLM:
        return
    with pytest.raises(ValueError, match="is torch.float64 but the model's weights are .*float32"):
        model.module(x.double())
    with pytest.raises(ValueError, match="is torch.float32 but the model's weights are .*bfloat16"):
        model.module.bfloat16()(x)


class Stored(torch.nn.Module):
    """A linear layer whose weights are 8-bit integers and one scale. packed: behind a method, as
    torch's own quantised layers have them."""

    def __init__(self, linear, packed):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().max().clamp(min=1e-6) / 127
        self.stored, self.bias = (linear.weight.detach() / self.scale).round().char(), linear.bias
        self.weight = self.read if packed else self.stored

    def read(self):
        return self.stored * self.scale

    def forward(self, x):
        return torch.nn.functional.linear(x, self.read(), self.bias)


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_linear_layers_stored_as_integers(model, packed):
    for linear in model.module.modules():
        if type(linear) is torch.nn.Linear:
            linear.weight.copy_(Stored(linear, packed).read())
    stored, x = copy.deepcopy(model.module), model.inputs(1)
    for name, linear in list(stored.named_modules()):
        if type(linear) is torch.nn.Linear:
            parent, _, child = name.rpartition(".")
            setattr(stored.get_submodule(parent), child, Stored(linear, packed))
    torch.testing.assert_close(stored(x), model.module(x), atol=1e-5, rtol=1e-4)


def attention_kernels(run):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return {FUSED, MATH} & {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NO_ATTENTION])
def test_attention_takes_the_fused_kernel(name):
    module, x = MODELS[name].build(), MODELS[name].inputs(2)
    with torch.no_grad():
        assert attention_kernels(lambda: module.eval()(x)) == {FUSED}
    got = attention_kernels(lambda: module.train()(x))
    assert MATH in got if name in WRITTEN_DOWN else got == {FUSED}


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_models_without_attention(name):
    module, x = MODELS[name].build().eval(), MODELS[name].inputs(2)
    assert attention_kernels(lambda: module(x)) == set()
