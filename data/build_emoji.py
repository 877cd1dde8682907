"""Build data/emoji.npz and data/emoji.json from the npm packages emoji-datasource-google and emoji-datasource-twitter.

    python data/build_emoji.py                                            # downloads both with `npm pack`
    python data/build_emoji.py --google FOLDER_OR_TGZ --twitter FOLDER_OR_TGZ

Keeps the pictograms that both artists drew (1,911), as 64 x 64 RGBA without loss; the colour under fully transparent pixels is
set to zero. Needs pillow. The result does not depend on the clock or the folder: building twice gives the same bytes.
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
from pack import save_json, save_npz  # noqa: E402

VERSION = "16.0.0"
COUNT = 1911
ARTISTS = {"noto": "google", "twemoji": "twitter"}
LOOKALIKE = 0.1  # two drawings nearer than this (L2 of the 16 x 16 premultiplied RGBA in [0, 1]) count as the same picture


def open_package(source, artist, scratch):
    """Folder of an npm package, from a folder, a .tgz or the registry."""
    if source is None:
        if shutil.which("npm") is None:
            raise SystemExit(f"this machine has no npm: pass the package emoji-datasource-{artist} with --{artist}")
        subprocess.run(["npm", "pack", f"emoji-datasource-{artist}@{VERSION}"], cwd=scratch, check=True, capture_output=True)
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
        raise SystemExit(f"no emoji.json in {source}: expected the unpacked package emoji-datasource-{artist}")
    found = json.loads((source / "package.json").read_text())["version"]
    if found != VERSION:
        raise SystemExit(f"emoji-datasource-{artist} is version {found}, this builder needs {VERSION}")
    return source


def read_drawing(path):
    """(64, 64, 4) uint8 with straight alpha; fully transparent pixels are all zero."""
    rgba = np.array(Image.open(path).convert("RGBA"))
    assert rgba.shape == (64, 64, 4), (path.name, rgba.shape)
    rgba[rgba[..., 3] == 0] = 0
    return rgba


def names_of(entries):
    """Unicode names in lower case (countries keep their capitals), unique: a repeated one gets its short name in brackets."""
    names = [e["name"].lower() if e["name"].isupper() else e["name"].replace(" Flag", " flag") for e in entries]
    return [f"{n} ({e['short_name'].replace('_', ' ')})" if names.count(n) > 1 else n for n, e in zip(names, entries)]


def lookalikes(drawings):
    """For each pictogram the first one that looks the same in at least one artist's drawing (flags of territories, families)."""
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
        for i, j in zip(*np.nonzero(np.triu(near, 1))):
            a, b = sorted((find(int(i)), find(int(j))))
            parent[b] = a
    return [find(i) for i in range(count)]


def split_of(code):
    """'test' for about a fifth of the code points, by their hash."""
    return "test" if int(hashlib.sha256(code.encode()).hexdigest(), 16) % 5 == 0 else "train"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--google", help="folder or .tgz of emoji-datasource-google; downloaded when left out")
    parser.add_argument("--twitter", help="folder or .tgz of emoji-datasource-twitter; downloaded when left out")
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {n: open_package(getattr(args, a), a, pathlib.Path(scratch)) for n, a in ARTISTS.items()}
        tables = {n: json.loads((folders[n] / "emoji.json").read_text()) for n in ARTISTS}
        drawn = {n: {e["unified"]: e for e in tables[n] if e[f"has_img_{ARTISTS[n]}"]} for n in ARTISTS}
        entries = [e for code, e in drawn["noto"].items() if code in drawn["twemoji"]]
        entries.sort(key=lambda e: e["sort_order"])
        if len(entries) != COUNT:
            raise SystemExit(f"{len(entries)} pictograms were drawn by both artists, expected {COUNT}")
        pixels = {
            n: np.stack([read_drawing(folders[n] / "img" / a / "64" / drawn[n][e["unified"]]["image"]) for e in entries])
            for n, a in ARTISTS.items()
        }
    twins = lookalikes(list(pixels.values()))
    rows = [
        {
            "name": name,
            "short": e["short_name"],
            "code": e["unified"],
            "char": "".join(chr(int(c, 16)) for c in e["unified"].split("-")),
            # Unicode files the five skin-tone swatches under "Component", which is no category of things
            "category": "People & Body" if e["category"] == "Component" else e["category"],
            "subcategory": e["subcategory"],
            "twin": twin,
            "split": split_of(entries[twin]["unified"]),
        }
        for name, e, twin in zip(names_of(entries), entries, twins)
    ]
    assert len({r["name"] for r in rows}) == COUNT
    save_npz(args.out / "emoji.npz", **pixels)
    save_json(args.out / "emoji.json", rows)


if __name__ == "__main__":
    main()
