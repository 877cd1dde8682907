"""Notebook 07b's pictures and experiments: what stands in for a part, and only as long as it is
asked."""

import time

import pytest
import torch
import torch.nn.functional as F

from vtlib import teach
from vtlib.superres import catanet
from vtlib.teach import superres

SIDE = 12


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    sizes = dict(embed_dim=8, num_layers=2, qk_dim=8, mlp_dim=8, num_heads=2)
    return catanet.CATANet(2, **sizes, patch_sizes=6, num_centres=5, group_sizes=16).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokens():
    return torch.randn(1, SIDE * SIDE, 8, generator=torch.Generator().manual_seed(2))


# ----------------------------------------------------------------------------------------- pictures
def test_a_group_has_one_colour_in_every_map():
    wheel = superres.group_map(torch.arange(9), 9).flatten(1).T
    again = superres.group_map(torch.tensor([3, 3, 8, 0]), 9)
    assert torch.equal(again.flatten(1).T, wheel[[3, 3, 8, 0]])
    assert torch.pdist(wheel).min() > 0.1 and 0 <= wheel.min() and wheel.max() <= 1
    with pytest.raises(ValueError, match="needs \\(n \\* n,\\)"):
        superres.group_map(torch.arange(8), 9)


def test_marks_stand_on_their_tokens():
    _, ax = teach.figure()
    picture = torch.rand(3, 4, 6)
    superres.marked(ax, picture, "t", own=[0, 13], ahead=[23], window=(1, 2, 3), legend=True)
    own, ahead, outline = ax.lines
    assert own.get_xydata().tolist() == [[0, 0], [1, 2]]
    assert ahead.get_xydata().tolist() == [[5, 3]]
    assert outline.get_xydata().min(0).tolist() == [0.5, -0.5]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["own piece", "look-ahead"]


def test_coverage_writes_the_counts():
    counts = torch.tensor([[1, 2], [3, 4]])
    fig = superres.coverage(counts, torch.tensor([[1, 1], [0.75, 1]]))
    numbers = fig.axes[0].texts
    assert [text.get_text() for text in numbers] == ["1", "2", "3", "4"]
    assert [text.get_weight() for text in numbers] == ["normal", "normal", "bold", "normal"]
    (frame,) = fig.axes[0].lines
    assert frame.get_xydata().min(0).tolist() == [-0.5, 0.5]
    assert frame.get_xydata().max(0).tolist() == [0.5, 1.5]
    assert not superres.coverage(counts, torch.ones(2, 2)).axes[0].lines
    assert len(teach.figures.png(fig)) > 1000


# ---------------------------------------------------------------------------------------- stand-ins
def test_swapped_lasts_as_long_as_its_block(net, images):
    plain = net(images)
    with pytest.raises(RuntimeError), superres.swapped(grouping=superres.random_pieces):
        assert not torch.equal(net(images), plain)
        raise RuntimeError
    assert torch.equal(net(images), plain)
    with superres.swapped():
        assert torch.equal(net(images), plain)


def test_switched_off_zeroes_a_copy(net):
    off = superres.switched_off(net, "iasa_attn.to_v")
    for name, weight in off.named_parameters():
        before = net.get_parameter(name)
        assert (weight == 0).all() if "iasa_attn.to_v" in name else torch.equal(weight, before)
        assert "iasa_attn.to_v" not in name or (before != 0).any()


def test_without_look_ahead_pieces_see_themselves_only():
    q, k, v = (torch.randn(3, 2, n, 4) for n in (5, 10, 10))
    want = F.scaled_dot_product_attention(q, k[..., :5, :], v[..., :5, :])
    torch.testing.assert_close(superres.without_look_ahead(q, k, v), want)
    for keys in (7, 5):                                                    # centres, windows
        k, v = k[..., :keys, :], v[..., :keys, :]
        want = F.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(superres.without_look_ahead(q, k, v), want)


def test_other_orders_of_the_row(tokens):
    centres = F.normalize(torch.randn(5, 8), dim=-1)
    own = catanet.grouping(tokens, centres, 16)
    for other in (superres.random_pieces, superres.scanned_backwards):
        found = other(tokens, centres, 16)
        assert torch.equal(found.belong, own.belong) and not torch.equal(found.order, own.order)
        assert found.order.sort(-1).values.tolist() == [list(range(SIDE * SIDE))]
    sorted_groups = own.belong[0, found.order[0]]
    assert (sorted_groups.diff() >= 0).all()
    column = found.order[0] % SIDE
    row = found.order[0] // SIDE
    same = (sorted_groups.diff() == 0) & (row.diff() == 0)
    assert same.any() and (column.diff()[same] < 0).all()


def test_moved_centres_iterate_from_the_stored_or_from_random_ones(net, tokens):
    tab = net.blocks[0][0]
    unit, start = F.normalize(tokens, dim=-1), F.normalize(tab.means, dim=-1)
    want = catanet.center_iter(unit, catanet.center_iter(unit, start))
    torch.testing.assert_close(superres.moved_centres(2)(tab, tokens), want)
    random = superres.moved_centres(0, seed=7)(tab, tokens)
    assert torch.equal(random, superres.moved_centres(0, seed=7)(tab, tokens))
    torch.testing.assert_close(random.norm(dim=1), torch.ones(5))


# ----------------------------------------------------------------------------------- what it knows
def test_keys_in_use_of_flat_attention_are_all(net, images):
    flat = superres.switched_off(net, "to_k")
    shares = superres.keys_in_use(flat, images)
    assert set(shares) == {("pieces", 32), ("centres", 5), ("windows", 36)}
    assert all(len(layers) == 2 for layers in shares.values())
    values = torch.tensor(list(shares.values()))
    torch.testing.assert_close(values, torch.ones_like(values))
    sharp = torch.tensor(list(superres.keys_in_use(net, images).values()))
    assert (sharp < 1).all()


def test_constant_attention_ignores_what_comes_in(net, images):
    plain = net(images)
    with superres.constant_attention(net, "windows", images):
        first, again = net(images), net(images)
        assert torch.equal(first, again) and not torch.allclose(first, plain)
        # the order of the rows of constants is kept: other queries and keys change nothing
        other = superres.switched_off(net, "layer.0.fn.to_v", "layer.0.fn.to_k")
        torch.testing.assert_close(other(images), first)
    assert torch.equal(net(images), plain)
    with pytest.raises(ValueError, match="which='tokens'"):
        superres.constant_attention(net, "tokens", images).__enter__()


def test_with_centres_gives_quality_and_groups(net, images):
    large = {"a": torch.rand(2, 3, 2 * SIDE, 2 * SIDE), "b": torch.rand(1, 3, 2 * SIDE, 2 * SIDE)}
    db, groups = superres.with_centres(net, large)
    assert len(groups) == 6 and groups[0].shape == (1, SIDE * SIDE)
    by_name = superres.decibels(net, large)
    assert set(by_name) == {"a", "b"}
    assert db == pytest.approx((2 * by_name["a"] + by_name["b"]) / 3, abs=1e-3)
    _, other = superres.with_centres(net, large, superres.moved_centres(0, seed=7))
    assert not all(torch.equal(x, y) for x, y in zip(groups, other, strict=True))
    ways = {"the same": superres.moved_centres(0), "other": superres.moved_centres(0, seed=7)}
    found = superres.other_centres(net, large, ways)
    same = sum((x == y).float().mean().item() for x, y in zip(groups, other, strict=True)) / 6
    assert found["stored"] == (pytest.approx(db), 1)
    assert found["the same"] == (pytest.approx(db), pytest.approx(1))
    assert found["other"][1] == pytest.approx(same) and same < 1


# ---------------------------------------------------------------------------------------- measures
def test_in_window_counts_neighbours():
    inside = superres.in_window(6, 3, every=7)
    assert inside.shape == (6, 36)
    places = torch.arange(36)
    for row, token in zip(inside, range(0, 36, 7), strict=True):
        down, across = places // 6 - token // 6, places % 6 - token % 6
        assert torch.equal(row, (down.abs() <= 1) & (across.abs() <= 1))


@pytest.mark.parametrize("turn, size, kept", [
    (torch.clone, 4, 1), (torch.t, 4, 0), (torch.t, 8, 3 / 7),
])
def test_companions_kept(turn, size, kept):
    """4 x 4 tokens of one group: a piece of 4 is a row, and after the swap a column; of 8, two
    rows, two columns, and 4 tokens are in both."""
    one = torch.zeros(16, dtype=torch.long)
    assert superres.companions_kept(one, turn, size) == pytest.approx(kept)
    with pytest.raises(ValueError, match="size=5"):
        superres.companions_kept(one, turn, 5)


def test_explained_is_all_when_groups_have_one_value_each():
    belong = torch.tensor([0, 0, 2, 2, 2])
    values = torch.tensor([1.0, 1, 5, 5, 5])[:, None]
    assert superres.explained(values, belong) == pytest.approx(1)
    assert superres.explained(torch.tensor([[1.0], [3], [1], [3], [2]]), belong) < 1e-6


def test_fastest_is_the_fastest_run_of_each():
    seen = []

    def work(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    def slow_at_first(seconds):
        seen.append("first")
        work(seconds * (len(seen) < 4))

    def steady(seconds):
        seen.append("second")
        work(seconds / 2)

    found = superres.fastest({"a": slow_at_first, "b": steady}, 0.02, rounds=2)
    assert seen == ["first", "second"] * 3
    assert found["a"] < 5 < 9 < found["b"]


def test_attention_flops_grow_as_they_should():
    counted = superres.attention_flops((16, 32))
    growth = {name: many / few for name, (few, many) in counted.items()}
    assert growth["windows"] == pytest.approx(4)
    assert growth["content pieces"] == pytest.approx(4, rel=0.1)
    assert growth["all to all"] > 6
