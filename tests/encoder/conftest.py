"""Checkpoints in every form a folder may have, and one encoder service that the tests share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.encoder.helpers import EncoderClient, write_qwen3
from tests.helpers.servers import ServerThread
from zrelay.v1.encoder_pb2 import DESCRIPTOR
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_shared import channels, rpc


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return Path(__file__).parents[2] / "demo/zrelay_demo/checkpoint"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """A bare folder with one file and tied embeddings."""
    return write_qwen3(tmp_path_factory.mktemp("tiny") / "qwen", demo_checkpoint / "tokenizer")


@pytest.fixture(scope="session")
def tiny_sharded(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """The same weights in several files."""
    return write_qwen3(tmp_path_factory.mktemp("sharded") / "qwen", demo_checkpoint / "tokenizer", sharded=True)


@pytest.fixture(scope="session")
def tiny_untied(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """Other weights, with a language model head of their own."""
    return write_qwen3(tmp_path_factory.mktemp("untied") / "qwen", demo_checkpoint / "tokenizer", tied=False, seed=1)


@pytest.fixture(scope="session")
def demo_endpoint(demo_checkpoint: Path) -> Iterator[str]:
    """The endpoint of the demo checkpoint's encoder, loaded in float32."""
    servers = ServerThread()
    yield servers.start(EncoderServicer(EncoderConfig(model=demo_checkpoint, device="cpu", dtype="float32")))
    servers.stop()


@pytest.fixture
async def demo(demo_endpoint: str) -> AsyncIterator[EncoderClient]:
    """A client of the shared encoder service. Tests leave the service as it was."""
    async with channels.dial(demo_endpoint) as channel:
        yield EncoderClient(rpc.Stub(channel, DESCRIPTOR.services_by_name["EncoderService"], demo_endpoint))
