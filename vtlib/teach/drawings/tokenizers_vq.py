"""A vector-quantised autoencoder, TokenFlow."""

from vtlib.teach.diagrams import chain, diagram


def vq_autoencoder() -> None:
    """The small one that notebook 02 trains: 64 x 64 pixels, 64 tokens, codes of two numbers."""
    diagram(
        "A picture as numbers: encoder, choice of a code, decoder",
        boxes={
            "image": (0, 1, "picture\n64 x 64 pixels", "data"),
            "encoder": (1, 1, "encoder\nconvolutions", "layer"),
            "choice": (2, 1, "nearest code\nargmin", "idea"),
            "tokens": (3, 1, "64 tokens\n= numbers\n(8, 8)", "data"),
            "lookup": (4, 1, "look up\nthe codes", "step"),
            "decoder": (5, 1, "decoder\nconvolutions", "layer"),
            "back": (5, 2, "picture again", "data"),
            "book": (3, 0, "codebook\n64 codes", "learned"),
        },
        arrows=[
            ("image", "encoder", ""),
            ("encoder", "choice", "(2, 8, 8)"),
            ("choice", "tokens", ""),
            ("tokens", "lookup", ""),
            ("lookup", "decoder", "(2, 8, 8)"),
            ("decoder", "back", "(3, 64, 64)"),
            ("book", "choice", "", "hv"),
            ("book", "lookup", "", "hv"),
            ("lookup", "encoder", "backwards, the gradient: straight through", "below"),
        ],
        note="Shapes without the batch. What is stored or sent are the 64 numbers alone: who has "
        "the codebook and the decoder can make the picture of them.",
        meanings={"learned": "learned table", "idea": "the choice"},
    )


def tokenflow() -> None:
    """TokenFlow-B at 224 px, shapes of the last scale."""
    diagram(
        "TokenFlow: two encoders, two codebooks, one index",
        boxes={
            "image": (0, 1, "picture\n224 x 224", "data"),
            "tower": (1, 0, "vision tower\nCLIP's ViT,\ntrained on", "layer"),
            "cnn": (1, 2, "CNN\nfactor 16", "layer"),
            "choice": (2, 1, "one index i\nargmin of\nd_sem + w d_pix", "idea"),
            "semantic": (3, 0, "Z_sem[i]\nmeaning", "learned"),
            "pixel": (3, 2, "Z_pix[i]\nlook", "learned"),
            "vit": (4, 0, "small ViT\n3 layers", "layer"),
            "decoder": (4, 2, "CNN decoder", "layer"),
            "teacher": (5, 0, "features of\nfrozen CLIP", "data"),
            "llm": (4, 1, "language model\nreads both halves", "step"),
            "back": (5, 2, "picture\nagain", "data"),
        },
        arrows=[
            ("image", "tower", "", "hvh"),
            ("image", "cnn", "", "hvh"),
            ("tower", "choice", "(196, 32)", "hvh"),
            ("cnn", "choice", "(196, 8)", "hvh"),
            ("choice", "semantic", "", "hvh"),
            ("choice", "pixel", "", "hvh"),
            ("choice", "llm", "(196, 40)"),
            *chain("semantic", "vit", "teacher"),
            *chain("pixel", "decoder", "back"),
        ],
        note="Right: the half of meaning is asked for CLIP's features, that of the look for the "
        "picture. Shapes without the batch: 14 x 14 = 196 places, 32 numbers for meaning and 8 for "
        "the look. The choice is repeated in scales of 1 x 1 to 14 x 14; drawn is the last.",
        meanings={"learned": "learned table"},
    )
