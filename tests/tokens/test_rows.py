"""Whole rows move: `take`, `scatter_back` and `Plan.apply` against plain indexing, for every kind
of tensor and memory, with gradients, compiled and exported."""


import pytest
import torch
from torch import Tensor

from tests.settings import default_dtype
from vtlib.tokens import Plan, scatter_back, take
from vtlib.tokens.select import as_rows

KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)


def plain(x: Tensor, index: Tensor) -> Tensor:
    return torch.stack([image[chosen] for image, chosen in zip(x, index, strict=True)])


def layouts(batch: int = 3) -> dict[str, Tensor]:
    """(B, 7, ...) in every kind of memory that callers have."""
    return {
        "contiguous": torch.randn(batch, 7, 5),
        "behind a [CLS]": torch.randn(batch, 8, 5)[:, 1:],
        "part of the channels": torch.randn(batch, 7, 9)[..., 2:7],
        "every second token": torch.randn(batch, 14, 5)[:, ::2],
        "channels first": torch.randn(batch, 5, 7).transpose(1, 2),
        "heads": torch.randn(batch, 4, 7, 5).transpose(1, 2),
        "batch last": torch.randn(7, batch, 5).transpose(0, 1),
        "one image for all": torch.randn(1, 7, 5).expand(batch, -1, -1),
        "one token for all": torch.randn(batch, 1, 5).expand(-1, 7, -1),
        "no channels": torch.randn(batch, 7, 0),
        "numbers": torch.randn(batch, 7),
        "numbers behind": torch.randn(batch, 9)[:, 2:],
    }


def merging(batch: int = 3, tokens: int = 7, slots: int = 3, seed: int = 0) -> Plan:
    """Every token enters a slot, two of them a second one; slot 2 of the last image stays empty."""
    g = torch.Generator().manual_seed(seed)
    again = torch.randint(tokens, (batch, 2), generator=g)
    origin = torch.cat([torch.rand(batch, tokens, generator=g).argsort(1), again], dim=1)
    slot = torch.randint(slots, origin.shape, generator=g)
    slot[-1] = slot[-1].clamp(max=1)
    weight = torch.rand(origin.shape, generator=g, dtype=torch.float64)
    return Plan(torch.arange(slots).expand(batch, -1), tokens, origin, slot, weight)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", layouts())
def test_every_memory_layout(name, batch):
    x = layouts(batch)[name]
    index = torch.tensor([[6, 0, 3], [1, 1, 2], [4, 5, 6]])[:batch]
    assert torch.equal(take(x, index), plain(x, index))
    assert torch.equal(take(x.clone().requires_grad_(), index), plain(x, index))
    drop = Plan(index.sort(dim=1).values[:, ::2], 7)
    assert torch.equal(drop.apply(x), plain(x, drop.index))
    merge = merging(batch)
    want = merge.matrix().to(x.dtype) @ x.flatten(2) if x.dim() > 2 else None
    if want is None:
        want = (merge.matrix().to(x.dtype) @ x[..., None])[..., 0]
    torch.testing.assert_close(merge.apply(x).reshape(want.shape), want, atol=1e-6, rtol=1e-6)


def test_features_behind_a_cls_are_not_copied():
    x = torch.randn(3, 8, 5)[:, 1:]
    rows, step = as_rows(x)
    assert step == 8 and rows.shape == (23, 5) and rows.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("dtype", KINDS)
def test_every_dtype(dtype):
    x = (torch.randn(2, 6, 4) * 3).to(dtype)
    index = torch.tensor([[5, 1], [0, 2]])
    assert take(x, index).dtype == dtype and torch.equal(take(x, index), plain(x, index))
    out = Plan(torch.tensor([[5, -1], [0, 2]]), 6).apply(x)
    assert out.dtype == dtype and torch.equal(out[0, 0], x[0, 5]) and not out[0, 1].any()
    back = scatter_back(plain(x, index), index, 6)
    assert back.dtype == dtype and torch.equal(plain(back, index), plain(x, index))
    if dtype.is_floating_point:
        merge = merging(2, 6)
        want = (merge.matrix().double() @ x.double()).to(dtype)     # weights are not rounded to it
        assert merge.apply(x).dtype == dtype
        torch.testing.assert_close(merge.apply(x), want)
    else:
        with pytest.raises(ValueError, match="x is torch.* but needs a floating dtype"):
            merging(2, 6).apply(x)


def test_kept_tokens_of_a_merging_plan_are_bit_identical():
    x = torch.randn(2, 6, 40)
    slot = torch.tensor([[0, 1, 2, 2, 2, 2]]).expand(2, -1)
    origin = torch.tensor([[4, 1, 0, 2, 3, 5]]).expand(2, -1)
    out = Plan(torch.tensor([[4, 1, 0]] * 2), 6, origin, slot, torch.ones(2, 6)).apply(x)
    assert torch.equal(out[:, :2], x[:, [4, 1]])


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients(batch):
    x = torch.randn(batch, 7, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[6, 0, 0], [1, 1, 1], [4, 5, 6]])[:batch]
    assert torch.autograd.gradcheck(lambda t: take(t, index), x)
    assert torch.autograd.gradcheck(lambda t: take(t[:, 1:].transpose(1, 2), index // 2), x)
    places = torch.tensor([[8, 0, 3]] * batch)
    assert torch.autograd.gradcheck(lambda t: scatter_back(t[:, :3], places, 9), x)
    holes = Plan(torch.tensor([[6, -1, 2]] * batch), 7)
    assert torch.autograd.gradcheck(holes.apply, x)
    plan = merging(batch)

    def merge(t, weight):
        return Plan(plan.index, 7, plan.origin, plan.slot, weight).apply(t)

    assert torch.autograd.gradcheck(merge, (x, plan.weight.clone().requires_grad_()))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("place", [-1, -7, 6, 12, 10**6])
def test_a_place_that_does_not_exist_is_an_error(batch, place):
    index = torch.zeros(batch, 2, dtype=torch.long)
    index[-1, 1] = place
    named = rf"index\[{batch - 1}, 1\]={place} is no place: it must lie in 0 ... 5"
    for x in (torch.randn(batch, 6, 3), torch.randn(batch, 7, 3)[:, 1:], torch.randn(batch, 6),
              torch.randn(batch, 3, 6).transpose(1, 2), torch.ones(batch, 6, dtype=torch.bool)):
        with pytest.raises(ValueError, match=named):
            take(x, index)
    with pytest.raises(ValueError, match=named):
        scatter_back(torch.randn(batch, 2, 3), index, 6)


def test_compiled_code_never_reads_the_next_image():
    run = torch.compile(take, backend="eager", fullgraph=True)
    x = torch.randn(2, 6, 3)
    assert torch.equal(run(x, torch.tensor([[5], [0]])), x[[0, 1], [5, 0]][:, None])
    for place in (6, -1):
        with pytest.raises((IndexError, RuntimeError)):
            run(x, torch.tensor([[place], [0]]))


class Reduce(torch.nn.Module):
    def forward(self, x, index, origin, slot, weight):
        plan = Plan(index, x.shape[1])
        merge = Plan(index, x.shape[1], origin, slot, weight)
        return take(x, index), plan.apply(x), merge.apply(x), scatter_back(plan.apply(x), index, 9)


def inputs(batch):
    plan = merging(batch)
    return torch.randn(batch, 7, 4), plan.index, plan.origin, plan.slot, plan.weight.float()


def test_compile_and_export_with_a_free_batch():
    net = Reduce()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    free = torch.export.Dim("batch", min=2)
    exported = torch.export.export(net, inputs(2), dynamic_shapes=({0: free},) * 5).module()
    for batch in (2, 3, 5):
        args = inputs(batch)
        for run in (compiled, exported):
            for got, want in zip(run(*args), net(*args), strict=True):
                torch.testing.assert_close(got, want)


def test_meta():
    out = Reduce()(*(t.to("meta") for t in inputs(3)))
    assert [tuple(t.shape) for t in out] == [(3, 3, 4)] * 3 + [(3, 9, 4)]


def test_default_device_and_dtype_change_nothing():
    args = inputs(3)
    want = Reduce()(*args)
    with torch.device("meta"):
        here = Reduce()(*args)
    with default_dtype():
        wide = Reduce()(*args)
    for one, two, three in zip(want, here, wide, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


def test_autocast_sums_stay_in_the_tokens_dtype():
    args = inputs(3)
    with torch.autocast("cpu", torch.bfloat16):
        for got, want in zip(Reduce()(*args), Reduce()(*args), strict=True):
            assert got.dtype == torch.float32 and torch.equal(got, want)


@pytest.mark.parametrize("index, message", [
    (torch.zeros(2, 2), r"index is torch.float32 \(2, 2\) but needs to be torch.int64 \(B, K\)"),
    (torch.zeros(2, 2, dtype=torch.int32), "index is torch.int32"),
    (torch.zeros(2, dtype=torch.long), r"index is torch.int64 \(2,\)"),
    (torch.zeros(1, 2, dtype=torch.long), r"index is torch.int64 \(1, 2\) .*\(B, K\) = \(2, K\)"),
    ([[0, 1], [0, 1]], "index is a list"),
])
def test_wrong_indices(index, message):
    with pytest.raises(ValueError, match=message):
        take(torch.randn(2, 6, 3), index)
    with pytest.raises(ValueError, match=message):
        scatter_back(torch.randn(2, 2, 3), index, 6)


@pytest.mark.parametrize("x", [[[1.0]], torch.zeros(3)])
def test_wrong_tokens(x):
    index = torch.zeros(1, 1, dtype=torch.long)
    for call in (take, lambda x, i: scatter_back(x, i, 3), lambda x, i: Plan(i, 1).apply(x)):
        with pytest.raises(ValueError, match=r"x is .* but needs to be a tensor \(B, "):
            call(x, index)
    with pytest.raises(ValueError, match="index has 1 places but x has 2 tokens"):
        scatter_back(torch.zeros(1, 2, 3), index, 3)
