"""Operations on sets of tokens: choose, take, put back, measure."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".checks": ("check_scores",),
    ".measure": ("entropy", "redundancy"),
    ".plan": ("Plan", "Stage", "keep_all"),
    ".select": ("resolve_keep", "scatter_back", "take", "top_tokens"),
    ".vision": ("SPACES", "VisionOutputs"),
})
