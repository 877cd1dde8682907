"""ResTok, its generator, HieraTok."""

from vtlib.teach.diagrams import chain, diagram


def restok() -> None:
    """The tokenizer on 64 px, with the shipped model's sizes."""
    diagram(
        "ResTok: latents begin as what is left over, image tokens are merged on the way",
        boxes={
            "image": (0, 0, "picture\n64 x 64", "data"),
            "cnn": (1, 0, "CNN\nfactor 8", "layer"),
            "pool": (1, 1, "residual\npyramid\n7 levels", "idea"),
            "encoder": (2, 0, "encoder\n3 blocks, the\nfirst 2 merge", "idea"),
            "heads": (3, 0, "head and VQ\na head a level", "layer"),
            "codes": (4, 0, "64 indices\ncoarse to fine", "data"),
            "hide": (4, 1, "keep the\nfirst k", "step"),
            "decoder": (3, 1, "decoder\n2 blocks,\nthen CNN", "layer"),
            "back": (3, 2, "picture", "data"),
        },
        arrows=[
            ("image", "cnn", ""),
            ("cnn", "encoder", "64 tokens"),
            ("cnn", "pool", ""),
            ("pool", "encoder", "64 latents", "hv"),
            ("encoder", "heads", "64 latents"),
            ("heads", "codes", ""),
            ("codes", "hide", ""),
            ("hide", "decoder", ""),
            ("decoder", "back", ""),
        ],
        note="Each token and each latent has 64 channels. Merging makes 64 image tokens 96, then "
        "112: 64 of the map, then 32 and 16 merged ones. Only the 64 latents leave the encoder; "
        "hidden codes become a mask token.",
    )


def har() -> None:
    """The generator of 64 tokens: what each pass reads and predicts."""
    diagram(
        "HAR: four tokens one by one, then a whole level a pass",
        boxes={
            "start": (0, 0, "class, t0, t1, t2", "data"),
            "first": (1, 0, "passes 1 to 4", "layer"),
            "four": (2, 0, "tokens t0 to t3\none by one", "data"),
            "more": (0, 1, "t3 and\ns0 to s2", "learned"),
            "fifth": (1, 1, "pass 5", "idea"),
            "eight": (2, 1, "t4 to t7\nat once", "data"),
            "most": (0, 2, "t4 to t7 and\ns3 to s6", "learned"),
            "sixth": (1, 2, "pass 6", "idea"),
            "sixteen": (2, 2, "t8 to t15\nat once", "data"),
            "and": (3, 2, "... pass 8:\n32 tokens", "step"),
        },
        arrows=[
            *chain("start", "first", "four"),
            *chain("more", "fifth", "eight"),
            *chain("most", "sixth", "sixteen", "and"),
            ("first", "fifth", "cache"),
            ("fifth", "sixth", "cache"),
        ],
        note="One transformer in all passes. s0, s1, ...: learned special tokens, where a pass has "
        "more places than unread tokens. A pass sees all passes before it through the cache.",
    )


def hieratok() -> None:
    """The tokenizer on 64 px, with the shipped model's sizes."""
    diagram(
        "HieraTok: the decoder reads one map at several scales",
        boxes={
            "image": (0, 0, "picture\n64 x 64", "data"),
            "encoder": (1, 0, "ViT encoder\n4 blocks", "layer"),
            "map": (2, 0, "map Z\n8 x 8, stored", "data"),
            "pool": (3, 0, "pool to 1, 2, 4\nkeep 8", "idea"),
            "decoder": (3, 1, "ViT decoder\n4 blocks,\nscale-causal", "idea"),
            "last": (2, 1, "the last\n64 tokens", "step"),
            "back": (1, 1, "picture\n64 x 64", "data"),
        },
        arrows=[
            ("image", "encoder", ""),
            ("encoder", "map", "(64, 8)"),
            ("map", "pool", "(64, 8)"),
            ("pool", "decoder", "(85, 8)"),
            ("decoder", "last", "(85, 48)"),
            ("last", "back", "(64, 192)"),
        ],
        note="Shapes without the batch: tokens, channels. 85 = 1 + 4 + 16 + 64. The 21 coarse "
        "tokens are means of the 64: nothing of them is stored.",
    )
