"""TokenBridge's generator: what it reads, what it learns, in which order it writes."""

import math

import pytest
import torch
import torch.nn.functional as F

from vtlib.tokenizers import tokenbridge_generator as file
from vtlib.tokenizers.tokenbridge_generator import (
    HUGE,
    LARGE,
    MaskedGenerator,
    convert_official,
    mask_share,
    masked_left,
)

SMALL = dict(grid=(2, 4), dim=3, num_classes=4, levels=6, embed_dim=8, num_layers=1, num_heads=2)
SMALL |= dict(num_buffer=2, head_dim=8, head_layers=1, head_heads=2, order=(2, 0, 1), dropout=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(**options):
    torch.manual_seed(0)
    net = MaskedGenerator(**{**SMALL, **options})
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def tokens(batch=3, seed=0):
    return torch.randint(6, (batch, 2, 4, 3), generator=seeded(seed))


LABELS, VISIBLE = torch.tensor([0, 3, 1]), torch.tensor([[1, 4], [0, 7], [2, 3]])


# ------------------------------------------------------------------------------------ backbone
def test_it_reads_values_of_visible_positions_only():
    net, indices, seen = build(), tokens(), []
    net.z_proj.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    net.encoder_blocks[0].register_forward_hook(lambda _, args, out: seen.append(args[0]))
    net(indices, VISIBLE, LABELS)
    values, encoded = seen
    flat = net.quantizer.decode(indices).flatten(1, 2)
    assert torch.equal(values, torch.stack([flat[b, VISIBLE[b]] for b in range(3)]))
    assert encoded.shape == (3, 2 + 2, 8)                            # buffer and visible, no more


def test_contexts_know_what_is_visible_and_nothing_else():
    net, indices = build(), tokens().flatten(1, 2)
    values, condition = net.quantizer.decode(indices), net.embed(LABELS, 3)
    want, masked = net.context(values, VISIBLE, condition), net.masked(VISIBLE)
    assert masked.tolist()[0] == [0, 2, 3, 5, 6, 7] and masked.shape == (3, 6)
    hidden = values.clone().scatter(1, masked[..., None].expand(-1, -1, 3), 99.0)
    assert torch.equal(net.context(hidden, VISIBLE, condition), want)
    other = values.clone()
    other[0, 4] += 1
    changed = (net.context(other, VISIBLE, condition) != want).any(-1)
    assert changed[0].all() and not changed[1:].any()
    assert (net.context(values, VISIBLE, net.embed(None, 3)) != want).any(-1).all()


def test_encoder_and_decoder_against_masks_over_all_positions():
    """The brute-force way: attention with a mask instead of rows that are left out."""
    net, indices = build(), tokens().flatten(1, 2)
    values, condition = net.quantizer.decode(indices), net.embed(LABELS, 3)
    shown = torch.zeros(3, 8, dtype=torch.bool).scatter(1, VISIBLE, True)
    x = torch.cat([condition[:, None].expand(-1, 2, -1), net.z_proj(values)], dim=1)
    x = net.z_proj_ln(x + net.encoder_pos_embed_learned)
    block, keys = net.encoder_blocks[0], F.pad(shown, (2, 0), value=True)[:, None, None]
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, keys).transpose(1, 2).flatten(2)
    x = x + block.attn.proj(out)
    x = net.encoder_norm(x + block.mlp(block.norm2(x)))
    got = net.encode(values, VISIBLE, condition)
    assert torch.allclose(got[:, :2], x[:, :2], atol=1e-5)
    assert torch.allclose(got[:, 2:].flatten(0, 1), x[:, 2:][shown], atol=1e-5)
    y = net.decoder_embed(x)
    y[:, 2:] = torch.where(shown[..., None], y[:, 2:], net.mask_token)
    y = net.decoder_blocks[0](y + net.decoder_pos_embed_learned)
    y = net.decoder_norm(y)[:, 2:] + net.output_pos_embed
    torch.testing.assert_close(net.decode(got, VISIBLE), y, atol=1e-5, rtol=1e-4)


def test_parameters_of_the_release():
    counts = []
    for options in (LARGE, HUGE):
        with torch.device("meta"):
            net = MaskedGenerator(**options)
        counts.append(sum(p.numel() for p in net.parameters()))
    assert counts == [486_889_472, 910_040_576]
    assert net.num_positions * net.quantizer.dim == 4096


# ------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("parallel", [False, True])
def test_the_loss_is_the_mean_over_masked_positions_and_channels(parallel, monkeypatch):
    net, indices = build(parallel=parallel), tokens()
    monkeypatch.setattr(net, "shuffled", lambda *given: torch.tensor([
        [0, 7, 2, 3, 5, 6, 4, 1], [1, 2, 3, 4, 5, 6, 7, 0], [0, 1, 4, 5, 6, 7, 3, 2]
    ]))
    monkeypatch.setattr(file, "mask_share", lambda *given: 0.7)        # ceil(5.6) = 6 of 8 masked
    logits, total = net(indices, torch.tensor([[1, 4], [0, 7], [2, 3]]), LABELS), 0.0
    masked = net.masked(torch.tensor([[1, 4], [0, 7], [2, 3]]))
    for b in range(3):
        for m, place in enumerate(masked[b].tolist()):
            for c in range(3):
                log_prob = logits[b, m, c].log_softmax(-1)
                total -= log_prob[indices[b].flatten(0, 1)[place, c]].item() / (3 * 6 * 3)
    assert net.loss(indices, LABELS).item() == pytest.approx(total, abs=1e-5)


def test_labels_are_dropped_in_training_only():
    net, indices = build(label_drop=1.0), tokens()
    losses = [net.train(mode).loss(indices, given, seeded()).item()
              for mode, given in ((True, LABELS), (True, None), (False, LABELS), (False, None))]
    net.label_drop = 0.0
    kept = net.train().loss(indices, LABELS, seeded()).item()
    assert losses[0] == losses[1] and losses[2] != losses[3] and kept != losses[0]
    net.label_drop, seen = 0.1, []
    net.encoder_blocks[0].register_forward_hook(lambda _, args, out: seen.append(args[0][:, 0]))
    net.loss(tokens(1).expand(2000, -1, -1, -1), torch.zeros(2000, dtype=torch.long), seeded())
    bare = net.z_proj_ln(net.fake_latent + net.encoder_pos_embed_learned[0, :1])
    share = torch.isclose(seen[0], bare, atol=1e-5).all(-1).float().mean().item()
    assert share == pytest.approx(0.1, abs=0.025)


def test_the_share_that_is_masked():
    shares = torch.tensor([mask_share(generator=seeded(s)) for s in range(3000)])
    assert shares.min() >= 0.7 and shares.max() <= 1
    low = 0.5 * math.erfc(1.2 / math.sqrt(2))
    density = (math.exp(-1.2**2 / 2) - 1) / math.sqrt(2 * math.pi)
    assert shares.mean().item() == pytest.approx(1 + 0.25 * density / (0.5 - low), abs=0.004)
    below = (0.5 * math.erfc(0.6 / math.sqrt(2)) - low) / (0.5 - low)  # P(share < 0.85)
    assert (shares < 0.85).float().mean().item() == pytest.approx(below, abs=0.03)
    assert mask_share(1.0) == 1.0 and 0 <= mask_share(0.0) <= 1
    with pytest.raises(ValueError, match="least"):
        mask_share(1.5)


def test_gradients_reach_everything_and_randomness_comes_from_the_generator():
    net, indices = build(label_drop=0.5, dropout=0.1, least_masked=0.0).train(), tokens()
    for seed in range(3):
        net.loss(indices, LABELS, seeded(seed)).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead and not list(net.quantizer.parameters())
    plain = build(least_masked=0.0).train()
    losses = [plain.loss(indices, LABELS, seeded(s)).item() for s in (1, 1, 5)]
    assert losses[0] == losses[1] != losses[2]


def test_a_few_steps_learn_one_picture():
    torch.manual_seed(0)
    net, indices = MaskedGenerator(**SMALL).train(), tokens(1).expand(8, -1, -1, -1)
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for step in range(100):
        loss = net.loss(indices, torch.zeros(8, dtype=torch.long), seeded(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    made = net.sample(torch.zeros(2, dtype=torch.long), steps=4, temperature=0)
    assert torch.equal(made, indices[:2]) and net.training


# ------------------------------------------------------------------------------------ sampling
def test_how_many_are_left():
    assert masked_left(16, 4) == [14, 11, 6, 0] and masked_left(5, 1) == [0]
    for count, steps in ((256, 256), (256, 64), (64, 16), (7, 7), (8, 5)):
        left = masked_left(count, steps)
        assert len(left) == steps and left[-1] == 0
        assert all(a > b for a, b in zip([count, *left], left, strict=False))
    assert masked_left(256, 64)[31] == math.floor(256 * math.cos(math.pi / 4))
    with pytest.raises(ValueError, match="steps=9 but there are 8"):
        masked_left(8, 9)


class Watch:
    """Keeps what the head is asked, and the places of what is visible at each step."""

    def __init__(self, net, monkeypatch):
        self.rows, self.visible = [], []
        sample, context = net.head.sample, net.context

        def of_head(rows, *given):
            self.rows.append(len(rows))
            return sample(rows, *given)

        def of_net(values, visible, condition):
            self.visible.append(visible)
            return context(values, visible, condition)

        monkeypatch.setattr(net.head, "sample", of_head)
        monkeypatch.setattr(net, "context", of_net)


def test_positions_come_in_the_given_order_from_its_end(monkeypatch):
    net = build()
    watch = Watch(net, monkeypatch)
    order = torch.stack([torch.randperm(8, generator=seeded(s)) for s in range(3)])
    made = net.sample(LABELS, steps=4, order=order, generator=seeded())
    assert made.shape == (3, 2, 4, 3) and 0 <= made.min() and made.max() < 6
    left = masked_left(8, 4)
    assert [v.shape[1] for v in watch.visible] == [0, *(8 - n for n in left[:-1])]
    for visible, count in zip(watch.visible[1:], left, strict=False):
        assert torch.equal(visible, order[:, count:].sort(dim=1).values)
    assert watch.rows == [3 * (a - b) for a, b in zip([8, *left], left, strict=False)]


def test_what_is_written_stays_and_is_read_as_values(monkeypatch):
    net, seen = build(), []
    net.z_proj.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    order = torch.arange(8).expand(3, -1)
    made = net.sample(LABELS, steps=8, order=order, generator=seeded())
    values = net.quantizer.decode(made).flatten(1, 2)
    for read in seen:
        assert torch.equal(read, values[:, 8 - read.shape[1]:])


def test_confidence_takes_the_surest_first(monkeypatch):
    net = build()
    watch = Watch(net, monkeypatch)
    made = net.sample(LABELS, steps=4, temperature=0, order="confidence")
    left = masked_left(8, 4)
    assert watch.rows == [3 * count for count in [8, *left[:-1]]]      # all that are masked
    z = net.context(torch.zeros(3, 8, 3), made.flatten(1, 2)[:, :0, 0], net.embed(LABELS, 3))
    found, sure = net.head.sample(z.flatten(0, 1), 0)
    first = sure.unflatten(0, (3, 8)).topk(8 - left[0], dim=1).indices.sort(dim=1).values
    assert torch.equal(watch.visible[1], first)
    for b in range(3):
        kept = found.unflatten(0, (3, 8))[b, first[b]]
        assert torch.equal(made[b].flatten(0, 1)[first[b]], kept)


def test_guidance_acts_on_contexts():
    net = build()
    conditions = [net.embed(LABELS, 3), net.embed(None, 3)]
    indices = tokens().flatten(1, 2)
    values = net.quantizer.decode(indices)
    given, free = (net.context(values, VISIBLE, c) for c in conditions)
    got = net._guided(indices, VISIBLE, conditions, 2.5)
    torch.testing.assert_close(got, free + 2.5 * (given - free), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        net.head.condition_proj.weight.mul_(10)                        # so that contexts matter
    options = dict(steps=4, temperature=0, order=torch.arange(8).expand(3, -1))
    plain, strong = (net.sample(LABELS, guidance=w, **options) for w in (1, 30))
    assert not torch.equal(plain, strong)
    assert torch.equal(plain, net.sample(LABELS, **options))


def test_weights_of_guidance_grow_with_what_is_written(monkeypatch):
    net, weights = build(), []
    guided = net._guided
    monkeypatch.setattr(net, "_guided", lambda *given: weights.append(given[3]) or guided(*given))
    net.sample(LABELS, steps=4, guidance=3.0)
    assert masked_left(8, 4) == [7, 5, 3, 0]
    assert weights == pytest.approx([1 + 2 * (8 - n) / 8 for n in (7, 5, 3, 1)])


def test_sampling_is_its_generators():
    net = build().train()
    for order in ("random", "confidence"):
        made = [net.sample(LABELS, steps=3, order=order, generator=seeded(s)) for s in (0, 0, 1)]
        assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert net.training and net.sample(batch=1, steps=8).shape == (1, 2, 4, 3)


# --------------------------------------------------------------------------------------- state
def test_official_names():
    net = build()
    state = {name.removeprefix("head."): value for name, value in net.state_dict().items()}
    assert {"encoder_blocks.0.attn.qkv.weight", "channel_blocks.0.attn.q_norm.weight",
            "channel_blocks.0.adaLN_modulation.1.bias", "token_embeddings.1.weight",
            "channel_heads.2.bias", "timesteps_embeddings"} <= state.keys()
    edges, means = file.gaussian_bins(6)
    bins = dict(boundaries=edges.float(), reconstruction_values=means.float())
    official = dict(state, **bins, channel_mask=torch.zeros(3, 3))
    other = MaskedGenerator(**SMALL)
    other.load_state_dict(convert_official(official))
    assert torch.equal(other.eval()(tokens(), VISIBLE, LABELS), net(tokens(), VISIBLE, LABELS))
    with pytest.raises(ValueError, match="6 bins are not those"):
        convert_official(dict(official, boundaries=edges.float() * 2))


def test_bad_input():
    net, indices = build(), tokens()
    for name, wrong in {
        "grid": (2, 0), "num_classes": 0, "num_buffer": 0, "num_layers": 0, "num_heads": 3,
        "least_masked": 2, "label_drop": -1, "order": (0, 1), "levels": 1, "decoder_dim": 0,
    }.items():
        with pytest.raises(ValueError, match=name):
            MaskedGenerator(**{**SMALL, name: wrong})
    for wrong in (indices[:, :1], indices[:0], indices.float(), indices + 6, indices[0, 0]):
        with pytest.raises(ValueError, match="indices"):
            net.loss(wrong, LABELS)
    for wrong in (LABELS[:2], LABELS + 4, LABELS.float(), 3):
        with pytest.raises(ValueError, match="labels"):
            net.loss(indices, wrong)
    for wrong in (VISIBLE[:2], VISIBLE + 8, VISIBLE * 0, VISIBLE.int()):
        with pytest.raises(ValueError, match="visible"):
            net(indices, wrong, LABELS)
    for name, wrong in {
        "order": "raster", "steps": 9, "temperature": -1, "guidance": "2", "generator": 3,
        "labels": 7,
    }.items():
        with pytest.raises(ValueError, match=name):
            net.sample(**{"labels": LABELS, "steps": 4, name: wrong})
    with pytest.raises(ValueError, match="order"):
        net.sample(LABELS, steps=4, order=torch.zeros(3, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="needs labels"):
        net.sample(batch=2, guidance=2.0)
    with pytest.raises(ValueError, match="batch"):
        net.sample()
    with pytest.raises(ValueError, match="values"):
        net.encode(torch.zeros(3, 7, 3), VISIBLE, net.embed(LABELS, 3))
