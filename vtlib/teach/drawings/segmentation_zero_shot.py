"""Split Matching: two groups of queries, two kinds of targets."""

from vtlib.teach.diagrams import diagram
from vtlib.teach.drawings.sketches import Cells

PICTURE = Cells(("AAoooo", "AAoooo", "AAooCC", "ooooCC"), side=12)
PSEUDO = Cells(("..##..", "..##..", "..##..", "......"), side=12)


def split_matching() -> None:
    """Split Matching at the sizes of the notebook: 8 seen queries, 4 candidates, 12 x 12 places."""
    diagram(
        "Split Matching: labels teach one group of queries, clusters the other",
        boxes={
            "features": (0, 0.5, "dense features\nof a frozen image-text\nencoder", "data"),
            "decoder": (1, 0.5, "decoder\nqueries read the places\ntheir own masks cover", "layer"),
            "seen": (2, 0, "seen queries\nfirst 8: a vector and\na mask each", "layer",
                     Cells(("########",))),
            "candidates": (2, 1, "candidates\nlast 4: the same,\nbut another teacher", "idea",
                           Cells(("++++",))),
            "labels": (3, 0, "labelled masks\nand texts of their classes;\nno partner: no object",
                       "data", PICTURE),
            "pseudo": (3, 1, "pseudo masks\nclusters where nobody\nlabelled, and what each means;\n"
                       "no partner: no loss", "idea", PSEUDO),
        },
        arrows=[
            ("features", "decoder", "(144, 24)"),
            ("decoder", "seen", ""),
            ("decoder", "candidates", ""),
            ("seen", "labels", "match"),
            ("candidates", "pseudo", "match"),
        ],
        note="The two matchings know nothing of each other. At test time every query's vector is "
        "compared with the texts of seen and unseen classes.",
        legend=False,
    )
