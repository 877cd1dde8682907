"""Operations on sets of tokens: choose, take, put back, measure."""

from .checks import check_scores
from .measure import entropy, redundancy
from .plan import Plan, Stage, keep_all
from .select import resolve_keep, scatter_back, take, top_tokens
from .vision import SPACES, VisionOutputs

__all__ = [
    "SPACES",
    "Plan",
    "Stage",
    "VisionOutputs",
    "check_scores",
    "entropy",
    "keep_all",
    "redundancy",
    "resolve_keep",
    "scatter_back",
    "take",
    "top_tokens",
]
