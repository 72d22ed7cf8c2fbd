"""Reads the settings that an image file was made with, from PNG, JPEG or WebP, without an imaging library."""

import math
from collections.abc import Iterator
from typing import Any

from zrelay_shared import strict_json
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.exif import MAX_METADATA_BYTES, read_user_comment
from zrelay_shared.image_container import (
    ByteWindow,
    DamagedImageError,
    ImagePart,
    format_of,
    keyword_of,
    read_header,
    read_parts,
    read_text,
)

_KEYWORD = b"zrelay"
_MAX_TEXT_BYTES = 2 * MAX_METADATA_BYTES
"""Bytes of the texts of one file that are looked at. It bounds the time for a file that is made to take long."""
_LEAST_TEXT_BYTES = 4096
"""What a text counts at least, so that the number of texts is bounded too."""
_MAX_DEPTH, _MAX_VALUES, _MAX_NAME_CHARS = 32, 10_000, 1024
"""Limits of provenance: levels of JSON, values, and characters of a name. A generator writes at most 6 levels, about
300 values and names of labels of 1,024 characters."""
_CODE_BYTES = 12
"""Bytes before the JSON in a UserComment, at most: the character code, a byte order mark, the first zero byte."""
_EXIF_SEGMENT = b"Exif\0\0"


def read_provenance(data: bytes) -> dict[str, Any] | None:
    """Returns the provenance of an image file that zrelay wrote, None if the file has none.

    Text of other programs is no provenance, also if it is JSON. Provenance is found after other programs saved the
    file again, if they kept its text: as iTXt, tEXt, zTXt or eXIf chunk of a PNG, else as EXIF UserComment in any
    character code and byte order.

    Raises:
        InvalidArgument: IMAGE_INVALID, the file is no PNG, JPEG or WebP, or it or its provenance is damaged.
    """
    format = format_of(data)
    if format is None:
        raise _refusal("a PNG, JPEG or WebP file", "something else")
    window = ByteWindow.of_bytes(data)
    try:
        left = _MAX_TEXT_BYTES
        for text in _texts(window, format):
            if (provenance := _parse(text)) is not None:
                return provenance
            left -= max(len(text), _LEAST_TEXT_BYTES)
            if left <= 0:
                break
        read_header(window)
        complete = _is_complete(data, window, format)
    except _DamagedProvenance as error:
        raise _refusal("an image as zrelay wrote it", f"a damaged one ({error})", "use the original file") from error
    except DamagedImageError as error:
        raise _refusal("a complete image file", f"a damaged one ({error})", "copy it again") from error
    if not complete:
        raise _refusal("a complete image file", "one that is cut off", "copy it again")
    return None


def _parse(text: bytes) -> dict[str, Any] | None:
    """Returns provenance from its JSON, None for any other text. Raises DamagedImageError.

    The JSON is ASCII. Its characters are the same bytes in every code that EXIF allows, and UTF-16 puts a zero byte
    beside each of them.
    """
    plain = text.replace(b"\0", b"")
    start = plain.find(b"{", 0, _CODE_BYTES)
    if start < 0:
        return None
    if b'"zrelay"' not in plain or b'"version"' not in plain:
        return None
    try:
        content = strict_json.parse(plain[start:])
    except strict_json.JsonSyntaxError:
        return None
    except strict_json.JsonError as error:
        raise _DamagedProvenance(f"zrelay data that {error}") from None
    if not isinstance(content, dict):
        return None
    if type(content.get("version")) is not int or not isinstance(content.get("zrelay"), str):
        return None
    _check_values(content)
    return content


def _check_values(provenance: dict[str, Any]) -> None:
    """Checks that provenance can be shown in bounded time and space, as text and as JSON. Raises DamagedImageError."""
    level, count = [provenance], 0
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for name in value:
                    _check_text(name)
                    if len(name) > _MAX_NAME_CHARS:
                        raise _damaged(f"a name of more than {_MAX_NAME_CHARS} characters")
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                _check_text(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise _damaged("a number that is not finite")
        count += len(inner)
        if count > _MAX_VALUES:
            raise _damaged(f"more than {_MAX_VALUES} values")
        level = inner
    if level:
        raise _damaged(f"more than {_MAX_DEPTH} levels")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _damaged("half a surrogate pair") from None


class _DamagedProvenance(DamagedImageError):
    """The provenance is not what zrelay writes, though the file may be whole."""


def _damaged(what: str) -> DamagedImageError:
    return _DamagedProvenance(f"zrelay data with {what}")


def _texts(window: ByteWindow, format: str) -> Iterator[bytes]:
    """Yields the texts that may be provenance."""
    joined = bytearray()
    for part in read_parts(window, format):
        if format == "PNG" and keyword_of(window, part) == _KEYWORD:
            yield read_text(window, part)
        elif (exif := _exif_of(window, part, format)) is not None:
            if (comment := read_user_comment(exif)) is not None:
                yield comment
            joined += exif.removeprefix(_EXIF_SEGMENT)[: MAX_METADATA_BYTES - len(joined)]
    # A JPEG continues long EXIF data in further segments.
    if format == "JPEG" and (comment := read_user_comment(bytes(joined))) is not None:
        yield comment


def _exif_of(window: ByteWindow, part: ImagePart, format: str) -> bytes | None:
    """Returns the EXIF data of a part, None for other parts."""
    if part.kind != {"PNG": b"eXIf", "JPEG": b"\xe1", "WebP": b"EXIF"}[format]:
        return None
    data = window.read(part.body, min(part.size, MAX_METADATA_BYTES))
    return data if format != "JPEG" or data.startswith(_EXIF_SEGMENT) else None


def _is_complete(data: bytes, window: ByteWindow, format: str) -> bool:
    """Returns whether the file has the end of its picture."""
    last = None
    for part in read_parts(window, format):
        if format == "WebP" and part.kind in (b"VP8 ", b"VP8L", b"ANMF") and part.body + part.size > len(data):
            return False
        last = part
    if last is None or format == "WebP":
        return True
    return last.kind == b"IEND" if format == "PNG" else data.rfind(b"\xff\xd9") > last.start


def _refusal(expected: str, got: str, remedy: str = "name an image that `zrelay generate` wrote") -> InvalidArgument:
    return InvalidArgument(
        f"image: expected {expected}, got {got}: {remedy}",
        field="image",
        reason="IMAGE_INVALID",
    )
