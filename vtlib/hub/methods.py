"""A pruning method of `vtlib.pruning`, as the adapters call it: with what it wants read, its plan
and its cuts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..nn.checks import check_ints, check_list
from ..pruning import registry
from ..tokens import Plan, Stage, VisionOutputs, keep_all
from ..vlm.prefill import check_stages
from .tower import Family, Found, Reads

BY_IMAGE = ("index", "origin", "slot", "weight", "role")
"""Parts of a `Plan` that have one row an image."""


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
        keep: visual tokens per image, an int or a fraction.
        stages: more cuts, see `prune`.
        attention: layers whose maps the caller wants read, 0-based.
        hidden: hidden states that the caller wants read.
        options: of the method.

    ValueError for what the encoder does not have.
    """

    def __init__(
        self,
        method: Any,
        family: Family,
        keep: int | float | None,
        stages: Any,
        attention: Sequence[int],
        hidden: Sequence[int],
        options: dict[str, Any],
    ):
        if method is None and stages is None:
            raise ValueError("method=None and stages=None: there is nothing to do")
        if stages is not None and not callable(stages):
            stages = check_list(stages, "stages", "a list of Stages, a function or None")
        self.method, self.family, self.keep = method, family, keep
        self.more, self.options = stages, options
        self.before = method is not None and method.prune is not None
        self.inside = stages is not None or not self.before
        self.positions = None if method is None else method.positions
        self.space = "features" if method is None else method.space
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
        method, family = self.method, self.family
        need = frozenset(method.needs(family.num_prefix))
        if "cls_row" in need and not family.num_prefix:
            raise ValueError(
                f"method={method.name} reads the [CLS] row, but the encoder of "
                f"{type(family.model).__name__} has no [CLS]: Method(..., reads_without_cls=(...)) "
                "may name a stand-in"
            )
        if not attention:
            attention = method.attention(
                family.num_layers, family.deep, self.options, family.num_prefix
            )
        return Reads(need, attention, hidden or method.hidden_states(family.num_layers))

    def read(self, inputs: dict[str, Any]) -> Found:
        """`Family.read` with what the method needs."""
        return self.family.read(inputs, self.reads)

    # ------------------------------------------------------------------------ before the decoder
    def reduce(
        self, vision: VisionOutputs, more: dict[str, Any], which: Tensor
    ) -> tuple[Plan, Tensor]:
        """(plan, tokens (M, T, D)) of some images.

        Args:
            vision: what was read of images of one size.
            more: further options of the method.
            which: (M,) rows of vision, which may be there several times.
        """
        if not self.before:
            count = vision.features.shape[1]
            return keep_all(len(which), count, which.device), vision.tokens[which]
        given = {**self.options, **more}
        self._check_signals(given)
        plan = self.method.plan(vision, self.keep, **given)
        tokens = self._tokens(plan, vision)
        parts = {name: getattr(plan, name) for name in BY_IMAGE}
        rows = {name: part[which] for name, part in parts.items() if part is not None}
        return dataclasses.replace(plan, **rows), tokens[which]

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
    def stages(self, num_visual: int) -> list[Stage]:
        """All cuts inside the decoder for images of which num_visual tokens get there, in order.
        ValueError for those that come after the last layer, and for layers that have not run."""
        layers, cuts = len(self.family.language.layers), []
        if self.method is not None and not self.before:
            cuts += self.method.stages(
                num_layers=layers, keep=self.keep, num_visual=num_visual, **self.options
            )
        if self.more is not None:
            more = self.more(layers, num_visual) if callable(self.more) else self.more
            cuts += check_list(more, "stages", "a list of Stages")
        return check_stages(cuts, slice(0, num_visual), layers)
