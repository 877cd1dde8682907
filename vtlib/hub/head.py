"""Arguments of a model's head that count places of the prompt: `labels` and `logits_to_keep`.

The prompt gets shorter behind the head's back, so both wait until it is known what is left.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..nn.checks import check_index, check_int
from ..tokens import take
from .arguments import flat_mask
from .cuts import Level, Run

IGNORED = -100  # the label that transformers' losses leave out


@dataclass
class Wishes:
    """What a forward of the head asks for beside the prompt. mask: its attention_mask; more: what
    the loss gets beside logits and labels."""

    labels: Tensor | None
    logits_to_keep: int | Tensor
    mask: Tensor | None
    more: dict[str, Any]


def wishes(kwargs: dict[str, Any], parameters: set[str]) -> Wishes:
    """Take `labels` and `logits_to_keep` out of a forward's arguments. parameters: the
    names in the forward's signature; other arguments go to the loss. ValueError for what cannot
    follow the pruned prompt."""
    ids, labels = kwargs.get("input_ids"), kwargs.pop("labels", None)
    keep = _checked_keep(kwargs.pop("logits_to_keep", 0))
    if kwargs.get("shift_labels") is not None:
        raise ValueError("shift_labels is not supported while pruning: pass labels")
    if labels is not None:
        _check_labels(labels, ids)
        if isinstance(keep, Tensor) or keep:
            raise ValueError("labels and logits_to_keep together: a loss needs all logits")
    more = {name: value for name, value in kwargs.items() if name not in parameters}
    return Wishes(labels, keep, flat_mask(kwargs), more)


def _check_labels(labels: Any, ids: Any) -> None:
    """One label a token, as without pruning."""
    check_index(labels, "labels", "(B, S)", ids.shape if isinstance(ids, Tensor) else None)


def _checked_keep(keep: Any) -> int | Tensor:
    """An int, or columns as a tensor of one axis, also from a list."""
    if isinstance(keep, (list, tuple)):
        keep = torch.tensor(keep, dtype=torch.int64, device="cpu")
    if not isinstance(keep, Tensor):
        return check_int(keep, "logits_to_keep", least=0)
    if keep.dim() != 1 or keep.is_floating_point():
        raise ValueError(
            f"logits_to_keep is a {keep.dtype} tensor of shape {tuple(keep.shape)}: needs an int, "
            "or columns of input_ids as a tensor (k,) long"
        )
    return keep


def places(level: Level, wish: Wishes, full: int) -> Tensor:
    """(B, k): where the columns of `logits_to_keep` are in the last level.

    Args:
        level: the last one.
        wish: with logits_to_keep.
        full: length of the prompt before pruning.

    ValueError for one that was pruned away.
    """
    device, keep = level.columns.device, wish.logits_to_keep
    if isinstance(keep, int):
        columns = torch.arange(max(full - keep, 0), full, device=device)
    else:
        columns = _columns(keep.to(device), full)
    here = level.valid
    if wish.mask is not None:  # the padding of the prompt itself may be asked for as well
        here = here | (wish.mask.gather(1, level.columns) == 0)
    found = (level.columns[:, :, None] == columns) & here[:, :, None]  # b s' k
    if not found.any(dim=1).all():
        lost = columns[~found.any(dim=1).all(dim=0)].tolist()
        raise ValueError(
            f"logits_to_keep={keep} asks for columns {lost[:5]} of input_ids, which are pruned "
            "away: ask for words behind the images, or for all (0) and see `columns`"
        )
    return found.long().argmax(dim=1)


def _columns(keep: Tensor, full: int) -> Tensor:
    """The columns of a prompt of `full` tokens that an index or a mask (k,) asks for."""
    if keep.dtype is torch.bool:
        fits = len(keep) == full
    else:
        fits = not len(keep) or (-full <= int(keep.min()) and int(keep.max()) < full)
    if not fits:
        raise ValueError(
            f"logits_to_keep={keep.tolist()} does not fit the {full} tokens of input_ids"
        )
    return torch.arange(full, device=keep.device)[keep]


def chosen(out: Any, run: Run, wish: Wishes) -> Any:
    """The model's output with those hidden states alone that are asked for.

    Args:
        out: of the model without its head.
        run: the prompt.
        wish: with logits_to_keep.
    """
    if not isinstance(wish.logits_to_keep, Tensor) and wish.logits_to_keep == 0:
        return out
    here = places(run.levels[-1], wish, run.full)
    if isinstance(out, tuple):
        return take(out[0], here), *out[1:]
    name = "last_hidden_state" if hasattr(out, "last_hidden_state") else "logits"
    out[name] = take(out[name], here)
    return out


def add_loss(model: Any, out: Any, wish: Wishes, run: Run) -> Any:
    """The head's output with the loss of its labels, of which those of pruned tokens are gone:
    `labels.gather(1, columns)`, and none for padding.

    Args:
        model: has the loss function.
        out: with logits.
        wish: with labels.
        run: the prompt.
    """
    level = run.levels[-1]
    labels = wish.labels.to(level.columns.device).gather(1, level.columns)
    labels = labels.masked_fill(~level.valid, IGNORED)
    logits = out[0] if isinstance(out, tuple) else out.logits
    size = model.config.text_config.vocab_size
    loss = model.loss_function(logits=logits, labels=labels, vocab_size=size, **wish.more)
    if isinstance(out, tuple):
        return loss, *out
    return type(out)(**{**out, "loss": loss})
