"""Build data/digits.npz: scikit-learn's 1,797 handwritten 8 x 8 digits (0-16 grey levels), uint8.

    python data/build_digits.py
"""

import argparse
import pathlib
import sys

import numpy as np
from sklearn.datasets import load_digits

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from pack import save_npz  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, type=pathlib.Path)
    args = parser.parse_args()
    digits = load_digits()
    arrays = {"images": digits.images, "labels": digits.target}
    arrays = {name: array.astype(np.uint8) for name, array in arrays.items()}
    save_npz(args.out / "digits.npz", **arrays)


if __name__ == "__main__":
    main()
