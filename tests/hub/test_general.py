"""General models as people run them: accelerate, training, static caches, conversations, budgets,
videos. Whether what is kept is right, test_matrix tests."""

import pytest
import torch

from tests.hub import zoo
from tests.hub.tiny import greedy
from vtlib.hub import prune
from vtlib.tokens import take

NAMES = ["internvl", "qwen3_vl", "llava_next", "mistral3", "gemma3"]
CASES = [("divprune", {}), ("fastv", dict(after=3))]


def labelled(inputs):
    """The last three tokens are to be said."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    return {**inputs, "labels": labels}


@pytest.mark.parametrize("method, options", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_accelerates_hooks(name, method, options):
    """Its hooks move inputs and bring weights from elsewhere: same words, with all weights at hand
    and with all of them offloaded."""
    accelerate = pytest.importorskip("accelerate")
    model, inputs, _ = zoo.build(name)
    with torch.no_grad(), prune(model, method, 2, **options):
        words = greedy(model, inputs)
    if name == "llava_next":  # its generate reads image_newline where no hook has brought it
        return
    forced = accelerate.dispatch_model(zoo.build(name)[0], {"": "cpu"}, force_hooks=True)
    away = accelerate.cpu_offload(zoo.build(name)[0], torch.device("cpu"))
    for hooked in (forced, away):
        with torch.no_grad(), prune(hooked, method, 2, **options):
            assert torch.equal(greedy(hooked, inputs), words)


@pytest.mark.parametrize("method, options", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_labels(name, method, options):
    """The loss is the cross-entropy of what is left; gradients reach the tower and are finite."""
    model, inputs, _ = zoo.build(name)
    given = labelled(inputs)
    with prune(model, method, 2, **options) as pruned:
        out = model(**given)
        out.loss.backward()
    labels = take(given["labels"], pruned.columns).masked_fill(~pruned.valid, -100)
    logits = out.logits[:, :-1].flatten(0, 1)
    want = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want)
    tower = model.get_encoder(modality="image")
    grads = [p.grad for p in tower.parameters() if p.grad is not None]
    assert len(grads) > 10 and all(g.isfinite().all() for g in grads)
    assert any(g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("name", [*NAMES, "smolvlm", "paligemma"])
def test_a_static_cache_before_the_decoder(name):
    model, inputs, _ = zoo.build(name)
    with torch.no_grad(), prune(model, "divprune", 2):
        words = greedy(model, inputs)
        assert torch.equal(greedy(model, inputs, cache_implementation="static"), words)


@pytest.mark.parametrize("name", ["internvl", "qwen3_vl", "mistral3"])
def test_a_second_turn(name):
    """The returned sequence with new words behind it goes on as the whole prompt would."""
    model, inputs, _ = zoo.build(name)
    with torch.no_grad(), prune(model, "divprune", 2):
        given = dict(suppress_tokens=[zoo.IMAGE, zoo.VIDEO], return_dict_in_generate=True)
        first = greedy(model, inputs, **given)
        ids = torch.cat([first.sequences, torch.tensor([[11, 12], [13, 14]])], dim=1)
        size = ids.shape[1] - inputs["input_ids"].shape[1]
        longer = {**inputs, "input_ids": ids}
        for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if key in inputs:
                longer[key] = torch.nn.functional.pad(inputs[key], (0, size), value=value)
        rest = {key: longer[key] for key in ("input_ids", "attention_mask")}
        went_on = greedy(model, rest, past_key_values=first.past_key_values)
        assert torch.equal(went_on, greedy(model, longer))


@pytest.mark.parametrize("method, options", CASES)
def test_budgets_by_image(method, options):
    model, inputs, counts = zoo.build("qwen3_vl")
    with torch.no_grad(), prune(model, method, [3, 0.5], **options) as pruned:
        model(**inputs)
        kept = sorted(len(group.total) for group in pruned.images)
        assert kept == sorted([3, counts[1] // 2])
    with torch.no_grad(), prune(model, method, 10, clip=True, **options) as pruned:
        model(**inputs)
        assert sorted(len(group.total) for group in pruned.images) == sorted([10, counts[1]])


# ------------------------------------------------------------------------------------------ videos
def video_prompt(name):
    """(model, inputs, frames of each video): two videos of two sizes, one a prompt."""
    model, inputs, _ = zoo.build(name)
    if name == "llava_onevision":
        pixels = zoo.noise(2, 3, 3, 56, 56)  # b t c h w
        out = model.base_model.get_video_features(pixel_values_videos=pixels, return_dict=True)
        counts, frames = zoo.tokens_of(out), [3, 3]
        given = dict(pixel_values_videos=pixels)
    else:
        grids = torch.tensor([[2, 8, 8], [3, 4, 8]])
        size = 3 * 2 * model.config.vision_config.patch_size**2
        given = dict(
            pixel_values_videos=zoo.noise(int(grids.prod(1).sum()), size), video_grid_thw=grids
        )
        counts, frames = (grids.prod(1) // 4).tolist(), [2, 3]
    around = None if name == "llava_onevision" else (zoo.START, zoo.END)
    given = {**zoo.prompts(counts, zoo.VIDEO, around), **given}
    if around:
        given["mm_token_type_ids"] = (given["input_ids"] == zoo.VIDEO).long() * 2
    return model, given, counts, frames


@pytest.mark.parametrize("method", ["divprune", "fastv"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "llava_onevision"])
def test_videos_go_frame_by_frame(name, method):
    """Each frame keeps `keep` tokens (and a video its newline); words as without a cache."""
    model, inputs, counts, frames = video_prompt(name)
    with torch.no_grad(), prune(model, method, 2) as pruned:
        logits = model(**inputs).logits
        words = greedy(model, inputs)
        assert torch.equal(greedy(model, inputs, use_cache=False), words)
        assert logits.isfinite().all()
        kept = sum(group.total.index.numel() for group in pruned.images)
        assert kept == 2 * sum(frames)
        spare = sum(count % frame for count, frame in zip(counts, frames, strict=True))
        rest = inputs["attention_mask"].sum() - sum(counts) + spare
        assert pruned.valid.sum() == rest + kept
    with torch.no_grad():
        full = model(**inputs).logits
        with prune(model, method, 1.0):
            assert torch.equal(model(**inputs).logits, full)


def test_a_tower_is_not_read_of_videos():
    model, inputs, _, _ = video_prompt("llava_onevision")
    with prune(model, "hiprune", 2, object_layer=2), pytest.raises(ValueError, match="of videos"):
        model(**inputs)
