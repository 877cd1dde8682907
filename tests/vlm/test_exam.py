"""The exam: whose drawings appear where, what questions rest on, and the measures against counting by hand."""

import pytest
import torch

from vtlib.tokens import Plan, keep_all
from vtlib.vlm import TinyVLM, exam

TINY = dict(encoder=dict(embed_dim=32, num_layers=3, num_heads=4, place_dim=8), decoder=dict(embed_dim=32, num_layers=2, num_heads=4, hidden_dim=48))


@pytest.fixture(scope="module")
def taken():
    return exam.exam(40, seed=3)


def test_held_out_drawings_never_train():
    train, test = (exam.scenes(300, 1, split) for split in ("train", "test"))
    twemoji = train.artists.index("twemoji")
    held = torch.isin(train.pictogram, torch.tensor(exam.HELD_OUT))
    assert held.any() and not ((train.artist == twemoji) & held).any()
    assert ((train.artist == twemoji) & ~held & train.valid).any()
    held = torch.isin(test.pictogram, torch.tensor(exam.HELD_OUT))
    assert ((test.artist == twemoji) & held).any() and not set(test.photos) & set(train.photos)


def test_every_word_is_known(taken):
    model = TinyVLM(exam.VOCABULARY, **TINY)
    for row in taken.asked:
        for question in row:
            model.tokenize([question.text, question.answer])


def test_questions_become_tensors(taken):
    model = TinyVLM(exam.VOCABULARY, **TINY)
    for b, row in list(enumerate(taken.asked))[:10]:
        for q, question in enumerate(row):
            text, answer = (model.tokenize([t])[0][0] for t in (question.text, question.answer))
            n = len(text)
            assert torch.equal(taken.ids[b, q, :n], text) and exam.KINDS[taken.kind[b, q]] == question.kind
            assert taken.target[b, q, n - 1 : n - 1 + len(answer)].tolist() == answer.tolist()
            assert taken.target[b, q, n - 1 + len(answer)] == model.ids["<end>"] and (taken.target[b, q] >= 0).sum() == len(answer) + 1


def test_grading_agrees_with_answering_word_for_word(taken):
    torch.manual_seed(0)
    model = TinyVLM(exam.VOCABULARY, **TINY).eval()
    with torch.no_grad():
        tokens = model.encode(taken.images[:3]).tokens
    small = exam.Exam(taken.scenes, taken.asked[:3], taken.ids[:3], taken.target[:3], taken.kind[:3])
    right = small.right(model, tokens)
    for b in range(3):
        said = model.answer(tokens[b : b + 1].expand(len(taken.asked[b]), -1, -1), [q.text for q in taken.asked[b]]).texts
        for q, (answer, question) in enumerate(zip(said, taken.asked[b])):
            assert right[b, q] == (answer == " ".join(exam.words(question.answer)))
    every = torch.where(taken.target >= 0, taken.target, 0)
    perfect = torch.nn.functional.one_hot(every, 200).float()
    assert taken.grade(perfect)[taken.kind >= 0].all() and taken.table(taken.grade(perfect))["all"] == 1


def test_object_patches_against_pixels(taken):
    cover = exam.object_patches(taken.scenes)
    masks = taken.scenes.masks
    for b, k, n in [(0, 0, 17), (1, 0, 100), (2, 1, 30), (5, 0, 200)]:
        row, col = divmod(n, 16)
        part = masks[b, k, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8].float().mean()
        if part >= 0.3:
            assert cover[b, k, n]
    assert torch.equal(cover.any(-1), masks.flatten(2).any(-1))
    assert (exam.oracle_mask(taken)[taken.scenes.sign.flatten(1).any(1)]).any(1).all()


def test_the_same_scenes_at_five_sizes():
    tests = exam.by_scale(6, seed=4)
    assert list(tests) == ["tiny", "small", "middle", "large", "huge"]
    (low, high), sizes = exam.SCALE, list(exam.SCALES.values())
    assert sizes[0][1] < low == sizes[1][0] and sizes[3][1] == high < sizes[4][0]              # two are held out, three make up the range
    first = tests["tiny"].scenes
    for (smallest, largest), taken in zip(sizes, tests.values()):
        scenes = taken.scenes
        assert torch.equal(scenes.valid.sum(1), first.valid.sum(1)) and scenes.photos == first.photos
        for b, there in enumerate(first.valid):                                                # the order is by depth, and depth by size
            assert sorted(scenes.pictogram[b, scenes.valid[b]].tolist()) == sorted(first.pictogram[b, there].tolist())
        scale = scenes.scale[scenes.valid]
        assert smallest - 1e-6 <= scale.min() and scale.max() <= largest + 1e-6 and scenes.valid.sum(1).max() <= 3
        assert not any(scenes.words or []) and (taken.kind >= 0).sum() > 30 and not (taken.kind == exam.KINDS.index("sign")).any()


def test_measures_of_known_selections(taken):
    tokens = torch.randn(40, 256, 8, generator=torch.Generator().manual_seed(0))
    everything = exam.measures(keep_all(40, 256), tokens, taken, (16, 16))
    assert everything["recall"] == 1 and everything["objects hit"] == 1 and everything["mean row"] == pytest.approx(7.5)
    top = exam.measures(Plan(torch.arange(32).expand(40, -1), 256), tokens, taken, (16, 16))
    assert top["mean row"] == pytest.approx(0.5) and top["recall"] < 0.4
    index = torch.cat([torch.zeros(40, 1, dtype=torch.long), torch.arange(1, 33).expand(40, -1)], 1)
    with_cls = exam.measures(Plan(index, 257, num_prefix=1), tokens, taken, (16, 16))
    assert with_cls == pytest.approx(top)                                        # the same 32 patches behind a [CLS]
    twins = tokens[:, :1].expand(-1, 256, -1)
    same = exam.measures(Plan(torch.arange(32).expand(40, -1), 256), twins, taken, (16, 16))
    assert same["redundancy"] == pytest.approx(1, abs=1e-5) and same["smallest distance"] == pytest.approx(0, abs=1e-5)
    unit = torch.nn.functional.normalize(tokens[0, :32], dim=-1)
    cosine = unit @ unit.T
    off = ~torch.eye(32, dtype=torch.bool)
    first = exam.measures(Plan(torch.arange(32)[None], 256), tokens[:1], exam.exam(1, seed=3), (16, 16))
    assert first["redundancy"] == pytest.approx(cosine[off].mean().item(), abs=1e-5)
    assert first["smallest distance"] == pytest.approx(1 - cosine[off].max().item(), abs=1e-5)
