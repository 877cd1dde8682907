"""HoloV: one function, two files of the release that agree; the release's choices everywhere."""

from .adapters import adapter


@adapter(
    "holov",
    "HoloV (LLaVA variant; the Qwen variant returns the positions; both give the same tokens)",
    inputs=("image_tokens", "attention"),
)
def holov(case):
    from vtlib.pruning import holov

    c = case.config
    x, a = case.tensors["image_tokens"][None], case.tensors["attention"][None]
    if c["attention_scale"] != 1000 or c["eps"] != holov.EPS:
        raise ValueError(
            f"attention_scale={c['attention_scale']}, eps={c['eps']}: these are constants, 1000 "
            f"and 1e-6"
        )
    crops = holov.bands(c["N"], c["num_crops"])
    h = holov.score(x, a, crops, c["variance_weight"], raw_singles=True)
    weight = holov.crop_weights(h, crops, c["sharpness"])
    plan = holov.select(h, a, crops, c["keep"], "release", "attention", c["sharpness"], "release")
    sizes = (crops >= 0).sum(dim=1)
    return dict(
        crop_sizes=sizes,
        token_score=h[0],
        crop_score=holov.crop_scores(h, crops)[0],
        crop_weight=weight[0],
        quota=holov.quotas(weight, sizes, c["keep"], "release")[0],
        kept_positions=plan.index[0],
        tokens_out=plan.apply(x)[0],
    )
