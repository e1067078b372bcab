"""Memory that is used again as soon as nobody looks at it any more.

The system clears new memory page by page before it gives it away, which costs a loader of images about a fifteenth of
its time. This module imports no TensorFlow.
"""

import sys
import threading

import numpy as np

# TensorFlow takes arrays that begin at a multiple of this without copying them.
ALIGNMENT = 64
# An array that only `RecycledMemory` knows: its list, the loop's variable, and the argument of getrefcount.
_REFERENCES_WHEN_FREE = 3


class RecycledMemory:
    """Gives out arrays of one size.

    Every array that is made of what `array` returns, a view or TensorFlow's tensor, counts as a reference to the
    memory below, as Python counts them; with the last of them the memory is free for the next call. No more memory is
    kept than was in use at a time.
    """

    def __init__(self):
        self._memory: list[np.ndarray] = []
        self._lock = threading.Lock()

    def array(self, shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
        """An array of a shape and type, holding anything, aligned for TensorFlow."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._free(size + ALIGNMENT)
        begin = -memory.ctypes.data % ALIGNMENT
        return memory[begin : begin + size].view(dtype).reshape(shape)

    def _free(self, size: int) -> np.ndarray:
        with self._lock:
            for memory in self._memory:
                if sys.getrefcount(memory) == _REFERENCES_WHEN_FREE and memory.size == size:
                    return memory
            self._memory.append(np.empty(size, np.uint8))
            return self._memory[-1]
