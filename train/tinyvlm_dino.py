"""Train TinyVLM-DINO: TinyVLM's decoder behind the patch tokens of a real, frozen DINOv2.

    OMP_NUM_THREADS=1 python train/tinyvlm_dino.py features  # 1. what DINOv2 makes of scenes
    OMP_NUM_THREADS=1 python train/tinyvlm_dino.py align     # 2. the projector alone
    OMP_NUM_THREADS=1 python train/tinyvlm_dino.py read      # 3. projector and decoder
    OMP_NUM_THREADS=1 python train/tinyvlm_dino.py ship      # 4. data/checkpoints/tinyvlm_dino
    OMP_NUM_THREADS=1 python train/tinyvlm_dino.py score     # measures the stored file again

It needs DINOv2's weights (`make real`). `features` writes WORK/features, a file for each batch of
24 scenes, --steps of them; it leaves out those that are there, and the later steps take what they
find. Decoder and words are TinyVLM's at the start, of --start or the shipped ones. `align` teaches
the projector to make of DINOv2's tokens what TinyVLM makes of the same picture, drawn smaller, and
the names of the pictograms; without it questions alone do not get beyond blind guesses for long.
`read` then asks questions, three quarters of the steps with few tokens, as TinyVLM's step `few`.
WORK: --work, default build/tinyvlm_dino. All else, held-out drawings too, is train/tinyvlm.py's.
"""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from common import begin, command, cosine, fit, rounded
from safetensors.torch import load_file, save_file
from tinyvlm import (
    Few,
    answer_loss,
    ask,
    graded,
    naming_loss,
    patch_labels,
    pruned,
    reader_options,
    run,
    save,
    ship_reader,
    training_scenes,
    unseen_drawings,
)

from vtlib import hub
from vtlib.hub.dino import SIZE, DinoEncoder, reader
from vtlib.vlm import TinyVLM, exam
from vtlib.vlm.exam import VOCABULARY

BATCH, ROUNDS = 24, 10
"""Scenes of a file; how often each is asked anew before its questions come back."""
PART = 4
"""Pictures that DINOv2 sees at once: on one thread a third faster than 24, whose layers do not fit
the cache."""
EXAM = dict(size=SIZE, patch=14)
FIRST_SEED = {"features": 9_000_000, "read": 1_500_000}


def seeing(model):
    """The model with DINOv2 in front."""
    model.encoder = DinoEncoder(hub.real("dinov2"))
    return model.eval()


# ------------------------------------------------------------------------------------- 1. features
def features(args):
    """Batches of scenes, as the later steps take them: see `made`."""
    folder = args.work / "features"
    folder.mkdir(exist_ok=True)
    model = seeing(reader(list(VOCABULARY)))
    for number in range(args.steps):
        path = folder / f"{number:05}.safetensors"
        if not path.exists():
            seed = FIRST_SEED["features"] + args.seed * 10**6 + number
            part = path.with_suffix(".part")
            save_file(made(model, training_scenes(SIZE, BATCH // args.part, seed), seed), part)
            part.rename(path)
        if (number + 1) % args.every == 0 or number + 1 == args.steps:
            print(f"step {number + 1}/{args.steps}", flush=True)


@torch.no_grad()
def made(model, scene, seed):
    """One file: what the projector takes, the row of [CLS], the exact labels, the picture at
    TinyVLM's size, and questions of ROUNDS rounds."""
    parts = [model.encode(images, need=("cls_row",)) for images in scene.images.split(PART)]
    patch = model.encoder.patch_size
    small = F.interpolate(scene.images, (exam.SIZE, exam.SIZE), mode="area")
    out = {
        "features": torch.cat([part.features.half() for part in parts]),
        "cls_row": torch.cat([part.cls_row.mean(1) for part in parts]),
        "label": patch_labels(scene, patch)[0].short(),
        "shown": exam.covered(scene, patch),
        "small": (small * 255).round().byte(),
    }
    for k in range(ROUNDS):
        packed = exam.pack(model.ids, ask(scene, seed * ROUNDS + k))
        names = (f"ids {k}", f"target {k}", f"kind {k}")
        out |= {name: t.short() for name, t in zip(names, packed, strict=True)}
    return {name: t.contiguous() for name, t in out.items()}


def batches(args, shuffle):
    """Yields (file's tensors, round): all files once in a round, in an order of its own.

    A round takes the files that are there when it begins: `features` may still be running.
    """
    for turn in itertools.count():
        files = sorted((args.work / "features").glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{args.work / 'features'} is empty: run the step `features`")
        generator = torch.Generator().manual_seed(shuffle + turn)
        for place in torch.randperm(len(files), generator=generator):
            stored = load_file(files[place])
            yield {k: t.float() if t.is_floating_point() else t for k, t in stored.items()}, turn


# ----------------------------------------------------------------------------------- 2. align
def teacher(args):
    """TinyVLM, whose decoder is taken over."""
    model = TinyVLM(VOCABULARY)
    state = load_file(args.start) if args.start else TinyVLM.pretrained().state_dict()
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def align_loss(model, own, stored):
    """How far the projected tokens are from TinyVLM's own of the same picture, as a share of their
    size, and how badly they name the pictograms.

    Args:
        model: whose projector learns.
        own: `teacher`.
        stored: a file of `features`.
    """
    label = stored["label"].long()
    wanted = own.encode(stored["small"] / 255).tokens
    tokens = model.projector(stored["features"])
    weight = torch.where(label > 0, 1.0, 0.25)
    off = (tokens - wanted).square().mean(-1) * weight
    copy = off.sum() / (wanted.square().mean(-1) * weight).sum()
    names = naming_loss(model, tokens, label)
    return copy + 0.2 * names, {"copy": copy.item(), "names": names.item()}


def align(args):
    torch.manual_seed(args.seed + 1)
    own, model = teacher(args), reader(list(VOCABULARY))
    parts = ("decoder.", "embed_tokens.")
    model.load_state_dict(
        {k: v for k, v in own.state_dict().items() if k.startswith(parts)}, strict=False
    )
    peak = args.peak or 3e-3
    optimizer = torch.optim.AdamW(model.projector.parameters(), peak, weight_decay=0.02)
    found = batches(args, 0)
    return fit(
        lambda step: next(found)[0],
        lambda stored: align_loss(model, own, stored),
        optimizer,
        args.steps,
        cosine(peak, args.steps, warmup=20),
        autocast=False,
        every=args.every,
        then=lambda done: save(model, args.work / "align.safetensors"),
    )


# ------------------------------------------------------------------------------------- 3. read
def read(args):
    model, before = reader(list(VOCABULARY)), "read" if args.resume else "align"
    model.load_state_dict(load_file(args.work / f"{before}.safetensors"))
    peak = args.peak or 6e-4
    optimizer = torch.optim.AdamW(model.parameters(), peak, weight_decay=0.02, betas=(0.9, 0.98))
    first = FIRST_SEED["read"] + args.seed * 10**6
    found = batches(args, first)
    layers = len(model.decoder.layers)

    def batch(step):
        stored, turn = next(found)
        packed = [stored[f"{name} {turn % ROUNDS}"].long() for name in ("ids", "target", "kind")]
        drawn = None
        if step % 4:  # a quarter of the steps reads all
            few = Few.drawn(first + step, layers, stored["features"].shape[1])
            drawn = few.draw(stored["shown"], stored["cls_row"])
        return stored["features"], stored["label"].long(), packed, drawn, not args.float32

    return fit(
        batch,
        lambda inputs: answer_loss(model, *inputs),
        optimizer,
        args.steps,
        cosine(peak, args.steps),
        autocast=False,
        every=args.every,
        then=lambda done: save(model, args.work / "read.safetensors"),
    )


# ----------------------------------------------------------------------------------- 4. scores
@torch.no_grad()
def score(model, pictures=400, cut=150, inside=60):
    """Accuracies: see data/README.md.

    {"held out": of each kind, "blind": the same with the tokens of the picture before, "other
    artist": only questions that rest on a drawing no training scene showed, "pruned": see
    `tinyvlm.pruned`, of `cut` pictures}.
    """
    model = seeing(model)
    taken = exam.exam(pictures, **EXAM)
    hits, blind = graded(model, taken, part=25)
    _, new = unseen_drawings(taken)
    table = {
        "held out": taken.table(hits),
        "blind": taken.table(blind),
        "other artist": hits[new].float().mean().item(),
        "pruned": pruned(model, cut, inside, **EXAM),
    }
    return rounded(table)


def ship_all(args):
    model = reader(list(VOCABULARY))
    model.load_state_dict(load_file(args.work / "read.safetensors"))
    steps = command(__file__, "features; align; read; ship")
    ship_reader(args, "tinyvlm_dino", model, lambda: score(model, **args.scored), steps)


STAGES = {
    "features": features,
    "align": align,
    "read": read,
    "ship": ship_all,
    "score": lambda args: print(score(hub.tinyvlm_dino(), **args.scored)),
}


def main(argv=None):
    parser = reader_options(__doc__, 200, STAGES, "build/tinyvlm_dino")
    parser.add_argument("--start", type=Path, help="TinyVLM's weights; default the shipped ones")
    run(STAGES, begin(parser, argv, part=BATCH, scored=dict(pictures=6, cut=4, inside=1)))


if __name__ == "__main__":
    main()
