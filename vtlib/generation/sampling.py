"""From the scores of all K codes to the code that is taken: filters, guidance, a draw.

    p_i = exp(l_i / T) / sum_j exp(l_j / T)                              T: temperature

    top-k (Fan, Lewis, Dauphin 2018, arXiv 1805.04833): the k best are left.
    top-p, the nucleus (Holtzman et al. 2019, arXiv 1904.09751): the likeliest codes that together
        have the mass p are left. Counted from below: a code goes when the sum of the probabilities
        of all codes up to it, from the least likely on, is <= 1 - p.
    classifier-free guidance (Ho, Salimans 2022, arXiv 2207.12598): away from what the model says
        without a condition.

Order: guidance, temperature, top-k, then top-p over what top-k has left (VAR, LlamaGen and
TokenFlow all do so).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..nn.checks import check_float, check_generator, check_int, check_number, readable
from ..tokens.precision import widen

CONVENTIONS = ("scale", "weight")


def check_logits(logits: Tensor, name: str = "logits") -> None:
    """Raise unless `logits` are floating (..., K), not empty, without NaN and +inf, each row with a
    code that is possible (-inf is a code that is not).

    Args:
        logits: what was given.
        name: what the message calls it.
    """
    check_float(logits, name)
    if logits.dim() < 1 or 0 in logits.shape:
        raise ValueError(f"{name} has shape {tuple(logits.shape)} but needs (..., K), not empty")
    if readable(logits) and not logits.detach().amax(dim=-1).isfinite().all():
        raise ValueError(
            f"{name} {tuple(logits.shape)} has rows with NaN, with +inf, or of -inf only: the best "
            f"of each row needs to be finite"
        )


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """`logits` (..., K) with -inf in the place of what the filters take away.

    Args:
        logits: log-probabilities, up to a constant a row.
        top_k: how many are left, 0 ... K; codes as good as the last of them stay too. 0: off.
        top_p: mass of the nucleus among those, 0 ... 1; the best code always stays. 0: off.

    With top_k=1 the best alone is left, whatever top_p says. ValueError: see `check_logits`; a
    top_k or top_p out of bounds.
    """
    check_logits(logits)
    top_k = check_int(top_k, "top_k", 0, logits.shape[-1])
    top_p = check_number(top_p, "top_p", 0, 1)
    if top_k:
        worst = logits.topk(top_k, dim=-1).values.amin(dim=-1, keepdim=True)         # ... 1
        logits = logits.masked_fill(logits < worst, -math.inf)
    if top_p:
        ascending, order = widen(logits).sort(dim=-1)                                # ... K
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        below_best = torch.arange(logits.shape[-1], device=logits.device) < logits.shape[-1] - 1
        dropped = dropped & below_best
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -math.inf)
    return logits


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One code for each row: logits (..., K) -> (...) long.

    Args:
        logits: log-probabilities, up to a constant a row.
        temperature: logits are divided by it before the filters; 0: the best code, no draw.
        top_k: see `filter_logits`.
        top_p: see `filter_logits`.
        generator: of the draw, on the device of the logits; None: torch's own numbers.

    ValueError: as in `filter_logits`; for a temperature below 0; for what is no generator.
    """
    temperature = check_number(temperature, "temperature", 0)
    check_generator(generator, optional=True)
    check_logits(logits)
    logits = widen(logits)
    if temperature == 0:
        filter_logits(logits, top_k, top_p)                          # bad filters are told here too
        return logits.argmax(dim=-1)
    best = logits.amax(dim=-1, keepdim=True)              # subtracted: a small T must not overflow
    kept = filter_logits((logits - best) / temperature, top_k, top_p)
    probability = kept.softmax(dim=-1)
    rows = probability.reshape(-1, logits.shape[-1])
    drawn = torch.multinomial(rows, 1, generator=generator)
    return drawn.reshape(logits.shape[:-1])


# ---------------------------------------------------------------------------------------- guidance
def guide(
    conditional: Tensor, unconditional: Tensor, amount: float, convention: str = "scale"
) -> Tensor:
    """Classifier-free guidance of logits (or of any prediction), in one of the two conventions that
    papers use for the same line through both points:

        "scale"    unconditional + s (conditional - unconditional)       s = 1 is no guidance
        "weight"   (1 + w) conditional - w unconditional                 w = 0 is no guidance

    so s = 1 + w. LlamaGen, GigaTok and diffusers say scale; Ho and Salimans, VAR and TokenFlow
    say weight. Without guidance the result is `conditional`, bit for bit.

    Args:
        conditional: (...), what the model says with the condition.
        unconditional: the same shape, what it says without one.
        amount: s or w.
        convention: "scale" or "weight".

    ValueError: shapes that differ; an unknown convention; an amount that is no number.
    """
    weight = guidance_weight(amount, convention)
    check_float(conditional, "conditional")
    check_float(unconditional, "unconditional")
    if conditional.shape != unconditional.shape:
        raise ValueError(
            f"conditional has shape {tuple(conditional.shape)} and unconditional "
            f"{tuple(unconditional.shape)}: need the same"
        )
    if weight == 0:
        return conditional
    return conditional + weight * (conditional - unconditional)


def guidance_weight(amount: float, convention: str = "scale") -> float:
    """w of an amount of guidance in either convention, see `guide`."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r}: needs one of {CONVENTIONS}")
    amount = check_number(amount, "amount")
    return amount - 1 if convention == "scale" else amount


def guidance_steps(start: float = 0.18) -> Callable[[int, int], float]:
    """A schedule of guidance: none for the first `start` of all tokens, all of it for the rest.

    A schedule says for token `index` of `count` which share of the weight w it gets, 0 ... 1. The
    default is GigaTok's 18 %, whose code guides the very first token all the same; here it is one
    of those without guidance, as the paper says.
    """
    start = check_number(start, "start", 0, 1)

    def share(index: int, count: int) -> float:
        return 0.0 if index < start * (count - 1) else 1.0

    return share


def guidance_ramp(index: int, count: int) -> float:
    """A schedule of guidance: the weight grows in a line from 0 at the first token (or scale) to
    all of it at the last (VAR, TokenFlow)."""
    return index / max(count - 1, 1)
