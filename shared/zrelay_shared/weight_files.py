"""Reads the weights of a component: each byte once, in parallel, for their digest and for the module that needs them.

SHA-256 takes most of the time (0.2 to 2 GB/s per core), so each thread reads, hashes and hands on one tensor at a time:
a chunk that was hashed is still in the processor's cache when it is copied to its place.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event

from zrelay_shared import atomic, private, strict_json
from zrelay_shared.checkpoints import ComponentFolder
from zrelay_shared.errors import Cancelled, CheckpointError
from zrelay_shared.paths import STATE_REMEDY
from zrelay_shared.safetensors_header import SafetensorsError, TensorEntry, read_header

CHUNK_BYTES = 4 * 1024 * 1024
"""Bytes that are read at once. A multiple of the size of every dtype."""
_MAX_THREADS = 8
_LARGE_PART = 16
"""A tensor of more than this part of all bytes is read first, so that no thread ends long after the others."""
_CACHE_VERSION = 2
_PREFIX = "model."
_LM_HEAD = "lm_head."
_DERIVED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|position_ids)$")
"""Tables that older versions of transformers saved. They follow from the configuration and are never loaded."""

log = logging.getLogger(__name__)
Sink = Callable[[memoryview], None]
"""Receives the bytes of a tensor, chunk by chunk and in order, in a thread of the reader."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file."""

    path: Path
    entry: TensorEntry


class WeightFiles:
    """The weight files of a component, as they were when this object was made.

    The digest is SHA-256 over the sorted lines [name, dtype, shape, SHA-256 of the bytes] of all tensors but the LM
    head and tables that follow from the configuration, with canonical names: a re-sharded, re-saved or bare copy of a
    model has the same digest.

    Attributes:
        name: Name of the component's folder, for messages.
        tensors: All tensors, in the order of their bytes.
        digest: The digest; "" until it is known.
    """

    def __init__(self, component: ComponentFolder, *, cache: Path | None = None) -> None:
        """Reads the headers, and the digest from the cache.

        Args:
            component: The component.
            cache: Folder for digests, keyed by path, size, mtime and inode of the files; None for no cache.

        Raises:
            CheckpointError: A file is damaged.
        """
        self.name = component.path.name
        self._states = {path: _state(path.resolve(), path.stat()) for path in component.weights}
        try:
            self.tensors = tuple(StoredTensor(path, entry) for path in self._states for entry in read_header(path))
        except SafetensorsError as error:
            raise CheckpointError(f"{self.name}: a file of its weights {error}; copy it again") from error
        self._cache_entry = (
            None if cache is None else cache / f"weights-{_sha256(str(component.path.resolve()).encode())[:24]}.json"
        )
        self.digest = self._cached()

    def read(
        self,
        sinks: Mapping[StoredTensor, Sink],
        *,
        threads: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Reads tensors for `sinks`. If the digest is not known yet, reads all tensors and computes it.

        Args:
            sinks: Consumers of the tensors that are needed.
            threads: Number of threads, None for the number of usable cores; 1 reads in the calling thread.
            cancelled: Checked before each chunk.

        Raises:
            CheckpointError: A file has changed since this object was made, or a tensor is stored twice.
            Cancelled: `cancelled` returned True.
        """
        hashers = {} if self.digest else self._hashers()
        wanted = [tensor for tensor in self.tensors if tensor in sinks or tensor in hashers]
        if hashers:
            total = sum(tensor.entry.end - tensor.entry.begin for tensor in hashers)
            log.info("%s: hashing %.1f GB of weights", self.name, total / 1e9)
        work: SimpleQueue[StoredTensor] = SimpleQueue()
        for tensor in _large_first(wanted):
            work.put(tensor)
        stop = Event()

        def run() -> None:
            buffer = memoryview(bytearray(CHUNK_BYTES))
            try:
                with contextlib.suppress(Empty):
                    while not stop.is_set():
                        tensor = work.get_nowait()
                        self._read(
                            tensor, buffer, _both(hashers.get(tensor), sinks.get(tensor)), stop.is_set, cancelled
                        )
            except BaseException:
                stop.set()
                raise

        count = threads or min(_MAX_THREADS, _usable_cores())
        if count == 1:
            run()
        else:
            with ThreadPoolExecutor(count, thread_name_prefix="weights") as pool:
                futures = [pool.submit(run) for _ in range(count)]
            for future in futures:
                future.result()
        self._check_unchanged()
        if hashers:
            self.digest = _combined({tensor.entry: hasher.hexdigest() for tensor, hasher in hashers.items()})
            self._remember()

    def refresh(self) -> bool:
        """Looks in the cache again, where another process may have put the digest; returns whether it is known."""
        self.digest = self.digest or self._cached()
        return bool(self.digest)

    def _read(
        self,
        tensor: StoredTensor,
        buffer: memoryview,
        sinks: Sequence[Sink],
        stopped: Callable[[], bool],
        cancelled: Callable[[], bool],
    ) -> None:
        entry = tensor.entry
        with tensor.path.open("rb", buffering=0) as file:
            if _state(tensor.path.resolve(), os.fstat(file.fileno())) != self._states[tensor.path]:
                raise self._changed(tensor.path)
            at = file.seek(entry.begin)
            while at < entry.end:
                if stopped():
                    return
                if cancelled():
                    raise Cancelled(f"{self.name}: its weights are no longer needed")
                chunk = buffer[: min(len(buffer), entry.end - at)]
                filled = 0
                while filled < len(chunk):
                    got = file.readinto(chunk[filled:])
                    if not got:
                        raise CheckpointError(
                            f"{self.name}: {tensor.path.name} ended inside {entry.name}; it changed while it was read"
                        )
                    filled += got
                for sink in sinks:
                    sink(chunk)
                at += filled

    def _hashers(self) -> "dict[StoredTensor, hashlib._Hash]":
        names: set[str] = set()
        hashers = {}
        for tensor in self.tensors:
            name = canonical_name(tensor.entry.name)
            if name is None:
                continue
            if name in names:
                raise CheckpointError(
                    f"{self.name}: tensor {name!r} occurs twice in the weights; copy the checkpoint again"
                )
            names.add(name)
            hashers[tensor] = hashlib.sha256()
        return hashers

    def _check_unchanged(self) -> None:
        for path, state in self._states.items():
            if not path.exists() or _state(path.resolve(), path.stat()) != state:
                raise self._changed(path)

    def _changed(self, path: Path) -> CheckpointError:
        return CheckpointError(f"{self.name}: {path.name} has changed since it was opened; start again")

    def _cached(self) -> str:
        """Returns the cached digest of these files; "" if there is none, or the entry is damaged or outdated."""
        if self._cache_entry is None:
            return ""
        try:
            kept = strict_json.parse(private.read_text(self._cache_entry))
        except (OSError, ValueError):
            return ""
        files = list(self._states.values())
        if not isinstance(kept, dict) or kept.get("version") != _CACHE_VERSION or kept.get("files") != files:
            return ""
        digest = kept.get("digest")
        return digest if isinstance(digest, str) and len(digest) == 64 else ""

    def _remember(self) -> None:
        """Writes a cache entry atomically. A failure only costs time at the next start: it is logged, not raised."""
        if self._cache_entry is None:
            return
        content = {"version": _CACHE_VERSION, "files": list(self._states.values()), "digest": self.digest}
        try:
            self._cache_entry.parent.mkdir(private.FOLDER_MODE, parents=True, exist_ok=True)
            atomic.write_bytes(self._cache_entry, json.dumps(content).encode(), private=True)
        except OSError as error:
            log.warning(
                "the digest of the weights cannot be cached in %s (%s), and the next start reads them again: make the "
                "folder writable, or %s",
                self._cache_entry.parent,
                error.strerror,
                STATE_REMEDY,
            )


def weights_digest(
    component: ComponentFolder,
    *,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> str:
    """Returns the digest of a component's tensors without loading them. See `WeightFiles`.

    Args:
        component: The component.
        cache: Folder for digests. A hit reads no weights.
        progress: Called with the number of bytes of each chunk, from several threads.
        cancelled: Checked before each chunk.

    Raises:
        CheckpointError: A file has changed while it was read, or a tensor is stored twice.
        Cancelled: `cancelled` returned True.
    """
    weights = WeightFiles(component, cache=cache)
    if not weights.digest:
        count = progress or (lambda _: None)
        weights.read({tensor: lambda chunk: count(len(chunk)) for tensor in weights.tensors}, cancelled=cancelled)
    return weights.digest


def canonical_name(name: str) -> str | None:
    """Returns the name of a tensor without its `model.` prefix.

    It is None for what changes no result: the LM head, which no encoder runs, and tables that follow from the
    configuration.
    """
    bare = name.removeprefix(_PREFIX)
    return None if bare.startswith(_LM_HEAD) or _DERIVED.search(bare) else bare


def _both(hasher: "hashlib._Hash | None", sink: Sink | None) -> tuple[Sink, ...]:
    return tuple(one for one in (None if hasher is None else hasher.update, sink) if one is not None)


def _large_first(tensors: Sequence[StoredTensor]) -> Iterator[StoredTensor]:
    """Yields large tensors first, largest first, and the others in the order of the files."""
    sizes = {tensor: tensor.entry.end - tensor.entry.begin for tensor in tensors}
    limit = sum(sizes.values()) // _LARGE_PART
    large = sorted((tensor for tensor in tensors if sizes[tensor] > limit), key=lambda tensor: -sizes[tensor])
    yield from large
    yield from (tensor for tensor in tensors if sizes[tensor] <= limit)


def _combined(digests: Mapping[TensorEntry, str]) -> str:
    lines = {
        canonical_name(entry.name) or "": [canonical_name(entry.name), entry.dtype, list(entry.shape), digest]
        for entry, digest in digests.items()
    }
    return _sha256(b"\n".join(_canonical(lines[name]) for name in sorted(lines)))


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _state(path: Path, stat: os.stat_result) -> list[object]:
    return [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
