"""GigaTok: first queries, Q-Formers, the decoder's norm, semantic loss, sizes and the whole."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from vtlib.tokenizers import gigatok as paper
from vtlib.tokenizers.base import pixel_loss
from vtlib.tokenizers.gigatok import GigaTok, convert_official, semantic_loss
from vtlib.tokenizers.gigatok_cnn import AdaptiveDecoder, AdaptiveGroupNorm
from vtlib.tokenizers.gigatok_qformer import (
    DetrAttention,
    QFormerDecoder,
    QFormerEncoder,
    QFormerLayer,
    block_counts,
    pool_queries,
    query_regions,
)

from ..wrong import raw_errors

CNN = dict(channels=8, multipliers=(1, 2), num_res_blocks=1, num_mid_blocks=1, groups=4)
CNN |= dict(patch_size=2)
SIZES = dict(img_size=32, encoder_size=(16, 2, 2), decoder_size=(24, 3, 3), num_tokens=16)
SIZES |= dict(codebook_size=32, code_dim=4, map_channels=12, align_layer=2, teacher_dim=10, cnn=CNN)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(**options):
    torch.manual_seed(0)
    return GigaTok(**{**SIZES, **options})


def loud(module):
    """Random values for all weights, so that no part is too small to be seen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------- the first queries
def test_levels():
    assert block_counts(1) == [(1, 1)] and block_counts(2) == [(1, 1), (1, 1)]
    assert block_counts(64) == [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8)]
    assert block_counts(16, columns_first=False)[-2:] == [(2, 2), (4, 2)]
    for count in (8, 256):
        sizes = [rows * columns for rows, columns in block_counts(count)]
        assert sum(sizes) == count and sizes[2:] == [2 * size for size in sizes[1:-1]]


def test_queries_are_means_of_regions_coarse_to_fine():
    x = draw(3, 5, 8, 16)
    queries, regions = pool_queries(x, 64), query_regions(64, (8, 16))
    assert queries.shape == (3, 64, 5) and regions.shape == (64, 8, 16)
    for query, region in enumerate(regions):
        torch.testing.assert_close(queries[:, query], x[:, :, region].mean(dim=-1))
    assert torch.equal(queries[:, 0], queries[:, 1])
    assert regions[2].nonzero()[:, 1].max() == 7                   # the left half: columns first
    assert regions[33].nonzero().amin(dim=0).tolist() == [0, 2]    # row by row in a level
    order = torch.tensor([2, 0, 1])
    assert torch.equal(pool_queries(x[order], 64), queries[order])


@pytest.mark.parametrize("count, grid, said", [
    (12, (8, 8), "num_queries=12 must be a power of two"),
    (64, (4, 4), "4 x 8 equal blocks .* the grid is 4 x 4"),
    (16, (3, 8), "2 x 4 equal blocks"),
])
def test_queries_that_do_not_fit(count, grid, said):
    with pytest.raises(ValueError, match=said):
        pool_queries(draw(1, 2, *grid), count)


# -------------------------------------------------------------------------------------- Q-Formers
def test_attention_is_that_of_torch():
    mine, theirs = DetrAttention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(loud(mine).state_dict())
    q, k, v = draw(2, 5, 12), draw(2, 7, 12, seed=1), draw(2, 7, 12, seed=2)
    torch.testing.assert_close(mine(q, k, v), theirs(q, k, v)[0])
    seen = torch.arange(7) < torch.tensor([[3], [6]])
    torch.testing.assert_close(mine(q, k, v, seen), theirs(q, k, v, key_padding_mask=~seen)[0])


def by_hand(layer, q, x, p_q, p_x):
    """The card's formulas with torch's own attention; x stays as it is."""
    width, heads = q.shape[-1], layer.self_attn.num_heads
    both = []
    for mine in (layer.self_attn, layer.multihead_attn):
        theirs = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        theirs.load_state_dict(mine.state_dict())
        both.append(theirs)
    h = layer.norm1(q)
    q = q + both[0](h + p_q, h + p_q, h)[0]
    h = layer.norm2(q)
    q = q + both[1](h + p_q, x + p_x, x)[0]
    return q + layer.linear2(F.gelu(layer.linear1(layer.norm3(q))))


def test_encoder_by_hand():
    net = loud(QFormerEncoder((12, 2, 3), 6, 8, (4, 2)))
    features = draw(2, 6, 4, 2)
    x = net.encoder_embed(net.ln_pre(features.flatten(2).mT))
    q = net.global_proj(pool_queries(x.mT.unflatten(2, (4, 2)), 8))
    for layer in net.transformer:
        q = by_hand(layer, q, x, net.token_positions(), net.grid_positions())
    want = net.conv_out(net.ln_post(q).mT[:, :, None])[:, :, 0].mT
    torch.testing.assert_close(net(features), want)


def test_decoder_by_hand():
    net = loud(QFormerDecoder((12, 3, 3), 6, 8, (4, 2), align_layer=2, teacher_dim=5))
    tokens = draw(2, 5, 6)                                         # fewer than N: the first places
    x = net.decoder_embed(net.ln_pre(tokens))
    q = x[:, :1].expand(-1, 8, -1)
    after = []
    for layer in net.transformer:
        q = by_hand(layer, q, x, net.grid_positions(), net.token_positions()[:5])
        after.append(q)
    out, features = net(tokens)
    torch.testing.assert_close(features, after[1])
    torch.testing.assert_close(out, net.conv_out(net.ln_post(q).mT.unflatten(2, (4, 2))))
    assert net.project(features).shape == (2, 8, 5)


def test_positions_are_added_in_every_layer_and_not_to_values():
    layer = loud(QFormerLayer(12, 3))
    q, x, p_q, p_x = draw(1, 4, 12), draw(1, 6, 12, seed=1), draw(4, 12), draw(6, 12, seed=2)
    assert not torch.allclose(layer(q, x, p_q, p_x), layer(q, x, 2 * p_q, p_x), atol=1e-2)
    assert not torch.allclose(layer(q, x, p_q, p_x), layer(q, x, p_q, 2 * p_x), atol=1e-2)
    with torch.no_grad():                       # uniform weights: positions can only be in values
        for attention in (layer.self_attn, layer.multihead_attn):
            attention.in_proj_weight[:24] = 0
    torch.testing.assert_close(layer(q, x, p_q, p_x), layer(q, x, 2 * p_q, 2 * p_x))
    read = layer(q, x, p_q, p_x) - layer(q, 0 * x, p_q, p_x)        # the memory is not normalised
    assert (layer(q, 5 * x, p_q, p_x) - layer(q, 0 * x, p_q, p_x)).norm() > 2 * read.norm()


def test_queries_of_the_decoder_are_the_first_token():
    net, seen = loud(QFormerDecoder((12, 1, 3), 6, 8, (4, 2), 1)), []
    net.transformer[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokens = draw(2, 8, 6)
    net(tokens)
    first = net.decoder_embed(net.ln_pre(tokens))[:, :1]
    assert torch.equal(seen[0], first.expand(-1, 8, -1))


def test_a_token_moves_the_whole_image(images):
    """One dimension has no places: that is what 1-D tokens cost."""
    model = loud(made()).eval()
    out = model(images[:1])
    codes = out.quantized.codes.clone()
    codes[:, 7] = -codes[:, 7]
    changed = (model.decode(codes) - out.images).abs().amax(dim=1)
    assert (rearrange(changed, "b (h p) (w q) -> b h w (p q)", p=4, q=4).amax(-1) > 0).all()


# ------------------------------------------------------------------------------------ CNN decoder
def test_adaptive_norm_by_hand():
    norm, x, style = loud(AdaptiveGroupNorm(3, 8, groups=4)), draw(2, 8, 4, 5), draw(2, 3, 2, 3)
    deviation = (style.var(dim=(2, 3), unbiased=True) + 1e-6).sqrt()
    scale, bias = norm.gamma(deviation), norm.beta(style.mean(dim=(2, 3)))
    want = scale[..., None, None] * F.group_norm(x, 4, eps=1e-6) + bias[..., None, None]
    torch.testing.assert_close(norm(x, style), want)
    assert not list(norm.gn.parameters())
    with pytest.raises(ValueError, match="one place only"):
        norm(x, style[:, :, :1, :1])


def test_cnn_decoder():
    net = loud(AdaptiveDecoder(6, 3, **CNN)).eval()
    styles = []
    for norm in net.adaptive:
        norm.register_forward_hook(lambda _, args, out: styles.append(args[1]))
    x = draw(2, 6, 4, 3)
    assert net(x).shape == (2, 3, 16, 12)
    assert len(styles) == 2 and all(style is x for style in styles)
    assert [block.upsample is None for block in net.conv_blocks] == [False, True]
    assert net.conv_blocks[0].upsample.conv.out_channels == 4 * 16      # depth-to-space
    with torch.device("meta"):
        official = AdaptiveDecoder()
    assert sum(p.numel() for p in official.parameters()) == 50_161_155
    widths = [norm.gamma.out_features for norm in official.adaptive]
    assert widths == [512, 512, 256, 256, 128]


# ----------------------------------------------------------------------------------- semantic loss
def test_semantic_loss():
    x, other = draw(2, 4, 6), draw(2, 4, 6, seed=1)
    torch.testing.assert_close(semantic_loss(x, 3 * x), -torch.ones(2))
    want = -F.cosine_similarity(x, other, dim=-1).mean(dim=1)
    torch.testing.assert_close(semantic_loss(x, other), want)
    with pytest.raises(ValueError, match=r"needs \(2, 4, 6\)"):
        semantic_loss(x, other[:, :3])


def test_who_learns_from_the_teacher(images):
    model, teacher = made(semantic_weight=1.0), draw(2, 64, 10).requires_grad_()
    out = model(images)
    semantic_loss(out.features, teacher).mean().backward()
    assert teacher.grad is None
    grads = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    decoder = {name for name in grads if name.startswith("s1to2decoder.transformer.")}
    assert all(grads[name] == (name.split(".")[2] in "01") for name in decoder)
    assert all(grads[name] for name in grads if "distill_mlp" in name)
    assert grads["encoder.conv_in.weight"] and grads["s2to1encoder.global_proj.weight"]
    late = ("decoder.", "s1to2decoder.ln_post", "s1to2decoder.conv_out", "quantizer.")
    assert not any(grads[name] for name in grads if name.startswith(late))


# -------------------------------------------------------------------------------------- the whole
def test_shapes_and_the_same_picture_from_the_indices(images):
    model = made().eval()
    out = model(images)
    assert out.images.shape == images.shape and out.features.shape == (2, 64, 10)
    assert out.quantized.indices.shape == (2, 16) and out.quantized.indices.dtype == torch.long
    assert out.quantized.codes.shape == (2, 16, 4)
    torch.testing.assert_close(out.quantized.codes.norm(dim=-1), torch.ones(2, 16))
    assert torch.equal(model.decode_indices(out.quantized.indices), out.images)
    assert torch.equal(model.encode(images).indices, out.quantized.indices)
    assert model.bits(out.quantized) == 16 * 5
    torch.testing.assert_close(model(images[1:]).images, out.images[1:], atol=1e-5, rtol=1e-4)


def test_not_square_and_one_resolution():
    model = made(img_size=(16, 32))
    assert model(torch.rand(1, 3, 16, 32)).images.shape == (1, 3, 16, 32)
    for size in ((32, 16), (32, 32)):
        with pytest.raises(ValueError, match=r"positions for \(16, 32\)"):
            model(torch.rand(1, 3, *size))


def test_the_quantiser():
    model, z = made(), draw(2, 16, 4)
    quantizer = model.quantizer.eval()
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(32))
    indices = quantizer(z).indices
    assert torch.equal(quantizer(z * torch.rand(2, 16, 1).add(0.1)).indices, indices)
    with torch.no_grad():
        quantizer.codebook.mul_(torch.rand(32, 1) + 0.1)
    assert torch.equal(quantizer(z).indices, indices)

    def gradient(kind):
        x = z.clone().requires_grad_()
        torch.manual_seed(0)
        net = GigaTok(**SIZES, gradient=kind).quantizer
        (net(x).codes * draw(2, 16, 4, seed=3)).sum().backward()
        return x.grad

    assert not torch.allclose(gradient("rotation"), gradient("straight_through"), atol=1e-3)


def test_the_entropy_loss_spreads_codes(images):
    """E[H(p)] - H(E[p]) at temperature 0.01, between -log K and 0, times its weight."""
    plain, spread = made(), made(entropy_weight=0.005)
    difference = spread.encode(images).loss - plain.encode(images).loss
    assert -0.005 * math.log(32) <= difference.item() < 0
    assert spread.quantizer.entropy_temperature == 0.01
    assert plain.quantizer.commitment_weight == 0.25
    with torch.device("meta"):
        largest = paper.gigatok_xl_xxl(encoder_size="tiny", decoder_size="tiny")
    assert largest.quantizer.entropy_weight == 0.005


def test_the_loss_is_its_parts(images):
    model, teacher = made(semantic_weight=0.7), draw(2, 64, 10)
    out = model(images)
    loss, parts = model.loss(images, teacher)
    assert set(parts) == {"pixels", "quantizer", "semantic"}
    want = F.mse_loss(2 * out.images - 1, 2 * images - 1) + out.quantized.loss
    want = want + 0.7 * semantic_loss(out.features, teacher).mean()
    torch.testing.assert_close(loss, want)
    assert set(model.loss(images)[1]) == {"pixels", "quantizer"}
    without = made(teacher_dim=None)
    assert set(without.loss(images, teacher)[1]) == {"pixels", "quantizer"}
    assert not hasattr(without.s1to2decoder, "distill_mlp")


def test_every_weight_learns(images):
    for dtype in (torch.float32, torch.bfloat16):
        model = made(entropy_weight=0.005)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss, _ = model.loss(images, draw(2, 64, 10))
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_shortcut(images):
    """The CNN decoder draws the CNN encoder's map; the Q-Formers are pulled to it, not it to them.
    """
    model = made(shortcut=True)
    loss, parts = model.loss(images)
    assert set(parts) == {"pixels", "quantizer", "shortcut_pixels", "shortcut_map"}
    features = model.features(images)
    torch.testing.assert_close(
        parts["shortcut_pixels"], pixel_loss(model.render(features), images).detach()
    )
    pull = F.mse_loss(model.read(model.quantize(features).codes)[0], features)
    torch.testing.assert_close(parts["shortcut_map"], pull.detach())
    weighted = 4 * (parts["pixels"] + parts["shortcut_pixels"])
    torch.testing.assert_close(loss.detach(), weighted + parts["quantizer"] + parts["shortcut_map"])


def test_first_weights():
    model = made(encoder_size=(64, 2, 2))
    weights = model.s2to1encoder.transformer[0].linear1.weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.encoder.conv_in.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.encoder.conv_in.bias.any()
    table = model.s2to1encoder.positional_embedding
    assert table.std().item() == pytest.approx(64**-0.5, rel=0.1)
    wide = made(encoder_size=(64, 2, 2), weight_std=None).s2to1encoder.transformer[0].linear1.weight
    assert wide.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.1)      # torch's own


def test_from_places():
    """Before training each place of the decoder's grid looks at the tokens of its own region."""
    torch.manual_seed(0)
    decoder = QFormerDecoder((32, 1, 4), 12, 16, (4, 4), align_layer=1, teacher_dim=None)
    regions = query_regions(16, (4, 4)).flatten(1)                               # n hw

    def own_share():
        layer = decoder.transformer[0].multihead_attn
        query, key, _ = layer.in_proj_weight.chunk(3)
        q, k = decoder.grid_positions() @ query.T, decoder.token_positions() @ key.T
        q, k = (rearrange(x, "n (h p) -> h n p", h=4) for x in (q, k))
        attention = (q @ k.mT / 8**0.5).softmax(dim=-1)[..., 8:]                 # the finest level
        return (attention * regions[8:].T).sum().item() / attention.sum().item()

    assert own_share() == pytest.approx(1 / 8, rel=0.1)                          # chance
    decoder.start_at_places()
    assert own_share() > 4 / 8
    mean = torch.stack([decoder.grid_positions()[region].mean(dim=0) for region in regions])
    torch.testing.assert_close(decoder.region_positions(), mean)
    assert (decoder.token_positions() - mean).std().item() == pytest.approx(1, rel=0.1)
    model = made(encoder_size=(16, 2, 2), from_places=True)
    assert model.s2to1encoder.positional_embedding.std().item() == pytest.approx(1.5, rel=0.1)
    one = QFormerDecoder((8, 1, 2), 4, 1, (1, 1), align_layer=1)
    one.start_at_places()
    assert one.token_positions().isfinite().all()


# --------------------------------------------------------------------------------------- official
@pytest.mark.parametrize("build, count", [
    (paper.gigatok_s_s, 136_073_227), (paper.gigatok_s_b, 232_399_627),
    (paper.gigatok_b_l, 621_637_131), (paper.gigatok_xl_xxl, 2_893_970_443),
    (lambda: GigaTok(teacher_dim=None), 129_252_619),
])
def test_parameter_counts(build, count):
    with torch.device("meta"):
        model = build()
    assert sum(p.numel() for p in model.parameters()) == count


def test_parameter_counts_of_parts():
    with torch.device("meta"):
        small, base = paper.gigatok_s_b(), paper.gigatok_b_l()
    encoders = [sum(p.numel() for p in m.s2to1encoder.parameters()) for m in (small, base)]
    assert encoders == [26_013_440, 114_801_408]
    assert small.s2to1encoder.grid == (16, 16) and small.num_tokens == 256


def test_official_names(images):
    model, other = made(), made(num_tokens=16)
    loud(other)
    official = {}
    for name, value in model.state_dict().items():
        name = name.replace("quantizer.codebook", "quantize.embedding.weight")
        name = name.replace("upsample.conv.", "upsample.conv1.")
        if not name.startswith("quantizer."):
            official[name] = value
    official["quantize.codebook_used"] = torch.zeros(65536)
    assert "decoder.conv_blocks.0.upsample.conv1.weight" in official
    assert "s2to1encoder.transformer.1.multihead_attn.in_proj_weight" in official
    averaged = {name: value.clone() for name, value in official.items()}
    checkpoint = {"model": {name: value * 0 for name, value in official.items()}, "ema": averaged}
    for state in (official, {"model": official}, checkpoint):
        other.load_state_dict(convert_official(state))
        assert torch.equal(other.eval()(images).images, model.eval()(images).images)


# --------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("options, said", [
    (dict(num_tokens=12), "power of two"),
    (dict(num_tokens=256), "8 x 16 equal blocks .* the grid is 8 x 8"),
    (dict(img_size=34), "img_size"),
    (dict(img_size=(32, 32, 32)), "img_size"),
    (dict(encoder_size="huge"), "size='huge'"),
    (dict(decoder_size=(24, 3)), "size="),
    (dict(decoder_size=(24, 3, 5)), "num_heads=5"),
    (dict(align_layer=4), "align_layer=4"),
    (dict(align_layer=0), "align_layer=0"),
    (dict(cnn={"width": 3}), "cnn="),
    (dict(cnn=8), "cnn="),
    (dict(gradient="none"), "gradient='none'"),
    (dict(semantic_weight=-1), "semantic_weight"),
    (dict(teacher_dim=0), "teacher_dim"),
    (dict(shortcut="no"), "shortcut"),
    (dict(weight_std=0), "weight_std=0"),
    (dict(from_places=1), "from_places"),
    (dict(from_places=True, decoder_size=(18, 2, 2)), "embed_dim=18"),
])
def test_wrong_sizes_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        made(**options)


def test_what_is_no_argument_is_refused(images):
    model, codes = made().eval(), draw(2, 16, 4)
    x, memory, grid = draw(2, 8, 12), draw(2, 5, 12), draw(2, 6, 4, 2)
    encoder = QFormerEncoder((12, 1, 3), 6, 8, (4, 2))
    decoder = QFormerDecoder((12, 1, 3), 6, 8, (4, 2), 1, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    calls = {
        "block_counts": (block_counts, dict(num_queries=8, columns_first=True)),
        "pool_queries": (pool_queries, dict(features=grid, num_queries=4, columns_first=True)),
        "query_regions": (query_regions, dict(num_queries=4, grid=(4, 4))),
        "semantic_loss": (semantic_loss, dict(projected=x, teacher=x)),
        "DetrAttention": (DetrAttention, dict(width=12, num_heads=3)),
        "DetrAttention.forward": (
            DetrAttention(12, 3), dict(queries=x, keys=memory, values=memory, mask=mask)
        ),
        "QFormerLayer": (QFormerLayer, dict(width=12, num_heads=3, mlp_ratio=2.0)),
        "QFormerLayer.forward": (QFormerLayer(12, 3), dict(
            queries=x, memory=memory, query_pos=draw(8, 12), memory_pos=draw(5, 12), mask=mask
        )),
        "QFormerEncoder": (
            QFormerEncoder, dict(size=(12, 1, 3), channels=6, num_tokens=8, grid=(4, 2))
        ),
        "QFormerEncoder.forward": (encoder, dict(features=grid)),
        "QFormerDecoder.forward": (decoder, dict(tokens=draw(2, 5, 6), mask=mask)),
        "QFormerDecoder.project": (decoder.project, dict(features=x)),
        "AdaptiveGroupNorm": (
            AdaptiveGroupNorm, dict(style_channels=6, channels=8, groups=4, eps=1e-6)
        ),
        "AdaptiveGroupNorm.forward": (
            AdaptiveGroupNorm(6, 8, 4), dict(x=draw(2, 8, 3, 3), style=grid)
        ),
        "AdaptiveDecoder.forward": (AdaptiveDecoder(6, 3, **CNN), dict(x=grid)),
        "GigaTok.forward": (model, dict(images=images)),
        "GigaTok.encode": (model.encode, dict(images=images)),
        "GigaTok.decode": (model.decode, dict(codes=codes)),
        "GigaTok.decode_indices": (
            model.decode_indices, dict(indices=torch.zeros(2, 16, dtype=torch.long))
        ),
        "GigaTok.loss": (model.loss, dict(images=images, teacher=draw(2, 64, 10))),
        "convert_official": (convert_official, dict(state=model.state_dict())),
    }
    with torch.no_grad():
        found = {name: raw_errors(*call, part=True) for name, call in calls.items()}
    assert {name: errors for name, errors in found.items() if errors} == {}
