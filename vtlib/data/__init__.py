"""Data of the course: EmojiWorld (generated pictures with exact ground truth), photographs, digits,
a video, checkpoints.

Needs torch and numpy only; nothing is downloaded. Where each asset comes from and its licence:
data/README.md.
"""

from vtlib.checkpoints import path as checkpoint
from vtlib.checkpoints import root
from vtlib.data.assets import clip, digits, photographs, shots
from vtlib.data.emojiworld import EmojiWorld
from vtlib.data.mosaic import Mosaic
from vtlib.data.pictograms import EASY, categories, pictogram, subcategories
from vtlib.data.questions import KINDS, Question
from vtlib.data.retrieval import Retrieval
from vtlib.data.scenes import Scenes
from vtlib.data.text import TextPictures, text_image
from vtlib.data.video import Video

__all__ = [
    "EASY",
    "EmojiWorld",
    "KINDS",
    "Mosaic",
    "Question",
    "Retrieval",
    "Scenes",
    "TextPictures",
    "Video",
    "categories",
    "checkpoint",
    "clip",
    "digits",
    "photographs",
    "pictogram",
    "root",
    "shots",
    "subcategories",
    "text_image",
]
