"""TokenBridge's head: one channel after another, and the parallel baseline."""

import math

import pytest
import torch
import torch.nn.functional as F

from vtlib.tokenizers.tokenbridge_head import DimensionHead

ORDER = (2, 0, 3, 1)
SMALL = dict(context_dim=6, dim=4, levels=5, embed_dim=8, num_layers=2, num_heads=2, order=ORDER)


def head(**options):
    """Of random weights: as built, the blocks do nothing."""
    torch.manual_seed(0)
    net = DimensionHead(**{**SMALL, "dropout": 0.0, **options})
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net.eval()


def batch(rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(rows, 6, generator=generator)
    return context, torch.randint(5, (rows, 4), generator=generator)


@pytest.mark.parametrize("changed", range(4))
def test_a_channel_sees_those_before_it_in_order(changed):
    net, (context, indices) = head(), batch()
    want, other = net(context, indices), indices.clone()
    other[:, ORDER[changed]] = (other[:, ORDER[changed]] + 1) % 5
    got = net(context, other)
    for place, channel in enumerate(ORDER):
        same = torch.equal(got[:, channel], want[:, channel])
        assert same == (place <= changed), (place, changed)


def test_every_channel_sees_the_context_and_only_its_own_row():
    net, (context, indices) = head(), batch()
    want = net(context, indices)
    context[1] += 1
    got = net(context, indices)
    assert torch.equal(got[[0, 2]], want[[0, 2]]) and (got[1] != want[1]).any(-1).all()


def test_the_parallel_head_sees_no_index():
    net, (context, indices) = head(parallel=True), batch()
    assert torch.equal(net(context), net(context, (indices + 1) % 5))
    assert not len(net.token_embeddings)
    serial = sum(p.numel() for p in head().parameters())
    assert serial - sum(p.numel() for p in net.parameters()) == 3 * 5 * 8     # its embeddings


@pytest.mark.parametrize("parallel", [False, True])
def test_the_sampler_says_what_training_learns(parallel):
    """Keys and values kept, channel by channel: the same numbers as all channels at once."""
    net, (context, _) = head(parallel=parallel), batch(20)
    for temperature in (0, 0.7):
        found, sure = net.sample(context, temperature, torch.Generator().manual_seed(0))
        log_prob = net(context, found).log_softmax(dim=-1)
        taken = log_prob.gather(2, found[..., None])[..., 0].sum(dim=1)
        torch.testing.assert_close(sure, taken, atol=1e-5, rtol=1e-5)
        if temperature == 0:
            assert torch.equal(found, log_prob.argmax(dim=-1))


def test_the_release_starts_its_sampler_another_way():
    net, (context, _) = head(), batch(40)
    plain, released = net.sample(context, 0)[0], net.sample(context, 0, released=True)[0]
    assert not torch.equal(plain, released)
    with torch.no_grad():
        net.timesteps_embeddings[:, 0] = 0
    assert torch.equal(net.sample(context, 0)[0], net.sample(context, 0, released=True)[0])


def test_indices_are_written_back_to_their_channels():
    net = head()
    with torch.no_grad():
        for place, linear in enumerate(net.channel_heads):
            linear.bias[place] = 1000
    found, sure = net.sample(batch()[0])
    assert found[:, list(ORDER)].tolist() == [[0, 1, 2, 3]] * 3 and (sure.abs() < 1e-3).all()
    assert net(*batch()).argmax(-1)[:, list(ORDER)].tolist() == [[0, 1, 2, 3]] * 3


def test_draws_follow_the_probabilities():
    net, context = head(), batch(1)[0].expand(4000, -1)
    first = [net.sample(context, 1.0, torch.Generator().manual_seed(s))[0] for s in (0, 0, 1)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    channel = ORDER[0]
    want = net(*batch(1))[0, channel].softmax(-1)
    share = first[0][:, channel].bincount(minlength=5) / 4000
    torch.testing.assert_close(share, want, atol=0.03, rtol=0)
    cold = net.sample(context, 1e-4, torch.Generator().manual_seed(0))[0]
    assert torch.equal(cold, net.sample(context, 0)[0])


def test_blocks_begin_as_identities():
    net = DimensionHead(**SMALL)
    x, condition = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    for block in net.channel_blocks:
        assert torch.equal(block(x, condition), x)
    want = F.layer_norm(x, (8,), eps=1e-6)
    torch.testing.assert_close(net.channel_final(x, condition), want)


def test_parameters_of_the_released_heads():
    with torch.device("meta"):
        large, huge = DimensionHead(), DimensionHead(1280, num_layers=6)
    counts = [sum(p.numel() for p in net.parameters()) for net in (large, huge)]
    assert counts == [80_793_600, 118_844_416]


def test_gradients_and_dropout():
    net, (context, indices) = head(dropout=0.5).train(), batch()
    context.requires_grad_()
    first, second = net(context, indices), net(context, indices)
    assert not torch.equal(first, second) and first.shape == (3, 4, 5)
    first.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert context.grad.abs().sum() > 0
    net.eval()
    assert torch.equal(net(context, indices), net(context, indices))


def test_it_learns_what_a_parallel_head_cannot():
    """Channel 1 is channel 0 again: half the entropy is gone when it is seen."""
    losses = {}
    for parallel in (False, True):
        torch.manual_seed(0)
        net = DimensionHead(2, 2, 4, 16, 1, 2, order=(0, 1), parallel=parallel, dropout=0.0)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(60):
            indices = torch.randint(4, (64, 1)).expand(-1, 2)
            logits = net(torch.ones(64, 2), indices)
            loss = F.cross_entropy(logits.flatten(0, 1), indices.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[parallel] = loss.item() / math.log(4)
    assert losses[False] < 0.6 and losses[True] > 0.97


def test_bad_input():
    net, (context, indices) = head(), batch()
    for name, wrong in {
        "dim": 0, "levels": 1, "embed_dim": 0, "num_layers": 0, "num_heads": 3, "order": (0, 1),
        "context_dim": 0, "mlp_ratio": -1, "dropout": 2, "parallel": 1,
    }.items():
        with pytest.raises(ValueError, match=name):
            DimensionHead(**{**SMALL, name: wrong})
    for wrong in (context[:, :5], context[0], context[:0], context.long(), context.double()):
        with pytest.raises(ValueError, match="context"):
            net(wrong, indices)
    for wrong in (None, indices[:2], indices[:, :3], indices.int(), indices + 5, indices - 5):
        with pytest.raises(ValueError, match="indices"):
            net(context, wrong)
    with pytest.raises(ValueError, match="temperature"):
        net.sample(context, -1)
    with pytest.raises(ValueError, match="generator"):
        net.sample(context, generator=0)
