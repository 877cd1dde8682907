"""Moving tokens: today's `take`, `Plan.apply` and `top_tokens` against the commit that the targets
are ratios to, in one process."""

import torch

from .before import FIRST, before, ratio, today

SHAPES = ((1, 576, 1024, 64), (16, 576, 1024, 64), (1, 2880, 4096, 320))
"""(B, N, D, keep): LLaVA-1.5, a batch of it, LLaVA-NeXT."""


def example(batch, num_tokens, dim, keep):
    """Tokens, scores, kept places and the entries of a merging plan in which nothing is lost."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, num_tokens, dim, generator=generator)
    score = torch.rand(batch, num_tokens, generator=generator)
    index = score.argsort(dim=1)[:, :keep].sort(dim=1).values
    origin = torch.arange(num_tokens).expand(batch, -1)
    slot = torch.randint(keep, (batch, num_tokens), generator=generator)
    slot[:, :keep] = torch.arange(keep)
    weight = torch.rand(batch, num_tokens, generator=generator)
    return x, score, index, (origin, slot, weight)


def jobs(module, x, score, index, entries):
    """(name, function) of what is measured, for one version of the library."""
    take, top_tokens = module("tokens.select").take, module("tokens.select").top_tokens
    plan = module("tokens.plan").Plan
    num_tokens, keep = x.shape[1], index.shape[1]
    slots = torch.arange(keep).expand(len(x), -1)
    behind = torch.cat([x[:, :1], x], dim=1)[:, 1:]                 # as features behind a [CLS]
    drop, merge = plan(index, num_tokens), plan(slots, num_tokens, *entries)
    return {
        "take": lambda: take(x, index),
        "take, behind a [CLS]": lambda: take(behind, index),
        "Plan.apply, keep and drop": lambda: drop.apply(x),
        "Plan.apply, merge": lambda: merge.apply(x),
        "top_tokens": lambda: top_tokens(score, keep),
        "top_tokens, Plan, apply": lambda: plan(top_tokens(score, keep), num_tokens).apply(x),
    }


def against_before(shapes=SHAPES, repeats=5):
    for shape in shapes:
        inputs = example(*shape)
        new, old = jobs(today, *inputs), jobs(before().module, *inputs)
        for name in new:
            difference = float((new[name]() - old[name]()).abs().max())
            share = ratio(new[name], old[name], repeats)
            yield name, str(shape), f"{difference:.0e}", f"{share:.2f}"


def tables():
    header = ("what", "(B, N, D, keep)", "largest difference", "time / before")
    yield f"Moving tokens, today against {FIRST}", header, against_before()
