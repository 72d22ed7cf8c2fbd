"""Keeps received image files by digest, so that a client can send a file once and refer to it later."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from zrelay_shared.errors import NotFound, invalid
from zrelay_shared.pictures import Picture, decode_picture
from zrelay_vision.images.cache import ByteCache


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image of a request.

    Attributes:
        field: Its path in the request, for refusals.
        data: The file, or None if the request names a file that was sent before.
        sha256: Digest (hex) of a file that was sent before.
        size: Size in bytes that the request states for such a file, 0 if it states none.
    """

    field: str
    data: bytes | None
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright RGB image, the SHA-256 (hex) of its file, and who sent it (`zrelay_shared.callers.Caller.owner`)."""

    sha256: str
    width: int
    height: int
    image: Picture
    owner: str = ""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A file that was decoded before, with the size in pixels of its upright image, and who sent it."""

    sha256: str
    width: int
    height: int
    data: bytes
    owner: str = ""


class ImageStore:
    """Image files by owner and digest, bounded in bytes. Safe to use from any thread."""

    def __init__(self, max_bytes: int, max_pixels: int) -> None:
        """Makes an empty store.

        Args:
            max_bytes: Bytes of files to keep.
            max_pixels: Pixels that one image may have.
        """
        self._files: ByteCache[str, StoredImage] = ByteCache(max_bytes)
        self._max_pixels = max_pixels

    def open(
        self, ref: ImageRef, cancelled: Callable[[], bool] = lambda: False, owner: str = ""
    ) -> tuple[StoredImage, DecodedImage | None]:
        """Returns the stored file of an image. Decodes and stores it first if the request contains new bytes.

        Args:
            ref: The image.
            cancelled: Returns whether the caller has left.
            owner: Who sends the request. Files that others sent are unknown to it.

        Returns:
            The file, and its pixels if they had to be decoded.

        Raises:
            InvalidArgument: The file is not an image that `decode_picture` accepts, or has another size (CONTENT_SIZE).
            NotFound: No file of this owner with this digest is stored (CONTENT_UNKNOWN).
            Cancelled: The caller has left.
        """
        if ref.data is None:
            return self._find(ref, owner), None
        sha256 = hashlib.sha256(ref.data).hexdigest()
        if (known := self._files.get(sha256, owner)) is not None:
            return known, None
        image = decode_picture(ref.data, max_pixels=self._max_pixels, field=ref.field, cancelled=cancelled)
        stored = StoredImage(sha256, image.width, image.height, ref.data, owner)
        self._files.put(sha256, stored, len(ref.data), owner)
        return stored, DecodedImage(sha256, image.width, image.height, image, owner)

    def decode(self, stored: StoredImage, field: str, cancelled: Callable[[], bool] = lambda: False) -> DecodedImage:
        """Decodes a stored file again. Raises Cancelled if the caller has left."""
        image = decode_picture(stored.data, max_pixels=self._max_pixels, field=field, cancelled=cancelled)
        return DecodedImage(stored.sha256, image.width, image.height, image, stored.owner)

    def _find(self, ref: ImageRef, owner: str) -> StoredImage:
        stored = self._files.get(ref.sha256, owner)
        if stored is None:
            raise NotFound(
                f"{ref.field}: this service has no image with SHA-256 {ref.sha256}, or dropped it; send the file",
                field=ref.field,
                reason="CONTENT_UNKNOWN",
                metadata={"sha256": ref.sha256},
            )
        if ref.size and ref.size != len(stored.data):
            got = f"{ref.size}, the size of another file"
            raise invalid(f"{ref.field}.size_bytes", f"{len(stored.data)}", got, reason="CONTENT_SIZE")
        return stored
