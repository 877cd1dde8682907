"""A pruning method of `vtlib.pruning`, as the adapters call it: with what it wants read, its plan and its cuts."""

import dataclasses

from ..pruning import registry
from ..tokens import keep_all


def find(method):
    """`registry.find`; None stays None."""
    return None if method is None else registry.find(method)


class Method:
    """One method with its options, for one `encoders` family.

    need, attention, hidden: what has to be read of the encoder; space: the tensor that its plan is for;
    positions: the way of counting that it asks for, or None. `Pruned` documents the rest.
    """

    def __init__(self, method, family, keep, stages, attention, hidden, options):
        if method is None and stages is None:
            raise ValueError("method=None and stages=None: there is nothing to do")
        self.method, self.family, self.keep, self.more, self.options = method, family, keep, stages, options
        self.before = self.method is not None and self.method.prune is not None
        self.inside = stages is not None or not self.before
        self.positions = None if self.method is None else self.method.positions
        self.space = "features" if self.method is None else self.method.space
        self.need, self.attention, self.hidden = self._reads(tuple(attention), tuple(hidden))
        counts = (("attention", family.num_layers), ("hidden", family.num_layers + 1))
        for name, count in counts:
            if any(not 0 <= layer < count for layer in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: the encoder has 0 ... {count - 1}")

    def _reads(self, attention, hidden):
        """(need, attention, hidden) for `encoders`; the layers that the caller names go before the method's own."""
        if not self.before:
            return set(), attention, hidden
        method, family = self.method, self.family
        need = set(method.needs(family.num_prefix))
        if "cls_row" in need and not family.num_prefix:
            raise ValueError(
                f"method={method.name} reads the [CLS] row, but the encoder of {type(family.model).__name__} has no "
                "[CLS]: Method(..., reads_without_cls=(...)) may name a stand-in"
            )
        if not attention:
            attention = method.attention(family.num_layers, family.deep, self.options, family.num_prefix)
        return need, attention, hidden or method.hidden_states(family.num_layers)

    def read(self, inputs):
        """`encoders.Llava.read` with what the method needs."""
        return self.family.read(inputs, self.need, self.attention, self.hidden)

    def reduce(self, vision, more, which):
        """(plan, tokens (M, T, D)) of the images `which` (M,) of vision, which may be there several times. more: further
        options."""
        if not self.before:
            return keep_all(len(which), vision.features.shape[1], which.device), vision.tokens[which]
        given = {**self.options, **more}
        missing = [name for name in self.method.signals if name not in given]
        if missing:
            raise ValueError(
                f"method={self.method.name} needs {', '.join(missing)}, which is not read of the encoder: give a function "
                "`signals` of the forward's arguments that returns them"
            )
        plan, x = self.method.plan(vision, self.keep, **given), getattr(vision, self.space)
        projected = "tokens" in vars(vision) and self.space == "features" and not plan.merges
        tokens = plan.apply(vision.tokens) if projected or self.space == "tokens" else vision.project(plan.apply(x))
        parts = {name: getattr(plan, name) for name in ("index", "origin", "slot", "weight", "role")}
        return dataclasses.replace(plan, **{name: part[which] for name, part in parts.items() if part is not None}), tokens[which]

    def stages(self, num_visual):
        """All cuts inside the decoder for images of which num_visual tokens get there, in order."""
        layers, cuts = len(self.family.language.layers), []
        if self.method is not None and not self.before:
            cuts += self.method.stages(num_layers=layers, keep=self.keep, num_visual=num_visual, **self.options)
        if self.more is not None:
            cuts += self.more(layers, num_visual) if callable(self.more) else self.more
        for stage in cuts:
            if not 0 <= stage.after < layers:
                raise ValueError(
                    f"a stage after layer {stage.after} is outside 0 ... {layers - 1}: a later layer must use what it leaves"
                )
            if any(not 1 <= n <= stage.after for n in stage.watch):
                raise ValueError(
                    f"the stage after layer {stage.after} watches layers {stage.watch}: layers 1 ... {stage.after} have run "
                    "by then"
                )
        return sorted(cuts, key=lambda stage: stage.after)
