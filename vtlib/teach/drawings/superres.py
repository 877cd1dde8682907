"""TTVSR, CATANet, UPLiFT."""

import torch

from vtlib.superres import catanet as catanet_code
from vtlib.superres import uplift as uplift_code
from vtlib.teach import diagrams
from vtlib.teach.diagrams import chain, diagram, styled
from vtlib.teach.drawings._grids import blank, cell, cells, outline, page, write


# --------------------------------------------------------------------------------------- TTVSR
def ttvsr() -> None:
    """The whole net on frames of 96 x 96 pixels, with the shipped model's 32 channels."""
    diagram(
        "TTVSR: two passes over a clip, each frame fetches what earlier ones have seen",
        boxes={
            "frames": (0, 1, "small frames\n96 x 96 pixels", "data"),
            "bilinear": (1, 0, "bilinear\nenlargement", "step"),
            "phi": (1, 1, "features f\nresidual blocks", "layer"),
            "flow": (1, 2, "flow net\nSPyNet", "layer"),
            "passes": (2, 1, "two passes\nforth, then back", "idea"),
            "head": (3, 1, "Conv\npixel shuffles", "layer"),
            "add": (4, 1, "+", "sum"),
            "large": (4, 2, "large frames\n384 x 384 pixels", "data"),
        },
        arrows=[
            ("frames", "phi", ""),
            ("phi", "passes", "(32, 96, 96)"),
            ("passes", "head", "(96, 96, 96)"),
            ("head", "add", "(3, 384, 384)"),
            ("add", "large", ""),
            ("frames", "flow", "", "hvh"),
            ("flow", "passes", "(2, 96, 96)", "hv"),
            ("frames", "bilinear", "", "hvh"),
            ("bilinear", "add", "(3, 384, 384)", "hv"),
        ],
        note="Shapes of one frame: channels, height, width. Both passes share their weights; the "
        "last layers get what they found for a frame, and its feature f: 3 x 32 = 96 channels.",
    )


def ttvsr_step() -> None:
    """One frame of a pass."""
    diagram(
        "One frame t of a pass: attention along trajectories",
        boxes={
            "maps": (1, 0, "location maps\n(k, 2, 24, 24)", "data"),
            "stored": (2, 0, "stored key frames\nkeys (512, k, 24, 24),\nvalues, 3 scales", "data"),
            "new": (5, 0, "state p\nof t", "data"),
            "flow": (0, 1, "flow\nof t", "data"),
            "carry": (1, 1, "carry the maps\nalong the flow", "idea"),
            "attention": (2, 1, "look only there\nk cosines,\ntake the best", "idea"),
            "fuse": (3, 1, "Conv\nof its values,\ntimes cosine", "layer"),
            "add": (4, 1, "+", "sum"),
            "net": (5, 1, "R\nresidual\nblocks", "layer"),
            "warp": (0, 2, "warp\nwith the flow", "step"),
            "state": (0, 3, "state p\nof t - 1", "data"),
            "feature": (2, 3, "feature f of t\n(32, 96, 96)", "data"),
        },
        arrows=[
            ("flow", "carry", "(2, 24, 24)"),
            ("flow", "warp", "(2, 96, 96)"),
            ("carry", "attention", "k places"),
            ("attention", "fuse", "(96, 96, 96)"),
            *chain("fuse", "add", "net", "new"),
            *chain("maps", "carry"),
            *chain("stored", "attention"),
            ("feature", "attention", "(512, 24, 24)"),
            ("feature", "net", "", "hv"),
            ("state", "warp", "(32, 96, 96)"),
            ("warp", "add", "", "hv"),
            ("new", "stored", "if t is a key frame, with f"),
        ],
        note="k: key frames so far, every third frame. A token is 4 x 4 pixels of 32 channels, 512 "
        "numbers; 96 x 96 pixels are 24 x 24 tokens. A location map says for each token of frame "
        "t where it was in one key frame; a new key frame adds a map with all tokens at home. A "
        "query is compared k times, not k x 576 times.",
    )


# ------------------------------------------------------------------------------------- CATANet
def catanet() -> None:
    """The whole net, x2, with the shipped model's 32 channels and 4 stages; images of 48 x 48."""
    diagram(
        "CATANet: far tokens of one kind, then near ones, four times",
        boxes={
            "image": (0, 0, "image\n(3, 48, 48)", "data"),
            "first": (1, 0, "Conv\n3 to 32", "layer"),
            "x": (2, 0, "x\n(32, 48, 48)", "data"),
            "tab": (3, 0, "TAB\ngroups of like\ntokens anywhere", "idea"),
            "lrsa": (4, 0, "LRSA\nattention in\nsmall windows", "layer"),
            "conv": (5, 0, "Conv", "layer"),
            "add1": (6, 0, "+", "sum"),
            "add2": (7, 0, "+", "sum"),
            "bilinear": (0, 1, "bilinear\nx 2", "step"),
            "up": (1, 1, "Conv\npixel shuffle", "layer"),
            "last": (3, 1, "Conv\n32 to 3", "layer"),
            "add3": (4, 1, "+", "sum"),
            "large": (5, 1, "image\n96 x 96", "data"),
        },
        arrows=[
            *chain("image", "first", "x", "tab", "lrsa", "conv", "add1", "add2"),
            ("x", "add1", "", "above"),
            ("first", "add2", "", "above"),
            ("add2", "up", "(32, 48, 48)", "vhv"),
            ("up", "last", "(32, 96, 96)"),
            ("last", "add3", ""),
            ("add3", "large", "(3, 96, 96)"),
            *chain("image", "bilinear"),
            ("bilinear", "add3", "(3, 96, 96)", "below"),
        ],
        groups=[(("x", "tab", "lrsa", "conv", "add1"), "x 4 stages")],
        note="Shapes without the batch. TAB: token aggregation block. LRSA: local region "
        "self-attention. x: what the stage before gave.",
    )


def catanet_tab() -> None:
    """The token aggregation block, on 48 x 48 = 2304 tokens of 32 channels."""
    diagram(
        "TAB: tokens find their like anywhere in the image, without comparing all pairs",
        boxes={
            "centres": (1, 0, "16 centres\nfor all images", "learned"),
            "inter": (3, 0, "attention\nto the centres\n(IRCA)", "idea"),
            "x": (0, 1, "tokens x", "data"),
            "group": (1, 1, "group\nnearest centre\nafter LayerNorm", "idea"),
            "sort": (2, 1, "sort by group\ncut into subgroups\nof 64 tokens", "idea"),
            "intra": (3, 1, "self-attention\nin own and next\nsubgroup (IASA)", "idea"),
            "add1": (4, 1, "+", "sum"),
            "add2": (0, 2, "+", "sum"),
            "back": (4, 2, "scatter\nto old places", "step"),
            "proj": (2, 2, "Linear\nConv 1 x 1", "layer"),
            "ffn": (1, 3, "ConvFFN\nafter LayerNorm", "layer"),
            "y": (0, 3, "tokens", "data"),
            "add3": (2, 3, "+", "sum"),
            "out": (3, 3, "tokens", "data"),
        },
        arrows=[
            ("x", "group", "(2304, 32)"),
            ("group", "sort", ""),
            ("sort", "intra", "36 x (64, 32)"),
            ("intra", "add1", ""),
            ("add1", "back", ""),
            ("back", "proj", "(2304, 32)"),
            *chain("proj", "add2", "y", "ffn", "add3", "out"),
            *chain("centres", "group"),
            ("centres", "inter", "keys, values (16, 32)"),
            ("intra", "inter", "queries"),
            ("inter", "add1", "", "hv"),
            ("x", "add2", ""),
            ("y", "add3", "", "below"),
        ],
        note="2304 tokens are the 48 x 48 pixels of a feature map. A query meets 128 keys of its "
        "own and the next subgroup and 16 centres, not all 2304 tokens. The centres are moved in "
        "training only, by a moving average.",
    )


@styled
def catanet_groups() -> None:
    """36 tokens of three kinds, their sorted row, and its subgroups of 12."""
    rows = ["AACCCC", "ABBCCC", "ABBBCC", "CBBAAC", "CCAAAC", "CCBBCC"]
    belong = torch.tensor([["ABC".index(letter) for letter in row] for row in rows])
    order = belong.flatten().argsort(stable=True)
    at, length = catanet_code.sorted_row(36, 12)
    row, side, left = belong.flatten()[order][at], 15, 148
    note = (
        "Each token has the letter of its nearest centre. Sorting brings like tokens together, "
        "wherever they were. The row is cut into subgroups of equal length, 12 here, whatever the "
        "letters: that is fast. The tokens in a thick frame ask, and look at their own and the "
        "next subgroup, so a kind that is cut in two still meets. Behind the end, the row is "
        "mirrored."
    )
    fig, ax, top = page(left + side * 48 + 20, 292, "CATANet's groups: from places to kinds", note)
    write(ax, (10, top), "in the image", gid="heading")
    cells(ax, (left, top), belong.tolist(), 22)
    y = top + 154
    write(ax, (10, y), "sorted", gid="heading")
    cells(ax, (left, y), [row[:36].tolist()], side)
    for i in range(3):
        y, x = y + 32, left + side * length * i
        write(ax, (10, y), f"subgroup {i + 1} looks at", gid="heading")
        cells(ax, (x, y), [row[length * i : length * (i + 2)].tolist()], side)
        outline(ax, (x - 2, y - 2), side * length + 4, side + 4)
    diagrams.publish(fig, [
        "A map of 6 x 6 tokens of three kinds A, B, C, mixed; below, the same 36 tokens in a row, "
        "sorted: 9 A, 9 B, 18 C; below, three subgroups of 12, each with the next one beside it.",
        note,
    ])


# -------------------------------------------------------------------------------------- UPLiFT
def uplift() -> None:
    """The whole net on 96 x 96 pixels and the shipped model's ViT of patch 8, D = 128."""
    diagram(
        "UPLiFT: one small step doubles the grid, again and again",
        boxes={
            "image": (0, 1.5, "image\n96 x 96", "data"),
            "encoder": (1, 2, "image encoder\nonly once", "layer"),
            "vit": (1, 1, "ViT, frozen\npatches of 8", "layer"),
            "step1": (2, 1, "step 1", "idea"),
            "step2": (3, 1, "step 2", "idea"),
            "step3": (4, 1, "step 3", "idea"),
            "out": (4, 0, "features\none a pixel", "data"),
        },
        arrows=[
            ("image", "encoder", "", "hvh"),
            ("image", "vit", "", "hvh"),
            ("vit", "step1", "(128, 12, 12)"),
            ("step1", "step2", "(128, 24, 24)"),
            ("step2", "step3", "(128, 48, 48)"),
            ("step3", "out", "(128, 96, 96)"),
            ("encoder", "step1", "e3, e4: 2 x (48, 96, 96)", "hv"),
            ("encoder", "step2", "", "hv"),
            ("encoder", "step3", "", "hv"),
        ],
        groups=[(("step1", "step2", "step3"), "the same weights in all steps")],
        note="Shapes without the batch: channels, height, width. The ViT gives one feature a "
        "patch, 12 x 12; three doublings make 96 x 96. e3, e4: the encoder's last two maps.",
    )


def uplift_step() -> None:
    """The first step: 12 x 12 to 24 x 24 features."""
    diagram(
        "One step: the image decides how to mix the features around",
        boxes={
            "e4": (1, 0, "e4\nmade 12 x 12", "data"),
            "e3": (2, 0, "e3\nmade 24 x 24", "data"),
            "x": (0, 1, "features x", "data"),
            "low": (1, 1, "join\n2 Conv,\nto 48", "layer"),
            "up": (2, 1, "double\njoin, 2 Conv,\nto 48", "layer"),
            "weights": (3, 1, "weights\nConv 1 x 1 + skip,\nsoftmax", "idea"),
            "pool": (4, 1, "average\nof 17 places\nin x", "idea"),
            "out": (4, 2, "features\n(128, 24, 24)", "data"),
        },
        arrows=[
            ("x", "low", "(128, 12, 12)"),
            ("low", "up", "(48, 12, 12)"),
            ("up", "weights", "G"),
            ("weights", "pool", "(17, 24, 24)"),
            *chain("pool", "out"),
            *chain("e4", "low"),
            *chain("e3", "up"),
            ("x", "pool", "x, to be averaged", "below"),
        ],
        groups=[(("weights", "pool"), "Local Attender")],
        note="Shapes without the batch. G, the guide: (48, 24, 24). Each new feature is an average "
        "of old ones, with 17 weights that sum to 1: nothing is invented, and nothing is compared.",
    )


@styled
def uplift_neighbours() -> None:
    """Which coarse features the attender may mix for the four new ones of a cell."""
    side, cell_of = 36, {(dy + 3, dx + 3) for dy, dx in uplift_code.OFFSETS[17]}
    note = (
        "Squares are coarse features. The middle one becomes four new ones (thick frame); each "
        "of the four is its own weighted average of the middle one and the 16 neighbours N around "
        "it: 8 at distance 1, 8 at distance 2. At the border the edge is repeated."
    )
    fig, ax, top = page(430, 7 * side, "The 17 neighbours of UPLiFT's Local Attender", note)
    for r in range(7):
        for c in range(7):
            place = 89 + side * c, top + side * r
            if (r, c) in cell_of and (r, c) != (3, 3):
                cell(ax, place, side, 13)
            else:
                ax.add_artist(blank(place, side))
    x, y = 89 + 3 * side, top + 3 * side
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        outline(ax, (x + dx * side / 2, y + dy * side / 2), side / 2, side / 2)
    diagrams.publish(fig, [
        "A map of 7 x 7 coarse features; 16 around the middle one are marked N, the middle one is "
        "cut into four.",
        note,
    ])
