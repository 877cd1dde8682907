"""Small operators on one thread: waking a second one costs more than it saves, and on a busy
machine, where it waits for a core, ten times as much."""

import contextlib
import ctypes
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import torch


@functools.cache
def _function(library: str, name: str) -> ctypes._CFuncPtr | None:
    """A function (int) -> int of a library that torch has loaded; None where torch brings none.

    library: a pattern for its file's name.
    """
    folder = Path(torch.__file__).parent / "lib"
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if re.match(library, file.name):
            with contextlib.suppress(OSError, AttributeError):
                function = getattr(ctypes.CDLL(str(file)), name)
                function.argtypes = [ctypes.c_int]
                return function
    return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, this thread's torch operators run on this thread alone; also as a decorator.

    OpenMP and MKL each keep a number of threads for each calling thread, and only that one is
    changed, so neither other threads nor what `torch.set_num_threads` says to them is touched.
    Where torch brings neither library this does nothing: results are the same.
    """
    threads = torch.get_num_threads()            # torch also reads its own setting here, once
    if threads == 1:
        yield
        return
    set_openmp = _function(r"lib(g|i)?omp", "omp_set_num_threads")
    set_mkl = _function(r"(lib)?torch_cpu\.", "MKL_Set_Num_Threads_Local")
    before = set_mkl(1) if set_mkl else 0        # 0: this thread had no number of its own
    if set_openmp:
        set_openmp(1)
    try:
        yield
    finally:
        if set_openmp:
            set_openmp(threads)
        if set_mkl:
            set_mkl(before)
