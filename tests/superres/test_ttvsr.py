"""TTVSR: location maps against stored trajectories, attention against loops, key frames, counts,
costs, what a video may look like."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vtlib.superres.spynet import SPyNet
from vtlib.superres.ttvsr import (
    LTAM,
    TTVSR,
    carry,
    convert_official,
    cross_scale_tokens,
    gather_tokens,
    identity_grid,
    token_flow,
    tokenize,
    untokenize,
)


def small(**options):
    torch.manual_seed(0)
    sizes = dict(mid_channels=6, num_blocks=1, feat_blocks=1, head_channels=4, spynet=None)
    return TTVSR(**{**sizes, **options}).eval()


def smooth_flow(frames, size, batch, motion, generator):
    """(B, T - 1, 2, h, w)."""
    if frames == 1:
        return torch.zeros(batch, 0, 2, *size)
    coarse = torch.randn(batch * (frames - 1), 2, 3, 3, generator=generator) * motion
    return F.interpolate(coarse, size=size, mode="bilinear").unflatten(0, (batch, frames - 1))


def clip(frames=7, size=(16, 24), batch=1, seed=0, motion=3.0):
    """Frames and smooth random flows both ways."""
    g = torch.Generator().manual_seed(seed)
    flows = tuple(smooth_flow(frames, size, batch, motion, g) for _ in range(2))
    return torch.rand(batch, frames, 3, *size, generator=g), flows


# ------------------------------------------------------------------------------------ location maps
def stored_trajectories(flows, keyframes, first, stride):
    """Every trajectory held as a list of points, token by token: what the paper's location maps
    stand for. flows: {frame: its flow (2, H, W) to the frame before it in the pass}. Returns
    {frame: (k, 2, h, w)}."""
    order = [first, *flows]
    h, w = (s // stride for s in next(iter(flows.values())).shape[-2:])
    still = {(r, c): (c, r) for r in range(h) for c in range(w)}      # token -> place in key frame
    paths = {first: still}
    out = {}
    for now in order[1:]:
        flow = flows[now]
        moved = {key: {} for key in paths}
        blocks = F.avg_pool2d(flow, stride) / stride
        for r, c in still:
            dx, dy = blocks[:, r, c]              # round: halves to the even neighbour, as released
            x = min(max(round((c + dx).item()), 0), w - 1)
            y = min(max(round((r + dy).item()), 0), h - 1)
            for key in paths:
                moved[key][r, c] = paths[key][y, x]    # the trajectory that passed there goes on
        paths = moved
        places = torch.tensor([[path[place] for place in still] for path in paths.values()])
        out[now] = places.mT.unflatten(2, (h, w))                                  # k xy h w
        if now in keyframes:
            paths[now] = still
    return out


@pytest.mark.parametrize("direction", ["backward", "forward"])
@pytest.mark.parametrize("frames, keyframe_stride", [(8, 3), (5, 1), (6, 2), (2, 3)])
def test_location_maps_are_stored_trajectories(direction, frames, keyframe_stride):
    model = small(keyframe_stride=keyframe_stride)
    video, flows = clip(frames, seed=frames, motion=5.0)
    trace = [s for s in model(video, flows, return_trace=True)[1] if s.direction == direction]
    if direction == "forward":
        first, chain = 0, {i: flows[1][0, i - 1] for i in range(1, frames)}
    else:
        first, chain = frames - 1, {i: flows[0][0, i] for i in reversed(range(frames - 1))}
    want = stored_trajectories(chain, model.key_frames(frames, direction), first, 4)
    assert [s.frame for s in trace] == list(chain)
    for step in trace:
        assert torch.equal(step.location[0], want[step.frame].float()), step.frame
        assert step.location.shape[1] == len(step.keys) == step.similarity.shape[1]


@settings(max_examples=30, deadline=None)
@given(dx=st.integers(-3, 3), dy=st.integers(-3, 3), steps=st.integers(1, 4))
def test_integer_motion_adds_up_and_stops_at_the_border(dx, dy, steps):
    location = identity_grid(1, 5, 6)
    flow = torch.tensor([4.0 * dx, 4.0 * dy]).view(1, 2, 1, 1).expand(1, 2, 20, 24)
    for _ in range(steps):
        location = carry(location, token_flow(flow))
    want = identity_grid(1, 5, 6) + steps * torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1)
    assert torch.equal(location, torch.stack([want[:, 0].clamp(0, 5), want[:, 1].clamp(0, 4)], 1))


def test_maps_stay_integer_and_inside_whatever_the_flow():
    video, flows = clip(9, motion=40.0)
    for step in small()(video, flows, return_trace=True)[1]:
        assert torch.equal(step.location, step.location.round())
        assert step.location.amin() >= 0
        assert (step.location.amax((0, 1, 3, 4)) <= torch.tensor([5, 3])).all()


def test_no_motion_leaves_the_identity_grid():
    video, flows = clip(7)
    for step in small()(video, tuple(f * 0 for f in flows), return_trace=True)[1]:
        assert torch.equal(step.location, identity_grid(len(step.keys), 4, 6)[None])


def test_slow_motion_is_lost_by_nearest_maps_and_kept_by_fractional_ones():
    # 0.3 and 0.1 tokens a frame: rounded away
    flow = torch.tensor([1.2, 0.4]).view(1, 2, 1, 1).expand(1, 2, 32, 40)
    near, fraction = identity_grid(1, 8, 10), identity_grid(1, 8, 10)
    for _ in range(10):
        near = carry(near, token_flow(flow))
        fraction = carry(fraction, token_flow(flow), "fractional")
    assert torch.equal(near, identity_grid(1, 8, 10))
    # the border's bend seeps in a little
    want = torch.tensor([6.0, 3.0])
    torch.testing.assert_close(fraction[0, :, 2, 3], want, atol=0.05, rtol=0)


def test_fractional_equals_nearest_when_motion_is_whole():
    video, flows = clip(5)
    whole = torch.tensor([4.0, -8.0]).view(1, 1, 2, 1, 1)
    flows = tuple(whole.expand_as(f) for f in flows)
    torch.testing.assert_close(small(location="fractional")(video, flows), small()(video, flows))


# ------------------------------------------------------------------------------------------- tokens
def test_tokens_are_those_of_unfold():
    x = torch.rand(2, 3, 12, 20)
    assert torch.equal(tokenize(x).flatten(2), F.unfold(x, 4, stride=4))
    assert torch.equal(untokenize(tokenize(x)), x)


@pytest.mark.parametrize("stride", [4, 8])
def test_cross_scale_tokens_by_hand(stride):
    x = torch.rand(1, 2, 3 * stride, 4 * stride)
    tokens = cross_scale_tokens(x, stride)
    for size, found in zip((stride, stride * 3 // 2, stride * 2), tokens, strict=True):
        margin = (size - stride) // 2
        padded = F.pad(x, (margin,) * 4)
        for r in range(3):
            for c in range(4):
                patch = padded[:, :, r * stride:r * stride + size, c * stride:c * stride + size]
                pooled = F.adaptive_avg_pool2d(patch, stride).flatten()
                torch.testing.assert_close(found[0, :, r, c], pooled)


def test_a_flat_map_looks_the_same_at_all_scales_away_from_the_border():
    one, two, three = cross_scale_tokens(torch.full((1, 2, 16, 20), 0.7))
    for other in (two, three):
        torch.testing.assert_close(other[..., 1:-1, 1:-1], one[..., 1:-1, 1:-1])
        assert (other[..., 0, :] < 0.7).any()                      # zeros beyond the border come in


def test_reading_outside_gives_zeros():
    tokens = torch.rand(1, 3, 2, 2, 2) + 1
    location = torch.tensor([-1.0, 0.0]).view(1, 1, 2, 1, 1).expand(1, 2, 2, 2, 2)
    assert (gather_tokens(tokens, location) == 0).all()
    one = torch.zeros(1, 2, 2, dtype=torch.long)
    assert (gather_tokens(tokens, location[:, 0], one) == 0).all()


# ---------------------------------------------------------------------------------------- attention
def attend_by_loops(layer, query, keys, anchor, values, location):
    """One token and one key frame after the other."""
    b, _, k, h, w = keys.shape
    q = tokenize(query)
    picked = [torch.zeros_like(v[:, :, 0]) for v in values]
    weight, chosen = torch.zeros(b, h, w), torch.zeros(b, h, w, dtype=torch.long)
    for n in range(b):
        for r in range(h):
            for c in range(w):
                best = None
                for j in range(k):
                    x, y = location[n, j, :, r, c].round().long().tolist()
                    inside = 0 <= x < w and 0 <= y < h
                    cosine = 0.0
                    if inside:
                        key = keys[n, :, j, y, x]
                        cosine = F.cosine_similarity(q[n, :, r, c], key, 0).item()
                    if best is None or cosine > best:
                        best, chosen[n, r, c] = cosine, j
                        for into, v in zip(picked, values, strict=True):
                            into[n, :, r, c] = v[n, :, j, y, x] if inside else 0
                weight[n, r, c] = best
    soft = F.interpolate(weight[:, None], scale_factor=4, mode="nearest")
    scales = torch.cat([untokenize(p) for p in picked], 1)
    fused = F.conv2d(scales, layer.fusion.weight, layer.fusion.bias, padding=1)
    return anchor + fused * soft, weight, chosen


def ingredients(k=3, seed=0, batch=2, h=3, w=4, channels=5):
    g = torch.Generator().manual_seed(seed)
    shape = (batch, k, h, w)
    places = [torch.randint(-1, side + 1, shape, generator=g) for side in (w, h)]
    location = torch.stack(places, 2)
    keys, *values = (torch.randn(batch, channels * 16, k, h, w, generator=g) for _ in range(4))
    query, anchor = (torch.randn(batch, channels, 4 * h, 4 * w, generator=g) for _ in range(2))
    return query, keys, anchor, values, location.float()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_attention_equals_loops(k):
    torch.manual_seed(1)
    layer, given_ = LTAM(5), ingredients(k, seed=k)
    out, similarity, chosen = layer(*given_, return_attn=True)
    want, weight, pick = attend_by_loops(layer, *given_)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(similarity.amax(1), weight, atol=1e-5, rtol=1e-4)
    assert torch.equal(chosen, pick)


def test_one_key_frame_leaves_no_choice_and_scaling_keys_changes_nothing():
    layer, (query, keys, anchor, values, location) = LTAM(5), ingredients(1)
    location = location.clamp(min=0).minimum(torch.tensor([3.0, 2.0]).view(1, 1, 2, 1, 1))
    out, similarity, chosen = layer(query, keys, anchor, values, location, return_attn=True)
    assert (chosen == 0).all()
    want = F.cosine_similarity(tokenize(query), gather_tokens(keys, location)[:, :, 0], dim=1)
    torch.testing.assert_close(similarity[:, 0], want)
    torch.testing.assert_close(layer(query, 7 * keys, anchor, values, location), out)


def test_keys_do_not_flow_into_the_output_but_for_their_cosine():
    """Orthogonal keys: weight zero, the anchor passes through untouched."""
    layer, (query, keys, anchor, values, location) = LTAM(5), ingredients(2)
    assert torch.equal(layer(query, torch.zeros_like(keys), anchor, values, location), anchor)


# ------------------------------------------------------------------------------------ the whole net
def test_official_size():
    with torch.device("meta"):
        model = TTVSR()
    parts = {"all": model, "spynet": model.spynet, "ltam": model.LTAM}
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert count == {"all": 6_773_615, "spynet": 1_440_300, "ltam": 110_656}


def test_official_names():
    with torch.device("meta"):
        names = set(TTVSR(num_blocks=2).state_dict())
    parts = [
        "spynet.basic_module.5.basic_module.4.conv", "feat_extractor.main.0",
        "feat_extractor.main.2.4.conv1", "feat_extractor.main.2.0.conv2", "LTAM.fusion",
        "resblocks.main.0", "resblocks.main.2.1.conv2", "fusion", "upsample1.upsample_conv",
        "upsample2.upsample_conv", "conv_hr", "conv_last",
    ]
    assert {f"{p}.{kind}" for p in parts for kind in ("weight", "bias")} <= names


def test_official_checkpoints_load(tmp_path):
    from safetensors.torch import save_file

    from vtlib.hub import load_official

    model = small()
    prefixed = {f"generator.{k}": v for k, v in model.state_dict().items()}
    wrapped = {**prefixed, "step_counter": torch.zeros(1)}
    save_file(wrapped, tmp_path / "ttvsr.safetensors")
    empty = TTVSR(6, 1, 1, 4, spynet=None)
    other = load_official(empty, tmp_path / "ttvsr.safetensors", convert_official).eval()
    video, flows = clip(2)
    assert torch.equal(other(video, flows), model(video, flows))
    assert convert_official(model.state_dict()).keys() == model.state_dict().keys()
    trainer = {"meta": {"epoch": 1}, "state_dict": {f"module.{k}": v for k, v in wrapped.items()}}
    assert convert_official(trainer).keys() == model.state_dict().keys()


def test_an_empty_key_in_half_precision_does_not_divide_by_zero():
    layer, half = LTAM(2).half(), torch.float16
    location = identity_grid(1, 2, 2)[:, None]
    x, tokens = torch.rand(1, 2, 8, 8).to(half), torch.zeros(1, 32, 1, 2, 2, dtype=half)
    assert layer(x, tokens, x, [tokens] * 3, location).isfinite().all()


def test_reading_nowhere_is_no_wild_index():
    """A place that is no number is refused, as `TTVSR` refuses such flow; to the attention, which
    does not look, it lies outside of the frame."""
    query, keys, anchor, values, location = ingredients()
    lost = location.clone()
    lost[:, :, 0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="location .* non-finite"):
        gather_tokens(keys, lost)
    out, similarity, _ = LTAM(5)(query, keys, anchor, values, lost, return_attn=True)
    assert out.isfinite().all() and (similarity[:, :, 1, 1] == 0).all()


@pytest.mark.parametrize("change, words", [
    (dict(tokens=torch.rand(1, 3, 2, 2)), "tokens has shape .* 5 axes"),
    (dict(location=torch.zeros(1, 2, 2, 2)), "location has shape"),
    (dict(location=[[0]]), "location is a list"),
    (dict(key=torch.zeros(1, 2, 2, dtype=torch.long)), "location has shape"),
    (dict(key=torch.full((1, 2, 2), 2), location=torch.zeros(1, 2, 2, 2)), "key.*=2 is no place"),
    (dict(key=torch.zeros(1, 2, 2), location=torch.zeros(1, 2, 2, 2)), "key is torch.float32"),
])
def test_what_cannot_be_gathered(change, words):
    fits = dict(tokens=torch.rand(1, 3, 2, 2, 2), location=torch.zeros(1, 2, 2, 2, 2))
    assert gather_tokens(**fits).shape == (1, 3, 2, 2, 2)
    with pytest.raises(ValueError, match=words):
        gather_tokens(**{**fits, **change})


def test_without_trajectories_the_same_parameters():
    with_, without = small(), small(trajectories=False)
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (with_, without)]
    assert shapes[0] == shapes[1]
    video, flows = clip(4)
    out, trace = without(video, flows, return_trace=True)
    assert trace == [] and out.shape == (1, 4, 3, 64, 96)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 10])
def test_key_frames_and_calls(frames):
    model, calls = small(), []
    model.LTAM.register_forward_hook(lambda module, args, out: calls.append(args[1].shape[2]))
    video, flows = clip(frames)
    _, trace = model(video, flows, return_trace=True)
    assert len(calls) == len(trace) == 2 * (frames - 1)
    assert model.key_frames(frames) == list(range(0, frames, 3))
    assert model.key_frames(frames, "backward") == list(range(frames - 1, 0, -3))
    for step, k in zip(trace, calls, strict=True):
        # never itself, never frame 0 on the way back
        keyframes = model.key_frames(frames, step.direction)
        if step.direction == "forward":
            earlier = [frame for frame in keyframes if frame < step.frame]
        else:
            earlier = [frame for frame in keyframes if frame > step.frame]
        assert list(step.keys) == earlier and k == len(earlier)
        chosen = step.chosen[:, None]
        assert chosen.max() < k
        assert torch.equal(step.weight, step.similarity.gather(1, chosen)[:, 0])


def test_before_training_of_the_last_layer_the_output_is_bilinear():
    model = small()
    torch.nn.init.zeros_(model.conv_last.weight)
    torch.nn.init.zeros_(model.conv_last.bias)
    video, flows = clip(3)
    want = F.interpolate(video[0], scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.equal(model(video, flows)[0], want)


def test_one_frame_video():
    video, flows = clip(1)
    model = small(spynet=SPyNet(levels=2, channels=(4,)))
    assert model(video).shape == (1, 1, 3, 64, 96)
    assert torch.equal(model(video), model(video, flows))


def test_flows_given_or_computed():
    model = small(spynet=SPyNet(levels=3, channels=(4, 4)))
    video, _ = clip(4, batch=2)
    back, ahead = model.flows(video)
    assert back.shape == ahead.shape == (2, 3, 2, 16, 24)
    torch.testing.assert_close(back[1, 2], model.spynet(video[1:, 2], video[1:, 3])[0])
    torch.testing.assert_close(ahead[1, 2], model.spynet(video[1:, 3], video[1:, 2])[0])
    torch.testing.assert_close(model(video), model(video, (back, ahead)))


def test_a_mirrored_clip_needs_half_the_flows():
    net = SPyNet(levels=2, channels=(4,))
    model, half = small(spynet=net), clip(4)[0]
    video, calls = torch.cat([half, half.flip(1)], 1), []
    net.register_forward_hook(lambda *_: calls.append(1))
    want = model(video)
    assert len(calls) == 2
    torch.testing.assert_close(model(video, mirror=True), want, atol=1e-5, rtol=1e-4)
    assert len(calls) == 3


def test_tracing_changes_nothing():
    model, (video, flows) = small(), clip(5)
    out, trace = model(video, flows, return_trace=True)
    assert torch.equal(out, model(video, flows)) and len(trace) == 8


def test_the_past_reaches_across_the_clip():
    """Both passes: every frame of the input has a say in every frame of the output."""
    model, (video, flows) = small(), clip(5)
    video.requires_grad_()
    for t in (0, 2, 4):
        gradient, = torch.autograd.grad(model(video, flows)[:, t].square().sum(), video)
        assert (gradient.abs().amax((0, 2, 3, 4)) > 0).all()


def test_comparisons_grow_linearly_with_the_key_frames():
    """Reading and comparing k tokens each; the fusion convolution does not grow."""
    def flops(k):
        with FlopCounterMode(display=False) as counter:
            LTAM(5)(*ingredients(k))
        return counter.get_flop_counts()["Global"]

    def numbers_touched(k):
        query, keys, anchor, values, location = ingredients(k)
        return gather_tokens(keys, location).numel()

    compare, convolve = torch.ops.aten.bmm, torch.ops.aten.convolution
    assert [numbers_touched(k) / numbers_touched(1) for k in (2, 4, 16)] == [2, 4, 16]
    assert [flops(k)[compare] / flops(1)[compare] for k in (2, 4, 16)] == [2, 4, 16]
    assert flops(1)[compare] == 2 * 2 * 12 * 80               # images, tokens of 80 numbers
    assert flops(1)[convolve] == flops(16)[convolve] > 0


def test_batch_of_one_is_batch_of_many():
    model, (video, flows) = small(), clip(5, batch=3)
    alone = model(video[1:2], tuple(f[1:2] for f in flows))
    torch.testing.assert_close(model(video, flows)[1:2], alone, atol=1e-5, rtol=1e-4)


def test_double_flows_and_long_widths_keep_their_places():
    """Token 300 is not a bfloat16: maps stay in single precision when the net is in half."""
    model = small().bfloat16()
    video = torch.rand(1, 3, 3, 4, 1240).bfloat16()
    flows = (torch.full((1, 2, 2, 4, 1240), 4.0).bfloat16(),) * 2
    last = model(video, flows, return_trace=True)[1][-1]
    assert last.location.dtype == torch.float32 and last.location[0, 0, 0, 0, 300].item() == 302


def frames(*shape):
    return lambda flows=None, **options: small(**options)(torch.rand(shape), flows)


WHOLE = (torch.zeros(1, 1, 2, 16, 16, dtype=torch.long),) * 2


@pytest.mark.parametrize("call, message", [
    (frames(4, 3, 16, 16), r"frames has shape \(4, 3, 16, 16\).*frames\[None\]"),
    (frames(1, 4, 1, 16, 16), r"needs \(B, T, 3, h, w\)"),
    (frames(1, 0, 3, 16, 16), "empty"),
    (frames(1, 2, 3, 18, 16), "18 x 16 pixels but both sides need to be multiples of stride=4"),
    (frames(1, 2, 3, 16, 16), "flows=None needs a flow net"),
    (lambda: frames(1, 3, 3, 16, 16)(clip(2, (16, 16))[1]),
     r"flows \(backward\) has shape .* needs \(1, 2, 2, 16, 16\)"),
    (lambda: frames(1, 2, 3, 16, 16)((None, None)), "NoneType"),
    (lambda: frames(1, 2, 3, 16, 16)(WHOLE), "needs a floating dtype"),
    (lambda: frames(1, 2, 3, 16, 16)(0.5), "flows is a float but needs to be a pair"),
    (lambda: small(location="bicubic"), "location='bicubic'"),
    (lambda: small(stride=6), "stride=6"),
    (lambda: small(keyframe_stride=0), "keyframe_stride=0"),
    (lambda: small(stride=4.0), "stride=4.0"),
    (lambda: small(num_blocks=-1), "num_blocks=-1"),
    (lambda: small(mid_channels="6"), "mid_channels='6'"),
    (lambda: small(head_channels=0), "head_channels=0"),
    (lambda: small().key_frames(5, "sideways"), "direction='sideways'"),
    (lambda: small().key_frames(2.5), "frames=2.5"),
    (lambda: small(spynet="yes"), "spynet='yes': needs a module"),
    (lambda: small(spynet=1), "spynet=1: needs a module"),
    (lambda: cross_scale_tokens(torch.rand(1, 2, 12, 12), 3), "stride=3"),
    (lambda: cross_scale_tokens(torch.rand(1, 2, 12, 12), 6), "stride=6 must be a multiple of 4"),
    (lambda: tokenize(torch.rand(2, 8, 8)), "x has shape .2, 8, 8."),
    (lambda: untokenize(torch.rand(1, 6, 2, 2)), r"6 channels .* stride\^2=16"),
    (lambda: token_flow(torch.rand(1, 3, 8, 8)), "flow has 3 channels"),
    (lambda: identity_grid("1", 2, 2), "batch='1'"),
    (lambda: gather_tokens(torch.rand(1, 4, 2, 3, 3), torch.rand(1, 2, 3, 3)),
     r"location has shape \(1, 2, 3, 3\) but needs \(1, 2, 2, 3, 3\)"),
    (lambda: gather_tokens(torch.rand(1, 4, 2, 3, 3), torch.rand(1, 2, 3, 3), 0), "key is a int"),
    (lambda: LTAM(2)(torch.rand(1, 2, 8, 8), [1], torch.rand(1, 2, 8, 8), [1] * 3, [1]),
     "keys is a list"),
    (lambda: LTAM(2)(torch.rand(1, 2, 8, 8), [1], torch.rand(1, 2, 8, 8), 3, [1]), "three tensors"),
    (lambda: carry(identity_grid(1, 2, 2), torch.zeros(1, 2, 2, 2), "cubic"), "mode='cubic'"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
