"""Tiny checkpoints, loaded encoders, and calls to a running encoder service."""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.helpers.servers import ServedService
from zrelay.v1 import encoder_pb2 as pb
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.embedding import EmbeddingTask, embed_sequences
from zrelay_encoder.model.encoder import Encoder, load_encoder
from zrelay_encoder.prompts.formatting import PromptFormatter, load_formatter, single_turn
from zrelay_shared import checkpoints
from zrelay_shared.rpc import Stub
from zrelay_shared.torch_tensors import from_wire
from zrelay_shared.wire import Parcel

BLOCKS, WIDTH = 5, 32
TIMEOUT_S = 60.0


def write_qwen3(
    folder: Path, tokenizer: Path, *, tied: bool = True, sharded: bool = False, seed: int = 0, vocabulary: int = 768
) -> Path:
    """Writes a random Qwen3 of 5 blocks in float32 with its tokenizer, as transformers saves one."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
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


@dataclass(frozen=True)
class LoadedEncoder:
    """A formatter and an encoder of one folder."""

    formatter: PromptFormatter
    encoder: Encoder

    def embed(
        self,
        sequences: list[tuple[int, ...]],
        *,
        hidden_layer: int | None = None,
        dtype: torch.dtype = torch.float32,
        deterministic: bool = False,
        batch_tokens: int = 4096,
    ) -> list[torch.Tensor]:
        """Embeds token sequences; the layer is the deepest that is loaded unless one is given."""
        plan = self.encoder.model.plan if hidden_layer is None else self.encoder.plan(hidden_layer)
        return embed_sequences(self.encoder, EmbeddingTask(tuple(sequences), plan, dtype, deterministic), batch_tokens)

    def encode(self, *prompts: str, hidden_layer: int = -2, limit: int = 512) -> list[torch.Tensor]:
        """Formats, truncates and embeds prompts."""
        formatted = self.formatter.format([single_turn(prompt) for prompt in prompts])
        return self.embed([prompt.ids[:limit] for prompt in formatted], hidden_layer=hidden_layer)


def load(path: Path, *, hidden_layer: int = -2, dtype: str = "float32", cache: Path | None = None) -> LoadedEncoder:
    """Loads an encoder on the CPU. For a folder that no test changes, `loaded` is faster."""
    folder = checkpoints.open_text_encoder(path)
    config = EncoderConfig(model=path, device="cpu", dtype=dtype, hidden_layer=hidden_layer, cache=cache)
    formatter = load_formatter(folder)
    return LoadedEncoder(formatter, load_encoder(folder, config, formatter.identity()))


@cache
def loaded(path: Path, hidden_layer: int = -2, dtype: str = "float32") -> LoadedEncoder:
    """As `load`, once per session for the same arguments. Tests must not change the result."""
    return load(path, hidden_layer=hidden_layer, dtype=dtype)


class EncoderClient:
    """Calls an encoder service."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub

    async def encode(self, request: pb.EncodePromptsRequest) -> Parcel[pb.EncodePromptsResponse]:
        return await self._stub.call("EncodePrompts", request, pb.EncodePromptsResponse, timeout=TIMEOUT_S)

    async def format(self, request: pb.FormatPromptRequest) -> pb.FormatPromptResponse:
        return (await self._stub.call("FormatPrompt", request, pb.FormatPromptResponse, timeout=TIMEOUT_S)).message

    async def info(self) -> pb.EncoderServiceGetInfoResponse:
        request, response = pb.EncoderServiceGetInfoRequest(), pb.EncoderServiceGetInfoResponse
        return (await self._stub.call("GetInfo", request, response, timeout=TIMEOUT_S)).message


def client_of(served: ServedService[Any]) -> EncoderClient:
    """Returns a client of a running encoder service."""
    return EncoderClient(served.stub)


def embeds_of(reply: Parcel[pb.EncodePromptsResponse], index: int = 0) -> torch.Tensor:
    """Returns the embeddings of an ordinary prompt of a reply."""
    [segment] = reply.message.results[index].prompt_embeds.segments
    return from_wire(reply, segment.prompt_embeds, field="prompt_embeds", rank=2)
