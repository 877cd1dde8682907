"""What is no good input is named, and what is good passes as it is."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vtlib import nn as vnn
from vtlib.nn.checks import check_index


@pytest.mark.parametrize("value", [
    64, np.int64(64), np.uint8(64), np.array(64),
    torch.tensor(64), torch.tensor(64, dtype=torch.uint8),
])
def test_integers_of_any_maker_are_integers(value):
    got = vnn.check_int(value, "keep", 1, 64)
    assert got == 64 and type(got) is int


@pytest.mark.parametrize("value", [
    True, np.bool_(True), torch.tensor(True), 64.0, np.float32(64), torch.tensor(64.0), "64", None,
    [64], torch.tensor([6, 4]), torch.tensor(64, device="meta"),
])
def test_what_is_no_integer_is_named(value):
    with pytest.raises(ValueError, match="keep=.*needs an integer from 1 to 576"):
        vnn.check_int(value, "keep", 1, 576)


@pytest.mark.parametrize("bounds, words", [
    (dict(least=65), "keep=64: needs an integer of at least 65"),
    (dict(most=63), "keep=64: needs an integer of at most 63"),
    (dict(least=1, most=63), "keep=64: needs an integer from 1 to 63"),
])
def test_bounds(bounds, words):
    with pytest.raises(ValueError, match=words):
        vnn.check_int(np.int64(64), "keep", **bounds)
    assert vnn.check_int(64, "keep", least=64) == vnn.check_int(64, "keep", most=64) == 64


def test_a_free_size_stays_free():
    class Net(torch.nn.Module):
        def forward(self, x):
            return x.new_ones(vnn.check_int(x.shape[0], "batch", 1) + 1)
    free = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(Net(), (torch.rand(5, 2),), dynamic_shapes=free)
    assert program.module()(torch.rand(9, 2)).shape == (10,)


@pytest.mark.parametrize("values", [5, "12", b"12", {1: 2}, {1, 2}, None, torch.tensor(5)])
def test_what_is_no_sequence_of_integers_is_named(values):
    with pytest.raises(ValueError, match="levels=.*: needs a sequence of integers"):
        vnn.check_ints(values, "levels")


@pytest.mark.parametrize("device", ["gpu", 1.5, "cuda:99", -1, True, [1]])
def test_what_is_no_device_is_named(device):
    with pytest.raises(ValueError, match="^device="):
        vnn.check_device(device)


def test_devices():
    with torch.device("meta"):
        assert vnn.check_device(None) == vnn.check_device("cpu") == torch.device("cpu")
    assert vnn.check_device("meta") == torch.device("meta")


def test_another_dtype_than_the_weights_is_named():
    weight, x = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x is torch.float64 but .* weights are torch.float32"):
        vnn.check_dtype(x, weight, "x")
    vnn.check_dtype(x, weight.double(), "x")
    with torch.autocast("cpu", torch.bfloat16):
        vnn.check_dtype(weight.bfloat16(), weight, "x")
        with pytest.raises(ValueError, match="x is torch.float64"):              # is never cast
            vnn.check_dtype(x, weight, "x")


@pytest.mark.parametrize("weight", [
    torch.zeros(2, dtype=torch.int8), torch.zeros(2, dtype=torch.uint8),
    torch.zeros(2).to(torch.float8_e4m3fn), torch.nn.Identity().forward,
], ids=["int8", "uint8", "float8", "a method"])
def test_weights_that_are_only_stored_say_nothing_of_the_input(weight):
    for dtype in (torch.float32, torch.bfloat16):
        vnn.check_dtype(torch.zeros(2, dtype=dtype), weight, "x")


@pytest.mark.parametrize("value", [
    True, np.bool_(True), np.array(True), torch.tensor(True)
])
def test_flags_of_any_maker_are_flags(value):
    assert vnn.check_flag(value, "causal") is True
    assert vnn.check_flag(value ^ True, "causal") is False


@pytest.mark.parametrize("value", [
    1, 0, 0.5, "no", "", None, [], [True], np.array([True]), torch.tensor([True]), torch.tensor(1),
    torch.tensor(True, device="meta"),
])
def test_what_is_no_flag_is_named(value):
    with pytest.raises(ValueError, match="^causal=.*: needs True or False$"):
        vnn.check_flag(value, "causal")


def test_what_cannot_be_called_is_named():
    vnn.check_callable(print, "loss")
    vnn.check_callable(torch.nn.Identity(), "loss")
    with pytest.raises(ValueError, match="^loss is a str but needs to be a function of the batch$"):
        vnn.check_callable("mse", "loss", "a function of the batch")


@pytest.mark.parametrize("index, words", [
    (torch.zeros(2, 3), r"key is torch.float32 \(2, 3\) but needs to be torch.int64 \(B, K\)"),
    (torch.zeros(2, 3).int(), r"key is torch.int32 \(2, 3\)"),
    ([[0, 1, 2]], "key is a list"),
    (torch.zeros(3).long(), r"key is torch.int64 \(3,\) .* \(B, K\) = \(2, K\)$"),
    (torch.zeros(3, 2).long(), r"key is torch.int64 \(3, 2\) .* \(B, K\) = \(2, K\)$"),
    (torch.tensor([[0, 1], [4, 3]]), r"key\[1, 0\]=4 is no place: it must lie in -1 ... 3$"),
    (torch.tensor([[0, 1], [3, -2]]), r"key\[1, 1\]=-2 is no place: it must lie in -1 ... 3$"),
])
def test_what_is_no_index_is_named(index, words):
    fits = "key", "(B, K)", (2, None), 4, -1
    check_index(torch.tensor([[0, 3], [-1, 0]]), *fits)
    with pytest.raises(ValueError, match=words):
        check_index(index, *fits)


def test_indices_of_any_shape_and_of_one_axis():
    check_index(torch.zeros(2, 0, 3).long(), "key", stop=1)
    check_index(torch.arange(3), "key", "(K,)", stop=3)
    check_index(torch.full((2,), 9, device="meta"), "key", "(K,)", stop=3)      # no values to see
    with pytest.raises(ValueError, match=r"key\[2\]=2 is no place: it must lie in 0 ... 1$"):
        check_index(torch.arange(3), "key", stop=2)
    with pytest.raises(ValueError, match="key=9 is no place"):
        check_index(torch.tensor(9), "key", stop=2)
    with pytest.raises(ValueError, match=r"torch.int64 \(3,\) but .* torch.int64 \(K,\) = \(2,\)$"):
        check_index(torch.arange(3), "key", "(K,)", (2,))
    with pytest.raises(ValueError, match=r"\(1, 3\) but needs to be torch.int64 \(K,\)$"):
        check_index(torch.zeros(1, 3).long(), "key", "(K,)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_tensors_pass(dtype):
    vnn.check_float(torch.zeros(2, dtype=dtype), "x")
    vnn.check_float(torch.nn.Parameter(torch.zeros(2, dtype=dtype)), "x")
    vnn.check_float(torch.zeros(2, dtype=dtype, device="meta"), "x")


@pytest.mark.parametrize("value", [
    0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5),
    torch.tensor(0.5).double(),
])
def test_numbers_of_any_maker_are_numbers(value):
    got = vnn.check_number(value, "sigma", 0, 1)
    assert got == 0.5 and type(got) is float
    assert vnn.check_number(np.int64(3), "sigma") == vnn.check_number(torch.tensor(3), "sigma") == 3


@pytest.mark.parametrize("value", [
    True, np.bool_(True), torch.tensor(True), "0.5", None, [0.5], 1j, torch.tensor([0.5, 0.5]),
    float("nan"), float("inf"), -0.1, 1.1, 10**400, torch.tensor(0.5, device="meta"),
])
def test_what_is_no_number_is_named(value):
    words = r"sigma=.*needs a finite number of at least 0 and at most 1"
    with pytest.raises(ValueError, match=words):
        vnn.check_number(value, "sigma", 0, 1)
    with pytest.raises(ValueError, match="needs a finite number of at least 2$"):
        vnn.check_number(1, "sigma", 2)
    for value in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="sigma=.*needs a finite number above 0$"):
            vnn.check_number(value, "sigma", above=0)
    with pytest.raises(ValueError, match="sigma=2 .*needs a finite number above 0 and at most 1$"):
        vnn.check_number(2, "sigma", most=1, above=0)
    assert vnn.check_number(1e-9, "sigma", above=0) == 1e-9


@pytest.mark.parametrize("values", [(0, 0.5), [0, 0.5], np.array([0, 0.5]), torch.tensor([0, 0.5])])
def test_sequences_of_numbers(values):
    assert vnn.check_numbers(values, "rates", 0, 1, 2) == (0.0, 0.5)


@pytest.mark.parametrize("values, words", [
    ("12", "rates='12': needs a sequence of 2 numbers"), (3, "rates=3: needs a sequence of 2"),
    ((1, 1, 1), r"rates=\(1, 1, 1\): needs a sequence of 2 numbers"),
    ((1, 1.5), r"rates\[1\]=1.5 .*at most 1"), ((float("nan"), 1), r"rates\[0\]=nan"),
])
def test_what_is_no_sequence_of_numbers(values, words):
    with pytest.raises(ValueError, match=words):
        vnn.check_numbers(values, "rates", 0, 1, 2)


@pytest.mark.parametrize("x, words", [
    (np.zeros(3, np.float32), ["pixels is a numpy.ndarray", "torch.from_numpy(pixels).float()"]),
    ([1.0, 2.0], ["pixels is a list", "torch.tensor(pixels)"]),
    ((1.0, 2.0), ["pixels is a tuple", "torch.tensor(pixels)"]),
    (None, ["pixels is a NoneType"]),
    (torch.zeros(2, dtype=torch.uint8), ["torch.uint8", "pixels.float() / 255"]),
    (torch.zeros(2, dtype=torch.long), ["torch.int64", "pixels.float()"]),
    (torch.zeros(2, dtype=torch.bool), ["torch.bool", "pixels.float()"]),
    (torch.zeros(2, dtype=torch.complex64), ["torch.complex64"]),
])
def test_what_is_no_floating_tensor_is_named(x, words):
    with pytest.raises(ValueError) as error:
        vnn.check_float(x, "pixels")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("check, shape", [
    (vnn.check_images, (1, 3, 4, 4)), (vnn.check_tokens, (1, 4, 8)),
])
def test_images_and_tokens_are_floating_tensors(check, shape):
    check(torch.zeros(shape))
    for x, kind in (
        (np.zeros(shape, np.float32), "numpy.ndarray"),
        (torch.zeros(shape).tolist(), "list"),
        (torch.zeros(shape, dtype=torch.uint8), "torch.uint8"),
    ):
        with pytest.raises(ValueError, match=f"given is .*{kind}"):
            check(x, name="given")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_non_finite_values_are_named(bad, dtype):
    x = torch.zeros(2, 5, 3, dtype=dtype)
    vnn.check_finite(x, "tokens")
    x[1, 3, 2] = x[1, 4, 0] = bad
    with pytest.raises(ValueError, match=rf"tokens \(2, 5, 3\) has 2 .* {bad} at \[1, 3, 2\]"):
        vnn.check_finite(x, "tokens")


def test_finiteness_is_not_asked_where_there_are_no_values():
    class Net(torch.nn.Module):
        def forward(self, x):
            vnn.check_finite(x, "x")
            return x * 2
    bad = torch.full((2, 2), float("nan"))
    vnn.check_finite(bad.to("meta"), "x")
    with FakeTensorMode() as mode:
        vnn.check_finite(mode.from_tensor(bad), "x")
    assert torch.compile(Net(), backend="eager", fullgraph=True)(bad).isnan().all()
    for strict in (True, False):
        assert torch.export.export(Net(), (bad,), strict=strict).module()(bad).isnan().all()
    assert torch.jit.trace(Net(), bad, check_trace=False)(bad).isnan().all()
    with pytest.raises(ValueError, match="non-finite"):
        Net()(bad)
