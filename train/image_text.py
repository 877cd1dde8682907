"""Train the image-text encoder on EmojiWorld: data/checkpoints/image_text_emoji.safetensors.

    OMP_NUM_THREADS=1 python train/image_text.py [--seed 0] [--steps 700] [--out FOLDER]

Pictures of 64 px with one or two pictograms; captions name them, sometimes by their sub-category
(vtlib/vlm/pretrained.py). CLIP's loss, where all pictures with one caption are right for it. The
ViT begins as the first four blocks of vit_emoji: after 125 steps the loss is 3.81, from random
weights 4.41 (it begins at 4.56). AdamW, warm-up, one cosine; single precision, which on a CPU is
twice as fast here as bfloat16. With --text minilm the text tower is the real MiniLM, frozen, and
only a projection of it is trained; its score alone is kept.

Stored, on held-out backgrounds: recall at 1 of 256 pictures; which of `names` a picture of one
pictogram shows; which of 12 a patch and a region shows, by each way there is.
"""

import torch
import torch.nn.functional as F
from common import begin, command, cosine, decayed, fit, options, rounded, same_captions, ship

from vtlib.data import EASY
from vtlib.vit.pretrained import vit_emoji
from vtlib.vlm import pretrained
from vtlib.vlm.image_text import DENSE, ImageText, contrast, emoji_encoder

VISION = dict(
    img_size=96, patch_size=8, embed_dim=128, num_layers=4, num_heads=4, joint_dim=64
)
TEXT = dict(embed_dim=64, num_layers=1, num_heads=2, context=16)
STEPS, BATCH, PEAK, WARMUP = 700, 96, 1e-3, 30


def start(vit):
    """The first blocks of the course's classifier of 48 pictograms, none of them in NEW."""
    known, classes = vit_emoji()
    assert not set(classes) & set(pretrained.NEW)
    wanted = vit.state_dict()
    vit.load_state_dict({k: v for k, v in known.state_dict().items() if k in wanted})


def train(args, model):
    torch.manual_seed(args.seed)
    start(model.vit)
    world = pretrained.world("train")
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(decayed(weights, 0.05), PEAK, betas=(0.9, 0.98))
    model.train()

    def batch(step):
        return pretrained.pictures(world, args.batch, args.seed * 10**6 + step)

    def loss(part):
        return contrast(model(part.images, part.captions), same_captions(part.captions))

    return fit(batch, loss, optimizer, args.steps, cosine(PEAK, args.steps, WARMUP),
               every=args.every, autocast=False)


@torch.no_grad()
def retrieval(model, pool, pools):
    """Recall at 1 among `pool` pictures, picture to text and back."""
    world, hits = pretrained.world("test"), torch.zeros(2)
    for i in range(pools):
        part = pretrained.pictures(world, pool, 990_000 + i)
        logits, right = model(part.images, part.captions), same_captions(part.captions)
        for k, axis in enumerate((1, 0)):
            hits[k] += right.gather(1, logits.argmax(axis)[:, None]).sum() / (pool * pools)
    return dict(zip(("i2t", "t2i"), hits.tolist(), strict=True))


@torch.no_grad()
def naming(model, shown, names, pictures):
    """Share of pictures of one pictogram of `shown` whose nearest of `names` is right."""
    world = pretrained.world("test", shown)
    images, labels = world.classify(pictures, 970_000, scale=(0.5, 0.75))
    vectors = model.text_vectors(names)
    place = torch.tensor([names.index(name) for name in world.classes])
    found = torch.cat([(model.image(part) @ vectors.mT).argmax(1) for part in images.split(128)])
    return (found == place[labels]).float().mean().item()


@torch.no_grad()
def places(model, pictures):
    """Which of the twelve of EASY: patches that are mostly one object's, and its region."""
    world = pretrained.world("test", list(EASY), size=96)
    scenes = world.scenes(pictures, 960_000, objects=(2, 3), scale=(0.35, 0.5), repeat=0,
                          occlusion="none")
    vectors = model.text_vectors(list(EASY))
    masks = F.avg_pool2d(scenes.masks.float(), model.patch_size) > 0.5           # b k h w
    there = masks.flatten(2).any(-1)
    labels = scenes.pictogram[there]
    object_patches = masks.any(1)
    slot = masks.int().argmax(1)                                                 # b h w
    labels_of_patches = scenes.pictogram.gather(1, slot.flatten(1)).view_as(slot)[object_patches]
    found = {}
    for how in DENSE:
        logits = model.dense(scenes.images, how) @ vectors.mT                    # b h w 12
        right = logits.argmax(-1)[object_patches] == labels_of_patches
        found[f"patch {how}"] = right.float().mean().item()
    for name, how in (("mean", dict(how="mean")), ("mask 1", dict(blocks=1)),
                      ("mask 2", dict(blocks=2)), ("mask 4", dict(blocks=4))):
        vector = model.region(scenes.images, masks, **how)[there]
        right = (vector @ vectors.mT).argmax(1) == labels
        found[f"region {name}"] = right.float().mean().item()
    return found


def score(model, pool=256, pools=4, pictures=1024):
    """What the file's first lines say.

    Args:
        model: in eval mode.
        pool: pictures told apart at a time.
        pools: how many times.
        pictures: how many are named.
    """
    seen, new = pretrained.trained(), list(pretrained.NEW)
    found = dict(
        recall=retrieval(model, pool, pools),
        naming={
            f"seen of {len(seen)}": naming(model, seen, seen, pictures),
            "easy of 12": naming(model, list(EASY), list(EASY), pictures),
            f"new of {len(new)}": naming(model, new, new, pictures),
            f"new of {len(seen + new)}": naming(model, new, seen + new, pictures),
        },
        places=places(model, max(32, pictures // 4)),
    )
    return rounded(found)


def main(argv=None):
    parser = options(__doc__, STEPS, batch=BATCH)
    parser.add_argument("--text", choices=("words", "minilm"), default="words")
    few = dict(pool=16, pools=1, pictures=32)
    args = begin(parser, argv, batch=8, scored=few)
    torch.manual_seed(args.seed)
    if args.text == "words":
        config = dict(words=pretrained.vocabulary(), text=TEXT, **VISION)
        model, stem = emoji_encoder(**config), "image_text_emoji"
    else:
        from vtlib.hub import minilm_text

        config, stem = VISION, "image_text_minilm"
        model = ImageText(minilm_text(), **VISION)
    fitted = train(args, model)
    words = ["--text", args.text] if args.text != "words" else []
    ship(
        args.out, stem, model, lambda: score(model, **args.scored),
        config=config, command=command(__file__, *words, seed=args.seed, steps=args.steps),
        seed=args.seed, keep=args.text == "words", steps=args.steps,
        minutes=round(fitted.minutes, 1),
    )


if __name__ == "__main__":
    main()
