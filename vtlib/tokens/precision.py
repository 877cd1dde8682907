"""Scores decide by small differences, so they are computed in float32 at least, whatever the model
around them runs in."""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """A context without autocast: inside, a product of float32 tensors stays float32."""
    kind = device.type
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def widen(x: Tensor) -> Tensor:
    """float16 and bfloat16 -> float32, anything wider as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def exp_normal(x: Tensor) -> Tensor:
    """exp(x), and 0 where that is below some ten times the smallest normal number (1e-37 in
    float32): there torch's exp takes a CPU fifty times as long."""
    lowest = math.log(torch.finfo(x.dtype).tiny) + 2
    return F.threshold(x.clamp_min(lowest).exp(), math.exp(lowest + 1), 0.0)
