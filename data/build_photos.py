"""Build data/photos.npz and data/photos.json: photographs under free licences.

Their longest side is 512 pixels.

    python data/build_photos.py [--wallpapers DEB_OR_FOLDER]

Sources: files that the wheels of scikit-image, scikit-learn and matplotlib carry, and the Debian
package lomiri-wallpapers-16.04 (fetched with `apt-get download` when --wallpapers is left out).
Needs pillow and these three packages.
"""

import argparse
import io
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import util

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from pack import save_json, save_npz, to_planes  # noqa: E402

LONGEST = 512
SKIMAGE, SKLEARN, MATPLOTLIB = "scikit-image", "scikit-learn", "matplotlib"
DEBIAN = "lomiri-wallpapers-16.04"
FOLDER = {
    SKIMAGE: ("skimage", "data"),
    SKLEARN: ("sklearn", "datasets/images"),
    MATPLOTLIB: ("matplotlib", "mpl-data/sample_data"),
}
CC0, CCBY4, CCBY2, PD = "CC0-1.0", "CC-BY-4.0", "CC-BY-2.0", "public domain"

COLUMNS = ("name", "title", "package", "file", "author", "licence", "split")
# what it shows is its title; the split is its use as a background ("none": it shows a face or an
# animal)
PHOTOS = [
    ("astronaut", "Eileen Collins, astronaut", SKIMAGE,
     "astronaut.png", "NASA", PD, "none"),
    ("cat", "Chelsea the cat", SKIMAGE,
     "chelsea.png", "Stefan van der Walt", CC0, "none"),
    ("coffee", "a cup of coffee on a wooden table", SKIMAGE,
     "coffee.png", "Rachel Michetti", CC0, "train"),
    ("launchpad", "a rocket on its launch pad at dusk", SKIMAGE,
     "rocket.jpg", "SpaceX", PD, "train"),
    ("galaxies", "the Hubble eXtreme Deep Field", SKIMAGE,
     "hubble_deep_field.jpg", "NASA and ESA", PD, "train"),
    ("temple", "the Summer Palace, Beijing", SKLEARN,
     "china.jpg", "danielbuechele (Flickr)", CCBY2, "test"),
    ("dahlia", "an orange dahlia", SKLEARN,
     "flower.jpg", "vultilion (Flickr)", CCBY2, "test"),
    ("admiral", "Grace Hopper, rear admiral", MATPLOTLIB,
     "grace_hopper.jpg", "James S. Davis, US Navy", PD, "none"),
    ("fig", "half a fig in an orange bowl", DEBIAN,
     "Picture_0B_by_freespace.jpg", 'Trevor "Freespace"', CCBY4, "train"),
    ("brushes", "paint brushes", DEBIAN,
     "Picture_1A_by_freespace.jpg", 'Trevor "Freespace"', CCBY4, "test"),
    ("lounge", "a drum, a beanbag and a bottle of wine", DEBIAN,
     "Wine_by_Jakkub_Mede.jpg", "Jakub Mede", CCBY4, "train"),
    ("meadow", "a meadow below a mountain", DEBIAN,
     "aitzgorri_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", CCBY4, "train"),
    ("dogs", "two dogs at a window", DEBIAN,
     "friends_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", CCBY4, "none"),
    ("creek", "a creek in a forest", DEBIAN,
     "life_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", CCBY4, "train"),
    ("peaks", "a path towards the Picos de Europa", DEBIAN,
     "picosdeeuropa_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", CCBY4, "test"),
    ("dandelions", "dandelion clocks in the evening", DEBIAN,
     "seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt", CC0, "train"),
    ("sunset", "a sunset over hills", DEBIAN,
     "sunset_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", CCBY4, "train"),
]


def unpack_deb(path, folder):
    """Extract data.tar.* of a Debian package (an ar archive) with the standard library."""
    content = path.read_bytes()
    at = 8
    while at < len(content):
        name = content[at : at + 16].decode().strip().rstrip("/")
        size = int(content[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content[at + 60 : at + 60 + size])) as archive:
                archive.extractall(folder, filter="data")
        at += 60 + size + size % 2


def find_wallpapers(source, scratch):
    if source is None:
        if shutil.which("apt-get") is None:
            needs = f"pass the file of Debian's package {DEBIAN} with --wallpapers"
            raise SystemExit(f"this machine has no apt-get: {needs}")
        command = ["apt-get", "download", DEBIAN]
        subprocess.run(command, cwd=scratch, check=True, capture_output=True)
        source = next(scratch.glob(f"{DEBIAN}_*.deb"))
    source = pathlib.Path(source)
    if source.is_file():
        unpack_deb(source, scratch / "deb")
        source = scratch / "deb"
    return source


def shrink(image):
    """Longest side 512 (never enlarged), both sides even, Lanczos."""
    scale = min(1.0, LONGEST / max(image.size))
    width, height = (max(2, int(side * scale) // 2 * 2) for side in image.size)
    return np.array(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = f"the .deb of {DEBIAN} or a folder; downloaded with apt-get when left out"
    parser.add_argument("--wallpapers", help=what)
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, type=pathlib.Path)
    args = parser.parse_args()
    arrays, rows = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        wallpapers = find_wallpapers(args.wallpapers, pathlib.Path(scratch))
        for photo in PHOTOS:
            row = dict(zip(COLUMNS, photo, strict=True))
            if row["package"] == DEBIAN:
                path = next(wallpapers.rglob(row["file"]))
            else:
                module, below = FOLDER[row["package"]]
                path = pathlib.Path(util.find_spec(module).origin).parent / below / row["file"]
            pixels = shrink(Image.open(path))
            for plane, values in to_planes(pixels).items():
                arrays[f"{row['name']}_{plane}"] = values
            rows.append(row | {"height": pixels.shape[0], "width": pixels.shape[1]})
    save_npz(args.out / "photos.npz", **arrays)
    save_json(args.out / "photos.json", rows)


if __name__ == "__main__":
    main()
