"""Operations on sets of tokens: choose, take, put back, measure."""

from .measure import entropy, redundancy
from .plan import Plan, Stage, keep_all
from .select import resolve_keep, scatter_back, take, top_tokens
from .vision import SPACES, VisionOutputs

__all__ = [
    "SPACES",
    "Plan",
    "Stage",
    "VisionOutputs",
    "entropy",
    "keep_all",
    "redundancy",
    "resolve_keep",
    "scatter_back",
    "take",
    "top_tokens",
]
