"""A cache that is bounded in bytes, for arrays and tensors."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np


class Kept:
    """What was made before, up to `limit` bytes; the least recently used one goes first.

    Safe for threads. Everyone who asks gets the same array, which is read-only, or the same tensor,
    which is to be treated so.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.bytes = 0
        self._arrays: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._arrays)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._arrays.clear()
            self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The array or tensor of `key`, made by `make` if it is not there."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = make()                           # outside the lock: another thread may make it, too
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = array
                self.bytes += array.nbytes
            while self.bytes > self.limit and len(self._arrays) > 1:
                _, oldest = self._arrays.popitem(last=False)
                self.bytes -= oldest.nbytes
        return array
