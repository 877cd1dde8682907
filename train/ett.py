"""Train ETT at 64 px: a tokenizer tuned by captions, and the four ways it is compared with.

    OMP_NUM_THREADS=1 python train/ett.py [--seed 0] [--steps 600] [--out FOLDER]
    OMP_NUM_THREADS=1 python train/ett.py --score      # measures the stored file again

First what all share, from the same pictures without captions, and from captions without pictures:

    nets       the tokenizer as a continuous autoencoder        1.5 --steps
    codes      the codebook from the encoder's outputs, then L_vq       --steps
    words      the language model on captions alone             0.5 --steps

Then five variants of the same --steps on the same pictures and captions, in the paper's stages (15,
60 and 25 % of the steps): projector or table alone; everything; all but the tokenizer.

    index frozen    indices through a table; the tokenizer never trains
    embed frozen    codes through the projector; the tokenizer never trains
    alpha 0         embeddings, tuned by captions only
    alpha 0.25      the paper's weight of L_vq beside them: this one is shipped (ett_emoji)
    alpha 4         more of it

Other than in the paper: vectors and codes have length 4, visual tokens have learned places, the
tokenizer has a quarter of the language model's learning rate, and L_vq has neither LPIPS nor GAN.

One pictogram of twelve on one colour a picture. Scores on pictures not seen before: shares of words
that are the likeliest ones behind the right words before them, of names ("which") and of places
("where"); "captions", all words right; "blind", both kinds behind another picture;
PSNR in dB over all channels; codes used. The header has those of all five variants, and of the
tokenizer before the tuning.
"""

import functools
import json
import time

import torch
from common import begin, command, cosine, fit, options, rounded, ship
from torch.nn.utils import parameters_to_vector

from vtlib import checkpoints
from vtlib.superres import psnr
from vtlib.tokenizers.captions import KIND, KINDS, VOCABULARY, captioned, captions, encode
from vtlib.tokenizers.ett import ETT, caption_loss

STEPS, BATCH, PLACES = 600, 32, 64
NET = dict(
    patch_size=4, channels=24, multipliers=[1, 2], num_res_blocks=1, num_mid_blocks=1, groups=8
)
CONFIG = dict(
    tokenizer=dict(dim=16, codebook_size=512, norm=4.0, net=NET),
    vocab_size=len(VOCABULARY),
    decoder=dict(embed_dim=80, num_layers=3, num_heads=4, hidden_dim=160),
    places=PLACES,
)
SHIPPED = "alpha 0.25"
VARIANTS = {
    "index frozen": (dict(inputs="indices"), False),
    "embed frozen": (dict(inputs="embeddings"), False),
    "alpha 0": (dict(inputs="embeddings", alpha=0.0), True),
    SHIPPED: (dict(inputs="embeddings", alpha=0.25), True),
    "alpha 4": (dict(inputs="embeddings", alpha=4.0), True),
}
STAGES = (0.15, 0.6, 0.25)


def pictures(args, step):
    return captioned(args.batch, args.seed * 10**6 + step)


@functools.cache
def drawn(batch, seed):
    """(images as bytes, ids, valid) of a step, kept: all variants see the same."""
    scenes = captioned(batch, seed)
    return scenes.images.mul(255).round().byte(), *encode(captions(scenes))


# ----------------------------------------------------------------------------- what all share
def shared(args):
    """An ETT whose tokenizer reconstructs and whose language model writes captions, to no picture
    in particular; and minutes."""
    torch.manual_seed(args.seed)
    model = ETT(**CONFIG)
    nets, codes, words = round(1.5 * args.steps), args.steps, round(0.5 * args.steps)
    minutes = fit_tokenizer(args, model.tokenizer, nets, codes)
    return model, minutes + fit_words(args, model, words)


def fit_tokenizer(args, tokenizer, nets, codes):
    optimizer = torch.optim.AdamW(tokenizer.parameters(), args.peak, betas=(0.9, 0.95))
    rate = cosine(args.peak, nets + codes)

    def images(step):
        return pictures(args, 500_000 + step).images

    first = fit(images, tokenizer.loss_without_codes, optimizer, nets, rate, every=args.every)
    some = torch.cat([images(step) for step in range(nets, nets + 8)])
    tokenizer.start_codebook(some)
    then = fit(
        images, with_parts(tokenizer.loss), optimizer, range(nets, nets + codes), rate,
        every=args.every,
    )
    return first.minutes + then.minutes


def fit_words(args, model, steps):
    """The language model without a picture: a causal decoder on captions alone."""
    weights = [*model.decoder.parameters(), *model.embed_tokens.parameters()]
    optimizer = torch.optim.AdamW(weights, args.peak, betas=(0.9, 0.95))

    def batch(step):
        return encode(captions(pictures(args, 700_000 + step)))

    def loss(given):
        ids, valid = given
        hidden = model.decoder(model.embed_tokens(ids))
        value = caption_loss(model.words(hidden), ids, valid)
        return value, {"words": value.item()}

    rate = cosine(args.peak, steps, warmup=20)
    return fit(batch, loss, optimizer, steps, rate, every=args.every).minutes


def with_parts(loss):
    """The loss as `fit` takes it: numbers to print beside it."""
    def told(inputs):
        value, parts = loss(*inputs) if isinstance(inputs, tuple) else loss(inputs)
        return value, {name: part.item() for name, part in parts.items()}

    return told


# -------------------------------------------------------------------------------- the variants
def tuned(args, start, name):
    """One variant, from what all share; and minutes."""
    options_of, tunes = VARIANTS[name]
    torch.manual_seed(args.seed)
    model = ETT(**{**CONFIG, **options_of})
    state = {k: v for k, v in start.state_dict().items() if not k.startswith("bridge")}
    model.load_state_dict(state, strict=False)
    own, rest = [], []
    for key, parameter in model.named_parameters():
        (own if key.startswith("tokenizer") else rest).append(parameter)
    groups = [{"params": own, "scale": 0.25}, {"params": rest}]
    optimizer = torch.optim.AdamW(groups, args.peak, betas=(0.9, 0.95))

    def batch(step):
        images, ids, valid = drawn(args.batch, args.seed * 10**6 + step)
        return images.float() / 255, ids, valid

    ends = [round(sum(STAGES[:k]) * args.steps) for k in range(4)]
    rate, minutes = cosine(args.peak, args.steps, warmup=20), 0.0
    for stage in (1, 2, 3):
        model.stage(3 if stage == 2 and not tunes else stage)
        steps = range(ends[stage - 1], ends[stage])
        loss = with_parts(model.loss)
        minutes += fit(batch, loss, optimizer, steps, rate, every=args.every).minutes
    print(f"{name}: the tokenizer moved by {moved(model, start):.3f} of its length", flush=True)
    return model, minutes


@torch.no_grad()
def moved(model, start):
    now, before = (parameters_to_vector(m.tokenizer.parameters()) for m in (model, start))
    return ((now - before).norm() / before.norm()).item()


# ------------------------------------------------------------------------------------- scores
@torch.no_grad()
def score(model, batches=16, batch=32):
    """See the text above. Each word is asked for behind the right ones before it.

    Args:
        model: an ETT.
        batches: how many.
        batch: pictures of a batch.
    """
    model.eval()
    right = {kind: [] for kind in (*KINDS, "captions", "blind")}
    quality, seen = [], torch.zeros(model.tokenizer.quantizer.codebook_size, dtype=torch.bool)
    for k in range(batches):
        scenes = captioned(batch, 990_000 + k)
        out = model.tokenizer(scenes.images)
        seen[out.quantized.indices.flatten()] = True
        quality.append(psnr(out.images.clamp(0, 1), scenes.images, y=False))
        ids, valid = encode(captions(scenes))
        tokens = model.visual_tokens(out.quantized)
        hits, blind = (best(model, t, ids) for t in (tokens, tokens.roll(1, 0)))
        kinds = KIND[ids[:, 1:]].masked_fill(~valid[:, 1:], -1)                  # b l-1
        for number, kind in enumerate(KINDS):
            right[kind].append(hits[kinds == number])
        right["blind"].append(blind[kinds > 0])
        right["captions"].append((hits | ~valid[:, 1:]).all(1))
    table = {name: torch.cat(hits).float().mean().item() for name, hits in right.items()}
    del table["rest"]
    return rounded({**table, "psnr": torch.cat(quality).mean().item(), "codes": seen.sum().item()})


def best(model, tokens, ids):
    """(B, L - 1) bool: whether each next word is the likeliest one."""
    return model.read(tokens, ids)[:, :-1].argmax(-1) == ids[:, 1:]


@torch.no_grad()
def rebuilt(tokenizer, **scored):
    """PSNR and codes of a tokenizer that no caption has touched."""
    table = score(ETT(**{**CONFIG, "tokenizer": tokenizer}), **scored)
    return {name: table[name] for name in ("psnr", "codes")}


def show(table):
    """One table of all variants."""
    columns = ("which", "where", "captions", "blind", "psnr", "codes")
    print(f"{'':14}" + "".join(f"{name:>10}" for name in columns))
    for name, row in table.items():
        cells = (row.get(column, "") for column in columns)
        print(f"{name:14}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


def main(argv=None):
    parser = options(__doc__, STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--score", action="store_true", help="measure the stored file again")
    args = begin(parser, argv, batch=2, scored=dict(batches=2, batch=4))
    if args.score:
        stored = checkpoints.load("ett_emoji", ETT)
        print(json.dumps(score(stored, **args.scored), indent=1))
        return
    began = time.process_time()
    start, _ = shared(args)
    table = {"before": rebuilt(start.tokenizer, **args.scored)}
    models = {}
    for name in VARIANTS:
        model, minutes = tuned(args, start, name)
        table[name] = {**score(model, **args.scored), "minutes": round(minutes, 1)}
        models[name] = model.train()
    show(table)
    ship(
        args.out,
        "ett_emoji",
        models[SHIPPED],
        lambda: score(models[SHIPPED], **args.scored),
        config={**CONFIG, **VARIANTS[SHIPPED][0]},
        shared=dict(vocabulary=list(VOCABULARY)),
        command=command(__file__, seed=args.seed, steps=args.steps),
        seed=args.seed,
        steps=args.steps,
        variants=table,
        minutes=round((time.process_time() - began) / 60, 1),
    )


if __name__ == "__main__":
    main()
