"""python -m tests.bench: vtlib's blocks against naive references, and cost as N grows, in one run.

Times are medians on one thread, printed as ratios; FLOPs are counted (a multiply-add counts 2).
Each module of this folder that has a function `tables()` is asked for its tables: (title, header,
rows).
"""

import importlib
import pkgutil

import torch

from . import __path__ as folder


def benches():
    """The modules that have tables, by name."""
    names = [module.name for module in pkgutil.iter_modules(folder)]
    own = [name for name in names if not name.startswith(("_", "test_"))]
    modules = [importlib.import_module(f"tests.bench.{name}") for name in own]
    return [module for module in modules if hasattr(module, "tables")]


def show(title, header, rows):
    print(f"\n{title}")
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  " + "  ".join(padded))


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for module in benches():
        for title, header, rows in module.tables():
            show(title, header, rows)


if __name__ == "__main__":
    main()
