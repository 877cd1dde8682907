"""The exercise on CrossGET: matching on a complete graph."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import check, expect


def match(similarity, importance, r):
    """CrossGET's complete-graph matching -> source, target, each (r,).

    similarity (t, t), -inf on the diagonal; importance (t,).
    """
    return _match(similarity, importance, r)


def _match(similarity, importance, r, mask="rank", score="difference", among="receivers"):
    """`match` with one thing done differently; the defaults are right."""
    t = len(similarity)
    order = similarity.amax(dim=1).argsort(descending=mask != "rising", stable=True)
    rank = order if mask == "once" else order.argsort()
    later = rank[None, :] > rank[:, None]
    if mask == "place":
        later = torch.ones_like(later).triu(1)
    seen = similarity if mask == "none" else similarity.masked_fill(~later, -torch.inf)
    redundancy = seen.amax(dim=1)
    value = {
        "difference": importance - redundancy,
        "sum": -importance - redundancy,
        "alone": -redundancy,
        "largest": redundancy - importance,
    }[score]
    source = value.argsort(stable=True)[:r]
    receives = torch.ones_like(later[0]).scatter(0, source, False)
    allowed = {
        "receivers": receives.expand(t, t),
        "all": torch.ones_like(later),
        "later": later & receives,
    }[among]
    return source, similarity.masked_fill(~allowed, -torch.inf)[source].argmax(dim=1)


def _causes(similarity, importance, r):
    def variant(**changed):
        return lambda: _match(similarity, importance, r, **changed)

    return {
        "every token looks at every other: then both halves of a pair want to leave. Mask the"
        " ranks before its own": variant(mask="none"),
        "the mask follows the place in the sequence; it follows the rank by largest similarity":
            variant(mask="place"),
        "argsort once gives which token has rank 0, 1, ...; the rank of each token is argsort of"
        " that": variant(mask="once"),
        "ranks by rising similarity: rank 0 is the token with the LARGEST maximum":
            variant(mask="rising"),
        "importance has the wrong sign: an important token is to stay, and the r SMALLEST scores"
        " leave": variant(score="sum"),
        "importance plays no part: the score is importance - redundancy": variant(score="alone"),
        "the r largest scores leave; the smallest have to": variant(score="largest"),
        "a target may not be a source itself: mask the sources before the argmax":
            variant(among="all"),
        "the target is looked for among later ranks only; the release takes the most similar of"
        " ALL tokens that are no source": variant(among="later"),
    }


@check("crossget.match", reference=match)
def _(fn):
    for t, r in ((24, 10), (12, 5)):
        group = torch.randn(t // 4, 5)  # mutual pairs, and chains
        tokens = F.normalize(group.repeat(4, 1) + 0.3 * torch.randn(t, 5), dim=-1)
        tokens = tokens[torch.randperm(t)]
        half = (tokens @ tokens.T).triu(1)
        similarity = (half + half.T).fill_diagonal_(-torch.inf)
        args = (similarity, 0.3 * torch.rand(t), r)
        what = f"(source, target) of {t} tokens, r={r}"
        expect(fn(*args), match(*args), what=what, mistakes=_causes(*args))
