"""Expedit."""

from vtlib.teach.diagrams import diagram


def expedit() -> None:
    """The hourglass in the notebook's small ViT."""
    diagram(
        "Expedit: few tokens in the middle, all of them again at the end",
        boxes={
            "image": (0, 1, "image\n128 x 128", "data"),
            "early": (1, 1, "blocks\n1 ... alpha", "layer"),
            "cluster": (2, 1, "cluster\n5 rounds", "idea"),
            "late": (3, 1, "other blocks\nalpha + 1 ... 6", "layer"),
            "rebuild": (4, 1, "rebuild\nk nearest", "idea"),
            "head": (4, 2, "head\na class a token", "layer"),
            "centres": (3, 0, "alikeness of each\ntoken and each centre", "step"),
        },
        arrows=[
            ("image", "early", "(256, 192)"),
            ("early", "cluster", "(256, 128)"),
            ("cluster", "late", "(64, 128)"),
            ("late", "rebuild", "(64, 128)"),
            ("rebuild", "head", "(256, 128)"),
            ("cluster", "centres", "", "vh"),
            ("centres", "rebuild", "(256, 64)", "hv"),
        ],
        note="Shapes without the batch: tokens, channels. The two orange steps have no weights: "
        "they are put into a trained model, which stays as it is. [CLS] walks past both.",
    )
