"""What is known of a pruning method: one value, `METHOD`, at the end of its file.

Registry, hub, bench and widgets read it.

A method of your own is a function and a `Method`, and runs wherever the package's own do:

    from vtlib.pruning.method import Method
    from vtlib.pruning.registry import register
    from vtlib.tokens import top_tokens
    from vtlib.tokens.merge import merge_to_targets

    def looked_at(vision, keep):
        few = keep // 5
        kept = top_tokens(vision.cls_row.mean(dim=1), keep - few)
        return merge_to_targets(vision.keys[:, vision.num_prefix :], kept, few)

    METHOD = Method("looked_at", "Looked at", prune=looked_at, reads=("cls_row", "keys"))

`vision` is a `VisionOutputs`. The function returns a `Plan`; or, for short, a score (B, N), of
which the `keep` highest stay, indices (B, T) long, or a mask (B, N) bool of those that stay. A cut
inside the language model is a function `stages(num_layers, keep, num_visual)` that returns a list
of `Stage`. METHOD can be given wherever a method's name can; `register(METHOD)` makes it known by
its name. `vtlib.pruning.others` has seven known methods written in this way.

An argument `text` of the function is the question, (B, D): the mean of the unit embeddings of its
words, in the space of `vision.tokens`, which an argument `patches` is. TinyVLM gives both
(`bench.SIGNALS`), and so does `vtlib.hub.prune`, from the words behind the image.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..nn.checks import check_callable, check_flag, check_int, readable
from ..tokens import SPACES, Plan, Stage, VisionOutputs, resolve_keep, top_tokens
from ..tokens.checks import is_fraction

READS = ("cls_row", "keys", "attention")
"""What a method can ask to be read of the encoder beside the features, and `hidden`."""


@dataclass(frozen=True)
class Method:
    """A pruning method, as everything that runs methods sees it.

    Args:
        name: by which it is found, a word.
        title: as tables and widgets print it.
        paper: slug of its paper, one of the course's; None for a baseline, a rival, your own.
        prune: (vision, keep, **options) -> Plan, score (B, N), indices (B, T) long or mask (B, N)
            bool; acts before the language model. An argument `generator` is handed on; others
            without a default are `signals`.
        stages: (num_layers, keep, num_visual, **options) -> list of `Stage`; cuts inside it.
        reads: of READS, what `prune` reads of the `VisionOutputs`; all else may be None there.
        reads_without_cls: the same where the encoder has no [CLS]; None: `reads`. The mean
            attention received ("attention") is the usual stand-in for the [CLS] row.
        layers: whose maps are read if "attention" is: 0-based layers, negative from the end, or a
            function (num_layers, **options) of them. None: the layer that made the features.
        hidden: hidden states that are read: 0 is the embeddings, negative from the end.
        space: the tensor of `VisionOutputs` that the plan is for.
        asks: whether the question matters. A `prune` with an argument `text` asks anyway.
        keep_before: (keep, N) -> what `prune` leaves of N when `stages` bring it to `keep`;
            None: keep.
        positions: "renumber" or "keep", where the release counts so; None: it does not matter.
        arxiv: number of its paper, of a rival: a method of others that is none of the course's.

    ValueError for an empty name, a method that does nothing, and unknown reads, space or positions.
    """

    name: str
    title: str
    _: KW_ONLY
    paper: str | None = None
    prune: Callable[..., Plan | Tensor] | None = None
    stages: Callable[..., list[Stage]] | None = None
    reads: tuple[str, ...] = ()
    reads_without_cls: tuple[str, ...] | None = None
    layers: tuple[int, ...] | Callable[..., tuple[int, ...]] | None = None
    hidden: tuple[int, ...] = ()
    space: str = "features"
    asks: bool = False
    keep_before: Callable[[int, int], int] | None = None
    positions: str | None = None
    arxiv: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name={self.name!r} must be a word by which the method is found")
        object.__setattr__(self, "asks", check_flag(self.asks, f"asks of method {self.name!r}"))
        if self.prune is None and self.stages is None:
            raise ValueError(f"method {self.name!r} has neither `prune` nor `stages`")
        for part in ("prune", "stages", "keep_before"):
            if getattr(self, part) is not None:
                check_callable(getattr(self, part), f"{part} of method {self.name!r}")
        for part in ("reads", "reads_without_cls"):
            named = getattr(self, part)
            named = () if named is None else named
            listed = isinstance(named, (tuple, list, set, frozenset))
            unknown = [name for name in named if name not in READS] if listed else [named]
            if unknown:
                raise ValueError(f"{part} of method {self.name!r} has {unknown}: needs a tuple of "
                                 f"{READS}")
        if self.space not in SPACES:
            raise ValueError(f"space={self.space!r} of method {self.name!r} must be one of "
                             f"{SPACES}")
        if self.positions not in (None, "renumber", "keep"):
            raise ValueError(f"positions={self.positions!r} of method {self.name!r} must be "
                             "'renumber', 'keep' or None")
        if "text" in self.signals:
            object.__setattr__(self, "asks", True)

    # ----------------------------------------------------------------------------- what it needs
    @property
    def where(self) -> str:
        """"before", "inside" or "both": where tokens go, seen from the language model."""
        if self.stages is None:
            return "before"
        return "inside" if self.prune is None else "both"

    @property
    def kind(self) -> str:
        """"paper" (of the course), "rival", or "baseline"."""
        if self.paper is not None:
            return "paper"
        return "baseline" if self.arxiv is None else "rival"

    @property
    def draws(self) -> bool:
        """Whether `prune` takes a `generator`."""
        return "generator" in _parameters(self.prune)

    @property
    def signals(self) -> tuple[str, ...]:
        """Arguments of `prune` beside vision and keep that have no default."""
        single = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        rest = list(_parameters(self.prune).values())[2:]
        return tuple(p.name for p in rest if p.default is p.empty and p.kind in single)

    def needs(self, num_prefix: int) -> tuple[str, ...]:
        """What has to be read of an encoder with num_prefix tokens in front of the patches."""
        without = self.reads_without_cls
        return self.reads if num_prefix or without is None else without

    def attention(self, num_layers: int, deep: int, options: Mapping[str, Any] | None = None,
                  num_prefix: int = 1) -> tuple[int, ...]:
        """The layers, 0-based, whose maps have to be read.

        Args:
            num_layers: of the encoder.
            deep: the layer, 0-based, that made the features.
            options: of `prune`; those that `layers` knows are handed to it.
            num_prefix: tokens in front of the patches.
        """
        num_layers, deep = check_int(num_layers, "num_layers", 1), check_int(deep, "deep", 0)
        if options is not None and not isinstance(options, Mapping):
            raise ValueError(f"options={options!r}: needs a mapping of names to values, or None")
        if "attention" not in self.needs(check_int(num_prefix, "num_prefix", 0)):
            return ()
        if self.layers is None:
            return (deep,)
        if not callable(self.layers):
            return _from_the_end(self.layers, num_layers)
        known = _parameters(self.layers)
        given = {"deep_layer": deep + 1, **(options or {})}
        asked = {key: value for key, value in given.items() if key in known}
        return _from_the_end(self.layers(num_layers, **asked), num_layers)

    def hidden_states(self, num_layers: int) -> tuple[int, ...]:
        """The hidden states, of 0 ... num_layers, that have to be read."""
        return _from_the_end(self.hidden, num_layers + 1)

    # ----------------------------------------------------------------------------------- running
    def plan(self, vision: VisionOutputs, keep: int | float | None, **options: Any) -> Plan:
        """Run `prune` on what was read and check its plan.

        Scores, indices and masks become plans. ValueError for what is no plan for the tokens of
        `space`, and where `prune` trips over something that it did not ask for.
        """
        try:
            made = self.prune(vision, keep, **options)
        except (AttributeError, KeyError, TypeError) as error:
            unread = self._unread(vision)
            if unread and (isinstance(error, KeyError) or "NoneType" in str(error)):
                raise ValueError(
                    f"method {self.name!r} reads what it did not ask for "
                    f"({type(error).__name__}: {error}): {', '.join(unread)} of `vision` are "
                    "empty; "
                    "declare Method(..., reads=(...))"
                ) from error
            raise
        x = getattr(vision, self.space)
        return as_plan(made, x.shape[0], x.shape[1], keep, f"{self.name}, vision.{self.space}")

    def _unread(self, vision: VisionOutputs) -> list[str]:
        """Parts of vision that are empty and that the method did not ask for."""
        absent = [name for name in ("cls_row", "keys") if getattr(vision, name) is None]
        absent += [name for name in ("attention", "hidden") if not getattr(vision, name)]
        asked = {*self.reads, *(("hidden",) if self.hidden else ())}
        return [name for name in absent if name not in asked]


def _parameters(function: Callable | None) -> Mapping[str, inspect.Parameter]:
    return {} if function is None else inspect.signature(function).parameters


def _from_the_end(index: tuple[int, ...], size: int) -> tuple[int, ...]:
    wrong = [i for i in index if not -size <= i < size]
    if wrong:
        raise ValueError(f"layer {wrong[0]} is asked for, but the encoder has 0 ... {size - 1}")
    return tuple(i % size for i in index)


# --------------------------------------------------------------------------------- what a method is
def as_method(method: Any) -> Method:
    """A `Method` made of what a user has: one, a module or object with METHOD, or one that has
    `prune` or `stages`, or a function (vision, keep) -> Plan. ValueError for anything else."""
    if isinstance(method, Method):
        return method
    if isinstance(method, type):
        raise ValueError(f"method={method.__name__} is a class: pass an object of it, "
                         f"{method.__name__}(...)")
    if isinstance(getattr(method, "METHOD", None), Method):
        return method.METHOD
    name = getattr(method, "__name__", type(method).__name__)
    name = name.rpartition(".")[2] if isinstance(method, ModuleType) else name
    prune, stages = (getattr(method, part, None) for part in ("prune", "stages"))
    if prune is not None or stages is not None:
        return Method(name, name, prune=prune, stages=None if prune else stages)
    if callable(method):
        return Method(name, name, prune=method)
    raise ValueError(f"method={method!r} has neither `prune` nor `stages` and is no function "
                     "(vision, keep) -> Plan")


def as_plan(made: Any, batch: int, num_tokens: int, keep: int | float | None = None,
            name: str = "the method") -> Plan:
    """What a method made, as a `Plan` for (batch, num_tokens) tokens.

    A score (B, N) leaves its `keep` highest tokens, indices (B, T) long these in their order, a
    mask (B, N) bool the marked ones: as many slots as the row with most has, and where others have
    fewer, empty ones (-1) behind. While compiling, where a mask cannot be counted, it has as many
    slots as `keep` allows.

    Args:
        made: a `Plan`, a score, indices or a mask.
        batch: B, of the tokens that it has to fit.
        num_tokens: N, likewise.
        keep: the budget, a number of tokens or a fraction of N, which must not be exceeded. None:
            no limit, and a score is refused.
        name: who made it, for messages.

    ValueError for anything else: another number of rows or tokens, more slots than `keep`. What an
    index may be, `Plan` says.
    """
    batch, num_tokens = check_int(batch, "batch", 0), check_int(num_tokens, "num_tokens", 0)
    wanted = f"needs a Plan for {num_tokens} tokens"
    if isinstance(made, Tensor):
        shape = tuple(made.shape)
        if made.is_floating_point() and shape == (batch, num_tokens) and keep is not None:
            made = Plan(top_tokens(made, keep), num_tokens)
        elif made.dtype in (torch.int32, torch.int64) and made.dim() == 2:
            made = Plan(made.long(), num_tokens)
        elif made.dtype == torch.bool and shape == (batch, num_tokens):
            made = Plan(_marked(made, keep), num_tokens)
        else:
            raise ValueError(f"{name}: made a {made.dtype} tensor {shape}; {wanted}, or a float "
                             f"score ({batch}, {num_tokens}), or indices (B, T) long, or a mask "
                             f"({batch}, {num_tokens}) bool")
    if not isinstance(made, Plan):
        raise ValueError(f"{name}: made a {type(made).__name__}; {wanted}, a score, indices or a "
                         "mask")
    index = made.index
    if made.num_tokens != num_tokens:
        raise ValueError(f"{name}: made a plan for {made.num_tokens} tokens; {wanted}")
    if len(index) != batch:
        raise ValueError(f"{name}: index has shape {tuple(index.shape)} but needs one row for each "
                         f"of {batch} images")
    if keep is not None and len(made) > _most_slots(keep, num_tokens):
        raise ValueError(f"{name}: made {len(made)} slots although keep={keep}")
    return made


def _marked(mask: Tensor, keep: int | float | None) -> Tensor:
    """(B, T) long: the marked places of mask (B, N), rising; -1 where a row has fewer than T."""
    num_tokens = mask.shape[1]
    if readable(mask):
        most = int(mask.sum(dim=1).amax()) if len(mask) else 0
    else:
        most = num_tokens if keep is None else min(_most_slots(keep, num_tokens), num_tokens)
    places = torch.arange(num_tokens, device=mask.device)
    first = torch.where(mask, places, num_tokens).sort(dim=1).values[:, :most]
    return first.masked_fill(first == num_tokens, -1)


def _most_slots(keep: Any, num_tokens: int) -> int:
    """What a budget allows; a method may be asked for more tokens than there are."""
    if is_fraction(keep):
        return resolve_keep(keep, num_tokens)
    return check_int(keep, "keep")
