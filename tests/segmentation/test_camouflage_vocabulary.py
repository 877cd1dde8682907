"""Pooling by masks, embeddings in the texts' space, classes by likeness with synonyms."""

import pytest
import torch

from vtlib.segmentation import MaskEmbedding, OpenVocabulary, pool_masks


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pooling_by_hand():
    features, logits = random(2, 3, 4, 5), random(2, 6, 4, 5, seed=1)
    logits[0, 0] = -1.0                                                        # an empty mask
    pooled = pool_masks(features, logits)
    assert pooled.shape == (2, 6, 3) and not pooled[0, 0].any()
    inside = logits[1, 2] > 0
    torch.testing.assert_close(pooled[1, 2], features[1][:, inside].mean(1))
    constant = pool_masks(torch.full((2, 3, 4, 5), 7.0), logits)
    torch.testing.assert_close(constant[0, 1:], torch.full((5, 3), 7.0))


def test_masks_get_no_gradient_by_pooling():
    features, logits = random(1, 3, 4, 4).requires_grad_(), random(1, 2, 4, 4).requires_grad_()
    pool_masks(features, logits).sum().backward()
    assert features.grad.abs().sum() > 0 and logits.grad is None


def test_embedding_reads_the_mask_and_the_query():
    torch.manual_seed(0)
    net = MaskEmbedding(8, 6)
    queries, features, logits = random(1, 2, 8), random(1, 8, 4, 4, seed=1), random(1, 2, 4, 4)
    z = net(queries, features, logits)
    assert z.shape == (1, 2, 6)
    assert not torch.allclose(net(queries, features, -logits), z)
    assert not torch.allclose(net(queries + random(1, 2, 8, seed=3), features, logits), z)


def test_classes_have_their_best_synonym():
    torch.manual_seed(0)
    net, z, text = OpenVocabulary(6), random(2, 3, 6), random(5, 6, seed=1)
    each, joined = net(z, text), net(z, text, [2, 1, 2])
    assert joined.shape == (2, 3, 4)
    want = torch.stack([each[..., :2].amax(-1), each[..., 2], each[..., 3:5].amax(-1)], -1)
    torch.testing.assert_close(joined[..., :3], want)
    torch.testing.assert_close(joined[..., 3], each[..., 5])                   # "no object"
    cosine = torch.nn.functional.cosine_similarity(z[0, 0], text[4], dim=0)
    torch.testing.assert_close(each[0, 0, 4], cosine / 0.07)
    torch.testing.assert_close(net(5 * z, text), each)                         # length is nothing
    assert not net(z, torch.zeros(5, 6))[..., :5].any()


def test_the_scale_ends_at_100():
    net = OpenVocabulary(6)
    assert net.scale().item() == pytest.approx(1 / 0.07, rel=1e-5)
    torch.nn.init.constant_(net.logit_scale, 9.0)
    assert net.scale().item() == 100


@pytest.mark.parametrize("call, named", [
    (lambda: pool_masks(random(1, 3, 4, 4), random(1, 2, 4, 5)), "features"),
    (lambda: pool_masks(random(3, 4, 4), random(1, 2, 4, 4)), "features"),
    (lambda: OpenVocabulary(6)(random(1, 2, 6), random(3, 5)), "text"),
    (lambda: OpenVocabulary(6)(random(1, 2, 6), random(3, 6), [1, 1]), "synonyms"),
    (lambda: OpenVocabulary(6)(random(1, 2, 6), random(3, 6), [3, 0]), "synonyms"),
    (lambda: OpenVocabulary(0), "text_dim"),
])
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()
