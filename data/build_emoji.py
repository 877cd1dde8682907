"""Build data/emoji.npz and data/emoji.json from the npm packages emoji-datasource-google and
emoji-datasource-twitter.

    python data/build_emoji.py                                  # downloads both with `npm pack`
    python data/build_emoji.py --google FOLDER_OR_TGZ --twitter FOLDER_OR_TGZ

Keeps the pictograms that both artists drew (1,911), as 64 x 64 RGBA without loss; the colour under
fully transparent pixels is set to zero. Arrays `noto` and `twemoji` hold LZMA streams of two
drawings each, `noto_start` and `twemoji_start` where each starts. Needs pillow. The result does not
depend on the clock or the folder: building twice gives the same bytes.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from pack import in_blocks, save_json, save_npz  # noqa: E402

VERSION = "16.0.0"
COUNT = 1911
ARTISTS = {"noto": "google", "twemoji": "twitter"}
PACKED = 2  # drawings in one stream: a twelfth more than four in one, and half the time for one
# two drawings nearer than this (L2 of the 16 x 16 premultiplied RGBA in [0, 1]) look the same
LOOKALIKE = 0.1


def open_package(source, artist, scratch):
    """Folder of an npm package, from a folder, a .tgz or the registry."""
    if source is None:
        package = f"emoji-datasource-{artist}"
        if shutil.which("npm") is None:
            raise SystemExit(f"this machine has no npm: pass the package {package} with --{artist}")
        command = ["npm", "pack", f"{package}@{VERSION}"]
        subprocess.run(command, cwd=scratch, check=True, capture_output=True)
        source = scratch / f"emoji-datasource-{artist}-{VERSION}.tgz"
    source = pathlib.Path(source)
    if source.is_file():
        folder = scratch / artist
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        source = folder
    if not (source / "emoji.json").exists():
        source = source / "package"
    if not (source / "emoji.json").exists():
        needs = f"expected the unpacked package emoji-datasource-{artist}"
        raise SystemExit(f"no emoji.json in {source}: {needs}")
    found = json.loads((source / "package.json").read_text())["version"]
    if found != VERSION:
        needs = f"this builder needs {VERSION}"
        raise SystemExit(f"emoji-datasource-{artist} is version {found}, {needs}")
    return source


def read_drawing(path):
    """(64, 64, 4) uint8 with straight alpha; fully transparent pixels are all zero."""
    rgba = np.array(Image.open(path).convert("RGBA"))
    assert rgba.shape == (64, 64, 4), (path.name, rgba.shape)
    rgba[rgba[..., 3] == 0] = 0
    return rgba


def names_of(entries):
    """Unicode names in lower case (countries keep their capitals), unique: a repeated one gets its
    short name in brackets."""
    names = [e["name"] for e in entries]
    names = [n.lower() if n.isupper() else n.replace(" Flag", " flag") for n in names]
    short = [e["short_name"].replace("_", " ") for e in entries]
    pairs = zip(names, short, strict=True)
    return [f"{name} ({other})" if names.count(name) > 1 else name for name, other in pairs]


def lookalikes(drawings):
    """For each pictogram the first one that looks the same in at least one artist's drawing: flags
    of territories, families."""
    count = len(drawings[0])
    parent = list(range(count))

    def find(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for rgba in drawings:
        x = rgba.astype(np.float64) / 255
        x[..., :3] *= x[..., 3:]
        x = x.reshape(count, 16, 4, 16, 4, 4).mean(axis=(2, 4)).reshape(count, -1)
        square = (x * x).sum(1)
        near = square[:, None] + square[None] - 2 * x @ x.T < LOOKALIKE**2
        for i, j in zip(*np.nonzero(np.triu(near, 1)), strict=True):
            a, b = sorted((find(int(i)), find(int(j))))
            parent[b] = a
    return [find(i) for i in range(count)]


def split_of(code):
    """'test' for about a fifth of the code points, by their hash."""
    return "test" if int(hashlib.sha256(code.encode()).hexdigest(), 16) % 5 == 0 else "train"


def read_packages(sources):
    """Entries that both artists drew, in Unicode's order, and artist -> (1911, 64, 64, 4) uint8.

    sources: artist -> folder, .tgz or None.
    """
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        folders, drawn = {}, {}
        for artist, package in ARTISTS.items():
            folders[artist] = open_package(sources[artist], package, scratch)
            table = json.loads((folders[artist] / "emoji.json").read_text())
            drawn[artist] = {e["unified"]: e for e in table if e[f"has_img_{package}"]}
        entries = [e for code, e in drawn["noto"].items() if code in drawn["twemoji"]]
        entries.sort(key=lambda e: e["sort_order"])
        if len(entries) != COUNT:
            raise SystemExit(f"both artists drew {len(entries)} pictograms, expected {COUNT}")
        pixels = {}
        for artist, package in ARTISTS.items():
            folder = folders[artist] / "img" / package / "64"
            files = [drawn[artist][e["unified"]]["image"] for e in entries]
            pixels[artist] = np.stack([read_drawing(folder / file) for file in files])
    return entries, pixels


def make_row(name, entry, twin, first):
    """What the table says of one pictogram; `first` is the entry of the one that looks the same."""
    # Unicode files the five skin-tone swatches under "Component", which is no category of things
    category = entry["category"]
    return {
        "name": name,
        "short": entry["short_name"],
        "code": entry["unified"],
        "char": "".join(chr(int(c, 16)) for c in entry["unified"].split("-")),
        "category": "People & Body" if category == "Component" else category,
        "subcategory": entry["subcategory"],
        "twin": twin,
        "split": split_of(first["unified"]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for package in ARTISTS.values():
        what = f"folder or .tgz of emoji-datasource-{package}; downloaded when left out"
        parser.add_argument(f"--{package}", help=what)
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, type=pathlib.Path)
    args = parser.parse_args()
    entries, pixels = read_packages({a: getattr(args, p) for a, p in ARTISTS.items()})
    columns = zip(names_of(entries), entries, lookalikes(list(pixels.values())), strict=True)
    rows = [make_row(name, entry, twin, entries[twin]) for name, entry, twin in columns]
    assert len({r["name"] for r in rows}) == COUNT
    save_drawings(args.out / "emoji.npz", pixels)
    save_json(args.out / "emoji.json", rows)


def save_drawings(path, pixels):
    """artist -> (N, 64, 64, 4) uint8, in streams of two."""
    arrays = {}
    for artist, drawings in pixels.items():
        arrays[artist], arrays[f"{artist}_start"] = in_blocks(drawings, PACKED)
    save_npz(path, stored=tuple(pixels), **arrays)


if __name__ == "__main__":
    main()
