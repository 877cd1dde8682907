"""Operations on sets of tokens: choose, take, put back, measure."""

from .._lazy import lazy

_EXPORTS = {
    "checks": ("check_scores",),
    "measure": ("entropy", "redundancy"),
    "plan": ("Plan", "Stage", "keep_all"),
    "select": ("resolve_keep", "scatter_back", "take", "top_tokens"),
    "vision": ("SPACES", "VisionOutputs"),
}

__getattr__, __dir__, __all__ = lazy(
    __name__,
    __path__,
    {name: f"{__name__}.{module}" for module, names in _EXPORTS.items() for name in names},
)
