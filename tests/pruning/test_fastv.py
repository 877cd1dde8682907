"""FastV against plain loops: the last token's row of the layer that has just run."""

import math

import pytest
import torch

from vtlib.pruning import fastv
from vtlib.pruning.fastv import score, stages
from vtlib.tokens.cost import decoder_flops, tokens_per_layer
from vtlib.vlm import Decoder
from vtlib.vlm.decoder import rotate

NUM_VISUAL, DIM, VISUAL, SIZE = 12, 16, slice(3, 15), 20


def build(kv=2, dtype=torch.float64):
    torch.manual_seed(0)
    model = Decoder(DIM, 4, 4, kv, 24)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.dim() > 1 else torch.nn.init.ones_(p)
    return model.to(dtype).eval().requires_grad_(False)


def sequence(batch=2, size=SIZE, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, size, DIM, generator=generator, dtype=torch.float64).to(dtype)


def row_by_hand(model, x, number, last):
    """Mean over heads of the weights that token `last` gives in layer `number` (1-based), for one
    sample (S, D)."""
    x = x[None]
    for layer in model.layers[: number - 1]:
        x, _, _ = layer(x, model.rope(torch.arange(x.shape[1])[None]))
    layer, rope = model.layers[number - 1], model.rope(torch.arange(x.shape[1])[None])
    y = layer.input_layernorm(x)
    attn = layer.self_attn
    q, k = (
        rotate(project(y).unflatten(-1, (-1, 4)).transpose(1, 2), *rope)[0]
        for project in (attn.q_proj, attn.k_proj)
    )
    rows = []
    for head in range(4):
        logits = k[head * len(k) // 4, : last + 1] @ q[head, last] / 2
        rows.append(torch.softmax(logits, 0)[VISUAL])
    return torch.stack(rows).mean(0)


READ = [(2, "last", 2), (2, "next", 3), (1, "last", 1), (0, "next", 1), (3, "next", 4)]


@pytest.mark.parametrize("after, layer, number", READ)
@pytest.mark.parametrize("kv", [4, 2])
def test_last_row_by_hand(after, layer, number, kv):
    model, x = build(kv), sequence()
    valid = torch.arange(SIZE) < torch.tensor([[SIZE], [SIZE - 2]])     # the second ends earlier
    cuts = stages(4, 5, NUM_VISUAL, after, layer)
    run = model.prefill(x, VISUAL, cuts, valid, fastv.METHOD.positions)
    for b, last in enumerate((SIZE - 1, SIZE - 3)):
        want = row_by_hand(model, x[b], number, last)
        assert run.plan.index[b].tolist() == sorted(want.argsort(descending=True)[:5].tolist())
        behind = slice(VISUAL.stop, None)
        got = score(run.states[0].attention(behind, layer), torch.full((2,), last - VISUAL.stop))
        torch.testing.assert_close(got[b, VISUAL], want)
    assert run.cache.lengths == [20] * after + [13] * (4 - after)


def test_batch_of_one():
    model, x = build(), sequence()
    run = model.prefill(x, VISUAL, stages(4, 5, NUM_VISUAL), positions="keep")
    for b in range(2):
        one = model.prefill(x[b:b + 1], VISUAL, stages(4, 5, NUM_VISUAL), positions="keep")
        assert torch.equal(one.plan.index, run.plan.index[b:b + 1])
    assert not torch.equal(run.plan.index[0], run.plan.index[1])


def test_it_reads_the_question():
    model, x = build(), sequence(1)
    y = x.clone()
    generator = torch.Generator().manual_seed(4)
    y[:, -1] += 3 * torch.randn(DIM, dtype=torch.float64, generator=generator)
    scores = [score(s.attention(slice(15, None), "last"), torch.tensor([4]))[:, VISUAL] for s in
              (model.prefill(t, VISUAL, stages(4, 5, NUM_VISUAL)).states[0] for t in (x, y))]
    assert (scores[0] - scores[1]).abs().max() > 0.05 * scores[0].max()


def test_masking_gives_the_same():
    model, x = build(), sequence()
    cuts = stages(4, 5, NUM_VISUAL)
    drop, mask = (
        model.prefill(x, VISUAL, cuts, positions="keep", mode=mode) for mode in ("drop", "mask")
    )
    assert torch.equal(drop.plan.index, mask.plan.index)
    torch.testing.assert_close(drop.hidden[:, -5:], mask.hidden[:, -5:], atol=1e-9, rtol=1e-6)


def test_keep_all_is_the_identity():
    model, x = build(dtype=torch.float32), sequence(dtype=torch.float32)
    whole = model.prefill(x, VISUAL, stages(4, 1.0, NUM_VISUAL), positions="keep")
    assert torch.equal(whole.hidden, model(x))


def test_ties_go_to_the_first():
    model, x = build(), sequence(1)
    model.layers[0].self_attn.k_proj.weight.zero_()                              # every key alike
    run = model.prefill(x, VISUAL, stages(4, 4, NUM_VISUAL, after=1))
    assert run.plan.index.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("ratio, share", [(0.5, 0.526), (0.25, None)])
def test_flops_as_transprune_reports_them(ratio, share):
    """K = 2, R = 50 %: 52.6 % of LLaVA-1.5's FLOPs, visual tokens alone."""
    def flops(cuts):
        return decoder_flops(tokens_per_layer(32, 576, 0, cuts), 4096, 11008, gated=True)
    got = flops(stages(32, ratio, 576)) / flops(())
    assert math.isclose(got, share or 2 / 32 + 30 / 32 * 0.244, abs_tol=3e-3)


def test_mean_budget():
    (cut,) = stages(6, 128, 256, after=2, budget="mean")
    assert (cut.after, cut.keep) == (2, 64) and sum(tokens_per_layer(6, 256, 0, [cut])) / 6 == 128
    assert stages(6, 1.0, 256, budget="mean")[0].keep == 256
    with pytest.raises(ValueError, match="at least 86.0 of 256"):
        stages(6, 64, 256, after=2, budget="mean")
    assert stages(6, 64, 256)[0].keep == 64 and stages(6, 0.25, 256)[0].keep == 64


def test_meta_and_bf16():
    with torch.device("meta"):
        cuts = stages(4, 5, NUM_VISUAL)
        x = torch.empty(2, SIZE, DIM)
        run = Decoder(DIM, 4, 4, 2, 24).prefill(x, VISUAL, cuts, positions="keep")
        assert run.hidden.is_meta and run.hidden.shape == (2, 13, DIM)
    model, x = build(dtype=torch.bfloat16), sequence(dtype=torch.bfloat16)
    run = model.prefill(x, VISUAL, stages(4, 5, NUM_VISUAL), positions="keep")
    assert run.hidden.dtype == torch.bfloat16 and run.hidden.isfinite().all()


@pytest.mark.parametrize("arguments, words", [
    (dict(after=4), "after=4 but it must lie in 1 ... 3"),
    (dict(after=0), "1 ... 3"),
    (dict(after=-1, layer="next"), "0 ... 3"),
    (dict(keep=13), "keep=13 but there are 12"),
    (dict(keep=0), "keep=0"),
    (dict(layer="current"), "layer='current'"),
    (dict(budget="sum"), "budget='sum'"),
    (dict(num_layers="4"), "num_layers='4'"),
    (dict(num_visual=12.0), "num_visual=12.0"),
])
def test_stages_refuse(arguments, words):
    with pytest.raises(ValueError) as error:
        stages(**{**dict(num_layers=4, keep=5, num_visual=12), **arguments})
    assert words in str(error.value)


@pytest.mark.parametrize("change, words", [
    (dict(last=3), "last is a int but needs to be torch.int64 (B,) = (2,)"),
    (dict(last=torch.tensor([1])), "last is torch.int64 (1,)"),
    (dict(last=torch.tensor([1, 3])), "last[1]=3 is no place"),
    (dict(attention=torch.rand(2, 3, 4)), "4 axes (B, heads, R, S)"),
])
def test_a_row_that_is_not_there(change, words):
    with pytest.raises(ValueError) as error:
        score(**{**dict(attention=torch.rand(2, 2, 3, 4), last=torch.tensor([1, 2])), **change})
    assert words in str(error.value)


def test_a_prompt_without_question_is_refused():
    with pytest.raises(ValueError, match="no text behind"):
        build().prefill(sequence(1, 15), VISUAL, stages(4, 5, NUM_VISUAL))
