"""An image to start from decides about the size, if the caller sets none."""

import json
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import Completed, run_zrelay
from zrelay_client import AsyncClient, GenerateOptions
from zrelay_client.events import Event, Notice
from zrelay_client.info import Limits
from zrelay_client.start_size import start_size
from zrelay_client.testing import FakeServices
from zrelay_shared import exits

STEPS = ("--num-inference-steps", "2")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServices]:
    with FakeServices() as services:
        yield services


@pytest.fixture
async def client(fake: FakeServices) -> Any:
    async with AsyncClient(encoder=fake.endpoints["encoder"], generator=fake.endpoints["generator"]) as client:
        yield client


def png(width: int, height: int) -> bytes:
    """The header of a PNG file, which is all that the client and the fake generator read."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))

    def chunk(data: bytes) -> bytes:
        return (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")

    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + zlib.compress(bytes(8))) + chunk(b"IEND")


async def size_of(client: AsyncClient, picture: bytes | None, **options: Any) -> tuple[int, int, list[str]]:
    events: list[Event] = []
    chosen = GenerateOptions(image=picture, num_inference_steps=2, **options)
    result = await client.generate("a fox", chosen, on_event=events.append)
    notices = [event.message for event in events if isinstance(event, Notice) and event.kind == "size"]
    assert (result.images[0].width, result.images[0].height) == (result.sampling.width, result.sampling.height)
    return result.sampling.width, result.sampling.height, notices


async def test_the_picture_decides_where_no_size_is_set(client: AsyncClient) -> None:
    default = (await client.generator_info()).defaults
    most = default.width * default.height
    assert (await size_of(client, None))[:2] == (default.width, default.height)
    assert await size_of(client, png(64, 32)) == (64, 32, [])
    width, height, notices = await size_of(client, png(70, 33))
    assert (width, height) == (64, 32) and "has 70 x 33 pixels: the new image is 64 x 32" in notices[0]
    width, height, notices = await size_of(client, png(8000, 2000))
    assert width * height <= most and 3.5 < width / height < 4.5 and len(notices) == 1


async def test_what_the_caller_sets_counts(client: AsyncClient) -> None:
    picture = png(8000, 2000)
    assert await size_of(client, picture, width=128, height=128) == (128, 128, [])
    assert (await size_of(client, picture, width=256))[:2] == (256, 64)
    assert (await size_of(client, picture, height=32))[:2] == (128, 32)
    assert (await size_of(client, picture, height=2048))[:2] == (2048, 2048)  # as far as the limits allow


async def test_every_call_takes_the_size(client: AsyncClient) -> None:
    options = GenerateOptions(image=png(72, 32), num_inference_steps=2)
    streamed = [event async for event in client.stream("a fox", options)]
    assert [event.kind for event in streamed if isinstance(event, Notice)] == ["size"]
    notices: list[tuple[int, str]] = []

    def on_event(index: int, event: Event) -> None:
        if isinstance(event, Notice):
            notices.append((index, event.kind))

    outcomes = [one async for one in client.generate_many("a fox", options, seeds=[1, 2], on_event=on_event)]
    sizes = {(one.result.sampling.width, one.result.sampling.height) for one in outcomes if one.result is not None}
    assert (len(outcomes), sizes, sorted(notices)) == (2, {(64, 32)}, [(0, "size"), (1, "size")])
    received: list[Notice] = []
    job = await client.submit("a fox", options, on_notice=received.append)
    assert [notice.kind for notice in received] == ["size"]
    images = await client.jobs.fetch(job.job_id)
    assert [(image.width, image.height) for image in images] == [(64, 32)]


def generate(fake: FakeServices, *args: str) -> Completed:
    flags = [part for role in ("encoder", "generator") for part in (f"--{role}", fake.endpoints[role])]
    return run_zrelay("generate", *args, *STEPS, *flags)


def test_the_command_names_the_size(fake: FakeServices, empty_home: Path) -> None:
    Path("wide.png").write_bytes(png(72, 32))
    ran = generate(fake, "a fox", "--image", "wide.png", "-o", "a.png", "--json")
    values = json.loads(ran.stdout)
    assert (values["sampling"]["width"], values["sampling"]["height"]) == (64, 32)
    assert len(values["notices"]) == 1 and f"note: {values['notices'][0]}" in ran.stderr
    for more, field in ((("--count", "2", "-o", "b/"), "files"), (("--detach",), "jobs")):
        ran = generate(fake, "a fox", "--image", "wide.png", *more, "--json")
        assert ran.returncode == exits.OK, ran.stderr
        again = json.loads(ran.stdout)
        assert again["notices"] == values["notices"] and again[field]
        assert ran.stderr.count("has 72 x 32 pixels") == 1


def test_configuration_and_flags_count_before_the_picture(
    fake: FakeServices, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("wide.png").write_bytes(png(64, 32))
    monkeypatch.setenv("ZRELAY_GENERATE_WIDTH", "128")
    monkeypatch.setenv("ZRELAY_GENERATE_HEIGHT", "96")
    ran = generate(fake, "a fox", "--image", "wide.png", "-o", "a.png", "--json")
    sampling = json.loads(ran.stdout)["sampling"]
    assert (sampling["width"], sampling["height"]) == (128, 96)
    ran = generate(fake, "a fox", "--image", "wide.png", "-o", "b.png", "--json", "--size", "48x48")
    sampling = json.loads(ran.stdout)["sampling"]
    assert (sampling["width"], sampling["height"]) == (48, 48)


def test_lines_of_a_prompts_file_have_pictures_of_their_own(fake: FakeServices, empty_home: Path) -> None:
    lines = []
    for index, size in enumerate([(64, 32), (32, 64), (72, 32)]):
        Path(f"{index}.png").write_bytes(png(*size))
        lines.append({"prompt": "a fox", "seed": index, "image": f"{index}.png"})
    lines.append({"prompt": "a fox", "seed": 9, "image": "0.png", "size": "48x48"})
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = generate(fake, "--prompts", "p.jsonl", "-o", "out/", "--json")
    assert ran.returncode == exits.OK, ran.stderr
    records = sorted((json.loads(line) for line in ran.stdout.splitlines()), key=lambda record: record["line"])
    sizes = [(record["sampling"]["width"], record["sampling"]["height"]) for record in records]
    assert sizes == [(64, 32), (32, 64), (64, 32), (48, 48)]
    assert [len(record["notices"]) for record in records] == [0, 0, 1, 0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_picture_from_a_pipe_has_a_size(fake: FakeServices, empty_home: Path) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(png(64, 32)))
    writer.start()
    ran = generate(fake, "a fox", "--image", "pipe", "-o", "a.png", "--json")
    writer.join()
    assert ran.returncode == exits.OK, ran.stderr
    assert json.loads(ran.stdout)["sampling"]["width"] == 64


def test_sizes_and_limits_at_their_extremes_take_no_time() -> None:
    largest = (1 << 32) - 1
    every = Limits(
        size_multiple=1,
        min_side=1,
        max_side=largest,
        max_pixels=1,
        max_steps=1,
        max_images=1,
        text_limit=1,
        embeds_width=1,
    )
    assert start_size((1, (1 << 31) - 1), (largest, largest), every) == (1, 1)
    assert start_size((1, 1), (largest, largest), replace(every, min_side=largest)) == (largest, largest)
    wide = replace(every, min_side=64, size_multiple=16, max_pixels=1 << 20)
    assert start_size(((1 << 31) - 1, 1), (1024, 1024), wide) == (16384, 64)
