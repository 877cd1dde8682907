"""What many notebooks start from: the plain ViT, and pruning's places in TinyVLM."""

from vtlib.teach.diagrams import chain, diagram
from vtlib.teach.drawings._scene import ALL, QUESTION, SAME, kept
from vtlib.teach.drawings.sketches import Cells, Scene


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


def pruning(
    features: str = "FasterVLM, HiPrune,\nVisionDrop, CrossGET,\nRecoverable",
    tokens: str = "DivPrune, HoloV,\nZOO-Prune, AIM",
    inside: str = "FastV, TransPrune,\nVisionDrop, AIM",
) -> None:
    """Where tokens can leave TinyVLM: 128 x 128 pixels are 256 visual tokens.

    Args:
        features: names of methods that cut behind the encoder.
        tokens: of those behind the projector.
        inside: of those inside the decoder.
    """
    before = f"1: encoder features\n{features}"
    tokens, inside = f"2: visual tokens\n{tokens}", f"3: inside the decoder\n{inside}"
    few = kept([4, 10, 18, 27, 33, 46, 61])
    prompt = Cells(["#######", "ttttt"], 10)
    diagram(
        "Pruning: three places where visual tokens can leave a vision-language model",
        boxes={
            "image": (0, 0, "image\n128 x 128 pixels", "data", Scene()),
            "encoder": (1, 0, "ViT encoder\n4 of 5 layers\nare used", "layer", ALL),
            "features": (2, 0, before, "idea", Cells(few)),
            "projector": (3, 0, "projector\n2 Linear,\n144 to 128", "layer"),
            "tokens": (3, 1, tokens, "idea", Cells(few)),
            "early": (2, 1, "decoder\nlayers 1, 2", "layer", prompt),
            "inside": (1, 1, inside, "idea", Cells(["##.#...", "ttttt"], 10)),
            "late": (0, 1, "decoder\nlayers 3 to 6", "layer", Cells(["###", "ttttt"], 10)),
            "question": (2, 2, QUESTION, "text", Cells(["ttttt"], 10)),
            "answer": (0, 2, "answer\nyes", "text"),
        },
        arrows=[
            ("image", "encoder", "(3, 128, 128)"),
            ("encoder", "features", "(256, 144)"),
            ("features", "projector", "(T, 144)"),
            ("projector", "tokens", "(T, 128)"),
            ("tokens", "early", "(T, 128)"),
            ("early", "inside", "(T + L, 128)"),
            ("inside", "late", "fewer"),
            ("late", "answer", ""),
            ("question", "early", "(L, 128)"),
        ],
        note="T of 256 visual tokens stay, for instance 28; L words join them and always stay. A "
        "method cuts at one of the three places, or at several; where it does not, all tokens "
        "pass. " + SAME,
        legend=False,
    )
