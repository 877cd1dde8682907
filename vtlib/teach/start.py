"""The first cell of every notebook: seeds, the look of the figures, one line about the machine."""

import os
import random

from vtlib.teach._needs import require


def device():
    """The torch.device to work on: the first GPU when torch sees one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def setup(seed: int = 0) -> None:
    """Make a notebook start the same way every time, and print one line about where it runs.

    Seeds `random`, numpy and torch with `seed`, gives matplotlib the style of the course, and
    leaves the number of threads alone unless the environment variable VTLIB_THREADS holds one.
    Errors: ImportError with the pip command when a package is missing; ValueError for a seed that
    is not a whole number >= 0.
    """
    require()
    import numpy
    import torch

    import vtlib
    from vtlib.nn.checks import check_int
    from vtlib.teach.figures import use_style

    seed = check_int(seed, "seed", 0, 2**32 - 1)
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)  # seeds the GPUs too
    threads = os.environ.get("VTLIB_THREADS")
    if threads is not None:
        if not threads.isdigit() or int(threads) < 1:
            raise ValueError(f"VTLIB_THREADS={threads!r}: needs a whole number of at least 1")
        torch.set_num_threads(int(threads))
    use_style()
    version = torch.__version__.split("+")[0]
    print(f"vtlib {vtlib.__version__} | torch {version} | {_place()}")


def _place() -> str:
    """The name of the GPU, or the CPU with its number of threads."""
    import torch

    if device().type == "cuda":
        return torch.cuda.get_device_name()
    count = torch.get_num_threads()
    return f"cpu, {count} thread{'' if count == 1 else 's'}"
