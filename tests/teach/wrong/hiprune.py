"""Plausible wrong answers to the exercises of hiprune.py, with what the check must say."""

from tests.teach.slips import changed, slips

ROLES = '''
def three_roles(object_score, deep_score, keep, grid, alpha):
    anchors = object_score.topk(round(keep * alpha / 5)).indices
    chosen = cross(anchors, grid)
    rest = deep_score.masked_fill(chosen, -float("inf"))
    registers = rest.topk(keep - int(chosen.sum())).indices
    return chosen.index_fill(0, registers, True).nonzero()[:, 0]
'''
REST = 'deep_score.masked_fill(chosen, -float("inf"))'
LEFT = "keep - int(chosen.sum())"
UNITED = "chosen.index_fill(0, registers, True).nonzero()[:, 0]"
SIDE_BY_SIDE = "torch.cat([chosen.nonzero()[:, 0], registers])"

TOO_MANY = changed(ROLES, "alpha / 5", "alpha")
ONLY_ANCHORS = '''chosen = cross(anchors, grid) & False
    chosen[anchors] = True'''

WRONG = {
    "hiprune.three_roles": [
        (
            "too many anchors",
            changed(TOO_MANY, LEFT, f"max(0, {LEFT})"),
            "an anchor may cost five",
        ),
        (
            "registers among the chosen",
            changed(changed(ROLES, REST, "deep_score"), UNITED, f"{SIDE_BY_SIDE}.sort().values"),
            "come twice",
        ),
        *slips(
            ROLES,
            ("chosen twice", REST, "deep_score", "chosen again"),
            ("alpha ignored", "alpha / 5", "0.5 / 5", "is written in"),
            ("keep registers", LEFT, "keep", "all three together"),
            (
                "five each",
                LEFT,
                "keep - 5 * len(anchors)",
                "a cross at the border is smaller",
            ),
            ("wrong layer", "deep_score.masked", "object_score.masked", "from the deep score"),
            ("no buffers", "chosen = cross(anchors, grid)", ONLY_ANCHORS, "buffers are missing"),
            ("not sorted", UNITED, SIDE_BY_SIDE, "raster order"),
            ("no registers", UNITED, "chosen.nonzero()[:, 0]", "registers are missing"),
        ),
    ],
}
