"""ZOO-Prune: sensitivity with given directions, selection of one view and of several."""

import torch

from .adapters import adapter

PROJECTOR = tuple(f"mm_projector.{i}.{part}" for i in (0, 2) for part in ("weight", "bias"))


@adapter(
    "zooprune",
    "zoo_prune_get_sensitivity; low-rank projector block of LlavaLlamaForCausalLM.__init__",
    inputs=("features", "directions", *PROJECTOR),
)
def sensitivity(case):
    from vtlib.pruning.zooprune import low_rank, sensitivity

    c, t, weights = case.config, case.tensors, case.weights("mm_projector.")
    into, within = torch.nn.Linear(c["d_v"], c["d_l"]), torch.nn.Linear(c["d_l"], c["d_l"])
    project = torch.nn.Sequential(into, torch.nn.GELU(), within)
    project.load_state_dict(weights)
    x, u = t["features"], t["directions"]
    short = low_rank(project, (c["rank1"], c["rank2"]))
    out = dict(
        sensitivity=sensitivity(x, project, step=c["h"], directions=u),
        sensitivity_lowrank=sensitivity(x, short, step=c["h"], directions=u),
        lowrank_projection=short(x),
    )
    exact = sensitivity(x.double(), project, step=c["h"], directions=u)
    error = (exact - t["sensitivity_float64"]).abs().max()
    if error > 1e-6:                          # far below the case's tolerance, which is for float32
        raise ValueError(f"float64 sensitivity is off by {error}")
    return out | dict(sensitivity_float64=exact)


@adapter("zooprune", "select_tokens_sads", inputs=("tokens", "sensitivity"))
def sads(case):
    from vtlib.pruning.zooprune import sads

    t = case.tensors
    index, _ = sads(t["sensitivity"][None], t["tokens"][None], case.config["keep"])
    return dict(selected_order=index[0])


@adapter(
    "zooprune",
    "select_tokens_sads_multi_frames",
    inputs=("tokens", "sensitivity", "view_label"),
)
def sads_multi_view(case):
    from vtlib.pruning.zooprune import sads_views

    label = case.tensors["view_label"]
    views = [torch.nonzero(label == v)[:, 0] for v in label.unique() if v >= 0]
    views = torch.nn.utils.rnn.pad_sequence(views, batch_first=True, padding_value=-1)
    keep = len(views) * case.config["keep_per_view"]
    sensitivity, tokens = case.tensors["sensitivity"][None], case.tensors["tokens"][None]
    index, _ = sads_views(sensitivity, tokens, views, keep)
    return dict(selected=index[0].flatten())
