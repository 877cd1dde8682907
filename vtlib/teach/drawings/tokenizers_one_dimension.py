"""GigaTok, ReToK: tokens in one dimension."""

from vtlib.teach.diagrams import chain, diagram


def gigatok() -> None:
    """The shipped model on 64 x 64 pixels: 64 tokens of 512 codes, width 40."""
    diagram(
        "GigaTok: a grid becomes a row of tokens, and a grid again",
        boxes={
            "image": (0, 0, "picture\n64 x 64", "data"),
            "cnn": (1, 0, "CNN", "layer"),
            "pool": (2, 0, "means over\never finer\nblocks", "idea"),
            "qformer": (3, 0, "Q-Former\nencoder", "layer"),
            "vq": (4, 0, "nearest of\n512 codes", "learned"),
            "tokens": (5, 0, "64 tokens\nin a row", "data"),
            "first": (4, 1, "64 copies of\ntoken 1, which\nread all tokens", "idea"),
            "decoder": (3, 1, "Q-Former\ndecoder", "layer"),
            "cnn2": (2, 1, "CNN", "layer"),
            "back": (1, 1, "picture\nagain", "data"),
            "mlp": (3, 2, "MLP", "layer"),
            "loss": (2, 2, "- cosine\nin training", "step"),
            "teacher": (1, 2, "features of a\nfrozen teacher", "data"),
        },
        arrows=[
            *chain("image", "cnn"),
            ("cnn", "pool", "(64, 32)"),
            ("pool", "qformer", "(64, 40)"),
            ("qformer", "vq", "(64, 8)"),
            *chain("vq", "tokens"),
            ("tokens", "first", "", "vh"),
            ("first", "decoder", "(64, 40)"),
            ("decoder", "cnn2", "(64, 32)"),
            *chain("cnn2", "back"),
            ("decoder", "mlp", "an early\nlayer"),
            ("mlp", "loss", "(64, 128)"),
            *chain("teacher", "loss"),
        ],
        note="Shapes without the batch: tokens or places of the 8 x 8 grid, then channels. The "
        "encoder's queries read the CNN's map; the decoder's queries read all the tokens.",
    )


def retok() -> None:
    """The shipped model: N = 64 real tokens, M = 60 redundant ones."""
    diagram(
        "ReToK: redundant tokens behind the real ones, in training",
        boxes={
            "pool": (0, 0, "64 queries\nmeans of blocks", "step"),
            "copies": (0, 1, "60 copies\nof the last 60", "idea"),
            "encoder": (1, 0.5, "Q-Former\nencoder", "layer"),
            "codes": (2, 0.5, "124 codes", "data"),
            "cut": (3, 0, "keep the\nfirst k\nk from 4 to 124", "idea"),
            "use": (3, 1, "keep the\nfirst 64\nor fewer", "step"),
            "decoder": (4, 0.5, "decoder", "layer"),
            "back": (5, 0.5, "picture\nagain", "data"),
        },
        arrows=[
            ("pool", "encoder", "(64, 40)", "hvh"),
            ("copies", "encoder", "(60, 40)", "hvh"),
            ("encoder", "codes", "(124, 8)"),
            ("codes", "cut", "training", "hvh"),
            ("codes", "use", "use", "hvh"),
            ("cut", "decoder", "(k, 8)", "hvh"),
            ("use", "decoder", "(64, 8)", "hvh"),
            *chain("decoder", "back"),
        ],
        note="Shapes without the batch: tokens, channels. Each copy has a position of its own. "
        "In training k is drawn anew for each picture.",
    )
