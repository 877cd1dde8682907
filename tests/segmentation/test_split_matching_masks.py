"""Pseudo masks: seeds against loops, clusters, what is annotated stays out; region embeddings."""

import math

import pytest
import torch

from vtlib.nn import Block
from vtlib.segmentation.split_matching_masks import (
    farthest_seeds,
    kmeans,
    partition,
    pseudo_masks,
    region_means,
    region_tokens,
    window_seeds,
    window_starts,
)
from vtlib.segmentation.zero_shot import annotate, feature_scenes
from vtlib.tokens.cosine import unit


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def features(batch=2, height=6, width=9, dim=5):
    return torch.randn(batch, height, width, dim, generator=seeded())


@pytest.mark.parametrize("length, window", [(12, 6), (12, 4), (12, 3), (9, 5), (7, 7), (5, 1)])
def test_number_of_windows(length, window):
    starts = window_starts(length, window)
    assert len(starts) == math.floor((length - window) / (window / 2)) + 1
    assert starts[0] == 0 and starts[-1] <= length - window
    assert starts == [math.floor(k * window / 2) for k in range(len(starts))]


@pytest.mark.parametrize("window", [2, 3, 5])
def test_each_seed_is_the_mean_of_its_window(window):
    x = features()
    got, i = window_seeds(x, window), 0
    for row in window_starts(6, window):
        for col in window_starts(9, window):
            want = x[:, row : row + window, col : col + window].mean(dim=(1, 2))
            torch.testing.assert_close(got[:, i], want)
            i += 1
    assert got.shape == (2, i, 5)


def test_seeds_are_far_from_each_other():
    """Four directions, each many times: all four are found, where the first four are alike."""
    directions = torch.eye(4).repeat_interleave(7, dim=0) + 0.01 * torch.randn(
        28, 4, generator=seeded()
    )
    got = farthest_seeds(directions[None], 4)[0]
    assert got.argmax(dim=1).sort().values.tolist() == [0, 1, 2, 3]
    assert farthest_seeds(directions[None], 99).shape == (1, 28, 4)


def test_farthest_seeds_equal_a_loop():
    seeds = unit(torch.randn(3, 15, 6, generator=seeded()))
    for x, got in zip(seeds, farthest_seeds(seeds, 5), strict=True):
        taken = [int((x @ x.mean(dim=0)).argmax())]
        while len(taken) < 5:
            nearest = {i: max(float(x[i] @ x[j]) for j in taken) for i in range(15)}
            taken.append(min((i for i in nearest if i not in taken), key=nearest.get))
        torch.testing.assert_close(got, x[taken])


def test_kmeans_equals_a_loop():
    x, seeds = torch.randn(2, 30, 4, generator=seeded()), torch.randn(2, 5, 4, generator=seeded(1))
    labels, centres = kmeans(x, seeds, 3)
    for points, centre, got, last in zip(unit(x), unit(seeds), labels, centres, strict=True):
        for _ in range(3):
            own = (points @ centre.T).argmax(1)
            means = [points[own == k].mean(0) if (own == k).any() else centre[k] for k in range(5)]
            centre = unit(torch.stack(means))
        torch.testing.assert_close(last, centre)
        assert torch.equal(got, (points @ centre.T).argmax(1))


def test_an_empty_cluster_keeps_its_centre():
    x = torch.eye(3)[None, :1].repeat(1, 4, 1)
    seeds = torch.eye(3)[None, [0, 2]]
    labels, centres = kmeans(x, seeds)
    assert labels.tolist() == [[0] * 4]
    torch.testing.assert_close(centres, seeds)


def test_cosine_not_distance():
    """Long and short vectors of one direction are one cluster."""
    x = torch.tensor([[[1.0, 0], [100, 1], [0, 1], [1, 100]]])
    labels, _ = kmeans(x, torch.tensor([[[1.0, 0.1], [0.1, 1]]]))
    assert labels.tolist() == [[0, 0, 1, 1]]


def test_masks_of_one_scale_partition_the_map_before_the_cut():
    x = features(height=12, width=12)
    free = torch.ones(2, 12, 12, dtype=torch.bool)
    for b, masks in enumerate(pseudo_masks(x, free, [4], 5, min_area=0)):
        assert torch.equal(masks.sum(dim=0), torch.ones(12, 12, dtype=torch.int64))
        labels = partition(x, 4, 5)[b]
        assert len(masks) == len(labels.unique()) <= 5


def test_masks_never_overlap_annotated_pixels_nor_are_small():
    x, free = features(height=12, width=12), torch.rand(2, 12, 12, generator=seeded()) < 0.5
    for b, masks in enumerate(pseudo_masks(x, free, min_area=0.03)):
        assert len(masks) and not (masks & ~free[b]).any()
        assert masks.sum(dim=(1, 2)).min() >= 0.03 * 144
    fewer = pseudo_masks(x, free, min_area=0.2)
    assert sum(map(len, fewer)) < sum(map(len, pseudo_masks(x, free, min_area=0)))
    assert [m.shape for m in pseudo_masks(x, free & False)] == [(0, 12, 12)] * 2


def test_several_window_sizes_give_more_masks():
    x, free = features(height=12, width=12), torch.ones(2, 12, 12, dtype=torch.bool)
    one = [pseudo_masks(x, free, [s], 5, 0)[0] for s in (3, 4, 6)]
    assert torch.equal(pseudo_masks(x, free, [3, 4, 6], 5, 0)[0], torch.cat(one))
    assert torch.equal(pseudo_masks(x, free, None, 5, 0)[0], torch.cat(one))      # the default S


def test_clear_regions_are_found():
    text = torch.randn(5, 16, generator=seeded(3))
    scenes = feature_scenes(8, seeded(), text, noise=0.3)
    free = annotate(scenes.labels, [0, 1, 2], 5) == 255
    found = pseudo_masks(scenes.features, free)
    for labels, masks in zip(scenes.labels, found, strict=True):
        for unseen in (3, 4):
            true = labels == unseen
            if true.sum() > 5:
                iou = (masks & true).sum((1, 2)) / (masks | true).sum((1, 2))
                assert iou.max() > 0.9


# -------------------------------------------------------------------------------- region embeddings
def test_region_means_equal_a_loop():
    x, free = features(height=12, width=12), torch.ones(2, 12, 12, dtype=torch.bool)
    masks = pseudo_masks(x, free)
    for own, each, got in zip(x, masks, region_means(x, masks), strict=True):
        want = torch.stack([unit(own[m].mean(dim=0)) for m in each])
        torch.testing.assert_close(got, want)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    blocks = [Block(16, 2), Block(16, 2)]
    norm, project = torch.nn.LayerNorm(16), torch.nn.Linear(16, 6)
    return blocks, lambda x: project(norm(x))


def test_a_region_of_everything_is_the_class_token(encoder):
    blocks, head = encoder
    tokens = torch.randn(2, 1 + 12, 16, generator=seeded())
    masks = [torch.ones(2, 3, 4, dtype=torch.bool), torch.ones(1, 3, 4, dtype=torch.bool)]
    x = tokens
    for block in blocks:
        x = block(x)
    want = unit(head(x[:, 0]))
    for b, got in enumerate(region_tokens(tokens, masks, blocks, head)):
        torch.testing.assert_close(got, want[b].expand(len(masks[b]), -1))


def test_a_region_sees_nothing_outside(encoder):
    """In the last block; regions don't see each other, however many there are."""
    blocks, head = encoder[0][:1], encoder[1]
    tokens = torch.randn(1, 1 + 12, 16, generator=seeded())
    masks = torch.rand(3, 3, 4, generator=seeded()) < 0.5
    got = region_tokens(tokens, [masks], blocks, head)[0]
    moved = tokens.clone()
    moved[:, 1:][:, ~masks[1].flatten()] *= -2
    again = region_tokens(moved, [masks[1:2]], blocks, head)[0]
    torch.testing.assert_close(again[0], got[1])
    inside = tokens.clone()
    inside[:, 1:][:, masks[1].flatten()] *= -2
    assert not torch.allclose(region_tokens(inside, [masks], blocks, head)[0][1], got[1])


def test_no_region_at_all(encoder):
    none = [torch.zeros(0, 3, 4, dtype=torch.bool)]
    assert region_tokens(torch.randn(1, 13, 16), none, *encoder)[0].shape == (0, 6)
    assert region_means(torch.randn(1, 3, 4, 5), none)[0].shape == (0, 5)


FREE = torch.ones(2, 6, 9, dtype=torch.bool)


@pytest.mark.parametrize("call, said", [
    (lambda: window_seeds(features(), 7), "window"),
    (lambda: window_seeds(features()[0], 2), "features"),
    (lambda: pseudo_masks(features(), FREE.float()), "free"),
    (lambda: pseudo_masks(features(), FREE[:1]), "free"),
    (lambda: pseudo_masks(features(), FREE, []), "windows"),
    (lambda: pseudo_masks(features(), FREE, [0]), r"windows\[0\]"),
    (lambda: pseudo_masks(features(), FREE, clusters=0), "clusters"),
    (lambda: pseudo_masks(features(), FREE, min_area=2), "min_area"),
    (lambda: pseudo_masks(features() * torch.nan, FREE), "features"),
    (lambda: kmeans(features()[0], torch.zeros(6, 2, 3)), "seeds"),
    (lambda: kmeans(features()[0], features()[0], -1), "iterations"),
    (lambda: farthest_seeds(features()[0], 0), "count"),
    (lambda: region_means(features(), [FREE]), "masks"),
    (lambda: region_means(features(), [FREE, FREE.float()]), r"masks\[1\]"),
    (lambda: region_means(features(), [FREE, ~FREE]), r"masks\[1\] has an empty mask"),
    (lambda: region_tokens(torch.randn(2, 13, 16), [FREE, FREE], [], lambda x: x), "12 places"),
])
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
