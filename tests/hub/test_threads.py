"""Threads, copies and broken forwards in a block: right results or a ValueError, and afterwards the
model is the same to the last bit."""

import copy
import pickle
import threading

import pytest
import torch

from tests.hub.tiny import PROMPT, greedy, hooks, make_llava, prompt
from vtlib.hub import prune
from vtlib.hub.hooks import Own


def in_threads(*functions):
    """Run all at once; what each gave, or its exception."""
    out = [None] * len(functions)

    def run(number):
        try:
            with torch.no_grad():
                out[number] = functions[number]()
        except Exception as error:
            out[number] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def test_fields_of_a_thread():
    """What one thread sets another does not see, and a field that nobody declared is an error."""

    class Fields(Own):
        number: int | None = None

    own = Fields()

    def set_number(number):
        found = own.number
        own.number = number
        return found, own.number

    assert in_threads(lambda: set_number(1), lambda: set_number(2)) == [(None, 1), (None, 2)]
    assert own.number is None
    for wrong in (lambda: own.nubmer, lambda: setattr(own, "nubmer", 1)):
        with pytest.raises(AttributeError, match="nubmer"):
            wrong()


@pytest.mark.parametrize("method", ["fastervlm", "hiprune", "fastv", "transprune"])
def test_two_threads_in_one_block(llava, method):
    options = dict(object_layer=2) if method == "hiprune" else {}
    other = prompt([1, 5, "i", 7, 8], [1, 6, "i", 9, 10], seed=3)
    with torch.no_grad():
        full = llava(**PROMPT, output_hidden_states=True).logits
        before = hooks(llava)
        with prune(llava, method, 4, **options) as pruned:
            alone = [greedy(llava, inputs) for inputs in (PROMPT, other)]

            def words(inputs, size):
                found = [greedy(llava, inputs) for _ in range(3)]
                assert pruned.columns.shape[1] == size
                return found

            both = in_threads(lambda: words(PROMPT, 11), lambda: words(other, 8))
        for want, found in zip(alone, both, strict=True):
            assert isinstance(found, list), found
            assert all(torch.equal(one, want) for one in found)
        assert hooks(llava) == before and torch.equal(llava(**PROMPT).logits, full)
    assert llava.model.vision_tower.config._attn_implementation == "sdpa"


def test_a_thread_that_was_there_before(llava):
    """It is refused rather than pruned without a word; a copy of the model is not pruned."""
    go, out = threading.Event(), []

    def outside():
        go.wait()
        try:
            with torch.no_grad():
                out.append(llava(**PROMPT))
        except ValueError as error:
            out.append(error)

    thread = threading.Thread(target=outside)
    thread.start()
    with prune(llava, "divprune", 4):
        go.set()
        thread.join()
        [refused] = in_threads(lambda: prune(llava, "fastv", 4).__enter__())
    assert isinstance(out[0], ValueError) and "was running before" in str(out[0])
    assert isinstance(refused, ValueError) and "is being pruned already" in str(refused)


@torch.no_grad()
def test_copies_in_a_block_are_not_pruned():
    llava, full = make_llava(), make_llava()(**PROMPT).logits
    with prune(llava, "fastervlm", 4):  # pickled before transformers hangs hooks of its own on it
        copies = [copy.deepcopy(llava), pickle.loads(pickle.dumps(llava))]
        assert llava(**PROMPT).logits.shape[1] == 11
        for model in copies:
            assert torch.equal(model(**PROMPT).logits, full)
            assert greedy(model, PROMPT).shape == (2, 27)
    for model in (llava, *copies):
        assert torch.equal(model(**PROMPT).logits, full)


@torch.no_grad()
def test_after_a_broken_forward(llava):
    full, answers = llava(**PROMPT).logits, iter([True, False])

    def method(vision, keep):
        if next(answers):
            raise RuntimeError("stop")
        return vision.features.norm(dim=-1)

    with prune(llava, method, 4):
        with pytest.raises(RuntimeError, match="stop"):
            llava(**PROMPT)
        assert llava(**PROMPT).logits.shape[1] == 11
        text = {k: v[:, -4:] for k, v in PROMPT.items() if k != "pixel_values"}
        inside = llava(**text).logits
    assert torch.equal(llava(**PROMPT).logits, full)
    assert torch.equal(llava(**text).logits, inside)
