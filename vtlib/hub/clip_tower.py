"""CrossGET in one tower of transformers' CLIPModel, by hooks.

They do what `vtlib.pruning.crossget_encoder` does in its own dual encoder: append the cross token,
renew it in each layer, count merged tokens by their size in the attention, and merge between
attention and MLP. A layer of transformers adds the MLP's output to what the attention left, which
has too many tokens; so the MLP's hook hands over nothing, and the layer's hook gives the sum
itself. What changes from one forward to the next is a `Pass`, of which each thread has its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..pruning import crossget
from ..tokens import Plan, scatter_back, take
from .hooks import Hooks, Members, Own

ATTENTIONS = ("sdpa", "eager")


@dataclass
class Merging:
    """How a tower merges: r tokens a layer; cross (layers, D) or None; guidance, matching: see
    `clip.merge_tokens`."""

    r: int
    cross: Tensor | None
    guidance: float
    matching: str


@dataclass
class Pass:
    """One forward of a tower.

    size (B, t): how many tokens each stands for. origin (B, t): its place at the start. eot (B,):
    where [EOT] is, None for images. plans, lengths: see `Tower`. seen: what the layer that is
    running has made, of "q", "k" and, once it has merged, "x".
    """

    size: Tensor
    origin: Tensor
    eot: Tensor | None
    plans: list[Plan | None] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def asking(self, x: Tensor) -> Tensor:
        """(B, D): the last token of an image, [EOT] of a text."""
        return x[:, -1] if self.eot is None else take(x, self.eot[:, None])[:, 0]

    @property
    def length(self) -> int:
        """How many tokens there were at the start."""
        gone = (plan.num_tokens - len(plan) for plan in self.plans if plan is not None)
        return self.size.shape[1] + sum(gone)


class LastPass(Own):
    """last: this thread's last forward."""

    last: Pass | None = None


class Tower:
    """One tower of a CLIPModel while it merges.

    Of the last forward, of this thread if it ran one: plans, one a layer (None: nothing merged
    there), over its tokens ([CLS], patches, cross token; in text: tokens, cross token); lengths:
    tokens behind each layer; size (B, t): how many each of them stands for.

    Args:
        tower: CLIPModel's vision_model or text_model.
        merging: how.
        text: whether it is the text tower.

    ValueError for cross tokens that do not fit and for attention that takes no sizes.
    """

    def __init__(self, tower: nn.Module, merging: Merging, text: bool):
        self.tower, self.merging, self.text = tower, merging, text
        self.layers = tower.encoder.layers
        self.cross = self._checked_cross("cross_text" if text else "cross_image")
        attention = tower.config._attn_implementation
        if attention not in ATTENTIONS:
            raise ValueError(f"attention {attention!r} takes no sizes: use one of {ATTENTIONS}")
        self.own = LastPass()
        self.members: Members | None = None
        self._last: Pass | None = None

    def _checked_cross(self, name: str) -> Tensor:
        cross, shape = self.merging.cross, (len(self.layers), self.tower.config.hidden_size)
        if cross is None:
            return self.layers[0].layer_norm1.weight.new_zeros(shape)
        cross = cross.reshape(-1, cross.shape[-1])
        if cross.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(cross.shape)} but the tower needs {shape}: a vector for "
                "each layer"
            )
        return cross

    # ------------------------------------------------------------------------------ last forward
    @property
    def last(self) -> Pass:
        last = self.own.last or self._last
        if last is None:
            raise ValueError("nothing has run in this block yet")
        return last

    @property
    def plans(self) -> list[Plan | None]:
        return self.last.plans

    @property
    def lengths(self) -> list[int]:
        return self.last.lengths

    @property
    def size(self) -> Tensor:
        return self.last.size

    # ------------------------------------------------------------------------------------- hooks
    def attach(self, hooks: Hooks, members: Members) -> None:
        """Hang everything on the tower."""
        tower, self.members = self.tower, members
        if self.text:
            hooks.before(tower, self._no_mask)
            hooks.behind(tower.embeddings, self._append_to_text)
            hooks.before(tower.final_layer_norm, self._put_back)
        else:
            hooks.before(tower.pre_layrnorm, self._append_to_image)
        for number, layer in enumerate(self.layers):
            hooks.before(layer, self._enter(number))
            hooks.behind(layer.self_attn.q_proj, self._note("q"))
            hooks.behind(layer.self_attn.k_proj, self._note("k"))
            hooks.before(layer.layer_norm2, self._merge)
            hooks.behind(layer.mlp, self._hold)
            # before transformers' own, which records the output
            hooks.behind(layer, self._leave, prepend=True)

    def start(self, x: Tensor, eot: Tensor | None = None) -> Tensor:
        """Begin a forward on x (B, t, D), the cross token at its end."""
        self.members.check()
        place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        ones = x.new_ones(x.shape[:2], dtype=torch.float32)
        self.own.last = self._last = Pass(ones, place, eot)
        return x

    def _append_to_image(self, norm: nn.Module, args: tuple, kwargs: dict) -> tuple:
        """Behind [CLS] and the patches a copy of [CLS]."""
        x = args[0]
        return (self.start(torch.cat([x, x[:, :1]], dim=1)),), kwargs

    def _no_mask(self, tower: nn.Module, args: tuple, kwargs: dict) -> tuple:
        """[EOT] sees what is before it, where there is no padding: the causal mask of the layers'
        hooks is enough."""
        return args, {**kwargs, "attention_mask": None}

    def _append_to_text(self, module: nn.Module, args: tuple, kwargs: dict, x: Tensor) -> Tensor:
        """Behind the words a copy of [EOT], which is found as CLIPTextModel finds it."""
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        stop = self.tower.eos_token_id
        eot = ids.argmax(dim=-1) if stop == 2 else (ids == stop).int().argmax(dim=-1)
        return self.start(torch.cat([x, take(x, eot[:, None])], dim=1), eot)

    def _put_back(self, norm: nn.Module, args: tuple, kwargs: dict) -> tuple:
        """Survivors to where they were in the text, zeros elsewhere: CLIPTextModel takes [EOT]'s
        state from its first place."""
        x, run = args[0], self.own.last
        return (scatter_back(x, run.origin, run.length)[:, :-1],), kwargs

    # ----------------------------------------------------------------------------------- a layer
    def _enter(self, number: int) -> Callable:
        """Pre-hook of a layer: its own cross token, and its tokens' sizes in place of a mask."""

        def hook(layer: nn.Module, args: tuple, kwargs: dict) -> tuple:
            if layer.training and getattr(layer, "gradient_checkpointing", False):
                raise ValueError(
                    "gradient checkpointing runs a layer a second time, which would merge its "
                    "tokens twice: model.gradient_checkpointing_disable() before merging"
                )
            x, run = args[0], self.own.last
            cross = run.asking(x).detach() + self.cross[number].to(x)
            x = torch.cat([x[:, :-1], cross[:, None]], dim=1)
            run.seen = {}
            rest = {name: value for name, value in kwargs.items() if name != "attention_mask"}
            return (x, self.bias(x, run.size), *args[2:]), rest

        return hook

    def bias(self, x: Tensor, size: Tensor) -> Tensor:
        """(B, 1, t, t) to add to the logits: log of the key's size, and -inf for later tokens of a
        text."""
        bias = size.log()[:, None, None].expand(-1, -1, x.shape[1], -1)
        if self.text:
            every = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            bias = bias.masked_fill(every.triu(1), -math.inf)
        return bias.to(x.dtype).contiguous()

    def _note(self, name: str) -> Callable:
        """Hook of a projection: keep its output."""

        def hook(module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
            self.own.last.seen[name] = out

        return hook

    def _merge(self, norm: nn.Module, args: tuple, kwargs: dict) -> tuple:
        """Pre-hook behind the attention: x (B, t, D) -> (B, t - r, D)."""
        x, run, plan, how = args[0], self.own.last, None, self.merging
        if crossget.merges(how.r, x.shape[1], 2 + (run.eot is not None)):
            keys = run.seen["k"]
            importance = crossget.importance_cosine(keys, run.asking(run.seen["q"]))
            pairs = crossget.match(
                keys, how.guidance * importance, how.r, eot=run.eot, method=how.matching
            )
            plan, run.size = crossget.ensemble(pairs, run.size)
            x = plan.apply(x)
            run.origin = take(run.origin, plan.index)
            if run.eot is not None:
                run.eot = run.eot - (pairs.source < run.eot[:, None]).sum(dim=1)
            run.seen["x"] = x
        run.plans.append(plan)
        run.lengths.append(x.shape[1])
        return (x,), kwargs

    def _hold(self, mlp: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> Tensor | None:
        """Hook of the MLP: add its output here and hand over nothing."""
        seen = self.own.last.seen
        if "x" not in seen:
            return None
        seen["x"] = seen["x"] + out
        return out.new_zeros(())

    def _leave(self, layer: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> Tensor | None:
        """Hook of a layer: the merged tokens."""
        return self.own.last.seen.pop("x", None)
