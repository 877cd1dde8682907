"""Train the small CATANet that the notebooks use, and the same net without token aggregation.

    OMP_NUM_THREADS=1 python train/catanet.py            # data/checkpoints/catanet_small
    OMP_NUM_THREADS=1 python train/catanet.py --local    # aggregate=False: catanet_small_local
    ... --seed 1                                         # its scores: catanet_small[_local]_seeds
    python train/catanet.py [--local] --score            # measures the stored file again

x2, degradation BI. Pictures: crops of the photographs that are no test background, at several
sizes, turned and flipped, one in eight an EmojiWorld scene of the train split. L1 loss, Adam
(0.9, 0.99) as the paper, cosine to 2 % of the peak. bfloat16 autocast, weights in float32.
Scores: test photographs, 6 crops each, PSNR and SSIM on Y with a border of 2 left out, as the paper
measures.
"""

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, options, ship

from vtlib.data import EmojiWorld, assets
from vtlib.data.footage import split_names
from vtlib.superres import bicubic, pretrained, psnr, ssim
from vtlib.superres.catanet import CATANet

CONFIG = dict(
    upscale=2,
    embed_dim=32,
    num_layers=4,
    qk_dim=24,
    mlp_dim=64,
    num_heads=2,
    patch_sizes=[8, 12],
    num_centres=[16, 32],
    group_sizes=[64, 32],
    n_iter=3,
    ema_decay=0.99,
)
STEPS = 1500
CROP = 64  # of the large picture


def photographs(split):
    """Photographs of one split as they are stored, and smaller: list of (3, h, w)."""
    out = []
    for photo in assets.photographs(names=split_names(split)).values():
        if min(photo.shape[-2:]) >= 2 * CROP:
            out.append(photo)
        size = [round(side / 1.5) for side in photo.shape[-2:]]
        if min(size) >= 2 * CROP:
            small = F.interpolate(photo[None], size=size, mode="bicubic", antialias=True)
            out.append(small[0].clamp(0, 1))
    return out


def cut(pictures, generator):
    """(3, CROP, CROP): cut anywhere from one of the pictures, flipped and transposed at random."""
    picture = pictures[torch.randint(len(pictures), (), generator=generator)]
    corners = [torch.randint(s - CROP + 1, (), generator=generator) for s in picture.shape[-2:]]
    y, x = map(int, corners)
    crop = picture[:, y : y + CROP, x : x + CROP]
    mirrored, upside_down, transposed = (torch.rand(3, generator=generator) < 0.5).tolist()
    if mirrored:
        crop = crop.flip(-1)
    if upside_down:
        crop = crop.flip(-2)
    return crop.transpose(-1, -2) if transposed else crop


def crops(pictures, batch, seed):
    """(batch, 3, CROP, CROP): one in eight a scene of pictograms, the others cut from pictures."""
    generator = torch.Generator().manual_seed(seed)
    world = EmojiWorld(CROP, "train", artist="both")
    rows = list(world.scenes(max(1, batch // 8), seed, objects=(1, 5)).images)
    while len(rows) < batch:
        rows.append(cut(pictures, generator))
    return torch.stack(rows)


def held_out(size=192, each=6):
    """{photograph: (each, 3, size, size)}: crops of the test photographs at fixed places."""
    generator, out = torch.Generator().manual_seed(990_000), {}
    for name, photo in assets.photographs(names=split_names("test")).items():
        rows = []
        for _ in range(each):
            places = [torch.randint(s - size + 1, (), generator=generator) for s in photo.shape[1:]]
            y, x = map(int, places)
            rows.append(photo[:, y : y + size, x : x + size])
        out[name] = torch.stack(rows)
    return out


def quality(got, images):
    """[PSNR, SSIM], means over crops."""
    got = got.clamp(0, 1)
    return [
        round(psnr(got, images, crop=2).mean().item(), 2),
        round(ssim(got, images, crop=2).mean().item(), 4),
    ]


@torch.no_grad()
def score(model, each=6):
    """{photograph or "all": {"bicubic": [PSNR, SSIM], "model": [PSNR, SSIM]}}.

    each: crops of a photograph.
    """
    table = {}
    for name, images in held_out(each=each).items():
        small = bicubic(images, 1 / 2)
        table[name] = {
            "bicubic": quality(bicubic(small, 2), images),
            "model": quality(model(small), images),
        }
    everything = {}
    for how in ("bicubic", "model"):
        pairs = zip(*(row[how] for row in table.values()), strict=True)
        means = [sum(values) / len(table) for values in pairs]
        everything[how] = [round(means[0], 2), round(means[1], 4)]
    return table | {"all": everything}


def train(args, config):
    torch.manual_seed(args.seed)
    model, pictures = CATANet(**config), photographs("train")
    optimizer = torch.optim.Adam(model.parameters(), args.peak, betas=(0.9, 0.99))

    def batch(step):
        return crops(pictures, args.batch, args.seed * 10**6 + step)

    def loss(large):
        return F.l1_loss(model(bicubic(large, 1 / 2)).float(), large)

    def then(done):
        if done % (4 * args.every):
            return None
        model.eval()
        found = score(model, **args.scored)["all"]
        model.train()
        return str(found)

    rate = cosine(args.peak, args.steps, warmup=50)
    return model, fit(batch, loss, optimizer, args.steps, rate, every=args.every, then=then)


def main(argv=None):
    parser = options(__doc__, STEPS)
    parser.add_argument("--local", action="store_true", help="without token aggregation")
    parser.add_argument("--score", action="store_true", help="measure the stored file again")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
    args = begin(parser, argv, batch=2, scored=dict(each=1))
    if args.score:
        stored = pretrained.catanet_small("local" if args.local else None)
        print(score(stored, **args.scored))
        return
    config = {**CONFIG, "aggregate": not args.local}
    model, fitted = train(args, config)
    ship(
        args.out,
        "catanet_small_local" if args.local else "catanet_small",
        model,
        lambda: score(model, **args.scored),
        config=config,
        command=command(
            __file__, *["--local"] * args.local, seed=args.seed, steps=args.steps
        ),
        seed=args.seed,
        steps=args.steps,
        minutes=round(fitted.minutes, 1),
    )


if __name__ == "__main__":
    main()
