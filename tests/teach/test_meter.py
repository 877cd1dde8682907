"""Counts against counts by hand."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vtlib import teach

B, H, N, M, D = 2, 3, 17, 11, 8


def test_flops_of_products_and_convolutions():
    assert teach.flops(nn.Linear(8, 5), torch.rand(3, 8)) == 2 * 3 * 8 * 5
    conv, depthwise = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(4, 8, 3, groups=4, padding=1)
    assert teach.flops(conv, torch.rand(2, 3, 9, 9)) == 2 * 2 * 6 * (3 * 9) * 81
    assert teach.flops(depthwise, torch.rand(2, 4, 9, 9)) == 2 * 2 * 8 * 9 * 81
    q, k = torch.rand(B, H, N, D), torch.rand(B, H, M, D)
    assert teach.flops(torch.einsum, "bhnd,bhmd->bhnm", q, k) == 2 * B * H * N * M * D
    assert teach.flops(torch.mv, torch.rand(4, 5), torch.rand(5)) == 2 * 4 * 5
    assert teach.flops(torch.dot, torch.rand(5), torch.rand(5)) == 2 * 5
    assert teach.flops(torch.relu, torch.rand(5)) == 0


@pytest.mark.parametrize("n", [5, 40])  # torch has two ways for small and for large sets
@pytest.mark.parametrize("grad", [False, True])
def test_flops_of_cdist(n, grad):
    a = torch.rand(n, 8, requires_grad=grad)
    assert teach.flops(torch.cdist, a, torch.rand(50, 8)) == 2 * n * 50 * 8


KINDS = ["plain", "grad", "masked", "causal", "dropout", "bfloat16", "meta"]


@pytest.mark.parametrize("kind", KINDS)
def test_flops_of_fused_attention(kind):
    q, k, v = torch.rand(B, H, N, D), torch.rand(B, H, N, D), torch.rand(B, H, N, D)
    keywords = {
        "masked": {"attn_mask": torch.ones(N, N, dtype=torch.bool)},
        "causal": {"is_causal": True},
        "dropout": {"dropout_p": 0.1},
    }
    if kind == "grad":
        q = q.requires_grad_()
    if kind in ("bfloat16", "meta"):
        q, k, v = (t.to(torch.bfloat16 if kind == "bfloat16" else "meta") for t in (q, k, v))
    counted = teach.flops(F.scaled_dot_product_attention, q, k, v, **keywords.get(kind, {}))
    assert counted == 4 * B * H * N * N * D


def test_flops_of_cross_attention_and_of_the_backward_pass():
    q, k = torch.rand(B, H, N, D, requires_grad=True), torch.rand(B, H, M, D)
    assert teach.flops(F.scaled_dot_product_attention, q, k, k) == 4 * B * H * N * M * D
    both = teach.flops(lambda: F.scaled_dot_product_attention(q, k, k).sum().backward())
    # with and without the scores computed again
    assert both in (12 * B * H * N * M * D, 14 * B * H * N * M * D)
    w = torch.rand(8, 5, requires_grad=True)
    assert teach.flops(lambda: (torch.rand(3, 8) @ w).sum().backward()) == 2 * (2 * 3 * 8 * 5)


def test_flops_of_a_whole_layer_in_both_modes():
    layer = nn.TransformerEncoderLayer(24, 3, dim_feedforward=96, batch_first=True).eval()
    tokens = torch.rand(B, N, 24)
    want = 2 * B * N * 24 * 24 * 4 + 4 * B * N * N * 24 + 2 * B * N * 24 * 96 * 2
    assert teach.flops(layer, tokens) == want
    with torch.no_grad():
        assert teach.flops(layer, tokens) == want


def test_latency():
    assert 0.004 < teach.latency(time.sleep, 0.005, repeat=3, warmup=0) < 1
    calls = []
    teach.latency(calls.append, 1, repeat=4, warmup=3)
    assert len(calls) == 7
    teach.latency(calls.append, 1, repeat=np.int64(2), warmup=torch.tensor(1))
    assert len(calls) == 10
    for repeat in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"repeat={repeat}"):
            teach.latency(time.sleep, 0, repeat=repeat)


def test_processor_seconds_leave_out_waiting_and_take_the_least():
    assert teach.processor_seconds(time.sleep, 0.05, repeat=1) < 0.04

    def work(seconds):
        end = time.process_time() + seconds.pop()
        while time.process_time() < end:
            pass

    assert 0.01 <= teach.processor_seconds(work, [0.01, 0.05, 0.05], repeat=3) < 0.05
    for repeat in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"repeat={repeat}"):
            teach.processor_seconds(time.sleep, 0, repeat=repeat)


def test_timed_gives_the_result_and_the_processor_s_time():
    found, seconds = teach.timed(lambda x, by: time.sleep(0.05) or x + by, torch.zeros(1), by=1)
    assert found == 1 and seconds < 0.04                            # others may run meanwhile


MEASURES = (
    teach.flops, teach.latency, teach.processor_seconds, teach.timed, teach.activation_bytes,
)


def test_what_is_measured_is_a_function():
    for measure in MEASURES:
        with pytest.raises(ValueError, match="fn is torch.float32 .* but needs to be a function"):
            measure(torch.ones(2))


def test_activation_bytes():
    x = torch.rand(4, 8)
    layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    # the input and what comes out of the ReLU, once, though two layers save it
    want = 4 * (4 * 8 + 4 * 16)
    assert teach.activation_bytes(layers, x) == want
    assert teach.activation_bytes(lambda t: layers(t), x) == want
    assert teach.activation_bytes(layers.forward, x) == want
    assert teach.activation_bytes(layers, x.clone().requires_grad_()) == want
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert teach.activation_bytes(layers, x) == want
    assert teach.activation_bytes(nn.Conv2d(3, 6, 3), torch.rand(1, 3, 8, 8)) == 4 * 3 * 64
    assert teach.activation_bytes(lambda t: t * 2, x) == 0


def test_activation_bytes_counts_views_once_and_no_parameters():
    weight = nn.Parameter(torch.rand(3, 8))
    x = torch.rand(4, 8)
    assert teach.activation_bytes(lambda: x @ weight.T) == 4 * 4 * 8
    halves = teach.activation_bytes(lambda: (x[:2] @ weight.T) * (x[2:] @ weight.T))
    assert halves == 4 * (4 * 8 + 2 * (2 * 3))
