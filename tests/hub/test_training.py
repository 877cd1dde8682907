"""Labels, logits_to_keep and gradients inside a block: every method of the registry trains, or is
refused by name at entry."""

import pytest
import torch
import torch.nn.functional as F

from tests.hub.tiny import (
    IMAGE,
    PROMPT,
    QUESTION,
    hooks,
    make_clip,
    make_llava,
    make_qwen,
    qwen_prompt,
)
from vtlib.hub import prune, question_signals
from vtlib.pruning.registry import METHODS

MAKE = {"llava": make_llava, "qwen": make_qwen}
INPUTS = {"llava": PROMPT, "qwen": qwen_prompt((8, 8))}


def labelled(inputs):
    ids = inputs["input_ids"]
    return {**inputs, "labels": ids.masked_fill(ids == IMAGE, -100)}


def used(kind):
    """A model that has run: transformers hangs hooks of its own on it at the first forward."""
    model = MAKE[kind]().train()
    with torch.no_grad():
        model(**INPUTS[kind], output_hidden_states=True)
    return model


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
            (dict(labels=inputs["labels"][:, 1:]), "labels is torch.int64 "),
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


# ------------------------------------------------------------------------ gradients, every method
def options(method, dtype=torch.float32):
    """What a method needs on the tiny models."""
    if method == "hiprune":
        return dict(object_layer=2)
    if method == "recoverable":
        return dict(signals=question_signals(make_clip().to(dtype), QUESTION))
    return {}


def fits(kind, method, model):
    """Whether a method can run on a family; if not, it is refused by name at entry."""
    if kind == "llava" or "cls_row" not in METHODS[method].needs(num_prefix=0):
        return True
    with pytest.raises(ValueError, match=f"method={method} reads the .CLS. row"):
        prune(model, method, 5)
    return False


WEIGHED = ("prumerge",)
"""Methods whose merging weights come from attention: what is read beside the tower is a choice and
has no gradient, so theirs is not the whole loss's."""


def loss_of(model, method, inputs):
    """(the loss in a block, what was kept); methods that draw draw the same each time."""
    torch.manual_seed(0)
    dtype = inputs["pixel_values"].dtype
    with prune(model, method, 5, **options(method, dtype)) as pruned:
        loss = model(**labelled(inputs)).loss
        return loss, [group.total.index for group in pruned.images]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MAKE)
def test_gradients_are_differences_of_the_loss(kind, method):
    """(loss(w + e v) - loss(w - e v)) / 2e = g v along v = g / |g| in double precision, for the
    vision tower and for the whole model; the choice stays the same so near."""
    model = MAKE[kind]().double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in INPUTS[kind].items()}
    if kind == "qwen" and method == "recoverable":
        with pytest.raises(ValueError, match="pixel_values has shape .* needs pictures"):
            loss_of(model, method, inputs)
        return
    if method in WEIGHED or not fits(kind, method, model):
        return
    loss, kept = loss_of(model, method, inputs)
    loss.backward()
    tower = "vision_tower" if kind == "llava" else "visual.blocks"
    step = 1e-4
    for part in (tower, ""):
        found = [
            (parameter, parameter.grad / parameter.grad.norm())
            for name, parameter in model.named_parameters()
            if part in name and parameter.grad is not None
        ]
        want = sum(float((parameter.grad * v).sum()) for parameter, v in found)
        values = []
        for sign in (1, -2):  # + step, then - step
            with torch.no_grad():
                for parameter, v in found:
                    parameter.add_(sign * step * v)
                value, again = loss_of(model, method, inputs)
            values.append(float(value))
            assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
        with torch.no_grad():
            for parameter, v in found:
                parameter.add_(step * v)
        slope = (values[0] - values[1]) / (2 * step)
        assert len(found) > 20 and want > 0.5
        assert slope == pytest.approx(want, rel=1e-2)  # the norms run in single precision


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MAKE)
def test_gradient_checkpointing_changes_no_gradient(kind, method):
    """Of either kind, and also when the backward pass comes behind the block."""
    if kind == "qwen" and method == "recoverable" or not fits(kind, method, MAKE[kind]()):
        return
    grads = []
    for reentrant, behind in ((None, False), (False, False), (False, True), (True, True)):
        model = used(kind)
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        before = hooks(model)
        torch.manual_seed(0)
        with prune(model, method, 5, **options(method)):
            loss = model(**labelled(INPUTS[kind])).loss
            if not behind:
                loss.backward()
        if behind:
            loss.backward()
        assert hooks(model) == before
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    tower = "vision_tower" if kind == "llava" else "visual"
    assert sum(tower in name for name in grads[0]) > 20
    for found in grads[1:]:
        assert found.keys() == grads[0].keys()
        for name, grad in grads[0].items():
            assert grad.isfinite().all()
            torch.testing.assert_close(found[name], grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", MAKE)
def test_two_prompts_before_one_backward_pass(kind):
    """Gradients of a sum are the sum of gradients: nothing of the first prompt is lost."""
    model, inputs = MAKE[kind]().train(), labelled(INPUTS[kind])
    other = {**inputs, "labels": inputs["labels"].roll(1, dims=1)}
    with prune(model, "fastv", 5):
        for batch in (inputs, other):
            model(**batch).loss.backward()
        want = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        losses = [model(**batch).loss for batch in (inputs, other)]
        sum(losses).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(want, found, strict=True):
        torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-4)


# -------------------------------------------------------------------------------- loops that train
@pytest.mark.parametrize("method", ["divprune", "fastv", "visiondrop"])
def test_a_loop_of_training_learns(method):
    model = used("llava")
    before = hooks(model)
    step = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    with prune(model, method, 4):
        for _ in range(3):
            step.zero_grad()
            loss = model(**labelled(PROMPT)).loss
            loss.backward()
            step.step()
            losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    assert hooks(model) == before


def test_trainer(tmp_path):
    """Two steps of transformers' Trainer are two steps of a plain loop, weights and all."""
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    row = {name: value[0] for name, value in labelled(PROMPT).items()}
    settings = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    model, plain = used("llava"), make_llava()
    start = [parameter.clone() for parameter in plain.parameters()]
    before = hooks(model)
    with prune(model, "divprune", 4):
        Trainer(model, settings, train_dataset=[row] * 4).train()
    step = torch.optim.SGD(plain.train().parameters(), lr=1e-2)
    batch = {name: torch.stack([value] * 2) for name, value in row.items()}
    with prune(plain, "divprune", 4):
        for _ in range(2):
            step.zero_grad()
            plain(**batch).loss.backward()
            step.step()
    assert hooks(model) == before
    moved = [
        not torch.equal(a, b) for a, b in zip(model.parameters(), start, strict=True)
    ]
    assert sum(moved) > 100
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
