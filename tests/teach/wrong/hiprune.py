"""Plausible wrong answers to the exercises of hiprune.py, with what the check must say."""

ROLES = '''
def three_roles(object_score, deep_score, keep, grid, alpha):
    anchors = object_score.topk(%s).indices
    chosen = %s
    rest = %s
    registers = rest.topk(%s).indices
    return %s
'''

COUNT, CROSS, REST = "round(keep * alpha / 5)", "cross(anchors, grid)", 'deep_score.masked_fill(chosen, -float("inf"))'

LEFT, UNITED = "keep - int(chosen.sum())", "chosen.index_fill(0, registers, True).nonzero()[:, 0]"

WRONG = {
    "hiprune.three_roles": [
        ("too many anchors", ROLES % ("round(keep * alpha)", CROSS, REST, "max(0, keep - int(chosen.sum()))", UNITED), "an anchor may cost five"),
        ("chosen twice", ROLES % (COUNT, CROSS, "deep_score", LEFT, UNITED), "chosen again"),
        (
            "registers among the chosen",
            ROLES % (
                COUNT,
                CROSS,
                "deep_score",
                LEFT,
                "torch.cat([chosen.nonzero()[:, 0], registers]).sort().values",
            ),
            "come twice",
        ),
        ("alpha ignored", ROLES % ("round(keep * 0.5 / 5)", CROSS, REST, LEFT, UNITED), "is written in"),
        ("keep registers", ROLES % (COUNT, CROSS, REST, "keep", UNITED), "all three together"),
        ("five each", ROLES % (COUNT, CROSS, REST, "keep - 5 * len(anchors)", UNITED), "a cross at the border is smaller"),
        ("wrong layer", ROLES % (COUNT, CROSS, 'object_score.masked_fill(chosen, -float("inf"))', LEFT, UNITED), "from the deep score"),
        ("no buffers", ROLES % (COUNT, CROSS + " & False | torch.zeros_like(object_score).index_fill(0, anchors, 1).bool()", REST, LEFT, UNITED), "buffers are missing"),
        ("not sorted", ROLES % (COUNT, CROSS, REST, LEFT, "torch.cat([chosen.nonzero()[:, 0], registers])"), "raster order"),
        ("no registers", ROLES % (COUNT, CROSS, REST, "1", "chosen.nonzero()[:, 0]"), "registers are missing"),
    ],
}
