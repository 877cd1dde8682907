"""HAR: passes, inputs, the mixed mask, what each pass may see, the cache, guidance, the rival."""

import math

import pytest
import torch

from vtlib.tokenizers import HAR
from vtlib.tokenizers.restok_har import guidance_scales

SIZES = dict(
    vocab_size=20, num_tokens=16, num_classes=7, embed_dim=16, num_layers=2, num_heads=2, multiple=8
)


def made(**options):
    torch.manual_seed(0)
    net = HAR(**{**SIZES, **options}).eval()
    for weight in net.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.5)
    return net


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(20, (2, 16), generator=seeded())


CLASSES = torch.tensor([3, 5])


def count(module):
    return sum(p.numel() for p in module.parameters())


# ------------------------------------------------------------------------------- the official size
def test_parameters_passes_and_names_of_the_release():
    with torch.device("meta"):
        net = HAR()
    assert count(net) == 326_263_808                                       # "326 M"
    assert len(net.groups) == 4 + int(math.log2(128 / 4)) == 9
    assert net.groups[3:] == [(3, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 128)]
    names = {
        "layers.23.attention.wqkv.weight", "layers.0.feed_forward.w3.weight",
        "spe_tok_embeddings.special_embeddings.weight", "cls_embedding.embedding_table.weight",
    }
    assert names <= net.state_dict().keys()
    assert net.spe_tok_embeddings.special_embeddings.weight.shape == (127, 1024)
    assert net.cls_embedding.embedding_table.weight.shape == (1001, 1024)


# ------------------------------------------------------------------------------------------ inputs
def test_inputs_are_those_of_the_paper(tokens):
    net = made()
    rows = {
        "c": net.cls_embedding.embedding_table.weight[CLASSES],
        **{f"t{i}": net.tok_embeddings.weight[tokens[:, i]] for i in range(16)},
        **{
            f"s{i}": row.expand(2, -1)
            for i, row in enumerate(net.spe_tok_embeddings.special_embeddings.weight)
        },
    }
    said = {
        (0, 4): "c t0 t1 t2",
        (4, 8): "t3 s0 s1 s2",
        (8, 16): "t4 t5 t6 t7 s3 s4 s5 s6",
        (0, 1): "c",
        (3, 4): "t2",
    }
    for group, names in said.items():
        wanted = torch.stack([rows[name] for name in names.split()], dim=1)
        assert torch.equal(net.inputs(*group, tokens, CLASSES), wanted), group


@pytest.mark.parametrize("ar_tokens", [1, 2, 4, 16])
def test_a_pass_sees_all_levels_before_it_and_nothing_of_its_own(tokens, ar_tokens):
    net = made(ar_tokens=ar_tokens)
    before = net(tokens, CLASSES)
    for place in range(16):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % 20
        moved = (net(other, CLASSES) - before).abs().amax(dim=(0, 2)) > 1e-6
        wanted = [place < first for first, stop in net.groups for _ in range(first, stop)]
        assert moved.tolist() == wanted, place


def test_inside_a_level_positions_see_each_other(tokens):
    net = made()
    before = net(tokens, CLASSES)
    with torch.no_grad():
        net.spe_tok_embeddings.special_embeddings.weight[6] += 1          # input of the last
    moved = (net(tokens, CLASSES) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [False] * 8 + [True] * 8
    with torch.no_grad():
        net.spe_tok_embeddings.special_embeddings.weight[7:] += 1         # rows nobody reads
    again = (net(tokens, CLASSES) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert torch.equal(again, moved)


# -------------------------------------------------------------------------------------- generation
def test_passes_and_the_cache(tokens):
    net, calls = made(), []
    net.output.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[1]))
    greedy = net.generate(CLASSES, temperature=0)
    assert calls == [1, 1, 1, 1, 4, 8] and greedy.shape == (2, 16)
    logits, cache = net(tokens, CLASSES), []
    for first, stop in net.groups:
        part, cache = net.advance(first, stop, tokens[:, :first], CLASSES, cache)
        torch.testing.assert_close(part, logits[:, first:stop], atol=1e-5, rtol=1e-4)
    assert cache[0][0].shape == (2, 2, 16, 8)


@pytest.mark.parametrize("ar_tokens", [4, 16])
def test_the_greedy_sample_is_its_own_best_guess(ar_tokens):
    net = made(ar_tokens=ar_tokens)
    greedy = net.generate(CLASSES, temperature=0)
    assert torch.equal(net(greedy, CLASSES).argmax(-1), greedy)
    assert len(greedy.unique()) > 2


def test_the_rival_predicts_token_by_token():
    net = made(ar_tokens=16)
    assert len(net.groups) == 16 and net.spe_tok_embeddings is None
    assert count(made()) - count(net) == 15 * 16


def test_guidance_of_the_paper():
    with torch.device("meta"):
        groups = HAR(embed_dim=8, num_heads=1, num_layers=1).groups
    assert guidance_scales(groups, 3.75, 0.25) == [1.0] * 7 + [3.75] * 2
    quirk = [1.0, 1.0, 3.75, 3.75, 1.0, 1.0, 1.0, 3.75, 3.75]
    assert guidance_scales(groups, 3.75, 0.25, released=True) == quirk
    assert guidance_scales(groups, 2.0) == [2.0] * 9
    assert guidance_scales([(0, 1)], 2.0, 0.5) == [1.0]


def test_guidance_moves_away_from_no_class():
    net = made()
    plain = net.generate(CLASSES, temperature=0)
    assert torch.equal(net.generate(CLASSES, guidance=1.0, temperature=0), plain)
    assert torch.equal(net.generate(CLASSES, 5.0, start=1.0, temperature=0), plain)
    guided = net.generate(CLASSES, guidance=5.0, temperature=0)
    assert not torch.equal(guided, plain)
    nobody = torch.full_like(CLASSES, 7)
    given, without = net(guided, CLASSES), net(guided, nobody)
    assert torch.equal((without + 5 * (given - without)).argmax(-1), guided)
    late = net.generate(CLASSES, 5.0, start=0.5, temperature=0)
    assert torch.equal(late[:, :8], plain[:, :8]) and not torch.equal(late, plain)


def test_draws_follow_the_generator():
    net = made()
    first, again = (net.generate(CLASSES, generator=seeded(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, net.generate(CLASSES, generator=seeded(2)))
    assert torch.equal(net.generate(CLASSES, top_p=1e-6), net.generate(CLASSES, temperature=0))


# ---------------------------------------------------------------------------------------- training
def test_the_loss_is_the_mean_over_positions(tokens):
    net = made()
    nats = net.surprisal(tokens, CLASSES)
    p = net(tokens, CLASSES).softmax(-1).gather(2, tokens[..., None])[..., 0]
    torch.testing.assert_close(nats, -p.log())
    assert net.loss(tokens, CLASSES).item() == pytest.approx(nats.mean().item())
    fresh = HAR(**SIZES)
    assert fresh.eval().loss(tokens, CLASSES).item() == pytest.approx(math.log(20), rel=1e-5)


def test_classes_are_left_out_in_training_alone(tokens):
    net = made(class_drop=1.0, dropout=0.0)
    nobody = torch.full_like(CLASSES, 7)
    without = net(tokens, nobody)
    assert not torch.allclose(net(tokens, CLASSES), without)
    assert torch.equal(net.train()(tokens, CLASSES), without)
    some = made(class_drop=0.5, dropout=0.0).train()
    first, again = (some(tokens, CLASSES, seeded(4)) for _ in range(2))
    assert torch.equal(first, again)
    whole = made(class_drop=0.0, dropout=0.0)
    assert torch.equal(whole(tokens, CLASSES), whole.train()(tokens, CLASSES))


def test_dropout_acts_in_training(tokens):
    net = made(class_drop=0.0, dropout=0.5)
    assert torch.equal(net(tokens, CLASSES), net(tokens, CLASSES))
    net.train()
    assert not torch.equal(net(tokens, CLASSES), net(tokens, CLASSES))


def test_every_weight_learns(tokens):
    net = made()
    net.loss(tokens, CLASSES).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: made(num_tokens=24), "power of two"),
        (lambda: made(ar_tokens=17), "ar_tokens"),
        (lambda: made(ar_tokens=3), "power of two"),
        (lambda: made(num_heads=3), "num_heads"),
        (lambda: made(class_drop=2), "class_drop"),
        (lambda: made()(torch.zeros(2, 15).long(), CLASSES), "tokens"),
        (lambda: made()(torch.full((2, 16), 20), CLASSES), "tokens"),
        (lambda: made()(torch.zeros(2, 16).long(), torch.tensor([0, 8])), "classes"),
        (lambda: made().generate(torch.zeros(0).long()), "at least one"),
        (lambda: made().generate(CLASSES, temperature=-1), "temperature"),
        (lambda: made().generate(CLASSES, start=2), "start"),
        (lambda: made().generate(CLASSES, guidance=-1), "scale"),
        (lambda: made().generate(CLASSES, generator=1), "generator"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
