"""Prune the visual tokens of transformers' LLaVA and Qwen2.5-VL while they run: nothing is rewritten, nothing stays behind.

    with prune(model, "fastervlm", keep=64) as pruned:                           before the language model
        model.generate(**inputs, max_new_tokens=20)
    with prune(model, "fastv", keep=64): ...                                     inside it, where the method's `stages` say
    with prune(model, "aim", 0.25, stages=lambda layers, tokens: aim.stages(layers, None, tokens)): ...          both

The vision tower runs with a probe (`encoders`). A hook on the multimodal model asks the method for a `Plan`, puts what it
leaves between the words, and shortens embeddings, attention mask and positions. Hooks on the decoder's layers cut again where a
`Stage` says so (`cuts`): each layer's cache then holds its own length. A stage's plan reads the `State` of `vtlib.vlm.decoder`,
made with the layers' own norms and projections: the code that runs on TinyVLM runs here. Decoding goes on from the short
caches, in `generate` or by hand.

    positions="renumber"   survivors are counted anew, after every cut, and so are the words behind them (the default for LLaVA)
    positions="keep"       survivors keep their numbers (AIM, FastV; the only way for Qwen's three-part positions)

A slot sits at its plan's `index` (a merged one where its seed was, [CLS] where the first patch was); empty slots (-1) take no
place. Batches may be padded on either side; prompts may hold several images (each keeps `keep` tokens) and, without stages,
different numbers of them. Rows of a batch that keep fewer tokens than others are padded. For inference: no static caches, no
videos; a cache made inside the block remembers its cuts and is of no use outside.
"""

import contextlib
import functools
import inspect

import torch
from torch import Tensor

from ..tokens import Plan, keep_all, take
from ..vlm.decoder import POSITIONS
from . import encoders
from .cuts import Block, Images, Level, Run, take_positions
from .methods import Method, find
from .prompt import Seen, check_even, places

RUN = "_vtlib_run"  # on a cache: the prompt it belongs to
SEEN = "_vtlib_seen"  # on the output of get_image_features: what was read


def prune(model, method=None, keep=None, *, stages=None, positions=None, attention=(), hidden=(), signals=None, **options):
    """A context in which `model` (LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration) prunes visual tokens;
    gives a `Pruned`.

    method: a name of vtlib.pruning.registry.METHODS, a `vtlib.pruning.method.Method`, or a function
    (vision, keep, **options) -> Plan (a score, indices) that reads nothing but `vision.features`. One with `prune` acts
    before the language model, one with only `stages` inside it; of one with both (AIM, VisionDrop) the part before, the
    other one goes into `stages`.
    keep: visual tokens per image, an int or a fraction. options go to the method.
    stages: (more) cuts inside the decoder: a list of `Stage` or a function (num_layers, num_visual) -> list, num_visual: tokens
    of an image that get there.
    positions: see the module; default: the method's, or the family's way.
    attention, hidden: layers whose maps (0-based) and hidden states the plan also reads. signals: a function of a forward's
    arguments (a dict) that returns more options for the method, such as the question's features.
    With a CLIPModel: `clip.merge_tokens`. ValueError when model, method and wishes do not fit, and from a forward that cannot
    be pruned.
    """
    if getattr(getattr(model, "config", None), "model_type", None) == "clip":
        from .clip import merge_tokens

        return merge_tokens(model, method, keep, **options)
    return _attached(Pruned(model, method, keep, stages, positions, attention, hidden, signals, options))


@contextlib.contextmanager
def _attached(pruned):
    core = pruned.family.core
    if "get_image_features" in vars(core):
        raise ValueError(f"model={type(pruned.family.model).__name__} is being pruned already: leave that block first")
    try:
        core.get_image_features = pruned.image_features(core.get_image_features)
        pruned.handles.append(core.register_forward_pre_hook(pruned.on_model, with_kwargs=True))
        for number, layer in enumerate(pruned.family.language.layers):
            pruned.handles.append(layer.register_forward_pre_hook(pruned.on_layer(number), with_kwargs=True))
        yield pruned
    finally:
        pruned.detach()
        vars(core).pop("get_image_features", None)


class Pruned:
    """What `prune` gives. It tells of the last prompt with images:

    images: list of `cuts.Images`, one entry for each size of image (LLaVA: one). plan: the only entry's, before the decoder.
    columns (B, S): the column of input_ids that each place of the logits belongs to. valid (B, S): False for padding.
    lengths: how many tokens each layer saw, which is what its cache held after the prompt.
    """

    def __init__(self, model, method, keep, stages, positions, attention, hidden, signals, options):
        self.family = encoders.family(model)
        self.method = Method(find(method), self.family, keep, stages, attention, hidden, options)
        fixed = self.family.default_positions == "keep"  # three-part positions are never counted anew
        self.positions = positions or (not fixed and self.method.positions) or self.family.default_positions
        if self.positions not in POSITIONS or (fixed and self.positions != "keep"):
            needs = "keep" if fixed else " or ".join(POSITIONS)
            raise ValueError(f"positions={positions!r}: {type(model).__name__} needs {needs!r}")
        if self.method.inside and "sliding_attention" in (getattr(self.family.language.config, "layer_types", None) or ()):
            raise ValueError("the decoder has layers with sliding windows, which count places: cuts inside it are not supported")
        self.signals, self.handles, self.watched, self.run, self._last = signals, [], set(), None, None

    def detach(self):
        """Remove all hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.run = None

    # -------------------------------------------------------------------------------------------------------- last prompt
    @property
    def last(self) -> Run:
        if self._last is None:
            raise ValueError("no prompt with images has run yet")
        return self._last

    @property
    def images(self) -> list[Images]:
        return self.last.images

    @property
    def plan(self) -> Plan:
        if len(self.images) != 1:
            raise ValueError(f"the last prompt's images have {len(self.images)} different sizes: see `images`")
        return self.images[0].plan

    @property
    def columns(self) -> Tensor:
        return self.last.levels[-1].columns

    @property
    def valid(self) -> Tensor:
        return self.last.levels[-1].valid

    @property
    def lengths(self) -> list[int]:
        return [self.last.levels[level].index.shape[1] for level in self.last.level_of]

    # ------------------------------------------------------------------------------------------------- the model's forward
    def image_features(self, original):
        """get_image_features of the model, which `generate` calls before the forward: the same tokens, and what pruning needs
        of the images."""

        @functools.wraps(original)
        def read(*args, **kwargs):
            from transformers.modeling_outputs import BaseModelOutputWithPooling

            kwargs = {**dict(zip(inspect.signature(original).parameters, args)), **kwargs}
            seen = Seen(self.method.read(kwargs), kwargs)
            out = BaseModelOutputWithPooling(pooler_output=seen.tokens())
            setattr(out, SEEN, seen)
            return out

        return read

    def on_model(self, core, args, kwargs):
        """Pre-hook of the multimodal model (without head)."""
        kwargs = {**dict(zip(list(inspect.signature(type(core).forward).parameters)[1:], args)), **kwargs}
        cache, self.run = kwargs.get("past_key_values"), None
        past = cache.get_seq_length() if cache is not None else 0
        pixels, ready, mask = kwargs.get("pixel_values"), kwargs.get("mm_encoder_outputs") or {}, kwargs.get("attention_mask")
        images = ready.get("image")
        if kwargs.get("pixel_values_videos") is not None or ready.get("video") is not None:
            raise ValueError("videos are not supported while pruning")
        if past:
            run = getattr(cache, RUN, None)
            if run is not None and (pixels is not None or images is not None):
                raise ValueError("images together with a cache: all images must be in the first forward of a prompt")
            return None if run is None else ((), self.step(kwargs, run, past))
        if pixels is None and images is None:
            return None  # a prompt without images
        if getattr(cache, "is_compileable", False):
            raise ValueError("past_key_values is a static cache: layers of different lengths need a dynamic one, the default")
        if kwargs.get("input_ids") is None:
            raise ValueError("input_ids is missing: it says where the images' tokens stand")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            raise ValueError("attention_mask must be (B, S), 1 for tokens and 0 for padding")
        if images is None:
            seen = Seen(self.method.read(kwargs), kwargs)
            order = list(range(sum(len(numbers) for numbers, _ in seen.found)))
        else:
            seen = getattr(images, SEEN, None)
            if seen is None:
                raise ValueError("mm_encoder_outputs was made outside of this block, or split (prefill_chunk_size): pass "
                                 "pixel_values")
            order = seen.order(images.pooler_output)
        kwargs.pop("mm_encoder_outputs", None)
        return (), self.prefill(kwargs, seen, order)

    def prefill(self, kwargs, seen, order):
        """Arguments of a forward on a prompt -> those of the shorter prompt. order: the image behind each block of
        placeholders."""
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        batch, size = ids.shape
        given = {**seen.inputs, **{name: value for name, value in kwargs.items() if value is not None}}
        more = self.signals(given) if self.signals else {}
        positions = kwargs.get("position_ids")
        positions = (self.family.positions(kwargs, size, 0) if positions is None
                     else positions.expand(*positions.shape[:-2], batch, size))
        x, stay, images = self.family.core.get_input_embeddings()(ids), torch.ones_like(ids, dtype=torch.bool), []
        moved, columns = positions.clone(), torch.arange(size, device=ids.device).repeat(batch, 1)
        for number, vision, which, row, here in places(ids == self.family.image_token, seen.found, order):
            plan, tokens = self.method.reduce(vision, more, which)
            count, behind = len(plan), self.family.num_prefix if self.method.space == "selected" else 0
            if count > here.shape[1]:
                raise ValueError(f"the plan leaves {count} tokens but an image has {here.shape[1]} places in the prompt")
            slots, at = here[:, :count], row[:, None]
            x = x.index_put((at, slots), tokens.to(x.dtype))
            stay[at, here] = False
            stay[at, slots] = plan.index >= 0
            seed = take(here, (plan.index - behind).clamp(min=0))
            moved[..., at, slots], columns[at, slots] = positions[..., at, seed], seed
            images.append(Images(number, row, slots.masked_fill(plan.index < 0, -1), vision, plan, self.method.stages(count),
                                 count, since=keep_all(len(row), count, ids.device)))
        if any(group.stages for group in images):
            check_even(images, stay)

        # a rectangle: shorter rows are filled with padding, first their own, then tokens that were dropped
        real = stay if mask is None else stay & mask.bool()
        length = size if stay.all() else int(real.sum(dim=1).amax())
        rank = torch.where(real, 2, stay.long())
        index = rank.argsort(dim=1, stable=True)[:, size - length :].sort(dim=1).values  # b s'
        valid = take(real, index)
        gone = (~stay).long().cumsum(dim=1)  # b s: dropped up to here
        if self.positions == "renumber":
            moved = positions - gone
        place = torch.full_like(ids, -1).scatter(1, index, torch.arange(length, device=ids.device).expand(batch, -1))
        for group in images:
            group.places = place[group.row[:, None], group.places].masked_fill(group.places < 0, -1)
        language, layers = self.family.language, [Block(layer) for layer in self.family.language.layers]
        first = torch.arange(length, device=ids.device).expand(batch, -1)
        level = Level(first, take(columns, index), take_positions(moved, index), valid, shift=0)
        self.run = self._last = Run(size, gone[:, -1], images, [level], [0] * len(layers), self.positions == "renumber",
                                    language.rotary_emb, layers, padded=not bool(valid.all()))
        self._watch({layer for group in images for stage in group.stages for layer in stage.watch})
        kwargs.update(input_ids=None, pixel_values=None, inputs_embeds=take(x, index), position_ids=level.positions)
        if mask is not None or length < size or self.run.padded:
            # also when it is all ones: positions with gaps and neither mask nor cache would be taken for several sequences in one
            kwargs["attention_mask"] = valid.long()
        return kwargs

    def step(self, kwargs, run, past):
        """Arguments of a forward on new tokens behind a pruned prompt."""
        new = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        first = run.levels[0].valid
        count, since = new.shape[1], past - first.shape[1]  # new tokens; tokens since the prompt
        if len(new) != len(first):
            raise ValueError(f"{len(new)} rows go on from a cache of {len(first)} pruned prompts")
        positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
        if positions is None:
            positions = self.family.positions(kwargs, count, run.full + since)
        if run.renumber:
            positions = positions - run.dropped[:, None]
        if mask is not None and mask.shape != (len(new), run.full + since + count):
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, but prompt and new tokens are "
                             f"{(len(new), run.full + since + count)}")
        if mask is not None or run.padded:
            rest = run.dropped.new_ones(len(new), since + count) if mask is None else mask[:, run.full :]
            kwargs["attention_mask"] = torch.cat([first.to(rest.dtype), rest], dim=1)
        run.prefilling, run.now, run.entered, self.run = False, positions, None, run
        run.memo.clear()
        kwargs["position_ids"] = positions
        return kwargs

    # ------------------------------------------------------------------------------------------------------ the layers
    def on_layer(self, number):
        """Pre-hook of a decoder layer."""

        def hook(layer, args, kwargs):
            run = self.run
            if run is None:
                return None
            hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if number == 0 and kwargs.get("past_key_values") is not None:
                setattr(kwargs["past_key_values"], RUN, run)
            if run.prefilling:
                hidden = run.cut(number, hidden)
            return (hidden, *rest), run.adapt(number, hidden, kwargs)

        return hook

    def _watch(self, numbers):
        """Hooks on the modules of layers (1-based) whose transitions stages read."""
        for number in numbers - self.watched:
            layer, seen = self.family.language.layers[number - 1], {}

            def keep(name, last=None, number=number, seen=seen):
                def hook(module, args, out):
                    if self.run is not None and self.run.prefilling:
                        seen[name] = out[0] if isinstance(out, tuple) else out
                        if name == "mlp":
                            self.run.watch(number, (seen["norm1"], seen["attention"]), (seen["norm2"], seen["mlp"]))
                            seen.clear()

                return hook

            for name, module in (("norm1", layer.input_layernorm), ("attention", layer.self_attn),
                                 ("norm2", layer.post_attention_layernorm), ("mlp", layer.mlp)):
                self.handles.append(module.register_forward_hook(keep(name)))
        self.watched |= numbers
