"""Train the plain ViT that the notebooks share, and write data/checkpoints/vit_emoji.safetensors.

    OMP_NUM_THREADS=1 python train/vit.py [--seed 0] [--small 900] [--large 250] [--out FOLDER]
    ... --steps 600                  # both phases shortened alike

48 pictograms by both artists, on the train backgrounds, on noise and on plain colours. First at
48 px (36 tokens: cheap steps, the drawings as many pixels large as at 96 px), then at 96 px (144
tokens) with the position table resized. AdamW, one cosine over both phases. The score is the
accuracy on held-out backgrounds.
"""

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, options, ship

from vtlib.data import EASY, EmojiWorld
from vtlib.nn import resize_pos_embed
from vtlib.vit import ViT

OTHERS = """penguin, frog face, crab, honeybee, panda face, tropical fish, turtle, owl, snail,
lion face, banana, strawberry, watermelon, carrot, broccoli, pineapple, cookie, lollipop,
french fries, birthday cake, bus, airplane, sailboat, bicycle, helicopter, fire engine, balloon,
wrapped present, trophy, snowman, christmas tree, tulip, pencil, sunglasses, key, jack-o-lantern"""
CLASSES = [*EASY, *OTHERS.replace("\n", " ").split(", ")]
CONFIG = dict(
    img_size=96, patch_size=8, num_classes=len(CLASSES), embed_dim=128, num_layers=6, num_heads=4
)
SMALL, LARGE = (48, (0.45, 1.0), 64), (96, (0.3, 0.9), 32)  # pixels, scale of the drawing, batch
BACKGROUNDS = ("photo", "noise", "photo", "plain")
MEAN, STD = 0.5, 0.25
BINS = {"0.3-0.5": (0.3, 0.5), "0.5-0.7": (0.5, 0.7), "0.7-0.9": (0.7, 0.9)}


def resized(model, config):
    """The same weights in a ViT for another picture size."""
    other = ViT(**config)
    state = model.state_dict()
    state["pos_embed"] = resize_pos_embed(state["pos_embed"], model.grid, other.grid)
    other.load_state_dict(state)
    return other


def phase(model, args, form, steps, total):
    """One picture size; the learning rate follows one cosine over all phases."""
    size, scale, number = form
    world = EmojiWorld(size, "train", artist="both", pictograms=CLASSES)
    optimizer = torch.optim.AdamW(
        model.parameters(), args.peak, weight_decay=0.05, betas=(0.9, 0.98)
    )
    model.train()

    def batch(step):
        background = BACKGROUNDS[step % len(BACKGROUNDS)]
        return world.classify(
            number, seed=args.seed * 10**6 + step, scale=scale, background=background
        )

    def loss(inputs):
        images, labels = inputs
        return F.cross_entropy(model((images - MEAN) / STD), labels)

    rate = cosine(args.peak, total, warmup=40, floor=0.0, first=steps.start)
    return fit(batch, loss, optimizer, steps, rate, autocast=False, every=args.every)


def train(args):
    torch.manual_seed(args.seed)
    total = args.small + args.large
    model = ViT(**{**CONFIG, "img_size": SMALL[0]})
    first = phase(model, args, SMALL, range(args.small), total)
    model = resized(model, CONFIG)
    second = phase(model, args, LARGE, range(args.small, total), total)
    fold_normalisation(model)
    return model, first.rows + second.rows, first.minutes + second.minutes


@torch.no_grad()
def fold_normalisation(model):
    """(x - mean) / std before a linear embedding is another one: the model takes [0, 1]."""
    proj = model.patch_embed.proj
    proj.bias -= proj.weight.sum(dim=(1, 2, 3)) * MEAN / STD
    proj.weight /= STD


@torch.no_grad()
def score(model, pictures=480):
    """Accuracy on held-out backgrounds: {artist: {scale: accuracy}}."""
    table = {}
    for artist in ("noto", "twemoji"):
        world = EmojiWorld(CONFIG["img_size"], "test", artist=artist, pictograms=CLASSES)
        table[artist] = {}
        for name, scale in BINS.items():
            hits = 0
            for chunk in range(pictures // 96):
                images, labels = world.classify(96, seed=990_000 + chunk, scale=scale)
                hits += (model(images).argmax(1) == labels).sum().item()
            table[artist][name] = round(hits / (pictures // 96 * 96), 3)
    return table


def main(argv=None):
    parser = options(__doc__, None)
    parser.add_argument("--small", type=int, default=900, help="steps at 48 px")
    parser.add_argument("--large", type=int, default=250, help="steps at 96 px")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="highest learning rate")
    args = begin(parser, argv, scored=dict(pictures=96))
    if args.steps is not None:  # both phases, shortened alike
        args.large = args.steps * args.large // (args.small + args.large)
        args.small = args.steps - args.large
    model, _, minutes = train(args)
    told = dict(seed=args.seed, small=args.small, large=args.large, peak=args.peak)
    ship(
        args.out,
        "vit_emoji",
        model,
        lambda: score(model, **args.scored),
        config=CONFIG,
        classes=CLASSES,
        command=command(__file__, **told),
        seed=args.seed,
        steps=args.small + args.large,
        minutes=round(minutes, 1),
    )


if __name__ == "__main__":
    main()
