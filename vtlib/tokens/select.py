"""Score, select, apply: the selection is a value, kept indices in ascending order."""

import torch


def resolve_keep(keep, num_tokens):
    """Number of tokens to keep out of num_tokens: `keep` is an int (tokens) or a float in (0, 1] (fraction, rounded, at least 1).

    Raises ValueError for anything else, also for keep > num_tokens.
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise ValueError(f"keep={keep!r} must be an int (tokens kept) or a float in (0, 1] (fraction kept)")
    if isinstance(keep, float):
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"keep={keep} is a float, so it is a fraction and must lie in (0, 1]; use an int to count tokens")
        return max(1, round(keep * num_tokens))
    if not 1 <= keep <= num_tokens:
        raise ValueError(f"keep={keep} but there are {num_tokens} tokens; it must lie in 1 ... {num_tokens}")
    return keep


def top_tokens(score, keep, num_prefix=0):
    """Indices of the highest-scoring tokens, ascending; the first num_prefix tokens (CLS, registers) are always kept.

    score: (B, N) over all tokens, prefix included (its scores are ignored). keep counts the others: int or fraction of N - num_prefix.
    Returns (B, num_prefix + keep) long. Ties go to the lower index.
    """
    rest = score[:, num_prefix:]
    k = resolve_keep(keep, rest.shape[1])
    order = rest.argsort(dim=1, descending=True, stable=True)[:, :k] + num_prefix
    prefix = torch.arange(num_prefix, device=score.device).expand(score.shape[0], -1)
    return torch.cat([prefix, order.sort(dim=1).values], dim=1)


def take(x, index):
    """Gather tokens: x (B, N, ...), index (B, K) -> (B, K, ...)."""
    view = index.reshape(*index.shape, *[1] * (x.dim() - 2))
    return x.gather(1, view.expand(*index.shape, *x.shape[2:]))


def scatter_back(x, index, num_tokens, fill=0.0):
    """The inverse of `take`: x (B, K, ...) goes to its places among num_tokens, all others hold `fill`. -> (B, num_tokens, ...)."""
    out = x.new_full((x.shape[0], num_tokens, *x.shape[2:]), fill)
    view = index.reshape(*index.shape, *[1] * (x.dim() - 2)).expand_as(x)
    return out.scatter(1, view, x)
