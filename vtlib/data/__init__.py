"""Data of the course: EmojiWorld (generated pictures with exact ground truth), photographs, digits,
a video.

Needs torch and NumPy only; nothing is downloaded. Where each asset comes from and its licence:
data/README.md. Modules, and the names below, are imported on first use.
"""

from .._lazy import lazy

_HOMES = {
    "assets": ("clip", "digits", "photographs", "shots"),
    "emojiworld": ("EmojiWorld",),
    "mosaic": ("Mosaic",),
    "pictograms": ("EASY", "categories", "pictogram", "subcategories"),
    "questions": ("KINDS", "Question"),
    "retrieval": ("Retrieval",),
    "scenes": ("Scenes",),
    "text": ("TextPictures", "text_image"),
    "video": ("Video",),
}
_EXPORTS = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}
_EXPORTS["root"] = __name__.removesuffix("data") + "checkpoints"

__getattr__, __dir__, __all__ = lazy(__name__, __path__, _EXPORTS)
__all__ += ["checkpoint"]


def checkpoint(name):
    """Where a checkpoint lies: see `vtlib.checkpoints.path`."""
    from ..checkpoints import path

    return path(name)
