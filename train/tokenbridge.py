"""Train the small TokenBridge generator that the notebooks use, and the parallel head that it is
compared with.

    OMP_NUM_THREADS=1 python train/tokenbridge.py [--seed 0] [--steps 600] [--out FOLDER]
    ... --autoencoder FILE           # another KL autoencoder than the shipped tokenizer_kl

The autoencoder is frozen. Its latents, each channel with mean 0 and deviation 1, are cut into 16
levels; the order of channels is that of their low frequencies. Pictures: one pictogram of 64 px on
a plain colour, conditioned on its category. Two models, the same pictures, the same masks, the same
number of steps:

    tokenbridge_emoji            the dimension-wise autoregressive head
    tokenbridge_emoji_parallel   all channels at once, scores only

AdamW (0.9, 0.95), cosine, gradients clipped at 3 as in the release; no EMA, for there are few
steps. Scores, on pictograms and artists as they come in the test split:

    cross-entropy            nats a channel, given the class and 0 to 30 % of the positions
    marginal entropy         the same of a table of how often each level comes in training
    covariance error         |cov(samples) - cov(real)| / |cov(real)|, of the channels of a position
    sliced W2                distance of samples and real ones along random directions
    ... of real pictures     the same of training pictures: what no model gets below
"""

from pathlib import Path

import torch
from common import begin, command, cosine, fit, options, ship

from vtlib import checkpoints
from vtlib.data import EmojiWorld
from vtlib.tokenizers import (
    MaskedGenerator,
    TokenBridge,
    frequency_order,
    small,
    standardisation,
)

SIZE, LEVELS, STEPS = 64, 16, 600
MODEL = dict(
    num_classes=9, levels=LEVELS, embed_dim=64, num_layers=2, num_heads=4, num_buffer=8,
    head_dim=64, head_layers=2, head_heads=4, dropout=0.0,
)
KINDS = {"tokenbridge_emoji": False, "tokenbridge_emoji_parallel": True}
HELD_OUT = 990_000


def pictures(batch, seed, split="train"):
    """Images (B, 3, 64, 64) and their categories (B,)."""
    world = EmojiWorld(SIZE, split, artist="both")
    return world.classify(
        batch, seed, level="category", scale=(0.6, 0.95), rotation=10, background="plain"
    )


@torch.no_grad()
def prepare(autoencoder, number):
    """The tokenizer, what built it, and the order of channels, all from `number` pictures."""
    dim = autoencoder.encode(torch.zeros(1, 3, SIZE, SIZE)).codes.shape[-1]
    latents = TokenBridge(autoencoder, dim).latents(pictures(number, seed=HELD_OUT - 1)[0])
    shift, scale = standardisation(latents)
    made = dict(dim=dim, levels=LEVELS, shift=rounded(shift), scale=rounded(scale))
    tokenizer = TokenBridge(autoencoder, **made)
    order = frequency_order((latents - tokenizer.shift) * tokenizer.scale).tolist()
    return tokenizer, made, order


def rounded(values):
    return [float(f"{value:.4g}") for value in values.tolist()]


def train(args, tokenizer, config):
    """One model; its random numbers depend on seed and step alone, so all see the same masks."""
    torch.manual_seed(args.seed)
    model = MaskedGenerator(**config)
    groups = torch.optim.AdamW(
        model.parameters(), args.peak, betas=(0.9, 0.95), weight_decay=0.02
    )

    def batch(step):
        seed = args.seed * 10**6 + step
        images, labels = pictures(args.batch, seed)
        with torch.no_grad():
            return tokenizer.encode(images).indices, labels, torch.Generator().manual_seed(seed)

    rate = cosine(args.peak, args.steps, warmup=30)
    return model, fit(
        batch, lambda inputs: model.loss(*inputs), groups, args.steps, rate, clip=3.0,
        autocast=False, every=args.every,
    )


# ------------------------------------------------------------------------------------------ scores
def covariance_error(made, real):
    """Frobenius norm of the difference of two covariances over that of the second.

    Rows are vectors (R, C)."""
    real = real.T.cov()
    return ((made.T.cov() - real).norm() / real.norm()).item()


def sliced_w2(made, real, directions=64):
    """Root mean squared distance of sorted projections of as many rows (R, C) each."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(made.shape[1], directions, generator=generator)
    axes = axes / axes.norm(dim=0)
    gaps = (made @ axes).sort(dim=0).values - (real @ axes).sort(dim=0).values
    return gaps.square().mean().sqrt().item()


@torch.no_grad()
def cross_entropy(model, indices, labels, rounds):
    """Nats a channel of held-out pictures, mean over `rounds` masks each."""
    total = 0.0
    for k in range(rounds):
        for part, given in zip(indices.split(32), labels.split(32), strict=True):
            generator = torch.Generator().manual_seed(HELD_OUT + k)
            total += model.loss(part, given, generator).item() * len(part)
    return total / (rounds * len(indices))


def marginal_entropy(indices, train):
    """Nats a channel of `indices`, of a table made of `train`, each level seen once more."""
    total = 0.0
    for channel in range(indices.shape[-1]):
        counts = train[..., channel].flatten().bincount(minlength=LEVELS) + 1.0
        total -= (counts / counts.sum()).log()[indices[..., channel]].mean().item()
    return total / indices.shape[-1]


@torch.no_grad()
def score(model, tokenizer, number=288, rounds=4, steps=16):
    """What the header says.

    Args:
        model: the generator.
        tokenizer: of its indices.
        number: pictures that are held out, and sampled.
        rounds: masks that the cross-entropy is measured with.
        steps: of sampling.
    """
    images, labels = pictures(number, HELD_OUT, "test")
    held, seen = (tokenizer.encode(x).indices for x in (images, pictures(number, HELD_OUT + 1)[0]))
    generator = torch.Generator().manual_seed(0)
    made = torch.cat([
        model.sample(given, steps=steps, generator=generator) for given in labels.split(32)
    ])
    real, other, rows = (tokenizer.quantizer.decode(i).flatten(0, 2) for i in (held, seen, made))
    return {
        "cross-entropy": round(cross_entropy(model, held, labels, rounds), 3),
        "marginal entropy": round(marginal_entropy(held, seen), 3),
        "covariance error": round(covariance_error(rows, real), 3),
        "covariance error of real pictures": round(covariance_error(other, real), 3),
        "sliced W2": round(sliced_w2(rows, real), 3),
        "sliced W2 of real pictures": round(sliced_w2(other, real), 3),
    }


def main(argv=None):
    parser = options(__doc__, STEPS, every=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--pictures", type=int, default=512, help="that the scales come from")
    parser.add_argument("--autoencoder", type=Path, help="its file, if it isn't the shipped one")
    args = begin(parser, argv, batch=2, pictures=16, scored=dict(number=4, rounds=1, steps=4))
    autoencoder = checkpoints.load(args.autoencoder or "tokenizer_kl", small)
    tokenizer, made, order = prepare(autoencoder, args.pictures)
    for name, parallel in KINDS.items():
        config = dict(MODEL, grid=[SIZE // 8] * 2, dim=made["dim"], order=order, parallel=parallel)
        model, fitted = train(args, tokenizer, config)
        ship(
            args.out,
            name,
            model,
            lambda model=model: score(model, tokenizer, **args.scored),
            config=config,
            command=command(__file__, seed=args.seed, steps=args.steps),
            seed=args.seed,
            keep=not parallel,
            shared=dict(tokenizer=made, classes=EmojiWorld().names("category")),
            steps=args.steps,
            minutes=round(fitted.minutes, 1),
        )


if __name__ == "__main__":
    main()
