"""Pictures of plans, and the pruning bench: method and budget in, picture, answer and bill out.

    from vtlib.teach import pruning
    pruning.draw(ax, image, plan, grid)                     dropped patches pale, merged ones in the colour of their slot, roles framed
    pruning.trial(model, vision, "divprune", 28, "is there a crab?")     one run: answer, probability, tokens, FLOPs, cache, time
    pruning.bench(model, exam).show()                       the widget over all methods of `vtlib.pruning.registry`
"""

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ipywidgets
import torch
from torch import Tensor

from vtlib.pruning import zooprune
from vtlib.pruning.bench import Reduced, encode, reduce
from vtlib.pruning.registry import METHODS, find
from vtlib.teach.show import PALETTE, figure, image
from vtlib.teach.widgets import Panel, panel
from vtlib.tokens import Plan
from vtlib.tokens.cost import cache_bytes, decoder_flops, tokens_per_layer
from vtlib.vlm.tinyvlm import words

__all__ = ["COLOURS", "Trial", "bench", "draw", "legend", "paint", "trial"]

COLOURS = ("auto", "kept", "slots", "roles")
PATCH = 16  # pixels of a painted patch at least, so that a frame of one or two pixels is fine
SLOT_ORDER = (0, 4, 2, 3, 5, 1, 7)  # neighbours in the list look different; black is left out


def _rgb(color: str) -> Tensor:
    return torch.tensor([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])


# --------------------------------------------------------------------------------------------------------------- pictures
def _colour(plan: Plan, colour: str) -> str:
    if colour not in COLOURS:
        raise ValueError(f"colour={colour!r}: needs one of {', '.join(COLOURS)}")
    if colour == "roles" and plan.role is None:
        raise ValueError("colour='roles': this plan has no roles")
    if colour != "auto":
        return colour
    if plan.merges:
        return "slots"
    return "roles" if plan.role is not None and len(plan.roles) <= 4 else "kept"


def paint(picture: Tensor, plan: Plan, grid: tuple[int, int], row: int = 0, colour: str = "auto", order: Sequence[int] | None = None) -> Tensor:
    """A picture (3, H, W) with what `plan` does to its patches, as pixels (3, H', W') in [0, 1], enlarged to 16 a patch or more.

    grid (h, w); row: which picture of the plan's batch. Kept patches are bright, in a frame; dropped ones pale and grey. Patches
    that went into a slot together carry the slot's colour, brighter where the slot sits. colour: "kept" (blue frames), "slots",
    "roles" (frame by role), or "auto". order: frame these patches only (a subset of steps); default all kept.
    ValueError when plan and grid do not fit.
    """
    colour, (h, w) = _colour(plan, colour), grid
    if plan.num_tokens - plan.num_prefix != h * w:
        raise ValueError(f"the plan is for {plan.num_tokens - plan.num_prefix} patches but the grid {h} x {w} has {h * w}")
    pixels = torch.as_tensor(picture).detach().float().cpu()
    factor = max(1, -(-PATCH * h // pixels.shape[1]))
    pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    height, width = pixels.shape[1] // h, pixels.shape[2] // w
    pixels = pixels[:, : height * h, : width * w].unflatten(1, (h, height)).unflatten(3, (w, width)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    source, kept = (t[row, plan.num_prefix :].cpu() for t in (plan.source(), plan.kept()))                # n
    if order is not None:
        kept = torch.zeros_like(kept).scatter(0, torch.as_tensor(order, dtype=torch.long), True)
        source = torch.where(kept, source, -1)
    grey = pixels.mean(1, keepdim=True).expand_as(pixels)
    out = torch.where((source >= 0)[:, None, None, None], pixels, 0.24 * grey + 0.72)                     # n 3 p p
    frame = _rgb(PALETTE[0]).expand(h * w, 3).clone()
    if colour == "slots":
        shared = source.clamp(min=0).bincount(minlength=1)[source.clamp(min=0)] > 1
        shared &= source >= 0
        palette = torch.stack([_rgb(PALETTE[k]) for k in SLOT_ORDER])
        tint = palette[source.clamp(min=0) % len(palette)]                                                # n 3
        mixed = 0.45 * pixels + 0.55 * tint[:, :, None, None]
        out = torch.where((shared & ~kept)[:, None, None, None], mixed, out)
        frame = torch.where(shared[:, None], tint, frame)
    elif colour == "roles":
        role = torch.zeros(plan.num_tokens, dtype=torch.long)
        here = plan.index[row].cpu() >= 0
        role[plan.index[row].cpu()[here]] = plan.role[row].cpu()[here]
        frame = torch.stack([_rgb(PALETTE[k % len(PALETTE)]) for k in range(int(role.max()) + 1)])[role[plan.num_prefix :]]
    edge = torch.zeros(height, width, dtype=torch.bool)
    edge[:2] = edge[-2:] = True
    edge[:, :2] = edge[:, -2:] = True
    out = torch.where(kept[:, None, None, None] & edge, frame[:, :, None, None], out)
    return out.unflatten(0, (h, w)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2).clamp(0, 1)


def draw(ax, picture: Tensor, plan: Plan, grid: tuple[int, int], row: int = 0, colour: str = "auto", title: str | None = None, order=None):
    """`paint` on `ax`, with the roles' names under the picture when frames are coloured by role; returns matplotlib's AxesImage."""
    drawn = image(ax, paint(picture, plan, grid, row, colour, order), title)
    if _colour(plan, colour) == "roles":
        count = plan.role[row][plan.index[row] >= 0].bincount(minlength=len(plan.roles)).tolist()
        legend(ax, [f"{name}: {count[k]}" for k, name in enumerate(plan.roles)])
    return drawn


def legend(ax, names: Sequence[str]) -> None:
    """Names in the palette's colours in one line under the picture on `ax`."""
    for k, name in enumerate(names):
        ax.text((k + 0.5) / len(names), -0.02, name, color=PALETTE[k], fontsize=7.5, ha="center", va="top", transform=ax.transAxes)


# ------------------------------------------------------------------------------------------------------------ one run, billed
@dataclass
class Trial:
    """What a method made of one picture and question.

    plan: from the encoder's patches to what is left in the end. answer; probability: of all its words. first (vocabulary,):
    probabilities of the first word. lengths: tokens each decoder layer reads, words included. flops: prefill of the decoder, a
    multiply-add counts 2. cache: bytes of keys and values after it. choosing, reading: seconds, medians of `repeat` runs.
    visual: visual tokens in the first and in the last layer.
    """

    plan: Plan
    answer: str
    probability: float
    first: Tensor
    lengths: list[int]
    flops: int
    cache: int
    choosing: float
    reading: float
    visual: tuple[int, int]


def bill(model, stages, num_visual: int, num_text: int, bytes_per_value: int = 4) -> tuple[list[int], int, int]:
    """(tokens of each layer, FLOPs, cache bytes) of the decoder's prefill, counted: <start> and num_text words always stay."""
    layers = model.decoder.layers
    lengths = tokens_per_layer(len(layers), num_visual, 1 + num_text, stages)
    hidden = layers[0].mlp.gate_proj.out_features
    kv = layers[0].self_attn.num_kv_heads * model.decoder.head_dim
    return lengths, 2 * decoder_flops(lengths, model.decoder.embed_dim, hidden, gated=True), cache_bytes(lengths, kv, bytes_per_value)


def _timed(fn, repeat):
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        out = fn()
        seconds.append(time.perf_counter() - start)
    return out, statistics.median(seconds)


@torch.no_grad()
def trial(model, vision, method, keep: int | float, question: str, generator=None, repeat: int = 1, choose=None) -> Trial:
    """Run `method` on one picture (a `VisionOutputs` with B = 1) and one question. repeat: how often choosing and reading are
    timed. choose: a function that returns the `Reduced`, instead of `bench.reduce`."""
    if len(vision.selected) != 1:
        raise ValueError(f"vision holds {len(vision.selected)} pictures; a trial is about one: vision.rows(torch.tensor([k]))")
    seed = None if generator is None else generator.get_state()

    def chosen():
        if seed is not None:
            generator.set_state(seed)                                                # each repeat draws the same
        return reduce(model, vision, method, keep, [question], generator) if choose is None else choose()

    vision.tokens                                                                    # projected before the clock starts
    done, choosing = _timed(chosen, repeat)
    (_, run), reading = _timed(lambda: model.prefill(done.tokens, [question], done.stages, done.positions), repeat)
    lengths, flops, cache = bill(model, done.stages, done.tokens.shape[1], len(words(question)), done.tokens.element_size())
    whole, text = done.whole(run), 1 + len(words(question))
    said = model.answer(done.tokens, [question], done.stages, done.positions)
    return Trial(whole if len(whole) else done.plan, said.texts[0], said.probability.item(), said.first[0], lengths, flops, cache, choosing,
                 reading, (lengths[0] - text, lengths[-1] - text))


# --------------------------------------------------------------------------------------------------------------- the bench
def _size(count: float) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.0f} M" if count >= 1e7 else f"{count / 1e6:.1f} M"


def sheet(picture, grid, question, right: str, plain: Trial, pruned: Trial, title: str, vocabulary):
    """The bench's figure: the plan on the picture, the answer with its rivals, and the bill against nothing pruned."""
    fig, axes = figure(3, size=(8.8, 3.4), width_ratios=(1.15, 0.75, 1.05))
    fig.subplots_adjust(0.01, 0.14, 0.985, 0.84, wspace=0.5)
    draw(axes[0], picture, pruned.plan, grid, title=title)
    p, best = pruned.first.topk(3)
    axes[1].barh([2, 1, 0], p.tolist(), color=[PALETTE[0] if vocabulary[i] == right.split()[0] else PALETTE[4] for i in best.tolist()], height=0.6)
    axes[1].set_yticks([2, 1, 0], [vocabulary[i] for i in best.tolist()])
    axes[1].set(xlim=(0, 1), xticks=[0, 0.5, 1], title="first word (blue: right)")
    axes[1].set_xlabel("probability")
    time = 1000 * (pruned.choosing + pruned.reading)
    whole = 1000 * (plain.choosing + plain.reading)
    mean = (sum(t) / len(t) for t in (pruned.lengths, plain.lengths))
    rows = [("tokens a layer", *mean, "{:.0f}"), ("FLOPs", pruned.flops, plain.flops, None), ("cache, kB", pruned.cache / 1e3, plain.cache / 1e3, "{:.0f}"),
            ("time, ms", time, whole, "{:.1f}")]
    axes[2].barh(range(3, -1, -1), [row[1] / row[2] for row in rows], color=PALETTE[2], height=0.6)
    for y, (_, now, before, form) in zip(range(3, -1, -1), rows):
        text = f"{_size(now)} of {_size(before)}" if form is None else f"{form.format(now)} of {form.format(before)}"
        axes[2].text(min(now / before, 1.15) + 0.02, y, text, va="center", fontsize=8)
    axes[2].set_yticks(range(3, -1, -1), [row[0] for row in rows])
    axes[2].set(xlim=(0, 1.75), xticks=[0, 0.5, 1], title=f"{' to '.join(str(n) for n in dict.fromkeys(pruned.visual))} visual tokens: the bill")
    axes[2].set_xlabel("share of nothing pruned")
    verdict = "right" if pruned.answer == right else f"wrong: {right}"
    fig.text(0.01, 0.985, f"{question}  “{pruned.answer}” ({pruned.probability:.2f}), {verdict}", fontsize=10, va="top", ha="left", weight="bold")
    return fig


def bench(model, exam, methods: Sequence | None = None, keeps: Sequence[int] = (4, 8, 14, 28, 57, 85, 128, 256), method: str | None = None,
          keep: int = 28, pictures: int | Sequence[int] = 6, alt: str | None = None) -> Panel:
    """The pruning bench: method, budget and question -> the plan on the picture, the answer, and the bill.

    exam: a `vtlib.vlm.exam.Exam`; pictures: which of it are offered, the first so many or these, two
    questions each, if possible such that the unpruned model answers right. keeps: budgets, in visual tokens. The
    unpruned run of each question and what the methods read of each picture are computed at once; every setting's result when first
    needed, and kept, with its time, the median of three runs. ZOO-Prune's sensitivity is estimated once a picture, with 64
    directions: its choosing time leaves that out. methods: names, or anything
    `registry.find` knows, one of your own too; default: all there are. ValueError for unknown methods or a keep
    that is not among keeps.
    """
    entries = {entry.name: entry for entry in map(find, METHODS if methods is None else methods)}
    methods = tuple(entries)
    if keep not in keeps:
        raise ValueError(f"keep={keep} is not among keeps={tuple(keeps)}")
    method = (("divprune" if "divprune" in methods else methods[0]) if method is None else method)
    device = next(model.parameters()).device
    with torch.no_grad():
        chosen = list(range(len(exam.asked)))[:pictures] if isinstance(pictures, int) else list(pictures)
        vision = encode(model, exam.images[chosen].to(device), entries.values())
        vision.tokens
        part = replace(exam, ids=exam.ids[chosen], target=exam.target[chosen], kind=exam.kind[chosen])
        right = part.right(model, vision.tokens)
    asked = [(k, q) for k, b in enumerate(chosen) for q in _two(exam.asked[b], right[k].tolist())]        # k: place among the offered
    if not asked:
        raise ValueError(f"pictures={pictures}: the exam asks nothing about them")
    grid = vision.grid

    @functools.cache
    def row(b):
        return vision.rows(torch.tensor([b], device=device))

    @functools.cache
    def sensitivity(b):
        return zooprune.sensitivity(row(b).features, model.projector, generator=torch.Generator(device).manual_seed(0))

    @functools.cache
    def result(name, count, k):
        b, question = asked[k]
        choose = None
        if name == "zooprune" and count < vision.features.shape[1]:
            s = sensitivity(b)

            def choose():
                plan = zooprune.select(s, row(b).tokens, count)
                return Reduced(model.reduce(row(b), plan, "tokens"), plan, "tokens", [], "renumber")
        return trial(model, row(b), entries.get(name, name), count, question.text, torch.Generator(device).manual_seed(0), repeat=3, choose=choose)

    def plain(k):
        return result("random", vision.features.shape[1], k)

    for k in range(len(asked)):
        plain(k)                                                                     # so that a redraw has one run to make

    def redraw(method, keep, question):
        b, asking = asked[question]
        now = result(method, keep, question)
        return sheet(exam.images[chosen[b]].cpu(), grid, f"{asking.text}", " ".join(words(asking.answer)), plain(question), now,
                     f"{entries[method].title}: keep {keep} of {vision.features.shape[1]}", model.vocabulary)

    alt = alt or (f"The pruning bench at its first setting: {entries[method].title} keeps {keep} of {vision.features.shape[1]} patches of a scene; "
                  "beside it the answer with its probability, and tokens, FLOPs, cache and time as shares of the unpruned run.")
    return panel(
        redraw, alt=alt,
        method=ipywidgets.Dropdown(options=[(entries[m].title, m) for m in methods], value=method, description="method"),
        keep=ipywidgets.SelectionSlider(options=list(keeps), value=keep, description="keep"),
        question=ipywidgets.Dropdown(options=[(f"{b + 1}: {q.text}", k) for k, (b, q) in enumerate(asked)], value=0, description="picture and question"),
    )


def _two(asked, right):
    """Two questions of different kinds: answered right when nothing is pruned, and resting on objects, if there are such."""
    order = [q for _, _, q in sorted(((not ok, not q.objects, q) for q, ok in zip(asked, right)), key=lambda entry: entry[:2])]
    return order[:1] + [q for q in order if q.kind != order[0].kind][:1]
