"""Arguments of a forward that go with the tokens of `input_ids`: those that follow a pruned prompt,
and those that cannot and are refused by name.

Some have one number for each token: attention_mask, position_ids, labels and `ALIGNED` are cut
along. An argument that is not known, and whose shape says that it goes with the tokens, would be
taken for the pruned prompt's; so would lists of packed sequences.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.checks import describe

ALIGNED = ("token_type_ids", "mm_token_type_ids")  # (B, S) arguments that are cut along
VISUAL = ("image", "video")
PIXELS = ("pixel_values", "pixel_values_videos", "pixel_values_images", "image_patches")
"""What a forward brings images and videos in."""
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""What says where the sequences of a row begin, for flash attention."""


def named(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward, all by their names.

    Args:
        module: whose forward.
        args: what came without a name.
        kwargs: the rest.
    """
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return {**kwargs, **dict(zip(names, args, strict=False))}


def has_images(kwargs: dict[str, Any]) -> bool:
    """Whether a forward brings images or videos."""
    ready = kwargs.get("mm_encoder_outputs")
    given = isinstance(ready, Mapping) and any(ready.get(k) is not None for k in VISUAL)
    return given or any(kwargs.get(name) is not None for name in PIXELS)


def flat_mask(kwargs: dict[str, Any]) -> Any:
    """attention_mask (B, S) of a prompt for which `generate` has made (B, 1, S, keys), or a dict of
    those, as it does for static caches: what the last token sees. Others as they are."""
    mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
    if isinstance(mask, Mapping):
        mask = next((part for part in mask.values() if part is not None), None)
    if not isinstance(mask, Tensor) or mask.dim() != 4 or not isinstance(ids, Tensor):
        return mask
    last = mask[:, 0, -1, : ids.shape[1]]
    return (last if last.dtype == torch.bool else last == 0).long()


def aligned(kwargs: dict[str, Any], draft: int) -> dict[str, Tensor]:
    """The arguments of `ALIGNED`, as long as input_ids: transformers leaves a draft out of some.
    ValueError for other shapes."""
    ids, out = kwargs["input_ids"], {}
    for name in ALIGNED:
        value = kwargs.get(name)
        if value is None:
            continue
        _check_tensor(value, name)
        short = ids.shape[1] - value.shape[-1] if value.dim() == 2 else -1
        if short not in (0, draft) or len(value) != len(ids):
            raise ValueError(f"{name} has shape {tuple(value.shape)} but {_size(ids)}")
        out[name] = torch.cat([value, value.new_zeros(len(value), short)], dim=1)
    return out


# ------------------------------------------------------------------------------ what is refused
def check_prompt(core: nn.Module, kwargs: dict[str, Any], parts: Sequence[int]) -> None:
    """ValueError for arguments of a prompt that cannot follow its tokens.

    Args:
        core: the multimodal model.
        kwargs: arguments of its forward.
        parts: how many parts position_ids of three axes may have; none: they have two axes.
    """
    _check_ids(kwargs)
    ids = kwargs["input_ids"]
    if kwargs.get("pixel_values") is not None:
        _check_tensor(kwargs["pixel_values"], "pixel_values")
    _check_mask(kwargs.get("attention_mask"), ids)
    _check_positions(kwargs.get("position_ids"), ids, parts)
    _check_packed(kwargs)
    known = set(inspect.signature(type(core).forward).parameters) | set(ALIGNED)
    for name in kwargs.keys() - known:
        shape = _shape(kwargs[name])
        if ids.shape[1] in shape:
            raise ValueError(
                f"{name} of shape {shape} goes with the {ids.shape[1]} tokens of input_ids and "
                "cannot follow those that are pruned: leave it out"
            )


def _size(ids: Tensor) -> str:
    return f"input_ids {tuple(ids.shape)}"


def _check_tensor(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}: needs a torch tensor")


def _check_ids(kwargs: dict[str, Any]) -> None:
    ids = kwargs.get("input_ids")
    if ids is None:
        raise ValueError("input_ids is missing: it says where the images' tokens stand")
    if kwargs.get("inputs_embeds") is not None:
        raise ValueError("input_ids and inputs_embeds together: pass input_ids alone")
    _check_tensor(ids, "input_ids")
    if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"input_ids has shape {tuple(ids.shape)} and dtype {ids.dtype}: needs (B, S) long"
        )


def _check_mask(mask: Any, ids: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise ValueError(
            f"attention_mask must be (B, S), 1 for tokens and 0 for padding, but is "
            f"{describe(mask)}"
        )
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)} but {_size(ids)}")


def _check_positions(given: Any, ids: Tensor, parts: Sequence[int]) -> None:
    if given is None:
        return
    _check_tensor(given, "position_ids")
    shape, size = tuple(given.shape), ids.shape[1]
    known = [(), *((part,) for part in parts)]
    if shape[-2:] not in ((1, size), (len(ids), size)) or shape[:-2] not in known:
        needs = "(B, S)"
        if parts:
            needs += f", or (P, B, S) with P one of {tuple(parts)}"
        raise ValueError(
            f"position_ids has shape {shape} but {_size(ids)}: needs {needs}"
        )


def _check_packed(kwargs: dict[str, Any]) -> None:
    """Several sequences in one row: by name, or as transformers finds them where there is neither
    a mask nor a cache, by positions that do not go up by 1."""
    for name in PACKED:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{name} says where sequences of one row begin, which pruning moves: one sequence "
                "a row, padded"
            )
    given = kwargs.get("position_ids")
    if given is None or given.dim() != 2 or given.is_meta:
        return
    if kwargs.get("attention_mask") is None and (given.diff(dim=-1) < 0).any():
        raise ValueError(
            "position_ids begin anew within a row: several sequences in one are not supported "
            "while pruning; one sequence a row, padded"
        )


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of a tensor, an array, a list (of lists); () for anything else."""
    if isinstance(value, (list, tuple)):
        return (len(value), *(_shape(value[0]) if value else ()))
    shape = getattr(value, "shape", ())
    return tuple(shape) if isinstance(shape, (tuple, torch.Size)) else ()
