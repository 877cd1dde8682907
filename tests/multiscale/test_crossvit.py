"""The paper's facts: what the exchange of [CLS] tokens does and does not do."""

import pytest
import torch

from vtlib.multiscale import crossvit as cv
from vtlib.teach import flops

SIZES = dict(
    tiny=7_014_800,
    small=26_856_272,
    base=105_025_232,
    crossvit_9=8_553_296,
    crossvit_15=27_528_464,
    crossvit_18=43_271_408,
    crossvit_9_dagger=8_776_592,
    crossvit_15_dagger=28_209_008,
    crossvit_18_dagger=44_266_976,
)
SMALL = dict(img_size=(24, 32), patch_size=(4, 8), num_classes=5, embed_dim=(16, 24))
SMALL |= dict(num_heads=(2, 3))


@pytest.mark.parametrize("name", SIZES)
def test_official_parameter_counts(name):
    build = getattr(cv, name if name.startswith("crossvit") else f"crossvit_{name}")
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == SIZES[name]


def test_official_state_dict():
    with torch.device("meta"):
        state = cv.crossvit_9().state_dict()
        dagger = cv.crossvit_9_dagger().state_dict()
    assert len(state) == 268
    outside = "patch_embed.1.proj.weight pos_embed.0 cls_token.1 norm.1.weight head.0.weight"
    inside = (
        "blocks.1.2.mlp.fc2.bias projs.1.0.weight projs.1.2.weight fusion.0.norm1.weight "
        "fusion.0.attn.wq.weight fusion.1.attn.proj.bias revert_projs.0.2.bias"
    )
    assert {*outside.split(), *(f"blocks.2.{name}" for name in inside.split())} <= set(state)
    assert {f"patch_embed.0.proj.{i}.weight" for i in (0, 2, 4)} <= set(dagger)


@pytest.mark.parametrize("multi_conv", [False, True])
def test_two_grids(multi_conv):
    with torch.device("meta"):
        model = cv.crossvit_9(multi_conv=multi_conv)
        xs = model.embed(torch.zeros(2, 3, 224, 224, device="meta"))
    assert [tuple(x.shape) for x in xs] == [(2, 401, 128), (2, 197, 256)]
    with torch.device("meta"):
        high = cv.crossvit_15_dagger(img_size=(408, 384)).embed(torch.zeros(1, 3, 384, 384))
    assert [x.shape[1] for x in high] == [1 + 34**2, 1 + 24**2]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    model = cv.CrossViT(depth=((1, 2),), mlp_ratio=(2, 2), **SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.blocks[0].eval()


def sequences():
    return [torch.randn(2, 37, 16), torch.randn(2, 17, 24)]


def exchange(encoder, xs, **kw):
    return cv.exchange_cls(xs, encoder.projs, encoder.fusion, encoder.revert_projs, **kw)


def test_patch_tokens_are_untouched(encoder):
    xs = sequences()
    for before, after in zip(xs, exchange(encoder, xs), strict=True):
        assert torch.equal(before[:, 1:], after[:, 1:])
        assert not torch.allclose(before[:, :1], after[:, :1])


def test_order_of_the_other_branch_does_not_matter(encoder):
    a, b = sequences()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(16)])
    plain, mixed = exchange(encoder, [a, b])[0], exchange(encoder, [a, b[:, order]])[0]
    torch.testing.assert_close(plain[:, 0], mixed[:, 0], atol=1e-5, rtol=1e-4)


def test_one_query_equals_full_attention_with_the_other_rows_thrown_away(encoder):
    block, z = encoder.fusion[0], torch.randn(2, 17, 24)
    attn, x = block.attn, block.norm1(z)
    heads = [t.reshape(2, 17, 3, 8).transpose(1, 2) for t in (attn.wq(x), attn.wk(x), attn.wv(x))]
    full = (heads[0] @ heads[1].transpose(-2, -1) / 8**0.5).softmax(-1) @ heads[2]
    want = z[:, :1] + attn.proj(full.transpose(1, 2).reshape(2, 17, 24))[:, :1]
    torch.testing.assert_close(block(z), want, atol=1e-5, rtol=1e-4)


def test_no_residual_around_the_exchange(encoder):
    torch.nn.init.zeros_(encoder.revert_projs[0][2].weight)
    out = exchange(encoder, sequences())[0][:, 0]
    assert torch.equal(out, encoder.revert_projs[0][2].bias.expand(2, -1))


def test_both_directions_use_the_same_state(encoder):
    a, b = sequences()
    out = exchange(encoder, [a, b])
    torch.testing.assert_close(out[1], exchange(encoder, [a + 0, b])[1])
    # a sequential exchange gives the same: only patches of the other branch are keys,
    later = exchange(encoder, [out[0], b])[1]
    assert torch.equal(later[:, 1:], out[1][:, 1:])
    assert torch.allclose(later[:, 0], out[1][:, 0])
    # its [CLS] is none
    moved = exchange(encoder, [torch.cat([a[:, :1] + 1, a[:, 1:]], 1), b])[1]
    assert torch.equal(moved, out[1])


def test_attention_weights(encoder):
    out, attns = exchange(encoder, sequences(), return_attn=True)
    assert [tuple(a.shape) for a in attns] == [(2, 3, 1, 17), (2, 2, 1, 37)]
    torch.testing.assert_close(attns[0].sum(-1), torch.ones(2, 3, 1))


def test_logits_are_the_mean_and_attention_changes_nothing():
    model = cv.CrossViT(depth=((1, 2, 0), (1, 1, 1)), **SMALL).eval()
    x = torch.rand(2, 3, 30, 30)
    a, b = model.branch_logits(x)
    torch.testing.assert_close(model(x), (a + b) / 2)
    logits, attns = model(x, return_attn=True)
    torch.testing.assert_close(logits, model(x), atol=1e-5, rtol=1e-4)
    assert len(attns) == 2


def test_small_branch_may_be_deeper():
    model = cv.CrossViT(depth=((3, 1),), drop_path=0.3, **SMALL)
    assert model(torch.rand(2, 3, 24, 24)).shape == (2, 5)
    assert [b.drop_path.rate for b in model.blocks[0].blocks[0]] == pytest.approx([0, 0.15, 0.3])


def test_fusion_cost_is_linear_and_all_attention_is_quadratic():
    def cost(kind, n):
        with torch.device("meta"):
            xs = [torch.zeros(1, 1 + n, 32), torch.zeros(1, 1 + n, 64)]
            if kind == "all":
                return flops(cv.AllAttentionFusion((32, 64), (4, 4)), xs)
            sizes = dict(img_size=(32, 32), patch_size=(8, 8), embed_dim=(32, 64))
            model = cv.CrossViT(depth=((1, 0),), num_heads=(4, 4), num_classes=2, **sizes)
            return flops(exchange, model.blocks[0], xs)
    assert cost("cross", 8192) / cost("cross", 4096) == pytest.approx(2, abs=0.01)
    assert cost("all", 16384) / cost("all", 8192) > 3.8


@pytest.mark.parametrize("kwargs, words", [
    (dict(fusion="sum"), "fusion='sum'"),
    (dict(depth=((1, 4, 2),)), "only one cross-attention"),
    (dict(depth=((0, 0),)), "at least one block"),
    (dict(depth=((1, 2), (1,))), "needs pairs (N, M)"),
    (dict(depth=3), "depth=3"),
    (dict(depth=()), "depth=()"),
    (dict(img_size=(241, 224)), "(241, 241)"),
    (dict(img_size=224), "img_size=224: needs a sequence of 2 integers"),
    (dict(multi_conv=True, patch_size=(8, 16), img_size=(240, 224)), "patch_size=8"),
    (dict(num_heads=(5, 3)), "num_heads=5"),
    (dict(mlp_ratio=4), "mlp_ratio=4: needs a pair"),
    (dict(mlp_ratio=(4, "4")), "mlp_ratio[1]='4'"),
])
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError) as error, torch.device("meta"):
        cv.CrossViT(**kwargs)
    assert words in str(error.value)


def test_bad_images_and_attention_of_other_fusions():
    model = cv.CrossViT(depth=((1, 1),), fusion="cls", **SMALL)
    with pytest.raises(ValueError, match="1 channels"):
        model(torch.rand(2, 1, 24, 24))
    with pytest.raises(ValueError, match="fusion='cross'"):
        model(torch.rand(2, 3, 24, 24), return_attn=True)
