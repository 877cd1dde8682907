"""What many notebooks start from: the plain ViT, and pruning's places in TinyVLM."""

from vtlib.teach.diagrams import chain, diagram


def vit() -> None:
    """The ViT of notebook 00: 64 x 64 pixels, patches of 8, D = 96, 4 blocks, 12 classes."""
    diagram(
        "ViT: an image becomes a row of tokens that look at each other",
        boxes={
            "cls": (3, 0, "[CLS] token\n(1, 96)", "learned"),
            "positions": (4, 0, "positions\n(65, 96)", "learned"),
            "image": (0, 1, "image\n64 x 64 pixels", "data"),
            "cut": (1, 1, "cut into patches\nof 8 x 8 pixels", "idea"),
            "embed": (2, 1, "Linear\n192 to 96", "layer"),
            "prepend": (3, 1, "prepend [CLS]\none more token", "step"),
            "add": (4, 1, "+", "sum"),
            "tokens": (0, 2, "tokens\n[CLS] and 64", "data"),
            "attention": (1, 2, "self-attention\nLayerNorm first,\n3 heads", "layer"),
            "add1": (2, 2, "+", "sum"),
            "mlp": (3, 2, "MLP\nLayerNorm first,\n96 to 384 to 96", "layer"),
            "add2": (4, 2, "+", "sum"),
            "take": (4, 3, "take [CLS]\nLayerNorm first", "layer"),
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


def pruning() -> None:
    """Where tokens can leave TinyVLM: 128 x 128 pixels are 256 visual tokens."""
    diagram(
        "Pruning: three places where visual tokens can leave a vision-language model",
        boxes={
            "image": (0, 0, "image\n128 x 128", "data"),
            "encoder": (1, 0, "ViT encoder\n5 layers", "layer"),
            "features": (2, 0, "select features\nscore, select, apply", "idea"),
            "projector": (3, 0, "projector\n2 Linear", "layer"),
            "tokens": (3, 1, "select tokens\nscore, select, apply", "idea"),
            "prompt": (2, 1, "prompt\ntokens, then words", "step"),
            "early": (1, 1, "decoder\nlayers 1, 2", "layer"),
            "inside": (0, 1, "select inside\nwords may vote", "idea"),
            "late": (0, 2, "decoder\nlayers 3 to 6", "layer"),
            "question": (2, 2, "question\nis there a crab?", "data"),
            "answer": (1, 2, "answer\nyes", "data"),
        },
        arrows=[
            ("image", "encoder", ""),
            ("encoder", "features", "(256, 144)"),
            ("features", "projector", "(T, 144)"),
            ("projector", "tokens", "(T, 128)"),
            ("tokens", "prompt", "(T, 128)"),
            ("prompt", "early", "(T + L, 128)"),
            ("early", "inside", ""),
            ("inside", "late", "fewer tokens"),
            ("late", "answer", ""),
            ("question", "prompt", "(L, 128)"),
        ],
        note="Shapes without the batch. T of 256 visual tokens stay, L words join them. A method "
        "selects at one of the three places, or at several; where it does not, all tokens pass.",
    )
