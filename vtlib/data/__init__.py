"""Data of the course: EmojiWorld (generated pictures with exact ground truth), photographs, digits,
a video.

Needs torch and NumPy only; nothing is downloaded. Where each asset comes from and its licence:
data/README.md. Modules, and the names below, are imported on first use.
"""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    "..checkpoints": ("path as checkpoint", "root"),
    ".assets": ("clip", "digits", "photographs", "shots"),
    ".biomes": ("Biomes",),
    ".emojiworld": ("EmojiWorld",),
    ".mosaic": ("Mosaic",),
    ".pictograms": ("EASY", "categories", "pictogram", "subcategories"),
    ".questions": ("KINDS", "Question"),
    ".retrieval": ("Retrieval",),
    ".scenes": ("Scenes",),
    ".stuff": ("STUFF", "StuffScenes", "stuff_scenes"),
    ".text": ("TextPictures", "text_image"),
    ".textures": ("TextureScenes", "TextureWorld"),
    ".video": ("Video",),
})
