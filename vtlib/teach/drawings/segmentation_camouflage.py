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
            "unet": (1, 0, "frozen denoiser\none pass, no\ndrawing: maps at\nseveral strides",
                     "layer"),
            "msff": (2, 0, "MSFF\nmulti-scale\nfeature fusion", "learned"),
            "masks": (3, 0, "mask generator\nqueries, a mask\nand a vector\neach", "learned"),
            "final": (4, 0, "final masks\nboth added", "data"),
            "text": (1, 1, "texts\nof a list of classes,\nfrozen", "text", WORDS),
            "tva": (3, 1, "TVA\nproducts with\neach text, less what\nall texts share", "step"),
            "cin": (4, 1, "CIN\nstandardised map,\neach instance's\nown weights", "learned",
                    RAISED),
        },
        arrows=[
            ("image", "unet", "(3, 64, 64)"),
            ("unet", "msff", "maps"),
            ("msff", "masks", ""),
            ("masks", "final", ""),
            ("text", "unet", ""),
            ("text", "tva", "(8, 32)"),
            ("masks", "tva", "vectors"),
            ("tva", "cin", ""),
            ("cin", "final", ""),
        ],
        note="MSFF, mask generator and CIN are trained; TVA has nothing to train. The class of a "
        "mask is the text nearest to its vector, or none.",
        legend=False,
    )
