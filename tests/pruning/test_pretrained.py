"""The shipped dual encoder: pictures and captions fit together, it has learned them, guidance
protects what captions name."""

import pytest
import torch

from vtlib import checkpoints
from vtlib.data.questions import things
from vtlib.nn import patchify
from vtlib.pruning import crossget, recoverable
from vtlib.pruning.pretrained import (
    SILENT,
    SPOKEN,
    Words,
    crossget_clip,
    pictures,
    signals,
    vocabulary,
    world,
)


def test_captions_name_the_spoken_ones_only():
    seen = pictures(world("test"), 40, seed=3)
    assert seen.images.shape == (40, 3, 64, 64) and len(seen.captions) == 40
    assert not (seen.spoken & seen.silent).any()
    assert seen.spoken.flatten(1).any(1).all() and seen.silent.flatten(1).any(1).all()
    for caption in seen.captions:
        assert any(name.lower() in caption.lower() for name in SPOKEN)
        assert not any(name in caption.lower() for name in SILENT)
    again = pictures(world("test"), 40, seed=3)
    assert again.captions == seen.captions and torch.equal(again.images, seen.images)
    # splits differ in their backgrounds only
    assert pictures(world("train"), 40, seed=3).captions == seen.captions


def test_masks_are_those_of_the_scene():
    source, found = world(), pictures(world(), 8, seed=5)
    scenes = source.scenes(12, 5000, objects=3, scale=(0.28, 0.45), rotation=20, repeat=0,
                           occlusion="none")
    row = 0
    for b, scene in enumerate(things(scenes)):
        named = [t for t in scene if t.seen and t.name in SPOKEN]
        if row < 8 and 0 < len(named) < sum(t.seen for t in scene):
            assert torch.equal(found.images[row], scenes.images[b])
            masks = torch.stack([scenes.masks[b, t.slot] for t in named])
            assert torch.equal(found.spoken[row], masks.any(0))
            assert found.captions[row].count(" and ") == len(named) - 1
            row += 1


def test_words():
    words = Words(vocabulary(), 19)
    ids = words(["A dog face on the left.",
                 "A slice of pizza at the top left and an octopus in the middle."])
    assert ids.shape == (2, 19) and ids.argmax(1).tolist() == [7, 15]
    assert (ids[:, 0] == 1).all() and ids[0, 8:].sum() == 0
    assert ids.max() == words.eot == len(words) - 1
    for caption, message in (("A penguin.", "unknown words"),
                             ("a " * 18, "18 words, but there is room for 17")):
        with pytest.raises(ValueError, match=message):
            words([caption])


@pytest.fixture(scope="module")
def trained():
    """The checkpoint, its tokenizer, and 128 pictures on held-out backgrounds."""
    return *crossget_clip(), pictures(world("test"), 128, seed=11)


def patches(mask, share=0.5):
    """(B, 64) bool: patches of 8 x 8 pixels that lie in a mask by more than `share`."""
    return patchify(mask[:, None].float(), 8).mean(-1) > share


@torch.no_grad()
def recall(trained, *options):
    model, words, seen = trained
    image, text = model.encode_image(seen.images, *options), model.encode_text(words(seen.captions))
    best = model.logits(image.feature, text.feature).argmax(1)
    found = [seen.captions[i] for i in best.tolist()]
    same = [a == b for a, b in zip(found, seen.captions, strict=True)]
    return sum(same) / len(same)


def test_the_checkpoint_has_learned(trained):
    among_128 = recall(trained, 0)
    assert among_128 > 0.2                                                  # chance: 0.008
    among_256 = checkpoints.info("crossget_clip")["score"]["r=0"]["i2t"]
    assert 0.15 < among_256 < among_128


@torch.no_grad()
def test_the_table_of_seeds_is_of_these_checkpoints(trained):
    """The first seed's numbers are those of the shipped file; the other runs differ from it in
    nothing but the seed."""
    model, words, _ = trained
    table, known = checkpoints.seeds("crossget_clip"), checkpoints.info("crossget_clip")
    for seed, run in table.items():
        assert run["command"] == known["command"] + f" --seed {seed}" * (seed != 0)
        assert run["steps"] == known["steps"] and run["score"].keys() == known["score"].keys()
        assert 1.5 < run["losses"]["ita"] < 3.5 < torch.tensor(64.0).log()     # by chance: log 64
    assert len({run["score"]["r=0"]["t2i"] for run in table.values()}) == len(table) == 3
    # the first batch of those that the losses are of
    part = pictures(world("test"), 64, 980_000)
    same = torch.tensor([[a == b for b in part.captions] for a in part.captions])
    losses = model.losses(part.images, words(part.captions), same, r=8)
    shipped = table[0]["losses"]
    assert abs(losses["ita"] - shipped["ita"]) < 0.4 and abs(losses["kd"] - shipped["kd"]) < 0.05


def test_half_the_tokens_are_superfluous_and_the_complete_graph_goes_further(trained):
    assert recall(trained, 12) > recall(trained, 0) - 0.05                  # 66 -> 18 tokens
    assert recall(trained, 32, 1.0, "complete") > recall(trained, 32, 1.0, "bipartite")


@torch.no_grad()
def test_guidance_protects_what_captions_name(trained):
    """Claim 2: with the cross token's say, patches of named pictograms are merged less often than
    those of others."""
    model, _, seen = trained
    lead = {}
    for guidance in (1.0, 0.0):
        plans = model.encode_image(seen.images, 12, guidance).plans
        gone = ~plans[0].then(plans[1]).then(plans[2]).then(plans[3]).kept()[:, 1:-1]
        spoken, silent = (gone[patches(mask)].float().mean().item()
                          for mask in (seen.spoken, seen.silent))
        lead[guidance] = silent - spoken
    assert lead[1.0] > 0.04 and lead[1.0] > lead[0.0] + 0.04


@torch.no_grad()
def test_signals(trained):
    model, words, seen = trained
    ids, named = words(seen.captions), patches(seen.spoken)
    gain = {}
    for kind in ("value", "hidden"):
        vision, asked = signals(model, seen.images, ids, kind)
        assert vision.features.shape == (128, 64, 128) and vision.keys.shape == (128, 65, 32)
        assert vision.cls_row.shape == (128, 4, 64)
        assert asked["query"].shape == asked["key"].shape == (128, 65, 128)
        visual = recoverable.visual_score(asked["query"], asked["key"])
        text = recoverable.text_score(asked["text"], asked["patches"])
        found = recoverable.filters(visual, text)
        by_eye = visual.argsort(1, descending=True).argsort(1) < found.kept.sum(1, keepdim=True)
        gain[kind] = [(chosen & named).sum().item() / named.sum().item()
                      for chosen in (found.kept, by_eye)]
    # the question brings back what it names; patches that never met text do not
    assert gain["value"][0] > gain["value"][1] + 0.04
    assert gain["value"][0] > gain["hidden"][0]
    assert not model.visual.transformer.resblocks[-1]._forward_hooks
    plan = recoverable.prune(vision, **asked)
    assert torch.equal(plan.apply(vision.features)[0, 0], vision.features[0, plan.index[0, 0]])
    assert len(crossget.prune(vision, 16)) == 16
    with pytest.raises(ValueError, match="patches='mixed'"):
        signals(model, seen.images, ids, "mixed")


def test_signals_are_the_towers_own(trained):
    """[CLS] row and states are those of the forward pass, but for the cross token's key."""
    model, words, seen = trained
    vision, asked = signals(model, seen.images[:2], words(seen.captions[:2]), "hidden")
    states = []
    before_the_last = model.visual.transformer.resblocks[-2]
    hook = before_the_last.register_forward_hook(lambda _, args, out: states.append(out[0]))
    feature = model.encode_image(seen.images[:2], 0).feature
    hook.remove()
    assert torch.equal(states[0][:, :-1], vision.selected)
    text = model.encode_text(words(seen.captions[:2]), r=0).feature
    torch.testing.assert_close(text, asked["text"])
    assert feature.shape == asked["text"].shape == (2, 64) and (vision.cls_row.sum(-1) < 1).all()
