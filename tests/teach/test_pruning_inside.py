"""States of the decoder layer by layer, and the widgets that show them."""

import pytest
import torch

from tests.vlm.tiny import make_tinyvlm
from vtlib.pruning import aim, transprune
from vtlib.teach import pruning
from vtlib.vlm import exam
from vtlib.vlm.layers import transition

ASKED = ("Is there a crab?", "What does the sign say?")


@pytest.fixture(scope="module")
def made():
    """An untrained model, two pictures of 8 x 8 patches and their visual tokens."""
    model = make_tinyvlm()
    images = exam.scenes(2, 0, size=64).images
    with torch.no_grad():
        return model, images, model.encode(images).tokens


@pytest.fixture(scope="module")
def asked(made):
    _, images, tokens = made
    return list(zip(images, tokens, ASKED, strict=True))


# ------------------------------------------------------------------------------------------ states
@torch.no_grad()
def test_states_are_those_of_a_run_in_which_nothing_is_cut(made):
    model, _, tokens = made
    states = pruning.states_by_layer(model, tokens, list(ASKED))
    assert list(states) == [1, 2, 3, 4, 5]
    x, visual, valid = model.prompt(tokens, list(ASKED))
    for after, state in states.items():
        assert list(state.transitions) == list(range(1, after + 1))
        assert (state.after, state.visual, state.alive.shape) == (after, visual, (2, 64))
    whole = model.prefill(tokens, list(ASKED))[1]
    last = states[5].hidden
    rope = model.decoder.rope(states[5].positions)
    mask = torch.ones(last.shape[1], last.shape[1]).tril().bool() & valid[:, None, None]
    x, _, _ = model.decoder.layers[5](last, rope, mask)
    torch.testing.assert_close(model.decoder.norm(x)[valid], whole.hidden[valid])


@torch.no_grad()
def test_states_know_what_the_modules_did(made):
    model, _, tokens = made
    states = pruning.states_by_layer(model, tokens[:1], [ASKED[0]])
    x = model.prompt(tokens[:1], [ASKED[0]])[0]
    layer = model.decoder.layers[0]
    seen = layer(x, model.decoder.rope(states[1].positions), watch=True)[2]
    torch.testing.assert_close(states[5].transitions[1].mlp, seen["mlp"])
    assert transition(x, x)[0].allclose(torch.ones(x.shape[:2]))


# ----------------------------------------------------------------------------------------- widgets
def title(ax):
    """Wherever the style at hand puts it."""
    return ax.get_title() or ax.get_title(loc="left")


def dots(ax):
    return [line.get_xydata() for line in ax.get_lines()]


def test_the_transition_panel_marks_the_best_patches(made, asked):
    model, _, tokens = made
    panel = pruning.transition_panel(model, asked, (8, 8), keep=5)
    fig = panel.draw(**panel.values | {"question": 1, "layer": 2, "module": "mlp", "keep": 7})
    titles = [title(ax) for ax in fig.axes]
    assert titles == ["magnitude m", "turn 1 - d", "TTV, summed so far", "IGA"]
    state = pruning.states_by_layer(model, tokens[1:], [ASKED[1]])[2]
    m = state.transitions[2].mlp[0][0, state.visual]
    ran = [state.transitions[layer] for layer in (1, 2)]
    both = transprune.layer_ttv(ran).sum(dim=1)[0]
    for ax, score in zip(fig.axes[::2], (m, both), strict=True):
        (marked,) = dots(ax)
        best = sorted(score.topk(7).indices.tolist())
        want = [(8 * (k % 8) + 3.5, 8 * (k // 8) + 3.5) for k in best]
        assert sorted(map(tuple, marked.tolist())) == sorted(want)
    panel.set(question=1, layer=5, module="mlp", keep=20)


def test_the_ramp_panel_counts_tokens_and_work(made, asked):
    model, _, tokens = made
    asked_for = []

    def rank(logits, tau, iterations):
        asked_for.append((tau, iterations))
        return aim.page_rank(logits[None], tau, iterations)[0]

    panel = pruning.ramp_panel(model, asked, rank, (8, 8), keep=5)
    knobs = {"steps": 1, "tau": 1.0, "iterations": 2, "l1": 2.0, "width": 2.1}
    fig = panel.draw(**panel.values | knobs)
    assert asked_for[-1] == (1.0, 2)
    heights = [bar.get_height() for bar in fig.axes[2].patches]
    left = [int(32 * aim.rate(layer, 2.0, 4.1)) for layer in range(1, 6)]
    assert heights == [32, *left] and left[-1] == 0
    assert len(dots(fig.axes[1])[0]) == 5
    whole = panel.draw(**panel.values | {"steps": 0, "l1": 5.0, "width": 4.0})
    assert "does 100% of" in title(whole.axes[2])
    assert "32 tokens" in title(fig.axes[0])
    assert "layer 3" in title(fig.axes[1])
