"""Labels, logits_to_keep and gradients inside a block."""

import pytest
import torch
import torch.nn.functional as F

from tests.hub.tiny import IMAGE, PROMPT, make_llava, qwen_prompt
from vtlib.hub import prune


def labelled(inputs):
    ids = inputs["input_ids"]
    return {**inputs, "labels": ids.masked_fill(ids == IMAGE, -100)}


def by_hand(logits, labels, pruned):
    """Mean cross-entropy of each place's next label, over what is left of the prompt."""
    labels = labels.gather(1, pruned.columns).masked_fill(~pruned.valid, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@pytest.mark.parametrize("kind", ["llava", "qwen"])
@pytest.mark.parametrize("method", ["divprune", "fastv", "transprune"])
def test_labels_follow_the_tokens(llava, qwen, kind, method):
    model, inputs = (llava, PROMPT) if kind == "llava" else (qwen, qwen_prompt((8, 8)))
    inputs = labelled(inputs)
    with torch.no_grad(), prune(model, method, 4) as pruned:
        out = model(**inputs)
        torch.testing.assert_close(out.loss, by_hand(out.logits, inputs["labels"], pruned))
        pair = model(**inputs, return_dict=False)
        assert torch.equal(pair[0], out.loss) and torch.equal(pair[1], out.logits)
        for more, message in (
            (dict(labels=inputs["labels"][:, 1:]), "labels has shape"),
            (dict(logits_to_keep=2), "labels and logits_to_keep together"),
            (dict(shift_labels=inputs["labels"]), "shift_labels is not supported"),
        ):
            with pytest.raises(ValueError, match=message):
                model(**{**inputs, **more})


def test_logits_to_keep_means_columns(llava):
    with torch.no_grad(), prune(llava, "divprune", 4) as pruned:
        every = llava(**PROMPT).logits
        kept = llava(**PROMPT, logits_to_keep=torch.tensor([0, 2, 20, -1])).logits
        torch.testing.assert_close(kept, every[:, [0, 2, 8, 10]], atol=1e-5, rtol=1e-4)
        gone = (pruned.columns[:, :, None] == torch.arange(23)).any(1).logical_not().any(0)
        with pytest.raises(ValueError, match="which are pruned away"):
            llava(**PROMPT, logits_to_keep=gone.nonzero()[0])
        with pytest.raises(ValueError, match="logits_to_keep=23"):
            llava(**PROMPT, logits_to_keep=23)


@pytest.mark.parametrize("method", ["fastervlm", "divprune", "visiondrop", "fastv", "transprune"])
def test_gradient_checkpointing_changes_no_gradient(method):
    grads = []
    for checkpointing in (False, True):
        model = make_llava().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with prune(model, method, 4):
            model(**labelled(PROMPT)).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert any("vision_tower" in name for name in grads[0])
    for name, grad in grads[0].items():
        assert grad.isfinite().all()
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4)


def test_a_loop_of_training_learns():
    model = make_llava().train()
    step = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    with prune(model, "divprune", 4):
        for _ in range(3):
            step.zero_grad()
            loss = model(**labelled(PROMPT)).loss
            loss.backward()
            step.step()
            losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
