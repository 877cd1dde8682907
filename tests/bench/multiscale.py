"""ViT, CrossViT, CrossFormer and TokenFormer blocks: against loops, against theory, against timm's
nets and the earlier commit."""

import importlib
import importlib.util
from functools import partial

import torch
import torch.nn.functional as F

from vtlib.hub import convert_timm_crossvit
from vtlib.multiscale import crossvit
from vtlib.multiscale.crossformer import CrossFormerBlock
from vtlib.multiscale.crossvit import AllAttentionFusion, CrossViT, exchange_cls
from vtlib.multiscale.tokenformer import Pattention, TokenFormerBlock
from vtlib.nn import Block
from vtlib.teach import latency
from vtlib.vit import deit_small

from .before import FIRST, before, peak_bytes, ratio, ratios

D, HEADS = 96, 3
PEERS = {
    "DeiT-S": ("deit_small_patch16_224", deit_small, 224, dict),
    "CrossViT-Ti": ("crossvit_tiny_240", crossvit.crossvit_tiny, 240, convert_timm_crossvit),
}
"""{name: (timm's name, ours, side of the image, how timm's weights become ours)}."""


# ----------------------------------------------------------------------------- naive references
def naive_block(block, x):
    """The block with one Python loop per image and head, and attention weights written out."""
    out = []
    for image in x:
        y = block.norm1(image)
        q, k, v = block.attn.qkv(y).split(D, dim=-1)
        heads = []
        for h in range(HEADS):
            part = slice(h * D // HEADS, (h + 1) * D // HEADS)
            logits = q[:, part] @ k[:, part].t() / (D // HEADS) ** 0.5
            heads.append(logits.softmax(-1) @ v[:, part])
        image = image + block.attn.proj(torch.cat(heads, dim=-1))
        out.append(image + block.mlp(block.norm2(image)))
    return torch.stack(out)


def naive_exchange(xs, encoder):
    """CrossViT's fusion as full self-attention of which only the first row is kept."""
    out = []
    for i in (0, 1):
        block = encoder.fusion[i]
        z = torch.cat([encoder.projs[i](xs[i][:, :1]), xs[1 - i][:, 1:]], dim=1)
        y, heads, layer = block.norm1(z), block.attn.num_heads, block.attn
        projected = (project(y) for project in (layer.wq, layer.wk, layer.wv))
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in projected)
        full = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        y = z[:, :1] + block.attn.proj(full.transpose(1, 2).flatten(2))[:, :1]
        out.append(torch.cat([encoder.revert_projs[i](y), xs[i][:, 1:]], dim=1))
    return out


def naive_groups(block, x, grid):
    """CrossFormer's block as full attention over all tokens, with a mask and a bias for every pair.

    For sides that need no padding.
    """
    size, interval = block.plan(*grid)
    y, z = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    step, region = interval or 1, size * (interval or 1)
    group = torch.stack([y // region, z // region, y % step, z % step], -1).flatten(0, 1)
    slot = torch.stack([y % region // step, z % region // step], -1).flatten(0, 1)
    same = (group[:, None] == group[None]).all(-1)
    offset = (slot[:, None] - slot[None] + size - 1).clamp(0, 2 * size - 2)
    row = offset[..., 0] * (2 * size - 1) + offset[..., 1]
    bias = block.attn.pos.table(size)[row].permute(2, 0, 1)
    qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, HEADS, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias
    weights = logits.masked_fill(~same, float("-inf")).softmax(-1)
    x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


def naive_pattention(layer, x):
    """Pattention token by token."""
    out = []
    for token in x.flatten(0, -2):
        scores = layer.key_param_tokens @ token
        out.append(F.gelu(layer.tau * scores / scores.norm()) @ layer.value_param_tokens)
    return torch.stack(out).reshape(*x.shape[:-1], -1)


def fusion(side):
    """The encoder of a CrossViT that only fuses: side x side patches in both branches."""
    sizes = dict(embed_dim=(D, D), num_heads=(HEADS, HEADS), num_classes=2)
    return CrossViT((side, side), (1, 1), depth=((0, 1),), **sizes).blocks[0].eval()


def exchange(encoder, xs):
    return exchange_cls(xs, encoder.projs, encoder.fusion, encoder.revert_projs)


def flat(value):
    """A tensor, or a list of them, as one vector."""
    return torch.cat([t.flatten() for t in (value if isinstance(value, list) else [value])])


def against_naive(sizes=(64, 256, 1024)):
    """(block, N, largest difference, how many times faster) for each block and size."""
    for n in sizes:
        side = int(n**0.5)
        x, xs = torch.randn(8, n, D), [torch.randn(8, 1 + n, D) for _ in range(2)]
        block, encoder, pattention = Block(D, HEADS), fusion(side), Pattention(D, D, D)
        group = CrossFormerBlock(D, HEADS, group_size=4, interval=side // 4, kind="lda").eval()
        grid = (side, side)
        for name, fast, slow in (
            ("ViT block, loops over images and heads", (block, x), (naive_block, block, x)),
            (
                "CrossViT fusion, full attention, one row kept",
                (exchange, encoder, xs),
                (naive_exchange, xs, encoder),
            ),
            (
                "CrossFormer LDA block, masked full attention",
                (group, x, grid),
                (naive_groups, group, x, grid),
            ),
            ("Pattention, loop over tokens", (pattention, x), (naive_pattention, pattention, x)),
        ):
            yield compare(name, n, partial(*fast), partial(*slow))


@torch.no_grad()
def compare(name, n, fast, slow):
    """One row: agreement, and how many times faster than the reference."""
    difference = (flat(fast()) - flat(slow())).abs().max()
    faster = latency(slow, repeat=5) / latency(fast, repeat=5)
    return name, n, f"{difference:.0e}", f"{faster:.1f} x"


# -------------------------------------------------------------------------------------- growth
def makers(n):
    """{name: one block on one image of n tokens}."""
    side, x = int(n**0.5), torch.randn(1, n, D)
    xs = [torch.randn(1, 1 + n, D) for _ in range(2)]
    group = CrossFormerBlock(D, HEADS, group_size=4, interval=2, kind="lda")
    return {
        "ViT block": partial(Block(D, HEADS), x),
        "CrossViT fusion, one query": partial(exchange, fusion(4), xs),
        "CrossViT fusion, all-attention": partial(AllAttentionFusion((D, D), (HEADS, HEADS)), xs),
        "CrossFormer block": partial(group, x, (side, side)),
        "TokenFormer block": partial(TokenFormerBlock(D, HEADS, D), x),
    }


@torch.no_grad()
def growth(sizes=(256, 1024, 4096)):
    """FLOPs and time of each block, relative to its own value at the first size."""
    header, rows = ratios(sizes, makers, repeat=3, label="N=")
    return [f"cost relative to N = {sizes[0]}", *header], rows


# ------------------------------------------------------------------------------------ whole nets
def timms(name):
    """timm's net of that name; None where timm is not installed."""
    if importlib.util.find_spec("timm") is None:
        return None
    return importlib.import_module("timm.models").create_model(name)


def earlier(name):
    """The same net of the first commit."""
    module = before().module
    if name == "DeiT-S":
        return module("vit").deit_small()
    return module("multiscale.crossvit").crossvit_tiny()


@torch.no_grad()
def whole_nets(batches=(1, 8), repeats=3, names=tuple(PEERS)):
    """Time and peak memory of a forward pass, against timm and against the first commit.

    The same weights and pictures; pictures and weights are not counted as memory.
    """
    for name in names:
        theirs, build, side, convert = PEERS[name]
        for who, other in (("timm", timms(theirs)), (FIRST, earlier(name))):
            if other is None:
                continue
            mine, state = build().eval(), other.eval().state_dict()
            mine.load_state_dict(convert(state) if who == "timm" else state)
            for batch in batches:
                images = torch.rand(batch, 3, side, side)
                new, old = partial(mine, images), partial(other, images)
                difference = float((new() - old()).abs().max())
                memory = peak_bytes(new) / peak_bytes(old)
                time = ratio(new, old, repeats)
                yield name, batch, who, f"{difference:.0e}", f"{time:.2f}", f"{memory:.2f}"


def tables():
    yield (
        "Against naive references: batch 8, D = 96",
        ["block", "N", "largest difference", "faster"],
        list(against_naive()),
    )
    header, rows = growth()
    yield "Cost against N: linear is 4 and 16, quadratic is 16 and 256", header, rows
    yield (
        "Whole nets, forward: time and peak memory over those of timm (where it is installed) and "
        "of the first commit",
        ["net", "batch", "against", "largest difference", "time", "peak memory"],
        list(whole_nets()),
    )
