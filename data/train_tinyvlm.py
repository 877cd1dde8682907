"""Train TinyVLM, the small vision-language model that pruning is tried on, and write data/checkpoints/tinyvlm.safetensors.

    OMP_NUM_THREADS=1 python data/train_tinyvlm.py see        # 1. the encoder, from exact masks     -> WORK/see.safetensors
    OMP_NUM_THREADS=1 python data/train_tinyvlm.py read       # 2. projector and decoder            -> WORK/read.safetensors
    OMP_NUM_THREADS=1 python data/train_tinyvlm.py all        # 3. everything at a low rate         -> WORK/all.safetensors
    OMP_NUM_THREADS=1 python data/train_tinyvlm.py ship       # 4. scores, and the checkpoint in half precision
    OMP_NUM_THREADS=1 python data/train_tinyvlm.py score      # the shipped checkpoint's scores again, into its header

Each step starts from what the one before wrote (WORK: --work, default build/tinyvlm) and takes --steps, --seed. All in bfloat16 autocast,
the weights in float32.

Held out from training: the test backgrounds; and of every fifth pictogram the drawing by Twemoji. The exam (`vtlib.vlm.exam`) shows all drawings.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from training import schedule

from vtlib.data import EmojiWorld, backgrounds, pictograms
from vtlib.data.text import WORDS
from vtlib.vlm import Encoder, TinyVLM, exam
from vtlib.vlm.exam import KINDS, PICTOGRAMS, VOCABULARY
from vtlib.vlm.tinyvlm import words

SMALL, LARGE = 64, exam.SIZE
SHAPE = {SMALL: dict(scale=(0.28, 0.85), objects=(1, 3)), LARGE: {}}  # the drawings are as many pixels large at both sizes


# ------------------------------------------------------------------------------------------------------- what is behind, and the light
@functools.cache
def strangers(size):
    """A world of pictograms that are none of ours, nor named like one: what may lie behind without being asked about."""
    ours = set(words(" ".join(PICTOGRAMS))) | {"of"}
    rows = [k for k in pictograms.in_split("train") if not ours & set(words(pictograms.name_of(k)))]
    return EmojiWorld(size, "train", artist="both", pictograms=rows)


def backdrop(size, batch, seed):
    """(B, 3, H, W) in [0, 1]: the train photographs as they are, recoloured, or blended with each other or with noise, some turned upside down;
    half of them with strange objects on top. Nine photographs alone teach the encoder these nine: it then sees objects on every other one."""
    generator = torch.Generator().manual_seed(seed)
    make = functools.partial(backgrounds.make, split="train", size=(size, size), batch=batch, generator=generator, device=torch.device("cpu"))
    first, second, noise = (make(kind)[0] / 255 for kind in ("photo", "photo", "noise"))
    kind, share = torch.rand(batch, 1, 1, 1, generator=generator), torch.rand(batch, 1, 1, 1, generator=generator)
    second = second.gather(1, torch.rand(batch, 3, generator=generator).argsort(1)[..., None, None].expand_as(second))  # colours swapped
    image = torch.where(kind < 0.35, first, torch.where(kind < 0.55, second, torch.where(kind < 0.75, first.lerp(second, share), torch.where(
        kind < 0.9, first.lerp(noise, share), noise))))
    image = torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.25, image.flip(-2), image)
    with_objects = strangers(size).scenes(batch, seed, objects=(1, 4), scale=SHAPE[size].get("scale", exam.SCALE), background=image.clamp(0, 1)).images
    return torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5, with_objects, image).clamp(0, 1)


def light(images, seed):
    """Other light on whole pictures, differently on each: colours mixed a little, brightness, contrast, gamma, a blur, grain."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, *shape):
        return torch.empty(len(images), *shape).uniform_(low, high, generator=generator)

    mix = torch.eye(3) + draw(-0.15, 0.15, 3, 3)
    out = torch.einsum("bchw,bdc->bdhw", images, mix / mix.sum(-1, keepdim=True))
    out = ((out - 0.5) * draw(0.7, 1.25, 1, 1, 1) + 0.5 + draw(-0.15, 0.15, 1, 1, 1)).clamp(0, 1) ** draw(0.7, 1.5, 1, 1, 1)
    out = out.lerp(F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, stride=1), draw(-0.3, 0.8, 1, 1, 1).clamp(min=0))
    out = out + torch.randn(out.shape, generator=generator) * draw(-0.03, 0.04, 1, 1, 1).clamp(min=0)
    return torch.where(draw(0, 1, 1, 1, 1) < 0.75, out, images).clamp(0, 1)


def training_scenes(size, batch, seed):
    scene = exam.scenes(batch, seed, "train", size, **SHAPE[size], background=backdrop(size, batch, seed))
    scene.images = light(scene.images, seed)
    return scene


# ---------------------------------------------------------------------------------------------------------------- 1. see
def patch_labels(scene, patch=8):
    """What each patch shows, from the exact masks.

    label (B, N) long: 0 background, 1 + pictogram, then 1 + pictograms + word on a sign.
    target (B, N, 3): from the patch's middle to the middle of its object's box (x, y) in units of the picture, and the object's scale.
    thing, middle (B, N) bool: whether an object is seen here, whether its middle is here.
    """
    sign = scene.sign if scene.sign is not None else torch.zeros_like(scene.instance, dtype=torch.bool)
    cover = torch.cat([(~scene.masks.any(1) & ~sign)[:, None], scene.masks, sign[:, None]], 1).float()
    cover = rearrange(F.avg_pool2d(cover, patch), "b k h w -> b (h w) k")
    cover[..., 0] *= 0.4                                                         # an object wins from about 30 % of the patch
    most = cover.argmax(-1)                                                      # b n
    word = torch.tensor([WORDS.index(w) if w else 0 for w in scene.words or [None] * len(scene)])
    names = torch.cat([torch.zeros(len(scene), 1, dtype=torch.long), scene.pictogram + 1, (1 + len(scene.classes) + word)[:, None]], 1)
    label = names.gather(1, most)
    x0, y0, x1, y1 = (scene.boxes / scene.size[0]).unbind(-1)
    h, w = scene.size[0] // patch, scene.size[1] // patch
    at = torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij"), -1).reshape(-1, 2)
    spot = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, scene.scale], -1)          # b k 3
    slot = (most - 1).clamp(0, spot.shape[1] - 1)
    target = spot.gather(1, slot[..., None].expand(-1, -1, 3)).clone()
    target[..., 0] -= at[:, 1]
    target[..., 1] -= at[:, 0]
    thing = (most > 0) & (most <= spot.shape[1])
    middle = target[..., :2].abs().amax(-1) * h < 0.5                           # the patch that holds its object's middle
    return label, target, thing, middle & thing


def presence(label):
    """label (B, N) of `patch_labels` -> (B, pictograms + words) float: what the picture holds."""
    there = torch.zeros(len(label), 1 + len(PICTOGRAMS) + len(WORDS))
    return there.scatter(1, label, 1.0)[:, 1:]


class Heads(nn.Module):
    """What the encoder is trained through: patch classes, place and middle; what [CLS] saw."""

    def __init__(self, dim):
        super().__init__()
        self.patch = nn.Linear(dim, 1 + len(PICTOGRAMS) + len(WORDS))
        self.place = nn.Linear(dim, 4)
        self.cls = nn.Linear(dim, len(PICTOGRAMS) + len(WORDS))
        self.cls_selected = nn.Linear(dim, len(PICTOGRAMS) + len(WORDS))
        self.norm = nn.LayerNorm(dim)


def see_loss(encoder, heads, scene):
    label, target, thing, middle = patch_labels(scene)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(scene.images)
        selected = heads.norm(out["selected"])
        patches = selected[:, encoder.num_prefix:]
        logits, place = heads.patch(patches).float(), heads.place(patches).float()
        cls = heads.cls(encoder.norm(out["last"][:, 0])).float(), heads.cls_selected(selected[:, 0]).float()
    weight = torch.ones(logits.shape[-1])
    weight[0] = 0.25
    there = presence(label)
    parts = {
        "patch": F.cross_entropy(logits.flatten(0, 1), label.flatten(), weight),
        "place": (F.smooth_l1_loss(place[..., :3], target, reduction="none", beta=0.05).sum(-1) * thing).sum() / thing.sum().clamp(min=1),
        "middle": F.binary_cross_entropy_with_logits(place[..., 3], middle.float(), pos_weight=torch.tensor(8.0)),
        "cls": sum(F.binary_cross_entropy_with_logits(c, there, pos_weight=torch.tensor(4.0)) for c in cls),
    }
    loss = parts["patch"] + 4 * parts["place"] + parts["middle"] + 2 * parts["cls"]
    right = (logits.argmax(-1) == label)
    return loss, {**{k: v.item() for k, v in parts.items()}, "object patches right": right[thing].float().mean().item(),
                  "sign patches right": right[label > len(PICTOGRAMS)].float().mean().item()}


def descend(optimizer, loss, model):
    """One step, with the gradient of `model` at most 1 long."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def report(step, total, rows, start):
    keys = rows[-1]
    print(f"step {step}/{total}: " + ", ".join(f"{k} {sum(r[k] for r in rows if r[k] == r[k]) / max(1, sum(r[k] == r[k] for r in rows)):.3f}" for k in keys)
          + f", {time.perf_counter() - start:.0f} s", flush=True)


def below(state, prefix):
    """The part of a state dict whose names start with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def see(args):
    torch.manual_seed(args.seed)
    encoder, start = Encoder(), time.perf_counter()
    heads = Heads(encoder.norm.weight.shape[0])
    if args.resume:
        state = load_file(args.work / "see.safetensors")
        for name, module in (("encoder.", encoder), ("heads.", heads)):
            module.load_state_dict(below(state, name))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], args.peak or 2e-3, weight_decay=0.02, betas=(0.9, 0.98))
    small, total, rows = int(args.steps * args.small), args.steps, []
    for step in range(total):
        size, batch = (SMALL, 64) if step < small else (LARGE, 32)
        schedule(optimizer, args.peak or 2e-3, step, total)
        loss, row = see_loss(encoder, heads, training_scenes(size, batch, args.seed * 10**6 + step))
        descend(optimizer, loss, encoder)
        rows.append(row)
        if (step + 1) % 100 == 0:
            report(step + 1, total, rows[-100:], start)
        if (step + 1) % 500 == 0 or step + 1 == total:
            save_file({**{f"encoder.{k}": v for k, v in encoder.state_dict().items()}, **{f"heads.{k}": v for k, v in heads.state_dict().items()}},
                      args.work / "see.safetensors")
    with torch.no_grad():
        rows = [see_loss(encoder, heads, exam.scenes(64, 990_000 + k))[1] for k in range(4)]
    report(total, total, rows, start)


# --------------------------------------------------------------------------------------------------------------- 2. read
WEIGHT = {"side": 2, "height": 2, "count": 2, "count_category": 2}  # what comes late
COMMON, RARE = ("presence", "count", "count_category"), ("side", "height", "relation", "category", "sign")


def ask(scene, seed, common=5, rare=7):
    """Questions of all kinds to each scene: lists of `Question`."""
    return [a + b for a, b in zip(scene.questions(common, seed, COMMON), scene.questions(rare, seed, RARE))]


def read_loss(model, scene, asked, frozen):
    """Weighted mean over kinds of the answers' cross-entropy, and a small one between projected patches and their names."""
    ids, target, kind = exam.pack(model.ids, asked)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(not frozen and torch.is_grad_enabled()):
            features = model.encode(scene.images).features
        tokens = model.projector(features)
        logits = model.packed(tokens, ids).float()
    each = F.cross_entropy(logits.flatten(0, 2), target.flatten(), ignore_index=-100, reduction="none").view_as(target)
    each = each.sum(-1) / (target >= 0).sum(-1).clamp(min=1)                     # b q
    right = ((logits.argmax(-1) == target) | (target < 0)).all(-1).float()
    row, whole = {}, sum(WEIGHT.get(name, 1) for name in KINDS)
    loss = 0
    for k, name in enumerate(KINDS):
        here = kind == k
        row[name] = right[here].mean().item() if here.any() else float("nan")
        loss = loss + WEIGHT.get(name, 1) * each[here].sum() / max(8, here.sum())
    label, _, thing, _ = patch_labels(scene)
    names = torch.stack([model.embed_tokens.weight[[model.ids[w] for w in words(n)]].mean(0) for n in PICTOGRAMS])
    cosine = F.normalize(tokens.float()[thing], dim=-1) @ F.normalize(names, dim=-1).T
    align = F.cross_entropy(cosine * 10, label[thing] - 1)
    row["loss"], row["align"] = loss.item() / whole, align.item()
    return loss / whole + 0.1 * align, row


def save(model, path):
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


def read(args, frozen=True):
    torch.manual_seed(args.seed + 1)
    model, start = TinyVLM(VOCABULARY), time.perf_counter()
    if frozen:
        if args.resume:
            model.load_state_dict(load_file(args.work / "read.safetensors"))
        state = load_file(args.work / "see.safetensors")
        model.encoder.load_state_dict(below(state, "encoder."))
    else:
        model.load_state_dict(load_file(args.work / ("all.safetensors" if args.resume else "read.safetensors")))
    reader = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    groups = [{"params": reader}] if frozen else [{"params": reader}, {"params": model.encoder.parameters(), "scale": 0.3}]
    peak = args.peak or (1.5e-3 if frozen else 4e-4)
    optimizer = torch.optim.AdamW(groups, peak, weight_decay=0.02, betas=(0.9, 0.98))
    small, total, rows = int(args.steps * args.small) if frozen else 0, args.steps, []
    for step in range(total):
        size, batch = (SMALL, 48) if step < small else (LARGE, 24)
        schedule(optimizer, peak, step, total)
        seed = args.seed * 10**6 + (400_000 if frozen else 700_000) + step
        scene = training_scenes(size, batch, seed)
        loss, row = read_loss(model, scene, ask(scene, seed), frozen)
        descend(optimizer, loss, model)
        rows.append(row)
        if (step + 1) % 50 == 0:
            report(step + 1, total, rows[-50:], start)
        if (step + 1) % 250 == 0 or step + 1 == total:
            save(model, args.work / ("read.safetensors" if frozen else "all.safetensors"))


# ------------------------------------------------------------------------------------------------------------- 3. scores
def graded(model, taken, part=50):
    """(seeing, blind), each (B, Q) bool: right answers from each picture's tokens, and from those of the picture before it."""
    tokens = torch.cat([model.encode(images).tokens for images in taken.images.split(part)])

    def right(tokens):
        return taken.grade(torch.cat([model.packed(t, i) for t, i in zip(tokens.split(part), taken.ids.split(part))]))

    return right(tokens), right(tokens.roll(1, 0))


@torch.no_grad()
def score(model, pictures=400, by_scale=150):
    """{"held out": accuracy of each kind, "blind": the same with the tokens of the picture before, "other artist": only
    questions that rest on a drawing no training scene showed, "train drawings": those that rest on the others alone,
    "by scale": {size: [smallest, largest, seeing, blind]} of `exam.by_scale`, where training showed small, middle and large}."""
    model.eval()
    taken = exam.exam(pictures)
    (hits, blind), kind = graded(model, taken), taken.kind
    new = torch.zeros_like(kind, dtype=torch.bool)
    rests = torch.zeros_like(new)
    for b, row in enumerate(taken.asked):
        for q, question in enumerate(row):
            held = [int(taken.scenes.pictogram[b, k]) in exam.HELD_OUT and int(taken.scenes.artist[b, k]) == 1 for k in question.objects]
            rests[b, q], new[b, q] = bool(held), any(held)
    sizes = {name: [*exam.SCALES[name], *(part.table(right)["all"] for right in graded(model, part))] for name, part in exam.by_scale(by_scale).items()}
    table = {"held out": taken.table(hits), "blind": taken.table(blind),
             "other artist": hits[new].float().mean().item(), "train drawings": hits[rests & ~new].float().mean().item(), "by scale": sizes}
    return rounded(table)


def rounded(value):
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else round(value, 3)


def ship(args):
    """The checkpoint: half precision, scores measured on what is stored."""
    store(load_file(args.work / "all.safetensors"), args.out, args.command or "python data/train_tinyvlm.py see, read, all, ship")


def again(args):
    """Scores of a checkpoint that was shipped before, as the script measures them now; its weights stay as they are."""
    with safe_open(args.out, framework="pt") as file:
        command = json.loads(file.metadata()["command"])
    store(load_file(args.out), args.out, args.command or command)


def store(state, path, command):
    model = TinyVLM(VOCABULARY)
    model.load_state_dict({k: v.half().float() for k, v in state.items()})
    table = score(model)
    for name, row in table.items():
        print(name, row)
    header = {"config": {"vocabulary": list(VOCABULARY)}, "scores": table, "command": command}
    save_file({k: v.half().contiguous() for k, v in state.items()}, path, {k: json.dumps(v) for k, v in header.items()})
    print(f"{path}: {Path(path).stat().st_size / 1e6:.2f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["see", "read", "all", "ship", "score"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--small", type=float, default=0.65, help="share of the steps on 64 px")
    parser.add_argument("--peak", type=float, default=None, help="highest learning rate")
    parser.add_argument("--resume", action="store_true", help="go on from what this step itself wrote before")
    parser.add_argument("--command", help="what to write into the file's header")
    parser.add_argument("--out", default=str(Path(__file__).parent / "checkpoints" / "tinyvlm.safetensors"))
    parser.add_argument("--work", type=Path, default=Path("build/tinyvlm"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"see": see, "read": read, "all": lambda a: read(a, frozen=False), "ship": ship, "score": again}[args.step](args)


if __name__ == "__main__":
    main()
