"""The provenance in image files of zrelay, as PIL and other programs write it."""

import io
import json
import re
import struct
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.helpers.hostile_pictures import png_chunk
from tests.helpers.refusals import refused
from zrelay_client import InvalidArgument, read_provenance
from zrelay_shared import exits

from .conftest import Zrelay

pytestmark = pytest.mark.hostile

SAID = {"prompt": "a naïve fox", "version": 1, "zrelay": "0.1.0"}
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


def exif_with(comment: bytes, order: str = "<") -> bytes:
    """Returns a TIFF structure with a UserComment."""
    first = struct.pack(order + "HHHIII", 1, 0x8769, 4, 1, 26, 0)
    inner = struct.pack(order + "HHHIII", 1, 0x9286, 7, len(comment), 44, 0)
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + first + inner + comment


def saved(format: str, exif: bytes = b"", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format, **({"exif": b"Exif\0\0" + exif} if exif else {}), **options)
    return buffer.getvalue()


CODES = {
    "ASCII": lambda text: b"ASCII\0\0\0" + text.encode(),
    "undefined": lambda text: bytes(8) + text.encode(),
    "JIS": lambda text: b"JIS\0\0\0\0\0" + text.encode("iso2022_jp"),
    "UNICODE, little-endian": lambda text: b"UNICODE\0" + text.encode("utf-16-le"),
    "UNICODE, big-endian": lambda text: b"UNICODE\0" + text.encode("utf-16-be"),
    "UNICODE with a mark": lambda text: b"UNICODE\0" + text.encode("utf-16"),
    "none": lambda text: text.encode(),
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", CODES)
def test_read_after_another_program_saved_the_file(format: str, order: str, code: str) -> None:
    assert read_provenance(saved(format, exif_with(CODES[code](TEXT), order))) == SAID
    assert read_provenance(saved(format, exif_with(CODES[code]("steps: 20, sampler: Euler"), order))) is None
    assert read_provenance(saved(format, exif_with(CODES[code]('{"Software": "other"}'), order))) is None


@pytest.mark.parametrize("compressed", [False, True])
def test_read_from_other_text_chunks(compressed: bool) -> None:
    chunks = PngInfo()
    chunks.add_text("zrelay", "not ours")
    chunks.add_text("zrelay", TEXT, zip=compressed)
    assert read_provenance(saved("PNG", pnginfo=chunks)) == SAID


def test_read_from_several_exif_segments() -> None:
    clean = saved("JPEG")
    exif = b"Exif\0\0" + exif_with(b"ASCII\0\0\0" + TEXT.encode())

    def segment(body: bytes) -> bytes:
        return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body

    other = segment(b"Exif\0\0" + exif_with(b"ASCII\0\0\0shot with my phone"))
    assert read_provenance(clean[:2] + other + segment(exif) + clean[2:]) == SAID
    continued = segment(exif[:70]) + segment(b"Exif\0\0" + exif[70:])
    assert read_provenance(clean[:2] + continued + clean[2:]) == SAID


FOREIGN = {
    "text": b"ASCII\0\0\0shot with my phone",
    "object": b'ASCII\0\0\0{"version": 1}',
    "version as text": b'ASCII\0\0\0{"version": "1", "zrelay": "0.1.0"}',
    "list": b'ASCII\0\0\0["version", "zrelay"]',
    "deep": b"ASCII\0\0\0{" + b"[" * 30_000,
    "number": b'ASCII\0\0\0{"version": ' + b"9" * 30_000 + b"}",
    "empty": b"",
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", FOREIGN)
def test_text_of_other_programs_is_no_provenance(format: str, name: str) -> None:
    assert read_provenance(saved(format, exif_with(FOREIGN[name]))) is None


@pytest.mark.parametrize("exif", [b"", b"II", b"MM\0*\0\0\0\xff", b"XX*\0" + bytes(20), b"II*\0\x08\0\0\0\xff\xff"])
def test_a_picture_with_broken_exif_is_whole(exif: bytes) -> None:
    for format in ("JPEG", "WEBP"):
        assert read_provenance(saved(format, exif or b"\0")) is None


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_picture_of_others_is_named_as_such(format: str) -> None:
    data = saved(format, exif_with(b"ASCII\0\0\0shot with my phone"))
    end = {"PNG": len(data) - 12, "JPEG": len(data) - 2, "WEBP": data.find(b"VP8 ") + 20}[format]
    for cut in (14, end):
        refused(partial(read_provenance, data[:cut]), reason="IMAGE_INVALID", match="damaged|cut off")


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


def in_format(format: str, text: str) -> bytes:
    """Returns a picture with a text in the place of provenance."""
    if format == "PNG":
        chunks = PngInfo()
        chunks.add_itxt("zrelay", text)
        return saved("PNG", pnginfo=chunks)
    return saved(format, exif_with(b"ASCII\0\0\0" + text.encode("ascii")))


def with_value(value: str) -> str:
    """Returns provenance as JSON with one more value, which is JSON already."""
    return TEXT[:-1] + f', "labels": {value}}}'


HOSTILE = {
    "deep": (with_value("[" * 40 + "]" * 40), "more than 32 levels"),
    "deeper": (with_value("[" * 200 + "]" * 200), "more than 64 levels"),
    "too deep to be read": (with_value("[" * 25_000 + "]" * 25_000), "more than 64 levels"),
    "lone surrogate": (with_value(r'"\ud800"'), "half of a surrogate pair"),
    "lone surrogate in a name": (with_value(r'{"\udfff": 1}'), "half of a surrogate pair"),
    "many values": (with_value("[" + "0," * 20_000 + "0]"), "more than 10000 values"),
    "long name": (with_value(f'{{"{"x" * 2000}": 1}}'), "a name of more than 1024 characters"),
    "NaN": (with_value("NaN"), "has NaN"),
    "infinity": (with_value("1e999"), "the number 1e999, which is too large"),
    "long number": (with_value("1" + "0" * 400), "a number of 401 characters"),
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_provenance_is_damaged(format: str, name: str) -> None:
    text, what = HOSTILE[name]
    refused(lambda: read_provenance(in_format(format, text)), reason="IMAGE_INVALID", match=what)


def test_provenance_as_large_as_a_generator_writes_is_read() -> None:
    """Prompts and labels of a PNG may have 1 MiB, beside which the other values stand."""
    provenance = {**SAID, "prompt": "x" * (1 << 20)}
    assert read_provenance(in_format("PNG", json.dumps(provenance))) == provenance


def test_exif_that_points_to_itself_takes_linear_time() -> None:
    """Each of 60,000 entries points to a directory of as many entries: 3.6 billion in all."""
    entries = struct.pack("<HHII", 0x8769, 4, 1, 8) * 60_000
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + entries
    clean = saved("PNG")
    chunk = png_chunk(b"eXIf", exif)
    started = time.process_time()
    assert read_provenance(clean[:33] + chunk * 10 + clean[33:]) is None
    assert time.process_time() - started < 10, "hours, if every entry were followed"


def test_texts_of_a_file_have_one_bound() -> None:
    """Each text is decompressed and parsed: 64 texts of 2 MiB took 20 s of CPU, the first few half a second."""
    text = '{"zrelay": "0.1.0", "version": "none", "a": [' + "1," * 900_000 + "1]}"
    packed = png_chunk(b"zTXt", b"zrelay\0\0" + zlib.compress(text.encode()))
    clean = saved("PNG")
    started = time.process_time()
    assert read_provenance(clean[:33] + packed * 64 + clean[33:]) is None
    assert time.process_time() - started < 5


async def test_info_of_hostile_files(zrelay: Zrelay) -> None:
    Path("deep.png").write_bytes(in_format("PNG", HOSTILE["deep"][0]))
    for flags in ((), ("--json",)):
        ran = await zrelay("info", "deep.png", *flags)
        assert ran.returncode == exits.REFUSED and "damaged" in ran.stderr
    lists = '{"a": ' + "[" * 26 + '{"b": 1}' + "]" * 26 + "}"
    Path("lists.png").write_bytes(in_format("PNG", with_value(lists)))
    ran = await zrelay("info", "lists.png")
    assert ran.returncode == exits.OK and re.search(r"\bb +1\n", ran.stdout)
    text = json.dumps({**SAID, "prompt": "one line\n" * 60_000, "labels": {"end": "here"}})
    Path("long.png").write_bytes(in_format("PNG", text))
    ran = await zrelay("info", "long.png")
    assert ran.returncode == exits.OK and len(ran.stdout) < 110_000 and "--json prints all of it" in ran.stdout
    assert json.loads((await zrelay("info", "long.png", "--json")).stdout)["provenance"] == json.loads(text)


async def test_info_of_a_file_without_an_end(zrelay: Zrelay) -> None:
    ran = await zrelay("info", "/dev/zero")
    assert ran.returncode == exits.REFUSED and "at most 268435456 bytes" in ran.stderr


async def test_info_shows_it(zrelay: Zrelay) -> None:
    Path("fox.png").write_bytes(written("PNG"))
    ran = await zrelay("info", "fox.png")
    assert "prompt       a naïve fox" in ran.stdout
    assert json.loads((await zrelay("info", "fox.png", "--json")).stdout)["provenance"] == SAID
    Path("other.jpg").write_bytes(saved("JPEG", exif_with(b'ASCII\0\0\0{"Software": "other"}')))
    ran = await zrelay("info", "other.jpg")
    assert ran.returncode == exits.OK and "contains no zrelay data" in ran.stdout and "Software" not in ran.stdout
    Path("no.txt").write_text("hello")
    assert (await zrelay("info", "no.txt")).returncode == exits.REFUSED
    assert (await zrelay("info", "none.png")).returncode == exits.LOCAL_FILE
