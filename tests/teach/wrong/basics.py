"""Plausible wrong answers to the exercises of notebook 00, with what the check must say."""

from tests.teach.slips import changed, slips

UNPATCHIFY = '''
from einops import rearrange
def unpatchify(tokens, patch_size, grid):
    h, w = grid
    p, q = patch_size, patch_size
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=p, q=q)
'''

SINCOS = '''
import torch
from einops import rearrange
def sincos_2d(grid, embed_dim):
    h, w = grid
    freq = 10000.0 ** (-torch.arange(embed_dim // 4) / (embed_dim // 4))
    rows, cols = torch.arange(h)[:, None] * freq, torch.arange(w)[:, None] * freq
    rows = torch.cat([rows.sin(), rows.cos()], dim=-1)[:, None].expand(h, w, -1)
    cols = torch.cat([cols.sin(), cols.cos()], dim=-1)[None].expand(h, w, -1)
    return rearrange(torch.cat([rows, cols], dim=-1), "h w d -> (h w) d")
'''
FLAT = 'rearrange(torch.cat([rows, cols], dim=-1), "h w d -> (h w) d")'
COSINE_FIRST = changed(SINCOS, "rows.sin(), rows.cos()", "rows.cos(), rows.sin()")

WEIGHTS = '''
import math
def attention_weights(q, k):
    logits = q @ k.transpose(-2, -1)
    return (logits / math.sqrt(q.shape[-1])).softmax(dim=-1)
'''

HEADS = '''
from einops import rearrange
def multi_head(qkv, num_heads):
    q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=num_heads)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return rearrange(weights @ v, "b h n d -> b n (h d)"), weights
'''
MERGED = 'rearrange(weights @ v, "b h n d -> b n (h d)")'

FLOPS = '''
def block_flops(num_tokens, embed_dim, mlp_ratio=4):
    N, D, r = num_tokens, embed_dim, mlp_ratio
    return (8 + 4 * r) * N * D**2 + 4 * N**2 * D
'''

KEEP = '''
import torch
def keep_tokens(x, score, keep):
    index = score.topk(keep, dim=1).indices.sort(dim=1).values + 1
    index = torch.cat([torch.zeros_like(index[:, :1]), index], dim=1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
'''
WITH_CLS = "    index = torch.cat([torch.zeros_like(index[:, :1]), index], dim=1)\n"

WRONG = {
    "basics.unpatchify": [
        *slips(
            UNPATCHIFY,
            ("inside swapped", "(p q c)", "(q p c)", "rows and columns inside a patch are swapped"),
            ("colours first", "(p q c)", "(c p q)", "put them last"),
            ("column-major", "b (h w)", "b (w h)", "row-major"),
            ("woven", "(h p) (w q)", "(p h) (q w)", "(h p)"),
            ("channels last", "b c (h p) (w q)", "b (h p) (w q) c", "images are (B, C, H, W)"),
            ("grid swapped", "h=h, w=w", "h=w, w=h", "rows first"),
        ),
        (
            "no return",
            "def unpatchify(tokens, patch_size, grid):\n    h, w = grid\n",
            "return",
        ),
    ],
    "basics.sincos": [
        *slips(
            SINCOS,
            (
                "column first",
                "[rows, cols]",
                "[cols, rows]",
                "the first half of the channels belongs to the row",
            ),
            ("slow", "/ (embed_dim // 4)", "/ (embed_dim // 2)", "fall too slowly"),
            ("rising", "-torch.arange(embed_dim", "torch.arange(embed_dim", "minus sign"),
            ("not flat", FLAT, "torch.cat([rows, cols], dim=-1)", "flatten it"),
        ),
        (
            "cosine first",
            changed(COSINE_FIRST, "cols.sin(), cols.cos()", "cols.cos(), cols.sin()"),
            "cosines before sines",
        ),
    ],
    "basics.weights": slips(
        WEIGHTS,
        ("over queries", "softmax(dim=-1)", "softmax(dim=-2)", "softmax over the queries"),
        ("no scale", "(logits / math.sqrt(q.shape[-1]))", "logits", "1 / sqrt(d) is missing"),
        ("over P", "math.sqrt(q.shape[-1])", "q.shape[-1]", "it has to be 1 / sqrt(d)"),
        ("sqrt N", "math.sqrt(q.shape[-1])", "math.sqrt(q.shape[-2])", "1 / sqrt(N) instead"),
        ("no softmax", ".softmax(dim=-1)", "", "before the softmax"),
        (
            "batch only",
            "softmax(dim=-1)",
            "softmax(dim=2 if logits.dim() == 3 else 1)",
            "head axis",
        ),
    ),
    "basics.multi_head": slips(
        HEADS,
        ("scale of D", "q.shape[-1] ** ", "(num_heads * q.shape[-1]) ** ", "d = D / heads"),
        ("no scale", "q.shape[-1] ** -0.5", "1", "scale 1 / sqrt(d) is missing"),
        ("d before h", "(three h d)", "(three d h)", "heads come before channels"),
        ("h outermost", "(three h d)", "(h three d)", "outermost blocks"),
        ("woven", "b n (h d)", "b n (d h)", "side by side"),
        ("over queries", "softmax(dim=-1)", "softmax(dim=-2)", "softmax over the queries"),
        ("heads not merged", MERGED, "weights @ v", "axis of their own"),
        ("output alone", f"{MERGED}, weights", MERGED, "(out, weights) is needed"),
    ),
    "basics.block_flops": slips(
        FLOPS,
        (
            "MACs",
            "(8 + 4 * r) * N * D**2 + 4 * N**2 * D",
            "12 * N * D**2 + 2 * N**2 * D",
            "you counted 1",
        ),
        ("no projection", "8 + 4 * r", "6 + 4 * r", "output projection"),
        ("half an MLP", "8 + 4 * r", "8 + 2 * r", "two layers"),
        ("one product", "4 * N**2", "2 * N**2", "two products"),
        ("no attention", " + 4 * N**2 * D", "", "4 N^2 D"),
        ("fixed ratio", "(8 + 4 * r)", "24", "mlp_ratio is not used"),
    ),
    "basics.keep_tokens": slips(
        KEEP,
        ("off by one", ".values + 1", ".values", "off by one"),
        ("unsorted", ".sort(dim=1).values", "", "sort the indices"),
        ("lowest", "keep, dim=1)", "keep, dim=1, largest=False)", "lowest scores"),
        (
            "first image",
            "score.topk(keep, dim=1).indices.sort(dim=1).values",
            "score[:1].topk(keep, dim=1).indices.sort(dim=1).values.expand(len(x), -1)",
            "whole batch",
        ),
        ("counts CLS", "topk(keep,", "topk(keep - 1,", "counts patch tokens only"),
        ("CLS lost", WITH_CLS, "", "[CLS] was dropped"),
    ),
}
