"""Grades of methods: what is counted, which leads count, and what the charts say of them."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.vlm.tiny import make_tinyvlm
from vtlib import teach
from vtlib.pruning import baselines, fastv, holov, zooprune
from vtlib.pruning.bench import encode
from vtlib.pruning.registry import METHODS
from vtlib.teach import pruning
from vtlib.teach.pruning import charts
from vtlib.teach.pruning import grades as grades_module
from vtlib.tokens import Plan
from vtlib.vlm import exam

KEEPS = (4, 12)


@pytest.fixture(scope="module")
def made():
    """Grades of an untrained model on four pictures of 8 x 8 patches."""
    model = make_tinyvlm()
    test = exam.exam(4, size=64)
    with torch.no_grad():
        vision = encode(model, test.images, ["fastervlm"])
    grades = pruning.Grades(model, vision, test).add(["random", "fastervlm"], KEEPS)
    return grades.add({"Oracle": partial(baselines.oracle, exam.oracle_mask(test))}, KEEPS)


@pytest.fixture
def scored(made):
    """The same with answers of our own: the right ones are known."""
    copy = pruning.Grades.__new__(pruning.Grades)
    copy.__dict__ |= made.__dict__
    asked = made.asked
    none, whole = torch.zeros_like(asked), asked.clone()
    half = asked & (asked.long().cumsum(1) % 2 == 1)
    copy.right_blind, copy.right_whole = none, whole
    copy.right = {"Random": {4: none, 12: half}, "FasterVLM": {4: half, 12: whole}}
    return copy


# ------------------------------------------------------------------------------------------- leads
def test_a_lead_and_its_noise_by_hand():
    """Five questions on three pictures; ahead by 1, 2 and 0 of 2, 2 and 1: 0.6 of a question, and
    residuals -0.2, 0.8, -0.6 with the sum of squares 1.04."""
    asked = torch.tensor([[1, 1], [1, 1], [1, 0]]).bool()
    first = torch.tensor([[1, 1], [1, 1], [1, 1]]).bool()    # the last is no question
    second = torch.tensor([[1, 0], [0, 0], [1, 0]]).bool()
    found = pruning.lead(first, second, asked)
    assert found.points == pytest.approx(60)
    assert found.noise == pytest.approx(100 * 2 / 5 * (1.04 * 3 / 2) ** 0.5)
    back = pruning.lead(second, first, asked)
    assert (back.points, back.noise) == pytest.approx((-60, found.noise))
    with pytest.raises(ValueError, match="1 pictures: noise needs two"):
        pruning.lead(first[:1], second[:1], asked[:1])


def test_the_mean_over_pictures_by_hand():
    found = pruning.over_pictures(torch.tensor([1.0, 3.0]))      # deviation sqrt 2, error 1
    assert (found.points, found.noise) == pytest.approx((2, 2))
    with pytest.raises(ValueError, match=r"\(1,\): needs \(B,\), B >= 2"):
        pruning.over_pictures(torch.ones(1))


def test_two_groups_of_pictures_by_hand():
    found = pruning.between(torch.tensor([5.0, 7.0]), torch.tensor([1.0, 3.0]))
    assert (found.points, found.noise) == pytest.approx((4, 8**0.5))


def test_a_lead_within_the_noise_is_a_tie():
    verdicts = [pruning.Lead(points, 2.0).verdict for points in (2.1, 1.9, -1.9, -2.1)]
    assert verdicts == [True, "a tie", "a tie", False]
    assert str(pruning.Lead(2.06, 1.0)) == "+2.1 ± 1.0 points"


# ------------------------------------------------------------------------------------------ grades
def test_grades_are_those_of_the_plans(made):
    model, vision, test = made.model, made.vision, made.exam
    for name in ("FasterVLM", "Oracle"):
        plan = made.plan(name, 12)
        right = test.right(model, model.reduce(vision, plan))
        assert torch.equal(right, made.right[name][12])
        share = 100 * right[test.kind >= 0].double().mean().item()
        assert made.percent(name, 12) == pytest.approx(share)
        assert made.by_kind(name, 12)["all"] == pytest.approx(share)
        want = exam.measures(plan, vision.tokens, test, (8, 8))
        assert made.measures(name, 12) == want
    others = test.right(model, vision.tokens.roll(1, dims=0))
    assert torch.equal(others, made.right_blind)
    assert torch.equal(made.plan("Random", 4).index, made.plan("Random", 4).index)


def test_which_questions_a_kept_patch_touches(made):
    on_objects, stays = made.touched("FasterVLM", 12)
    kept, cover, questions = made.plan("FasterVLM", 12).kept(), made.exam.cover, 0
    for b, row in enumerate(made.exam.asked):
        for q, question in enumerate(row):
            shown = cover[b, list(question.objects)].any(0) & kept[b]
            assert on_objects[b, q] == bool(question.objects) and stays[b, q] == shown.any()
            questions += bool(question.objects)
    assert on_objects.sum() == questions > stays.sum() > 0


def test_which_share_of_the_objects_stays(made):
    found = made.objects_kept("FasterVLM", 12)
    index = made.plan("FasterVLM", 12).index[0].tolist()
    objects = made.exam.cover[0].any(dim=0).nonzero()[:, 0].tolist()
    assert len(found) == 4 and objects
    assert found[0].item() == pytest.approx(len(set(index) & set(objects)) / len(objects))


def test_nothing_is_asked_twice(made, monkeypatch):
    asked = []
    real = grades_module.grade

    def counted(model, vision, test, method, keep, **how):
        asked.append((method.name, keep))
        return real(model, vision, test, method, keep, **how)

    monkeypatch.setattr(grades_module, "grade", counted)
    made.add(["random", "uniform"], (4, 12))
    made.add({"mine": lambda vision, keep: torch.arange(keep).expand(4, -1)}, [64])
    assert asked == [("uniform", 4), ("uniform", 12), ("<lambda>", 64)]
    assert torch.equal(made.right["mine"][64], made.right_whole)
    for name in ("Uniform grid", "mine"):
        del made.right[name]


def test_what_was_not_graded_is_named(made):
    with pytest.raises(ValueError, match=r"name='Random', keep=5: not graded; there is \{'Ran"):
        made.percent("Random", 5)
    with pytest.raises(ValueError, match="name='HoloV'"):
        made.lead("HoloV", "Random", 4)


def test_scores_frame_and_rank(scored):
    assert (scored.whole, scored.blind) == (100, 0)
    assert list(scored.ranked(12)) == ["FasterVLM", "Random"]
    assert list(scored.ranked(12, ["Random"])) == ["Random"]
    assert scored.lead("FasterVLM", "Random", 4).verdict is True
    assert scored.cost("FasterVLM", 12) == pruning.Lead(0, 0)
    assert scored.cost("Random", 4).points == 100


def test_who_is_tied_with_the_best(made, scored):
    asked = made.asked
    all_but_one, two_thirds = asked.clone(), asked & (asked.long().cumsum(1) % 3 > 0)
    all_but_one[0, 0] = False
    scored.right = {"third": {4: two_thirds}, "second": {4: all_but_one}, "first": {4: asked}}
    assert scored.tied(4) == ["first", "second"]
    assert scored.tied(4, ["third"]) == ["third"]


def test_one_verdict_over_several_budgets(scored, monkeypatch):
    points = {4: 5, 8: 1, 12: 5, 16: -5, 20: -1}
    told = {keep: pruning.Lead(p, 2) for keep, p in points.items()}
    monkeypatch.setattr(pruning.Grades, "lead", lambda self, first, second, keep: told[keep])
    found = [scored.verdict("FasterVLM", "Random", keeps)
             for keeps in ((4, 12), (8, 20), (8, 16), (4, 8, 12), (4, 16))]  # fmt: skip
    assert found == [True, "a tie", False, "only with 4 and 12 tokens",
                     "only with 4 tokens, behind with 16"]  # fmt: skip


# ------------------------------------------------------------------------------------------ charts
def test_the_ranking_draws_what_it_says(scored, capsys):
    fig = pruning.ranking(scored, 12, "Who?", highlight=["FasterVLM"])
    ax = fig.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FasterVLM", "Random"]
    assert [bar.get_width() for bar in ax.patches] == [
        100, pytest.approx(scored.percent("Random", 12))]
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()
    pruning.show_ranking(scored, 12, "Who?")
    half = f"{scored.percent('Random', 12):.0f}"
    said = capsys.readouterr().out
    assert f"12 of 64 tokens: FasterVLM 100, Random {half}; all tokens 100" in said


def test_whiskers_are_the_noise_of_a_lead(scored):
    fig = pruning.ranking(scored, 12, "Who?", against="Random")
    ax, noise = fig.axes[0], scored.lead("FasterVLM", "Random", 12).noise
    (whisker,) = [c for c in ax.collections if hasattr(c, "get_segments")]
    ends = [x for x, _ in whisker.get_segments()[0]]
    assert ends == pytest.approx([100 - noise, 100 + noise]) and noise > 0
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_xdata()[0] == scored.percent("Random", 12)
    assert "lead over Random" in ax.get_xlabel()
    column = [text for text in ax.texts if text.get_transform() == ax.get_yaxis_transform()]
    places = {(text.get_position()[0], text.get_text()) for text in column}
    assert places == {(1.01, "100"), (1.01, f"{scored.percent('Random', 12):.0f}")}


def test_the_same_methods_with_two_models(capsys):
    scores = {"small": {"HoloV": 81.2, "Random": 75.9}, "real": {"Random": 68.8, "HoloV": 78.4}}
    fig = pruning.pairs(scores, "Two readers", "correct answers (%)")
    ax = fig.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["Random", "HoloV"]
    dots = {mark.get_label(): mark.get_offsets().tolist() for mark in ax.collections}
    assert dots == {"small": [[75.9, 0], [81.2, 1]], "real": [[68.8, 0], [78.4, 1]]}
    assert ax.get_yticklabels()[0].get_color() != ax.get_yticklabels()[1].get_color()
    pruning.show_pairs(scores, "Two readers", "correct answers (%)")
    assert "real: HoloV 78.4, Random 68.8" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'small'.* other methods than .*'real'"):
        pruning.pairs({"small": {"HoloV": 1.0}, "real": scores["real"]}, "Two", "score")


def test_a_band_in_which_two_methods_tie(scored, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "show", lambda fig, alt: drawn.append(fig))
    pruning.show_over_keep(scored, "Two", ["FasterVLM", "Random"], band=("FasterVLM", "Random"))
    ax = drawn[0].axes[0]
    corners = ax.collections[0].get_paths()[0].vertices
    for keep in (4, 12):
        middle = scored.percent("Random", keep)
        noise = scored.lead("FasterVLM", "Random", keep).noise
        ys = corners[corners[:, 0] == keep][:, 1]
        assert (ys.min(), ys.max()) == pytest.approx((middle - noise, middle + noise))
    assert "FasterVLM's lead over Random" in ax.get_xlabel()
    assert "FasterVLM ties" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_curves_over_the_budget(scored, capsys):
    pruning.show_over_keep(scored, "More tokens", ["FasterVLM", "Random"])
    half = f"{scored.percent('Random', 12):.0f}"
    assert f"4, 12 tokens. FasterVLM {half}, 100; Random 0, {half}." in capsys.readouterr().out
    with pytest.raises(ValueError, match="'Oracle'.*not graded"):
        pruning.show_over_keep(scored, "More tokens", ["FasterVLM", "Oracle"])


def test_measures_as_a_table(made, capsys):
    found = made.measures("FasterVLM", 12)
    pruning.show_measures({"FasterVLM": found}, "12 tokens")
    said = capsys.readouterr().out
    assert "12 tokens" in said and f"{found['recall']:.2f}" in said and "redundancy" in said
    pruning.show_measures({"FasterVLM": found}, columns=("recall", "objects hit"))
    said = capsys.readouterr().out
    assert f"{found['objects hit']:.2f}" in said and "redundancy" not in said


def test_one_picture_under_several_plans():
    picture, plan = torch.rand(3, 16, 16), Plan(torch.tensor([[0], [3]]), 4)
    fig = pruning.plan_row(picture, {"all": None, "one": plan}, (2, 2), row=1, title="two")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["all", "one"]
    shown = torch.as_tensor(fig.axes[1].images[0].get_array()).permute(2, 0, 1)
    assert torch.allclose(shown, pruning.paint(picture, plan, (2, 2), 1))
    left_half = torch.tensor([True, False, True, False])
    fig = pruning.plan_row(picture, {"all": None, "one": plan}, (2, 2), around=left_half)
    assert [len(ax.collections) for ax in fig.axes] == [1, 1]


def test_an_outline_runs_around_its_patches():
    """An L of three of 2 x 3 patches, each 8 x 8 pixels: its border has eight sides of 8."""
    fig = pruning.plan_row(torch.rand(3, 16, 24), {"all": None}, (2, 3))
    ell = torch.tensor([True, False, False, True, True, False])
    pruning.outline(fig.axes[0], ell, (2, 3))
    (border,) = fig.axes[0].collections
    sides = {tuple(sorted(map(tuple, (side + 0.5).tolist()))) for side in border.get_segments()}
    assert sides == {
        ((0, 0), (8, 0)), ((0, 0), (0, 8)), ((0, 8), (0, 16)), ((0, 16), (8, 16)),
        ((8, 16), (16, 16)), ((16, 8), (16, 16)), ((8, 8), (16, 8)), ((8, 0), (8, 8)),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"patches is torch.bool \(6,\)"):
        pruning.outline(fig.axes[0], ell, (2, 2))


# ------------------------------------------------------------------------------------- the decoder
def test_look_inside_sees_what_fastv_cuts_by(made):
    pictures, texts, patches = pruning.asked_objects(made.exam)
    tokens = made.vision.tokens[pictures]
    late = {"late": (5, pruning.last_word), "early": (2, pruning.last_word)}
    seen = pruning.look_inside(made.model, tokens, texts, late)
    assert list(seen) == ["late", "early"] and seen["late"].shape == tokens.shape[:2]
    cut = fastv.stages(6, 7, 64)
    with torch.no_grad():
        _, run = made.model.prefill(tokens, texts, cut, positions="keep")
    assert torch.equal(seen["early"].topk(7, dim=1).indices.sort(1).values, run.plan.index)


def test_late_chance_cuts_behind_its_layer_whatever_it_sees(made):
    _, texts, _ = pruning.asked_objects(made.exam)
    (cut,) = pruning.late_chance(after=3).stages(6, 7, 64)
    assert (cut.after, cut.keep) == (3, 7)
    tokens, kept = torch.randn(2, len(texts), 64, 32), []
    for seen in tokens:
        with torch.no_grad():
            _, run = made.model.prefill(seen, texts, [cut], positions="keep")
        kept.append(run.plan.index)
    assert torch.equal(*kept) and kept[0].shape == (len(texts), 7)
    assert not torch.equal(kept[0][0], kept[0][1])       # each picture draws for itself
    with pytest.raises(ValueError, match="after=0"):
        pruning.late_chance(after=0)


def test_rows_that_lie_above_nothing():
    rows = {name: {"x": torch.tensor(values)} for name, values in
            {"up": [1.0, 2, 3], "down": [-1.0, -2, -3], "even": [1.0, -1, 0]}.items()}
    assert pruning.beyond(rows, lambda row: row["x"]) == "up"
    assert pruning.beyond(rows, lambda row: -row["x"]) == "down"
    assert pruning.beyond(rows, lambda row: row["x"] + 9) == "up, down, even"
    assert pruning.beyond({"even": rows["even"]}, lambda row: row["x"]) == "none"


def test_patches_of_noise():
    images = torch.full((3, 3, 8, 12), 2.0)
    painted, is_noise = pruning.with_noise(images, 2, (2, 3), seed=1)
    assert is_noise.shape == (3, 6) and is_noise.sum(dim=1).tolist() == [2, 2, 2]
    changed = (painted != images).all(dim=1).unflatten(1, (2, 4)).unflatten(3, (3, 4))
    assert torch.equal(changed.all(4).all(2).flatten(1), is_noise)
    assert torch.equal(changed.any(4).any(2).flatten(1), is_noise)
    assert torch.equal(pruning.with_noise(images, 2, (2, 3), seed=1)[0], painted)
    with pytest.raises(ValueError, match="grid="):
        pruning.with_noise(images, 2, (3, 3))


def test_where_favourites_lie(capsys):
    """Ten patches in two rows; the object is 5, 6; the three best of the first picture are 0, 5, 7,
    with 1/2, 1/4 and 1/8 of the score."""
    score = torch.zeros(2, 10)
    score[0, [0, 5, 7, 9]] = torch.tensor([4.0, 2, 1, 1])
    score[1] = torch.arange(10.0)
    patches = torch.zeros(2, 10, dtype=torch.bool)
    patches[:, 5:7] = True
    found = pruning.favourites(score, patches, (2, 5), keep=3)
    assert found["rows below"].tolist() == pytest.approx([2 / 3 - 1, 0])
    assert found["recall"].tolist() == [0.5, 0]
    assert found["top fifth"].tolist() == pytest.approx([6 / 8, 17 / 45])
    pruning.show_favourites({"mine": found}, "three")
    said = capsys.readouterr().out                       # -1/3 and 0: standard error 1/6
    assert "-0.2 ± 0.3" in said and "56%" in said and "0.25" in said


def test_one_question_about_objects_a_picture(made):
    pictures, texts, patches = pruning.asked_objects(made.exam)
    assert len(pictures) == len(texts) == len(patches) and patches.any(1).all()
    for b, text, shown in zip(pictures.tolist(), texts, patches, strict=True):
        question = next(q for q in made.exam.asked[b] if q.objects)
        assert question.text == text
        assert torch.equal(shown, made.exam.cover[b, list(question.objects)].any(0))
    with pytest.raises(ValueError, match="no such question"):
        pruning.asked_objects(made.exam, torch.zeros_like(made.asked))


# ----------------------------------------------------------------------------------------- widgets
def shown_in(fig, place=0):
    return torch.as_tensor(fig.axes[place].images[0].get_array()).permute(2, 0, 1)


def test_scores_with_a_cut():
    images = torch.rand(2, 3, 32, 32)
    scores = {"up": torch.arange(16.0).expand(2, -1), "down": torch.arange(16.0, 0, -1)[None]}
    scores["down"] = scores["down"].expand(2, -1)
    patches = torch.zeros(2, 16, dtype=torch.bool)
    patches[0, 0] = patches[1, 10:14] = True
    panel = pruning.score_panel(images, scores, ["one?", "two?"], patches, (4, 4), keep=4)
    fig = panel.draw(picture=1, source="up", keep=4)
    want = pruning.paint(images[1], Plan(torch.tensor([[12, 13, 14, 15]]), 16), (4, 4))
    assert torch.allclose(shown_in(fig, 1), want) and fig.texts[0].get_text() == "two?"
    assert "50%" in fig.axes[2].get_title() + fig.axes[2].get_title(loc="left")
    assert torch.allclose(shown_in(fig), images[1]) and fig.axes[0].collections
    before = panel.frame
    panel.set(source="down", keep=2)
    assert panel.frame != before
    assert len(fig.axes[1].collections[0].get_segments()) == 12      # around 10, 11 and 12, 13
    with pytest.raises(ValueError, match="keep=9"):
        pruning.score_panel(images, scores, ["", ""], patches, (4, 4), keep=9)


def test_the_order_of_a_choice():
    images, tokens = torch.rand(2, 3, 32, 32), torch.randn(2, 16, 5)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    panel = pruning.order_panel(images, {"a": order, "b": order.flip(1)}, tokens, (4, 4), step=3)
    fig = panel.draw(picture=1, rule="b", step=5)
    chosen = order[1].flip(0)[:5]
    want = pruning.paint(images[1], Plan(chosen[None], 16), (4, 4))
    assert torch.allclose(shown_in(fig, 1), want)
    cloud, marked, newest = (line.get_xydata() for line in fig.axes[2].lines)
    assert (len(cloud), len(marked)) == (16, 5)
    assert newest.tolist() == [cloud[chosen[-1]].tolist()]
    assert panel.controls["step"].max == 16
    objects = torch.rand(2, 16) < 0.5
    found = pruning.order_panel(images, {"a": order}, tokens, (4, 4), step=3, objects=objects)
    right = found.draw(picture=1, rule="a", step=5).axes[2]
    sizes = [len(line.get_xydata()) for line in right.lines]
    assert sizes == [16 - objects[1].sum(), objects[1].sum(), 5, 1]
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names == ["background", "object", "chosen", "newest"]


def test_the_plane_keeps_what_varies_most():
    tokens = torch.randn(50, 3) * torch.tensor([1.0, 9.0, 4.0])
    shown = pruning.plane(tokens + 7)
    spread = shown.std(dim=0)
    assert spread[0] > spread[1] > 3 and abs(shown.mean()) < 1e-4
    true = (tokens - tokens.mean(0))[:, 1]
    assert abs(torch.corrcoef(torch.stack([shown[:, 0], true]))[0, 1]) > 0.95


# --------------------------------------------------------------------------------------- mechanisms
def titled(ax):
    return ax.get_title() or ax.get_title(loc="left")


def test_quotas_beside_their_crops(made):
    """With sharp attention the release leaves places empty, and the paper hands them on."""
    bright = torch.ones(4, 4, 64)
    bright[..., :16] = 3                                     # the topmost band
    images, vision = made.exam.images, replace(made.vision, cls_row=bright / 96)
    panel = pruning.quota_panel(images, vision, keep=12)
    setting = {"picture": 1, "keep": 30, "crops": 4, "tau": 2.0, "sharpness": 4}
    looks = vision.cls_row[1:2].mean(dim=1) ** 4
    looks, bands = looks / looks.sum(), holov.bands(64, 4)
    score = holov.score(vision.tokens[1:2], looks, bands)
    for surplus in ("paper", "release"):
        plan = holov.select(score, looks, bands, 30, surplus, tau=2.0)
        fig = panel.draw(surplus=surplus, **setting)
        assert torch.allclose(shown_in(fig), pruning.paint(images[1], plan, (8, 8), colour="kept"))
        missing = int((plan.index < 0).sum())
        assert titled(fig.axes[0]) == f"{30 - missing} tokens, {missing} of 30 places empty"
        bars = [bar.get_width() for bar in fig.axes[1].patches]
        assert len(bars) == 4 and sum(bars) == 30
        assert (max(bars) > 16) == (missing > 0) == (surplus == "release")
    before = panel.frame
    panel.set(crops=1, keep=20)
    assert panel.frame != before
    with pytest.raises(ValueError, match="keep=33"):
        pruning.quota_panel(images, vision, keep=33)


def test_nudges_choose_as_zooprune_does(made):
    images, vision = made.exam.images, made.vision
    project = {"own": made.model.projector, "linear": lambda x: 3 * x}
    panel = pruning.nudge_panel(images, vision, project, step=5)
    seeded = torch.Generator().manual_seed(0)
    directions = torch.randn(8, vision.features.shape[2], generator=seeded)
    found = zooprune.sensitivity(vision.features[2:3], project["own"], directions=directions)
    order = zooprune.sads(found, vision.tokens[2:3], 6)[0]
    fig = panel.draw(picture=2, step=6, directions=8, projector="own")
    want = pruning.paint(images[2], Plan(order, 64), (8, 8))
    assert torch.allclose(shown_in(fig), want) and titled(fig.axes[0]) == "the first 6"
    flat = panel.draw(picture=2, step=6, directions=8, projector="linear")
    spread = [float(titled(f.axes[1]).split("= ")[1]) for f in (fig, flat)]
    assert spread[0] > 0.01 and spread[1] < 1e-4
    before = panel.frame
    panel.set(projector="linear", step=9)
    assert panel.frame != before
    with pytest.raises(ValueError, match="step=65"):
        pruning.nudge_panel(images, vision, project, step=65)


def test_looks_are_those_of_the_registry():
    """A name of LOOKS that no method bears would never be used. Rivals are in no plot yet."""
    drawn = [method for method in METHODS.values() if method.kind != "rival"]
    titles = {method.title.split(" (")[0] for method in drawn}
    assert set(pruning.LOOKS) == titles - {"AIM, merging alone"} | {"Oracle"}
    looks = [tuple(look.values()) for look in pruning.LOOKS.values()]
    assert len(set(looks)) == len(looks)
    colours = {look["color"] for look in pruning.LOOKS.values()}
    assert all(c[1:3] == c[3:5] == c[5:] for c in colours - {*teach.PALETTE}), "grey"
