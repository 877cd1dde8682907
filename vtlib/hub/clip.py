"""CrossGET inside transformers' CLIPModel, and what a CLIPModel knows of a question.

    with merge_tokens(clip, keep=49) as merged:                  at most 49 patches are left behind the image tower's last layer
        clip(pixel_values=..., input_ids=...)                    or get_image_features, get_text_features
    with prune(llava, "recoverable", keep=64, signals=question_signals(clip, question_ids)): ...

Hooks do what `vtlib.pruning.crossget` does in its own dual encoder: append the cross token, renew it in each layer, count merged
tokens by their size in the attention, and merge between attention and MLP. A layer of transformers adds the MLP's output to what
the attention left, which has too many tokens; so the MLP's hook hands over nothing, and the layer's hook gives the sum itself.
"""

import contextlib
import math

import torch
from torch import Tensor

from ..pruning import crossget
from ..tokens import resolve_keep, take

CROSSGET = (None, "crossget", crossget, crossget.METHOD)
ATTENTIONS = ("sdpa", "eager")


class Tower:
    """One tower of a CLIPModel while it merges. Of its last forward: plans, one a layer (None: nothing merged there), over its
    tokens ([CLS], patches, cross token; in text: tokens, cross token); lengths: tokens behind each layer; size (B, t)."""

    def __init__(self, tower, text, r, cross, guidance, matching):
        self.tower, self.text, self.r, self.guidance, self.matching = tower, text, r, guidance, matching
        layers, dim = len(tower.encoder.layers), tower.config.hidden_size
        cross = torch.zeros(layers, dim) if cross is None else cross.reshape(-1, cross.shape[-1])
        if cross.shape != (layers, dim):
            name = "cross_text" if text else "cross_image"
            raise ValueError(
                f"{name} has shape {tuple(cross.shape)} but the tower needs {(layers, dim)}: a vector for each layer"
            )
        if tower.config._attn_implementation not in ATTENTIONS:
            raise ValueError(f"attention {tower.config._attn_implementation!r} takes no sizes: use one of {ATTENTIONS}")
        self.cross, self.plans, self.lengths, self.size = cross, [], [], None
        self.eot = self.origin = None

    def attach(self, handles):
        """Register all hooks."""
        tower = self.tower
        if self.text:
            handles.append(tower.register_forward_pre_hook(self.no_mask, with_kwargs=True))
            handles.append(tower.embeddings.register_forward_hook(self.append_to_text, with_kwargs=True))
            handles.append(tower.final_layer_norm.register_forward_pre_hook(self.put_back))
        else:
            handles.append(tower.pre_layrnorm.register_forward_pre_hook(self.append_to_image))
        for number, layer in enumerate(tower.encoder.layers):
            self.attach_layer(number, layer, handles)

    # ------------------------------------------------------------------------------------------------------ the cross token
    def start(self, x):
        self.plans, self.lengths, self.size = [], [], x.new_ones(x.shape[:2], dtype=torch.float32)
        self.origin = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return x

    def append_to_image(self, norm, args):
        return (self.start(torch.cat([args[0], args[0][:, :1]], dim=1)),)

    def no_mask(self, tower, args, kwargs):
        """[EOT] sees what is before it, where there is no padding: the causal mask of the layers' hooks is enough."""
        return args, {**kwargs, "attention_mask": None}

    def append_to_text(self, embeddings, args, kwargs, x):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        stop = self.tower.eos_token_id
        self.eot = ids.argmax(dim=-1) if stop == 2 else (ids == stop).int().argmax(dim=-1)  # as CLIPTextModel finds it
        self.first = self.eot
        return self.start(torch.cat([x, take(x, self.eot[:, None])], dim=1))

    def put_back(self, norm, args):
        """Survivors to where they were in the text, zeros elsewhere: CLIPTextModel takes [EOT]'s state from its first place."""
        x, length = args[0], int(self.first_length)
        out = x.new_zeros(len(x), length, x.shape[-1])
        return (out.scatter(1, self.origin[..., None].expand_as(x), x)[:, :-1],)

    @property
    def first_length(self):
        return self.size.shape[1] + sum(plan.num_tokens - len(plan) for plan in self.plans if plan is not None)

    # -------------------------------------------------------------------------------------------------------------- a layer
    def attach_layer(self, number, layer, handles):
        seen = {}

        def enter(module, args, kwargs):
            x = args[0]
            past = x[:, -1] if self.eot is None else take(x, self.eot[:, None])[:, 0]
            cross = past.detach() + self.cross[number].to(x)
            x = torch.cat([x[:, :-1], cross[:, None]], dim=1)
            seen.clear()
            return (x, self.bias(x), *args[2:]), {k: v for k, v in kwargs.items() if k != "attention_mask"}

        def merge(module, args):
            """Behind the attention: x (B, t, D) -> (B, t - r, D)."""
            x, plan = args[0], None
            if crossget.merges(self.r, x.shape[1], 2 + (self.eot is not None)):
                asking = seen["q"][:, -1] if self.eot is None else take(seen["q"], self.eot[:, None])[:, 0]
                importance = self.guidance * crossget.importance_cosine(seen["k"], asking)
                pairs = crossget.match(seen["k"], importance, self.r, eot=self.eot, method=self.matching)
                plan, self.size = crossget.ensemble(pairs, self.size)
                x, self.origin = plan.apply(x), take(self.origin, plan.index)
                if self.eot is not None:
                    self.eot = self.eot - (pairs.source < self.eot[:, None]).sum(1)
                seen["x"] = x
            self.plans.append(plan)
            self.lengths.append(x.shape[1])
            return (x,)

        def hold(module, args, out):
            if "x" not in seen:
                return None
            seen["x"] = seen["x"] + out
            return out.new_zeros(())

        def leave(module, args, out):
            return seen.get("x")

        def keep(name):
            return lambda module, args, out: seen.update({name: out})

        handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(layer.self_attn.q_proj.register_forward_hook(keep("q")))
        handles.append(layer.self_attn.k_proj.register_forward_hook(keep("k")))
        handles.append(layer.layer_norm2.register_forward_pre_hook(merge))
        handles.append(layer.mlp.register_forward_hook(hold))
        handles.append(layer.register_forward_hook(leave, prepend=True))  # before transformers' own, which records the output

    def bias(self, x):
        """(B, 1, t, t) to add to the logits: log of the key's size, and -inf for later tokens of a text."""
        bias = self.size.log()[:, None, None].expand(-1, -1, x.shape[1], -1)
        if self.text:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            bias = bias.masked_fill(later, -math.inf)
        return bias.to(x.dtype).contiguous()


class Merged:
    """What `merge_tokens` gives. image, text: the `Tower`s, None for one that was left as it is."""

    def __init__(self, image, text):
        self.image, self.text = image, text


def merge_tokens(
    model, method=None, keep=None, *, r=None, r_text=0, cross_image=None, cross_text=None, guidance=1.0, matching="complete"
):
    """A context in which a CLIPModel merges tokens in every layer as CrossGET does; gives a `Merged`.

    keep: patches that are left behind the image tower's last layer, at most, an int or a fraction; or r: tokens merged away in
    each layer. r_text: the same in the text tower. cross_image, cross_text (layers, D): trained cross tokens; None: zeros, so
    the image's is a copy of [CLS]. A tower with nothing to merge and no trained cross token is left as it is, to the last bit.
    guidance: factor on the importance. matching: "complete" or "bipartite". Texts are padded at their end.
    ValueError for another model or method, keep and r both or neither (r_text alone is fine), keep out of range.
    """
    if getattr(getattr(model, "config", None), "model_type", None) != "clip" or not hasattr(model, "vision_model"):
        raise ValueError(f"model={type(model).__name__} is not supported: needs CLIPModel")
    if not any(method is known for known in CROSSGET) and method != "crossget":
        raise ValueError(f"method={method!r}: a dual encoder has no language model to prune for; needs 'crossget'")
    if matching not in crossget.METHODS:
        raise ValueError(f"matching={matching!r} must be one of {crossget.METHODS}")
    if (keep is None) == (r is None) and not (keep is None and r_text):
        raise ValueError(f"keep={keep}, r={r}: needs one of the two")
    config = model.config.vision_config
    patches = (config.image_size // config.patch_size) ** 2
    if keep is not None:
        r = crossget.rate(resolve_keep(keep, patches) + 2, patches + 2, config.num_hidden_layers)
    for name, value in (("r", r or 0), ("r_text", r_text)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name}={value!r} must be an int >= 0, the tokens merged away in each layer")
    image = Tower(model.vision_model, False, r or 0, cross_image, guidance, matching) if r or cross_image is not None else None
    text = Tower(model.text_model, True, r_text, cross_text, guidance, matching) if r_text or cross_text is not None else None
    return _attached(model, Merged(image, text))


@contextlib.contextmanager
def _attached(model, merged):
    if hasattr(model, "_vtlib_merged"):
        raise ValueError("model=CLIPModel is merging already: leave that block first")
    handles = []
    try:
        model._vtlib_merged = True
        for tower in (merged.image, merged.text):
            if tower is not None:
                tower.attach(handles)
        yield merged
    finally:
        for handle in handles:
            handle.remove()
        del model._vtlib_merged


def question_signals(clip, question: Tensor):
    """For `prune(llava, "recoverable", signals=...)`: what Recoverable Compression reads beside LLaVA's features, from a CLIP.

    clip, a CLIPModel, sees the same pixel_values as LLaVA. question (1 or M, L): its token ids, padded to the length that it was
    trained with, one row or one for each of M images. -> a function of a forward's arguments that gives query and key
    (M, 1 + N, C) of the last layer, patches (M, N, D) and text (M, D) in the joint space: the text tower's last position, as in
    the release.
    """

    def signals(inputs):
        pixels, seen, handles = inputs["pixel_values"], {}, []
        attention = clip.vision_model.encoder.layers[-1].self_attn
        try:
            for name, module in (("query", attention.q_proj), ("key", attention.k_proj)):
                handles.append(module.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out})))
            last = clip.vision_model(pixels).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        text = clip.text_projection(clip.text_model(question).last_hidden_state[:, -1])
        if len(text) not in (1, len(pixels)):
            raise ValueError(f"question has {len(text)} rows but there are {len(pixels)} images: needs one row, or one for each")
        return {**seen, "patches": clip.visual_projection(last[:, 1:]), "text": text.expand(len(pixels), -1)}

    return signals
