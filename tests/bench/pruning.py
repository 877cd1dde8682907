"""Pruning before the language model: selections against their releases, against one N x N cosine
product, DivPrune against loops, cost as N grows."""

import functools
import math

import torch
import torch.nn.functional as F

from vtlib.pruning import (
    aim,
    baselines,
    crossget,
    divprune,
    fastervlm,
    hiprune,
    holov,
    visiondrop,
    zooprune,
)
from vtlib.teach import flops, latency
from vtlib.tokens import VisionOutputs
from vtlib.vlm import TinyVLM, exam

from . import releases
from .before import before, peak_bytes, ratio, ratios, today

HEADS = 16
PRODUCT, READS, FREE = "N x N product", "reads N x N maps", "no N x N product"


def _received(vision):
    return vision.cls_row[:, 0], vision.cls_row[:, 1]


def _hiprune_selection(vision, keep):
    return hiprune.select(*_received(vision), keep, vision.grid)


def _zooprune_selection(vision, keep):
    return zooprune.select(_received(vision)[0], vision.tokens, keep)


METHODS = {
    "random": (FREE, baselines.random),
    "uniform grid": (FREE, baselines.uniform),
    "average pooling": (FREE, baselines.pool),
    "ToMe, rounds of halving": (PRODUCT, baselines.tome),
    "FasterVLM": (FREE, fastervlm.prune),
    "DivPrune": (PRODUCT, divprune.prune),
    "HiPrune, scores given": (FREE, _hiprune_selection),
    "HiPrune": (READS, functools.partial(hiprune.prune, object_layer=1)),
    "HoloV": (FREE, holov.prune),
    "ZOO-Prune, sensitivity given": (PRODUCT, _zooprune_selection),
    "VisionDrop, stage 0": (FREE, visiondrop.prune),
    "AIM, merging": (PRODUCT, aim.prune),
    "CrossGET, untrained": (PRODUCT, crossget.prune),
}
"""name: (what it needs, selection (vision, keep) -> Plan)."""


def make(batch, side, dim, maps=True):
    """Random outputs of an encoder with [CLS]; attention of two layers when maps=True."""
    n = side * side + 1
    attention = {layer: torch.rand(batch, HEADS, n, n) / n for layer in (0, 1)} if maps else {}
    vision = VisionOutputs(
        torch.randn(batch, n, dim),
        (side, side),
        torch.Tensor.contiguous,
        attention=attention,
        keys=torch.randn(batch, n, dim // HEADS),
        cls_row=torch.rand(batch, HEADS, n).softmax(-1)[..., 1:],
    )
    assert vision.tokens is not None                # projected once, before any clock starts
    return vision


def product(tokens):
    """The yardstick: cosine similarities of all pairs."""
    x = F.normalize(tokens, dim=-1)
    return x @ x.transpose(1, 2)


def against_product(batch=16, side=24, dim=1024, keep=64, repeat=5):
    vision = make(batch, side, dim)
    unit = latency(product, vision.tokens, repeat=repeat)
    yield "the product itself", "", f"{1000 * unit:.1f} ms", "1.00"
    for name, (kind, run) in METHODS.items():
        seconds = latency(run, vision, keep, repeat=1, warmup=1)
        if seconds < 5 * unit:
            seconds = latency(run, vision, keep, repeat=repeat, warmup=0)
        yield name, kind, f"{1000 * seconds:.1f} ms", f"{seconds / unit:.2f}"


# ------------------------------------------------------------------------------- DivPrune and loops
def token_by_token(tokens, keep):
    """DivPrune in Python: image by image, step by step, token by token."""
    out = []
    for image in tokens:
        d = 1 - product(image[None])[0]
        n = len(d)
        alone = [min(row[:i] + row[i + 1 :]) for i, row in enumerate(d.tolist())]
        chosen = [alone.index(max(alone))]
        for _ in range(keep - 1):
            best, best_token = float("-inf"), None
            for i in range(n):
                if i not in chosen:
                    nearest = d[i, chosen].min().item()
                    if nearest > best:
                        best, best_token = nearest, i
            chosen.append(best_token)
        out.append(sorted(chosen))
    return torch.tensor(out)


def against_loops(batch=16, num_tokens=576, dim=1024, keep=64):
    tokens = torch.randn(batch, num_tokens, dim)
    fast = latency(divprune.select, tokens, keep, repeat=5)
    want = divprune.select(tokens, keep).index
    references = {
        "token by token": token_by_token,
        "the whole chosen set at each step": releases.divprune,
    }
    for name, slow in references.items():
        same = "same choice" if torch.equal(slow(tokens, keep), want) else "OTHER CHOICE"
        seconds = latency(slow, tokens, keep, repeat=1, warmup=0)
        yield name, same, f"{seconds / fast:.1f} x"


# ----------------------------------------------------------------------------------------- growth
def growth(dim=256, heads=4, keep=64):
    """FLOPs and time for one image, each relative to its own value at N = 256."""
    growing = functools.partial(_growing, dim=dim, heads=heads, keep=keep)
    header, rows = ratios((256, 1024, 4096), growing, warmup=2, label="N=")
    return ["cost relative to N = 256", *header], rows


def _growing(num_tokens, dim, heads, keep):
    """name: what is measured, for one square image."""
    vision = make(1, math.isqrt(num_tokens), dim, maps=False)
    q, k = (torch.randn(1, heads, num_tokens + 1, dim // heads) for _ in range(2))

    def one_row():
        return fastervlm.select(fastervlm.score(fastervlm.cls_row(q, k)), keep)

    def row_of_full_map():
        row = (q @ k.transpose(-2, -1)).softmax(-1)[:, :, 0, 1:]
        return fastervlm.select(fastervlm.score(row), keep)

    return {
        "cosine product": lambda: product(vision.tokens),
        "DivPrune": lambda: divprune.prune(vision, keep),
        "FasterVLM, [CLS] row alone": one_row,
        "FasterVLM, row of the full map": row_of_full_map,
    }


def prefill(batch=32, keeps=(256, 85, 57, 28)):
    """TinyVLM's prompt (batch pictures, one question each) with fewer and fewer visual tokens:
    counted FLOPs and time, relative to all 256."""
    model = TinyVLM(exam.VOCABULARY).eval()
    question = ["is there a crab?"] * batch
    tokens = torch.randn(batch, max(keeps), model.decoder.embed_dim)
    cost = {}
    for keep in keeps:
        run = functools.partial(model.prefill, tokens[:, :keep], question)
        cost[keep] = flops(run), latency(run, repeat=9)
    all_flops, all_seconds = cost[max(keeps)]
    for keep in keeps:
        fewer, faster = all_flops / cost[keep][0], all_seconds / cost[keep][1]
        share, milliseconds = f"{keep} ({keep / max(keeps):.1%})", f"{1000 * cost[keep][1]:.1f} ms"
        yield share, milliseconds, f"{fewer:.2f} x", f"{faster:.2f} x", f"{faster / fewer:.2f}"


# ------------------------------------------------------------------------------------ the releases
SHAPES = ((1, 198, 768), (16, 198, 768), (1, 576, 1024), (16, 576, 1024), (1, 2880, 4096))
"""(B, N, D): ViT-B/16 with [CLS] and cross token, LLaVA-1.5, a batch of each, LLaVA-NeXT."""
GRIDS = {198: (11, 18), 576: (24, 24), 2880: (48, 60)}


def grouped(batch, num_tokens, dim):
    """Tokens in noisy groups, whose nearest neighbours are no chance."""
    centres = torch.randn(batch, num_tokens // 6, dim)
    group = torch.randint(num_tokens // 6, (batch, num_tokens))
    return centres.gather(1, group[..., None].expand(-1, -1, dim)) + 0.3 * torch.randn(
        batch, num_tokens, dim
    )


def jobs(module, shape):
    """(name, of vtlib, of the release) for one version of the library: module("pruning.divprune")
    imports one of its files. The test says in what they agree."""
    batch, num_tokens, dim = shape
    tokens, query = grouped(*shape), torch.randn(batch, dim)
    row = torch.rand(batch, HEADS, num_tokens).softmax(-1)
    keep = num_tokens // 9
    fast, matching = module("pruning.fastervlm"), module("pruning.crossget")

    def tome(keep):
        grid = GRIDS[num_tokens]
        vision = VisionOutputs(tokens, grid, torch.Tensor.contiguous, num_prefix=0)
        return module("pruning.baselines").tome(vision, keep).apply(tokens)

    def match():
        importance = matching.importance_cosine(tokens, query)
        return matching.match(tokens, importance, num_tokens // 4)

    def fastervlm_kept():
        return fast.select(fast.score(row), keep).apply(tokens)

    half = num_tokens // 2
    yield "FasterVLM", fastervlm_kept, lambda: releases.fastervlm(row, tokens, keep)
    yield "ToMe, one round", lambda: tome(half), lambda: releases.tome(tokens, half)
    yield "ToMe, down to N / 9", lambda: tome(keep), lambda: releases.tome(tokens, keep)
    yield "CrossGET, matching", match, lambda: releases.crossget_match(
        tokens, query, num_tokens // 4
    )
    if num_tokens == 576:
        greedy = module("pruning.divprune").select
        yield "DivPrune", lambda: greedy(tokens, 56).index, lambda: releases.divprune(tokens, 56)


def against_releases(shapes=SHAPES, repeats=5):
    """Processor time and peak memory over the release's, and the time of the earlier commit over
    the release's; turns A B B A."""
    for shape in shapes:
        torch.manual_seed(0)
        now = list(jobs(today, shape))
        torch.manual_seed(0)
        then = list(jobs(before().module, shape))
        for (name, ours, release), (_, earlier, _) in zip(now, then, strict=True):
            brief = name == "FasterVLM" or shape == SHAPES[0]           # 0.1 ms, 2 ms
            turns = 20 * repeats if brief else repeats
            share, was = ratio(ours, release, turns), ratio(earlier, release, turns)
            memory = peak_bytes(ours) / peak_bytes(release)
            yield name, str(shape), f"{share:.2f}", f"{memory:.2f}", f"{was:.2f}"


def tables():
    with torch.no_grad():
        yield (
            "Selecting, the kept tokens included, as parts of the releases' own",
            ["method", "(B, N, D)", "time", "memory", "time, earlier commit"],
            list(against_releases()),
        )
        yield (
            "TinyVLM, prefill of 32 prompts: what fewer visual tokens save",
            ["visual tokens", "time", "fewer FLOPs", "faster", "of what the FLOPs promise"],
            list(prefill()),
        )
        yield (
            "Selecting 64 of 576 tokens, batch 16, D = 1024, 16 heads: time over that of one "
            "N x N cosine product",
            ["method", "needs", "time", "ratio"],
            list(against_product()),
        )
        yield (
            "DivPrune, the same sizes, against naive forms: how many times faster vtlib is",
            ["reference", "", "faster"],
            list(against_loops()),
        )
        header, rows = growth()
        yield (
            "Selection against N, one image, 64 kept: linear is 4 and 16, quadratic is 16 and 256",
            header,
            rows,
        )
