"""TokBench: words and faces by relative size. Numbers of the release: tests/golden."""

import functools
import math
import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.settings import SETTINGS
from vtlib.tokenizers import tokbench
from vtlib.tokenizers.tokbench import Faces, Words

NAN = float("nan")


# --------------------------------------------------------------------------------- words, compared
@functools.cache
def by_trying(a, b):
    """The edit distance by its definition."""
    if not a or not b:
        return len(a) + len(b)
    replaced = by_trying(a[1:], b[1:]) + (a[0] != b[0])
    return min(by_trying(a[1:], b) + 1, by_trying(a, b[1:]) + 1, replaced)


def some_words(count, seed=0):
    draw = random.Random(seed)
    return ["".join(draw.choices("abA", k=draw.randrange(6))) for _ in range(count)]


def test_edit_distance_is_the_fewest_edits():
    for a, b in zip(some_words(200), some_words(200, 1), strict=True):
        assert tokbench.edit_distance(a, b) == by_trying(a, b)
    assert tokbench.edit_distance("kitten", "sitting") == 3
    with pytest.raises(ValueError, match="both need to be strings"):
        tokbench.edit_distance("a", 3)


def test_similarity_of_two_words():
    for a, b in zip(some_words(200), some_words(200, 1), strict=True):
        near = tokbench.edit_similarity(a, b)
        assert near == tokbench.edit_similarity(b, a) and 0 <= near <= 1
        assert near >= tokbench.matches(a, b).raw
        assert all(s >= m for s, m in zip(tokbench.similarities(a, b),
                                          [tokbench.matches(a, b)[k] for k in (0, 1, 3)],
                                          strict=True))  # fmt: skip
    assert tokbench.edit_similarity("STOP", "") == 0
    assert tokbench.edit_similarity("STOP", "EXIB") == 0
    assert tokbench.edit_similarity("", "") == 1


def test_case_and_accents_count_where_they_should():
    assert tokbench.matches("Café", "Cafe") == (False, False, True, True)
    assert tokbench.matches("Café", "CAFE") == (False, False, False, True)
    assert tokbench.matches("Exit", "EXIT") == (False, True, False, True)
    assert tokbench.similarities("Exit", "EXIT") == (0.25, 1, 1)
    assert [tokbench.fold(w) for w in ("Straße", "Øre", "naïve", "5 €")] == [
        "Strasse", "Ore", "naive", "5 EUR",
    ]  # fmt: skip
    assert tokbench.similarities("Straße", "Strasse").caseless_folded == 1


# ------------------------------------------------------------------------------------ relative size
def page(words=("EXIT", "OPEN"), boxes=((0, 0, 16, 4), (0, 4, 8, 24)), size=(32, 64)):
    return Words(torch.zeros(len(words), 3, *size), list(words), torch.tensor(boxes))


def test_a_words_size_is_that_of_a_letter():
    sizes = tokbench.word_sizes(page())
    assert sizes.tolist() == [16 / 4 / 64, 20 / 4 / 64]              # a standing word: its height
    assert tokbench.word_sizes(page(size=(128, 64))).tolist() == [16 / 4 / 128, 20 / 4 / 128]
    assert tokbench.word_sizes(page(("EXITEXIT", "A"))).tolist() == [16 / 8 / 64, 20 / 64]


def test_a_faces_size_is_that_of_its_box():
    points = torch.tensor(tokbench.ARCFACE)[None]
    faces = Faces(torch.zeros(1, 3, 32, 64), torch.tensor([[1, 2, 9.5, 18]]), points)
    assert tokbench.face_sizes(faces).tolist() == [0.25]


def test_bins_are_half_open():
    sizes = torch.tensor([0.0199, 0.02, 0.0299, 0.03, 0.04, 0.999, 1.0], dtype=torch.float64)
    score = tokbench.binned(torch.ones(7), sizes, tokbench.TEXT_BINS["256"])
    assert score.counts.tolist() == [2, 1, 2]
    assert tokbench.binned(torch.ones(1), torch.zeros(1), tokbench.FACE_BINS["256"]).counts[0] == 1


def test_each_bin_counts_the_same():
    sizes = torch.tensor([0.02] * 8 + [0.03] + [0.5] + [0.001])
    values = torch.tensor([0.0] * 8 + [1.0] + [1.0] + [1.0])
    score = tokbench.binned(values, sizes, (0.02, 0.03, 0.04, 1))
    assert score.bins.tolist() == [0, 1, 1] and score.mean == pytest.approx(2 / 3)
    assert score.pooled == pytest.approx(3 / 11)    # with the one below the first edge


def test_an_empty_bin_is_nan_and_left_out():
    score = tokbench.binned(torch.ones(1), torch.tensor([0.5]), (0.02, 0.03, 0.04, 1))
    assert score.bins.isnan().tolist() == [True, True, False]
    assert score.mean == 1 and score.counts.tolist() == [0, 0, 1]
    assert tokbench.percent(score) == "- | - | 100.00 || 100.00 (pooled 100.00)"
    nothing = tokbench.binned(torch.zeros(0), torch.zeros(0), (0, 1))
    assert math.isnan(nothing.mean) and math.isnan(nothing.pooled)


def test_settings_and_edges():
    for bins in (tokbench.TEXT_BINS, tokbench.FACE_BINS):
        assert set(bins) == {"256", "512", "1024"}
        assert all(tokbench.check_edges(edges) for edges in bins.values())
    for edges in ((0.1,), (0.2, 0.1), (0.1, 0.1), "256", (0, NAN), 3):
        with pytest.raises(ValueError, match="edges"):
            tokbench.binned(torch.ones(1), torch.ones(1), edges)
    with pytest.raises(ValueError, match="setting='128': needs one of 256, 512, 1024, or edges"):
        tokbench.score_text(lambda x: x, page(), reading("EXIT", "OPEN"), "128")
    with pytest.raises(ValueError, match="values and sizes of one length"):
        tokbench.binned(torch.ones(2), torch.ones(3), (0, 1))


# ------------------------------------------------------------------------------------ what is given
def reading(*said):
    return lambda crops: list(said)


def test_what_is_cut_out():
    images = torch.arange(2 * 3 * 8 * 10.0).view(2, 3, 8, 10)
    boxes = torch.tensor([[1.2, 2, 4.5, 3.1], [7, 6, 12, 9]])
    first, second = tokbench.crops(images, boxes, torch.tensor([1, 0]))
    assert torch.equal(first, images[1, :, 2:4, 1:5])
    assert torch.equal(second, images[0, :, 6:8, 7:10])                  # what lies in the picture
    with pytest.raises(ValueError, match=r"outside of 8 x 10 pixels"):
        tokbench.crops(images, torch.tensor([[20, 0, 30, 4]]), torch.tensor([0]))


@pytest.mark.parametrize("wrong, told", [
    (dict(words=["A", ""]), r"words\[1\] is empty"),
    (dict(words=["A", 3]), "words has 3: needs strings alone"),
    (dict(words="AB"), "a list of strings"),
    (dict(boxes=torch.zeros(2, 4)), r"boxes\[0\]=.*needs x0 < x1"),
    (dict(boxes=torch.tensor([[0, 0, 1, 1]])), r"boxes has shape \(1, 4\)"),
    (dict(boxes=[[0, 0, 1, 1]] * 2), "needs a tensor"),
    (dict(images=torch.zeros(3, 3, 8, 8)), "3 pictures and 2 boxes"),
    (dict(images=torch.zeros(3, 8, 8)), "images has shape"),
    (dict(picture=torch.tensor([0, 2])), "picture"),
    (dict(picture=torch.tensor([0.0, 1.0])), "picture"),
])  # fmt: skip
def test_words_that_do_not_fit(wrong, told):
    given = dict(images=torch.zeros(2, 3, 8, 8), words=["A", "B"],
                 boxes=torch.tensor([[0, 0, 4, 4], [1, 1, 5, 5]]))  # fmt: skip
    with pytest.raises(ValueError, match=told):
        Words(**given | wrong)


@pytest.mark.parametrize("points, told", [
    (torch.zeros(1, 5, 2), r"points\[0\] are all one place"),
    (torch.zeros(1, 4, 2), r"needs \(N, 5, 2\)"),
    (torch.zeros(1, 5, 2, dtype=torch.long), "floating"),
    (torch.rand(2, 5, 2), "2 faces have points but 1 a box"),
    (torch.full((1, 5, 2), NAN), "one place"),
])
def test_faces_that_do_not_fit(points, told):
    with pytest.raises(ValueError, match=told):
        Faces(torch.zeros(1, 3, 8, 8), torch.tensor([[0, 0, 4, 4]]), points)


def test_refine_keeps_what_is_read_on_the_originals():
    kept = tokbench.refine(page(), reading("EX1T", "OPEN"))
    assert kept.words == ["OPEN"] and kept.boxes.tolist() == [[0, 4, 8, 24]]
    assert kept.picture.tolist() == [1] and len(kept) == 1 and len(kept.images) == 2
    with pytest.raises(ValueError, match="of 2 words the reader reads none"):
        tokbench.refine(page(), reading("exit", "open"))
    with pytest.raises(ValueError, match="what the reader gave has 1 strings: needs 2"):
        tokbench.refine(page(), reading("EXIT"))


def test_the_score_of_a_codec():
    edges = (0, 0.07, 1)                                   # sizes 1 / 16 and 5 / 64: a bin each
    score = tokbench.score_text(lambda x: x, page(), reading("EXIT", "0PEN"), edges)
    assert score.accuracy.bins.tolist() == [1, 0] and score.similarity.bins.tolist() == [1, 0.75]
    assert score.accuracy.mean == 0.5 and score.similarity.pooled == 0.875
    assert score.read == ["EXIT", "0PEN"]


def test_boxes_stay_those_of_the_original():
    """The codec moves everything by 4 pixels: what is cut out of its picture isn't the word."""
    words = page(("A", "B"), ((0, 0, 4, 4), (0, 0, 4, 4)), (8, 8))
    words.images[:, :, :4, :4] = 1
    seen = []

    def bright(crops):
        seen.extend(float(crop.mean()) for crop in crops)
        return ["A", "B"]

    tokbench.score_text(lambda x: x.roll(4, 3), words, bright, (0, 1))
    assert seen == [0, 0]


def test_a_codec_sees_some_pictures_at_a_time_and_no_gradients():
    counts = []

    def codec(images):
        counts.append(len(images))
        return images * torch.ones(1, requires_grad=True) + 2

    made = tokbench.reconstruct(codec, torch.zeros(5, 3, 4, 4), batch_size=2)
    assert counts == [2, 2, 1] and not made.requires_grad and made.max() == 1
    wrapped = tokbench.reconstruct(lambda x: SimpleNamespace(images=x + 1), torch.zeros(2, 3, 4, 4))
    assert wrapped.min() == 1                              # as a Tokenizer gives them
    with pytest.raises(ValueError, match="codec made .* needs the same"):
        tokbench.reconstruct(lambda x: x[..., :2], torch.zeros(5, 3, 4, 4))
    with pytest.raises(ValueError, match="codec is .* but needs to be a function"):
        tokbench.reconstruct(None, torch.zeros(5, 3, 4, 4))


# --------------------------------------------------------------------------------- faces, compared
def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moved(points, angle=0.4, scale=1.7, shift=(3.0, -5.0)):
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * points @ turn.T.to(points) + points.new_tensor(shift)


def test_the_transform_undoes_a_turn_and_a_scale():
    target = tokbench.template(96)
    a, b = tokbench.similarity_transform(moved(target)[None], target)
    p = torch.view_as_complex(moved(target).contiguous())
    found = torch.view_as_real(a[:, None] * p + b[:, None])[0]
    torch.testing.assert_close(found, target)
    assert abs(a).item() == pytest.approx(1 / 1.7)


def test_the_transform_is_the_least_squares_one():
    """Against lstsq over [x, -y, 1, 0], [y, x, 0, 1]: a's parts and the shift."""
    target, points = tokbench.template(), torch.rand(5, 2, generator=generator()).double() * 50
    x, y, one, zero = points[:, 0], points[:, 1], torch.ones(5).double(), torch.zeros(5).double()
    rows = torch.cat([torch.stack([x, -y, one, zero], 1), torch.stack([y, x, zero, one], 1)])
    right = torch.cat([target[:, 0], target[:, 1]])[:, None]
    want = torch.linalg.lstsq(rows, right).solution[:, 0]
    a, b = tokbench.similarity_transform(points[None], target)
    found = torch.stack([a.real[0], a.imag[0], b.real[0], b.imag[0]])
    torch.testing.assert_close(found, want)


def test_a_mirrored_face_is_not_mirrored_back():
    target = tokbench.template()
    mirrored = target * target.new_tensor([-1, 1])
    a, _ = tokbench.similarity_transform(mirrored[None], target)
    assert abs(a).item() < 0.9                       # it can't fit: scaled down to the middle


def smooth(size=64):
    y, x = torch.meshgrid(*[torch.linspace(0, 3, size)] * 2, indexing="ij")
    return torch.stack([x.sin(), (x + y).cos(), (x * y).sin()])[None] / 2 + 0.5


def test_key_points_come_to_lie_where_they_belong():
    target = tokbench.template(64).float()
    points = (target * 0.5 + 10)[None]               # a face of half the size at (10, 10)
    same = tokbench.align(smooth(), tokbench.template(64).float()[None], 64)
    torch.testing.assert_close(same, smooth(), atol=1e-4, rtol=0)
    face = tokbench.align(smooth(), points, 64)
    direct = F.interpolate(smooth()[..., 10:42, 10:42], size=(64, 64), mode="bilinear",
                           align_corners=False)  # fmt: skip
    torch.testing.assert_close(face[..., 2:-2, 2:-2], direct[..., 2:-2, 2:-2], atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="points has 1 faces but there are 2 images"):
        tokbench.align(smooth().expand(2, -1, -1, -1), points, 64)


def test_outside_is_black():
    far = tokbench.template(32).float()[None] + 1000
    assert tokbench.align(torch.ones(1, 3, 32, 32), far, 32).max() == 0


def portraits(count=4):
    images = torch.rand(count, 3, 32, 32, generator=generator())
    points = tokbench.template(32).float()[None].repeat(count, 1, 1)
    boxes = torch.tensor([[2.0, 2, 2 + 7 * k, 20] for k in range(1, count + 1)])
    return Faces(images, boxes, points)


def flat(faces):
    return faces.flatten(1) - 0.5


def test_f_sim_is_a_cosine():
    faces = portraits()
    other = torch.rand(4, 3, 32, 32, generator=generator(1))
    near = tokbench.face_similarity(faces.images, other, faces, flat, 32)
    assert near.abs().max() <= 1
    scaled = tokbench.face_similarity(faces.images, other, faces, lambda x: 7 * flat(x), 32)
    torch.testing.assert_close(near, scaled)
    back = tokbench.face_similarity(other, faces.images, faces, flat, 32)
    torch.testing.assert_close(near, back)
    negative = tokbench.face_similarity(faces.images, 1 - faces.images, faces, flat, 32)
    torch.testing.assert_close(negative, -torch.ones(4).double())
    same = tokbench.score_faces(lambda x: x, faces, flat, (0, 0.5, 1), 32)
    assert same.similarity.mean == 1 and same.cosines.tolist() == [1] * 4


def test_the_alignment_is_that_of_the_original():
    """A face that moved by 5 pixels is another one, though its own key points would say the same.
    """
    faces = portraits()
    moved_away = faces.images.roll(5, 3)
    fixed = tokbench.face_similarity(faces.images, moved_away, faces, flat, 32)
    assert fixed.abs().max() < 0.2


@pytest.mark.parametrize("embed", [None, lambda x: x, lambda x: x.flatten(1)[:1], lambda x: [1]])
def test_an_embedding_gives_vectors(embed):
    faces = portraits()
    with pytest.raises(ValueError, match="embed"):
        tokbench.face_similarity(faces.images, faces.images, faces, embed, 32)


def test_double_precision_and_gradients():
    faces = portraits()
    images = faces.images.double().requires_grad_()
    near = tokbench.face_similarity(faces.images.double(), images * 0.9, faces, flat, 32)
    near.sum().backward()
    assert images.grad.isfinite().all() and images.grad.abs().sum() > 0


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_torch_change_nothing(setting):
    faces, words = portraits(), page()
    want = tokbench.score_faces(lambda x: x.roll(1, 3), faces, flat, (0, 1), 32)
    read = reading("EXIT", "0PEN")
    said = tokbench.score_text(lambda x: x, words, read, (0, 0.07, 1))
    with setting():
        found = tokbench.score_faces(lambda x: x.roll(1, 3), faces, flat, (0, 1), 32)
        again = tokbench.score_text(lambda x: x, words, read, (0, 0.07, 1))
    assert torch.equal(found.cosines, want.cosines)
    assert found.similarity.bins.tolist() == want.similarity.bins.tolist()
    assert again.accuracy.bins.tolist() == said.accuracy.bins.tolist() and again.read == said.read


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_size_on_an_edge_belongs_to_the_bin_above_in_any_dtype(dtype):
    edges = (0.02, 0.03, 0.04, 1.0)
    sizes = torch.tensor(edges, dtype=dtype)
    found = tokbench.binned(torch.tensor([1.0, 2.0, 4.0, 8.0]), sizes, edges)
    assert found.counts.tolist() == [1, 1, 1] and found.bins.tolist() == [1, 2, 4]
