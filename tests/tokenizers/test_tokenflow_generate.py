"""TokenFlow's generation: what a scale reads, and how its codes are drawn again and again."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.tokenizers.tokenflow import SharedScales
from vtlib.tokenizers.tokenflow_generate import STEPS, num_passes, sample_scales, scale_input

from ..wrong import raw_errors

SCALES = (1, 2, (2, 3), 4)
PLACES = (1, 4, 6, 16)


def quantiser():
    torch.manual_seed(0)
    return SharedScales(5, 12, SCALES, semantic_dim=3).eval()


def indices_of(levels, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(12, (batch, sum(PLACES[:levels])), generator=generator)


def up(x, size):
    return F.interpolate(x, size, mode="bicubic")


def test_a_scale_reads_the_sum_of_those_before_brought_to_its_size():
    net, indices = quantiser(), indices_of(3)
    first, second, third = (
        net.first.table()[part].permute(0, 3, 1, 2) for _, part in net.parts(indices)
    )
    two = up(first, (2, 2)) + second
    three = up(two, (2, 3)) + third
    want = {1: up(first, (2, 2)), 2: up(two, (2, 3)), 3: up(three, (4, 4))}
    again = {1: first, 2: two, 3: three}
    for levels in (1, 2, 3):
        given = indices[:, :sum(PLACES[:levels])]
        got = scale_input(net, given)
        assert got.shape == (2, PLACES[levels], 5)
        torch.testing.assert_close(got, want[levels].flatten(2).mT)
        got = scale_input(net, given, refine=True)
        assert got.shape == (2, PLACES[levels - 1], 5)
        torch.testing.assert_close(got, again[levels].flatten(2).mT)
    assert scale_input(net, indices_of(4), refine=True).shape == (2, 16, 5)
    with pytest.raises(ValueError, match="no scale comes next"):
        scale_input(net, indices_of(4))


def test_25_passes_for_9_scales():
    assert num_passes(9) == 25 and num_passes(1) == 1 and num_passes(9, 1) == 9
    assert STEPS == ((1200, 0.8), (100, 0.8), (1, 0.0))


class Model:
    """Logits that lean on what was drawn, and a record of each call."""

    def __init__(self, codes=12, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.codes, self.calls = codes, []

    def __call__(self, indices, level, refine):
        self.calls.append((indices.clone(), level, refine))
        shape = (len(indices), PLACES[level], self.codes)
        return tuple(torch.randn(shape, generator=self.generator) for _ in range(2))


def test_a_sample_is_fed_back_at_its_own_scale():
    model, steps = Model(), ((12, 0.8), (4, 0.8), (1, 0.0))
    generator = torch.Generator().manual_seed(2)
    drawn = sample_scales(model, SCALES, 3, steps, generator=generator)
    assert drawn.shape == (3, 27) and drawn.dtype == torch.int64
    assert len(model.calls) == num_passes(4) == 10
    assert [(level, refine) for _, level, refine in model.calls] == [
        (0, False), (1, False), (1, True), (1, True), (2, False), (2, True), (2, True),
        (3, False), (3, True), (3, True),
    ]
    lengths = [len(indices[0]) for indices, _, _ in model.calls]
    assert lengths == [0, 1, 5, 5, 5, 11, 11, 11, 27, 27]
    # what is read in the last pass over a scale is the sample of the pass before, then replaced
    assert not torch.equal(model.calls[3][0][:, 1:], drawn[:, 1:5])
    assert torch.equal(model.calls[4][0], drawn[:, :5])
    assert torch.equal(model.calls[-1][0][:, :11], drawn[:, :11])


def test_the_last_pass_takes_the_best_of_the_guided_scores():
    """Guidance grows from 0 at the first scale to cfg at the last."""
    seen = []

    def logits(indices, level, refine):
        pair = Model.__call__(model, indices, level, refine)
        seen.append(pair)
        return pair

    model = Model()
    drawn = sample_scales(logits, SCALES, 2, ((1, 0.0),), cfg=6.0)
    assert len(seen) == 4
    for level, part in enumerate(drawn.split(PLACES, dim=1)):
        cond, uncond = seen[level]
        t = 6.0 * level / 3
        assert torch.equal(part, ((1 + t) * cond - t * uncond).argmax(dim=-1))


def test_filters_narrow():
    """Each pass draws among fewer candidates."""
    scores = torch.arange(12.0).flip(0) / 100
    ranks = [set(), set(), set()]
    passes = []

    def logits(indices, level, refine):
        if refine:
            ranks[passes[-1]].update(indices[:, -PLACES[level]:].flatten().tolist())
        passes.append(passes[-1] + 1 if refine else 0)
        even = scores.expand(len(indices), PLACES[level], 12)
        return even, even

    steps, generator = ((9, 0.0), (3, 0.0), (1, 0.0)), torch.Generator().manual_seed(0)
    drawn = sample_scales(logits, SCALES, 20, steps, generator=generator)
    assert ranks[0] == set(range(9)) and ranks[1] == set(range(3))
    assert not drawn[:, 1:].any() and drawn[:, 0].any()


def test_seeds():
    runs = [
        sample_scales(Model(), SCALES, 2, ((9, 0.9),), generator=torch.Generator().manual_seed(s))
        for s in (3, 3, 4)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_it_decodes():
    net = quantiser()
    drawn = sample_scales(Model(), SCALES, 2, ((9, 0.9), (1, 0.0)))
    assert net.decode(drawn).shape == (2, 4, 4, 5)


def test_what_does_not_fit_is_refused():
    for steps in ((), ((1,),), ((1, 2, 3),), ((-1, 0.5),), ((1, 1.5),), "ab", 3):
        with pytest.raises(ValueError, match="steps"):
            sample_scales(Model(), SCALES, 1, steps)
    with pytest.raises(ValueError, match="top_k"):
        sample_scales(Model(), SCALES)                        # 12 codes, and 1200 asked for
    with pytest.raises(ValueError, match=r"scale 0 has shape .*needs \(\*\(2, 1\), K\)"):
        sample_scales(lambda *given: (torch.rand(1, 1, 12),) * 2, SCALES, 2, ((1, 0),))
    calls = {
        "scale_input": (scale_input, dict(quantizer=quantiser(), indices=indices_of(2),
                                          refine=True)),
        "num_passes": (num_passes, dict(num_levels=3, num_steps=2)),
        "sample_scales": (sample_scales, dict(
            logits=Model(), scales=SCALES, batch=2, steps=((9, 0.9), (1, 0.0)), cfg=1.5,
            generator=torch.Generator("cpu"),
        )),
    }
    found = {name: raw_errors(*call, part=True) for name, call in calls.items()}
    assert {name: errors for name, errors in found.items() if errors} == {}
