"""TokBench on EmojiWorld: the claims of the paper at small scale, with words and faces."""

import functools

import pytest
import torch
import torch.nn.functional as F

from vtlib.data import EmojiWorld
from vtlib.tokenizers import measures
from vtlib.tokenizers import tokbench_world as world
from vtlib.tokenizers.reader import TemplateReader
from vtlib.tokenizers.tokbench import (
    align,
    face_sizes,
    reconstruct,
    refine,
    score_faces,
    score_text,
    word_sizes,
)

WORD_EDGES = (0.02, 0.05, 0.07, 0.09, 1)
FACE_EDGES = (0.1, 0.25, 0.5, 1)


def smaller(factor):
    """Pictures `factor` times smaller, and enlarged again."""

    def codec(images):
        small = F.interpolate(images, scale_factor=1 / factor, mode="area")
        return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)

    return codec


def noisy(images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return images + 0.35 * noise


def same(images):
    return images


# -------------------------------------------------------------------------------------------- words
@functools.cache
def all_words():
    return world.word_pictures(300, seed=1)


@functools.cache
def words():
    return refine(all_words(), TemplateReader())


@functools.cache
def text_score(codec):
    return score_text(codec, words(), TemplateReader(), WORD_EDGES)


X2, X3, X4 = smaller(2), smaller(3), smaller(4)


def test_word_pictures_cover_the_bins():
    sizes = word_sizes(all_words())
    assert (text_score(same).accuracy.counts >= 20).all()
    assert sizes.min() > WORD_EDGES[0] and len(all_words()) == 300


def test_after_refinement_the_original_scores_one():
    score = text_score(same)
    assert score.accuracy.mean == score.accuracy.pooled == score.similarity.mean == 1


def test_why_the_ground_truth_is_refined():
    """The smallest words are misread on the originals already: that is no tokenizer's fault."""
    score = score_text(same, all_words(), TemplateReader(), WORD_EDGES).accuracy
    assert score.bins[0] < 0.75 and (score.bins[1:] > 0.9).all()
    assert len(words()) < len(all_words())


@pytest.mark.parametrize("codec", [X2, X3, X4, noisy])
def test_small_words_suffer_first(codec):
    score = text_score(codec)
    for values in (score.accuracy.bins, score.similarity.bins):
        assert (values.diff() >= -0.02).all()
    assert score.similarity.bins[-1] - score.similarity.bins[0] > 0.3
    assert (score.similarity.bins >= score.accuracy.bins).all()


def test_accuracy_falls_steeply_where_similarity_does_not():
    """Shrunk by 2, words of 5 to 7 % of a picture: one in ten read whole, half of the letters."""
    score = text_score(X2)
    assert score.accuracy.bins[1] < 0.3 < score.similarity.bins[1]


def test_the_ranking_flips():
    """Noise costs far more decibels than shrinking, and far fewer words."""
    originals = words().images
    decibels = [measures.psnr(reconstruct(c, originals), originals).mean() for c in (X2, noisy)]
    assert decibels[0] > decibels[1] + 10
    assert text_score(noisy).accuracy.mean > text_score(X2).accuracy.mean + 0.1
    assert text_score(noisy).accuracy.bins[1] > text_score(X2).accuracy.bins[1] + 0.4


def test_stronger_is_worse():
    means = [text_score(codec).similarity.mean for codec in (same, X2, X3, X4)]
    assert means == sorted(means, reverse=True) and means[0] - means[-1] > 0.5


# -------------------------------------------------------------------------------------------- faces
@functools.cache
def faces():
    return world.face_pictures(40, seed=0)


@functools.cache
def embedding():
    return world.face_embedding()


def test_there_are_bare_faces():
    names = world.face_names()
    assert len(names) == len(set(names)) == 92 and "grinning face" in names
    assert "face with open eyes and hand over mouth" not in names


def test_faces_are_seen_whole_and_know_their_names():
    found, identity = faces()
    sizes = face_sizes(found)
    assert len(found) == len(identity) > 50 and identity.max() < 92
    assert sizes.min() < 0.2 and sizes.max() > 0.6
    x, y = found.points.unbind(-1)
    x0, y0, x1, y1 = (side[:, None] for side in found.boxes.unbind(1))
    assert ((x > x0) & (x < x1) & (y > y0) & (y < y1)).all()


def test_key_points_turn_with_the_drawing():
    """Upright and turned by 30 degrees, the same face aligned is the same picture."""
    names = [world.face_names()[0]]
    emojis = EmojiWorld(128, "test", pictograms=names)
    aligned = []
    for angle in (0.0, 30.0, -75.0):
        drawn = [torch.tensor([[True]]), torch.tensor([[0]]), torch.tensor([[80.0]]),
                 torch.tensor([[angle]]), torch.tensor([[[60.0, 66.0]]])]  # fmt: skip
        ground = (torch.full((1, 3, 128, 128), 128.0), torch.tensor([-1]))
        scene = emojis._render(*drawn, ground, torch.Generator(), None)
        at = (scene.centre[:, 0], scene.scale[:, 0] * 128, scene.angle[:, 0])
        aligned.append(align(scene.images, world.key_points(*at), 64)[0, :, 12:52, 12:52])
    for turned in aligned[1:]:
        assert (turned - aligned[0]).abs().mean() < 0.02
    assert (aligned[0].flip(-1) - aligned[0]).abs().mean() < 0.05          # a smiley is symmetric
    assert (aligned[0].flip(-2) - aligned[0]).abs().mean() > 0.05


@torch.no_grad()
def test_the_embedding_knows_faces_again():
    """Of two sizes and turns, without a common background."""
    found, identity = world.face_pictures(60, seed=3, scale=(0.3, 0.9), objects=(1, 2))
    vectors = embedding()(align(found.images[found.picture], found.points, world.SIDE))
    alike = F.normalize(vectors) @ F.normalize(vectors).T
    alike.fill_diagonal_(-2)
    namesake = identity[:, None] == identity
    namesake.fill_diagonal_(False)
    other = alike[~namesake & (alike > -2)]
    assert alike[namesake].mean() > 0.7 and other.mean().abs() < 0.1
    nearest = identity[alike.argmax(1)] == identity
    assert nearest[namesake.any(1)].float().mean() > 0.8


def test_f_sim_by_size():
    found, _ = faces()
    given = (found, embedding(), FACE_EDGES, world.SIDE)
    itself, worse = (score_faces(codec, *given).similarity for codec in (same, X4))
    assert itself.mean == pytest.approx(1) and itself.bins.min() > 0.9999
    assert (worse.bins.diff() > 0.05).all() and worse.bins[0] < 0.75 < 0.85 < worse.bins[-1]


def test_the_embedding_needs_aligned_faces():
    with pytest.raises(ValueError, match="faces are 64 x 64 pixels: needs 96 x 96"):
        embedding()(torch.zeros(1, 3, 64, 64))
    assert not any(p.requires_grad for p in embedding().parameters())
