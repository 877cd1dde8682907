"""What stays for each question, and the pictures of the small dual encoder."""

import pytest
import torch

from tests.vlm.tiny import make_tinyvlm
from vtlib.data.questions import things
from vtlib.pruning import fastervlm, pretrained, recoverable
from vtlib.pruning.bench import NAMELESS, encode, reduce
from vtlib.pruning.crossget_encoder import CrossGETCLIP
from vtlib.teach import pruning
from vtlib.tokens import Plan
from vtlib.vlm import exam


# --------------------------------------------------------------------------------------- questions
@pytest.fixture(scope="module")
def grades():
    """Of an untrained model on three pictures of 8 x 8 patches."""
    model = make_tinyvlm()
    test = exam.exam(3, size=64)
    with torch.no_grad():
        vision = encode(model, test.images, ["fastervlm", "recoverable"])
        return pruning.Grades(model, vision, test).add(["fastervlm", "recoverable"], (6,))


def test_patches_that_are_asked_about(grades):
    found, test = grades.exam.asked_patches, grades.exam
    goals, pictures = test.queried()
    about = found.any(dim=-1)
    assert torch.equal(found[about], goals)
    assert torch.equal(about.nonzero()[:, 0], pictures)
    for b, row in enumerate(test.asked):
        for q, question in enumerate(row):
            assert about[b, q] == bool(question.objects)


def test_a_method_that_does_not_ask_keeps_the_same_for_all_questions(grades):
    kept = pruning.kept_for_questions(grades, "FasterVLM", 6)
    once = fastervlm.prune(grades.vision, 6).kept()[:, None].expand_as(kept)
    assert torch.equal(kept, once & grades.asked[..., None])


def test_a_method_that_asks_keeps_what_each_question_wants(grades):
    name = "Recoverable Compression"
    kept = pruning.kept_for_questions(grades, name, 6)
    for b, q in ((0, 0), (2, 1)):
        text = [grades.exam.asked[b][q].text]
        one = grades.vision.rows(torch.tensor([b]))
        alone = reduce(grades.model, one, "recoverable", 6, text).plan.kept()[0]
        assert torch.equal(kept[b, q], alone)


def test_recall_over_questions(grades):
    goals, pictures = grades.exam.queried()
    kept = fastervlm.prune(grades.vision, 6).kept()[pictures]
    by_hand = ((kept & goals).sum(dim=1) / goals.sum(dim=1)).mean().item()
    assert pruning.recall_for_questions(grades, "FasterVLM", 6) == pytest.approx(by_hand)
    assert pruning.recall_for_questions(grades, "FasterVLM", 64) == 1


# ----------------------------------------------------------------------------- a stranger's words
def test_a_strange_caption_shares_no_name():
    captions = ["A cactus at the top.", "A sunflower and a cactus.", "A red apple in the middle."]
    assert pruning.strange_captions(captions) == [captions[2], captions[2], captions[0]]
    with pytest.raises(ValueError, match="names nothing of"):
        pruning.strange_captions(["A cactus at the top.", "A cactus on the left."])


def test_strange_questions_name_nothing_of_the_scene():
    test = exam.exam(12)
    found = pruning.strange_questions(test)
    assert [len(row) for row in found] == [len(row) for row in test.asked]
    for shown, row in zip(things(test.scenes), found, strict=True):
        there = {word for t in shown for word in exam.words(f"{t.name} {t.category}")} - NAMELESS
        for text in row:
            naming = set(exam.words(text)) - NAMELESS
            assert naming and not naming & there


def test_answers_to_one_question_on_a_choice_for_another(grades):
    name, test = "Recoverable Compression", grades.exam
    own = [[question.text for question in row] for row in test.asked]
    assert torch.equal(pruning.right_when_hearing(grades, name, 6, own), grades.right[name][6])
    strange = [["Is there a crab?"] * len(row) for row in own]
    kept = pruning.kept_for_questions(grades, name, 6, strange)
    picture = grades.vision.rows(torch.tensor([1]))
    alone = reduce(grades.model, picture, "recoverable", 6, ["Is there a crab?"])
    assert torch.equal(kept[1, 0], alone.plan.kept()[0])
    said = grades.model.answer(alone.tokens, [own[1][0]]).texts[0]
    right = pruning.right_when_hearing(grades, name, 6, strange)[1, 0].item()
    assert right == (said == " ".join(exam.words(test.asked[1][0].answer)))
    recall = pruning.recall_for_questions(grades, name, 6, strange)
    assert recall == pytest.approx(pruning.recall_of(test, kept))


# ------------------------------------------------------------------------------------ dual encoder
@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return CrossGETCLIP(
        img_size=64, patch_size=8, vision_dim=16, vision_heads=2, vocab=99, context=24,
        text_dim=16, text_heads=2, num_layers=3, embed_dim=8,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def shots():
    return pretrained.pictures(pretrained.world("test"), 4, seed=1)


def test_merged_patches_are_what_all_layers_merge(clip, shots):
    plan = pruning.merged_patches(clip, shots.images, 10)
    assert len(plan) == 64 - 3 * 10
    assert (plan.source() >= 0).all()                           # nothing is thrown away
    assert torch.equal(plan.kept().sum(dim=1), torch.full((4,), 34))
    slots = plan.source().gather(1, plan.index)                 # a kept patch sits in its own slot
    assert torch.equal(slots, torch.arange(34).expand(4, -1))
    assert torch.equal(pruning.merged_patches(clip, shots.images, 0).index[0], torch.arange(64))


def test_roles_without_what_is_gathered():
    generator = torch.Generator().manual_seed(0)
    visual, text = torch.rand(2, 1, 64, generator=generator) ** 8
    plan = recoverable.select(visual, text, torch.randn(1, 64, 8, generator=generator), 20)
    shown = pruning.by_role(plan)
    assert shown.roles == ("vision", "text", "centre")
    own = plan.role < recoverable.EXTRA
    assert torch.equal(shown.index >= 0, own)
    assert torch.equal(shown.index[own], plan.index[own])
    assert torch.equal(shown.role[own], plan.role[own])


def test_outliers_are_marked():
    scores = torch.arange(12.0).view(2, 6)
    outlier = scores > 9
    fig = pruning.outlier_dots(scores, outlier, "score")
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes]
    assert titles == ["0 outliers of 6", "2 outliers of 6"]
    assert fig.axes[1].lines[1].get_xdata().tolist() == [10, 11]


def test_captioned_pictures_say_their_captions(shots, capsys):
    pruning.show_captioned(shots.images[:2], shots.captions[:2])
    assert all(caption in capsys.readouterr().out for caption in shots.captions[:1])


def test_what_is_gone_is_counted(clip, shots, capsys):
    masks = torch.zeros(2, 64, dtype=torch.bool)
    masks[0, :4], masks[1, 4:10] = True, True
    index = torch.arange(2, 64)[None]
    pruning.show_gone(shots.images[0], {"some": Plan(index, 64)}, spoken=masks[0], silent=masks[1])
    assert "some: spoken gone: 2 of 4, silent gone: 0 of 6" in capsys.readouterr().out


def test_group_panel_moves(clip, shots):
    masks = torch.zeros(2, 4, 64, dtype=torch.bool)
    masks[:, :, :8] = True
    panel = pruning.group_panel(clip, shots, spoken=masks[0], silent=masks[1])
    first = panel.frame
    panel.set(method="bipartite", r=32, guidance=-2.0)
    assert panel.frame != first and panel.values["r"] == 32


def test_recovery_panel_asks_for_the_scores_of_its_caption(shots):
    heard = []

    def scores(images, texts):
        heard.append((len(images), *texts))
        row = torch.linspace(0, 1, 64) ** 9
        return row[None], row.flip(0)[None]

    captions = {"its own": shots.captions, "none": ["nothing"] * 4}
    panel = pruning.recovery_panel(scores, shots.images, captions, first=2)
    panel.set(caption="none", neighbours=5, picture=1)
    assert heard[0] == (1, shots.captions[2])
    assert heard[-1] == (1, "nothing")
