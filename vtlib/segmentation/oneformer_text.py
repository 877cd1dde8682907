"""OneFormer's words: the sentence that names the task, the list of texts that a picture's labels
make, and the net that turns the list into text queries (training only).

The release splits words by CLIP's byte pairs, whose table is not shipped here: `TASK_IDS` holds the
ids of its three task sentences, and `WordTokenizer` numbers whole words in the same layout.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn.checks import check_flag, check_generator, check_heads, check_index, check_int, describe
from .oneformer_nets import MLP, StreamAttention

TASKS = ("semantic", "instance", "panoptic")
# "the task is {task}" in CLIP's ids: start, the, task, is, ..., end
TASK_IDS = {
    "semantic": (49406, 518, 10549, 533, 29119, 1550, 49407),
    "instance": (49406, 518, 10549, 533, 34572, 49407),
    "panoptic": (49406, 518, 10549, 533, 1072, 24755, 49407),
}


def check_task(task: str) -> str:
    """The task's name. ValueError unless it is one of `TASKS`."""
    if task not in TASKS:
        raise ValueError(f"task={task!r} is none of {TASKS}")
    return task


def task_ids(
    tasks: Sequence[str], length: int = 77, device: torch.device | str | None = None
) -> Tensor:
    """CLIP ids of "the task is {task}", zeros behind: (B, length) long.

    Args:
        tasks: one of `TASKS` for each picture.
        length: at least 7.
        device: where they are made.
    """
    if isinstance(tasks, str) or not isinstance(tasks, Sequence) or not tasks:
        raise ValueError(f"tasks is {tasks!r} but needs to be a list of names, one a picture")
    length = check_int(length, "length", 7)
    rows = [TASK_IDS[check_task(task)] for task in tasks]
    padded = [[*row, *[0] * (length - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device)


def text_list(
    task: str, classes: Sequence[int], class_names: Sequence[str], count: int
) -> list[str]:
    """What the picture's object queries are compared with: "a photo with a {class}" for every mask
    of the task's targets, in the order of class numbers; what is left says "a {task} photo".

    Args:
        task: one of `TASKS`.
        classes: the class of each mask, see `task_targets`; a tensor or a list.
        class_names: of all classes.
        count: number of texts, N_text = queries - context rows (150 - 16 = 134); masks beyond it
            have no text.
    """
    count = check_int(count, "count", 1)
    article = "an" if check_task(task) == "instance" else "a"
    numbers = sorted(int(number) for number in classes)
    if numbers and not 0 <= numbers[0] <= numbers[-1] < len(class_names):
        raise ValueError(f"classes has {numbers[0]} ... {numbers[-1]}: {len(class_names)} names")
    texts = [f"a photo with a {class_names[number]}" for number in numbers][:count]
    return texts + [f"{article} {task} photo"] * (count - len(texts))


class WordTokenizer:
    """Ids of whole words: 0 pads, 1 is an unknown word, start and end are the largest two ids.

    Args:
        texts: sentences, whose words are numbered by how often they come, then by the alphabet.
        length: of each row of ids.
    """

    def __init__(self, texts: Sequence[str], length: int = 77) -> None:
        if isinstance(texts, str):
            raise ValueError("texts is a str but needs to be a list of sentences")
        counts = Counter(word for text in texts for word in text.lower().split())
        words = sorted(counts, key=lambda word: (-counts[word], word))
        self.ids = {word: number for number, word in enumerate(words, start=2)}
        self.length, self.vocab_size = check_int(length, "length", 2), len(words) + 4

    def __call__(self, texts: Sequence[str], device: torch.device | str | None = None) -> Tensor:
        """n sentences -> (n, length) long; what is too long loses its end, not its end token."""
        start, end, rows = self.vocab_size - 2, self.vocab_size - 1, []
        for text in texts:
            row = [self.ids.get(word, 1) for word in text.lower().split()][: self.length - 2]
            rows.append([start, *row, end, *[0] * (self.length - len(row) - 2)])
        return torch.tensor(rows, dtype=torch.long, device=device).reshape(len(rows), self.length)


# ------------------------------------------------------------------------------------ the encoder
class TextMlp(nn.Module):
    """c_proj(QuickGELU(c_fc(x))), QuickGELU(x) = x sigmoid(1.702 x), four times as wide inside."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(embed_dim, 4 * embed_dim)
        self.c_proj = nn.Linear(4 * embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x))


class TextBlock(nn.Module):
    """A pre-norm block of CLIP's text encoder."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn = StreamAttention(embed_dim, num_heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.mlp = TextMlp(embed_dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, mask)
        return x + self.mlp(self.ln_2(x))


class TextTransformer(nn.Module):
    """The blocks, one after another.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        num_layers: how many blocks.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        blocks = [TextBlock(embed_dim, num_heads) for _ in range(num_layers)]
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class TextEncoder(nn.Module):
    """Ids of a sentence to one vector: causal attention, read at the end token, the largest id.

    Args:
        vocab_size: number of ids.
        length: L, of a sentence.
        embed_dim: D.
        num_layers: blocks.
        num_heads: must divide D; None: D / 64, the release's.
        causal: a word sees those before it, as in the release. False: all of the row, padding too,
            as transformers 5.23 computes it: it builds the mask and does not use it.
    """

    def __init__(
        self,
        vocab_size: int = 49408,
        length: int = 77,
        embed_dim: int = 256,
        num_layers: int = 6,
        num_heads: int | None = None,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.causal = check_flag(causal, "causal")
        heads = max(1, embed_dim // 64) if num_heads is None else num_heads
        check_heads(embed_dim, heads)
        self.token_embedding = nn.Embedding(check_int(vocab_size, "vocab_size", 3), embed_dim)
        length = check_int(length, "length", 2)
        self.positional_embedding = nn.Parameter(torch.empty(length, embed_dim))
        self.transformer = TextTransformer(embed_dim, heads, check_int(num_layers, "num_layers", 0))
        self.ln_final = nn.LayerNorm(embed_dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, L) long -> (n, D)."""
        length = self.positional_embedding.shape[0]
        stop = self.token_embedding.num_embeddings
        check_index(ids, "ids", "(n, L)", (None, length), stop)
        mask = torch.ones(length, length, dtype=torch.bool, device=ids.device)
        x = self.token_embedding(ids) + self.positional_embedding               # n l d
        x = self.ln_final(self.transformer(x, mask.tril() if self.causal else mask))
        ends = ids.argmax(dim=1)[:, None, None].expand(-1, 1, x.shape[-1])
        return x.gather(1, ends).squeeze(1)


class TextMapper(nn.Module):
    """Text queries: the projected sentences, then learnt context rows that no sentence made.

    Args:
        encoder: sentences to vectors, D channels.
        num_context: N_ctx learnt rows.
    """

    def __init__(self, encoder: TextEncoder, num_context: int = 16) -> None:
        super().__init__()
        if not isinstance(encoder, TextEncoder):
            raise ValueError(f"encoder is {describe(encoder)} but needs to be a TextEncoder")
        embed_dim = encoder.token_embedding.embedding_dim
        self.text_encoder = encoder
        self.text_projector = MLP(embed_dim, embed_dim, embed_dim, 2)
        self.num_context = check_int(num_context, "num_context", 0)
        if self.num_context:
            self.prompt_ctx = nn.Embedding(self.num_context, embed_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N_text, L) long -> (B, N_text + N_ctx, D)."""
        check_index(ids, "ids", "(B, N_text, L)")
        x = self.text_projector(self.text_encoder(ids.flatten(0, 1)))
        x = x.unflatten(0, ids.shape[:2])                                       # b n d
        if not self.num_context:
            return x
        context = self.prompt_ctx.weight.to(x.dtype).expand(ids.shape[0], -1, -1)
        return torch.cat([x, context], dim=1)


def draw_task(generator: torch.Generator) -> str:
    """The task of one training picture: u below 0.33 semantic, below 0.66 instance, else
    panoptic, as in the release."""
    check_generator(generator)
    draw = float(torch.rand((), generator=generator, device=generator.device))
    if draw < 0.33:
        return "semantic"
    return "instance" if draw < 0.66 else "panoptic"
