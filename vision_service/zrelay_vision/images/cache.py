"""A cache bounded in bytes that drops the least recently used values."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """A least-recently-used cache of at most `max_bytes`. Safe to use from any thread.

    Each owner has values of its own, also under the same key: neither an answer nor its time tells what others have
    sent. The owner that uses the most bytes loses values first, so that one does not drop what others keep.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: dict[str, OrderedDict[K, tuple[V, int]]] = {}
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the values in the cache."""
        with self._lock:
            return sum(self._bytes.values())

    def get(self, key: K, owner: str = "") -> V | None:
        """Returns an owner's value of `key` and marks it as used, or None if it is not in the cache."""
        with self._lock:
            own = self._entries.get(owner)
            entry = None if own is None else own.get(key)
            if own is None or entry is None:
                return None
            own.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V, nbytes: int, owner: str = "") -> None:
        """Adds a value of `nbytes` for an owner. A value above the limit is not kept."""
        with self._lock:
            own = self._entries.setdefault(owner, OrderedDict())
            self._bytes.setdefault(owner, 0)
            if (replaced := own.pop(key, None)) is not None:
                self._bytes[owner] -= replaced[1]
            if nbytes <= self.max_bytes:
                own[key] = (value, nbytes)
                self._bytes[owner] += nbytes
            while sum(self._bytes.values()) > self.max_bytes:
                self._drop_oldest(max(self._bytes, key=self._bytes.__getitem__))
            if not own:
                del self._entries[owner], self._bytes[owner]

    def _drop_oldest(self, owner: str) -> None:
        _, (_, dropped) = self._entries[owner].popitem(last=False)
        self._bytes[owner] -= dropped
