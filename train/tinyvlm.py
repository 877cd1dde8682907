"""Train TinyVLM, the small vision-language model that pruning is tried on.

    OMP_NUM_THREADS=1 python train/tinyvlm.py see    # 1. the encoder, from exact masks
    OMP_NUM_THREADS=1 python train/tinyvlm.py read   # 2. projector and decoder
    OMP_NUM_THREADS=1 python train/tinyvlm.py all    # 3. everything at a low rate
    OMP_NUM_THREADS=1 python train/tinyvlm.py few    # 4. the same with a part of the tokens
    OMP_NUM_THREADS=1 python train/tinyvlm.py ship   # 5. scores, data/checkpoints/tinyvlm
    OMP_NUM_THREADS=1 python train/tinyvlm.py score  # measures the stored file again

Each step starts from what the one before wrote, WORK/see, read, all, few.safetensors (WORK: --work,
default build/tinyvlm), and takes --steps, --seed. All in bfloat16 autocast, the weights in float32;
--float32 computes in float32 throughout, which is faster on a CPU without bfloat16 instructions.

After `all` the reader has only ever met whole pictures, and trips over a selection of tokens,
however good. `few` shows it selections. What the methods reach with either reader is part of the
stored scores ("pruned", "pruned_before").

Held out from training: the test backgrounds; and of every fifth pictogram the drawing by Twemoji.
The exam (`vtlib.vlm.exam`) shows all drawings.
"""

import functools
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from common import average, begin, command, cosine, fit, options, rounded, ship
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn

from vtlib.data import EmojiWorld, backgrounds, pictograms
from vtlib.data.text import WORDS
from vtlib.pruning import bench
from vtlib.pruning.baselines import oracle
from vtlib.pruning.method import Method
from vtlib.pruning.registry import METHODS
from vtlib.tokens import take
from vtlib.vlm import Encoder, TinyVLM, exam
from vtlib.vlm.exam import KINDS, PICTOGRAMS, VOCABULARY
from vtlib.vlm.tinyvlm import words

SMALL, LARGE = 64, exam.SIZE
# the drawings are as many pixels large at both sizes
SHAPE = {SMALL: dict(scale=(0.28, 0.85), objects=(1, 3))}
NUM_LABELS = 1 + len(PICTOGRAMS) + len(WORDS)


# ------------------------------------------------------------------ what is behind, and the light
@functools.cache
def strangers(size):
    """A world of pictograms that are none of ours, nor named like one: what may lie behind."""
    ours = set(words(" ".join(PICTOGRAMS))) | {"of"}
    rows = pictograms.in_split("train")
    rows = [k for k in rows if not ours & set(words(pictograms.name_of(k)))]
    return EmojiWorld(size, "train", artist="both", pictograms=rows)


def backdrop(size, batch, seed):
    """(B, 3, H, W) in [0, 1]: the train photographs as they are, recoloured, or blended.

    Blended with each other or with noise, some turned upside down; half of them with strange
    objects on top. Nine photographs alone teach the encoder these nine: it then sees objects on
    every other one.
    """
    generator = torch.Generator().manual_seed(seed)

    def make(kind):
        cpu = torch.device("cpu")
        return backgrounds.make(kind, "train", (size, size), batch, generator, cpu)[0] / 255

    first, second, noise = (make(kind) for kind in ("photo", "photo", "noise"))
    kind, share = (torch.rand(batch, 1, 1, 1, generator=generator) for _ in range(2))
    swap = torch.rand(batch, 3, generator=generator).argsort(1)[..., None, None]
    second = second.gather(1, swap.expand_as(second))  # colours swapped
    image = torch.where(kind < 0.9, first.lerp(noise, share), noise)
    image = torch.where(kind < 0.75, first.lerp(second, share), image)
    image = torch.where(kind < 0.55, second, image)
    image = torch.where(kind < 0.35, first, image)
    upside_down = torch.rand(batch, 1, 1, 1, generator=generator) < 0.25
    image = torch.where(upside_down, image.flip(-2), image)
    scale = SHAPE.get(size, {}).get("scale", exam.SCALE)
    behind = strangers(size).scenes(
        batch, seed, objects=(1, 4), scale=scale, background=image.clamp(0, 1)
    )
    covered = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    return torch.where(covered, behind.images, image).clamp(0, 1)


def light(images, seed):
    """Other light on whole pictures, differently on each.

    Colours mixed a little, brightness, contrast, gamma, a blur, grain.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, *shape):
        return torch.empty(len(images), *shape).uniform_(low, high, generator=generator)

    mix = torch.eye(3) + draw(-0.15, 0.15, 3, 3)
    out = torch.einsum("bchw,bdc->bdhw", images, mix / mix.sum(-1, keepdim=True))
    contrast, brightness = draw(0.7, 1.25, 1, 1, 1), draw(-0.15, 0.15, 1, 1, 1)
    out = ((out - 0.5) * contrast + 0.5 + brightness).clamp(0, 1) ** draw(0.7, 1.5, 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    out = out.lerp(blurred, draw(-0.3, 0.8, 1, 1, 1).clamp(min=0))
    grain = torch.randn(out.shape, generator=generator)
    out = out + grain * draw(-0.03, 0.04, 1, 1, 1).clamp(min=0)
    return torch.where(draw(0, 1, 1, 1, 1) < 0.75, out, images).clamp(0, 1)


def training_scenes(size, batch, seed):
    behind = backdrop(size, batch, seed)
    scene = exam.scenes(batch, seed, "train", size, **SHAPE.get(size, {}), background=behind)
    scene.images = light(scene.images, seed)
    return scene


# ------------------------------------------------------------------------------------------ 1. see
def patch_labels(scene, patch=8):
    """What each patch shows, from the exact masks.

    label (B, N) long: 0 background, 1 + pictogram, then 1 + pictograms + word on a sign.
    target (B, N, 3): from the patch's middle to the middle of its object's box (x, y) in units of
    the picture, and the object's scale.
    thing, middle (B, N) bool: whether an object is seen here, whether its middle is here.
    """
    sign = scene.sign
    if sign is None:
        sign = torch.zeros_like(scene.instance, dtype=torch.bool)
    nothing = ~scene.masks.any(1) & ~sign
    cover = torch.cat([nothing[:, None], scene.masks, sign[:, None]], 1).float()
    cover = rearrange(F.avg_pool2d(cover, patch), "b k h w -> b (h w) k")
    cover[..., 0] *= 0.4  # an object wins from about 30 % of the patch
    most = cover.argmax(-1)  # b n
    word = torch.tensor([WORDS.index(w) if w else 0 for w in scene.words or [None] * len(scene)])
    first = torch.zeros(len(scene), 1, dtype=torch.long)
    last = (1 + len(scene.classes) + word)[:, None]
    label = torch.cat([first, scene.pictogram + 1, last], 1).gather(1, most)
    x0, y0, x1, y1 = (scene.boxes / scene.size[0]).unbind(-1)
    h, w = scene.size[0] // patch, scene.size[1] // patch
    axes = (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w
    at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    spot = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, scene.scale], -1)  # b k 3
    slot = (most - 1).clamp(0, spot.shape[1] - 1)
    target = spot.gather(1, slot[..., None].expand(-1, -1, 3)).clone()
    target[..., 0] -= at[:, 1]
    target[..., 1] -= at[:, 0]
    thing = (most > 0) & (most <= spot.shape[1])
    middle = target[..., :2].abs().amax(-1) * h < 0.5  # the patch that holds its object's middle
    return label, target, thing, middle & thing


def presence(label):
    """label (B, N) of `patch_labels` -> (B, pictograms + words) float: what the picture holds."""
    return torch.zeros(len(label), NUM_LABELS).scatter(1, label, 1.0)[:, 1:]


class Seer(nn.Module):
    """The encoder and what it is trained through: patch classes, place, middle; what [CLS] saw."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        dim = self.encoder.norm.weight.shape[0]
        self.heads = nn.ModuleDict(
            dict(
                patch=nn.Linear(dim, NUM_LABELS),
                place=nn.Linear(dim, 4),
                cls=nn.Linear(dim, NUM_LABELS - 1),
                cls_selected=nn.Linear(dim, NUM_LABELS - 1),
                norm=nn.LayerNorm(dim),
            )
        )

    def forward(self, images):
        """logits (B, N, labels), place (B, N, 4), and twice (B, labels - 1) of [CLS]."""
        encoder, heads = self.encoder, self.heads
        out = encoder(images)
        selected = heads["norm"](out["selected"])
        patches = selected[:, encoder.num_prefix :]
        cls = heads["cls"](encoder.norm(out["last"][:, 0])), heads["cls_selected"](selected[:, 0])
        return heads["patch"](patches).float(), heads["place"](patches).float(), cls


def see_loss(seer, scene, half=True):
    label, target, thing, middle = patch_labels(scene)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits, place, cls = seer(scene.images)
    weight = torch.ones(NUM_LABELS)
    weight[0] = 0.25
    there = presence(label)
    off = F.smooth_l1_loss(place[..., :3], target, reduction="none", beta=0.05).sum(-1)
    parts = {
        "patch": F.cross_entropy(logits.flatten(0, 1), label.flatten(), weight),
        "place": (off * thing).sum() / thing.sum().clamp(min=1),
        "middle": F.binary_cross_entropy_with_logits(
            place[..., 3], middle.float(), pos_weight=torch.tensor(8.0)
        ),
        "cls": sum(
            F.binary_cross_entropy_with_logits(c.float(), there, pos_weight=torch.tensor(4.0))
            for c in cls
        ),
    }
    loss = parts["patch"] + 4 * parts["place"] + parts["middle"] + 2 * parts["cls"]
    right = logits.argmax(-1) == label
    row = {name: part.item() for name, part in parts.items()}
    row["object patches right"] = right[thing].float().mean().item()
    row["sign patches right"] = right[label > len(PICTOGRAMS)].float().mean().item()
    return loss, row


def save(model, path):
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


def see(args):
    torch.manual_seed(args.seed)
    seer, path = Seer(), args.work / "see.safetensors"
    if args.resume:
        seer.load_state_dict(load_file(path))
    peak = args.peak or 2e-3
    optimizer = torch.optim.AdamW(seer.parameters(), peak, weight_decay=0.02, betas=(0.9, 0.98))
    small = int(args.steps * args.small)

    def batch(step):
        size, number = (SMALL, 64) if step < small else (LARGE, 32)
        return training_scenes(size, number // args.part, args.seed * 10**6 + step)

    fitted = fit(
        batch,
        lambda scene: see_loss(seer, scene, not args.float32),
        optimizer,
        args.steps,
        cosine(peak, args.steps),
        parts=[list(seer.encoder.parameters())],
        autocast=False,  # the encoder and its heads only
        every=args.every,
        then=lambda done: save(seer, path),
    )
    with torch.no_grad():
        number = 64 // args.part
        held_out = [exam.scenes(number, 990_000 + k) for k in range(4)]
        rows = [see_loss(seer, scene, not args.float32)[1] for scene in held_out]
    print("held out:", average(rows))
    return fitted


# ----------------------------------------------------------------------------------------- 2. read
WEIGHT = {"side": 2, "height": 2, "count": 2, "count_category": 2}  # what comes late
COMMON = ("presence", "count", "count_category")
RARE = ("side", "height", "relation", "category", "sign")


def ask(scene, seed, common=5, rare=7):
    """Questions of all kinds to each scene: lists of `Question`."""
    asked = scene.questions(common, seed, COMMON), scene.questions(rare, seed, RARE)
    return [first + second for first, second in zip(*asked, strict=True)]


def by_kind(each, right, kind):
    """Weighted mean over kinds of the answers' cross-entropy, and the share right of each."""
    row, loss = {}, 0
    for k, name in enumerate(KINDS):
        here = kind == k
        row[name] = right[here].mean().item() if here.any() else float("nan")
        loss = loss + WEIGHT.get(name, 1) * each[here].sum() / max(8, here.sum())
    return loss / sum(WEIGHT.get(name, 1) for name in KINDS), row


def naming_loss(model, tokens, label):
    """Cross-entropy between projected patches (B, T, D) and the names of all pictograms.

    label (B, T) of `patch_labels`; only what shows a pictogram counts.
    """
    thing = (label > 0) & (label <= len(PICTOGRAMS))
    table = model.embed_tokens.weight
    names = torch.stack([table[[model.ids[w] for w in words(n)]].mean(0) for n in PICTOGRAMS])
    cosine = F.normalize(tokens.float()[thing], dim=-1) @ F.normalize(names, dim=-1).T
    each = F.cross_entropy(cosine * 10, label[thing] - 1, reduction="none")
    return each.sum() / thing.sum().clamp(min=1)


def read_loss(model, scene, asked, frozen, few=None, half=True):
    """The answers' cross-entropy, and a small one between projected patches and their names.

    few: the step's `Few`; None: all tokens are read.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        with torch.set_grad_enabled(not frozen and torch.is_grad_enabled()):
            vision = model.encode(scene.images, need=("cls_row",) if few else ())
    drawn = None
    if few is not None:
        drawn = few.draw(exam.covered(scene), vision.cls_row.float().mean(1).detach())
    label, packed = patch_labels(scene)[0], exam.pack(model.ids, asked)
    return answer_loss(model, vision.features, label, packed, drawn, half)


def answer_loss(model, features, label, packed, drawn=None, half=True):
    """What `read_loss` says, of features that are there.

    Args:
        model: whose projector and decoder.
        features: (B, N, Dv), what the projector takes.
        label: (B, N) of `patch_labels`.
        packed: ids, target, kind of `exam.pack`.
        drawn: what `Few.draw` gave; None: all tokens are read.
        half: bfloat16 autocast.
    """
    ids, target, kind = packed
    how = {}
    if drawn is not None:
        kept, how = drawn
        features, label = take(features, kept), label.gather(1, kept)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        tokens = model.projector(features)
        logits = model.packed(tokens, ids, **how).float()
    each = F.cross_entropy(
        logits.flatten(0, 2), target.flatten(), ignore_index=-100, reduction="none"
    ).view_as(target)
    each = each.sum(-1) / (target >= 0).sum(-1).clamp(min=1)  # b q
    right = ((logits.argmax(-1) == target) | (target < 0)).all(-1).float()
    loss, row = by_kind(each, right, kind)
    align = naming_loss(model, tokens, label)
    return loss + 0.1 * align, row | {"loss": loss.item(), "align": align.item()}


# ------------------------------------------------------------------------------- with few tokens
FEWEST = 12


@dataclass
class Few:
    """What one step lets the decoder read: tokens dropped before its first layer or after later
    ones, by chance, for objects or for what [CLS] looks at.

    counts: {layers run: how many of `total` tokens are left}, falling. recount: what is left counts
    anew. generator: of the patches. The same counts for all pictures, each with patches of its own.
    """

    counts: dict[int, int]
    recount: bool
    generator: torch.Generator

    @classmethod
    def drawn(cls, seed, num_layers, total):
        """Half of all steps cut before the first layer alone; the others once to three times,
        anywhere."""
        generator = torch.Generator().manual_seed(seed)

        def uniform(low, high):
            return low + (high - low) * torch.rand((), generator=generator).item()

        at, left = [0], float(total)
        if uniform(0, 1) < 0.5:
            times = int(uniform(1, 4))
            at = sorted(torch.randperm(num_layers, generator=generator)[:times].tolist())
        counts = {}
        for after in at:
            left = math.exp(uniform(math.log(FEWEST), math.log(left)))
            counts[after] = int(left)
        return cls(counts, uniform(0, 1) < 0.5, generator)

    def draw(self, shown, cls_row):
        """(patches kept before the first layer (B, T), the other arguments of `packed`); see
        `order`."""
        order = self.order(shown, cls_row)
        total, cuts = order.shape[1], {}
        before = kept = torch.arange(total).repeat(len(order), 1)
        for after, count in self.counts.items():
            left = order[:, :count].sort(1).values
            if after == 0:
                before = left
            else:
                cuts[after] = torch.searchsorted(kept, left)
            kept = left
        places = {} if self.recount else dict(positions=before, num_visual=total)
        return before, dict(cuts=cuts, recount=self.recount, **places)

    def order(self, shown, cls_row):
        """(B, N) long: each picture's patches, those first that stay longest.

        One picture in ten draws by chance, half prefer what shows an object or a sign, the rest
        what [CLS] attends to; how strongly, each draws for itself. (With a third by chance the
        reader gets along with any tokens: all choices then answer alike.)

        shown (B, N): `exam.covered`. cls_row (B, N): the row of [CLS], mean over heads.
        """
        seen = (cls_row + 1e-6).log()
        how, strength = torch.rand(2, len(shown), 1, generator=self.generator)
        strength = 0.35 + 0.65 * strength
        bias = torch.where(how < 0.6, 8 * strength * shown, 3 * strength * seen)
        bias = torch.where(how < 0.1, torch.zeros_like(bias), bias)
        noise = -torch.rand(bias.shape, generator=self.generator).log()
        return (bias - noise.log()).argsort(1, descending=True)


BEFORE = {"read": "see", "all": "read", "few": "all"}
"""The step whose file a step begins with; --resume begins with its own."""
PEAK = {"read": 1.5e-3, "all": 4e-4, "few": 4e-4}
ENCODER = {"read": 0.0, "all": 0.3, "few": 0.1}
"""The encoder's share of the learning rate; 0: it is frozen."""
FIRST_SEED = {"read": 400_000, "all": 700_000, "few": 1_000_000}


def reader(args):
    """The model before the first step."""
    torch.manual_seed(args.seed + 1)
    model = TinyVLM(VOCABULARY)
    before = args.step if args.resume else BEFORE[args.step]
    if before != "see":
        model.load_state_dict(load_file(args.work / f"{before}.safetensors"))
    if args.step == "read":
        seen = load_file(args.work / "see.safetensors").items()
        encoder = {k.removeprefix("encoder."): v for k, v in seen if k.startswith("encoder.")}
        model.encoder.load_state_dict(encoder)
    return model


def read(args):
    """The steps `read`, `all` and `few`."""
    model, frozen = reader(args), ENCODER[args.step] == 0
    path = args.work / f"{args.step}.safetensors"
    rest = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    groups = [{"params": rest}]
    if not frozen:
        groups.append({"params": model.encoder.parameters(), "scale": ENCODER[args.step]})
    peak = args.peak or PEAK[args.step]
    optimizer = torch.optim.AdamW(groups, peak, weight_decay=0.02, betas=(0.9, 0.98))
    small = int(args.steps * args.small) if frozen else 0

    def batch(step):
        size, number = (SMALL, 48) if step < small else (LARGE, 24)
        seed = args.seed * 10**6 + FIRST_SEED[args.step] + step
        scene = training_scenes(size, number // args.part, seed)
        few = None
        if args.step == "few" and step % 4:  # a quarter of the steps reads all
            few = Few.drawn(seed, len(model.decoder.layers), (size // 8) ** 2)
        return scene, ask(scene, seed), frozen, few, not args.float32

    return fit(
        batch,
        lambda inputs: read_loss(model, *inputs),
        optimizer,
        args.steps,
        cosine(peak, args.steps),
        parts=[list(model.parameters())],
        autocast=False,  # encoder, projector and decoder only
        every=args.every,
        then=lambda done: save(model, path),
    )


# --------------------------------------------------------------------------------------- 5. scores
def graded(model, taken, part=50):
    """(seeing, blind), each (B, Q) bool: right from each picture's tokens, and from the last's."""
    tokens = torch.cat([model.encode(images).tokens for images in taken.images.split(part)])

    def right(tokens):
        pairs = zip(tokens.split(part), taken.ids.split(part), strict=True)
        return taken.grade(torch.cat([model.packed(t, ids) for t, ids in pairs]))

    return right(tokens), right(tokens.roll(1, 0))


def unseen_drawings(taken):
    """(rests on a drawing, rests on one that no training scene showed), each (B, Q) bool."""
    new = torch.zeros_like(taken.kind, dtype=torch.bool)
    rests = torch.zeros_like(new)
    scenes = taken.scenes
    for b, row in enumerate(taken.asked):
        for q, question in enumerate(row):
            held = [
                int(scenes.pictogram[b, k]) in exam.HELD_OUT and int(scenes.artist[b, k]) == 1
                for k in question.objects
            ]
            rests[b, q] = bool(held)
            new[b, q] = any(held)
    return rests, new


KEEPS = (28, 57)


@torch.no_grad()
def pruned(model, pictures=400, inside=100, **drawn):
    """Accuracies with fewer tokens, all by `bench.grade`.

    {keep: {method: right}} of the methods that choose before the language model, and of the oracle
    (`exam.oracle_mask`). {"absent": share of wrong answers to "is there a ...?" about what is not
    there, under the oracle's 28 tokens}. {"inside": {method: [right, right with positions kept]}}
    at 28 tokens, of those that cut inside or ask the question, on fewer pictures: they read one
    question at a time. The second number is missing where a token has no place of its own.
    drawn: how the exam is, see `exam.exam`.
    """
    model.eval()
    taken, table = exam.exam(pictures, **drawn), {}
    before = [m for m in METHODS.values() if m.stages is None and not m.asks]
    vision = bench.encode(model, taken.images, before)
    cheat = Method("oracle", "Oracle", prune=partial(oracle, exam.oracle_mask(taken)))
    for keep in KEEPS:
        hits = {m.name: graded_by(model, vision, taken, m, keep) for m in [*before, cheat]}
        table[str(keep)] = {name: taken.table(right)["all"] for name, right in hits.items()}
        if keep == KEEPS[0]:
            no = [[q.kind == "presence" and q.answer == "no" for q in row] for row in taken.asked]
            absent = torch.zeros_like(taken.kind, dtype=torch.bool)
            for b, row in enumerate(no):
                absent[b, : len(row)] = torch.tensor(row)
            table["absent"] = 1 - hits["oracle"][absent].float().mean().item()
    return table | {"inside": pruned_inside(model, inside, **drawn)}


def graded_by(model, vision, taken, method, keep, positions=None):
    generator = torch.Generator().manual_seed(0)
    return bench.grade(model, vision, taken, method, keep, generator, positions=positions)


def pruned_inside(model, pictures, **drawn):
    taken = exam.exam(pictures, **drawn)
    methods = [m for m in METHODS.values() if m.stages is not None or m.asks]
    vision = bench.encode(model, taken.images, methods)
    table = {}
    for method in methods:
        rights = []
        for positions in ("renumber", "keep"):
            try:
                right = graded_by(model, vision, taken, method, KEEPS[0], positions)
            except ValueError as error:
                if "positions='keep'" not in str(error):
                    raise
                continue
            rights.append(taken.table(right)["all"])
        table[method.name] = rights
    return table


@torch.no_grad()
def score(model, pictures=400, by_scale=150):
    """Accuracies: see data/README.md.

    {"held out": of each kind, "blind": the same with the tokens of the picture before, "other
    artist": only questions that rest on a drawing no training scene showed, "train drawings": those
    that rest on the others alone, "by scale": {size: [smallest, largest, seeing, blind]} of
    `exam.by_scale`, where training showed small, middle and large}.
    """
    model.eval()
    taken = exam.exam(pictures)
    hits, blind = graded(model, taken)
    rests, new = unseen_drawings(taken)
    sizes = {}
    for name, part in exam.by_scale(by_scale).items():
        both = [part.table(right)["all"] for right in graded(model, part)]
        sizes[name] = [*exam.SCALES[name], *both]
    table = {
        "held out": taken.table(hits),
        "blind": taken.table(blind),
        "other artist": hits[new].float().mean().item(),
        "train drawings": hits[rests & ~new].float().mean().item(),
        "by scale": sizes,
    }
    return rounded(table)


def minutes_of(args):
    """{step: minutes}, from WORK/minutes.json."""
    path = args.work / "minutes.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add_minutes(args, minutes):
    """Note what this step took; one that goes on from its own file adds to it."""
    table = minutes_of(args)
    before = table.get(args.step, 0.0) if args.resume else 0.0
    text = json.dumps({**table, args.step: before + minutes})
    (args.work / "minutes.json").write_text(text + "\n", encoding="utf-8")


def saved(args, step):
    """The model that a step wrote."""
    model = TinyVLM(VOCABULARY)
    model.load_state_dict(load_file(args.work / f"{step}.safetensors"))
    return model


def all_scores(model, args):
    return score(model, **args.scored) | {"pruned": rounded(pruned(model, **args.examined))}


def ship_few(args):
    model = saved(args, "few")

    def scores():
        before = rounded(pruned(saved(args, "all"), **args.examined))
        return all_scores(model, args) | {"pruned_before": before}

    ship_reader(args, "tinyvlm", model, scores, command(__file__, "see; read; all; few; ship"))


# -------------------------------------------------------------- what `tinyvlm_dino.py` shares
def ship_reader(args, stem, model, scores, steps):
    """Write a reader's checkpoint.

    Args:
        args: the command line.
        stem: the checkpoint's name.
        model: the reader.
        scores: called for what the header tells.
        steps: the commands that made it, unless --command names others.
    """
    ship(
        args.out,
        stem,
        model,
        scores,
        config={"vocabulary": list(VOCABULARY)},
        command=args.command or steps,
        seed=args.seed,
        minutes=round(sum(minutes_of(args).values()), 1),
    )


def reader_options(text, steps, stages, work):
    """The command line of a reader's script.

    Args:
        text: the script's docstring.
        steps: how many steps are usual.
        stages: {step: function of the parsed arguments}.
        work: the default of --work.
    """
    parser = options(text, steps, part=1)  # batches of a smoke run are 1 / part as large
    parser.add_argument("step", choices=list(stages))
    parser.add_argument("--peak", type=float, help="highest learning rate")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 anywhere")
    parser.add_argument("--resume", action="store_true", help="go on from this step's own file")
    parser.add_argument("--command", help="what to write into the file's header")
    parser.add_argument("--work", type=Path, default=Path(work))
    return parser


def run(stages, args):
    """The step that the command line names, and a note of what it took."""
    args.work.mkdir(parents=True, exist_ok=True)
    fitted = stages[args.step](args)
    if fitted is not None:
        add_minutes(args, fitted.minutes)


STAGES = {
    "see": see,
    "read": read,
    "all": read,
    "few": read,
    "ship": ship_few,
    "score": lambda args: print(json.dumps(all_scores(TinyVLM.pretrained(), args), indent=1)),
}


def main(argv=None):
    parser = reader_options(__doc__, 2000, STAGES, "build/tinyvlm")
    parser.add_argument("--small", type=float, default=0.65, help="share of the steps on 64 px")
    parser.set_defaults(examined={})
    small = dict(scored=dict(pictures=50, by_scale=10), examined=dict(pictures=6, inside=2))
    run(STAGES, begin(parser, argv, part=24, **small))


if __name__ == "__main__":
    main()
