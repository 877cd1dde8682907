"""A pruning method of `vtlib.pruning`, as the adapters call it: by name, with what it wants read, its plan and its cuts."""

import dataclasses
import importlib
import inspect
import pkgutil

from .. import pruning
from ..tokens import Plan, keep_all
from ..tokens.vision import SPACES

BASELINES = ("random", "uniform", "pool", "tome")
NO_METHOD = ("baselines", "crossget_encoder", "pretrained", "registry")


def find(method):
    """A method by its name: a module of `vtlib.pruning`, or a function of `vtlib.pruning.baselines` ("random", "uniform", "pool",
    "tome"). Anything else than a string is returned as it is. ValueError that lists the names."""
    if not isinstance(method, str):
        return method
    modules = sorted(m.name for m in pkgutil.iter_modules(pruning.__path__) if m.name not in NO_METHOD)
    if method in BASELINES:
        return getattr(importlib.import_module(f"{pruning.__name__}.baselines"), method)
    if method not in modules:
        raise ValueError(f"method={method!r} is not known; there is {', '.join((*modules, *BASELINES))}")
    return importlib.import_module(f"{pruning.__name__}.{method}")


class Method:
    """One method with its options, for one `encoders` family. need, attention, hidden: what has to be read of the encoder;
    space: the tensor that its plan is for; positions: the way of counting that it asks for, or None. `Pruned` documents the
    rest."""

    def __init__(self, method, family, keep, stages, attention, hidden, options):
        self.method, self.family, self.keep, self.more, self.options = method, family, keep, stages, options
        self.before = method is not None and (callable(method) or hasattr(method, "prune"))
        self.inside = stages is not None or (method is not None and not self.before)
        if method is not None and not self.before and not hasattr(method, "stages"):
            raise ValueError(f"method={method!r} has neither `prune` nor `stages` and is no function (vision, keep) -> Plan")
        if method is None and stages is None:
            raise ValueError("method=None and stages=None: there is nothing to do")
        self.positions = getattr(method, "POSITIONS", None)
        self.space = getattr(method, "SPACE", "features")
        if self.space not in SPACES:
            raise ValueError(f"SPACE={self.space!r} of {method!r} must be one of {SPACES}")
        self.need, self.attention, self.hidden = self._need(), tuple(attention), tuple(hidden)
        if "attention" in self.need and not self.attention:
            self.attention = self._layers()
        counts = (("attention", family.num_layers), ("hidden", family.num_layers + 1))
        for name, count in counts:
            if any(not 0 <= layer < count for layer in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: the encoder has 0 ... {count - 1}")

    def _need(self):
        if not self.before:
            return set()
        need = set(getattr(self.method, "NEEDS", ()))
        if not self.family.num_prefix:
            need = set(getattr(self.method, "NEEDS_WITHOUT_CLS", need))
            if "cls_row" in need:
                raise ValueError(
                    f"method={getattr(self.method, '__name__', self.method)} reads the [CLS] row, but the encoder of "
                    f"{type(self.family.model).__name__} has no [CLS]"
                )
        return need

    def _layers(self):
        """Whose maps a method reads that needs "attention": what its attention_layers says, or the layer that made the
        features."""
        if not hasattr(self.method, "attention_layers"):
            return (self.family.deep,)
        known = inspect.signature(self.method.attention_layers).parameters
        asked = {"deep_layer": self.family.deep + 1, **{k: v for k, v in self.options.items() if k in known}}
        return tuple(self.method.attention_layers(self.family.num_layers, **asked))

    def read(self, inputs):
        """`encoders.Llava.read` with what the method needs."""
        return self.family.read(inputs, self.need, self.attention, self.hidden)

    def reduce(self, vision, more, which):
        """(plan, tokens (M, T, D)) of the images `which` (M,) of vision, which may be there several times. more: further
        options."""
        if not self.before:
            return keep_all(len(which), vision.features.shape[1], which.device), vision.tokens[which]
        function = self.method if callable(self.method) else self.method.prune
        plan, x = function(vision, self.keep, **self.options, **more), getattr(vision, self.space)
        if not isinstance(plan, Plan) or plan.num_tokens != x.shape[1]:
            made = f"a plan for {plan.num_tokens} tokens" if isinstance(plan, Plan) else repr(plan)
            raise ValueError(
                f"{getattr(function, '__name__', function)} made {made}; needs a Plan for {x.shape[1]} tokens, "
                f"`vision.{self.space}`"
            )
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
