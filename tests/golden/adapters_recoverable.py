"""Recoverable Compression: the local outlier factor, and the whole selection with the released
quirks on."""

import torch

from .adapters import adapter


@adapter("recoverable-compression", "find_max_derivative_position", inputs=("scores", "scores_dup"))
def dynamic_scale_filter(case):
    from vtlib.pruning.recoverable import local_outlier_factor, local_outliers

    out, n = {}, case.config["n_neighbors"]
    for name, end in (("scores", ""), ("scores_dup", "_dup")):
        if name in case.tensors:
            scores = case.tensors[name]
            factor, outlier = local_outlier_factor(scores, n), local_outliers(scores, n)
            out[f"ratio{end}"] = outlier.float().mean()
            out[f"nof{end}"] = -factor[0]
            out[f"outlier{end}"] = outlier[0]
    return out


NAME = (
    "CLIPVisionTower.token_recycling_with_text_in_vision_and_clustring, get_score_by_text, "
    "find_max_derivative_position, complement_idx"
)


@adapter("recoverable-compression", NAME, inputs=("q", "k", "features", "projected", "text"))
def recover(case):
    from vtlib.pruning import recoverable
    from vtlib.tokens import VisionOutputs

    c, t = case.config, case.tensors
    neighbours = (c["neighbours_visual"], c["neighbours_text"], c["neighbours_third"])
    vision = VisionOutputs(t["features"], (1, c["N"]), lambda x: x)
    patches = t["projected"][:, 1:]
    plan = recoverable.prune(
        vision,
        query=t["q"],
        key=t["k"],
        patches=patches,
        text=t["text"],
        n_neighbors=neighbours,
        num_gathered=c["cluster_k"],
        text_weight=c["text_weight"],
        released_center_count=True,
        released_key_index=True,
        released_float_count=True,
    )
    visual = recoverable.visual_score(t["q"], t["k"])
    text = recoverable.text_score(t["text"], patches)
    found = recoverable.filters(visual, text, neighbours, width=c["C"], float_count=True)
    kept = found.kept[0]
    left = (~kept).nonzero()[:, 0]

    def falling(mask, score):
        index = mask.nonzero()[:, 0]
        return index[score[index].argsort(descending=True, stable=True)][None]

    centres = falling(found.centre[0], visual[0])
    slots = [*kept.nonzero()[:, 0].tolist(), *centres[0].tolist()]
    if plan.index[0].tolist()[: len(slots)] != slots:
        raise ValueError("the plan and its filters disagree")
    among = torch.tensor([c["N"], c["N"], len(left)])
    return dict(
        cls_attn=visual,
        text_score=text[:, None],
        lof_ratio=found.outliers[0] / among,
        index_vision=falling(found.vision[0], visual[0]),
        index_text=falling(found.text[0], text[0]),
        index_kept=kept.nonzero()[:, 0][None],
        index_remaining=left[None],
        index_centres_rel=torch.searchsorted(left, centres),
        out=plan.apply(vision.features),
    )
