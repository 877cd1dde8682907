"""What the super-resolution bench compares computes the same thing, and what should be linear
is."""

import torch

from vtlib.superres.ttvsr import LTAM

from .before import peak_bytes
from .superres import (
    aggregate,
    attender_against_loops,
    catanet_before,
    exponent,
    groups_against_naive,
    length,
    low_memory,
    make_tab,
    masked_full_attention,
    memory,
    space_time_attention,
    subgroup_by_subgroup,
    trajectories_against_all,
    trajectories_before,
    upsampling,
)


@torch.no_grad()
def test_attention_along_trajectories_is_masked_full_attention():
    rows = list(trajectories_against_all(((1, 4), (3, 5))))
    assert len(rows) == 2 and all(float(row[-1]) < 1e-5 for row in rows)
    layer, inputs = LTAM(16, 4), memory(3, 5, batch=2)
    want = masked_full_attention(layer, *inputs)
    torch.testing.assert_close(layer(*inputs), want, atol=1e-5, rtol=1e-4)
    assert space_time_attention(layer, *inputs).shape == layer(*inputs).shape


@torch.no_grad()
def test_content_groups_are_loops_and_masked_full_attention():
    torch.manual_seed(0)
    rows = list(groups_against_naive((10, 16)))         # 100 tokens: the last subgroup is filled up
    assert len(rows) == 4 and all(float(row[2]) < 1e-4 for row in rows)
    tab, x = make_tab(9, num_centres=5, group_size=8)
    want = subgroup_by_subgroup(tab, x)
    torch.testing.assert_close(aggregate(tab, x), want, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_local_attender_is_a_loop_over_pixels():
    rows = list(attender_against_loops(side=4, channels=6))
    assert len(rows) == 2 and all(float(row[1]) < 1e-5 for row in rows)


@torch.no_grad()
def test_low_mem_is_the_same_and_needs_less():
    ((_, _, peak, apart),) = low_memory(((64, 48),), repeats=1)
    assert float(peak) < 0.6 and float(apart) == 0


@torch.no_grad()
def test_the_slope_is_that_of_the_frames():
    rows = list(exponent((2, 4), side=8, repeats=1, mid_channels=4, head_channels=4))
    assert [row[0] for row in rows] == ["now", "first commit"]
    assert all(len(row[1].split()) == 2 and float(row[2]) > 0 for row in rows)


def test_peak_is_what_is_held_at_a_time():
    def twice():
        a = torch.zeros(1000) + 1
        del a
        return torch.zeros(2000) + 1

    assert 16_000 <= peak_bytes(twice) < 17_000                          # 2000 zeros and their sum


@torch.no_grad()
def test_counted_cost():
    per_frame = [float(row[-1].split()[0]) for row in length((4, 16), side=16)]
    assert per_frame[1] < 1.1 * per_frame[0]                                  # linear in the frames
    rows = {row[0]: row[1:] for row in upsampling((16, 32), channels=8)[1]}
    assert float(rows["UPLiFT, two doublings"][2]) < 4.2
    assert float(rows["cross-attention alone"][2]) == 16


@torch.no_grad()
def test_what_got_faster_says_the_same_as_before():
    sizes = dict(embed_dim=12, num_layers=1, qk_dim=8, mlp_dim=16, num_heads=2, patch_sizes=8)
    rows = [*catanet_before((20,), 1, **sizes, num_centres=4, group_sizes=32)]
    rows += trajectories_before((3,), side=4, channels=4, repeats=1)
    assert len(rows) == 2 and all(float(row[-1]) <= 2e-6 for row in rows)
