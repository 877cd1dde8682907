"""All methods and baselines behind one call, for TinyVLM: what tests, notebooks and widgets iterate over.

    done = reduce(model, images, "divprune", keep=28, questions=questions)
    model.answer(done.tokens, questions, done.stages, done.positions)

`keep` is the number of visual tokens that are left in the end: handed to the language model by methods before it, left by the last cut of methods
inside it. Two say it otherwise: VisionDrop's is the mean over its stages, and AIM's is what merging hands over, before its ramp goes to zero.

`positions` is where the language model believes a token to be. The releases count anew what pruning before the language model leaves, and so a
token's number no longer tells its row. reduce(..., positions="keep") leaves each token the number of its patch: see `places`.
"""

import contextlib
import functools
import importlib
import pkgutil
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import pruning
from ..tokens import Plan, Stage, keep_all, resolve_keep
from ..tokens.vision import VisionOutputs
from ..vlm.decoder import POSITIONS
from ..vlm.exam import SHELL, Exam
from ..vlm.tinyvlm import TinyVLM, words
from .method import Method, as_method

TOOLS = ("bench", "method", "pretrained", "registry")
"""Modules of vtlib.pruning that run methods and hold none."""


def discover() -> dict[str, Method]:
    """Every `Method` that a module of vtlib.pruning holds, by its name: baselines first, then papers."""
    found = []
    for info in pkgutil.iter_modules(pruning.__path__):
        if info.name in TOOLS:
            continue
        module = importlib.import_module(f"{pruning.__name__}.{info.name}")
        found += [value for value in vars(module).values() if isinstance(value, Method)]
    return {method.name: method for method in sorted(found, key=lambda method: method.paper is not None)}


METHODS: dict[str, Method] = discover()
"""What the package has, and what `register` has added."""
OWN = frozenset(METHODS)


def register(method: Method) -> contextlib.ExitStack:
    """Make a method known by its name, for `find`, `METHODS`, the hub and the widgets.

    For good, or as a context: `with register(METHOD): ...`; `close()` of what is returned takes it out
    again, too. A method of the same name that was registered before is replaced, and comes back then.
    ValueError for what is no `Method` and for a name that belongs to the package.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method={method!r}: needs a vtlib.pruning.method.Method, which has a name")
    if method.name in OWN:
        raise ValueError(f"method={method.name!r} is the package's own: choose another name")
    before = METHODS.get(method.name)
    METHODS[method.name] = method
    stack = contextlib.ExitStack()
    stack.callback(_put_back, method, before)
    return stack


def _put_back(method: Method, before: Method | None) -> None:
    if METHODS.get(method.name) is not method:                            # replaced since then
        return
    if before is None:
        del METHODS[method.name]
    else:
        METHODS[method.name] = before


def find(method) -> Method:
    """A name of METHODS, a `Method`, or what `as_method` makes one of -> Method.

    ValueError for an unknown name.
    """
    if not isinstance(method, str):
        return as_method(method)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known; there is {', '.join(sorted(METHODS))}. "
                         "`register` adds one of your own")
    return METHODS[method]


# ------------------------------------------------------------------------------------------- on TinyVLM
OBJECT_LAYER = 3
"""HiPrune's object layer (from 1) in TinyVLM's encoder of five.

The paper takes the layer whose most attended patches overlap the objects best (`hiprune.object_iou`), and
finds it in the middle (9 of CLIP's 24), with a fall after it. Here the overlap rises to the last layer; so
it is the best of those before the deep layer, the fourth, which already serves as the registers' score: an
anchor has to be chosen by another. Notebook 05 computes it; a test does so on the shipped encoder.
"""
OPTIONS = {"hiprune": {"object_layer": OBJECT_LAYER}}
"""Options that a method needs at TinyVLM's size."""
NAMELESS = frozenset(words(SHELL))
"""Words of questions that name nothing in a picture."""


@dataclass
class Reduced:
    """tokens (B, T, D): what the language model is given. plan: how they came about (over `space`). stages, positions: what happens inside it.

    seated: the T tokens stand at their patches' places among N, (B, N, D), and the first stage, before any layer has run, takes them from there.
    """

    tokens: Tensor
    plan: Plan
    space: str
    stages: list[Stage]
    positions: str
    seated: bool = False

    def whole(self, run=None) -> Plan:
        """The plan from the encoder's patches to what is left in the end; run: the `Prefill` in which the stages cut."""
        if run is None or not self.stages:
            return self.plan
        return functools.reduce(Plan.then, run.plans[1:], self.plan) if self.seated else self.plan.then(run.plan)


def asking_vector(model: TinyVLM, questions) -> Tensor:
    """(B, D): mean of the unit embeddings of the words in each question that name something, of all its words if none does."""
    rows = [[w for w in words(q) if w not in NAMELESS] or words(q) for q in questions]
    return torch.stack([F.normalize(model.embed_tokens.weight[[model.ids[w] for w in row]], dim=-1).mean(0) for row in rows])


def _query_and_key(model, vision, questions):
    """q, k (B, prefix + N, C) of the encoder's last layer, heads side by side."""
    last = len(model.encoder.blocks) - 1
    q, k = model.encoder.queries_and_keys(last, vision.hidden[last])
    return dict(query=q.transpose(1, 2).flatten(2), key=k.transpose(1, 2).flatten(2))


SIGNALS = {
    ("query", "key"): _query_and_key,
    ("patches",): lambda model, vision, questions: dict(patches=vision.tokens),
    ("text",): lambda model, vision, questions: dict(text=asking_vector(model, questions)),
}
"""What a method can ask for beside `VisionOutputs`, by the names of its arguments, and how TinyVLM gives it."""


def signals(model, vision, method, questions) -> dict[str, Tensor]:
    """The method's `signals`. ValueError for one that TinyVLM does not have, and for a missing question."""
    unknown = set(method.signals) - {name for names in SIGNALS for name in names}
    if unknown:
        raise ValueError(f"method={method.name!r} needs {sorted(unknown)}, which TinyVLM does not have: it has "
                         f"{', '.join(name for names in SIGNALS for name in names)}")
    if "text" in method.signals and questions is None:
        raise ValueError(f"questions is None: {method.title} needs to know what is asked for")
    got = {}
    for names, make in SIGNALS.items():
        if set(names) & set(method.signals):
            got |= make(model, vision, questions)
    return {name: got[name] for name in method.signals}


def look(model: TinyVLM, images: Tensor, methods=None) -> VisionOutputs:
    """Encode once with all that these methods (default: all) read."""
    need, attention, hidden = set(), set(), set()
    layers = len(model.encoder.blocks)
    for method in map(find, METHODS if methods is None else methods):
        if method.prune is None:
            continue
        need |= set(method.needs(model.encoder.num_prefix)) - {"attention"}
        deep = model.select % (layers + 1) - 1
        attention |= set(method.attention(layers, deep, OPTIONS.get(method.name), model.encoder.num_prefix))
        hidden |= set(method.hidden_states(layers))
        if {"query", "key"} & set(method.signals):
            hidden.add(layers - 1)
    return model.encode(images, tuple(need), tuple(attention), tuple(hidden))


def places(plan: Plan) -> Tensor:
    """(B, T) long: the patch at whose place each slot stays when positions are kept. A merged slot stays at the token it grew from.

    ValueError where a slot has no place of its own: [CLS] handed over as a token (VisionDrop), an empty slot, two slots at one patch.
    """
    index = plan.index - plan.num_prefix
    if plan.num_prefix and (plan.index < plan.num_prefix).any():
        raise ValueError("positions='keep': [CLS] is among the tokens that are handed over, and it has no place in the picture")
    if (index < 0).any():
        raise ValueError("positions='keep': a slot is empty (index -1), and nothing has no place in the picture")
    if (index.sort(dim=1).values.diff(dim=1) == 0).any():
        raise ValueError("positions='keep': two slots sit at one patch, so one of them has no place of its own")
    return index


def seat(tokens: Tensor, index: Tensor, num_tokens: int) -> tuple[Tensor, Stage]:
    """Tokens (B, T, D) at the places `index` (B, T) of num_tokens, zeros elsewhere: (B, N, D), and the cut before the first layer that takes
    them out again. With positions="keep" the decoder then sees T tokens, in their order, with the numbers of their places."""
    out = tokens.new_zeros(len(tokens), num_tokens, tokens.shape[2])
    out = out.scatter(1, index[..., None].expand_as(tokens), tokens)
    return out, Stage(0, index.shape[1], lambda state, keep: Plan(index, num_tokens))


def reduce(model: TinyVLM, vision: VisionOutputs | Tensor, method: str, keep: int | float, questions=None, generator=None,
           positions: str | None = None) -> Reduced:
    """Run a method up to the language model's door.

    vision: images (B, 3, H, W), or what `look` made of them. keep: an int or a fraction of the N patches. questions: B texts, for methods that ask.
    generator: for those that draw. keep = N changes nothing, in any method.
    positions: None is the releases' choice: what is left before the language model counts anew; cuts inside do as `Method.positions` says.
    "renumber": every cut counts anew. "keep": tokens keep the rotary positions of their patches, before the language model and inside (`places`).
    ValueError for an unknown method or positions, a keep that cannot be, and for positions="keep" where a token has no place.
    """
    entry = find(method)
    if positions not in (None, *POSITIONS):
        raise ValueError(f"positions={positions!r}: needs one of {', '.join(POSITIONS)}, or None for the releases' choice")
    if isinstance(vision, Tensor):
        vision = look(model, vision, [method])
    batch, n = vision.features.shape[:2]
    keep, inside = resolve_keep(keep, n), positions or entry.positions or "renumber"
    nothing = keep_all(batch, n, vision.features.device)
    if keep == n:
        return Reduced(vision.tokens, nothing, "tokens", [], inside)
    plan, tokens, stages = nothing, vision.tokens, []
    if entry.prune is not None:
        options = {**OPTIONS.get(entry.name, {}), **signals(model, vision, entry, questions)}
        if entry.draws:
            options["generator"] = generator
        total = getattr(vision, entry.space).shape[1]
        first = keep if entry.keep_before is None else entry.keep_before(keep, total)
        plan = entry.plan(vision, first, **options)
        tokens = model.reduce(vision, plan, entry.space)
    if entry.stages is not None:
        stages = entry.stages(len(model.decoder.layers), keep, tokens.shape[1])
    space = "tokens" if entry.prune is None else entry.space
    seated = positions == "keep" and entry.prune is not None
    if seated:
        tokens, first = seat(tokens, places(plan), n)
        stages = [first, *stages]
    return Reduced(tokens, plan, space, stages, inside, seated)


@torch.no_grad()
def grade(model: TinyVLM, vision: VisionOutputs, exam: Exam, method: str, keep: int | float, generator=None, rows: int = 128,
          positions: str | None = None) -> Tensor:
    """(B, Q) bool: which questions of an exam are answered word for word when `method` leaves `keep` tokens. vision: `look(model, exam.images)`.

    Methods that look at the picture alone choose once, and are asked all questions of a picture at once; the others, and all with
    positions="keep" (see `reduce`), run once a question, `rows` at a time.
    """
    entry, n = find(method), vision.features.shape[1]
    alone, stay = not entry.asks and entry.stages is None, positions == "keep" and resolve_keep(keep, n) < n
    if alone:
        once = reduce(model, vision, method, keep, generator=generator, positions=None if stay else positions)
        if not stay:
            return exam.right(model, once.tokens)
        seats = places(once.plan)
    out = torch.zeros_like(exam.kind, dtype=torch.bool)
    picture, place = (exam.kind >= 0).nonzero(as_tuple=True)
    for part in torch.arange(len(picture)).split(rows):
        b, q = picture[part], place[part]
        asked = [exam.asked[i][j] for i, j in zip(b.tolist(), q.tolist())]
        texts, row = [question.text for question in asked], b.to(vision.selected.device)
        if alone:
            tokens, first = seat(once.tokens[row], seats[row], n)
            said = model.answer(tokens, texts, [first], "keep").texts
        else:
            done = reduce(model, vision.rows(row), method, keep, texts, generator, positions)
            said = model.answer(done.tokens, texts, done.stages, done.positions).texts
        out[b, q] = torch.tensor([answer == " ".join(words(question.answer)) for answer, question in zip(said, asked)])
    return out
