"""python -m tests.bench: vtlib's blocks against naive references, and cost as the number of tokens N grows, all in one run.

Times are medians on one thread, printed as ratios; FLOPs are counted (a multiply-add counts 2). A later family adds its own module
with a function `rows()` and its name to FAMILIES.
"""

import importlib

import torch

FAMILIES = ("multiscale", "pruning", "superres", "tokens")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for family in FAMILIES:
        module = importlib.import_module(f"tests.bench.{family}")
        for title, header, rows in module.tables():
            print(f"\n{title}")
            cells = [[str(c) for c in row] for row in (header, *rows)]
            widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
            for row in cells:
                print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


if __name__ == "__main__":
    main()
