"""Image files that were sent, held by their digest for as long as there is room, so that a name is enough next time."""

import hashlib
from dataclasses import dataclass

from zrelay_shared.errors import InvalidArgument, NotFound
from zrelay_vision.byte_cache import ByteCache
from zrelay_vision.images import Picture, decode


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image of a call: the file, or (`data` None) the SHA-256 of one sent before. `field` is its path in the
    request; `size` what the caller says it has in bytes, 0 for nothing said."""

    field: str
    data: bytes | None
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A file that was decoded once, and the size in pixels that its upright picture has."""

    sha256: str
    width: int
    height: int
    data: bytes


class PictureStore:
    """Files by digest, bounded in bytes. May be used from any thread."""

    def __init__(self, max_bytes: int, max_pixels: int) -> None:
        self._files: ByteCache[str, StoredPicture] = ByteCache(max_bytes)
        self._max_pixels = max_pixels

    def open(self, ref: ImageRef) -> tuple[StoredPicture, Picture | None]:
        """What a reference means; with the pixels where they had to be decoded to know it.

        Raises InvalidArgument (as `images.decode`; CONTENT_SIZE), NotFound (CONTENT_UNKNOWN).
        """
        if ref.data is None:
            return self._known(ref), None
        sha256 = hashlib.sha256(ref.data).hexdigest()
        if (known := self._files.get(sha256)) is not None:
            return known, None
        image = decode(ref.data, max_pixels=self._max_pixels, field=ref.field)
        stored = StoredPicture(sha256, image.width, image.height, ref.data)
        self._files.put(sha256, stored, len(ref.data))
        return stored, Picture(sha256, image.width, image.height, image)

    def picture(self, stored: StoredPicture, field: str) -> Picture:
        """The pixels of a stored file, decoded again."""
        image = decode(stored.data, max_pixels=self._max_pixels, field=field)
        return Picture(stored.sha256, image.width, image.height, image)

    def _known(self, ref: ImageRef) -> StoredPicture:
        stored = self._files.get(ref.sha256)
        if stored is None:
            raise NotFound(
                f"{ref.field}: no image with SHA-256 {ref.sha256} is held here (any more): send the file itself",
                field=ref.field,
                reason="CONTENT_UNKNOWN",
                metadata={"sha256": ref.sha256},
            )
        if ref.size and ref.size != len(stored.data):
            raise InvalidArgument(
                f"{ref.field}.size_bytes: expected {len(stored.data)}, got {ref.size}: it is another file's",
                field=f"{ref.field}.size_bytes",
                reason="CONTENT_SIZE",
            )
        return stored
