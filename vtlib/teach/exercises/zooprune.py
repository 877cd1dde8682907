"""The exercise on ZOO-Prune: sensitivity without a gradient."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import check, expect


def sensitivity(features, project, directions, step):
    """Mean length of (M(x + h u) - M(x - h u)) / 2h over unit directions: (B, N, d) -> (B, N)."""
    return _moves(features, project, F.normalize(directions, dim=1), step).norm(dim=-1).mean(dim=2)


def _moves(features, project, directions, step):
    """(B, N, m, d): how M moves along each direction."""
    x = features[:, :, None]
    ahead, back = project(x + step * directions), project(x - step * directions)
    return (ahead - back) / (2 * step)


def _causes(features, project, directions, step):
    unit, x = F.normalize(directions, dim=1), features[:, :, None]
    move = _moves(features, project, unit, step)
    by_column = _moves(features, project, F.normalize(directions, dim=0), step)
    forward = (project(x + step * unit) - project(x)) / step
    length = move.norm(dim=-1)
    return {
        "the length of the MEAN move: opposite moves cancel; take the length of each, then the"
        " mean": move.mean(dim=2).norm(dim=-1),
        "divided by h; the two points are 2 h apart": 2 * length.mean(dim=2),
        "not divided by 2 h": 2 * step * length.mean(dim=2),
        "the directions are not normalised to length 1":
            _moves(features, project, directions, step).norm(dim=-1).mean(dim=2),
        "the directions are normalised along the wrong axis: each ROW is a direction, dim=1":
            by_column.norm(dim=-1).mean(dim=2),
        "a forward difference; use M(x + h u) - M(x - h u)": forward.norm(dim=-1).mean(dim=2),
        "squared lengths": move.square().sum(dim=-1).mean(dim=2),
        "the sum over directions; the mean is needed": length.sum(dim=2),
        "the largest move; the mean over directions is needed": length.amax(dim=2),
        "the direction axis is still there: take the mean over it": length,
    }


@check("zooprune.sensitivity", reference=sensitivity)
def _(fn):
    generator = torch.Generator().manual_seed(6)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first, second = random(6, 6), random(6, 6)

    def project(x):
        return F.gelu(x @ first) @ second

    def triple(x):
        return 3 * x

    features, directions = random(2, 5, 6), 3 * random(9, 6)
    for step in (0.05, 0.4):
        args = (features, project, directions, step)
        got, want = fn(*args), sensitivity(*args)
        what = f"the sensitivity with h = {step}"
        expect(got, want, what=what, mistakes=_causes(*args), atol=1e-9, rtol=1e-6)
    got, want = fn(random(1, 4, 3), triple, random(5, 3), 0.05), torch.full((1, 4), 3.0).double()
    expect(got, want, what="M(x) = 3 x: the sensitivity", atol=1e-6)
    args = (features[:1], project, random(9, 6), 0.1)
    expect(fn(*args), sensitivity(*args), what="the sensitivity with other directions", atol=1e-9)
