"""Pictures, measurements and widgets of the super-resolution notebooks."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vtlib import teach
from vtlib.data import EmojiWorld
from vtlib.superres import bicubic, psnr, ttvsr, warp
from vtlib.teach import superres


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return ttvsr.TTVSR(4, 1, 1, 4, spynet=None).eval()


@pytest.fixture(scope="module")
def frames():
    return torch.rand(1, 5, 3, 8, 12, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------- clips
def test_photographs_move_by_their_flow():
    here, there, flow = superres.moved_photographs(["cat", "coffee"], (8, -5), side=96)
    assert here.shape == there.shape == (2, 3, 96, 96) and flow.flatten().tolist() == [8, -5]
    inside = warp(there, flow.expand(2, 2, 96, 96))
    torch.testing.assert_close(inside[..., 5:, :-8], here[..., 5:, :-8], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"shift=\(61, 0\)"):
        superres.moved_photographs(["cat"], (61, 0))


# ------------------------------------------------------------------------------------------- flows
@pytest.mark.parametrize(
    "x, y, colour",
    [(1, 0, (1, 0, 0)), (-1, 0, (0, 1, 1)), (0, 1, (0.5, 1, 0)), (0, -1, (0.5, 0, 1)),
     (0, 0, (1, 1, 1)), (3, 0, (1, 0, 0)), (0.5, 0, (1, 0.5, 0.5))],
)
def test_the_colour_of_a_flow_is_its_direction(x, y, colour):
    flow = torch.tensor([float(x), float(y)]).view(2, 1, 1)
    picture = superres.flow_picture(flow, largest=1)
    torch.testing.assert_close(picture.flatten(), torch.tensor(colour).float(), atol=1e-5, rtol=0)


def test_the_wheel_shows_at_each_place_the_flow_to_it():
    wheel = superres.wheel(65)
    torch.testing.assert_close(wheel[:, 32, 32], torch.ones(3))
    torch.testing.assert_close(wheel[:, 32, 48], superres.flow_picture(
        torch.tensor([0.5, 0.0]).view(2, 1, 1), 0.92).flatten())
    assert (wheel[:, 0, 0] == 1).all()                                    # outside: white


def test_a_flow_on_more_pixels_goes_further():
    assert (superres.enlarged(torch.ones(1, 2, 4, 4), 16) == 4).all()


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_a_strip_of_flows_ends_with_the_wheel(size):
    picture, flow = torch.rand(3, *size), torch.ones(2, *size)
    fig = superres.flow_strip([picture], [flow], ["frame", "flow"])
    assert [text.get_text() for text in fig.axes[0].texts] == [
        "frame", "flow", "colour = direction"]
    with pytest.raises(ValueError, match="titles: got 1 for 1 frames and 1 flows"):
        superres.flow_strip([picture], [flow], ["frame"])


@pytest.mark.parametrize("flow", [torch.zeros(3, 4, 4), torch.zeros(2, 4), torch.zeros(2, 0, 4)])
def test_what_is_no_flow_is_turned_down(flow):
    with pytest.raises(ValueError, match=r"flow: got shape .* needs \(2, h, w\)"):
        superres.flow_picture(flow, 1)


# ------------------------------------------------------------------------------------------ tokens
def test_a_token_is_framed_where_it_is():
    fig, ax = teach.figure()
    superres.token_box(ax, (3, 1), side=4)                     # columns 12-15, rows 4-7
    x, y = ax.lines[0].get_data()
    assert (min(x), max(x), min(y), max(y)) == (11.5, 15.5, 3.5, 7.5)


def test_a_film_has_its_boxes():
    film = torch.rand(2, 3, 16, 16)
    fig = superres.film_strip(film, ["a", "b"], [{"white": (0, 0), "black": (1, 1)}, {}], title="t")
    assert [len(ax.lines) for ax in fig.axes] == [2, 0]
    with pytest.raises(ValueError, match="got 2 frames, 1 titles and 2 boxes"):
        superres.film_strip(film, ["a"], [{}, {}])


def test_rows_of_addresses_have_one_colour_a_number():
    fig = superres.address_rows({"before": [0, 1, 2.0], "after": [1, 2, 2]}, "they move")
    colours = [square.get_facecolor() for square in fig.axes[0].patches]
    assert colours[1] == colours[3] and colours[2] == colours[4] == colours[5] != colours[0]
    with pytest.raises(ValueError, match="needs rows of one length"):
        superres.address_rows({"before": [0], "after": [1, 2]})


def test_the_largest_cosine_is_orange():
    fig, ax = teach.figure()
    superres.cosine_bars(ax, [0.1, 0.7, -0.2], (0, 3, 6), "a token")
    colours = [bar.get_facecolor() for bar in ax.patches]
    assert colours[0] == colours[2] != colours[1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "3", "6"]


def test_bars_of_a_house_count_who_is_chosen():
    cosines = torch.zeros(2, 2, 2)
    cosines[1, 0] = 1.0                                         # the upper two choose the second
    fig = superres.house_bars(cosines, torch.tensor([[True, True], [True, False]]), (0, 0), (0, 3))
    assert [bar.get_height() for bar in fig.axes[2].patches] == [1, 2]


def test_pictures_beside_each_other_begin_where_they_are_said_to():
    fig, ax = teach.figure()
    starts = superres.picture_strip(ax, [torch.zeros(3, 4, 6)] * 3, ["a", "b", "c"])
    columns = torch.from_numpy(ax.images[0].get_array().data)[0, :, 0]
    dark = (columns == 0).nonzero().flatten()
    assert starts == [0, 14, 28] and dark.tolist() == [s + k for s in starts for k in range(6)]
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]


def test_a_trace_frames_the_token_and_its_addresses():
    where = torch.stack([torch.full((2, 3, 3), float(k)) for k in (0, 2)])
    cosine = torch.stack([torch.full((3, 3), value) for value in (0.5, -0.25)])
    fig = superres.trace_figure(torch.rand(5, 3, 12, 12), (where, cosine), t=4, place=(1, 1))
    (ax,) = fig.axes
    at = [(min(line.get_xdata()), min(line.get_ydata())) for line in ax.lines[:3]]
    assert at == [(2.5, 2.5), (20 - 1.5, -1.5), (40 + 6.5, 6.5)]        # a step of 12 + 8 columns
    colours = [line.get_color() for line in ax.lines[:3]]
    assert colours == ["white", teach.PALETTE[1], "white"]             # the best one is orange
    first, second = (bar.get_height() for bar in ax.patches)
    assert first == pytest.approx(-2 * second) and first < 0           # upwards: rows count down


@pytest.mark.parametrize("place", [(0, 0), (9, 9), (4, 5)])
def test_patch_sizes_are_nested_around_the_token(place):
    pieces = {size: torch.rand(3, 4, 4) for size in (4, 6, 8)}
    fig = superres.patch_sizes(torch.rand(3, 40, 40), place, pieces)
    sides = [max(line.get_xdata()) - min(line.get_xdata()) for line in fig.axes[0].lines]
    assert sides == [4, 6, 8] and len(fig.axes) == 4
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes[1:]]
    assert titles == ["4 x 4 (white), as it is", "6 x 6 (black), pooled", "8 x 8 (orange), pooled"]


def test_units_show_both_sizes_of_pixel():
    fig = superres.units(torch.rand(3, 32, 48))
    widths = [ax.images[0].get_array().shape[1] for ax in fig.axes]
    assert widths == [48, 12]


# ------------------------------------------------------------------------------------------- clips
def test_straight_pans_keep_their_course():
    clips = superres.straight_pans(0, count=2, frames=4, velocity=(4, 0))
    assert 1 <= len(clips.frames) == len(clips.names) <= 2
    assert (clips.forward - clips.forward[:, :1]).abs().max() < 0.01
    assert clips.forward.shape == clips.backward.shape == (len(clips.names), 3, 2, 96, 96)


def test_the_place_of_a_content_is_its_object_s_motion():
    video = EmojiWorld(48, "train").video(
        1, 4, 3, objects=1, scale=(0.4, 0.4), speed=0.1, spin=0, pan=0, zoom=0)
    token = tuple(((video.trajectory[0, 3, 0] - 2) / 4).tolist())         # at its middle
    end = superres.content_place(video, 3, token, end=3)
    start = superres.content_place(video, 0, token, end=3)
    torch.testing.assert_close(end * 4 + 2, video.trajectory[0, 3, 0])
    torch.testing.assert_close(start * 4 + 2, video.trajectory[0, 0, 0])
    beside = superres.content_place(video, 0, (token[0] + 1, token[1]), end=3)
    grown = video.side[0, 0, 0] / video.side[0, 3, 0]
    torch.testing.assert_close(beside - start, torch.stack([grown, 0 * grown]), atol=1e-5, rtol=0)


def test_texture_has_no_brightness():
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(superres.texture(x + 0.3), superres.texture(x), atol=1e-5, rtol=0)


def test_frames_that_are_shifted_agree():
    large = F.avg_pool2d(torch.rand(1, 3, 90, 90), 5, 1)[0]
    one, other = large[:, 10:60, 10:60], large[:, 12:62, 9:59]  # by 2 down, 1 left: whole pixels
    assert superres.agreement(one, other) > 100
    assert superres.agreement(one, large[:, 20:70, 20:70]) < 30
    film = torch.stack([one, other, one, other, one, other])
    assert superres.agreements(film, [1])[0] > 100


def test_maps_of_addresses_follow_the_way():
    flows = torch.zeros(1, 3, 2, 8, 16)
    flows[:, :, 0] = 4.0                                        # one token a frame
    home = ttvsr.identity_grid(1, 2, 4)
    at = superres.addresses(flows, "same place", (0, 2))
    assert at.shape == (1, 2, 2, 2, 4) and torch.equal(at[:, 0], home)
    moved = superres.addresses(flows, "nearest", (0, 2))
    assert moved[0, :, 0, 0].tolist() == [[3, 3, 3, 3], [1, 2, 3, 3]]


def test_a_trajectory_finds_what_a_pan_moved():
    clips = superres.straight_pans(0, count=2, frames=5, velocity=(4, 0))
    match = superres.best_match(clips, ("same place", "nearest", "anywhere"), (0, 3))
    assert match["same place"] + 0.2 < match["nearest"] <= match["anywhere"]


def test_ways_are_compared_on_the_same_clips():
    ways = ("same place", "nearest")
    found = superres.best_matches([{"velocity": (0.5, 0)}], ways, (0, 3, 6, 9))
    assert found["same place"] == pytest.approx(found["nearest"])      # too slow to move a map


# ------------------------------------------------------------------------------------------ trials
def test_windows_repeat_the_ends():
    frames = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(-1, -1, 3, 2, 2)
    seen = superres.windows(frames, 3)[:, :, 0, 0, 0]
    assert seen.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_a_net_by_windows_makes_the_middle_frame_as_it_would(net, frames):
    windows = superres.windows(frames, 3)
    flows = torch.full((5, 2, 2, 8, 12), 2.6), torch.full((5, 2, 2, 8, 12), -1.4)
    with torch.no_grad():
        want = net(windows, flows)[:, 1]
        got = superres.by_windows(given(net, lambda part: flows), 3)(frames)
    torch.testing.assert_close(got[0], want)


def test_without_its_attention_a_net_hands_on_the_state(net, frames):
    flows = (torch.zeros(1, 4, 2, 8, 12),) * 2
    net = given(net, lambda frames: flows)
    with torch.no_grad():
        before = net(frames, flows)
        silent = superres.attention_off(net)(frames)
        weight = net.LTAM.fusion
        kept = [p.clone() for p in weight.parameters()]
        for p in weight.parameters():
            p.zero_()
        without = net(frames, flows)
        for p, old in zip(weight.parameters(), kept, strict=True):
            p.copy_(old)
        assert torch.equal(net(frames, flows), before)          # the hook is gone
    torch.testing.assert_close(silent, without)
    assert not torch.equal(silent, before)


def given(net, flows):
    """A copy of `net` whose flows are `flows(frames)`."""
    copied = copy.deepcopy(net)
    copied.flows = lambda frames, mirror=False: flows(frames)
    return copied


def test_the_share_of_addresses_away_from_home():
    home = ttvsr.identity_grid(1, 2, 2)
    moved = home.clone()
    moved[0, 0, 0, 0] = 1.0
    step = ttvsr.Step("forward", 1, (0, 3), torch.stack([home, moved], 1), None, None)
    assert superres.away_from_home([step]) == 1 / 8


def test_verdicts_and_their_words():
    assert superres.verdict([0.2, 0.1]) is True and superres.verdict([0.04, -1]) is False
    assert superres.verdict([0.2, 0.0]) == "a tie"
    assert superres.said([0.1, -0.2]) == "+0.10, -0.20 dB"


def test_trials_measure_what_they_are_given(capsys):
    tests = {"one": torch.rand(1, 2, 3, 16, 16), "two": torch.rand(2, 1, 3, 16, 16)}
    trials = superres.Trials(tests)
    trials.measure("nearest", lambda small: small.repeat_interleave(4, -1).repeat_interleave(4, -2))
    trials.measure("truth", lambda small: tests["one"] * 2, ["one"])
    trials.store("stored", {"one": 3.0, "two": 5.0})
    want = psnr(trials.pictures["nearest", "two"], tests["two"], crop=4).mean().item()
    assert trials.decibels["nearest", "two"] == want and trials.milliseconds["nearest", "one"] > 0
    assert trials.pictures["truth", "one"].max() <= 1
    assert trials.added("stored", "nearest", ["two"]) == [5.0 - want]
    trials.table("a caption")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[-3:]] == ["nearest", "truth", "stored"]     # as they came
    assert rows[-1] == ["stored", "3.00", "5.00"]


def test_trials_take_the_time_of_the_fastest_clip(monkeypatch):
    spent = iter([0.030, 0.012])
    monkeypatch.setattr(
        "vtlib.teach.superres.trials.timed", lambda method, clip: (method(clip), next(spent)))
    found, seen = superres.Trials({"one": torch.rand(2, 3, 3, 16, 16)}), []
    found.measure("bicubic", lambda clip: seen.append(len(clip)) or bicubic(clip, 4))
    assert found.milliseconds["bicubic", "one"] == 4 and seen == [1, 1]       # of three frames
    assert found.pictures["bicubic", "one"].shape == (2, 3, 3, 16, 16)


def still(frames):
    b, t, _, h, w = frames.shape
    return (torch.zeros(b, t - 1, 2, h, w),) * 2


def test_trials_look_at_the_maps(net):
    trials = superres.Trials({"one": torch.rand(1, 3, 3, 32, 32)})
    with torch.no_grad():
        trials.measure("still", given(net, still), trace=True)
    assert trials.moved["still", "one"] == 0


def test_a_flow_is_pushed_by_one_pixel_as_a_whole():
    flow = torch.rand(2, 3, 2, 4, 4)
    error = superres.pushed(flow, seed=1) - flow
    torch.testing.assert_close(error.norm(dim=2), torch.ones(2, 3, 4, 4))
    assert (error - error[..., :1, :1]).abs().max() < 1e-5


def test_searches_are_timed_at_each_count():
    seen = []
    times = superres.search_times(
        [lambda q, k, a: seen.append((q.shape, k.shape, a.shape))], (1, 2), 4, 3)
    assert len(times[0]) == 2 and seen[-1] == ((4, 3), (8, 3), (2, 4))


def test_a_search_takes_as_long_as_its_fastest_run(monkeypatch):
    spent = iter([0.009, *[0.005, 0.002] * 4])
    monkeypatch.setattr("vtlib.teach.superres.trials.timed", lambda *args: (None, next(spent)))
    assert superres.search_times([max], (1,), 4, 3) == [[2.0]]


# --------------------------------------------------------------------------------- plots, widgets
def test_contributions_are_a_dot_a_training():
    trials = superres.Trials({"one": torch.rand(1, 1, 3, 16, 16)})
    for name, value in (("a", 1.0), ("b", 3.0), ("c", 0.5)):
        trials.store(name, {"one": value})
    fig = superres.contributions(trials, {"b": [("b", "a")], "a": [("a", "c"), ("b", "c")]}, "t")
    dots = fig.axes[0].lines[:3]
    assert [dot.get_ydata()[0] for dot in dots] == [2.0, 0.5, 2.5]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, False, True]
    assert dots[2].get_xdata()[0] > dots[1].get_xdata()[0]              # equal ones are both seen


def test_lines_that_lie_on_each_other_are_both_seen():
    ways = {"same place": [0.4, 0.3], "nearest": [0.4, 0.3]}
    fig = superres.match_by_motion(([1, 2], ways), ([1, 4], ways))
    for ax in fig.axes:
        assert ax.lines[0].get_linewidth() > 2 * ax.lines[1].get_linewidth()


def test_levels_of_bicubic_are_named():
    found = superres.Trials({name: torch.rand(1, 1, 3, 16, 16) for name in ("one", "two")})
    found.store("bicubic", {"one": 20.0, "two": 18.0})
    agrees = {"one": [25.0, 22.0], "two": [24.0, 23.0]}
    fig = superres.agreement_figure([1, 2], agrees, found)
    names = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert names == ["one", "two", "one: bicubic", "two: bicubic"]


def test_a_token_is_traced_as_the_net_traces_it(net):
    frames = torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    flow = torch.full((4, 2, 8, 12), 2.6)
    with torch.no_grad():
        found = superres.traced(net.feat_extractor(frames), flow, "nearest")
        _, steps = net(frames[None], (flow[None], flow[None]), return_trace=True)
    steps = [step for step in steps if step.direction == "forward"]
    for (where, cosine), step in zip(found, steps, strict=True):
        assert torch.equal(where, step.location[0])
        torch.testing.assert_close(cosine, step.similarity[0], atol=1e-5, rtol=1e-4)


def test_the_widget_follows_a_token(net):
    clips = {name: (torch.rand(5, 3, 8, 12), torch.zeros(4, 2, 8, 12)) for name in ("a", "b")}
    with torch.no_grad():
        panel = superres.follow_a_token(net, clips, (1, 1), "A token and its addresses in a clip.")
    first = panel.frame
    cosines = superres.traced(net.feat_extractor(clips["a"][0]).detach(), clips["a"][1], "nearest")
    assert panel.means["a", "nearest"] == cosines[-1][1].mean(dim=(1, 2)).tolist()
    panel.set(video="b", t=2, x=2, mode="fractional")
    assert panel.frame != first and panel.values["t"] == 2


def test_the_widget_of_lengths_scores_the_middle_frame(net):
    frames, models = torch.rand(1, 5, 3, 64, 64), {"first": given(net, still)}
    with torch.no_grad():
        panel = superres.window_lengths(
            models, {"noise": (frames, (0, 0))}, (1, 3), 3, "Noise, and its enlargement beside it.")
        made = models["first"](bicubic(frames[:, 1:4], 1 / 4))[0, 1].clamp(0, 1)
    want = psnr(made, frames[0, 2], crop=4).item()
    assert panel.scores["noise", "first", 3] == pytest.approx(want, abs=1e-4)
    assert panel.scores["noise", "first", 1] != panel.scores["noise", "first", 3]
    shown = panel.draw("noise", 1)
    score = panel.scores["noise", "first", 1]
    assert shown.axes[0].get_title(loc="left") == f"1 frames: {score:.2f} dB"
    first = panel.frame
    panel.set(n=1)
    assert panel.frame != first
    panel.set(n=3)
    assert panel.frame == first                                 # all that moved moves back
