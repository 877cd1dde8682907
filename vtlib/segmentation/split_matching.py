"""Split Matching for Inductive Zero-shot Semantic Segmentation (Chen, Zheng, Li, Yi, Ito, Paudel,
Van Gool, Murase, Deguchi, 2025, arXiv 2505.05023).

The idea: where only seen classes are annotated, the usual matching makes every query that finds
something else "no object", objects of unseen classes among them. Split Matching has two groups of
queries with a matching each: seen queries with the annotations, candidate queries with pseudo masks
of un-annotated regions, clustered from a frozen image-text encoder. A candidate learns the
embedding of its region, which a name can meet at test time; one that is not matched learns nothing.

    Q = [Q_s, Q_c], one decoder, the group is the place         SplitMatching
    pseudo masks and region embeddings e_j                      split_matching_masks
    F' = F + sum_s up(conv(avgpool_s(F)))                       MultiScaleEnhancement
    cos(c_i, t_k) / tau, and a learnt "no object"               SplitMatching.class_logits
    cost of seen queries: -p(class), BCE, Dice                  matching.match
    cost of candidates: 1 - cos(c_i, e_j), BCE, Dice            candidate_cost
    two assignments, each among its own queries                 split_match
    2 CE + 5 BCE + 5 Dice  +  lambda (2 (1 - cos) + 5 BCE + 5 Dice), every layer      split_loss
    sum_i p_i(k) sigmoid(m_i) over the names of all classes     SplitMatching.scores

From the paper: the split of queries and matchings, clusters as pseudo masks, region embeddings from
the class token, a cost of classes and one of masks, that there is a multi-scale enhancement. No
official code was found, and its text gives none of the following, which is chosen here: numbers of
queries, widths and layers (Mask2Former's), all weights and tau, masked attention, the wiring of the
enhancement, that an unmatched candidate has no loss, and the rule of inference.

The model starts at dense features of the frozen encoder, (B, h, w, D); masks are of their size.
Text embeddings are an argument: of seen classes in training, of all at test time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..nn.checks import (
    check_axes,
    check_channels,
    check_dtype,
    check_flag,
    check_heads,
    check_int,
    check_ints,
    check_list,
    check_number,
    check_numbers,
    check_tokens,
    describe,
)
from ..tokens.cosine import unit
from ..tokens.precision import full_precision, widen
from .losses import class_loss, mask_losses
from .matching import WEIGHTS, Match, assign, bce_cost, dice_cost, match
from .oneformer_nets import (
    MLP,
    CrossAttentionLayer,
    FFNLayer,
    SelfAttentionLayer,
    sine_positions,
)
from .split_matching_masks import Regions
from .zero_shot import SeenTargets

PAPER = "split-matching"


class Prediction(NamedTuple):
    """What the queries say, seen ones first.

    Args:
        embeddings: c_i, (B, Q, d) unit vectors, float32 at least.
        mask_logits: m_i, (B, Q, h, w).
    """

    embeddings: Tensor
    mask_logits: Tensor


class SplitLoss(NamedTuple):
    """Scalars, summed over layers.

    Args:
        total: the weighted sum.
        classes: cross entropy of seen queries, this and the rest without weights.
        bce: of their masks.
        dice: of their masks.
        cosine: 1 - cos of matched candidates and their regions.
        candidate_bce: of their masks.
        candidate_dice: of their masks.
    """

    total: Tensor
    classes: Tensor
    bce: Tensor
    dice: Tensor
    cosine: Tensor
    candidate_bce: Tensor
    candidate_dice: Tensor


# -------------------------------------------------------------------------------------- the model
class MultiScaleEnhancement(nn.Module):
    """F + sum over s of up(conv(avgpool_s(F))), (B, D, h, w) -> (B, D, h, w).

    conv is 3 x 3, GELU, 1 x 1, the last one zero at first: training begins with F itself.

    Args:
        embed_dim: D.
        scales: sides s of the pooled squares.
    """

    def __init__(self, embed_dim: int, scales: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__()
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        self.scales = check_ints(scales, "scales", 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(embed_dim, embed_dim, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(embed_dim, embed_dim, 1),
            )
            for _ in self.scales
        )
        for branch in self.branches:
            nn.init.zeros_(branch[2].weight)
            nn.init.zeros_(branch[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        size, out = x.shape[-2:], x
        for scale, branch in zip(self.scales, self.branches, strict=True):
            pooled = F.avg_pool2d(x, scale, ceil_mode=True, count_include_pad=False)
            out = out + F.interpolate(branch(pooled), size=size, mode="bilinear")
        return out


class SplitMatching(nn.Module):
    """Two groups of queries in one masked decoder, over frozen dense features.

    Args:
        in_dim: channels of the features.
        text_dim: d, of text and region embeddings.
        embed_dim: D of the decoder, a multiple of 4.
        num_heads: must divide D.
        hidden_dim: of the feed-forward nets.
        num_layers: of the decoder.
        num_seen: Q_s, the first queries.
        num_candidates: Q_c, the others; 0: the ordinary query segmenter.
        scales: of the multi-scale enhancement; (): none.
        tau: temperature of class scores.
    """

    def __init__(
        self,
        in_dim: int = 512,
        text_dim: int = 512,
        embed_dim: int = 256,
        num_heads: int = 8,
        hidden_dim: int = 2048,
        num_layers: int = 9,
        num_seen: int = 70,
        num_candidates: int = 30,
        scales: Sequence[int] = (1, 2, 4),
        tau: float = 0.07,
    ) -> None:
        super().__init__()
        embed_dim = check_heads(embed_dim, num_heads) * int(num_heads)
        self.embed_dim, self.text_dim = embed_dim, check_int(text_dim, "text_dim", 1)
        self.num_seen = check_int(num_seen, "num_seen", 1)
        self.num_candidates = check_int(num_candidates, "num_candidates", 0)
        self.tau = check_number(tau, "tau", above=0)
        every, queries = range(check_int(num_layers, "num_layers", 0)), num_seen + num_candidates
        self.input_proj = nn.Linear(check_int(in_dim, "in_dim", 1), embed_dim)
        self.input_norm = nn.LayerNorm(embed_dim)
        self.enhance = MultiScaleEnhancement(embed_dim, scales)
        self.query_feat = nn.Embedding(queries, embed_dim)
        self.query_embed = nn.Embedding(queries, embed_dim)
        self.cross_attention = nn.ModuleList(
            CrossAttentionLayer(embed_dim, num_heads) for _ in every
        )
        self.self_attention = nn.ModuleList(SelfAttentionLayer(embed_dim, num_heads) for _ in every)
        self.feed_forward = nn.ModuleList(FFNLayer(embed_dim, hidden_dim) for _ in every)
        self.norm = nn.LayerNorm(embed_dim)
        self.class_embed = MLP(embed_dim, embed_dim, self.text_dim, 2)
        self.mask_embed = MLP(embed_dim, embed_dim, embed_dim, 3)
        self.no_object = nn.Parameter(torch.randn(self.text_dim))

    def predict(self, queries: Tensor, maps: Tensor) -> Prediction:
        """Embedding and mask of every query (B, Q, D) on mask features (B, D, h, w)."""
        x = self.norm(queries)
        masks = torch.einsum("bqd,bdhw->bqhw", self.mask_embed(x), maps)
        return Prediction(unit(self.class_embed(x)), masks)

    def forward(self, features: Tensor) -> list[Prediction]:
        """Dense features (B, h, w, in_dim) -> predictions, the first before any layer, the last of
        all layers. A query looks where its own mask of the layer before is."""
        check_axes(features, "features", "(B, h, w, D)")
        check_channels(features, self.input_proj.in_features, "features")
        check_dtype(features, self.input_proj.weight, "features")
        batch, height, width, _ = features.shape
        x = self.input_norm(self.input_proj(features))                               # b h w d
        maps = self.enhance(rearrange(x, "b h w d -> b d h w"))
        memory = x.flatten(1, 2)
        position = sine_positions((height, width), self.embed_dim, x.device)[None].to(x.dtype)
        place = self.query_embed.weight[None].to(x.dtype)
        queries = self.query_feat.weight[None].to(x.dtype).expand(batch, -1, -1)
        predictions = [self.predict(queries, maps)]
        layers = zip(self.cross_attention, self.self_attention, self.feed_forward, strict=True)
        for cross_attention, self_attention, feed_forward in layers:
            mask = predictions[-1].mask_logits.detach().flatten(2) >= 0              # b q hw
            mask = mask | ~mask.any(dim=-1, keepdim=True)    # nothing there: look everywhere
            queries = cross_attention(queries, place, memory, position, mask[:, None])
            queries = feed_forward(self_attention(queries, place))
            predictions.append(self.predict(queries, maps))
        return predictions

    def class_logits(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """cos(c_i, t_k) / tau for each name, then for the learnt "no object": (B, Q, K + 1).

        Args:
            embeddings: (B, Q, d) unit vectors.
            text: (K, d), made unit.
        """
        check_tokens(embeddings, self.text_dim, "embeddings")
        check_axes(text, "text", "(K, d)")
        if text.shape[1] != self.text_dim or not text.shape[0]:
            needs = f"(K, {self.text_dim}), K > 0"
            raise ValueError(f"text is {describe(text)} but needs to be {needs}")
        with full_precision(embeddings.device):
            rows = unit(torch.cat([text, self.no_object[None].to(text.dtype)]))      # k+1 d
            return widen(embeddings) @ rows.to(widen(embeddings).dtype).T / self.tau

    def scores(
        self,
        prediction: Prediction,
        text: Tensor,
        seen: Sequence[int] = (),
        calibration: float = 0.0,
        background: bool = False,
    ) -> Tensor:
        """Score of every name at every place, sum_i p_i(k) sigmoid(m_i): (B, K, h, w).

        "No object" takes its share of the seen queries alone. The semantic map is `.argmax(1)`.

        Args:
            prediction: of `forward`, the last.
            text: names of seen AND unseen classes, (K, d).
            seen: numbers of the seen ones, for the calibration only.
            calibration: subtracted from the scores of seen classes; usual in the field, whether the
                paper does so is unknown: 0.
            background: candidates may be "no object", too; for the ablation that trains them so.
        """
        calibration = check_number(calibration, "calibration", 0)
        found = list(check_ints(seen, "seen", 0))
        if (calibration and not found) or (found and max(found) >= len(text)):
            needs = f"the seen classes, among 0 ... {len(text) - 1}"
            raise ValueError(f"seen={found} with calibration={calibration}: needs {needs}")
        logits = self.class_logits(prediction.embeddings, text)
        own, others = logits.split([self.num_seen, self.num_candidates], dim=1)
        if not check_flag(background, "background"):
            others = F.pad(others[..., :-1], (0, 1), value=-torch.inf)
        p = torch.cat([own, others], dim=1).softmax(-1)[..., :-1]                    # b q k
        out = torch.einsum("bqk,bqhw->bkhw", p, widen(prediction.mask_logits).sigmoid().to(p.dtype))
        shift = torch.zeros(len(text), dtype=out.dtype, device=out.device)
        shift[found] = calibration
        return out - shift[:, None, None]


# ------------------------------------------------------------------------------- the two matchings
def candidate_cost(
    embeddings: Tensor,
    mask_logits: Tensor,
    regions: Tensor,
    masks: Tensor,
    weights: Sequence[float] = WEIGHTS,
) -> Tensor:
    """Cost of each candidate for each pseudo mask, (*, Q, T): 2 (1 - cos) + 5 BCE + 5 Dice.

    Args:
        embeddings: c_i, (*, Q, d) unit vectors.
        mask_logits: (*, Q, P) at P places.
        regions: e_j, (*, T, d) unit vectors.
        masks: at the same places, (*, T, P) floats in [0, 1].
        weights: of cosine, BCE and Dice.
    """
    by_cosine, by_bce, by_dice = check_numbers(weights, "weights", 0, length=3)
    if embeddings.shape[-1] != regions.shape[-1] or mask_logits.shape[-1] != masks.shape[-1]:
        raise ValueError(
            f"embeddings is {describe(embeddings)}, mask_logits {describe(mask_logits)}, regions "
            f"{describe(regions)}, masks {describe(masks)}: need the same d, and the same P"
        )
    with full_precision(mask_logits.device):
        logits, c = widen(mask_logits), widen(embeddings)
        masks, e = masks.to(logits.dtype), regions.to(c.dtype)
        apart = 1 - c @ e.transpose(-2, -1)                                          # * q t
        return (
            by_cosine * apart
            + by_bce * bce_cost(logits, masks)
            + by_dice * dice_cost(logits, masks)
        )


@torch.no_grad()
def split_match(
    model: SplitMatching,
    prediction: Prediction,
    targets: Sequence[SeenTargets],
    regions: Sequence[Regions],
    text: Tensor,
    weights: Sequence[float] = WEIGHTS,
) -> tuple[list[Match], list[Match]]:
    """Pairs of seen queries and annotated masks, and pairs of candidates and pseudo masks, of each
    picture: two assignments that know nothing of each other. Queries are numbered among all.

    Args:
        model: how many queries are seen ones, and their class scores.
        prediction: of one layer.
        targets: annotated masks.
        regions: pseudo masks.
        text: names of the seen classes, (S, d).
        weights: of class or cosine, BCE and Dice.
    """
    embeddings, mask_logits = prediction
    first = model.num_seen
    own = match(
        model.class_logits(embeddings[:, :first], text),
        mask_logits[:, :first],
        [entry.labels for entry in targets],
        [entry.masks for entry in targets],
        num_points=None,
        weights=weights,
    )
    counts = [len(entry.masks) for entry in regions]
    padded = [pad_sequence(list(parts), batch_first=True) for parts in zip(*regions, strict=True)]
    cost = candidate_cost(
        embeddings[:, first:], mask_logits[:, first:].flatten(2), padded[0], padded[1].flatten(2),
        weights,
    )
    device, cost = cost.device, cost.to("cpu")
    found = [assign(cost[b, :, :count]) for b, count in enumerate(counts)]
    others = [Match(query.to(device) + first, target.to(device)) for query, target in found]
    return own, others


def split_loss(
    model: SplitMatching,
    predictions: Sequence[Prediction],
    targets: Sequence[SeenTargets],
    regions: Sequence[Regions],
    text: Tensor,
    weights: Sequence[float] = WEIGHTS,
    candidates: float = 1.0,
    background: bool = False,
) -> SplitLoss:
    """The loss of a batch: each layer's predictions are matched anew.

    A picture without annotation has no pair of seen queries (they learn "no object"), one without
    pseudo masks none of candidates; of more pseudo masks than candidates some stay without. The
    gradient of an unmatched candidate's outputs is 0.

    Args:
        model: whose predictions they are.
        predictions: of `model(features)`.
        targets: of each picture, `zero_shot.seen_targets`.
        regions: of each picture.
        text: names of the seen classes, (S, d); unseen ones have no place here.
        weights: of class or cosine, BCE and Dice.
        candidates: lambda.
        background: also teach unmatched candidates "no object", at its weight 0.1: the ablation.
    """
    weights = check_numbers(weights, "weights", 0, length=3)
    share = check_number(candidates, "candidates", 0)
    background = check_flag(background, "background")
    layers = check_list(predictions, "predictions", "a list of Prediction")
    if not layers:
        raise ValueError("predictions is empty: needs one prediction at least")
    _check_targets(targets, regions, layers[0], model)
    rows = []
    for prediction in layers:
        own, others = split_match(model, prediction, targets, regions, text, weights)
        rows.append((
            *_seen_losses(model, prediction, targets, own, text),
            *_candidate_losses(model, prediction, regions, others, text, background),
        ))
    sums = [torch.stack(each).sum() for each in zip(*rows, strict=True)]
    scale = (*weights, *(share * weight for weight in weights))
    total = torch.stack([weight * part for weight, part in zip(scale, sums, strict=True)]).sum()
    return SplitLoss(total, *sums)


def _seen_losses(
    model: SplitMatching,
    prediction: Prediction,
    targets: Sequence[SeenTargets],
    pairs: list[Match],
    text: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    logits = model.class_logits(prediction.embeddings[:, : model.num_seen], text)
    classes = class_loss(logits, [entry.labels for entry in targets], pairs)
    masks = [entry.masks for entry in targets]
    of_masks = mask_losses(prediction.mask_logits, masks, pairs, num_points=None)
    return classes, of_masks.bce, of_masks.dice


def _candidate_losses(
    model: SplitMatching,
    prediction: Prediction,
    regions: Sequence[Regions],
    pairs: list[Match],
    text: Tensor,
    background: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over the pseudo masks that found a candidate."""
    count = max(sum(len(query) for query, _ in pairs), 1)
    masks = [entry.masks[target] for entry, (_, target) in zip(regions, pairs, strict=True)]
    places = [(query, torch.arange(len(query), device=query.device)) for query, _ in pairs]
    of_masks = mask_losses(prediction.mask_logits, masks, places, num_points=None)
    batch = torch.cat([torch.full_like(query, b) for b, (query, _) in enumerate(pairs)])
    query = torch.cat([query for query, _ in pairs])
    wanted = torch.cat([e.embeddings[t] for e, (_, t) in zip(regions, pairs, strict=True)])
    c = widen(prediction.embeddings[batch, query])                                   # m d
    cosine = (1 - (c * wanted.to(c.dtype)).sum(-1)).sum() / count
    if background and model.num_candidates:
        logits = model.class_logits(prediction.embeddings, text)
        free = torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device)
        free[:, model.num_seen :] = True
        free[batch, query] = False
        empty = -logits.log_softmax(-1)[..., -1]                                     # b q
        cosine = cosine + 0.1 * (empty * free).sum() / free.sum().clamp_min(1)
    return cosine, of_masks.bce, of_masks.dice


def _check_targets(
    targets: Sequence[SeenTargets],
    regions: Sequence[Regions],
    prediction: Prediction,
    model: SplitMatching,
) -> None:
    batch, size = prediction.mask_logits.shape[0], prediction.mask_logits.shape[2:]
    for entries, name, kind in ((targets, "targets", SeenTargets), (regions, "regions", Regions)):
        found = check_list(entries, name, f"a list of {kind.__name__}, one a picture")
        if len(found) != batch or not all(isinstance(entry, kind) for entry in found):
            raise ValueError(f"{name} needs {batch} {kind.__name__}, one a picture")
        for b, entry in enumerate(found):
            if entry.masks.dim() != 3 or entry.masks.shape[1:] != size:
                needs = f"(T, {size[0]}, {size[1]})"
                raise ValueError(f"{name}[{b}] masks is {describe(entry.masks)}, needs {needs}")
            if len(entry[0]) != len(entry.masks):
                told = f"{len(entry[0])} {entry._fields[0]} and {len(entry.masks)} masks"
                raise ValueError(f"{name}[{b}] has {told}: needs one a mask")
    for b, entry in enumerate(regions):
        if entry.embeddings.dim() != 2 or entry.embeddings.shape[1] != model.text_dim:
            told = f"regions[{b}] embeddings is {describe(entry.embeddings)}"
            raise ValueError(f"{told} but needs to be (T, {model.text_dim})")
