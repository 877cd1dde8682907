"""What a computation costs: arithmetic, time, and the memory that training holds on to."""

import math
import statistics
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


# FlopCounterMode of torch 2.13 counts nothing for these; each gets the shapes of the operator's arguments.


def _attention(query, key, value, *_, **__) -> int:
    b, heads, n, d = query
    return 2 * b * heads * n * key[-2] * (d + value[-1])  # q k^T and p v


def _attention_backward(grad, query, key, value, *_, **__) -> int:
    b, heads, n, d = query
    return 2 * b * heads * n * key[-2] * (3 * d + 2 * value[-1])  # q k^T again, and the gradients of p, q, k, v


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
    """Floating-point operations of `fn(*args, **kwargs)`: matrix products, convolutions, attention, cdist; a multiply-add is 2.

    Papers often count it 1 ("MACs"): halve the number to compare with them. Softmax, norms and other element-wise work count
    nothing. A backward pass inside `fn` is counted too.
    """
    with FlopCounterMode(display=False, custom_mapping=EXTRA) as counter:
        fn(*args, **kwargs)
    return counter.get_total_flops()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def latency(fn, *args, repeat: int = 9, warmup: int = 2, **kwargs) -> float:
    """Median time of `fn(*args, **kwargs)` in seconds, over `repeat` runs after `warmup` runs; waits for the GPU."""
    if repeat < 1 or warmup < 0:
        raise ValueError(f"repeat={repeat}, warmup={warmup}: need repeat >= 1 and warmup >= 0")
    for _ in range(warmup):
        fn(*args, **kwargs)
    seconds = []
    for _ in range(repeat):
        _synchronise()
        start = time.perf_counter()
        fn(*args, **kwargs)
        _synchronise()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def activation_bytes(fn, *args, **kwargs) -> int:
    """Bytes that autograd keeps for the backward pass of `fn(*args, **kwargs)`.

    Each storage counts once, however many views of it are saved; parameters do not count.
    """
    owner = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    parameters = {p.untyped_storage().data_ptr() for p in owner.parameters()} if isinstance(owner, nn.Module) else set()
    kept = {}  # holds the storages, so that no address is used twice

    def pack(tensor):
        root = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if not isinstance(root, nn.Parameter) and storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = fn(*args, **kwargs)
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total
