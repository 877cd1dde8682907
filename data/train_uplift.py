"""Train the small UPLiFT that the notebooks use, and what it is compared with: data/checkpoints/uplift_emoji*.safetensors.

    OMP_NUM_THREADS=1 python data/train_uplift.py [--seed 0] [--steps 600] [--out FOLDER]

Features: the shipped ViT (vit_emoji, patch 8, D = 128) after four of its six blocks, `ViT.feature_map`. Pictures: EmojiWorld scenes of
192 px, train pictograms and backgrounds; depth 3 as the paper's DINOv2 model: grids of 24 x 24 are the largest target, 3 x 3 the smallest input.
Four models see the same pictures in the same order; Adam, cosine, at most 2e-3 (official: 1e-3, for far more steps):

    uplift_emoji            UPLiFT, n = 17, all 6 terms of the loss
    uplift_emoji_onestep    the same model, but every level trains its first step only (3 terms)
    uplift_emoji_free       the same without an attender: the decoder writes features itself, 6 terms
    uplift_emoji_cross      `CrossAttentionUpsampler`, one jump by 2, 4 or 8, 6 terms

Scores on held-out backgrounds and pictograms, of what is stored (half precision): normalised error after 1, 2, 3 doublings of 3 x 3 grids (24 px) to
the features of 48, 96 and 192 px; and mIoU at 96 px of a linear probe on dense features (12 pictograms and background), `--score` alone repeats them.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from training import schedule

from vtlib.data import EASY, EmojiWorld
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.uplift import UPLiFT, loss_terms, pyramid
from vtlib.vit import vit_emoji

SIZE, DEPTH, BLOCKS = 192, 3, 4
SMALL = dict(in_channels=128, patch_size=8, encoder=[8, 16, 32, 48, 48], decoder=[48, 48])
MODELS = {
    "uplift_emoji": (UPLiFT, SMALL),
    "uplift_emoji_onestep": (UPLiFT, SMALL),
    "uplift_emoji_free": (UPLiFT, {**SMALL, "num_neighbours": None}),
    "uplift_emoji_cross": (CrossAttentionUpsampler, dict(in_channels=128, encoder=[8, 16, 32, 48], dim=48)),
}


def scenes(batch, seed, split="train", size=SIZE):
    """Pictures only. Drawings are 30 to 90 px large at 192 px, as those that the ViT was trained on."""
    background = "photo" if split == "test" else ("photo", "photo", "noise", "photo", "plain")[seed % 5]
    return EmojiWorld(size, split, artist="both").scenes(batch, seed, objects=(1, 5), scale=(0.15, 0.48), background=background).images


def cross_terms(model, backbone, images, depth):
    """The same targets as `loss_terms`, each reached in one jump."""
    copies = pyramid(images, depth)
    features = [backbone(copy) for copy in copies]
    return {(level, step): F.mse_loss(model(copies[level + 1], features[level + 1], features[level - step].shape[-2:]).float(), features[level - step].float())
            for level in range(depth) for step in range(level + 1)}


def terms(name, model, backbone, images):
    if name.endswith("cross"):
        return cross_terms(model, backbone, images, DEPTH)
    return loss_terms(model, backbone, images, DEPTH, multi_step=not name.endswith("onestep"))


def once(vit):
    """A backbone that computes the features of each size of one batch once, for all models."""
    kept = {}

    def backbone(copy):
        if copy.shape not in kept:
            with torch.no_grad():
                kept[copy.shape] = vit.feature_map(copy, BLOCKS).float()
        return kept[copy.shape]
    return backbone


def train(args, vit):
    torch.manual_seed(args.seed)
    models = {name: build(**config) for name, (build, config) in MODELS.items() if name in args.only}
    optimizers = {name: torch.optim.Adam(model.parameters(), args.peak) for name, model in models.items()}
    start, rows = time.perf_counter(), []
    for step in range(args.steps):
        images, row = scenes(args.batch, args.seed * 10**6 + step), {}
        with torch.autocast("cpu", torch.bfloat16):
            backbone = once(vit)
            for name, model in models.items():
                schedule(optimizers[name], args.peak, step, args.steps, warmup=20)
                parts = terms(name, model, backbone, images)
                optimizers[name].zero_grad(set_to_none=True)
                sum(parts.values()).backward()
                optimizers[name].step()
                row[name.removeprefix("uplift_emoji") or "uplift"] = sum(parts.values()).item() / len(parts)
        rows.append(row)
        if (step + 1) % args.every == 0:
            print(f"step {step + 1}: " + ", ".join(f"{k} {sum(r[k] for r in rows[-args.every:]) / args.every:.3f}" for k in row)
                  + f", {time.perf_counter() - start:.0f} s", flush=True)
    return models, (time.perf_counter() - start) / 60


# ------------------------------------------------------------------------------------------------------------- scores
def error(got, want):
    """Mean squared error over the variance of the truth around each channel's mean."""
    return ((got - want).square().mean() / (want - want.mean((0, 2, 3), keepdim=True)).square().mean()).item()


@torch.no_grad()
def drift(model, vit, pictures=32, start=24):
    """Normalised errors after 1, 2, 3 doublings from the features of copies of `start` px; "nearest" and "bilinear" in place of a model."""
    images = scenes(pictures, 990_000, "test", 8 * start)
    copies = pyramid(images, 3)
    truth = [vit.feature_map(copy, BLOCKS) for copy in copies]
    if isinstance(model, str):
        how = dict(mode=model) if model == "nearest" else dict(mode=model, align_corners=False)
        outs = [F.interpolate(truth[3], scale_factor=2**t, **how) for t in (1, 2, 3)]
    elif isinstance(model, CrossAttentionUpsampler):
        outs = [model(copies[3], truth[3], truth[3 - t].shape[-2:]) for t in (1, 2, 3)]
    else:
        outs = model(copies[3], truth[3], iterations=3, return_steps=True)
    return [round(error(out, truth[2 - t]), 3) for t, out in enumerate(outs)]


def dense(model, vit, images):
    """(B, 128, H, W)."""
    features = vit.feature_map(images, BLOCKS)
    if isinstance(model, str):
        return F.interpolate(features, images.shape[-2:], mode=model, **({} if model == "nearest" else {"align_corners": False}))
    return model(images, features)


def probe_scenes(batch, seed, split):
    return EmojiWorld(96, split, artist="both", pictograms=list(EASY)).scenes(batch, seed, objects=(1, 3), scale=(0.3, 0.6))


def probe(model, vit, pictures=192, held_out=64, per_picture=256, seed=0):
    """mIoU at 96 px of a linear probe (13 classes) trained on dense features of `pictures`, from `per_picture` pixels of each."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = [], []
    with torch.no_grad():
        for k in range(pictures // 32):
            scene = probe_scenes(32, 500_000 + k, "train")
            pick = torch.rand(32, 96 * 96, generator=generator).topk(per_picture).indices
            inputs.append(dense(model, vit, scene.images).flatten(2).gather(2, pick[:, None].expand(-1, 128, -1)).mT.flatten(0, 1))
            labels.append(scene.semantic("pictogram").flatten(1).gather(1, pick).flatten())
    inputs, labels = torch.cat(inputs), torch.cat(labels)
    weight, bias = torch.zeros(13, 128, requires_grad=True), torch.zeros(13, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60)

    def closure():
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(inputs, weight, bias), labels) + 1e-4 * weight.square().sum()
        value.backward()
        return value
    optimizer.step(closure)
    both, either = torch.zeros(13), torch.zeros(13)
    with torch.no_grad():
        for k in range(held_out // 32):
            scene = probe_scenes(32, 990_100 + k, "test")
            got = torch.einsum("bchw,kc->bkhw", dense(model, vit, scene.images), weight).add(bias[:, None, None]).argmax(1)
            want = scene.semantic("pictogram")
            for c in range(13):
                both[c] += ((got == c) & (want == c)).sum()
                either[c] += ((got == c) | (want == c)).sum()
    return round((both / either).mean().item(), 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--score", action="store_true", help="no training: scores of the shipped files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoints")
    args = parser.parse_args()
    vit, _ = vit_emoji()
    if args.score:
        from vtlib.superres.pretrained import uplift_emoji
        models = {name: uplift_emoji(name.removeprefix("uplift_emoji").strip("_") or None, seed=args.seed) for name in args.only}
    else:
        models, minutes = train(args, vit)
        for model in models.values():
            model.load_state_dict({k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()})
            model.eval()
    for name, model in {"nearest": "nearest", "bilinear": "bilinear", **models}.items():
        scores = {"error after 1, 2, 3 doublings": drift(model, vit), "mIoU of a linear probe": probe(model, vit)}
        print(name, scores, flush=True)
        if not args.score and name in models:
            header = {"config": MODELS[name][1], "scores": scores, "seed": args.seed, "minutes": round(minutes, 1),
                      "command": f"python data/train_uplift.py --seed {args.seed} --steps {args.steps}"}
            state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
            suffix = f"_seed{args.seed}" if args.seed else ""
            save_file(state, args.out / f"{name}{suffix}.safetensors", {k: json.dumps(v) for k, v in header.items()})


if __name__ == "__main__":
    main()
