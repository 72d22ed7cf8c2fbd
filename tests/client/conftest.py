"""The real services on the demo checkpoint, in this process on loopback ports, and the command line beside them."""

import asyncio
import io
import os
import shutil
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from zrelay.v1.generator_pb2 import ListJobsRequest, ListJobsResponse
from zrelay.v1.jobs_pb2 import Job, JobState
from zrelay_client import AsyncClient
from zrelay_client._generator_service import GeneratorService as Generator
from zrelay_client._stack.bundle import demo_checkpoint
from zrelay_client.cli import main
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_demo.omni_folder import PARTS, write_omni_folder
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.service import EncoderService
from zrelay_generator.api.servicer import GeneratorService
from zrelay_generator.settings import GeneratorConfig
from zrelay_shared.service import lifecycle
from zrelay_shared.service.listening import ListenAddress
from zrelay_vision.config import VisionConfig
from zrelay_vision.service import VisionService

T = TypeVar("T")


class Services:
    """Services in a thread with an event loop of its own, so that tests with loops of theirs can share them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._running = AsyncExitStack()
        threading.Thread(target=self._loop.run_forever, name="services", daemon=True).start()
        self.endpoints: dict[str, str] = {}
        """Encoder and generator of the demo checkpoint: 128 x 128, 8 steps; one job may wait behind another."""

    def start(self, service: lifecycle.Service) -> str:
        """Serves it, loaded; its endpoint."""

        async def started() -> str:
            options = lifecycle.ServeOptions(ListenAddress("127.0.0.1", 0))
            server = await self._running.enter_async_context(lifecycle.running(service, options))
            await server.loaded
            return str(server.address)

        return self._wait(started())

    def stop(self) -> None:
        self._wait(self._running.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def job(self, request_id: str) -> Job:
        """What the generator knows of a job."""
        far = Generator(self.endpoints["generator"])
        try:
            said = await far.stub.call("ListJobs", ListJobsRequest(page_size=200), ListJobsResponse, timeout=10)
        finally:
            await far.close()
        return next(job for job in said.message.jobs if job.request_id == request_id)

    async def was_cancelled(self, request_id: str) -> bool:
        """Whether a job is cancelled, and the device is free within five seconds: a few steps, never the whole job."""
        state = (await self.job(request_id)).state
        await self.idle(5.0)
        return state == JobState.JOB_STATE_CANCELLED

    async def idle(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        async with AsyncClient(generator=self.endpoints["generator"]) as client:
            while (queue := (await client.generator_info()).queue).running or queue.waiting:
                assert time.monotonic() < deadline, "the generator is still busy"
                await asyncio.sleep(0.02)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    services = Services()
    demo = demo_checkpoint()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZRELAY_STATE", str(tmp_path_factory.mktemp("services")))
        encoder = EncoderService(EncoderConfig(demo, device="cpu", threads=1))
        generator = GeneratorService(GeneratorConfig(demo, device="cpu", threads=1, max_waiting=1))
        services.endpoints = {"encoder": services.start(encoder), "generator": services.start(generator)}
    yield services
    services.stop()


@pytest.fixture(scope="session")
def stranger(services: Services, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another encoder: a random Qwen3 of width 32 in a bare folder, with no transformer beside it to tell a limit."""
    folder = tmp_path_factory.mktemp("stranger") / "qwen"
    torch.manual_seed(0)
    sizes = {"vocab_size": 768, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
    Qwen3Model(Qwen3Config(**sizes, **heads, max_position_embeddings=2048)).save_pretrained(folder)
    shutil.copytree(demo_checkpoint() / "tokenizer", folder, dirs_exist_ok=True)
    return services.start(EncoderService(EncoderConfig(folder, device="cpu", threads=1)))


@pytest.fixture(scope="session")
def vision(services: Services) -> str:
    """Both engines, at the layer that the demo's encoder gives."""
    folders = {"qwen3_vl": VISION_CHECKPOINT / "qwen3_vl", "siglip": VISION_CHECKPOINT / "siglip"}
    return services.start(VisionService(VisionConfig(**folders, device="cpu", threads=1, hidden_layer=-2)))


@pytest.fixture(scope="session")
def omni(services: Services, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A generator of the demo checkpoint with Omni's parts."""
    root = tmp_path_factory.mktemp("omni")
    write_omni_folder(root / "omni", CHECKPOINT, VISION_CHECKPOINT / "siglip", VISION_CHECKPOINT / "omni" / PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZRELAY_STATE", str(root / "state"))
        return services.start(GeneratorService(GeneratorConfig(root / "omni", device="cpu", threads=1)))


@dataclass(frozen=True)
class Ran:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


Zrelay = Callable[..., Awaitable[Ran]]


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing configured, nothing running, an empty working folder: the folder of configuration and state."""
    for name in [name for name in os.environ if name.startswith("ZRELAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZRELAY_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def zrelay(empty_home: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Zrelay:
    """Runs the command line in this process, in the empty home. stdout is UTF-8, else Latin-1 (a picture)."""

    async def run(*args: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = await asyncio.to_thread(main, list(args))
        said = capfdbinary.readouterr()
        try:
            out = said.out.decode()
        except UnicodeDecodeError:
            out = said.out.decode("latin-1")
        return Ran(code, out, said.err.decode())

    return run
