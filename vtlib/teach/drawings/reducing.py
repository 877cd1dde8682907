"""Several cuts, and merging: VisionDrop, TransPrune, AIM, CrossGET, Recoverable Compression. Sizes
are TinyVLM's where nothing else is said: 256 visual tokens, 28 of which stay.
"""

import itertools

import torch

from vtlib.pruning import aim as aim_code
from vtlib.pruning import crossget as crossget_code
from vtlib.pruning import recoverable as recoverable_code
from vtlib.pruning import transprune as transprune_code
from vtlib.pruning import visiondrop as visiondrop_code
from vtlib.teach.diagrams import chain, diagram
from vtlib.teach.drawings._scene import (
    ALL,
    CLS_SCORES,
    PROMPT,
    QUESTION,
    TURN_SCORES,
    WORD_SCORES,
    WORDS,
    best,
    dominant_rows,
    kept,
    numbers,
    ramp,
)
from vtlib.teach.drawings.sketches import Cells, Dots, Scene

STAY, JOIN = (12, 30, 48), {74: 86, 86: 86, 98: 86, 112: 124, 124: 124, 136: 124}
FLOW = Dots(
    (148, 66),
    "picture: three kept tokens stay, six others join two of their kind",
    [
        *((x, y, "#") for x in STAY for y in (12, 54)),
        *((x, 12, "o") for x in JOIN),
        *((x, 54, "+") for x in set(JOIN.values())),
    ],
    [(x, 12, to, 54, "->") for x, to in [*zip(STAY, STAY, strict=True), *JOIN.items()]],
)


def visiondrop() -> None:
    """VisionDrop on TinyVLM, 28 tokens in the mean of the paper's four stages."""
    budgets = visiondrop_code.schedule(28)
    counts = [sum(budget) for budget in budgets]
    pictures = [dominant_rows(*budget) for budget in budgets]
    small = [f"{d} dominant,\n{c} contextual" for d, c in budgets]
    diagram(
        "VisionDrop: four cuts; visual tokens vote, the best stay, the rest is summed up",
        boxes={
            "s0": (0, 0, f"stage 0\nafter the encoder:\n{small[0]}", "data", pictures[0]),
            "s1": (1, 0, f"stage 1\nafter layer 1:\n{small[1]}", "data", pictures[1]),
            "s2": (2, 0, f"stage 2\nafter layer 3:\n{small[2]}", "data", pictures[2]),
            "s3": (3, 0, f"stage 3\nafter layer 4:\n{small[3]}", "data", pictures[3]),
            "vote": (0, 1, "visual tokens vote\nin stage 0 only [CLS]:\nwho is looked at?", "idea",
                     Cells(CLS_SCORES)),
            "split": (1, 1, "best and rest\nthe best stay, dominant;\nthe rest is added\n"
                      "to its like, contextual", "idea", FLOW),
            "question": (2, 1, "question\nthe decoder reads it,\nit has no vote", "text", WORDS),
        },
        arrows=[
            ("s0", "s1", f"({counts[0]}, 128)"),
            ("s1", "s2", f"({counts[1]}, 128)"),
            ("s2", "s3", f"({counts[2]}, 128)"),
            *chain("vote", "split"),
        ],
        groups=[(("vote", "split"), "in each stage")],
        note="Filled: dominant; with a cross: contextual. Stage 0 gets 257 tokens, [CLS] and 256 "
        f"patches. The last two of 6 layers read {counts[3]} tokens. 28 is about the mean of the "
        "four stages; 128 is the width of the decoder's tokens.",
        legend=False,
    )


TURN = Dots(
    (158, 100),
    "picture: a token that leaves a module longer and turned, much changed, and one that leaves it "
    "nearly as it came, little changed",
    [(20, 60, "#"), (100, 60, ".")],
    [
        (20, 60, 64, 60, "->"), (20, 60, 68, 6, "=>"),
        (100, 60, 144, 60, "->"), (100, 60, 146, 42, "=>"),
    ],
    [(48, 71, "before"), (26, 26, "after"), (40, 89, "much"), (120, 89, "little")],
)


def transprune() -> None:
    """TransPrune on TinyVLM: cuts after layers 1, 2, 3 of 6."""
    score = transprune_code.score(numbers(TURN_SCORES), numbers(WORD_SCORES))
    diagram(
        "TransPrune: watch how much the decoder changes each token, and where the question looks",
        boxes={
            "layer": (0, 0, "decoder layer\nattention, feed-forward", "layer",
                      Cells(["oooooooo"] * 2 + ["ttttt"])),
            "turn": (1, 0, "a token's transition\nlength and direction,\nbefore and after", "idea",
                     TURN),
            "ttv": (2, 0, "how much changed?\nsummed over\nlayers: TTV", "data",
                    Cells(TURN_SCORES)),
            "question": (0, 1, QUESTION, "text", WORDS),
            "iga": (1, 1, "where do its words look?\nattention, mean over\nwords: IGA", "idea",
                    Cells(WORD_SCORES)),
            "add": (2, 1, "+", "sum"),
            "best": (3, 1, "keep the best", "data", Cells(best(score))),
            "cuts": (3, 0, "three cuts\nafter layers 1, 2, 3;\na row for each layer", "idea",
                     ramp(transprune_code.stages(6, 28, 256), 256)),
        },
        arrows=[
            ("layer", "turn", "(256, 128)"),
            ("turn", "ttv", ""),
            ("ttv", "add", "(256)"),
            ("question", "iga", "(L, 128)"),
            ("iga", "add", "(256)"),
            *chain("add", "best", "cuts"),
        ],
        note="A transition is large where a module's output is longer than its input and points "
        "elsewhere. TTV does not read the question, IGA does; each is divided by its sum, then "
        "both are added.",
        legend=False,
    )


INTO = {10: 28, 46: 28, 82: 100, 118: 100, 154: 136}
ALIKE = Dots(
    (168, 66),
    "picture: dots in a row, every second one leads to the dot most like it",
    [*((x, 14, "o") for x in INTO), (64, 54, "#"), *((x, 54, "+") for x in set(INTO.values()))],
    [(x, 14, to, 54, "->") for x, to in INTO.items()],
)
RANK = Dots(
    (168, 70),
    "picture: words and tokens point at tokens; those pointed at by many are kept",
    [
        (22, 16, "#"), (70, 36, "#"), (116, 14, "."), (34, 58, "."),
        (112, 58, "t"), (150, 58, "t"),
    ],
    [
        (112, 58, 70, 36, "->"), (150, 58, 70, 36, "->"), (150, 58, 116, 14, "->"),
        (116, 14, 70, 36, "->"), (70, 36, 22, 16, "->"),
    ],
)


def aim() -> None:
    """AIM on TinyVLM: merged from 256 to 28, then the paper's ramp at 6 layers."""
    diagram(
        "AIM: merge look-alikes before the decoder, prune ever more inside it",
        boxes={
            "tokens": (0, 0, "visual tokens", "data", ALL),
            "match": (1, 0, "find the most alike\nevery second token looks\namong the others",
                      "idea", ALIKE),
            "merged": (2, 0, "means of those that met\n128, then 64, 32, 28", "data",
                       Cells(["+##+#++"], 14)),
            "decoder": (2, 1, "decoder\nafter each layer ...", "layer", PROMPT),
            "rank": (1, 1, "page rank\nwho is looked at by those\nthat are looked at?", "idea",
                     RANK),
            "ramp": (0, 1, "fewer and fewer\na row for each layer,\nnone in the end", "idea",
                     ramp(aim_code.stages(6, None, 28), 28)),
            "question": (2, 2, QUESTION, "text", WORDS),
        },
        arrows=[
            ("tokens", "match", "(256, 128)"),
            ("match", "merged", "up to half"),
            ("merged", "match", "again, until 28", "above"),
            ("merged", "decoder", "(28, 128)"),
            ("decoder", "rank", "attention"),
            ("rank", "ramp", ""),
            ("question", "decoder", "(L, 128)"),
        ],
        note="A mean counts each token that met once, whatever it stood for before. Words vote in "
        "the page rank, and always stay. Late layers do without visual tokens: the words have "
        "taken what they need.",
        legend=False,
    )


NODES = [(22, 18), (70, 10), (124, 20), (136, 58), (84, 70), (28, 60)]
GRAPH = Dots(
    (156, 80),
    "picture: six dots, each linked with all others; two give, two receive, one stays as it is",
    [(*place, mark) for place, mark in zip(NODES, "o+o#+o", strict=True)],
    [
        *((*one, *other, "--") for one, other in itertools.combinations(NODES, 2)),
        (*NODES[0], *NODES[1], "=>"), (*NODES[5], *NODES[4], "=>"),
    ],
)


def crossget() -> None:
    """CrossGET in CLIP's ViT-B/16: 198 tokens, 16 merged in each of 12 layers."""
    first, second, *_, last = crossget_code.schedule(16, 198, 12)
    tokens = Cells(["*" + " " * 7, *["oooooooo"] * 8, " " * 7 + "x"])
    diagram(
        "CrossGET: merge a few tokens in every layer; what texts ask for is merged last",
        boxes={
            "tokens": (0, 0, "tokens\n[CLS], patches,\ncross token", "data", tokens),
            "attention": (1, 0, "attention\na merged key counts once\nfor each token in it",
                          "layer"),
            "ask": (2, 0, "who matters?\nthe cross token's query\nasks all keys", "idea",
                    Cells(TURN_SCORES)),
            "match": (3, 0, "find pairs\nalike and unimportant;\nany with any", "idea", GRAPH),
            "cross": (0, 1, "cross vector\nlearned,\none a layer", "learned"),
            "text": (1, 1, "text's cross token\na loss pulls\nboth together", "text"),
            "mlp": (2, 1, "MLP\nthen the next layer", "layer"),
            "merge": (3, 1, "merge 16 into others\nweighted by\nimportance and size", "idea",
                      Cells(["##+###+#"])),
        },
        arrows=[
            ("tokens", "attention", f"({first}, 768)"),
            ("attention", "ask", f"({first})"),
            *chain("ask", "match", "merge"),
            ("merge", "mlp", f"({second}, 768)"),
            ("cross", "tokens", "added"),
            ("text", "cross", "in training"),
        ],
        note=f"Sizes of CLIP's ViT-B/16; 12 layers leave {last} of {first}: a layer "
        "merges at most half. The cross token starts as a copy of [CLS]; each layer adds its "
        "vector. It never reads the question: it has learned what texts ask for in general. "
        "[CLS] and cross token never merge.",
        legend=False,
    )


RING = {
    (14, 14): (36, 34), (56, 12): (36, 34), (18, 56): (36, 34), (52, 54): (36, 34),
    (92, 18): (110, 36), (126, 14): (110, 36), (96, 58): (110, 36), (128, 50): (110, 36),
}
GATHER = Dots(
    (142, 70),
    "picture: two merged dots, each with four others that flow into it",
    [*((*place, "o") for place in RING), *((*centre, "+") for centre in set(RING.values()))],
    [(*place, *centre, "->") for place, centre in RING.items()],
)


def recoverable() -> None:
    """Recoverable Compression; the numbers of tokens are what each image and question give."""
    found = recoverable_code.filters(
        numbers(CLS_SCORES), numbers(WORD_SCORES), counts=torch.tensor([[4, 2, 2]])
    )
    by_sight, by_text = (kept(part[0].nonzero()[:, 0], mark)
                         for part, mark in ((found.vision, "V"), (found.text, "T")))
    diagram(
        "Recoverable Compression: the question brings back what the picture alone would lose",
        boxes={
            "image": (0, 0, "image\nCLIP's patches", "data", Scene()),
            "a": (1, 0, "attention of [CLS]\nwhat stands out", "data", Cells(CLS_SCORES)),
            "vision": (2, 0, "keep by sight: V\nas many as there\nare outliers", "idea",
                       Cells(by_sight, 13)),
            "question": (0, 1, QUESTION, "text", WORDS),
            "s": (1, 1, "likeness\nof patch and question", "data", Cells(WORD_SCORES)),
            "text": (2, 1, "recover by text: T\nof the others the share\nthat outliers have",
                     "idea", Cells(by_text, 13)),
            "rest": (3, 1, "gather the rest\naround a few centres,\none more for what is left",
                     "idea", GATHER),
            "out": (3, 0, "what goes on\nV and T as they were,\nthen the gathered", "data",
                    Cells(["VVVVTT+++"], 14)),
        },
        arrows=[
            ("image", "a", ""),
            ("a", "vision", "(N)"),
            ("image", "s", ""),
            ("question", "s", ""),
            ("s", "text", "(N)"),
            ("vision", "text", "V set aside"),
            ("text", "rest", "the rest"),
            ("rest", "out", "(n, D)"),
        ],
        note="N patches, 576 in LLaVA-1.5, of which about a tenth goes on: how many depends on "
        "image and question. Outlier: a score far from those nearest to it. Image and question "
        "meet in the space that CLIP's two towers share.",
        legend=False,
    )
