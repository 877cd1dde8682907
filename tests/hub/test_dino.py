"""TinyVLM behind DINOv2: the interface of TinyVLM's own encoder, all methods on it, and what it
says when DINOv2's weights are not there."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from tests.hub.tiny import make_dinov2
from vtlib import hub
from vtlib.hub import dino
from vtlib.pruning import baselines, bench, hiprune
from vtlib.pruning.registry import METHODS
from vtlib.teach.pruning.grades import Grades
from vtlib.vlm import Encoder, TinyVLM, exam

DECODER = dict(embed_dim=32, num_layers=6, num_heads=2, hidden_dim=32)
QUESTIONS = ["is there a crab?", "how many objects are there?"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = dino.DinoEncoder(make_dinov2())
    return TinyVLM(exam.VOCABULARY, encoder, DECODER).eval()


@pytest.fixture(scope="module")
def taken():
    return exam.exam(2, seed=5, n=2, size=dino.SIZE, patch=14)


@pytest.fixture(scope="module")
def vision(model, taken):
    with torch.no_grad():
        return bench.encode(model, taken.images)


# ------------------------------------------------------------------------------- the interface
def test_it_offers_what_tinyvlms_encoder_offers(model):
    own = Encoder()
    for name in ("embed_dim", "num_layers", "num_prefix", "place_dim", "patch_size"):
        assert isinstance(getattr(own, name), int) and isinstance(getattr(model.encoder, name), int)
    for name in ("forward", "queries_and_keys", "grid"):
        want, got = (inspect.signature(getattr(e, name)) for e in (own, model.encoder))
        assert list(want.parameters) == list(got.parameters)
    images = torch.rand(1, 3, 112, 112)
    asked = dict(need=("cls_row", "keys"), attention=(-1,), hidden=(0, -1))
    with torch.no_grad():
        assert own(images, **asked).keys() == model.encoder(images, **asked).keys()


@torch.no_grad()
def test_what_is_read_is_what_dinov2_computes(model):
    images = torch.rand(2, 3, 70, 112)
    encoder, backbone = model.encoder, model.encoder.backbone
    asked = dict(need=("cls_row", "keys"), attention=(0, -3), hidden=(0, 11, -1))
    out = encoder(images, **asked)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    pixels = (images - mean) / std
    want = backbone(pixels, output_attentions=True, output_hidden_states=True)
    assert out["grid"] == (5, 8) and set(out["hidden"]) == {0, 11, 12}
    for index, state in out["hidden"].items():
        assert torch.equal(state, want.hidden_states[index])
    assert torch.equal(out["selected"], backbone.layernorm(want.hidden_states[11]))
    assert torch.equal(backbone.layernorm(out["last"]), want.last_hidden_state)
    assert set(out["attention"]) == {0, 9}
    for layer, weights in out["attention"].items():
        torch.testing.assert_close(weights, want.attentions[layer])
    torch.testing.assert_close(out["cls_row"], want.attentions[10][:, :, 0, 1:])
    key = backbone.encoder.layer[10].attention.k_proj
    keys = key(backbone.encoder.layer[10].norm1(want.hidden_states[10]))
    torch.testing.assert_close(out["keys"], keys.unflatten(-1, (6, 8)).mean(2))


def test_it_is_frozen_and_follows_its_model(model):
    assert not any(p.requires_grad for p in model.encoder.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    assert rest and all(p.requires_grad for p in rest)
    image = torch.rand(1, 3, 28, 28, requires_grad=True)
    model.encode(image).tokens.sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0


@pytest.mark.parametrize(("images", "message"), [
    (torch.rand(1, 3, 32, 28), "14"),
    (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), "images is torch.uint8"),
    (torch.rand(1, 3, 28, 28, dtype=torch.float64), "images"),
])
def test_wrong_pictures_are_refused(model, images, message):
    with pytest.raises(ValueError, match=message):
        model.encode(images)


def test_another_encoder_is_a_module():
    with pytest.raises(ValueError, match="encoder=3: needs a dict of its arguments, a module"):
        TinyVLM(["a"], encoder=3)
    with pytest.raises(ValueError, match="decoder=.*needs a dict of its arguments, or None"):
        TinyVLM(["a"], decoder=nn.Identity())


# --------------------------------------------------------------------------------- the methods
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_every_method_runs(model, vision, name):
    generator = torch.Generator().manual_seed(0)
    done = bench.reduce(model, vision, name, 28, QUESTIONS, generator)
    before = METHODS[name].stages is None
    assert done.tokens.shape[2] == 32 and (done.tokens.shape[1] == 28 or not before)
    answers = model.answer(done.tokens, QUESTIONS, done.stages, done.positions)
    assert answers.first.isfinite().all() and len(answers.texts) == 2
    whole = bench.reduce(model, vision, name, 256, QUESTIONS, generator)
    assert torch.equal(whole.tokens, vision.tokens)


def test_hiprune_reads_dinov2s_own_layers(model, vision):
    """The tenth layer and the one that made the features, not TinyVLM's third."""
    assert bench.options_of(model, METHODS["hiprune"]) == {"object_layer": 10}
    assert set(vision.attention) == {9, 10}
    assert bench.options_of(model, METHODS["divprune"]) == {}
    assert bench.options_of(TinyVLM(["a"]), METHODS["hiprune"]) == {"object_layer": 3}


def test_grades_take_it(model, vision, taken):
    grades = Grades(model, vision, taken).add(["random", "fastervlm", "fastv"], (28,))
    assert all(0 <= grades.percent(title, 28) <= 100 for title in grades.right)
    assert grades.measures("FasterVLM", 28)["objects hit"] <= 1


# --------------------------------------------------------------------------- the weights, missing
def test_without_the_weights_one_line_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("VTLIB_REAL", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="dinov2.*is not there: run `make real`") as error:
        hub.tinyvlm_dino()
    assert "\n" not in str(error.value)
    blind = dino.reader(list(exam.VOCABULARY))
    assert not any(name.startswith("encoder.") for name in blind.state_dict())
    with pytest.raises(FileNotFoundError, match="cannot see.*run `make real`"):
        blind.encode(torch.rand(1, 3, 28, 28))


def test_a_reader_has_the_real_ones_shape():
    from vtlib.hub.convert import DINOV2

    blind = dino.reader(list(exam.VOCABULARY))
    assert blind.projector[0].in_features == DINOV2["hidden_size"] + 16
    assert sum(p.numel() for p in blind.parameters()) * 2 < 3e6            # bytes in half precision


@torch.no_grad()
def test_the_real_dinov2_gives_these_tokens():
    told = hub.real_missing("dinov2")
    if told:
        pytest.skip(told)
    backbone = hub.real("dinov2")
    images = exam.scenes(1, seed=3, size=dino.SIZE).images
    out = dino.DinoEncoder(backbone)(images, select=-1, need=("cls_row",), attention=(9,))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    want = backbone((images - mean) / std, output_attentions=True)
    assert torch.equal(out["selected"], want.last_hidden_state)
    torch.testing.assert_close(out["cls_row"], want.attentions[11][:, :, 0, 1:])
    torch.testing.assert_close(out["attention"][9], want.attentions[9])


# ----------------------------------------------------------------------------- the shipped weights
@pytest.fixture(scope="module")
def shipped():
    told = hub.real_missing("dinov2")
    if told:
        pytest.skip(told)
    return hub.tinyvlm_dino()


@pytest.fixture(scope="module")
def looked(shipped):
    test = exam.exam(40, seed=2_000_000, size=dino.SIZE, patch=14)
    with torch.no_grad():
        seen = bench.encode(shipped, test.images, ["random", "fastervlm"])
    return Grades(shipped, seen, test)


def test_it_looks(looked):
    assert looked.whole > 74 and looked.whole > looked.blind + 20, (looked.whole, looked.blind)


def test_what_sees_objects_beats_chance_with_few_tokens(looked):
    cheat = partial(baselines.oracle, exam.oracle_mask(looked.exam))
    looked.add({"Oracle": cheat, "FasterVLM": "fastervlm", "Random": "random"}, (28,))
    for better in ("Oracle", "FasterVLM"):
        assert looked.lead(better, "Random", 28).points > 3, looked.ranked(28)


def test_the_object_layer_is_where_the_overlap_turns(shipped):
    """HiPrune's rise and fall: up to the tenth layer of twelve, then down."""
    scenes = exam.scenes(24, seed=2_000_001, size=dino.SIZE)
    objects = exam.object_patches(scenes, 14).any(1)
    with torch.no_grad():
        parts = [
            hiprune.layer_analysis(shipped.encode(images, attention=range(12)), mask)[1]
            for images, mask in zip(scenes.images.split(8), objects.split(8), strict=True)
        ]
    overlap = torch.stack(parts).mean(0)
    assert overlap.argmax() + 1 == dino.OBJECT_LAYER, overlap
    assert overlap[9] > 1.3 * overlap[10:].max() and overlap[9] > 1.5 * overlap[:6].max(), overlap
