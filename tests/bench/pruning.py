"""Pruning before the language model: a selection against one N x N cosine product, DivPrune against loops, cost as N grows."""

import functools
import importlib
import importlib.util

import torch
import torch.nn.functional as F

from vtlib.pruning import divprune, fastervlm
from vtlib.teach import flops, latency
from vtlib.tokens import VisionOutputs
from vtlib.vlm import TinyVLM, exam

from .before import before, ratio

HEADS = 16
PRODUCT, READS, FREE = "N x N product", "reads N x N maps", "no N x N product"
# name: (file, what it needs, selection). A method whose file is not there is left out.
METHODS = {
    "random": ("baselines", FREE, lambda m, vision, keep: m.random(vision, keep)),
    "uniform grid": ("baselines", FREE, lambda m, vision, keep: m.uniform(vision, keep)),
    "average pooling": ("baselines", FREE, lambda m, vision, keep: m.pool(vision, keep)),
    "ToMe, rounds of halving": ("baselines", PRODUCT, lambda m, vision, keep: m.tome(vision, keep)),
    "FasterVLM": ("fastervlm", FREE, lambda m, vision, keep: m.prune(vision, keep)),
    "DivPrune": ("divprune", PRODUCT, lambda m, vision, keep: m.prune(vision, keep)),
    "HiPrune, scores given": ("hiprune", FREE, lambda m, vision, keep: m.select(*_received(vision), keep, vision.grid)),
    "HiPrune": ("hiprune", READS, lambda m, vision, keep: m.prune(vision, keep, 1)),
    "HoloV": ("holov", FREE, lambda m, vision, keep: m.prune(vision, keep)),
    "ZOO-Prune, sensitivity given": ("zooprune", PRODUCT, lambda m, v, keep: m.select(_received(v)[0], v.tokens, keep)),
    "VisionDrop, stage 0": ("visiondrop", FREE, lambda m, vision, keep: m.prune(vision, keep)),
    "AIM, merging": ("aim", PRODUCT, lambda m, vision, keep: m.prune(vision, keep)),
    "CrossGET, untrained": ("crossget", PRODUCT, lambda m, vision, keep: m.prune(vision, keep)),
}


def _received(vision):
    return vision.cls_row[:, 0], vision.cls_row[:, 1]


def make(batch, side, dim, maps=True):
    """Random outputs of an encoder with [CLS]; attention of two layers when maps=True."""
    n = side * side + 1
    attention = {layer: torch.rand(batch, HEADS, n, n) / n for layer in (0, 1)} if maps else {}
    vision = VisionOutputs(torch.randn(batch, n, dim), (side, side), torch.Tensor.contiguous, attention=attention,
                           keys=torch.randn(batch, n, dim // HEADS), cls_row=torch.rand(batch, HEADS, n).softmax(-1)[..., 1:])
    vision.tokens                                                                # projected once, before any clock starts
    return vision


def product(tokens):
    """The yardstick: cosine similarities of all pairs."""
    x = F.normalize(tokens, dim=-1)
    return x @ x.transpose(1, 2)


def available():
    """(name, kind, callable vision, keep -> Plan) of each method whose file is there."""
    for name, (file, kind, run) in METHODS.items():
        if importlib.util.find_spec(f"vtlib.pruning.{file}"):
            yield name, kind, functools.partial(run, importlib.import_module(f"vtlib.pruning.{file}"))


def against_product(batch=16, side=24, dim=1024, keep=64, repeat=5):
    vision = make(batch, side, dim)
    unit = latency(product, vision.tokens, repeat=repeat)
    yield "the product itself", "", f"{1000 * unit:.1f} ms", "1.00"
    for name, kind, run in available():
        seconds = latency(run, vision, keep, repeat=1, warmup=1)
        seconds = seconds if seconds > 5 * unit else latency(run, vision, keep, repeat=repeat, warmup=0)
        yield name, kind, f"{1000 * seconds:.1f} ms", f"{seconds / unit:.2f}"


def token_by_token(tokens, keep):
    """DivPrune in Python: image by image, step by step, token by token."""
    out = []
    for image in tokens:
        d = 1 - product(image[None])[0]
        n = len(d)
        alone = [min(row[:i] + row[i + 1 :]) for i, row in enumerate(d.tolist())]
        chosen = [max(range(n), key=lambda i: (alone[i], -i))]
        for _ in range(keep - 1):
            best, at = float("-inf"), None
            for i in range(n):
                if i not in chosen:
                    nearest = d[i, chosen].min().item()
                    if nearest > best:
                        best, at = nearest, i
            chosen.append(at)
        out.append(sorted(chosen))
    return torch.tensor(out)


def whole_set_each_step(tokens, keep):
    """DivPrune image by image, each step a minimum over everything chosen so far: N T^2 reads, as the release does it."""
    out = []
    for image in tokens:
        d = 1 - product(image[None])[0]
        chosen = [d.topk(2, dim=0, largest=False).values[1].argmax().item()]
        for _ in range(keep - 1):
            nearest = d.index_select(0, torch.tensor(chosen)).amin(dim=0)
            nearest[chosen] = float("-inf")
            chosen.append(nearest.argmax().item())
        out.append(sorted(chosen))
    return torch.tensor(out)


def against_loops(batch=16, num_tokens=576, dim=1024, keep=64):
    tokens = torch.randn(batch, num_tokens, dim)
    fast = latency(divprune.select, tokens, keep, repeat=5)
    want = divprune.select(tokens, keep).index
    for name, slow in (("token by token", token_by_token), ("the whole chosen set at each step", whole_set_each_step)):
        same = torch.equal(slow(tokens, keep), want)
        yield name, "same choice" if same else "OTHER CHOICE", f"{latency(slow, tokens, keep, repeat=1, warmup=0) / fast:.1f} x"


def growth(dim=256, heads=4, keep=64):
    """FLOPs and time for one image, each relative to its own value at N = 256."""
    def makers(side):
        vision = make(1, side, dim, maps=False)
        q, k = (torch.randn(1, heads, side * side + 1, dim // heads) for _ in range(2))

        def row_of_full_map():
            return fastervlm.select(fastervlm.score((q @ k.transpose(-2, -1)).softmax(-1)[:, :, 0, 1:]), keep)
        return {"cosine product": lambda: product(vision.tokens), "DivPrune": lambda: divprune.prune(vision, keep),
                "FasterVLM, [CLS] row alone": lambda: fastervlm.select(fastervlm.score(fastervlm.cls_row(q, k)), keep),
                "FasterVLM, row of the full map": row_of_full_map}
    sides, first = (16, 32, 64), {}
    rows = {name: [name] for name in makers(16)}
    for side in sides:
        for name, run in makers(side).items():
            cost = flops(run), latency(run, repeat=5)
            base = first.setdefault(name, cost)
            rows[name] += [f"{now / then:.1f}" for now, then in zip(cost, base)]
    header = [f"{what} N={side * side}" for side in sides for what in ("FLOPs", "time")]
    return ["cost relative to N = 256", *header], rows.values()


def prefill(batch=32, keeps=(256, 85, 57, 28)):
    """TinyVLM's prompt (batch pictures, one question each) with fewer and fewer visual tokens: counted FLOPs and time, relative to all 256."""
    model = TinyVLM(exam.VOCABULARY).eval()
    question, tokens = ["is there a crab?"] * batch, torch.randn(batch, max(keeps), model.decoder.embed_dim)
    cost = {keep: (flops(lambda k=keep: model.prefill(tokens[:, :k], question)), latency(lambda k=keep: model.prefill(tokens[:, :k], question), repeat=9))
            for keep in keeps}
    for keep in keeps:
        fewer, faster = (all_of_it / part for all_of_it, part in zip(cost[max(keeps)], cost[keep]))
        yield f"{keep} ({keep / max(keeps):.1%})", f"{1000 * cost[keep][1]:.1f} ms", f"{fewer:.2f} x", f"{faster:.2f} x", f"{faster / fewer:.2f}"


# ------------------------------------------------- FasterVLM and DivPrune as their releases do it
def released_fastervlm(row, tokens, keep):
    """The release's lines: mean over heads, topk, then the tokens in raster order."""
    index = row.mean(dim=1).topk(keep, dim=-1).indices.sort(dim=-1).values
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def released_divprune(tokens, keep):
    """Image by image; each step a minimum over the rows of all tokens chosen so far."""
    out = []
    for image in tokens:
        x = image / image.norm(dim=1, keepdim=True)
        d = 1 - x @ x.T
        chosen = d.topk(2, dim=0, largest=False).values[1].argmax()[None]
        for _ in range(keep - 1):
            farthest = d.index_select(0, chosen).amin(dim=0).argmax()
            chosen = torch.cat([chosen, farthest[None]])
        out.append(chosen.sort().values)
    return torch.stack(out)


def against_releases():
    """Processor time over the release's and over that of the earlier commit's, turns A B B A."""
    old = before().module("pruning.fastervlm")
    for batch, n, dim, keep in ((1, 576, 1024, 64), (16, 576, 1024, 64), (1, 2880, 4096, 320)):
        row, tokens = torch.rand(batch, HEADS, n).softmax(-1), torch.randn(batch, n, dim)

        def kept(module, row=row, tokens=tokens, keep=keep):
            return module.select(module.score(row), keep).apply(tokens)

        def release(row=row, tokens=tokens, keep=keep):
            return released_fastervlm(row, tokens, keep)

        same = torch.equal(kept(fastervlm), release())
        now, then = ratio(lambda: kept(fastervlm), release), ratio(lambda: kept(old), release)
        yield f"FasterVLM {(batch, n, dim)}", same, f"{now:.2f}", f"{then:.2f}"
    old = before().module("pruning.divprune")
    tokens = torch.randn(16, 576, 1024)
    same = torch.equal(divprune.select(tokens, 56).index, released_divprune(tokens, 56))
    now, then = (ratio(lambda m=module: m.select(tokens, 56),
                       lambda: released_divprune(tokens, 56), repeats=3)
                 for module in (divprune, old))
    yield "DivPrune (16, 576, 1024)", same, f"{now:.2f}", f"{then:.2f}"


def tables():
    with torch.no_grad():
        yield ("Selecting, the kept tokens included, against the releases: processor time",
               ["method", "same", "now", "earlier commit"], list(against_releases()))
        yield ("TinyVLM, prefill of 32 prompts: what fewer visual tokens save",
               ["visual tokens", "time", "fewer FLOPs", "faster", "of what the FLOPs promise"], list(prefill()))
        yield ("Selecting 64 of 576 tokens, batch 16, D = 1024, 16 heads: time over that of one N x N cosine product",
               ["method", "needs", "time", "ratio"], list(against_product()))
        yield ("DivPrune, the same sizes, against naive forms: how many times faster vtlib is",
               ["reference", "", "faster"], list(against_loops()))
        header, rows = growth()
        yield "Selection against N, one image, 64 kept: linear is 4 and 16, quadratic is 16 and 256", header, rows
