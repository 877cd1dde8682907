"""Exercises on GloTok: the soft histogram of cosines, the loss that compares two, the loss of the
residual net."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import Wrong, check, expect

# -------------------------------------------------------------------------------- soft histogram


def soft_histogram(tokens, num_bins, sharpness):
    """tokens (n, d) -> (N,): each of the n (n + 1) / 2 cosines spread over the bins, sum 1."""
    return _histogram(tokens, num_bins, sharpness)


def _histogram(tokens, num_bins, sharpness, unit=True, pairs="half", ends="both", power="inside",
               normalised=True):
    """`soft_histogram`, or with one thing done differently."""
    units = F.normalize(tokens, dim=1) if unit else tokens
    cosine, count = units @ units.T, len(tokens)
    rows, columns = torch.triu_indices(
        count, count, offset=1 if pairs == "others" else 0, device=tokens.device
    )
    values = cosine.flatten() if pairs == "all" else cosine[rows, columns]
    like = dict(dtype=tokens.dtype, device=tokens.device)
    if ends == "middles":
        centres = (2 * torch.arange(num_bins, **like) + 1) / num_bins - 1
    else:
        centres = torch.linspace(-1 if ends == "both" else 0, 1, num_bins, **like)
    gap = values[:, None] - centres
    scale = {"inside": sharpness, "squared": sharpness**2, "none": 1.0, "deviation": 0.5}[power]
    if power == "deviation":
        scale = 0.5 / sharpness**2
    bumps = torch.exp(-scale * gap.square())
    if normalised == "each":
        return (bumps / bumps.sum(dim=1, keepdim=True)).mean(dim=0)
    sums = bumps.sum(dim=0)
    return sums / sums.sum() if normalised else sums


def _histogram_causes(*args):
    def other(**change):
        return lambda: _histogram(*args, **change)

    return {
        "these are inner products: make the tokens unit vectors first, F.normalize(tokens, dim=1)":
            other(unit=False),
        "a token's cosine with itself is missing: pairs are i <= j": other(pairs="others"),
        "every pair counts twice, and those of a token with itself once: keep i <= j, "
        "torch.triu_indices": other(pairs="all"),
        "the centres are the middles of N equal pieces; here the first is -1 and the last is 1: "
        "torch.linspace(-1, 1, N)": other(ends="middles"),
        "the centres run from 0 to 1; a cosine may be negative: from -1 to 1": other(ends="zero"),
        "a was squared as well: exp(-a (D - B)^2)": other(power="squared"),
        "a is missing in the exponent": other(power="none"),
        "a is no standard deviation: exp(-a (D - B)^2), without 2 and without a square":
            other(power="deviation"),
        "the sum is not 1: divide by the sum over bins": other(normalised=False),
        "each pair was made to sum to 1 on its own: add the bumps of all pairs, then divide once":
            other(normalised="each"),
    }


@check("glotok.soft_histogram", reference=soft_histogram)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for count, dim, num_bins, sharpness in ((3, 2, 5, 6.0), (7, 4, 9, 20.0)):
        tokens = 1.7 * torch.randn(count, dim, generator=generator, dtype=torch.float64)
        args = (tokens, num_bins, sharpness)
        want, causes = soft_histogram(*args), _histogram_causes(*args)
        what = f"the histogram of {count} tokens in {num_bins} bins"
        expect(fn(*args), want, what=what, mistakes=causes)


# ---------------------------------------------------------------------------------- its loss


def histogram_loss(codebook, teacher, sharpness, eps):
    """codebook (n, d), teacher (N,) -> sum_k P_t log(P_t / P_s), eps added to both; the gradient
    goes to the codebook only."""
    return _divergence(codebook, teacher, sharpness, eps)


def _divergence(codebook, teacher, sharpness, eps, way="t", added="both", reduced="sum",
                stopped=True):
    """`histogram_loss`, or with one thing done differently."""
    student = _histogram(codebook, len(teacher), sharpness)
    target = teacher.detach() if stopped else teacher
    if added in ("both", "student"):
        student = student + eps
    if added in ("both", "teacher"):
        target = target + eps
    first, second = (target, student) if way == "t" else (student, target)
    terms = first * (first / second).log()
    if way == "log":
        terms = target * student.log()
    if way == "square":
        terms = (target - student).square()
    return {"sum": terms.sum, "mean": terms.mean, "minus": lambda: -terms.sum()}[reduced]()


def _divergence_causes(*args):
    def other(**change):
        return lambda: _divergence(*args, **change)

    return {
        "the two are the other way round: sum P_t log(P_t / P_s), weighed by the teacher":
            other(way="s"),
        "the mean over bins: a divergence is the sum": other(reduced="mean"),
        "the sign is wrong": other(reduced="minus"),
        "log P_t is missing: this is minus the cross-entropy": other(way="log"),
        "this is a squared distance: sum P_t log(P_t / P_s)": other(way="square"),
        "eps is added to the student only: to both": other(added="student"),
        "eps is added to the teacher only, and an empty bin of the student is what makes "
        "infinity: to both": other(added="teacher"),
        "eps is missing: add it to both histograms": other(added="none"),
    }


@torch.enable_grad()
def _reached(fn, codebook, teacher, sharpness, eps):
    """Which of (codebook, teacher) got a gradient of fn."""
    codebook, teacher = codebook.clone().requires_grad_(), teacher.clone().requires_grad_()
    value = fn(codebook.clone(), teacher.clone(), sharpness, eps)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return False, False
    value.backward()
    return codebook.grad is not None, teacher.grad is not None


@check("glotok.histogram_loss", reference=histogram_loss)
def _(fn):
    generator = torch.Generator().manual_seed(1)
    for count, dim, num_bins, sharpness, eps in ((4, 3, 6, 8.0, 0.02), (6, 2, 9, 20.0, 0.2)):
        codebook = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        teacher = torch.rand(num_bins, generator=generator, dtype=torch.float64)
        args = (codebook, teacher / teacher.sum(), sharpness, eps)
        want, causes = histogram_loss(*args), _divergence_causes(*args)
        expect(fn(*args), want, what="the loss", mistakes=causes)
    student, fixed = _reached(fn, *args)
    if not student:
        raise Wrong("the loss: no gradient reaches the codebook; detach the teacher alone")
    if fixed:
        raise Wrong("the loss: a gradient reaches the teacher, who is fixed: teacher.detach()")


# ------------------------------------------------------------------------ loss of the residual net


def residual_loss(latents, codes, residual):
    """latents and codes (..., C), residual a function of codes -> mean (sg latents - codes -
    residual(codes))^2, 0-dim."""
    return (latents.detach() - codes - residual(codes)).square().mean()


def _residual_causes(latents, codes, residual):
    z = latents.detach()
    return {
        "the net was shown the latents; at decoding there are none: residual(codes)":
            lambda: (z - codes - residual(latents)).square().mean(),
        "the net was shown what is missing, which decoding does not know: residual(codes)":
            lambda: (z - codes - residual(z - codes)).square().mean(),
        "the codes themselves are missing: latents - codes - residual(codes)":
            lambda: (z - residual(codes)).square().mean(),
        "the guess is added on the wrong side: codes + residual(codes) should be near the latents":
            lambda: (z - codes + residual(codes)).square().mean(),
        "the sum of squares: the mean": lambda: (z - codes - residual(codes)).square().sum(),
        "the mean of absolute values: of squares":
            lambda: (z - codes - residual(codes)).abs().mean(),
    }


@torch.enable_grad()
def _gets(fn, latents, codes, residual):
    """Which of (latents, codes) got a gradient of fn."""
    latents, codes = latents.clone().requires_grad_(), codes.clone().requires_grad_()
    value = fn(latents.clone(), codes.clone(), residual)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return False, False
    value.backward()
    return latents.grad is not None, codes.grad is not None


@check("glotok.residual_loss", reference=residual_loss)
def _(fn):
    generator = torch.Generator().manual_seed(2)
    nets = (lambda x: 0.4 * x.roll(1, dims=-2) + 0.1, lambda x: torch.tanh(x).flip(-1))
    for shape, net in zip(((2, 3, 4), (5, 6)), nets, strict=True):
        latents, codes = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        args = (latents, codes, net)
        want, causes = residual_loss(*args), _residual_causes(*args)
        expect(fn(*args), want, what="the loss", mistakes=causes)
    encoder, book = _gets(fn, *args)
    if encoder:
        raise Wrong("the loss: a gradient reaches the latents; they are the target: "
                    "latents.detach()")
    if not book:
        raise Wrong("the loss: no gradient reaches the codes; stop it at the latents alone")
