"""Plausible wrong answers to the Expedit exercises of notebook 08b, with what each is told."""

STEP = '''
import torch
def kmeans_step(tokens, centres, allowed, tau):
    distance = (tokens[:, None] - centres).square().sum(dim=2)%s
    logits = %s * distance
    share = %s
    return %s
'''
MASKED = 'logits.masked_fill(~allowed, float("-inf")).softmax(dim=%s)'
MEAN = "(share.T @ tokens) / share.sum(dim=0)[:, None]"

WEIGHT = '''
import torch
def rebuild_weights(before, centres, k, tau):
    distance = (before[:, None] - centres).square().sum(dim=2)
    weight = torch.exp(%s * distance)
    kth = weight.topk(k, dim=%s%s).values[:, -1:]
    weight = torch.where(weight %s kth, weight, 0.0)
    return weight / %s
'''
SUM = "weight.sum(dim=1, keepdim=True)"

WRONG = {
    "expedit.kmeans_step": [
        ("no minus", STEP % ("", "tau", MASKED % 1, MEAN), "minus sign is missing"),
        ("over tokens", STEP % ("", "-tau", MASKED % 0, MEAN), "over the tokens"),
        ("no window", STEP % ("", "-tau", "logits.softmax(dim=1)", MEAN), "window is ignored"),
        (
            "inverted window",
            STEP % ("", "-tau", MASKED.replace("~", "") % 1, MEAN),
            "wrong way round",
        ),
        (
            "window after the softmax",
            STEP % ("", "-tau", "logits.softmax(dim=1) * allowed", MEAN),
            "after the softmax",
        ),
        (
            "zeros for the forbidden",
            STEP % ("", "-tau", "(logits * allowed).softmax(dim=1)", MEAN),
            "must be -inf",
        ),
        ("sums", STEP % ("", "-tau", MASKED % 1, "share.T @ tokens"), "a mean is wanted"),
        ("roots", STEP % (".sqrt()", "-tau", MASKED % 1, MEAN), "not squared"),
    ],
    "expedit.rebuild_weights": [
        (
            "L2",
            WEIGHT % ("-tau", 1, "", ">=", "weight.norm(dim=1, keepdim=True)"),
            "L2 norm",
        ),
        ("undivided", WEIGHT % ("-tau", 1, "", ">=", "1"), "not divided by their sum"),
        ("farthest", WEIGHT % ("-tau", 1, ", largest=False", "<=", SUM), "FARTHEST"),
        (
            "cut after dividing",
            WEIGHT.replace("torch.exp(%s * distance)", "(%s * distance).softmax(dim=1)")
            % ("-tau", 1, "", ">=", "1"),
            "first cut to k",
        ),
        ("all", WEIGHT % ("-tau", 1, "", "> -", SUM), "all centres were kept"),
        ("no minus", WEIGHT % ("tau", 1, ", largest=False", "<=", SUM), "minus sign is missing"),
    ],
}
