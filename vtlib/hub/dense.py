"""An hourglass in a running ViT: fewer tokens from one block on, all of them again at the end.

    layers = Expedit(grid=(10, 10), tau=20.0, normalise="sum")
    with hourglass(model, layers, after=4) as seen:      # DINOv2, or vtlib's own ViT
        features = model(pixels).last_hidden_state       # (B, 1 + N, D), as without it

Nothing is trained and nothing stays behind: a hook in front of block `after` hands the patch tokens
to `reduce`, one behind the last block rebuilds the map. [CLS] and registers are split off before,
and put back in front; they are neither clustered nor rebuilt. What is read earlier than at the end
(DPT's taps) is rebuilt for the reader alone, the next block goes on with few tokens.

A reduction has `reduce(features (B, H, W, D))`, which gives tokens (B, M, D) and the function back
from (B, M, D) to (B, N, D): `vtlib.segmentation.Expedit`, its rival `Pooling`, or `Merging` and
`Dropping` here.
Placements: Segmenter's location l is after = l + 1; its release leaves the map small for the
decoder, restore=False.

tau multiplies squared distances, so it goes with the tokens: Segmenter's 0.02 is for long ones.
Those of DINOv2 ViT-S have mean squared norms of 1 behind 4 blocks and 8 behind 8, and want tau = 20
and 5; with 0.02 all k centres weigh nearly the same, and the map is worse than pooled.

Expedit's released reconstruction has features too long by up to sqrt(k) ("l2"). A model's last norm
forgets that; for taps, and for what is read before the norm, take normalise="sum".
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..nn import check_flag, check_int
from ..nn.checks import check_axes, check_list
from ..pruning.baselines import tome
from ..tokens import VisionOutputs, resolve_keep, take
from .hooks import Hooks, Own, alone


class Reduction(Protocol):
    """What `hourglass` takes."""

    def reduce(self, features: Tensor) -> tuple[Tensor, Any]:
        """(B, H, W, D) -> tokens (B, M, D), function (B, M, D) -> (B, H W, D)."""


@dataclass(frozen=True)
class Merging:
    """The rival that merges: ToMe's bipartite matching on the features, at one place of the model
    until `keep` tokens are left (ToMe itself merges a few in every block, by their keys). Each
    token gets back what it was merged into.

    Args:
        keep: an int, or a fraction of N.
    """

    keep: int | float = 100

    def reduce(self, features: Tensor) -> tuple[Tensor, Any]:
        """As `Reduction.reduce`."""
        check_axes(features, "features", "(B, H, W, D)")
        tokens, grid = features.flatten(1, 2), (features.shape[1], features.shape[2])
        keep = resolve_keep(self.keep, tokens.shape[1])
        plan = tome(VisionOutputs(tokens, grid, nn.Identity(), num_prefix=0), keep)
        slot = plan.slot
        if slot is None:                                                    # nothing was merged
            return tokens, nn.Identity()
        return plan.apply(tokens), lambda refined: take(refined, slot)


@dataclass(frozen=True)
class Dropping:
    """The rival that forgets: `keep` tokens drawn at random stay, and each place gets the one that
    lies nearest to it on the map (the first, where several do).

    Args:
        keep: an int, or a fraction of N.
        seed: of the draw, which is the same for every picture of a size.
    """

    keep: int | float = 100
    seed: int = 0

    def reduce(self, features: Tensor) -> tuple[Tensor, Any]:
        """As `Reduction.reduce`."""
        check_axes(features, "features", "(B, H, W, D)")
        (height, width), device = features.shape[1:3], features.device
        keep = resolve_keep(self.keep, height * width)
        generator = torch.Generator(device="cpu").manual_seed(check_int(self.seed, "seed"))
        chosen = torch.randperm(height * width, generator=generator, device="cpu")[:keep]
        chosen = chosen.sort().values.to(device)                                # m
        place = torch.arange(height * width, device=device)
        rows = (place // width)[:, None] - chosen // width                      # n m
        cols = (place % width)[:, None] - chosen % width
        nearest = (rows**2 + cols**2).argmin(1)
        return features.flatten(1, 2)[:, chosen], lambda refined: refined[:, nearest]


@contextlib.contextmanager
def hourglass(
    model: nn.Module,
    reduction: Reduction,
    after: int,
    restore: bool = True,
    taps: Sequence[int] = (),
) -> Iterator["Seen"]:
    """A context in which the model runs on few tokens from block `after` on; gives a `Seen`.

    Args:
        model: with a list of blocks, `blocks` (vtlib, timm) or `encoder.layer` or `layers`
            (transformers), a patch embedding that is its first convolution, and blocks that need
            nothing for each token but the token: no rotary tables, no mask.
        reduction: see `Reduction`.
        after: alpha, blocks on all tokens, 0 ... L - 1.
        restore: False: the last block's few tokens go out as they are.
        taps: blocks (0-based) whose outputs are wanted at full resolution, in `Seen.taps`.

    ValueError for a model without those parts, for an `after` and taps that do not exist, inside
    of another block on this model, and in the forward when blocks get tables or masks.
    """
    blocks, patches = _blocks(model), _patches(model)
    if not callable(getattr(reduction, "reduce", None)):
        raise ValueError(
            f"reduction={reduction!r} needs a method reduce(features), as Expedit, Pooling and "
            "Merging have"
        )
    after = check_int(after, "after", 0, len(blocks) - 1)
    restore = check_flag(restore, "restore")
    wanted = check_list(taps, "taps", "numbers of blocks")
    wanted = [check_int(tap, "taps", 0, len(blocks) - 1) for tap in wanted]
    with alone(model, "in an hourglass") as hooks:
        seen = Seen(reduction)
        seen.attach(hooks, patches, blocks, after, restore, wanted)
        yield seen


class Current(Own):
    """What each thread is at. size: (H, W) of the picture's map. before, tokens: see `Seen`.
    prefix: how many tokens are no patches. back: the function that rebuilds. taps: see `Seen`."""

    size: tuple[int, int] | None = None
    before: Tensor | None = None
    tokens: Tensor | None = None
    prefix: int = 0
    back: Any = None
    taps: dict[int, Tensor] | None = None


class Seen:
    """What `hourglass` gives. It tells of this thread's last forward, None before one:

    size: (H, W), the map. before: (B, N, D), patch tokens right before the reduction. tokens:
    (B, M, D), right after it. taps {block: (B, prefix + N, D)}: outputs at full resolution.
    """

    def __init__(self, reduction: Reduction) -> None:
        self.reduction, self.own = reduction, Current()

    def attach(
        self,
        hooks: Hooks,
        patches: nn.Module,
        blocks: nn.ModuleList,
        after: int,
        restore: bool,
        taps: Sequence[int],
    ) -> None:
        """Hang everything on the model.

        Args:
            hooks: where to.
            patches: the convolution that makes patches.
            blocks: of the model.
            after: see `hourglass`.
            restore: see `hourglass`.
            taps: see `hourglass`.
        """
        hooks.behind(patches, self._start)
        hooks.before(blocks[after], self._enter)
        for number in taps:
            hooks.behind(blocks[number], self._tap(number))
        if restore:
            hooks.behind(blocks[-1], self._leave)

    @property
    def size(self) -> tuple[int, int] | None:
        return self.own.size

    @property
    def before(self) -> Tensor | None:
        return self.own.before

    @property
    def tokens(self) -> Tensor | None:
        return self.own.tokens

    @property
    def taps(self) -> dict[int, Tensor]:
        return self.own.taps or {}

    def _start(self, module: Any, args: tuple, kwargs: dict, output: Tensor) -> None:
        own = self.own
        own.size, own.taps, own.back = (output.shape[-2], output.shape[-1]), {}, None
        own.before = own.tokens = None

    def _enter(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        own = self.own
        if own.size is None:
            raise ValueError("the blocks run without a picture: call the model inside the block")
        if any(_holds_tensor(value) for value in (*args[1:], *kwargs.values())):
            raise ValueError(
                f"{type(module).__name__} gets more than its tokens (rotary tables or a mask), "
                "made for all of them: such a model cannot run on fewer"
            )
        x, (height, width) = args[0], own.size
        own.prefix = x.shape[1] - height * width
        if own.prefix < 0:
            raise ValueError(
                f"block {type(module).__name__} gets {x.shape[1]} tokens but the map has "
                f"{height} x {width}"
            )
        own.before = x[:, own.prefix :]
        own.tokens, own.back = self.reduction.reduce(own.before.unflatten(1, own.size))
        return (torch.cat([x[:, : own.prefix], own.tokens], dim=1), *args[1:]), kwargs

    def _rebuilt(self, x: Tensor) -> Tensor:
        """(B, prefix + M, D) -> (B, prefix + N, D); as it is where nothing was reduced yet."""
        own = self.own
        if own.back is None:
            return x
        return torch.cat([x[:, : own.prefix], own.back(x[:, own.prefix :])], dim=1)

    def _tap(self, number: int) -> Any:
        def keep(module: Any, args: tuple, kwargs: dict, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            if self.own.taps is not None:                # None: blocks that run without a picture
                self.own.taps[number] = self._rebuilt(x)

        return keep

    def _leave(self, module: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        if isinstance(output, tuple):                                       # with its weights
            return self._rebuilt(output[0]), *output[1:]
        return self._rebuilt(output)


def _holds_tensor(value: Any) -> bool:
    several = isinstance(value, (tuple, list))
    return isinstance(value, Tensor) or (several and any(_holds_tensor(v) for v in value))


def _blocks(model: Any) -> nn.ModuleList:
    """The model's list of blocks."""
    for home, name in (
        (model, "blocks"), (getattr(model, "encoder", None), "layer"), (model, "layers")
    ):
        found = getattr(home, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise ValueError(
        f"model={type(model).__name__} has no list of blocks: needs .blocks, .encoder.layer or "
        ".layers"
    )


def _patches(model: nn.Module) -> nn.Module:
    """The convolution that makes patches: the model's first."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module
    raise ValueError(f"model={type(model).__name__} has no convolution that makes patches")
