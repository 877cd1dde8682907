"""All methods and baselines behind one call, for TinyVLM: what tests, notebooks and widgets iterate over.

    done = reduce(model, images, "divprune", keep=28, questions=questions)
    model.answer(done.tokens, questions, done.stages, done.positions)

`keep` is the number of visual tokens that are left in the end: handed to the language model by methods before it, left by the last cut of methods
inside it. Two say it otherwise: VisionDrop's is the mean over its stages, and AIM's is what merging hands over, before its ramp goes to zero.

`positions` is where the language model believes a token to be. The releases count anew what pruning before the language model leaves, and so a
token's number no longer tells its row. reduce(..., positions="keep") leaves each token the number of its patch: see `places`.
"""

import functools
from dataclasses import dataclass, field
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import Plan, Stage, keep_all, resolve_keep
from ..tokens.vision import VisionOutputs
from ..vlm.decoder import POSITIONS
from ..vlm.exam import SHELL, Exam
from ..vlm.tinyvlm import TinyVLM, words
from . import (
    aim,
    baselines,
    crossget,
    divprune,
    fastervlm,
    fastv,
    hiprune,
    holov,
    recoverable,
    transprune,
    visiondrop,
    zooprune,
)

OBJECT_LAYER = 3
"""HiPrune's object layer (from 1) in TinyVLM's encoder of five. The paper takes the layer whose most attended patches overlap the objects best
(`hiprune.object_iou`), and finds it in the middle (9 of CLIP's 24), with a fall after it. Here the overlap rises to the last layer; so it is the best
of those before the deep layer, the fourth, which already serves as the registers' score: an anchor has to be chosen by another. Notebook 05 computes
it; a test does so on the shipped encoder."""
NAMELESS = frozenset(words(SHELL))
"""Words of questions that name nothing in a picture."""


@dataclass(frozen=True)
class Method:
    """One entry of METHODS.

    title; paper: slug, None for a baseline. needs: what `TinyVLM.encode` is asked for. space: which tensor the plan is for. asks: whether the question
    matters. plan(model, vision, keep, questions, generator) -> Plan, or None when nothing happens before the language model.
    stages(model, keep, num_visual) -> list of `Stage`, or None when nothing happens inside. positions: the releases' choice.
    """

    title: str
    paper: str | None = None
    needs: dict = field(default_factory=dict)
    space: str = "features"
    asks: bool = False
    plan: Callable | None = None
    stages: Callable | None = None
    positions: str = "renumber"

    @property
    def where(self) -> str:
        """"before", "inside" or "both": where tokens go, seen from the language model."""
        return "before" if self.stages is None else "inside" if self.plan is None else "both"


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


def before(module, **options):
    """plan(...) of a method that looks at the picture alone."""
    return lambda model, vision, keep, questions, generator: module.prune(vision, keep, **options)


def asking_vector(model: TinyVLM, questions) -> Tensor:
    """(B, D): mean of the unit embeddings of the words in each question that name something, of all its words if none does."""
    rows = [[w for w in words(q) if w not in NAMELESS] or words(q) for q in questions]
    return torch.stack([F.normalize(model.embed_tokens.weight[[model.ids[w] for w in row]], dim=-1).mean(0) for row in rows])


def _recover(model, vision, keep, questions, generator):
    if questions is None:
        raise ValueError("questions is None: Recoverable Compression recovers what the question asks for")
    last = len(model.encoder.blocks) - 1
    q, k = (t.transpose(1, 2).flatten(2) for t in model.encoder.queries_and_keys(last, vision.hidden[last]))
    return recoverable.prune(vision, keep, query=q, key=k, patches=vision.tokens, text=asking_vector(model, questions))


def _visiondrop_before(model, vision, keep, questions, generator):
    whole = vision.selected.shape[1]
    first = sum(visiondrop.schedule(resolve_keep(keep, whole))[0])
    return visiondrop.prune(vision, min(first, whole))


def _visiondrop_inside(model, keep, num_visual):
    later = [min(d + c, num_visual) for d, c in visiondrop.schedule(resolve_keep(keep, num_visual))[1:]]
    return visiondrop.stages(later, len(model.decoder.layers))


CLS = {"need": ("cls_row",)}
METHODS: dict[str, Method] = {
    "random": Method("Random", plan=lambda model, vision, keep, questions, generator: baselines.random(vision, keep, generator)),
    "uniform": Method("Uniform grid", plan=lambda model, vision, keep, questions, generator: baselines.uniform(vision, keep)),
    "pool": Method("Average pooling", plan=lambda model, vision, keep, questions, generator: baselines.pool(vision, keep)),
    "tome": Method("ToMe-style merging", needs={"need": ("keys",)},
                   plan=lambda model, vision, keep, questions, generator: baselines.tome(vision, keep, vision.keys[:, vision.num_prefix :])),
    "fastv": Method("FastV (last word's attention)", asks=True, positions=fastv.POSITIONS,
                    stages=lambda model, keep, n: fastv.stages(len(model.decoder.layers), keep, n)),
    "fastervlm": Method("FasterVLM", "fastervlm", CLS, fastervlm.SPACE, plan=before(fastervlm)),
    "divprune": Method("DivPrune", "divprune", {}, divprune.SPACE, plan=before(divprune)),
    "hiprune": Method("HiPrune", "hiprune", {"attention": (OBJECT_LAYER - 1, -2)}, hiprune.SPACE, plan=before(hiprune, object_layer=OBJECT_LAYER)),
    "visiondrop": Method("VisionDrop", "visiondrop", {"need": ("cls_row", "keys")}, visiondrop.SPACE, plan=_visiondrop_before,
                         stages=_visiondrop_inside),
    "holov": Method("HoloV", "holov", CLS, holov.SPACE, plan=before(holov)),
    "zooprune": Method("ZOO-Prune", "zooprune", {}, zooprune.SPACE,
                       plan=lambda model, vision, keep, questions, generator: zooprune.prune(vision, keep, generator=generator)),
    "transprune": Method("TransPrune", "transprune", asks=True, positions=transprune.POSITIONS,
                         stages=lambda model, keep, n: transprune.stages(len(model.decoder.layers), keep, n)),
    "aim": Method("AIM", "aim", {}, aim.SPACE, True, before(aim), lambda model, keep, n: aim.stages(len(model.decoder.layers), None, n),
                  aim.POSITIONS),
    "aim_merge": Method("AIM, merging alone", "aim", {}, aim.SPACE, plan=before(aim)),
    "crossget": Method("CrossGET (untrained)", "crossget", {"need": ("cls_row", "keys")}, crossget.SPACE, plan=before(crossget)),
    "recoverable": Method("Recoverable Compression", "recoverable-compression", {"hidden": (-2,)}, recoverable.SPACE, True, _recover),
}
BASELINES = tuple(name for name, method in METHODS.items() if method.paper is None)


def find(method: str) -> Method:
    """The entry of METHODS of that name. ValueError for an unknown one."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}: needs one of {', '.join(METHODS)}")
    return METHODS[method]


def look(model: TinyVLM, images: Tensor, methods=None) -> VisionOutputs:
    """Encode once with all that these methods (default: all) read."""
    wanted = [find(m).needs for m in (METHODS if methods is None else methods)]
    return model.encode(images, **{key: tuple({v for w in wanted for v in w.get(key, ())}) for key in ("need", "attention", "hidden")})


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
    keep, inside = resolve_keep(keep, n), positions or entry.positions
    nothing = keep_all(batch, n, vision.features.device)
    if keep == n:
        return Reduced(vision.tokens, nothing, "tokens", [], inside)
    plan = nothing if entry.plan is None else entry.plan(model, vision, keep, questions, generator)
    tokens = vision.tokens if entry.plan is None else model.reduce(vision, plan, entry.space)
    stages = [] if entry.stages is None else entry.stages(model, keep, tokens.shape[1])
    space, seated = entry.space if entry.plan else "tokens", positions == "keep" and entry.plan is not None
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
