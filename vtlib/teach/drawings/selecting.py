"""Where one choice is made: FastV inside the decoder; FasterVLM, DivPrune, HiPrune, HoloV and
ZOO-Prune before it. Sizes are TinyVLM's, 256 visual tokens of which 28 stay.
"""

from vtlib.pruning import hiprune as hiprune_code
from vtlib.pruning import holov as holov_code
from vtlib.pruning import zooprune as zooprune_code
from vtlib.teach.diagrams import diagram
from vtlib.teach.drawings._scene import (
    ALL,
    CLS_SCORES,
    DEEP_SCORES,
    KEEP,
    MIDDLE_SCORES,
    PROMPT,
    QUESTION,
    S_SCORES,
    SAME,
    SIDE,
    WORD_SCORES,
    WORDS,
    best,
    in_bands,
    kept,
    numbers,
    plane,
    rows_of,
    scatter,
    vectors,
)
from vtlib.teach.drawings.sketches import Cells, Dots, Scene
from vtlib.tokens.greedy import greedy_maxmin


def fastv() -> None:
    """FastV with the paper's K = 2, on TinyVLM."""
    winners = Cells(best(numbers(WORD_SCORES)))
    diagram(
        "FastV: after two layers, keep what the last word looks at",
        boxes={
            "tokens": (0, 0, "visual tokens", "data", ALL),
            "early": (1, 0, "decoder\nlayers 1, 2: all tokens", "layer",
                      Cells(["oooooooo"] * 2 + ["ttttt"])),
            "row": (2, 0, "attention\nof the last word,\nin layer 2", "idea", Cells(WORD_SCORES)),
            "best": (3, 0, "keep the best", "idea", winners),
            "question": (0, 1, QUESTION, "text", WORDS),
            "late": (3, 1, "decoder\nlayers 3 to 6", "layer", PROMPT),
            "answer": (2, 1, "answer\nyes", "text"),
        },
        arrows=[
            ("tokens", "early", "(256, 128)"),
            ("early", "row", "(256)"),
            ("row", "best", ""),
            ("best", "late", "(28, 128)"),
            ("late", "answer", ""),
            ("question", "early", "(L, 128)", "hv"),
        ],
        note="The first two layers pay for all 256 tokens; the others for 28 and the L words of "
        "the question, which always stay. Kept tokens keep their positions. " + SAME,
        legend=False,
    )


def fastervlm() -> None:
    """FasterVLM on TinyVLM."""
    winners = Cells(best(numbers(CLS_SCORES)))
    diagram(
        "FasterVLM: keep the patches that [CLS] looks at, before a word is read",
        boxes={
            "image": (0, 0, "image", "data", Scene()),
            "encoder": (1, 0, "ViT encoder\n[CLS] and 256 patches", "layer",
                        Cells(["*" + " " * 7] + ["oooooooo"] * 7)),
            "row": (2, 0, "attention of [CLS]\nto each patch,\nmean over heads", "idea",
                    Cells(CLS_SCORES)),
            "best": (3, 0, "keep the best 28\nin their old order", "idea", winners),
            "projector": (3, 1, "projector\n2 Linear", "layer"),
            "decoder": (2, 1, "decoder\nall 6 layers are short", "layer", PROMPT),
            "question": (1, 1, QUESTION, "text", WORDS),
        },
        arrows=[
            ("image", "encoder", "(3, 128, 128)"),
            ("encoder", "row", "(4, 256)"),
            ("row", "best", "(256)"),
            ("encoder", "best", "features (256, 144)", "above"),
            ("best", "projector", "(28, 144)"),
            ("projector", "decoder", "(28, 128)"),
            ("question", "decoder", "(L, 128)"),
        ],
        note="[CLS] is the token whose job is to describe the whole image. It does not know the "
        "question: a ball it looks at wins, a star it overlooks is lost. " + SAME,
        legend=False,
    )


def divprune() -> None:
    """DivPrune on TinyVLM."""
    order = greedy_maxmin(vectors(), KEEP)[0][0].tolist()
    at = plane()[order].tolist()
    all_of_them = "picture: dots in a plane, a wide cloud, a small one, and a lonely dot"
    three = "picture: the lonely dot is 1; 2 and 3 lie far from it and from each other"
    seven = "picture: seven numbered dots, spread over all clouds"
    diagram(
        "DivPrune: keep tokens that are as unlike each other as possible",
        boxes={
            "tokens": (0, 0, "visual tokens\nbehind the projector", "data", Scene()),
            "plane": (1, 0, "all distances\nunlike tokens\nlie far apart", "data",
                      scatter([], all_of_them)),
            "first": (2, 0, "first the loneliest\nthen the farthest from\nall chosen ones", "idea",
                      scatter(order[:3], three, [(*at[0], *at[k], "--") for k in (1, 2)])),
            "rest": (3, 0, "again and again\nuntil 28 are chosen", "idea", scatter(order, seven)),
            "kept": (3, 1, "kept tokens\nin their old order", "data", Cells(kept(order))),
            "decoder": (2, 1, "decoder\n6 layers", "layer", PROMPT),
            "question": (1, 1, QUESTION, "text", WORDS),
        },
        arrows=[
            ("tokens", "plane", "(256, 128)"),
            ("plane", "first", "(256, 256)"),
            ("first", "rest", ""),
            ("rest", "kept", "28 indices"),
            ("kept", "decoder", "(28, 128)"),
            ("question", "decoder", "(L, 128)"),
        ],
        note="Distance: 1 - cosine. Farthest: whose nearest chosen token is farthest away. The "
        "ball's nine are near-copies: one is enough. The star is like nothing else. No attention "
        "and no word is read. " + SAME,
        legend=False,
    )


def hiprune() -> None:
    """HiPrune on TinyVLM: 1 anchor with 4 buffers, 23 registers."""
    plan = hiprune_code.select(
        numbers(MIDDLE_SCORES), numbers(DEEP_SCORES), KEEP, (SIDE, SIDE), alpha=0.7
    )
    letters = ["."] * SIDE * SIDE
    for place, role in zip(plan.index[0].tolist(), plan.role[0].tolist(), strict=True):
        letters[place] = "ABR"[role]
    whole = "".join(letters)
    objects, registers = whole.replace("R", "."), whole.replace("A", ".").replace("B", ".")
    diagram(
        "HiPrune: a middle layer shows the objects, a deep layer the patches that sum up the image",
        boxes={
            "image": (0, 0.5, "image", "data", Scene()),
            "middle": (1, 0, "middle layer\nattention received", "layer", Cells(MIDDLE_SCORES)),
            "deep": (1, 1, "deep layer\nattention received", "layer", Cells(DEEP_SCORES)),
            "objects": (2, 0, "anchors, buffers\nA: looked at most\nB: its 4 neighbours", "idea",
                     Cells(rows_of(objects), 13)),
            "registers": (2, 1, "registers\nR: looked at most\nof the others", "idea",
                    Cells(rows_of(registers), 13)),
            "kept": (3, 0.5, "all three\nin their old order", "data", Cells(rows_of(whole), 13)),
            "decoder": (4, 0.5, "projector\nthen the decoder,\nwith the words", "layer", PROMPT),
        },
        arrows=[
            ("image", "middle", "", "hvh"),
            ("image", "deep", "", "hvh"),
            ("middle", "objects", "(256)"),
            ("deep", "registers", "(256)"),
            ("objects", "kept", "1 + 4"),
            ("registers", "kept", "23"),
            ("kept", "decoder", "(28, 144)"),
        ],
        note="Received: mean over all tokens that look, [CLS] among them. With the paper's share "
        "alpha = 0.1, 28 tokens are 1 anchor, 4 buffers and 23 registers; the small pictures have "
        "room for 2 registers. 144 is the width of the encoder's tokens.",
        legend=False,
    )


def holov() -> None:
    """HoloV with four crops in the sketch; TinyVLM's rule makes 16, one row of patches each."""
    attention, crops = numbers(CLS_SCORES), holov_code.bands(SIDE * SIDE, 4)
    score = holov_code.score(vectors(), attention / attention.sum(), crops)
    quotas = holov_code.quotas(holov_code.crop_weights(score, crops), (crops >= 0).sum(1), KEEP)
    places = quotas[0].tolist()
    names = {i: f"crop {i + 1}" for i in range(4)}
    shares = Cells([("#" * n).ljust(max(places)) for n in places], 14, names)
    plan = holov_code.select(score, attention, crops, KEEP)
    diagram(
        "HoloV: the places are shared out among crops, then the best of each crop win",
        boxes={
            "tokens": (0, 0, "visual tokens\nbehind the projector", "data", Scene()),
            "row": (0, 1, "attention of [CLS]\nin the encoder", "data", Cells(CLS_SCORES)),
            "crops": (1, 0, "cut into crops\nbands, one below\nthe other", "step",
                      Cells(in_bands(CLS_SCORES))),
            "quota": (2, 0, "a quota for each crop\nmore where [CLS] looks", "idea",
                      shares),
            "best": (3, 0, "best of each crop\nby attention, among\nneighbours only", "idea",
                     Cells(in_bands(kept(plan.index[0])))),
            "decoder": (3, 1, "decoder\n6 layers", "layer", PROMPT),
            "question": (2, 1, QUESTION, "text", WORDS),
        },
        arrows=[
            ("tokens", "crops", "(256, 128)"),
            ("row", "crops", "(256)", "hv"),
            ("crops", "quota", ""),
            ("quota", "best", "16 counts"),
            ("best", "decoder", "(28, 128)"),
            ("question", "decoder", "(L, 128)"),
        ],
        note="The ball cannot take all places: crops of dull patches may have a share, too. "
        "TinyVLM's 256 tokens are 16 crops of 16. " + SAME,
        legend=False,
    )


NUDGE = Dots(
    (110, 64),
    "picture: a dot x with an arrow forwards to x + h u and one back to x - h u",
    [(55, 32, "#")],
    [(55, 32, 90, 6, "->"), (55, 32, 20, 58, "->")],
    [(60, 45, "x"), (95, 26, "+ h u"), (16, 38, "- h u")],
)
MOVES = Dots(
    (130, 64),
    "picture: two answers far apart, much; two side by side, hardly at all",
    [(12, 14, "#"), (72, 14, "#"), (12, 46, "."), (24, 46, ".")],
    [(12, 14, 72, 14, "<->")],
    [(104, 14, "much"), (72, 46, "hardly at all")],
)


def zooprune() -> None:
    """ZOO-Prune on TinyVLM with the paper's 64 directions."""
    order = zooprune_code.sads(numbers(S_SCORES), vectors(), KEEP)[0][0]
    diagram(
        "ZOO-Prune: nudge each token a little; keep those that move the projector's answer",
        boxes={
            "nudge": (0, 0, "nudge the features x\n64 random directions u,\nforwards and back",
                      "idea", NUDGE),
            "projector": (1, 0, "projector\n2 Linear, GELU,\nno gradient", "layer"),
            "moves": (2, 0, "how far apart\nare the two answers?", "idea", MOVES),
            "s": (3, 0, "sensitivity S\nmean over\nall directions", "data", Cells(S_SCORES)),
            "pick": (3, 1, "one by one\nlargest S x distance\nto the chosen ones", "idea",
                     scatter(order, "picture: seven numbered dots, the star first")),
            "kept": (2, 1, "kept tokens\nin their old order", "data", Cells(kept(order))),
            "decoder": (1, 1, "decoder\n6 layers", "layer", PROMPT),
            "question": (0, 1, QUESTION, "text", WORDS),
        },
        arrows=[
            ("nudge", "projector", "(256, 144)"),
            ("projector", "moves", "(256, 128)"),
            ("moves", "s", ""),
            ("s", "pick", "(256)"),
            ("pick", "kept", "28 indices"),
            ("kept", "decoder", "(28, 128)"),
            ("question", "decoder", "(L, 128)"),
        ],
        note="Zeroth order: a slope is measured by two forward passes; the shapes are of one of "
        "the 2 x 64 nudged copies. Distance: 1 - cosine of visual tokens, the projector's output "
        "for x itself. " + SAME,
        legend=False,
    )
