"""Vector quantisation side by side with vector-quantize-pytorch, forward and backward in training,
and its memory as the codebook grows."""

import time

import torch

from vtlib.quantize import ResidualQuantizer, VectorQuantizer

from .before import peak_bytes

TOKENS, CODES, LEVELS = 16384, 16384, 8
MIB = 2**20


def pair(dim, codes=CODES, levels=None):
    """(ours, theirs), nets x -> (codes, indices, loss) with the same codebooks. Both learn by
    moving averages and have the rotation trick, which is the default over there."""
    from vector_quantize_pytorch import ResidualVQ, VectorQuantize

    if levels is None:
        ours = VectorQuantizer(dim, codes, gradient="rotation", commitment_weight=1.0)
        theirs = VectorQuantize(dim=dim, codebook_size=codes)
        books = [(ours, theirs)]
    else:
        ours = ResidualQuantizer(dim, codes, levels, gradient="rotation", commitment_weight=1.0)
        theirs = ResidualVQ(dim=dim, codebook_size=codes, num_quantizers=levels)
        books = zip(ours.quantizers, theirs.layers, strict=True)
    for level, (own, other) in enumerate(books):
        start = torch.randn(codes, dim) / 2**level
        own.codebook.copy_(start)
        other._codebook.embed.copy_(start)
        other._codebook.embed_avg.copy_(start)
    return ours, theirs


def step(net, x):
    """A function: forward and backward, into a fresh gradient of x."""
    def run():
        out = net(x)
        codes, loss = (out.codes, out.loss) if hasattr(out, "codes") else (out[0], out[2].sum())
        return torch.autograd.grad(codes.sum() + loss, x)

    return run


def measured(run, warmup):
    """(processor seconds, most bytes) of one run; the library's takes a minute with eight levels,
    so there nothing runs before."""
    seconds = []

    def timed():
        start = time.process_time()
        result = run()
        seconds.append(time.process_time() - start)
        return result

    peak = peak_bytes(timed, warmup)
    return min(seconds), peak


def against_library(tokens=TOKENS, codes=CODES, dims=(8, 256), levels=None):
    """Rows: D, seconds and MiB of both, and the two ratios."""
    for dim in dims:
        x = torch.randn(1, tokens, dim).requires_grad_()
        nets = pair(dim, codes, levels)
        (own, held), (other, theirs) = (measured(step(net, x), levels is None) for net in nets)
        yield (
            dim, f"{own:.2f}", f"{other:.2f}", f"{own / max(other, 1e-9):.2f}",
            f"{held / MIB:.0f}", f"{theirs / MIB:.0f}", f"{held / theirs:.3f}",
        )


def memory_of_codes(tokens=TOKENS, sizes=(4096, 16384, 65536), dims=(8, 256)):
    """Rows: D, and the peak in MiB beyond the codebook at each number of codes."""
    for dim in dims:
        x = torch.randn(1, tokens, dim).requires_grad_()
        peaks = [peak_bytes(step(VectorQuantizer(dim, size), x)) for size in sizes]
        yield dim, *(f"{peak / MIB:.0f}" for peak in peaks)


def tables():
    header = ("D", "s", "s, theirs", "time", "MiB", "MiB, theirs", "memory")
    size = f"{TOKENS:,} vectors, {CODES:,} codes, forward + backward"
    yield f"VQ against vector-quantize-pytorch: {size}", header, against_library()
    yield f"Residual VQ, {LEVELS} levels: {size}", header, against_library(levels=LEVELS)
    grown = ("D", "K = 4,096", "K = 16,384", "K = 65,536")
    yield f"VQ, peak MiB of {TOKENS:,} vectors as codes grow", grown, memory_of_codes()
