"""The real services on the demo checkpoint, in this process on loopback ports, and the command line beside them."""

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from tests.helpers.command_line import Completed, run_zrelay
from tests.helpers.polling import until, until_async
from tests.helpers.servers import ServerThread
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1.generation_pb2 import JobPriority
from zrelay.v1.jobs_pb2 import Job, JobState
from zrelay_client import AsyncClient, Endpoint, Image, read_provenance
from zrelay_client._pool.generators import GeneratorService as GeneratorConnection
from zrelay_client.stack.bundle import demo_checkpoint
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_demo.omni_folder import PARTS, write_omni_folder
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.rpc import Context
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.wire import Parcel
from zrelay_vision.api.servicer import VisionServicer
from zrelay_vision.config import VisionConfig


class RecordingGenerator(GeneratorServicer):
    """The real generator, which keeps what it was sent: priorities by request id, and the digests of uploads."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        self.priorities: dict[str, str] = {}
        self.uploads: list[str] = []

    async def Generate(
        self, parcel: Parcel[pb.GenerateRequest], context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        self._record(parcel.message.request_id, parcel.message.spec.priority)
        async for response in super().Generate(parcel, context):
            yield response

    async def SubmitJob(self, parcel: Parcel[pb.SubmitJobRequest], context: Context) -> pb.SubmitJobResponse:
        self._record(parcel.message.request_id, parcel.message.spec.priority)
        return await super().SubmitJob(parcel, context)

    async def UploadBlob(
        self, parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]], context: Context
    ) -> pb.UploadBlobResponse:
        async def recorded() -> AsyncIterator[Parcel[pb.UploadBlobRequest]]:
            async for parcel in parcels:
                if parcel.message.HasField("content"):
                    self.uploads.append(parcel.message.content.sha256)
                yield parcel

        return await super().UploadBlob(recorded(), context)

    def take_uploads(self) -> list[str]:
        """Returns the SHA-256 digests of the contents that were uploaded since the last call."""
        taken, self.uploads = self.uploads, []
        return taken

    def _record(self, request_id: str, priority: JobPriority) -> None:
        self.priorities[request_id] = JobPriority.Name(priority).removeprefix("JOB_PRIORITY_").lower()


class Endpoints(TypedDict):
    """Keywords of a client."""

    encoder: str
    generator: str


class Services(ServerThread):
    """Encoder and generator of the demo checkpoint: 128 x 128, 8 steps; one job may wait behind another."""

    def __init__(self, state: Path) -> None:
        super().__init__()
        demo = demo_checkpoint()
        self.encoder = self.start(EncoderServicer(EncoderConfig(model=demo, device="cpu", threads=1)))
        config = GeneratorConfig(model=demo, device="cpu", threads=1, max_waiting=1, state=state / "generator")
        self._generator = RecordingGenerator(config)
        self.generator = self.start(self._generator)
        runtime = self._generator.runtime
        assert runtime is not None
        until(lambda: runtime.expected.known, "the generator knows its encoder")

    @property
    def endpoints(self) -> Endpoints:
        """Keywords of a client of both."""
        return {"encoder": self.encoder, "generator": self.generator}

    @property
    def flags(self) -> list[str]:
        """Flags of a command that calls both."""
        return ["--encoder", self.encoder, "--generator", self.generator]

    def take_priorities(self) -> list[str]:
        """Returns the priorities of the jobs since the last call, in order; "unspecified" where none was sent."""
        taken, self._generator.priorities = self._generator.priorities, {}
        return list(taken.values())

    def take_uploads(self) -> list[str]:
        """Returns the SHA-256 digests of the contents that were uploaded since the last call."""
        return self._generator.take_uploads()

    async def job(self, request_id: str) -> Job:
        """Returns the generator's record of a job."""
        far = GeneratorConnection(Endpoint.parse("generator", self.generator))
        try:
            listed = await far.stub.call("ListJobs", pb.ListJobsRequest(page_size=200), pb.ListJobsResponse, timeout=10)
        finally:
            await far.close()
        jobs: list[Job] = list(listed.message.jobs)
        return next(job for job in jobs if job.request_id == request_id)

    async def was_cancelled(self, request_id: str) -> bool:
        """Waits until the device is free, and returns whether the job ended by being cancelled."""
        await self.idle()
        return (await self.job(request_id)).state == JobState.JOB_STATE_CANCELLED

    async def idle(self) -> None:
        """Returns once no job runs or waits."""
        async with AsyncClient(generator=self.generator) as client:

            async def free() -> bool:
                queue = (await client.generator_info()).queue
                return not (queue.running or queue.waiting)

            # The longest job of these tests takes more than a minute: where nobody stops it, this fails.
            await until_async(free, "the generator is idle", 30.0)


def provenance_of(image: Image) -> dict[str, Any]:
    """Returns the provenance in an image file, which must have one."""
    found = read_provenance(image.data)
    assert found is not None
    return dict(found)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Encoder and generator of the demo checkpoint, shared by the session."""
    state = tmp_path_factory.mktemp("services")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZRELAY_STATE", str(state))
        services = Services(state)
    yield services
    services.stop()


@pytest.fixture(scope="session")
def stranger(services: Services, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another encoder: a random Qwen3 of width 32 in a bare folder, with no transformer beside it to tell a limit."""
    folder = tmp_path_factory.mktemp("stranger") / "qwen"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=768,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    Qwen3Model(config).save_pretrained(folder)
    shutil.copytree(demo_checkpoint() / "tokenizer", folder, dirs_exist_ok=True)
    return services.start(EncoderServicer(EncoderConfig(model=folder, device="cpu", threads=1)))


@pytest.fixture(scope="session")
def vision(services: Services) -> str:
    """Both engines, at the layer that the demo's encoder gives."""
    qwen3_vl, siglip = VISION_CHECKPOINT / "qwen3_vl", VISION_CHECKPOINT / "siglip"
    config = VisionConfig(qwen3_vl=qwen3_vl, siglip=siglip, device="cpu", threads=1, hidden_layer=-2)
    return services.start(VisionServicer(config))


@pytest.fixture(scope="session")
def omni_generator(tmp_path_factory: pytest.TempPathFactory) -> RecordingGenerator:
    """A generator of the demo checkpoint with Omni's parts; `omni` serves it."""
    root = tmp_path_factory.mktemp("omni")
    write_omni_folder(root / "omni", CHECKPOINT, VISION_CHECKPOINT / "siglip", VISION_CHECKPOINT / "omni" / PARTS)
    return RecordingGenerator(GeneratorConfig(model=root / "omni", device="cpu", threads=1, state=root / "state"))


@pytest.fixture(scope="session")
def omni(services: Services, omni_generator: RecordingGenerator) -> str:
    """The endpoint of `omni_generator`."""
    return services.start(omni_generator)


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


Zrelay = Callable[..., Awaitable[Completed]]


@pytest.fixture
def zrelay(empty_home: Path) -> Zrelay:
    """Runs the command line in this process, in the empty home."""

    async def run(*args: str, stdin: bytes = b"") -> Completed:
        return await asyncio.to_thread(run_zrelay, *args, stdin=stdin)

    return run
