"""The demo checkpoint, tiny random Qwen3s in every form a folder may have, and a running encoder."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from google.protobuf.message import Message
from transformers import Qwen3Config, Qwen3ForCausalLM

from zrelay.v1 import encoder_pb2 as pb
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.encoder import Encoder, PromptFormatter, load_encoder, load_formatter
from zrelay_encoder.service import EncoderService
from zrelay_encoder.template import of_prompt
from zrelay_shared import channels, checkpoints, rpc
from zrelay_shared.service import lifecycle
from zrelay_shared.service.lifecycle import RunningServer
from zrelay_shared.service.listening import ListenAddress
from zrelay_shared.wire import Parcel

BLOCKS, WIDTH = 5, 32


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return Path(__file__).parents[2] / "demo/zrelay_demo/checkpoint"


def write_qwen3(folder: Path, tokenizer: Path, *, tied: bool = True, sharded: bool = False, seed: int = 0) -> Path:
    """A random Qwen3 of 5 blocks in float32 with its tokenizer inside, as transformers saves one."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=768,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=BLOCKS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=2048,
            tie_word_embeddings=tied,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():  # norms that are not all ones, states that are not all small
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size="60KB" if sharded else "1GB")
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """Bare, one file, tied embeddings."""
    return write_qwen3(tmp_path_factory.mktemp("tiny") / "qwen", demo_checkpoint / "tokenizer")


@pytest.fixture(scope="session")
def tiny_sharded(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """The same weights in several files."""
    return write_qwen3(tmp_path_factory.mktemp("sharded") / "qwen", demo_checkpoint / "tokenizer", sharded=True)


@pytest.fixture(scope="session")
def tiny_untied(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """Other weights, with an LM head of their own."""
    return write_qwen3(tmp_path_factory.mktemp("untied") / "qwen", demo_checkpoint / "tokenizer", tied=False, seed=1)


@dataclass(frozen=True)
class Loaded:
    """A formatter and an encoder of one folder, in float32."""

    formatter: PromptFormatter
    encoder: Encoder

    def encode(self, *prompts: str, hidden_layer: int = -2, limit: int = 512) -> list[torch.Tensor]:
        ids = [text.ids[:limit] for text in self.formatter.format([of_prompt(prompt) for prompt in prompts])]
        return self.encoder.encode(ids, self.encoder.plan(hidden_layer), torch.float32)


def load(path: Path, *, hidden_layer: int = -2, dtype: str = "float32", cache: Path | None = None) -> Loaded:
    folder = checkpoints.open_text_encoder(path)
    config = EncoderConfig(path, device="cpu", dtype=dtype, hidden_layer=hidden_layer, cache=cache)
    return Loaded(load_formatter(folder), load_encoder(folder, config))


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest distance of two tokens' embeddings, relative to the token's norm."""
    assert ours.shape == theirs.shape
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


@dataclass(frozen=True)
class Served:
    """A running encoder and a stub to call it by."""

    service: EncoderService
    server: RunningServer
    stub: rpc.Stub
    endpoint: str

    async def call(self, method: str, request: Message) -> Parcel[Message]:
        response = {
            "EncodePrompts": pb.EncodePromptsResponse,
            "FormatPrompt": pb.FormatPromptResponse,
            "GetInfo": pb.EncoderServiceGetInfoResponse,
        }[method]
        return await self.stub.call(method, request, response, timeout=30)


Serve = Callable[[EncoderConfig | EncoderService], Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(config or service)` runs an encoder on a free loopback port; it may still be loading."""
    async with AsyncExitStack() as stack:

        async def start(what: EncoderConfig | EncoderService) -> Served:
            service = EncoderService(what) if isinstance(what, EncoderConfig) else what
            options = lifecycle.ServeOptions(ListenAddress("127.0.0.1", 0))
            server = await stack.enter_async_context(lifecycle.running(service, options))
            channel = await stack.enter_async_context(channels.dial(str(server.address)))
            return Served(
                service, server, rpc.Stub(channel, service.descriptor, str(server.address)), str(server.address)
            )

        yield start


@pytest.fixture
async def demo(serve: Serve, demo_checkpoint: Path) -> Served:
    """The demo checkpoint's encoder, loaded."""
    served = await serve(EncoderConfig(demo_checkpoint, device="cpu"))
    await served.server.loaded
    return served
