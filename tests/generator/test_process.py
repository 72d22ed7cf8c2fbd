"""The generator as a process: it starts, paints, drains and ends; and what it says when it cannot start."""

import asyncio
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.helpers.polling import eventually, until_async
from zrelay.v1 import generator_pb2 as pb
from zrelay_generator.store.retention import Retention
from zrelay_generator.store.sqlite import open_store
from zrelay_shared import exits
from zrelay_shared.channels import dial
from zrelay_shared.rpc import Stub

from .fixture_types import RequestOf
from .generator_client import SERVICE

START_S = 180.0
"""Most seconds that a process may take to start or to end, on a machine that is busy."""


async def start(*flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zrelay_generator", *flags, stderr=asyncio.subprocess.PIPE
    )


async def address_in(file: Path) -> str:
    await eventually(file.exists, "the address is written", START_S)
    return file.read_text()


async def ready(stub: Stub) -> pb.GeneratorServiceGetInfoResponse:
    async def info() -> pb.GeneratorServiceGetInfoResponse | None:
        request, kind = pb.GeneratorServiceGetInfoRequest(), pb.GeneratorServiceGetInfoResponse
        message = (await stub.call("GetInfo", request, kind)).message
        return message if message.ready else None

    return await until_async(info, "the model is loaded", START_S)


async def test_a_process_paints_and_drains(
    demo: Path, tmp_path: Path, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    file = tmp_path / "address"
    process = await start("--model", str(demo), "--listen", "127.0.0.1:0", "--address-file", str(file))
    try:
        async with dial(await address_in(file)) as channel:
            stub = Stub(channel, SERVICE)
            info = await asyncio.wait_for(ready(stub), START_S)
            assert info.model_id == "zrelay-demo" and info.device.compute_dtype in ("bfloat16", "float32")
            events = stub.stream("Generate", request_of(num_inference_steps=20, seed=1), pb.GenerateResponse)
            await anext(events)
            process.send_signal(signal.SIGTERM)
            kinds = [parcel.message.event.WhichOneof("event") async for parcel in events]
            assert kinds[-1] == "done", "what runs is finished before the process ends"
        assert await asyncio.wait_for(process.wait(), START_S) == exits.OK
    finally:
        if process.returncode is None:
            process.kill()


async def test_a_process_is_ready_before_it_has_hashed_its_text_encoder_and_ends_at_once(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path / "state"))
    model = Path(shutil.copytree(demo, tmp_path / "model"))
    write_hole(model / "text_encoder" / "model.safetensors", 400 << 30)  # takes minutes to hash, and no disk
    file = tmp_path / "address"
    process = await start("--model", str(model), "--listen", "127.0.0.1:0", "--address-file", str(file))
    try:
        async with dial(await address_in(file)) as channel:
            info = await asyncio.wait_for(ready(Stub(channel, SERVICE)), START_S)
        assert info.expected_encoder.tokenizer_digest and not info.expected_encoder.weights_digest
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60.0) == exits.OK
    finally:
        if process.returncode is None:
            process.kill()


def write_hole(path: Path, size: int) -> None:
    """Writes a safetensors file of one tensor of `size` bytes of zeros that takes no room on the disk."""
    header = json.dumps({"hole": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--model", "/nowhere/at-all"], exits.LOCAL_FILE, "does not exist"),
        (["--model", ".", "--listen", "0.0.0.0:7503"], exits.REFUSED, "--insecure-listen"),
        (["--model", ".", "--listen", "127.0.0.1:what"], exits.REFUSED, "expected HOST:PORT"),
        (["--model", ".", "--dtype", "int4"], exits.USAGE, "int4"),
        ([], exits.USAGE, "--model"),
    ],
)
async def test_a_process_that_cannot_start_says_why(
    flags: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    process = await start(*flags, *([] if "--listen" in flags or not flags else ["--listen", "127.0.0.1:0"]))
    _, said = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == code, said.decode()
    assert words in said.decode() and "Traceback" not in said.decode()


async def test_a_second_process_on_the_same_folder_is_refused(demo: Path, tmp_path: Path) -> None:
    held = open_store(tmp_path / "state", Retention(1.0, 1, 1, 1))
    command = ["--model", str(demo), "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state")]
    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zrelay_generator", *command, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(second.communicate(), START_S)
    held.close()
    assert second.returncode == exits.REFUSED, said.decode()
    assert "another generator" in said.decode() and "--state" in said.decode() and "Traceback" not in said.decode()
