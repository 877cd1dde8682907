"""Plausible wrong answers to the OneFormer exercises of notebook 08c, with what the check must
say."""

from tests.teach.slips import slips

MASKS = '''
import torch
def task_masks(codes, task, things):
    masks = {}
    for code in codes.unique().tolist():
        number = code // 1000
        if task == "instance" and number not in things:
            continue
        key = number if task == "semantic" else code
        mask = codes == code
        masks[key] = masks[key] | mask if key in masks else mask
    classes = [key if task == "semantic" else key // 1000 for key in masks]
    return torch.tensor(classes), torch.stack(list(masks.values()))
'''

LOOK = '''
import torch
import torch.nn.functional as F
def may_look(mask_logits, size):
    small = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    inside = (small.sigmoid() >= 0.5).flatten(2)
    nothing = ~inside.any(dim=2, keepdim=True)
    return inside | nothing
'''

CONTRAST = '''
import torch
import torch.nn.functional as F
def contrast(queries, texts, scale):
    q, t = (F.normalize(x.flatten(1), dim=1) for x in (queries, texts))
    logits = scale * (q @ t.T)
    own = torch.arange(len(q))
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
'''

ROWS, COLUMNS = "F.cross_entropy(logits, own)", "F.cross_entropy(logits.T, own)"

WRONG = {
    "oneformer.task_masks": slips(
        MASKS,
        ("apart", 'number if task == "semantic" else code', "code", "these are the codes"),
        (
            "overwritten",
            "masks[key] | mask if key in masks else mask",
            "mask",
            "overwrites the earlier",
        ),
        (
            "stuff kept", 'if task == "instance" and number not in things', "if False",
            "things alone",
        ),
        ("things dropped", "number not in things", "number in things", "other way round"),
        ("panoptic without stuff", 'task == "instance"', 'task != "semantic"', "all segments"),
        ("all united", "else code", "else number * 1000", "only semantic"),
    ),
    "oneformer.may_look": slips(
        LOOK,
        ("no reset", "return inside | nothing", "return inside", "reset is missing"),
        ("swapped", ">= 0.5", "< 0.5", "swapped"),
        ("over queries", "dim=2, keepdim", "dim=1, keepdim", "over the queries"),
        ("nearest", 'mode="bilinear", align_corners=False', 'mode="nearest"', "nearest neighbour"),
        ("no sigmoid", "small.sigmoid()", "small", "compared with 0.5"),
        (
            "sigmoid first",
            "F.interpolate(mask_logits,",
            "F.interpolate(mask_logits.sigmoid() - 0.5,",
            "before the resizing",
        ),
        ("not flattened", "return inside | nothing",
         "return (inside | nothing).unflatten(2, size)", "one axis"),
    ),
    "oneformer.contrast": slips(
        CONTRAST,
        ("rows alone", f" + {COLUMNS}", "", "only the rows"),
        ("columns alone", f"{ROWS} + ", "", "only the columns"),
        ("mean", f"{ROWS} + {COLUMNS}", f"({ROWS} + {COLUMNS}) / 2", "their sum"),
        (
            "each query",
            "F.normalize(x.flatten(1), dim=1)",
            "F.normalize(x, dim=2).flatten(1)",
            "each query was normalised",
        ),
        ("divided", "scale * (q @ t.T)", "(q @ t.T) / scale", "divided by the scale"),
        ("no scale", "scale * (q @ t.T)", "q @ t.T", "scale is missing"),
    ),
}
