"""Build data/font.npz: glyphs of DejaVu Sans Mono (regular and bold) as grey levels.

From the copy that matplotlib carries.

    python data/build_font.py

Arrays `regular` and `bold`: (characters, height, width) uint8 coverage; `codes`: their Unicode code
points (ASCII and Latin-1).
"""

import argparse
import pathlib
import sys

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from pack import save_npz  # noqa: E402

PIXELS = 48  # font size
FACES = {"regular": "DejaVuSansMono.ttf", "bold": "DejaVuSansMono-Bold.ttf"}
CODES = [*range(32, 127), *range(161, 256)]


def glyphs(path):
    font = ImageFont.truetype(str(path), PIXELS, layout_engine=ImageFont.Layout.BASIC)
    ascent, descent = font.getmetrics()
    width = round(font.getlength("0"))
    out = np.zeros((len(CODES), ascent + descent, width), np.uint8)
    for i, code in enumerate(CODES):
        cell = Image.new("L", (width, ascent + descent), 0)
        ImageDraw.Draw(cell).text((0, 0), chr(code), font=font, fill=255)
        out[i] = np.array(cell)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, type=pathlib.Path)
    args = parser.parse_args()
    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = {name: glyphs(folder / file) for name, file in FACES.items()}
    save_npz(args.out / "font.npz", codes=np.array(CODES, np.int32), **faces)


if __name__ == "__main__":
    main()
