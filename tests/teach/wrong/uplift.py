"""Plausible wrong answers to the UPLiFT exercises of notebook 07c, with what the check must say."""

SHIFT = '''
import torch
import torch.nn.functional as F
def shifted(value, offsets):
    h, w = value.shape[-2:]
    padded = F.pad(value, (2, 2, 2, 2), mode=%s)
    return torch.stack([%s for dy, dx in offsets], dim=%s)
'''
PAD, CUT = '"replicate"', "padded[..., 2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w]"

ATTEND = '''
import torch
import torch.nn.functional as F
from vtlib.superres.uplift import shifted
def local_attender(guide, value, weight, bias, offsets):
    logits = torch.einsum("bchw,nc->bnhw", guide, weight) + bias[:, None, None]%s
    attn = logits%s
    copies = %s
    return (attn[:, None] * copies).sum(dim=2)
'''
NEAREST = 'F.interpolate(value, scale_factor=2, mode="nearest")'
SMOOTH = 'F.interpolate(%s, scale_factor=2, mode="bilinear")'
FLAT, CHANNELS = "shifted(value, offsets).flatten(1, 2)", "value.shape[1]"
OWN, SOFTMAX = " + guide[:, : len(offsets)]", ".softmax(dim=1)"
COPIES = "shifted(value, offsets).repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)"

PAIR = "(level + 1, step, level + 1 - step)"
PAIRS = '''
def loss_pairs(depth):
    return [%s for level in range(%s) for step in %s]
'''

WRONG = {
    "uplift.shifted": [
        (
            "wrong way",
            SHIFT % (PAD, "padded[..., 2 - dy : 2 - dy + h, 2 - dx : 2 - dx + w]", "2"),
            "wrong way",
        ),
        (
            "axes swapped",
            SHIFT % (PAD, "padded[..., 2 + dx : 2 + dx + h, 2 + dy : 2 + dy + w]", "2"),
            "swapped",
        ),
        ("roll", SHIFT % (PAD, "value.roll((-dy, -dx), (-2, -1))", "2"), "wrap around"),
        ("zeros", SHIFT % ('"constant"', CUT, "2"), "zeros come in"),
        ("reflect", SHIFT % ('"reflect"', CUT, "2"), "mirrors"),
        ("stacked before the channels", SHIFT % (PAD, CUT, "1"), "axis 2"),
    ],
    "uplift.local_attender": [
        ("softmax over columns", ATTEND % (OWN, ".softmax(dim=-1)", COPIES), "over the columns"),
        ("no softmax", ATTEND % (OWN, "", COPIES), "no softmax"),
        ("no residual", ATTEND % ("", SOFTMAX, COPIES), "own first n channels"),
        ("fine neighbours", ATTEND % (OWN, SOFTMAX, f"shifted({NEAREST}, offsets)"), "FINE grid"),
        (
            "bilinear value",
            ATTEND % (OWN, SOFTMAX, f"shifted({SMOOTH % 'value'}, offsets)"),
            "enlarged bilinearly",
        ),
        (
            "tiled",
            ATTEND % (OWN, SOFTMAX, "shifted(value, offsets).repeat(1, 1, 1, 2, 2)"),
            "tiled",
        ),
        (
            "last channels",
            ATTEND % (" + guide[:, -len(offsets) :]", SOFTMAX, COPIES),
            "LAST n channels",
        ),
        (
            "bilinear copies",
            ATTEND % (OWN, SOFTMAX, f"{SMOOTH % FLAT}.unflatten(1, ({CHANNELS}, len(offsets)))"),
            "copies were enlarged bilinearly",
        ),
        (
            "mean",
            (ATTEND % (OWN, SOFTMAX, COPIES)).replace(".sum(dim=2)", ".mean(dim=2)"),
            "not the weighted sum",
        ),
    ],
    "uplift.loss_pairs": [
        ("last step alone", PAIRS % (PAIR, "depth", "[level + 1]"), "LAST step"),
        ("first step alone", PAIRS % (PAIR, "depth", "[1]"), "one step a level"),
        (
            "from full size",
            PAIRS % ("(level, step, level - step)", "depth", "range(1, level + 1)"),
            "full size",
        ),
        (
            "always full size",
            PAIRS % ("(level + 1, step, 0)", "depth", "range(1, level + 2)"),
            "compared with the full size",
        ),
        (
            "iteration again",
            PAIRS % ("(level + 1, step, step)", "depth", "range(1, level + 2)"),
            "the iteration again",
        ),
        ("from zero", PAIRS % (PAIR, "depth", "range(level + 1)"), "counted from 0"),
        ("all depths", PAIRS % (PAIR, "depth", "range(1, depth + 1)"), "only i + 1 doublings"),
    ],
}
