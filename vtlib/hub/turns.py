"""The two kinds of forward while a model is pruned: a prompt with images, and new tokens behind.

The multimodal model sees whole prompts, as without pruning: it merges images and words, numbers
positions and may make masks. What it hands to its decoder is cut at the decoder's door, every
argument by its shape, whatever the model is:

    inputs_embeds (B, S, D)                       rows at the placeholders are the visual tokens
    position_ids (B, S), (3 or 4, B, S)           one index for all
    attention_mask (B, S), (B, 1, S, S), a dict   rows and columns
    deepstack_*, one (sum of n, D) a layer        rows of the placeholders that are kept
    all else of shape (B, S, ...)                 as embeddings

Both kinds give the arguments of the decoder's own forward and the `Turn` that it is in."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import keep_all, take
from .arguments import ALIGNED
from .budget import Budget, repeated
from .cuts import Images, Level, Run, Turn, cut_mask, hide
from .methods import Method
from .probe import along, tree
from .prompt import Group, Seen, Sheet, frames, groups, plain, sets
from .signals import Signals
from .tower import Family, Reads

DEEP = ("deepstack_visual_embeds", "deepstack_features")
"""Arguments of decoders that hold one (sum of n, D) a layer: visual tokens to add there."""


@dataclass
class Pending:
    """A prompt between the multimodal model's door and its decoder's.

    kwargs: the model's arguments. draft: how many of its last tokens are guesses, or the answer so
    far. seen, signals: what was read of the tower. sizes {"image", "video"}: how many tokens each
    image or video has; frames: of each video.
    """

    kwargs: dict[str, Any]
    draft: int
    seen: Seen | None = None
    sizes: dict[str, list[int] | None] | None = None
    signals: Signals | None = None
    frames: list[int] = field(default_factory=list)


@dataclass
class Shortening:
    """How the prompts of a block get shorter.

    family, method: of the model and of the block. budget: of its images. renumber: whether
    survivors are counted anew. signals: see `prune`.
    """

    family: Family
    method: Method
    budget: Budget
    renumber: bool
    signals: Callable[[dict[str, Any]], dict[str, Any]] | None

    # --------------------------------------------------------------------------------- a prompt
    def prompt(self, pending: Pending, door: dict[str, Any]) -> tuple[Run, Turn, dict[str, Any]]:
        """(run, turn, the decoder's arguments for the shorter prompt).

        Args:
            pending: the prompt.
            door: the decoder's arguments for the whole one.
        """
        kwargs, draft = pending.kwargs, pending.draft
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        self.check_door(door, ids.shape[1])
        positions = explicit(door.get("position_ids"), len(ids), ids.shape[1], 0, ids.device)
        x = door["inputs_embeds"]
        sheet = Sheet(
            x=x,
            positions=positions,
            moved=positions.clone(),
            columns=torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1),
            stay=torch.ones_like(ids, dtype=torch.bool),
        )
        more = self._signals(kwargs, pending.seen, draft)
        found = self._budgeted(list(self._groups(pending, x, self._shown(door, x))))
        words = self._words(pending)
        images = [self._reduce(group, sheet, more, keep, words) for group, keep in found]
        self._check_slots(images)
        index, valid = sheet.rectangle(mask)
        run = self._run(sheet, images, index, valid)
        run.delta = self.family.delta(positions, mask, draft)
        run.masked = not isinstance(door.get("attention_mask"), (Tensor, type(None))) or (
            isinstance(door.get("attention_mask"), Tensor) and door["attention_mask"].dim() != 2
        )
        self.check_deep(door, images)
        self.check_window(ids.shape[1], run.masked)
        first = run.levels[0].positions
        turn = Turn(prefilling=True, positions=first, draft=draft, inside=True)
        short = self._cut(door, run, sheet) if index.shape[1] < run.full else dict(door)
        short["inputs_embeds"] = take(sheet.x, index) if index.shape[1] < run.full else sheet.x
        short["position_ids"] = first
        short["attention_mask"] = self._prompt_mask(door, mask, run)
        return run, turn, short

    def _shown(self, door: dict[str, Any], x: Tensor) -> Tensor:
        """The embeddings that show the images: those of the first features that a decoder adds to
        empty places, where it does so."""
        deep, mask = door.get("deepstack_features"), door.get("vision_mask")
        if not isinstance(deep, dict) or not isinstance(mask, Tensor) or not deep:
            return x
        mask = mask.reshape(x.shape[0], x.shape[1], -1)[..., 0].bool()
        return x.masked_scatter(mask[..., None], deep[min(deep)].to(x))

    def _groups(self, pending: Pending, x: Tensor, shown: Tensor) -> Iterator[Group]:
        """Images of one size each, and frames of videos.

        Args:
            pending: the prompt.
            x: (B, S, D) its embeddings.
            shown: see `plain`.
        """
        ids, sizes = pending.kwargs["input_ids"], pending.sizes or {}
        written = torch.arange(ids.shape[1], device=ids.device) < ids.shape[1] - pending.draft
        image = (ids == self.family.image_token) & written
        count = 0
        if pending.seen is not None:
            order = pending.seen.order([x[image]]) if image.any() else []
            yield from groups(image, pending.seen, order)
            count = len(order)
        elif image.any():
            stills = sets(image, self.family.whole_images(sizes.get("image")))
            yield from plain(x, shown, stills, 0, self._signals_of(pending, stills))
            count = len(stills)
        if self.family.video_token is not None:
            video = (ids == self.family.video_token) & written
            videos = sets(video, sizes.get("video")) if video.any() else []
            if videos and self.method.reads != Reads():
                raise ValueError(
                    "the vision tower is not read of videos: use a method that reads the tokens "
                    "alone, or acts inside the decoder"
                )
            counts = repeated(pending.frames, [row for row, _ in videos]) or []
            stills = frames(videos, counts)
            yield from plain(x, shown, stills, count, [None] * len(stills))

    def _signals_of(self, pending: Pending, images: list[tuple[int, Tensor]]) -> list[Any]:
        """For each image (signals, first token, last token + 1) of what was read, or None."""
        found = pending.signals
        if found is None:
            if self.method.reads != Reads():
                raise ValueError(
                    "mm_encoder_outputs was made outside of this block, or by another thread: what "
                    "the method reads of the vision tower is not known; pass pixel_values"
                )
            return [None] * len(images)
        total, rows = len(found.source), [row for row, _ in images]
        times = sum(len(places) for _, places in images) / total
        numbers = list(range(round(len(images) / times))) if times else []
        which = repeated(numbers, rows)
        sizes: dict[int, int] = {}
        for number, (_, places) in zip(which or [], images, strict=False):
            sizes.setdefault(number, len(places))
        if which is None or sum(sizes.values()) != total:
            raise ValueError(
                f"the prompts hold {len(images)} images with other tokens than the {total} that "
                "get_image_features gave last: pass pixel_values"
            )
        ends = [0, *itertools.accumulate(sizes[n] for n in numbers)]
        return [(found, ends[n], ends[n + 1]) for n in which]

    def _budgeted(self, found: list[Group]) -> list[tuple[Group, Any]]:
        """Each group with its budget; groups whose images have several are split."""
        if self.budget.uniform:
            return [(group, self.budget.keep) for group in found]
        where = [
            (row, first, number, member)
            for number, group in enumerate(found)
            for member, (row, first) in enumerate(
                zip(group.row.tolist(), group.places[:, 0].tolist(), strict=True)
            )
        ]
        where.sort()
        sizes = [found[number].places.shape[1] for _, _, number, _ in where]
        keeps = self.budget.each(sizes, [row for row, _, _, _ in where])
        members: dict[tuple[int, str], tuple[Any, list[int]]] = {}
        for (_, _, number, member), keep in zip(where, keeps, strict=True):
            members.setdefault((number, repr(keep)), (keep, []))[1].append(member)
        return [
            (found[number].part(part), keep) for (number, _), (keep, part) in members.items()
        ]

    def _signals(self, kwargs: dict[str, Any], seen: Seen | None, draft: int) -> dict[str, Any]:
        """More options for the method, from the arguments of the prompt alone."""
        if self.signals is None:
            return {}
        inputs = {} if seen is None else seen.inputs
        given = {**inputs, **{k: v for k, v in kwargs.items() if v is not None}}
        for name in ("input_ids", "attention_mask", *ALIGNED):
            if draft and name in given:
                given[name] = given[name][:, :-draft]
        return self.signals(given)

    def _words(self, pending: Pending) -> Tensor:
        """(B, S) bool: what is neither padding nor a placeholder nor a draft."""
        ids, mask = pending.kwargs["input_ids"], pending.kwargs.get("attention_mask")
        words = ids != self.family.image_token
        if self.family.video_token is not None:
            words = words & (ids != self.family.video_token)
        words = words if mask is None else words & mask.bool()
        words[:, ids.shape[1] - pending.draft :] = False
        return words

    def _reduce(
        self, group: Group, sheet: Sheet, more: dict[str, Any], keep: Any, words: Tensor
    ) -> Images:
        """Ask the method for the plan of a group of images and carry it out.

        Args:
            group: the images.
            sheet: their prompt.
            more: further options of the method.
            keep: how many tokens of each stay.
            words: (B, S) bool, those of the question.
        """
        text = self.method.text(sheet.x, words, group.row, group.places)
        more = group.signals(more)
        plan, tokens = self.method.reduce(group.vision, more, group.which, keep, text)
        if not self.method.before:
            tokens = None
        elif group.rows is not None:
            tokens = plan.apply(group.rows)
        behind = group.vision.num_prefix if self.method.space == "selected" else 0
        slots = sheet.put(group, plan, tokens, behind)
        count, rows = len(plan), len(group.row)
        return Images(
            number=group.images,
            row=group.row,
            places=slots,
            vision=group.vision,
            plan=plan,
            stages=self.method.stages(count, keep),
            num_visual=count,
            since=keep_all(rows, count, slots.device),
        )

    def _check_slots(self, images: list[Images]) -> None:
        if not any(group.stages for group in images):
            return
        for group in images:
            if (group.places < 0).any():
                raise ValueError("cuts inside the decoder need plans without empty slots (-1)")
            if any(stage.watch for stage in group.stages):
                self.family.check_watched()

    def _run(self, sheet: Sheet, images: list[Images], index: Tensor, valid: Tensor) -> Run:
        """The run of a prompt.

        Args:
            sheet: the prompt with its images' tokens.
            images: those.
            index: (B, S') the tokens that are left.
            valid: (B, S') False for padding.
        """
        batch, length = index.shape
        first = torch.arange(length, device=index.device).expand(batch, -1)
        place = torch.full_like(sheet.columns, -1).scatter(1, index, first)
        for group in images:
            there = place[group.row[:, None], group.places]
            group.places = there.masked_fill(group.places < 0, -1)
        columns, positions = take(sheet.columns, index), sheet.numbers(self.renumber, index)
        language, dropped = self.family.language, sheet.gone[:, -1]
        return Run(
            full=sheet.stay.shape[1],
            dropped=dropped,
            index=index,
            images=images,
            levels=[Level(first, first, columns, positions, valid, torch.zeros_like(dropped))],
            level_of=[0] * len(language.layers),
            renumber=self.renumber,
            language=language,
            padded=not bool(valid.all()),
        )

    def _cut(self, door: dict[str, Any], run: Run, sheet: Sheet) -> dict[str, Any]:
        """The decoder's arguments for the tokens that are left, but embeddings, positions, mask."""
        size, out = run.full, {}
        mask = door.get("visual_pos_masks", door.get("vision_mask"))
        for name, value in door.items():
            if name in DEEP and value is not None:
                out[name] = _deep(value, mask.reshape(sheet.stay.shape), run)
            elif name == "past_key_values":
                out[name] = value
            else:
                out[name] = tree(value, lambda t: along(t, run.levels[0].columns, size))
        return out

    def _prompt_mask(self, door: dict[str, Any], mask: Tensor | None, run: Run) -> Any:
        """The decoder's mask for the tokens that are left.

        Args:
            door: its arguments for the whole prompt.
            mask: the multimodal model's, (B, S) or None.
            run: the prompt.
        """
        valid, given = run.levels[0].valid, door.get("attention_mask")
        if not run.masked:
            # also when it is all ones: positions with gaps and neither mask nor cache would be
            # taken for several sequences in one
            needed = mask is not None or valid.shape[1] < run.full or run.padded
            return valid.long() if needed else given
        static = getattr(door.get("past_key_values"), "is_compileable", False)
        empty = run.full - valid.shape[1] if static else 0  # places that its cache has all the same

        def cut(made: Tensor) -> Tensor:
            hidden = False if made.dtype == torch.bool else torch.finfo(made.dtype).min
            return F.pad(cut_mask(made, run.index, run.full, True), (0, empty), value=hidden)

        return self._made(given, cut, valid, door["inputs_embeds"][:, : valid.shape[1]])

    def _made(self, given: Any, cut: Callable, valid: Tensor, x: Tensor) -> Any:
        """Masks that the multimodal model has made, one or a dict of them, cut, and without padding
        that pruning brought.

        Args:
            given: a mask, or a dict of them.
            cut: of one.
            valid: (B, keys) bool.
            x: (B, queries, D).
        """
        if isinstance(given, dict):
            return {name: self._made(part, cut, valid, x) for name, part in given.items()}
        if given is not None and not isinstance(given, Tensor):
            raise ValueError(
                f"attention masks of type {type(given).__name__} cannot be cut: use sdpa, eager or "
                "flash attention"
            )
        made = None if given is None else cut(given)
        if bool(valid.all()):
            return made
        if made is not None:  # the places of a static cache that are empty yet
            valid = F.pad(valid, (0, made.shape[-1] - valid.shape[1]), value=True)
        return hide(made, valid, self.family.language, x)

    # ----------------------------------------------------------------------------- what follows
    def step(self, kwargs: dict[str, Any], run: Run, past: int) -> tuple[Turn, dict[str, Any]]:
        """(turn, the multimodal model's arguments) of a forward on new tokens.

        Args:
            kwargs: arguments of the forward.
            run: the pruned prompt before them.
            past: how many tokens the first layer's cache holds.
        """
        ids = kwargs.get("input_ids")
        new = kwargs["inputs_embeds"] if ids is None else ids
        count, since = new.shape[1], past - run.held(0)  # new tokens; tokens since the prompt
        self._check_step(run, new, since)
        mask, size = kwargs.get("attention_mask"), run.full + since + count
        made = isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.dim() == 4)
        if mask is not None and not made and mask.shape != (len(new), size):
            shape = tuple(mask.shape)
            raise ValueError(
                f"attention_mask has shape {shape}, but prompt and new tokens are "
                f"{(len(new), size)}"
            )
        if kwargs.get("position_ids") is None and run.delta is not None:
            positions = self.family.after(run.full + since, new, None if made else mask, run.delta)
            kwargs = {**kwargs, "position_ids": positions}
        return Turn(prefilling=False, new=since + count), kwargs

    def follow(self, run: Run, door: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments for new tokens behind a pruned prompt; its turn goes inside.

        Args:
            run: the prompt.
            door: the decoder's arguments behind the whole prompt.
        """
        turn, x = run.turn, door.get("inputs_embeds")
        if x is None:
            x = door["input_ids"]
        count, past = x.shape[1], run.full + turn.new - x.shape[1]
        positions = explicit(door.get("position_ids"), len(x), count, past, x.device)
        if self.renumber:
            positions = positions - run.dropped[:, None]
        turn.positions, turn.inside = positions, True
        given, first = door.get("attention_mask"), run.levels[0].valid
        valid = torch.cat([first, first.new_ones(len(first), turn.new)], dim=1)
        if run.masked or isinstance(given, dict) or (given is not None and given.dim() == 4):
            mask = self._made(given, lambda m: cut_mask(m, run.index, run.full, False), valid, x)
        elif isinstance(given, Tensor):
            mask = torch.cat([first.to(given.dtype), given[:, run.full :]], dim=1)
        else:
            mask = valid.long() if run.padded else given
        return {**door, "position_ids": positions, "attention_mask": mask}

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
        self.check_window(run.full + since + new.shape[1], run.masked, len(run.levels) > 1)

    # ------------------------------------------------------------------------------ what is refused
    def check_door(self, door: dict[str, Any], size: int) -> None:
        """ValueError where the decoder is not given the whole prompt's embeddings."""
        x = door.get("inputs_embeds")
        if not isinstance(x, Tensor) or x.shape[1] != size:
            raise ValueError(
                f"{type(self.family.model).__name__} does not hand the {size} tokens of its prompt "
                "to its decoder: it cannot be pruned"
            )

    def check_deep(self, door: dict[str, Any], images: list[Images]) -> None:
        """ValueError for a cut before the last layer behind which visual tokens are added."""
        deep = next((door[name] for name in DEEP if door.get(name) is not None), None)
        if deep is None:
            return
        first = max(deep) if isinstance(deep, dict) else len(deep)
        early = [
            stage.after
            for group in images
            for stage in group.stages
            if stage.after < first and stage.count(group.num_visual) < group.num_visual
        ]
        if early:
            raise ValueError(
                f"a cut after {min(early)} layers: this decoder adds visual tokens up to there "
                f"(DeepStack): cuts must come after {first} layers or more"
            )

    def check_window(self, size: int, masked: bool = False, inside: bool = True) -> None:
        """ValueError where a sequence of `size` tokens is longer than the decoder's window and cuts
        would change what the window counts.

        Args:
            size: tokens of the whole sequence.
            masked: whether the multimodal model makes the decoder's masks, so that its windows
                count whole prompts and its caches kept tokens.
            inside: whether there are cuts inside the decoder, if the method makes any.
        """
        window = self.family.window
        if window is None or size <= window:
            return
        if self.method.inside and inside:
            raise ValueError(
                f"the decoder has a sliding window of {window} places and the sequence {size} "
                "tokens: cuts inside it need one that is no longer; use a method that prunes "
                "before the decoder"
            )
        if masked:
            raise ValueError(
                f"the decoder has a sliding window of {window} places and the sequence {size} "
                f"tokens: {type(self.family.model).__name__} makes its masks for whole prompts, "
                "and needs a sequence that is no longer"
            )


def explicit(given: Tensor | None, rows: int, size: int, past: int, device: Any) -> Tensor:
    """Position ids (B, S), or (3 or 4, B, S), as they are or as decoders count them.

    Args:
        given: of these shapes, also with one row for all; or None.
        rows: B.
        size: S.
        past: how many tokens are before them.
        device: of the tokens.
    """
    if given is None:
        return torch.arange(past, past + size, device=device).expand(rows, -1)
    return given.expand(*given.shape[:-2], rows, size)


def frame_counts(kwargs: dict[str, Any]) -> list[int]:
    """How many frames each video of a forward has, where its arguments say so."""
    grids, pixels = kwargs.get("video_grid_thw"), kwargs.get("pixel_values_videos")
    if isinstance(grids, Tensor):
        return grids[:, 0].tolist()
    if isinstance(pixels, Tensor) and pixels.dim() == 5:
        return [pixels.shape[1]] * pixels.shape[0]
    return []


def _deep(value: Any, mask: Tensor, run: Run) -> Any:
    """Rows of DeepStack features, (sum of n, D) a layer, of the places that are left; a merged
    token has its seed's.

    Args:
        value: a list of them, or a dict.
        mask: (B, S) bool, the places whose rows they are.
        run: the prompt.
    """
    mask = mask.bool()
    number = torch.zeros_like(mask, dtype=torch.long)
    number[mask] = torch.arange(int(mask.sum()), device=mask.device)
    rows = take(number, run.levels[0].columns)[take(mask, run.index)]
    return tree(value, lambda t: t[rows])
