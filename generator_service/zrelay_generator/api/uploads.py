"""Contents that are sent before they are used: received in pieces, compared with their name, kept whole or not."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

from zrelay.v1 import content_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay_generator.api.contents import MAX_CONTENT_BYTES, parse_digest
from zrelay_generator.store.blobs import IncomingContent
from zrelay_generator.store.protocol import JobStore
from zrelay_shared.errors import DeadlineExceeded, InvalidArgument, PayloadCorrupt, QuotaExceeded
from zrelay_shared.wire import Parcel

_FIELD = "content"
_AT_ONCE = 16
_PIECE_S = 60.0
"""Seconds until the next piece: a caller that has stopped gives its place to others."""


class Uploads:
    """Receives contents into the store."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._running = 0

    async def receive(self, parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]]) -> pb.UploadBlobResponse:
        """One content. Raises InvalidArgument (CONTENT_INVALID, CONTENT_SIZE), PayloadCorrupt, QuotaExceeded,
        DeadlineExceeded. Answers before the last piece where the content is known."""
        if self._running >= _AT_ONCE:
            raise QuotaExceeded(
                f"{_AT_ONCE} uploads run here already; try again in 2 s",
                metadata={"uploads": _AT_ONCE},
                retry_after_s=2.0,
            )
        self._running += 1
        try:
            return await self._receive(aiter(parcels))
        finally:
            self._running -= 1

    async def _receive(self, parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]]) -> pb.UploadBlobResponse:
        first = await self._next(parcels)
        if first is None:
            raise InvalidArgument("content: expected a digest and data, got no message", field=_FIELD)
        sha256 = parse_digest(first.content, _FIELD)
        known = await self._store.known_size(sha256)
        if known is not None:
            return _response(sha256, known, existed=True)
        incoming = await self._store.incoming()
        try:
            size = await self._pieces(incoming, first, parcels)
            await self._store.keep_incoming(incoming, sha256, size)
        finally:
            await self._store.drop_incoming(incoming)
        return _response(sha256, size, existed=False)

    async def _pieces(
        self,
        incoming: IncomingContent,
        first: pb.UploadBlobRequest,
        parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]],
    ) -> int:
        """Writes every piece; the bytes in all."""
        sha256, stated = first.content.sha256, first.content.size_bytes
        digest, size = hashlib.sha256(), 0
        piece: pb.UploadBlobRequest | None = first
        while piece is not None:
            size += len(piece.data)
            if size > (stated or MAX_CONTENT_BYTES):
                raise _size_refusal(f"{stated} bytes" if stated else f"at most {MAX_CONTENT_BYTES} bytes", "more")
            digest.update(piece.data)
            await self._store.write_incoming(incoming, piece.data)
            piece = await self._next(parcels)
        if stated and size != stated:
            raise _size_refusal(f"{stated} bytes", f"{size}")
        if digest.hexdigest() != sha256:
            raise PayloadCorrupt(
                f"content: expected bytes of the digest {sha256}, got those of {digest.hexdigest()}: send it again",
                field=f"{_FIELD}.sha256",
                metadata={"expected": sha256, "got": digest.hexdigest()},
            )
        return size

    async def _next(self, parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]]) -> pb.UploadBlobRequest | None:
        try:
            parcel = await asyncio.wait_for(anext(parcels, None), _PIECE_S)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"no piece of the content came for {_PIECE_S:.0f} s: send it again", metadata={"stage": "upload"}
            ) from error
        return None if parcel is None else parcel.message


def _size_refusal(expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(
        f"content: expected {expected}, got {got}",
        field=f"{_FIELD}.size_bytes",
        reason="CONTENT_SIZE",
        metadata={"expected": expected, "got": got},
    )


def _response(sha256: str, size: int, *, existed: bool) -> pb.UploadBlobResponse:
    content = content_pb2.ContentRef(sha256=sha256, size_bytes=size)
    return pb.UploadBlobResponse(content=content, existed=existed)
