"""Methods on TinyVLM, all behind one call: what tests, notebooks and widgets iterate over.

    done = reduce(model, images, "divprune", keep=28, questions=questions)
    model.answer(done.tokens, questions, done.stages, done.positions)

`keep` is the number of visual tokens that are left in the end: handed to the language model by
methods before it, left by the last cut of methods inside it. Two say it otherwise: VisionDrop's is
the mean over its stages, and AIM's is what merging hands over, before its ramp goes to zero.

`positions` is where the language model believes a token to be. The releases count anew what pruning
before the language model leaves, and so a token's number no longer tells its row.
reduce(..., positions="keep") leaves each token the number of its patch: see `patch_positions`.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import check_flag, check_index
from ..tokens import Plan, Stage, VisionOutputs, keep_all, resolve_keep, scatter_back
from ..tokens.plan import check_plan
from ..tokens.select import repeated
from ..vlm.decoder import POSITIONS, Prefill
from ..vlm.exam import SHELL, Exam
from ..vlm.tinyvlm import TinyVLM, words
from .method import Method
from .registry import METHODS, find

OBJECT_LAYER = 3
"""HiPrune's object layer (from 1) in TinyVLM's encoder of five.

The paper takes the layer whose most attended patches overlap the objects best
(`hiprune.object_iou`), and finds it in the middle (9 of CLIP's 24), with a fall after it. Here the
overlap rises to the last layer; so it is the best of those before the deep layer, the fourth, which
already serves as the registers' score: an anchor has to be chosen by another. Notebook 05b
computes it; a test does so on the shipped encoder.
"""
OPTIONS: dict[str, dict[str, Any]] = {"hiprune": {"object_layer": OBJECT_LAYER}}
"""Options that a method needs with TinyVLM's own encoder; another one brings its own, `options`."""
NAMELESS = frozenset(words(SHELL))
"""Words of questions that name nothing in a picture."""


# ------------------------------------------------------------------------------- what methods read
def encode(model: TinyVLM, images: Tensor, methods: Iterable | None = None) -> VisionOutputs:
    """Encode once with all that these methods read.

    Args:
        model: TinyVLM.
        images: (B, 3, H, W).
        methods: names or methods; None: all of `METHODS`.
    """
    need: set[str] = set()
    attention: set[int] = set()
    hidden: set[int] = set()
    num_layers, num_prefix = model.encoder.num_layers, model.encoder.num_prefix
    deep = model.select % (num_layers + 1) - 1
    for method in map(find, METHODS if methods is None else methods):
        if method.prune is None:
            continue
        need |= set(method.needs(num_prefix)) - {"attention"}
        options = options_of(model, method)
        attention |= set(method.attention(num_layers, deep, options, num_prefix))
        hidden |= set(method.hidden_states(num_layers))
        if {"query", "key"} & set(method.signals):
            hidden.add(num_layers - 1)
    return model.encode(images, tuple(need), tuple(attention), tuple(hidden))


def options_of(model: TinyVLM, method: Method) -> dict[str, Any]:
    """What the method needs with this model's encoder."""
    return dict(getattr(model.encoder, "options", OPTIONS).get(method.name, {}))


def asking_vector(model: TinyVLM, questions: Sequence[str]) -> Tensor:
    """(B, D): mean of the unit embeddings of the words in each question that name something, of all
    its words if none does."""
    rows = []
    for question in questions:
        naming = [word for word in words(question) if word not in NAMELESS]
        ids = [model.ids[word] for word in naming or words(question)]
        rows.append(F.normalize(model.embed_tokens.weight[ids], dim=-1).mean(0))
    return torch.stack(rows)


def _last_layer(model: TinyVLM, vision: VisionOutputs, _: Any) -> dict[str, Tensor]:
    """q, k (B, prefix + N, C) of the encoder's last layer, heads side by side."""
    last = model.encoder.num_layers - 1
    q, k = model.encoder.queries_and_keys(last, vision.hidden[last])
    return {"query": q.transpose(1, 2).flatten(2), "key": k.transpose(1, 2).flatten(2)}


def _patches(model: TinyVLM, vision: VisionOutputs, _: Any) -> dict[str, Tensor]:
    return {"patches": vision.tokens}


def _text(model: TinyVLM, vision: VisionOutputs, questions: Sequence[str]) -> dict[str, Tensor]:
    return {"text": asking_vector(model, questions)}


SIGNALS = {"query": _last_layer, "key": _last_layer, "patches": _patches, "text": _text}
"""Arguments of a `prune` that `VisionOutputs` does not hold, and how TinyVLM gives them."""


def signals(model: TinyVLM, vision: VisionOutputs, method: Method,
            questions: Sequence[str] | None) -> dict[str, Tensor]:
    """The method's `signals` by name.

    Args:
        model: TinyVLM.
        vision: what `encode` made of the images.
        method: whose.
        questions: B texts, for methods that ask.

    ValueError for a signal that TinyVLM does not have, and for questions that are missing.
    """
    unknown = [name for name in method.signals if name not in SIGNALS]
    if unknown:
        raise ValueError(f"method={method.name!r} needs {', '.join(unknown)}, but TinyVLM gives "
                         f"{', '.join(SIGNALS)}")
    if "text" in method.signals and questions is None:
        raise ValueError(f"questions is None: {method.title} needs to know what is asked for")
    got: dict[str, Tensor] = {}
    for make in {SIGNALS[name]: None for name in method.signals}:
        got |= make(model, vision, questions)
    return {name: got[name] for name in method.signals}


# ----------------------------------------------------------------------------------- kept positions
def patch_positions(plan: Plan) -> Tensor:
    """(B, T) long: the patch whose number each slot keeps when positions are kept. A merged slot
    keeps that of the token it grew from.

    ValueError where a slot has no number of its own: [CLS] handed over as a token (VisionDrop), an
    empty slot, two slots at one patch.
    """
    check_plan(plan, "plan")
    index = plan.index - plan.num_prefix
    if plan.num_prefix and (plan.index < plan.num_prefix).any():
        raise ValueError("positions='keep': [CLS] is among the tokens that are handed over, and it "
                         "has no place in the picture")
    if (index < 0).any():
        raise ValueError("positions='keep': a slot is empty (index -1), and nothing has no place "
                         "in the picture")
    if repeated(index):
        raise ValueError("positions='keep': two slots sit at one patch, so one of them has no "
                         "place of its own")
    return index


def at_positions(tokens: Tensor, index: Tensor, num_tokens: int) -> tuple[Tensor, Stage]:
    """Tokens that keep the numbers of their patches in the language model.

    Args:
        tokens: (B, T, D).
        index: (B, T) long, their patches.
        num_tokens: N, how many patches there are.

    Returns (B, N, D), the tokens at `index` and zeros elsewhere, and the cut before the first layer
    that takes them out again: with positions="keep" the decoder then sees T tokens, in their order,
    with the numbers of their patches.
    """
    check_index(index, "index", "(B, T)")
    cut = Stage(0, index.shape[1], lambda state, keep: Plan(index, num_tokens))
    return scatter_back(tokens, index, num_tokens), cut


# ------------------------------------------------------------------------------------------ running
@dataclass
class Reduced:
    """What a method hands to the language model.

    Args:
        tokens: (B, T, D).
        plan: how they came about, over `space`.
        space: which tensor of `VisionOutputs` the plan is for.
        stages: the cuts inside the language model.
        positions: how it counts.
        scattered: tokens are (B, N, D), the T tokens at their patches' numbers, and the first stage
            takes them from there before any layer has run (`at_positions`).
    """

    tokens: Tensor
    plan: Plan
    space: str
    stages: list[Stage]
    positions: str
    scattered: bool = False

    def __post_init__(self) -> None:
        self.scattered = check_flag(self.scattered, "scattered")

    def whole(self, run: Prefill | None = None) -> Plan:
        """The plan from the encoder's patches to what is left in the end; run: the `Prefill` in
        which the stages cut."""
        if run is None or not self.stages:
            return self.plan
        if self.scattered:
            return functools.reduce(Plan.then, run.plans[1:], self.plan)
        return self.plan.then(run.plan)


def reduce(
    model: TinyVLM,
    vision: VisionOutputs | Tensor,
    method: str | Method,
    keep: int | float,
    questions: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    positions: str | None = None,
) -> Reduced:
    """Run a method up to the language model's door. keep = N changes nothing, in any method.

    Args:
        model: TinyVLM.
        vision: images (B, 3, H, W), or what `encode` made of them.
        method: whatever `registry.find` knows.
        keep: an int or a fraction of the N patches.
        questions: B texts, for methods that ask.
        generator: for those that draw.
        positions: None is the releases' choice: what is left before the language model counts anew,
            cuts inside do as `Method.positions` says. "renumber": every cut counts anew. "keep":
            tokens keep the numbers of their patches, before the language model and inside.

    ValueError for an unknown method or positions, a keep that cannot be, and for positions="keep"
    where a token has no place.
    """
    entry = find(method)
    if positions not in (None, *POSITIONS):
        raise ValueError(f"positions={positions!r}: needs one of {', '.join(POSITIONS)}, or None "
                         "for the releases' choice")
    if isinstance(vision, Tensor):
        vision = encode(model, vision, [entry])
    batch, num_tokens = vision.features.shape[:2]
    keep = resolve_keep(keep, num_tokens)
    counting = positions or entry.positions or "renumber"
    plan = keep_all(batch, num_tokens, vision.features.device)
    if keep == num_tokens:
        return Reduced(vision.tokens, plan, "tokens", [], counting)
    tokens, space, stages = vision.tokens, "tokens", []
    if entry.prune is not None:
        plan = _before(model, vision, entry, keep, questions, generator)
        space = entry.space
        tokens = model.reduce(vision, plan, space)
    if entry.stages is not None:
        stages = entry.stages(len(model.decoder.layers), keep, tokens.shape[1])
    scattered = positions == "keep" and entry.prune is not None
    if scattered:
        tokens, first = at_positions(tokens, patch_positions(plan), num_tokens)
        stages = [first, *stages]
    return Reduced(tokens, plan, space, stages, counting, scattered)


def _before(model, vision, method, keep, questions, generator) -> Plan:
    """The plan before the language model."""
    options = {**options_of(model, method), **signals(model, vision, method, questions)}
    if method.draws:
        options["generator"] = generator
    if method.keep_before is not None:
        keep = method.keep_before(keep, getattr(vision, method.space).shape[1])
    return method.plan(vision, keep, **options)


# ------------------------------------------------------------------------------------------ grading
@torch.no_grad()
def grade(
    model: TinyVLM,
    vision: VisionOutputs,
    exam: Exam,
    method: str | Method,
    keep: int | float,
    generator: torch.Generator | None = None,
    rows: int = 128,
    positions: str | None = None,
) -> Tensor:
    """(B, Q) bool: which questions of an exam are answered word for word when `method` leaves
    `keep` tokens.

    Methods that look at the picture alone choose once, and are asked all questions of a picture at
    once; the others run once a question, `rows` at a time.

    Args:
        model: TinyVLM.
        vision: `encode(model, exam.images)`.
        exam: pictures and questions.
        method: see `reduce`.
        keep: see `reduce`.
        generator: see `reduce`.
        rows: questions that are asked at once.
        positions: see `reduce`.
    """
    entry, num_tokens = find(method), vision.features.shape[1]
    if not entry.asks and entry.stages is None:
        if positions != "keep" or resolve_keep(keep, num_tokens) == num_tokens:
            once = reduce(model, vision, entry, keep, None, generator, positions)
            return exam.right(model, once.tokens)
        once = reduce(model, vision, entry, keep, None, generator)
        return exam.right(model, once.tokens, patch_positions(once.plan), num_tokens)
    out = torch.zeros_like(exam.kind, dtype=torch.bool)
    picture, place = (exam.kind >= 0).nonzero(as_tuple=True)
    for part in torch.arange(len(picture), device=picture.device).split(rows):
        b, q = picture[part], place[part]
        asked = [exam.asked[i][j] for i, j in zip(b.tolist(), q.tolist(), strict=True)]
        texts, row = [question.text for question in asked], b.to(vision.selected.device)
        done = reduce(model, vision.rows(row), entry, keep, texts, generator, positions)
        said = model.answer(done.tokens, texts, done.stages, done.positions).texts
        right = [" ".join(words(question.answer)) for question in asked]
        hits = [answer == wanted for answer, wanted in zip(said, right, strict=True)]
        out[b, q] = torch.tensor(hits, device=out.device)
    return out
