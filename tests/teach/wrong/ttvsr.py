"""Plausible wrong answers to the exercises of notebook 07, with what the check must say."""

WARP = '''
import torch
def backward_warp(image, flow):
    _, h, w = image.shape
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    column = (%s)%s
    row = (%s)%s
    %s
'''
X, Y, OUT = "x + flow[0]", "y + flow[1]", "return image[:, row, column]"
SNAP = ".round().long().clamp(0, %s - 1)"
SNAPS = SNAP % "w", SNAP % "h"
SPLAT = "out = torch.zeros_like(image)\n    out[:, row, column] = image\n    return out"

UPDATE = '''
import torch
import torch.nn.functional as F
def update_maps(location, flow, stride=4):
    in_tokens = %s
    %s
'''
MEAN = "F.avg_pool2d(flow[None], stride)[0] / stride"
MOVED = "torch.stack([backward_warp(one, in_tokens) for one in location])"
FETCH = f"return {MOVED}"
LAST = "return torch.cat([location[:-1], backward_warp(location[-1], in_tokens)[None]])"
SMOOTH = (
    "from vtlib.superres import warp\n"
    "    return torch.stack([warp(one[None], in_tokens[None])[0] for one in location])"
)

SEEN = '''
def key_frames_seen(t, frames, stride, direction):
    if direction == "forward":
        return %s
    return %s
'''
AHEAD = "[f for f in range(0, frames, stride) if f < t]"
BACK = "[f for f in range(frames - 1, 0, -stride) if f > t]"

ATTEND = '''
import torch
import torch.nn.functional as F
def trajectory_attention(query, keys, values):
    similarity = %s
    weight, chosen = similarity.max(dim=0)
    n = torch.arange(len(query))
    return %s
'''
COSINE = "F.cosine_similarity(query[None], keys, dim=-1)"
TAKE = "values[:, chosen, n] * weight[:, None]"

SCALE = '''
import torch
import torch.nn.functional as F
from einops import rearrange
def scale_tokens(x, size):
    patches = F.unfold(%s, size, stride=4, padding=%s)
    patches = rearrange(patches, "1 (c p q) n -> n c p q", p=size, q=size)
    pooled = %s
    return rearrange(pooled, "(h w) c p q -> (c p q) h w", h=x.shape[1] // 4)
'''
POOL, MARGIN = "F.adaptive_avg_pool2d(patches, 4)", "(size - 4) // 2"
MIDDLE = "(size - 4) // 2 : (size + 4) // 2"
RIGHT = SCALE % ("x[None]", MARGIN, POOL)

FOLLOW = '''
from vtlib.superres import ttvsr, warp
def follow(flows):
    location = ttvsr.identity_grid(1, *flows[0].shape[-2:])
    for flow in %s:
        location = %s
    return %s
'''
STEP, END = "warp(location, flow[None])", "location[0].round()"

WRONG = {
    "ttvsr.backward_warp": [
        (
            "minus the flow",
            WARP % ("x - flow[0]", SNAPS[0], "y - flow[1]", SNAPS[1], OUT),
            "pixel + flow",
        ),
        (
            "x and y swapped",
            WARP % ("x + flow[1]", SNAPS[0], "y + flow[0]", SNAPS[1], OUT),
            "x and y are swapped",
        ),
        ("forward", WARP % (X, SNAPS[0], Y, SNAPS[1], SPLAT), "fetch its own value"),
        (
            "cut",
            WARP % (X, ".long().clamp(0, w - 1)", Y, ".long().clamp(0, h - 1)", OUT),
            "round()",
        ),
        (
            "wraps around",
            WARP % (X, ".round().long() % w", Y, ".round().long() % h", OUT),
            "repeat its border",
        ),
        ("outside", WARP % (X, ".round().long()", Y, ".round().long()", OUT), "IndexError"),
    ],
    "ttvsr.update_maps": [
        ("pixels", UPDATE % ("F.avg_pool2d(flow[None], stride)[0]", FETCH), "divide by the stride"),
        ("first pixel", UPDATE % ("flow[:, ::stride, ::stride] / stride", FETCH), "take the mean"),
        ("added", UPDATE % (MEAN, "return location + in_tokens"), "The map moves"),
        (
            "added and rounded",
            UPDATE % (MEAN, "return (location + in_tokens).round()"),
            "The map moves",
        ),
        (
            "warped and added",
            UPDATE % (MEAN, f"{FETCH} + in_tokens"),
            "warped AND the flow was added",
        ),
        (
            "warped, added and rounded",
            UPDATE % (MEAN, f"return ({MOVED} + in_tokens).round()"),
            "warped AND the flow was added",
        ),
        ("minus", UPDATE % (f"-{MEAN}", FETCH), "i - flow"),
        ("last pair", UPDATE % (MEAN, LAST), "all stored trajectories"),
        ("interpolated", UPDATE % (MEAN, SMOOTH), "nearest token"),
        (
            "four written out",
            UPDATE % ("F.avg_pool2d(flow[None], stride)[0] / 4", FETCH),
            "use the argument",
        ),
    ],
    "ttvsr.key_frames_seen": [
        (
            "itself",
            SEEN % (AHEAD.replace("<", "<="), BACK.replace(">", ">=")),
            "does not look at itself",
        ),
        (
            "all",
            SEEN % ("list(range(0, frames, stride))", "list(range(frames - 1, 0, -stride))"),
            "only those before",
        ),
        (
            "counts from 0",
            SEEN % (AHEAD, "[f for f in range(0, frames, stride) if f > t][::-1]"),
            "from the last frame",
        ),
        ("ascending", SEEN % (AHEAD, f"sorted({BACK})"), "order is the one of the pass"),
        ("one direction", SEEN % (AHEAD, BACK.replace("> t", "< t")), "frames after t"),
    ],
    "ttvsr.trajectory_attention": [
        (
            "softmax",
            ATTEND % (COSINE, 'torch.einsum("kn,sknd->snd", similarity.softmax(0), values)'),
            "mixture of values",
        ),
        ("no weight", ATTEND % (COSINE, "values[:, chosen, n]"), "soft weight is missing"),
        ("dot product", ATTEND % ("(query[None] * keys).sum(-1)", TAKE), "dot products"),
        (
            "weighted sum",
            ATTEND % (COSINE, 'torch.einsum("kn,sknd->snd", similarity, values)'),
            "only the best one",
        ),
        (
            "softmax weight",
            ATTEND % (COSINE, "values[:, chosen, n] * similarity.softmax(0).amax(0)[:, None]"),
            "the cosine itself",
        ),
        (
            "cut off",
            ATTEND % (COSINE, "values[:, chosen, n] * weight.clamp(min=0)[:, None]"),
            "cut off",
        ),
        (
            "least similar",
            ATTEND % (f"-{COSINE}", "values[:, chosen, n] * -weight[:, None]"),
            "least similar",
        ),
    ],
    "ttvsr.scale_tokens": [
        (
            "no margin",
            SCALE % ("F.pad(x[None], (0, size - 4, 0, size - 4))", "0", POOL),
            "around the token",
        ),
        (
            "border repeated",
            SCALE % ('F.pad(x[None], ((size - 4) // 2,) * 4, mode="replicate")', "0", POOL),
            "there are zeros",
        ),
        (
            "largest",
            SCALE % ("x[None]", MARGIN, "F.adaptive_max_pool2d(patches, 4)"),
            "take the mean",
        ),
        (
            "middle",
            SCALE % ("x[None]", MARGIN, f"patches[:, :, {MIDDLE}, {MIDDLE}]"),
            "size 4 again",
        ),
        (
            "interpolated",
            SCALE % ("x[None]", MARGIN, 'F.interpolate(patches, size=4, mode="bilinear")'),
            "windows of adaptive_avg_pool2d",
        ),
        (
            "pixels not split",
            RIGHT.replace("1 (c p q) n -> n c p q", "c p q n -> n c p q"),
            "the left side of the pattern has 4 axes (a bracket is one), the tensor has 3",
        ),
        (
            "size 4 for all",
            RIGHT.replace("p=size, q=size", "p=5, q=size"),
            "which does not divide",
        ),
        (
            "tokens lost",
            RIGHT.replace("(h w) c p q ->", "n c p q ->").replace(", h=x.shape[1] // 4", ""),
            "one side of the arrow only",
        ),
        ("not pooled", SCALE % ("x[None]", MARGIN, "patches"), "shape is off"),
    ],
    "ttvsr.follow": [
        ("rounded each step", FOLLOW % ("flows", f"{STEP}.round()", END), "Round once"),
        (
            "nearest",
            FOLLOW % ("flows", 'warp(location, flow[None], mode="nearest")', END),
            "Interpolate",
        ),
        ("added up", FOLLOW % ("flows", "location + flow[None]", END), "at one and the same place"),
        ("not rounded", FOLLOW % ("flows", STEP, "location[0]"), "last step is missing"),
        ("floor", FOLLOW % ("flows", STEP, "location[0].floor()"), "cut down to whole numbers"),
        ("backwards", FOLLOW % ("flows[::-1]", STEP, END), "from the last to the first"),
        ("batch axis", FOLLOW % ("flows", STEP, "location.round()"), "batch axis"),
    ],
}
