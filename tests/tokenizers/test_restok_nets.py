"""ResTok's transformers: positions, merging blocks, who can change what, heads, dropped codes."""

import pytest
import torch
from einops import rearrange

from vtlib.tokenizers.restok_levels import level_sizes
from vtlib.tokenizers.restok_nets import (
    Attention,
    ResTokBlock,
    ResTokDecoder,
    ResTokEncoder,
    grid_positions,
    place_positions,
    rope_tables,
    rotate_pairs,
)

SIZES = dict(embed_dim=16, num_layers=4, num_heads=2, num_latents=16, code_dim=5)


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


def encoder(**options):
    net = ResTokEncoder(6, **{**SIZES, "stages": 3, **options}).eval()
    return wide(net)


def decoder(**options):
    return wide(ResTokDecoder(6, **{**SIZES, **options}).eval())


def wide(net):
    """Weights of a size at which all that is seen shows."""
    for name, weight in net.named_parameters():
        if weight.dim() == 2 and "embedding" not in name:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return net


def count(module):
    return sum(p.numel() for p in module.parameters())


def noise_before(block, places):
    """Noise on some tokens before a block; returns the handle of the hook."""

    def add(_, args):
        x = args[0].clone()
        x[:, places] += torch.randn_like(x[:, places])
        return (x, *args[1:])

    return block.register_forward_pre_hook(add)


def changed(before, after):
    return not torch.allclose(before, after, atol=1e-6)


# ------------------------------------------------------------------------------- the official size
def test_parameters_and_names_of_the_release():
    with torch.device("meta"):
        first, second = ResTokEncoder(), ResTokDecoder(features=False)
        assert count(ResTokDecoder()) == count(second) + 1024              # the second query
    assert count(first) == 302_685_248 and count(second) == 302_689_544
    names = {
        "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias", "blocks.0.attn.v_bias",
        "blocks.0.attn.q_norm.weight", "blocks.0.mlp.fc1.weight", "blocks.0.gamma_1",
        "level_embedding.3", "latent_token_level_embedding.7", "conv_out.7.weight",
    }
    assert names <= first.state_dict().keys()
    assert {"decoder_embed.7.weight", "latent_mask_token"} <= second.state_dict().keys()
    assert "blocks.0.attn.k_bias" not in first.state_dict()


def test_merges_and_lengths_of_the_release():
    with torch.device("meta"):
        net = ResTokEncoder(embed_dim=64, num_heads=4)
        out = net(torch.rand(1, 256, 16, 16))
    assert net.merge_layers == [5, 11, 17]
    assert [level.shape[1] for level in out.levels] == [32, 64, 128, 256]
    assert out.latents.shape == (1, 128, 8)


# --------------------------------------------------------------------------------------- positions
def test_positions_count_on():
    found = grid_positions([(1, 2), (2, 2)], 3)
    wanted = [[0, 0], [0, 1], [2, 2], [2, 3], [3, 2], [3, 3], [6, 6], [7, 7], [8, 8]]
    assert found.tolist() == wanted
    first = grid_positions([(1, 2)], 2, latents_first=True)
    assert first.tolist() == [[0, 0], [1, 1], [2, 2], [2, 3]]


def test_positions_of_regions():
    found = place_positions([(1, 2), (2, 2)], 4)
    grids = [[1, 0.5], [1, 1.5], [0.5, 0.5], [0.5, 1.5], [1.5, 0.5], [1.5, 1.5]]
    latents = [[1, 1], [1, 1], [1, 0.5], [1, 1.5]]                       # 1 x 1 twice, 1 x 2
    assert found.tolist() == grids + latents
    assert place_positions([(2, 2)], 2, latents_first=True).tolist() == [[1, 1], [1, 1], *grids[2:]]


def test_attention_from_places_begins_with_what_is_near():
    """Equal tokens: with the start each looks at itself most, and less at what is further."""
    torch.manual_seed(0)
    decoder = ResTokDecoder(6, 32, 1, 2, num_latents=4)
    x = torch.randn(1, 1, 32).expand(1, 20, 32)

    def weights():
        layer, (cos, sin) = decoder.blocks[0].attn, decoder.rope([(4, 4)], 4, True, x.device)
        q, k, _ = layer.qkv(x).chunk(3, dim=-1)
        q, k = (rearrange(y, "1 l (h p) -> h l p", h=2) for y in (q, k))
        q, k = rotate_pairs(layer.q_norm(q), cos, sin), rotate_pairs(layer.k_norm(k), cos, sin)
        return (q @ k.mT / 4).softmax(dim=-1).mean(dim=0)[4:, 4:]

    assert not torch.equal(weights().argmax(dim=1), torch.arange(16))
    decoder.start_at_places()
    found = weights()
    assert torch.equal(found.argmax(dim=1), torch.arange(16))
    assert (found[0, :4].diff() < 0).all() and found[0, 0] > 3 * found[0, 15]


def test_embeddings_of_levels_do_not_drown_residuals():
    """Of the finest latents, what differs from map to map against what their level's share."""
    maps = 0.1 * torch.randn(32, 6, 4, 4)

    def share():
        net = ResTokEncoder(6, **SIZES, stages=3)
        if started:
            net.start_at_places()
        x = net.ln_pre(net.latents(net.patch_embed(maps)))[:, -8:]
        return x.var(dim=0).sum().item() / x.square().mean(dim=0).sum().item()

    started = False
    before = share()
    started = True
    assert before < 0.3 and share() > 0.7


def test_rotation_sees_differences_of_each_axis():
    q, k = torch.randn(2, 1, 8)

    def product(query, key):
        tables = [rope_tables(torch.tensor([place]), 8) for place in (query, key)]
        return (rotate_pairs(q, *tables[0]) * rotate_pairs(k, *tables[1])).sum()

    torch.testing.assert_close(product([3, 5], [1, 9]), product([13, 25], [11, 29]))
    assert changed(product([3, 5], [1, 9]), product([3, 5], [2, 9]))
    assert changed(product([3, 5], [1, 9]), product([3, 5], [1, 8]))
    x = torch.arange(8.0)[None]
    turned = rotate_pairs(x, *rope_tables(torch.tensor([[1, 0]]), 8))
    angle = torch.tensor(1.0)
    torch.testing.assert_close(turned[0, 0], -angle.sin())               # neighbours are a pair
    torch.testing.assert_close(turned[0, 1], angle.cos())
    assert torch.equal(turned[0, 4:], x[0, 4:])                          # the column's half


def test_one_number_turns_the_whole_head():
    cos, sin = rope_tables(torch.arange(3)[:, None], 8)
    assert cos.shape == sin.shape == (3, 4)
    torch.testing.assert_close(sin[2], (2 * 10000 ** -(torch.arange(4) / 4)).sin())


# ----------------------------------------------------------------------------------------- blocks
@pytest.mark.parametrize("merge", ["average", "nearest"])
def test_a_block_merges_between_attention_and_mlp(merge):
    block, x = ResTokBlock(16, 2, merge), torch.randn(2, 12, 16)
    seen = []
    block.norm2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert block(x, merged=8).shape == (2, 16, 16)
    block(x)
    merged, plain = seen
    again = merged[:, :4].repeat_interleave(2, 1) + merged[:, 4:12]
    torch.testing.assert_close(again, plain[:, :8])
    assert torch.equal(merged[:, 12:], plain[:, 8:])
    if merge == "nearest":
        assert not merged[:, 4:12:2].any()


def test_keys_have_no_bias_and_queries_are_normed():
    attention, x = Attention(16, 2), torch.randn(1, 3, 16)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:32] *= 100                                 # queries and keys
    torch.testing.assert_close(attention(x), before, atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------------------------------- encoder
def test_fine_image_tokens_change_no_coarser_level():
    """Before the last merge: 3 stages of 8 x 8, the finest tokens disturbed after the first merge.
    What was merged from them before stays as it was."""
    net, maps = encoder(), torch.randn(2, 6, 8, 8)
    assert net.merge_layers == [0, 1]
    before = net(maps)
    handle = noise_before(net.blocks[1], slice(32, 96))             # level 1: 32, the finest: 64
    after = net(maps)
    handle.remove()
    assert [changed(a, b) for a, b in zip(before.levels, after.levels, strict=True)] == [
        False, False, True
    ]
    assert changed(before.latents, after.latents)                        # latents see all of them
    handle = noise_before(net.blocks[0], slice(0, 64))                   # all comes from these
    assert all(changed(a, b) for a, b in zip(before.levels, net(maps).levels, strict=True))
    handle.remove()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_latent_level_does_not_see_finer_ones(legacy):
    net, maps = encoder(legacy=legacy), torch.randn(2, 6, 8, 8)
    before = net(maps)
    noise_before(net.blocks[0], slice(64 + 4, 64 + 8))                   # the level of 4 latents
    after = net(maps)
    levels = [out.latents.split(level_sizes(16), dim=1) for out in (before, after)]
    found = [changed(a, b) for a, b in zip(*levels, strict=True)]
    assert found == ([True] * 5 if legacy else [False, False, False, True, True])
    assert not any(changed(a, b) for a, b in zip(before.levels, after.levels, strict=True))


def test_each_level_has_its_own_head_and_embedding():
    net, maps = encoder(), torch.randn(2, 6, 8, 8)
    before = net(maps).latents
    with torch.no_grad():
        net.conv_out[3].bias += 1
    after = net(maps).latents
    assert torch.equal(before[:, :4], after[:, :4]) and torch.equal(before[:, 8:], after[:, 8:])
    assert changed(before[:, 4:8], after[:, 4:8])
    with torch.no_grad():
        net.latent_token_level_embedding[4] += torch.randn(16)
    assert torch.equal(net(maps).latents[:, :8], after[:, :8])
    with torch.no_grad():
        net.level_embedding[1] += torch.randn(16)
    assert changed(net(maps).latents[:, :1], after[:, :1])


@pytest.mark.parametrize(
    "options",
    [dict(merge="nearest"), dict(residual_image=False), dict(residual_latents=False),
     dict(legacy=True), dict(stages=2)],
)
def test_each_option_changes_the_latents(options):
    torch.manual_seed(0)
    plain = encoder()
    other = ResTokEncoder(6, **{**SIZES, "stages": 3, **options}).eval()
    state = plain.state_dict()
    other.load_state_dict({name: state[name] for name in other.state_dict()})
    maps = torch.randn(2, 6, 8, 8)
    assert changed(plain(maps).latents, other(maps).latents)


def test_maps_need_not_be_square():
    out = encoder()(torch.randn(1, 6, 4, 12))
    assert [level.shape[1] for level in out.levels] == [12, 24, 48] and out.latents.shape[1] == 16


# ---------------------------------------------------------------------------------------- decoder
def test_hidden_codes_do_not_matter_and_kept_ones_do():
    net, codes = decoder(), torch.randn(2, 16, 5)
    other = codes.clone()
    other[:, 8:] = torch.randn(2, 8, 5)
    some, same = net(codes, (4, 6), 8)[0], net(other, (4, 6), 8)[0]
    assert some.shape == (2, 6, 4, 6) and torch.equal(some, same)
    assert changed(net(codes, (4, 6))[0], net(other, (4, 6))[0])
    assert changed(some, net(codes, (4, 6))[0])
    mixed = net(codes, (4, 6), torch.tensor([8, 16]))[0]
    torch.testing.assert_close(mixed[:1], some[:1])
    torch.testing.assert_close(mixed[1:], net(codes[1:], (4, 6))[0])


def test_the_second_pass_has_its_own_query_and_no_say_in_the_first():
    net, codes = decoder(), torch.randn(2, 16, 5)
    plain, nothing = net(codes, (4, 4))
    both, seen = net(codes, (4, 4), features=True)
    assert nothing is None and seen.shape == (2, 16, 16)
    torch.testing.assert_close(both, plain)
    with torch.no_grad():
        net.feat_mask_token += torch.randn(16)
    again, other = net(codes, (4, 4), features=True)
    torch.testing.assert_close(again, plain)
    assert changed(other, seen)
    seen.sum().backward()
    assert net.mask_token.grad is None or not net.mask_token.grad.any()
    assert net.ln_post.weight.grad is None                       # features are taken before it


def test_the_dropped_code_s_token_learns_only_where_codes_are_dropped():
    net, codes = decoder(), torch.randn(2, 16, 5)
    net(codes, (4, 4))[0].sum().backward()
    assert net.latent_mask_token.grad is None
    net(codes, (4, 4), 4)[0].square().sum().backward()
    assert net.latent_mask_token.grad.any()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ResTokEncoder(6, **{**SIZES, "num_layers": 2}), "num_layers=2"),
        (lambda: ResTokEncoder(6, **{**SIZES, "num_heads": 3}), "num_heads"),
        (lambda: ResTokEncoder(6, **{**SIZES, "embed_dim": 12}), "6 channels a head"),
        (lambda: ResTokEncoder(6, **{**SIZES, "num_latents": 12}), "num_latents=12"),
        (lambda: ResTokEncoder(6, **SIZES, merge="sum"), "merge='sum'"),
        (lambda: encoder()(torch.rand(1, 6, 8, 6)), "6 wide"),
        (lambda: encoder()(torch.rand(1, 5, 8, 8)), "5 channels"),
        (lambda: encoder(num_latents=256)(torch.rand(1, 6, 8, 8)), "larger than the map"),
        (lambda: decoder()(torch.rand(1, 15, 5), (4, 4)), "15 tokens"),
        (lambda: decoder()(torch.rand(1, 16, 4), (4, 4)), "codes"),
        (lambda: decoder()(torch.rand(1, 16, 5), (0, 4)), "grid"),
        (lambda: decoder()(torch.rand(1, 16, 5), (4, 4), 17), "keep"),
        (lambda: decoder(features=False)(torch.rand(1, 16, 5), (4, 4), features=True), "features"),
        (lambda: rope_tables(torch.zeros(3, 2), 6), "head_dim=6"),
        (lambda: ResTokBlock(16, 2)(torch.rand(1, 4, 8)), "x"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
