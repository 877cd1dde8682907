"""Exercises on TokenFormer: the modified softmax, Pattention, growing."""

import math

import torch
import torch.nn.functional as F

from vtlib.multiscale.tokenformer import modified_softmax
from vtlib.teach.exercises import Wrong, check, expect


def _ramp(*shape):
    """Different numbers of both signs, without a random generator."""
    return torch.sin(1.7 * torch.arange(1.0, 1 + math.prod(shape))).view(shape)


# ------------------------------------------------------------------------------------------ theta


def theta(scores, tau):
    """Theta(A) = GELU(tau A / ||A||_2) over the last axis."""
    return modified_softmax(scores, tau)


def _theta_causes(scores, tau):
    unit = scores / scores.norm(dim=-1, keepdim=True)
    g = F.gelu(scores)
    soft = scores.softmax(dim=-1)
    return {
        "the GELU ran first; normalise first, then GELU": tau * g / g.norm(dim=-1, keepdim=True),
        "the GELU is missing: these are only the normalised scores": tau * unit,
        "tau is missing: it multiplies the normalised scores, before the GELU": F.gelu(unit),
        "tau multiplies the result of the GELU; it belongs inside": tau * F.gelu(unit),
        "the norm is missing: GELU(tau * scores)": F.gelu(tau * scores),
        "divided by tau; tau multiplies": F.gelu(unit / tau),
        "the norm runs over the input tokens (axis -2); it belongs on the last axis":
            F.gelu(tau * F.normalize(scores, dim=-2)),
        "the norm is the sum of absolute values (L1); the paper takes L2":
            F.gelu(tau * F.normalize(scores, p=1, dim=-1)),
        "this is the ordinary softmax": soft,
        "this is the softmax times tau": tau * soft,
        "this is the softmax times tau squared": tau**2 * soft,
        "ReLU in place of GELU": F.relu(tau * unit),
        "the tanh approximation of GELU; take the exact one":
            F.gelu(tau * unit, approximate="tanh"),
    }


@check("tokenformer.theta", reference=theta)
def _(fn):
    for scores, tau in ((3 * _ramp(2, 4, 5), 3.0), (_ramp(3, 4), 1.5)):
        got, causes = fn(scores, tau), _theta_causes(scores, tau)
        what = f"the weights with tau = {tau}"
        expect(got, theta(scores, tau), what=what, mistakes=causes)
    zero = torch.zeros(1, 3)
    causes = {"0 / 0: keep the bound 1e-5 on the norm": zero / 0}
    expect(fn(zero, 3.0), zero, what="the weights of scores that are all zero", mistakes=causes)


# ------------------------------------------------------------------------------------- pattention


def pattention(x, keys, values, tau=None):
    """x (..., d1), keys (n, d1), values (n, d2) -> (..., d2); tau=None is sqrt(n)."""
    tau = math.sqrt(keys.shape[0]) if tau is None else tau
    return modified_softmax(x @ keys.t(), tau) @ values


def _pattention_causes(x, keys, values):
    (n, d), width = keys.shape, values.shape[1]
    scores, tau = x @ keys.t(), math.sqrt(n)

    def with_tau(tau):
        return theta(scores, tau) @ values

    weights = {
        "the norm runs over the input tokens; it belongs on the axis of the parameter tokens":
            F.gelu(tau * F.normalize(scores, dim=-2)),
        "ordinary softmax over the parameter tokens": scores.softmax(dim=-1),
        "softmax over the parameter tokens, with 1/sqrt(d)": (scores / d**0.5).softmax(dim=-1),
        "softmax times n": n * scores.softmax(dim=-1),
        "1/sqrt(d) took the place of the norm": F.gelu(scores / d**0.5),
        "the GELU ran first; normalise first, then GELU":
            tau * F.normalize(F.gelu(scores), dim=-1),
        "the GELU is missing": tau * F.normalize(scores, dim=-1),
        "the raw scores meet the values; theta is missing": scores,
    }
    return {
        "tau is n; it is sqrt(n)": with_tau(n),
        "tau is sqrt(d); it is sqrt(n), n parameter tokens": with_tau(math.sqrt(d)),
        "tau is the square root of the width of the values; it is sqrt(n)":
            with_tau(math.sqrt(width)),
        "tau is 1; it is sqrt(n)": with_tau(1.0),
        "these are the weights; multiply them with the values": theta(scores, tau),
        **{cause: weight @ values for cause, weight in weights.items()},
    }


@check("tokenformer.pattention", reference=pattention)
def _(fn):
    x, keys, values = 2 * _ramp(2, 4, 3), _ramp(5, 3).flip(0), _ramp(5, 6).cos()
    got, want = fn(x, keys, values), pattention(x, keys, values)
    expect(got, want, what="the output", mistakes=_pattention_causes(x, keys, values))
    causes = {"the argument tau is not used: sqrt(n) only where tau is None": want}
    got, want = fn(x, keys, values, 1.5), pattention(x, keys, values, 1.5)
    expect(got, want, what="the output with tau=1.5", mistakes=causes)
    one, keys, values = _ramp(4), _ramp(7, 4), _ramp(7, 2).cos()
    got, want = fn(one, keys, values), pattention(one, keys, values)
    expect(got, want, what="the output for one token of shape (d1,)")


# ------------------------------------------------------------------------------------------- grow


def grow(keys, values, tau, num_new, std):
    """Append num_new zero keys and random values of standard deviation std; tau stays."""
    new_keys = keys.new_zeros(num_new, keys.shape[1])
    new_values = std * torch.randn_like(values[:1].expand(num_new, -1))
    return torch.cat([keys, new_keys]), torch.cat([values, new_values]), tau


def _check_appended(part, old, num_new, what):
    """The old rows first, as they were, then `num_new` more."""
    n = len(old)
    if not isinstance(part, torch.Tensor):
        raise Wrong(f"the {what}: found {type(part).__name__}, expected a tensor")
    if part.shape != (n + num_new, old.shape[1]):
        raise Wrong(
            f"the {what}: found shape {tuple(part.shape)}\n"
            f"  expected: {(n + num_new, old.shape[1])}\n"
            f"  likely cause: m = {num_new} rows are appended to n = {n}, along axis 0"
        )
    causes = {}
    if torch.equal(part[num_new:], old):
        causes = {"the new rows stand before the old ones; append them": part[:n]}
    expect(part[:n], old, what=f"the first {n} rows of the {what}", mistakes=causes)


def _check_new_keys(fresh_keys, fresh_values, moved):
    if fresh_keys.abs().max() == 0:
        return
    cause = "new scores enter the norm and the sum"
    if fresh_values.abs().max() == 0:
        cause = "zero values do not help: random keys enter the norm"
    raise Wrong(
        f"the new keys: found values up to {fresh_keys.abs().max():.3g}; the output moves by"
        f" {moved:.3g}\n  expected: zeros, so that the new scores are 0\n"
        f"  likely cause: {cause}; keys are zero, values are random"
    )


def _check_new_values(fresh_values, std):
    if fresh_values.abs().max() == 0:
        raise Wrong(
            "the new values: found zeros, as the new keys\n  expected: random numbers\n"
            "  likely cause: zero keys and zero values: both gradients are zero, these rows are"
            " dead for ever"
        )
    if (fresh_values - fresh_values[:1]).abs().max() == 0:
        raise Wrong(
            "the new values: all rows are equal\n  expected: random numbers\n"
            "  likely cause: one row was repeated; equal rows get equal gradients and stay copies"
            " of each other"
        )
    if not 0.6 * std < fresh_values.std() < 1.5 * std:
        raise Wrong(
            f"the new values: found a standard deviation of {fresh_values.std():.3g}\n"
            f"  expected: about std = {std}\n"
            "  likely cause: the argument std is not used, or torch.rand in place of torch.randn"
        )


def _check_grown(fn, x, keys, values, tau, num_new, std):
    got = fn(keys, values, tau, num_new, std)
    if not isinstance(got, (tuple, list)) or len(got) != 3:
        kind = type(got).__name__
        size = f" of {len(got)}" if isinstance(got, (tuple, list)) else ""
        raise Wrong(
            f"the result: found {kind}{size}\n  expected: three things, keys, values, tau"
        )
    new_keys, new_values, new_tau = got
    n = len(keys)
    _check_appended(new_keys, keys, num_new, "keys")
    _check_appended(new_values, values, num_new, "values")
    causes = {
        "tau was recomputed as sqrt(n + m): that rescales every old score": math.sqrt(n + num_new),
        "tau is sqrt(m)": math.sqrt(num_new),
        "tau is n + m": n + num_new,
    }
    expect(new_tau, tau, what="tau", mistakes=causes)
    before = pattention(x, keys, values, tau)
    moved = (pattention(x, new_keys, new_values, tau) - before).abs().max().item()
    fresh_keys, fresh_values = new_keys[n:].detach(), new_values[n:].detach()
    _check_new_keys(fresh_keys, fresh_values, moved)
    _check_new_values(fresh_values, std)


@check("tokenformer.grow", reference=grow)
def _(fn):
    for n, num_new, std in ((6, 40, 0.5), (9, 60, 0.1)):
        keys, values, x = _ramp(n, 4), _ramp(n, 3).cos(), _ramp(5, 4).flip(0)
        _check_grown(fn, x, keys, values, math.sqrt(n), num_new, std)
