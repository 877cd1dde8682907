"""TokBench."""

from vtlib.teach.diagrams import chain, diagram


def tokbench() -> None:
    """The way of a word through the benchmark."""
    diagram(
        "TokBench: what can still be read, at the places of the original",
        boxes={
            "original": (0, 0, "originals", "data"),
            "tokenizer": (1, 0, "tokenizer\nencode, decode", "layer"),
            "rebuilt": (2, 0, "reconstructions", "data"),
            "crop": (3, 0, "crop at the\noriginal's box", "step"),
            "reader": (4, 0, "reader\nfixed OCR", "layer"),
            "compare": (5, 0, "compare\nT-ACC, T-NED", "step"),
            "known": (0, 1, "words\nand boxes", "text"),
            "refine": (1, 1, "refine\nkeep what the reader\nreads on the original", "idea"),
            "kept": (3, 1, "kept words\nand boxes", "text"),
            "bins": (5, 1, "mean of each\nsize, then of those", "idea"),
        },
        arrows=[
            *chain("original", "tokenizer", "rebuilt", "crop", "reader", "compare", "bins"),
            *chain("known", "refine", "kept", "crop"),
            *chain("original", "refine"),
        ],
        note="Faces take the same way: aligned by the original's key points, a fixed net for faces "
        "in the reader's place, and a cosine (F-Sim) in place of the two words' comparison.",
    )
