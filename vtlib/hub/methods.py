"""A pruning method of `vtlib.pruning`, as the adapters call it: with what it wants read, its plan
and its cuts.

    text = method.text(x, words, row, places)       the question of each image, where one is asked
    plan, tokens = method.reduce(vision, more, which, keep, text)
"""

import copy
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_ints, check_list
from ..pruning import registry
from ..tokens import Plan, Stage, VisionOutputs, keep_all
from ..vlm.prefill import check_stages
from .tower import Family, Found, Reads

BY_IMAGE = ("index", "origin", "slot", "weight", "role")
"""Parts of a `Plan` that have one row an image."""
STAND_INS = (None, "received")
"""What `cls` may be."""
SIGNALS = ("query", "key", "patches", "text")
"""Arguments of a `prune` that can be found here, as `vtlib.pruning.bench` finds them on TinyVLM."""


def find(method: Any) -> Any:
    """`registry.find`; None stays None."""
    return None if method is None else registry.find(method)


class Method:
    """One method with its options, for one family of models.

    reads: what has to be read of the encoder; space: the tensor that its plan is for; positions:
    the way of counting that it asks for, or None. before, inside: whether it acts before the
    decoder, and in it.

    Args:
        method: a `vtlib.pruning.method.Method`, or None.
        family: of the model.
        stages: more cuts, see `prune`.
        attention: layers whose maps the caller wants read, 0-based.
        hidden: hidden states that the caller wants read.
        options: of the method.
        cls: "received": where the encoder has no [CLS], a method that reads its row is given the
            mean attention that each patch receives, in each head of the layer that made the
            features. None: it is refused. An encoder with [CLS] keeps its own row.

    ValueError for what the encoder does not have.
    """

    def __init__(
        self,
        method: Any,
        family: Family,
        stages: Any,
        attention: Sequence[int],
        hidden: Sequence[int],
        options: dict[str, Any],
        cls: str | None = None,
    ):
        if cls not in STAND_INS:
            raise ValueError(
                f"cls={cls!r}: needs 'received', the mean attention received in place of the [CLS] "
                "row where there is none, or None"
            )
        if method is None and stages is None:
            raise ValueError("method=None and stages=None: there is nothing to do")
        if stages is not None and not callable(stages):
            stages = check_list(stages, "stages", "a list of Stages, a function or None")
        self.method, self.family = method, family
        self.more, self.options = stages, options
        self.before = method is not None and method.prune is not None
        self.inside = stages is not None or not self.before
        self.positions = None if method is None else method.positions
        self.space = "features" if method is None else method.space
        self.cls, self.received = cls, False
        self.reads = self._reads(check_ints(attention, "attention"), check_ints(hidden, "hidden"))
        counts = (("attention", family.num_layers), ("hidden", family.num_layers + 1))
        for name, count in counts:
            if any(not 0 <= layer < count for layer in getattr(self.reads, name)):
                given = getattr(self.reads, name)
                raise ValueError(f"{name}={given}: the encoder has 0 ... {count - 1}")

    def _reads(self, attention: tuple[int, ...], hidden: tuple[int, ...]) -> Reads:
        """The layers that the caller names go before the method's own."""
        if not self.before:
            return Reads(frozenset(), attention, hidden)
        if not self.family.reads_tower:
            self.family.check_reads(self.method)
            return Reads()
        method, family = self.method, self.family
        need = frozenset(method.needs(family.num_prefix))
        if not attention:
            attention = method.attention(
                family.num_layers, family.deep, self.options, family.num_prefix
            )
        hidden = hidden or method.hidden_states(family.num_layers)
        last = _last_layer(getattr(family, "tower", None))
        if {"query", "key"} & set(method.signals) and last is not None:
            hidden = (*hidden, *({family.num_layers - 1} - set(hidden)))
        if "cls_row" in need and not family.num_prefix:
            if self.cls is None:
                raise ValueError(
                    f"method={method.name} reads the [CLS] row, but the encoder of "
                    f"{type(family.model).__name__} has no [CLS]: cls='received' puts the mean "
                    "attention received in its place; Method(..., reads_without_cls=(...)) may "
                    "name another stand-in"
                )
            self.received, need = True, need - {"cls_row"}
            attention = (*attention, *({family.deep} - set(attention)))
        return Reads(need, attention, hidden)

    def read(self, inputs: dict[str, Any]) -> Found:
        """`Family.read` with what the method needs."""
        return self.family.read(inputs, self.reads)

    # ---------------------------------------------------------------------------- the question
    def text(
        self, x: Tensor, words: Tensor, row: Tensor, places: Tensor
    ) -> Tensor | None:
        """(M, D): the question of each of M images, the mean of the unit embeddings of the words
        behind it, of all words of its prompt where none is behind; None where nobody asks.

        Args:
            x: (B, S, D) embeddings of the prompts.
            words: (B, S) bool, what is neither padding nor a placeholder nor a draft.
            row: (M,) long, the prompt of each image.
            places: (M, N) long, where its tokens stand there.
        """
        if not self.before or "text" not in self.method.signals:
            return None
        order = torch.arange(x.shape[1], device=x.device)
        words = words[row]
        behind = words & (order > places.amax(dim=1, keepdim=True))
        behind = torch.where(behind.any(dim=1, keepdim=True), behind, words).unsqueeze(-1)
        units = F.normalize(x.detach().float(), dim=-1)[row]
        return (units * behind).sum(dim=1) / behind.sum(dim=1).clamp(min=1)

    # ------------------------------------------------------------------------ before the decoder
    def reduce(
        self,
        vision: VisionOutputs,
        more: dict[str, Any],
        which: Tensor,
        keep: Any,
        text: Tensor | None = None,
    ) -> tuple[Plan, Tensor]:
        """(plan, tokens (M, T, D)) of some images.

        What the method asks for and `more` does not bring is found here: text; patches, the
        projected tokens; query and key, those of the tower's last layer where it is CLIP's.

        Args:
            vision: what was read of images of one size.
            more: further options of the method, tensors with one row for each image of vision;
                of `SIGNALS` it may hold more than this method takes.
            which: (M,) rows of vision, which may be there several times.
            keep: tokens of each that stay, an int or a fraction.
            text: (M, D), the question of each, as `text` makes it.
        """
        if not self.before:
            count = vision.features.shape[1]
            return keep_all(len(which), count, which.device), vision.tokens[which]
        more = {name: more[name] for name in more if name not in SIGNALS or self._takes(name)}
        given = {**self.options, **more}
        missing = [name for name in self.method.signals if name not in given]
        if "text" in missing and text is not None:
            count = len(vision.features)
            vision = vision.rows(which)  # one picture may be asked about twice
            for name, value in more.items():
                if isinstance(value, Tensor) and value.dim() and len(value) == count:
                    given[name] = value[which]
            which = torch.arange(len(which), device=which.device)
            given["text"] = text.to(vision.features)
        if self.received:
            vision = self._with_received(vision)
        given.update(self._found(vision, missing))
        self._check_signals(given)
        plan = self.method.plan(vision, keep, **given)
        tokens = self._tokens(plan, vision)
        parts = {name: getattr(plan, name) for name in BY_IMAGE}
        rows = {name: part[which] for name, part in parts.items() if part is not None}
        return dataclasses.replace(plan, **rows), tokens[which]

    def _takes(self, name: str) -> bool:
        """Whether `prune` has an argument of this name."""
        parameters = inspect.signature(self.method.prune).parameters
        return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def _with_received(self, vision: VisionOutputs) -> VisionOutputs:
        """The same with the mean attention received, (B, heads, N), for the [CLS] row."""
        out = copy.copy(vision)
        out.cls_row = vision.attention[self.family.deep].mean(dim=2)
        return out

    def _found(self, vision: VisionOutputs, missing: Sequence[str]) -> dict[str, Tensor]:
        """Of the missing signals those that follow from what was read."""
        found = {"patches": vision.tokens} if "patches" in missing else {}
        last, entered = _last_layer(getattr(self.family, "tower", None)), self.family.num_layers - 1
        if last is not None and entered in vision.hidden:
            x = last.layer_norm1(vision.hidden[entered])
            for name, layer in (("query", last.self_attn.q_proj), ("key", last.self_attn.k_proj)):
                if name in missing:
                    found[name] = layer(x)
        return found

    def _check_signals(self, given: dict[str, Any]) -> None:
        missing = [name for name in self.method.signals if name not in given]
        if missing:
            raise ValueError(
                f"method={self.method.name} needs {', '.join(missing)}, which is not read of the "
                "encoder: give a function `signals` of the forward's arguments that returns them"
            )

    def _tokens(self, plan: Plan, vision: VisionOutputs) -> Tensor:
        """What a plan leaves, (B, T, D): projected before it where nothing is merged and the tower
        has projected already."""
        ready = "tokens" in vars(vision) and self.space == "features" and not plan.merges
        if ready or self.space == "tokens":
            return plan.apply(vision.tokens)
        return vision.project(plan.apply(getattr(vision, self.space)))

    # ------------------------------------------------------------------------ inside the decoder
    def stages(self, num_visual: int, keep: Any) -> list[Stage]:
        """All cuts inside the decoder for some images, in order. ValueError for those that come
        after the last layer, and for layers that have not run.

        Args:
            num_visual: how many tokens of each get there.
            keep: as `reduce`.
        """
        layers, cuts = len(self.family.language.layers), []
        if self.method is not None and not self.before:
            cuts += self.method.stages(
                num_layers=layers, keep=keep, num_visual=num_visual, **self.options
            )
        if self.more is not None:
            more = self.more(layers, num_visual) if callable(self.more) else self.more
            cuts += check_list(more, "stages", "a list of Stages")
        return check_stages(cuts, slice(0, num_visual), layers)


def _last_layer(tower: Any) -> nn.Module | None:
    """The last layer of CLIP's tower, or one built like it; None for others."""
    inner = getattr(tower, "vision_model", tower)
    layers = getattr(getattr(inner, "encoder", None), "layers", None)
    if not layers:
        return None
    parts = ("layer_norm1", "self_attn.q_proj", "self_attn.k_proj")
    names = {name for name, _ in layers[-1].named_modules()}
    return layers[-1] if names.issuperset(parts) else None
