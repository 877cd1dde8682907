"""TinyVLM: LLaVA's shape (Liu et al., NeurIPS 2023, arXiv 2304.08485; 1.5: arXiv 2310.03744) at a
size that a laptop trains and runs.

    image -> Encoder -> patches of the last layer but one -> projector (Linear, GELU, Linear)
          -> visual tokens
    <start> | visual tokens | the question's words -> causal decoder -> the answer's words, <end>

128 x 128 pixels are 256 visual tokens. It was trained on EmojiWorld's questions
(`train/tinyvlm.py`; scores in data/README.md); text is split into words. Pruning goes in at three
places: a `Plan` on the encoder's features or on the visual tokens, and `Stage`s inside the decoder.

    model = TinyVLM.pretrained()
    vision = model.encode(images, need=("cls_row",))
    plan = fastervlm.prune(vision, keep=64)
    model.answer(model.reduce(vision, plan, "features"), ["is there a crab?"] * len(images))
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import checkpoints
from ..nn import check_dtype, check_finite, check_flag, check_int, check_tokens, places_2d
from ..nn.checks import check_index, describe
from ..tokens import Plan, take
from ..tokens.plan import check_plan
from ..tokens.vision import SPACES, VisionOutputs, check_vision
from .decoder import Decoder, Prefill
from .encoder import Encoder

PAD, START, END = "<pad>", "<start>", "<end>"
PLACE_SCALE = 3.0
"""The place channels' size, about that of the encoder's own."""


def words(text: str) -> list[str]:
    """Lower-case words, digits and the signs ? and &, in order; everything else is left out."""
    if not isinstance(text, str):
        raise ValueError(f"text={text!r}: needs to be a str")
    return re.findall(r"[a-z]+|[0-9]|[?&]", text.lower())


def _separate(q: Tensor, k: Tensor, v: Tensor, prefix: int, later: Tensor) -> Tensor:
    """Attention of many texts of L words behind a prefix; none sees another.

    Each text's queries (B, heads, many * L, P) look at the prefix and at the own text, in one
    softmax; no (many * L)^2 weights are ever made. k, v: (B, heads, prefix + many * L, P).
    later (L, L) bool: the words of its text that come after a word.
    """
    texts = (q, k[:, :, prefix:], v[:, :, prefix:])
    texts = (rearrange(t, "b h (q l) p -> (b h) q l p", l=len(later)) for t in texts)
    own_q, own_k, own_v = texts
    k_prefix, v_prefix = (t[:, :, :prefix].flatten(0, 1) for t in (k, v))      # bh prefix p
    shape = own_q.shape[1:3]
    own_q = own_q * own_q.shape[-1] ** -0.5
    to_prefix = (own_q.flatten(1, 2) @ k_prefix.mT).unflatten(1, shape)
    to_own = (own_q @ own_k.mT).masked_fill(later, float("-inf"))
    weights = torch.cat([to_prefix, to_own], dim=-1).softmax(dim=-1).to(v.dtype)
    out = (weights[..., :prefix].flatten(1, 2) @ v_prefix).unflatten(1, shape)
    out = out + weights[..., prefix:] @ own_v
    return rearrange(out, "(b h) q l p -> b h (q l) p", b=len(q))


def _check_ids(ids: Tensor, batch: int, count: int) -> None:
    check_index(ids, "ids", "(B, Q, L)", (batch, None, None), count)
    if 0 in ids.shape:
        raise ValueError(f"ids is empty: shape {tuple(ids.shape)}")


def _numbered(tokens: Tensor, positions: Tensor | None, num_visual: int | None):
    """The number of each visual token (B, T), and how many numbers there are in front of a text."""
    batch, count, _ = tokens.shape
    if positions is None:
        num_visual = count if num_visual is None else check_int(num_visual, "num_visual", count)
        return torch.arange(count, device=tokens.device).expand(batch, -1), num_visual
    num_visual = check_int(num_visual, "num_visual", 1)
    check_index(positions, "positions", "(B, T)", (batch, count), num_visual)
    return positions, num_visual


def _check_cuts(cuts: dict[int, Tensor] | None, tokens: Tensor, num_layers: int):
    """`cuts` of `packed` in the order of the layers."""
    if not (cuts is None or isinstance(cuts, dict)):
        raise ValueError(f"cuts is {describe(cuts)}: needs a dict {{layers run: index}}, or None")
    (batch, count, _), checked = tokens.shape, {}
    for after in sorted(check_int(key, "cuts' key", 0, num_layers - 1) for key in cuts or {}):
        index = cuts[after]
        check_index(index, f"cuts[{after}]", "(B, T)", (batch, None), count)
        count = index.shape[1]
        checked[after] = index
    return checked


def _check_parts(vocabulary: Sequence[str], **parts: dict | nn.Module | None) -> None:
    listed = isinstance(vocabulary, (list, tuple))
    if not listed or not all(isinstance(word, str) for word in vocabulary):
        raise ValueError(f"vocabulary={vocabulary!r}: needs a list of words")
    for name, part in parts.items():
        if isinstance(part, nn.Module) and name == "encoder":
            continue
        if not (part is None or isinstance(part, dict)):
            own = "a module, or None" if name == "encoder" else "or None"
            raise ValueError(f"{name}={part!r}: needs a dict of its arguments, {own}")


@dataclass
class Answers:
    """What came out.

    texts (B): the words, joined by blanks.
    probability (B): product over the text's words and <end>.
    first (B, vocabulary): probabilities of the first word.
    prefill: what the prompt left.
    """

    texts: list[str]
    probability: Tensor
    first: Tensor
    prefill: Prefill


class TinyVLM(nn.Module):
    """Encoder, projector and decoder.

    Args:
        vocabulary: words; <pad>, <start>, <end> are put in front.
        encoder: a dict of the arguments of `Encoder`; or another encoder, a module with what is
            read of one: `embed_dim`, `num_layers`, `num_prefix`, `place_dim`, `forward`,
            `queries_and_keys` (`vtlib.hub.dino` has DINOv2 as one).
        decoder: a dict of the arguments of `Decoder`.
        select: index of the hidden state that is projected, -2 as in LLaVA.
    """

    def __init__(self, vocabulary, encoder=None, decoder=None, select=-2):
        super().__init__()
        _check_parts(vocabulary, encoder=encoder, decoder=decoder)
        self.vocabulary = [PAD, START, END, *vocabulary]
        self.ids = {word: i for i, word in enumerate(self.vocabulary)}
        if len(self.ids) < len(self.vocabulary):
            raise ValueError("vocabulary has a word twice")
        self.select = check_int(select, "select")
        own = not isinstance(encoder, nn.Module)
        self.encoder = Encoder(**(encoder or {})) if own else encoder
        self.decoder = Decoder(**(decoder or {}))
        width = self.encoder.embed_dim + self.encoder.place_dim
        dim = self.decoder.embed_dim
        self.projector = nn.Sequential(
            nn.Linear(width, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.embed_tokens = nn.Embedding(len(self.vocabulary), dim)
        nn.init.normal_(self.embed_tokens.weight, std=0.3)

    # -------------------------------------------------------------------------------------- seeing
    def encode(self, images, need=(), attention=(), hidden=()) -> VisionOutputs:
        """What pruners read of images.

        `selected` is the encoder's hidden state and, in place_dim channels of their own, where each
        patch is (0 for the prefix): layers write over the place they were given, and a decoder that
        only knows the patch's number in the row-major sequence learns "top" but not "left".

        Args:
            images: (B, 3, H, W) in [0, 1], sides multiples of 8.
            need: see `Encoder.forward`.
            attention: see `Encoder.forward`.
            hidden: see `Encoder.forward`.
        """
        out = self.encoder(images, self.select, need, attention, hidden)
        x, prefix = out["selected"], self.encoder.num_prefix
        place = places_2d(out["grid"], self.encoder.place_dim, device=x.device)
        place = PLACE_SCALE * F.pad(place, (0, 0, prefix, 0)).to(x.dtype)        # prefix+n places
        return VisionOutputs(
            torch.cat([x, place.expand(x.shape[0], -1, -1)], dim=-1),
            out["grid"],
            self.projector,
            prefix,
            out.get("cls_row"),
            out.get("keys"),
            out["attention"],
            out["hidden"],
        )

    def reduce(
        self, vision: VisionOutputs, plan: Plan | None = None, space: str = "features"
    ) -> Tensor:
        """The visual tokens (B, T, D) that a plan leaves.

        Args:
            vision: what `encode` gave.
            plan: None: all tokens stay.
            space: which tensor of `vision` the plan is for; "features" and "selected" (with its
                prefix) come before the projector, "tokens" after it.
        """
        check_vision(vision)
        if space not in SPACES:
            raise ValueError(f"space={space!r}: needs one of {SPACES}")
        if plan is None:
            return vision.tokens
        check_plan(plan, "plan")
        x = plan.apply(getattr(vision, space))
        return x if space == "tokens" else vision.project(x)

    # ------------------------------------------------------------------------------------- reading
    def tokenize(self, texts) -> tuple[Tensor, Tensor]:
        """Texts -> ids (B, L) padded at the end, valid (B, L) bool.

        ValueError for no text or an empty one, and for a word that the model does not know.
        """
        if not isinstance(texts, Sequence) or isinstance(texts, str) or not texts:
            raise ValueError(f"texts={texts!r}: needs a list of one text at least")
        rows = [words(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise ValueError(f"{text!r}: there is no word in it")
            strange = [word for word in row if word not in self.ids]
            if strange:
                raise ValueError(
                    f"{text!r}: the model does not know {strange[0]!r}; see `vocabulary`"
                )
        longest, pad = max(map(len, rows)), self.ids[PAD]
        padded = [
            [self.ids[word] for word in row] + [pad] * (longest - len(row)) for row in rows
        ]
        ids = torch.tensor(padded, device=self.embed_tokens.weight.device)
        return ids, ids != pad

    def prompt(self, tokens, questions) -> tuple[Tensor, slice, Tensor]:
        """What the decoder reads, for visual tokens (B, T, D) and B questions.

        Returns x (B, 1 + T + L, D), the slice of the visual tokens, valid (B, 1 + T + L) bool.
        ValueError for tokens that are not finite: the words that come out would be any; and for
        another dtype than the model's, without autocast.
        """
        check_tokens(tokens, self.decoder.embed_dim)
        check_dtype(tokens, self.embed_tokens.weight, "tokens")
        check_finite(tokens, "tokens")
        listed = isinstance(questions, Sequence) and not isinstance(questions, str)
        if not listed or len(questions) != tokens.shape[0]:
            many = len(questions) if listed else 1
            raise ValueError(
                f"questions has {many} entries but there are {tokens.shape[0]} pictures: needs a "
                f"list with one for each"
            )
        ids, valid = self.tokenize(questions)
        start = self.embed_tokens.weight[self.ids[START]].expand(len(ids), 1, -1)
        text = self.embed_tokens(ids)
        x = torch.cat([start.to(tokens.dtype), tokens, text.to(tokens.dtype)], dim=1)
        return x, slice(1, 1 + tokens.shape[1]), F.pad(valid, (1 + tokens.shape[1], 0), value=True)

    def logits(self, hidden) -> Tensor:
        """Hidden states (..., D) -> (..., vocabulary), with the embedding's own matrix."""
        return hidden @ self.embed_tokens.weight.T.to(hidden.dtype)

    def prefill(
        self, tokens, questions, stages=(), positions="renumber", mode="drop"
    ) -> tuple[Tensor, Prefill]:
        """Logits (B, vocabulary) of the first answer word, and the decoder's `Prefill`.

        Args:
            tokens: (B, T, D), each picture's visual tokens.
            questions: one for each picture.
            stages: see `Decoder.prefill`.
            positions: see `Decoder.prefill`.
            mode: see `Decoder.prefill`.
        """
        x, visual, valid = self.prompt(tokens, questions)
        padding = None if valid.all() else valid
        run = self.decoder.prefill(x, visual, stages, padding, positions, mode)
        behind = run.valid.flip(1).int().argmax(dim=1)
        last = run.valid.shape[1] - 1 - behind                    # the question's last word
        return self.logits(run.hidden[torch.arange(len(last), device=last.device), last]), run

    @torch.no_grad()
    def answer(
        self, tokens, questions, stages=(), positions="renumber", mode="drop", max_words=4
    ) -> Answers:
        """Greedy answers to one question for each picture.

        Args:
            tokens: (B, T, D), each picture's visual tokens.
            questions: one for each picture.
            stages: see `Decoder.prefill`.
            positions: see `Decoder.prefill`.
            mode: see `Decoder.prefill`.
            max_words: where an answer without <end> stops.
        """
        max_words = check_int(max_words, "max_words", 1)
        logits, run = self.prefill(tokens, questions, stages, positions, mode)
        first = logits.float().softmax(dim=-1)
        end = self.ids[END]
        done = torch.zeros(len(questions), dtype=torch.bool, device=logits.device)
        probability, picked = first.new_ones(len(questions)), []
        for step in range(max_words + 1):
            p, best = logits.float().softmax(dim=-1).max(dim=-1)
            probability = torch.where(done, probability, probability * p)
            best = best.masked_fill(done, end)
            done = done | (best == end)
            picked.append(best)
            if done.all() or step == max_words:
                break
            word = self.embed_tokens(best)[:, None].to(tokens.dtype)                  # b 1 d
            logits = self.logits(self.decoder.step(word, run.cache)[:, 0])
        texts = [self._text(row) for row in torch.stack(picked, dim=1).tolist()]
        return Answers(texts, probability, first, run)

    def _text(self, row) -> str:
        """The words of ids before <end>, joined by blanks."""
        end = self.ids[END]
        row = row[: row.index(end)] if end in row else row
        return " ".join(self.vocabulary[i] for i in row)

    def forward(self, images, questions) -> Tensor:
        """Logits (B, vocabulary) of the first answer word, nothing pruned."""
        return self.prefill(self.encode(images).tokens, questions)[0]

    # ------------------------------------------------------------------------------------ training
    def packed(
        self, tokens, ids, positions=None, num_visual=None, cuts=None, recount=True
    ) -> Tensor:
        """Several texts behind one picture at once: the logits of each next word.

        (B, Q, L, vocabulary). The texts do not see each other: the numbers are those of B * Q
        separate runs.

        Args:
            tokens: (B, T, D) visual tokens, in the order in which the decoder reads them.
            ids: (B, Q, L) long, Q texts for each picture.
            positions: (B, T) long, the place of each visual token in the picture,
                0 ... num_visual - 1, for tokens that keep their numbers; None counts 0 ... T - 1.
            num_visual: how many places the picture has; each text starts behind them. None is T.
            cuts: {after: index (B, T') long}: which of the visual tokens that are there are left
                once `after` layers have run (0 ... layers - 1), the same for all texts.
            recount: what a cut leaves counts anew, as positions="renumber" of `prefill`; False:
                every token keeps its number.

        Errors: ValueError for positions of another shape, or without num_visual; without positions,
        for num_visual < T; for tokens, ids or cuts that do not fit.
        """
        check_tokens(tokens, self.decoder.embed_dim)
        check_dtype(tokens, self.embed_tokens.weight, "tokens")
        _check_ids(ids, len(tokens), len(self.vocabulary))
        recount = check_flag(recount, "recount")
        cuts = _check_cuts(cuts, tokens, len(self.decoder.layers))
        batch, many, length = ids.shape
        positions, behind = _numbered(tokens, positions, num_visual)
        start = self.embed_tokens.weight[self.ids[START]].expand(batch, 1, -1)
        x = torch.cat([start.to(tokens.dtype), tokens], dim=1)                   # b prefix d
        text = self.embed_tokens(ids).flatten(1, 2).to(tokens.dtype)             # b q*l d
        word = torch.arange(length, device=ids.device).repeat(many)[None]        # 1 q*l
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        rope, text_rope = self._ropes(positions, behind, word)
        for number, layer in enumerate(self.decoder.layers):
            if number in cuts:
                x = torch.cat([x[:, :1], take(x[:, 1:], cuts[number])], dim=1)
                positions = take(positions, cuts[number])
                if recount:
                    positions, behind = _numbered(x[:, 1:], None, None)
                rope, text_rope = self._ropes(positions, behind, word)
            x, past, _ = layer(x, rope)
            separate = functools.partial(_separate, prefix=x.shape[1], later=later)
            text, _, _ = layer(text, text_rope, past=past, attention=separate)
        return self.logits(self.decoder.norm(text)).unflatten(1, (many, length))

    def _ropes(self, positions, behind, word):
        """Rotary tables of <start> and visual tokens at positions (B, T), and of words (1, Q L),
        `behind` places on."""
        places = F.pad(positions + 1, (1, 0))                                    # start at 0
        return self.decoder.rope(places), self.decoder.rope(1 + behind + word)

    # ----------------------------------------------------------------------------- the shipped one
    @classmethod
    def pretrained(cls, device=None) -> "TinyVLM":
        """The shipped model in eval mode; `model.info` is its file's header (score, command)."""
        model = checkpoints.load("tinyvlm", cls, device)
        model.info = checkpoints.info("tinyvlm")
        return model
