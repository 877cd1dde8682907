"""What every later drawing starts from: the plain ViT."""

from vtlib.teach.diagrams import chain, diagram


def vit() -> None:
    """The ViT of notebook 00: 64 x 64 pixels, patches of 8, D = 96, 4 blocks, 12 classes."""
    diagram(
        "ViT: an image becomes a row of tokens that look at each other",
        boxes={
            "cls": (3, 0, "[CLS] token\n(1, 96)", "learned"),
            "positions": (4, 0, "positions\n(65, 96)", "learned"),
            "image": (0, 1, "image\n64 x 64 pixels", "data"),
            "cut": (1, 1, "cut into patches\nof 8 x 8 pixels", "step"),
            "embed": (2, 1, "Linear\n192 to 96", "layer"),
            "prepend": (3, 1, "[CLS] in front\nof the row", "step"),
            "add": (4, 1, "+", "sum"),
            "tokens": (0, 2, "tokens\n[CLS] and 64", "data"),
            "attention": (1, 2, "self-attention\nafter LayerNorm\n3 heads", "idea"),
            "add1": (2, 2, "+", "sum"),
            "mlp": (3, 2, "MLP\nafter LayerNorm\n96 to 384 to 96", "layer"),
            "add2": (4, 2, "+", "sum"),
            "take": (4, 3, "take [CLS]\nafter LayerNorm", "layer"),
            "head": (3, 3, "Linear\n96 to 12", "layer"),
            "logits": (2, 3, "logits\none a class", "data"),
        },
        arrows=[
            ("image", "cut", "(3, 64, 64)"),
            ("cut", "embed", "(64, 192)"),
            ("embed", "prepend", "(64, 96)"),
            ("prepend", "add", "(65, 96)"),
            ("add", "tokens", "(65, 96)", "vhv"),
            *chain("tokens", "attention", "add1", "mlp", "add2"),
            ("add2", "take", "(65, 96)"),
            ("take", "head", "(96)"),
            ("head", "logits", "(12)"),
            ("cls", "prepend", ""),
            ("positions", "add", ""),
            ("tokens", "add1", "", "above"),
            ("add1", "add2", "", "above"),
        ],
        groups=[(("attention", "add1", "mlp", "add2"), "x 4 blocks")],
        note="Shapes without the batch. A patch has 8 x 8 x 3 = 192 numbers, a token D = 96. "
        "Dashed arrows are skips: what a step finds is added to what was there.",
    )
