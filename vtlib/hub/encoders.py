"""What transformers' vision towers hand to a pruner: a probe inside their attention, and `VisionOutputs` made of what it saw.

    read(model, inputs, need, attention, hidden) -> [(images, VisionOutputs)]        images of one size share an entry

The probe is an attention function registered with transformers. It runs the function that was set before, so the tower's output
stays the same to the last bit and fast kernels stay in use, and beside it computes what was asked for: the [CLS] row (O(N)
memory), mean keys, or whole maps. The tower gets its own attention implementation back when the forward is over, also after an
exception.

LLaVA: CLIP's tower ([CLS] + patches) or SigLIP's (patches). Qwen2.5-VL: patches go through the blocks in the order of its
windows, and 2 x 2 neighbours become one visual token. Here N counts merged tokens in raster order: features (B, N, 4 C) are the
merger's input; attention maps are mean over the four queries and sum over the four keys, so that rows still sum to 1 (0 outside
of a window in blocks that have windows); keys are means of the four.
"""

import contextlib
import sys

import torch
from torch import Tensor

from ..tokens.vision import VisionOutputs

NAME = "vtlib_probe"
PROBE = "_vtlib_probe"  # where a probe sits on the attention modules that it looks at


# ------------------------------------------------------------------------------------------------------------- the probe
def _attend(module, query, key, value, attention_mask, **options):
    """The attention function that transformers calls: the tower's own one, and the record beside it."""
    run, records, wanted = getattr(module, PROBE)
    if wanted:
        records.append({name: wanted[name](query, key, options.get("scaling") or query.shape[-1] ** -0.5) for name in wanted})
    return run(module, query, key, value, attention_mask, **options)


def cls_row(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """(B, heads, S): weights of the first query. query, key (B, heads, S, P)."""
    return ((query[:, :, :1] * scaling) @ key.transpose(-2, -1)).float().softmax(dim=-1)[:, :, 0]


def full_map(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """(B, heads, S, S): all weights."""
    return ((query * scaling) @ key.transpose(-2, -1)).float().softmax(dim=-1)


def mean_key(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """(B, S, P): keys, mean over heads."""
    return key.mean(dim=1)


@contextlib.contextmanager
def probe(tower, modules, wanted):
    """Inside the block the attention of `tower` also records. modules: all its attention modules, in order; wanted {number:
    {name: function}}: what to record of which. Yields a list, one entry a module: a list of dicts, one a call (windows are
    calls of their own)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = tower.config._attn_implementation
    records = [[] for _ in modules]
    try:
        for number, module in enumerate(modules):
            eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
            run = ALL_ATTENTION_FUNCTIONS.get_interface(before, eager)
            setattr(module, PROBE, (run, records[number], wanted.get(number)))
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(
            NAME, ALL_MASK_ATTENTION_FUNCTIONS[before if before in ALL_MASK_ATTENTION_FUNCTIONS else "sdpa"]
        )
        tower.set_attn_implementation(NAME)
        yield records
    finally:
        tower.set_attn_implementation(before)
        for module in modules:
            if hasattr(module, PROBE):
                delattr(module, PROBE)


# ----------------------------------------------------------------------------------------------------------------- LLaVA
class Llava:
    """LlavaForConditionalGeneration: `tower` -> `multi_modal_projector` -> `language`."""

    default_positions = "renumber"

    def __init__(self, model):
        self.model, self.core = model, model.model
        self.language, self.tower = self.core.language_model, self.core.vision_tower
        self.image_token = model.config.image_token_id
        select, strategy = model.config.vision_feature_layer, model.config.vision_feature_select_strategy
        inner = getattr(self.tower, "vision_model", self.tower)
        if not hasattr(getattr(inner, "encoder", None), "layers") or not isinstance(select, int):
            raise ValueError(
                f"vision tower {type(self.tower).__name__} with vision_feature_layer={select!r} is not "
                "supported: needs CLIP's or SigLIP's tower and one layer"
            )
        self.attentions = [layer.self_attn for layer in inner.encoder.layers]
        self.num_layers = len(self.attentions)
        self.num_prefix = int(hasattr(inner.embeddings, "class_embedding"))
        if strategy != ("default" if self.num_prefix else "full"):
            raise ValueError(
                f"vision_feature_select_strategy={strategy!r} does not fit {type(self.tower).__name__}, whose "
                f"patches stand behind {self.num_prefix} other tokens"
            )
        self.selected = select % (self.num_layers + 1)  # index into the hidden states
        if self.selected == 0:
            raise ValueError(f"vision_feature_layer={select}: the embeddings have no attention")
        self.deep = self.selected - 1  # the layer that made them

    def read(self, inputs, need=(), attention=(), hidden=()):
        """inputs: keyword arguments of the model's forward. -> [(numbers of the images, VisionOutputs)], one entry: all images
        have one size."""
        pixels = inputs["pixel_values"]
        for name in ("vision_feature_layer", "vision_feature_select_strategy", "image_sizes"):
            given = inputs.get(name)
            if given is not None and given != getattr(self.model.config, name, None):
                raise ValueError(
                    f"{name}={given!r} in a forward call is not supported while pruning: set it in the model's configuration"
                )
        wanted = {layer: {"map": full_map} for layer in attention}
        for name, function in (("cls_row", cls_row), ("keys", mean_key)):
            if name in need:
                wanted.setdefault(self.deep, {})[name] = function
        states = sorted({self.selected, *hidden})
        with probe(self.tower, self.attentions, wanted) as records:
            out = self.tower(pixels, output_hidden_states=states, return_dict=True).hidden_states
        seen = records[self.deep][0] if wanted.get(self.deep) else {}
        patch = self.tower.config.patch_size
        vision = VisionOutputs(
            out[self.selected],
            (pixels.shape[-2] // patch, pixels.shape[-1] // patch),
            self.core.multi_modal_projector,
            self.num_prefix,
            seen["cls_row"][..., self.num_prefix :] if "cls_row" in need else None,
            seen.get("keys"),
            {layer: records[layer][0]["map"] for layer in attention},
            {index: out[index] for index in hidden},
        )
        return [(list(range(len(pixels))), vision)]

    def positions(self, inputs, size, past):
        """Position ids (B, size) as the model itself would number a prompt, or tokens behind `past` others."""
        start = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        return torch.arange(past, past + size, device=start.device).expand(len(start), -1)


# ------------------------------------------------------------------------------------------------------------ Qwen2.5-VL
class Qwen:
    """Qwen2_5_VLForConditionalGeneration: `tower` with windows and its `merger` -> `language` with three-part positions."""

    default_positions = "keep"
    num_prefix = 0

    def __init__(self, model):
        self.model, self.core = model, model.model
        self.language, self.tower = self.core.language_model, self.core.visual
        self.image_token = model.config.image_token_id
        self.attentions = [block.attn for block in self.tower.blocks]
        self.num_layers = self.selected = len(self.attentions)
        self.deep = self.num_layers - 1
        self.merge = self.tower.spatial_merge_size

    def project(self, features):
        """The merger: (..., 4 C) -> (..., D)."""
        return self.tower.merger(features.reshape(-1, features.shape[-1] // self.merge**2)).unflatten(0, features.shape[:-1])

    def _order(self, grids):
        config, module = self.tower, sys.modules[type(self.tower).__module__]
        if hasattr(module, "get_vision_window_index"):
            return module.get_vision_window_index(grids, self.merge, config.window_size, config.patch_size)[0].to(grids.device)
        return config.get_window_index(grids)[0].to(grids.device)

    def read(self, inputs, need=(), attention=(), hidden=()):
        """As `Llava.read`. Images with one grid share an entry."""
        grids = inputs.get("image_grid_thw")
        if grids is None:
            raise ValueError("image_grid_thw is missing: Qwen2.5-VL's processor gives it together with pixel_values")
        if (grids[:, 0] != 1).any():
            raise ValueError(f"image_grid_thw={grids.tolist()}: only still images (t = 1) can be pruned")
        wanted = {layer: {"map": full_map} for layer in attention}
        keys, states = [], {}
        with contextlib.ExitStack() as stack:
            records = stack.enter_context(probe(self.tower, self.attentions, wanted))

            def watch(register, hook):
                stack.callback(register(hook).remove)

            if "keys" in need:  # before they are rotated
                watch(self.attentions[self.deep].qkv.register_forward_hook, lambda module, args, out: keys.append(out))
            if 0 in hidden:
                watch(self.tower.blocks[0].register_forward_pre_hook, lambda module, args: states.update({0: args[0]}))
            for index in {self.selected, *hidden} - {0}:
                block = self.tower.blocks[index - 1]
                watch(block.register_forward_hook, lambda module, args, out, index=index: states.update({index: out}))
            tokens = self.tower(inputs["pixel_values"].to(self.tower.dtype), grid_thw=grids, return_dict=True).pooler_output
        order, unit = self._order(grids), self.merge**2
        back = order.argsort()  # raster place -> place in the tower

        def raster(x):  # (4 N, C) -> (N, 4, C), all images
            return x.unflatten(0, (-1, unit))[back]

        states = {index: raster(state).flatten(1) for index, state in states.items()}
        if keys:
            mean = keys[0].unflatten(-1, (3, self.attentions[self.deep].num_heads, -1))[:, 1].mean(dim=1)
            keys = raster(mean).mean(dim=1)  # n p
        sizes = (grids.prod(dim=1) // unit).tolist()
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        alike = {}
        for image, grid in enumerate(grids.tolist()):
            alike.setdefault((grid[1] // self.merge, grid[2] // self.merge), []).append(image)
        found = []
        for grid, images in alike.items():
            rows = [slice(starts[i], starts[i] + sizes[i]) for i in images]
            maps = {
                layer: torch.stack([self._map(records[layer], starts[i], sizes[i], order) for i in images]) for layer in attention
            }
            split = {index: torch.stack([state[r] for r in rows]) for index, state in states.items()}
            vision = VisionOutputs(
                split[self.selected],
                grid,
                self.project,
                0,
                None,
                torch.stack([keys[r] for r in rows]) if "keys" in need else None,
                maps,
                {index: split[index] for index in hidden},
            )
            vision.tokens = torch.stack([tokens[r] for r in rows])  # the tower has merged them already
            found.append((images, vision))
        return found

    def _map(self, calls, start, size, order):
        """(heads, n, n) of one image, from calls on consecutive pieces of the sequence."""
        unit, place = self.merge**2, 0
        heads, first = calls[0]["map"].shape[1], calls[0]["map"]
        whole = first.new_zeros(heads, size * unit, size * unit)
        for call in calls:
            part, length = call["map"][0], call["map"].shape[-1]
            here = place - start * unit
            if 0 <= here < size * unit:
                whole[:, here : here + length, here : here + length] = part
            place += length
        merged = whole.unflatten(1, (size, unit)).unflatten(3, (size, unit)).mean(dim=2).sum(dim=-1)  # h n n
        back = (order[start : start + size] - start).argsort()
        return merged[:, back][:, :, back]

    def positions(self, inputs, size, past):
        """Position ids (3, B, size) as the model itself would number a prompt, or tokens behind `past` others."""
        start = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        mask = inputs.get("attention_mask")
        if past == 0:
            found = self.core.compute_3d_position_ids(
                input_ids=inputs["input_ids"],
                image_grid_thw=inputs.get("image_grid_thw"),
                video_grid_thw=None,
                inputs_embeds=start,
                attention_mask=mask,
                past_key_values=None,
                mm_token_type_ids=inputs.get("mm_token_type_ids"),
            )
            if found is not None:
                return found
            return torch.arange(size, device=start.device).expand(3, len(start), -1)
        place = torch.arange(past, past + size, device=start.device).expand(len(start), -1)
        if mask is not None:
            place = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -size:]
        shift = 0 if self.core.rope_deltas is None else self.core.rope_deltas.to(place.device)
        return (place + shift).expand(3, -1, -1)


FAMILIES = {"llava": Llava, "qwen2_5_vl": Qwen}


def family(model):
    """What this module knows of a model: `Llava` or `Qwen`. ValueError for any other class."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES or not hasattr(getattr(model, "model", None), "language_model"):
        raise ValueError(
            f"model={type(model).__name__} is not supported: needs LlavaForConditionalGeneration or "
            "Qwen2_5_VLForConditionalGeneration, or CLIPModel for CrossGET"
        )
    return FAMILIES[kind](model)
