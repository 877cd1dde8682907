"""The exam: whose drawings appear where, what questions rest on, and the measures against counting
by hand."""

import dataclasses

import pytest
import torch

from tests.settings import default_dtype
from vtlib.tokens import Plan, keep_all
from vtlib.vlm import TinyVLM, exam

TINY = dict(
    encoder=dict(embed_dim=32, num_layers=3, num_heads=4, place_dim=8),
    decoder=dict(embed_dim=32, num_layers=2, num_heads=4, hidden_dim=48),
)

MEASURES = ["recall", "objects hit", "redundancy", "smallest distance", "mean row"]


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
            ids, target, last = taken.ids[b, q], taken.target[b, q], len(text) - 1
            assert torch.equal(ids[: len(text)], text)
            assert exam.KINDS[taken.kind[b, q]] == question.kind
            assert target[last : last + len(answer)].tolist() == answer.tolist()
            assert target[last + len(answer)] == model.ids["<end>"]
            assert (target >= 0).sum() == len(answer) + 1


def test_grading_agrees_with_answering_word_for_word(taken):
    torch.manual_seed(0)
    model = TinyVLM(exam.VOCABULARY, **TINY).eval()
    with torch.no_grad():
        tokens = model.encode(taken.images[:3]).tokens
    rows = (part[:3] for part in (taken.asked, taken.ids, taken.target, taken.kind))
    small = exam.Exam(taken.scenes, *rows)
    right = small.right(model, tokens)
    for b, asked in enumerate(small.asked):
        seen = tokens[b : b + 1].expand(len(asked), -1, -1)
        said = model.answer(seen, [q.text for q in asked]).texts
        for q, (answer, question) in enumerate(zip(said, asked, strict=True)):
            assert right[b, q] == (answer == " ".join(exam.words(question.answer)))
    every = torch.where(taken.target >= 0, taken.target, 0)
    perfect = torch.nn.functional.one_hot(every, 200).float()
    graded = taken.grade(perfect)
    assert graded[taken.kind >= 0].all() and taken.table(graded)["all"] == 1


def test_tokens_that_are_not_finite_get_no_grade(taken):
    with pytest.raises(ValueError, match="tokens .* non-finite"):
        taken.right(TinyVLM(exam.VOCABULARY, **TINY), torch.full((40, 4, 32), torch.nan))


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


def test_an_exam_has_the_patches_of_its_encoder(taken):
    """The same scenes larger, in patches of 14 pixels: 16 x 16 as before, on the same objects."""
    large = exam.exam(6, seed=3, size=224, patch=14)
    small = exam.exam(6, seed=3)
    assert large.images.shape[2:] == (224, 224) and small.patch == taken.patch == 8
    assert large.cover.shape == small.cover.shape and large.cover.shape[2] == 256
    for measure in (exam.oracle_mask, lambda made: made.cover.any(1)):
        one, other = measure(large), measure(small)
        assert (one & other).sum() > 0.85 * (one | other).sum()
    assert torch.equal(exam.oracle_mask(large), exam.oracle_mask(large, 14))
    with pytest.raises(ValueError, match="patch=0"):
        exam.exam(1, patch=0)


def test_the_same_scenes_at_five_sizes():
    tests = exam.by_scale(6, seed=4)
    assert list(tests) == ["tiny", "small", "middle", "large", "huge"]
    (low, high), sizes = exam.SCALE, list(exam.SCALES.values())
    assert sizes[0][1] < low == sizes[1][0]                    # two are held out, three make up the
    assert sizes[3][1] == high < sizes[4][0]                   # range of training

    def shown(scenes, b):                                      # their order is by depth, so by size
        return sorted(scenes.pictogram[b, scenes.valid[b]].tolist())

    first = tests["tiny"].scenes
    for (smallest, largest), taken in zip(sizes, tests.values(), strict=True):
        scenes = taken.scenes
        counts, scale = scenes.valid.sum(1), scenes.scale[scenes.valid]
        assert torch.equal(counts, first.valid.sum(1)) and scenes.photos == first.photos
        assert all(shown(scenes, b) == shown(first, b) for b in range(6))
        assert smallest - 1e-6 <= scale.min() and scale.max() <= largest + 1e-6
        assert counts.max() <= 3 and not any(scenes.words or [])
        assert (taken.kind >= 0).sum() > 30
        assert not (taken.kind == exam.KINDS.index("sign")).any()


def seeds_of(index):
    """Plans of 256 patches with the same seeds: kept in any order, merged, behind a prefix, with
    empty slots."""
    batch, every = len(index), torch.arange(256).expand(len(index), -1)
    into = torch.arange(256).expand(batch, -1) % index.shape[1]
    share = torch.full((batch, 256), 1 / 256)
    behind = torch.cat([torch.zeros_like(index[:, :1]), index + 1], dim=1)
    holes = torch.full_like(index, -1)
    yield Plan(index, 256)
    yield Plan(index.flip(1), 256)
    yield Plan(index, 256, every, into, share)
    yield Plan(torch.cat([index, index[:, :1]], dim=1), 256, every, into, share)
    yield Plan(behind, 257, num_prefix=1)
    yield Plan(behind, 257, every, into, share, num_prefix=1)
    yield Plan(torch.cat([index, holes], dim=1), 256)


def test_measures_are_those_of_the_seeds(taken):
    """Whatever is merged into them, whatever stands in front, and whatever is empty."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, 256, 8, generator=generator) + 0.5
    index = torch.rand(40, 256, generator=generator).argsort(1)[:, :9].sort(1).values
    want = by_hand(tokens, list(index))
    for plan in seeds_of(index):
        got = exam.measures(plan, tokens, taken, (16, 16))
        assert got == exam.measures(Plan(index, 256), tokens, taken, (16, 16))
        assert (got["redundancy"], got["smallest distance"]) == pytest.approx(want, abs=1e-6)


def by_hand(tokens, seeds):
    """Mean cosine of two seeds, smallest distance of two, mean over the pictures that have two."""
    mean, smallest = [], []
    for image, places in zip(tokens, seeds, strict=True):
        unit = torch.nn.functional.normalize(image[places].double(), dim=-1)
        pairs = torch.combinations(torch.arange(len(places)))
        cosine = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(-1)
        if len(cosine):
            mean.append(cosine.mean().item())
            smallest.append(1 - cosine.max().item())
    return sum(mean) / len(mean), sum(smallest) / len(smallest)


def test_pictures_that_keep_less_than_others(taken):
    """Empty slots are no tokens: rows of 0 ... 4 patches; those without a pair do not count."""
    tokens = torch.randn(40, 256, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    index = torch.arange(40)[:, None] + torch.arange(4) * 40
    count = torch.arange(40)[:, None] % 5
    index = index.masked_fill(torch.arange(4) >= count, -1)
    got = exam.measures(Plan(index, 256), tokens, taken, (16, 16))
    want = by_hand(tokens, [row[row >= 0] for row in index])
    assert (got["redundancy"], got["smallest distance"]) == pytest.approx(want, abs=1e-6)
    alone = exam.measures(Plan(index[:, :1], 256), tokens, taken, (16, 16))
    assert alone["redundancy"] == 0 and alone["smallest distance"] == 2


def test_measures_do_not_depend_on_the_default_dtype(taken):
    tokens = torch.randn(40, 256, 8, generator=torch.Generator().manual_seed(2))
    plan = Plan(torch.arange(7, 100, 9).expand(40, -1), 256)
    want = exam.measures(plan, tokens, taken, (16, 16))
    table = taken.table(taken.kind % 2 == 0)
    with default_dtype():
        assert exam.measures(plan, tokens, taken, (16, 16)) == want
        assert taken.table(taken.kind % 2 == 0) == table
        assert torch.equal(exam.object_patches(taken.scenes), taken.cover)
        exam.oracle_mask(taken)


@pytest.mark.parametrize("change, words", [
    (dict(plan=3), "plan is a int but needs to be a Plan"),
    (dict(plan=keep_all(40, 255)), r"plan is for \(B, N\) = \(40, 255\) patches"),
    (dict(plan=keep_all(40, 256, num_prefix=1)), r"plan is for \(B, N\) = \(40, 255\) patches"),
    (dict(tokens=torch.full((40, 256, 2), torch.nan)), "tokens .* non-finite"),
    (dict(tokens=torch.ones(40, 256)), "3 axes"),
    (dict(grid=(16, 15)), "has 240 places but there are 256 tokens"),
    (dict(grid=16), "grid=16"),
    (dict(plan=keep_all(39, 256), tokens=torch.ones(39, 256, 2)), "exam has 40 pictures of 256"),
])
def test_what_cannot_be_measured(taken, change, words):
    fits = dict(plan=keep_all(40, 256), tokens=torch.ones(40, 256, 2), exam=taken, grid=(16, 16))
    with pytest.raises(ValueError, match=words):
        exam.measures(**{**fits, **change})


def test_grades_of_other_shapes(taken):
    with pytest.raises(ValueError, match="logits has shape"):
        taken.grade(torch.zeros(40, 8, 200))
    with pytest.raises(ValueError, match="right is torch.float32"):
        taken.table(torch.zeros(taken.kind.shape))
    nothing = dataclasses.replace(taken, asked=[[] for _ in taken.asked])
    with pytest.raises(ValueError, match="no question that rests on objects"):
        nothing.queried()


def test_measures_of_known_selections(taken):
    tokens = torch.randn(40, 256, 8, generator=torch.Generator().manual_seed(0))
    everything = exam.measures(keep_all(40, 256), tokens, taken, (16, 16))
    assert list(everything) == MEASURES
    assert everything["recall"] == 1 and everything["objects hit"] == 1
    assert everything["mean row"] == pytest.approx(7.5)
    top = exam.measures(Plan(torch.arange(32).expand(40, -1), 256), tokens, taken, (16, 16))
    assert top["mean row"] == pytest.approx(0.5) and top["recall"] < 0.4
    behind_cls = Plan(torch.arange(33).expand(40, -1), 257, num_prefix=1)
    assert exam.measures(behind_cls, tokens, taken, (16, 16)) == pytest.approx(top)
    twins = tokens[:, :1].expand(-1, 256, -1)
    same = exam.measures(Plan(torch.arange(32).expand(40, -1), 256), twins, taken, (16, 16))
    assert same["redundancy"] == pytest.approx(1, abs=1e-5)
    assert same["smallest distance"] == pytest.approx(0, abs=1e-5)
    unit = torch.nn.functional.normalize(tokens[0, :32], dim=-1)
    cosine = unit @ unit.T
    off = ~torch.eye(32, dtype=torch.bool)
    plan, alone = Plan(torch.arange(32)[None], 256), exam.exam(1, seed=3)
    first = exam.measures(plan, tokens[:1], alone, (16, 16))
    assert first["redundancy"] == pytest.approx(cosine[off].mean().item(), abs=1e-5)
    assert first["smallest distance"] == pytest.approx(1 - cosine[off].max().item(), abs=1e-5)
