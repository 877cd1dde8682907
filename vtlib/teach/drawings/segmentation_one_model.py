"""OneFormer: from the picture and the task's sentence to classes and masks."""

from vtlib.teach.diagrams import chain, diagram


def oneformer() -> None:
    """The small model of notebook 08c."""
    diagram(
        "OneFormer: the sentence becomes a token, the token becomes the queries",
        boxes={
            "sentence": (0, 1, '"the task is\npanoptic"\n8 ids', "data"),
            "mlp": (1, 1, "task token\nby an MLP\nand a norm", "idea"),
            "copies": (2, 1, "15 copies\n+ places", "step"),
            "form": (3, 1, "query\nlayers\n(2)", "layer"),
            "decoder": (4, 2, "masked\ndecoder\n3 layers", "layer"),
            "heads": (5, 2, "class and\nmask of\neach query", "layer"),
            "image": (0, 2, "picture\n96 x 96", "data"),
            "pixels": (1, 2, "pixel net", "layer"),
            "features": (2, 2, "4 maps\nfinest: one\nfeature per\n4 x 4 pixels", "step"),
            "list": (1, 0, "text list\n12 sentences", "data"),
            "texts": (2, 0, "text net\na small\ntransformer\n+ 4 rows", "layer"),
            "contrast": (3, 0, "contrast\nwhose list\nis it?", "idea"),
        },
        arrows=[
            *chain("sentence", "mlp"),
            ("mlp", "copies", "(64)"),
            *chain("copies", "form"),
            ("form", "decoder", "(16, 64)", "hv"),
            *chain("image", "pixels"),
            ("pixels", "features", "(64, 24, 24)"),
            ("features", "form", "keys", "vhv"),
            ("features", "decoder", "3 coarse\nmaps"),
            ("decoder", "heads", "(16, 64)"),
            *chain("list", "texts"),
            ("texts", "contrast", "(16, 64)"),
            ("form", "contrast", "(16, 64)"),
        ],
        note="Shapes without the batch. The task token itself is the 16th query. A mask is the "
        "product of a query and the finest map. The upper row is there in training only.",
    )
