"""Residual quantisation, plain and in scales."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.quantize import MultiScaleQuantizer, ResidualQuantizer
from vtlib.quantize.residual import from_scale, to_scale

from ..settings import SETTINGS
from ..wrong import raw_errors

OPTIONS = [
    dict(), dict(shared=True), dict(learn="gradient"), dict(lookup="cosine"),
    dict(shared=True, gradient="rotation", revive_after=1.0),
]


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(net):
    for i, quantizer in enumerate(net.quantizers):
        quantizer.codebook.data.copy_(seeded(*quantizer.codebook.shape, seed=7 + i) / (1 + i))
    return net


def plain(levels=4, dim=4, size=16, **options):
    return filled(ResidualQuantizer(dim, size, levels, **options))


def scaled(scales=(1, 2, (3, 4), (6, 8)), dim=4, size=16, **options):
    return filled(MultiScaleQuantizer(dim, size, scales, **options))


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_forward_returns_decodes_bit_for_bit(options, training):
    net = plain(**options).train(training)
    for seed in range(3):
        x = 2 * seeded(3, 20, 4, seed=seed)
        out = net(x)
        assert out.codes.shape == x.shape and out.indices.shape == (3, 20, 4)
        assert torch.equal(net.decode(out.indices), out.codes)
        total = sum(net.level(i).decode(out.indices[..., i]) for i in range(4))
        assert torch.equal(total, out.codes)
        assert out.loss.shape == out.usage.shape == () and out.loss > 0 and 0 < out.usage <= 1
        assert out.indices.dtype == torch.int64
    grid = scaled(**options).train(training)
    for seed in range(3):
        x = 2 * seeded(2, 6, 8, 4, seed=seed)
        out = grid(x)
        assert out.codes.shape == x.shape and out.indices.shape == (2, 1 + 4 + 12 + 48)
        assert torch.equal(grid.decode(out.indices), out.codes)


def test_the_levels_are_those_of_a_loop():
    net, x = plain().eval(), seeded(30, 4)
    residual, total, indices = x.double(), torch.zeros(30, 4), []
    for i in range(4):
        codebook = net.level(i).codebook
        indices.append(torch.cdist(residual, codebook.double()).argmin(1))
        residual = residual - codebook[indices[-1]]
        total = total + codebook[indices[-1]]
    out = net(x)
    assert torch.equal(out.indices, torch.stack(indices, 1)) and torch.equal(out.codes, total)
    assert out.usage == sum(len(i.unique()) for i in indices) / 64
    losses, residual = [], x
    for i in range(4):
        code = net.level(i).codebook[indices[i]]
        losses.append(0.25 * F.mse_loss(residual, code))
        residual = residual - code
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


@pytest.mark.parametrize("levels", [1, 2, 8])
@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_gets_the_gradient_once(levels, training):
    """And not `levels` times, as where every level passes it on."""
    net, x = plain(levels).train(training), seeded(9, 4).requires_grad_()
    upstream = seeded(9, 4, seed=3)
    (got,) = torch.autograd.grad(net(x).codes, x, upstream)
    assert torch.equal(got, upstream)
    grid, x = scaled().train(training), seeded(1, 6, 8, 4).requires_grad_()
    (got,) = torch.autograd.grad(grid(x).codes.sum(), x)
    assert torch.equal(got, torch.ones_like(x))
    turned, x = plain(levels, gradient="rotation").eval(), (1 + seeded(9, 4)).requires_grad_()
    out = turned(x)
    (got,) = torch.autograd.grad(out.codes, x, upstream)
    stretch = out.codes.detach().norm(dim=1) / x.detach().norm(dim=1)
    torch.testing.assert_close(got.norm(dim=1), upstream.norm(dim=1) * stretch)


def test_the_losses_of_all_levels_reach_the_encoder():
    net, x = plain(3, commitment_weight=1.0).eval(), seeded(20, 4).requires_grad_()
    out = net(x)
    (got,) = torch.autograd.grad(out.loss, x)
    want, residual = 0, x.detach()
    for i in range(3):
        residual = residual - net.level(i).decode(out.indices[:, i])
        want = want + 2 * residual / residual.numel() / 3
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("training", [True, False])
def test_the_residual_error_never_grows(training):
    """Fitted codebooks: each level leaves less than the one before, on what they were fitted to
    and on what they were not."""
    x, other = seeded(2000, 8, seed=1), seeded(2000, 8, seed=2)
    net = ResidualQuantizer(8, 32, 8, kmeans_init=True)
    for _ in range(5):
        net(x)
    net.train(training)
    for vectors in (x, other):
        errors = [vectors.square().mean().item()]
        for levels in range(1, 9):
            codes = net(vectors, num_levels=levels).codes
            errors.append((vectors - codes).square().mean().item())
        assert all(b < a for a, b in zip(errors, errors[1:], strict=False)), errors
        assert errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_any_number_of_levels_decodes(options):
    net, x = plain(**options).eval(), seeded(5, 4)
    full = net(x)
    for levels in range(1, 5):
        out = net(x, num_levels=levels)
        assert torch.equal(out.indices, full.indices[:, :levels])
        assert torch.equal(net.decode(full.indices[:, :levels]), out.codes)
    grid, x = scaled(**options).eval(), seeded(2, 6, 8, 4)
    full, ends = grid(x), [1, 5, 17, 65]
    for levels, end in enumerate(ends, 1):
        out = grid(x, num_levels=levels)
        assert torch.equal(out.indices, full.indices[:, :end])
        assert torch.equal(grid.decode(full.indices[:, :end]), out.codes)


def test_dropout_draws_levels_in_training_and_nowhere_else():
    for net, x in ((plain(dropout=True), seeded(5, 4)), (scaled(dropout=True), seeded(1, 6, 8, 4))):
        generator = torch.Generator().manual_seed(0)
        runs = [net(x, generator=generator) for _ in range(30)]
        lengths = [run.indices.shape[-1] for run in runs]
        assert len(set(lengths)) == 4
        assert all(run.loss > 0 and run.codes.shape == x.shape for run in runs)
        generator.manual_seed(0)
        assert [net(x, generator=generator).indices.shape[-1] for _ in range(30)] == lengths
        assert net.eval()(x).indices.shape[-1] == max(lengths)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_eval_and_frozen_change_nothing(options):
    pairs = (plain(kmeans_init=True, **options), seeded(64, 4)),
    pairs += (scaled(kmeans_init=True, **options), seeded(4, 6, 8, 4)),
    for net, x in pairs:
        before = state(net)
        assert net.eval()(x).loss > 0
        net.train().frozen = True
        assert net.frozen
        net(x)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        net.frozen = False
        net(x)
        assert not all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_shared_codebook_learns_once_a_step_from_all_levels():
    net, x = plain(3, shared=True, decay=0.5), seeded(40, 4)
    assert len(net.quantizers) == 1
    before = net.first.codebook.clone()
    residual, rows, indices = x, [], []
    for _ in range(3):
        indices.append(torch.cdist(residual.double(), before.double()).argmin(1))
        rows.append(residual)
        residual = residual - before[indices[-1]]
    out = net(x)
    assert torch.equal(out.indices, torch.stack(indices, 1))
    flat, rows = torch.cat(indices), torch.cat(rows)
    for k in flat.unique().tolist():
        torch.testing.assert_close(net.first.codebook[k], rows[flat == k].mean(0))
    assert net.first.idle.max() <= 120


def test_a_mask_changes_nothing_for_the_others():
    mask = torch.arange(20) < torch.tensor([[20], [5]])
    x = seeded(2, 20, 4)
    padded = torch.where(mask[..., None], x, 50 * seeded(2, 20, 4, seed=9))
    for options in OPTIONS:
        nets = [plain(**options) for _ in range(2)]
        out, want = nets[0](padded, mask), nets[1](x[mask])
        assert torch.equal(out.indices[mask], want.indices)
        torch.testing.assert_close(out.codes[mask], want.codes)
        torch.testing.assert_close(out.loss, want.loss)
        assert torch.equal(out.usage, want.usage)
        torch.testing.assert_close(state(nets[0]), state(nets[1]))


# ------------------------------------------------------------------------------------ scales
def test_the_scales_are_those_of_a_loop():
    net, x = scaled().eval(), seeded(2, 6, 8, 4)
    residual, total, indices = x.permute(0, 3, 1, 2), 0, []
    for rows, columns in ((1, 1), (2, 2), (3, 4), (6, 8)):
        pooled = F.adaptive_avg_pool2d(residual, (rows, columns)).permute(0, 2, 3, 1)
        index = torch.cdist(pooled.flatten(0, 2).double(), net.first.codebook.double()).argmin(1)
        codes = net.first.codebook[index].reshape(pooled.shape).permute(0, 3, 1, 2)
        up = F.interpolate(codes, (6, 8), mode="bicubic", align_corners=False)
        residual, total = residual - up, total + up
        indices.append(index.reshape(2, -1))
    out = net(x)
    assert torch.equal(out.indices, torch.cat(indices, 1))
    torch.testing.assert_close(out.codes, total.permute(0, 2, 3, 1))


def test_the_last_scale_is_the_map_itself():
    x = seeded(1, 5, 7, 3)
    assert to_scale(x, (5, 7)) is x and from_scale(x, (5, 7)) is x
    grown = F.interpolate(x.permute(0, 3, 1, 2), (5, 7), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(grown, x)
    one = MultiScaleQuantizer(3, 8, (4,)).eval()
    flat = ResidualQuantizer(3, 8, 1).eval()
    flat.first.codebook.copy_(one.first.codebook)
    x = seeded(2, 4, 4, 3)
    assert torch.equal(one(x).codes, flat(x).codes)


def test_places_of_official_scales():
    tokenflow, var = (1, 2, 4, 6, 8, 10, 12, 14), (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    for scales, count in ((tokenflow, 561), (var, 680)):
        net = MultiScaleQuantizer(2, 4, scales).eval()
        assert net(seeded(1, scales[-1], scales[-1], 2)).indices.shape == (1, count)


def test_a_shared_start_by_kmeans_is_of_all_scales():
    x = 3 + seeded(8, 6, 8, 4)
    net = MultiScaleQuantizer(4, 64, (1, 3, (6, 8)), kmeans_init=True)
    net(x)
    assert net.first.started and not net.first.waits
    out = net.eval()(x)
    assert (out.codes - x).square().mean() < 0.5 * x.var()


# -------------------------------------------------------------------- devices, dtypes, compiling
def test_meta_autocast_and_dtypes():
    for net, x in ((plain(), seeded(2, 7, 4)), (scaled(), seeded(2, 6, 8, 4))):
        net.eval()
        want = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = net(x)
        assert torch.equal(got.indices, want.indices) and torch.equal(got.codes, want.codes)
        assert net(x.bfloat16()).codes.dtype == torch.float32
        assert net.double()(x.double()).codes.dtype == torch.float64
        far = net.float().train().to("meta")(x.to("meta"))
        assert far.codes.shape == x.shape and far.codes.is_meta


@pytest.mark.parametrize("options", [dict(), dict(shared=True, revive_after=1.0)], ids=str)
def test_compile_in_one_graph_is_the_same(options):
    torch.compiler.reset()
    for make, shape in ((plain, (2, 30, 4)), (scaled, (2, 6, 8, 4))):
        nets = [make(**options) for _ in range(2)]
        run = torch.compile(nets[1], backend="aot_eager", fullgraph=True)
        for step in range(2):
            xs = [seeded(*shape, seed=step).requires_grad_() for _ in range(2)]
            outs = [f(x) for f, x in zip((nets[0], run), xs, strict=True)]
            sums = [out.codes.sum() + out.loss for out in outs]
            torch.testing.assert_close(*map(torch.autograd.grad, sums, xs))
            assert torch.equal(outs[0].indices, outs[1].indices)
        torch.testing.assert_close(*map(state, nets))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_torchs_settings_change_nothing(setting):
    for make, x in ((plain, seeded(9, 4)), (scaled, seeded(2, 6, 8, 4))):
        nets = [make(dropout=True) for _ in range(2)]
        want = nets[0](x, generator=torch.Generator().manual_seed(4))
        generator = torch.Generator("cpu").manual_seed(4)
        with setting():
            out = nets[1](x, generator=generator)
            decoded = nets[1].decode(out.indices)
        assert torch.equal(out.codes, want.codes) and torch.equal(decoded, want.codes)
        torch.testing.assert_close(*map(state, nets))


BAD = [
    (lambda: ResidualQuantizer(4, 8, 0), "num_levels=0"),
    (lambda: ResidualQuantizer(4, 0, 2), "codebook_size=0"),
    (lambda: ResidualQuantizer(4, 8, 2, shared="yes"), "shared='yes'"),
    (lambda: plain()(torch.zeros(2, 3)), r"x has shape \(2, 3\)"),
    (lambda: plain()(torch.zeros(0, 4)), "not empty"),
    (lambda: plain()(torch.full((2, 4), torch.nan)), "non-finite"),
    (lambda: plain()(torch.zeros(2, 4), num_levels=5), "num_levels=5"),
    (lambda: plain()(torch.zeros(2, 4), torch.zeros(2).bool()), "mask is False everywhere"),
    (lambda: plain()(torch.zeros(2, 4), generator=3), "generator is a int"),
    (lambda: plain().decode(torch.zeros(2, 5).long()), r"\(2, 5\) but needs \(..., l\)"),
    (lambda: plain().decode(torch.zeros(2, 0).long()), "l of 1 to 4"),
    (lambda: plain().decode(torch.full((2, 2), 16)), "0 ... 15"),
    (lambda: MultiScaleQuantizer(4, 8, ()), "scales="),
    (lambda: MultiScaleQuantizer(4, 8, "124"), "scales='124'"),
    (lambda: MultiScaleQuantizer(4, 8, (4, 2)), "no scale may be smaller"),
    (lambda: MultiScaleQuantizer(4, 8, (1, (2, 3, 4))), r"scales\[1\]"),
    (lambda: scaled()(torch.zeros(2, 6, 7, 4)), "last scale"),
    (lambda: scaled()(torch.zeros(2, 48, 4)), r"tensor \(B, H, W, C\)"),
    (lambda: scaled().decode(torch.zeros(2, 6).long()), "complete, 1, 5, 17, 65"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_whatever_comes_in_a_value_error_comes_out():
    fits = dict(x=torch.randn(2, 5, 4), mask=torch.ones(2, 5, dtype=torch.bool), num_levels=2)
    assert not raw_errors(plain(), fits)
    assert not raw_errors(plain().decode, dict(indices=torch.ones(2, 3, dtype=torch.long)))
    assert not raw_errors(scaled(), dict(x=torch.randn(2, 6, 8, 4), num_levels=2))
    assert not raw_errors(scaled().decode, dict(indices=torch.ones(2, 5, dtype=torch.long)))
    sizes = dict(dim=4, codebook_size=8, num_levels=3, shared=True, dropout=False)
    assert not raw_errors(ResidualQuantizer, sizes)
    scales = dict(dim=4, codebook_size=8, scales=(1, 2), shared=True, dropout=False)
    assert not raw_errors(MultiScaleQuantizer, scales)


class WithoutTheSecond(MultiScaleQuantizer):
    def used_levels(self, num_levels, generator):
        return 0, 2, 3


@pytest.mark.parametrize("shared", [True, False])
def test_a_subclass_may_leave_scales_out(shared):
    """The other scales' codebooks are used, decoded, and in the loss."""
    sizes = dict(shared=shared, learn="gradient")
    net = filled(WithoutTheSecond(4, 16, (1, 2, (3, 4), (6, 8)), **sizes)).eval()
    rest = filled(MultiScaleQuantizer(4, 16, (1, (3, 4), (6, 8)), **sizes)).eval()
    if not shared:
        for i, level in enumerate((0, 2, 3)):
            rest.level(i).load_state_dict(net.level(level).state_dict())
    x = seeded(2, 6, 8, 4)
    out, want = net(x), rest(x)
    assert torch.equal(out.indices, want.indices) and torch.equal(out.codes, want.codes)
    assert torch.equal(out.loss, want.loss) and torch.equal(out.usage, want.usage)
    assert torch.equal(net.decode(out.indices, (0, 2, 3)), out.codes)
    assert [level for level, _ in net.parts(out.indices, (0, 2, 3))] == [0, 2, 3]
    for levels in ((2, 0), (0, 0), (0, 4), (), (0, 2), 3, "x"):
        with pytest.raises(ValueError, match="levels|places"):
            net.decode(out.indices, levels)
