"""What a computation costs: arithmetic, time, and the memory that training holds on to."""

import math
import statistics
import time
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtlib.nn.checks import check_callable, check_int

aten = torch.ops.aten


# FlopCounterMode of torch 2.13 counts nothing for these; each gets the shapes of the operator's
# arguments.


def _attention(query, key, value, *_, **__) -> int:
    b, heads, n, d = query
    return 2 * b * heads * n * key[-2] * (d + value[-1])  # q k^T and p v


def _attention_backward(grad, query, key, value, *_, **__) -> int:
    b, heads, n, d = query
    # q k^T again, and the gradients of p, q, k, v
    return 2 * b * heads * n * key[-2] * (3 * d + 2 * value[-1])


def _mv(matrix, vector, *_, **__) -> int:
    return 2 * matrix[0] * matrix[1]


def _dot(a, b, *_, **__) -> int:
    return 2 * a[0]


def _cdist(a, b, *_, **__) -> int:
    *batch, n, d = a
    return 2 * math.prod(batch) * n * b[-2] * d


EXTRA = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.mv: _mv,
    aten.dot: _dot,
    aten._cdist_forward: _cdist,
    aten._euclidean_dist: _cdist,
}


def flops(fn, *args, **kwargs) -> int:
    """Floating-point operations of `fn(*args, **kwargs)`; a multiply-add counts 2.

    Papers often count it 1 ("MACs"): halve the number to compare with them. Counted are matrix
    products, convolutions, attention and cdist, in a backward pass inside `fn` too. Softmax, norms
    and other element-wise work count nothing.
    """
    check_callable(fn, "fn")
    with FlopCounterMode(display=False, custom_mapping=EXTRA) as counter:
        fn(*args, **kwargs)
    return counter.get_total_flops()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(clock, fn, args, kwargs) -> tuple[Any, float]:
    """(what `fn` returns, seconds by that clock); waits for the GPU."""
    _synchronise()
    start = clock()
    made = fn(*args, **kwargs)
    _synchronise()
    return made, clock() - start


def latency(fn, *args, repeat: int = 9, warmup: int = 2, **kwargs) -> float:
    """Median time of `fn(*args, **kwargs)` in seconds; waits for the GPU.

    ValueError for counts that are no integers, `repeat` of at least 1 and `warmup` of at least 0.

    Args:
        fn: what is timed.
        args: its arguments.
        repeat: how many runs are timed.
        warmup: how many runs come before.
        kwargs: its arguments by keyword.
    """
    repeat, warmup = check_int(repeat, "repeat", 1), check_int(warmup, "warmup", 0)
    check_callable(fn, "fn")
    for _ in range(warmup):
        fn(*args, **kwargs)
    runs = [_timed(time.perf_counter, fn, args, kwargs)[1] for _ in range(repeat)]
    return statistics.median(runs)


def timed(fn, *args, **kwargs) -> tuple[Any, float]:
    """(what `fn(*args, **kwargs)` gives, the seconds it took): one run for both.

    They are the processor's, which other programs do not lengthen; with a GPU, the clock's.
    """
    check_callable(fn, "fn")
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    return _timed(clock, fn, args, kwargs)


def processor_seconds(fn, *args, repeat: int = 5, **kwargs) -> float:
    """Least processor time of `fn(*args, **kwargs)` in seconds, all threads together.

    While other programs have the processor it does not count, so ratios hold on a busy machine,
    where `latency` stretches long runs more than short ones. Waiting for the GPU counts. ValueError
    for a `repeat` that is no integer of at least 1.

    Args:
        fn: what is timed.
        args: its arguments.
        repeat: how many runs are timed; the first warms up.
        kwargs: its arguments by keyword.
    """
    repeat = check_int(repeat, "repeat", 1)
    check_callable(fn, "fn")
    return min(_timed(time.process_time, fn, args, kwargs)[1] for _ in range(repeat))


def _parameters(fn) -> set[int]:
    """Where the parameters of a module, or of the module that a method belongs to, are stored."""
    owner = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    if not isinstance(owner, nn.Module):
        return set()
    return {parameter.untyped_storage().data_ptr() for parameter in owner.parameters()}


@contextmanager
def recording_gradients():
    """Autograd records, whatever the caller's grad mode is."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def activation_bytes(fn, *args, **kwargs) -> int:
    """Bytes that autograd keeps for the backward pass of `fn(*args, **kwargs)`.

    Each storage counts once, however many views of it are saved; parameters do not count.
    """
    check_callable(fn, "fn")
    parameters = _parameters(fn)
    kept = {}  # holds the storages, so that no address is used twice

    def pack(tensor):
        root = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if not isinstance(root, nn.Parameter) and storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with recording_gradients(), hooks:
        result = fn(*args, **kwargs)
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total
