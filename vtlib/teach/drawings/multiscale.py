"""CrossViT, CrossFormer, TokenFormer."""

import torch

from vtlib.multiscale import crossformer as crossformer_code
from vtlib.teach import diagrams
from vtlib.teach.diagrams import chain, diagram, styled
from vtlib.teach.drawings._grids import cells, page, write


def crossvit() -> None:
    """CrossViT-Ti: images of 240 and 224 pixels, patches of 12 and 16, 3 encoders."""
    head = "take [CLS]\nLayerNorm, Linear"
    diagram(
        "CrossViT: two branches that meet only in their [CLS] tokens",
        boxes={
            "image": (0, 0.5, "image", "data"),
            "small": (1, 0, "branch S: tokens\n20 x 20 small patches,\n[CLS], positions", "layer"),
            "large": (1, 1, "branch L: tokens\n14 x 14 large patches,\n[CLS], positions", "layer"),
            "blocks_s": (2, 0, "1 ViT block\nnarrow", "layer"),
            "blocks_l": (2, 1, "4 ViT blocks\nwide", "layer"),
            "exchange": (3, 0.5, "exchange\n[CLS] only", "idea"),
            "head_s": (4, 0, head, "layer"),
            "head_l": (4, 1, head, "layer"),
            "logits": (5, 0.5, "logits\nmean of two", "step"),
        },
        arrows=[
            ("image", "small", "", "hvh"),
            ("image", "large", "", "hvh"),
            ("small", "blocks_s", "(401, 96)"),
            ("large", "blocks_l", "(197, 192)"),
            *chain("blocks_s", "exchange", "head_s", "logits"),
            *chain("blocks_l", "exchange", "head_l", "logits"),
        ],
        groups=[(("blocks_s", "blocks_l", "exchange"), "x 3 encoders")],
        note="Shapes without the batch, sizes of CrossViT-Ti. S sees the image at 240 x 240 pixels "
        "in patches of 12, L at 224 x 224 in patches of 16; the first token of a branch is its "
        "[CLS]. What leaves an exchange has the shape of what came in.",
    )


def crossvit_exchange() -> None:
    """One direction of CrossViT-Ti's exchange; the other one is the same with S and L swapped."""
    diagram(
        "The exchange, from S's side: its [CLS] visits L's patches and comes home",
        boxes={
            "cls": (0, 0, "[CLS] of S", "data"),
            "f": (1, 0, "f: to L's width\nLayerNorm, GELU,\nLinear", "layer"),
            "attention": (2, 0, "cross-attention\nquery: c,\nkeys: c and L's patches", "idea"),
            "add": (3, 0, "+", "sum"),
            "g": (4, 0, "g: back to S's width\nLayerNorm, GELU,\nLinear", "layer"),
            "patches_l": (2, 1, "patches of L", "data"),
            "patches_s": (3, 1, "patches of S", "data"),
            "tokens": (4, 1, "tokens of S\nnew [CLS], old patches", "data"),
        },
        arrows=[
            ("cls", "f", "(1, 96)"),
            ("f", "attention", "c (1, 192)"),
            ("attention", "add", ""),
            ("add", "g", "(1, 192)"),
            ("g", "tokens", "(1, 96)"),
            ("patches_l", "attention", "(196, 192)"),
            ("patches_s", "tokens", "(400, 96)"),
            ("f", "add", "c, as a residual", "above"),
        ],
        note="Shapes without the batch. One query against 197 keys is a cost that grows with the "
        "number of patches, not with its square. L's [CLS] visits S's patches at the same time.",
    )


def crossformer() -> None:
    """CrossFormer-S for 224 x 224 pixels: a pyramid of four stages."""
    diagram(
        "CrossFormer: every token mixes patch sizes; near and far groups take turns",
        boxes={
            "image": (0, 0, "image\n224 x 224 pixels", "data"),
            "cel1": (1, 0, "CEL\npatches of 4, 8, 16, 32", "idea"),
            "stage1": (2, 0, "stage 1: 56 x 56 tokens\nSDA, LDA", "idea"),
            "cel2": (3, 0, "CEL\n2 x 2 and 4 x 4 tokens", "idea"),
            "stage2": (3, 1, "stage 2: 28 x 28 tokens\nSDA, LDA", "idea"),
            "cel3": (2, 1, "CEL\n2 x 2 and 4 x 4 tokens", "idea"),
            "stage3": (1, 1, "stage 3: 14 x 14 tokens\n3 times SDA, LDA", "idea"),
            "cel4": (0, 1, "CEL\n2 x 2 and 4 x 4 tokens", "idea"),
            "stage4": (0, 2, "stage 4: 7 x 7 tokens\n2 blocks, one group", "layer"),
            "mean": (1, 2, "mean of tokens\nafter LayerNorm", "step"),
            "head": (2, 2, "Linear", "layer"),
            "logits": (3, 2, "logits", "data"),
        },
        arrows=[
            ("image", "cel1", ""),
            ("cel1", "stage1", "(3136, 96)"),
            ("stage1", "cel2", ""),
            ("cel2", "stage2", "(784, 192)"),
            ("stage2", "cel3", ""),
            ("cel3", "stage3", "(196, 384)"),
            ("stage3", "cel4", ""),
            ("cel4", "stage4", "(49, 768)"),
            ("stage4", "mean", ""),
            ("mean", "head", "(768)"),
            ("head", "logits", ""),
        ],
        note="Shapes without the batch, sizes of CrossFormer-S. CEL: cross-scale embedding layer. "
        "SDA, LDA: a ViT block with short-, then one with long-distance attention, in groups of "
        "7 x 7 tokens; stage 4 has no more than one group.",
    )


def crossformer_cel() -> None:
    """The cross-scale embedding layer on 128 x 128 pixels: kernels 4, 8, 16, 32, stride 4."""
    kernels, channels = (4, 8, 16, 32), (48, 24, 12, 12)
    boxes = {
        f"conv{k}": (1, i, f"{k} x {k} patch\nevery 4 pixels", "idea")
        for i, k in enumerate(kernels)
    }
    diagram(
        "CEL: several patch sizes around one place become one token",
        boxes={
            "image": (0, 1.5, "image\n128 x 128 pixels", "data"),
            **boxes,
            "join": (2, 1.5, "concatenate\nchannels", "step"),
            "norm": (3, 1.5, "LayerNorm", "layer"),
            "tokens": (4, 1.5, "tokens\n4 scales in each", "data"),
        },
        arrows=[
            *[("image", f"conv{k}", "", "hvh") for k in kernels],
            *[
                (f"conv{k}", "join", f"({d}, 32, 32)", "hvh")
                for k, d in zip(kernels, channels, strict=True)
            ],
            ("join", "norm", "(96, 32, 32)"),
            ("norm", "tokens", "(1024, 96)"),
        ],
        note="Shapes without the batch. All four kernels are centred on the same 4 x 4 pixels; the "
        "larger the patch, the fewer channels it gets: 48 + 24 + 12 + 12 = 96.",
    )


@styled
def crossformer_groups() -> None:
    """Groups of both attentions on 8 x 8 tokens, G = 4 and I = 2, the shipped model's."""
    tokens = torch.arange(64).view(1, 8, 8, 1)
    kinds = {
        "SDA: neighbours": crossformer_code.group_sda(tokens, 4),
        "LDA: every second token": crossformer_code.group_lda(tokens, 4, 2),
    }
    note = (
        "Tokens with one letter attend to each other, to no one else; group A has a thick border. "
        "Both cut the map into four groups of 4 x 4 tokens, so they cost the same. In SDA a group "
        "is a square; in LDA its tokens stand I = 2 apart, and it reaches across the map."
    )
    fig, ax, top = page(560, 246, "Short- and long-distance attention: who attends to whom", note)
    for i, (name, grouped) in enumerate(kinds.items()):
        belong = torch.empty(64, dtype=torch.long)
        for group, members in enumerate(grouped[0, ..., 0]):
            belong[members] = group
        x = 30 + 275 * i
        write(ax, (x, top), name, gid="heading")
        cells(ax, (x, top + 22), belong.view(8, 8).tolist(), 28, strong=0)
    diagrams.publish(fig, [
        "Two maps of 8 x 8 tokens, each token with the letter of its group.",
        "Left, SDA: the groups A, B, C, D are the four quarters of the map.",
        "Right, LDA: A and B take turns in the even rows, C and D in the odd rows, so that each "
        "group reaches across the whole map.",
        note,
    ])


def tokenformer() -> None:
    """One layer of TokenFormer; the sizes are the notebook's language model's."""
    diagram(
        "TokenFormer: every linear layer of a block becomes a Pattention",
        boxes={
            "x": (0, 1, "tokens", "data"),
            "norm1": (1, 1, "LayerNorm\nno weights", "step"),
            "q": (2, 0, "Pattention Q\n32 pairs", "idea"),
            "k": (2, 1, "Pattention K\n32 pairs", "idea"),
            "v": (2, 2, "Pattention V\n32 pairs", "idea"),
            "attention": (3, 1, "attention\nbetween tokens,\nas ever", "step"),
            "o": (4, 1, "Pattention O\n32 pairs", "idea"),
            "add1": (5, 1, "+", "sum"),
            "y": (0, 3, "tokens", "data"),
            "norm2": (1, 3, "LayerNorm\nno weights", "step"),
            "ffn": (2, 3, "Pattention FFN\n128 pairs", "idea"),
            "add2": (3, 3, "+", "sum"),
            "out": (4, 3, "tokens", "data"),
        },
        arrows=[
            *chain("x", "norm1", "q", "attention", "o", "add1"),
            *chain("norm1", "k", "attention"),
            *chain("norm1", "v", "attention"),
            ("add1", "y", "(T, 48)", "vhv"),
            *chain("y", "norm2", "ffn", "add2", "out"),
            ("x", "add1", "", "below"),
            ("y", "add2", "", "below"),
        ],
        note="T: tokens of a text; each has D = 48 channels at every arrow. A pair is a key and a "
        "value of 48 numbers each. The pairs are all the parameters a block has.",
    )


def tokenformer_pattention() -> None:
    """Pattention, and how it grows."""
    diagram(
        "Pattention: tokens attend to parameters, and more parameters can be appended",
        boxes={
            "x": (0, 1, "input tokens", "data"),
            "scores": (1, 1, "dot products\nwith the keys", "idea"),
            "norm": (2, 1, "modified softmax\ndivide by the norm,\ntimes tau, GELU", "idea"),
            "sum": (3, 1, "weighted sum\nof the values", "idea"),
            "out": (4, 1, "output tokens", "data"),
            "keys": (1, 0, "n keys\n(n, D)", "learned"),
            "values": (3, 0, "n values\n(n, D)", "learned"),
            "new_keys": (1, 2, "growth: m new keys\n(m, D)", "learned"),
            "new_values": (3, 2, "growth: m new values\n(m, D)", "learned"),
        },
        arrows=[
            ("x", "scores", "(T, D)"),
            ("scores", "norm", "(T, n)"),
            ("norm", "sum", "(T, n)"),
            ("sum", "out", "(T, D)"),
            *chain("keys", "scores"),
            *chain("values", "sum"),
            *chain("new_keys", "scores"),
            *chain("new_values", "sum"),
        ],
        note="T tokens with D channels, n parameter tokens, tau = the square root of n. Growing "
        "appends m pairs: what they hold at first decides what becomes of the layer's function.",
    )
