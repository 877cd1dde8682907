"""The histogram of similarities: no official code runs, so it is held against loops over pairs and
bins in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vtlib.tokenizers.glotok_histogram import (
    centres,
    histogram_loss,
    soft_histogram,
    teacher_centres,
    teacher_histogram,
)

from ..settings import SETTINGS
from ..wrong import raw_errors


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def brute(tokens, num_bins=40, sharpness=200.0):
    """P of equations 4 to 6, one pair and one bin at a time."""
    rows = tokens.double().tolist()
    sums = [0.0] * num_bins
    for i, a in enumerate(rows):
        for b in rows[i:]:
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            cosine = dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
            for k in range(num_bins):
                sums[k] += math.exp(-sharpness * (cosine - (-1 + 2 * k / (num_bins - 1))) ** 2)
    return torch.tensor(sums, dtype=torch.float64) / sum(sums)


def all_at_once(tokens, teacher, sharpness, eps=1e-8):
    """L_hist by torch's own gradient, with a tensor of n^2 N numbers."""
    unit = F.normalize(tokens, dim=1)
    i, j = torch.triu_indices(len(tokens), len(tokens))
    where = centres(len(teacher), unit)
    sums = torch.exp(-sharpness * ((unit @ unit.T)[i, j][:, None] - where).square()).sum(0)
    student = sums / sums.sum() + eps
    return ((teacher + eps) * ((teacher + eps) / student).log()).sum()


# ------------------------------------------------------------------------------- the histogram
def test_the_hand_example():
    tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    got = soft_histogram(tokens, num_bins=5, sharpness=50)
    want = torch.tensor([1 / 6, 0, 1 / 3, 0, 1 / 2])              # D = {1, 0, -1, 1, 0, 1}
    assert (got - want).abs().max() < 4e-6
    torch.testing.assert_close(centres(5, got), torch.tensor([-1, -0.5, 0, 0.5, 1]))


@pytest.mark.parametrize(("n", "d", "num_bins", "sharpness"), [
    (1, 3, 40, 200.0), (17, 8, 40, 200.0), (12, 64, 7, 50.0), (9, 2, 2, 3.0),
])
def test_equal_to_the_loop_over_pairs_and_bins(n, d, num_bins, sharpness):
    tokens = seeded(n, d, dtype=torch.float64)
    want = brute(tokens, num_bins, sharpness)
    got = soft_histogram(tokens, num_bins, sharpness)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-9)
    got = soft_histogram(tokens.float(), num_bins, sharpness)
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-4)


def test_pairs_with_itself_are_among_them_once():
    """n (n + 1) / 2 pairs: for orthonormal tokens (n - 1) / (n + 1) at 0 and 2 / (n + 1) at 1."""
    n = 7
    odd = soft_histogram(torch.eye(n), num_bins=41)
    torch.testing.assert_close(odd[20] / (odd[20] + odd[40]), torch.tensor((n - 1) / (n + 1)),
                               atol=1e-6, rtol=0)
    at_zero, at_one = odd[10:31].sum(), odd[31:].sum()
    side = soft_histogram(torch.ones(1, 1), num_bins=41)[31:]              # one pair, at 1
    ratio = side.sum() / side[-1]                                          # half a bump is cut off
    full = odd[10:31].sum() / odd[20]
    torch.testing.assert_close((at_zero / full) / (at_one / ratio), torch.tensor((n - 1) / 2))
    even = soft_histogram(torch.eye(n))                                    # 40: 0 is between two
    torch.testing.assert_close(even[19], even[20])
    assert even[19] > 10 * even[17]


@pytest.mark.parametrize("block", [1, 100, 1000, 10**6])
def test_the_same_in_blocks_of_any_size(block):
    tokens = seeded(23, 5, dtype=torch.float64).requires_grad_()
    teacher = teacher_histogram(seeded(11, 3, seed=1, dtype=torch.float64), 13, 30)
    want = all_at_once(tokens, teacher, 30)
    (want_grad,) = torch.autograd.grad(want, tokens)
    got = histogram_loss(tokens, teacher, 30, block=block)
    (got_grad,) = torch.autograd.grad(got, tokens)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(got_grad, want_grad, atol=1e-12, rtol=1e-9)


def test_the_gradient_is_that_of_finite_differences():
    tokens = seeded(6, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: soft_histogram(t, 9, 20, block=60), tokens)


class Largest(TorchDispatchMode):
    """The most numbers that one tensor had."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_the_codebook_of_the_paper_needs_no_tensor_of_all_pairs_and_bins():
    """On the meta device, where nothing is computed: 4096^2 x 40 are 671 million numbers."""
    tokens = torch.empty(4096, 8, device="meta", requires_grad=True)
    teacher = torch.empty(40, device="meta")
    with Largest() as seen:
        histogram_loss(tokens, teacher, block=2**24).backward()
    assert 2**23 < seen.numel <= 2**24 and tokens.grad.shape == tokens.shape


def test_sharp_bins_far_from_all_cosines_are_exactly_empty():
    """And no number is left that is too small for its dtype: those take a CPU a hundred times
    longer."""
    tokens = F.normalize(seeded(8, 4) * 0.05 + 1, dim=1)
    got = soft_histogram(tokens)
    assert (got[:15] == 0).all() and got[got > 0].min() > 1e-38
    torch.testing.assert_close(got.double(), brute(tokens), atol=1e-6, rtol=0)


# -------------------------------------------------------------------------------------- the loss
def test_the_loss_is_torchs_kl_div_of_both_with_eps():
    student, teacher = seeded(9, 4), teacher_histogram(seeded(20, 6, seed=1))
    p_s, p_t = brute(student) + 1e-8, teacher.double() + 1e-8
    want = sum(float(t) * math.log(float(t) / float(s)) for s, t in zip(p_s, p_t, strict=True))
    assert histogram_loss(student, teacher).item() == pytest.approx(want, rel=1e-4)


def test_zero_for_the_teacher_itself_and_never_below():
    tokens = seeded(30, 8, dtype=torch.float64)
    assert histogram_loss(tokens, teacher_histogram(tokens)).abs() < 1e-12
    for seed in range(5):
        assert histogram_loss(seeded(30, 8, seed=seed), teacher_histogram(tokens).float()) > 0.01


def test_the_loss_knows_a_statistic_and_no_geometry():
    """Claim 2: turned, in another order, of other lengths, the codes have the same loss."""
    tokens = seeded(30, 8, dtype=torch.float64)
    teacher = teacher_histogram(seeded(40, 12, seed=1, dtype=torch.float64))
    want = histogram_loss(tokens, teacher)
    turn = torch.linalg.qr(seeded(8, 8, seed=2, dtype=torch.float64)).Q
    lengths = 1 + seeded(30, 1, seed=3, dtype=torch.float64).square()
    for other in (tokens @ turn, tokens.flip(0), tokens * lengths):
        assert (histogram_loss(other, teacher) - want).abs() < 1e-9
    assert (histogram_loss(tokens + 0.5, teacher) - want).abs() > 0.01


def test_a_teacher_of_another_size_and_dimension_gets_no_gradient():
    features = seeded(50, 24).requires_grad_()
    teacher = teacher_histogram(features)
    assert not teacher.requires_grad and teacher.shape == (40,)
    codes, given = seeded(16, 8, seed=1).requires_grad_(), teacher.clone().requires_grad_()
    histogram_loss(codes, given).backward()
    assert given.grad is None and codes.grad.abs().sum() > 0


def clusters(count=256, seed=0):
    middle = seeded(12, 64, seed=seed)
    which = torch.arange(count) % 12
    return middle[which] + seeded(count, 64, seed=seed + 1)


def test_codes_learn_the_histogram_of_a_teacher():
    """Claim 1: random codes become the teacher's statistic, mean cosine too, but not all of it: 8
    channels cannot."""
    teacher = teacher_histogram(clusters(), sharpness=50)
    codes = seeded(256, 8, seed=5).requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=5e-2)
    losses = []
    for _ in range(60):
        loss = histogram_loss(codes, teacher, sharpness=50)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0.25 < losses[0] < 0.45 and 0.02 < losses[-1] < 0.12

    def mean_cosine(tokens):
        unit = F.normalize(tokens.detach(), dim=1)
        return ((unit @ unit.T).sum() - len(unit)) / len(unit) / (len(unit) - 1)

    start, end, goal = map(mean_cosine, (seeded(256, 8, seed=5), codes, clusters()))
    assert (end - goal).abs() < (start - goal).abs()


def test_without_eps_a_collapsed_codebook_has_no_loss():
    """The failure that the card measured: mean cosine 0.92, infinite, gradients NaN."""
    codes = (seeded(64, 8, seed=1) * 0.3 + 1).requires_grad_()
    teacher = teacher_histogram(clusters(), sharpness=50)
    broken = histogram_loss(codes, teacher, sharpness=50, eps=0)
    (grad,) = torch.autograd.grad(broken, codes)
    assert broken == math.inf and grad.isnan().any()
    loss = histogram_loss(codes, teacher, sharpness=50)
    (grad,) = torch.autograd.grad(loss, codes)
    assert loss.isfinite() and grad.isfinite().all() and grad.abs().max() > 0


def test_bins_that_are_too_sharp_pull_nothing_from_afar():
    """Cosines of 1 and 0.89, and the bin at -0.44, where a teacher may have its pairs."""
    pull = {}
    for sharpness in (5.0, 200.0):
        codes = torch.tensor([[1.0, 0.0], [1.0, 0.5]], requires_grad=True)
        student = soft_histogram(codes, sharpness=sharpness)
        (grad,) = torch.autograd.grad((student[11] + 1e-8).log(), codes)
        pull[sharpness] = grad.abs().max().item()
    assert pull[5.0] > 0.1 and pull[200.0] == 0


def test_under_autocast_and_torchs_settings_it_is_float32():
    codes, teacher = seeded(40, 8), teacher_histogram(seeded(40, 8, seed=1))

    def run():
        given = codes.clone().requires_grad_()
        with torch.enable_grad(), torch.inference_mode(False):
            loss = histogram_loss(given, teacher)
            loss.backward()
        return loss.detach(), given.grad

    want = run()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(run(), want, strict=True))
    for setting in SETTINGS:
        with setting():
            loss = soft_histogram(codes)
        assert torch.equal(loss, soft_histogram(codes)), setting
    half = histogram_loss(codes.bfloat16(), teacher)
    assert half.dtype == torch.float32 and (half - want[0]).abs() < 0.02


def test_the_loss_compiles_without_graph_breaks():
    teacher = teacher_histogram(seeded(10, 4, seed=1), 11, 50)
    codes = seeded(12, 4).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(histogram_loss, backend="eager", fullgraph=True)
    compiled(codes, teacher, 50.0).backward()
    want = seeded(12, 4).requires_grad_()
    histogram_loss(want, teacher, 50.0).backward()
    torch.testing.assert_close(codes.grad, want.grad)


# ------------------------------------------------------------------------- tokens of the teacher
def test_centres_of_a_teachers_features_are_those_of_k_means():
    middle = 10 * seeded(5, 6)
    features = (middle[:, None] + 0.1 * seeded(5, 30, 6, seed=1)).reshape(3, 50, 6)
    found = teacher_centres(features, 5)
    want = features.reshape(5, 30, 6).mean(dim=1)
    order = torch.cdist(want, found).argmin(dim=1)
    assert order.unique().numel() == 5
    torch.testing.assert_close(found[order], want)
    assert torch.equal(found, teacher_centres(features, 5))
    assert teacher_centres(features.bfloat16(), 2).dtype == torch.float32
    with pytest.raises(ValueError, match="num_centres=5 but only 3 features differ"):
        teacher_centres(torch.eye(3).repeat(4, 1), 5)
    for wrong in (torch.zeros(3), torch.zeros(0, 3), torch.full((4, 2), torch.nan)):
        with pytest.raises(ValueError, match="features"):
            teacher_centres(wrong, 2)

def test_no_error_from_deep_inside():
    codes, teacher = seeded(5, 4), teacher_histogram(seeded(4, 4), 6, 20)
    calls = [
        (soft_histogram, dict(tokens=codes, num_bins=6, sharpness=20.0, block=50)),
        (teacher_histogram, dict(tokens=codes, num_bins=6, sharpness=20.0, block=50)),
        (teacher_centres, dict(features=seeded(9, 4), num_centres=2, rounds=2)),
        (histogram_loss, dict(
            codebook=codes, teacher=teacher, sharpness=20.0, eps=1e-8, block=50
        )),
    ]
    for function, fits in calls:
        assert raw_errors(function, fits, part=True) == [], function
