"""TTVSR: the attention along trajectories alone, and the whole net with given flows."""

import torch.nn.functional as F
from einops import rearrange

from .adapters import adapter, record

TOKENS = ("index_feats", "tokens_s1", "tokens_s2", "tokens_s3")


@adapter("ttvsr", "LTAM.forward", inputs=("curr_feat", "anchor_feat", *TOKENS, "location"))
def ltam(case):
    from vtlib.superres.ttvsr import LTAM

    c, t = case.config, case.tensors
    layer = LTAM(c["channels"], c["stride"])
    layer.load_state_dict(case.weights())
    keys, *values = (rearrange(t[name], "b k c h w -> b c k h w") for name in TOKENS)
    location = rearrange(t["location"], "b (k xy) h w -> b k xy h w", xy=2)
    given = (t["curr_feat"], keys, t["anchor_feat"], values, location)
    out, similarity, chosen = layer(*given, return_attn=True)
    return {"out": out, "selected": chosen, "similarity": similarity.amax(1)}


@adapter("ttvsr", "TTVSRNet.forward", inputs=("lrs", "flows_backward", "flows_forward"))
def net(case):
    from vtlib.superres.ttvsr import TTVSR, cross_scale_tokens

    c, t = case.config, case.tensors
    model = TTVSR(
        c["mid_channels"], c["num_blocks"], stride=c["stride"], keyframe_stride=c["frame_stride"],
        spynet=None,
    ).eval()
    model.load_state_dict(case.weights())
    frames, pair = t["lrs"].shape[1], ("backward", "forward")
    for direction in pair:
        keyframes, want = model.key_frames(frames, direction), c[f"keyframes_{direction}"]
        if keyframes != want:
            raise ValueError(f"key frames {direction}: {keyframes}, the case has {want}")
    states, out = [], {}
    model.resblocks.register_forward_hook(lambda module, args, result: states.append(result))
    # the last call is that of the last frame
    record(model.LTAM, out, "ltam_anchor_last_forward", lambda args, result: args[2])
    record(model.LTAM, out, "ltam_out_last_forward", lambda args, result: result[0])
    batch, size = len(t["lrs"]), t["lrs"].shape[-2:]
    # with or without a batch axis
    flows = tuple(t[f"flows_{d}"].reshape(batch, frames - 1, 2, *size) for d in pair)
    clip, trace = model(t["lrs"], flows, return_trace=True)
    for step in trace:                                              # the last of each pass stays
        out[f"location_last_{step.direction}"] = step.location.flatten(1, 2)
    out["resblocks_out_first_keyframe"] = states[0]
    for i, tokens in enumerate(cross_scale_tokens(states[0], c["stride"])):
        out[f"tokens_s{i + 1}_first_keyframe"] = tokens
    out["out_pooled"] = F.avg_pool2d(clip.flatten(0, 1), 8).unflatten(0, clip.shape[:2])
    out["out_mid"] = clip[:, frames // 2]
    return out
