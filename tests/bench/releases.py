"""What vtlib's selections are measured against: the steps of the methods' own releases, written
here from the algorithms, so that a row of the bench runs without them."""

import torch
from torch import Tensor


# ------------------------------------------------------------------------------------------- ToMe
def tome(tokens: Tensor, keep: int) -> Tensor:
    """ToMe (facebookresearch/ToMe, tome/merge.py): rounds of bipartite soft matching and weighted
    averages until `keep` tokens are left, the metric being the tokens themselves."""
    size = torch.ones_like(tokens[..., :1])
    while tokens.shape[1] > keep:
        removed = min(tokens.shape[1] - keep, tokens.shape[1] // 2)
        unmerged, source, target = _tome_match(tokens, removed)
        tokens = _tome_merge(tokens * size, unmerged, source, target)
        size = _tome_merge(size, unmerged, source, target)
        tokens = tokens / size
    return tokens


def _tome_match(metric: Tensor, removed: int) -> tuple[Tensor, Tensor, Tensor]:
    unit = metric / metric.norm(dim=-1, keepdim=True)
    scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    source = order[:, :removed]
    return order[:, removed:], source, partner[..., None].gather(1, source)


def _tome_merge(x: Tensor, unmerged: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The tokens left of the first set, then the second set with what it received added."""
    first, second = x[:, ::2], x[:, 1::2]
    batch, _, channels = first.shape
    left = first.gather(1, unmerged.expand(batch, -1, channels))
    moved = first.gather(1, source.expand(batch, -1, channels))
    received = second.scatter_reduce(1, target.expand(batch, -1, channels), moved, reduce="sum")
    return torch.cat([left, received], dim=1)


# --------------------------------------------------------------------------------------- CrossGET
def crossget_match(key: Tensor, query: Tensor, removed: int) -> tuple[Tensor, Tensor, Tensor]:
    """CrossGET (sdc17/CrossGET, CLIP/clip/reducer.py, TokenReduction.match, [CLS] and cross token
    protected): sources, their targets and both importances' softmax."""
    batch, num_tokens, _ = key.shape
    removed = min(removed, (num_tokens - 2) // 2)
    unit = key / key.norm(dim=-1, keepdim=True)
    similarity = unit @ unit.transpose(1, 2)
    similarity += torch.empty_like(similarity).fill_(-torch.inf).tril_().triu_()    # the diagonal
    for end in (0, -1):
        similarity[:, end, :] = similarity[:, :, end] = -torch.inf

    best = similarity.max(dim=-1, keepdim=True)[0]
    order = best.argsort(dim=1, descending=True).expand(-1, -1, num_tokens)
    earlier = torch.empty_like(similarity).fill_(-torch.inf).tril_()
    mask = similarity.scatter(1, order, earlier)
    mask = similarity.scatter(2, order.transpose(1, 2), mask)

    importance = unit @ (query / query.norm(dim=-1, keepdim=True))[..., None]
    redundancy = (similarity + mask).max(dim=-1, keepdim=True)[0]
    order = (importance - redundancy).argsort(dim=1)
    source, others = order[:, :removed], order[:, removed:]
    rows = similarity.gather(1, source.expand(-1, -1, num_tokens))
    columns = rows.gather(2, others.transpose(1, 2).expand(-1, removed, -1))
    target = others[..., 0].gather(1, columns.argmax(dim=-1))
    both = [importance[..., 0].gather(1, index) for index in (source[..., 0], target)]
    return source[..., 0], target, torch.stack(both, dim=-1).softmax(dim=-1)


# -------------------------------------------------------------------------------------- FasterVLM
def fastervlm(row: Tensor, tokens: Tensor, keep: int) -> Tensor:
    """FasterVLM (Theia-4869/FasterVLM, llava/model/llava_arch.py): mean over heads, topk, a mask,
    and image by image the tokens that it marks."""
    chosen = row.mean(dim=1).topk(keep, dim=1).indices
    masks = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    masks.scatter_(1, chosen, True)
    return torch.stack([image[mask] for image, mask in zip(tokens, masks, strict=True)])


# --------------------------------------------------------------------------------------- DivPrune
def divprune(tokens: Tensor, keep: int) -> Tensor:
    """DivPrune (vbdi/divprune, DivPrune in llava_arch.py): image by image; each step a minimum over
    the rows of all tokens chosen so far."""
    out = []
    for image in tokens:
        unit = image / image.norm(dim=1, keepdim=True)
        distance = 1 - unit @ unit.T
        chosen = distance.topk(2, dim=0, largest=False).values[1].argmax()[None]
        for _ in range(keep - 1):
            farthest = distance.index_select(0, chosen).amin(dim=0).argmax()
            chosen = torch.cat([chosen, farthest[None]])
        out.append(chosen.sort().values)
    return torch.stack(out)
