"""Tiny checkpoints, loaded engines, requests, and calls to a running vision service."""

import shutil
from array import array
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.helpers.images import encoded, picture
from tests.helpers.servers import ServedService
from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.embeds_pb2 import PromptReport
from zrelay_shared import fingerprint, reference_file
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.rpc import Stub
from zrelay_shared.service.torch_memory import compute_dtype
from zrelay_shared.torch_tensors import from_wire, to_wire
from zrelay_shared.wire import Parcel
from zrelay_vision.config import VisionConfig
from zrelay_vision.qwen3_vl.engine import Qwen3VLEngine
from zrelay_vision.siglip.engine import SiglipEngine

BLOCKS, WIDTH = 7, 32
TIMEOUT_S = 60.0
CPU = torch.device("cpu")

IMAGE = picture(50, 40)
FILE = encoded(IMAGE)
INPUT = ImageInput(data=FILE)
BLENDS = [mode for mode in pb.BlendMode.values() if mode]
NORMALIZATIONS = [normalization for normalization in pb.StateNormalization.values() if normalization]
MASKS = [mask for mask in pb.OutlierMask.values() if mask]

ENCODER = EncoderFingerprint("qwen3", WIDTH, model_id="tiny", weights_digest="a" * 64, compute_dtype="float32")


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
    """Writes a random Qwen3-VL in float32 with its tokenizer, as transformers saves one; norms are not all ones.

    With `thinking`, the template opens a think block, and the image processor is where transformers 5 puts it.
    """
    torch.manual_seed(seed)
    shutil.copytree(tokenizer, folder)
    words = AutoTokenizer.from_pretrained(folder)
    ids: Any = words.convert_tokens_to_ids
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
        _make_thinking(folder)
    return folder


def _make_thinking(folder: Path) -> None:
    """Gives a folder the template of Qwen3-VL-Thinking, and moves the image processor to processor_config.json."""
    template = folder / "chat_template.jinja"
    opened = "{{- '<|im_start|>assistant\\n' }}"
    text = template.read_text()
    assert opened in text
    template.write_text(text.replace(opened, "{{- '<|im_start|>assistant\\n<think>\\n' }}"))
    old = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(f'{{"image_processor": {old.read_text()}}}')
    old.unlink()


def load_qwen(
    folder: Path,
    *,
    hidden_layer: int | None = -1,
    cache_bytes: int = 0,
    dtype: str = "float32",
    max_area: int = 1 << 20,
) -> Qwen3VLEngine:
    """Loads a Qwen3-VL engine on the CPU. Where no test changes the folder and nothing is cached, use `loaded_qwen`."""
    config = VisionConfig(dtype=dtype, hidden_layer=hidden_layer, state_cache_bytes=cache_bytes, max_area=max_area)
    engine = Qwen3VLEngine(folder, config, compute_dtype(dtype))
    engine.load(CPU, None)
    return engine


@cache
def loaded_qwen(folder: Path, hidden_layer: int | None = -1, dtype: str = "float32") -> Qwen3VLEngine:
    """As `load_qwen`, once per session for the same arguments. Nothing is cached between calls of the engine."""
    return load_qwen(folder, hidden_layer=hidden_layer, dtype=dtype)


def load_siglip(folder: Path, dtype: str = "float32") -> SiglipEngine:
    """Loads a SigLIP2 engine on the CPU."""
    engine = SiglipEngine(folder, compute_dtype(dtype))
    engine.load(CPU, None)
    engine.warm_up()
    return engine


@cache
def loaded_siglip(folder: Path, dtype: str = "float32") -> SiglipEngine:
    """As `load_siglip`, once per session for the same arguments. Tests must not change the result."""
    return load_siglip(folder, dtype)


def prompt(tokens: int = 9, width: int = WIDTH, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    """Returns random embeddings [tokens, width]."""
    return (4 * torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))).to(dtype)


def conditions(image: ImageInput = INPUT, **options: Any) -> pb.ConditionPromptRequest:
    """Returns a request to condition with `image`, still without a prompt."""
    return pb.ConditionPromptRequest(image=image, options=pb.ConditionOptions(**options))


def condition_request(
    embeds: torch.Tensor,
    message: pb.ConditionPromptRequest | None = None,
    *sources: Parcel[Any],
    encoder: EncoderFingerprint = ENCODER,
) -> Parcel[pb.ConditionPromptRequest]:
    """Returns `message` with the prompt `embeds`. `sources` hold the bytes of its saved states."""
    parcel = Parcel(pb.ConditionPromptRequest(), *sources)
    if message is not None:
        parcel.message.CopyFrom(message)
    given = parcel.message.prompt_embeds
    given.fingerprint.CopyFrom(fingerprint.to_message(encoder))
    given.report.CopyFrom(PromptReport(formatted_tokens=len(embeds), token_count=len(embeds), text_limit=1504))
    to_wire(parcel, given.segments.add().prompt_embeds, embeds)
    return parcel


def conditioned(reply: Parcel[pb.ConditionPromptResponse]) -> torch.Tensor:
    """Returns the embeddings of a reply."""
    [segment] = reply.message.prompt_embeds.segments
    return from_wire(reply, segment.prompt_embeds, field="prompt_embeds", rank=2)


def states_of(reply: Parcel[pb.EncodeImagesResponse], index: int = 0) -> torch.Tensor:
    """Returns the states of one image of a reply."""
    return from_wire(reply, reply.message.results[index].states.hidden_states, field="states", rank=2)


class VisionClient:
    """Calls a vision service."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub

    async def encode(self, request: pb.EncodeImagesRequest) -> Parcel[pb.EncodeImagesResponse]:
        return await self.stub.call("EncodeImages", request, pb.EncodeImagesResponse, timeout=TIMEOUT_S)

    async def condition(self, request: Parcel[pb.ConditionPromptRequest]) -> Parcel[pb.ConditionPromptResponse]:
        return await self.stub.call("ConditionPrompt", request, pb.ConditionPromptResponse, timeout=TIMEOUT_S)

    async def score(self, request: pb.ScoreImagesRequest) -> pb.ScoreImagesResponse:
        return (await self.stub.call("ScoreImages", request, pb.ScoreImagesResponse, timeout=TIMEOUT_S)).message

    async def info(self) -> pb.VisionServiceGetInfoResponse:
        request, response = pb.VisionServiceGetInfoRequest(), pb.VisionServiceGetInfoResponse
        return (await self.stub.call("GetInfo", request, response, timeout=TIMEOUT_S)).message


def client_of(served: ServedService[Any]) -> VisionClient:
    """Returns a client of a running vision service."""
    return VisionClient(served.stub)


def write_reference(folder: Path, encoder: EncoderFingerprint = ENCODER) -> Path:
    """Writes reference statistics of an encoder into `folder`, and returns it."""
    folder.mkdir(exist_ok=True)
    ones, zeros = array("f", [1.0] * WIDTH), array("f", [0.0] * WIDTH)
    found = reference_file.ReferenceSet(
        encoder, zeros, ones, zeros, ones, array("f", [1.0] * 5), prompts=1, tokens=5, corpus="test"
    )
    reference_file.write(folder / "tiny.safetensors", found)
    return folder
