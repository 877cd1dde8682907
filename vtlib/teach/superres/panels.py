"""The widgets of the video notebook."""

from collections.abc import Mapping, Sequence

import ipywidgets
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.superres import bicubic, psnr, ttvsr
from vtlib.teach.figures import figure
from vtlib.teach.plots import curves
from vtlib.teach.superres.tokens import picture_strip, side_by_side, trace_figure
from vtlib.teach.superres.trials import middle_frame
from vtlib.teach.widgets import Panel, panel


def traced(
    features: Tensor, flow: Tensor, mode: str, stride: int = 3
) -> list[tuple[Tensor, Tensor]]:
    """What each frame but the first sees in a forward pass: addresses (k, 2, h, w), whole numbers,
    and cosines (k, h, w) of features, on the CPU.

    Args:
        features: (T, c, h, w).
        flow: (T-1, 2, h, w), from each frame to the frame before.
        mode: of the maps, "nearest" or "fractional".
        stride: every how many frames is a key frame.
    """
    tokens = F.normalize(ttvsr.tokenize(features), dim=1)                                # t d h w
    home = ttvsr.identity_grid(1, *tokens.shape[-2:], features.device)
    keyframes = range(0, len(features), stride)
    location, out = home, []
    for t in range(1, len(features)):
        location = ttvsr.carry(location, ttvsr.token_flow(flow[t - 1 : t]), mode)
        where = location.unflatten(1, (-1, 2))                                           # 1 k 2 h w
        keys = tokens[[key for key in keyframes if key < t]].transpose(0, 1)[None]
        found = ttvsr.gather_tokens(keys, where)                                         # 1 d k h w
        cosine = (tokens[t][None, :, None] * found).sum(dim=1)
        out.append((where[0].round().cpu(), cosine[0].cpu()))
        if t in keyframes:
            location = torch.cat([location, home], dim=1)
    return out


def follow_a_token(
    net: ttvsr.TTVSR, clips: Mapping[str, tuple[Tensor, Tensor]], start: tuple[int, int], alt: str
) -> Panel:
    """The widget "follow a token": controls video, t, x, y and mode (of the maps).

    Panel.means: {(clip, mode): the cosine with each key frame, mean of all tokens of the last
    frame}.

    Args:
        net: whose features are compared.
        clips: {name: (frames (T, 3, h, w), flow (T-1, 2, h, w) to the frame before)}, of one size.
        start: (x, y) of the token in the first picture, the last frame of the first clip.
        alt: what that picture shows.
    """
    found = {}
    for name, (frames, flow) in clips.items():
        features = net.feat_extractor(frames)
        for mode in ttvsr.MAPS:
            found[name, mode] = traced(features, flow, mode)
    frames = next(iter(clips.values()))[0]
    last, right, bottom = len(frames) - 1, frames.shape[-1] // 4 - 1, frames.shape[-2] // 4 - 1

    def draw(video, t, x, y, mode):
        return trace_figure(clips[video][0], found[video, mode][t - 1], t, (x, y))

    slider = ipywidgets.IntSlider
    out = panel(
        draw, alt=alt,
        video=ipywidgets.Dropdown(options=list(clips), description="video"),
        t=slider(last, 1, last, description="frame"),
        x=slider(start[0], 0, right, description="token x"),
        y=slider(start[1], 0, bottom, description="token y"),
        mode=ipywidgets.Dropdown(options=ttvsr.MAPS, description="map"),
    )
    out.means = {which: steps[-1][1].mean(dim=(1, 2)).tolist() for which, steps in found.items()}
    return out


def _middle_frames(models, frames, lengths):
    """{(model, n): what it makes of the middle frame, seeing n frames around it}."""
    middle, made = frames.shape[1] // 2, {}
    for n in lengths:
        start = middle - n // 2
        given = bicubic(frames[:, start : start + n], 1 / 4)
        for name, model in models.items():
            made[name, n] = middle_frame(model, given)[0].clamp(0, 1)
    return made


class LengthFigure:
    """What more frames add to one picture. What stays is drawn once; `at(n)` moves the rest.

    Args:
        made: {n: what the first model makes of n frames (3, H, W)}.
        truth: (3, H, W).
        lines: {model: PSNR for each n}.
        level: PSNR of bicubic enlargement.
        corner: (top, left) of the crop that is shown.
    """

    def __init__(
        self, made: Mapping[int, Tensor], truth: Tensor, lines: Mapping[str, Sequence[float]],
        level: float, corner: tuple[int, int],
    ):
        (self.name, self.scores), *_ = lines.items()
        self.counts, (top, left) = list(made), corner
        cut = slice(top, top + 64), slice(left, left + 64)
        self.crops = {n: picture[:, *cut] for n, picture in made.items()}
        least = min(self.counts)
        self.fixed = [truth[:, *cut], self.crops[least]]
        self.fig, (self.plot, row) = figure(2, size=(9.2, 2.4), width_ratios=(1.2, 2))
        curves(self.counts, lines, "", ("frames given", "PSNR on Y (dB)"),
               level={"bicubic": level}, legend="lower right", ax=self.plot)
        self.mark = self.plot.axvline(least, color="#777777", linewidth=1)
        titles = ["the truth", f"{self.name}, n = {least}", ""]
        picture_strip(row, [*self.fixed, self.crops[least]], titles)
        row.set_position([0.4, 0.02, 0.59, 0.86])
        self.pictures, self.title = row.images[0], row.texts[-1]

    def at(self, n: int) -> Figure:
        """The figure for n frames."""
        self.mark.set_xdata([n, n])
        score = self.scores[self.counts.index(n)]
        self.plot.set_title(f"{n} frames: {score:.2f} dB", loc="left")
        strip = side_by_side([*self.fixed, self.crops[n]])
        self.pictures.set_data(strip.permute(1, 2, 0).numpy())
        self.title.set_text(f"n = {n}")
        return self.fig


def _scored(got: Tensor, want: Tensor) -> float:
    return psnr(got, want, crop=4).item()


def window_lengths(
    models: Mapping[str, ttvsr.TTVSR], clips: Mapping[str, tuple[Tensor, tuple[int, int]]],
    lengths: Sequence[int], start: int, alt: str,
) -> Panel:
    """The widget "how far does it see": PSNR of one frame against how many frames a net is given.

    Panel.scores: {(clip, model, n): PSNR on Y in dB}.

    Args:
        models: {name: net}; the first one's pictures are shown.
        clips: {name: (frames (1, T, 3, H, W), (top, left) of the crop)}; the middle frame is
            scored.
        lengths: the numbers n of frames, up to T.
        start: n of the first picture.
        alt: what that picture shows.
    """
    made = {name: _middle_frames(models, frames, lengths) for name, (frames, _) in clips.items()}
    middle = {name: frames[0, frames.shape[1] // 2] for name, (frames, _) in clips.items()}

    first, scores, drawn = next(iter(models)), {}, {}
    for source, frame in middle.items():
        for (name, n), picture in made[source].items():
            scores[source, name, n] = _scored(picture, frame)
        lines = {name: [scores[source, name, n] for n in lengths] for name in models}
        level = _scored(bicubic(bicubic(frame, 1 / 4), 4).clamp(0, 1), frame)
        pictures = {n: made[source][first, n] for n in lengths}
        drawn[source] = LengthFigure(pictures, frame, lines, level, corner=clips[source][1])

    def draw(source, n):
        return drawn[source].at(n)

    controls = {
        "source": ipywidgets.Dropdown(options=list(clips), description="video"),
        "n": ipywidgets.SelectionSlider(options=lengths, value=start, description="frames"),
    }
    out = panel(draw, alt=alt, **controls)
    out.scores = scores
    return out
