"""Operations on sets of tokens: choose, take, put back, measure."""

from .measure import entropy, redundancy
from .select import resolve_keep, scatter_back, take, top_tokens

__all__ = ["entropy", "redundancy", "resolve_keep", "scatter_back", "take", "top_tokens"]
