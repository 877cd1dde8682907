"""ViT, CrossViT, CrossFormer and TokenFormer blocks: against loops, against theory."""

import torch
import torch.nn.functional as F

from vtlib.multiscale.crossformer import CrossFormerBlock
from vtlib.multiscale.crossvit import AllAttentionFusion, CrossViT, exchange_cls
from vtlib.multiscale.tokenformer import Pattention, TokenFormerBlock
from vtlib.nn import Block
from vtlib.teach import flops, latency

D, HEADS = 96, 3


def naive_block(block, x):
    """The block with one Python loop per image and head, and attention weights written out."""
    out = []
    for image in x:
        y = block.norm1(image)
        q, k, v = block.attn.qkv(y).split(D, dim=-1)
        heads = []
        for h in range(HEADS):
            part = slice(h * D // HEADS, (h + 1) * D // HEADS)
            heads.append((q[:, part] @ k[:, part].t() / (D // HEADS) ** 0.5).softmax(-1) @ v[:, part])
        image = image + block.attn.proj(torch.cat(heads, dim=-1))
        out.append(image + block.mlp(block.norm2(image)))
    return torch.stack(out)


def naive_exchange(xs, encoder):
    """CrossViT's fusion as full self-attention of which only the first row is kept."""
    out = []
    for i in (0, 1):
        block = encoder.fusion[i]
        z = torch.cat([encoder.projs[i](xs[i][:, :1]), xs[1 - i][:, 1:]], dim=1)
        y, heads = block.norm1(z), block.attn.num_heads
        q, k, v = (w(y).unflatten(-1, (heads, -1)).transpose(1, 2) for w in (block.attn.wq, block.attn.wk, block.attn.wv))
        full = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        y = z[:, :1] + block.attn.proj(full.transpose(1, 2).flatten(2))[:, :1]
        out.append(torch.cat([encoder.revert_projs[i](y), xs[i][:, 1:]], dim=1))
    return out


def naive_groups(block, x, grid):
    """CrossFormer's block as full attention over all tokens with a mask and a bias for every pair (sides that need no padding)."""
    size, interval = block.plan(*grid)
    y, z = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    step, region = interval or 1, size * (interval or 1)
    group = torch.stack([y // region, z // region, y % step, z % step], -1).flatten(0, 1)
    slot = torch.stack([y % region // step, z % region // step], -1).flatten(0, 1)
    same = (group[:, None] == group[None]).all(-1)
    offset = (slot[:, None] - slot[None] + size - 1).clamp(0, 2 * size - 2)
    bias = block.attn.pos.table(size)[offset[..., 0] * (2 * size - 1) + offset[..., 1]].permute(2, 0, 1)
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias
    out = (logits.masked_fill(~same, float("-inf")).softmax(-1) @ v).transpose(1, 2).flatten(2)
    x = x + block.attn.proj(out)
    return x + block.mlp(block.norm2(x))


def naive_pattention(layer, x):
    """Pattention token by token."""
    out = []
    for token in x.flatten(0, -2):
        scores = layer.key_param_tokens @ token
        out.append(F.gelu(layer.tau * scores / scores.norm()) @ layer.value_param_tokens)
    return torch.stack(out).reshape(*x.shape[:-1], -1)


def compare(name, n, fast, slow):
    """One row: agreement, and how many times faster than the reference."""
    with torch.no_grad():
        a, b = fast(), slow()
        a, b = (torch.cat([t.flatten() for t in (v if isinstance(v, list) else [v])]) for v in (a, b))
        return name, n, f"{(a - b).abs().max():.0e}", f"{latency(slow, repeat=5) / latency(fast, repeat=5):.1f} x"


def against_naive(sizes=(64, 256, 1024)):
    for n in sizes:
        side = int(n**0.5)
        x = torch.randn(8, n, D)
        block = Block(D, HEADS).eval()
        yield compare("ViT block, loops over images and heads", n, lambda: block(x), lambda: naive_block(block, x))
        model = CrossViT((side, side), (1, 1), embed_dim=(D, D), depth=((0, 1),), num_heads=(HEADS, HEADS), num_classes=2)
        encoder, xs = model.blocks[0].eval(), [torch.randn(8, 1 + n, D) for _ in range(2)]
        yield compare("CrossViT fusion, full attention, one row kept", n,
                      lambda: exchange_cls(xs, encoder.projs, encoder.fusion, encoder.revert_projs), lambda: naive_exchange(xs, encoder))
        group = CrossFormerBlock(D, HEADS, group_size=4, interval=side // 4, kind="lda").eval()
        yield compare("CrossFormer LDA block, masked full attention", n, lambda: group(x, (side, side)), lambda: naive_groups(group, x, (side, side)))
        pattention = Pattention(D, D, D).eval()
        yield compare("Pattention, loop over tokens", n, lambda: pattention(x), lambda: naive_pattention(pattention, x))


def growth():
    """FLOPs and time of one block for one image, each relative to its own value at N = 256."""
    def makers(n):
        side = int(n**0.5)
        x = torch.randn(1, n, D)
        cross = CrossViT((16, 16), (8, 8), embed_dim=(D, D), depth=((0, 1),), num_heads=(HEADS, HEADS), num_classes=2).blocks[0]
        xs = [torch.randn(1, 1 + n, D) for _ in range(2)]
        everything = AllAttentionFusion((D, D), (HEADS, HEADS))
        vit, group = Block(D, HEADS), CrossFormerBlock(D, HEADS, group_size=4, interval=2, kind="lda")
        token = TokenFormerBlock(D, HEADS, D)
        return {"ViT block": lambda: vit(x), "CrossViT fusion, one query": lambda: exchange_cls(xs, cross.projs, cross.fusion, cross.revert_projs),
                "CrossViT fusion, all-attention": lambda: everything(xs), "CrossFormer block": lambda: group(x, (side, side)),
                "TokenFormer block": lambda: token(x)}
    sizes, first = (256, 1024, 4096), {}
    rows = {name: [name] for name in makers(256)}
    with torch.no_grad():
        for n in sizes:
            for name, run in makers(n).items():
                cost = flops(run), latency(run, repeat=3, warmup=1)
                base = first.setdefault(name, cost)
                rows[name] += [f"{cost[0] / base[0]:.1f}", f"{cost[1] / base[1]:.1f}"]
    return ["cost relative to N = 256", *[f"{what} N={n}" for n in sizes for what in ("FLOPs", "time")]], rows.values()


def tables():
    yield ("Against naive references: batch 8, D = 96; largest difference, and how many times faster vtlib is",
           ["block", "N", "difference", "faster"], list(against_naive()))
    header, rows = growth()
    yield "Cost against N: linear is 4 and 16, quadratic is 16 and 256", header, rows
