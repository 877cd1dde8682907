"""Histograms, circles, patches and the widget of notebook 02c."""

import pytest
import torch

from vtlib.quantize.vq import VectorQuantizer
from vtlib.teach import tokenizers
from vtlib.tokenizers import histogram_loss, teacher_histogram


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------- patches
def test_a_patch_has_its_commonest_label_and_its_share_of_objects():
    labels = torch.zeros(1, 4, 8, dtype=torch.long)
    labels[0, :3, :4] = 5
    labels[0, 0, 4:] = 7
    classes, shares = tokenizers.patch_classes(labels, 4)
    assert classes.tolist() == [[5, 0]] and shares.tolist() == [[0.75, 0.25]]


def test_nearest_patches_are_of_other_pictures():
    x = torch.nn.functional.normalize(seeded(3, 4, 5), dim=-1)
    x[0, 1] = x[0, 0]                                           # the same picture: not asked
    x[2, 3] = x[0, 0]
    near = tokenizers.nearest_patches(x, torch.tensor([0, 11]), 2)
    assert near.shape == (2, 2) and near[0, 0] == 11 and near[1, 0] in (0, 1)


def test_a_patch_is_cut_out_with_what_is_around():
    images = torch.arange(2 * 16 * 24.0).view(2, 1, 16, 24).expand(2, 3, 16, 24)
    cut = tokenizers.patch_with_surroundings(images, 6 + 4, side=8, around=0)
    assert torch.equal(cut, images[1, :, 8:, 8:16])             # second row, second column
    wide = tokenizers.patch_with_surroundings(images, 6 + 4)
    assert wide.shape == (3, 24, 24) and torch.equal(wide[:, :16], images[1])
    assert torch.equal(wide[:, 16:], images[1, :, 15:].expand(3, 8, 24))


def test_a_frame_is_around_the_patch_and_leaves_the_pictures_alone():
    images = seeded(1, 3, 16, 16).sigmoid()
    before = images.clone()
    plain, framed = (
        tokenizers.patch_with_surroundings(images, 3, framed=framed) for framed in (False, True)
    )
    assert torch.equal(images, before) and torch.equal(plain[:, 8:16, 8:16], framed[:, 8:16, 8:16])
    assert framed[:, 7, 7:17].mT.eq(torch.tensor([1.0, 0, 1])).all()
    assert (plain != framed).any(dim=0).sum() == 4 * 9


# ------------------------------------------------------------------------------------- codes
def test_the_nearest_code_is_another_one():
    codes = torch.tensor([[1.0, 0], [2, 0], [0, 1]])
    torch.testing.assert_close(tokenizers.nearest_cosine(codes), torch.tensor([1.0, 1, 0]))


def test_codes_in_use_are_those_that_latents_fall_to():
    book = VectorQuantizer(2, 4, lookup="cosine").eval()
    book.codebook.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]))
    teacher = teacher_histogram(seeded(20, 3))
    latents = torch.tensor([[2.0, 0.1], [0.1, 3], [1, 0]])
    share, every, used = tokenizers.in_use(book, latents, teacher)
    assert share == 0.5
    assert every == pytest.approx(histogram_loss(book.codebook, teacher).item())
    assert used == pytest.approx(histogram_loss(book.codebook[:2], teacher).item())


def test_what_is_not_stored_is_empty():
    assert tokenizers.stored("no such tokenizer") == {}
    assert 0 in tokenizers.stored("tokenizer_glotok_dual")


# ------------------------------------------------------------------------------------- figures
def test_figures_have_a_panel_for_each():
    assert len(tokenizers.bumps(torch.tensor([0.0, 1]), 5, (2, 50)).axes) == 2
    fig = tokenizers.circles({"one": seeded(3, 2), "other": seeded(4, 2)}, "Two sets")
    assert [len(ax.texts) for ax in fig.axes] == [3, 4]
    codes = torch.tensor([[1.0, 0], [0, 1], [2, 0.01]])         # two of them in one place
    near = tokenizers.circles({"one": codes, "same": codes}, "Two sets")
    assert [text.get_text() for text in near.axes[0].texts] == ["t1, t3", "t2"]


def test_the_panel_shows_training_and_what_is_lost():
    teacher, codes = seeded(12, 6), seeded(10, 3)
    later, lost = codes + 0.5, torch.full_like(codes, torch.nan)
    recorded = {}
    for a in (20, 200):
        recorded["random", a, 1e-8] = [codes, later]
        recorded["random", a, 0.0] = [codes, lost]
    panel = tokenizers.histogram_panel(recorded, teacher, every=12)
    frames = {panel.frame}
    for values in (dict(step=1), dict(a=20), dict(eps=0.0)):
        panel.set(**values)
        frames.add(panel.frame)
    assert len(frames) == 4 and panel.message.value == ""
