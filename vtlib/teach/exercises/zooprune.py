"""The exercise on ZOO-Prune: sensitivity without a gradient."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import check, expect, untouched


def sensitivity(features, project, directions, step):
    """features (B, N, d) -> (B, N): mean length of (M(x + h u) - M(x - h u)) / 2h over unit directions."""
    u = F.normalize(directions, dim=1)
    x = features[:, :, None]
    move = (project(x + step * u) - project(x - step * u)) / (2 * step)
    return move.norm(dim=-1).mean(dim=2)


def _along(features, project, u, step):
    x = features[:, :, None]
    return ((project(x + step * u) - project(x - step * u)) / (2 * step)).norm(dim=-1).mean(2)


@check("zooprune.sensitivity", reference=sensitivity)
def _(fn):
    generator = torch.Generator().manual_seed(6)
    features, directions = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64), 3 * torch.randn(9, 6, generator=generator, dtype=torch.float64)
    w1, w2 = (torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2))

    def project(x):
        return F.gelu(x @ w1) @ w2

    h = 0.05
    with untouched(features, directions):
        got = fn(features, project, directions, h)
    u, x = F.normalize(directions, dim=1), features[:, :, None]
    move = (project(x + h * u) - project(x - h * u)) / (2 * h)
    raw = (project(x + h * directions) - project(x - h * directions)) / (2 * h)
    forward = (project(x + h * u) - project(x)) / h
    causes = {
        "the length of the MEAN move: opposite moves cancel; take the length of each, then the mean": move.mean(2).norm(dim=-1),
        "divided by h; the two points are 2 h apart": 2 * move.norm(dim=-1).mean(2),
        "not divided by 2 h": 2 * h * move.norm(dim=-1).mean(2),
        "the directions are not normalised to length 1": raw.norm(dim=-1).mean(2),
        "the directions are normalised along the wrong axis: each ROW is a direction, dim=1": _along(features, project, F.normalize(directions, dim=0), h),
        "a forward difference; use M(x + h u) - M(x - h u)": forward.norm(dim=-1).mean(2),
        "squared lengths": move.square().sum(-1).mean(2),
        "the sum over directions; the mean is needed": move.norm(dim=-1).sum(2),
        "the largest move; the mean over directions is needed": move.norm(dim=-1).amax(2),
        "the direction axis is still there: take the mean over it": move.norm(dim=-1)}
    expect(got, sensitivity(features, project, directions, h), what="the sensitivity", mistakes=causes, atol=1e-9, rtol=1e-6)
    expect(fn(features, lambda x: 3 * x, directions, h), torch.full((2, 5), 3.0, dtype=torch.float64), what="M(x) = 3 x: the sensitivity", atol=1e-6)
