"""VWFormer's varying windows, CASWiT's two branches."""

from vtlib.teach.diagrams import diagram


def vwformer() -> None:
    """One scale, R = 4, of the shipped decoder: 64 channels, a map of 16 x 16, windows of 2 x 2."""
    diagram(
        "One scale of VWFormer, R = 4: the query window stays, its context grows",
        boxes={
            "x": (0, 0, "map x\nlevels 2 to 4,\nfused", "data"),
            "query": (3, 0, "query windows\n2 x 2 pixels", "step"),
            "attend": (4, 0, "attention\nin each window", "layer"),
            "merge": (5, 0, "merge the\nwindows", "step"),
            "dope": (0, 1, "conv 4 x 4\n64 to 4\nchannels", "layer"),
            "pad": (1, 1, "copy-shift\npadding", "idea"),
            "context": (2, 1, "context\nwindows\n8 x 8 pixels", "step"),
            "fold": (4, 1, "fold 4 x 4\npixels into\nchannels", "idea"),
        },
        arrows=[
            ("x", "query", "(64, 16, 16)"),
            ("query", "attend", ""),
            ("attend", "merge", ""),
            ("x", "dope", ""),
            ("dope", "pad", ""),
            ("pad", "context", ""),
            ("context", "fold", "64 x (4, 8, 8)"),
            ("fold", "attend", "(64, 2, 2)"),
        ],
        note="Shapes: channels, height, width. Padded, the small map is (4, 22, 22). The decoder "
        "has R = 2, 4, 8 side by side; each has 64 windows.",
    )


def caswit() -> None:
    """The shipped model: three stages, 24 channels at first."""
    diagram(
        "CASWiT: a sharp crop asks a blurred window around it, after every stage",
        boxes={
            "crop": (0, 0, "crop\n64 x 64", "data"),
            "h1": (1, 0, "Swin\nstage 1", "layer"),
            "fuse1": (2, 0, "ask, gate,\nadd", "idea"),
            "h2": (3, 0, "Swin\nstage 2", "layer"),
            "fuse2": (4, 0, "ask, gate,\nadd", "idea"),
            "decoder": (5, 0, "stage 3,\ndecoder", "layer"),
            "context": (0, 1, "window\n256 x 256,\nshrunk to 64", "data"),
            "l1": (1, 1, "Swin\nstage 1", "layer"),
            "k1": (2, 1, "keys,\nvalues", "step"),
            "l2": (3, 1, "Swin\nstage 2", "layer"),
            "k2": (4, 1, "keys,\nvalues", "step"),
            "aux": (5, 1, "auxiliary\nhead", "layer"),
        },
        arrows=[
            ("crop", "h1", ""),
            ("h1", "fuse1", ""),
            ("fuse1", "h2", ""),
            ("h2", "fuse2", ""),
            ("fuse2", "decoder", ""),
            ("context", "l1", ""),
            ("l1", "k1", "(24, 16, 16)"),
            ("k1", "l2", ""),
            ("l2", "k2", "(48, 8, 8)"),
            ("k2", "aux", ""),
            ("k1", "fuse1", ""),
            ("k2", "fuse2", ""),
        ],
        note="Queries come from the crop, keys and values from the window. The lower branch gets "
        "nothing from the upper one. Stage 3 fuses as well.",
    )
