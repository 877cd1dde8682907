"""The pruning bench: what is drawn is what the plan says, what is billed is what was run."""

import numpy as np
import pytest
import torch

from tests.vlm.tiny import make_tinyvlm
from vtlib import teach
from vtlib.pruning import baselines
from vtlib.pruning.bench import encode, reduce
from vtlib.pruning.method import Method
from vtlib.pruning.registry import METHODS, register
from vtlib.teach import pruning
from vtlib.tokens import Plan, keep_all
from vtlib.vlm import exam
from vtlib.vlm.tinyvlm import words

BLUE = torch.tensor([0, 0x72 / 255, 0xB2 / 255])
QUESTION = "is there a crab?"


@pytest.fixture(scope="module")
def model():
    return make_tinyvlm()


@pytest.fixture(scope="module")
def test():
    return exam.exam(3, size=64)


@pytest.fixture(scope="module")
def vision(model, test):
    with torch.no_grad():
        return encode(model, test.images[:1])                             # 8 x 8 patches


# ----------------------------------------------------------------------------------------- pictures
def tiles(picture, grid):
    """(3, H, W) -> (N, 3, p, p)"""
    h, w = grid
    p = picture.shape[1] // h
    return picture.unflatten(1, (h, p)).unflatten(3, (w, p)).permute(1, 3, 0, 2, 4).flatten(0, 1)


@pytest.mark.parametrize("grid", [(2, 3), (4, 4)])
def test_kept_patches_stay_bright_and_dropped_ones_turn_grey(grid):
    h, w = grid
    picture = torch.rand(3, 8 * h, 8 * w, generator=torch.Generator().manual_seed(0))
    plan = Plan(torch.tensor([[0, 1], [1, h * w - 1]]), h * w)
    for row in (0, 1):
        out = tiles(pruning.paint(picture, plan, grid, row), grid)
        big = tiles(picture.repeat_interleave(2, 1).repeat_interleave(2, 2), grid)
        for n in range(h * w):
            inner = out[n, :, 2:-2, 2:-2]
            if n in plan.index[row]:
                assert torch.equal(inner, big[n, :, 2:-2, 2:-2])
                assert torch.allclose(out[n, :, 0, 0], BLUE)                             # the frame
            else:
                assert torch.allclose(inner[0], inner[1])
                assert inner.min() >= 0.33 and inner.max() <= 0.88


def test_merged_patches_carry_the_colour_of_their_slot():
    """Six patches: 0 and 3 into slot 0, 1 alone in slot 1, 2 and 4 into slot 2, 5 nowhere."""
    index, src_idx = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 3, 1, 2, 4]])
    plan = Plan(index, 6, src_idx, torch.tensor([[0, 0, 1, 2, 2]]), torch.ones(1, 5))
    red = torch.tensor([0.9, 0.3, 0.3])                          # as a grey: 0.5
    out = tiles(pruning.paint(red[:, None, None].expand(3, 16, 24), plan, (2, 3)), (2, 3))
    middle, corner = out[:, :, 8, 8], out[:, :, 0, 0]
    assert torch.allclose(middle[:3], red.expand(3, 3))          # where slots sit the picture shows
    assert not torch.allclose(middle[3], middle[4])              # elsewhere the slot's colour alone
    assert torch.allclose(middle[3], 0.225 + 0.55 * corner[0])
    assert torch.allclose(middle[4], 0.225 + 0.55 * corner[2])
    assert torch.allclose(middle[5], torch.full((3,), 0.605))                    # dropped: grey
    assert torch.allclose(corner[1], BLUE)                       # alone in its slot: framed as kept


def test_frames_tell_roles_and_prefix_tokens_are_left_out():
    roles = {"role": torch.tensor([[1, 0, 2]]), "roles": ("a", "b", "c")}
    plan = Plan(torch.tensor([[0, 2, 5]]), 5 + 1, num_prefix=1, **roles)
    out = tiles(pruning.paint(torch.zeros(3, 8, 40), plan, (1, 5)), (1, 5))
    corner = out[:, :, 0, 0]
    third = [int(teach.PALETTE[2][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    assert torch.allclose(corner[1], BLUE)                          # token 2 is patch 1
    assert torch.allclose(corner[4], torch.tensor(third))           # token 5 is patch 4
    assert torch.allclose(corner[[0, 2, 3]], torch.tensor(0.33))    # black and dropped


def test_order_shows_the_first_steps_only():
    plan = Plan(torch.tensor([[0, 1, 2]]), 4)
    out = tiles(pruning.paint(torch.rand(3, 16, 16), plan, (2, 2), order=[2]), (2, 2))
    grey = [bool((t[0] - t[1]).abs()[3:-3, 3:-3].max() < 1e-6) for t in out]
    assert grey == [True, True, False, True]


def test_a_picture_is_painted_alike_however_it_comes():
    plan = Plan(torch.tensor([[0, 3]]), 4)
    picture = torch.rand(3, 32, 32, generator=torch.Generator("cpu").manual_seed(0))
    picture = (picture * 255).round() / 255
    want = pruning.paint(picture, plan, (2, 2))
    for same in ((255 * picture).byte(), picture.double().requires_grad_(), picture.numpy()):
        assert torch.allclose(pruning.paint(same, plan, (2, 2)), want, atol=1e-6)
    with torch.device("meta"):
        grid = (np.int64(2), torch.tensor(2, device="cpu"))
        got = pruning.paint(picture, plan, grid, np.int64(0))
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match="picture is torch.int64"):
        pruning.paint((255 * picture).long(), plan, (2, 2))
    with pytest.raises(ValueError, match="picture is on the meta device"):
        pruning.paint(picture.to("meta"), plan, (2, 2))
    with pytest.raises(ValueError, match="row=1"):
        pruning.paint(picture, plan, (2, 2), row=1)


def test_paint_says_what_does_not_fit():
    picture, plan = torch.rand(3, 16, 16), Plan(torch.tensor([[0]]), 4)
    with pytest.raises(ValueError, match="the plan is for 4 patches but the grid 2 x 3 has 6"):
        pruning.paint(picture, plan, (2, 3))
    with pytest.raises(ValueError, match="colour='role'"):
        pruning.paint(picture, plan, (2, 2), colour="role")
    with pytest.raises(ValueError, match="no roles"):
        pruning.paint(picture, plan, (2, 2), colour="roles")
    with pytest.raises(ValueError, match="plan is a list"):
        pruning.paint(picture, [0], (2, 2))
    with pytest.raises(ValueError, match="grid=4"):
        pruning.paint(picture, plan, 4)
    with pytest.raises(ValueError, match="order=4"):
        pruning.paint(picture, plan, (2, 2), order=[4])


def test_draw_writes_how_many_of_each_role():
    role, roles = torch.tensor([[1, 0, 0]]), ("anchor", "buffer")
    plan = Plan(torch.tensor([[0, 2, -1]]), 4, role=role, roles=roles)
    fig, ax = teach.figure()
    pruning.draw(ax, torch.rand(3, 16, 16), plan, (2, 2), title="two")
    assert [t.get_text() for t in ax.texts] == ["anchor: 1", "buffer: 1"]
    assert "two" in (ax.get_title(loc="left"), ax.get_title())
    assert len(teach.png(fig)) > 100


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_painted(model, vision, test, name):
    made = pruning.trial(model, vision, name, 12, QUESTION, torch.Generator().manual_seed(0))
    out = pruning.paint(test.images[0], made.plan, vision.grid)
    assert out.shape == (3, 128, 128) and torch.isfinite(out).all()
    assert not torch.equal(out, pruning.paint(test.images[0], keep_all(1, 64), vision.grid))


def test_how_far_the_nearest_kept_patch_is():
    """2 x 3 patches, one corner kept: 0, 1, 2 in its row, 1, the roots of 2 and 5 below; an empty
    slot keeps nothing."""
    plan = Plan(torch.tensor([[0, -1], [0, 5]]), 6)
    one = (0 + 1 + 2 + 1 + 2**0.5 + 5**0.5) / 6
    assert pruning.reach(plan, (2, 3)).tolist() == pytest.approx([one, 4 / 6])
    prefixed = Plan(torch.tensor([[0, 1]]), 7, num_prefix=1)
    assert pruning.reach(prefixed, (2, 3)).item() == pytest.approx(one)
    with pytest.raises(ValueError, match="keeps no patch"):
        pruning.reach(Plan(torch.tensor([[0]]), 7, num_prefix=1), (2, 3))
    with pytest.raises(ValueError, match="the grid 3 x 3 has 9"):
        pruning.reach(plan, (3, 3))


# ----------------------------------------------------------------------------------------- the bill
@pytest.mark.parametrize("name", METHODS)
def test_the_bill_is_what_was_run(model, vision, name):
    """Counted tokens, FLOPs and cache bytes equal those of the real prefill."""
    made = pruning.trial(model, vision, name, 12, QUESTION, torch.Generator().manual_seed(0))
    with torch.no_grad():
        done = reduce(model, vision, name, 12, [QUESTION], torch.Generator().manual_seed(0))
        x, visual, _ = model.prompt(done.tokens, [QUESTION])
        run = model.decoder.prefill(x, visual, done.stages, positions=done.positions)
        said = model.answer(done.tokens, [QUESTION], done.stages, done.positions)
    assert made.lengths == run.cache.lengths and made.cache == run.cache.bytes
    assert made.visual[0] == done.tokens.shape[1] and made.visual[1] == len(run.plan)
    assert (made.answer, made.probability) == (said.texts[0], said.probability.item())
    if not done.stages:
        assert made.flops == teach.flops(model.decoder.prefill, x)
    assert made.choosing > 0 and made.reading > 0


def test_the_bill_of_nothing_pruned(model, vision):
    made = pruning.trial(model, vision, "divprune", 64, QUESTION)
    assert made.lengths == [1 + 64 + len(words(QUESTION))] * 6 and made.plan.kept().all()


def test_a_trial_is_about_one_picture(model, test):
    with torch.no_grad():
        both = encode(model, test.images[:2], ["random"])
    with pytest.raises(ValueError, match="vision holds 2 pictures"):
        pruning.trial(model, both, "random", 4, QUESTION)


# ---------------------------------------------------------------------------------------- the bench
@pytest.fixture(scope="module")
def bench(model, test):
    return pruning.bench(model, test, keeps=(4, 12, 64), keep=12, pictures=2)


def picture_in(fig):
    """(3, H, W): the bench's picture."""
    return torch.as_tensor(fig.axes[0].images[0].get_array()).permute(2, 0, 1)


def test_bench_moves(bench):
    frames = {bench.frame}
    for values in (
        {"keep": 4},
        {"method": "tome"},
        {"question": 1},
        {"method": "fastv", "keep": 12},
        {"method": "zooprune"},
        {"keep": 64},
    ):
        bench.set(**values)
        frames.add(bench.frame)
    assert len(frames) == 7


def test_bench_repeats_itself(bench):
    """A setting's result is kept: its picture, time included, is the same when one comes back."""
    bench.set(method="random", keep=12, question=0)
    first = bench.frame
    bench.set(method="random", keep=4)
    bench.set(keep=12)
    assert bench.frame == first


def test_bench_offers_its_methods_and_questions(model, test, bench):
    assert [value for _, value in bench.controls["method"].options] == list(METHODS)
    asked = bench.controls["question"].options
    assert len(asked) in (2, 3, 4) and asked[0][0].startswith("1: ")
    two = {"methods": ("pool", "tome"), "keeps": (4, 64)}
    few = pruning.bench(model, test, keep=torch.tensor(4), pictures=np.int64(1), **two)
    assert [value for _, value in few.controls["method"].options] == ["pool", "tome"]
    assert few.values["method"] == "pool"
    third = pruning.bench(model, test, keep=4, pictures=torch.tensor([2]), **two)
    want = pruning.paint(test.images[2], reduce(model, test.images[2:3], "pool", 4).plan, (8, 8))
    shown = picture_in(third.draw(method="pool", keep=4, question=0))
    assert torch.allclose(shown, want, atol=1e-6)
    with pytest.raises(ValueError, match="method='best'"):
        pruning.bench(model, test, methods=("best",))
    with pytest.raises(ValueError, match="keep=5 is not among"):
        pruning.bench(model, test, keep=5)
    with pytest.raises(ValueError, match="method='tome' is not among methods: pool"):
        pruning.bench(model, test, methods=("pool",), method="tome")
    for pictures in (0, [3], True):
        with pytest.raises(ValueError, match="pictures="):
            pruning.bench(model, test, pictures=pictures)


def test_bench_shows_the_oracles_answer(model, vision, test):
    """What the model says about the patches that the exact masks mark, at the same budget."""
    panel = pruning.bench(model, test, methods=("pool",), keeps=(4, 64), keep=4, pictures=1)
    question = panel.controls["question"].options[0][0].removeprefix("1: ")
    plan = baselines.oracle(exam.oracle_mask(test)[:1], vision, 4)
    with torch.no_grad():
        said = model.answer(model.reduce(vision, plan), [question])
    lines = [text.get_text() for text in panel.draw(method="pool", keep=4, question=0).texts]
    end = f"says “{said.texts[0]}” ({said.probability.item():.2f})"
    assert lines[1].startswith("The oracle") and lines[1].endswith(end)


def test_the_bench_frames_what_is_recovered_by_role(model, test):
    panel = pruning.bench(model, test, ["recoverable"], keeps=(6,), keep=6, pictures=1)
    texts = [text.get_text() for text in panel.draw("recoverable", 6, 0).axes[0].texts]
    assert [text.split(":")[0] for text in texts] == ["vision", "text", "centre"]


def test_bench_with_a_second_model(model, test):
    """Each model answers the same questions on its own pictures, with its own tokens."""
    larger, other = exam.exam(3, size=128), make_tinyvlm(num_layers=4)
    panel = pruning.bench(
        model, test, ("pool",), (4, 64), keep=4, pictures=2, others={"larger": (other, larger)}
    )
    assert panel.controls["model"].options == ("TinyVLM", "larger")
    alone = pruning.bench(model, test, ("pool",), (4, 64), keep=4, pictures=2)
    assert panel.controls["question"].options == alone.controls["question"].options
    question = panel.controls["question"].options[1][0].split(": ", 1)[1]
    fig = panel.draw(method="pool", keep=4, question=1, model="larger")
    with torch.no_grad():
        done = reduce(other, larger.images[:1], "pool", 4)
        said = other.answer(done.tokens, [question])
    want = pruning.paint(larger.images[0], done.plan, (16, 16))
    assert torch.allclose(picture_in(fig), want, atol=1e-6)
    assert f"“{said.texts[0]}” ({said.probability.item():.2f})" in fig.texts[0].get_text()
    before = panel.frame
    panel.set(model="larger")
    assert panel.frame != before
    others = {"elsewhere": (other, exam.exam(3, seed=9, size=128))}
    with pytest.raises(ValueError, match="asks other questions"):
        pruning.bench(model, test, ("pool",), (4, 64), keep=4, pictures=2, others=others)


def test_zooprune_on_the_bench_is_the_real_one(model, vision, test):
    """Sensitivity kept for the slider gives the plan of `bench.reduce` with the same generator."""
    panel = pruning.bench(model, test, methods=("zooprune",), keeps=(8, 64), keep=8, pictures=1)
    with torch.no_grad():
        done = reduce(model, vision, "zooprune", 8, generator=torch.Generator().manual_seed(0))
    want = pruning.paint(test.images[0], done.plan, (8, 8))
    shown = picture_in(panel.draw(method="zooprune", keep=8, question=0))
    assert torch.allclose(shown, want, atol=1e-6)


def test_bench_with_a_method_of_ones_own(model, test):
    """One that is not in the package, registered or as it is, beside one that is."""
    own = Method("longest", "Longest", prune=lambda vision, keep: vision.features.norm(dim=-1))
    with register(own):
        everything = pruning.bench(model, test, keeps=(4, 64), keep=4, pictures=1)
        assert "longest" in [value for _, value in everything.controls["method"].options]
    panel = pruning.bench(model, test, ("pool", own), keeps=(4, 64), keep=4, pictures=1)
    assert ("Longest", "longest") in panel.controls["method"].options
    before = panel.frame
    panel.set(method="longest")
    assert panel.frame != before
