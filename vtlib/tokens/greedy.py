"""Greedy max-min selection: tokens that lie far from each other, one at a time."""

import torch
from torch import Tensor

from ..nn.checks import check_range, check_tokens
from .checks import check_scores
from .cosine import check_cosines, cosines
from .groups import groups
from .precision import full_precision
from .select import resolve_keep


def greedy_maxmin(
    tokens: Tensor,
    keep: int | float,
    weight: Tensor | None = None,
    first: str | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Greedy max-min selection: again and again the token farthest from its nearest chosen one.

        i_t = argmax over i not chosen of  w_i min over chosen j of d(i, j)
        d(i, j) = 1 - cos(x_i, x_j)

    Without weights gains[:, 1:] never rise and gains[:, -1] is the smallest distance in the set. A
    chosen token is masked, so no token comes twice, not even among exact copies; ties go to the
    lower index. Computed in float32 at least, gains come in the dtype of the tokens; no gradient.

    Cost N^2 D for the cosines and N T for the choices: one running vector "nearest chosen" instead
    of T scans of the whole set. On a CPU images go in groups whose distances stay in its cache
    (`groups`), so a large batch needs no more memory than a small one; elsewhere all at once.

    Args:
        tokens: (B, N, D).
        keep: T, an int or a fraction (`resolve_keep`).
        weight: (B, N), w >= 0; None is 1.
        first: how the first token is chosen. None: argmax of w_i min over j != i of d(i, j), the
            most isolated token; "weight": argmax w; a tensor (B,) of indices: these tokens.

    Returns index (B, T) long in order of choice, and gains (B, T): the score of each choice when it
    was made. gains[:, 0] is w when first="weight", otherwise the weighted distance to the nearest
    other token (inf when N = 1).

    Raises ValueError: keep out of range, shapes that do not fit, tokens or weights that are not
    floating or not finite, an unknown `first`.
    """
    check_tokens(tokens)
    keep = resolve_keep(keep, tokens.shape[1])
    if weight is not None:
        check_scores(weight, "weight", tuple(tokens.shape[:2]))
    _check_first(first, tokens, weight)
    with torch.no_grad(), full_precision(tokens.device):
        several = groups(len(tokens), tokens.shape[1] ** 2, tokens.device)
        parts = [_choose(tokens, group, keep, weight, first) for group in several]
    index = torch.cat([part_index for part_index, _ in parts])
    gains = torch.cat([part_gains for _, part_gains in parts])
    return index, gains.to(tokens.dtype)


def _check_first(first: str | Tensor | None, tokens: Tensor, weight: Tensor | None) -> None:
    batch, num_tokens, _ = tokens.shape
    if isinstance(first, Tensor):
        if first.shape != (batch,) or first.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"first has shape {tuple(first.shape)}, {first.dtype}, but needs one index "
                f"an image, int64 ({batch},)"
            )
        check_range(first, "first", 0, num_tokens)
        return
    if first is not None and not (isinstance(first, str) and first == "weight"):
        raise ValueError(
            f"first={first!r} must be None (most isolated), 'weight' (largest weight) or a tensor "
            f"(B,) of indices"
        )
    if first == "weight" and weight is None:
        raise ValueError("first='weight' but weight=None: it needs weights (B, N)")


def _choose(
    tokens: Tensor, group: slice, keep: int, weight: Tensor | None, first: str | Tensor | None
) -> tuple[Tensor, Tensor]:
    """`greedy_maxmin` of a group of images together; gains are float32 at least.

    Args:
        tokens: as in `greedy_maxmin`, of all images.
        group: which of them.
        keep: as in `greedy_maxmin`, an int.
        weight: as in `greedy_maxmin`, checked.
        first: as in `greedy_maxmin`, checked.
    """
    distance = cosines(tokens[group])
    check_cosines(distance, tokens, "tokens")
    torch.sub(1, distance, out=distance)                            # b n n
    batch, num_tokens, _ = distance.shape
    itself = distance.diagonal(dim1=1, dim2=2)
    weight = None if weight is None else weight[group].to(distance.dtype)

    itself.fill_(torch.inf)                                         # nobody is its own neighbour
    if isinstance(first, str) and weight is not None:               # "weight"
        gain, chosen = weight.max(dim=1)
    else:
        alone = distance.amin(dim=2)                                # b n
        gain = alone if weight is None else weight * alone
        if isinstance(first, Tensor):
            chosen = first[group].long()
            gain = gain.gather(1, chosen[:, None])[:, 0]
        else:
            gain, chosen = gain.max(dim=1)

    itself.fill_(-torch.inf)                                        # a chosen token is never far
    rows = distance.view(batch * num_tokens, num_tokens)            # token i of image b: b n + i
    offset = torch.arange(batch, device=rows.device) * num_tokens
    nearest = torch.full_like(distance[:, 0], torch.inf)            # b n: to the nearest chosen
    to_last = torch.empty_like(nearest)                             # b n: to the last chosen
    index, gains = [chosen], [gain]
    for _ in range(keep - 1):
        torch.index_select(rows, 0, offset + chosen, out=to_last)
        torch.minimum(nearest, to_last, out=nearest)
        score = nearest
        if weight is not None:
            score = (weight * nearest).masked_fill_(nearest == -torch.inf, -torch.inf)
        gain, chosen = score.max(dim=1)
        index.append(chosen)
        gains.append(gain)
    return torch.stack(index, dim=1), torch.stack(gains, dim=1)
