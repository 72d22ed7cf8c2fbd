"""A cache bounded in bytes: what was not used for longest goes first."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """At most `max_bytes` of values. May be used from any thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.max_bytes = max_bytes
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self._bytes

    def get(self, key: K) -> V | None:
        """The value of `key`, which thereby is the last to go; None where it is not held."""
        with self._lock:
            found = self._held.get(key)
            if found is None:
                return None
            self._held.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        """Holds a value of `nbytes`, unless it alone is over the bound."""
        with self._lock:
            if (old := self._held.pop(key, None)) is not None:
                self._bytes -= old[1]
            if nbytes > self.max_bytes:
                return
            self._held[key] = (value, nbytes)
            self._bytes += nbytes
            while self._bytes > self.max_bytes:
                _, (_, gone) = self._held.popitem(last=False)
                self._bytes -= gone
