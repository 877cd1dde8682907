"""Graphs of ONNX: what is read of a file, and what the nodes compute."""

import json
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vtlib.hub import onnx_file
from vtlib.hub.onnx_file import Graph, Node
from vtlib.hub.onnx_graph import OPERATORS, OnnxGraph, taken_apart

from .test_fetch import entry, varint


# --------------------------------------------------------------------------------------- attributes
def real(value):
    return struct.pack("<f", value)


def attribute(name, body):
    return entry(5, entry(1, name.encode()) + body)


def tensor_field(array):
    sides = b"".join(entry(1, side) for side in array.shape)
    kind = {"f4": 1, "i8": 7}[array.dtype.str[1:]]
    return entry(5, sides + entry(2, kind) + entry(9, array.tobytes()))


MINUS_ONE = (1 << 64) - 1
ATTRIBUTES = {
    "group": (entry(3, 4), 4),
    "axis": (entry(3, MINUS_ONE), -1),
    "epsilon": (varint(2 << 3 | 5) + real(0.5), 0.5),
    "mode": (entry(4, b"linear"), "linear"),
    "pads": (entry(8, 1) + entry(8, MINUS_ONE), [1, -1]),
    "strides": (entry(8, varint(300) + varint(2)), [300, 2]),
    "scales": (entry(7, real(1.5) + real(-2.0)), [1.5, -2.0]),
    "body": (entry(6, b""), None),                                       # a graph: left out
}


def file_of(nodes, notes=()):
    graph = b"".join(entry(1, node) for node in nodes)
    graph += entry(11, entry(1, b"x")) + entry(12, entry(1, b"y"))
    rest = b"".join(entry(14, entry(1, k) + entry(2, v)) for k, v in notes)
    return entry(7, graph) + rest


def test_attributes_inputs_outputs_and_notes():
    body = b"".join(attribute(name, raw) for name, (raw, _) in ATTRIBUTES.items())
    node = entry(1, b"x") + entry(2, b"y") + entry(4, b"Conv") + body
    graph = onnx_file.read(file_of([node], [("character".encode(), "a\nb".encode())]))
    wanted = {name: value for name, (_, value) in ATTRIBUTES.items() if value is not None}
    assert graph.nodes[0].attributes == wanted
    assert (graph.inputs, graph.outputs) == (["x"], ["y"]) and graph.notes == {"character": "a\nb"}


def test_an_array_as_attribute():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    node = entry(2, b"w") + entry(4, b"Constant") + attribute("value", tensor_field(array))
    found = onnx_file.read(file_of([node])).nodes[0].attributes["value"]
    np.testing.assert_array_equal(found, array)


# ------------------------------------------------------------------------------------------ running
def net_of(*nodes, tensors=None, inputs=("x",), outputs=None):
    nodes = [Node(operator, "", list(i), [o], options) for operator, i, o, options in nodes]
    outputs = outputs or [nodes[-1].outputs[0]]
    graph = Graph(tensors or {}, nodes, list(inputs), list(outputs))
    description, state = taken_apart(graph)
    net = OnnxGraph(json.loads(json.dumps(description)))
    net.load_state_dict(state)
    return net


def images(seed=0, size=(2, 4, 6, 7)):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def weights(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("options, module", [
    (dict(pads=[1, 1, 1, 1]), dict(padding=1)),
    (dict(strides=[2, 1], group=2, kernel_shape=[3, 3]), dict(stride=(2, 1), groups=2)),
    (dict(dilations=[2, 2], pads=[2, 1, 2, 1]), dict(dilation=2, padding=(2, 1))),
])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution(options, module, bias):
    conv = nn.Conv2d(4, 6, 3, bias=bias, **module)
    stored = {"w": conv.weight.detach().numpy(), "b": weights(6).numpy()}
    names = ("x", "w", "b") if bias else ("x", "w")
    if bias:
        conv.bias.data = weights(6)
    found = net_of(("Conv", names, "y", options), tensors=stored)(images())
    torch.testing.assert_close(found, conv(images()))


def test_convolution_with_uneven_margins():
    kernel = weights(6, 4, 2, 2)
    found = net_of(("Conv", "xw", "y", dict(pads=[0, 0, 1, 1])), tensors={"w": kernel.numpy()})
    torch.testing.assert_close(found(images()), F.conv2d(F.pad(images(), (0, 1, 0, 1)), kernel))
    odd = net_of(("Conv", "xw", "y", dict(auto_pad="SAME_UPPER")), tensors={"w": kernel.numpy()})
    with pytest.raises(ValueError, match="auto_pad='SAME_UPPER'"):
        odd(images())


def test_batch_norm_is_that_of_evaluation():
    norm = nn.BatchNorm2d(4, eps=1e-3).eval()
    norm.load_state_dict({
        "weight": weights(4), "bias": weights(5)[:4], "running_mean": weights(6)[:4],
        "running_var": weights(7)[:4].abs(), "num_batches_tracked": torch.tensor(0),
    })  # fmt: skip
    names = ("weight", "bias", "running_mean", "running_var")
    stored = {name: norm.state_dict()[name].numpy() for name in names}
    node = ("BatchNormalization", ("x", *names), "y", {"epsilon": 1e-3, "momentum": 0.9})
    torch.testing.assert_close(net_of(node, tensors=stored)(images()), norm(images()))


@pytest.mark.parametrize("node, want", [
    (("Relu", "x", "y", {}), torch.relu),
    (("Sigmoid", "x", "y", {}), torch.sigmoid),
    (("HardSigmoid", "x", "y", dict(alpha=1 / 6, beta=0.5)), F.hardsigmoid),
    (("GlobalAveragePool", "x", "y", {}), lambda x: x.mean((2, 3), keepdim=True)),
    (("AveragePool", "x", "y", dict(kernel_shape=[3, 2], strides=[3, 2])),
     lambda x: F.avg_pool2d(x, (3, 2))),
    (("AveragePool", "x", "y", dict(kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])),
     lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
    (("ReduceMean", "x", "y", dict(axes=[-1])), lambda x: x.mean(-1, keepdim=True)),
    (("ReduceMean", "x", "y", dict(axes=[1, 2], keepdims=0)), lambda x: x.mean((1, 2))),
    (("Transpose", "x", "y", dict(perm=[0, 3, 1, 2])), lambda x: x.permute(0, 3, 1, 2)),
    (("Softmax", "x", "y", dict(axis=3)), lambda x: x.softmax(-1)),
    (("Cast", "x", "y", dict(to=7)), lambda x: x.long()),
    (("Concat", "xx", "y", dict(axis=1)), lambda x: torch.cat([x, x], 1)),
    (("MatMul", "xw", "y", {}), lambda x: x @ weights(7, 3)),
    (("Clip", "xlh", "y", {}), lambda x: x.clamp(-0.5, 1)),
    (("Slice", "xsea", "y", {}), lambda x: x[:, :, 1:6:1, -3:]),
])  # fmt: skip
def test_each_operator(node, want):
    whole = 2**63 - 1
    stored = {
        "w": weights(7, 3).numpy(), "l": np.array(-0.5, "<f4"), "h": np.ones((), "<f4"),
        "s": np.array([1, -3]), "e": np.array([whole, whole]), "a": np.array([2, 3]),
    }  # fmt: skip
    torch.testing.assert_close(net_of(node, tensors=stored)(images()), want(images()))


def test_arithmetic():
    net = net_of(
        ("Sub", "xm", "a", {}), ("Pow", "at", "b", {}), ("Add", "be", "c", {}),
        ("Sqrt", "c", "d", {}), ("Div", "ad", "f", {}), ("Mul", "fm", "y", {}),
        tensors={"m": weights(7).numpy(), "t": np.array(2, "<f4"), "e": np.ones(1, "<f4")},
    )  # fmt: skip
    a = images() - weights(7)
    torch.testing.assert_close(net(images()), a / (a**2 + 1).sqrt() * weights(7))


def test_sizes_are_integers():
    """Shape, Cast, Slice, Concat and Reshape: no tensor is made, so the meta device knows all."""
    net = net_of(
        ("Shape", "x", "s", {}), ("Cast", "s", "t", dict(to=6)), ("Slice", "tabc", "u", {}),
        ("Concat", ("z", "u", "m"), "v", dict(axis=0)), ("Reshape", "xv", "w", {}),
        ("Squeeze", "w", "y", dict(axes=[0])),
        tensors={
            "a": np.array([1]), "b": np.array([2]), "c": np.array([0]), "z": np.array([1]),
            "m": np.array([-1]),
        },
    )  # fmt: skip
    assert net.values((images(),), ["u"]) == {"u": [4]}
    torch.testing.assert_close(net(images()), images().reshape(1, 4, -1).squeeze(0))
    keep = net_of(("Reshape", "xv", "y", {}), tensors={"v": np.array([0, 4, -1])})
    assert keep(images()).shape == (2, 4, 42)
    assert net.to("meta")(images().to("meta")).shape == (4, 84)


def deep():
    stored = {"w": weights(7, 7).numpy(), "b": weights(7).numpy()}
    return net_of(
        ("MatMul", "xw", "a", {}), ("Add", "ab", "c", {}), ("Softmax", "c", "d", dict(axis=3)),
        ("MatMul", "dw", "y", {}), tensors=stored,
    )  # fmt: skip


def test_nodes_inside_can_be_read():
    net = deep()
    found = net.values((images(),), ["d", "y"])
    torch.testing.assert_close(found["d"], (images() @ weights(7, 7) + weights(7)).softmax(-1))
    torch.testing.assert_close(found["y"], net(images()))
    alone = net.values((images(),), ["d"])
    assert torch.equal(alone["d"], found["d"])
    two = net_of(("Relu", "x", "a", {}), ("Sigmoid", "a", "y", {}), outputs=["a", "y"])
    a, y = two(images())
    torch.testing.assert_close(y, a.sigmoid())


def test_gradients_autocast_and_compile():
    net, x = deep(), images().requires_grad_()
    net(x).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in net.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        near = net(images())
    torch.testing.assert_close(near.float(), net(images()).detach(), atol=0.1, rtol=0.1)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), net(images()))


def test_what_is_not_known():
    with pytest.raises(ValueError, match="description has Gelu, Tan: no such operator is known"):
        net_of(("Tan", "x", "a", {}), ("Gelu", "a", "y", {}))
    with pytest.raises(ValueError, match="Softmax over axis 1 of 4 is not known"):
        net_of(("Softmax", "x", "y", dict(axis=1)))(images())
    with pytest.raises(ValueError, match="names has 'q', which no node computes"):
        deep().values((images(),), ["q"])
    with pytest.raises(ValueError, match=r"2 inputs: needs 1, \['x'\]"):
        deep()(images(), images())
    with pytest.raises(ValueError, match="a list of names"):
        deep().values((images(),), "y")
    assert len(OPERATORS) == 24
