"""VWFormer: context windows, the embedding before them, attention, both decoders."""

from .adapters import adapter, record

FEATURES = ("c1", "c2", "c3", "c4")


@adapter(
    "vwformer", "VWHead.copy_shift_padding and VWHead.varying_context_window", inputs=("x",)
)
def windows(case):
    from vtlib.segmentation.vwformer import context_windows, copy_shift_padding

    out, x = {}, case.tensors["x"]
    for ratio in case.config["R"]:
        out[f"padded_r{ratio}"] = copy_shift_padding(x, ratio)
        out[f"windows_r{ratio}"] = context_windows(x, ratio)
    return out


def filled(module, weights):
    """In eval mode; the counters of batch norms, which cases do not hold, play no part."""
    counters = {key: t for key, t in module.state_dict().items() if key.endswith("batches_tracked")}
    module.load_state_dict(counters | weights)
    return module.eval()


@adapter("vwformer", "VWHead.dope_scaling", inputs=("x",))
def dope(case):
    from vtlib.segmentation.vwformer import VWHead

    head = VWHead((1, 1, 1, 1), 1, case.config["channels"], 1, ratios=case.config["R"])
    filled(head.ds, case.weights("w.ds."))
    return {
        f"dope_r{ratio}": head.eval().embed(case.tensors["x"], i)
        for i, ratio in enumerate(head.ratios)
    }


@adapter("vwformer", "VWA.forward (on mmcv 2.2 NonLocal2d)", inputs=("query", "context"))
def attention(case):
    from vtlib.segmentation.vwformer import VWA

    layer = filled(VWA(case.config["c"], case.config["head"]), case.weights())
    return {"out": layer(case.tensors["query"], case.tensors["context"])}


def decoder(case, kind):
    c, out = case.config, {}
    head = kind(
        c["inc"], case.tensors["logits"].shape[1], channels=c["channels"], num_heads=c["nheads"],
        short_cut=c["short_cut"],
    )
    filled(head, case.weights())
    record(head.linear_fuse, out, "fused_levels")
    record(head.cat, out, "cat_input", lambda args, result: args[0])
    record(head.cat, out, "fused_scales")
    out["logits"] = head([case.tensors[name] for name in FEATURES])
    return out


@adapter("vwformer", "VWHead.forward", inputs=FEATURES)
def ade(case):
    from vtlib.segmentation.vwformer import VWHead

    return decoder(case, VWHead)


@adapter("vwformer", "VWCityHead.forward", inputs=FEATURES)
def city(case):
    from vtlib.segmentation import VWCityHead

    return decoder(case, VWCityHead)
