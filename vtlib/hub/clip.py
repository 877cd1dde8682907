"""CrossGET inside transformers' CLIPModel, and what a CLIPModel knows of a question.

    with merge_tokens(clip, keep=49) as merged:         at most 49 patches are left behind the
        clip(pixel_values=..., input_ids=...)           image tower's last layer
    signals = question_signals(clip, question_ids)
    with prune(llava, "recoverable", keep=64, signals=signals): ...

What hooks do in a tower, `clip_tower` says.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ..nn.checks import check_int
from ..pruning import crossget
from ..tokens import resolve_keep
from .clip_tower import Merging, Tower
from .hooks import Members, alone

CROSSGET = (None, crossget, crossget.METHOD)


class Merged:
    """What `merge_tokens` gives. image, text: the `Tower`s, None for one that was left as it is."""

    def __init__(self, image: Tower | None, text: Tower | None):
        self.image, self.text = image, text

    @property
    def towers(self) -> list[Tower]:
        return [tower for tower in (self.image, self.text) if tower is not None]


def merge_tokens(
    model: Any,
    method: Any = None,
    keep: int | float | None = None,
    *,
    r: int | None = None,
    r_text: int = 0,
    cross_image: Tensor | None = None,
    cross_text: Tensor | None = None,
    guidance: float = 1.0,
    matching: str = "complete",
):
    """A context in which a CLIPModel merges tokens in every layer as CrossGET does; gives a
    `Merged`.

    A tower with nothing to merge and no trained cross token is left as it is, to the last bit.
    Several threads may run in one block, which begins before them. Gradients reach all that is
    merged; with gradient checkpointing a forward is refused.

    Args:
        model: a CLIPModel; texts are padded at their end.
        method: None or "crossget".
        keep: patches that are left behind the image tower's last layer, at most, an int or a
            fraction; or
        r: tokens merged away in each of its layers.
        r_text: the same in the text tower.
        cross_image: (layers, D) trained cross tokens; None: zeros, so that the image's is a copy of
            [CLS].
        cross_text: the same of the text tower, a copy of [EOT].
        guidance: factor on the importance.
        matching: "complete" or "bipartite".

    ValueError for another model or method, keep and r both or neither (r_text alone is fine), keep
    out of range.
    """
    _check_model(model, method)
    if matching not in crossget.METHODS:
        raise ValueError(f"matching={matching!r} must be one of {crossget.METHODS}")
    r_text = check_int(r_text, "r_text", least=0)
    if (keep is None) == (r is None) and not (keep is None and r_text):
        raise ValueError(f"keep={keep}, r={r}: needs one of the two")
    if keep is not None:
        r = _rate(model.config.vision_config, keep)
    r = 0 if r is None else check_int(r, "r", least=0)
    image = text = None
    if r or cross_image is not None:
        merging = Merging(r, cross_image, guidance, matching)
        image = Tower(model.vision_model, merging, text=False)
    if r_text or cross_text is not None:
        merging = Merging(r_text, cross_text, guidance, matching)
        text = Tower(model.text_model, merging, text=True)
    return _attached(model, Merged(image, text))


def _check_model(model: Any, method: Any) -> None:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind != "clip" or not hasattr(model, "vision_model"):
        raise ValueError(f"model={type(model).__name__} is not supported: needs CLIPModel")
    if method != "crossget" and not any(method is known for known in CROSSGET):
        raise ValueError(
            f"method={method!r}: a dual encoder has no language model to prune for; needs "
            "'crossget'"
        )


def _rate(config: Any, keep: int | float) -> int:
    """Tokens to merge in each layer of the image tower."""
    patches = (config.image_size // config.patch_size) ** 2
    tokens = patches + 2  # with [CLS] and the cross token
    return crossget.rate(resolve_keep(keep, patches) + 2, tokens, config.num_hidden_layers)


@contextlib.contextmanager
def _attached(model: nn.Module, merged: Merged) -> Iterator[Merged]:
    with alone(model, "merging") as hooks:
        members = Members()
        for tower in merged.towers:
            tower.attach(hooks, members)
        yield merged


def question_signals(
    clip: Any, question: Tensor
) -> Callable[[dict[str, Any]], dict[str, Tensor]]:
    """For `prune(llava, "recoverable", signals=...)`: what Recoverable Compression reads beside
    LLaVA's features, from a CLIP.

    clip, a CLIPModel, sees the same pixel_values as LLaVA. question (1 or M, L): its token ids,
    padded to the length that it was trained with, one row or one for each of M images. -> a
    function of a forward's arguments that gives query and key (M, 1 + N, C) of the last layer,
    patches (M, N, D) and text (M, D) in the joint space: the text tower's last position, as in the
    release. It raises ValueError for pictures in another form, and for another number of rows.
    """

    def signals(inputs: dict[str, Any]) -> dict[str, Tensor]:
        pixels = inputs["pixel_values"]
        if pixels.dim() != 4:
            raise ValueError(
                f"pixel_values has shape {tuple(pixels.shape)} but {type(clip).__name__} needs "
                "pictures (M, 3, H, W), as LLaVA has them"
            )
        vision = clip.vision_model(pixels, output_hidden_states=True)
        layer = clip.vision_model.encoder.layers[-1]
        entered = layer.layer_norm1(vision.hidden_states[-2])  # of the last layer
        text = clip.text_projection(clip.text_model(question).last_hidden_state[:, -1])
        if len(text) not in (1, len(pixels)):
            raise ValueError(
                f"question has {len(text)} rows but there are {len(pixels)} images: needs one row, "
                "or one for each"
            )
        return {
            "query": layer.self_attn.q_proj(entered),
            "key": layer.self_attn.k_proj(entered),
            "patches": clip.visual_projection(vision.last_hidden_state[:, 1:]),
            "text": text.expand(len(pixels), -1),
        }

    return signals
