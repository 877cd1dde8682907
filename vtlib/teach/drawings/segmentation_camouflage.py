"""Camouflaged instances: a frozen generator's features, texts, and the head between them."""

from vtlib.teach.diagrams import diagram
from vtlib.teach.drawings.sketches import Cells

HIDDEN = Cells(("oooooo", "oo##oo", "oo##oo", "oooooo"), side=12)
RAISED = Cells(("111111", "118811", "119911", "111111"), side=12)
WORDS = Cells(("ttt",), side=13)


def camouflage() -> None:
    """The head at the sizes of the notebook: pictures of 64 pixels, 8 texts of 32 numbers."""
    diagram(
        "Camouflage: a frozen generator's features, compared with texts, lifted off the ground",
        boxes={
            "image": (0, 0, "picture\nobject and ground\nlook alike", "data", HIDDEN),
            "unet": (1, 0, "frozen denoiser\none pass, no drawing:\nmaps at several strides",
                     "layer"),
            "msff": (2, 0, "MSFF\nfuses the maps", "learned"),
            "masks": (3, 0, "mask generator\nqueries, a mask\nand a vector each", "learned"),
            "text": (0, 1, "texts\nof a list of classes,\nfrozen", "text", WORDS),
            "tva": (2, 1, "TVA\nproducts with each text,\nless what all texts share", "step"),
            "cin": (3, 1, "CIN\nstandardised map, each\ninstance's own weights", "learned", RAISED),
        },
        arrows=[
            ("image", "unet", "(3, 64, 64)"),
            ("unet", "msff", ""),
            ("msff", "masks", ""),
            ("text", "unet", ""),
            ("text", "tva", "(8, 32)"),
            ("masks", "tva", "vectors"),
            ("tva", "cin", ""),
            ("cin", "masks", "added"),
        ],
        note="MSFF, mask generator and CIN are trained, nothing else is. The class of a mask is "
        "the text nearest to its vector, or none.",
        legend=False,
    )
