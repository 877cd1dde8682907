"""Train the dual encoder of CrossGET on EmojiWorld, and write data/checkpoints/crossget_clip.safetensors.

    OMP_NUM_THREADS=1 python data/train_crossget.py [--seed 0] [--steps 2000] [--out FILE]
    OMP_NUM_THREADS=1 python data/train_crossget.py --seeds FILE ...

Pictures of 64 px with three pictograms; captions name those of one list and never those of another
(vtlib/pruning/pretrained.py). Every step draws how many tokens each layer merges, and whether the cross token has a say in it,
so that no setting is at home in the test. AdamW, warm-up, one cosine, bfloat16 autocast. Prints and stores, on held-out
backgrounds, the recall for several r with guidance, without it and with its opposite, and which parts of the picture are merged
away. One seed is shipped; `--seeds` takes checkpoints of several, adds what both losses are on held-out backgrounds, and writes
the numbers of all to data/checkpoints/crossget_clip_seeds.json (`vtlib.pruning.pretrained.scores_of_seeds`).
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from training import schedule

from vtlib import data
from vtlib.nn import patchify
from vtlib.pruning import pretrained
from vtlib.pruning.crossget_encoder import CrossGETCLIP

CONTEXT = 19
CONFIG = dict(img_size=pretrained.SIZE, patch_size=8, vision_dim=128, vision_heads=4, context=CONTEXT, text_dim=96, text_heads=3,
              num_layers=4, embed_dim=64, r_image=8, r_text=1)
BATCH, PEAK, WARMUP, WEIGHT = 64, 1.5e-3, 100, 0.5
RATES, GUIDANCE = (0, 4, 8, 12), (0.0, 1.0)
WAYS = {"guided": (1.0, "complete"), "unguided": (0.0, "complete"), "inverted": (-1.0, "complete"),
        "bipartite": (1.0, "bipartite")}
MEAN, STD = 0.5, 0.25


def same(captions):
    """(B, B) bool: pictures with equal captions are right answers for each other."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[caption] for caption in captions])
    return ids[:, None] == ids


def train(model, words, steps, seed):
    world, rng = pretrained.world("train"), random.Random(seed)
    groups = [dict(params=[p for p in model.parameters() if (p.dim() > 1) == decay], weight_decay=0.05 * decay)
              for decay in (True, False)]
    optimizer = torch.optim.AdamW(groups, PEAK, betas=(0.9, 0.98))
    start, history = time.perf_counter(), []
    model.train()
    for step in range(steps):
        batch = pretrained.pictures(world, BATCH, seed * 10**6 + step)
        schedule(optimizer, PEAK, step, steps, WARMUP, floor=0.0)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses((batch.images - MEAN) / STD, words(batch.captions), same(batch.captions), r=rng.choice(RATES),
                                  guidance=rng.choice(GUIDANCE))
        loss = (1 - WEIGHT) * losses["ita"] + WEIGHT * losses["kd"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append([losses["ita"].item(), losses["kd"].item()])
        if (step + 1) % 100 == 0:
            ita, kd = torch.tensor(history[-100:]).mean(0).tolist()
            print(f"step {step + 1}/{steps}: ita {ita:.3f}, kd {kd:.4f}, {time.perf_counter() - start:.0f} s", flush=True)


def fold_normalisation(model):
    """(x - mean) / std before an embedding without bias is another embedding and a constant, which goes into the positions."""
    conv = model.visual.conv1
    with torch.no_grad():
        model.visual.positional_embedding[1:] -= conv.weight.sum(dim=(1, 2, 3)) * MEAN / STD
        conv.weight /= STD


def fate(plans, num_tokens):
    """(B, t) bool: tokens that some layer merged into another one."""
    total = None
    for plan in plans:
        if plan is not None:
            total = plan if total is None else total.then(plan)
    return ~total.kept() if total is not None else torch.zeros(1, num_tokens, dtype=torch.bool)


@torch.no_grad()
def score(model, words, pictures=1024, pool=256):
    """What `vtlib.pruning.pretrained.scores` describes; a patch is an object's when more than half of it is."""
    model.eval()
    world, table = pretrained.world("test"), {}
    parts = [pretrained.pictures(world, pool, 990_000 + i) for i in range(pictures // pool)]
    for r in (0, 8, 16, 24, 32):
        for way, (guidance, method) in WAYS.items() if r else [("", WAYS["guided"])]:
            hits, merged = torch.zeros(2), torch.zeros(3, 2)
            for part in parts:
                image = model.encode_image(part.images, r, guidance, method)
                logits = model.logits(image.feature, model.encode_text(words(part.captions)).feature)
                right = same(part.captions)
                hits += torch.stack([right.gather(1, logits.argmax(axis)[:, None]).sum() for axis in (1, 0)]) / pictures
                gone = fate(image.plans, 66)[:, 1:-1].expand(pool, -1)
                spoken, silent = (patchify(mask[:, None].float(), 8).mean(-1) for mask in (part.spoken, part.silent))
                for row, where in zip(merged, (spoken > 0.5, silent > 0.5, (spoken + silent) == 0)):
                    row += torch.stack([(gone & where).sum(), where.sum()])
            share = (merged[:, 0] / merged[:, 1]).tolist()
            name = f"r={r} {way}".strip()
            numbers = dict(zip(("i2t", "t2i", "spoken", "silent", "background"), hits.tolist() + share))
            table[name] = {key: round(value, 4) for key, value in numbers.items()}
            print(name, table[name], flush=True)
    return table


@torch.no_grad()
def held_out_losses(model, words, batches=16):
    """Both losses on held-out backgrounds, mean over batches of 64 pictures; r = 8 with guidance."""
    model.eval()
    world, found = pretrained.world("test"), []
    for i in range(batches):
        part = pretrained.pictures(world, BATCH, 980_000 + i)
        losses = model.losses(part.images, words(part.captions), same(part.captions), r=8)
        found.append([losses["ita"], losses["kd"]])
    return dict(zip(("ita", "kd"), (round(value, 4) for value in torch.tensor(found).mean(0).tolist())))


def seeds(files):
    """What the headers of several checkpoints say, by seed, and their losses: see `scores_of_seeds`."""
    table = {}
    for file in files:
        (model, words), known = pretrained.crossget_clip(path=file), pretrained.header(file)
        told = {key: known[key] for key in ("command", "steps", "minutes", "scores")}
        table[known["seed"]] = told | dict(losses=held_out_losses(model, words))
        print(file, known["seed"], table[known["seed"]]["losses"], flush=True)
    return {str(seed): table[seed] for seed in sorted(table)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=data.root() / "checkpoints" / "crossget_clip.safetensors")
    parser.add_argument("--seeds", type=Path, nargs="+", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.seeds:
        table = seeds(args.seeds)
        (data.root() / "checkpoints" / "crossget_clip_seeds.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return
    torch.manual_seed(args.seed)
    words = pretrained.Words(pretrained.vocabulary(), CONTEXT)
    config = dict(CONFIG, vocab=len(words))
    model, start = CrossGETCLIP(**config), time.process_time()
    train(model, words, args.steps, args.seed)
    fold_normalisation(model)
    half = {key: value.half() for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() for key, value in half.items()})  # the score is that of what is stored
    minutes = round((time.process_time() - start) / 60, 1)
    given = [f" --{name} {getattr(args, name)}" for name in ("seed", "steps") if getattr(args, name) != parser.get_default(name)]
    command = "OMP_NUM_THREADS=1 python data/train_crossget.py" + "".join(given)
    header = dict(config=config, words=words.words, spoken=pretrained.SPOKEN, silent=pretrained.SILENT, command=command,
                  seed=args.seed, steps=args.steps, minutes=minutes, scores=score(model, words))
    save_file(half, args.out, {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()})
    print(f"{args.out}, {args.out.stat().st_size} bytes, {minutes} minutes")


if __name__ == "__main__":
    main()
