"""The pruning bench and its pictures: what is drawn is what the plan says, what is billed is what was run."""

import re

import pytest
import torch

from vtlib import teach
from vtlib.pruning.bench import encode, reduce
from vtlib.pruning.method import Method
from vtlib.pruning.registry import METHODS, register
from vtlib.teach import pruning
from vtlib.tokens import Plan, keep_all
from vtlib.vlm import TinyVLM, exam
from vtlib.vlm.tinyvlm import words

QUESTION = "is there a crab?"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyVLM(exam.VOCABULARY, dict(embed_dim=32, num_layers=4, num_heads=4, place_dim=8),
                   dict(embed_dim=32, num_layers=6, num_heads=4, hidden_dim=48)).eval()


@pytest.fixture(scope="module")
def test():
    return exam.exam(3, size=64)


@pytest.fixture(scope="module")
def vision(model, test):
    with torch.no_grad():
        return encode(model, test.images[:1])                             # 8 x 8 patches


# --------------------------------------------------------------------------------------------------------------- pictures
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
                assert torch.allclose(out[n, :, 0, 0], torch.tensor([0, 0x72 / 255, 0xB2 / 255]))        # the frame
            else:
                assert torch.allclose(inner[0], inner[1]) and inner.min() > 0.7


def test_merged_patches_carry_the_colour_of_their_slot():
    """Six patches: 0 and 3 into slot 0, 1 alone in slot 1, 2 and 4 into slot 2, 5 nowhere."""
    plan = Plan(torch.tensor([[0, 1, 2]]), 6, torch.tensor([[0, 3, 1, 2, 4]]), torch.tensor([[0, 0, 1, 2, 2]]), torch.ones(1, 5))
    picture = torch.full((3, 16, 24), 0.5)
    out = tiles(pruning.paint(picture, plan, (2, 3)), (2, 3))
    middle, corner = out[:, :, 8, 8], out[:, :, 0, 0]
    assert torch.allclose(middle[:3], torch.full((3, 3), 0.5))                   # where slots sit the picture shows
    assert not torch.allclose(middle[3], middle[4]) and not torch.allclose(middle[3], torch.full((3,), 0.5))
    assert torch.allclose(middle[3], 0.225 + 0.55 * corner[0]) and torch.allclose(middle[4], 0.225 + 0.55 * corner[2])
    assert torch.allclose(middle[5], torch.full((3,), 0.84))                     # dropped: pale
    assert torch.allclose(corner[1], torch.tensor([0, 0x72 / 255, 0xB2 / 255]))  # alone in its slot: framed as kept


def test_frames_tell_roles_and_prefix_tokens_are_left_out():
    plan = Plan(torch.tensor([[0, 2, 5]]), 5 + 1, role=torch.tensor([[1, 0, 2]]), roles=("a", "b", "c"), num_prefix=1)
    out = tiles(pruning.paint(torch.zeros(3, 8, 40), plan, (1, 5)), (1, 5))
    corner = out[:, :, 0, 0]
    want = [torch.tensor([int(teach.PALETTE[k][i : i + 2], 16) / 255 for i in (1, 3, 5)]) for k in (0, 2)]
    assert torch.allclose(corner[1], want[0]) and torch.allclose(corner[4], want[1])      # tokens 2 and 5 are patches 1 and 4
    assert (corner[[0, 2, 3]] > 0.7).all()


def test_order_shows_the_first_steps_only():
    plan = Plan(torch.tensor([[0, 1, 2]]), 4)
    out = tiles(pruning.paint(torch.rand(3, 16, 16), plan, (2, 2), order=[2]), (2, 2))
    assert [bool((t[0] - t[1]).abs()[3:-3, 3:-3].max() < 1e-6) for t in out] == [True, True, False, True]


def test_paint_says_what_does_not_fit():
    picture, plan = torch.rand(3, 16, 16), Plan(torch.tensor([[0]]), 4)
    with pytest.raises(ValueError, match=re.escape("the plan is for 4 patches but the grid 2 x 3 has 6")):
        pruning.paint(picture, plan, (2, 3))
    with pytest.raises(ValueError, match="colour='role'"):
        pruning.paint(picture, plan, (2, 2), colour="role")
    with pytest.raises(ValueError, match="no roles"):
        pruning.paint(picture, plan, (2, 2), colour="roles")


def test_draw_writes_how_many_of_each_role():
    plan = Plan(torch.tensor([[0, 2, -1]]), 4, role=torch.tensor([[1, 0, 0]]), roles=("anchor", "buffer"))
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


# ----------------------------------------------------------------------------------------------------------------- the bill
@pytest.mark.parametrize("name", METHODS)
def test_the_bill_is_what_was_run(model, vision, name):
    """Counted tokens, FLOPs and cache bytes equal those of the real prefill, for methods before and inside the decoder."""
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


# ---------------------------------------------------------------------------------------------------------------- the bench
@pytest.fixture(scope="module")
def bench(model, test):
    return pruning.bench(model, test, keeps=(4, 12, 64), keep=12, pictures=2)


def test_bench_moves(bench):
    frames = {bench.frame}
    for values in ({"keep": 4}, {"method": "tome"}, {"question": 1}, {"method": "fastv", "keep": 12}, {"method": "zooprune"}, {"keep": 64}):
        bench.set(**values)
        frames.add(bench.frame)
    assert len(frames) == 7


def test_bench_repeats_itself(bench):
    """A setting's result is kept: its picture, time included, does not change when one comes back to it."""
    bench.set(method="random", keep=12, question=0)
    first = bench.frame
    bench.set(method="random", keep=4)
    bench.set(keep=12)
    assert bench.frame == first


def test_bench_offers_its_methods_and_questions(model, test, bench):
    assert [value for _, value in bench.controls["method"].options] == list(METHODS)
    assert len(bench.controls["question"].options) in (2, 3, 4) and bench.controls["question"].options[0][0].startswith("1: ")
    few = pruning.bench(model, test, methods=("pool", "tome"), keeps=(4, 64), keep=4, pictures=1)
    assert [value for _, value in few.controls["method"].options] == ["pool", "tome"] and few.values["method"] == "pool"
    third = pruning.bench(model, test, methods=("pool", "tome"), keeps=(4, 64), keep=4, pictures=[2])
    want = pruning.paint(test.images[2], reduce(model, test.images[2:3], "pool", 4).plan, (8, 8))
    drawn = torch.as_tensor(third.draw(method="pool", keep=4, question=0).axes[0].images[0].get_array()).permute(2, 0, 1)
    assert torch.allclose(drawn, want, atol=1e-6)
    with pytest.raises(ValueError, match="method='best'"):
        pruning.bench(model, test, methods=("best",))
    with pytest.raises(ValueError, match="keep=5 is not among"):
        pruning.bench(model, test, keep=5)


def test_zooprune_on_the_bench_is_the_real_one(model, vision, test):
    """Sensitivity kept for the slider gives the plan of `bench.reduce` with the same generator."""
    panel = pruning.bench(model, test, methods=("zooprune",), keeps=(8, 64), keep=8, pictures=1)
    with torch.no_grad():
        done = reduce(model, vision, "zooprune", 8, generator=torch.Generator().manual_seed(0))
    want = pruning.paint(test.images[0], done.plan, (8, 8))
    drawn = torch.as_tensor(panel.draw(method="zooprune", keep=8, question=0).axes[0].images[0].get_array()).permute(2, 0, 1)
    assert torch.allclose(drawn, want, atol=1e-6)


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
