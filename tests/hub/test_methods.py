"""`vtlib.hub.methods.Method`: what stands in for [CLS], and the question that a method finds in the
prompt by itself."""

import pytest
import torch
import torch.nn.functional as F

from tests.hub.tiny import (
    IMAGE,
    PROMPT,
    QUESTION,
    N,
    make_clip,
    make_llava,
    make_qwen,
    prompt,
    qwen_prompt,
)
from vtlib.hub import encoders
from vtlib.hub import methods as hub_methods
from vtlib.hub.clip import question_signals
from vtlib.hub.hooks import Hooks
from vtlib.pruning import method as pruning_method
from vtlib.pruning import recoverable
from vtlib.pruning.method import Method
from vtlib.tokens import Plan, top_tokens


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def llava():
    return make_llava()


def made(model, inputs, method, keep=5, which=None, more=None, text=None, **wishes):
    """(plan, tokens, vision) of the images of a prompt, by a hub Method that reads them itself."""
    family = encoders.family(model)
    wishes = {"stages": None, "attention": (), "hidden": (), "options": {}, **wishes}
    own = hub_methods.Method(hub_methods.find(method), family, **wishes)
    hooks = Hooks()
    try:
        family.attach(hooks, own.reads)
        (_, vision), = own.read(inputs)
    finally:
        hooks.remove()
    which = torch.arange(len(vision.features)) if which is None else which
    return *own.reduce(vision, more or {}, which, keep, text), vision


# ------------------------------------------------------------------------------- without a [CLS]
NO_CLS = {
    "siglip": (lambda: make_llava("siglip"), PROMPT),
    "qwen": (make_qwen, qwen_prompt((8, 8))),
}


@pytest.mark.parametrize("name", NO_CLS)
def test_what_is_received_stands_in_for_cls(name):
    """Methods that read the [CLS] row get the mean over queries of the deep layer's map."""
    model, inputs = NO_CLS[name][0](), NO_CLS[name][1]
    family = encoders.family(model)
    (_, vision), = encoders.read(model, inputs, attention=[family.deep])
    received = vision.attention[family.deep].mean(dim=2)                # b h n
    plan, tokens, read = made(model, inputs, "fastervlm", cls="received")
    assert read.cls_row is None and list(read.attention) == [family.deep]
    want = top_tokens(received.mean(dim=1), 5)
    assert torch.equal(plan.index, want)
    torch.testing.assert_close(tokens, Plan(want, N).apply(vision.tokens))
    seen = []

    def looks(vision, keep):
        seen.append(vision.cls_row)
        return vision.cls_row.mean(dim=1)

    method = Method("looks", "Looks", prune=looks, reads=("cls_row", "keys"))
    assert torch.equal(made(model, inputs, method, cls="received")[0].index, want)
    assert torch.equal(seen[0], received)
    torch.testing.assert_close(received.sum(dim=-1), torch.ones(received.shape[:2]))


@pytest.mark.parametrize("name", NO_CLS)
@pytest.mark.parametrize("method", ["fastervlm", "holov"])
def test_every_reader_of_cls_runs_without_it(name, method):
    model, inputs = NO_CLS[name][0](), NO_CLS[name][1]
    plan, tokens, _ = made(model, inputs, method, cls="received")
    assert len(plan) == 5 and tokens.isfinite().all()


def test_layers_that_the_caller_named_are_read_too():
    model = make_llava("siglip")
    family = encoders.family(model)
    _, _, vision = made(model, PROMPT, "fastervlm", attention=(0,), cls="received")
    assert sorted(vision.attention) == [0, family.deep]


def test_where_there_is_a_cls_it_stays(llava):
    plain, same = (made(llava, PROMPT, "fastervlm", cls=cls)[0] for cls in (None, "received"))
    assert torch.equal(plain.index, same.index)
    siglip = make_llava("siglip")
    plan, _, vision = made(siglip, PROMPT, "divprune", cls="received")      # reads no row
    assert len(plan) == 5 and not vision.attention


def test_a_declared_stand_in_comes_first():
    method = Method("own", "Own", prune=lambda vision, keep: vision.keys.mean(dim=-1),
                    reads=("cls_row",), reads_without_cls=("keys",))
    _, _, vision = made(make_llava("siglip"), PROMPT, method, cls="received")
    assert vision.keys is not None and not vision.attention


def test_refusals():
    siglip = make_llava("siglip")
    with pytest.raises(ValueError, match=r"has no \[CLS\]: cls='received' puts"):
        made(siglip, PROMPT, "fastervlm")
    with pytest.raises(ValueError, match="cls='mean': needs 'received'"):
        made(siglip, PROMPT, "fastervlm", cls="mean")


# ------------------------------------------------------------------------------------ the question
def by_words(vision, keep, text):
    return (F.normalize(vision.tokens, dim=-1) @ text[:, :, None])[..., 0]


WORDS = Method("words", "By the words", prune=by_words, space="tokens")


def asked(model, ids, mask, method=WORDS, draft=0):
    """`Method.text` as a prompt's adapter calls it: one image a row."""
    family = encoders.family(model)
    own = hub_methods.Method(method, family, None, (), (), {})
    words = (ids != IMAGE) & mask.bool()
    words[:, ids.shape[1] - draft :] = False
    places = (ids == IMAGE).nonzero()[:, 1].view(len(ids), -1)
    x = model.get_input_embeddings()(ids)
    return own.text(x, words, torch.arange(len(ids)), places)


def test_the_question_is_the_mean_of_its_words(llava):
    """Padding, the draft, words before the image and other images' placeholders are left out."""
    inputs = prompt([1, 5, "i", 7, 8], [1, 5, 6, "i", 3, 11, 12])
    table = F.normalize(llava.get_input_embeddings().weight, dim=-1)
    text = asked(llava, inputs["input_ids"], inputs["attention_mask"])
    want = torch.stack([table[[7, 8]].mean(0), table[[3, 11, 12]].mean(0)])
    torch.testing.assert_close(text, want)
    drafted = asked(llava, inputs["input_ids"], inputs["attention_mask"], draft=1)
    torch.testing.assert_close(drafted[1], table[[3, 11]].mean(0))
    asked_first = prompt([1, 7, 8, "i"])
    text = asked(llava, asked_first["input_ids"], asked_first["attention_mask"])
    torch.testing.assert_close(text[0], table[[1, 7, 8]].mean(0))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert asked(llava, ids, mask, hub_methods.find("divprune")) is None
    assert asked(llava, ids, mask, hub_methods.find("fastv")) is None


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_one_picture_asked_about_twice(kind, llava):
    """Two prompts with the same picture and other questions: each has its own plan."""
    model = llava if kind == "llava" else make_qwen()
    inputs = PROMPT if kind == "llava" else qwen_prompt((8, 8))
    text = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    which = torch.tensor([1, 0, 1])
    plan, tokens, vision = made(model, inputs, WORDS, which=which, text=text)
    want = by_words(vision.rows(which), 5, text)
    assert torch.equal(plan.index, top_tokens(want, 5)) and tokens.shape == (3, 5, 48)
    assert not torch.equal(plan.index[0], plan.index[2])
    shift = {"bias": torch.randn(2, N, generator=torch.Generator().manual_seed(1))}
    method = Method("biased", "Biased", space="tokens",
                    prune=lambda vision, keep, text, bias: by_words(vision, keep, text) + 9 * bias)
    plan, _, _ = made(model, inputs, method, which=which, text=text, more=shift)
    assert torch.equal(plan.index, top_tokens(want + 9 * shift["bias"][which], 5))


def test_recoverable_finds_all_it_reads(llava):
    """Queries and keys of the last layer, projected patches, and the question: as on TinyVLM."""
    text = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    plan, _, vision = made(llava, PROMPT, "recoverable", 6, text=text)
    tower = llava.model.vision_tower
    seen, hooks = {}, []
    for name in ("q_proj", "k_proj"):
        layer = getattr(tower.encoder.layers[-1].self_attn, name)
        record = layer.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
        hooks.append(record)
    tower(PROMPT["pixel_values"])
    for hook in hooks:
        hook.remove()
    want = recoverable.prune(vision, 6, query=seen["q_proj"], key=seen["k_proj"],
                             patches=vision.tokens, text=text)
    assert torch.equal(plan.index, want.index) and torch.equal(plan.weight, want.weight)


def test_given_signals_come_first(llava):
    """CLIP's own, of which a method may take a part."""
    signals = question_signals(make_clip(), QUESTION)(PROMPT)
    text = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    got, _, vision = made(llava, PROMPT, "recoverable", 6, more=signals, text=text)
    assert torch.equal(got.index, recoverable.prune(vision, 6, **signals).index)

    def part(vision, keep, patches, text):
        return (patches @ text[:, :, None])[..., 0]

    got, _, vision = made(llava, PROMPT, part, more=signals, text=text)
    want = part(vision, 5, signals["patches"], signals["text"])
    assert torch.equal(got.index, top_tokens(want, 5))
    with pytest.raises(TypeError, match="txet"):
        made(llava, PROMPT, part, more={"txet": text}, text=text)


def test_a_missing_question_is_named(llava):
    with pytest.raises(ValueError, match="method=words needs text, which is not read"):
        made(llava, PROMPT, WORDS)


def test_a_mask_through_the_hub(llava):
    def half(vision, keep):
        return torch.arange(N).expand(2, -1) % 4 == torch.tensor([[0], [1]])

    plan, tokens, vision = made(llava, PROMPT, half)
    assert torch.equal(plan.index, torch.tensor([[0, 4, 8, 12], [1, 5, 9, 13]]))
    assert torch.equal(tokens, plan.apply(vision.tokens))
    assert isinstance(pruning_method.as_plan(half(None, 4), 2, N, 4), Plan)
