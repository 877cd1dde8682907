"""Expedit: both layers, and SAM's encoder with the hourglass."""

import torch

from .adapters import adapter


@adapter("expedit", "TokenClusteringBlock.forward", inputs=("a.features", "b.features"))
def clustering(case):
    from vtlib.segmentation import expedit

    out = {}
    for name, c in case.config["sets"].items():
        x, grid = case.tensors[f"{name}.features"], tuple(c["grid_hw"])
        settings = dict(grid=grid, window=c["window"], tau=c["temperature"])
        for key, count in (
            ("init_centres", 0), ("centres_1iter", 1), ("centres", case.config["n_iters"])
        ):
            out[f"{name}.{key}"] = expedit.cluster(x, **settings, iterations=count)
        cells = expedit.initial_cells(tuple(x.shape[1:3]), grid)
        out[f"{name}.init_labels"] = cells.expand(len(x), -1)
        out[f"{name}.hard_labels"] = expedit.nearest_centres(
            x.flatten(1, 2), out[f"{name}.centres"]
        )
    return out


@adapter(
    "expedit", "TokenReconstructionBlock._forward",
    inputs=[f"{s}.{name}" for s in "ab" for name in ("before", "after", "refined")],
)
def reconstruction(case):
    from vtlib.segmentation import expedit

    out = {}
    for name, c in case.config["sets"].items():
        before, after, refined = (
            case.tensors[f"{name}.{key}"] for key in ("before", "after", "refined")
        )
        settings = dict(k=c["k"], tau=c["temperature"])
        out[f"{name}.weights"] = expedit.reconstruction_weights(before, after, **settings)
        out[f"{name}.out"] = expedit.reconstruct(refined, before, after, **settings)
        summed = expedit.reconstruct(refined, before, after, **settings, normalise="sum")
        out[f"{name}.out_sum_normalised"] = summed
    return out


@adapter("expedit", "HourglassImageEncoderViT.forward", inputs=("image",))
def sam(case):
    from vtlib.nn import window_partition
    from vtlib.segmentation import SAMEncoder, nearest_centres

    c = case.config
    model = SAMEncoder(
        c["img_size"], c["patch_size"], c["embed_dim"], c["depth"], c["num_heads"],
        c["mlp_ratio"], c["out_chans"], c["window_size"], tuple(c["global_attn_indexes"]),
        c["hourglass_num_cluster"], c["hourglass_clustering_location"],
        c["hourglass_cluster_window_size"], c["hourglass_temperture"],
        c["hourglass_cluster_iters"], c["hourglass_reconstruction_k"], eps=c["layer_norm_eps"],
    ).eval()
    model.load_state_dict(case.weights())
    with torch.no_grad():
        out, steps = model(case.tensors["image"], return_steps=True)

    def windows(x, side):
        return window_partition(x, side).flatten(0, 1)

    before = windows(steps["before"], c["window_size"])
    centres = windows(steps["clustered"], model.hourglass.grid[0])
    return {"out": out, "labels": nearest_centres(before, centres)} | steps
