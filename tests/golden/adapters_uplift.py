"""UPLiFT: the Local Attender alone, and whole models of any released shape (patch 14, patch 16, latents with a refiner)."""

from .adapters import adapter


@adapter("uplift", "LocalAttender.forward / make_offsets",
         inputs=tuple(f"n{n}.{name}" for n in (5, 9, 13, 17, 25) for name in ("guide", "value", "w.conv1.weight", "w.conv1.bias")))
def local_attender(case):
    import torch

    from vtlib.superres.uplift import LocalAttender, shifted

    out, t = {}, case.tensors
    for entry in case.config["sets"]:
        n, name = entry["n"], f"n{entry['n']}"
        attender = LocalAttender(entry["guide_channels"], n)
        attender.load_state_dict(case.weights(f"{name}.w."))
        result, attn = attender(t[f"{name}.guide"], t[f"{name}.value"], return_attn=True)
        attender.low_mem = True
        if not torch.allclose(attender(t[f"{name}.guide"], t[f"{name}.value"]), result, atol=1e-6 * max(1, t[f"{name}.value"].abs().max().item())):
            raise ValueError("low_mem changes the result")
        out |= {f"{name}.out": result, f"{name}.attention": attn, f"{name}.shifted": shifted(t[f"{name}.value"], attender.offsets),
                f"{name}.offsets": torch.tensor(attender.offsets)}
    return out


def options(config):
    """Arguments of vtlib's UPLiFT from an official configuration; what vtlib leaves out must not be asked for."""
    encoder, decoder, refiner = config["encoder"], config["decoder"], config.get("refiner")
    groups = [encoder[f"block_{i}"] for i in range(encoder["down_steps"] + 1)]
    doubled = [decoder["block_0"], decoder["block_1"]]
    kinds = {block["block"] for block in doubled}
    norms = {block["norm"] for block in [*groups, *doubled]}
    plain = (config["up_factor"] == 2 and config.get("enc_share") and decoder["up_steps"] == 1 and decoder["enc_resample"] == "nearest"
             and decoder["up_1"]["residual"] == "bilinear" and all(encoder[f"down_{i}"]["down_op"] == "none" for i in range(1, len(groups)))
             and {block["block"] for block in groups} == {"SingleConv"} and len(kinds) == len(norms) == 1
             and all(b.get("residual", True) and b.get("one_by", True) and b.get("stride", 1) == 1 for b in [*groups, *doubled]))
    if refiner:
        plain &= refiner.get("ref_con") == -1 and all(refiner[k] == decoder[k] for k in ("ncat_c", "ncat_s", "enc_resample"))
    if not plain:
        raise ValueError("this configuration uses options that no released model has")
    return dict(encoder=[block["hc"] for block in groups], decoder=[block["hc"] for block in doubled],
                decoder_convs={"SingleConv": 1, "DoubleConv": 2}[kinds.pop()], norm=norms.pop(),
                num_neighbours=None if config.get("attender", -1) == -1 else config["attender"],
                noise_channels=decoder["ncat_c"], noise_scale=decoder["ncat_s"], refiner=refiner["block_0"]["hc"] if refiner else None)


def whole_model(case):
    from vtlib.superres.uplift import UPLiFT, resize_image

    c, t, out = case.config, case.tensors, {}
    model = UPLiFT(c["in_channels"], c["patch_size"], **options(c["config"])).eval()
    model.load_state_dict(case.weights())
    guides = []
    model.decoder.register_forward_hook(lambda module, args, result: guides.append(result))
    steps = model(t["image"], t["features"], iterations=c["iters"], return_steps=True)
    for i, encoded in enumerate(model.encode(t["image"])):
        out[f"enc{i}"] = encoded
    for i, (step, guide) in enumerate(zip(steps, guides), 1):
        out |= {f"step{i}": step, f"decoder_step{i}": guide}
    for name, want in t.items():   # results at a size asked for, and the enlarged image of patch 14
        if name in out or name in ("image", "features") or name.startswith("w.") or want.dim() != 4:
            continue
        if want.shape[1] == c["in_channels"]:
            out[name] = model(t["image"], t["features"], iterations=c["iters"], size=want.shape[-2:])
        elif want.shape[1] == t["image"].shape[1]:
            out[name] = resize_image(t["image"], want.shape[-2:])
    return out


for iterations in range(1, 9):
    adapter("uplift", f"UPLiFT.forward (iters={iterations})", inputs=("image", "features"))(whole_model)
