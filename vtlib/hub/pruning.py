"""Prune the visual tokens of transformers' vision-language models while they run: nothing is
rewritten, nothing stays behind.

    with prune(model, "fastervlm", keep=64) as pruned:            before the language model
        model.generate(**inputs, max_new_tokens=20)
    with prune(model, "fastv", keep=64): ...                      inside it, where `stages` say
    with prune(model, "aim", 0.25, stages=lambda layers, n: aim.stages(layers, None, n)): ... both

A hook on the multimodal model lets it see the whole prompt; one at its decoder's door asks the
method for a `Plan` and cuts whatever is handed over there (`turns`). Hooks on the decoder's layers
cut again where a `Stage` says so (`cuts`): each layer's cache then holds its own length. Queries
and keys come from the layers themselves (`probe`), so that nothing is known of a model's
architecture (`general`); what the vision tower says beside its tokens is read of LLaVA 1.5 and
Qwen2.5-VL (`encoders`). Decoding goes on from the short caches, in `generate` or by hand.

    positions="renumber"   survivors are counted anew, after every cut, and so are the words behind
                           them (LLaVA 1.5 alone, its default)
    positions="keep"       survivors keep their numbers (AIM, FastV; all other models)

An image is a set of places, which need not be neighbours; a video's frames count as images. A
token stays where it was; one that is merged sits at its plan's `index` ([CLS] where the first patch
was), and plans in another order fill the image's first places. Before the decoder empty slots (-1)
take no place; with stages, and in a stage's own plan, they are a ValueError. Rows of a batch that
keep fewer tokens than others are padded, before the decoder and inside it. Batches may be padded on
either side; prompts may hold several images of any sizes (each keeps `keep` tokens).

Conversations: a cache made inside the block remembers its cuts (`cache`). It stands for the whole
sequence, so `generate` goes on from it with the returned sequence or with the new words alone;
outside of a block it raises a ValueError. All images belong in a prompt's first forward: an image
behind a cached prefix, in a later turn or in a later chunk is refused. Assisted decoding and prompt
lookup choose the same tokens as greedy decoding: what is kept depends on the prompt, not on a draft
behind it.

Training: `labels` follow the tokens (those of dropped ones are gone, none for padding), the loss is
the model's own, and gradients reach the tower through the tokens that are kept (not through what
a method reads to choose, or to weigh). `logits_to_keep` means columns of input_ids, which must have
been kept.

Threads: each has its own records, so several may run in one block; those that were started before
it, other than the one that entered it, are refused (a streamer's worker is started inside). One
block a model at a time. `copy.deepcopy` and `pickle` of a model in a block give an unpruned one.
Static caches work before the decoder. Windows: cuts inside a decoder with sliding windows need a
sequence that fits into one; before it windows count the tokens that are left.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import check_callable
from ..tokens import Plan
from ..vlm.decoder import POSITIONS
from . import cache, encoders, head
from .arguments import aligned, check_prompt, flat_mask, has_images, named
from .budget import Budget
from .cuts import Images, Run, Turn
from .hooks import Hooks, Members, Own, alone
from .methods import Method, find
from .prompt import Seen
from .signals import Signals, sizes_of
from .tower import WATCHED, Family, Reads
from .turns import Pending, Shortening, frame_counts


def prune(
    model: Any,
    method: Any = None,
    keep: Any = None,
    *,
    clip: bool = False,
    cls: str | None = None,
    stages: Any = None,
    positions: str | None = None,
    attention: Sequence[int] = (),
    hidden: Sequence[int] = (),
    signals: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    **options: Any,
):
    """A context in which `model` prunes visual tokens; gives a `Pruned`.

    Args:
        model: a vision-language model of transformers (`general`), also inside a PEFT model or a
            pipeline; with a CLIPModel see `clip.merge_tokens`.
        method: a name of vtlib.pruning.registry.METHODS, a `vtlib.pruning.method.Method`, or a
            function (vision, keep, **options) -> Plan (a score, indices) that reads nothing but
            `vision.features`. One with `prune` acts before the language model, one with only
            `stages` inside it; of one with both (AIM, VisionDrop) the part before, the other one
            goes into `stages`.
        keep: visual tokens per image (or frame): an int, a fraction, a list with one a picture in
            the order of the prompts, or a function of an image's number of tokens.
        clip: images of fewer than `keep` tokens keep all; otherwise they are a ValueError.
        cls: "received": where the encoder has no [CLS], its row is the mean attention received.
        stages: (more) cuts inside the decoder: a list of `Stage` or a function (num_layers,
            num_visual) -> list, num_visual: tokens of an image that get there.
        positions: see the module; default: the method's, or the family's way.
        attention: layers whose maps (0-based) the plan also reads.
        hidden: hidden states that the plan also reads.
        signals: a function of a forward's arguments (a dict) that returns more options for the
            method, such as the question's features.
        options: go to the method.

    ValueError when model, method and wishes do not fit, and from a forward that cannot be pruned.
    """
    model = unwrapped(model)
    if getattr(getattr(model, "config", None), "model_type", None) == "clip":
        from .clip import merge_tokens

        return merge_tokens(model, method, keep, **options)
    family = encoders.family(model)
    found = Method(find(method), family, stages, attention, hidden, options, cls)
    return _attached(Pruned(family, found, Budget(keep, clip), positions, signals))


def unwrapped(model: Any) -> Any:
    """The transformers model inside a pipeline and a PEFT model; others as they are."""
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        model = model.model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def _attached(pruned: "Pruned") -> Iterator["Pruned"]:
    with alone(pruned.family.model, "being pruned") as hooks:
        pruned.attach(hooks)
        try:
            yield pruned
        finally:
            pruned.close()


class Current(Own):
    """What each thread is at, inside a block.

    prompt: input_ids of the `generate` that it is in. seen: what was read of the images that went
    through get_image_features last (of LLaVA 1.5 and Qwen2.5-VL, seen; of others, signals); sizes:
    how many tokens each image and video had that went through; frames: of each video. pending: the
    prompt that is on its way to the decoder. wish: what the forward that it is in asks of the head.
    run: the prompt that this forward runs, or goes on from. last: its last prompt with images.
    """

    prompt: Tensor | None = None
    seen: Seen | None = None
    sizes: dict[str, list[int] | None] | None = None
    frames: list[int] | None = None
    signals: Signals | None = None
    pending: Pending | None = None
    wish: head.Wishes | None = None
    run: Run | None = None
    last: Run | None = None


class Pruned:
    """What `prune` gives. It tells of the last prompt with images, of this thread if it ran one:

    images: list of `cuts.Images`, one entry for each size of image (LLaVA: one). plan: the only
    entry's, before the decoder. columns (B, S): the column of input_ids that each place of the
    logits belongs to. valid (B, S): False for padding. lengths: how many tokens each layer saw,
    which is what its cache held after the prompt.

    Its hooks in the order in which one `generate` runs them, and what they write in `own`:

        _generate             prompt: so that a forward can tell a draft from the prompt
        _features             seen, sizes: the tower runs once, here
        each forward, of the prompt and then of new tokens:
            _before_head      wish: labels and logits_to_keep of a prompt with images, else None
            _before_model     pending: a prompt with images; run, and its turn: the one that the
                              cache holds
            _door             run, of the pending prompt (last, too): all of the decoder's arguments
                              are cut here
            _before_layer     nothing; layer by layer it cuts the prompt, adapts mask and tables
            _watch            nothing; behind a layer's modules, what stages watch goes to run.turn
            _behind_model     run: None again
            _behind_head      wish: None again; it adds the loss
        _generate             prompt: what it was before

    A forward by hand has no _generate, and its model reads the tower between _before_model and
    _door. `close` empties what belongs to a forward.

    Args:
        family: what is known of the model.
        method: with its options.
        budget: how many tokens images keep.
        positions: see `prune`.
        signals: see `prune`.
    """

    def __init__(
        self,
        family: Family,
        method: Method,
        budget: Budget,
        positions: str | None,
        signals: Callable | None,
    ):
        if signals is not None:
            check_callable(signals, "signals", "a function of a forward's arguments, or None")
        self.family, self.method = family, method
        # three-part positions are never counted anew
        fixed = self.family.default_positions == "keep"
        asked = positions or (None if fixed else self.method.positions)
        self.positions = asked or self.family.default_positions
        if self.positions not in POSITIONS or (fixed and self.positions != "keep"):
            needs = "keep" if fixed else " or ".join(POSITIONS)
            kind = type(family.model).__name__
            raise ValueError(f"positions={positions!r}: {kind} needs {needs!r}")
        if self.method.inside:
            self.family.check_inside()
        renumber = self.positions == "renumber"
        self.shortening = Shortening(self.family, self.method, budget, renumber, signals)
        self.own = Current()
        self.members: Members | None = None
        self._last: Run | None = None

    def attach(self, hooks: Hooks) -> None:
        """Hang everything on the model."""
        family, method = self.family, self.method
        self.members = Members()
        family.attach(hooks, method.reads)
        for kind in ("image", "video"):
            if hasattr(family.core, f"get_{kind}_features"):
                hooks.method(family.core, f"get_{kind}_features", self._features(kind))
        if hasattr(family.core, "get_placeholder_mask"):
            hooks.method(family.core, "get_placeholder_mask", self._places)
        hooks.method(family.model, "generate", self._generate)
        hooks.before(family.model, self._before_head)
        hooks.behind(family.model, self._behind_head, always_call=True)
        hooks.before(family.core, self._before_model)
        hooks.behind(family.core, self._behind_model, always_call=True)
        hooks.before(family.language, self._door)
        for number, layer in enumerate(family.language.layers):
            hooks.before(layer, self._before_layer(number))
            if not method.inside:
                continue
            for name in WATCHED:
                if hasattr(layer, name):
                    hooks.behind(getattr(layer, name), self._watch(number + 1, name))

    def close(self) -> None:
        """Forget what belongs to a forward."""
        own = self.own
        own.run = own.seen = own.signals = own.sizes = own.frames = own.pending = own.wish = None

    # ------------------------------------------------------------------------------- last prompt
    @property
    def last(self) -> Run:
        run = self.own.last or self._last
        if run is None:
            raise ValueError("no prompt with images has run yet")
        return run

    @property
    def images(self) -> list[Images]:
        return self.last.images

    @property
    def plan(self) -> Plan:
        if len(self.images) != 1:
            raise ValueError(
                f"the last prompt's images have {len(self.images)} different sizes: see `images`"
            )
        return self.images[0].plan

    @property
    def columns(self) -> Tensor:
        return self.last.levels[-1].columns

    @property
    def valid(self) -> Tensor:
        return self.last.levels[-1].valid

    @property
    def lengths(self) -> list[int]:
        return [self.last.held(layer) for layer in range(len(self.last.level_of))]

    # ------------------------------------------------------------------------ the model's methods
    def _features(self, kind: str) -> Callable:
        """get_image_features or get_video_features of the model, which `generate` calls before the
        forward: the same tokens, and what pruning needs of them stays with this thread."""

        def features(original: Callable, *args: Any, **kwargs: Any) -> Any:
            from transformers.modeling_outputs import BaseModelOutputWithPooling

            self.members.check()
            given = inspect.signature(original).bind(*args, **kwargs).arguments
            inputs = {**given, **given.pop("kwargs", {})}
            if kind == "video" or not self.family.own_features:
                reads = self.method.reads if kind == "image" else Reads()
                call = functools.partial(original, *args, **kwargs)
                out, found = self.family.listen(call, inputs, reads)
                self.own.sizes = {**(self.own.sizes or {}), kind: sizes_of(out)}
                if kind == "image":
                    self.own.signals = found
                else:
                    self.own.frames = frame_counts(inputs)
                return out
            seen = self.own.seen = Seen(self.method.read(inputs), inputs)
            out = BaseModelOutputWithPooling(pooler_output=seen.tokens())
            return out.to_tuple() if inputs.get("return_dict") is False else out

        return features

    def _generate(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """generate of the model: it tells where the prompt ends and a draft begins."""
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        self._check_chunks(ids, kwargs)
        before, self.own.prompt = self.own.prompt, ids
        try:
            return original(*args, **kwargs)
        finally:
            self.own.prompt = before

    def _check_chunks(self, ids: Any, kwargs: dict[str, Any]) -> None:
        config = kwargs.get("generation_config") or self.family.model.generation_config
        size = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        given = ("pixel_values", "mm_encoder_outputs")
        if size is None or all(kwargs.get(name) is None for name in given):
            return
        if not isinstance(ids, Tensor) or size < ids.shape[1]:
            raise ValueError(
                f"prefill_chunk_size={size}: a prompt with images is pruned as a whole, and is "
                "shorter for it: leave prefill_chunk_size out"
            )

    def draft(self, ids: Tensor) -> int:
        """How many tokens behind the prompt of `generate` are drafted, or the answer so far."""
        prompt = self.own.prompt
        if not isinstance(prompt, Tensor) or prompt.dim() != 2 or len(ids) % len(prompt):
            return 0
        rows = prompt.to(ids.device).repeat_interleave(len(ids) // len(prompt), dim=0)
        size = rows.shape[1]
        return ids.shape[1] - size if torch.equal(ids[:, :size], rows) else 0

    # ------------------------------------------------------------------------------ the forwards
    def _before_head(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        """Pre-hook of the model with its head: labels and logits_to_keep wait for the cuts."""
        self.own.wish = None
        kwargs = named(model, args, kwargs)
        if cache.held(kwargs.get("past_key_values")) or not has_images(kwargs):
            return None
        parameters = set(inspect.signature(type(model).forward).parameters)
        self.own.wish = head.wishes(kwargs, parameters)
        return (), kwargs

    def _behind_head(self, model: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
        wish, self.own.wish = self.own.wish, None
        if out is None or wish is None or wish.labels is None:
            return None
        return head.add_loss(model, out, wish, self.own.last)

    def _before_model(self, core: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        """Pre-hook of the multimodal model (without head)."""
        self._end()
        kwargs = named(core, args, kwargs)
        store = kwargs.get("past_key_values")
        past, run, images = cache.held(store), cache.run_of(store), self._images(kwargs)
        if past and images:
            raise ValueError(
                "images together with a cache: all images must be in the first forward of a "
                f"prompt, and past_key_values holds {past} tokens already (of a prefix, an earlier "
                "turn or a chunk of prefill_chunk_size): pass the whole sequence without a cache"
            )
        if past:
            return None if run is None else ((), self._step(kwargs, run, past))
        if run is not None:
            cache.release(store)
        if not images:
            return None  # a prompt without images
        self.members.check()
        static = getattr(store, "is_compileable", False)
        if self.method.inside and static:
            raise ValueError(
                "past_key_values is a static cache: layers of different lengths need a dynamic "
                "one, the default"
            )
        flat = {**kwargs, "attention_mask": flat_mask(kwargs)} if static else kwargs
        check_prompt(core, flat, self.family.position_parts)
        return (), self._prompt(kwargs, flat)

    def _images(self, kwargs: dict[str, Any]) -> bool:
        """Whether a forward brings images or videos of which tokens may go."""
        if not has_images(kwargs):
            return False
        ids = kwargs.get("input_ids")
        if not isinstance(ids, Tensor) or ids.is_meta or self.family.own_features:
            return True
        return bool((ids == self.family.image_token).any()) or (
            self.family.video_token is not None and bool((ids == self.family.video_token).any())
        )

    def _step(self, kwargs: dict[str, Any], run: Run, past: int) -> dict[str, Any]:
        """Begin a turn of new tokens behind a prompt; the forward's arguments."""
        turn, kwargs = self.shortening.step(kwargs, run, past)
        self._begin(run, turn)
        return kwargs

    def _prompt(self, kwargs: dict[str, Any], flat: dict[str, Any]) -> dict[str, Any]:
        """Let a prompt wait for the decoder; the forward's arguments.

        Args:
            kwargs: those.
            flat: the same with the attention_mask (B, S), or None.
        """
        draft, ready = self.draft(kwargs["input_ids"]), kwargs.get("mm_encoder_outputs") or {}
        self.shortening.check_window(kwargs["input_ids"].shape[1])
        if ready.get("image") is None:
            self.own.seen = self.own.signals = None
        elif self.family.own_features and self.own.seen is None:
            self.own.seen = Seen([], {})
        self.own.sizes = {kind: sizes_of(out) for kind, out in ready.items()}
        longer = aligned(kwargs, draft)
        longer["input_ids"] = kwargs["input_ids"].long()
        self.own.pending = Pending({**flat, **longer}, draft)
        return {**kwargs, **longer}

    def _places(self, original: Callable, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """get_placeholder_mask of the model: a placeholder in a draft (copied from the prompt by
        prompt lookup) is no image."""
        pending = self.own.pending
        if pending is not None and pending.draft and input_ids is not None:
            input_ids = input_ids.clone()
            tokens = (self.family.image_token, self.family.video_token)
            other = next(i for i in range(3) if i not in tokens)
            draft = input_ids[:, -pending.draft :]
            for token in tokens:
                if token is not None:
                    draft.masked_fill_(draft == token, other)
        return original(input_ids, *args, **kwargs)

    def _door(self, language: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        """Pre-hook of the decoder: what it is given is cut."""
        pending, self.own.pending = self.own.pending, None
        if pending is None and self.own.run is None:
            return None
        kwargs = named(language, args, kwargs)
        if pending is None:
            return (), self.shortening.follow(self.own.run, kwargs)
        own = self.own
        pending.seen, pending.sizes, pending.signals = own.seen, own.sizes, own.signals
        pending.frames = own.frames or []
        run, turn, short = self.shortening.prompt(pending, kwargs)
        self._begin(run, turn)
        self.own.last = self._last = run
        return (), short

    def _behind_model(self, core: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
        """Behind the forward, also a broken one: the logits that were asked for, and the end of
        this thread's turn."""
        run, wish = self.own.run, self.own.wish
        if out is not None and run is not None and wish is not None:
            out = head.chosen(out, run, wish)
        if out is not None and run is not None and run.turn.prefilling:
            run.forget(run.turn.draft)
        self._end()
        return out

    def _end(self) -> None:
        self.own.pending = None
        if self.own.run is not None:
            self.own.run.turn = None
        self.own.run = None

    def _begin(self, run: Run, turn: Turn) -> None:
        run.turn = turn
        self.own.run = run

    # -------------------------------------------------------------------------------- the layers
    def _before_layer(self, number: int) -> Callable:
        """Pre-hook of a decoder layer."""

        def hook(layer: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
            run = self.own.run
            if run is None or run.turn.probing:
                return None
            first, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if number == 0 and kwargs.get("past_key_values") is not None:
                cache.hold(kwargs["past_key_values"], run)
            if run.turn.prefilling:
                run.turn.given[number] = kwargs
                first = run.cut(number, first)
            return (first, *rest), run.adapt(number, first, kwargs)

        return hook

    def _watch(self, number: int, name: str) -> Callable:
        """Hook on a module of layer `number` (1-based) whose transitions stages may read."""

        def hook(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            run = self.own.run
            if run is not None and run.turn.prefilling and not run.turn.probing:
                # a choice has no gradient, and checkpointing does not run this a second time
                with torch.no_grad():
                    run.watch(number, name, out[0] if isinstance(out, tuple) else out)

        return hook
