"""UPLiFT: the Local Attender alone, and whole models of any released shape (patch 14, patch 16,
latents with a refiner)."""

from .adapters import adapter

PARTS = ("guide", "value", "w.conv1.weight", "w.conv1.bias")


@adapter(
    "uplift", "LocalAttender.forward / make_offsets",
    inputs=tuple(f"n{n}.{part}" for n in (5, 9, 13, 17, 25) for part in PARTS),
)
def local_attender(case):
    import torch

    from vtlib.superres.uplift import LocalAttender, shifted

    out, t = {}, case.tensors
    for entry in case.config["sets"]:
        n, name = entry["n"], f"n{entry['n']}"
        attender = LocalAttender(entry["guide_channels"], n)
        attender.load_state_dict(case.weights(f"{name}.w."))
        guide, value = t[f"{name}.guide"], t[f"{name}.value"]
        result, attn = attender(guide, value, return_attn=True)
        attender.low_mem = True
        largest = max(1, value.abs().max().item())
        if not torch.allclose(attender(guide, value), result, atol=1e-6 * largest):
            raise ValueError("low_mem changes the result")
        out |= {
            f"{name}.out": result,
            f"{name}.attention": attn,
            f"{name}.shifted": shifted(value, attender.offsets),
            f"{name}.offsets": torch.tensor(attender.offsets),
        }
    return out


def is_plain(block):
    """A block as all released ones are."""
    return block.get("residual", True) and block.get("one_by", True) and block.get("stride", 1) == 1


def is_released(config):
    """Whether the configuration leaves alone what vtlib left out."""
    encoder, decoder, refiner = config["encoder"], config["decoder"], config.get("refiner")
    groups = [encoder[f"block_{i}"] for i in range(encoder["down_steps"] + 1)]
    doubled = [decoder["block_0"], decoder["block_1"]]
    asked = [
        config["up_factor"] == 2,
        bool(config.get("enc_share")),
        decoder["up_steps"] == 1,
        decoder["enc_resample"] == "nearest",
        decoder["up_1"]["residual"] == "bilinear",
        all(encoder[f"down_{i}"]["down_op"] == "none" for i in range(1, len(groups))),
        {block["block"] for block in groups} == {"SingleConv"},
        len({block["block"] for block in doubled}) == 1,
        len({block["norm"] for block in [*groups, *doubled]}) == 1,
        all(map(is_plain, groups + doubled)),
    ]
    if refiner:
        shared = ("ncat_c", "ncat_s", "enc_resample")
        asked += [refiner.get("ref_con") == -1, *(refiner[k] == decoder[k] for k in shared)]
    return all(asked)


def options(config):
    """Arguments of vtlib's UPLiFT from an official configuration; what vtlib leaves out must not be
    asked for."""
    if not is_released(config):
        raise ValueError("this configuration uses options that no released model has")
    encoder, decoder, refiner = config["encoder"], config["decoder"], config.get("refiner")
    groups = [encoder[f"block_{i}"] for i in range(encoder["down_steps"] + 1)]
    doubled = [decoder["block_0"], decoder["block_1"]]
    attender = config.get("attender", -1)
    return dict(
        encoder=[block["hc"] for block in groups],
        decoder=[block["hc"] for block in doubled],
        decoder_convs={"SingleConv": 1, "DoubleConv": 2}[doubled[0]["block"]],
        norm=doubled[0]["norm"],
        num_neighbours=None if attender == -1 else attender,
        noise_channels=decoder["ncat_c"],
        noise_scale=decoder["ncat_s"],
        refiner=refiner["block_0"]["hc"] if refiner else None,
    )


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
    for i, (step, guide) in enumerate(zip(steps, guides, strict=True), 1):
        out |= {f"step{i}": step, f"decoder_step{i}": guide}
    for name, want in t.items():     # results at a size asked for, the enlarged image of patch 14
        if name in out or name in ("image", "features") or name.startswith("w."):
            continue
        if want.dim() != 4:
            continue
        size = want.shape[-2:]
        if want.shape[1] == c["in_channels"]:
            out[name] = model(t["image"], t["features"], iterations=c["iters"], size=size)
        elif want.shape[1] == t["image"].shape[1]:
            out[name] = resize_image(t["image"], size)
    return out


for count in range(1, 9):
    name = f"UPLiFT.forward (iters={count})"
    adapter("uplift", name, inputs=("image", "features"))(whole_model)
