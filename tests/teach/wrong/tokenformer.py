"""Plausible wrong answers to the exercises of notebook 01b, on TokenFormer."""

from tests.teach.slips import slips

_THETA = """
def tf_theta(scores, tau):
    norm = scores.norm(dim=-1, keepdim=True).clamp_min(1e-5)
    return F.gelu(tau * scores / norm)
"""
_GELU_FIRST = """
def tf_theta(scores, tau):
    g = F.gelu(scores)
    return tau * g / g.norm(dim=-1, keepdim=True).clamp_min(1e-5)
"""

_PATTENTION = """
def tf_pattention(x, keys, values, tau=None):
    n, d = keys.shape
    tau = math.sqrt(n) if tau is None else tau
    scores = x @ keys.T
    norm = scores.norm(dim=-1, keepdim=True).clamp_min(1e-5)
    return F.gelu(tau * scores / norm) @ values
"""
_WEIGHTS = "F.gelu(tau * scores / norm)"

_GROW = """
def tf_grow(keys, values, tau, num_new, std):
    keys_new = torch.zeros(num_new, keys.shape[1])
    values_new = std * torch.randn(num_new, values.shape[1])
    return torch.cat([keys, keys_new]), torch.cat([values, values_new]), tau
"""
_RANDOM_KEYS_ZERO_VALUES = """
def tf_grow(keys, values, tau, num_new, std):
    keys_new = std * torch.randn(num_new, keys.shape[1])
    values_new = torch.zeros(num_new, values.shape[1])
    return torch.cat([keys, keys_new]), torch.cat([values, values_new]), tau
"""
_ZERO_KEYS = "torch.zeros(num_new, keys.shape[1])"
_VALUES = "std * torch.randn(num_new, values.shape[1])"
_APPENDED = "torch.cat([keys, keys_new]), torch.cat([values, values_new])"
_PREPENDED = "torch.cat([keys_new, keys]), torch.cat([values_new, values])"

WRONG = {
    "tokenformer.theta": [
        ("GELU first", _GELU_FIRST, "normalise first"),
        *slips(
            _THETA,
            ("no GELU", "F.gelu(tau * scores / norm)", "tau * scores / norm", "GELU is missing"),
            ("tau outside", "F.gelu(tau * scores", "tau * F.gelu(scores", "belongs inside"),
            ("tau missing", "tau * scores", "scores", "tau is missing"),
            ("norm missing", " / norm", "", "norm is missing"),
            (
                "softmax",
                "F.gelu(tau * scores / norm)",
                "scores.softmax(dim=-1)",
                "ordinary softmax",
            ),
            ("wrong axis", "dim=-1", "dim=-2", "axis -2"),
            ("no bound", ".clamp_min(1e-5)", "", "1e-5"),
        ),
    ],
    "tokenformer.pattention": slips(
        _PATTENTION,
        ("tau n", "math.sqrt(n)", "n", "tau is n"),
        ("tau sqrt d", "math.sqrt(n)", "math.sqrt(d)", "tau is sqrt(d)"),
        ("softmax", _WEIGHTS, "scores.softmax(dim=-1)", "ordinary softmax"),
        ("attention's scale", _WEIGHTS, "(scores / math.sqrt(d)).softmax(dim=-1)", "1/sqrt(d)"),
        ("no norm", "tau * scores / norm", "scores / math.sqrt(d)", "took the place of the norm"),
        (
            "GELU first",
            _WEIGHTS,
            "tau * F.normalize(F.gelu(scores), dim=-1)",
            "normalise first",
        ),
        ("wrong axis", "dim=-1", "dim=-2", "input tokens"),
        ("values forgotten", " @ values", "", "multiply them with the values"),
        ("tau ignored", "tau * scores", "n ** 0.5 * scores", "tau is not used"),
    ),
    "tokenformer.grow": [
        (
            "zero values, random keys",
            _RANDOM_KEYS_ZERO_VALUES,
            "zero values do not help",
        ),
        *slips(
            _GROW,
            (
                "tau recomputed",
                f"{_APPENDED}, tau",
                f"{_APPENDED}, math.sqrt(len(keys) + num_new)",
                "rescales every old score",
            ),
            (
                "random keys",
                _ZERO_KEYS,
                "0.02 * torch.randn(num_new, keys.shape[1])",
                "the new scores are 0",
            ),
            ("dead rows", _VALUES, "torch.zeros(num_new, values.shape[1])", "dead for ever"),
            ("prepended", _APPENDED, _PREPENDED, "append them"),
            (
                "copies",
                _VALUES,
                "std * torch.randn(1, values.shape[1]).repeat(num_new, 1)",
                "copies",
            ),
            ("std ignored", "std * torch", "0.02 * torch", "std is not used"),
            ("tau forgotten", f"{_APPENDED}, tau", _APPENDED, "three things"),
        ),
    ],
}
