"""Tiny random Qwen3-VLs in the forms a folder may have, pictures, and a running vision service."""

import io
import shutil
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf.message import Message
from PIL import Image
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.embeds_pb2 import PromptReport
from zrelay_shared import channels, fingerprint, reference_file, rpc
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.service import lifecycle
from zrelay_shared.service.lifecycle import RunningServer
from zrelay_shared.service.listening import ListenAddress
from zrelay_shared.torch_tensors import from_wire, to_wire
from zrelay_shared.wire import Parcel
from zrelay_vision.config import VisionConfig
from zrelay_vision.qwen import Qwen3VLEngine
from zrelay_vision.service import VisionService

BLOCKS, WIDTH = 7, 32


@pytest.fixture(scope="session")
def demo_tokenizer() -> Path:
    return Path(__file__).parents[2] / "demo/zrelay_demo/checkpoint/tokenizer"


def write_qwen3_vl(
    folder: Path,
    tokenizer: Path,
    *,
    blocks: int = BLOCKS,
    deepstack: tuple[int, ...] = (0, 1, 2),
    sections: tuple[int, int, int] = (4, 2, 2),
    sharded: bool = False,
    thinking: bool = False,
    seed: int = 0,
) -> Path:
    """A random Qwen3-VL in float32 with its tokenizer inside, as transformers saves one; norms are not all ones.

    Thinking opens the assistant's turn with a think block, and its processor stands where transformers 5 puts it.
    """
    torch.manual_seed(seed)
    shutil.copytree(tokenizer, folder)
    words = AutoTokenizer.from_pretrained(folder)
    ids = words.convert_tokens_to_ids
    text = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": list(sections),
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": list(deepstack),
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=not sharded,
    )
    model: Any = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size="60KB" if sharded else "1GB")
    processor = Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.5, 0.4, 0.3],
    )
    processor.save_pretrained(folder)
    if thinking:
        as_thinking(folder)
    return folder


def as_thinking(folder: Path) -> None:
    """Qwen3-VL-Thinking's template, and the image processor in processor_config.json."""
    template = folder / "chat_template.jinja"
    opened = "{{- '<|im_start|>assistant\\n' }}"
    text = template.read_text()
    assert opened in text
    template.write_text(text.replace(opened, "{{- '<|im_start|>assistant\\n<think>\\n' }}"))
    old = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(f'{{"image_processor": {old.read_text()}}}')
    old.unlink()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, demo_tokenizer: Path) -> Path:
    """Seven blocks, three of them with image features added."""
    return write_qwen3_vl(tmp_path_factory.mktemp("vl") / "instruct", demo_tokenizer)


@pytest.fixture(scope="session")
def tiny_thinking(tmp_path_factory: pytest.TempPathFactory, demo_tokenizer: Path) -> Path:
    """Sharded, untied, another template, other sections."""
    folder = tmp_path_factory.mktemp("vl") / "thinking"
    return write_qwen3_vl(folder, demo_tokenizer, sections=(2, 3, 3), sharded=True, thinking=True, seed=1)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours."""
    generator = torch.Generator().manual_seed(seed)
    coarse = (torch.rand(4, 4, 3, generator=generator) * 255).to(torch.uint8).numpy()
    return Image.fromarray(coarse, "RGB").resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest distance of two tokens' states, relative to the token's norm."""
    assert ours.shape == theirs.shape
    return float(((ours.float() - theirs.float()).norm(dim=-1) / theirs.float().norm(dim=-1)).max())


def load(
    folder: Path,
    *,
    hidden_layer: int | None = -1,
    cache_bytes: int = 0,
    dtype: str = "float32",
    max_area: int = 1 << 20,
) -> Qwen3VLEngine:
    """A loaded engine on the CPU."""
    config = VisionConfig(dtype=dtype, hidden_layer=hidden_layer, state_cache_bytes=cache_bytes, max_area=max_area)
    engine = Qwen3VLEngine(folder, config)
    engine.load(torch.device("cpu"), None)
    return engine


ENCODER = EncoderFingerprint("qwen3", WIDTH, model_id="tiny", weights_digest="a" * 64, compute_dtype="float32")


def prompt(tokens: int = 9, width: int = WIDTH, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    """Embeddings [tokens, width] of a prompt that nobody encoded."""
    return (4 * torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))).to(dtype)


def condition_request(
    embeds: torch.Tensor,
    message: pb.ConditionPromptRequest | None = None,
    *sources: Parcel[Any],
    encoder: EncoderFingerprint = ENCODER,
) -> Parcel[pb.ConditionPromptRequest]:
    """A request whose prompt is `embeds`, with everything else of `message`; `sources` lend the bytes of its states."""
    parcel = Parcel(pb.ConditionPromptRequest(), *sources)
    if message is not None:
        parcel.message.CopyFrom(message)
    given = parcel.message.prompt_embeds
    given.fingerprint.CopyFrom(fingerprint.to_message(encoder))
    given.report.CopyFrom(PromptReport(formatted_tokens=len(embeds), token_count=len(embeds), text_limit=1504))
    to_wire(parcel, given.segments.add().prompt_embeds, embeds)
    return parcel


def conditioned(reply: Parcel[pb.ConditionPromptResponse]) -> torch.Tensor:
    """The embeddings of a reply."""
    [segment] = reply.message.prompt_embeds.segments
    return from_wire(reply, segment.prompt_embeds, field="prompt_embeds", rank=2)


def states_of(reply: Parcel[pb.EncodeImagesResponse], at: int = 0) -> torch.Tensor:
    """The states of one image of a reply."""
    return from_wire(reply, reply.message.results[at].states.hidden_states, field="states", rank=2)


@dataclass(frozen=True)
class Served:
    """A running vision service and a stub to call it by."""

    service: VisionService
    server: RunningServer
    stub: rpc.Stub
    endpoint: str

    async def encode(self, message: Message) -> Parcel[pb.EncodeImagesResponse]:
        return await self.stub.call("EncodeImages", message, pb.EncodeImagesResponse, timeout=30)

    async def condition(self, message: Parcel[pb.ConditionPromptRequest]) -> Parcel[pb.ConditionPromptResponse]:
        return await self.stub.call("ConditionPrompt", message, pb.ConditionPromptResponse, timeout=30)

    async def score(self, message: Message) -> Parcel[pb.ScoreImagesResponse]:
        return await self.stub.call("ScoreImages", message, pb.ScoreImagesResponse, timeout=30)

    async def info(self) -> pb.VisionServiceGetInfoResponse:
        request, kind = pb.VisionServiceGetInfoRequest(), pb.VisionServiceGetInfoResponse
        return (await self.stub.call("GetInfo", request, kind, timeout=30)).message


Serve = Callable[[VisionConfig | VisionService], Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(config or service)` runs a vision service on a free loopback port; it may still be loading."""
    async with AsyncExitStack() as stack:

        async def start(what: VisionConfig | VisionService) -> Served:
            service = VisionService(what) if isinstance(what, VisionConfig) else what
            options = lifecycle.ServeOptions(ListenAddress("127.0.0.1", 0))
            server = await stack.enter_async_context(lifecycle.running(service, options))
            channel = await stack.enter_async_context(channels.dial(str(server.address)))
            stub = rpc.Stub(channel, service.descriptor, str(server.address))
            return Served(service, server, stub, str(server.address))

        yield start


@pytest.fixture
async def qwen(serve: Serve, tiny: Path) -> Served:
    """A service with the tiny Qwen3-VL, loaded down to layer -2."""
    served = await serve(VisionConfig(qwen3_vl=tiny, device="cpu", dtype="float32", hidden_layer=-2))
    await served.server.loaded
    return served


def calibrated(folder: Path, encoder: Any = ENCODER) -> Path:
    """A folder with reference statistics of the tests' encoder."""
    folder.mkdir(exist_ok=True)
    ones, zeros = array("f", [1.0] * WIDTH), array("f", [0.0] * WIDTH)
    found = reference_file.ReferenceSet(
        encoder, zeros, ones, zeros, ones, array("f", [1.0] * 5), prompts=1, tokens=5, corpus="test"
    )
    reference_file.write(folder / "tiny.safetensors", found)
    return folder


@pytest.fixture
async def ready(serve: Serve, tiny: Path, tmp_path: Path) -> Served:
    """A calibrated service."""
    stats = calibrated(tmp_path / "stats")
    served = await serve(
        VisionConfig(qwen3_vl=tiny, device="cpu", dtype="float32", hidden_layer=-2, reference_stats=stats)
    )
    await served.server.loaded
    return served
