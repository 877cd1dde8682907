"""Official state dicts load: real official names come from the golden cases."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.__main__ import HERE
from vtlib import hub
from vtlib.multiscale.crossformer import CrossFormer
from vtlib.multiscale.crossvit import CrossViT


def golden(slug, case):
    tensors = load_file(HERE / slug / f"{case}.safetensors")
    return tensors, {k[2:]: v for k, v in tensors.items() if k.startswith("w.")}


def crossvit(sizes, depth):
    model = CrossViT(
        sizes,
        (4, 8),
        num_classes=7,
        embed_dim=(16, 24),
        depth=depth,
        num_heads=(2, 3),
        mlp_ratio=(3, 2),
    )
    return model.eval()


def small_crossvit():
    return crossvit((24, 32), ((1, 2, 0), (1, 1, 0)))


@pytest.mark.parametrize("timm", [False, True])
@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_crossvit_checkpoint(tmp_path, timm, wrap):
    tensors, state = golden("crossvit", "tiny_linear_resize")
    if timm:  # its spelling of the same weights
        for name in ("pos_embed", "cls_token"):
            state = {k.replace(f"{name}.", f"{name}_"): v for k, v in state.items()}
    torch.save({wrap: state} if wrap else state, tmp_path / "official.pth")
    path = tmp_path / "official.pth"
    model = hub.load_official(small_crossvit(), path, hub.convert_timm_crossvit)
    torch.testing.assert_close(model(tensors["image"]), tensors["logits"], atol=2e-5, rtol=1e-4)


def test_crossformer_checkpoint_with_saved_buffers(tmp_path):
    tensors, state = golden("crossformer", "tiny_v1_padding")
    # older checkpoints hold the buffers too
    state["layers.0.blocks.0.attn.biases"] = torch.zeros(25, 2)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.long)
    state["layers.0.blocks.0.attn_mask"] = torch.zeros(36, 9, 9)
    save_file(state, tmp_path / "official.safetensors")
    model = CrossFormer(
        num_classes=6,
        embed_dim=32,
        depths=(2, 2, 1),
        num_heads=(1, 2, 4),
        group_size=(3, 3, 3),
        interval=(3, 2, 1),
        merge_size=((2, 4), (2, 4)),
        mlp_ratio=2.0,
    ).eval()
    hub.load_official(model, tmp_path / "official.safetensors", hub.convert_crossformer)
    torch.testing.assert_close(model(tensors["image"]), tensors["logits"], atol=5e-5, rtol=1e-4)


def test_wrong_checkpoint_says_what_does_not_fit(tmp_path):
    _, state = golden("crossvit", "tiny_linear_resize")
    state.pop("norm.0.weight")
    save_file(state | {"extra": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="missing.*norm.0.weight.*unexpected.*extra"):
        hub.load_official(small_crossvit(), tmp_path / "bad.safetensors")


def test_wrong_arguments_are_named(tmp_path):
    _, state = golden("crossvit", "tiny_linear_resize")
    save_file(state, tmp_path / "good.safetensors")
    for given, said in (
        (dict(convert="timm"), "convert is a str but needs to be a function of a state dict"),
        (dict(strict="no"), "strict='no' .* needs True or False"),
    ):
        with pytest.raises(ValueError, match=said):
            hub.load_official(small_crossvit(), tmp_path / "good.safetensors", **given)


def test_pickled_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return print, ("loaded",)
    torch.save(Trap(), tmp_path / "trap.pth")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        hub.load_official(small_crossvit(), tmp_path / "trap.pth")


def test_resize_positions_for_higher_resolution():
    _, state = golden("crossvit", "tiny_linear_resize")
    bigger = crossvit((40, 48), ((1, 2), (1, 1)))
    bigger.load_state_dict(hub.resize_positions(state, bigger))
    assert torch.equal(bigger.pos_embed[0][:, :1], state["pos_embed.0"][:, :1])
    assert bigger(torch.rand(1, 3, 48, 48)).isfinite().all()


def test_available_is_a_reason_or_nothing():
    assert hub.available() == "" or "pip install" in hub.available()
