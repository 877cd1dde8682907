"""Plausible wrong answers to the exercises of notebook 01b, on TokenFormer."""

_THETA = """
def tf_theta(scores, tau):
    norm = scores.norm(dim=-1, keepdim=True).clamp_min(1e-5)
    return {}
"""
_PATTENTION = """
def tf_pattention(x, keys, values, tau=None):
    n, d = keys.shape
    tau = {tau} if tau is None else tau
    scores = x @ keys.T
    return {out}
"""
_GROW = """
def tf_grow(keys, values, tau, num_new, std):
    zero = torch.zeros(num_new, keys.shape[1])
    keys_new, values_new = {new}
    return {out}
"""
_L2 = "F.gelu(tau * scores / scores.norm(dim=-1, keepdim=True).clamp_min(1e-5)) @ values"
_APPEND = "torch.cat([keys, keys_new]), torch.cat([values, values_new])"
_RIGHT = "zero, std * torch.randn(num_new, values.shape[1])"

WRONG = {
    "tokenformer.theta": [
        (
            "GELU first",
            "def tf_theta(scores, tau):\n    g = F.gelu(scores)\n    return tau * g / g.norm(dim=-1, keepdim=True).clamp_min(1e-5)",
            "normalise first",
        ),
        ("no GELU", _THETA.format("tau * scores / norm"), "GELU is missing"),
        ("tau outside", _THETA.format("tau * F.gelu(scores / norm)"), "belongs inside"),
        ("tau missing", _THETA.format("F.gelu(scores / norm)"), "tau is missing"),
        ("norm missing", _THETA.format("F.gelu(tau * scores)"), "norm is missing"),
        ("softmax", _THETA.format("scores.softmax(dim=-1)"), "ordinary softmax"),
        (
            "wrong axis",
            "def tf_theta(scores, tau):\n    return F.gelu(tau * scores / scores.norm(dim=-2, keepdim=True).clamp_min(1e-5))",
            "axis -2",
        ),
        ("no bound", "def tf_theta(scores, tau):\n    return F.gelu(tau * scores / scores.norm(dim=-1, keepdim=True))", "1e-5"),
    ],
    "tokenformer.pattention": [
        ("tau n", _PATTENTION.format(tau="n", out=_L2), "tau is n"),
        ("tau sqrt d", _PATTENTION.format(tau="math.sqrt(d)", out=_L2), "tau is sqrt(d)"),
        ("softmax", _PATTENTION.format(tau="math.sqrt(n)", out="scores.softmax(dim=-1) @ values"), "ordinary softmax"),
        (
            "attention's scale",
            _PATTENTION.format(tau="math.sqrt(n)", out="(scores / math.sqrt(d)).softmax(dim=-1) @ values"),
            "1/sqrt(d)",
        ),
        (
            "no norm",
            _PATTENTION.format(tau="math.sqrt(n)", out="F.gelu(scores / math.sqrt(d)) @ values"),
            "took the place of the norm",
        ),
        (
            "GELU first",
            _PATTENTION.format(tau="math.sqrt(n)", out="tau * F.normalize(F.gelu(scores), dim=-1) @ values"),
            "normalise first",
        ),
        (
            "wrong axis",
            _PATTENTION.format(tau="math.sqrt(n)", out="F.gelu(tau * F.normalize(scores, dim=-2)) @ values"),
            "input tokens",
        ),
        (
            "values forgotten",
            _PATTENTION.format(tau="math.sqrt(n)", out=_L2.removesuffix(" @ values")),
            "multiply them with the values",
        ),
        ("tau ignored", _PATTENTION.format(tau="math.sqrt(n)", out=_L2.replace("tau", "n ** 0.5")), "tau is not used"),
    ],
    "tokenformer.grow": [
        (
            "tau recomputed",
            _GROW.format(new=_RIGHT, out=f"{_APPEND}, math.sqrt(len(keys) + num_new)"),
            "rescales every old score",
        ),
        (
            "random keys",
            _GROW.format(new="0.02 * torch.randn_like(zero), std * torch.randn(num_new, values.shape[1])", out=f"{_APPEND}, tau"),
            "the new scores are 0",
        ),
        (
            "zero values, random keys",
            _GROW.format(new="0.02 * torch.randn_like(zero), torch.zeros(num_new, values.shape[1])", out=f"{_APPEND}, tau"),
            "zero values do not help",
        ),
        ("dead rows", _GROW.format(new="zero, torch.zeros(num_new, values.shape[1])", out=f"{_APPEND}, tau"), "dead for ever"),
        (
            "prepended",
            _GROW.format(new=_RIGHT, out="torch.cat([keys_new, keys]), torch.cat([values_new, values]), tau"),
            "append them",
        ),
        (
            "copies",
            _GROW.format(new="zero, std * torch.randn(1, values.shape[1]).repeat(num_new, 1)", out=f"{_APPEND}, tau"),
            "copies",
        ),
        (
            "std ignored",
            _GROW.format(new="zero, 0.02 * torch.randn(num_new, values.shape[1])", out=f"{_APPEND}, tau"),
            "std is not used",
        ),
        ("tau forgotten", _GROW.format(new=_RIGHT, out=_APPEND), "three things"),
    ],
}
