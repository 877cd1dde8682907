"""Train a TokenFormer that writes names of pictograms, one character at a time.

    OMP_NUM_THREADS=1 python train/tokenformer.py

The text is one line a pictogram, "sub-category: name", without the flags; the held-out text holds
the names of the test split. Notebook 01b loads the result, data/checkpoints/tokenformer_chars, and
grows it. Same text, same recipe there and here.
"""

import torch
import torch.nn.functional as F
from common import begin, command, fit, options, ship

from vtlib.data import pictograms
from vtlib.multiscale.tokenformer import TokenFormer

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789&'(),-.:*"
CONFIG = dict(
    vocab_size=len(CHARACTERS), embed_dim=48, num_layers=2, num_heads=2, num_tokens=32
)
STEPS, BATCH, LENGTH, RATE = 600, 16, 48, 3e-3


def text(split):
    """The lines of one split in a fixed random order, as character ids (length,)."""
    table = pictograms.table()
    rows = [r for r in table if r["split"] == split and r["category"] != "Flags"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    lines = "\n".join(f"{rows[i]['subcategory']}: {rows[i]['name']}" for i in order).lower()
    return torch.tensor([CHARACTERS.index(c) for c in lines if c in CHARACTERS])


def windows(ids, start):
    """Inputs and targets (len(start), LENGTH): the target is the next character."""
    x = ids[start[:, None] + torch.arange(LENGTH + 1)]
    return x[:, :-1], x[:, 1:]


def train(args):
    """AdamW at a constant rate after 20 steps of warm-up, gradients clipped at norm 1."""
    torch.manual_seed(args.seed)
    model, ids = TokenFormer(**CONFIG), text("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    generator = torch.Generator().manual_seed(args.seed)

    def batch(step):
        return windows(ids, torch.randint(len(ids) - LENGTH, (BATCH,), generator=generator))

    def rate(step):
        return RATE * min(1, (step + 1) / 20)

    fitted = fit(
        batch,
        lambda inputs: loss(model, *inputs),
        optimizer,
        args.steps,
        rate,
        autocast=False,
        every=args.every,
    )
    return model, fitted


def loss(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


@torch.no_grad()
def score(model):
    """Nats a character on the held-out names."""
    held = text("test")
    found = loss(model, *windows(held, torch.arange(0, len(held) - LENGTH, LENGTH)))
    return {"nats a character": round(found.item(), 3)}


def main(argv=None):
    args = begin(options(__doc__, STEPS), argv)
    model, fitted = train(args)
    ship(
        args.out,
        "tokenformer_chars",
        model,
        lambda: score(model),
        config=CONFIG,
        characters=CHARACTERS,
        command=command(__file__, seed=args.seed, steps=args.steps),
        seed=args.seed,
        steps=args.steps,
        minutes=round(fitted.minutes, 1),
    )


if __name__ == "__main__":
    main()
