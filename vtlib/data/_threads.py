"""Small operators on one thread: they cost less than waking a second one, and on a busy machine,
where the second one waits for a core, a hundredth."""

import contextlib
import ctypes
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import torch


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch brings along and runs on; None where it brings none."""
    folder = Path(torch.__file__).parent / "lib"
    for file in sorted(folder.glob("*omp*")):
        if re.match(r"lib(g|i)?omp", file.name):
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(str(file))
                library.omp_set_num_threads.argtypes = [ctypes.c_int]
                return library
    return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, this thread's torch operators run on this thread alone; also as a decorator.

    OpenMP keeps the number of threads for each calling thread, so neither other threads nor what
    `torch.set_num_threads` says to them is touched. Where torch brings no OpenMP library this does
    nothing: results are the same.
    """
    threads = torch.get_num_threads()            # torch also reads its own setting here, once
    library = _openmp() if threads > 1 else None
    if library is None:
        yield
        return
    library.omp_set_num_threads(1)
    try:
        yield
    finally:
        library.omp_set_num_threads(threads)
