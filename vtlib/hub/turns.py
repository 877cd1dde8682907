"""The two kinds of forward while a model is pruned: a prompt with images, which gets shorter, and
new tokens behind one. Both give the arguments of the model's own forward and the `Turn` that its
decoder is in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tokens import keep_all, take
from .arguments import ALIGNED, aligned
from .cuts import Images, Level, Run, Turn
from .methods import Method
from .prompt import Group, Seen, Sheet, check_even, groups
from .tower import Family


@dataclass
class Shortening:
    """How the prompts of a block get shorter.

    family, method: of the model and of the block. renumber: whether survivors are counted anew.
    signals: see `prune`.
    """

    family: Family
    method: Method
    renumber: bool
    signals: Callable[[dict[str, Any]], dict[str, Any]] | None

    # --------------------------------------------------------------------------------- a prompt
    def prompt(
        self, kwargs: dict[str, Any], seen: Seen, order: list[int], draft: int
    ) -> tuple[Run, Turn, dict[str, Any]]:
        """(run, turn, arguments of the shorter prompt).

        Args:
            kwargs: arguments of a forward on a prompt.
            seen: what was read of its images.
            order: the image behind each block of placeholders.
            draft: how many of the last tokens are guesses, or the answer so far.
        """
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        kwargs = {**kwargs, **aligned(kwargs, draft)}
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
        first = run.levels[0].positions
        short = {
            "input_ids": None,
            "pixel_values": None,
            "inputs_embeds": take(sheet.x, index),
            "position_ids": first,
        }
        for name in ALIGNED:
            if kwargs.get(name) is not None:
                short[name] = take(kwargs[name], index)
        if mask is not None or index.shape[1] < ids.shape[1] or run.padded:
            # also when it is all ones: positions with gaps and neither mask nor cache would be
            # taken for several sequences in one
            short["attention_mask"] = valid.long()
        turn = Turn(prefilling=True, positions=first, draft=draft)
        return run, turn, {**kwargs, **short}

    def _positions(self, kwargs: dict[str, Any], draft: int) -> tuple[Tensor, Tensor | None]:
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
        """The run of a prompt.

        Args:
            sheet: the prompt with its images' tokens.
            images: those.
            index: (B, S') the tokens that are left.
            valid: (B, S') False for padding.
            delta: by how much the words behind it are shifted.
        """
        batch, length = index.shape
        first = torch.arange(length, device=index.device).expand(batch, -1)
        place = torch.full_like(sheet.columns, -1).scatter(1, index, first)
        for group in images:
            there = place[group.row[:, None], group.places]
            group.places = there.masked_fill(group.places < 0, -1)
        columns, positions = take(sheet.columns, index), sheet.numbers(self.renumber, index)
        language = self.family.language
        return Run(
            full=sheet.stay.shape[1],
            dropped=sheet.gone[:, -1],
            images=images,
            levels=[Level(first, columns, positions, valid, shift=0)],
            level_of=[0] * len(language.layers),
            renumber=self.renumber,
            language=language,
            padded=not bool(valid.all()),
            delta=delta,
        )

    # ----------------------------------------------------------------------------- what follows
    def step(
        self, kwargs: dict[str, Any], run: Run, past: int
    ) -> tuple[Turn, dict[str, Any]]:
        """(turn, arguments) of a forward on new tokens.

        Args:
            kwargs: arguments of the forward.
            run: the pruned prompt before them.
            past: how many tokens the first layer's cache holds.
        """
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
        return Turn(prefilling=False, positions=positions), {**kwargs, **short}

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
        if len(run.levels) > 1:
            self.check_window(run.full + since + new.shape[1])

    def check_window(self, size: int) -> None:
        """ValueError where a sequence of `size` tokens is longer than the decoder's window and
        cuts inside the decoder would change what the window counts."""
        window = self.family.window
        if self.method.inside and window is not None and size > window:
            raise ValueError(
                f"the decoder has a sliding window of {window} places and the sequence {size} "
                "tokens: cuts inside it need one that is no longer; use a method that prunes "
                "before the decoder"
            )
