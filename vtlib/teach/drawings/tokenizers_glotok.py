"""GloTok: the tokenizer, and its global loss."""

from vtlib.teach.diagrams import chain, diagram


def glotok() -> None:
    """The small model of notebook 02c, on 64 x 64 pixels."""
    diagram(
        "GloTok: two codebooks, each with an index and a residual net of its own",
        boxes={
            "image": (0, 1.5, "picture\n64 x 64", "data"),
            "encoder": (1, 1.5, "CNN\nfactor 8", "layer"),
            "a_sem": (2, 1, "adapter", "layer"),
            "a_vis": (2, 2, "adapter", "layer"),
            "sem": (3, 1, "semantic\n128 codes", "learned"),
            "vis": (3, 2, "visual\n384 codes", "learned"),
            "r_sem": (4, 1, "+ R_sem\nguesses what\nis missing", "idea"),
            "r_vis": (4, 2, "+ R_vis\nguesses what\nis missing", "idea"),
            "decoder": (5, 1.5, "CNN\ndecoder", "layer"),
            "back": (5, 2.5, "picture\nagain", "data"),
            "teacher": (1, 0, "teacher\nonce, before\ntraining", "data"),
            "loss": (3, 0, "histogram\nof cosines:\nas the teacher's", "idea"),
        },
        arrows=[
            *chain("image", "encoder"),
            ("encoder", "a_sem", "", "hvh"),
            ("encoder", "a_vis", "", "hvh"),
            ("a_sem", "sem", "(8, 8, 8)"),
            ("a_vis", "vis", "(8, 8, 8)"),
            *chain("sem", "r_sem"),
            *chain("vis", "r_vis"),
            ("r_sem", "decoder", "(8, 8, 8)", "hvh"),
            ("r_vis", "decoder", "(8, 8, 8)", "hvh"),
            ("decoder", "back", ""),
            ("teacher", "loss", "histogram (40)"),
            ("loss", "sem", ""),
        ],
        note="Shapes without the batch: rows, columns, channels. The loss of the histogram looks "
        "at the 128 semantic codes alone, not at pictures. At use the teacher and the loss are "
        "gone; R_sem and R_vis stay.",
    )


def glotok_histogram() -> None:
    """From a codebook to the loss."""
    diagram(
        "One number for a whole codebook: how far its cosines are from the teacher's",
        boxes={
            "codes": (0, 0, "128 codes", "learned"),
            "cosines": (1, 0, "cosines\nof all pairs\ni <= j", "step"),
            "bins": (2, 0, "soft\nhistogram\n40 bins", "idea"),
            "loss": (3, 0.5, "KL", "idea"),
            "features": (0, 1, "128 centres\nof a teacher's\nfeatures", "data"),
            "cosines_t": (1, 1, "cosines\nof all pairs\ni <= j", "step"),
            "bins_t": (2, 1, "soft\nhistogram\nonce", "step"),
        },
        arrows=[
            ("codes", "cosines", "(128, 8)"),
            ("cosines", "bins", "(8256)"),
            ("bins", "loss", "P_s (40)", "hvh"),
            ("features", "cosines_t", "(128, 128)"),
            ("cosines_t", "bins_t", "(8256)"),
            ("bins_t", "loss", "P_t (40)", "hvh"),
        ],
        note="The two sets may differ in number and in length of their vectors: only cosines are "
        "compared. The gradient goes back along the upper row, to the codes.",
    )
