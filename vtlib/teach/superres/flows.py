"""Optical flow in colours: the hue says where to, the saturation how far."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_int, check_number
from vtlib.teach.pictures import grid, pixels_of, values_of


def _flow(flow, name: str = "flow") -> Tensor:
    """(2, h, w) float32 on the CPU."""
    flow = values_of(flow, name).float()
    if flow.ndim != 3 or flow.shape[0] != 2 or 0 in flow.shape:
        raise ValueError(f"{name}: got shape {tuple(flow.shape)}, needs (2, h, w)")
    return flow


def flow_picture(flow, largest: float) -> Tensor:
    """Flow (2, h, w), x to the right and y down -> its picture (3, h, w) in [0, 1].

    No motion is white. To the right is red, down yellow-green, to the left cyan, up violet; the
    colour is full where the flow is `largest` long, or longer. ValueError for another shape.
    """
    flow, largest = _flow(flow), check_number(largest, "largest", 1e-6, 1e6)
    hue = (torch.atan2(flow[1], flow[0]) / (2 * torch.pi)) % 1                           # h w
    saturation = (flow.norm(dim=0) / largest).clamp(0, 1)
    hsv = torch.stack([hue, saturation, torch.ones_like(hue)], dim=-1)
    return torch.from_numpy(hsv_to_rgb(hsv.numpy())).float().permute(2, 0, 1)


def wheel(size: int = 96) -> Tensor:
    """The colour wheel (3, size, size): the colour at each place is that of the flow from the
    middle to it; white outside the wheel and grey on its rim."""
    size = check_int(size, "size", 8)
    half = (size - 1) / 2
    axis = (torch.arange(size, device="cpu", dtype=torch.float32) - half) / half
    flow = torch.stack([axis.expand(size, size), axis[:, None].expand(size, size)])
    length = flow.norm(dim=0)
    picture = flow_picture(flow, 0.92)
    picture[:, length > 0.92] = 0.6
    picture[:, length > 0.98] = 1.0
    return picture


def enlarged(flow: Tensor, size: int) -> Tensor:
    """Flow (B, 2, h, h) as one of (B, 2, size, size): more pixels, and more of them to go."""
    size = check_int(size, "size", 1)
    larger = F.interpolate(flow, size=size, mode="bilinear")
    return larger * (size / flow.shape[-1])


def flow_strip(
    frames: Sequence, flows: Sequence, titles: Sequence[str], title: str | None = None,
    size: float = 1.15,
) -> Figure:
    """Frames, then flows in colours, then the colour wheel, in one row.

    All flows share one scale, the longest motion of the last. ValueError for shapes that do not
    fit, and for a number of titles that is not that of frames and flows.

    Args:
        frames: pictures (3, h, w).
        flows: (2, h, w) each, in pixels.
        titles: one for each frame and each flow.
        title: the message of the figure.
        size: width of a picture in inches.
    """
    if len(titles) != len(frames) + len(flows):
        raise ValueError(
            f"titles: got {len(titles)} for {len(frames)} frames and {len(flows)} flows"
        )
    largest = max(float(_flow(flows[-1]).norm(dim=0).max()), 1e-6)
    pictures = [pixels_of(frame, "frames") for frame in frames]
    pictures += [flow_picture(flow, largest) for flow in flows]
    side = pictures[0].shape[-1]
    legend = wheel(side)
    if pictures[0].shape[-2] != side:                       # on white, in the pictures' shape
        height = pictures[0].shape[-2]
        legend = wheel(min(side, height))
        pad = (side - legend.shape[-1], height - legend.shape[-2])
        halves = (pad[0] // 2, pad[0] - pad[0] // 2, pad[1] // 2, pad[1] - pad[1] // 2)
        legend = F.pad(legend, halves, value=1.0)
    told = [*titles, "colour = direction"]
    return grid([*pictures, legend], told, cols=len(told), size=size, title=title)
