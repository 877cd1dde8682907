"""Exercises of notebook 01b, on TokenFormer: the modified softmax, Pattention, growing."""

import math

import torch
import torch.nn.functional as F

from vtlib.multiscale.tokenformer import modified_softmax
from vtlib.teach.exercises import Wrong, check, expect, untouched


def theta(scores, tau):
    """Theta(A) = GELU(tau A / ||A||_2) over the last axis."""
    return modified_softmax(scores, tau)


def pattention(x, keys, values, tau=None):
    """x (..., d1), keys (n, d1), values (n, d2) -> (..., d2); tau=None is sqrt(n)."""
    tau = math.sqrt(keys.shape[0]) if tau is None else tau
    return modified_softmax(x @ keys.t(), tau) @ values


def grow(keys, values, tau, num_new, std):
    """Append num_new zero keys and random values of standard deviation std; tau stays. Returns keys, values, tau."""
    new_values = std * torch.randn(num_new, values.shape[1], device=values.device)
    return torch.cat([keys, keys.new_zeros(num_new, keys.shape[1])]), torch.cat([values, new_values]), tau


def _ramp(*shape):
    """Different numbers of both signs, without a random generator."""
    return torch.sin(1.7 * torch.arange(1.0, 1 + math.prod(shape))).view(shape)


@check("tokenformer.theta", reference=theta)
def _(fn):
    scores, tau = 3 * _ramp(2, 4, 5), 3.0
    with untouched(scores):
        got = fn(scores, tau)
    unit = scores / scores.norm(dim=-1, keepdim=True)
    g = F.gelu(scores)
    expect(
        got,
        theta(scores, tau),
        what="the weights",
        mistakes={
            "the GELU ran first; normalise first, then GELU": lambda: tau * g / g.norm(dim=-1, keepdim=True),
            "the GELU is missing: these are only the normalised scores": lambda: tau * unit,
            "tau is missing: it multiplies the normalised scores, before the GELU": lambda: F.gelu(unit),
            "tau multiplies the result of the GELU; it belongs inside": lambda: tau * F.gelu(unit),
            "the norm is missing: GELU(tau * scores)": lambda: F.gelu(tau * scores),
            "divided by tau; tau multiplies": lambda: F.gelu(unit / tau),
            "the norm runs over the input tokens (axis -2); it belongs on the last axis": lambda: F.gelu(
                tau * F.normalize(scores, dim=-2)
            ),
            "the norm is the sum of absolute values (L1); the paper takes L2": lambda: F.gelu(
                tau * F.normalize(scores, p=1, dim=-1)
            ),
            "this is the ordinary softmax": lambda: scores.softmax(-1),
            "this is the softmax times tau": lambda: tau * scores.softmax(-1),
            "this is the softmax times tau squared": lambda: tau**2 * scores.softmax(-1),
            "ReLU in place of GELU": lambda: F.relu(tau * unit),
            "the tanh approximation of GELU; take the exact one": lambda: F.gelu(tau * unit, approximate="tanh"),
        },
    )
    got = fn(torch.zeros(1, 3), tau)
    expect(
        got,
        torch.zeros(1, 3),
        what="the weights of scores that are all zero",
        mistakes={"0 / 0: keep the bound 1e-5 on the norm": torch.full((1, 3), math.nan)},
    )


@check("tokenformer.pattention", reference=pattention)
def _(fn):
    x, keys, values = 2 * _ramp(2, 4, 3), _ramp(5, 3).flip(0), _ramp(5, 6).cos()
    n, d, scores = 5, 3, x @ keys.t()
    with untouched(x, keys, values):
        got = fn(x, keys, values)

    def with_tau(tau):
        return lambda: theta(scores, tau) @ values

    expect(
        got,
        pattention(x, keys, values),
        what="the output",
        mistakes={
            "tau is n; it is sqrt(n)": with_tau(n),
            "tau is sqrt(d); it is sqrt(n), n parameter tokens": with_tau(math.sqrt(d)),
            "tau is the square root of the width of the values; it is sqrt(n)": with_tau(math.sqrt(6)),
            "tau is 1; it is sqrt(n)": with_tau(1.0),
            "the norm runs over the input tokens; it belongs on the axis of the parameter tokens": lambda: (
                F.gelu(math.sqrt(n) * F.normalize(scores, dim=-2)) @ values
            ),
            "ordinary softmax over the parameter tokens": lambda: scores.softmax(-1) @ values,
            "softmax over the parameter tokens, with 1/sqrt(d)": lambda: (scores / math.sqrt(d)).softmax(-1) @ values,
            "softmax times n": lambda: n * scores.softmax(-1) @ values,
            "1/sqrt(d) took the place of the norm": lambda: F.gelu(scores / math.sqrt(d)) @ values,
            "the GELU ran first; normalise first, then GELU": lambda: math.sqrt(n) * F.normalize(F.gelu(scores), dim=-1) @ values,
            "the GELU is missing": lambda: math.sqrt(n) * F.normalize(scores, dim=-1) @ values,
            "these are the weights; multiply them with the values": lambda: theta(scores, math.sqrt(n)),
            "the raw scores meet the values; theta is missing": lambda: scores @ values,
        },
    )
    expect(
        fn(x, keys, values, 1.5),
        pattention(x, keys, values, 1.5),
        what="the output with tau=1.5",
        mistakes={"the argument tau is not used: sqrt(n) only where tau is None": pattention(x, keys, values)},
    )
    expect(fn(x[0, 0], keys, values), pattention(x[0, 0], keys, values), what="the output for one token of shape (d1,)")


@check("tokenformer.grow", reference=grow)
def _(fn):
    n, m, std = 6, 40, 0.5
    keys, values, tau, x = _ramp(n, 4), _ramp(n, 3).cos(), math.sqrt(n), _ramp(5, 4).flip(0)
    with untouched(keys, values):
        got = fn(keys, values, tau, m, std)
    if not isinstance(got, (tuple, list)) or len(got) != 3:
        raise Wrong(
            f"the result: found {type(got).__name__}{f' of {len(got)}' if isinstance(got, (tuple, list)) else ''}\n"
            "  expected: three things, keys, values, tau"
        )
    new_keys, new_values, new_tau = got
    for part, old, what in ((new_keys, keys, "keys"), (new_values, values, "values")):
        if not isinstance(part, torch.Tensor):
            raise Wrong(f"the {what}: found {type(part).__name__}, expected a tensor")
        if part.shape != (n + m, old.shape[1]):
            cause = f"m = {m} rows are appended to n = {n}, along axis 0"
            raise Wrong(
                f"the {what}: found shape {tuple(part.shape)}\n  expected: {(n + m, old.shape[1])}\n  likely cause: {cause}"
            )
        expect(
            part[:n],
            old,
            what=f"the first {n} rows of the {what}",
            mistakes={"the new rows stand before the old ones; append them": part[:n] if torch.equal(part[m:], old) else old + 1},
        )
    expect(
        new_tau,
        tau,
        what="tau",
        mistakes={
            "tau was recomputed as sqrt(n + m): that rescales every old score": math.sqrt(n + m),
            "tau is sqrt(m)": math.sqrt(m),
            "tau is n + m": n + m,
        },
    )
    fresh_keys, fresh_values = new_keys[n:].detach(), new_values[n:].detach()
    gap = (pattention(x, new_keys, new_values, tau) - pattention(x, keys, values, tau)).abs().max().item()
    if fresh_keys.abs().max() > 0:
        both = (
            "zero values do not help: random keys enter the norm"
            if fresh_values.abs().max() == 0
            else "new scores enter the norm and the sum"
        )
        raise Wrong(
            f"the new keys: found values up to {fresh_keys.abs().max():.3g}; the output moves by {gap:.3g}\n"
            f"  expected: zeros, so that the new scores are 0\n  likely cause: {both}; keys are zero, values are random"
        )
    if fresh_values.abs().max() == 0:
        raise Wrong(
            "the new values: found zeros, as the new keys\n  expected: random numbers\n"
            "  likely cause: zero keys and zero values: both gradients are zero, these rows are dead for ever"
        )
    if (fresh_values - fresh_values[:1]).abs().max() == 0:
        raise Wrong(
            "the new values: all rows are equal\n  expected: random numbers\n"
            "  likely cause: one row was repeated; equal rows get equal gradients and stay copies of each other"
        )
    if not 0.6 * std < fresh_values.std() < 1.5 * std:
        raise Wrong(
            f"the new values: found a standard deviation of {fresh_values.std():.3g}\n  expected: about std = {std}\n"
            "  likely cause: the argument std is not used, or torch.rand in place of torch.randn"
        )
