"""CATANet: the aggregation block in eval and in training, local attention, and whole networks of
any scale."""

import torch
from einops import rearrange

from .adapters import adapter, record


def block(c):
    from vtlib.superres.catanet import TAB

    sizes = (c[name] for name in ("dim", "qk_dim", "mlp_dim", "heads", "num_tokens", "group_size"))
    return TAB(*sizes, c.get("n_iter", 3), c.get("ema_decay", 0.999))


@adapter("catanet", "TAB.forward (eval) with IASA and IRCA", inputs=("x",))
def tab_eval(case):
    tab = block(case.config).eval()
    tab.load_state_dict(case.weights())
    before, out = tab.means.clone(), {}
    record(tab.norm, out, "normed")
    record(tab.iasa_attn, out, "iasa_out")
    record(tab.irca_attn, out, "k_global", lambda args, result: result[0])
    record(tab.irca_attn, out, "v_global", lambda args, result: result[1])
    out["y"], groups = tab(case.tensors["x"], return_groups=True)
    if not torch.equal(before, tab.means):
        raise ValueError("eval changed the centres")
    return out | {"means": tab.means, "belong": groups.belong, "order": groups.order}


@adapter(
    "catanet", "TAB.forward (train), center_iter, ema_inplace",
    inputs=("x1", "x2", "ci_x", "ci_means"),
)
def tab_train(case):
    from vtlib.superres.catanet import center_iter, nearest

    t, out, tab = case.tensors, {}, block(case.config).train()
    # not initialised: what they hold plays no part
    buffers = {name: tab.state_dict()[name] for name in ("means", "initted")}
    tab.load_state_dict(buffers | case.weights())
    for i in (1, 2):
        out[f"y{i}"] = tab(t[f"x{i}"])
        out[f"means_after_{i}"] = tab.means.clone()
    out["ci_out"] = center_iter(t["ci_x"], t["ci_means"])
    nearest_of = nearest(t["ci_x"], t["ci_means"]).flatten()
    out["ci_counts"] = torch.bincount(nearest_of, minlength=len(t["ci_means"]))
    return out


@adapter("catanet", "LRSA.forward, patch_divide, patch_reverse", inputs=("x",))
def lrsa(case):
    from vtlib.superres.catanet import LRSA, patch_divide, patch_reverse

    c, x = case.config, case.tensors["x"]
    layer = LRSA(c["dim"], c["qk_dim"], c["mlp_dim"], c["heads"], c["patch_size"]).eval()
    layer.load_state_dict(case.weights())
    crops = patch_divide(x, c["patch_size"])
    if crops.shape[1:3] != (c["nh"], c["nw"]):
        raise ValueError(f"{tuple(crops.shape[1:3])} patches, the case has {c['nh'], c['nw']}")
    return {
        "crops": rearrange(crops, "b n m c p q -> b (n m) c p q"),
        "reversed": patch_reverse(crops, x.shape[-2:]),
        "y": layer(x),
    }


@adapter("catanet", "CATANet.forward (eval)", inputs=("x",))
def model(case):
    from vtlib.superres.catanet import CATANet

    c, s = case.config, case.config["setting"]
    net = CATANet(
        c["upscale"], s["dim"], s["block_num"], s["qk_dim"], s["mlp_dim"], s["heads"],
        s["patch_size"], c["num_tokens"], c["group_size"], c["n_iters"],
    ).eval()
    net.load_state_dict(case.weights())
    out = {}
    for i, (aggregate, local) in enumerate(net.blocks):
        record(aggregate, out, f"tab{i}", lambda args, result: result[0])
        record(local, out, f"lrsa{i}")
    out["y"] = net(case.tensors["x"])
    return out
