"""TinyVLM: LLaVA's shape (Liu et al., NeurIPS 2023, arXiv 2304.08485; 1.5: arXiv 2310.03744) at a size that a laptop trains and runs.

    image -> Encoder -> patches of the last layer but one -> projector (Linear, GELU, Linear) -> visual tokens
    <start> | visual tokens | the question's words -> causal decoder -> the answer's words, <end>

128 x 128 pixels are 256 visual tokens. It was trained on EmojiWorld's questions (`train/tinyvlm.py`; scores in data/README.md); text is
split into words. Pruning goes in at three places: a `Plan` on the encoder's features or on the visual tokens, and `Stage`s inside the decoder.

    model = TinyVLM.pretrained()
    vision = model.encode(images, need=("cls_row",))
    plan = fastervlm.prune(vision, keep=64)
    model.answer(model.reduce(vision, plan, "features"), ["is there a crab?"] * len(images))
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import checkpoints
from ..nn import check_tokens, places_2d
from ..tokens import Plan
from ..tokens.vision import SPACES, VisionOutputs
from .decoder import Decoder, Prefill
from .encoder import Encoder

PAD, START, END = "<pad>", "<start>", "<end>"
PLACE_SCALE = 3.0
"""The place channels' size, about that of the encoder's own."""


def words(text: str) -> list[str]:
    """Lower-case words, digits and the signs ? and &, in order; everything else is left out."""
    return re.findall(r"[a-z]+|[0-9]|[?&]", text.lower())


@dataclass
class Answers:
    """texts (B): the words that came out, joined by blanks. probability (B): product over its words and <end>. prefill: what the prompt left.
    first (B, vocabulary): probabilities of the first word."""

    texts: list[str]
    probability: Tensor
    first: Tensor
    prefill: Prefill


class TinyVLM(nn.Module):
    """Args: vocabulary (words; <pad>, <start>, <end> are put in front), encoder and decoder (dicts of their arguments), select: index of the hidden
    state that is projected, -2 as in LLaVA."""

    def __init__(self, vocabulary, encoder=None, decoder=None, select=-2):
        super().__init__()
        self.vocabulary = [PAD, START, END, *vocabulary]
        self.ids = {word: i for i, word in enumerate(self.vocabulary)}
        if len(self.ids) < len(self.vocabulary):
            raise ValueError("vocabulary has a word twice")
        self.select = select
        self.encoder = Encoder(**(encoder or {}))
        self.decoder = Decoder(**(decoder or {}))
        width, dim = self.encoder.norm.weight.shape[0] + self.encoder.place_dim, self.decoder.embed_dim
        self.projector = nn.Sequential(nn.Linear(width, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.embed_tokens = nn.Embedding(len(self.vocabulary), dim)
        nn.init.normal_(self.embed_tokens.weight, std=0.3)

    # --------------------------------------------------------------------------------------------------------------- seeing
    def encode(self, images, need=(), attention=(), hidden=()) -> VisionOutputs:
        """images (B, 3, H, W) in [0, 1], sides multiples of 8 -> what pruners read. need, attention, hidden: see `Encoder.forward`.

        `selected` is the encoder's hidden state and, in place_dim channels of their own, where each patch is (0 for the prefix): layers write over
        the place they were given, and a decoder that only knows the patch's number in the row-major sequence learns "top" but not "left".
        """
        out = self.encoder(images, self.select, need, attention, hidden)
        x, prefix = out["selected"], self.encoder.num_prefix
        place = PLACE_SCALE * F.pad(places_2d(out["grid"], self.encoder.place_dim, device=x.device), (0, 0, prefix, 0)).to(x.dtype)
        return VisionOutputs(torch.cat([x, place.expand(x.shape[0], -1, -1)], dim=-1), out["grid"], self.projector, self.encoder.num_prefix, out.get("cls_row"), out.get("keys"),
                             out["attention"], out["hidden"])

    def reduce(self, vision: VisionOutputs, plan: Plan | None = None, space: str = "features") -> Tensor:
        """The visual tokens (B, T, D) that `plan` leaves; None: all. space: which tensor of `vision` the plan is for; "features" and "selected"
        (with its prefix) come before the projector, "tokens" after it."""
        if space not in SPACES:
            raise ValueError(f"space={space!r}: needs one of {SPACES}")
        if plan is None:
            return vision.tokens
        x = plan.apply(getattr(vision, space))
        return x if space == "tokens" else vision.project(x)

    # -------------------------------------------------------------------------------------------------------------- reading
    def tokenize(self, texts) -> tuple[Tensor, Tensor]:
        """Texts -> ids (B, L) padded at the end, valid (B, L) bool. ValueError for an empty text or a word that the model does not know."""
        rows = [words(text) for text in texts]
        for text, row in zip(texts, rows):
            strange = [word for word in row if word not in self.ids]
            if strange or not row:
                raise ValueError(f"{text!r}: " + (f"the model does not know {strange[0]!r}; see `vocabulary`" if strange else "there is no word in it"))
        device, longest = self.embed_tokens.weight.device, max(map(len, rows))
        ids = torch.tensor([[self.ids[w] for w in row] + [self.ids[PAD]] * (longest - len(row)) for row in rows], device=device)
        return ids, ids != self.ids[PAD]

    def prompt(self, tokens, questions) -> tuple[Tensor, slice, Tensor]:
        """(x (B, 1 + T + L, D), slice of the visual tokens, valid (B, 1 + T + L)) for visual tokens (B, T, D) and B questions."""
        check_tokens(tokens, self.decoder.embed_dim)
        if len(questions) != tokens.shape[0]:
            raise ValueError(f"questions has {len(questions)} entries but there are {tokens.shape[0]} pictures")
        ids, valid = self.tokenize(questions)
        start = self.embed_tokens.weight[self.ids[START]].expand(len(ids), 1, -1)
        x = torch.cat([start.to(tokens.dtype), tokens, self.embed_tokens(ids).to(tokens.dtype)], dim=1)
        return x, slice(1, 1 + tokens.shape[1]), F.pad(valid, (1 + tokens.shape[1], 0), value=True)

    def logits(self, hidden) -> Tensor:
        """Hidden states (..., D) -> (..., vocabulary), with the embedding's own matrix."""
        return hidden @ self.embed_tokens.weight.T.to(hidden.dtype)

    def prefill(self, tokens, questions, stages=(), positions="renumber", mode="drop") -> tuple[Tensor, Prefill]:
        """Logits (B, vocabulary) of the first answer word, and the decoder's `Prefill`. stages, positions, mode: see `Decoder.prefill`."""
        x, visual, valid = self.prompt(tokens, questions)
        run = self.decoder.prefill(x, visual, stages, None if valid.all() else valid, positions, mode)
        last = run.valid.shape[1] - 1 - run.valid.flip(1).int().argmax(dim=1)                        # the question's last word
        return self.logits(run.hidden[torch.arange(len(last), device=last.device), last]), run

    @torch.no_grad()
    def answer(self, tokens, questions, stages=(), positions="renumber", mode="drop", max_words=4) -> Answers:
        """Greedy answers to one question for each picture's visual tokens (B, T, D). stages, positions, mode: see `Decoder.prefill`."""
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
            logits = self.logits(self.decoder.step(self.embed_tokens(best)[:, None].to(tokens.dtype), run.cache)[:, 0])
        rows = torch.stack(picked, dim=1).tolist()
        texts = [" ".join(self.vocabulary[i] for i in (row[: row.index(end)] if end in row else row)) for row in rows]
        return Answers(texts, probability, first, run)

    def forward(self, images, questions) -> Tensor:
        """Logits (B, vocabulary) of the first answer word, nothing pruned."""
        return self.prefill(self.encode(images).tokens, questions)[0]

    # ------------------------------------------------------------------------------------------------------------- training
    def packed(self, tokens, ids, positions=None, num_visual=None) -> Tensor:
        """Several texts behind one picture at once: the logits (B, Q, L, vocabulary) of each next word.

        The texts do not see each other: the numbers are those of B * Q separate runs.

        Args:
            tokens: (B, T, D) visual tokens, in the order in which the decoder reads them.
            ids: (B, Q, L) long, Q texts for each picture.
            positions: (B, T) long, the place of each visual token in the picture, 0 ... num_visual - 1, for
                tokens that keep their numbers; None counts 0 ... T - 1.
            num_visual: how many places the picture has; each text starts behind them. None is T.

        Errors: ValueError for positions of another shape, or without num_visual.
        """
        batch, many, length = ids.shape
        count, device = tokens.shape[1], ids.device
        if positions is None:
            positions, num_visual = torch.arange(count, device=device).expand(batch, -1), count
        if positions.shape != (batch, count) or num_visual is None:
            raise ValueError(
                f"positions {tuple(positions.shape)}, num_visual={num_visual}: needs {(batch, count)}, "
                "and the number of places in the picture"
            )
        prefix = 1 + count
        start = self.embed_tokens.weight[self.ids[START]].expand(batch, 1, -1)
        x = torch.cat([start.to(tokens.dtype), tokens], dim=1)  # b prefix d
        text = self.embed_tokens(ids).flatten(1, 2).to(tokens.dtype)  # b q*l d
        places = F.pad(positions + 1, (1, 0))  # the start is at 0
        behind = 1 + num_visual + torch.arange(length, device=device).repeat(many)
        rope, text_rope = self.decoder.rope(places), self.decoder.rope(behind[None])
        later = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)

        def split(q, k, v):
            """Each text's queries look at the prefix and at their own text, in one softmax.

            No (Q L)^2 weights are ever made.
            """
            texts = (q, k[:, :, prefix:], v[:, :, prefix:])
            texts = (rearrange(t, "b h (q l) p -> (b h) q l p", q=many) for t in texts)
            q, k_own, v_own = texts
            k_prefix, v_prefix = (t[:, :, :prefix].flatten(0, 1) for t in (k, v))  # bh prefix p
            q = q * q.shape[-1] ** -0.5
            to_prefix = (q.flatten(1, 2) @ k_prefix.mT).unflatten(1, (many, length))
            to_own = (q @ k_own.mT).masked_fill(later, float("-inf"))
            weights = torch.cat([to_prefix, to_own], dim=-1).softmax(dim=-1).to(v.dtype)
            out = (weights[..., :prefix].flatten(1, 2) @ v_prefix).unflatten(1, (many, length))
            out = out + weights[..., prefix:] @ v_own
            return rearrange(out, "(b h) q l p -> b h (q l) p", b=batch)

        for layer in self.decoder.layers:
            x, past, _ = layer(x, rope)
            text, _, _ = layer(text, text_rope, past=past, attention=split)
        return self.logits(self.decoder.norm(text)).unflatten(1, (many, length))

    # ---------------------------------------------------------------------------------------------------------- the shipped one
    @classmethod
    def pretrained(cls, device=None) -> "TinyVLM":
        """The shipped model in eval mode; `model.info` is its file's header (score, command)."""
        model = checkpoints.load("tinyvlm", cls, device)
        model.info = checkpoints.info("tinyvlm")
        return model
