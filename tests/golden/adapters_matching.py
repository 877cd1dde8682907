"""OneFormer's matcher, shared by all that match masks: costs at given points, and the pairs."""

from .adapters import adapter


@adapter(
    "oneformer",
    "OneFormerHungarianMatcher.forward",
    inputs=("class_logits", "mask_logits", "target_masks", "target_labels", "points"),
)
def matcher(case):
    from vtlib.segmentation.losses import sample_points
    from vtlib.segmentation.matching import assign, match_cost

    c, t = case.config, case.tensors
    points = t["points"][None]
    cost = match_cost(
        t["class_logits"],
        sample_points(t["mask_logits"][None], points)[0],
        t["target_labels"].long(),
        sample_points(t["target_masks"][None], points)[0],
        (c["cost_class"], c["cost_mask"], c["cost_dice"]),
    )
    query, target = assign(cost)
    return {"cost": cost, "query_index": query, "target_index": target}
