"""torch.compile of the whole model and a block of `prune`, in either order."""

import pytest
import torch

from tests.hub.tiny import CLOSE, PROMPT, hooks
from vtlib.hub import prune

METHODS = ["fastervlm", "fastv"]                           # before the decoder, and inside it


def logits(model, method):
    with torch.no_grad(), prune(model, method, 5):
        return model(**PROMPT).logits


@pytest.mark.nightly
@pytest.mark.parametrize("first", ["compiled", "pruned"])
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_model_is_pruned_as_before(llava, method, first):
    with torch.no_grad():
        full = llava(**PROMPT).logits
    want, before = logits(llava, method), hooks(llava)
    torch._dynamo.reset()
    compiled = torch.compile(llava, backend="eager")
    with torch.no_grad():
        if first == "compiled":
            torch.testing.assert_close(compiled(**PROMPT).logits, full, **CLOSE)
        with prune(llava, method, 5):
            got = compiled(**PROMPT).logits
        torch.testing.assert_close(got, want, **CLOSE)
        torch.testing.assert_close(compiled(**PROMPT).logits, full, **CLOSE)
    assert hooks(llava) == before
