"""Plausible wrong answers to the exercises of notebook 00, with what the check must say."""

SINCOS = '''
import torch
from einops import rearrange
def sincos_2d(grid, embed_dim):
    h, w = grid
    freq = 10000.0 ** (%s)
    rows, cols = torch.arange(h)[:, None] * freq, torch.arange(w)[:, None] * freq
    rows = torch.cat([%s], dim=-1)[:, None].expand(h, w, -1)
    cols = torch.cat([%s], dim=-1)[None].expand(h, w, -1)
    return %s
'''
FREQ = "-torch.arange(embed_dim // 4) / (embed_dim // 4)"
ROWS, COLS = "rows.sin(), rows.cos()", "cols.sin(), cols.cos()"
FLAT = 'rearrange(torch.cat([rows, cols], dim=-1), "h w d -> (h w) d")'

HEADS = '''
from einops import rearrange
def multi_head(qkv, num_heads):
    q, k, v = rearrange(qkv, "%s", three=3, h=num_heads)
    weights = (q @ k.transpose(-2, -1) * %s).softmax(dim=%s)
    return %s
'''
SPLIT, SCALE, DIM = "b n (three h p) -> three b h n p", "q.shape[-1] ** -0.5", "-1"
MERGE = 'rearrange(weights @ v, "b h n p -> b n (h p)"), weights'

KEEP = '''
import torch
def keep_tokens(x, score, keep):
    index = %s
    index = torch.cat([torch.zeros_like(index[:, :1]), index], dim=1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
'''


def unpatchify(pattern, extra="h=h, w=w"):
    return f'''
from einops import rearrange
def unpatchify(tokens, patch_size, grid):
    h, w = grid
    return rearrange(tokens, "{pattern}", {extra}, p=patch_size, q=patch_size)
'''


def weights(line):
    return f'''
import math
def attention_weights(q, k):
    logits = q @ k.transpose(-2, -1)
    {line}
'''


def flops(line):
    return f'''
def block_flops(num_tokens, embed_dim, mlp_ratio=4):
    N, D, r = num_tokens, embed_dim, mlp_ratio
    return {line}
'''


WRONG = {
    "basics.unpatchify": [
        ("inside swapped", unpatchify("b (h w) (q p c) -> b c (h p) (w q)"), "rows and columns inside a patch are swapped"),
        ("colours first", unpatchify("b (h w) (c p q) -> b c (h p) (w q)"), "put them last"),
        ("column-major", unpatchify("b (w h) (p q c) -> b c (h p) (w q)"), "row-major"),
        ("woven", unpatchify("b (h w) (p q c) -> b c (p h) (q w)"), "(h p)"),
        ("channels last", unpatchify("b (h w) (p q c) -> b (h p) (w q) c"), "images are (B, C, H, W)"),
        ("grid swapped", unpatchify("b (h w) (p q c) -> b c (h p) (w q)", "h=w, w=h"), "rows first"),
        ("no return", "def unpatchify(tokens, patch_size, grid):\n    h, w = grid\n", "return"),
    ],
    "basics.sincos": [
        ("column first", SINCOS % (FREQ, ROWS, COLS, FLAT.replace("[rows, cols]", "[cols, rows]")), "the first half of the channels belongs to the row"),
        ("cosine first", SINCOS % (FREQ, "rows.cos(), rows.sin()", "cols.cos(), cols.sin()", FLAT), "cosines before sines"),
        ("slow", SINCOS % (FREQ.replace("/ (embed_dim // 4)", "/ (embed_dim // 2)"), ROWS, COLS, FLAT), "fall too slowly"),
        ("rising", SINCOS % (FREQ[1:], ROWS, COLS, FLAT), "minus sign"),
        ("not flat", SINCOS % (FREQ, ROWS, COLS, "torch.cat([rows, cols], dim=-1)"), "flatten it"),
    ],
    "basics.weights": [
        ("over queries", weights("return (logits / math.sqrt(q.shape[-1])).softmax(dim=-2)"), "softmax over the queries"),
        ("no scale", weights("return logits.softmax(dim=-1)"), "1 / sqrt(P) is missing"),
        ("over P", weights("return (logits / q.shape[-1]).softmax(dim=-1)"), "it has to be 1 / sqrt(P)"),
        ("sqrt N", weights("return (logits / math.sqrt(q.shape[-2])).softmax(dim=-1)"), "1 / sqrt(N) instead"),
        ("no softmax", weights("return logits / math.sqrt(q.shape[-1])"), "before the softmax"),
        ("batch only", weights("return (logits / math.sqrt(q.shape[-1])).softmax(dim=2 if logits.dim() == 3 else 1)"), "head axis"),
    ],
    "basics.multi_head": [
        ("scale of D", HEADS % (SPLIT, "(num_heads * q.shape[-1]) ** -0.5", DIM, MERGE), "P = D / heads"),
        ("no scale", HEADS % (SPLIT, "1", DIM, MERGE), "scale 1 / sqrt(P) is missing"),
        ("p before h", HEADS % ("b n (three p h) -> three b h n p", SCALE, DIM, MERGE), "heads come before channels"),
        ("h outermost", HEADS % ("b n (h three p) -> three b h n p", SCALE, DIM, MERGE), "outermost blocks"),
        ("woven", HEADS % (SPLIT, SCALE, DIM, MERGE.replace("(h p)", "(p h)")), "side by side"),
        ("over queries", HEADS % (SPLIT, SCALE, "-2", MERGE), "softmax over the queries"),
        ("heads not merged", HEADS % (SPLIT, SCALE, DIM, "weights @ v, weights"), "axis of their own"),
        ("output alone", HEADS % (SPLIT, SCALE, DIM, MERGE.replace(", weights", "")), "(out, weights) is needed"),
    ],
    "basics.block_flops": [
        ("MACs", flops("12 * N * D**2 + 2 * N**2 * D"), "you counted 1"),
        ("no projection", flops("(6 + 4 * r) * N * D**2 + 4 * N**2 * D"), "output projection"),
        ("half an MLP", flops("(8 + 2 * r) * N * D**2 + 4 * N**2 * D"), "two layers"),
        ("one product", flops("(8 + 4 * r) * N * D**2 + 2 * N**2 * D"), "two products"),
        ("no attention", flops("(8 + 4 * r) * N * D**2"), "4 N^2 D"),
        ("fixed ratio", flops("24 * N * D**2 + 4 * N**2 * D"), "mlp_ratio is not used"),
    ],
    "basics.keep_tokens": [
        ("off by one", KEEP % "score.topk(keep, dim=1).indices.sort(dim=1).values", "off by one"),
        ("unsorted", KEEP % "score.topk(keep, dim=1).indices + 1", "sort the indices"),
        ("lowest", KEEP % "score.topk(keep, dim=1, largest=False).indices.sort(dim=1).values + 1", "lowest scores"),
        ("first image", KEEP % "score[:1].topk(keep, dim=1).indices.sort(dim=1).values.expand(len(x), -1) + 1", "whole batch"),
        ("counts CLS", KEEP % "score.topk(keep - 1, dim=1).indices.sort(dim=1).values + 1", "counts patch tokens only"),
        ("CLS lost", "def keep_tokens(x, score, keep):\n    index = score.topk(keep, dim=1).indices.sort(dim=1).values + 1\n"
                     "    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))\n", "[CLS] was dropped"),
    ],
}
