"""Settings of torch that change no result, as context managers."""

import contextlib

import torch


@contextlib.contextmanager
def default_dtype(dtype=torch.float64):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def matmul_precision(setting):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def meta_device():
    """A default device without values: a tensor made there fails loudly."""
    return torch.device("meta")


SETTINGS = (
    meta_device, default_dtype, deterministic, torch.enable_grad, torch.no_grad,
    torch.inference_mode,
)
