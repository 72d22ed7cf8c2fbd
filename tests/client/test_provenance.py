"""What image files say of themselves, as PIL writes it and we read it."""

import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zrelay_client import InvalidArgument, read_provenance
from zrelay_shared import exits

from .conftest import Zrelay

SAID = {"prompt": "a naïve fox", "seed": 7}
TEXT = json.dumps(SAID)


def written(format: str, *, compressed: bool = False) -> bytes:
    buffer, image = io.BytesIO(), Image.new("RGB", (8, 8))
    if format == "PNG":
        chunks = PngInfo()
        chunks.add_text("Software", "other")
        chunks.add_itxt("zrelay", TEXT, zip=compressed)
        image.save(buffer, format, pnginfo=chunks)
    else:
        exif = Image.Exif()
        exif[0x0131] = "another tag"
        exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + TEXT.encode("ascii")
        image.save(buffer, format, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_read_from_every_format(format: str) -> None:
    assert read_provenance(written(format)) == SAID


def test_read_compressed_text_but_not_a_bomb() -> None:
    assert read_provenance(written("PNG", compressed=True)) == SAID
    body = b"zrelay\0\1\0\0\0" + zlib.compress(b" " * (1 << 24))
    bomb = written("PNG")[:33] + struct.pack(">I", len(body)) + b"iTXt" + body + b"\0\0\0\0"
    with pytest.raises(InvalidArgument):
        read_provenance(bomb)


def test_pictures_of_others_say_nothing() -> None:
    for format in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, format)
        assert read_provenance(buffer.getvalue()) is None


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_cut_files_never_crash(format: str) -> None:
    data = written(format)
    for end in range(len(data)):
        try:
            assert read_provenance(data[:end]) in (None, SAID)
        except InvalidArgument as error:
            assert error.reason == "IMAGE_INVALID"


async def test_info_shows_it(zrelay: Zrelay) -> None:
    Path("fox.png").write_bytes(written("PNG"))
    ran = await zrelay("info", "fox.png")
    assert "prompt       a naïve fox" in ran.stdout
    assert json.loads((await zrelay("info", "fox.png", "--json")).stdout)["provenance"] == SAID
    Path("no.txt").write_text("hello")
    assert (await zrelay("info", "no.txt")).returncode == exits.REFUSED
    assert (await zrelay("info", "none.png")).returncode == exits.LOCAL_FILE
