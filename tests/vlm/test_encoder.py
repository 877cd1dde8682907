"""TinyVLM's encoder: signals on request, equal to the full maps, and nothing that was not asked
for."""

import pytest
import torch

from vtlib.vlm.encoder import Encoder


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder(32, 3, 4, num_registers=2, place_dim=8).eval()


@torch.no_grad()
def test_cls_row_is_row_0_of_the_full_map(encoder):
    images = torch.rand(2, 3, 24, 40)
    out = encoder(images, need=("cls_row", "keys"), attention=(-2,), hidden=(0, 1, -1))
    assert out["grid"] == (3, 5) and out["selected"].shape == (2, 3 + 15, 32)
    full = out["attention"][1]
    torch.testing.assert_close(out["cls_row"], full[:, :, 0, 3:], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(full.sum(-1), torch.ones(2, 4, 18))
    assert set(out["hidden"]) == {0, 1, 3} and torch.equal(out["hidden"][3], out["last"])


@torch.no_grad()
def test_selected_is_the_hidden_state_of_that_number(encoder):
    images = torch.rand(1, 3, 16, 16)
    hidden = encoder(images, hidden=range(4))["hidden"]
    for select in (-1, -2, -3, 1, 2):
        assert torch.equal(encoder(images, select)["selected"], hidden[select % 4])


@torch.no_grad()
def test_keys_are_the_selected_layers_without_positions(encoder):
    images = torch.rand(1, 3, 16, 24)
    out = encoder(images, need=("keys",), hidden=(1,))
    x = out["hidden"][1]
    qkv = encoder.blocks[1].attn.qkv(encoder.blocks[1].norm1(x))
    torch.testing.assert_close(out["keys"], qkv[..., 32:64].unflatten(-1, (4, 8)).mean(2))


@torch.no_grad()
def test_asking_changes_nothing(encoder):
    images = torch.rand(2, 3, 16, 24)
    plain = encoder(images)
    assert set(plain) == {"grid", "attention", "hidden", "selected", "last"}
    assert not plain["attention"] and not plain["hidden"]
    asked = encoder(images, need=("cls_row", "keys"), hidden=(0, 2))
    assert torch.equal(plain["selected"], asked["selected"])
    watched = encoder(images, attention=(0, 1, 2))["last"]
    torch.testing.assert_close(watched, plain["last"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make, message", [
    (lambda: Encoder(32, 2, 5), "num_heads=5"),
    (lambda: Encoder(32, 2, 4, place_dim=32), "place_dim=32"),
    (lambda: Encoder(32, 2, 4, place_dim=6), "channels=6"),
    (lambda: Encoder(32, 2, 4, num_registers=-1), "num_registers=-1"),
])
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()(torch.rand(1, 3, 16, 16))


def test_bad_input(encoder):
    with pytest.raises(ValueError, match=r"\(20, 24\) is not a multiple of 8"):
        encoder(torch.rand(1, 3, 20, 24))
    with pytest.raises(ValueError, match="4 channels"):
        encoder(torch.rand(1, 4, 16, 16))
    with pytest.raises(ValueError, match="need=.'queries'"):
        encoder(torch.rand(1, 3, 16, 16), need=("queries",))
    for name, wrong in (("attention", 3), ("attention", -4), ("hidden", 4), ("hidden", 1.5)):
        with pytest.raises(ValueError, match=rf"{name}={wrong}.*from -[34] to [23]"):
            encoder(torch.rand(1, 3, 16, 16), **{name: (0, wrong)})
    with pytest.raises(ValueError, match="select=9: needs an integer from -4 to 3"):
        encoder(torch.rand(1, 3, 16, 16), select=9)
    with pytest.raises(ValueError, match="select=0"):
        encoder(torch.rand(1, 3, 16, 16), select=0, need=("keys",))
