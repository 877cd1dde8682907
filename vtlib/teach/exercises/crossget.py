"""The exercise on CrossGET: matching on a complete graph."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import check, expect, untouched


def match(similarity, importance, r):
    """CrossGET's complete-graph matching: similarity (t, t), -inf on the diagonal; importance (t,) -> source, target, each (r,)."""
    return _match(similarity, importance, r)


def _match(similarity, importance, r, mask="rank", score="difference", among="receivers", pick="small"):
    t = len(similarity)
    best = similarity.amax(dim=1)
    order = best.argsort(descending=mask != "rising", stable=True)
    rank = order if mask == "once" else order.argsort()
    later = rank[None, :] > rank[:, None]
    if mask == "place":
        later = torch.ones(t, t).triu(1).bool()
    seen = similarity if mask == "none" else similarity.masked_fill(~later, -torch.inf)
    redundancy = seen.amax(dim=1)
    value = {"difference": importance - redundancy, "sum": -importance - redundancy, "alone": -redundancy}[score]
    source = value.argsort(descending=pick == "large", stable=True)[:r]
    receives = torch.ones(t, dtype=torch.bool).scatter(0, source, False)
    allowed = {"receivers": receives.expand(t, t), "all": torch.ones(t, t).bool(), "later": later & receives}[among]
    return source, similarity.masked_fill(~allowed, -torch.inf)[source].argmax(dim=1)


@check("crossget.match", reference=match)
def _(fn):
    for t, r in ((24, 10), (12, 5)):
        group = torch.randn(t // 4, 5)
        x = F.normalize(group.repeat(4, 1) + 0.3 * torch.randn(t, 5), dim=-1)[torch.randperm(t)]                    # mutual pairs, and chains
        half = (x @ x.T).triu(1)
        similarity = (half + half.T).fill_diagonal_(-torch.inf)
        importance = 0.3 * torch.rand(t)
        with untouched(similarity, importance):
            got = fn(similarity, importance, r)
        want = match(similarity, importance, r)
        expect(got, want, what=f"(source, target) of {t} tokens, r={r}", mistakes={
            "every token looks at every other: then both halves of a pair want to leave. Mask the ranks before its own":
                lambda: _match(similarity, importance, r, mask="none"),
            "the mask follows the place in the sequence; it follows the rank by largest similarity":
                lambda: _match(similarity, importance, r, mask="place"),
            "argsort once gives which token has rank 0, 1, ...; the rank of each token is argsort of that": lambda: _match(similarity, importance, r, mask="once"),
            "ranks by rising similarity: rank 0 is the token with the LARGEST maximum": lambda: _match(similarity, importance, r, mask="rising"),
            "importance has the wrong sign: an important token is to stay, and the r SMALLEST scores leave": lambda: _match(similarity, importance, r, score="sum"),
            "importance plays no part: the score is importance - redundancy": lambda: _match(similarity, importance, r, score="alone"),
            "the r largest scores leave; the smallest have to": lambda: _match(similarity, importance, r, pick="large"),
            "a target may not be a source itself: mask the sources before the argmax": lambda: _match(similarity, importance, r, among="all"),
            "the target is looked for among later ranks only; the release takes the most similar of ALL tokens that are no source":
                lambda: _match(similarity, importance, r, among="later")})
