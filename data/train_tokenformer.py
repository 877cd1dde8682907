"""Train data/checkpoints/tokenformer_chars.safetensors: a TokenFormer that writes names of pictograms, one character at a time.

    python data/train_tokenformer.py

The text is one line a pictogram, "sub-category: name", without the flags; the held-out text holds the names of the test split.
Notebook 01b loads the result and grows it. Same text, same recipe there and here.
"""

import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vtlib.data import pictograms, root
from vtlib.multiscale.tokenformer import TokenFormer

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789&'(),-.:*"
SEED, STEPS, BATCH, LENGTH, RATE = 0, 600, 16, 48, 3e-3


def text(split):
    """The lines of one split in a fixed random order, as character ids (length,)."""
    rows = [r for r in pictograms.table() if r["split"] == split and r["category"] != "Flags"]
    rows = [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()]
    lines = "\n".join(f"{r['subcategory']}: {r['name']}" for r in rows).lower()
    return torch.tensor([CHARACTERS.index(c) for c in lines if c in CHARACTERS])


def windows(ids, start):
    """Inputs and targets (len(start), LENGTH): the target is the next character."""
    x = ids[start[:, None] + torch.arange(LENGTH + 1)]
    return x[:, :-1], x[:, 1:]


def loss(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def train(model, ids, steps=STEPS, seed=SEED):
    """AdamW at a constant rate after 20 steps of warm-up, gradients clipped at norm 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 20)
        x, y = windows(ids, torch.randint(len(ids) - LENGTH, (BATCH,), generator=generator))
        optimizer.zero_grad()
        loss(model, x, y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def main():
    torch.manual_seed(SEED)
    model = TokenFormer(len(CHARACTERS), embed_dim=48, num_layers=2, num_heads=2, num_tokens=32)
    began = time.perf_counter(), time.process_time()
    train(model, text("train"))
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    held = text("test")
    with torch.no_grad():
        score = loss(model, *windows(held, torch.arange(0, len(held) - LENGTH, LENGTH)))
    folder = root() / "checkpoints"
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "tokenformer_chars.safetensors")
    minutes = f"{wall / 60:.1f} min ({cpu / 60:.1f} min of processor time)"
    print(f"{STEPS} steps in {minutes}, {score:.3f} nats a character on the held-out names")


if __name__ == "__main__":
    main()
