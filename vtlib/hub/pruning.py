"""Prune the visual tokens of transformers' LLaVA and Qwen2.5-VL while they run: nothing is
rewritten, nothing stays behind.

    with prune(model, "fastervlm", keep=64) as pruned:            before the language model
        model.generate(**inputs, max_new_tokens=20)
    with prune(model, "fastv", keep=64): ...                      inside it, where `stages` say
    with prune(model, "aim", 0.25, stages=lambda layers, n: aim.stages(layers, None, n)): ... both

Hooks on the vision tower record what the method reads (`encoders`). A hook on the multimodal model
asks the method for a `Plan`, puts what it leaves between the words, and shortens embeddings, mask
and positions. Hooks on the decoder's layers cut again where a `Stage` says so (`cuts`): each
layer's cache then holds its own length. A stage's plan reads the `State` of `vtlib.vlm.decoder`,
made with the layers' own norms and projections: the code that runs on TinyVLM runs here. Decoding
goes on from the short caches, in `generate` or by hand.

    positions="renumber"   survivors are counted anew, after every cut, and so are the words behind
                           them (the default for LLaVA)
    positions="keep"       survivors keep their numbers (AIM, FastV; the only way for Qwen's
                           three-part positions)

A slot sits at its plan's `index` (a merged one where its seed was, [CLS] where the first patch
was); empty slots (-1) take no place. Batches may be padded on either side; prompts may hold several
images (each keeps `keep` tokens) and, without stages, different numbers of them. Rows of a batch
that keep fewer tokens than others are padded.

Conversations: a cache made inside the block remembers its cuts (`cache`). It stands for the whole
sequence, so `generate` goes on from it with the returned sequence or with the new words alone;
outside of a block it raises a ValueError. All images belong in a prompt's first forward: an image
behind a cached prefix, in a later turn or in a later chunk is refused. Assisted decoding and prompt
lookup choose the same tokens as greedy decoding: what is kept depends on the prompt, not on a draft
behind it.

Training: `labels` follow the tokens (those of dropped ones are gone, none for padding), the loss is
the model's own, and gradients reach the tower through the tokens that are kept. `logits_to_keep`
means columns of input_ids, which must have been kept.

Threads: each has its own records, so several may run in one block; those that were started before
it, other than the one that entered it, are refused (a streamer's worker is started inside). One
block a model at a time. `copy.deepcopy` and `pickle` of a model in a block give an unpruned one.
Static caches and videos are not supported.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import Plan, keep_all, take
from ..vlm.decoder import POSITIONS
from . import cache, encoders, head
from .cuts import Images, Level, Run, Turn
from .hooks import Hooks, Members, Own, alone
from .methods import Method, find
from .prompt import Group, Seen, Sheet, check_even, groups

ALIGNED = ("token_type_ids", "mm_token_type_ids")  # (B, S) arguments that are cut along


def prune(
    model: Any,
    method: Any = None,
    keep: int | float | None = None,
    *,
    stages: Any = None,
    positions: str | None = None,
    attention: Sequence[int] = (),
    hidden: Sequence[int] = (),
    signals: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    **options: Any,
):
    """A context in which `model` prunes visual tokens; gives a `Pruned`.

    Args:
        model: LlavaForConditionalGeneration or Qwen2_5_VLForConditionalGeneration, also inside a
            PEFT model or a pipeline; with a CLIPModel see `clip.merge_tokens`.
        method: a name of vtlib.pruning.registry.METHODS, a `vtlib.pruning.method.Method`, or a
            function (vision, keep, **options) -> Plan (a score, indices) that reads nothing but
            `vision.features`. One with `prune` acts before the language model, one with only
            `stages` inside it; of one with both (AIM, VisionDrop) the part before, the other one
            goes into `stages`.
        keep: visual tokens per image, an int or a fraction.
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
    wishes = keep, stages, attention, hidden, options
    return _attached(Pruned(model, method, wishes, positions, signals))


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


class Pruned:
    """What `prune` gives. It tells of the last prompt with images, of this thread if it ran one:

    images: list of `cuts.Images`, one entry for each size of image (LLaVA: one). plan: the only
    entry's, before the decoder. columns (B, S): the column of input_ids that each place of the
    logits belongs to. valid (B, S): False for padding. lengths: how many tokens each layer saw,
    which is what its cache held after the prompt.
    """

    def __init__(
        self,
        model: Any,
        method: Any,
        wishes: tuple,
        positions: str | None,
        signals: Callable | None,
    ):
        self.family = encoders.family(model)
        keep, stages, attention, hidden, options = wishes
        self.method = Method(find(method), self.family, keep, stages, attention, hidden, options)
        # three-part positions are never counted anew
        fixed = self.family.default_positions == "keep"
        asked = positions or (None if fixed else self.method.positions)
        self.positions = asked or self.family.default_positions
        if self.positions not in POSITIONS or (fixed and self.positions != "keep"):
            needs = "keep" if fixed else " or ".join(POSITIONS)
            raise ValueError(f"positions={positions!r}: {type(model).__name__} needs {needs!r}")
        kinds = getattr(self.family.language.config, "layer_types", None) or ()
        if self.method.inside and "sliding_attention" in kinds:
            raise ValueError(
                "the decoder has layers with sliding windows, which count places: cuts inside it "
                "are not supported"
            )
        self.signals, self.own = signals, Own()
        self.members: Members | None = None
        self._last: Run | None = None

    def attach(self, hooks: Hooks) -> None:
        """Hang everything on the model."""
        family, method = self.family, self.method
        self.members = Members()
        family.attach(hooks, method.need, method.attention, method.hidden)
        hooks.method(family.core, "get_image_features", self.image_features)
        hooks.method(family.model, "generate", self.generate)
        hooks.before(family.model, self.before_head)
        hooks.behind(family.model, self.behind_head, always_call=True)
        hooks.before(family.core, self.before_model)
        hooks.behind(family.core, self.behind_model, always_call=True)
        for number, layer in enumerate(family.language.layers):
            hooks.before(layer, self.before_layer(number))
            if not method.inside:
                continue
            for name, module in (
                ("norm1", layer.input_layernorm),
                ("attention", layer.self_attn),
                ("norm2", layer.post_attention_layernorm),
                ("mlp", layer.mlp),
            ):
                hooks.behind(module, self.watch(number + 1, name))

    def close(self) -> None:
        """Forget what belongs to a forward."""
        self.own.run = self.own.seen = self.own.wish = None

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
    def image_features(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """get_image_features of the model, which `generate` calls before the forward: the same
        tokens, and what pruning needs of the images stays with this thread."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        self.members.check()
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        inputs = {**{k: v for k, v in given.items() if k != "kwargs"}, **given.get("kwargs", {})}
        seen = self.own.seen = Seen(self.method.read(inputs), inputs)
        out = BaseModelOutputWithPooling(pooler_output=seen.tokens())
        return out.to_tuple() if inputs.get("return_dict") is False else out

    def generate(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
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
    def before_head(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        """Pre-hook of the model with its head: labels and logits_to_keep wait for the cuts."""
        self.own.wish = None
        kwargs = _named(model, args, kwargs)
        if cache.held(kwargs.get("past_key_values")) or not _images(kwargs):
            return None
        known = set(inspect.signature(type(model).forward).parameters)
        self.own.wish = head.wishes(kwargs, known)
        return (), kwargs

    def behind_head(self, model: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
        wish, self.own.wish = self.own.wish, None
        if out is None or wish is None or wish.labels is None:
            return None
        return head.add_loss(model, out, wish, self.own.last)

    def before_model(self, core: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        """Pre-hook of the multimodal model (without head)."""
        self._end()
        kwargs = _named(core, args, kwargs)
        known = kwargs.get("past_key_values")
        past, run, images = cache.held(known), cache.run_of(known), _images(kwargs)
        ready = kwargs.get("mm_encoder_outputs") or {}
        if kwargs.get("pixel_values_videos") is not None or ready.get("video") is not None:
            raise ValueError("videos are not supported while pruning")
        if past and images:
            raise ValueError(
                "images together with a cache: all images must be in the first forward of a "
                f"prompt, and past_key_values holds {past} tokens already (of a prefix, an earlier "
                "turn or a chunk of prefill_chunk_size): pass the whole sequence without a cache"
            )
        if past:
            return None if run is None else ((), self.step(kwargs, run, past))
        if run is not None:
            cache.release(known)
        if not images:
            return None  # a prompt without images
        self.members.check()
        self._check_prompt(core, kwargs)
        if ready.get("image") is None:
            seen = Seen(self.method.read(kwargs), kwargs)
            order = list(range(seen.count))
        else:
            seen = self.own.seen or Seen([], {})
            order = seen.order(ready["image"].pooler_output)
        kwargs.pop("mm_encoder_outputs", None)
        return (), self.prefill(kwargs, seen, order)

    def behind_model(self, core: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
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
        if self.own.run is not None:
            self.own.run.turn = None
        self.own.run = None

    def _begin(self, run: Run, turn: Turn) -> None:
        run.turn = turn
        self.own.run = run

    # -------------------------------------------------------------------------------- the prompt
    def _check_prompt(self, core: nn.Module, kwargs: dict[str, Any]) -> None:
        """ValueError for arguments of a prompt that cannot follow its tokens."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if getattr(kwargs.get("past_key_values"), "is_compileable", False):
            raise ValueError(
                "past_key_values is a static cache: layers of different lengths need a dynamic "
                "one, the default"
            )
        if ids is None:
            raise ValueError("input_ids is missing: it says where the images' tokens stand")
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("input_ids and inputs_embeds together: pass input_ids alone")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            raise ValueError("attention_mask must be (B, S), 1 for tokens and 0 for padding")
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)} but input_ids {tuple(ids.shape)}"
            )
        given = kwargs.get("position_ids")
        if given is not None and (
            given.shape[-1] != ids.shape[1] or given.shape[-2] not in (1, len(ids))
        ):
            raise ValueError(
                f"position_ids has shape {tuple(given.shape)} but input_ids {tuple(ids.shape)}"
            )
        named = set(inspect.signature(type(core).forward).parameters) | set(ALIGNED)
        for name in kwargs.keys() - named:
            value = kwargs[name]
            if isinstance(value, Tensor) and ids.shape[1] in value.shape[1:]:
                raise ValueError(
                    f"{name} of shape {tuple(value.shape)} goes with the {ids.shape[1]} tokens of "
                    "input_ids and cannot follow those that are pruned: leave it out"
                )
        window = getattr(self.family.language.config, "sliding_window", None)
        self._check_window(window, ids.shape[1])

    def _check_window(self, window: int | None, size: int) -> None:
        if self.method.inside and window is not None and size > window:
            raise ValueError(
                f"the decoder has a sliding window of {window} places and the sequence {size} "
                "tokens: cuts inside it need one that is no longer; use a method that prunes "
                "before the decoder"
            )

    def prefill(self, kwargs: dict[str, Any], seen: Seen, order: list[int]) -> dict[str, Any]:
        """Arguments of a forward on a prompt -> those of the shorter prompt. order: the image
        behind each block of placeholders."""
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        draft = self.draft(ids)
        kwargs = {**kwargs, **_aligned(kwargs, draft)}
        positions, delta = self._positions(kwargs, draft)
        sheet = Sheet(
            x=self.family.core.get_input_embeddings()(ids),
            positions=positions,
            moved=positions.clone(),
            columns=torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1),
            stay=torch.ones_like(ids, dtype=torch.bool),
        )
        more = self._signals(kwargs, seen, draft)
        placeholder = ids == self.family.image_token
        placeholder[:, ids.shape[1] - draft :] = False
        images = [self._reduce(group, sheet, more) for group in groups(placeholder, seen, order)]
        if any(group.stages for group in images):
            check_even(images, sheet.stay)
        index, valid = sheet.rectangle(mask)
        run = self._run(sheet, images, index, valid, delta)
        self._begin(run, Turn(prefilling=True, positions=run.levels[0].positions, draft=draft))
        self.own.last = self._last = run
        short = {
            "input_ids": None,
            "pixel_values": None,
            "inputs_embeds": take(sheet.x, index),
            "position_ids": run.levels[0].positions,
        }
        for name in ALIGNED:
            if kwargs.get(name) is not None:
                short[name] = take(kwargs[name], index)
        if mask is not None or index.shape[1] < ids.shape[1] or run.padded:
            # also when it is all ones: positions with gaps and neither mask nor cache would be
            # taken for several sequences in one
            short["attention_mask"] = valid.long()
        return {**kwargs, **short}

    def _positions(
        self, kwargs: dict[str, Any], draft: int
    ) -> tuple[Tensor, Tensor | None]:
        """The prompt's position ids, and by how much the words behind it are shifted."""
        ids, given = kwargs["input_ids"], kwargs.get("position_ids")
        if given is None:
            return self.family.positions(kwargs)
        given = self.family.parts(given)
        given = given.expand(*given.shape[:-2], *ids.shape)
        return given, self.family.delta(given, kwargs.get("attention_mask"), draft)

    def _signals(self, kwargs: dict[str, Any], seen: Seen, draft: int) -> dict[str, Any]:
        """More options for the method, from the arguments of the prompt alone."""
        if self.signals is None:
            return {}
        given = {**seen.inputs, **{k: v for k, v in kwargs.items() if v is not None}}
        for name in ("input_ids", "attention_mask", *ALIGNED):
            if draft and name in given:
                given[name] = given[name][:, :-draft]
        return self.signals(given)

    def _reduce(self, group: Group, sheet: Sheet, more: dict[str, Any]) -> Images:
        """Ask the method for the plan of a group of images and carry it out."""
        plan, tokens = self.method.reduce(group.vision, more, group.which)
        behind = self.family.num_prefix if self.method.space == "selected" else 0
        slots = sheet.put(group, plan, tokens, behind)
        count, rows = len(plan), len(group.row)
        return Images(
            number=group.images,
            row=group.row,
            places=slots,
            vision=group.vision,
            plan=plan,
            stages=self.method.stages(count),
            num_visual=count,
            since=keep_all(rows, count, slots.device),
        )

    def _run(
        self, sheet: Sheet, images: list[Images], index: Tensor, valid: Tensor, delta: Tensor | None
    ) -> Run:
        """The run of a prompt of which the tokens index (B, S') are left."""
        batch, length = index.shape
        first = torch.arange(length, device=index.device).expand(batch, -1)
        place = torch.full_like(sheet.columns, -1).scatter(1, index, first)
        for group in images:
            there = place[group.row[:, None], group.places]
            group.places = there.masked_fill(group.places < 0, -1)
        renumber = self.positions == "renumber"
        columns, positions = take(sheet.columns, index), sheet.numbers(renumber, index)
        language = self.family.language
        return Run(
            full=sheet.stay.shape[1],
            dropped=sheet.gone[:, -1],
            images=images,
            levels=[Level(first, columns, positions, valid, shift=0)],
            level_of=[0] * len(language.layers),
            renumber=renumber,
            language=language,
            padded=not bool(valid.all()),
            delta=delta,
        )

    # ----------------------------------------------------------------------------- what follows
    def step(self, kwargs: dict[str, Any], run: Run, past: int) -> dict[str, Any]:
        """Arguments of a forward on new tokens behind a pruned prompt, of which the first layer's
        cache holds `past` tokens."""
        ids = kwargs.get("input_ids")
        new = kwargs["inputs_embeds"] if ids is None else ids
        first = run.levels[0].valid
        count, since = new.shape[1], past - run.held(0)  # new tokens; tokens since the prompt
        self._check_step(run, new, since)
        positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
        size = run.full + since + count
        if mask is not None and mask.shape != (len(new), size):
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}, but prompt and new tokens are "
                f"{(len(new), size)}"
            )
        if positions is None:
            positions = self.family.after(run.full + since, new, mask, run.delta)
        positions = self.family.parts(positions)
        if run.renumber:
            positions = positions - run.dropped[:, None]
        short = {"position_ids": positions}
        if mask is not None or run.padded:
            ones = run.dropped.new_ones(len(new), since + count)
            rest = ones if mask is None else mask[:, run.full :]
            short["attention_mask"] = torch.cat([first.to(rest.dtype), rest], dim=1)
        self._begin(run, Turn(prefilling=False, positions=positions))
        return {**kwargs, **short}

    def _check_step(self, run: Run, new: Tensor, since: int) -> None:
        rows = len(run.dropped)
        if run.language is not self.family.language:
            raise ValueError("past_key_values holds a prompt that another model has pruned")
        if len(new) != rows:
            raise ValueError(f"{len(new)} rows go on from a cache of {rows} pruned prompts")
        if since < 0:
            raise ValueError(
                f"past_key_values was cropped {-since} tokens into its pruned prompt: run the "
                "shorter prompt anew"
            )
        window = getattr(self.family.language.config, "sliding_window", None)
        if len(run.levels) > 1 and window is not None:
            self._check_window(window, run.full + since + new.shape[1])

    # -------------------------------------------------------------------------------- the layers
    def before_layer(self, number: int) -> Callable:
        """Pre-hook of a decoder layer."""

        def hook(layer: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
            run = self.own.run
            if run is None:
                return None
            first, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if number == 0 and kwargs.get("past_key_values") is not None:
                cache.hold(kwargs["past_key_values"], run)
            if run.turn.prefilling:
                first = run.cut(number, first)
            return (first, *rest), run.adapt(number, first, kwargs)

        return hook

    def watch(self, number: int, name: str) -> Callable:
        """Hook on a module of layer `number` (1-based) whose transitions stages may read."""

        def hook(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            run = self.own.run
            if run is not None and run.turn.prefilling:
                # a choice has no gradient, and checkpointing does not run this a second time
                with torch.no_grad():
                    run.watch(number, name, out[0] if isinstance(out, tuple) else out)

        return hook


def _named(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward, all by their names."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return {**kwargs, **dict(zip(names, args, strict=False))}


def _aligned(kwargs: dict[str, Any], draft: int) -> dict[str, Tensor]:
    """The arguments of `ALIGNED`, as long as input_ids: transformers leaves a draft out of some."""
    ids, out = kwargs["input_ids"], {}
    for name in ALIGNED:
        value = kwargs.get(name)
        if value is None:
            continue
        short = ids.shape[1] - value.shape[1]
        if short not in (0, draft) or len(value) != len(ids):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} but input_ids {tuple(ids.shape)}"
            )
        out[name] = torch.cat([value, value.new_zeros(len(value), short)], dim=1)
    return out


def _images(kwargs: dict[str, Any]) -> bool:
    """Whether a forward brings images."""
    ready = kwargs.get("mm_encoder_outputs") or {}
    return kwargs.get("pixel_values") is not None or ready.get("image") is not None
