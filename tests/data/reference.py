"""A slow, separate way to draw a scene: NumPy in double precision, one object and one picture at a
time, straight from the drawings."""

import numpy as np

from vtlib.data import assets

EXACT = 2e-3  # pixels whose alpha is nearer than this to the threshold may fall on either side


def shrink(rgba, times):
    for _ in range(times):
        rgba = (rgba[::2, ::2] + rgba[1::2, ::2] + rgba[::2, 1::2] + rgba[1::2, 1::2]) / 4
    return rgba


def sample(picture, x, y):
    """Bilinear, empty outside; x, y in pixels with the first pixel's centre at 0."""
    size = len(picture)
    padded = np.zeros((size + 2, size + 2, 4))
    padded[1:-1, 1:-1] = picture
    x, y = np.clip(x, -1, size) + 1, np.clip(y, -1, size) + 1
    x0, y0 = np.minimum(np.floor(x).astype(int), size), np.minimum(np.floor(y).astype(int), size)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    top = padded[y0, x0] * (1 - fx) + padded[y0, x0 + 1] * fx
    bottom = padded[y0 + 1, x0] * (1 - fx) + padded[y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def draw(artist, row, centre, side, angle, size):
    """(H, W, 4) premultiplied, in [0, 1]."""
    rgba = assets.drawing(artist, row).astype(float) / 255
    rgba[..., :3] *= rgba[..., 3:]
    times = min(3, max(0, int(np.round(np.log2(64 / side)))))
    picture = shrink(rgba, times)
    t = np.deg2rad(angle)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    dx, dy = x - centre[0], y - centre[1]
    # to undo a counter-clockwise turn (y points down), turn clockwise
    u, v = np.cos(t) * dx - np.sin(t) * dy, np.sin(t) * dx + np.cos(t) * dy
    scale = len(picture) / side
    return sample(picture, u * scale + len(picture) / 2 - 0.5, v * scale + len(picture) / 2 - 0.5)


def scene(scenes, b, background):
    """Scene b over a background (H, W, 3): image (H, W, 3), owners (H, W), doubtful pixels (H, W)
    bool and areas."""
    image = background.astype(float).copy()
    owner, doubt, areas = np.zeros(scenes.size, int), np.zeros(scenes.size, bool), []
    for k in range(scenes.valid.shape[1]):
        if not scenes.valid[b, k]:
            areas.append(0)
            continue
        row = int(scenes.table[scenes.pictogram[b, k]])
        side = float(scenes.scale[b, k]) * min(scenes.size)
        artist = scenes.artists[int(scenes.artist[b, k])]
        centre, angle = scenes.centre[b, k].double().numpy(), float(scenes.angle[b, k])
        layer = draw(artist, row, centre, side, angle, scenes.size)
        alpha = layer[..., 3]
        image = layer[..., :3] + (1 - alpha[..., None]) * image
        owner[alpha >= 0.5] = k + 1
        doubt |= np.abs(alpha - 0.5) < EXACT + 1 / 255
        areas.append(int((alpha >= 0.5).sum()))
    return image, owner, doubt, areas
