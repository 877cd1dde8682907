"""CASWiT: the card's checks of fusion, gate, places and losses; each part by what is lost without
it."""

import pytest
import torch
import torch.nn.functional as F

from tests.wrong import raw_errors
from vtlib.segmentation import CASWiT, CrossScaleFusion, Swin, caswit_loss
from vtlib.segmentation.caswit import GATES
from vtlib.segmentation.caswit_context import centres, cut, scene_code

SIZES = dict(embed_dim=8, depths=(1, 2, 1), num_heads=(1, 2, 2), window_size=4, mlp_ratio=2.0)
SIZES |= dict(drop_path=0.0, fuse_at=(0, 1, 2), max_keys=4, channels=8)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(num_classes=5, **options):
    """In eval mode, with weights large enough for all parts to matter."""
    torch.manual_seed(0)
    net = CASWiT(num_classes, **SIZES | options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


@pytest.fixture(scope="module")
def pair():
    return cut(randn(2, 3, 64, 64), (16, 16), (32, 32))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# -------------------------------------------------------------------------------- sizes and shapes
def test_the_default_is_swin_b_twice():
    with torch.device("meta"):
        net, swin = CASWiT(19), Swin(128, (2, 2, 18, 2), (4, 8, 16, 32))
        tied = CASWiT(19, tied=True)
    assert parameters(net.hr) == parameters(swin) == 86_745_016
    assert parameters(net.lr) == 86_743_224 - 2 * 1024 + 2 * 512     # a norm where it is read only
    dims = (128, 256, 512, 1024)
    assert parameters(net.fusions) == sum(6 * d * d + 9 * d for d in dims) + 4 + 8 + 16 + 32
    assert parameters(net) == 216_294_226
    assert parameters(net) - parameters(tied) == parameters(net.lr)
    assert tied.lr is tied.hr and net.factor == 2 and net.max_keys == 32


def test_tokens_of_both_branches_at_512():
    with torch.device("meta"):
        net = CASWiT(19, depths=(1, 1, 1, 1)).eval()
        images = torch.rand(1, 3, 512, 512)
        out = net(images, images, return_maps=True)
        features = net.encode(net.hr.patch_embed(images), net.lr.patch_embed(images)).features
    assert out.logits.shape == out.context_logits.shape == (1, 19, 512, 512)
    assert [x.shape[2:] for x in features] == [(128, 128), (64, 64), (32, 32), (16, 16)]
    heads, keys = (4, 8, 16, 32), (32**2, 32**2, 32**2, 16**2)
    for s, (weights, gate) in enumerate(out.maps):
        assert weights.shape == (1, heads[s], (128 // 2**s) ** 2, keys[s])
        assert gate.shape == (1, (128 // 2**s) ** 2, 128 * 2**s)


# ------------------------------------------------------------------------------- the fusion block
def fused(gate="token", **options):
    torch.manual_seed(0)
    block = CrossScaleFusion(16, 2, gate, **options)
    own, around = scene_code(torch.arange(3.0), torch.arange(4.0), 8), randn(6, 8, seed=3)
    return block, dict(
        h=randn(2, 12, 16), context=randn(2, 6, 16, seed=1), h_code=own, context_code=around
    )


@pytest.mark.parametrize("gate", GATES)
def test_the_equation(gate):
    block, given = fused(gate)
    if gate == "channel":
        with torch.no_grad():
            block.gate.copy_(randn(16))
    h, around = given["h"], given["context"]
    q, k = block.wq(block.norm_h(h)), block.wk(block.norm_l(around))
    v, answers = block.wv(block.norm_l(around)), []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        a = (q[..., part] + given["h_code"]) @ (k[..., part] + given["context_code"]).mT / 8**0.5
        answers.append(a.softmax(-1) @ v[..., part])
    o = block.proj(torch.cat(answers, -1))
    g = {
        "token": lambda: torch.sigmoid(block.gate(torch.cat([h, o], -1))),
        "channel": lambda: torch.tanh(block.gate),
        "none": lambda: 1.0,
    }[gate]()
    torch.testing.assert_close(block(**given), h + g * o)
    again, (weights, opened) = block(**given, return_maps=True)
    torch.testing.assert_close(again, h + g * o)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 12))
    torch.testing.assert_close(opened * o, g * o)


def test_gates_begin_nearly_closed():
    block, given = fused()
    gate = block(**given, return_maps=True)[1][1]
    assert 0.05 < gate.mean() < 0.2 and gate.std() > 0           # sigmoid(-2) = 0.12
    block, given = fused("channel")
    assert torch.equal(block(**given), given["h"])
    block(**given).square().sum().backward()
    assert block.gate.grad.abs().sum() > 0                       # and can open


def test_the_gate_is_for_each_token_and_channel():
    block, given = fused()
    gate = block(**given, return_maps=True)[1][1]
    assert gate.shape == (2, 12, 16)
    changed = block(**{**given, "context": given["context"].flip(0)}, return_maps=True)[1][1]
    assert not torch.equal(gate, changed)                        # it reads the answer, too


def test_permuting_the_context_with_its_codes_changes_nothing():
    block, given = fused()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = {**given, "context": given["context"][:, order]}
    assert (block(**moved) - block(**given)).abs().max() > 1e-3  # where, not only what
    moved["context_code"] = given["context_code"][order]
    torch.testing.assert_close(block(**moved), block(**given))


# --------------------------------------------------------------------------------------- the model
def test_the_closed_gate_is_the_network_without_context(pair):
    net = make()
    with torch.no_grad():
        for block in net.fusions.values():
            block.gate.bias.fill_(-torch.inf)
    crop, context = pair[0], pair[1].clone().requires_grad_()
    out = net(crop, context)
    assert torch.equal(out.logits, net(crop).logits)
    out.logits.square().sum().backward()
    assert not context.grad.any()
    assert not any(p.grad.any() for p in net.lr.parameters() if p.grad is not None)


def test_the_context_matters_and_reaches_its_gradients(pair):
    net = make()
    crop, context = pair[0], pair[1].clone().requires_grad_()
    out = net(crop, context)
    assert (out.logits - net(crop).logits).abs().max() > 1e-3
    assert (out.logits - net(crop, context.flip(0)).logits).abs().max() > 1e-3
    out.logits.square().sum().backward()
    assert context.grad.abs().sum() > 0


def test_the_context_branch_never_sees_the_crop(pair):
    net = make()
    crop, context = pair
    a, b = net(crop, context), net(randn(2, 3, 32, 32, seed=5), context)
    assert torch.equal(a.context_logits, b.context_logits) and not torch.equal(a.logits, b.logits)


def test_fused_features_feed_the_next_stage(pair):
    """With fusion after the first stage alone all later maps change; with late fusion the last."""
    crop, context = pair

    def changed(fuse_at):
        net = make(fuse_at=fuse_at)
        h, around = net.hr.patch_embed(crop), net.lr.patch_embed(context)
        fused, alone = net.encode(h, around).features, net.encode(h, None).features
        return [not torch.equal(a, b) for a, b in zip(fused, alone, strict=True)]

    assert changed((0,)) == changed((0, 1, 2)) == [True, True, True]
    assert changed((1,)) == [False, True, True] and changed((2,)) == [False, False, True]
    assert changed(()) == [False, False, False]
    assert len(make(fuse_at=(0, 2))(crop, context, return_maps=True).maps) == 2


def test_both_branches_have_weights_of_their_own_unless_tied(pair):
    free, tied = make(), make(tied=True)
    assert not torch.equal(free.hr.patch_embed.proj.weight, free.lr.patch_embed.proj.weight)
    crop = pair[0]
    features = tied.encode(tied.hr.patch_embed(crop), None).features[1]
    read = tied.encode(tied.hr.patch_embed(crop), tied.lr.patch_embed(crop)).context
    torch.testing.assert_close(features, read)


def test_places_of_both_branches(pair, monkeypatch):
    """Codes that reach the blocks: in pixels of the context, the crop's in its middle."""
    seen, block = [], CrossScaleFusion.forward

    def spy(self, h, context, h_code, context_code, return_maps=False):
        seen.append((h_code, context_code))
        return block(self, h, context, h_code, context_code, return_maps)

    monkeypatch.setattr(CrossScaleFusion, "forward", spy)
    net, device = make(), torch.device("cpu")
    net(*pair)
    own, around = centres(8, 2.0, 8.0, device), centres(4, 8.0, 0.0, device)   # 8 keys pooled to 4
    torch.testing.assert_close(seen[0][0], scene_code(own, own, 8))
    torch.testing.assert_close(seen[0][1], scene_code(around, around, 8))
    own, around = centres(4, 4.0, 8.0, device), centres(4, 8.0, 0.0, device)
    torch.testing.assert_close(seen[1][0], scene_code(own, own, 8))
    torch.testing.assert_close(seen[1][1], scene_code(around, around, 8))


def test_the_cost_stays_when_the_context_grows():
    """A window of 2, 4 or 8 times the crop's sides, shrunk to the crop's size."""
    images, counts = randn(1, 3, 64, 64), []
    for factor in (2, 4, 8):
        net = make(factor=factor)
        out = net(*cut(images, (24, 24), (16, 16), factor), return_maps=True)
        counts.append([weights.shape for weights, _ in out.maps])
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("decoder", ["upernet", "mlp"])
def test_other_sizes(decoder):
    """Neither square nor of one size; a wider context than its standard."""
    net = make(decoder=decoder)
    out = net(randn(1, 3, 20, 36), randn(1, 3, 44, 28))
    assert out.logits.shape == (1, 5, 20, 36) and out.context_logits.shape == (1, 5, 44, 28)


def test_state_dict_round_trip(pair):
    net, other = make(), CASWiT(5, **SIZES).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(*pair).logits, other(*pair).logits)


# ---------------------------------------------------------------------------------------- the loss
def test_the_loss(pair):
    out = make()(*pair)
    g = torch.Generator().manual_seed(0)
    labels, around = (torch.randint(0, 5, (2, 32, 32), generator=g) for _ in range(2))
    first = F.cross_entropy(out.logits, labels)
    second = F.cross_entropy(out.context_logits, around)
    torch.testing.assert_close(caswit_loss(out, labels), first)
    torch.testing.assert_close(caswit_loss(out, labels, around), first + 0.4 * second)
    torch.testing.assert_close(caswit_loss(out, labels, around, 2.0), first + 2 * second)
    labels[0] = 255
    want = F.cross_entropy(out.logits[1:], labels[1:])
    torch.testing.assert_close(caswit_loss(out, labels), want)
    labels[:] = 255
    assert caswit_loss(out, labels) == 0


def test_the_auxiliary_loss_trains_the_context_branch_alone(pair):
    net = make()
    out = net(*pair)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    (caswit_loss(out, labels, labels) - caswit_loss(out, labels)).backward(inputs=[
        net.lr.patch_embed.proj.weight, net.hr.patch_embed.proj.weight, net.aux_head.conv_seg.weight
    ])
    assert net.lr.patch_embed.proj.weight.grad.abs().sum() > 0
    assert net.aux_head.conv_seg.weight.grad.abs().sum() > 0
    assert net.hr.patch_embed.proj.weight.grad.abs().max() < 1e-6


def test_context_tells_what_the_crop_cannot():
    """Blank crops whose class is the colour around them: learned with context, chance without."""
    torch.manual_seed(0)
    options = SIZES | dict(embed_dim=8, depths=(1, 1, 1), decoder="mlp", gate_bias=-1.0)
    net = CASWiT(2, **options)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    g = torch.Generator().manual_seed(0)

    def batch(size=16):
        kind = torch.randint(0, 2, (size,), generator=g)
        images = torch.zeros(size, 3, 32, 32) + (2.0 * kind - 1)[:, None, None, None]
        images[..., 8:24, 8:24] = 0.0
        return *cut(images, (8, 8), (16, 16)), kind[:, None, None].expand(-1, 16, 16)

    for _ in range(40):
        crop, context, labels = batch()
        optimizer.zero_grad()
        caswit_loss(net(crop, context), labels).backward()
        optimizer.step()
    net.eval()
    crop, context, labels = batch(32)
    right = (net(crop, context).logits.argmax(1) == labels).float().mean()
    other = (net(crop, -context).logits.argmax(1) == labels).float().mean()
    assert right > 0.95 and other < 0.05
    alone = net(crop).logits                                     # the crops are all the same
    torch.testing.assert_close(alone, alone[:1].expand_as(alone))


# --------------------------------------------------------------------------------------- bad input
def test_wrong_arguments(pair):
    net = make()
    for name, wrong in [("gate", "open"), ("decoder", "fcn"), ("fuse_at", (3,)), ("factor", 0)]:
        with pytest.raises(ValueError, match=name):
            make(**{name: wrong})
    with pytest.raises(ValueError, match="multiple of 4"):
        net(randn(1, 3, 30, 32))
    with pytest.raises(ValueError, match="a head needs"):
        CrossScaleFusion(12, 2)
    with pytest.raises(ValueError, match="context has 1 images"):
        net(pair[0], pair[1][:1])
    with pytest.raises(ValueError, match="context_size"):
        net(randn(1, 3, 32, 32), randn(1, 3, 8, 32))
    assert not raw_errors(net, dict(crop=pair[0], context=pair[1], return_maps=False))
    assert not raw_errors(CASWiT, dict(num_classes=2, **SIZES, tied=True, gate_bias=-1.0))
    block, given = fused()
    with pytest.raises(ValueError, match="context has 1 rows"):
        block(**{**given, "context": given["context"][:1]})
    with pytest.raises(ValueError, match="h_code"):
        block(**{**given, "h_code": given["h_code"][:3]})
    assert not raw_errors(block, dict(given, return_maps=False), part=True)


def test_wrong_labels(pair):
    out, labels = make()(*pair), torch.zeros(2, 32, 32, dtype=torch.long)
    for name, wrong in [("labels", labels.float()), ("labels", labels + 5), ("labels", labels[:1])]:
        with pytest.raises(ValueError, match=name):
            caswit_loss(out, wrong)
    with pytest.raises(ValueError, match="context_labels"):
        caswit_loss(out, labels, labels - 1)
    with pytest.raises(ValueError, match="without a context"):
        caswit_loss(make()(pair[0]), labels, labels)
    assert not raw_errors(caswit_loss, dict(
        out=out, labels=labels, context_labels=labels, lr_weight=0.4, ignore_index=255
    ))
