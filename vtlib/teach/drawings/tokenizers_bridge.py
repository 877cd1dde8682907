"""TokenBridge, ETT."""

from vtlib.teach.diagrams import chain, diagram


def tokenbridge() -> None:
    """The tokenizer and its generator on 64 px, with the shipped models' 8 channels."""
    diagram(
        "TokenBridge: a trained autoencoder, cut into levels afterwards",
        boxes={
            "image": (0, 0, "image\n(3, 64, 64)", "data"),
            "encoder": (1, 0, "encoder\nfrozen", "layer"),
            "cut": (2, 0, "nearest level\neach channel\non its own", "idea"),
            "values": (3, 0, "values of\nthe levels", "step"),
            "decoder": (4, 0, "decoder\nthe same, frozen", "layer"),
            "out": (5, 0, "image\n(3, 64, 64)", "data"),
            "class": (0, 1, "class", "data"),
            "net": (1, 1, "masked\ntransformer", "layer"),
            "head": (2, 1, "small head\none channel after\nanother", "idea"),
            "new": (3, 1, "new indices\n(64, 8)", "data"),
        },
        arrows=[
            *chain("image", "encoder"),
            ("encoder", "cut", "(8, 8, 8)"),
            ("cut", "values", "indices"),
            ("values", "decoder", "(8, 8, 8)"),
            *chain("decoder", "out"),
            *chain("class", "net"),
            ("net", "head", "z (64, 64)"),
            *chain("head", "new", "values"),
            ("new", "net", "their values, as known places", "below"),
        ],
        note="Shapes without the batch. Top: the tokenizer; nothing in it is trained for the "
        "levels. Bottom: the generator reads values and predicts indices, 8 for each of 64 places.",
    )


def tokenbridge_head() -> None:
    """The dimension-wise head for one place with three of its channels."""
    diagram(
        "The head: each channel is drawn knowing those before it",
        boxes={
            "z": (0, 1, "context z\nof one place", "data"),
            "a": (1, 0, "Linear(z)", "layer"),
            "e0": (2, 0, "E0 of the\n1st channel", "learned"),
            "e1": (3, 0, "E1 of the\n2nd channel", "learned"),
            "block": (2, 1, "causal blocks\ntold z at each step", "idea"),
            "l0": (1, 2, "1st channel\n16 levels", "data"),
            "l1": (2, 2, "2nd channel\n16 levels", "data"),
            "l2": (3, 2, "3rd channel\n16 levels", "data"),
        },
        arrows=[
            ("z", "a", "", "hvh"),
            ("a", "block", "", "vh"),
            ("e0", "block", ""),
            ("e1", "block", "", "vh"),
            ("block", "l0", "", "vhv"),
            ("block", "l1", ""),
            ("block", "l2", "", "vhv"),
        ],
        note="The channels come in the order of their low frequencies. E0, E1: tables, one a step. "
        "An index that was drawn goes back in at the next step, through its table.",
    )


def ett() -> None:
    """ETT at 64 px with the shipped model's sizes."""
    diagram(
        "ETT: the language model reads codes, so the tokenizer can be tuned",
        boxes={
            "image": (0, 0, "image\n(3, 64, 64)", "data"),
            "encoder": (1, 0, "encoder", "layer"),
            "ibq": (2, 0, "IBQ\nchooses codes,\nlets gradients through", "idea"),
            "decoder": (3, 0, "decoder", "layer"),
            "out": (4, 0, "image", "data"),
            "vq": (5, 0, "L_vq", "step"),
            "projector": (2, 1, "projector\nLinear, GELU, Linear", "idea"),
            "lm": (3, 1, "language\nmodel", "layer"),
            "text": (4, 1, "caption", "data"),
            "cap": (5, 1, "L_cap", "step"),
        },
        arrows=[
            *chain("image", "encoder"),
            ("encoder", "ibq", "(8, 8, 16)"),
            ("ibq", "decoder", "(8, 8, 16)"),
            *chain("decoder", "out", "vq"),
            ("ibq", "projector", "codes, not indices"),
            ("projector", "lm", "(64, 80)"),
            *chain("lm", "text", "cap"),
        ],
        note="Shapes without the batch. Loss: L_cap + alpha L_vq. Stage 1 trains the projector, "
        "stage 2 everything, stage 3 projector and language model.",
    )
