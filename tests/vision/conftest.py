"""Checkpoints in the forms that a folder may have, and vision services that the tests share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.helpers.servers import ServerThread
from tests.vision.helpers import VisionClient, write_qwen3_vl, write_reference
from zrelay.v1.vision_pb2 import DESCRIPTOR
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_demo.vision_folders import write_checkpoints
from zrelay_shared import channels, rpc
from zrelay_vision.api.servicer import VisionServicer
from zrelay_vision.config import VisionConfig

SERVICE = DESCRIPTOR.services_by_name["VisionService"]


@pytest.fixture(scope="session")
def demo_tokenizer() -> Path:
    return CHECKPOINT / "tokenizer"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, demo_tokenizer: Path) -> Path:
    """A Qwen3-VL of seven blocks; image features are added after three of them."""
    return write_qwen3_vl(tmp_path_factory.mktemp("vl") / "instruct", demo_tokenizer)


@pytest.fixture(scope="session")
def tiny_thinking(tmp_path_factory: pytest.TempPathFactory, demo_tokenizer: Path) -> Path:
    """Another one: sharded, untied, with another template and other rotary sections."""
    folder = tmp_path_factory.mktemp("vl") / "thinking"
    return write_qwen3_vl(folder, demo_tokenizer, sections=(2, 3, 3), sharded=True, thinking=True, seed=1)


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's untrained vision checkpoints in every form. Tests copy what they change."""
    folder = tmp_path_factory.mktemp("vision") / "models"
    write_checkpoints(folder, CHECKPOINT)
    return folder


@pytest.fixture(scope="session")
def servers() -> Iterator[ServerThread]:
    thread = ServerThread()
    yield thread
    thread.stop()


@pytest.fixture(scope="session")
def qwen_endpoint(servers: ServerThread, tiny: Path) -> str:
    """The endpoint of a service with the tiny Qwen3-VL in float32, loaded down to layer -2."""
    config = VisionConfig(qwen3_vl=tiny, device="cpu", dtype="float32", hidden_layer=-2)
    return servers.start(VisionServicer(config))


@pytest.fixture(scope="session")
def calibrated_endpoint(servers: ServerThread, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The endpoint of a service like that of `qwen_endpoint`, with reference statistics of the tests' encoder."""
    references = write_reference(tmp_path_factory.mktemp("references"))
    config = VisionConfig(qwen3_vl=tiny, device="cpu", dtype="float32", hidden_layer=-2, reference_stats=references)
    return servers.start(VisionServicer(config))


@pytest.fixture
async def qwen(qwen_endpoint: str) -> AsyncIterator[VisionClient]:
    """A client of the shared service with Qwen3-VL. Tests leave the service as it was."""
    async with channels.dial(qwen_endpoint) as channel:
        yield VisionClient(rpc.Stub(channel, SERVICE, qwen_endpoint))


@pytest.fixture(scope="session")
def siglip_endpoint(servers: ServerThread) -> str:
    """The endpoint of a service with the demo's SigLIP2 in float32."""
    config = VisionConfig(siglip=VISION_CHECKPOINT / "siglip", device="cpu", dtype="float32")
    return servers.start(VisionServicer(config))


@pytest.fixture
async def siglip(siglip_endpoint: str) -> AsyncIterator[VisionClient]:
    """A client of the shared service with SigLIP2."""
    async with channels.dial(siglip_endpoint) as channel:
        yield VisionClient(rpc.Stub(channel, SERVICE, siglip_endpoint))


@pytest.fixture
async def calibrated(calibrated_endpoint: str) -> AsyncIterator[VisionClient]:
    """A client of the shared service with Qwen3-VL and reference statistics."""
    async with channels.dial(calibrated_endpoint) as channel:
        yield VisionClient(rpc.Stub(channel, SERVICE, calibrated_endpoint))
