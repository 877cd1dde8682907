"""GloTok: no official code runs, so all of it is held against loops over pairs and bins."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vtlib.quantize import Quantized, digits_to_index
from vtlib.tokenizers.glotok import (
    DualCodebook,
    GloTok,
    Residual,
    centres,
    histogram_loss,
    soft_histogram,
    teacher_centres,
    teacher_histogram,
)

from ..settings import SETTINGS
from ..wrong import raw_errors

SMALL = dict(
    codebook_size=(12, 20), code_dim=8, latent_dim=16, residual_dim=16, num_heads=2, channels=8,
    multipliers=(1, 2), num_res_blocks=1, num_mid_blocks=1, groups=4, patch_size=4,
)


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


def small(seed=0, awake=True, **options):
    """A small model; awake: its residual nets, which begin at 0, do something."""
    torch.manual_seed(seed)
    model = GloTok(**(SMALL | options))
    if awake:
        for residual in model.residuals:
            torch.nn.init.normal_(residual.proj_out.weight, std=0.2)
    return model


def pictures(batch=2, size=(16, 24), seed=0):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


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


# --------------------------------------------------------------------------------- two codebooks
def test_each_half_has_a_codebook_of_its_own():
    net, x = DualCodebook(4, (6, 10)), seeded(3, 5, 8)
    out = net(x)
    assert isinstance(out, Quantized) and out.indices.shape == (3, 5, 2)
    semantic, visual = net.semantic(x[..., :4]), net.visual(x[..., 4:])
    assert torch.equal(out.codes, torch.cat([semantic.codes, visual.codes], dim=-1))
    assert torch.equal(out.indices[..., 0], semantic.indices)
    assert torch.equal(out.indices[..., 1], visual.indices)
    assert torch.equal(net.decode(out.indices), out.codes)
    torch.testing.assert_close(out.loss, semantic.loss + visual.loss)
    number = digits_to_index(out.indices, net.codebook_size)
    assert torch.equal(number, semantic.indices + 6 * visual.indices)
    both = len(semantic.indices.unique()) + len(visual.indices.unique())
    assert out.usage.item() == pytest.approx(both / 16)
    assert net.codebook_size == (6, 10) and net.bits == math.log2(6) + math.log2(10)


def test_codes_and_vectors_have_length_one_from_the_start():
    net, x = DualCodebook(8, (30, 50)), 7 * seeded(40, 16)
    torch.testing.assert_close(net.semantic.codebook.norm(dim=1), torch.ones(30))
    cosine = F.normalize(x[:, 8:].double()) @ F.normalize(net.visual.codebook.double()).T
    assert torch.equal(net(x).indices[:, 1], cosine.argmax(dim=1))
    halves = net.normalised(x).unflatten(1, (2, 8))
    torch.testing.assert_close(halves, F.normalize(x.unflatten(1, (2, 8)), dim=-1))


def test_the_loss_of_the_codebooks_is_that_of_the_paper():
    net, x = DualCodebook(4, (6, 10), commitment_weight=0.3), seeded(20, 8).requires_grad_()
    out = net(x)
    z, q = net.normalised(x), net.decode(out.indices)
    want = 0
    for half in (slice(0, 4), slice(4, 8)):
        want = want + F.mse_loss(q[:, half], z[:, half].detach())
        want = want + 0.3 * F.mse_loss(z[:, half], q[:, half].detach())
    torch.testing.assert_close(out.loss, want)
    got, expected = (torch.autograd.grad(loss, [x, *net.parameters()], retain_graph=True)
                     for loss in (out.loss, want))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert len(list(net.parameters())) == 2


@pytest.mark.parametrize("indices", [
    [[6, 7]], [[-1, 7]], [[0, 10]], [[0, 7, 7]], [[0.0, 7.0]], [[7, 0]], 3,
])
def test_indices_out_of_their_codebook_are_refused(indices):
    with pytest.raises(ValueError, match="indices"):
        DualCodebook(4, (6, 10)).decode(torch.tensor(indices))


# ----------------------------------------------------------------------------- the residual nets
def test_the_residual_nets_begin_as_the_plain_tokenizer():
    """With R = 0 the model is a dual codebook: the same weights without R, the same picture."""
    model, images = small(awake=False).eval(), pictures()
    plain = small(residual_dim=0).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "residuals" not in k})
    assert torch.equal(model(images).images, plain(images).images)
    codes = model.encode(images).codes
    assert torch.equal(model.refine(codes), codes)
    awake = small().eval()
    assert (awake.refine(codes) - codes).abs().max() > 0.05
    assert "residual" not in plain.loss(images)[1]


def test_each_branch_has_a_residual_net_that_sees_its_own_codes_only():
    model = small().eval()
    codes = model.encode(pictures()).codes
    other = codes.clone()
    other[..., :8] = -other[..., :8]
    assert torch.equal(model.refine(other)[..., 8:], model.refine(codes)[..., 8:])
    want = [part + net(part) for net, part in zip(model.residuals, codes.split(8, -1), strict=True)]
    assert torch.equal(model.refine(codes), torch.cat(want, dim=-1))


def test_the_residual_is_added_before_decoding_and_sees_no_latents():
    """Latents that move without changing codes change nothing."""
    model, images = small().eval(), pictures()
    latents = model.latents(images)
    near = latents + 1e-4 * seeded(*latents.shape)
    first, second = model.quantizer(latents), model.quantizer(near)
    assert torch.equal(first.indices, second.indices) and not torch.equal(latents, near)
    assert torch.equal(model.decode(first.codes), model.decode(second.codes))
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.decode(first.codes)
    assert torch.equal(seen[0].permute(0, 2, 3, 1), model.refine(first.codes))


def test_a_residual_net_knows_where_and_looks_around():
    torch.manual_seed(0)
    net = Residual(8, 16, 2)
    torch.nn.init.normal_(net.proj_out.weight)
    codes = seeded(1, 3, 4, 8)
    other = codes.clone()
    other[:, 0, 0] += 1
    assert ((net(other) - net(codes)).abs().amax(dim=-1) > 1e-4).all()
    turned = net(codes.flip(2)).flip(2)
    assert (turned - net(codes)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="multiple of 4"):
        Residual(8, 18, 3)


def test_the_loss_of_the_residual_stops_at_the_latents_only():
    model, images = small(), pictures()
    latents = model.latents(images)
    quantized = model.quantizer(latents)
    loss = model.residual_loss(latents, quantized.indices)
    z, q = model.quantizer.normalised(latents), quantized.codes
    res = model.refine(q) - q
    want = sum(F.mse_loss(z[..., h], (q + res)[..., h]) for h in (slice(0, 8), slice(8, 16)))
    torch.testing.assert_close(loss, want)
    model.zero_grad()
    loss.backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    books = {"quantizer.semantic.codebook", "quantizer.visual.codebook"}
    assert books < got
    assert {name.split(".")[0] for name in got} == {"quantizer", "residuals"}


def test_the_residual_nets_learn_what_quantisation_took():
    """Claim 3 in small: trained on fixed latents, R takes away a part of the error of unseen
    maps, whose codes tell something of what lies beside them."""
    model = small(codebook_size=(4, 4)).eval()
    wave = seeded(64, 1, 1, 2).cumsum(dim=0)
    angle = torch.linspace(0, 3, 8)[None, :, None] + torch.linspace(0, 2, 8) + wave[:, 0, :, :1]
    latents = torch.stack([(angle * (1 + k / 4)).sin() for k in range(16)], dim=-1)
    indices = model.quantizer(latents).indices
    train, test = slice(0, 48), slice(48, 64)
    optimizer = torch.optim.Adam(model.residuals.parameters(), lr=1e-2)
    plain = 2 * F.mse_loss(
        model.quantizer.decode(indices[test]), model.quantizer.normalised(latents[test])
    )
    for _ in range(30):
        loss = model.residual_loss(latents[train], indices[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.residual_loss(latents[test], indices[test]) < 0.75 * plain


# ------------------------------------------------------------------------------------- the model
def test_pictures_tokens_pictures():
    model, images = small().eval(), pictures(3)
    out = model(images)
    assert out.images.shape == images.shape and out.features is None
    assert out.quantized.codes.shape == (3, 2, 3, 16)
    assert out.quantized.indices.shape == (3, 2, 3, 2)
    assert torch.equal(model.decode_indices(out.quantized.indices), out.images)
    assert model.bits(out.quantized) == pytest.approx(6 * (math.log2(12) + math.log2(20)))
    alone = model(images[1:2])
    torch.testing.assert_close(alone.images, out.images[1:2])
    torch.testing.assert_close(model.train()(images).images, out.images)


def test_as_in_the_paper():
    """256 places of two codes each, 8 channels, 4096 + 12,288 codes, weights 0.5 and 0.01."""
    with torch.device("meta"):
        model = GloTok()
        out = model(torch.rand(1, 3, 256, 256))
    assert out.images.shape == (1, 3, 256, 256)
    assert out.quantized.indices.shape == (1, 16, 16, 2) and out.quantized.codes.shape[-1] == 16
    assert model.quantizer.codebook_size == (4096, 12288)
    assert (model.residual_weight, model.histogram_weight, len(model.teacher)) == (0.5, 0.01, 40)
    assert model.bits(out.quantized) == pytest.approx(256 * (12 + math.log2(12288)))


def test_the_loss_is_the_weighted_sum_of_its_parts():
    model, images = small(), pictures()
    assert set(model.loss(images)[1]) == {"pixels", "quantizer", "residual"}
    model.set_teacher(clusters(60))
    loss, parts = model.loss(images)
    out = model(images)
    assert set(parts) == {"pixels", "quantizer", "residual", "histogram"}
    torch.testing.assert_close(parts["pixels"], F.mse_loss(out.images, images).detach())
    torch.testing.assert_close(parts["quantizer"], out.quantized.loss.detach())
    book = model.quantizer.semantic.codebook
    want = histogram_loss(book, teacher_histogram(clusters(60)))
    torch.testing.assert_close(parts["histogram"], want.detach())
    weights = dict(pixels=4, quantizer=1, residual=0.5, histogram=0.01)
    torch.testing.assert_close(loss.detach(), sum(weights[k] * parts[k] for k in parts))


def test_the_histogram_moves_the_semantic_codebook_only():
    model = small()
    model.set_teacher(clusters(60))
    model.histogram_loss().backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == {"quantizer.semantic.codebook"}
    assert model.histogram_loss() == model.histogram_loss()


def test_all_parameters_learn_from_the_whole_loss():
    model = small()
    model.set_teacher(clusters(60))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(pictures())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_picture_reaches_the_encoder_through_the_codes():
    """Straight-through, and through the residual nets, too."""
    model = small().eval()
    z = model.latents(pictures()).detach().requires_grad_()
    model.decode(model.quantizer(z).codes).square().sum().backward()
    assert z.grad.abs().sum() > 0
    codes = model.quantizer(z).codes.detach().requires_grad_()
    model.decode(codes).square().sum().backward()
    through = z.detach().requires_grad_()
    model.quantizer.normalised(through).backward(codes.grad)
    torch.testing.assert_close(z.grad, through.grad)


def test_a_teacher_is_set_once_and_kept_with_the_weights():
    model, other = small(), small(seed=1)
    with pytest.raises(ValueError, match="set_teacher"):
        model.histogram_loss()
    with pytest.raises(ValueError, match="set_teacher"):
        model.loss(pictures(), teacher=seeded(2, 6, 24))
    model.set_teacher(seeded(50, 24))
    want = model.loss(pictures())[0]
    assert torch.equal(model.loss(pictures(), teacher=seeded(2, 6, 24))[0], want)
    other.load_state_dict(model.state_dict())
    assert other.has_teacher and torch.equal(other.loss(pictures())[0], want)
    assert torch.equal(copy.deepcopy(model).loss(pictures())[0], want)
    other.load_state_dict(small().state_dict())
    assert not other.has_teacher


def test_training_makes_both_losses_smaller():
    model = small(quantizer=dict(kmeans_init=True, revive_after=4.0))
    images = F.interpolate(pictures(8, (2, 2)), size=(16, 16), mode="bilinear")
    model.set_teacher(clusters(60))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(20):
        loss, parts = model.loss(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((parts["pixels"].item(), parts["residual"].item()))
    assert history[-1][0] < 0.8 * history[0][0] and history[-1][1] < 0.2 * history[0][1]


def test_bad_input_is_told():
    for wrong in (
        dict(codebook_size=(0, 4)), dict(codebook_size=4), dict(codebook_size=(4, 4, 4)),
        dict(code_dim=0), dict(latent_dim=18), dict(residual_dim=6), dict(num_heads=3),
        dict(histogram_weight=-1), dict(residual_weight=math.nan), dict(num_bins=1),
        dict(sharpness=0), dict(commitment_weight="x"), dict(channels=6),
    ):
        with pytest.raises(ValueError):
            small(**wrong)
    model = small()
    for images in (pictures()[:0], pictures()[0], pictures().byte(), pictures(size=(17, 16))):
        with pytest.raises(ValueError):
            model(images)
    for codes in (seeded(2, 3, 16), seeded(1, 2, 2, 15), None, seeded(1, 2, 2, 16).long()):
        with pytest.raises(ValueError):
            model.decode(codes)
    for tokens in (seeded(3), seeded(0, 3), torch.full((3, 4), torch.nan), [1.0]):
        with pytest.raises(ValueError, match="tokens"):
            model.set_teacher(tokens)


def test_no_error_from_deep_inside():
    codes, teacher = seeded(5, 4), teacher_histogram(seeded(4, 4), 6, 20)
    calls = [
        (soft_histogram, dict(tokens=codes, num_bins=6, sharpness=20.0, block=50)),
        (teacher_histogram, dict(tokens=codes, num_bins=6, sharpness=20.0, block=50)),
        (teacher_centres, dict(features=seeded(9, 4), num_centres=2, rounds=2)),
        (histogram_loss, dict(
            codebook=codes, teacher=teacher, sharpness=20.0, eps=1e-8, block=50
        )),
        (DualCodebook, dict(dim=4, codebook_size=(3, 5))),
        (DualCodebook(4, (3, 5)), dict(x=seeded(5, 8))),
        (DualCodebook(4, (3, 5)).decode, dict(indices=torch.tensor([[0, 3]]))),
        (Residual, dict(dim=4, width=8, num_heads=2)),
        (Residual(4, 8, 2), dict(codes=seeded(1, 2, 2, 4))),
    ]
    for function, fits in calls:
        assert raw_errors(function, fits, part=True) == [], function
