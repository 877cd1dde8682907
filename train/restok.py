"""Train ResTok's generator, which predicts whole levels, and its rival, which goes token by token.

    OMP_NUM_THREADS=1 python train/restok.py [--seed 0] [--steps 1500] [--out FOLDER]
    ... --tokenizer FILE             # another ResTok than the shipped tokenizer_restok

The tokenizer is frozen. Pictures: one pictogram of 64 px on a plain colour, conditioned on its
category; their codes are made once. Two models of the same layers see the same batches for the same
number of steps:

    restok_emoji_serial      each token given all before it, scores only
    restok_emoji             HAR: 4 tokens one by one, then a level a pass

AdamW (0.9, 0.95), cosine, 10 % of the classes left out. Scores, on pictures of the test split:

    cross-entropy            nats a token, given the class
    by level                 the same of each level, levels of 1, 1, 2, 4, ... tokens
    marginal entropy         of a table of how often each code comes at each place in training
    passes                   of the network for one picture
    gap                      of the last level, HAR's less the serial one's (HAR's header only)

HAR takes the tokens of a level for independent, given those before; the serial one does not. With
both trained to the end the gap would be what the tokens of the last level say about each other, in
nats a token; here it is an estimate, with what training left undone in it.
"""

from pathlib import Path

import torch
from common import begin, command, cosine, fit, options, ship

from vtlib import checkpoints
from vtlib.data import EmojiWorld
from vtlib.tokenizers import HAR, ResTok
from vtlib.tokenizers.restok_levels import level_sizes

SIZE, STEPS, POOL = 64, 1500, 8192
MODEL = dict(num_classes=9, embed_dim=64, num_layers=3, num_heads=4, multiple=8, dropout=0.1)
HELD_OUT = 990_000


def pictures(batch, seed, split="train"):
    """Images (B, 3, 64, 64) and their categories (B,)."""
    world = EmojiWorld(SIZE, split, artist="both")
    return world.classify(
        batch, seed, level="category", scale=(0.6, 0.95), rotation=10, background="plain"
    )


@torch.no_grad()
def encoded(tokenizer, number, seed, split="train", chunk=64):
    """Indices (number, N) and categories (number,), in chunks with seeds of their own."""
    indices, labels = [], []
    for start in range(0, number, chunk):
        images, given = pictures(min(chunk, number - start), seed + start, split)
        indices.append(tokenizer.encode(images).indices)
        labels.append(given)
    return torch.cat(indices), torch.cat(labels)


def train(args, config, pool):
    """One model; its batches depend on seed and step alone, so both see the same."""
    torch.manual_seed(args.seed)
    model = HAR(**config)
    optimizer = torch.optim.AdamW(
        model.parameters(), args.peak, betas=(0.9, 0.95), weight_decay=0.05
    )
    indices, labels = pool

    def batch(step):
        generator = torch.Generator().manual_seed(args.seed * 10**6 + step)
        which = torch.randint(len(indices), (args.batch,), generator=generator)
        return indices[which], labels[which], generator

    rate = cosine(args.peak, args.steps, warmup=60)
    return model, fit(
        batch, lambda inputs: model.loss(*inputs), optimizer, args.steps, rate, autocast=False,
        every=args.every,
    )


# ------------------------------------------------------------------------------------------ scores
def marginal_entropy(held, seen, codes):
    """Nats a token of `held` (n, N), of a table for each place made of `seen`, each code seen once
    more."""
    total = 0.0
    for place in range(held.shape[1]):
        counts = seen[:, place].bincount(minlength=codes) + 1.0
        total -= (counts / counts.sum()).log()[held[:, place]].mean().item()
    return total / held.shape[1]


@torch.no_grad()
def score(model, held, seen):
    """What the header says.

    Args:
        model: the generator.
        held: indices and categories that are held out.
        seen: those of training.
    """
    chunks = zip(held[0].split(64), held[1].split(64), strict=True)
    nats = torch.cat([model.surprisal(*chunk) for chunk in chunks]).mean(dim=0)              # n
    levels = [level.mean().item() for level in nats.split(level_sizes(model.num_tokens))]
    return {
        "cross-entropy": round(nats.mean().item(), 3),
        "by level": [round(level, 3) for level in levels],
        "marginal entropy": round(marginal_entropy(held[0], seen[0], model.vocab_size), 3),
        "passes": len(model.groups),
    }


def main(argv=None):
    parser = options(__doc__, STEPS, pool=POOL, pictures=2048, every=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--tokenizer", type=Path, help="its file, if it isn't the shipped one")
    args = begin(parser, argv, batch=4, pool=64, pictures=16)
    tokenizer = checkpoints.load(args.tokenizer or "tokenizer_restok", ResTok)
    seen = encoded(tokenizer, args.pool, args.seed * 10**6)
    held = encoded(tokenizer, args.pictures, HELD_OUT, "test")
    sizes = dict(vocab_size=tokenizer.quantizer.codebook_size, num_tokens=seen[0].shape[1])
    table = {}
    for name, singles in (("restok_emoji_serial", sizes["num_tokens"]), ("restok_emoji", 4)):
        config = dict(MODEL, **sizes, ar_tokens=singles)
        model, fitted = train(args, config, seen)

        def scored(name=name, model=model):
            table[name] = score(model, held, seen)
            if name == "restok_emoji":
                last = [row["by level"][-1] for row in table.values()]
                table[name]["gap"] = round(last[1] - last[0], 3)
            return table[name]

        ship(
            args.out,
            name,
            model,
            scored,
            config=config,
            command=command(__file__, seed=args.seed, steps=args.steps),
            seed=args.seed,
            keep=name == "restok_emoji",
            shared=dict(classes=EmojiWorld().names("category")),
            steps=args.steps,
            minutes=round(fitted.minutes, 1),
        )


if __name__ == "__main__":
    main()
