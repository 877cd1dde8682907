"""Methods on tests: what they make, how good it is, how long it takes."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.superres import bicubic, psnr, ttvsr
from vtlib.teach.meter import timed
from vtlib.teach.tables import table

TIE = 0.05
"""Decibels; less is no difference that `verdict` would call one."""


def windows(frames: Tensor, n: int) -> Tensor:
    """frames (B, T, 3, h, w) -> (B*T, n, 3, h, w): the n frames around each, repeated at the
    ends."""
    n = check_int(n, "n", 1)
    t = torch.arange(frames.shape[1], device=frames.device)[:, None]
    around = (t + torch.arange(n, device=frames.device) - n // 2).clamp(0, frames.shape[1] - 1)
    return frames[:, around].flatten(0, 1)


def middle_frame(net: ttvsr.TTVSR, frames: Tensor) -> Tensor:
    """The middle one of `net(frames)`, without what makes the others large: (B, n, 3, h, w) ->
    (B, 3, 4h, 4w)."""
    middle = frames.shape[1] // 2
    to_next, to_past = net.flows(frames)
    features = net.feat_extractor(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    back = net.propagate(features, to_next, "backward")[middle]
    ahead = net.propagate(features, to_past, "forward")[middle]
    return net._reconstruct(frames[:, middle], back, features[:, middle], ahead)


def by_windows(net: ttvsr.TTVSR, n: int) -> Callable:
    """The net as a method that sees n frames around each frame, and makes that one large:
    (B, T, 3, h, w) -> (B, T, 3, 4h, 4w)."""

    def run(frames: Tensor) -> Tensor:
        parts = windows(frames, n).split(max(1, 30 // n))
        made = torch.cat([middle_frame(net, part) for part in parts])
        return made.unflatten(0, frames.shape[:2])

    return run


def attention_off(net: ttvsr.TTVSR) -> Callable:
    """The same net as a function of frames, with LTAM handing on the warped state as it came.

    The net itself is left as it was after each call.
    """

    def run(frames: Tensor) -> Tensor:
        hook = net.LTAM.register_forward_hook(lambda module, args, out: (args[2], *out[1:]))
        try:
            return net(frames)
        finally:
            hook.remove()

    return run


def away_from_home(steps: Sequence[ttvsr.Step]) -> float:
    """The share of all addresses that are not the token's own place: do the maps move at all?"""
    moved = []
    for step in steps:
        h, w = step.location.shape[-2:]
        home = ttvsr.identity_grid(1, h, w, step.location.device)[:, None]           # 1 1 2 h w
        moved.append((step.location.round() != home).any(dim=2).flatten())
    return torch.cat(moved).float().mean().item()


def verdict(differences: Sequence[float]) -> bool | str:
    """True: better by more than `TIE` everywhere; False: nowhere; else "a tie"."""
    if min(differences) > TIE:
        return True
    return False if max(differences) < TIE else "a tie"


def said(differences: Sequence[float]) -> str:
    """Decibels for a table of claims: "+0.08, -0.04 dB"."""
    return ", ".join(f"{difference:+.2f}" for difference in differences) + " dB"


class Trials:
    """Methods on tests, x4 after the degradation BI.

    Trials.small: {test: small frames}; Trials.pictures, decibels (PSNR on Y, border of 4 left out),
    milliseconds (a frame of the fastest clip): {(method, test): ...}; Trials.moved: {(method,
    test): share of addresses away from home}.

    Args:
        tests: {name: frames (B, T, 3, H, W)}.
    """

    def __init__(self, tests: Mapping[str, Tensor]):
        self.tests = dict(tests)
        self.small = {name: bicubic(frames, 1 / 4) for name, frames in self.tests.items()}
        self.pictures, self.decibels, self.milliseconds, self.moved = {}, {}, {}, {}

    def measure(
        self, name: str, method: Callable, tests: Sequence[str] | None = None, trace: bool = False
    ) -> None:
        """Run a method on tests, clip by clip, and store what comes out.

        Args:
            name: of the method.
            method: small frames -> large ones.
            tests: which; None: all.
            trace: the method is a `TTVSR`, whose maps are looked at, too.
        """
        options = {"return_trace": True} if trace else {}
        for test in self.tests if tests is None else tests:
            runs = [timed(method, clip, **options) for clip in self.small[test].split(1)]
            made = [out for out, _ in runs]
            fastest = min(seconds for _, seconds in runs)
            self.milliseconds[name, test] = 1000 * fastest / self.small[test].shape[1]
            if trace:
                made, steps = zip(*made, strict=True)
                self.moved[name, test] = away_from_home(sum(steps, []))
            self.pictures[name, test] = torch.cat(made).clamp(0, 1)
            got, want = self.pictures[name, test], self.tests[test]
            self.decibels[name, test] = psnr(got, want, crop=4).mean().item()

    def store(self, name: str, scores: Mapping[str, float]) -> None:
        """Decibels {test: PSNR} of a method that was measured elsewhere, in the same way."""
        for test in self.tests:
            self.decibels[name, test] = scores[test]

    def added(self, better: str, worse: str, tests: Sequence[str] | None = None) -> list[float]:
        """Decibels of one method over another's, one a test.

        Args:
            better: a method.
            worse: another.
            tests: which; None: all.
        """
        asked = self.tests if tests is None else tests
        return [self.decibels[better, test] - self.decibels[worse, test] for test in asked]

    def table(self, caption: str) -> None:
        """Publish all decibels: a row a method, in the order they came, and a column a test."""
        names = dict.fromkeys(name for name, _ in self.decibels)
        rows = []
        for name in names:
            cells = [self.decibels.get((name, test)) for test in self.tests]
            rows.append([name, *("" if cell is None else f"{cell:.2f}" for cell in cells)])
        table(["PSNR on Y (dB), x4, BI", *self.tests], rows, caption=caption)


def search_times(
    searches: Sequence[Callable], counts: Sequence[int], tokens: int, width: int, device=None
) -> list[list[float]]:
    """Milliseconds of each search in random rows, for each number k of key frames.

    The fastest of nine runs, as `teach.timed` counts them.

    Args:
        searches: (query (N, D), keys (kN, D), address (k, N)) -> anything.
        counts: the numbers k.
        tokens: N.
        width: D.
        device: where they run; None: the CPU.
    """
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(tokens, width, generator=generator).to(device)
    times = [[] for _ in searches]
    for k in counts:
        keys = torch.randn(k * tokens, width, generator=generator).to(device)
        address = torch.randint(k * tokens, (k, tokens), generator=generator).to(device)
        for found, search in zip(times, searches, strict=True):
            runs = [timed(search, query, keys, address)[1] for _ in range(9)]
            found.append(1000 * min(runs))
    return times


def pushed(flow: Tensor, seed: int, distance: float = 1.0) -> Tensor:
    """Flow (B, T, 2, h, w) with an error: each frame's as a whole is off by so many pixels, in a
    random direction.

    Args:
        flow: in pixels.
        seed: of the directions.
        distance: in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(*flow.shape[:2], 1, 1, 1, generator=generator)
    error = torch.cat([angle.cos(), angle.sin()], dim=2) * distance
    return flow + error.to(flow)
